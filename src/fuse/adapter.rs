//! Translation of each FUSE request into one [`Vfs`] call and its reply.
//!
//! Where each is worked on is `workers`' to tell. Invariants:
//! - every reply that carries an entry hands the kernel exactly one reference that the vfs counted;
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
use std::sync::{Arc, OnceLock};
use std::time::{Duration, SystemTime};

use fuser::{
    BsdFileFlags, CopyFileRangeFlags, Errno, FileHandle, Filesystem, FopenFlags, INodeNo,
    InitFlags, IoctlFlags, KernelConfig, LockOwner, Notifier, OpenFlags, PollEvents, PollFlags,
    PollNotifier, RenameFlags, ReplyAttr, ReplyCreate, ReplyData, ReplyDirectory,
    ReplyDirectoryPlus, ReplyEmpty, ReplyEntry, ReplyIoctl, ReplyLseek, ReplyOpen, ReplyPoll,
    ReplyStatfs, ReplyWrite, ReplyXattr, Request, TimeOrNow, WriteFlags,
};

use super::convert;
use super::listing;
use super::reply::{self, Context, Fail};
use super::seek::{self, Target};
use super::set_id::{Cause, SetId};
use super::workers::Workers;
use crate::format::Ino;
use crate::vfs::{self, AclKind, Attr, Caller, SetAttr, Vfs, VfsError};

