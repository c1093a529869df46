//! Little-endian writing and bounds-checked reading of the structures on disk.

use thiserror::Error;

/// Why bytes from a disk are not the structure they should be.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum FormatError {
    /// The bytes end inside the structure.
    #[error("cut short: {what} needs {need} more bytes, {have} are left")]
    Short {
        /// What was being read.
        what: &'static str,
        /// Bytes needed.
        need: usize,
        /// Bytes left.
        have: usize,
    },
    /// The first bytes are not the structure's magic number.
    #[error("not a {what}: wrong magic number")]
    Magic {
        /// The structure.
        what: &'static str,
    },
    /// The structure's own checksum does not match.
    #[error("checksum mismatch in {what}")]
    Checksum {
        /// The structure.
        what: &'static str,
    },
    /// A version that this build does not know.
    #[error("{what} has version {found}, this build reads up to {known}")]
    Version {
        /// The structure.
        what: &'static str,
        /// Version found.
        found: u32,
        /// Newest version known.
        known: u32,
    },
    /// A field holds a value that it must not have.
    #[error("invalid {field}: {value}")]
    Field {
        /// The field.
        field: &'static str,
        /// Its value.
        value: u64,
    },
    /// Well-formed, but of another pool, place or number than the one asked for.
    #[error("wrong identity: {what} is {found}, expected {expected}")]
    Identity {
        /// What identifies it.
        what: &'static str,
        /// Value found.
        found: u64,
        /// Value expected.
        expected: u64,
    },
}

/// Reads integers off a byte slice, front to back.
#[derive(Debug, Clone)]
pub struct Decoder<'a> {
    rest: &'a [u8],
    what: &'static str,
}

impl<'a> Decoder<'a> {
    /// Reads `bytes`, naming the structure `what` in errors.
    pub const fn new(bytes: &'a [u8], what: &'static str) -> Decoder<'a> {
        Decoder { rest: bytes, what }
    }

    /// Bytes not yet read.
    pub const fn remaining(&self) -> usize {
        self.rest.len()
    }

    /// The next `len` bytes.
    ///
    /// # Errors
    /// [`FormatError::Short`] if fewer are left.
    pub fn bytes(&mut self, len: usize) -> Result<&'a [u8], FormatError> {
        match self.rest.split_at_checked(len) {
            Some((head, rest)) => {
                self.rest = rest;
                Ok(head)
            }
            None => Err(FormatError::Short {
                what: self.what,
                need: len,
                have: self.rest.len(),
            }),
        }
    }

    /// The next `N` bytes as an array.
    ///
    /// # Errors
    /// [`FormatError::Short`] if fewer are left.
    pub fn array<const N: usize>(&mut self) -> Result<[u8; N], FormatError> {
        let (head, rest) = self
            .rest
            .split_first_chunk::<N>()
            .ok_or(FormatError::Short {
                what: self.what,
                need: N,
                have: self.rest.len(),
            })?;
        self.rest = rest;
        Ok(*head)
    }

    /// The next byte.
    ///
    /// # Errors
    /// [`FormatError::Short`] at the end.
    pub fn u8(&mut self) -> Result<u8, FormatError> {
        self.array::<1>().map(|[byte]| byte)
    }

    /// The next 16-bit integer.
    ///
    /// # Errors
    /// [`FormatError::Short`] at the end.
    pub fn u16(&mut self) -> Result<u16, FormatError> {
        self.array().map(u16::from_le_bytes)
    }

    /// The next 32-bit integer.
    ///
    /// # Errors
    /// [`FormatError::Short`] at the end.
    pub fn u32(&mut self) -> Result<u32, FormatError> {
        self.array().map(u32::from_le_bytes)
    }

    /// The next 64-bit integer.
    ///
    /// # Errors
    /// [`FormatError::Short`] at the end.
    pub fn u64(&mut self) -> Result<u64, FormatError> {
        self.array().map(u64::from_le_bytes)
    }

    /// The next signed 64-bit integer.
    ///
    /// # Errors
    /// [`FormatError::Short`] at the end.
    pub fn i64(&mut self) -> Result<i64, FormatError> {
        self.array().map(i64::from_le_bytes)
    }

    /// Everything that is left.
    pub const fn rest(&mut self) -> &'a [u8] {
        let rest = self.rest;
        self.rest = &[];
        rest
    }

    /// Checks that nothing is left.
    ///
    /// # Errors
    /// [`FormatError::Field`] with the number of bytes too many.
    pub const fn finish(self) -> Result<(), FormatError> {
        match self.rest.len() {
            0 => Ok(()),
            more => Err(FormatError::Field {
                field: "trailing bytes",
                value: more as u64,
            }),
        }
    }

    /// Checks that the next `len` bytes are zero, as reserved fields are written.
    ///
    /// # Errors
    /// [`FormatError::Field`] if one is not, [`FormatError::Short`] at the end.
    pub fn reserved(&mut self, len: usize) -> Result<(), FormatError> {
        match self.bytes(len)?.iter().find(|byte| **byte != 0) {
            None => Ok(()),
            Some(byte) => Err(FormatError::Field {
                field: "reserved byte",
                value: u64::from(*byte),
            }),
        }
    }
}

/// Appends integers to a byte vector.
#[derive(Debug, Default)]
pub struct Encoder {
    bytes: Vec<u8>,
}

impl Encoder {
    /// An empty encoder with room for `capacity` bytes.
    pub fn with_capacity(capacity: usize) -> Encoder {
        Encoder {
            bytes: Vec::with_capacity(capacity),
        }
    }

    /// Appends bytes as they are.
    pub fn bytes(&mut self, bytes: &[u8]) -> &mut Encoder {
        self.bytes.extend_from_slice(bytes);
        self
    }

    /// Appends a byte.
    pub fn u8(&mut self, value: u8) -> &mut Encoder {
        self.bytes(&[value])
    }

    /// Appends a 16-bit integer.
    pub fn u16(&mut self, value: u16) -> &mut Encoder {
        self.bytes(&value.to_le_bytes())
    }

    /// Appends a 32-bit integer.
    pub fn u32(&mut self, value: u32) -> &mut Encoder {
        self.bytes(&value.to_le_bytes())
    }

    /// Appends a 64-bit integer.
    pub fn u64(&mut self, value: u64) -> &mut Encoder {
        self.bytes(&value.to_le_bytes())
    }

    /// Appends a signed 64-bit integer.
    pub fn i64(&mut self, value: i64) -> &mut Encoder {
        self.bytes(&value.to_le_bytes())
    }

    /// Appends zeros up to a length of `len` bytes in all.
    pub fn pad_to(&mut self, len: usize) -> &mut Encoder {
        if self.bytes.len() < len {
            self.bytes.resize(len, 0);
        }
        self
    }

    /// Bytes so far.
    pub const fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Whether nothing was appended yet.
    pub const fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// The bytes.
    pub fn finish(self) -> Vec<u8> {
        self.bytes
    }
}
