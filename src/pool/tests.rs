//! The pool over simulated mirrors: rows and data survive what they must.

use std::sync::Arc;

use super::*;
use crate::backing::Backing;
use crate::backing::FileName;
use crate::backing::sim::{PowerLoss, SimDisk, SimWorld};
use crate::format::{Algorithm, BLOCK, Ino, Key, SUMS_PER_BLOCK};
use crate::index::Txn;

pub(crate) fn small() -> OpenOptions {
    OpenOptions {
        parallel: false,
        ledger: false,
        cache: 1 << 20,
        segment_size: 4 << 20,
        index_reserve: 1 << 20,
        space_kept: Some(1 << 20),
        ..OpenOptions::default()
    }
}

pub(crate) fn plugged(disks: &[SimDisk]) -> Vec<(String, Option<Arc<dyn Backing>>)> {
    disks
        .iter()
        .map(|disk| {
            let disk: Arc<dyn Backing> = Arc::new(disk.plug());
            (disk.label(), Some(disk))
        })
        .collect()
}

pub(crate) fn format(disks: &[SimDisk], algorithm: Algorithm, journal_size: u64) {
    let backings: Vec<Arc<dyn Backing>> = disks
        .iter()
        .map(|disk| Arc::new(disk.plug()) as Arc<dyn Backing>)
        .collect();
    let random = (0..10).map(|n| [n + 1; 16]).collect();
    let options = CreateOptions {
        label: "test".to_owned(),
        algorithm,
        journal_size,
        created: 0,
        random,
    };
    create(&backings, &options).unwrap();
}

fn new_pool(seed: u64) -> (SimWorld, Vec<SimDisk>) {
    let world = SimWorld::new(seed);
    let disks = vec![world.disk("a"), world.disk("b")];
    format(&disks, Algorithm::Crc32, 1 << 20);
    (world, disks)
}

fn put(pool: &Pool, number: u64, value: &[u8]) {
    pool.begin(Intent::Grow).unwrap();
    let mut txn = Txn::new();
    txn.put(Key::xattr(Ino(number), b"user.a"), value.to_vec());
    pool.commit(txn).unwrap();
}

fn get(pool: &Pool, number: u64) -> Option<Vec<u8>> {
    pool.get(&Key::xattr(Ino(number), b"user.a")).unwrap()
}

#[test]
fn rows_are_there_after_an_orderly_close() {
    let (_world, disks) = new_pool(1);
    for round in 0..5_u64 {
        let pool = Pool::open(plugged(&disks), small()).unwrap();
        for number in 0..round * 100 {
            assert_eq!(
                get(&pool, number),
                Some(number.to_le_bytes().to_vec()),
                "round {round}"
            );
        }
        for number in round * 100..(round + 1) * 100 {
            put(&pool, number, &number.to_le_bytes());
        }
        pool.close().unwrap();
        assert!(!pool.recovery.needed);
    }
}

#[test]
fn an_index_that_shrinks_can_be_opened_again() {
    let (_world, disks) = new_pool(31);
    let mut pool = Pool::open(plugged(&disks), small()).unwrap();
    let one_block = SUMS_PER_BLOCK as u32;
    let mut number = 0;
    while pool.index.pages() <= one_block {
        for _ in 0..100 {
            put(&pool, number, &[7; 2000]);
            number += 1;
        }
        pool.checkpoint().unwrap();
    }
    // redb gives pages at the end back some commits after they became free.
    for gone in 1..number {
        pool.begin(Intent::Shrink).unwrap();
        let mut txn = Txn::new();
        txn.delete(Key::xattr(Ino(gone), b"user.a"));
        pool.commit(txn).unwrap();
        if gone % 50 == 0 {
            pool.checkpoint().unwrap();
        }
    }
    for round in 0..20 {
        put(&pool, 0, &[round]);
        pool.close().unwrap();
        pool = Pool::open(plugged(&disks), small()).unwrap();
        assert_eq!(get(&pool, 0), Some(vec![round]));
        assert_eq!(get(&pool, 1), None);
    }
    assert!(pool.index.pages() <= one_block, "it did not shrink");
}

