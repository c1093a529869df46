//! Between fuser's types and ours: attributes, times, kinds and error numbers.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use fuser::{Errno, FileAttr, FileType, Generation, INodeNo, TimeOrNow};

use crate::format::{FileKind, Ino, Timestamp};
use crate::vfs::{Attr, SetTime, VfsError};

/// What `stat` reports as the preferred size of an I/O request: the largest one we take.
const PREFERRED_IO: u32 = 1 << 20;

pub(super) const fn ino(number: INodeNo) -> Ino {
    Ino(number.0)
}

pub(super) const fn generation(attr: &Attr) -> Generation {
    Generation(attr.generation)
}

pub(super) fn errno(error: &VfsError) -> Errno {
    Errno::from_i32(error.errno() as i32)
}

pub(super) const fn file_type(kind: FileKind) -> FileType {
    match kind {
        FileKind::Regular => FileType::RegularFile,
        FileKind::Directory => FileType::Directory,
        FileKind::Symlink => FileType::Symlink,
        FileKind::Fifo => FileType::NamedPipe,
        FileKind::Socket => FileType::Socket,
        FileKind::CharDevice => FileType::CharDevice,
        FileKind::BlockDevice => FileType::BlockDevice,
    }
}

pub(super) fn file_attr(attr: &Attr) -> FileAttr {
    FileAttr {
        ino: INodeNo(attr.ino.0),
        size: attr.size,
        blocks: attr.blocks,
        atime: system_time(attr.atime),
        mtime: system_time(attr.mtime),
        ctime: system_time(attr.ctime),
        crtime: system_time(attr.btime),
        kind: file_type(attr.kind),
        perm: attr.permissions,
        nlink: attr.nlink,
        uid: attr.uid,
        gid: attr.gid,
        rdev: attr.rdev,
        blksize: PREFERRED_IO,
        flags: 0,
    }
}

/// Attributes that stand for "there is no such name", which the kernel caches like a name.
pub(super) const fn absent() -> FileAttr {
    placeholder(Ino(0), FileKind::Regular)
}

/// Attributes of an inode of which nothing but number and kind is known.
pub(super) const fn placeholder(ino: Ino, kind: FileKind) -> FileAttr {
    FileAttr {
        ino: INodeNo(ino.0),
        size: 0,
        blocks: 0,
        atime: UNIX_EPOCH,
        mtime: UNIX_EPOCH,
        ctime: UNIX_EPOCH,
        crtime: UNIX_EPOCH,
        kind: file_type(kind),
        perm: 0,
        nlink: 1,
        uid: 0,
        gid: 0,
        rdev: 0,
        blksize: PREFERRED_IO,
        flags: 0,
    }
}

/// The time as fuser takes it. One that [`SystemTime`] cannot hold becomes 1970-01-01.
fn system_time(time: Timestamp) -> SystemTime {
    let whole = Duration::from_secs(time.seconds.unsigned_abs());
    let seconds = if time.seconds < 0 {
        UNIX_EPOCH.checked_sub(whole)
    } else {
        UNIX_EPOCH.checked_add(whole)
    };
    seconds
        .and_then(|seconds| seconds.checked_add(Duration::from_nanos(time.nanoseconds.into())))
        .unwrap_or(UNIX_EPOCH)
}

/// The time that the kernel sent.
///
/// Before 1970 the kernel counts nanoseconds forward from the second below, but fuser 0.18 makes
/// its [`SystemTime`] by counting them backwards. This undoes that exactly: seconds and nanoseconds
/// are taken from the distance to 1970 as fuser put them there.
fn timestamp(time: SystemTime) -> Timestamp {
    match time.duration_since(UNIX_EPOCH) {
        Ok(after) => Timestamp {
            seconds: i64::try_from(after.as_secs()).unwrap_or(i64::MAX),
            nanoseconds: after.subsec_nanos(),
        },
        Err(error) => {
            let before = error.duration();
            Timestamp {
                seconds: 0_i64
                    .checked_sub_unsigned(before.as_secs())
                    .unwrap_or(i64::MIN),
                nanoseconds: before.subsec_nanos(),
            }
        }
    }
}

pub(super) fn set_time(time: TimeOrNow) -> SetTime {
    match time {
        TimeOrNow::Now => SetTime::Now,
        TimeOrNow::SpecificTime(time) => SetTime::At(timestamp(time)),
    }
}

pub(super) fn set_ctime(time: SystemTime) -> Timestamp {
    timestamp(time)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What fuser 0.18 does with the seconds and nanoseconds of a request.
    fn as_fuser_decodes(seconds: i64, nanoseconds: u32) -> SystemTime {
        if seconds >= 0 {
            UNIX_EPOCH + Duration::new(seconds.unsigned_abs(), nanoseconds)
        } else {
            UNIX_EPOCH - Duration::new(seconds.unsigned_abs(), nanoseconds)
        }
    }

    #[test]
    fn times_of_a_request_come_through_also_before_1970() {
        for (seconds, nanoseconds) in [
            (0, 0),
            (0, 1),
            (1_700_000_000, 123_456_789),
            (-1, 0),
            (-2, 800_000_000),
            (-1, 1),
        ] {
            let time = timestamp(as_fuser_decodes(seconds, nanoseconds));
            assert_eq!(
                time,
                Timestamp {
                    seconds,
                    nanoseconds
                }
            );
        }
    }

    #[test]
    fn times_of_a_reply_are_exact_also_before_1970() {
        let time = system_time(Timestamp {
            seconds: -2,
            nanoseconds: 800_000_000,
        });
        assert_eq!(time, UNIX_EPOCH - Duration::from_millis(1200));
        let time = system_time(Timestamp {
            seconds: 5,
            nanoseconds: 7,
        });
        assert_eq!(time, UNIX_EPOCH + Duration::new(5, 7));
    }

    #[test]
    fn a_time_out_of_range_does_not_panic() {
        system_time(Timestamp {
            seconds: i64::MAX,
            nanoseconds: 999_999_999,
        });
        system_time(Timestamp {
            seconds: i64::MIN,
            nanoseconds: 999_999_999,
        });
    }
}
