//! Every operation that the filesystem implements, once through the kernel, with what POSIX and
//! Linux say about it. pjdfstest and fsx (scripts/conformance) go into the corners.

mod common;

use std::collections::BTreeSet;
use std::ffi::{CStr, CString, OsStr};
use std::fs::{self, File, Permissions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, PermissionsExt, symlink};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, FallocateFlags, RenameFlags, fallocate, renameat2};
use nix::sys::stat::{Mode, SFlag, mknod};
use nix::sys::statvfs::statvfs;
use nix::unistd::{Whence, lseek};

use common::content::content;
use common::disk::{allocated, snapshot};
use common::{Pool, wait_for, xattr};

fn mounted() -> Pool {
    let mut pool = Pool::create(2);
    pool.mount();
    pool
}

fn rename_flags(from: &Path, to: &Path, flags: RenameFlags) -> nix::Result<()> {
    renameat2(AT_FDCWD, from, AT_FDCWD, to, flags)
}

fn rw(path: &Path) -> File {
    let mut options = File::options();
    options.create(true).truncate(false).read(true).write(true);
    options.open(path).expect("open")
}

fn errno(error: &io::Error) -> Errno {
    Errno::from_raw(error.raw_os_error().expect("an errno"))
}

#[test]
fn rename_replaces_refuses_and_exchanges_as_asked() {
    let pool = mounted();
    let at = |name: &str| pool.mnt().join(name);
    fs::write(at("a"), "a").expect("write");
    fs::write(at("b"), "b").expect("write");
    let refused = rename_flags(&at("a"), &at("b"), RenameFlags::RENAME_NOREPLACE);
    assert_eq!(refused, Err(Errno::EEXIST));
    rename_flags(&at("a"), &at("b"), RenameFlags::RENAME_EXCHANGE).expect("exchange");
    assert_eq!(fs::read(at("a")).expect("read"), b"b");
    assert_eq!(fs::read(at("b")).expect("read"), b"a");
    let missing = rename_flags(&at("a"), &at("none"), RenameFlags::RENAME_EXCHANGE);
    assert_eq!(missing, Err(Errno::ENOENT));
    rename_flags(&at("a"), &at("c"), RenameFlags::RENAME_NOREPLACE).expect("noreplace");
    fs::rename(at("c"), at("b")).expect("rename over a file");
    assert_eq!(fs::read(at("b")).expect("read"), b"b");
    assert!(!at("a").exists() && !at("c").exists());

    fs::create_dir_all(at("one/two")).expect("mkdir");
    fs::create_dir(at("other")).expect("mkdir");
    fs::write(at("other/file"), "x").expect("write");
    let nested = fs::rename(at("one"), at("one/two/three")).expect_err("into itself");
    assert_eq!(errno(&nested), Errno::EINVAL);
    let full = fs::rename(at("one"), at("other")).expect_err("over a full directory");
    assert!(matches!(errno(&full), Errno::ENOTEMPTY | Errno::EEXIST));
    // A file for a directory, across parents: link counts follow the subdirectory.
    rename_flags(
        &at("one/two"),
        &at("other/file"),
        RenameFlags::RENAME_EXCHANGE,
    )
    .expect("exchange");
    assert!(at("one/two").is_file() && at("other/file").is_dir());
    assert_eq!(fs::metadata(at("one")).expect("stat").nlink(), 2);
    assert_eq!(fs::metadata(at("other")).expect("stat").nlink(), 3);
    fs::rename(at("other/file"), at("moved")).expect("rename of a directory");
    assert_eq!(fs::metadata(at("other")).expect("stat").nlink(), 2);
    assert_eq!(fs::metadata(at("moved/..")).expect("stat").ino(), 1);
}

