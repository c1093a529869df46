//! What mendfs shows of itself inside the mount: the directory `.mendfs` in the root, which is
//! found by name and never listed, and the extended attributes `user.mendfs.*`.
//!
//! A file there is a report. Each lookup takes a fresh one and gives it an inode number of its own
//! from the top of the number range, and it lasts until the kernel forgets that number: so whoever
//! reads a report in pieces reads one report, its size is right, and nothing has to be invalidated.
//! The adapter answers lookups of control inodes (see [`is_control`]) with no time to live.
//!
//! To add a report: a line in `REPORTS` and an arm in `Vfs::report`; an attribute: in
//! `ROOT_ATTRIBUTES` and `Vfs::control_attribute`.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tracing_mutex::parkinglot::Mutex;

use crate::format::{FileKind, Ino, Timestamp};
use crate::ledger::Event;
use crate::pool::FileHealth;

use super::error::{Result, VfsError};
use super::filesystem::Vfs;
use super::types::{Attr, Caller, DirItem, Whence};

const DIRECTORY_NAME: &[u8] = b".mendfs";
/// Control inodes have this number and those above; stored inodes never get there.
const FIRST: u64 = u64::MAX - (1 << 40);
/// The directory. The reports' listed numbers follow, their snapshots' numbers lie below.
const DIRECTORY: Ino = Ino(u64::MAX - 15);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Report {
    Status,
    Events,
    /// Events from this number on.
    EventsFrom(u64),
    Metrics,
}

/// The files in the directory and their numbers in a listing.
const REPORTS: [(&[u8], Ino, Report); 3] = [
    (b"status.json", Ino(DIRECTORY.0 + 1), Report::Status),
    (b"events.jsonl", Ino(DIRECTORY.0 + 2), Report::Events),
    (b"metrics", Ino(DIRECTORY.0 + 3), Report::Metrics),
];
/// Not listed: with a number behind it, the events with that number and higher ones.
const EVENTS_FROM: &[u8] = b"events.jsonl@";
/// Bytes of reports kept for the kernel; the newest is kept whatever its size.
const KEPT_MAX: usize = 32 << 20;
/// Events in one report.
const EVENTS_MAX: usize = 10_000;

const ATTRIBUTES: &[u8] = b"user.mendfs.";
const STATUS: &[u8] = b"user.mendfs.status";
const STATUS_JSON: &[u8] = b"user.mendfs.status.json";
const MIRRORS: &[u8] = b"user.mendfs.mirrors";
const MIRRORS_JSON: &[u8] = b"user.mendfs.mirrors.json";
/// Takes orders to the mirror set, and gives their answers. Not listed.
const MIRRORS_CONTROL: &[u8] = b"user.mendfs.mirrors.control";
const HEALTH: &[u8] = b"user.mendfs.health";
const SCRUB: &[u8] = b"user.mendfs.scrub.status";
const SCRUB_JSON: &[u8] = b"user.mendfs.scrub.status.json";
/// Takes orders to the scrub.
const SCRUB_CONTROL: &[u8] = b"user.mendfs.scrub.control";
/// Attributes of the root directory, listed there.
const ROOT_ATTRIBUTES: [&[u8]; 7] = [
    STATUS,
    STATUS_JSON,
    MIRRORS,
    MIRRORS_JSON,
    SCRUB,
    SCRUB_JSON,
    SCRUB_CONTROL,
];

#[derive(Debug)]
struct Snapshot {
    references: u64,
    taken: Timestamp,
    size: usize,
    /// None once it had to give way to newer ones.
    content: Option<Arc<[u8]>>,
}

/// The reports that are being read. The kernel remembers names for longer than anybody reads.
#[derive(Debug, Default)]
pub(super) struct Control {
    snapshots: Mutex<HashMap<Ino, Snapshot>>,
    /// Numbers of the snapshots that have their content, oldest first, with the bytes of it.
    kept: Mutex<VecDeque<(Ino, usize)>>,
    taken: AtomicU64,
}

