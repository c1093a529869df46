//! Locks between processes, and what inotify tells: both are the kernel's, and come out as they do
//! on the filesystem that the tests lie on.

mod common;

use std::ffi::CString;
use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::Duration;

use common::{Pool, drop_caches, scratch, wait_for};
use nix::errno::Errno;

const SOON: Duration = Duration::from_secs(20);
/// Begins a line that is an answer.
const ANSWER: &str = "answer ";

/// Takes a lock as fcntl(2) or flock(2) do, and says how that went.
fn lock(file: &File, words: &[&str]) -> Result<(), Errno> {
    let [how, kind, start, len, wait] = words else {
        panic!("{words:?}");
    };
    let (wait, number) = (*wait == "wait", |text: &str| {
        text.parse().expect("a number")
    });
    if *how == "flock" {
        let operation = match *kind {
            "read" => libc::LOCK_SH,
            "write" => libc::LOCK_EX,
            _ => libc::LOCK_UN,
        };
        let flags = if wait { 0 } else { libc::LOCK_NB };
        // SAFETY: the descriptor is open.
        return Errno::result(unsafe { libc::flock(file.as_raw_fd(), operation | flags) })
            .map(drop);
    }
    let command = match (*how, wait) {
        ("posix", false) => libc::F_SETLK,
        ("posix", true) => libc::F_SETLKW,
        ("ofd", false) => libc::F_OFD_SETLK,
        _ => libc::F_OFD_SETLKW,
    };
    let wanted = range(kind, number(start), number(len));
    // SAFETY: the descriptor is open and the argument is of the kind that the commands take.
    Errno::result(unsafe { libc::fcntl(file.as_raw_fd(), command, &raw const wanted) }).map(drop)
}

fn range(kind: &str, start: i64, len: i64) -> libc::flock {
    let kind = match kind {
        "read" => libc::F_RDLCK,
        "write" => libc::F_WRLCK,
        _ => libc::F_UNLCK,
    };
    libc::flock {
        l_type: kind as i16,
        l_whence: libc::SEEK_SET as i16,
        l_start: start,
        l_len: len,
        l_pid: 0,
    }
}

/// Who would stand in the way of a lock: process, start and length.
fn holder(file: &File, words: &[&str]) -> String {
    let [kind, start, len] = words else {
        panic!("{words:?}");
    };
    let number = |text: &str| text.parse().expect("a number");
    let mut wanted = range(kind, number(start), number(len));
    // SAFETY: as for `lock`.
    Errno::result(unsafe { libc::fcntl(file.as_raw_fd(), libc::F_GETLK, &raw mut wanted) })
        .expect("F_GETLK");
    if i32::from(wanted.l_type) == libc::F_UNLCK {
        return "nobody".to_owned();
    }
    format!("{} {} {}", wanted.l_pid, wanted.l_start, wanted.l_len)
}

/// The other process: does what it is told, one line after the other.
#[test]
#[ignore = "run by the other tests as a process of its own"]
fn locker() {
    let mut files: Vec<File> = Vec::new();
    for line in io::stdin().lines() {
        let line = line.expect("a line");
        let words: Vec<&str> = line.split('\t').collect();
        let answer = match words[0] {
            "open" => {
                let file = File::options().read(true).write(true).open(words[1]);
                files.push(file.expect("open"));
                "done".to_owned()
            }
            "close" => {
                files.pop();
                "done".to_owned()
            }
            "holder" => holder(&files[0], &words[1..]),
            _ => match lock(&files[0], &words) {
                Ok(()) => "done".to_owned(),
                Err(errno) => errno.to_string(),
            },
        };
        println!("{ANSWER}{answer}");
    }
}

/// Such a process. It ends with this.
struct Locker {
    child: Child,
    ino: u64,
    to: ChildStdin,
    from: BufReader<ChildStdout>,
}

