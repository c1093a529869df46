//! What a service needs of the pool to bring a mirror up to date: what it lacks, how to copy it.

use std::io;
use std::ops::Range;

use super::commit::Pool;
use super::error::{PoolError, Result};
use super::status::ResyncStatus;
use crate::backing::FileName;
use crate::format::{BLOCK, ExtentHeader, ExtentRow, Key, Lsn, ReverseRow, SegmentNo};
use crate::ledger::What;
use crate::mirrors::{Copied, MirrorId, MirrorState, Target};

/// Rows read in one go.
const ROWS: usize = 1024;

/// What became of an owner row of a segment that was to be copied.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CopiedOwner {
    /// The target has its bytes.
    Copied {
        /// The figures.
        copied: Copied,
        /// When its extent was born.
        born: Lsn,
        /// Blocks that no mirror can supply.
        lost: usize,
    },
    /// It has changed since the row was read: look again.
    Gone,
}

impl Pool {
    /// Mirrors that are being brought up to date.
    pub fn resyncing(&self) -> Vec<MirrorId> {
        let written = self.mirrors.written().into_iter();
        written
            .filter(|mirror| mirror.state() == MirrorState::Resyncing)
            .map(|mirror| mirror.id)
            .collect()
    }

    /// The mirror that is being brought up to date, as long as it is.
    pub fn resync_target(&self, id: MirrorId) -> Option<Target> {
        self.mirrors.target(id)
    }

    /// Up to which LSN of birth the mirror has all file data.
    pub fn resync_from(&self, target: &Target) -> Lsn {
        let superblock = self.mirrors.superblock();
        let member = superblock.member(target.mirror().uuid);
        member.map_or(Lsn(0), |member| member.lsn)
    }

    /// Records how far a mirror has been brought up to date.
    ///
    /// # Errors
    /// [`PoolError::Failed`] if no mirror took it.
    pub fn note_resync(&self, target: &Target, lsn: Lsn) -> Result<()> {
        // What was freed before it was copied must not come back with a crash: the target lacks it.
        self.sync()?;
        self.guard(self.mirrors.note_progress(target.mirror().uuid, lsn))
    }

    /// Extents that were written but have no row yet.
    pub fn unlinked_extents(&self) -> Vec<(SegmentNo, u32)> {
        self.segments.all_unlinked()
    }

    /// Gives the target what an owner row of a segment stands for. Takes the inode's lock, so that
    /// the bytes stay live meanwhile.
    ///
    /// # Errors
    /// As [`Pool::get`]; [`PoolError::Target`] if the target failed.
    pub fn copy_owner(&self, target: &Target, key: &Key, value: &[u8]) -> Result<CopiedOwner> {
        let (_, _, ino, _) = key.reverse_parts()?;
        let _inode = self.lock_shared(ino);
        let Some(row) = self.owned_row(key, value)? else {
            return Ok(CopiedOwner::Gone);
        };
        let (copied, lost) = self.segments.copy(&row, target)?;
        Ok(CopiedOwner::Copied {
            copied,
            born: row.born,
            lost: lost.len(),
        })
    }

    /// Whether the target has what an owner row stands for, if that is still what it was.
    ///
    /// # Errors
    /// As [`Pool::get`].
    pub fn is_held(&self, target: &Target, key: &Key, value: &[u8]) -> Result<bool> {
        let (_, _, ino, _) = key.reverse_parts()?;
        let _inode = self.lock_shared(ino);
        let row = self.owned_row(key, value)?;
        Ok(row.is_none_or(|row| self.segments.is_held(&row, target)))
    }

    /// The extent row that an owner row of a segment belongs to, if both are still there.
    pub(super) fn owned_row(&self, key: &Key, value: &[u8]) -> Result<Option<ExtentRow>> {
        let (segment, at, ino, offset) = key.reverse_parts()?;
        let reverse = ReverseRow::decode(value)?;
        let Some(row) = self.get(&Key::extent(ino, offset))? else {
            return Ok(None);
        };
        let row = ExtentRow::decode(&row, self.algorithm().width())?;
        let same = (row.segment, row.offset, row.stored, row.header)
            == (segment, at, reverse.stored, reverse.header);
        Ok(same.then_some(row))
    }