#[test]
fn links_share_one_inode_until_the_last_goes() {
    let pool = mounted();
    let at = |name: &str| pool.mnt().join(name);
    fs::write(at("first"), "text").expect("write");
    fs::create_dir(at("dir")).expect("mkdir");
    fs::hard_link(at("first"), at("dir/second")).expect("link");
    let data = fs::metadata(at("dir/second")).expect("stat");
    assert_eq!(data.nlink(), 2);
    assert_eq!(data.ino(), fs::metadata(at("first")).expect("stat").ino());
    let refused = fs::hard_link(at("dir"), at("dir2")).expect_err("link of a directory");
    assert_eq!(errno(&refused), Errno::EPERM);
    fs::remove_file(at("first")).expect("unlink");
    assert_eq!(fs::read(at("dir/second")).expect("read"), b"text");
    assert_eq!(fs::metadata(at("dir/second")).expect("stat").nlink(), 1);

    let target = "t".repeat(4000);
    symlink(&target, at("long")).expect("symlink");
    assert_eq!(
        fs::read_link(at("long")).expect("readlink"),
        Path::new(&target)
    );
    symlink("dir/second", at("short")).expect("symlink");
    assert_eq!(fs::read(at("short")).expect("read"), b"text");
}

#[test]
fn special_files_keep_kind_and_device_number() {
    let mut pool = mounted();
    let mode = Mode::from_bits_truncate(0o640);
    let cases = [
        ("fifo", SFlag::S_IFIFO, 0),
        ("socket", SFlag::S_IFSOCK, 0),
        ("char", SFlag::S_IFCHR, libc::makedev(1, 3)),
        ("block", SFlag::S_IFBLK, libc::makedev(7, 300)),
        ("file", SFlag::S_IFREG, 0),
    ];
    for (name, kind, device) in cases {
        mknod(&pool.mnt().join(name), kind, mode, device).expect("mknod");
    }
    pool.remount();
    for (name, kind, device) in cases {
        let data = fs::symlink_metadata(pool.mnt().join(name)).expect("stat");
        assert_eq!(data.mode() & libc::S_IFMT, kind.bits(), "{name}");
        assert_eq!(data.rdev(), device, "{name}");
    }
    let fifo = fs::symlink_metadata(pool.mnt().join("fifo")).expect("stat");
    assert!(fifo.file_type().is_fifo());
}

fn set_xattr(path: &Path, name: &str, value: &[u8], flags: i32) -> io::Result<()> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    let name = CString::new(name)?;
    let data = value.as_ptr().cast();
    // SAFETY: both strings end in NUL and the value is as long as said.
    let result = unsafe { libc::setxattr(path.as_ptr(), name.as_ptr(), data, value.len(), flags) };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

fn list_xattr(path: &Path) -> BTreeSet<String> {
    let path = CString::new(path.as_os_str().as_bytes()).expect("no NUL");
    let mut names = vec![0u8; 65_536];
    // SAFETY: the path ends in NUL and the buffer is as long as said.
    let len = unsafe { libc::listxattr(path.as_ptr(), names.as_mut_ptr().cast(), names.len()) };
    names.truncate(usize::try_from(len).expect("listxattr"));
    let names = names
        .split(|&byte| byte == 0)
        .filter(|name| !name.is_empty());
    names
        .map(|name| String::from_utf8_lossy(name).into_owned())
        .collect()
}

#[test]
fn extended_attributes_are_set_listed_replaced_and_removed() {
    let mut pool = mounted();
    let path = pool.mnt().join("file");
    fs::write(&path, "").expect("write");
    set_xattr(&path, "user.a", b"1", 0).expect("set");
    set_xattr(&path, "user.empty", b"", libc::XATTR_CREATE).expect("create");
    set_xattr(&path, "trusted.b", &[7; 60_000], 0).expect("set a long one");
    let again = set_xattr(&path, "user.a", b"2", libc::XATTR_CREATE).expect_err("it exists");
    assert_eq!(errno(&again), Errno::EEXIST);
    let none = set_xattr(&path, "user.none", b"2", libc::XATTR_REPLACE).expect_err("not there");
    assert_eq!(errno(&none), Errno::ENODATA);
    set_xattr(&path, "user.a", b"3", libc::XATTR_REPLACE).expect("replace");
    pool.remount();
    assert_eq!(xattr(&path, "user.a").expect("get"), b"3");
    assert_eq!(xattr(&path, "user.empty").expect("get"), b"");
    assert_eq!(xattr(&path, "trusted.b").expect("get"), [7; 60_000]);
    let names = ["trusted.b", "user.a", "user.empty"].map(str::to_owned);
    // What mendfs answers itself is not listed, so that copying attributes does not copy it.
    assert_eq!(list_xattr(&path), BTreeSet::from(names));
    assert!(
        xattr(&path, "user.mendfs.health")
            .expect("health")
            .starts_with(b"ok")
    );
    let c_path = CString::new(path.as_os_str().as_bytes()).expect("no NUL");
    // SAFETY: both strings end in NUL.
    let removed = unsafe { libc::removexattr(c_path.as_ptr(), c"user.a".as_ptr()) };
    assert_eq!(removed, 0);
    let gone = xattr(&path, "user.a").expect_err("removed");
    assert_eq!(errno(&gone), Errno::ENODATA);
}

