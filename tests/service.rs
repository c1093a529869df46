//! mendfs as systemd runs it: readiness is told to the service manager, the units are what systemd
//! takes, and a line in fstab orders the mount behind those of its mirrors.
//!
//! systemd itself does not run here. Its own parsers judge the units, and a socket of the test
//! hears what a service says.

mod common;

use std::fs;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use common::{MENDFS, Mounted, Pool, mount_at, scratch, text, wait_for};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// Longest wait for something to be said.
const PATIENCE: Duration = Duration::from_secs(60);
/// Where Debian keeps what makes units of /etc/fstab.
const FSTAB_GENERATOR: &str = "/lib/systemd/system-generators/systemd-fstab-generator";

fn heard(socket: &UnixDatagram) -> String {
    let mut buf = [0; 4096];
    let len = socket.recv(&mut buf).expect("a word of the service");
    String::from_utf8(buf[..len].to_vec()).expect("text")
}

fn service(pool: &Pool, socket: &str) -> Child {
    Command::new(MENDFS)
        .args(["mount", "-f", "-o", "defaults", &pool.spec()])
        .arg(pool.mnt())
        .env("NOTIFY_SOCKET", socket)
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("mendfs runs")
}

/// The whole life of a service, told to a socket.
fn life(socket: &UnixDatagram, name: &str) {
    let pool = Pool::create(2);
    socket.set_read_timeout(Some(PATIENCE)).expect("timeout");
    let _mounted = Mounted(pool.mnt().to_owned());
    let mut child = service(&pool, name);
    let source = pool.spec();
    assert_eq!(heard(socket), format!("STATUS=Opening {source}\n"));
    let mnt = pool.mnt().display();
    let ready = format!("READY=1\nSTATUS={source} mounted on {mnt}\n");
    assert_eq!(heard(socket), ready);
    // Said when the mount is live, and not before.
    assert!(mount_at(pool.mnt()).is_some());
    fs::write(pool.mnt().join("file"), "text").expect("a live mount");
    // What systemd sends to stop a service.
    let pid = i32::try_from(child.id()).expect("a pid");
    kill(Pid::from_raw(pid), Signal::SIGTERM).expect("kill");
    let stopping = format!("STOPPING=1\nSTATUS=Closing {source}\n");
    assert_eq!(heard(socket), stopping);
    let status = child.wait().expect("wait");
    assert!(status.success(), "{status}");
    assert!(mount_at(pool.mnt()).is_none());
    pool.check_clean();
}

#[test]
fn a_service_manager_is_told_when_the_mount_is_live_and_when_it_ends() {
    let dir = scratch();
    let path = dir.path().join("notify");
    let socket = UnixDatagram::bind(&path).expect("a socket");
    life(&socket, path.to_str().expect("text"));
}

#[test]
fn a_service_manager_may_listen_on_an_abstract_socket() {
    let name = format!("mendfs-service-test-{}", std::process::id());
    let address = SocketAddr::from_abstract_name(&name).expect("a name");
    let socket = UnixDatagram::bind_addr(&address).expect("a socket");
    life(&socket, &format!("@{name}"));
}

#[test]
fn a_service_that_cannot_mount_says_why_and_never_that_it_is_ready() {
    let dir = scratch();
    let path = dir.path().join("notify");
    let socket = UnixDatagram::bind(&path).expect("a socket");
    socket.set_read_timeout(Some(PATIENCE)).expect("timeout");
    let pool = Pool::create(2);
    for mirror in pool.mirrors() {
        fs::write(mirror.join("mendfs.super"), "").expect("write");
    }
    let mut child = service(&pool, path.to_str().expect("text"));
    assert!(!child.wait().expect("wait").success());
    assert!(heard(&socket).starts_with("STATUS=Opening "));
    let last = heard(&socket);
    assert!(
        last.starts_with("STATUS=") && last.contains("mirror"),
        "{last}"
    );
    socket.set_nonblocking(true).expect("nonblocking");
    assert!(socket.recv(&mut [0; 16]).is_err(), "more was said");
}

#[test]
fn a_mount_in_the_background_leaves_the_managers_of_others_alone() {
    let dir = scratch();
    let path = dir.path().join("notify");
    let socket = UnixDatagram::bind(&path).expect("a socket");
    let pool = Pool::create(2);
    let mounted = Mounted(pool.mnt().to_owned());
    let output = Command::new(MENDFS)
        .args(["mount", &pool.spec()])
        .arg(pool.mnt())
        .env("NOTIFY_SOCKET", &path)
        .stdin(Stdio::null())
        .output()
        .expect("mendfs runs");
    assert!(output.status.success(), "{}", text(&output));
    drop(mounted);
    // The pool is free again when its process has ended, and so has said all that it had to.
    wait_for("the pool to be closed", PATIENCE, || {
        pool.check().status.success()
    });
    socket.set_nonblocking(true).expect("nonblocking");
    assert!(socket.recv(&mut [0; 16]).is_err(), "something was said");
}

