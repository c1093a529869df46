//! Each promise of DESIGN.md by itself, in a small scene. The random histories and the crash sweep
//! test them all together; these say at once which one is broken.

use std::collections::BTreeMap;
use std::io;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use mendfs::backing::sim::{Fault, Faults, FileClass, Latency, PowerLoss};
use mendfs::backing::{Backing, FileName, Space};
use mendfs::format::{Ino, SegmentNo};
use mendfs::mirrors::READ_DEADLINE;
use mendfs::pool::PoolError;
use mendfs::pool::status::{MirrorState, PoolState};
use mendfs::vfs::{Caller, SetAttr, VfsError};
use nix::errno::Errno;
use parking_lot::Mutex;

use super::execute::look;
use super::machine::{Config, Machine};
use super::ops::bytes;

const BLOCK: usize = 4096;

pub(crate) fn mounted(config: Config) -> Machine {
    let mut machine = Machine::new(1, config);
    machine.mount().expect("a new pool mounts");
    machine
}

pub(crate) fn create(machine: &Machine, name: &str) -> Ino {
    let caller = Caller::default();
    let attr = machine
        .vfs()
        .mknod(&caller, Ino::ROOT, name.as_bytes(), 0o100_644, 0)
        .expect("mknod");
    attr.ino
}

fn unlink(machine: &Machine, name: &str, ino: Ino) {
    machine
        .vfs()
        .unlink(&Caller::default(), Ino::ROOT, name.as_bytes())
        .expect("deleting always works");
    machine.vfs().forget(ino, 1);
}

pub(crate) fn write(machine: &Machine, ino: Ino, offset: u64, data: &[u8]) {
    let written = machine
        .vfs()
        .write(ino, offset, data, false)
        .expect("write");
    assert_eq!(written, data.len());
}

fn read(machine: &Machine, ino: Ino, offset: u64, len: usize) -> Result<Vec<u8>, VfsError> {
    let mut out = Vec::new();
    machine.vfs().read(ino, offset, len, &mut out)?;
    Ok(out)
}

pub(crate) fn sync(machine: &Machine) {
    machine.vfs().fsync(Ino::ROOT, false).expect("fsync");
}

/// Where a block of a file lies.
pub(crate) fn place(machine: &Machine, ino: Ino, block: u64) -> (FileName, u64) {
    let at = block * BLOCK as u64;
    let rows = machine.pool().extents(ino, at, at + 1).expect("extents");
    let (start, row) = &rows[0];
    (
        FileName::Segment(row.segment),
        u64::from(row.offset) + at - start,
    )
}

#[test]
fn p1_a_block_damaged_on_all_mirrors_fails_alone_and_no_bad_byte_is_served() {
    let machine = mounted(Config::default());
    let (ino, data) = (create(&machine, "f"), bytes(5, 40 * BLOCK));
    write(&machine, ino, 0, &data);
    sync(&machine);
    machine.pool().checkpoint().expect("checkpoint");
    let (file, offset) = place(&machine, ino, 17);
    for disk in &machine.disks {
        disk.corrupt(file, offset + 1000, 1);
    }
    for block in 0..40 {
        let result = read(&machine, ino, (block * BLOCK) as u64, BLOCK);
        match result {
            Ok(read) => assert!(block != 17 && read == data[block * BLOCK..][..BLOCK]),
            Err(error) => assert_eq!((block, error.errno()), (17, Errno::EIO)),
        }
    }
    assert_eq!(machine.pool().status().state, PoolState::Damaged);
}

/// One sector that each disk cannot read, in different blocks of one extent.
#[test]
fn p1_p4_a_bad_sector_on_each_mirror_costs_no_block_but_its_own() {
    for checked in [false, true] {
        let mut machine = mounted(Config::default());
        let (ino, data) = (create(&machine, "f"), bytes(5, 150 * BLOCK));
        write(&machine, ino, 0, &data);
        sync(&machine);
        machine.pool().checkpoint().expect("checkpoint");
        for (disk, blocks) in machine.disks.iter().zip([[7, 70], [100, 149]]) {
            for block in blocks {
                let (file, offset) = place(&machine, ino, block);
                disk.fail_sectors(file, offset + 1024, 512);
            }
            disk.drop_caches();
        }
        if checked {
            assert_eq!(machine.verify().expect("verify"), [""; 0]);
            let repaired = [0, 1].map(|mirror| machine.status_of(mirror).repaired);
            assert_eq!(repaired, [2, 2], "no block but those was bad");
        }
        assert_eq!(read(&machine, ino, 0, data.len()).expect("read"), data);
        machine.repair();
        machine.close().expect("unmount");
        for alone in [0, 1] {
            machine.present = vec![alone == 0, alone == 1];
            let kept = machine.snapshots();
            machine.mount().expect("one mirror is enough");
            assert_eq!(read(&machine, ino, 0, data.len()).expect("read"), data);
            machine.kill();
            machine.restore(&kept);
        }
    }
}

