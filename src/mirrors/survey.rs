//! What the media of all mirrors hold in a range, to be compared: the reading half of a scrub.
//!
//! Nothing here judges or repairs, and the bytes do not outlive the comparison that they are read
//! for. Whoever compares has the verified way in `read` see to whatever is not as it should be, so
//! there is one decision and one repair. While one range is compared, the next can be read.

use std::mem;
use std::ops::Range;
use std::thread;

use super::set::{Attached, MirrorId, MirrorSet};
use crate::backing::{Backing, Buffer, FileName};

/// Memory for surveys, used again by each, and what was read ahead.
#[derive(Debug, Default)]
pub struct Scratch {
    now: Vec<MediumCopy>,
    ahead: Vec<MediumCopy>,
    /// What `ahead` holds.
    ready: Option<Span>,
}

impl Scratch {
    /// What was read ahead is too old by now.
    pub fn forget(&mut self) {
        self.ready = None;
    }
}

/// A range of a file on some mirrors.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Span {
    file: FileName,
    range: Range<u64>,
    mirrors: Vec<MirrorId>,
}

/// What one mirror's medium holds of a range.
#[derive(Debug, Default)]
struct MediumCopy {
    buffer: Buffer,
    /// Bytes that there were; none if the range could not be read.
    got: usize,
}

impl MediumCopy {
    fn read(&mut self, backing: &dyn Backing, span: &Span) {
        self.buffer
            .set_len((span.range.end - span.range.start) as usize);
        // Why it cannot be read is found out, counted and logged when its blocks are verified.
        let got = backing.read_medium(span.file, span.range.start, &mut self.buffer);
        self.got = got.unwrap_or(0);
    }
}

impl MirrorSet {
    /// Reads a range of a file from the medium of every current mirror, side by side, and hands
    /// what there was to `compare`: one slice for each mirror, from the beginning of the range.
    /// Meanwhile the range `ahead` is read for the next survey. Fastest at multiples of 4 KiB.
    pub fn survey<T>(
        &self,
        file: FileName,
        range: Range<u64>,
        ahead: Option<Range<u64>>,
        scratch: &mut Scratch,
        compare: impl FnOnce(&[&[u8]]) -> T,
    ) -> T {
        let current = self.current();
        let mirrors: Vec<_> = current.iter().map(|mirror| mirror.id).collect();
        let span = |range| Span {
            file,
            range,
            mirrors: mirrors.clone(),
        };
        let wanted = span(range);
        if scratch.ready.take().as_ref() == Some(&wanted) {
            mem::swap(&mut scratch.now, &mut scratch.ahead);
        } else {
            self.read_media(&current, &wanted, &mut scratch.now);
        }
        let found: Vec<&[u8]> = scratch
            .now
            .iter()
            .map(|copy| &copy.buffer[..copy.got])
            .collect();
        let Some(next) = ahead.filter(|_| self.parallel).map(span) else {
            return compare(&found);
        };
        let later = &mut scratch.ahead;
        let result = thread::scope(|scope| {
            later.resize_with(current.len(), MediumCopy::default);
            for (copy, mirror) in later.iter_mut().zip(&current) {
                let next = &next;
                scope.spawn(move || copy.read(mirror.backing(), next));
            }
            compare(&found)
        });
        scratch.ready = Some(next);
        result
    }

    fn read_media(&self, current: &[Attached], span: &Span, copies: &mut Vec<MediumCopy>) {
        copies.resize_with(current.len(), MediumCopy::default);
        let work = copies.iter_mut().zip(current);
        if self.parallel {
            thread::scope(|scope| {
                for (copy, mirror) in work {
                    scope.spawn(move || copy.read(mirror.backing(), span));
                }
            });
        } else {
            work.for_each(|(copy, mirror)| copy.read(mirror.backing(), span));
        }
    }
}
