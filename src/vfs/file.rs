//! File content: reading, writing, and the merging that blocks need.
//!
//! Rows cover whole blocks, so a write that begins or ends inside a block reads the rest of that
//! block, and stores the block anew elsewhere; what is stored is never changed in place. Bytes that
//! no row supplies read as zeros. Invariant: no row supplies a byte beyond the file's size, unless
//! the file is draining (see `orphan`); so a block at the end needs no merging with what is behind.

use std::sync::atomic::Ordering;

use crate::format::{BLOCK_U64, ExtentRow, Ino, InodeRow, MAX_EXTENT};
use crate::index::Txn;
use crate::pool::{Intent, Pool, Room, SpaceWait};

use super::change::Change;
use super::control::is_control;
use super::error::{Result, VfsError};
use super::filesystem::Vfs;

/// Largest size of a file, and largest offset: what fits an off_t.
pub(super) const SIZE_MAX: u64 = i64::MAX as u64;
/// Most bytes that one call writes; a longer write is answered short, as write(2) may.
const WRITE_MAX: usize = 4 << 20;

/// Start of the block that holds a byte.
pub(super) const fn block_start(offset: u64) -> u64 {
    offset - offset % BLOCK_U64
}

/// End of the range, which must not lie beyond the largest size.
pub(super) fn check_end(offset: u64, len: u64) -> Result<u64> {
    offset
        .checked_add(len)
        .filter(|end| *end <= SIZE_MAX)
        .ok_or(VfsError::TooBig)
}

/// New content of some whole blocks of a file. If it is dropped before [`Patch::keep`], because the
/// operation failed, the pool gets back what was stored for it.
#[derive(Debug)]
pub(super) struct Patch<'p> {
    pool: &'p Pool,
    /// First byte: start of a block.
    pub(super) start: u64,
    /// End of the blocks, exclusive.
    pub(super) end: u64,
    pieces: Vec<Piece>,
}

/// A row of a patch, for what is not a hole.
#[derive(Debug)]
struct Piece {
    offset: u64,
    row: ExtentRow,
    /// Stored for this patch: no row in the index refers to it yet.
    fresh: bool,
}

impl<'p> Patch<'p> {
    /// A patch that makes the blocks a hole.
    pub(super) const fn hole(pool: &'p Pool, start: u64, end: u64) -> Patch<'p> {
        Patch {
            pool,
            start,
            end,
            pieces: Vec::new(),
        }
    }

    /// Adds a reference to what other rows refer to as well.
    pub(super) fn refer(&mut self, offset: u64, row: ExtentRow) {
        self.pieces.push(Piece {
            offset,
            row,
            fresh: false,
        });
    }

    /// Takes over what another patch stored. Its range is the caller's business.
    pub(super) fn absorb(&mut self, mut other: Patch<'p>) {
        self.pieces.append(&mut other.pieces);
    }

    /// The transaction that refers to what was stored is committed.
    pub(super) fn keep(mut self) {
        self.pieces.clear();
    }
}

impl Drop for Patch<'_> {
    fn drop(&mut self) {
        for piece in self.pieces.iter().filter(|piece| piece.fresh) {
            self.pool.discard(&piece.row);
        }
    }
}

impl Vfs {
    /// Reads up to `len` bytes at `offset` into `out`, replacing what it holds: fewer only at the
    /// end of the file. Reusing `out` saves clearing it.
    ///
    /// # Errors
    /// As pread(2); a damaged block that no mirror can supply is
    /// [`crate::pool::PoolError::Damaged`].
    pub fn read(&self, ino: Ino, offset: u64, len: usize, out: &mut Vec<u8>) -> Result<()> {
        if is_control(ino) {
            return self.control_read(ino, offset, len, out);
        }
        let _serving = self.pool.load_of_applications().serve();
        let result = self.read_locked(ino, offset, len, out);
        if result.is_ok() {
            self.metrics
                .bytes_read
                .fetch_add(out.len() as u64, Ordering::Relaxed);
        } else {
            // Bytes of an earlier read must not be taken for an answer.
            out.clear();
        }
        result
    }

    fn read_locked(&self, ino: Ino, offset: u64, len: usize, out: &mut Vec<u8>) -> Result<()> {
        let _stripe = self.pool.lock_shared(ino);
        let row = self.regular(ino)?;
        let end = offset.saturating_add(len as u64).min(row.size);
        // Not more than `len`, which is a usize.
        let len = end.saturating_sub(offset) as usize;
        out.truncate(len);
        out.resize(len, 0);
        self.fill(ino, offset, out)
    }

