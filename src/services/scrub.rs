//! The scrub: everything that is live is verified on every mirror, from the medium, and healed.
//!
//! In this order: superblocks, page sums, index pages, file data by segment and offset. What it is
//! told to do and what it has done lies with the pool ([`crate::pool::Scrub`]); the run is put into
//! the ledger every few seconds and when the pool is closed, and the next mount goes on with it.
//! What is written while it runs is younger than the run and has been written to all mirrors; what
//! is freed is passed over.

use std::sync::Arc;
use std::time::Duration;

use crate::format::{BLOCK_U64, SUPER_SLOT_LEN, SegmentNo};
use crate::ledger::What;
use crate::mirrors::Scratch;
use crate::pool::status::ScrubState;
use crate::pool::{
    Pool, PoolError, Result, ScrubOrder, ScrubRun, ScrubStage, SegmentCursor, Tally,
};

/// Name of the run in the ledger.
const REMEMBERED: &str = "scrub";
/// Seconds between two writings of the run, at most.
const SAVE_EVERY: i64 = 5;
/// And this part of the whole, so that a fast one loses little too.
const SAVE_PART: u64 = 25;
/// As that, when damage was found.
const SAVE_FINDINGS_EVERY: i64 = 1;
/// Bytes of both slots of the superblock.
const SUPERBLOCKS: u64 = 2 * SUPER_SLOT_LEN as u64;

/// How scrubs run without being told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ScrubOptions {
    /// A run begins this long after the last one ended; none: only when somebody asks for it.
    pub interval: Option<Duration>,
    /// Limit in bytes per second on each mirror; none: give way to applications.
    pub rate: Option<u64>,
}

impl Default for ScrubOptions {
    fn default() -> ScrubOptions {
        ScrubOptions {
            interval: Some(Duration::from_secs(30 * 24 * 3600)),
            rate: None,
        }
    }
}

/// The service.
#[derive(Debug)]
pub struct Scrubber {
    pool: Arc<Pool>,
    options: ScrubOptions,
    /// The run as it was last looked at.
    known: ScrubRun,
    /// Where in a segment the run is.
    cursor: Option<SegmentCursor>,
    scratch: Scratch,
    /// The run as it was last put into the ledger, and when.
    saved: ScrubRun,
    saved_at: i64,
}

impl Scrubber {
    /// A service for this pool, which takes up the run that the last mount was in.
    pub fn new(pool: Arc<Pool>, options: ScrubOptions) -> Scrubber {
        let runs = pool.remembered(REMEMBERED);
        let mut run = runs
            .iter()
            .filter_map(|run| serde_json::from_slice::<ScrubRun>(run).ok())
            // A mirror that was away remembers an older state.
            .max_by_key(|run| (run.number, !run.is_open(), run.done))
            .unwrap_or_default();
        if let ScrubStage::Index(_) = run.stage {
            // It is small, and what the page cache has of it is forgotten at its beginning.
            run.stage = ScrubStage::Index(0);
        }
        if run.number > 0 {
            pool.scrub().take_up(run.clone());
        }
        Scrubber {
            saved_at: pool.now().seconds,
            pool,
            options,
            known: run.clone(),
            cursor: None,
            scratch: Scratch::default(),
            saved: run,
        }
    }

    /// Limit for the run in bytes per second on each mirror; none: give way to applications.
    pub fn rate(&self) -> Option<u64> {
        self.known.rate.or(self.options.rate)
    }

    /// Does a piece of work of about `budget` bytes on each mirror. Returns how many bytes it read
    /// from each; none if there is nothing to do.
    ///
    /// # Errors
    /// [`PoolError::Failed`] if the pool has stopped.
    pub fn step(&mut self, budget: u32) -> Result<Option<u64>> {
        self.begin_if_due();
        self.look();
        if self.known.state != ScrubState::Running {
            self.scratch.forget();
            self.save_if_due();
            return Ok(None);
        }
        if let Some(reason) = self.pool.failure() {
            return Err(PoolError::Failed { reason });
        }
        let read = match self.known.stage {
            ScrubStage::Superblocks => self.superblocks(),
            ScrubStage::Index(from) => self.index(from, budget),
            ScrubStage::Segment(segment, at) => self.segment(SegmentNo(segment), at, budget)?,
        };
        self.look();
        self.save_if_due();
        Ok(Some(read))
    }

