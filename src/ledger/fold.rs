//! Folding: a mirror that lost a hundred thousand blocks is a few events and not as many lines.
//!
//! Blocks of the same file, on the same mirror, damaged in the same way and with the same fate,
//! become one event while they keep coming; the event grows, under its number. When too many files
//! are concerned at once, the rest of them share one event too. Counts stay exact.

use std::collections::{BTreeMap, BTreeSet};

use super::event::{Damaged, Event, Range, What};

/// An event takes no more incidents when none has come for this many seconds.
const OPEN_FOR: i64 = 60;
/// Events that grow at the same time; what concerns yet another file is folded together.
const OPEN_MAX: usize = 64;
/// Ranges listed in an event.
const RANGES_MAX: usize = 128;
/// Files told apart in an event about many.
const FILES_MAX: usize = 1 << 16;

/// One damaged block.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Occurrence {
    /// Seconds since 1970.
    pub time: i64,
    /// Nanoseconds within that second.
    pub nanoseconds: u32,
    /// Blocks: more than one if they were only counted.
    pub count: u64,
    /// All that is told of one block; `ranges`, `count`, `files` and `until` are filled in here.
    pub block: Damaged,
    /// Its offset in the file it belongs to, or in the stored file if it belongs to none.
    pub offset: u64,
    /// Its length; 0 if that is not known.
    pub length: u64,
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Subject {
    File(u64),
    Stored(String),
    Many,
}

/// What incidents of one event have in common.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Like {
    subject: Subject,
    mirror: String,
    kind: String,
    cause: String,
    outcome: String,
    detail: Option<String>,
}

#[derive(Debug)]
struct Open {
    number: u64,
    time: i64,
    nanoseconds: u32,
    damaged: Damaged,
    inodes: BTreeSet<u64>,
    changed: bool,
}

/// Makes events of what happens, and gives them their numbers.
#[derive(Debug, Default)]
pub struct Folder {
    next: u64,
    open: BTreeMap<Like, Open>,
    /// Complete, and not taken yet.
    closed: Vec<Event>,
}

impl Folder {
    /// A folder whose first event gets this number.
    pub fn new(next: u64) -> Folder {
        Folder {
            next,
            ..Folder::default()
        }
    }

    fn number(&mut self) -> u64 {
        let number = self.next;
        self.next += 1;
        number
    }

    /// A damaged block: the number of the event that tells of it.
    pub fn damage(&mut self, occurrence: Occurrence) -> u64 {
        let block = &occurrence.block;
        let mut like = Like {
            subject: match block.inode {
                Some(inode) => Subject::File(inode),
                None => Subject::Stored(block.stored_in.clone()),
            },
            mirror: block.mirror.clone(),
            kind: block.kind.clone(),
            cause: block.cause.clone(),
            outcome: block.outcome.clone(),
            detail: block.detail.clone(),
        };
        let fresh = |open: &Open| occurrence.time <= open.damaged.until.saturating_add(OPEN_FOR);
        if !self.open.get(&like).is_some_and(fresh) {
            self.close_idle(occurrence.time);
            if self.open.len() >= OPEN_MAX || occurrence.count > 1 {
                like.subject = Subject::Many;
            }
        }
        if !self.open.get(&like).is_some_and(fresh) {
            if let Some(old) = self.open.remove(&like) {
                self.close(old);
            }
            let number = self.number();
            self.open.insert(like.clone(), begin(number, &occurrence));
        }
        let many = like.subject == Subject::Many;
        match self.open.get_mut(&like) {
            Some(open) => {
                open.add(&occurrence, many);
                open.number
            }
            // Just put in.
            None => self.next,
        }
    }

    /// Anything else.
    pub fn other(&mut self, time: i64, nanoseconds: u32, what: What) {
        let number = self.number();
        self.closed.push(Event {
            number,
            time,
            nanoseconds,
            what,
        });
    }

    fn close(&mut self, open: Open) {
        if open.changed {
            self.closed.push(open.event());
        }
    }

    fn close_idle(&mut self, now: i64) {
        let idle = |open: &Open| now > open.damaged.until.saturating_add(OPEN_FOR);
        let all = std::mem::take(&mut self.open);
        for (like, open) in all {
            if idle(&open) {
                self.close(open);
            } else {
                self.open.insert(like, open);
            }
        }
    }

    /// The events that are new or have grown since the last call, by number.
    pub fn take_changed(&mut self) -> Vec<Event> {
        let mut events = std::mem::take(&mut self.closed);
        for open in self.open.values_mut().filter(|open| open.changed) {
            open.changed = false;
            events.push(open.event());
        }
        events.sort_by_key(|event| event.number);
        events
    }
}

fn begin(number: u64, occurrence: &Occurrence) -> Open {
    let mut damaged = occurrence.block.clone();
    damaged.ranges = Vec::new();
    (damaged.count, damaged.bytes, damaged.not_listed) = (0, 0, 0);
    Open {
        number,
        time: occurrence.time,
        nanoseconds: occurrence.nanoseconds,
        damaged,
        inodes: BTreeSet::new(),
        changed: true,
    }
}

impl Open {
    fn event(&self) -> Event {
        Event {
            number: self.number,
            time: self.time,
            nanoseconds: self.nanoseconds,
            what: What::Damage(self.damaged.clone()),
        }
    }

