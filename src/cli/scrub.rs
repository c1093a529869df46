//! `mendfs scrub`: has a mounted pool verify everything that it stores, and tells how far it is.
//!
//! Everything goes through the attributes of the mount's root, so whoever may write these may do
//! without this command.

use std::path::Path;
use std::process::ExitCode;
use std::thread;
use std::time::{Duration, Instant};

use serde::Deserialize;

use super::args::{ScrubArgs, ScrubCommand};
use super::attribute;
use super::outcome::{Failure, print_json, print_text};
use super::progress::Progress;
use crate::pool::status::{ScrubState, ScrubStatus};

const STATUS: &str = "user.mendfs.scrub.status";
const STATUS_JSON: &str = "user.mendfs.scrub.status.json";
const CONTROL: &str = "user.mendfs.scrub.control";
/// How often a running scrub is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(200);
/// How long a start may take to show a total.
const TOTAL_TAKES: Duration = Duration::from_secs(5);

/// The attribute's JSON.
#[derive(Deserialize)]
struct Report {
    #[serde(flatten)]
    scrub: ScrubStatus,
}

/// Does what the subcommand says; 1 if damage was found that cannot be repaired.
pub(super) fn run(args: ScrubArgs) -> Result<ExitCode, Failure> {
    let (mount_point, json) = match &args.command {
        ScrubCommand::Start(start) => (&start.mount_point, start.json),
        ScrubCommand::Pause(target)
        | ScrubCommand::Resume(target)
        | ScrubCommand::Cancel(target)
        | ScrubCommand::Status(target) => (&target.mount_point, target.json),
    };
    match &args.command {
        ScrubCommand::Start(start) => {
            let order = match &start.rate {
                Some(rate) => format!("start rate={rate}"),
                None => "start".to_owned(),
            };
            give(mount_point, &order)?;
            if start.wait {
                wait(mount_point, !json)?;
            }
        }
        ScrubCommand::Pause(_) => give(mount_point, "pause")?,
        ScrubCommand::Resume(_) => give(mount_point, "resume")?,
        ScrubCommand::Cancel(_) => give(mount_point, "cancel")?,
        ScrubCommand::Status(_) => {}
    }
    let scrub = read(mount_point)?;
    if json {
        print_json("scrub", &scrub)?;
    } else {
        let text = attribute::get(mount_point, STATUS)?;
        print_text(&String::from_utf8_lossy(&text))?;
    }
    Ok(match scrub.unrepairable {
        0 => ExitCode::SUCCESS,
        _ => ExitCode::FAILURE,
    })
}

fn give(mount_point: &Path, order: &str) -> Result<(), Failure> {
    let shown = mount_point.display();
    let state = read(mount_point)?.state;
    let open = matches!(state, ScrubState::Running | ScrubState::Paused);
    if order.starts_with("start") && state == ScrubState::Running {
        return Err(Failure::Failed(format!(
            "a scrub is running on {shown} already; see mendfs scrub status {shown}"
        )));
    }
    if !order.starts_with("start") && !open {
        return Err(Failure::Failed(format!("no scrub is under way on {shown}")));
    }
    attribute::set(mount_point, CONTROL, order.as_bytes())
}

fn read(mount_point: &Path) -> Result<ScrubStatus, Failure> {
    let text = attribute::get(mount_point, STATUS_JSON)?;
    serde_json::from_slice::<Report>(&text)
        .map(|report| report.scrub)
        .map_err(|error| {
            Failure::Failed(format!(
                "{} is of another version of mendfs: {error}",
                mount_point.display()
            ))
        })
}

/// Waits until the scrub does not run any more; one that somebody pauses or cancels meanwhile has
/// not done what was asked for.
fn wait(mount_point: &Path, talk: bool) -> Result<(), Failure> {
    let begin = Instant::now();
    let mut scrub = read(mount_point)?;
    let running = |scrub: &ScrubStatus| scrub.state == ScrubState::Running;
    while running(&scrub) && scrub.bytes_total == 0 && begin.elapsed() < TOTAL_TAKES {
        thread::sleep(LOOK_EVERY / 10);
        scrub = read(mount_point)?;
    }
    let progress = Progress::new("scrub", scrub.bytes_total, talk);
    while running(&scrub) {
        progress.set(scrub.bytes_done);
        thread::sleep(LOOK_EVERY);
        scrub = read(mount_point)?;
        progress.set_total(scrub.bytes_total);
    }
    progress.finish();
    match scrub.state {
        ScrubState::Paused | ScrubState::Cancelled => Err(Failure::Failed(format!(
            "the scrub was {} before its end",
            scrub.state.name()
        ))),
        _ => Ok(()),
    }
}
