//! A pass-through filesystem with switches, for a mirror that fails while it is in use.
//!
//! Serves a real directory (`lower`) at another path from threads of the test's own process. A
//! test flips the switches while mendfs runs on it: failing reads, writes or syncs, no space, slow
//! reads, and requests that hang until they are released. `lower` shows what really lies there.
//!
//! Invariants: files are opened for direct I/O and nothing is cached, so every call of mendfs
//! reaches the switches; a request that hangs or is slow has a thread of its own and holds up no
//! other. A [`Hang`] releases what it holds when it is dropped: make it after the [`super::Pool`],
//! which waits for its process, so that a failing assertion cannot wait for ever.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs::{self, File, Metadata, OpenOptions, Permissions};
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use fuser::{
    BackgroundSession, BsdFileFlags, Config, Errno, FileAttr, FileHandle, FileType, Filesystem,
    FopenFlags, Generation, INodeNo, LockOwner, OpenFlags, RenameFlags, ReplyAttr, ReplyData,
    ReplyDirectory, ReplyEmpty, ReplyEntry, ReplyOpen, ReplyStatfs, ReplyWrite, Request, Session,
    SessionACL, TimeOrNow, WriteFlags,
};
use nix::fcntl::{AT_FDCWD, FallocateFlags, OFlag, fallocate, open, openat, renameat};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::stat::{Mode, SFlag, mkdirat, mknodat};
use nix::sys::statvfs::fstatvfs;
use nix::sys::time::TimeSpec;
use nix::unistd::{UnlinkatFlags, unlinkat};
use parking_lot::{Condvar, Mutex};
use tempfile::TempDir;

/// The two directories in the scratch directory.
const LOWER: &str = "lower";
const SHOWN: &str = "shown";
/// The kernel is to ask every time.
const TTL: Duration = Duration::ZERO;

/// What a request is, to the switches.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Read,
    Write,
    Sync,
    /// Takes space: a write, a reservation, a new name.
    Grow,
    Other,
}

#[derive(Debug, Default)]
struct Switches {
    fail_reads: bool,
    fail_writes: bool,
    fail_syncs: bool,
    full: bool,
    slow_reads: Duration,
    hang_reads: bool,
    hang_writes: bool,
    /// Syncs of files whose path ends like this hang.
    hang_syncs: Option<String>,
    hang_all: bool,
    /// Requests that hang now.
    hanging: usize,
    /// Reads that were asked for so far.
    reads: u64,
}

#[derive(Debug, Default)]
struct Panel {
    switches: Mutex<Switches>,
    changed: Condvar,
}

impl Panel {
    fn set(&self, change: impl FnOnce(&mut Switches)) {
        change(&mut self.switches.lock());
        self.changed.notify_all();
    }

    /// Whether a request would be held up now.
    fn holds(&self, kind: Kind) -> bool {
        let now = self.switches.lock();
        let read = kind == Kind::Read;
        let sync = kind == Kind::Sync;
        now.hang_all
            || read && (now.hang_reads || !now.slow_reads.is_zero())
            || sync && now.hang_syncs.is_some()
            || kind == Kind::Write && now.hang_writes
    }

    /// Holds a sync of the file with that path up as long as the switches say.
    fn hold_sync(&self, path: &Path) {
        let mut now = self.switches.lock();
        let hangs = |now: &Switches| {
            let end = now.hang_syncs.as_deref();
            end.is_some_and(|end| path.to_string_lossy().ends_with(end))
        };
        now.hanging += 1;
        while hangs(&now) {
            self.changed.wait(&mut now);
        }
        now.hanging -= 1;
    }

