//! The control directory and the attributes of ours.

use std::time::Duration;

use nix::errno::Errno;

use crate::format::{FileKind, Ino};
use crate::vfs::testing::{ROOT, USER, check, content, damage, dir, file, names, test_vfs};
use crate::vfs::{Caller, Operation, Result, SetAttr, Whence, is_control};

const TOP: Ino = Ino::ROOT;

fn errno<T: std::fmt::Debug>(result: Result<T>) -> Errno {
    result.expect_err("must fail").errno()
}

#[test]
fn the_control_directory_is_found_but_not_listed() {
    let vfs = test_vfs();
    file(&vfs, TOP, "f");
    assert_eq!(names(&vfs, TOP), ["f"]);
    let attr = vfs.lookup(TOP, b".mendfs").unwrap();
    assert_eq!(
        (attr.kind, attr.permissions, attr.uid),
        (FileKind::Directory, 0o555, 0)
    );
    assert!(is_control(attr.ino));
    let reports = ["events.jsonl", "metrics", "status.json"];
    assert_eq!(names(&vfs, attr.ino), reports);
    assert_eq!(vfs.lookup(attr.ino, b"..").unwrap().ino, TOP);
    assert_eq!(vfs.parent(attr.ino).unwrap(), TOP);
    let parent = dir(&vfs, TOP, "d");
    assert_eq!(
        errno(vfs.lookup(parent, b".mendfs")),
        Errno::ENOENT,
        "in the root only"
    );
    file(&vfs, parent, ".mendfs");
    assert_eq!(vfs.getattr(TOP).unwrap().size, 2);
    check(&vfs);
}

#[test]
fn each_lookup_of_a_report_is_a_snapshot_until_forgotten() {
    let vfs = test_vfs();
    let parent = vfs.lookup(TOP, b".mendfs").unwrap().ino;
    let first = vfs.lookup(parent, b"status.json").unwrap();
    let second = vfs.lookup(parent, b"status.json").unwrap();
    assert_ne!(first.ino, second.ino);
    assert_eq!((first.kind, first.permissions), (FileKind::Regular, 0o444));
    let json: serde_json::Value = serde_json::from_slice(&content(&vfs, first.ino)).unwrap();
    assert!(json.is_object());
    let mut out = Vec::new();
    vfs.read(first.ino, 1, 3, &mut out).unwrap();
    assert_eq!(out.len(), 3);
    vfs.read(first.ino, u64::MAX, 3, &mut out).unwrap();
    assert!(out.is_empty());
    assert_eq!(vfs.lseek(first.ino, 0, Whence::Hole).unwrap(), first.size);
    vfs.reference(first.ino).unwrap();
    vfs.forget(first.ino, 1);
    vfs.getattr(first.ino).unwrap();
    vfs.forget(first.ino, 1);
    assert_eq!(errno(vfs.getattr(first.ino)), Errno::ESTALE);
    vfs.getattr(second.ino).unwrap();
    let mut listed = None;
    vfs.readdir(parent, 2, &mut |item| listed.replace(item.ino).is_none())
        .unwrap();
    assert_eq!(
        errno(vfs.reference(listed.unwrap())),
        Errno::ESTALE,
        "to be looked up by name"
    );
}

#[test]
fn nobody_changes_the_control_directory() {
    let vfs = test_vfs();
    let control = vfs.lookup(TOP, b".mendfs").unwrap().ino;
    let report = vfs.lookup(control, b"status.json").unwrap().ino;
    let f = file(&vfs, TOP, "f");
    let name = b".mendfs";
    assert_eq!(errno(vfs.mkdir(&ROOT, TOP, name, 0)), Errno::EEXIST);
    assert_eq!(errno(vfs.mknod(&ROOT, TOP, name, 0, 0)), Errno::EEXIST);
    assert_eq!(errno(vfs.symlink(&ROOT, TOP, name, b"x")), Errno::EEXIST);
    assert_eq!(errno(vfs.link(&ROOT, f, TOP, name)), Errno::EEXIST);
    assert_eq!(errno(vfs.rmdir(&ROOT, TOP, name)), Errno::EPERM);
    assert_eq!(
        errno(vfs.unlink(&ROOT, control, b"status.json")),
        Errno::EPERM
    );
    assert_eq!(
        errno(vfs.rename(&ROOT, TOP, name, TOP, b"x", 0)),
        Errno::EPERM
    );
    assert_eq!(
        errno(vfs.rename(&ROOT, TOP, b"f", TOP, name, 0)),
        Errno::EPERM
    );
    assert_eq!(
        errno(vfs.rename(&ROOT, TOP, b"f", control, b"x", 0)),
        Errno::EPERM
    );
    assert_eq!(errno(vfs.mknod(&ROOT, control, b"x", 0, 0)), Errno::EPERM);
    assert_eq!(errno(vfs.link(&ROOT, report, TOP, b"x")), Errno::EPERM);
    assert_eq!(errno(vfs.write(report, 0, b"x", false)), Errno::EPERM);
    assert_eq!(errno(vfs.fallocate(report, 0, 1, 0)), Errno::EPERM);
    assert_eq!(
        errno(vfs.setattr(&ROOT, report, &SetAttr::default())),
        Errno::EPERM
    );
    assert_eq!(
        errno(vfs.setxattr(&ROOT, report, b"user.a", b"", 0)),
        Errno::EPERM
    );
    assert_eq!(
        errno(vfs.getxattr(&ROOT, report, b"user.a")),
        Errno::ENODATA
    );
    assert!(vfs.listxattr(&ROOT, report).unwrap().is_empty());
    assert_eq!(errno(vfs.copy_range(report, 0, f, 0, 1)), Errno::EOPNOTSUPP);
    let mut out = Vec::new();
    assert_eq!(errno(vfs.read(control, 0, 1, &mut out)), Errno::EISDIR);
    assert_eq!(errno(vfs.lookup(report, b"x")), Errno::ENOTDIR);
    assert_eq!(errno(vfs.lookup(control, b"x")), Errno::ENOENT);
    assert_eq!(errno(vfs.readlink(report)), Errno::EINVAL);
    assert_eq!(errno(vfs.readdir(report, 0, &mut |_| true)), Errno::ENOTDIR);
}

