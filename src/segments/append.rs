//! Appending extents, syncing and reading them.

use std::sync::Arc;

use tracing_mutex::parkinglot::Mutex;

use super::accounts::Accounts;
use super::unsynced::{Images, Unsynced};
use crate::backing::FileName;
use crate::format::{
    Algorithm, BLOCK, ExtentHeader, ExtentRow, Ino, Lsn, MAX_EXTENT, PoolTag, SegmentNo,
};
use crate::mirrors::{BadBlock, Mend, MirrorError, MirrorSet, Place};

/// Length at which a segment is closed, in bytes.
pub const SEGMENT_SIZE: u32 = 64 << 20;
/// Extents begin at multiples of this, the sector size.
const EXTENT_ALIGN: u32 = 512;
/// From this payload on the payload is aligned to blocks, so that pages are written whole and
/// freeing it frees whole blocks below. For smaller ones the padding would cost too much.
const ALIGN_PAYLOAD_FROM: usize = 32 << 10;

#[derive(Debug)]
struct Open {
    /// The segment being filled and its length.
    current: Option<(SegmentNo, u32)>,
    next: SegmentNo,
}

/// What the segments of a pool have in common.
#[derive(Debug, Clone, Copy)]
pub struct SegmentsConfig {
    /// Checksum algorithm.
    pub algorithm: Algorithm,
    /// The pool.
    pub pool: PoolTag,
    /// Number for the next segment.
    pub next: SegmentNo,
    /// Length at which a segment is closed, in bytes.
    pub size: u32,
}

/// The segments of an open pool.
#[derive(Debug)]
pub struct Segments {
    mirrors: Arc<MirrorSet>,
    config: SegmentsConfig,
    open: Mutex<Open>,
    accounts: Mutex<Accounts>,
    unsynced: Mutex<Unsynced>,
    /// Held while the segments are synced: what such a sync has taken on itself is durable only at
    /// its end. If one fails, what it took on is lost and no later one may claim it: the error
    /// stays.
    syncing: Mutex<Result<(), MirrorError>>,
}

struct Slot {
    segment: SegmentNo,
    header: u32,
    payload: u32,
    born: Lsn,
}

impl Segments {
    /// The segments of a pool.
    pub fn new(mirrors: Arc<MirrorSet>, config: SegmentsConfig, accounts: Accounts) -> Segments {
        Segments {
            mirrors,
            config,
            open: Mutex::new(Open {
                current: None,
                next: config.next,
            }),
            accounts: Mutex::new(accounts),
            unsynced: Mutex::default(),
            syncing: Mutex::new(Ok(())),
        }
    }

    /// Number that the next new segment gets.
    pub fn next_segment(&self) -> SegmentNo {
        self.open.lock().next
    }

    /// The first segment that this mount has made or will make.
    pub const fn first_of_mount(&self) -> SegmentNo {
        self.config.next
    }

    /// Runs `work` on the accounts, under their lock.
    pub fn with_accounts<T>(&self, work: impl FnOnce(&mut Accounts) -> T) -> T {
        work(&mut self.accounts.lock())
    }

    /// Writes `payload` to all mirrors as an extent of the file `ino` at `file_offset`; the row
    /// says where. No row points to it before the caller puts one and calls [`Segments::settled`].
    /// `born` is asked for the LSN of the next record in the order of the places in the segments.
    ///
    /// # Errors
    /// [`MirrorError::NoSpace`] if a mirror is full: what was written is given back.
    pub fn append(
        &self,
        ino: Ino,
        file_offset: u64,
        born: &dyn Fn() -> Lsn,
        payload: &[u8],
    ) -> Result<ExtentRow, MirrorError> {
        assert!(
            !payload.is_empty() && payload.len() <= MAX_EXTENT,
            "extent of 1 byte to 1 MiB"
        );
        let algorithm = self.config.algorithm;
        let mut sums = Vec::with_capacity(payload.len().div_ceil(BLOCK) * algorithm.width());
        payload
            .chunks(BLOCK)
            .for_each(|block| algorithm.append(block, &mut sums));
        let slot = self.reserve(payload.len(), born)?;
        let header = ExtentHeader {
            algorithm,
            pool: self.config.pool,
            born: slot.born,
            ino,
            file_offset,
            payload_at: slot.payload - slot.header,
            stored: payload.len() as u32,
            sums,
        };
        let head = header.encode();
        let parts = [head.as_slice(), payload];
        let file = FileName::Segment(slot.segment);
        let written = self.mirrors.write(file, u64::from(slot.header), &parts);
        if let Err(error) = written {
            let len = (head.len() + payload.len()) as u64;
            self.mirrors.punch(file, u64::from(slot.header), len);
            self.settled(slot.segment, slot.header);
            return Err(error);
        }
        self.unsynced
            .lock()
            .wrote(slot.segment, slot.header, &parts);
        Ok(ExtentRow {
            segment: slot.segment,
            offset: slot.payload,
            stored: payload.len() as u32,
            len: payload.len() as u32,
            header: slot.header,
            born: slot.born,
            sums: header.sums,
        })
    }

