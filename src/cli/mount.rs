//! `mendfs mount` and the helper of mount(8): check the arguments, open the pool, mount, serve.
//!
//! Everything that can be told from the arguments alone is checked before the process forks.
//! From then on order matters: signals are blocked before any thread starts, the pool is open
//! before there is a mount, the mount is tuned and guarded before anybody is told that it is
//! live, and after the last request the pool is closed, whatever else went wrong.

use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use nix::errno::Errno;
use nix::mount::MsFlags;
use nix::sys::signal::{SigHandler, SigSet, Signal, signal};

use super::alert::Alerts;
use super::args::{HelperArgs, MountArgs};
use super::daemon::{self, Readiness};
use super::engine;
use super::mountinfo;
use super::options::{Commit, Options};
use super::outcome::Failure;
use super::source;
use crate::fuse::{self, MountError, MountRequest, Mounted};
use crate::pool::{CommitMode, OpenOptions, Pool};
use crate::services::Keeper;
use crate::vfs::{Vfs, VfsOptions};

/// Read-ahead of the mount in KiB. Streaming from FUSE is bound by round trips: 4 MiB read ahead
/// measured five times as fast as the kernel's 128 KiB.
const READ_AHEAD_KIB: u32 = 4096;
/// Share of the machine's dirty page limit, in percent, that the mount may fill. The kernel gives
/// FUSE 1 %, which on a small machine is too little to keep two disks busy.
const MAX_DIRTY_PERCENT: u32 = 10;

/// A mount as asked for, checked as far as it can be without opening the pool.
#[derive(Debug)]
struct Plan {
    directories: Vec<PathBuf>,
    mount_point: PathBuf,
    options: Options,
}

/// `mendfs mount`.
pub(super) fn run(args: MountArgs) -> Result<ExitCode, Failure> {
    let options = parse_options(&args.options, false)?;
    if options.remount {
        return Err(Failure::Usage(
            "a mount is changed by mount -o remount".to_owned(),
        ));
    }
    let plan = Plan::new(&args.source, &args.mount_point, options)?;
    if args.foreground {
        daemon::foreground(|readiness| serve(&plan, readiness))
    } else {
        daemon::background(|readiness| serve(&plan, readiness))
    }
}

/// The helper of mount(8).
pub(super) fn run_helper(mut args: HelperArgs) -> Result<ExitCode, Failure> {
    if args.read_only {
        args.options.push(OsString::from("ro"));
    }
    let options = parse_options(&args.options, args.sloppy)?;
    if options.remount {
        return remount(&args.mount_point, &options, args.fake);
    }
    let plan = Plan::new(&args.source, &args.mount_point, options)?;
    if args.fake {
        return Ok(ExitCode::SUCCESS);
    }
    let code = daemon::background(|readiness| serve(&plan, readiness))?;
    if args.verbose {
        let source = source::join(&plan.directories);
        eprintln!(
            "{} mounted on {}",
            source.display(),
            plan.mount_point.display()
        );
    }
    Ok(code)
}

fn parse_options(lists: &[OsString], sloppy: bool) -> Result<Options, Failure> {
    let lists: Vec<&str> = lists
        .iter()
        .map(|list| {
            list.to_str().ok_or_else(|| {
                Failure::Usage(format!("mount options are not UTF-8: {}", list.display()))
            })
        })
        .collect::<Result<_, _>>()?;
    Options::parse(lists, sloppy)
}

/// Changes the generic flags of a live mount. What the pool was opened with stays.
fn remount(mount_point: &Path, options: &Options, fake: bool) -> Result<ExitCode, Failure> {
    let path = resolve_mount_point(mount_point)?;
    let fresh = Options {
        flags: options.flags,
        remount: true,
        ..Options::default()
    };
    if *options != fresh {
        eprintln!("note: what the pool was opened with stays as it is until the next mount");
    }
    if !fake {
        let flags = options.flags | MsFlags::MS_REMOUNT;
        nix::mount::mount(None::<&str>, &path, None::<&str>, flags, None::<&str>).map_err(
            |errno| Failure::Failed(format!("remount of {} failed: {errno}", path.display())),
        )?;
    }
    Ok(ExitCode::SUCCESS)
}

impl Plan {
    fn new(source: &OsString, mount_point: &Path, options: Options) -> Result<Plan, Failure> {
        let directories = source::resolve(&source::parse(source)?)?;
        let mount_point = resolve_mount_point(mount_point)?;
        options.alerts.check()?;
        for directory in &directories {
            if mount_point.starts_with(directory) {
                return Err(Failure::Usage(format!(
                    "{} lies in the mirror {}; a pool cannot be mounted in itself",
                    mount_point.display(),
                    directory.display()
                )));
            }
            if directory.starts_with(&mount_point) {
                return Err(Failure::Usage(format!(
                    "the mirror {} lies below {} and would be hidden by the mount",
                    directory.display(),
                    mount_point.display()
                )));
            }
        }
        let mut options = options;
        for option in [&mut options.prefer, &mut options.read]
            .into_iter()
            .flatten()
        {
            *option = source::named_by(option, &directories)?;
        }
        Ok(Plan {
            directories,
            mount_point,
            options,
        })
    }

