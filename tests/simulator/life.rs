//! The life of mirrors in random histories: they leave, come back, are added, replaced, removed,
//! pulled out, filled up and go on apart, while everything else goes on.
//!
//! One mirror that holds everything is always left without faults: that the pool stops when the
//! last one fails is no matter of these histories. Checked at each mount: a mirror that did not
//! hold everything when the one before ended does not speak, and one that did and is named does.
//! Checked whenever the tree is compared: no mirror is read that does not hold everything.

use mendfs::backing::sim::{Faults, PowerLoss, SimRng};
use mendfs::format::MemberState;
use mendfs::mirrors::{MembershipError, read_superblock};
use mendfs::pool::MemberError;
use mendfs::pool::status::{MirrorState, PoolState};

use super::history::{History, Outcome, set_free};
use super::mirrors::alike;
use super::model::ROOT;
use super::ops::Op;

/// Disks that a history has at most.
const DISKS: usize = 7;
/// Size of a disk that nobody fills up.
const ROOMY: u64 = 1 << 40;

/// Something that happens to the mirrors. Disks are picked from those there are.
#[derive(Clone, Debug)]
pub(crate) enum Event {
    Offline(u64),
    Online(u64),
    Add,
    Remove(u64),
    Replace(u64),
    Detach(u64),
    Attach(u64),
    /// Others leave so many bytes of the disk.
    Squeeze(u64, u64),
    Relax(u64),
    Faults(u64, Faults),
    /// The process is killed, and what one disk had not made durable is lost.
    PowerOfOne(u64),
    /// Two mirrors are written to, each without the other.
    Apart(u64),
    /// So many pieces of bringing mirrors up to date.
    Resync(u64),
    /// Time goes by.
    Wait,
}

/// What the history knows of the disks.
#[derive(Debug)]
pub(crate) struct Life {
    /// For what comes up within a step.
    pub(crate) rng: SimRng,
    /// The mirror that lies on each disk, or did.
    uuids: Vec<Option<String>>,
    /// Held everything when last looked at.
    current: Vec<bool>,
    /// May have held everything when a crash came.
    doubtful: Vec<bool>,
    /// Some disk was pulled out, which is a crash of that disk.
    pulled: bool,
    /// Filled up by others.
    squeezed: Vec<bool>,
    /// Free of faults when the mount began.
    clean: Vec<bool>,
    /// To be replaced.
    doomed: Vec<bool>,
    /// Nothing happened since last looked at.
    pub(crate) exact: bool,
    /// All disks are to be mounted next.
    all: bool,
}

impl Default for Life {
    fn default() -> Life {
        Life {
            rng: SimRng::new(0),
            uuids: Vec::new(),
            current: Vec::new(),
            doubtful: Vec::new(),
            pulled: false,
            clean: Vec::new(),
            squeezed: Vec::new(),
            doomed: Vec::new(),
            exact: false,
            all: false,
        }
    }
}

const fn is_current(state: MirrorState) -> bool {
    matches!(state, MirrorState::Online | MirrorState::Suspect)
}

const fn is_written(state: MirrorState) -> bool {
    is_current(state) || matches!(state, MirrorState::Resyncing)
}

impl History {
    fn label(&self, disk: usize) -> String {
        use mendfs::backing::Backing;
        self.machine.disks[disk].label()
    }

    fn pick(&self, pick: u64) -> usize {
        (pick % self.machine.disks.len() as u64) as usize
    }

    /// The state of the mirror on a disk; none if it is no member.
    fn state_of(&self, disk: usize) -> Option<MirrorState> {
        let uuid = self.life.uuids.get(disk)?.as_ref()?;
        let mirrors = self.machine.pool().status().mirrors;
        let found = mirrors.into_iter().find(|mirror| mirror.uuid == *uuid);
        found.map(|mirror| mirror.state)
    }

    fn holds_all(&self, disk: usize) -> bool {
        self.state_of(disk).is_some_and(is_current)
    }

    fn is_clean(&self, disk: usize) -> bool {
        let sim = &self.machine.disks[disk];
        let fine = sim.is_attached() && sim.faults() == Faults::none();
        fine && !self.life.squeezed[disk] && !self.life.doomed[disk]
    }

    /// Whether a mirror without faults is left when something befalls this one.
    fn is_spare(&self, disk: usize) -> bool {
        let mut others = (0..self.machine.disks.len()).filter(|other| *other != disk);
        others.any(|other| self.is_clean(other) && self.holds_all(other))
    }