impl Control {
    /// Takes the content of old snapshots away while all of them have more than `KEPT_MAX` bytes.
    fn make_room(&self, ino: Ino, size: usize) {
        let mut kept = self.kept.lock();
        kept.push_back((ino, size));
        let mut snapshots = self.snapshots.lock();
        kept.retain(|(ino, _)| snapshots.contains_key(ino));
        let mut bytes: usize = kept.iter().map(|(_, size)| size).sum();
        while bytes > KEPT_MAX && kept.len() > 1 {
            let Some((oldest, size)) = kept.pop_front() else {
                break;
            };
            bytes -= size;
            if let Some(snapshot) = snapshots.get_mut(&oldest) {
                snapshot.content = None;
            }
        }
    }
}

/// Whether a report of this name is read from the ledger, which may wait for a disk.
pub fn waits_for_a_disk(name: &[u8]) -> bool {
    name.starts_with(b"events.jsonl")
}

/// Whether this inode number belongs to the control directory or a file in it. The kernel must not
/// cache names and attributes of these.
pub const fn is_control(ino: Ino) -> bool {
    ino.0 >= FIRST
}

impl Vfs {
    /// Whether this is the name of the control directory.
    pub(super) fn is_control_name(parent: Ino, name: &[u8]) -> bool {
        parent == Ino::ROOT && name == DIRECTORY_NAME
    }

    pub(super) fn control_parent(ino: Ino) -> Ino {
        if ino == DIRECTORY {
            Ino::ROOT
        } else {
            DIRECTORY
        }
    }

    /// Answers a lookup that concerns the control directory; none if it does not.
    pub(super) fn control_lookup(&self, parent: Ino, name: &[u8]) -> Result<Option<Attr>> {
        if Vfs::is_control_name(parent, name) {
            return self.control_attr(DIRECTORY).map(Some);
        }
        if !is_control(parent) {
            return Ok(None);
        }
        if parent != DIRECTORY {
            return Err(VfsError::NotDirectory);
        }
        match name {
            b"." => self.control_attr(DIRECTORY).map(Some),
            b".." => self.reference(Ino::ROOT).map(Some),
            _ => {
                let listed = REPORTS.iter().find(|(known, _, _)| *known == name);
                let report = listed.map_or_else(|| events_from(name), |listed| Some(listed.2));
                self.take(report.ok_or(VfsError::NotFound)?).map(Some)
            }
        }
    }

    /// One more reference to a snapshot. A number that a listing showed has none: the kernel is to
    /// look the name up.
    pub(super) fn control_reference(&self, ino: Ino) -> Result<Attr> {
        if let Some(snapshot) = self.control.snapshots.lock().get_mut(&ino) {
            snapshot.references += 1;
        }
        self.control_attr(ino)
    }

    /// Takes a snapshot of a report, with one reference.
    fn take(&self, report: Report) -> Result<Attr> {
        let content = self.report(report)?;
        let taken = self.pool.now();
        let size = content.len();
        let snapshot = Snapshot {
            references: 1,
            taken,
            size,
            content: Some(content.into()),
        };
        // Counts round a range that no kernel can hold at once.
        let number = self.control.taken.fetch_add(1, Ordering::Relaxed) % (DIRECTORY.0 - FIRST);
        let ino = Ino(FIRST + number);
        let attr = control_attr(ino, taken, size);
        self.control.snapshots.lock().insert(ino, snapshot);
        self.control.make_room(ino, size);
        Ok(attr)
    }

    fn report(&self, report: Report) -> Result<Vec<u8>> {
        match report {
            Report::Status => self.status_json(),
            Report::Events => Ok(json_lines(&self.pool.events(EVENTS_MAX))),
            Report::EventsFrom(number) => {
                Ok(json_lines(&self.pool.events_from(number, EVENTS_MAX)))
            }
            Report::Metrics => Ok(self.metrics_text().into_bytes()),
        }
    }

    pub(super) fn control_forget(&self, ino: Ino, count: u64) {
        let mut snapshots = self.control.snapshots.lock();
        if let Some(snapshot) = snapshots.get_mut(&ino) {
            snapshot.references = snapshot.references.saturating_sub(count);
            if snapshot.references == 0 {
                snapshots.remove(&ino);
            }
        }
    }

    pub(super) fn control_attr(&self, ino: Ino) -> Result<Attr> {
        if ino == DIRECTORY {
            return Ok(control_attr(ino, self.pool.now(), 0));
        }
        let snapshots = self.control.snapshots.lock();
        let snapshot = snapshots.get(&ino).ok_or(VfsError::Stale)?;
        Ok(control_attr(ino, snapshot.taken, snapshot.size))
    }