    /// Fills `out` with the file's bytes from `offset`, zeros where there are none. The caller
    /// holds the stripe.
    pub(super) fn fill(&self, ino: Ino, offset: u64, out: &mut [u8]) -> Result<()> {
        if out.is_empty() {
            return Ok(());
        }
        let end = offset + out.len() as u64;
        let mut done = 0;
        for (start, row) in self.pool.extents(ino, offset, end)? {
            let from = start.max(offset);
            let to = (start + u64::from(row.len)).min(end);
            if to <= from {
                continue;
            }
            // Both are within `out`, since offset <= from < to <= end.
            let (from_out, to_out) = ((from - offset) as usize, (to - offset) as usize);
            out[done..from_out].fill(0);
            let part = &mut out[from_out..to_out];
            self.pool
                .load(ino, start, &row, (from - start) as usize, part)?;
            done = to_out;
        }
        out[done..].fill(0);
        Ok(())
    }

    /// End of the bytes that rows supply in the block at `block`; its start if there are none.
    pub(super) fn data_end(&self, ino: Ino, block: u64) -> Result<u64> {
        let end = block + BLOCK_U64;
        let rows = self.pool.extents(ino, block, end)?;
        let supplied = rows
            .first()
            .map_or(0, |(start, row)| start + u64::from(row.len));
        Ok(supplied.clamp(block, end))
    }

    /// Writes `data` at `offset` and returns how many bytes were written: all, up to 4 MiB.
    /// `kill_suid`: the writer has no CAP_FSETID, set-user-ID and set-group-ID go.
    ///
    /// # Errors
    /// As pwrite(2). Nothing is changed then.
    pub fn write(&self, ino: Ino, offset: u64, data: &[u8], kill_suid: bool) -> Result<usize> {
        if is_control(ino) {
            return Err(VfsError::NotPermitted);
        }
        let _serving = self.pool.load_of_applications().serve();
        let data = &data[..data.len().min(WRITE_MAX)];
        let data = self.clip(offset, data)?;
        let mut wait = SpaceWait::default();
        let written = loop {
            match self.write_once(ino, offset, data, kill_suid) {
                Err(error) if error.is_no_space() => {
                    if !self.pool.wait_for_space(&mut wait, data.len() as u64)? {
                        return Err(error);
                    }
                }
                done => break done?,
            }
        };
        self.settle(false)?;
        Ok(written)
    }

    /// Writes those blocks of a write that space was promised for, after all of it found no room: a
    /// kernel that caches writes sends what lies side by side in one piece, whoever wrote it.
    ///
    /// # Errors
    /// As [`Vfs::write`], but not for want of space.
    pub fn write_where_promised(
        &self,
        ino: Ino,
        offset: u64,
        data: &[u8],
        kill_suid: bool,
    ) -> Result<()> {
        let end = offset + data.len() as u64;
        for promised in self.pool.promised(ino, offset..end, usize::MAX)? {
            let (start, end) = (promised.start.max(offset), promised.end.min(end));
            // Both lie within the data.
            let part = &data[(start - offset) as usize..(end - offset) as usize];
            match self.write_once(ino, start, part, kill_suid) {
                Err(error) if error.is_no_space() => break,
                done => done?,
            };
        }
        self.settle(false)
    }

    fn write_once(&self, ino: Ino, offset: u64, data: &[u8], kill_suid: bool) -> Result<usize> {
        let _stripe = self.lock_content(ino, Intent::Store)?;
        let old = self.regular(ino)?;
        if data.is_empty() {
            return Ok(0);
        }
        let mut change = Change::new(self);
        let patch = match self.patch(ino, &old, offset, data, Room::Free) {
            Err(error) if error.is_no_space() => {
                let room = self.replaced_room(ino, offset, offset + data.len() as u64)?;
                self.patch(ino, &old, offset, data, room.ok_or(error)?)
            }
            other => other,
        }?;
        let now = change.now;
        let mut row = old;
        self.apply_patch(&mut change.txn, ino, &mut row, &patch)?;
        row.size = row.size.max(offset + data.len() as u64);
        if !self.options.kernel_keeps_times {
            (row.mtime, row.ctime) = (now, now);
        }
        if kill_suid {
            self.drop_privileges(&mut change.txn, ino, &mut row)?;
        }
        *change.row(ino)? = row;
        change.commit()?;
        patch.keep();
        let written = data.len() as u64;
        self.metrics
            .bytes_written
            .fetch_add(written, Ordering::Relaxed);
        Ok(data.len())
    }

