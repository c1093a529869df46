//! One random history, from one seed: operations, services, faults, crashes, and the comparison
//! with the model after each.
//!
//! Step `n` draws from a generator of its own, so a history can be run again without some of its
//! steps: that is how a failing one is made small.

use std::collections::BTreeSet;
use std::rc::Rc;

use mendfs::backing::Backing;
use mendfs::backing::sim::{PowerLoss, SimDisk, SimRng};
use mendfs::format::FileKind;
use mendfs::pool::status::MirrorState;
use nix::errno::Errno;

use super::apply::{Answer, Model};
use super::execute::{execute, look, matches};
use super::life::Life;
use super::machine::{Config, Machine};
use super::model::{Inode, Tree, time_of};
use super::ops::{Draw, Op};
use super::plan::{Damage, Kind, Plan, Step};

/// What a failure says.
pub(crate) type Outcome<T> = Result<T, String>;

/// A history being made.
pub(crate) struct History {
    pub(crate) machine: Machine,
    pub(crate) model: Model,
    pub(crate) plan: Plan,
    /// The states since the last mount, the newest last.
    states: Vec<Tree>,
    /// States before this one must not come back.
    acknowledged: usize,
    /// What happens to unsynced bytes when the planned crash comes.
    loss: PowerLoss,
    /// Changes of the coming recoveries after which it crashes again.
    crash_in_recovery: Vec<u64>,
    /// The victim was seen taken out, and nothing brings it back.
    out: bool,
    pub(crate) number: u64,
    trace: bool,
    /// Crashes so far, those in recoveries not counted.
    pub(crate) crashes: u64,
    pub(crate) life: Life,
}

/// A history's last words.
#[derive(Debug)]
pub(crate) struct Failure {
    pub(crate) step: u64,
    pub(crate) what: String,
}

/// Runs the history of a seed without the steps in `skip`, at most `steps` of them.
pub(crate) fn run(seed: u64, skip: &BTreeSet<u64>, steps: u64, trace: bool) -> Result<(), Failure> {
    let mut rng = SimRng::new(seed);
    let kind = Kind::of(seed);
    let mut config = Config::draw(&mut rng);
    let plan = Plan::draw(seed, &mut config, &mut rng);
    if trace {
        eprintln!("seed {seed}: {kind:?} {config:?} victim {}", plan.victim);
    }
    let steps = steps.min(plan.steps);
    let mut at = 0;
    let fail = |at: u64| move |what: String| Failure { step: at, what };
    let mut history = History::new(seed, config, plan, trace).map_err(fail(0))?;
    while at < steps {
        if !skip.contains(&at) {
            let mut rng = SimRng::new(seed).fork(1000 + at);
            history.number += 1;
            history.machine.set_time(history.number);
            history.step(&mut rng).map_err(fail(at))?;
        }
        at += 1;
    }
    history.finish().map_err(fail(at))
}

impl History {
    /// A new filesystem, mounted.
    pub(crate) fn new(seed: u64, config: Config, plan: Plan, trace: bool) -> Outcome<History> {
        let model = Model::new(time_of(0), config.kernel_keeps_times);
        History::over(Machine::new(seed, config), model, plan, trace)
    }

    /// Goes on with the filesystem on the disks of a machine, which is as the model has it.
    pub(crate) fn over(
        mut machine: Machine,
        model: Model,
        plan: Plan,
        trace: bool,
    ) -> Outcome<History> {
        machine.mount()?;
        let mut history = History {
            states: vec![model.tree.clone()],
            machine,
            model,
            plan,
            acknowledged: 0,
            loss: PowerLoss::Random,
            crash_in_recovery: Vec::new(),
            out: false,
            number: 0,
            trace,
            crashes: 0,
            life: Life::default(),
        };
        history.sync()?;
        history.note_members();
        Ok(history)
    }

    /// The next step, given and not drawn.
    pub(crate) fn script(&mut self, step: Step, op: Option<&Op>) -> Outcome<()> {
        self.number += 1;
        self.machine.set_time(self.number);
        // Its references go at once.
        let mut rng = SimRng::new(1);
        match op {
            Some(op) => self.perform(op, &mut rng),
            None => self.other(step, &mut rng),
        }
    }

    fn say(&self, what: &dyn std::fmt::Debug) {
        if self.trace {
            eprintln!("  {:4} {what:?}", self.number);
        }
    }

