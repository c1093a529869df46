//! rename(2) and renameat2(2): moving, replacing and exchanging names.
//!
//! The namespace is held exclusively, so the tree stands still while it is checked; one transaction
//! holds both directories, the moved inode and what it replaced.

use crate::format::{DentryRow, FileKind, Ino};
use crate::pool::Intent;

use super::change::Change;
use super::dir::{Found, Slot, is_dots};
use super::error::{Result, VfsError};
use super::filesystem::Vfs;
use super::namei::{check_old_name, let_others_in};
use super::orphan::Fate;
use super::types::Caller;

const FLAGS: u32 = libc::RENAME_NOREPLACE | libc::RENAME_EXCHANGE | libc::RENAME_WHITEOUT;

/// One side of a rename: a name, and where it is.
#[derive(Debug, Clone, Copy)]
struct Place<'a> {
    parent: Ino,
    name: &'a [u8],
}

impl Place<'_> {
    fn entry(self, ino: Ino, kind: FileKind) -> DentryRow {
        DentryRow {
            ino,
            kind,
            name: self.name.to_vec(),
        }
    }
}

impl Vfs {
    /// Renames an entry. `flags` are RENAME_NOREPLACE, RENAME_EXCHANGE and RENAME_WHITEOUT.
    ///
    /// # Errors
    /// As renameat2(2).
    pub fn rename(
        &self,
        caller: &Caller,
        parent: Ino,
        name: &[u8],
        new_parent: Ino,
        new_name: &[u8],
        flags: u32,
    ) -> Result<()> {
        check_flags(flags)?;
        for (parent, name) in [(parent, name), (new_parent, new_name)] {
            check_old_name(parent, name)?;
            if is_dots(name) {
                return Err(VfsError::Invalid);
            }
        }
        let (from, to) = (
            Place { parent, name },
            Place {
                parent: new_parent,
                name: new_name,
            },
        );
        let whiteout = flags & libc::RENAME_WHITEOUT != 0;
        self.pool.begin(if whiteout {
            Intent::Grow
        } else {
            Intent::Shrink
        })?;
        if flags & libc::RENAME_EXCHANGE != 0 {
            self.exchange(from, to)?;
            return self.settle(true);
        }
        let replace = flags & libc::RENAME_NOREPLACE == 0;
        let whiteout = whiteout.then_some(caller);
        if let Some((ino, fate)) = self.move_entry(from, to, replace, whiteout)? {
            self.after_drop(ino, fate)?;
        }
        self.settle(true)
    }

    /// Moves `from` to `to` and says what became of the inode that was there.
    fn move_entry(
        &self,
        from: Place<'_>,
        to: Place<'_>,
        replace: bool,
        whiteout: Option<&Caller>,
    ) -> Result<Option<(Ino, Fate)>> {
        self.with_both(from, to, || self.move_locked(from, to, replace, whiteout))
    }

    /// Runs `work` with the namespace and the stripes of all that it may change.
    fn with_both<T>(
        &self,
        from: Place<'_>,
        to: Place<'_>,
        work: impl FnOnce() -> Result<T>,
    ) -> Result<T> {
        loop {
            let named = self.inodes_named(from, to)?;
            let_others_in();
            let mut inodes = vec![from.parent, to.parent, named.0];
            inodes.extend(named.1);
            let _stripes = self.pool.lock_exclusive_many(&inodes);
            let _namespace = self.namespace.write();
            // Else others came first, and other inodes have these names now.
            if self.inodes_at(from, to)? == named {
                return work();
            }
        }
    }

    /// The inodes that have the two names now; the second name may be free.
    fn inodes_named(&self, from: Place<'_>, to: Place<'_>) -> Result<(Ino, Option<Ino>)> {
        let _namespace = self.namespace.read();
        self.inodes_at(from, to)
    }

    /// As [`Vfs::inodes_named`] for who holds the namespace.
    fn inodes_at(&self, from: Place<'_>, to: Place<'_>) -> Result<(Ino, Option<Ino>)> {
        let old = self.find(from.parent, from.name)?.ino;
        Ok(match self.slot(to.parent, to.name)? {
            Slot::Taken(target) => (old, Some(target.ino)),
            Slot::Free(_) => (old, None),
        })
    }

    /// Moves an entry. The caller holds the namespace and all stripes.
    fn move_locked(
        &self,
        from: Place<'_>,
        to: Place<'_>,
        replace: bool,
        whiteout: Option<&Caller>,
    ) -> Result<Option<(Ino, Fate)>> {
        let old = self.find(from.parent, from.name)?;
        self.directory(to.parent)?;
        let (cookie, target) = match self.slot(to.parent, to.name)? {
            Slot::Taken(_) if !replace => return Err(VfsError::Exists),
            // Two names of one inode: rename(2) does nothing then.
            Slot::Taken(target) if target.ino == old.ino => return Ok(None),
            Slot::Taken(target) => (target.cookie, Some(target)),
            Slot::Free(cookie) => (cookie, None),
        };
        self.check_ancestry(&old, from.parent, to.parent)?;
        if let Some(target) = &target {
            self.check_replace(&old, target)?;
        }
        let mut change = Change::new(self);
        match whiteout {
            Some(caller) => self.put_whiteout(&mut change, caller, from, &old)?,
            None => change.remove_entry(from.parent, &old)?,
        }
        let entry = to.entry(old.ino, old.kind);
        match &target {
            Some(_) => {
                change.put_entry(to.parent, cookie, &entry);
                change.touch_directory(to.parent)?;
            }
            None => change.add_entry(to.parent, cookie, &entry)?,
        }
        move_inode(&mut change, &old, from.parent, to.parent, target.is_some())?;
        let fate = match &target {
            Some(target) => Some((target.ino, self.drop_link(&mut change, target.ino)?)),
            None => None,
        };
        change.commit()?;
        Ok(fate)
    }

