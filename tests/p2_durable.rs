//! Promise P2: what fsync, fdatasync, O_SYNC or a clean unmount acknowledged is there after a kill,
//! with any one mirror left. Each survivor is tried on a copy of the pool as the kill left it.

mod common;

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use common::content::{FileSet, Rng, TestFile, content};
use common::{Pool, long, xattr};

/// Mounts copies of the pool, each with all mirrors but one moved away, and runs the check on them.
fn with_each_survivor(pool: &Pool, check: impl Fn(&Path)) {
    for survivor in 0..pool.mirrors().len() {
        let mut copy = pool.copy();
        for lost in (0..copy.mirrors().len()).filter(|&mirror| mirror != survivor) {
            let away = copy.scratch().join(format!("away{lost}"));
            fs::rename(copy.mirror(lost), away).expect("rename");
        }
        copy.mount();
        check(copy.mnt());
        assert!(
            copy.status().text().contains("missing"),
            "a lost mirror is not shown: {}",
            copy.status().text()
        );
        // It is a working filesystem, and what is new in it lasts too.
        fs::write(copy.mnt().join("new"), "degraded").expect("write");
        copy.remount();
        let new = fs::read(copy.mnt().join("new")).expect("read");
        assert_eq!(new, b"degraded");
        check(copy.mnt());
        copy.umount();
    }
}

#[test]
fn what_fsync_acknowledged_is_on_every_mirror() {
    let mut rng = Rng::new(common::seed());
    for mirrors in [2, 3] {
        let mut pool = Pool::create(mirrors);
        pool.mount();
        let set = FileSet::plan(rng.next(), if long() { 256 << 20 } else { 16 << 20 });
        for (number, file) in set.files.iter().enumerate() {
            let handle = file.write(pool.mnt()).expect("the file is written");
            if number % 2 == 0 {
                handle.sync_all().expect("fsync");
            } else {
                handle.sync_data().expect("fdatasync");
            }
        }
        // Not acknowledged: may be there or not, and must not be in the way.
        fs::write(pool.mnt().join("unsynced"), content(1, 3_000_000)).expect("write");
        pool.kill9();
        with_each_survivor(&pool, |mnt| set.expect_whole(mnt));
    }
}

#[test]
fn a_file_opened_with_o_sync_needs_no_fsync() {
    let mut rng = Rng::new(common::seed());
    let mut pool = Pool::create(2);
    pool.mount();
    let len = 200_000;
    let seeds: Vec<u64> = (0..20).map(|_| rng.next()).collect();
    for (number, seed) in seeds.iter().enumerate() {
        let flag = if number % 2 == 0 {
            libc::O_SYNC
        } else {
            libc::O_DSYNC
        };
        let mut options = File::options();
        options.create(true).write(true).custom_flags(flag);
        let path = pool.mnt().join(format!("file{number}"));
        let mut file = options.open(path).expect("open");
        for piece in content(*seed, len).chunks(50_000) {
            file.write_all(piece).expect("write");
        }
    }
    pool.kill9();
    with_each_survivor(&pool, |mnt| {
        for (number, seed) in seeds.iter().enumerate() {
            let file = TestFile {
                path: PathBuf::from(format!("file{number}")),
                seed: *seed,
                len,
            };
            assert_eq!(file.verify(mnt), Ok(()));
        }
    });
}

#[test]
fn overwrites_renames_and_deletes_before_an_fsync_are_durable_with_it() {
    let mut pool = Pool::create(2);
    pool.mount();
    let mnt = pool.mnt().to_owned();
    let old = content(1, 500_000);
    for name in ["changed", "renamed", "deleted", "cut"] {
        fs::write(mnt.join(name), &old).expect("write");
    }
    fs::create_dir_all(mnt.join("a/b")).expect("mkdir");
    common::content::sync_fs(&mnt);

    let file = File::options()
        .write(true)
        .open(mnt.join("changed"))
        .expect("open");
    file.write_all_at(b"patched", 123_456).expect("write");
    file.sync_data().expect("fdatasync");
    fs::rename(mnt.join("renamed"), mnt.join("a/b/moved")).expect("rename");
    fs::hard_link(mnt.join("a/b/moved"), mnt.join("linked")).expect("link");
    std::os::unix::fs::symlink("a/b", mnt.join("arrow")).expect("symlink");
    fs::remove_file(mnt.join("deleted")).expect("unlink");
    let cut = File::options()
        .write(true)
        .open(mnt.join("cut"))
        .expect("open");
    cut.set_len(1234).expect("ftruncate");
    let attributes = std::process::Command::new("setfattr")
        .args(["-n", "user.colour", "-v", "blue"])
        .arg(mnt.join("changed"))
        .status();
    assert!(attributes.expect("setfattr runs").success());
    File::open(mnt.join("a/b"))
        .expect("open")
        .sync_all()
        .expect("fsync of a directory");
    cut.sync_all().expect("fsync");
    pool.kill9();

    let mut changed = old.clone();
    changed[123_456..123_463].copy_from_slice(b"patched");
    with_each_survivor(&pool, |mnt| {
        let read = |name: &str| fs::read(mnt.join(name)).expect("read");
        assert!(read("changed") == changed, "the overwrite");
        assert!(
            read("a/b/moved") == old && read("linked") == old,
            "rename and link"
        );
        assert!(!mnt.join("renamed").exists() && !mnt.join("deleted").exists());
        assert!(read("cut") == old[..1234], "the truncation");
        assert_eq!(
            fs::read_link(mnt.join("arrow")).expect("readlink"),
            Path::new("a/b")
        );
        let colour = xattr(&mnt.join("changed"), "user.colour").expect("xattr");
        assert_eq!(colour, b"blue");
    });
}

#[test]
fn a_clean_unmount_makes_everything_durable() {
    let mut pool = Pool::create(2);
    let set = FileSet::plan(common::seed(), 8 << 20);
    pool.mount();
    for file in &set.files {
        file.write(pool.mnt()).expect("the file is written");
    }
    pool.umount();
    with_each_survivor(&pool, |mnt| set.expect_whole(mnt));
}

#[test]
fn a_mirror_that_missed_writes_does_not_bring_old_data_back() {
    let mut pool = Pool::create(2);
    let path = pool.mnt().join("file");
    pool.mount();
    fs::write(&path, content(1, 300_000)).expect("write");
    pool.umount();
    let away = pool.scratch().join("away");
    fs::rename(pool.mirror(0), &away).expect("rename");
    pool.mount();
    fs::write(&path, content(2, 300_000)).expect("write");
    pool.umount();
    fs::rename(&away, pool.mirror(0)).expect("rename");
    for _ in 0..3 {
        pool.mount();
        assert!(
            fs::read(&path).expect("read") == content(2, 300_000),
            "old data"
        );
        pool.umount();
    }
}