    /// Holds the request up as long as the switches say, then says what becomes of it.
    fn pass(&self, kind: Kind) -> Result<(), Errno> {
        let mut now = self.switches.lock();
        if kind == Kind::Read {
            now.reads += 1;
            let slow = now.slow_reads;
            if !slow.is_zero() {
                parking_lot::MutexGuard::unlocked(&mut now, || std::thread::sleep(slow));
            }
        }
        now.hanging += 1;
        while now.hang_all
            || kind == Kind::Read && now.hang_reads
            || kind == Kind::Write && now.hang_writes
        {
            self.changed.wait(&mut now);
        }
        now.hanging -= 1;
        match kind {
            Kind::Read if now.fail_reads => Err(Errno::EIO),
            Kind::Write | Kind::Grow if now.fail_writes => Err(Errno::EIO),
            Kind::Sync if now.fail_syncs => Err(Errno::EIO),
            Kind::Write | Kind::Grow if now.full => Err(Errno::ENOSPC),
            _ => Ok(()),
        }
    }
}

/// A directory behind switches. Dropping it lets everything go and unmounts.
pub(crate) struct Faulty {
    scratch: TempDir,
    panel: Arc<Panel>,
    session: Option<BackgroundSession>,
}

/// Requests hang while this lives.
#[must_use = "requests hang only while this lives"]
pub(crate) struct Hang {
    panel: Arc<Panel>,
}

impl Hang {
    /// Lets the requests that hang, and all later ones, go on.
    pub(crate) fn release(self) {}
}

impl Drop for Hang {
    fn drop(&mut self) {
        self.panel.set(|now| {
            now.hang_all = false;
            now.hang_reads = false;
            now.hang_syncs = None;
            now.hang_writes = false;
        });
    }
}

impl Faulty {
    /// Shows an empty directory of its own, [`Faulty::lower`], at [`Faulty::path`].
    pub(crate) fn new() -> Faulty {
        let scratch = super::scratch();
        let (lower, at) = (scratch.path().join(LOWER), scratch.path().join(SHOWN));
        fs::create_dir(&lower).expect("the directory below");
        fs::create_dir(&at).expect("a mount point");
        let panel = Arc::new(Panel::default());
        let served = Passthrough(Arc::new(Server::new(&lower, Arc::clone(&panel))));
        let flags = OFlag::O_RDWR | OFlag::O_CLOEXEC;
        let device = open("/dev/fuse", flags, Mode::empty()).expect("/dev/fuse");
        let data = format!(
            "fd={},rootmode=40000,user_id=0,group_id=0,default_permissions,allow_other",
            device.as_raw_fd()
        );
        let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
        mount(
            Some("faulty"),
            &at,
            Some("fuse.faulty"),
            flags,
            Some(data.as_str()),
        )
        .expect("mount");
        let mut config = Config::default();
        config.acl = SessionACL::All;
        config.n_threads = Some(2);
        let session = Session::from_fd(served, device, SessionACL::All, config);
        Faulty {
            scratch,
            panel,
            session: Some(session.expect("a session").spawn().expect("threads")),
        }
    }

    /// Where the directory is shown.
    pub(crate) fn path(&self) -> PathBuf {
        self.scratch.path().join(SHOWN)
    }

    /// The real directory, which no switch touches.
    pub(crate) fn lower(&self) -> PathBuf {
        self.scratch.path().join(LOWER)
    }

    /// Reads fail with EIO.
    pub(crate) fn fail_reads(&self, fail: bool) {
        self.panel.set(|now| now.fail_reads = fail);
    }

    /// Writes and whatever else takes space fail with EIO.
    pub(crate) fn fail_writes(&self, fail: bool) {
        self.panel.set(|now| now.fail_writes = fail);
    }

    /// fsync and fdatasync fail with EIO.
    pub(crate) fn fail_syncs(&self, fail: bool) {
        self.panel.set(|now| now.fail_syncs = fail);
    }

    /// Writes and whatever else takes space fail with ENOSPC, and statfs tells of no free space.
    pub(crate) fn fill(&self, full: bool) {
        self.panel.set(|now| now.full = full);
    }

    /// Every read takes that much longer.
    pub(crate) fn slow_reads(&self, by: Duration) {
        self.panel.set(|now| now.slow_reads = by);
    }

