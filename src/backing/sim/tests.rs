use super::*;

const FILE: FileName = FileName::Segment(SegmentNo(1));
const OTHER: FileName = FileName::Journal;
const PAGE: u64 = node::PAGE_U64;
const SECTOR: usize = node::SECTOR;

/// A disk with an empty durable file.
fn disk(seed: u64) -> (SimWorld, SimDisk) {
    let (world, disk) = SimDisk::single(seed);
    disk.create(FILE).unwrap();
    disk.sync_name(FILE).unwrap();
    disk.sync(FILE).unwrap();
    (world, disk)
}

fn random(rng: &mut SimRng, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    rng.fill(&mut bytes);
    bytes
}

fn put(disk: &SimDisk, offset: u64, bytes: &[u8]) {
    disk.write_at(FILE, offset, &[bytes]).unwrap();
}

fn put_durably(disk: &SimDisk, offset: u64, bytes: &[u8]) {
    put(disk, offset, bytes);
    disk.sync(FILE).unwrap();
}

fn code<T: fmt::Debug>(result: io::Result<T>) -> Option<i32> {
    result.unwrap_err().raw_os_error()
}

#[test]
fn a_read_sees_every_write_before_it_and_ends_with_the_file() {
    let (_world, disk) = disk(1);
    disk.write_at(FILE, 5, &[b"ab", b"", b"cd"]).unwrap();
    let mut buf = [0xff; 12];
    assert_eq!(disk.read_at(FILE, 0, &mut buf).unwrap(), 9);
    assert_eq!(&buf, b"\0\0\0\0\0abcd\xff\xff\xff");
    assert_eq!(disk.read_at(FILE, 9, &mut buf).unwrap(), 0);
    assert_eq!(disk.read_at(FILE, 1000, &mut buf).unwrap(), 0);
    assert_eq!(disk.len(FILE).unwrap(), 9);
    assert_eq!(code(disk.len(OTHER)), Some(libc::ENOENT));
    assert_eq!(code(disk.write_at(OTHER, 0, &[b"x"])), Some(libc::ENOENT));
}

#[test]
fn losing_all_loses_what_was_not_synced_and_nothing_else() {
    let (world, disk) = disk(1);
    put_durably(&disk, 0, &[1; 2048]);
    put(&disk, 1024, &[2; 4096]);
    disk.create(OTHER).unwrap();
    world.power_cycle(PowerLoss::LoseAll);
    assert_eq!(disk.content(FILE).unwrap(), [1; 2048]);
    assert_eq!(disk.files(), [FILE]);
}

#[test]
fn keeping_all_loses_nothing() {
    let (world, disk) = disk(1);
    put_durably(&disk, 0, &[1; 2048]);
    put(&disk, 1024, &[2; 4096]);
    disk.create(OTHER).unwrap();
    let before = disk.content(FILE);
    world.power_cycle(PowerLoss::KeepAll);
    assert_eq!(disk.content(FILE), before);
    assert_eq!(disk.files(), [OTHER, FILE]);
    world.power_cycle(PowerLoss::LoseAll);
    assert_eq!(
        disk.content(FILE),
        before,
        "what survived one crash is durable"
    );
}

#[test]
fn a_new_name_is_durable_only_after_its_sync() {
    let (world, disk) = SimDisk::single(1);
    disk.create(FILE).unwrap();
    put_durably(&disk, 0, b"content alone does not make a name");
    world.power_cycle(PowerLoss::LoseAll);
    assert_eq!(disk.files(), []);
    disk.create(FILE).unwrap();
    disk.sync_name(FILE).unwrap();
    world.power_cycle(PowerLoss::LoseAll);
    assert_eq!(disk.content(FILE).unwrap(), b"");
}

