//! The sled databases under the ledger. Only this file names sled.
//!
//! Opening a sled database writes to it, so that is put off until there is something to record or
//! to read: a mount to which nothing ever happened leaves the mirrors as they are.
//!
//! Each database holds the events by number, and in a tree of their own the errors that are there
//! now, by key. The databases are alike: one that lags behind when it is opened is given what the
//! one with the newest event has.

use std::ops::Deref;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

use super::event::Event;
use crate::backing::set_aside;

/// Events kept; the oldest go first.
const RETAINED: u64 = 100_000;
/// Older events go, in seconds: two years.
const RETAINED_FOR: i64 = 2 * 365 * 86_400;
/// sled's cache, in bytes: the ledger is written, and rarely read.
const CACHE: u64 = 1 << 20;
/// How often sled writes to disk on its own, in milliseconds.
const FLUSH_MS: u64 = 1000;
/// Tree of the errors that are there now.
const CURRENT: &str = "current";
/// The tree of what is kept under a name.
const REMEMBERED: &str = "remembered";
/// Rows copied to another database in one batch.
const BATCH: usize = 1000;

/// A change of the current errors: put, or taken away if there is no value.
pub type Change = (String, Option<Vec<u8>>);

#[derive(Debug)]
struct Database {
    directory: PathBuf,
    events: Guarded<sled::Db>,
    current: Guarded<sled::Tree>,
    remembered: Guarded<sled::Tree>,
}

/// A part of sled that may panic when it is closed, as on a disk that fails: that must not take the
/// mount with it.
#[derive(Debug)]
struct Guarded<T>(Option<T>);

impl<T> Deref for Guarded<T> {
    type Target = T;

    fn deref(&self) -> &T {
        match &self.0 {
            Some(part) => part,
            None => unreachable!("there until it is dropped"),
        }
    }
}

impl<T> Drop for Guarded<T> {
    fn drop(&mut self) {
        let part = self.0.take();
        if let Err(cause) = guarded(|| {
            drop(part);
            Ok::<(), String>(())
        }) {
            log::warn!("a ledger was not closed in order: {cause}");
        }
    }
}

/// A directory that is not open yet.
#[derive(Debug)]
struct Unopened {
    directory: PathBuf,
    /// Joined later: what it holds is of another time, and counts for nothing.
    joining: bool,
}

/// The ledgers of all mirrors, kept alike.
#[derive(Debug, Default)]
pub struct Ledger {
    /// Whether there is to be a ledger at all.
    kept: bool,
    unopened: Vec<Unopened>,
    databases: Vec<Database>,
}

fn open_database(directory: &Path) -> Result<Database, String> {
    let open = || {
        let events = sled::Config::new()
            .path(directory)
            .cache_capacity(CACHE)
            .flush_every_ms(Some(FLUSH_MS))
            .open()?;
        let current = events.open_tree(CURRENT)?;
        let remembered = events.open_tree(REMEMBERED)?;
        let directory = directory.to_owned();
        Ok::<_, sled::Error>(Database {
            directory,
            events: Guarded(Some(events)),
            current: Guarded(Some(current)),
            remembered: Guarded(Some(remembered)),
        })
    };
    guarded(open)
}

/// sled asserts on some damaged files: a broken ledger must not take the mount with it.
fn guarded<T, E: ToString>(work: impl FnOnce() -> Result<T, E>) -> Result<T, String> {
    match catch_unwind(AssertUnwindSafe(work)) {
        Ok(result) => result.map_err(|error| error.to_string()),
        Err(_) => Err("it is damaged".to_owned()),
    }
}

