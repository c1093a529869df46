//! Keeps a background job from starving applications, or to a rate that was asked for.
//!
//! The job does a piece of work, [`Pace::account`]s for it, and waits as long as it is told. With a
//! rate this is a token bucket. Without one it is adaptive: the busier applications keep the pool,
//! the smaller the share of time that the job works in. A job that works a share `s` of the time
//! slows a request that it meets down to a half or a third, so applications that are busy for a
//! part `b` of the time lose up to about `2 s b`; with `s = SHARE / b` that stays well below a
//! tenth however busy they are, and those that ask for little do not slow the job at all.
//!
//! Nothing here sleeps or reads a clock of its own: whoever drives the job waits.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use crate::pool::{Monotonic, Pool, monotonic};

/// Part of the time, in thousandths, that the job works in while applications are never idle.
const SHARE: u64 = 30;
/// However busy applications are, the job gets so many bytes per second done, if the disks do.
const LEAST: u64 = 1 << 20;
/// How long ago applications may have been busy to count.
const MEMORY: Duration = Duration::from_millis(200);
/// What a job with a rate may catch up on.
const BURST: Duration = Duration::from_millis(100);

/// Time that applications have been served in so far.
pub type Busy = Arc<dyn Fn() -> Duration + Send + Sync>;

/// The throttle of one background job.
pub struct Pace {
    clock: Monotonic,
    busy: Busy,
    rate: Option<u64>,
    /// With a rate: when everything accounted for has been paid.
    paid_at: Duration,
    /// When the job was last accounted for, and when it may have begun to work since.
    last: Duration,
    resumed: Duration,
    busy_before: Duration,
    /// How busy applications are, in thousandths of the time.
    level: u64,
}

impl fmt::Debug for Pace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pace")
            .field("rate", &self.rate)
            .field("level", &self.level)
            .finish_non_exhaustive()
    }
}

impl Pace {
    /// For a job of this pool: at most `rate` bytes per second, or adaptive.
    pub fn new(pool: &Arc<Pool>, rate: Option<u64>) -> Pace {
        let pool = Arc::clone(pool);
        Pace::with(
            rate,
            monotonic(),
            Arc::new(move || pool.load_of_applications().busy()),
        )
    }

    /// As [`Pace::new`], with a clock and a measure of one's own.
    pub fn with(rate: Option<u64>, clock: Monotonic, busy: Busy) -> Pace {
        let (now, busy_before) = (clock(), busy());
        Pace {
            clock,
            busy,
            rate: rate.filter(|rate| *rate > 0),
            paid_at: now,
            last: now,
            resumed: now,
            busy_before,
            level: 0,
        }
    }

    /// Changes the rate in bytes per second; none is adaptive.
    pub fn set_rate(&mut self, rate: Option<u64>) {
        let rate = rate.filter(|rate| *rate > 0);
        if self.rate != rate {
            self.rate = rate;
            self.paid_at = (self.clock)();
        }
    }

    /// The job begins to work now: the time since it last did counts for nothing.
    pub fn resume(&mut self) {
        let now = (self.clock)();
        (self.last, self.resumed, self.paid_at) = (now, now, now);
        self.busy_before = (self.busy)();
    }

    /// The job has read or written `bytes` since it last waited; how long it is to wait now.
    pub fn account(&mut self, bytes: u64) -> Duration {
        let now = (self.clock)();
        let worked = now.saturating_sub(self.resumed);
        self.look(now);
        let wait = match self.rate {
            Some(rate) => {
                let cost = per(bytes, rate);
                self.paid_at = self.paid_at.max(now.saturating_sub(BURST)) + cost;
                self.paid_at.saturating_sub(now)
            }
            None if self.level <= SHARE => Duration::ZERO,
            None => {
                let wait = worked.as_micros() * u128::from(self.level - SHARE) / u128::from(SHARE);
                let wait = Duration::from_micros(u64::try_from(wait).unwrap_or(u64::MAX));
                wait.min(per(bytes, LEAST))
            }
        };
        self.last = now;
        self.resumed = now + wait;
        wait
    }

    /// Takes in how busy applications were since the last look. What was within [`MEMORY`] counts
    /// about as much as all before it.
    fn look(&mut self, now: Duration) {
        let busy = (self.busy)();
        let elapsed = now.saturating_sub(self.last).as_micros();
        if elapsed == 0 {
            return;
        }
        let served = busy.saturating_sub(self.busy_before).as_micros();
        // Requests served side by side add up to more than the time.
        let level = (served * 1000 / elapsed).min(1000);
        let weight = elapsed + MEMORY.as_micros();
        let mixed = (u128::from(self.level) * MEMORY.as_micros() + level * elapsed) / weight;
        self.level = u64::try_from(mixed).unwrap_or(1000);
        self.busy_before = busy;
    }
}