    fn step(&mut self, rng: &mut SimRng) -> Outcome<()> {
        self.life.rng = rng.fork(1);
        match self.plan.step(rng) {
            Step::Op => self.op(rng),
            step => {
                self.say(&step);
                self.other(step, rng)
            }
        }
    }

    pub(crate) fn op(&mut self, rng: &mut SimRng) -> Outcome<()> {
        let referenced = self.model.refs.keys().copied().collect();
        let tree = self.model.tree.clone();
        let op = Draw {
            tree: &tree,
            rng,
            referenced,
            large: self.plan.large,
        }
        .op();
        self.perform(&op, rng)
    }

    /// Carries an operation out on both sides and compares.
    pub(crate) fn perform(&mut self, op: &Op, rng: &mut SimRng) -> Outcome<()> {
        self.say(&op);
        if matches!(&op, Op::Lookup { name, .. } if name == b".mendfs")
            || matches!(&op, Op::GetXattr { name, .. } if name.starts_with(b"user.mendfs."))
        {
            return Ok(());
        }
        let mut after = self.model.clone();
        let expected = after.apply(op, self.number);
        let reply = execute(self.machine.vfs(), op);
        if !self.machine.world.is_powered() {
            return self.recover(expected.is_ok().then_some(after.tree));
        }
        if self.trace && reply.is_err() {
            eprintln!("       -> {:?}", reply.as_ref().err());
        }
        match (expected, reply) {
            (Ok(expected), Ok(reply)) => {
                if expected != reply.answer {
                    return Err(format!(
                        "{op:?}: {} expected, {} answered",
                        short(&expected),
                        short(&reply.answer)
                    ));
                }
                self.model = after;
                self.states.push(self.model.tree.clone());
                if self.machine.config.always {
                    self.acknowledge();
                }
                let about = reply.attr.map(|attr| (attr, attr.ino.0));
                if let Some((attr, ino)) = about
                    && !self
                        .model
                        .tree
                        .get(ino)
                        .is_ok_and(|inode| matches(&attr, inode))
                {
                    return Err(format!(
                        "{op:?}: answered {attr:?}, the model has {:?}",
                        self.model.tree.get(ino)
                    ));
                }
                self.forget_sometimes(&expected, rng);
                Ok(())
            }
            (Err(expected), Err(errno)) if expected == errno => Ok(()),
            (_, Err(Errno::ENOSPC)) if self.may_be_full() && may_need_space(op) => Ok(()),
            (expected, reply) => {
                let failure = self.machine.pool().failure();
                Err(format!(
                    "{op:?}: {:?} expected, {:?} answered; pool: {failure:?}",
                    expected.as_ref().map(short),
                    reply.as_ref().map(|reply| short(&reply.answer)),
                ))
            }
        }
    }

    /// Most references go at once, as when a file is closed and falls out of the cache.
    fn forget_sometimes(&mut self, answer: &Answer, rng: &mut SimRng) {
        if let Answer::Inode(ino) = answer
            && rng.below(5) > 0
        {
            self.machine.vfs().forget(mendfs::format::Ino(*ino), 1);
            self.model.forget(*ino);
        }
    }

    fn other(&mut self, step: Step, rng: &mut SimRng) -> Outcome<()> {
        let outcome = match step {
            Step::Op => Ok(()),
            Step::Sync => self.sync(),
            Step::Checkpoint => match self.machine.pool().checkpoint() {
                Ok(()) => {
                    self.acknowledge();
                    Ok(())
                }
                Err(mendfs::pool::PoolError::NoSpace { .. }) if self.plan.kind.is_full() => Ok(()),
                Err(error) => Err(format!("checkpoint: {error}")),
            },
            Step::Reclaim => self.machine.reclaim(),
            Step::Repair => {
                self.machine.repair();
                self.machine.pool().record_incidents();
                Ok(())
            }
            Step::Inspect => self.machine.inspect(),
            Step::Look => self.compare(),
            Step::Remount => self.remount(),
            Step::Kill => {
                self.life.exact = true;
                self.before_the_end();
                self.machine.kill();
                return self.come_back(None);
            }
            Step::Crash { after, loss, again } => {
                self.loss = loss;
                self.crash_in_recovery = again;
                let changes = self.machine.world.changes();
                self.machine.world.crash_at_change(changes + after);
                Ok(())
            }
            Step::Damage(damage) => {
                damage.inflict(&self.machine.disks[self.plan.victim]);
                Ok(())
            }
            Step::Faults(faults) => {
                self.machine.disks[self.plan.victim].set_faults(faults);
                Ok(())
            }
            Step::Health => self.check_health(rng),
            Step::Capacity { free, disks } => {
                for (mirror, disk) in self.machine.disks.iter().enumerate() {
                    if disks >> mirror & 1 == 1 {
                        set_free(disk, free)?;
                    }
                }
                Ok(())
            }
            Step::Detach => {
                self.machine.disks[self.plan.victim].detach();
                Ok(())
            }
            Step::Fragment => self.fragment(),
            Step::Scrub {
                order,
                pieces,
                budget,
            } => self.machine.scrub(order, pieces, budget).map(|_| ()),
            Step::Life(event) => self.live(event),
        };
        if !self.machine.world.is_powered() {
            return self.recover(None);
        }
        outcome?;
        self.watch_victim();
        Ok(())
    }

