//! Error numbers: the same system calls with good and bad arguments on mendfs and on ext4, and the
//! answers compared one by one. What may differ is listed in [`MAY_DIFFER`], each with the reason,
//! and in mendfs(7).

mod common;

use std::collections::BTreeMap;
use std::ffi::CString;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::symlink;
use std::path::Path;

use nix::errno::Errno;
use nix::sys::stat::{Mode, SFlag, mknod};

use common::media::ext4;
use common::{Mounted, Pool, scratch};

/// Answers by call: a number, or the name of an error.
type Answers = BTreeMap<String, String>;

/// Calls whose label holds this text answer differently on FUSE, whatever the filesystem does.
const MAY_DIFFER: &[(&str, &str)] = &[
    ("O_TMPFILE", "not passed on by FUSE"),
    ("collapse", "refused by the kernel for FUSE"),
    ("insert", "refused by the kernel for FUSE"),
    ("FS_IOC", "no ioctl is served"),
    (
        "mmap sync",
        "MAP_SYNC is refused by the kernel, with another error",
    ),
    // Places in a directory are hashes on ext4, and EOF is one of them.
    ("lseek end -100: directory", "ext4's own"),
    ("lseek data 1000: directory", "ext4's own"),
    ("lseek hole 1000: directory", "ext4's own"),
];

/// The calls of one run, made in one directory.
struct Scene<'a> {
    dir: &'a Path,
    answers: Answers,
}

/// Names that the calls are tried on; see [`Scene::furnish`].
fn names() -> Vec<(&'static str, String)> {
    let mut names: Vec<(&str, String)> = [
        "file",
        "dir",
        "full",
        "link",
        "dirlink",
        "dangling",
        "loop",
        "fifo",
        "socket",
        "missing",
        "file/",
        "dir/",
        "link/",
        "dirlink/",
        "dangling/",
        "missing/",
        "file/x",
        "missing/x",
        "dir/x",
        "dir/.",
        "dir/..",
        "full/..",
        ".",
        "..",
        "fifo/",
        "loop/x",
        "dangling/x",
    ]
    .into_iter()
    .map(|name| (name, name.to_owned()))
    .collect();
    names.push(("255 bytes", "n".repeat(255)));
    names.push(("256 bytes", "n".repeat(256)));
    names.push(("dir/256 bytes", format!("dir/{}", "n".repeat(256))));
    names.push(("empty", String::new()));
    names
}

fn c(path: &str) -> CString {
    CString::new(path).expect("no NUL")
}

impl Scene<'_> {
    /// Makes the tree that the names of [`names`] mean, anew.
    fn furnish(&self) {
        for entry in fs::read_dir(self.dir).expect("the scene") {
            let path = entry.expect("an entry").path();
            if path.is_dir() && !path.is_symlink() {
                fs::remove_dir_all(&path).expect("rm -r");
            } else {
                fs::remove_file(&path).expect("rm");
            }
        }
        let at = |name: &str| self.dir.join(name);
        fs::write(at("file"), "0123456789").expect("write");
        fs::create_dir(at("dir")).expect("mkdir");
        fs::create_dir_all(at("full/sub")).expect("mkdir");
        symlink("file", at("link")).expect("symlink");
        symlink("dir", at("dirlink")).expect("symlink");
        symlink("nowhere", at("dangling")).expect("symlink");
        symlink("loop", at("loop")).expect("symlink");
        let mode = Mode::from_bits_truncate(0o644);
        mknod(&at("fifo"), SFlag::S_IFIFO, mode, 0).expect("mkfifo");
        mknod(&at("socket"), SFlag::S_IFSOCK, mode, 0).expect("mknod");
    }

    /// Notes an answer: what a call returned, -1 with errno for an error.
    fn note(&mut self, label: &str, answer: i64) -> bool {
        let text = if answer < 0 {
            format!("{:?}", Errno::last())
        } else {
            answer.to_string()
        };
        let old = self.answers.insert(label.to_owned(), text);
        assert!(old.is_none(), "{label} is asked twice");
        answer >= 0
    }

    /// As [`Scene::note`], for calls that return a descriptor.
    fn note_fd(&mut self, label: &str, fd: i32) {
        if self.note(label, i64::from(fd.min(0))) {
            close(fd);
        }
    }

    /// The absolute path of a name, for calls that take one.
    fn path(&self, name: &str) -> CString {
        if name.is_empty() {
            return c("");
        }
        CString::new(self.dir.join(name).as_os_str().as_bytes()).expect("no NUL")
    }

    fn open(&self, name: &str, flags: i32) -> i32 {
        // SAFETY: the path ends in NUL.
        unsafe { libc::open(self.path(name).as_ptr(), flags, 0o644) }
    }

    fn opened(&self, name: &str, flags: i32) -> i32 {
        let fd = self.open(name, flags);
        assert!(fd >= 0, "{name}: {}", Errno::last());
        fd
    }
}

