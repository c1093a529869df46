//! Operations on the real filesystem, and looking at it: the tree as its users see it.

use std::collections::BTreeMap;
use std::rc::Rc;

use mendfs::format::{FileKind, Ino, Timestamp};
use mendfs::vfs::{AclKind, Attr, Caller, SetAttr, SetTime, Vfs, VfsError, Whence};
use nix::errno::Errno;

use super::acls;
use super::apply::Answer;
use super::model::{Inode, ROOT, Tree, time_of};
use super::ops::{Change, Op, USERS, bytes};

const BLOCK: u64 = 4096;

/// Answer of the filesystem to an operation, with the attributes that it gave.
pub(crate) struct Reply {
    pub(crate) answer: Answer,
    pub(crate) attr: Option<Attr>,
}

impl From<Answer> for Reply {
    fn from(answer: Answer) -> Reply {
        Reply { answer, attr: None }
    }
}

impl From<Attr> for Reply {
    fn from(attr: Attr) -> Reply {
        Reply {
            answer: Answer::Inode(attr.ino.0),
            attr: Some(attr),
        }
    }
}

fn caller(user: usize) -> Caller {
    let (uid, gid) = USERS[user];
    Caller {
        uid,
        gid,
        pid: 1,
        umask: acls::UMASK.into(),
    }
}

fn set_attr(change: &Change) -> SetAttr {
    let time = |asked: Option<Option<u64>>| {
        asked.map(|at| at.map_or(SetTime::Now, |at| SetTime::At(time_of(at))))
    };
    SetAttr {
        mode: change.mode,
        uid: change.uid,
        gid: change.gid,
        size: change.size,
        atime: time(change.atime),
        mtime: time(change.mtime),
        ctime: change.ctime.map(time_of),
        kill_suid: change.kill,
        kill_sgid: change.kill_group,
    }
}

/// Carries an operation out.
pub(crate) fn execute(vfs: &Vfs, op: &Op) -> Result<Reply, Errno> {
    execute_inner(vfs, op).map_err(|error| error.errno())
}

fn execute_inner(vfs: &Vfs, op: &Op) -> Result<Reply, VfsError> {
    let root = caller(0);
    Ok(match op {
        Op::Mknod {
            user,
            parent,
            name,
            mode,
            rdev,
        } => vfs
            .mknod(&caller(*user), Ino(*parent), name, *mode, *rdev)?
            .into(),
        Op::Mkdir {
            user,
            parent,
            name,
            mode,
        } => vfs.mkdir(&caller(*user), Ino(*parent), name, *mode)?.into(),
        Op::Symlink {
            user,
            parent,
            name,
            target,
        } => vfs
            .symlink(&caller(*user), Ino(*parent), name, target)?
            .into(),
        Op::Link { ino, parent, name } => vfs.link(&root, Ino(*ino), Ino(*parent), name)?.into(),
        Op::Unlink { parent, name } => {
            vfs.unlink(&root, Ino(*parent), name)?;
            Answer::Done.into()
        }
        Op::Rmdir { parent, name } => {
            vfs.rmdir(&root, Ino(*parent), name)?;
            Answer::Done.into()
        }
        Op::Rename {
            user,
            from,
            to,
            flags,
        } => {
            let caller = caller(*user);
            vfs.rename(&caller, Ino(from.0), &from.1, Ino(to.0), &to.1, *flags)?;
            Answer::Done.into()
        }
        Op::Write {
            ino,
            offset,
            len,
            fill,
            kill,
        } => {
            let data = bytes(*fill, *len);
            Answer::Count(vfs.write(Ino(*ino), *offset, &data, *kill)? as u64).into()
        }
        Op::Read { ino, offset, len } => {
            let mut out = vec![0xee; 7];
            vfs.read(Ino(*ino), *offset, *len, &mut out)?;
            Answer::Bytes(out).into()
        }
        Op::SetAttr { user, ino, change } => {
            let attr = vfs.setattr(&caller(*user), Ino(*ino), &set_attr(change))?;
            Reply {
                answer: Answer::Done,
                attr: Some(attr),
            }
        }
        Op::Fallocate {
            ino,
            offset,
            len,
            mode,
        } => {
            vfs.fallocate(Ino(*ino), *offset, *len, *mode)?;
            Answer::Done.into()
        }
        Op::Copy {
            from,
            from_offset,
            to,
            to_offset,
            len,
        } => {
            let copied = vfs.copy_range(Ino(*from), *from_offset, Ino(*to), *to_offset, *len)?;
            Answer::Count(copied).into()
        }
        Op::SetXattr {
            user,
            ino,
            name,
            len,
            fill,
            flags,
        } => {
            vfs.setxattr(&caller(*user), Ino(*ino), name, &bytes(*fill, *len), *flags)?;
            Answer::Done.into()
        }
        Op::SetAcl {
            ino,
            name,
            entries,
            kill,
        } => {
            let kind = AclKind::of(name).expect("a list");
            vfs.set_acl(Ino(*ino), kind, &acls::encode(entries), *kill)?;
            Answer::Done.into()
        }
        Op::RemoveXattr { user, ino, name } => {
            vfs.removexattr(&caller(*user), Ino(*ino), name)?;
            Answer::Done.into()
        }
        Op::GetXattr { user, ino, name } => {
            Answer::Bytes(vfs.getxattr(&caller(*user), Ino(*ino), name)?).into()
        }
        Op::Lookup { parent, name } => vfs.lookup(Ino(*parent), name)?.into(),
        Op::Readdir { ino, batch } => Answer::Names(names(vfs, *ino, *batch)?).into(),
        Op::Seek { ino, offset, hole } => {
            let whence = if *hole { Whence::Hole } else { Whence::Data };
            match vfs.lseek(Ino(*ino), *offset, whence) {
                // No data behind the offset: the walk over the whole file checks that.
                Err(VfsError::NoSuchAddress) if *offset < vfs.getattr(Ino(*ino))?.size => {}
                other => drop(other?),
            }
            Answer::Seek.into()
        }
        Op::Forget { ino } => {
            vfs.forget(Ino(*ino), 1);
            Answer::Done.into()
        }
    })
}

