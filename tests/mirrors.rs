//! The life of mirrors on real mounts: each way in which one can fail, leave and come back while
//! applications work, on filesystems of different kinds; and every pair of states at mount.

mod common;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Output;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use common::content::{FileSet, Rng, TestFile};
use common::disk::segment_paths;
use common::faulty::Faulty;
use common::media::{Medium, btrfs, ext4, mount_image, pool_on_each, tmpfs, xfs};
use common::{Pool, mendfs, scratch, text, wait_for};
use nix::mount::{MntFlags, umount2};

const MIB: u64 = 1 << 20;
/// Longest wait for a mirror to be noticed, or brought up to date, on a busy machine.
const LONG: Duration = Duration::from_secs(120);

/// Runs `mendfs mirror` on a mounted pool.
fn mirror(pool: &Pool, args: &[&str]) -> Output {
    let mnt = pool.mnt().to_str().expect("UTF-8");
    mendfs(["mirror"].iter().chain(args).chain(&[mnt]))
}

fn mirror_ok(pool: &Pool, args: &[&str]) {
    let done = mirror(pool, args);
    assert!(done.status.success(), "mirror {args:?}: {}", text(&done));
}

/// The states of the mirrors, as `mendfs status --json` has them.
fn states(pool: &Pool) -> Vec<String> {
    pool.status().mirror_states()
}

fn wait_states(pool: &Pool, wanted: &[&str]) {
    wait_for(&format!("mirrors {wanted:?}"), LONG, || {
        states(pool) == wanted
    });
}

/// Every file of one mirror but its superblock, lock, ledger and text has the same bytes on the
/// other, compared without mendfs.
fn expect_alike(one: &Path, other: &Path) {
    let files = |mirror: &Path| -> Vec<PathBuf> {
        let mut files = segment_paths(mirror);
        files.extend(["journal", "index", "index.sums"].map(|name| mirror.join(name)));
        let relative = |file: PathBuf| file.strip_prefix(mirror).expect("below").to_owned();
        files.into_iter().map(relative).collect()
    };
    assert_eq!(files(one), files(other));
    for file in files(one) {
        let (ours, theirs) = (fs::read(one.join(&file)), fs::read(other.join(&file)));
        let (ours, theirs) = (ours.expect("read"), theirs.expect("read"));
        let differs: Vec<_> = differences(&ours, &theirs);
        let same = ours.len() == theirs.len() && differs.is_empty();
        assert!(same, "{} differs: {}", file.display(), differs.join(", "));
    }
}

/// Where two files differ, in blocks, and which of them has zeros there.
fn differences(ours: &[u8], theirs: &[u8]) -> Vec<String> {
    let zeros = |bytes: &[u8]| bytes.iter().all(|byte| *byte == 0);
    let what = |bytes: &[u8]| if zeros(bytes) { "zeros" } else { "data" };
    let blocks = ours.chunks(4096).zip(theirs.chunks(4096)).enumerate();
    let differing = blocks.filter(|(_, (a, b))| a != b);
    let told = |(block, (a, b)): (usize, (&[u8], &[u8]))| {
        let first = a.iter().zip(b).position(|(a, b)| a != b).unwrap_or(0);
        let at = block * 4096 + first;
        format!("{at} ({} here, {} there)", what(a), what(b))
    };
    differing.map(told).collect()
}

/// Tells the applications to end, also when what ran beside them has failed.
struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Release);
    }
}

