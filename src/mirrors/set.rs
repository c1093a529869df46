//! The mirrors themselves: state, counters, and the choice of one to read from.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};

use parking_lot::Mutex;

use super::membership::Membership;
use super::repair::{Incident, RepairQueue};
use crate::backing::{Backing, FileName, Space};
use crate::format::{Superblock, Uuid};

/// Index of a mirror in its pool.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MirrorId(pub u8);

/// How a mirror stands right now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum MirrorState {
    /// Reads and writes.
    Online,
    /// Its directory was there but holds an older state: it serves nothing.
    Stale,
    /// Its directory is not there, or holds no superblock of this pool.
    Missing,
    /// A write or sync failed: out until it is verified again.
    Failed,
}

impl MirrorState {
    /// The word for reports.
    pub const fn name(self) -> &'static str {
        match self {
            MirrorState::Online => "online",
            MirrorState::Stale => "stale",
            MirrorState::Missing => "missing",
            MirrorState::Failed => "failed",
        }
    }

    const fn id(self) -> u8 {
        match self {
            MirrorState::Online => 0,
            MirrorState::Stale => 1,
            MirrorState::Missing => 2,
            MirrorState::Failed => 3,
        }
    }

    const fn from_id(id: u8) -> MirrorState {
        match id {
            0 => MirrorState::Online,
            1 => MirrorState::Stale,
            2 => MirrorState::Missing,
            _ => MirrorState::Failed,
        }
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
    /// Its index.
    pub id: MirrorId,
    /// Its UUID.
    pub uuid: Uuid,
    /// Errors since mount.
    pub counters: Counters,
    label: String,
    backing: Option<Arc<dyn Backing>>,
    state: AtomicU8,
}

impl Mirror {
    /// A mirror in the given state; `backing` is none if its directory is not there.
    pub fn new(
        id: MirrorId,
        uuid: Uuid,
        label: String,
        backing: Option<Arc<dyn Backing>>,
        state: MirrorState,
    ) -> Mirror {
        let state = AtomicU8::new(state.id());
        Mirror {
            id,
            uuid,
            counters: Counters::default(),
            label,
            backing,
            state,
        }
    }

    /// Path of its directory.
    pub fn label(&self) -> &str {
        &self.label
    }

    /// Its state now.
    pub fn state(&self) -> MirrorState {
        MirrorState::from_id(self.state.load(Ordering::Acquire))
    }

    pub(super) fn set_state(&self, state: MirrorState) {
        self.state.store(state.id(), Ordering::Release);
    }

    /// Its directory, if it is online.
    pub fn online(&self) -> Option<&dyn Backing> {
        match self.state() {
            MirrorState::Online => self.backing.as_deref(),
            MirrorState::Stale | MirrorState::Missing | MirrorState::Failed => None,
        }
    }
}

/// Is told what happens to the mirrors. Must not call back into the set.
pub trait Witness: Send + Sync {
    /// A block was found damaged, and this became of it.
    fn incident(&self, incident: Incident);
    /// A mirror changed its state.
    fn mirror_state(&self, mirror: &Mirror, cause: &str);
    /// Somebody deleted a file of a mirror under us. It was made anew, without what it held.
    fn file_gone(&self, mirror: &Mirror, file: FileName);
}

/// All mirrors of an open pool.
pub struct MirrorSet {
    mirrors: Vec<Mirror>,
    pub(super) membership: Mutex<Membership>,
    pub(super) repairs: RepairQueue,
    pub(super) witness: Arc<dyn Witness>,
    /// Whether syncs of several mirrors run side by side; the simulator wants them in order.
    pub(super) parallel: bool,
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
        let membership = Mutex::new(Membership::new(superblock));
        MirrorSet {
            mirrors,
            membership,
            repairs: RepairQueue::default(),
            witness,
            parallel,
        }
    }

    /// All mirrors, online or not.
    pub fn all(&self) -> &[Mirror] {
        &self.mirrors
    }

    /// The mirror with that index.
    pub fn mirror(&self, id: MirrorId) -> &Mirror {
        &self.mirrors[usize::from(id.0)]
    }

    /// The mirrors that read and write, with their directories.
    pub fn online(&self) -> impl Iterator<Item = (&Mirror, &dyn Backing)> {
        self.mirrors
            .iter()
            .filter_map(|mirror| mirror.online().map(|backing| (mirror, backing)))
    }

    /// Whether some mirror is not online.
    pub fn degraded(&self) -> bool {
        self.mirrors
            .iter()
            .any(|mirror| mirror.state() != MirrorState::Online)
    }

    /// The mirrors in the order in which to try a read of that place: segments are spread over the
    /// mirrors by their number, the rest by stretches of 1 MiB, so that a sequential stream stays
    /// on one disk.
    pub(super) fn read_order(&self, file: FileName, offset: u64) -> Vec<(&Mirror, &dyn Backing)> {
        let mut order: Vec<_> = self.online().collect();
        let turn = match file {
            FileName::Segment(segment) => segment.0,
            FileName::Readme
            | FileName::Superblock
            | FileName::Journal
            | FileName::Index
            | FileName::Sums => offset >> 20,
        };
        if !order.is_empty() {
            let first = (turn % order.len() as u64) as usize;
            order.rotate_left(first);
        }
        order
    }

    /// Room for data: the smallest of the online mirrors.
    pub fn space(&self) -> Option<Space> {
        self.online()
            .filter_map(|(_, backing)| backing.space().ok())
            .min_by_key(|space| space.available)
    }
}