    fn add(&mut self, occurrence: &Occurrence, many: bool) {
        self.changed = true;
        let damaged = &mut self.damaged;
        damaged.count += occurrence.count;
        damaged.bytes += occurrence.length;
        damaged.until = damaged.until.max(occurrence.time);
        if let Some(inode) = occurrence.block.inode
            && self.inodes.len() < FILES_MAX
        {
            self.inodes.insert(inode);
        }
        damaged.files = self.inodes.len() as u64;
        if many {
            (damaged.path, damaged.inode) = (None, None);
            damaged.not_listed = damaged.count;
        } else if occurrence.length == 0
            || !insert(&mut damaged.ranges, occurrence.offset, occurrence.length)
        {
            damaged.not_listed += occurrence.count;
        }
    }
}

/// Adds a range to a sorted list and joins those that touch; false if the list is full.
fn insert(ranges: &mut Vec<Range>, offset: u64, length: u64) -> bool {
    let at = ranges.partition_point(|range| range.offset <= offset);
    let touches = |range: &Range| range.offset + range.length >= offset;
    if let Some(before) = at.checked_sub(1).filter(|before| touches(&ranges[*before])) {
        let end = (offset + length).max(ranges[before].offset + ranges[before].length);
        ranges[before].length = end - ranges[before].offset;
        if let Some(next) = ranges.get(at).copied().filter(|next| next.offset <= end) {
            ranges[before].length = end.max(next.offset + next.length) - ranges[before].offset;
            ranges.remove(at);
        }
        return true;
    }
    let full = ranges.len() >= RANGES_MAX;
    match ranges.get_mut(at) {
        Some(next) if offset + length >= next.offset => {
            next.length = (offset + length).max(next.offset + next.length) - offset;
            next.offset = offset;
            true
        }
        _ if full => false,
        _ => {
            ranges.insert(at, Range { offset, length });
            true
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn block(inode: u64, number: u64) -> Occurrence {
        Occurrence {
            time: 1000,
            nanoseconds: 0,
            count: 1,
            block: Damaged {
                mirror: "/a".to_owned(),
                kind: "data".to_owned(),
                inode: Some(inode),
                path: Some(format!("/{inode}")),
                cause: "checksum".to_owned(),
                outcome: "repaired".to_owned(),
                fixed: true,
                ..Damaged::default()
            },
            offset: number * 4096,
            length: 4096,
        }
    }

    fn damaged(event: &Event) -> &Damaged {
        match &event.what {
            What::Damage(damaged) => damaged,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_hundred_thousand_blocks_of_one_file_are_one_event() {
        let mut folder = Folder::new(7);
        for number in 0..100_000 {
            assert_eq!(folder.damage(block(1, number)), 7);
            if number == 500 {
                assert_eq!(folder.take_changed().len(), 1);
            }
        }
        let events = folder.take_changed();
        assert_eq!(events.len(), 1);
        let found = damaged(&events[0]);
        assert_eq!((found.count, found.bytes), (100_000, 100_000 * 4096));
        let all = Range {
            offset: 0,
            length: 100_000 * 4096,
        };
        assert_eq!(found.ranges, [all]);
        assert!(folder.take_changed().is_empty(), "nothing new");
    }

    #[test]
    fn a_flood_over_many_files_is_few_events_and_every_block_is_counted() {
        let mut folder = Folder::new(0);
        for inode in 0..50_000 {
            folder.damage(block(inode, 0));
            folder.damage(block(inode, 2));
        }
        let events = folder.take_changed();
        assert!(events.len() <= OPEN_MAX + 1, "{}", events.len());
        let count: u64 = events.iter().map(|event| damaged(event).count).sum();
        assert_eq!(count, 100_000);
        let files: u64 = events.iter().map(|event| damaged(event).files).sum();
        assert_eq!(files, 50_000);
        let last = damaged(events.last().unwrap());
        assert_eq!((last.inode, &last.path), (None, &None));
    }

    #[test]
    fn what_differs_is_told_apart() {
        let mut folder = Folder::new(0);
        let mut numbers = BTreeSet::new();
        numbers.insert(folder.damage(block(1, 0)));
        let mut other = block(1, 0);
        other.block.mirror = "/b".to_owned();
        numbers.insert(folder.damage(other));
        let mut other = block(1, 0);
        other.block.outcome = "lost".to_owned();
        numbers.insert(folder.damage(other));
        let mut other = block(1, 0);
        other.block.cause = "missing".to_owned();
        numbers.insert(folder.damage(other));
        let mut later = block(1, 0);
        later.time += OPEN_FOR + 1;
        numbers.insert(folder.damage(later));
        assert_eq!(numbers.len(), 5);
        assert_eq!(folder.take_changed().len(), 5);
    }

    #[test]
    fn ranges_join_and_are_bounded() {
        let mut ranges = Vec::new();
        for offset in [0, 20, 10, 5, 40, 15, 30] {
            assert!(insert(&mut ranges, offset, 5));
        }
        let list: Vec<_> = ranges.iter().map(|r| (r.offset, r.length)).collect();
        assert_eq!(list, [(0, 25), (30, 5), (40, 5)]);
        let mut folder = Folder::new(0);
        for number in 0..1000 {
            folder.damage(block(1, number * 2));
        }
        let events = folder.take_changed();
        let found = damaged(&events[0]);
        assert_eq!(found.ranges.len(), RANGES_MAX);
        assert_eq!(found.not_listed, 1000 - RANGES_MAX as u64);
        assert_eq!(found.count, 1000);
    }
}