/// Applications at work: files are written, synced, read back, renamed and deleted, and any error
/// and any wrong byte counts. `during` runs beside them.
fn under_load(pool: &Pool, during: impl FnOnce()) {
    let stop = AtomicBool::new(false);
    let rounds: Vec<AtomicU64> = (0..3).map(|_| AtomicU64::new(0)).collect();
    thread::scope(|scope| {
        let workers: Vec<_> = rounds
            .iter()
            .enumerate()
            .map(|(number, rounds)| {
                let (stop, dir) = (&stop, pool.mnt().join(format!("load{number}")));
                scope.spawn(move || {
                    fs::create_dir_all(&dir).expect("mkdir");
                    let mut rng = Rng::new(7 + number as u64);
                    let mut kept: Vec<TestFile> = Vec::new();
                    while !stop.load(Ordering::Acquire) {
                        work(&dir, &mut rng, &mut kept);
                        rounds.fetch_add(1, Ordering::Release);
                    }
                    for file in &kept {
                        file.verify(&dir).expect("whole at the end");
                    }
                })
            })
            .collect();
        let stopping = Stop(&stop);
        let busy = || {
            rounds
                .iter()
                .all(|rounds| rounds.load(Ordering::Acquire) > 3)
        };
        wait_for("the load to run", LONG, || {
            busy() || workers.iter().any(|worker| worker.is_finished())
        });
        during();
        let before: Vec<u64> = rounds.iter().map(|r| r.load(Ordering::Acquire)).collect();
        wait_for("the load to go on", LONG, || {
            let mut now = rounds.iter().zip(&before);
            now.all(|(rounds, before)| rounds.load(Ordering::Acquire) > before + 3)
                || workers.iter().any(|worker| worker.is_finished())
        });
        drop(stopping);
        for worker in workers {
            worker.join().expect("no application saw an error");
        }
    });
}

/// One round of an application.
fn work(dir: &Path, rng: &mut Rng, kept: &mut Vec<TestFile>) {
    let file = TestFile {
        path: PathBuf::from(format!("f{:x}", rng.next())),
        seed: rng.next(),
        len: rng.below(400_000) as usize,
    };
    let handle = file.write(dir).expect("write");
    if rng.below(2) == 0 {
        handle.sync_all().expect("fsync");
    }
    kept.push(file);
    let pick = rng.below(kept.len() as u64) as usize;
    kept[pick].verify(dir).expect("whole");
    if kept.len() > 30 {
        let gone = kept.swap_remove(pick);
        fs::remove_file(dir.join(&gone.path)).expect("unlink");
        let last = kept.len() - 1;
        let name = PathBuf::from(format!("r{:x}", rng.next()));
        fs::rename(dir.join(&kept[last].path), dir.join(&name)).expect("rename");
        kept[last].path = name;
    }
}

/// Ends a scene: the mirrors hold the same bytes, and each alone everything.
fn expect_whole(mut pool: Pool, set: &FileSet) {
    set.expect_whole(pool.mnt());
    pool.umount();
    let mirrors = pool.mirrors().to_vec();
    expect_alike(&mirrors[0], &mirrors[1]);
    pool.check_clean();
    for mirror in &mirrors {
        let mut alone = Pool::of(scratch(), vec![mirror.clone()]);
        alone.mount_with("ro");
        set.expect_whole(alone.mnt());
        alone.umount();
    }
}

fn filled(pool: &mut Pool) -> FileSet {
    let mut rng = Rng::new(common::seed());
    pool.mount();
    let set = FileSet::plan(rng.next(), 24 << 20);
    set.write(pool.mnt());
    set
}

const LOOP: u64 = 400 * MIB;

#[test]
fn mirrors_on_different_filesystems_and_of_different_size_are_one_pool() {
    let pairs: [[(Medium, u64); 2]; 2] = [
        [(ext4, 260 * MIB), (btrfs, 500 * MIB)],
        [(xfs, LOOP), (tmpfs, 200 * MIB)],
    ];
    for media in pairs {
        let mut pool = pool_on_each(&media);
        let set = filled(&mut pool);
        under_load(&pool, || {
            let second = pool.mirror(1).to_str().expect("UTF-8");
            mirror_ok(&pool, &["offline", second]);
            assert_eq!(states(&pool), ["online", "offline"]);
            mirror_ok(&pool, &["online", second, "--wait"]);
            assert_eq!(states(&pool), ["online", "online"]);
        });
        expect_whole(pool, &set);
    }
}

