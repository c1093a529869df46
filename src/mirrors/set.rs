//! The mirrors themselves: state, counters, and the choice of one to read from.
//!
//! The set changes while it is used: a mirror may be added, removed, or attached anew with another
//! descriptor. Whoever works on mirrors takes those that count at that moment, with
//! [`MirrorSet::current`] or [`MirrorSet::written`], and keeps them for as long as it works.

use std::fmt;
use std::ops::Deref;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};

use tracing_mutex::parkinglot::{Mutex, RwLock};

use super::health::Health;
use super::membership::Membership;
use super::repair::{Incident, RepairQueue};
use crate::backing::{Backing, FileName, Space};
use crate::format::{Lsn, Superblock, Uuid};

/// Number of a mirror in an open pool. A mirror that comes back keeps it; it is never given out
/// again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MirrorId(pub u8);

/// How a mirror stands right now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum MirrorState {
    /// Holds everything; reads and writes.
    Online,
    /// Holds everything and is written to, but read from only where no other mirror can answer.
    Suspect,
    /// Out, by the operator's wish or because it missed changes: serves and receives nothing.
    Offline,
    /// Being brought up to date: receives what is written, serves nothing.
    Resyncing,
    /// Its directory is not there, or holds no superblock of this pool.
    Missing,
    /// A write or sync failed, or it had too many read errors: out.
    Failed,
}

impl MirrorState {
    /// All of them.
    pub const ALL: [MirrorState; 6] = [
        MirrorState::Online,
        MirrorState::Suspect,
        MirrorState::Offline,
        MirrorState::Resyncing,
        MirrorState::Missing,
        MirrorState::Failed,
    ];

    /// The word for reports.
    pub const fn name(self) -> &'static str {
        match self {
            MirrorState::Online => "online",
            MirrorState::Suspect => "suspect",
            MirrorState::Offline => "offline",
            MirrorState::Resyncing => "resyncing",
            MirrorState::Missing => "missing",
            MirrorState::Failed => "failed",
        }
    }

    /// Whether a mirror in this state holds everything.
    pub const fn is_current(self) -> bool {
        matches!(self, MirrorState::Online | MirrorState::Suspect)
    }

    /// Whether a mirror in this state receives what is written.
    pub const fn is_written(self) -> bool {
        self.is_current() || matches!(self, MirrorState::Resyncing)
    }

    const fn id(self) -> u8 {
        match self {
            MirrorState::Online => 0,
            MirrorState::Suspect => 1,
            MirrorState::Offline => 2,
            MirrorState::Resyncing => 3,
            MirrorState::Missing => 4,
            MirrorState::Failed => 5,
        }
    }

    fn from_id(id: u8) -> MirrorState {
        let known = MirrorState::ALL.into_iter().find(|state| state.id() == id);
        known.unwrap_or(MirrorState::Failed)
    }
}

/// Errors of one mirror since mount.
#[derive(Debug, Default)]
pub struct Counters {
    /// Reads that failed with an I/O error.
    pub read_errors: AtomicU64,
    /// Writes and syncs that failed.
    pub write_errors: AtomicU64,
    /// Blocks that were there but wrong, short or missing.
    pub checksum_errors: AtomicU64,
    /// Blocks rewritten, read back from the medium and found good.
    pub repaired: AtomicU64,
    /// Blocks that could not be rewritten, or that no mirror could supply.
    pub unrepaired: AtomicU64,
}

impl Counters {
    pub(super) fn count(counter: &AtomicU64) {
        counter.fetch_add(1, Ordering::Relaxed);
    }
}

/// One mirror of the pool.
#[derive(Debug)]
pub struct Mirror {
    /// Its number.
    pub id: MirrorId,
    /// Its UUID.
    pub uuid: Uuid,
    /// Errors since mount.
    pub counters: Arc<Counters>,
    pub(super) health: Arc<Health>,
    label: String,
    backing: Option<Arc<dyn Backing>>,
    state: AtomicU8,
    cause: Mutex<String>,
    /// Bytes that were free when it was attached.
    room: u64,
}

