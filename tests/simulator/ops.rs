//! The operations of a history, and how they are drawn: mostly sensible, sometimes wrong.

use mendfs::backing::sim::SimRng;
use mendfs::format::FileKind;

use super::acls;
use super::model::{ROOT, Tree};

/// Users that ask.
pub(crate) const USERS: [(u32, u32); 2] = [(0, 0), (1000, 100)];

/// One operation of the filesystem. Inodes are named by number.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Op {
    Mknod {
        user: usize,
        parent: u64,
        name: Vec<u8>,
        mode: u32,
        rdev: u32,
    },
    Mkdir {
        user: usize,
        parent: u64,
        name: Vec<u8>,
        mode: u32,
    },
    Symlink {
        user: usize,
        parent: u64,
        name: Vec<u8>,
        target: Vec<u8>,
    },
    Link {
        ino: u64,
        parent: u64,
        name: Vec<u8>,
    },
    Unlink {
        parent: u64,
        name: Vec<u8>,
    },
    Rmdir {
        parent: u64,
        name: Vec<u8>,
    },
    Rename {
        user: usize,
        from: (u64, Vec<u8>),
        to: (u64, Vec<u8>),
        flags: u32,
    },
    Write {
        ino: u64,
        offset: u64,
        len: usize,
        fill: u64,
        kill: bool,
    },
    Read {
        ino: u64,
        offset: u64,
        len: usize,
    },
    SetAttr {
        user: usize,
        ino: u64,
        change: Change,
    },
    Fallocate {
        ino: u64,
        offset: u64,
        len: u64,
        mode: i32,
    },
    Copy {
        from: u64,
        from_offset: u64,
        to: u64,
        to_offset: u64,
        len: u64,
    },
    SetXattr {
        user: usize,
        ino: u64,
        name: Vec<u8>,
        len: usize,
        fill: u64,
        flags: u32,
    },
    SetAcl {
        ino: u64,
        name: Vec<u8>,
        entries: Vec<acls::Entry>,
        kill: bool,
    },
    RemoveXattr {
        user: usize,
        ino: u64,
        name: Vec<u8>,
    },
    GetXattr {
        user: usize,
        ino: u64,
        name: Vec<u8>,
    },
    Lookup {
        parent: u64,
        name: Vec<u8>,
    },
    Readdir {
        ino: u64,
        batch: usize,
    },
    Seek {
        ino: u64,
        offset: u64,
        hole: bool,
    },
    Forget {
        ino: u64,
    },
}

/// A setattr, with times as numbers of operations.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Change {
    pub(crate) mode: Option<u32>,
    pub(crate) uid: Option<u32>,
    pub(crate) gid: Option<u32>,
    pub(crate) size: Option<u64>,
    pub(crate) atime: Option<Option<u64>>,
    pub(crate) mtime: Option<Option<u64>>,
    pub(crate) ctime: Option<u64>,
    pub(crate) kill: bool,
    pub(crate) kill_group: bool,
}

/// Bytes that belong to a number: not zero in places where it matters.
pub(crate) fn bytes(fill: u64, len: usize) -> Vec<u8> {
    let mut rng = SimRng::new(fill);
    let mut bytes = vec![0; len];
    match fill % 8 {
        // All zeros, text that repeats, and else noise.
        0 => {}
        1 => bytes.fill(b'a' + (fill >> 8) as u8 % 26),
        _ => rng.fill(&mut bytes),
    }
    bytes
}

/// Draws operations that suit a tree.
pub(crate) struct Draw<'a> {
    pub(crate) tree: &'a Tree,
    pub(crate) rng: &'a mut SimRng,
    /// Numbers with references that can be forgotten.
    pub(crate) referenced: Vec<u64>,
    /// Largest file that is usual, in bytes.
    pub(crate) large: u64,
}

