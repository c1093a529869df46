//! Reading the journal back at mount.

use std::collections::BTreeMap;
use std::io;

use thiserror::Error;

use crate::backing::{Backing, FileName};
use crate::format::{
    JournalRef, Lsn, PoolTag, RECORD_ALIGN, RECORD_HEADER_LEN, Record, RecordHeader,
};
use crate::mirrors::{Damage, MirrorError, MirrorId, MirrorSet, Place, agree, read_around};

/// Bytes given to a mirror in one go, about.
const RUN_MAX: usize = 1 << 20;
/// Bytes read at a time.
const WINDOW: u64 = 1 << 20;

/// The journal cannot be trusted to its end: a record that was durable is valid on no mirror.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error(
    "journal record {lsn} is damaged on every mirror, though a later one says that it was durable \
     (up to {durable}); nothing was changed"
)]
pub struct JournalDamaged {
    /// The damaged record.
    pub lsn: Lsn,
    /// What a later record says was durable.
    pub durable: Lsn,
}

/// Where the log ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LogEnd {
    /// Position after the last valid record.
    pub head: u64,
    /// LSN after the last valid record.
    pub next: Lsn,
    /// Highest run number seen.
    pub run: u32,
    /// Up to here everything was synced on all mirrors before the end.
    pub durable: Lsn,
}

/// One mirror's journal, read in windows.
struct Reader<'a> {
    backing: &'a dyn Backing,
    size: u64,
    window: Vec<u8>,
    at: u64,
    damage: Option<Damage>,
}