    fn request(&self) -> MountRequest {
        MountRequest {
            source: source::join(&self.directories),
            mount_point: self.mount_point.clone(),
            flags: self.options.flags,
            acl: self.options.acl,
        }
    }
}

/// The mount point without links, which must be a directory.
fn resolve_mount_point(path: &Path) -> Result<PathBuf, Failure> {
    let shown = path.display();
    // Also the metadata: names on the way to a mount whose server is gone are found in the cache.
    let found = path
        .canonicalize()
        .and_then(|resolved| Ok((resolved.metadata()?, resolved)));
    let (metadata, resolved) = found.map_err(|error| {
        Failure::Failed(match error.raw_os_error().map(Errno::from_raw) {
            Some(Errno::ENOENT) => format!("mount point {shown} does not exist"),
            Some(Errno::ENOTCONN) => format!(
                "on {shown} a filesystem is still mounted whose server is gone; run umount {shown}"
            ),
            _ => format!("mount point {shown}: {error}"),
        })
    })?;
    if metadata.is_dir() {
        Ok(resolved)
    } else {
        Err(Failure::Failed(format!(
            "mount point {shown} is not a directory"
        )))
    }
}

/// Opens, mounts and serves until the filesystem is unmounted.
fn serve(plan: &Plan, readiness: &mut Readiness) -> Result<(), Failure> {
    become_io_flusher();
    let signals = block_signals()?;
    let source = source::join(&plan.directories);
    readiness.doing(&format!("Opening {}", source.display()));
    let (vfs, keeper) = open(plan)?;
    let alerts = Alerts::start(vfs.pool(), &plan.options.alerts, &plan.mount_point)
        .inspect_err(|error| log::error!("there will be no alerts: {error}"));
    let served = mount_and_serve(plan, &vfs, signals, readiness);
    readiness.stopping(&format!("Closing {}", source.display()));
    if let Ok(Some(alerts)) = alerts {
        alerts.stop();
    }
    keeper.stop();
    // Also after a failure: what was acknowledged must be on the disks before the process ends.
    let closed = vfs
        .close()
        .map_err(|error| Failure::Failed(format!("the pool could not be closed cleanly: {error}")));
    served.and(closed)
}

/// The one place where the command line's wishes become the pool's options.
fn open(plan: &Plan) -> Result<(Arc<Vfs>, Keeper), Failure> {
    let defaults = OpenOptions::default();
    let options = OpenOptions {
        read_only: plan.options.read_only(),
        degraded: plan.options.degraded,
        cache: match plan.options.cache_bytes {
            Some(bytes) => usize::try_from(bytes).unwrap_or(usize::MAX),
            None => defaults.cache,
        },
        commit: match plan.options.commit {
            // As other filesystems have it: whatever changes is durable when it is answered.
            _ if plan.options.flags.contains(MsFlags::MS_SYNCHRONOUS) => CommitMode::Always,
            Commit::Always => CommitMode::Always,
            Commit::Interval(interval) => CommitMode::Interval(interval),
            Commit::None => CommitMode::None,
        },
        prefer: plan.options.prefer.clone(),
        read_from: plan.options.read.clone(),
        resync_rate: plan.options.resync_rate,
        outside: Some(Arc::new(engine::outside())),
        ..defaults
    };
    let named = engine::open_mirrors(&plan.directories)?;
    let pool = Pool::open(named, options).map_err(|error| Failure::Failed(error.to_string()))?;
    let pool = Arc::new(pool);
    let keeper = Keeper::start(&pool, plan.options.scrub)
        .map_err(|error| Failure::System(format!("cannot start a thread: {error}")))?;
    let options = VfsOptions {
        kernel_keeps_times: true,
        atime: plan.options.atime(),
        diratime: !plan.options.flags.contains(MsFlags::MS_NODIRATIME),
        sync_names: plan.options.flags.contains(MsFlags::MS_DIRSYNC),
        ..VfsOptions::default()
    };
    let vfs = Vfs::new(pool, options).map_err(|error| Failure::Failed(error.to_string()))?;
    Ok((Arc::new(vfs), keeper))
}

fn mount_and_serve(
    plan: &Plan,
    vfs: &Arc<Vfs>,
    signals: SigSet,
    readiness: &mut Readiness,
) -> Result<(), Failure> {
    let mounted = Mounted::new(Arc::clone(vfs), &plan.request()).map_err(|error| match error {
        MountError::NotPermitted | MountError::Device(Errno::EACCES | Errno::EPERM) => {
            Failure::Denied(error.to_string())
        }
        MountError::NoDevice | MountError::Device(_) => Failure::System(error.to_string()),
        error => Failure::Failed(error.to_string()),
    })?;
    let device = match mountinfo::at(&plan.mount_point) {
        Ok(Some(mount)) => mount.device,
        found => {
            log::warn!("the mount is not in /proc/self/mountinfo: {found:?}");
            String::new()
        }
    };
    tune(&device);
    watch_signals(signals, plan.mount_point.clone(), device)?;
    let source = source::join(&plan.directories);
    let live = format!(
        "{} mounted on {}",
        source.display(),
        plan.mount_point.display()
    );
    log::info!("{live}");
    if let Err(error) = readiness.ready(&live) {
        // The caller was interrupted and will not come back for this mount.
        if let Err(errno) = fuse::unmount(&plan.mount_point) {
            log::error!("{} stays mounted: {errno}", plan.mount_point.display());
        }
        return Err(Failure::System(format!(
            "who asked for the mount has gone: {error}"
        )));
    }
    let served = mounted
        .serve()
        .map_err(|error| Failure::Failed(error.to_string()));
    log::info!("{} unmounted", plan.mount_point.display());
    served
}

