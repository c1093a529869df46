//! Journal records.
//!
//! A record is a header of [`RECORD_HEADER_LEN`] bytes, its payload, and zeros up to a multiple of
//! [`RECORD_ALIGN`]. LSNs follow one another without gaps. The run number keeps a record of an
//! earlier life, left behind a torn tail, from being taken for the next one.

use super::BLOCK;
use super::checksum::Algorithm;
use super::codec::{Decoder, Encoder, FormatError};
use super::ids::{Lsn, PoolTag, SegmentNo};
use super::rows::{Key, Timestamp};
use super::sums::SumEntry;

/// Bytes of a record header.
pub const RECORD_HEADER_LEN: usize = 40;
/// Records begin at multiples of this many bytes.
pub const RECORD_ALIGN: usize = 8;
/// Largest payload in bytes.
pub const MAX_RECORD_PAYLOAD: usize = 16 << 20;

const MAGIC: u32 = u32::from_le_bytes(*b"MJRN");
const VERSION: u8 = 1;
const SUM_AT: usize = RECORD_HEADER_LEN - 8;
const KEY_MAX: usize = 1024;

/// Length of a record with this much payload, header and padding included.
pub const fn padded_record_len(payload: usize) -> usize {
    (RECORD_HEADER_LEN + payload).next_multiple_of(RECORD_ALIGN)
}

/// One row put (with a value) or deleted (without).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// The row.
    pub key: Key,
    /// Its new value, none to delete it.
    pub value: Option<Vec<u8>>,
}

/// The rows that one operation changed: absolute values, so that replaying twice does no harm.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct TxnBody {
    /// When it was done.
    pub time: Timestamp,
    /// What it changed, in order.
    pub changes: Vec<Change>,
}

/// Bytes of an extent that were not synced to their segment when the record was.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DataImage {
    /// The segment.
    pub segment: SegmentNo,
    /// Offset in the segment file.
    pub offset: u32,
    /// The bytes, header and checksums included.
    pub bytes: Vec<u8>,
}

/// A checkpoint is about to write index pages in place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CheckpointBegin {
    /// Number of the checkpoint.
    pub generation: u64,
    /// Page 0 of the index before it, empty if the index was.
    pub page_zero: Vec<u8>,
    /// The pages it will write, page 0 not among them.
    pub pages: Vec<u32>,
}

/// A checkpoint has written and synced its index pages.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CheckpointDone {
    /// Number of the checkpoint.
    pub generation: u64,
    /// Everything up to here is in the index.
    pub lsn: Lsn,
    /// Journal position of the record after that.
    pub tail: u64,
    /// Length of the index in bytes.
    pub index_len: u64,
    /// Root of the page-sum table after it.
    pub sums_root: u64,
    /// New entries of the table, by page.
    pub sums: Vec<(u32, SumEntry)>,
}

/// What a journal record says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Record {
    /// Rows changed by one operation.
    Txn(TxnBody),
    /// Data of a small extent.
    DataImage(DataImage),
    /// A checkpoint begins to write.
    CheckpointBegin(CheckpointBegin),
    /// A checkpoint is written.
    CheckpointDone(CheckpointDone),
    /// Everything up to this LSN was synced on all mirrors.
    Durable(Lsn),
}

impl Record {
    const fn kind(&self) -> u8 {
        match self {
            Record::Txn(_) => 1,
            Record::DataImage(_) => 2,
            Record::CheckpointBegin(_) => 3,
            Record::CheckpointDone(_) => 4,
            Record::Durable(_) => 5,
        }
    }

    /// Appends the whole record, padded, to `out`, and returns its length.
    ///
    /// # Panics
    /// If the payload is larger than [`MAX_RECORD_PAYLOAD`]: callers bound what they put in.
    pub fn append(&self, framing: Framing, lsn: Lsn, out: &mut Vec<u8>) -> usize {
        let payload = self.encode_payload();
        assert!(
            payload.len() <= MAX_RECORD_PAYLOAD,
            "journal record of {} bytes",
            payload.len()
        );
        let mut head = Encoder::with_capacity(RECORD_HEADER_LEN);
        head.u32(MAGIC)
            .u8(VERSION)
            .u8(self.kind())
            .u8(framing.algorithm.id())
            .u8(0);
        head.u32(framing.pool.0)
            .u32(framing.run)
            .u64(lsn.0)
            .u32(payload.len() as u32)
            .u32(0);
        let head = head.finish();
        let sum = framing.algorithm.sum64(&[&head, &payload]);
        let start = out.len();
        out.extend_from_slice(&head);
        out.extend_from_slice(&sum.to_le_bytes());
        out.extend_from_slice(&payload);
        out.resize(start + padded_record_len(payload.len()), 0);
        out.len() - start
    }

