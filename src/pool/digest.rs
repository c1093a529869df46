//! From incidents to events and current errors: which files are concerned, what is still so.
//!
//! Two steps. Digesting empties the queue: it looks files up in the index, folds incidents into
//! events and keeps the list of current errors. Whoever asks for the status does that. Writing puts
//! the result into the ledger; that may wait for a disk, so only a service, and whoever reads the
//! ledger, does it.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::{Range, RangeInclusive};
use std::time::Duration;

use super::commit::Pool;
use super::current::{Copy, LostBlock};
use super::error::Result;
use super::incidents::{Class, Entry, kind_of};
use super::status::{DamagedFile, DamagedRange};
use crate::backing::FileName;
use crate::format::{BLOCK_U64, Ino, Key, MAX_EXTENT, ReverseRow, SegmentNo, Timestamp};
use crate::ledger::{Damaged, Event, Folder, Ledger, Occurrence, What};
use crate::mirrors::{Incident, MirrorId, Resolution};

/// Inodes remembered as repaired.
const REPAIRED_MAX: usize = 65536;
/// Reverse rows looked at for the owners of a damaged block.
const OWNERS_MAX: usize = 256;
/// Directory entries looked at for the paths of one batch of incidents; the files of the rest are
/// named by their inodes. A flood in a large directory must not stop all else.
const PATH_ROWS: usize = 2 << 20;
/// The same for one status, which then tells the paths that were last known.
const STATUS_PATH_ROWS: usize = 20_000;
/// Incidents logged one by one at a time; the ledger has them all.
const LOGGED_AT_ONCE: usize = 20;
/// Files told one by one whose damage ended at the same time.
const FIXED_TOLD: usize = 64;
/// How long a status waits for another thread that is digesting; it then tells what is known.
const STATUS_WAITS: Duration = Duration::from_millis(20);

/// How a file stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FileHealth {
    /// Nothing is known against it.
    Ok,
    /// It was damaged since the mount, and healed.
    Repaired,
    /// These ranges (offset, length) have no good copy.
    Damaged(Vec<(u64, u64)>),
}

/// Paths found while a batch of incidents is recorded.
struct Paths {
    known: BTreeMap<Ino, Option<Vec<u8>>>,
    /// Entries that may still be looked at.
    rows_left: usize,
}

/// Lost blocks of a file that are lost no more.
struct Settled {
    ino: Ino,
    path: Option<String>,
    count: u64,
}

/// A place in a file.
struct Owner {
    ino: Ino,
    offset: u64,
}

fn shown(path: &[u8]) -> String {
    format!("/{}", String::from_utf8_lossy(path))
}

impl Pool {
    /// Takes note of what happened since the last call, and puts it into the ledger; returns how
    /// many incidents that were.
    pub fn record_incidents(&self) -> usize {
        let count = self.digest(&mut self.incidents.digesting.lock());
        self.write_ledger();
        count
    }

    /// As far as it can be done without waiting long for anybody.
    pub(super) fn digest_soon(&self) {
        if let Some(mut folder) = self.incidents.digesting.try_lock_for(STATUS_WAITS) {
            self.digest(&mut folder);
        }
    }

    fn digest(&self, folder: &mut Folder) -> usize {
        let queue = self.incidents.take_queue();
        let count = queue.entries.len();
        let mut paths = Paths {
            known: BTreeMap::new(),
            rows_left: PATH_ROWS,
        };
        let mut logged = 0;
        for (time, entry) in queue.entries {
            match entry {
                Entry::Other(what) => folder.other(time.seconds, time.nanoseconds, what),
                Entry::Incident(incident) => {
                    if let Some(block) = self.digest_one(&incident, time, folder, &mut paths) {
                        if logged < LOGGED_AT_ONCE {
                            log_damage(&block);
                        }
                        logged += 1;
                    }
                }
            }
        }
        if logged > LOGGED_AT_ONCE {
            log::warn!(
                "{} more incidents are in the ledger",
                logged - LOGGED_AT_ONCE
            );
        }
        let now = self.now();
        for (class, (blocks, bytes)) in queue.overflow {
            folder.damage(self.overflown(class, blocks, bytes, now));
        }
        count
    }

