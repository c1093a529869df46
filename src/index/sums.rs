//! The page-sum table in memory and on the mirrors.
//!
//! One entry of 16 bytes for each index page (4 MiB for 1 GiB of index) is kept in memory, so that
//! verifying a page costs no read. On disk each block of the table has two slots written in turn;
//! see `format::sums`. `root` ties the whole table to the checkpoint that wrote it.

use crate::backing::FileName;
use crate::format::{Algorithm, BLOCK, BLOCK_U64, PoolTag, SUMS_PER_BLOCK, SumEntry, SumsBlock};
use crate::mirrors::{Copied, Damage, Mend, MirrorError, MirrorId, MirrorSet, Place, Target};

#[derive(Debug, Clone)]
struct Block {
    /// Checksum over the entries.
    digest: u64,
    /// Slot that holds what is on disk: 0 or 1.
    slot: u64,
    dirty: bool,
}

#[derive(Debug)]
pub(super) struct SumsTable {
    algorithm: Algorithm,
    pool: PoolTag,
    entries: Vec<SumEntry>,
    blocks: Vec<Block>,
}

/// Which block of the table no mirror could supply.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct LostSums {
    pub(super) block: u32,
}

/// Blocks of the table on the way to their other slots: number, offset on disk, bytes.
#[derive(Debug)]
pub(super) struct ChangedSums(Vec<(usize, u64, Vec<u8>)>);

impl ChangedSums {
    /// Writes them on all mirrors, durably.
    pub(super) fn store(&self, mirrors: &MirrorSet) -> Result<(), MirrorError> {
        for (_, offset, bytes) in &self.0 {
            mirrors.write(FileName::Sums, *offset, &[bytes])?;
        }
        mirrors.sync(&[FileName::Sums], &[])
    }
}

impl SumsTable {
    pub(super) const fn new(algorithm: Algorithm, pool: PoolTag) -> SumsTable {
        SumsTable {
            algorithm,
            pool,
            entries: Vec::new(),
            blocks: Vec::new(),
        }
    }

    pub(super) fn get(&self, page: u32) -> SumEntry {
        self.entries
            .get(page as usize)
            .copied()
            .unwrap_or(SumEntry::UNDEFINED)
    }

    pub(super) fn set(&mut self, page: u32, entry: SumEntry) {
        self.grow(page as usize + 1);
        self.entries[page as usize] = entry;
        self.blocks[page as usize / SUMS_PER_BLOCK].dirty = true;
    }

    /// Bytes that the table of an index of `index_len` bytes takes on disk.
    pub(super) const fn disk_len(index_len: u64) -> u64 {
        index_len
            .div_ceil(BLOCK_U64)
            .div_ceil(SUMS_PER_BLOCK as u64)
            * 2
            * BLOCK_U64
    }

