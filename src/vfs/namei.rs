//! Operations on names: lookup, and making and removing entries and links.
//!
//! All of them hold the namespace lock; what changes takes the stripes of the inodes that it
//! changes before, since it may have to wait for these: a stripe is held while content goes to the
//! mirrors. Which inodes these are is looked up first, and once more when all locks are held. A new
//! inode needs no stripe: nobody knows its number before the commit.

use crate::format::{DentryRow, FileKind, Ino, InodeRow, Timestamp};
use crate::pool::Intent;

use super::change::Change;
use super::control::is_control;
use super::dir::{Found, Slot, check_name, is_dots};
use super::error::{Result, VfsError};
use super::filesystem::Vfs;
use super::types::{Attr, Caller};

/// Largest link count.
pub(super) const LINK_MAX: u32 = u32::MAX - 1;
/// Longest target of a symbolic link: PATH_MAX without the terminating NUL.
const TARGET_MAX: usize = 4095;

const S_ISGID: u16 = 0o2000;
const PERMISSIONS: u32 = 0o7777;

impl Vfs {
    /// Finds an entry and counts one reference to its inode.
    ///
    /// # Errors
    /// [`VfsError::NotFound`], [`VfsError::NotDirectory`], [`VfsError::NameTooLong`].
    pub fn lookup(&self, parent: Ino, name: &[u8]) -> Result<Attr> {
        check_name(name)?;
        if let Some(attr) = self.control_lookup(parent, name)? {
            return Ok(attr);
        }
        let _serving = self.pool.load_of_applications().serve();
        let _namespace = self.namespace.read();
        let ino = match name {
            b"." | b".." => {
                let row = self.directory(parent)?;
                if name == b"." { parent } else { row.parent }
            }
            _ => self.find(parent, name)?.ino,
        };
        let row = self.inode(ino)?.ok_or(VfsError::Dangling { parent, ino })?;
        self.refs.acquire(ino);
        Ok(self.attr_of(ino, &row))
    }

    /// Attributes of an inode that has a name, and one reference to it.
    ///
    /// # Errors
    /// [`VfsError::NotFound`] if it is gone.
    pub fn reference(&self, ino: Ino) -> Result<Attr> {
        if is_control(ino) {
            return self.control_reference(ino);
        }
        let _namespace = self.namespace.read();
        let row = self
            .inode(ino)?
            .filter(|row| row.nlink > 0)
            .ok_or(VfsError::NotFound)?;
        self.refs.acquire(ino);
        Ok(self.attr_of(ino, &row))
    }

    /// The row of a directory that still has a place in the tree.
    pub(super) fn directory(&self, ino: Ino) -> Result<InodeRow> {
        let row = self.row(ino)?;
        check_directory(&row)?;
        Ok(row)
    }

    /// A row for a new inode: empty, with one link and all times now.
    pub(super) fn new_row(
        &self,
        now: Timestamp,
        kind: FileKind,
        permissions: u16,
        (uid, gid): (u32, u32),
        parent: Ino,
    ) -> InodeRow {
        InodeRow {
            kind,
            permissions,
            uid,
            gid,
            nlink: 1,
            size: 0,
            allocated: 0,
            rdev: 0,
            atime: now,
            mtime: now,
            ctime: now,
            btime: now,
            parent,
            generation: self.pool.lsn(),
            target: Vec::new(),
        }
    }

    /// Makes an inode with a name and counts one reference to it. `fill` completes its row.
    fn make(
        &self,
        caller: &Caller,
        parent: Ino,
        name: &[u8],
        (kind, permissions): (FileKind, u16),
        fill: impl FnOnce(&mut InodeRow),
    ) -> Result<Attr> {
        check_new_name(parent, name)?;
        self.pool.begin(Intent::Grow)?;
        let attr = self.make_locked(caller, parent, name, (kind, permissions), fill)?;
        self.settle(true)?;
        Ok(attr)
    }

