//! Promise P1: no byte reaches an application unverified; where no mirror has a good copy the read
//! fails with EIO for exactly the damaged blocks and no others.

mod common;

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use common::content::{BLOCK, FileSet, Rng, TestFile, block};
use common::disk::{Places, damage, locate};
use common::{Pool, drop_caches, status, xattr};

const FILE_LEN: usize = 3 << 20;

/// A pool with one file of 3 MiB and some bystanders, unmounted, and where the blocks lie.
fn pool_with_file() -> (Pool, FileSet, Places) {
    let mut rng = Rng::new(common::seed());
    let mut pool = Pool::create(2);
    let mut set = FileSet::plan(rng.next(), 2 << 20);
    set.files.insert(
        0,
        TestFile {
            path: PathBuf::from("some/where/victim"),
            seed: rng.next(),
            len: FILE_LEN,
        },
    );
    pool.mount();
    set.write(pool.mnt());
    pool.umount();
    let places = locate(pool.mirror(0), &set);
    (pool, set, places)
}

/// Damages all copies of one block of the victim on one mirror.
fn damage_block(pool: &Pool, mirror: usize, places: &Places, index: u64) {
    let found = &places[&(0, index)];
    assert!(!found.is_empty());
    for place in found {
        let at = place.offset + 1000;
        let mut rng = Rng::new(index + mirror as u64);
        damage(&pool.mirror(mirror).join(&place.segment), at, 700, &mut rng);
    }
}

fn read_block(file: &File, index: u64) -> std::io::Result<[u8; BLOCK]> {
    let mut bytes = [0; BLOCK];
    file.read_exact_at(&mut bytes, index * BLOCK as u64)?;
    Ok(bytes)
}

fn victim(pool: &Pool) -> PathBuf {
    pool.mnt().join("some/where/victim")
}

/// Expects EIO at these blocks of the victim and the right bytes at all others.
fn expect_holes(path: &Path, seed: u64, bad: &[u64]) {
    let file = File::open(path).expect("the file opens");
    for index in 0..(FILE_LEN / BLOCK) as u64 {
        match read_block(&file, index) {
            Ok(bytes) => {
                assert!(!bad.contains(&index), "block {index} was read");
                assert!(bytes == block(seed, index), "block {index} is other data");
            }
            Err(error) => {
                assert!(bad.contains(&index), "block {index}: {error}");
                assert_eq!(error.raw_os_error(), Some(libc::EIO), "block {index}");
            }
        }
    }
}

#[test]
fn one_bad_copy_is_read_from_the_other_mirror() {
    let (mut pool, set, places) = pool_with_file();
    for index in [0, 1, 77, 255, 256, 500, 767] {
        damage_block(&pool, (index % 2) as usize, &places, index);
    }
    pool.mount();
    set.expect_whole(pool.mnt());
    let status = status::wait_repaired(&pool);
    assert!(status.repaired() >= 7, "{}", status.text());
    assert_eq!(status.unrepairable(), 0, "{}", status.text());
    let health = xattr(&victim(&pool), "user.mendfs.health").expect("health");
    assert!(health.starts_with(b"repaired"), "{health:?}");
    pool.umount();
    for index in [0, 1, 77, 255, 256, 500, 767] {
        let place = &places[&(0, index)][0];
        let mirror = pool.mirror((index % 2) as usize).join(&place.segment);
        let bytes = fs::read(mirror).expect("the segment");
        let healed = &bytes[place.offset as usize..][..BLOCK];
        assert!(healed == block(set.files[0].seed, index), "block {index}");
    }
}

#[test]
fn a_block_bad_on_all_mirrors_is_eio_alone() {
    let (mut pool, set, places) = pool_with_file();
    let bad = [40, 41, 300];
    for index in bad {
        damage_block(&pool, 0, &places, index);
        damage_block(&pool, 1, &places, index);
    }
    pool.mount();
    expect_holes(&victim(&pool), set.files[0].seed, &bad);
    // Asked again, with nothing cached and in the other direction, the answer is the same.
    drop_caches();
    let file = File::open(victim(&pool)).expect("the file opens");
    for index in bad.iter().rev() {
        let error = read_block(&file, *index).expect_err("a bad block");
        assert_eq!(error.raw_os_error(), Some(libc::EIO));
    }
    let rest = FileSet {
        files: set.files[1..].to_vec(),
    };
    rest.expect_whole(pool.mnt());
}