    /// A row points to the extent now, or none ever will.
    pub fn settled(&self, segment: SegmentNo, header: u32) {
        self.unsynced.lock().settled(segment, header);
    }

    /// Ranges of a segment that were written but to which no row points yet.
    pub fn unlinked(&self, segment: SegmentNo) -> Vec<(u32, u32)> {
        self.unsynced.lock().unlinked(segment)
    }

    pub(super) const fn mirrors(&self) -> &Arc<MirrorSet> {
        &self.mirrors
    }

    pub(super) const fn algorithm(&self) -> Algorithm {
        self.config.algorithm
    }

    /// All extents that were written but to which no row points yet: segment and header.
    pub fn all_unlinked(&self) -> Vec<(SegmentNo, u32)> {
        self.unsynced.lock().all_unlinked()
    }

    /// The segment being filled and its length.
    pub fn open_segment(&self) -> Option<(SegmentNo, u32)> {
        self.open.lock().current
    }

    fn reserve(&self, payload: usize, born: &dyn Fn() -> Lsn) -> Result<Slot, MirrorError> {
        let header_len = ExtentHeader::len_for(self.config.algorithm, payload) as u32;
        let place = |end: u32| {
            if payload >= ALIGN_PAYLOAD_FROM {
                let payload = (end + header_len).next_multiple_of(BLOCK as u32);
                (
                    (payload - header_len) / EXTENT_ALIGN * EXTENT_ALIGN,
                    payload,
                )
            } else {
                (end, (end + header_len).next_multiple_of(8))
            }
        };
        let mut open = self.open.lock();
        let fits = |end: u32| place(end).1 + payload as u32 <= self.config.size;
        let (segment, end) = match open.current {
            Some((segment, end)) if fits(end) => (segment, end),
            _ => {
                let segment = open.next;
                self.mirrors.create(FileName::Segment(segment))?;
                open.next = SegmentNo(segment.0 + 1);
                self.unsynced.lock().created(segment);
                (segment, 0)
            }
        };
        let (header, at) = place(end);
        let end = (at + payload as u32).next_multiple_of(EXTENT_ALIGN);
        open.current = Some((segment, end));
        // Asked under both locks: extents are born in the order of their places, and whoever looks
        // for those on their way misses none that is older than what it finds.
        let mut unsynced = self.unsynced.lock();
        let born = born();
        unsynced.reserved(segment, header, end - header, born);
        drop(unsynced);
        self.accounts.lock().extend(segment, end);
        Ok(Slot {
            segment,
            header,
            payload: at,
            born,
        })
    }

    /// Whether anything was written since the last sync of the segments.
    pub fn is_dirty(&self) -> bool {
        self.unsynced.lock().is_dirty()
    }

    /// How the data written since the last call becomes durable. The caller does what it says.
    /// Waits for a sync of the segments that is under way.
    ///
    /// # Errors
    /// [`MirrorError::AllFailed`] if a sync of the segments has failed.
    pub fn take_images(&self) -> Result<Images, MirrorError> {
        let syncing = self.syncing.lock();
        syncing.clone()?;
        Ok(self.unsynced.lock().take_images())
    }

