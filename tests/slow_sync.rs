//! Disks that hang in a sync, all of them at once: whoever asked for the sync waits, and nobody
//! else. No lock that other operations need is held over a sync, whichever file is synced.

mod common;

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::Write;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use common::faulty::{Faulty, Hang};
use common::{Pool, drop_caches, scratch, wait_for};
use nix::fcntl::{AT_FDCWD, RenameFlags, renameat2};

/// Longest wait for something that takes no time, on a busy machine.
const SOON: Duration = Duration::from_secs(30);
/// Names whose rows are more than the smallest cache of index pages.
const COLD: usize = 12_000;

/// A pool on disks whose syncs can be made to hang. The pool goes first when all are dropped.
struct Scene {
    pool: Pool,
    disks: [Faulty; 2],
}

impl Scene {
    /// Mounted with `options`, with names and files that nothing has cached.
    fn new(options: &str) -> Scene {
        Scene::with(&[], options)
    }

    /// As [`Scene::new`], formatted with `format`.
    fn with(format: &[&str], options: &str) -> Scene {
        let scratch = scratch();
        let disks = [Faulty::new(), Faulty::new()];
        let mirrors = disks.iter().map(Faulty::path).collect();
        let mut pool = Pool::create_at(scratch, mirrors, format);
        pool.mount();
        let cold = pool.mnt().join("cold");
        fs::create_dir(&cold).expect("mkdir");
        for number in 0..COLD {
            File::create(cold.join(name(number))).expect("create");
        }
        fs::write(cold.join("read"), vec![7; 1 << 20]).expect("write");
        fs::create_dir(pool.mnt().join("busy")).expect("mkdir");
        pool.umount();
        pool.mount_with(options);
        Scene { pool, disks }
    }

    /// Has syncs of files with that end hang on both disks.
    fn hang(&self, end: &str) -> [Hang; 2] {
        self.disks.each_ref().map(|disk| disk.hang_syncs(end))
    }

    /// Requests that hang. Superblocks are written one disk after the other.
    fn hanging(&self) -> usize {
        self.disks.iter().map(Faulty::hanging).sum()
    }
}

/// A name that makes for a long row.
fn name(number: usize) -> String {
    format!("{number:06} {}", "x".repeat(120))
}

/// What changes nothing, of names and data that nothing has cached.
fn read_on(root: &Path, round: usize) {
    let cold = root.join("cold");
    look_up(root, round);
    let mut listed = BTreeSet::new();
    for entry in fs::read_dir(&cold).expect("opendir") {
        listed.insert(entry.expect("readdir").file_name());
    }
    assert_eq!(listed.len(), COLD + 1);
    assert_eq!(fs::read(cold.join("read")).expect("read"), [7; 1 << 20]);
    nix::sys::statvfs::statvfs(root).expect("statfs");
}

/// Everything that has nothing to do with what is being synced. `round` keeps the names apart.
/// `stores`: whether data can be stored. The disks of these tests are FUSE themselves, whose client
/// in the kernel lets nobody write to a file that is being synced, as ext4 and XFS do.
fn go_on(root: &Path, round: usize, stores: bool) {
    let at = |name: &str| root.join(format!("{name} {round}"));
    read_on(root, round);
    fs::create_dir(at("dir")).expect("mkdir");
    let file = File::create(at("file")).expect("create");
    if stores {
        file.write_all_at(b"text", 0).expect("write");
    } else {
        file.set_len(4).expect("truncate");
    }
    // The kernel writes it out here.
    drop(file);
    // Through the server at once, and not when the kernel finds the time.
    let direct = File::options()
        .create(true)
        .write(true)
        .custom_flags(libc::O_DIRECT)
        .open(at("direct"))
        .expect("create");
    if stores {
        write_direct(&direct);
    } else {
        direct.set_len(64 << 10).expect("truncate");
    }
    fs::hard_link(at("file"), at("link")).expect("link");
    fs::rename(at("link"), at("dir").join("moved")).expect("rename");
    let flags = RenameFlags::RENAME_EXCHANGE;
    renameat2(AT_FDCWD, &at("file"), AT_FDCWD, &at("direct"), flags).expect("exchange");
    let size = |name: &str| fs::metadata(at(name)).expect("stat").size();
    assert_eq!((size("file"), size("direct")), (64 << 10, 4));
    direct.set_len(10).expect("truncate");
    fs::remove_file(at("file")).expect("unlink");
    std::os::unix::fs::symlink("x", at("symlink")).expect("symlink");
    fs::remove_dir(at("dir")).expect_err("it is not empty");
}

