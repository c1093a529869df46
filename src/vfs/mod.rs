//! POSIX meaning on the pool's rows and extents: inodes, directories, file content, extended
//! attributes, deleted files that are still open, and the `.mendfs` control directory.
//!
//! Nothing here knows a kernel protocol: [`Vfs`] takes and gives plain types, so that a second
//! transport fits beside the first. The kernel checks permissions, sticky bits and limits of the
//! process (the mount has `default_permissions`); the vfs does what the kernel leaves to a
//! filesystem. Everything is addressed by inode number. There are no open files here: an inode
//! without a name lives until the kernel's last reference to its number is forgotten, and what it
//! needs for that is on disk (its orphan row).
//!
//! # One operation is one transaction
//!
//! Each changing operation checks everything first, then puts all its rows, the times of the
//! parents included, into one [`Txn`](crate::index::Txn). File content is stored before the commit
//! that refers to it. So a crash leaves the result of the first operations of history and never
//! half of one. Work that has no bound is done in chunks behind a first transaction that already
//! shows the result: deleting a large file takes its name and leaves an orphan row, truncating one
//! sets the size and leaves an orphan row; the mount finishes what a crash left of either. The one
//! exception is punching or zeroing a range of more than `orphan::CHUNK_ROWS`
//! extents: it goes front to back, and a crash may leave its first part done. Promises of space,
//! which change no content, have transactions of their own.
//!
//! # Locks
//!
//! The namespace lock is exclusive for whatever changes a directory and shared for lookup and
//! readdir. Before it, or without it, the pool's striped inode locks: every change of an inode row
//! is read, changed and committed under that inode's stripe, held exclusively; content is read
//! under it, held shared. Attributes are read without it, since a row is one value. Order: stripes,
//! several of them only in one call that sorts them, then namespace: a stripe may be waited for as
//! long as a mirror takes a write, and no lookup is to wait with whoever does.
//! [`Pool::begin`](crate::pool::Pool::begin) waits for room in the journal and
//! [`Pool::sync`](crate::pool::Pool::sync) for the disks: no lock is held over either. A change
//! that must be durable before it is answered is synced after its locks are released
//! ([`Pool::acknowledge`](crate::pool::Pool::acknowledge)).

mod access;
mod acl;
mod atime;
mod attr;
mod change;
mod control;
mod copy;
mod dir;
mod error;
mod exposition;
mod file;
mod filesystem;
mod metrics;
mod namei;
mod orphan;
mod refs;
mod rename;
mod scrub;
mod space;
mod types;
mod xattr;

#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;

pub use acl::AclKind;
pub use control::{is_control, waits_for_a_disk};
pub use error::{Result, VfsError};
pub use filesystem::Vfs;
pub use metrics::Operation;
pub use types::{AtimePolicy, Attr, Caller, DirItem, SetAttr, SetTime, StatFs, VfsOptions, Whence};
