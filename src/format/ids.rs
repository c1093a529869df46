//! Newtypes for the numbers that must not be confused with one another.

use std::fmt;

macro_rules! number {
    ($(#[$doc:meta])* $name:ident, $inner:ty) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
        pub struct $name(pub $inner);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(&self.0, f)
            }
        }
    };
}

number!(
    /// Inode number. The root directory is [`Ino::ROOT`]; 0 is never used.
    Ino,
    u64
);
number!(
    /// Log sequence number of a journal record: counts up by one, without gaps, and never restarts.
    Lsn,
    u64
);
number!(
    /// Number of a segment file. Never reused within a pool.
    SegmentNo,
    u64
);
number!(
    /// Membership epoch: raised by every change of which mirrors are online.
    Epoch,
    u64
);
number!(
    /// The first four bytes of the pool UUID, in every record and extent header, so that bytes of
    /// another pool are never taken for ours.
    PoolTag,
    u32
);

impl Ino {
    /// The root directory.
    pub const ROOT: Ino = Ino(1);
}

impl Lsn {
    /// The LSN after this one.
    pub const fn next(self) -> Lsn {
        Lsn(self.0 + 1)
    }
}

/// A random (version 4) universally unique identifier, RFC 9562.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Uuid(pub [u8; 16]);

impl Uuid {
    /// Makes a version 4 UUID of 16 random bytes.
    pub const fn from_random(mut bytes: [u8; 16]) -> Uuid {
        let [_, _, _, _, _, _, ref mut version, _, ref mut variant, ..] = bytes;
        *version = (*version & 0x0f) | 0x40;
        *variant = (*variant & 0x3f) | 0x80;
        Uuid(bytes)
    }

    /// The tag that records and extent headers of this pool carry.
    pub const fn tag(self) -> PoolTag {
        let [a, b, c, d, ..] = self.0;
        PoolTag(u32::from_le_bytes([a, b, c, d]))
    }
}

impl fmt::Display for Uuid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, byte) in self.0.iter().enumerate() {
            if matches!(at, 4 | 6 | 8 | 10) {
                f.write_str("-")?;
            }
            write!(f, "{byte:02x}")?;
        }
        Ok(())
    }
}

impl fmt::Debug for Uuid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}
