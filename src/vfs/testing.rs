//! What the vfs tests stand on: the one place that says which pool they run on, small helpers, and a
//! check of every invariant of the rows, as a reader who knows only the pool's public interface.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use crate::format::{DentryRow, ExtentRow, FileKind, Ino, InodeRow, Key, Table};
use crate::pool::Pool;

use super::{Caller, SetAttr, Vfs, VfsOptions};

pub(super) const BLOCK: u64 = 4096;
/// The superuser.
pub(super) const ROOT: Caller = Caller {
    uid: 0,
    gid: 0,
    pid: 1,
    umask: 0o022,
};
/// Somebody.
pub(super) const USER: Caller = Caller {
    uid: 1000,
    gid: 100,
    pid: 2,
    umask: 0o022,
};

/// A new, empty filesystem.
pub(super) fn test_vfs() -> Vfs {
    test_vfs_with(VfsOptions::default())
}

/// A new, empty filesystem that behaves as told.
pub(super) fn test_vfs_with(options: VfsOptions) -> Vfs {
    Vfs::new(Arc::new(Pool::fake()), options).expect("new filesystem")
}

/// The filesystem as the next mount finds it if the process is killed now and nothing is lost.
pub(super) fn killed(vfs: &Vfs) -> Vfs {
    killed_at(vfs, commits(vfs))
}

/// Transactions committed so far.
pub(super) fn commits(vfs: &Vfs) -> usize {
    vfs.pool.history.lock().len()
}

/// The filesystem as the next mount finds it if only the first transactions reached the disk.
pub(super) fn killed_at(vfs: &Vfs, transactions: usize) -> Vfs {
    Vfs::new(Arc::new(vfs.pool.crashed(transactions)), vfs.options).expect("mount after a crash")
}

/// Leaves this much room.
pub(super) fn set_room(vfs: &Vfs, bytes: u64) {
    vfs.pool.available.store(bytes, Ordering::Relaxed);
}

/// Damages all copies of a block of a file.
pub(super) fn damage(vfs: &Vfs, ino: Ino, block: u64) {
    vfs.pool.damaged.lock().insert((ino, block * BLOCK));
}

/// Row changes in the largest transaction so far.
pub(super) fn largest_transaction(vfs: &Vfs) -> u64 {
    vfs.pool.largest_txn.load(Ordering::Relaxed)
}

/// Extents that were stored and neither linked nor given back.
fn leaked(vfs: &Vfs) -> usize {
    vfs.pool.unsettled.lock().len()
}

/// A regular file, 0644, of root.
pub(super) fn file(vfs: &Vfs, parent: Ino, name: &str) -> Ino {
    vfs.mknod(&ROOT, parent, name.as_bytes(), 0o100_644, 0)
        .expect("mknod")
        .ino
}

/// A directory, 0755, of root.
pub(super) fn dir(vfs: &Vfs, parent: Ino, name: &str) -> Ino {
    vfs.mkdir(&ROOT, parent, name.as_bytes(), 0o755)
        .expect("mkdir")
        .ino
}

pub(super) fn truncate(vfs: &Vfs, ino: Ino, size: u64) {
    vfs.setattr(
        &ROOT,
        ino,
        &SetAttr {
            size: Some(size),
            ..SetAttr::default()
        },
    )
    .expect("truncate");
}

/// All of a file.
pub(super) fn content(vfs: &Vfs, ino: Ino) -> Vec<u8> {
    let size = vfs.getattr(ino).expect("getattr").size;
    let mut out = vec![0xaa; 10];
    vfs.read(ino, 0, size as usize + 1, &mut out).expect("read");
    assert_eq!(out.len() as u64, size);
    out
}

/// Names in a directory, without the dots, in order of name.
pub(super) fn names(vfs: &Vfs, ino: Ino) -> Vec<String> {
    let mut names = BTreeSet::new();
    vfs.readdir(ino, 2, &mut |item| {
        assert!(
            names.insert(String::from_utf8_lossy(item.name).into_owned()),
            "given twice"
        );
        true
    })
    .expect("readdir");
    names.into_iter().collect()
}

/// A file of that many extents: every other block.
pub(super) fn fragmented(vfs: &Vfs, parent: Ino, name: &str, extents: u64) -> Ino {
    let ino = file(vfs, parent, name);
    for extent in 0..extents {
        vfs.write(ino, extent * 2 * BLOCK, &[7; BLOCK as usize], false)
            .expect("write");
    }
    ino
}

/// Numbers that look random, from a seed (splitmix64).
#[derive(Debug, Clone)]
pub(super) struct Random(pub(super) u64);

impl Random {
    pub(super) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub(super) fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }
}

/// Seeds to run: the one in `SEED`, or the first `count`.
pub(super) fn seeds(count: u64) -> Vec<u64> {
    match std::env::var("SEED") {
        Ok(seed) => vec![seed.parse().expect("SEED is a number")],
        Err(_) => (0..count).collect(),
    }
}

