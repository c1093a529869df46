//! Recovery: from what the mirrors hold to an index that is exactly a prefix of history.
//!
//! Nothing is written before the journal was read to its end and found sound. Up to the last
//! `Durable` mark every operation is applied. After it an operation counts only if the data it
//! brought is there on some mirror: the first that is not ends history, and what came after it is
//! given up, since nobody was promised it. Data that the index points to already does not count
//! there: it was accepted before, and what has become of it since is damage, not a crash. Replaying
//! is idempotent, so a crash in the middle of recovery does no harm: the next one does the same
//! again.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Instant;

use super::commit::{Parts, announce};
use super::incidents::Incidents;
use super::open::{MountError, OpenOptions};
use super::status::RecoveryStatus;
use crate::backing::FileName;
use crate::format::{
    BLOCK, ExtentRow, Framing, Ino, Key, Lsn, Record, ReverseRow, SegmentNo, SegmentRow, StateRow,
    Superblock, Table, TxnBody,
};
use crate::index::{Freed, Index, IndexConfig, IndexError, Interrupted};
use crate::journal::{Journal, JournalConfig, LogEnd, level, look_behind, scan};
use crate::ledger::What;
use crate::mirrors::{MirrorSet, Place};
use crate::segments::{Accounts, Segments, SegmentsConfig};

/// Rows read in one go.
const STEP: usize = 4096;

/// What recovery found and did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RecoveryReport {
    /// Whether there was anything to do.
    pub needed: bool,
    /// Operations replayed from the journal.
    pub replayed: u64,
    /// Operations after the last durable one that were given up.
    pub discarded: u64,
    /// Journal records that a mirror lacked and was given.
    pub healed: u64,
    /// How long it took, in milliseconds.
    pub duration_ms: u64,
    /// When it ended, in seconds since 1970-01-01 UTC.
    pub finished: i64,
    /// Everything else worth saying.
    pub notes: Vec<String>,
}

impl RecoveryReport {
    /// The report as the status shows it, with the orphans that were removed after it.
    pub(super) fn status(&self, orphans: u64) -> RecoveryStatus {
        RecoveryStatus {
            result: if self.needed { "recovered" } else { "clean" }.to_owned(),
            finished: self.finished,
            duration_ms: self.duration_ms,
            replayed: self.replayed,
            discarded: self.discarded,
            orphans,
            notes: self.notes.clone(),
        }
    }
}

/// More inodes than rows fit into an overlay and its frozen part: operations wait for a checkpoint
/// long before.
const INOS_LOST: u64 = 1 << 20;

/// What the first pass over the journal learns.
#[derive(Debug)]
struct Survey {
    interrupted: Interrupted,
    /// Position from which operations are not in the index yet.
    replay_from: u64,
    end: LogEnd,
    /// Whether there are traces of records behind the end.
    torn: bool,
}

/// What the index needs besides rows.
struct Replayed {
    next_ino: u64,
    next_segment: u64,
    inodes: u64,
    accounts: Accounts,
    freed: Vec<Freed>,
    /// Where history ends if not at the end of the log: position and LSN of the operation given up.
    stopped: Option<(u64, Lsn)>,
    segments_seen: BTreeSet<SegmentNo>,
}

