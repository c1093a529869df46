//! Whether damage is found, counted and healed; and what a full pool does.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::rc::Rc;

use mendfs::backing::sim::{SimDisk, SimRng};
use mendfs::backing::{Backing, FileName};
use mendfs::format::{FileKind, Ino};
use mendfs::pool::ScrubOrder;
use mendfs::pool::status::ScrubState;
use mendfs::vfs::VfsError;
use nix::errno::Errno;

use super::history::{History, Outcome};
use super::model::ROOT;
use super::ops::Op;

const BLOCK: u64 = 4096;

/// A stored block of a file.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Stored {
    pub(crate) file: FileName,
    pub(crate) start: u64,
    pub(crate) end: u64,
}

impl Stored {
    fn hit_by(&self, damage: &[(FileName, Range<u64>)]) -> bool {
        damage.iter().any(|(file, range)| {
            *file == self.file && range.start < self.end && self.start < range.end
        })
    }

    /// The mirror that is asked first, of so many.
    fn first_reader(&self, mirrors: usize) -> usize {
        match self.file {
            FileName::Segment(number) => (number.0 % mirrors as u64) as usize,
            _ => 0,
        }
    }
}

impl History {
    /// Where the blocks of the files lie: (inode, block number) by place.
    pub(crate) fn stored(&self) -> Outcome<BTreeMap<Stored, Vec<(u64, u64)>>> {
        let mut stored: BTreeMap<Stored, Vec<(u64, u64)>> = BTreeMap::new();
        for (ino, inode) in &self.model.tree.visible().inodes {
            if inode.kind != FileKind::Regular {
                continue;
            }
            let rows = self.machine.pool().extents(Ino(*ino), 0, u64::MAX);
            for (offset, row) in rows.map_err(|error| error.to_string())? {
                for block in 0..row.blocks() as u64 {
                    let start = u64::from(row.offset) + block * BLOCK;
                    let place = Stored {
                        file: FileName::Segment(row.segment),
                        start,
                        end: start + row.block_len(block as usize) as u64,
                    };
                    stored
                        .entry(place)
                        .or_default()
                        .push((*ino, offset / BLOCK + block));
                }
            }
        }
        Ok(stored)
    }

    /// Reading finds all damage in what it reads, says so, and heals it.
    pub(crate) fn check_health(&mut self, _: &mut SimRng) -> Outcome<()> {
        let mirrors = self.machine.disks.len();
        let victim = self.plan.victim;
        if (0..mirrors).any(|mirror| !self.machine.is_online(mirror)) {
            return self.compare();
        }
        self.sync()?;
        if !self.machine.world.is_powered() {
            return Ok(());
        }
        self.machine.repair();
        let disk = self.machine.disks[victim].clone();
        let damage = disk.damaged_ranges();
        let asked: BTreeSet<Stored> = self
            .stored()?
            .into_keys()
            .filter(|place| place.first_reader(mirrors) == victim)
            .filter(|place| self.is_bad(victim, place, &damage))
            .collect();
        let before = self.machine.status_of(victim);
        self.compare()?;
        self.machine.repair();
        if !self.machine.world.is_powered() || !self.machine.is_online(victim) {
            return Ok(());
        }
        let after = self.machine.status_of(victim);
        let found = after.repaired + after.unrepairable - before.repaired - before.unrepairable;
        if found < asked.len() as u64 {
            return Err(format!(
                "{} damaged blocks were read on mirror {victim}, {found} were counted",
                asked.len()
            ));
        }
        let damage = disk.damaged_ranges();
        match asked
            .iter()
            .find(|place| self.is_bad(victim, place, &damage))
        {
            // A repair may itself have met a fault, and then it says so.
            Some(_) if after.unrepairable > before.unrepairable => Ok(()),
            Some(place) => Err(format!("{place:?} was read, but is still damaged")),
            None => Ok(()),
        }
    }

    /// Whether a block is damaged on a mirror. What is missing in a file that was deleted or cut
    /// may by chance be right: zeros.
    fn is_bad(&self, mirror: usize, place: &Stored, damage: &[(FileName, Range<u64>)]) -> bool {
        let disks = &self.machine.disks;
        let online = |other: &usize| self.machine.present[*other] && self.machine.is_online(*other);
        let sound = (0..disks.len()).find(|other| *other != mirror && online(other));
        let bytes = |disk: &SimDisk| {
            let content = disk.content(place.file)?;
            let bytes = content.get(place.start as usize..place.end as usize)?;
            Some(bytes.to_vec())
        };
        let there = bytes(&disks[mirror]);
        let right = sound.and_then(|sound| bytes(&disks[sound]));
        place.hit_by(damage) && (there.is_none() || there != right)
    }

