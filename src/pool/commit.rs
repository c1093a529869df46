//! The open pool, and the life of an operation: begin, commit, sync.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};

use parking_lot::Condvar;
use tracing_mutex::parkinglot::Mutex;

use super::checkpoint::Checkpointing;
use super::data::Room;
use super::error::{PoolError, Result};
use super::incidents::Incidents;
use super::load::Load;
use super::locks::{self, InodeLocks};
use super::metrics::Timed;
use super::open::{CommitMode, OpenOptions};
use super::orders::Orders;
use super::progress::monotonic;
use super::promises::Promises;
use super::recover::RecoveryReport;
use super::scrub::Scrub;
use super::space::Reclaimed;
use super::status::ResyncStatus;
use crate::format::{Algorithm, Ino, Lsn, Record, SegmentNo, Timestamp, TxnBody, Uuid};
use crate::index::{Freed, Index, Txn};
use crate::journal::Journal;
use crate::mirrors::MirrorSet;
use crate::segments::{Images, Segments};

/// Whether an operation may need space.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Intent {
    /// It may: refused on a full pool.
    Grow,
    /// It may, and asks for it itself when it stores data.
    Store,
    /// It only gives space back: let through on a full pool.
    Shrink,
}

/// What [`Pool::cut`] did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cut {
    /// Stored bytes that the file no longer holds.
    pub freed: u64,
    /// Whether nothing is left in the range; else call again in another transaction.
    pub done: bool,
}

/// What changes with every commit, under one lock.
#[derive(Debug, Default)]
pub(super) struct Committed {
    /// Ranges that rows no longer point to since the last freeze.
    pub(super) freed: Pending,
    /// Those that the checkpoint under way has frozen. The journal still holds the operations that
    /// pointed there, and until it is done a crash replays them and wants their data.
    pub(super) freezing: Pending,
    pub(super) inodes: u64,
}

/// Freed ranges by segment.
pub(super) type Pending = BTreeMap<SegmentNo, Vec<Freed>>;

impl Committed {
    pub(super) fn free(&mut self, freed: Vec<Freed>) {
        for range in freed {
            self.freed.entry(range.segment).or_default().push(range);
        }
    }

    /// Ranges of a segment that no row may point to any more, but that the journal still needs.
    pub(super) fn pending(&self, segment: SegmentNo) -> impl Iterator<Item = &Freed> {
        let pending = [&self.freed, &self.freezing].into_iter();
        pending
            .filter_map(move |freed| freed.get(&segment))
            .flatten()
    }
}

#[derive(Debug, Default)]
struct GroupCommit {
    leader: parking_lot::Mutex<bool>,
    done: Condvar,
}

/// Held by the thread that syncs for all.
struct Leading<'a>(&'a GroupCommit);

impl Drop for Leading<'_> {
    fn drop(&mut self) {
        *self.0.leader.lock() = false;
        self.0.done.notify_all();
    }
}

/// An open pool.
#[derive(Debug)]
pub struct Pool {
    pub(super) options: OpenOptions,
    pub(super) mirrors: Arc<MirrorSet>,
    pub(super) index: Index,
    pub(super) journal: Journal,
    pub(super) segments: Segments,
    pub(super) incidents: Arc<Incidents>,
    pub(super) locks: InodeLocks,
    pub(super) committed: Mutex<Committed>,
    pub(super) checkpointing: Checkpointing,
    pub(super) timed: Timed,
    pub(super) recovery: RecoveryReport,
    /// Unlinked or half truncated files that were finished at mount.
    pub(super) orphans: AtomicU64,
    pub(super) started: Timestamp,
    pub(super) next_ino: AtomicU64,
    /// LSN of the last operation.
    pub(super) last_commit: AtomicU64,
    /// Bytes that may be written before free space is looked at again.
    pub(super) headroom: AtomicI64,
    pub(super) promises: Promises,
    pub(super) reclaimed: Reclaimed,
    pub(super) resync: Mutex<Option<ResyncStatus>>,
    /// Held by whoever changes bytes to which nothing points: of two who change the same ones side
    /// by side, one with what it has read before, the mirrors would come out unlike.
    pub(super) dead_bytes: Mutex<()>,
    pub(super) orders: Orders,
    load: Load,
    scrub: Scrub,
    group: GroupCommit,
    /// Whether this mount has announced on disk that it writes.
    active: AtomicBool,
    activating: Mutex<()>,
    failed: Mutex<Option<String>>,
    /// Of the pool, from the superblock.
    pub(super) uuid: Uuid,
    pub(super) algorithm: Algorithm,
    hash_key: [u8; 16],
    label: String,
}