fn table(vfs: &Vfs, table: Table) -> Vec<(Key, Vec<u8>)> {
    vfs.pool
        .scan(&Key::table_start(table), &Key::table_end(table), usize::MAX)
        .expect("scan")
}

/// Checks that all rows agree with one another. No operation may be running.
pub(super) fn check(vfs: &Vfs) {
    let inodes: BTreeMap<Ino, InodeRow> = table(vfs, Table::Inode)
        .iter()
        .map(|(key, value)| {
            (
                key.ino(Table::Inode).unwrap(),
                InodeRow::decode(value).unwrap(),
            )
        })
        .collect();
    let orphans: BTreeSet<Ino> = table(vfs, Table::Orphan)
        .iter()
        .map(|(key, _)| key.ino(Table::Orphan).unwrap())
        .collect();
    check_names(vfs, &inodes, &orphans);
    check_extents(vfs, &inodes, &orphans);
    for (key, _) in table(vfs, Table::Xattr) {
        assert!(
            inodes.contains_key(&key.ino(Table::Xattr).unwrap()),
            "attribute of no inode"
        );
    }
    let draining = vfs.draining.lock();
    for ino in &orphans {
        assert!(
            draining.contains(ino) || inodes[ino].nlink == 0,
            "inode {ino} is no orphan"
        );
    }
    assert_eq!(vfs.pool.space().unwrap().inodes, inodes.len() as u64);
    assert_eq!(leaked(vfs), 0, "stored for nothing");
}

fn check_names(vfs: &Vfs, inodes: &BTreeMap<Ino, InodeRow>, orphans: &BTreeSet<Ino>) {
    let mut entries: BTreeMap<Ino, u64> = BTreeMap::new();
    let mut subdirectories: BTreeMap<Ino, u32> = BTreeMap::new();
    let mut links: BTreeMap<Ino, u32> = BTreeMap::from([(Ino::ROOT, 1)]);
    let mut seen = BTreeSet::new();
    for (key, value) in table(vfs, Table::Dentry) {
        let (parent, cookie) = key.dentry_parts().unwrap();
        let entry = DentryRow::decode(&value).unwrap();
        let row = &inodes[&entry.ino];
        assert!(
            seen.insert((parent, entry.name.clone())),
            "a name twice in one directory"
        );
        assert!((256..1 << 63).contains(&cookie));
        assert_eq!(row.kind, entry.kind);
        *entries.entry(parent).or_default() += 1;
        *links.entry(entry.ino).or_default() += 1;
        if row.kind == FileKind::Directory {
            assert_eq!(row.parent, parent, "parent of directory {}", entry.ino);
            *subdirectories.entry(parent).or_default() += 1;
        }
    }
    for (ino, row) in inodes {
        let named = links.get(ino).copied().unwrap_or(0);
        if row.kind == FileKind::Directory {
            assert_eq!(
                row.size,
                entries.get(ino).copied().unwrap_or(0),
                "entries of {ino}"
            );
            let expected = 2 + subdirectories.get(ino).copied().unwrap_or(0);
            assert_eq!(
                row.nlink,
                if named > 0 { expected } else { 0 },
                "links of {ino}"
            );
            assert!(named <= 1, "a directory has one name");
        } else {
            assert_eq!(row.nlink, named, "links of {ino}");
            assert!(!entries.contains_key(ino), "entries in a file");
        }
        assert!(
            row.nlink > 0 || orphans.contains(ino),
            "inode {ino} is lost"
        );
    }
}

fn check_extents(vfs: &Vfs, inodes: &BTreeMap<Ino, InodeRow>, orphans: &BTreeSet<Ino>) {
    let width = vfs.pool.algorithm().width();
    let mut ends: BTreeMap<Ino, u64> = BTreeMap::new();
    let mut stored: BTreeMap<Ino, u64> = BTreeMap::new();
    for (key, value) in table(vfs, Table::Extent) {
        let (ino, offset) = key.extent_parts().unwrap();
        let extent = ExtentRow::decode(&value, width).unwrap();
        let row = &inodes[&ino];
        let end = ends.entry(ino).or_default();
        assert!(
            offset % BLOCK == 0 && offset >= *end,
            "extents of {ino} overlap at {offset}"
        );
        *end = extent.block_end(offset);
        *stored.entry(ino).or_default() += u64::from(extent.stored);
        let supplied = offset + u64::from(extent.len);
        assert!(
            supplied <= row.size || orphans.contains(&ino),
            "bytes beyond the end of {ino}"
        );
        assert!(extent.stored.next_multiple_of(4096) == extent.len.next_multiple_of(4096));
    }
    for (ino, row) in inodes {
        assert_eq!(
            row.allocated,
            stored.get(ino).copied().unwrap_or(0),
            "space of {ino}"
        );
    }
}
