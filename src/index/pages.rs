//! The storage that redb sees: mirrored pages, verified on every read.
//!
//! What redb writes is staged in memory until a checkpoint puts it on the mirrors, so between
//! checkpoints the index on disk does not change. A page is read from a mirror only if the
//! page-sum table knows it, and handed out only if it matches; a bad copy is repaired under the
//! same lock that staging takes, so that an old page never overwrites a newer one.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tracing_mutex::parkinglot::RwLock;

use super::sums::SumsTable;
use crate::backing::FileName;
use crate::format::{Algorithm, BLOCK, BLOCK_U64, CheckpointBegin, CheckpointDone, Lsn, SumEntry};
use crate::mirrors::{Copied, Mend, MirrorError, MirrorSet, Place, Target};

/// Pages written in one go at most.
const RUN_PAGES: usize = 256;

type Page = Box<[u8; BLOCK]>;

#[derive(Debug)]
struct Shared {
    sums: SumsTable,
    /// Length as redb sees it.
    len: u64,
    /// Length as of the last checkpoint; beyond it nothing on disk counts.
    committed_len: u64,
    /// Pages that redb wrote since then.
    staged: BTreeMap<u32, Page>,
    /// A checkpoint is putting the staged pages in their places: what lies there is in between.
    writing: bool,
    /// Pages that an undone checkpoint may have spoiled; the table on disk still has their old
    /// sums, so the next checkpoint tells that they have none.
    undone: BTreeSet<u32>,
    /// Bytes from the start of the file for which every mirror has space reserved.
    reserved: u64,
    /// How often that was forgotten.
    forgotten: u64,
}

#[derive(Debug)]
pub(super) struct PageStore {
    mirrors: Arc<MirrorSet>,
    algorithm: Algorithm,
    /// Bytes to keep reserved beyond the last page in use, so that a checkpoint on a full disk
    /// finds room.
    reserve: u64,
    shared: RwLock<Shared>,
    /// Pages read from a mirror, for monitoring.
    reads: AtomicU64,
}

impl PageStore {
    pub(super) fn new(
        mirrors: Arc<MirrorSet>,
        algorithm: Algorithm,
        reserve: u64,
        sums: SumsTable,
        len: u64,
        undone: BTreeSet<u32>,
    ) -> PageStore {
        let shared = Shared {
            sums,
            len,
            committed_len: len,
            staged: BTreeMap::new(),
            writing: false,
            undone,
            reserved: 0,
            forgotten: 0,
        };
        PageStore {
            mirrors,
            algorithm,
            reserve,
            shared: RwLock::new(shared),
            reads: AtomicU64::new(0),
        }
    }

    /// Pages read from a mirror.
    pub(super) fn reads(&self) -> u64 {
        self.reads.load(Ordering::Relaxed)
    }

    /// What is about to be written, for the journal.
    pub(super) fn begin_record(&self, generation: u64) -> io::Result<CheckpointBegin> {
        let shared = self.shared.read();
        let mut page_zero = Vec::new();
        if shared.committed_len > 0 {
            page_zero.resize(BLOCK, 0);
            self.read_committed(&shared, 0, &mut page_zero)?;
        }
        // What an earlier attempt may have spoiled stays listed: only this record counts from now.
        let staged = shared.staged.keys().copied();
        let pages: BTreeSet<u32> = staged.chain(shared.undone.iter().copied()).collect();
        let pages = pages.into_iter().filter(|page| *page != 0).collect();
        Ok(CheckpointBegin {
            generation,
            page_zero,
            pages,
        })
    }

    /// Writes the staged pages to their places and syncs them. Reads go on meanwhile, whatever a
    /// mirror waits for: nothing is staged before this is over, and what is staged is what is read.
    pub(super) fn write_pages(&self) -> Result<(), MirrorError> {
        let (len, committed) = {
            let mut shared = self.shared.write();
            shared.writing = true;
            (shared.len, shared.committed_len)
        };
        if len > committed {
            self.mirrors.set_len(FileName::Index, len)?;
        }
        let (mut next, mut run) = (0, Vec::new());
        while let Some(first) = self.staged_run(next, &mut run) {
            let offset = u64::from(first) * BLOCK_U64;
            self.mirrors.write(FileName::Index, offset, &[&run])?;
            next = first + (run.len() / BLOCK) as u32;
        }
        self.mirrors.sync(&[FileName::Index], &[])
    }

