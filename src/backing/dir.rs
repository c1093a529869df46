//! A mirror on a real directory.
//!
//! Owns the directory's descriptor, the descriptors of the files in it, and the lock. Invariants:
//! - every access goes through the directory's descriptor, never again through its path, so that an
//!   unmount or a rename after the start cannot lead a write into another directory;
//! - a descriptor whose file was deleted is never read or written: the file counts as not there;
//! - a descriptor with unsynced writes is never closed behind its writer's back, because the kernel
//!   reports a failed write-back on the descriptors that were open then, and forgets it with the
//!   last of them. For the same reason reads from the medium sync on a descriptor of their own.
//!
//! What the bytes mean, how often to sync and what to do about errors is left to others. Errors of
//! system calls come out as they are, with their errno.

use std::fs::File;
use std::io::{self, Write as _};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use nix::errno::Errno;
use nix::fcntl::{
    AT_FDCWD, AtFlags, FallocateFlags, OFlag, PosixFadviseAdvice, open, openat, posix_fadvise,
};
use nix::sys::stat::{Mode, fstatat, mkdirat};
use nix::sys::statfs::{BTRFS_SUPER_MAGIC, fstatfs};
use nix::unistd::{UnlinkatFlags, unlinkat};
use tracing_mutex::parkinglot::Mutex;

use super::{Backing, FileName, Space};
use crate::format::SegmentNo;

mod aside;
mod handle;
mod readers;
mod tree;

use handle::{file_offset, is_segment, read_direct, read_full};
use readers::Readers;
use tree::Tree;

const SEGMENTS: &str = "segments";
const LOCK: &str = "lock";

/// One mirror in a directory of whatever filesystem it lies on.
#[derive(Debug)]
pub struct DirBacking {
    tree: Arc<Tree>,
    readers: Readers,
    path: PathBuf,
    lock: Mutex<Option<File>>,
}

impl DirBacking {
    /// Opens the mirror in the directory `path`, which must exist. Creates nothing.
    ///
    /// # Errors
    /// As open(2).
    pub fn open(path: &Path) -> io::Result<DirBacking> {
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let root = File::from(open(path, flags, Mode::empty())?);
        let tree = Arc::new(Tree::new(root));
        Ok(DirBacking {
            readers: Readers::new(Arc::clone(&tree)),
            tree,
            path: std::path::absolute(path)?,
            lock: Mutex::default(),
        })
    }

    /// The directory's path, absolute, as it was when it was opened.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Takes the lock of the mirror, until this object is dropped, and writes this process's
    /// number into it. False if another process, or another object in this one, holds it. Asking
    /// again while holding it is fine, and renews the number (after a fork).
    ///
    /// # Errors
    /// As open(2) and flock(2).
    pub fn lock(&self) -> io::Result<bool> {
        let mut held = self.lock.lock();
        let mut file = match held.take() {
            Some(file) => file,
            None => match self.acquire_lock()? {
                Some(file) => file,
                None => return Ok(false),
            },
        };
        let written = file.set_len(0).and_then(|()| {
            io::Seek::rewind(&mut file)?;
            writeln!(file, "{}", std::process::id())
        });
        *held = Some(file);
        // A full disk must not keep the pool from being opened: the number only informs.
        match written {
            Err(error) if error.kind() != io::ErrorKind::StorageFull => Err(error),
            _ => Ok(true),
        }
    }

    /// Number of the process that holds the lock, as it wrote it: to be asked after
    /// [`DirBacking::lock`] returned false. After a crash the number of a dead process may remain.
    pub fn lock_holder(&self) -> Option<u32> {
        let file = self.tree.open_at(Path::new(LOCK), OFlag::O_RDONLY).ok()?;
        let mut text = [0; 16];
        let len = read_full(&file, 0, &mut text).ok()?;
        std::str::from_utf8(text.get(..len)?)
            .ok()?
            .trim()
            .parse()
            .ok()
    }

