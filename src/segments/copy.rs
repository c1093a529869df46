//! Bringing one mirror's segments up to date: what a row points to, with the header of its extent.

use super::append::{Segments, own_header, place_of};
use crate::backing::FileName;
use crate::format::{BLOCK, ExtentHeader, ExtentRow, MAX_EXTENT};
use crate::mirrors::{Attached, Copied, MirrorError, Place, Target};

impl Segments {
    /// Makes the target hold what the row points to, writing only the blocks that it lacks.
    /// Returns also the blocks that no mirror can supply.
    ///
    /// # Errors
    /// [`MirrorError::Target`] if the target failed; it is out then.
    pub fn copy(
        &self,
        row: &ExtentRow,
        target: &Target,
    ) -> Result<(Copied, Vec<usize>), MirrorError> {
        let place = place_of(row, 0);
        let held = target.held(place.file, place.offset, row.stored as usize);
        let bad = self.bad_blocks(row, &held);
        let mut copied = Copied {
            compared: u64::from(row.stored),
            moved: 0,
        };
        let mut lost = Vec::new();
        if let (Some(first), Some(last)) = (bad.first(), bad.last()) {
            let end = ((last + 1) * BLOCK).min(row.stored as usize);
            let mut out = vec![0; end - first * BLOCK];
            if let Err(missing) = self.read(row, *first, &mut out) {
                lost = missing.iter().map(|bad| first + bad.block).collect();
            }
            for run in runs(&bad, &lost) {
                let end = (run.end * BLOCK).min(row.stored as usize);
                let bytes = &out[(run.start - first) * BLOCK..end - first * BLOCK];
                let at = place.block(run.start).offset;
                self.mirrors()
                    .target_result(target, target.put(place.file, at, bytes))?;
                copied.moved += bytes.len() as u64;
            }
        }
        if let Some(header) = self.header_of(row) {
            let written = target.match_bytes(place.file, u64::from(row.header), &header);
            copied.moved += self.mirrors().target_result(target, written)?.moved;
        }
        Ok((copied, lost))
    }

    /// Whether the target holds what the row points to, but for the blocks that are lost.
    pub fn is_held(&self, row: &ExtentRow, target: &Target) -> bool {
        let place = place_of(row, 0);
        let held = target.held(place.file, place.offset, row.stored as usize);
        self.bad_blocks(row, &held).is_empty()
    }

    fn bad_blocks(&self, row: &ExtentRow, held: &[u8]) -> Vec<usize> {
        let (algorithm, width) = (self.algorithm(), self.algorithm().width());
        let good = |block: &usize| {
            let end = ((block + 1) * BLOCK).min(row.stored as usize);
            held.get(block * BLOCK..end)
                .is_some_and(|bytes| algorithm.matches(bytes, row.sum(*block, width)))
        };
        (0..row.blocks()).filter(|block| !good(block)).collect()
    }

    /// Length of the header of the row's extent with its padding; 0 if no mirror has it.
    pub fn header_len(&self, row: &ExtentRow) -> usize {
        self.header_of(row).map_or(0, |header| header.len())
    }

    /// The header of the row's extent, with its padding, from any mirror that has it.
    fn header_of(&self, row: &ExtentRow) -> Option<Vec<u8>> {
        let place = Place {
            file: FileName::Segment(row.segment),
            offset: u64::from(row.header),
        };
        let (algorithm, width) = (self.algorithm(), self.algorithm().width());
        let blocks = ((row.offset - row.header) as usize).min(MAX_EXTENT);
        let max = ExtentHeader::len_for(algorithm, MAX_EXTENT).min(blocks) + 2 * BLOCK;
        let current = self.mirrors().current();
        let read = |mirror: &Attached| {
            let mut bytes = vec![0; max];
            let got = mirror
                .backing()
                .read_at(place.file, place.offset, &mut bytes);
            bytes.truncate(got.unwrap_or(0));
            own_header(&bytes, row, width)
        };
        current.iter().find_map(read)
    }
}

/// Runs of bad blocks without those that are lost.
fn runs(bad: &[usize], lost: &[usize]) -> Vec<std::ops::Range<usize>> {
    let mut runs: Vec<std::ops::Range<usize>> = Vec::new();
    for block in bad.iter().filter(|block| !lost.contains(block)) {
        match runs.last_mut() {
            Some(run) if run.end == *block => run.end += 1,
            _ => runs.push(*block..block + 1),
        }
    }
    runs
}