/// One sector of the journal and of the superblock that each disk cannot read, not the same ones,
/// after a crash.
#[test]
fn p2_a_bad_sector_of_the_journal_on_each_mirror_loses_nothing_that_was_synced() {
    for cut in 0..8 {
        let mut machine = mounted(Config::default());
        let mut written = Vec::new();
        for number in 0..20 {
            let (ino, data) = (create(&machine, &format!("f{number}")), bytes(number, 6000));
            write(&machine, ino, 0, &data);
            sync(&machine);
            written.push((ino, data));
        }
        machine.crash(PowerLoss::LoseAll);
        for (number, disk) in machine.disks.iter().enumerate() {
            let at = ((2 * cut + 12 * number) * BLOCK) as u64;
            disk.fail_sectors(FileName::Journal, at + 512, 512);
            // A new pool's second slot may be needed as it is.
            disk.fail_sectors(
                FileName::Superblock,
                ((number + cut) % 2 * BLOCK) as u64,
                512,
            );
        }
        machine.mount().expect("all is on one of them");
        for (ino, data) in &written {
            assert_eq!(&read(&machine, *ino, 0, data.len()).expect("read"), data);
        }
    }
}

#[test]
fn p2_what_was_synced_survives_with_either_mirror_alone() {
    for gone in [0, 1] {
        for small in [true, false] {
            let mut machine = mounted(Config::default());
            let data = bytes(5, if small { 5000 } else { 600_000 });
            let ino = create(&machine, "f");
            write(&machine, ino, 0, &data);
            sync(&machine);
            write(&machine, ino, 0, b"nobody asked for this");
            machine.crash(PowerLoss::LoseAll);
            machine.present[gone] = false;
            machine.mount().expect("one mirror is enough");
            let there = read(&machine, ino, 0, data.len()).expect("read");
            assert!(there == data || there[..6] == *b"nobody" && there[21..] == data[21..]);
        }
    }
}

#[test]
fn p4_a_repair_brings_the_right_bytes_back_to_the_medium() {
    let machine = mounted(Config::default());
    let (ino, data) = (create(&machine, "f"), bytes(5, 100 * BLOCK));
    write(&machine, ino, 0, &data);
    sync(&machine);
    machine.pool().checkpoint().expect("checkpoint");
    for (mirror, disk) in machine.disks.iter().enumerate() {
        let (file, offset) = place(&machine, ino, 3);
        disk.corrupt(file, offset, 3 * BLOCK as u64);
        assert_eq!(disk.damaged_ranges().len(), 1);
        assert_eq!(read(&machine, ino, 0, data.len()).expect("read"), data);
        assert_eq!(machine.verify().expect("verify"), [""; 0]);
        assert_eq!(disk.damaged_ranges(), []);
        let status = machine.status_of(mirror);
        assert_eq!((status.checksum_errors, status.repaired), (3, 3));
    }
}

#[test]
fn p4_an_older_copy_is_not_a_good_one() {
    // A write that a mirror loses leaves what was there before: older, and whole in itself.
    for class in [FileClass::Index, FileClass::Sums, FileClass::Segment] {
        for victim in [0, 1] {
            for skip in 0..6 {
                let mut machine = mounted(Config::default());
                for round in 0..4 {
                    let ino = create(&machine, &format!("f{round}"));
                    write(&machine, ino, 0, &bytes(5 + round, 9000));
                    if round == 3 {
                        let faults = Faults::none().once(Fault::LostWrite, class, skip);
                        machine.disks[victim].set_faults(faults);
                    }
                    machine.pool().checkpoint().expect("checkpoint");
                }
                machine.disks[victim].set_faults(Faults::none());
                let tree = look(machine.vfs()).expect("all is readable");
                machine.close().expect("unmount");
                machine.mount().expect("mount");
                assert_eq!(look(machine.vfs()).as_ref(), Ok(&tree), "{class:?} {skip}");
                assert_eq!(machine.verify().expect("verify"), [""; 0]);
                machine.present[1 - victim] = false;
                machine.close().expect("unmount");
                machine.mount().expect("mount");
                assert_eq!(look(machine.vfs()).as_ref(), Ok(&tree), "{class:?} {skip}");
            }
        }
    }
}

