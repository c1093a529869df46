//! Reads with a deadline from a mirror whose filesystem hangs: they end in time whatever hangs, and
//! the mirror is as good as before when it answers again.

mod common;

use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use common::faulty::Faulty;
use common::{Mounted, scratch, wait_for};
use mendfs::backing::{Backing, DirBacking, FileName};
use mendfs::format::SegmentNo;

const FILE: FileName = FileName::Segment(SegmentNo(1));
const LEN: usize = 3 << 20;
const DEADLINE: Duration = Duration::from_millis(300);
/// What a read may take beyond its deadline, on a busy machine.
const MARGIN: Duration = Duration::from_secs(3);
/// Longest wait for something that takes no time.
const SOON: Duration = Duration::from_secs(20);

fn mirror(dir: &Path) -> DirBacking {
    let mirror = DirBacking::open(dir).expect("a directory");
    mirror.create(FILE).expect("create");
    let bytes: Vec<u8> = (0..LEN).map(|n| (n / 512 % 251) as u8).collect();
    mirror.write_at(FILE, 0, &[&bytes]).expect("write");
    mirror.sync(FILE).expect("sync");
    mirror
}

/// Expects a read that succeeds.
fn expect_read(mirror: &DirBacking, offset: usize, len: usize) {
    let mut buf = vec![0xff; len];
    let got = mirror.read_at_within(FILE, offset as u64, &mut buf, SOON);
    assert_eq!(got.expect("read"), len);
    let wrong = (0..len).find(|n| buf[*n] != ((offset + n) / 512 % 251) as u8);
    assert_eq!(wrong, None);
}

/// Expects a read that is given up on in time.
fn expect_late(mirror: &DirBacking, offset: usize, len: usize) {
    let (start, mut buf) = (Instant::now(), vec![0; len]);
    let error = mirror.read_at_within(FILE, offset as u64, &mut buf, DEADLINE);
    let error = error.expect_err("it hangs");
    assert_eq!(error.kind(), std::io::ErrorKind::TimedOut, "{error}");
    let took = start.elapsed();
    assert!(took >= DEADLINE && took < DEADLINE + MARGIN, "{took:?}");
}

#[test]
fn a_read_that_hangs_ends_at_its_deadline_and_the_mirror_is_stalled_until_it_answers() {
    let faulty = Faulty::new();
    let mirror = mirror(&faulty.path());
    expect_read(&mirror, 0, LEN);
    let hang = faulty.hang_reads();
    assert!(!mirror.stalled());
    expect_late(&mirror, 0, 4096);
    assert!(mirror.stalled());
    expect_late(&mirror, 1 << 20, 2 << 20);
    hang.release();
    wait_for("the mirror to answer", SOON, || !mirror.stalled());
    expect_read(&mirror, 0, LEN);
}

#[test]
fn a_file_that_is_not_open_yet_cannot_hang_a_read_either() {
    let faulty = Faulty::new();
    drop(mirror(&faulty.path()));
    let fresh = DirBacking::open(&faulty.path()).expect("a directory");
    let hang = faulty.hang_all();
    expect_late(&fresh, 0, 4096);
    assert!(fresh.stalled());
    hang.release();
    wait_for("the mirror to answer", SOON, || !fresh.stalled());
    expect_read(&fresh, 0, 4096);
}

#[test]
fn more_reads_than_there_are_threads_all_end_in_time() {
    let faulty = Faulty::new();
    let mirror = Arc::new(mirror(&faulty.path()));
    let hang = faulty.hang_all();
    let readers: Vec<_> = (0..80)
        .map(|number| {
            let mirror = Arc::clone(&mirror);
            thread::spawn(move || expect_late(&mirror, number * 512, 4096))
        })
        .collect();
    for reader in readers {
        reader.join().expect("in time");
    }
    assert!(mirror.stalled());
    hang.release();
    wait_for("the mirror to answer", SOON, || !mirror.stalled());
    expect_read(&mirror, 4096, 8192);
}

#[test]
fn a_mirror_that_hangs_can_be_given_up() {
    let faulty = Faulty::new();
    let mirror = mirror(&faulty.path());
    let _hang = faulty.hang_all();
    expect_late(&mirror, 0, 4096);
    // Its descriptors are closed by a thread that has to wait.
    let closing = thread::spawn(move || drop(mirror));
    drop(faulty);
    closing.join().expect("no panic");
}

fn run(program: &str, args: &[&str]) {
    let output = Command::new(program).args(args).output().expect(program);
    assert!(
        output.status.success(),
        "{program}: {}",
        common::text(&output)
    );
}

/// A disk that hangs under a filesystem whose page cache goes on.
#[test]
fn what_is_cached_is_read_from_a_disk_that_hangs() {
    let faulty = Faulty::new();
    let scratch = scratch();
    let image = faulty.path().join("image");
    let image = image.to_str().expect("plain");
    run("truncate", &["-s", "64M", image]);
    run("mkfs.ext4", &["-q", "-F", image]);
    let at = scratch.path().join("mnt");
    std::fs::create_dir(&at).expect("a mount point");
    run("mount", &["-o", "loop", image, at.to_str().expect("plain")]);
    let mounted = Mounted(at.clone());
    let mirror = mirror(&at);
    mirror.forget_cached(FILE).expect("drop the cache");
    expect_read(&mirror, 1 << 20, 4096);
    let hang = faulty.hang_reads();
    expect_read(&mirror, 1 << 20, 4096);
    assert!(!mirror.stalled());
    expect_late(&mirror, 2 << 20, 1 << 20);
    assert!(mirror.stalled());
    expect_read(&mirror, 1 << 20, 4096);
    hang.release();
    wait_for("the disk to answer", SOON, || !mirror.stalled());
    expect_read(&mirror, 0, LEN);
    drop(mirror);
    drop(mounted);
}