impl Mirror {
    /// A mirror in the given state, for the given cause; `backing` is none if its directory is not
    /// there.
    pub fn new(
        id: MirrorId,
        uuid: Uuid,
        label: String,
        backing: Option<Arc<dyn Backing>>,
        (state, cause): (MirrorState, &str),
    ) -> Mirror {
        let room = backing.as_ref().and_then(|backing| backing.space().ok());
        Mirror {
            id,
            uuid,
            counters: Arc::default(),
            health: Arc::default(),
            label,
            backing,
            state: AtomicU8::new(state.id()),
            cause: Mutex::new(cause.to_owned()),
            room: room.map_or(0, |space| space.available),
        }
    }

    /// The same mirror with a directory opened anew.
    pub(super) fn attached_anew(&self, label: String, backing: Arc<dyn Backing>) -> Mirror {
        let state = (MirrorState::Resyncing, "");
        Mirror {
            counters: Arc::clone(&self.counters),
            health: Arc::clone(&self.health),
            ..Mirror::new(self.id, self.uuid, label, Some(backing), state)
        }
    }

    /// The same mirror, out, and without its directory.
    pub(super) fn without_directory(&self, state: MirrorState, cause: &str) -> Mirror {
        Mirror {
            counters: Arc::clone(&self.counters),
            health: Arc::clone(&self.health),
            ..Mirror::new(self.id, self.uuid, self.label.clone(), None, (state, cause))
        }
    }

    /// Path of its directory.
    pub fn label(&self) -> &str {
        &self.label
    }

    /// What to call it in a message: its path, or its UUID where that is not known.
    pub fn name(&self) -> String {
        match self.label.as_str() {
            "" => format!("mirror {}", self.uuid),
            label => label.to_owned(),
        }
    }

    /// Its state now.
    pub fn state(&self) -> MirrorState {
        MirrorState::from_id(self.state.load(Ordering::Acquire))
    }

    /// Why it is in that state; may be empty.
    pub fn cause(&self) -> String {
        self.cause.lock().clone()
    }

    pub(super) fn set_state(&self, state: MirrorState, cause: &str) {
        cause.clone_into(&mut self.cause.lock());
        self.state.store(state.id(), Ordering::Release);
    }

    /// Changes the state if it is `from`; returns whether it was.
    pub(super) fn change_state(&self, from: MirrorState, to: MirrorState, cause: &str) -> bool {
        let (ordering, from, to) = (Ordering::AcqRel, from.id(), to.id());
        let changed = self
            .state
            .compare_exchange(from, to, ordering, Ordering::Acquire);
        if changed.is_ok() {
            cause.clone_into(&mut self.cause.lock());
        }
        changed.is_ok()
    }

    /// Its directory as it was opened, whatever the state: none if it is not there.
    pub fn backing(&self) -> Option<&Arc<dyn Backing>> {
        self.backing.as_ref()
    }

    /// Bytes that it lost of its free space since it was attached.
    pub(super) fn consumed(&self) -> Option<u64> {
        let space = self.backing.as_ref()?.space().ok()?;
        Some(self.room.saturating_sub(space.available))
    }

    /// Bytes that were free when it was attached.
    pub(super) const fn room(&self) -> u64 {
        self.room
    }
}

/// A mirror that was attached at the moment when the set was asked.
#[derive(Debug, Clone)]
pub struct Attached {
    mirror: Arc<Mirror>,
    backing: Arc<dyn Backing>,
}

impl Attached {
    /// Its directory.
    pub fn backing(&self) -> &dyn Backing {
        self.backing.as_ref()
    }
}

impl Deref for Attached {
    type Target = Mirror;

    fn deref(&self) -> &Mirror {
        &self.mirror
    }
}

/// Is told what happens to the mirrors. Must not call back into the set.
pub trait Witness: Send + Sync {
    /// Seconds since 1970-01-01 UTC.
    fn time(&self) -> i64;
    /// A block was found damaged, and this became of it.
    fn incident(&self, incident: Incident);
    /// A mirror changed its state.
    fn mirror_state(&self, mirror: &Mirror, cause: &str);
    /// Somebody deleted a file of a mirror under us. It was made anew, without what it held.
    fn file_gone(&self, mirror: &Mirror, file: FileName);
}

