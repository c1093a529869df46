//! `-o alert=`: runs a command when the operator must be told something.
//!
//! Two threads, neither of which any operation ever waits for: one looks at the status, the other
//! runs the command, one at a time. What does not fit into the short queue between them is dropped,
//! and the log says so. There is no shell: the command is an executable and its arguments, and what
//! is told of a pool, in which anybody may choose file names, goes to its environment and standard
//! input only.

use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, SyncSender, channel, sync_channel};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;

use super::options::{duration, size};
use super::outcome::Failure;
use crate::pool::Pool;
use crate::services::{Alert, SpaceLimit, Thresholds, Watch};

/// How often the status is looked at.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// Alerts that wait for the command.
const QUEUE: usize = 32;
/// A command that takes longer is killed.
const TAKES_AT_MOST: Duration = Duration::from_secs(60);
/// What an unmount waits for all that is still to be told.
const AT_THE_END: Duration = Duration::from_secs(10);
const LOOK_AT_CHILD_EVERY: Duration = Duration::from_millis(10);
/// The command finds its own tools, and nothing of the server's environment.
const SEARCH_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// What the mount options say about alerts.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct AlertSettings {
    /// The executable and its arguments; none if nobody is to be told.
    command: Vec<String>,
    thresholds: Thresholds,
}

/// Options that begin like this are ours.
pub(super) const NAMES: [&str; 4] = ["alert", "alert_repaired", "alert_space", "alert_interval"];

impl AlertSettings {
    /// Takes one of the options in [`NAMES`].
    pub(super) fn set(&mut self, name: &str, value: Option<&str>) -> Result<(), Failure> {
        let Some(value) = value.filter(|value| !value.is_empty()) else {
            return Err(Failure::Usage(format!("option \"{name}\" needs a value")));
        };
        let wrong =
            |what: &str| Failure::Usage(format!("option \"{name}\" is {what}, not \"{value}\""));
        match name {
            "alert" => {
                self.command = value
                    .split(' ')
                    .filter(|w| !w.is_empty())
                    .map(str::to_owned)
                    .collect();
                let absolute = self
                    .command
                    .first()
                    .is_some_and(|word| word.starts_with('/'));
                if !absolute {
                    return Err(wrong("a command that begins with /, and its arguments"));
                }
            }
            "alert_repaired" => {
                let number = value.parse().ok().filter(|number| *number > 0);
                self.thresholds.repaired = number.ok_or_else(|| wrong("a number of blocks"))?;
            }
            "alert_space" => {
                let percent = value.strip_suffix('%');
                let limit = match percent {
                    Some(percent) => percent
                        .parse()
                        .ok()
                        .filter(|percent| *percent <= 100)
                        .map(SpaceLimit::Percent),
                    None => size(value).map(SpaceLimit::Bytes),
                };
                let limit = limit.ok_or_else(|| wrong("a size such as 10G, or a share such as 5%"));
                self.thresholds.space = limit?;
            }
            _ => {
                let interval = minutes(value).ok_or_else(|| wrong("a time such as 30s, 10m or 1h"));
                self.thresholds.interval_s = interval?;
            }
        }
        Ok(())
    }

    /// Refuses a command that cannot be run, before it is needed.
    pub(super) fn check(&self) -> Result<(), Failure> {
        let Some(program) = self.command.first() else {
            return Ok(());
        };
        let metadata = Path::new(program).metadata();
        match metadata {
            Ok(found) if found.is_file() && found.permissions().mode() & 0o111 != 0 => Ok(()),
            Ok(_) => Err(Failure::Usage(format!(
                "option \"alert\": {program} is not an executable file"
            ))),
            Err(error) => Err(Failure::Usage(format!(
                "option \"alert\": {program}: {error}"
            ))),
        }
    }
}

/// Whole seconds of a time in seconds, minutes, hours or days.
fn minutes(text: &str) -> Option<i64> {
    for (unit, length) in [("m", 60), ("h", 3600), ("d", 86_400)] {
        if let Some(number) = text.strip_suffix(unit) {
            return Some(i64::from(number.parse::<u32>().ok()?) * length);
        }
    }
    i64::try_from(duration(text)?.as_secs()).ok()
}

/// The threads that tell.
#[derive(Debug)]
pub(super) struct Alerts {
    stop: Sender<()>,
    watcher: JoinHandle<()>,
    runner: JoinHandle<()>,
    /// Is told when the runner may take only so long any more.
    ending: Sender<Instant>,
}

