//! Space comes back: holes where data was, segments that are empty, segments that are mostly dead.
//!
//! Only what a finished checkpoint has freed is given back, since until then a crash brings back
//! rows that point there; and of that only what no row points to, neither as of that checkpoint nor
//! now, nor one that was deleted since, and no extent that is about to get its row. The filesystem
//! below frees whole blocks, so a range is widened to the blocks it shares with dead neighbours.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::sync::Arc;

use crate::format::{BLOCK, ExtentHeader, ExtentRow, Ino, Key, MAX_EXTENT, ReverseRow, SegmentNo};
use crate::index::{Freed, Txn};
use crate::pool::{Intent, Pool, PoolError, Result, Room};

/// Freed ranges kept one by one for a segment; beyond that the whole segment is gone through, which
/// costs about as much as that many looks at the neighbours of a range.
const RANGES_MAX: usize = 32;
/// A closed segment that takes this many times its live bytes below is compacted.
const COMPACT_FACTOR: u64 = 2;
/// Segments that take less are left alone, in bytes.
const COMPACT_FROM: u64 = 1 << 20;
const ROWS: usize = 1024;
/// Extents begin at multiples of this.
const SECTOR: usize = 512;
/// More than a header takes before its payload: 32 bytes for each block of an extent, and padding.
const HEADER_MAX: u32 = 4 * BLOCK as u32;

/// Where in a segment to look for dead bytes.
#[derive(Debug)]
enum Dead {
    /// In these ranges.
    Ranges(Vec<Range<u32>>),
    /// From beginning to end.
    Anywhere,
}

impl Default for Dead {
    fn default() -> Dead {
        Dead::Ranges(Vec::new())
    }
}

impl Dead {
    fn add(&mut self, freed: Freed) {
        let Dead::Ranges(ranges) = self else { return };
        // The header goes with the first piece of its extent, which it lies before.
        let beside = freed.offset - freed.header <= HEADER_MAX;
        let start = if beside { freed.header } else { freed.offset };
        let end = freed.offset + freed.len;
        let full = ranges.len() == RANGES_MAX;
        match ranges.last_mut() {
            Some(last) if last.start <= start && start <= last.end.saturating_add(512) => {
                last.end = last.end.max(end);
            }
            _ if full => *self = Dead::Anywhere,
            _ => ranges.push(start..end),
        }
    }

    fn ranges(self) -> Vec<Range<u32>> {
        match self {
            Dead::Ranges(ranges) => ranges,
            Dead::Anywhere => std::iter::once(0..u32::MAX).collect(),
        }
    }
}

/// Gives freed space back to the filesystems below.
#[derive(Debug)]
pub struct Reclaim {
    pool: Arc<Pool>,
    /// Ranges to give back, by segment.
    queue: BTreeMap<SegmentNo, Dead>,
    /// Segments to look at for compaction.
    suspects: BTreeSet<SegmentNo>,
    /// Whether the segment files were compared with the index since the mount.
    surveyed: bool,
}

impl Reclaim {
    /// A service for this pool.
    pub fn new(pool: Arc<Pool>) -> Reclaim {
        let (queue, suspects) = (BTreeMap::new(), BTreeSet::new());
        Reclaim {
            pool,
            queue,
            suspects,
            surveyed: false,
        }
    }

    /// Does a piece of work: up to `budget` segments. Returns whether there is more.
    ///
    /// # Errors
    /// [`PoolError`] if the index cannot be read or the pool has stopped; a full disk is none.
    pub fn step(&mut self, budget: usize) -> Result<bool> {
        if !self.surveyed {
            self.survey()?;
            self.surveyed = true;
        }
        self.take_in(self.pool.take_freed());
        for _ in 0..budget {
            if let Some((segment, dead)) = self.queue.pop_first() {
                self.give_back(segment, dead)?;
            } else if let Some(segment) = self.suspects.pop_first() {
                match self.compact(segment) {
                    Err(PoolError::NoSpace { .. } | PoolError::Damaged { .. }) => {}
                    other => other?,
                }
            } else {
                self.pool.note_reclaimed();
                return Ok(false);
            }
        }
        Ok(!self.queue.is_empty() || !self.suspects.is_empty())
    }

    fn take_in(&mut self, freed: Vec<Freed>) {
        for freed in freed {
            self.queue.entry(freed.segment).or_default().add(freed);
        }
    }

    /// Finds what a crash left behind: segments that no row points to, and freed ranges whose
    /// holes were never made.
    fn survey(&mut self) -> Result<()> {
        let newest = self.pool.first_segment_of_mount();
        for (segment, allocated) in self.pool.segment_files() {
            if segment >= newest {
                continue;
            }
            let live = self
                .pool
                .checkpointed_segment(segment)?
                .map_or(0, |row| row.live);
            if live == 0 || allocated > live + live / 2 + COMPACT_FROM {
                self.queue.insert(segment, Dead::Anywhere);
            }
        }
        Ok(())
    }

