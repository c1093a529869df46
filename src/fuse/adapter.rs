//! Translation of each FUSE request into one [`Vfs`] call and its reply.
//!
//! Invariants:
//! - every reply that carries an entry hands the kernel exactly one reference that the vfs counted;
//! - nothing that waits for a sync runs on an event loop, and at least one of them is never in a
//!   change: what only reads is answered whatever the changes wait for;
//! - a panic ends the process. Going on with half an operation in memory could end on disk; a crash
//!   is a prefix of history that the next mount recovers, and applications see that it happened.
//!
//! Control files have a new inode number at each lookup and are never cached by name: under the
//! writeback cache the kernel keeps a file's size and pages for as long as it knows the inode, and
//! with opens that send no message there is no place to ask for direct I/O.

use std::cell::RefCell;
use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, SystemTime};

use fuser::{
    BsdFileFlags, CopyFileRangeFlags, Errno, FileHandle, Filesystem, FopenFlags, INodeNo,
    InitFlags, IoctlFlags, KernelConfig, LockOwner, Notifier, OpenFlags, PollEvents, PollFlags,
    PollNotifier, RenameFlags, ReplyAttr, ReplyCreate, ReplyData, ReplyDirectory,
    ReplyDirectoryPlus, ReplyEmpty, ReplyEntry, ReplyIoctl, ReplyLseek, ReplyOpen, ReplyPoll,
    ReplyStatfs, ReplyWrite, ReplyXattr, Request, TimeOrNow, WriteFlags,
};

use super::blocking::Blocking;
use super::convert;
use super::listing;
use super::privilege;
use super::reply::{self, Context, Fail};
use super::seek::{self, Target};
use crate::format::Ino;
use crate::vfs::{self, AclKind, Caller, SetAttr, Vfs, VfsError};

/// Largest read, write and readahead request in bytes.
const MAX_REQUEST: u32 = 1 << 20;
/// Requests without a waiting caller (readahead, writeback) that the kernel may have under way.
const MAX_BACKGROUND: u16 = 64;
/// Threads for changes beside the event loops: as many as the kernel sends writes at a time.
const CHANGE_THREADS: usize = MAX_BACKGROUND as usize;
/// Threads that may wait for a sync at the same time.
const SYNC_THREADS: usize = 32;
/// Threads that may wait for the ledger at the same time.
const REPORT_THREADS: usize = 2;
/// Most bytes that one `copy_file_range` request copies; the kernel or its caller asks again.
const MAX_COPY: u64 = 1 << 30;

/// What is always asked of the kernel, if it can do it. Deliberately not asked for:
/// - POSIX_LOCKS, FLOCK_LOCKS: locks stay in the kernel, which is right with one machine;
/// - ATOMIC_O_TRUNC: O_TRUNC must come as a `setattr`, since no open comes;
/// - SETXATTR_EXT: fuser 0.18 does not decode the longer request, so that `privilege` finds out
///   itself whether an ACL takes set-group-ID away;
/// - SPLICE_*: they describe how the server moves data and change nothing for one that reads
///   and writes.
const WANTED: InitFlags = InitFlags::FUSE_ASYNC_READ
    .union(InitFlags::FUSE_BIG_WRITES)
    .union(InitFlags::FUSE_MAX_PAGES)
    .union(InitFlags::FUSE_ASYNC_DIO)
    .union(InitFlags::FUSE_WRITEBACK_CACHE)
    .union(InitFlags::FUSE_PARALLEL_DIROPS)
    .union(InitFlags::FUSE_HANDLE_KILLPRIV_V2)
    // The umask counts only where there is no default ACL, which the vfs knows.
    .union(InitFlags::FUSE_DONT_MASK)
    .union(InitFlags::FUSE_NO_OPEN_SUPPORT)
    .union(InitFlags::FUSE_NO_OPENDIR_SUPPORT)
    .union(InitFlags::FUSE_DO_READDIRPLUS)
    .union(InitFlags::FUSE_READDIRPLUS_AUTO)
    .union(InitFlags::FUSE_CACHE_SYMLINKS)
    .union(InitFlags::FUSE_EXPORT_SUPPORT);