/// How long `bytes` take at `rate` bytes per second.
fn per(bytes: u64, rate: u64) -> Duration {
    let micros = u128::from(bytes) * 1_000_000 / u128::from(rate.max(1));
    Duration::from_micros(u64::try_from(micros).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use super::*;

    const MIB: u64 = 1 << 20;

    /// A machine whose time passes when it is told, in microseconds.
    #[derive(Default)]
    struct Machine {
        now: Arc<AtomicU64>,
        busy: Arc<AtomicU64>,
    }

    fn reader(of: &Arc<AtomicU64>) -> Arc<dyn Fn() -> Duration + Send + Sync> {
        let of = Arc::clone(of);
        Arc::new(move || Duration::from_micros(of.load(Ordering::Relaxed)))
    }

    impl Machine {
        fn pace(&self, rate: Option<u64>) -> Pace {
            Pace::with(rate, reader(&self.now), reader(&self.busy))
        }

        /// Time passes, in which applications are busy for `level` thousandths of it.
        fn pass(&self, time: Duration, level: u64) {
            let micros = time.as_micros() as u64;
            self.now.fetch_add(micros, Ordering::Relaxed);
            self.busy
                .fetch_add(micros * level / 1000, Ordering::Relaxed);
        }

        /// Runs a job for `time`, each piece of `bytes` taking `piece`; (share of the time worked
        /// in thousandths, bytes per second).
        fn run(
            &self,
            pace: &mut Pace,
            time: Duration,
            piece: Duration,
            bytes: u64,
            level: u64,
        ) -> (u64, u64) {
            let begin = self.now.load(Ordering::Relaxed);
            let (mut worked, mut done) = (0, 0);
            while self.now.load(Ordering::Relaxed) - begin < time.as_micros() as u64 {
                self.pass(piece, level);
                worked += piece.as_micros() as u64;
                done += bytes;
                let wait = pace.account(bytes);
                self.pass(wait, level);
            }
            let elapsed = self.now.load(Ordering::Relaxed) - begin;
            (worked * 1000 / elapsed, done * 1_000_000 / elapsed)
        }
    }

    const MINUTE: Duration = Duration::from_secs(60);
    const PIECE: Duration = Duration::from_millis(4);

    #[test]
    fn a_rate_is_kept() {
        let machine = Machine::default();
        for rate in [10 * MIB, 100 * MIB] {
            let mut pace = machine.pace(Some(rate));
            let (_, reached) = machine.run(&mut pace, MINUTE, PIECE, MIB, 1000);
            assert!(reached.abs_diff(rate) < rate / 50, "{reached} for {rate}");
        }
    }

    #[test]
    fn a_rate_beyond_what_the_disks_do_waits_for_nothing() {
        let machine = Machine::default();
        let mut pace = machine.pace(Some(u64::MAX));
        let (share, _) = machine.run(&mut pace, MINUTE, PIECE, MIB, 1000);
        assert_eq!(share, 1000);
    }

    #[test]
    fn a_pause_is_not_caught_up_on() {
        let machine = Machine::default();
        let mut pace = machine.pace(Some(10 * MIB));
        machine.pass(10 * MINUTE, 0);
        let waited: Duration = (0..10).map(|_| pace.account(MIB)).max().unwrap();
        assert!(waited > Duration::from_millis(800), "{waited:?}");
    }

    #[test]
    fn without_applications_the_job_never_waits() {
        let machine = Machine::default();
        let mut pace = machine.pace(None);
        let (share, _) = machine.run(&mut pace, MINUTE, PIECE, 4 * MIB, 0);
        assert_eq!(share, 1000);
        // Nor for a log that is written now and then.
        let (share, _) = machine.run(&mut pace, MINUTE, PIECE, 4 * MIB, 20);
        assert_eq!(share, 1000);
    }

    #[test]
    fn beside_busy_applications_the_job_works_a_small_share_of_the_time() {
        let machine = Machine::default();
        let mut pace = machine.pace(None);
        for (level, most) in [(1000, 40), (500, 75), (100, 350)] {
            machine.run(&mut pace, MINUTE, PIECE, 4 * MIB, level);
            let (share, _) = machine.run(&mut pace, MINUTE, PIECE, 4 * MIB, level);
            assert!(share <= most && share > 0, "{share} while {level} busy");
        }
    }

    #[test]
    fn some_progress_is_made_however_slow_the_disks_are() {
        let machine = Machine::default();
        let mut pace = machine.pace(None);
        let slow = Duration::from_secs(1);
        let (_, reached) = machine.run(&mut pace, 10 * MINUTE, slow, 4 * MIB, 1000);
        assert!(reached > LEAST / 2, "{reached}");
    }

    #[test]
    fn the_job_slows_down_soon_after_applications_begin_and_picks_up_after_they_end() {
        let machine = Machine::default();
        let mut pace = machine.pace(None);
        machine.run(&mut pace, MINUTE, PIECE, 4 * MIB, 0);
        let second = Duration::from_secs(1);
        let (share, _) = machine.run(&mut pace, second, PIECE, 4 * MIB, 1000);
        assert!(share < 100, "{share}");
        machine.run(&mut pace, 2 * second, PIECE, 4 * MIB, 0);
        let (share, _) = machine.run(&mut pace, second, PIECE, 4 * MIB, 0);
        assert_eq!(share, 1000);
    }

    #[test]
    fn what_reads_nothing_does_not_wait() {
        let machine = Machine::default();
        let mut pace = machine.pace(None);
        machine.run(&mut pace, MINUTE, PIECE, 4 * MIB, 1000);
        machine.pass(PIECE, 1000);
        assert_eq!(pace.account(0), Duration::ZERO);
    }
}
