//! `mendfs status`: how a pool is, for people or as JSON. Exits with 1 if it is not healthy.
//!
//! A mounted pool is asked through its control directory; one that is not mounted is told by its
//! superblocks.

use std::ffi::OsStr;
use std::fmt::Write as _;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::process::ExitCode;

use super::args::StatusArgs;
use super::engine;
use super::outcome::{Failure, print_json, print_text};
use super::source;
use crate::pool::status::{MirrorState, PoolState, PoolStatus};

/// Where a mount tells its status, below its root.
const STATUS_FILE: &str = ".mendfs/status.json";

/// Prints the status.
pub(super) fn run(args: StatusArgs) -> Result<ExitCode, Failure> {
    let status = read(&args.target)?;
    if args.json {
        print_json("status", &status)?;
    } else {
        print_text(&render(&status))?;
    }
    Ok(match status.state {
        PoolState::Healthy => ExitCode::SUCCESS,
        PoolState::Degraded | PoolState::Damaged | PoolState::Failed => ExitCode::FAILURE,
    })
}

/// Status of a mounted pool.
pub(super) fn read_mounted(mount_point: &Path) -> Result<PoolStatus, Failure> {
    let path = mount_point.join(STATUS_FILE);
    let text = std::fs::read(&path).map_err(|error| match error.kind() {
        std::io::ErrorKind::NotFound | std::io::ErrorKind::NotADirectory => {
            Failure::Failed(format!(
                "{} is neither a mounted mendfs nor a mirror",
                mount_point.display()
            ))
        }
        std::io::ErrorKind::NotConnected => {
            Failure::Failed(format!("the server of {} is gone", mount_point.display()))
        }
        _ => Failure::Failed(format!("{}: {error}", path.display())),
    })?;
    serde_json::from_slice(&text).map_err(|error| {
        Failure::Failed(format!(
            "{} is of another version of mendfs: {error}",
            path.display()
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

/// The text for people. Wide values push their column out rather than being cut.
fn render(status: &PoolStatus) -> String {
    let mut text = String::new();
    let mut line = |name: &str, value: &str| {
        if !value.is_empty() {
            // Writing to a string does not fail.
            let _ = writeln!(text, "{name:>12}: {value}");
        }
    };
    line(
        "pool",
        if status.label.is_empty() {
            &status.uuid
        } else {
            &status.label
        },
    );
    line("uuid", &status.uuid);
    line("state", &state(status));
    for action in &status.actions {
        line("action", action);
    }
    line("checksum", &status.checksum);
    let space = &status.space;
    line(
        "space",
        &format!(
            "{} used, {} available of {}, {} inodes",
            bytes(space.used_bytes),
            bytes(space.available_bytes),
            bytes(space.total_bytes),
            space.inodes
        ),
    );
    line(
        "journal",
        &format!(
            "{} of {} in use",
            bytes(status.journal.used_bytes),
            bytes(status.journal.size_bytes)
        ),
    );
    if let Some(recovery) = &status.recovery {
        line(
            "recovery",
            &format!(
                "{} in {} ms: {} operations replayed, {} discarded, {} orphans removed",
                recovery.result,
                recovery.duration_ms,
                recovery.replayed,
                recovery.discarded,
                recovery.orphans
            ),
        );
        for note in &recovery.notes {
            line("note", note);
        }
    }
    text.push('\n');
    render_mirrors(status, &mut text);
    render_damage(status, &mut text);
    text
}

fn render_mirrors(status: &PoolStatus, text: &mut String) {
    let width = status
        .mirrors
        .iter()
        .map(|mirror| mirror.path.chars().count())
        .max();
    let width = width.unwrap_or(0).max("MIRROR".len());
    let _ = writeln!(
        text,
        "  {:width$}  {:10} {:>7} {:>7} {:>9} {:>9} {:>12}",
        "MIRROR", "STATE", "READ", "WRITE", "CHECKSUM", "REPAIRED", "UNREPAIRABLE"
    );
    for mirror in &status.mirrors {
        let _ = writeln!(
            text,
            "  {:width$}  {:10} {:>7} {:>7} {:>9} {:>9} {:>12}",
            mirror.path,
            mirror_state(mirror.state),
            mirror.read_errors,
            mirror.write_errors,
            mirror.checksum_errors,
            mirror.repaired,
            mirror.unrepairable
        );
        if !mirror.cause.is_empty() {
            let _ = writeln!(text, "  {:width$}  {}", "", mirror.cause);
        }
    }
}

fn render_damage(status: &PoolStatus, text: &mut String) {
    if status.damaged.is_empty() {
        text.push_str("\nno damaged files\n");
        return;
    }
    let _ = writeln!(text, "\n{} damaged files:", status.damaged.len());
    for file in &status.damaged {
        let name = if file.path.is_empty() {
            format!("inode {}", file.inode)
        } else {
            file.path.clone()
        };
        let ranges: Vec<String> = file
            .ranges
            .iter()
            .map(|range| format!("{} bytes at {}", range.length, range.offset))
            .collect();
        let _ = writeln!(text, "  {name}: {}", ranges.join(", "));
    }
}

fn state(status: &PoolStatus) -> String {
    let state = match status.state {
        PoolState::Healthy => "healthy",
        PoolState::Degraded => "DEGRADED",
        PoolState::Damaged => "DAMAGED",
        PoolState::Failed => "FAILED",
    };
    let access = if status.read_only { ", read-only" } else { "" };
    let mounted = if status.server.is_none() {
        ", not mounted"
    } else {
        ""
    };
    format!("{state}{access}{mounted}")
}

pub(super) const fn mirror_state(state: MirrorState) -> &'static str {
    match state {
        MirrorState::Online => "online",
        MirrorState::Suspect => "SUSPECT",
        MirrorState::Offline => "OFFLINE",
        MirrorState::Resyncing => "resyncing",
        MirrorState::Missing => "MISSING",
        MirrorState::Failed => "FAILED",
    }
}

/// A size with the largest unit of 1024 that leaves at least one, to one decimal.
pub(super) fn bytes(size: u64) -> String {
    const UNITS: [&str; 7] = ["B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    let step = (64 - size.leading_zeros()).saturating_sub(1) / 10;
    let unit = UNITS.get(step as usize).copied().unwrap_or("B");
    if step == 0 {
        return format!("{size} {unit}");
    }
    let tenths = u128::from(size) * 10 / (1_u128 << (10 * step));
    format!("{}.{} {unit}", tenths / 10, tenths % 10)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pool::status::{DamagedFile, DamagedRange, MirrorStatus, RecoveryStatus};

    #[test]
    fn sizes_are_shown_in_the_unit_that_fits() {
        for (size, shown) in [
            (0, "0 B"),
            (1023, "1023 B"),
            (1024, "1.0 KiB"),
            (1536, "1.5 KiB"),
            (1 << 30, "1.0 GiB"),
            (u64::MAX, "15.9 EiB"),
        ] {
            assert_eq!(bytes(size), shown);
        }
    }

    #[test]
    fn a_status_survives_its_way_through_json() {
        let status = PoolStatus {
            state: PoolState::Damaged,
            mirrors: vec![MirrorStatus {
                state: MirrorState::Resyncing,
                ..Default::default()
            }],
            recovery: Some(RecoveryStatus::default()),
            ..Default::default()
        };
        let text = serde_json::to_string(&status).unwrap();
        assert_eq!(serde_json::from_str::<PoolStatus>(&text).unwrap(), status);
    }

    #[test]
    fn damage_is_named_with_path_and_range() {
        let status = PoolStatus {
            state: PoolState::Damaged,
            damaged: vec![DamagedFile {
                inode: 7,
                path: "/a/b".to_owned(),
                ranges: vec![DamagedRange {
                    offset: 4096,
                    length: 8192,
                }],
            }],
            ..Default::default()
        };
        let text = render(&status);
        assert!(text.contains("DAMAGED, not mounted"), "{text}");
        assert!(text.contains("/a/b: 8192 bytes at 4096"), "{text}");
    }
}