    fn acquire_lock(&self) -> io::Result<Option<File>> {
        loop {
            let file = self
                .tree
                .open_at(Path::new(LOCK), OFlag::O_RDWR | OFlag::O_CREAT)?;
            match file.try_lock() {
                Ok(()) => {}
                Err(std::fs::TryLockError::WouldBlock) => return Ok(None),
                Err(std::fs::TryLockError::Error(error)) => return Err(error),
            }
            // A lock on a deleted file excludes nobody: the next one creates another.
            if file.metadata()?.nlink() > 0 {
                return Ok(Some(file));
            }
        }
    }

    fn make_parents(&self, file: FileName) -> io::Result<()> {
        for dir in parents(file).iter().rev() {
            match mkdirat(&self.tree.root, dir, Mode::S_IRWXU) {
                Ok(()) | Err(Errno::EEXIST) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
        Ok(())
    }
}

impl Drop for DirBacking {
    fn drop(&mut self) {
        if let Some(file) = self.lock.get_mut() {
            // So that the number of a process that ended well does not look like a holder's.
            let _ = file.set_len(0);
        }
    }
}

impl Backing for DirBacking {
    fn label(&self) -> String {
        self.path.display().to_string()
    }

    fn create(&self, file: FileName) -> io::Result<()> {
        let path = file.path();
        let flags = OFlag::O_RDWR | OFlag::O_CREAT;
        let created = match self.tree.open_at(&path, flags) {
            Err(error) if error.kind() == io::ErrorKind::NotFound && is_segment(file) => {
                self.make_parents(file)?;
                self.tree.open_at(&path, flags)?
            }
            other => other?,
        };
        if is_rewritten(file) && created.metadata()?.len() == 0 {
            avoid_copy_on_write(&created);
        }
        self.tree.forget_deleted(file)
    }

    fn len(&self, file: FileName) -> io::Result<u64> {
        Ok(self.tree.handle(file)?.file.metadata()?.len())
    }

    fn allocated(&self, file: FileName) -> io::Result<u64> {
        // st_blocks is in units of 512 bytes on every filesystem.
        Ok(self.tree.handle(file)?.file.metadata()?.blocks() * 512)
    }

    fn read_at(&self, file: FileName, offset: u64, buf: &mut [u8]) -> io::Result<usize> {
        self.tree.handle(file)?.read_at(offset, buf)
    }

    fn read_at_within(
        &self,
        file: FileName,
        offset: u64,
        buf: &mut [u8],
        deadline: Duration,
    ) -> io::Result<usize> {
        self.readers.read(file, offset, buf, deadline)
    }

    fn stalled(&self) -> bool {
        self.readers.stalled()
    }

    fn read_medium(&self, file: FileName, offset: u64, buf: &mut [u8]) -> io::Result<usize> {
        let handle = self.tree.handle(file)?;
        // On a descriptor of its own: an error of an earlier write must still reach sync().
        let own = self.tree.open_at(&file.path(), OFlag::O_RDONLY)?;
        // The kernel writes out what it has cached of the range before it reads directly.
        if let Some(len) = read_direct(&own, offset, buf)? {
            return Ok(len);
        }
        own.sync_data()?;
        // Only a hint, and not every filesystem takes it.
        let _ = posix_fadvise(
            &own,
            file_offset(offset)?,
            file_offset(buf.len() as u64)?,
            PosixFadviseAdvice::POSIX_FADV_DONTNEED,
        );
        handle.read_at(offset, buf)
    }

    fn forget_cached(&self, file: FileName) -> io::Result<()> {
        // On a descriptor of its own, as in read_medium.
        let own = self.tree.open_at(&file.path(), OFlag::O_RDONLY)?;
        own.sync_data()?;
        let _ = posix_fadvise(&own, 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED);
        Ok(())
    }

    fn write_at(&self, file: FileName, offset: u64, buffers: &[&[u8]]) -> io::Result<()> {
        self.tree.handle(file)?.write_at(offset, buffers)
    }

    fn set_len(&self, file: FileName, len: u64) -> io::Result<()> {
        self.tree.handle(file)?.set_len(len)
    }

    fn reserve(&self, file: FileName, offset: u64, len: u64) -> io::Result<()> {
        self.tree
            .handle(file)?
            .allocate(FallocateFlags::FALLOC_FL_KEEP_SIZE, offset, len)
    }

    fn punch(&self, file: FileName, offset: u64, len: u64) -> io::Result<()> {
        let flags = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
        self.tree.handle(file)?.allocate(flags, offset, len)
    }

    fn sync(&self, file: FileName) -> io::Result<()> {
        self.tree.handle(file)?.sync()
    }

    fn sync_name(&self, file: FileName) -> io::Result<()> {
        for dir in parents(file) {
            match self.tree.open_dir(&dir) {
                Ok(dir) => dir.sync_all()?,
                // The name of a file that was never created, or removed with its directory.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
        self.tree.root.sync_all()
    }

    fn remove(&self, file: FileName) -> io::Result<()> {
        let removed = unlinkat(&self.tree.root, &file.path(), UnlinkatFlags::NoRemoveDir);
        self.tree.forget(file);
        match removed {
            Ok(()) | Err(Errno::ENOENT) => Ok(()),
            Err(errno) => Err(errno.into()),
        }
    }

    fn segments(&self) -> io::Result<Vec<SegmentNo>> {
        let mut found = Vec::new();
        let Some(top) = list(&self.tree.root, Path::new(SEGMENTS))? else {
            return Ok(found);
        };
        for name in top {
            let Some(low) = parse_hex(&name, 2) else {
                continue;
            };
            let Some(files) = list(&self.tree.root, &Path::new(SEGMENTS).join(&name))? else {
                continue;
            };
            let numbers = files
                .iter()
                .filter_map(|file| parse_hex(file.strip_suffix(".seg")?, 16));
            found.extend(numbers.filter(|number| number & 0xff == low).map(SegmentNo));
        }
        found.sort_unstable();
        Ok(found)
    }

    fn space(&self) -> io::Result<Space> {
        self.readers.room()
    }

    /// `ledger` below the path, as sled takes nothing but paths; none once the path leads to
    /// another directory than the one that was opened.
    fn ledger_dir(&self) -> Option<PathBuf> {
        self.is_present().then(|| self.path.join("ledger"))
    }

    fn is_present(&self) -> bool {
        let now = fstatat(AT_FDCWD, &self.path, AtFlags::empty());
        match (self.tree.root.metadata(), now) {
            (Ok(ours), Ok(now)) => ours.dev() == now.st_dev && ours.ino() == now.st_ino,
            _ => false,
        }
    }

    fn set_aside(&self) -> io::Result<()> {
        aside::set_aside(&self.tree.root)?;
        // The descriptors still lead to what was moved.
        self.tree.forget_all();
        Ok(())
    }

    fn forget_aside(&self) -> io::Result<()> {
        aside::forget(&self.tree.root)
    }
}

/// Whether parts of the file are written again and again in their place.
const fn is_rewritten(file: FileName) -> bool {
    matches!(
        file,
        FileName::Superblock | FileName::Journal | FileName::Index | FileName::Sums
    )
}

/// The directories between the file and the mirror's directory, innermost first.
fn parents(file: FileName) -> Vec<PathBuf> {
    let path = file.path();
    let between = path
        .ancestors()
        .skip(1)
        .filter(|dir| !dir.as_os_str().is_empty());
    between.map(Path::to_path_buf).collect()
}

/// Names in a directory below `root`, those that are UTF-8; none if the directory is not there.
fn list(root: &File, path: &Path) -> io::Result<Option<Vec<String>>> {
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC | OFlag::O_NOFOLLOW;
    let dir: OwnedFd = match openat(root, path, flags, Mode::empty()) {
        Ok(dir) => dir,
        Err(Errno::ENOENT | Errno::ENOTDIR | Errno::ELOOP) => return Ok(None),
        Err(errno) => return Err(errno.into()),
    };
    // The standard library lists by path alone; this path leads to the descriptor.
    let link = format!("/proc/self/fd/{}", dir.as_raw_fd());
    let mut names = Vec::new();
    // Without /proc this is NotFound, which must not read as "there are no segments".
    let entries = std::fs::read_dir(&link)
        .map_err(|error| io::Error::other(format!("cannot list {}: {error}", path.display())))?;
    for entry in entries {
        if let Ok(name) = entry?.file_name().into_string() {
            names.push(name);
        }
    }
    Ok(Some(names))
}

/// A number of exactly `digits` lower-case hexadecimal digits.
fn parse_hex(text: &str, digits: usize) -> Option<u64> {
    let proper = text.len() == digits
        && text
            .bytes()
            .all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
    if proper {
        u64::from_str_radix(text, 16).ok()
    } else {
        None
    }
}

/// Asks btrfs to write an empty file in place. Rewriting a copy-on-write file in place fragments
/// it and makes each fdatasync commit metadata. The file loses the checksums of btrfs; it has ours.
fn avoid_copy_on_write(file: &File) {
    // FS_IOC_GETFLAGS, FS_IOC_SETFLAGS and FS_NOCOW_FL of <linux/fs.h>. The kernel defines the
    // requests with `long` and transfers an `int`.
    const FS_NOCOW_FL: libc::c_int = 0x0080_0000;
    const FS_IOC_GETFLAGS: libc::Ioctl =
        nix::request_code_read!(b'f', 1, size_of::<libc::c_long>());
    const FS_IOC_SETFLAGS: libc::Ioctl =
        nix::request_code_write!(b'f', 2, size_of::<libc::c_long>());
    if !fstatfs(file).is_ok_and(|stat| stat.filesystem_type() == BTRFS_SUPER_MAGIC) {
        return;
    }
    let mut flags: libc::c_int = 0;
    // SAFETY: the descriptor is open, and the kernel writes one int to the pointer.
    let got = unsafe { libc::ioctl(file.as_raw_fd(), FS_IOC_GETFLAGS, &raw mut flags) };
    if got == 0 {
        flags |= FS_NOCOW_FL;
        // SAFETY: the descriptor is open, and the kernel reads one int from the pointer. That it
        // may fail is fine: the file works either way.
        let _ = unsafe { libc::ioctl(file.as_raw_fd(), FS_IOC_SETFLAGS, &raw const flags) };
    }
}

#[cfg(test)]
mod tests {
    use super::handle::{DIRECT_CHUNK, MAX_IOVECS};
    use super::*;

    const SEGMENT: FileName = FileName::Segment(SegmentNo(0x1234));

    fn mirror() -> (tempfile::TempDir, DirBacking) {
        let dir = tempfile::tempdir().unwrap();
        let backing = DirBacking::open(dir.path()).unwrap();
        (dir, backing)
    }

    fn pattern(len: usize) -> Vec<u8> {
        (0..len).map(|n| (n * 31 % 251) as u8).collect()
    }

    fn kind<T: std::fmt::Debug>(result: io::Result<T>) -> io::ErrorKind {
        result.unwrap_err().kind()
    }

    #[test]
    fn what_was_written_is_read_back_and_a_read_ends_with_the_file() {
        let (_dir, mirror) = mirror();
        mirror.create(SEGMENT).unwrap();
        mirror.write_at(SEGMENT, 3, &[b"ab", b"", b"cde"]).unwrap();
        assert_eq!(mirror.len(SEGMENT).unwrap(), 8);
        let mut buf = [0xff; 16];
        assert_eq!(mirror.read_at(SEGMENT, 0, &mut buf).unwrap(), 8);
        assert_eq!(&buf[..9], b"\0\0\0abcde\xff");
        assert_eq!(mirror.read_at(SEGMENT, 8, &mut buf).unwrap(), 0);
        assert_eq!(mirror.read_at(SEGMENT, 100, &mut buf).unwrap(), 0);
    }

    #[test]
    fn more_buffers_than_one_system_call_takes_are_all_written() {
        let (_dir, mirror) = mirror();
        mirror.create(FileName::Journal).unwrap();
        let data = pattern(3 * MAX_IOVECS + 7);
        let parts: Vec<&[u8]> = data.chunks(1).collect();
        mirror.write_at(FileName::Journal, 0, &parts).unwrap();
        let mut back = vec![0; data.len()];
        assert_eq!(
            mirror.read_at(FileName::Journal, 0, &mut back).unwrap(),
            data.len()
        );
        assert_eq!(back, data);
    }

    #[test]
    fn creating_keeps_what_is_there_and_makes_private_directories() {
        let (dir, mirror) = mirror();
        mirror.create(SEGMENT).unwrap();
        mirror.write_at(SEGMENT, 0, &[b"x"]).unwrap();
        mirror.create(SEGMENT).unwrap();
        mirror.sync(SEGMENT).unwrap();
        mirror.sync_name(SEGMENT).unwrap();
        assert_eq!(mirror.len(SEGMENT).unwrap(), 1);
        let path = dir.path().join("segments/34/0000000000001234.seg");
        assert_eq!(path.metadata().unwrap().mode() & 0o777, 0o600);
        assert_eq!(
            dir.path().join("segments/34").metadata().unwrap().mode() & 0o777,
            0o700
        );
    }

    #[test]
    fn a_file_deleted_behind_our_back_is_not_found() {
        let (dir, mirror) = mirror();
        mirror.create(SEGMENT).unwrap();
        mirror.write_at(SEGMENT, 0, &[&[7; 512]]).unwrap();
        mirror.sync(SEGMENT).unwrap();
        std::fs::remove_file(dir.path().join(SEGMENT.path())).unwrap();
        let mut buf = [0; 8];
        assert_eq!(
            kind(mirror.read_at(SEGMENT, 0, &mut buf)),
            io::ErrorKind::NotFound
        );
        assert_eq!(
            kind(mirror.read_medium(SEGMENT, 0, &mut buf)),
            io::ErrorKind::NotFound
        );
        assert_eq!(
            kind(mirror.write_at(SEGMENT, 0, &[b"x"])),
            io::ErrorKind::NotFound
        );
        assert_eq!(kind(mirror.sync(SEGMENT)), io::ErrorKind::NotFound);
        assert_eq!(kind(mirror.len(SEGMENT)), io::ErrorKind::NotFound);
        mirror.create(SEGMENT).unwrap();
        assert_eq!(mirror.len(SEGMENT).unwrap(), 0);
    }

    #[test]
    fn a_file_replaced_behind_our_back_is_read_by_its_name() {
        let (dir, mirror) = mirror();
        mirror.create(SEGMENT).unwrap();
        mirror.write_at(SEGMENT, 0, &[b"old"]).unwrap();
        mirror.sync(SEGMENT).unwrap();
        std::fs::write(dir.path().join("other"), b"new").unwrap();
        std::fs::rename(dir.path().join("other"), dir.path().join(SEGMENT.path())).unwrap();
        let mut buf = [0; 3];
        mirror.read_at(SEGMENT, 0, &mut buf).unwrap();
        assert_eq!(&buf, b"new");
    }

    #[test]
    fn unsynced_writes_to_a_replaced_file_are_not_taken_for_synced() {
        let (dir, mirror) = mirror();
        mirror.create(SEGMENT).unwrap();
        mirror.write_at(SEGMENT, 0, &[b"unsynced"]).unwrap();
        std::fs::write(dir.path().join("other"), b"new").unwrap();
        std::fs::rename(dir.path().join("other"), dir.path().join(SEGMENT.path())).unwrap();
        assert_eq!(kind(mirror.sync(SEGMENT)), io::ErrorKind::NotFound);
        assert_eq!(kind(mirror.sync(SEGMENT)), io::ErrorKind::NotFound);
        mirror.create(SEGMENT).unwrap();
        mirror.sync(SEGMENT).unwrap();
    }

    #[test]
    fn a_moved_directory_is_still_the_mirror() {
        let outer = tempfile::tempdir().unwrap();
        let (before, after) = (outer.path().join("before"), outer.path().join("after"));
        std::fs::create_dir(&before).unwrap();
        let mirror = DirBacking::open(&before).unwrap();
        assert_eq!(mirror.ledger_dir(), Some(before.join("ledger")));
        std::fs::rename(&before, &after).unwrap();
        std::fs::create_dir(&before).unwrap();
        mirror.create(FileName::Index).unwrap();
        assert!(after.join("index").exists());
        assert!(!before.join("index").exists());
        assert_eq!(mirror.ledger_dir(), None);
    }

    #[test]
    fn reserving_keeps_the_length_and_punching_frees_blocks() {
        let (_dir, mirror) = mirror();
        mirror.create(SEGMENT).unwrap();
        mirror.reserve(SEGMENT, 0, 1 << 20).unwrap();
        assert_eq!(mirror.len(SEGMENT).unwrap(), 0);
        mirror.write_at(SEGMENT, 0, &[&pattern(1 << 20)]).unwrap();
        mirror.sync(SEGMENT).unwrap();
        let before = mirror.allocated(SEGMENT).unwrap();
        mirror.punch(SEGMENT, 4096, 512 << 10).unwrap();
        mirror.sync(SEGMENT).unwrap();
        assert!(mirror.allocated(SEGMENT).unwrap() <= before - (512 << 10));
        assert_eq!(mirror.len(SEGMENT).unwrap(), 1 << 20);
        let mut buf = [1; 4097];
        mirror.read_at(SEGMENT, 4095, &mut buf).unwrap();
        assert_eq!(buf[0], pattern(4096)[4095]);
        assert!(buf[1..].iter().all(|byte| *byte == 0));
        mirror.punch(SEGMENT, 0, 0).unwrap();
    }

    #[test]
    fn the_medium_holds_what_was_written_at_any_alignment() {
        let (_dir, mirror) = mirror();
        mirror.create(SEGMENT).unwrap();
        let data = pattern((2 << 20) + 5000);
        mirror.write_at(SEGMENT, 0, &[&data]).unwrap();
        let ends = [
            (0, data.len()),
            (1, 4096),
            (4095, 2),
            (4096, 4096),
            (8191, DIRECT_CHUNK + 1),
        ];
        for (offset, len) in ends.into_iter().chain([(2 << 20, 9000), (data.len(), 10)]) {
            let mut buf = vec![0; len];
            let got = mirror
                .read_medium(SEGMENT, offset as u64, &mut buf)
                .unwrap();
            assert_eq!(got, len.min(data.len() - offset), "{offset}+{len}");
            assert_eq!(buf[..got], data[offset..][..got], "{offset}+{len}");
        }
    }

    #[test]
    fn the_lock_excludes_a_second_holder_and_names_the_first() {
        let (dir, first) = mirror();
        let second = DirBacking::open(dir.path()).unwrap();
        assert!(first.lock().unwrap());
        assert!(first.lock().unwrap());
        assert!(!second.lock().unwrap());
        assert_eq!(second.lock_holder(), Some(std::process::id()));
        drop(first);
        assert_eq!(second.lock_holder(), None);
        assert!(second.lock().unwrap());
    }

    #[test]
    fn removing_is_idempotent() {
        let (_dir, mirror) = mirror();
        mirror.remove(SEGMENT).unwrap();
        mirror.sync_name(SEGMENT).unwrap();
        mirror.create(SEGMENT).unwrap();
        mirror.write_at(SEGMENT, 0, &[b"x"]).unwrap();
        mirror.remove(SEGMENT).unwrap();
        mirror.remove(SEGMENT).unwrap();
        mirror.sync_name(SEGMENT).unwrap();
        assert_eq!(kind(mirror.len(SEGMENT)), io::ErrorKind::NotFound);
        assert!(mirror.segments().unwrap().is_empty());
    }

    #[test]
    fn listing_segments_ignores_foreign_names() {
        let (dir, mirror) = mirror();
        assert_eq!(mirror.segments().unwrap(), []);
        for number in [0xffff, 2, 0x102, u64::MAX] {
            mirror.create(FileName::Segment(SegmentNo(number))).unwrap();
        }
        let top = dir.path().join("segments");
        for foreign in [
            "02/0000000000000002.seg~",
            "02/0000000000000003.seg",
            "02/000000000000A002.seg",
            "02/+00000000000002.seg",
            "02/102.seg",
            "lost+found",
        ] {
            std::fs::write(top.join(foreign), b"").unwrap();
        }
        let expected = [2, 0x102, 0xffff, u64::MAX].map(SegmentNo);
        assert_eq!(mirror.segments().unwrap(), expected);
    }

    #[test]
    fn a_read_with_a_deadline_reads_the_same_cached_or_not() {
        // On the disk of the temporary directory, and in memory, where that is to be had.
        let places = [std::env::temp_dir(), PathBuf::from("/dev/shm")];
        for place in places.iter().filter(|place| place.is_dir()) {
            let dir = tempfile::tempdir_in(place).unwrap();
            let mirror = DirBacking::open(dir.path()).unwrap();
            mirror.create(SEGMENT).unwrap();
            let bytes = pattern(3_000_001);
            mirror.write_at(SEGMENT, 0, &[&bytes]).unwrap();
            let long = Duration::from_secs(1000);
            let read = |offset: usize, len: usize| {
                let mut buf = vec![0xff; len];
                let got = mirror.read_at_within(SEGMENT, offset as u64, &mut buf, long);
                let end = bytes.len().min(offset + len);
                let want = bytes.get(offset..end).unwrap_or_default();
                assert_eq!(got.unwrap(), want.len());
                assert!(&buf[..want.len()] == want);
            };
            for (offset, len) in [
                (0, 0),
                (0, 1),
                (4095, 2),
                (0, 3_000_002),
                (1 << 20, 1 << 20),
            ] {
                read(offset, len);
                mirror.forget_cached(SEGMENT).unwrap();
                read(offset, len);
            }
            // A part of it is cached.
            mirror.forget_cached(SEGMENT).unwrap();
            read(100_000, 4096);
            read(0, 2_500_000);
            for offset in [3_000_000, 3_000_001, 3_000_002, 1 << 40] {
                read(offset, 10);
            }
            assert!(!mirror.stalled());
        }
    }

    #[test]
    fn a_read_with_a_deadline_fails_as_one_without() {
        let (dir, mirror) = mirror();
        let mut buf = [0; 8];
        let mut read = || mirror.read_at_within(SEGMENT, 0, &mut buf, Duration::from_secs(1000));
        assert_eq!(kind(read()), io::ErrorKind::NotFound);
        mirror.create(SEGMENT).unwrap();
        mirror.write_at(SEGMENT, 0, &[b"old"]).unwrap();
        mirror.sync(SEGMENT).unwrap();
        assert_eq!(read().unwrap(), 3);
        std::fs::remove_file(dir.path().join(SEGMENT.path())).unwrap();
        assert_eq!(kind(read()), io::ErrorKind::NotFound);
        mirror.create(SEGMENT).unwrap();
        assert_eq!(read().unwrap(), 0);
    }

    #[test]
    fn a_symbolic_link_is_not_followed() {
        let (dir, mirror) = mirror();
        std::os::unix::fs::symlink("/dev/null", dir.path().join("journal")).unwrap();
        assert!(mirror.len(FileName::Journal).is_err());
        assert!(mirror.create(FileName::Journal).is_err());
    }

    #[test]
    fn space_is_that_of_the_filesystem_below() {
        let (_dir, mirror) = mirror();
        let space = mirror.space().unwrap();
        assert!(space.total > 0 && space.available <= space.total);
    }
}
