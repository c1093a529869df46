//! Content of files through the kernel: what is durable when a call returns, caches that agree with
//! one another, holes, sizes up to the largest, limits, and copies that share their blocks.

mod common;

use std::fs::{self, File};
use std::io::{self, Read};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Command, ExitStatus, Stdio};
use std::time::Duration;

use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, fallocate};
use nix::unistd::{Whence, lseek};

use common::content::content;
use common::disk::allocated;
use common::{Pool, wait_for};

const SIZE_MAX: u64 = i64::MAX as u64;

fn mounted() -> Pool {
    let mut pool = Pool::create(2);
    pool.mount();
    pool
}

fn open(path: &Path, flags: i32) -> File {
    let mut options = File::options();
    options.create(true).truncate(false).read(true).write(true);
    options.custom_flags(flags).open(path).expect("open")
}

fn rw(path: &Path) -> File {
    open(path, 0)
}

fn errno<T: std::fmt::Debug>(result: io::Result<T>) -> Errno {
    let error = result.expect_err("an error");
    Errno::from_raw(error.raw_os_error().expect("an errno"))
}

/// A shared map of a whole file.
struct Map(*mut u8, usize);

impl Map {
    fn new(file: &File, kind: i32) -> Map {
        let len = file.metadata().expect("stat").len() as usize;
        let (protection, fd) = (libc::PROT_READ | libc::PROT_WRITE, file.as_raw_fd());
        // SAFETY: a new map of the file's length, which no test cuts while it is there.
        let at = unsafe { libc::mmap(std::ptr::null_mut(), len, protection, kind, fd, 0) };
        assert_ne!(at, libc::MAP_FAILED);
        Map(at.cast(), len)
    }

    fn get(&self, at: usize, len: usize) -> Vec<u8> {
        assert!(at + len <= self.1);
        // SAFETY: within the map; volatile, since others change what is below.
        (at..at + len)
            .map(|at| unsafe { self.0.add(at).read_volatile() })
            .collect()
    }

    fn put(&self, at: usize, bytes: &[u8]) {
        assert!(at + bytes.len() <= self.1);
        for (number, byte) in bytes.iter().enumerate() {
            // SAFETY: within the map, which is writable.
            unsafe { self.0.add(at + number).write_volatile(*byte) };
        }
    }

    fn sync(&self) {
        // SAFETY: the whole map.
        let done = unsafe { libc::msync(self.0.cast(), self.1, libc::MS_SYNC) };
        assert_eq!(done, 0);
    }
}

impl Drop for Map {
    fn drop(&mut self) {
        // SAFETY: the whole map, once.
        assert_eq!(unsafe { libc::munmap(self.0.cast(), self.1) }, 0);
    }
}

fn write_with(file: &File, bytes: &[u8], flags: i32) {
    let part = libc::iovec {
        iov_base: bytes.as_ptr().cast_mut().cast(),
        iov_len: bytes.len(),
    };
    // SAFETY: one part, which is only read.
    let done = unsafe { libc::pwritev2(file.as_raw_fd(), &part, 1, 0, flags) };
    assert_eq!(done, bytes.len() as isize, "{}", io::Error::last_os_error());
}

