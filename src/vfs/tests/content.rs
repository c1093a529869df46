//! File content: reading, writing, size, holes, copying.

use nix::errno::Errno;

use crate::format::Ino;
use crate::vfs::testing::{
    BLOCK, ROOT, check, content, dir, file, fragmented, test_vfs, test_vfs_with, truncate,
};
use crate::vfs::{Result, SetAttr, SetTime, VfsOptions, Whence};

const TOP: Ino = Ino::ROOT;
const MAX: u64 = i64::MAX as u64;
const KEEP: i32 = libc::FALLOC_FL_KEEP_SIZE;
const PUNCH: i32 = libc::FALLOC_FL_PUNCH_HOLE | KEEP;
const ZERO: i32 = libc::FALLOC_FL_ZERO_RANGE;

fn errno<T: std::fmt::Debug>(result: Result<T>) -> Errno {
    result.expect_err("must fail").errno()
}

fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|at| (at % 251) as u8 + 1).collect()
}

#[test]
fn a_read_gives_what_was_written_and_ends_at_the_end() {
    let vfs = test_vfs();
    let ino = file(&vfs, TOP, "f");
    let data = pattern(10_000);
    assert_eq!(vfs.write(ino, 0, &data, false).unwrap(), 10_000);
    assert_eq!(content(&vfs, ino), data);
    let mut out = vec![9; 50_000];
    vfs.read(ino, 4090, 20, &mut out).unwrap();
    assert_eq!(out, data[4090..4110]);
    vfs.read(ino, 9_990, 100, &mut out).unwrap();
    assert_eq!(out, data[9_990..]);
    for offset in [10_000, 10_001, MAX, u64::MAX] {
        vfs.read(ino, offset, 100, &mut out).unwrap();
        assert!(out.is_empty(), "{offset}");
    }
    check(&vfs);
}

#[test]
fn writes_merge_with_what_their_blocks_hold() {
    let vfs = test_vfs();
    let ino = file(&vfs, TOP, "f");
    let mut model = pattern(3 * 4096 + 100);
    vfs.write(ino, 0, &model, false).unwrap();
    for (offset, len) in [
        (10, 5),
        (4000, 200),
        (4096, 4096),
        (3 * 4096 + 50, 10),
        (1, 9000),
    ] {
        let data = vec![0xf0; len];
        vfs.write(ino, offset as u64, &data, false).unwrap();
        model[offset..offset + len].copy_from_slice(&data);
        assert_eq!(content(&vfs, ino), model);
        check(&vfs);
    }
}

#[test]
fn a_gap_reads_as_zeros_and_takes_no_space() {
    let vfs = test_vfs();
    let ino = file(&vfs, TOP, "f");
    vfs.write(ino, 100, b"abc", false).unwrap();
    vfs.write(ino, 1 << 40, b"xyz", false).unwrap();
    let attr = vfs.getattr(ino).unwrap();
    assert_eq!(attr.size, (1 << 40) + 3);
    assert!(attr.blocks <= 2, "{} blocks", attr.blocks);
    let mut out = Vec::new();
    vfs.read(ino, 0, 8192, &mut out).unwrap();
    let mut expected = vec![0; 8192];
    expected[100..103].copy_from_slice(b"abc");
    assert_eq!(out, expected);
    vfs.read(ino, (1 << 40) - 10, 100, &mut out).unwrap();
    assert_eq!(out, b"\0\0\0\0\0\0\0\0\0\0xyz");
    check(&vfs);
}

#[test]
fn a_large_write_is_split_into_extents() {
    let vfs = test_vfs();
    let ino = file(&vfs, TOP, "f");
    let data = pattern((3 << 20) + 777);
    assert_eq!(vfs.write(ino, 333, &data, false).unwrap(), data.len());
    assert_eq!(content(&vfs, ino)[333..], data);
    let huge = vec![1; 5 << 20];
    assert_eq!(
        vfs.write(ino, 0, &huge, false).unwrap(),
        4 << 20,
        "answered short"
    );
    check(&vfs);
}

#[test]
fn bytes_cut_off_never_come_back() {
    let vfs = test_vfs();
    let ino = file(&vfs, TOP, "f");
    for (len, cut, grown) in [
        (9000, 5000, 9000),
        (9000, 4096, 9000),
        (9000, 0, 100),
        (100, 1, 50),
    ] {
        truncate(&vfs, ino, 0);
        vfs.write(ino, 0, &vec![7; len], false).unwrap();
        truncate(&vfs, ino, cut);
        check(&vfs);
        truncate(&vfs, ino, grown);
        let mut expected = vec![7; cut as usize];
        expected.resize(grown as usize, 0);
        assert_eq!(content(&vfs, ino), expected);
        // Nor when the block is stored anew because of a write beside them.
        vfs.write(ino, grown, b"!", false).unwrap();
        expected.push(b'!');
        assert_eq!(content(&vfs, ino), expected);
        check(&vfs);
    }
}

