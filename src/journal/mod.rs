//! The journal: a circular log, the same bytes at the same offsets on every mirror.
//!
//! [`Journal`] takes records, writes them out in batches and makes them durable. [`scan`] reads the
//! log back at mount, taking each record from any mirror that has it intact; [`level`] gives it to
//! those that have not, once [`look_behind`] has found that the log ends in a torn tail and not in
//! damage.
//!
//! Positions count up for ever; the offset in the file is the remainder by the size. Records may
//! wrap around the end. The log ends at the first LSN that is valid nowhere; what lies behind that
//! from an earlier lap or an earlier mount has a lower LSN or a lower run number.

mod log;
mod replay;

pub use log::{Appended, Journal, JournalConfig};
pub use replay::{JournalDamaged, LogEnd, level, look_behind, scan};
