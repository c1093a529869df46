//! Rows of the index: keys, whose byte order is the order of iteration, and versioned values.
//!
//! Every row lives in one ordered key space; the first byte of a key is its table. Numbers in keys
//! are big-endian, so rows of one inode, directory or segment are neighbours.

use super::codec::{Decoder, Encoder, FormatError};
use super::ids::{Ino, Lsn, SegmentNo};
use super::{BLOCK_U64, MAX_EXTENT};

/// Longest file name in bytes.
pub const NAME_MAX: usize = 255;
/// Longest extended attribute name in bytes.
pub const XATTR_NAME_MAX: usize = 255;
/// Largest extended attribute value in bytes.
pub const XATTR_VALUE_MAX: usize = 65536;
/// Smallest readdir cookie of a stored entry; smaller ones are for "." and "..".
pub const DENTRY_COOKIE_FIRST: u64 = 256;

const ROW_VERSION: u8 = 1;
/// Longest promised range in bytes: more than any disk holds, and sums of it stay numbers.
const PROMISE_MAX: u64 = 1 << 60;

/// The tables of the index; the number is the first byte of each key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Table {
    /// Inodes by number.
    Inode,
    /// Directory entries by (parent, cookie).
    Dentry,
    /// Extended attributes by (inode, name).
    Xattr,
    /// File extents by (inode, file offset).
    Extent,
    /// Who owns which bytes of a segment, by (segment, offset, inode, file offset).
    Reverse,
    /// Inodes without a name that are still open, or half truncated, by number.
    Orphan,
    /// Live bytes of each segment.
    Segment,
    /// Counters of the pool.
    State,
    /// Ranges of files that have no data and were promised space, by (inode, file offset).
    Promise,
}

impl Table {
    /// Every table.
    pub const ALL: [Table; 9] = [
        Table::Inode,
        Table::Dentry,
        Table::Xattr,
        Table::Extent,
        Table::Reverse,
        Table::Orphan,
        Table::Segment,
        Table::State,
        Table::Promise,
    ];

    const fn tag(self) -> u8 {
        match self {
            Table::Inode => 1,
            Table::Dentry => 2,
            Table::Xattr => 3,
            Table::Extent => 4,
            Table::Reverse => 5,
            Table::Orphan => 6,
            Table::Segment => 7,
            Table::State => 8,
            Table::Promise => 9,
        }
    }
}

/// A key of the index.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key(Vec<u8>);

impl Key {
    fn build(table: Table, numbers: &[u64], tail: &[u8]) -> Key {
        let mut bytes = Vec::with_capacity(1 + numbers.len() * 8 + tail.len());
        bytes.push(table.tag());
        numbers
            .iter()
            .for_each(|number| bytes.extend_from_slice(&number.to_be_bytes()));
        bytes.extend_from_slice(tail);
        Key(bytes)
    }

    /// A key as it was stored.
    ///
    /// # Errors
    /// [`FormatError`] if the first byte names no table.
    pub fn from_bytes(bytes: &[u8]) -> Result<Key, FormatError> {
        let tag = Decoder::new(bytes, "index key").u8()?;
        if Table::ALL.iter().any(|table| table.tag() == tag) {
            Ok(Key(bytes.to_vec()))
        } else {
            Err(FormatError::Field {
                field: "table",
                value: u64::from(tag),
            })
        }
    }

    /// The bytes that order and identify the row.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// The table, or none for bytes that no constructor made.
    pub fn table(&self) -> Option<Table> {
        let tag = *self.0.first()?;
        Table::ALL.into_iter().find(|table| table.tag() == tag)
    }

    /// First key of a table, inclusive.
    pub fn table_start(table: Table) -> Key {
        Key(vec![table.tag()])
    }

    /// End of a table, exclusive.
    pub fn table_end(table: Table) -> Key {
        Key(vec![table.tag() + 1])
    }

    /// Row of an inode.
    pub fn inode(ino: Ino) -> Key {
        Key::build(Table::Inode, &[ino.0], &[])
    }

    /// Row of a directory entry.
    pub fn dentry(parent: Ino, cookie: u64) -> Key {
        Key::build(Table::Dentry, &[parent.0, cookie], &[])
    }

