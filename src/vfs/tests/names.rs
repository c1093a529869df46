//! Names: making, finding, linking, moving, removing.

use nix::errno::Errno;

use crate::format::{FileKind, Ino};
use crate::vfs::testing::{ROOT, USER, check, dir, file, names, test_vfs, test_vfs_with};
use crate::vfs::{Result, SetAttr, Vfs, VfsOptions};

const TOP: Ino = Ino::ROOT;

fn errno<T: std::fmt::Debug>(result: Result<T>) -> Errno {
    result.expect_err("must fail").errno()
}

fn rename(vfs: &Vfs, from: (Ino, &str), to: (Ino, &str), flags: u32) -> Result<()> {
    vfs.rename(
        &ROOT,
        from.0,
        from.1.as_bytes(),
        to.0,
        to.1.as_bytes(),
        flags,
    )
}

#[test]
fn a_new_filesystem_has_an_empty_root() {
    let vfs = test_vfs();
    let root = vfs.getattr(TOP).unwrap();
    assert_eq!(
        (root.kind, root.nlink, root.size),
        (FileKind::Directory, 2, 0)
    );
    assert_eq!(root.permissions, 0o755);
    assert_eq!(vfs.parent(TOP).unwrap(), TOP);
    assert!(names(&vfs, TOP).is_empty());
}

#[test]
fn what_was_made_is_found_with_its_attributes() {
    let vfs = test_vfs();
    let made = vfs.mknod(&USER, TOP, b"f", 0o100_640, 0).unwrap();
    assert_eq!(
        (made.uid, made.gid, made.permissions, made.nlink),
        (1000, 100, 0o640, 1)
    );
    assert_eq!(vfs.lookup(TOP, b"f").unwrap(), made);
    let device = vfs.mknod(&USER, TOP, b"d", 0o060_600, 0x801).unwrap();
    assert_eq!((device.kind, device.rdev), (FileKind::BlockDevice, 0x801));
    let pipe = vfs.mknod(&USER, TOP, b"p", 0o010_600, 7).unwrap();
    assert_eq!((pipe.kind, pipe.rdev), (FileKind::Fifo, 0));
    let link = vfs.symlink(&USER, TOP, b"l", b"to/there").unwrap();
    assert_eq!(
        (link.kind, link.size, link.permissions),
        (FileKind::Symlink, 8, 0o777)
    );
    assert_eq!(vfs.readlink(link.ino).unwrap(), b"to/there");
    assert_eq!(errno(vfs.readlink(made.ino)), Errno::EINVAL);
    assert_eq!(errno(vfs.lookup(TOP, b"g")), Errno::ENOENT);
    assert_eq!(errno(vfs.lookup(made.ino, b"g")), Errno::ENOTDIR);
    assert_eq!(errno(vfs.lookup(Ino(999), b"g")), Errno::ESTALE);
    check(&vfs);
}

#[test]
fn names_have_limits() {
    let vfs = test_vfs();
    let (fits, long) = ("x".repeat(255), "x".repeat(256));
    file(&vfs, TOP, &fits);
    assert_eq!(
        errno(vfs.mknod(&ROOT, TOP, long.as_bytes(), 0, 0)),
        Errno::ENAMETOOLONG
    );
    assert_eq!(errno(vfs.lookup(TOP, long.as_bytes())), Errno::ENAMETOOLONG);
    assert_eq!(
        errno(rename(&vfs, (TOP, &fits), (TOP, &long), 0)),
        Errno::ENAMETOOLONG
    );
    assert_eq!(errno(vfs.mkdir(&ROOT, TOP, b"", 0)), Errno::ENOENT);
    assert_eq!(errno(vfs.mkdir(&ROOT, TOP, b"a/b", 0)), Errno::EINVAL);
    assert_eq!(errno(vfs.mkdir(&ROOT, TOP, b".", 0)), Errno::EEXIST);
    assert_eq!(errno(vfs.mkdir(&ROOT, TOP, b"..", 0)), Errno::EEXIST);
    let target = vec![b'x'; 4096];
    assert_eq!(
        errno(vfs.symlink(&ROOT, TOP, b"s", &target)),
        Errno::ENAMETOOLONG
    );
    vfs.symlink(&ROOT, TOP, b"s", &target[1..]).unwrap();
    assert_eq!(errno(vfs.symlink(&ROOT, TOP, b"e", b"")), Errno::ENOENT);
    assert_eq!(
        errno(vfs.mknod(&ROOT, TOP, b"d", 0o040_755, 0)),
        Errno::EPERM
    );
    assert_eq!(
        errno(vfs.mknod(&ROOT, TOP, b"d", 0o110_755, 0)),
        Errno::EINVAL
    );
}