    fn overflown(&self, class: Class, count: u64, length: u64, now: Timestamp) -> Occurrence {
        let (mirror, kind, cause, outcome) = class;
        Occurrence {
            time: now.seconds,
            nanoseconds: now.nanoseconds,
            count,
            block: Damaged {
                mirror: self.name_of(mirror),
                kind: kind.to_owned(),
                cause: cause.to_owned(),
                outcome: outcome.to_owned(),
                until: now.seconds,
                fixed: outcome == "repaired",
                ..Damaged::default()
            },
            offset: 0,
            length,
        }
    }

    pub(super) fn name_of(&self, mirror: MirrorId) -> String {
        match self.mirrors.mirror(mirror) {
            Some(mirror) => mirror.name(),
            None => "a mirror that was removed".to_owned(),
        }
    }

    /// Makes what is to be made of one incident; none if it was known.
    fn digest_one(
        &self,
        incident: &Incident,
        time: Timestamp,
        folder: &mut Folder,
        paths: &mut Paths,
    ) -> Option<Occurrence> {
        let owners = self.owners_of(incident).unwrap_or_default();
        let lost = lost_block(incident);
        let known = |owner: &Owner| {
            let lost = lost.as_ref();
            lost.is_some_and(|lost| {
                self.incidents
                    .current
                    .knows_lost(owner.ino, owner.offset, lost)
            })
        };
        // Whoever reads a lost block again does not lose it again.
        if !owners.is_empty() && owners.iter().all(known) {
            return None;
        }
        // Of several files that share the block, the event names the first that has a name.
        let mut path_of = |ino: Ino| {
            let left = &mut paths.rows_left;
            let find = || self.path_within(ino, left).ok().flatten();
            paths.known.entry(ino).or_insert_with(find).clone()
        };
        let named = owners
            .iter()
            .find_map(|owner| Some((owner, path_of(owner.ino)?)));
        let (owner, path) = match named {
            Some((owner, path)) => (Some(owner), Some(shown(&path))),
            None => (owners.first(), None),
        };
        let (outcome, detail) = match &incident.resolution {
            Resolution::Repaired => ("repaired", None),
            Resolution::Failed(detail) => ("failed", Some(detail.clone())),
            Resolution::Lost => ("lost", None),
        };
        let occurrence = Occurrence {
            time: time.seconds,
            nanoseconds: time.nanoseconds,
            count: 1,
            block: Damaged {
                mirror: self.name_of(incident.mirror),
                kind: kind_of(incident.place.file).to_owned(),
                stored_in: incident.place.file.to_string(),
                stored_at: incident.place.offset,
                path: path.clone(),
                inode: owner.map(|owner| owner.ino.0),
                until: time.seconds,
                cause: incident.damage.name().to_owned(),
                outcome: outcome.to_owned(),
                detail,
                fixed: outcome == "repaired",
                ..Damaged::default()
            },
            offset: owner.map_or(incident.place.offset, |owner| owner.offset),
            length: incident.len as u64,
        };
        let event = folder.damage(occurrence.clone());
        self.keep_current(incident, &owners, path, event);
        Some(occurrence)
    }

    /// What the incident changes in the list of current errors.
    fn keep_current(
        &self,
        incident: &Incident,
        owners: &[Owner],
        path: Option<String>,
        event: u64,
    ) {
        let current = &self.incidents.current;
        let place = incident.place;
        let Some(mirror) = self.mirrors.mirror(incident.mirror) else {
            return;
        };
        let mirror = mirror.uuid.to_string();
        let (file, at, len) = (place.file.to_string(), place.offset, incident.len as u64);
        match &incident.resolution {
            Resolution::Repaired => {
                for owner in owners {
                    let mut repaired = self.incidents.repaired.lock();
                    if repaired.len() < REPAIRED_MAX {
                        repaired.insert(owner.ino);
                    }
                    drop(repaired);
                    self.readable(owner.ino, owner.offset, len);
                }
                current.mended(Some(&mirror), &file, at..at + len);
            }
            Resolution::Failed(_) => {
                let segment = match place.file {
                    FileName::Segment(segment) => Some(segment.0),
                    FileName::Readme
                    | FileName::Superblock
                    | FileName::Journal
                    | FileName::Index
                    | FileName::Sums => None,
                };
                let copy = Copy {
                    mirror,
                    file,
                    segment,
                };
                // What a deleted file had is nobody's error.
                if segment.is_none() || !owners.is_empty() {
                    current.failed(copy, at, len, event);
                }
            }
            Resolution::Lost => {
                let Some(mut block) = lost_block(incident) else {
                    return current.lost_metadata(file, at, event);
                };
                block.events.push(event);
                for owner in owners {
                    current.lost(owner.ino, owner.offset, block.clone(), path.clone());
                }
            }
        }
    }

