//! How pending changes of a file reach the medium: by a sync, by early write-back, or by what a
//! crash leaves of them.

use std::sync::Arc;

use super::super::PowerLoss;
use super::super::rng::SimRng;
use super::{Node, PAGE, PAGE_U64, PER_PAGE, Pending, SECTOR, ZEROS};

/// How much of what is unsynced a crash lets through in one file.
#[derive(Debug, Clone, Copy)]
enum Regime {
    All,
    Nothing,
    Sectors,
    Pages,
}

impl Node {
    /// Makes everything durable.
    pub(crate) fn sync(&mut self) {
        for (page, pending) in std::mem::take(&mut self.pending) {
            self.apply(page, &pending, true, 0xff);
        }
        self.intent.clear();
        self.durable_len = self.len;
        self.lengths.clear();
        self.durable_alloc.clone_from(&self.alloc);
        self.held.clone_from(&self.alloc);
    }

    /// A sync that failed: the page cache takes every sector for written, whether it was or not.
    pub(crate) fn fail_sync(&mut self, rng: &mut SimRng) {
        for pending in self.pending.values_mut() {
            pending.lost |= pending.dirty & rng.next_u64() as u8;
        }
        self.sync();
    }

    /// Gives space back that only waits for a sync, as filesystems do when they run out of it.
    pub(crate) fn commit_frees(&mut self) {
        if self.held != self.alloc {
            self.sync();
        }
    }

    /// Some unsynced sectors reach the medium on their own. Holes and cuts wait for the sync.
    pub(crate) fn write_back(&mut self, rng: &mut SimRng) {
        let written = self
            .pending
            .iter()
            .filter(|(_, pending)| pending.zeroed == 0);
        let pages: Vec<u64> = written.map(|(page, _)| *page).collect();
        for page in pages {
            let keep = rng.next_u64() as u8;
            let Some(mut pending) = self.pending.remove(&page) else {
                continue;
            };
            self.apply(page, &pending, false, keep);
            if self.medium.contains_key(&page) {
                self.durable_alloc.insert(page..page + 1);
            }
            pending.dirty &= !keep;
            pending.lost &= !keep;
            if pending.dirty != 0 {
                self.pending.insert(page, pending);
            }
        }
    }

    /// Power is lost: pending changes are kept, dropped, or taken by the sector, and lengths are
    /// one of those that the file had since its last sync.
    pub(crate) fn crash(&mut self, loss: PowerLoss, rng: &mut SimRng) {
        self.cached.clear();
        if self.pending.is_empty() && self.lengths.is_empty() && self.alloc == self.durable_alloc {
            return;
        }
        let regime = match loss {
            PowerLoss::KeepAll => Regime::All,
            PowerLoss::LoseAll => Regime::Nothing,
            PowerLoss::Random => {
                [Regime::All, Regime::Nothing, Regime::Sectors, Regime::Pages][rng.index(4)]
            }
        };
        let (length_no, len) = self.surviving_length(regime, rng);
        let mut alloc = match regime {
            Regime::All => self.alloc.clone(),
            Regime::Nothing => self.durable_alloc.clone(),
            _ if rng.coin() => self.alloc.clone(),
            _ => self.durable_alloc.clone(),
        };
        for (page, pending) in std::mem::take(&mut self.pending) {
            let (zeroes, keep) = match regime {
                Regime::All => (true, 0xff),
                Regime::Nothing => (false, 0),
                Regime::Sectors => (rng.coin(), rng.next_u64() as u8),
                Regime::Pages => (rng.coin(), if rng.coin() { 0xff } else { 0 }),
            };
            let zeroes = if pending.cut > 0 {
                length_no >= pending.cut
            } else {
                zeroes
            };
            self.apply(page, &pending, zeroes, keep);
            if self.medium.contains_key(&page) {
                alloc.insert(page..page + 1);
            } else {
                alloc.remove(page..page + 1);
            }
        }
        self.intent.clear();
        self.lengths.clear();
        self.len = len;
        self.durable_len = len;
        for page in self.chop(len) {
            alloc.remove(page..page + 1);
        }
        self.alloc.clone_from(&alloc);
        self.held.clone_from(&alloc);
        self.durable_alloc = alloc;
    }

    /// The length after a crash, with its number.
    fn surviving_length(&self, regime: Regime, rng: &mut SimRng) -> (u64, u64) {
        let durable = (0, self.durable_len);
        match regime {
            Regime::All => self.lengths.last().copied().unwrap_or(durable),
            Regime::Nothing => durable,
            Regime::Sectors | Regime::Pages => {
                let chosen = rng.index(self.lengths.len() + 1);
                self.lengths.get(chosen).copied().unwrap_or(durable)
            }
        }
    }

    /// Takes everything beyond `len` off the medium, and names the pages that went.
    pub(super) fn chop(&mut self, len: u64) -> Vec<u64> {
        let gone = self.medium.split_off(&len.div_ceil(PAGE_U64));
        let rest = (len % PAGE_U64) as usize;
        if rest != 0
            && let Some(page) = self.medium.get_mut(&(len / PAGE_U64))
            && page[rest..] != ZEROS[rest..]
        {
            Arc::make_mut(page)[rest..].fill(0);
        }
        gone.into_keys().collect()
    }

    /// Writes to the medium: the emptied sectors if `zeroes`, and those written sectors that are
    /// in the mask `keep`.
    fn apply(&mut self, page: u64, pending: &Pending, zeroes: bool, keep: u8) {
        let keep = keep & pending.dirty;
        let zero = if zeroes { pending.zeroed } else { 0 };
        if keep == 0xff && pending.lost == 0 {
            self.medium.insert(page, Arc::clone(&pending.data));
        } else if zero == 0xff && keep == 0 {
            self.medium.remove(&page);
        } else if zero | keep != 0 {
            let medium = self
                .medium
                .entry(page)
                .or_insert_with(|| Arc::clone(&ZEROS));
            let bytes: &mut [u8; PAGE] = Arc::make_mut(medium);
            for sector in 0..PER_PAGE as usize {
                let at = sector * SECTOR..(sector + 1) * SECTOR;
                if zero & (1 << sector) != 0 {
                    bytes[at.clone()].fill(0);
                }
                if keep & !pending.lost & (1 << sector) != 0 {
                    bytes[at.clone()].copy_from_slice(&pending.data[at]);
                }
            }
        }
        if zero | keep != 0 {
            self.settle(page, pending, zero, keep);
        }
    }

    /// Notes for sectors just applied whether the medium holds what it should.
    fn settle(&mut self, page: u64, pending: &Pending, zero: u8, keep: u8) {
        let clean = self.damage.is_empty() && self.intent.is_empty() && pending.lost == 0;
        if clean && self.bad.is_empty() && self.cached.is_empty() {
            return;
        }
        for sector in 0..PER_PAGE as usize {
            let bit = 1 << sector;
            if (zero | keep) & bit == 0 {
                continue;
            }
            let number = page * PER_PAGE + sector as u64;
            self.cached.remove(&number);
            let lost = keep & pending.lost & bit != 0;
            let mut should = self.intent.remove(&number);
            if lost && should.is_none() {
                should = Some(Box::new(self.cached_bytes(pending, sector)));
            }
            if !lost || zero & bit != 0 {
                self.bad.remove(&number);
            }
            match should.filter(|should| should[..] != self.medium_sector(number)[..]) {
                Some(should) => self.damage.insert(number, should),
                None => self.damage.remove(&number),
            };
        }
    }
}