fn close(fd: i32) {
    // SAFETY: a descriptor of ours, closed once.
    assert_eq!(unsafe { libc::close(fd) }, 0);
}

/// Every way to open every kind of name.
fn opens(scene: &mut Scene<'_>) {
    let flags: &[(&str, i32)] = &[
        ("O_RDONLY", libc::O_RDONLY),
        ("O_WRONLY", libc::O_WRONLY),
        ("O_RDWR", libc::O_RDWR),
        ("3", 3),
        ("O_DIRECTORY", libc::O_DIRECTORY),
        ("O_DIRECTORY|O_RDWR", libc::O_DIRECTORY | libc::O_RDWR),
        ("O_CREAT", libc::O_CREAT),
        ("O_CREAT|O_RDWR", libc::O_CREAT | libc::O_RDWR),
        (
            "O_CREAT|O_EXCL",
            libc::O_CREAT | libc::O_EXCL | libc::O_WRONLY,
        ),
        ("O_CREAT|O_DIRECTORY", libc::O_CREAT | libc::O_DIRECTORY),
        ("O_CREAT|O_NOFOLLOW", libc::O_CREAT | libc::O_NOFOLLOW),
        (
            "O_CREAT|O_TRUNC",
            libc::O_CREAT | libc::O_TRUNC | libc::O_RDWR,
        ),
        ("O_EXCL", libc::O_EXCL),
        ("O_NOFOLLOW", libc::O_NOFOLLOW),
        (
            "O_NOFOLLOW|O_DIRECTORY",
            libc::O_NOFOLLOW | libc::O_DIRECTORY,
        ),
        ("O_PATH", libc::O_PATH),
        ("O_PATH|O_NOFOLLOW", libc::O_PATH | libc::O_NOFOLLOW),
        ("O_PATH|O_DIRECTORY", libc::O_PATH | libc::O_DIRECTORY),
        ("O_TRUNC|O_WRONLY", libc::O_TRUNC | libc::O_WRONLY),
        ("O_TRUNC|O_RDONLY", libc::O_TRUNC),
        ("O_APPEND|O_WRONLY", libc::O_APPEND | libc::O_WRONLY),
        (
            "O_APPEND|O_TRUNC|O_RDWR",
            libc::O_APPEND | libc::O_TRUNC | libc::O_RDWR,
        ),
        ("O_DIRECT", libc::O_DIRECT),
        ("O_DIRECT|O_RDWR", libc::O_DIRECT | libc::O_RDWR),
        (
            "O_DIRECT|O_CREAT|O_RDWR",
            libc::O_DIRECT | libc::O_CREAT | libc::O_RDWR,
        ),
        ("O_SYNC|O_WRONLY", libc::O_SYNC | libc::O_WRONLY),
        ("O_NOATIME", libc::O_NOATIME),
        ("O_TMPFILE|O_RDWR", libc::O_TMPFILE | libc::O_RDWR),
    ];
    for (label, flag) in flags {
        scene.furnish();
        for (shown, name) in names() {
            // A FIFO without a partner would wait.
            let fd = scene.open(&name, flag | libc::O_NONBLOCK);
            scene.note_fd(&format!("open {shown} {label}"), fd);
        }
    }
}

