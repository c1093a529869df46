//! The life of mirrors, in scenes: away and back, new, replaced, removed, apart. At the end of each
//! the mirrors hold the same bytes, and each alone holds everything.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Barrier};
use std::thread;

use mendfs::backing::sim::{Fault, Faults, PowerLoss, SimRng};
use mendfs::backing::{Backing, FileName};
use mendfs::format::Ino;
use mendfs::pool::MemberError;
use mendfs::pool::status::{MirrorState, PoolState};
use mendfs::services::Resync;
use mendfs::vfs::Caller;

use super::execute::look;
use super::machine::{Config, Machine};
use super::model::Tree;

fn mounted(config: Config) -> Machine {
    let mut machine = Machine::new(1, config);
    machine.mount().expect("a new pool mounts");
    machine
}

fn create(machine: &Machine, name: &str) -> Ino {
    let caller = Caller::default();
    let vfs = machine.vfs();
    let attr = vfs.mknod(&caller, Ino::ROOT, name.as_bytes(), 0o100_644, 0);
    attr.expect("mknod").ino
}

fn unlink(machine: &Machine, name: &str, ino: Ino) {
    let vfs = machine.vfs();
    let gone = vfs.unlink(&Caller::default(), Ino::ROOT, name.as_bytes());
    gone.expect("unlink");
    vfs.forget(ino, 1);
}

fn fill(machine: &Machine, ino: Ino, offset: u64, len: usize, byte: u8) {
    let written = machine.vfs().write(ino, offset, &vec![byte; len], false);
    assert_eq!(written.expect("write"), len);
}

fn tree(machine: &Machine) -> Tree {
    look(machine.vfs()).expect("all is readable")
}

/// Says where the mirrors do not hold the same bytes in every file but the superblock.
pub(crate) fn alike(machine: &Machine, disks: &[usize]) -> Result<(), String> {
    let contents = |disk: usize| -> BTreeMap<FileName, Option<Vec<u8>>> {
        let disk = &machine.disks[disk];
        let files = disk.files().into_iter();
        let files = files.filter(|file| *file != FileName::Superblock);
        files.map(|file| (file, disk.content(file))).collect()
    };
    let first = contents(disks[0]);
    for disk in &disks[1..] {
        let other = contents(*disk);
        if !first.keys().eq(other.keys()) {
            let (ours, theirs): (Vec<_>, Vec<_>) = (first.keys().collect(), other.keys().collect());
            return Err(format!("mirror {disk} has {theirs:?} and not {ours:?}"));
        }
        for (file, content) in &first {
            let (ours, theirs) = (content.as_deref(), other[file].as_deref());
            let (ours, theirs) = (ours.unwrap_or(&[]), theirs.unwrap_or(&[]));
            let differs = ours.iter().zip(theirs).position(|(a, b)| a != b);
            if differs.is_some() || ours.len() != theirs.len() {
                let (ours, theirs) = (ours.len(), theirs.len());
                return Err(format!(
                    "{file} of {ours} and on mirror {disk} {theirs} bytes differs at {differs:?}"
                ));
            }
        }
    }
    Ok(())
}

fn assert_alike(machine: &Machine, disks: &[usize]) {
    assert_eq!(alike(machine, disks), Ok(()));
}

/// Each mirror alone has that tree, whole.
fn assert_each_alone(machine: &mut Machine, disks: &[usize], expected: &Tree) {
    machine.close().expect("unmount");
    let kept = machine.snapshots();
    for alone in disks {
        machine.restore(&kept);
        for disk in 0..machine.disks.len() {
            machine.present[disk] = disk == *alone;
        }
        machine.mount().expect("one alone mounts");
        assert_eq!(&tree(machine), expected, "mirror {alone}");
        assert_eq!(machine.verify().expect("verify"), [""; 0]);
        machine.kill();
    }
    machine.restore(&kept);
}

fn assert_whole(mut machine: Machine, disks: &[usize]) {
    assert_eq!(machine.pool().status().state, PoolState::Healthy);
    let expected = tree(&machine);
    machine.pool().checkpoint().expect("checkpoint");
    machine.reclaim().expect("reclaim");
    assert_alike(&machine, disks);
    assert_each_alone(&mut machine, disks, &expected);
}