/// The parts of a pool that opening it has put together.
pub(super) struct Parts {
    pub(super) options: OpenOptions,
    pub(super) mirrors: Arc<MirrorSet>,
    pub(super) index: Index,
    pub(super) journal: Journal,
    pub(super) segments: Segments,
    pub(super) incidents: Arc<Incidents>,
    pub(super) recovery: RecoveryReport,
    pub(super) next_ino: Ino,
    pub(super) inodes: u64,
    /// Freed by replayed operations.
    pub(super) freed: Vec<Freed>,
    /// Whether this mount has already announced on disk that it writes.
    pub(super) active: bool,
}

impl Pool {
    pub(super) fn assemble(parts: Parts) -> Pool {
        let superblock = parts.mirrors.superblock();
        let last = parts.journal.last().0;
        let mut committed = Committed {
            inodes: parts.inodes,
            ..Committed::default()
        };
        committed.free(parts.freed);
        Pool {
            started: (parts.options.clock)(),
            options: parts.options,
            mirrors: parts.mirrors,
            index: parts.index,
            journal: parts.journal,
            segments: parts.segments,
            incidents: parts.incidents,
            locks: InodeLocks::default(),
            committed: Mutex::new(committed),
            checkpointing: Checkpointing::new(superblock.checkpoint),
            timed: Timed::default(),
            recovery: parts.recovery,
            orphans: AtomicU64::new(0),
            next_ino: AtomicU64::new(parts.next_ino.0),
            last_commit: AtomicU64::new(last),
            headroom: AtomicI64::new(0),
            promises: Promises::default(),
            reclaimed: Reclaimed::default(),
            resync: Mutex::new(None),
            dead_bytes: Mutex::new(()),
            orders: Orders::default(),
            load: Load::default(),
            scrub: Scrub::new(monotonic()),
            group: GroupCommit::default(),
            active: AtomicBool::new(parts.active),
            activating: Mutex::new(()),
            failed: Mutex::new(None),
            uuid: superblock.pool,
            algorithm: superblock.algorithm,
            hash_key: superblock.hash_key,
            label: superblock.label,
        }
    }

    /// The user's name for the pool.
    pub fn label(&self) -> &str {
        &self.label
    }

    /// Whether changes are refused.
    pub const fn read_only(&self) -> bool {
        self.options.read_only
    }

    /// What recovery found and did when the pool was opened.
    pub const fn recovery(&self) -> &RecoveryReport {
        &self.recovery
    }

    /// So many files were finished at mount that a crash had left unlinked or half truncated.
    pub fn note_orphans(&self, count: u64) {
        self.orphans.store(count, Ordering::Relaxed);
    }

    /// When operations become durable that nobody asks for.
    pub const fn commit_mode(&self) -> CommitMode {
        self.options.commit
    }

    /// Checksum algorithm of the pool.
    pub const fn algorithm(&self) -> Algorithm {
        self.algorithm
    }

    /// Key of the hash that orders directory entries.
    pub const fn hash_key(&self) -> [u8; 16] {
        self.hash_key
    }

    /// What applications ask for: every request of theirs that may touch a disk is counted there.
    pub const fn load_of_applications(&self) -> &Load {
        &self.load
    }

    /// Where a scrub is ordered and told of.
    pub fn scrub(&self) -> &Scrub {
        &self.scrub
    }

    /// When the pool was made, in seconds since 1970-01-01 UTC.
    pub fn made(&self) -> i64 {
        self.mirrors.superblock().created
    }

    /// The time.
    pub fn now(&self) -> Timestamp {
        (self.options.clock)()
    }

