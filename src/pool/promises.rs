//! Promises of space: fallocate(2) says that later writes to a range will not fail for want of it.
//!
//! A store that never overwrites has no place that belongs to these bytes. So the promise is kept
//! in the accounts: what is promised is not there for anybody else. A row for each range of a file
//! that has no data yet and was promised space keeps it over a remount; the sums of these rows, for
//! each file and in all, are in memory. The first write to a block uses up its promise. Writing
//! over it again takes the place of data, see [`Room::Replacing`](super::Room::Replacing).
//!
//! Invariant: promised ranges of a file overlap neither one another nor its extents.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};

use tracing_mutex::parkinglot::Mutex;

use super::commit::Pool;
use super::error::{PoolError, Result};
use crate::format::{BLOCK_U64, Ino, Key, PromiseRow, Table};
use crate::index::Txn;

/// Rows fetched at once.
const BATCH: usize = 1024;
/// What a block may take besides its own bytes, if it is written alone: the rest of the sector that
/// its header begins, and its rows in index pages that are half full.
const OVERHEAD: u64 = 768;

/// Bytes to keep for so many promised ones.
pub(super) const fn cost_of(promised: u64) -> u64 {
    promised.saturating_add(promised / BLOCK_U64 * OVERHEAD)
}

/// What is promised.
#[derive(Debug, Default)]
pub(super) struct Promises {
    files: Mutex<HashMap<Ino, u64>>,
    /// Promised to all files, and claimed for promises that are being made, in bytes.
    total: AtomicU64,
    /// One claim is looked at after the other.
    claiming: Mutex<()>,
}

impl Promises {
    /// Adds to what is promised to files.
    pub(super) fn add(&self, changes: &[(Ino, i64)]) {
        if changes.is_empty() {
            return;
        }
        let mut files = self.files.lock();
        for (ino, change) in changes {
            let promised = files.entry(*ino).or_default();
            *promised = promised.saturating_add_signed(*change);
        }
        for (ino, _) in changes {
            if files.get(ino) == Some(&0) {
                files.remove(ino);
            }
        }
        let changes = changes.iter().map(|(_, change)| *change);
        let change = changes.fold(0_i64, i64::wrapping_add);
        // Wraps back: what is added was claimed, what is taken away was added.
        self.total
            .fetch_add(change.cast_unsigned(), Ordering::AcqRel);
    }

    fn of(&self, ino: Ino) -> u64 {
        self.files.lock().get(&ino).copied().unwrap_or(0)
    }

    /// Bytes that nobody else may use.
    pub(super) fn cost(&self) -> u64 {
        cost_of(self.total.load(Ordering::Acquire))
    }
}

/// Space that is held while promises of it are being made.
#[derive(Debug)]
pub struct Claim<'p> {
    promises: &'p Promises,
    bytes: u64,
}

impl Drop for Claim<'_> {
    fn drop(&mut self) {
        self.promises.total.fetch_sub(self.bytes, Ordering::AcqRel);
    }
}

impl Pool {
    /// Takes in what is promised when the pool is opened.
    pub(super) fn load_promises(&self) -> Result<()> {
        let mut from = Key::table_start(Table::Promise);
        loop {
            let rows = self.scan(&from, &Key::table_end(Table::Promise), BATCH)?;
            let Some((last, _)) = rows.last() else {
                return Ok(());
            };
            let (ino, offset) = last.promise_parts()?;
            from = Key::promise(ino, offset.saturating_add(1));
            let mut promised = Vec::with_capacity(rows.len());
            for (key, value) in &rows {
                let len = PromiseRow::decode(value)?.len;
                promised.push((key.promise_parts()?.0, len.cast_signed()));
            }
            self.promises.add(&promised);
        }
    }

    /// Bytes that are promised to a file.
    pub fn promised_to(&self, ino: Ino) -> u64 {
        self.promises.of(ino)
    }

