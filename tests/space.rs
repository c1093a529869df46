//! Space comes back: deleting and overwriting return space to the filesystem below, while mounted,
//! without being asked. What a mirror takes is bounded by live data, 256 MiB and the journal.

mod common;

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use common::content::{BLOCK, FileSet, Rng, TestFile, block};
use common::disk::allocated;
use common::{Pool, long};

const MIB: u64 = 1 << 20;
const DEADLINE: Duration = Duration::from_secs(90);

/// Waits until each mirror takes no more than `live` bytes and what the design allows on top.
fn expect_bounded(pool: &Pool, live: u64) {
    for mirror in pool.mirrors() {
        let journal = fs::metadata(mirror.join("journal")).expect("journal").len();
        let bound = live + 256 * MIB + journal;
        let start = Instant::now();
        loop {
            let taken = allocated(mirror);
            if taken <= bound {
                break;
            }
            assert!(
                start.elapsed() < DEADLINE,
                "{taken} bytes for {live} live ones: bound {bound}"
            );
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

#[test]
fn files_written_and_deleted_in_turns_do_not_add_up() {
    let mut rng = Rng::new(common::seed());
    let (rounds, size) = if long() {
        (40, 256 * MIB)
    } else {
        (8, 96 * MIB)
    };
    let mut pool = Pool::create(2);
    pool.mount();
    let mut keep = FileSet { files: Vec::new() };
    for round in 0..rounds {
        let mut set = FileSet::plan(rng.next(), size as usize);
        for file in &mut set.files {
            file.path = PathBuf::from(format!("r{round}")).join(&file.path);
        }
        set.write(pool.mnt());
        // Every 20th file stays, so that no segment is dead as a whole.
        for (number, file) in set.files.iter().enumerate() {
            if number % 20 == 0 && file.len < 65_536 {
                keep.files.push(file.clone());
            } else {
                fs::remove_file(pool.mnt().join(&file.path)).expect("unlink");
            }
        }
    }
    let live = keep.files.iter().map(|file| file.len as u64).sum();
    expect_bounded(&pool, live);
    keep.expect_whole(pool.mnt());
    pool.remount();
    keep.expect_whole(pool.mnt());
    pool.umount();
    pool.check_clean();
}

#[test]
fn a_file_overwritten_in_place_does_not_grow_the_mirrors() {
    let mut rng = Rng::new(common::seed());
    let len = 64 * MIB;
    let blocks = len / BLOCK as u64;
    let mut seeds = vec![rng.next(); blocks as usize];
    let mut pool = Pool::create(2);
    pool.mount();
    let file = File::options()
        .create(true)
        .truncate(true)
        .read(true)
        .write(true)
        .open(pool.mnt().join("database"))
        .expect("open");
    for (number, seed) in seeds.iter().enumerate() {
        let bytes = block(*seed, number as u64);
        file.write_all_at(&bytes, (number * BLOCK) as u64)
            .expect("write");
    }
    let writes = if long() { 1_000_000 } else { 100_000 };
    for write in 0..writes {
        let number = rng.below(blocks);
        seeds[number as usize] = rng.next();
        let bytes = block(seeds[number as usize], number);
        file.write_all_at(&bytes, number * BLOCK as u64)
            .expect("write");
        if write % 5000 == 0 {
            file.sync_data().expect("fdatasync");
        }
    }
    file.sync_all().expect("fsync");
    expect_bounded(&pool, len);
    drop(file);
    pool.remount();
    let file = File::open(pool.mnt().join("database")).expect("open");
    let mut bytes = [0; BLOCK];
    for (number, seed) in seeds.iter().enumerate() {
        file.read_exact_at(&mut bytes, (number * BLOCK) as u64)
            .expect("read");
        assert!(bytes == block(*seed, number as u64), "block {number}");
    }
}

#[test]
fn a_deleted_gigantic_sparse_file_and_its_holes_take_nothing() {
    let mut pool = Pool::create(2);
    pool.mount();
    let before = allocated(pool.mirror(0));
    let path = pool.mnt().join("sparse");
    let file = File::create(&path).expect("create");
    file.set_len(1 << 40).expect("ftruncate");
    for number in 0..64u64 {
        file.write_all_at(b"island", number << 34).expect("write");
    }
    file.sync_all().expect("fsync");
    let taken = allocated(pool.mirror(0)) - before;
    assert!(taken < 64 * MIB, "{taken} bytes for 64 islands");
    drop(file);
    fs::remove_file(path).expect("unlink");
    expect_bounded(&pool, 0);
    pool.umount();
    pool.check_clean();
}

#[test]
fn copies_of_one_content_are_freed_one_by_one() {
    let mut pool = Pool::create(2);
    pool.mount();
    let original = TestFile {
        path: PathBuf::from("original"),
        seed: common::seed(),
        len: 8 << 20,
    };
    original.write(pool.mnt()).expect("the file is written");
    for number in 0..40 {
        fs::copy(
            pool.mnt().join("original"),
            pool.mnt().join(format!("copy{number}")),
        )
        .expect("copy");
    }
    fs::remove_file(pool.mnt().join("original")).expect("unlink");
    for number in 0..39 {
        fs::remove_file(pool.mnt().join(format!("copy{number}"))).expect("unlink");
    }
    common::content::sync_fs(pool.mnt());
    expect_bounded(&pool, 8 * MIB);
    pool.remount();
    let last = TestFile {
        path: PathBuf::from("copy39"),
        ..original
    };
    assert_eq!(last.verify(pool.mnt()), Ok(()));
}
