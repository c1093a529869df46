//! What the vfs tests stand on: filesystems on the real pool over simulated disks, their crashes
//! and damage, small helpers, and a check of every invariant of the rows.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Deref;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use crate::backing::sim::{PowerLoss, SimDisk, SimSnapshot, SimWorld};
use crate::backing::{Backing, FileName};
use crate::format::{
    Algorithm, DentryRow, ExtentRow, FileKind, Ino, InodeRow, Key, PromiseRow, Table, Timestamp,
};
use crate::pool::{Clock, CommitMode, CreateOptions, OpenOptions, Pool, create};

use super::{Caller, SetAttr, Vfs, VfsOptions};

pub(super) const BLOCK: u64 = 4096;
/// What the pool keeps free, and what it reserves for the index.
const SPACE_KEPT: u64 = 1 << 20;
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

/// A filesystem and the computer it runs on.
#[derive(Debug)]
pub(super) struct TestVfs {
    vfs: Vfs,
    pub(super) world: SimWorld,
    disks: Vec<SimDisk>,
}

impl Deref for TestVfs {
    type Target = Vfs;

    fn deref(&self) -> &Vfs {
        &self.vfs
    }
}

/// A clock of which no two times are equal.
fn clock() -> Clock {
    static TICKS: AtomicI64 = AtomicI64::new(0);
    Arc::new(|| {
        let tick = TICKS.fetch_add(1, Ordering::Relaxed);
        Timestamp {
            seconds: 1_700_000_000 + tick / 1000,
            nanoseconds: (tick % 1000) as u32,
        }
    })
}

fn plugged(disks: &[SimDisk]) -> Vec<Arc<dyn Backing>> {
    disks
        .iter()
        .map(|disk| Arc::new(disk.plug()) as Arc<dyn Backing>)
        .collect()
}

fn mount(world: SimWorld, options: VfsOptions, commit: CommitMode) -> TestVfs {
    mount_as(world, options, commit, false)
}

fn mount_as(world: SimWorld, options: VfsOptions, commit: CommitMode, read_only: bool) -> TestVfs {
    let disks = world.disks();
    let named = disks
        .iter()
        .map(SimDisk::label)
        .zip(plugged(&disks).into_iter().map(Some));
    let pool = OpenOptions {
        cache: 1 << 20,
        clock: clock(),
        commit,
        ledger: false,
        parallel: false,
        read_only,
        segment_size: 8 << 20,
        index_reserve: SPACE_KEPT,
        space_kept: Some(SPACE_KEPT),
        ..OpenOptions::default()
    };
    let pool = Pool::open(named.collect(), pool).expect("mount");
    let vfs = Vfs::new(Arc::new(pool), options).expect("mount");
    TestVfs { vfs, world, disks }
}

/// A new, empty filesystem.
pub(super) fn test_vfs() -> TestVfs {
    test_vfs_with(VfsOptions::default())
}

/// A new, empty filesystem that behaves as told.
pub(super) fn test_vfs_with(options: VfsOptions) -> TestVfs {
    new_vfs(options, CommitMode::None)
}

/// A new, empty filesystem on which each operation is durable when it returns.
pub(super) fn durable_vfs_with(options: VfsOptions) -> TestVfs {
    new_vfs(options, CommitMode::Always)
}

fn new_vfs(options: VfsOptions, commit: CommitMode) -> TestVfs {
    mount(new_pool(), options, commit)
}

/// Two disks with a pool that was never mounted.
pub(super) fn new_pool() -> SimWorld {
    let world = SimWorld::new(1);
    let disks = [world.disk("a"), world.disk("b")];
    let how = CreateOptions {
        label: "test".to_owned(),
        algorithm: Algorithm::Crc32,
        journal_size: 2 << 20,
        created: 0,
        random: (1..=10).map(|byte| [byte; 16]).collect(),
    };
    create(&plugged(&disks), &how).expect("new pool");
    world
}

/// What the disks hold, mounted read-only.
pub(super) fn read_only(world: &SimWorld) -> TestVfs {
    world.disks().iter().for_each(SimDisk::settle);
    let snapshots: Vec<SimSnapshot> = world.disks().iter().map(SimDisk::snapshot).collect();
    mount_as(
        restored(4, &snapshots),
        VfsOptions::default(),
        CommitMode::None,
        true,
    )
}

/// What the disks hold if the process is killed now, after a sync.
fn snapshots(vfs: &TestVfs) -> Vec<SimSnapshot> {
    vfs.pool.sync().expect("sync");
    vfs.disks.iter().for_each(SimDisk::settle);
    vfs.disks.iter().map(SimDisk::snapshot).collect()
}

/// A computer with disks that hold that.
fn restored(seed: u64, snapshots: &[SimSnapshot]) -> SimWorld {
    let world = SimWorld::new(seed);
    for (snapshot, label) in snapshots.iter().zip(["a", "b"]) {
        world.disk(label).restore(snapshot);
    }
    world
}

