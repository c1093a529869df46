//! Becoming a server in the background, with an honest answer on the terminal first.
//!
//! The process forks before it has any thread. The child serves; the parent waits at a pipe until
//! the child says that it is ready or why it is not, and exits with that. A child that dies
//! without a word closes the pipe, which is an answer too.
//!
//! In the foreground it is the service manager that is told, if one started the process.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::process::ExitCode;

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{
    ForkResult, Pid, chdir, dup2_stderr, dup2_stdin, dup2_stdout, fork, pipe2, setsid,
};

use super::logging;
use super::notify::Manager;
use super::outcome::Failure;

/// First byte on the pipe for "ready"; a failure starts with its tag.
const READY: u8 = 0;

/// The serving side's way to say that it is ready.
#[derive(Debug)]
pub(super) struct Readiness {
    pipe: Option<File>,
    manager: Manager,
}

impl Readiness {
    /// Tells a service manager what the server is doing.
    pub(super) fn doing(&self, what: &str) {
        self.manager.status(what);
    }

    /// Tells a service manager that the mount is gone.
    pub(super) fn stopping(&self, what: &str) {
        self.manager.stopping(what);
    }

    /// Says so, once. In the foreground only a service manager waits to be told.
    pub(super) fn ready(&mut self, what: &str) -> io::Result<()> {
        self.manager.ready(what);
        let Some(mut pipe) = self.pipe.take() else {
            return Ok(());
        };
        pipe.write_all(&[READY])?;
        drop(pipe);
        // Nobody reads what is printed from here on, and the terminal must not be held open.
        let null = null()?;
        dup2_stdout(&null)?;
        dup2_stderr(&null)?;
        Ok(())
    }

    /// Hands a failure to who waits; false if nobody waits any more.
    fn fail(&mut self, failure: &Failure) -> bool {
        let Some(mut pipe) = self.pipe.take() else {
            return false;
        };
        let mut message = vec![failure.tag()];
        message.extend_from_slice(failure.message().as_bytes());
        pipe.write_all(&message).is_ok()
    }
}

/// Serves in this process, logging to standard error.
pub(super) fn foreground(
    serve: impl FnOnce(&mut Readiness) -> Result<(), Failure>,
) -> Result<ExitCode, Failure> {
    logging::to_stderr();
    let manager = Manager::of_this_process();
    let mut readiness = Readiness {
        pipe: None,
        manager: manager.clone(),
    };
    serve(&mut readiness)
        .map(|()| ExitCode::SUCCESS)
        .inspect_err(|failure| manager.status(failure.message()))
}

/// Serves in a child process and returns when that is ready.
pub(super) fn background(
    serve: impl FnOnce(&mut Readiness) -> Result<(), Failure>,
) -> Result<ExitCode, Failure> {
    let (reader, writer) = pipe2(OFlag::O_CLOEXEC).map_err(|errno| cannot("make a pipe", errno))?;
    // SAFETY: nothing has started a thread in this process yet, so the child may do anything.
    match unsafe { fork() }.map_err(|errno| cannot("fork", errno))? {
        ForkResult::Parent { child } => {
            drop(writer);
            wait_until_ready(File::from(reader), child)
        }
        ForkResult::Child => {
            drop(reader);
            let mut readiness = Readiness {
                pipe: Some(File::from(writer)),
                // Whoever started the parent waits for the parent.
                manager: Manager::default(),
            };
            let code = match detach(&readiness).and_then(|()| {
                logging::to_syslog();
                serve(&mut readiness)
            }) {
                Ok(()) => 0,
                Err(failure) => {
                    if !readiness.fail(&failure) {
                        log::error!("{failure}");
                    }
                    1
                }
            };
            log::logger().flush();
            // Not a return: the caller would print what the parent prints.
            std::process::exit(code);
        }
    }
}

fn wait_until_ready(mut reader: File, child: Pid) -> Result<ExitCode, Failure> {
    let mut answer = Vec::new();
    reader
        .read_to_end(&mut answer)
        .map_err(|error| Failure::System(format!("cannot hear from the server: {error}")))?;
    match answer.split_first() {
        Some((&READY, _)) => Ok(ExitCode::SUCCESS),
        Some((&tag, message)) => Err(Failure::from_tag(
            tag,
            String::from_utf8_lossy(message).into_owned(),
        )),
        None => Err(Failure::Internal(match waitpid(child, None) {
            Ok(WaitStatus::Signaled(_, signal, _)) => {
                format!("the server was killed by {signal} before it was ready")
            }
            _ => "the server ended before it was ready".to_owned(),
        })),
    }
}

/// Leaves the caller's session, directory, input and open files. Standard error stays until the
/// server is ready, for the message of a panic.
fn detach(readiness: &Readiness) -> Result<(), Failure> {
    setsid().map_err(|errno| cannot("start a session", errno))?;
    chdir("/").map_err(|errno| cannot("change to /", errno))?;
    let null = null().map_err(|error| Failure::System(format!("/dev/null: {error}")))?;
    dup2_stdin(&null).map_err(|errno| cannot("close standard input", errno))?;
    drop(null);
    if let Some(pipe) = &readiness.pipe {
        close_inherited(pipe.as_raw_fd());
    }
    Ok(())
}

/// Closes every descriptor above standard error but one: a server that lives for months must not
/// hold its caller's pipes and files open.
fn close_inherited(keep: i32) {
    let Ok(keep) = u32::try_from(keep) else {
        return;
    };
    for (first, last) in [(3, keep - 1), (keep + 1, u32::MAX)] {
        if first <= last {
            // SAFETY: no descriptor in these ranges has an owner in this process: it opened none
            // but the pipe, and the descriptors of its caller are nobody's.
            unsafe { libc::close_range(first, last, 0) };
        }
    }
}

fn null() -> io::Result<OwnedFd> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/null")
        .map(OwnedFd::from)
}

fn cannot(what: &str, errno: Errno) -> Failure {
    Failure::System(format!("cannot {what}: {errno}"))
}