/// What was written to the segments of each mirror, by its label.
type Written = Arc<Mutex<BTreeMap<(String, FileName), Vec<Range<u64>>>>>;

/// A mirror that is watched: no byte of a segment may be written a second time.
#[derive(Debug)]
struct Watched {
    under: Arc<dyn Backing>,
    written: Written,
    twice: Arc<Mutex<Vec<String>>>,
}

impl Backing for Watched {
    fn label(&self) -> String {
        self.under.label()
    }
    fn create(&self, file: FileName) -> io::Result<()> {
        self.under.create(file)
    }
    fn len(&self, file: FileName) -> io::Result<u64> {
        self.under.len(file)
    }
    fn allocated(&self, file: FileName) -> io::Result<u64> {
        self.under.allocated(file)
    }
    fn read_at(&self, file: FileName, offset: u64, buf: &mut [u8]) -> io::Result<usize> {
        self.under.read_at(file, offset, buf)
    }
    fn read_medium(&self, file: FileName, offset: u64, buf: &mut [u8]) -> io::Result<usize> {
        self.under.read_medium(file, offset, buf)
    }
    fn forget_cached(&self, file: FileName) -> io::Result<()> {
        self.under.forget_cached(file)
    }
    fn write_at(&self, file: FileName, offset: u64, buffers: &[&[u8]]) -> io::Result<()> {
        if matches!(file, FileName::Segment(_)) {
            let len: usize = buffers.iter().map(|buffer| buffer.len()).sum();
            let range = offset..offset + len as u64;
            let mut written = self.written.lock();
            let ranges = written.entry((self.label(), file)).or_default();
            if ranges
                .iter()
                .any(|old| old.start < range.end && range.start < old.end)
            {
                self.twice.lock().push(format!("{file} {range:?}"));
            }
            ranges.push(range);
        }
        self.under.write_at(file, offset, buffers)
    }
    fn set_len(&self, file: FileName, len: u64) -> io::Result<()> {
        if matches!(file, FileName::Segment(_)) {
            self.twice.lock().push(format!("{file} cut to {len}"));
        }
        self.under.set_len(file, len)
    }
    fn reserve(&self, file: FileName, offset: u64, len: u64) -> io::Result<()> {
        self.under.reserve(file, offset, len)
    }
    fn punch(&self, file: FileName, offset: u64, len: u64) -> io::Result<()> {
        self.under.punch(file, offset, len)
    }
    fn sync(&self, file: FileName) -> io::Result<()> {
        self.under.sync(file)
    }
    fn sync_name(&self, file: FileName) -> io::Result<()> {
        self.under.sync_name(file)
    }
    fn remove(&self, file: FileName) -> io::Result<()> {
        self.under.remove(file)
    }
    fn set_aside(&self) -> io::Result<()> {
        self.under.set_aside()
    }

    fn forget_aside(&self) -> io::Result<()> {
        self.under.forget_aside()
    }

    fn segments(&self) -> io::Result<Vec<SegmentNo>> {
        self.under.segments()
    }
    fn space(&self) -> io::Result<Space> {
        self.under.space()
    }
}

#[test]
fn p5_live_data_is_never_overwritten_in_place() {
    let mut machine = Machine::new(1, Config::default());
    let twice = Arc::new(Mutex::new(Vec::new()));
    let written = Written::default();
    for _ in 0..4 {
        let seen = Arc::clone(&twice);
        machine
            .mount_over(&mut |under| {
                Arc::new(Watched {
                    under,
                    written: Arc::clone(&written),
                    twice: Arc::clone(&seen),
                })
            })
            .expect("mount");
        let ino = create(&machine, &format!("f{}", machine.pool().lsn().0));
        for round in 0..40 {
            write(
                &machine,
                ino,
                round * 3000 % 50_000,
                &bytes(5 + round, 7000),
            );
            if round % 7 == 0 {
                sync(&machine);
            }
            if round % 10 == 0 {
                machine.pool().checkpoint().expect("checkpoint");
                machine.reclaim().expect("reclaim");
            }
        }
        machine.close().expect("unmount");
    }
    assert_eq!(*twice.lock(), [""; 0]);
}