    fn encode_payload(&self) -> Vec<u8> {
        match self {
            Record::Txn(txn) => encode_txn(txn),
            Record::DataImage(image) => {
                let mut out = Encoder::with_capacity(16 + image.bytes.len());
                out.u64(image.segment.0)
                    .u32(image.offset)
                    .u32(image.bytes.len() as u32);
                out.bytes(&image.bytes);
                out.finish()
            }
            Record::CheckpointBegin(begin) => {
                let mut out = Encoder::with_capacity(BLOCK + 16 + begin.pages.len() * 4);
                out.u64(begin.generation).u32(begin.page_zero.len() as u32);
                out.bytes(&begin.page_zero).u32(begin.pages.len() as u32);
                begin.pages.iter().for_each(|page| {
                    out.u32(*page);
                });
                out.finish()
            }
            Record::CheckpointDone(done) => {
                let mut out = Encoder::with_capacity(48 + done.sums.len() * 20);
                out.u64(done.generation)
                    .u64(done.lsn.0)
                    .u64(done.tail)
                    .u64(done.index_len);
                out.u64(done.sums_root).u32(done.sums.len() as u32);
                for (page, entry) in &done.sums {
                    out.u32(*page);
                    entry.encode(&mut out);
                }
                out.finish()
            }
            Record::Durable(lsn) => lsn.0.to_le_bytes().to_vec(),
        }
    }

    fn decode_payload(kind: u8, payload: &[u8]) -> Result<Record, FormatError> {
        let mut from = Decoder::new(payload, "journal record");
        let record = match kind {
            1 => Record::Txn(decode_txn(&mut from)?),
            2 => {
                let (segment, offset) = (SegmentNo(from.u64()?), from.u32()?);
                let len = from.u32()? as usize;
                Record::DataImage(DataImage {
                    segment,
                    offset,
                    bytes: from.bytes(len)?.to_vec(),
                })
            }
            3 => {
                let generation = from.u64()?;
                let len = from.u32()? as usize;
                if len != 0 && len != BLOCK {
                    return Err(FormatError::Field {
                        field: "page 0 length",
                        value: len as u64,
                    });
                }
                let page_zero = from.bytes(len)?.to_vec();
                let count = from.u32()? as usize;
                let pages = from.bytes(count.saturating_mul(4))?;
                let pages = pages
                    .as_chunks()
                    .0
                    .iter()
                    .map(|page| u32::from_le_bytes(*page));
                let pages = pages.collect();
                Record::CheckpointBegin(CheckpointBegin {
                    generation,
                    page_zero,
                    pages,
                })
            }
            4 => Record::CheckpointDone(decode_done(&mut from)?),
            5 => Record::Durable(Lsn(from.u64()?)),
            other => {
                return Err(FormatError::Field {
                    field: "record kind",
                    value: other.into(),
                });
            }
        };
        from.finish()?;
        Ok(record)
    }
}

fn encode_txn(txn: &TxnBody) -> Vec<u8> {
    let size = |change: &Change| {
        8 + change.key.as_bytes().len() + change.value.as_ref().map_or(0, Vec::len)
    };
    let mut out = Encoder::with_capacity(16 + txn.changes.iter().map(size).sum::<usize>());
    out.i64(txn.time.seconds)
        .u32(txn.time.nanoseconds)
        .u32(txn.changes.len() as u32);
    for change in &txn.changes {
        let key = change.key.as_bytes();
        out.u8(u8::from(change.value.is_some()))
            .u8(0)
            .u16(key.len() as u16);
        if let Some(value) = &change.value {
            out.u32(value.len() as u32).bytes(key).bytes(value);
        } else {
            out.bytes(key);
        }
    }
    out.finish()
}

