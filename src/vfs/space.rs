//! Size and space of files: truncation, holes, preallocation, and finding data and holes.

use std::ops::Range;
use std::slice::from_ref;

use crate::format::{BLOCK_U64, Ino, InodeRow};
use crate::index::Txn;
use crate::pool::{Claim, Intent, Room, SpaceWait};

use super::change::Change;
use super::control::is_control;
use super::error::{Result, VfsError};
use super::file::{Patch, block_start, check_end};
use super::filesystem::Vfs;
use super::orphan::CHUNK_ROWS;
use super::types::Whence;

/// Rows that a walk along a file fetches at once.
const BATCH: usize = 64;

/// What was done of a long range before its last transaction.
enum Front {
    /// The first rows are cut, there are more.
    Cut,
    /// Nothing: it has few enough rows for one transaction.
    Few,
}

impl Vfs {
    /// Sets the size in `row` and drops what lies beyond, up to a limit: true if there is more,
    /// which [`Vfs::drain`] does after the commit. Nothing is stored, so that it works on a full
    /// filesystem. The caller holds the stripe.
    pub(super) fn resize(
        &self,
        txn: &mut Txn,
        ino: Ino,
        row: &mut InodeRow,
        size: u64,
    ) -> Result<bool> {
        let shorter = size < row.size;
        row.size = size;
        if !shorter {
            return Ok(false);
        }
        let mut from = size.next_multiple_of(BLOCK_U64);
        if size < from
            && let Some((offset, extent)) = self
                .pool
                .extents(ino, block_start(size), from)?
                .into_iter()
                .next()
            && offset + u64::from(extent.len) > size
        {
            // The row keeps its blocks up to the new end, and supplies only the bytes before it:
            // should the file grow again, the rest of the block reads as zeros.
            let blocks = ((from - offset) / BLOCK_U64) as usize;
            let mut kept = extent.slice(0, blocks, self.pool.algorithm().width());
            kept.len = (size - offset) as u32;
            txn.unlink_extent(ino, offset, &extent);
            txn.link_extent(ino, offset, &kept);
            row.allocated = row
                .allocated
                .saturating_sub(u64::from(extent.stored - kept.stored));
            from = extent.block_end(offset);
        }
        let cut = self.pool.cut(txn, ino, from, u64::MAX, CHUNK_ROWS)?;
        row.allocated = row.allocated.saturating_sub(cut.freed);
        let behind = size.next_multiple_of(BLOCK_U64)..u64::MAX;
        let taken_back = self
            .pool
            .unpromise(txn, ino, from_ref(&behind), CHUNK_ROWS)?;
        let done = cut.done && taken_back;
        if !done {
            self.start_draining(txn, ino);
        }
        Ok(!done)
    }

    /// Manipulates file space. `mode` is 0 or FALLOC_FL_KEEP_SIZE to allocate,
    /// FALLOC_FL_PUNCH_HOLE with FALLOC_FL_KEEP_SIZE, or FALLOC_FL_ZERO_RANGE with or without it.
    ///
    /// Allocating and zeroing promise space to the blocks of the range that have no data, see
    /// [`crate::pool::Pool::claim`]: writing to them will not fail for want of it. Punching takes
    /// the promise back.
    ///
    /// # Errors
    /// As fallocate(2).
    pub fn fallocate(&self, ino: Ino, offset: u64, len: u64, mode: i32) -> Result<()> {
        if is_control(ino) {
            return Err(VfsError::NotPermitted);
        }
        if len == 0 {
            return Err(VfsError::Invalid);
        }
        const KEEP: i32 = libc::FALLOC_FL_KEEP_SIZE;
        const PUNCH: i32 = libc::FALLOC_FL_PUNCH_HOLE;
        const ZERO: i32 = libc::FALLOC_FL_ZERO_RANGE;
        let (punching, zeroing) = (mode & PUNCH != 0, mode & ZERO != 0);
        let keep_size = mode & KEEP != 0;
        if !matches!(mode & !KEEP, 0 | ZERO) && mode != PUNCH | KEEP {
            return Err(VfsError::NotSupported);
        }
        self.check_regular(ino)?;
        let end = check_end(offset, len)?;
        if punching {
            self.zero(ino, offset, end, keep_size, true)?;
        } else {
            self.allocate(ino, offset..end, keep_size, zeroing)?;
        }
        self.settle(false)
    }

