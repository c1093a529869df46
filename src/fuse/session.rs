//! A mount's life: mount(2), the handshake, the event loops, and the end.
//!
//! mount(2) is called here and not by fuser, whose direct mount knows neither the subtype nor most
//! flags, and which falls back to a setuid helper where a plain error is wanted. The session gets
//! the descriptor and has no part in unmounting: that is umount(8)'s, or [`unmount`]'s.
//!
//! auto_unmount is never asked for: after a crash the mount point must answer ENOTCONN, not show
//! an empty directory that an application then writes into.

use std::ffi::OsString;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::thread::available_parallelism;

use fuser::{Config, Session, SessionACL};
use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::stat::{Mode, SFlag, stat};
use nix::unistd::{getgid, getuid};
use thiserror::Error;

use super::adapter::Adapter;
use crate::vfs::Vfs;

/// What follows "fuse." in the type that /proc/mounts shows.
pub const SUBTYPE: &str = "mendfs";

const DEVICE: &str = "/dev/fuse";
/// More event loops than this only compete for the same locks.
const MAX_LOOPS: usize = 8;

/// What to mount where.
#[derive(Debug, Clone)]
pub struct MountRequest {
    /// What /proc/mounts shows as the source: the mirrors, joined by colons.
    pub source: OsString,
    /// The directory to mount on, absolute.
    pub mount_point: PathBuf,
    /// Generic flags of mount(2).
    pub flags: MsFlags,
    /// Whether the kernel enforces POSIX ACLs. If not, they cannot be set.
    pub acl: bool,
}

/// Why there is no mount, or why one ended.
#[derive(Debug, Error)]
pub enum MountError {
    /// The FUSE device is not there.
    #[error(
        "{DEVICE} does not exist: load the kernel module (modprobe fuse), or give this container \
         the device"
    )]
    NoDevice,
    /// The FUSE device may not be opened.
    #[error("{DEVICE} may not be opened: {0}; run this as root")]
    Device(Errno),
    /// mount(2) was refused for lack of privilege.
    #[error("mounting needs root (CAP_SYS_ADMIN)")]
    NotPermitted,
    /// The mount point cannot be looked at.
    #[error("{}: {errno}", path.display())]
    MountPoint {
        /// The mount point.
        path: PathBuf,
        /// Why.
        errno: Errno,
    },
    /// mount(2) failed.
    #[error("mount on {} failed: {errno}", path.display())]
    Mount {
        /// The mount point.
        path: PathBuf,
        /// Why.
        errno: Errno,
    },
    /// Kernel and mendfs did not come to terms.
    #[error("the FUSE handshake with the kernel failed: {0}")]
    Handshake(#[source] std::io::Error),
    /// An event loop ended for another reason than an unmount.
    #[error("serving the mount failed: {0}")]
    Serve(#[source] std::io::Error),
}

/// A live mount whose requests wait to be served.
pub struct Mounted {
    session: Session<Adapter>,
}

impl std::fmt::Debug for Mounted {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Mounted").finish_non_exhaustive()
    }
}

impl Mounted {
    /// Mounts `vfs` and does the handshake. From then on requests queue in the kernel until
    /// [`Mounted::serve`] is called, so this process must not touch the mount before.
    ///
    /// # Errors
    /// [`MountError`]; nothing is mounted then.
    pub fn new(vfs: Arc<Vfs>, request: &MountRequest) -> Result<Mounted, MountError> {
        let device = open_device()?;
        mount_device(&device, request)?;
        let mut config = Config::default();
        config.acl = SessionACL::All;
        let event_loops = event_loops();
        config.n_threads = Some(event_loops);
        config.clone_fd = true;
        let notifier = Arc::new(OnceLock::new());
        let adapter = Adapter::new(vfs, Arc::clone(&notifier), event_loops, request.acl);
        match Session::from_fd(adapter, device, SessionACL::All, config) {
            Ok(session) => {
                // Set once, here.
                let _ = notifier.set(session.notifier());
                Ok(Mounted { session })
            }
            Err(error) => {
                // The device is closed, the mount is dead: nobody has seen it alive.
                if let Err(errno) = umount2(&request.mount_point, MntFlags::MNT_DETACH) {
                    log::error!("{} stays mounted: {errno}", request.mount_point.display());
                }
                Err(MountError::Handshake(error))
            }
        }
    }

    /// Serves requests until the filesystem is unmounted. Nothing is under way afterwards.
    ///
    /// # Errors
    /// [`MountError::Serve`] if it ended for another reason.
    pub fn serve(self) -> Result<(), MountError> {
        self.session.run().map_err(MountError::Serve)
    }
}

/// Unmounts what is mounted at `mount_point`. To be called while [`Mounted::serve`] runs, as the
/// kernel writes dirty pages out first.
///
/// # Errors
/// As umount2(2): EBUSY if a process has a file open there or its working directory.
pub fn unmount(mount_point: &Path) -> Result<(), Errno> {
    umount2(mount_point, MntFlags::UMOUNT_NOFOLLOW)
}

fn open_device() -> Result<OwnedFd, MountError> {
    open(DEVICE, OFlag::O_RDWR | OFlag::O_CLOEXEC, Mode::empty()).map_err(|errno| match errno {
        // ENODEV and ENXIO: a device node is there, but no driver behind it.
        Errno::ENOENT | Errno::ENODEV | Errno::ENXIO => MountError::NoDevice,
        errno => MountError::Device(errno),
    })
}

fn mount_device(device: &OwnedFd, request: &MountRequest) -> Result<(), MountError> {
    let path = &request.mount_point;
    let status = stat(path).map_err(|errno| MountError::MountPoint {
        path: path.clone(),
        errno,
    })?;
    let data = format!(
        "fd={},rootmode={:o},user_id={},group_id={},default_permissions,allow_other",
        device.as_raw_fd(),
        status.st_mode & SFlag::S_IFMT.bits(),
        getuid(),
        getgid(),
    );
    let kind = format!("fuse.{SUBTYPE}");
    let source = Some(request.source.as_os_str());
    mount(
        source,
        path,
        Some(kind.as_str()),
        request.flags,
        Some(data.as_str()),
    )
    .map_err(|errno| match errno {
        Errno::EPERM => MountError::NotPermitted,
        Errno::ENODEV => MountError::NoDevice,
        errno => MountError::Mount {
            path: path.clone(),
            errno,
        },
    })
}

/// One event loop for each processor, and one that writes never take: a request may wait for
/// another one, as when the kernel writes pages back in order to serve a read.
fn event_loops() -> usize {
    available_parallelism()
        .map_or(2, usize::from)
        .saturating_add(1)
        .clamp(3, MAX_LOOPS)
}
