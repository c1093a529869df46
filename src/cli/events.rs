//! `mendfs events`: what happened to a mounted pool, from its ledger, for people or as JSON lines.
//!
//! An event of damage may grow while it is looked at. It is followed until it stands still, and
//! then printed again with what it came to.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use serde_json::Value;

use super::args::EventsArgs;
use super::outcome::Failure;
use super::status::{bytes, read_report};
use super::when;
use crate::ledger::{Damaged, Event, What};

/// The newest events; with a number behind it, those from that number on.
const EVENTS_FILE: &str = ".mendfs/events.jsonl";
/// How often somebody who follows looks again.
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// Events that may still grow are at most so many numbers old.
const GROWING: u64 = 256;
/// Ranges shown in one line.
const RANGES_SHOWN: usize = 4;

/// An event as it came.
#[derive(Debug, Clone)]
struct Line {
    number: u64,
    /// Time of its last incident.
    time: i64,
    count: u64,
    value: Value,
}

/// Prints the events.
pub(super) fn run(args: &EventsArgs) -> Result<ExitCode, Failure> {
    let mut lines = match (args.limit, args.since) {
        // The newest are at hand; anything else goes through all of them.
        (Some(_), None) => page(&args.mount_point, None)?,
        _ => all(&args.mount_point)?,
    };
    let next = lines.last().map_or(0, |line| line.number + 1);
    let since = args.since.unwrap_or(i64::MIN);
    lines.retain(|line| line.time >= since);
    if let Some(limit) = args.limit {
        lines.drain(..lines.len().saturating_sub(limit));
    }
    for line in &lines {
        if !print(line, args.json)? {
            return Ok(ExitCode::SUCCESS);
        }
    }
    if args.follow {
        follow(args, &lines, next)?;
    }
    Ok(ExitCode::SUCCESS)
}

fn page(mount_point: &Path, from: Option<u64>) -> Result<Vec<Line>, Failure> {
    let name = match from {
        Some(number) => format!("{EVENTS_FILE}@{number}"),
        None => EVENTS_FILE.to_owned(),
    };
    let text = read_report(mount_point, &name)?;
    let text = String::from_utf8_lossy(&text);
    let lines = text.lines().filter_map(|line| {
        let value: Value = serde_json::from_str(line).ok()?;
        let number = |key: &str| value.get(key).and_then(Value::as_i64);
        Some(Line {
            number: u64::try_from(number("number")?).ok()?,
            time: number("until").or(number("time"))?,
            count: number("count").map_or(0, i64::unsigned_abs),
            value,
        })
    });
    Ok(lines.collect())
}

fn all(mount_point: &Path) -> Result<Vec<Line>, Failure> {
    let mut lines: Vec<Line> = Vec::new();
    loop {
        let next = lines.last().map_or(0, |line| line.number + 1);
        let page = page(mount_point, Some(next))?;
        if page.is_empty() {
            return Ok(lines);
        }
        lines.extend(page);
    }
}

/// Prints what comes until the mount is gone or nobody reads any more.
fn follow(args: &EventsArgs, shown: &[Line], mut next: u64) -> Result<(), Failure> {
    // Number to the count that was printed and the one that was last seen.
    let mut known: BTreeMap<u64, (u64, u64)> = BTreeMap::new();
    for line in shown {
        known.insert(line.number, (line.count, line.count));
    }
    loop {
        std::thread::sleep(LOOK_EVERY);
        let oldest = next.saturating_sub(GROWING);
        let lines = page(&args.mount_point, Some(oldest))?;
        for line in lines {
            let fresh = line.number >= next;
            next = next.max(line.number + 1);
            let entry = known.entry(line.number).or_insert((line.count, line.count));
            let grew = line.count > entry.1;
            entry.1 = line.count;
            if fresh || (!grew && entry.1 > entry.0) {
                entry.0 = line.count;
                if !print(&line, args.json)? {
                    return Ok(());
                }
            }
        }
        known = known.split_off(&oldest);
    }
}

/// Prints one event; false if nobody reads any more.
fn print(line: &Line, json: bool) -> Result<bool, Failure> {
    let text = if json {
        line.value.to_string()
    } else {
        match serde_json::from_value::<Event>(line.value.clone()) {
            Ok(event) => render(&event),
            // Of a newer server.
            Err(_) => line.value.to_string(),
        }
    };
    let mut stdout = io::stdout().lock();
    match writeln!(stdout, "{text}").and_then(|()| stdout.flush()) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(false),
        Err(error) => Err(Failure::System(format!(
            "cannot write to standard output: {error}"
        ))),
    }
}

/// One line for people.
fn render(event: &Event) -> String {
    let (word, text) = describe(&event.what);
    // One line, whatever a path holds.
    let text: String = text
        .chars()
        .map(|c| if c.is_control() { '?' } else { c })
        .collect();
    format!("{}  {word:<12}  {text}", when::shown(event.time))
}