impl<'a> Reader<'a> {
    const fn new(backing: &'a dyn Backing, size: u64) -> Reader<'a> {
        Reader {
            backing,
            size,
            window: Vec::new(),
            at: 0,
            damage: None,
        }
    }

    /// `len` bytes at position `at`, or fewer where the mirror cannot supply them.
    fn get(&mut self, at: u64, len: usize) -> &[u8] {
        let have = self.at + self.window.len() as u64;
        if at < self.at || at + len as u64 > have {
            self.fill(at, (len as u64).max(WINDOW).min(self.size));
        }
        let start = (at - self.at) as usize;
        &self.window[start..(start + len).min(self.window.len())]
    }

    fn fill(&mut self, at: u64, len: u64) {
        self.at = at;
        self.window.resize(len as usize, 0);
        let offset = at % self.size;
        let first = len.min(self.size - offset) as usize;
        let (end, wrapped) = self.window.split_at_mut(first);
        self.damage = None;
        for (offset, buffer) in [(offset, end), (0, wrapped)] {
            if buffer.is_empty() {
                continue;
            }
            // What cannot be read is zeros here, which no record is.
            let got = match read_around(self.backing, FileName::Journal, offset, buffer) {
                Ok((got, false)) => got,
                Ok((got, true)) => {
                    self.damage = Some(Damage::Unreadable);
                    got
                }
                Err(error) => {
                    self.damage = Some(match error.kind() {
                        io::ErrorKind::NotFound => Damage::Missing,
                        _ => Damage::Unreadable,
                    });
                    0
                }
            };
            if got < buffer.len() {
                self.damage.get_or_insert(Damage::Short);
                buffer[got..].fill(0);
            }
        }
    }

    /// The record at `at`, if this mirror has the one that follows.
    fn record(&mut self, at: u64, pool: PoolTag, lsn: Lsn, run: u32) -> Option<Found> {
        let header = RecordHeader::decode(self.get(at, RECORD_HEADER_LEN)).ok()?;
        if !header.follows(pool, lsn, run) || header.record_len() as u64 > self.size {
            return None;
        }
        let bytes = self.get(at, header.record_len());
        let record = header.verify(bytes).ok()?;
        Some(Found {
            run: header.run,
            bytes: bytes.to_vec(),
            record,
        })
    }
}

struct Found {
    run: u32,
    bytes: Vec<u8>,
    record: Record,
}

/// Visits the records from `from` on, in order, each from any mirror that has it intact. The
/// mirrors are only read.
pub fn scan(
    mirrors: &MirrorSet,
    from: JournalRef,
    pool: PoolTag,
    visit: &mut dyn FnMut(Lsn, u64, Record),
) -> LogEnd {
    walk(mirrors, from, pool, visit, &mut |_, _, _, _| {})
}

/// Gives each record up to `end` to the mirrors that lack it; returns how many copies that were.
/// Records that were durable on all mirrors are reported as damage; the others a crash took.
///
/// # Errors
/// [`MirrorError::AllFailed`] if no mirror could be written.
pub fn level(
    mirrors: &MirrorSet,
    from: JournalRef,
    pool: PoolTag,
    end: LogEnd,
) -> Result<u64, MirrorError> {
    let mut given = 0;
    let mut runs: BTreeMap<MirrorId, Run> = BTreeMap::new();
    let mut outcome = Ok(());
    let mut visit = |_: Lsn, _: u64, _: Record| {};
    walk(
        mirrors,
        from,
        pool,
        &mut visit,
        &mut |mirror, damage, at, bytes| {
            given += 1;
            let durable = at.next <= end.durable;
            let run = runs.entry(mirror).or_default();
            let follows = run.at + run.bytes.len() as u64 == at.head && run.durable == durable;
            if (!follows || run.bytes.len() >= RUN_MAX) && outcome.is_ok() {
                outcome = run.give(mirrors, mirror, from.size);
            }
            if run.bytes.is_empty() {
                (run.at, run.durable, run.damage) = (at.head, durable, damage);
            }
            run.bytes.extend_from_slice(bytes);
        },
    );
    outcome?;
    for (mirror, mut run) in runs {
        run.give(mirrors, mirror, from.size)?;
    }
    mirrors.sync(&[FileName::Journal], &[])?;
    Ok(given)
}

/// Records that follow one another and that a mirror lacks: given to it in one go.
#[derive(Debug)]
struct Run {
    at: u64,
    bytes: Vec<u8>,
    durable: bool,
    damage: Damage,
}

impl Default for Run {
    fn default() -> Run {
        Run {
            at: 0,
            bytes: Vec::new(),
            durable: false,
            damage: Damage::Checksum,
        }
    }
}

impl Run {
    /// Gives the run to the mirror and empties it.
    fn give(&mut self, mirrors: &MirrorSet, to: MirrorId, size: u64) -> Result<(), MirrorError> {
        let bytes = std::mem::take(&mut self.bytes);
        let offset = self.at % size;
        let (first, wrapped) = bytes.split_at(bytes.len().min((size - offset) as usize));
        for (offset, part) in [(offset, first), (0, wrapped)] {
            let place = Place {
                file: FileName::Journal,
                offset,
            };
            if part.is_empty() {
                continue;
            }
            if self.durable {
                mirrors.heal(to, place, self.damage, part.to_vec());
            } else {
                mirrors.give(to, place, part)?;
            }
        }
        Ok(())
    }
}

type Lacking<'a> = &'a mut dyn FnMut(MirrorId, Damage, LogEnd, &[u8]);

fn walk(
    mirrors: &MirrorSet,
    from: JournalRef,
    pool: PoolTag,
    visit: &mut dyn FnMut(Lsn, u64, Record),
    lacking: Lacking<'_>,
) -> LogEnd {
    let current = mirrors.current();
    let mut readers: Vec<_> = current
        .iter()
        .map(|mirror| Reader::new(mirror.backing(), from.size))
        .collect();
    let before = Lsn(from.tail_lsn.0.saturating_sub(1));
    let (head, next, run) = (from.tail, from.tail_lsn, from.tail_run);
    let mut end = LogEnd {
        head,
        next,
        run,
        durable: before,
    };
    while end.head - from.tail < from.size {
        let mut found: Vec<_> = readers
            .iter_mut()
            .map(|reader| reader.record(end.head, pool, end.next, end.run))
            .collect();
        let copies: Vec<_> = found
            .iter()
            .map(|copy| copy.as_ref().map(|copy| (copy.run, copy.bytes.as_slice())))
            .collect();
        let Some(best) = agree(&copies) else {
            break;
        };
        let Some(Found { run, bytes, record }) = found[best].take() else {
            break;
        };
        for (index, copy) in found.iter().enumerate() {
            if index != best && copy.as_ref().is_none_or(|copy| copy.bytes != bytes) {
                let damage = readers[index].damage.unwrap_or(Damage::Checksum);
                lacking(current[index].id, damage, end, &bytes);
            }
        }
        if let Record::Durable(lsn) = &record {
            end.durable = end.durable.max(*lsn);
        }
        visit(end.next, end.head, record);
        end.head += bytes.len() as u64;
        end.next = end.next.next();
        end.run = run;
    }
    end
}

/// Looks behind the end of the log for records that show it to be damage and not a torn tail.
/// Returns whether there are traces of any records there.
///
/// # Errors
/// [`JournalDamaged`] if a record there says that more was durable than the log holds.
pub fn look_behind(
    mirrors: &MirrorSet,
    from: JournalRef,
    pool: PoolTag,
    end: LogEnd,
) -> Result<bool, JournalDamaged> {
    let mut torn = false;
    for mirror in mirrors.current() {
        let mut reader = Reader::new(mirror.backing(), from.size);
        let mut at = end.head;
        while at < from.tail + from.size {
            let here = at;
            at += RECORD_ALIGN as u64;
            let Ok(header) = RecordHeader::decode(reader.get(here, RECORD_HEADER_LEN)) else {
                continue;
            };
            let plausible = header.lsn > end.next && header.follows(pool, header.lsn, end.run);
            if !plausible || header.record_len() as u64 > from.size {
                continue;
            }
            let Ok(record) = header.verify(reader.get(here, header.record_len())) else {
                continue;
            };
            torn = true;
            at = here + header.record_len() as u64;
            if let Record::Durable(durable) = record
                && durable >= end.next
            {
                return Err(JournalDamaged {
                    lsn: end.next,
                    durable,
                });
            }
        }
    }
    Ok(torn)
}
