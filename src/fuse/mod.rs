//! The kernel's side: FUSE requests in, [`crate::vfs`] calls, replies out. Only this module names
//! the fuser crate, so that another transport can stand beside it.
//!
//! `adapter` translates and decides nothing that POSIX defines. What it does decide is how little
//! the kernel has to ask, because a round trip costs more than most operations behind it:
//!
//! - `open` and `opendir` are answered ENOSYS once; from then on the kernel opens without asking.
//!   Nothing is lost by that: a handle carries no state here, and an inode lives from its lookup
//!   to its last forget, not from open to release.
//! - `create` is answered ENOSYS once: the kernel then sends `mknod` and opens without asking,
//!   which saves the `release` that an answered `create` would bring.
//! - `flush` is answered ENOSYS once. The kernel still writes a file's dirty pages out at close.
//! - Names and attributes, also the absence of a name, are cached by the kernel for a day: it sees
//!   every change because it makes every change. Directories are for a second, see `reply`, and the
//!   control directory not at all, see `adapter`.
//!
//! `session` mounts, negotiates, runs the event loops and unmounts. Whatever waits for a disk to
//! sync leaves the event loop for one of the `workers`: with as few loops as processors, two fsyncs
//! in the loops would stop everybody else.

mod adapter;
mod blocking;
mod convert;
mod listing;
mod privilege;
mod reply;
mod seek;
mod session;
mod set_id;
mod workers;

pub use session::{MountError, MountRequest, Mounted, SUBTYPE, unmount};
