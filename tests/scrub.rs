//! The scrub on real mounts: it finds all damage on every mirror, heals what has a good copy,
//! counts exactly, names what has none, and loses little when the process is killed.
//!
//! 48 MiB and a hundred damaged places by default, 2 GiB and 2,000 with MENDFS_LONG=1.

mod common;

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use common::content::{BLOCK, FileSet, Rng, sync_fs};
use common::disk::{Place, damage, damage_random, locate, segment_paths, segments};
use common::{Pool, long, mendfs, text, wait_for, xattr};
use serde_json::Value;

const CONTROL: &str = "user.mendfs.scrub.control";
const DEADLINE: Duration = Duration::from_secs(120);

struct Scene {
    pool: Pool,
    set: FileSet,
    rng: Rng,
}

/// A mounted pool with the file set in it, to which nobody writes any more.
fn scene() -> Scene {
    let mut rng = Rng::new(common::seed());
    let mut pool = Pool::create(2);
    let set = FileSet::plan(rng.next(), if long() { 2 << 30 } else { 48 << 20 });
    pool.mount();
    set.write(pool.mnt());
    pool.remount();
    Scene { pool, set, rng }
}

impl Scene {
    /// `count` blocks of files that lie in one place: (file, block, place).
    fn blocks(&mut self, count: usize) -> Vec<(usize, u64, Place)> {
        let places = locate(self.pool.mirror(0), &self.set);
        let mut single: Vec<_> = places
            .into_iter()
            .filter(|(_, found)| found.len() == 1)
            .map(|((file, block), mut found)| (file, block, found.remove(0)))
            .collect();
        single.sort_by_key(|(file, block, _)| (*file, *block));
        (0..count)
            .map(|_| single.swap_remove(self.rng.below(single.len() as u64) as usize))
            .collect()
    }

    /// Damages a part of a block on a mirror.
    fn damage_block(&mut self, mirror: usize, place: &Place) {
        let from = self.rng.below(place.len as u64);
        let len = 1 + self.rng.below(place.len as u64 - from) as usize;
        let path = self.pool.mirror(mirror).join(&place.segment);
        damage(&path, place.offset + from, len, &mut self.rng);
    }

    /// The second mirror gets what the first one has of a block.
    fn copy_block(&self, place: &Place) {
        let [from, to] = [0, 1].map(|mirror| {
            let path = self.pool.mirror(mirror).join(&place.segment);
            let file = File::options().read(true).write(true).open(path);
            file.expect("open")
        });
        let mut bytes = vec![0; place.len];
        from.read_exact_at(&mut bytes, place.offset).expect("read");
        to.write_all_at(&bytes, place.offset).expect("write");
    }

    fn scrub(&self) -> Scrub {
        scrub(&["start", "--wait"], self.pool.mnt())
    }

    /// Unmounts; the mirrors hold the same, seen without mendfs.
    fn expect_equal_mirrors(&mut self) {
        self.pool.umount();
        let [one, other] = [0, 1].map(|mirror| self.pool.mirror(mirror).to_owned());
        assert_eq!(segments(&one), segments(&other));
        let mut files = segments(&one);
        files.extend(["index", "index.sums"].map(PathBuf::from));
        for file in files {
            let [a, b] = [&one, &other].map(|mirror| fs::read(mirror.join(&file)).expect("read"));
            let differ = a.iter().zip(&b).position(|(a, b)| a != b);
            assert!(
                a.len() == b.len() && differ.is_none(),
                "{file:?} differs at {differ:?}"
            );
        }
        self.pool.check_clean();
    }
}

/// What `mendfs scrub ... --json` says, and its exit code.
#[derive(Debug)]
struct Scrub {
    code: Option<i32>,
    value: Value,
}

fn scrub(arguments: &[&str], mnt: &Path) -> Scrub {
    let mnt = mnt.to_str().expect("a path");
    let output = mendfs(["scrub"].iter().chain(arguments).chain(&["--json", mnt]));
    let value = serde_json::from_slice::<Value>(&output.stdout);
    let value = value.unwrap_or_else(|error| panic!("{error}: {}", text(&output)));
    Scrub {
        code: output.status.code(),
        value: value["mendfs"].clone(),
    }
}

impl Scrub {
    fn number(&self, key: &str) -> u64 {
        self.value[key]
            .as_u64()
            .unwrap_or_else(|| panic!("{key} in {}", self.value))
    }

    fn state(&self) -> &str {
        self.value["state"].as_str().expect("a state")
    }

    /// Errors found, repaired, unrepairable.
    fn errors(&self) -> (u64, u64, u64) {
        let [found, repaired, unrepairable] =
            ["errors_found", "repaired", "unrepairable"].map(|key| self.number(key));
        (found, repaired, unrepairable)
    }
}

