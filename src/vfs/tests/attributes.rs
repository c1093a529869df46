//! Attributes: mode, owner, times, loss of privileges, extended attributes.

use nix::errno::Errno;

use crate::format::{Ino, Timestamp};
use crate::vfs::testing::{ROOT, USER, check, dir, file, killed, test_vfs};
use crate::vfs::{Result, SetAttr, SetTime, Vfs};

const TOP: Ino = Ino::ROOT;
const CREATE: u32 = libc::XATTR_CREATE as u32;
const REPLACE: u32 = libc::XATTR_REPLACE as u32;

fn errno<T: std::fmt::Debug>(result: Result<T>) -> Errno {
    result.expect_err("must fail").errno()
}

fn chmod(vfs: &Vfs, ino: Ino, mode: u32) {
    vfs.setattr(
        &ROOT,
        ino,
        &SetAttr {
            mode: Some(mode),
            ..SetAttr::default()
        },
    )
    .unwrap();
}

fn mode(vfs: &Vfs, ino: Ino) -> u16 {
    vfs.getattr(ino).unwrap().permissions
}

#[test]
fn setattr_changes_what_is_named_and_the_ctime() {
    let vfs = test_vfs();
    let ino = file(&vfs, TOP, "f");
    let before = vfs.getattr(ino).unwrap();
    let set = |change: SetAttr| vfs.setattr(&ROOT, ino, &change).unwrap();
    let after = set(SetAttr {
        mode: Some(0o100_600),
        ..SetAttr::default()
    });
    assert_eq!(
        (after.permissions, after.uid, after.mtime),
        (0o600, 0, before.mtime)
    );
    assert!(after.ctime > before.ctime);
    let time = Timestamp {
        seconds: -5,
        nanoseconds: 7,
    };
    let after = set(SetAttr {
        atime: Some(SetTime::At(time)),
        ..SetAttr::default()
    });
    assert_eq!((after.atime, after.mtime), (time, before.mtime));
    let after = set(SetAttr {
        mtime: Some(SetTime::Now),
        uid: Some(7),
        ..SetAttr::default()
    });
    assert!(after.mtime > before.mtime && after.mtime == after.ctime);
    assert_eq!((after.uid, after.gid), (7, 0));
    let size = SetAttr {
        size: Some(0),
        ..SetAttr::default()
    };
    assert!(set(size).mtime > after.mtime, "also if the size stays");
    let size = SetAttr {
        size: Some(9),
        mtime: Some(SetTime::At(time)),
        ..SetAttr::default()
    };
    let size = SetAttr {
        ctime: Some(time),
        ..size
    };
    assert_eq!(
        (set(size).mtime, vfs.getattr(ino).unwrap().ctime),
        (time, time)
    );
}

#[test]
fn a_change_of_owner_takes_set_user_id_away() {
    let vfs = test_vfs();
    let (ino, parent) = (file(&vfs, TOP, "f"), dir(&vfs, TOP, "d"));
    let owner = SetAttr {
        uid: Some(1),
        ..SetAttr::default()
    };
    let group = SetAttr {
        gid: Some(1),
        ..SetAttr::default()
    };
    // chown(path, -1, -1) arrives as a request for nothing but a ctime.
    let neither = SetAttr {
        ctime: Some(vfs.getattr(ino).unwrap().ctime),
        ..SetAttr::default()
    };
    for change in [owner, group, neither] {
        for (old, new) in [
            (0o6755, 0o755),
            (0o6745, 0o2745),
            (0o2754, 0o754),
            (0o1644, 0o1644),
        ] {
            chmod(&vfs, ino, old);
            vfs.setattr(&USER, ino, &change).unwrap();
            assert_eq!(mode(&vfs, ino), new, "{old:o}");
        }
        chmod(&vfs, parent, 0o7755);
        vfs.setattr(&USER, parent, &change).unwrap();
        assert_eq!(mode(&vfs, parent), 0o7755, "a directory keeps them");
    }
    chmod(&vfs, ino, 0o6755);
    let times = SetAttr {
        mtime: Some(SetTime::Now),
        ..SetAttr::default()
    };
    vfs.setattr(&USER, ino, &times).unwrap();
    assert_eq!(mode(&vfs, ino), 0o6755, "times change nothing else");
    vfs.setattr(&USER, ino, &SetAttr::default()).unwrap();
    assert_eq!(mode(&vfs, ino), 0o6755, "one who may keep them");
    let told = SetAttr {
        kill_suid: true,
        ..SetAttr::default()
    };
    vfs.setattr(&USER, ino, &told).unwrap();
    assert_eq!(mode(&vfs, ino), 0o755);
}

