//! The errors that are there now: blocks of files that no mirror has, bad copies that could not be
//! rewritten, and metadata that is lost. An error leaves the list as soon as it is gone, and the
//! list survives a remount: the ledger keeps it.
//!
//! Nothing here reads or writes a mirror. [`super::incidents`] puts in what was found and asks the
//! index what still is.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::{Range, RangeInclusive};
use std::sync::atomic::{AtomicBool, Ordering};

use serde::{Deserialize, Serialize};
use tracing_mutex::parkinglot::Mutex;

use crate::format::{BLOCK_U64, Ino, SegmentNo};
use crate::ledger::Change;

/// Lost blocks remembered; a pool that is lost as a whole has many more.
const LOST_MAX: usize = 1 << 18;
/// Bad copies and places of metadata remembered.
const OTHERS_MAX: usize = 1 << 16;

/// A block of a file that no mirror has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct LostBlock {
    pub(super) segment: SegmentNo,
    pub(super) at: u32,
    pub(super) len: u64,
    /// Mirrors whose bad copy was told since the mount, as bits.
    pub(super) told: u32,
    /// Events that told of it: one for each mirror, mostly.
    pub(super) events: Vec<u64>,
}

impl LostBlock {
    /// Whether this is the same block: neither freed nor overwritten between.
    fn is(&self, other: &LostBlock) -> bool {
        (self.segment, self.at) == (other.segment, other.at)
    }
}

/// Where a bad copy lies: UUID of the mirror, file, segment if it is one.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Copy {
    pub(super) mirror: String,
    pub(super) file: String,
    pub(super) segment: Option<u64>,
}

/// Blocks by file and offset in it.
pub(super) type Lost = BTreeMap<(Ino, u64), LostBlock>;

/// Which rows of the ledger have changed.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Dirty {
    Lost(Ino),
    Failed(Copy),
    Metadata,
}

#[derive(Debug, Default)]
struct Errors {
    lost: Lost,
    /// The last path known of a file in `lost`.
    paths: BTreeMap<Ino, String>,
    /// Offset to length and event.
    failed: BTreeMap<Copy, BTreeMap<u64, (u64, u64)>>,
    /// File and offset to event.
    metadata: BTreeMap<(String, u64), u64>,
    dirty: BTreeSet<Dirty>,
}

/// The current errors.
#[derive(Debug, Default)]
pub(super) struct Current {
    errors: Mutex<Errors>,
    /// Whether there are any: asked by every read.
    any: AtomicBool,
}

/// As it lies in the ledger: a run of blocks that follow one another in file and segment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct LostRun {
    offset: u64,
    segment: u64,
    at: u32,
    length: u64,
    events: Vec<u64>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
enum Stored {
    Lost {
        inode: u64,
        path: Option<String>,
        runs: Vec<LostRun>,
    },
    Failed {
        mirror: String,
        file: String,
        segment: Option<u64>,
        /// Offset, length, event.
        blocks: Vec<(u64, u64, u64)>,
    },
    Metadata {
        /// File, offset, event.
        places: Vec<(String, u64, u64)>,
    },
}

impl Current {
    /// Takes over what the ledger holds.
    pub(super) fn load(&self, rows: Vec<(String, Vec<u8>)>) {
        let mut errors = self.errors.lock();
        for (key, value) in rows {
            match serde_json::from_slice(&value) {
                Ok(stored) => errors.take(stored),
                Err(error) => log::warn!("the ledger's entry {key} is not understood: {error}"),
            }
        }
        self.look(&errors);
    }

    fn look(&self, errors: &Errors) {
        let any =
            !errors.lost.is_empty() || !errors.failed.is_empty() || !errors.metadata.is_empty();
        self.any.store(any, Ordering::Release);
    }

    /// Whether there are any errors. Cheap.
    pub(super) fn any(&self) -> bool {
        self.any.load(Ordering::Acquire)
    }

    /// Whether this block is known to be lost, and this mirror's copy of it told since the mount.
    pub(super) fn knows_lost(&self, ino: Ino, offset: u64, block: &LostBlock) -> bool {
        let errors = self.errors.lock();
        let known = errors.lost.get(&(ino, offset));
        known.is_some_and(|known| known.is(block) && known.told & block.told == block.told)
    }

    /// No mirror has this block.
    pub(super) fn lost(&self, ino: Ino, offset: u64, mut block: LostBlock, path: Option<String>) {
        let mut errors = self.errors.lock();
        let known = errors
            .lost
            .get(&(ino, offset))
            .filter(|known| known.is(&block));
        if let Some(known) = known {
            block.told |= known.told;
            block.events.extend(&known.events);
            block.events.sort_unstable();
            block.events.dedup();
        }
        if known.is_some() || errors.lost.len() < LOST_MAX {
            errors.lost.insert((ino, offset), block);
            if let Some(path) = path {
                errors.paths.insert(ino, path);
            }
            errors.dirty.insert(Dirty::Lost(ino));
        }
        self.look(&errors);
    }