#[test]
fn a_name_is_made_once() {
    let vfs = test_vfs();
    let made = file(&vfs, TOP, "f");
    assert_eq!(errno(vfs.mknod(&ROOT, TOP, b"f", 0, 0)), Errno::EEXIST);
    assert_eq!(errno(vfs.mkdir(&ROOT, TOP, b"f", 0)), Errno::EEXIST);
    assert_eq!(errno(vfs.symlink(&ROOT, TOP, b"f", b"x")), Errno::EEXIST);
    assert_eq!(errno(vfs.link(&ROOT, made, TOP, b"f")), Errno::EEXIST);
    assert_eq!(vfs.getattr(TOP).unwrap().size, 1);
}

#[test]
fn a_setgid_directory_passes_its_group_on() {
    let vfs = test_vfs();
    let parent = dir(&vfs, TOP, "d");
    let change = SetAttr {
        mode: Some(0o2775),
        gid: Some(55),
        ..SetAttr::default()
    };
    vfs.setattr(&ROOT, parent, &change).unwrap();
    let made = vfs.mknod(&USER, parent, b"f", 0o100_644, 0).unwrap();
    assert_eq!((made.gid, made.permissions), (55, 0o644));
    let made = vfs.mkdir(&USER, parent, b"s", 0o755).unwrap();
    assert_eq!((made.uid, made.gid, made.permissions), (1000, 55, 0o2755));
}

#[test]
fn every_change_of_a_directory_sets_its_times() {
    let vfs = test_vfs();
    let parent = dir(&vfs, TOP, "d");
    let times = || {
        let attr = vfs.getattr(parent).unwrap();
        assert_eq!(attr.mtime, attr.ctime);
        attr.mtime
    };
    let mut last = times();
    let mut changed = |what: &str| {
        assert!(times() > last, "{what}");
        last = times();
    };
    let made = file(&vfs, parent, "f");
    changed("mknod");
    vfs.link(&ROOT, made, parent, b"g").unwrap();
    changed("link");
    let before = vfs.getattr(made).unwrap().ctime;
    rename(&vfs, (parent, "f"), (parent, "h"), 0).unwrap();
    changed("rename");
    assert!(
        vfs.getattr(made).unwrap().ctime > before,
        "ctime of the renamed inode"
    );
    let before = vfs.getattr(made).unwrap().ctime;
    vfs.unlink(&ROOT, parent, b"g").unwrap();
    changed("unlink");
    assert!(
        vfs.getattr(made).unwrap().ctime > before,
        "ctime of the unlinked inode"
    );
    dir(&vfs, parent, "s");
    changed("mkdir");
    vfs.rmdir(&ROOT, parent, b"s").unwrap();
    changed("rmdir");
}

#[test]
fn links_count_up_and_down() {
    let vfs = test_vfs();
    let (made, other) = (file(&vfs, TOP, "f"), dir(&vfs, TOP, "d"));
    let linked = vfs.link(&ROOT, made, other, b"g").unwrap();
    assert_eq!((linked.ino, linked.nlink), (made, 2));
    vfs.unlink(&ROOT, TOP, b"f").unwrap();
    assert_eq!(vfs.getattr(made).unwrap().nlink, 1);
    assert_eq!(vfs.lookup(other, b"g").unwrap().ino, made);
    assert_eq!(errno(vfs.link(&ROOT, other, TOP, b"x")), Errno::EPERM);
    vfs.unlink(&ROOT, other, b"g").unwrap();
    assert_eq!(errno(vfs.link(&ROOT, made, TOP, b"x")), Errno::ENOENT);
    check(&vfs);
}

