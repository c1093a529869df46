//! copy_file_range(2): whole blocks by reference, ragged edges by copying.
//!
//! A reference is one more owner of the same stored blocks; the reverse rows count them, so the
//! blocks live until the last owner goes. What is copied lies in one transaction, so one call
//! copies a bounded amount and is answered short if asked for more.

use crate::format::{BLOCK_U64, ExtentRow, Ino, InodeRow};
use crate::pool::{Intent, Room};

use super::change::Change;
use super::control::is_control;
use super::error::{Result, VfsError};
use super::file::{Patch, SIZE_MAX, block_start};
use super::filesystem::Vfs;
use super::orphan::CHUNK_ROWS;

/// Most bytes that one call copies by reference.
const REFERENCE_MAX: u64 = 64 << 20;
/// Most bytes that one call copies by reading and writing.
const BYTES_MAX: u64 = 4 << 20;

/// A range of one file to be copied to another.
#[derive(Debug, Clone, Copy)]
struct Span {
    from: Ino,
    from_offset: u64,
    to: Ino,
    to_offset: u64,
    len: u64,
}

impl Span {
    /// Where the byte at `to_offset` of the target comes from.
    const fn source(&self, to_offset: u64) -> u64 {
        to_offset - self.to_offset + self.from_offset
    }
}

impl Vfs {
    /// Copies up to `len` bytes and returns how many: 0 at the end of the source.
    ///
    /// # Errors
    /// As copy_file_range(2); [`VfsError::Invalid`] for overlapping ranges of one file.
    pub fn copy_range(
        &self,
        from: Ino,
        from_offset: u64,
        to: Ino,
        to_offset: u64,
        len: u64,
    ) -> Result<u64> {
        if is_control(from) || is_control(to) {
            return Err(VfsError::NotSupported);
        }
        let copied = self.copy_locked(from, from_offset, (to, to_offset), len)?;
        self.settle(false)?;
        Ok(copied)
    }

    fn copy_locked(
        &self,
        from: Ino,
        from_offset: u64,
        (to, to_offset): (Ino, u64),
        len: u64,
    ) -> Result<u64> {
        let _stripes = self.lock_content_pair(from, to, Intent::Grow)?;
        let (source, target) = (self.regular(from)?, self.regular(to)?);
        let room = SIZE_MAX.checked_sub(to_offset).filter(|room| *room > 0);
        let room = room.ok_or(VfsError::TooBig)?;
        let len = len.min(source.size.saturating_sub(from_offset)).min(room);
        if len == 0 {
            return Ok(0);
        }
        // No overflow: both ranges end at or below the largest size.
        if from == to && from_offset < to_offset + len && to_offset < from_offset + len {
            return Err(VfsError::Invalid);
        }
        let span = Span {
            from,
            from_offset,
            to,
            to_offset,
            len: len.min(REFERENCE_MAX),
        };
        let (patch, end) = self.copied(span, &source, &target)?;

        let mut change = Change::new(self);
        let (now, mut row) = (change.now, target);
        self.apply_patch(&mut change.txn, to, &mut row, &patch)?;
        row.size = row.size.max(end);
        (row.mtime, row.ctime) = (now, now);
        *change.row(to)? = row;
        change.commit()?;
        patch.keep();
        Ok(end - to_offset)
    }

    /// The patch of the target that makes it hold the copy, and where the copy ends.
    fn copied(&self, span: Span, source: &InodeRow, target: &InodeRow) -> Result<(Patch<'_>, u64)> {
        let end = span.to_offset + span.len;
        let first = span.to_offset.next_multiple_of(BLOCK_U64);
        let last = if span.source(end) == source.size && end >= target.size {
            // Neither file has a byte behind it: the last block is a whole one.
            end.next_multiple_of(BLOCK_U64)
        } else {
            block_start(end)
        };
        let aligned = span.from_offset % BLOCK_U64 == span.to_offset % BLOCK_U64;
        if !aligned || first >= last {
            let end = span.to_offset + span.len.min(BYTES_MAX);
            return Ok((self.copy_bytes(span, target, (span.to_offset, end))?, end));
        }
        let mut patch = self.references(span, first, last)?;
        let end = end.min(patch.end);
        if span.to_offset < first {
            let head = self.copy_bytes(span, target, (span.to_offset, first))?;
            patch.start = head.start;
            patch.absorb(head);
        }
        let whole = span.to_offset + span.len;
        if patch.end == last && last < whole {
            let tail = self.copy_bytes(span, target, (last, whole))?;
            patch.end = tail.end;
            patch.absorb(tail);
            return Ok((patch, whole));
        }
        Ok((patch, end))
    }

    /// Rows for blocks `first..last` of the target that refer to what the source has there; fewer
    /// blocks if that would be too many rows for a transaction.
    fn references(&self, span: Span, first: u64, last: u64) -> Result<Patch<'_>> {
        let (start, end) = (span.source(first), span.source(last));
        let rows = self
            .pool
            .extents_up_to(span.from, start, end, CHUNK_ROWS + 1)?;
        let replaced = self
            .pool
            .extents_up_to(span.to, first, last, CHUNK_ROWS + 1)?;
        let mut end = last;
        if let Some((start, _)) = rows.get(CHUNK_ROWS) {
            end = end.min(start - span.from_offset + span.to_offset);
        }
        if let Some((start, _)) = replaced.get(CHUNK_ROWS) {
            end = end.min(*start);
        }
        let width = self.pool.algorithm().width();
        let mut patch = Patch::hole(&self.pool, first, end);
        for (start, row) in rows {
            let from = start.max(span.source(first));
            let to = row.block_end(start).min(span.source(end));
            if let Some(part) = blocks(&row, start, (from, to), width) {
                patch.refer(from - span.from_offset + span.to_offset, part);
            }
        }
        Ok(patch)
    }

    /// Copies bytes `start..end` of the target by reading and storing them.
    fn copy_bytes(
        &self,
        span: Span,
        target: &InodeRow,
        (start, end): (u64, u64),
    ) -> Result<Patch<'_>> {
        // At most BYTES_MAX.
        let mut bytes = vec![0; (end - start) as usize];
        self.fill(span.from, span.source(start), &mut bytes)?;
        self.patch(span.to, target, start, &bytes, Room::Free)
    }
}

/// The part of a row for the file's blocks `from..to`, if it supplies any byte of them.
fn blocks(row: &ExtentRow, start: u64, (from, to): (u64, u64), width: usize) -> Option<ExtentRow> {
    let supplied = u64::from(row.len).div_ceil(BLOCK_U64);
    let (from, to) = (
        (from.saturating_sub(start)) / BLOCK_U64,
        to.saturating_sub(start) / BLOCK_U64,
    );
    let to = to.min(supplied);
    // An extent has few blocks.
    (from < to).then(|| row.slice(from as usize, to as usize, width))
}
