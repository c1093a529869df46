//! An open file of a mirror, and the bounded set of those kept open.
//!
//! Invariant: a descriptor that is in use, or that was written since its last sync, is not closed
//! to make room. The kernel tells of a failed write-back on the descriptors that are open then;
//! after the last of them nobody would learn of it.
//!
//! Opening, and what to do when the file behind a descriptor is gone, is left to the directory.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, IoSlice};
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, FcntlArg, OFlag, fallocate, fcntl};
use nix::sys::sendfile::sendfile;
use nix::sys::statfs::{FsType, TMPFS_MAGIC, fstatfs};
use nix::sys::uio::{pread, pwritev};

use super::super::FileName;
use super::super::buffer::{Buffer, DIRECT_ALIGN};

/// Buffers handed to one pwritev(2): the limit of Linux (UIO_MAXIOV).
pub(super) const MAX_IOVECS: usize = 1024;
/// Most bytes read by one O_DIRECT read that goes through a buffer of its own.
pub(super) const DIRECT_CHUNK: usize = 1 << 20;

/// RAMFS_MAGIC of <linux/magic.h>.
const RAMFS_MAGIC: FsType = FsType(0x8584_58f6);

/// An open file, shared by the cache and whoever uses it right now.
#[derive(Debug)]
pub(super) struct Handle {
    pub(super) file: File,
    /// The filesystem let us open it for reading only: writes fail with this.
    read_only: Option<Errno>,
    /// Written since its last sync.
    dirty: AtomicBool,
    pub(super) waits: Waits,
}

/// What a read of an open file may have to wait for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Waits {
    /// For the medium, unless the page cache has it; the kernel can be asked for that alone, and
    /// answers fstat(2) from memory.
    Medium,
    /// For anything, even in fstat(2): a filesystem on a network or in another process.
    Anything,
    /// For nothing: a filesystem in memory.
    Nothing,
}

/// The open files, with the time of their last use in uses.
#[derive(Debug)]
pub(super) struct Handles {
    open: HashMap<FileName, (Arc<Handle>, u64)>,
    uses: u64,
    limit: usize,
}

impl Handles {
    pub(super) fn with_limit(limit: usize) -> Handles {
        Handles {
            open: HashMap::new(),
            uses: 0,
            limit,
        }
    }

    /// Takes a file out. It is closed when what is returned is dropped, which may hang: to be
    /// done without the lock around this.
    #[must_use]
    pub(super) fn remove(&mut self, file: FileName) -> Option<Arc<Handle>> {
        self.open.remove(&file).map(|(handle, _)| handle)
    }

    pub(super) fn get(&mut self, file: FileName) -> Option<Arc<Handle>> {
        self.uses += 1;
        let (handle, used) = self.open.get_mut(&file)?;
        *used = self.uses;
        Some(Arc::clone(handle))
    }

    /// Adds a file, and returns what had to make room for it, as [`Handles::evict`].
    #[must_use]
    pub(super) fn insert(&mut self, file: FileName, handle: Arc<Handle>) -> Vec<Arc<Handle>> {
        self.uses += 1;
        let closed = if is_segment(file) && self.open.len() >= self.limit {
            self.evict(1)
        } else {
            Vec::new()
        };
        self.open.insert(file, (handle, self.uses));
        closed
    }

    /// Takes out up to `count` segments, those used longest ago. One that is in use stays: it may
    /// be about to be written. To be dropped without the lock, as in [`Handles::remove`].
    #[must_use]
    pub(super) fn evict(&mut self, count: usize) -> Vec<Arc<Handle>> {
        let mut idle: Vec<(u64, FileName)> = self
            .open
            .iter()
            .filter(|(file, (handle, _))| {
                is_segment(**file) && Arc::strong_count(handle) == 1 && !handle.is_dirty()
            })
            .map(|(file, (_, used))| (*used, *file))
            .collect();
        let count = count.min(idle.len());
        if count > 0 && count < idle.len() {
            idle.select_nth_unstable(count - 1);
        }
        let idle = idle.into_iter().take(count);
        idle.filter_map(|(_, file)| self.remove(file)).collect()
    }
}

impl Handle {
    pub(super) fn new(file: File, read_only: Option<Errno>) -> Handle {
        let waits = Waits::of(&file);
        Handle {
            file,
            read_only,
            dirty: AtomicBool::new(false),
            waits,
        }
    }

    pub(super) fn is_dirty(&self) -> bool {
        self.dirty.load(Ordering::Acquire)
    }

    /// Whether the file still has a name. A network filesystem answers ESTALE if not.
    pub(super) fn is_gone(&self) -> io::Result<bool> {
        match self.file.metadata() {
            Ok(meta) => Ok(meta.nlink() == 0),
            Err(error) if error.raw_os_error() == Some(libc::ESTALE) => Ok(true),
            Err(error) => Err(error),
        }
    }

