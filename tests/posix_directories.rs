//! Directories: large ones, names of any bytes, places in a listing, and rename(2) in all its ways.

mod common;

use std::collections::BTreeSet;
use std::ffi::{CStr, CString, OsStr, OsString};
use std::fs::{self, File};
use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use common::{Pool, drop_caches, long};
use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, RenameFlags, renameat2};

/// Most memory that the server may have, whatever the directory.
const RESIDENT_MAX: u64 = 400 << 20;

fn mounted() -> Pool {
    let mut pool = Pool::create(2);
    pool.mount();
    pool
}

fn errno<T>(result: io::Result<T>) -> Errno {
    let error = result.map(|_| ()).expect_err("refused");
    Errno::from_raw(error.raw_os_error().expect("an errno"))
}

/// Processor time that the server has used, in clock ticks.
fn ticks(pool: &Pool) -> u64 {
    let stat = fs::read_to_string(format!("/proc/{}/stat", pool.pid())).expect("stat");
    let (_, fields) = stat.rsplit_once(')').expect("a name in brackets");
    let fields: Vec<&str> = fields.split_whitespace().collect();
    // utime and stime, the 14th and 15th of all fields.
    let number = |at: usize| fields[at].parse::<u64>().expect("a number");
    number(11) + number(12)
}

/// What the server's processor time for creating, looking up and removing names in a directory is.
fn cost(pool: &Pool, dir: &Path, size: usize) -> [u64; 3] {
    const BATCH: usize = 6000;
    let name = |number: usize| dir.join(format!("extra {number}"));
    let timed = |work: &dyn Fn(usize)| {
        let before = ticks(pool);
        (0..BATCH).for_each(work);
        ticks(pool) - before
    };
    let create = timed(&|number| drop(File::create(name(number)).expect("create")));
    drop_caches();
    let lookup = timed(&|number| {
        // As many different ones in either directory.
        let known = dir.join(number_name(number % 1000 * (size / 1000)));
        fs::metadata(known).expect("lookup");
        let absent = fs::metadata(dir.join(format!("absent {number}")));
        assert_eq!(errno(absent), Errno::ENOENT);
    });
    let unlink = timed(&|number| fs::remove_file(name(number)).expect("unlink"));
    [create, lookup, unlink]
}

fn number_name(number: usize) -> String {
    format!("name {number}")
}

fn fill(dir: &Path, numbers: std::ops::Range<usize>) {
    for number in numbers {
        File::create(dir.join(number_name(number))).expect("create");
    }
}

#[test]
fn a_large_directory_is_as_fast_as_a_small_one() {
    let large = if long() { 1_000_000 } else { 50_000 };
    let pool = mounted();
    let (small_dir, large_dir) = (pool.mnt().join("small"), pool.mnt().join("large"));
    fs::create_dir(&small_dir).expect("mkdir");
    fs::create_dir(&large_dir).expect("mkdir");
    fill(&small_dir, 0..1000);
    fill(&large_dir, 0..large);
    // The pages that are in use are in the cache, as far as they fit: each once to begin with.
    cost(&pool, &small_dir, 1000);
    let before = cost(&pool, &small_dir, 1000);
    cost(&pool, &large_dir, large);
    let after = cost(&pool, &large_dir, large);
    eprintln!("create, lookup, unlink in ticks: {before:?} of 1000, {after:?} of {large}");
    for (before, after) in before.iter().zip(after) {
        // What grew with the directory would be 50 or 1000 times as much.
        assert!(after <= 5 * before.max(&10), "{after} against {before}");
    }

    let listed = Command::new("sh")
        .args(["-c", "ls -f \"$1\" | wc -l", "sh"])
        .arg(&large_dir)
        .output()
        .expect("ls runs");
    let count: usize = String::from_utf8_lossy(&listed.stdout)
        .trim()
        .parse()
        .expect("a number");
    assert_eq!(count, large + 2);
    assert_eq!(fs::metadata(&large_dir).expect("stat").len(), large as u64);
    let resident = pool.resident();
    eprintln!("{} MiB resident", resident >> 20);
    assert!(resident < RESIDENT_MAX, "{resident} bytes");
    let removed = Command::new("rm").arg("-rf").arg(&large_dir).status();
    assert!(removed.expect("rm runs").success());
    assert!(!large_dir.exists());
    assert!(pool.resident() < RESIDENT_MAX);
    let mut pool = pool;
    pool.umount();
    pool.check_clean();
}