#[test]
fn what_was_synced_survives_a_power_cut_and_the_loss_of_either_mirror() {
    for gone in [None, Some(0), Some(1)] {
        let (world, disks) = new_pool(2);
        let pool = Pool::open(plugged(&disks), small()).unwrap();
        for number in 0..300 {
            put(&pool, number, b"kept");
            if number == 150 {
                pool.checkpoint().unwrap();
            }
        }
        pool.sync().unwrap();
        put(&pool, 1000, b"not asked for");
        world.cut_power();
        drop(pool);
        world.power_cycle(PowerLoss::LoseAll);
        let mut named = plugged(&disks);
        if let Some(gone) = gone {
            named.remove(gone);
        }
        let pool = Pool::open(named, small()).unwrap();
        for number in 0..300 {
            assert_eq!(
                get(&pool, number).as_deref(),
                Some(&b"kept"[..]),
                "{gone:?} {number}"
            );
        }
        assert!(pool.recovery.needed);
    }
}

#[test]
fn data_is_read_back_and_a_bad_copy_is_healed() {
    let (_world, disks) = new_pool(3);
    let pool = Pool::open(plugged(&disks), small()).unwrap();
    let payload: Vec<u8> = (0..3 * BLOCK + 100).map(|n| (n % 253) as u8).collect();
    pool.begin(Intent::Grow).unwrap();
    let row = pool.store(Ino(7), 0, &payload, Room::Free).unwrap();
    let mut txn = Txn::new();
    txn.link_extent(Ino(7), 0, &row);
    pool.commit(txn).unwrap();
    pool.sync().unwrap();
    pool.checkpoint().unwrap();
    let file = FileName::Segment(row.segment);
    for (disk, at) in disks.iter().zip([100, 5000]) {
        disk.corrupt(file, u64::from(row.offset) + at, 10);
        let mut out = vec![0; payload.len()];
        pool.load(Ino(7), 0, &row, 0, &mut out).unwrap();
        assert_eq!(out, payload);
        while pool.mirrors.repair_step(100) > 0 {}
        disk.settle();
    }
    let bad = |disk: &SimDisk| disk.damaged_ranges();
    // Reads of one segment go to one mirror, so the other's damage may still be there.
    assert!(disks.iter().any(|disk| bad(disk).is_empty()));
    let left = disks.iter().filter(|disk| !bad(disk).is_empty()).count();
    assert_eq!(pool.segments.verify(&row), (left, Vec::new()));
    while pool.mirrors.repair_step(100) > 0 {}
    assert!(disks.iter().all(|disk| bad(disk).is_empty()));
    for disk in &disks {
        disk.corrupt(file, u64::from(row.offset) + 5000, 10);
    }
    let mut out = vec![0; payload.len()];
    let lost = pool.load(Ino(7), 0, &row, 0, &mut out);
    assert!(
        matches!(
            lost,
            Err(PoolError::Damaged {
                offset: 4096,
                len: 4096,
                ..
            })
        ),
        "{lost:?}"
    );
}

#[test]
fn a_crash_at_any_point_of_checkpoints_leaves_a_prefix() {
    for loss in [PowerLoss::LoseAll, PowerLoss::KeepAll, PowerLoss::Random] {
        let mut at = 1;
        loop {
            let (world, disks) = new_pool(at);
            let base = world.changes();
            world.crash_at_change(base + at);
            let mut synced = 0;
            let mut done = 0;
            let opened = Pool::open(plugged(&disks), small());
            let finished = opened.is_ok_and(|pool| {
                let mut step = || -> Result<()> {
                    for number in 0..40 {
                        pool.begin(Intent::Grow)?;
                        let mut txn = Txn::new();
                        txn.put(Key::xattr(Ino(number), b"user.a"), vec![number as u8; 600]);
                        pool.commit(txn)?;
                        done = number + 1;
                        if number % 5 == 0 {
                            pool.sync()?;
                            synced = done;
                        }
                        if number % 10 == 7 {
                            pool.checkpoint()?;
                            synced = done;
                        }
                    }
                    pool.close()
                };
                step().is_ok()
            });
            if finished {
                assert!(at > 50, "the sweep was too short: {at}");
                break;
            }
            world.power_cycle(loss);
            let pool = Pool::open(plugged(&disks), small())
                .unwrap_or_else(|error| panic!("{loss:?} cut at {at}: {error}"));
            let there = (0..40)
                .take_while(|number| get(&pool, *number).is_some())
                .count() as u64;
            assert!(there >= synced, "{loss:?} cut at {at}: {there} of {synced}");
            assert!(
                (there..40).all(|number| get(&pool, number).is_none()),
                "{loss:?} at {at}"
            );
            at += 1;
        }
    }
}