    /// Fills `run` with the next staged pages that lie side by side, from page `from` on, and says
    /// which is the first of them.
    fn staged_run(&self, from: u32, run: &mut Vec<u8>) -> Option<u32> {
        run.clear();
        let shared = self.shared.read();
        let mut staged = shared.staged.range(from..);
        let (&first, page) = staged.next()?;
        run.extend_from_slice(page.as_slice());
        let beside = (first + 1..).zip(staged).take(RUN_PAGES - 1);
        for (_, (_, page)) in beside.take_while(|(next, (page, _))| next == *page) {
            run.extend_from_slice(page.as_slice());
        }
        Some(first)
    }

    /// What has been written, for the journal; the table takes the new sums.
    pub(super) fn done_record(&self, generation: u64, lsn: Lsn, tail: u64) -> CheckpointDone {
        let mut shared = self.shared.write();
        let shared = &mut *shared;
        let mut sums = Vec::with_capacity(shared.staged.len());
        for (page, bytes) in &shared.staged {
            let entry = SumEntry {
                sum: self.algorithm.sum64(&[bytes.as_slice()]),
                generation,
            };
            sums.push((*page, entry));
            shared.sums.set(*page, entry);
        }
        // The root covers these too, so whoever finishes this checkpoint after a crash needs them.
        for page in &shared.undone {
            if !shared.staged.contains_key(page) {
                sums.push((*page, SumEntry::UNDEFINED));
                shared.sums.set(*page, SumEntry::UNDEFINED);
            }
        }
        shared.sums.resize(shared.len.div_ceil(BLOCK_U64) as usize);
        let sums_root = shared.sums.root();
        CheckpointDone {
            generation,
            lsn,
            tail,
            index_len: shared.len,
            sums_root,
            sums,
        }
    }

    /// Puts the page sums on disk; from here on reads go to the pages written.
    pub(super) fn publish(&self, generation: u64) -> Result<(), MirrorError> {
        // Not under the lock, for which every read of the index would have to wait.
        let changed = self.shared.read().sums.changed(generation);
        changed.store(&self.mirrors)?;
        let mut shared = self.shared.write();
        shared.sums.stored(&changed);
        shared.committed_len = shared.len;
        shared.staged.clear();
        shared.writing = false;
        shared.undone.clear();
        Ok(())
    }