    fn content(&self, ino: Ino) -> Result<Arc<[u8]>> {
        if ino == DIRECTORY {
            return Err(VfsError::IsDirectory);
        }
        let snapshots = self.control.snapshots.lock();
        snapshots
            .get(&ino)
            .and_then(|snapshot| snapshot.content.clone())
            .ok_or(VfsError::Stale)
    }

    pub(super) fn control_read(
        &self,
        ino: Ino,
        offset: u64,
        len: usize,
        out: &mut Vec<u8>,
    ) -> Result<()> {
        out.clear();
        let content = self.content(ino)?;
        let from = usize::try_from(offset).map_or(content.len(), |from| from.min(content.len()));
        out.extend(content[from..].iter().take(len));
        Ok(())
    }

    pub(super) fn control_seek(&self, ino: Ino, offset: u64, whence: Whence) -> Result<u64> {
        let size = self.content(ino)?.len() as u64;
        match whence {
            _ if offset >= size => Err(VfsError::NoSuchAddress),
            Whence::Data => Ok(offset),
            Whence::Hole => Ok(size),
        }
    }

    pub(super) fn read_control_dir(
        &self,
        ino: Ino,
        cookie: u64,
        sink: &mut dyn FnMut(DirItem<'_>) -> bool,
    ) -> Result<()> {
        if ino != DIRECTORY {
            return Err(VfsError::NotDirectory);
        }
        let dots: [(&[u8], Ino, FileKind); 2] = [
            (b".", DIRECTORY, FileKind::Directory),
            (b"..", Ino::ROOT, FileKind::Directory),
        ];
        let files = REPORTS
            .iter()
            .map(|(name, ino, _)| (*name, *ino, FileKind::Regular));
        for ((name, ino, kind), at) in dots.into_iter().chain(files).zip(1..) {
            if at > cookie
                && !sink(DirItem {
                    ino,
                    kind,
                    name,
                    cookie: at,
                })
            {
                break;
            }
        }
        Ok(())
    }

    pub(super) fn is_control_attribute(name: &[u8]) -> bool {
        name.starts_with(ATTRIBUTES)
    }

    /// Names of the attributes of ours that a listing of this inode shows.
    pub(super) fn listed_control_attributes(ino: Ino) -> &'static [&'static [u8]] {
        if ino == Ino::ROOT {
            &ROOT_ATTRIBUTES
        } else {
            &[]
        }
    }

    /// Value of an attribute of ours; none if it is not one of ours.
    pub(super) fn control_attribute(&self, ino: Ino, name: &[u8]) -> Result<Option<Vec<u8>>> {
        if !Vfs::is_control_attribute(name) {
            return Ok(None);
        }
        match name {
            STATUS if ino == Ino::ROOT => self.status_text().map(Some),
            STATUS_JSON if ino == Ino::ROOT => self.status_json().map(Some),
            MIRRORS if ino == Ino::ROOT => self.mirrors_text().map(Some),
            MIRRORS_JSON if ino == Ino::ROOT => {
                Ok(Some(format!("{:#}\n", self.mirrors_value()?).into_bytes()))
            }
            MIRRORS_CONTROL if ino == Ino::ROOT => {
                let answers = serde_json::to_value(self.pool.answers()).map_err(report_failed)?;
                Ok(Some(answers.to_string().into_bytes()))
            }
            SCRUB if ino == Ino::ROOT => Ok(Some(self.scrub_text())),
            SCRUB_JSON if ino == Ino::ROOT => self.scrub_json().map(Some),
            SCRUB_CONTROL if ino == Ino::ROOT => Ok(Some(super::scrub::ORDERS.to_vec())),
            HEALTH if !is_control(ino) => Ok(Some(self.health_text(ino)?)),
            _ => Err(VfsError::NoData),
        }
    }

    fn status_value(&self) -> Result<serde_json::Value> {
        serde_json::to_value(self.pool.status()).map_err(report_failed)
    }

    fn mirrors_value(&self) -> Result<serde_json::Value> {
        let status = self.pool.status();
        serde_json::to_value(serde_json::json!({
            "schema": status.schema,
            "mirrors": status.mirrors,
            "resync": status.resync,
        }))
        .map_err(report_failed)
    }