#[test]
fn set_group_id_that_nobody_can_use_goes_if_the_caller_is_not_in_the_group() {
    let vfs = test_vfs();
    let (ino, parent) = (file(&vfs, TOP, "f"), dir(&vfs, TOP, "d"));
    let change = SetAttr {
        size: Some(1),
        kill_suid: true,
        ..SetAttr::default()
    };
    let stranger = SetAttr {
        kill_sgid: true,
        ..change
    };
    for (change, left) in [(change, 0o2767), (stranger, 0o767)] {
        chmod(&vfs, ino, 0o6767);
        vfs.setattr(&USER, ino, &change).unwrap();
        assert_eq!(mode(&vfs, ino), left);
    }
    chmod(&vfs, parent, 0o2767);
    let stranger = SetAttr {
        size: None,
        ..stranger
    };
    vfs.setattr(&USER, parent, &stranger).unwrap();
    assert_eq!(mode(&vfs, parent), 0o2767, "a directory keeps it");
}

#[test]
fn a_write_or_truncation_drops_privileges_when_told_to() {
    let vfs = test_vfs();
    let ino = file(&vfs, TOP, "f");
    let capability = b"security.capability";
    let restore = || {
        chmod(&vfs, ino, 0o6755);
        vfs.setxattr(&ROOT, ino, capability, b"caps", 0).unwrap();
    };
    restore();
    vfs.write(ino, 0, b"x", false).unwrap();
    assert_eq!(mode(&vfs, ino), 0o6755);
    vfs.write(ino, 0, b"x", true).unwrap();
    assert_eq!(mode(&vfs, ino), 0o755);
    assert_eq!(errno(vfs.getxattr(&ROOT, ino, capability)), Errno::ENODATA);
    restore();
    let size = SetAttr {
        size: Some(0),
        ..SetAttr::default()
    };
    vfs.setattr(&ROOT, ino, &size).unwrap();
    assert_eq!(mode(&vfs, ino), 0o6755);
    vfs.setattr(
        &USER,
        ino,
        &SetAttr {
            kill_suid: true,
            ..size
        },
    )
    .unwrap();
    assert_eq!(mode(&vfs, ino), 0o755);
    assert_eq!(errno(vfs.getxattr(&ROOT, ino, capability)), Errno::ENODATA);
}

#[test]
fn extended_attributes_come_back() {
    let vfs = test_vfs();
    let ino = file(&vfs, TOP, "f");
    let before = vfs.getattr(ino).unwrap().ctime;
    assert_eq!(errno(vfs.getxattr(&ROOT, ino, b"user.a")), Errno::ENODATA);
    vfs.setxattr(&ROOT, ino, b"user.a", b"one", CREATE).unwrap();
    assert!(vfs.getattr(ino).unwrap().ctime > before);
    assert_eq!(
        errno(vfs.setxattr(&ROOT, ino, b"user.a", b"two", CREATE)),
        Errno::EEXIST
    );
    assert_eq!(
        errno(vfs.setxattr(&ROOT, ino, b"user.b", b"two", REPLACE)),
        Errno::ENODATA
    );
    vfs.setxattr(&ROOT, ino, b"user.a", b"", REPLACE).unwrap();
    vfs.setxattr(&ROOT, ino, b"user.a.longer", &[5; 65536], 0)
        .unwrap();
    vfs.setxattr(&ROOT, ino, b"security.selinux", b"label", 0)
        .unwrap();
    let vfs = killed(&vfs);
    assert_eq!(vfs.getxattr(&ROOT, ino, b"user.a").unwrap(), b"");
    assert_eq!(
        vfs.getxattr(&ROOT, ino, b"user.a.longer").unwrap(),
        [5; 65536]
    );
    assert_eq!(
        vfs.listxattr(&ROOT, ino).unwrap(),
        b"security.selinux\0user.a\0user.a.longer\0".to_vec()
    );
    vfs.removexattr(&ROOT, ino, b"user.a").unwrap();
    assert_eq!(
        errno(vfs.removexattr(&ROOT, ino, b"user.a")),
        Errno::ENODATA
    );
    assert_eq!(
        vfs.listxattr(&ROOT, ino).unwrap(),
        b"security.selinux\0user.a.longer\0".to_vec()
    );
    check(&vfs);
}