#[test]
fn a_removed_name_comes_back_until_its_removal_is_synced() {
    let (world, disk) = disk(1);
    put_durably(&disk, 0, b"old");
    disk.remove(FILE).unwrap();
    disk.remove(FILE).unwrap();
    disk.create(FILE).unwrap();
    put_durably(&disk, 0, b"new file of that name");
    world.power_cycle(PowerLoss::LoseAll);
    assert_eq!(disk.content(FILE).unwrap(), b"old");
    disk.remove(FILE).unwrap();
    disk.sync_name(FILE).unwrap();
    world.power_cycle(PowerLoss::LoseAll);
    assert_eq!(disk.content(FILE), None);
}

#[test]
fn a_torn_write_is_torn_between_sectors_only() {
    let (mut torn, mut kept, mut lost) = (0, 0, 0);
    for seed in 0..200 {
        let (world, disk) = disk(seed);
        put_durably(&disk, 0, &[1; 16384]);
        put(&disk, 100, &[2; 12000]);
        world.power_cycle(PowerLoss::Random);
        let now = disk.content(FILE).unwrap();
        let mut new = vec![1; 16384];
        new[100..12100].fill(2);
        for (number, sector) in now.chunks(SECTOR).enumerate() {
            let at = number * SECTOR;
            assert!(
                sector == [1; SECTOR] || sector == &new[at..at + SECTOR],
                "seed {seed}"
            );
        }
        match now {
            now if now == new => kept += 1,
            now if now == [1; 16384] => lost += 1,
            _ => torn += 1,
        }
    }
    assert!(torn > 50 && kept > 20 && lost > 20, "{torn} {kept} {lost}");
}

#[test]
fn a_hole_and_a_cut_are_durable_after_the_sync() {
    let (world, disk) = disk(1);
    put_durably(&disk, 0, &[1; 16384]);
    disk.punch(FILE, 4096, 4096).unwrap();
    disk.set_len(FILE, 12288).unwrap();
    let after = [vec![1; 4096], vec![0; 4096], vec![1; 4096]].concat();
    assert_eq!(disk.content(FILE).unwrap(), after);
    let snapshot = disk.snapshot();
    world.power_cycle(PowerLoss::LoseAll);
    assert_eq!(disk.content(FILE).unwrap(), [1; 16384]);
    assert_eq!(disk.allocated(FILE).unwrap(), 16384);
    disk.restore(&snapshot);
    disk.sync(FILE).unwrap();
    world.power_cycle(PowerLoss::LoseAll);
    assert_eq!(disk.content(FILE).unwrap(), after);
    assert_eq!(disk.allocated(FILE).unwrap(), 8192);
}

#[test]
fn cut_bytes_never_come_back_when_the_file_grows_again() {
    for seed in 0..100 {
        let (world, disk) = disk(seed);
        put_durably(&disk, 0, &[1; 16384]);
        disk.set_len(FILE, 1000).unwrap();
        disk.set_len(FILE, 16384).unwrap();
        assert_eq!(disk.content(FILE).unwrap()[1000..], [0; 15384]);
        disk.sync(FILE).unwrap();
        world.power_cycle(PowerLoss::Random);
        assert_eq!(disk.content(FILE).unwrap()[1000..], [0; 15384]);
    }
}

/// Everything that a sector was since the last sync, and every length.
struct Versions {
    live: Vec<u8>,
    durable: Vec<u8>,
    states: Vec<Vec<u8>>,
}

impl Versions {
    fn note(&mut self) {
        self.states.push(self.live.clone());
    }

    fn check(&self, now: &[u8], context: &str) {
        let states = || self.states.iter().chain([&self.durable]);
        assert!(
            states().any(|state| state.len() == now.len()),
            "{context}: length {}",
            now.len()
        );
        for (number, sector) in now.chunks(SECTOR).enumerate() {
            let known = states().any(|state| {
                let at = (number * SECTOR).min(state.len());
                let old = &state[at..(at + sector.len()).min(state.len())];
                sector[..old.len()] == *old && sector[old.len()..].iter().all(|byte| *byte == 0)
            });
            assert!(
                known || sector.iter().all(|byte| *byte == 0),
                "{context}: sector {number}"
            );
        }
    }
}

