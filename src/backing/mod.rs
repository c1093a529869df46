//! One mirror's directory, as the rest of mendfs sees it.
//!
//! [`Backing`] is the whole contract: named files with positioned reads and writes, explicit syncs,
//! hole punching and free space. [`dir`] implements it on a real directory, [`sim`] in memory with
//! every fault a disk can have, from one seed. Nothing here knows what the bytes mean.
//!
//! The contract that the layers above rely on:
//! - a read sees every write before it, whether synced or not;
//! - after a crash each unsynced 512-byte sector is old or new, independently of the others, and
//!   each unsynced length, name or hole is old or new;
//! - only [`Backing::read_at_within`] returns in bounded time from a medium that does not answer;
//!   everything else waits for as long as it takes;
//! - [`Backing::sync`] makes the content and length of one file durable, [`Backing::sync_name`] its
//!   name; an error from either means that nothing may be assumed, and is never retried.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::format::SegmentNo;

mod buffer;
pub mod dir;
mod shadow;
pub mod sim;

pub use buffer::Buffer;
pub use dir::DirBacking;
pub use shadow::Shadow;

/// The files in a mirror directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum FileName {
    /// `README.txt`, for people.
    Readme,
    /// `mendfs.super`, the superblock slots.
    Superblock,
    /// `journal`, the circular log.
    Journal,
    /// `index`, the pages of the index database.
    Index,
    /// `index.sums`, the page sums.
    Sums,
    /// `segments/XX/XXXXXXXXXXXXXXXX.seg`, file data.
    Segment(SegmentNo),
}

impl FileName {
    /// Path relative to the mirror directory. Segments are spread over 256 directories by the low
    /// byte of their number.
    pub fn path(self) -> PathBuf {
        match self {
            FileName::Readme => PathBuf::from("README.txt"),
            FileName::Superblock => PathBuf::from("mendfs.super"),
            FileName::Journal => PathBuf::from("journal"),
            FileName::Index => PathBuf::from("index"),
            FileName::Sums => PathBuf::from("index.sums"),
            FileName::Segment(SegmentNo(number)) => {
                PathBuf::from(format!("segments/{:02x}/{number:016x}.seg", number & 0xff))
            }
        }
    }
}

impl fmt::Display for FileName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.path().display(), f)
    }
}

/// Room on the filesystem under a mirror, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Space {
    /// Size of the filesystem.
    pub total: u64,
    /// Free for us.
    pub available: u64,
}

/// One mirror's directory. See the module's text for what may be relied on.
pub trait Backing: fmt::Debug + Send + Sync {
    /// What messages call this mirror: its path.
    fn label(&self) -> String;

    /// Makes the file, empty, if it is not there; its directories too.
    ///
    /// # Errors
    /// As open(2) and mkdir(2).
    fn create(&self, file: FileName) -> io::Result<()>;

    /// Length of the file in bytes.
    ///
    /// # Errors
    /// As stat(2); [`io::ErrorKind::NotFound`] if it is not there.
    fn len(&self, file: FileName) -> io::Result<u64>;

    /// Bytes that the file takes on the medium: its length without holes.
    ///
    /// # Errors
    /// As stat(2).
    fn allocated(&self, file: FileName) -> io::Result<u64>;

    /// Fills `buf` from `offset` and returns how many bytes there were: fewer only at the end.
    ///
    /// # Errors
    /// As pread(2).
    fn read_at(&self, file: FileName, offset: u64, buf: &mut [u8]) -> io::Result<usize>;

    /// As [`Backing::read_at`], but gives up after `deadline`. What is in `buf` then means nothing;
    /// nothing writes to it any more.
    ///
    /// # Errors
    /// As pread(2), and [`io::ErrorKind::TimedOut`].
    fn read_at_within(
        &self,
        file: FileName,
        offset: u64,
        buf: &mut [u8],
        deadline: Duration,
    ) -> io::Result<usize> {
        let _ = deadline;
        self.read_at(file, offset, buf)
    }

