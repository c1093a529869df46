//! fallocate(2) on a mount: the space that it promises is there when others have filled the pool,
//! also after a remount, and comes back with whatever takes space from a file.

mod common;

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, fallocate};
use nix::sys::statvfs::statvfs;

use common::content::content;
use common::media::{Medium, ext4, pool_on, tmpfs};
use common::{Mounted, Pool, scratch};

const MIB: u64 = 1 << 20;

fn rw(path: &Path) -> File {
    let mut options = File::options();
    options.create(true).truncate(false).read(true).write(true);
    options.open(path).expect("open")
}

fn is_full(error: &io::Error) -> bool {
    error.raw_os_error() == Some(libc::ENOSPC)
}

/// Fills the filesystem with one file, then with ever smaller ones.
fn fill(dir: &Path) {
    for (number, len) in [MIB, 64 << 10, 4096].into_iter().enumerate() {
        let mut file = rw(&dir.join(format!("ballast{number}")));
        let chunk = content(number as u64, len as usize);
        loop {
            let written = file.write_all(&chunk).and_then(|()| file.sync_data());
            if let Err(error) = written {
                assert!(is_full(&error), "{error}");
                break;
            }
        }
    }
}

fn available(dir: &Path) -> u64 {
    let stat = statvfs(dir).expect("statvfs");
    stat.blocks_available() * stat.fragment_size()
}

/// Promises, fills up, mounts again if there is a pool, and takes what was promised.
fn promise_and_take(dir: &Path, mut pool: Option<&mut Pool>) {
    let (kept, grown) = (dir.join("kept"), dir.join("grown"));
    let file = rw(&kept);
    file.write_all_at(b"head", 0).expect("write");
    let before = available(dir);
    fallocate(&file, FallocateFlags::FALLOC_FL_KEEP_SIZE, 4096, 8 << 20).expect("fallocate");
    fallocate(rw(&grown), FallocateFlags::empty(), 0, 4 << 20).expect("fallocate");
    assert!(before - available(dir) >= 12 * MIB, "not counted as taken");
    assert_eq!(file.metadata().expect("stat").len(), 4);
    let blocks = file.metadata().expect("stat").blocks();
    assert!(blocks >= (8 * MIB) / 512, "{blocks} blocks");
    assert_eq!(fs::metadata(&grown).expect("stat").len(), 4 * MIB);
    drop(file);
    fill(dir);
    if let Some(pool) = pool.as_deref_mut() {
        pool.remount();
    }
    let keep = FallocateFlags::FALLOC_FL_KEEP_SIZE;
    let refused = fallocate(rw(&kept), keep, 1 << 30, 16 << 20);
    assert_eq!(refused, Err(Errno::ENOSPC));
    // Synced block by block: what takes the most space.
    let file = rw(&kept);
    let bytes = content(1, 8 << 20);
    for (number, block) in bytes.chunks(4096).enumerate() {
        let at = (number as u64 + 1) * 4096;
        let written = file
            .write_all_at(block, at)
            .and_then(|()| match number % 16 {
                0 => file.sync_data(),
                _ => Ok(()),
            });
        written.unwrap_or_else(|error| panic!("promised block {number}: {error}"));
    }
    file.sync_all().expect("what was promised");
    // A log that appends within its blocks, over and over.
    let log = rw(&grown);
    for number in 0..2000_u64 {
        let record = format!("record {number:05} {}\n", "x".repeat(100));
        let at = number * record.len() as u64;
        log.write_all_at(record.as_bytes(), at).expect("write");
        log.sync_data()
            .unwrap_or_else(|error| panic!("record {number}: {error}"));
    }
    drop((file, log));
    if let Some(pool) = pool {
        pool.remount();
    }
    let read = fs::read(&kept).expect("read");
    assert!(read[4096..] == bytes && read[..4] == *b"head");
    let text = fs::read(&grown).expect("read");
    assert!(text.starts_with(b"record 00000 x") && text[..200_000].iter().all(|byte| *byte != 0));
    // And on a full filesystem all of it can go.
    for name in ["kept", "grown", "ballast0", "ballast1", "ballast2"] {
        fs::remove_file(dir.join(name)).expect("unlink");
    }
}

fn on_pool(medium: Medium) {
    let mut pool = pool_on(&[256 * MIB, 256 * MIB], medium);
    pool.mount();
    let dir = pool.mnt().to_owned();
    promise_and_take(&dir, Some(&mut pool));
    pool.umount();
    pool.check_clean();
}

#[test]
fn promised_space_cannot_be_taken_by_others_on_tmpfs() {
    on_pool(tmpfs);
}

#[test]
fn promised_space_cannot_be_taken_by_others_on_ext4() {
    on_pool(ext4);
}

#[test]
fn ext4_itself_passes_the_same_test() {
    let scratch = scratch();
    let at = scratch.path().join("ext4");
    fs::create_dir(&at).expect("mkdir");
    ext4(&at, 128 * MIB);
    let _disk = Mounted(at.clone());
    promise_and_take(&at, None);
}

#[test]
fn space_comes_back_to_whoever_waits_for_it() {
    let mut pool = pool_on(&[256 * MIB, 256 * MIB], tmpfs);
    pool.mount();
    let dir = pool.mnt().to_owned();
    let old = rw(&dir.join("old"));
    old.write_all_at(&content(1, 24 << 20), 0).expect("write");
    old.sync_all().expect("fsync");
    drop(old);
    fill(&dir);
    // Right after the deletion, as when something is replaced on a full disk.
    fs::remove_file(dir.join("old")).expect("unlink");
    let new = rw(&dir.join("new"));
    fallocate(&new, FallocateFlags::empty(), 0, 8 << 20).expect("fallocate");
    new.write_all_at(&content(2, 16 << 20), 0).expect("write");
    new.sync_all().expect("fsync");
    drop(new);
    pool.umount();
    pool.check_clean();
}

#[test]
fn holes_and_truncation_give_promised_space_back() {
    let pool = {
        let mut pool = Pool::create(2);
        pool.mount();
        pool
    };
    let file = rw(&pool.mnt().join("file"));
    let blocks = || file.metadata().expect("stat").blocks() * 512;
    let keep = FallocateFlags::FALLOC_FL_KEEP_SIZE;
    fallocate(&file, FallocateFlags::empty(), 0, 10 << 20).expect("fallocate");
    assert_eq!(blocks(), 10 << 20);
    let punch = FallocateFlags::FALLOC_FL_PUNCH_HOLE | keep;
    fallocate(&file, punch, 1 << 20, 2 << 20).expect("punch");
    assert_eq!(blocks(), 8 << 20);
    file.set_len(4 << 20).expect("truncate");
    assert_eq!(blocks(), 2 << 20);
    file.write_all_at(&content(1, 1 << 20), 0).expect("write");
    file.sync_all().expect("fsync");
    assert_eq!(blocks(), 2 << 20);
    let zero = FallocateFlags::FALLOC_FL_ZERO_RANGE;
    fallocate(&file, zero, 0, 4 << 20).expect("zero");
    assert_eq!(blocks(), 4 << 20);
    file.set_len(0).expect("truncate");
    assert_eq!(blocks(), 0);
}