fn open_or_begin(directory: &Path) -> Option<Database> {
    let cause = match open_database(directory) {
        Ok(database) => return Some(database),
        Err(cause) => cause,
    };
    match set_aside(directory) {
        Ok(aside) => log::warn!(
            "the ledger {} does not open ({cause}); it was set aside as {} and a new one begun",
            directory.display(),
            aside.display()
        ),
        Err(error) => {
            log::warn!(
                "the ledger {} does not open: {cause}; {error}",
                directory.display()
            );
            return None;
        }
    }
    open_database(directory)
        .inspect_err(|cause| log::warn!("no ledger in {}: {cause}", directory.display()))
        .ok()
}

fn number(key: &[u8]) -> u64 {
    key.try_into().map_or(0, u64::from_be_bytes)
}

impl Database {
    /// Number that the next event gets.
    fn next(&self) -> u64 {
        match self.events.last() {
            Ok(Some((key, _))) => number(&key) + 1,
            Ok(None) | Err(_) => 0,
        }
    }

    fn record(&self, events: &[Event], current: &[Change]) -> Result<(), String> {
        let mut batch = sled::Batch::default();
        for event in events {
            let value = serde_json::to_vec(event).map_err(|error| error.to_string())?;
            batch.insert(&event.number.to_be_bytes(), value);
        }
        let mut errors = sled::Batch::default();
        for (key, value) in current {
            match value {
                Some(value) => errors.insert(key.as_bytes(), value.as_slice()),
                None => errors.remove(key.as_bytes()),
            }
        }
        let text = |error: sled::Error| error.to_string();
        self.events.apply_batch(batch).map_err(text)?;
        self.current.apply_batch(errors).map_err(text)?;
        match events.last() {
            Some(newest) => self.trim(newest).map_err(text),
            None => Ok(()),
        }
    }

    /// Drops the oldest events beyond what is retained.
    fn trim(&self, newest: &Event) -> Result<(), sled::Error> {
        let keep_from = (newest.number + 1).saturating_sub(RETAINED);
        let oldest = newest.time.saturating_sub(RETAINED_FOR);
        let mut batch = sled::Batch::default();
        for row in self.events.iter() {
            let (key, value) = row?;
            let old =
                || serde_json::from_slice::<Event>(&value).is_ok_and(|event| event.time < oldest);
            if number(&key) >= keep_from && !old() {
                break;
            }
            batch.remove(key);
        }
        self.events.apply_batch(batch)
    }

    /// Makes this database what the other one is.
    fn copy_from(&self, other: &Database) -> Result<(), String> {
        let text = |error: sled::Error| error.to_string();
        copy(&self.events, &other.events, &self.next().to_be_bytes()).map_err(text)?;
        for (to, from) in [
            (&self.current, &other.current),
            (&self.remembered, &other.remembered),
        ] {
            to.clear()
                .and_then(|()| copy(to, from, &[]))
                .map_err(text)?;
        }
        Ok(())
    }

    fn clear(&self) -> sled::Result<()> {
        self.events.clear()?;
        self.current.clear()?;
        self.remembered.clear()
    }
}

fn copy(to: &sled::Tree, from: &sled::Tree, start: &[u8]) -> Result<(), sled::Error> {
    let mut batch = sled::Batch::default();
    for (count, row) in (1..).zip(from.range(start..)) {
        let (key, value) = row?;
        batch.insert(key, value);
        if count % BATCH == 0 {
            to.apply_batch(std::mem::take(&mut batch))?;
        }
    }
    to.apply_batch(batch)
}

impl Ledger {
    /// The ledger in these directories. They are opened at first use; those that do not open are
    /// set aside then.
    pub fn new(directories: Vec<PathBuf>) -> Ledger {
        let unopened = directories.into_iter().map(|directory| Unopened {
            directory,
            joining: false,
        });
        Ledger {
            kept: true,
            unopened: unopened.collect(),
            databases: Vec::new(),
        }
    }

    /// A mirror joins: its ledger becomes a copy of the others' when there is something to record
    /// or to read, or at the next flush.
    pub fn add_directory(&mut self, directory: PathBuf) {
        if !self.kept {
            return;
        }
        self.remove_directory(&directory);
        self.unopened.push(Unopened {
            directory,
            joining: true,
        });
    }

