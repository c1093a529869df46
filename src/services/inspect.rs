//! Where damage was seen, there may be more: the neighbourhood is checked at once.
//!
//! A read that finds a bad block makes its whole segment suspect, on every mirror; damage found in
//! a segment makes the segments beside it suspect. So a single rotten block costs the reading of
//! three segments, and a mirror that is damaged all over is healed all over, although reads go to
//! one mirror only. Damage to the index has the whole index checked: it is small. What lies between
//! live data means nothing, but is made the same on all mirrors again, so that they can be compared
//! from outside.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crate::format::{Key, SegmentNo};
use crate::pool::{Pool, Result};

/// Rows of a segment checked in one step.
const ROWS: usize = 64;
/// Index pages checked in one step.
const PAGES: u32 = 256;
/// A segment is not checked again within this time, in seconds.
const AGAIN_AFTER: i64 = 60;

#[derive(Debug)]
struct Current {
    segment: SegmentNo,
    from: Key,
}

/// Checks what is suspect.
#[derive(Debug)]
pub struct Inspector {
    pool: Arc<Pool>,
    queue: BTreeSet<SegmentNo>,
    current: Option<Current>,
    /// When segments were last checked, in seconds.
    checked: BTreeMap<SegmentNo, i64>,
    /// Segments to check once they may be checked again.
    later: BTreeSet<SegmentNo>,
    /// Next index page to check, if the index is suspect.
    page: Option<u32>,
    index_checked: i64,
}

impl Inspector {
    /// A service for this pool.
    pub fn new(pool: Arc<Pool>) -> Inspector {
        Inspector {
            pool,
            queue: BTreeSet::new(),
            current: None,
            checked: BTreeMap::new(),
            later: BTreeSet::new(),
            page: None,
            index_checked: i64::MIN,
        }
    }

    /// Does a piece of work; returns whether there is more.
    ///
    /// # Errors
    /// [`crate::pool::PoolError`] if the index cannot be read.
    pub fn step(&mut self) -> Result<bool> {
        let now = self.pool.now().seconds;
        let (segments, index) = self.pool.take_suspects();
        let again = std::mem::take(&mut self.later);
        // The reads that told may have found all that is bad in their segment.
        let near = segments.into_iter().flat_map(|SegmentNo(number)| {
            [number.wrapping_sub(1), number, number.wrapping_add(1)].map(SegmentNo)
        });
        near.chain(again)
            .for_each(|segment| self.suspect(segment, now));
        if self.pool.take_suspect_journal() && !self.pool.read_only() {
            self.pool.checkpoint()?;
        }
        if index && self.page.is_none() && now >= self.index_checked.saturating_add(AGAIN_AFTER) {
            self.page = Some(0);
            self.index_checked = now;
        }
        if let Some(from) = self.page {
            if from == 0 {
                self.pool.verify_sums();
            }
            let end = self.pool.index_pages();
            let to = end.min(from.saturating_add(PAGES));
            self.pool.verify_index(from, to);
            self.page = (to < end).then_some(to);
            return Ok(true);
        }
        let Some(current) = self.current.take().or_else(|| self.next(now)) else {
            return Ok(false);
        };
        self.check(current)?;
        Ok(true)
    }

    /// Whether nothing waits to be checked.
    pub fn is_idle(&self) -> bool {
        self.queue.is_empty() && self.current.is_none() && self.page.is_none()
    }

    fn suspect(&mut self, segment: SegmentNo, now: i64) {
        let due = self
            .checked
            .get(&segment)
            .is_none_or(|at| now >= at.saturating_add(AGAIN_AFTER));
        let running = self
            .current
            .as_ref()
            .is_some_and(|current| current.segment == segment);
        if due && !running {
            self.queue.insert(segment);
        } else if !running {
            self.later.insert(segment);
        }
    }

    fn next(&mut self, now: i64) -> Option<Current> {
        let segment = self.queue.pop_first()?;
        self.checked
            .retain(|_, at| now < at.saturating_add(AGAIN_AFTER));
        self.checked.insert(segment, now);
        self.pool.forget_cached(segment);
        Some(Current {
            segment,
            from: Key::reverse_at(segment, 0),
        })
    }

    fn check(&mut self, mut current: Current) -> Result<()> {
        let end = Key::reverse_end(current.segment);
        let rows = self.pool.scan(&current.from, &end, ROWS)?;
        for (key, value) in &rows {
            // What it finds is told as an incident, which makes the neighbours suspect.
            self.pool.verify_owner(key, value)?;
        }
        match rows.last() {
            Some((last, _)) if rows.len() == ROWS => {
                let (segment, at, ino, offset) = last.reverse_parts()?;
                current.from = Key::reverse(segment, at, ino, offset.saturating_add(1));
                self.current = Some(current);
            }
            _ => {
                let open = self.pool.open_segment().map(|(open, _)| open);
                if open != Some(current.segment) && !self.pool.read_only() {
                    self.pool.level_gaps(current.segment)?;
                }
            }
        }
        Ok(())
    }
}
