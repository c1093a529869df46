//! The filesystem object: construction, shutdown, and what the other files share: reading inode
//! rows, and taking a file's lock in a state in which its content may be changed.

use std::collections::HashSet;
use std::sync::Arc;

use tracing_mutex::parkinglot::{Mutex, RwLock};

use crate::format::{BLOCK, BLOCK_U64, FileKind, FormatError, Ino, InodeRow, NAME_MAX};
use crate::pool::{CommitMode, Intent, Pool};

use super::atime::Atimes;
use super::control::{Control, is_control};
use super::error::{Result, VfsError};
use super::metrics::Metrics;
use super::refs::Refs;
use super::types::{Attr, NAME_HASH_BITS, StatFs, VfsOptions};

/// A mounted filesystem, without the mount: every operation that a kernel may ask for.
///
/// All methods may be called from any thread at once.
#[derive(Debug)]
pub struct Vfs {
    pub(super) pool: Arc<Pool>,
    pub(super) options: VfsOptions,
    pub(super) namespace: RwLock<()>,
    pub(super) refs: Refs,
    /// Files whose extents beyond the end are still being dropped; see `orphan`.
    pub(super) draining: Mutex<HashSet<Ino>>,
    pub(super) control: Control,
    pub(super) metrics: Metrics,
    pub(super) atimes: Atimes,
}

impl Vfs {
    /// Takes a pool into use: makes the root directory of a new one and finishes the deletions and
    /// truncations that a crash interrupted.
    ///
    /// # Errors
    /// [`VfsError::Invalid`] for options out of range; what the pool fails with.
    pub fn new(pool: Arc<Pool>, options: VfsOptions) -> Result<Vfs> {
        if options.name_hash_bits > NAME_HASH_BITS {
            return Err(VfsError::Invalid);
        }
        let vfs = Vfs {
            pool,
            options,
            namespace: RwLock::new(()),
            refs: Refs::new(),
            draining: Mutex::default(),
            control: Control::default(),
            metrics: Metrics::default(),
            atimes: Atimes::default(),
        };
        vfs.make_root()?;
        if !vfs.pool.read_only() {
            let cleaned = vfs.clean_orphans()?;
            vfs.pool.note_orphans(cleaned);
        }
        Ok(vfs)
    }

    /// The pool below.
    pub fn pool(&self) -> &Arc<Pool> {
        &self.pool
    }

    fn make_root(&self) -> Result<()> {
        if self.pool.read_only() || self.pool.inode(Ino::ROOT)?.is_some() {
            return Ok(());
        }
        self.pool.begin(Intent::Grow)?;
        let mut change = super::change::Change::new(self);
        change.create(Ino::ROOT, &self.empty_root());
        change.commit()
    }

    fn empty_root(&self) -> InodeRow {
        let kind = FileKind::Directory;
        InodeRow {
            nlink: 2,
            ..self.new_row(self.pool.now(), kind, 0o755, (0, 0), Ino::ROOT)
        }
    }

    /// Makes everything committed so far durable: for fsync and fdatasync, of files and
    /// directories.
    ///
    /// # Errors
    /// What the pool fails with.
    pub fn fsync(&self, _ino: Ino, _data_only: bool) -> Result<()> {
        let _serving = self.pool.load_of_applications().serve();
        // History is one journal: there is no way, and no need, to sync one file of it.
        Ok(self.pool.sync()?)
    }

    /// Ends a change, after its locks: waits for the disks where the change must be durable before
    /// it is answered. `names` says whether a directory's names changed.
    pub(super) fn settle(&self, names: bool) -> Result<()> {
        if names && self.options.sync_names {
            return Ok(self.pool.sync()?);
        }
        Ok(self.pool.acknowledge()?)
    }

    /// Whether changes wait for the disks: of names, or of anything.
    pub fn waits_for_syncs(&self, names: bool) -> bool {
        self.pool.commit_mode() == CommitMode::Always || names && self.options.sync_names
    }

    /// Room in the filesystem.
    ///
    /// # Errors
    /// What the pool fails with.
    pub fn statfs(&self) -> Result<StatFs> {
        let space = self.pool.space()?;
        let available = space.available / BLOCK_U64;
        // Inodes have no room of their own: as many can be made as blocks are free, about.
        Ok(StatFs {
            block_size: BLOCK as u32,
            blocks: space.total / BLOCK_U64,
            free: available,
            available,
            files: space.inodes.saturating_add(available),
            files_free: available,
            name_max: NAME_MAX as u32,
        })
    }

