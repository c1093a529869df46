//! What goes in and out of the vfs: plain data, no protocol's types.

use crate::format::{FileKind, Ino, InodeRow, Timestamp};

/// Bits of a hash that make a directory cookie, without the collision index.
pub(super) const NAME_HASH_BITS: u32 = 55;

/// Who asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Caller {
    /// Effective user for filesystem access.
    pub uid: u32,
    /// Effective group for filesystem access.
    pub gid: u32,
    /// Process.
    pub pid: u32,
    /// Its file mode creation mask, for what is made where no default ACL takes its place.
    pub umask: u32,
}

/// Attributes of an inode, as stat(2) gives them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Attr {
    /// Inode number.
    pub ino: Ino,
    /// Makes the number unique over time.
    pub generation: u64,
    /// What it is.
    pub kind: FileKind,
    /// Permission bits: 0 to 0o7777.
    pub permissions: u16,
    /// Hard links.
    pub nlink: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Device number of a device file.
    pub rdev: u32,
    /// Size in bytes; for a directory the number of its entries.
    pub size: u64,
    /// Space taken, in units of 512 bytes.
    pub blocks: u64,
    /// Last access.
    pub atime: Timestamp,
    /// Last change of content.
    pub mtime: Timestamp,
    /// Last change of the inode.
    pub ctime: Timestamp,
    /// Creation.
    pub btime: Timestamp,
}

impl Attr {
    pub(super) fn of(ino: Ino, row: &InodeRow) -> Attr {
        Attr {
            ino,
            generation: row.generation.0,
            kind: row.kind,
            permissions: row.permissions,
            nlink: row.nlink,
            uid: row.uid,
            gid: row.gid,
            rdev: row.rdev,
            size: row.size,
            blocks: row.allocated.div_ceil(512),
            atime: row.atime,
            mtime: row.mtime,
            ctime: row.ctime,
            btime: row.btime,
        }
    }
}

/// A time to set, as in utimensat(2).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SetTime {
    /// The time of the operation.
    Now,
    /// That time.
    At(Timestamp),
}

/// Attributes to change; what is none stays.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct SetAttr {
    /// Permission bits; file type bits are ignored.
    pub mode: Option<u32>,
    /// Owner.
    pub uid: Option<u32>,
    /// Group.
    pub gid: Option<u32>,
    /// Size in bytes, of a regular file.
    pub size: Option<u64>,
    /// Last access.
    pub atime: Option<SetTime>,
    /// Last change of content.
    pub mtime: Option<SetTime>,
    /// Last change of the inode, from a kernel that keeps the times itself (writeback cache).
    pub ctime: Option<Timestamp>,
    /// Content or size is changed by one without CAP_FSETID: set-user-ID and set-group-ID go.
    pub kill_suid: bool,
    /// The caller is not in the file's group either: where set-user-ID goes, set-group-ID goes also
    /// if the group may not execute the file.
    pub kill_sgid: bool,
}

/// One entry that readdir gives out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DirItem<'a> {
    /// Inode number.
    pub ino: Ino,
    /// What it is.
    pub kind: FileKind,
    /// Name.
    pub name: &'a [u8],
    /// To go on after this entry.
    pub cookie: u64,
}

/// The filesystem as statvfs(3) shows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StatFs {
    /// Unit of the block counts, in bytes.
    pub block_size: u32,
    /// Blocks in all.
    pub blocks: u64,
    /// Free blocks.
    pub free: u64,
    /// Free blocks for everybody.
    pub available: u64,
    /// Inodes in all, used and possible.
    pub files: u64,
    /// Inodes that can still be made, an estimate.
    pub files_free: u64,
    /// Longest name in bytes.
    pub name_max: u32,
}

/// What lseek(2) looks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Whence {
    /// SEEK_DATA
    Data,
    /// SEEK_HOLE
    Hole,
}

/// When reading changes the access time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AtimePolicy {
    /// noatime: never.
    Never,
    /// relatime: if the content or the inode changed since the last access, or a day has passed.
    Relative,
    /// strictatime: always.
    Strict,
}

/// How a filesystem is to behave.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct VfsOptions {
    /// The kernel keeps mtime and ctime of regular files and sends them with setattr (writeback
    /// cache): write leaves them alone, since it comes later than the write it is for.
    pub kernel_keeps_times: bool,
    /// When reading changes the access time.
    pub atime: AtimePolicy,
    /// Whether it does so for directories.
    pub diratime: bool,
    /// Changes of names are durable when they are answered (mount option `dirsync`).
    pub sync_names: bool,
    /// Bits of the name hash that are used, at most 55. Only tests have less, so that names
    /// collide.
    pub name_hash_bits: u32,
}

impl Default for VfsOptions {
    fn default() -> VfsOptions {
        VfsOptions {
            kernel_keeps_times: false,
            atime: AtimePolicy::Relative,
            diratime: true,
            sync_names: false,
            name_hash_bits: NAME_HASH_BITS,
        }
    }
}