/// Largest read, write and readahead request in bytes.
const MAX_REQUEST: u32 = 1 << 20;
/// Requests without a waiting caller (readahead, writeback) that the kernel may have under way.
const MAX_BACKGROUND: u16 = 64;
/// Threads for changes beside the event loops: as many as the kernel sends writes at a time.
const CHANGE_THREADS: usize = MAX_BACKGROUND as usize;
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
    workers: Workers,
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
        Adapter {
            workers: Workers::new(Arc::clone(&vfs), event_loops, CHANGE_THREADS),
            vfs,
            wanted: if acl {
                WANTED | InitFlags::FUSE_POSIX_ACL
            } else {
                WANTED
            },
            granted: InitFlags::empty(),
            notifier,
        }
    }

    /// Makes an inode with a name.
    fn make(
        &self,
        operation: &'static str,
        parent: INodeNo,
        reply: ReplyEntry,
        work: impl FnOnce(&Vfs, Ino) -> vfs::Result<Attr> + Send + 'static,
    ) {
        let parent = convert::ino(parent);
        let context = Context(operation, parent);
        self.workers.change(context, true, move |vfs| {
            reply::entry(context, work(vfs, parent), reply);
        });
    }

    /// Takes a name away, or changes it.
    fn change_name(
        &self,
        operation: &'static str,
        parent: INodeNo,
        reply: ReplyEmpty,
        work: impl FnOnce(&Vfs, Ino) -> vfs::Result<()> + Send + 'static,
    ) {
        let parent = convert::ino(parent);
        let context = Context(operation, parent);
        self.workers.change(context, true, move |vfs| {
            reply::empty(context, work(vfs, parent), reply);
        });
    }

    fn set_id<'a>(&'a self, request: &'a Request) -> SetId<'a> {
        SetId {
            vfs: &self.vfs,
            request,
            ours: self.granted.contains(InitFlags::FUSE_HANDLE_KILLPRIV_V2),
        }
    }

    /// Notes that an inode was read.
    fn accessed(&self, ino: Ino) {
        if self.vfs.accessed(ino) {
            let context = Context("setattr", ino);
            self.workers.wait(context, Vfs::store_atimes);
        }
    }

    /// Deletes an inode that nobody refers to any more.
    fn reap(&self, ino: Ino) {
        let context = Context("forget", ino);
        self.workers
            .change(context, false, move |vfs| vfs.reap_forgotten(ino));
    }

    /// Leaves the event loop and syncs.
    fn sync(&self, operation: &'static str, ino: INodeNo, data_only: bool, reply: ReplyEmpty) {
        let ino = convert::ino(ino);
        let context = Context(operation, ino);
        self.workers.wait(context, move |vfs| {
            reply::empty(context, vfs.fsync(ino, data_only), reply);
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
            let name = name.to_owned();
            return self.workers.report(context, move |vfs| {
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
        let context = Context("forget", ino);
        let guard = context.guard(&self.vfs);
        let last = self.vfs.release(ino, count);
        let read = self.vfs.has_atime(ino);
        drop(guard);
        if last {
            self.reap(ino);
        } else if read {
            self.workers
                .change(context, false, move |vfs| vfs.store_atime(ino));
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
        if let Err(error) = self.set_id(request).must_clear(ino, cause, &mut change) {
            return reply.fail(context, &error);
        }
        let caller = caller(request, 0);
        drop(guard);
        self.workers.change(context, false, move |vfs| {
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
        let (caller, name) = (caller(request, umask), name.as_bytes().to_vec());
        self.make("mknod", parent, reply, move |vfs, parent| {
            vfs.mknod(&caller, parent, &name, mode, rdev)
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
        let (caller, name) = (caller(request, umask), name.as_bytes().to_vec());
        self.make("mkdir", parent, reply, move |vfs, parent| {
            vfs.mkdir(&caller, parent, &name, mode)
        });
    }

    fn unlink(&self, request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let (caller, name) = (caller(request, 0), name.as_bytes().to_vec());
        self.change_name("unlink", parent, reply, move |vfs, parent| {
            vfs.unlink(&caller, parent, &name)
        });
    }

    fn rmdir(&self, request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let (caller, name) = (caller(request, 0), name.as_bytes().to_vec());
        self.change_name("rmdir", parent, reply, move |vfs, parent| {
            vfs.rmdir(&caller, parent, &name)
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
        let (caller, name) = (caller(request, 0), name.as_bytes().to_vec());
        let target = target.as_os_str().as_bytes().to_vec();
        self.make("symlink", parent, reply, move |vfs, parent| {
            vfs.symlink(&caller, parent, &name, &target)
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
        let (name, new_name) = (name.as_bytes().to_vec(), new_name.as_bytes().to_vec());
        let (caller, flags) = (caller(request, 0), flags.bits());
        let new_parent = convert::ino(new_parent);
        self.change_name("rename", parent, reply, move |vfs, parent| {
            vfs.rename(&caller, parent, &name, new_parent, &new_name, flags)
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
        let (caller, name) = (caller(request, 0), new_name.as_bytes().to_vec());
        let new_parent = convert::ino(new_parent);
        self.make("link", ino, reply, move |vfs, ino| {
            vfs.link(&caller, ino, new_parent, &name)
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
        let clearing = match self.set_id(request).by_write(ino, kill) {
            Ok(clearing) => clearing,
            Err(error) => return reply.fail(context, &error),
        };
        let caller = caller(request, 0);
        let cached = flags.contains(WriteFlags::FUSE_WRITE_CACHE);
        let write = move |vfs: &Vfs, data: &[u8], reply: ReplyWrite| {
            let mut result = clearing
                .carry_out(vfs, &caller, ino)
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
        // As any change, but the data is copied only where it has to be.
        if let Some(_place) = self.workers.place_for_change(false) {
            let _guard = context.guard(&self.vfs);
            write(&self.vfs, data, reply);
        } else {
            let data = data.to_vec();
            self.workers
                .change_elsewhere(context, move |vfs| write(vfs, &data, reply));
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
            // Storing what nobody enforces would be a lie.
            Some(_) if !self.granted.contains(InitFlags::FUSE_POSIX_ACL) => {
                return reply.fail(context, &VfsError::NotSupported);
            }
            Some(kind) => match self.set_id(request).goes_with_acl(ino) {
                Ok(kill_set_gid) => Some((kind, kill_set_gid)),
                Err(error) => return reply.fail(context, &error),
            },
            None => None,
        };
        let (name, value) = (name.as_bytes().to_vec(), value.to_vec());
        self.workers.change(context, false, move |vfs| {
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
        self.workers.change(context, false, move |vfs| {
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
        let clearing = self.set_id(request).by_content(ino);
        let caller = caller(request, 0);
        // It may wait for space that is about to come back.
        self.workers.wait(context, move |vfs| {
            let result = clearing
                .and_then(|clearing| clearing.carry_out(vfs, &caller, ino))
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
        let notifier = Arc::clone(&self.notifier);
        self.workers.wait(context, move |vfs| {
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
        let clearing = self.set_id(request).by_content(to);
        let caller = caller(request, 0);
        // Up to a gigabyte may have to be read and written.
        self.workers.wait(context, move |vfs| {
            let result = clearing
                .and_then(|clearing| clearing.carry_out(vfs, &caller, to))
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
