//! Verified reads: the one way in which bytes come off a mirror.

use std::io;

use super::decide::{Damage, Outcome, Verdict, decide};
use super::parts::Supplied;
use super::patience::READ_DEADLINE;
use super::repair::RepairJob;
use super::set::{Attached, MirrorSet};
use super::write::MirrorError;
use crate::backing::FileName;
use crate::format::BLOCK;

/// Bytes compared at a time.
const LEVEL_STEP: u64 = 1 << 20;

/// Where a run of blocks lies: the same on every mirror.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Place {
    /// The file.
    pub file: FileName,
    /// Offset of the first block, in bytes.
    pub offset: u64,
}

impl Place {
    /// The place of block `block` of the run.
    #[must_use]
    pub const fn block(self, block: usize) -> Place {
        Place {
            file: self.file,
            offset: self.offset + (block * BLOCK) as u64,
        }
    }
}

/// When a bad copy is rewritten.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mend {
    /// Before the call returns: for what may be rewritten with newer bytes later.
    Now,
    /// Soon, together with others, by a service.
    Soon,
}

/// A block that no mirror could supply.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BadBlock {
    /// Its number in the run that was read.
    pub block: usize,
}

/// The outcome for `len` bytes of which a read supplied `got`.
fn judge(got: Result<usize, Outcome>, len: usize, verify: impl FnOnce() -> bool) -> Outcome {
    match got {
        Err(outcome) => outcome,
        Ok(got) if got < len => Outcome::Damaged(Damage::Short),
        Ok(_) if verify() => Outcome::Good,
        Ok(_) => Outcome::Damaged(Damage::Checksum),
    }
}

/// The mirror that was asked for a run first, and what it said of one of the blocks.
#[derive(Clone, Copy)]
struct Asked<'a> {
    mirror: &'a Attached,
    damage: Damage,
    /// Whether it was asked for that block alone: a disk that cannot read one block of a run fails
    /// the whole, and may still have the others.
    alone: bool,
}

impl MirrorSet {
    /// How many bytes of `buf` the mirror supplied, or why none: for what concerns this mirror and
    /// waits for it.
    pub(super) fn read_copy(
        &self,
        mirror: &Attached,
        place: Place,
        buf: &mut [u8],
    ) -> Result<usize, Damage> {
        match self.read_within(mirror, place, buf, None) {
            Err(Outcome::Damaged(damage)) => Err(damage),
            Err(_) => Err(Damage::Unreadable),
            Ok(got) => Ok(got),
        }
    }

    /// Fills `out` with the blocks that begin at `place`; the last may be shorter than a block.
    /// `verify(block, bytes)` tells whether bytes are what the parent's checksum of that block
    /// says. Bad copies are answered from another mirror and repaired, when `mend` says.
    ///
    /// # Errors
    /// The blocks that no mirror could supply; `out` holds the others, and zeros for these.
    pub fn read(
        &self,
        place: Place,
        out: &mut [u8],
        verify: &dyn Fn(usize, &[u8]) -> bool,
        mend: Mend,
    ) -> Result<(), Vec<BadBlock>> {
        let mut jobs = Vec::new();
        let result = self.read_collecting(place, out, verify, &mut jobs);
        self.mend(jobs, mend);
        result
    }

    fn read_collecting(
        &self,
        place: Place,
        out: &mut [u8],
        verify: &dyn Fn(usize, &[u8]) -> bool,
        jobs: &mut Vec<RepairJob>,
    ) -> Result<(), Vec<BadBlock>> {
        let mut order = self.read_order(place.file, place.offset);
        if order.is_empty() {
            out.fill(0);
            return Err((0..out.len().div_ceil(BLOCK))
                .map(|block| BadBlock { block })
                .collect());
        }
        MirrorSet::stalled_last(&mut order);
        let (answered, got) = self.first_answer(&order, place, out);
        // Those before it were late: if it has damage they are asked again, after the others.
        order.rotate_left(answered);
        let (first, others) = (&order[0], &order[1..]);
        let several = out.len() > BLOCK;
        let mut bad = Vec::new();
        for (block, bytes) in out.chunks_mut(BLOCK).enumerate() {
            let there = got.map(|got| got.saturating_sub(block * BLOCK));
            let outcome = judge(there, bytes.len(), || verify(block, bytes));
            let Outcome::Damaged(damage) = outcome else {
                continue;
            };
            let verify = |bytes: &[u8]| verify(block, bytes);
            let alone = !several || damage != Damage::Unreadable;
            let asked = Asked {
                mirror: first,
                damage,
                alone,
            };
            if !self.read_elsewhere(place.block(block), bytes, &verify, asked, others, jobs) {
                bytes.fill(0);
                bad.push(BadBlock { block });
            }
        }
        if bad.is_empty() { Ok(()) } else { Err(bad) }
    }

