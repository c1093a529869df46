//! How far a long job is, how fast it is now, and when it will end.
//!
//! Rate and end follow from what was done within the last [`WINDOW`], as of the moment of asking:
//! a job that slows down or stands still shows a falling rate and a later end at once, and none
//! when nothing moves, so a figure that was right once never stays.

use std::collections::VecDeque;
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How far back the rate looks.
const WINDOW: Duration = Duration::from_secs(30);
/// Samples are kept this far apart.
const APART: Duration = Duration::from_millis(500);

/// A clock that never goes back: time since some moment.
pub type Monotonic = Arc<dyn Fn() -> Duration + Send + Sync>;

/// The machine's own.
pub fn monotonic() -> Monotonic {
    let begin = Instant::now();
    Arc::new(move || begin.elapsed())
}

/// Progress of a job, in bytes.
pub struct Progress {
    clock: Monotonic,
    done: u64,
    total: u64,
    /// What was done by when, the oldest first; the first is at most a window old, or the one
    /// before that.
    samples: VecDeque<(Duration, u64)>,
    running: bool,
}

impl fmt::Debug for Progress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Progress")
            .field("done", &self.done)
            .field("total", &self.total)
            .finish_non_exhaustive()
    }
}

impl Progress {
    /// Nothing is done, and nothing runs.
    pub fn new(clock: Monotonic) -> Progress {
        Progress {
            clock,
            done: 0,
            total: 0,
            samples: VecDeque::new(),
            running: false,
        }
    }

    /// The job begins, or goes on, where `done` bytes of `total` are done.
    pub fn start(&mut self, done: u64, total: u64) {
        (self.done, self.total, self.running) = (done, total, true);
        self.samples.clear();
        self.samples.push_back(((self.clock)(), done));
    }

    /// The job stands still on purpose, or has ended.
    pub fn stop(&mut self) {
        self.running = false;
    }

    /// So much is done of so much; both may change in any way.
    pub fn set(&mut self, done: u64, total: u64) {
        (self.done, self.total) = (done, total.max(done));
        let now = (self.clock)();
        let due = |last: &(Duration, u64)| now >= last.0 + APART;
        if self.samples.back().is_none_or(due) {
            self.samples.push_back((now, done));
        }
        // One that is older than the window stays, to measure from.
        while self
            .samples
            .get(1)
            .is_some_and(|second| second.0 + WINDOW <= now)
        {
            self.samples.pop_front();
        }
    }

    /// Bytes done.
    pub const fn done(&self) -> u64 {
        self.done
    }

    /// Bytes to do in all.
    pub const fn total(&self) -> u64 {
        self.total
    }

    /// Whole percents done; 100 only when all is.
    pub fn percent(&self) -> u8 {
        if self.total == 0 {
            return 0;
        }
        // At most 100, since `set` keeps the total above what is done.
        (u128::from(self.done) * 100 / u128::from(self.total)) as u8
    }

    /// Bytes per second within the last window; none while the job does not run.
    pub fn rate(&self) -> Option<u64> {
        let now = (self.clock)();
        let inside = |sample: &&(Duration, u64)| sample.0 + WINDOW > now;
        let oldest = self.samples.iter().find(inside).or(self.samples.back())?;
        let elapsed = now.saturating_sub(oldest.0);
        if !self.running || elapsed < APART {
            return None;
        }
        let bytes = u128::from(self.done.saturating_sub(oldest.1));
        u64::try_from(bytes * 1_000_000 / elapsed.as_micros().max(1)).ok()
    }

    /// Time until the end at the present rate; none while nothing moves.
    pub fn eta(&self) -> Option<Duration> {
        let rate = self.rate().filter(|rate| *rate > 0)?;
        let left = self.total.saturating_sub(self.done);
        Some(Duration::from_secs(left.div_ceil(rate)))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use super::*;

    /// A progress and the hand of its clock, in milliseconds.
    fn progress() -> (Progress, Arc<AtomicU64>) {
        let hand = Arc::new(AtomicU64::new(1000));
        let clock = Arc::clone(&hand);
        let clock: Monotonic =
            Arc::new(move || Duration::from_millis(clock.load(Ordering::Relaxed)));
        (Progress::new(clock), hand)
    }

    fn pass(hand: &AtomicU64, ms: u64) {
        hand.fetch_add(ms, Ordering::Relaxed);
    }

    #[test]
    fn a_steady_job_tells_its_rate_and_end() {
        let (mut progress, hand) = progress();
        progress.start(0, 1000);
        for done in 1..=50 {
            pass(&hand, 100);
            progress.set(done * 10, 1000);
        }
        assert_eq!(progress.rate(), Some(100));
        assert_eq!(progress.eta(), Some(Duration::from_secs(5)));
        assert_eq!(progress.percent(), 50);
    }

    #[test]
    fn a_job_that_stands_still_never_sticks_at_an_end() {
        let (mut progress, hand) = progress();
        progress.start(0, 10_000);
        for done in 1..=10 {
            pass(&hand, 1000);
            progress.set(done * 100, 10_000);
        }
        let mut last = progress.eta().unwrap();
        // Nobody says anything any more: the figures follow from the moment of asking.
        for _ in 0..25 {
            pass(&hand, 1000);
            let eta = progress.eta().expect("still something within the window");
            assert!(eta > last, "{eta:?} after {last:?}");
            last = eta;
        }
        pass(&hand, 30_000);
        assert_eq!((progress.rate(), progress.eta()), (Some(0), None));
    }

    #[test]
    fn a_change_of_speed_shows_within_a_window() {
        let (mut progress, hand) = progress();
        progress.start(0, 1 << 30);
        let mut done = 0;
        for step in [1000, 10] {
            for _ in 0..31 {
                pass(&hand, 1000);
                done += step;
                progress.set(done, 1 << 30);
            }
            let rate = progress.rate().unwrap();
            assert!(rate.abs_diff(step) <= step / 10, "{rate} for {step}");
        }
    }

    #[test]
    fn what_was_done_before_a_pause_or_a_mount_is_no_speed() {
        let (mut progress, hand) = progress();
        progress.start(5000, 10_000);
        pass(&hand, 1000);
        progress.set(5100, 10_000);
        assert_eq!(progress.rate(), Some(100));
        progress.stop();
        assert_eq!((progress.rate(), progress.eta()), (None, None));
        pass(&hand, 3_600_000);
        progress.start(5100, 10_000);
        pass(&hand, 1000);
        progress.set(5200, 10_000);
        assert_eq!(progress.rate(), Some(100));
    }

    #[test]
    fn a_total_that_changes_moves_the_end() {
        let (mut progress, hand) = progress();
        progress.start(0, 1000);
        pass(&hand, 1000);
        progress.set(100, 1000);
        assert_eq!(progress.eta(), Some(Duration::from_secs(9)));
        progress.set(100, 2000);
        assert_eq!(progress.eta(), Some(Duration::from_secs(19)));
        progress.set(100, 50);
        assert_eq!(
            (progress.percent(), progress.eta()),
            (100, Some(Duration::ZERO))
        );
        assert!(progress.samples.len() < 100);
    }
}