fn random_change(disk: &SimDisk, model: &mut Vec<u8>, rng: &mut SimRng) {
    const MAX: u64 = 40_000;
    // Aligned half of the time, as most callers are.
    let unit = if rng.coin() { SECTOR as u64 } else { 1 };
    let offset = rng.below(MAX) / unit * unit;
    let len = (rng.below(9000) / unit * unit) as usize;
    match rng.below(10) {
        0 => {
            disk.set_len(FILE, offset).unwrap();
            model.resize(offset as usize, 0);
        }
        1 => {
            disk.punch(FILE, offset, len as u64).unwrap();
            let end = (offset as usize + len).min(model.len());
            model[(offset as usize).min(end)..end].fill(0);
        }
        2 => disk.reserve(FILE, offset, len as u64).unwrap(),
        _ if len > 0 => {
            let bytes = if rng.chance(100_000) {
                vec![0; len]
            } else {
                random(rng, len)
            };
            put(disk, offset, &bytes);
            model.resize(model.len().max(offset as usize + len), 0);
            model[offset as usize..][..len].copy_from_slice(&bytes);
        }
        _ => {}
    }
}

#[test]
fn random_histories_keep_the_contract_of_backing() {
    for seed in 0..400 {
        let (world, disk) = disk(seed);
        let mut rng = SimRng::new(seed ^ 0xabcd);
        if seed % 2 == 0 {
            disk.set_faults(Faults::none().rate(Fault::Writeback, None, 300_000));
        }
        let mut model = Versions {
            live: vec![],
            durable: vec![],
            states: vec![],
        };
        for step in 0..60 {
            let context = format!("seed {seed} step {step}");
            match rng.below(12) {
                0 | 1 => {
                    disk.sync(FILE).unwrap();
                    model.states.clear();
                    model.durable = model.live.clone();
                }
                2 => {
                    let loss =
                        [PowerLoss::KeepAll, PowerLoss::LoseAll, PowerLoss::Random][rng.index(3)];
                    world.power_cycle(loss);
                    let now = disk.content(FILE).unwrap();
                    match loss {
                        PowerLoss::KeepAll => assert!(now == model.live, "{context}"),
                        PowerLoss::LoseAll if seed % 2 == 1 => {
                            assert!(now == model.durable, "{context}");
                        }
                        _ => model.check(&now, &context),
                    }
                    model = Versions {
                        live: now.clone(),
                        durable: now,
                        states: vec![],
                    };
                }
                _ => {
                    random_change(&disk, &mut model.live, &mut rng);
                    model.note();
                }
            }
            assert!(disk.content(FILE).unwrap() == model.live, "{context}");
            assert_eq!(disk.damaged_ranges(), [], "{context}");
            let used = disk.state().store.used();
            assert!(used <= 49_152 + 4096, "{context}: {used}");
        }
        disk.sync(FILE).unwrap();
        disk.set_len(FILE, 0).unwrap();
        disk.sync(FILE).unwrap();
        assert_eq!(disk.allocated(FILE).unwrap(), 0, "seed {seed}");
    }
}

#[test]
fn damaged_ranges_are_exactly_the_bytes_that_are_wrong() {
    let mut seen = 0;
    for seed in 0..300 {
        let (_world, disk) = disk(seed);
        let mut rng = SimRng::new(seed ^ 0x1234);
        let faults = Faults::none()
            .rate(Fault::LostWrite, None, 100_000)
            .rate(Fault::MisdirectedWrite, FileClass::Segment, 100_000)
            .rate(Fault::BitRot, None, 200_000);
        disk.set_faults(faults);
        let mut model = Vec::new();
        for _ in 0..40 {
            random_change(&disk, &mut model, &mut rng);
            let mut buf = [0; 512];
            disk.read_at(FILE, rng.below(40_000), &mut buf).unwrap();
            if rng.chance(300_000) {
                disk.corrupt(FILE, rng.below(40_000), rng.below(2000));
            }
            if rng.chance(300_000) {
                disk.sync(FILE).unwrap();
                let now = disk.content(FILE).unwrap();
                assert_eq!(now.len(), model.len());
                let mut marked = vec![false; now.len()];
                for (file, range) in disk.damaged_ranges() {
                    assert_eq!(file, FILE);
                    marked[range.start as usize..range.end as usize].fill(true);
                }
                let wrong: Vec<bool> = now.iter().zip(&model).map(|(a, b)| a != b).collect();
                assert!(marked == wrong, "seed {seed}");
                seen += usize::from(wrong.contains(&true));
            }
        }
        // A repair: what should be there, written again.
        disk.set_faults(Faults::none());
        put_durably(&disk, 0, &model);
        assert_eq!(disk.damaged_ranges(), [], "seed {seed}");
    }
    assert!(seen > 100);
}