#[test]
fn p5_a_checkpoint_leaves_the_index_before_it_intact_but_for_page_0() {
    let mut machine = mounted(Config::default());
    for round in 0..20 {
        let ino = create(&machine, &format!("f{round}"));
        write(&machine, ino, 0, &bytes(round, 5000));
        machine.pool().checkpoint().expect("checkpoint");
        let before = look(machine.vfs()).expect("readable");
        machine.kill();
        let old = machine.snapshots();
        machine.mount().expect("mount");
        for number in 0..30 {
            create(&machine, &format!("g{round}-{number}"));
        }
        machine.pool().checkpoint().expect("checkpoint");
        machine.kill();
        let new = machine.snapshots();
        let pages: Vec<_> = machine
            .disks
            .iter()
            .map(|disk| disk.content(FileName::Index).expect("an index"))
            .collect();
        // Everything old, but the pages of the index new, except page 0.
        machine.restore(&old);
        for (disk, pages) in machine.disks.iter().zip(&pages) {
            let len = disk.len(FileName::Index).expect("an index") as usize;
            let (from, to) = (BLOCK, len.min(pages.len()));
            disk.write_at(FileName::Index, from as u64, &[&pages[from..to]])
                .expect("write");
            disk.settle();
        }
        machine.mount().expect("mount");
        assert_eq!(look(machine.vfs()), Ok(before), "round {round}");
        machine.kill();
        machine.restore(&new);
        machine.mount().expect("mount");
    }
}

#[test]
fn p6_a_mirror_that_missed_a_write_is_never_read_again() {
    let mut machine = mounted(Config::default());
    let ino = create(&machine, "f");
    write(&machine, ino, 0, &[1; 9000]);
    machine.close().expect("unmount");
    machine.present[1] = false;
    machine.mount().expect("mount");
    write(&machine, ino, 0, &[2; 9000]);
    machine.close().expect("unmount");
    // Both, either alone.
    machine.present[1] = true;
    machine.mount().expect("mount");
    assert_eq!(machine.pool().status().state, PoolState::Degraded);
    assert_eq!(machine.status_of(1).state, MirrorState::Offline);
    assert_eq!(read(&machine, ino, 0, 9000).expect("read"), [2; 9000]);
    write(&machine, ino, 0, &[3; 100]);
    machine.close().expect("unmount");
    machine.mount().expect("mount");
    assert_eq!(machine.status_of(1).state, MirrorState::Offline);
    assert_eq!(read(&machine, ino, 0, 100).expect("read"), [3; 100]);
}

#[test]
fn p6_a_mirror_that_failed_a_write_is_out_on_the_media_before_the_next_is_acknowledged() {
    for (fault, victim) in [
        (Fault::WriteError, 0),
        (Fault::WriteError, 1),
        (Fault::SyncError, 0),
        (Fault::SyncError, 1),
    ] {
        for skip in 0..4 {
            let mut machine = mounted(Config::default());
            let ino = create(&machine, "f");
            write(&machine, ino, 0, &[1; 9000]);
            sync(&machine);
            let faults = Faults::none().once(fault, None, skip);
            machine.disks[victim].set_faults(faults);
            for round in 2..9 {
                write(&machine, ino, 0, &[round; 9000]);
                sync(&machine);
            }
            assert_eq!(machine.status_of(victim).state, MirrorState::Failed);
            machine.crash(PowerLoss::LoseAll);
            machine.mount().expect("mount");
            assert_eq!(machine.status_of(victim).state, MirrorState::Offline);
            assert_eq!(read(&machine, ino, 0, 9000).expect("read"), [8; 9000]);
        }
    }
}

#[test]
fn p6_mirrors_that_each_went_on_alone_are_refused_together() {
    let mut machine = mounted(Config::default());
    create(&machine, "f");
    machine.close().expect("unmount");
    for alone in [0, 1] {
        machine.present = vec![alone == 0, alone == 1];
        machine.mount().expect("one mirror mounts");
        create(&machine, &format!("only on {alone}"));
        machine.close().expect("unmount");
    }
    machine.present = vec![true, true];
    let before: Vec<_> = machine
        .disks
        .iter()
        .map(|disk| disk.content(FileName::Superblock))
        .collect();
    let refused = machine.mount().expect_err("split-brain");
    assert!(
        refused.contains("split-brain: a and b") && refused.contains("5 records that b lacks"),
        "{refused}"
    );
    let after: Vec<_> = machine
        .disks
        .iter()
        .map(|disk| disk.content(FileName::Superblock))
        .collect();
    assert_eq!(before, after, "a refused mount changes nothing");
}

