//! Names of inodes, for reports: which path leads to this inode?

use super::commit::Pool;
use super::error::Result;
use crate::format::{DentryRow, FileKind, Ino, Key, Table};

/// Directories in a path at most: a loop in a damaged tree must end.
const DEPTH_MAX: usize = 4096;
/// Entries looked at in one go.
const STEP: usize = 1024;

impl Pool {
    /// A path from the root of the mount to the inode, without a leading slash and empty for the
    /// root; none if it has no name. The inode's parent is a hint for files with several links: if
    /// it does not hold, all directories are searched.
    ///
    /// # Errors
    /// As [`Pool::get`].
    pub fn path_of(&self, ino: Ino) -> Result<Option<Vec<u8>>> {
        self.path_within(ino, &mut { usize::MAX })
    }

    /// As [`Pool::path_of`], but looks at `rows_left` entries at most, and counts that down; none
    /// too if they do not suffice.
    pub(super) fn path_within(&self, ino: Ino, rows_left: &mut usize) -> Result<Option<Vec<u8>>> {
        let mut names = Vec::new();
        let mut at = ino;
        while at != Ino::ROOT {
            let Some(row) = self.inode(at)? else {
                return Ok(None);
            };
            let in_parent = self.find_entry(
                &Key::dentry(row.parent, 0),
                &Key::dentry_end(row.parent),
                at,
                rows_left,
            )?;
            let found = match in_parent {
                None if row.kind != FileKind::Directory && row.nlink > 0 => self.find_entry(
                    &Key::table_start(Table::Dentry),
                    &Key::table_end(Table::Dentry),
                    at,
                    rows_left,
                )?,
                found => found,
            };
            let Some((parent, name)) = found else {
                return Ok(None);
            };
            names.push(name);
            at = parent;
            if names.len() > DEPTH_MAX {
                return Ok(None);
            }
        }
        names.reverse();
        Ok(Some(names.join(&b'/')))
    }

    fn find_entry(
        &self,
        from: &Key,
        to: &Key,
        ino: Ino,
        rows_left: &mut usize,
    ) -> Result<Option<(Ino, Vec<u8>)>> {
        let mut from = from.clone();
        loop {
            let rows = self.scan(&from, to, STEP.min(*rows_left))?;
            *rows_left -= rows.len();
            for (key, value) in &rows {
                let entry = DentryRow::decode(value)?;
                if entry.ino == ino {
                    return Ok(Some((key.dentry_parts()?.0, entry.name)));
                }
            }
            let Some((last, _)) = rows.last() else {
                return Ok(None);
            };
            let (parent, cookie) = last.dentry_parts()?;
            from = match cookie.checked_add(1) {
                Some(next) => Key::dentry(parent, next),
                None => Key::dentry_end(parent),
            };
        }
    }
}