    fn make_locked(
        &self,
        caller: &Caller,
        parent: Ino,
        name: &[u8],
        (kind, permissions): (FileKind, u16),
        fill: impl FnOnce(&mut InodeRow),
    ) -> Result<Attr> {
        let _stripe = self.pool.lock_exclusive(parent);
        let _namespace = self.namespace.write();
        let mut change = Change::new(self);
        let (now, directory) = (change.now, change.directory(parent)?);
        let mut row = self.new_row(now, kind, permissions, (caller.uid, caller.gid), parent);
        if directory.permissions & S_ISGID != 0 {
            row.gid = directory.gid;
            if kind == FileKind::Directory {
                row.permissions |= S_ISGID;
            }
        }
        fill(&mut row);
        let inherited = self.inherit(caller, parent, &mut row)?;
        let Slot::Free(cookie) = self.slot(parent, name)? else {
            return Err(VfsError::Exists);
        };
        if kind == FileKind::Directory {
            row.nlink = 2;
            change.add_subdirectory(parent)?;
        }
        let ino = self.pool.alloc_ino();
        change.create(ino, &row);
        inherited.put(&mut change.txn, ino);
        change.add_entry(
            parent,
            cookie,
            &DentryRow {
                ino,
                kind,
                name: name.to_vec(),
            },
        )?;
        change.commit()?;
        self.refs.acquire(ino);
        Ok(self.attr_of(ino, &row))
    }

    /// Makes a file that is not a directory or a symbolic link, a regular one if `mode` names no
    /// type, and counts one reference to it.
    ///
    /// # Errors
    /// As mknod(2).
    pub fn mknod(
        &self,
        caller: &Caller,
        parent: Ino,
        name: &[u8],
        mode: u32,
        rdev: u32,
    ) -> Result<Attr> {
        let kind = match mode & !PERMISSIONS {
            0 => FileKind::Regular,
            _ => FileKind::from_mode(mode).ok_or(VfsError::Invalid)?,
        };
        let rdev = match kind {
            FileKind::CharDevice | FileKind::BlockDevice => rdev,
            FileKind::Regular | FileKind::Fifo | FileKind::Socket => 0,
            FileKind::Directory => return Err(VfsError::NotPermitted),
            FileKind::Symlink => return Err(VfsError::Invalid),
        };
        let permissions = (mode & PERMISSIONS) as u16;
        self.make(caller, parent, name, (kind, permissions), |row| {
            row.rdev = rdev
        })
    }

    /// Makes a directory and counts one reference to it.
    ///
    /// # Errors
    /// As mkdir(2).
    pub fn mkdir(&self, caller: &Caller, parent: Ino, name: &[u8], mode: u32) -> Result<Attr> {
        let permissions = (mode & PERMISSIONS) as u16;
        self.make(
            caller,
            parent,
            name,
            (FileKind::Directory, permissions),
            |_| {},
        )
    }

    /// Makes a symbolic link and counts one reference to it.
    ///
    /// # Errors
    /// As symlink(2).
    pub fn symlink(
        &self,
        caller: &Caller,
        parent: Ino,
        name: &[u8],
        target: &[u8],
    ) -> Result<Attr> {
        match target {
            [] => return Err(VfsError::NotFound),
            _ if target.len() > TARGET_MAX => return Err(VfsError::NameTooLong),
            _ if target.contains(&0) => return Err(VfsError::Invalid),
            _ => {}
        }
        self.make(caller, parent, name, (FileKind::Symlink, 0o777), |row| {
            row.size = target.len() as u64;
            row.target = target.to_vec();
        })
    }

    /// Target of a symbolic link.
    ///
    /// # Errors
    /// [`VfsError::Invalid`] if it is none.
    pub fn readlink(&self, ino: Ino) -> Result<Vec<u8>> {
        if is_control(ino) {
            return Err(VfsError::Invalid);
        }
        let row = self.row(ino)?;
        if row.kind == FileKind::Symlink {
            Ok(row.target)
        } else {
            Err(VfsError::Invalid)
        }
    }

    /// Makes one more name for an inode and counts one reference to it.
    ///
    /// # Errors
    /// As link(2).
    pub fn link(&self, _: &Caller, ino: Ino, new_parent: Ino, new_name: &[u8]) -> Result<Attr> {
        check_new_name(new_parent, new_name)?;
        if is_control(ino) {
            return Err(VfsError::NotPermitted);
        }
        self.pool.begin(Intent::Grow)?;
        let attr = self.link_locked(ino, new_parent, new_name)?;
        self.settle(true)?;
        Ok(attr)
    }