    /// Exchanges two entries, which must both be there.
    fn exchange(&self, from: Place<'_>, to: Place<'_>) -> Result<()> {
        self.with_both(from, to, || self.exchange_locked(from, to))
    }

    /// Exchanges two entries. The caller holds the namespace and all stripes.
    fn exchange_locked(&self, from: Place<'_>, to: Place<'_>) -> Result<()> {
        let a = self.find(from.parent, from.name)?;
        let b = self.find(to.parent, to.name)?;
        if a.ino == b.ino {
            return Ok(());
        }
        self.check_ancestry(&a, from.parent, to.parent)?;
        self.check_ancestry(&b, to.parent, from.parent)?;
        let mut change = Change::new(self);
        change.put_entry(from.parent, a.cookie, &from.entry(b.ino, b.kind));
        change.put_entry(to.parent, b.cookie, &to.entry(a.ino, a.kind));
        change.touch_directory(from.parent)?;
        change.touch_directory(to.parent)?;
        let both = a.kind == FileKind::Directory && b.kind == FileKind::Directory;
        for (moved, old_parent, new_parent) in
            [(&a, from.parent, to.parent), (&b, to.parent, from.parent)]
        {
            if both {
                // Each directory gains one and loses one; counting up first could hit the limit.
                reparent(&mut change, moved.ino, new_parent)?;
            } else {
                move_inode(&mut change, moved, old_parent, new_parent, false)?;
            }
        }
        change.commit()
    }

    /// A directory must not become its own descendant.
    fn check_ancestry(&self, moved: &Found, old_parent: Ino, new_parent: Ino) -> Result<()> {
        if moved.kind != FileKind::Directory || old_parent == new_parent {
            return Ok(());
        }
        let mut at = new_parent;
        loop {
            if at == moved.ino {
                return Err(VfsError::Invalid);
            }
            if at == Ino::ROOT {
                return Ok(());
            }
            at = self.row(at)?.parent;
        }
    }

    /// Whether `old` may take the place of `target`.
    fn check_replace(&self, old: &Found, target: &Found) -> Result<()> {
        match (old.kind, target.kind) {
            (FileKind::Directory, FileKind::Directory) => {
                if self.is_empty(target.ino)? {
                    Ok(())
                } else {
                    Err(VfsError::NotEmpty)
                }
            }
            (FileKind::Directory, _) => Err(VfsError::NotDirectory),
            (_, FileKind::Directory) => Err(VfsError::IsDirectory),
            _ => Ok(()),
        }
    }

    /// Leaves a whiteout, as overlay filesystems use it, in place of the moved entry: a character
    /// device 0:0.
    fn put_whiteout(
        &self,
        change: &mut Change<'_>,
        caller: &Caller,
        from: Place<'_>,
        old: &Found,
    ) -> Result<()> {
        let ino = self.pool.alloc_ino();
        let kind = FileKind::CharDevice;
        let ids = (caller.uid, caller.gid);
        let row = self.new_row(change.now, kind, 0, ids, from.parent);
        change.create(ino, &row);
        change.put_entry(from.parent, old.cookie, &from.entry(ino, kind));
        change.touch_directory(from.parent)?;
        Ok(())
    }
}

fn check_flags(flags: u32) -> Result<()> {
    let exchange = flags & libc::RENAME_EXCHANGE != 0;
    if flags & !FLAGS != 0 || (exchange && flags != libc::RENAME_EXCHANGE) {
        return Err(VfsError::Invalid);
    }
    Ok(())
}

/// Sets parent and ctime of an inode that was moved.
fn reparent(change: &mut Change<'_>, ino: Ino, new_parent: Ino) -> Result<()> {
    let now = change.now;
    let row = change.row(ino)?;
    (row.parent, row.ctime) = (new_parent, now);
    Ok(())
}

/// As [`reparent`], and counts a directory out of its old parent and into the new one, unless it
/// `replaces` a directory that was counted there.
fn move_inode(
    change: &mut Change<'_>,
    moved: &Found,
    old_parent: Ino,
    new_parent: Ino,
    replaces: bool,
) -> Result<()> {
    if moved.kind == FileKind::Directory {
        change.remove_subdirectory(old_parent)?;
        if !replaces {
            change.add_subdirectory(new_parent)?;
        }
    }
    reparent(change, moved.ino, new_parent)
}
