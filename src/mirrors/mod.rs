//! The set of mirrors: who belongs to it, writing to all, reading from one that verifies, repair.
//!
//! [`MirrorSet`] is what the layers above write to and read from; they never see a single mirror's
//! directory. It knows files, offsets and checksums, and nothing of inodes.
//!
//! - `decide`: which copy wins, as a pure function of what was read.
//! - `read`: verified reads that fall back from mirror to mirror.
//! - `write`: fan-out writes and syncs; what happens when one mirror fails.
//! - `repair`: rewriting a bad copy and reading it back from the medium.
//! - `choose`: who may speak at mount, from the superblocks alone.
//! - `membership`: who belongs to the pool while it is open; epochs and superblocks.
//! - `patience`: how long a read waits for a mirror while others could answer.
//! - `health`: suspicion, the error budget, and which mirror a read goes to.
//! - `room`: mirrors that have no space left while others do, and directories that are gone.
//! - `target`: bringing one mirror up to date.
//! - `superblocks`: checking them.
//! - `survey`: what the media of all mirrors hold, for whoever compares them.
//!
//! Invariant: bytes from a mirror reach a caller only after `verify` accepted them, and a mirror
//! whose write or sync failed is out, durably on all others, before that write is acknowledged.

pub mod choose;
#[cfg(test)]
mod choose_table;
pub mod decide;
mod health;
pub mod membership;
mod parts;
mod patience;
mod read;
mod repair;
pub mod room;
mod set;
mod superblocks;
mod survey;
mod target;
mod write;

pub use choose::{Candidate, Choice, History, OpenError, Standing, choose, read_superblock};
pub use decide::{Damage, Outcome, Verdict, agree};
pub use health::READ_ERROR_BUDGET;
pub use membership::{MembershipError, Newcomer};
pub use parts::read_around;
pub use patience::READ_DEADLINE;
pub use read::{BadBlock, Mend, Place};
pub use repair::{Incident, Resolution};
pub use set::{Attached, Counters, Mirror, MirrorId, MirrorSet, MirrorState, Witness};
pub use survey::Scratch;
pub use target::{Copied, Target};
pub use write::MirrorError;
