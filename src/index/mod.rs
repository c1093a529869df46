//! The index: every row of metadata, in an ordered key-value database over verified pages.
//!
//! The database is redb. Its pages go through `pages`, our storage backend: mirrored, verified
//! on every read against the page-sum table (`sums`) and repaired like data. In front of it the
//! `overlay` holds what changed since the last checkpoint, so that an operation costs no database
//! commit; lookups go active, frozen, database.
//!
//! Between two checkpoints nothing is written to the index. A checkpoint goes in steps that the
//! pool drives, because the journal must speak between them:
//!
//! 1. [`Index::freeze`]: the active rows become the frozen rows; new ones go to a fresh map.
//! 2. [`Index::prepare`]: the frozen rows are committed to redb, whose page writes stay in memory.
//! 3. The journal makes `CheckpointBegin` durable: old page 0 and the list of pages.
//! 4. [`Index::write_pages`]: the pages go to their places and are synced. redb puts a commit's
//!    pages where the commit before has free space, so only page 0 overwrites anything that counts.
//! 5. The journal makes `CheckpointDone` durable: the new page sums and their root.
//! 6. [`Index::publish`]: the page sums go to disk, the frozen rows are dropped.
//!
//! A crash before 5 leaves the commit before, once page 0 is put back from the journal; after 5 the
//! new one, once the sums are put in from the journal.

mod database;
mod overlay;
mod pages;
mod sums;
mod txn;

pub(crate) use database::IndexConfig;
pub use database::{Index, IndexError, Interrupted};
pub use txn::{Freed, SegmentDelta, Txn};