/// Tells the kernel that this process is part of a disk's write path. Without it, memory reclaim or
/// the throttling of writers could make us wait for the very pages that only we can write. Threads
/// started later inherit it.
fn become_io_flusher() {
    /// Of linux/prctl.h; the libc crate lacks it for this C library.
    const PR_SET_IO_FLUSHER: libc::c_int = 57;
    // SAFETY: sets a flag of the calling thread and takes no pointers.
    let result = unsafe { libc::prctl(PR_SET_IO_FLUSHER, 1, 0, 0, 0) };
    if result != 0 {
        // In a container without CAP_SYS_RESOURCE, which has no way out and needs none every time.
        log::info!(
            "PR_SET_IO_FLUSHER was refused: {}",
            io::Error::last_os_error()
        );
    }
}

/// Keeps the signals that end a server for [`watch_signals`], in this thread and all that it
/// starts, and ignores SIGHUP.
fn block_signals() -> Result<SigSet, Failure> {
    let mut signals = SigSet::empty();
    signals.add(Signal::SIGTERM);
    signals.add(Signal::SIGINT);
    signals
        .thread_block()
        // SAFETY: ignoring a signal installs no handler.
        .and_then(|()| unsafe { signal(Signal::SIGHUP, SigHandler::SigIgn) })
        .map_err(|errno| Failure::System(format!("cannot set up signals: {errno}")))?;
    Ok(signals)
}

/// Unmounts on SIGTERM and SIGINT. A mount that is busy is served on: ending the process would
/// take the files from under whoever has them open.
fn watch_signals(signals: SigSet, path: PathBuf, device: String) -> Result<(), Failure> {
    let watch = move || {
        while let Ok(signal) = signals.wait() {
            let shown = path.display();
            match mountinfo::at(&path) {
                Ok(Some(mount)) if mount.device == device => {}
                found => {
                    log::error!("{signal}: {shown} is covered or moved, not unmounted: {found:?}");
                    continue;
                }
            }
            match fuse::unmount(&path) {
                Ok(()) => log::info!("{signal}: {shown} unmounted"),
                Err(Errno::EBUSY) => log::warn!("{signal}: {shown} is busy and stays mounted"),
                Err(errno) => log::error!("{signal}: {shown} cannot be unmounted: {errno}"),
            }
        }
    };
    std::thread::Builder::new()
        .name("mendfs-signals".to_owned())
        .spawn(watch)
        .map(drop)
        .map_err(|error| Failure::System(format!("cannot start a thread: {error}")))
}

/// Sets what only sysfs can set. The mount works without it, only slower.
fn tune(device: &str) {
    if device.is_empty() {
        return;
    }
    for (name, value) in [
        ("read_ahead_kb", READ_AHEAD_KIB),
        ("max_ratio", MAX_DIRTY_PERCENT),
    ] {
        let path = format!("/sys/class/bdi/{device}/{name}");
        if let Err(error) = std::fs::write(&path, value.to_string()) {
            log::warn!("{path} could not be set to {value}: {error}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(source: &str, mount_point: &Path) -> Result<Plan, Failure> {
        Plan::new(&OsString::from(source), mount_point, Options::default())
    }

    #[test]
    fn a_mount_point_must_be_a_directory_that_exists() {
        let dir = tempfile::tempdir().unwrap();
        let missing = plan("/no/a:/no/b", &dir.path().join("missing")).unwrap_err();
        assert!(missing.message().ends_with("does not exist"), "{missing}");
        let file = dir.path().join("file");
        std::fs::write(&file, b"").unwrap();
        let file = plan("/no/a:/no/b", &file).unwrap_err();
        assert!(file.message().ends_with("is not a directory"), "{file}");
    }

    #[test]
    fn mount_point_and_mirrors_must_not_lie_in_one_another() {
        let dir = tempfile::tempdir().unwrap();
        let (mirror, inside) = (dir.path().join("a"), dir.path().join("a/in"));
        std::fs::create_dir_all(&inside).unwrap();
        let source = mirror.to_str().unwrap();
        for mount_point in [mirror.as_path(), inside.as_path(), dir.path()] {
            let refused = plan(source, mount_point).unwrap_err();
            assert!(matches!(refused, Failure::Usage(_)), "{refused}");
        }
        // A common beginning of the names is no nesting.
        let beside = dir.path().join("ab");
        std::fs::create_dir(&beside).unwrap();
        assert!(plan(source, &beside).is_ok());
    }
}