fn put_for_sure(pool: &Pool, number: u64, value: &[u8]) {
    pool.begin(Intent::Shrink).unwrap();
    let mut txn = Txn::new();
    txn.put(Key::xattr(Ino(number), b"user.a"), value.to_vec());
    pool.commit(txn).unwrap();
}

#[test]
fn closing_after_a_checkpoint_that_a_full_disk_stopped_loses_nothing() {
    let (_world, disks) = new_pool(5);
    let pool = Pool::open(plugged(&disks), small()).unwrap();
    put(&pool, 1, b"before");
    pool.checkpoint().unwrap();
    // Anything that needs space in a checkpoint will do.
    disks[1].delete(FileName::Sums);
    disks.iter().for_each(|disk| disk.set_capacity(0));
    put_for_sure(&pool, 2, b"frozen");
    let stopped = pool.checkpoint();
    assert!(
        matches!(stopped, Err(PoolError::NoSpace { .. })),
        "{stopped:?}"
    );
    put_for_sure(&pool, 1, b"after");
    pool.sync().unwrap();
    disks.iter().for_each(|disk| disk.set_capacity(1 << 30));
    pool.close().unwrap();
    drop(pool);
    let pool = Pool::open(plugged(&disks), small()).unwrap();
    assert_eq!(get(&pool, 1).as_deref(), Some(&b"after"[..]));
}

#[test]
fn a_checkpoint_after_an_undone_one_can_itself_be_finished_by_recovery() {
    // The first attempt writes many pages, some over pages that were once in use, and is undone;
    // the second writes few, and is cut at each of its changes.
    let mut at = 1;
    loop {
        let (world, disks) = new_pool(6);
        let pool = Pool::open(plugged(&disks), small()).unwrap();
        for round in 0..4_u8 {
            for number in 0..200 {
                put(&pool, number, &[round; 900]);
            }
            pool.checkpoint().unwrap();
        }
        // The second mirror's index is gone and there is no room for another.
        disks[1].delete(FileName::Index);
        disks.iter().for_each(|disk| disk.set_capacity(0));
        for number in 0..400 {
            put_for_sure(&pool, number, &[9; 900]);
        }
        let stopped = pool.checkpoint();
        assert!(
            matches!(stopped, Err(PoolError::NoSpace { .. })),
            "{stopped:?}"
        );
        for number in 0..400 {
            pool.begin(Intent::Shrink).unwrap();
            let mut txn = Txn::new();
            txn.delete(Key::xattr(Ino(number), b"user.a"));
            pool.commit(txn).unwrap();
        }
        pool.sync().unwrap();
        world.cut_power();
        drop(pool);
        disks.iter().for_each(|disk| disk.set_capacity(1 << 30));
        world.power_cycle(PowerLoss::KeepAll);
        world.crash_at_change(world.changes() + at);
        let finished = Pool::open(plugged(&disks), small()).is_ok();
        if finished {
            assert!(at > 10, "the sweep was too short: {at}");
            break;
        }
        world.power_cycle(PowerLoss::KeepAll);
        let pool = Pool::open(plugged(&disks), small())
            .unwrap_or_else(|error| panic!("cut at {at}: {error}"));
        assert!((0..400).all(|number| get(&pool, number).is_none()));
        let (_, lost) = pool.verify_index(0, pool.index_pages());
        assert_eq!(lost, Vec::<u32>::new(), "cut at {at}");
        at += 1;
    }
}

