//! What the space service needs of the pool: segments, their owners, holes.

use std::ops::Range;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

use super::commit::Pool;
use super::error::Result;
use crate::backing::FileName;
use crate::format::{BLOCK, ExtentHeader, Key, MAX_EXTENT, ReverseRow, SegmentNo, SegmentRow};
use crate::index::Freed;

/// How often one write waits for space that is about to come back.
const ROUNDS: u32 = 3;
/// How long it waits for a checkpoint, and then for the holes, at most.
const PATIENCE: Duration = Duration::from_secs(10);

/// One operation's waiting for space.
#[derive(Debug, Default)]
pub struct SpaceWait {
    rounds: u32,
}

/// Tells when everything that was freed has been given back.
#[derive(Debug, Default)]
pub(super) struct Reclaimed {
    passes: Mutex<u64>,
    changed: Condvar,
}

impl Pool {
    /// Waits until what was freed so far is given back to the filesystems below, with no lock held.
    /// False if that is less than `bytes`, if this wait has been going on for too long, or if there
    /// are no threads that would do it.
    ///
    /// # Errors
    /// [`PoolError::Failed`](super::PoolError::Failed).
    pub fn wait_for_space(&self, wait: &mut SpaceWait, bytes: u64) -> Result<bool> {
        if wait.rounds == ROUNDS || self.freed_bytes() < bytes.max(1) {
            return Ok(false);
        }
        wait.rounds += 1;
        if !self.wait_for_next_checkpoint(PATIENCE)? {
            return Ok(false);
        }
        // The pass that is under way may have begun before that checkpoint had ended.
        let mut passes = self.reclaimed.passes.lock();
        let (wanted, deadline) = (*passes + 2, Instant::now() + PATIENCE);
        while *passes < wanted {
            if self
                .reclaimed
                .changed
                .wait_until(&mut passes, deadline)
                .timed_out()
            {
                break;
            }
        }
        Ok(true)
    }

    /// Bytes that no row points to any more and that have not been given back.
    fn freed_bytes(&self) -> u64 {
        let sum = |freed: &[Freed]| freed.iter().map(|freed| u64::from(freed.len)).sum::<u64>();
        let committed = self.committed.lock();
        let pending = [&committed.freed, &committed.freezing];
        let pending = pending.into_iter().flat_map(|pending| pending.values());
        let pending: u64 = pending.map(|freed| sum(freed)).sum();
        drop(committed);
        pending + self.incidents.with_freed(|freed| sum(freed))
    }

    /// Everything is given back that had been freed when this pass began.
    pub fn note_reclaimed(&self) {
        *self.reclaimed.passes.lock() += 1;
        self.reclaimed.changed.notify_all();
    }

    /// The segment being filled and its length.
    pub fn open_segment(&self) -> Option<(SegmentNo, u32)> {
        self.segments.open_segment()
    }

    /// Segments with this number or a higher one were made by this mount.
    pub const fn first_segment_of_mount(&self) -> SegmentNo {
        self.segments.first_of_mount()
    }

    /// What the last checkpoint knows of a segment.
    ///
    /// # Errors
    /// As [`Pool::get`].
    pub fn checkpointed_segment(&self, segment: SegmentNo) -> Result<Option<SegmentRow>> {
        match self.index.get(&Key::segment(segment))? {
            Some(value) => Ok(Some(SegmentRow::decode(&value)?)),
            None => Ok(None),
        }
    }

    /// Segment files on any mirror, with the bytes that they take there at most.
    pub fn segment_files(&self) -> Vec<(SegmentNo, u64)> {
        let mut files = std::collections::BTreeMap::new();
        for mirror in self.mirrors.current() {
            let backing = mirror.backing();
            for segment in backing.segments().unwrap_or_default() {
                let allocated = backing.allocated(FileName::Segment(segment)).unwrap_or(0);
                let most: &mut u64 = files.entry(segment).or_default();
                *most = allocated.max(*most);
            }
        }
        files.into_iter().collect()
    }

    /// Bytes that a segment takes below, on the mirror where it takes most.
    pub fn segment_allocated(&self, segment: SegmentNo) -> u64 {
        let file = FileName::Segment(segment);
        self.mirrors
            .current()
            .iter()
            .filter_map(|mirror| mirror.backing().allocated(file).ok())
            .max()
            .unwrap_or(0)
    }

    /// Rows that point into a range of a segment, by offset: as of the last checkpoint or now.
    ///
    /// # Errors
    /// As [`Pool::get`].
    pub fn owners(
        &self,
        segment: SegmentNo,
        range: Range<u32>,
        limit: usize,
    ) -> Result<Vec<(u32, ReverseRow)>> {
        let from = Key::reverse_at(segment, range.start);
        let to = match range.end {
            u32::MAX => Key::reverse_end(segment),
            end => Key::reverse_at(segment, end),
        };
        let mut rows = Vec::new();
        for found in [
            self.index.scan_checkpointed(&from, &to, limit)?,
            self.index.scan(&from, &to, limit)?,
        ] {
            for (key, value) in found {
                rows.push((key.reverse_parts()?.1, ReverseRow::decode(&value)?));
            }
        }
        Ok(rows)
    }

