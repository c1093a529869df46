//! Operations on the model, as POSIX and the vfs's documentation say, errors included.
//!
//! Each either changes the tree and answers, or leaves it alone and gives an errno.

use std::collections::BTreeMap;
use std::rc::Rc;

use mendfs::format::{FileKind, Timestamp, XATTR_VALUE_MAX};
use nix::errno::Errno;

use super::acls::{ACCESS, DEFAULT};
use super::model::{Inode, ROOT, Result, Tree, time_of};
use super::ops::{Op, USERS, bytes};

/// What an operation answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    Done,
    /// Attributes of this inode, and one reference more to it.
    Inode(u64),
    Count(u64),
    Bytes(Vec<u8>),
    Names(BTreeMap<Vec<u8>, u64>),
    /// Checked by its own rules.
    Seek,
}

/// References to inodes that the kernel would hold.
pub(crate) type Refs = BTreeMap<u64, u64>;

/// The model's side of a run.
#[derive(Clone, Debug)]
pub(crate) struct Model {
    pub(crate) tree: Tree,
    pub(crate) refs: Refs,
    /// Number of the next inode.
    pub(crate) next: u64,
    /// The kernel keeps mtime and ctime: writes leave them alone.
    pub(crate) kernel_keeps_times: bool,
}

fn check_name(name: &[u8]) -> Result<()> {
    match name {
        [] => Err(Errno::ENOENT),
        _ if name.len() > 255 => Err(Errno::ENAMETOOLONG),
        _ if name.contains(&0) || name.contains(&b'/') => Err(Errno::EINVAL),
        _ => Ok(()),
    }
}

fn is_dots(name: &[u8]) -> bool {
    name == b"." || name == b".."
}

fn is_control(parent: u64, name: &[u8]) -> bool {
    parent == ROOT && name == b".mendfs"
}

fn check_new(parent: u64, name: &[u8]) -> Result<()> {
    check_name(name)?;
    if is_dots(name) || is_control(parent, name) {
        return Err(Errno::EEXIST);
    }
    Ok(())
}

fn check_old(parent: u64, name: &[u8]) -> Result<()> {
    check_name(name)?;
    if is_control(parent, name) {
        return Err(Errno::EPERM);
    }
    Ok(())
}

fn is_acl(name: &[u8]) -> bool {
    name == ACCESS || name == DEFAULT
}

impl Model {
    pub(crate) fn new(now: Timestamp, kernel_keeps_times: bool) -> Model {
        Model {
            tree: Tree::new(now),
            refs: Refs::new(),
            next: 2,
            kernel_keeps_times,
        }
    }

