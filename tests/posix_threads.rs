//! Many threads on the same files and the same names: no update is lost, nobody waits for ever, and
//! what is left is a sound tree.

mod common;

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use common::content::Rng;
use common::{Pool, drop_caches, long};
use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, RenameFlags, renameat2};

const THREADS: u64 = 16;
/// A thread that makes no progress for so long is stuck.
const STUCK: Duration = Duration::from_secs(60);

fn mounted() -> Pool {
    let mut pool = Pool::create(2);
    pool.mount();
    pool
}

/// More of everything in a long run.
fn rounds(short: u64) -> u64 {
    if long() { 20 * short } else { short }
}

/// What the steps of a thread are counted with.
#[derive(Default)]
struct Steps(AtomicU64);

impl Steps {
    fn take(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

/// Runs `work` on so many threads, told its number, and panics if one of them takes no step for a
/// while: a deadlock is a failure and not a test that never ends.
fn watched(work: impl Fn(u64, &Steps) + Send + Sync + 'static) {
    let work = std::sync::Arc::new(work);
    let steps: std::sync::Arc<Vec<Steps>> =
        std::sync::Arc::new((0..THREADS).map(|_| Steps::default()).collect());
    let (ended, ends) = mpsc::channel();
    let threads: Vec<_> = (0..THREADS)
        .map(|number| {
            let (work, steps, ended) = (work.clone(), steps.clone(), ended.clone());
            thread::spawn(move || {
                work(number, &steps[number as usize]);
                // The test may have failed meanwhile.
                let _ = ended.send(());
            })
        })
        .collect();
    drop(ended);
    let mut running = THREADS;
    let mut seen = vec![(0, Instant::now()); THREADS as usize];
    while running > 0 {
        match ends.recv_timeout(Duration::from_millis(200)) {
            Ok(()) => running -= 1,
            // A thread that panicked is told by its join.
            Err(mpsc::RecvTimeoutError::Disconnected) => break,
            Err(mpsc::RecvTimeoutError::Timeout) => {}
        }
        for (number, (thread, seen)) in threads.iter().zip(&mut seen).enumerate() {
            let now = steps[number].0.load(Ordering::Relaxed);
            if now != seen.0 || thread.is_finished() {
                *seen = (now, Instant::now());
            }
            assert!(seen.1.elapsed() < STUCK, "thread {number} is stuck");
        }
    }
    for thread in threads {
        thread.join().expect("no error");
    }
}

/// Unmounts, has the pool checked, and mounts again: nothing is left in the kernel's caches.
fn checked(pool: &mut Pool) {
    pool.umount();
    pool.check_clean();
    pool.mount();
}

fn open(path: &Path, flags: i32) -> File {
    let mut options = File::options();
    options.create(true).truncate(false).read(true).write(true);
    options.custom_flags(flags).open(path).expect("open")
}

const RECORD: usize = 56;

/// Says who wrote it, and the how manieth it is.
fn record(thread: u64, number: u64) -> Vec<u8> {
    let mut text = format!("{thread:04} {number:08} ").into_bytes();
    text.resize(RECORD - 1, b'a' + (thread as u8));
    text.push(b'\n');
    text
}

#[test]
fn appends_of_many_threads_all_arrive_whole_and_in_order() {
    let mut pool = mounted();
    let path = pool.mnt().join("log");
    let each = rounds(2000);
    let shared = path.clone();
    watched(move |thread, steps| {
        // Half of them past the page cache.
        let flags = if thread % 2 == 0 { 0 } else { libc::O_SYNC };
        let each = if thread % 2 == 0 { each } else { each / 8 };
        let mut options = File::options();
        options.create(true).append(true).custom_flags(flags);
        let mut file = options.open(&shared).expect("open");
        for number in 0..each {
            file.write_all(&record(thread, number)).expect("append");
            steps.take();
        }
    });
    checked(&mut pool);
    let all = fs::read(&path).expect("read");
    let mut next = BTreeMap::new();
    for line in all.chunks(RECORD) {
        let thread: u64 = std::str::from_utf8(&line[..4])
            .expect("text")
            .parse()
            .expect("a number");
        let next: &mut u64 = next.entry(thread).or_default();
        assert_eq!(line, record(thread, *next), "torn, lost or out of order");
        *next += 1;
    }
    for thread in 0..THREADS {
        let each = if thread % 2 == 0 { each } else { each / 8 };
        assert_eq!(next[&thread], each, "thread {thread}");
    }
}

/// Every thread owns every 16th piece of one file and keeps writing it; pieces share blocks. What
/// it reads back, and what is left, is what it wrote last.
#[test]
fn neighbours_in_one_block_lose_no_update() {
    const PIECE: u64 = 700;
    const PIECES: u64 = 8;
    let mut pool = mounted();
    for (name, flags) in [("cached", 0), ("direct", libc::O_DIRECT)] {
        // Direct writes are of whole sectors, which still share a block.
        let piece = if flags == 0 { PIECE } else { 512 };
        let path = pool.mnt().join(name);
        let at = move |thread: u64, slot: u64| (slot * THREADS + thread) * piece;
        let filled = move |thread: u64, round: u64| {
            let mut bytes = Aligned::new(piece as usize);
            bytes
                .get()
                .iter_mut()
                .zip((0..).map(|n| (thread * 31 + round * 7 + n) as u8))
                .for_each(|(byte, value)| *byte = value);
            bytes
        };
        let (shared, last) = (path.clone(), rounds(60));
        watched(move |thread, steps| {
            let file = open(&shared, flags);
            let mut back = Aligned::new(piece as usize);
            for round in 0..=last {
                for slot in 0..PIECES {
                    let mut bytes = filled(thread, round);
                    file.write_all_at(bytes.get(), at(thread, slot))
                        .expect("write");
                    file.read_exact_at(back.get(), at(thread, slot))
                        .expect("read");
                    assert!(bytes.get() == back.get(), "another's update went over it");
                    steps.take();
                }
                if round % 5 == thread % 5 {
                    file.sync_data().expect("fdatasync");
                }
            }
        });
        checked(&mut pool);
        let all = fs::read(&path).expect("read");
        assert_eq!(all.len() as u64, THREADS * PIECES * piece);
        for (thread, slot) in (0..THREADS).flat_map(|t| (0..PIECES).map(move |s| (t, s))) {
            let from = at(thread, slot) as usize;
            let mut wanted = filled(thread, last);
            assert!(
                all[from..][..piece as usize] == *wanted.get(),
                "{name}: {thread} {slot}"
            );
        }
    }
}

/// Bytes where O_DIRECT takes them.
struct Aligned(Vec<u8>, usize, usize);

impl Aligned {
    fn new(len: usize) -> Aligned {
        let bytes = vec![0; len + 4096];
        let skip = bytes.as_ptr().align_offset(4096);
        Aligned(bytes, skip, len)
    }

    fn get(&mut self) -> &mut [u8] {
        &mut self.0[self.1..self.1 + self.2]
    }
}

/// All write the same ranges: each block is as one of them wrote it, never a mixture, since writes
/// to one file do not interleave.
#[test]
fn overlapping_writes_leave_one_of_them() {
    const RANGE: usize = 64 << 10;
    let mut pool = mounted();
    let path = pool.mnt().join("file");
    let shared = path.clone();
    watched(move |thread, steps| {
        let file = open(&shared, libc::O_DIRECT);
        let mut bytes = Aligned::new(RANGE);
        for round in 0..rounds(60) {
            bytes.get().fill((thread * 16 + round % 16) as u8);
            file.write_all_at(bytes.get(), (round % 3) * RANGE as u64)
                .expect("write");
            if thread == 0 && round % 4 == 3 {
                file.set_len(RANGE as u64).expect("truncate");
            }
            steps.take();
        }
    });
    let live = fs::read(&path).expect("read");
    for (number, range) in live.chunks(RANGE).enumerate() {
        let one = range.iter().all(|byte| *byte == range[0]);
        assert!(one, "range {number} is of several writes");
    }
    checked(&mut pool);
    assert!(fs::read(&path).expect("read") == live);
}

/// What racing for the same names may answer.
fn expected(errno: Errno) -> bool {
    matches!(
        errno,
        Errno::ENOENT
            | Errno::EEXIST
            | Errno::ENOTEMPTY
            | Errno::EISDIR
            | Errno::ENOTDIR
            | Errno::EINVAL
            | Errno::EPERM
            // rename(2) of an ancestor over its descendant.
            | Errno::EBUSY
    )
}

fn allow<T>(what: &str, result: io::Result<T>) {
    if let Err(error) = result {
        let errno = Errno::from_raw(error.raw_os_error().expect("an errno"));
        assert!(expected(errno), "{what}: {errno}");
    }
}

/// One random change of a few names that everybody uses.
fn change_names(root: &Path, rng: &mut Rng) {
    let directory = |rng: &mut Rng| {
        let mut path = root.to_owned();
        for _ in 0..rng.below(3) {
            path.push(format!("d{}", rng.below(3)));
        }
        path
    };
    let name = |rng: &mut Rng| {
        let kind = if rng.below(3) == 0 { "d" } else { "f" };
        directory(rng).join(format!("{kind}{}", rng.below(3)))
    };
    let (one, other) = (name(rng), name(rng));
    match rng.below(9) {
        0 => allow("create", File::create(&one)),
        1 => allow("mkdir", fs::create_dir(&one)),
        2 => allow("unlink", fs::remove_file(&one)),
        3 => allow("rmdir", fs::remove_dir(&one)),
        4 => allow("link", fs::hard_link(&one, &other)),
        5 => allow("rename", fs::rename(&one, &other)),
        6 => {
            let flags = RenameFlags::RENAME_EXCHANGE;
            let result = renameat2(AT_FDCWD, &one, AT_FDCWD, &other, flags);
            allow("exchange", result.map_err(io::Error::from));
        }
        7 => allow(
            "readdir",
            fs::read_dir(&one).and_then(|entries| {
                let names: Result<Vec<_>, _> = entries.map(|e| Ok(e?.file_name())).collect();
                names.inspect(|names: &Vec<_>| {
                    let once: BTreeSet<_> = names.iter().collect();
                    assert_eq!(once.len(), names.len(), "a name twice: {names:?}");
                })
            }),
        ),
        _ => allow("stat", fs::symlink_metadata(&one)),
    }
}

/// Everything below a directory, with what stat(2) says.
fn walk(at: &Path, found: &mut Vec<(PathBuf, fs::Metadata)>) {
    for entry in fs::read_dir(at).expect("opendir") {
        let path = entry.expect("readdir").path();
        let meta = fs::symlink_metadata(&path).expect("listed, so it is there");
        let dir = meta.is_dir();
        found.push((path.clone(), meta));
        if dir {
            walk(&path, found);
        }
    }
}

/// Expects link counts and ".." that fit the names, and returns how many names there are.
fn expect_sound(root: &Path) -> usize {
    let mut found = vec![(root.to_owned(), fs::metadata(root).expect("stat"))];
    walk(root, &mut found);
    let mut names: BTreeMap<u64, u64> = BTreeMap::new();
    for (_, meta) in &found {
        *names.entry(meta.ino()).or_default() += 1;
    }
    for (path, meta) in &found {
        if meta.is_dir() {
            assert_eq!(names[&meta.ino()], 1, "{path:?} is there twice");
            let inside = found
                .iter()
                .filter(|(below, meta)| meta.is_dir() && below.parent() == Some(path));
            assert_eq!(meta.nlink(), 2 + inside.count() as u64, "{path:?}");
            let entries = found
                .iter()
                .filter(|(below, _)| below.parent() == Some(path));
            assert_eq!(meta.len(), entries.count() as u64, "size of {path:?}");
            let up = fs::metadata(path.join("..")).expect("stat");
            let parent = fs::metadata(path.parent().expect("below the root")).expect("stat");
            assert_eq!(up.ino(), parent.ino(), "{path:?}/..");
        } else {
            assert_eq!(meta.nlink(), names[&meta.ino()], "{path:?}");
        }
    }
    found.len()
}

#[test]
fn threads_that_change_the_same_names_leave_a_sound_tree() {
    let seed = common::seed();
    let mut pool = mounted();
    let root = pool.mnt().join("root");
    fs::create_dir(&root).expect("mkdir");
    let shared = root.clone();
    let count = rounds(6000);
    watched(move |thread, steps| {
        let mut rng = Rng::new(seed.wrapping_add(thread));
        for _ in 0..count {
            change_names(&shared, &mut rng);
            steps.take();
        }
    });
    // The kernel may believe what it was told of a directory just before that changed.
    drop_caches();
    let before = expect_sound(&root);
    checked(&mut pool);
    assert_eq!(expect_sound(&root), before);
    fs::remove_dir_all(&root).expect("rm -r");
    pool.umount();
    pool.check_clean();
    // Nothing without a name has stayed behind: the root directory alone is left.
    let report = String::from_utf8(pool.check().stdout).expect("text");
    assert!(
        report.contains("\"inodes\":1,") || report.contains("\"inodes\": 1,"),
        "{report}"
    );
}

/// Directories that move into one another from both sides never make a loop, and nobody waits for
/// ever.
#[test]
fn crossing_renames_of_directories_make_no_loop() {
    let seed = common::seed();
    let mut pool = mounted();
    let root = pool.mnt().join("root");
    fs::create_dir(&root).expect("mkdir");
    for name in ["a", "b", "c", "d"] {
        fs::create_dir(root.join(name)).expect("mkdir");
        fs::write(root.join(name).join("file"), name).expect("write");
    }
    let shared = root.clone();
    let moved = std::sync::Arc::new(AtomicU64::new(0));
    let (count, counted) = (rounds(5000), moved.clone());
    watched(move |thread, steps| {
        let mut rng = Rng::new(seed.wrapping_add(thread));
        for _ in 0..count {
            let any = |rng: &mut Rng| ["a", "b", "c", "d"][rng.below(4) as usize];
            let place = |rng: &mut Rng| {
                let mut path = shared.clone();
                for _ in 0..rng.below(3) {
                    path.push(any(rng));
                }
                path
            };
            let (from, to) = (place(&mut rng), place(&mut rng));
            let name = any(&mut rng);
            let result = fs::rename(from.join(name), to.join(name));
            counted.fetch_add(u64::from(result.is_ok()), Ordering::Relaxed);
            allow("rename", result);
            steps.take();
        }
    });
    assert!(moved.load(Ordering::Relaxed) > 0, "nothing ever moved");
    // Four directories with a file in each, wherever they are now.
    drop_caches();
    assert_eq!(expect_sound(&root), 9);
    checked(&mut pool);
    assert_eq!(expect_sound(&root), 9);
}