/// Ways to write that promise durability when they return.
type Durably = (&'static str, fn(&Path, &[u8]));
const DURABLY: &[Durably] = &[
    ("O_SYNC", |path, bytes| {
        open(path, libc::O_SYNC)
            .write_all_at(bytes, 0)
            .expect("write");
    }),
    ("O_DSYNC", |path, bytes| {
        open(path, libc::O_DSYNC)
            .write_all_at(bytes, 0)
            .expect("write");
    }),
    ("O_DIRECT and O_DSYNC", |path, bytes| {
        let file = open(path, libc::O_DSYNC | libc::O_DIRECT);
        file.write_all_at(bytes, 0).expect("write");
    }),
    ("O_APPEND and O_DSYNC", |path, bytes| {
        let mut file = open(path, libc::O_DSYNC | libc::O_APPEND);
        io::Write::write_all(&mut file, bytes).expect("write");
    }),
    ("RWF_DSYNC", |path, bytes| {
        write_with(&rw(path), bytes, libc::RWF_DSYNC)
    }),
    ("RWF_SYNC", |path, bytes| {
        write_with(&rw(path), bytes, libc::RWF_SYNC)
    }),
    ("fsync", |path, bytes| {
        let file = rw(path);
        file.write_all_at(bytes, 0).expect("write");
        file.sync_all().expect("fsync");
    }),
    ("fdatasync", |path, bytes| {
        let file = rw(path);
        file.write_all_at(bytes, 0).expect("write");
        file.sync_data().expect("fdatasync");
    }),
    ("O_DIRECT and fdatasync", |path, bytes| {
        let file = open(path, libc::O_DIRECT);
        file.write_all_at(bytes, 0).expect("write");
        file.sync_data().expect("fdatasync");
    }),
    ("msync", |path, bytes| {
        let file = rw(path);
        file.set_len(bytes.len() as u64).expect("ftruncate");
        let map = Map::new(&file, libc::MAP_SHARED);
        map.put(0, bytes);
        map.sync();
    }),
];

/// LSNs of the journal: the next one, and up to which all is durable on the mirrors.
fn journal(pool: &Pool) -> (u64, u64) {
    let status = pool.status();
    let member = |name: &str| status.0["mendfs"]["journal"][name].as_u64().expect(name);
    (member("next_lsn"), member("durable_lsn"))
}

#[test]
fn what_is_written_durably_is_durable_when_the_call_returns() {
    let mut pool = Pool::create(2);
    // Nothing becomes durable by itself.
    pool.mount_with("commit=none");
    let bytes = |number: usize| content(number as u64, 70_000 + number);
    for (number, (name, write)) in DURABLY.iter().enumerate() {
        let path = pool.mnt().join(format!("file{number}"));
        drop(rw(&path));
        let (next, _) = journal(&pool);
        write(&path, &bytes(number));
        let (_, durable) = journal(&pool);
        assert!(
            durable >= next,
            "{name}: durable up to {durable}, written from {next} on"
        );
    }
    pool.kill9();
    pool.mount();
    for (number, (name, _)) in DURABLY.iter().enumerate() {
        let read = fs::read(pool.mnt().join(format!("file{number}"))).expect("read");
        assert!(read == bytes(number), "{name} after a kill");
    }
}

#[test]
fn on_a_mount_with_sync_every_write_is_durable() {
    let mut pool = Pool::create(2);
    pool.mount_with("commit=none,sync");
    let path = pool.mnt().join("file");
    fs::write(&path, content(1, 50_000)).expect("write");
    let (next, _) = journal(&pool);
    rw(&path).write_all_at(b"more", 50_000).expect("write");
    let (_, durable) = journal(&pool);
    assert!(
        durable >= next,
        "durable up to {durable}, written from {next} on"
    );
    pool.kill9();
    pool.mount();
    assert!(fs::read(&path).expect("read").ends_with(b"more"));
}

#[test]
fn with_sync_or_dirsync_a_change_of_names_is_durable() {
    for option in ["sync", "dirsync"] {
        let mut pool = Pool::create(2);
        pool.mount_with(&format!("commit=none,{option}"));
        let at = |name: &str| pool.mnt().join(name);
        let steps: [(&str, &dyn Fn()); 4] = [
            ("mkdir", &|| fs::create_dir(at("dir")).expect("mkdir")),
            ("create", &|| drop(rw(&at("file")))),
            ("rename", &|| {
                fs::rename(at("file"), at("dir/file")).expect("rename")
            }),
            ("unlink", &|| {
                fs::remove_file(at("dir/file")).expect("unlink")
            }),
        ];
        for (what, step) in steps {
            let (next, _) = journal(&pool);
            step();
            let (_, durable) = journal(&pool);
            assert!(durable >= next, "{option}: {what}");
        }
    }
}

#[test]
fn direct_cached_and_mapped_access_see_one_another() {
    let mut pool = mounted();
    let path = pool.mnt().join("file");
    let (cached, direct) = (rw(&path), open(&path, libc::O_DIRECT));
    let mut want = content(4, 100_000);
    cached.write_all_at(&want, 0).expect("write");
    let map = Map::new(&cached, libc::MAP_SHARED);
    let private = Map::new(&cached, libc::MAP_PRIVATE);
    let mut rng = common::content::Rng::new(common::seed());
    private.put(99_000, b"private");
    for round in 0..600 {
        // Any length and place: nothing has to be aligned.
        let at = rng.below(98_000) as usize;
        let len = 1 + rng.below(if round % 3 == 0 { 20_000 } else { 300 }) as usize;
        let len = len.min(98_000 - at);
        let bytes = content(1000 + round, len);
        want[at..at + len].copy_from_slice(&bytes);
        match rng.below(3) {
            0 => cached.write_all_at(&bytes, at as u64).expect("write"),
            1 => direct
                .write_all_at(&bytes, at as u64)
                .expect("direct write"),
            _ => map.put(at, &bytes),
        }
        let from = rng.below(100_000) as usize;
        let len = (rng.below(9000) as usize).min(100_000 - from);
        let mut read = vec![0; len];
        match rng.below(3) {
            0 => cached.read_exact_at(&mut read, from as u64).expect("read"),
            1 => direct
                .read_exact_at(&mut read, from as u64)
                .expect("direct read"),
            _ => read = map.get(from, len),
        }
        assert!(
            read == want[from..from + len],
            "round {round}: {len} bytes at {from}"
        );
    }
    assert_eq!(private.get(99_000, 7), b"private");
    drop((map, private, cached, direct));
    pool.remount();
    assert!(fs::read(&path).expect("read") == want, "after a remount");
}

#[test]
fn records_that_several_processes_append_are_all_there_once() {
    const WRITERS: u8 = 4;
    const RECORDS: usize = 300;
    let mut pool = mounted();
    let path = pool.mnt().join("log");
    drop(rw(&path));
    let mut children = Vec::new();
    for writer in 0..WRITERS {
        let direct = if writer == 0 { libc::O_DIRECT } else { 0 };
        let file = open(&path, libc::O_APPEND | direct);
        let record = |number: usize| {
            let filler = "x".repeat((number * 37 + usize::from(writer) * 11) % 5000);
            format!("{writer} {number} {filler}\n").into_bytes()
        };
        let records: Vec<_> = (0..RECORDS).map(record).collect();
        // SAFETY: the child only calls write(2) and _exit(2) on what was made before.
        match unsafe { libc::fork() } {
            0 => {
                let whole = records.iter().all(|record| {
                    // SAFETY: the buffer is as long as said.
                    let done = unsafe {
                        libc::write(file.as_raw_fd(), record.as_ptr().cast(), record.len())
                    };
                    done == record.len() as isize
                });
                // SAFETY: ends this process at once.
                unsafe { libc::_exit(i32::from(!whole)) }
            }
            child => children.push(child),
        }
    }
    for child in children {
        assert!(child > 0, "fork");
        let mut status = 0;
        // SAFETY: waits for a child of ours.
        assert_eq!(unsafe { libc::waitpid(child, &mut status, 0) }, child);
        assert!(ExitStatus::from_raw(status).success());
    }
    pool.remount();
    let text = fs::read_to_string(&path).expect("read");
    for writer in 0..WRITERS {
        let mine = format!("{writer} ");
        let numbers = text.lines().filter_map(|line| {
            line.strip_prefix(&mine)?
                .split(' ')
                .next()?
                .parse::<usize>()
                .ok()
        });
        assert!(numbers.eq(0..RECORDS), "records of {writer}");
    }
    assert_eq!(text.lines().count(), usize::from(WRITERS) * RECORDS);
}

/// Data as lseek tells it: (first byte, end).
fn data(file: &File) -> Vec<(i64, i64)> {
    let mut found = Vec::new();
    let mut at = 0;
    loop {
        match lseek(file, at, Whence::SeekData) {
            Ok(start) => {
                at = lseek(file, start, Whence::SeekHole).expect("a hole at the end");
                found.push((start, at));
            }
            Err(Errno::ENXIO) => return found,
            Err(errno) => panic!("{errno}"),
        }
    }
}

#[test]
fn data_and_holes_are_told_also_of_what_is_not_written_out() {
    let pool = mounted();
    for synced in [false, true] {
        let file = rw(&pool.mnt().join(format!("sparse-{synced}")));
        let settle = || {
            if synced {
                file.sync_all().expect("fsync");
            }
        };
        file.write_all_at(&[1; 4096], 0).expect("write");
        file.write_all_at(&[2; 5000], 40 * 4096).expect("write");
        settle();
        let block = |number: i64| number * 4096;
        assert_eq!(data(&file), [(0, 4096), (block(40), block(40) + 5000)]);
        file.set_len(1 << 20).expect("extend");
        settle();
        assert_eq!(data(&file), [(0, 4096), (block(40), block(42))]);
        let punch = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
        fallocate(&file, punch, block(40), 4096).expect("punch");
        settle();
        assert_eq!(data(&file), [(0, 4096), (block(41), block(42))]);
        file.write_all_at(b"x", 40 * 4096 + 10).expect("write");
        settle();
        assert_eq!(data(&file), [(0, 4096), (block(40), block(42))]);
        fallocate(&file, FallocateFlags::empty(), 1 << 20, 1 << 20).expect("fallocate");
        settle();
        assert_eq!(
            data(&file),
            [(0, 4096), (block(40), block(42))],
            "promised is no data"
        );
        file.write_all_at(&[3; 4096], (1 << 20) + 8192)
            .expect("write");
        settle();
        let written = ((1 << 20) + 8192, (1 << 20) + 12288);
        assert_eq!(data(&file), [(0, 4096), (block(40), block(42)), written]);
        file.set_len(50).expect("cut");
        file.set_len(300_000).expect("extend");
        settle();
        assert_eq!(data(&file), [(0, 4096)]);
        let map = Map::new(&file, libc::MAP_SHARED);
        map.put(200_000, b"mapped");
        map.sync();
        assert_eq!(data(&file), [(0, 4096), (block(48), block(49))]);
    }
}

/// While a file is open the kernel answers without what it has not written back, and asks nobody.
#[test]
fn the_blocks_of_a_file_count_all_of_its_data_once_it_is_closed() {
    let pool = mounted();
    let path = pool.mnt().join("closed");
    let file = rw(&path);
    for (mib, kib, total_kib) in [(0, 64, 64), (1, 4, 68), (2, 300, 368)] {
        let bytes = vec![7; kib << 10];
        file.write_all_at(&bytes, mib << 20).expect("write");
        // What close(2) does, with the file kept for the next round.
        drop(file.try_clone().expect("dup"));
        let blocks = fs::metadata(&path).expect("stat").blocks();
        assert_eq!(blocks, total_kib << 1, "after {kib} KiB at {mib} MiB");
    }
}

#[test]
fn files_reach_up_to_the_largest_offset() {
    let mut pool = mounted();
    let path = pool.mnt().join("file");
    let file = rw(&path);
    file.set_len(SIZE_MAX).expect("ftruncate");
    file.write_all_at(b"z", SIZE_MAX - 1)
        .expect("the last byte");
    file.write_all_at(b"start", 0).expect("write");
    file.write_all_at(&content(1, 100_000), 1 << 60)
        .expect("write");
    assert_eq!(errno(file.write_at(b"z", SIZE_MAX)), Errno::EINVAL);
    file.sync_all().expect("fsync");
    drop(file);
    pool.remount();
    let file = rw(&path);
    assert_eq!(file.metadata().expect("stat").len(), SIZE_MAX);
    let mut byte = [0];
    file.read_exact_at(&mut byte, SIZE_MAX - 1).expect("read");
    assert_eq!(&byte, b"z");
    let mut bytes = vec![0; 100_000];
    file.read_exact_at(&mut bytes, 1 << 60).expect("read");
    assert!(bytes == content(1, 100_000));
    let found = data(&file);
    assert_eq!((found.len(), found[0].0, found[1].0), (3, 0, 1 << 60));
    let too_far = fallocate(&file, FallocateFlags::empty(), i64::MAX - 10, 20);
    assert_eq!(too_far, Err(Errno::EFBIG));
    let direct = open(&path, libc::O_DIRECT);
    direct
        .write_all_at(b"y", SIZE_MAX - 2)
        .expect("direct, at the end");
    file.read_exact_at(&mut byte, SIZE_MAX - 2).expect("read");
    assert_eq!(&byte, b"y");
    drop((file, direct));
    fs::remove_file(&path).expect("unlink");
    pool.umount();
    pool.check_clean();
}

#[test]
fn the_limit_of_a_process_for_files_holds() {
    let pool = mounted();
    let limited = |file: &str, shell: &str| {
        let script =
            format!("{shell} exec dd if=/dev/zero of={file} bs=1000 count=20 conv=notrunc");
        let mut command = Command::new("prlimit");
        command.arg("--fsize=10000").args(["sh", "-c", &script]);
        command.current_dir(pool.mnt()).stderr(Stdio::piped());
        command.output().expect("prlimit runs")
    };
    let killed = limited("killed", "");
    assert_eq!(killed.status.signal(), Some(libc::SIGXFSZ), "{killed:?}");
    let refused = limited("refused", "trap '' XFSZ;");
    let text = String::from_utf8_lossy(&refused.stderr);
    assert!(
        !refused.status.success() && text.contains("File too large"),
        "{text}"
    );
    for name in ["killed", "refused"] {
        let len = fs::metadata(pool.mnt().join(name)).expect("stat").len();
        assert_eq!(len, 10_000, "{name}");
    }
}

#[test]
fn programs_run_from_the_mount_and_are_not_written_meanwhile() {
    let pool = mounted();
    let program = pool.mnt().join("sleep");
    fs::copy("/bin/sleep", &program).expect("copy");
    fs::set_permissions(&program, PermissionsExt::from_mode(0o755)).expect("chmod");
    let mut running = Command::new(&program).arg("1000").spawn().expect("it runs");
    let link = format!("/proc/{}/exe", running.id());
    wait_for("the program", Duration::from_secs(20), || {
        fs::read_link(&link).is_ok_and(|exe| exe == program)
    });
    assert_eq!(
        errno(File::options().write(true).open(&program)),
        Errno::ETXTBSY
    );
    assert_eq!(nix::unistd::truncate(&program, 0), Err(Errno::ETXTBSY));
    running.kill().expect("kill");
    running.wait().expect("wait");
    let writer = File::options().write(true).open(&program).expect("open");
    assert_eq!(
        errno(Command::new(&program).arg("0").status()),
        Errno::ETXTBSY
    );
    drop(writer);
    assert!(
        Command::new(&program)
            .arg("0")
            .status()
            .expect("it runs")
            .success()
    );
}

#[test]
fn data_goes_between_files_and_pipes_inside_the_kernel() {
    let pool = mounted();
    let bytes = content(6, 300_000);
    fs::write(pool.mnt().join("from"), &bytes).expect("write");
    let (from, to) = (rw(&pool.mnt().join("from")), rw(&pool.mnt().join("to")));
    let (source, target) = (from.as_raw_fd(), to.as_raw_fd());
    let all = |what: &str, step: &mut dyn FnMut(usize) -> isize| {
        let mut done = 0;
        while done < bytes.len() {
            let got = step(bytes.len() - done);
            assert!(got > 0, "{what}: {}", io::Error::last_os_error());
            done += got as usize;
        }
        assert!(
            fs::read(pool.mnt().join("to")).expect("read") == bytes,
            "{what}"
        );
        to.set_len(0).expect("ftruncate");
        nix::unistd::lseek(&to, 0, Whence::SeekSet).expect("lseek");
    };
    let mut at = 0;
    // SAFETY: the descriptors are open, and the offset lives through the call.
    all("sendfile", &mut |left| unsafe {
        libc::sendfile(target, source, &mut at, left)
    });
    let (reader, writer) = io::pipe().expect("pipe");
    let mut at = 0;
    all("splice", &mut |left| {
        let (none, at) = (std::ptr::null_mut(), &mut at);
        let (input, output): (RawFd, RawFd) = (reader.as_raw_fd(), writer.as_raw_fd());
        // SAFETY: the descriptors are open, and the offset lives through the calls.
        unsafe {
            let got = libc::splice(source, at, output, none, left.min(60_000), 0);
            if got <= 0 {
                return got;
            }
            libc::splice(input, none, target, none, got as usize, 0)
        }
    });
}

#[test]
fn a_copy_shares_the_blocks_of_its_source() {
    const LEN: usize = 64 << 20;
    let mut pool = mounted();
    let bytes = content(2, LEN);
    let at = |name: &str| pool.mnt().join(name);
    let (from, to, cp) = (at("from"), at("to"), at("cp"));
    fs::write(&from, &bytes).expect("write");
    let (source, target) = (rw(&from), rw(&to));
    source.sync_all().expect("fsync");
    let taken = |pool: &Pool| pool.mirrors().iter().map(|mirror| allocated(mirror)).max();
    let before = taken(&pool).expect("mirrors");
    let mut left = LEN;
    while left > 0 {
        let (input, output) = (source.as_raw_fd(), target.as_raw_fd());
        let none = std::ptr::null_mut;
        // SAFETY: both descriptors are open; their own offsets are used.
        let got = unsafe { libc::copy_file_range(input, none(), output, none(), left, 0) };
        assert!(got > 0, "{}", io::Error::last_os_error());
        left -= got as usize;
    }
    target.sync_all().expect("fsync");
    let done = Command::new("cp")
        .arg(&from)
        .arg(&cp)
        .status()
        .expect("cp runs");
    assert!(done.success());
    rw(&cp).sync_all().expect("fsync");
    let after = taken(&pool).expect("mirrors");
    // Two copies of 64 MiB; some pages of the index.
    assert!(after < before + (8 << 20), "{before} bytes became {after}");
    assert_eq!(target.metadata().expect("stat").blocks() * 512, LEN as u64);
    // Each goes its own way.
    source.write_all_at(&[9; 50_000], 1_000_000).expect("write");
    target.write_all_at(&[7; 50_000], 3_000_001).expect("write");
    drop((source, target));
    let mut changed = bytes.clone();
    changed[3_000_001..3_050_001].fill(7);
    pool.remount();
    assert!(fs::read(&cp).expect("read") == bytes, "the copy");
    assert!(fs::read(&to).expect("read") == changed, "the other copy");
    fs::remove_file(&from).expect("unlink");
    pool.remount();
    assert!(fs::read(&cp).expect("read") == bytes, "without its source");
    fs::remove_file(&cp).expect("unlink");
    assert!(fs::read(&to).expect("read") == changed, "the last owner");
    fs::remove_file(&to).expect("unlink");
    wait_for(
        "the space of the last owner",
        Duration::from_secs(60),
        || taken(&pool).expect("mirrors") < before - (48 << 20),
    );
    pool.umount();
    pool.check_clean();
}

#[test]
fn an_open_file_and_an_open_directory_without_a_name_can_still_be_used() {
    let mut pool = mounted();
    let path = pool.mnt().join("file");
    let file = rw(&path);
    fs::remove_file(&path).expect("unlink");
    file.write_all_at(&content(1, 100_000), 0).expect("write");
    file.set_permissions(PermissionsExt::from_mode(0o640))
        .expect("fchmod");
    file.set_len(50_000).expect("ftruncate");
    fallocate(&file, FallocateFlags::empty(), 0, 200_000).expect("fallocate");
    file.sync_all().expect("fsync");
    let again = format!("/proc/self/fd/{}", file.as_raw_fd());
    let mut read = Vec::new();
    File::open(&again)
        .expect("open")
        .read_to_end(&mut read)
        .expect("read");
    assert!(read[..50_000] == content(1, 100_000)[..50_000] && read.len() == 200_000);
    let data = file.metadata().expect("stat");
    assert_eq!((data.nlink(), data.mode() & 0o777), (0, 0o640));

    let dir = pool.mnt().join("dir");
    fs::create_dir(&dir).expect("mkdir");
    let open = File::open(&dir).expect("open");
    fs::remove_dir(&dir).expect("rmdir");
    assert_eq!(open.metadata().expect("stat").nlink(), 0);
    open.sync_all().expect("fsync of a directory");
    open.set_permissions(PermissionsExt::from_mode(0o700))
        .expect("fchmod");
    let below = format!("/proc/self/fd/{}", open.as_raw_fd());
    assert_eq!(fs::read_dir(&below).expect("readdir").count(), 0);
    assert_eq!(errno(File::create(format!("{below}/new"))), Errno::ENOENT);
    assert_eq!(errno(fs::create_dir(format!("{below}/new"))), Errno::ENOENT);

    let (old, new) = (pool.mnt().join("old"), pool.mnt().join("new"));
    let moved = rw(&old);
    fs::rename(&old, &new).expect("rename");
    moved.write_all_at(b"after", 0).expect("write");
    assert_eq!(fs::read(&new).expect("read"), b"after");
    drop((file, open, moved));
    pool.umount();
    pool.check_clean();
}

#[test]
fn symbolic_links_of_4095_bytes_and_sockets_work() {
    let mut pool = mounted();
    let longest = "x".repeat(4095);
    let link = pool.mnt().join("link");
    std::os::unix::fs::symlink(&longest, &link).expect("symlink");
    let longer = std::os::unix::fs::symlink("x".repeat(4096), pool.mnt().join("longer"));
    assert_eq!(errno(longer), Errno::ENAMETOOLONG);
    // Short enough for an address: a name of the directory that is current here alone.
    let dir = File::open(pool.mnt()).expect("open");
    let socket = format!("/proc/self/fd/{}/socket", dir.as_raw_fd());
    let listener = std::os::unix::net::UnixListener::bind(&socket).expect("bind");
    let mut client = std::os::unix::net::UnixStream::connect(&socket).expect("connect");
    let (mut server, _) = listener.accept().expect("accept");
    io::Write::write_all(&mut client, b"hello").expect("write");
    drop(client);
    let mut text = String::new();
    server.read_to_string(&mut text).expect("read");
    assert_eq!(text, "hello");
    drop((dir, listener, server));
    pool.remount();
    assert_eq!(
        fs::read_link(&link).expect("readlink").as_os_str().len(),
        4095
    );
}

#[test]
fn the_filesystem_tells_its_size_and_has_no_quotas() {
    let pool = mounted();
    let dir = File::open(pool.mnt()).expect("open");
    let stat = || nix::sys::statvfs::fstatvfs(&dir).expect("statvfs");
    let before = stat();
    assert!(before.blocks_available() <= before.blocks_free());
    assert!(before.blocks_free() < before.blocks());
    assert!(before.files_free() > 1000 && before.files_available() == before.files_free());
    assert_eq!(before.name_max(), 255);
    let inodes = |stat: &nix::sys::statvfs::Statvfs| stat.files() - stat.files_free();
    for number in 0..10 {
        fs::write(pool.mnt().join(format!("file{number}")), "text").expect("write");
    }
    assert_eq!(inodes(&stat()), inodes(&before) + 10);
    // Q_GETINFO of user quotas, by descriptor (quotactl_fd(2)).
    let mut info = [0u64; 32];
    // SAFETY: the buffer is larger than any answer.
    let done = unsafe {
        let command = 0x80_0005_u32 << 8;
        libc::syscall(
            libc::SYS_quotactl_fd,
            dir.as_raw_fd(),
            command,
            0,
            info.as_mut_ptr(),
        )
    };
    assert_eq!((done, Errno::last()), (-1, Errno::ENOSYS));
}