    /// Asks the other mirrors for a block that was bad on the first; false if none has it.
    fn read_elsewhere(
        &self,
        place: Place,
        bytes: &mut [u8],
        verify: &dyn Fn(&[u8]) -> bool,
        asked: Asked<'_>,
        others: &[Attached],
        jobs: &mut Vec<RepairJob>,
    ) -> bool {
        let Asked {
            mirror: first,
            damage,
            mut alone,
        } = asked;
        let mut outcomes = vec![Outcome::Damaged(damage)];
        outcomes.resize(1 + others.len(), Outcome::NotAsked);
        let mirror_at = |index: usize| {
            if index == 0 {
                first
            } else {
                &others[index - 1]
            }
        };
        loop {
            match decide(&outcomes) {
                Verdict::Ask(index) => {
                    let mirror = &others[index - 1];
                    let got = self.read_within(mirror, place, bytes, Some(READ_DEADLINE));
                    outcomes[index] = judge(got, bytes.len(), || verify(bytes));
                }
                Verdict::Wait(late) => {
                    let mirrors: Vec<_> = late.iter().map(|at| mirror_at(*at).clone()).collect();
                    let (answered, got) = self.first_answer(&mirrors, place, bytes);
                    outcomes[late[answered]] = judge(got, bytes.len(), || verify(bytes));
                }
                Verdict::Serve { heal, .. } => {
                    for index in heal {
                        if let Outcome::Damaged(damage) = outcomes[index] {
                            let mirror = mirror_at(index).id;
                            let data = bytes.to_vec();
                            jobs.push(RepairJob {
                                mirror,
                                place,
                                damage,
                                data,
                            });
                        }
                    }
                    return true;
                }
                Verdict::Fail if !alone => {
                    alone = true;
                    let got = self.read_within(first, place, bytes, Some(READ_DEADLINE));
                    outcomes[0] = judge(got, bytes.len(), || verify(bytes));
                }
                Verdict::Fail => {
                    for (index, outcome) in outcomes.iter().enumerate() {
                        if let Outcome::Damaged(damage) = outcome {
                            self.report_lost(mirror_at(index).id, place, bytes.len(), *damage);
                        }
                    }
                    return false;
                }
            }
        }
    }

    /// Whether some mirror has every block of the run intact; the mirrors that lack a block are
    /// then given it. For recovery, where a mirror that lacks unsynced data is not damaged: nothing
    /// is counted or reported, and nothing is synced.
    ///
    /// # Errors
    /// [`MirrorError::AllFailed`] if no mirror could be written.
    pub fn probe(
        &self,
        place: Place,
        out: &mut [u8],
        verify: &dyn Fn(usize, &[u8]) -> bool,
    ) -> Result<bool, MirrorError> {
        let copies: Vec<_> = self
            .current()
            .into_iter()
            .map(|mirror| {
                let mut copy = vec![0; out.len()];
                let there = self.read_parts(&mirror, place, &mut copy);
                (mirror, copy, there)
            })
            .collect();
        let (mut complete, mut lacking) = (true, Vec::new());
        for (block, bytes) in out.chunks_mut(BLOCK).enumerate() {
            let range = block * BLOCK..block * BLOCK + bytes.len();
            let good = |copy: &[u8], there: &Supplied| {
                let copy = &copy[range.clone()];
                judge(there.of(block), copy.len(), || verify(block, copy)) == Outcome::Good
            };
            match copies.iter().find(|(_, copy, there)| good(copy, there)) {
                Some((_, copy, _)) => bytes.copy_from_slice(&copy[range.clone()]),
                None => complete = false,
            }
            let without = copies.iter().filter(|(_, copy, there)| !good(copy, there));
            lacking.extend(without.map(|(mirror, ..)| (mirror.id, block, bytes.to_vec())));
        }
        if complete {
            for (mirror, block, bytes) in lacking {
                self.give(mirror, place.block(block), &bytes)?;
            }
        }
        Ok(complete)
    }

