//! Checking what is stored, on every mirror: what scrubbing and `mendfs check` are made of.

use super::commit::Pool;
use super::error::Result;
use crate::backing::FileName;
use crate::format::{BLOCK, BLOCK_U64, Ino, Key, SegmentNo};

/// What became of an owner row of a segment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Owned {
    /// Its bytes were checked.
    Checked {
        /// The file.
        ino: Ino,
        /// Bytes on each mirror.
        bytes: u64,
        /// Copies that were bad; another mirror had a good one, and they were rewritten.
        bad: usize,
        /// Offsets in the file of blocks that no mirror has.
        lost: Vec<u64>,
    },
    /// The file no longer has these bytes, and the owner row is gone too: freed meanwhile.
    Freed,
    /// The file does not have the bytes that the owner row says it has.
    Mismatch {
        /// The file.
        ino: Ino,
        /// Offset in it.
        offset: u64,
    },
}

impl Pool {
    /// Has the mirrors read the segment from their media next.
    pub fn forget_cached(&self, segment: SegmentNo) {
        self.segments.forget_cached(segment);
    }

    /// Checks the bytes that an owner row of a segment stands for on every mirror, and repairs bad
    /// copies. Takes the inode's lock.
    ///
    /// # Errors
    /// As [`Pool::get`].
    pub fn verify_owner(&self, key: &Key, value: &[u8]) -> Result<Owned> {
        let (segment, at, ino, offset) = key.reverse_parts()?;
        let _inode = self.lock_shared(ino);
        let Some(row) = self.owned_row(key, value)? else {
            let gone = self.get(key)?.is_none_or(|now| now != value);
            return Ok(if gone {
                Owned::Freed
            } else {
                Owned::Mismatch { ino, offset }
            });
        };
        let (bad, lost) = self.segments.verify(&row);
        if lost.is_empty() {
            self.readable(ino, offset, u64::from(row.stored));
        }
        if lost.is_empty() && bad == 0 {
            self.segment_is_good(segment, at..at.saturating_add(row.stored));
        }
        let lost = lost
            .into_iter()
            .map(|lost| offset + (lost.block * BLOCK) as u64)
            .collect();
        Ok(Owned::Checked {
            ino,
            bytes: u64::from(row.stored),
            bad,
            lost,
        })
    }

    /// Pages of the index on disk.
    pub fn index_pages(&self) -> u32 {
        self.index.pages()
    }

    /// Checks index pages `from..to` on every mirror and repairs bad copies: the number of bad
    /// copies, and the pages that no mirror has.
    pub fn verify_index(&self, from: u32, to: u32) -> (usize, Vec<u32>) {
        let (bad, lost) = self.index.verify_pages(from, to);
        if bad == 0 && lost.is_empty() {
            let len = u64::from(to.saturating_sub(from)) * BLOCK_U64;
            self.all_good(FileName::Index, u64::from(from) * BLOCK_U64, len);
        }
        (bad, lost)
    }

    /// Checks the page-sum table on every mirror and repairs it; returns the number of bad copies.
    pub fn verify_sums(&self) -> usize {
        let bad = self.index.verify_sums();
        if bad == 0 {
            self.all_good(FileName::Sums, 0, u64::MAX);
        }
        bad
    }
}