fn write_direct(file: &File) {
    let bytes = vec![1_u8; 2 * (64 << 10)];
    let skip = bytes.as_ptr().align_offset(4096);
    let aligned = &bytes[skip..][..64 << 10];
    file.write_all_at(aligned, 0).expect("write");
}

/// Runs `work` and expects that it comes to an end.
fn expect_soon(what: &str, work: impl FnOnce() + Send + 'static) {
    let (done, finished) = mpsc::channel();
    let worker = thread::spawn(move || {
        work();
        // Nobody waits any more if it was too late.
        let _ = done.send(());
    });
    let waited = finished.recv_timeout(SOON);
    assert!(
        waited != Err(mpsc::RecvTimeoutError::Timeout),
        "{what} waits for a sync"
    );
    worker.join().expect("no error");
}

/// Says when it is dropped, also by a panic, that others are to stop.
struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Writes and syncs until told to stop, so that checkpoints come to be as well.
fn keep_busy(stop: &AtomicBool, path: PathBuf, bytes: usize) {
    let mut file = File::create(path).expect("create");
    let data = vec![3; bytes];
    while !stop.load(Ordering::Relaxed) {
        file.write_all(&data).expect("write");
        file.sync_all().expect("fsync");
    }
}

/// Hangs the syncs of files with that end while somebody syncs writes of that many bytes.
fn others_go_on(options: &str, end: &'static str, bytes: usize) {
    let scene = Scene::new(options);
    let stopped = AtomicBool::new(false);
    thread::scope(|scope| {
        let path = scene.pool.mnt().join("busy/file");
        let busy = {
            let stopped = &stopped;
            scope.spawn(move || keep_busy(stopped, path, bytes))
        };
        let stop = Stop(&stopped);
        for round in 0..2 {
            drop_caches();
            let held = scene.hang(end);
            wait_for("a disk to hang", SOON, || {
                scene.hanging() > 0 || busy.is_finished()
            });
            let root = scene.pool.mnt().to_owned();
            let what = format!("something beside the sync of \"{end}\"");
            expect_soon(&what, move || go_on(&root, round, end != ".seg"));
            assert!(scene.hanging() > 0, "it was over before");
            drop(held);
        }
        drop(stop);
        busy.join().expect("no error");
    });
    let mut scene = scene;
    scene.pool.umount();
    scene.pool.check_clean();
}

#[test]
fn a_sync_of_the_journal_holds_up_nobody_else() {
    others_go_on("cache=1M", "/journal", 4096);
}

#[test]
fn a_sync_of_file_data_holds_up_nobody_else() {
    others_go_on("cache=1M", ".seg", 1 << 20);
}

#[test]
fn a_checkpoint_that_syncs_the_index_holds_up_nobody_else() {
    others_go_on("cache=1M", "/index", 4096);
}

#[test]
fn a_checkpoint_that_syncs_the_page_sums_holds_up_nobody_else() {
    others_go_on("cache=1M", "/index.sums", 4096);
}

#[test]
fn a_checkpoint_that_syncs_the_superblock_holds_up_nobody_else() {
    others_go_on("cache=1M", "/mendfs.super", 4096);
}

/// Threads of which each makes names in a directory of its own: more than there are event loops.
const MAKERS: usize = 12;

/// Has syncs hang until nobody who changes anything gets on, and expects that reading goes on.
fn readers_go_on(scene: Scene, end: &str) {
    let made: Vec<_> = (0..MAKERS).map(|_| AtomicUsize::new(0)).collect();
    let stopped = AtomicBool::new(false);
    let dirs: Vec<_> = (0..MAKERS)
        .map(|maker| scene.pool.mnt().join(format!("busy/{maker}")))
        .collect();
    dirs.iter()
        .for_each(|dir| fs::create_dir(dir).expect("mkdir"));
    drop_caches();
    thread::scope(|scope| {
        let held = scene.hang(end);
        for (dir, made) in dirs.iter().zip(&made) {
            let stopped = &stopped;
            scope.spawn(move || {
                while !stopped.load(Ordering::Relaxed) {
                    let number = made.fetch_add(1, Ordering::Relaxed);
                    let name = format!("{number} {}", "y".repeat(200));
                    File::create(dir.join(name)).expect("create");
                }
            });
        }
        let stop = Stop(&stopped);
        let all = || -> Vec<_> { made.iter().map(|n| n.load(Ordering::Relaxed)).collect() };
        let (mut before, mut since) = (all(), Instant::now());
        wait_for("nobody to get on", 4 * SOON, || {
            let now = all();
            if now != before {
                (before, since) = (now, Instant::now());
            }
            scene.hanging() > 0 && since.elapsed() > Duration::from_secs(2)
        });
        let root = scene.pool.mnt().to_owned();
        expect_soon("reading", move || read_on(&root, 0));
        assert_eq!(all(), before, "they did not wait");
        drop(stop);
        drop(held);
    });
    let mut scene = scene;
    scene.pool.umount();
    scene.pool.check_clean();
}