#[test]
fn directories_are_counted_in_their_parents_links() {
    let vfs = test_vfs();
    let (a, b) = (dir(&vfs, TOP, "a"), dir(&vfs, TOP, "b"));
    let links = |ino| vfs.getattr(ino).unwrap().nlink;
    assert_eq!((links(TOP), links(a)), (4, 2));
    let moved = dir(&vfs, a, "m");
    assert_eq!((links(a), links(b)), (3, 2));
    rename(&vfs, (a, "m"), (b, "n"), 0).unwrap();
    assert_eq!((links(a), links(b)), (2, 3));
    assert_eq!(vfs.parent(moved).unwrap(), b);
    assert_eq!(vfs.lookup(moved, b"..").unwrap().ino, b);
    vfs.rmdir(&ROOT, b, b"n").unwrap();
    assert_eq!((links(b), links(moved)), (2, 0));
    check(&vfs);
}

#[test]
fn removing_wants_the_right_kind() {
    let vfs = test_vfs();
    let parent = dir(&vfs, TOP, "d");
    file(&vfs, TOP, "f");
    file(&vfs, parent, "g");
    assert_eq!(errno(vfs.unlink(&ROOT, TOP, b"d")), Errno::EISDIR);
    assert_eq!(errno(vfs.rmdir(&ROOT, TOP, b"f")), Errno::ENOTDIR);
    assert_eq!(errno(vfs.rmdir(&ROOT, TOP, b"d")), Errno::ENOTEMPTY);
    assert_eq!(errno(vfs.rmdir(&ROOT, TOP, b"x")), Errno::ENOENT);
    assert_eq!(errno(vfs.rmdir(&ROOT, parent, b".")), Errno::EINVAL);
    assert_eq!(errno(vfs.rmdir(&ROOT, parent, b"..")), Errno::ENOTEMPTY);
    vfs.unlink(&ROOT, parent, b"g").unwrap();
    vfs.rmdir(&ROOT, TOP, b"d").unwrap();
    assert_eq!(errno(vfs.mknod(&ROOT, parent, b"x", 0, 0)), Errno::ENOENT);
    assert_eq!(
        errno(rename(&vfs, (TOP, "f"), (parent, "x"), 0)),
        Errno::ENOENT
    );
    check(&vfs);
}

#[test]
fn rename_replaces_like_for_like() {
    let vfs = test_vfs();
    let (f, g) = (file(&vfs, TOP, "f"), file(&vfs, TOP, "g"));
    let (d, e) = (dir(&vfs, TOP, "d"), dir(&vfs, TOP, "e"));
    file(&vfs, d, "inside");
    assert_eq!(
        errno(rename(&vfs, (TOP, "f"), (TOP, "d"), 0)),
        Errno::EISDIR
    );
    assert_eq!(
        errno(rename(&vfs, (TOP, "d"), (TOP, "f"), 0)),
        Errno::ENOTDIR
    );
    assert_eq!(
        errno(rename(&vfs, (TOP, "e"), (TOP, "d"), 0)),
        Errno::ENOTEMPTY
    );
    assert_eq!(
        errno(rename(&vfs, (TOP, "x"), (TOP, "f"), 0)),
        Errno::ENOENT
    );
    let before = vfs.getattr(g).unwrap().ctime;
    rename(&vfs, (TOP, "f"), (TOP, "g"), 0).unwrap();
    assert_eq!(vfs.lookup(TOP, b"g").unwrap().ino, f);
    let gone = vfs.getattr(g).unwrap();
    assert!(gone.nlink == 0 && gone.ctime > before, "open, it lives on");
    rename(&vfs, (TOP, "d"), (TOP, "e"), 0).unwrap();
    assert_eq!(vfs.lookup(TOP, b"e").unwrap().ino, d);
    assert_eq!(vfs.getattr(e).unwrap().nlink, 0);
    assert_eq!(names(&vfs, TOP), ["e", "g"]);
    assert_eq!(vfs.getattr(TOP).unwrap().nlink, 3);
    check(&vfs);
}

#[test]
fn rename_between_two_names_of_one_inode_does_nothing() {
    let vfs = test_vfs();
    let made = file(&vfs, TOP, "f");
    vfs.link(&ROOT, made, TOP, b"g").unwrap();
    rename(&vfs, (TOP, "f"), (TOP, "g"), 0).unwrap();
    rename(&vfs, (TOP, "f"), (TOP, "g"), libc::RENAME_EXCHANGE).unwrap();
    rename(&vfs, (TOP, "f"), (TOP, "f"), 0).unwrap();
    assert_eq!(names(&vfs, TOP), ["f", "g"]);
    assert_eq!(vfs.getattr(made).unwrap().nlink, 2);
    let noreplace = libc::RENAME_NOREPLACE;
    assert_eq!(
        errno(rename(&vfs, (TOP, "f"), (TOP, "g"), noreplace)),
        Errno::EEXIST
    );
}