    /// Gives a file more extents than one transaction drops, all of them durable.
    fn fragment(&mut self) -> Outcome<()> {
        let is_file = |inode: &Inode| inode.kind == FileKind::Regular && inode.nlink > 0;
        let files = &self.model.tree.inodes;
        let Some(ino) = files
            .iter()
            .find(|(_, inode)| is_file(inode))
            .map(|(ino, _)| *ino)
        else {
            return Ok(());
        };
        // There are too many states on the way to remember: no crash until the end.
        self.machine.world.crash_at_change(u64::MAX);
        for extent in 0..560 {
            let data = [extent as u8 | 1; 9];
            let inode = mendfs::format::Ino(ino);
            match self.machine.vfs().write(inode, extent * 8192, &data, false) {
                Ok(_) => {}
                Err(error) if error.errno() == Errno::ENOSPC && self.plan.kind.is_full() => break,
                Err(error) => return Err(format!("fragmenting: {error}")),
            }
            let op = Op::Write {
                ino,
                offset: extent * 8192,
                len: 9,
                fill: 0,
                kill: false,
            };
            self.model
                .apply(&op, self.number)
                .map_err(|error| error.to_string())?;
            let content = &mut self.model.tree.edit(ino).content;
            Rc::make_mut(content)[extent as usize * 8192..][..9].copy_from_slice(&data);
        }
        self.states.push(self.model.tree.clone());
        self.sync()
    }

    /// Notes that the victim is out. From then on it must never be read again.
    fn watch_victim(&mut self) {
        // One that is only missing from this mount may have missed nothing, if nothing was written.
        let gone = [MirrorState::Failed, MirrorState::Offline];
        if self.plan.kind.is_members() {
            self.note_members();
        } else if self.machine.mounted.is_some() {
            self.out |= gone.contains(&self.machine.status_of(self.plan.victim).state);
        }
    }

    fn acknowledge(&mut self) {
        self.acknowledged = self.states.len() - 1;
    }

    pub(crate) fn sync(&mut self) -> Outcome<()> {
        let ino = mendfs::format::Ino::ROOT;
        match self.machine.vfs().fsync(ino, false) {
            Ok(()) => {
                self.acknowledge();
                Ok(())
            }
            Err(_) if !self.machine.world.is_powered() => Ok(()),
            Err(error) => Err(format!("fsync: {error}")),
        }
    }

    /// Compares the whole tree.
    pub(crate) fn compare(&self) -> Outcome<()> {
        let before = self.reads_of_others();
        let real = look(self.machine.vfs())?;
        let after = self.reads_of_others();
        if !before.is_empty() && before != after {
            return Err(format!(
                "a mirror that is not up to date was read: {before:?} {after:?}"
            ));
        }
        let expected = self.model.tree.visible();
        if real == expected {
            Ok(())
        } else {
            Err(format!("the tree differs:\n{}", expected.difference(&real)))
        }
    }

    /// Unmounts and mounts again.
    fn remount(&mut self) -> Outcome<()> {
        if self.plan.kind.is_members() {
            // What the mirrors are when all is done, is told before the unmount.
            let synced = self.sync();
            if !self.machine.world.is_powered() {
                return self.recover(None);
            }
            synced?;
            self.note_members();
        }
        let closed = self.machine.close();
        if !self.machine.world.is_powered() {
            self.machine.crash(self.loss);
            return self.come_back(None);
        }
        closed.map_err(|error| format!("unmount: {error}"))?;
        self.acknowledge();
        self.come_back(None)
    }