#[test]
fn the_same_seed_gives_the_same_history() {
    let history = |seed: u64| {
        let (world, disk) = disk(seed);
        let faults = Faults::none()
            .rate(Fault::LostWrite, None, 50_000)
            .rate(Fault::ReadError, None, 50_000)
            .rate(Fault::SyncError, None, 50_000);
        disk.set_faults(faults);
        let mut rng = SimRng::new(3);
        let mut log = Vec::new();
        for step in 0..200 {
            let bytes = random(&mut rng, 3000);
            let _ = disk.write_at(FILE, rng.below(20_000), &[&bytes]);
            let mut buf = [0; 100];
            log.push(format!("{:?}", disk.read_at(FILE, 0, &mut buf)));
            log.push(format!("{:?}", disk.sync(FILE)));
            if step % 50 == 49 {
                world.power_cycle(PowerLoss::Random);
            }
        }
        (
            log,
            disk.content(FILE),
            disk.damaged_ranges(),
            disk.injected(),
            world.operations(),
        )
    };
    assert_eq!(history(5), history(5));
    assert_ne!(history(5), history(6));
}

#[test]
fn a_full_disk_says_so_and_deleting_makes_room() {
    let (_world, disk) = disk(1);
    disk.set_capacity(8 * PAGE);
    put_durably(&disk, 0, &[1; 7 * PAGE as usize]);
    assert_eq!(
        disk.space().unwrap(),
        Space {
            total: 8 * PAGE,
            available: PAGE
        }
    );
    assert_eq!(
        code(disk.write_at(FILE, 7 * PAGE, &[&[2; 10_000]])),
        Some(libc::ENOSPC)
    );
    assert_eq!(disk.len(FILE).unwrap(), 8 * PAGE, "what fitted is there");
    put(&disk, 0, &[3; PAGE as usize]);
    disk.create(OTHER).unwrap();
    assert_eq!(code(disk.reserve(OTHER, 0, 1)), Some(libc::ENOSPC));
    assert_eq!(disk.allocated(OTHER).unwrap(), 0);
    disk.punch(FILE, PAGE, 2 * PAGE).unwrap();
    assert_eq!(disk.space().unwrap().available, 2 * PAGE);
    disk.reserve(OTHER, 0, 2 * PAGE).unwrap();
    assert_eq!(disk.len(OTHER).unwrap(), 0);
    disk.write_at(OTHER, 0, &[&[4; 2 * PAGE as usize]]).unwrap();
    assert_eq!(
        code(disk.write_at(OTHER, 2 * PAGE, &[b"x"])),
        Some(libc::ENOSPC)
    );
    disk.remove(FILE).unwrap();
    disk.write_at(OTHER, 2 * PAGE, &[&[4; 6 * PAGE as usize]])
        .unwrap();
}

