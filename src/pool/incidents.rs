//! What happened to the mirrors, on its way to the log, the ledger and the status.
//!
//! The mirrors tell [`Incidents`] in the middle of a read, so it only queues. A service has
//! [`Pool::record_incidents`] find out which files are concerned and write it all down.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::ops::RangeInclusive;

use parking_lot::Mutex;

use super::commit::Pool;
use super::error::Result;
use super::open::Clock;
use super::scrub::Tally;
use super::status::{DamagedFile, DamagedRange};
use crate::backing::FileName;
use crate::format::{BLOCK_U64, Ino, Key, MAX_EXTENT, ReverseRow, SegmentNo, Timestamp};
use crate::index::Freed;
use crate::ledger::{Event, Ledger, What};
use crate::mirrors::{Incident, Mirror, Resolution, Witness};

/// Incidents kept until they are recorded; what comes beyond is counted.
const QUEUE_MAX: usize = 65536;
/// Inodes remembered as repaired.
const REPAIRED_MAX: usize = 65536;
/// Reverse rows looked at for the owners of a damaged block.
const OWNERS_MAX: usize = 256;
/// Directory entries looked at for the paths of one batch of incidents; the files of the rest are
/// named by their inodes. A flood in a large directory must not stop all else.
const PATH_ROWS: usize = 2 << 20;
/// Lost blocks remembered; a mirror that is lost as a whole has many more.
const LOST_MAX: usize = 1 << 18;
/// Incidents logged one by one at a time; the ledger has them all.
const LOGGED_AT_ONCE: usize = 20;

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

enum Entry {
    Incident(Incident),
    Other(What),
}

#[derive(Default)]
struct Queue {
    entries: VecDeque<(Timestamp, Entry)>,
    /// Too many to keep.
    folded: u64,
}

/// Blocks of files that are lost: (inode, offset of the block in the file) to its place.
type Lost = BTreeMap<(Ino, u64), (SegmentNo, u32, u64)>;

/// What happened and is not yet recorded, and what is known of files.
pub(super) struct Incidents {
    clock: Clock,
    queue: Mutex<Queue>,
    ledger: Mutex<Ledger>,
    lost: Mutex<Lost>,
    lost_metadata: Mutex<BTreeSet<String>>,
    repaired: Mutex<BTreeSet<Ino>>,
    /// Ranges to give back, of checkpoints that are done.
    freed: Mutex<Vec<Freed>>,
    suspects: Mutex<Suspects>,
    /// Damage of this file is counted here, and has nothing inspected: all of it is being checked.
    watch: Mutex<Option<(FileName, Tally)>>,
}

/// Where damage was seen.
#[derive(Debug, Default)]
struct Suspects {
    segments: BTreeSet<SegmentNo>,
    index: bool,
    journal: bool,
    /// Whether a service is checking some now.
    inspecting: bool,
}

impl std::fmt::Debug for Incidents {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Incidents").finish_non_exhaustive()
    }
}

impl Witness for Incidents {
    fn time(&self) -> i64 {
        (self.clock)().seconds
    }

    fn incident(&self, incident: Incident) {
        if !self.watched(&incident) {
            self.suspect(incident.place.file);
        }
        self.push(Entry::Incident(incident));
    }

    fn mirror_state(&self, mirror: &Mirror, cause: &str) {
        self.push(Entry::Other(What::Mirror {
            mirror: mirror.name(),
            state: mirror.state().name().to_owned(),
            cause: cause.to_owned(),
        }));
    }

    fn file_gone(&self, mirror: &Mirror, file: FileName) {
        self.suspect(file);
        self.push(Entry::Other(What::Gone {
            mirror: mirror.name(),
            stored_in: file.to_string(),
        }));
    }
}

impl Incidents {
    pub(super) fn new(clock: Clock, ledger: Ledger) -> Incidents {
        Incidents {
            clock,
            queue: Mutex::default(),
            ledger: Mutex::new(ledger),
            lost: Mutex::default(),
            lost_metadata: Mutex::default(),
            repaired: Mutex::default(),
            freed: Mutex::default(),
            suspects: Mutex::default(),
            watch: Mutex::default(),
        }
    }

    /// Whether somebody is checking all of that file; it is counted for him then.
    fn watched(&self, incident: &Incident) -> bool {
        let mut watch = self.watch.lock();
        let Some((file, tally)) = &mut *watch else {
            return false;
        };
        let ours = *file == incident.place.file;
        if ours {
            match incident.resolution {
                Resolution::Repaired => tally.repaired += 1,
                Resolution::Failed(_) | Resolution::Lost => tally.unrepairable += 1,
            }
        }
        ours
    }

    /// Does `work` and counts the damage of a file that is found meanwhile, by whomever.
    pub(super) fn watching<T>(&self, file: FileName, work: impl FnOnce() -> T) -> (T, Tally) {
        *self.watch.lock() = Some((file, Tally::default()));
        let result = work();
        let tally = self
            .watch
            .lock()
            .take()
            .map_or_else(Tally::default, |watch| watch.1);
        (result, tally)
    }