#[test]
fn a_stream_gets_every_byte_before_the_bad_block() {
    let (mut pool, set, places) = pool_with_file();
    damage_block(&pool, 0, &places, 600);
    damage_block(&pool, 1, &places, 600);
    pool.mount();
    let file = File::open(victim(&pool)).expect("the file opens");
    let mut at = 0u64;
    let mut piece = vec![0; 128 << 10];
    let error = loop {
        match file.read_at(&mut piece, at) {
            Ok(0) => panic!("end of file at {at}"),
            Ok(got) => at += got as u64,
            Err(error) => break error,
        }
    };
    assert_eq!(error.raw_os_error(), Some(libc::EIO));
    assert_eq!(at, 600 * BLOCK as u64);
    let after = read_block(&file, 601).expect("the block behind it");
    assert!(after == block(set.files[0].seed, 601));
}

#[test]
fn status_health_and_log_name_the_path_and_the_range() {
    let (mut pool, set, places) = pool_with_file();
    damage_block(&pool, 0, &places, 123);
    damage_block(&pool, 1, &places, 123);
    pool.mount();
    let healthy = xattr(&pool.mnt().join(&set.files[1].path), "user.mendfs.health");
    assert!(healthy.expect("health").starts_with(b"ok"));
    let file = File::open(victim(&pool)).expect("the file opens");
    read_block(&file, 123).expect_err("a bad block");

    let offset = (123 * BLOCK).to_string();
    let health = xattr(&victim(&pool), "user.mendfs.health").expect("health");
    let health = String::from_utf8(health).expect("text");
    assert!(health.starts_with("damaged"), "{health}");
    assert!(health.contains(&offset), "{health} does not name {offset}");
    let status = pool.status();
    assert!(status.unrepairable() >= 1, "{}", status.text());
    for words in ["some/where/victim", offset.as_str()] {
        assert!(status.text().contains(words), "{words}: {}", status.text());
        assert!(pool.log().contains(words), "{words}: {}", pool.log());
    }
}

#[test]
fn bytes_damaged_while_mounted_are_caught() {
    let (mut pool, set, places) = pool_with_file();
    pool.mount();
    set.expect_whole(pool.mnt());
    for index in (0..768).step_by(5) {
        damage_block(&pool, 1, &places, index);
    }
    drop_caches();
    set.expect_whole(pool.mnt());
    for index in (1..768).step_by(5) {
        damage_block(&pool, 0, &places, index);
    }
    drop_caches();
    set.expect_whole(pool.mnt());
}

#[test]
fn an_older_valid_block_is_not_served() {
    // A lost write: the mirror answers with what the place held before, checksums and all. Here the
    // whole segment of another pool stands in for it, intact in itself.
    let (mut pool, set, _) = pool_with_file();
    let (other, _, _) = pool_with_file();
    for segment in common::disk::segments(other.mirror(0)) {
        let from = other.mirror(0).join(&segment);
        let to = pool.mirror(0).join(&segment);
        if to.exists() {
            fs::copy(from, to).expect("copy");
        }
    }
    pool.mount();
    set.expect_whole(pool.mnt());
}

#[test]
fn every_checksum_algorithm_catches_a_flipped_bit() {
    for algorithm in ["crc32", "xxh3", "blake3", "sha256"] {
        let mut pool = Pool::create_with(2, &["--checksum", algorithm]);
        let set = FileSet {
            files: vec![TestFile {
                path: PathBuf::from("file"),
                seed: common::seed(),
                len: 1 << 20,
            }],
        };
        pool.mount();
        set.write(pool.mnt());
        pool.umount();
        // One mirror's even blocks and the other's odd ones: whichever is read, half is bad.
        for ((_, index), found) in locate(pool.mirror(0), &set) {
            for place in found {
                let path = pool.mirror((index % 2) as usize).join(&place.segment);
                flip_bit(&path, place.offset + 5);
            }
        }
        pool.mount();
        set.expect_whole(pool.mnt());
        assert!(status::wait_repaired(&pool).repaired() > 0, "{algorithm}");
        pool.umount();
    }
}

fn flip_bit(path: &Path, at: u64) {
    let file = File::options().read(true).write(true).open(path);
    let file = file.expect("the segment opens");
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).expect("read");
    file.write_all_at(&[byte[0] ^ 1], at).expect("write");
}
