//! The life of inodes: references, deletion, and what a crash leaves of long work.

use nix::errno::Errno;

use crate::format::Ino;
use crate::vfs::testing::{
    BLOCK, ROOT, check, commits, content, dir, file, fragmented, killed, killed_at,
    largest_transaction, names, test_vfs, truncate,
};
use crate::vfs::{SetAttr, Vfs};

const TOP: Ino = Ino::ROOT;

fn exists(vfs: &Vfs, ino: Ino) -> bool {
    match vfs.getattr(ino) {
        Ok(_) => true,
        Err(error) => {
            assert_eq!(error.errno(), Errno::ESTALE);
            false
        }
    }
}

#[test]
fn an_unlinked_file_lives_until_its_last_reference() {
    let vfs = test_vfs();
    let ino = file(&vfs, TOP, "f");
    vfs.lookup(TOP, b"f").unwrap();
    vfs.write(ino, 0, b"before", false).unwrap();
    vfs.unlink(&ROOT, TOP, b"f").unwrap();
    vfs.write(ino, 6, b" after", false).unwrap();
    assert_eq!(content(&vfs, ino), b"before after");
    assert_eq!(vfs.getattr(ino).unwrap().nlink, 0);
    assert!(
        vfs.reference(ino).is_err(),
        "no new reference to what has no name"
    );
    check(&vfs);
    vfs.forget(ino, 1);
    assert!(exists(&vfs, ino));
    vfs.forget(ino, 1);
    assert!(!exists(&vfs, ino));
    vfs.forget(ino, 3);
    check(&vfs);
}

#[test]
fn a_file_with_a_name_survives_being_forgotten() {
    let vfs = test_vfs();
    let ino = file(&vfs, TOP, "f");
    vfs.link(&ROOT, ino, TOP, b"g").unwrap();
    vfs.unlink(&ROOT, TOP, b"f").unwrap();
    vfs.forget(ino, 2);
    assert!(exists(&vfs, ino));
    vfs.reference(ino).unwrap();
    vfs.unlink(&ROOT, TOP, b"g").unwrap();
    assert!(exists(&vfs, ino));
    vfs.forget(ino, 1);
    assert!(!exists(&vfs, ino));
}

#[test]
fn what_nobody_refers_to_goes_with_its_name() {
    let vfs = test_vfs();
    let (f, g, d) = (
        file(&vfs, TOP, "f"),
        file(&vfs, TOP, "g"),
        dir(&vfs, TOP, "d"),
    );
    vfs.write(f, 0, b"x", false).unwrap();
    [f, g, d].iter().for_each(|ino| vfs.forget(*ino, 1));
    let before = commits(&vfs);
    vfs.rename(&ROOT, TOP, b"g", TOP, b"f", 0).unwrap();
    vfs.unlink(&ROOT, TOP, b"f").unwrap();
    vfs.rmdir(&ROOT, TOP, b"d").unwrap();
    assert_eq!(commits(&vfs), before + 3, "one transaction each");
    assert!(!exists(&vfs, f) && !exists(&vfs, g) && !exists(&vfs, d));
    check(&vfs);
}

#[test]
fn a_removed_directory_lives_until_forgotten() {
    let vfs = test_vfs();
    let ino = dir(&vfs, TOP, "d");
    vfs.rmdir(&ROOT, TOP, b"d").unwrap();
    assert_eq!(vfs.getattr(ino).unwrap().nlink, 0);
    assert!(names(&vfs, ino).is_empty());
    check(&vfs);
    vfs.forget(ino, 1);
    assert!(!exists(&vfs, ino));
    check(&vfs);
}

#[test]
fn unmounting_and_crashing_delete_what_has_no_name() {
    let vfs = test_vfs();
    let f = fragmented(&vfs, TOP, "f", 5);
    let d = dir(&vfs, TOP, "d");
    vfs.setxattr(&ROOT, f, b"user.a", b"v", 0).unwrap();
    vfs.unlink(&ROOT, TOP, b"f").unwrap();
    vfs.rmdir(&ROOT, TOP, b"d").unwrap();
    let crashed = killed(&vfs);
    vfs.close().unwrap();
    for vfs in [vfs, crashed] {
        assert!(!exists(&vfs, f) && !exists(&vfs, d));
        check(&vfs);
    }
}