    /// These blocks of a file are no longer lost: how many of them still counted as such.
    pub(super) fn take_lost(&self, ino: Ino, blocks: &[(u64, LostBlock)]) -> u64 {
        let mut errors = self.errors.lock();
        let mut taken = 0;
        for (offset, block) in blocks {
            let known = errors.lost.get(&(ino, *offset));
            if known.is_some_and(|known| known.is(block)) {
                errors.lost.remove(&(ino, *offset));
                taken += 1;
            }
        }
        if taken > 0 {
            errors.dirty.insert(Dirty::Lost(ino));
            if errors
                .lost
                .range((ino, 0)..=(ino, u64::MAX))
                .next()
                .is_none()
            {
                errors.paths.remove(&ino);
            }
        }
        self.look(&errors);
        taken
    }

    /// Lost blocks of some inodes.
    pub(super) fn lost_of(&self, of: RangeInclusive<Ino>) -> Vec<((Ino, u64), LostBlock)> {
        let errors = self.errors.lock();
        let range = errors.lost.range((*of.start(), 0)..=(*of.end(), u64::MAX));
        range.map(|(key, block)| (*key, block.clone())).collect()
    }

    /// Lost blocks in a range of a file.
    pub(super) fn lost_in(&self, ino: Ino, range: Range<u64>) -> Vec<(u64, LostBlock)> {
        let errors = self.errors.lock();
        let range = errors.lost.range((ino, range.start)..(ino, range.end));
        range.map(|((_, at), block)| (*at, block.clone())).collect()
    }

    /// Lost blocks that lie in a range of a segment: inode, and offset in the file.
    pub(super) fn lost_at(
        &self,
        segment: SegmentNo,
        range: Range<u32>,
    ) -> Vec<(Ino, (u64, LostBlock))> {
        let errors = self.errors.lock();
        let inside = |block: &LostBlock| block.segment == segment && range.contains(&block.at);
        let found = errors.lost.iter().filter(|(_, block)| inside(block));
        found
            .map(|((ino, offset), block)| (*ino, (*offset, block.clone())))
            .collect()
    }

    /// The last path known of a damaged file.
    pub(super) fn path(&self, ino: Ino) -> Option<String> {
        self.errors.lock().paths.get(&ino).cloned()
    }

    pub(super) fn set_path(&self, ino: Ino, path: &str) {
        let mut errors = self.errors.lock();
        if errors.paths.get(&ino).is_none_or(|known| known != path) {
            errors.paths.insert(ino, path.to_owned());
            errors.dirty.insert(Dirty::Lost(ino));
        }
    }

    /// A bad copy could not be rewritten.
    pub(super) fn failed(&self, copy: Copy, at: u64, len: u64, event: u64) {
        let mut errors = self.errors.lock();
        if errors.failed.values().map(BTreeMap::len).sum::<usize>() < OTHERS_MAX {
            errors.dirty.insert(Dirty::Failed(copy.clone()));
            errors
                .failed
                .entry(copy)
                .or_default()
                .insert(at, (len, event));
        }
        self.look(&errors);
    }

    /// Copies of a file in this range are good again, on that mirror or on all.
    pub(super) fn mended(&self, mirror: Option<&str>, file: &str, range: Range<u64>) {
        let mut errors = self.errors.lock();
        let errors = &mut *errors;
        for (copy, blocks) in &mut errors.failed {
            if copy.file != file || mirror.is_some_and(|mirror| mirror != copy.mirror) {
                continue;
            }
            let before = blocks.len();
            blocks.retain(|at, _| !range.contains(at));
            if blocks.len() < before {
                errors.dirty.insert(Dirty::Failed(copy.clone()));
            }
        }
        errors.failed.retain(|_, blocks| !blocks.is_empty());
        let before = errors.metadata.len();
        let inside = |place: &(String, u64)| place.0 == file && range.contains(&place.1);
        errors.metadata.retain(|place, _| !inside(place));
        if errors.metadata.len() < before {
            errors.dirty.insert(Dirty::Metadata);
        }
        self.look(errors);
    }

    /// Everything on this mirror is written anew.
    pub(super) fn forget_mirror(&self, mirror: &str) {
        let mut errors = self.errors.lock();
        let gone: Vec<Copy> = errors
            .failed
            .keys()
            .filter(|c| c.mirror == mirror)
            .cloned()
            .collect();
        for copy in gone {
            errors.failed.remove(&copy);
            errors.dirty.insert(Dirty::Failed(copy));
        }
        self.look(&errors);
    }

