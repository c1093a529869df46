//! Promise P7: a full disk is not a trap. The mirrors lie on small filesystems that are filled up:
//! what was acknowledged stays whole, deleting works, space comes back, writing goes on.

mod common;

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use common::content::{FileSet, Rng, TestFile};
use common::media::{ext4, pool_on, tmpfs};
use common::{Pool, wait_for};

const MIB: u64 = 1 << 20;

fn is_full(error: &io::Error) -> bool {
    error.raw_os_error() == Some(libc::ENOSPC)
}

/// Writes and fsyncs files until ENOSPC, and returns those that were acknowledged.
fn fill(dir: &Path, rng: &mut Rng, largest: u64) -> FileSet {
    let mut set = FileSet { files: Vec::new() };
    loop {
        let file = TestFile {
            path: PathBuf::from(format!("f{:05}", set.files.len())),
            seed: rng.next(),
            len: rng.below(largest) as usize,
        };
        match file.write(dir).and_then(|handle| handle.sync_all()) {
            Ok(()) => set.files.push(file),
            Err(error) => {
                assert!(is_full(&error), "{error}");
                let _ = fs::remove_file(dir.join(&file.path));
                return set;
            }
        }
        assert!(set.files.len() < 1_000_000, "it never gets full");
    }
}

fn available(path: &Path) -> u64 {
    let stat = nix::sys::statvfs::statvfs(path).expect("statvfs");
    stat.blocks_available() * stat.fragment_size()
}

/// Fills the pool, goes on working when it is full, deletes, and fills it again.
fn fill_and_empty(pool: &mut Pool, rng: &mut Rng) {
    pool.mount();
    let dir = pool.mnt().join("dir");
    fs::create_dir(&dir).expect("mkdir");
    let mut set = fill(&dir, rng, 4 * MIB);
    assert!(set.files.len() > 10, "only {} files", set.files.len());
    assert!(
        available(pool.mnt()) < 16 * MIB,
        "full with {} left",
        available(pool.mnt())
    );
    set.expect_whole(&dir);

    // Full survives a remount, and a kill.
    pool.remount();
    set.expect_whole(&dir);
    pool.kill9();
    pool.mount();
    set.expect_whole(&dir);

    // Truncating and deleting works, and gives the space back while mounted.
    let first = set.files.remove(0);
    let file = File::options()
        .write(true)
        .open(dir.join(&first.path))
        .expect("open");
    file.set_len(0).expect("truncation on a full pool");
    drop(file);
    fs::remove_file(dir.join(&first.path)).expect("unlink on a full pool");
    let half = set.files.len() / 2;
    let mut freed = 0;
    for file in set.files.drain(..half) {
        fs::remove_file(dir.join(&file.path)).expect("unlink on a full pool");
        freed += file.len as u64;
    }
    wait_for("the space to come back", Duration::from_secs(60), || {
        available(pool.mnt()) > freed / 2
    });
    set.expect_whole(&dir);

    // And all of it can be written again, more than once.
    for round in 0..3 {
        let again = pool.mnt().join(format!("again{round}"));
        fs::create_dir(&again).expect("mkdir");
        let second = fill(&again, rng, 4 * MIB);
        let bytes: u64 = second.files.iter().map(|file| file.len as u64).sum();
        assert!(bytes > freed / 2, "round {round}: {bytes} of {freed} bytes");
        second.expect_whole(&again);
        set.expect_whole(&dir);
        fs::remove_dir_all(&again).expect("rm -r on a full pool");
        wait_for("the space to come back", Duration::from_secs(60), || {
            available(pool.mnt()) > freed / 2
        });
    }
    pool.umount();
    pool.check_clean();
}

#[test]
fn a_full_pool_on_tmpfs_works_again_after_deleting() {
    let mut rng = Rng::new(common::seed());
    let mut pool = pool_on(&[320 * MIB, 320 * MIB], tmpfs);
    fill_and_empty(&mut pool, &mut rng);
}

#[test]
fn a_full_pool_on_ext4_works_again_after_deleting() {
    let mut rng = Rng::new(common::seed());
    let mut pool = pool_on(&[320 * MIB, 320 * MIB], ext4);
    fill_and_empty(&mut pool, &mut rng);
}

#[test]
fn the_smaller_mirror_says_how_much_fits_and_is_not_failed_for_it() {
    let mut rng = Rng::new(common::seed());
    let mut pool = pool_on(&[256 * MIB, 900 * MIB], tmpfs);
    pool.mount();
    assert!(
        available(pool.mnt()) < 256 * MIB,
        "{}",
        available(pool.mnt())
    );
    let set = fill(pool.mnt(), &mut rng, 8 * MIB);
    set.expect_whole(pool.mnt());
    let output = common::mendfs([std::ffi::OsStr::new("status"), pool.mnt().as_os_str()]);
    let shown = common::text(&output);
    assert!(output.status.success(), "not healthy: {shown}");
    for file in &set.files {
        fs::remove_file(pool.mnt().join(&file.path)).expect("unlink");
    }
    pool.umount();
    pool.check_clean();
}

#[test]
fn a_pool_full_of_names_can_be_emptied() {
    let mut rng = Rng::new(common::seed());
    let mut pool = pool_on(&[256 * MIB, 256 * MIB], tmpfs);
    pool.mount();
    let ballast = fill(pool.mnt(), &mut rng, 4 * MIB);
    let mut made = Vec::new();
    let error = loop {
        let dir = pool
            .mnt()
            .join(format!("{}{:07}", "n".repeat(240), made.len()));
        match fs::create_dir(&dir) {
            Ok(()) => made.push(dir),
            Err(error) => break error,
        }
        assert!(made.len() < 2_000_000, "it never gets full");
    };
    assert!(is_full(&error), "{error}");
    // Renaming is no way to need space that is not there, nor is unmounting.
    pool.remount();
    ballast.expect_whole(pool.mnt());
    for dir in &made {
        fs::remove_dir(dir).expect("rmdir on a full pool");
    }
    for file in &ballast.files {
        fs::remove_file(pool.mnt().join(&file.path)).expect("unlink on a full pool");
    }
    wait_for("the space to come back", Duration::from_secs(60), || {
        available(pool.mnt()) > 64 * MIB
    });
    fs::write(pool.mnt().join("after"), "room").expect("write");
    pool.umount();
    pool.check_clean();
}

#[test]
fn a_write_that_does_not_fit_leaves_the_file_as_it_was() {
    let mut rng = Rng::new(common::seed());
    let mut pool = pool_on(&[256 * MIB, 256 * MIB], tmpfs);
    pool.mount();
    let mut set = fill(pool.mnt(), &mut rng, 4 * MIB);
    let victim = set.files.pop().expect("a file");
    let path = pool.mnt().join(&victim.path);
    // posix_fallocate says at once that there is no room, and changes nothing.
    let file = File::options().write(true).open(&path).expect("open");
    let flags = nix::fcntl::FallocateFlags::empty();
    let errno = nix::fcntl::fallocate(&file, flags, 0, 1 << 40).expect_err("no room");
    assert_eq!(errno, nix::errno::Errno::ENOSPC);
    drop(file);
    assert_eq!(victim.verify(pool.mnt()), Ok(()));
    pool.remount();
    assert_eq!(victim.verify(pool.mnt()), Ok(()));
    set.expect_whole(pool.mnt());
}