pub(super) fn recover(
    mirrors: Arc<MirrorSet>,
    incidents: Arc<Incidents>,
    options: OpenOptions,
) -> Result<Parts, MountError> {
    let begun = Instant::now();
    let superblock = mirrors.superblock();
    let survey = survey(&mirrors, &superblock)?;
    let needed = survey.end.head > superblock.journal.tail;
    let mut report = RecoveryReport {
        needed,
        ..RecoveryReport::default()
    };
    if survey.torn {
        report
            .notes
            .push("the journal had a torn tail, which was cut".to_owned());
    }
    if report.needed {
        let tag = superblock.pool.tag();
        report.healed = level(&mirrors, superblock.journal, tag, survey.end)?;
        write_images(&mirrors, &superblock)?;
    }
    let unfinished = survey.interrupted.begun.is_some() || survey.interrupted.done.is_some();
    if unfinished {
        let ended = if survey.interrupted.done.is_some() {
            "finished"
        } else {
            "undone"
        };
        report
            .notes
            .push(format!("a checkpoint that was interrupted was {ended}"));
    }
    let config = IndexConfig {
        algorithm: superblock.algorithm,
        pool: superblock.pool.tag(),
        cache: options.cache,
        reserve: options.index_reserve,
    };
    let (index, checkpoint) = Index::open(
        Arc::clone(&mirrors),
        config,
        superblock.checkpoint,
        survey.interrupted,
    )?;
    let mut replayed = Replayed::from_index(&index)?;
    let fresh = replayed.next_ino + lost_inos(&superblock);
    if report.needed {
        let plan = Plan {
            superblock: &superblock,
            from: survey.replay_from,
            indexed: checkpoint.lsn,
            end: survey.end,
        };
        replay(&mirrors, &index, &plan, &mut replayed, &mut report)?;
    }
    replayed.next_ino = replayed.next_ino.max(fresh);
    let mut recovered = superblock.clone();
    if checkpoint != superblock.checkpoint {
        // The tail moves with the checkpoint, as it would have without the interruption: what the
        // checkpoint freed may be given back from now on, so nothing before it may be replayed.
        recovered.checkpoint = checkpoint;
        recovered.journal.tail = survey.replay_from;
        recovered.journal.tail_lsn = checkpoint.lsn.next();
    }
    finish(
        mirrors, incidents, options, superblock, index, recovered, survey.end, replayed, report,
        begun,
    )
}

/// Reads the journal once: is it sound, where does it end, was a checkpoint interrupted?
fn survey(mirrors: &MirrorSet, superblock: &Superblock) -> Result<Survey, MountError> {
    let mut interrupted = Interrupted::default();
    let next = superblock.checkpoint.generation + 1;
    let mut replay_from = superblock.journal.tail;
    let tag = superblock.pool.tag();
    let end = scan(
        mirrors,
        superblock.journal,
        tag,
        &mut |_, _, record| match record {
            Record::CheckpointBegin(begin) if begin.generation == next => {
                interrupted.begun = Some(begin);
            }
            Record::CheckpointDone(done) if done.generation == next => {
                replay_from = done.tail;
                interrupted.done = Some(done);
            }
            Record::CheckpointBegin(_)
            | Record::CheckpointDone(_)
            | Record::Txn(_)
            | Record::DataImage(_)
            | Record::Durable(_) => {}
        },
    );
    // After an orderly close nothing is expected behind the end.
    let torn = !superblock.clean && look_behind(mirrors, superblock.journal, tag, end)?;
    Ok(Survey {
        interrupted,
        replay_from,
        end,
        torn,
    })
}

/// Puts the data that only the journal holds into its segments. Segment offsets are never written
/// twice, so this cannot overwrite anything newer.
fn write_images(mirrors: &MirrorSet, superblock: &Superblock) -> Result<(), MountError> {
    let mut outcome = Ok(());
    let mut files = BTreeSet::new();
    let tag = superblock.pool.tag();
    scan(mirrors, superblock.journal, tag, &mut |_, _, record| {
        let Record::DataImage(image) = record else {
            return;
        };
        let file = FileName::Segment(image.segment);
        if outcome.is_ok() {
            outcome = (|| {
                if files.insert(file) {
                    mirrors.create(file)?;
                }
                mirrors.write(file, u64::from(image.offset), &[&image.bytes])
            })();
        }
    });
    outcome?;
    let files: Vec<_> = files.into_iter().collect();
    Ok(mirrors.sync(&files, &files)?)
}

impl Replayed {
    fn from_index(index: &Index) -> Result<Replayed, IndexError> {
        let state = match index.get(&Key::state())? {
            Some(value) => StateRow::decode(&value)?,
            None => StateRow {
                next_ino: Ino(Ino::ROOT.0 + 1),
                next_segment: SegmentNo(1),
                inodes: 0,
            },
        };
        let mut replayed = Replayed {
            next_ino: state.next_ino.0,
            next_segment: state.next_segment.0,
            inodes: state.inodes,
            accounts: Accounts::default(),
            freed: Vec::new(),
            stopped: None,
            segments_seen: BTreeSet::new(),
        };
        let mut from = Key::table_start(Table::Segment);
        loop {
            let rows = index.scan(&from, &Key::table_end(Table::Segment), STEP)?;
            for (key, value) in &rows {
                let segment = key.segment_no()?;
                replayed.accounts.load(segment, SegmentRow::decode(value)?);
                from = Key::segment(SegmentNo(segment.0 + 1));
            }
            if rows.len() < STEP {
                return Ok(replayed);
            }
        }
    }