impl Draw<'_> {
    fn pick(&mut self, of: &[u64]) -> u64 {
        if of.is_empty() {
            ROOT
        } else {
            of[self.rng.index(of.len())]
        }
    }

    fn of_kind(&self, kind: FileKind) -> Vec<u64> {
        let fits = |ino: &&u64| self.tree.inodes[ino].kind == kind;
        self.tree.inodes.keys().filter(fits).copied().collect()
    }

    fn any(&mut self) -> u64 {
        let all: Vec<u64> = self.tree.inodes.keys().copied().collect();
        self.pick(&all)
    }

    /// A directory, mostly.
    fn dir(&mut self) -> u64 {
        if self.rng.below(60) == 0 {
            return self.any();
        }
        let dirs = self.of_kind(FileKind::Directory);
        self.pick(&dirs)
    }

    /// A regular file, mostly.
    fn file(&mut self) -> u64 {
        if self.rng.below(40) == 0 {
            return self.any();
        }
        let files = self.of_kind(FileKind::Regular);
        self.pick(&files)
    }

    fn name(&mut self) -> Vec<u8> {
        match self.rng.below(120) {
            0 => b".".to_vec(),
            1 => b"..".to_vec(),
            2 => vec![b'n'; 255],
            3 => vec![b'n'; 256],
            4 => b"a/b".to_vec(),
            5 => Vec::new(),
            6 => b".mendfs".to_vec(),
            7..10 => vec![b'm', 0xff, b'0' + self.rng.below(4) as u8],
            _ => format!("f{}", self.rng.below(14)).into_bytes(),
        }
    }

    /// A name that is taken in the directory, mostly.
    fn taken(&mut self, dir: u64) -> Vec<u8> {
        let names: Vec<Vec<u8>> = self
            .tree
            .get(dir)
            .map(|inode| inode.entries.keys().cloned().collect())
            .unwrap_or_default();
        if names.is_empty() || self.rng.below(12) == 0 {
            self.name()
        } else {
            names[self.rng.index(names.len())].clone()
        }
    }

    fn place(&mut self) -> (u64, Vec<u8>) {
        let dir = self.dir();
        (dir, self.taken(dir))
    }

    fn size_of(&self, ino: u64) -> u64 {
        self.tree.get(ino).map_or(0, |inode| inode.size)
    }

    /// An offset in or near a file.
    fn offset(&mut self, ino: u64) -> u64 {
        let size = self.size_of(ino);
        let at = match self.rng.below(8) {
            0 => 0,
            1 | 2 => size,
            3 => self.rng.below(self.large),
            _ => self.rng.below(size + 1),
        };
        match self.rng.below(3) {
            0 => at / 4096 * 4096,
            _ => at,
        }
        .min(2 * self.large)
    }

    fn length(&mut self) -> u64 {
        let len = match self.rng.below(12) {
            0 => 1 + self.rng.below(16),
            1..4 => 1 + self.rng.below(4096),
            4..6 => 4096 * (1 + self.rng.below(8)),
            6..9 => 1 + self.rng.below(32 << 10),
            9 | 10 => 1 + self.rng.below(self.large / 3),
            _ => 1 + self.rng.below(self.large),
        };
        match self.rng.below(400) {
            0 => 0,
            1 => (1 << 20) + self.rng.below(1 << 20),
            _ => len,
        }
    }

    fn user(&mut self) -> usize {
        usize::from(self.rng.below(4) == 0)
    }

    fn attribute(&mut self) -> Vec<u8> {
        let names: [&[u8]; 11] = [
            b"user.a",
            b"user.b",
            b"user.c",
            b"user.long-name-of-an-attribute",
            b"trusted.t",
            b"security.capability",
            acls::ACCESS,
            acls::DEFAULT,
            b"user.",
            b"user.mendfs.health",
            b"user.a\0b",
        ];
        // Values of the two lists are no lists, and the last three are errors: draw them rarely.
        let most = if self.rng.below(10) == 0 {
            names.len()
        } else {
            6
        };
        names[self.rng.index(most)].to_vec()
    }

    fn flags_of_rename(&mut self) -> u32 {
        match self.rng.below(40) {
            0..8 => libc::RENAME_NOREPLACE,
            8..16 => libc::RENAME_EXCHANGE,
            16 | 17 => libc::RENAME_WHITEOUT,
            18 => libc::RENAME_EXCHANGE | libc::RENAME_NOREPLACE,
            19 => 1 << 7,
            _ => 0,
        }
    }

    fn change(&mut self, ino: u64) -> Change {
        let mut change = Change::default();
        let what = self.rng.below(10);
        if what < 5 {
            let size = self.size_of(ino);
            change.size = Some(match self.rng.below(6) {
                0 => 0,
                1 => size,
                2 | 3 => self.rng.below(size + 1),
                4 => size / 4096 * 4096,
                _ => self.rng.below(self.large),
            });
            change.kill = self.rng.below(4) == 0;
            change.kill_group = change.kill && self.rng.coin();
        }
        if what == 5 || what == 9 {
            change.mode = Some(self.rng.below(0o10_000) as u32);
        }
        if what == 6 || what == 9 {
            change.uid = self.rng.coin().then_some(1000);
            change.gid = Some(self.rng.below(3) as u32);
        }
        if what == 8 {
            change.ctime = self.rng.coin().then_some(77);
        }
        if what == 7 || what == 9 {
            change.atime = Some(self.rng.coin().then(|| self.rng.below(1 << 40)));
            change.mtime = Some(self.rng.coin().then(|| self.rng.below(1 << 40)));
            change.ctime = self.rng.coin().then(|| self.rng.below(1 << 30));
        }
        change
    }

    /// The next operation.
    pub(crate) fn op(&mut self) -> Op {
        let few_files = self.tree.inodes.len() < 4;
        match self.rng.below(if few_files { 24 } else { 100 }) {
            0..11 => self.make(),
            11..34 => self.write(),
            34..43 => self.setattr(),
            43..51 => self.fallocate(),
            51..58 => self.copy(),
            58..64 => {
                let (parent, name) = self.place();
                Op::Unlink { parent, name }
            }
            64..66 => {
                let (parent, name) = self.place();
                Op::Rmdir { parent, name }
            }
            66..76 => self.rename(),
            76..79 => {
                let (ino, parent, name) = (self.any(), self.dir(), self.name());
                Op::Link { ino, parent, name }
            }
            79..85 => self.xattr(),
            85..92 => {
                let ino = self.file();
                let (offset, len) = (self.offset(ino), self.length() as usize);
                Op::Read { ino, offset, len }
            }
            92..94 => {
                let (parent, name) = self.place();
                Op::Lookup { parent, name }
            }
            94 => Op::Readdir {
                ino: self.dir(),
                batch: 1 + self.rng.index(5),
            },
            95 | 96 => {
                let ino = self.file();
                let (offset, hole) = (self.offset(ino), self.rng.coin());
                Op::Seek { ino, offset, hole }
            }
            _ => {
                let referenced = std::mem::take(&mut self.referenced);
                Op::Forget {
                    ino: self.pick(&referenced),
                }
            }
        }
    }

    fn make(&mut self) -> Op {
        let (user, parent, name) = (self.user(), self.dir(), self.name());
        match self.rng.below(20) {
            0..4 => Op::Mkdir {
                user,
                parent,
                name,
                mode: self.rng.below(0o10_000) as u32,
            },
            4 | 5 => {
                let len = match self.rng.below(12) {
                    0 => 0,
                    1 => 4096,
                    _ => 1 + self.rng.index(200),
                };
                let target = vec![b't'; len];
                Op::Symlink {
                    user,
                    parent,
                    name,
                    target,
                }
            }
            kind => {
                let format = match kind {
                    6 => libc::S_IFIFO,
                    7 => libc::S_IFCHR,
                    8 => libc::S_IFSOCK,
                    9 => 0,
                    10 if self.rng.below(8) == 0 => libc::S_IFDIR,
                    _ => libc::S_IFREG,
                };
                let mode = format | self.rng.below(0o10_000) as u32;
                Op::Mknod {
                    user,
                    parent,
                    name,
                    mode,
                    rdev: 0x105,
                }
            }
        }
    }

    fn write(&mut self) -> Op {
        let ino = self.file();
        let (offset, len) = (self.offset(ino), self.length() as usize);
        let (fill, kill) = (self.rng.next_u64(), self.rng.below(8) == 0);
        Op::Write {
            ino,
            offset,
            len,
            fill,
            kill,
        }
    }

    fn setattr(&mut self) -> Op {
        let ino = if self.rng.below(3) == 0 {
            self.any()
        } else {
            self.file()
        };
        let (user, change) = (self.user(), self.change(ino));
        Op::SetAttr { user, ino, change }
    }

    fn fallocate(&mut self) -> Op {
        const KEEP: i32 = libc::FALLOC_FL_KEEP_SIZE;
        const PUNCH: i32 = libc::FALLOC_FL_PUNCH_HOLE;
        const ZERO: i32 = libc::FALLOC_FL_ZERO_RANGE;
        let ino = self.file();
        let modes = [
            0,
            KEEP,
            PUNCH | KEEP,
            PUNCH | KEEP,
            PUNCH | KEEP,
            ZERO,
            ZERO | KEEP,
        ];
        let mode = match self.rng.below(60) {
            0 => libc::FALLOC_FL_COLLAPSE_RANGE,
            1 => PUNCH,
            _ => modes[self.rng.index(modes.len())],
        };
        let (mut offset, mut len) = (self.offset(ino), self.length());
        if self.rng.below(3) == 0 {
            (offset, len) = (offset / 4096 * 4096, len.next_multiple_of(4096));
        }
        Op::Fallocate {
            ino,
            offset,
            len,
            mode,
        }
    }

    fn copy(&mut self) -> Op {
        let from = self.file();
        let to = if self.rng.below(4) == 0 {
            from
        } else {
            self.file()
        };
        let (mut from_offset, mut to_offset) = (self.offset(from), self.offset(to));
        if self.rng.below(3) > 0 {
            // The same place in a block, so that blocks can be shared.
            to_offset = to_offset / 4096 * 4096 + from_offset % 4096;
        }
        if self.rng.below(4) == 0 {
            (from_offset, to_offset) = (0, 0);
        }
        let len = self.length() * (1 + self.rng.below(8));
        Op::Copy {
            from,
            from_offset,
            to,
            to_offset,
            len,
        }
    }

    fn rename(&mut self) -> Op {
        let user = self.user();
        let from = self.place();
        let dir = self.dir();
        let name = if self.rng.coin() {
            self.taken(dir)
        } else {
            self.name()
        };
        let flags = self.flags_of_rename();
        Op::Rename {
            user,
            from,
            to: (dir, name),
            flags,
        }
    }

    /// A list, mostly a valid one.
    fn set_acl(&mut self, ino: u64) -> Op {
        let ino = if self.rng.coin() { self.dir() } else { ino };
        let name = if self.rng.coin() {
            acls::ACCESS
        } else {
            acls::DEFAULT
        };
        let mut entries = Vec::new();
        let named = self.rng.below(3);
        for (tag, most) in [
            (1, 1),
            (2, named),
            (4, 1),
            (8, named),
            (16, named.min(1)),
            (32, 1),
        ] {
            for number in 0..most {
                let id = if matches!(tag, 2 | 8) {
                    1000 + number as u32
                } else {
                    u32::MAX
                };
                entries.push((tag, self.rng.below(8) as u16, id));
            }
        }
        match self.rng.below(16) {
            0 => entries.clear(),
            1 => drop(entries.remove(self.rng.index(entries.len()))),
            2 => entries.reverse(),
            _ => {}
        }
        let (name, kill) = (name.to_vec(), self.rng.below(4) == 0);
        if self.rng.below(6) == 0 {
            return Op::RemoveXattr { user: 0, ino, name };
        }
        Op::SetAcl {
            ino,
            name,
            entries,
            kill,
        }
    }

    fn xattr(&mut self) -> Op {
        let (user, ino, name) = (self.user(), self.any(), self.attribute());
        match self.rng.below(8) {
            6 | 7 => self.set_acl(ino),
            0 => Op::RemoveXattr { user, ino, name },
            1 => Op::GetXattr { user, ino, name },
            _ => {
                let len = match self.rng.below(40) {
                    0 => 65_536,
                    1 => 65_537,
                    2..6 => self.rng.index(9000),
                    _ => self.rng.index(200),
                };
                let flags = match self.rng.below(12) {
                    0 => libc::XATTR_CREATE as u32,
                    1 => libc::XATTR_REPLACE as u32,
                    2 => 3,
                    _ => 0,
                };
                let fill = self.rng.next_u64();
                Op::SetXattr {
                    user,
                    ino,
                    name,
                    len,
                    fill,
                    flags,
                }
            }
        }
    }
}