#[test]
fn truncating_stores_nothing_and_frees_space() {
    let vfs = test_vfs();
    let ino = file(&vfs, TOP, "f");
    vfs.write(ino, 0, &pattern(1 << 20), false).unwrap();
    assert_eq!(vfs.getattr(ino).unwrap().blocks, 2048);
    let room = vfs.statfs().unwrap().available;
    truncate(&vfs, ino, 10_000);
    assert_eq!(vfs.getattr(ino).unwrap().blocks, 24, "three blocks");
    assert_eq!(vfs.statfs().unwrap().available, room);
    truncate(&vfs, ino, 0);
    assert_eq!(vfs.getattr(ino).unwrap().blocks, 0);
}

#[test]
fn sizes_end_at_the_largest_offset() {
    let vfs = test_vfs();
    let ino = file(&vfs, TOP, "f");
    let size = |size| {
        vfs.setattr(
            &ROOT,
            ino,
            &SetAttr {
                size: Some(size),
                ..SetAttr::default()
            },
        )
    };
    assert_eq!(size(MAX).unwrap().size, MAX);
    assert_eq!(errno(size(MAX + 1)), Errno::EFBIG);
    assert_eq!(errno(vfs.write(ino, MAX, b"x", false)), Errno::EFBIG);
    assert_eq!(errno(vfs.write(ino, u64::MAX, b"x", false)), Errno::EFBIG);
    assert_eq!(
        vfs.write(ino, MAX - 1, b"xyz", false).unwrap(),
        1,
        "as much as fits"
    );
    let mut out = Vec::new();
    vfs.read(ino, MAX - 2, 100, &mut out).unwrap();
    assert_eq!(out, b"\0x");
    assert_eq!(errno(vfs.fallocate(ino, MAX, 1, 0)), Errno::EFBIG);
    assert_eq!(errno(vfs.fallocate(ino, 1, u64::MAX, PUNCH)), Errno::EFBIG);
    vfs.fallocate(ino, 5, MAX - 5, PUNCH).unwrap();
    vfs.write(ino, 5, b"x", false).unwrap();
    assert_eq!(errno(vfs.copy_range(ino, 5, ino, MAX, 1)), Errno::EFBIG);
    assert_eq!(vfs.copy_range(ino, 5, ino, MAX - 1, 9).unwrap(), 1);
    truncate(&vfs, ino, 6);
    check(&vfs);
}

#[test]
fn content_belongs_to_regular_files() {
    let vfs = test_vfs();
    let parent = dir(&vfs, TOP, "d");
    let pipe = vfs.mknod(&ROOT, TOP, b"p", 0o010_644, 0).unwrap().ino;
    let size = SetAttr {
        size: Some(0),
        ..SetAttr::default()
    };
    let mut out = Vec::new();
    assert_eq!(errno(vfs.read(parent, 0, 1, &mut out)), Errno::EISDIR);
    assert_eq!(errno(vfs.write(parent, 0, b"x", false)), Errno::EISDIR);
    assert_eq!(errno(vfs.setattr(&ROOT, parent, &size)), Errno::EISDIR);
    assert_eq!(errno(vfs.setattr(&ROOT, pipe, &size)), Errno::EINVAL);
    assert_eq!(errno(vfs.write(pipe, 0, b"x", false)), Errno::EINVAL);
    assert_eq!(errno(vfs.fallocate(pipe, 0, 1, 0)), Errno::ENODEV);
    assert_eq!(errno(vfs.copy_range(pipe, 0, pipe, 0, 1)), Errno::EINVAL);
    assert_eq!(errno(vfs.write(Ino(999), 0, b"x", false)), Errno::ESTALE);
}

#[test]
fn a_write_sets_the_times_unless_the_kernel_does() {
    for kernel_keeps_times in [false, true] {
        let vfs = test_vfs_with(VfsOptions {
            kernel_keeps_times,
            ..VfsOptions::default()
        });
        let ino = file(&vfs, TOP, "f");
        let before = vfs.getattr(ino).unwrap();
        vfs.write(ino, 0, b"x", false).unwrap();
        let after = vfs.getattr(ino).unwrap();
        assert_eq!(after.mtime > before.mtime, !kernel_keeps_times);
        assert_eq!(after.ctime > before.ctime, !kernel_keeps_times);
        assert_eq!(after.atime, before.atime);
        let times = SetAttr {
            mtime: Some(SetTime::At(before.btime)),
            ctime: Some(before.btime),
            ..SetAttr::default()
        };
        let set = vfs.setattr(&ROOT, ino, &times).unwrap();
        assert_eq!((set.mtime, set.ctime), (before.btime, before.btime));
    }
}

