//! Telling at a glance whether a row's bytes are right on every mirror, from bytes already read.

use super::append::{Segments, own_header};
use crate::format::{BLOCK, ExtentRow};

impl Segments {
    /// Whether the row's blocks and the header of its extent are right in each of `copies`, which
    /// hold what the mirrors have of the segment from `start` on. With `alike` the copies are known
    /// to be the same, and looking at one is enough. False says that somebody has to look closer,
    /// no more.
    pub fn is_sound(&self, row: &ExtentRow, start: u64, copies: &[&[u8]], alike: bool) -> bool {
        let (algorithm, width) = (self.algorithm(), self.algorithm().width());
        let Some((first, others)) = copies.split_first() else {
            return false;
        };
        let at = |offset: u32| u64::from(offset).checked_sub(start).map(|at| at as usize);
        let (Some(header_at), Some(data_at)) = (at(row.header), at(row.offset)) else {
            return false;
        };
        let data = data_at..data_at + row.stored as usize;
        let (Some(head), Some(bytes)) = (first.get(header_at..), first.get(data.clone())) else {
            return false;
        };
        let Some(header) = own_header(head, row, width) else {
            return false;
        };
        let header_range = header_at..header_at + header.len();
        let blocks = bytes.chunks(BLOCK).enumerate();
        first.get(header_range.clone()) == Some(&header)
            && blocks
                .into_iter()
                .all(|(n, block)| algorithm.matches(block, row.sum(n, width)))
            && (alike
                || others.iter().all(|other| {
                    other.get(header_range.clone()) == Some(&header)
                        && other.get(data.clone()) == Some(bytes)
                }))
    }
}