    /// LSN of the next record.
    pub fn lsn(&self) -> Lsn {
        self.journal.last().next()
    }

    /// A number for a new inode: never given out before.
    pub fn alloc_ino(&self) -> Ino {
        Ino(self.next_ino.fetch_add(1, Ordering::Relaxed))
    }

    /// Called first by every operation that changes anything, with no lock held: waits until the
    /// journal has room, and for every mirror if much of it is to be written out.
    ///
    /// # Errors
    /// [`PoolError::ReadOnly`]; [`PoolError::NoSpace`] before anything is half done, for one that
    /// may need space; [`PoolError::Failed`].
    pub fn begin(&self, intent: Intent) -> Result<()> {
        debug_assert!(!locks::holds_any(), "begin under the lock of an inode");
        self.usable()?;
        if self.options.read_only {
            return Err(PoolError::ReadOnly);
        }
        self.activate()?;
        self.make_room(intent)?;
        if self.journal.buffered() > self.write_out_at() {
            self.guard(self.journal.write_out())?;
        }
        match intent {
            Intent::Grow => self.check_space(0, Room::Free),
            Intent::Store | Intent::Shrink => Ok(()),
        }
    }

    /// Puts the operation's rows into the journal's buffer and makes them visible, all at once. No
    /// I/O: the caller holds locks that others wait for.
    ///
    /// # Errors
    /// [`PoolError::Failed`]; then nothing has changed.
    pub fn commit(&self, txn: Txn) -> Result<Lsn> {
        self.usable()?;
        let promised = txn.promised().to_vec();
        let (changes, live, freed, inodes) = txn.into_parts();
        if changes.is_empty() {
            return Ok(self.journal.last());
        }
        debug_assert!(self.active.load(Ordering::Relaxed), "commit without begin");
        let record = Record::Txn(TxnBody {
            time: self.now(),
            changes,
        });
        let appended = {
            let mut committed = self.committed.lock();
            let appended = self.journal.append(&record);
            let Record::Txn(TxnBody { changes, .. }) = record else {
                unreachable!()
            };
            // Whoever gives space back looks for unlinked extents, then for rows, then for what is
            // freed: an extent enters the next of these before it leaves the one before.
            committed.free(freed);
            let linked = self.linked_extents(&changes);
            self.index.apply(changes);
            for (segment, header) in linked {
                self.segments.settled(segment, header);
            }
            self.segments.with_accounts(|accounts| accounts.add(&live));
            committed.inodes = committed.inodes.saturating_add_signed(inodes);
            self.promises.add(&promised);
            self.last_commit.store(appended.lsn.0, Ordering::Release);
            appended
        };
        Ok(appended.lsn)
    }

    /// Called last by every operation that changes anything, with no lock held: where each
    /// operation is to be durable (`commit=always`) waits until this one is.
    ///
    /// # Errors
    /// As [`Pool::sync`].
    pub fn acknowledge(&self) -> Result<()> {
        match self.options.commit {
            CommitMode::Always => self.sync(),
            CommitMode::Interval(_) | CommitMode::None => Ok(()),
        }
    }

    /// Buffered journal bytes at which the next operation writes them out, without a sync.
    fn write_out_at(&self) -> usize {
        (self.journal.size() / 16).min(256 << 10) as usize
    }

    /// Extents that get a row, and then need no protection as unlinked ones any more.
    fn linked_extents(&self, changes: &[crate::format::Change]) -> Vec<(SegmentNo, u32)> {
        let width = self.algorithm.width();
        let mut linked = Vec::new();
        for change in changes {
            let Some(value) = &change.value else { continue };
            if change.key.table() == Some(crate::format::Table::Extent)
                && let Ok(row) = crate::format::ExtentRow::decode(value, width)
            {
                linked.push((row.segment, row.header));
            }
        }
        linked
    }

