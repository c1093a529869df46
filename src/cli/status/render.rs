//! The status as one screen for people.

use std::fmt::Write as _;

use crate::cli::when;
use crate::pool::status::{
    DamagedFile, MirrorState, MirrorStatus, PoolState, PoolStatus, RecoveryStatus, ScrubState,
    ScrubStatus,
};

/// Damaged files named where nobody asked for all of them.
const NAMED: usize = 5;
/// Share of the pool that is free when space is told to be low, in percent.
const LOW_PERCENT: u64 = 5;

/// How to render.
#[derive(Debug, Clone, Copy)]
pub(super) struct Style {
    pub(super) colour: bool,
    pub(super) verbose: bool,
}

#[derive(Debug, Clone, Copy)]
enum Paint {
    Good,
    Doubtful,
    Bad,
}

impl Style {
    fn paint(self, paint: Paint, text: &str) -> String {
        let code = match paint {
            Paint::Good => 32,
            Paint::Doubtful => 33,
            Paint::Bad => 31,
        };
        if self.colour {
            format!("\x1b[{code}m{text}\x1b[0m")
        } else {
            text.to_owned()
        }
    }
}

/// A text of lines `name: value`.
#[derive(Debug, Default)]
struct Screen {
    text: String,
}

impl Screen {
    fn line(&mut self, name: &str, value: &str) {
        if !value.is_empty() {
            // Writing to a string does not fail.
            // A line without a name goes on with the one before.
            let colon = if name.is_empty() { ' ' } else { ':' };
            let _ = writeln!(self.text, "{name:>8}{colon} {value}");
        }
    }
}

/// Paths and labels may hold anything, also what a terminal obeys.
fn plain(text: &str) -> String {
    text.chars()
        .map(|c| if c.is_control() { '?' } else { c })
        .collect()
}

/// The text for people. Wide values push their column out rather than being cut.
pub(super) fn render(status: &PoolStatus, style: Style) -> String {
    let mut screen = Screen::default();
    let name = if status.label.is_empty() {
        &status.uuid
    } else {
        &status.label
    };
    screen.line("pool", &plain(name));
    screen.line("state", &state(status, style));
    screen.line("", &meaning(status));
    for action in &status.actions {
        screen.line("action", &plain(action));
    }
    screen.line("space", &space(status, style));
    screen.line("scrub", &scrub(status));
    screen.line("resync", &resync(status));
    screen.line("mount", &recovery(status));
    if style.verbose {
        details(&mut screen, status);
    }
    let mut text = screen.text;
    text.push('\n');
    mirrors(status, style, &mut text);
    damage(status, style, &mut text);
    text
}

fn state(status: &PoolStatus, style: Style) -> String {
    let (word, paint) = match status.state {
        PoolState::Healthy => ("healthy", Paint::Good),
        PoolState::Degraded => ("DEGRADED", Paint::Doubtful),
        PoolState::Damaged => ("DAMAGED", Paint::Bad),
        PoolState::Failed => ("FAILED", Paint::Bad),
    };
    let access = if status.read_only { ", read-only" } else { "" };
    let mounted = if status.server.is_none() {
        ", not mounted"
    } else {
        ""
    };
    format!("{}{access}{mounted}", style.paint(paint, word))
}

/// Is my data safe?
fn meaning(status: &PoolStatus) -> String {
    match status.state {
        PoolState::Healthy if status.server.is_none() => {
            "Every mirror is there and in sync; mendfs check reads it all.".to_owned()
        }
        PoolState::Healthy => "Every mirror is in sync, and nothing is known to be bad.".to_owned(),
        PoolState::Degraded if status.unrepaired_blocks > 0 => format!(
            "Everything can be read, but {} bad copies are left: there they are alone.",
            status.unrepaired_blocks
        ),
        PoolState::Degraded => {
            let online = |mirror: &&MirrorStatus| {
                matches!(mirror.state, MirrorState::Online | MirrorState::Suspect)
            };
            let online = status.mirrors.iter().filter(online).count();
            let all = status.mirrors.len();
            format!("Everything can be read, with {online} of {all} mirrors in sync.")
        }
        PoolState::Damaged if status.damaged.is_empty() => {
            "Metadata has no good copy on any mirror.".to_owned()
        }
        PoolState::Damaged => {
            let files = status.damaged.len();
            let (verb, plural) = if files == 1 {
                ("has", "")
            } else {
                ("have", "s")
            };
            format!("{files} file{plural} {verb} blocks that no mirror can supply.")
        }
        PoolState::Failed => "Reads and writes fail.".to_owned(),
    }
}

