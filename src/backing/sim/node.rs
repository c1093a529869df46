//! The content of one simulated file: what the medium holds, and what is still on its way there.
//!
//! Everything is in 512-byte sectors, kept in 4 KiB pages. A page of `medium` is durable. A page of
//! `pending` lies over it and marks each sector as written (`dirty`) or emptied by a hole or a cut
//! (`zeroed`); [`Node::sync`] applies it, [`Node::crash`] applies it in part. Beside the medium are
//! only differences: `damage` has what a sector should hold where the medium holds something else.
//!
//! Invariants: a sector is applied whole or not at all; a file reads as zeros beyond every length
//! that it may still have; `held` covers the space of the file before and after what is pending;
//! a cut of the length takes effect with that length or a later one, never alone.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::sync::{Arc, LazyLock};

use super::ranges::RangeSet;

mod damage;
mod durability;

/// What a disk writes whole or not at all.
pub(super) const SECTOR: usize = 512;
pub(super) const SECTOR_U64: u64 = SECTOR as u64;
/// What space is given out in.
pub(super) const PAGE: usize = 4096;
pub(super) const PAGE_U64: u64 = PAGE as u64;
const PER_PAGE: u64 = PAGE_U64 / SECTOR_U64;
/// Lengths remembered between two syncs, any of which a crash may bring back.
const MAX_LENGTHS: usize = 8;

type Page = Arc<[u8; PAGE]>;
type Sector = [u8; SECTOR];

/// Shared by all pages of zeros, so that a zeroed journal takes no memory.
static ZEROS: LazyLock<Page> = LazyLock::new(|| Arc::new([0; PAGE]));

/// Changes to one page that are not durable. Bit n of a mask is sector n of the page.
#[derive(Debug, Clone)]
struct Pending {
    data: Page,
    /// Written: `data` has the new content.
    dirty: u8,
    /// Emptied, before it was written if it is dirty too. `data` has zeros then.
    zeroed: u8,
    /// Dirty, but the medium will never get it, and reads do not see it.
    lost: u8,
    /// Which change of the length emptied it; 0 if a hole did.
    cut: u64,
}

impl Default for Pending {
    fn default() -> Pending {
        Pending {
            data: Arc::clone(&ZEROS),
            dirty: 0,
            zeroed: 0,
            lost: 0,
            cut: 0,
        }
    }
}

impl Pending {
    /// Sectors whose content reads take from here.
    const fn seen(&self) -> u8 {
        (self.dirty | self.zeroed) & !self.lost
    }
}

/// One file's content.
#[derive(Debug, Clone, Default)]
pub(super) struct Node {
    len: u64,
    durable_len: u64,
    /// Lengths since the last sync, each with its number, the newest last.
    lengths: Vec<(u64, u64)>,
    length_no: u64,
    medium: BTreeMap<u64, Page>,
    pending: BTreeMap<u64, Pending>,
    /// What the page cache has of sectors whose medium changed under it.
    cached: BTreeMap<u64, Box<Sector>>,
    /// What sectors of the medium should hold, where they may not.
    damage: BTreeMap<u64, Box<Sector>>,
    /// What dirty sectors should hold, where their content was merged with damaged bytes.
    intent: BTreeMap<u64, Box<Sector>>,
    /// Sectors that cannot be read until they are written.
    bad: BTreeSet<u64>,
    /// Length that the file should at least have, if it was cut by damage.
    pristine_len: u64,
    alloc: RangeSet,
    durable_alloc: RangeSet,
    held: RangeSet,
}

impl Node {
    pub(super) const fn len(&self) -> u64 {
        self.len
    }

    /// Pages that the file takes as the application sees it.
    pub(super) const fn pages(&self) -> u64 {
        self.alloc.count()
    }

    /// Pages that nobody else can have yet.
    pub(super) const fn held_pages(&self) -> u64 {
        self.held.count()
    }

    /// Pages of the range that would have to be found.
    pub(super) fn missing(&self, pages: &Range<u64>) -> u64 {
        pages.end - pages.start - self.held.covered(pages)
    }

    /// Takes space for pages, whatever they hold.
    pub(super) fn allocate(&mut self, pages: Range<u64>) {
        self.alloc.insert(pages.clone());
        self.held.insert(pages);
    }