    /// Puts the run into the ledger if that does not have it yet.
    pub fn save(&mut self) {
        self.look();
        if self.known != self.saved {
            if let Ok(text) = serde_json::to_vec(&self.known) {
                self.pool.remember(REMEMBERED, &text);
            }
            self.saved = self.known.clone();
        }
        self.saved_at = self.pool.now().seconds;
    }

    fn save_if_due(&mut self) {
        let since = (self.pool.now().seconds - self.saved_at).abs();
        let ended = !self.known.is_open() || self.known.state != self.saved.state;
        let further = self.known.done.abs_diff(self.saved.done);
        let due = since >= SAVE_EVERY
            || further > self.known.total / SAVE_PART
            || (self.known.tally != self.saved.tally && since >= SAVE_FINDINGS_EVERY)
            || (ended && self.known != self.saved);
        if due && self.known.number > 0 {
            self.save();
        }
    }

    fn begin_if_due(&self) {
        let Some(interval) = self.options.interval else {
            return;
        };
        let run = self.pool.scrub().run();
        if run.is_open() || self.pool.read_only() {
            return;
        }
        let now = self.pool.now();
        let last = run.finished.unwrap_or(self.pool.made());
        let interval = i64::try_from(interval.as_secs()).unwrap_or(i64::MAX);
        if now.seconds >= last.saturating_add(interval) {
            // It can only be refused because somebody was faster.
            let _ = self
                .pool
                .scrub()
                .order(ScrubOrder::Start { rate: None }, now);
        }
    }

    /// Takes in what was ordered and done, and has the ledger record a change of state.
    fn look(&mut self) {
        let run = self.pool.scrub().run();
        let changed = (run.number, run.state) != (self.known.number, self.known.state);
        if run.number != self.known.number {
            self.cursor = None;
        }
        self.known = run;
        if changed {
            self.record();
        }
    }

    fn record(&self) {
        let run = &self.known;
        let (state, tally) = (run.state.name(), run.tally);
        self.pool.note(What::Scrub {
            state: state.to_owned(),
            started: run.started,
            finished: run.finished,
            bytes_done: run.done,
            bytes_total: run.total,
            errors_found: tally.found(),
            repaired: tally.repaired,
            unrepairable: tally.unrepairable,
        });
        let found = format!(
            "{} bad copies found, {} repaired, {} not repairable",
            tally.found(),
            tally.repaired,
            tally.unrepairable
        );
        match (run.state, tally.unrepairable) {
            (ScrubState::Running, _) => log::info!("scrub {} runs", run.number),
            (_, 0) => log::info!("scrub {} is {state}: {found}", run.number),
            _ => log::error!("scrub {} is {state}: {found}", run.number),
        }
    }

    fn advance(&self, tally: Tally, change: impl FnOnce(&mut ScrubRun)) {
        self.pool.scrub().advance(self.known.number, tally, change);
    }

    fn superblocks(&mut self) -> u64 {
        let tally = self.pool.check_superblocks();
        let end = self.pool.next_segment();
        let total = SUPERBLOCKS + self.index_bytes() + self.pool.live_segments(SegmentNo(0), end).1;
        self.advance(tally, |run| {
            (run.done, run.total, run.end) = (SUPERBLOCKS, total, end.0);
            run.stage = ScrubStage::Index(0);
        });
        SUPERBLOCKS
    }

    fn index_bytes(&self) -> u64 {
        u64::from(self.pool.index_pages()) * BLOCK_U64
    }

    fn index(&mut self, from: u32, budget: u32) -> u64 {
        let mut tally = Tally::default();
        if from == 0 {
            tally = self.pool.check_sums();
        }
        let end = self.pool.index_pages();
        let to = end.min(from.saturating_add((budget / BLOCK_U64 as u32).max(1)));
        tally.add(self.pool.check_index(from, to));
        let done = SUPERBLOCKS + u64::from(to) * BLOCK_U64;
        let stop = SegmentNo(self.known.end);
        let (first, live) = self.pool.live_segments(SegmentNo(0), stop);
        let total = SUPERBLOCKS + self.index_bytes() + live;
        let now = self.pool.now().seconds;
        self.advance(tally, |run| {
            (run.done, run.total) = (done, total);
            run.stage = match first {
                _ if to < end => ScrubStage::Index(to),
                Some(first) => ScrubStage::Segment(first.0, 0),
                None => return finish(run, now),
            };
        });
        // The index may be shorter than where the scrub had been in it.
        u64::from(to.saturating_sub(from)) * BLOCK_U64
    }

