//! Verification of everything that is stored: what `mendfs check` runs.
//!
//! Goes through the page sums, the index pages and all extents in segment order, on every mirror
//! and from the medium, healing bad copies on the way; then through the rows, which must fit one
//! another. Extents are read on all cores.

use std::collections::BTreeMap;
use std::sync::Arc;

use rayon::prelude::*;

use crate::format::{
    DentryRow, ExtentRow, FileKind, Ino, InodeRow, Key, PromiseRow, SegmentNo, Table,
};
use crate::pool::{Owned, Pool, Result};

/// Rows gone through in one step.
const ROWS: usize = 2048;
/// Extents verified side by side.
const EXTENTS: usize = 64;

/// Something that is not as it should be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// One sentence.
    pub what: String,
}

/// What verification found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct VerifyReport {
    /// Bytes of file data verified, on each mirror.
    pub data_bytes: u64,
    /// Index pages verified.
    pub pages: u64,
    /// Inodes seen.
    pub inodes: u64,
    /// Copies that were bad and were rewritten, or could be.
    pub bad_copies: u64,
    /// What no mirror can supply, and rows that do not fit.
    pub findings: Vec<Finding>,
}

impl VerifyReport {
    fn find(&mut self, what: String) {
        // A pool in ruins need not be listed to the last row.
        if self.findings.len() < 10_000 {
            self.findings.push(Finding { what });
        }
    }
}

/// What has to be done next.
#[derive(Debug, Clone)]
enum Stage {
    Sums,
    Pages(u32),
    Extents(Key),
    Rows(Key),
    Promises(Key),
    Links,
    Done,
}

/// A verification under way.
#[derive(Debug)]
pub struct Verifier {
    pool: Arc<Pool>,
    stage: Stage,
    report: VerifyReport,
    /// Segment whose turn it is.
    segment: Option<SegmentNo>,
    /// Links and entries counted: inode to (names, subdirectories).
    names: BTreeMap<Ino, (u32, u32)>,
    entries: BTreeMap<Ino, u64>,
}

impl Verifier {
    /// Begins a verification. Nobody else may change the pool until it is done.
    pub fn new(pool: Arc<Pool>) -> Verifier {
        Verifier {
            pool,
            stage: Stage::Sums,
            report: VerifyReport::default(),
            segment: None,
            names: BTreeMap::new(),
            entries: BTreeMap::new(),
        }
    }

    /// What was found so far.
    pub const fn report(&self) -> &VerifyReport {
        &self.report
    }

    /// Does a piece of work; returns whether there is more.
    ///
    /// # Errors
    /// [`crate::pool::PoolError`] if the index cannot be read.
    pub fn step(&mut self) -> Result<bool> {
        self.stage = match self.stage.clone() {
            Stage::Sums => {
                self.report.bad_copies += self.pool.verify_sums() as u64;
                Stage::Pages(0)
            }
            Stage::Pages(from) => self.pages(from),
            Stage::Extents(from) => self.extents(&from)?,
            Stage::Rows(from) => self.rows(&from)?,
            Stage::Promises(from) => self.promises(&from)?,
            Stage::Links => {
                self.links()?;
                Stage::Done
            }
            Stage::Done => Stage::Done,
        };
        Ok(!matches!(self.stage, Stage::Done))
    }

    fn pages(&mut self, from: u32) -> Stage {
        let end = self.pool.index_pages();
        let to = end.min(from.saturating_add(ROWS as u32));
        let (bad, lost) = self.pool.verify_index(from, to);
        self.report.bad_copies += bad as u64;
        self.report.pages += u64::from(to - from);
        for page in lost {
            self.report
                .find(format!("index page {page} is damaged on every mirror"));
        }
        if to < end {
            Stage::Pages(to)
        } else {
            Stage::Extents(Key::table_start(Table::Reverse))
        }
    }

