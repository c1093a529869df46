//! Bytes on disk: encoding, decoding and checksums, and nothing else.
//!
//! Every structure that lies in a mirror directory is described in one file here: the superblock,
//! the journal records, the extent header of a segment, the page-sum table and the rows of the
//! index. The functions are pure: no I/O, no clock, no policy. All integers are little-endian,
//! except in index keys, which are big-endian so that their byte order is their numeric order.
//!
//! Decoders parse whatever a broken disk hands them. They return a [`FormatError`] for everything
//! that the disk can hold and never panic, index out of bounds, or allocate by a length that they
//! have not checked against the bytes at hand. `fuzz/` runs them on arbitrary input.
#![cfg_attr(
    not(test),
    deny(clippy::indexing_slicing, clippy::unwrap_used, clippy::expect_used)
)]

mod checksum;
mod codec;
mod extent;
mod ids;
mod record;
mod rows;
mod sums;
mod superblock;
pub mod text;

pub use checksum::Algorithm;
pub use codec::{Decoder, Encoder, FormatError};
pub use extent::{EXTENT_HEADER_LEN, ExtentHeader};
pub use ids::{Epoch, Ino, Lsn, PoolTag, SegmentNo, Uuid};
pub use record::{
    Change, CheckpointBegin, CheckpointDone, DataImage, Framing, MAX_RECORD_PAYLOAD, RECORD_ALIGN,
    RECORD_HEADER_LEN, Record, RecordHeader, TxnBody, padded_record_len,
};
pub use rows::{
    DENTRY_COOKIE_FIRST, DentryRow, ExtentRow, FileKind, InodeRow, Key, NAME_MAX, PromiseRow,
    ReverseRow, SegmentRow, StateRow, Table, Timestamp, XATTR_NAME_MAX, XATTR_VALUE_MAX,
};
pub use sums::{SUMS_PER_BLOCK, SumEntry, SumsBlock};
pub use superblock::{
    CheckpointRef, FORMAT_VERSION, JournalRef, MAX_MIRRORS, Member, MemberState, SUPER_SLOT_LEN,
    Superblock,
};

/// Bytes covered by one block checksum in a file extent, and the size of an index page.
pub const BLOCK: usize = 4096;
/// [`BLOCK`] as the type that file offsets have.
pub const BLOCK_U64: u64 = BLOCK as u64;
/// Largest payload of one extent, in bytes.
pub const MAX_EXTENT: usize = 1 << 20;