    /// When the extent of the first live row of a segment was born.
    ///
    /// # Errors
    /// As [`Pool::get`].
    pub fn first_born(&self, segment: SegmentNo) -> Result<Option<Lsn>> {
        let (from, to) = (Key::reverse_at(segment, 0), Key::reverse_end(segment));
        for (key, value) in self.scan(&from, &to, 16)? {
            if let Some(row) = self.owned_row(&key, &value)? {
                return Ok(Some(row.born));
            }
        }
        Ok(None)
    }

    /// Live bytes of each segment, ascending.
    pub fn live_bytes(&self) -> Vec<(SegmentNo, u64)> {
        self.segments.with_accounts(|accounts| {
            let rows = accounts.iter();
            rows.map(|(segment, row)| (segment, row.live)).collect()
        })
    }

    /// Makes what was copied to a segment of the target durable, and has it read from the medium
    /// next.
    ///
    /// # Errors
    /// [`PoolError::Target`] if the target failed.
    pub fn seal_copy(&self, target: &Target, file: FileName) -> Result<()> {
        Ok(self.mirrors.target_result(target, target.seal(file))?)
    }

    /// Takes the target out since its medium does not hold what was written to it.
    pub fn target_forgets(&self, target: &Target, file: FileName) -> PoolError {
        let forgets = io::Error::other(format!(
            "its medium does not hold what was written ({file})"
        ));
        match self.mirrors.target_result::<()>(target, Err(forgets)) {
            Err(error) => error.into(),
            Ok(()) => PoolError::Failed {
                reason: "an error turned into none".to_owned(),
            },
        }
    }

    /// Segments on the target that no other mirror has: of files that are long gone.
    pub fn superfluous_segments(&self, target: &Target) -> Vec<SegmentNo> {
        let known: std::collections::BTreeSet<_> = self
            .segment_files()
            .into_iter()
            .map(|(segment, _)| segment)
            .collect();
        let newest = self.segments.next_segment();
        let own = target.mirror().backing().segments().unwrap_or_default();
        own.into_iter()
            .filter(|segment| !known.contains(segment) && *segment < newest)
            .collect()
    }

    /// Removes a segment that only the target has.
    ///
    /// # Errors
    /// [`PoolError::Target`] if the target failed.
    pub fn remove_superfluous(&self, target: &Target, segment: SegmentNo) -> Result<()> {
        let removed = target.mirror().backing().remove(FileName::Segment(segment));
        Ok(self.mirrors.target_result(target, removed)?)
    }

    /// Makes what lies between live data in a segment, and its length, the same on the target as on
    /// the others; also what was freed but may come back with a crash. For segments that are not
    /// being written.
    ///
    /// # Errors
    /// As [`Pool::get`]; [`PoolError::Target`] if the target failed.
    pub fn copy_gaps(&self, target: &Target, segment: SegmentNo) -> Result<Copied> {
        let file = FileName::Segment(segment);
        let mut total = Copied::default();
        // Behind the last extent that is known may lie some that a crash took.
        let longest = u32::try_from(self.mirrors.longest(file)).unwrap_or(u32::MAX);
        let end = self.segment_end(segment)?.max(longest);
        let mut at = 0;
        let live = self.copied_ranges(segment)?.into_iter();
        for live in live.chain(std::iter::once(end..end)) {
            if at < live.start.min(end) {
                let (offset, len) = (u64::from(at), u64::from(live.start.min(end) - at));
                let _dead = self.dead_bytes.lock();
                let copied = self.mirrors.match_gap(target, file, offset, len);
                total.add(self.mirrors.target_result(target, copied)?);
            }
            at = at.max(live.end);
        }
        let _dead = self.dead_bytes.lock();
        let len = self.mirrors.match_len(target, file);
        self.mirrors.target_result(target, len)?;
        Ok(total)
    }