#[test]
fn extended_attributes_have_rules() {
    let vfs = test_vfs();
    let ino = file(&vfs, TOP, "f");
    let link = vfs.symlink(&ROOT, TOP, b"l", b"f").unwrap().ino;
    let set = |ino, name: &[u8], value: &[u8]| vfs.setxattr(&ROOT, ino, name, value, 0);
    assert_eq!(errno(set(ino, b"user.a", &[0; 65537])), Errno::E2BIG);
    assert_eq!(errno(set(ino, b"user.", b"")), Errno::EINVAL);
    assert_eq!(errno(set(ino, b"nonsense", b"")), Errno::EOPNOTSUPP);
    assert_eq!(errno(set(ino, b"system.other", b"")), Errno::EOPNOTSUPP);
    let long = format!("user.{}", "x".repeat(251));
    assert_eq!(errno(set(ino, long.as_bytes(), b"")), Errno::ERANGE);
    set(ino, &long.as_bytes()[..255], b"").unwrap();
    assert_eq!(errno(set(link, b"user.a", b"")), Errno::EPERM);
    set(link, b"trusted.a", b"").unwrap();
    set(dir(&vfs, TOP, "d"), b"user.a", b"").unwrap();
    assert_eq!(
        errno(vfs.setxattr(&ROOT, ino, b"user.a", b"", CREATE | REPLACE)),
        Errno::ENODATA
    );
    set(ino, b"user.a", b"").unwrap();
    assert_eq!(
        errno(vfs.setxattr(&ROOT, ino, b"user.a", b"", CREATE | REPLACE)),
        Errno::EEXIST
    );
    assert_eq!(
        errno(vfs.setxattr(&ROOT, ino, b"user.a", b"", 4)),
        Errno::EINVAL
    );
    assert_eq!(
        errno(vfs.setxattr(&ROOT, Ino(999), b"user.a", b"", 0)),
        Errno::ESTALE
    );
}

#[test]
fn trusted_attributes_are_for_the_superuser() {
    let vfs = test_vfs();
    let ino = file(&vfs, TOP, "f");
    vfs.setxattr(&ROOT, ino, b"trusted.t", b"secret", 0)
        .unwrap();
    vfs.setxattr(&USER, ino, b"user.u", b"open", 0).unwrap();
    assert_eq!(vfs.getxattr(&ROOT, ino, b"trusted.t").unwrap(), b"secret");
    assert_eq!(
        errno(vfs.getxattr(&USER, ino, b"trusted.t")),
        Errno::ENODATA
    );
    assert_eq!(
        errno(vfs.setxattr(&USER, ino, b"trusted.t", b"", 0)),
        Errno::EPERM
    );
    assert_eq!(
        errno(vfs.removexattr(&USER, ino, b"trusted.t")),
        Errno::EPERM
    );
    assert_eq!(vfs.listxattr(&USER, ino).unwrap(), b"user.u\0");
    assert_eq!(vfs.listxattr(&ROOT, ino).unwrap(), b"trusted.t\0user.u\0");
}

#[test]
fn many_attributes_are_all_listed_and_go_with_their_file() {
    let vfs = test_vfs();
    let ino = file(&vfs, TOP, "f");
    for n in 0..300 {
        vfs.setxattr(&ROOT, ino, format!("user.{n:03}").as_bytes(), b"v", 0)
            .unwrap();
    }
    assert_eq!(vfs.listxattr(&ROOT, ino).unwrap().len(), 300 * 9);
    vfs.unlink(&ROOT, TOP, b"f").unwrap();
    assert_eq!(
        vfs.listxattr(&ROOT, ino).unwrap().len(),
        300 * 9,
        "still open"
    );
    vfs.forget(ino, 1);
    assert_eq!(errno(vfs.getattr(ino)), Errno::ESTALE);
    check(&vfs);
}