#[test]
fn a_large_file_goes_in_chunks_and_a_crash_between_them_loses_nothing() {
    let vfs = test_vfs();
    let open = fragmented(&vfs, TOP, "open", 1300);
    let closed = fragmented(&vfs, TOP, "closed", 1300);
    vfs.forget(closed, 1);
    let before = commits(&vfs);
    vfs.unlink(&ROOT, TOP, b"closed").unwrap();
    assert!(!exists(&vfs, closed));
    let closed_gone = commits(&vfs);
    vfs.unlink(&ROOT, TOP, b"open").unwrap();
    assert_eq!(commits(&vfs), closed_gone + 1);
    vfs.forget(open, 1);
    assert!(!exists(&vfs, open));
    assert!(commits(&vfs) >= before + 6);
    assert!(largest_transaction(&vfs) < 600);
    for at in before..=commits(&vfs) {
        let crashed = killed_at(&vfs, at);
        check(&crashed);
        let expected: &[&str] = match at {
            _ if at == before => &["closed", "open"],
            _ if at <= closed_gone => &["open"],
            _ => &[],
        };
        assert_eq!(names(&crashed, TOP), expected, "after {at} transactions");
        let inodes = crashed.statfs().unwrap();
        assert_eq!(inodes.files - inodes.files_free, 1 + expected.len() as u64);
    }
}

#[test]
fn a_long_truncation_shows_its_result_at_once_and_survives_a_crash() {
    let vfs = test_vfs();
    let ino = fragmented(&vfs, TOP, "f", 1300);
    let old = content(&vfs, ino);
    let before = commits(&vfs);
    truncate(&vfs, ino, 5 * BLOCK + 9);
    let after = commits(&vfs);
    assert!(after >= before + 3 && largest_transaction(&vfs) < 600);
    check(&vfs);
    assert_eq!(vfs.getattr(ino).unwrap().blocks, 24, "three blocks");
    for at in before..=after {
        let crashed = killed_at(&vfs, at);
        check(&crashed);
        let expected = if at == before {
            &old[..]
        } else {
            &old[..5 * 4096 + 9]
        };
        assert_eq!(content(&crashed, ino), expected, "after {at} transactions");
        // What was cut off stays away when the file grows again.
        truncate(&crashed, ino, 5 * BLOCK + 9);
        truncate(&crashed, ino, 3000 * BLOCK);
        let grown = content(&crashed, ino);
        assert!(grown[5 * 4096 + 9..].iter().all(|byte| *byte == 0));
        check(&crashed);
    }
}

#[test]
fn growing_while_a_truncation_is_under_way_never_shows_old_bytes() {
    let vfs = test_vfs();
    for round in 0..10 {
        let name = format!("f{round}");
        let ino = fragmented(&vfs, TOP, &name, 1300);
        let size = |size| SetAttr {
            size: Some(size),
            ..SetAttr::default()
        };
        std::thread::scope(|scope| {
            scope.spawn(|| vfs.setattr(&ROOT, ino, &size(BLOCK)).unwrap());
            scope.spawn(|| {
                while vfs.getattr(ino).unwrap().size > BLOCK {
                    std::thread::yield_now();
                }
                vfs.write(ino, 2600 * BLOCK, b"end", false).unwrap();
            });
        });
        let content = content(&vfs, ino);
        assert_eq!(content.len(), 2600 * 4096 + 3);
        assert!(content[4096..2600 * 4096].iter().all(|byte| *byte == 0));
        assert!(
            content.ends_with(b"end"),
            "the write is not taken for old bytes"
        );
        check(&vfs);
        vfs.unlink(&ROOT, TOP, name.as_bytes()).unwrap();
        vfs.forget(ino, 1);
    }
}

#[test]
fn each_operation_is_one_transaction() {
    let vfs = test_vfs();
    let (a, b) = (dir(&vfs, TOP, "a"), dir(&vfs, TOP, "b"));
    let f = file(&vfs, a, "f");
    let mut last = commits(&vfs);
    let mut one = |what: &str| {
        assert_eq!(commits(&vfs), last + 1, "{what}");
        last = commits(&vfs);
    };
    vfs.write(f, 4000, &[1; 3 << 20], true).unwrap();
    one("write");
    vfs.rename(&ROOT, a, b"f", b, b"g", 0).unwrap();
    one("rename");
    vfs.link(&ROOT, f, a, b"f").unwrap();
    one("link");
    vfs.rename(&ROOT, TOP, b"a", b, b"g", libc::RENAME_EXCHANGE)
        .unwrap();
    one("exchange");
    vfs.unlink(&ROOT, a, b"f").unwrap();
    one("unlink");
    vfs.fallocate(
        f,
        100,
        1 << 20,
        libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE,
    )
    .unwrap();
    one("punch");
    truncate(&vfs, f, 77);
    one("truncate");
    vfs.copy_range(f, 0, f, 100, 50).unwrap();
    one("copy");
    vfs.setxattr(&ROOT, f, b"user.a", b"v", 0).unwrap();
    one("setxattr");
    vfs.symlink(&ROOT, a, b"s", b"t").unwrap();
    one("symlink");
    vfs.rmdir(&ROOT, b, b"g").unwrap_err();
    vfs.mkdir(&ROOT, b, b"g", 0).unwrap_err();
    vfs.write(f, u64::MAX, b"x", false).unwrap_err();
    assert_eq!(commits(&vfs), last, "an error changes nothing");
    check(&vfs);
}