/// A stream of a directory, as libc has it.
struct Stream(NonNull<libc::DIR>);

impl Stream {
    fn open(path: &Path) -> Stream {
        let path = CString::new(path.as_os_str().as_bytes()).expect("no NUL");
        // SAFETY: the path ends in NUL.
        let stream = unsafe { libc::opendir(path.as_ptr()) };
        Stream(NonNull::new(stream).expect("opendir"))
    }

    fn next(&mut self) -> Option<OsString> {
        // SAFETY: the stream is open; what is returned is valid until the next call.
        let entry = unsafe { libc::readdir(self.0.as_ptr()).as_ref()? };
        // SAFETY: names end in NUL.
        let name = unsafe { CStr::from_ptr(entry.d_name.as_ptr()) };
        Some(OsString::from_vec(name.to_bytes().to_vec()))
    }

    fn tell(&self) -> libc::c_long {
        // SAFETY: the stream is open.
        unsafe { libc::telldir(self.0.as_ptr()) }
    }

    fn seek(&mut self, place: libc::c_long) {
        // SAFETY: the stream is open, and the place is one of its own.
        unsafe { libc::seekdir(self.0.as_ptr(), place) }
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        // SAFETY: open until here.
        unsafe { libc::closedir(self.0.as_ptr()) };
    }
}

#[test]
fn a_listing_under_changes_shows_every_lasting_name_once() {
    let lasting = if long() { 200_000 } else { 5000 };
    let pool = mounted();
    let dir = pool.mnt().join("dir");
    fs::create_dir(&dir).expect("mkdir");
    fill(&dir, 0..lasting);
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        let (stop, dir) = (&stop, &dir);
        for changer in 0..3 {
            scope.spawn(move || {
                let name = |number: u64| dir.join(format!("passing {changer} {number}"));
                for number in 0.. {
                    if stop.load(Ordering::Relaxed) {
                        break;
                    }
                    File::create(name(number)).expect("create");
                    fs::rename(name(number), dir.join(format!("moved {changer} {number}")))
                        .expect("rename");
                    if number >= 100 {
                        let old = format!("moved {changer} {}", number - 100);
                        fs::remove_file(dir.join(old)).expect("unlink");
                    }
                }
            });
        }
        let rounds = (0..4).map(|_| {
            let mut seen = BTreeSet::new();
            for entry in fs::read_dir(dir).expect("opendir") {
                let name = entry.expect("readdir").file_name();
                assert!(seen.insert(name.clone()), "{name:?} twice");
            }
            (0..lasting).all(|number| seen.contains(OsStr::new(&number_name(number))))
        });
        let complete = rounds.collect::<Vec<_>>();
        stop.store(true, Ordering::Relaxed);
        assert_eq!(
            complete, [true; 4],
            "a name that was there all the time is missing"
        );
    });
}

#[test]
fn every_place_of_a_listing_can_be_returned_to() {
    let count = 2000;
    let pool = mounted();
    let dir = pool.mnt().join("dir");
    fs::create_dir(&dir).expect("mkdir");
    fill(&dir, 0..count);
    let mut stream = Stream::open(&dir);
    let mut places = Vec::new();
    loop {
        let place = stream.tell();
        let Some(name) = stream.next() else { break };
        places.push((place, name));
    }
    assert_eq!(places.len(), count + 2);
    // Every other name goes; new ones come. What follows a place stays the same.
    for (at, (_, name)) in places.iter().enumerate() {
        if at % 2 == 0 && name != "." && name != ".." {
            fs::remove_file(dir.join(name)).expect("unlink");
        }
    }
    for number in 0..100 {
        File::create(dir.join(format!("new {number}"))).expect("create");
    }
    drop_caches();
    let known: BTreeSet<_> = places.iter().map(|(_, name)| name.clone()).collect();
    for (at, (place, _)) in places.iter().enumerate().rev().step_by(37) {
        stream.seek(*place);
        let next = std::iter::from_fn(|| stream.next()).find(|name| known.contains(name));
        let wanted = places[at..].iter().map(|(_, name)| name);
        let wanted = wanted
            .enumerate()
            .find(|(after, name)| (at + after) % 2 == 1 || *name == "." || *name == "..");
        assert_eq!(
            next.as_ref(),
            wanted.map(|(_, name)| name),
            "after place {at}"
        );
    }
}