    /// A mirror leaves: its ledger is closed and stays as it is.
    pub fn remove_directory(&mut self, directory: &Path) {
        self.unopened.retain(|other| other.directory != directory);
        self.databases.retain(|other| other.directory != directory);
    }

    /// These are the directories from now on: the others leave, and those that were not among them
    /// join.
    pub fn set_directories(&mut self, directories: &[PathBuf]) {
        let open = self.databases.iter().map(|database| &database.directory);
        let all = open.chain(self.unopened.iter().map(|unopened| &unopened.directory));
        let known: Vec<PathBuf> = all.cloned().collect();
        for directory in directories.iter().filter(|new| !known.contains(new)) {
            self.add_directory(directory.clone());
        }
        if !self.databases.is_empty() {
            // Before those leave that it is to be copied from.
            self.open(|_| true);
        }
        for directory in known.iter().filter(|known| !directories.contains(known)) {
            self.remove_directory(directory);
        }
    }

    /// What the ledger holds from before: the number for the next event, and the errors that are
    /// there. Opens nothing where there is no ledger yet.
    pub fn load(&mut self) -> (u64, Vec<(String, Vec<u8>)>) {
        self.open(|unopened| unopened.directory.exists());
        let Some(database) = self.databases.first() else {
            return (0, Vec::new());
        };
        let rows = database.current.iter().filter_map(Result::ok);
        let current = rows.filter_map(|(key, value)| {
            Some((String::from_utf8(key.to_vec()).ok()?, value.to_vec()))
        });
        (database.next(), current.collect())
    }

    /// Opens what is asked for and makes all that are open alike.
    fn open(&mut self, wanted: impl Fn(&Unopened) -> bool) {
        if !self.unopened.iter().any(&wanted) {
            return;
        }
        for unopened in std::mem::take(&mut self.unopened) {
            if !wanted(&unopened) {
                self.unopened.push(unopened);
                continue;
            }
            let Some(database) = open_or_begin(&unopened.directory) else {
                continue;
            };
            if unopened.joining
                && let Err(cause) = guarded(|| database.clear())
            {
                log::warn!("the ledger {}: {cause}", unopened.directory.display());
            }
            self.databases.push(database);
        }
        self.level();
    }

    fn level(&mut self) {
        // The first of those that are furthest: the one that joined last comes last.
        let furthest = self.databases.iter().map(Database::next).max();
        let best = self
            .databases
            .iter()
            .position(|database| Some(database.next()) == furthest);
        let Some(best) = best else { return };
        self.databases.swap(0, best);
        let Some((best, others)) = self.databases.split_first() else {
            return;
        };
        for other in others {
            if Some(other.next()) != furthest
                && let Err(cause) = guarded(|| other.copy_from(best))
            {
                log::warn!("the ledger {} lags: {cause}", other.directory.display());
            }
        }
    }

    /// Puts events, new ones and ones that have grown, and changes of the current errors into the
    /// ledger of every mirror. One that fails is left out from then on.
    pub fn record(&mut self, events: &[Event], current: &[Change]) {
        if events.is_empty() && current.is_empty() {
            return;
        }
        self.open(|_| true);
        self.databases.retain(|database| {
            let added = guarded(|| database.record(events, current));
            if let Err(cause) = &added {
                let directory = database.directory.display();
                log::warn!("the ledger {directory} fails: {cause}");
            }
            added.is_ok()
        });
    }

    fn read<T>(&mut self, read: impl FnOnce(&sled::Db) -> Vec<T>) -> Vec<T> {
        // Nobody makes a ledger by looking at it.
        self.open(|unopened| unopened.directory.exists());
        let Some(database) = self.databases.first() else {
            return Vec::new();
        };
        guarded(|| Ok::<_, String>(read(&database.events))).unwrap_or_default()
    }

