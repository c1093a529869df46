//! A mirror that fails in use, on a filesystem that does what the test says: the pool goes on with
//! the other one, and no application sees an error.

mod common;

use std::ffi::OsStr;
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use common::content::{FileSet, Rng, TestFile};
use common::faulty::{Faulty, Hang};
use common::{Pool, mendfs, scratch, text, wait_for};
use mendfs::mirrors::READ_DEADLINE;
use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};

/// Longest wait for something that takes no time.
const SOON: Duration = Duration::from_secs(20);
/// Time in which there is a checkpoint, if anything is written.
const CHECKPOINTED: Duration = Duration::from_secs(7);
/// Longest time until the status is told, whatever else goes on.
const STATUS_WITHIN: Duration = Duration::from_millis(50);
/// What a read may take beyond the deadline, on a busy machine.
const MARGIN: Duration = Duration::from_secs(4);
/// Longest time until a mirror that was suspect is trusted again, and that once more.
const TRUSTED_AGAIN: Duration = Duration::from_secs(150);

/// A pool of two mirrors on two such filesystems, so that neither is the faster one. The pool goes
/// first when all are dropped: its process may wait for the others.
struct Scene {
    pool: Pool,
    faulty: Faulty,
    _sound: Faulty,
    set: FileSet,
}

impl Scene {
    /// Mounts anew; reads are answered from the first mirror, as long as it can.
    fn read_from_the_first(&mut self) {
        self.pool.umount();
        let first = self.faulty.path();
        self.pool.mount_with(&format!("read={}", first.display()));
    }
}

/// A mounted pool with a file set in it, nothing of which is cached above the mirrors.
fn scene() -> Scene {
    let mut rng = Rng::new(common::seed());
    let scratch = scratch();
    let (faulty, sound) = (Faulty::new(), Faulty::new());
    let mirrors = vec![faulty.path(), sound.path()];
    let mut pool = Pool::create_at(scratch, mirrors, &[]);
    let set = FileSet::plan(rng.next(), 160 << 20);
    pool.mount();
    set.write(pool.mnt());
    pool.remount();
    Scene {
        pool,
        faulty,
        _sound: sound,
        set,
    }
}

#[test]
fn a_mirror_on_it_works_like_any_other() {
    let mut scene = scene();
    scene.read_from_the_first();
    let before = scene.faulty.reads();
    scene.set.expect_whole(scene.pool.mnt());
    assert!(scene.faulty.reads() > before, "nothing was read from it");
    scene.pool.umount();
    scene.pool.check_clean();
}

#[test]
fn a_read_error_is_answered_from_the_other_mirror() {
    let mut scene = scene();
    scene.read_from_the_first();
    scene.faulty.fail_reads(true);
    let before = scene.faulty.reads();
    scene.set.expect_whole(scene.pool.mnt());
    assert!(scene.faulty.reads() > before, "nothing was read from it");
    // What became of the mirror, whose errors are more than a mirror may have, is told elsewhere.
    scene.pool.umount();
}

#[test]
fn what_hangs_goes_on_when_it_is_released_and_fails_when_the_disk_is_pulled() {
    let mut faulty = Faulty::new();
    let file = faulty.path().join("file");
    fs::write(&file, b"there").expect("write");
    let read = || {
        let file = file.clone();
        thread::spawn(move || fs::read(file))
    };
    let hang = faulty.hang_reads();
    let reader = read();
    wait_for("the read to hang", SOON, || faulty.hanging() == 1);
    assert_eq!(fs::metadata(&file).expect("stat goes on").len(), 5);
    hang.release();
    let bytes = reader.join().expect("no panic").expect("the read goes on");
    assert_eq!(bytes, b"there");

    let _hang = faulty.hang_all();
    let reader = read();
    wait_for("the open to hang", SOON, || faulty.hanging() == 1);
    faulty.unplug();
    reader
        .join()
        .expect("no panic")
        .expect_err("the disk is out");
}