#[test]
fn p7_on_a_full_pool_deleting_truncating_and_unmounting_work() {
    let config = Config {
        journal: 256 << 10,
        capacity: Some(6 << 20),
        ..Config::default()
    };
    let mut machine = mounted(config);
    for round in 0..3 {
        let mut files = Vec::new();
        let full = loop {
            let name = format!("f{}", files.len());
            let caller = Caller::default();
            let made = machine
                .vfs()
                .mknod(&caller, Ino::ROOT, name.as_bytes(), 0o644, 0);
            let ino = match made {
                Ok(attr) => attr.ino,
                Err(error) => break error,
            };
            files.push((name, ino));
            let data = bytes(5, 50_000);
            if let Err(error) = machine.vfs().write(ino, 0, &data, false) {
                assert_eq!(machine.vfs().getattr(ino).expect("getattr").size, 0);
                break error;
            }
        };
        assert_eq!(full.errno(), Errno::ENOSPC);
        assert!(files.len() > 10, "round {round}: {} files fit", files.len());
        // Now others take the last byte too.
        for disk in &machine.disks {
            let space = disk.space().expect("space");
            disk.set_capacity(space.total - space.available);
        }
        let (_, first) = files[0];
        let size = Some(10);
        let change = SetAttr {
            size,
            ..SetAttr::default()
        };
        machine
            .vfs()
            .setattr(&Caller::default(), first, &change)
            .expect("truncate");
        sync(&machine);
        for (name, ino) in &files {
            unlink(&machine, name, *ino);
        }
        machine
            .pool()
            .checkpoint()
            .expect("room for checkpoints is kept");
        machine.close().expect("a full pool unmounts");
        machine.mount().expect("a full pool mounts");
        assert_eq!(look(machine.vfs()).expect("readable").inodes.len(), 1);
        for disk in &machine.disks {
            disk.set_capacity(6 << 20);
        }
        machine.pool().checkpoint().expect("checkpoint");
        machine.reclaim().expect("reclaim");
        machine.pool().checkpoint().expect("checkpoint");
    }
}

#[test]
fn p8_journal_overlay_and_space_stay_bounded_over_a_long_history() {
    let config = Config {
        journal: 256 << 10,
        ..Config::default()
    };
    let mut machine = mounted(config);
    let (mut rows, mut used) = (0, 0);
    for round in 0_u64..4000 {
        let name = format!("f{}", round % 50);
        if round >= 50 {
            let found = machine
                .vfs()
                .lookup(Ino::ROOT, name.as_bytes())
                .expect("lookup");
            unlink(&machine, &name, found.ino);
        }
        let ino = create(&machine, &name);
        write(&machine, ino, 0, &bytes(5 + round, 8000));
        machine.vfs().forget(ino, 1);
        if round % 20 == 0 {
            sync(&machine);
            machine.reclaim().expect("reclaim");
        }
        let status = machine.pool().status();
        assert!(status.journal.used_bytes <= status.journal.size_bytes);
        rows = rows.max(status.checkpoint.dirty_rows);
        let disk = &machine.disks[0];
        let space = disk.space().expect("space");
        used = used.max(space.total - space.available);
    }
    assert!(
        rows <= 2 * (256 << 10) / 512 + 50,
        "{rows} rows in the overlay"
    );
    // 32 MB were written; 400 KB are live, and the pool's own files take about 4 MB.
    assert!(used < 10 << 20, "{used} bytes on a disk");
    machine.kill();
    machine.mount().expect("mount");
    let replayed = machine.pool().status().recovery.expect("a report").replayed;
    assert!(replayed < 1000, "{replayed} operations replayed");
}