#[test]
fn the_root_tells_the_pools_state_in_attributes() {
    let pool = mounted();
    let value = xattr(pool.mnt(), "user.mendfs.status").expect("status");
    let value = String::from_utf8(value).expect("text");
    assert!(value.contains("state=healthy"), "{value}");
    let json = xattr(pool.mnt(), "user.mendfs.status.json").expect("the JSON variant");
    serde_json::from_slice::<serde_json::Value>(&json).expect("JSON");
    // The control directory is there for those who name it.
    let names = fs::read_dir(pool.mnt()).expect("the root");
    assert!(!names.flatten().any(|entry| entry.file_name() == ".mendfs"));
    let json = fs::read(pool.mnt().join(".mendfs/status.json")).expect("status.json");
    serde_json::from_slice::<serde_json::Value>(&json).expect("JSON");
}

fn bytes_of(file: &File) -> Vec<u8> {
    let len = file.metadata().expect("stat").len() as usize;
    let mut bytes = vec![0; len];
    file.read_exact_at(&mut bytes, 0).expect("read");
    bytes
}

#[test]
fn fallocate_reserves_punches_and_zeroes() {
    let mut pool = mounted();
    let path = pool.mnt().join("file");
    let file = rw(&path);
    let mut want = content(5, 300_000);
    file.write_all_at(&want, 0).expect("write");
    let punch = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
    fallocate(&file, punch, 10_000, 100_000).expect("punch");
    want[10_000..110_000].fill(0);
    assert!(bytes_of(&file) == want, "after the punch");
    let zero = FallocateFlags::FALLOC_FL_ZERO_RANGE;
    fallocate(&file, zero, 150_001, 7777).expect("zero");
    want[150_001..157_778].fill(0);
    fallocate(&file, zero, 290_000, 50_000).expect("zero over the end");
    want.resize(340_000, 0);
    want[290_000..].fill(0);
    assert!(bytes_of(&file) == want, "after zeroing over the end");
    fallocate(&file, FallocateFlags::empty(), 340_000, 60_000).expect("extend");
    want.resize(400_000, 0);
    fallocate(&file, FallocateFlags::FALLOC_FL_KEEP_SIZE, 400_000, 1 << 20).expect("keep size");
    assert_eq!(file.metadata().expect("stat").len(), 400_000);
    let only = fallocate(&file, FallocateFlags::FALLOC_FL_PUNCH_HOLE, 0, 10);
    assert_eq!(only, Err(Errno::EOPNOTSUPP));
    file.sync_all().expect("fsync");
    drop(file);
    pool.remount();
    assert!(fs::read(&path).expect("read") == want, "after remount");
}

#[test]
fn data_and_holes_are_found_by_lseek() {
    let mut pool = mounted();
    let path = pool.mnt().join("sparse");
    let file = rw(&path);
    file.write_all_at(&[1; 8192], 1 << 20).expect("write");
    file.write_all_at(&[2; 4096], 3 << 20).expect("write");
    file.set_len(5 << 20).expect("ftruncate");
    drop(file);
    pool.remount();
    let file = rw(&path);
    let seek = |at: i64, whence| lseek(&file, at, whence);
    let first = seek(0, Whence::SeekData).expect("data");
    assert!((1..=1 << 20).contains(&first), "data from {first}");
    let hole = seek(first, Whence::SeekHole).expect("hole");
    assert!(
        ((1 << 20) + 8192..3 << 20).contains(&hole),
        "hole from {hole}"
    );
    let second = seek(hole, Whence::SeekData).expect("data");
    assert!(hole < second && second <= 3 << 20, "data from {second}");
    let end = seek((3 << 20) + 4096, Whence::SeekHole).expect("hole");
    assert!(end <= 5 << 20, "hole from {end}");
    assert_eq!(seek(4 << 20, Whence::SeekData), Err(Errno::ENXIO));
    assert_eq!(seek(5 << 20, Whence::SeekHole), Err(Errno::ENXIO));
    let blocks = file.metadata().expect("stat").blocks();
    assert!(blocks * 512 < 1 << 20, "{blocks} blocks for 12 KiB");
}