fn decode_txn(from: &mut Decoder<'_>) -> Result<TxnBody, FormatError> {
    let time = Timestamp {
        seconds: from.i64()?,
        nanoseconds: from.u32()?,
    };
    let count = from.u32()? as usize;
    // Each change takes at least five bytes, so a count that the bytes cannot hold is refused
    // before anything is allocated for it.
    if count > from.remaining() / 5 {
        return Err(FormatError::Field {
            field: "change count",
            value: count as u64,
        });
    }
    let mut changes = Vec::with_capacity(count);
    for _ in 0..count {
        let tag = from.u8()?;
        from.reserved(1)?;
        let key_len = usize::from(from.u16()?);
        if key_len > KEY_MAX {
            return Err(FormatError::Field {
                field: "key length",
                value: key_len as u64,
            });
        }
        let value_len = match tag {
            0 => None,
            1 => Some(from.u32()? as usize),
            other => {
                return Err(FormatError::Field {
                    field: "change tag",
                    value: other.into(),
                });
            }
        };
        let key = Key::from_bytes(from.bytes(key_len)?)?;
        let value = value_len
            .map(|len| from.bytes(len).map(<[u8]>::to_vec))
            .transpose()?;
        changes.push(Change { key, value });
    }
    Ok(TxnBody { time, changes })
}

fn decode_done(from: &mut Decoder<'_>) -> Result<CheckpointDone, FormatError> {
    let (generation, lsn, tail) = (from.u64()?, Lsn(from.u64()?), from.u64()?);
    let (index_len, sums_root) = (from.u64()?, from.u64()?);
    let count = from.u32()? as usize;
    if count > from.remaining() / 20 {
        return Err(FormatError::Field {
            field: "page sum count",
            value: count as u64,
        });
    }
    let mut sums = Vec::with_capacity(count);
    for _ in 0..count {
        sums.push((from.u32()?, SumEntry::decode(from)?));
    }
    Ok(CheckpointDone {
        generation,
        lsn,
        tail,
        index_len,
        sums_root,
        sums,
    })
}

/// What all records of one mount have in common.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Framing {
    /// Checksum algorithm.
    pub algorithm: Algorithm,
    /// The pool.
    pub pool: PoolTag,
    /// Number of the mount.
    pub run: u32,
}

/// A record header that was read but whose checksum, which covers the payload too, was not checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RecordHeader {
    kind: u8,
    algorithm: Algorithm,
    pool: PoolTag,
    sum: u64,
    /// Number of the mount that wrote it.
    pub run: u32,
    /// The record's LSN.
    pub lsn: Lsn,
    /// Bytes of payload that follow; not more than [`MAX_RECORD_PAYLOAD`].
    pub payload_len: usize,
}

impl RecordHeader {
    /// Reads a header from the start of `bytes`.
    ///
    /// # Errors
    /// [`FormatError`] if there is no plausible header.
    pub fn decode(bytes: &[u8]) -> Result<RecordHeader, FormatError> {
        const WHAT: &str = "journal record";
        let mut from = Decoder::new(bytes, WHAT);
        if from.u32()? != MAGIC {
            return Err(FormatError::Magic { what: WHAT });
        }
        let version = from.u8()?;
        if version != VERSION {
            return Err(FormatError::Version {
                what: WHAT,
                found: version.into(),
                known: VERSION.into(),
            });
        }
        let (kind, id) = (from.u8()?, from.u8()?);
        let algorithm = Algorithm::from_id(id).ok_or(FormatError::Field {
            field: "checksum algorithm",
            value: id.into(),
        })?;
        from.reserved(1)?;
        let (pool, run, lsn) = (PoolTag(from.u32()?), from.u32()?, Lsn(from.u64()?));
        let payload_len = from.u32()? as usize;
        from.reserved(4)?;
        let sum = from.u64()?;
        if payload_len > MAX_RECORD_PAYLOAD {
            return Err(FormatError::Field {
                field: "payload length",
                value: payload_len as u64,
            });
        }
        Ok(RecordHeader {
            kind,
            algorithm,
            pool,
            sum,
            run,
            lsn,
            payload_len,
        })
    }

    /// Length of the whole record with padding.
    pub const fn record_len(&self) -> usize {
        padded_record_len(self.payload_len)
    }

    /// Whether this can be the record that follows in the journal of `pool`.
    pub fn follows(&self, pool: PoolTag, lsn: Lsn, run: u32) -> bool {
        self.pool == pool && self.lsn == lsn && self.run >= run
    }