    /// Whether a read that was given up on is still under way: the next one would probably wait as
    /// well. Ends by itself when the medium answers.
    fn stalled(&self) -> bool {
        false
    }

    /// As [`Backing::read_at`], but from the medium and past the page cache, as far as the
    /// filesystem below allows: what the cache holds of the range is written out first. Fastest
    /// into a [`Buffer`], at multiples of 4 KiB.
    ///
    /// # Errors
    /// As pread(2) and fdatasync(2).
    fn read_medium(&self, file: FileName, offset: u64, buf: &mut [u8]) -> io::Result<usize>;

    /// Syncs the file and has the page cache forget it, as far as the filesystem below allows, so
    /// that what is read next comes from the medium.
    ///
    /// # Errors
    /// As fdatasync(2).
    fn forget_cached(&self, file: FileName) -> io::Result<()>;

    /// Writes the buffers one after another at `offset`, all or an error.
    ///
    /// # Errors
    /// As pwritev(2). The file may then hold a part of it.
    fn write_at(&self, file: FileName, offset: u64, buffers: &[&[u8]]) -> io::Result<()>;

    /// Cuts the file or extends it by a hole.
    ///
    /// # Errors
    /// As ftruncate(2).
    fn set_len(&self, file: FileName, len: u64) -> io::Result<()>;

    /// Reserves space for a range of the file without changing its length, so that writing there
    /// cannot fail for want of space. A filesystem that cannot do this succeeds without doing it.
    ///
    /// # Errors
    /// As fallocate(2).
    fn reserve(&self, file: FileName, offset: u64, len: u64) -> io::Result<()>;

    /// Gives a range of the file back to the filesystem; it reads as zeros. A filesystem that
    /// cannot do this succeeds without doing it.
    ///
    /// # Errors
    /// As fallocate(2).
    fn punch(&self, file: FileName, offset: u64, len: u64) -> io::Result<()>;

    /// Makes content and length durable.
    ///
    /// # Errors
    /// As fdatasync(2).
    fn sync(&self, file: FileName) -> io::Result<()>;

    /// Makes the name durable: the file's directory and that one's parents in the mirror.
    ///
    /// # Errors
    /// As fsync(2).
    fn sync_name(&self, file: FileName) -> io::Result<()>;

    /// Removes the file; it is fine if it is not there.
    ///
    /// # Errors
    /// As unlink(2).
    fn remove(&self, file: FileName) -> io::Result<()>;

    /// Numbers of the segment files there are, ascending.
    ///
    /// # Errors
    /// As readdir(3).
    fn segments(&self) -> io::Result<Vec<SegmentNo>>;

    /// Room on the filesystem below.
    ///
    /// # Errors
    /// As statvfs(3).
    fn space(&self) -> io::Result<Space>;

    /// Whether the directory is still where it was opened: not unmounted, moved or deleted.
    fn is_present(&self) -> bool {
        true
    }

    /// Moves everything but the superblock into a directory beside it, with a copy of the
    /// superblock, so that what the mirror was can still be mounted there.
    ///
    /// # Errors
    /// As rename(2).
    fn set_aside(&self) -> io::Result<()>;

    /// Deletes what [`Backing::set_aside`] has moved.
    ///
    /// # Errors
    /// As unlink(2).
    fn forget_aside(&self) -> io::Result<()>;

    /// Directory of this mirror's ledger, if it has a place for one.
    fn ledger_dir(&self) -> Option<PathBuf> {
        None
    }
}

/// Renames what cannot be used out of the way, to a name of its own beside it, and returns that.
///
/// # Errors
/// As rename(2).
pub fn set_aside(path: &Path) -> io::Result<PathBuf> {
    let name = path
        .file_name()
        .unwrap_or_default()
        .to_string_lossy()
        .into_owned();
    for number in 1..u32::MAX {
        let aside = path.with_file_name(format!("{name}.broken-{number}"));
        if !aside.try_exists()? {
            std::fs::rename(path, &aside)?;
            return Ok(aside);
        }
    }
    Err(io::Error::other("too many broken ones are there already"))
}