#[test]
fn names_are_any_255_bytes() {
    let mut pool = mounted();
    let bytes: Vec<u8> = (1..=255).filter(|byte| *byte != b'/').collect();
    let mut names: Vec<Vec<u8>> = bytes.iter().map(|byte| vec![*byte; 255]).collect();
    names.push([bytes.as_slice(), b"\n"].concat());
    names.extend(
        bytes
            .iter()
            .filter(|byte| **byte != b'.')
            .map(|byte| vec![*byte]),
    );
    let path = |pool: &Pool, name: &[u8]| pool.mnt().join(OsStr::from_bytes(name));
    for name in &names {
        fs::write(path(&pool, name), name).expect("create");
    }
    for round in 0..2 {
        let listed: BTreeSet<_> = fs::read_dir(pool.mnt())
            .expect("opendir")
            .map(|entry| entry.expect("readdir").file_name().into_vec())
            .collect();
        assert_eq!(listed, names.iter().cloned().collect(), "round {round}");
        for name in &names {
            assert_eq!(&fs::read(path(&pool, name)).expect("read"), name);
        }
        pool.remount();
    }
    let long = path(&pool, &[b'x'; 256]);
    assert_eq!(errno(File::create(&long)), Errno::ENAMETOOLONG);
    assert_eq!(errno(fs::metadata(&long)), Errno::ENAMETOOLONG);
}

#[test]
fn a_file_has_more_than_65000_links() {
    let links = 66_000;
    let mut pool = mounted();
    let (first, dir) = (pool.mnt().join("first"), pool.mnt().join("dir"));
    fs::write(&first, "text").expect("write");
    fs::create_dir(&dir).expect("mkdir");
    for number in 0..links {
        fs::hard_link(&first, dir.join(number.to_string())).expect("link");
    }
    let count = |path: &Path| fs::metadata(path).expect("stat").nlink();
    assert_eq!(count(&first), links + 1);
    pool.remount();
    assert_eq!(count(&dir.join("65999")), links + 1);
    fs::remove_file(&first).expect("unlink");
    assert_eq!(fs::read(dir.join("12345")).expect("read"), b"text");
    fs::remove_dir_all(&dir).expect("rm -r");
    pool.umount();
    pool.check_clean();
}

#[test]
fn a_directory_has_more_than_65000_subdirectories() {
    let count = 66_000;
    let mut pool = mounted();
    let dir = pool.mnt().join("dir");
    fs::create_dir(&dir).expect("mkdir");
    for number in 0..count {
        fs::create_dir(dir.join(number.to_string())).expect("mkdir");
    }
    pool.remount();
    let meta = fs::metadata(&dir).expect("stat");
    assert_eq!((meta.nlink(), meta.len()), (count + 2, count));
    fs::remove_dir(dir.join("65999")).expect("rmdir");
    assert_eq!(fs::metadata(&dir).expect("stat").nlink(), count + 1);
}

/// What there can be at a name.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum There {
    Nothing,
    File,
    Symlink,
    EmptyDir,
    FullDir,
}

impl There {
    const ALL: [There; 5] = [
        There::Nothing,
        There::File,
        There::Symlink,
        There::EmptyDir,
        There::FullDir,
    ];

    fn make(self, path: &Path) {
        match self {
            There::Nothing => {}
            There::File => fs::write(path, "file").expect("write"),
            There::Symlink => std::os::unix::fs::symlink("target", path).expect("symlink"),
            There::EmptyDir | There::FullDir => fs::create_dir(path).expect("mkdir"),
        }
        if self == There::FullDir {
            fs::write(path.join("inside"), "").expect("write");
        }
    }

    fn of(path: &Path) -> There {
        let Ok(meta) = fs::symlink_metadata(path) else {
            return There::Nothing;
        };
        match meta.file_type() {
            kind if kind.is_file() => There::File,
            kind if kind.is_symlink() => There::Symlink,
            _ if path.join("inside").exists() => There::FullDir,
            _ => There::EmptyDir,
        }
    }

    fn is_dir(self) -> bool {
        matches!(self, There::EmptyDir | There::FullDir)
    }
}

