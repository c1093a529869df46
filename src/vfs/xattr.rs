//! Extended attributes: one row each, keyed by inode and name. See xattr(7).
//!
//! `user.mendfs.*` is ours and answered by `control`. Of the namespace `system` there are the two
//! POSIX ACLs, which `access` sets and removes, since they go together with the mode.

use crate::format::{FileKind, FormatError, Ino, Key, XATTR_NAME_MAX, XATTR_VALUE_MAX};
use crate::pool::Intent;

use super::acl::AclKind;
use super::change::Change;
use super::control::is_control;
use super::error::{Result, VfsError};
use super::filesystem::Vfs;
use super::types::Caller;

/// First byte of a row: its version. The value follows.
const VALUE_VERSION: u8 = 1;
/// Rows that a listing fetches at once; their values come along.
const BATCH: usize = 32;
/// Longest list of names that Linux hands out (XATTR_LIST_MAX).
const LIST_MAX: usize = 65536;
const CREATE: u32 = libc::XATTR_CREATE as u32;
const REPLACE: u32 = libc::XATTR_REPLACE as u32;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Space {
    User,
    Trusted,
    Security,
    System,
}

/// The namespace of an attribute name.
fn space(name: &[u8]) -> Result<Space> {
    if name.len() > XATTR_NAME_MAX {
        return Err(VfsError::OutOfRange);
    }
    if name.contains(&0) {
        return Err(VfsError::Invalid);
    }
    if AclKind::of(name).is_some() {
        return Ok(Space::System);
    }
    let spaces: [(&[u8], Space); 3] = [
        (b"user.", Space::User),
        (b"trusted.", Space::Trusted),
        (b"security.", Space::Security),
    ];
    for (prefix, space) in spaces {
        if let Some(rest) = name.strip_prefix(prefix) {
            return if rest.is_empty() {
                Err(VfsError::Invalid)
            } else {
                Ok(space)
            };
        }
    }
    Err(VfsError::NotSupported)
}

/// Whether files of this kind have attributes of that namespace.
fn has_space(kind: FileKind, space: Space) -> bool {
    space != Space::User || matches!(kind, FileKind::Regular | FileKind::Directory)
}

/// The row of an attribute with that value.
pub(super) fn stored(value: &[u8]) -> Vec<u8> {
    let mut stored = Vec::with_capacity(1 + value.len());
    stored.push(VALUE_VERSION);
    stored.extend_from_slice(value);
    stored
}

impl Vfs {
    /// Sets an attribute. `flags` are XATTR_CREATE and XATTR_REPLACE.
    ///
    /// # Errors
    /// As setxattr(2).
    pub fn setxattr(
        &self,
        caller: &Caller,
        ino: Ino,
        name: &[u8],
        value: &[u8],
        flags: u32,
    ) -> Result<()> {
        if ino == Ino::ROOT && Vfs::is_order(name) {
            return self.give_order(caller, name, value);
        }
        if let Some(kind) = AclKind::of(name) {
            // The kernel knows neither flag for these.
            return self.set_acl(ino, kind, value, false);
        }
        self.check_change(caller, ino, name)?;
        if flags & !(CREATE | REPLACE) != 0 {
            return Err(VfsError::Invalid);
        }
        if value.len() > XATTR_VALUE_MAX {
            return Err(VfsError::AttributeTooBig);
        }
        let stored = stored(value);
        self.pool.begin(Intent::Grow)?;
        // Both flags together never succeed, with the errno of the one that is broken.
        self.change_attribute(ino, name, |exists| match exists {
            true if flags & CREATE != 0 => Err(VfsError::Exists),
            false if flags & REPLACE != 0 => Err(VfsError::NoData),
            _ => Ok(Some(stored)),
        })?;
        self.settle(false)
    }

