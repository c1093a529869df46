//! The health ledger: every incident, repair, change of a mirror's state and recovery, for people
//! and for programs, in time order; and which errors there are now.
//!
//! Each mirror directory holds a ledger of its own (a sled database), so that any mirror alone
//! still tells what happened. Writing is best effort: the ledger never delays or fails an
//! operation, and one that does not open is set aside under another name, and a new one begun. It
//! is never needed to read a file.
//!
//! `fold` makes events of incidents, `store` keeps them.

mod event;
mod fold;
mod store;

pub use event::{Damaged, Event, Range, What};
pub use fold::{Folder, Occurrence};
pub use store::{Change, Ledger};
