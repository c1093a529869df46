//! Checking what is stored in long stretches, on every mirror and from the medium: what a scrub is
//! made of.
//!
//! A stretch is read from all mirrors at once and looked at as a whole. Only rows that are not as
//! they should be are verified one by one, as any other verification does it
//! ([`Pool::verify_owner`]), and repaired like what a read finds; so what is bad, and with what it
//! is rewritten, is decided in one place. A row that was freed meanwhile turns out to be that when
//! it is verified.

use std::ops::Range;

use rayon::prelude::*;

use super::commit::Pool;
use super::error::Result;
use super::scrub::Tally;
use super::verify::Owned;
use crate::backing::FileName;
use crate::format::{
    Algorithm, BLOCK, BLOCK_U64, ExtentHeader, ExtentRow, Key, MAX_EXTENT, ReverseRow, SegmentNo,
};
use crate::mirrors::Scratch;

/// Rows looked at in one stretch at most.
const ROWS: usize = 1024;
/// Repairs done in one go.
const REPAIRS: usize = 2048;

/// A place in a segment up to which it was checked.
#[derive(Debug)]
pub struct SegmentCursor {
    segment: SegmentNo,
    /// The next row.
    from: Key,
    /// Everything before this was read.
    covered: u32,
    /// The mirrors differed somewhere, be it where nothing is live.
    differed: bool,
    /// The stretch that comes next, if it was looked for and read ahead.
    next: Option<Stretch>,
}

impl SegmentCursor {
    /// At this offset of the segment.
    pub fn new(segment: SegmentNo, at: u32) -> SegmentCursor {
        SegmentCursor {
            segment,
            from: Key::reverse_at(segment, at),
            covered: at,
            differed: false,
            next: None,
        }
    }

    /// The segment, and an offset before which every row was checked.
    pub fn place(&self) -> (SegmentNo, u32) {
        let row = self.from.reverse_parts().map_or(0, |(_, at, ..)| at);
        (self.segment, row)
    }
}

/// A stretch that was checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Checked {
    /// Live bytes in it.
    pub live: u64,
    /// Bytes read from each mirror.
    pub read: u64,
    /// What was bad.
    pub tally: Tally,
    /// Whether the segment ends there.
    pub ended: bool,
}

/// Rows that are checked together, and the range that they need, which goes on from the stretch
/// before it.
#[derive(Debug)]
struct Stretch {
    rows: Vec<Row>,
    begin: u32,
    stop: u32,
}

impl Stretch {
    fn is_empty(&self) -> bool {
        self.stop <= self.begin
    }

    /// What to read for it: whole blocks.
    fn range(&self) -> Range<u64> {
        u64::from(self.begin)..u64::from(self.stop).next_multiple_of(BLOCK_U64)
    }
}

/// An owner row and where it begins and ends, its extent's header included.
#[derive(Debug)]
struct Row {
    key: Key,
    value: Vec<u8>,
    start: u32,
    at: u32,
    end: u32,
}

fn row_of((key, value): (Key, Vec<u8>), algorithm: Algorithm) -> Result<Row> {
    let (_, at, ..) = key.reverse_parts()?;
    let row = ReverseRow::decode(&value)?;
    let reach = (MAX_EXTENT + ExtentHeader::len_for(algorithm, MAX_EXTENT) + BLOCK) as u32;
    // A header out of reach cannot be this row's: looking closer will tell.
    let near = row.header <= at && at - row.header <= reach;
    Ok(Row {
        start: if near { row.header } else { at },
        at,
        end: at.saturating_add(row.stored),
        key,
        value,
    })
}

impl Pool {
    /// Checks the superblocks on every mirror.
    pub fn check_superblocks(&self) -> Tally {
        let watched = FileName::Superblock;
        let work = || self.mirrors.verify_superblocks();
        self.incidents.watching(watched, work).1
    }

    /// Checks the page-sum table on every mirror.
    pub fn check_sums(&self) -> Tally {
        let work = || self.verify_sums();
        self.incidents.watching(FileName::Sums, work).1
    }

    /// Checks index pages `from..to` on every mirror.
    pub fn check_index(&self, from: u32, to: u32) -> Tally {
        let work = || self.verify_index(from, to);
        self.incidents.watching(FileName::Index, work).1
    }

    /// The first segment from `from` on, and before `end`, in which something is live, and how many
    /// bytes are live in it and those after it.
    pub fn live_segments(&self, from: SegmentNo, end: SegmentNo) -> (Option<SegmentNo>, u64) {
        self.segments.with_accounts(|accounts| {
            let mut live = accounts
                .range(from..end)
                .filter(|(_, row)| row.live > 0)
                .peekable();
            let first = live.peek().map(|(segment, _)| *segment);
            (first, live.map(|(_, row)| row.live).sum())
        })
    }

    /// Number that the next new segment gets.
    pub fn next_segment(&self) -> SegmentNo {
        self.segments.next_segment()
    }

