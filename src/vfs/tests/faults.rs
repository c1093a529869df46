//! Full and damaged: errors come before anything is changed, and what frees space always works.

use nix::errno::Errno;

use crate::format::Ino;
use crate::vfs::testing::{
    BLOCK, ROOT, check, commits, content, damage, dir, file, set_room, test_vfs, truncate,
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
    let (before, attr) = (commits(&vfs), vfs.getattr(ino).unwrap());
    // Room for the first extent of a write, not for the second.
    set_room(&vfs, (1 << 20) + 5);
    assert_eq!(
        errno(vfs.write(ino, 0, &[2; 2 << 20], false)),
        Errno::ENOSPC
    );
    set_room(&vfs, 0);
    assert_eq!(errno(vfs.write(ino, 0, b"x", false)), Errno::ENOSPC);
    assert_eq!(errno(vfs.mknod(&ROOT, TOP, b"g", 0, 0)), Errno::ENOSPC);
    assert_eq!(errno(vfs.mkdir(&ROOT, TOP, b"g", 0)), Errno::ENOSPC);
    assert_eq!(errno(vfs.symlink(&ROOT, TOP, b"g", b"t")), Errno::ENOSPC);
    assert_eq!(errno(vfs.link(&ROOT, ino, TOP, b"g")), Errno::ENOSPC);
    assert_eq!(
        errno(vfs.setxattr(&ROOT, ino, b"user.a", b"", 0)),
        Errno::ENOSPC
    );
    assert_eq!(errno(vfs.fallocate(ino, 0, 1, 0)), Errno::ENOSPC);
    assert_eq!(commits(&vfs), before);
    assert_eq!(vfs.getattr(ino).unwrap(), attr);
    assert_eq!(content(&vfs, ino), [1; 10_000]);
    check(&vfs);
}

#[test]
fn a_full_filesystem_can_be_emptied() {
    let vfs = test_vfs();
    let (f, d) = (file(&vfs, TOP, "f"), dir(&vfs, TOP, "d"));
    vfs.write(f, 0, &[1; 100_000], false).unwrap();
    vfs.setxattr(&ROOT, f, b"user.a", b"", 0).unwrap();
    set_room(&vfs, 0);
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
    vfs.forget(f, 1);
    vfs.rmdir(&ROOT, TOP, b"d").unwrap();
    check(&vfs);
    vfs.close().unwrap();
    check(&vfs);
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