#[test]
fn copy_file_range_copies_unaligned_ranges() {
    let mut pool = mounted();
    let bytes = content(9, 2_000_003);
    fs::write(pool.mnt().join("from"), &bytes).expect("write");
    let (from, to) = (rw(&pool.mnt().join("from")), rw(&pool.mnt().join("to")));
    let cases = [
        (0, 0, 1_000_000),
        (1, 2_000_001, 70_000),
        (4096, 1_200_000, 500_000),
    ];
    let mut want: Vec<u8> = Vec::new();
    for (source, target, len) in cases {
        let (mut in_at, mut out_at, mut left) = (source as i64, target as i64, len);
        while left > 0 {
            // SAFETY: both descriptors are open, and the offsets live through the call.
            let got = unsafe {
                let (source, target) = (from.as_raw_fd(), to.as_raw_fd());
                libc::copy_file_range(source, &mut in_at, target, &mut out_at, left, 0)
            };
            assert!(got > 0, "copy_file_range: {}", io::Error::last_os_error());
            left -= got as usize;
        }
        want.resize(want.len().max(target + len), 0);
        want[target..target + len].copy_from_slice(&bytes[source..source + len]);
    }
    assert!(bytes_of(&to) == want);
    // The copy does not follow its source.
    from.write_all_at(&[0xee; 100_000], 0).expect("write");
    assert!(bytes_of(&to) == want, "changed with its source");
    drop((from, to));
    pool.remount();
    assert!(
        fs::read(pool.mnt().join("to")).expect("read") == want,
        "after remount"
    );
}

#[test]
fn an_unlinked_open_file_lives_until_it_is_closed() {
    let mut pool = mounted();
    let path = pool.mnt().join("file");
    let mut file = rw(&path);
    let bytes = content(3, 5_000_000);
    file.write_all(&bytes).expect("write");
    file.sync_all().expect("fsync");
    fs::remove_file(&path).expect("unlink");
    assert!(!path.exists());
    common::drop_caches();
    assert!(bytes_of(&file) == bytes, "after unlink");
    file.write_all_at(b"more", 6_000_000).expect("write");
    assert_eq!(file.metadata().expect("stat").nlink(), 0);
    file.seek(SeekFrom::Start(6_000_000)).expect("seek");
    let mut tail = Vec::new();
    file.read_to_end(&mut tail).expect("read");
    assert_eq!(tail, b"more");
    drop(file);
    pool.umount();
    pool.check_clean();
}

#[test]
fn an_unlinked_open_file_is_cleaned_up_after_a_crash() {
    let mut pool = mounted();
    let used = |pool: &Pool| {
        let stat = statvfs(pool.mnt()).expect("statvfs");
        (stat.files() - stat.files_free(), allocated(pool.mirror(0)))
    };
    common::content::sync_fs(pool.mnt());
    let (inodes, bytes) = used(&pool);
    let path = pool.mnt().join("file");
    let file = rw(&path);
    file.write_all_at(&content(3, 64 << 20), 0).expect("write");
    file.sync_all().expect("fsync");
    fs::remove_file(&path).expect("unlink");
    File::open(pool.mnt())
        .expect("open")
        .sync_all()
        .expect("fsync");
    pool.kill9();
    drop(file);
    pool.mount();
    let status = pool.status();
    assert_eq!(status.sum("orphans"), 1, "{}", status.text());
    wait_for("the space of the orphan", Duration::from_secs(60), || {
        let (now, taken) = used(&pool);
        now <= inodes && taken < bytes + (32 << 20)
    });
    pool.umount();
    pool.check_clean();
}

