//! Access times: who reads is noted in memory, and stored when the kernel forgets the inode, when
//! many are noted, or at unmount.
//!
//! The kernel does not keep access times for FUSE, and answers what it has cached without a
//! message; so a read counts when it reaches us. Nothing else depends on them, and a crash may lose
//! them, as with lazytime. A mount that changes nothing else leaves no trace on the disks: it does
//! not store them either, which is what lets a mirror that was away meanwhile stay current.

use std::collections::HashMap;

use tracing_mutex::parkinglot::Mutex;

use crate::format::{FileKind, Ino, InodeRow, Timestamp};
use crate::pool::Intent;

use super::change::Change;
use super::control::is_control;
use super::error::Result;
use super::filesystem::Vfs;
use super::types::AtimePolicy;

/// Most access times noted at a time.
const NOTED_MAX: usize = 4096;
/// Under relatime an access time that old is renewed, in seconds.
const RENEWED_AFTER: i64 = 24 * 60 * 60;

/// Access times that are newer than those in the rows.
#[derive(Debug, Default)]
pub(super) struct Atimes {
    noted: Mutex<HashMap<Ino, Timestamp>>,
}

impl Atimes {
    /// The access time of an inode, given that of its row.
    pub(super) fn newest(&self, ino: Ino, stored: Timestamp) -> Timestamp {
        let noted = self.noted.lock().get(&ino).copied();
        noted.map_or(stored, |noted| noted.max(stored))
    }

    /// Somebody has set the time.
    pub(super) fn set(&self, ino: Ino) {
        self.noted.lock().remove(&ino);
    }
}

impl Vfs {
    /// Notes that somebody has read the file, directory or symbolic link, if the mount keeps access
    /// times and this one is to be renewed. True once each time that so many are noted that
    /// [`Vfs::store_atimes`] is wanted, which may wait for the disks.
    #[must_use]
    pub fn accessed(&self, ino: Ino) -> bool {
        if self.options.atime == AtimePolicy::Never || is_control(ino) || self.pool.read_only() {
            return false;
        }
        let now = self.pool.now();
        match self.inode(ino) {
            Ok(Some(row)) if self.is_due(ino, &row, now) => {
                let mut noted = self.atimes.noted.lock();
                // One that is noted already makes them no more.
                noted.insert(ino, now).is_none() && noted.len().is_multiple_of(NOTED_MAX)
            }
            _ => false,
        }
    }

    /// Whether an access time is noted for the inode.
    pub fn has_atime(&self, ino: Ino) -> bool {
        self.atimes.noted.lock().contains_key(&ino)
    }

    fn is_due(&self, ino: Ino, row: &InodeRow, now: Timestamp) -> bool {
        if row.kind == FileKind::Directory && !self.options.diratime {
            return false;
        }
        let atime = self.atimes.newest(ino, row.atime);
        match self.options.atime {
            AtimePolicy::Never => false,
            AtimePolicy::Relative => {
                atime <= row.mtime
                    || atime <= row.ctime
                    || now.seconds.saturating_sub(atime.seconds) >= RENEWED_AFTER
            }
            AtimePolicy::Strict => true,
        }
    }

    /// Stores what is noted for all inodes.
    pub fn store_atimes(&self) {
        let noted: Vec<_> = self.atimes.noted.lock().keys().copied().collect();
        let stores = self.pool.is_active();
        for ino in noted {
            if stores {
                self.store_atime(ino);
            } else {
                self.atimes.set(ino);
            }
        }
    }

    /// Stores what is noted for an inode, unless this mount has changed nothing yet.
    pub fn store_atime(&self, ino: Ino) {
        if self.pool.is_active()
            && self.has_atime(ino)
            && let Err(error) = self.put_atime(ino)
        {
            log::debug!("the access time of inode {ino} is not stored: {error}");
        }
    }

    fn put_atime(&self, ino: Ino) -> Result<()> {
        self.pool.begin(Intent::Shrink)?;
        let _stripe = self.pool.lock_exclusive(ino);
        let noted = self.atimes.noted.lock().remove(&ino);
        let (Some(noted), Some(row)) = (noted, self.inode(ino)?) else {
            return Ok(());
        };
        if row.nlink == 0 || row.atime >= noted {
            return Ok(());
        }
        let mut change = Change::new(self);
        change.row(ino)?.atime = noted;
        change.commit()
    }
}