    fn writable(&self) -> io::Result<()> {
        self.read_only.map_or(Ok(()), |errno| Err(errno.into()))
    }

    pub(super) fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<usize> {
        read_full(&self.file, offset, buf)
    }

    /// Reads what the page cache has and never waits: `buf` is filled up to the first byte that
    /// would have to be waited for. Returns how many bytes that were, and whether that is all that
    /// there is up to the end of the file. None if the file was deleted.
    pub(super) fn read_cached(&self, offset: u64, buf: &mut [u8]) -> io::Result<Option<Cached>> {
        let meta = self.file.metadata()?;
        if meta.nlink() == 0 {
            return Ok(None);
        }
        let mut len = 0;
        while len < buf.len() {
            match read_nowait(&self.file, offset + len as u64, &mut buf[len..]) {
                Ok(0) => break,
                Ok(got) => len += got,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // Also an error: what became of it is for a read that may wait to find out.
                Err(_) => break,
            }
        }
        // Some kernels (5.9, 5.10) answer 0 for what is not cached, so that does not show the end.
        let complete = len == buf.len() || offset + len as u64 >= meta.len();
        Ok(Some(Cached { len, complete }))
    }

    /// Has the page cache read a range and waits until it has it, without copying. False if this
    /// filesystem cannot do that.
    pub(super) fn fill_cache(&self, sink: &File, offset: u64, len: usize) -> io::Result<bool> {
        let mut at = file_offset(offset)?;
        let mut rest = len;
        while rest > 0 {
            match sendfile(sink, &self.file, Some(&mut at), rest) {
                Ok(0) => break,
                Ok(got) => rest = rest.saturating_sub(got),
                Err(Errno::EINTR) => {}
                Err(Errno::EINVAL | Errno::ENOSYS | Errno::EPERM) => return Ok(false),
                Err(errno) => return Err(errno.into()),
            }
        }
        Ok(true)
    }