    /// End (exclusive) of the entries of a directory.
    pub fn dentry_end(parent: Ino) -> Key {
        Key::build(Table::Dentry, &[parent.0.saturating_add(1)], &[])
    }

    /// Row of an extended attribute.
    pub fn xattr(ino: Ino, name: &[u8]) -> Key {
        Key::build(Table::Xattr, &[ino.0], name)
    }

    /// Start (inclusive) of the attributes of an inode; [`Key::xattr_end`] is the end.
    pub fn xattr_start(ino: Ino) -> Key {
        Key::build(Table::Xattr, &[ino.0], &[])
    }

    /// End (exclusive) of the attributes of an inode.
    pub fn xattr_end(ino: Ino) -> Key {
        Key::build(Table::Xattr, &[ino.0.saturating_add(1)], &[])
    }

    /// Row of an extent.
    pub fn extent(ino: Ino, offset: u64) -> Key {
        Key::build(Table::Extent, &[ino.0, offset], &[])
    }

    /// End (exclusive) of the extents of an inode.
    pub fn extent_end(ino: Ino) -> Key {
        Key::build(Table::Extent, &[ino.0.saturating_add(1)], &[])
    }

    /// Row of an owner of segment bytes.
    pub fn reverse(segment: SegmentNo, offset: u32, ino: Ino, file_offset: u64) -> Key {
        Key::build(
            Table::Reverse,
            &[segment.0, u64::from(offset), ino.0, file_offset],
            &[],
        )
    }

    /// First possible owner row at or after a place in a segment.
    pub fn reverse_at(segment: SegmentNo, offset: u32) -> Key {
        Key::build(Table::Reverse, &[segment.0, u64::from(offset)], &[])
    }

    /// End (exclusive) of the owner rows of a segment.
    pub fn reverse_end(segment: SegmentNo) -> Key {
        Key::build(Table::Reverse, &[segment.0.saturating_add(1)], &[])
    }

    /// Row of an orphan.
    pub fn orphan(ino: Ino) -> Key {
        Key::build(Table::Orphan, &[ino.0], &[])
    }

    /// Row of a segment.
    pub fn segment(segment: SegmentNo) -> Key {
        Key::build(Table::Segment, &[segment.0], &[])
    }

    /// Row of a range that was promised space.
    pub fn promise(ino: Ino, offset: u64) -> Key {
        Key::build(Table::Promise, &[ino.0, offset], &[])
    }

    /// End (exclusive) of the promised ranges of an inode.
    pub fn promise_end(ino: Ino) -> Key {
        Key::build(Table::Promise, &[ino.0.saturating_add(1)], &[])
    }

    /// The one row of pool counters.
    pub fn state() -> Key {
        Key::build(Table::State, &[], &[])
    }

    fn numbers<const N: usize>(&self, table: Table) -> Result<[u64; N], FormatError> {
        let mut decoder = Decoder::new(&self.0, "index key");
        let tag = decoder.u8()?;
        if tag != table.tag() {
            return Err(FormatError::Identity {
                what: "table",
                found: u64::from(tag),
                expected: u64::from(table.tag()),
            });
        }
        let mut numbers = [0; N];
        for number in &mut numbers {
            *number = u64::from_be_bytes(decoder.array()?);
        }
        Ok(numbers)
    }

    /// Inode number in an inode, orphan, extended attribute or extent key.
    ///
    /// # Errors
    /// [`FormatError`] if the key is of another table or cut short.
    pub fn ino(&self, table: Table) -> Result<Ino, FormatError> {
        self.numbers::<1>(table).map(|[ino]| Ino(ino))
    }

    /// (parent, cookie) of a directory entry key.
    ///
    /// # Errors
    /// [`FormatError`] if the key is of another table or cut short.
    pub fn dentry_parts(&self) -> Result<(Ino, u64), FormatError> {
        self.numbers(Table::Dentry)
            .map(|[parent, cookie]| (Ino(parent), cookie))
    }

    /// (inode, file offset) of an extent key.
    ///
    /// # Errors
    /// [`FormatError`] if the key is of another table or cut short.
    pub fn extent_parts(&self) -> Result<(Ino, u64), FormatError> {
        self.numbers(Table::Extent)
            .map(|[ino, offset]| (Ino(ino), offset))
    }

