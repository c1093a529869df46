//! Bringing a mirror up to date: one that was away gets what it missed, a new one everything.
//!
//! The mirror receives all new writes from the moment it is attached; this copies what is older.
//! Extents are born in the order of their places in the segments, so what a mirror lacks that has
//! everything born up to some LSN is a suffix of the segments. It is gone through in that order,
//! each extent under its inode's lock, so that what is copied is live; only blocks that are not
//! right already are written. A segment that was written to is synced, read back from the medium
//! and compared, and then counts as progress, which the superblocks remember: after a crash or an
//! unmount it goes on there. Then come what lies between live data, the index, the page sums and
//! the journal, so that in the end the mirrors hold the same bytes; only then does the mirror
//! count.
//!
//! Why nothing is missed: extents that were on their way when the mirror was attached are waited
//! for before the first row is read, and later ones are written to it too. Rows that change while
//! they are copied are looked at again from the place of their extent on; rows never come back.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use rayon::prelude::*;

use crate::backing::FileName;
use crate::format::{BLOCK_U64, Key, Lsn, SegmentNo, Table, Uuid};
use crate::mirrors::{Copied, Mirror, MirrorId, MirrorState, Target};
use crate::pool::status::ResyncStatus;
use crate::pool::{CopiedOwner, Pool, PoolError, Progress, Result, monotonic};

/// Rows copied side by side in one step.
const ROWS: usize = 64;
/// Index pages in one step.
const PAGES: u32 = 256;
/// Bytes of the journal in one step: batches wait meanwhile.
const JOURNAL_STEP: u64 = 1 << 20;
/// Seconds between two records of the progress.
const REMEMBER_AFTER: i64 = 10;
/// Seconds after which a directory that is gone is looked for again, and for one whose disk failed
/// at first and at most.
const LOOK_AFTER: i64 = 2;
const RETRY_AFTER: i64 = 60;
const RETRY_AFTER_MOST: i64 = 3600;
/// Times that what was written may be found wrong when read back, before the mirror is given up.
const TRIES: u32 = 3;

#[derive(Debug, Clone)]
enum Phase {
    /// Waiting for extents that were on their way when the mirror was attached.
    Grace(BTreeSet<(SegmentNo, u32)>),
    /// Copying rows from here on.
    Data(Key),
    /// Reading back what was copied to a segment, from this row on.
    Check {
        segment: SegmentNo,
        from: Key,
    },
    /// What lies between live data, of these segments, the last one first.
    Gaps(Vec<SegmentNo>),
    /// Index pages from this one on.
    Pages(u32),
    /// The page sums, when pages up to this one have been gone through.
    Sums(u32),
    Journal(u64),
    Promote,
}

impl Phase {
    const fn name(&self) -> &'static str {
        match self {
            Phase::Grace(_) | Phase::Data(_) | Phase::Check { .. } => "data",
            Phase::Gaps(_) => "gaps",
            Phase::Pages(_) | Phase::Sums(_) => "index",
            Phase::Journal(_) | Phase::Promote => "journal",
        }
    }
}

/// One mirror that is being brought up to date.
#[derive(Debug)]
struct Job {
    id: MirrorId,
    uuid: Uuid,
    mirror: String,
    phase: Phase,
    /// The mirror has everything that was born up to here.
    has: Lsn,
    /// Born last of what was copied and checked.
    reached: Lsn,
    /// Segment that rows are being copied of, and whether anything was written to it.
    segment: Option<(SegmentNo, bool)>,
    remembered: i64,
    copied: Copied,
    lost: u64,
    /// Bytes moved in this pass over the index and the journal, and passes that moved any.
    pass: Copied,
    tries: u32,
    progress: Progress,
    started: i64,
}

/// When a mirror that is out may be looked at again.
#[derive(Debug, Clone, Copy)]
struct Retry {
    at: i64,
    wait: i64,
}

/// Brings mirrors up to date, one after the other.
#[derive(Debug)]
pub struct Resync {
    pool: Arc<Pool>,
    job: Option<Job>,
    retries: BTreeMap<Uuid, Retry>,
    looked: i64,
}

impl Resync {
    /// A service for this pool.
    pub fn new(pool: Arc<Pool>) -> Resync {
        Resync {
            pool,
            job: None,
            retries: BTreeMap::new(),
            looked: i64::MIN,
        }
    }

    /// Whether a mirror is being brought up to date.
    pub const fn is_idle(&self) -> bool {
        self.job.is_none()
    }

