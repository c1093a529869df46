//! What the ledger records. The JSON of these types is an interface: fields may be added, never
//! renamed.

use serde::{Deserialize, Serialize};

/// One entry of the ledger.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    /// Its number: ascending, never given twice.
    pub number: u64,
    /// Seconds since 1970-01-01 UTC; of the first incident, if several are folded.
    pub time: i64,
    /// Nanoseconds within that second.
    pub nanoseconds: u32,
    /// What happened.
    #[serde(flatten)]
    pub what: What,
}

/// What happened.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum What {
    /// Blocks were damaged on a mirror.
    Damage(Damaged),
    /// Damage that no mirror could mend is gone.
    Fixed {
        /// Path of the file, if it has a name.
        path: Option<String>,
        /// Its inode; none if many files are told of together.
        inode: Option<u64>,
        /// Blocks.
        count: u64,
        /// `replaced` (overwritten, cut or deleted) or `readable` (a good copy was found again).
        how: String,
    },
    /// A mirror changed its state.
    Mirror {
        /// Directory of the mirror.
        mirror: String,
        /// Its new state.
        state: String,
        /// Why.
        cause: String,
    },
    /// Somebody deleted a file of a mirror while the pool was mounted; it was made anew, and what
    /// it held is checked and healed.
    Gone {
        /// Directory of the mirror.
        mirror: String,
        /// File in the mirror directory.
        stored_in: String,
    },
    /// A scrub began, was paused or resumed, was cancelled or has finished.
    Scrub {
        /// `running`, `paused`, `cancelled` or `finished`.
        state: String,
        /// When it began, in seconds since 1970-01-01 UTC.
        started: i64,
        /// When it ended.
        finished: Option<i64>,
        /// Bytes checked on each mirror.
        bytes_done: u64,
        /// Bytes to check on each mirror.
        bytes_total: u64,
        /// Copies found bad so far.
        errors_found: u64,
        /// Of these, rewritten and verified on the medium.
        repaired: u64,
        /// Of these, still bad.
        unrepairable: u64,
    },
    /// A mount had to recover.
    Recovery {
        /// Operations replayed.
        replayed: u64,
        /// Operations given up after the last durable one.
        discarded: u64,
        /// The rest of the report.
        notes: Vec<String>,
    },
    /// A mirror was brought up to date.
    Resync {
        /// Directory of the mirror.
        mirror: String,
        /// `started`, `done` or `stopped` (it goes on where it was).
        outcome: String,
        /// Bytes gone through.
        compared_bytes: u64,
        /// Bytes written to the mirror.
        moved_bytes: u64,
        /// Blocks that no mirror could supply.
        lost_blocks: u64,
    },
}

/// Blocks of one file on one mirror that were damaged in one way and met one fate; in a flood
/// blocks of many files.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Damaged {
    /// Directory of the mirror.
    pub mirror: String,
    /// What was damaged: `data`, `index`, `index.sums`, `journal` or `superblock`.
    pub kind: String,
    /// File in the mirror directory where the first of them lies; empty if that is not known.
    pub stored_in: String,
    /// Offset of the first of them there, in bytes.
    pub stored_at: u64,
    /// Path of the file they belong to, from the root of the mount; none for metadata, for a file
    /// without a name, and if they belong to several files.
    pub path: Option<String>,
    /// Inode of that file.
    pub inode: Option<u64>,
    /// Files concerned; 0 for metadata and for what deleted files had.
    pub files: u64,
    /// Damaged ranges: in the file if there is an inode, otherwise in `stored_in`. None if several
    /// files are concerned.
    pub ranges: Vec<Range>,
    /// Blocks that did not fit into `ranges`.
    pub not_listed: u64,
    /// Blocks in all: exact, however many.
    pub count: u64,
    /// Bytes in all.
    pub bytes: u64,
    /// Time of the last of them, in seconds since 1970.
    pub until: i64,
    /// `unreadable`, `missing`, `short` or `checksum`.
    pub cause: String,
    /// `repaired`, `failed` (a good copy was served, but the bad one is still bad) or `lost`
    /// (no mirror has a good copy).
    pub outcome: String,
    /// Why repairing failed.
    pub detail: Option<String>,
    /// Whether nothing of it is left by now.
    pub fixed: bool,
}

/// A range of bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Range {
    /// First byte.
    pub offset: u64,
    /// Number of bytes.
    pub length: u64,
}
