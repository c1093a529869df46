//! What a pool says about itself: plain data, the same for `.mendfs/status.json`, the
//! `user.mendfs.status` attribute and `mendfs status`.
//!
//! Names and units are an interface (scripts read them): fields may be added, never renamed or
//! given another unit. Sizes are bytes, times are seconds since 1970-01-01 UTC. Nothing here
//! computes anything; the pool fills it in and `cli` prints it.

use serde::{Deserialize, Serialize};

/// Version of this structure in JSON.
pub const STATUS_SCHEMA: u32 = 1;

/// Everything about a pool at one moment.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct PoolStatus {
    /// [`STATUS_SCHEMA`] of the mendfs that wrote this.
    pub schema: u32,
    /// Pool UUID.
    pub uuid: String,
    /// Name given at mkfs; may be empty.
    pub label: String,
    /// Overall state.
    pub state: PoolState,
    /// Whether changes are refused.
    pub read_only: bool,
    /// Checksum algorithm by name.
    pub checksum: String,
    /// On-disk format version.
    pub format_version: u32,
    /// What an operator should do, one sentence each; empty if nothing.
    pub actions: Vec<String>,
    /// The process that serves the mount; none for a pool that is not mounted.
    pub server: Option<ServerStatus>,
    /// Every mirror, in the order of the pool's membership.
    pub mirrors: Vec<MirrorStatus>,
    /// Room in the pool.
    pub space: SpaceStatus,
    /// How full the journal is.
    pub journal: JournalStatus,
    /// The last checkpoint.
    pub checkpoint: CheckpointStatus,
    /// What recovery did at this mount; none if it has not run.
    pub recovery: Option<RecoveryStatus>,
    /// Bad copies found whose repair is not finished yet.
    pub repairs_pending: u64,
    /// Whether the neighbourhood of damage is being checked.
    pub inspecting: bool,
    /// The mirror that is being brought up to date; none if none is.
    #[serde(default)]
    pub resync: Option<ResyncStatus>,
    /// The scrub that runs or ran last; none if none ever did.
    #[serde(default)]
    pub scrub: Option<ScrubStatus>,
    /// Bad copies that are there now and could not be rewritten; another mirror has a good one.
    #[serde(default)]
    pub unrepaired_blocks: u64,
    /// Places of metadata that no mirror has a good copy of.
    #[serde(default)]
    pub damaged_metadata: Vec<String>,
    /// Files with blocks that no mirror has a good copy of.
    pub damaged: Vec<DamagedFile>,
}

/// How bringing a mirror up to date goes on.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct ResyncStatus {
    /// Directory of the mirror.
    pub mirror: String,
    /// What is copied now: `data`, `gaps`, `index` or `journal`.
    pub phase: String,
    /// When this run began.
    pub started: i64,
    /// Bytes that were gone through.
    pub done_bytes: u64,
    /// Bytes to go through, about: what is written meanwhile is not counted.
    pub total_bytes: u64,
    /// Bytes that were written to the mirror, since they were missing or differed.
    pub moved_bytes: u64,
    /// Bytes gone through in a second, lately.
    pub rate: u64,
    /// Seconds left at that rate; none if nothing can be said.
    pub eta_seconds: Option<u64>,
}

/// Overall state of a pool.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PoolState {
    /// Every mirror is in sync and nothing is damaged.
    #[default]
    Healthy,
    /// Everything is readable, but with less redundancy than there should be.
    Degraded,
    /// Some data has no good copy left.
    Damaged,
    /// The pool stopped; reads and writes fail.
    Failed,
}

/// The process that serves a mount.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct ServerStatus {
    /// Process number.
    pub pid: u32,
    /// Version of mendfs.
    pub version: String,
    /// When the pool was opened.
    pub started: i64,
}

/// State of one mirror.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum MirrorState {
    /// In sync; reads and writes go to it.
    #[default]
    Online,
    /// In sync, but it gave errors lately.
    Suspect,
    /// Taken out by the operator or by its errors.
    Offline,
    /// Catching up; writes go to it, reads do not.
    Resyncing,
    /// A member whose directory was not given or not found.
    Missing,
    /// Unusable.
    Failed,
}