    /// Reads what there is from `offset`; none if a sector cannot be read.
    pub(super) fn read(&self, offset: u64, buf: &mut [u8]) -> Option<usize> {
        let len = usize::try_from(self.len.saturating_sub(offset)).unwrap_or(usize::MAX);
        let len = len.min(buf.len());
        let buf = &mut buf[..len];
        for (page, inner, part) in page_parts(offset, len) {
            let out = &mut buf[part];
            let medium = self.medium.get(&page).unwrap_or(&ZEROS);
            out.copy_from_slice(&medium[inner.clone()]);
            let pending = self.pending.get(&page);
            if pending.is_none() && self.cached.is_empty() && self.bad.is_empty() {
                continue;
            }
            for (sector, within, part) in sector_parts(&inner) {
                let number = page * PER_PAGE + sector as u64;
                if let Some(pending) = pending.filter(|it| it.seen() & (1 << sector) != 0) {
                    out[part].copy_from_slice(&pending.data[sector * SECTOR..][within]);
                } else if let Some(cached) = self.cached.get(&number) {
                    out[part].copy_from_slice(&cached[within]);
                } else if self.bad.contains(&number) {
                    return None;
                }
            }
        }
        Some(len)
    }

    /// Writes; the space is there already. A lost write changes lengths, but no byte.
    pub(super) fn write(&mut self, offset: u64, data: &[u8], lost: bool) {
        for (page, inner, part) in page_parts(offset, data.len()) {
            self.write_page(page, inner, &data[part], lost);
        }
        let end = offset + data.len() as u64;
        if end > self.len {
            self.push_len(end);
        }
    }

    fn write_page(&mut self, page: u64, inner: Range<usize>, data: &[u8], lost: bool) {
        let parts = sector_parts(&inner);
        // What partly overwritten sectors had has to be known before they are.
        let merged: Vec<_> = parts
            .iter()
            .filter(|(_, within, _)| within.len() < SECTOR)
            .map(|(sector, within, part)| (*sector, within.clone(), part.clone()))
            .map(|(sector, within, part)| {
                (
                    sector,
                    self.cached_sector(page, sector),
                    within,
                    &data[part],
                )
            })
            .collect();
        let pending = self.pending.entry(page).or_default();
        if inner.len() == PAGE {
            pending.data = page_of(data);
        } else {
            let bytes = Arc::make_mut(&mut pending.data);
            for (sector, old, ..) in &merged {
                bytes[sector * SECTOR..][..SECTOR].copy_from_slice(old);
            }
            bytes[inner].copy_from_slice(data);
        }
        let mask = parts
            .iter()
            .fold(0, |mask, (sector, ..)| mask | (1 << sector));
        let was_pending = pending.dirty | pending.zeroed;
        pending.dirty |= mask;
        pending.lost = if lost {
            pending.lost | mask
        } else {
            pending.lost & !mask
        };
        if self.damage.is_empty() && self.intent.is_empty() {
            return;
        }
        for (sector, within, _) in &parts {
            if within.len() == SECTOR {
                self.intent.remove(&(page * PER_PAGE + *sector as u64));
            }
        }
        for (sector, _, within, new) in merged {
            let number = page * PER_PAGE + sector as u64;
            if was_pending & (1 << sector) == 0
                && let Some(pristine) = self.damage.get(&number)
            {
                self.intent.insert(number, pristine.clone());
            }
            if let Some(intent) = self.intent.get_mut(&number) {
                intent[within].copy_from_slice(new);
            }
        }
    }

    /// The sector as the page cache has it: a lost write's content counts.
    fn cached_sector(&self, page: u64, sector: usize) -> Sector {
        let mut bytes = [0; SECTOR];
        let pending = self.pending.get(&page);
        let number = page * PER_PAGE + sector as u64;
        if let Some(pending) = pending.filter(|it| (it.dirty | it.zeroed) & (1 << sector) != 0) {
            bytes.copy_from_slice(&pending.data[sector * SECTOR..][..SECTOR]);
        } else if let Some(cached) = self.cached.get(&number) {
            bytes.copy_from_slice(&cached[..]);
        } else if let Some(medium) = self.medium.get(&page) {
            bytes.copy_from_slice(&medium[sector * SECTOR..][..SECTOR]);
        }
        bytes
    }

    fn push_len(&mut self, len: u64) {
        self.len = len;
        self.length_no += 1;
        if self.lengths.len() == MAX_LENGTHS {
            self.lengths.remove(MAX_LENGTHS / 2);
        }
        self.lengths.push((self.length_no, len));
    }