fn units() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/systemd")
}

/// Copies the units to where an administrator would have them, with mendfs where it is.
fn installed(to: &Path) {
    let example = fs::read_to_string(units().join("srv-data.mount.example")).expect("example");
    fs::write(to.join("srv-data.mount"), example).expect("write");
    for name in [
        "mendfs@.service",
        "mendfs-scrub@.service",
        "mendfs-scrub@.timer",
    ] {
        let unit = fs::read_to_string(units().join(name)).expect(name);
        fs::write(to.join(name), unit.replace("/usr/bin/mendfs", MENDFS)).expect("write");
    }
    let drop_in = to.join("mendfs@srv-data.service.d");
    fs::create_dir(&drop_in).expect("mkdir");
    fs::write(drop_in.join("pool.conf"), drop_in_of_the_unit()).expect("write");
}

/// The drop-in that the service's own comment shows.
fn drop_in_of_the_unit() -> String {
    let unit = fs::read_to_string(units().join("mendfs@.service")).expect("the unit");
    let lines = unit.lines().filter_map(|line| line.strip_prefix("#   "));
    let text: String = lines.map(|line| format!("{line}\n")).collect();
    assert!(text.contains("MIRRORS="), "{text}");
    text
}

/// What `systemd-analyze verify` says about units, and whether it was content.
fn verify(directory: &Path, names: &[&str]) -> (bool, String) {
    let output = Command::new("systemd-analyze")
        .args(["verify", "--man=no", "--recursive-errors=no"])
        .args(names.iter().map(|name| directory.join(name)))
        .env("SYSTEMD_UNIT_PATH", format!("{}:", directory.display()))
        .output()
        .expect("systemd-analyze runs; it is in the package systemd");
    (output.status.success(), text(&output))
}

#[test]
fn systemd_takes_the_units() {
    let dir = scratch();
    installed(dir.path());
    for name in [
        "srv-data.mount",
        "mendfs@srv-data.service",
        "mendfs-scrub@srv-data.service",
        "mendfs-scrub@srv-data.timer",
    ] {
        let (good, said) = verify(dir.path(), &[name]);
        let about_ours = |line: &str| line.contains("mendfs") || line.contains("srv-data");
        assert!(good && !said.lines().any(about_ours), "{name}: {said}");
    }
    // It would notice.
    let unit = dir.path().join("mendfs@.service");
    let broken = fs::read_to_string(&unit).expect("read") + "\n[Service]\nFrobnicate=yes\n";
    fs::write(&unit, broken).expect("write");
    let (_, said) = verify(dir.path(), &["mendfs@srv-data.service"]);
    assert!(said.contains("Frobnicate"), "{said}");
}

/// The fstab line of mount.mendfs(8), as one line of fields.
fn fstab_line() -> String {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("man/mount.mendfs.8");
    let page = fs::read_to_string(page).expect("the page");
    let line = page
        .lines()
        .find(|line| line.contains("x-systemd.requires-mounts-for=/"));
    line.expect("the line").to_owned() + "\n"
}

#[test]
fn the_fstab_line_of_the_manual_waits_for_the_mirrors_and_holds_up_no_boot() {
    let dir = scratch();
    let fstab = dir.path().join("fstab");
    fs::write(&fstab, fstab_line()).expect("write");
    let out = dir.path().join("units");
    fs::create_dir(&out).expect("mkdir");
    let output = Command::new(FSTAB_GENERATOR)
        .args([&out, &out, &out])
        .env("SYSTEMD_FSTAB", &fstab)
        .env("SYSTEMD_PROC_CMDLINE", "root=/dev/null")
        .output()
        .expect("the generator runs; it is in the package systemd");
    assert!(output.status.success(), "{}", text(&output));
    let unit = fs::read_to_string(out.join("home.mount")).expect("a mount unit");
    let mut waits = Vec::new();
    for line in unit.lines() {
        if let Some(list) = line.strip_prefix("RequiresMountsFor=") {
            waits.extend(list.split_whitespace().map(str::to_owned));
        }
    }
    assert!(waits.contains(&"/disk1".to_owned()), "{unit}");
    assert!(waits.contains(&"/disk2".to_owned()), "{unit}");
    assert!(unit.contains("Type=mendfs"), "{unit}");
    // nofail: wanted, not required, and local-fs.target does not wait for it.
    assert!(
        out.join("local-fs.target.wants/home.mount").exists(),
        "{unit}"
    );
    assert!(!unit.contains("Before=local-fs.target"), "{unit}");
    let (good, said) = verify(&out, &["home.mount"]);
    assert!(good, "{said}");
}