fn write(pool: &Pool, ino: u64, payload: &[u8]) -> crate::format::ExtentRow {
    pool.begin(Intent::Grow).unwrap();
    let row = pool.store(Ino(ino), 0, payload, Room::Free).unwrap();
    let mut txn = Txn::new();
    txn.link_extent(Ino(ino), 0, &row);
    pool.commit(txn).unwrap();
    row
}

fn erase(pool: &Pool, ino: u64, row: &crate::format::ExtentRow) {
    pool.begin(Intent::Shrink).unwrap();
    let mut txn = Txn::new();
    txn.unlink_extent(Ino(ino), 0, row);
    pool.commit(txn).unwrap();
}

#[test]
fn what_the_journal_would_replay_is_not_given_back() {
    let (world, disks) = new_pool(7);
    let pool = Arc::new(Pool::open(plugged(&disks), small()).unwrap());
    let mut reclaim = crate::services::Reclaim::new(Arc::clone(&pool));
    // Eight small extents share a block: seven are freed by a checkpoint, the last lives and dies
    // between two. So much follows that the segment is synced and the journal has no image of it.
    let first: Vec<_> = (0..7).map(|n| write(&pool, 10 + n, &[1; 300])).collect();
    (0..7).for_each(|n| erase(&pool, 10 + n, &first[n as usize]));
    pool.checkpoint().unwrap();
    let last = write(&pool, 20, &[2; 300]);
    assert_eq!(last.offset / BLOCK as u32, first[0].offset / BLOCK as u32);
    let behind = write(&pool, 21, &[3; 300 << 10]);
    assert!(behind.header >= BLOCK as u32);
    put(&pool, 1, b"acknowledged");
    pool.sync().unwrap();
    erase(&pool, 20, &last);
    while reclaim.step(16).unwrap() {}
    world.cut_power();
    drop((pool, reclaim));
    world.power_cycle(PowerLoss::KeepAll);
    let pool = Pool::open(plugged(&disks), small()).unwrap();
    assert_eq!(get(&pool, 1).as_deref(), Some(&b"acknowledged"[..]));
    assert_eq!(pool.recovery.discarded, 0);
}

#[test]
fn a_mirror_that_has_no_room_for_the_journal_goes_and_leaves_no_gap() {
    let (world, disks) = new_pool(8);
    let pool = Pool::open(plugged(&disks), small()).unwrap();
    put(&pool, 1, b"one");
    pool.sync().unwrap();
    // Whatever makes a filesystem below want space for what was allocated once.
    disks[1].delete(FileName::Journal);
    disks.iter().for_each(|disk| disk.set_capacity(0));
    put_for_sure(&pool, 2, b"two");
    pool.sync().unwrap();
    put_for_sure(&pool, 3, b"three");
    pool.sync().unwrap();
    assert!(pool.mirrors.degraded());
    world.cut_power();
    drop(pool);
    world.power_cycle(PowerLoss::LoseAll);
    let pool = Pool::open(plugged(&disks), small()).unwrap();
    assert_eq!(get(&pool, 2).as_deref(), Some(&b"two"[..]));
    assert_eq!(get(&pool, 3).as_deref(), Some(&b"three"[..]));
}

#[test]
fn a_torn_superblock_never_takes_the_newest_one_with_it() {
    for seed in 0..20 {
        let (world, disks) = new_pool(seed);
        let superblock = crate::mirrors::read_superblock(&disks[0]).unwrap();
        let write = |sequence: u64| {
            let superblock = crate::format::Superblock {
                sequence,
                ..superblock.clone()
            };
            crate::mirrors::membership::write_slot(&disks[0].plug(), &superblock)
        };
        write(5).unwrap();
        // This mirror missed the sixth, since a crash came first, and is cut in the seventh.
        world.crash_at_change(world.changes() + 2);
        write(7).unwrap_err();
        world.power_cycle(PowerLoss::Random);
        let now = crate::mirrors::read_superblock(&disks[0]).unwrap().sequence;
        assert!(now == 5 || now == 7, "seed {seed}: {now}");
    }
}