    /// Holds space for promises of `bytes` until they are made.
    ///
    /// # Errors
    /// [`PoolError::NoSpace`] if there is not that much; [`PoolError::Failed`].
    pub fn claim(&self, bytes: u64) -> Result<Claim<'_>> {
        let _one_by_one = self.promises.claiming.lock();
        let lacks = || Ok::<_, PoolError>(cost_of(bytes) > self.space()?.available);
        if lacks()? {
            // A mirror that others have filled up goes, and then there may be room.
            let largest = crate::format::MAX_EXTENT as u64;
            self.find_room(cost_of(bytes).min(largest))?;
            if lacks()? {
                return Err(PoolError::NoSpace {
                    mirror: "the smallest mirror".to_owned(),
                });
            }
        }
        self.promises.total.fetch_add(bytes, Ordering::AcqRel);
        // Whoever may write without looking may do so no more.
        self.headroom.store(0, Ordering::Relaxed);
        Ok(Claim {
            promises: &self.promises,
            bytes,
        })
    }

    /// Promised ranges of a file that overlap `range`, ascending, at most `limit`; the first may
    /// begin before it.
    ///
    /// # Errors
    /// As [`Pool::get`].
    pub fn promised(&self, ino: Ino, range: Range<u64>, limit: usize) -> Result<Vec<Range<u64>>> {
        let mut found = Vec::new();
        if range.start >= range.end || self.promises.of(ino) == 0 {
            return Ok(found);
        }
        let decode = |key: &Key, value: &[u8]| -> Result<Range<u64>> {
            let (_, start) = key.promise_parts()?;
            let len = PromiseRow::decode(value)?.len;
            Ok(start..start.saturating_add(len))
        };
        let at = Key::promise(ino, range.start);
        for (key, value) in self.index.scan_back(&Key::promise(ino, 0), &at, 1)? {
            let before = decode(&key, &value)?;
            if before.end > range.start {
                found.push(before);
            }
        }
        let to = match range.end {
            u64::MAX => Key::promise_end(ino),
            end => Key::promise(ino, end),
        };
        let limit = limit.saturating_sub(found.len());
        for (key, value) in self.index.scan(&at, &to, limit)? {
            found.push(decode(&key, &value)?);
        }
        Ok(found)
    }

    /// Takes back what was promised to a file for these ranges, which are whole blocks, ascend and
    /// do not overlap. Looks at `limit` rows at most; false if there are more.
    ///
    /// # Errors
    /// As [`Pool::get`].
    pub fn unpromise(
        &self,
        txn: &mut Txn,
        ino: Ino,
        ranges: &[Range<u64>],
        limit: usize,
    ) -> Result<bool> {
        let (Some(first), Some(last)) = (ranges.first(), ranges.last()) else {
            return Ok(true);
        };
        let rows = self.promised(ino, first.start..last.end, limit.saturating_add(1))?;
        let done = rows.len() <= limit;
        for row in rows.into_iter().take(limit) {
            let mut kept = Vec::new();
            let mut at = row.start;
            for range in ranges {
                if range.start.max(at) >= range.end.min(row.end) {
                    continue;
                }
                kept.push(at..range.start.max(at));
                at = range.end.min(row.end);
            }
            kept.push(at..row.end);
            kept.retain(|kept| !kept.is_empty());
            if kept.first() == Some(&row) {
                continue;
            }
            txn.unpromise(ino, row.start, row.end);
            for kept in kept {
                txn.promise(ino, kept.start, kept.end);
            }
        }
        Ok(done)
    }

    /// Whole blocks of a file from `range` on that have neither data nor a promise, at most `limit`
    /// runs of them, and up to where they are all.
    ///
    /// # Errors
    /// As [`Pool::get`].
    pub fn unpromised(
        &self,
        ino: Ino,
        range: Range<u64>,
        limit: usize,
    ) -> Result<(Vec<Range<u64>>, u64)> {
        let extents = self.extents_up_to(ino, range.start, range.end, limit)?;
        let promised = self.promised(ino, range.clone(), limit)?;
        // Beyond the last row of a full batch nothing is known.
        let mut known = range.end;
        if extents.len() == limit
            && let Some((start, row)) = extents.last()
        {
            known = known.min(row.block_end(*start));
        }
        if promised.len() == limit
            && let Some(last) = promised.last()
        {
            known = known.min(last.end);
        }
        let data = extents.iter().map(|(at, row)| *at..row.block_end(*at));
        let mut taken: Vec<_> = data.chain(promised).collect();
        taken.sort_unstable_by_key(|taken| taken.start);
        let mut free = Vec::new();
        let mut at = range.start;
        for taken in taken {
            if at < taken.start.min(known) {
                free.push(at..taken.start.min(known));
            }
            at = at.max(taken.end);
        }
        if at < known {
            free.push(at..known);
        }
        Ok((free, known))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_claimed_is_given_back_and_what_was_promised_stays() {
        let promises = Promises::default();
        promises.total.fetch_add(8192, Ordering::AcqRel);
        let claim = Claim {
            promises: &promises,
            bytes: 8192,
        };
        promises.add(&[(Ino(5), 8192)]);
        drop(claim);
        assert_eq!(promises.cost(), cost_of(8192));
        promises.add(&[(Ino(5), -8192), (Ino(5), 4096)]);
        assert_eq!(
            (promises.of(Ino(5)), promises.cost()),
            (4096, cost_of(4096))
        );
        promises.add(&[(Ino(5), -4096)]);
        assert!(promises.files.lock().is_empty());
        assert_eq!(promises.cost(), 0);
    }
}