    /// Pages with an entry of their own.
    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }

    fn grow(&mut self, pages: usize) {
        let blocks = pages.div_ceil(SUMS_PER_BLOCK);
        if blocks > self.blocks.len() {
            // The first write of a new block goes to slot 0.
            self.blocks.resize(
                blocks,
                Block {
                    digest: 0,
                    slot: 1,
                    dirty: true,
                },
            );
            self.entries
                .resize(blocks * SUMS_PER_BLOCK, SumEntry::UNDEFINED);
        }
    }

    /// Makes the table as long as an index of so many pages needs it, which is what the root covers
    /// and what is read back: entries of pages behind the end are forgotten, and pages that the
    /// index has but never wrote get blocks of their own, since on disk there may be an old one
    /// from a time when the index was longer.
    pub(super) fn resize(&mut self, pages: usize) {
        self.grow(pages);
        let blocks = pages.div_ceil(SUMS_PER_BLOCK);
        self.blocks.truncate(blocks);
        self.entries.truncate(blocks * SUMS_PER_BLOCK);
        for page in pages..self.entries.len() {
            if self.entries[page] != SumEntry::UNDEFINED {
                self.set(page as u32, SumEntry::UNDEFINED);
            }
        }
    }

    fn entries_of(&self, block: usize) -> &[SumEntry] {
        &self.entries[block * SUMS_PER_BLOCK..(block + 1) * SUMS_PER_BLOCK]
    }

    fn digest(&self, block: usize) -> u64 {
        let mut bytes = Vec::with_capacity(SUMS_PER_BLOCK * 16);
        for entry in self.entries_of(block) {
            bytes.extend_from_slice(&entry.sum.to_le_bytes());
            bytes.extend_from_slice(&entry.generation.to_le_bytes());
        }
        self.algorithm.sum64(&[&bytes])
    }

    /// Checksum over the table, with the changes that are not yet on disk.
    pub(super) fn root(&mut self) -> u64 {
        for block in 0..self.blocks.len() {
            if self.blocks[block].dirty {
                self.blocks[block].digest = self.digest(block);
            }
        }
        let digests: Vec<u8> = self
            .blocks
            .iter()
            .flat_map(|block| block.digest.to_le_bytes())
            .collect();
        self.algorithm.sum64(&[&digests])
    }

    /// The changed blocks as they are to be stored.
    pub(super) fn changed(&self, generation: u64) -> ChangedSums {
        let dirty = (0..self.blocks.len()).filter(|block| self.blocks[*block].dirty);
        let encoded = |block: usize| {
            let bytes = SumsBlock {
                number: block as u32,
                generation,
                entries: self.entries_of(block).to_vec(),
            }
            .encode(self.algorithm, self.pool);
            let slot = 1 - self.blocks[block].slot;
            (block, slot_offset(block, slot), bytes)
        };
        ChangedSums(dirty.map(encoded).collect())
    }

    /// These blocks are stored, and have not changed since they were asked for.
    pub(super) fn stored(&mut self, changed: &ChangedSums) {
        for (block, ..) in &changed.0 {
            let block = *block;
            self.blocks[block].digest = self.digest(block);
            self.blocks[block].slot = 1 - self.blocks[block].slot;
            self.blocks[block].dirty = false;
        }
    }

    /// Writes the changed blocks to their other slots on all mirrors, durably.
    pub(super) fn store(
        &mut self,
        mirrors: &MirrorSet,
        generation: u64,
    ) -> Result<(), MirrorError> {
        let changed = self.changed(generation);
        changed.store(mirrors)?;
        self.stored(&changed);
        Ok(())
    }

    /// Reads the table as checkpoint `generation` left it, for an index of `pages` pages, and
    /// repairs the slots that a mirror has lost.
    pub(super) fn load(
        mirrors: &MirrorSet,
        algorithm: Algorithm,
        pool: PoolTag,
        generation: u64,
        blocks: usize,
    ) -> Result<SumsTable, LostSums> {
        let mut table = SumsTable::new(algorithm, pool);
        table.grow(blocks * SUMS_PER_BLOCK);
        for block in 0..blocks {
            let (slot, found) = table.load_block(mirrors, generation, block)?;
            let at = block * SUMS_PER_BLOCK;
            table.entries[at..at + SUMS_PER_BLOCK].copy_from_slice(&found.entries);
            let digest = table.digest(block);
            table.blocks[block] = Block {
                digest,
                slot,
                dirty: false,
            };
        }
        Ok(table)
    }

    fn load_block(
        &self,
        mirrors: &MirrorSet,
        generation: u64,
        block: usize,
    ) -> Result<(u64, SumsBlock), LostSums> {
        let number = block as u32;
        let mut copies: Vec<(MirrorId, u64, Result<SumsBlock, Damage>)> = Vec::new();
        for mirror in mirrors.current() {
            for slot in 0..2 {
                let (mut bytes, offset) = (vec![0; BLOCK], slot_offset(block, slot));
                let copy = match mirror.backing().read_at(FileName::Sums, offset, &mut bytes) {
                    Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                        Err(Damage::Missing)
                    }
                    Err(_) => Err(Damage::Unreadable),
                    Ok(got) if got < BLOCK => Err(Damage::Short),
                    Ok(_) => SumsBlock::decode(&bytes, self.algorithm, self.pool, number)
                        .map_err(|_| Damage::Checksum),
                };
                copies.push((mirror.id, slot, copy));
            }
        }
        let best = copies
            .iter()
            .filter_map(|(_, slot, copy)| copy.as_ref().ok().map(|copy| (*slot, copy)))
            .filter(|(_, copy)| copy.generation <= generation)
            .max_by_key(|(_, copy)| copy.generation)
            .map(|(slot, copy)| (slot, copy.clone()))
            .ok_or(LostSums { block: number })?;
        let data = best.1.encode(self.algorithm, self.pool);
        for (mirror, slot, copy) in copies {
            let damage = match copy {
                Ok(ref copy) if *copy == best.1 => continue,
                Ok(_) => Damage::Checksum,
                Err(damage) => damage,
            };
            if slot == best.0 {
                let place = Place {
                    file: FileName::Sums,
                    offset: slot_offset(block, slot),
                };
                mirrors.heal(mirror, place, damage, data.clone());
            }
        }
        Ok(best)
    }

    /// Makes both slots of every block on the target those of the others.
    pub(super) fn copy(&self, mirrors: &MirrorSet, target: &Target) -> Result<Copied, MirrorError> {
        let mut total = Copied::default();
        for (block, state) in self.blocks.iter().enumerate() {
            for slot in 0..2 {
                let place = Place {
                    file: FileName::Sums,
                    offset: slot_offset(block, slot),
                };
                let mut bytes = vec![0; BLOCK];
                let ours = |bytes: &[u8]| {
                    SumsBlock::decode(bytes, self.algorithm, self.pool, block as u32)
                        .is_ok_and(|found| found.entries == self.entries_of(block))
                };
                // A block that changed since it was stored differs from both; the next checkpoint
                // writes it.
                let in_use = slot == state.slot && !state.dirty;
                let read = |bytes: &mut [u8]| {
                    mirrors.read(place, bytes, &|_, bytes| ours(bytes), Mend::Now)
                };
                let copied = if in_use && read(&mut bytes).is_ok() {
                    target.match_bytes(FileName::Sums, place.offset, &bytes)
                } else {
                    mirrors.match_gap(target, FileName::Sums, place.offset, BLOCK_U64)
                };
                total.add(mirrors.target_result(target, copied)?);
            }
        }
        Ok(total)
    }

    /// Checks the slots in use on every mirror and repairs bad ones; returns how many were bad.
    pub(super) fn verify(&self, mirrors: &MirrorSet) -> usize {
        let mut bad = 0;
        for (block, state) in self
            .blocks
            .iter()
            .enumerate()
            .filter(|(_, state)| !state.dirty)
        {
            let place = Place {
                file: FileName::Sums,
                offset: slot_offset(block, state.slot),
            };
            let matches = |bytes: &[u8]| {
                SumsBlock::decode(bytes, self.algorithm, self.pool, block as u32)
                    .is_ok_and(|found| found.entries == self.entries_of(block))
            };
            let mut out = vec![0; BLOCK];
            bad += match mirrors.verify_all(place, &mut out, &|_, bytes| matches(bytes), Mend::Now)
            {
                Ok(repaired) => repaired,
                Err(lost) => lost.len(),
            };
            // The other slot may still be needed, until the superblock knows the newer one.
            let place = Place {
                offset: slot_offset(block, 1 - state.slot),
                ..place
            };
            let intact = |bytes: &[u8]| {
                SumsBlock::decode(bytes, self.algorithm, self.pool, block as u32).ok()?;
                Some(bytes.to_vec())
            };
            bad += mirrors
                .verify_structure(place, BLOCK, &intact, Mend::Now)
                .unwrap_or(0);
        }
        bad
    }
}

const fn slot_offset(block: usize, slot: u64) -> u64 {
    (block as u64 * 2 + slot) * BLOCK_U64
}