    /// Reads of files hang; everything else works.
    pub(crate) fn hang_reads(&self) -> Hang {
        self.panel.set(|now| now.hang_reads = true);
        Hang {
            panel: Arc::clone(&self.panel),
        }
    }

    /// Writes to files hang; everything else works.
    pub(crate) fn hang_writes(&self) -> Hang {
        self.panel.set(|now| now.hang_writes = true);
        Hang {
            panel: Arc::clone(&self.panel),
        }
    }

    /// Syncs of files whose path ends like that hang; everything else works.
    pub(crate) fn hang_syncs(&self, end: &str) -> Hang {
        self.panel.set(|now| now.hang_syncs = Some(end.to_owned()));
        Hang {
            panel: Arc::clone(&self.panel),
        }
    }

    /// Every request hangs, also lookups, opens and stat.
    pub(crate) fn hang_all(&self) -> Hang {
        self.panel.set(|now| now.hang_all = true);
        Hang {
            panel: Arc::clone(&self.panel),
        }
    }

    /// How many requests hang right now.
    pub(crate) fn hanging(&self) -> usize {
        self.panel.switches.lock().hanging
    }

    /// How many reads were asked for so far, whatever became of them.
    pub(crate) fn reads(&self) -> u64 {
        self.panel.switches.lock().reads
    }

    /// Pulls the disk out: every request that hangs and every later one fails (ENOTCONN,
    /// ECONNABORTED), and an empty mount point is left.
    pub(crate) fn unplug(&mut self) {
        let Some(session) = self.session.take() else {
            return;
        };
        // The mount is dead from here on, also for who has it open; what hung may go.
        let _ = umount2(&self.path(), MntFlags::MNT_FORCE | MntFlags::MNT_DETACH);
        self.panel.set(|now| {
            now.hang_all = false;
            now.hang_reads = false;
            now.hang_syncs = None;
            now.hang_writes = false;
        });
        let _ = session.join();
    }
}

impl Drop for Faulty {
    fn drop(&mut self) {
        self.unplug();
    }
}

/// A file or directory that the kernel knows.
struct Node {
    /// Opened with O_PATH: stays what it is when it is renamed or deleted.
    fd: Arc<OwnedFd>,
    lookups: u64,
    identity: (u64, u64),
}

#[derive(Default)]
struct Tables {
    nodes: HashMap<u64, Node>,
    by_identity: HashMap<(u64, u64), u64>,
    files: HashMap<u64, Arc<File>>,
    last: u64,
}

struct Server {
    panel: Arc<Panel>,
    tables: Mutex<Tables>,
}

type Answer<T> = Result<T, Errno>;

fn failed(error: impl Into<io::Error>) -> Errno {
    Errno::from(error.into())
}

/// Leads to what the descriptor stands for, through any call that takes a path.
fn link_to(fd: &impl AsRawFd) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}", fd.as_raw_fd()))
}

fn time(seconds: i64, nanoseconds: i64) -> SystemTime {
    UNIX_EPOCH + Duration::new(seconds.max(0) as u64, nanoseconds as u32)
}

fn attributes(ino: u64, meta: &Metadata) -> FileAttr {
    let kind = match meta.file_type() {
        kind if kind.is_dir() => FileType::Directory,
        kind if kind.is_symlink() => FileType::Symlink,
        kind if kind.is_fifo() => FileType::NamedPipe,
        _ => FileType::RegularFile,
    };
    FileAttr {
        ino: INodeNo(ino),
        size: meta.len(),
        blocks: meta.blocks(),
        atime: time(meta.atime(), meta.atime_nsec()),
        mtime: time(meta.mtime(), meta.mtime_nsec()),
        ctime: time(meta.ctime(), meta.ctime_nsec()),
        crtime: UNIX_EPOCH,
        kind,
        perm: (meta.mode() & 0o7777) as u16,
        nlink: meta.nlink() as u32,
        uid: meta.uid(),
        gid: meta.gid(),
        rdev: 0,
        blksize: 4096,
        flags: 0,
    }
}