fn moved(machine: &mut Machine) -> u64 {
    let mut most = 0;
    while machine.resync_step().expect("resync") {
        let status = machine.pool().status().resync;
        most = status.map_or(most, |status| status.moved_bytes.max(most));
    }
    most
}

#[test]
fn a_mirror_that_was_away_gets_what_it_missed_and_no_more() {
    let mut machine = mounted(Config::default());
    let old = create(&machine, "old");
    fill(&machine, old, 0, 3 << 20, 1);
    let cut = create(&machine, "cut");
    fill(&machine, cut, 0, 1 << 20, 2);
    machine.close().expect("unmount");
    machine.present[1] = false;
    machine.mount().expect("mount");
    let new = create(&machine, "new");
    fill(&machine, new, 0, 300_000, 3);
    fill(&machine, old, 8192, 4096, 4);
    unlink(&machine, "cut", cut);
    machine.pool().checkpoint().expect("checkpoint");
    machine.reclaim().expect("reclaim");
    machine.close().expect("unmount");
    machine.present[1] = true;
    machine.mount().expect("mount");
    assert_eq!(machine.status_of(1).state, MirrorState::Offline);
    let moved = moved(&mut machine);
    // The new file, the journal, the index, and the holes where the deleted file was.
    assert!(moved > 300_000 && moved < 3 << 20, "{moved} bytes moved");
    assert_eq!(machine.status_of(1).state, MirrorState::Online);
    assert_whole(machine, &[0, 1]);
}

#[test]
fn a_new_mirror_gets_everything_while_the_pool_is_used() {
    for seed in 0..20 {
        let mut machine = mounted(Config {
            segment: 256 << 10,
            ..Config::default()
        });
        let mut rng = SimRng::new(seed);
        let mut files: Vec<(String, Ino)> = Vec::new();
        let mut change = |machine: &mut Machine, round: u64| {
            let name = format!("f{round}");
            match rng.below(6) {
                0 if !files.is_empty() => {
                    let (name, ino) = files.swap_remove(rng.index(files.len()));
                    unlink(machine, &name, ino);
                }
                1 | 2 if !files.is_empty() => {
                    let (_, ino) = files[rng.index(files.len())];
                    let at = rng.below(20) * 4096 + rng.below(3);
                    fill(machine, ino, at, 1 + rng.index(30_000), round as u8);
                }
                3 if files.len() > 1 => {
                    let (from, to) = (rng.index(files.len()), rng.index(files.len()));
                    let vfs = machine.vfs();
                    let (from, to) = (files[from].1, files[to].1);
                    if from != to {
                        vfs.copy_range(from, 0, to, 4096, 16384).expect("copy");
                    }
                }
                _ => {
                    let ino = create(machine, &name);
                    fill(machine, ino, 0, 1 + rng.index(90_000), round as u8);
                    files.push((name, ino));
                }
            }
            match rng.below(12) {
                0 => machine.pool().checkpoint().expect("checkpoint"),
                1 => machine.reclaim().expect("reclaim"),
                2 => machine.pool().sync().expect("sync"),
                _ => {}
            }
        };
        for round in 0..60 {
            change(&mut machine, round);
        }
        let disk = machine.add_disk("new");
        machine.reopen();
        machine.pool().mirror_add("new", None).expect("add");
        let mut round = 60;
        loop {
            assert_ne!(machine.pool().status().state, PoolState::Healthy);
            let more = machine.resync_step().expect("resync");
            if machine.pool().status().state == PoolState::Healthy {
                break;
            }
            assert!(more, "it goes on until it is done");
            change(&mut machine, round);
            round += 1;
        }
        assert_whole(machine, &[0, 1, disk]);
    }
}