fn space(status: &PoolStatus, style: Style) -> String {
    let space = &status.space;
    if space.total_bytes == 0 {
        return String::new();
    }
    let text = format!(
        "{} used, {} available of {}, {} inodes",
        bytes(space.used_bytes),
        bytes(space.available_bytes),
        bytes(space.total_bytes),
        space.inodes
    );
    if space.available_bytes < space.total_bytes / 100 * LOW_PERCENT {
        format!("{text}, {}", style.paint(Paint::Doubtful, "LOW"))
    } else {
        text
    }
}

fn percent(scrub: &ScrubStatus) -> String {
    format!(
        "{} %, {} of {} checked",
        scrub.percent,
        bytes(scrub.bytes_done),
        bytes(scrub.bytes_total)
    )
}

fn scrub(status: &PoolStatus) -> String {
    let Some(scrub) = &status.scrub else {
        // One that is not mounted cannot say.
        return match status.server {
            Some(_) => "none yet".to_owned(),
            None => String::new(),
        };
    };
    let found = match scrub.errors_found {
        0 => "no errors".to_owned(),
        errors => format!(
            "{errors} errors found, {} repaired, {} not",
            scrub.repaired, scrub.unrepairable
        ),
    };
    let ended = scrub.finished.unwrap_or(scrub.started);
    match scrub.state {
        ScrubState::None => "none yet".to_owned(),
        ScrubState::Running => {
            let rate = scrub
                .rate_bytes_per_s
                .map_or_else(String::new, |rate| format!(", {}/s", bytes(rate)));
            let eta = scrub
                .eta_s
                .map_or_else(String::new, |eta| format!(", {} to go", when::span(eta)));
            format!("running, {}{rate}{eta}, {found}", percent(scrub))
        }
        ScrubState::Paused => format!("paused, {}, {found}", percent(scrub)),
        ScrubState::Cancelled => format!(
            "cancelled on {}, {}, {found}",
            when::shown(ended),
            percent(scrub)
        ),
        ScrubState::Finished => format!(
            "finished on {} after {}, {} checked, {found}",
            when::shown(ended),
            when::span((ended - scrub.started).unsigned_abs()),
            bytes(scrub.bytes_done)
        ),
    }
}

/// The mirror that is being brought up to date, and those that wait for that.
fn resync(status: &PoolStatus) -> String {
    if let Some(resync) = &status.resync {
        let percent = match resync.total_bytes {
            0 => 0,
            total => resync.done_bytes.min(total) * 100 / total,
        };
        let rate = match resync.rate {
            0 => String::new(),
            rate => format!(", {}/s", bytes(rate)),
        };
        let eta = resync
            .eta_seconds
            .map_or_else(String::new, |eta| format!(", {} to go", when::span(eta)));
        return plain(&format!(
            "{}: {percent} %, {} of {} of the {} gone through, {} written{rate}{eta}",
            resync.mirror,
            bytes(resync.done_bytes),
            bytes(resync.total_bytes),
            resync.phase,
            bytes(resync.moved_bytes)
        ));
    }
    let names = status.mirrors.iter();
    let names: Vec<String> = names
        .filter(|mirror| mirror.state == MirrorState::Resyncing)
        .map(|mirror| plain(name_of(mirror)))
        .collect();
    match names.as_slice() {
        [] => String::new(),
        names => format!("{} is to be brought up to date", names.join(", ")),
    }
}

fn recovery(status: &PoolStatus) -> String {
    let Some(recovery) = &status.recovery else {
        return String::new();
    };
    let RecoveryStatus {
        replayed,
        discarded,
        orphans,
        duration_ms,
        ..
    } = recovery;
    let since = status.server.as_ref().map_or_else(String::new, |server| {
        format!("since {}, ", when::shown(server.started))
    });
    if recovery.result == "clean" {
        return format!("{since}closed in order before");
    }
    let seconds = *duration_ms as f64 / 1000.0;
    format!(
        "{since}{} in {seconds:.1} s: {replayed} operations replayed, {discarded} given up, \
         {orphans} deletions finished",
        recovery.result
    )
}