/// Reads random files again and again, from the pool and not from the kernel's cache, and compares
/// them. Returns how many, and the longest that one read(2) took.
fn read_until(stop: &AtomicBool, set: &FileSet, root: &Path, mut rng: Rng) -> (u64, Duration) {
    let (mut files, mut longest) = (0, Duration::ZERO);
    while !stop.load(Ordering::Relaxed) {
        let file = &set.files[rng.below(set.files.len() as u64) as usize];
        longest = longest.max(read_timed(file, root));
        files += 1;
    }
    (files, longest)
}

fn read_timed(file: &TestFile, root: &Path) -> Duration {
    let handle = File::open(root.join(&file.path)).expect("open");
    posix_fadvise(&handle, 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED).expect("fadvise");
    let mut piece = vec![0; 128 << 10];
    let mut longest = Duration::ZERO;
    for at in (0..file.len).step_by(piece.len()) {
        let start = Instant::now();
        let got = handle
            .read_at(&mut piece, at as u64)
            .expect("no error while a mirror hangs");
        longest = longest.max(start.elapsed());
        file.compare(at, &piece[..got]).expect("the right bytes");
    }
    longest
}

/// How long the status takes to be told.
fn ask_status(root: &Path) -> Duration {
    let start = Instant::now();
    let status = common::xattr(root, "user.mendfs.status.json").expect("the status");
    let took = start.elapsed();
    assert!(status.starts_with(b"{"), "{status:?}");
    took
}

/// Hangs the mirror under readers for a while, and then expects it to be of use again.
fn hang_under_readers(hang: impl FnOnce(&Faulty) -> Hang) {
    let mut scene = scene();
    let (set, root) = (&scene.set, scene.pool.mnt());
    set.files[..20]
        .iter()
        .for_each(|file| file.verify(root).expect("whole"));
    let stop = AtomicBool::new(false);
    let held = hang(&scene.faulty);
    let start = Instant::now();
    thread::scope(|scope| {
        let readers: Vec<_> = (0..3)
            .map(|seed| {
                let stop = &stop;
                scope.spawn(move || read_until(stop, set, root, Rng::new(seed)))
            })
            .collect();
        wait_for("a read to hang", SOON, || scene.faulty.hanging() > 0);
        let over = || start.elapsed() > 2 * READ_DEADLINE;
        wait_for("two deadlines to pass", SOON, || {
            over() || readers.iter().any(|reader| reader.is_finished())
        });
        stop.store(true, Ordering::Relaxed);
        for reader in readers {
            let (files, longest) = reader.join().expect("no reader saw an error");
            eprintln!("{files} files, the longest read took {longest:?}");
            assert!(longest < READ_DEADLINE + MARGIN, "{longest:?}");
            // Once it is known to hang it costs nothing: this is not a file a deadline.
            assert!(files > 20, "{files} files");
        }
    });
    held.release();
    let before = scene.faulty.reads();
    wait_for("the mirror to be read again", TRUSTED_AGAIN, || {
        scene.set.files.iter().step_by(7).for_each(|file| {
            read_timed(file, scene.pool.mnt());
        });
        scene.faulty.reads() > before + 20
    });
    let status = scene.pool.status();
    assert_eq!(status.unrepairable(), 0, "{}", status.text());
    assert_eq!(status.repaired(), 0, "{}", status.text());
    scene.set.expect_whole(scene.pool.mnt());
    scene.pool.umount();
    scene.pool.check_clean();
}

#[test]
fn a_mirror_whose_reads_hang_delays_no_read_beyond_the_deadline() {
    hang_under_readers(Faulty::hang_reads);
}

#[test]
fn a_mirror_that_hangs_in_everything_delays_no_read_beyond_the_deadline() {
    hang_under_readers(Faulty::hang_all);
}

