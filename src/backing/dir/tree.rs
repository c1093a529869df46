//! What lies below a mirror's directory: opened through its descriptor, and kept open.
//!
//! Invariants:
//! - no descriptor is opened, asked or closed under the lock of the open files: each of these may
//!   hang with the filesystem below, and readers that find their file open must not hang with it;
//! - a descriptor whose file was deleted is not handed out.
//!
//! Shared with the reader threads, which may hold it for longer than the mirror is in use.

use std::fs::File;
use std::io;
use std::path::Path;
use std::sync::Arc;

use nix::errno::Errno;
use nix::fcntl::{OFlag, openat};
use nix::sys::stat::Mode;
use tracing_mutex::parkinglot::Mutex;

use super::super::FileName;
use super::handle::{Handle, Handles, Waits};

/// Segment descriptors kept open.
const OPEN_SEGMENTS: usize = 512;

/// A mirror's directory and the open files in it.
#[derive(Debug)]
pub(super) struct Tree {
    pub(super) root: File,
    handles: Mutex<Handles>,
}

impl Tree {
    pub(super) fn new(root: File) -> Tree {
        Tree {
            root,
            handles: Mutex::new(Handles::with_limit(OPEN_SEGMENTS)),
        }
    }

    /// Opens a path below the directory. Symbolic links are refused: what lies behind one may be
    /// on another filesystem, where syncing the name would mean nothing.
    pub(super) fn open_at(&self, path: &Path, flags: OFlag) -> io::Result<File> {
        let flags = flags | OFlag::O_CLOEXEC | OFlag::O_NOFOLLOW;
        loop {
            match openat(&self.root, path, flags, Mode::S_IRUSR | Mode::S_IWUSR) {
                Ok(fd) => return Ok(File::from(fd)),
                Err(Errno::EINTR) => {}
                Err(Errno::EMFILE | Errno::ENFILE) if self.close_idle() > 0 => {}
                Err(errno) => return Err(errno.into()),
            }
        }
    }

    /// Closes some files and says how many.
    fn close_idle(&self) -> usize {
        let closed = self.handles.lock().evict(64);
        closed.len()
    }

    pub(super) fn open_dir(&self, path: &Path) -> io::Result<File> {
        self.open_at(path, OFlag::O_RDONLY | OFlag::O_DIRECTORY)
    }

    /// Opens for reading and writing, or for reading alone where that is all there is: a
    /// filesystem that went read-only over an error can still serve good copies.
    fn open_file(&self, file: FileName) -> io::Result<Handle> {
        let path = file.path();
        let (file, read_only) = match self.open_at(&path, OFlag::O_RDWR) {
            Ok(file) => (file, None),
            Err(error) => match error.raw_os_error().map(Errno::from_raw) {
                Some(errno @ (Errno::EROFS | Errno::EACCES | Errno::EPERM)) => {
                    (self.open_at(&path, OFlag::O_RDONLY)?, Some(errno))
                }
                _ => return Err(error),
            },
        };
        Ok(Handle::new(file, read_only))
    }

    /// The open file of that name. If its file was deleted it is opened again by name, except
    /// when it held unsynced writes: those are lost, so it stays NotFound until it is created.
    pub(super) fn handle(&self, file: FileName) -> io::Result<Arc<Handle>> {
        if let Some(handle) = self.opened(file) {
            if !handle.is_gone()? {
                return Ok(handle);
            }
            if handle.is_dirty() {
                return Err(Errno::ENOENT.into());
            }
            self.forget(file);
        }
        let handle = Arc::new(self.open_file(file)?);
        let mut handles = self.handles.lock();
        // Another thread may have opened it meanwhile, and have written: keep that one.
        if let Some(other) = handles.get(file) {
            drop(handles);
            return Ok(other);
        }
        let closed = handles.insert(file, Arc::clone(&handle));
        drop(handles);
        drop(closed);
        Ok(handle)
    }

    /// The open file of that name, if it is open. It may have been deleted.
    pub(super) fn opened(&self, file: FileName) -> Option<Arc<Handle>> {
        self.handles.lock().get(file)
    }

    /// As [`Tree::opened`], but only what can be asked and closed without waiting.
    pub(super) fn opened_nearby(&self, file: FileName) -> Option<Arc<Handle>> {
        let mut handles = self.handles.lock();
        handles
            .get(file)
            .filter(|handle| handle.waits != Waits::Anything)
    }

    pub(super) fn forget(&self, file: FileName) {
        let closed = self.handles.lock().remove(file);
        drop(closed);
    }

    pub(super) fn forget_all(&self) {
        let none = Handles::with_limit(OPEN_SEGMENTS);
        let closed = std::mem::replace(&mut *self.handles.lock(), none);
        drop(closed);
    }

    /// Has the file opened anew if the one that is open was deleted.
    pub(super) fn forget_deleted(&self, file: FileName) -> io::Result<()> {
        let Some(old) = self.opened(file) else {
            return Ok(());
        };
        if old.is_gone()? {
            let mut handles = self.handles.lock();
            let same = handles.get(file).is_some_and(|now| Arc::ptr_eq(&now, &old));
            let closed = if same { handles.remove(file) } else { None };
            drop(handles);
            drop(closed);
        }
        Ok(())
    }
}
