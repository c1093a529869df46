//! The sled databases under the ledger. Only this file names sled.
//!
//! Opening a sled database writes to it, so that is put off until there is something to record or
//! somebody wants to read: a mount to which nothing happens leaves the mirrors as they are.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

use super::event::Event;
use crate::backing::set_aside;

/// Events kept; the oldest go first.
const RETAINED: u64 = 100_000;
/// sled's cache, in bytes: the ledger is written, and rarely read.
const CACHE: u64 = 1 << 20;
/// How often sled writes to disk on its own, in milliseconds.
const FLUSH_MS: u64 = 1000;
/// The tree of what is kept under a name.
const REMEMBERED: &str = "remembered";

/// The ledgers of all mirrors, kept alike.
#[derive(Debug, Default)]
pub struct Ledger {
    /// Directories that are not open yet.
    unopened: Vec<PathBuf>,
    databases: Vec<(PathBuf, sled::Db)>,
    next: u64,
}

fn open_database(directory: &Path) -> Result<sled::Db, String> {
    let open = || {
        sled::Config::new()
            .path(directory)
            .cache_capacity(CACHE)
            .flush_every_ms(Some(FLUSH_MS))
            .open()
    };
    // sled asserts on some damaged files: a broken ledger must not take the mount with it.
    match catch_unwind(AssertUnwindSafe(open)) {
        Ok(Ok(database)) => Ok(database),
        Ok(Err(error)) => Err(error.to_string()),
        Err(_) => Err("it is damaged".to_owned()),
    }
}