    /// After a verification nothing that is in use is damaged on any mirror that is online.
    pub(crate) fn check_all_whole(&self) -> Outcome<()> {
        let stored = self.stored()?;
        for (mirror, disk) in self.machine.disks.iter().enumerate() {
            if !self.machine.present[mirror] || !self.machine.is_online(mirror) {
                continue;
            }
            let damage = disk.damaged_ranges();
            if let Some(place) = stored
                .keys()
                .find(|place| self.is_bad(mirror, place, &damage))
            {
                return Err(format!(
                    "{place:?} on mirror {mirror} is damaged after verification"
                ));
            }
        }
        Ok(())
    }

    /// A scrub heals everything, and says so: the next finds nothing, and neither does a
    /// verification.
    pub(crate) fn scrub_all(&mut self) -> Outcome<()> {
        for round in 0..2 {
            self.machine.scrub(Some(ScrubOrder::Cancel), 0, 0)?;
            self.machine
                .scrub(Some(ScrubOrder::Start { rate: None }), 0, 0)?;
            while self.machine.scrub(None, 8, 64 << 10)? {}
            let scrub = self.machine.pool().status().scrub.unwrap_or_default();
            let ended = scrub.state == ScrubState::Finished && scrub.percent == 100;
            if !ended || scrub.unrepairable > 0 || (round > 0 && scrub.errors_found > 0) {
                return Err(format!("scrub {round} ended so: {scrub:?}"));
            }
            self.check_all_whole()?;
        }
        let bad = self.machine.bad_copies()?;
        if bad > 0 {
            return Err(format!("{bad} bad copies after a scrub"));
        }
        Ok(())
    }

    /// Each mirror that is in sync holds everything.
    pub(crate) fn check_each_alone(&mut self) -> Outcome<()> {
        self.machine.mount()?;
        let mirrors = 0..self.machine.disks.len();
        let given = self.machine.present.clone();
        let good: Vec<usize> = mirrors
            .filter(|mirror| given[*mirror] && self.machine.is_online(*mirror))
            .collect();
        self.machine.kill();
        for mirror in good {
            self.machine.present.fill(false);
            self.machine.present[mirror] = true;
            self.machine
                .mount()
                .map_err(|error| format!("mirror {mirror} alone: {error}"))?;
            self.compare()
                .map_err(|error| format!("mirror {mirror} alone: {error}"))?;
            self.machine.kill();
        }
        Ok(())
    }

    /// Exactly the damaged blocks fail, everything else reads; writing or deleting ends it.
    pub(crate) fn damage_both_copies(&mut self) -> Outcome<()> {
        self.machine
            .pool()
            .checkpoint()
            .map_err(|error| error.to_string())?;
        let stored = self.stored()?;
        let mut rng = SimRng::new(self.machine.world.seed()).fork(7);
        let places: Vec<_> = stored.iter().collect();
        if places.is_empty() {
            return self.machine.close();
        }
        let mut lost: Vec<Vec<(u64, u64)>> = Vec::new();
        for _ in 0..1 + rng.below(4) {
            let (place, owners) = places[rng.index(places.len())];
            for disk in &self.machine.disks {
                disk.settle();
                disk.corrupt(
                    place.file,
                    place.start,
                    1 + rng.below(place.end - place.start),
                );
            }
            lost.push(owners.to_vec());
        }
        for _ in 0..2 {
            self.check_lost(&lost)?;
            self.machine.close()?;
            self.machine.mount()?;
        }
        self.check_lost(&lost)?;
        self.heal_by_writing(&lost)?;
        self.compare()?;
        self.machine.close()
    }

    /// `places`: for each lost place the blocks, as (inode, number), that are stored there.
    fn check_lost(&self, places: &[Vec<(u64, u64)>]) -> Outcome<()> {
        let lost: BTreeSet<(u64, u64)> = places.iter().flatten().copied().collect();
        let vfs = self.machine.vfs();
        for (ino, inode) in &self.model.tree.visible().inodes {
            if inode.kind != FileKind::Regular {
                continue;
            }
            for (number, expected) in inode.content.chunks(BLOCK as usize).enumerate() {
                let mut out = Vec::new();
                let read = vfs.read(Ino(*ino), number as u64 * BLOCK, BLOCK as usize, &mut out);
                match (read, lost.contains(&(*ino, number as u64))) {
                    (Ok(()), false) if out == expected => {}
                    (Err(error), true) if error.errno() == Errno::EIO => {}
                    (read, lost) => {
                        return Err(format!(
                            "block {number} of inode {ino}, lost: {lost}, read: {read:?}"
                        ));
                    }
                }
            }
        }
        let damaged = self.machine.pool().status().damaged;
        for owners in places {
            let named = |(ino, block): &(u64, u64)| {
                let (ino, at) = (*ino, block * BLOCK);
                damaged.iter().filter(|file| file.inode == ino).any(|file| {
                    let covers = |offset: u64, length: u64| offset <= at && at < offset + length;
                    file.ranges
                        .iter()
                        .any(|range| covers(range.offset, range.length))
                })
            };
            if !owners.iter().all(named) {
                return Err(format!("{owners:?} are lost, status: {damaged:?}"));
            }
        }
        Ok(())
    }