    /// The room for new content of a range all of whose blocks have data or promised space.
    fn replaced_room(&self, ino: Ino, start: u64, end: u64) -> Result<Option<Room>> {
        let blocks = block_start(start)..end.next_multiple_of(BLOCK_U64);
        let (free, _) = self.pool.unpromised(ino, blocks.clone(), usize::MAX)?;
        if !free.is_empty() {
            return Ok(None);
        }
        let rows = self.pool.promised(ino, blocks.clone(), usize::MAX)?;
        let within = |row: std::ops::Range<u64>| {
            row.end
                .min(blocks.end)
                .saturating_sub(row.start.max(blocks.start))
        };
        let promised = rows.into_iter().map(within).sum();
        Ok(Some(Room::Replacing { promised }))
    }

    /// The part of a write that lies below the largest size.
    fn clip<'a>(&self, offset: u64, data: &'a [u8]) -> Result<&'a [u8]> {
        let room = SIZE_MAX.checked_sub(offset).ok_or(VfsError::TooBig)?;
        if room == 0 && !data.is_empty() {
            return Err(VfsError::TooBig);
        }
        let len = usize::try_from(room).map_or(data.len(), |room| room.min(data.len()));
        Ok(&data[..len])
    }

    /// Stores `data`, merged with what the first and the last block hold beside it. `row` is the
    /// file's row before. The caller holds the stripe.
    pub(super) fn patch(
        &self,
        ino: Ino,
        row: &InodeRow,
        offset: u64,
        data: &[u8],
        room: Room,
    ) -> Result<Patch<'_>> {
        let end = offset + data.len() as u64;
        let start = block_start(offset);
        let last = block_start(end);
        // Behind `end` in its block there can be bytes only if the file is longer.
        let tail = if end > last && row.size > end {
            self.data_end(ino, last)?
        } else {
            last
        };
        let head_len = (offset - start) as usize;
        if head_len == 0 && tail <= end {
            return self.store(ino, start, data, room);
        }
        let mut merged = vec![0; head_len];
        merged.reserve_exact(data.len() + BLOCK_U64 as usize);
        self.fill(ino, start, &mut merged)?;
        merged.extend_from_slice(data);
        if tail > end {
            let from = merged.len();
            merged.resize(from + (tail - end) as usize, 0);
            self.fill(ino, end, &mut merged[from..])?;
        }
        self.store(ino, start, &merged, room)
    }

    /// Stores new content for the blocks from `start` on.
    pub(super) fn store(
        &self,
        ino: Ino,
        start: u64,
        content: &[u8],
        room: Room,
    ) -> Result<Patch<'_>> {
        let mut patch = Patch::hole(&self.pool, start, start);
        patch
            .pieces
            .reserve_exact(content.len().div_ceil(MAX_EXTENT));
        for payload in content.chunks(MAX_EXTENT) {
            let offset = patch.end;
            let row = self.pool.store(ino, offset, payload, room)?;
            patch.pieces.push(Piece {
                offset,
                row,
                fresh: true,
            });
            patch.end = (offset + payload.len() as u64).next_multiple_of(BLOCK_U64);
        }
        Ok(patch)
    }

    /// Puts a patch in place of what its blocks held.
    pub(super) fn apply_patch(
        &self,
        txn: &mut Txn,
        ino: Ino,
        row: &mut InodeRow,
        patch: &Patch<'_>,
    ) -> Result<()> {
        if patch.start >= patch.end {
            return Ok(());
        }
        let cut = self
            .pool
            .cut(txn, ino, patch.start, patch.end, usize::MAX)?;
        row.allocated = row.allocated.saturating_sub(cut.freed);
        for piece in &patch.pieces {
            txn.link_extent(ino, piece.offset, &piece.row);
            row.allocated += u64::from(piece.row.stored);
        }
        if self.pool.promised_to(ino) > 0 {
            let blocks = |piece: &Piece| piece.offset..piece.row.block_end(piece.offset);
            let mut written: Vec<_> = patch.pieces.iter().map(blocks).collect();
            written.sort_unstable_by_key(|written| written.start);
            self.pool.unpromise(txn, ino, &written, usize::MAX)?;
        }
        Ok(())
    }
}