    /// Does a piece of work: looks after the mirrors, takes back one that is out, or copies some of
    /// what one lacks. Returns the bytes that it went through, none if there is nothing to do.
    ///
    /// # Errors
    /// [`PoolError`] if the index cannot be read or the pool has stopped. A mirror that fails on
    /// the way is out again, and that is none.
    pub fn step(&mut self) -> Result<Option<u64>> {
        let now = self.pool.now().seconds;
        if now >= self.looked.saturating_add(LOOK_AFTER) {
            self.looked = now;
            self.pool.look_after_mirrors()?;
        }
        if self.job.is_none() {
            self.job = self.begin(now)?;
        }
        let Some(mut job) = self.job.take() else {
            self.pool.set_resync_status(None);
            return Ok(None);
        };
        let Some(target) = self.pool.resync_target(job.id) else {
            self.end(&job, "stopped");
            return Ok(Some(0));
        };
        let before = job.copied.compared;
        match self.advance(&mut job, &target, now) {
            Ok(true) => {
                let went = job.copied.compared - before;
                let total = job.progress.total().max(job.copied.compared);
                job.progress.set(job.copied.compared, total);
                self.pool.set_resync_status(Some(job.status()));
                self.job = Some(job);
                Ok(Some(went))
            }
            Ok(false) => {
                self.retries.remove(&job.uuid);
                self.end(&job, "done");
                Ok(Some(0))
            }
            Err(PoolError::Target { .. }) => {
                self.end(&job, "stopped");
                Ok(Some(0))
            }
            Err(PoolError::NoSpace { .. }) => {
                // The checkpoint at the end waits for space on a current mirror.
                self.job = Some(job);
                Ok(None)
            }
            Err(error) => {
                self.job = Some(job);
                Err(error)
            }
        }
    }

    fn end(&self, job: &Job, outcome: &str) {
        self.pool.set_resync_status(None);
        self.pool
            .note_resync_event(job.mirror.clone(), outcome, job.copied, job.lost);
        log::info!(
            "bringing {} up to date: {outcome}, {} bytes gone through, {} written",
            job.mirror,
            job.copied.compared,
            job.copied.moved
        );
    }

    fn begin(&mut self, now: i64) -> Result<Option<Job>> {
        let waiting = self.pool.resyncing().first().copied();
        let id = match waiting {
            Some(id) => id,
            None => {
                let retries = &mut self.retries;
                let taken = self
                    .pool
                    .take_back_next(&mut |mirror| may_try(retries, mirror, now));
                match taken {
                    Some(id) => id,
                    None => return Ok(None),
                }
            }
        };
        let Some(target) = self.pool.resync_target(id) else {
            return Ok(None);
        };
        let job = self.job_for(&target, now)?;
        self.pool.set_resync_status(Some(job.status()));
        self.pool
            .note_resync_event(job.mirror.clone(), "started", Copied::default(), 0);
        Ok(Some(job))
    }

    fn job_for(&self, target: &Target, now: i64) -> Result<Job> {
        let has = self.pool.resync_from(target);
        let pages = u64::from(self.pool.index_pages()) * BLOCK_U64;
        let data: u64 = self.behind(has)?.iter().map(|(_, live)| live).sum();
        let total = data + pages + self.pool.journal_size();
        let mirror = target.mirror();
        let mut progress = Progress::new(monotonic());
        progress.start(0, total);
        Ok(Job {
            id: mirror.id,
            uuid: mirror.uuid,
            mirror: mirror.name(),
            phase: Phase::Grace(self.pool.unlinked_extents().into_iter().collect()),
            has,
            reached: has,
            segment: None,
            remembered: now,
            copied: Copied::default(),
            lost: 0,
            pass: Copied::default(),
            tries: 0,
            progress,
            started: now,
        })
    }

    /// Segments that may hold what was born after `has`, ascending, with their live bytes.
    fn behind(&self, has: Lsn) -> Result<Vec<(SegmentNo, u64)>> {
        let mut segments = self.pool.live_bytes();
        segments.retain(|(_, live)| *live > 0);
        let mut at = segments.len();
        while at > 0 && has > Lsn(0) {
            at -= 1;
            // The first extent of a segment is its oldest.
            if self
                .pool
                .first_born(segments[at].0)?
                .is_some_and(|born| born <= has)
            {
                return Ok(segments.split_off(at));
            }
        }
        Ok(segments)
    }