    /// Looks at who the members are.
    pub(crate) fn note_members(&mut self) {
        let disks = self.machine.disks.len();
        self.life.uuids.resize(disks, None);
        self.life.current.resize(disks, false);
        self.life.squeezed.resize(disks, false);
        self.life.doomed.resize(disks, false);
        for disk in 0..disks {
            if self.life.uuids[disk].is_none() {
                let own = read_superblock(&self.machine.disks[disk]).ok();
                self.life.uuids[disk] = own.map(|own| own.mirror.to_string());
                self.machine.unnamed[disk] = self.life.uuids[disk].is_none();
            }
        }
        if self.machine.mounted.is_some() {
            for disk in 0..disks {
                self.machine.unnamed[disk] = self.state_of(disk).is_none();
                self.life.current[disk] = self.holds_all(disk);
            }
        }
    }

    /// Which disks held everything before and after what happened last.
    fn surely_current(&self) -> Vec<bool> {
        let disks = 0..self.machine.disks.len();
        let before = &self.life.current;
        let alive = self.machine.mounted.is_some();
        disks
            .map(|disk| before.get(disk) == Some(&true) && (!alive || self.holds_all(disk)))
            .collect()
    }

    /// Whether this mount has written anything: those that were away are behind then.
    fn wrote(&self) -> bool {
        let announced = self.machine.mounted.is_some() && self.machine.pool().is_active();
        announced || self.changed_since_mount()
    }

    /// The process is about to end: what its mirrors are is remembered.
    pub(crate) fn before_the_end(&mut self) {
        if !self.plan.kind.is_members() {
            return;
        }
        if self.life.exact {
            self.note_members();
            if self.wrote() {
                self.life.doubtful.clear();
            }
        } else {
            // One that was being brought up to date may have got there with its last change.
            let after: Vec<bool> = (0..self.machine.disks.len())
                .map(|disk| {
                    // When the power is gone, so is whoever was promoted just before.
                    let cut = !self.machine.world.is_powered();
                    let state = self.state_of(disk);
                    state.is_some_and(|state| {
                        is_written(state) || cut && state == MirrorState::Failed
                    })
                })
                .collect();
            let sure = self.surely_current();
            self.life.current.resize(after.len(), false);
            let before = |disk: usize| {
                self.life.current[disk] || self.life.doubtful.get(disk) == Some(&true)
            };
            self.life.doubtful = (0..after.len())
                .map(|disk| (before(disk) || after[disk]) && !sure[disk])
                .collect();
            self.life.current = sure;
        }
    }

    /// Decides which disks the next mount gets.
    pub(crate) fn choose_disks(&mut self) -> Outcome<()> {
        let disks = self.machine.disks.len();
        self.note_members();
        for disk in 0..disks {
            self.machine.disks[disk].set_capacity(ROOMY);
            self.life.squeezed[disk] = false;
            if self.life.all || self.life.rng.coin() {
                self.machine.disks[disk].attach();
            }
        }
        self.life.clean = (0..disks).map(|disk| self.is_clean(disk)).collect();
        if self.life.exact {
            self.refuse_the_stale()?;
        }
        let anchors: Vec<usize> = (0..disks)
            .filter(|disk| self.life.current[*disk] && self.is_clean(*disk))
            .collect();
        self.machine.present = vec![true; disks];
        if anchors.is_empty() {
            self.machine.disks.iter().for_each(|disk| disk.attach());
        } else if !self.life.all && self.life.rng.coin() {
            for disk in 0..disks {
                self.machine.present[disk] = self.life.rng.coin();
            }
            let anchor = anchors[self.life.rng.index(anchors.len())];
            self.machine.present[anchor] = true;
        }
        Ok(())
    }

    /// One that is being brought up to date mounts nothing by itself.
    fn refuse_the_stale(&mut self) -> Outcome<()> {
        let disks = self.machine.disks.len();
        let resyncing = |disk: &usize| {
            let own = read_superblock(&self.machine.disks[*disk]);
            let state = own.ok().and_then(|own| Some(own.member(own.mirror)?.state));
            self.machine.disks[*disk].faults() == Faults::none()
                && !self.machine.unnamed[*disk]
                && state == Some(MemberState::Resyncing)
        };
        let stale: Vec<usize> = (0..disks).filter(resyncing).collect();
        if stale.is_empty() || self.life.rng.below(3) > 0 {
            return Ok(());
        }
        self.machine.present = vec![false; disks];
        for disk in stale {
            self.machine.present[disk] = true;
        }
        match self.machine.mount() {
            Ok(()) => Err(format!(
                "mounted with only {:?}, which were being brought up to date",
                self.machine.present
            )),
            Err(refused) if refused.contains("left behind") => Ok(()),
            Err(other) => Err(format!("only stale ones are refused with: {other}")),
        }
    }

