//! The helper of umount(8): unmounts and waits until the pool is closed.
//!
//! The kernel does not tell a FUSE server that it is unmounting and does not wait for it: umount(2)
//! returns while the server still syncs. For whoever runs umount and then pulls a disk, or mounts
//! again, that is too early, and a clean unmount promises more. So the server's process is looked
//! up before, by a descriptor that no other process can come to stand for, and waited for after.
//!
//! umount(8) runs this helper for a relative path, for other users than root, and for a mount with
//! an entry in /run/mount/utab, which `-o uhelper=mendfs`, `_netdev` or any `x-` option makes. For
//! root and an absolute path without one it takes a short cut that knows no subtypes (util-linux
//! 2.38) and does not; `mount` therefore has to wait for a server that is still closing.

use std::os::fd::{AsFd, FromRawFd, OwnedFd};
use std::path::Path;
use std::process::ExitCode;

use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, umount2};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::args::UmountArgs;
use super::mountinfo::{self, Mount};
use super::outcome::Failure;
use super::status;
use crate::fuse;

/// Unmounts.
pub(super) fn run(args: UmountArgs) -> Result<ExitCode, Failure> {
    // Not canonicalize: the path of a mount whose server is gone cannot be looked at.
    let path = std::path::absolute(&args.mount_point)
        .map_err(|error| Failure::Usage(format!("{}: {error}", args.mount_point.display())))?;
    let mount = find(&path)?;
    // A forced or lazy unmount is for a server that does not answer or a mount that is in use;
    // neither is waited for.
    let wait = !args.force && !args.lazy;
    let server = if wait {
        server(&mount.mount_point)
    } else {
        None
    };
    unmount(&mount, &args)?;
    if args.verbose {
        eprintln!("{} unmounted", mount.mount_point.display());
    }
    if let Some(server) = server
        && !mounted_elsewhere(&mount)
    {
        wait_for(&server)?;
    }
    Ok(ExitCode::SUCCESS)
}

fn find(path: &Path) -> Result<Mount, Failure> {
    let found = match mountinfo::at(path) {
        // The path may be a link to the mount point.
        Ok(None) => path
            .canonicalize()
            .map_or(Ok(None), |path| mountinfo::at(&path)),
        found => found,
    };
    let mount = found
        .map_err(|error| Failure::System(format!("/proc/self/mountinfo: {error}")))?
        .ok_or_else(|| Failure::Failed(format!("{} is not mounted", path.display())))?;
    if mount.kind == format!("fuse.{}", fuse::SUBTYPE) {
        Ok(mount)
    } else {
        Err(Failure::Failed(format!(
            "{} is of type {}, not mendfs",
            mount.mount_point.display(),
            mount.kind
        )))
    }
}

/// The process that serves the mount, if it can be told.
fn server(mount_point: &Path) -> Option<OwnedFd> {
    let pid = status::read_mounted(mount_point).ok()?.server?.pid;
    let pid = libc::pid_t::try_from(pid).ok()?;
    // SAFETY: the system call takes two integers and returns a descriptor or -1.
    let descriptor = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
    let descriptor = i32::try_from(descriptor)
        .ok()
        .filter(|descriptor| *descriptor >= 0)?;
    // SAFETY: the kernel has just made this descriptor for us.
    Some(unsafe { OwnedFd::from_raw_fd(descriptor) })
}

fn unmount(mount: &Mount, args: &UmountArgs) -> Result<(), Failure> {
    let path = &mount.mount_point;
    let mut flags = MntFlags::UMOUNT_NOFOLLOW;
    flags.set(MntFlags::MNT_FORCE, args.force);
    flags.set(MntFlags::MNT_DETACH, args.lazy);
    match umount2(path, flags) {
        Ok(()) => Ok(()),
        Err(Errno::EBUSY) if args.read_only => {
            let flags = MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY;
            nix::mount::mount(None::<&str>, path, None::<&str>, flags, None::<&str>)
                .map_err(|errno| failed(path, errno))
        }
        Err(errno) => Err(failed(path, errno)),
    }
}

fn failed(path: &Path, errno: Errno) -> Failure {
    let shown = path.display();
    match errno {
        Errno::EBUSY => Failure::Failed(format!("{shown} is busy")),
        Errno::EPERM => Failure::Denied(format!("{shown}: unmounting needs root")),
        errno => Failure::Failed(format!("{shown}: {errno}")),
    }
}

/// Whether the same filesystem is still mounted at another place, so that its server goes on.
fn mounted_elsewhere(gone: &Mount) -> bool {
    mountinfo::all().is_ok_and(|mounts| mounts.iter().any(|mount| mount.device == gone.device))
}

fn wait_for(server: &OwnedFd) -> Result<(), Failure> {
    // A process descriptor becomes readable when the process has ended.
    let mut ended = [PollFd::new(server.as_fd(), PollFlags::POLLIN)];
    loop {
        match poll(&mut ended, PollTimeout::NONE) {
            Ok(_) => return Ok(()),
            Err(Errno::EINTR) => {}
            Err(errno) => {
                return Err(Failure::System(format!(
                    "cannot wait for the server: {errno}"
                )));
            }
        }
    }
}