/// Calls that take one path.
#[expect(clippy::too_many_lines, reason = "a table")]
fn single(scene: &mut Scene<'_>) {
    type Call = fn(&CString) -> i64;
    // SAFETY: for all of these: paths and names end in NUL, buffers live through the call and are
    // as long as said.
    let calls: &[(&str, Call)] = unsafe {
        &[
            ("mkdir", |path| libc::mkdir(path.as_ptr(), 0o755).into()),
            ("rmdir", |path| libc::rmdir(path.as_ptr()).into()),
            ("unlink", |path| libc::unlink(path.as_ptr()).into()),
            ("remove dir", |path| {
                libc::unlinkat(libc::AT_FDCWD, path.as_ptr(), libc::AT_REMOVEDIR).into()
            }),
            ("unlinkat bad flag", |path| {
                libc::unlinkat(libc::AT_FDCWD, path.as_ptr(), libc::AT_SYMLINK_FOLLOW).into()
            }),
            ("mknod untyped", |path| {
                libc::mknod(path.as_ptr(), 0o600, 0).into()
            }),
            ("mknod file", |path| {
                libc::mknod(path.as_ptr(), libc::S_IFREG | 0o600, 0).into()
            }),
            ("mknod fifo", |path| {
                libc::mknod(path.as_ptr(), libc::S_IFIFO | 0o600, 0).into()
            }),
            ("mknod socket", |path| {
                libc::mknod(path.as_ptr(), libc::S_IFSOCK | 0o600, 0).into()
            }),
            ("mknod char", |path| {
                libc::mknod(path.as_ptr(), libc::S_IFCHR | 0o600, libc::makedev(1, 3)).into()
            }),
            ("mknod block", |path| {
                libc::mknod(path.as_ptr(), libc::S_IFBLK | 0o600, libc::makedev(7, 0)).into()
            }),
            ("mknod dir", |path| {
                libc::mknod(path.as_ptr(), libc::S_IFDIR | 0o600, 0).into()
            }),
            ("mknod link", |path| {
                libc::mknod(path.as_ptr(), libc::S_IFLNK | 0o600, 0).into()
            }),
            ("mknod nonsense", |path| {
                libc::mknod(path.as_ptr(), 0o170_600, 0).into()
            }),
            ("symlink", |path| {
                libc::symlink(c"target".as_ptr(), path.as_ptr()).into()
            }),
            ("symlink to nothing", |path| {
                libc::symlink(c"".as_ptr(), path.as_ptr()).into()
            }),
            ("readlink", |path| {
                let mut buffer = [0u8; 100];
                libc::readlink(path.as_ptr(), buffer.as_mut_ptr().cast(), 100) as i64
            }),
            ("readlink 0", |path| {
                libc::readlink(path.as_ptr(), [0u8; 1].as_mut_ptr().cast(), 0) as i64
            }),
            ("truncate -1", |path| {
                libc::truncate(path.as_ptr(), -1).into()
            }),
            ("truncate 5", |path| libc::truncate(path.as_ptr(), 5).into()),
            ("stat", |path| {
                let mut stat = std::mem::zeroed();
                match libc::stat(path.as_ptr(), &mut stat) {
                    0 => i64::from(stat.st_mode),
                    failed => failed.into(),
                }
            }),
            ("lstat", |path| {
                let mut stat = std::mem::zeroed();
                match libc::lstat(path.as_ptr(), &mut stat) {
                    0 => i64::from(stat.st_mode) << 8 | stat.st_nlink.cast_signed(),
                    failed => failed.into(),
                }
            }),
            ("statfs", |path| {
                libc::statfs(path.as_ptr(), &mut std::mem::zeroed()).into()
            }),
            ("access", |path| {
                libc::access(path.as_ptr(), libc::R_OK | libc::W_OK).into()
            }),
            ("access x", |path| {
                libc::access(path.as_ptr(), libc::X_OK).into()
            }),
            ("access bad", |path| {
                libc::access(path.as_ptr(), 0o100).into()
            }),
            ("chmod", |path| libc::chmod(path.as_ptr(), 0o640).into()),
            ("chmod all", |path| {
                libc::chmod(path.as_ptr(), 0o177_777).into()
            }),
            ("fchmodat nofollow", |path| {
                let flag = libc::AT_SYMLINK_NOFOLLOW;
                libc::syscall(452, libc::AT_FDCWD, path.as_ptr(), 0o600, flag)
            }),
            ("lchown", |path| libc::lchown(path.as_ptr(), 1, 2).into()),
            ("chown", |path| {
                libc::chown(path.as_ptr(), u32::MAX, u32::MAX).into()
            }),
            ("utimensat", |path| utimensat(path, 1, 999_999_999, 0)),
            ("utimensat nofollow", |path| {
                utimensat(path, 1, 0, libc::AT_SYMLINK_NOFOLLOW)
            }),
            ("utimensat bad ns", |path| {
                utimensat(path, 1, 1_000_000_000, 0)
            }),
            ("utimensat negative ns", |path| utimensat(path, 1, -1, 0)),
            ("utimensat bad flag", |path| utimensat(path, 1, 0, 0x4000)),
            ("utimensat both omit", |path| {
                utimensat(path, 0, libc::UTIME_OMIT, 0)
            }),
            ("setxattr user", |path| {
                setxattr(path, c"user.name", b"value", 0)
            }),
            ("setxattr again", |path| {
                setxattr(path, c"user.name", b"value", libc::XATTR_CREATE)
            }),
            ("setxattr replace none", |path| {
                setxattr(path, c"user.none", b"value", libc::XATTR_REPLACE)
            }),
            ("setxattr bad flag", |path| {
                setxattr(path, c"user.bad", b"value", 8)
            }),
            ("setxattr no class", |path| {
                setxattr(path, c"noclass", b"value", 0)
            }),
            ("setxattr unknown class", |path| {
                setxattr(path, c"other.class", b"value", 0)
            }),
            ("setxattr empty name", |path| {
                setxattr(path, c"", b"value", 0)
            }),
            ("setxattr user. alone", |path| {
                setxattr(path, c"user.", b"value", 0)
            }),
            ("getxattr", |path| getxattr(path, c"user.name", 100)),
            ("getxattr short", |path| getxattr(path, c"user.name", 2)),
            ("getxattr size", |path| getxattr(path, c"user.name", 0)),
            ("getxattr none", |path| getxattr(path, c"user.none", 100)),
            ("getxattr no class", |path| getxattr(path, c"noclass", 100)),
            ("removexattr none", |path| {
                libc::removexattr(path.as_ptr(), c"user.none".as_ptr()).into()
            }),
            ("removexattr", |path| {
                libc::removexattr(path.as_ptr(), c"user.name".as_ptr()).into()
            }),
            ("chdir", |path| {
                let done = libc::chdir(path.as_ptr()).into();
                if done == 0 {
                    assert_eq!(libc::chdir(c"/".as_ptr()), 0);
                }
                done
            }),
            ("open by handle size", |path| {
                let mut id = 0;
                let mut handle = [0u64; 20];
                libc::name_to_handle_at(
                    libc::AT_FDCWD,
                    path.as_ptr(),
                    handle.as_mut_ptr().cast(),
                    &mut id,
                    0,
                )
                .into()
            }),
            ("execve", |path| {
                libc::execve(path.as_ptr(), std::ptr::null(), std::ptr::null()).into()
            }),
        ]
    };
    for (label, call) in calls {
        // Attributes are set by one call and asked for by the next.
        if !label.contains("xattr") {
            scene.furnish();
        }
        for (shown, name) in names() {
            let answer = call(&scene.path(&name));
            scene.note(&format!("{label} {shown}"), answer);
        }
    }
}

