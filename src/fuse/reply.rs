//! Replies: results of the vfs in the form the kernel takes, and what is said about errors.
//!
//! An error that means damage (EIO) is logged here, once, with operation and inode; errors that
//! answer the caller's own question (ENOENT, EEXIST, ENOSPC and the like) are not.

use std::time::{Duration, Instant};

use fuser::{
    Errno, Generation, ReplyAttr, ReplyData, ReplyDirectory, ReplyDirectoryPlus, ReplyEmpty,
    ReplyEntry, ReplyLseek, ReplyStatfs, ReplyWrite, ReplyXattr,
};

use super::convert;
use crate::format::{FileKind, Ino};
use crate::vfs::{self, Attr, Operation, Vfs, VfsError};

/// How long the kernel may believe what we told it. It makes every change itself, so this bounds
/// nothing but our own mistakes.
const CACHED: Duration = Duration::from_secs(24 * 60 * 60);
/// Of a directory. The kernel discards what was told of a file while that changed, but not what was
/// told of a directory in which a name changed meanwhile: this bounds how long it is believed.
const CACHED_DIRECTORY: Duration = Duration::from_secs(1);
/// For what changes without the kernel: the control directory.
pub(super) const NOT_CACHED: Duration = Duration::ZERO;

/// How long name and attributes of an inode may be cached.
pub(super) fn lifetime(attr: &Attr) -> Duration {
    if vfs::is_control(attr.ino) {
        NOT_CACHED
    } else if attr.kind == FileKind::Directory {
        CACHED_DIRECTORY
    } else {
        CACHED
    }
}

/// What an error or a panic is reported with.
#[derive(Clone, Copy)]
pub(super) struct Context(pub(super) &'static str, pub(super) Ino);

impl Context {
    /// Damage is loud, everything else is the caller's business.
    pub(super) fn log(self, error: &VfsError) {
        if error.errno() == nix::errno::Errno::EIO {
            log::error!("{} of inode {}: {error}", self.0, self.1);
        }
    }

    /// A guard for the length of the operation; see the module's text on panics.
    pub(super) fn guard(self, vfs: &Vfs) -> Guard<'_> {
        Guard {
            context: self,
            start: Instant::now(),
            vfs,
        }
    }
}

/// Held while an operation runs and is replied to: ends the process if it panics, and tells how
/// long it took.
pub(super) struct Guard<'v> {
    context: Context,
    start: Instant,
    vfs: &'v Vfs,
}

impl Drop for Guard<'_> {
    fn drop(&mut self) {
        let Context(operation, ino) = self.context;
        if std::thread::panicking() {
            log::error!("{operation} of inode {ino} panicked: mendfs stops here");
            log::logger().flush();
            std::process::abort();
        }
        let class = match operation {
            "read" => Operation::Read,
            "write" => Operation::Write,
            "lookup" | "readlink" | "forget" => Operation::Lookup,
            "getattr" | "getxattr" | "listxattr" | "statfs" | "lseek" => Operation::Attributes,
            "readdir" | "readdirplus" => Operation::Directory,
            "fsync" | "fsyncdir" => Operation::Sync,
            "copy_file_range" => Operation::Copy,
            _ => Operation::Change,
        };
        self.vfs.took(class, self.start.elapsed());
    }
}

/// The replies that can be an error.
pub(super) trait Fail: Sized {
    /// Replies with the error number.
    fn errno(self, errno: Errno);

    /// Replies with the error, logged if it means damage.
    fn fail(self, context: Context, error: &VfsError) {
        context.log(error);
        self.errno(convert::errno(error));
    }
}

macro_rules! fail {
    ($($reply:ty),*) => { $(
        impl Fail for $reply {
            fn errno(self, errno: Errno) {
                self.error(errno);
            }
        }
    )* };
}

fail!(
    ReplyAttr,
    ReplyData,
    ReplyDirectory,
    ReplyDirectoryPlus,
    ReplyEmpty,
    ReplyEntry,
    ReplyLseek,
    ReplyStatfs,
    ReplyWrite,
    ReplyXattr
);

pub(super) fn empty(context: Context, result: vfs::Result<()>, reply: ReplyEmpty) {
    match result {
        Ok(()) => reply.ok(),
        Err(error) => reply.fail(context, &error),
    }
}

pub(super) fn attr(context: Context, result: vfs::Result<Attr>, reply: ReplyAttr) {
    match result {
        Ok(attr) => reply.attr(&lifetime(&attr), &convert::file_attr(&attr)),
        Err(error) => reply.fail(context, &error),
    }
}

/// Answers with the value, its length if nothing but that was asked, or ERANGE.
pub(super) fn xattr(context: Context, result: vfs::Result<Vec<u8>>, size: u32, reply: ReplyXattr) {
    match result {
        Ok(value) => match u32::try_from(value.len()) {
            Ok(len) if size == 0 => reply.size(len),
            Ok(len) if len <= size => reply.data(&value),
            Ok(_) => reply.error(Errno::ERANGE),
            Err(_) => reply.error(Errno::E2BIG),
        },
        Err(error) => reply.fail(context, &error),
    }
}

pub(super) fn written(context: Context, result: vfs::Result<u64>, reply: ReplyWrite) {
    match result {
        // Never more than the request asked for, and that is below 4 GiB.
        Ok(len) => reply.written(u32::try_from(len).unwrap_or(u32::MAX)),
        Err(error) => reply.fail(context, &error),
    }
}

pub(super) fn entry(context: Context, result: vfs::Result<Attr>, reply: ReplyEntry) {
    match result {
        Ok(attr) => reply.entry(
            &lifetime(&attr),
            &convert::file_attr(&attr),
            convert::generation(&attr),
        ),
        Err(error) => reply.fail(context, &error),
    }
}

/// Says that there is no such name, which the kernel then need not ask again.
pub(super) fn absent(reply: ReplyEntry) {
    reply.entry(&CACHED, &convert::absent(), Generation(0));
}

pub(super) fn offset(context: Context, result: vfs::Result<u64>, reply: ReplyLseek) {
    match result.map(i64::try_from) {
        Ok(Ok(found)) => reply.offset(found),
        Ok(Err(_)) => reply.error(Errno::EOVERFLOW),
        Err(error) => reply.fail(context, &error),
    }
}