fn open_path(parent: &impl AsFd, name: &OsStr) -> Answer<OwnedFd> {
    let flags = OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    openat(parent, name, flags, Mode::empty()).map_err(failed)
}

impl Server {
    fn new(lower: &Path, panel: Arc<Panel>) -> Server {
        let root = open_path(&AT_FDCWD, lower.as_os_str()).expect("the directory below");
        let meta = fs::metadata(lower).expect("the directory below");
        let mut tables = Tables {
            last: INodeNo::ROOT.0,
            ..Tables::default()
        };
        let root = Node {
            fd: Arc::new(root),
            lookups: u64::MAX / 2,
            identity: (meta.dev(), meta.ino()),
        };
        tables.by_identity.insert(root.identity, INodeNo::ROOT.0);
        tables.nodes.insert(INodeNo::ROOT.0, root);
        Server {
            panel,
            tables: Mutex::new(tables),
        }
    }

    fn node(&self, ino: u64) -> Answer<Arc<OwnedFd>> {
        let tables = self.tables.lock();
        let node = tables.nodes.get(&ino).ok_or(Errno::ESTALE)?;
        Ok(Arc::clone(&node.fd))
    }

    fn file(&self, handle: FileHandle) -> Answer<Arc<File>> {
        let tables = self.tables.lock();
        tables.files.get(&handle.0).cloned().ok_or(Errno::EBADF)
    }

    /// By handle where the kernel has one: the file may have no name left.
    fn attributes(&self, ino: u64) -> Answer<FileAttr> {
        let node = self.node(ino)?;
        let meta = fs::metadata(link_to(&node.as_raw_fd())).map_err(failed)?;
        Ok(attributes(ino, &meta))
    }

    fn lookup(&self, parent: u64, name: &OsStr) -> Answer<FileAttr> {
        let fd = open_path(&self.node(parent)?, name)?;
        let meta = fs::metadata(link_to(&fd)).map_err(failed)?;
        let identity = (meta.dev(), meta.ino());
        let mut tables = self.tables.lock();
        let ino = match tables.by_identity.get(&identity) {
            Some(ino) => *ino,
            None => {
                tables.last += 1;
                let ino = tables.last;
                tables.by_identity.insert(identity, ino);
                let node = Node {
                    fd: Arc::new(fd),
                    lookups: 0,
                    identity,
                };
                tables.nodes.insert(ino, node);
                ino
            }
        };
        if let Some(node) = tables.nodes.get_mut(&ino) {
            node.lookups += 1;
        }
        Ok(attributes(ino, &meta))
    }

    fn forget(&self, ino: u64, count: u64) {
        let mut tables = self.tables.lock();
        let Some(node) = tables.nodes.get_mut(&ino) else {
            return;
        };
        node.lookups = node.lookups.saturating_sub(count);
        if node.lookups == 0
            && let Some(node) = tables.nodes.remove(&ino)
        {
            tables.by_identity.remove(&node.identity);
        }
    }

    fn open(&self, ino: u64, flags: OpenFlags) -> Answer<FileHandle> {
        let node = self.node(ino)?;
        let access = flags.0 & libc::O_ACCMODE;
        let file = OpenOptions::new()
            .read(access != libc::O_WRONLY)
            .write(access != libc::O_RDONLY)
            .custom_flags(flags.0 & libc::O_TRUNC)
            .open(link_to(&node.as_raw_fd()))
            .map_err(failed)?;
        let mut tables = self.tables.lock();
        tables.last += 1;
        let handle = tables.last;
        tables.files.insert(handle, Arc::new(file));
        Ok(FileHandle(handle))
    }

    fn read(&self, handle: FileHandle, offset: u64, size: u32) -> Answer<Vec<u8>> {
        let file = self.file(handle)?;
        let mut bytes = vec![0; size as usize];
        let mut done = 0;
        while done < bytes.len() {
            match file.read_at(&mut bytes[done..], offset + done as u64) {
                Ok(0) => break,
                Ok(got) => done += got,
                Err(error) => return Err(failed(error)),
            }
        }
        bytes.truncate(done);
        Ok(bytes)
    }

