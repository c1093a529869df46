//! The page-sum table: the checksums of the index pages, held by a parent that is not the page.
//!
//! The table is stored in blocks of 4 KiB, each with its own checksum. Every block has two slots in
//! `index.sums`, at block numbers 2n and 2n + 1, that checkpoints write in turn: a block torn by a
//! crash leaves its other slot, and the journal holds what changed since.

use super::BLOCK;
use super::checksum::Algorithm;
use super::codec::{Decoder, Encoder, FormatError};
use super::ids::PoolTag;

const MAGIC: u32 = u32::from_le_bytes(*b"MSUM");
const HEADER_LEN: usize = 32;
const ENTRY_LEN: usize = 16;
/// Entries in one block of the table.
pub const SUMS_PER_BLOCK: usize = (BLOCK - HEADER_LEN) / ENTRY_LEN;
const _: () = assert!(SUMS_PER_BLOCK == 254);

/// What the parent knows of one index page.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct SumEntry {
    /// Checksum of the page.
    pub sum: u64,
    /// Checkpoint that wrote it; 0 means that nothing is known of the page and nobody may read it.
    pub generation: u64,
}

impl SumEntry {
    /// The entry of a page that no finished checkpoint has written.
    pub const UNDEFINED: SumEntry = SumEntry {
        sum: 0,
        generation: 0,
    };

    pub(super) fn encode(self, out: &mut Encoder) {
        out.u64(self.sum).u64(self.generation);
    }

    pub(super) fn decode(from: &mut Decoder<'_>) -> Result<SumEntry, FormatError> {
        Ok(SumEntry {
            sum: from.u64()?,
            generation: from.u64()?,
        })
    }
}

/// One block of the table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SumsBlock {
    /// Number of the block: it holds the pages from `number * SUMS_PER_BLOCK` on.
    pub number: u32,
    /// Checkpoint that wrote this slot.
    pub generation: u64,
    /// The entries, [`SUMS_PER_BLOCK`] of them.
    pub entries: Vec<SumEntry>,
}

impl SumsBlock {
    /// Encodes the block into [`BLOCK`] bytes.
    pub fn encode(&self, algorithm: Algorithm, pool: PoolTag) -> Vec<u8> {
        let mut body = Encoder::with_capacity(BLOCK);
        body.u32(MAGIC)
            .u32(pool.0)
            .u32(self.number)
            .u32(algorithm.id().into());
        body.u64(self.generation);
        let head = body.finish();
        let mut body = Encoder::with_capacity(BLOCK - HEADER_LEN);
        self.entries
            .iter()
            .take(SUMS_PER_BLOCK)
            .for_each(|entry| entry.encode(&mut body));
        body.pad_to(BLOCK - HEADER_LEN);
        let body = body.finish();
        let sum = algorithm.sum64(&[&head, &body]);
        [head, sum.to_le_bytes().to_vec(), body].concat()
    }

    /// Decodes a slot of block `number`.
    ///
    /// # Errors
    /// [`FormatError`] for anything but an intact slot of that block in that pool.
    pub fn decode(
        bytes: &[u8],
        algorithm: Algorithm,
        pool: PoolTag,
        number: u32,
    ) -> Result<SumsBlock, FormatError> {
        const WHAT: &str = "page-sum block";
        let mut from = Decoder::new(bytes, WHAT);
        let head = from.bytes(HEADER_LEN - 8)?;
        let sum = from.u64()?;
        let body = from.bytes(BLOCK - HEADER_LEN)?;
        let mut from = Decoder::new(head, WHAT);
        if from.u32()? != MAGIC {
            return Err(FormatError::Magic { what: WHAT });
        }
        if algorithm.sum64(&[head, body]) != sum {
            return Err(FormatError::Checksum { what: WHAT });
        }
        let identity = |what, found: u32, expected: u32| match found == expected {
            true => Ok(()),
            false => Err(FormatError::Identity {
                what,
                found: found.into(),
                expected: expected.into(),
            }),
        };
        identity("pool", from.u32()?, pool.0)?;
        identity("page-sum block", from.u32()?, number)?;
        identity("checksum algorithm", from.u32()?, algorithm.id().into())?;
        let generation = from.u64()?;
        let mut entries = Vec::with_capacity(SUMS_PER_BLOCK);
        let mut from = Decoder::new(body, WHAT);
        for _ in 0..SUMS_PER_BLOCK {
            entries.push(SumEntry::decode(&mut from)?);
        }
        Ok(SumsBlock {
            number,
            generation,
            entries,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_block_comes_back_and_a_misplaced_one_is_refused() {
        let entry = |n: usize| SumEntry {
            sum: n as u64,
            generation: 3,
        };
        let block = SumsBlock {
            number: 2,
            generation: 9,
            entries: (0..SUMS_PER_BLOCK).map(entry).collect(),
        };
        for algorithm in Algorithm::ALL {
            let bytes = block.encode(algorithm, PoolTag(7));
            assert_eq!(bytes.len(), BLOCK);
            assert_eq!(
                SumsBlock::decode(&bytes, algorithm, PoolTag(7), 2),
                Ok(block.clone())
            );
            assert!(SumsBlock::decode(&bytes, algorithm, PoolTag(7), 3).is_err());
            assert!(SumsBlock::decode(&bytes, algorithm, PoolTag(8), 2).is_err());
            for at in [0, 5, 9, 13, 17, 25, 31, 32, 2000, 4063] {
                let mut bad = bytes.clone();
                bad[at] ^= 4;
                assert!(
                    SumsBlock::decode(&bad, algorithm, PoolTag(7), 2).is_err(),
                    "byte {at}"
                );
            }
        }
    }
}
