//! `readdirplus`: names together with attributes and references.
//!
//! Every entry that the kernel gets carries one reference that the vfs counted, and no other: one
//! that did not fit is forgotten again, and "." and ".." carry none, as the kernel ignores theirs.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;

use fuser::{Generation, INodeNo, ReplyDirectoryPlus};
use nix::errno::Errno;

use super::convert;
use super::reply::{Context, NOT_CACHED, lifetime};
use crate::format::{FileKind, Ino};
use crate::vfs::{self, Vfs};

/// Entries looked at in one go.
const BATCH: usize = 128;

/// A directory entry on its way into a `readdirplus` reply.
struct Entry {
    ino: Ino,
    kind: FileKind,
    name: Vec<u8>,
    cookie: u64,
}

/// Fills a `readdirplus` reply with what follows `cookie` in directory `ino`. An inode that is gone
/// by the time its reference is given back goes to `reap`.
pub(super) fn fill_plus(
    vfs: &Vfs,
    ino: Ino,
    mut cookie: u64,
    reply: &mut ReplyDirectoryPlus,
    reap: &dyn Fn(Ino),
) -> vfs::Result<()> {
    let mut batch: Vec<Entry> = Vec::with_capacity(BATCH);
    loop {
        // Looked at first and referenced afterwards: the vfs may hold the directory's lock
        // while it calls the sink.
        batch.clear();
        vfs.readdir(ino, cookie, &mut |item| {
            if batch.len() == BATCH {
                return false;
            }
            batch.push(Entry {
                ino: item.ino,
                kind: item.kind,
                name: item.name.to_vec(),
                cookie: item.cookie,
            });
            true
        })?;
        for entry in &batch {
            if !add_plus(vfs, entry, reply, reap) {
                return Ok(());
            }
        }
        match batch.last() {
            Some(last) if batch.len() == BATCH => cookie = last.cookie,
            _ => return Ok(()),
        }
    }
}

/// Adds one entry; false if it did not fit.
fn add_plus(vfs: &Vfs, entry: &Entry, reply: &mut ReplyDirectoryPlus, reap: &dyn Fn(Ino)) -> bool {
    let name = OsStr::from_bytes(&entry.name);
    let dots = matches!(entry.name.as_slice(), b"." | b"..");
    let mut referenced = false;
    let (attr, generation, lifetime) = match vfs.reference(entry.ino) {
        // The kernel looks at nothing but the name of these two.
        Ok(attr) => {
            referenced = true;
            (
                convert::file_attr(&attr),
                convert::generation(&attr),
                lifetime(&attr),
            )
        }
        Err(error) if gone(error.errno()) && !vfs::is_control(entry.ino) => return true,
        Err(error) => {
            // One unreadable inode must not hide the rest of its directory: its name is
            // shown, and whoever asks for more gets the error.
            Context("readdirplus", entry.ino).log(&error);
            (
                convert::placeholder(entry.ino, entry.kind),
                Generation(0),
                NOT_CACHED,
            )
        }
    };
    let ino = INodeNo(entry.ino.0);
    let full = reply.add(ino, entry.cookie, name, &lifetime, &attr, generation);
    if referenced && (full || dots) && vfs.release(entry.ino, 1) {
        reap(entry.ino);
    }
    !full
}

/// Whether the inode was deleted after its name was read. Reports of the control directory answer
/// the same way, as they come to be only when they are looked up; their names are shown.
fn gone(errno: Errno) -> bool {
    matches!(errno, Errno::ENOENT | Errno::ESTALE)
}