    /// Puts what was digested into the ledger.
    fn write_ledger(&self) {
        self.incidents.with_ledger(|ledger| self.write_to(ledger));
    }

    fn write_to(&self, ledger: &mut Ledger) {
        if self.incidents.take_members_changed() {
            // A mirror that is out must not be kept busy by its ledger; one that comes gets a copy.
            let written = self.mirrors.written();
            let directories = written
                .iter()
                .filter_map(|mirror| mirror.backing().ledger_dir());
            ledger.set_directories(&directories.collect::<Vec<_>>());
        }
        let events = self.incidents.digesting.lock().take_changed();
        let changes = self.incidents.current.take_changes();
        ledger.record(&events, &changes);
    }

    /// Keeps a value under a name in the ledgers, durably; see [`Pool::remembered`].
    pub fn remember(&self, name: &str, value: &[u8]) {
        self.incidents
            .with_ledger(|ledger| ledger.remember(name, value));
    }

    /// The values kept under a name: one for each mirror whose ledger has one.
    pub fn remembered(&self, name: &str) -> Vec<Vec<u8>> {
        self.incidents.with_ledger(|ledger| ledger.remembered(name))
    }

    /// Has the ledger record something.
    pub fn note(&self, what: What) {
        self.incidents.note(what);
    }

    /// Puts the ledger on disk.
    pub(super) fn flush_ledger(&self) {
        self.sweep_errors();
        self.record_incidents();
        self.incidents.with_ledger(|ledger| ledger.flush());
    }

    /// The newest `limit` events of the ledger, oldest first.
    pub fn events(&self, limit: usize) -> Vec<Event> {
        self.sweep_errors();
        self.record_incidents();
        let events = self.incidents.with_ledger(|ledger| ledger.latest(limit));
        self.with_fixed(events)
    }

    /// The first `limit` events with this number or a higher one, oldest first.
    pub fn events_from(&self, number: u64, limit: usize) -> Vec<Event> {
        self.sweep_errors();
        self.record_incidents();
        let events = self
            .incidents
            .with_ledger(|ledger| ledger.from(number, limit));
        self.with_fixed(events)
    }

    /// Damage of which nothing is left is fixed.
    fn with_fixed(&self, mut events: Vec<Event>) -> Vec<Event> {
        let current = self.incidents.current.events();
        for event in &mut events {
            if let What::Damage(damaged) = &mut event.what {
                damaged.fixed |= !current.contains(&event.number);
            }
        }
        events
    }

    /// The files that a damaged block of a segment belongs to: several if they share it, none if it
    /// was freed.
    fn owners_of(&self, incident: &Incident) -> Result<Vec<Owner>> {
        match incident.place.file {
            FileName::Segment(segment) => self.owners_at(segment, incident.place.offset as u32),
            FileName::Readme
            | FileName::Superblock
            | FileName::Journal
            | FileName::Index
            | FileName::Sums => Ok(Vec::new()),
        }
    }

    fn owners_at(&self, segment: SegmentNo, at: u32) -> Result<Vec<Owner>> {
        let from = Key::reverse_at(segment, at.saturating_sub(MAX_EXTENT as u32));
        let to = Key::reverse_at(segment, at + 1);
        let mut owners = Vec::new();
        for (key, value) in self.index.scan_back(&from, &to, OWNERS_MAX)? {
            let (_, start, ino, file_offset) = key.reverse_parts()?;
            let row = ReverseRow::decode(&value)?;
            if at < start + row.stored {
                owners.push(Owner {
                    ino,
                    offset: file_offset + u64::from(at - start),
                });
            }
        }
        Ok(owners)
    }