/// One mirror.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct MirrorStatus {
    /// Directory; empty if it is not known where the mirror is.
    pub path: String,
    /// Mirror UUID.
    pub uuid: String,
    /// State.
    pub state: MirrorState,
    /// Why it is in that state; empty if there is nothing to say.
    #[serde(default)]
    pub cause: String,
    /// Reads that the filesystem below failed.
    pub read_errors: u64,
    /// Writes and syncs that the filesystem below failed.
    pub write_errors: u64,
    /// Reads that succeeded with bytes that did not verify.
    pub checksum_errors: u64,
    /// Bad copies that were rewritten and verified on the medium.
    pub repaired: u64,
    /// Bad copies that could not be rewritten.
    pub unrepairable: u64,
    /// Size of the filesystem below.
    pub total_bytes: u64,
    /// Free for us on the filesystem below.
    pub available_bytes: u64,
}

/// Room in the pool.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct SpaceStatus {
    /// Size: what the smallest mirror can hold.
    pub total_bytes: u64,
    /// Taken by the pool on each mirror.
    pub used_bytes: u64,
    /// Free for new data.
    pub available_bytes: u64,
    /// Inodes in use.
    pub inodes: u64,
}

/// How full the journal is.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct JournalStatus {
    /// Size of the journal file.
    pub size_bytes: u64,
    /// Bytes between its tail and its head.
    pub used_bytes: u64,
    /// LSN of the next record.
    pub next_lsn: u64,
    /// Every record below this LSN is durable on all mirrors.
    pub durable_lsn: u64,
}

/// The last checkpoint.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct CheckpointStatus {
    /// Every change below this LSN is in the index.
    pub lsn: u64,
    /// When it was completed; none if none was since the mount.
    pub finished: Option<i64>,
    /// Index rows changed since.
    pub dirty_rows: u64,
}

/// What recovery did at a mount.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct RecoveryStatus {
    /// How it ended: `clean` (nothing to do), `recovered` or `failed`.
    pub result: String,
    /// When it ended.
    pub finished: i64,
    /// How long it took.
    pub duration_ms: u64,
    /// Operations replayed from the journal.
    pub replayed: u64,
    /// Operations after the last durable one that had to be given up.
    pub discarded: u64,
    /// Unlinked files removed.
    pub orphans: u64,
    /// Everything else worth saying, one sentence each.
    pub notes: Vec<String>,
}

/// What a scrub is doing, or how it ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ScrubState {
    /// There never was one.
    #[default]
    None,
    /// It is at work.
    Running,
    /// It was told to wait, and goes on when it is told to.
    Paused,
    /// It has gone through everything.
    Finished,
    /// It was told to end.
    Cancelled,
}

impl ScrubState {
    /// The word for reports.
    pub const fn name(self) -> &'static str {
        match self {
            ScrubState::None => "none",
            ScrubState::Running => "running",
            ScrubState::Paused => "paused",
            ScrubState::Finished => "finished",
            ScrubState::Cancelled => "cancelled",
        }
    }
}

/// A scrub: the verification of everything stored, on every mirror and from the medium.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct ScrubStatus {
    /// What it is doing.
    pub state: ScrubState,
    /// When it began.
    pub started: i64,
    /// When it ended; none if it has not.
    pub finished: Option<i64>,
    /// Bytes checked, on each mirror.
    pub bytes_done: u64,
    /// Bytes to check, on each mirror; follows what is written and deleted meanwhile.
    pub bytes_total: u64,
    /// Whole percents done.
    pub percent: u8,
    /// Bytes per second on each mirror within the last half minute; none while it does not run.
    pub rate_bytes_per_s: Option<u64>,
    /// Seconds until it ends at this rate; none while nothing moves.
    pub eta_s: Option<u64>,
    /// Copies found bad.
    pub errors_found: u64,
    /// Of these, rewritten and verified on the medium.
    pub repaired: u64,
    /// Of these, still bad: no mirror had a good copy, or rewriting failed.
    pub unrepairable: u64,
    /// Limit that this run was given; none: that of the mount, or none at all.
    pub limit_bytes_per_s: Option<u64>,
}

/// A file with blocks that no mirror has a good copy of.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct DamagedFile {
    /// Inode number.
    pub inode: u64,
    /// Path from the root of the mount; empty if no name is known.
    pub path: String,
    /// Damaged ranges.
    pub ranges: Vec<DamagedRange>,
}

/// A damaged range of a file.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct DamagedRange {
    /// First byte.
    pub offset: u64,
    /// Number of bytes.
    pub length: u64,
}
