//! `mendfs mirror`: shows and changes the set of mirrors of a mounted pool.
//!
//! Orders go through an attribute of the mount's root, and the answer is read from the same: there
//! is no other way into the server. What takes long, filling a mirror, goes on in the background;
//! `--wait` shows how far it is.

use std::fmt::Write as _;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use serde_json::json;

use super::args::{MirrorArgs, MirrorCommand};
use super::attribute;
use super::engine;
use super::outcome::{Failure, print_json, print_text};
use super::progress::Progress;
use super::status::{self, bytes};
use crate::pool::status::{MirrorState, PoolStatus, ResyncStatus};
use crate::pool::{MemberAction, MemberAnswer, MemberOrder};

const CONTROL: &str = "user.mendfs.mirrors.control";
/// How long an order may wait for its turn, behind a piece of copying or a checkpoint.
const ANSWER_WITHIN: Duration = Duration::from_secs(120);
const LOOK_EVERY: Duration = Duration::from_millis(20);
const SHOW_EVERY: Duration = Duration::from_millis(500);

/// Runs `mendfs mirror`.
pub(super) fn run(args: MirrorArgs) -> Result<ExitCode, Failure> {
    let (action, mirror, new, mount_point) = match &args.command {
        MirrorCommand::List { target } => return list(target, args.json),
        MirrorCommand::Add {
            mirror,
            mount_point,
        } => (MemberAction::Add, new_directory(mirror)?, None, mount_point),
        MirrorCommand::Remove {
            mirror,
            mount_point,
        } => (MemberAction::Remove, name(mirror)?, None, mount_point),
        MirrorCommand::Offline {
            mirror,
            mount_point,
        } => (MemberAction::Offline, name(mirror)?, None, mount_point),
        MirrorCommand::Online {
            mirror,
            mount_point,
        } => (MemberAction::Online, name(mirror)?, None, mount_point),
        MirrorCommand::Replace {
            old,
            new,
            mount_point,
        } => {
            let new = new_directory(new)?;
            (MemberAction::Replace, name(old)?, Some(new), mount_point)
        }
    };
    let status = status::read_mounted(mount_point)?;
    let order = MemberOrder {
        id: format!("{}-{}", std::process::id(), jiff::Timestamp::now()),
        action,
        mirror: mirror.clone(),
        new: new.clone(),
    };
    give(mount_point, &order)?;
    let filled = match action {
        MemberAction::Add | MemberAction::Online => Some(mirror.clone()),
        MemberAction::Replace => new,
        MemberAction::Remove | MemberAction::Offline => None,
    };
    if args.wait
        && let Some(filled) = &filled
    {
        wait(mount_point, filled)?;
    }
    let after = status::read_mounted(mount_point)?;
    if args.json {
        print_json(
            "mirror",
            &json!({ "mirrors": after.mirrors, "resync": after.resync }),
        )?;
    } else {
        print_text(&said(
            action,
            &mirror,
            filled.as_deref(),
            args.wait,
            mount_point,
        ))?;
        remind_of_fstab(&status, &after);
    }
    Ok(ExitCode::SUCCESS)
}

/// A mirror as the server knows it: by its path without links, or by whatever else was given.
fn name(given: &Path) -> Result<String, Failure> {
    let path = match given.canonicalize() {
        Ok(path) => path,
        // Gone, or a UUID.
        Err(_) if given.components().count() == 1 => return Ok(given.display().to_string()),
        Err(_) => std::path::absolute(given)
            .map_err(|error| Failure::Usage(format!("{}: {error}", given.display())))?,
    };
    text(&path)
}

fn text(path: &Path) -> Result<String, Failure> {
    let text = path.to_str().map(str::to_owned);
    text.ok_or_else(|| Failure::Usage(format!("{} is not UTF-8", path.display())))
}

/// A directory that is to become a mirror: there, and empty.
fn new_directory(given: &Path) -> Result<String, Failure> {
    let shown = given.display();
    let path = given.canonicalize().map_err(|error| match error.kind() {
        std::io::ErrorKind::NotFound => {
            Failure::Failed(format!("{shown} does not exist; make the directory first"))
        }
        _ => Failure::Failed(format!("{shown}: {error}")),
    })?;
    let mut entries = std::fs::read_dir(&path).map_err(|error| {
        Failure::Failed(format!("{shown} is no directory that can be read: {error}"))
    })?;
    // A fresh ext4 has this one.
    let foreign = entries.find(|entry| {
        entry
            .as_ref()
            .is_ok_and(|entry| entry.file_name().as_bytes() != b"lost+found")
    });
    match foreign {
        None => text(&path),
        Some(_) if engine::is_mirror(&path) => Err(Failure::Failed(format!(
            "{shown} is a mirror already; mendfs mirror online takes one of this pool back"
        ))),
        Some(_) => Err(Failure::Failed(format!(
            "{shown} is not empty; a new mirror needs an empty directory"
        ))),
    }
}