    /// A good copy of these bytes of a file was found: they are not lost, or no longer.
    pub(super) fn readable(&self, ino: Ino, offset: u64, len: u64) {
        if self.incidents.current.any() {
            let lost = || self.incidents.current.lost_in(ino, offset..offset + len);
            if !lost().is_empty() {
                // What was replaced is not what was read.
                self.current_lost(ino..=ino);
                let fixed = self.settle(ino, &lost());
                self.tell_fixed(fixed.into_iter().collect(), "readable");
            }
        }
    }

    /// Every online mirror has good bytes in this range of a segment, where anything is live.
    pub(super) fn segment_is_good(&self, segment: SegmentNo, range: Range<u32>) {
        if !self.incidents.current.any() {
            return;
        }
        for (ino, block) in self.incidents.current.lost_at(segment, range.clone()) {
            self.readable(ino, block.0, block.1.len);
        }
        let len = u64::from(range.end.saturating_sub(range.start));
        self.all_good(FileName::Segment(segment), u64::from(range.start), len);
    }

    /// Every online mirror has good bytes in this range of a file of theirs.
    pub(super) fn all_good(&self, file: FileName, offset: u64, len: u64) {
        if self.incidents.current.any() {
            let range = offset..offset + len;
            self.incidents
                .current
                .mended(None, &file.to_string(), range);
        }
    }

    /// Takes blocks off the list of what is lost: how many of them were on it.
    fn settle(&self, ino: Ino, blocks: &[(u64, LostBlock)]) -> Option<Settled> {
        if blocks.is_empty() {
            return None;
        }
        let path = self.incidents.current.path(ino);
        let count = self.incidents.current.take_lost(ino, blocks);
        (count > 0).then_some(Settled { ino, path, count })
    }

    /// Tells of files whose damage has ended; of many at once all together.
    fn tell_fixed(&self, mut settled: Vec<Settled>, how: &str) {
        let rest = settled.split_off(settled.len().min(FIXED_TOLD));
        let note = |path, inode, count| {
            self.incidents.note(What::Fixed {
                path,
                inode,
                count,
                how: how.to_owned(),
            });
        };
        for file in settled {
            note(file.path, Some(file.ino.0), file.count);
        }
        if !rest.is_empty() {
            note(None, None, rest.iter().map(|file| file.count).sum());
        }
    }

    /// The lost blocks that files still consist of: overwriting, cutting and deleting them ends the
    /// damage.
    fn current_lost(&self, of: RangeInclusive<Ino>) -> BTreeMap<Ino, Vec<(u64, u64)>> {
        if !self.incidents.current.any() {
            return BTreeMap::new();
        }
        let mut files: BTreeMap<Ino, Vec<(u64, LostBlock)>> = BTreeMap::new();
        for ((ino, offset), block) in self.incidents.current.lost_of(of) {
            files.entry(ino).or_default().push((offset, block));
        }
        let (mut current, mut settled) = (BTreeMap::new(), Vec::new());
        for (ino, blocks) in files {
            // One scan of the file's rows, however many of its blocks are lost.
            let end = blocks.last().map_or(0, |(offset, _)| offset + BLOCK_U64);
            let Ok(rows) = self.extents(ino, blocks[0].0, end) else {
                // The index cannot say: nothing is taken back.
                current.insert(ino, join(&blocks));
                continue;
            };
            let held = |(offset, block): &(u64, LostBlock)| {
                let after = rows.partition_point(|(start, _)| start <= offset);
                let row = after.checked_sub(1).map(|before| &rows[before]);
                row.is_some_and(|(start, row)| {
                    offset - start < u64::from(row.stored)
                        && row.segment == block.segment
                        && u64::from(row.offset) + (offset - start) == u64::from(block.at)
                })
            };
            let (still, gone): (Vec<_>, Vec<_>) = blocks.into_iter().partition(held);
            settled.extend(self.settle(ino, &gone));
            if !still.is_empty() {
                current.insert(ino, join(&still));
            }
        }
        self.tell_fixed(settled, "replaced");
        current
    }