    fn segment(&mut self, segment: SegmentNo, at: u32, budget: u32) -> Result<u64> {
        let mut cursor = match self.cursor.take() {
            Some(cursor) if cursor.place() == (segment, at) => cursor,
            _ => SegmentCursor::new(segment, at),
        };
        let checked = match self
            .pool
            .check_segment(&mut cursor, budget, &mut self.scratch)
        {
            Ok(checked) => checked,
            Err(error @ PoolError::Failed { .. }) => return Err(error),
            Err(error) => {
                // Rows that no mirror has: the index pages they were in have been counted.
                log::error!("scrub: the rest of segment {segment} cannot be checked: {error}");
                self.leave(segment, Tally::default());
                return Ok(0);
            }
        };
        if checked.ended {
            self.leave(segment, checked.tally);
            return Ok(checked.read);
        }
        let (_, at) = cursor.place();
        self.cursor = Some(cursor);
        self.advance(checked.tally, |run| {
            run.done += checked.live;
            run.stage = ScrubStage::Segment(segment.0, at);
        });
        Ok(checked.read)
    }

    /// Goes on to the next segment, or ends the run.
    fn leave(&mut self, segment: SegmentNo, tally: Tally) {
        let end = SegmentNo(self.known.end);
        let next = SegmentNo(segment.0.saturating_add(1));
        let (first, live) = self.pool.live_segments(next, end);
        let now = self.pool.now().seconds;
        self.advance(tally, |run| {
            // What was freed or written meanwhile shows in what is left.
            run.total = run.done + live;
            match first {
                Some(first) => run.stage = ScrubStage::Segment(first.0, 0),
                None => finish(run, now),
            }
        });
    }
}