fn details(screen: &mut Screen, status: &PoolStatus) {
    screen.line("uuid", &status.uuid);
    let format = format!("{}, checksum {}", status.format_version, status.checksum);
    screen.line("format", &format);
    let journal = format!(
        "{} of {} in use",
        bytes(status.journal.used_bytes),
        bytes(status.journal.size_bytes)
    );
    screen.line("journal", &journal);
    if let Some(server) = &status.server {
        let server = format!("process {}, mendfs {}", server.pid, server.version);
        screen.line("server", &server);
    }
    for note in status.recovery.iter().flat_map(|recovery| &recovery.notes) {
        screen.line("note", &plain(note));
    }
}

fn name_of(mirror: &MirrorStatus) -> &str {
    if mirror.path.is_empty() {
        &mirror.uuid
    } else {
        &mirror.path
    }
}

fn mirrors(status: &PoolStatus, style: Style, text: &mut String) {
    let names = status.mirrors.iter().map(|mirror| plain(name_of(mirror)));
    let names: Vec<String> = names.collect();
    let width = names.iter().map(|name| name.chars().count()).max();
    let width = width.unwrap_or(0).max("MIRROR".len());
    let _ = writeln!(
        text,
        "  {:width$}  {:9}  {:>6} {:>6} {:>8} {:>8} {:>12}  {:>9}",
        "MIRROR", "STATE", "READ", "WRITE", "CHECKSUM", "REPAIRED", "UNREPAIRABLE", "FREE"
    );
    for (mirror, name) in status.mirrors.iter().zip(names) {
        let word = mirror_state(mirror.state);
        let state = style.paint(paint_of(mirror.state), &format!("{word:9}"));
        let free = match mirror.total_bytes {
            0 => "-".to_owned(),
            _ => bytes(mirror.available_bytes),
        };
        let _ = writeln!(
            text,
            "  {name:width$}  {state}  {:>6} {:>6} {:>8} {:>8} {:>12}  {free:>9}",
            mirror.read_errors,
            mirror.write_errors,
            mirror.checksum_errors,
            mirror.repaired,
            mirror.unrepairable
        );
        if !mirror.cause.is_empty() {
            let _ = writeln!(text, "  {:width$}  {}", "", plain(&mirror.cause));
        }
    }
}

/// The word for a state.
pub(crate) const fn mirror_state(state: MirrorState) -> &'static str {
    match state {
        MirrorState::Online => "online",
        MirrorState::Suspect => "SUSPECT",
        MirrorState::Offline => "OFFLINE",
        MirrorState::Resyncing => "resyncing",
        MirrorState::Missing => "MISSING",
        MirrorState::Failed => "FAILED",
    }
}

const fn paint_of(state: MirrorState) -> Paint {
    match state {
        MirrorState::Online => Paint::Good,
        MirrorState::Suspect | MirrorState::Offline | MirrorState::Resyncing => Paint::Doubtful,
        MirrorState::Missing | MirrorState::Failed => Paint::Bad,
    }
}

fn damage(status: &PoolStatus, style: Style, text: &mut String) {
    let busy = match (status.repairs_pending, status.inspecting) {
        (0, false) => "",
        (0, true) => "; what lies around damage is being checked",
        (_, _) => "; repairs are under way",
    };
    for place in &status.damaged_metadata {
        let _ = writeln!(text, "\nDamaged metadata: {place}");
    }
    if status.damaged.is_empty() {
        if status.server.is_some() {
            let _ = writeln!(text, "\nNo damaged files are known{busy}.");
        }
        return;
    }
    let headline = format!("{} damaged files", status.damaged.len());
    let _ = writeln!(text, "\n{}{busy}:", style.paint(Paint::Bad, &headline));
    let shown = if style.verbose { usize::MAX } else { NAMED };
    for file in status.damaged.iter().take(shown) {
        let _ = writeln!(text, "  {}", damaged_file(file, style.verbose));
    }
    let hidden = status.damaged.len().saturating_sub(shown);
    if hidden > 0 {
        let _ = writeln!(text, "  and {hidden} more; -v lists all with their ranges");
    } else if !style.verbose {
        text.push_str("  -v tells the ranges\n");
    }
}