    /// Takes off the list of current errors what overwriting and deleting have ended.
    pub fn sweep_errors(&self) {
        if !self.incidents.current.any() {
            return;
        }
        self.current_lost(Ino(0)..=Ino(u64::MAX));
        let members = self.mirrors.all();
        let members: BTreeSet<String> = members
            .iter()
            .map(|mirror| mirror.uuid.to_string())
            .collect();
        self.incidents.current.keep_mirrors(&members);
        for (copy, at) in self.incidents.current.failed_data() {
            let segment = SegmentNo(copy.segment.unwrap_or_default());
            let owned = u32::try_from(at).map(|at| self.owners_at(segment, at));
            if matches!(owned, Ok(Ok(owners)) if owners.is_empty()) {
                let mirror = Some(copy.mirror.as_str());
                self.incidents
                    .current
                    .mended(mirror, &copy.file, at..at + 1);
            }
        }
    }

    /// How a file stands.
    pub fn health_of(&self, ino: Ino) -> FileHealth {
        self.digest_soon();
        if let Some(ranges) = self.current_lost(ino..=ino).remove(&ino) {
            return FileHealth::Damaged(ranges);
        }
        match self.incidents.repaired.lock().contains(&ino) {
            true => FileHealth::Repaired,
            false => FileHealth::Ok,
        }
    }

    /// Files with blocks that no mirror has, by path and range.
    pub(super) fn damaged_files(&self) -> Vec<DamagedFile> {
        let mut rows_left = STATUS_PATH_ROWS;
        let current = &self.incidents.current;
        let files = self.current_lost(Ino(0)..=Ino(u64::MAX)).into_iter();
        let damaged = files.map(|(ino, ranges)| {
            // None also if there are too many names to look at: then the last one known.
            let path = match self.path_within(ino, &mut rows_left) {
                Ok(Some(path)) => {
                    let path = shown(&path);
                    current.set_path(ino, &path);
                    Some(path)
                }
                Ok(None) | Err(_) => current.path(ino),
            };
            let ranges = ranges.into_iter();
            DamagedFile {
                inode: ino.0,
                path: path.unwrap_or_default(),
                ranges: ranges
                    .map(|(offset, length)| DamagedRange { offset, length })
                    .collect(),
            }
        });
        damaged.collect()
    }
}

/// The block of a segment that an incident is about.
fn lost_block(incident: &Incident) -> Option<LostBlock> {
    let FileName::Segment(segment) = incident.place.file else {
        return None;
    };
    (incident.resolution == Resolution::Lost).then(|| LostBlock {
        segment,
        at: incident.place.offset as u32,
        len: incident.len as u64,
        told: 1 << (incident.mirror.0 % 32),
        events: Vec::new(),
    })
}

/// Blocks as ranges of the file.
fn join(blocks: &[(u64, LostBlock)]) -> Vec<(u64, u64)> {
    let mut ranges: Vec<(u64, u64)> = Vec::new();
    for (offset, block) in blocks {
        match ranges.last_mut() {
            Some((start, length)) if *start + *length == *offset => *length += block.len,
            _ => ranges.push((*offset, block.len)),
        }
    }
    ranges
}