    /// Checks the next stretch of a segment, of about `budget` bytes, on every mirror; bad copies
    /// are repaired before it returns. At the end of a closed segment, what lies between live data
    /// is made the same on all mirrors if it was not.
    ///
    /// # Errors
    /// As [`Pool::get`].
    pub fn check_segment(
        &self,
        cursor: &mut SegmentCursor,
        budget: u32,
        scratch: &mut Scratch,
    ) -> Result<Checked> {
        let segment = cursor.segment;
        let open = self.open_segment().is_some_and(|(open, _)| open == segment);
        let stretch = match cursor.next.take() {
            Some(stretch) => stretch,
            None => self.stretch(segment, &cursor.from, cursor.covered, budget, open)?,
        };
        let ended = stretch.rows.is_empty() && stretch.stop <= cursor.covered;
        cursor.covered = cursor.covered.max(stretch.stop);
        if let Some(last) = stretch.rows.last() {
            let (_, at, ino, offset) = last.key.reverse_parts()?;
            cursor.from = Key::reverse(segment, at, ino, offset.saturating_add(1));
        }
        let mut tally = Tally::default();
        if !ended && !stretch.is_empty() {
            // What is found wrong with it now is found again when its turn comes.
            let next = self.stretch(segment, &cursor.from, cursor.covered, budget, open);
            cursor.next = next.ok().filter(|next| !next.is_empty());
            let ahead = cursor.next.as_ref().map(Stretch::range);
            let (alike, suspects) = self.glance(segment, &stretch, ahead, scratch);
            cursor.differed |= !alike;
            if !suspects.is_empty() {
                let look = || self.look_closer(segment, &suspects);
                let (looked, found) = self.incidents.watching(FileName::Segment(segment), look);
                tally = found;
                tally.unrepairable += looked?;
            } else {
                for row in &stretch.rows {
                    self.segment_is_good(segment, row.at..row.end);
                }
            }
        }
        if ended && cursor.differed && !open && !self.read_only() {
            self.level_gaps(segment)?;
        }
        let live = stretch.rows.iter().map(|row| u64::from(row.end - row.at));
        Ok(Checked {
            live: live.sum(),
            read: u64::from(stretch.stop.saturating_sub(stretch.begin)),
            tally,
            ended,
        })
    }

    /// The stretch of a segment that goes on from a row and an offset.
    fn stretch(
        &self,
        segment: SegmentNo,
        from: &Key,
        covered: u32,
        budget: u32,
        open: bool,
    ) -> Result<Stretch> {
        let limit = covered.saturating_add(budget.max(BLOCK as u32));
        let mut rows: Vec<Row> = Vec::new();
        let (mut stop, mut hole) = (covered, false);
        for found in self.scan(from, &Key::reverse_end(segment), ROWS)? {
            let row = row_of(found, self.algorithm())?;
            if row.end > limit && (!rows.is_empty() || row.start > limit) {
                hole = rows.is_empty();
                break;
            }
            stop = stop.max(row.end);
            rows.push(row);
        }
        if hole {
            // Nothing is live up to here: a stretch without rows.
            stop = limit;
        } else if rows.is_empty() && !open {
            let row = self.checkpointed_segment(segment)?;
            stop = stop.max(row.map_or(0, |row| row.end).min(limit));
        }
        let begin = rows.iter().map(|row| row.start).min();
        let begin = begin.unwrap_or(stop).min(covered) / BLOCK as u32 * BLOCK as u32;
        Ok(Stretch { rows, begin, stop })
    }

    /// Reads a stretch from all media; whether these are alike all over, and the rows that are not
    /// right on all of them.
    fn glance<'a>(
        &self,
        segment: SegmentNo,
        stretch: &'a Stretch,
        ahead: Option<Range<u64>>,
        scratch: &mut Scratch,
    ) -> (bool, Vec<&'a Row>) {
        let (start, rows) = (u64::from(stretch.begin), &stretch.rows);
        let want = (stretch.stop - stretch.begin) as usize;
        let (file, range) = (FileName::Segment(segment), stretch.range());
        self.mirrors.survey(file, range, ahead, scratch, |copies| {
            let copies: Vec<&[u8]> = copies
                .iter()
                .map(|copy| &copy[..copy.len().min(want)])
                .collect();
            let alike = copies.windows(2).all(|pair| pair[0] == pair[1]);
            let suspect = |row: &&Row| !self.is_sound(row, start, &copies, alike);
            let suspects = match self.options.parallel {
                true => rows.par_iter().filter(suspect).collect(),
                false => rows.iter().filter(suspect).collect(),
            };
            (alike, suspects)
        })
    }

    fn is_sound(&self, row: &Row, start: u64, copies: &[&[u8]], alike: bool) -> bool {
        let current = || -> Result<Option<ExtentRow>> {
            let (segment, at, ino, offset) = row.key.reverse_parts()?;
            let reverse = ReverseRow::decode(&row.value)?;
            let Some(value) = self.get(&Key::extent(ino, offset))? else {
                return Ok(None);
            };
            let current = ExtentRow::decode(&value, self.algorithm().width())?;
            let same = (
                current.segment,
                current.offset,
                current.stored,
                current.header,
            ) == (segment, at, reverse.stored, reverse.header);
            Ok(same.then_some(current))
        };
        current().is_ok_and(|current| {
            current.is_some_and(|current| self.segments.is_sound(&current, start, copies, alike))
        })
    }

    /// Verifies rows one by one and has what is bad repaired; returns how many rows contradict the
    /// files that they belong to.
    fn look_closer(&self, segment: SegmentNo, rows: &[&Row]) -> Result<u64> {
        self.forget_cached(segment);
        let (mut contradictions, mut seen) = (0, 0);
        for row in rows {
            // Files may share blocks, and pieces of an extent its header: what the one has had
            // repaired must not be found bad again by the other.
            if row.start < seen {
                self.finish_repairs();
            }
            seen = seen.max(row.end);
            if let Owned::Mismatch { ino, offset } = self.verify_owner(&row.key, &row.value)? {
                contradictions += 1;
                log::error!(
                    "inode {ino} at {offset}: the reverse table names it as owner of bytes that it \
                     does not have; run fsck.mendfs on the unmounted pool"
                );
            }
        }
        self.finish_repairs();
        Ok(contradictions)
    }

    /// Does all repairs that wait, and waits for those that somebody else is doing.
    fn finish_repairs(&self) {
        while self.repair_step(REPAIRS) > 0 {}
    }
}