/// Waits for the scrub to be in a state.
fn wait_state(pool: &Pool, state: &str) -> Scrub {
    wait_for(state, DEADLINE, || {
        scrub(&["status"], pool.mnt()).state() == state
    });
    scrub(&["status"], pool.mnt())
}

/// Index pages that the page sums of a mirror define; see DESIGN.md, section 4.
fn defined_pages(mirror: &Path) -> Vec<u64> {
    let sums = fs::read(mirror.join("index.sums")).expect("the sums");
    let number = |at: usize| u64::from_le_bytes(sums[at..at + 8].try_into().expect("eight bytes"));
    let mut pages = Vec::new();
    for block in 0..sums.len() / (2 * BLOCK) {
        let newest = [2 * block * BLOCK, (2 * block + 1) * BLOCK]
            .into_iter()
            .max_by_key(|slot| number(slot + 16))
            .expect("two slots");
        let defined = (0..254).filter(|entry| number(newest + 32 + 16 * entry + 8) > 0);
        pages.extend(defined.map(|entry| (254 * block + entry) as u64));
    }
    pages
}

#[test]
fn damage_everywhere_on_one_mirror_is_found_counted_and_healed() {
    let mut scene = scene();
    let count = if long() { 1900 } else { 80 };
    for (_, _, place) in scene.blocks(count) {
        scene.damage_block(1, &place);
    }
    let mirror = scene.pool.mirror(1).to_owned();
    let mut pages: Vec<u64> = defined_pages(&mirror);
    let mut damaged = count as u64;
    for _ in 0..pages.len().min(12) {
        let page = pages.swap_remove(scene.rng.below(pages.len() as u64) as usize);
        let at = page * BLOCK as u64 + scene.rng.below(BLOCK as u64 - 64);
        damage(&mirror.join("index"), at, 64, &mut scene.rng);
        damaged += 1;
    }
    for (file, slot) in [("index.sums", 0), ("index.sums", 1), ("mendfs.super", 1)] {
        damage(
            &mirror.join(file),
            slot * BLOCK as u64 + 100,
            8,
            &mut scene.rng,
        );
        damaged += 1;
    }
    let first = scene.scrub();
    assert_eq!(first.errors(), (damaged, damaged, 0), "{first:?}");
    assert_eq!(
        (first.code, first.state(), first.number("percent")),
        (Some(0), "finished", 100)
    );
    let status = scene.pool.status();
    assert_eq!(status.sum("checksum_errors"), damaged, "{}", status.text());
    assert_eq!(
        status.repaired() - first.number("repaired"),
        damaged,
        "{}",
        status.text()
    );
    assert_eq!(scene.scrub().errors(), (0, 0, 0));
    assert!(scene.pool.status().text().contains("\"damaged\":[]"));
    scene.expect_equal_mirrors();
}

#[test]
fn damage_on_either_mirror_is_healed_from_the_other() {
    let mut scene = scene();
    const STRIPE: u64 = 65_536;
    for mirror in 0..2 {
        for file in segment_paths(scene.pool.mirror(mirror)) {
            let stripes = fs::metadata(&file).expect("stat").len() / STRIPE;
            for stripe in (mirror as u64..stripes).step_by(if long() { 20 } else { 6 }) {
                let at = stripe * STRIPE + scene.rng.below(STRIPE - 8192);
                damage(
                    &file,
                    at,
                    1 + scene.rng.below(8192) as usize,
                    &mut scene.rng,
                );
            }
        }
    }
    let first = scene.scrub();
    let (found, repaired, unrepairable) = first.errors();
    assert!(
        found > 50 && found == repaired && unrepairable == 0,
        "{first:?}"
    );
    assert_eq!(scene.scrub().errors(), (0, 0, 0));
    scene.set.expect_whole(scene.pool.mnt());
    scene.expect_equal_mirrors();
}

#[test]
fn a_mirror_that_lost_segments_gets_them_back() {
    let mut scene = scene();
    let files = segment_paths(scene.pool.mirror(1));
    for (number, file) in files.iter().enumerate() {
        match number % 2 {
            0 => {
                let file = File::options().write(true).open(file).expect("open");
                file.set_len(file.metadata().expect("metadata").len() / 3)
                    .expect("ftruncate");
            }
            _ => fs::remove_file(file).expect("unlink"),
        }
    }
    scene.pool.remount();
    let first = scene.scrub();
    let (found, repaired, _) = first.errors();
    assert!(found > 1000 && found == repaired, "{first:?}");
    assert_eq!(scene.scrub().errors(), (0, 0, 0));
    scene.expect_equal_mirrors();
}

