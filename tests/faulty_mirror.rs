//! A mirror that fails in use, on a filesystem that does what the test says: the pool goes on with
//! the other one, and no application sees an error.

mod common;

use std::fs;
use std::thread;
use std::time::Duration;

use common::content::{FileSet, Rng};
use common::faulty::Faulty;
use common::{Pool, drop_caches, scratch, wait_for};

/// Longest wait for something that takes no time.
const SOON: Duration = Duration::from_secs(20);

/// A pool of two mirrors, the first of them on a faulty filesystem. The pool goes first when both
/// are dropped: its process may wait for the other.
struct Scene {
    pool: Pool,
    faulty: Faulty,
    set: FileSet,
}

/// A mounted pool with a file set in it, nothing of which is cached above the mirrors.
fn scene() -> Scene {
    let mut rng = Rng::new(common::seed());
    let scratch = scratch();
    let faulty = Faulty::new();
    let mirrors = vec![faulty.path(), scratch.path().join("sound")];
    let mut pool = Pool::create_at(scratch, mirrors, &[]);
    let set = FileSet::plan(rng.next(), 160 << 20);
    pool.mount();
    set.write(pool.mnt());
    pool.remount();
    Scene { pool, faulty, set }
}

#[test]
fn a_mirror_on_it_works_like_any_other() {
    let mut scene = scene();
    let before = scene.faulty.reads();
    scene.set.expect_whole(scene.pool.mnt());
    assert!(scene.faulty.reads() > before, "nothing was read from it");
    scene.pool.umount();
    scene.pool.check_clean();
}

#[test]
fn a_read_error_is_answered_from_the_other_mirror() {
    let mut scene = scene();
    scene.faulty.fail_reads(true);
    let before = scene.faulty.reads();
    scene.set.expect_whole(scene.pool.mnt());
    assert!(scene.faulty.reads() > before, "nothing was read from it");
    scene.faulty.fail_reads(false);
    drop_caches();
    scene.set.expect_whole(scene.pool.mnt());
    scene.pool.umount();
    scene.pool.check_clean();
}

#[test]
fn what_hangs_goes_on_when_it_is_released_and_fails_when_the_disk_is_pulled() {
    let mut faulty = Faulty::new();
    let file = faulty.path().join("file");
    fs::write(&file, b"there").expect("write");
    let read = || {
        let file = file.clone();
        thread::spawn(move || fs::read(file))
    };
    let hang = faulty.hang_reads();
    let reader = read();
    wait_for("the read to hang", SOON, || faulty.hanging() == 1);
    assert_eq!(fs::metadata(&file).expect("stat goes on").len(), 5);
    hang.release();
    let bytes = reader.join().expect("no panic").expect("the read goes on");
    assert_eq!(bytes, b"there");

    let _hang = faulty.hang_all();
    let reader = read();
    wait_for("the open to hang", SOON, || faulty.hanging() == 1);
    faulty.unplug();
    reader
        .join()
        .expect("no panic")
        .expect_err("the disk is out");
}
