//! Where the log goes: to standard error in the foreground, to syslog from the background.
//!
//! The level is set by RUST_LOG as env_logger reads it; without it, warnings of everything and
//! the news of mendfs are logged. A log that cannot be written never stops the filesystem: what
//! matters is in the ledger and in `mendfs status` as well.

use std::io::{self, Write};
use std::os::unix::net::UnixDatagram;
use std::panic;

use env_logger::{Builder, Env, Target};
use log::Level;

/// fuser complains of replies to requests that were interrupted meanwhile, which is no error.
const DEFAULT_FILTER: &str = "warn,mendfs=info,fuser::reply=off";
/// The socket of the system log: of journald, rsyslog, busybox and all others.
const SYSLOG: &str = "/dev/log";
/// Facility "daemon" of syslog(3).
const FACILITY: u8 = 3 << 3;
/// Longer messages are cut; some daemons drop them whole.
const LONGEST: usize = 8000;

/// Logs to standard error.
pub(super) fn to_stderr() {
    let mut builder = Builder::from_env(Env::default().default_filter_or(DEFAULT_FILTER));
    start(&mut builder);
}

/// Logs to the system log, if there is one.
pub(super) fn to_syslog() {
    let mut builder = Builder::from_env(Env::default().default_filter_or(DEFAULT_FILTER));
    let process = std::process::id();
    builder.format(move |line, record| {
        let priority = FACILITY | severity(record.level());
        write!(line, "<{priority}>mendfs[{process}]: {}", record.args())
    });
    if let Ok(socket) = UnixDatagram::unbound() {
        // A log that is slow to read must not become a filesystem that is slow to answer.
        if socket.set_nonblocking(true).is_ok() {
            builder.target(Target::Pipe(Box::new(Syslog { socket })));
        }
    }
    start(&mut builder);
}

fn start(builder: &mut Builder) {
    // An error means that there is a logger already.
    if builder.try_init().is_ok() {
        panic::set_hook(Box::new(|info| {
            log::error!("{info}");
        }));
    }
}

/// Severities of syslog(3).
const fn severity(level: Level) -> u8 {
    match level {
        Level::Error => 3,
        Level::Warn => 4,
        Level::Info => 6,
        Level::Debug | Level::Trace => 7,
    }
}

/// Each write is one message: env_logger writes record by record.
struct Syslog {
    socket: UnixDatagram,
}

impl Write for Syslog {
    fn write(&mut self, message: &[u8]) -> io::Result<usize> {
        let cut = message.get(..LONGEST).unwrap_or(message);
        // Sent by name each time, so that a restarted log daemon is found again.
        let _ = self.socket.send_to(cut, SYSLOG);
        Ok(message.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
