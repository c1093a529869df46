//! `.mendfs/metrics`: what monitoring asks for, in the text format of Prometheus.
//!
//! Names begin with `mendfs_`, units are bytes and seconds, and no file is named in a label. Names
//! and labels are an interface: alert rules and dashboards build on them.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::pool::status::{MirrorStatus, PoolState, PoolStatus, ScrubState, ScrubStatus};
use crate::pool::{Figures, Histogram};

use super::exposition::{Kind, Text};
use super::filesystem::Vfs;

/// What an operation is, for the histograms of times.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operation {
    /// Reading content.
    Read,
    /// Writing content.
    Write,
    /// Looking up names.
    Lookup,
    /// Asking for attributes.
    Attributes,
    /// Reading directories.
    Directory,
    /// Changing names and attributes.
    Change,
    /// Making durable.
    Sync,
    /// Copying within the filesystem.
    Copy,
}

const OPERATIONS: [(Operation, &str); 8] = [
    (Operation::Read, "read"),
    (Operation::Write, "write"),
    (Operation::Lookup, "lookup"),
    (Operation::Attributes, "attributes"),
    (Operation::Directory, "directory"),
    (Operation::Change, "change"),
    (Operation::Sync, "sync"),
    (Operation::Copy, "copy"),
];

/// What the filesystem counts.
#[derive(Debug, Default)]
pub(super) struct Metrics {
    pub(super) bytes_read: AtomicU64,
    pub(super) bytes_written: AtomicU64,
    times: [Histogram; OPERATIONS.len()],
}

const STATES: [(PoolState, &str); 4] = [
    (PoolState::Healthy, "healthy"),
    (PoolState::Degraded, "degraded"),
    (PoolState::Damaged, "damaged"),
    (PoolState::Failed, "failed"),
];

impl Vfs {
    /// An operation took this long.
    pub fn took(&self, operation: Operation, took: Duration) {
        self.metrics.times[operation as usize].record(took);
    }

    /// All metrics.
    pub(super) fn metrics_text(&self) -> String {
        let status = self.pool.status();
        let figures = self.pool.figures();
        let mut text = Text::new(match status.label.as_str() {
            "" => &status.uuid,
            label => label,
        });
        pool(&mut text, &status);
        self.operations(&mut text);
        space(&mut text, &status);
        mirrors(&mut text, &status, &figures);
        damage(&mut text, &status);
        engine(&mut text, &status, &figures);
        // Also where there was none: that is what an alert has to see.
        scrub(&mut text, &status.scrub.clone().unwrap_or_default());
        resync(&mut text, &status);
        text.finish()
    }

    fn operations(&self, text: &mut Text) {
        let metrics = &self.metrics;
        let read = metrics.bytes_read.load(Ordering::Relaxed);
        let written = metrics.bytes_written.load(Ordering::Relaxed);
        text.counter("read_bytes_total", "Bytes read by applications.", read);
        text.counter(
            "written_bytes_total",
            "Bytes written by applications.",
            written,
        );
        text.family(
            "operation_duration_seconds",
            Kind::Histogram,
            "Time from the kernel's request to the reply.",
        );
        for (operation, class) in OPERATIONS {
            let times = metrics.times[operation as usize].times();
            text.histogram(&[("class", class)], &times);
        }
    }
}

fn pool(text: &mut Text, status: &PoolStatus) {
    let server = status.server.clone().unwrap_or_default();
    text.family("info", Kind::Gauge, "Version and pool; always 1.");
    let labels = [
        ("version", server.version.as_str()),
        ("uuid", status.uuid.as_str()),
        ("checksum", status.checksum.as_str()),
    ];
    text.sample(&labels, 1);
    let started = server.started.unsigned_abs();
    text.gauge("start_time_seconds", "When the pool was mounted.", started);
    let read_only = u64::from(status.read_only);
    text.gauge("read_only", "Whether changes are refused.", read_only);
    text.family("state", Kind::Gauge, "1 for the state that the pool is in.");
    for (state, name) in STATES {
        text.sample(&[("state", name)], u64::from(state == status.state));
    }
}