    /// Applies an operation at time `number`.
    pub(crate) fn apply(&mut self, op: &Op, number: u64) -> Result<Answer> {
        let now = time_of(number);
        match op {
            Op::Mknod {
                user,
                parent,
                name,
                mode,
                rdev,
            } => {
                let kind = match mode & libc::S_IFMT {
                    0 => FileKind::Regular,
                    _ => FileKind::from_mode(*mode).ok_or(Errno::EINVAL)?,
                };
                let rdev = match kind {
                    FileKind::CharDevice | FileKind::BlockDevice => *rdev,
                    FileKind::Directory => return Err(Errno::EPERM),
                    FileKind::Symlink => return Err(Errno::EINVAL),
                    _ => 0,
                };
                let inode = Inode::new(kind, (mode & 0o7777) as u16, USERS[*user], now);
                self.make(*parent, name, Inode { rdev, ..inode }, now)
            }
            Op::Mkdir {
                user,
                parent,
                name,
                mode,
            } => {
                let permissions = (mode & 0o7777) as u16;
                let inode = Inode::new(FileKind::Directory, permissions, USERS[*user], now);
                self.make(*parent, name, inode, now)
            }
            Op::Symlink {
                user,
                parent,
                name,
                target,
            } => {
                match target.len() {
                    0 => return Err(Errno::ENOENT),
                    4096.. => return Err(Errno::ENAMETOOLONG),
                    _ => {}
                }
                let mut inode = Inode::new(FileKind::Symlink, 0o777, USERS[*user], now);
                inode.size = target.len() as u64;
                inode.target.clone_from(target);
                self.make(*parent, name, inode, now)
            }
            Op::Link { ino, parent, name } => self.link(*ino, *parent, name, now),
            Op::Unlink { parent, name } => self.unlink(*parent, name, now),
            Op::Rmdir { parent, name } => self.rmdir(*parent, name, now),
            Op::Rename {
                user,
                from,
                to,
                flags,
            } => self.rename(USERS[*user], (from.0, &from.1), (to.0, &to.1), *flags, now),
            Op::Write {
                ino,
                offset,
                len,
                fill,
                kill,
            } => self.write(*ino, *offset, &bytes(*fill, *len), *kill, now),
            Op::Read { ino, offset, len } => {
                let content = &self.tree.regular(*ino)?.content;
                let from = (*offset as usize).min(content.len());
                let to = (from + len).min(content.len());
                Ok(Answer::Bytes(content[from..to].to_vec()))
            }
            Op::SetAttr {
                user: _,
                ino,
                change,
            } => self.setattr(*ino, change, now),
            Op::Fallocate {
                ino,
                offset,
                len,
                mode,
            } => self.fallocate(*ino, *offset, *len, *mode, now),
            Op::Copy {
                from,
                from_offset,
                to,
                to_offset,
                len,
            } => self.copy((*from, *from_offset), (*to, *to_offset), *len, now),
            Op::SetXattr {
                user,
                ino,
                name,
                len,
                fill,
                flags,
            } => {
                if is_acl(name) {
                    // What is drawn for any attribute is no list.
                    self.check_acl(*ino, name)?;
                    return Err(Errno::EINVAL);
                }
                self.check_attribute(*user, *ino, name)?;
                let exists = self.tree.get(*ino)?.attributes.contains_key(name);
                match (*flags as i32, exists) {
                    _ if *len > XATTR_VALUE_MAX => return Err(Errno::E2BIG),
                    (libc::XATTR_CREATE | 3, true) => return Err(Errno::EEXIST),
                    (libc::XATTR_REPLACE | 3, false) => return Err(Errno::ENODATA),
                    _ => {}
                }
                let inode = self.tree.edit(*ino);
                inode.attributes.insert(name.clone(), bytes(*fill, *len));
                inode.ctime = now;
                Ok(Answer::Done)
            }
            Op::SetAcl {
                ino,
                name,
                entries,
                kill,
            } => self.set_acl(*ino, name, entries, *kill, now),
            Op::RemoveXattr { ino, name, .. } if is_acl(name) => self.remove_acl(*ino, name, now),
            Op::RemoveXattr { user, ino, name } => {
                self.check_attribute(*user, *ino, name)?;
                if !self.tree.get(*ino)?.attributes.contains_key(name) {
                    return Err(Errno::ENODATA);
                }
                let inode = self.tree.edit(*ino);
                inode.attributes.remove(name);
                inode.ctime = now;
                Ok(Answer::Done)
            }
            Op::GetXattr { user, ino, name } => self.getxattr(*user, *ino, name),
            Op::Lookup { parent, name } => {
                check_name(name)?;
                if is_control(*parent, name) {
                    // Not of this tree; the driver does not ask.
                    return Err(Errno::ENOTSUP);
                }
                let ino = match &name[..] {
                    b"." => self.tree.directory(*parent).map(|_| *parent)?,
                    b".." => self.tree.directory(*parent)?.parent,
                    _ => self.tree.find(*parent, name)?,
                };
                *self.refs.entry(ino).or_default() += 1;
                Ok(Answer::Inode(ino))
            }
            Op::Readdir { ino, .. } => {
                let inode = self.tree.get(*ino)?;
                if !inode.is_dir() {
                    return Err(Errno::ENOTDIR);
                }
                let mut names = inode.entries.clone();
                names.insert(b".".to_vec(), *ino);
                names.insert(b"..".to_vec(), inode.parent);
                Ok(Answer::Names(names))
            }
            Op::Seek { ino, offset, .. } => {
                if *offset >= self.tree.regular(*ino)?.size {
                    return Err(Errno::ENXIO);
                }
                Ok(Answer::Seek)
            }
            Op::Forget { ino } => {
                self.forget(*ino);
                Ok(Answer::Done)
            }
        }
    }