    fn heal_by_writing(&mut self, places: &[Vec<(u64, u64)>]) -> Outcome<()> {
        for (ino, block) in places.iter().flatten() {
            self.machine.set_time(1 << 20);
            let size = self.model.tree.get(*ino).map_err(|e| e.to_string())?.size;
            let len = BLOCK.min(size - block * BLOCK) as usize;
            let op = Op::Write {
                ino: *ino,
                offset: block * BLOCK,
                len,
                fill: 77,
                kill: false,
            };
            self.model
                .apply(&op, 1 << 20)
                .map_err(|error| error.to_string())?;
            super::execute::execute(self.machine.vfs(), &op)
                .map_err(|error| format!("overwriting a lost block: {error}"))?;
        }
        let damaged = self.machine.pool().status().damaged;
        if damaged.is_empty() {
            Ok(())
        } else {
            Err(format!(
                "all lost blocks were overwritten, status: {damaged:?}"
            ))
        }
    }

    /// A full pool can be emptied, and then it takes data again.
    pub(crate) fn make_room_again(&mut self) -> Outcome<()> {
        self.number_on();
        let refs: Vec<(u64, u64)> = std::mem::take(&mut self.model.refs).into_iter().collect();
        for (ino, count) in refs {
            self.machine.vfs().forget(Ino(ino), count);
        }
        self.remove_all(ROOT)?;
        self.machine
            .close()
            .map_err(|error| format!("unmount: {error}"))?;
        for disk in &self.machine.disks {
            // Whoever else filled the disk is gone; what is there has to do.
            let space = disk.space().map_err(|error| error.to_string())?;
            let used = space.total - space.available;
            let capacity = self.machine.config.capacity.unwrap_or(space.total);
            disk.set_capacity(capacity.max(used));
        }
        self.machine.mount()?;
        self.machine
            .pool()
            .checkpoint()
            .map_err(|error| format!("checkpoint: {error}"))?;
        self.machine.reclaim()?;
        self.machine
            .pool()
            .checkpoint()
            .map_err(|error| format!("checkpoint: {error}"))?;
        self.machine.reclaim()?;
        let vfs = self.machine.vfs();
        let caller = mendfs::vfs::Caller::default();
        let text = |error: VfsError| format!("an empty pool refuses: {error}");
        let attr = vfs
            .mknod(&caller, Ino::ROOT, b"again", 0o100_644, 0)
            .map_err(text)?;
        vfs.write(attr.ino, 0, &[7; 64 << 10], false)
            .map_err(text)?;
        vfs.fsync(attr.ino, false).map_err(text)?;
        vfs.forget(attr.ino, 1);
        // From here on the tree is what is there now.
        self.model.tree = super::execute::look(self.machine.vfs())?;
        let content = Rc::clone(&self.model.tree.inodes[&attr.ino.0].content);
        if content.len() != 64 << 10 || content.iter().any(|byte| *byte != 7) {
            return Err("the new file is not right".to_owned());
        }
        self.restart_states();
        Ok(())
    }

    fn remove_all(&mut self, dir: u64) -> Outcome<()> {
        let inode = self
            .model
            .tree
            .get(dir)
            .map_err(|error| error.to_string())?
            .clone();
        for (name, ino) in &inode.entries {
            let is_dir = self
                .model
                .tree
                .get(*ino)
                .is_ok_and(super::model::Inode::is_dir);
            let (parent, name) = (dir, name.clone());
            let op = if is_dir {
                self.remove_all(*ino)?;
                Op::Rmdir { parent, name }
            } else {
                Op::Unlink { parent, name }
            };
            self.model
                .apply(&op, 1 << 20)
                .map_err(|error| error.to_string())?;
            super::execute::execute(self.machine.vfs(), &op)
                .map_err(|error| format!("{op:?} on a full pool: {error}"))?;
        }
        Ok(())
    }
}
