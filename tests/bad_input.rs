//! Every bad input of the commands: one clear sentence on standard error that names the thing, the
//! right exit code, and nothing touched.

mod common;

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, symlink};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use nix::mount::{MsFlags, mount};
use tempfile::TempDir;

use common::disk::snapshot;
use common::{MENDFS, Mounted, Pool, mendfs, mount_at, scratch, text};

/// Exit codes of `mendfs`: failed, and wrong usage.
const FAILED: i32 = 1;
const USAGE: i32 = 2;
/// Exit code of mount(8) helpers for a mount that failed.
const MOUNT_FAILED: i32 = 32;

/// Expects the exit code, and one sentence on standard error with all the words in it.
fn expect_error(what: &str, output: &Output, code: i32, words: &[&str]) {
    let error = String::from_utf8_lossy(&output.stderr);
    let about = format!("{what}: {}", text(output));
    assert_eq!(output.status.code(), Some(code), "{about}");
    for word in words {
        assert!(
            error.to_lowercase().contains(&word.to_lowercase()),
            "no {word:?} in {about}"
        );
    }
    let lines = error.lines().filter(|line| !line.trim().is_empty()).count();
    // clap adds a usage hint to its own sentence.
    let most = if code == USAGE { 6 } else { 1 };
    assert!((1..=most).contains(&lines), "{lines} lines: {about}");
    assert!(!error.contains("panicked"), "{about}");
    assert!(output.stdout.is_empty(), "{about}");
}

/// Runs a command and expects an error that leaves everything under `dir` as it was.
fn refuse(dir: &Path, what: &str, args: &[&str], code: i32, words: &[&str]) {
    let before = snapshot(dir);
    let output = mendfs(args);
    expect_error(what, &output, code, words);
    assert_eq!(before, snapshot(dir), "{what}: something was touched");
}

fn text_of(path: &Path) -> &str {
    path.to_str().expect("UTF-8")
}

/// Two empty directories in a scratch directory.
fn two_dirs() -> (TempDir, PathBuf, PathBuf) {
    let dir = scratch();
    let (a, b) = (dir.path().join("a"), dir.path().join("b"));
    fs::create_dir(&a).expect("mkdir");
    fs::create_dir(&b).expect("mkdir");
    (dir, a, b)
}

#[test]
fn format_refuses_a_directory_that_is_not_empty() {
    let (dir, a, b) = two_dirs();
    fs::write(b.join("letter"), "dear").expect("write");
    let args = ["format", text_of(&a), text_of(&b)];
    refuse(
        dir.path(),
        "not empty",
        &args,
        FAILED,
        &[text_of(&b), "not empty"],
    );
}

#[test]
fn format_refuses_the_same_directory_twice() {
    let (dir, a, b) = two_dirs();
    let other = dir.path().join("other");
    symlink(&a, &other).expect("symlink");
    let dotted = format!("{}/../a", b.display());
    for again in [text_of(&a), text_of(&other), &dotted] {
        let args = ["format", text_of(&a), again];
        refuse(dir.path(), "twice", &args, USAGE, &[text_of(&a), "twice"]);
    }
}

#[test]
fn format_refuses_nested_directories() {
    let (dir, a, _) = two_dirs();
    let inner = a.join("inner");
    fs::create_dir(&inner).expect("mkdir");
    for (one, other) in [(&a, &inner), (&inner, &a)] {
        let args = ["format", text_of(one), text_of(other)];
        refuse(
            dir.path(),
            "nested",
            &args,
            FAILED,
            &[text_of(&inner), "lies in"],
        );
    }
}

#[test]
fn format_refuses_a_file_and_a_missing_directory() {
    let (dir, a, b) = two_dirs();
    let file = dir.path().join("file");
    fs::write(&file, "text").expect("write");
    let args = ["format", text_of(&a), text_of(&file)];
    refuse(
        dir.path(),
        "a file",
        &args,
        FAILED,
        &[text_of(&file), "not a directory"],
    );
    let missing = b.join("missing/deep");
    let args = ["format", text_of(&a), text_of(&missing)];
    refuse(dir.path(), "missing", &args, FAILED, &[text_of(&missing)]);
}

#[test]
fn format_refuses_a_pool_that_is_there() {
    let pool = Pool::create(2);
    let args = ["format", text_of(pool.mirror(0)), text_of(pool.mirror(1))];
    refuse(
        pool.scratch(),
        "a pool",
        &args,
        FAILED,
        &[text_of(pool.mirror(0))],
    );
}