    fn list(&self, ino: u64) -> Answer<Vec<(u64, FileType, std::ffi::OsString)>> {
        let node = self.node(ino)?;
        let mut names = vec![
            (ino, FileType::Directory, ".".into()),
            (ino, FileType::Directory, "..".into()),
        ];
        for entry in fs::read_dir(link_to(&node.as_raw_fd())).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            let kind = match entry.file_type().map_err(failed)? {
                kind if kind.is_dir() => FileType::Directory,
                _ => FileType::RegularFile,
            };
            names.push((u64::MAX, kind, entry.file_name()));
        }
        Ok(names)
    }
}

fn time_spec(time: Option<TimeOrNow>) -> TimeSpec {
    match time {
        None => TimeSpec::UTIME_OMIT,
        Some(TimeOrNow::Now) => TimeSpec::UTIME_NOW,
        Some(TimeOrNow::SpecificTime(time)) => {
            TimeSpec::from(time.duration_since(UNIX_EPOCH).unwrap_or_default())
        }
    }
}

/// The server as fuser sees it.
struct Passthrough(Arc<Server>);

impl Passthrough {
    /// Has `work` done when the switches let a request of that kind pass, and `answer` told the
    /// result: on this thread if nothing holds it up, else on one of its own.
    fn serve<T>(
        &self,
        kind: Kind,
        work: impl FnOnce(&Server) -> Answer<T> + Send + 'static,
        answer: impl FnOnce(Answer<T>) + Send + 'static,
    ) {
        let server = Arc::clone(&self.0);
        let held = server.panel.holds(kind);
        let serve = move || answer(server.panel.pass(kind).and_then(|()| work(&server)));
        if held {
            std::thread::spawn(serve);
        } else {
            serve();
        }
    }
}

/// The answer of a request that has none but "done".
fn done(reply: ReplyEmpty) -> impl FnOnce(Answer<()>) + Send {
    |result| match result {
        Ok(()) => reply.ok(),
        Err(errno) => reply.error(errno),
    }
}

fn entry(reply: ReplyEntry) -> impl FnOnce(Answer<FileAttr>) + Send {
    |result| match result {
        Ok(attr) => reply.entry(&TTL, &attr, Generation(0)),
        Err(errno) => reply.error(errno),
    }
}

fn opened(reply: ReplyOpen, flags: FopenFlags) -> impl FnOnce(Answer<FileHandle>) + Send {
    move |result| match result {
        Ok(handle) => reply.opened(handle, flags),
        Err(errno) => reply.error(errno),
    }
}

impl Filesystem for Passthrough {
    fn lookup(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let name = name.to_owned();
        self.serve(
            Kind::Other,
            move |fs| fs.lookup(parent.0, &name),
            entry(reply),
        );
    }

    // No answer is waited for, so it does not hang either.
    fn forget(&self, _: &Request, ino: INodeNo, count: u64) {
        self.0.forget(ino.0, count);
    }

    fn getattr(&self, _: &Request, ino: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        let work = move |fs: &Server| fs.attributes(ino.0);
        self.serve(Kind::Other, work, |result| match result {
            Ok(attr) => reply.attr(&TTL, &attr),
            Err(errno) => reply.error(errno),
        });
    }

    fn setattr(
        &self,
        _: &Request,
        ino: INodeNo,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        size: Option<u64>,
        atime: Option<TimeOrNow>,
        mtime: Option<TimeOrNow>,
        _: Option<SystemTime>,
        _: Option<FileHandle>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let kind = if size.is_some() {
            Kind::Write
        } else {
            Kind::Other
        };
        let work = move |fs: &Server| {
            let node = fs.node(ino.0)?;
            let path = link_to(&node.as_raw_fd());
            if let Some(size) = size {
                let file = File::options().write(true).open(&path).map_err(failed)?;
                file.set_len(size).map_err(failed)?;
            }
            if let Some(mode) = mode {
                fs::set_permissions(&path, Permissions::from_mode(mode)).map_err(failed)?;
            }
            if uid.is_some() || gid.is_some() {
                std::os::unix::fs::chown(&path, uid, gid).map_err(failed)?;
            }
            if atime.is_some() || mtime.is_some() {
                let (atime, mtime) = (time_spec(atime), time_spec(mtime));
                let follow = nix::sys::stat::UtimensatFlags::FollowSymlink;
                nix::sys::stat::utimensat(AT_FDCWD, &path, &atime, &mtime, follow)
                    .map_err(failed)?;
            }
            fs.attributes(ino.0)
        };
        self.serve(kind, work, |result| match result {
            Ok(attr) => reply.attr(&TTL, &attr),
            Err(errno) => reply.error(errno),
        });
    }