fn space(text: &mut Text, status: &PoolStatus) {
    let space = &status.space;
    text.gauge("size_bytes", "Size of the pool.", space.total_bytes);
    text.gauge("used_bytes", "Live data on each mirror.", space.used_bytes);
    text.gauge(
        "available_bytes",
        "Free for new data.",
        space.available_bytes,
    );
    text.gauge("inodes", "Inodes in use.", space.inodes);
}

/// The directory of a mirror; its UUID if it is not known where it is.
fn name(mirror: &MirrorStatus) -> &str {
    if mirror.path.is_empty() {
        &mirror.uuid
    } else {
        &mirror.path
    }
}

fn mirrors(text: &mut Text, status: &PoolStatus, figures: &Figures) {
    text.family(
        "mirror_state",
        Kind::Gauge,
        "1 for the state that a mirror is in.",
    );
    for mirror in &status.mirrors {
        let now = serde_json::to_value(mirror.state).unwrap_or_default();
        for state in [
            "online",
            "suspect",
            "offline",
            "resyncing",
            "missing",
            "failed",
        ] {
            let labels = [("mirror", name(mirror)), ("state", state)];
            text.sample(&labels, u64::from(now == state));
        }
    }
    type Figure = fn(&MirrorStatus) -> u64;
    let each: [(&str, Kind, &str, Figure); 7] = [
        (
            "mirror_read_errors_total",
            Kind::Counter,
            "Reads that the filesystem below failed.",
            |mirror| mirror.read_errors,
        ),
        (
            "mirror_write_errors_total",
            Kind::Counter,
            "Writes and syncs that the filesystem below failed.",
            |mirror| mirror.write_errors,
        ),
        (
            "mirror_checksum_errors_total",
            Kind::Counter,
            "Blocks that did not verify.",
            |mirror| mirror.checksum_errors,
        ),
        (
            "mirror_repaired_blocks_total",
            Kind::Counter,
            "Bad copies rewritten and verified on the medium.",
            |mirror| mirror.repaired,
        ),
        (
            "mirror_unrepairable_blocks_total",
            Kind::Counter,
            "Bad copies that could not be rewritten.",
            |mirror| mirror.unrepairable,
        ),
        (
            "mirror_size_bytes",
            Kind::Gauge,
            "Size of the filesystem below.",
            |mirror| mirror.total_bytes,
        ),
        (
            "mirror_available_bytes",
            Kind::Gauge,
            "Free on the filesystem below.",
            |mirror| mirror.available_bytes,
        ),
    ];
    for (family, kind, help, figure) in each {
        text.family(family, kind, help);
        for mirror in &status.mirrors {
            text.sample(&[("mirror", name(mirror))], figure(mirror));
        }
    }
    text.family(
        "damaged_blocks_total",
        Kind::Counter,
        "Damaged blocks found, by mirror, kind, cause and what became of them.",
    );
    for count in &figures.damage {
        let labels = [
            ("mirror", count.mirror.as_str()),
            ("kind", count.kind),
            ("cause", count.cause),
            ("outcome", count.outcome),
        ];
        text.sample(&labels, count.count);
    }
}

fn damage(text: &mut Text, status: &PoolStatus) {
    let ranges = status.damaged.iter().flat_map(|file| &file.ranges);
    let lost = ranges.map(|range| range.length).sum();
    let files = status.damaged.len() as u64;
    text.gauge(
        "damaged_files",
        "Files with blocks that no mirror has.",
        files,
    );
    text.gauge("damaged_bytes", "Bytes of files that no mirror has.", lost);
    let places = status.damaged_metadata.len() as u64;
    text.gauge(
        "damaged_metadata",
        "Places of metadata that no mirror has.",
        places,
    );
    let left = status.unrepaired_blocks;
    text.gauge("unrepaired_blocks", "Bad copies that are still bad.", left);
    let pending = status.repairs_pending;
    text.gauge(
        "repairs_pending",
        "Bad copies about to be rewritten.",
        pending,
    );
}