    /// Whoever speaks after a mount held everything before it.
    pub(crate) fn check_mounted(&mut self) -> Outcome<()> {
        let exact = std::mem::take(&mut self.life.exact);
        for disk in 0..self.machine.disks.len() {
            let (was, is) = (self.life.current[disk], self.holds_all(disk));
            let doubtful = self.life.doubtful.get(disk) == Some(&true);
            let label = self.label(disk);
            if is && !was && !doubtful {
                return Err(format!(
                    "{label} was not up to date, and speaks after a mount"
                ));
            }
            let there = self.machine.present[disk] && self.life.clean[disk];
            if exact && was && there && !is && !self.life.doomed[disk] {
                let state = self.state_of(disk);
                return Err(format!(
                    "{label} was up to date, and is {state:?} after a mount"
                ));
            }
        }
        let absent: Vec<bool> = (0..self.machine.disks.len())
            .map(|disk| {
                let doubtful = self.life.doubtful.get(disk) == Some(&true);
                (self.life.current[disk] || doubtful) && !self.holds_all(disk)
            })
            .collect();
        // As long as nobody writes those that are away miss nothing.
        self.life.doubtful = absent;
        self.note_members();
        Ok(())
    }

    /// How often each disk was read that does not hold everything.
    pub(crate) fn reads_of_others(&self) -> Vec<(String, u64)> {
        let disks = 0..self.machine.disks.len();
        if !self.plan.kind.is_members()
            || !disks
                .clone()
                .all(|disk| self.machine.disks[disk].faults() == Faults::none())
        {
            return Vec::new();
        }
        let others = disks.filter(|disk| !self.holds_all(*disk));
        others
            .map(|disk| (self.label(disk), self.machine.disks[disk].reads()))
            .collect()
    }

    /// Carries out an event.
    pub(crate) fn live(&mut self, event: Event) -> Outcome<()> {
        self.note_members();
        match event {
            Event::Offline(pick) => {
                let disk = self.pick(pick);
                if self.state_of(disk).is_some() && self.is_spare(disk) {
                    let uuid = self.uuid(disk);
                    let done = self.machine.pool().mirror_offline(&uuid);
                    let out = done.is_ok() && self.state_of(disk) != Some(MirrorState::Offline);
                    if out {
                        return Err(format!("{} is not offline", self.label(disk)));
                    }
                    return self.judge(done, &|error| matches!(error, MemberError::Already { .. }));
                }
            }
            Event::Online(pick) => {
                let disk = self.pick(pick);
                let out = self.state_of(disk).is_some_and(|state| !is_written(state));
                if out && !self.life.squeezed[disk] {
                    let clean = self.is_clean(disk);
                    let done = self.machine.pool().mirror_online(&self.label(disk));
                    return self.judge(done, &|_| !clean);
                }
            }
            Event::Add => {
                let Some(disk) = self.fresh_disk() else {
                    return Ok(());
                };
                let done = self.machine.pool().mirror_add(&self.label(disk), None);
                // A missing one may be thought to belong where another one was.
                return self.judge(done, &|error| matches!(error, MemberError::Belongs(_)));
            }
            Event::Remove(pick) => {
                let disk = self.pick(pick);
                if self.state_of(disk).is_some() && self.is_spare(disk) {
                    let done = self.machine.pool().mirror_remove(&self.uuid(disk));
                    if done.is_ok() && self.state_of(disk).is_some() {
                        return Err(format!("{} is still a member", self.label(disk)));
                    }
                    return self.judge(done, &|_| false);
                }
            }
            Event::Replace(pick) => {
                let disk = self.pick(pick);
                if self.state_of(disk).is_some() && self.is_spare(disk) {
                    let Some(new) = self.fresh_disk() else {
                        return Ok(());
                    };
                    self.life.doomed[disk] = true;
                    let (pool, label) = (self.machine.pool(), self.label(new));
                    let done = pool.mirror_add(&label, Some(&self.uuid(disk)));
                    return self.judge(done, &|error| matches!(error, MemberError::Belongs(_)));
                }
            }
            Event::Detach(pick) => {
                self.life.pulled = true;
                let disk = self.pick(pick);
                if self.is_spare(disk) {
                    self.machine.disks[disk].detach();
                }
            }
            Event::Attach(pick) => self.machine.disks[self.pick(pick)].attach(),
            Event::Squeeze(pick, free) => {
                let disk = self.pick(pick);
                let attached = self.machine.disks[disk].is_attached();
                if attached && self.state_of(disk).is_some() && self.is_spare(disk) {
                    set_free(&self.machine.disks[disk], free)?;
                    self.life.squeezed[disk] = true;
                }
            }
            Event::Relax(pick) => {
                let disk = self.pick(pick);
                self.machine.disks[disk].set_capacity(ROOMY);
                self.life.squeezed[disk] = false;
            }
            Event::Faults(pick, faults) => {
                let disk = self.pick(pick);
                if self.is_spare(disk) {
                    self.machine.disks[disk].set_faults(faults);
                }
            }
            Event::PowerOfOne(pick) => {
                let disk = self.pick(pick);
                self.life.exact = true;
                self.before_the_end();
                let lost = &self.machine.disks[disk];
                lost.set_power_loss(Some(PowerLoss::LoseAll));
                self.crashes += 1;
                self.machine.crash(PowerLoss::KeepAll);
                self.machine.disks[disk].set_power_loss(None);
                return self.come_back(None);
            }
            Event::Apart(pick) => return self.go_apart(pick),
            Event::Resync(pieces) => {
                for _ in 0..pieces {
                    if !self.machine.resync_step()? {
                        break;
                    }
                }
            }
            Event::Wait => {
                self.number += 70;
                self.machine.set_time(self.number);
            }
        }
        Ok(())
    }