    /// Gives one reference back.
    pub(crate) fn forget(&mut self, ino: u64) {
        let Some(count) = self.refs.get_mut(&ino) else {
            return;
        };
        *count -= 1;
        if *count == 0 {
            self.refs.remove(&ino);
            if self.tree.get(ino).is_ok_and(|inode| inode.nlink == 0) {
                self.tree.inodes.remove(&ino);
            }
        }
    }

    fn touch(&mut self, ino: u64, now: Timestamp) -> &mut Inode {
        let inode = self.tree.edit(ino);
        (inode.mtime, inode.ctime) = (now, now);
        inode
    }

    fn add_entry(&mut self, parent: u64, name: &[u8], ino: u64, now: Timestamp) {
        let parent = self.touch(parent, now);
        parent.entries.insert(name.to_vec(), ino);
        parent.size = parent.entries.len() as u64;
    }

    fn remove_entry(&mut self, parent: u64, name: &[u8], now: Timestamp) {
        let parent = self.touch(parent, now);
        parent.entries.remove(name);
        parent.size = parent.entries.len() as u64;
    }

    fn make(&mut self, parent: u64, name: &[u8], inode: Inode, now: Timestamp) -> Result<Answer> {
        check_new(parent, name)?;
        let directory = self.tree.directory(parent)?;
        let (permissions, gid) = (directory.permissions, directory.gid);
        let default = directory.attributes.get(DEFAULT).cloned();
        if directory.entries.contains_key(name) {
            return Err(Errno::EEXIST);
        }
        let mut inode = inode;
        if permissions & 0o2000 != 0 {
            inode.gid = gid;
            if inode.is_dir() {
                inode.permissions |= 0o2000;
            }
        }
        inode.inherit(default.as_ref());
        if inode.is_dir() {
            inode.parent = parent;
            self.tree.edit(parent).nlink += 1;
        }
        let ino = self.next;
        self.next += 1;
        self.tree.inodes.insert(ino, Rc::new(inode));
        self.add_entry(parent, name, ino, now);
        *self.refs.entry(ino).or_default() += 1;
        Ok(Answer::Inode(ino))
    }

    fn link(&mut self, ino: u64, parent: u64, name: &[u8], now: Timestamp) -> Result<Answer> {
        check_new(parent, name)?;
        if self.tree.directory(parent)?.entries.contains_key(name) {
            return Err(Errno::EEXIST);
        }
        let inode = self.tree.get(ino)?;
        match (inode.is_dir(), inode.nlink) {
            (true, _) => return Err(Errno::EPERM),
            (_, 0) => return Err(Errno::ENOENT),
            _ => {}
        }
        let inode = self.tree.edit(ino);
        inode.nlink += 1;
        inode.ctime = now;
        self.add_entry(parent, name, ino, now);
        *self.refs.entry(ino).or_default() += 1;
        Ok(Answer::Inode(ino))
    }

    /// Takes one name from an inode.
    fn drop_link(&mut self, ino: u64, now: Timestamp) {
        let inode = self.tree.edit(ino);
        inode.ctime = now;
        inode.nlink = if inode.is_dir() { 0 } else { inode.nlink - 1 };
        if inode.nlink == 0 && !self.refs.contains_key(&ino) {
            self.tree.inodes.remove(&ino);
        }
    }

    fn unlink(&mut self, parent: u64, name: &[u8], now: Timestamp) -> Result<Answer> {
        check_old(parent, name)?;
        if is_dots(name) {
            return Err(Errno::EISDIR);
        }
        let ino = self.tree.find(parent, name)?;
        if self.tree.get(ino)?.is_dir() {
            return Err(Errno::EISDIR);
        }
        self.remove_entry(parent, name, now);
        self.drop_link(ino, now);
        Ok(Answer::Done)
    }

    fn rmdir(&mut self, parent: u64, name: &[u8], now: Timestamp) -> Result<Answer> {
        check_old(parent, name)?;
        match name {
            b"." => return Err(Errno::EINVAL),
            b".." => return Err(Errno::ENOTEMPTY),
            _ => {}
        }
        let ino = self.tree.find(parent, name)?;
        let inode = self.tree.get(ino)?;
        match (inode.is_dir(), inode.entries.is_empty()) {
            (false, _) => return Err(Errno::ENOTDIR),
            (true, false) => return Err(Errno::ENOTEMPTY),
            (true, true) => {}
        }
        self.remove_entry(parent, name, now);
        self.tree.edit(parent).nlink -= 1;
        self.drop_link(ino, now);
        Ok(Answer::Done)
    }

