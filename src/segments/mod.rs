//! Segments: append-only files of extents with embedded checksums, the same on every mirror.
//!
//! [`Segments::append`] reserves a range of the open segment under a short lock and writes outside
//! it. Offsets are never written twice and segment numbers never given out twice, so whatever lies
//! at a place that a row points to is what was written there or damage. `accounts` knows how much
//! of each segment is live; `unsynced` what a sync has to see to.

mod accounts;
mod append;
mod copy;
mod sift;
mod unsynced;

pub use accounts::Accounts;
pub use append::{SEGMENT_SIZE, Segments, SegmentsConfig};
pub use unsynced::Images;