    fn extents(&mut self, from: &Key) -> Result<Stage> {
        let rows = self
            .pool
            .scan(from, &Key::table_end(Table::Reverse), EXTENTS)?;
        for (key, _) in &rows {
            let (segment, ..) = key.reverse_parts()?;
            if self.segment != Some(segment) {
                self.pool.forget_cached(segment);
                self.segment = Some(segment);
            }
        }
        let pool = &self.pool;
        let checked: Vec<_> = rows
            .par_iter()
            .map(|(key, value)| pool.verify_owner(key, value))
            .collect();
        for owned in checked {
            match owned? {
                Owned::Freed => {}
                Owned::Mismatch { ino, offset } => self.report.find(format!(
                    "inode {ino} at {offset}: the reverse table names it as owner of bytes that \
                     it does not have"
                )),
                Owned::Checked {
                    ino,
                    bytes,
                    bad,
                    lost,
                } => {
                    self.report.data_bytes += bytes;
                    self.report.bad_copies += bad as u64;
                    self.report_lost(ino, &lost);
                }
            }
        }
        match rows.last() {
            Some((last, _)) => {
                let (segment, at, ino, offset) = last.reverse_parts()?;
                Ok(Stage::Extents(Key::reverse(
                    segment,
                    at,
                    ino,
                    offset.saturating_add(1),
                )))
            }
            None => Ok(Stage::Rows(Key::table_start(Table::Inode))),
        }
    }

    fn report_lost(&mut self, ino: Ino, offsets: &[u64]) {
        if offsets.is_empty() {
            return;
        }
        let path = self.pool.path_of(ino).ok().flatten().unwrap_or_default();
        let path = String::from_utf8_lossy(&path).into_owned();
        for at in offsets {
            self.report.find(format!(
                "/{path}: the block at {at} is damaged on every mirror"
            ));
        }
    }

    fn rows(&mut self, from: &Key) -> Result<Stage> {
        let rows = self.pool.scan(from, &Key::table_end(Table::Extent), ROWS)?;
        for (key, value) in &rows {
            match key.table() {
                Some(Table::Inode) => {
                    let ino = key.ino(Table::Inode)?;
                    if let Err(error) = InodeRow::decode(value) {
                        self.report.find(format!("inode {ino}: {error}"));
                    }
                    self.report.inodes += 1;
                }
                Some(Table::Dentry) => self.entry(key, value)?,
                Some(Table::Xattr) => {
                    let ino = key.ino(Table::Xattr)?;
                    if self.pool.inode(ino)?.is_none() {
                        self.report
                            .find(format!("an attribute belongs to no inode ({ino})"));
                    }
                }
                Some(Table::Extent) => self.extent(key, value)?,
                _ => {}
            }
        }
        match rows.last() {
            Some((last, _)) => {
                let mut next = last.as_bytes().to_vec();
                next.push(0);
                Ok(Stage::Rows(Key::from_bytes(&next)?))
            }
            None => Ok(Stage::Promises(Key::table_start(Table::Promise))),
        }
    }

    /// Promised ranges are of files that exist, and overlap neither data nor one another.
    fn promises(&mut self, from: &Key) -> Result<Stage> {
        let end = Key::table_end(Table::Promise);
        let rows = self.pool.scan(from, &end, ROWS)?;
        for (key, value) in &rows {
            let (ino, start) = key.promise_parts()?;
            let end = match PromiseRow::decode(value) {
                Ok(row) => start.saturating_add(row.len),
                Err(error) => {
                    self.report.find(format!("inode {ino} at {start}: {error}"));
                    continue;
                }
            };
            let data = self.pool.extents_up_to(ino, start, end, 1)?;
            let promised = self.pool.promised(ino, start..end, 2)?;
            if !data.is_empty() || promised.len() != 1 {
                self.report.find(format!(
                    "inode {ino} at {start}: space is promised that is taken already"
                ));
            }
            if self.pool.inode(ino)?.is_none() {
                self.report
                    .find(format!("space is promised to no inode ({ino})"));
            }
        }
        match rows.last() {
            Some((last, _)) => {
                let (ino, start) = last.promise_parts()?;
                Ok(Stage::Promises(Key::promise(ino, start.saturating_add(1))))
            }
            None => Ok(Stage::Links),
        }
    }