#[test]
fn punching_and_zeroing_leave_zeros_and_nothing_else() {
    for mode in [PUNCH, ZERO, ZERO | KEEP] {
        for (offset, end) in [
            (0, 4096),
            (10, 20),
            (10, 4096),
            (0, 20),
            (4000, 4100),
            (100, 12_200),
            (4096, 12_288),
            (8192, 13_000),
            (8200, 20_000),
            (12_900, 13_500),
            (13_000, 20_000),
            (20_000, 30_000),
            (0, 100_000),
        ] {
            let vfs = test_vfs();
            let ino = file(&vfs, TOP, "f");
            let mut model = pattern(13_000);
            vfs.write(ino, 0, &model, false).unwrap();
            vfs.fallocate(ino, offset as u64, (end - offset) as u64, mode)
                .unwrap();
            if mode == ZERO && end > model.len() {
                model.resize(end, 0);
            }
            let end = end.min(model.len());
            model[offset.min(end)..end].fill(0);
            assert_eq!(content(&vfs, ino), model, "mode {mode}, {offset}..{end}");
            check(&vfs);
        }
    }
}

#[test]
fn a_punched_file_takes_no_space() {
    let vfs = test_vfs();
    let ino = file(&vfs, TOP, "f");
    vfs.write(ino, 0, &pattern(100_000), false).unwrap();
    vfs.fallocate(ino, 0, 100_000, PUNCH).unwrap();
    let attr = vfs.getattr(ino).unwrap();
    assert_eq!((attr.size, attr.blocks), (100_000, 0));
    let ino = fragmented(&vfs, TOP, "g", 1500);
    vfs.fallocate(ino, 100, 1 << 40, PUNCH).unwrap();
    let attr = vfs.getattr(ino).unwrap();
    assert_eq!((attr.size, attr.blocks), (2999 * BLOCK, 1));
    check(&vfs);
}

#[test]
fn allocating_sets_the_size_and_refuses_what_has_no_room() {
    let vfs = test_vfs();
    let ino = file(&vfs, TOP, "f");
    vfs.fallocate(ino, 1000, 5000, KEEP).unwrap();
    assert_eq!(vfs.getattr(ino).unwrap().size, 0);
    vfs.fallocate(ino, 1000, 5000, 0).unwrap();
    assert_eq!(content(&vfs, ino), vec![0; 6000]);
    vfs.fallocate(ino, 0, 10, 0).unwrap();
    assert_eq!(vfs.getattr(ino).unwrap().size, 6000);
    assert_eq!(errno(vfs.fallocate(ino, 0, 0, 0)), Errno::EINVAL);
    let punch_and_grow = libc::FALLOC_FL_PUNCH_HOLE;
    for mode in [
        punch_and_grow,
        libc::FALLOC_FL_COLLAPSE_RANGE,
        libc::FALLOC_FL_INSERT_RANGE,
    ] {
        assert_eq!(errno(vfs.fallocate(ino, 0, 4096, mode)), Errno::EOPNOTSUPP);
    }
    let room = vfs.statfs().unwrap().available * BLOCK;
    assert_eq!(errno(vfs.fallocate(ino, 0, room + BLOCK, 0)), Errno::ENOSPC);
    assert_eq!(vfs.getattr(ino).unwrap().size, 6000);
}

#[test]
fn data_and_holes_are_found() {
    let vfs = test_vfs();
    let ino = file(&vfs, TOP, "f");
    assert_eq!(errno(vfs.lseek(ino, 0, Whence::Hole)), Errno::ENXIO);
    vfs.write(ino, 2 * BLOCK, &pattern(2 * 4096), false)
        .unwrap();
    vfs.write(ino, 4 * BLOCK, &pattern(100), false).unwrap();
    vfs.write(ino, 9 * BLOCK, &pattern(100), false).unwrap();
    truncate(&vfs, ino, 20 * BLOCK);
    let data = |at| {
        vfs.lseek(ino, at * BLOCK, Whence::Data)
            .map(|at| at / BLOCK)
    };
    let hole = |at| {
        vfs.lseek(ino, at * BLOCK, Whence::Hole)
            .map(|at| at / BLOCK)
    };
    let data: Vec<_> = (0..21).map(|at| data(at).unwrap_or(99)).collect();
    let hole: Vec<_> = (0..21).map(|at| hole(at).unwrap_or(99)).collect();
    let n = 99;
    assert_eq!(
        data,
        [
            2, 2, 2, 3, 4, 9, 9, 9, 9, 9, n, n, n, n, n, n, n, n, n, n, n
        ]
    );
    let expected = [
        0, 1, 5, 5, 5, 5, 6, 7, 8, 10, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, n,
    ];
    assert_eq!(hole, expected);
    truncate(&vfs, ino, 9 * BLOCK + 50);
    assert_eq!(
        vfs.lseek(ino, 9 * BLOCK, Whence::Hole).unwrap(),
        9 * BLOCK + 50,
        "at the end"
    );
    assert_eq!(
        vfs.lseek(ino, 9 * BLOCK + 7, Whence::Data).unwrap(),
        9 * BLOCK + 7
    );
    assert_eq!(errno(vfs.lseek(ino, u64::MAX, Whence::Data)), Errno::ENXIO);
    let many = fragmented(&vfs, TOP, "g", 200);
    assert_eq!(
        vfs.lseek(many, 300 * BLOCK, Whence::Hole).unwrap(),
        301 * BLOCK
    );
    vfs.write(many, 0, &pattern(398 * 4096), false).unwrap();
    (0..199).for_each(|at| drop(vfs.write(many, at * 2 * BLOCK, &[1; 4096], false)));
    assert_eq!(
        vfs.lseek(many, 0, Whence::Hole).unwrap(),
        399 * BLOCK,
        "over many rows"
    );
}