/// The filesystem as the next mount finds it if the process is killed now and nothing is lost.
pub(super) fn killed(vfs: &TestVfs) -> TestVfs {
    mount(restored(2, &snapshots(vfs)), vfs.options, CommitMode::None)
}

/// As [`killed`], on disks that have only so much room for data left.
pub(super) fn killed_with_room(vfs: &TestVfs, bytes: u64) -> TestVfs {
    let world = restored(3, &snapshots(vfs));
    for disk in world.disks() {
        let space = disk.space().expect("space");
        disk.set_capacity(space.total - space.available + 2 * SPACE_KEPT + bytes);
    }
    mount(world, vfs.options, CommitMode::None)
}

/// Fills what room is left, with writes that are not kept.
pub(super) fn fill_up(vfs: &TestVfs, ino: Ino) {
    let size = vfs.getattr(ino).expect("getattr").size;
    for len in [1 << 16, 1] {
        while vfs.write(ino, size, &[3; 1 << 16][..len], false).is_ok() {}
    }
    truncate(vfs, ino, size);
    // Somebody else takes a little of what the pool keeps for itself.
    for disk in &vfs.disks {
        let space = disk.space().expect("space");
        let kept = SPACE_KEPT.min(space.total / 16);
        disk.set_capacity(space.total - space.available + kept - 4 * BLOCK);
    }
}

/// Bytes of segments that a checkpoint now gives back.
pub(super) fn given_back(vfs: &TestVfs) -> u64 {
    vfs.pool.checkpoint().expect("checkpoint");
    vfs.pool
        .take_freed()
        .iter()
        .map(|freed| u64::from(freed.len))
        .sum()
}

/// The filesystem after the power went off and came back.
pub(super) fn power_cycled(vfs: TestVfs) -> TestVfs {
    let TestVfs {
        vfs,
        world,
        disks: _,
    } = vfs;
    let options = vfs.options;
    drop(vfs);
    world.power_cycle(PowerLoss::Random);
    mount(world, options, CommitMode::Always)
}

/// The filesystem after a power cut that lost whatever was not durable.
pub(super) fn cut_off(vfs: TestVfs) -> TestVfs {
    let TestVfs {
        vfs,
        world,
        disks: _,
    } = vfs;
    let options = vfs.options;
    drop(vfs);
    world.power_cycle(PowerLoss::LoseAll);
    mount(world, options, CommitMode::None)
}

/// Runs `operation` on what `vfs` holds now again and again, cutting the power at one more of the
/// changes on disk each time, and has `check` look at what the next mount finds. Each transaction
/// is durable at once, so all states between them occur. Errors of `operation` are expected.
pub(super) fn crash_sweep(vfs: &TestVfs, operation: impl Fn(&TestVfs), check: impl Fn(&TestVfs)) {
    let snapshots = snapshots(vfs);
    for change in 1.. {
        let run = mount(
            restored(change, &snapshots),
            vfs.options,
            CommitMode::Always,
        );
        run.world.crash_at_change(run.world.changes() + change);
        operation(&run);
        let ended = run.world.is_powered();
        check(&power_cycled(run));
        if ended {
            return;
        }
    }
}

/// Journal records so far: one for each transaction, as long as nothing is synced.
pub(super) fn records(vfs: &TestVfs) -> u64 {
    vfs.pool.lsn().0
}

/// Damages all copies of a block of a file.
pub(super) fn damage(vfs: &TestVfs, ino: Ino, block: u64) {
    let _ = snapshots(vfs);
    let at = block * BLOCK;
    let rows = vfs.pool.extents(ino, at, at + 1).expect("extents");
    let (start, row) = rows.first().expect("a block that is not a hole");
    let offset = u64::from(row.offset) + at - start;
    for disk in &vfs.disks {
        disk.corrupt(FileName::Segment(row.segment), offset, BLOCK);
    }
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
    let mut promised: BTreeMap<Ino, u64> = BTreeMap::new();
    for (key, value) in table(vfs, Table::Promise) {
        let (ino, start) = key.promise_parts().unwrap();
        let len = PromiseRow::decode(&value).unwrap().len;
        let row = &inodes[&ino];
        assert!(row.kind == FileKind::Regular, "space is promised to a file");
        assert!(start.is_multiple_of(BLOCK), "a promise of half a block");
        let data = vfs.pool.extents(ino, start, start + len).unwrap();
        assert!(data.is_empty(), "space is promised that has data");
        let overlapping = vfs.pool.promised(ino, start..start + len, 9).unwrap();
        assert_eq!(overlapping, std::slice::from_ref(&(start..start + len)));
        *promised.entry(ino).or_default() += len;
    }
    for ino in inodes.keys() {
        let told = promised.get(ino).copied().unwrap_or(0);
        assert_eq!(vfs.pool.promised_to(*ino), told, "promised to {ino}");
    }
    let draining = vfs.draining.lock();
    for ino in &orphans {
        assert!(
            draining.contains(ino) || inodes[ino].nlink == 0,
            "inode {ino} is no orphan"
        );
    }
    assert_eq!(vfs.pool.space().unwrap().inodes, inodes.len() as u64);
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
