//! The rows of one operation on the way to their one transaction.
//!
//! An inode row is loaded once, changed in place as often as the operation needs (both parents of a
//! rename may be the same directory), and put once at the commit. The caller holds the stripe of
//! every inode that it asks for.

use crate::format::{DentryRow, Ino, InodeRow, Key, Timestamp};
use crate::index::Txn;

use super::dir::Found;
use super::error::{Result, VfsError};
use super::filesystem::Vfs;

/// One operation's changes.
#[derive(Debug)]
pub(super) struct Change<'v> {
    vfs: &'v Vfs,
    /// Rows other than inodes go straight in here.
    pub(super) txn: Txn,
    rows: Vec<(Ino, InodeRow)>,
    /// The time of the operation.
    pub(super) now: Timestamp,
}

impl<'v> Change<'v> {
    pub(super) fn new(vfs: &'v Vfs) -> Change<'v> {
        Change {
            vfs,
            txn: Txn::new(),
            rows: Vec::new(),
            now: vfs.pool.now(),
        }
    }

    /// The row of an inode, to read and to change.
    pub(super) fn row(&mut self, ino: Ino) -> Result<&mut InodeRow> {
        debug_assert!(self.vfs.pool.holds(ino), "inode {ino} is not locked");
        let at = match self.rows.iter().position(|(known, _)| *known == ino) {
            Some(at) => at,
            None => {
                let row = self.vfs.row(ino)?;
                self.rows.push((ino, row));
                self.rows.len() - 1
            }
        };
        // `at` is a position in the vector: found, or just pushed.
        Ok(&mut self.rows[at].1)
    }

    /// The row of a directory that still has a place in the tree.
    pub(super) fn directory(&mut self, ino: Ino) -> Result<&mut InodeRow> {
        let row = self.row(ino)?;
        super::namei::check_directory(row)?;
        Ok(row)
    }

    /// A new inode.
    pub(super) fn create(&mut self, ino: Ino, row: &InodeRow) {
        self.txn.create_inode(ino, row);
    }

    /// Deletes an inode's row.
    pub(super) fn delete(&mut self, ino: Ino) {
        self.rows.retain(|(known, _)| *known != ino);
        self.txn.delete_inode(ino);
    }

    /// Adds a name to a directory, at a free cookie, and counts it.
    pub(super) fn add_entry(&mut self, parent: Ino, cookie: u64, entry: &DentryRow) -> Result<()> {
        self.put_entry(parent, cookie, entry);
        self.touch_directory(parent)?.size += 1;
        Ok(())
    }

    /// Puts an entry in the place of another of the same name.
    pub(super) fn put_entry(&mut self, parent: Ino, cookie: u64, entry: &DentryRow) {
        self.txn.put(Key::dentry(parent, cookie), entry.encode());
    }

    /// Takes a name out of a directory.
    pub(super) fn remove_entry(&mut self, parent: Ino, found: &Found) -> Result<()> {
        self.txn.delete(Key::dentry(parent, found.cookie));
        let row = self.touch_directory(parent)?;
        row.size = row.size.saturating_sub(1);
        Ok(())
    }

    /// Sets mtime and ctime of a directory whose entries change.
    pub(super) fn touch_directory(&mut self, parent: Ino) -> Result<&mut InodeRow> {
        let now = self.now;
        let row = self.row(parent)?;
        (row.mtime, row.ctime) = (now, now);
        Ok(row)
    }

    /// One more subdirectory in `parent`.
    pub(super) fn add_subdirectory(&mut self, parent: Ino) -> Result<()> {
        let row = self.row(parent)?;
        if row.nlink >= super::namei::LINK_MAX {
            return Err(VfsError::TooManyLinks);
        }
        row.nlink += 1;
        Ok(())
    }

    /// One subdirectory less in `parent`.
    pub(super) fn remove_subdirectory(&mut self, parent: Ino) -> Result<()> {
        let row = self.row(parent)?;
        row.nlink = row.nlink.saturating_sub(1).max(2);
        Ok(())
    }

    /// Commits everything as one transaction.
    pub(super) fn commit(mut self) -> Result<()> {
        for (ino, row) in &self.rows {
            self.txn.put_inode(*ino, row);
        }
        self.vfs.pool.commit(self.txn)?;
        Ok(())
    }
}