fn utimensat(path: &CString, seconds: i64, nanoseconds: i64, flags: i32) -> i64 {
    let time = libc::timespec {
        tv_sec: seconds,
        tv_nsec: nanoseconds,
    };
    // SAFETY: the path ends in NUL, and there are two times.
    unsafe { libc::utimensat(libc::AT_FDCWD, path.as_ptr(), [time, time].as_ptr(), flags).into() }
}

fn setxattr(path: &CString, name: &std::ffi::CStr, value: &[u8], flags: i32) -> i64 {
    let (name, data) = (name.as_ptr(), value.as_ptr().cast());
    // SAFETY: both strings end in NUL and the value is as long as said.
    unsafe { libc::setxattr(path.as_ptr(), name, data, value.len(), flags).into() }
}

fn getxattr(path: &CString, name: &std::ffi::CStr, size: usize) -> i64 {
    let mut value = [0u8; 100];
    // SAFETY: both strings end in NUL and the buffer has 100 bytes or more than is asked for.
    unsafe {
        libc::getxattr(
            path.as_ptr(),
            name.as_ptr(),
            value.as_mut_ptr().cast(),
            size,
        ) as i64
    }
}

/// Renames and links of every kind of name to every other.
fn pairs(scene: &mut Scene<'_>) {
    let kinds = [
        "file",
        "dir",
        "full",
        "full/sub",
        "link",
        "dirlink",
        "dangling",
        "loop",
        "fifo",
        "missing",
        "file/",
        "dir/",
        "link/",
        "dirlink/",
        "missing/",
        "file/x",
        "missing/x",
        "dir/x",
        "dir/.",
        "full/..",
        ".",
        "..",
        "full/sub/x",
        "256 bytes",
        "empty",
    ];
    let names: Vec<_> = kinds
        .into_iter()
        .map(|kind| match kind {
            "256 bytes" => (kind, "n".repeat(256)),
            "empty" => (kind, String::new()),
            kind => (kind, kind.to_owned()),
        })
        .collect();
    let flags = [
        ("", 0),
        (" noreplace", libc::RENAME_NOREPLACE),
        (" exchange", libc::RENAME_EXCHANGE),
    ];
    for (shown, old) in &names {
        for (new_shown, new) in &names {
            let (from, to) = (scene.path(old), scene.path(new));
            for (label, flag) in flags {
                scene.furnish();
                // SAFETY: the paths end in NUL.
                let done = unsafe {
                    let cwd = libc::AT_FDCWD;
                    libc::renameat2(cwd, from.as_ptr(), cwd, to.as_ptr(), flag)
                };
                scene.note(
                    &format!("rename{label} {shown} to {new_shown}"),
                    done.into(),
                );
            }
            for (label, flag) in [("", 0), (" follow", libc::AT_SYMLINK_FOLLOW), (" bad", 1)] {
                scene.furnish();
                // SAFETY: the paths end in NUL.
                let done = unsafe {
                    let cwd = libc::AT_FDCWD;
                    libc::linkat(cwd, from.as_ptr(), cwd, to.as_ptr(), flag)
                };
                scene.note(&format!("link{label} {shown} to {new_shown}"), done.into());
            }
        }
    }
    let both = libc::RENAME_EXCHANGE | libc::RENAME_NOREPLACE;
    for (label, flag) in [
        ("both", both),
        ("unknown", 0x80),
        ("whiteout", libc::RENAME_WHITEOUT),
    ] {
        scene.furnish();
        let (from, to) = (scene.path("file"), scene.path("missing"));
        // SAFETY: the paths end in NUL.
        let done = unsafe {
            let cwd = libc::AT_FDCWD;
            libc::renameat2(cwd, from.as_ptr(), cwd, to.as_ptr(), flag)
        };
        scene.note(&format!("rename flags {label}"), done.into());
    }
}