    /// Makes everything written so far durable in its segments: whatever was born before `next`,
    /// the LSN of the next record, but for what is still on its way.
    ///
    /// # Errors
    /// [`MirrorError::AllFailed`].
    pub fn sync(&self, next: &dyn Fn() -> Lsn) -> Result<(), MirrorError> {
        let mut syncing = self.syncing.lock();
        syncing.clone()?;
        let ((dirty, fresh), covered) = {
            let mut unsynced = self.unsynced.lock();
            let covered = unsynced.oldest().unwrap_or_else(next);
            (unsynced.take_dirty(), covered)
        };
        let name = |segments: Vec<SegmentNo>| -> Vec<FileName> {
            segments.into_iter().map(FileName::Segment).collect()
        };
        *syncing = self.mirrors.sync(&name(dirty), &name(fresh));
        if syncing.is_ok() {
            self.mirrors.note_covered(Lsn(covered.0.saturating_sub(1)));
        }
        syncing.clone()
    }

    /// Fills `out` with the blocks of `row` from block `first` on; `out` is whole blocks, but may
    /// end with the row's short last block.
    ///
    /// # Errors
    /// The blocks, counted from `first`, that no mirror could supply.
    pub fn read(&self, row: &ExtentRow, first: usize, out: &mut [u8]) -> Result<(), Vec<BadBlock>> {
        let (algorithm, width) = (self.config.algorithm, self.config.algorithm.width());
        let matches =
            |block: usize, bytes: &[u8]| algorithm.matches(bytes, row.sum(first + block, width));
        self.mirrors
            .read(place_of(row, first), out, &matches, Mend::Soon)
    }

    /// Checks a row's blocks and the header of its extent on every mirror and queues bad
    /// copies for repair. Returns how many were bad, and the blocks that no mirror could supply.
    pub fn verify(&self, row: &ExtentRow) -> (usize, Vec<BadBlock>) {
        let (algorithm, width) = (self.config.algorithm, self.config.algorithm.width());
        let mut out = vec![0; row.stored as usize];
        let matches = |block: usize, bytes: &[u8]| algorithm.matches(bytes, row.sum(block, width));
        let blocks = self
            .mirrors
            .verify_all(place_of(row, 0), &mut out, &matches, Mend::Soon);
        let place = Place {
            file: FileName::Segment(row.segment),
            offset: u64::from(row.header),
        };
        let max = ExtentHeader::len_for(algorithm, MAX_EXTENT) + 2 * BLOCK;
        // No data hangs on a header: one that is lost everywhere is not worth an alarm.
        let ours = |bytes: &[u8]| own_header(bytes, row, width);
        let header = self.mirrors.verify_structure(place, max, &ours, Mend::Soon);
        match blocks {
            Ok(bad) => (bad + header.unwrap_or(0), Vec::new()),
            Err(lost) => (header.unwrap_or(0), lost),
        }
    }

    /// Has every mirror read the segment from its medium next.
    pub fn forget_cached(&self, segment: SegmentNo) {
        self.mirrors.forget_cached(FileName::Segment(segment));
    }

    /// Removes a segment in which nothing is live, on every mirror.
    pub fn remove(&self, segment: SegmentNo) {
        let file = FileName::Segment(segment);
        // A sync under way that has it on its list would make it anew.
        let _syncing = self.syncing.lock();
        self.unsynced.lock().forget(segment);
        self.mirrors.forget_repairs(file);
        self.mirrors.remove(file);
        self.accounts.lock().remove(segment);
    }

    /// Stops appending to the open segment; the next extent begins a new one.
    pub fn close_open(&self) {
        self.open.lock().current = None;
    }
}

/// The header with its padding, as it was written, if these bytes begin with the header of the
/// extent that `row` is a part of: its checksums must be those of the row.
pub(super) fn own_header(bytes: &[u8], row: &ExtentRow, width: usize) -> Option<Vec<u8>> {
    let header = ExtentHeader::decode(bytes).ok()?;
    let skipped = row
        .offset
        .checked_sub(row.header.checked_add(header.payload_at)?)? as usize;
    let from = skipped / BLOCK * width;
    let sums = header.sums.get(from..from + row.sums.len())?;
    let ours = skipped.is_multiple_of(BLOCK) && header.born == row.born && sums == row.sums;
    (ours && header.payload_at as usize <= bytes.len()).then(|| header.encode())
}

pub(super) const fn place_of(row: &ExtentRow, first: usize) -> Place {
    Place {
        file: FileName::Segment(row.segment),
        offset: row.offset as u64 + (first * BLOCK) as u64,
    }
}