    /// Copies on mirrors that were removed are nobody's errors.
    pub(super) fn keep_mirrors(&self, members: &BTreeSet<String>) {
        let mirrors: BTreeSet<String> = {
            let errors = self.errors.lock();
            errors
                .failed
                .keys()
                .map(|copy| copy.mirror.clone())
                .collect()
        };
        for mirror in mirrors.difference(members) {
            self.forget_mirror(mirror);
        }
    }

    /// Bad copies in segments, to be asked whether they still mean anything.
    pub(super) fn failed_data(&self) -> Vec<(Copy, u64)> {
        let errors = self.errors.lock();
        let data = errors
            .failed
            .iter()
            .filter(|(copy, _)| copy.segment.is_some());
        data.flat_map(|(copy, blocks)| blocks.keys().map(|at| (copy.clone(), *at)))
            .collect()
    }

    /// Number of bad copies that could not be rewritten.
    pub(super) fn failed_count(&self) -> u64 {
        let errors = self.errors.lock();
        errors
            .failed
            .values()
            .map(|blocks| blocks.len() as u64)
            .sum()
    }

    /// Metadata at this place is lost.
    pub(super) fn lost_metadata(&self, file: String, at: u64, event: u64) {
        let mut errors = self.errors.lock();
        if errors.metadata.len() < OTHERS_MAX {
            errors.metadata.insert((file, at), event);
            errors.dirty.insert(Dirty::Metadata);
        }
        self.look(&errors);
    }

    /// Places of lost metadata.
    pub(super) fn metadata(&self) -> Vec<String> {
        let errors = self.errors.lock();
        let places = errors.metadata.keys();
        places.map(|(file, at)| format!("{file} at {at}")).collect()
    }

    /// Events of which something is left.
    pub(super) fn events(&self) -> BTreeSet<u64> {
        let errors = self.errors.lock();
        let lost = errors.lost.values().flat_map(|block| block.events.clone());
        let failed = errors.failed.values().flat_map(|blocks| blocks.values());
        lost.chain(failed.map(|(_, event)| *event))
            .chain(errors.metadata.values().copied())
            .collect()
    }

    /// What has changed since the last call, for the ledger.
    pub(super) fn take_changes(&self) -> Vec<Change> {
        let mut errors = self.errors.lock();
        let dirty = std::mem::take(&mut errors.dirty);
        dirty
            .into_iter()
            .map(|dirty| errors.stored(&dirty))
            .collect()
    }
}

impl Errors {
    fn take(&mut self, stored: Stored) {
        match stored {
            Stored::Lost { inode, path, runs } => {
                let ino = Ino(inode);
                for run in runs {
                    self.take_run(ino, run);
                }
                if let Some(path) = path {
                    self.paths.insert(ino, path);
                }
            }
            Stored::Failed {
                mirror,
                file,
                segment,
                blocks,
            } => {
                let copy = Copy {
                    mirror,
                    file,
                    segment,
                };
                let blocks = blocks
                    .into_iter()
                    .map(|(at, len, event)| (at, (len, event)));
                self.failed.insert(copy, blocks.collect());
            }
            Stored::Metadata { places } => self.metadata.extend(
                places
                    .into_iter()
                    .map(|(file, at, event)| ((file, at), event)),
            ),
        }
    }

    fn take_run(&mut self, ino: Ino, run: LostRun) {
        let mut done = 0;
        while done < run.length && self.lost.len() < LOST_MAX {
            let block = LostBlock {
                segment: SegmentNo(run.segment),
                at: run.at.saturating_add(done as u32),
                len: (run.length - done).min(BLOCK_U64),
                told: 0,
                events: run.events.clone(),
            };
            self.lost
                .insert((ino, run.offset.saturating_add(done)), block);
            done += BLOCK_U64;
        }
    }

    fn stored(&self, dirty: &Dirty) -> Change {
        let (key, value) = match dirty {
            Dirty::Lost(ino) => {
                let runs = self.runs(*ino);
                let value = (!runs.is_empty()).then(|| Stored::Lost {
                    inode: ino.0,
                    path: self.paths.get(ino).cloned(),
                    runs,
                });
                (format!("lost/{ino}"), value)
            }
            Dirty::Failed(copy) => {
                let value = self.failed.get(copy).map(|blocks| Stored::Failed {
                    mirror: copy.mirror.clone(),
                    file: copy.file.clone(),
                    segment: copy.segment,
                    blocks: blocks
                        .iter()
                        .map(|(at, (len, event))| (*at, *len, *event))
                        .collect(),
                });
                (format!("failed/{}/{}", copy.mirror, copy.file), value)
            }
            Dirty::Metadata => {
                let places = self.metadata.iter();
                let places: Vec<_> = places
                    .map(|((file, at), event)| (file.clone(), *at, *event))
                    .collect();
                let value = (!places.is_empty()).then_some(Stored::Metadata { places });
                ("metadata".to_owned(), value)
            }
        };
        // Plain data always serialises.
        (key, value.and_then(|value| serde_json::to_vec(&value).ok()))
    }