#[test]
fn what_a_crash_brings_back_fits_on_the_disk() {
    for seed in 0..300 {
        let (world, disk) = disk(seed);
        let mut rng = SimRng::new(seed);
        disk.set_capacity(16 * PAGE);
        for _ in 0..60 {
            let file = if rng.coin() { FILE } else { OTHER };
            let (page, pages) = (rng.below(12), 1 + rng.below(6));
            let _ = match rng.below(8) {
                0 => disk.remove(file),
                1 => disk.create(file),
                2 => disk.sync(file),
                3 => disk.sync_name(file),
                4 => disk.punch(file, page * PAGE, pages * PAGE),
                5 => disk.set_len(file, page * PAGE),
                _ => disk.write_at(file, page * PAGE, &[&vec![1; (pages * PAGE) as usize]]),
            };
            if rng.chance(100_000) {
                world.power_cycle(PowerLoss::Random);
            }
            let used = disk.state().store.used();
            assert!(used <= 16 * PAGE, "seed {seed}: {used}");
        }
    }
}

#[test]
fn bit_rot_changes_one_bit_and_reports_it() {
    let (_world, disk) = disk(1);
    put_durably(&disk, 0, &[0; 8192]);
    disk.set_faults(Faults::none().once(Fault::BitRot, FileClass::Segment, 1));
    let mut buf = [0; 4096];
    disk.read_at(FILE, 4096, &mut buf).unwrap();
    assert_eq!(buf, [0; 4096]);
    disk.read_at(FILE, 4096, &mut buf).unwrap();
    assert_eq!(buf.iter().map(|byte| byte.count_ones()).sum::<u32>(), 1);
    let at = 4096 + buf.iter().position(|byte| *byte != 0).unwrap() as u64;
    assert_eq!(disk.damaged_ranges(), [(FILE, at..at + 1)]);
    assert_eq!(disk.injected()[&Fault::BitRot], 1);
    disk.rot(20);
    assert!(disk.damaged_ranges().len() > 10);
}

#[test]
fn corrupting_changes_exactly_the_range() {
    let (_world, disk) = disk(1);
    put_durably(&disk, 0, &[7; 8192]);
    disk.corrupt(FILE, 1000, 3000);
    assert_eq!(disk.damaged_ranges(), [(FILE, 1000..4000)]);
    let now = disk.content(FILE).unwrap();
    assert!(now[1000..4000].iter().all(|byte| *byte != 7));
    assert!(
        now[..1000]
            .iter()
            .chain(&now[4000..])
            .all(|byte| *byte == 7)
    );
    put_durably(&disk, 1000, &[7; 1000]);
    assert_eq!(disk.damaged_ranges(), [(FILE, 2000..4000)]);
}

#[test]
fn the_page_cache_can_hide_damage_that_the_medium_shows() {
    let (_world, disk) = disk(1);
    put_durably(&disk, 0, &[7; 8192]);
    disk.corrupt_under_cache(FILE, 0, 4096);
    let mut buf = [0; 4096];
    disk.read_at(FILE, 0, &mut buf).unwrap();
    assert_eq!(buf, [7; 4096]);
    assert_eq!(disk.damaged_ranges(), [(FILE, 0..4096)]);
    disk.read_medium(FILE, 0, &mut buf).unwrap();
    assert!(buf.iter().all(|byte| *byte != 7));
    disk.read_at(FILE, 0, &mut buf).unwrap();
    assert!(
        buf.iter().all(|byte| *byte != 7),
        "and then it has been dropped"
    );
}

#[test]
fn a_lost_write_is_acknowledged_and_absent() {
    let (_world, disk) = disk(1);
    put_durably(&disk, 0, &[1; 4096]);
    disk.set_faults(Faults::none().once(Fault::LostWrite, FileClass::Segment, 0));
    put_durably(&disk, 512, &[2; 1024]);
    assert_eq!(disk.content(FILE).unwrap(), [1; 4096]);
    let mut buf = [0; 4096];
    disk.read_medium(FILE, 0, &mut buf).unwrap();
    assert_eq!(buf, [1; 4096]);
    assert_eq!(disk.damaged_ranges(), [(FILE, 512..1536)]);
    assert!(disk.faults().once.is_empty());
    put_durably(&disk, 512, &[2; 1024]);
    assert_eq!(disk.damaged_ranges(), []);
}