    fn link_locked(&self, ino: Ino, new_parent: Ino, new_name: &[u8]) -> Result<Attr> {
        let _stripes = self.pool.lock_exclusive_many(&[ino, new_parent]);
        let _namespace = self.namespace.write();
        let mut change = Change::new(self);
        change.directory(new_parent)?;
        let Slot::Free(cookie) = self.slot(new_parent, new_name)? else {
            return Err(VfsError::Exists);
        };
        let (now, row) = (change.now, change.row(ino)?);
        match (row.kind, row.nlink) {
            (FileKind::Directory, _) => return Err(VfsError::NotPermitted),
            // Without a name an inode is on its way out.
            (_, 0) => return Err(VfsError::NotFound),
            (_, LINK_MAX..) => return Err(VfsError::TooManyLinks),
            _ => row.nlink += 1,
        }
        row.ctime = now;
        let (kind, attr) = (row.kind, self.attr_of(ino, row));
        let entry = DentryRow {
            ino,
            kind,
            name: new_name.to_vec(),
        };
        change.add_entry(new_parent, cookie, &entry)?;
        change.commit()?;
        self.refs.acquire(ino);
        Ok(attr)
    }

    /// Removes a name of a file. The file goes with its last name and its last reference.
    ///
    /// # Errors
    /// As unlink(2).
    pub fn unlink(&self, _: &Caller, parent: Ino, name: &[u8]) -> Result<()> {
        check_old_name(parent, name)?;
        if is_dots(name) {
            return Err(VfsError::IsDirectory);
        }
        self.remove(parent, name, |found| match found.kind {
            FileKind::Directory => Err(VfsError::IsDirectory),
            _ => Ok(()),
        })
    }

    /// Removes an empty directory.
    ///
    /// # Errors
    /// As rmdir(2).
    pub fn rmdir(&self, _: &Caller, parent: Ino, name: &[u8]) -> Result<()> {
        check_old_name(parent, name)?;
        match name {
            b"." => return Err(VfsError::Invalid),
            b".." => return Err(VfsError::NotEmpty),
            _ => {}
        }
        self.remove(parent, name, |found| match found.kind {
            FileKind::Directory if self.is_empty(found.ino)? => Ok(()),
            FileKind::Directory => Err(VfsError::NotEmpty),
            _ => Err(VfsError::NotDirectory),
        })
    }

    /// The inode that has the name now. It may have another as soon as this returns.
    pub(super) fn named(&self, parent: Ino, name: &[u8]) -> Result<Ino> {
        let _namespace = self.namespace.read();
        Ok(self.find(parent, name)?.ino)
    }

    fn remove(&self, parent: Ino, name: &[u8], check: impl Fn(&Found) -> Result<()>) -> Result<()> {
        self.pool.begin(Intent::Shrink)?;
        let (ino, fate) = loop {
            let named = self.named(parent, name)?;
            let_others_in();
            let _stripes = self.pool.lock_exclusive_many(&[parent, named]);
            let _namespace = self.namespace.write();
            let found = self.find(parent, name)?;
            if found.ino != named {
                continue;
            }
            check(&found)?;
            let mut change = Change::new(self);
            change.remove_entry(parent, &found)?;
            if found.kind == FileKind::Directory {
                change.remove_subdirectory(parent)?;
            }
            let fate = self.drop_link(&mut change, found.ino)?;
            change.commit()?;
            break (found.ino, fate);
        };
        self.after_drop(ino, fate)?;
        self.settle(true)
    }
}

/// Where a lookup may be out of date by the time of the locks: tests want that to happen.
pub(super) fn let_others_in() {
    if cfg!(test) {
        std::thread::yield_now();
    }
}

/// Checks that a row is of a directory that still has a place in the tree.
pub(super) fn check_directory(row: &InodeRow) -> Result<()> {
    match row.kind {
        FileKind::Directory if row.nlink == 0 => Err(VfsError::NotFound),
        FileKind::Directory => Ok(()),
        _ => Err(VfsError::NotDirectory),
    }
}

/// Checks a name that is to be made in `parent`.
pub(super) fn check_new_name(parent: Ino, name: &[u8]) -> Result<()> {
    check_name(name)?;
    if is_dots(name) || Vfs::is_control_name(parent, name) {
        return Err(VfsError::Exists);
    }
    if is_control(parent) {
        Err(VfsError::NotPermitted)
    } else {
        Ok(())
    }
}

/// Checks a name that is to be removed from `parent`.
pub(super) fn check_old_name(parent: Ino, name: &[u8]) -> Result<()> {
    check_name(name)?;
    if is_control(parent) || Vfs::is_control_name(parent, name) {
        return Err(VfsError::NotPermitted);
    }
    Ok(())
}