#[test]
fn writers_that_wait_for_a_mirror_that_hangs_hold_up_no_reader() {
    let mut scene = scene();
    let (set, root) = (&scene.set, scene.pool.mnt());
    set.files[..20]
        .iter()
        .for_each(|file| file.verify(root).expect("whole"));
    let stop = AtomicBool::new(false);
    let held = scene.faulty.hang_all();
    thread::scope(|scope| {
        // More than there are event loops, each with a file of its own.
        for number in 0..6 {
            let (stop, path) = (&stop, root.join(format!("written {number}")));
            scope.spawn(move || {
                let file = File::create(&path).expect("create");
                let data = vec![number; 1 << 20];
                for at in 0..8 {
                    if !stop.load(Ordering::Relaxed) {
                        file.write_all_at(&data, at << 20).expect("write");
                        file.sync_data().expect("fdatasync");
                    }
                }
            });
        }
        wait_for("the writers to hang", SOON, || scene.faulty.hanging() > 0);
        let stop = &stop;
        let reader = scope.spawn(move || read_until(stop, set, root, Rng::new(9)));
        let asker = scope.spawn(move || (0..50).map(|_| ask_status(root)).collect());
        let start = Instant::now();
        wait_for("two deadlines to pass", SOON, || {
            start.elapsed() > 2 * READ_DEADLINE || reader.is_finished()
        });
        stop.store(true, Ordering::Relaxed);
        held.release();
        let mut told: Vec<Duration> = asker.join().expect("the status was told");
        told.sort();
        eprintln!("the status took {:?} to {:?}", told[0], told[49]);
        assert!(told[40] < STATUS_WITHIN, "{told:?}");
        let (files, longest) = reader.join().expect("no reader saw an error");
        eprintln!("{files} files, the longest read took {longest:?}");
        assert!(longest < READ_DEADLINE + MARGIN, "{longest:?}");
        assert!(files > 20, "{files} files");
    });
    scene.set.expect_whole(scene.pool.mnt());
    scene.pool.umount();
    scene.pool.check_clean();
}

/// Makes a file durable.
fn store(path: &Path) {
    let file = File::create(path).expect("create");
    file.write_all_at(&[5; 300_000], 0).expect("write");
    file.sync_all().expect("fsync");
}

#[test]
fn a_disk_that_hangs_when_its_mirror_is_taken_back_holds_up_nobody() {
    let mut scene = scene();
    let root = scene.pool.mnt().to_owned();
    let state = || scene.pool.status().mirror_states().swap_remove(0);
    scene.faulty.fail_syncs(true);
    store(&root.join("without it"));
    assert_eq!(state(), "failed");
    let (path, mnt) = (scene.faulty.path(), root.clone());
    let take_back = move || {
        let arguments = ["mirror", "online"].map(OsStr::new);
        mendfs(arguments.into_iter().chain([path.as_ref(), mnt.as_ref()]))
    };
    let told = take_back();
    assert!(!told.status.success(), "its disk fails");
    let told = text(&told);
    assert!(told.contains("cannot write to"), "{told}");
    scene.faulty.fail_syncs(false);
    let hang = scene.faulty.hang_syncs("mendfs.super");
    let operator = thread::spawn(take_back);
    wait_for("the disk to hang", SOON, || scene.faulty.hanging() > 0);
    let (stored, files) = mpsc::channel();
    let (end, writer) = (Instant::now() + CHECKPOINTED, root.clone());
    let writer = thread::spawn(move || {
        for round in 0.. {
            store(&writer.join(format!("meanwhile {round}")));
            if stored.send(()).is_err() || Instant::now() > end {
                break;
            }
        }
    });
    // Nothing more comes when the writer has ended.
    loop {
        match files.recv_timeout(SOON) {
            Ok(()) => {}
            Err(RecvTimeoutError::Disconnected) => break,
            Err(RecvTimeoutError::Timeout) => panic!("a writer waits for the disk"),
        }
    }
    writer.join().expect("no error");
    assert_eq!(state(), "failed", "it hangs no more");
    hang.release();
    let told = operator.join().expect("no panic");
    assert!(told.status.success(), "{}", text(&told));
    wait_for("the mirror to be up to date", 3 * SOON, || {
        state() == "online"
    });
    scene.set.expect_whole(scene.pool.mnt());
    scene.pool.umount();
    scene.pool.check_clean();
}
