//! SEEK_DATA and SEEK_HOLE with pages in the kernel that we have not seen yet.
//!
//! With the writeback cache a file's newest bytes are dirty pages in the kernel, and Linux asks for
//! data and holes without writing them out first (seen on 6.18). Taking our map for the truth, `cp`
//! would copy a file that is still open for writing as one hole. So whatever would be answered from
//! the absence of data is first checked: the kernel is told to invalidate that range, for which it
//! writes dirty pages in it to us, and we look again. The caller of lseek(2) holds the inode's lock
//! in the kernel, so nothing but a memory map can dirty more meanwhile.
//!
//! An answer that rests on data being there needs none of this, and the usual question about a
//! dense file invalidates nothing but what lies behind its end.

use std::sync::OnceLock;

use fuser::{INodeNo, Notifier};
use nix::errno::Errno;

use crate::format::Ino;
use crate::vfs::{self, VfsError, Whence};

/// What is being looked for. [`Whence`] as a value that can be used twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Target {
    Data,
    Hole,
}

impl Target {
    /// Of lseek(2)'s third argument; the kernel answers the other values itself.
    pub(super) const fn of(whence: i32) -> Option<Target> {
        match whence {
            libc::SEEK_DATA => Some(Target::Data),
            libc::SEEK_HOLE => Some(Target::Hole),
            _ => None,
        }
    }

    pub(super) const fn whence(self) -> Whence {
        match self {
            Target::Data => Whence::Data,
            Target::Hole => Whence::Hole,
        }
    }
}

/// Bytes of a file that the kernel must write out before an answer holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Doubtful {
    pub(super) start: u64,
    /// Number of bytes; 0: to the end, wherever the kernel has that.
    pub(super) len: u64,
}

/// What of `answer`, to the question for `target` from `offset` on, rests on data not being there.
pub(super) fn doubtful(target: Target, offset: u64, answer: &vfs::Result<u64>) -> Option<Doubtful> {
    match (target, answer) {
        (Target::Data, Ok(found)) if *found == offset => None,
        (Target::Data, Ok(found)) => Some(Doubtful {
            start: offset,
            len: found.saturating_sub(offset),
        }),
        (Target::Hole, Ok(found)) => Some(Doubtful {
            start: *found,
            len: 0,
        }),
        (_, Err(error)) if beyond_the_end(error) => Some(Doubtful {
            start: offset,
            len: 0,
        }),
        (_, Err(_)) => None,
    }
}

fn beyond_the_end(error: &VfsError) -> bool {
    error.errno() == Errno::ENXIO
}

/// Makes the kernel write dirty pages of the range out, and drop them.
pub(super) fn write_out(notifier: &OnceLock<Notifier>, ino: Ino, range: Doubtful) {
    let Some(notifier) = notifier.get() else {
        return;
    };
    let start = i64::try_from(range.start).unwrap_or(i64::MAX);
    let len = i64::try_from(range.len).unwrap_or(0);
    if let Err(error) = notifier.inval_inode(INodeNo(ino.0), start, len) {
        log::warn!("the kernel could not be told to write inode {ino} out: {error}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn data_that_is_there_needs_no_second_look() {
        assert_eq!(doubtful(Target::Data, 4096, &Ok(4096)), None);
    }

    #[test]
    fn a_hole_that_was_skipped_is_looked_at_again() {
        let skipped = Doubtful {
            start: 4096,
            len: 8192,
        };
        assert_eq!(doubtful(Target::Data, 4096, &Ok(12288)), Some(skipped));
    }

    #[test]
    fn a_hole_that_was_found_is_looked_at_again_to_the_end() {
        let found = Doubtful {
            start: 12288,
            len: 0,
        };
        assert_eq!(doubtful(Target::Hole, 4096, &Ok(12288)), Some(found));
    }
}