    /// (inode, file offset) of the key of a promised range.
    ///
    /// # Errors
    /// [`FormatError`] if the key is of another table or cut short.
    pub fn promise_parts(&self) -> Result<(Ino, u64), FormatError> {
        self.numbers(Table::Promise)
            .map(|[ino, offset]| (Ino(ino), offset))
    }

    /// Name in an extended attribute key.
    ///
    /// # Errors
    /// [`FormatError`] if the key is of another table or cut short.
    pub fn xattr_name(&self) -> Result<&[u8], FormatError> {
        self.numbers::<1>(Table::Xattr)?;
        self.0.get(9..).ok_or(FormatError::Short {
            what: "index key",
            need: 9,
            have: self.0.len(),
        })
    }

    /// (segment, offset, inode, file offset) of a reverse key.
    ///
    /// # Errors
    /// [`FormatError`] if the key is of another table, cut short, or has an offset over 32 bits.
    pub fn reverse_parts(&self) -> Result<(SegmentNo, u32, Ino, u64), FormatError> {
        let [segment, offset, ino, file_offset] = self.numbers(Table::Reverse)?;
        let offset = u32::try_from(offset).map_err(|_| FormatError::Field {
            field: "segment offset",
            value: offset,
        })?;
        Ok((SegmentNo(segment), offset, Ino(ino), file_offset))
    }

    /// Number in a segment key.
    ///
    /// # Errors
    /// [`FormatError`] if the key is of another table or cut short.
    pub fn segment_no(&self) -> Result<SegmentNo, FormatError> {
        self.numbers::<1>(Table::Segment)
            .map(|[segment]| SegmentNo(segment))
    }
}

fn check_version(decoder: &mut Decoder<'_>, what: &'static str) -> Result<(), FormatError> {
    match decoder.u8()? {
        ROW_VERSION => Ok(()),
        found => Err(FormatError::Version {
            what,
            found: u32::from(found),
            known: u32::from(ROW_VERSION),
        }),
    }
}

/// A point in time: seconds since 1970-01-01 UTC (negative before) and nanoseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Timestamp {
    /// Whole seconds, rounded down.
    pub seconds: i64,
    /// Nanoseconds, 0 to 999 999 999.
    pub nanoseconds: u32,
}

impl Timestamp {
    fn encode(self, encoder: &mut Encoder) {
        encoder.i64(self.seconds).u32(self.nanoseconds);
    }

    fn decode(decoder: &mut Decoder<'_>) -> Result<Timestamp, FormatError> {
        let (seconds, nanoseconds) = (decoder.i64()?, decoder.u32()?);
        if nanoseconds >= 1_000_000_000 {
            return Err(FormatError::Field {
                field: "nanoseconds",
                value: u64::from(nanoseconds),
            });
        }
        Ok(Timestamp {
            seconds,
            nanoseconds,
        })
    }
}

/// What an inode is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum FileKind {
    /// Regular file.
    Regular,
    /// Directory.
    Directory,
    /// Symbolic link.
    Symlink,
    /// Named pipe.
    Fifo,
    /// Unix domain socket.
    Socket,
    /// Character device.
    CharDevice,
    /// Block device.
    BlockDevice,
}

impl FileKind {
    const ALL: [FileKind; 7] = [
        FileKind::Regular,
        FileKind::Directory,
        FileKind::Symlink,
        FileKind::Fifo,
        FileKind::Socket,
        FileKind::CharDevice,
        FileKind::BlockDevice,
    ];

    /// The file type bits of `st_mode`, as in inode(7).
    pub const fn mode_bits(self) -> u32 {
        match self {
            FileKind::Fifo => 0o010_000,
            FileKind::CharDevice => 0o020_000,
            FileKind::Directory => 0o040_000,
            FileKind::BlockDevice => 0o060_000,
            FileKind::Regular => 0o100_000,
            FileKind::Symlink => 0o120_000,
            FileKind::Socket => 0o140_000,
        }
    }

    /// The kind that the file type bits of a mode name, if they name one.
    pub fn from_mode(mode: u32) -> Option<FileKind> {
        FileKind::ALL
            .into_iter()
            .find(|kind| kind.mode_bits() == mode & 0o170_000)
    }
}