    /// Promises space to the range, after it was made to read as zeros if that is wanted.
    fn allocate(&self, ino: Ino, range: Range<u64>, keep_size: bool, zeroing: bool) -> Result<()> {
        let (offset, end) = (range.start, range.end);
        let blocks = block_start(offset)..end.next_multiple_of(BLOCK_U64);
        let without_data = || match zeroing {
            true => Ok(blocks.end - blocks.start),
            false => self.missing(ino, blocks.clone()),
        };
        let _claim = self.claim(&without_data)?;
        if zeroing {
            self.zero(ino, offset, end, keep_size, false)?;
        }
        self.promise(ino, blocks.clone())?;
        if zeroing {
            return Ok(());
        }
        self.grow(ino, end, keep_size)
    }

    /// Holds so much space, if need be by waiting for what comes back.
    fn claim(&self, bytes: &dyn Fn() -> Result<u64>) -> Result<Option<Claim<'_>>> {
        let mut wait = SpaceWait::default();
        loop {
            let bytes = bytes()?;
            if bytes == 0 {
                return Ok(None);
            }
            match self.pool.claim(bytes).map_err(VfsError::from) {
                Err(error) if error.is_no_space() => {
                    if !self.pool.wait_for_space(&mut wait, bytes)? {
                        return Err(error);
                    }
                }
                claim => return claim.map(Some),
            }
        }
    }

    /// Promises space to what has none of the range, which is whole blocks.
    fn promise(&self, ino: Ino, range: Range<u64>) -> Result<()> {
        let mut at = range.start;
        while at < range.end {
            let _stripe = self.lock_content(ino, Intent::Store)?;
            self.regular(ino)?;
            let (mut free, known) = self.pool.unpromised(ino, at..range.end, CHUNK_ROWS)?;
            let mut txn = Txn::new();
            // A file that is allocated piece by piece has one row and not one for each.
            if let Some(first) = free.first_mut()
                && let Some(block) = first.start.checked_sub(BLOCK_U64)
                && let Some(before) = self.pool.promised(ino, block..first.start, 1)?.pop()
            {
                txn.unpromise(ino, before.start, before.end);
                first.start = before.start;
            }
            for free in free {
                txn.promise(ino, free.start, free.end);
            }
            self.pool.commit(txn)?;
            at = known;
        }
        Ok(())
    }

    /// As fallocate(2) wants it: ENODEV for what is neither a regular file nor a directory.
    fn check_regular(&self, ino: Ino) -> Result<()> {
        match self.regular(ino) {
            Err(VfsError::Invalid) => Err(VfsError::NotRegular),
            other => other.map(|_| ()),
        }
    }

    /// The last part of allocating: size and times.
    fn grow(&self, ino: Ino, end: u64, keep_size: bool) -> Result<()> {
        let _stripe = self.lock_content(ino, Intent::Shrink)?;
        let mut change = Change::new(self);
        let (now, row) = (change.now, change.row(ino)?);
        if !keep_size && end > row.size {
            row.size = end;
            row.mtime = now;
        }
        row.ctime = now;
        change.commit()
    }

    /// Bytes of the range that have neither data nor a promise.
    fn missing(&self, ino: Ino, range: Range<u64>) -> Result<u64> {
        let (mut at, mut missing) = (range.start, 0);
        while at < range.end {
            let (free, known) = self.pool.unpromised(ino, at..range.end, CHUNK_ROWS)?;
            missing += free.iter().map(|free| free.end - free.start).sum::<u64>();
            at = known;
        }
        Ok(missing)
    }

    /// Makes the range read as zeros: holes for its whole blocks, new blocks at ragged edges. More
    /// than [`CHUNK_ROWS`] extents go front to back in several transactions, the edges, the size
    /// and the times in the last.
    fn zero(&self, ino: Ino, offset: u64, end: u64, keep_size: bool, punching: bool) -> Result<()> {
        let aligned = offset.is_multiple_of(BLOCK_U64) && end.is_multiple_of(BLOCK_U64);
        let intent = if aligned {
            Intent::Shrink
        } else {
            Intent::Store
        };
        loop {
            self.settle(false)?;
            let _stripe = self.lock_content(ino, intent)?;
            let mut change = Change::new(self);
            let now = change.now;
            let mut row = change.row(ino)?.clone();
            // The last block counts as a whole one if nothing of the file is behind the range.
            let zero_end = if end >= row.size {
                row.size.next_multiple_of(BLOCK_U64)
            } else {
                end
            };
            let mut front = self.zero_front(&mut change.txn, ino, &mut row, (offset, zero_end))?;
            if punching && matches!(front, Front::Few) {
                let last = block_start(end).max(block_start(zero_end));
                let whole = offset.next_multiple_of(BLOCK_U64)..last;
                if !self
                    .pool
                    .unpromise(&mut change.txn, ino, from_ref(&whole), CHUNK_ROWS)?
                {
                    front = Front::Cut;
                }
            }
            let patch = match front {
                Front::Cut => None,
                Front::Few => Some(self.zero_patch(ino, offset, zero_end)?),
            };
            if let Some(patch) = &patch {
                self.apply_patch(&mut change.txn, ino, &mut row, patch)?;
                if !keep_size {
                    row.size = row.size.max(end);
                }
                (row.mtime, row.ctime) = (now, now);
            }
            *change.row(ino)? = row;
            change.commit()?;
            if let Some(patch) = patch {
                patch.keep();
                return Ok(());
            }
        }
    }

    /// Cuts the first rows of a range that has too many for one transaction.
    fn zero_front(
        &self,
        txn: &mut Txn,
        ino: Ino,
        row: &mut InodeRow,
        (offset, end): (u64, u64),
    ) -> Result<Front> {
        let (first, last) = (offset.next_multiple_of(BLOCK_U64), block_start(end));
        if last.saturating_sub(first) / BLOCK_U64 <= CHUNK_ROWS as u64 {
            return Ok(Front::Few);
        }
        let mut front = Txn::new();
        let cut = self.pool.cut(&mut front, ino, first, last, CHUNK_ROWS)?;
        if cut.done {
            // They are cut together with the edges, since one row may hold an edge and more.
            return Ok(Front::Few);
        }
        *txn = front;
        row.allocated = row.allocated.saturating_sub(cut.freed);
        Ok(Front::Cut)
    }

    /// The patch that makes the range read as zeros.
    fn zero_patch(&self, ino: Ino, offset: u64, end: u64) -> Result<Patch<'_>> {
        let (first, last) = (offset.next_multiple_of(BLOCK_U64), block_start(end));
        let mut patch = Patch::hole(&self.pool, first, last);
        let head = block_start(offset);
        if end <= offset {
            patch.end = patch.start;
            return Ok(patch);
        }
        if head < first {
            let edge = (offset - head, (end - head).min(BLOCK_U64));
            if self.zero_block(ino, head, edge, &mut patch)? {
                patch.start = head;
            }
        }
        if last < end && last >= first && self.zero_block(ino, last, (0, end - last), &mut patch)? {
            patch.end = last + BLOCK_U64;
        }
        // Both edges in one block, which then was the head.
        patch.end = patch.end.max(patch.start.max(first));
        Ok(patch)
    }

    /// Adds a block whose bytes `from..to` are zeroed to the patch, unless that makes it a hole.
    /// False if it has no such bytes and need not change.
    fn zero_block<'p>(
        &'p self,
        ino: Ino,
        block: u64,
        (from, to): (u64, u64),
        patch: &mut Patch<'p>,
    ) -> Result<bool> {
        let len = self.data_end(ino, block)? - block;
        if len <= from {
            return Ok(false);
        }
        // All are at most the block size.
        let (from, to) = (from as usize, to.min(len) as usize);
        let mut content = vec![0; len as usize];
        self.fill(ino, block, &mut content)?;
        content[from..to].fill(0);
        let used = content
            .iter()
            .rposition(|byte| *byte != 0)
            .map_or(0, |at| at + 1);
        if used > 0 {
            let room = Room::Replacing { promised: 0 };
            patch.absorb(self.store(ino, block, &content[..used], room)?);
        }
        Ok(true)
    }

    /// Where data, or a hole, begins at or after `offset`. A hole is implied at the end.
    ///
    /// # Errors
    /// [`VfsError::NoSuchAddress`] beyond the end, or if there is no more data.
    pub fn lseek(&self, ino: Ino, offset: u64, whence: Whence) -> Result<u64> {
        if is_control(ino) {
            return self.control_seek(ino, offset, whence);
        }
        let _stripe = self.pool.lock_shared(ino);
        let size = self.regular(ino)?.size;
        if offset >= size {
            return Err(VfsError::NoSuchAddress);
        }
        let mut at = offset;
        loop {
            let rows = self.pool.extents_up_to(ino, at, u64::MAX, BATCH)?;
            for (start, row) in &rows {
                match whence {
                    Whence::Data if *start >= size => return Err(VfsError::NoSuchAddress),
                    Whence::Data => return Ok(at.max(*start)),
                    Whence::Hole if *start > at => return Ok(at.min(size)),
                    // Whole blocks: a row that ends inside its last block is no hole.
                    Whence::Hole => at = row.block_end(*start),
                }
            }
            if rows.len() < BATCH {
                return match whence {
                    Whence::Data => Err(VfsError::NoSuchAddress),
                    Whence::Hole => Ok(at.min(size)),
                };
            }
        }
    }
}
