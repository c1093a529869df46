//! Harness of the tests on real mounts: pools in a temporary directory, mounted by the real binary.
//!
//! Owns the processes and mounts that a test makes and takes them away again, also when it panics.
//! Waits are polls of a condition with a deadline. `content` makes and checks files, `disk` looks
//! at and damages what lies in a mirror directory, `status` reads `mendfs status --json`.
//! The tests run as root, since they mount.
#![allow(dead_code)]

pub(crate) mod content;
pub(crate) mod disk;
pub(crate) mod faulty;
pub(crate) mod media;
pub(crate) mod scenario;
pub(crate) mod status;

use std::ffi::{CString, OsStr};
use std::fs::{self, File};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::mount::{MntFlags, umount2};
use tempfile::TempDir;

/// The binary under test.
pub(crate) const MENDFS: &str = env!("CARGO_BIN_EXE_mendfs");
/// Longest wait for a mount to appear.
const MOUNT_DEADLINE: Duration = Duration::from_secs(60);
/// Longest wait for the process to end after umount.
const EXIT_DEADLINE: Duration = Duration::from_secs(120);

/// Whether the run was asked for full sizes and counts.
pub(crate) fn long() -> bool {
    std::env::var_os("MENDFS_LONG").is_some_and(|value| value == "1")
}

/// A number from the environment.
pub(crate) fn env_number(name: &str, default: u64) -> u64 {
    std::env::var(name)
        .ok()
        .map_or(default, |value| value.parse().expect("a number"))
}

/// Seed of this run: `SEED=n` repeats one.
pub(crate) fn seed() -> u64 {
    let clock = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    let fresh = clock.map_or(1, |since| since.as_nanos() as u64 & 0xffff_ffff);
    let seed = env_number("SEED", fresh);
    eprintln!("SEED={seed}");
    seed
}

/// A directory for pools, on the disk that cargo builds on unless MENDFS_TEST_DIR names another.
pub(crate) fn scratch() -> TempDir {
    let parent = std::env::var_os("MENDFS_TEST_DIR")
        .map_or_else(|| PathBuf::from(env!("CARGO_TARGET_TMPDIR")), PathBuf::from);
    fs::create_dir_all(&parent).expect("the scratch directory's parent");
    tempfile::Builder::new()
        .prefix("mendfs-")
        .tempdir_in(parent)
        .expect("a scratch directory")
}