    /// Does a piece of the job; returns whether there is more.
    fn advance(&self, job: &mut Job, target: &Target, now: i64) -> Result<bool> {
        job.phase = match job.phase.clone() {
            Phase::Grace(mut waiting) => {
                let unlinked: BTreeSet<_> = self.pool.unlinked_extents().into_iter().collect();
                waiting.retain(|extent| unlinked.contains(extent));
                if waiting.is_empty() {
                    let first = self.behind(job.has)?.first().map(|(segment, _)| *segment);
                    Phase::Data(first.map_or_else(
                        || Key::table_end(Table::Reverse),
                        |segment| Key::reverse_at(segment, 0),
                    ))
                } else {
                    Phase::Grace(waiting)
                }
            }
            Phase::Data(from) => self.copy_data(job, target, from)?,
            Phase::Check { segment, from } => self.check(job, target, segment, &from, now)?,
            Phase::Gaps(mut segments) => {
                if let Some(segment) = segments.pop() {
                    let copied = self.pool.copy_gaps(target, segment)?;
                    job.copied.moved += copied.moved;
                    if copied.moved > 0 {
                        self.pool.seal_copy(target, FileName::Segment(segment))?;
                    }
                    Phase::Gaps(segments)
                } else {
                    Phase::Pages(0)
                }
            }
            Phase::Pages(from) => self.copy_pages(job, target, from)?,
            Phase::Sums(covered) => match self.pool.copy_sums(target, covered)? {
                // Pages that the index got meanwhile but never wrote hold what lay there before.
                None => Phase::Pages(covered),
                Some(copied) => {
                    job.pass.add(copied);
                    let files = [FileName::Index, FileName::Sums];
                    self.again(job, target, &files, Phase::Pages(0))?
                        .unwrap_or(Phase::Journal(0))
                }
            },
            Phase::Journal(at) => {
                let len = (self.pool.journal_size() - at).min(JOURNAL_STEP);
                let copied = self.pool.copy_journal(target, at, len as usize)?;
                job.pass.add(copied);
                job.copied.add(copied);
                if at + len < self.pool.journal_size() {
                    Phase::Journal(at + len)
                } else {
                    self.again(job, target, &[FileName::Journal], Phase::Journal(0))?
                        .unwrap_or(Phase::Promote)
                }
            }
            Phase::Promote => {
                return match self.pool.promote(job.id) {
                    Ok(()) => Ok(false),
                    Err(crate::pool::MemberError::Pool(error)) => Err(error),
                    Err(error) => Err(PoolError::Target {
                        mirror: job.mirror.clone(),
                        cause: error.to_string(),
                    }),
                };
            }
        };
        Ok(true)
    }

    fn copy_data(&self, job: &mut Job, target: &Target, from: Key) -> Result<Phase> {
        let end = Key::table_end(Table::Reverse);
        let mut rows = self.pool.scan(&from, &end, ROWS)?;
        let Some((first, _)) = rows.first() else {
            return Ok(self
                .close_segment(job, target)?
                .unwrap_or_else(|| self.gaps(target)));
        };
        let (segment, ..) = first.reverse_parts()?;
        if job.segment.is_some_and(|(current, _)| current != segment)
            && let Some(check) = self.close_segment(job, target)?
        {
            return Ok(check);
        }
        let (_, written) = *job.segment.get_or_insert((segment, false));
        let mut written = written;
        // The rows of one segment at a time.
        let other = rows.iter().position(|(key, _)| {
            key.reverse_parts()
                .is_ok_and(|(other, ..)| other != segment)
        });
        rows.truncate(other.unwrap_or(rows.len()));
        let outcomes: Vec<_> = rows
            .par_iter()
            .map(|(key, value)| self.pool.copy_owner(target, key, value))
            .collect();
        let mut next = from;
        for ((key, value), outcome) in rows.iter().zip(outcomes) {
            let (_, at, ino, offset) = key.reverse_parts()?;
            match outcome? {
                CopiedOwner::Copied { copied, born, lost } => {
                    job.copied.add(copied);
                    job.lost += lost as u64;
                    job.reached = job.reached.max(born);
                    written |= copied.moved > 0;
                }
                // Cut, moved or deleted meanwhile: what is there now lies here or behind.
                CopiedOwner::Gone if self.pool.get(key)?.as_ref() != Some(value) => {
                    job.segment = Some((segment, written));
                    return Ok(Phase::Data(Key::reverse_at(segment, at)));
                }
                CopiedOwner::Gone => {}
            }
            next = Key::reverse(segment, at, ino, offset.saturating_add(1));
        }
        job.segment = Some((segment, written));
        Ok(Phase::Data(next))
    }

    /// Ends the copying of a segment; what was written is to be checked.
    fn close_segment(&self, job: &mut Job, target: &Target) -> Result<Option<Phase>> {
        let Some((segment, written)) = job.segment.take() else {
            return Ok(None);
        };
        // Also where nothing was written now: what was found there may come from a run that a crash
        // of this process has cut off, and not be durable.
        self.pool.seal_copy(target, FileName::Segment(segment))?;
        if !written {
            job.tries = 0;
            return Ok(None);
        }
        let from = Key::reverse_at(segment, 0);
        Ok(Some(Phase::Check { segment, from }))
    }