#[test]
fn a_shared_memory_map_writes_the_file() {
    let mut pool = mounted();
    let path = pool.mnt().join("map");
    let file = rw(&path);
    let len = 1 << 20;
    file.write_all_at(&content(8, len), 0).expect("write");
    let protection = libc::PROT_READ | libc::PROT_WRITE;
    // SAFETY: the file is as long as the map, and nothing cuts it while the map is there.
    let map = unsafe {
        let fd = file.as_raw_fd();
        libc::mmap(
            std::ptr::null_mut(),
            len,
            protection,
            libc::MAP_SHARED,
            fd,
            0,
        )
    };
    assert_ne!(map, libc::MAP_FAILED);
    // SAFETY: the map is `len` bytes, writable, and this is the only reference to it.
    let bytes = unsafe { std::slice::from_raw_parts_mut(map.cast::<u8>(), len) };
    assert!(bytes == content(8, len).as_slice());
    bytes[4090..4110].fill(0x55);
    bytes[len - 1] = 0x66;
    // SAFETY: the map is `len` bytes; `bytes` is not used after munmap.
    unsafe {
        assert_eq!(libc::msync(map, len, libc::MS_SYNC), 0);
        assert_eq!(libc::munmap(map, len), 0);
    }
    drop(file);
    pool.kill9();
    pool.mount();
    let mut want = content(8, len);
    want[4090..4110].fill(0x55);
    want[len - 1] = 0x66;
    assert!(
        fs::read(&path).expect("read") == want,
        "after msync and a kill"
    );
}

#[test]
fn appends_of_two_processes_do_not_overwrite_each_other() {
    let pool = mounted();
    let path = pool.mnt().join("log");
    let script =
        r#"i=0; while [ $i -lt 400 ]; do echo "$1 $i abcdefghij" >>"$2"; i=$((i+1)); done"#;
    let writers: Vec<_> = ["x", "y"]
        .iter()
        .map(|name| {
            let mut command = Command::new("sh");
            command.args(["-c", script, "sh", name]).arg(&path);
            command.spawn().expect("sh runs")
        })
        .collect();
    for mut writer in writers {
        assert!(writer.wait().expect("wait").success());
    }
    let text = fs::read_to_string(&path).expect("read");
    for name in ["x", "y"] {
        let lines = text.lines().filter(|line| line.starts_with(name));
        let want = (0..400).map(|number| format!("{name} {number} abcdefghij"));
        assert!(lines.eq(want), "lines of {name}");
    }
    assert_eq!(text.lines().count(), 800);
}

#[test]
fn a_directory_that_changes_while_it_is_listed_shows_every_lasting_name_once() {
    let pool = mounted();
    let name = |number: u32| format!("entry-{number:05}-{}", "x".repeat(40));
    for number in 0..3000 {
        fs::write(pool.mnt().join(name(number)), "").expect("write");
    }
    let mut listing = fs::read_dir(pool.mnt()).expect("the root");
    let mut seen: Vec<_> = (0..700)
        .map(|_| listing.next().expect("more").expect("an entry").file_name())
        .collect();
    for number in (0..3000).step_by(3) {
        fs::remove_file(pool.mnt().join(name(number))).expect("unlink");
        fs::write(pool.mnt().join(name(number + 10_000)), "").expect("write");
    }
    seen.extend(listing.map(|entry| entry.expect("an entry").file_name()));
    let set: BTreeSet<_> = seen.iter().collect();
    assert_eq!(set.len(), seen.len(), "a name came twice");
    for number in (0..3000).filter(|number| number % 3 != 0) {
        assert!(
            set.contains(&std::ffi::OsString::from(name(number))),
            "{number} is missing"
        );
    }
}

#[test]
fn a_place_in_a_directory_stays_valid_while_others_go() {
    let pool = mounted();
    for number in 0..500 {
        fs::write(pool.mnt().join(format!("f{number:03}")), "").expect("write");
    }
    let path = CString::new(pool.mnt().as_os_str().as_bytes()).expect("no NUL");
    // SAFETY: the path ends in NUL; the stream is used by this thread alone and closed once; each
    // entry is copied before the next call.
    unsafe {
        let dir = libc::opendir(path.as_ptr());
        assert!(!dir.is_null());
        let next = || {
            let entry = libc::readdir(dir);
            assert!(!entry.is_null(), "the end came too early");
            OsStr::from_bytes(CStr::from_ptr((*entry).d_name.as_ptr()).to_bytes()).to_owned()
        };
        let early: Vec<_> = (0..250).map(|_| next()).collect();
        let place = libc::telldir(dir);
        let expected = next();
        for name in early
            .iter()
            .filter(|name| !name.as_bytes().starts_with(b"."))
        {
            fs::remove_file(pool.mnt().join(name)).expect("unlink");
        }
        libc::seekdir(dir, place);
        assert_eq!(next(), expected);
        libc::closedir(dir);
    }
}