/// Polls until `done` holds, and panics naming `what` at the deadline.
pub(crate) fn wait_for(what: &str, deadline: Duration, mut done: impl FnMut() -> bool) {
    let start = Instant::now();
    while !done() {
        assert!(start.elapsed() < deadline, "waited {deadline:?} for {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Runs the binary under test to its end.
pub(crate) fn mendfs<S: AsRef<OsStr>>(args: impl IntoIterator<Item = S>) -> Output {
    Command::new(MENDFS)
        .args(args)
        .stdin(Stdio::null())
        .output()
        .expect("mendfs runs")
}

/// Standard output and standard error as one text, for messages.
pub(crate) fn text(output: &Output) -> String {
    let out = String::from_utf8_lossy(&output.stdout);
    let err = String::from_utf8_lossy(&output.stderr);
    format!("{}\n{out}{err}", output.status)
}

/// One line of /proc/self/mountinfo.
#[derive(Debug)]
pub(crate) struct MountLine {
    pub(crate) fstype: String,
    pub(crate) source: String,
    pub(crate) options: String,
}

/// What is mounted on top at `at`.
pub(crate) fn mount_at(at: &Path) -> Option<MountLine> {
    let table = fs::read_to_string("/proc/self/mountinfo").expect("mountinfo");
    let line = table.lines().rev().find(|line| {
        let point = line.split(' ').nth(4);
        point.map(unescape).as_deref() == Some(at.as_os_str().as_bytes())
    })?;
    let (front, back) = line.split_once(" - ")?;
    let mut back = back.split(' ');
    let owned = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
    Some(MountLine {
        fstype: back.next()?.to_owned(),
        source: owned(unescape(back.next()?)),
        options: format!("{},{}", front.split(' ').nth(5)?, back.next()?),
    })
}

fn unescape(field: &str) -> Vec<u8> {
    let bytes = field.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let digits = field.get(at + 1..at + 4).filter(|_| bytes[at] == b'\\');
        match digits.and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            Some(byte) => {
                out.push(byte);
                at += 4;
            }
            None => {
                out.push(bytes[at]);
                at += 1;
            }
        }
    }
    out
}

/// Drops clean pages, entries and inodes from the kernel's caches.
pub(crate) fn drop_caches() {
    nix::unistd::sync();
    fs::write("/proc/sys/vm/drop_caches", "3").expect("drop_caches is writable by root");
}

/// A pool in a scratch directory, mounted or not.
pub(crate) struct Pool {
    /// Filesystems below the scratch directory, which must go first.
    disks: Vec<Mounted>,
    scratch: TempDir,
    mirrors: Vec<PathBuf>,
    mnt: PathBuf,
    child: Option<Child>,
}

impl Pool {
    /// Formats a pool of `count` mirrors.
    pub(crate) fn create(count: usize) -> Pool {
        Pool::create_with(count, &[])
    }

    /// As [`Pool::create`], with options for `mendfs format`.
    pub(crate) fn create_with(count: usize, options: &[&str]) -> Pool {
        let scratch = scratch();
        let mirrors = (0..count)
            .map(|number| scratch.path().join(format!("mirror{number}")))
            .collect();
        Pool::create_at(scratch, mirrors, options)
    }

    /// Formats a pool whose mirrors lie anywhere; directories that are not there are made.
    pub(crate) fn create_at(scratch: TempDir, mirrors: Vec<PathBuf>, options: &[&str]) -> Pool {
        for mirror in &mirrors {
            fs::create_dir_all(mirror).expect("a mirror directory");
        }
        let mut args: Vec<&OsStr> = vec![OsStr::new("format")];
        args.extend(options.iter().map(OsStr::new));
        args.extend(mirrors.iter().map(|mirror| mirror.as_os_str()));
        let output = mendfs(args);
        assert!(output.status.success(), "format: {}", text(&output));
        Pool::of(scratch, mirrors)
    }

    /// A pool that was formatted before.
    pub(crate) fn of(scratch: TempDir, mirrors: Vec<PathBuf>) -> Pool {
        let mnt = scratch.path().join("mnt");
        fs::create_dir_all(&mnt).expect("a mount point");
        Pool {
            disks: Vec::new(),
            scratch,
            mirrors,
            mnt,
            child: None,
        }
    }

    /// Takes these mounts away when the pool goes.
    pub(crate) fn own_disks(&mut self, disks: Vec<Mounted>) {
        self.disks.extend(disks);
    }

    /// The unmounted pool with other mirrors.
    pub(crate) fn of_parts(pool: Pool, mirrors: Vec<PathBuf>) -> Pool {
        assert!(pool.child.is_none(), "mounted");
        let mut pool = pool;
        pool.mirrors = mirrors;
        pool
    }

    /// A second pool with a copy of this one's mirrors as they lie on disk now.
    pub(crate) fn copy(&self) -> Pool {
        let scratch = scratch();
        let mut mirrors = Vec::new();
        for mirror in &self.mirrors {
            let to = scratch.path().join(mirror.file_name().expect("a name"));
            let done = Command::new("cp")
                .args(["-a", "--sparse=always"])
                .arg(mirror)
                .arg(&to)
                .status();
            assert!(done.expect("cp runs").success(), "copy of {mirror:?}");
            mirrors.push(to);
        }
        Pool::of(scratch, mirrors)
    }

    /// The mount point.
    pub(crate) fn mnt(&self) -> &Path {
        &self.mnt
    }

    /// Where this pool's scratch files may go.
    pub(crate) fn scratch(&self) -> &Path {
        self.scratch.path()
    }

    /// Directory of one mirror.
    pub(crate) fn mirror(&self, number: usize) -> &Path {
        &self.mirrors[number]
    }

    /// All mirror directories.
    pub(crate) fn mirrors(&self) -> &[PathBuf] {
        &self.mirrors
    }

    /// `A:B`, as mount takes it.
    pub(crate) fn spec(&self) -> String {
        let names: Vec<_> = self
            .mirrors
            .iter()
            .map(|path| path.to_string_lossy())
            .collect();
        names.join(":")
    }

    /// What the process has written to standard error since it was created.
    pub(crate) fn log(&self) -> String {
        fs::read(self.log_path())
            .map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
            .unwrap_or_default()
    }

    fn log_path(&self) -> PathBuf {
        self.scratch.path().join("log")
    }

    /// Process id of the mounted filesystem.
    pub(crate) fn pid(&self) -> u32 {
        self.child.as_ref().expect("mounted").id()
    }

    /// Mounts without options and returns how long it took until the root could be looked at.
    pub(crate) fn mount(&mut self) -> Duration {
        self.mount_with("")
    }

    /// Mounts with `-o options`.
    pub(crate) fn mount_with(&mut self, options: &str) -> Duration {
        assert!(self.child.is_none(), "mounted already");
        let log = File::options()
            .create(true)
            .append(true)
            .open(self.log_path());
        let mut command = Command::new(MENDFS);
        command.args(["mount", "-f"]);
        if !options.is_empty() {
            command.args(["-o", options]);
        }
        let start = Instant::now();
        let child = command
            .arg(self.spec())
            .arg(&self.mnt)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log.expect("the log"))
            .spawn();
        self.child = Some(child.expect("mendfs runs"));
        loop {
            let child = self.child.as_mut().expect("just started");
            if let Some(status) = child.try_wait().expect("wait") {
                self.child = None;
                panic!("mount ended with {status}: {}", self.log());
            }
            if mount_at(&self.mnt).is_some() && fs::metadata(&self.mnt).is_ok() {
                return start.elapsed();
            }
            assert!(start.elapsed() < MOUNT_DEADLINE, "no mount: {}", self.log());
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Unmounts, waits for the process to end and expects that it ended well.
    pub(crate) fn umount(&mut self) {
        let start = Instant::now();
        while let Err(errno) = umount2(&self.mnt, MntFlags::empty()) {
            let patient = start.elapsed() < Duration::from_secs(10);
            assert!(errno == Errno::EBUSY && patient, "umount: {errno}");
            std::thread::sleep(Duration::from_millis(5));
        }
        let status = self.wait_exit();
        assert!(status.success(), "ended with {status}: {}", self.log());
    }

    fn wait_exit(&mut self) -> ExitStatus {
        let mut child = self.child.take().expect("mounted");
        let start = Instant::now();
        loop {
            if let Some(status) = child.try_wait().expect("wait") {
                return status;
            }
            if start.elapsed() > EXIT_DEADLINE {
                let _ = child.kill();
                let _ = child.wait();
                panic!("no end {EXIT_DEADLINE:?} after umount: {}", self.log());
            }
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// Unmounts and mounts again: nothing of the pool stays in any cache above the mirrors.
    pub(crate) fn remount(&mut self) -> Duration {
        self.umount();
        self.mount()
    }

    /// Kills the process as a crash would and takes the dead mount away.
    pub(crate) fn kill9(&mut self) {
        self.kill_only();
        self.detach();
    }

    /// Kills the process and leaves the dead mount.
    pub(crate) fn kill_only(&mut self) {
        let mut child = self.child.take().expect("mounted");
        child.kill().expect("kill");
        let status = child.wait().expect("wait");
        assert_eq!(
            status.signal(),
            Some(libc::SIGKILL),
            "it was gone before the kill: {}",
            self.log()
        );
    }

    /// Takes a dead mount away. It must answer ENOTCONN, never show an empty directory.
    pub(crate) fn detach(&self) {
        // A name that was never asked for: the kernel may answer for others from its caches.
        let dead = fs::metadata(self.mnt.join("never asked for")).map(|_| ());
        let errno = dead.expect_err("a dead mount").raw_os_error();
        assert_eq!(errno, Some(libc::ENOTCONN));
        umount2(&self.mnt, MntFlags::MNT_DETACH).expect("umount -l of a dead mount");
    }

    /// Runs `mendfs check` on the unmounted pool.
    pub(crate) fn check(&self) -> Output {
        mendfs(["check", "--json", &self.spec()])
    }

    /// Expects `mendfs check` to find nothing.
    pub(crate) fn check_clean(&self) {
        let output = self.check();
        assert!(output.status.success(), "check: {}", text(&output));
    }

    /// Status of the mounted pool.
    pub(crate) fn status(&self) -> status::Status {
        status::Status::of(self.mnt.as_os_str())
    }

    /// Resident memory of the process in bytes.
    pub(crate) fn resident(&self) -> u64 {
        let table = fs::read_to_string(format!("/proc/{}/status", self.pid())).expect("status");
        let line = table.lines().find(|line| line.starts_with("VmRSS:"));
        let kib: u64 = line
            .and_then(|line| line.split_whitespace().nth(1))
            .and_then(|number| number.parse().ok())
            .expect("VmRSS");
        kib * 1024
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let log = self.log();
            let lines: Vec<_> = log.lines().collect();
            let from = lines.len().saturating_sub(40);
            eprintln!("--- log of mendfs, last lines");
            lines[from..].iter().for_each(|line| eprintln!("{line}"));
            eprintln!("---");
        }
        while mount_at(&self.mnt).is_some() {
            if umount2(&self.mnt, MntFlags::MNT_DETACH).is_err() {
                break;
            }
        }
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// Takes a mount away when dropped.
pub(crate) struct Mounted(pub(crate) PathBuf);

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = umount2(&self.0, MntFlags::MNT_DETACH);
    }
}

/// Value of an extended attribute.
pub(crate) fn xattr(path: &Path, name: &str) -> io::Result<Vec<u8>> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    let name = CString::new(name)?;
    let mut value = vec![0u8; 65_536];
    // SAFETY: both strings end in NUL and the buffer is as long as said.
    let len = unsafe {
        libc::getxattr(
            path.as_ptr(),
            name.as_ptr(),
            value.as_mut_ptr().cast(),
            value.len(),
        )
    };
    let len = usize::try_from(len).map_err(|_| io::Error::last_os_error())?;
    value.truncate(len);
    Ok(value)
}
