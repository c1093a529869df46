//! Access control lists: set, followed by the mode, inherited, and what a crash leaves of them.

use nix::errno::Errno;

use crate::format::Ino;
use crate::vfs::testing::{ROOT, USER, check, dir, file, killed, test_vfs};
use crate::vfs::{AclKind, Result, SetAttr, Vfs, VfsError};

const TOP: Ino = Ino::ROOT;
const ACCESS: &[u8] = b"system.posix_acl_access";
const DEFAULT: &[u8] = b"system.posix_acl_default";
const NONE: u32 = u32::MAX;

fn errno<T: std::fmt::Debug>(result: Result<T>) -> Errno {
    result.expect_err("must fail").errno()
}

fn list(entries: &[(u16, u16, u32)]) -> Vec<u8> {
    let mut bytes = vec![2, 0, 0, 0];
    for (tag, permissions, id) in entries {
        bytes.extend_from_slice(&tag.to_le_bytes());
        bytes.extend_from_slice(&permissions.to_le_bytes());
        bytes.extend_from_slice(&id.to_le_bytes());
    }
    bytes
}

/// Owner, one named user, group, mask, others.
fn extended(owner: u16, user: u16, group: u16, mask: u16, other: u16) -> Vec<u8> {
    list(&[
        (1, owner, NONE),
        (2, user, 1001),
        (4, group, NONE),
        (16, mask, NONE),
        (32, other, NONE),
    ])
}

fn minimal(owner: u16, group: u16, other: u16) -> Vec<u8> {
    list(&[(1, owner, NONE), (4, group, NONE), (32, other, NONE)])
}

fn set(vfs: &Vfs, ino: Ino, name: &[u8], value: &[u8]) {
    vfs.setxattr(&ROOT, ino, name, value, 0).unwrap();
}

fn get(vfs: &Vfs, ino: Ino, name: &[u8]) -> Option<Vec<u8>> {
    match vfs.getxattr(&ROOT, ino, name) {
        Err(VfsError::NoData) => None,
        value => Some(value.unwrap()),
    }
}

fn mode(vfs: &Vfs, ino: Ino) -> u16 {
    vfs.getattr(ino).unwrap().permissions
}

fn chmod(vfs: &Vfs, ino: Ino, mode: u32) {
    let mode = Some(mode);
    let change = SetAttr {
        mode,
        ..SetAttr::default()
    };
    vfs.setattr(&ROOT, ino, &change).unwrap();
}

#[test]
fn list_and_mode_follow_each_other_and_survive_together() {
    let vfs = test_vfs();
    let ino = file(&vfs, TOP, "f");
    let before = vfs.getattr(ino).unwrap().ctime;
    set(&vfs, ino, ACCESS, &extended(6, 7, 5, 6, 4));
    assert_eq!(mode(&vfs, ino), 0o664, "the mask is the group's digit");
    assert!(vfs.getattr(ino).unwrap().ctime > before);
    chmod(&vfs, ino, 0o1740);
    assert_eq!(get(&vfs, ino, ACCESS), Some(extended(7, 7, 5, 4, 0)));
    let vfs = killed(&vfs);
    assert_eq!(get(&vfs, ino, ACCESS), Some(extended(7, 7, 5, 4, 0)));
    assert_eq!(mode(&vfs, ino), 0o1740);
    assert_eq!(
        vfs.listxattr(&USER, ino).unwrap(),
        b"system.posix_acl_access\0"
    );
    check(&vfs);
}

#[test]
fn a_list_that_a_mode_can_say_is_only_a_mode() {
    let vfs = test_vfs();
    let ino = file(&vfs, TOP, "f");
    set(&vfs, ino, ACCESS, &extended(6, 7, 5, 6, 4));
    set(&vfs, ino, ACCESS, &minimal(7, 5, 1));
    assert_eq!((get(&vfs, ino, ACCESS), mode(&vfs, ino)), (None, 0o751));
    // A default list is kept however short it is: it is not the directory's mode.
    let d = dir(&vfs, TOP, "d");
    let before = mode(&vfs, d);
    set(&vfs, d, DEFAULT, &minimal(7, 0, 0));
    assert_eq!(get(&vfs, d, DEFAULT), Some(minimal(7, 0, 0)));
    assert_eq!(mode(&vfs, d), before);
}

#[test]
fn a_list_goes_by_removal_and_by_having_no_entries() {
    let vfs = test_vfs();
    let d = dir(&vfs, TOP, "d");
    for name in [ACCESS, DEFAULT] {
        set(&vfs, d, name, &extended(7, 7, 5, 4, 1));
        vfs.removexattr(&ROOT, d, name).unwrap();
        assert_eq!(get(&vfs, d, name), None);
        // As on ext4, and without a trace.
        let before = vfs.getattr(d).unwrap();
        vfs.removexattr(&ROOT, d, name).unwrap();
        assert_eq!(vfs.getattr(d).unwrap(), before);
        set(&vfs, d, name, &extended(7, 7, 5, 4, 1));
        set(&vfs, d, name, &list(&[]));
        assert_eq!(get(&vfs, d, name), None);
    }
    assert_eq!(mode(&vfs, d), 0o741, "the mode stays");
    assert_eq!(vfs.listxattr(&ROOT, d).unwrap(), b"");
}

