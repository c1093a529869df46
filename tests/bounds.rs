//! Promise P8, as far as a mount shows it: resident memory and the time to mount do not grow with
//! the number of files. 20,000 files of 4 KiB, 200,000 with MENDFS_LONG=1.

mod common;

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use common::content::{BLOCK, TestFile, sync_fs};
use common::{Pool, drop_caches, long};

const RESIDENT_LIMIT: u64 = 300 << 20;
const MOUNT_LIMIT: Duration = Duration::from_secs(2);

#[test]
fn many_small_files_stay_within_the_memory_bound() {
    let count: u64 = if long() { 200_000 } else { 20_000 };
    let seed = common::seed();
    let file_of = |number: u64| TestFile {
        path: PathBuf::from(format!("d{:03}/f{number}", number % 200)),
        seed: seed ^ (number << 20),
        len: BLOCK,
    };
    let mut pool = Pool::create(2);
    pool.mount();
    let expect_small = |pool: &Pool, when: &str| {
        let resident = pool.resident();
        eprintln!("{when}: {} MiB", resident >> 20);
        assert!(resident <= RESIDENT_LIMIT, "{when}: {resident} bytes");
    };
    for number in 0..count {
        file_of(number)
            .write(pool.mnt())
            .expect("the file is written");
        if number % 10_000 == 0 {
            expect_small(&pool, "writing");
        }
    }
    sync_fs(pool.mnt());
    expect_small(&pool, "after writing");

    pool.kill9();
    let took = pool.mount();
    assert!(took < MOUNT_LIMIT, "mount after a kill took {took:?}");
    for number in 0..count {
        assert_eq!(file_of(number).verify(pool.mnt()), Ok(()));
    }
    expect_small(&pool, "after reading");
    drop_caches();
    let mut seen = 0;
    for dir in fs::read_dir(pool.mnt()).expect("the root") {
        let dir = dir.expect("an entry").path();
        seen += fs::read_dir(dir).expect("a directory").count() as u64;
    }
    assert_eq!(seen, count);
    expect_small(&pool, "after listing");
    let took = pool.remount();
    assert!(took < MOUNT_LIMIT, "a clean mount took {took:?}");
    fs::remove_dir_all(pool.mnt().join("d007")).expect("rm -r");
    expect_small(&pool, "after deleting");
    pool.umount();
    pool.check_clean();
}