#[test]
fn the_roots_attributes_tell_the_status() {
    let vfs = test_vfs();
    let f = file(&vfs, TOP, "f");
    let listed = vfs.listxattr(&USER, TOP).unwrap();
    let listed = String::from_utf8(listed).unwrap();
    assert_eq!(
        listed.split_terminator('\0').collect::<Vec<_>>(),
        [
            "user.mendfs.status",
            "user.mendfs.status.json",
            "user.mendfs.mirrors",
            "user.mendfs.mirrors.json",
            "user.mendfs.scrub.status",
            "user.mendfs.scrub.status.json",
            "user.mendfs.scrub.control"
        ]
    );
    let text = vfs.getxattr(&USER, TOP, b"user.mendfs.status").unwrap();
    let text = String::from_utf8(text).unwrap();
    assert!(
        text.lines().count() > 1 && text.lines().all(|line| line.contains('=')),
        "{text}"
    );
    let json = vfs
        .getxattr(&USER, TOP, b"user.mendfs.status.json")
        .unwrap();
    serde_json::from_slice::<serde_json::Value>(&json).unwrap();
    assert_eq!(
        errno(vfs.getxattr(&USER, f, b"user.mendfs.status")),
        Errno::ENODATA
    );
    assert!(vfs.listxattr(&USER, f).unwrap().is_empty());
    assert_eq!(
        errno(vfs.setxattr(&ROOT, f, b"user.mendfs.x", b"", 0)),
        Errno::EPERM
    );
    assert_eq!(
        errno(vfs.removexattr(&ROOT, TOP, b"user.mendfs.status")),
        Errno::EPERM
    );
}

#[test]
fn the_scrub_is_ordered_by_the_owner_of_the_root_and_told_to_everybody() {
    let vfs = test_vfs();
    let f = file(&vfs, TOP, "f");
    let order =
        |who: &Caller, what: &[u8]| vfs.setxattr(who, TOP, b"user.mendfs.scrub.control", what, 0);
    let told = |name: &[u8]| String::from_utf8(vfs.getxattr(&USER, TOP, name).unwrap()).unwrap();
    let json = || -> serde_json::Value {
        serde_json::from_str(&told(b"user.mendfs.scrub.status.json")).unwrap()
    };
    assert_eq!(
        (json()["schema"].as_u64(), json()["state"].as_str()),
        (Some(1), Some("none"))
    );
    assert_eq!(errno(order(&USER, b"start")), Errno::EPERM);
    assert_eq!(errno(order(&ROOT, b"begin")), Errno::EINVAL);
    assert_eq!(errno(order(&ROOT, b"\xff")), Errno::EINVAL);
    assert_eq!(errno(order(&ROOT, b"pause")), Errno::ENODATA);
    order(&ROOT, b"start rate=5").unwrap();
    assert_eq!(errno(order(&ROOT, b"start")), Errno::EBUSY);
    assert_eq!(json()["state"], "running");
    assert_eq!(json()["limit_bytes_per_s"], 5_000_000);
    order(&ROOT, b"pause").unwrap();
    let text = told(b"user.mendfs.scrub.status");
    for key in [
        "started",
        "finished",
        "bytes_done",
        "bytes_total",
        "percent",
        "rate",
        "eta",
        "errors_found",
        "repaired",
        "unrepairable",
    ] {
        assert!(
            text.lines()
                .any(|line| line.starts_with(&format!("{key}="))),
            "{key}: {text}"
        );
    }
    assert!(text.starts_with("state=paused\n"), "{text}");
    assert!(told(b"user.mendfs.status").contains("scrub.state=paused\n"));
    // The owner of the root, whoever that is.
    let owner = SetAttr {
        uid: Some(USER.uid),
        ..SetAttr::default()
    };
    vfs.setattr(&ROOT, TOP, &owner).unwrap();
    order(&USER, b"cancel").unwrap();
    assert_eq!(json()["state"], "cancelled");
    for name in ["user.mendfs.scrub.status", "user.mendfs.scrub.control"] {
        assert_eq!(
            errno(vfs.getxattr(&ROOT, f, name.as_bytes())),
            Errno::ENODATA
        );
        assert_eq!(
            errno(vfs.setxattr(&ROOT, f, name.as_bytes(), b"start", 0)),
            Errno::EPERM
        );
    }
}