/// An inode.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InodeRow {
    /// What it is.
    pub kind: FileKind,
    /// Permission bits, with set-user-ID, set-group-ID and sticky: 0 to 0o7777.
    pub permissions: u16,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Number of hard links; for a directory 2 and one for each subdirectory.
    pub nlink: u32,
    /// Size in bytes; for a directory the number of its entries.
    pub size: u64,
    /// Bytes of data held in extents.
    pub allocated: u64,
    /// Device number of a device file, else 0.
    pub rdev: u32,
    /// Last access.
    pub atime: Timestamp,
    /// Last change of content.
    pub mtime: Timestamp,
    /// Last change of the inode.
    pub ctime: Timestamp,
    /// Creation.
    pub btime: Timestamp,
    /// A directory that names it: always right for a directory, a hint for a file with several
    /// links. Used to name a damaged file.
    pub parent: Ino,
    /// LSN at the time of creation: with the number it makes a unique handle.
    pub generation: Lsn,
    /// Target of a symbolic link, else empty.
    pub target: Vec<u8>,
}

impl InodeRow {
    /// Encodes the row's value.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Encoder::with_capacity(128 + self.target.len());
        let mode = self.kind.mode_bits() | u32::from(self.permissions);
        out.u8(ROW_VERSION)
            .u32(mode)
            .u32(self.uid)
            .u32(self.gid)
            .u32(self.nlink);
        out.u64(self.size).u64(self.allocated).u32(self.rdev);
        for time in [self.atime, self.mtime, self.ctime, self.btime] {
            time.encode(&mut out);
        }
        out.u64(self.parent.0).u64(self.generation.0);
        out.u16(u16::try_from(self.target.len()).unwrap_or(u16::MAX))
            .bytes(&self.target);
        out.finish()
    }

    /// Decodes a row's value.
    ///
    /// # Errors
    /// [`FormatError`] for anything that [`InodeRow::encode`] does not make.
    pub fn decode(bytes: &[u8]) -> Result<InodeRow, FormatError> {
        let mut from = Decoder::new(bytes, "inode row");
        check_version(&mut from, "inode row")?;
        let mode = from.u32()?;
        let bad_mode = FormatError::Field {
            field: "mode",
            value: u64::from(mode),
        };
        let kind = FileKind::from_mode(mode).ok_or_else(|| bad_mode.clone())?;
        if mode & !0o177_777 != 0 {
            return Err(bad_mode);
        }
        let row = InodeRow {
            kind,
            permissions: (mode & 0o7777) as u16,
            uid: from.u32()?,
            gid: from.u32()?,
            nlink: from.u32()?,
            size: from.u64()?,
            allocated: from.u64()?,
            rdev: from.u32()?,
            atime: Timestamp::decode(&mut from)?,
            mtime: Timestamp::decode(&mut from)?,
            ctime: Timestamp::decode(&mut from)?,
            btime: Timestamp::decode(&mut from)?,
            parent: Ino(from.u64()?),
            generation: Lsn(from.u64()?),
            target: {
                let len = usize::from(from.u16()?);
                from.bytes(len)?.to_vec()
            },
        };
        from.finish()?;
        Ok(row)
    }
}

/// A directory entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DentryRow {
    /// The inode it names.
    pub ino: Ino,
    /// The inode's kind, so that readdir need not look it up.
    pub kind: FileKind,
    /// The name: 1 to [`NAME_MAX`] bytes, without `/` and NUL.
    pub name: Vec<u8>,
}

impl DentryRow {
    /// Encodes the row's value.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Encoder::with_capacity(16 + self.name.len());
        out.u8(ROW_VERSION)
            .u64(self.ino.0)
            .u32(self.kind.mode_bits());
        out.u16(u16::try_from(self.name.len()).unwrap_or(u16::MAX))
            .bytes(&self.name);
        out.finish()
    }

    /// Decodes a row's value.
    ///
    /// # Errors
    /// [`FormatError`] for anything that [`DentryRow::encode`] does not make of a valid entry.
    pub fn decode(bytes: &[u8]) -> Result<DentryRow, FormatError> {
        let mut from = Decoder::new(bytes, "directory entry");
        check_version(&mut from, "directory entry")?;
        let ino = Ino(from.u64()?);
        let mode = from.u32()?;
        let kind = FileKind::from_mode(mode).ok_or(FormatError::Field {
            field: "mode",
            value: u64::from(mode),
        })?;
        let len = usize::from(from.u16()?);
        let name = from.bytes(len)?.to_vec();
        if name.is_empty() || len > NAME_MAX || name.iter().any(|byte| matches!(byte, 0 | b'/')) {
            return Err(FormatError::Field {
                field: "name length",
                value: len as u64,
            });
        }
        from.finish()?;
        Ok(DentryRow { ino, kind, name })
    }
}

