//! Rows and file data of an open pool, as the layer above reads and writes them.

use std::sync::atomic::Ordering;

use super::commit::{Cut, Pool};
use super::error::{PoolError, Result};
use super::locks::{ExclusiveGuard, SharedGuard};
use crate::format::{BLOCK, BLOCK_U64, ExtentRow, Ino, InodeRow, Key};
use crate::index::Txn;
use crate::mirrors::Attached;

/// Free space that data must leave: for the index, and so that a full pool can still be worked on.
const SPACE_KEPT: u64 = 32 << 20;
/// Free space is looked at again after this many bytes at the latest.
const LOOK_AFTER: u64 = 64 << 20;
/// Reads up to this size that begin or end within a block go through a buffer in one read.
const BUFFERED_READ: usize = 64 << 10;

/// Room in the pool, in bytes: that of the mirror with the least.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct PoolSpace {
    /// What the pool holds and what it could still hold.
    pub total: u64,
    /// Free for new data.
    pub available: u64,
    /// Live data.
    pub used: u64,
    /// Inodes in use.
    pub inodes: u64,
}

/// What new data may use up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Room {
    /// What is neither kept free nor promised to others.
    Free,
    /// It takes the place of data, whose space comes back, or of promised space: also half of what
    /// is kept free.
    Replacing {
        /// Bytes that were promised to it.
        promised: u64,
    },
}

impl Pool {
    /// The row's value, if there is one.
    ///
    /// # Errors
    /// [`PoolError::Index`] if it is damaged on every mirror.
    pub fn get(&self, key: &Key) -> Result<Option<Vec<u8>>> {
        Ok(self.index.get(key)?)
    }

    /// Up to `limit` rows from `from` (inclusive) to `to` (exclusive), ascending.
    ///
    /// # Errors
    /// As [`Pool::get`].
    pub fn scan(&self, from: &Key, to: &Key, limit: usize) -> Result<Vec<(Key, Vec<u8>)>> {
        Ok(self.index.scan(from, to, limit)?)
    }

    /// The inode, if there is one.
    ///
    /// # Errors
    /// As [`Pool::get`].
    pub fn inode(&self, ino: Ino) -> Result<Option<InodeRow>> {
        match self.get(&Key::inode(ino))? {
            Some(value) => Ok(Some(InodeRow::decode(&value)?)),
            None => Ok(None),
        }
    }

