//! The Debian package: made, looked at, installed, used and removed again. In the long run alone
//! (MENDFS_LONG=1), as it needs cargo-deb and changes the machine for a moment; scripts/test --long
//! installs what it needs.

mod common;

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use common::{MENDFS, long, scratch, text};

/// What lintian has to say that stays: a static part of the program, and no systemd helper.
const ACCEPTED: [&str; 3] = [
    "initial-upload-closes-no-bugs",
    "maintainer-script-calls-systemctl",
    "embedded-library",
];

fn run(program: &str, args: &[&str]) -> Output {
    let output = Command::new(program)
        .args(args)
        .stdin(Stdio::null())
        .output();
    output.unwrap_or_else(|error| panic!("{program}: {error}"))
}

fn ok(program: &str, args: &[&str]) -> String {
    let output = run(program, args);
    assert!(output.status.success(), "{program}: {}", text(&output));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn installed() -> bool {
    let output = run("dpkg-query", &["-W", "-f", "${db:Status-Status}", "mendfs"]);
    output.stdout == b"installed"
}

/// Removes the package, also after a failure.
struct Installed;

impl Drop for Installed {
    fn drop(&mut self) {
        run("dpkg", &["--purge", "mendfs"]);
    }
}

fn package(to: &Path) -> PathBuf {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/package");
    let output = Command::new(script)
        .arg(to)
        .env("BINARY", MENDFS)
        .output()
        .expect("scripts/package");
    assert!(output.status.success(), "{}", text(&output));
    let said = String::from_utf8(output.stdout).expect("text");
    PathBuf::from(said.lines().last().expect("its name"))
}

#[test]
fn the_debian_package_is_clean_installs_works_and_goes() {
    if !long() {
        return;
    }
    assert!(!installed(), "mendfs is installed on this machine already");
    let dir = scratch();
    let package = package(dir.path());
    let package = package.to_str().expect("text");
    let said = text(&run("lintian", &["--allow-root", package]));
    let bad = |line: &&str| line.starts_with("E:") || line.starts_with("W:");
    let mut bad = said.lines().filter(bad);
    let rest = bad.find(|line| !ACCEPTED.iter().any(|tag| line.contains(tag)));
    assert!(rest.is_none(), "{said}");
    let listed = ok("dpkg-deb", &["--contents", package]);
    for name in [
        "usr/bin/mendfs",
        "usr/sbin/mount.mendfs",
        "usr/sbin/mount.fuse.mendfs",
        "usr/sbin/umount.mendfs",
        "usr/sbin/mkfs.mendfs",
        "usr/sbin/fsck.mendfs",
        "usr/share/man/man5/mendfs.5.gz",
        "usr/share/man/man7/mendfs.7.gz",
        "usr/share/man/man8/mendfs.8.gz",
        "usr/share/man/man8/mount.mendfs.8.gz",
        "usr/share/bash-completion/completions/mendfs",
        "usr/share/zsh/vendor-completions/_mendfs",
        "usr/share/fish/vendor_completions.d/mendfs.fish",
        "lib/systemd/system/mendfs@.service",
        "lib/systemd/system/mendfs-scrub@.service",
        "lib/systemd/system/mendfs-scrub@.timer",
        "usr/share/mendfs/monitoring/alerts.yml",
        "usr/share/mendfs/monitoring/dashboard.json",
        "usr/share/mendfs/monitoring/mendfs-textfile",
        "usr/share/doc/mendfs/README.md",
        "usr/share/doc/mendfs/copyright",
    ] {
        assert!(listed.contains(&format!("./{name}")), "{name}: {listed}");
    }
    {
        let _installed = Installed;
        ok("dpkg", &["-i", package]);
        assert!(installed());
        let top = dir.path().to_str().expect("text");
        let script = r#"
            set -eu
            cd "$1"
            mkdir a b mnt
            mkfs -t mendfs a b
            mount -t mendfs "$1/a:$1/b" mnt
            echo hello >mnt/file
            mendfs status mnt
            umount mnt
            fsck.mendfs "$1/a:$1/b"
        "#;
        ok("bash", &["-c", script, "bash", top]);
        ok("dpkg", &["--remove", "mendfs"]);
    }
    assert!(!installed());
    for left in ["/usr/bin/mendfs", "/usr/sbin/mount.mendfs"] {
        assert!(!Path::new(left).exists(), "{left} is left");
    }
}