#[test]
fn a_misdirected_write_is_missing_here_and_too_much_there() {
    for seed in 0..50 {
        let (_world, disk) = disk(seed);
        put_durably(&disk, 0, &[1; 32768]);
        disk.set_faults(Faults::none().once(Fault::MisdirectedWrite, FileClass::Segment, 0));
        put_durably(&disk, 8192, &[2; 1024]);
        let now = disk.content(FILE).unwrap();
        assert_eq!(now[8192..9216], [1; 1024]);
        let stray: Vec<usize> = (0..64).filter(|at| now[at * SECTOR] == 2).collect();
        assert!(stray.len() <= 2, "seed {seed}");
        let damaged: u64 = disk
            .damaged_ranges()
            .iter()
            .map(|it| it.1.end - it.1.start)
            .sum();
        assert_eq!(damaged as usize, (2 + stray.len()) * SECTOR, "seed {seed}");
    }
}

#[test]
fn errors_strike_the_class_and_the_operation_they_were_planned_for() {
    let (_world, disk) = disk(1);
    disk.create(OTHER).unwrap();
    let faults = Faults::none()
        .once(Fault::ReadError, FileClass::Segment, 0)
        .once(Fault::WriteError, FileClass::Segment, 1)
        .once(Fault::SyncError, FileClass::Journal, 0);
    disk.set_faults(faults);
    let mut buf = [0; 8];
    disk.read_at(OTHER, 0, &mut buf).unwrap();
    assert_eq!(code(disk.read_at(FILE, 0, &mut buf)), Some(libc::EIO));
    disk.read_at(FILE, 0, &mut buf).unwrap();
    put(&disk, 0, &[1; 4096]);
    assert_eq!(code(disk.write_at(FILE, 0, &[&[2; 4096]])), Some(libc::EIO));
    put_durably(&disk, 0, &[3; 4096]);
    assert_eq!(code(disk.sync(OTHER)), Some(libc::EIO));
    disk.sync(OTHER).unwrap();
    assert_eq!(disk.injected().values().sum::<u64>(), 3);
}

#[test]
fn after_a_failed_sync_the_next_one_succeeds_and_data_may_be_gone() {
    let mut gone = 0;
    for seed in 0..40 {
        let (_world, disk) = disk(seed);
        put_durably(&disk, 0, &[1; 8192]);
        disk.set_faults(Faults::none().once(Fault::SyncError, None, 0));
        put(&disk, 0, &[2; 8192]);
        assert_eq!(code(disk.sync(FILE)), Some(libc::EIO));
        disk.sync(FILE).unwrap();
        gone += usize::from(disk.content(FILE).unwrap() != [2; 8192]);
    }
    assert!(gone > 30);
}

#[test]
fn a_short_read_returns_less_than_there_is() {
    let (_world, disk) = disk(1);
    put_durably(&disk, 0, &[1; 4096]);
    disk.set_faults(Faults::none().once(Fault::ShortRead, None, 0));
    let mut buf = [0; 4096];
    assert!(disk.read_at(FILE, 0, &mut buf).unwrap() < 4096);
    assert_eq!(disk.read_at(FILE, 0, &mut buf).unwrap(), 4096);
}

#[test]
fn failed_sectors_cannot_be_read_until_they_are_written() {
    let (_world, disk) = disk(1);
    put_durably(&disk, 0, &[1; 8192]);
    disk.fail_sectors(FILE, 4096, 512);
    let mut buf = [0; 4096];
    assert_eq!(disk.read_at(FILE, 0, &mut buf).unwrap(), 4096);
    assert_eq!(code(disk.read_at(FILE, 4096, &mut buf)), Some(libc::EIO));
    assert_eq!(disk.damaged_ranges(), [(FILE, 4096..4608)]);
    put_durably(&disk, 4096, &[1; 512]);
    assert_eq!(disk.read_medium(FILE, 4096, &mut buf).unwrap(), 4096);
    assert_eq!(disk.damaged_ranges(), []);
}