    fn runs(&self, ino: Ino) -> Vec<LostRun> {
        let mut runs: Vec<LostRun> = Vec::new();
        for ((_, offset), block) in self.lost.range((ino, 0)..=(ino, u64::MAX)) {
            let follows = |run: &LostRun| {
                run.length.is_multiple_of(BLOCK_U64)
                    && run.offset + run.length == *offset
                    && u64::from(run.at) + run.length == u64::from(block.at)
                    && (run.segment, &run.events) == (block.segment.0, &block.events)
            };
            match runs.last_mut() {
                Some(run) if follows(run) => run.length += block.len,
                _ => runs.push(LostRun {
                    offset: *offset,
                    segment: block.segment.0,
                    at: block.at,
                    length: block.len,
                    events: block.events.clone(),
                }),
            }
        }
        runs
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: Ino = Ino(7);

    fn block(number: u64) -> LostBlock {
        LostBlock {
            segment: SegmentNo(3),
            at: (number * BLOCK_U64) as u32,
            len: if number == 9 { 100 } else { BLOCK_U64 },
            told: 0,
            events: vec![1],
        }
    }

    fn copy() -> Copy {
        Copy {
            mirror: "uuid".to_owned(),
            file: "segments/03/3.seg".to_owned(),
            segment: Some(3),
        }
    }

    fn stored(changes: Vec<Change>) -> Vec<(String, Vec<u8>)> {
        let rows = changes.into_iter();
        rows.filter_map(|(key, value)| Some((key, value?)))
            .collect()
    }

    #[test]
    fn errors_survive_their_way_through_the_ledger() {
        let current = Current::default();
        for number in [0, 1, 2, 5, 6, 9] {
            let path = Some("a/b".to_owned());
            current.lost(FILE, number * BLOCK_U64, block(number), path);
        }
        current.failed(copy(), 4096, 4096, 2);
        current.lost_metadata("index".to_owned(), 8192, 3);
        let rows = stored(current.take_changes());
        assert_eq!(rows.len(), 3, "a row for each file: {rows:?}");
        assert!(current.take_changes().is_empty());
        let again = Current::default();
        assert!(!again.any());
        again.load(rows);
        assert!(again.any());
        let all = Ino(0)..=Ino(u64::MAX);
        assert_eq!(again.lost_of(all.clone()), current.lost_of(all));
        assert_eq!(again.path(FILE).as_deref(), Some("a/b"));
        assert_eq!(again.failed_data(), [(copy(), 4096)]);
        assert_eq!(again.metadata(), ["index at 8192"]);
        assert_eq!(again.events(), BTreeSet::from([1, 2, 3]));
    }

    #[test]
    fn what_is_mended_leaves_the_list_and_the_ledger() {
        let current = Current::default();
        current.lost(FILE, 0, block(0), None);
        current.failed(copy(), 4096, 4096, 2);
        current.lost_metadata("index".to_owned(), 8192, 3);
        current.take_changes();
        let mut other = block(0);
        other.at = 9;
        assert_eq!(current.take_lost(FILE, &[(0, other)]), 0, "another by now");
        assert_eq!(current.take_lost(FILE, &[(0, block(0))]), 1);
        current.mended(Some("another"), &copy().file, 0..8192);
        assert_eq!(current.failed_count(), 1);
        current.mended(Some("uuid"), &copy().file, 0..4096);
        assert_eq!(current.failed_count(), 1, "not in the range");
        current.mended(None, &copy().file, 0..8192);
        assert_eq!(current.failed_count(), 0);
        current.mended(None, "index", 8192..12288);
        assert!(!current.any());
        current.failed(copy(), 0, 4096, 2);
        current.keep_mirrors(&BTreeSet::from(["uuid".to_owned()]));
        assert!(current.any());
        current.keep_mirrors(&BTreeSet::new());
        assert!(!current.any(), "of a mirror that is none any more");
        let changes = current.take_changes();
        assert_eq!(changes.len(), 3);
        assert!(
            changes.iter().all(|(_, value)| value.is_none()),
            "{changes:?}"
        );
    }
}