#[test]
fn a_disk_that_is_unmounted_under_its_mirror_is_missed_and_taken_back_when_it_is_there_again() {
    let mut pool = pool_on_each(&[(ext4, LOOP), (ext4, LOOP)]);
    let set = filled(&mut pool);
    under_load(&pool, || {
        let disk = pool.mirror(1).parent().expect("a mount point");
        umount2(disk, MntFlags::MNT_DETACH).expect("umount -l");
        wait_states(&pool, &["online", "missing"]);
        // The empty mount point is no mirror, and nothing is written there.
        assert_eq!(fs::read_dir(disk).expect("the mount point").count(), 0);
        mount_image(disk);
        wait_states(&pool, &["online", "online"]);
    });
    expect_whole(pool, &set);
}

#[test]
fn a_directory_that_is_deleted_is_replaced_by_a_new_one_in_its_place() {
    let mut pool = Pool::create(2);
    let set = filled(&mut pool);
    under_load(&pool, || {
        let gone = pool.mirror(0).to_owned();
        fs::rename(&gone, pool.scratch().join("gone")).expect("rename");
        // What still writes there may get in the way of deleting it.
        wait_for("rm -r", LONG, || {
            fs::remove_dir_all(pool.scratch().join("gone")).is_ok()
        });
        wait_states(&pool, &["missing", "online"]);
        fs::create_dir(&gone).expect("mkdir");
        let gone = gone.to_str().expect("UTF-8");
        mirror_ok(&pool, &["replace", gone, gone, "--wait"]);
        wait_states(&pool, &["online", "online"]);
    });
    expect_whole(pool, &set);
}

#[test]
fn a_disk_that_others_fill_up_is_left_out_until_there_is_room_again() {
    let mut pool = pool_on_each(&[(ext4, LOOP), (ext4, LOOP)]);
    let set = filled(&mut pool);
    under_load(&pool, || {
        let foreign = pool.mirror(0).with_file_name("somebody else's");
        let mut file = fs::File::create(&foreign).expect("create");
        let piece = vec![1; 1 << 20];
        while std::io::Write::write_all(&mut file, &piece).is_ok() {}
        drop(file);
        wait_states(&pool, &["offline", "online"]);
        let status = pool.status();
        assert!(
            status.text().contains("fill up its filesystem"),
            "{status:?}"
        );
        fs::remove_file(&foreign).expect("rm");
        wait_states(&pool, &["online", "online"]);
    });
    expect_whole(pool, &set);
}

#[test]
fn a_disk_that_fails_writes_is_out_and_comes_back_when_the_operator_says() {
    let scratch = scratch();
    let faulty = Faulty::new();
    let sound = scratch.path().join("sound");
    let mut pool = Pool::create_at(scratch, vec![faulty.path(), sound], &[]);
    let set = filled(&mut pool);
    let first = pool.mirror(0).to_owned();
    for what in [Faulty::fail_writes, Faulty::fail_syncs] {
        under_load(&pool, || {
            what(&faulty, true);
            wait_states(&pool, &["failed", "online"]);
            what(&faulty, false);
            let first = first.to_str().expect("UTF-8");
            mirror_ok(&pool, &["online", first, "--wait"]);
            assert_eq!(states(&pool), ["online", "online"]);
        });
    }
    pool.umount();
    expect_alike(&faulty.lower(), pool.mirror(1));
    set_is_whole_after(&mut pool, &set);
}

fn set_is_whole_after(pool: &mut Pool, set: &FileSet) {
    pool.mount();
    set.expect_whole(pool.mnt());
    pool.umount();
}

