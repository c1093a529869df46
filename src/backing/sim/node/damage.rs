//! Damage to the medium under a file, with the pristine bytes kept, and where there is any.

use std::ops::Range;
use std::sync::Arc;

use super::super::rng::SimRng;
use super::{Node, PAGE_U64, PER_PAGE, Pending, SECTOR, SECTOR_U64, Sector, ZEROS};

impl Node {
    /// What the medium holds in a sector.
    pub(super) fn medium_sector(&self, number: u64) -> Sector {
        let page = self.medium.get(&(number / PER_PAGE)).unwrap_or(&ZEROS);
        sector_of(&page[..], number)
    }

    /// What a page that is pending has in a sector of it.
    pub(super) fn cached_bytes(&self, pending: &Pending, sector: usize) -> Sector {
        sector_of(&pending.data[..], sector as u64)
    }

    /// Changes a sector of the medium to what it should not hold. False if there is no such sector.
    fn spoil(&mut self, number: u64, change: impl FnOnce(&mut [u8])) -> bool {
        let pristine = self.medium_sector(number);
        let Some(page) = self.medium.get_mut(&(number / PER_PAGE)) else {
            return false;
        };
        let start = (number % PER_PAGE) as usize * SECTOR;
        change(&mut Arc::make_mut(page)[start..][..SECTOR]);
        self.damage
            .entry(number)
            .or_insert_with(|| Box::new(pristine));
        true
    }

    /// Changes every durable byte of the range to another value. With `keep_cached` the page cache
    /// goes on having the right ones. Holes are not damaged.
    pub(crate) fn corrupt(&mut self, range: &Range<u64>, keep_cached: bool, rng: &mut SimRng) {
        let end = range.end.min(self.durable_len);
        if range.start >= end {
            return;
        }
        for number in range.start / SECTOR_U64..end.div_ceil(SECTOR_U64) {
            let base = number * SECTOR_U64;
            let from = range.start.saturating_sub(base) as usize;
            let to = (end - base).min(SECTOR_U64) as usize;
            let before = self.medium_sector(number);
            let spoiled = self.spoil(number, |bytes| {
                for byte in &mut bytes[from..to] {
                    *byte ^= 1 + rng.below(255) as u8;
                }
            });
            if spoiled && keep_cached {
                self.cached
                    .entry(number)
                    .or_insert_with(|| Box::new(before));
            }
        }
    }

    /// Flips one durable bit of the range. False if nothing there is durable.
    pub(crate) fn rot(&mut self, range: &Range<u64>, rng: &mut SimRng) -> bool {
        let end = range.end.min(self.durable_len);
        if range.start >= end {
            return false;
        }
        let at = range.start + rng.below(end - range.start);
        let bit = 1 << rng.below(8);
        self.spoil(at / SECTOR_U64, |bytes| {
            bytes[(at % SECTOR_U64) as usize] ^= bit
        })
    }

    /// Makes the sectors of the range unreadable until they are written.
    pub(crate) fn fail_sectors(&mut self, range: &Range<u64>) {
        let end = range.end.min(self.durable_len);
        if range.start < end {
            self.bad
                .extend(range.start / SECTOR_U64..end.div_ceil(SECTOR_U64));
        }
    }

    /// Cuts the medium under the file. What is unsynced becomes durable first.
    pub(crate) fn lose_tail(&mut self, len: u64) {
        self.sync();
        if len >= self.len {
            return;
        }
        self.pristine_len = self.pristine_len.max(self.len);
        let pages: Vec<u64> = self
            .medium
            .range(len / PAGE_U64..)
            .map(|it| *it.0)
            .collect();
        for number in pages
            .iter()
            .flat_map(|page| page * PER_PAGE..(page + 1) * PER_PAGE)
        {
            if (number + 1) * SECTOR_U64 > len {
                let pristine = self.medium_sector(number);
                self.damage
                    .entry(number)
                    .or_insert_with(|| Box::new(pristine));
            }
        }
        self.chop(len);
        self.alloc.remove(len.div_ceil(PAGE_U64)..u64::MAX);
        self.len = len;
        self.sync();
    }

    /// A write that went astray: its own sectors never get it, and others of the medium hold it.
    pub(crate) fn misdirect(&mut self, offset: u64, data: &[u8], rng: &mut SimRng) {
        self.write(offset, data, true);
        let first = offset / SECTOR_U64;
        let source = first..(offset + data.len() as u64).div_ceil(SECTOR_U64);
        let target = rng.below(self.durable_len / SECTOR_U64);
        for (number, target) in source.clone().zip(target..) {
            let content = self.cached_sector(number / PER_PAGE, (number % PER_PAGE) as usize);
            if !source.contains(&target) {
                self.spoil(target, |bytes| bytes.copy_from_slice(&content));
            }
        }
    }

    /// A new file in the place of one that was deleted by damage: all that it had is missing.
    pub(crate) fn in_place_of(mut deleted: Node) -> Node {
        deleted.lose_tail(0);
        Node {
            damage: deleted.damage,
            pristine_len: deleted.pristine_len,
            ..Node::default()
        }
    }

    /// The page cache forgets what it has no need to write.
    pub(crate) fn drop_caches(&mut self) {
        self.cached.clear();
    }

    /// Ranges of bytes that the medium, or a lost write, got wrong.
    pub(crate) fn damaged(&self) -> Vec<Range<u64>> {
        let mut found = Vec::new();
        for (number, pristine) in &self.damage {
            let holds = self.medium_sector(*number);
            for (at, (should, holds)) in (number * SECTOR_U64..).zip(pristine.iter().zip(holds)) {
                if at < self.durable_len && *should != holds
                    || at >= self.durable_len && at < self.pristine_len
                {
                    found.push(at..at + 1);
                }
            }
        }
        let len = self.durable_len;
        found.extend(
            self.bad
                .iter()
                .map(|it| it * SECTOR_U64..((it + 1) * SECTOR_U64).min(len)),
        );
        for (page, pending) in self.pending.iter().filter(|(_, pending)| pending.lost != 0) {
            for sector in (0..PER_PAGE as usize).filter(|bit| pending.lost & (1 << bit) != 0) {
                let number = page * PER_PAGE + sector as u64;
                let should = self.cached_bytes(pending, sector);
                let pairs = should.iter().zip(self.medium_sector(number));
                let wrong = (number * SECTOR_U64..)
                    .zip(pairs)
                    .filter(|(_, (a, b))| *a != b);
                found.extend(wrong.map(|(at, _)| at..at + 1));
            }
        }
        merge(found)
    }
}

fn sector_of(bytes: &[u8], number: u64) -> Sector {
    let mut sector = [0; SECTOR];
    sector.copy_from_slice(&bytes[(number % PER_PAGE) as usize * SECTOR..][..SECTOR]);
    sector
}

/// Sorts ranges and joins those that touch.
fn merge(mut ranges: Vec<Range<u64>>) -> Vec<Range<u64>> {
    ranges.sort_unstable_by_key(|range| range.start);
    let mut merged: Vec<Range<u64>> = Vec::new();
    for range in ranges.into_iter().filter(|range| !range.is_empty()) {
        match merged.last_mut() {
            Some(last) if range.start <= last.end => last.end = last.end.max(range.end),
            _ => merged.push(range),
        }
    }
    merged
}