#[test]
fn old_damage_in_what_an_operation_keeps_does_not_end_history() {
    let (world, disks) = new_pool(10);
    let pool = Pool::open(plugged(&disks), small()).unwrap();
    let row = write(&pool, 20, &[5; 4 * BLOCK]);
    pool.checkpoint().unwrap();
    for disk in &disks {
        disk.corrupt(FileName::Segment(row.segment), u64::from(row.offset), 10);
    }
    // The last block is cut off; the row that stays has the damaged one.
    pool.begin(Intent::Shrink).unwrap();
    let mut txn = Txn::new();
    let cut = pool.cut(&mut txn, Ino(20), 3 * BLOCK as u64, u64::MAX, 10);
    assert!(cut.unwrap().done);
    pool.commit(txn).unwrap();
    put(&pool, 1, b"acknowledged");
    pool.sync().unwrap();
    world.cut_power();
    drop(pool);
    world.power_cycle(PowerLoss::LoseAll);
    let pool = Pool::open(plugged(&disks), small()).unwrap();
    assert_eq!(get(&pool, 1).as_deref(), Some(&b"acknowledged"[..]));
    assert_eq!(pool.extents(Ino(20), 0, u64::MAX).unwrap()[0].1.blocks(), 3);
}

#[test]
fn space_that_others_freed_can_be_used_again() {
    let (_world, disks) = new_pool(11);
    let options = |reserve: u64| OpenOptions {
        index_reserve: reserve,
        ..small()
    };
    let pool = Pool::open(plugged(&disks), options(0)).unwrap();
    put(&pool, 1, b"x");
    pool.close().unwrap();
    drop(pool);
    let pool = Pool::open(plugged(&disks), options(8 << 20)).unwrap();
    // Others take what the reserve of the next checkpoint needs.
    disks.iter().for_each(|disk| disk.set_capacity(0));
    put_for_sure(&pool, 2, b"y");
    pool.checkpoint().unwrap();
    disks.iter().for_each(|disk| disk.set_capacity(1 << 30));
    let refused = pool.begin(Intent::Grow);
    assert!(
        matches!(refused, Err(PoolError::NoSpace { .. })),
        "{refused:?}"
    );
    assert!(pool.checkpoint_useful());
    pool.checkpoint().unwrap();
    pool.begin(Intent::Grow).unwrap();
}

#[test]
fn a_lost_block_of_a_deleted_file_is_not_damaged_metadata() {
    let (_world, disks) = new_pool(12);
    let pool = Pool::open(plugged(&disks), small()).unwrap();
    let row = write(&pool, 30, &[5; BLOCK]);
    pool.checkpoint().unwrap();
    for disk in &disks {
        disk.corrupt(FileName::Segment(row.segment), u64::from(row.offset), 10);
    }
    let mut out = vec![0; BLOCK];
    pool.load(Ino(30), 0, &row, 0, &mut out).unwrap_err();
    erase(&pool, 30, &row);
    let status = pool.status();
    assert_eq!(
        status.state,
        status::PoolState::Healthy,
        "{:?}",
        status.actions
    );
}

#[test]
fn a_segment_deleted_under_a_mounted_mirror_is_made_whole_again() {
    let (_world, disks) = new_pool(11);
    let pool = Arc::new(Pool::open(plugged(&disks), small()).unwrap());
    let mut inspector = crate::services::Inspector::new(Arc::clone(&pool));
    let row = write(&pool, 20, &[5; 4 * BLOCK]);
    pool.sync().unwrap();
    pool.checkpoint().unwrap();
    let file = FileName::Segment(row.segment);
    disks[1].delete(file);
    // The next write to the segment finds that it is gone.
    write(&pool, 21, &[6; 4 * BLOCK]);
    pool.sync().unwrap();
    while inspector.step().unwrap() {}
    while pool.repair_step(100) > 0 {}
    assert!(!pool.mirrors.degraded());
    assert_eq!(disks[0].content(file), disks[1].content(file));
}