#[test]
fn names_of_255_bytes_work_and_longer_ones_do_not() {
    let pool = mounted();
    let longest = "n".repeat(255);
    let path = pool.mnt().join(&longest);
    fs::write(&path, "text").expect("write");
    assert_eq!(fs::read(&path).expect("read"), b"text");
    let longer = fs::write(pool.mnt().join("n".repeat(256)), "").expect_err("too long");
    assert_eq!(errno(&longer), Errno::ENAMETOOLONG);
    // Any bytes but NUL and slash are a name.
    let odd = pool.mnt().join(OsStr::from_bytes(b"\xff\xfe \n*\x01"));
    fs::write(&odd, "odd").expect("write");
    assert_eq!(fs::read(&odd).expect("read"), b"odd");
    assert_eq!(fs::read_dir(pool.mnt()).expect("the root").count(), 2);
}

#[test]
fn modes_owners_and_times_are_kept() {
    let mut pool = mounted();
    let path = pool.mnt().join("file");
    fs::write(&path, "text").expect("write");
    fs::set_permissions(&path, Permissions::from_mode(0o4751)).expect("chmod");
    std::os::unix::fs::chown(&path, Some(1234), Some(5678)).expect("chown");
    // chown takes setuid away from an executable, also when root does it.
    assert_eq!(fs::metadata(&path).expect("stat").mode() & 0o7777, 0o751);
    fs::set_permissions(&path, Permissions::from_mode(0o4751)).expect("chmod");
    let time = nix::sys::time::TimeSpec::new(1_000_000_001, 123_456_789);
    let early = nix::sys::time::TimeSpec::new(-5_000_000_000, 1);
    let flags = nix::sys::stat::UtimensatFlags::FollowSymlink;
    nix::sys::stat::utimensat(AT_FDCWD, &path, &time, &early, flags).expect("utimensat");
    pool.remount();
    let data = fs::metadata(&path).expect("stat");
    assert_eq!(data.mode() & 0o7777, 0o4751);
    assert_eq!((data.uid(), data.gid()), (1234, 5678));
    assert_eq!(
        (data.atime(), data.atime_nsec()),
        (1_000_000_001, 123_456_789)
    );
    assert_eq!((data.mtime(), data.mtime_nsec()), (-5_000_000_000, 1));
    let before = data.ctime();
    fs::write(&path, "other").expect("write");
    let data = fs::metadata(&path).expect("stat");
    assert!(data.ctime() >= before && data.mtime() > 1_700_000_000);
}

#[test]
fn one_who_may_keep_set_id_bits_keeps_them_also_when_a_capability_goes() {
    let pool = mounted();
    let path = pool.mnt().join("file");
    let file = rw(&path);
    file.write_all_at(&[1; 10_000], 0).expect("write");
    // VFS_CAP_REVISION_2 with CAP_NET_BIND_SERVICE; the kernel takes it away at every change.
    let mut capability = [0; 20];
    (capability[3], capability[5]) = (2, 4);
    let change: [(&str, &dyn Fn()); 3] = [
        ("write", &|| file.write_all_at(b"x", 5).expect("write")),
        ("truncation", &|| file.set_len(5).expect("truncate")),
        ("fallocate", &|| {
            fallocate(&file, FallocateFlags::empty(), 0, 20_000).expect("fallocate");
        }),
    ];
    for (what, change) in change {
        fs::set_permissions(&path, Permissions::from_mode(0o6755)).expect("chmod");
        set_xattr(&path, "security.capability", &capability, 0).expect("setxattr");
        change();
        let mode = fs::metadata(&path).expect("stat").mode() & 0o7777;
        assert_eq!(mode, 0o6755, "{what} by root");
        assert!(xattr(&path, "security.capability").is_err(), "{what}");
    }
    std::os::unix::fs::chown(&path, None, None).expect("chown");
    let mode = fs::metadata(&path).expect("stat").mode() & 0o7777;
    assert_eq!(mode, 0o755, "chown that names neither owner nor group");
}

/// What the mirrors hold, but for their lock files, which name the process that serves them.
fn stored(pool: &Pool) -> Vec<String> {
    let lines = pool.mirrors().iter().flat_map(|mirror| snapshot(mirror));
    lines.filter(|line| !line.contains("/lock ")).collect()
}