    /// Ends the filesystem at unmount: deletes what has no name, makes everything durable and
    /// closes the pool. No operation may be running or follow.
    ///
    /// # Errors
    /// What the pool fails with.
    pub fn close(&self) -> Result<()> {
        self.refs.clear();
        if !self.pool.read_only() {
            self.store_atimes();
            self.clean_orphans()?;
        }
        Ok(self.pool.close()?)
    }

    /// Attributes of an inode.
    ///
    /// # Errors
    /// [`VfsError::Stale`] if there is no such inode.
    pub fn getattr(&self, ino: Ino) -> Result<Attr> {
        if is_control(ino) {
            return self.control_attr(ino);
        }
        Ok(self.attr_of(ino, &self.row(ino)?))
    }

    /// Directory that names the inode: exact for directories, for files with several links any one.
    ///
    /// # Errors
    /// [`VfsError::Stale`] if there is no such inode.
    pub fn parent(&self, ino: Ino) -> Result<Ino> {
        if is_control(ino) {
            return Ok(Vfs::control_parent(ino));
        }
        Ok(self.row(ino)?.parent)
    }

    /// Attributes as stat(2) gives them: promised space counts as taken.
    pub(super) fn attr_of(&self, ino: Ino, row: &InodeRow) -> Attr {
        let promised = match row.kind {
            FileKind::Regular => self.pool.promised_to(ino),
            _ => 0,
        };
        Attr {
            atime: self.atimes.newest(ino, row.atime),
            blocks: row.allocated.saturating_add(promised).div_ceil(512),
            ..Attr::of(ino, row)
        }
    }

    /// The row of an inode, if there is one.
    pub(super) fn inode(&self, ino: Ino) -> Result<Option<InodeRow>> {
        match self.pool.inode(ino)? {
            // A new pool that is mounted read-only: nobody has made its root directory.
            None if ino == Ino::ROOT => Ok(Some(self.empty_root())),
            row => Ok(row),
        }
    }

    /// The row of an inode, which must be there.
    pub(super) fn row(&self, ino: Ino) -> Result<InodeRow> {
        self.inode(ino)?.ok_or(VfsError::Stale)
    }

    /// The row of a regular file.
    pub(super) fn regular(&self, ino: Ino) -> Result<InodeRow> {
        let row = self.row(ino)?;
        match row.kind {
            FileKind::Regular => Ok(row),
            FileKind::Directory => Err(VfsError::IsDirectory),
            FileKind::Symlink
            | FileKind::Fifo
            | FileKind::Socket
            | FileKind::CharDevice
            | FileKind::BlockDevice => Err(VfsError::Invalid),
        }
    }

    /// Gets room for a change of a file's content or size and locks the file, with no truncation
    /// left half done: until its last chunk the old bytes beyond the end are still mapped, and a
    /// file that grew would show them.
    pub(super) fn lock_content(&self, ino: Ino, intent: Intent) -> Result<impl Sized + '_> {
        loop {
            self.pool.begin(intent)?;
            let guard = self.pool.lock_exclusive(ino);
            if !self.is_draining(ino) {
                return Ok(guard);
            }
            drop(guard);
            self.drain(ino)?;
        }
    }

    /// As [`Vfs::lock_content`] for two files, which may be the same.
    pub(super) fn lock_content_pair(
        &self,
        a: Ino,
        b: Ino,
        intent: Intent,
    ) -> Result<impl Sized + '_> {
        loop {
            self.pool.begin(intent)?;
            let guard = self.pool.lock_exclusive_pair(a, b);
            let Some(busy) = [a, b].into_iter().find(|ino| self.is_draining(*ino)) else {
                return Ok(guard);
            };
            drop(guard);
            self.drain(busy)?;
        }
    }

    pub(super) fn is_draining(&self, ino: Ino) -> bool {
        self.draining.lock().contains(&ino)
    }

    /// Error for a row of this inode that does not decode.
    pub(super) fn bad_row(ino: Ino) -> impl Fn(FormatError) -> VfsError {
        move |source| VfsError::Row { ino, source }
    }
}