#[test]
fn usage_errors_have_their_own_code() {
    let (dir, a, b) = two_dirs();
    let (a, b) = (text_of(&a), text_of(&b));
    refuse(dir.path(), "one mirror", &["format", a], USAGE, &["2 to 8"]);
    let args = ["format", "--checksum", "md5", a, b];
    refuse(dir.path(), "checksum", &args, USAGE, &["md5", "crc32"]);
    refuse(
        dir.path(),
        "option",
        &["format", "--nonsense", a, b],
        USAGE,
        &["--nonsense"],
    );
    refuse(
        dir.path(),
        "command",
        &["frobnicate"],
        USAGE,
        &["frobnicate"],
    );
    let long = "x".repeat(65);
    let args = ["format", "--label", &long, a, b];
    let output = mendfs(args);
    assert!(
        !output.status.success(),
        "a label of 65 bytes: {}",
        text(&output)
    );
}

#[test]
fn mount_refuses_a_directory_without_a_pool() {
    let (dir, a, b) = two_dirs();
    let mnt = dir.path().join("mnt");
    fs::create_dir(&mnt).expect("mkdir");
    let spec = format!("{}:{}", a.display(), b.display());
    let args = ["mount", &spec, text_of(&mnt)];
    refuse(
        dir.path(),
        "no pool",
        &args,
        FAILED,
        &[text_of(&a), "no mendfs pool"],
    );
    let spec = format!("{}/gone:{}/gone", a.display(), b.display());
    let args = ["mount", &spec, text_of(&mnt)];
    refuse(dir.path(), "no directory", &args, FAILED, &["gone"]);
}

#[test]
fn mount_refuses_mirrors_of_two_pools() {
    let (one, two) = (Pool::create(2), Pool::create(2));
    let spec = format!("{}:{}", one.mirror(0).display(), two.mirror(1).display());
    let before = snapshot(two.scratch());
    let args = ["mount", &spec, text_of(one.mnt())];
    let words = [text_of(one.mirror(0)), text_of(two.mirror(1)), "pool"];
    refuse(one.scratch(), "two pools", &args, FAILED, &words);
    assert_eq!(before, snapshot(two.scratch()));
}

#[test]
fn mount_refuses_a_pool_that_is_mounted() {
    let mut pool = Pool::create(2);
    pool.mount();
    let other = scratch();
    let output = mendfs(["mount", &pool.spec(), text_of(other.path())]);
    expect_error(
        "mounted",
        &output,
        FAILED,
        &[text_of(pool.mirror(0)), "in use"],
    );
    assert!(mount_at(other.path()).is_none());
    // Offline commands are refused as well, and the mounted pool goes on.
    let output = mendfs(["check", &pool.spec()]);
    expect_error("check of a mounted pool", &output, FAILED, &["in use"]);
    fs::write(pool.mnt().join("file"), "text").expect("write");
    pool.umount();
    pool.check_clean();
}

#[test]
fn mount_refuses_a_newer_format_version() {
    let pool = Pool::create(2);
    for mirror in pool.mirrors() {
        let path = mirror.join("mendfs.super");
        let file = File::options()
            .read(true)
            .write(true)
            .open(path)
            .expect("open");
        for slot in [0, 4096] {
            let mut bytes = [0; 4096];
            file.read_exact_at(&mut bytes, slot).expect("read");
            if bytes[..8] != *b"MENDFS\r\n" {
                continue;
            }
            // Byte 8 begins the version, byte 12 names the algorithm, the sum stands at the end.
            bytes[8] = 9;
            let algorithm = mendfs::format::Algorithm::from_id(bytes[12]).expect("known");
            let sum = algorithm.sum64(&[&bytes[..4088]]);
            bytes[4088..].copy_from_slice(&sum.to_le_bytes());
            file.write_all_at(&bytes, slot).expect("write");
        }
    }
    let args = ["mount", &pool.spec(), text_of(pool.mnt())];
    refuse(
        pool.scratch(),
        "newer",
        &args,
        FAILED,
        &["version 9", text_of(pool.mirror(0))],
    );
}

#[test]
fn mount_refuses_an_unknown_option() {
    let pool = Pool::create(2);
    let args = [
        "mount",
        "-o",
        "rw,frobnicate=3",
        &pool.spec(),
        text_of(pool.mnt()),
    ];
    refuse(pool.scratch(), "option", &args, USAGE, &["frobnicate"]);
}