    // There is no `create`: the kernel then makes a file with `mknod` and opens it.
    fn mknod(
        &self,
        _: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        _umask: u32,
        _rdev: u32,
        reply: ReplyEntry,
    ) {
        let name = name.to_owned();
        let work = move |fs: &Server| {
            let kind = SFlag::from_bits_truncate(mode & libc::S_IFMT);
            let mode = Mode::from_bits_truncate(mode);
            mknodat(&fs.node(parent.0)?, name.as_os_str(), kind, mode, 0).map_err(failed)?;
            fs.lookup(parent.0, &name)
        };
        self.serve(Kind::Grow, work, entry(reply));
    }

    fn mkdir(
        &self,
        _: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        _umask: u32,
        reply: ReplyEntry,
    ) {
        let name = name.to_owned();
        let work = move |fs: &Server| {
            let mode = Mode::from_bits_truncate(mode);
            mkdirat(&fs.node(parent.0)?, name.as_os_str(), mode).map_err(failed)?;
            fs.lookup(parent.0, &name)
        };
        self.serve(Kind::Grow, work, entry(reply));
    }

    fn unlink(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let name = name.to_owned();
        let work = move |fs: &Server| {
            let parent = fs.node(parent.0)?;
            unlinkat(&parent, name.as_os_str(), UnlinkatFlags::NoRemoveDir).map_err(failed)
        };
        self.serve(Kind::Other, work, done(reply));
    }

    fn rmdir(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let name = name.to_owned();
        let work = move |fs: &Server| {
            let parent = fs.node(parent.0)?;
            unlinkat(&parent, name.as_os_str(), UnlinkatFlags::RemoveDir).map_err(failed)
        };
        self.serve(Kind::Other, work, done(reply));
    }

    fn rename(
        &self,
        _: &Request,
        parent: INodeNo,
        name: &OsStr,
        new_parent: INodeNo,
        new_name: &OsStr,
        _: RenameFlags,
        reply: ReplyEmpty,
    ) {
        let (name, new_name) = (name.to_owned(), new_name.to_owned());
        let work = move |fs: &Server| {
            let (from, to) = (fs.node(parent.0)?, fs.node(new_parent.0)?);
            renameat(&from, name.as_os_str(), &to, new_name.as_os_str()).map_err(failed)
        };
        self.serve(Kind::Other, work, done(reply));
    }

    fn open(&self, _: &Request, ino: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        let work = move |fs: &Server| fs.open(ino.0, flags);
        self.serve(
            Kind::Other,
            work,
            opened(reply, FopenFlags::FOPEN_DIRECT_IO),
        );
    }

    fn opendir(&self, _: &Request, ino: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        let work = move |fs: &Server| fs.open(ino.0, OpenFlags(libc::O_RDONLY));
        self.serve(Kind::Other, work, opened(reply, FopenFlags::empty()));
    }

    fn read(
        &self,
        _: &Request,
        _: INodeNo,
        handle: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let work = move |fs: &Server| fs.read(handle, offset, size);
        self.serve(Kind::Read, work, |result| match result {
            Ok(bytes) => reply.data(&bytes),
            Err(errno) => reply.error(errno),
        });
    }