    /// Extends the space reserved for the next checkpoint; false if a mirror has no room for it.
    pub(super) fn extend_reserve(&self) -> Result<bool, MirrorError> {
        let (from, wanted, forgotten) = {
            let shared = self.shared.read();
            let in_use = (0..shared.sums.len() as u32)
                .rev()
                .find(|page| shared.sums.get(*page).generation > 0)
                .map_or(0, |page| u64::from(page) + 1);
            let wanted = in_use * BLOCK_U64 + self.reserve;
            (shared.reserved, wanted, shared.forgotten)
        };
        if wanted <= from {
            return Ok(true);
        }
        let reserved = self
            .mirrors
            .reserve(FileName::Index, from, wanted - from)
            .and_then(|()| {
                self.mirrors
                    .reserve(FileName::Sums, 0, SumsTable::disk_len(wanted))
            });
        match reserved {
            Ok(()) => {
                let mut shared = self.shared.write();
                // A mirror that came meanwhile may have nothing reserved.
                if shared.forgotten == forgotten {
                    shared.reserved = shared.reserved.max(wanted);
                }
                Ok(true)
            }
            Err(MirrorError::NoSpace { .. }) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Length of the index on disk, in pages.
    pub(super) fn pages(&self) -> u32 {
        (self.shared.read().committed_len / BLOCK_U64) as u32
    }

    /// Checks pages `from..to` on every mirror and repairs bad ones: (bad copies, lost pages). A
    /// walk that begins at page 0 has the mirrors read from their media.
    pub(super) fn verify(&self, from: u32, to: u32) -> (usize, Vec<u32>) {
        let (mut bad, mut lost) = (0, Vec::new());
        if from == 0 {
            self.mirrors.forget_cached(FileName::Index);
        }
        for page in from..to {
            let shared = self.shared.read();
            let entry = shared.sums.get(page);
            // A page that is only staged (page 0 always is, once the database is open) still has to
            // be right on disk, until its time comes.
            let undefined = shared.writing || entry.generation == 0;
            if undefined && shared.staged.contains_key(&page) {
                continue;
            }
            if entry.generation == 0 {
                // Nobody reads it, but the mirrors are to be the same.
                let offset = u64::from(page) * BLOCK_U64;
                if let Err(error) = self.mirrors.level(FileName::Index, offset, BLOCK_U64) {
                    log::error!("{error}");
                }
                continue;
            }
            let place = Place {
                file: FileName::Index,
                offset: u64::from(page) * BLOCK_U64,
            };
            let mut out = vec![0; BLOCK];
            let matches = |_: usize, bytes: &[u8]| self.algorithm.sum64(&[bytes]) == entry.sum;
            match self
                .mirrors
                .verify_all(place, &mut out, &matches, Mend::Now)
            {
                Ok(repaired) => bad += repaired,
                Err(_) => lost.push(page),
            }
        }
        (bad, lost)
    }

    /// Checks the page-sum table on every mirror and repairs it; returns the bad copies.
    pub(super) fn verify_sums(&self) -> usize {
        self.mirrors.forget_cached(FileName::Sums);
        self.shared.read().sums.verify(&self.mirrors)
    }

    /// Forgets what is reserved: a mirror came that has nothing reserved.
    pub(super) fn forget_reserve(&self) {
        let mut shared = self.shared.write();
        shared.reserved = 0;
        shared.forgotten += 1;
    }

    /// Makes pages `from..to` of the target the same as those of the others. The target has
    /// received every checkpoint that began since it was attached.
    pub(super) fn copy(&self, from: u32, to: u32, target: &Target) -> Result<Copied, MirrorError> {
        let mut total = Copied::default();
        for page in from..to {
            let shared = self.shared.read();
            let undefined = shared.sums.get(page).generation == 0;
            if shared.writing && shared.staged.contains_key(&page) {
                continue;
            }
            let offset = u64::from(page) * BLOCK_U64;
            let copied = if undefined {
                // Nobody reads it, but the mirrors are to be the same.
                self.mirrors
                    .match_gap(target, FileName::Index, offset, BLOCK_U64)
            } else {
                let mut bytes = vec![0; BLOCK];
                if self.read_committed(&shared, page, &mut bytes).is_err() {
                    // Lost everywhere, and told as that.
                    continue;
                }
                target.match_bytes(FileName::Index, offset, &bytes)
            };
            total.add(self.mirrors.target_result(target, copied)?);
        }
        Ok(total)
    }

    /// Makes the page-sum table of the target, and the lengths of both files, those of the others.
    /// No checkpoint may be under way.
    pub(super) fn copy_sums(&self, target: &Target) -> Result<Copied, MirrorError> {
        let shared = self.shared.read();
        let mut copied = shared.sums.copy(&self.mirrors, target)?;
        let index_end = shared.committed_len;
        let sums_end = SumsTable::disk_len(index_end);
        for (file, end) in [(FileName::Index, index_end), (FileName::Sums, sums_end)] {
            // What a longer index has left behind.
            let behind = self.mirrors.longest(file).saturating_sub(end);
            let tail = self.mirrors.match_gap(target, file, end, behind);
            copied.add(self.mirrors.target_result(target, tail)?);
            let result = self.mirrors.match_len(target, file);
            self.mirrors.target_result(target, result)?;
        }
        Ok(copied)
    }

    fn read_committed(&self, shared: &Shared, first: u32, out: &mut [u8]) -> io::Result<()> {
        let place = Place {
            file: FileName::Index,
            offset: u64::from(first) * BLOCK_U64,
        };
        let pages = (out.len() / BLOCK) as u32;
        self.reads.fetch_add(u64::from(pages), Ordering::Relaxed);
        if let Some(page) =
            (first..first + pages).find(|page| shared.sums.get(*page).generation == 0)
        {
            return Err(io::Error::other(format!(
                "index page {page} was never written"
            )));
        }
        let matches = |block: usize, bytes: &[u8]| {
            self.algorithm.sum64(&[bytes]) == shared.sums.get(first + block as u32).sum
        };
        self.mirrors
            .read(place, out, &matches, Mend::Now)
            .map_err(|bad| {
                let pages: Vec<_> = bad.iter().map(|bad| first + bad.block as u32).collect();
                io::Error::other(format!("index pages {pages:?} are damaged on every mirror"))
            })
    }

    /// Fills `out`, whole pages from `first` on, from what is staged and what is on disk.
    fn read_pages(&self, shared: &Shared, first: u32, out: &mut [u8]) -> io::Result<()> {
        let committed = (shared.committed_len / BLOCK_U64) as u32;
        let mut run_start = 0;
        let count = out.len() / BLOCK;
        for at in 0..=count {
            let page = first + at as u32;
            let staged = shared.staged.get(&page);
            let on_disk = at < count && staged.is_none() && page < committed;
            if on_disk {
                continue;
            }
            if run_start < at {
                let run = &mut out[run_start * BLOCK..at * BLOCK];
                self.read_committed(shared, first + run_start as u32, run)?;
            }
            if at < count {
                let bytes = &mut out[at * BLOCK..(at + 1) * BLOCK];
                match staged {
                    Some(page) => bytes.copy_from_slice(page.as_slice()),
                    None => bytes.fill(0),
                }
            }
            run_start = at + 1;
        }
        Ok(())
    }
}

/// The handle that redb owns.
#[derive(Debug)]
pub(super) struct Backend(pub(super) Arc<PageStore>);

impl redb::StorageBackend for Backend {
    fn len(&self) -> io::Result<u64> {
        Ok(self.0.shared.read().len)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let shared = self.0.shared.read();
        let end = offset + out.len() as u64;
        if end > shared.len {
            return Err(io::Error::new(
                io::ErrorKind::UnexpectedEof,
                format!("read up to {end} of an index of {} bytes", shared.len),
            ));
        }
        let first = (offset / BLOCK_U64) as u32;
        if offset.is_multiple_of(BLOCK_U64) && out.len().is_multiple_of(BLOCK) {
            return self.0.read_pages(&shared, first, out);
        }
        let skip = (offset % BLOCK_U64) as usize;
        let mut pages = vec![0; (skip + out.len()).next_multiple_of(BLOCK)];
        self.0.read_pages(&shared, first, &mut pages)?;
        out.copy_from_slice(&pages[skip..skip + out.len()]);
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        let mut shared = self.0.shared.write();
        let end = u32::try_from(len.div_ceil(BLOCK_U64)).map_err(io::Error::other)?;
        shared.staged.split_off(&end);
        shared.len = len;
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        // The checkpoint that the pool drives makes pages durable, all at once.
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let mut shared = self.0.shared.write();
        let mut offset = offset;
        let mut data = data;
        while !data.is_empty() {
            let page = u32::try_from(offset / BLOCK_U64).map_err(io::Error::other)?;
            let skip = (offset % BLOCK_U64) as usize;
            let take = data.len().min(BLOCK - skip);
            let (head, rest) = data.split_at(take);
            if take < BLOCK && !shared.staged.contains_key(&page) {
                let mut whole = Box::new([0; BLOCK]);
                self.0.read_pages(&shared, page, whole.as_mut_slice())?;
                shared.staged.insert(page, whole);
            }
            let whole = shared
                .staged
                .entry(page)
                .or_insert_with(|| Box::new([0; BLOCK]));
            whole[skip..skip + take].copy_from_slice(head);
            offset += take as u64;
            data = rest;
        }
        Ok(())
    }
}
