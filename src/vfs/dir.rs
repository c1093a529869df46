//! Directories: from a name to its row, and reading a directory.
//!
//! An entry's key is (directory, cookie), and the cookie is a keyed hash of the name, shifted, plus
//! an index among the names that share that hash. So one range of at most 256 rows answers a
//! lookup, and the cookie is at the same time a place to go on reading from that stays right
//! whatever is created or deleted meanwhile.

use std::hash::Hasher;

use siphasher::sip::SipHasher13;

use crate::format::{DENTRY_COOKIE_FIRST, DentryRow, FileKind, Ino, Key, NAME_MAX};

use super::control::is_control;
use super::error::{Result, VfsError};
use super::filesystem::Vfs;
use super::types::DirItem;

/// Names that may share one hash.
const COLLISIONS: u64 = 256;
/// Entries that readdir fetches at once.
const BATCH: usize = 128;
const COOKIE_DOT: u64 = 1;
const COOKIE_DOT_DOT: u64 = 2;

/// A directory entry and where it is.
#[derive(Debug, Clone)]
pub(super) struct Found {
    pub(super) cookie: u64,
    pub(super) ino: Ino,
    pub(super) kind: FileKind,
}

/// Where a name is or could go.
#[derive(Debug, Clone)]
pub(super) enum Slot {
    Taken(Found),
    Free(u64),
}

/// Checks a name that is to be looked up, made or removed.
pub(super) fn check_name(name: &[u8]) -> Result<()> {
    match name {
        [] => Err(VfsError::NotFound),
        _ if name.len() > NAME_MAX => Err(VfsError::NameTooLong),
        _ if name.iter().any(|byte| matches!(byte, 0 | b'/')) => Err(VfsError::Invalid),
        _ => Ok(()),
    }
}

/// Whether the name is "." or "..", which are not stored.
pub(super) fn is_dots(name: &[u8]) -> bool {
    matches!(name, b"." | b"..")
}

impl Vfs {
    /// First of the cookies that this name can have.
    fn first_cookie(&self, name: &[u8]) -> u64 {
        let mut hasher = SipHasher13::new_with_key(&self.pool.hash_key());
        hasher.write(name);
        let hash = hasher.finish() & ((1 << self.options.name_hash_bits) - 1);
        // 0 would give cookies that belong to "." and "..".
        hash.max(1) * COLLISIONS
    }

    /// Where the name is in the directory, or where it could go. The caller holds the namespace.
    pub(super) fn slot(&self, parent: Ino, name: &[u8]) -> Result<Slot> {
        let first = self.first_cookie(name);
        let (from, to) = (
            Key::dentry(parent, first),
            Key::dentry(parent, first + COLLISIONS),
        );
        let mut free = first;
        for (key, value) in self.pool.scan(&from, &to, COLLISIONS as usize)? {
            let (_, cookie) = key.dentry_parts().map_err(Vfs::bad_row(parent))?;
            let entry = DentryRow::decode(&value).map_err(Vfs::bad_row(parent))?;
            if entry.name == name {
                return Ok(Slot::Taken(Found {
                    cookie,
                    ino: entry.ino,
                    kind: entry.kind,
                }));
            }
            if cookie == free {
                free += 1;
            }
        }
        // 256 names with one hash in one directory do not occur by chance.
        if free < first + COLLISIONS {
            Ok(Slot::Free(free))
        } else {
            Err(VfsError::NoSpace)
        }
    }

    /// The entry of that name, which must be there.
    pub(super) fn find(&self, parent: Ino, name: &[u8]) -> Result<Found> {
        match self.slot(parent, name)? {
            Slot::Taken(found) => Ok(found),
            Slot::Free(_) => {
                // Only now does it matter whether there is such a directory at all.
                self.directory(parent)?;
                Err(VfsError::NotFound)
            }
        }
    }

    /// Whether a directory has no entries. The caller holds the namespace.
    pub(super) fn is_empty(&self, ino: Ino) -> Result<bool> {
        let (from, to) = (Key::dentry(ino, 0), Key::dentry_end(ino));
        Ok(self.pool.scan(&from, &to, 1)?.is_empty())
    }

    /// Hands the entries after `cookie` to `sink` until it has enough: first "." and "..", then the
    /// names in the order of their hashes. Start with cookie 0. An entry is given once and only
    /// once if it is there all the time; no lock is held while `sink` runs.
    ///
    /// # Errors
    /// [`VfsError::NotDirectory`], [`VfsError::Stale`]; what the pool fails with.
    pub fn readdir(
        &self,
        ino: Ino,
        cookie: u64,
        sink: &mut dyn FnMut(DirItem<'_>) -> bool,
    ) -> Result<()> {
        if is_control(ino) {
            return self.read_control_dir(ino, cookie, sink);
        }
        let row = self.row(ino)?;
        if row.kind != FileKind::Directory {
            return Err(VfsError::NotDirectory);
        }
        let kind = FileKind::Directory;
        let dot = DirItem {
            ino,
            kind,
            name: b".",
            cookie: COOKIE_DOT,
        };
        let dot_dot = DirItem {
            ino: row.parent,
            kind,
            name: b"..",
            cookie: COOKIE_DOT_DOT,
        };
        for item in [dot, dot_dot] {
            if cookie < item.cookie && !sink(item) {
                return Ok(());
            }
        }
        let Some(mut next) = cookie.max(DENTRY_COOKIE_FIRST - 1).checked_add(1) else {
            return Ok(());
        };
        loop {
            let rows = {
                let _namespace = self.namespace.read();
                self.pool
                    .scan(&Key::dentry(ino, next), &Key::dentry_end(ino), BATCH)?
            };
            for (key, value) in &rows {
                let (_, cookie) = key.dentry_parts().map_err(Vfs::bad_row(ino))?;
                let entry = DentryRow::decode(value).map_err(Vfs::bad_row(ino))?;
                let (ino, kind, name) = (entry.ino, entry.kind, &entry.name);
                if !sink(DirItem {
                    ino,
                    kind,
                    name,
                    cookie,
                }) {
                    return Ok(());
                }
                next = cookie.saturating_add(1);
            }
            if rows.len() < BATCH {
                return Ok(());
            }
        }
    }
}
