//! Space that fallocate promised: nobody else gets it, and it is there when it is wanted.

use nix::errno::Errno;

use crate::format::Ino;
use crate::vfs::testing::{
    BLOCK, ROOT, TestVfs, check, content, file, killed, killed_with_room, test_vfs, truncate,
};
use crate::vfs::{Result, Vfs};

const TOP: Ino = Ino::ROOT;
const KEEP: i32 = libc::FALLOC_FL_KEEP_SIZE;
const PUNCH: i32 = libc::FALLOC_FL_PUNCH_HOLE | KEEP;
const ZERO: i32 = libc::FALLOC_FL_ZERO_RANGE;
const MIB: u64 = 1 << 20;

fn errno<T: std::fmt::Debug>(result: Result<T>) -> Errno {
    result.expect_err("must fail").errno()
}

/// A pool with two files and room for `room` bytes.
fn small(room: u64) -> (TestVfs, Ino, Ino) {
    let vfs = test_vfs();
    let (f, g) = (file(&vfs, TOP, "f"), file(&vfs, TOP, "g"));
    vfs.write(f, 0, b"x", false).unwrap();
    vfs.write(g, 0, b"x", false).unwrap();
    vfs.fsync(f, false).unwrap();
    (killed_with_room(&vfs, room), f, g)
}

/// Writes behind one another until it is full, then ever smaller.
fn fill(vfs: &Vfs, ino: Ino) {
    let mut at = BLOCK;
    for len in [MIB, 64 << 10, BLOCK] {
        while vfs.write(ino, at, &vec![7; len as usize], false).is_ok() {
            at += len;
            assert!(at < 1 << 34, "it never gets full");
        }
    }
    let refused = vfs.write(ino, at, &[7; BLOCK as usize], false);
    assert_eq!(errno(refused), Errno::ENOSPC);
}

#[test]
fn promised_space_is_there_when_others_have_filled_the_rest() {
    let (vfs, f, g) = small(16 * MIB);
    vfs.fallocate(f, BLOCK, 4 * MIB, KEEP).unwrap();
    fill(&vfs, g);
    check(&vfs);
    // One block after the other, which is what takes the most.
    for block in 1..=4 * MIB / BLOCK {
        vfs.write(f, block * BLOCK, &[block as u8; 4096], false)
            .unwrap_or_else(|error| panic!("block {block}: {error}"));
    }
    check(&vfs);
    assert_eq!(vfs.pool.promised_to(f), 0);
    let last = vec![(4 * MIB / BLOCK) as u8; 4096];
    assert_eq!(content(&vfs, f)[4 * MIB as usize..], last);
}

#[test]
fn a_promise_holds_after_a_crash_and_a_remount() {
    let (vfs, f, g) = small(16 * MIB);
    vfs.fallocate(f, BLOCK, 4 * MIB, 0).unwrap();
    vfs.write(f, 10 * BLOCK, &[1; 4096], false).unwrap();
    vfs.fsync(f, false).unwrap();
    let promised = vfs.pool.promised_to(f);
    assert_eq!(promised, 4 * MIB - BLOCK);
    let vfs = killed(&vfs);
    assert_eq!(vfs.pool.promised_to(f), promised);
    fill(&vfs, g);
    vfs.write(f, BLOCK, &vec![2; 9 * BLOCK as usize], false)
        .unwrap();
    vfs.write(f, 11 * BLOCK, &vec![3; MIB as usize], false)
        .unwrap();
    check(&vfs);
}

#[test]
fn a_write_across_the_end_of_what_was_promised_keeps_the_promise() {
    let (vfs, f, g) = small(16 * MIB);
    vfs.fallocate(f, 2 * BLOCK, 2 * BLOCK, KEEP).unwrap();
    fill(&vfs, g);
    let data = vec![5; 6 * BLOCK as usize];
    assert_eq!(errno(vfs.write(f, BLOCK, &data, false)), Errno::ENOSPC);
    assert_eq!(content(&vfs, f), b"x", "nothing is half done");
    vfs.write_where_promised(f, BLOCK, &data, false).unwrap();
    let mut want = vec![0; 4 * BLOCK as usize];
    want[0] = b'x';
    want[2 * BLOCK as usize..].fill(5);
    assert_eq!(content(&vfs, f), want);
    check(&vfs);
}