    fn push(&self, entry: Entry) {
        let mut queue = self.queue.lock();
        if queue.entries.len() < QUEUE_MAX {
            let now = (self.clock)();
            queue.entries.push_back((now, entry));
        } else {
            queue.folded += 1;
        }
    }

    fn suspect(&self, file: FileName) {
        let mut suspects = self.suspects.lock();
        match file {
            // The index is small, and reads of it go to one mirror only, like those of data.
            FileName::Segment(segment) => {
                suspects.segments.insert(segment);
                suspects.index = true;
            }
            FileName::Index | FileName::Sums => suspects.index = true,
            // Its records are durable elsewhere; a checkpoint makes them superfluous.
            FileName::Journal => suspects.journal = true,
            FileName::Readme | FileName::Superblock => {}
        }
    }

    /// Something else for the ledger.
    pub(super) fn note(&self, what: What) {
        self.push(Entry::Other(what));
    }

    pub(super) fn flush(&self) {
        self.ledger.lock().flush();
    }

    pub(super) fn freed(&self, freed: Vec<Freed>) {
        self.freed.lock().extend(freed);
    }
}

fn in_segment(incident: &Incident) -> bool {
    matches!(incident.place.file, FileName::Segment(_))
}

/// Paths found while a batch of incidents is recorded.
struct Paths {
    known: BTreeMap<Ino, Option<Vec<u8>>>,
    /// Entries that may still be looked at.
    rows_left: usize,
}

/// A place in a file.
struct Owner {
    ino: Ino,
    offset: u64,
}

impl Pool {
    /// Ranges of segments that finished checkpoints have freed and nobody has given back yet.
    pub fn take_freed(&self) -> Vec<Freed> {
        std::mem::take(&mut *self.incidents.freed.lock())
    }

    /// Where damage was seen since the last call: segments, and whether in the index.
    pub fn take_suspects(&self) -> (BTreeSet<SegmentNo>, bool) {
        let mut suspects = self.incidents.suspects.lock();
        // Until the service says otherwise: nobody may see nothing waiting and nothing checked.
        suspects.inspecting |= suspects.index || !suspects.segments.is_empty();
        (
            std::mem::take(&mut suspects.segments),
            std::mem::take(&mut suspects.index),
        )
    }

    /// Whether a mirror lost a part of the journal since the last call.
    pub fn take_suspect_journal(&self) -> bool {
        std::mem::take(&mut self.incidents.suspects.lock().journal)
    }

    /// Says whether a service is checking what is suspect.
    pub fn set_inspecting(&self, inspecting: bool) {
        self.incidents.suspects.lock().inspecting = inspecting;
    }

    /// Whether something suspect is not checked yet.
    pub(super) fn inspecting(&self) -> bool {
        let suspects = self.incidents.suspects.lock();
        suspects.inspecting || suspects.index || !suspects.segments.is_empty()
    }

    /// Writes down what happened since the last call; returns how many incidents that were.
    pub fn record_incidents(&self) -> usize {
        let (entries, folded) = {
            let mut queue = self.incidents.queue.lock();
            (
                std::mem::take(&mut queue.entries),
                std::mem::take(&mut queue.folded),
            )
        };
        let count = entries.len();
        let mut paths = Paths {
            known: BTreeMap::new(),
            rows_left: PATH_ROWS,
        };
        let mut events = Vec::with_capacity(count);
        for (number, (time, entry)) in entries.into_iter().enumerate() {
            let what = match entry {
                Entry::Other(what) => what,
                Entry::Incident(incident) => {
                    let what = self.describe(&incident, &mut paths);
                    if number < LOGGED_AT_ONCE {
                        log_damage(&what);
                    }
                    what
                }
            };
            events.push(Event {
                time: time.seconds,
                nanoseconds: time.nanoseconds,
                what,
            });
        }
        if count > LOGGED_AT_ONCE {
            log::warn!(
                "{} more incidents are in the ledger",
                count - LOGGED_AT_ONCE
            );
        }
        if folded > 0 {
            let now = self.now();
            let what = What::Folded { count: folded };
            events.push(Event {
                time: now.seconds,
                nanoseconds: now.nanoseconds,
                what,
            });
        }
        if !events.is_empty() {
            self.incidents.ledger.lock().record(&events);
        }
        count
    }

    /// Keeps a value under a name in the ledgers, durably; see [`Pool::remembered`].
    pub fn remember(&self, name: &str, value: &[u8]) {
        self.incidents.ledger.lock().remember(name, value);
    }

    /// The values kept under a name: one for each mirror whose ledger has one.
    pub fn remembered(&self, name: &str) -> Vec<Vec<u8>> {
        self.incidents.ledger.lock().remembered(name)
    }

    /// Has the ledger record something.
    pub fn note(&self, what: What) {
        self.incidents.note(what);
    }

    /// The newest `limit` events of the ledger, oldest first.
    pub fn events(&self, limit: usize) -> Vec<Event> {
        self.record_incidents();
        self.incidents.ledger.lock().latest(limit)
    }

