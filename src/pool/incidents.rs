//! What happened to the mirrors, until it is written down, and where damage was seen.
//!
//! The mirrors tell [`Incidents`] in the middle of a read, so it only queues. What becomes of the
//! queue is in `digest`.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};

use tracing_mutex::parkinglot::Mutex;

use super::commit::Pool;
use super::current::Current;
use super::open::Clock;
use super::scrub::Tally;
use crate::backing::FileName;
use crate::format::{Ino, SegmentNo, Timestamp};
use crate::index::Freed;
use crate::ledger::{Folder, Ledger, What};
use crate::mirrors::{Incident, Mirror, MirrorId, MirrorState, Resolution, Witness};

/// Incidents kept until they are recorded; what comes beyond is counted.
const QUEUE_MAX: usize = 65536;

pub(super) enum Entry {
    Incident(Incident),
    Other(What),
}

/// What incidents are counted by: mirror, what was damaged, how, and what became of it.
pub(super) type Class = (MirrorId, &'static str, &'static str, &'static str);

#[derive(Default)]
pub(super) struct Queue {
    pub(super) entries: VecDeque<(Timestamp, Entry)>,
    /// Too many to keep: blocks and bytes.
    pub(super) overflow: BTreeMap<Class, (u64, u64)>,
}

/// What happened and is not yet recorded, and what is known of files.
pub(super) struct Incidents {
    pub(super) clock: Clock,
    queue: Mutex<Queue>,
    /// Makes events of the queue. Held while files are looked up, never while the ledger is
    /// written.
    pub(super) digesting: Mutex<Folder>,
    /// Held while the ledger is read and written; before `digesting`.
    pub(super) ledger: Mutex<Ledger>,
    pub(super) current: Current,
    pub(super) repaired: Mutex<BTreeSet<Ino>>,
    /// Damaged blocks since the mount.
    counts: Mutex<BTreeMap<Class, u64>>,
    /// Ranges to give back, of checkpoints that are done.
    freed: Mutex<Vec<Freed>>,
    suspects: Mutex<Suspects>,
    /// Damage of this file is counted here, and has nothing inspected: all of it is being checked.
    watch: Mutex<Option<(FileName, Tally)>>,
    /// Mirrors have come or gone since the ledger was last written.
    members_changed: AtomicBool,
}

/// Where damage was seen.
#[derive(Debug, Default)]
struct Suspects {
    segments: BTreeSet<SegmentNo>,
    index: bool,
    journal: bool,
    /// Whether a service is checking some now.
    inspecting: bool,
}

impl std::fmt::Debug for Incidents {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Incidents").finish_non_exhaustive()
    }
}

impl Witness for Incidents {
    fn time(&self) -> i64 {
        (self.clock)().seconds
    }

    fn incident(&self, incident: Incident) {
        if !self.watched(&incident) {
            self.suspect(incident.place.file);
        }
        *self.counts.lock().entry(class(&incident)).or_default() += 1;
        self.push(Entry::Incident(incident));
    }

    fn mirror_state(&self, mirror: &Mirror, cause: &str) {
        self.members_changed.store(true, Ordering::Release);
        if mirror.state() == MirrorState::Resyncing {
            self.current.forget_mirror(&mirror.uuid.to_string());
        }
        self.push(Entry::Other(What::Mirror {
            mirror: mirror.name(),
            state: mirror.state().name().to_owned(),
            cause: cause.to_owned(),
        }));
    }

    fn file_gone(&self, mirror: &Mirror, file: FileName) {
        self.suspect(file);
        self.push(Entry::Other(What::Gone {
            mirror: mirror.name(),
            stored_in: file.to_string(),
        }));
    }
}

impl Incidents {
    pub(super) fn new(clock: Clock, mut ledger: Ledger) -> Incidents {
        let (next, rows) = ledger.load();
        let current = Current::default();
        current.load(rows);
        Incidents {
            clock,
            queue: Mutex::default(),
            digesting: Mutex::new(Folder::new(next)),
            ledger: Mutex::new(ledger),
            current,
            repaired: Mutex::default(),
            counts: Mutex::default(),
            freed: Mutex::default(),
            suspects: Mutex::default(),
            watch: Mutex::default(),
            members_changed: AtomicBool::new(false),
        }
    }

    /// Works on the ledger. Nothing depends on it: should it panic on what a failing disk gives it,
    /// it is done without from then on.
    pub(super) fn with_ledger<T: Default>(&self, work: impl FnOnce(&mut Ledger) -> T) -> T {
        let mut ledger = self.ledger.lock();
        let worked = catch_unwind(AssertUnwindSafe(|| work(&mut ledger)));
        worked.unwrap_or_else(|_| {
            log::error!("the ledger failed, and is not written any more until the next mount");
            *ledger = Ledger::default();
            T::default()
        })
    }