    /// A directory must not become its own descendant.
    fn check_ancestry(&self, moved: u64, old_parent: u64, new_parent: u64) -> Result<()> {
        if !self.tree.get(moved)?.is_dir() || old_parent == new_parent {
            return Ok(());
        }
        let mut at = new_parent;
        loop {
            if at == moved {
                return Err(Errno::EINVAL);
            }
            if at == ROOT {
                return Ok(());
            }
            at = self.tree.get(at)?.parent;
        }
    }

    fn rename(
        &mut self,
        ids: (u32, u32),
        from: (u64, &[u8]),
        to: (u64, &[u8]),
        flags: u32,
        now: Timestamp,
    ) -> Result<Answer> {
        let exchange = flags & libc::RENAME_EXCHANGE != 0;
        let whiteout = flags & libc::RENAME_WHITEOUT != 0;
        let known = libc::RENAME_NOREPLACE | libc::RENAME_EXCHANGE | libc::RENAME_WHITEOUT;
        if flags & !known != 0 || exchange && flags != libc::RENAME_EXCHANGE {
            return Err(Errno::EINVAL);
        }
        for (parent, name) in [from, to] {
            check_old(parent, name)?;
            if is_dots(name) {
                return Err(Errno::EINVAL);
            }
        }
        if exchange {
            return self.exchange(from, to, now);
        }
        let ino = self.tree.find(from.0, from.1)?;
        let target = self.tree.directory(to.0)?.entries.get(to.1).copied();
        match target {
            Some(_) if flags & libc::RENAME_NOREPLACE != 0 => return Err(Errno::EEXIST),
            Some(target) if target == ino => return Ok(Answer::Done),
            _ => {}
        }
        self.check_ancestry(ino, from.0, to.0)?;
        let is_dir = self.tree.get(ino)?.is_dir();
        if let Some(target) = target {
            let target = self.tree.get(target)?;
            match (is_dir, target.is_dir()) {
                (true, true) if !target.entries.is_empty() => return Err(Errno::ENOTEMPTY),
                (true, false) => return Err(Errno::ENOTDIR),
                (false, true) => return Err(Errno::EISDIR),
                _ => {}
            }
        }
        self.remove_entry(from.0, from.1, now);
        if whiteout {
            let inode = Inode::new(FileKind::CharDevice, 0, ids, now);
            self.tree.inodes.insert(self.next, Rc::new(inode));
            self.add_entry(from.0, from.1, self.next, now);
            self.next += 1;
        }
        self.add_entry(to.0, to.1, ino, now);
        self.tree.edit(ino).ctime = now;
        if is_dir {
            self.tree.edit(from.0).nlink -= 1;
            if target.is_none() {
                self.tree.edit(to.0).nlink += 1;
            }
            self.tree.edit(ino).parent = to.0;
        }
        if let Some(target) = target {
            self.drop_link(target, now);
        }
        Ok(Answer::Done)
    }

    fn exchange(&mut self, a: (u64, &[u8]), b: (u64, &[u8]), now: Timestamp) -> Result<Answer> {
        let (one, other) = (self.tree.find(a.0, a.1)?, self.tree.find(b.0, b.1)?);
        if one == other {
            return Ok(Answer::Done);
        }
        self.check_ancestry(one, a.0, b.0)?;
        self.check_ancestry(other, b.0, a.0)?;
        self.add_entry(a.0, a.1, other, now);
        self.add_entry(b.0, b.1, one, now);
        for (ino, old, new) in [(one, a.0, b.0), (other, b.0, a.0)] {
            let inode = self.tree.edit(ino);
            inode.ctime = now;
            if inode.is_dir() {
                inode.parent = new;
                self.tree.edit(old).nlink -= 1;
                self.tree.edit(new).nlink += 1;
            }
        }
        Ok(Answer::Done)
    }
}