    fn describe(&self, incident: &Incident, paths: &mut Paths) -> What {
        let owners = self.owners_of(incident).unwrap_or_default();
        for owner in &owners {
            match &incident.resolution {
                Resolution::Repaired => {
                    let mut repaired = self.incidents.repaired.lock();
                    if repaired.len() < REPAIRED_MAX {
                        repaired.insert(owner.ino);
                    }
                }
                Resolution::Lost => self.remember_lost(incident, owner),
                Resolution::Failed(_) => {}
            }
        }
        // In a segment without an owner it is what a deleted file had: nobody misses that.
        if incident.resolution == Resolution::Lost && !in_segment(incident) {
            let place = format!("{} at {}", incident.place.file, incident.place.offset);
            self.incidents.lost_metadata.lock().insert(place);
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
            Some((owner, path)) => (Some(owner), Some(path)),
            None => (owners.first(), None),
        };
        let (outcome, detail) = match &incident.resolution {
            Resolution::Repaired => ("repaired", None),
            Resolution::Failed(detail) => ("failed", Some(detail.clone())),
            Resolution::Lost => ("lost", None),
        };
        What::Damage {
            mirror: match self.mirrors.mirror(incident.mirror) {
                Some(mirror) => mirror.name(),
                None => "a mirror that was removed".to_owned(),
            },
            stored_in: incident.place.file.to_string(),
            stored_at: incident.place.offset,
            length: incident.len as u64,
            path: path.map(|path| String::from_utf8_lossy(&path).into_owned()),
            inode: owner.map(|owner| owner.ino.0),
            offset: owner.map(|owner| owner.offset),
            cause: incident.damage.name().to_owned(),
            outcome: outcome.to_owned(),
            detail,
        }
    }

    fn remember_lost(&self, incident: &Incident, owner: &Owner) {
        if let FileName::Segment(segment) = incident.place.file {
            let place = (segment, incident.place.offset as u32, incident.len as u64);
            let mut lost = self.incidents.lost.lock();
            if lost.len() < LOST_MAX {
                lost.insert((owner.ino, owner.offset), place);
            }
        }
    }

    /// The files that a damaged block of a segment belongs to: several if they share it, none if it
    /// was freed.
    fn owners_of(&self, incident: &Incident) -> Result<Vec<Owner>> {
        let FileName::Segment(segment) = incident.place.file else {
            return Ok(Vec::new());
        };
        let at = incident.place.offset as u32;
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

    /// The lost blocks that files still consist of: overwriting, cutting and deleting them ends the
    /// damage.
    fn current_lost(&self, of: RangeInclusive<Ino>) -> BTreeMap<Ino, Vec<(u64, u64)>> {
        let lost: Vec<_> = self
            .incidents
            .lost
            .lock()
            .range((*of.start(), 0)..=(*of.end(), u64::MAX))
            .map(|(key, place)| (*key, *place))
            .collect();
        let mut current: BTreeMap<Ino, Vec<(u64, u64)>> = BTreeMap::new();
        for ((ino, offset), (segment, at, len)) in lost {
            let rows = self
                .extents(ino, offset, offset + BLOCK_U64)
                .unwrap_or_default();
            let still = rows.iter().any(|(start, row)| {
                row.segment == segment && u64::from(row.offset) + (offset - start) == u64::from(at)
            });
            if !still {
                self.incidents.lost.lock().remove(&(ino, offset));
                continue;
            }
            let ranges = current.entry(ino).or_default();
            match ranges.last_mut() {
                Some((start, length)) if *start + *length == offset => *length += len,
                _ => ranges.push((offset, len)),
            }
        }
        current
    }

    /// How a file stands.
    pub fn health_of(&self, ino: Ino) -> FileHealth {
        self.record_incidents();
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
        self.current_lost(Ino(0)..=Ino(u64::MAX))
            .into_iter()
            .map(|(ino, ranges)| DamagedFile {
                inode: ino.0,
                path: self
                    .path_of(ino)
                    .ok()
                    .flatten()
                    .map_or_else(String::new, |path| {
                        format!("/{}", String::from_utf8_lossy(&path))
                    }),
                ranges: ranges
                    .into_iter()
                    .map(|(offset, length)| DamagedRange { offset, length })
                    .collect(),
            })
            .collect()
    }

    /// Damaged metadata that no mirror could supply.
    pub(super) fn damaged_metadata(&self) -> Vec<String> {
        self.incidents
            .lost_metadata
            .lock()
            .iter()
            .cloned()
            .collect()
    }
}

fn log_damage(what: &What) {
    let What::Damage {
        mirror,
        stored_in,
        stored_at,
        path,
        offset,
        cause,
        outcome,
        detail,
        ..
    } = what
    else {
        return;
    };
    let file = match (path, offset) {
        (Some(path), Some(offset)) => format!("/{path} at {offset}"),
        _ => "metadata or a deleted file".to_owned(),
    };
    let detail = detail
        .as_ref()
        .map_or_else(String::new, |detail| format!(" ({detail})"));
    let level = if outcome == "lost" {
        log::Level::Error
    } else {
        log::Level::Warn
    };
    log::log!(
        level,
        "damaged block of {file}: {mirror}/{stored_in} at {stored_at}: {cause}; {outcome}{detail}"
    );
}
