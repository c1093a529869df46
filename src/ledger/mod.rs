//! The health ledger: every incident, repair, change of a mirror's state and recovery, for people
//! and for programs, in time order.
//!
//! Each mirror directory holds a ledger of its own (a sled database), so that any mirror alone
//! still tells what happened. Writing is best effort: the ledger never delays or fails an
//! operation, and one that does not open is set aside under another name, and a new one begun. It
//! is never needed to read a file.

mod event;
mod store;

pub use event::{Event, What};
pub use store::Ledger;