    /// The power is off: turns it on again and mounts.
    fn recover(&mut self, in_flight: Option<Tree>) -> Outcome<()> {
        if self.trace {
            eprintln!("       -> power off ({:?})", self.loss);
        }
        self.crashes += 1;
        if self.machine.mounted.is_some() {
            self.before_the_end();
        }
        self.machine.crash(self.loss);
        if let Some(present) = self.plan.present_after_crash() {
            self.machine.present[self.plan.victim] = present;
        }
        self.come_back(in_flight)
    }

    /// Mounts, as often as it takes, and finds the state that came back.
    pub(crate) fn come_back(&mut self, in_flight: Option<Tree>) -> Outcome<()> {
        if self.plan.kind.is_members() {
            self.choose_disks()?;
        } else {
            self.machine.disks.iter().for_each(SimDisk::attach);
        }
        loop {
            if let Some(after) = self.crash_in_recovery.pop() {
                let changes = self.machine.world.changes();
                self.machine.world.crash_at_change(changes + after);
            }
            let mounted = self.machine.mount();
            if !self.machine.world.is_powered() {
                if self.trace {
                    eprintln!("       -> power off in recovery");
                }
                self.machine.crash(self.loss);
                continue;
            }
            if self.plan.kind.is_full()
                && mounted
                    .as_ref()
                    .is_err_and(|error| error.contains("no space left"))
            {
                // What a crash took, recovery writes again; others have taken the room meanwhile.
                self.machine
                    .disks
                    .iter()
                    .try_for_each(|disk| set_free(disk, 1 << 20))?;
                continue;
            }
            let all = self.machine.present.iter().all(|present| *present);
            if self.plan.kind.is_members()
                && !all
                && mounted
                    .as_ref()
                    .is_err_and(|error| error.contains("left behind"))
            {
                // One of those that are there knows that the others went on.
                self.machine.present.fill(true);
                self.machine.disks.iter().for_each(SimDisk::attach);
                continue;
            }
            mounted.map_err(|error| format!("mount: {error}"))?;
            if self.trace {
                let status = self.machine.pool().status();
                let recovery = status.recovery.unwrap_or_default();
                eprintln!(
                    "       -> mounted: {} replayed, {} discarded, journal {}..{}, {:?}",
                    recovery.replayed,
                    recovery.discarded,
                    status.checkpoint.lsn,
                    status.journal.next_lsn,
                    recovery.notes,
                );
            }
            let real = look(self.machine.vfs());
            if !self.machine.world.is_powered() {
                self.machine.crash(self.loss);
                continue;
            }
            self.adopt(real?, in_flight)?;
            break;
        }
        if self.plan.kind.is_members() {
            return self.check_mounted();
        }
        let victim = self.plan.victim;
        if self.out && self.machine.is_online(victim) {
            return Err(format!(
                "mirror {victim} was out, and is back without a resync"
            ));
        }
        self.watch_victim();
        Ok(())
    }

    /// The tree must be one of the states that may come back. It is the only one from now on.
    pub(crate) fn adopt(&mut self, real: Tree, in_flight: Option<Tree>) -> Outcome<()> {
        self.states.extend(in_flight);
        let allowed = &self.states[self.acknowledged..];
        if !allowed.iter().rev().any(|state| state.visible() == real) {
            let before = &self.states[..self.acknowledged];
            let lost = before.iter().rposition(|state| state.visible() == real);
            let (first, last) = (&allowed[0], &allowed[allowed.len() - 1]);
            return Err(format!(
                "the tree is none of the {} states that may come back{}\n against the last \
                 acknowledged:\n{}\n against the newest:\n{}\n recovery: {:?}",
                allowed.len(),
                match lost {
                    Some(at) => format!(", but that {} before", self.acknowledged - at),
                    None => String::new(),
                },
                first.visible().difference(&real),
                last.visible().difference(&real),
                self.machine.pool().status().recovery,
            ));
        }
        let inodes = self
            .machine
            .pool()
            .space()
            .map_err(|error| error.to_string())?
            .inodes;
        if inodes != real.inodes.len() as u64 {
            return Err(format!(
                "{inodes} inodes counted, {} there",
                real.inodes.len()
            ));
        }
        let next = self.machine.pool().alloc_ino().0 + 1;
        if real.inodes.keys().any(|ino| *ino >= next) {
            return Err(format!("inode number {next} would be given out again"));
        }
        self.model.next = next;
        self.model.refs.clear();
        self.model.tree = real.clone();
        self.states = vec![real];
        self.acknowledged = 0;
        Ok(())
    }

