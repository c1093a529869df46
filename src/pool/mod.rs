//! The pool: opens, recovers, commits, checkpoints and closes; the only place that knows the order
//! of things.
//!
//! An operation of the layer above goes so: [`Pool::begin`] waits for room, with no lock held;
//! [`Pool::store`] writes data to segments, where nothing points to it yet; [`Pool::commit`] puts
//! the rows into the journal's buffer and makes them visible, under one short lock; and
//! [`Pool::sync`], when somebody asks for it, makes everything so far durable.
//!
//! Why a crash leaves a prefix of history: LSNs follow the order of commits, the journal is read
//! back without gaps, data is in place before the Txn that points to it (or verified to be, for
//! what nobody was promised), and rows are absolute values, so replaying from any checkpoint that
//! precedes them gives the same state.
//!
//! Locks, in the order in which they may be taken: checkpoint, commit, and below these the locks
//! inside journal, index and segments. The inode locks of `locks` belong to the layer above and
//! come before all of them.

mod check;
mod checkpoint;
mod commit;
mod copying;
mod create;
mod current;
mod data;
mod digest;
mod error;
mod incidents;
mod load;
mod locks;
mod members;
mod metrics;
mod open;
mod orders;
mod paths;
mod progress;
mod promises;
mod recover;
mod report;
mod scrub;
mod space;
pub mod status;
mod verify;

pub use check::{Checked, SegmentCursor};
pub use commit::{Cut, Intent, Pool};
pub use copying::CopiedOwner;
pub use create::{CreateError, CreateOptions, create};
pub use data::{PoolSpace, Room};
pub use digest::FileHealth;
pub use error::{PoolError, Result};
pub use load::{Load, Serving};
pub use locks::{ExclusiveGuard, SharedGuard};
pub use members::MemberError;
pub use metrics::{DamageCount, Figures, Histogram, Times};
pub use open::{
    Clock, CommitMode, MountError, Named, OpenDirectory, OpenOptions, Outside, system_clock,
};
pub use orders::{MemberAction, MemberAnswer, MemberOrder};
pub use progress::{Monotonic, Progress, monotonic};
pub use promises::Claim;
pub use recover::RecoveryReport;
pub use scrub::{Scrub, ScrubOrder, ScrubRefusal, ScrubRun, ScrubStage, Tally, parse_rate};
pub use space::SpaceWait;
pub use verify::Owned;

#[cfg(test)]
pub(crate) mod tests;