#[test]
fn a_file_deleted_or_cut_by_damage_counts_with_what_is_missing() {
    let (world, disk) = disk(1);
    put_durably(&disk, 0, &[1; 8192]);
    disk.truncate(FILE, 5000);
    assert_eq!(disk.len(FILE).unwrap(), 5000);
    assert_eq!(disk.damaged_ranges(), [(FILE, 5000..8192)]);
    put_durably(&disk, 5000, &[1; 3192]);
    assert_eq!(disk.damaged_ranges(), []);
    disk.delete(FILE);
    assert_eq!(code(disk.len(FILE)), Some(libc::ENOENT));
    world.power_cycle(PowerLoss::KeepAll);
    assert_eq!(disk.damaged_ranges(), [(FILE, 0..8192)]);
    disk.create(FILE).unwrap();
    disk.sync_name(FILE).unwrap();
    assert_eq!(disk.damaged_ranges(), [(FILE, 0..8192)]);
    put_durably(&disk, 0, &[1; 4096]);
    assert_eq!(disk.damaged_ranges(), [(FILE, 4096..8192)]);
    put_durably(&disk, 4096, &[1; 4096]);
    assert_eq!(disk.damaged_ranges(), []);
}

#[test]
fn from_the_chosen_operation_on_everything_fails_on_all_disks() {
    let world = SimWorld::new(9);
    let (a, b) = (world.disk("a"), world.disk("b"));
    a.create(FILE).unwrap();
    b.create(FILE).unwrap();
    assert_eq!((world.operations(), a.operations()), (2, 1));
    world.crash_at(4);
    a.sync_name(FILE).unwrap();
    let error = b.sync_name(FILE).unwrap_err();
    assert!(is_power_off(&error) && caused_by_power_off(&error));
    assert!(is_power_off(&a.len(FILE).unwrap_err()));
    assert!(!world.is_powered());
    world.power_cycle(PowerLoss::LoseAll);
    assert_eq!(a.len(FILE).unwrap(), 0);
    assert_eq!(code(b.len(FILE)), Some(libc::ENOENT));
    assert!(!is_power_off(&b.len(FILE).unwrap_err()));
}

#[test]
fn looking_is_no_change() {
    let (world, disk) = disk(1);
    let changes = world.changes();
    world.crash_at_change(changes + 1);
    let mut buf = [0; 8];
    disk.read_at(FILE, 0, &mut buf).unwrap();
    disk.segments().unwrap();
    assert_eq!(world.changes(), changes);
    assert!(is_power_off(&disk.write_at(FILE, 0, &[b"x"]).unwrap_err()));
}

#[test]
fn a_plugged_handle_dies_with_the_power() {
    let (world, disk) = disk(1);
    let plugged = disk.plug();
    plugged.write_at(FILE, 0, &[b"x"]).unwrap();
    world.power_cycle(PowerLoss::KeepAll);
    assert!(is_power_off(
        &plugged.clone().write_at(FILE, 0, &[b"y"]).unwrap_err()
    ));
    assert!(world.is_powered());
    assert_eq!(disk.plug().len(FILE).unwrap(), 1);
}

#[test]
fn each_disk_can_have_a_fate_of_its_own() {
    let world = SimWorld::new(1);
    let (a, b) = (world.disk("a"), world.disk("b"));
    for disk in [&a, &b] {
        disk.create(FILE).unwrap();
    }
    b.set_power_loss(Some(PowerLoss::LoseAll));
    world.power_cycle(PowerLoss::KeepAll);
    assert_eq!((a.files().len(), b.files().len()), (1, 0));
    a.detach();
    assert_eq!(code(a.len(FILE)), Some(libc::ENODEV));
    a.attach();
    a.len(FILE).unwrap();
    a.wipe();
    assert_eq!(a.files(), []);
    assert_eq!(a.segments().unwrap(), []);
}