#[test]
fn what_is_bad_on_both_mirrors_is_named_and_nothing_else_is() {
    let mut scene = scene();
    let blocks = scene.blocks(12);
    let mut expected = BTreeSet::new();
    for (number, (file, block, place)) in blocks.iter().enumerate() {
        scene.damage_block(0, place);
        if number < 4 {
            match number % 2 {
                0 => scene.damage_block(1, place),
                // The same wrong bytes on both: nothing differs, and nothing is right.
                _ => scene.copy_block(place),
            }
            let path = format!("/{}", scene.set.files[*file].path.display());
            expected.insert((path, block * BLOCK as u64, place.len as u64));
        }
    }
    let first = scene.scrub();
    assert_eq!(
        (first.code, first.errors()),
        (Some(1), (16, 8, 8)),
        "{first:?}"
    );
    let status = scene.pool.status();
    let damaged = status.0["mendfs"]["damaged"].as_array().expect("a list");
    let named: BTreeSet<(String, u64, u64)> = damaged
        .iter()
        .flat_map(|file| {
            let path = file["path"].as_str().expect("a path").to_owned();
            let ranges = file["ranges"].as_array().expect("ranges");
            let number = |range: &Value, key| range[key].as_u64().expect("a number");
            let ranges = ranges.iter().map(move |range| {
                (
                    path.clone(),
                    number(range, "offset"),
                    number(range, "length"),
                )
            });
            ranges.collect::<Vec<_>>()
        })
        .collect();
    assert_eq!(named, expected);
    // Deleting the files takes the damage away.
    let files: BTreeSet<&String> = expected.iter().map(|(path, ..)| path).collect();
    for path in files {
        fs::remove_file(scene.pool.mnt().join(path.trim_start_matches('/'))).expect("unlink");
    }
    sync_fs(scene.pool.mnt());
    let second = scene.scrub();
    assert_eq!(
        (second.code, second.errors()),
        (Some(0), (0, 0, 0)),
        "{second:?}"
    );
    assert!(scene.pool.status().text().contains("\"damaged\":[]"));
}

#[test]
fn a_scrub_goes_on_where_a_kill_stopped_it() {
    let mut scene = scene();
    let blocks = scene.blocks(40);
    let rate = if long() { "400" } else { "10" };
    let started = scrub(&["start", "--rate", rate], scene.pool.mnt());
    let half = || scrub(&["status"], scene.pool.mnt()).number("percent") >= 50;
    wait_for("half of it", DEADLINE, half);
    scene.pool.kill9();
    for (_, _, place) in &blocks {
        scene.damage_block(0, place);
    }
    scene.pool.mount();
    let resumed = scrub(&["status"], scene.pool.mnt());
    assert!(resumed.number("percent") >= 45, "{resumed:?}");
    assert_eq!(resumed.number("started"), started.number("started"));
    // Also over an orderly unmount, exactly.
    scene.pool.umount();
    scene.pool.mount();
    assert!(scrub(&["status"], scene.pool.mnt()).number("percent") >= resumed.number("percent"));
    let ended = wait_state(&scene.pool, "finished");
    // What was checked before is not checked again: the next scrub finds what this one did not.
    let (rest, _, unrepairable) = scene.scrub().errors();
    assert!(rest > 0 && ended.number("errors_found") > 0, "{ended:?}");
    assert_eq!((rest + ended.number("errors_found"), unrepairable), (40, 0));
    assert_eq!(ended.number("unrepairable"), 0);
    scene.expect_equal_mirrors();
}

#[test]
fn a_scrub_waits_ends_and_begins_again_as_it_is_told() {
    let mut scene = scene();
    let mnt = scene.pool.mnt().to_owned();
    assert_eq!(scrub(&["status"], &mnt).state(), "none");
    let refused = mendfs(["scrub", "pause", mnt.to_str().expect("a path")]);
    assert_eq!(refused.status.code(), Some(1));
    assert!(
        text(&refused).contains("no scrub is under way"),
        "{}",
        text(&refused)
    );
    scrub(&["start", "--rate", "4"], &mnt);
    wait_for("some work", DEADLINE, || {
        let status = scrub(&["status"], &mnt);
        status.number("percent") > 0 && status.value["eta_s"].is_u64()
    });
    let twice = mendfs(["scrub", "start", mnt.to_str().expect("a path")]);
    assert!(text(&twice).contains("running"), "{}", text(&twice));
    assert_eq!(scrub(&["pause"], &mnt).state(), "paused");
    scene.pool.remount();
    let paused = scrub(&["status"], &mnt);
    assert_eq!(paused.state(), "paused");
    assert!(
        paused.number("percent") > 0 && paused.value["eta_s"].is_null(),
        "{paused:?}"
    );
    assert_eq!(scrub(&["resume"], &mnt).state(), "running");
    let cancelled = scrub(&["cancel"], &mnt);
    assert_eq!((cancelled.state(), cancelled.code), ("cancelled", Some(0)));
    assert!(cancelled.number("bytes_done") < cancelled.number("bytes_total"));
    scene.pool.remount();
    assert_eq!(scrub(&["status"], &mnt).state(), "cancelled");
    let ended = scene.scrub();
    assert_eq!(ended.state(), "finished");
    scene.pool.remount();
    let kept = scrub(&["status"], &mnt);
    for key in [
        "started",
        "finished",
        "bytes_done",
        "bytes_total",
        "errors_found",
    ] {
        assert_eq!(kept.value[key], ended.value[key], "{key}");
    }
    let here = mendfs(["scrub", "status", "/"]);
    assert_eq!(here.status.code(), Some(1), "{}", text(&here));
    assert!(text(&here).contains("no mounted mendfs"), "{}", text(&here));
}