/// All mirrors of an open pool.
pub struct MirrorSet {
    pub(super) mirrors: RwLock<Vec<Arc<Mirror>>>,
    pub(super) membership: Mutex<Membership>,
    pub(super) repairs: RepairQueue,
    pub(super) witness: Arc<dyn Witness>,
    /// Whether syncs of several mirrors run side by side; the simulator wants them in order.
    pub(super) parallel: bool,
    /// Number for the next mirror that is added.
    pub(super) next_id: AtomicU8,
    /// See [`MirrorSet::note_covered`].
    pub(super) covered: AtomicU64,
    /// Which mirror reads go to if they can.
    pub(super) read_from: Mutex<Option<Uuid>>,
}

impl fmt::Debug for MirrorSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MirrorSet")
            .field("mirrors", &self.mirrors)
            .finish_non_exhaustive()
    }
}

impl MirrorSet {
    /// A set of mirrors with the superblock that all of them share.
    pub fn new(
        mirrors: Vec<Mirror>,
        superblock: Superblock,
        witness: Arc<dyn Witness>,
        parallel: bool,
    ) -> MirrorSet {
        let current = |mirror: &&Mirror| mirror.state().is_current();
        let lsn_of = |mirror: &Mirror| Some(superblock.member(mirror.uuid)?.lsn.0);
        let covered = mirrors.iter().filter(current).filter_map(lsn_of).min();
        let next_id = mirrors.iter().map(|mirror| mirror.id.0 + 1).max();
        MirrorSet {
            mirrors: RwLock::new(mirrors.into_iter().map(Arc::new).collect()),
            membership: Mutex::new(Membership::new(superblock)),
            repairs: RepairQueue::default(),
            witness,
            parallel,
            next_id: AtomicU8::new(next_id.unwrap_or(0)),
            covered: AtomicU64::new(covered.unwrap_or(0)),
            read_from: Mutex::default(),
        }
    }

    /// All mirrors, whatever their state.
    pub fn all(&self) -> Vec<Arc<Mirror>> {
        self.mirrors.read().clone()
    }

    /// The mirror with that number, unless it was removed.
    pub fn mirror(&self, id: MirrorId) -> Option<Arc<Mirror>> {
        let mirrors = self.mirrors.read();
        mirrors.iter().find(|mirror| mirror.id == id).cloned()
    }

    fn attached(&self, wanted: impl Fn(MirrorState) -> bool) -> Vec<Attached> {
        let attached = |mirror: &Arc<Mirror>| {
            let backing = mirror.backing.as_ref()?;
            wanted(mirror.state()).then(|| Attached {
                mirror: Arc::clone(mirror),
                backing: Arc::clone(backing),
            })
        };
        self.mirrors.read().iter().filter_map(attached).collect()
    }

    /// The mirrors that hold everything.
    pub fn current(&self) -> Vec<Attached> {
        self.attached(MirrorState::is_current)
    }

    /// The mirrors that receive what is written: those that hold everything, and those that are
    /// being brought up to date.
    pub fn written(&self) -> Vec<Attached> {
        self.attached(MirrorState::is_written)
    }

    /// The mirror with that number, if it is being written.
    pub fn written_one(&self, id: MirrorId) -> Option<Attached> {
        self.written().into_iter().find(|mirror| mirror.id == id)
    }

    /// Whether some mirror does not hold everything.
    pub fn degraded(&self) -> bool {
        let mirrors = self.mirrors.read();
        mirrors.iter().any(|mirror| !mirror.state().is_current())
    }

    /// Has reads go to this mirror for as long as it can answer; none spreads them over all.
    pub fn read_from(&self, mirror: Option<Uuid>) {
        *self.read_from.lock() = mirror;
    }

    /// Everything that extents born up to this LSN hold is durable in the segments of all current
    /// mirrors: a mirror that leaves from here on lacks at most what was born later. Goes out with
    /// every superblock.
    pub fn note_covered(&self, lsn: Lsn) {
        self.covered.fetch_max(lsn.0, Ordering::AcqRel);
    }

    /// Room for data: the smallest of the current mirrors.
    pub fn space(&self) -> Option<Space> {
        self.current()
            .iter()
            .filter_map(|mirror| mirror.backing().space().ok())
            .min_by_key(|space| space.available)
    }
}