#[test]
fn a_directory_cannot_move_into_itself() {
    let vfs = test_vfs();
    let a = dir(&vfs, TOP, "a");
    let b = dir(&vfs, a, "b");
    let c = dir(&vfs, b, "c");
    for target in [a, b, c] {
        assert_eq!(
            errno(rename(&vfs, (TOP, "a"), (target, "x"), 0)),
            Errno::EINVAL
        );
    }
    let exchange = libc::RENAME_EXCHANGE;
    assert_eq!(
        errno(rename(&vfs, (TOP, "a"), (b, "c"), exchange)),
        Errno::EINVAL
    );
    assert_eq!(
        errno(rename(&vfs, (b, "c"), (TOP, "a"), exchange)),
        Errno::EINVAL
    );
    assert_eq!(
        errno(rename(&vfs, (b, "c"), (TOP, "a"), 0)),
        Errno::ENOTEMPTY
    );
    rename(&vfs, (b, "c"), (TOP, "c"), 0).unwrap();
    rename(&vfs, (TOP, "a"), (c, "a"), 0).unwrap();
    assert_eq!(vfs.parent(a).unwrap(), c);
    check(&vfs);
}

#[test]
fn rename_flags_mean_what_the_manual_says() {
    let vfs = test_vfs();
    let (f, d) = (file(&vfs, TOP, "f"), dir(&vfs, TOP, "d"));
    let g = file(&vfs, d, "g");
    let (noreplace, exchange) = (libc::RENAME_NOREPLACE, libc::RENAME_EXCHANGE);
    assert_eq!(
        errno(rename(&vfs, (TOP, "f"), (d, "g"), noreplace)),
        Errno::EEXIST
    );
    rename(&vfs, (TOP, "f"), (d, "n"), noreplace).unwrap();
    assert_eq!(
        errno(rename(&vfs, (d, "n"), (TOP, "x"), exchange)),
        Errno::ENOENT
    );
    let sub = dir(&vfs, d, "sub");
    rename(&vfs, (d, "n"), (d, "sub"), exchange).unwrap();
    assert_eq!(vfs.lookup(d, b"sub").unwrap().ino, f);
    rename(&vfs, (d, "n"), (TOP, "d"), exchange).expect_err("an ancestor");
    let other = file(&vfs, TOP, "other");
    rename(&vfs, (d, "n"), (TOP, "other"), exchange).unwrap();
    assert_eq!(vfs.lookup(TOP, b"other").unwrap().ino, sub);
    assert_eq!(vfs.lookup(d, b"n").unwrap().ino, other);
    assert_eq!(vfs.parent(sub).unwrap(), TOP);
    assert_eq!(
        (
            vfs.getattr(TOP).unwrap().nlink,
            vfs.getattr(d).unwrap().nlink
        ),
        (4, 2)
    );
    check(&vfs);

    rename(&vfs, (d, "g"), (TOP, "w"), libc::RENAME_WHITEOUT).unwrap();
    assert_eq!(vfs.lookup(TOP, b"w").unwrap().ino, g);
    let whiteout = vfs.lookup(d, b"g").unwrap();
    assert_eq!((whiteout.kind, whiteout.rdev), (FileKind::CharDevice, 0));
    for flags in [exchange | noreplace, exchange | libc::RENAME_WHITEOUT, 8] {
        assert_eq!(
            errno(rename(&vfs, (TOP, "w"), (TOP, "w2"), flags)),
            Errno::EINVAL
        );
    }
    check(&vfs);
}