/// A piece of a file: where its blocks lie in a segment, and the checksum of each.
///
/// The file offset is in the key and a multiple of the block size. A row may be a slice of the
/// extent that was once written: overwriting and truncating cut rows at block boundaries, and
/// `len` may end within the last block.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExtentRow {
    /// Segment that holds the bytes.
    pub segment: SegmentNo,
    /// Offset of this row's first block in the segment file, in bytes.
    pub offset: u32,
    /// Bytes stored for this row. Only the last block may be shorter than a block.
    pub stored: u32,
    /// Bytes of the file that this row supplies: not more than `stored`; what lies beyond up to
    /// the next row reads as zeros.
    pub len: u32,
    /// Offset of the extent's header in the segment file, in bytes.
    pub header: u32,
    /// LSN at which the data was written.
    pub born: Lsn,
    /// One checksum for each block, [`super::Algorithm::width`] bytes each.
    pub sums: Vec<u8>,
}

impl ExtentRow {
    /// Number of blocks.
    pub const fn blocks(&self) -> usize {
        (self.stored as usize).div_ceil(super::BLOCK)
    }

    /// Stored bytes of block `block`: a whole block but for the last.
    pub fn block_len(&self, block: usize) -> usize {
        (self.stored as usize)
            .saturating_sub(block * super::BLOCK)
            .min(super::BLOCK)
    }

    /// Checksum of block `block`, empty if there is none.
    pub fn sum(&self, block: usize, width: usize) -> &[u8] {
        self.sums
            .get(block * width..(block + 1) * width)
            .unwrap_or(&[])
    }

    /// The row for blocks `from..to` of this one (`to` is cut to what there is).
    pub fn slice(&self, from: usize, to: usize, width: usize) -> ExtentRow {
        let start = (from * super::BLOCK) as u32;
        let end = (to * super::BLOCK) as u32;
        ExtentRow {
            segment: self.segment,
            offset: self.offset + start,
            stored: self.stored.min(end).saturating_sub(start),
            len: self.len.min(end).saturating_sub(start),
            header: self.header,
            born: self.born,
            sums: self
                .sums
                .get(from * width..(to * width).min(self.sums.len()))
                .unwrap_or(&[])
                .to_vec(),
        }
    }

    /// Encodes the row's value.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Encoder::with_capacity(40 + self.sums.len());
        out.u8(ROW_VERSION)
            .u64(self.segment.0)
            .u32(self.offset)
            .u32(self.stored)
            .u32(self.len);
        out.u32(self.header).u64(self.born.0).bytes(&self.sums);
        out.finish()
    }

    /// Decodes a row's value; `width` is the width of the pool's checksums.
    ///
    /// # Errors
    /// [`FormatError`] for anything that [`ExtentRow::encode`] does not make of a valid row.
    pub fn decode(bytes: &[u8], width: usize) -> Result<ExtentRow, FormatError> {
        let mut from = Decoder::new(bytes, "extent row");
        check_version(&mut from, "extent row")?;
        let row = ExtentRow {
            segment: SegmentNo(from.u64()?),
            offset: from.u32()?,
            stored: from.u32()?,
            len: from.u32()?,
            header: from.u32()?,
            born: Lsn(from.u64()?),
            sums: from.rest().to_vec(),
        };
        let invalid = |field, value: u32| {
            Err(FormatError::Field {
                field,
                value: value.into(),
            })
        };
        if row.stored == 0 || row.stored as usize > MAX_EXTENT {
            return invalid("stored length", row.stored);
        }
        if row.len == 0 || row.len > row.stored {
            return invalid("extent length", row.len);
        }
        if row.header >= row.offset || row.offset.checked_add(row.stored).is_none() {
            return invalid("extent offset", row.offset);
        }
        if row.sums.len() != row.blocks() * width {
            return invalid("checksum count", row.sums.len() as u32);
        }
        Ok(row)
    }

    /// File offset just past the blocks of this row, if it lies at `offset`.
    pub fn block_end(&self, offset: u64) -> u64 {
        offset + self.blocks() as u64 * BLOCK_U64
    }
}