    /// Makes everything committed so far durable on all mirrors. Callers that come at the same
    /// time share one sync.
    ///
    /// # Errors
    /// [`PoolError::Failed`] if no mirror could be written; never retried into a success.
    pub fn sync(&self) -> Result<()> {
        debug_assert!(!locks::holds_any(), "sync under the lock of an inode");
        let target = Lsn(self.last_commit.load(Ordering::Acquire));
        loop {
            self.usable()?;
            if self.journal.synced() >= target {
                return Ok(());
            }
            let mut leader = self.group.leader.lock();
            if *leader {
                self.group.done.wait(&mut leader);
                continue;
            }
            *leader = true;
            drop(leader);
            // Also when it panics: the others must not wait for ever.
            let _leading = Leading(&self.group);
            self.timed.syncs.time(|| self.sync_once())?;
        }
    }

    fn sync_once(&self) -> Result<()> {
        // Operations up to here had their data registered as unsynced before they committed. Later
        // ones may be in the batch too, but nothing is claimed for them.
        let upto = self.journal.last();
        self.journal.mark_durable();
        match self.guard(self.segments.take_images())? {
            Images::Journal(images) if self.images_fit(&images) => {
                for image in images {
                    self.journal.append(&Record::DataImage(image));
                }
            }
            Images::Journal(_) | Images::Segments => {
                self.guard(self.segments.sync(&|| self.lsn()))?
            }
        }
        self.guard(self.journal.sync())?;
        self.journal.set_synced(upto);
        Ok(())
    }

    /// Whether images leave enough of the journal for operations and the next checkpoint.
    fn images_fit(&self, images: &[crate::format::DataImage]) -> bool {
        let bytes: u64 = images
            .iter()
            .map(|image| image.bytes.len() as u64 + 64)
            .sum();
        self.journal.used() + bytes < self.journal.size() / 2
    }

    /// Whether anything is not durable yet.
    pub fn unsynced(&self) -> bool {
        self.journal.synced().0 < self.last_commit.load(Ordering::Acquire)
    }

    /// Announces on disk that this mount writes: a new run number for the journal, and, if mirrors
    /// are missing, a new epoch, so that they are known to be behind. Until then a mount leaves no
    /// trace, and a mirror that was away while nothing was written is still current.
    pub(super) fn activate(&self) -> Result<()> {
        if self.active.load(Ordering::Acquire) {
            return Ok(());
        }
        let _activating = self.activating.lock();
        if !self.active.load(Ordering::Acquire) {
            self.guard(announce(&self.mirrors))?;
            self.guard(self.index.extend_reserve().map_err(PoolError::from))?;
            self.active.store(true, Ordering::Release);
        }
        Ok(())
    }

    /// Whether this mount has changed anything.
    pub fn is_active(&self) -> bool {
        self.active.load(Ordering::Acquire)
    }

    pub(super) fn usable(&self) -> Result<()> {
        match &*self.failed.lock() {
            None => Ok(()),
            Some(reason) => Err(PoolError::Failed {
                reason: reason.clone(),
            }),
        }
    }

    /// Why the pool has stopped, if it has.
    pub fn failure(&self) -> Option<String> {
        self.failed.lock().clone()
    }

    /// Stops the pool: from here on every operation fails, and what was not yet durable is lost.
    pub fn fail(&self, reason: &str) {
        let mut failed = self.failed.lock();
        if failed.is_none() {
            log::error!("the pool has stopped: {reason}");
            *failed = Some(reason.to_owned());
        }
        drop(failed);
        self.group.done.notify_all();
        self.checkpointing.wake();
    }

    /// Passes a result on; one that says that no mirror is left stops the pool.
    pub(super) fn guard<T, E: Into<PoolError>>(
        &self,
        result: std::result::Result<T, E>,
    ) -> Result<T> {
        result.map_err(|error| {
            let error = error.into();
            if let PoolError::Failed { reason } = &error {
                self.fail(reason);
            }
            error
        })
    }
}

/// See [`Pool::activate`].
pub(super) fn announce(
    mirrors: &MirrorSet,
) -> std::result::Result<(), crate::mirrors::MirrorError> {
    if mirrors.degraded() {
        mirrors.raise_epoch()?;
    }
    mirrors.update_superblock(|superblock| {
        superblock.journal.run += 1;
        superblock.clean = false;
    })
}