#[test]
fn mount_refuses_a_mount_point_that_is_a_file_or_missing() {
    let pool = Pool::create(2);
    let file = pool.scratch().join("file");
    fs::write(&file, "text").expect("write");
    let args = ["mount", &pool.spec(), text_of(&file)];
    refuse(
        pool.scratch(),
        "file",
        &args,
        FAILED,
        &[text_of(&file), "not a directory"],
    );
    let gone = pool.scratch().join("gone");
    let args = ["mount", &pool.spec(), text_of(&gone)];
    refuse(pool.scratch(), "gone", &args, FAILED, &[text_of(&gone)]);
}

/// Makes a directory read-only for everybody, root too, until the guard is dropped.
fn make_read_only(dir: &Path) -> Mounted {
    let none: Option<&str> = None;
    mount(Some(dir), dir, none, MsFlags::MS_BIND, none).expect("bind");
    let guard = Mounted(dir.to_owned());
    let flags = MsFlags::MS_BIND | MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY;
    mount(none, dir, none, flags, none).expect("read-only");
    guard
}

#[test]
fn a_read_only_mirror_directory_is_refused() {
    let (dir, a, b) = two_dirs();
    let guard = make_read_only(&b);
    let args = ["format", text_of(&a), text_of(&b)];
    refuse(
        dir.path(),
        "format",
        &args,
        FAILED,
        &[text_of(&b), "read-only"],
    );
    drop(guard);

    let pool = Pool::create(2);
    let _guard = make_read_only(pool.mirror(1));
    let args = ["mount", &pool.spec(), text_of(pool.mnt())];
    refuse(
        pool.scratch(),
        "mount",
        &args,
        FAILED,
        &[text_of(pool.mirror(1)), "read-only"],
    );
}

/// A shell script in a mount namespace of its own whose /dev has no fuse.
const WITHOUT_DEV_FUSE: &str = r#"
set -e
mount -t tmpfs none "$1"
for node in null zero full random urandom; do cp -a "/dev/$node" "$1/"; done
mount --move "$1" /dev
shift
exec "$@"
"#;

#[test]
fn a_machine_without_dev_fuse_is_named() {
    let pool = Pool::create(2);
    let dev = pool.scratch().join("dev");
    fs::create_dir(&dev).expect("mkdir");
    let before = snapshot(pool.scratch());
    let output = Command::new("unshare")
        .args(["-m", "sh", "-c", WITHOUT_DEV_FUSE, "sh"])
        .arg(&dev)
        .args([MENDFS, "mount", &pool.spec(), text_of(pool.mnt())])
        .stdin(Stdio::null())
        .output()
        .expect("unshare runs");
    expect_error("no /dev/fuse", &output, FAILED, &["/dev/fuse"]);
    assert_eq!(before, snapshot(pool.scratch()));
}

#[test]
fn the_mount_helper_answers_with_the_codes_of_mount() {
    let (dir, a, b) = two_dirs();
    let mnt = dir.path().join("mnt");
    fs::create_dir(&mnt).expect("mkdir");
    let spec = format!("{}:{}", a.display(), b.display());
    let helper = |args: &[&str]| {
        Command::new(MENDFS)
            .arg0("/sbin/mount.mendfs")
            .args(args)
            .output()
            .expect("mendfs runs")
    };
    let output = helper(&[&spec, text_of(&mnt), "-o", "rw"]);
    expect_error("no pool", &output, MOUNT_FAILED, &["no mendfs pool"]);
    let output = helper(&[&spec, text_of(&mnt), "-o", "frobnicate"]);
    expect_error("option", &output, 1, &["frobnicate"]);
}

#[test]
fn fsck_answers_with_the_codes_of_fsck() {
    let (_dir, a, b) = two_dirs();
    let spec = format!("{}:{}", a.display(), b.display());
    let fsck = |args: &[&str]| {
        let mut command = Command::new(MENDFS);
        command.arg0("/sbin/fsck.mendfs").args(args);
        command.output().expect("mendfs runs")
    };
    // 8: operational error. 16: usage.
    expect_error("no pool", &fsck(&[&spec]), 8, &["no mendfs pool"]);
    assert_eq!(fsck(&["--nonsense", &spec]).status.code(), Some(16));
    let pool = Pool::create(2);
    assert_eq!(fsck(&[&pool.spec()]).status.code(), Some(0));
}

#[test]
fn status_of_something_else_is_an_error() {
    let dir = scratch();
    let args = ["status", text_of(dir.path())];
    // 2: it could not be told how the pool is.
    refuse(dir.path(), "status", &args, 2, &[text_of(dir.path())]);
    let output = mendfs(["status", "/proc"]);
    expect_error("status of /proc", &output, 2, &["/proc"]);
}
