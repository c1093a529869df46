//! The model's operations on what one inode holds: content, attributes, extended attributes.

use std::rc::Rc;

use mendfs::format::{FileKind, Timestamp};
use nix::errno::Errno;

use super::acls::{ACCESS, DEFAULT};
use super::apply::{Answer, Model};
use super::model::{Inode, Result, time_of};
use super::ops::Change;

fn drop_privileges(inode: &mut Inode) {
    if inode.is_dir() {
        return;
    }
    inode.permissions &= !0o4000;
    if inode.permissions & 0o0010 != 0 {
        inode.permissions &= !0o2000;
    }
    inode.attributes.remove(&b"security.capability"[..]);
}

fn resize(inode: &mut Inode, size: u64) {
    Rc::make_mut(&mut inode.content).resize(size as usize, 0);
    inode.size = size;
}

impl Model {
    pub(crate) fn write(
        &mut self,
        ino: u64,
        offset: u64,
        data: &[u8],
        kill: bool,
        now: Timestamp,
    ) -> Result<Answer> {
        self.tree.regular(ino)?;
        if data.is_empty() {
            return Ok(Answer::Count(0));
        }
        let keeps = self.kernel_keeps_times;
        let inode = self.tree.edit(ino);
        let (from, to) = (offset as usize, offset as usize + data.len());
        let content = Rc::make_mut(&mut inode.content);
        content.resize(content.len().max(to), 0);
        content[from..to].copy_from_slice(data);
        inode.size = content.len() as u64;
        if !keeps {
            (inode.mtime, inode.ctime) = (now, now);
        }
        if kill {
            drop_privileges(inode);
        }
        Ok(Answer::Count(data.len() as u64))
    }

    pub(crate) fn setattr(&mut self, ino: u64, change: &Change, now: Timestamp) -> Result<Answer> {
        match change.size {
            Some(_) => self.tree.regular(ino)?,
            None => self.tree.get(ino)?,
        };
        // What is left of a chown that names neither owner nor group.
        let empty_chown = Change {
            ctime: None,
            kill: false,
            kill_group: false,
            ..change.clone()
        } == Change::default()
            && change.ctime.is_some();
        let keeps = self.kernel_keeps_times;
        let inode = self.tree.edit(ino);
        let same = Change {
            size: Some(inode.size),
            ..Change::default()
        };
        // truncate(2) to the size that the file has.
        if keeps && *change == same {
            return Ok(Answer::Done);
        }
        if change.kill || change.uid.is_some() || change.gid.is_some() || empty_chown {
            drop_privileges(inode);
            if change.kill_group && !inode.is_dir() {
                inode.permissions &= !0o2000;
            }
        }
        if let Some(mode) = change.mode {
            inode.permissions = (mode & 0o7777) as u16;
            inode.acl_follows();
        }
        inode.uid = change.uid.unwrap_or(inode.uid);
        inode.gid = change.gid.unwrap_or(inode.gid);
        if let Some(size) = change.size {
            resize(inode, size);
            inode.mtime = now;
        }
        let time = |asked: Option<Option<u64>>, old| match asked {
            None => old,
            Some(None) => now,
            Some(Some(at)) => time_of(at),
        };
        inode.atime = time(change.atime, inode.atime);
        inode.mtime = time(change.mtime, inode.mtime);
        inode.ctime = change.ctime.map_or(now, time_of);
        Ok(Answer::Done)
    }

    pub(crate) fn fallocate(
        &mut self,
        ino: u64,
        offset: u64,
        len: u64,
        mode: i32,
        now: Timestamp,
    ) -> Result<Answer> {
        const KEEP: i32 = libc::FALLOC_FL_KEEP_SIZE;
        const PUNCH: i32 = libc::FALLOC_FL_PUNCH_HOLE;
        const ZERO: i32 = libc::FALLOC_FL_ZERO_RANGE;
        if len == 0 {
            return Err(Errno::EINVAL);
        }
        if !matches!(mode & !KEEP, 0 | ZERO) && mode != PUNCH | KEEP {
            return Err(Errno::EOPNOTSUPP);
        }
        if let Err(error) = self.tree.regular(ino) {
            return Err(if error == Errno::EINVAL {
                Errno::ENODEV
            } else {
                error
            });
        }
        let inode = self.tree.edit(ino);
        let end = offset + len;
        let zeroes = mode & (PUNCH | ZERO) != 0;
        if zeroes {
            let content = Rc::make_mut(&mut inode.content);
            let size = content.len();
            content[(offset as usize).min(size)..(end as usize).min(size)].fill(0);
        }
        if mode & KEEP == 0 && end > inode.size {
            resize(inode, end);
            inode.mtime = now;
        }
        if zeroes {
            inode.mtime = now;
        }
        inode.ctime = now;
        Ok(Answer::Done)
    }

    pub(crate) fn copy(
        &mut self,
        (from, from_offset): (u64, u64),
        (to, to_offset): (u64, u64),
        len: u64,
        now: Timestamp,
    ) -> Result<Answer> {
        let source = Rc::clone(&self.tree.regular(from)?.content);
        self.tree.regular(to)?;
        let len = len.min((source.len() as u64).saturating_sub(from_offset));
        if len == 0 {
            return Ok(Answer::Count(0));
        }
        if from == to && from_offset < to_offset + len && to_offset < from_offset + len {
            return Err(Errno::EINVAL);
        }
        let piece = &source[from_offset as usize..(from_offset + len) as usize];
        let keeps = std::mem::replace(&mut self.kernel_keeps_times, false);
        let answer = self.write(to, to_offset, piece, false, now);
        self.kernel_keeps_times = keeps;
        answer
    }

    /// Whether the user may change an attribute of that name.
    pub(crate) fn check_attribute(&self, user: usize, ino: u64, name: &[u8]) -> Result<()> {
        let trusted = attribute_space(name)?;
        if name.starts_with(b"user.mendfs.") || trusted && user != 0 {
            return Err(Errno::EPERM);
        }
        let kind = self.tree.get(ino)?.kind;
        let has = matches!(kind, FileKind::Regular | FileKind::Directory);
        if name.starts_with(b"user.") && !has {
            return Err(Errno::EPERM);
        }
        Ok(())
    }

    pub(crate) fn getxattr(&self, user: usize, ino: u64, name: &[u8]) -> Result<Answer> {
        let trusted = attribute_space(name)?;
        if trusted && user != 0 {
            return Err(Errno::ENODATA);
        }
        let value = self
            .tree
            .get(ino)
            .ok()
            .and_then(|inode| inode.attributes.get(name));
        value.cloned().map(Answer::Bytes).ok_or(Errno::ENODATA)
    }
}

/// Whether the name is in the trusted namespace; an errno if in none.
fn attribute_space(name: &[u8]) -> Result<bool> {
    if name.contains(&0) {
        return Err(Errno::EINVAL);
    }
    if name == ACCESS || name == DEFAULT {
        return Ok(false);
    }
    for prefix in [&b"user."[..], b"trusted.", b"security."] {
        match name.strip_prefix(prefix) {
            Some(b"") => return Err(Errno::EINVAL),
            Some(_) => return Ok(prefix == b"trusted."),
            None => {}
        }
    }
    Err(Errno::EOPNOTSUPP)
}