    fn write(
        &self,
        _: &Request,
        _: INodeNo,
        handle: FileHandle,
        offset: u64,
        data: &[u8],
        _: WriteFlags,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let data = data.to_vec();
        let work = move |fs: &Server| {
            let file = fs.file(handle)?;
            file.write_all_at(&data, offset).map_err(failed)?;
            Ok(data.len() as u32)
        };
        self.serve(Kind::Write, work, |result| match result {
            Ok(written) => reply.written(written),
            Err(errno) => reply.error(errno),
        });
    }

    fn release(
        &self,
        _: &Request,
        _: INodeNo,
        handle: FileHandle,
        _: OpenFlags,
        _: Option<LockOwner>,
        _: bool,
        reply: ReplyEmpty,
    ) {
        self.0.tables.lock().files.remove(&handle.0);
        reply.ok();
    }

    fn releasedir(
        &self,
        _: &Request,
        _: INodeNo,
        handle: FileHandle,
        _: OpenFlags,
        reply: ReplyEmpty,
    ) {
        self.0.tables.lock().files.remove(&handle.0);
        reply.ok();
    }

    fn flush(&self, _: &Request, _: INodeNo, _: FileHandle, _: LockOwner, reply: ReplyEmpty) {
        self.serve(Kind::Other, |_| Ok(()), done(reply));
    }

    fn fsync(&self, _: &Request, _: INodeNo, handle: FileHandle, _: bool, reply: ReplyEmpty) {
        let work = move |fs: &Server| {
            let file = fs.file(handle)?;
            let path = fs::read_link(link_to(&file.as_raw_fd())).map_err(failed)?;
            fs.panel.hold_sync(&path);
            file.sync_data().map_err(failed)
        };
        self.serve(Kind::Sync, work, done(reply));
    }

    fn fsyncdir(&self, _: &Request, _: INodeNo, handle: FileHandle, _: bool, reply: ReplyEmpty) {
        let work = move |fs: &Server| fs.file(handle)?.sync_all().map_err(failed);
        self.serve(Kind::Sync, work, done(reply));
    }

    fn fallocate(
        &self,
        _: &Request,
        _: INodeNo,
        handle: FileHandle,
        offset: u64,
        length: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        let mode = FallocateFlags::from_bits_truncate(mode);
        let punch = mode.contains(FallocateFlags::FALLOC_FL_PUNCH_HOLE);
        let kind = if punch { Kind::Other } else { Kind::Grow };
        let work = move |fs: &Server| {
            let file = fs.file(handle)?;
            fallocate(&*file, mode, offset as i64, length as i64).map_err(failed)
        };
        self.serve(kind, work, done(reply));
    }

    fn readdir(
        &self,
        _: &Request,
        ino: INodeNo,
        _: FileHandle,
        offset: u64,
        mut reply: ReplyDirectory,
    ) {
        let work = move |fs: &Server| fs.list(ino.0);
        self.serve(Kind::Other, work, move |result| match result {
            Ok(names) => {
                for (at, (ino, kind, name)) in names.iter().enumerate().skip(offset as usize) {
                    if reply.add(INodeNo(*ino), at as u64 + 1, *kind, name) {
                        break;
                    }
                }
                reply.ok();
            }
            Err(errno) => reply.error(errno),
        });
    }

    fn statfs(&self, _: &Request, _: INodeNo, reply: ReplyStatfs) {
        let work = move |fs: &Server| {
            let root = fs.node(INodeNo::ROOT.0)?;
            let full = fs.panel.switches.lock().full;
            fstatvfs(&root).map(|stat| (stat, full)).map_err(failed)
        };
        self.serve(Kind::Other, work, |result| match result {
            Ok((stat, full)) => {
                let free = |blocks: u64| if full { 0 } else { blocks };
                reply.statfs(
                    stat.blocks(),
                    free(stat.blocks_free()),
                    free(stat.blocks_available()),
                    stat.files(),
                    stat.files_free(),
                    stat.block_size() as u32,
                    stat.name_max() as u32,
                    stat.fragment_size() as u32,
                );
            }
            Err(errno) => reply.error(errno),
        });
    }
}
