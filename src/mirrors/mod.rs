//! The set of mirrors: who belongs to it, writing to all, reading from one that verifies, repair.
//!
//! [`MirrorSet`] is what the layers above write to and read from; they never see a single mirror's
//! directory. It knows files, offsets and checksums, and nothing of inodes.
//!
//! - `decide`: which copy wins, as a pure function of what was read.
//! - `read`: verified reads that fall back from mirror to mirror.
//! - `write`: fan-out writes and syncs; what happens when one mirror fails.
//! - `repair`: rewriting a bad copy and reading it back from the medium.
//! - `membership`: superblocks, epochs, and who may speak at mount.
//!
//! Invariant: bytes from a mirror reach a caller only after `verify` accepted them, and a mirror
//! whose write or sync failed is out, durably on all others, before that write is acknowledged.

pub mod decide;
pub mod membership;
mod read;
mod repair;
mod set;
mod write;

pub use decide::{Damage, Outcome, Verdict};
pub use membership::{Candidate, Choice, OpenError, Standing, choose, read_superblock};
pub use read::{BadBlock, Mend, Place};
pub use repair::{Incident, Resolution};
pub use set::{Counters, Mirror, MirrorId, MirrorSet, MirrorState, Witness};
pub use write::MirrorError;