    pub(super) fn write_at(&self, offset: u64, buffers: &[&[u8]]) -> io::Result<()> {
        self.writable()?;
        self.dirty.store(true, Ordering::Release);
        let mut slices: Vec<IoSlice<'_>> = buffers
            .iter()
            .filter(|buf| !buf.is_empty())
            .map(|buf| IoSlice::new(buf))
            .collect();
        let mut rest = slices.as_mut_slice();
        let mut at = offset;
        while !rest.is_empty() {
            let batch = rest.get(..MAX_IOVECS).unwrap_or(rest);
            match pwritev(&self.file, batch, file_offset(at)?) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(written) => {
                    at += written as u64;
                    IoSlice::advance_slices(&mut rest, written);
                }
                Err(Errno::EINTR) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
        Ok(())
    }

    pub(super) fn sync(&self) -> io::Result<()> {
        // Cleared first: a write that comes while the sync runs leaves the file dirty.
        let was_dirty = self.dirty.swap(false, Ordering::AcqRel);
        let synced = self.file.sync_data();
        if synced.is_err() && was_dirty {
            self.dirty.store(true, Ordering::Release);
        }
        synced
    }

    pub(super) fn set_len(&self, len: u64) -> io::Result<()> {
        self.writable()?;
        self.dirty.store(true, Ordering::Release);
        self.file.set_len(len)
    }

    /// fallocate(2); filesystems without it are fine.
    pub(super) fn allocate(&self, flags: FallocateFlags, offset: u64, len: u64) -> io::Result<()> {
        self.writable()?;
        if len == 0 {
            return Ok(());
        }
        loop {
            match fallocate(&self.file, flags, file_offset(offset)?, file_offset(len)?) {
                Ok(()) | Err(Errno::EOPNOTSUPP | Errno::ENOSYS) => return Ok(()),
                Err(Errno::EINTR) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
    }
}

/// What [`Handle::read_cached`] got.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Cached {
    pub(super) len: usize,
    pub(super) complete: bool,
}

impl Waits {
    fn of(file: &File) -> Waits {
        match read_nowait(file, 0, &mut [0]) {
            Ok(_) => Waits::Medium,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Waits::Medium,
            Err(_) => match fstatfs(file).map(|stat| stat.filesystem_type()) {
                Ok(TMPFS_MAGIC | RAMFS_MAGIC) => Waits::Nothing,
                Ok(_) | Err(_) => Waits::Anything,
            },
        }
    }
}

/// preadv2(2) of what is in the page cache: starts no I/O and waits for none.
fn read_nowait(file: &File, offset: u64, buf: &mut [u8]) -> io::Result<usize> {
    let iovec = libc::iovec {
        iov_base: buf.as_mut_ptr().cast(),
        iov_len: buf.len(),
    };
    let offset = file_offset(offset)?;
    // SAFETY: the descriptor is open, and the one buffer is ours to be written for its whole
    // length until the call returns.
    let got = unsafe {
        libc::preadv2(
            file.as_raw_fd(),
            &raw const iovec,
            1,
            offset,
            libc::RWF_NOWAIT,
        )
    };
    usize::try_from(got).map_err(|_| io::Error::last_os_error())
}

pub(super) fn file_offset(offset: u64) -> io::Result<libc::off_t> {
    libc::off_t::try_from(offset).map_err(|_| Errno::EINVAL.into())
}

/// Reads until the buffer is full or the file ends.
pub(super) fn read_full(file: &File, offset: u64, buf: &mut [u8]) -> io::Result<usize> {
    let mut done = 0;
    while done < buf.len() {
        match pread(file, &mut buf[done..], file_offset(offset + done as u64)?) {
            Ok(0) => break,
            Ok(len) => done += len,
            Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
    Ok(done)
}

/// Reads past the page cache, straight into `buf` where that is aligned. None where the filesystem
/// has no such reads, or where one leaves off before the end of the file. Sets O_DIRECT on the
/// descriptor.
pub(super) fn read_direct(file: &File, offset: u64, buf: &mut [u8]) -> io::Result<Option<usize>> {
    if fcntl(file, FcntlArg::F_SETFL(OFlag::O_DIRECT)).is_err() {
        return Ok(None);
    }
    let aligned = buf.as_ptr().align_offset(DIRECT_ALIGN) == 0
        && buf.len().is_multiple_of(DIRECT_ALIGN)
        && offset.is_multiple_of(DIRECT_ALIGN as u64);
    if aligned {
        read_aligned(file, offset, buf)
    } else {
        read_bounced(file, offset, buf)
    }
}

fn read_aligned(file: &File, offset: u64, buf: &mut [u8]) -> io::Result<Option<usize>> {
    let mut done = 0;
    while done < buf.len() {
        match pread(file, &mut buf[done..], file_offset(offset + done as u64)?) {
            Ok(0) => break,
            Ok(got) => done += got,
            Err(Errno::EINTR) => continue,
            Err(Errno::EINVAL) => return Ok(None),
            Err(errno) => return Err(errno.into()),
        }
        if !done.is_multiple_of(DIRECT_ALIGN) {
            break;
        }
    }
    let at_end = done == buf.len() || offset + done as u64 >= file.metadata()?.len();
    Ok(at_end.then_some(done))
}

fn read_bounced(file: &File, offset: u64, buf: &mut [u8]) -> io::Result<Option<usize>> {
    let mut memory = Buffer::default();
    let mut done = 0;
    while done < buf.len() {
        let at = offset + done as u64;
        let skip = (at % DIRECT_ALIGN as u64) as usize;
        let want = (buf.len() - done).min(DIRECT_CHUNK);
        memory.set_len((skip + want).next_multiple_of(DIRECT_ALIGN));
        // One read: going on where it ended would not be aligned.
        let got = match pread(file, &mut memory, file_offset(at - skip as u64)?) {
            Ok(got) => got,
            Err(Errno::EINTR) => continue,
            Err(Errno::EINVAL) => return Ok(None),
            Err(errno) => return Err(errno.into()),
        };
        let have = got.saturating_sub(skip).min(want);
        buf[done..done + have].copy_from_slice(&memory[skip..][..have]);
        done += have;
        if have < want {
            let at_end = offset + done as u64 >= file.metadata()?.len();
            return Ok(at_end.then_some(done));
        }
    }
    Ok(Some(done))
}

/// Segments are many and come and go; the other files stay open.
pub(super) const fn is_segment(file: FileName) -> bool {
    matches!(file, FileName::Segment(_))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::SegmentNo;

    #[test]
    fn the_cache_of_descriptors_is_bounded_but_keeps_unsynced_files_open() {
        let mut handles = Handles::with_limit(8);
        let file = tempfile::tempfile().unwrap();
        let handle = |dirty: bool| {
            let file = file.try_clone().unwrap();
            {
                let handle = Handle::new(file, None);
                handle.dirty.store(dirty, Ordering::Relaxed);
                Arc::new(handle)
            }
        };
        drop(handles.insert(FileName::Journal, handle(false)));
        for number in 0..100 {
            let closed = handles.insert(FileName::Segment(SegmentNo(number)), handle(number == 5));
            assert!(closed.len() <= 1);
        }
        assert_eq!(handles.open.len(), 8);
        assert!(handles.get(FileName::Journal).is_some());
        assert!(handles.get(FileName::Segment(SegmentNo(5))).is_some());
        assert!(handles.get(FileName::Segment(SegmentNo(6))).is_none());
        assert!(handles.get(FileName::Segment(SegmentNo(99))).is_some());
    }
}