#[test]
fn what_can_have_no_list_or_is_none_is_refused_and_changes_nothing() {
    let vfs = test_vfs();
    let f = file(&vfs, TOP, "f");
    let link = vfs.symlink(&ROOT, TOP, b"l", b"f").unwrap().ino;
    let before = (vfs.getattr(f).unwrap(), vfs.getattr(link).unwrap());
    let try_set = |ino, name: &[u8], value: &[u8]| vfs.setxattr(&ROOT, ino, name, value, 0);
    let good = extended(7, 7, 5, 4, 1);
    assert_eq!(errno(try_set(f, DEFAULT, &good)), Errno::EACCES);
    assert_eq!(errno(try_set(link, ACCESS, &good)), Errno::EOPNOTSUPP);
    assert_eq!(errno(try_set(link, DEFAULT, &good)), Errno::EOPNOTSUPP);
    assert_eq!(
        errno(vfs.removexattr(&ROOT, link, ACCESS)),
        Errno::EOPNOTSUPP
    );
    for bad in [&b""[..], b"nonsense", &good[..12], &good[..good.len() - 1]] {
        assert_eq!(errno(try_set(f, ACCESS, bad)), Errno::EINVAL);
    }
    assert_eq!(errno(try_set(Ino(999), ACCESS, &good)), Errno::ESTALE);
    let after = (vfs.getattr(f).unwrap(), vfs.getattr(link).unwrap());
    assert_eq!(after, before);
    assert_eq!(vfs.listxattr(&ROOT, f).unwrap(), b"");
}

#[test]
fn set_group_id_goes_with_a_list_of_somebody_outside_of_the_group() {
    let vfs = test_vfs();
    let (f, d) = (file(&vfs, TOP, "f"), dir(&vfs, TOP, "d"));
    let good = extended(7, 7, 5, 4, 1);
    for ino in [f, d] {
        for (value, kept) in [(&good, 0o6741), (&minimal(7, 4, 1), 0o6741)] {
            chmod(&vfs, ino, 0o6777);
            vfs.set_acl(ino, AclKind::Access, value, false).unwrap();
            assert_eq!(mode(&vfs, ino), kept);
            vfs.set_acl(ino, AclKind::Access, value, true).unwrap();
            assert_eq!(mode(&vfs, ino), kept & !0o2000);
        }
    }
    chmod(&vfs, d, 0o2777);
    vfs.set_acl(d, AclKind::Default, &good, true).unwrap();
    assert_eq!(mode(&vfs, d), 0o2777, "not with a default list");
}

#[test]
fn new_entries_get_the_parents_default_list_in_place_of_the_umask() {
    let vfs = test_vfs();
    let parent = dir(&vfs, TOP, "p");
    let default = extended(7, 7, 5, 7, 4);
    set(&vfs, parent, DEFAULT, &default);
    let f = vfs.mknod(&USER, parent, b"f", 0o100_662, 0).unwrap();
    assert_eq!(f.permissions, 0o660, "the umask 022 plays no part");
    assert_eq!(get(&vfs, f.ino, ACCESS), Some(extended(6, 7, 5, 6, 0)));
    assert_eq!(get(&vfs, f.ino, DEFAULT), None);
    let d = vfs.mkdir(&USER, parent, b"d", 0o777).unwrap();
    assert_eq!(d.permissions, 0o774);
    assert_eq!(get(&vfs, d.ino, ACCESS), Some(extended(7, 7, 5, 7, 4)));
    assert_eq!(get(&vfs, d.ino, DEFAULT), Some(default));
    let l = vfs.symlink(&USER, parent, b"l", b"f").unwrap();
    assert_eq!((l.permissions, get(&vfs, l.ino, ACCESS)), (0o777, None));
    // A short one leaves nothing but modes in what is no directory.
    set(&vfs, parent, DEFAULT, &minimal(7, 5, 0));
    let g = vfs.mknod(&USER, parent, b"g", 0o100_666, 0).unwrap();
    assert_eq!((g.permissions, get(&vfs, g.ino, ACCESS)), (0o640, None));
    let e = vfs.mkdir(&USER, parent, b"e", 0o777).unwrap();
    assert_eq!((e.permissions, get(&vfs, e.ino, ACCESS)), (0o750, None));
    assert_eq!(get(&vfs, e.ino, DEFAULT), Some(minimal(7, 5, 0)));
    let vfs = killed(&vfs);
    assert_eq!(get(&vfs, f.ino, ACCESS), Some(extended(6, 7, 5, 6, 0)));
    assert_eq!(mode(&vfs, f.ino), 0o660);
    check(&vfs);
}

#[test]
fn without_a_default_list_the_umask_counts() {
    let vfs = test_vfs();
    let f = vfs.mknod(&USER, TOP, b"f", 0o106_777, 0).unwrap();
    let d = vfs.mkdir(&USER, TOP, b"d", 0o1777).unwrap();
    let l = vfs.symlink(&USER, TOP, b"l", b"f").unwrap();
    let modes = [f, d, l].map(|attr| attr.permissions);
    assert_eq!(modes, [0o6755, 0o1755, 0o777]);
    // An access list is not inherited.
    set(&vfs, d.ino, ACCESS, &extended(7, 7, 7, 7, 7));
    let g = vfs.mknod(&USER, d.ino, b"g", 0o100_666, 0).unwrap();
    assert_eq!((g.permissions, get(&vfs, g.ino, ACCESS)), (0o644, None));
}