#[test]
fn a_file_tells_its_health() {
    let vfs = test_vfs();
    let f = file(&vfs, TOP, "f");
    vfs.write(f, 0, &[1; 20_000], false).unwrap();
    let health = |ino| vfs.getxattr(&USER, ino, b"user.mendfs.health");
    assert_eq!(health(f).unwrap(), b"ok");
    damage(&vfs, f, 1);
    damage(&vfs, f, 3);
    let mut out = Vec::new();
    assert_eq!(errno(vfs.read(f, 0, 20_000, &mut out)), Errno::EIO);
    assert_eq!(errno(vfs.read(f, 3 * 4096, 4096, &mut out)), Errno::EIO);
    assert_eq!(health(f).unwrap(), b"damaged: 4096+4096 12288+4096");
    assert_eq!(errno(health(Ino(999))), Errno::ESTALE);
}

#[test]
fn reports_that_nobody_forgets_do_not_grow_without_bound() {
    let vfs = test_vfs();
    let control = vfs.lookup(TOP, b".mendfs").unwrap().ino;
    let first = vfs.lookup(control, b"metrics").unwrap();
    assert_eq!(content(&vfs, first.ino).len() as u64, first.size);
    let mut bytes = first.size;
    while bytes <= 33 << 20 {
        bytes += vfs.lookup(control, b"metrics").unwrap().size;
    }
    let mut out = Vec::new();
    assert_eq!(errno(vfs.read(first.ino, 0, 10, &mut out)), Errno::ESTALE);
    vfs.getattr(first.ino).unwrap();
    let last = vfs.lookup(control, b"metrics").unwrap();
    assert_eq!(content(&vfs, last.ino).len() as u64, last.size);
    vfs.forget(first.ino, 1);
    assert_eq!(errno(vfs.getattr(first.ino)), Errno::ESTALE);
}

#[test]
fn metrics_tell_operations_bytes_and_damage_in_the_format_of_prometheus() {
    let vfs = test_vfs();
    let f = file(&vfs, TOP, "secret-name");
    vfs.write(f, 0, &[1; 20_000], false).unwrap();
    damage(&vfs, f, 1);
    let mut out = Vec::new();
    assert_eq!(errno(vfs.read(f, 4096, 4096, &mut out)), Errno::EIO);
    vfs.read(f, 0, 4096, &mut out).unwrap();
    vfs.took(Operation::Read, Duration::from_micros(25));
    let control = vfs.lookup(TOP, b".mendfs").unwrap().ino;
    let report = vfs.lookup(control, b"metrics").unwrap().ino;
    let text = String::from_utf8(content(&vfs, report)).unwrap();
    for line in [
        "mendfs_read_bytes_total{pool=\"test\"} 4096",
        "mendfs_written_bytes_total{pool=\"test\"} 20000",
        "mendfs_operation_duration_seconds_bucket{pool=\"test\",class=\"read\",le=\"0.00001\"} 0",
        "mendfs_operation_duration_seconds_bucket{pool=\"test\",class=\"read\",le=\"0.00003\"} 1",
        "mendfs_operation_duration_seconds_count{pool=\"test\",class=\"read\"} 1",
        "mendfs_state{pool=\"test\",state=\"damaged\"} 1",
        "mendfs_damaged_files{pool=\"test\"} 1",
        "mendfs_damaged_bytes{pool=\"test\"} 4096",
    ] {
        assert!(text.lines().any(|found| found == line), "{line}\n{text}");
    }
    let lost = "kind=\"data\",cause=\"checksum\",outcome=\"lost\"} 1";
    assert_eq!(
        text.matches(lost).count(),
        2,
        "once for each mirror\n{text}"
    );
    assert!(!text.contains("secret-name"), "no file names");
    for line in text.lines().filter(|line| !line.starts_with("# ")) {
        assert!(
            line.starts_with("mendfs_") && line.split(' ').count() == 2,
            "{line}"
        );
    }
}