    fn check(
        &self,
        job: &mut Job,
        target: &Target,
        segment: SegmentNo,
        from: &Key,
        now: i64,
    ) -> Result<Phase> {
        let rows = self.pool.scan(from, &Key::reverse_end(segment), ROWS)?;
        let held: Vec<_> = rows
            .par_iter()
            .map(|(key, value)| self.pool.is_held(target, key, value))
            .collect();
        for held in held {
            // What is lost everywhere is not held either, and was counted.
            if !held? && job.lost == 0 {
                job.tries += 1;
                if job.tries >= TRIES {
                    let file = FileName::Segment(segment);
                    return Err(self.pool.target_forgets(target, file));
                }
                return Ok(Phase::Data(Key::reverse_at(segment, 0)));
            }
        }
        if let Some((last, _)) = rows.last()
            && rows.len() == ROWS
        {
            let (_, at, ino, offset) = last.reverse_parts()?;
            let from = Key::reverse(segment, at, ino, offset.saturating_add(1));
            return Ok(Phase::Check { segment, from });
        }
        job.tries = 0;
        if now >= job.remembered.saturating_add(REMEMBER_AFTER) {
            job.remembered = now;
            // The last ones born may have twins in the next segment.
            let lsn = Lsn(job.reached.0.saturating_sub(1));
            self.pool.note_resync(target, lsn)?;
        }
        Ok(Phase::Data(Key::reverse_at(SegmentNo(segment.0 + 1), 0)))
    }

    fn gaps(&self, target: &Target) -> Phase {
        for segment in self.pool.superfluous_segments(target) {
            if let Err(error) = self.pool.remove_superfluous(target, segment) {
                log::warn!("{error}");
            }
        }
        let open = self.pool.open_segment().map(|(open, _)| open);
        let files = self.pool.segment_files().into_iter();
        let mut segments: Vec<_> = files.map(|(segment, _)| segment).collect();
        // What is appended to the one being filled goes to all mirrors anyway.
        segments.retain(|segment| Some(*segment) != open);
        segments.reverse();
        Phase::Gaps(segments)
    }

    fn copy_pages(&self, job: &mut Job, target: &Target, from: u32) -> Result<Phase> {
        let end = self.pool.index_pages();
        let to = end.min(from.saturating_add(PAGES));
        let copied = self.pool.copy_pages(target, from, to)?;
        job.pass.add(copied);
        job.copied.add(copied);
        Ok(if to < end {
            Phase::Pages(to)
        } else {
            Phase::Sums(to)
        })
    }

    /// After a pass that moved something: another one, which compares what the medium holds.
    fn again(
        &self,
        job: &mut Job,
        target: &Target,
        files: &[FileName],
        phase: Phase,
    ) -> Result<Option<Phase>> {
        let moved = std::mem::take(&mut job.pass).moved;
        if moved > 0 && job.tries >= TRIES {
            return Err(self.pool.target_forgets(target, files[0]));
        }
        // Also what a run before this one has written.
        for file in files {
            self.pool.seal_copy(target, *file)?;
        }
        if moved == 0 {
            job.tries = 0;
            return Ok(None);
        }
        job.tries += 1;
        Ok(Some(phase))
    }
}

impl Job {
    fn status(&self) -> ResyncStatus {
        ResyncStatus {
            mirror: self.mirror.clone(),
            phase: self.phase.name().to_owned(),
            started: self.started,
            done_bytes: self.progress.done(),
            total_bytes: self.progress.total(),
            moved_bytes: self.copied.moved,
            rate: self.progress.rate().unwrap_or(0),
            eta_seconds: self.progress.eta().map(|eta| eta.as_secs()),
        }
    }
}

/// Whether the directory of a mirror that is out is to be looked at now.
fn may_try(retries: &mut BTreeMap<Uuid, Retry>, mirror: &Mirror, now: i64) -> bool {
    let first = match mirror.state() {
        // Its disk gave errors: it is given time.
        MirrorState::Failed => RETRY_AFTER,
        _ => 0,
    };
    let retry = retries.entry(mirror.uuid).or_insert(Retry {
        at: now.saturating_add(first),
        wait: first,
    });
    if now < retry.at {
        return false;
    }
    let (least, most) = match mirror.state() {
        MirrorState::Failed => (RETRY_AFTER, RETRY_AFTER_MOST),
        _ => (LOOK_AFTER, LOOK_AFTER),
    };
    retry.wait = (retry.wait * 2).clamp(least, most);
    retry.at = now.saturating_add(retry.wait);
    true
}