#[test]
fn a_mirror_that_is_late_is_passed_over_and_waited_for_only_where_no_other_can_answer() {
    let machine = mounted(Config::default());
    let (ino, data) = (create(&machine, "f"), bytes(5, 8 * BLOCK));
    write(&machine, ino, 0, &data);
    sync(&machine);
    machine.pool().checkpoint().expect("checkpoint");
    let slow = |seconds: u64| {
        Faults::none().latency(Latency {
            read: Duration::from_secs(seconds),
            ..Latency::default()
        })
    };
    // The first to be asked for this segment; hours late.
    let (file, offset) = place(&machine, ino, 0);
    let FileName::Segment(segment) = file else {
        panic!("{file} is no segment")
    };
    let first = (segment.0 % machine.disks.len() as u64) as usize;
    let other = 1 - first;
    machine.disks[first].set_faults(slow(9999));
    let start = machine.world.now();
    assert_eq!(read(&machine, ino, 0, data.len()).expect("read"), data);
    let took = machine.world.now() - start;
    assert!(
        took >= READ_DEADLINE && took < 4 * READ_DEADLINE,
        "{took:?}"
    );
    machine.repair();
    let status = machine.status_of(first);
    assert!(status.read_errors > 0);
    assert_eq!((status.repaired, status.unrepairable), (0, 0));

    // The other has damage: now there is only the late one, and it is waited for.
    machine.disks[other].corrupt(file, offset, 1);
    let start = machine.world.now();
    assert_eq!(read(&machine, ino, 0, data.len()).expect("read"), data);
    assert!(machine.world.now() - start >= Duration::from_secs(9999));
    machine.disks[first].set_faults(Faults::none());
    machine.repair();
    assert_eq!(machine.status_of(other).repaired, 1);

    // All are late, and nothing is lost for it.
    machine
        .disks
        .iter()
        .for_each(|disk| disk.set_faults(slow(33)));
    assert_eq!(read(&machine, ino, 0, data.len()).expect("read"), data);
}

#[test]
fn p9_every_fault_is_counted_and_every_state_is_told() {
    let machine = mounted(Config::default());
    let (ino, data) = (create(&machine, "f"), bytes(5, 60 * BLOCK));
    for block in 0..60 {
        write(&machine, ino, block * BLOCK as u64, &data[..BLOCK]);
    }
    sync(&machine);
    machine.pool().checkpoint().expect("checkpoint");
    for (mirror, disk) in machine.disks.iter().enumerate() {
        let faults = Faults::none().rate(Fault::ReadError, FileClass::Segment, 300_000);
        disk.set_faults(faults);
        for block in 0..60 {
            let read = read(&machine, ino, block * BLOCK as u64, BLOCK);
            assert!(read.is_ok(), "the other mirror has it");
        }
        disk.set_faults(Faults::none());
        machine.repair();
        let struck = disk.injected().get(&Fault::ReadError).copied().unwrap_or(0);
        let status = machine.status_of(mirror);
        assert_eq!(status.read_errors, struck);
        assert_eq!(status.repaired + status.unrepairable, struck);
    }
    assert!(machine.disks.iter().any(|disk| !disk.injected().is_empty()));
    let faults = Faults::none().once(Fault::WriteError, FileClass::Segment, 0);
    machine.disks[1].set_faults(faults);
    write(&machine, ino, 0, b"x");
    let status = machine.pool().status();
    assert_eq!(
        (status.state, status.mirrors[1].write_errors),
        (PoolState::Degraded, 1)
    );
    assert!(!status.actions.is_empty());
}

#[test]
fn p9_a_recovery_says_what_it_did() {
    let mut machine = mounted(Config::default());
    for number in 0..10 {
        create(&machine, &format!("f{number}"));
    }
    sync(&machine);
    machine.crash(PowerLoss::LoseAll);
    machine.mount().expect("mount");
    let recovery = machine.pool().status().recovery.expect("a report");
    assert_eq!(
        (recovery.result.as_str(), recovery.discarded),
        ("recovered", 0)
    );
    assert!(recovery.replayed >= 10);
}

#[test]
fn a_pool_that_lost_all_its_mirrors_stops_and_says_so() {
    let machine = mounted(Config::default());
    create(&machine, "f");
    for disk in &machine.disks {
        disk.set_faults(Faults::none().rate(Fault::SyncError, None, 1_000_000));
    }
    let failed = machine.pool().sync().expect_err("nobody synced");
    assert!(matches!(failed, PoolError::Failed { .. }));
    let again = machine.pool().sync().expect_err("and it is never retried");
    assert!(matches!(again, PoolError::Failed { .. }));
    assert_eq!(machine.pool().status().state, PoolState::Failed);
}
