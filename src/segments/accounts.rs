//! Live bytes of each segment: one small entry for each segment file, kept in memory.

use std::collections::BTreeMap;
use std::ops::Range;

use crate::format::{SegmentNo, SegmentRow};

/// Live bytes and length by segment.
#[derive(Debug, Default, Clone)]
pub struct Accounts {
    segments: BTreeMap<SegmentNo, SegmentRow>,
    /// Changed since [`Accounts::take_changed`].
    changed: BTreeMap<SegmentNo, ()>,
}

impl Accounts {
    /// Takes over what the index has stored.
    pub fn load(&mut self, segment: SegmentNo, row: SegmentRow) {
        self.segments.insert(segment, row);
    }

    /// A segment has grown to `end` bytes.
    pub fn extend(&mut self, segment: SegmentNo, end: u32) {
        let row = self.segments.entry(segment).or_default();
        row.end = row.end.max(end);
        self.changed.insert(segment, ());
    }

    /// Bytes have become live, or dead if negative.
    pub fn add(&mut self, deltas: &[(SegmentNo, i64)]) {
        for (segment, delta) in deltas {
            let row = self.segments.entry(*segment).or_default();
            row.live = row.live.saturating_add_signed(*delta);
            self.changed.insert(*segment, ());
        }
    }

    /// A segment file is gone.
    pub fn remove(&mut self, segment: SegmentNo) {
        self.segments.remove(&segment);
        self.changed.insert(segment, ());
    }

    /// The segments whose entries changed since the last call; none for those that are gone.
    pub fn take_changed(&mut self) -> Vec<(SegmentNo, Option<SegmentRow>)> {
        std::mem::take(&mut self.changed)
            .into_keys()
            .map(|segment| (segment, self.segments.get(&segment).copied()))
            .collect()
    }

    /// What is known of a segment.
    pub fn get(&self, segment: SegmentNo) -> Option<SegmentRow> {
        self.segments.get(&segment).copied()
    }

    /// All segments, ascending.
    pub fn iter(&self) -> impl Iterator<Item = (SegmentNo, SegmentRow)> {
        self.segments.iter().map(|(segment, row)| (*segment, *row))
    }

    /// Segments with these numbers, ascending.
    pub fn range(
        &self,
        numbers: Range<SegmentNo>,
    ) -> impl Iterator<Item = (SegmentNo, SegmentRow)> {
        let empty = numbers.start >= numbers.end;
        let numbers = if empty {
            numbers.start..numbers.start
        } else {
            numbers
        };
        self.segments
            .range(numbers)
            .map(|(segment, row)| (*segment, *row))
    }

    /// Live bytes in all.
    pub fn live(&self) -> u64 {
        self.segments.values().map(|row| row.live).sum()
    }
}