/// Gives an order and waits for its answer.
fn give(mount_point: &Path, order: &MemberOrder) -> Result<(), Failure> {
    let value = serde_json::to_vec(order)
        .map_err(|error| Failure::Internal(format!("an order does not become JSON: {error}")))?;
    attribute::set(mount_point, CONTROL, &value)?;
    let deadline = Instant::now() + ANSWER_WITHIN;
    while Instant::now() < deadline {
        let answers = attribute::get(mount_point, CONTROL)?;
        let answers: Vec<MemberAnswer> = serde_json::from_slice(&answers).map_err(|error| {
            Failure::Failed(format!("the server is of another version: {error}"))
        })?;
        if let Some(answer) = answers.into_iter().find(|answer| answer.id == order.id) {
            return match answer.error {
                None => Ok(()),
                Some(error) => Err(Failure::Failed(error)),
            };
        }
        std::thread::sleep(LOOK_EVERY);
    }
    Err(Failure::Failed(format!(
        "no answer from the server of {} yet; mendfs mirror list shows what becomes of it",
        mount_point.display()
    )))
}

/// Shows how a mirror is filled until it is online or out.
fn wait(mount_point: &Path, mirror: &str) -> Result<(), Failure> {
    let mut shown: Option<Progress> = None;
    loop {
        let status = status::read_mounted(mount_point)?;
        // A mirror that is replaced in its own place is still listed, as missing.
        let named = status.mirrors.iter().filter(|found| found.path == mirror);
        let found = named.max_by_key(|found| match found.state {
            MirrorState::Online | MirrorState::Suspect => 2,
            MirrorState::Resyncing => 1,
            MirrorState::Offline | MirrorState::Missing | MirrorState::Failed => 0,
        });
        match found.map(|found| (found.state, found.cause.as_str())) {
            Some((MirrorState::Online | MirrorState::Suspect, _)) => {
                if let Some(shown) = shown {
                    shown.finish();
                }
                return Ok(());
            }
            Some((MirrorState::Resyncing, _)) => {
                if let Some(ResyncStatus {
                    done_bytes,
                    total_bytes,
                    ..
                }) = status.resync.filter(|resync| resync.mirror == mirror)
                {
                    shown
                        .get_or_insert_with(|| Progress::new("resync", total_bytes, true))
                        .set(done_bytes);
                }
            }
            Some((_, cause)) => {
                return Err(Failure::Failed(format!("{mirror} is out again: {cause}")));
            }
            None => return Err(Failure::Failed(format!("{mirror} is no mirror any more"))),
        }
        std::thread::sleep(SHOW_EVERY);
    }
}

fn said(
    action: MemberAction,
    mirror: &str,
    filled: Option<&str>,
    waited: bool,
    mount_point: &Path,
) -> String {
    let progress = format!(
        "mendfs status {} shows how far it is",
        mount_point.display()
    );
    match (action, filled) {
        (MemberAction::Remove, _) => {
            format!("{mirror} is no mirror any more; its files may be deleted\n")
        }
        (MemberAction::Offline, _) => {
            format!("{mirror} is offline; mendfs mirror online takes it back\n")
        }
        (_, Some(filled)) if waited => format!("{filled} is online\n"),
        (_, Some(filled)) => format!("{filled} is being brought up to date; {progress}\n"),
        (_, None) => String::new(),
    }
}

/// fstab names the mirrors: the next mount needs the new list.
fn remind_of_fstab(before: &PoolStatus, after: &PoolStatus) {
    let paths = |status: &PoolStatus| -> Vec<PathBuf> {
        let mirrors = status
            .mirrors
            .iter()
            .filter(|mirror| !mirror.path.is_empty());
        mirrors.map(|mirror| PathBuf::from(&mirror.path)).collect()
    };
    let (old, new) = (paths(before), paths(after));
    if old != new {
        let source = super::source::join(&new);
        eprintln!(
            "from the next mount on, name these mirrors (also in fstab): {}",
            source.display()
        );
    }
}

fn list(target: &std::ffi::OsStr, as_json: bool) -> Result<ExitCode, Failure> {
    let status = status::read(target)?;
    if as_json {
        print_json(
            "mirror",
            &json!({ "mirrors": status.mirrors, "resync": status.resync }),
        )?;
    } else {
        print_text(&table(&status))?;
    }
    Ok(ExitCode::SUCCESS)
}

fn table(status: &PoolStatus) -> String {
    let mut text = format!("{:<36}  {:<9}  {:>9}  MIRROR\n", "UUID", "STATE", "FREE");
    for mirror in &status.mirrors {
        let path = match mirror.path.as_str() {
            "" => "(not known where)",
            path => path,
        };
        let cause = match mirror.cause.as_str() {
            "" => String::new(),
            cause => format!(" ({cause})"),
        };
        let free = match mirror.total_bytes {
            0 => "-".to_owned(),
            _ => bytes(mirror.available_bytes),
        };
        // Writing to a string does not fail.
        let _ = writeln!(
            text,
            "{:<36}  {:<9}  {free:>9}  {path}{cause}",
            mirror.uuid,
            status::mirror_state(mirror.state),
        );
    }
    if let Some(resync) = &status.resync {
        let percent = resync.done_bytes * 100 / resync.total_bytes.max(1);
        let _ = writeln!(
            text,
            "resync of {}: {percent} %, {} of {} gone through, {} written",
            resync.mirror,
            bytes(resync.done_bytes),
            bytes(resync.total_bytes),
            bytes(resync.moved_bytes)
        );
    }
    text
}