    /// Verifies and decodes the whole record; `bytes` begins with this header.
    ///
    /// # Errors
    /// [`FormatError`] if the checksum does not match or the payload makes no sense.
    pub fn verify(&self, bytes: &[u8]) -> Result<Record, FormatError> {
        let mut from = Decoder::new(bytes, "journal record");
        let head = from.bytes(SUM_AT)?;
        from.u64()?;
        let payload = from.bytes(self.payload_len)?;
        if self.algorithm.sum64(&[head, payload]) != self.sum {
            return Err(FormatError::Checksum {
                what: "journal record",
            });
        }
        Record::decode_payload(self.kind, payload)
    }
}

#[cfg(test)]
mod tests {
    use super::super::ids::Ino;
    use super::*;

    const FRAMING: Framing = Framing {
        algorithm: Algorithm::Crc32,
        pool: PoolTag(7),
        run: 3,
    };

    fn samples() -> Vec<Record> {
        let entry = SumEntry {
            sum: 1,
            generation: 2,
        };
        vec![
            Record::Txn(TxnBody {
                time: Timestamp {
                    seconds: -5,
                    nanoseconds: 6,
                },
                changes: vec![
                    Change {
                        key: Key::inode(Ino(1)),
                        value: Some(vec![1, 2, 3]),
                    },
                    Change {
                        key: Key::orphan(Ino(2)),
                        value: None,
                    },
                    Change {
                        key: Key::state(),
                        value: Some(Vec::new()),
                    },
                ],
            }),
            Record::DataImage(DataImage {
                segment: SegmentNo(1),
                offset: 512,
                bytes: vec![9; 700],
            }),
            Record::CheckpointBegin(CheckpointBegin {
                generation: 4,
                page_zero: vec![5; BLOCK],
                pages: vec![1, 5, 9],
            }),
            Record::CheckpointDone(CheckpointDone {
                generation: 4,
                lsn: Lsn(90),
                tail: 4096,
                index_len: 1 << 20,
                sums_root: 77,
                sums: vec![(0, entry), (9, entry)],
            }),
            Record::Durable(Lsn(100)),
        ]
    }

    #[test]
    fn records_come_back_and_every_flip_or_cut_is_refused() {
        for record in samples() {
            let mut bytes = Vec::new();
            let len = record.append(FRAMING, Lsn(42), &mut bytes);
            assert_eq!(len, bytes.len());
            assert!(len.is_multiple_of(RECORD_ALIGN));
            let header = RecordHeader::decode(&bytes).unwrap();
            assert_eq!(header.record_len(), len);
            assert!(header.follows(PoolTag(7), Lsn(42), 3));
            assert!(header.follows(PoolTag(7), Lsn(42), 2));
            assert!(!header.follows(PoolTag(7), Lsn(42), 4));
            assert!(!header.follows(PoolTag(7), Lsn(43), 3));
            assert!(!header.follows(PoolTag(8), Lsn(42), 3));
            assert_eq!(header.verify(&bytes), Ok(record));
            for at in 0..RECORD_HEADER_LEN + header.payload_len {
                let mut bad = bytes.clone();
                bad[at] ^= 0x10;
                let outcome = RecordHeader::decode(&bad).and_then(|header| header.verify(&bad));
                assert!(outcome.is_err(), "byte {at}");
                let cut = &bytes[..at];
                let outcome = RecordHeader::decode(cut).and_then(|header| header.verify(cut));
                assert!(outcome.is_err(), "cut at {at}");
            }
        }
    }

    #[test]
    fn the_durable_mark_has_its_golden_bytes() {
        let mut bytes = Vec::new();
        Record::Durable(Lsn(0x0102)).append(FRAMING, Lsn(9), &mut bytes);
        assert_eq!(&bytes[..4], b"MJRN");
        let mut head = [0_u8; 28];
        (head[0], head[1], head[2]) = (1, 5, 1); // version, kind, crc32
        (head[4], head[8], head[12], head[20]) = (7, 3, 9, 8); // pool, run, LSN, payload length
        assert_eq!(bytes[4..32], head);
        assert_eq!(&bytes[40..48], &[2, 1, 0, 0, 0, 0, 0, 0]);
    }

    #[test]
    fn a_count_that_the_bytes_cannot_hold_allocates_nothing() {
        let mut payload = vec![0; 12];
        payload.extend_from_slice(&u32::MAX.to_le_bytes());
        assert!(Record::decode_payload(1, &payload).is_err());
        let mut payload = vec![0; 40];
        payload.extend_from_slice(&u32::MAX.to_le_bytes());
        assert!(Record::decode_payload(4, &payload).is_err());
    }
}
