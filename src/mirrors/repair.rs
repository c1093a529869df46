//! Repair: a bad copy is rewritten with verified bytes, synced, read back from the medium and
//! compared, and what became of it is reported.
//!
//! Reads queue their repairs and answer at once; a service drains the queue. A segment offset is
//! never written again, so a queued repair cannot overwrite anything newer; when a segment goes,
//! [`MirrorSet::forget_repairs`] makes sure that no repair brings its file back. Index pages are
//! rewritten, so they are repaired at once, under the lock that their writer takes.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::io;
use std::sync::atomic::AtomicU64;

use tracing_mutex::parkinglot::Mutex;

use super::decide::Damage;
use super::read::Place;
use super::set::{Attached, Counters, MirrorId, MirrorSet};
use crate::backing::{Backing, FileName};

/// Repairs that are kept waiting, each with its block.
const QUEUE_MAX: usize = 8192;

/// What became of a damaged block.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Resolution {
    /// Rewritten, read back from the medium, and good.
    Repaired,
    /// A good copy was served, but rewriting the bad one failed for this reason.
    Failed(String),
    /// No mirror has a good copy.
    Lost,
}

/// One damaged block on one mirror.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Incident {
    /// The mirror.
    pub mirror: MirrorId,
    /// Where the block lies.
    pub place: Place,
    /// Its length in bytes.
    pub len: usize,
    /// What was wrong.
    pub damage: Damage,
    /// What became of it.
    pub resolution: Resolution,
}

/// A block to rewrite on one mirror.
#[derive(Debug)]
pub(super) struct RepairJob {
    pub(super) mirror: MirrorId,
    pub(super) place: Place,
    pub(super) damage: Damage,
    pub(super) data: Vec<u8>,
}

/// Repairs that wait, and those that are being done.
#[derive(Debug, Default)]
pub(super) struct RepairQueue {
    waiting: Mutex<Waiting>,
    /// Held while repairs are done, so that a removed segment can be told from a missing one.
    doing: Mutex<()>,
}

#[derive(Debug, Default)]
struct Waiting {
    jobs: VecDeque<RepairJob>,
    /// Waiting or being done: the same block is not queued twice.
    known: BTreeSet<(MirrorId, Place)>,
}

impl MirrorSet {
    /// Queues a repair; one that does not fit is done at once, so that damage that was found is
    /// never left for want of room.
    pub(super) fn queue_repair(&self, job: RepairJob) {
        let mut waiting = self.repairs.waiting.lock();
        if waiting.jobs.len() >= QUEUE_MAX {
            drop(waiting);
            self.repair_now(vec![job]);
        } else if waiting.known.insert((job.mirror, job.place)) {
            self.count_damage(&job);
            waiting.jobs.push_back(job);
        }
    }

    /// Repairs that wait or are being done.
    pub fn repairs_pending(&self) -> usize {
        self.repairs.waiting.lock().known.len()
    }

    /// Does up to `budget` of the queued repairs; returns how many it did.
    pub fn repair_step(&self, budget: usize) -> usize {
        let _doing = self.repairs.doing.lock();
        let jobs: Vec<_> = {
            let mut waiting = self.repairs.waiting.lock();
            let count = waiting.jobs.len().min(budget);
            waiting.jobs.drain(..count).collect()
        };
        let done = jobs.len();
        let keys: Vec<_> = jobs.iter().map(|job| (job.mirror, job.place)).collect();
        self.carry_out(jobs);
        let mut waiting = self.repairs.waiting.lock();
        keys.iter().for_each(|key| {
            waiting.known.remove(key);
        });
        done
    }

    /// Drops the queued repairs of a segment that is about to be removed, and waits for one that is
    /// being done.
    pub fn forget_repairs(&self, file: FileName) {
        let _doing = self.repairs.doing.lock();
        let mut waiting = self.repairs.waiting.lock();
        waiting.jobs.retain(|job| job.place.file != file);
        waiting.known.retain(|(_, place)| place.file != file);
    }

