//! Times on a mount: to the nanosecond, far from 1970, changed by what POSIX says changes them, and
//! the same after a remount as before.

mod common;

use std::ffi::CString;
use std::fs::{self, File, Metadata};
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt, PermissionsExt, symlink};
use std::path::Path;
use std::time::Duration;

use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, FallocateFlags, fallocate};
use nix::sys::stat::{UtimensatFlags, utimensat};
use nix::sys::time::TimeSpec;

use common::media::ext4;
use common::{Mounted, Pool, drop_caches, scratch, wait_for};

fn mounted() -> Pool {
    let mut pool = Pool::create(2);
    pool.mount();
    pool
}

fn rw(path: &Path) -> File {
    let mut options = File::options();
    options.create(true).truncate(false).read(true).write(true);
    options.open(path).expect("open")
}

fn stat(path: &Path) -> Metadata {
    fs::symlink_metadata(path).expect("stat")
}

type Time = (i64, i64);

fn atime(path: &Path) -> Time {
    let data = stat(path);
    (data.atime(), data.atime_nsec())
}

fn mtime(path: &Path) -> Time {
    let data = stat(path);
    (data.mtime(), data.mtime_nsec())
}

fn ctime(path: &Path) -> Time {
    let data = stat(path);
    (data.ctime(), data.ctime_nsec())
}

fn set(path: &Path, access: TimeSpec, change: TimeSpec) -> nix::Result<()> {
    let flags = UtimensatFlags::NoFollowSymlink;
    utimensat(AT_FDCWD, path, &access, &change, flags)
}

#[test]
fn times_far_from_1970_keep_their_nanoseconds() {
    let mut pool = mounted();
    // 1901, 1684, before and after the ranges of 32 and 34 bits, 2446, 9999, and the far ends.
    let seconds = [
        0,
        -1,
        1,
        -2_147_483_648,
        -2_147_483_649,
        -9_000_000_000,
        4_294_967_295,
        4_294_967_296,
        15_032_385_535,
        15_032_385_536,
        253_402_300_799,
        1 << 40,
        -(1 << 40),
        1 << 62,
        -(1 << 62),
    ];
    let path = |number: usize| pool.mnt().join(format!("file{number}"));
    let mut want = Vec::new();
    for (number, seconds) in seconds.into_iter().enumerate() {
        let path = path(number);
        fs::write(&path, "text").expect("write");
        for nanoseconds in [0, 999_999_999, 1, 123_456_789] {
            let (access, change) = ((seconds, nanoseconds), (seconds, 999_999_999 - nanoseconds));
            let spec = |(seconds, nanoseconds)| TimeSpec::new(seconds, nanoseconds);
            set(&path, spec(access), spec(change)).expect("utimensat");
            assert_eq!((atime(&path), mtime(&path)), (access, change));
            want.resize(number, (access, change));
            if want.len() == number {
                want.push((access, change));
            }
            want[number] = (access, change);
        }
    }
    let paths: Vec<_> = (0..want.len()).map(path).collect();
    drop_caches();
    for (path, want) in paths.iter().zip(&want) {
        assert_eq!((atime(path), mtime(path)), *want, "without caches");
    }
    pool.remount();
    for (path, want) in paths.iter().zip(&want) {
        assert_eq!((atime(path), mtime(path)), *want, "after a remount");
    }
}

#[test]
fn utimensat_sets_leaves_and_takes_the_time_of_now() {
    let pool = mounted();
    let path = pool.mnt().join("file");
    fs::write(&path, "text").expect("write");
    let at = |seconds| TimeSpec::new(seconds, 7);
    set(&path, at(10), at(20)).expect("both");
    set(&path, TimeSpec::UTIME_OMIT, at(30)).expect("mtime alone");
    assert_eq!((atime(&path), mtime(&path)), ((10, 7), (30, 7)));
    set(&path, at(40), TimeSpec::UTIME_OMIT).expect("atime alone");
    assert_eq!((atime(&path), mtime(&path)), ((40, 7), (30, 7)));
    let before = ctime(&path);
    set(&path, TimeSpec::UTIME_OMIT, TimeSpec::UTIME_OMIT).expect("nothing");
    assert_eq!(ctime(&path), before, "nothing was asked for");
    set(&path, TimeSpec::UTIME_NOW, TimeSpec::UTIME_OMIT).expect("atime now");
    assert!(atime(&path) >= before && mtime(&path) == (30, 7));
    set(&path, TimeSpec::UTIME_OMIT, TimeSpec::UTIME_NOW).expect("mtime now");
    assert!(mtime(&path) >= before);
    let nonsense = set(&path, TimeSpec::new(1, 1_000_000_000), at(1));
    assert_eq!(nonsense, Err(Errno::EINVAL));
}