    /// Has every mirror read the file from its medium next.
    pub fn forget_cached(&self, file: FileName) {
        for mirror in self.current() {
            match mirror.backing().forget_cached(file) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    log::warn!(
                        "{}: cannot sync {file} to check it: {error}",
                        mirror.label()
                    );
                }
                Ok(()) | Err(_) => {}
            }
        }
    }

    /// Makes a range that means nothing the same on every mirror, by writing zeros to it, if it is
    /// not; returns whether it was not. What cannot be read, or lies behind the end, counts as
    /// zeros.
    ///
    /// # Errors
    /// [`MirrorError::AllFailed`] if no mirror could be written.
    pub fn level(&self, file: FileName, offset: u64, len: u64) -> Result<bool, MirrorError> {
        let step = |at: u64| (offset + len - at).min(LEVEL_STEP);
        let (mut at, mut differed) = (offset, false);
        while at < offset + len {
            let current = self.current();
            let mut copies = current.iter().map(|mirror| {
                let mut copy = vec![0; step(at) as usize];
                let got = mirror.backing().read_at(file, at, &mut copy).unwrap_or(0);
                copy[got..].fill(0);
                copy
            });
            let first = copies.next();
            if !copies.all(|copy| Some(copy) == first) {
                differed = true;
                self.write(file, at, &[&vec![0; step(at) as usize]])?;
            }
            at += step(at);
        }
        Ok(differed)
    }

    /// Checks a structure of at most `max` bytes that has its own checksum, on every online mirror,
    /// and has the bad copies repaired. `decode` returns the bytes that belong there if it accepts
    /// what it is given. Returns how many copies were bad; none if no copy is good.
    pub fn verify_structure(
        &self,
        place: Place,
        max: usize,
        decode: &dyn Fn(&[u8]) -> Option<Vec<u8>>,
        mend: Mend,
    ) -> Option<usize> {
        let copies: Vec<_> = self
            .current()
            .iter()
            .map(|mirror| {
                let mut copy = vec![0; max];
                let got = self.read_copy(mirror, place, &mut copy);
                copy.truncate(got.unwrap_or(0));
                (mirror.id, copy, got.err())
            })
            .collect();
        let good = copies.iter().find_map(|(_, copy, _)| decode(copy))?;
        let jobs: Vec<_> = copies
            .into_iter()
            .filter(|(_, copy, _)| !copy.starts_with(&good))
            .map(|(mirror, copy, error)| {
                let short = if copy.len() < good.len() {
                    Damage::Short
                } else {
                    Damage::Checksum
                };
                let damage = error.unwrap_or(short);
                RepairJob {
                    mirror,
                    place,
                    damage,
                    data: good.clone(),
                }
            })
            .collect();
        let found = jobs.len();
        self.mend(jobs, mend);
        Some(found)
    }

    /// Checks the copy of every online mirror, and has the bad ones repaired. To check the medium
    /// and not the page cache, call [`MirrorSet::forget_cached`] first. `out` is filled as by
    /// [`MirrorSet::read`]. Returns how many copies were bad.
    ///
    /// # Errors
    /// The blocks that no mirror could supply.
    pub fn verify_all(
        &self,
        place: Place,
        out: &mut [u8],
        verify: &dyn Fn(usize, &[u8]) -> bool,
        mend: Mend,
    ) -> Result<usize, Vec<BadBlock>> {
        let current = self.current();
        let mut copies: Vec<(Vec<u8>, Supplied)> = Vec::with_capacity(current.len());
        for mirror in &current {
            let mut copy = vec![0; out.len()];
            let there = self.read_parts(mirror, place, &mut copy);
            copies.push((copy, there));
        }
        let (mut jobs, mut bad) = (Vec::new(), Vec::new());
        for (block, bytes) in out.chunks_mut(BLOCK).enumerate() {
            let range = block * BLOCK..block * BLOCK + bytes.len();
            let outcomes: Vec<_> = copies
                .iter()
                .map(|(copy, there)| {
                    let copy = &copy[range.clone()];
                    judge(there.of(block), copy.len(), || verify(block, copy))
                })
                .collect();
            let verdict = decide(&outcomes);
            match &verdict {
                Verdict::Serve { from, .. } => bytes.copy_from_slice(&copies[*from].0[range]),
                Verdict::Ask(_) | Verdict::Wait(_) | Verdict::Fail => {
                    bytes.fill(0);
                    bad.push(BadBlock { block });
                }
            }
            for (index, outcome) in outcomes.iter().enumerate() {
                let (Outcome::Damaged(damage), mirror) = (outcome, current[index].id) else {
                    continue;
                };
                let place = place.block(block);
                match &verdict {
                    Verdict::Serve { .. } => {
                        let data = bytes.to_vec();
                        jobs.push(RepairJob {
                            mirror,
                            place,
                            damage: *damage,
                            data,
                        });
                    }
                    Verdict::Ask(_) | Verdict::Wait(_) | Verdict::Fail => {
                        self.report_lost(mirror, place, bytes.len(), *damage);
                    }
                }
            }
        }
        let found = jobs.len();
        self.mend(jobs, mend);
        if bad.is_empty() { Ok(found) } else { Err(bad) }
    }

    fn mend(&self, jobs: Vec<RepairJob>, mend: Mend) {
        match mend {
            Mend::Now => self.repair_now(jobs),
            Mend::Soon => jobs.into_iter().for_each(|job| self.queue_repair(job)),
        }
    }
}
