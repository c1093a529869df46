//! The end of inodes, and the work that is too long for one transaction.
//!
//! An orphan row marks an inode that has something left to do. Without a name (link count 0) it is
//! one that is still referenced, or whose extents go in chunks: it is deleted at the last forget,
//! at unmount, or by the next mount. With a name it is a file whose truncation has already set the
//! size, but still drops the extents beyond it ("draining"). In both cases the transaction that
//! changed what users see put the row, and the last chunk removes it, so a crash anywhere leaves
//! either nothing to do or a row that says what.

use std::slice::from_ref;

use crate::format::{BLOCK_U64, FileKind, Ino, Key, Table};
use crate::index::Txn;
use crate::pool::Intent;

use super::change::Change;
use super::control::is_control;
use super::error::Result;
use super::filesystem::Vfs;

/// Extents that one transaction drops at most.
pub(super) const CHUNK_ROWS: usize = 512;
/// Extended attributes that one transaction deletes at most. Their values may be large and are read
/// on the way.
const CHUNK_XATTRS: usize = 64;
/// Value of an orphan row: its version.
const ORPHAN_VALUE: [u8; 1] = [1];

/// What becomes of an inode that lost a name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fate {
    /// It has other names, or this transaction deletes it.
    Settled,
    /// It lives on without a name until its last reference goes.
    Referenced,
    /// Nobody refers to it, but it is too large for one transaction.
    Chunks,
}

impl Vfs {
    /// Takes one name from an inode, a directory's only one. The caller holds the namespace and the
    /// inode's stripe, and calls [`Vfs::after_drop`] after the commit, with no lock.
    pub(super) fn drop_link(&self, change: &mut Change<'_>, ino: Ino) -> Result<Fate> {
        let (now, row) = (change.now, change.row(ino)?);
        row.ctime = now;
        row.nlink = match row.kind {
            FileKind::Directory => 0,
            _ => row.nlink.saturating_sub(1),
        };
        if row.nlink > 0 {
            return Ok(Fate::Settled);
        }
        // A forget at this very moment either comes before the mark, and then nobody refers to the
        // inode, or it sees the mark, waits for the stripe and deletes.
        if self.refs.note_unlinked(ino) {
            change.txn.put(Key::orphan(ino), ORPHAN_VALUE.to_vec());
            return Ok(Fate::Referenced);
        }
        if self.delete_some(change, ino)? {
            if self.is_draining(ino) {
                change.txn.delete(Key::orphan(ino));
            }
            Ok(Fate::Settled)
        } else {
            change.txn.put(Key::orphan(ino), ORPHAN_VALUE.to_vec());
            Ok(Fate::Chunks)
        }
    }

    /// Goes on after the commit of a [`Vfs::drop_link`].
    pub(super) fn after_drop(&self, ino: Ino, fate: Fate) -> Result<()> {
        match fate {
            Fate::Settled | Fate::Referenced => Ok(()),
            Fate::Chunks => self.reap(ino),
        }
    }

    /// Gives references back, as the kernel drops inodes from its cache. The last one of an inode
    /// without a name deletes it.
    pub fn forget(&self, ino: Ino, count: u64) {
        if self.release(ino, count) {
            self.reap_forgotten(ino);
        } else {
            self.store_atime(ino);
        }
    }

    /// As [`Vfs::forget`], without waiting for anything: true if the inode is to be deleted now,
    /// with [`Vfs::reap_forgotten`].
    #[must_use]
    pub fn release(&self, ino: Ino, count: u64) -> bool {
        if is_control(ino) {
            self.control_forget(ino, count);
            return false;
        }
        self.refs.release(ino, count)
    }

    /// Deletes an inode that has neither a name nor a reference.
    pub fn reap_forgotten(&self, ino: Ino) {
        if let Err(error) = self.reap(ino).and_then(|()| self.settle(false)) {
            // A forget has no reply. The orphan row stays, for the next mount to try again.
            log::warn!("deleting inode {ino} failed, the next mount will try again: {error}");
        }
    }

    /// Deletes an inode that has neither a name nor a reference, chunk by chunk. Does nothing if it
    /// has a name after all. A reference cannot come back: those are taken by name.
    fn reap(&self, ino: Ino) -> Result<()> {
        loop {
            self.settle(false)?;
            self.pool.begin(Intent::Shrink)?;
            let _stripe = self.pool.lock_exclusive(ino);
            match self.inode(ino)? {
                Some(row) if row.nlink == 0 => {}
                _ => return Ok(()),
            }
            let mut change = Change::new(self);
            let done = self.delete_some(&mut change, ino)?;
            if done {
                change.txn.delete(Key::orphan(ino));
            }
            change.commit()?;
            if done {
                self.draining.lock().remove(&ino);
                return Ok(());
            }
        }
    }

