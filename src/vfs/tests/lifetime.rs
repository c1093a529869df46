//! The life of inodes: references, deletion, and what a crash leaves of long work.

use nix::errno::Errno;

use crate::format::Ino;
use crate::vfs::testing::{
    BLOCK, ROOT, check, content, crash_sweep, cut_off, dir, file, fragmented, killed, names,
    records, test_vfs, truncate,
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
    let before = records(&vfs);
    vfs.rename(&ROOT, TOP, b"g", TOP, b"f", 0).unwrap();
    vfs.unlink(&ROOT, TOP, b"f").unwrap();
    vfs.rmdir(&ROOT, TOP, b"d").unwrap();
    assert_eq!(records(&vfs), before + 3, "one transaction each");
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
    let (open, closed) = (
        fragmented(&vfs, TOP, "open", 1300),
        fragmented(&vfs, TOP, "closed", 1300),
    );
    vfs.forget(closed, 1);
    crash_sweep(
        &vfs,
        |vfs| {
            if vfs.reference(open).is_ok() && vfs.unlink(&ROOT, TOP, b"closed").is_ok() {
                let before = records(vfs);
                let unlinked = vfs.unlink(&ROOT, TOP, b"open");
                vfs.forget(open, 1);
                assert!(unlinked.is_err() || !vfs.world.is_powered() || records(vfs) > before + 3);
            }
        },
        |vfs| {
            check(vfs);
            let names = names(vfs, TOP);
            assert!(
                ["closed open", "open", ""].contains(&&*names.join(" ")),
                "{names:?}"
            );
            let space = vfs.statfs().unwrap();
            assert_eq!(space.files - space.files_free, 1 + names.len() as u64);
            for (name, ino) in [("open", open), ("closed", closed)] {
                let expected = names.iter().any(|other| other == name);
                assert!(exists(vfs, ino) == expected && (!expected || content(vfs, ino)[0] == 7));
            }
        },
    );
}

#[test]
fn a_long_truncation_shows_its_result_at_once_and_survives_a_crash() {
    let vfs = test_vfs();
    let ino = fragmented(&vfs, TOP, "f", 1300);
    let old = content(&vfs, ino);
    let size = |size| SetAttr {
        size: Some(size),
        ..SetAttr::default()
    };
    crash_sweep(
        &vfs,
        |vfs| {
            let before = records(vfs);
            let cut = vfs.setattr(&ROOT, ino, &size(5 * BLOCK + 9));
            assert!(cut.is_err() || records(vfs) >= before + 3);
        },
        |vfs| {
            check(vfs);
            let attr = vfs.getattr(ino).unwrap();
            if attr.size as usize == old.len() {
                assert!(content(vfs, ino) == old);
            } else {
                assert_eq!((attr.size, attr.blocks), (5 * BLOCK + 9, 24));
                assert!(content(vfs, ino) == old[..5 * 4096 + 9]);
            }
            // What was cut off stays away when the file grows again.
            truncate(vfs, ino, 5 * BLOCK + 9);
            truncate(vfs, ino, 3000 * BLOCK);
            assert!(
                content(vfs, ino)[5 * 4096 + 9..]
                    .iter()
                    .all(|byte| *byte == 0)
            );
            check(vfs);
        },
    );
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
    let mut last = records(&vfs);
    let mut one = |what: &str| {
        assert_eq!(records(&vfs), last + 1, "{what}");
        last = records(&vfs);
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
    assert_eq!(records(&vfs), last, "an error changes nothing");
    check(&vfs);
}

#[test]
fn a_number_that_a_crash_took_back_is_not_given_out_again() {
    let mut given = std::collections::BTreeSet::new();
    let mut vfs = test_vfs();
    for crash in 0..4 {
        // Some of them are on no disk, some in the journal, some in the index.
        for number in 0..3 {
            let name = format!("{crash} {number}");
            assert!(given.insert(file(&vfs, TOP, &name)), "{name}");
            match number {
                0 if crash == 1 => vfs.pool.checkpoint().unwrap(),
                0 if crash == 2 => vfs.pool.sync().unwrap(),
                _ => {}
            }
        }
        vfs = cut_off(vfs);
        assert!(!names(&vfs, TOP).contains(&format!("{crash} 2")));
    }
    check(&vfs);
}
