//! A set of page numbers kept as ranges: which pages of a file take space.
//!
//! Invariant: the ranges are not empty, do not overlap and do not touch, so that a file written
//! front to back is one range however long it is.

use std::collections::BTreeMap;
use std::ops::Range;

/// A set of numbers, few ranges long.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct RangeSet {
    /// Start to end, exclusive.
    ranges: BTreeMap<u64, u64>,
    count: u64,
}

impl RangeSet {
    /// How many numbers are in the set.
    pub(super) const fn count(&self) -> u64 {
        self.count
    }

    /// The parts of `range` that are in the set.
    fn overlaps(&self, range: &Range<u64>) -> Vec<Range<u64>> {
        let (from, to) = (range.start, range.end);
        let mut found = Vec::new();
        if range.is_empty() {
            return found;
        }
        for (start, end) in self.ranges.range(..to).rev() {
            if *end <= from {
                break;
            }
            found.push((*start).max(from)..(*end).min(to));
        }
        found
    }

    /// How many numbers of `range` are in the set.
    pub(super) fn covered(&self, range: &Range<u64>) -> u64 {
        self.overlaps(range)
            .iter()
            .map(|part| part.end - part.start)
            .sum()
    }

    pub(super) fn contains(&self, number: u64) -> bool {
        self.ranges
            .range(..=number)
            .next_back()
            .is_some_and(|(_, end)| *end > number)
    }

    pub(super) fn insert(&mut self, range: Range<u64>) {
        if range.is_empty() {
            return;
        }
        let (mut from, mut to) = (range.start, range.end);
        self.remove(range);
        if let Some((start, end)) = self.ranges.range(..from).next_back()
            && *end == from
        {
            from = *start;
        }
        if let Some(end) = self.ranges.remove(&to) {
            self.count -= end - to;
            to = end;
        }
        if let Some(end) = self.ranges.insert(from, to) {
            self.count -= end - from;
        }
        self.count += to - from;
    }

    pub(super) fn remove(&mut self, range: Range<u64>) {
        for part in self.overlaps(&range) {
            let Some((&start, &end)) = self.ranges.range(..=part.start).next_back() else {
                continue;
            };
            self.ranges.remove(&start);
            if start < part.start {
                self.ranges.insert(start, part.start);
            }
            if part.end < end {
                self.ranges.insert(part.end, end);
            }
            self.count -= part.end - part.start;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::rng::SimRng;
    use super::*;

    #[test]
    fn a_range_set_is_the_set_of_its_numbers() {
        let mut rng = SimRng::new(7);
        let (mut set, mut model) = (RangeSet::default(), [false; 64]);
        for _ in 0..5000 {
            let from = rng.index(64);
            let to = from + rng.index(65 - from);
            let value = rng.coin();
            model[from..to].fill(value);
            let range = from as u64..to as u64;
            if value {
                set.insert(range)
            } else {
                set.remove(range)
            }
            let count = model.iter().filter(|there| **there).count();
            assert_eq!(set.count(), count as u64);
            assert!((0..64).all(|number| set.contains(number) == model[number as usize]));
            assert_eq!(set.covered(&(0..64)), set.count());
            let ranges: Vec<_> = set.ranges.iter().map(|(start, end)| *start..*end).collect();
            assert!(ranges.windows(2).all(|pair| pair[0].end < pair[1].start));
            assert!(ranges.iter().all(|range| !range.is_empty()));
        }
    }
}
