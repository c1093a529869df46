//! `mendfs status`: is my data safe, what happened, what should I do?
//!
//! A mounted pool is asked through its control directory; one that is not mounted is told by its
//! superblocks. Exits with 0 if all is well, 1 if something is not, and 2 if it could not be told.

mod render;

use std::ffi::OsStr;
use std::io::{IsTerminal, stdout};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::mpsc;
use std::time::Duration;

use super::args::StatusArgs;
use super::engine;
use super::outcome::{Failure, print_json, print_text};
use super::source;
use crate::pool::status::{PoolState, PoolStatus};

pub(super) use render::{bytes, mirror_state};

/// Where a mount tells its status, below its root.
const STATUS_FILE: &str = ".mendfs/status.json";
/// A server that does not answer within this time is not answering.
const ANSWER_WITHIN: Duration = Duration::from_secs(15);
/// It could not be told how the pool is.
const CANNOT_TELL: u8 = 2;
/// Clears a terminal and starts at its top.
const CLEAR: &str = "\x1b[H\x1b[2J\x1b[3J";

/// Prints the status.
pub(super) fn run(args: StatusArgs) -> Result<ExitCode, Failure> {
    let terminal = stdout().is_terminal();
    let style = render::Style {
        colour: terminal && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty()),
        verbose: args.verbose,
    };
    loop {
        let status = match read(&args.target) {
            Ok(status) => status,
            Err(failure) => {
                eprintln!("mendfs: {failure}");
                return Ok(ExitCode::from(CANNOT_TELL));
            }
        };
        if args.json {
            print_json("status", &status)?;
        } else {
            let clear = if args.watch.is_some() && terminal {
                CLEAR
            } else {
                ""
            };
            print_text(&format!("{clear}{}", render::render(&status, style)))?;
        }
        let Some(seconds) = args.watch else {
            return Ok(match status.state {
                PoolState::Healthy => ExitCode::SUCCESS,
                PoolState::Degraded | PoolState::Damaged | PoolState::Failed => ExitCode::FAILURE,
            });
        };
        std::thread::sleep(Duration::from_secs(seconds.into()));
    }
}

/// A report of a mounted pool, by its name below the mount point. Waits for the server, but not for
/// ever: whoever asks how the pool is must be told that it hangs.
pub(super) fn read_report(mount_point: &Path, name: &str) -> Result<Vec<u8>, Failure> {
    let path = mount_point.join(name);
    let (tell, told) = mpsc::channel();
    let wanted: PathBuf = path.clone();
    // The thread of a request that is never answered ends with this process.
    std::thread::spawn(move || tell.send(std::fs::read(wanted)));
    let shown = mount_point.display();
    match told.recv_timeout(ANSWER_WITHIN) {
        Ok(Ok(text)) => Ok(text),
        Ok(Err(error)) => Err(Failure::Failed(match error.kind() {
            std::io::ErrorKind::NotFound | std::io::ErrorKind::NotADirectory => {
                format!("{shown} is neither a mounted mendfs nor a mirror")
            }
            std::io::ErrorKind::NotConnected => {
                format!("the server of {shown} is gone; run umount {shown}, and mount it again")
            }
            _ => format!("{}: {error}", path.display()),
        })),
        Err(_) => Err(Failure::Failed(format!(
            "the server of {shown} has not answered for {} s",
            ANSWER_WITHIN.as_secs()
        ))),
    }
}

/// Status of a mounted pool.
pub(super) fn read_mounted(mount_point: &Path) -> Result<PoolStatus, Failure> {
    let text = read_report(mount_point, STATUS_FILE)?;
    serde_json::from_slice(&text).map_err(|error| {
        Failure::Failed(format!(
            "{} is of another version of mendfs: {error}",
            mount_point.join(STATUS_FILE).display()
        ))
    })
}

/// Status of a pool by its mount point or its mirrors.
pub(super) fn read(target: &OsStr) -> Result<PoolStatus, Failure> {
    let path = Path::new(target);
    let several = target.as_bytes().contains(&b':') && !path.exists();
    if several || engine::is_mirror(path) {
        let directories = source::resolve(&source::parse(target)?)?;
        return engine::inspect(&directories);
    }
    read_mounted(path)
}