/// The filesystem as fuser sees it.
pub(super) struct Adapter {
    vfs: Arc<Vfs>,
    /// Runs what waits for a sync. Dropped with the adapter, after which nothing is under way.
    blocking: Blocking,
    /// Runs the changes for which no event loop can be spared.
    changes: Blocking,
    /// Changes that event loops are in, and how many of these may be.
    changing: AtomicUsize,
    inline_changes: usize,
    /// Makes reports that wait for a disk.
    reports: Blocking,
    /// What is asked of the kernel.
    wanted: InitFlags,
    /// What it can do of that.
    granted: InitFlags,
    /// The way to tell the kernel something unasked; there once there is a session.
    notifier: Arc<OnceLock<Notifier>>,
}

impl Adapter {
    /// The filesystem served by so many event loops. `acl`: the kernel enforces ACLs.
    pub(super) fn new(
        vfs: Arc<Vfs>,
        notifier: Arc<OnceLock<Notifier>>,
        event_loops: usize,
        acl: bool,
    ) -> Adapter {
        let blocking = Blocking::new(SYNC_THREADS);
        Adapter {
            vfs,
            blocking,
            changes: Blocking::new(CHANGE_THREADS),
            changing: AtomicUsize::new(0),
            inline_changes: event_loops.saturating_sub(1),
            reports: Blocking::new(REPORT_THREADS),
            wanted: if acl {
                WANTED | InitFlags::FUSE_POSIX_ACL
            } else {
                WANTED
            },
            granted: InitFlags::empty(),
            notifier,
        }
    }

    /// Runs a change here, or on a thread beside the event loops: a change may wait for every
    /// mirror, for room in the journal, or for its own durability, however long that takes.
    fn change(&self, names: bool, work: impl FnOnce(&Vfs) + Send + 'static) {
        if let Some(_place) = self.place_for_change(names) {
            work(&self.vfs);
        } else {
            let vfs = Arc::clone(&self.vfs);
            self.changes.run(move || work(&vfs));
        }
    }

    /// A change's place on this event loop, if it can be spared.
    fn place_for_change(&self, names: bool) -> Option<Place<'_>> {
        let before = self.changing.fetch_add(1, Ordering::AcqRel);
        let place = Place(&self.changing);
        (before < self.inline_changes && !self.vfs.waits_for_syncs(names)).then_some(place)
    }

    /// Notes that an inode was read.
    fn accessed(&self, ino: Ino) {
        if self.vfs.accessed(ino) {
            let vfs = Arc::clone(&self.vfs);
            self.blocking.run(move || vfs.store_atimes());
        }
    }

    /// Deletes an inode that nobody refers to any more.
    fn reap(&self, ino: Ino) {
        self.change(false, move |vfs| {
            let _guard = Context("forget", ino).guard(vfs);
            vfs.reap_forgotten(ino);
        });
    }

    /// An open as the kernel falls back to it where opens cannot go without a message.
    fn open_with_message(&self, no_message: InitFlags, flags: FopenFlags, reply: ReplyOpen) {
        if self.granted.contains(no_message) {
            reply.error(Errno::ENOSYS);
        } else {
            reply.opened(FileHandle(0), flags);
        }
    }
}

/// Counts an event loop that is in a change.
struct Place<'a>(&'a AtomicUsize);

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

fn caller(request: &Request, umask: u32) -> Caller {
    Caller {
        uid: request.uid(),
        gid: request.gid(),
        pid: request.pid(),
        umask,
    }
}

