//! Full and damaged: errors come before anything is changed, and what frees space always works.

use nix::errno::Errno;

use crate::format::Ino;
use crate::vfs::testing::{
    BLOCK, ROOT, check, content, damage, dir, file, fill_up, given_back, killed_with_room, names,
    new_pool, read_only, records, test_vfs, truncate,
};
use crate::vfs::{Result, SetAttr};

const TOP: Ino = Ino::ROOT;
const PUNCH: i32 = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;

fn errno<T: std::fmt::Debug>(result: Result<T>) -> Errno {
    result.expect_err("must fail").errno()
}

#[test]
fn a_full_filesystem_refuses_to_grow_and_changes_nothing() {
    let vfs = test_vfs();
    let ino = file(&vfs, TOP, "f");
    vfs.write(ino, 0, &[1; 10_000], false).unwrap();

    // Room for the first extents of a write, not for the last.
    let tight = killed_with_room(&vfs, 3 << 20);
    let before = records(&tight);
    assert_eq!(
        errno(tight.write(ino, 0, &[2; 4 << 20], false)),
        Errno::ENOSPC
    );
    assert_eq!(records(&tight), before);
    assert_eq!(content(&tight, ino), [1; 10_000]);
    check(&tight);
    truncate(&tight, ino, 9_000);
    assert!(given_back(&tight) >= 1 << 20, "what was stored in vain");

    let full = killed_with_room(&vfs, 0);
    fill_up(&full, ino);
    let attr = full.getattr(ino).unwrap();
    let before = records(&full);
    assert_eq!(errno(full.write(ino, 1 << 20, b"x", false)), Errno::ENOSPC);
    assert_eq!(errno(full.mknod(&ROOT, TOP, b"g", 0, 0)), Errno::ENOSPC);
    assert_eq!(errno(full.mkdir(&ROOT, TOP, b"g", 0)), Errno::ENOSPC);
    assert_eq!(errno(full.symlink(&ROOT, TOP, b"g", b"t")), Errno::ENOSPC);
    assert_eq!(errno(full.link(&ROOT, ino, TOP, b"g")), Errno::ENOSPC);
    assert_eq!(
        errno(full.setxattr(&ROOT, ino, b"user.a", b"", 0)),
        Errno::ENOSPC
    );
    assert_eq!(errno(full.fallocate(ino, 0, 1 << 30, 0)), Errno::ENOSPC);
    assert_eq!(records(&full), before);
    assert_eq!(full.getattr(ino).unwrap(), attr);
    assert_eq!(content(&full, ino), [1; 10_000]);
    check(&full);
}

#[test]
fn a_full_filesystem_can_be_emptied() {
    let vfs = test_vfs();
    let (f, d) = (file(&vfs, TOP, "f"), dir(&vfs, TOP, "d"));
    vfs.write(f, 0, &[1; 100_000], false).unwrap();
    vfs.setxattr(&ROOT, f, b"user.a", b"", 0).unwrap();
    let vfs = killed_with_room(&vfs, 0);
    fill_up(&vfs, f);
    vfs.setattr(
        &ROOT,
        f,
        &SetAttr {
            mode: Some(0o600),
            ..SetAttr::default()
        },
    )
    .unwrap();
    vfs.removexattr(&ROOT, f, b"user.a").unwrap();
    vfs.fallocate(f, 0, BLOCK, PUNCH).unwrap();
    truncate(&vfs, f, 5000);
    vfs.rename(&ROOT, TOP, b"f", d, b"g", 0).unwrap();
    truncate(&vfs, f, 1);
    vfs.unlink(&ROOT, d, b"g").unwrap();
    vfs.rmdir(&ROOT, TOP, b"d").unwrap();
    check(&vfs);
    vfs.close().unwrap();
    check(&vfs);
    assert_eq!(vfs.getattr(TOP).unwrap().size, 0);
}

#[test]
fn damage_hurts_only_who_needs_the_damaged_block() {
    let vfs = test_vfs();
    let ino = file(&vfs, TOP, "f");
    vfs.write(ino, 0, &[1; 5 * 4096], false).unwrap();
    damage(&vfs, ino, 2);
    let mut out = vec![3; 9000];
    for block in 0..5 {
        let result = vfs.read(ino, block * BLOCK, 4096, &mut out);
        assert_eq!(result.is_err(), block == 2);
        assert_eq!(
            out.len(),
            if block == 2 { 0 } else { 4096 },
            "no bytes of another read"
        );
    }
    assert_eq!(
        errno(vfs.write(ino, 2 * BLOCK + 5, b"part of the block", false)),
        Errno::EIO
    );
    vfs.write(ino, BLOCK + 5, b"beside it", false).unwrap();
    truncate(&vfs, ino, 2 * BLOCK + 9);
    truncate(&vfs, ino, 2 * BLOCK);
    vfs.unlink(&ROOT, TOP, b"f").unwrap();
    vfs.forget(ino, 1);
    check(&vfs);
}

#[test]
fn a_read_only_mount_reads_and_refuses_changes() {
    let vfs = test_vfs();
    let ino = file(&vfs, TOP, "f");
    vfs.write(ino, 0, b"content", false).unwrap();
    vfs.unlink(&ROOT, TOP, b"f").unwrap();
    let (kept, empty) = (file(&vfs, TOP, "g"), read_only(&new_pool()));
    vfs.write(kept, 0, b"content", false).unwrap();
    vfs.fsync(kept, false).unwrap();
    let vfs = read_only(&vfs.world);
    assert_eq!(content(&vfs, kept), b"content");
    for vfs in [&vfs, &empty] {
        assert_eq!(errno(vfs.mknod(&ROOT, TOP, b"n", 0, 0)), Errno::EROFS);
        assert_eq!(errno(vfs.rmdir(&ROOT, TOP, b"n")), Errno::EROFS);
        assert_eq!(
            errno(vfs.setattr(&ROOT, TOP, &SetAttr::default())),
            Errno::EROFS
        );
        vfs.forget(TOP, 1);
        assert_eq!(vfs.lookup(TOP, b".").unwrap().ino, TOP);
        assert_eq!(errno(vfs.lookup(TOP, b"n")), Errno::ENOENT);
    }
    assert!(names(&empty, TOP).is_empty());
    assert_eq!(empty.reference(TOP).unwrap().permissions, 0o755);
    vfs.close().unwrap();
    empty.close().unwrap();
}
