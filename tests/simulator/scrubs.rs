//! Scenes of the scrub: what it finds, and what a crash in the middle of it does.

use mendfs::backing::FileName;
use mendfs::backing::sim::{PowerLoss, SimSnapshot};
use mendfs::format::Ino;
use mendfs::pool::status::{ScrubState, ScrubStatus};
use mendfs::pool::{ScrubOrder, ScrubRun, ScrubStage};

use super::execute::look;
use super::machine::{Config, Machine};
use super::model::Tree;
use super::ops::bytes;
use super::promises::{create, mounted, place, sync, write};

const BLOCK: u64 = 4096;
const START: Option<ScrubOrder> = Some(ScrubOrder::Start { rate: None });

/// A pool with files of all sizes over several segments, closed, and what is in it.
fn scene() -> (Machine, Tree, Vec<Ino>) {
    let config = Config {
        segment: 256 << 10,
        ..Config::default()
    };
    let mut machine = mounted(config);
    let mut files = Vec::new();
    for (number, len) in [100, 5000, 40_000, 300_000, 9000, 150_000]
        .into_iter()
        .enumerate()
    {
        let ino = create(&machine, &format!("f{number}"));
        write(&machine, ino, 0, &bytes(number as u64, len));
        files.push(ino);
    }
    sync(&machine);
    machine.close().expect("unmount");
    machine.mount().expect("mount");
    let tree = look(machine.vfs()).expect("all is readable");
    (machine, tree, files)
}

/// Damages data on the second mirror, behind its page cache, index, sums and superblock.
fn damage(machine: &Machine, files: &[Ino]) {
    let disk = &machine.disks[1];
    for ino in &files[1..] {
        let (file, offset) = place(machine, *ino, 1);
        disk.corrupt_under_cache(file, offset + 7, 100);
    }
    let index = machine.pool().index_pages();
    disk.corrupt_under_cache(FileName::Index, 0, 64);
    disk.corrupt_under_cache(FileName::Index, u64::from(index / 2) * BLOCK, 64);
    disk.corrupt_under_cache(FileName::Sums, 64, 64);
    disk.corrupt_under_cache(FileName::Superblock, BLOCK + 100, 8);
}

fn told(machine: &Machine) -> ScrubStatus {
    machine.pool().status().scrub.unwrap_or_default()
}

/// Scrubs to the end, from wherever the scrub is.
fn go_on(machine: &mut Machine) -> Result<ScrubStatus, String> {
    while machine.scrub(None, 8, 16 << 10)? {}
    Ok(told(machine))
}

#[test]
fn a_scrub_finds_what_the_page_cache_hides_and_heals_it() {
    let (mut machine, tree, files) = scene();
    damage(&machine, &files);
    assert_eq!(
        look(machine.vfs()).as_ref(),
        Ok(&tree),
        "the cache hides it"
    );
    machine.scrub(START, 0, 0).expect("start");
    let ended = go_on(&mut machine).expect("scrub");
    assert_eq!((ended.state, ended.percent), (ScrubState::Finished, 100));
    assert!(
        ended.errors_found >= files.len() as u64 - 1 + 3,
        "{ended:?}"
    );
    assert_eq!(
        (ended.repaired, ended.unrepairable),
        (ended.errors_found, 0)
    );
    let status = machine.status_of(1);
    assert_eq!(status.repaired, ended.repaired);
    assert_eq!(machine.disks[1].damaged_ranges(), []);
    assert_eq!(machine.disks[0].damaged_ranges(), []);
    machine.scrub(START, 0, 0).expect("start");
    assert_eq!(go_on(&mut machine).expect("scrub").errors_found, 0);
}

/// Scrubs from the snapshot until the power fails at the given change; whether it did. Then mounts,
/// goes on where the scrub was last remembered, and expects everything to be whole.
fn cut(scene: &(Machine, Tree, Vec<Ino>), disks: &[SimSnapshot], after: u64) -> bool {
    let mut machine = Machine::new(1, scene.0.config.clone());
    machine.restore(disks);
    machine.mount().expect("mount");
    let changes = machine.world.changes();
    machine.world.crash_at_change(changes + after);
    let mut seen: Vec<ScrubRun> = Vec::new();
    let mut more = machine.scrub(START, 1, 16 << 10);
    while more == Ok(true) && machine.world.is_powered() {
        seen.push(machine.pool().scrub().run());
        more = machine.scrub(None, 1, 16 << 10);
    }
    let crashed = !machine.world.is_powered();
    machine.world.crash_at_change(u64::MAX);
    if crashed {
        machine.crash(PowerLoss::Random);
        machine.mount().expect("mount");
        // Half of what was done is not remembered.
        let run = seen.get(seen.len() / 2).cloned().unwrap_or_default();
        machine.pool().scrub().take_up(ScrubRun {
            stage: match run.stage {
                ScrubStage::Index(_) => ScrubStage::Index(0),
                stage => stage,
            },
            ..run
        });
    }
    let ended = go_on(&mut machine).expect("scrub");
    assert_eq!(ended.unrepairable, 0, "{after}: {ended:?}");
    assert!(
        matches!(ended.state, ScrubState::Finished | ScrubState::None),
        "{after}: {ended:?}"
    );
    machine.scrub(START, 0, 0).expect("start");
    go_on(&mut machine).expect("scrub");
    assert_eq!(machine.bad_copies(), Ok(0), "{after}");
    assert_eq!(look(machine.vfs()).as_ref(), Ok(&scene.1), "{after}");
    crashed
}

#[test]
fn the_power_may_fail_at_any_change_that_a_scrub_makes() {
    let scene = scene();
    for disk in &scene.0.disks {
        disk.settle();
    }
    damage(&scene.0, &scene.2);
    let disks = scene.0.snapshots();
    let cuts = (1..10_000)
        .take_while(|after| cut(&scene, &disks, *after))
        .count();
    assert!(cuts > 10, "{cuts}");
}

#[test]
fn what_is_freed_or_written_while_it_is_scrubbed_is_no_error() {
    let (mut machine, _, files) = scene();
    machine.scrub(START, 6, 16 << 10).expect("scrub");
    for (number, ino) in files.iter().enumerate() {
        write(&machine, *ino, 0, &bytes(100 + number as u64, 70_000));
        machine.scrub(None, 1, 16 << 10).expect("scrub");
        machine.pool().checkpoint().expect("checkpoint");
        machine.reclaim().expect("reclaim");
    }
    let ended = go_on(&mut machine).expect("scrub");
    assert_eq!(
        (ended.state, ended.errors_found),
        (ScrubState::Finished, 0),
        "{ended:?}"
    );
    assert_eq!(ended.bytes_done, ended.bytes_total);
}

#[test]
fn only_what_no_mirror_has_is_not_repairable() {
    let (mut machine, _, files) = scene();
    for disk in &machine.disks {
        disk.settle();
        let (file, offset) = place(&machine, files[3], 5);
        disk.corrupt(file, offset, 10);
    }
    let (file, offset) = place(&machine, files[3], 9);
    machine.disks[0].corrupt(file, offset, 10);
    machine.scrub(START, 0, 0).expect("start");
    let ended = go_on(&mut machine).expect("scrub");
    assert_eq!(
        (ended.errors_found, ended.repaired, ended.unrepairable),
        (3, 1, 2)
    );
    let damaged = machine.pool().status().damaged;
    assert_eq!((damaged.len(), damaged[0].inode), (1, files[3].0));
    let range = &damaged[0].ranges[0];
    assert_eq!((range.offset, range.length), (5 * BLOCK, BLOCK));
}