fn log_damage(occurrence: &Occurrence) {
    let block = &occurrence.block;
    let file = match &block.path {
        Some(path) => format!("{path} at {}", occurrence.offset),
        None => "metadata or a file without a name".to_owned(),
    };
    let detail = block
        .detail
        .as_ref()
        .map_or_else(String::new, |detail| format!(" ({detail})"));
    let level = if block.outcome == "lost" {
        log::Level::Error
    } else {
        log::Level::Warn
    };
    log::log!(
        level,
        "damaged block of {file}: {}/{} at {}: {}; {}{detail}",
        block.mirror,
        block.stored_in,
        block.stored_at,
        block.cause,
        block.outcome
    );
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;
    use std::sync::Arc;

    use super::*;
    use crate::backing::{Backing, DirBacking};
    use crate::format::Algorithm;
    use crate::pool::status::{PoolState, PoolStatus};
    use crate::pool::tests::small;
    use crate::pool::{CreateOptions, OpenOptions, create};
    use crate::vfs::{Caller, Vfs, VfsOptions};

    const ROOT: Caller = Caller {
        uid: 0,
        gid: 0,
        pid: 1,
        umask: 0,
    };

    /// Two mirrors in real directories, since a ledger lies in one.
    struct Scene {
        dir: tempfile::TempDir,
    }

    impl Scene {
        fn new() -> Scene {
            let dir = tempfile::tempdir().unwrap();
            let scene = Scene { dir };
            for name in ["a", "b"] {
                std::fs::create_dir(scene.dir.path().join(name)).unwrap();
            }
            let options = CreateOptions {
                label: "test".to_owned(),
                algorithm: Algorithm::Crc32,
                journal_size: 1 << 20,
                created: 0,
                random: (0..10).map(|n| [n + 1; 16]).collect(),
            };
            let backings: Vec<_> = scene
                .backings()
                .into_iter()
                .map(|(_, b)| b.unwrap())
                .collect();
            create(&backings, &options).unwrap();
            scene
        }

        fn backings(&self) -> Vec<(String, Option<Arc<dyn Backing>>)> {
            let open = |name: &str| {
                let path = self.dir.path().join(name);
                let backing: Arc<dyn Backing> = Arc::new(DirBacking::open(&path).unwrap());
                (name.to_owned(), Some(backing))
            };
            vec![open("a"), open("b")]
        }

        fn mount(&self) -> Vfs {
            let options = OpenOptions {
                ledger: true,
                ..small()
            };
            let pool = Arc::new(Pool::open(self.backings(), options).unwrap());
            Vfs::new(pool, VfsOptions::default()).unwrap()
        }

        /// Inverts or restores a byte of a block of the file.
        fn flip(&self, vfs: &Vfs, ino: Ino, block: u64, mirrors: &[&str]) {
            let offset = block * BLOCK_U64;
            let rows = vfs.pool().extents(ino, offset, offset + 1).unwrap();
            let (start, row) = &rows[0];
            let at = u64::from(row.offset) + offset - start;
            for mirror in mirrors {
                let path = self
                    .dir
                    .path()
                    .join(mirror)
                    .join(FileName::Segment(row.segment).path());
                let file = std::fs::File::options()
                    .read(true)
                    .write(true)
                    .open(path)
                    .unwrap();
                let mut byte = [0];
                file.read_exact_at(&mut byte, at).unwrap();
                file.write_all_at(&[!byte[0]], at).unwrap();
            }
        }
    }

    fn file(vfs: &Vfs, name: &str, blocks: usize) -> Ino {
        let ino = vfs
            .mknod(&ROOT, Ino::ROOT, name.as_bytes(), 0o100_644, 0)
            .unwrap()
            .ino;
        vfs.write(ino, 0, &vec![7; blocks * 4096], false).unwrap();
        vfs.fsync(ino, false).unwrap();
        ino
    }

    fn read(vfs: &Vfs, ino: Ino, block: u64) -> bool {
        let mut out = Vec::new();
        vfs.read(ino, block * BLOCK_U64, 4096, &mut out).is_ok()
    }

    fn damaged(status: &PoolStatus) -> Vec<(String, Vec<(u64, u64)>)> {
        let ranges = |file: &DamagedFile| {
            let ranges = file.ranges.iter();
            ranges.map(|range| (range.offset, range.length)).collect()
        };
        let files = status.damaged.iter();
        files
            .map(|file| (file.path.clone(), ranges(file)))
            .collect()
    }

    fn damage_events(vfs: &Vfs) -> Vec<Damaged> {
        let events = vfs.pool().events(1000).into_iter();
        events
            .filter_map(|event| match event.what {
                What::Damage(damaged) => Some(damaged),
                _ => None,
            })
            .collect()
    }

    #[test]
    fn current_errors_survive_a_remount_and_leave_the_list_at_once_when_they_are_gone() {
        let scene = Scene::new();
        let vfs = scene.mount();
        let ino = file(&vfs, "f", 10);
        let other = file(&vfs, "g", 3);
        for block in [3, 4] {
            scene.flip(&vfs, ino, block, &["a", "b"]);
        }
        scene.flip(&vfs, other, 0, &["a", "b"]);
        for _ in 0..5 {
            assert!(!read(&vfs, ino, 3) && !read(&vfs, ino, 4) && !read(&vfs, other, 0));
            vfs.pool().record_incidents();
        }
        let lost = vec![
            ("/f".to_owned(), vec![(3 * 4096, 2 * 4096)]),
            ("/g".to_owned(), vec![(0, 4096)]),
        ];
        assert_eq!(damaged(&vfs.pool().status()), lost);
        let events = damage_events(&vfs);
        let told: u64 = events.iter().map(|event| event.count).sum();
        assert_eq!(
            told,
            3 * 2,
            "once for each mirror, however often it is read: {events:?}"
        );
        assert!(
            events
                .iter()
                .all(|event| !event.fixed && event.outcome == "lost")
        );
        vfs.close().unwrap();
        drop(vfs);

        let vfs = scene.mount();
        let status = vfs.pool().status();
        assert_eq!((status.state, damaged(&status)), (PoolState::Damaged, lost));
        vfs.write(ino, 3 * 4096, &[1; 4096], false).unwrap();
        let left = vec![(4 * 4096, 4096)];
        assert_eq!(damaged(&vfs.pool().status())[0].1, left);
        vfs.unlink(&ROOT, Ino::ROOT, b"g").unwrap();
        assert_eq!(damaged(&vfs.pool().status()), [("/f".to_owned(), left)]);
        let fixed = |name: &str| {
            let events = damage_events(&vfs);
            let of = events
                .iter()
                .filter(|event| event.path.as_deref() == Some(name));
            of.map(|event| event.fixed).collect::<Vec<_>>()
        };
        assert_eq!((fixed("/g"), fixed("/f")), (vec![true; 2], vec![false; 2]));
        vfs.write(ino, 4 * 4096, &[1; 4096], false).unwrap();
        assert_eq!(vfs.pool().status().state, PoolState::Healthy);
        assert_eq!(fixed("/f"), [true; 2]);
        let told = vfs
            .pool()
            .events(1000)
            .into_iter()
            .filter_map(|event| match event.what {
                What::Fixed { count, how, .. } => Some((count, how)),
                _ => None,
            });
        let told: Vec<_> = told.collect();
        assert_eq!(told, vec![(1, "replaced".to_owned()); 3]);
        vfs.close().unwrap();
        drop(vfs);
        assert_eq!(scene.mount().pool().status().state, PoolState::Healthy);
    }

    #[test]
    fn a_block_that_can_be_read_again_leaves_the_list() {
        let scene = Scene::new();
        let vfs = scene.mount();
        let ino = file(&vfs, "f", 4);
        scene.flip(&vfs, ino, 2, &["a", "b"]);
        assert!(!read(&vfs, ino, 2));
        assert_eq!(vfs.pool().status().state, PoolState::Damaged);
        // As after a disk that had a bad moment: nothing was rewritten.
        scene.flip(&vfs, ino, 2, &["a", "b"]);
        assert!(read(&vfs, ino, 2));
        assert_eq!(vfs.pool().status().state, PoolState::Healthy);
        assert!(damage_events(&vfs).iter().all(|event| event.fixed));
    }

    #[test]
    fn a_repair_that_failed_is_a_current_error_until_it_succeeds() {
        let scene = Scene::new();
        let vfs = scene.mount();
        let ino = file(&vfs, "f", 4);
        let row = vfs.pool().extents(ino, 0, 1).unwrap()[0].1.clone();
        let file = FileName::Segment(row.segment);
        let incident = |resolution| Incident {
            mirror: crate::mirrors::MirrorId(0),
            place: crate::mirrors::Place {
                file,
                offset: u64::from(row.offset),
            },
            len: 4096,
            damage: crate::mirrors::Damage::Checksum,
            resolution,
        };
        let witness: &dyn crate::mirrors::Witness = &*vfs.pool().incidents;
        witness.incident(incident(Resolution::Failed("no".to_owned())));
        let status = vfs.pool().status();
        assert_eq!(
            (status.state, status.unrepaired_blocks),
            (PoolState::Degraded, 1)
        );
        vfs.close().unwrap();
        drop(vfs);
        let vfs = scene.mount();
        assert_eq!(vfs.pool().status().unrepaired_blocks, 1);
        let witness: &dyn crate::mirrors::Witness = &*vfs.pool().incidents;
        witness.incident(incident(Resolution::Repaired));
        assert_eq!(vfs.pool().status().state, PoolState::Healthy);
        witness.incident(incident(Resolution::Failed("no".to_owned())));
        assert_eq!(vfs.pool().status().unrepaired_blocks, 1);
        let from = Key::reverse_at(row.segment, 0);
        let owners = vfs
            .pool()
            .scan(&from, &Key::reverse_end(row.segment), 10)
            .unwrap();
        for (key, value) in owners {
            vfs.pool().verify_owner(&key, &value).unwrap();
        }
        assert_eq!(
            vfs.pool().status().state,
            PoolState::Healthy,
            "found good on every mirror"
        );
    }

    #[test]
    fn a_status_waits_neither_for_the_ledger_nor_for_a_checkpoint() {
        let scene = Scene::new();
        let vfs = scene.mount();
        let ino = file(&vfs, "f", 4);
        scene.flip(&vfs, ino, 2, &["a", "b"]);
        assert!(!read(&vfs, ino, 2));
        let pool = Arc::clone(vfs.pool());
        let (_ledger, _checkpoint) = (pool.incidents.ledger.lock(), pool.checkpointing.between());
        let (tell, told) = std::sync::mpsc::channel();
        let other = Arc::clone(&pool);
        std::thread::spawn(move || tell.send(Box::new(other.status())));
        let status = told
            .recv_timeout(Duration::from_secs(20))
            .expect("an answer");
        assert_eq!(status.state, PoolState::Damaged, "with what was just found");
    }

    #[test]
    fn the_end_of_much_damage_is_no_flood_either() {
        let scene = Scene::new();
        let vfs = scene.mount();
        let many = FIXED_TOLD as u64 + 10;
        for number in 0..many {
            let ino = file(&vfs, &format!("f{number}"), 1);
            scene.flip(&vfs, ino, 0, &["a", "b"]);
            assert!(!read(&vfs, ino, 0));
        }
        assert_eq!(vfs.pool().status().damaged.len() as u64, many);
        for number in 0..many {
            let name = format!("f{number}");
            let ino = vfs.lookup(Ino::ROOT, name.as_bytes()).unwrap().ino;
            vfs.unlink(&ROOT, Ino::ROOT, name.as_bytes()).unwrap();
            vfs.forget(ino, 2);
        }
        assert_eq!(vfs.pool().status().state, PoolState::Healthy);
        let events = vfs.pool().events(10_000).into_iter();
        let counts: Vec<u64> = events
            .filter_map(|event| match event.what {
                What::Fixed { count, .. } => Some(count),
                _ => None,
            })
            .collect();
        assert_eq!(
            (counts.len(), counts.iter().sum::<u64>()),
            (FIXED_TOLD + 1, many)
        );
    }

    #[test]
    fn a_block_that_a_scrub_finds_good_again_leaves_the_list() {
        let scene = Scene::new();
        let vfs = scene.mount();
        let ino = file(&vfs, "f", 4);
        scene.flip(&vfs, ino, 2, &["a", "b"]);
        assert!(!read(&vfs, ino, 2));
        assert_eq!(vfs.pool().status().state, PoolState::Damaged);
        scene.flip(&vfs, ino, 2, &["a", "b"]);
        let segment = vfs.pool().extents(ino, 0, 1).unwrap()[0].1.segment;
        let mut cursor = crate::pool::SegmentCursor::new(segment, 0);
        let mut scratch = crate::mirrors::Scratch::default();
        let budget = 1 << 20;
        let mut check = || {
            vfs.pool()
                .check_segment(&mut cursor, budget, &mut scratch)
                .unwrap()
        };
        while !check().ended {}
        assert_eq!(vfs.pool().status().state, PoolState::Healthy);
    }
}