impl Alerts {
    /// Starts telling; none if nobody is to be told.
    pub(super) fn start(
        pool: &Arc<Pool>,
        settings: &AlertSettings,
        mount_point: &Path,
    ) -> std::io::Result<Option<Alerts>> {
        if settings.command.is_empty() {
            return Ok(None);
        }
        let (stop, stopped) = channel();
        let (ending, ends) = channel();
        let (queue, alerts) = sync_channel(QUEUE);
        let (command, mount_point) = (settings.command.clone(), mount_point.to_owned());
        let runner = thread::Builder::new()
            .name("mendfs-alert".to_owned())
            .spawn(move || run_all(&alerts, &command, &mount_point, &ends))?;
        let (pool, thresholds) = (Arc::clone(pool), settings.thresholds);
        let watcher = thread::Builder::new()
            .name("mendfs-watch".to_owned())
            .spawn(move || watch(&pool, thresholds, &queue, &stopped))?;
        Ok(Some(Alerts {
            stop,
            watcher,
            runner,
            ending,
        }))
    }

    /// Looks a last time, tells what is to be told within a bounded time, and ends.
    pub(super) fn stop(self) {
        // The threads end when their channels do; a panic was logged where it happened.
        drop(self.stop);
        let _ = self.ending.send(Instant::now() + AT_THE_END);
        let _ = self.watcher.join();
        let _ = self.runner.join();
    }
}

fn watch(pool: &Pool, thresholds: Thresholds, queue: &SyncSender<Alert>, stopped: &Receiver<()>) {
    let mut watch = Watch::new(thresholds);
    loop {
        let last = stopped.recv_timeout(LOOK_EVERY) == Err(RecvTimeoutError::Disconnected);
        for alert in watch.look(&pool.status(), pool.now().seconds) {
            log::warn!("alert: {}: {}", alert.event, alert.message);
            if let Err(error) = queue.try_send(alert) {
                log::error!("the alert command is too slow; this was not told: {error}");
            }
        }
        if last {
            return;
        }
    }
}

fn run_all(
    alerts: &Receiver<Alert>,
    command: &[String],
    mount_point: &Path,
    ends: &Receiver<Instant>,
) {
    let mut end = None;
    for alert in alerts {
        let mut deadline = Instant::now() + TAKES_AT_MOST;
        let mut patience = || {
            end = end.or_else(|| ends.try_recv().ok());
            if let Some(end) = end {
                deadline = deadline.min(end);
            }
            deadline
        };
        if let Err(cause) = run(command, &alert, mount_point, &mut patience) {
            log::error!("the alert command {}: {cause}", command.join(" "));
        }
    }
}

/// Runs the command with one alert; kills it when `deadline` has passed.
fn run(
    command: &[String],
    alert: &Alert,
    mount_point: &Path,
    deadline: &mut dyn FnMut() -> Instant,
) -> Result<(), String> {
    let Some((program, arguments)) = command.split_first() else {
        return Ok(());
    };
    let json = serde_json::to_string(alert).map_err(|error| error.to_string())?;
    let mut child = Command::new(PathBuf::from(program))
        .args(arguments)
        .env_clear()
        .env("PATH", SEARCH_PATH)
        .envs(environment(alert, mount_point))
        .current_dir("/")
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        // A group of its own, so that all of it can be ended.
        .process_group(0)
        .spawn()
        .map_err(|error| format!("cannot be run: {error}"))?;
    if let Some(mut stdin) = child.stdin.take() {
        // Fits into the pipe. A command need not read it.
        let _ = writeln!(stdin, "{json}");
    }
    let outcome = wait(&mut child, deadline);
    if outcome.is_err() {
        let group = i32::try_from(child.id()).map(Pid::from_raw);
        let killed = group.map(|group| killpg(group, Signal::SIGKILL));
        if !matches!(killed, Ok(Ok(()))) {
            let _ = child.kill();
        }
        let _ = child.wait();
    }
    outcome
}

fn wait(child: &mut Child, deadline: &mut dyn FnMut() -> Instant) -> Result<(), String> {
    let start = Instant::now();
    loop {
        match child.try_wait() {
            Ok(Some(status)) if status.success() => return Ok(()),
            Ok(Some(status)) => {
                log::error!("the alert command ended with {status}");
                return Ok(());
            }
            Ok(None) if Instant::now() >= deadline() => {
                return Err(format!("killed after {} s", start.elapsed().as_secs()));
            }
            Ok(None) => thread::sleep(LOOK_AT_CHILD_EVERY),
            Err(error) => return Err(error.to_string()),
        }
    }
}

