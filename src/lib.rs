//! mendfs keeps every file in two or more ordinary directories, checks every byte against its
//! checksum before an application sees it, and repairs a bad copy from a good one.
//!
//! The modules below stand in layer order: each may use those after it, never those before it.
//! `tests/layers.rs` holds the sources to that. DESIGN.md tells the whole story.

pub mod backing;
pub mod cli;
pub mod format;
pub mod fuse;
pub mod index;
pub mod journal;
pub mod ledger;
pub mod mirrors;
pub mod pool;
pub mod segments;
pub mod services;
pub mod vfs;