    /// Ranges (offset, length) of a segment that are written but have no row yet.
    pub fn unlinked_in(&self, segment: SegmentNo) -> Vec<(u32, u32)> {
        self.segments.unlinked(segment)
    }

    /// Whether nothing needs a segment any more that is not being filled: no extent without a row,
    /// no row, and no operation in the journal that a crash would bring back.
    ///
    /// # Errors
    /// As [`Pool::get`].
    pub fn segment_is_dead(&self, segment: SegmentNo) -> Result<bool> {
        // In this order: see `commit`.
        Ok(self.unlinked_in(segment).is_empty()
            && self.owners(segment, 0..u32::MAX, 1)?.is_empty()
            && self.committed.lock().pending(segment).next().is_none())
    }

    /// Ranges of a segment that overlap `window` and must stay as they are: rows' data and the
    /// headers of their extents, as of the last checkpoint and now, extents that have no row yet,
    /// and what was freed but is still pointed to by operations that a crash would replay.
    /// Ascending by their start.
    ///
    /// # Errors
    /// As [`Pool::get`].
    pub fn live_ranges(&self, segment: SegmentNo, window: Range<u32>) -> Result<Vec<Range<u32>>> {
        let header_max = ExtentHeader::len_for(self.algorithm(), MAX_EXTENT) as u32;
        // A row may begin up to an extent before the window, and the header of one behind it may
        // reach into it.
        let reach = MAX_EXTENT as u32 + header_max + 2 * BLOCK as u32;
        let from = window.start.saturating_sub(reach);
        let to = window.end.saturating_add(reach);
        // Unlinked ones first, then rows, then freed ones: the order in which an extent goes
        // through these, so that one that moves on meanwhile is seen at least once. See `commit`.
        let unlinked = self.unlinked_in(segment).into_iter();
        let mut ranges: Vec<_> = unlinked.map(|(offset, len)| offset..offset + len).collect();
        let mut keep = |offset: u32, stored: u32, header: u32| {
            ranges.push(offset..offset + stored);
            ranges.push(header..(header + header_max).min(offset));
        };
        for (offset, row) in self.owners(segment, from..to, usize::MAX)? {
            keep(offset, row.stored, row.header);
        }
        let near = |freed: &&Freed| freed.offset < to && freed.offset + freed.len > from;
        for freed in self.committed.lock().pending(segment).filter(near) {
            keep(freed.offset, freed.len, freed.header);
        }
        ranges.retain(|live| live.start < window.end && live.end > window.start);
        ranges.sort_unstable_by_key(|live| live.start);
        Ok(ranges)
    }

    /// Makes the bytes between what is live the same on every mirror, if they are not: zeros. For
    /// segments that are not being written. Returns the number of gaps that differed.
    ///
    /// # Errors
    /// As [`Pool::get`].
    pub fn level_gaps(&self, segment: SegmentNo) -> Result<usize> {
        let file = FileName::Segment(segment);
        let end = self.checkpointed_segment(segment)?.map_or(0, |row| row.end);
        let mut differed = 0;
        self.for_gaps(segment, end, &mut |offset, len| {
            let _dead = self.dead_bytes.lock();
            differed += usize::from(self.guard(self.mirrors.level(file, offset, len))?);
            Ok(())
        })?;
        Ok(differed)
    }

    /// Bytes up to which a segment may have been written, now or as of the last checkpoint.
    pub(super) fn segment_end(&self, segment: SegmentNo) -> Result<u32> {
        let known = self
            .segments
            .with_accounts(|accounts| accounts.get(segment));
        let stored = self.checkpointed_segment(segment)?;
        let end = |row: Option<SegmentRow>| row.map_or(0, |row| row.end);
        Ok(end(known).max(end(stored)))
    }

    /// Visits what lies between live data in a segment up to `end`: offset and length.
    pub(super) fn for_gaps(
        &self,
        segment: SegmentNo,
        end: u32,
        visit: &mut dyn FnMut(u64, u64) -> Result<()>,
    ) -> Result<()> {
        let mut at = 0;
        while at < end {
            let stop = end.min(at.saturating_add(8 * MAX_EXTENT as u32));
            let mut live = self.live_ranges(segment, at..stop)?;
            live.push(stop..stop);
            for live in live {
                if at < live.start {
                    visit(u64::from(at), u64::from(live.start.min(stop) - at))?;
                }
                at = at.max(live.end);
            }
            at = at.max(stop);
        }
        Ok(())
    }

    /// Gives a range of a segment back to the filesystems below.
    pub fn punch_segment(&self, segment: SegmentNo, offset: u32, len: u32) {
        let _dead = self.dead_bytes.lock();
        self.mirrors.punch(
            FileName::Segment(segment),
            u64::from(offset),
            u64::from(len),
        );
    }

    /// Removes a segment to which nothing points.
    pub fn remove_segment(&self, segment: SegmentNo) {
        let _dead = self.dead_bytes.lock();
        self.segments.remove(segment);
        self.headroom.store(0, std::sync::atomic::Ordering::Relaxed);
    }

    /// Does up to `budget` queued repairs; returns how many it did.
    pub fn repair_step(&self, budget: usize) -> usize {
        self.mirrors.repair_step(budget)
    }

    /// Repairs that wait or are being done.
    pub fn repairs_pending(&self) -> usize {
        self.mirrors.repairs_pending()
    }
}