#[test]
fn a_mount_that_only_reads_leaves_the_mirrors_as_they_are() {
    let mut pool = mounted();
    let mnt = pool.mnt().to_owned();
    fs::create_dir(mnt.join("dir")).expect("mkdir");
    fs::write(mnt.join("dir/file"), content(1, 300_000)).expect("write");
    symlink("dir/file", mnt.join("link")).expect("symlink");
    pool.umount();
    let before = stored(&pool);
    pool.mount();
    let read = fs::read(mnt.join("link")).expect("read");
    assert!(read == content(1, 300_000));
    assert_eq!(fs::read_dir(&mnt).expect("readdir").count(), 2);
    list_xattr(&mnt);
    nix::unistd::sync();
    assert_eq!(stored(&pool), before);
    pool.umount();
    assert_eq!(stored(&pool), before);
}

#[test]
fn a_directory_inherits_the_group_where_it_should() {
    let pool = mounted();
    let dir = pool.mnt().join("shared");
    fs::create_dir(&dir).expect("mkdir");
    std::os::unix::fs::chown(&dir, None, Some(4321)).expect("chown");
    fs::set_permissions(&dir, Permissions::from_mode(0o2775)).expect("chmod");
    fs::create_dir(dir.join("below")).expect("mkdir");
    fs::write(dir.join("file"), "").expect("write");
    let below = fs::metadata(dir.join("below")).expect("stat");
    assert_eq!((below.gid(), below.mode() & 0o2000), (4321, 0o2000));
    assert_eq!(fs::metadata(dir.join("file")).expect("stat").gid(), 4321);
}

#[test]
fn truncation_and_extension_show_zeros_never_old_bytes() {
    let mut pool = mounted();
    let path = pool.mnt().join("file");
    let file = rw(&path);
    file.write_all_at(&[0xaa; 20_000], 0).expect("write");
    file.set_len(5_001).expect("shrink");
    file.set_len(15_000).expect("grow");
    let mut want = vec![0xaa; 5_001];
    want.resize(15_000, 0);
    assert!(bytes_of(&file) == want, "cached");
    file.write_all_at(b"x", 30_000)
        .expect("write behind the end");
    want.resize(30_000, 0);
    want.push(b'x');
    drop(file);
    pool.remount();
    assert!(fs::read(&path).expect("read") == want, "after remount");
}

#[test]
fn statvfs_tells_the_smallest_mirrors_room() {
    let pool = mounted();
    let stat = statvfs(pool.mnt()).expect("statvfs");
    let below = statvfs(pool.mirror(0)).expect("statvfs");
    let bytes = |stat: &nix::sys::statvfs::Statvfs| stat.blocks_available() * stat.fragment_size();
    assert!(bytes(&stat) > 0 && bytes(&stat) <= bytes(&below));
    assert_eq!(stat.name_max(), 255);
    assert!(stat.blocks() >= stat.blocks_available());
}

#[test]
fn a_removed_directory_that_is_open_takes_no_new_names() {
    let pool = mounted();
    let dir = pool.mnt().join("dir");
    fs::create_dir(&dir).expect("mkdir");
    let full = pool.mnt().join("full");
    fs::create_dir(&full).expect("mkdir");
    fs::write(full.join("file"), "").expect("write");
    let refused = fs::remove_dir(&full).expect_err("not empty");
    assert_eq!(errno(&refused), Errno::ENOTEMPTY);
    let open = File::open(&dir).expect("open");
    fs::remove_dir(&dir).expect("rmdir");
    let inside = format!("/proc/self/fd/{}/new", open.as_raw_fd());
    let refused = File::create(inside).expect_err("the directory is gone");
    assert_eq!(errno(&refused), Errno::ENOENT);
}

#[test]
fn files_can_be_executed_locked_and_leased_from() {
    let pool = mounted();
    let program = pool.mnt().join("program");
    fs::copy("/bin/true", &program).expect("copy");
    fs::set_permissions(&program, Permissions::from_mode(0o755)).expect("chmod");
    assert!(Command::new(&program).status().expect("it runs").success());
    let file = rw(&pool.mnt().join("locked"));
    file.lock().expect("flock");
    let other = rw(&pool.mnt().join("locked"));
    assert!(other.try_lock().is_err(), "locked twice");
    drop(file);
    other.try_lock().expect("free again");
}