#[test]
fn a_resync_that_was_cut_off_goes_on_and_its_mirror_is_never_read_before() {
    for cut in 0..40 {
        let mut machine = mounted(Config {
            segment: 256 << 10,
            ..Config::default()
        });
        for number in 0..20 {
            let ino = create(&machine, &format!("f{number}"));
            fill(&machine, ino, 0, 50_000, number);
        }
        let disk = machine.add_disk("new");
        machine.reopen();
        machine.pool().mirror_add("new", None).expect("add");
        for _ in 0..cut {
            machine.resync_step().expect("resync");
        }
        let before = tree(&machine);
        machine.pool().sync().expect("sync");
        machine.crash(PowerLoss::Random);
        // The new one alone is refused as long as it is not complete.
        let kept = machine.snapshots();
        machine.present = vec![false, false, true];
        match machine.mount() {
            Ok(()) => assert_eq!(tree(&machine), before, "cut after {cut}"),
            Err(refused) => assert!(refused.contains("left behind"), "{refused}"),
        }
        machine.kill();
        machine.restore(&kept);
        machine.present = vec![true; 3];
        machine.mount().expect("mount");
        assert_eq!(tree(&machine), before);
        machine.resync().expect("resync");
        assert_eq!(machine.pool().status().state, PoolState::Healthy, "{cut}");
        assert_whole(machine, &[0, 1, disk]);
    }
}

#[test]
fn a_replaced_mirror_serves_until_the_new_one_is_complete_and_is_none_afterwards() {
    let mut machine = mounted(Config::default());
    let ino = create(&machine, "f");
    fill(&machine, ino, 0, 200_000, 7);
    let disk = machine.add_disk("new");
    machine.reopen();
    machine
        .pool()
        .mirror_add("new", Some("b"))
        .expect("replace");
    assert_eq!(machine.status_of(1).state, MirrorState::Online);
    machine.crash(PowerLoss::LoseAll);
    machine.mount().expect("mount");
    machine.resync().expect("resync");
    let mirrors = machine.pool().status().mirrors;
    let paths: Vec<&str> = mirrors.iter().map(|mirror| mirror.path.as_str()).collect();
    assert_eq!(paths, ["a", "new"]);
    assert_eq!(machine.disks[1].content(FileName::Superblock), None);
    machine.present[1] = false;
    assert_whole(machine, &[0, disk]);
}

#[test]
fn what_the_operator_takes_out_stays_out_until_it_is_taken_back() {
    let mut machine = mounted(Config::default());
    let ino = create(&machine, "f");
    fill(&machine, ino, 0, 20_000, 1);
    machine.pool().mirror_offline("a").expect("offline");
    let refused = machine
        .pool()
        .mirror_offline("b")
        .expect_err("the last one");
    assert!(refused.to_string().contains("last mirror"), "{refused}");
    let refused = machine.pool().mirror_remove("b").expect_err("the last one");
    assert!(refused.to_string().contains("last mirror"), "{refused}");
    fill(&machine, ino, 0, 20_000, 2);
    machine.resync().expect("nothing to do");
    assert_eq!(machine.status_of(0).state, MirrorState::Offline);
    machine.close().expect("unmount");
    machine.mount().expect("mount");
    machine.resync().expect("nothing to do");
    assert_eq!(machine.status_of(0).state, MirrorState::Offline);
    machine.pool().mirror_online("a").expect("online");
    let again = machine.pool().mirror_online("a").expect_err("already");
    assert!(matches!(again, MemberError::Already { .. }), "{again}");
    machine.resync().expect("resync");
    assert_whole(machine, &[0, 1]);
}

#[test]
fn a_removed_mirror_is_none_any_more() {
    let mut machine = mounted(Config {
        mirrors: 3,
        ..Config::default()
    });
    let ino = create(&machine, "f");
    fill(&machine, ino, 0, 20_000, 1);
    machine.pool().mirror_remove("b").expect("remove");
    assert_eq!(machine.pool().status().state, PoolState::Healthy);
    fill(&machine, ino, 0, 20_000, 2);
    let before = tree(&machine);
    machine.close().expect("unmount");
    // Named again it is told, and left alone.
    machine.mount().expect("mount");
    assert_eq!(machine.pool().status().mirrors.len(), 2);
    assert_eq!(tree(&machine), before);
    machine.close().expect("unmount");
    machine.present = vec![false, true, false];
    let refused = machine.mount().expect_err("no mirror");
    assert!(refused.contains("no mendfs pool"), "{refused}");
}