/// An owner of bytes in a segment: the mirror image of an [`ExtentRow`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ReverseRow {
    /// Stored bytes, as in the extent row.
    pub stored: u32,
    /// Offset of the extent's header in the segment file.
    pub header: u32,
}

impl ReverseRow {
    /// Encodes the row's value.
    pub fn encode(self) -> Vec<u8> {
        let mut out = Encoder::with_capacity(9);
        out.u8(ROW_VERSION).u32(self.stored).u32(self.header);
        out.finish()
    }

    /// Decodes a row's value.
    ///
    /// # Errors
    /// [`FormatError`] for anything that [`ReverseRow::encode`] does not make.
    pub fn decode(bytes: &[u8]) -> Result<ReverseRow, FormatError> {
        let mut from = Decoder::new(bytes, "reverse row");
        check_version(&mut from, "reverse row")?;
        let row = ReverseRow {
            stored: from.u32()?,
            header: from.u32()?,
        };
        from.finish()?;
        Ok(row)
    }
}

/// A range of a file that has no data, and was promised the space for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PromiseRow {
    /// Bytes, whole blocks.
    pub len: u64,
}

impl PromiseRow {
    /// Encodes the row's value.
    pub fn encode(self) -> Vec<u8> {
        let mut out = Encoder::with_capacity(9);
        out.u8(ROW_VERSION).u64(self.len);
        out.finish()
    }

    /// Decodes a row's value.
    ///
    /// # Errors
    /// [`FormatError`] for anything that [`PromiseRow::encode`] does not make of a valid row.
    pub fn decode(bytes: &[u8]) -> Result<PromiseRow, FormatError> {
        let mut from = Decoder::new(bytes, "promise row");
        check_version(&mut from, "promise row")?;
        let len = from.u64()?;
        from.finish()?;
        if len == 0 || !len.is_multiple_of(BLOCK_U64) || len > PROMISE_MAX {
            return Err(FormatError::Field {
                field: "promised length",
                value: len,
            });
        }
        Ok(PromiseRow { len })
    }
}

/// What is known of a segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct SegmentRow {
    /// Stored bytes that extent rows point to.
    pub live: u64,
    /// Length of the segment file up to its last extent, in bytes.
    pub end: u32,
}

impl SegmentRow {
    /// Encodes the row's value.
    pub fn encode(self) -> Vec<u8> {
        let mut out = Encoder::with_capacity(13);
        out.u8(ROW_VERSION).u64(self.live).u32(self.end);
        out.finish()
    }

    /// Decodes a row's value.
    ///
    /// # Errors
    /// [`FormatError`] for anything that [`SegmentRow::encode`] does not make.
    pub fn decode(bytes: &[u8]) -> Result<SegmentRow, FormatError> {
        let mut from = Decoder::new(bytes, "segment row");
        check_version(&mut from, "segment row")?;
        let row = SegmentRow {
            live: from.u64()?,
            end: from.u32()?,
        };
        from.finish()?;
        Ok(row)
    }
}

/// Counters of the pool as of a checkpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StateRow {
    /// Next inode number to give out.
    pub next_ino: Ino,
    /// Next segment number to give out.
    pub next_segment: SegmentNo,
    /// Inodes in use.
    pub inodes: u64,
}

impl StateRow {
    /// Encodes the row's value.
    pub fn encode(self) -> Vec<u8> {
        let mut out = Encoder::with_capacity(25);
        out.u8(ROW_VERSION)
            .u64(self.next_ino.0)
            .u64(self.next_segment.0)
            .u64(self.inodes);
        out.finish()
    }