#[test]
fn overwriting_works_on_a_full_filesystem() {
    let (vfs, _, g) = small(16 * MIB);
    fill(&vfs, g);
    for round in 0..20 {
        vfs.write(g, 3 * BLOCK, &[round; 5000], false).unwrap();
    }
    check(&vfs);
}

#[test]
fn promises_are_counted_as_taken() {
    let vfs = test_vfs();
    let f = file(&vfs, TOP, "f");
    let free = vfs.statfs().unwrap().available;
    vfs.fallocate(f, 100, 10 * BLOCK, 0).unwrap();
    assert_eq!(vfs.getattr(f).unwrap().blocks, 11 * 8);
    assert!(vfs.statfs().unwrap().available <= free - 11);
    // What is there already is not promised again, nor what was.
    vfs.fallocate(f, 0, 11 * BLOCK, 0).unwrap();
    assert_eq!(vfs.pool.promised_to(f), 11 * BLOCK);
    vfs.fallocate(f, 11 * BLOCK, BLOCK, 0).unwrap();
    assert_eq!(
        vfs.pool.promised(f, 0..u64::MAX, 9).unwrap(),
        std::slice::from_ref(&(0..12 * BLOCK))
    );
    vfs.write(f, 5 * BLOCK + 7, b"data", false).unwrap();
    assert_eq!(vfs.pool.promised_to(f), 11 * BLOCK);
    vfs.fallocate(f, 0, 12 * BLOCK, 0).unwrap();
    assert_eq!(vfs.pool.promised_to(f), 11 * BLOCK);
    check(&vfs);
    let room = vfs.statfs().unwrap().available * BLOCK;
    assert_eq!(errno(vfs.fallocate(f, 0, room, KEEP)), Errno::ENOSPC);
    assert_eq!(vfs.pool.promised_to(f), 11 * BLOCK);
}

#[test]
fn promises_end_with_what_takes_space_from_a_file() {
    let vfs = test_vfs();
    let f = file(&vfs, TOP, "f");
    let free = vfs.pool.space().unwrap().available;
    vfs.fallocate(f, 0, 100 * BLOCK, KEEP).unwrap();
    vfs.fallocate(f, 10 * BLOCK + 1, 5 * BLOCK, PUNCH).unwrap();
    assert_eq!(vfs.pool.promised_to(f), 96 * BLOCK);
    truncate(&vfs, f, 70 * BLOCK + 1);
    truncate(&vfs, f, 50 * BLOCK + 1);
    assert_eq!(vfs.pool.promised_to(f), 47 * BLOCK);
    check(&vfs);
    // Zeroing keeps the space.
    vfs.write(f, 0, &vec![1; 50 * BLOCK as usize], false)
        .unwrap();
    assert_eq!(vfs.pool.promised_to(f), BLOCK);
    vfs.fallocate(f, 10, 20 * BLOCK, ZERO).unwrap();
    assert_eq!(vfs.pool.promised_to(f), 20 * BLOCK);
    check(&vfs);
    vfs.unlink(&ROOT, TOP, b"f").unwrap();
    vfs.forget(f, 1);
    check(&vfs);
    assert_eq!(vfs.pool.promised_to(f), 0);
    assert!(vfs.pool.space().unwrap().available >= free - MIB);
}

#[test]
fn many_promised_ranges_of_one_file_go_in_chunks() {
    let vfs = test_vfs();
    for (name, end) in [("cut", 1), ("punched", 2), ("deleted", 3)] {
        let f = file(&vfs, TOP, name);
        vfs.fallocate(f, 0, 4000 * BLOCK, 0).unwrap();
        for block in 0..1300 {
            vfs.write(f, 3 * block * BLOCK, &[1; 4096], false).unwrap();
        }
        assert_eq!(vfs.pool.promised_to(f), 2700 * BLOCK);
        match end {
            1 => truncate(&vfs, f, 0),
            2 => vfs.fallocate(f, 0, 4000 * BLOCK, PUNCH).unwrap(),
            _ => vfs.unlink(&ROOT, TOP, name.as_bytes()).unwrap(),
        }
        vfs.forget(f, 1);
        assert_eq!(vfs.pool.promised_to(f), 0, "{name}");
        check(&vfs);
    }
}