#[test]
fn of_mirrors_that_went_on_apart_the_preferred_one_is_kept_and_the_other_filled_anew() {
    for kept in [0, 1] {
        let mut machine = mounted(Config::default());
        let ino = create(&machine, "f");
        fill(&machine, ino, 0, 100_000, 9);
        machine.close().expect("unmount");
        let mut trees = Vec::new();
        for alone in [0, 1] {
            machine.present = vec![alone == 0, alone == 1];
            machine.mount().expect("one mirror mounts");
            for number in 0..=alone {
                let ino = create(&machine, &format!("only on {alone} {number}"));
                fill(&machine, ino, 0, 50_000, alone as u8);
            }
            trees.push(tree(&machine));
            machine.close().expect("unmount");
        }
        machine.present = vec![true, true];
        let refused = machine.mount().expect_err("split-brain");
        assert!(refused.contains("prefer="), "{refused}");
        machine.prefer = Some(["a", "b"][kept].to_owned());
        machine.mount().expect("mount");
        assert_eq!(tree(&machine), trees[kept]);
        machine.resync().expect("resync");
        assert_eq!(tree(&machine), trees[kept]);
        machine.prefer = None;
        assert_whole(machine, &[0, 1]);
    }
}

#[test]
fn a_mirror_lost_while_it_was_brought_up_to_date_is_not_taken_for_another_history() {
    let mut machine = mounted(Config::default());
    let ino = create(&machine, "f");
    fill(&machine, ino, 0, 50_000, 1);
    for name in ["first", "second"] {
        machine.add_disk(name);
        machine.pool().mirror_add(name, None).expect("add");
    }
    // It carries the epoch of the others when it goes, and does not know the first as online.
    machine.disks[3].detach();
    machine.resync().expect("resync");
    assert_eq!(machine.status_of(2).state, MirrorState::Online);
    machine.disks[3].attach();
    machine.pool().mirror_online("second").expect("back");
    machine.resync().expect("resync");
    assert_whole(machine, &[0, 1, 2, 3]);
}

#[test]
fn a_mirror_that_was_behind_at_mount_may_be_unplugged_and_come_back() {
    let mut machine = mounted(Config::default());
    let ino = create(&machine, "f");
    machine.pool().mirror_offline("b").expect("offline");
    fill(&machine, ino, 0, 50_000, 2);
    machine.reopen();
    assert_eq!(machine.status_of(1).state, MirrorState::Offline);
    machine.disks[1].detach();
    machine.disks[1].attach();
    machine.pool().mirror_online("b").expect("online");
    machine.resync().expect("resync");
    assert_whole(machine, &[0, 1]);
}

#[test]
fn reserving_space_lets_go_of_a_mirror_that_others_filled_up() {
    let machine = mounted(Config::default());
    let ino = create(&machine, "f");
    machine.pool().sync().expect("sync");
    super::history::set_free(&machine.disks[1], 1000).expect("a disk");
    let reserved = machine.vfs().fallocate(ino, 0, 100_000, 0);
    assert!(reserved.is_ok(), "{reserved:?}");
    assert_eq!(machine.status_of(1).state, MirrorState::Offline);
}

#[test]
fn what_lies_between_live_data_is_copied_from_a_mirror_that_can_be_read() {
    let mut machine = mounted(Config {
        segment: 256 << 10,
        ..Config::default()
    });
    let ino = create(&machine, "f");
    let kept = create(&machine, "kept");
    for round in 0..6 {
        fill(&machine, ino, 0, 60_000, round);
        fill(&machine, kept, u64::from(round) * 8192, 5000, round);
    }
    machine.add_disk("new");
    machine.pool().mirror_add("new", None).expect("add");
    let bad = Faults::none().rate(Fault::ReadError, None, 300_000);
    machine.disks[0].set_faults(bad);
    machine.resync().expect("resync");
    machine.disks[0].set_faults(Faults::none());
    assert_alike(&machine, &[1, 2]);
}