    fn uuid(&self, disk: usize) -> String {
        self.life.uuids[disk].clone().unwrap_or_default()
    }

    fn judge(
        &self,
        done: Result<(), MemberError>,
        may: &dyn Fn(&MemberError) -> bool,
    ) -> Outcome<()> {
        match done {
            // All others may have been pulled out, which nobody had noticed.
            Err(MemberError::Membership(MembershipError::Last { .. })) if self.life.pulled => {
                Ok(())
            }
            Err(error) if self.machine.world.is_powered() && !may(&error) => {
                Err(format!("members: {error}"))
            }
            _ => Ok(()),
        }
    }

    /// Whether an application may be told that there is no space: a mirror that others have nearly
    /// filled was small already when it was attached.
    pub(crate) fn may_be_full(&self) -> bool {
        let tight = |disk: usize| self.life.squeezed[disk] && self.holds_all(disk);
        self.plan.kind.is_full()
            || self.plan.kind.is_members() && (0..self.machine.disks.len()).any(tight)
    }

    /// An empty disk that is no mirror.
    fn fresh_disk(&mut self) -> Option<usize> {
        let disks = self.machine.disks.len();
        let disk = if disks < DISKS {
            self.machine.add_disk(&format!("e{disks}"))
        } else {
            let free = (0..disks).find(|disk| self.state_of(*disk).is_none())?;
            let sim = &self.machine.disks[free];
            sim.attach();
            sim.wipe();
            sim.set_faults(Faults::none());
            sim.set_capacity(ROOMY);
            self.life.uuids[free] = None;
            self.life.squeezed[free] = false;
            self.life.doomed[free] = false;
            free
        };
        self.note_members();
        Some(disk)
    }