#[test]
fn time_passes_without_waiting() {
    let (world, disk) = disk(1);
    let latency = Latency {
        sync: Duration::from_secs(60),
        ..Latency::default()
    };
    disk.set_faults(Faults::none().latency(latency));
    let before = world.now();
    disk.sync(FILE).unwrap();
    disk.len(FILE).unwrap();
    assert_eq!(world.now() - before, Duration::from_secs(60));
}

#[test]
fn a_read_with_a_deadline_ends_there_and_one_without_does_not() {
    let (world, disk) = disk(1);
    put(&disk, 0, &[7; 512]);
    let latency = Latency {
        read: Duration::from_secs(60),
        ..Latency::default()
    };
    disk.set_faults(Faults::none().latency(latency));
    let read = |deadline: u64| {
        let (before, mut buf) = (world.now(), [0; 512]);
        let got = disk.read_at_within(FILE, 0, &mut buf, Duration::from_secs(deadline));
        let got = got.map(|got| (got, buf[0])).map_err(|error| error.kind());
        (got, world.now() - before)
    };
    let late = Err(io::ErrorKind::TimedOut);
    assert_eq!(read(10), (late, Duration::from_secs(10)));
    assert_eq!(read(60), (Ok((512, 7)), Duration::from_secs(60)));
    disk.set_faults(Faults::none().once(Fault::SlowRead, None, 0));
    let mut buf = [0; 512];
    assert_eq!(disk.read_at(FILE, 0, &mut buf).unwrap(), 512);
    assert_eq!(read(10), (late, Duration::from_secs(10)));
    assert_eq!(read(10), (Ok((512, 7)), Duration::ZERO));
}

#[test]
fn a_snapshot_brings_everything_back() {
    let (world, disk) = disk(1);
    put(&disk, 0, &[1; 5000]);
    let snapshot = disk.snapshot();
    for _ in 0..2 {
        put_durably(&disk, 0, &[2; 9000]);
        disk.create(OTHER).unwrap();
        disk.restore(&snapshot);
        assert_eq!(disk.content(FILE).unwrap(), [1; 5000]);
        assert_eq!(disk.files(), [FILE]);
    }
    world.power_cycle(PowerLoss::LoseAll);
    assert_eq!(
        disk.content(FILE).unwrap(),
        b"",
        "unsynced it was, unsynced it is again"
    );
}

#[test]
fn zeroed_files_are_cheap() {
    let zeros = vec![0; 1 << 20];
    for seed in 0..2000 {
        let (world, disk) = disk(seed);
        put_durably(&disk, 0, &zeros);
        disk.sync_name(FILE).unwrap();
        world.power_cycle(PowerLoss::Random);
        assert_eq!(disk.allocated(FILE).unwrap(), 1 << 20);
    }
}

#[test]
fn what_was_synced_survives_every_crash_whatever_happens_beside_it() {
    for seed in 0..200 {
        let (world, disk) = disk(seed);
        let mut rng = SimRng::new(seed);
        disk.set_capacity(24 * PAGE);
        let bytes = random(&mut rng, 9000);
        put_durably(&disk, 100, &bytes);
        for _ in 0..30 {
            let file = FileName::Segment(SegmentNo(2 + rng.below(3)));
            let _ = match rng.below(6) {
                0 => disk.remove(file),
                1 => disk.sync(file),
                2 => disk.sync_name(file),
                3 => disk.create(file),
                _ => disk.write_at(file, rng.below(9) * PAGE, &[&[9; 20_000]]),
            };
            put(&disk, 20_000, &random(&mut rng, 700));
        }
        world.power_cycle(PowerLoss::Random);
        let now = disk.content(FILE).unwrap();
        assert!(now[100..9100] == bytes, "seed {seed}");
    }
}

#[test]
fn removing_a_file_that_damage_deleted_ends_the_damage() {
    let (_world, disk) = disk(1);
    put_durably(&disk, 0, &[1; 8192]);
    disk.delete(FILE);
    disk.remove(FILE).unwrap();
    assert_eq!(disk.damaged_ranges(), []);
}