#[test]
fn changes_that_wait_for_room_in_the_journal_hold_up_no_reader() {
    readers_go_on(
        Scene::with(&["--journal-size", "4M"], "cache=1M"),
        "/journal",
    );
}

#[test]
fn changes_that_wait_for_their_own_durability_hold_up_no_reader() {
    readers_go_on(Scene::new("cache=1M,commit=always"), "/journal");
}

#[test]
fn names_that_wait_for_their_own_durability_hold_up_no_reader() {
    readers_go_on(Scene::new("cache=1M,dirsync"), "/journal");
}

/// Whether the thread waits for an answer of a FUSE server.
fn in_request(thread: &str) -> bool {
    let stack = fs::read_to_string(format!("/proc/self/task/{thread}/stack"));
    stack.is_ok_and(|stack| stack.contains("fuse_simple_request"))
}

/// Names of a file whose data is on its way to disks that hang are changed by who has to wait for
/// that, and nobody waits with them.
#[test]
fn who_removes_or_moves_a_file_that_is_being_written_holds_up_no_lookup() {
    let scene = Scene::new("cache=1M");
    let at = |name: &str| scene.pool.mnt().join(name);
    for dir in ["removed", "moved", "over", "linked"] {
        fs::create_dir(at(dir)).expect("mkdir");
    }
    fs::write(at("over/other"), "").expect("write");
    let files = ["removed", "moved", "over"].map(|dir| {
        // Not closed before the end: that waits until the data is written out.
        File::create(at(dir).join("file")).expect("create")
    });
    drop_caches();
    thread::scope(|scope| {
        let held = scene.disks.each_ref().map(Faulty::hang_writes);
        for file in &files {
            file.write_all_at(&[1; 64 << 10], 0).expect("write");
            let flags = libc::SYNC_FILE_RANGE_WRITE;
            // SAFETY: the descriptor is open.
            let begun = unsafe { libc::sync_file_range(file.as_raw_fd(), 0, 0, flags) };
            assert_eq!(begun, 0);
            // The kernel lets one of them through to the segment at a time.
            wait_for("a write to hang", SOON, || scene.hanging() > 0);
        }
        let work: [Box<dyn FnOnce() -> std::io::Result<()> + Send>; 4] = [
            Box::new(|| fs::remove_file(at("removed/file"))),
            Box::new(|| fs::rename(at("moved/file"), at("moved/new"))),
            Box::new(|| fs::rename(at("over/other"), at("over/file"))),
            Box::new(|| fs::hard_link(at("cold/read"), at("linked/file"))),
        ];
        let mut changers = Vec::new();
        for work in work {
            let (tell, told) = mpsc::channel();
            let changer = scope.spawn(move || {
                tell.send(nix::unistd::gettid().to_string()).expect("told");
                work()
            });
            let thread = told.recv().expect("a thread");
            wait_for("it to wait for the server", SOON, || {
                in_request(&thread) || changer.is_finished()
            });
            changers.push(changer);
        }
        let root = scene.pool.mnt().to_owned();
        expect_soon("a lookup", move || look_up(&root, 1));
        assert!(!changers[0].is_finished(), "it did not have to wait");
        drop(held);
        for changer in changers {
            changer.join().expect("no panic").expect("done in the end");
        }
    });
    drop(files);
    let mut scene = scene;
    scene.pool.umount();
    scene.pool.check_clean();
}

fn look_up(root: &Path, round: usize) {
    for number in (0..COLD).step_by(61) {
        let looked_up = fs::metadata(root.join("cold").join(name((number + round) % COLD)));
        assert_eq!(looked_up.expect("lookup").len(), 0);
    }
}