    fn give_back(&mut self, segment: SegmentNo, dead: Dead) -> Result<()> {
        let open = self.pool.open_segment();
        let row = self.pool.checkpointed_segment(segment)?;
        let is_open = open.is_some_and(|(open, _)| open == segment);
        let empty = row.is_none_or(|row| row.live == 0);
        if !is_open && empty && self.pool.segment_is_dead(segment)? {
            self.pool.remove_segment(segment);
            return Ok(());
        }
        let end = match open {
            // Behind the end of the open segment the next extent may be on its way.
            Some((open, end)) if open == segment => end / BLOCK as u32 * BLOCK as u32,
            _ => row.map_or(0, |row| row.end).next_multiple_of(BLOCK as u32),
        };
        for range in dead.ranges() {
            self.punch(segment, range.start..range.end.min(end), end)?;
        }
        self.suspects.insert(segment);
        Ok(())
    }

    /// Punches what is dead in `range`, widened to whole blocks.
    fn punch(&self, segment: SegmentNo, range: Range<u32>, end: u32) -> Result<()> {
        let block = BLOCK as u32;
        let window = range.start / block * block..range.end.next_multiple_of(block).min(end);
        let mut at = window.start;
        while at < window.end {
            let stop = window.end.min(at.saturating_add(8 * MAX_EXTENT as u32));
            let mut live = self.pool.live_ranges(segment, at..stop)?;
            live.push(stop..stop);
            let mut dead_from = at;
            for live in live {
                let from = dead_from.next_multiple_of(block);
                let to = live.start.min(stop) / block * block;
                if from < to {
                    self.pool.punch_segment(segment, from, to - from);
                }
                dead_from = dead_from.max(live.end);
            }
            at = stop;
        }
        Ok(())
    }

    /// Moves what is live in a closed segment elsewhere, if it takes much more space than that.
    fn compact(&self, segment: SegmentNo) -> Result<()> {
        let closed = self
            .pool
            .open_segment()
            .is_none_or(|(open, _)| open != segment);
        let Some(row) = self.pool.checkpointed_segment(segment)? else {
            return Ok(());
        };
        let allocated = self.pool.segment_allocated(segment);
        if !closed || allocated < COMPACT_FROM || allocated < COMPACT_FACTOR * row.live {
            return Ok(());
        }
        // Small extents take sectors of their own: moving them would save none of these.
        if allocated < COMPACT_FACTOR * self.footprint(segment)? {
            return Ok(());
        }
        let mut from = Key::reverse_at(segment, 0);
        loop {
            let rows = self.pool.scan(&from, &Key::reverse_end(segment), ROWS)?;
            let Some((last, _)) = rows.last() else {
                return Ok(());
            };
            let (_, at, ino, file_offset) = last.reverse_parts()?;
            from = Key::reverse(segment, at, ino, file_offset.saturating_add(1));
            for (key, value) in &rows {
                let (_, at, ino, file_offset) = key.reverse_parts()?;
                self.move_extent(segment, at, ino, file_offset, ReverseRow::decode(value)?)?;
            }
        }
    }

    /// Bytes that the live extents of a segment would take elsewhere, headers included.
    fn footprint(&self, segment: SegmentNo) -> Result<u64> {
        let algorithm = self.pool.algorithm();
        let (mut from, mut bytes) = (Key::reverse_at(segment, 0), 0);
        loop {
            let rows = self.pool.scan(&from, &Key::reverse_end(segment), ROWS)?;
            let Some((last, _)) = rows.last() else {
                return Ok(bytes);
            };
            let (_, at, ino, file_offset) = last.reverse_parts()?;
            from = Key::reverse(segment, at, ino, file_offset.saturating_add(1));
            for (_, value) in &rows {
                let stored = ReverseRow::decode(value)?.stored as usize;
                let len = ExtentHeader::len_for(algorithm, stored) + stored;
                bytes += len.next_multiple_of(SECTOR) as u64;
            }
        }
    }

    fn move_extent(
        &self,
        segment: SegmentNo,
        at: u32,
        ino: Ino,
        file_offset: u64,
        reverse: ReverseRow,
    ) -> Result<()> {
        self.pool.begin(Intent::Grow)?;
        let _inode = self.pool.lock_exclusive(ino);
        let Some(value) = self.pool.get(&Key::extent(ino, file_offset))? else {
            return Ok(());
        };
        let old = ExtentRow::decode(&value, self.pool.algorithm().width())?;
        // It may have been overwritten or cut since the row was read.
        if (old.segment, old.offset, old.stored) != (segment, at, reverse.stored) {
            return Ok(());
        }
        let mut data = vec![0; old.stored as usize];
        let whole = ExtentRow {
            len: old.stored,
            ..old.clone()
        };
        self.pool.load(ino, file_offset, &whole, 0, &mut data)?;
        let mut new = self.pool.store(ino, file_offset, &data, Room::Free)?;
        new.len = old.len;
        let mut txn = Txn::new();
        txn.unlink_extent(ino, file_offset, &old);
        txn.link_extent(ino, file_offset, &new);
        self.pool.commit(txn)?;
        Ok(())
    }
}