fn finish(run: &mut ScrubRun, now: i64) {
    run.state = ScrubState::Finished;
    run.finished = Some(now);
    run.total = run.done;
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicI64, Ordering};

    use super::*;
    use crate::backing::{Backing, DirBacking};
    use crate::format::{Algorithm, Ino, Timestamp};
    use crate::index::Txn;
    use crate::ledger::Event;
    use crate::pool::tests::small;
    use crate::pool::{CreateOptions, Intent, Named, OpenOptions, create};

    const DAY: i64 = 86_400;

    /// Mirrors in real directories, so that there is a ledger, and the hand of the clock.
    struct Scene {
        dirs: Vec<tempfile::TempDir>,
        now: Arc<AtomicI64>,
    }

    impl Scene {
        fn new() -> Scene {
            let scene = Scene {
                dirs: (0..2).map(|_| tempfile::tempdir().unwrap()).collect(),
                now: Arc::new(AtomicI64::new(100 * DAY)),
            };
            let backings: Vec<_> = scene
                .named()
                .into_iter()
                .filter_map(|(_, dir)| dir)
                .collect();
            let options = CreateOptions {
                label: String::new(),
                algorithm: Algorithm::Xxh3,
                journal_size: 1 << 20,
                created: 100 * DAY,
                random: (0..4).map(|n| [n + 1; 16]).collect(),
            };
            create(&backings, &options).unwrap();
            scene
        }

        fn named(&self) -> Vec<Named> {
            let named = |dir: &tempfile::TempDir| {
                let dir = DirBacking::open(dir.path()).unwrap();
                (dir.label(), Some(Arc::new(dir) as Arc<dyn Backing>))
            };
            self.dirs.iter().map(named).collect()
        }

        fn mount(&self) -> Arc<Pool> {
            let now = Arc::clone(&self.now);
            let options = OpenOptions {
                ledger: true,
                clock: Arc::new(move || Timestamp {
                    seconds: now.load(Ordering::Relaxed),
                    nanoseconds: 0,
                }),
                ..small()
            };
            Arc::new(Pool::open(self.named(), options).unwrap())
        }

        fn pass(&self, seconds: i64) {
            self.now.fetch_add(seconds, Ordering::Relaxed);
        }
    }

    fn fill(pool: &Pool) {
        for number in 0..8 {
            pool.begin(Intent::Grow).unwrap();
            let row = pool
                .store(Ino(2), number << 20, &[7; 1 << 20], crate::pool::Room::Free)
                .unwrap();
            let mut txn = Txn::new();
            txn.link_extent(Ino(2), number << 20, &row);
            pool.commit(txn).unwrap();
        }
        pool.checkpoint().unwrap();
    }

    fn run(scrubber: &mut Scrubber) {
        while scrubber.step(1 << 20).unwrap().is_some() {}
    }

    fn told(events: Vec<Event>) -> Vec<(String, u64)> {
        let scrubs = events.into_iter().filter_map(|event| match event.what {
            What::Scrub {
                state, bytes_done, ..
            } => Some((state, bytes_done)),
            _ => None,
        });
        scrubs.collect()
    }

    const ASKED: ScrubOptions = ScrubOptions {
        interval: None,
        rate: None,
    };

    #[test]
    fn a_run_is_in_the_ledger_and_goes_on_after_a_mount() {
        let scene = Scene::new();
        let pool = scene.mount();
        fill(&pool);
        let mut scrubber = Scrubber::new(Arc::clone(&pool), ASKED);
        assert_eq!(scrubber.step(1 << 20).unwrap(), None, "nobody asked");
        let start = ScrubOrder::Start { rate: Some(5) };
        pool.scrub().order(start, pool.now()).unwrap();
        for _ in 0..6 {
            assert!(scrubber.step(1 << 20).unwrap().is_some());
        }
        let before = pool.scrub().run();
        assert!(
            matches!(before.stage, ScrubStage::Segment(..)),
            "{before:?}"
        );
        scrubber.save();
        drop(scrubber);
        pool.close().unwrap();
        drop(pool);
        let pool = scene.mount();
        let mut scrubber = Scrubber::new(Arc::clone(&pool), ASKED);
        assert_eq!(pool.scrub().run(), before);
        assert_eq!(scrubber.rate(), Some(5));
        scene.pass(10);
        run(&mut scrubber);
        let after = pool.scrub().status().unwrap();
        assert_eq!((after.state, after.percent), (ScrubState::Finished, 100));
        assert_eq!(
            (after.started, after.finished),
            (100 * DAY, Some(100 * DAY + 10))
        );
        let events = told(pool.events(100));
        assert_eq!(events.first(), Some(&("running".to_owned(), 0)));
        assert_eq!(
            events.last(),
            Some(&("finished".to_owned(), after.bytes_done))
        );
        drop(scrubber);
        pool.close().unwrap();
        drop(pool);
        let pool = scene.mount();
        let _scrubber = Scrubber::new(Arc::clone(&pool), ASKED);
        assert_eq!(
            pool.scrub().status(),
            Some(after),
            "the last run is not forgotten"
        );
    }

    #[test]
    fn a_scrub_is_due_an_interval_after_the_last_one_or_the_making_of_the_pool() {
        let scene = Scene::new();
        let pool = scene.mount();
        fill(&pool);
        let mut scrubber = Scrubber::new(Arc::clone(&pool), ScrubOptions::default());
        scene.pass(30 * DAY - 1);
        assert_eq!(scrubber.step(1 << 20).unwrap(), None);
        scene.pass(1);
        assert!(scrubber.step(1 << 20).unwrap().is_some());
        run(&mut scrubber);
        assert_eq!(pool.scrub().run().number, 1);
        scene.pass(30 * DAY - 1);
        assert_eq!(scrubber.step(1 << 20).unwrap(), None);
        // One that waits is not begun anew, and one that was cancelled counts as the last.
        let start = ScrubOrder::Start { rate: None };
        pool.scrub().order(start, pool.now()).unwrap();
        pool.scrub().order(ScrubOrder::Pause, pool.now()).unwrap();
        scene.pass(100 * DAY);
        assert_eq!(scrubber.step(1 << 20).unwrap(), None);
        pool.scrub().order(ScrubOrder::Cancel, pool.now()).unwrap();
        assert_eq!(scrubber.step(1 << 20).unwrap(), None);
        scene.pass(30 * DAY);
        assert!(scrubber.step(1 << 20).unwrap().is_some());
        assert_eq!(pool.scrub().run().number, 3);
    }

    #[test]
    fn the_index_is_begun_again_and_what_does_not_decode_is_no_run() {
        let scene = Scene::new();
        let pool = scene.mount();
        let mut run = ScrubRun {
            number: 2,
            state: ScrubState::Running,
            stage: ScrubStage::Index(7),
            done: 10,
            ..ScrubRun::default()
        };
        pool.remember(REMEMBERED, &serde_json::to_vec(&run).unwrap());
        let _scrubber = Scrubber::new(Arc::clone(&pool), ASKED);
        run.stage = ScrubStage::Index(0);
        assert_eq!(pool.scrub().run(), run, "the index is begun again");
        pool.remember(REMEMBERED, b"nonsense");
        let pool_run = Scrubber::new(Arc::clone(&pool), ASKED).known;
        assert_eq!(pool_run, ScrubRun::default());
    }
}