    /// Adds the deletion of some of an inode's rows to `change`. True if the inode itself is among
    /// them: then nothing is left.
    fn delete_some(&self, change: &mut Change<'_>, ino: Ino) -> Result<bool> {
        let cut = self
            .pool
            .cut(&mut change.txn, ino, 0, u64::MAX, CHUNK_ROWS)?;
        let row = change.row(ino)?;
        row.allocated = row.allocated.saturating_sub(cut.freed);
        let all = 0..u64::MAX;
        let taken_back = self
            .pool
            .unpromise(&mut change.txn, ino, from_ref(&all), CHUNK_ROWS)?;
        if !cut.done || !taken_back {
            return Ok(false);
        }
        let (from, to) = (Key::xattr_start(ino), Key::xattr_end(ino));
        let attributes = self.pool.scan(&from, &to, CHUNK_XATTRS)?;
        let done = attributes.len() < CHUNK_XATTRS;
        attributes
            .into_iter()
            .for_each(|(key, _)| change.txn.delete(key));
        if done {
            change.delete(ino);
        }
        Ok(done)
    }

    /// Marks a file, in the transaction that sets its new size, as one with extents left to drop.
    /// The caller holds its stripe and calls [`Vfs::drain`] after the commit, with no lock.
    pub(super) fn start_draining(&self, txn: &mut Txn, ino: Ino) {
        txn.put(Key::orphan(ino), ORPHAN_VALUE.to_vec());
        self.draining.lock().insert(ino);
    }

    /// Drops the extents beyond the end of a truncated file. Several threads may do it at once:
    /// whoever wants to change the file helps.
    pub(super) fn drain(&self, ino: Ino) -> Result<()> {
        loop {
            self.settle(false)?;
            self.pool.begin(Intent::Shrink)?;
            let _stripe = self.pool.lock_exclusive(ino);
            if !self.is_draining(ino) {
                return Ok(());
            }
            if self.inode(ino)?.is_none() {
                self.draining.lock().remove(&ino);
                return Ok(());
            }
            let mut change = Change::new(self);
            let row = change.row(ino)?;
            let (end, linked) = (row.size.next_multiple_of(BLOCK_U64), row.nlink > 0);
            let cut = self
                .pool
                .cut(&mut change.txn, ino, end, u64::MAX, CHUNK_ROWS)?;
            let row = change.row(ino)?;
            row.allocated = row.allocated.saturating_sub(cut.freed);
            let behind = end..u64::MAX;
            let taken_back =
                self.pool
                    .unpromise(&mut change.txn, ino, from_ref(&behind), CHUNK_ROWS)?;
            let done = cut.done && taken_back;
            if done && linked {
                change.txn.delete(Key::orphan(ino));
            }
            change.commit()?;
            if done {
                self.draining.lock().remove(&ino);
                return Ok(());
            }
        }
    }

    /// Does what the orphan rows ask for, at mount and at unmount, when nobody refers to anything;
    /// returns for how many inodes.
    pub(super) fn clean_orphans(&self) -> Result<u64> {
        let mut from = Key::table_start(Table::Orphan);
        let mut cleaned = 0;
        loop {
            let rows = self
                .pool
                .scan(&from, &Key::table_end(Table::Orphan), CHUNK_ROWS)?;
            let last = rows.len() < CHUNK_ROWS;
            for (key, _) in rows {
                let ino = key.ino(Table::Orphan).map_err(Vfs::bad_row(Ino(0)))?;
                match self.clean_orphan(ino) {
                    Ok(()) => cleaned += 1,
                    // One file that cannot be finished must not keep all others from being used.
                    Err(error) => {
                        log::warn!("cleaning up inode {ino} failed, it stays for later: {error}");
                    }
                }
                from = Key::orphan(Ino(ino.0.saturating_add(1)));
            }
            if last {
                return Ok(cleaned);
            }
        }
    }

    fn clean_orphan(&self, ino: Ino) -> Result<()> {
        match self.inode(ino)? {
            Some(row) if row.nlink == 0 => self.reap(ino),
            Some(_) => {
                // In the set first: if draining fails the file must not grow over its old bytes.
                self.draining.lock().insert(ino);
                self.drain(ino)
            }
            None => {
                self.pool.begin(Intent::Shrink)?;
                let mut txn = Txn::new();
                txn.delete(Key::orphan(ino));
                self.pool.commit(txn)?;
                Ok(())
            }
        }
    }
}