    /// The end of a history: everything is still there, whole, and fits together.
    pub(crate) fn finish(&mut self) -> Outcome<()> {
        // A crash that is still planned comes now.
        if self.plan.kind.crashes() && self.number.is_multiple_of(2) {
            self.number += 1;
            self.machine.world.cut_power();
            self.recover(None)?;
        }
        self.crash_in_recovery.clear();
        let changes = self.machine.world.changes();
        self.machine.world.crash_at_change(changes + (1 << 60));
        for disk in &self.machine.disks {
            disk.set_faults(mendfs::backing::sim::Faults::none());
        }
        self.compare()?;
        if self.plan.kind.is_members() {
            return self.finish_members();
        }
        match self.plan.kind {
            Kind::BothCopies => return self.damage_both_copies(),
            Kind::Full | Kind::FullAndCrash => self.make_room_again()?,
            _ => {}
        }
        self.remount()?;
        self.compare()?;
        if self.number.is_multiple_of(2) {
            self.scrub_all()?;
        }
        let findings = self.machine.verify()?;
        if !findings.is_empty() {
            return Err(format!("verification found: {}", findings.join("; ")));
        }
        self.check_all_whole()?;
        self.compare()?;
        self.machine.close()?;
        self.check_each_alone()
    }

    pub(crate) fn changed_since_mount(&self) -> bool {
        self.states.iter().any(|state| *state != self.states[0])
    }

    /// Sets the clock to a time after all others.
    pub(crate) fn number_on(&mut self) {
        self.number = 1 << 20;
        self.machine.set_time(self.number);
    }

    /// History begins anew with what the model holds, which is durable.
    pub(crate) fn restart_states(&mut self) {
        self.states = vec![self.model.tree.clone()];
        self.acknowledged = 0;
    }
}

/// Leaves so many bytes free on a disk.
pub(crate) fn set_free(disk: &SimDisk, free: u64) -> Outcome<()> {
    let space = disk.space().map_err(|error| error.to_string())?;
    disk.set_capacity(space.total - space.available + free);
    Ok(())
}

/// A few words for an answer.
fn short(answer: &Answer) -> String {
    match answer {
        Answer::Bytes(bytes) => format!(
            "{} bytes {:02x?}",
            bytes.len(),
            &bytes[..bytes.len().min(8)]
        ),
        other => format!("{other:?}"),
    }
}

/// Whether an operation may be refused on a full disk.
fn may_need_space(op: &Op) -> bool {
    match op {
        Op::Mknod { .. }
        | Op::Mkdir { .. }
        | Op::Symlink { .. }
        | Op::Link { .. }
        | Op::Write { .. }
        | Op::Copy { .. }
        | Op::SetXattr { .. }
        | Op::SetAcl { .. } => true,
        Op::Fallocate {
            offset, len, mode, ..
        } => {
            let punches = mode & libc::FALLOC_FL_PUNCH_HOLE != 0;
            !(punches && offset % 4096 == 0 && (offset + len) % 4096 == 0)
        }
        Op::Rename { flags, .. } => flags & libc::RENAME_WHITEOUT != 0,
        Op::Unlink { .. }
        | Op::Rmdir { .. }
        | Op::Read { .. }
        | Op::SetAttr { .. }
        | Op::RemoveXattr { .. }
        | Op::GetXattr { .. }
        | Op::Lookup { .. }
        | Op::Readdir { .. }
        | Op::Seek { .. }
        | Op::Forget { .. } => false,
    }
}

impl Damage {
    /// Whether anything is damaged by this at all is left to chance: holes cannot rot.
    pub(crate) fn inflict(&self, disk: &SimDisk) {
        match self {
            Damage::Corrupt { pick, at, len } => {
                if let Some((file, size)) = self.target(disk, *pick) {
                    disk.corrupt(file, at % size.max(1), *len);
                }
            }
            Damage::Unreadable { pick, at, len } => {
                if let Some((file, size)) = self.target(disk, *pick) {
                    disk.fail_sectors(file, at % size.max(1), *len);
                }
            }
            Damage::Truncate { pick, at } => {
                if let Some((file, size)) = self.target(disk, *pick) {
                    disk.truncate(file, at % size.max(1));
                }
            }
            Damage::Delete { pick } => {
                if let Some((file, _)) = self.target(disk, *pick) {
                    disk.delete(file);
                }
            }
            Damage::Flip { bits } => disk.rot(*bits),
        }
    }
}
