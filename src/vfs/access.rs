//! Access control lists on inodes: set, inherited, and kept in step with the mode.
//!
//! A list is an extended attribute's row; what it means is `acl`'s. The kernel decides about access
//! with it, and leaves to the filesystem what Linux does in posix_acl_update_mode(),
//! posix_acl_create() and posix_acl_chmod(). List and mode change in one transaction, so that no
//! crash leaves one without the other.
//!
//! Invariant: an access list is stored only if the mode cannot say the same, and then the mode's
//! nine bits are what the list says.

use crate::format::{FileKind, FormatError, Ino, InodeRow, Key};
use crate::index::Txn;
use crate::pool::Intent;

use super::acl::{Acl, AclKind};
use super::change::Change;
use super::control::is_control;
use super::error::{Result, VfsError};
use super::filesystem::Vfs;
use super::types::Caller;
use super::xattr::stored;

const S_ISGID: u16 = 0o2000;

/// What a new inode has from its parent.
#[derive(Debug, Default)]
pub(super) struct Inherited {
    access: Option<Acl>,
    default: Option<Acl>,
}

impl Inherited {
    /// Puts the rows of the new inode.
    pub(super) fn put(&self, txn: &mut Txn, ino: Ino) {
        let lists = [
            (AclKind::Access, &self.access),
            (AclKind::Default, &self.default),
        ];
        for (kind, acl) in lists {
            if let Some(acl) = acl {
                txn.put(Key::xattr(ino, kind.name()), stored(&acl.encode()));
            }
        }
    }
}

impl Vfs {
    /// Sets a list, and with an access list the mode. `kill_set_gid`: the caller is not in the
    /// file's group and has no CAP_FSETID, set-group-ID goes with an access list.
    ///
    /// # Errors
    /// As setxattr(2); [`VfsError::Invalid`] for what is no list.
    pub fn set_acl(&self, ino: Ino, kind: AclKind, value: &[u8], kill_set_gid: bool) -> Result<()> {
        self.check_acl(ino, kind)?;
        let acl = Acl::decode(value).map_err(|_| VfsError::Invalid)?;
        self.put_acl(ino, kind, acl, kill_set_gid)?;
        self.settle(false)
    }

    fn put_acl(&self, ino: Ino, kind: AclKind, acl: Option<Acl>, kill_set_gid: bool) -> Result<()> {
        self.pool.begin(Intent::Grow)?;
        let _stripe = self.pool.lock_exclusive(ino);
        let mut change = Change::new(self);
        let now = change.now;
        let row = change.row(ino)?;
        row.ctime = now;
        let mut acl = acl;
        if let (AclKind::Access, Some(list)) = (kind, &acl) {
            row.permissions = list.mode(row.permissions);
            if kill_set_gid {
                row.permissions &= !S_ISGID;
            }
            acl = acl.filter(|list| !list.is_minimal());
        }
        let key = Key::xattr(ino, kind.name());
        match acl {
            Some(acl) => change.txn.put(key, stored(&acl.encode())),
            None if self.pool.get(&key)?.is_some() => change.txn.delete(key),
            None => {}
        }
        change.commit()
    }

    /// Removes a list, if there is one. The mode stays as it is, as in Linux.
    pub(super) fn remove_acl(&self, ino: Ino, kind: AclKind) -> Result<()> {
        self.check_acl(ino, kind)?;
        self.drop_acl(ino, kind)?;
        self.settle(false)
    }

    fn drop_acl(&self, ino: Ino, kind: AclKind) -> Result<()> {
        self.pool.begin(Intent::Shrink)?;
        let _stripe = self.pool.lock_exclusive(ino);
        let key = Key::xattr(ino, kind.name());
        if self.pool.get(&key)?.is_none() {
            return Ok(());
        }
        let mut change = Change::new(self);
        let now = change.now;
        change.row(ino)?.ctime = now;
        change.txn.delete(key);
        change.commit()
    }

    /// Whether the inode can have such a list.
    fn check_acl(&self, ino: Ino, kind: AclKind) -> Result<()> {
        if is_control(ino) {
            return Err(VfsError::NotPermitted);
        }
        match self.row(ino)?.kind {
            inode if kind.fits(inode) => Ok(()),
            FileKind::Symlink => Err(VfsError::NotSupported),
            _ => Err(VfsError::Access),
        }
    }

    fn acl(&self, ino: Ino, kind: AclKind) -> Result<Option<Acl>> {
        let Some(bytes) = self.attribute(ino, kind.name())? else {
            return Ok(None);
        };
        Acl::decode(&bytes).map_err(|_| {
            let value = bytes.len() as u64;
            let field = "access control list";
            Vfs::bad_row(ino)(FormatError::Field { field, value })
        })
    }

    /// Has the access list follow a mode that was set.
    pub(super) fn acl_follows(&self, txn: &mut Txn, ino: Ino, permissions: u16) -> Result<()> {
        if let Some(mut acl) = self.acl(ino, AclKind::Access)? {
            acl.follow(permissions);
            let key = Key::xattr(ino, AclKind::Access.name());
            txn.put(key, stored(&acl.encode()));
        }
        Ok(())
    }

    /// What a new inode gets from its parent: lists and a mode by the parent's default list, or
    /// else the mode that the caller's umask leaves.
    pub(super) fn inherit(
        &self,
        caller: &Caller,
        parent: Ino,
        row: &mut InodeRow,
    ) -> Result<Inherited> {
        if row.kind == FileKind::Symlink {
            return Ok(Inherited::default());
        }
        let Some(default) = self.acl(parent, AclKind::Default)? else {
            row.permissions &= !((caller.umask & 0o777) as u16);
            return Ok(Inherited::default());
        };
        let (access, permissions) = default.for_new(row.permissions);
        row.permissions = permissions;
        Ok(Inherited {
            access: Some(access).filter(|acl| !acl.is_minimal()),
            default: Some(default).filter(|_| row.kind == FileKind::Directory),
        })
    }
}