    /// Two mirrors go on alone; then one of them is preferred.
    fn go_apart(&mut self, pick: u64) -> Outcome<()> {
        let disks = self.machine.disks.len();
        // One that was pulled out, and not missed yet, is no longer one of them.
        let looked = self.machine.pool().look_after_mirrors();
        if !self.machine.world.is_powered() {
            return Ok(());
        }
        looked.map_err(|error| error.to_string())?;
        let able: Vec<usize> = (0..disks)
            .filter(|disk| self.is_clean(*disk) && self.holds_all(*disk))
            .collect();
        if able.len() < 2 {
            return Ok(());
        }
        let at = pick as usize % (able.len() - 1);
        let pair = [able[at], able[at + 1]];
        self.machine.world.crash_at_change(u64::MAX);
        self.machine
            .close()
            .map_err(|error| format!("unmount: {error}"))?;
        let base = self.model.clone();
        let mut ends = Vec::new();
        for alone in pair {
            self.model = base.clone();
            self.restart_states();
            self.machine.present = vec![false; disks];
            self.machine.present[alone] = true;
            self.mount_and_adopt()?;
            let op = Op::Mknod {
                user: 0,
                parent: ROOT,
                name: format!("only here {}", self.number).into_bytes(),
                mode: 0o100_644,
                rdev: 0,
            };
            let mut rng = self.life.rng.fork(alone as u64);
            self.number += 1;
            self.machine.set_time(self.number);
            self.perform(&op, &mut rng)?;
            for _ in 0..rng.below(6) {
                self.op(&mut rng)?;
            }
            self.machine
                .close()
                .map_err(|error| format!("unmount: {error}"))?;
            ends.push(self.model.clone());
        }
        self.machine.present = vec![true; disks];
        match self.machine.mount() {
            Err(refused) if refused.contains("split-brain") => {}
            other => return Err(format!("split-brain is answered with {other:?}")),
        }
        let kept = (pick >> 8) as usize % 2;
        self.model = ends.swap_remove(kept);
        self.restart_states();
        self.machine.prefer = Some(self.label(pair[kept]));
        let mounted = self.mount_and_adopt();
        self.machine.prefer = None;
        mounted?;
        for _ in 0..100_000 {
            let state = self.state_of(pair[1 - kept]);
            if state != Some(MirrorState::Offline) {
                self.note_members();
                return Ok(());
            }
            self.number += 1;
            self.machine.set_time(self.number);
            self.machine.resync_step()?;
        }
        Err("what went on apart is not taken back".to_owned())
    }

    fn mount_and_adopt(&mut self) -> Outcome<()> {
        self.machine
            .mount()
            .map_err(|error| format!("mount: {error}"))?;
        let real = super::execute::look(self.machine.vfs())?;
        self.adopt(real, None)
    }

    /// At the end everything comes together again, and each mirror alone has everything.
    pub(crate) fn finish_members(&mut self) -> Outcome<()> {
        self.life.all = true;
        self.life.exact = true;
        self.before_the_end();
        self.machine.kill();
        self.come_back(None)?;
        let disks = self.machine.disks.len();
        for _ in 0..10 {
            self.number += 4000;
            self.machine.set_time(self.number);
            self.machine.resync()?;
            for disk in 0..disks {
                if self.state_of(disk).is_some_and(|state| !is_written(state)) {
                    let done = self.machine.pool().mirror_online(&self.label(disk));
                    self.judge(done, &|_| false)?;
                }
            }
            if self.machine.pool().status().state == PoolState::Healthy {
                break;
            }
        }
        let status = self.machine.pool().status();
        let mut mirrors = status.mirrors.iter();
        if let Some(out) = mirrors.find(|mirror| mirror.state != MirrorState::Online) {
            return Err(format!("at the end not all is well: {out:?}"));
        }
        self.compare()?;
        self.sync()?;
        let text = |error: mendfs::pool::PoolError| format!("checkpoint: {error}");
        self.machine.pool().checkpoint().map_err(text)?;
        self.machine.reclaim()?;
        self.machine.pool().checkpoint().map_err(text)?;
        let members: Vec<usize> = (0..disks)
            .filter(|disk| self.state_of(*disk).is_some())
            .collect();
        // A crash may leave what is no data different on those that were not brought up to date.
        if self.crashes > 0 || self.life.pulled {
            let findings = self.machine.verify()?;
            if !findings.is_empty() {
                return Err(format!("verification found: {}", findings.join("; ")));
            }
            for disk in &members[1..] {
                let done = self.machine.pool().mirror_offline(&self.uuid(*disk));
                self.judge(done, &|_| false)?;
            }
            for disk in &members[1..] {
                let done = self.machine.pool().mirror_online(&self.label(*disk));
                self.judge(done, &|_| false)?;
            }
            self.machine.resync()?;
        }
        alike(&self.machine, &members)?;
        self.machine
            .close()
            .map_err(|error| format!("unmount: {error}"))?;
        self.alone_each(&members)
    }

    fn alone_each(&mut self, members: &[usize]) -> Outcome<()> {
        let kept = self.machine.snapshots();
        for alone in members {
            let told = |error: String| format!("mirror {alone} alone: {error}");
            self.machine.restore(&kept);
            self.machine.present.fill(false);
            self.machine.present[*alone] = true;
            self.machine.mount().map_err(told)?;
            self.compare().map_err(told)?;
            let findings = self.machine.verify().map_err(told)?;
            if !findings.is_empty() {
                return Err(told(findings.join("; ")));
            }
            self.machine.kill();
        }
        self.machine.restore(&kept);
        Ok(())
    }
}
