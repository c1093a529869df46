//! The plain model that the filesystem is compared with: maps and byte vectors, nothing stored.
//!
//! A [`Tree`] is one state of the filesystem. Cloning it is cheap (inodes are shared), so the whole
//! history of states is kept, and after a crash the tree on the mirrors must be one of them. The
//! functions on trees in `apply` change it as POSIX says, or answer with an errno and leave it
//! alone.

use std::collections::BTreeMap;
use std::rc::Rc;

use mendfs::format::{FileKind, Timestamp};
use nix::errno::Errno;

/// Number of the root directory.
pub(crate) const ROOT: u64 = 1;

/// One inode.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Inode {
    pub(crate) kind: FileKind,
    pub(crate) permissions: u16,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) nlink: u32,
    pub(crate) rdev: u32,
    /// Bytes of a file or a target, entries of a directory.
    pub(crate) size: u64,
    pub(crate) atime: Timestamp,
    pub(crate) mtime: Timestamp,
    pub(crate) ctime: Timestamp,
    pub(crate) btime: Timestamp,
    /// Of a directory.
    pub(crate) parent: u64,
    pub(crate) target: Vec<u8>,
    pub(crate) entries: BTreeMap<Vec<u8>, u64>,
    pub(crate) attributes: BTreeMap<Vec<u8>, Vec<u8>>,
    pub(crate) content: Rc<Vec<u8>>,
}

/// A state of the filesystem.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Tree {
    pub(crate) inodes: BTreeMap<u64, Rc<Inode>>,
}

/// What an operation on the model answers.
pub(crate) type Result<T> = std::result::Result<T, Errno>;

/// The time of operation number `number`: the clock of a simulation stands still during each.
pub(crate) fn time_of(number: u64) -> Timestamp {
    Timestamp {
        seconds: 1_000_000 + number as i64,
        nanoseconds: (number % 1000) as u32,
    }
}

impl Inode {
    pub(crate) fn new(kind: FileKind, permissions: u16, ids: (u32, u32), now: Timestamp) -> Inode {
        Inode {
            kind,
            permissions,
            uid: ids.0,
            gid: ids.1,
            nlink: if kind == FileKind::Directory { 2 } else { 1 },
            rdev: 0,
            size: 0,
            atime: now,
            mtime: now,
            ctime: now,
            btime: now,
            parent: 0,
            target: Vec::new(),
            entries: BTreeMap::new(),
            attributes: BTreeMap::new(),
            content: Rc::default(),
        }
    }

    pub(crate) fn is_dir(&self) -> bool {
        self.kind == FileKind::Directory
    }
}

impl Tree {
    /// A new filesystem: its root.
    pub(crate) fn new(now: Timestamp) -> Tree {
        let mut root = Inode::new(FileKind::Directory, 0o755, (0, 0), now);
        root.parent = ROOT;
        Tree {
            inodes: BTreeMap::from([(ROOT, Rc::new(root))]),
        }
    }

    pub(crate) fn get(&self, ino: u64) -> Result<&Inode> {
        self.inodes.get(&ino).map(Rc::as_ref).ok_or(Errno::ESTALE)
    }

    /// The inode to change. It must be there.
    pub(crate) fn edit(&mut self, ino: u64) -> &mut Inode {
        Rc::make_mut(self.inodes.get_mut(&ino).expect("checked before"))
    }

    /// A directory that still has a place in the tree.
    pub(crate) fn directory(&self, ino: u64) -> Result<&Inode> {
        let inode = self.get(ino)?;
        match (inode.is_dir(), inode.nlink) {
            (false, _) => Err(Errno::ENOTDIR),
            (true, 0) => Err(Errno::ENOENT),
            (true, _) => Ok(inode),
        }
    }

    pub(crate) fn regular(&self, ino: u64) -> Result<&Inode> {
        let inode = self.get(ino)?;
        match inode.kind {
            FileKind::Regular => Ok(inode),
            FileKind::Directory => Err(Errno::EISDIR),
            _ => Err(Errno::EINVAL),
        }
    }

    /// The entry of that name, which must be there.
    pub(crate) fn find(&self, parent: u64, name: &[u8]) -> Result<u64> {
        let inode = self.get(parent)?;
        match inode.entries.get(name) {
            Some(ino) => Ok(*ino),
            None => {
                self.directory(parent)?;
                Err(Errno::ENOENT)
            }
        }
    }

    /// The tree as somebody sees it who has nothing open: without what has no name.
    pub(crate) fn visible(&self) -> Tree {
        let linked = |inode: &Rc<Inode>| inode.nlink > 0;
        Tree {
            inodes: self
                .inodes
                .iter()
                .filter(|(_, inode)| linked(inode))
                .map(|(ino, inode)| (*ino, Rc::clone(inode)))
                .collect(),
        }
    }

    /// Where two trees differ, for people; at most a few lines.
    pub(crate) fn difference(&self, other: &Tree) -> String {
        let mut lines = Vec::new();
        let all: std::collections::BTreeSet<_> =
            self.inodes.keys().chain(other.inodes.keys()).collect();
        for ino in all {
            match (self.inodes.get(ino), other.inodes.get(ino)) {
                (Some(a), Some(b)) if a == b => {}
                (Some(a), Some(b)) => lines.push(format!("  inode {ino}: {}", differing(a, b))),
                (Some(a), None) => lines.push(format!("  inode {ino}: missing {}", brief(a))),
                (None, Some(b)) => lines.push(format!("  inode {ino}: too many {}", brief(b))),
                (None, None) => {}
            }
        }
        lines.truncate(8);
        lines.join("\n")
    }
}

fn brief(inode: &Inode) -> String {
    format!(
        "{:?} size {} nlink {} ctime {}",
        inode.kind, inode.size, inode.nlink, inode.ctime.seconds
    )
}

/// What differs between the expected and the actual inode.
fn differing(expected: &Inode, actual: &Inode) -> String {
    let mut found = Vec::new();
    if expected.content != actual.content {
        let at = expected
            .content
            .iter()
            .zip(actual.content.iter())
            .position(|(a, b)| a != b);
        found.push(format!(
            "content: first difference at {at:?} (lengths {} and {})",
            expected.content.len(),
            actual.content.len()
        ));
    }
    if expected.entries != actual.entries {
        found.push(format!(
            "entries: {:?} expected, {:?} there",
            names(expected),
            names(actual)
        ));
    }
    if expected.attributes != actual.attributes {
        found.push("attributes".to_owned());
    }
    let bare = |inode: &Inode| Inode {
        content: Rc::default(),
        entries: BTreeMap::new(),
        attributes: BTreeMap::new(),
        ..inode.clone()
    };
    if bare(expected) != bare(actual) {
        found.push(format!(
            "{:?} expected, {:?} there",
            bare(expected),
            bare(actual)
        ));
    }
    found.join("; ")
}

fn names(inode: &Inode) -> Vec<String> {
    inode
        .entries
        .iter()
        .map(|(name, ino)| {
            let name = String::from_utf8_lossy(name);
            format!("{}={ino}", name.chars().take(12).collect::<String>())
        })
        .collect()
}