    /// The newest `limit` events, oldest first.
    pub fn latest(&mut self, limit: usize) -> Vec<Event> {
        let mut events = self.read(|database| {
            let rows = database.iter().rev().filter_map(Result::ok);
            rows.filter_map(|(_, value)| serde_json::from_slice(&value).ok())
                .take(limit)
                .collect()
        });
        events.reverse();
        events
    }

    /// The first `limit` events with this number or a higher one, oldest first.
    pub fn from(&mut self, number: u64, limit: usize) -> Vec<Event> {
        self.read(|database| {
            let rows = database.range(number.to_be_bytes()..);
            rows.filter_map(Result::ok)
                .filter_map(|(_, value)| serde_json::from_slice(&value).ok())
                .take(limit)
                .collect()
        })
    }

    /// Keeps a value under a name on every mirror, beside the events, and puts it on disk.
    pub fn remember(&mut self, name: &str, value: &[u8]) {
        self.open(|_| true);
        for database in &self.databases {
            let put = || -> sled::Result<()> {
                database.remembered.insert(name, value)?;
                database.events.flush().map(|_| ())
            };
            if let Err(error) = guarded(put) {
                let directory = database.directory.display();
                log::warn!("the ledger {directory} does not remember \"{name}\": {error}");
            }
        }
    }

    /// What is kept under a name: the value of each mirror that has one. A ledger that was never
    /// written is not made for this.
    pub fn remembered(&mut self, name: &str) -> Vec<Vec<u8>> {
        self.open(|unopened| unopened.directory.exists());
        let databases = self.databases.iter();
        databases
            .filter_map(|database| Some(database.remembered.get(name).ok()??.to_vec()))
            .collect()
    }