    /// Locks an inode against changes.
    pub fn lock_shared(&self, ino: Ino) -> SharedGuard<'_> {
        self.locks.shared(ino)
    }

    /// Locks an inode for changing it.
    pub fn lock_exclusive(&self, ino: Ino) -> ExclusiveGuard<'_> {
        self.locks.exclusive(&[ino])
    }

    /// Locks several inodes for changing them, in any order and free of deadlock.
    pub fn lock_exclusive_many(&self, inos: &[Ino]) -> ExclusiveGuard<'_> {
        self.locks.exclusive(inos)
    }

    /// Whether this thread has locked the inode. Only builds with debug assertions know.
    pub fn holds(&self, ino: Ino) -> bool {
        super::locks::holds(ino)
    }

    /// Locks two inodes for changing them.
    pub fn lock_exclusive_pair(&self, one: Ino, other: Ino) -> ExclusiveGuard<'_> {
        self.locks.exclusive(&[one, other])
    }

    /// Writes data of the file `ino` for `offset` (a multiple of the block size) to a segment on
    /// all mirrors. Nothing refers to it until the row is put with [`Txn::link_extent`].
    ///
    /// # Errors
    /// [`PoolError::NoSpace`] with nothing changed; [`PoolError::Failed`].
    pub fn store(&self, ino: Ino, offset: u64, payload: &[u8], room: Room) -> Result<ExtentRow> {
        debug_assert!(offset.is_multiple_of(BLOCK_U64));
        self.check_space(payload.len() as u64, room)?;
        self.guard(self.segments.append(ino, offset, &|| self.lsn(), payload))
    }

    /// Gives up what [`Pool::store`] wrote and no row will point to.
    pub fn discard(&self, row: &ExtentRow) {
        let freed = crate::index::Freed {
            segment: row.segment,
            offset: row.offset,
            len: row.stored,
            header: row.header,
        };
        self.committed.lock().free(vec![freed]);
        self.segments.settled(row.segment, row.header);
    }

    /// Refuses if writing `bytes` more would use up what is kept free for others.
    pub(super) fn check_space(&self, bytes: u64, room: Room) -> Result<()> {
        let promised = self.promises.cost();
        let low = self.checkpointing.low() && room == Room::Free;
        let cost = i64::try_from(bytes + BLOCK_U64).unwrap_or(i64::MAX);
        if !low && self.headroom.fetch_sub(cost, Ordering::Relaxed) > cost {
            return Ok(());
        }
        let kept = |total| match room {
            Room::Free => self.kept_of(total) + promised,
            Room::Replacing { promised: own } => {
                self.kept_of(total) / 2 + promised.saturating_sub(super::promises::cost_of(own))
            }
        };
        let free = match self.mirrors.find_room(bytes, kept) {
            Ok(free) if !low => free,
            Ok(_) => {
                self.headroom.store(0, Ordering::Relaxed);
                let space = |mirror: &Attached| mirror.backing().space().ok();
                let current = self.mirrors.current();
                let fullest = current
                    .iter()
                    .min_by_key(|mirror| space(mirror).map(|space| space.available));
                let mirror = fullest.map_or_else(String::new, |mirror| mirror.name());
                return Err(PoolError::NoSpace { mirror });
            }
            Err(error) => {
                self.headroom.store(0, Ordering::Relaxed);
                return self.guard(Err(error));
            }
        };
        if room != Room::Free {
            // What is left for these is not there for others.
            return Ok(());
        }
        // Others use the same filesystems: look again before half of what is free may be gone.
        let headroom = (free / 2).min(LOOK_AFTER);
        self.headroom.store(headroom as i64, Ordering::Relaxed);
        Ok(())
    }

    /// Refuses if there is no room for `bytes` more. A mirror that others have filled up while the
    /// rest has room is let go, as a write would.
    ///
    /// # Errors
    /// [`PoolError::NoSpace`]; [`PoolError::Failed`].
    pub fn find_room(&self, bytes: u64) -> Result<()> {
        let found = self
            .mirrors
            .find_room(bytes, |total| self.kept_of(total) + self.promises.cost())
            .map(|_| ());
        self.guard(found)
    }

    /// What data must leave free on a filesystem of that size, in bytes.
    pub(super) fn kept_of(&self, total: u64) -> u64 {
        let kept = self.options.space_kept.unwrap_or(SPACE_KEPT);
        kept.min(total / 16)
    }

    /// Rows of a file that overlap `start..end`, ascending; the first may begin before `start`.
    ///
    /// # Errors
    /// As [`Pool::get`].
    pub fn extents(&self, ino: Ino, start: u64, end: u64) -> Result<Vec<(u64, ExtentRow)>> {
        self.extents_up_to(ino, start, end, usize::MAX)
    }

    /// As [`Pool::extents`], but at most `limit` rows.
    ///
    /// # Errors
    /// As [`Pool::get`].
    pub fn extents_up_to(
        &self,
        ino: Ino,
        start: u64,
        end: u64,
        limit: usize,
    ) -> Result<Vec<(u64, ExtentRow)>> {
        let width = self.algorithm().width();
        let mut rows = Vec::new();
        if start >= end {
            return Ok(rows);
        }
        let at = Key::extent(ino, start);
        for (key, value) in self.index.scan_back(&Key::extent(ino, 0), &at, 1)? {
            let (_, offset) = key.extent_parts()?;
            let row = ExtentRow::decode(&value, width)?;
            if row.block_end(offset) > start {
                rows.push((offset, row));
            }
        }
        let to = if end == u64::MAX {
            Key::extent_end(ino)
        } else {
            Key::extent(ino, end)
        };
        let limit = limit.saturating_sub(rows.len());
        for (key, value) in self.index.scan(&at, &to, limit)? {
            rows.push((key.extent_parts()?.1, ExtentRow::decode(&value, width)?));
        }
        Ok(rows)
    }

    /// Takes the blocks from `start` to `end` (multiples of the block size; the maximum stands for
    /// the end) off a file, cutting the rows at the edges in two. Looks at `limit` rows at most.
    ///
    /// # Errors
    /// As [`Pool::get`].
    pub fn cut(&self, txn: &mut Txn, ino: Ino, start: u64, end: u64, limit: usize) -> Result<Cut> {
        let width = self.algorithm().width();
        let rows = self.extents_up_to(ino, start, end, limit.saturating_add(1))?;
        let done = rows.len() <= limit;
        let mut freed = 0;
        for (offset, row) in rows.into_iter().take(limit) {
            txn.unlink_extent(ino, offset, &row);
            freed += u64::from(row.stored);
            let mut keep = |at: u64, piece: ExtentRow| {
                if piece.len > 0 {
                    freed -= u64::from(piece.stored);
                    txn.link_extent(ino, at, &piece);
                }
            };
            if offset < start {
                keep(
                    offset,
                    row.slice(0, ((start - offset) / BLOCK_U64) as usize, width),
                );
            }
            if row.block_end(offset) > end {
                let from = ((end - offset) / BLOCK_U64) as usize;
                keep(end, row.slice(from, row.blocks(), width));
            }
        }
        Ok(Cut { freed, done })
    }

    /// Fills `out` with the bytes of a row from `from` on, verified; bad copies are repaired. The
    /// row lies at `offset` of the file `ino`, whose lock the caller holds.
    ///
    /// # Errors
    /// [`PoolError::Damaged`] with the first range that no mirror could supply.
    pub fn load(
        &self,
        ino: Ino,
        offset: u64,
        row: &ExtentRow,
        from: usize,
        out: &mut [u8],
    ) -> Result<()> {
        let end = from + out.len();
        debug_assert!(end <= row.len as usize);
        let whole_end = end.is_multiple_of(BLOCK) || end == row.stored as usize;
        if from.is_multiple_of(BLOCK) && whole_end {
            return self.load_blocks(ino, offset, row, from / BLOCK, out);
        }
        if out.len() <= BUFFERED_READ {
            let first = from / BLOCK;
            let blocks_end = end.next_multiple_of(BLOCK).min(row.stored as usize);
            let mut blocks = vec![0; blocks_end - first * BLOCK];
            self.load_blocks(ino, offset, row, first, &mut blocks)?;
            let skip = from - first * BLOCK;
            out.copy_from_slice(&blocks[skip..skip + out.len()]);
            return Ok(());
        }
        // A long read: whole blocks straight into place, the edges through a buffer.
        let head = from.next_multiple_of(BLOCK) - from;
        let tail = (end % BLOCK).min(out.len() - head);
        let middle_end = out.len() - tail;
        let (front, rest) = out.split_at_mut(head);
        let (middle, back) = rest.split_at_mut(middle_end - head);
        if !front.is_empty() {
            self.load(ino, offset, row, from, front)?;
        }
        self.load_blocks(ino, offset, row, (from + head) / BLOCK, middle)?;
        if back.is_empty() {
            Ok(())
        } else {
            self.load(ino, offset, row, from + middle_end, back)
        }
    }

    fn load_blocks(
        &self,
        ino: Ino,
        offset: u64,
        row: &ExtentRow,
        first: usize,
        out: &mut [u8],
    ) -> Result<()> {
        self.usable()?;
        let read = self.segments.read(row, first, out);
        if read.is_ok() {
            self.readable(ino, offset + (first * BLOCK) as u64, out.len() as u64);
        }
        read.map_err(|bad| {
            let start = bad.first().map_or(0, |bad| bad.block);
            let run = bad
                .iter()
                .enumerate()
                .take_while(|(n, bad)| bad.block == start + n)
                .count();
            let offset = offset + ((first + start) * BLOCK) as u64;
            PoolError::Damaged {
                ino,
                offset,
                len: (run * BLOCK) as u64,
            }
        })
    }

    /// Room in the pool.
    ///
    /// # Errors
    /// [`PoolError::Failed`] if no mirror can tell.
    pub fn space(&self) -> Result<PoolSpace> {
        let space = self.mirrors.space().ok_or_else(|| PoolError::Failed {
            reason: "no mirror is online".to_owned(),
        })?;
        let used = self.segments.with_accounts(|accounts| accounts.live());
        let kept = self.kept_of(space.total) + self.promises.cost();
        let available = space.available.saturating_sub(kept);
        let inodes = self.committed.lock().inodes;
        Ok(PoolSpace {
            total: used + space.available,
            available,
            used,
            inodes,
        })
    }
}