/// Entries of a directory, read `batch` at a time, each exactly once.
fn names(vfs: &Vfs, ino: u64, batch: usize) -> Result<BTreeMap<Vec<u8>, u64>, VfsError> {
    let mut names = BTreeMap::new();
    let mut from = 0;
    loop {
        let mut taken = 0;
        vfs.readdir(Ino(ino), from, &mut |item| {
            if taken == batch {
                return false;
            }
            taken += 1;
            assert!(item.cookie > from, "cookies go up");
            from = item.cookie;
            let again = names.insert(item.name.to_vec(), item.ino.0);
            assert!(again.is_none(), "readdir gave {:?} twice", item.name);
            true
        })?;
        if taken < batch {
            return Ok(names);
        }
    }
}

/// The model's attributes as the filesystem would give them.
pub(crate) fn matches(attr: &Attr, inode: &Inode) -> bool {
    bare(attr)
        == Inode {
            parent: 0,
            ..without_content(inode)
        }
}

fn without_content(inode: &Inode) -> Inode {
    Inode {
        content: Rc::default(),
        target: Vec::new(),
        entries: BTreeMap::new(),
        attributes: BTreeMap::new(),
        ..inode.clone()
    }
}

fn bare(attr: &Attr) -> Inode {
    Inode {
        kind: attr.kind,
        permissions: attr.permissions,
        uid: attr.uid,
        gid: attr.gid,
        nlink: attr.nlink,
        rdev: attr.rdev,
        size: attr.size,
        atime: attr.atime,
        mtime: attr.mtime,
        ctime: attr.ctime,
        btime: attr.btime,
        parent: 0,
        ..Inode::new(
            attr.kind,
            0,
            (0, 0),
            Timestamp {
                seconds: 0,
                nanoseconds: 0,
            },
        )
    }
}

/// The whole tree as users of the filesystem see it. Every byte is read.
pub(crate) fn look(vfs: &Vfs) -> Result<Tree, String> {
    let mut tree = Tree::default();
    let mut todo = vec![ROOT];
    while let Some(ino) = todo.pop() {
        if tree.inodes.contains_key(&ino) {
            continue;
        }
        let inode = look_at(vfs, ino).map_err(|error| format!("inode {ino}: {error}"))?;
        todo.extend(inode.entries.values());
        tree.inodes.insert(ino, Rc::new(inode));
    }
    Ok(tree)
}

fn look_at(vfs: &Vfs, ino: u64) -> Result<Inode, String> {
    let text = |error: VfsError| format!("{error} ({})", error.errno());
    let attr = vfs.getattr(Ino(ino)).map_err(text)?;
    let mut inode = bare(&attr);
    let root = caller(0);
    match attr.kind {
        FileKind::Directory => {
            inode.entries = names(vfs, ino, 64).map_err(text)?;
            inode.entries.remove(&b"."[..]);
            inode.parent = inode.entries.remove(&b".."[..]).unwrap_or(0);
            for (name, child) in &inode.entries {
                let found = vfs.lookup(Ino(ino), name).map_err(text)?;
                vfs.forget(found.ino, 1);
                if found.ino.0 != *child {
                    return Err(format!("readdir says {child}, lookup {}", found.ino));
                }
            }
        }
        FileKind::Symlink => inode.target = vfs.readlink(Ino(ino)).map_err(text)?,
        FileKind::Regular => {
            let mut content = Vec::new();
            vfs.read(Ino(ino), 0, attr.size as usize + 1, &mut content)
                .map_err(text)?;
            check_holes(vfs, &attr, &content)?;
            inode.content = Rc::new(content);
        }
        _ => {}
    }
    for name in vfs
        .listxattr(&root, Ino(ino))
        .map_err(text)?
        .split(|byte| *byte == 0)
    {
        if !name.is_empty() && !name.starts_with(b"user.mendfs.") {
            let value = vfs.getxattr(&root, Ino(ino), name).map_err(text)?;
            inode.attributes.insert(name.to_vec(), value);
        }
    }
    Ok(inode)
}

/// Data and holes take turns, holes hold zeros only, and the space taken fits the data.
fn check_holes(vfs: &Vfs, attr: &Attr, content: &[u8]) -> Result<(), String> {
    let seek = |at: u64, whence: Whence| match vfs.lseek(attr.ino, at, whence) {
        Ok(at) => Ok(Some(at)),
        Err(VfsError::NoSuchAddress) => Ok(None),
        Err(error) => Err(error.to_string()),
    };
    let (mut at, mut data) = (0, 0);
    while at < attr.size {
        let start = seek(at, Whence::Data)?.unwrap_or(attr.size);
        if start < at
            || content[at as usize..start as usize]
                .iter()
                .any(|byte| *byte != 0)
        {
            return Err(format!("data in the hole from {at} to {start}"));
        }
        if start == attr.size {
            break;
        }
        let end = seek(start, Whence::Hole)?.ok_or("no hole at the end")?;
        if end <= start || end > attr.size {
            return Err(format!("data from {start} to {end} of {}", attr.size));
        }
        data += end.next_multiple_of(BLOCK) - start;
        at = end;
    }
    let promised = vfs.pool().promised_to(attr.ino);
    if attr.blocks * 512 > (data + promised).next_multiple_of(512) {
        return Err(format!("{} blocks for {data} bytes of data", attr.blocks));
    }
    Ok(())
}