    /// Removes an attribute.
    ///
    /// # Errors
    /// As removexattr(2).
    pub fn removexattr(&self, caller: &Caller, ino: Ino, name: &[u8]) -> Result<()> {
        if let Some(kind) = AclKind::of(name) {
            return self.remove_acl(ino, kind);
        }
        self.check_change(caller, ino, name)?;
        self.pool.begin(Intent::Shrink)?;
        self.change_attribute(ino, name, |exists| match exists {
            true => Ok(None),
            false => Err(VfsError::NoData),
        })?;
        self.settle(false)
    }

    /// Whether the caller may change an attribute of that name at all.
    fn check_change(&self, caller: &Caller, ino: Ino, name: &[u8]) -> Result<()> {
        let space = space(name)?;
        if is_control(ino) || Vfs::is_control_attribute(name) {
            return Err(VfsError::NotPermitted);
        }
        let forbidden = space == Space::Trusted && caller.uid != 0;
        if forbidden || !has_space(self.row(ino)?.kind, space) {
            return Err(VfsError::NotPermitted);
        }
        Ok(())
    }

    /// Puts or deletes the row, as `decide` says, which is told whether there is one.
    fn change_attribute(
        &self,
        ino: Ino,
        name: &[u8],
        decide: impl FnOnce(bool) -> Result<Option<Vec<u8>>>,
    ) -> Result<()> {
        let _stripe = self.pool.lock_exclusive(ino);
        let key = Key::xattr(ino, name);
        let mut change = Change::new(self);
        let now = change.now;
        // An inode that is gone by now must not get a row.
        change.row(ino)?.ctime = now;
        match decide(self.pool.get(&key)?.is_some())? {
            Some(value) => change.txn.put(key, value),
            None => change.txn.delete(key),
        }
        change.commit()
    }

    /// Value of an attribute.
    ///
    /// # Errors
    /// [`VfsError::NoData`] if there is none; as getxattr(2).
    pub fn getxattr(&self, caller: &Caller, ino: Ino, name: &[u8]) -> Result<Vec<u8>> {
        let space = space(name)?;
        if let Some(value) = self.control_attribute(ino, name)? {
            return Ok(value);
        }
        if is_control(ino) || (space == Space::Trusted && caller.uid != 0) {
            return Err(VfsError::NoData);
        }
        self.attribute(ino, name)?.ok_or(VfsError::NoData)
    }

    /// What is stored under that name.
    pub(super) fn attribute(&self, ino: Ino, name: &[u8]) -> Result<Option<Vec<u8>>> {
        let row = self.pool.get(&Key::xattr(ino, name))?;
        match row.as_deref() {
            None => Ok(None),
            Some([VALUE_VERSION, value @ ..]) => Ok(Some(value.to_vec())),
            Some(other) => {
                let value = other.first().map_or(0, |byte| u64::from(*byte));
                let field = "extended attribute version";
                Err(Vfs::bad_row(ino)(FormatError::Field { field, value }))
            }
        }
    }

    /// Names of the attributes that the caller may see, each with a terminating NUL.
    ///
    /// # Errors
    /// As listxattr(2); [`VfsError::AttributeTooBig`] if the list would be longer than 64 KiB.
    pub fn listxattr(&self, caller: &Caller, ino: Ino) -> Result<Vec<u8>> {
        let mut list = Vec::new();
        if is_control(ino) {
            return Ok(list);
        }
        self.row(ino)?;
        let mut push = |name: &[u8]| {
            list.extend_from_slice(name);
            list.push(0);
            if list.len() > LIST_MAX {
                Err(VfsError::AttributeTooBig)
            } else {
                Ok(())
            }
        };
        let mut from = Key::xattr_start(ino);
        loop {
            let rows = self.pool.scan(&from, &Key::xattr_end(ino), BATCH)?;
            for (key, _) in &rows {
                let name = key.xattr_name().map_err(Vfs::bad_row(ino))?;
                if caller.uid == 0 || !name.starts_with(b"trusted.") {
                    push(name)?;
                }
                // The first name after this one.
                from = Key::xattr(ino, &[name, &[0]].concat());
            }
            if rows.len() < BATCH {
                break;
            }
        }
        for name in Vfs::listed_control_attributes(ino) {
            push(name)?;
        }
        Ok(list)
    }
}