    fn entry(&mut self, key: &Key, value: &[u8]) -> Result<()> {
        let (parent, _) = key.dentry_parts()?;
        let entry = DentryRow::decode(value)?;
        let name = String::from_utf8_lossy(&entry.name).into_owned();
        match self.pool.inode(entry.ino)? {
            None => self
                .report
                .find(format!("entry {name} of directory {parent} names no inode")),
            Some(row) if row.kind != entry.kind => {
                self.report.find(format!(
                    "entry {name} of directory {parent} has the wrong type"
                ));
            }
            Some(row) if row.kind == FileKind::Directory && row.parent != parent => {
                self.report
                    .find(format!("directory {name} is not where its parent has it"));
            }
            Some(_) => {}
        }
        self.names.entry(entry.ino).or_default().0 += 1;
        *self.entries.entry(parent).or_default() += 1;
        if entry.kind == FileKind::Directory {
            self.names.entry(parent).or_default().1 += 1;
        }
        Ok(())
    }

    fn extent(&mut self, key: &Key, value: &[u8]) -> Result<()> {
        let (ino, offset) = key.extent_parts()?;
        let row = match ExtentRow::decode(value, self.pool.algorithm().width()) {
            Ok(row) => row,
            Err(error) => {
                self.report
                    .find(format!("inode {ino} at {offset}: {error}"));
                return Ok(());
            }
        };
        let reverse = Key::reverse(row.segment, row.offset, ino, offset);
        if self.pool.get(&reverse)?.is_none() {
            self.report.find(format!(
                "inode {ino} at {offset}: the reverse table does not know it"
            ));
        }
        let next = self
            .pool
            .extents_up_to(ino, offset, row.block_end(offset), 2)?;
        if next.len() > 1 {
            self.report
                .find(format!("inode {ino}: extents overlap at {offset}"));
        }
        if self.pool.inode(ino)?.is_none() {
            self.report
                .find(format!("an extent belongs to no inode ({ino})"));
        }
        Ok(())
    }

    /// Compares the links and entries counted with what the inodes say.
    fn links(&mut self) -> Result<()> {
        let mut from = Key::table_start(Table::Inode);
        loop {
            let rows = self.pool.scan(&from, &Key::table_end(Table::Inode), ROWS)?;
            let Some((last, _)) = rows.last() else {
                return Ok(());
            };
            from = Key::inode(Ino(last.ino(Table::Inode)?.0.saturating_add(1)));
            for (key, value) in &rows {
                let ino = key.ino(Table::Inode)?;
                let Ok(row) = InodeRow::decode(value) else {
                    continue;
                };
                let (names, directories) = self.names.get(&ino).copied().unwrap_or_default();
                let nlink = match row.kind {
                    FileKind::Directory if names == 0 && ino != Ino::ROOT => 0,
                    FileKind::Directory => 2 + directories,
                    _ => names,
                };
                if row.nlink != nlink {
                    self.report.find(format!(
                        "inode {ino} has {nlink} links, but its count says {}",
                        row.nlink
                    ));
                }
                let entries = self.entries.get(&ino).copied().unwrap_or_default();
                if row.kind == FileKind::Directory && row.size != entries {
                    self.report.find(format!(
                        "directory {ino} has {entries} entries, but its size says {}",
                        row.size
                    ));
                }
                if names == 0 && ino != Ino::ROOT && self.pool.get(&Key::orphan(ino))?.is_none() {
                    self.report
                        .find(format!("inode {ino} has no name and is no orphan"));
                }
            }
        }
    }
}
