//! What the ledger records. The JSON of these types is an interface: fields may be added, never
//! renamed.

use serde::{Deserialize, Serialize};

/// One entry of the ledger.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    /// Seconds since 1970-01-01 UTC.
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
    /// A block was damaged on a mirror.
    Damage {
        /// Directory of the mirror.
        mirror: String,
        /// File in the mirror directory.
        stored_in: String,
        /// Offset of the block there, in bytes.
        stored_at: u64,
        /// Length of the block in bytes.
        length: u64,
        /// Path of the file it belongs to, from the root of the mount; none for metadata, and for
        /// a file that was deleted meanwhile.
        path: Option<String>,
        /// Inode of that file.
        inode: Option<u64>,
        /// Offset of the block in that file, in bytes.
        offset: Option<u64>,
        /// `unreadable`, `missing`, `short` or `checksum`.
        cause: String,
        /// `repaired`, `failed` (a good copy was served, but the bad one is still bad) or `lost`
        /// (no mirror has a good copy).
        outcome: String,
        /// Why repairing failed.
        detail: Option<String>,
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
    /// Incidents that came too fast to be recorded one by one.
    Folded {
        /// How many.
        count: u64,
    },
}
