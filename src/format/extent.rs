//! The header before each extent in a segment.
//!
//! On disk: this header of [`EXTENT_HEADER_LEN`] bytes, one checksum for each block of the payload,
//! padding, the payload. Reading a file does not need it, since the index row repeats the sums; it
//! makes a segment readable without the index and tells who owns a block.

use super::checksum::Algorithm;
use super::codec::{Decoder, Encoder, FormatError};
use super::ids::{Ino, Lsn, PoolTag};
use super::{BLOCK, MAX_EXTENT};

const MAGIC: u32 = u32::from_le_bytes(*b"MXT1");
const VERSION: u8 = 1;
/// Bytes of the fixed part of an extent header.
pub const EXTENT_HEADER_LEN: usize = 72;
const SUM_AT: usize = EXTENT_HEADER_LEN - 8;

/// A decoded extent header, with the block checksums that follow it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExtentHeader {
    /// Checksum algorithm of this extent.
    pub algorithm: Algorithm,
    /// The pool.
    pub pool: PoolTag,
    /// LSN of the journal when the data was written.
    pub born: Lsn,
    /// The file.
    pub ino: Ino,
    /// Offset in the file, in bytes.
    pub file_offset: u64,
    /// Offset of the payload from the start of this header, in bytes: less than a block of padding
    /// lies before it.
    pub payload_at: u32,
    /// Bytes of payload.
    pub stored: u32,
    /// One checksum for each block of payload.
    pub sums: Vec<u8>,
}

impl ExtentHeader {
    /// Length of the header with the checksums of `stored` bytes of payload.
    pub const fn len_for(algorithm: Algorithm, stored: usize) -> usize {
        EXTENT_HEADER_LEN + stored.div_ceil(BLOCK) * algorithm.width()
    }

    /// Encodes header and checksums, padded with zeros up to `payload_at`.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Encoder::with_capacity(self.payload_at as usize);
        // Flags and the length before compression or encryption are for later versions.
        out.u32(MAGIC)
            .u8(VERSION)
            .u8(self.algorithm.id())
            .u16(0)
            .u32(self.pool.0);
        out.u32(self.payload_at)
            .u64(self.born.0)
            .u64(self.ino.0)
            .u64(self.file_offset);
        out.u32(self.stored).u32(self.stored).u64(0).u64(0);
        let head = out.finish();
        let sum = self.algorithm.sum64(&[&head, &self.sums]);
        let mut bytes = head;
        bytes.extend_from_slice(&sum.to_le_bytes());
        bytes.extend_from_slice(&self.sums);
        if bytes.len() < self.payload_at as usize {
            bytes.resize(self.payload_at as usize, 0);
        }
        bytes
    }

    /// Decodes a header and the checksums behind it from the start of `bytes`.
    ///
    /// # Errors
    /// [`FormatError`] for anything that is not an intact header.
    pub fn decode(bytes: &[u8]) -> Result<ExtentHeader, FormatError> {
        const WHAT: &str = "extent header";
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
        let id = from.u8()?;
        let algorithm = Algorithm::from_id(id).ok_or(FormatError::Field {
            field: "checksum algorithm",
            value: id.into(),
        })?;
        from.reserved(2)?;
        let (pool, payload_at) = (PoolTag(from.u32()?), from.u32()?);
        let (born, ino, file_offset) = (Lsn(from.u64()?), Ino(from.u64()?), from.u64()?);
        let (stored, raw) = (from.u32()?, from.u32()?);
        from.reserved(16)?;
        let sum = from.u64()?;
        let blocks = (stored as usize).div_ceil(BLOCK);
        if stored == 0 || stored as usize > MAX_EXTENT || raw != stored {
            return Err(FormatError::Field {
                field: "stored length",
                value: stored.into(),
            });
        }
        let sums = from.bytes(blocks * algorithm.width())?;
        let end = EXTENT_HEADER_LEN + sums.len();
        if !(end..end + BLOCK).contains(&(payload_at as usize)) {
            return Err(FormatError::Field {
                field: "payload offset",
                value: payload_at.into(),
            });
        }
        let head = bytes.get(..SUM_AT).unwrap_or(&[]);
        if algorithm.sum64(&[head, sums]) != sum {
            return Err(FormatError::Checksum { what: WHAT });
        }
        let sums = sums.to_vec();
        Ok(ExtentHeader {
            algorithm,
            pool,
            born,
            ino,
            file_offset,
            payload_at,
            stored,
            sums,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_comes_back_and_every_flip_is_refused() {
        for algorithm in Algorithm::ALL {
            let payload = vec![7_u8; BLOCK + 5];
            let mut sums = Vec::new();
            payload
                .chunks(BLOCK)
                .for_each(|block| algorithm.append(block, &mut sums));
            let header = ExtentHeader {
                algorithm,
                pool: PoolTag(1),
                born: Lsn(2),
                ino: Ino(3),
                file_offset: 4096,
                payload_at: 512,
                stored: payload.len() as u32,
                sums,
            };
            let bytes = header.encode();
            assert_eq!(bytes.len(), 512);
            assert_eq!(ExtentHeader::decode(&bytes), Ok(header.clone()));
            let used = ExtentHeader::len_for(algorithm, payload.len());
            for at in 0..used {
                let mut bad = bytes.clone();
                bad[at] ^= 1;
                assert!(ExtentHeader::decode(&bad).is_err(), "byte {at}");
                assert!(ExtentHeader::decode(&bytes[..at]).is_err(), "cut at {at}");
            }
        }
    }
}