fn describe(what: &What) -> (&str, String) {
    match what {
        What::Damage(damaged) => damage(damaged),
        What::Fixed {
            path,
            inode,
            count,
            how,
        } => {
            let blocks = blocks(*count);
            let of = match (path, inode) {
                (None, None) => "many files".to_owned(),
                (path, inode) => subject(path.as_deref(), *inode),
            };
            let how = match how.as_str() {
                "replaced" => "overwritten or deleted",
                "readable" => "a good copy was found again",
                other => other,
            };
            ("fixed", format!("{of}: {blocks} no longer lost: {how}"))
        }
        What::Mirror {
            mirror,
            state,
            cause,
        } => {
            let cause = if cause.is_empty() {
                String::new()
            } else {
                format!(": {cause}")
            };
            ("mirror", format!("{mirror} is {state}{cause}"))
        }
        What::Gone { mirror, stored_in } => (
            "gone",
            format!("{mirror}/{stored_in} was deleted under the mount and made anew"),
        ),
        What::Recovery {
            replayed,
            discarded,
            notes,
        } => {
            let mut text = format!("{replayed} operations replayed, {discarded} given up");
            for note in notes {
                text.push_str("; ");
                text.push_str(note);
            }
            ("recovery", text)
        }
        What::Resync {
            mirror,
            outcome,
            compared_bytes,
            moved_bytes,
            lost_blocks,
        } => {
            let lost = match lost_blocks {
                0 => String::new(),
                lost => format!(", {} that no mirror has", blocks(*lost)),
            };
            let text = format!(
                "{mirror}: {outcome}, {} compared, {} written{lost}",
                bytes(*compared_bytes),
                bytes(*moved_bytes)
            );
            ("resync", text)
        }
        What::Scrub {
            state,
            bytes_done,
            bytes_total,
            errors_found,
            repaired,
            unrepairable,
            ..
        } => (
            "scrub",
            format!(
                "{state}: {} of {} checked, {errors_found} errors found, {repaired} repaired, \
                 {unrepairable} not",
                bytes(*bytes_done),
                bytes(*bytes_total)
            ),
        ),
    }
}

fn blocks(count: u64) -> String {
    match count {
        1 => "1 block".to_owned(),
        count => format!("{count} blocks"),
    }
}

fn subject(path: Option<&str>, inode: Option<u64>) -> String {
    match (path, inode) {
        (Some(path), _) => path.to_owned(),
        (None, Some(inode)) => format!("inode {inode}"),
        (None, None) => "metadata".to_owned(),
    }
}

fn damage(damaged: &Damaged) -> (&'static str, String) {
    let word = match (damaged.outcome.as_str(), damaged.fixed) {
        ("repaired", _) => "repaired",
        ("lost", true) => "lost, fixed",
        ("lost", false) => "LOST",
        (_, true) => "bad, fixed",
        (_, false) => "NOT REPAIRED",
    };
    let of = match (damaged.inode, damaged.files) {
        (None, files) if files > 1 => format!("{files} files"),
        (None, _) if damaged.kind == "data" => "deleted files".to_owned(),
        (None, _) => format!("{} (metadata)", damaged.stored_in),
        (inode, _) => subject(damaged.path.as_deref(), inode),
    };
    let ranges = damaged.ranges.iter().take(RANGES_SHOWN);
    let mut at: Vec<String> = ranges
        .map(|range| format!("{}+{}", range.offset, range.length))
        .collect();
    if damaged.ranges.len() > RANGES_SHOWN || (damaged.not_listed > 0 && !at.is_empty()) {
        at.push("...".to_owned());
    }
    let at = if at.is_empty() {
        String::new()
    } else {
        format!(" at {}", at.join(" "))
    };
    let detail = damaged
        .detail
        .as_ref()
        .map_or_else(String::new, |detail| format!(" ({detail})"));
    let text = format!(
        "{of}: {} on {}{at}: {}{detail}",
        blocks(damaged.count),
        damaged.mirror,
        damaged.cause
    );
    (word, text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ledger::Range;

    fn event(what: What) -> Event {
        Event {
            number: 1,
            time: 1_795_233_782,
            nanoseconds: 0,
            what,
        }
    }

    #[test]
    fn an_event_is_one_line_that_names_file_mirror_and_outcome() {
        let damaged = Damaged {
            mirror: "/disk1".to_owned(),
            kind: "data".to_owned(),
            path: Some("/a\nb".to_owned()),
            inode: Some(7),
            files: 1,
            ranges: vec![Range {
                offset: 4096,
                length: 8192,
            }],
            count: 2,
            cause: "checksum".to_owned(),
            outcome: "lost".to_owned(),
            ..Damaged::default()
        };
        assert_eq!(
            render(&event(What::Damage(damaged.clone()))),
            "2026-11-21 04:03:02 UTC  LOST          /a?b: 2 blocks on /disk1 at 4096+8192: checksum"
        );
        let flood = Damaged {
            path: None,
            inode: None,
            files: 500,
            ranges: Vec::new(),
            count: 100_000,
            outcome: "repaired".to_owned(),
            ..damaged
        };
        let line = render(&event(What::Damage(flood)));
        assert!(
            line.ends_with("500 files: 100000 blocks on /disk1: checksum"),
            "{line}"
        );
    }
}