/// Calls on descriptors of every kind.
#[expect(clippy::too_many_lines, reason = "a table")]
fn descriptors(scene: &mut Scene<'_>) {
    type Call = fn(i32) -> i64;
    const BIG: i64 = i64::MAX;
    fn io(fd: i32, offset: i64, writes: bool) -> i64 {
        let mut bytes = [b'x'; 4];
        // SAFETY: the buffer has 4 bytes.
        unsafe {
            if writes {
                libc::pwrite(fd, bytes.as_ptr().cast(), 4, offset) as i64
            } else {
                libc::pread(fd, bytes.as_mut_ptr().cast(), 4, offset) as i64
            }
        }
    }
    fn vector(fd: i32, flags: i32, writes: bool) -> i64 {
        let mut bytes = [b'x'; 4];
        let part = libc::iovec {
            iov_base: bytes.as_mut_ptr().cast(),
            iov_len: 4,
        };
        // SAFETY: one part, of 4 bytes.
        unsafe {
            if writes {
                libc::pwritev2(fd, &part, 1, 0, flags) as i64
            } else {
                libc::preadv2(fd, &part, 1, 0, flags) as i64
            }
        }
    }
    fn map(fd: i32, len: usize, protection: i32, kind: i32, offset: i64) -> i64 {
        // SAFETY: a new map that nobody looks into.
        unsafe {
            let map = libc::mmap(std::ptr::null_mut(), len, protection, kind, fd, offset);
            if map == libc::MAP_FAILED {
                return -1;
            }
            libc::munmap(map, len).into()
        }
    }
    fn copy(from: i32, mut start: i64, to: i32, mut at: i64, len: usize, flags: u32) -> i64 {
        // SAFETY: the offsets live through the call.
        unsafe { libc::copy_file_range(from, &mut start, to, &mut at, len, flags) as i64 }
    }
    // SAFETY: for all of these: buffers live through the call and are as long as said.
    let calls: &[(&str, Call)] = unsafe {
        &[
            ("pread", |fd| io(fd, 0, false)),
            ("pread at the end", |fd| io(fd, 10, false)),
            ("pread -1", |fd| io(fd, -1, false)),
            ("pread max", |fd| io(fd, BIG, false)),
            ("pread max - 4", |fd| io(fd, BIG - 4, false)),
            ("pwrite -1", |fd| io(fd, -1, true)),
            ("pwrite", |fd| io(fd, 0, true)),
            ("pwrite 0 bytes", |fd| {
                libc::pwrite(fd, [0u8; 1].as_ptr().cast(), 0, 0) as i64
            }),
            ("lseek set -1", |fd| libc::lseek(fd, -1, libc::SEEK_SET)),
            ("lseek end -100", |fd| libc::lseek(fd, -100, libc::SEEK_END)),
            ("lseek bad", |fd| libc::lseek(fd, 0, 9)),
            ("lseek data -1", |fd| libc::lseek(fd, -1, libc::SEEK_DATA)),
            ("lseek hole -1", |fd| libc::lseek(fd, -1, libc::SEEK_HOLE)),
            ("lseek data 1000", |fd| {
                libc::lseek(fd, 1000, libc::SEEK_DATA)
            }),
            ("lseek hole 1000", |fd| {
                libc::lseek(fd, 1000, libc::SEEK_HOLE)
            }),
            ("lseek data max", |fd| libc::lseek(fd, BIG, libc::SEEK_DATA)),
            ("ftruncate -1", |fd| libc::ftruncate(fd, -1).into()),
            ("ftruncate 10", |fd| libc::ftruncate(fd, 10).into()),
            ("fsync", |fd| libc::fsync(fd).into()),
            ("fdatasync", |fd| libc::fdatasync(fd).into()),
            ("sync_file_range", |fd| {
                libc::sync_file_range(fd, 0, 0, 7).into()
            }),
            ("sync_file_range -1", |fd| {
                libc::sync_file_range(fd, -1, 0, 7).into()
            }),
            ("sync_file_range bad", |fd| {
                libc::sync_file_range(fd, 0, 0, 8).into()
            }),
            ("fallocate", |fd| libc::fallocate(fd, 0, 0, 10).into()),
            ("fallocate -1", |fd| libc::fallocate(fd, 0, -1, 10).into()),
            ("fallocate len 0", |fd| libc::fallocate(fd, 0, 0, 0).into()),
            ("fallocate len -1", |fd| {
                libc::fallocate(fd, 0, 0, -1).into()
            }),
            ("fallocate wraps", |fd| {
                libc::fallocate(fd, 0, BIG, 10).into()
            }),
            ("fallocate punch", |fd| libc::fallocate(fd, 3, 2, 2).into()),
            ("fallocate punch behind", |fd| {
                libc::fallocate(fd, 3, 1 << 20, 4096).into()
            }),
            ("fallocate punch alone", |fd| {
                libc::fallocate(fd, 2, 0, 4096).into()
            }),
            ("fallocate zero keep", |fd| {
                libc::fallocate(fd, 0x11, 0, 4096).into()
            }),
            ("fallocate zero punch", |fd| {
                libc::fallocate(fd, 0x13, 0, 4096).into()
            }),
            ("fallocate collapse", |fd| {
                libc::fallocate(fd, 8, 0, 4096).into()
            }),
            ("fallocate insert", |fd| {
                libc::fallocate(fd, 0x20, 0, 4096).into()
            }),
            ("fallocate unknown", |fd| {
                libc::fallocate(fd, 0x4000, 0, 4096).into()
            }),
            ("posix_fadvise", |fd| {
                libc::posix_fadvise(fd, 0, 0, 4).into()
            }),
            ("posix_fadvise bad", |fd| {
                libc::posix_fadvise(fd, 0, 0, 77).into()
            }),
            ("readahead", |fd| libc::readahead(fd, 0, 4096) as i64),
            ("mmap read", |fd| {
                map(fd, 4096, libc::PROT_READ, libc::MAP_SHARED, 0)
            }),
            ("mmap write", |fd| {
                map(fd, 4096, libc::PROT_WRITE, libc::MAP_SHARED, 0)
            }),
            ("mmap private", |fd| {
                map(fd, 4096, libc::PROT_WRITE, libc::MAP_PRIVATE, 0)
            }),
            ("mmap exec", |fd| {
                map(fd, 4096, libc::PROT_EXEC, libc::MAP_PRIVATE, 0)
            }),
            ("mmap len 0", |fd| {
                map(fd, 0, libc::PROT_READ, libc::MAP_SHARED, 0)
            }),
            ("mmap unaligned", |fd| {
                map(fd, 4096, libc::PROT_READ, libc::MAP_SHARED, 10)
            }),
            ("mmap sync", |fd| {
                let kind = libc::MAP_SHARED_VALIDATE | libc::MAP_SYNC;
                map(fd, 4096, libc::PROT_READ, kind, 0)
            }),
            ("getdents", |fd| {
                let mut buffer = [0u8; 16];
                libc::syscall(libc::SYS_getdents64, fd, buffer.as_mut_ptr(), 16)
            }),
            ("fchdir", |fd| {
                let done = libc::fchdir(fd).into();
                if done == 0 {
                    assert_eq!(libc::chdir(c"/".as_ptr()), 0);
                }
                done
            }),
            ("fstatfs", |fd| {
                libc::fstatfs(fd, &mut std::mem::zeroed()).into()
            }),
            ("fchmod", |fd| libc::fchmod(fd, 0o644).into()),
            ("fchown", |fd| libc::fchown(fd, 0, 0).into()),
            ("futimens", |fd| libc::futimens(fd, std::ptr::null()).into()),
            ("TCGETS", |fd| {
                libc::ioctl(fd, libc::TCGETS, [0u8; 100].as_mut_ptr()).into()
            }),
            ("FIONREAD", |fd| {
                libc::ioctl(fd, libc::FIONREAD, [0u8; 8].as_mut_ptr()).into()
            }),
            ("FIGETBSZ", |fd| {
                libc::ioctl(fd, 2, [0u8; 8].as_mut_ptr()).into()
            }),
            ("FS_IOC_GETFLAGS", |fd| {
                libc::ioctl(fd, libc::FS_IOC_GETFLAGS, [0u8; 8].as_mut_ptr()).into()
            }),
            ("FICLONE", |fd| libc::ioctl(fd, 0x4004_9409, fd).into()),
            ("flock", |fd| {
                libc::flock(fd, libc::LOCK_SH | libc::LOCK_NB).into()
            }),
            ("flock bad", |fd| libc::flock(fd, 77).into()),
            ("copy to itself", |fd| copy(fd, 0, fd, 2, 5, 0)),
            ("copy 0 bytes", |fd| copy(fd, 0, fd, 5, 0, 0)),
            ("copy bad flag", |fd| copy(fd, 0, fd, 5, 5, 1)),
            ("copy -1", |fd| copy(fd, -1, fd, 5, 5, 0)),
            ("copy from behind", |fd| copy(fd, 100, fd, 5, 5, 0)),
            ("preadv2 hipri", |fd| vector(fd, libc::RWF_HIPRI, false)),
            ("preadv2 bad", |fd| vector(fd, 0x4000, false)),
            ("preadv2 append", |fd| vector(fd, libc::RWF_APPEND, false)),
            ("pwritev2 dsync", |fd| vector(fd, libc::RWF_DSYNC, true)),
            ("pwritev2 sync", |fd| vector(fd, libc::RWF_SYNC, true)),
            ("pwritev2 bad", |fd| vector(fd, 0x4000, true)),
            ("openat", |fd| {
                let fd = libc::openat(fd, c"x".as_ptr(), libc::O_RDONLY);
                if fd >= 0 { libc::close(fd).into() } else { -1 }
            }),
            ("linkat empty", |fd| {
                let flag = libc::AT_EMPTY_PATH;
                libc::linkat(
                    fd,
                    c"".as_ptr(),
                    libc::AT_FDCWD,
                    c"/proc/none".as_ptr(),
                    flag,
                )
                .into()
            }),
            ("F_SETLEASE", |fd| {
                libc::fcntl(fd, libc::F_SETLEASE, libc::F_RDLCK).into()
            }),
            ("F_GETLK", |fd| {
                let mut lock: libc::flock = std::mem::zeroed();
                lock.l_type = libc::F_WRLCK as i16;
                libc::fcntl(fd, libc::F_GETLK, &mut lock).into()
            }),
            ("F_SETLK write", |fd| {
                let mut lock: libc::flock = std::mem::zeroed();
                lock.l_type = libc::F_WRLCK as i16;
                libc::fcntl(fd, libc::F_SETLK, &mut lock).into()
            }),
            ("F_SETLK read", |fd| {
                let mut lock: libc::flock = std::mem::zeroed();
                libc::fcntl(fd, libc::F_SETLK, &mut lock).into()
            }),
            ("F_SETFL direct", |fd| {
                libc::fcntl(fd, libc::F_SETFL, libc::O_DIRECT).into()
            }),
            ("F_NOTIFY", |fd| libc::fcntl(fd, libc::F_NOTIFY, 0).into()),
        ]
    };
    let kinds = [
        ("file for reading", "file", libc::O_RDONLY),
        ("file for writing", "file", libc::O_WRONLY),
        ("file for both", "file", libc::O_RDWR),
        ("file for appending", "file", libc::O_RDWR | libc::O_APPEND),
        ("file direct", "file", libc::O_RDWR | libc::O_DIRECT),
        ("file by path", "file", libc::O_PATH),
        ("directory", "full", libc::O_RDONLY),
        ("directory by path", "full", libc::O_PATH),
        ("link by path", "link", libc::O_PATH | libc::O_NOFOLLOW),
        ("fifo", "fifo", libc::O_RDWR | libc::O_NONBLOCK),
        ("socket by path", "socket", libc::O_PATH),
    ];
    for (shown, name, flags) in kinds {
        for (label, call) in calls {
            // O_DIRECT takes only what the device below takes there, and everything here.
            if flags & libc::O_DIRECT != 0
                && (label.starts_with("pread") || label.starts_with("pwrite"))
            {
                continue;
            }
            scene.furnish();
            let fd = scene.opened(name, flags);
            let answer = call(fd);
            scene.note(&format!("{label}: {shown}"), answer);
            close(fd);
        }
    }
}

