//! Memory that a disk can be read into without a copy.

use std::fmt;
use std::ops::{Deref, DerefMut};

/// Alignment of offset, length and memory that direct reads use: what no device exceeds.
pub(super) const DIRECT_ALIGN: usize = 4096;

/// Bytes that begin at a multiple of a page. Made once and used again: it is never cleared.
#[derive(Default)]
pub struct Buffer {
    memory: Vec<u8>,
    lead: usize,
    len: usize,
}

impl fmt::Debug for Buffer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Buffer({} bytes)", self.len)
    }
}

impl Buffer {
    /// Makes it as long as said; what it holds then is of no meaning.
    pub fn set_len(&mut self, len: usize) {
        if self.memory.len() < len + DIRECT_ALIGN {
            self.memory = vec![0; len + DIRECT_ALIGN];
            self.lead = self.memory.as_ptr().align_offset(DIRECT_ALIGN);
        }
        self.len = len;
    }
}

impl Deref for Buffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.memory[self.lead..self.lead + self.len]
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.memory[self.lead..self.lead + self.len]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_buffer_is_aligned_at_every_length() {
        let mut buffer = Buffer::default();
        assert!(buffer.is_empty());
        for len in [1, 4096, 100_000, 10, 0] {
            buffer.set_len(len);
            assert_eq!(buffer.len(), len);
            assert_eq!(buffer.as_ptr().align_offset(DIRECT_ALIGN), 0);
        }
    }
}