/// Gives an order to the scrub as another user would; the errno if it is refused.
fn order_as(uid: u32, root: &File, order: &str) -> Result<(), i32> {
    let name = std::ffi::CString::new(CONTROL).expect("no NUL");
    let (fd, value) = (root.as_raw_fd(), order.to_owned());
    let work = move || {
        // SAFETY: of this thread alone, which ends below.
        unsafe { libc::setfsuid(uid) };
        // SAFETY: the name ends in NUL, and the value is as long as said.
        let done =
            unsafe { libc::fsetxattr(fd, name.as_ptr(), value.as_ptr().cast(), value.len(), 0) };
        match done {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error().raw_os_error().expect("an errno")),
        }
    };
    std::thread::spawn(work).join().expect("no panic")
}

#[test]
fn only_root_and_the_owner_of_the_root_may_give_orders() {
    let mut pool = Pool::create(2);
    pool.mount();
    let mnt = pool.mnt().to_owned();
    let root = File::open(&mnt).expect("the root");
    fs::set_permissions(&mnt, fs::Permissions::from_mode(0o777)).expect("chmod");
    assert_eq!(order_as(1234, &root, "start"), Err(libc::EPERM));
    assert_eq!(order_as(0, &root, "frobnicate"), Err(libc::EINVAL));
    assert_eq!(order_as(0, &root, "start rate=nonsense"), Err(libc::EINVAL));
    std::os::unix::fs::chown(&mnt, Some(1234), None).expect("chown");
    assert_eq!(order_as(4321, &root, "start"), Err(libc::EPERM));
    assert_eq!(order_as(1234, &root, "start"), Ok(()));
    wait_state(&pool, "finished");
    drop(root);
    let told = String::from_utf8(xattr(&mnt, "user.mendfs.scrub.status").expect("the status"));
    assert!(
        told.expect("text")
            .starts_with("state=finished\nstarted=20")
    );
}

#[test]
fn files_may_be_deleted_and_written_while_they_are_scrubbed() {
    let mut scene = scene();
    let mnt = scene.pool.mnt().to_owned();
    scrub(&["start", "--rate", "20"], &mnt);
    let mut running = 0;
    for (number, file) in scene.set.files.iter_mut().enumerate() {
        match number % 3 {
            0 => fs::remove_file(mnt.join(&file.path)).expect("unlink"),
            1 => {
                file.seed ^= 1;
                file.write(&mnt).expect("the file is written anew");
            }
            _ => continue,
        }
        running += u64::from(scrub(&["status"], &mnt).state() == "running");
    }
    assert!(running > 0, "the scrub was over too soon");
    let mut number = 0;
    scene.set.files.retain(|_| {
        number += 1;
        (number - 1) % 3 != 0
    });
    let ended = wait_state(&scene.pool, "finished");
    assert_eq!(ended.errors(), (0, 0, 0), "{ended:?}");
    scene.set.expect_whole(&mnt);
    assert_eq!(scene.scrub().errors(), (0, 0, 0));
}

#[test]
fn a_scrub_begins_by_itself_when_it_is_due() {
    let mut pool = Pool::create(2);
    pool.mount_with("scrub_interval=off");
    fs::write(pool.mnt().join("file"), vec![7; 100_000]).expect("write");
    pool.umount();
    let victim = &segment_paths(pool.mirror(0))[0];
    damage_random(std::slice::from_ref(victim), 3, &mut Rng::new(7));
    pool.mount_with("scrub_interval=1s,scrub_rate=100");
    wait_for("a scrub", DEADLINE, || {
        let status = scrub(&["status"], pool.mnt());
        status.state() == "finished" && status.number("started") > 0
    });
    pool.umount();
    pool.check_clean();
    // The next one is due after the interval, not at the next mount.
    pool.mount_with("scrub_interval=365d");
    let before = scrub(&["status"], pool.mnt()).number("started");
    let path = segment_paths(pool.mirror(0)).remove(0);
    let mut byte = [0];
    File::open(path)
        .expect("open")
        .read_exact_at(&mut byte, 0)
        .expect("read");
    assert_eq!(scrub(&["status"], pool.mnt()).number("started"), before);
}