#[test]
fn what_a_mirror_missed_is_all_that_is_moved() {
    let (before, missed) = if common::long() {
        (4 << 30, 40 << 20)
    } else {
        (160 << 20, 4 << 20)
    };
    let mut pool = Pool::create(2);
    let mut rng = Rng::new(common::seed());
    pool.mount();
    let old = FileSet::plan(rng.next(), before);
    old.write(pool.mnt());
    pool.umount();
    let away = pool.mirror(1).with_file_name("away");
    fs::rename(pool.mirror(1), &away).expect("rename");
    pool.mount();
    let new = TestFile {
        path: "new".into(),
        seed: rng.next(),
        len: missed,
    };
    new.write(pool.mnt()).expect("write");
    pool.umount();
    fs::rename(&away, pool.mirror(1)).expect("rename");
    pool.mount();
    wait_states(&pool, &["online", "online"]);
    let output = mendfs(["events", "--json", pool.mnt().to_str().expect("UTF-8")]);
    let events = String::from_utf8_lossy(&output.stdout).into_owned();
    let moved = events
        .lines()
        .filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok())
        .find(|event| event["event"] == "resync" && event["outcome"] == "done")
        .and_then(|event| event["moved_bytes"].as_u64());
    let moved = moved.unwrap_or_else(|| panic!("no resync in {events}"));
    eprintln!("{moved} bytes moved for {missed} missed of {before}");
    assert!(
        moved > missed as u64 && moved < 2 * missed as u64,
        "{moved}"
    );
    old.expect_whole(pool.mnt());
    new.verify(pool.mnt()).expect("whole");
    pool.umount();
    expect_alike(pool.mirror(0), pool.mirror(1));
}

#[test]
fn a_resync_goes_on_after_a_kill_where_it_was() {
    let mut pool = Pool::create(2);
    let mut rng = Rng::new(common::seed());
    pool.mount();
    let set = FileSet::plan(rng.next(), 200 << 20);
    set.write(pool.mnt());
    let third = pool.scratch().join("third");
    fs::create_dir(&third).expect("mkdir");
    mirror_ok(&pool, &["add", third.to_str().expect("UTF-8")]);
    pool.kill9();
    let mut mirrors = pool.mirrors().to_vec();
    mirrors.push(third.clone());
    // Not complete, it is refused alone, and never read.
    let alone = third.to_str().expect("UTF-8");
    let refused = mendfs(["status", alone]);
    assert!(!refused.status.success(), "{}", text(&refused));
    let mut pool = Pool::of_parts(pool, mirrors);
    pool.mount();
    wait_states(&pool, &["online"; 3]);
    set.expect_whole(pool.mnt());
    pool.umount();
    expect_alike(pool.mirror(0), &third);
}

/// What one of two mirrors is when the pool is mounted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Current,
    Stale,
    Foreign,
    Missing,
    Empty,
    Damaged,
    Apart,
}

