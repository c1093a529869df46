//! What the media of all mirrors hold in a range, to be compared: the reading half of a scrub.
//!
//! Nothing here judges or repairs, and the bytes do not outlive the comparison that they are read
//! for. Whoever compares has the verified way in `read` see to whatever is not as it should be, so
//! there is one decision and one repair.

use std::thread;

use super::set::{Attached, MirrorSet};
use crate::backing::{Backing, Buffer, FileName};

/// Memory for surveys, used again by each.
#[derive(Debug, Default)]
pub struct Scratch {
    copies: Vec<MediumCopy>,
}

/// What one mirror's medium holds of a range.
#[derive(Debug, Default)]
struct MediumCopy {
    buffer: Buffer,
    /// Bytes that there were; none if the range could not be read.
    got: usize,
}

impl MediumCopy {
    fn read(&mut self, backing: &dyn Backing, file: FileName, offset: u64, len: usize) {
        self.buffer.set_len(len);
        // Why it cannot be read is found out, counted and logged when its blocks are verified.
        let got = backing.read_medium(file, offset, &mut self.buffer);
        self.got = got.unwrap_or(0);
    }
}

impl MirrorSet {
    /// Reads a range of a file from the medium of every current mirror, side by side, and hands
    /// what there was to `compare`: one slice for each mirror, from the beginning of the range.
    /// Fastest at multiples of 4 KiB.
    pub fn survey<T>(
        &self,
        file: FileName,
        offset: u64,
        len: usize,
        scratch: &mut Scratch,
        compare: impl FnOnce(&[&[u8]]) -> T,
    ) -> T {
        let current: Vec<_> = self.current();
        let copies = &mut scratch.copies;
        copies.resize_with(current.len(), MediumCopy::default);
        let backings = current.iter().map(Attached::backing);
        let mut work: Vec<_> = copies.iter_mut().zip(backings).collect();
        if !self.parallel || work.len() < 2 {
            for (copy, backing) in &mut work {
                copy.read(*backing, file, offset, len);
            }
        } else {
            thread::scope(|scope| {
                let (own, others) = work.split_at_mut(1);
                for (copy, backing) in others {
                    scope.spawn(move || copy.read(*backing, file, offset, len));
                }
                for (copy, backing) in own {
                    copy.read(*backing, file, offset, len);
                }
            });
        }
        let found: Vec<&[u8]> = copies.iter().map(|copy| &copy.buffer[..copy.got]).collect();
        compare(&found)
    }
}
