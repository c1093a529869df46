//! The rows that one operation puts and deletes, and what follows from them.
//!
//! Extent rows and their mirror images in the reverse table only change together, through
//! [`Txn::link_extent`] and [`Txn::unlink_extent`], which also keep the live bytes of segments.

use std::collections::BTreeMap;

use crate::format::{Change, ExtentRow, Ino, InodeRow, Key, PromiseRow, ReverseRow, SegmentNo};

/// A range of a segment that a row no longer points to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Freed {
    /// The segment.
    pub segment: SegmentNo,
    /// Offset of the first byte.
    pub offset: u32,
    /// Bytes.
    pub len: u32,
    /// Offset of the header of the extent it was a part of.
    pub header: u32,
}

/// How much of a segment became live, or dead if negative, in bytes.
pub type SegmentDelta = (SegmentNo, i64);

/// The row changes of one operation. They become visible and durable together or not at all.
#[derive(Debug, Default)]
pub struct Txn {
    changes: Vec<Change>,
    live: BTreeMap<SegmentNo, i64>,
    freed: Vec<Freed>,
    promised: Vec<(Ino, i64)>,
    inodes: i64,
}

impl Txn {
    /// An empty transaction.
    pub fn new() -> Txn {
        Txn::default()
    }

    /// Whether nothing changes.
    pub const fn is_empty(&self) -> bool {
        self.changes.is_empty()
    }

    /// Row changes so far.
    pub const fn len(&self) -> usize {
        self.changes.len()
    }

    /// Puts a row.
    pub fn put(&mut self, key: Key, value: Vec<u8>) {
        self.changes.push(Change {
            key,
            value: Some(value),
        });
    }

    /// Deletes a row; it is fine if there is none.
    pub fn delete(&mut self, key: Key) {
        self.changes.push(Change { key, value: None });
    }

    /// Puts the row of an inode that exists.
    pub fn put_inode(&mut self, ino: Ino, row: &InodeRow) {
        self.put(Key::inode(ino), row.encode());
    }

    /// Puts the row of a new inode.
    pub fn create_inode(&mut self, ino: Ino, row: &InodeRow) {
        self.inodes += 1;
        self.put_inode(ino, row);
    }

    /// Deletes the row of an inode that exists.
    pub fn delete_inode(&mut self, ino: Ino) {
        self.inodes -= 1;
        self.delete(Key::inode(ino));
    }

    /// Makes bytes of a segment the content of a file from `offset` on.
    pub fn link_extent(&mut self, ino: Ino, offset: u64, row: &ExtentRow) {
        *self.live.entry(row.segment).or_default() += i64::from(row.stored);
        self.put(Key::extent(ino, offset), row.encode());
        let reverse = ReverseRow {
            stored: row.stored,
            header: row.header,
        };
        self.put(
            Key::reverse(row.segment, row.offset, ino, offset),
            reverse.encode(),
        );
    }

    /// Takes a row off a file: `row` as it stands at `offset` now. The bytes are free once the last
    /// row that points to them has gone.
    pub fn unlink_extent(&mut self, ino: Ino, offset: u64, row: &ExtentRow) {
        *self.live.entry(row.segment).or_default() -= i64::from(row.stored);
        self.freed.push(Freed {
            segment: row.segment,
            offset: row.offset,
            len: row.stored,
            header: row.header,
        });
        self.delete(Key::extent(ino, offset));
        self.delete(Key::reverse(row.segment, row.offset, ino, offset));
    }

    /// Promises space for the blocks `start..end` of a file, which hold no data and were promised
    /// none.
    pub fn promise(&mut self, ino: Ino, start: u64, end: u64) {
        let len = end.saturating_sub(start);
        self.promised.push((ino, len.cast_signed()));
        self.put(Key::promise(ino, start), PromiseRow { len }.encode());
    }

    /// Takes back a promise: the row as it stands now.
    pub fn unpromise(&mut self, ino: Ino, start: u64, end: u64) {
        let len = end.saturating_sub(start);
        self.promised.push((ino, -len.cast_signed()));
        self.delete(Key::promise(ino, start));
    }

    /// How many more bytes are promised to which files.
    pub fn promised(&self) -> &[(Ino, i64)] {
        &self.promised
    }

    /// The parts: changes, live bytes by segment, freed ranges, change of the number of inodes.
    pub fn into_parts(self) -> (Vec<Change>, Vec<SegmentDelta>, Vec<Freed>, i64) {
        (
            self.changes,
            self.live.into_iter().collect(),
            self.freed,
            self.inodes,
        )
    }
}