    /// Puts everything on disk.
    pub fn flush(&mut self) {
        if !self.databases.is_empty() {
            self.open(|_| true);
        }
        for database in &self.databases {
            if let Err(error) = guarded(|| database.events.flush()) {
                log::warn!(
                    "the ledger {} cannot be written: {error}",
                    database.directory.display()
                );
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::event::What;
    use super::*;

    fn event(number: u64) -> Event {
        let what = What::Mirror {
            mirror: "/a".to_owned(),
            state: "failed".to_owned(),
            cause: "test".to_owned(),
        };
        Event {
            number,
            time: 1_700_000_000 + number as i64,
            nanoseconds: 0,
            what,
        }
    }

    fn put(key: &str, value: &str) -> Change {
        (key.to_owned(), Some(value.as_bytes().to_vec()))
    }

    #[test]
    fn events_and_errors_are_there_after_reopening_and_in_order() {
        let dir = tempfile::tempdir().unwrap();
        let paths = vec![dir.path().join("a"), dir.path().join("b")];
        let mut ledger = Ledger::new(paths.clone());
        assert_eq!(ledger.load(), (0, Vec::new()));
        ledger.record(&[event(0), event(1)], &[put("x", "1"), put("y", "2")]);
        ledger.record(&[], &[("x".to_owned(), None)]);
        ledger.flush();
        drop(ledger);
        let mut ledger = Ledger::new(paths.into_iter().rev().collect());
        assert_eq!(ledger.load(), (2, vec![("y".to_owned(), b"2".to_vec())]));
        ledger.record(&[event(2)], &[]);
        assert_eq!(ledger.latest(10), [event(0), event(1), event(2)]);
        assert_eq!(ledger.latest(2), [event(1), event(2)]);
        assert_eq!(ledger.from(1, 1), [event(1)]);
        assert_eq!(ledger.from(1, 9), [event(1), event(2)]);
    }

    #[test]
    fn an_event_that_grows_keeps_its_number() {
        let dir = tempfile::tempdir().unwrap();
        let mut ledger = Ledger::new(vec![dir.path().join("a")]);
        ledger.record(&[event(0), event(1)], &[]);
        let mut grown = event(0);
        grown.nanoseconds = 5;
        ledger.record(&[grown.clone()], &[]);
        assert_eq!(ledger.latest(10), [grown, event(1)]);
    }

    #[test]
    fn what_is_remembered_is_there_after_reopening_and_is_no_event() {
        let dir = tempfile::tempdir().unwrap();
        let paths = vec![dir.path().join("a"), dir.path().join("b")];
        let mut ledger = Ledger::new(paths.clone());
        assert!(ledger.remembered("job").is_empty());
        assert!(!paths[0].exists(), "asking makes no ledger");
        ledger.remember("job", b"one");
        ledger.remember("job", b"two");
        ledger.record(&[event(1)], &[]);
        drop(ledger);
        let mut ledger = Ledger::new(paths);
        assert_eq!(ledger.remembered("job"), [b"two", b"two"]);
        assert!(ledger.remembered("other").is_empty());
        assert_eq!(ledger.latest(10), [event(1)]);
    }

    #[test]
    fn nothing_is_written_while_nothing_happens() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ledger");
        let mut ledger = Ledger::new(vec![path.clone()]);
        ledger.load();
        ledger.record(&[], &[]);
        ledger.latest(5);
        ledger.flush();
        assert!(!path.exists());
        ledger.record(&[event(1)], &[]);
        assert!(path.exists());
    }

    #[test]
    fn a_mirror_that_joins_or_lags_gets_what_the_others_have() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        // One that was alone for a while, and so has numbers of its own.
        let mut other = Ledger::new(vec![path("joins")]);
        other.record(&(10..20).map(event).collect::<Vec<_>>(), &[put("old", "")]);
        drop(other);
        let mut ledger = Ledger::new(vec![path("a")]);
        ledger.record(&(0..3000).map(event).collect::<Vec<_>>(), &[put("x", "1")]);
        ledger.add_directory(path("joins"));
        ledger.flush();
        drop(ledger);
        for names in [["joins", "lags"], ["lags", "joins"]] {
            let mut ledger = Ledger::new(names.map(path).to_vec());
            let (next, current) = ledger.load();
            assert_eq!((next, current.len(), current[0].0.as_str()), (3000, 1, "x"));
            ledger.record(&[event(2999)], &[]);
            ledger.flush();
        }
        let mut ledger = Ledger::new(vec![path("lags")]);
        assert_eq!(ledger.load().1.len(), 1);
        assert_eq!(ledger.latest(usize::MAX).len(), 3000);
        ledger.set_directories(&[path("joins")]);
        assert_eq!(ledger.latest(1)[0].number, 2999);
        ledger.set_directories(&[]);
        assert!(ledger.latest(1).is_empty());
    }

    #[test]
    fn old_events_go() {
        let dir = tempfile::tempdir().unwrap();
        let mut ledger = Ledger::new(vec![dir.path().join("a")]);
        ledger.record(&(0..10).map(event).collect::<Vec<_>>(), &[]);
        let mut late = event(10);
        late.time = event(5).time + RETAINED_FOR;
        ledger.record(&[late.clone()], &[]);
        assert_eq!(ledger.latest(100).len(), 6);
        // By their number too, without reading what is kept.
        ledger.record(&[event(RETAINED + 7)], &[]);
        assert_eq!(ledger.latest(100)[0].number, 8);
    }

    #[test]
    fn a_ledger_that_does_not_open_is_set_aside() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ledger");
        std::fs::write(&path, b"this is no directory").unwrap();
        let mut ledger = Ledger::new(vec![path.clone()]);
        ledger.record(&[event(1)], &[]);
        assert_eq!(ledger.latest(10).len(), 1);
        let aside: Vec<_> = std::fs::read_dir(dir.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .filter(|name| name.starts_with("ledger.broken-"))
            .collect();
        assert_eq!(aside.len(), 1);
    }
}