    /// Applies an operation, keeping live bytes and counters, which follow from the rows.
    fn apply(&mut self, index: &Index, txn: TxnBody) -> Result<(), IndexError> {
        for change in txn.changes {
            match change.key.table() {
                Some(Table::Reverse) => self.follow_reverse(index, &change.key, &change.value)?,
                Some(Table::Inode) => {
                    let ino = change.key.ino(Table::Inode)?;
                    self.next_ino = self.next_ino.max(ino.0.saturating_add(1));
                    let before = index.get(&change.key)?.is_some();
                    match (before, change.value.is_some()) {
                        (false, true) => self.inodes += 1,
                        (true, false) => self.inodes = self.inodes.saturating_sub(1),
                        _ => {}
                    }
                }
                _ => {}
            }
            index.apply(vec![change]);
        }
        Ok(())
    }

    fn follow_reverse(
        &mut self,
        index: &Index,
        key: &Key,
        value: &Option<Vec<u8>>,
    ) -> Result<(), IndexError> {
        let (segment, offset, _, _) = key.reverse_parts()?;
        self.segments_seen.insert(segment);
        if let Some(old) = index.get(key)? {
            let old = ReverseRow::decode(&old)?;
            self.accounts.add(&[(segment, -i64::from(old.stored))]);
            self.freed.push(Freed {
                segment,
                offset,
                len: old.stored,
                header: old.header,
            });
        }
        if let Some(new) = value {
            let new = ReverseRow::decode(new)?;
            self.accounts.add(&[(segment, i64::from(new.stored))]);
            self.accounts
                .extend(segment, (offset + new.stored).next_multiple_of(512));
        }
        Ok(())
    }
}

struct Plan<'a> {
    superblock: &'a Superblock,
    from: u64,
    /// Up to here everything is in the index.
    indexed: Lsn,
    end: LogEnd,
}

fn replay(
    mirrors: &MirrorSet,
    index: &Index,
    plan: &Plan<'_>,
    replayed: &mut Replayed,
    report: &mut RecoveryReport,
) -> Result<(), MountError> {
    let mut outcome: Result<(), IndexError> = Ok(());
    let superblock = plan.superblock;
    let tag = superblock.pool.tag();
    scan(mirrors, superblock.journal, tag, &mut |lsn, at, record| {
        let Record::Txn(txn) = record else { return };
        // What the index holds already must not come again: if history ends on the way, some rows
        // would be older than others.
        if outcome.is_err() || at < plan.from || lsn <= plan.indexed {
            return;
        }
        if replayed.stopped.is_some() {
            report.discarded += 1;
            return;
        }
        let promised = lsn <= plan.end.durable;
        let there = promised
            || match data_is_there(mirrors, index, superblock, &txn) {
                Ok(there) => there,
                Err(error) => {
                    outcome = Err(error);
                    return;
                }
            };
        if there {
            report.replayed += 1;
            outcome = replayed.apply(index, txn);
        } else {
            replayed.stopped = Some((at, lsn));
            report.discarded += 1;
        }
    });
    Ok(outcome?)
}