fn run(dir: &Path) -> Answers {
    // Below another, since a root has other directories beside it.
    fs::create_dir_all(dir).expect("mkdir");
    let mut scene = Scene {
        dir,
        answers: Answers::new(),
    };
    opens(&mut scene);
    single(&mut scene);
    pairs(&mut scene);
    descriptors(&mut scene);
    scene.answers
}

#[test]
fn system_calls_answer_as_on_ext4() {
    let scratch = scratch();
    let at = scratch.path().join("ext4");
    fs::create_dir(&at).expect("mkdir");
    ext4(&at, 64 << 20);
    let _disk = Mounted(at.clone());
    let mut pool = Pool::create(2);
    pool.mount();
    let dir = "below/errors";
    let (want, got) = (run(&at.join(dir)), run(&pool.mnt().join(dir)));
    assert_eq!(want.len(), got.len());
    let mut differ = Vec::new();
    let mut excused = vec![0; MAY_DIFFER.len()];
    for (label, want) in &want {
        let got = &got[label];
        if got == want {
            continue;
        }
        match MAY_DIFFER.iter().position(|(part, _)| label.contains(part)) {
            Some(number) => excused[number] += 1,
            None => differ.push(format!("{label}: {got}, on ext4 {want}")),
        }
    }
    assert!(
        differ.is_empty(),
        "{} of {} answers differ:\n{}",
        differ.len(),
        want.len(),
        differ.join("\n")
    );
    for ((label, _), count) in MAY_DIFFER.iter().zip(excused) {
        assert!(count > 0, "{label} need not be excused");
    }
    pool.umount();
    pool.check_clean();
}