fn damaged_file(file: &DamagedFile, ranges: bool) -> String {
    let name = if file.path.is_empty() {
        format!("inode {}", file.inode)
    } else {
        plain(&file.path)
    };
    if !ranges {
        return name;
    }
    let ranges: Vec<String> = file
        .ranges
        .iter()
        .map(|range| format!("{} bytes at {}", range.length, range.offset))
        .collect();
    format!("{name}: {}", ranges.join(", "))
}

/// A size with the largest unit of 1024 that leaves at least one, to one decimal.
pub(crate) fn bytes(size: u64) -> String {
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
    use crate::pool::status::{DamagedRange, ServerStatus, SpaceStatus};

    const PLAIN: Style = Style {
        colour: false,
        verbose: false,
    };

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

    fn damaged(files: usize) -> PoolStatus {
        let file = |number: usize| DamagedFile {
            inode: 7,
            path: format!("/a/{number}\x1b\n"),
            ranges: vec![DamagedRange {
                offset: 4096,
                length: 8192,
            }],
        };
        PoolStatus {
            state: PoolState::Damaged,
            server: Some(ServerStatus::default()),
            damaged: (0..files).map(file).collect(),
            ..Default::default()
        }
    }

    #[test]
    fn damage_is_named_with_path_and_range_if_asked_for() {
        let verbose = Style {
            verbose: true,
            ..PLAIN
        };
        let text = render(&damaged(20), verbose);
        assert!(text.contains("DAMAGED"), "{text}");
        assert!(
            text.contains("20 files have blocks that no mirror"),
            "{text}"
        );
        assert_eq!(text.matches(": 8192 bytes at 4096\n").count(), 20, "{text}");
        let short = render(&damaged(20), PLAIN);
        assert!(short.contains("and 15 more"), "{short}");
        assert!(!short.contains("4096"), "{short}");
    }

    #[test]
    fn colour_is_only_where_it_is_wanted() {
        let coloured = Style {
            colour: true,
            ..PLAIN
        };
        let mut status = damaged(0);
        status.mirrors = vec![MirrorStatus::default()];
        assert!(render(&status, coloured).contains("\x1b[31mDAMAGED\x1b[0m"));
        assert!(!render(&status, PLAIN).contains('\x1b'));
    }

    #[test]
    fn a_scrub_shows_its_progress_and_its_end() {
        let mut status = damaged(0);
        status.state = PoolState::Healthy;
        status.space = SpaceStatus {
            total_bytes: 100 << 30,
            available_bytes: 1 << 30,
            ..SpaceStatus::default()
        };
        assert!(render(&status, PLAIN).contains("scrub: none yet"));
        assert!(render(&status, PLAIN).contains("LOW"));
        let mut scrub = ScrubStatus {
            state: ScrubState::Running,
            started: 1_795_233_782,
            bytes_done: 4 << 30,
            bytes_total: 10 << 30,
            percent: 40,
            rate_bytes_per_s: Some(100 << 20),
            eta_s: Some(61),
            ..ScrubStatus::default()
        };
        status.scrub = Some(scrub.clone());
        let text = render(&status, PLAIN);
        let line = "scrub: running, 40 %, 4.0 GiB of 10.0 GiB checked, 100.0 MiB/s, 1 min 1 s to \
                    go, no errors";
        assert!(text.contains(line), "{text}");
        scrub.state = ScrubState::Finished;
        scrub.finished = Some(scrub.started + 3600);
        scrub.errors_found = 3;
        scrub.repaired = 3;
        status.scrub = Some(scrub);
        let text = render(&status, PLAIN);
        let line = "finished on 2026-11-21 05:03:02 UTC after 1 h, 4.0 GiB checked, 3 errors \
                    found, 3 repaired, 0 not";
        assert!(text.contains(line), "{text}");
    }
}