    /// What of a segment is copied row by row, or is written to all mirrors anyway: ascending.
    fn copied_ranges(&self, segment: SegmentNo) -> Result<Vec<Range<u32>>> {
        // In this order: an extent that gets its row meanwhile is seen at least once.
        let unlinked = self.unlinked_in(segment).into_iter();
        let mut ranges: Vec<_> = unlinked.map(|(at, len)| at..at + len).collect();
        let mut from = Key::reverse_at(segment, 0);
        loop {
            let rows = self.scan(&from, &Key::reverse_end(segment), ROWS)?;
            for (key, value) in &rows {
                let (_, at, ino, offset) = key.reverse_parts()?;
                let row = ReverseRow::decode(value)?;
                ranges.push(at..at.saturating_add(row.stored));
                // A row that is a piece of its extent may lie far behind the header.
                let near = at.saturating_sub(row.header) as usize
                    <= ExtentHeader::len_for(self.algorithm(), row.stored as usize) + BLOCK;
                let header_end = match near {
                    true => at,
                    false => match self.owned_row(key, value)? {
                        Some(row) => row.header + self.segments.header_len(&row) as u32,
                        None => row.header,
                    },
                };
                ranges.push(row.header..header_end);
                from = Key::reverse(segment, at, ino, offset.saturating_add(1));
            }
            if rows.len() < ROWS {
                ranges.sort_unstable_by_key(|range| range.start);
                return Ok(ranges);
            }
        }
    }

    /// Makes index pages `from..to` of the target what they are on the others.
    ///
    /// # Errors
    /// [`PoolError::Target`] if the target failed.
    pub fn copy_pages(&self, target: &Target, from: u32, to: u32) -> Result<Copied> {
        Ok(self.index.copy_pages(from, to, target)?)
    }

    /// Makes the page-sum table of the target, and the lengths of index and table, what they are on
    /// the others; waits for a checkpoint that is being made. `covered` is the number of pages that
    /// were gone through: none is returned if there are more by now, and they come first.
    ///
    /// # Errors
    /// [`PoolError::Target`] if the target failed; as [`Pool::checkpoint`] for one that waited for
    /// space and still does.
    pub fn copy_sums(&self, target: &Target, covered: u32) -> Result<Option<Copied>> {
        // What a checkpoint under way has changed is on no mirror as a whole.
        let Some(_between) = self.checkpointing.between() else {
            self.checkpoint()?;
            return Ok(None);
        };
        if self.index_pages() > covered {
            return Ok(None);
        }
        Ok(Some(self.index.copy_sums(target)?))
    }

    /// Makes a part of the journal of the target what it is on the others.
    ///
    /// # Errors
    /// [`PoolError::Target`] if the target failed.
    pub fn copy_journal(&self, target: &Target, offset: u64, len: usize) -> Result<Copied> {
        Ok(self.journal.copy(offset, len, target)?)
    }

    /// Bytes per second for bringing mirrors up to date, if that was asked for.
    pub const fn resync_rate(&self) -> Option<u64> {
        self.options.resync_rate
    }

    /// Size of the journal in bytes.
    pub const fn journal_size(&self) -> u64 {
        self.journal.size()
    }

    /// How bringing a mirror up to date goes on; none when none is.
    pub fn set_resync_status(&self, status: Option<ResyncStatus>) {
        *self.resync.lock() = status;
    }

    /// Records an event of bringing a mirror up to date.
    pub fn note_resync_event(&self, mirror: String, outcome: &str, copied: Copied, lost: u64) {
        self.incidents.note(What::Resync {
            mirror,
            outcome: outcome.to_owned(),
            compared_bytes: copied.compared,
            moved_bytes: copied.moved,
            lost_blocks: lost,
        });
    }
}