    /// Cuts the file or extends it by a hole.
    pub(super) fn set_len(&mut self, len: u64) {
        let old = self.len;
        if len == old {
            return;
        }
        if len < old {
            // The rest of the last sector: written with zeros, the sectors after it are emptied.
            let tail = len..len.next_multiple_of(SECTOR_U64).min(old);
            if self.alloc.contains(len / PAGE_U64) {
                self.write(
                    tail.start,
                    &[0; SECTOR][..(tail.end - tail.start) as usize],
                    false,
                );
            }
            self.damage.split_off(&len.div_ceil(SECTOR_U64));
            self.bad.split_off(&len.div_ceil(SECTOR_U64));
            self.pristine_len = self.pristine_len.min(len);
        }
        self.push_len(len);
        if len < old {
            self.empty_sectors(len.div_ceil(SECTOR_U64)..u64::MAX, self.length_no);
            self.alloc.remove(len.div_ceil(PAGE_U64)..u64::MAX);
        }
    }

    /// Gives back the whole pages of the range and writes zeros to its ends.
    pub(super) fn punch(&mut self, range: &Range<u64>) {
        let sectors = range.start.div_ceil(SECTOR_U64)..range.end / SECTOR_U64;
        let pages = range.start.div_ceil(PAGE_U64)..range.end / PAGE_U64;
        let live_end = range.end.min(self.len);
        let head = range.start..range.start.next_multiple_of(SECTOR_U64).min(live_end);
        let tail = (live_end - live_end % SECTOR_U64).max(head.end)..live_end;
        for edge in [head, tail] {
            if edge.start < edge.end && self.alloc.contains(edge.start / PAGE_U64) {
                self.write(
                    edge.start,
                    &[0; SECTOR][..(edge.end - edge.start) as usize],
                    false,
                );
            }
        }
        if sectors.start < sectors.end {
            self.empty_sectors(sectors, 0);
        }
        if pages.start < pages.end {
            self.alloc.remove(pages);
        }
    }

    /// Makes sectors read as zeros, where they may hold something else.
    fn empty_sectors(&mut self, sectors: Range<u64>, cut: u64) {
        let pages = sectors.start / PER_PAGE..sectors.end.div_ceil(PER_PAGE);
        let mut touched: BTreeSet<u64> = self.medium.range(pages.clone()).map(|it| *it.0).collect();
        touched.extend(self.pending.range(pages).map(|it| *it.0));
        for page in touched {
            let pending = self.pending.entry(page).or_default();
            for sector in 0..PER_PAGE {
                let number = page * PER_PAGE + sector;
                if !sectors.contains(&number) {
                    continue;
                }
                let start = sector as usize * SECTOR;
                if pending.data[start..][..SECTOR] != ZEROS[..SECTOR] {
                    Arc::make_mut(&mut pending.data)[start..][..SECTOR].fill(0);
                }
                pending.dirty &= !(1 << sector);
                pending.lost &= !(1 << sector);
                pending.zeroed |= 1 << sector;
                self.intent.remove(&number);
            }
            pending.cut = pending.cut.max(cut);
            if pending.zeroed == 0xff && pending.dirty == 0 {
                pending.data = Arc::clone(&ZEROS);
            }
        }
        // Holes of the medium have nothing pending: damage noted there is settled at once.
        let noted: Vec<u64> = self.damage.range(sectors.clone()).map(|it| *it.0).collect();
        for number in noted {
            if !self.pending.contains_key(&(number / PER_PAGE)) {
                self.damage.remove(&number);
            }
        }
    }
}

/// A page with that content.
fn page_of(data: &[u8]) -> Page {
    if data == &ZEROS[..] {
        return Arc::clone(&ZEROS);
    }
    let mut page = [0; PAGE];
    page.copy_from_slice(data);
    Arc::new(page)
}

/// Cuts bytes of a file into (page, bytes of the page, bytes of the buffer).
fn page_parts(offset: u64, len: usize) -> impl Iterator<Item = (u64, Range<usize>, Range<usize>)> {
    let mut done = 0;
    std::iter::from_fn(move || {
        let at = offset + done as u64;
        let start = (at % PAGE_U64) as usize;
        let count = (PAGE - start).min(len - done);
        let part = (at / PAGE_U64, start..start + count, done..done + count);
        done += count;
        (count > 0).then_some(part)
    })
}

/// Cuts bytes of a page into (sector of the page, bytes of the sector, bytes counted from the
/// first).
fn sector_parts(inner: &Range<usize>) -> Vec<(usize, Range<usize>, Range<usize>)> {
    let mut parts = Vec::with_capacity(PER_PAGE as usize);
    let mut at = inner.start;
    while at < inner.end {
        let (sector, start) = (at / SECTOR, at % SECTOR);
        let count = (SECTOR - start).min(inner.end - at);
        let done = at - inner.start;
        parts.push((sector, start..start + count, done..done + count));
        at += count;
    }
    parts
}