#[test]
fn a_target_that_fails_goes_out_again_and_nobody_notices() {
    for fault in [Fault::WriteError, Fault::SyncError, Fault::LostWrite] {
        for skip in 0..12 {
            let mut machine = mounted(Config::default());
            for number in 0..8 {
                let ino = create(&machine, &format!("f{number}"));
                fill(&machine, ino, 0, 30_000, number);
            }
            machine.pool().mirror_offline("b").expect("offline");
            let ino = create(&machine, "g");
            fill(&machine, ino, 0, 300_000, 5);
            machine.pool().mirror_online("b").expect("online");
            machine.disks[1].set_faults(Faults::none().once(fault, None, skip));
            machine.resync().expect("a failing target is no error");
            fill(&machine, ino, 100_000, 30_000, 6);
            machine.pool().sync().expect("sync");
            machine.disks[1].set_faults(Faults::none());
            if machine.status_of(1).state != MirrorState::Online {
                machine.pool().mirror_online("b").expect("online");
                machine.resync().expect("resync");
            }
            // A write of an application that the disk lost is found by checking.
            assert_eq!(machine.verify().expect("verify"), [""; 0]);
            if fault == Fault::LostWrite {
                let expected = tree(&machine);
                assert_each_alone(&mut machine, &[0, 1], &expected);
            } else {
                assert_whole(machine, &[0, 1]);
            }
        }
    }
}

/// What is dead is given back by one thread while another copies it to a new mirror.
#[test]
fn what_is_given_back_while_it_is_copied_is_given_back_there_too() {
    const DEAD: usize = 900 << 10;
    let mut machine = mounted(Config::default());
    let (gone, kept) = (create(&machine, "gone"), create(&machine, "kept"));
    fill(&machine, gone, 0, DEAD, 1);
    fill(&machine, kept, 0, 5000, 2);
    let (segment, _) = machine.pool().open_segment().expect("one is open");
    unlink(&machine, "gone", gone);
    machine.add_disk("new");
    machine.pool().mirror_add("new", None).expect("add");
    machine.pool().checkpoint().expect("checkpoint");
    let pool = machine.pool();
    let target = pool.resync_target(pool.resyncing()[0]).expect("a target");
    let file = FileName::Segment(segment);
    for round in 0..500 {
        for (disk, byte) in machine.disks.iter().zip([3, 3, 4]) {
            let dead = disk.plug().write_at(file, 0, &[&[byte; DEAD]]);
            dead.expect("write");
        }
        let together = Barrier::new(2);
        thread::scope(|scope| {
            scope.spawn(|| {
                together.wait();
                // Now here, now there in the course of the other one.
                (0..round % 50 * 32).for_each(|_| std::hint::spin_loop());
                pool.punch_segment(segment, 0, DEAD as u32);
            });
            together.wait();
            pool.copy_gaps(&target, segment).expect("copy");
        });
        let held = |disk: usize| {
            let content = machine.disks[disk].content(file).expect("there");
            content[..DEAD].to_vec()
        };
        assert!(held(0) == held(2), "round {round}");
    }
    machine.resync().expect("resync");
    assert_whole(machine, &[0, 1, 2]);
}

/// Checkpoints are made while the index is copied, and the file of the mirror that was away holds
/// behind its end what a longer index once left there.
#[test]
fn what_lies_behind_the_index_is_the_same_also_where_checkpoints_are_made() {
    for round in 0..100 {
        let machine = mounted(Config::default());
        let ino = create(&machine, "f");
        machine.pool().checkpoint().expect("checkpoint");
        machine.pool().mirror_offline("b").expect("offline");
        let disk = machine.disks[1].plug();
        let end = disk.len(FileName::Index).expect("its length");
        let behind = disk.write_at(FileName::Index, end, &[&[7; 8192]]);
        behind.expect("write");
        machine.pool().mirror_online("b").expect("online");
        let done = AtomicBool::new(false);
        thread::scope(|scope| {
            scope.spawn(|| {
                while !done.load(Ordering::Acquire) {
                    fill(&machine, ino, 0, 100, 1);
                    machine.pool().checkpoint().expect("checkpoint");
                }
            });
            let mut resync = Resync::new(Arc::clone(machine.pool()));
            while resync.step().expect("resync").is_some() {}
            done.store(true, Ordering::Release);
        });
        machine.pool().checkpoint().expect("checkpoint");
        assert_eq!(alike(&machine, &[0, 1]), Ok(()), "round {round}");
    }
}