impl Locker {
    fn new(path: &Path) -> Locker {
        let mut child = Command::new(std::env::current_exe().expect("this program"))
            .args(["--ignored", "--exact", "--nocapture", "locker"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("it runs");
        let to = child.stdin.take().expect("piped");
        let from = BufReader::new(child.stdout.take().expect("piped"));
        let ino = fs::metadata(path).expect("stat").ino();
        let mut locker = Locker {
            child,
            ino,
            to,
            from,
        };
        assert_eq!(locker.ask(&format!("open\t{}", path.display())), "done");
        locker
    }

    fn pid(&self) -> u32 {
        self.child.id()
    }

    fn tell(&mut self, order: &str) {
        writeln!(self.to, "{order}").expect("it reads");
    }

    fn answer(&mut self) -> String {
        loop {
            let mut line = String::new();
            assert!(
                self.from.read_line(&mut line).expect("text") > 0,
                "it ended"
            );
            // The harness of tests writes before the first answer, on the same line.
            if let Some((_, answer)) = line.split_once(ANSWER) {
                return answer.trim().to_owned();
            }
        }
    }

    fn ask(&mut self, order: &str) -> String {
        self.tell(order);
        self.answer()
    }

    /// Asks with the words apart, and expects that it is done.
    fn get(&mut self, order: &str) {
        assert_eq!(self.ask(&order.replace(' ', "\t")), "done", "{order}");
    }

    /// As that, and expects that it is refused for now.
    fn refused(&mut self, order: &str) {
        let answer = self.ask(&order.replace(' ', "\t"));
        assert!(answer.starts_with("EAGAIN"), "{order}: {answer}");
    }

    /// Begins to wait for a lock, and returns when it does.
    fn begin(&mut self, order: &str) {
        self.tell(&order.replace(' ', "\t"));
        wait_for("it to wait for the lock", SOON, || {
            waits(self.pid(), self.ino)
        });
    }
}

impl Drop for Locker {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Whether a process waits for a lock of the file. For a lock of an open file the kernel tells no
/// process.
fn waits(pid: u32, ino: u64) -> bool {
    let locks = fs::read_to_string("/proc/locks").expect("locks");
    let mut waiting = locks.lines().filter(|line| line.contains("->"));
    waiting.any(|line| {
        let words: Vec<&str> = line.split_whitespace().collect();
        let of_file = words.iter().any(|word| word.ends_with(&format!(":{ino}")));
        of_file && (words.contains(&"-1") || words.contains(&pid.to_string().as_str()))
    })
}

/// Runs the test on mendfs and on the filesystem that the tests lie on.
fn on_both(test: impl Fn(&Path)) {
    let mut pool = Pool::create(2);
    pool.mount();
    let yardstick = scratch();
    for root in [yardstick.path(), pool.mnt()] {
        let path = root.join("file");
        fs::write(&path, [0; 100]).expect("write");
        test(&path);
    }
    pool.umount();
    pool.check_clean();
}

#[test]
fn posix_locks_are_of_processes_and_ranges() {
    on_both(|path| {
        let (mut one, mut other) = (Locker::new(path), Locker::new(path));
        one.get("posix write 0 10 try");
        other.refused("posix read 5 10 try");
        let holder = other.ask("holder\twrite\t5\t10");
        assert_eq!(holder, format!("{} 0 10", one.pid()));
        other.get("posix write 10 10 try");
        one.refused("posix write 0 0 try");
        drop_caches();
        other.begin("posix write 0 5 wait");
        one.get("posix none 0 5 try");
        assert_eq!(other.answer(), "done");
        one.get("posix read 20 5 try");
        other.get("posix read 20 5 try");
        other.refused("posix write 20 5 try");
        // Who closes any descriptor of the file loses them all.
        one.get(&format!("open {}", path.display()));
        one.get("close");
        other.get("posix write 0 0 try");
        one.refused("posix write 0 1 try");
        // And so does who dies.
        one.begin("posix write 50 1 wait");
        drop(other);
        assert_eq!(one.answer(), "done");
    });
}

#[test]
fn a_deadlock_of_posix_locks_is_refused() {
    on_both(|path| {
        let (mut one, mut other) = (Locker::new(path), Locker::new(path));
        one.get("posix write 0 1 try");
        other.get("posix write 1 1 try");
        one.begin("posix write 1 1 wait");
        let answer = other.ask("posix\twrite\t0\t1\twait");
        assert!(answer.starts_with("EDEADLK"), "{answer}");
        other.get("posix none 1 1 try");
        assert_eq!(one.answer(), "done");
    });
}

#[test]
fn ofd_locks_and_flock_are_of_open_files() {
    on_both(|path| {
        let open = || {
            let mut options = File::options();
            options.read(true).write(true).open(path).expect("open")
        };
        let refused = |file: &File, how: &str| {
            let error = lock(file, &[how, "write", "0", "10", "try"]).expect_err("held");
            assert!(error == Errno::EAGAIN, "{how}: {error}");
        };
        for how in ["ofd", "flock"] {
            let mut process = Locker::new(path);
            let (one, other) = (open(), open());
            lock(&one, &[how, "write", "0", "10", "try"]).expect("free");
            refused(&other, how);
            process.refused(&format!("{how} write 0 10 try"));
            // Another descriptor of the file may go.
            drop(other);
            process.refused(&format!("{how} write 0 10 try"));
            lock(&one, &[how, "read", "0", "10", "try"]).expect("its own");
            process.get(&format!("{how} read 0 10 try"));
            refused(&one, how);
            process.get(&format!("{how} none 0 10 try"));
            lock(&one, &[how, "write", "0", "10", "try"]).expect("free");
            // A child holds it as long as it has the open file.
            let held = Stdio::from(one.try_clone().expect("dup"));
            let mut child = Command::new("sleep")
                .arg("1000")
                .stdin(held)
                .spawn()
                .expect("sleep runs");
            drop(one);
            process.refused(&format!("{how} write 0 10 try"));
            process.begin(&format!("{how} write 0 10 wait"));
            child.kill().expect("kill");
            child.wait().expect("wait");
            assert_eq!(process.answer(), "done");
        }
    });
}

#[test]
fn locks_of_a_file_without_a_name_are_those_of_no_other_file() {
    on_both(|path| {
        let (mut one, mut other) = (Locker::new(path), Locker::new(path));
        one.get("posix write 0 10 try");
        fs::remove_file(path).expect("unlink");
        drop_caches();
        other.refused("posix write 0 10 try");
        fs::write(path, "new").expect("create");
        let mut third = Locker::new(path);
        third.get("posix write 0 10 try");
        other.refused("posix write 0 10 try");
        fs::rename(path, path.with_extension("moved")).expect("rename");
        let mut fourth = Locker::new(&path.with_extension("moved"));
        fourth.refused("posix write 0 10 try");
        drop(one);
        other.get("posix write 0 10 try");
        fs::remove_file(path.with_extension("moved")).expect("unlink");
    });
}

/// An inotify instance.
struct Watch(File);

impl Watch {
    fn new(paths: &[&Path]) -> Watch {
        // SAFETY: takes no pointers; the descriptor is new and nobody else's.
        let file = unsafe {
            let fd = libc::inotify_init1(libc::IN_NONBLOCK | libc::IN_CLOEXEC);
            File::from(OwnedFd::from_raw_fd(Errno::result(fd).expect("inotify")))
        };
        for path in paths {
            let path = CString::new(path.as_os_str().as_bytes()).expect("no NUL");
            // SAFETY: the path ends in NUL.
            let watch = unsafe {
                libc::inotify_add_watch(file.as_raw_fd(), path.as_ptr(), libc::IN_ALL_EVENTS)
            };
            Errno::result(watch).expect("a watch");
        }
        Watch(file)
    }

    /// What has happened so far: watch, events, name.
    fn events(&self) -> Vec<(i32, u32, String)> {
        use std::io::Read;
        const HEADER: usize = 16;
        let (mut events, mut bytes) = (Vec::new(), vec![0; 64 << 10]);
        while let Ok(got) = (&self.0).read(&mut bytes) {
            let mut rest = &bytes[..got];
            while rest.len() >= HEADER {
                let number = |at: usize| {
                    u32::from_ne_bytes(rest[at..at + 4].try_into().expect("four bytes"))
                };
                let (watch, mask, len) = (number(0) as i32, number(4), number(12) as usize);
                let name = &rest[HEADER..HEADER + len];
                let name = String::from_utf8_lossy(name);
                events.push((watch, mask, name.trim_end_matches('\0').to_owned()));
                rest = &rest[HEADER + len..];
            }
        }
        events
    }
}

#[test]
fn inotify_tells_of_changes_as_elsewhere() {
    let mut told: Vec<Vec<(i32, u32, String)>> = Vec::new();
    let mut pool = Pool::create(2);
    pool.mount();
    let yardstick = scratch();
    for root in [yardstick.path(), pool.mnt()] {
        let at = |name: &str| -> PathBuf { root.join(name) };
        fs::create_dir_all(at("dir/sub")).expect("mkdir");
        fs::create_dir(at("other")).expect("mkdir");
        fs::write(at("dir/file"), "text").expect("write");
        let watch = Watch::new(&[&at("dir"), &at("other"), &at("dir/file")]);
        fs::write(at("dir/new"), "text").expect("write");
        fs::read(at("dir/file")).expect("read");
        fs::set_permissions(at("dir/file"), fs::Permissions::from_mode(0o600)).expect("chmod");
        File::options()
            .write(true)
            .open(at("dir/file"))
            .expect("open")
            .set_len(2)
            .expect("truncate");
        fs::rename(at("dir/new"), at("other/moved")).expect("rename");
        fs::hard_link(at("other/moved"), at("dir/link")).expect("link");
        std::os::unix::fs::symlink("x", at("dir/symbolic")).expect("symlink");
        fs::create_dir(at("dir/made")).expect("mkdir");
        fs::remove_dir(at("dir/made")).expect("rmdir");
        fs::read_dir(at("dir")).expect("opendir").for_each(drop);
        fs::rename(at("dir/link"), at("dir/file")).expect("rename over");
        fs::remove_file(at("dir/file")).expect("unlink");
        told.push(watch.events());
    }
    assert!(told[0].len() > 20, "{:?}", told[0]);
    assert_eq!(told[0], told[1]);
}

#[test]
fn quotas_are_refused() {
    let mut pool = Pool::create(2);
    pool.mount();
    let root = File::open(pool.mnt()).expect("the root");
    // Of linux/quota.h: Q_GETFMT for users.
    const GET_FORMAT: libc::c_uint = 0x80_0004 << 8;
    let mut format = 0_u32;
    // SAFETY: writes four bytes where there are four.
    let result = unsafe {
        libc::syscall(
            libc::SYS_quotactl_fd,
            root.as_raw_fd(),
            GET_FORMAT,
            0,
            &raw mut format,
        )
    };
    assert_eq!(Errno::result(result), Err(Errno::ENOSYS));
    drop(root);
    pool.umount();
    for option in ["usrquota", "grpquota", "prjquota", "quota"] {
        let args = [
            "mount",
            "-o",
            option,
            &pool.spec(),
            &pool.mnt().to_string_lossy(),
        ];
        let refused = common::mendfs(args);
        assert!(!refused.status.success(), "{option} taken");
        assert!(common::text(&refused).contains(option));
    }
}