/// What rename(2) says of moving `from` over `to`.
fn rename_answer(from: There, to: There, flags: RenameFlags) -> Result<(), Errno> {
    let exchange = flags.contains(RenameFlags::RENAME_EXCHANGE);
    match (from, to) {
        (There::Nothing, _) => Err(Errno::ENOENT),
        (_, There::Nothing) if exchange => Err(Errno::ENOENT),
        _ if exchange => Ok(()),
        (_, There::Nothing) => Ok(()),
        _ if flags.contains(RenameFlags::RENAME_NOREPLACE) => Err(Errno::EEXIST),
        (from, to) if from.is_dir() && !to.is_dir() => Err(Errno::ENOTDIR),
        (from, to) if !from.is_dir() && to.is_dir() => Err(Errno::EISDIR),
        (_, There::FullDir) => Err(Errno::ENOTEMPTY),
        _ => Ok(()),
    }
}

#[test]
fn rename_over_everything_does_what_its_flags_say() {
    let mut pool = mounted();
    let kinds = || There::ALL.into_iter();
    let flags = [
        RenameFlags::empty(),
        RenameFlags::RENAME_NOREPLACE,
        RenameFlags::RENAME_EXCHANGE,
        RenameFlags::RENAME_WHITEOUT,
        RenameFlags::RENAME_WHITEOUT | RenameFlags::RENAME_NOREPLACE,
    ];
    for (number, (flags, apart)) in flags
        .into_iter()
        .flat_map(|flags| [(flags, false), (flags, true)])
        .enumerate()
    {
        for (one, other) in kinds().flat_map(|one| kinds().map(move |other| (one, other))) {
            let dir = pool.mnt().join(format!("{number} {one:?} {other:?}"));
            let (from_dir, to_dir) = if apart {
                (dir.join("x"), dir.join("y"))
            } else {
                (dir.clone(), dir.clone())
            };
            fs::create_dir_all(&from_dir).expect("mkdir");
            fs::create_dir_all(&to_dir).expect("mkdir");
            let (from, to): (PathBuf, PathBuf) = (from_dir.join("from"), to_dir.join("to"));
            one.make(&from);
            other.make(&to);
            let answer = renameat2(AT_FDCWD, &from, AT_FDCWD, &to, flags);
            let case = format!("{one:?} over {other:?}, {flags:?}, apart {apart}");
            assert_eq!(answer, rename_answer(one, other, flags), "{case}");
            if answer.is_err() {
                assert_eq!((There::of(&from), There::of(&to)), (one, other), "{case}");
                continue;
            }
            assert_eq!(There::of(&to), one, "{case}");
            if flags.contains(RenameFlags::RENAME_WHITEOUT) {
                let left = fs::symlink_metadata(&from).expect("a whiteout");
                assert!(left.file_type().is_char_device(), "{case}");
                assert_eq!((left.rdev(), left.mode() & 0o7777), (0, 0), "{case}");
            } else if flags.contains(RenameFlags::RENAME_EXCHANGE) {
                assert_eq!(There::of(&from), other, "{case}");
            } else {
                assert_eq!(There::of(&from), There::Nothing, "{case}");
            }
        }
    }
    // Of itself, and of what is below itself.
    let at = |name: &str| pool.mnt().join(name);
    fs::create_dir_all(at("a/b/c")).expect("mkdir");
    fs::rename(at("a"), at("a")).expect("nothing to do");
    for (from, to, wanted) in [
        ("a", "a/new", Errno::EINVAL),
        ("a", "a/b/c/new", Errno::EINVAL),
        ("a", "a/b/c", Errno::EINVAL),
        ("a/b/c", "a", Errno::ENOTEMPTY),
        ("a/.", "new", Errno::EBUSY),
        ("a/..", "new", Errno::EBUSY),
        ("a", "a/b/..", Errno::EBUSY),
    ] {
        let moved = renameat2(AT_FDCWD, &at(from), AT_FDCWD, &at(to), RenameFlags::empty());
        assert_eq!(moved, Err(wanted), "{from} to {to}");
    }
    let exchange = RenameFlags::RENAME_EXCHANGE;
    for (from, to) in [("a", "a/b"), ("a/b/c", "a")] {
        let moved = renameat2(AT_FDCWD, &at(from), AT_FDCWD, &at(to), exchange);
        assert_eq!(moved, Err(Errno::EINVAL), "exchange of {from} and {to}");
    }
    let both = RenameFlags::RENAME_EXCHANGE | RenameFlags::RENAME_NOREPLACE;
    let moved = renameat2(AT_FDCWD, &at("a"), AT_FDCWD, &at("a/b"), both);
    assert_eq!(moved, Err(Errno::EINVAL));
    pool.umount();
    pool.check_clean();
}