#[test]
fn names_with_the_same_hash_live_side_by_side() {
    let options = VfsOptions {
        name_hash_bits: 1,
        ..VfsOptions::default()
    };
    let vfs = test_vfs_with(options);
    let name = |n: u32| format!("name{n}");
    let made: Vec<Ino> = (0..200).map(|n| file(&vfs, TOP, &name(n))).collect();
    for n in (0..200).step_by(3) {
        vfs.unlink(&ROOT, TOP, name(n).as_bytes()).unwrap();
    }
    for (n, ino) in (0..200).zip(&made) {
        let found = vfs.lookup(TOP, name(n).as_bytes());
        if n % 3 == 0 {
            assert_eq!(errno(found), Errno::ENOENT);
        } else {
            assert_eq!(found.unwrap().ino, *ino);
        }
    }
    for n in 200..300 {
        file(&vfs, TOP, &name(n));
    }
    assert_eq!(names(&vfs, TOP).len(), 133 + 100);
    check(&vfs);
    let full = (300..900).find_map(|n| vfs.mknod(&ROOT, TOP, name(n).as_bytes(), 0, 0).err());
    assert_eq!(full.unwrap().errno(), Errno::ENOSPC);
    check(&vfs);
}

#[test]
fn readdir_goes_on_where_it_stopped_whatever_changed() {
    let vfs = test_vfs();
    let parent = dir(&vfs, TOP, "d");
    for n in 0..500 {
        file(&vfs, parent, &format!("stays{n}"));
        file(&vfs, parent, &format!("goes{n}"));
    }
    let (mut cookie, mut seen, mut calls) = (0, Vec::new(), 0);
    loop {
        let mut room = 7;
        vfs.readdir(parent, cookie, &mut |item| {
            if room == 0 {
                return false;
            }
            room -= 1;
            seen.push(String::from_utf8(item.name.to_vec()).unwrap());
            cookie = item.cookie;
            true
        })
        .unwrap();
        if room > 0 {
            break;
        }
        // Entries come and go between the calls.
        let _ = vfs.unlink(&ROOT, parent, format!("goes{calls}").as_bytes());
        file(&vfs, parent, &format!("comes{calls}"));
        calls += 1;
    }
    assert_eq!(seen[..2], [".", ".."]);
    let stayed = seen.iter().filter(|name| name.starts_with("stays")).count();
    assert_eq!(stayed, 500);
    seen.sort();
    seen.dedup();
    let again = seen.iter().filter(|name| name.starts_with("stays")).count();
    assert_eq!(again, 500, "each once");
    assert_eq!(
        errno(vfs.readdir(file(&vfs, TOP, "f"), 0, &mut |_| true)),
        Errno::ENOTDIR
    );
    vfs.readdir(parent, u64::MAX, &mut |_| {
        panic!("nothing is behind the last")
    })
    .unwrap();
}

#[test]
fn threads_that_move_the_same_names_leave_a_sound_tree() {
    let vfs = test_vfs();
    let dirs: Vec<Ino> = (0..4).map(|n| dir(&vfs, TOP, &format!("d{n}"))).collect();
    std::thread::scope(|scope| {
        for thread in 0..4_u64 {
            let (vfs, dirs) = (&vfs, &dirs);
            scope.spawn(move || {
                let mut random = crate::vfs::testing::Random(thread);
                for _ in 0..3000 {
                    let a = dirs[random.below(4) as usize];
                    let b = dirs[random.below(4) as usize];
                    let (x, y) = (
                        format!("n{}", random.below(6)),
                        format!("n{}", random.below(6)),
                    );
                    // Errors are expected: the others work on the same names.
                    match random.below(7) {
                        0 => drop(vfs.mknod(&ROOT, a, x.as_bytes(), 0o644, 0)),
                        1 => drop(vfs.mkdir(&ROOT, a, x.as_bytes(), 0o755)),
                        2 => drop(vfs.unlink(&ROOT, a, x.as_bytes())),
                        3 => drop(vfs.rmdir(&ROOT, a, x.as_bytes())),
                        4 => {
                            let flags = random.below(3) as u32;
                            drop(rename(vfs, (a, &x), (b, &y), flags));
                        }
                        5 => {
                            if let Ok(found) = vfs.lookup(a, x.as_bytes()) {
                                drop(vfs.link(&ROOT, found.ino, b, y.as_bytes()));
                                drop(vfs.write(found.ino, random.below(9000), &[1; 5000], false));
                                vfs.forget(found.ino, 1);
                            }
                        }
                        _ => drop(vfs.setattr(&ROOT, a, &SetAttr::default())),
                    }
                }
            });
        }
    });
    check(&vfs);
    vfs.close().unwrap();
    check(&vfs);
}