    /// Rewrites one block on one mirror at once, with bytes that the caller has verified.
    pub fn heal(&self, mirror: MirrorId, place: Place, damage: Damage, data: Vec<u8>) {
        self.repair_now(vec![RepairJob {
            mirror,
            place,
            damage,
            data,
        }]);
    }

    pub(super) fn repair_now(&self, jobs: Vec<RepairJob>) {
        if !jobs.is_empty() {
            jobs.iter().for_each(|job| self.count_damage(job));
            self.carry_out(jobs);
        }
    }

    fn count(&self, mirror: MirrorId, counter: impl Fn(&Counters) -> &AtomicU64) {
        // One that was removed meanwhile needs no counting.
        if let Some(mirror) = self.mirror(mirror) {
            Counters::count(counter(&mirror.counters));
        }
    }

    pub(super) fn count_damage(&self, job: &RepairJob) {
        if job.damage != Damage::Unreadable {
            self.count(job.mirror, |counters| &counters.checksum_errors);
        }
    }

    /// Rewrites the blocks, with one sync for each file of each mirror.
    fn carry_out(&self, jobs: Vec<RepairJob>) {
        let mut batches: BTreeMap<(MirrorId, FileName), Vec<RepairJob>> = BTreeMap::new();
        for job in jobs {
            batches
                .entry((job.mirror, job.place.file))
                .or_default()
                .push(job);
        }
        for ((id, file), jobs) in batches {
            let Some(mirror) = self.written_one(id) else {
                let reason = "the mirror is not online".to_owned();
                self.report(id, &jobs, &Resolution::Failed(reason));
                continue;
            };
            let backing = mirror.backing();
            // Read back from the medium and not from the page cache, with one sync for all.
            let rewritten =
                rewrite(backing, file, &jobs).and_then(|()| backing.forget_cached(file));
            if let Err(error) = rewritten {
                self.report(id, &jobs, &Resolution::Failed(error.to_string()));
                continue;
            }
            for job in &jobs {
                let resolution = self.read_back(&mirror, job);
                self.report(id, std::slice::from_ref(job), &resolution);
            }
        }
    }

    pub(super) fn report(&self, mirror: MirrorId, jobs: &[RepairJob], resolution: &Resolution) {
        for job in jobs {
            self.count(mirror, |counters| match resolution {
                Resolution::Repaired => &counters.repaired,
                Resolution::Failed(_) | Resolution::Lost => &counters.unrepaired,
            });
            self.witness.incident(Incident {
                mirror: job.mirror,
                place: job.place,
                len: job.data.len(),
                damage: job.damage,
                resolution: resolution.clone(),
            });
        }
    }

    pub(super) fn report_lost(&self, mirror: MirrorId, place: Place, len: usize, damage: Damage) {
        if damage != Damage::Unreadable {
            self.count(mirror, |counters| &counters.checksum_errors);
        }
        self.count(mirror, |counters| &counters.unrepaired);
        let resolution = Resolution::Lost;
        self.witness.incident(Incident {
            mirror,
            place,
            len,
            damage,
            resolution,
        });
    }

    fn read_back(&self, mirror: &Attached, job: &RepairJob) -> Resolution {
        let mut back = vec![0; job.data.len()];
        match self.read_copy(mirror, job.place, &mut back) {
            Ok(got) if got == back.len() && back == job.data => Resolution::Repaired,
            Ok(_) => Resolution::Failed("the medium does not hold what was written".to_owned()),
            Err(damage) => Resolution::Failed(format!("reading back: {}", damage.name())),
        }
    }
}

pub(super) fn rewrite(backing: &dyn Backing, file: FileName, jobs: &[RepairJob]) -> io::Result<()> {
    let missing = jobs.iter().any(|job| job.damage == Damage::Missing);
    if missing {
        backing.create(file)?;
    }
    jobs.iter()
        .try_for_each(|job| backing.write_at(file, job.place.offset, &[job.data.as_slice()]))?;
    backing.sync(file)?;
    if missing {
        backing.sync_name(file)
    } else {
        Ok(())
    }
}