    /// Whether somebody is checking all of that file; it is counted for him then.
    fn watched(&self, incident: &Incident) -> bool {
        let mut watch = self.watch.lock();
        let Some((file, tally)) = &mut *watch else {
            return false;
        };
        let ours = *file == incident.place.file;
        if ours {
            match incident.resolution {
                Resolution::Repaired => tally.repaired += 1,
                Resolution::Failed(_) | Resolution::Lost => tally.unrepairable += 1,
            }
        }
        ours
    }

    /// Does `work` and counts the damage of a file that is found meanwhile, by whomever.
    pub(super) fn watching<T>(&self, file: FileName, work: impl FnOnce() -> T) -> (T, Tally) {
        *self.watch.lock() = Some((file, Tally::default()));
        let result = work();
        let tally = self
            .watch
            .lock()
            .take()
            .map_or_else(Tally::default, |watch| watch.1);
        (result, tally)
    }

    fn push(&self, entry: Entry) {
        let mut queue = self.queue.lock();
        match entry {
            Entry::Incident(incident) if queue.entries.len() >= QUEUE_MAX => {
                let (count, bytes) = queue.overflow.entry(class(&incident)).or_default();
                *count += 1;
                *bytes += incident.len as u64;
            }
            // Of these there are few.
            entry => {
                let now = (self.clock)();
                queue.entries.push_back((now, entry));
            }
        }
    }

    pub(super) fn take_members_changed(&self) -> bool {
        self.members_changed.swap(false, Ordering::AcqRel)
    }

    pub(super) fn take_queue(&self) -> Queue {
        std::mem::take(&mut *self.queue.lock())
    }

    /// Damaged blocks since the mount.
    pub(super) fn counts(&self) -> BTreeMap<Class, u64> {
        self.counts.lock().clone()
    }

    fn suspect(&self, file: FileName) {
        let mut suspects = self.suspects.lock();
        match file {
            // The index is small, and reads of it go to one mirror only, like those of data.
            FileName::Segment(segment) => {
                suspects.segments.insert(segment);
                suspects.index = true;
            }
            FileName::Index | FileName::Sums => suspects.index = true,
            // Its records are durable elsewhere; a checkpoint makes them superfluous.
            FileName::Journal => suspects.journal = true,
            FileName::Readme | FileName::Superblock => {}
        }
    }

    /// Something else for the ledger.
    pub(super) fn note(&self, what: What) {
        self.push(Entry::Other(what));
    }

    pub(super) fn with_freed<T>(&self, look: impl FnOnce(&[Freed]) -> T) -> T {
        look(&self.freed.lock())
    }

    pub(super) fn freed(&self, freed: Vec<Freed>) {
        self.freed.lock().extend(freed);
    }
}

/// What incidents are counted by.
fn class(incident: &Incident) -> Class {
    let outcome = match incident.resolution {
        Resolution::Repaired => "repaired",
        Resolution::Failed(_) => "failed",
        Resolution::Lost => "lost",
    };
    let kind = kind_of(incident.place.file);
    (incident.mirror, kind, incident.damage.name(), outcome)
}

/// What a file of a mirror holds, as reports call it.
pub(super) const fn kind_of(file: FileName) -> &'static str {
    match file {
        FileName::Segment(_) => "data",
        FileName::Index => "index",
        FileName::Sums => "index.sums",
        FileName::Journal => "journal",
        FileName::Superblock | FileName::Readme => "superblock",
    }
}

impl Pool {
    /// Ranges of segments that finished checkpoints have freed and nobody has given back yet.
    pub fn take_freed(&self) -> Vec<Freed> {
        std::mem::take(&mut *self.incidents.freed.lock())
    }

    /// Where damage was seen since the last call: segments, and whether in the index.
    pub fn take_suspects(&self) -> (BTreeSet<SegmentNo>, bool) {
        let mut suspects = self.incidents.suspects.lock();
        // Until the service says otherwise: nobody may see nothing waiting and nothing checked.
        suspects.inspecting |= suspects.index || !suspects.segments.is_empty();
        (
            std::mem::take(&mut suspects.segments),
            std::mem::take(&mut suspects.index),
        )
    }

    /// Whether a mirror lost a part of the journal since the last call.
    pub fn take_suspect_journal(&self) -> bool {
        std::mem::take(&mut self.incidents.suspects.lock().journal)
    }

    /// Says whether a service is checking what is suspect.
    pub fn set_inspecting(&self, inspecting: bool) {
        self.incidents.suspects.lock().inspecting = inspecting;
    }

    /// Whether something suspect is not checked yet.
    pub(super) fn inspecting(&self) -> bool {
        let suspects = self.incidents.suspects.lock();
        suspects.inspecting || suspects.index || !suspects.segments.is_empty()
    }
}