/// Which times of a file a step has changed: letters of "amc".
fn changed(before: &Metadata, after: &Metadata) -> String {
    let times = |data: &Metadata| {
        [
            ('a', data.atime(), data.atime_nsec()),
            ('m', data.mtime(), data.mtime_nsec()),
            ('c', data.ctime(), data.ctime_nsec()),
        ]
    };
    let pairs = times(before).into_iter().zip(times(after));
    pairs
        .filter(|(before, after)| before != after)
        .map(|(before, _)| before.0)
        .collect()
}

/// Waits until the clock that filesystems take their times from has moved.
fn next_tick(dir: &Path) {
    let probe = dir.with_file_name("tick");
    fs::write(&probe, "x").expect("write");
    let before = ctime(&probe);
    wait_for("the clock", Duration::from_secs(5), || {
        fs::write(&probe, "x").expect("write");
        ctime(&probe) > before
    });
}

type Step = (&'static str, &'static [&'static str], fn(&Path));

/// What is done, which files' times are looked at, and how.
const STEPS: &[Step] = &[
    ("chmod", &["file", "."], |dir| {
        fs::set_permissions(dir.join("file"), PermissionsExt::from_mode(0o600)).expect("chmod");
    }),
    ("chown", &["file", "."], |dir| {
        std::os::unix::fs::chown(dir.join("file"), Some(5), Some(6)).expect("chown");
    }),
    ("chown of nothing", &["file"], |dir| {
        std::os::unix::fs::chown(dir.join("file"), None, None).expect("chown");
    }),
    ("link", &["file", ".", "dir"], |dir| {
        fs::hard_link(dir.join("file"), dir.join("dir/second")).expect("link");
    }),
    ("unlink one of two", &["file", ".", "dir"], |dir| {
        fs::remove_file(dir.join("dir/second")).expect("unlink");
    }),
    ("rename", &[".", "dir"], |dir| {
        fs::rename(dir.join("file"), dir.join("dir/file")).expect("rename");
    }),
    ("rename back", &["dir/..", "dir"], |dir| {
        fs::rename(dir.join("dir/file"), dir.join("file")).expect("rename");
    }),
    ("rename over one of two", &["linked", ".", "dir"], |dir| {
        fs::rename(dir.join("other"), dir.join("linked2")).expect("rename");
    }),
    ("move a directory", &[".", "dir", "moved/.."], |dir| {
        fs::rename(dir.join("moved"), dir.join("dir/moved")).expect("rename");
    }),
    ("setxattr", &["file", "."], |dir| {
        xattr(&dir.join("file"), Some(b"value"));
    }),
    ("removexattr", &["file", "."], |dir| {
        xattr(&dir.join("file"), None)
    }),
    ("write", &["file", "."], |dir| {
        rw(&dir.join("file"))
            .write_all_at(b"data", 0)
            .expect("write");
    }),
    ("write with O_SYNC", &["file"], |dir| {
        let mut options = File::options();
        let file = options.write(true).custom_flags(libc::O_SYNC);
        let file = file.open(dir.join("file")).expect("open");
        file.write_all_at(b"data", 0).expect("write");
    }),
    ("write nothing", &["file"], |dir| {
        rw(&dir.join("file")).write_all_at(b"", 0).expect("write");
    }),
    ("truncate", &["file"], |dir| truncate(&dir.join("file"), 3)),
    ("extend", &["file"], |dir| {
        truncate(&dir.join("file"), 30_000)
    }),
    ("ftruncate", &["file"], |dir| {
        rw(&dir.join("file")).set_len(10).expect("ftruncate")
    }),
    ("ftruncate to the same", &["file"], |dir| {
        rw(&dir.join("file")).set_len(10).expect("ftruncate");
    }),
    ("O_TRUNC", &["file", "."], |dir| {
        drop(File::create(dir.join("file")).expect("open"))
    }),
    ("O_TRUNC of nothing", &["file"], |dir| {
        drop(File::create(dir.join("file")).expect("open"))
    }),
    ("fallocate", &["file"], |dir| {
        let flags = FallocateFlags::empty();
        fallocate(rw(&dir.join("file")), flags, 0, 10_000).expect("fallocate");
    }),
    ("punch", &["file"], |dir| {
        let flags = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
        fallocate(rw(&dir.join("file")), flags, 0, 4096).expect("punch");
    }),
    ("create", &[".", "dir"], |dir| {
        drop(rw(&dir.join("dir/new")))
    }),
    ("open what exists", &["dir", "dir/new"], |dir| {
        drop(rw(&dir.join("dir/new")))
    }),
    ("mkdir", &[".", "dir"], |dir| {
        fs::create_dir(dir.join("dir/sub")).expect("mkdir")
    }),
    ("mkdir below", &["dir", "dir/sub"], |dir| {
        fs::create_dir(dir.join("dir/sub/sub")).expect("mkdir");
    }),
    ("rmdir below", &["dir", "dir/sub"], |dir| {
        fs::remove_dir(dir.join("dir/sub/sub")).expect("rmdir");
    }),
    ("symlink", &[".", "dir"], |dir| {
        symlink("x", dir.join("dir/link")).expect("symlink")
    }),
    ("unlink", &[".", "dir"], |dir| {
        fs::remove_file(dir.join("dir/new")).expect("unlink")
    }),
    ("refused", &[".", "dir"], |dir| {
        fs::create_dir(dir.join("dir")).expect_err("it exists");
        fs::remove_file(dir.join("dir/none")).expect_err("it does not exist");
        fs::remove_dir(dir.join("dir")).expect_err("not empty");
    }),
];

fn truncate(path: &Path, len: i64) {
    nix::unistd::truncate(path, len).expect("truncate");
}

fn xattr(path: &Path, value: Option<&[u8]>) {
    let path = CString::new(path.as_os_str().as_bytes()).expect("no NUL");
    // SAFETY: both strings end in NUL, and the value is as long as said.
    let done = unsafe {
        let name = c"user.name".as_ptr();
        match value {
            Some(value) => {
                libc::setxattr(path.as_ptr(), name, value.as_ptr().cast(), value.len(), 0)
            }
            None => libc::removexattr(path.as_ptr(), name),
        }
    };
    assert_eq!(done, 0, "{}", std::io::Error::last_os_error());
}

/// What each step changes.
fn steps(dir: &Path) -> Vec<String> {
    fs::create_dir(dir).expect("mkdir");
    for name in ["file", "other", "linked"] {
        fs::write(dir.join(name), "text").expect("write");
    }
    fs::create_dir(dir.join("dir")).expect("mkdir");
    fs::create_dir(dir.join("moved")).expect("mkdir");
    fs::hard_link(dir.join("linked"), dir.join("linked2")).expect("link");
    let mut lines = Vec::new();
    for (what, names, step) in STEPS {
        let look = || -> Vec<_> {
            names
                .iter()
                .map(|name| fs::metadata(dir.join(name)))
                .collect()
        };
        let before = look();
        next_tick(dir);
        step(dir);
        for ((name, before), after) in names.iter().zip(before).zip(look()) {
            let line = match (before, after) {
                (Ok(before), Ok(after)) => changed(&before, &after),
                _ => "gone".to_owned(),
            };
            lines.push(format!("{what}: {name}: {line}"));
        }
    }
    lines
}

/// Every file below, with its times.
fn times_below(dir: &Path) -> Vec<String> {
    let mut lines = vec![format!(
        "{}: {:?} {:?}",
        dir.display(),
        mtime(dir),
        ctime(dir)
    )];
    if stat(dir).is_dir() {
        for entry in fs::read_dir(dir).expect("a directory") {
            lines.extend(times_below(&entry.expect("an entry").path()));
        }
    }
    lines.sort();
    lines
}

#[test]
fn every_change_changes_the_times_that_it_changes_on_ext4() {
    let scratch = scratch();
    let at = scratch.path().join("ext4");
    fs::create_dir(&at).expect("mkdir");
    ext4(&at, 64 << 20);
    let _disk = Mounted(at.clone());
    let mut pool = mounted();
    let dir = pool.mnt().join("dir");
    assert_eq!(steps(&dir), steps(&at.join("dir")));
    // What was shown is what is stored.
    let shown = times_below(&dir);
    pool.remount();
    assert_eq!(times_below(&dir), shown);
}

#[test]
fn truncating_to_the_same_size_by_name_changes_no_time() {
    let mut pool = mounted();
    let path = pool.mnt().join("file");
    fs::write(&path, "text").expect("write");
    let before = (mtime(&path), ctime(&path));
    next_tick(pool.mnt().join("x").as_path());
    truncate(&path, 4);
    assert_eq!((mtime(&path), ctime(&path)), before);
    pool.remount();
    assert_eq!((mtime(&path), ctime(&path)), before, "after a remount");
}

#[test]
fn a_memory_map_changes_mtime_at_msync_at_the_latest() {
    let pool = mounted();
    let path = pool.mnt().join("map");
    let file = rw(&path);
    file.write_all_at(&[1; 8192], 0).expect("write");
    file.sync_all().expect("fsync");
    for round in 0..2 {
        let before = (mtime(&path), ctime(&path));
        next_tick(&path);
        // SAFETY: a new map of the file's length, which nobody cuts, given back below.
        unsafe {
            let protection = libc::PROT_READ | libc::PROT_WRITE;
            let kind = libc::MAP_SHARED;
            let map = libc::mmap(
                std::ptr::null_mut(),
                8192,
                protection,
                kind,
                file.as_raw_fd(),
                0,
            );
            assert_ne!(map, libc::MAP_FAILED);
            map.cast::<u8>().add(5).write(9);
            assert_eq!(libc::msync(map, 8192, libc::MS_SYNC), 0);
            assert_eq!(libc::munmap(map, 8192), 0);
        }
        assert!(
            mtime(&path) > before.0 && ctime(&path) > before.1,
            "round {round}"
        );
    }
}

/// A file, a directory and a symbolic link whose last access and change are long ago, and no page
/// of which is in the kernel's cache.
fn old_things(pool: &Pool) -> [std::path::PathBuf; 3] {
    let [file, dir, link] = ["file", "dir", "link"].map(|name| pool.mnt().join(name));
    if !file.exists() {
        fs::write(&file, "text").expect("write");
        fs::create_dir(&dir).expect("mkdir");
        symlink("file", &link).expect("symlink");
    }
    for path in [&file, &dir, &link] {
        set(path, TimeSpec::new(10, 5), TimeSpec::new(20, 5)).expect("utimensat");
    }
    drop_caches();
    [file, dir, link]
}

fn read_all([file, dir, link]: &[std::path::PathBuf; 3]) {
    drop_caches();
    assert_eq!(fs::read(file).expect("read"), b"text");
    assert_eq!(fs::read_dir(dir).expect("readdir").count(), 0);
    fs::read_link(link).expect("readlink");
}

#[test]
fn reading_renews_an_access_time_that_is_older_than_the_last_change() {
    let mut pool = mounted();
    let things = old_things(&pool);
    read_all(&things);
    let seen = things.each_ref().map(|path| atime(path));
    assert!(seen.iter().all(|seen| seen.0 > 1_700_000_000), "{seen:?}");
    // It is newer than the last change now.
    read_all(&things);
    assert_eq!(things.each_ref().map(|path| atime(path)), seen);
    pool.remount();
    assert_eq!(
        things.each_ref().map(|path| atime(path)),
        seen,
        "after a remount"
    );
    // And older again.
    fs::write(&things[0], "text").expect("write");
    read_all(&things);
    assert!(atime(&things[0]) > seen[0]);
    assert_eq!(atime(&things[1]), seen[1]);
    // One that asks for it leaves no trace.
    old_things(&pool);
    let mut quiet = File::options();
    let quiet = quiet.read(true).custom_flags(libc::O_NOATIME);
    let mut buffer = [0; 4];
    let quiet = quiet.open(&things[0]).expect("open");
    quiet.read_exact_at(&mut buffer, 0).expect("read");
    assert_eq!(atime(&things[0]), (10, 5));
    drop(quiet);
    pool.umount();
    pool.check_clean();
}

#[test]
fn the_options_about_access_times_are_followed() {
    let mut pool = Pool::create(2);
    let cases: [(&str, [bool; 3]); 4] = [
        ("noatime", [false, false, false]),
        ("nodiratime", [true, false, true]),
        ("strictatime", [true, true, true]),
        ("relatime", [true, true, true]),
    ];
    for (options, want) in cases {
        pool.mount_with(options);
        let things = old_things(&pool);
        read_all(&things);
        let renewed = things.each_ref().map(|path| atime(path) != (10, 5));
        assert_eq!(renewed, want, "{options}");
        let before = things.each_ref().map(|path| atime(path));
        next_tick(&things[0]);
        read_all(&things);
        let again = things.each_ref().map(|path| atime(path));
        let strict = options == "strictatime";
        for (before, again) in before.iter().zip(&again) {
            assert_eq!(before != again, strict, "{options}");
        }
        pool.umount();
    }
}
