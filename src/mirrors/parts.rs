//! What a mirror has of a run of blocks when it cannot read the run as a whole.
//!
//! A disk fails a whole request for one bad sector in it. What lies around that sector is as good
//! as ever, and may be the only good copy: so the request is cut in halves until the bad blocks
//! stand alone.

use std::io;
use std::ops::Range;

use super::decide::{Damage, Outcome};
use super::read::Place;
use super::set::{Attached, MirrorSet};
use crate::backing::{Backing, FileName};
use crate::format::BLOCK;

/// Requests that may fail before the rest is not cut any further: a disk that has lost much takes
/// long over each. Eight find one bad block in the longest run.
const FAILURES: usize = 64;

/// What a mirror supplied of a run.
#[derive(Debug)]
pub(super) enum Supplied {
    /// So many bytes from the beginning on, or nothing, for that reason.
    Whole(Result<usize, Outcome>),
    /// Of each block so many bytes, or that it cannot be read.
    Parts(Vec<Result<usize, Damage>>),
}

impl Supplied {
    /// What there is of a block: bytes from its beginning on.
    pub(super) fn of(&self, block: usize) -> Result<usize, Outcome> {
        match self {
            Supplied::Whole(got) => got.map(|got| got.saturating_sub(block * BLOCK)),
            Supplied::Parts(parts) => match parts.get(block) {
                Some(part) => part.map_err(Outcome::Damaged),
                None => Ok(0),
            },
        }
    }
}

/// What there is of a range of a file that nobody has checked yet: how many bytes from its
/// beginning on, and whether some of them could not be read, which are zeros then.
///
/// # Errors
/// As pread(2), if nothing of it can be read.
pub fn read_around(
    backing: &dyn Backing,
    file: FileName,
    offset: u64,
    buf: &mut [u8],
) -> io::Result<(usize, bool)> {
    let error = match backing.read_at(file, offset, buf) {
        Ok(got) => return Ok((got, false)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(error),
        Err(error) => error,
    };
    let parts = halved(buf.len(), |bytes| {
        let at = offset + bytes.start as u64;
        backing.read_at(file, at, &mut buf[bytes]).ok()
    });
    let mut end = None;
    for (block, bytes) in buf.chunks_mut(BLOCK).enumerate() {
        let got = parts[block].unwrap_or(0).min(bytes.len());
        bytes[got..].fill(0);
        if got > 0 {
            end = Some(block * BLOCK + got);
        }
    }
    end.map(|end| (end, true)).ok_or(error)
}

impl MirrorSet {
    /// How many bytes of `buf` the mirror supplied, or why none: of a run that it cannot read as a
    /// whole, each block by itself. For what concerns this mirror and waits for it.
    pub(super) fn read_parts(&self, mirror: &Attached, place: Place, buf: &mut [u8]) -> Supplied {
        match self.read_within(mirror, place, buf, None) {
            Err(Outcome::Damaged(Damage::Unreadable)) if buf.len() > BLOCK => {
                Supplied::Parts(halved(buf.len(), |bytes| {
                    let at = place.offset + bytes.start as u64;
                    // Whoever failed the run was counted and told of.
                    let backing = mirror.backing();
                    backing.read_at(place.file, at, &mut buf[bytes]).ok()
                }))
            }
            whole => Supplied::Whole(whole),
        }
    }
}

/// Reads the blocks of a run of `len` bytes, of which a read as a whole has failed.
fn halved(
    len: usize,
    mut read: impl FnMut(Range<usize>) -> Option<usize>,
) -> Vec<Result<usize, Damage>> {
    let count = len.div_ceil(BLOCK);
    let mut parts = vec![Err(Damage::Unreadable); count];
    let mut failures = 0;
    let mut halve = |blocks: Range<usize>, waiting: &mut Vec<Range<usize>>| {
        failures += 1;
        if blocks.len() > 1 && failures <= FAILURES {
            let middle = blocks.start + blocks.len() / 2;
            waiting.push(middle..blocks.end);
            waiting.push(blocks.start..middle);
        }
    };
    let mut waiting = Vec::new();
    // It has failed as a whole.
    halve(0..count, &mut waiting);
    while let Some(blocks) = waiting.pop() {
        let bytes = blocks.start * BLOCK..len.min(blocks.end * BLOCK);
        match read(bytes) {
            Some(got) => {
                for (nth, block) in blocks.enumerate() {
                    parts[block] = Ok(got.saturating_sub(nth * BLOCK));
                }
            }
            None => halve(blocks, &mut waiting),
        }
    }
    parts
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Reads a run of which these blocks cannot be read: what there is, and the requests it took.
    fn tried(blocks: usize, bad: &[usize]) -> (Vec<bool>, usize) {
        let len = blocks * BLOCK - 1000;
        let mut requests = 0;
        let parts = halved(len, |bytes| {
            requests += 1;
            assert!(bytes.start < bytes.end && bytes.end <= len);
            let hit = |block: &usize| (bytes.start..bytes.end).contains(&(block * BLOCK));
            (!bad.iter().any(hit)).then_some(bytes.len())
        });
        let whole = |block: usize| BLOCK.min(len - block * BLOCK);
        let there = parts.iter().enumerate();
        let there = there.map(|(block, part)| part.is_ok_and(|got| got >= whole(block)));
        (there.collect(), requests)
    }

    #[test]
    fn only_the_bad_blocks_are_missing() {
        for blocks in [2, 3, 7, 256] {
            for bad in 0..blocks {
                let (there, requests) = tried(blocks, &[bad]);
                let expected: Vec<_> = (0..blocks).map(|block| block != bad).collect();
                assert_eq!(there, expected, "{bad} of {blocks}");
                assert!(requests <= 16, "{requests}");
            }
        }
        assert_eq!(
            tried(8, &[0, 7]).0.iter().filter(|there| !**there).count(),
            2
        );
    }

    #[test]
    fn a_dead_disk_is_not_asked_for_every_block() {
        let all: Vec<_> = (0..256).collect();
        let (there, requests) = tried(256, &all);
        assert!(!there.contains(&true));
        assert!(requests <= 3 * FAILURES, "{requests}");
    }
}
