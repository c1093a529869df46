//! setattr: mode, owner, size and times, and the loss of privileges that goes with some of them.
//!
//! The kernel has checked permissions and taken away a set-group-ID bit that the caller of chmod
//! may not set. What it leaves here, by the contract of FUSE_HANDLE_KILLPRIV_V2: set-user-ID goes
//! on a change of owner, and on a write or a change of size by one without CAP_FSETID; set-group-ID
//! goes with it if the group may execute the file, or if the caller is not in the group; a file
//! capability goes on all of these.

use crate::format::{FileKind, Ino, InodeRow, Key, Timestamp};
use crate::index::Txn;
use crate::pool::Intent;

use super::change::Change;
use super::control::is_control;
use super::error::{Result, VfsError};
use super::file::check_end;
use super::filesystem::Vfs;
use super::types::{Attr, Caller, SetAttr, SetTime};

const S_ISUID: u16 = 0o4000;
const S_ISGID: u16 = 0o2000;
const S_IXGRP: u16 = 0o0010;
const PERMISSIONS: u32 = 0o7777;
const CAPABILITY: &[u8] = b"security.capability";

impl SetAttr {
    /// A change of size and of nothing else.
    const fn of_size(size: u64) -> SetAttr {
        SetAttr {
            mode: None,
            uid: None,
            gid: None,
            size: Some(size),
            atime: None,
            mtime: None,
            ctime: None,
            kill_suid: false,
            kill_sgid: false,
        }
    }

    /// A request that names only the ctime is what remains of a chown(2) that names neither owner
    /// nor group, after the FUSE client has left the dropping of privileges to us.
    pub fn is_empty_chown(&self) -> bool {
        let SetAttr {
            mode,
            uid,
            gid,
            size,
            atime,
            mtime,
            ctime,
            kill_suid: _,
            kill_sgid: _,
        } = self;
        ctime.is_some()
            && mode.is_none()
            && uid.is_none()
            && gid.is_none()
            && size.is_none()
            && atime.is_none()
            && mtime.is_none()
    }

    fn drops_privileges(&self) -> bool {
        self.kill_suid || self.uid.is_some() || self.gid.is_some() || self.is_empty_chown()
    }
}

impl Vfs {
    /// Changes attributes, all of them in one transaction.
    ///
    /// # Errors
    /// As chmod(2), chown(2), truncate(2) and utimensat(2).
    pub fn setattr(&self, _: &Caller, ino: Ino, change: &SetAttr) -> Result<Attr> {
        if is_control(ino) {
            return Err(VfsError::NotPermitted);
        }
        if let Some(size) = change.size {
            check_end(size, 0)?;
            self.regular(ino)?;
        }
        let (attr, draining) = {
            // Even a longer file takes no space: attributes can be set on a full filesystem.
            let _stripe = self.lock_content(ino, Intent::Shrink)?;
            let mut rows = Change::new(self);
            let draining = self.apply(&mut rows, ino, change)?;
            let row = rows.row(ino)?.clone();
            rows.commit()?;
            (self.attr_of(ino, &row), draining)
        };
        if draining {
            self.drain(ino)?;
        }
        self.settle(false)?;
        Ok(attr)
    }

    /// Applies `change` to the row. True if a truncation has chunks left to do.
    fn apply(&self, rows: &mut Change<'_>, ino: Ino, change: &SetAttr) -> Result<bool> {
        let now = rows.now;
        let mut row = rows.row(ino)?.clone();
        if change.drops_privileges() {
            self.drop_privileges(&mut rows.txn, ino, &mut row)?;
            if change.kill_sgid && row.kind != FileKind::Directory {
                row.permissions &= !S_ISGID;
            }
        }
        if let Some(mode) = change.mode {
            row.permissions = (mode & PERMISSIONS) as u16;
            self.acl_follows(&mut rows.txn, ino, row.permissions)?;
        }
        row.uid = change.uid.unwrap_or(row.uid);
        row.gid = change.gid.unwrap_or(row.gid);
        let mut draining = false;
        if let Some(size) = change.size {
            let same = self.options.kernel_keeps_times && *change == SetAttr::of_size(row.size);
            if same {
                // truncate(2) to the size that the file has: the kernel leaves the times alone, and
                // they must not jump when it asks for them again.
                return Ok(false);
            }
            draining = self.resize(&mut rows.txn, ino, &mut row, size)?;
            row.mtime = now;
        }
        if change.atime.is_some() {
            self.atimes.set(ino);
        }
        row.atime = time(change.atime, row.atime, now);
        row.mtime = time(change.mtime, row.mtime, now);
        row.ctime = change.ctime.unwrap_or(now);
        *rows.row(ino)? = row;
        Ok(draining)
    }

    /// Takes set-user-ID, set-group-ID and a file capability from what is not a directory.
    pub(super) fn drop_privileges(
        &self,
        txn: &mut Txn,
        ino: Ino,
        row: &mut InodeRow,
    ) -> Result<()> {
        if row.kind == FileKind::Directory {
            return Ok(());
        }
        row.permissions &= !S_ISUID;
        if row.permissions & S_IXGRP != 0 {
            row.permissions &= !S_ISGID;
        }
        let capability = Key::xattr(ino, CAPABILITY);
        if self.pool.get(&capability)?.is_some() {
            txn.delete(capability);
        }
        Ok(())
    }
}

fn time(change: Option<SetTime>, old: Timestamp, now: Timestamp) -> Timestamp {
    match change {
        None => old,
        Some(SetTime::Now) => now,
        Some(SetTime::At(time)) => time,
    }
}