/// What becomes of the mount.
#[derive(Debug)]
enum Expected {
    /// Both mirrors serve, at once or after a resync.
    Whole,
    /// The pool is degraded, and goes on.
    Degraded,
    /// Nothing is mounted, and the sentence holds this.
    Refused(&'static str),
}

/// The expected outcome of every pair.
fn expected(first: State, second: State) -> Expected {
    use State::{Apart, Current, Damaged, Empty, Foreign, Missing, Stale};
    match (first, second) {
        (Current, Current | Stale) | (Stale, Current) => Expected::Whole,
        // What is stale cannot be told where nobody is there who went on.
        (Stale, Stale) => Expected::Whole,
        (Apart, Apart) => Expected::Refused("prefer=DIR"),
        // One that went on alone is the current one for all others.
        (Apart, Current | Stale) | (Current | Stale, Apart) => Expected::Whole,
        (Foreign, Foreign) => Expected::Whole,
        (Foreign, Current | Stale | Apart) | (Current | Stale | Apart, Foreign) => {
            Expected::Refused("different pools")
        }
        (Current | Stale | Apart | Foreign, Missing | Empty | Damaged)
        | (Missing | Empty | Damaged, Current | Stale | Apart | Foreign) => Expected::Degraded,
        (Missing | Empty, Missing | Empty | Damaged) => Expected::Refused("no mendfs pool"),
        (Damaged, Missing | Empty | Damaged) => Expected::Refused("superblock"),
    }
}

#[test]
fn every_pair_of_states_is_mounted_or_refused_as_it_should_be() {
    const STATES: [State; 7] = [
        State::Current,
        State::Stale,
        State::Foreign,
        State::Missing,
        State::Empty,
        State::Damaged,
        State::Apart,
    ];
    let bases = Bases::make();
    for first in STATES {
        for second in STATES {
            let dir = scratch();
            let mirrors = vec![dir.path().join("a"), dir.path().join("b")];
            bases.place(0, first, second, &mirrors[0]);
            bases.place(1, second, first, &mirrors[1]);
            let mut pool = Pool::of(dir, mirrors);
            let pair = format!("{first:?} with {second:?}");
            match expected(first, second) {
                Expected::Refused(sentence) => {
                    let mnt = pool.mnt().to_str().expect("UTF-8").to_owned();
                    let refused = mendfs(["mount", "-f", &pool.spec(), &mnt]);
                    let said = text(&refused);
                    assert!(!refused.status.success(), "{pair}: {said}");
                    assert!(said.contains(sentence), "{pair}: {said}");
                }
                Expected::Degraded => {
                    pool.mount();
                    assert!(states(&pool).contains(&"missing".to_owned()), "{pair}");
                    fs::write(pool.mnt().join("on"), b"it goes").expect("write");
                    pool.umount();
                }
                Expected::Whole => {
                    pool.mount();
                    wait_states(&pool, &["online", "online"]);
                    pool.umount();
                    expect_alike(pool.mirror(0), pool.mirror(1));
                    pool.check_clean();
                }
            }
        }
    }
}

/// Mirrors in their states, to be copied.
struct Bases {
    pool: Pool,
    foreign: Pool,
}

impl Bases {
    fn make() -> Bases {
        let small = ["--journal-size", "4M"];
        let mut foreign = Pool::create_with(2, &small);
        foreign.mount();
        fs::write(foreign.mnt().join("foreign"), vec![7; 100_000]).expect("write");
        foreign.umount();
        let mut pool = Pool::create_with(2, &small);
        pool.mount();
        fs::write(pool.mnt().join("both"), vec![5; 100_000]).expect("write");
        pool.umount();
        for number in 0..2 {
            copy(
                pool.mirror(number),
                &pool.scratch().join(format!("together{number}")),
            );
        }
        for number in 0..2 {
            let mut alone = Pool::of(scratch(), vec![pool.mirror(number).to_owned()]);
            alone.mount();
            fs::write(alone.mnt().join(format!("{number}")), vec![6; 50_000]).expect("write");
            alone.umount();
        }
        Bases { pool, foreign }
    }

    /// Puts mirror `number` in a state, given that of the other one.
    fn place(&self, number: usize, state: State, other: State, at: &Path) {
        let together = self.pool.scratch().join(format!("together{number}"));
        match state {
            State::Missing => {}
            State::Empty => fs::create_dir(at).expect("mkdir"),
            State::Foreign => copy(self.foreign.mirror(number), at),
            State::Apart => copy(self.pool.mirror(number), at),
            // It is current since it went on without the other.
            State::Current if other == State::Stale => copy(self.pool.mirror(number), at),
            State::Current | State::Stale => copy(&together, at),
            State::Damaged => {
                copy(&together, at);
                let path = at.join("mendfs.super");
                let mut bytes = fs::read(&path).expect("read");
                for slot in [0, 4096] {
                    bytes[slot + 90] ^= 1;
                }
                fs::write(&path, bytes).expect("write");
            }
        }
    }
}

fn copy(from: &Path, to: &Path) {
    let done = std::process::Command::new("cp")
        .args(["-a", "--sparse=always"])
        .args([from, to])
        .status();
    assert!(
        done.expect("cp runs").success(),
        "copy of {}",
        from.display()
    );
}