#[test]
fn a_copy_shares_whole_blocks_and_is_independent() {
    let vfs = test_vfs();
    let (from, to) = (file(&vfs, TOP, "f"), file(&vfs, TOP, "g"));
    let data = pattern(1_000_000);
    vfs.write(from, 0, &data, false).unwrap();
    let room = vfs.statfs().unwrap().available;
    assert_eq!(vfs.copy_range(from, 0, to, 0, u64::MAX).unwrap(), 1_000_000);
    assert_eq!(vfs.statfs().unwrap().available, room, "nothing was stored");
    assert_eq!(content(&vfs, to), data);
    vfs.write(from, 5000, &[0; 100], false).unwrap();
    assert_eq!(content(&vfs, to), data);
    vfs.unlink(&ROOT, TOP, b"f").unwrap();
    vfs.forget(from, 1);
    assert_eq!(content(&vfs, to), data);
    assert_eq!(
        vfs.copy_range(to, 1_000_000, to, 0, 5).unwrap(),
        0,
        "at the end"
    );
    check(&vfs);
}

#[test]
fn a_copy_may_begin_and_end_anywhere() {
    let offsets = [0, 1, 100, 4095, 4096, 5000, 8192];
    for from_offset in offsets {
        for to_offset in offsets {
            for len in [1, 50, 4096, 9000, 30_000] {
                let vfs = test_vfs();
                let (from, to) = (file(&vfs, TOP, "f"), file(&vfs, TOP, "g"));
                let (data, mut model) = (pattern(25_000), vec![0xfe; 20_000]);
                vfs.write(from, 0, &data, false).unwrap();
                vfs.write(to, 0, &model, false).unwrap();
                let copied = vfs
                    .copy_range(from, from_offset, to, to_offset, len)
                    .unwrap();
                let (f, t) = (from_offset as usize, to_offset as usize);
                let expected = (len as usize).min(data.len() - f);
                assert_eq!(copied as usize, expected);
                model.resize(model.len().max(t + expected), 0);
                model[t..t + expected].copy_from_slice(&data[f..f + expected]);
                assert_eq!(content(&vfs, to), model, "{from_offset} {to_offset} {len}");
                check(&vfs);
            }
        }
    }
}

#[test]
fn a_copy_within_a_file_must_not_overlap() {
    let vfs = test_vfs();
    let ino = file(&vfs, TOP, "f");
    let data = pattern(40_960);
    vfs.write(ino, 0, &data, false).unwrap();
    for (from, to) in [(0, 0), (0, 4096), (4096, 0), (0, 8191), (8191, 0)] {
        assert_eq!(
            errno(vfs.copy_range(ino, from, ino, to, 8192)),
            Errno::EINVAL
        );
    }
    assert_eq!(vfs.copy_range(ino, 0, ino, 8192, 8192).unwrap(), 8192);
    assert_eq!(content(&vfs, ino)[8192..16_384], data[..8192]);
    check(&vfs);
}

#[test]
fn a_copy_of_many_extents_goes_in_steps() {
    let vfs = test_vfs();
    let from = fragmented(&vfs, TOP, "f", 1200);
    let to = fragmented(&vfs, TOP, "g", 700);
    let size = vfs.getattr(from).unwrap().size;
    let (mut done, mut steps) = (0, 0);
    while done < size {
        let copied = vfs.copy_range(from, done, to, done, u64::MAX).unwrap();
        assert!(copied > 0);
        (done, steps) = (done + copied, steps + 1);
    }
    assert!(steps > 1);
    assert_eq!(content(&vfs, to), content(&vfs, from));
    check(&vfs);
}