fn environment(alert: &Alert, mount_point: &Path) -> Vec<(&'static str, String)> {
    let pool = if alert.pool.is_empty() {
        &alert.uuid
    } else {
        &alert.pool
    };
    let variables = vec![
        ("MENDFS_EVENT", alert.event.to_owned()),
        ("MENDFS_MESSAGE", alert.message.clone()),
        ("MENDFS_MIRROR", alert.mirror.clone().unwrap_or_default()),
        (
            "MENDFS_PATH",
            alert.paths.first().cloned().unwrap_or_default(),
        ),
        (
            "MENDFS_COUNT",
            alert
                .count
                .map_or_else(String::new, |count| count.to_string()),
        ),
        ("MENDFS_STATE", alert.state.to_owned()),
        ("MENDFS_POOL", pool.clone()),
        ("MENDFS_UUID", alert.uuid.clone()),
        ("MENDFS_TIME", alert.time.to_string()),
        ("MENDFS_MOUNTPOINT", mount_point.display().to_string()),
    ];
    // A label may hold what an environment cannot.
    let clean = variables
        .into_iter()
        .map(|(name, value)| (name, value.replace('\0', "?")));
    clean.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn alert(message: &str) -> Alert {
        Alert {
            schema: 1,
            event: "degraded",
            time: 5,
            pool: "home".to_owned(),
            uuid: "u".to_owned(),
            state: "degraded",
            mirror: Some("/a; touch pwned".to_owned()),
            paths: vec!["/$(touch pwned)".to_owned()],
            count: None,
            message: message.to_owned(),
        }
    }

    fn script(dir: &Path, text: &str) -> String {
        let path = dir.join("command");
        std::fs::write(&path, format!("#!/bin/sh\n{text}\n")).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        path.to_str().unwrap().to_owned()
    }

    fn later(duration: Duration) -> impl FnMut() -> Instant {
        let deadline = Instant::now() + duration;
        move || deadline
    }

    #[test]
    fn the_command_gets_the_event_and_no_shell_sees_it() {
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path().join("out");
        let program = script(
            dir.path(),
            "{ cat; echo \"$MENDFS_EVENT|$MENDFS_MIRROR|$MENDFS_PATH|$2|$HOME\"; } > $1",
        );
        let command = [
            program,
            out.to_str().unwrap().to_owned(),
            "$(id);*".to_owned(),
        ];
        let patience = &mut later(Duration::from_secs(20));
        run(
            &command,
            &alert("a \"b\"\n$(id)"),
            Path::new("/mnt"),
            patience,
        )
        .unwrap();
        let text = std::fs::read_to_string(&out).unwrap();
        let (json, variables) = text.split_once('\n').unwrap();
        let json: serde_json::Value = serde_json::from_str(json).unwrap();
        assert_eq!(json["message"], "a \"b\"\n$(id)");
        assert_eq!(json["schema"], 1);
        assert_eq!(
            variables,
            "degraded|/a; touch pwned|/$(touch pwned)|$(id);*|\n"
        );
        assert_eq!(
            std::fs::read_dir(dir.path()).unwrap().count(),
            2,
            "nothing else ran"
        );
    }

    #[test]
    fn a_command_that_hangs_is_killed_with_its_children() {
        let dir = tempfile::tempdir().unwrap();
        let fifo = dir.path().join("fifo");
        let program = script(
            dir.path(),
            "mkfifo $1; (exec 3<>$1; sleep 1000) & sleep 1000",
        );
        let command = [program, fifo.to_str().unwrap().to_owned()];
        let start = Instant::now();
        let patience = &mut later(Duration::from_millis(300));
        let outcome = run(&command, &alert(""), Path::new("/"), patience);
        assert!(outcome.unwrap_err().contains("killed"));
        assert!(start.elapsed() < Duration::from_secs(20));
        // Nobody reads the pipe any more that a child of the command had open.
        let deadline = Instant::now() + Duration::from_secs(20);
        let open = || {
            let mut options = std::fs::File::options();
            std::os::unix::fs::OpenOptionsExt::custom_flags(options.write(true), libc::O_NONBLOCK);
            options.open(&fifo).is_ok()
        };
        while open() {
            assert!(Instant::now() < deadline, "a child is left");
            thread::yield_now();
        }
    }

    #[test]
    fn settings_are_checked() {
        let set = |name: &str, value: &str| {
            let mut settings = AlertSettings::default();
            settings.set(name, Some(value)).map(|()| settings)
        };
        let settings = set("alert", "/bin/mail -s  x root").unwrap();
        assert_eq!(settings.command, ["/bin/mail", "-s", "x", "root"]);
        let space = |value| set("alert_space", value).unwrap().thresholds.space;
        assert_eq!(space("10%"), SpaceLimit::Percent(10));
        assert_eq!(space("2G"), SpaceLimit::Bytes(2 << 30));
        let interval = |value| set("alert_interval", value).unwrap().thresholds.interval_s;
        assert_eq!(
            (interval("90"), interval("10m"), interval("1h")),
            (90, 600, 3600)
        );
        for (name, value) in [
            ("alert", "mail root"),
            ("alert", ""),
            ("alert_repaired", "0"),
            ("alert_space", "101%"),
            ("alert_space", "much"),
            ("alert_interval", "soon"),
        ] {
            let refused = set(name, value).unwrap_err();
            assert!(
                refused.message().contains(&format!("\"{name}\"")),
                "{refused}"
            );
        }
        let missing = set("alert", "/no/such/program x")
            .unwrap()
            .check()
            .unwrap_err();
        assert!(missing.message().contains("/no/such/program"), "{missing}");
        assert!(set("alert", "/etc/passwd").unwrap().check().is_err());
        assert!(AlertSettings::default().check().is_ok());
    }
}