    /// Decodes a row's value.
    ///
    /// # Errors
    /// [`FormatError`] for anything that [`StateRow::encode`] does not make.
    pub fn decode(bytes: &[u8]) -> Result<StateRow, FormatError> {
        let mut from = Decoder::new(bytes, "state row");
        check_version(&mut from, "state row")?;
        let row = StateRow {
            next_ino: Ino(from.u64()?),
            next_segment: SegmentNo(from.u64()?),
            inodes: from.u64()?,
        };
        from.finish()?;
        Ok(row)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn inode() -> InodeRow {
        InodeRow {
            kind: FileKind::Symlink,
            permissions: 0o4755,
            uid: 1000,
            gid: 100,
            nlink: 2,
            size: 6,
            allocated: 0,
            rdev: 0,
            atime: Timestamp {
                seconds: -1,
                nanoseconds: 999_999_999,
            },
            mtime: Timestamp {
                seconds: 1,
                nanoseconds: 2,
            },
            ctime: Timestamp {
                seconds: 3,
                nanoseconds: 4,
            },
            btime: Timestamp {
                seconds: 5,
                nanoseconds: 6,
            },
            parent: Ino(1),
            generation: Lsn(7),
            target: b"target".to_vec(),
        }
    }

    fn extent() -> ExtentRow {
        ExtentRow {
            segment: SegmentNo(9),
            offset: 4096,
            stored: 3 * 4096 + 100,
            len: 3 * 4096 + 50,
            header: 3584,
            born: Lsn(77),
            sums: (0..16).collect(),
        }
    }

    #[test]
    fn rows_come_back_as_they_were() {
        assert_eq!(InodeRow::decode(&inode().encode()), Ok(inode()));
        assert_eq!(ExtentRow::decode(&extent().encode(), 4), Ok(extent()));
        let dentry = DentryRow {
            ino: Ino(5),
            kind: FileKind::Directory,
            name: vec![b'a', 0xff, b'.'],
        };
        assert_eq!(DentryRow::decode(&dentry.encode()), Ok(dentry));
        let reverse = ReverseRow {
            stored: 5,
            header: 6,
        };
        assert_eq!(ReverseRow::decode(&reverse.encode()), Ok(reverse));
        let segment = SegmentRow { live: 1, end: 2 };
        assert_eq!(SegmentRow::decode(&segment.encode()), Ok(segment));
        let state = StateRow {
            next_ino: Ino(2),
            next_segment: SegmentNo(3),
            inodes: 1,
        };
        assert_eq!(StateRow::decode(&state.encode()), Ok(state));
    }

    #[test]
    fn cut_rows_are_refused() {
        let (whole, extent) = (inode().encode(), extent().encode());
        for len in 0..whole.len() {
            assert!(InodeRow::decode(&whole[..len]).is_err(), "{len}");
        }
        for len in 0..extent.len() {
            assert!(ExtentRow::decode(&extent[..len], 4).is_err(), "{len}");
        }
    }

    #[test]
    fn a_slice_keeps_offsets_and_checksums_together() {
        let row = extent();
        let tail = row.slice(2, 4, 4);
        assert_eq!(
            (tail.offset, tail.stored, tail.len),
            (4096 + 8192, 4196, 4146)
        );
        assert_eq!(tail.sums, (8..16).collect::<Vec<u8>>());
        let head = row.slice(0, 1, 4);
        assert_eq!((head.offset, head.stored, head.len), (4096, 4096, 4096));
        assert_eq!(row.block_len(3), 100);
    }

    #[test]
    fn the_inode_row_has_its_golden_bytes() {
        let hex: String = inode()
            .encode()
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect();
        assert_eq!(
            hex,
            "01eda90000e803000064000000020000000600000000000000000000000000000000000000\
             ffffffffffffffffffc99a3b010000000000000002000000030000000000000004000000\
             05000000000000000600000001000000000000000700000000000000\
             0600746172676574"
        );
    }

    #[test]
    fn keys_sort_as_their_numbers() {
        assert!(Key::extent(Ino(1), 255) < Key::extent(Ino(1), 256));
        assert!(Key::extent(Ino(1), u64::MAX) < Key::extent_end(Ino(1)));
        assert!(Key::extent_end(Ino(1)) <= Key::extent(Ino(2), 0));
        assert!(Key::table_end(Table::Extent) <= Key::reverse(SegmentNo(0), 0, Ino(0), 0));
        let key = Key::reverse(SegmentNo(4), 5, Ino(6), 7);
        assert_eq!(key.reverse_parts(), Ok((SegmentNo(4), 5, Ino(6), 7)));
        assert!(key.extent_parts().is_err());
    }
}