/// Whether some mirror has the data of every extent that the operation brings. A mirror that lacks
/// it is given it: the bytes are verified.
fn data_is_there(
    mirrors: &MirrorSet,
    index: &Index,
    superblock: &Superblock,
    txn: &TxnBody,
) -> Result<bool, IndexError> {
    let algorithm = superblock.algorithm;
    let width = algorithm.width();
    for change in &txn.changes {
        let (Some(Table::Extent), Some(value)) = (change.key.table(), &change.value) else {
            continue;
        };
        let Ok(row) = ExtentRow::decode(value, width) else {
            return Ok(false);
        };
        if is_known(index, &row)? {
            continue;
        }
        let mut out = vec![0; row.stored as usize];
        let place = Place {
            file: FileName::Segment(row.segment),
            offset: u64::from(row.offset),
        };
        debug_assert!(out.len().div_ceil(BLOCK) == row.blocks());
        let there = mirrors.probe(place, &mut out, &|block, bytes| {
            algorithm.matches(bytes, row.sum(block, width))
        })?;
        if !there {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Whether a row points into the extent that this one is a part of: this one is a slice or a clone.
fn is_known(index: &Index, row: &ExtentRow) -> Result<bool, IndexError> {
    // Behind a header the first rows can only be of its extent.
    let from = Key::reverse_at(row.segment, row.header);
    let rows = index.scan(&from, &Key::reverse_end(row.segment), 1)?;
    rows.iter().try_fold(false, |_, (_, value)| {
        Ok(ReverseRow::decode(value)?.header == row.header)
    })
}

/// Puts the parts together; what has to be written because of the recovery is written here.
#[expect(
    clippy::too_many_arguments,
    reason = "the parts of a pool, each used once"
)]
fn finish(
    mirrors: Arc<MirrorSet>,
    incidents: Arc<Incidents>,
    options: OpenOptions,
    superblock: Superblock,
    index: Index,
    recovered: Superblock,
    end: LogEnd,
    replayed: Replayed,
    mut report: RecoveryReport,
    begun: Instant,
) -> Result<Parts, MountError> {
    let (head, next) = replayed.stopped.unwrap_or((end.head, end.next));
    let active = report.needed;
    if active {
        // A mount that was read-only so far still has to leave the mirrors recovered.
        mirrors.update_superblock(|superblock| {
            superblock.journal.run = superblock.journal.run.max(end.run);
        })?;
        announce(&mirrors)?;
    }
    let run = mirrors.superblock().journal.run + u32::from(!active);
    let framing = Framing {
        algorithm: superblock.algorithm,
        pool: superblock.pool.tag(),
        run,
    };
    let journal = Journal::new(
        Arc::clone(&mirrors),
        JournalConfig {
            tail: recovered.journal,
            framing,
            head,
            next,
        },
    );
    let on_disk = newest_segment(&mirrors);
    let seen = replayed.segments_seen.last().map_or(0, |segment| segment.0);
    let next_segment = replayed.next_segment.max(on_disk + 1).max(seen + 1);
    let config = SegmentsConfig {
        algorithm: superblock.algorithm,
        pool: superblock.pool.tag(),
        next: SegmentNo(next_segment),
        size: options.segment_size,
    };
    let segments = Segments::new(Arc::clone(&mirrors), config, replayed.accounts);
    if report.needed {
        // Data of replayed operations may be in the page cache of a mirror only.
        let touched: Vec<_> = replayed
            .segments_seen
            .iter()
            .map(|segment| FileName::Segment(*segment))
            .collect();
        let there: Vec<_> = touched
            .into_iter()
            .filter(|file| exists(&mirrors, *file))
            .collect();
        mirrors.sync(&there, &there)?;
        if recovered.checkpoint != superblock.checkpoint {
            mirrors.update_superblock(|superblock| {
                superblock.checkpoint = recovered.checkpoint;
                superblock.journal.tail = recovered.journal.tail;
                superblock.journal.tail_lsn = recovered.journal.tail_lsn;
            })?;
        }
    }
    report.finished = (options.clock)().seconds;
    report.duration_ms = begun.elapsed().as_millis() as u64;
    if report.needed {
        log::info!(
            "recovered: {} operations replayed, {} given up, in {} ms{}{}",
            report.replayed,
            report.discarded,
            report.duration_ms,
            if report.notes.is_empty() { "" } else { "; " },
            report.notes.join("; ")
        );
        incidents.note(What::Recovery {
            replayed: report.replayed,
            discarded: report.discarded,
            notes: report.notes.clone(),
        });
    }
    Ok(Parts {
        options,
        mirrors,
        index,
        journal,
        segments,
        incidents,
        recovery: report,
        next_ino: Ino(replayed.next_ino),
        inodes: replayed.inodes,
        freed: replayed.freed,
        active,
    })
}

/// How many inode numbers may have been given out since the last checkpoint and be on no disk. One
/// that stands in a file handle somewhere must not come to mean another file: no mount that wrote
/// gives out more than `INOS_LOST` between two checkpoints, and each has raised the run number.
fn lost_inos(superblock: &Superblock) -> u64 {
    if superblock.clean {
        return 0;
    }
    let journal = &superblock.journal;
    let runs = journal.run.saturating_sub(journal.tail_run) + 1;
    INOS_LOST * u64::from(runs)
}

fn exists(mirrors: &MirrorSet, file: FileName) -> bool {
    mirrors
        .current()
        .iter()
        .any(|mirror| mirror.backing().len(file).is_ok())
}

fn newest_segment(mirrors: &MirrorSet) -> u64 {
    mirrors
        .current()
        .iter()
        .filter_map(|mirror| mirror.backing().segments().ok()?.last().copied())
        .map(|segment| segment.0)
        .max()
        .unwrap_or(0)
}
