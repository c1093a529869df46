//! Where the log goes: to standard error in the foreground, to syslog from the background.
//!
//! The journal of systemd listens on the socket of syslog, and also reads the standard error of a
//! service; there each line begins with its priority, so that it is kept (sd-daemon(3)).
//!
//! The level is set by RUST_LOG as env_logger reads it; without it, warnings of everything and
//! the news of mendfs are logged. A log that cannot be written never stops the filesystem: what
//! matters is in the ledger and in `mendfs status` as well.

use std::ffi::OsStr;
use std::fmt;
use std::io::{self, Write};
use std::os::unix::net::UnixDatagram;
use std::panic;
use std::path::{Path, PathBuf};

use env_logger::{Builder, Env, Target};
use log::Level;
use nix::sys::stat::fstat;

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
    if std::env::var_os("JOURNAL_STREAM").is_some_and(|stream| is_stderr(&stream)) {
        builder.format(|line, record| {
            let priority = severity(record.level());
            let text = record.args().to_string();
            // Each line is an entry of its own.
            text.lines()
                .try_for_each(|text| writeln!(line, "<{priority}>{text}"))
        });
    }
    start(&mut builder);
}

/// Whether standard error is the stream that JOURNAL_STREAM names, as device and inode.
fn is_stderr(stream: &OsStr) -> bool {
    let Ok(stat) = fstat(io::stderr()) else {
        return false;
    };
    stream.to_str() == Some(&format!("{}:{}", stat.st_dev, stat.st_ino))
}

/// Logs to the system log, if there is one.
pub(super) fn to_syslog() {
    let mut builder = Builder::from_env(Env::default().default_filter_or(DEFAULT_FILTER));
    let process = std::process::id();
    builder.format(move |line, record| {
        write!(line, "{}", message(record.level(), process, record.args()))
    });
    if let Some(syslog) = Syslog::new(Path::new(SYSLOG)) {
        builder.target(Target::Pipe(Box::new(syslog)));
    }
    start(&mut builder);
}

/// A message of syslog(3), without the time, which the log daemon knows as well.
fn message(level: Level, process: u32, text: &fmt::Arguments<'_>) -> String {
    let priority = FACILITY | severity(level);
    // Names of files may hold line feeds, which end a message for some daemons.
    let text = text.to_string().replace('\n', " ");
    format!("<{priority}>mendfs[{process}]: {text}")
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
    path: PathBuf,
}

impl Syslog {
    fn new(path: &Path) -> Option<Syslog> {
        let socket = UnixDatagram::unbound().ok()?;
        // A log that is slow to read must not become a filesystem that is slow to answer.
        socket.set_nonblocking(true).ok()?;
        let path = path.to_owned();
        Some(Syslog { socket, path })
    }
}

impl Write for Syslog {
    fn write(&mut self, message: &[u8]) -> io::Result<usize> {
        let cut = message.get(..LONGEST).unwrap_or(message);
        // Sent by name each time, so that a restarted log daemon is found again.
        let _ = self.socket.send_to(cut, &self.path);
        Ok(message.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_reach_the_log_daemon_also_after_it_was_restarted() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let mut syslog = Syslog::new(&path).unwrap();
        let text = message(Level::Warn, 7, &format_args!("/a\nb is bad"));
        // Nobody listens: that is no error.
        assert_eq!(syslog.write(text.as_bytes()).unwrap(), text.len());
        for _ in 0..2 {
            let daemon = UnixDatagram::bind(&path).unwrap();
            assert_eq!(syslog.write(text.as_bytes()).unwrap(), text.len());
            let mut buffer = [0; 100];
            let got = daemon.recv(&mut buffer).unwrap();
            assert_eq!(&buffer[..got], b"<28>mendfs[7]: /a b is bad");
            drop(daemon);
            std::fs::remove_file(&path).unwrap();
        }
    }

    #[test]
    fn a_journal_that_is_not_standard_error_is_not_written_to() {
        assert!(!is_stderr(OsStr::new("1:1")));
        let stat = fstat(io::stderr()).unwrap();
        let ours = format!("{}:{}", stat.st_dev, stat.st_ino);
        assert!(is_stderr(OsStr::new(&ours)));
    }
}