thread_local! {
    /// One read's bytes: kept, so that a read costs no allocation.
    static READ_BUFFER: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

impl Filesystem for Adapter {
    fn init(&mut self, _request: &Request, config: &mut KernelConfig) -> io::Result<()> {
        self.granted = config.capabilities() & self.wanted;
        if let Err(refused) = config.add_capabilities(self.granted) {
            log::warn!("the kernel refuses {refused:?}");
        }
        // Each of these answers with the nearest value that is possible.
        let _ = config
            .set_max_write(MAX_REQUEST)
            .map_err(|near| config.set_max_write(near));
        let _ = config.set_max_readahead(4 * MAX_REQUEST).map_err(|near| {
            // Not an error: the kernel offers its default here; the mount's read-ahead is raised
            // through sysfs once there is a mount.
            config.set_max_readahead(near)
        });
        let _ = config.set_max_background(MAX_BACKGROUND);
        let _ = config.set_time_granularity(Duration::from_nanos(1));
        log::debug!("FUSE {} with {:?}", config.kernel_abi(), self.granted);
        Ok(())
    }

    fn lookup(&self, _request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let parent = convert::ino(parent);
        let context = Context("lookup", parent);
        let _guard = context.guard(&self.vfs);
        if vfs::is_control(parent) && vfs::waits_for_a_disk(name.as_bytes()) {
            let (vfs, name) = (Arc::clone(&self.vfs), name.to_owned());
            return self.reports.run(move || {
                let _guard = context.guard(&vfs);
                reply::entry(context, vfs.lookup(parent, name.as_bytes()), reply);
            });
        }
        // "." and ".." come only for a file handle of an NFS client that the kernel no longer
        // knows.
        let result = match name.as_bytes() {
            b"." => self.vfs.reference(parent),
            b".." => self
                .vfs
                .parent(parent)
                .and_then(|parent| self.vfs.reference(parent)),
            name => match self.vfs.lookup(parent, name) {
                Err(error)
                    if error.errno() == nix::errno::Errno::ENOENT && !vfs::is_control(parent) =>
                {
                    return reply::absent(reply);
                }
                result => result,
            },
        };
        reply::entry(context, result, reply);
    }

    fn forget(&self, _request: &Request, ino: INodeNo, count: u64) {
        let ino = convert::ino(ino);
        let guard = Context("forget", ino).guard(&self.vfs);
        let last = self.vfs.release(ino, count);
        let read = self.vfs.has_atime(ino);
        drop(guard);
        if last {
            self.reap(ino);
        } else if read {
            self.change(false, move |vfs| vfs.store_atime(ino));
        }
    }

    fn getattr(&self, _: &Request, ino: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        let ino = convert::ino(ino);
        let context = Context("getattr", ino);
        let _guard = context.guard(&self.vfs);
        reply::attr(context, self.vfs.getattr(ino), reply);
    }

    fn setattr(
        &self,
        request: &Request,
        ino: INodeNo,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        size: Option<u64>,
        atime: Option<TimeOrNow>,
        mtime: Option<TimeOrNow>,
        ctime: Option<SystemTime>,
        _handle: Option<FileHandle>,
        _crtime: Option<SystemTime>,
        _chgtime: Option<SystemTime>,
        _bkuptime: Option<SystemTime>,
        _flags: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let ino = convert::ino(ino);
        let context = Context("setattr", ino);
        let guard = context.guard(&self.vfs);
        let mut change = SetAttr {
            mode,
            uid,
            gid,
            size,
            atime: atime.map(convert::set_time),
            mtime: mtime.map(convert::set_time),
            ctime: ctime.map(convert::set_ctime),
            ..SetAttr::default()
        };
        let owner_changes = uid.is_some() || gid.is_some() || change.is_empty_chown();
        // A request that names nothing is what the kernel leaves of its own attempt to clear them.
        // It also comes from one who may keep them, if the file has a capability to be taken away.
        let cause = if owner_changes {
            Cause::Owner
        } else if size.is_some() || change == SetAttr::default() {
            Cause::Content
        } else {
            Cause::Other
        };
        if let Err(error) = self.must_clear(request, ino, cause, &mut change) {
            return reply.fail(context, &error);
        }
        let caller = caller(request, 0);
        drop(guard);
        self.change(false, move |vfs| {
            let _guard = context.guard(vfs);
            reply::attr(context, vfs.setattr(&caller, ino, &change), reply);
        });
    }

    fn readlink(&self, _request: &Request, ino: INodeNo, reply: ReplyData) {
        let ino = convert::ino(ino);
        let context = Context("readlink", ino);
        let _guard = context.guard(&self.vfs);
        match self.vfs.readlink(ino) {
            Ok(target) => {
                self.accessed(ino);
                reply.data(&target);
            }
            Err(error) => reply.fail(context, &error),
        }
    }

    fn mknod(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        rdev: u32,
        reply: ReplyEntry,
    ) {
        let parent = convert::ino(parent);
        let context = Context("mknod", parent);
        let (caller, name) = (caller(request, umask), name.as_bytes().to_vec());
        self.change(true, move |vfs| {
            let _guard = context.guard(vfs);
            reply::entry(
                context,
                vfs.mknod(&caller, parent, &name, mode, rdev),
                reply,
            );
        });
    }

    fn mkdir(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        reply: ReplyEntry,
    ) {
        let parent = convert::ino(parent);
        let context = Context("mkdir", parent);
        let (caller, name) = (caller(request, umask), name.as_bytes().to_vec());
        self.change(true, move |vfs| {
            let _guard = context.guard(vfs);
            reply::entry(context, vfs.mkdir(&caller, parent, &name, mode), reply);
        });
    }

    fn unlink(&self, request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let parent = convert::ino(parent);
        let context = Context("unlink", parent);
        let (caller, name) = (caller(request, 0), name.as_bytes().to_vec());
        self.change(true, move |vfs| {
            let _guard = context.guard(vfs);
            reply::empty(context, vfs.unlink(&caller, parent, &name), reply);
        });
    }

    fn rmdir(&self, request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let parent = convert::ino(parent);
        let context = Context("rmdir", parent);
        let (caller, name) = (caller(request, 0), name.as_bytes().to_vec());
        self.change(true, move |vfs| {
            let _guard = context.guard(vfs);
            reply::empty(context, vfs.rmdir(&caller, parent, &name), reply);
        });
    }

    fn symlink(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        target: &Path,
        reply: ReplyEntry,
    ) {
        let parent = convert::ino(parent);
        let context = Context("symlink", parent);
        let (caller, name) = (caller(request, 0), name.as_bytes().to_vec());
        let target = target.as_os_str().as_bytes().to_vec();
        self.change(true, move |vfs| {
            let _guard = context.guard(vfs);
            reply::entry(context, vfs.symlink(&caller, parent, &name, &target), reply);
        });
    }

    fn rename(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        new_parent: INodeNo,
        new_name: &OsStr,
        flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        let (parent, new_parent) = (convert::ino(parent), convert::ino(new_parent));
        let context = Context("rename", parent);
        let (name, new_name) = (name.as_bytes().to_vec(), new_name.as_bytes().to_vec());
        let (caller, flags) = (caller(request, 0), flags.bits());
        self.change(true, move |vfs| {
            let _guard = context.guard(vfs);
            let result = vfs.rename(&caller, parent, &name, new_parent, &new_name, flags);
            reply::empty(context, result, reply);
        });
    }

    fn link(
        &self,
        request: &Request,
        ino: INodeNo,
        new_parent: INodeNo,
        new_name: &OsStr,
        reply: ReplyEntry,
    ) {
        let (ino, new_parent) = (convert::ino(ino), convert::ino(new_parent));
        let context = Context("link", ino);
        let (caller, name) = (caller(request, 0), new_name.as_bytes().to_vec());
        self.change(true, move |vfs| {
            let _guard = context.guard(vfs);
            reply::entry(context, vfs.link(&caller, ino, new_parent, &name), reply);
        });
    }

    fn open(&self, _request: &Request, _ino: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        self.open_with_message(
            InitFlags::FUSE_NO_OPEN_SUPPORT,
            FopenFlags::FOPEN_KEEP_CACHE,
            reply,
        );
    }

    fn create(
        &self,
        _request: &Request,
        _parent: INodeNo,
        _name: &OsStr,
        _mode: u32,
        _umask: u32,
        _flags: i32,
        reply: ReplyCreate,
    ) {
        // From now on the kernel sends MKNOD and opens without a message. An answered CREATE would
        // make it send a RELEASE for each file.
        reply.error(Errno::ENOSYS);
    }

    fn read(
        &self,
        _request: &Request,
        ino: INodeNo,
        _handle: FileHandle,
        offset: u64,
        size: u32,
        flags: OpenFlags,
        _owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let ino = convert::ino(ino);
        let context = Context("read", ino);
        let _guard = context.guard(&self.vfs);
        READ_BUFFER.with_borrow_mut(|buffer| {
            match self.vfs.read(ino, offset, size as usize, buffer) {
                Ok(()) => {
                    // One that cannot read wants the rest of a block that it writes a part of.
                    if flags.0 & libc::O_NOATIME == 0 && flags.0 & libc::O_ACCMODE != libc::O_WRONLY
                    {
                        self.accessed(ino);
                    }
                    reply.data(buffer);
                }
                Err(error) => reply.fail(context, &error),
            }
        });
    }

    fn write(
        &self,
        request: &Request,
        ino: INodeNo,
        _handle: FileHandle,
        offset: u64,
        data: &[u8],
        flags: WriteFlags,
        _open_flags: OpenFlags,
        _owner: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let ino = convert::ino(ino);
        let context = Context("write", ino);
        let kill = flags.contains(WriteFlags::FUSE_WRITE_KILL_SUIDGID);
        // Here, while the caller waits and can be looked at.
        let clear = if kill {
            self.clearing_group(request, ino)
        } else {
            Ok(SetAttr::default())
        };
        let clear = match clear {
            Ok(clear) => clear,
            Err(error) => return reply.fail(context, &error),
        };
        let caller = caller(request, 0);
        let cached = flags.contains(WriteFlags::FUSE_WRITE_CACHE);
        let write = move |vfs: &Vfs, data: &[u8], reply: ReplyWrite| {
            let _guard = context.guard(vfs);
            let mut result = clear_set_id(vfs, &caller, ino, &clear)
                .and_then(|()| vfs.write(ino, offset, data, kill));
            if let Err(error) = &result
                && cached
                && error.errno() == nix::errno::Errno::ENOSPC
                && let Err(worse) = vfs.write_where_promised(ino, offset, data, kill)
            {
                result = Err(worse);
            }
            reply::written(context, result.map(|len| len as u64), reply);
        };
        // As `change`, but the data is copied only where it has to be.
        if let Some(_place) = self.place_for_change(false) {
            write(&self.vfs, data, reply);
        } else {
            let (vfs, data) = (Arc::clone(&self.vfs), data.to_vec());
            self.changes.run(move || write(&vfs, &data, reply));
        }
    }

    fn flush(
        &self,
        _request: &Request,
        _ino: INodeNo,
        _handle: FileHandle,
        _owner: LockOwner,
        reply: ReplyEmpty,
    ) {
        reply.error(Errno::ENOSYS);
    }

    fn fsync(
        &self,
        _request: &Request,
        ino: INodeNo,
        _handle: FileHandle,
        data_only: bool,
        reply: ReplyEmpty,
    ) {
        self.sync("fsync", ino, data_only, reply);
    }

    fn opendir(&self, _request: &Request, _ino: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        self.open_with_message(
            InitFlags::FUSE_NO_OPENDIR_SUPPORT,
            FopenFlags::FOPEN_KEEP_CACHE | FopenFlags::FOPEN_CACHE_DIR,
            reply,
        );
    }

    fn readdir(
        &self,
        _request: &Request,
        ino: INodeNo,
        _handle: FileHandle,
        cookie: u64,
        mut reply: ReplyDirectory,
    ) {
        let ino = convert::ino(ino);
        let context = Context("readdir", ino);
        let _guard = context.guard(&self.vfs);
        let result = self.vfs.readdir(ino, cookie, &mut |item| {
            let name = OsStr::from_bytes(item.name);
            !reply.add(
                INodeNo(item.ino.0),
                item.cookie,
                convert::file_type(item.kind),
                name,
            )
        });
        match result {
            Ok(()) => {
                self.accessed(ino);
                reply.ok();
            }
            Err(error) => reply.fail(context, &error),
        }
    }

    fn readdirplus(
        &self,
        _request: &Request,
        ino: INodeNo,
        _handle: FileHandle,
        cookie: u64,
        mut reply: ReplyDirectoryPlus,
    ) {
        let ino = convert::ino(ino);
        let context = Context("readdirplus", ino);
        let _guard = context.guard(&self.vfs);
        let reap = |ino| self.reap(ino);
        match listing::fill_plus(&self.vfs, ino, cookie, &mut reply, &reap) {
            Ok(()) => {
                self.accessed(ino);
                reply.ok();
            }
            Err(error) => reply.fail(context, &error),
        }
    }

    fn fsyncdir(
        &self,
        _request: &Request,
        ino: INodeNo,
        _handle: FileHandle,
        data_only: bool,
        reply: ReplyEmpty,
    ) {
        self.sync("fsyncdir", ino, data_only, reply);
    }

    fn statfs(&self, _request: &Request, ino: INodeNo, reply: ReplyStatfs) {
        let context = Context("statfs", convert::ino(ino));
        let _guard = context.guard(&self.vfs);
        match self.vfs.statfs() {
            Ok(stat) => reply.statfs(
                stat.blocks,
                stat.free,
                stat.available,
                stat.files,
                stat.files_free,
                stat.block_size,
                stat.name_max,
                stat.block_size,
            ),
            Err(error) => reply.fail(context, &error),
        }
    }

    fn setxattr(
        &self,
        request: &Request,
        ino: INodeNo,
        name: &OsStr,
        value: &[u8],
        flags: i32,
        _position: u32,
        reply: ReplyEmpty,
    ) {
        let ino = convert::ino(ino);
        let context = Context("setxattr", ino);
        let (caller, flags) = (caller(request, 0), flags.cast_unsigned());
        let acl = match AclKind::of(name.as_bytes()) {
            Some(kind) => match self.acl_change(request, ino) {
                Ok(kill_set_gid) => Some((kind, kill_set_gid)),
                Err(error) => return reply.fail(context, &error),
            },
            None => None,
        };
        let (name, value) = (name.as_bytes().to_vec(), value.to_vec());
        self.change(false, move |vfs| {
            let _guard = context.guard(vfs);
            let result = match acl {
                Some((kind, kill_set_gid)) => vfs.set_acl(ino, kind, &value, kill_set_gid),
                None => vfs.setxattr(&caller, ino, &name, &value, flags),
            };
            reply::empty(context, result, reply);
        });
    }

    fn getxattr(
        &self,
        request: &Request,
        ino: INodeNo,
        name: &OsStr,
        size: u32,
        reply: ReplyXattr,
    ) {
        let ino = convert::ino(ino);
        let context = Context("getxattr", ino);
        let _guard = context.guard(&self.vfs);
        let result = self.vfs.getxattr(&caller(request, 0), ino, name.as_bytes());
        reply::xattr(context, result, size, reply);
    }

    fn listxattr(&self, request: &Request, ino: INodeNo, size: u32, reply: ReplyXattr) {
        let ino = convert::ino(ino);
        let context = Context("listxattr", ino);
        let _guard = context.guard(&self.vfs);
        reply::xattr(
            context,
            self.vfs.listxattr(&caller(request, 0), ino),
            size,
            reply,
        );
    }

    fn removexattr(&self, request: &Request, ino: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let ino = convert::ino(ino);
        let context = Context("removexattr", ino);
        let (caller, name) = (caller(request, 0), name.as_bytes().to_vec());
        self.change(false, move |vfs| {
            let _guard = context.guard(vfs);
            reply::empty(context, vfs.removexattr(&caller, ino, &name), reply);
        });
    }

    fn fallocate(
        &self,
        request: &Request,
        ino: INodeNo,
        _handle: FileHandle,
        offset: u64,
        length: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        let ino = convert::ino(ino);
        let context = Context("fallocate", ino);
        let clear = self.clearing(request, ino);
        let caller = caller(request, 0);
        let vfs = Arc::clone(&self.vfs);
        // It may wait for space that is about to come back.
        self.blocking.run(move || {
            let _guard = context.guard(&vfs);
            let result = clear
                .and_then(|clear| clear_set_id(&vfs, &caller, ino, &clear))
                .and_then(|()| vfs.fallocate(ino, offset, length, mode));
            reply::empty(context, result, reply);
        });
    }

    fn lseek(
        &self,
        _request: &Request,
        ino: INodeNo,
        _handle: FileHandle,
        offset: i64,
        whence: i32,
        reply: ReplyLseek,
    ) {
        let ino = convert::ino(ino);
        let context = Context("lseek", ino);
        let _guard = context.guard(&self.vfs);
        let Some(target) = Target::of(whence) else {
            return reply.error(Errno::EINVAL);
        };
        let Ok(offset) = u64::try_from(offset) else {
            return reply.error(Errno::ENXIO);
        };
        let answer = self.vfs.lseek(ino, offset, target.whence());
        let Some(doubtful) = seek::doubtful(target, offset, &answer) else {
            return reply::offset(context, answer, reply);
        };
        // Not here: the kernel's writes in answer to the notification come to the event loops.
        let (vfs, notifier) = (Arc::clone(&self.vfs), Arc::clone(&self.notifier));
        self.blocking.run(move || {
            let _guard = context.guard(&vfs);
            seek::write_out(&notifier, ino, doubtful);
            reply::offset(context, vfs.lseek(ino, offset, target.whence()), reply);
        });
    }

    fn copy_file_range(
        &self,
        request: &Request,
        ino_in: INodeNo,
        _handle_in: FileHandle,
        offset_in: u64,
        ino_out: INodeNo,
        _handle_out: FileHandle,
        offset_out: u64,
        len: u64,
        _flags: CopyFileRangeFlags,
        reply: ReplyWrite,
    ) {
        let (from, to) = (convert::ino(ino_in), convert::ino(ino_out));
        let context = Context("copy_file_range", from);
        let clear = self.clearing(request, to);
        let caller = caller(request, 0);
        let vfs = Arc::clone(&self.vfs);
        // Up to a gigabyte may have to be read and written.
        self.blocking.run(move || {
            let _guard = context.guard(&vfs);
            let result = clear
                .and_then(|clear| clear_set_id(&vfs, &caller, to, &clear))
                .and_then(|()| vfs.copy_range(from, offset_in, to, offset_out, len.min(MAX_COPY)));
            reply::written(context, result, reply);
        });
    }

    // Not ours to do. The rest of what fuser knows is never asked for, given the flags and mount
    // options that we use: access, locks, bmap.

    fn ioctl(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        _: IoctlFlags,
        _: u32,
        _: &[u8],
        _: u32,
        reply: ReplyIoctl,
    ) {
        reply.error(Errno::ENOTTY);
    }

    fn poll(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        _: PollNotifier,
        _: PollEvents,
        _: PollFlags,
        reply: ReplyPoll,
    ) {
        reply.error(Errno::ENOSYS);
    }
}

impl Adapter {
    /// Leaves the event loop and syncs.
    fn sync(&self, operation: &'static str, ino: INodeNo, data_only: bool, reply: ReplyEmpty) {
        let ino = convert::ino(ino);
        let context = Context(operation, ino);
        let vfs = Arc::clone(&self.vfs);
        self.blocking.run(move || {
            let _guard = context.guard(&vfs);
            reply::empty(context, vfs.fsync(ino, data_only), reply);
        });
    }

    /// Whether set-group-ID goes when this caller sets an ACL.
    fn acl_change(&self, request: &Request, ino: Ino) -> vfs::Result<bool> {
        if !self.granted.contains(InitFlags::FUSE_POSIX_ACL) {
            // Storing what nobody enforces would be a lie.
            return Err(VfsError::NotSupported);
        }
        // The kernel holds the inode's lock from its checks to our answer: no chown comes between.
        let attr = self.vfs.getattr(ino)?;
        Ok(privilege::has_set_gid(&attr) && !privilege::is_member(request, attr.gid))
    }

    /// Notes in `change` whether it must clear set-user-ID and set-group-ID.
    fn must_clear(
        &self,
        request: &Request,
        ino: Ino,
        cause: Cause,
        change: &mut SetAttr,
    ) -> vfs::Result<()> {
        // Without HANDLE_KILLPRIV_V2 the kernel sends changes of mode of its own.
        if cause == Cause::Other || !self.granted.contains(InitFlags::FUSE_HANDLE_KILLPRIV_V2) {
            return Ok(());
        }
        let attr = self.vfs.getattr(ino)?;
        if !privilege::has_set_id(&attr) {
            return Ok(());
        }
        change.kill_suid = cause == Cause::Owner || !privilege::may_keep_set_id(request.pid());
        change.kill_sgid = change.kill_suid
            && privilege::has_bare_set_gid(&attr)
            && !privilege::is_member(request, attr.gid);
        // Of chown(2) that names nobody the kernel has checked nothing, since it left this to us.
        let takes = privilege::has_program_id(&attr) || change.kill_sgid;
        if takes && change.is_empty_chown() && !privilege::is_owner(request, attr.uid) {
            return Err(VfsError::NotPermitted);
        }
        Ok(())
    }

    /// What `fallocate` and `copy_file_range` have to do with the bits, as the kernel asks for with
    /// a write: it drops its own attempt to clear them under HANDLE_KILLPRIV_V2, but does not mark
    /// these two.
    fn clearing(&self, request: &Request, ino: Ino) -> vfs::Result<SetAttr> {
        let _guard = Context("setattr", ino).guard(&self.vfs);
        let mut change = SetAttr::default();
        self.must_clear(request, ino, Cause::Content, &mut change)?;
        Ok(change)
    }

    /// The rest of that for a write that the kernel marked: it knows nothing of the group.
    fn clearing_group(&self, request: &Request, ino: Ino) -> vfs::Result<SetAttr> {
        let attr = self.vfs.getattr(ino)?;
        if privilege::has_bare_set_gid(&attr) {
            self.clearing(request, ino)
        } else {
            Ok(SetAttr::default())
        }
    }
}

/// Why set-user-ID and set-group-ID might have to go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Cause {
    /// The owner or group is set, if only to what it was.
    Owner,
    /// Content or size changes.
    Content,
    Other,
}

/// Clears what [`Adapter::clearing`] found.
fn clear_set_id(vfs: &Vfs, caller: &Caller, ino: Ino, clear: &SetAttr) -> vfs::Result<()> {
    if clear.kill_suid {
        vfs.setattr(caller, ino, clear)?;
    }
    Ok(())
}