fn open_or_begin(directory: &Path) -> Option<sled::Db> {
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

impl Ledger {
    /// The ledger in these directories. They are opened at first use; those that do not open are
    /// set aside then.
    pub fn new(directories: Vec<PathBuf>) -> Ledger {
        Ledger {
            unopened: directories,
            ..Ledger::default()
        }
    }

    fn open(&mut self) {
        for directory in std::mem::take(&mut self.unopened) {
            let Some(database) = open_or_begin(&directory) else {
                continue;
            };
            if let Ok(Some((key, _))) = database.last() {
                self.next = self.next.max(number(&key) + 1);
            }
            self.databases.push((directory, database));
        }
    }

    /// Adds events to the ledger of every mirror. One that fails is left out from then on.
    pub fn record(&mut self, events: &[Event]) {
        if events.is_empty() {
            return;
        }
        self.open();
        let first = self.next;
        self.next += events.len() as u64;
        self.databases.retain(|(directory, database)| {
            let add = || -> Result<(), String> {
                let mut batch = sled::Batch::default();
                for (number, event) in (first..).zip(events) {
                    let value = serde_json::to_vec(event).map_err(|error| error.to_string())?;
                    batch.insert(&number.to_be_bytes(), value);
                }
                database
                    .apply_batch(batch)
                    .map_err(|error| error.to_string())?;
                trim(database, first + events.len() as u64)
            };
            let added = catch_unwind(AssertUnwindSafe(add));
            let added = added.unwrap_or_else(|_| Err("it is damaged".to_owned()));
            if let Err(cause) = &added {
                log::warn!("the ledger {} fails: {cause}", directory.display());
            }
            added.is_ok()
        });
    }

    /// The newest `limit` events, oldest first.
    pub fn latest(&mut self, limit: usize) -> Vec<Event> {
        self.open();
        let Some((_, database)) = self.databases.first() else {
            return Vec::new();
        };
        let mut events: Vec<Event> = database
            .iter()
            .rev()
            .filter_map(Result::ok)
            .filter_map(|(_, value)| serde_json::from_slice(&value).ok())
            .take(limit)
            .collect();
        events.reverse();
        events
    }

    /// Keeps a value under a name on every mirror, beside the events, and puts it on disk.
    pub fn remember(&mut self, name: &str, value: &[u8]) {
        self.open();
        for (directory, database) in &self.databases {
            let put = || -> sled::Result<()> {
                database.open_tree(REMEMBERED)?.insert(name, value)?;
                database.flush().map(|_| ())
            };
            let cause = match catch_unwind(AssertUnwindSafe(put)) {
                Ok(Ok(())) => continue,
                Ok(Err(error)) => error.to_string(),
                Err(_) => "it is damaged".to_owned(),
            };
            let directory = directory.display();
            log::warn!("the ledger {directory} does not remember \"{name}\": {cause}");
        }
    }

    /// What is kept under a name: the value of each mirror that has one. A ledger that was never
    /// written is not made for this.
    pub fn remembered(&mut self, name: &str) -> Vec<Vec<u8>> {
        if self.databases.is_empty() && !self.unopened.iter().any(|directory| directory.exists()) {
            return Vec::new();
        }
        self.open();
        let value = |database: &sled::Db| database.open_tree(REMEMBERED).ok()?.get(name).ok()?;
        let databases = self.databases.iter();
        databases
            .filter_map(|(_, database)| {
                let value = catch_unwind(AssertUnwindSafe(|| value(database)));
                Some(value.ok()??.to_vec())
            })
            .collect()
    }

    /// Puts everything on disk.
    pub fn flush(&self) {
        for (directory, database) in &self.databases {
            if let Err(error) = database.flush() {
                log::warn!(
                    "the ledger {} cannot be written: {error}",
                    directory.display()
                );
            }
        }
    }
}

/// Drops the oldest events beyond what is retained.
fn trim(database: &sled::Db, next: u64) -> Result<(), String> {
    let keep_from = next.saturating_sub(RETAINED);
    let mut batch = sled::Batch::default();
    for row in database.range(..keep_from.to_be_bytes()) {
        batch.remove(row.map_err(|error| error.to_string())?.0);
    }
    database
        .apply_batch(batch)
        .map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::super::event::What;
    use super::*;

    fn event(time: i64) -> Event {
        let what = What::Mirror {
            mirror: "/a".to_owned(),
            state: "failed".to_owned(),
            cause: "test".to_owned(),
        };
        Event {
            time,
            nanoseconds: 0,
            what,
        }
    }

    #[test]
    fn events_are_there_after_reopening_and_in_order() {
        let dir = tempfile::tempdir().unwrap();
        let paths = vec![dir.path().join("a"), dir.path().join("b")];
        let mut ledger = Ledger::new(paths.clone());
        ledger.record(&[event(1), event(2)]);
        ledger.flush();
        drop(ledger);
        let mut ledger = Ledger::new(paths.into_iter().rev().collect());
        ledger.record(&[event(3)]);
        assert_eq!(ledger.latest(10), [event(1), event(2), event(3)]);
        assert_eq!(ledger.latest(2), [event(2), event(3)]);
    }

    #[test]
    fn nothing_is_written_while_nothing_happens() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ledger");
        let mut ledger = Ledger::new(vec![path.clone()]);
        ledger.record(&[]);
        ledger.flush();
        assert!(!path.exists());
        ledger.record(&[event(1)]);
        assert!(path.exists());
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
        ledger.record(&[event(1)]);
        drop(ledger);
        let mut ledger = Ledger::new(paths);
        assert_eq!(ledger.remembered("job"), [b"two", b"two"]);
        assert!(ledger.remembered("other").is_empty());
        assert_eq!(ledger.latest(10), [event(1)]);
    }

    #[test]
    fn a_ledger_that_does_not_open_is_set_aside() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ledger");
        std::fs::write(&path, b"this is no directory").unwrap();
        let mut ledger = Ledger::new(vec![path.clone()]);
        ledger.record(&[event(1)]);
        assert_eq!(ledger.latest(10).len(), 1);
        let aside: Vec<_> = std::fs::read_dir(dir.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .filter(|name| name.starts_with("ledger.broken-"))
            .collect();
        assert_eq!(aside.len(), 1);
    }
}