    fn mirrors_text(&self) -> Result<Vec<u8>> {
        let mut text = String::new();
        flatten("", &self.mirrors_value()?, &mut text);
        Ok(text.into_bytes())
    }

    /// Whether writing this attribute of the root is an order.
    pub(super) fn is_order(name: &[u8]) -> bool {
        name == MIRRORS_CONTROL || name == SCRUB_CONTROL
    }

    /// Takes an order from the owner of the root or from root.
    pub(super) fn give_order(&self, caller: &Caller, name: &[u8], value: &[u8]) -> Result<()> {
        if caller.uid != 0 && caller.uid != self.row(Ino::ROOT)?.uid {
            return Err(VfsError::NotPermitted);
        }
        debug_assert!(Vfs::is_order(name));
        if name == SCRUB_CONTROL {
            return self.order_scrub(value);
        }
        let order = serde_json::from_slice(value).map_err(|_| VfsError::Invalid)?;
        if self.pool.order(order) {
            Ok(())
        } else {
            Err(VfsError::NoSpace)
        }
    }

    fn status_json(&self) -> Result<Vec<u8>> {
        Ok(format!("{:#}\n", self.status_value()?).into_bytes())
    }

    fn status_text(&self) -> Result<Vec<u8>> {
        let mut text = String::new();
        flatten("", &self.status_value()?, &mut text);
        Ok(text.into_bytes())
    }

    fn health_text(&self, ino: Ino) -> Result<Vec<u8>> {
        self.row(ino)?;
        Ok(match self.pool.health_of(ino) {
            FileHealth::Ok => b"ok".to_vec(),
            FileHealth::Repaired => b"repaired".to_vec(),
            FileHealth::Damaged(ranges) => {
                let ranges: Vec<String> = ranges
                    .iter()
                    .map(|(offset, len)| format!("{offset}+{len}"))
                    .collect();
                format!("damaged: {}", ranges.join(" ")).into_bytes()
            }
        })
    }
}

/// Plain data always serialises; should it not, the report fails and says why.
pub(super) fn report_failed(error: serde_json::Error) -> VfsError {
    VfsError::Pool(crate::pool::PoolError::Failed {
        reason: format!("a report: {error}"),
    })
}

fn events_from(name: &[u8]) -> Option<Report> {
    let number = std::str::from_utf8(name.strip_prefix(EVENTS_FROM)?).ok()?;
    number.parse().ok().map(Report::EventsFrom)
}

/// One line for each event.
fn json_lines(events: &[Event]) -> Vec<u8> {
    let mut text = Vec::new();
    // Plain data always serialises.
    for line in events
        .iter()
        .filter_map(|event| serde_json::to_vec(event).ok())
    {
        text.extend(line);
        text.push(b'\n');
    }
    text
}

/// Attributes of the directory or of a report: root's, and for reading only.
fn control_attr(ino: Ino, time: Timestamp, size: usize) -> Attr {
    let directory = ino == DIRECTORY;
    Attr {
        ino,
        generation: 0,
        kind: if directory {
            FileKind::Directory
        } else {
            FileKind::Regular
        },
        permissions: if directory { 0o555 } else { 0o444 },
        nlink: if directory { 2 } else { 1 },
        uid: 0,
        gid: 0,
        rdev: 0,
        size: size as u64,
        blocks: 0,
        atime: time,
        mtime: time,
        ctime: time,
        btime: time,
    }
}

/// Writes a value as lines `path.to.key=value`, list members by their index.
fn flatten(path: &str, value: &serde_json::Value, out: &mut String) {
    let below = |key: &str| {
        if path.is_empty() {
            key.to_owned()
        } else {
            format!("{path}.{key}")
        }
    };
    match value {
        serde_json::Value::Object(members) => {
            members
                .iter()
                .for_each(|(key, value)| flatten(&below(key), value, out));
        }
        serde_json::Value::Array(members) => members
            .iter()
            .enumerate()
            .for_each(|(index, value)| flatten(&below(&index.to_string()), value, out)),
        serde_json::Value::String(text) => {
            // One line each, whatever a path or a label holds.
            out.push_str(&format!("{path}={}\n", text.escape_debug()));
        }
        serde_json::Value::Null | serde_json::Value::Bool(_) | serde_json::Value::Number(_) => {
            out.push_str(&format!("{path}={value}\n"));
        }
    }
}