fn engine(text: &mut Text, status: &PoolStatus, figures: &Figures) {
    let journal = &status.journal;
    text.gauge(
        "journal_size_bytes",
        "Size of the journal.",
        journal.size_bytes,
    );
    text.gauge(
        "journal_used_bytes",
        "Bytes of the journal in use.",
        journal.used_bytes,
    );
    text.counter(
        "journal_records_total",
        "Records ever written.",
        journal.next_lsn,
    );
    text.family(
        "journal_sync_duration_seconds",
        Kind::Histogram,
        "Time to make everything so far durable.",
    );
    text.histogram(&[], &figures.syncs);
    text.family(
        "checkpoint_duration_seconds",
        Kind::Histogram,
        "Time of checkpoints.",
    );
    text.histogram(&[], &figures.checkpoints);
    let finished = status
        .checkpoint
        .finished
        .unwrap_or_default()
        .unsigned_abs();
    text.gauge(
        "checkpoint_last_time_seconds",
        "When the last checkpoint ended; 0 if none has since the mount.",
        finished,
    );
    let (rows, bytes) = figures.overlay;
    text.gauge(
        "overlay_rows",
        "Index rows changed since the last checkpoint.",
        rows,
    );
    text.gauge("overlay_bytes", "Memory that these take, roughly.", bytes);
    let lookups = figures.index_lookups;
    text.counter(
        "index_lookups_total",
        "Rows and ranges of the index asked for.",
        lookups,
    );
    text.counter(
        "index_page_reads_total",
        "Pages of the index read from a mirror, not in the cache.",
        figures.index_page_reads,
    );
    text.gauge(
        "index_cache_limit_bytes",
        "Memory that the cache of the index may take.",
        figures.index_cache,
    );
    if let Some(recovery) = &status.recovery {
        text.family(
            "recovery_duration_seconds",
            Kind::Gauge,
            "Time of recovery at the mount.",
        );
        text.real(&[], recovery.duration_ms as f64 / 1000.0);
        let replayed = recovery.replayed;
        text.gauge(
            "recovery_replayed",
            "Operations replayed at the mount.",
            replayed,
        );
        let discarded = recovery.discarded;
        text.gauge(
            "recovery_discarded",
            "Operations given up at the mount.",
            discarded,
        );
    }
}

fn scrub(text: &mut Text, scrub: &ScrubStatus) {
    let running = u64::from(scrub.state == ScrubState::Running);
    text.gauge("scrub_running", "Whether a scrub is at work.", running);
    text.gauge(
        "scrub_done_bytes",
        "Bytes checked by the last scrub.",
        scrub.bytes_done,
    );
    text.gauge(
        "scrub_size_bytes",
        "Bytes it has to check.",
        scrub.bytes_total,
    );
    text.gauge(
        "scrub_errors",
        "Bad copies that the last scrub found.",
        scrub.errors_found,
    );
    let left = scrub.unrepairable;
    text.gauge(
        "scrub_unrepairable",
        "Of these, those that are still bad.",
        left,
    );
    let started = scrub.started.unsigned_abs();
    text.gauge(
        "scrub_start_time_seconds",
        "When the last scrub began.",
        started,
    );
    let finished = match scrub.state {
        ScrubState::Finished => scrub.finished.unwrap_or_default().unsigned_abs(),
        ScrubState::None | ScrubState::Running | ScrubState::Paused | ScrubState::Cancelled => 0,
    };
    text.gauge(
        "scrub_finish_time_seconds",
        "When the last scrub was finished; 0 while it is not.",
        finished,
    );
}

/// Also where nothing is brought up to date, so that the families are always there.
fn resync(text: &mut Text, status: &PoolStatus) {
    let resync = status.resync.clone().unwrap_or_default();
    let running = u64::from(status.resync.is_some());
    text.gauge(
        "resync_running",
        "Whether a mirror is being brought up to date.",
        running,
    );
    text.gauge(
        "resync_done_bytes",
        "Bytes gone through.",
        resync.done_bytes,
    );
    text.gauge(
        "resync_size_bytes",
        "Bytes to go through, about.",
        resync.total_bytes,
    );
    text.gauge(
        "resync_written_bytes",
        "Bytes written to the mirror, since they differed.",
        resync.moved_bytes,
    );
}
