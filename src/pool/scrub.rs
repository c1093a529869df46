//! The desk of the scrub: what people asked for, and what they are told.
//!
//! Orders take effect here at once, under one short lock that nothing holds over I/O, so that the
//! status answers at any time. The service that does the work (`services::scrub`) looks here before
//! each piece of it, and puts down what it has done. A run can be written to the ledger and taken
//! up again by a later mount.

use std::fmt;
use std::time::Duration;

use parking_lot::{Condvar, Mutex};
use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::progress::{Monotonic, Progress};
use super::status::{ScrubState, ScrubStatus};
use crate::format::Timestamp;

/// What somebody wants of the scrub.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ScrubOrder {
    /// Begin a run, or go on with a paused one.
    Start {
        /// Limit in bytes per second; none for what the mount says.
        rate: Option<u64>,
    },
    /// Stop, to go on later.
    Pause,
    /// Go on with a paused run.
    Resume {
        /// As in a start; none leaves it as it is.
        rate: Option<u64>,
    },
    /// End the run.
    Cancel,
}

impl ScrubOrder {
    /// Reads an order as it is written to the attribute: `start`, `pause`, `resume` or `cancel`,
    /// the first and third perhaps with `rate=` and a number of MB/s.
    pub fn parse(text: &str) -> Option<ScrubOrder> {
        let mut words = text.split_ascii_whitespace();
        let word = words.next()?;
        let rate = match words.next() {
            Some(word) => Some(parse_rate(word.strip_prefix("rate=")?)?),
            None => None,
        };
        let order = match (word, rate) {
            ("start", rate) => ScrubOrder::Start { rate },
            ("resume", rate) => ScrubOrder::Resume { rate },
            ("pause", None) => ScrubOrder::Pause,
            ("cancel", None) => ScrubOrder::Cancel,
            _ => return None,
        };
        words.next().is_none().then_some(order)
    }
}

/// Bytes per second, from a number above 0, with or without decimals: of MB/s (10^6 bytes), or with
/// K, M, G or T at its end, which are powers of 1024 bytes per second.
pub fn parse_rate(text: &str) -> Option<u64> {
    let (number, unit) = match text.char_indices().next_back()? {
        (at, 'k' | 'K') => (&text[..at], 1024.0),
        (at, 'm' | 'M') => (&text[..at], 1024.0 * 1024.0),
        (at, 'g' | 'G') => (&text[..at], 1024.0 * 1024.0 * 1024.0),
        (at, 't' | 'T') => (&text[..at], 1024.0 * 1024.0 * 1024.0 * 1024.0),
        _ => (text, 1e6),
    };
    let digits = number
        .bytes()
        .all(|byte| byte.is_ascii_digit() || byte == b'.');
    let rate = number.parse::<f64>().ok().filter(|_| digits)? * unit;
    (1.0..1e18).contains(&rate).then_some(rate as u64)
}

/// Why an order was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum ScrubRefusal {
    /// A run is under way.
    #[error("a scrub is running already")]
    Running,
    /// Nothing is there to pause, resume or cancel.
    #[error("no scrub is under way")]
    Idle,
}

/// Where a run is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ScrubStage {
    /// The superblocks are next.
    #[default]
    Superblocks,
    /// The page sums, and then the index pages from this number on.
    Index(u32),
    /// File data, from this offset of this segment on.
    Segment(u64, u32),
}

/// Copies found bad, and what became of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Tally {
    /// Rewritten, read back from the medium, and good.
    pub repaired: u64,
    /// Not rewritten, or not good after it, or good on no mirror.
    pub unrepairable: u64,
}

impl Tally {
    /// Adds another.
    pub fn add(&mut self, other: Tally) {
        self.repaired += other.repaired;
        self.unrepairable += other.unrepairable;
    }

    /// Copies found bad.
    pub const fn found(self) -> u64 {
        self.repaired + self.unrepairable
    }
}

/// One run, as it is remembered.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct ScrubRun {
    /// Number of the run, from 1 on; 0: there was none yet.
    pub number: u64,
    /// What it is doing, or how it ended.
    pub state: ScrubState,
    /// When it began, in seconds since 1970-01-01 UTC.
    pub started: i64,
    /// When it ended.
    pub finished: Option<i64>,
    /// Bytes checked on each mirror.
    pub done: u64,
    /// Bytes to check on each mirror.
    pub total: u64,
    /// What was found.
    pub tally: Tally,
    /// Limit in bytes per second that this run was given.
    pub rate: Option<u64>,
    /// Where it goes on.
    pub stage: ScrubStage,
    /// Segments from this one on are younger than the run.
    pub end: u64,
}

impl ScrubRun {
    /// Whether it is neither ended nor never begun.
    pub const fn is_open(&self) -> bool {
        matches!(self.state, ScrubState::Running | ScrubState::Paused)
    }
}

struct Desk {
    run: ScrubRun,
    progress: Progress,
    /// Raised by every order that was taken.
    orders: u64,
}

/// See the module's text.
pub struct Scrub {
    desk: Mutex<Desk>,
    ordered: Condvar,
}

impl fmt::Debug for Scrub {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Scrub")
            .field("run", &self.desk.lock().run)
            .finish_non_exhaustive()
    }
}

impl Scrub {
    /// A desk that nobody has come to yet.
    pub(super) fn new(clock: Monotonic) -> Scrub {
        Scrub {
            desk: Mutex::new(Desk {
                run: ScrubRun::default(),
                progress: Progress::new(clock),
                orders: 0,
            }),
            ordered: Condvar::new(),
        }
    }

    /// Takes an order at this time.
    ///
    /// # Errors
    /// [`ScrubRefusal`].
    pub fn order(&self, order: ScrubOrder, now: Timestamp) -> Result<(), ScrubRefusal> {
        let mut desk = self.desk.lock();
        let Desk { run, progress, .. } = &mut *desk;
        match (order, run.state) {
            (ScrubOrder::Start { .. }, ScrubState::Running) => return Err(ScrubRefusal::Running),
            (ScrubOrder::Start { rate } | ScrubOrder::Resume { rate }, ScrubState::Paused) => {
                run.state = ScrubState::Running;
                run.rate = rate.or(run.rate);
                progress.start(run.done, run.total);
            }
            (ScrubOrder::Resume { rate }, ScrubState::Running) => run.rate = rate.or(run.rate),
            (ScrubOrder::Start { rate }, _) => {
                *run = ScrubRun {
                    number: run.number + 1,
                    state: ScrubState::Running,
                    started: now.seconds,
                    rate,
                    ..ScrubRun::default()
                };
                progress.start(0, 0);
            }
            (ScrubOrder::Pause, ScrubState::Running | ScrubState::Paused) => {
                run.state = ScrubState::Paused;
                progress.stop();
            }
            (ScrubOrder::Cancel, ScrubState::Running | ScrubState::Paused) => {
                run.state = ScrubState::Cancelled;
                run.finished = Some(now.seconds);
                progress.stop();
            }
            (ScrubOrder::Pause | ScrubOrder::Resume { .. } | ScrubOrder::Cancel, _) => {
                return Err(ScrubRefusal::Idle);
            }
        }
        desk.orders += 1;
        self.ordered.notify_all();
        Ok(())
    }

    /// The run as it stands.
    pub fn run(&self) -> ScrubRun {
        self.desk.lock().run.clone()
    }

    /// Takes up a run of an earlier mount.
    pub fn take_up(&self, run: ScrubRun) {
        let mut desk = self.desk.lock();
        desk.progress.start(run.done, run.total);
        if run.state != ScrubState::Running {
            desk.progress.stop();
        }
        desk.run = run;
    }

    /// Puts down what was done of the run that `change` is about, unless an order has ended or
    /// replaced it meanwhile. What was found counts in any case.
    pub fn advance(&self, number: u64, found: Tally, change: impl FnOnce(&mut ScrubRun)) {
        let mut desk = self.desk.lock();
        let Desk { run, progress, .. } = &mut *desk;
        if run.number != number {
            return;
        }
        run.tally.add(found);
        if run.is_open() {
            change(run);
            progress.set(run.done, run.total);
            if !run.is_open() {
                progress.stop();
            }
        }
    }

    /// Waits for the next order, at most for `timeout`, unless `stopped` says so.
    pub fn wait(&self, timeout: Duration, stopped: &dyn Fn() -> bool) {
        let mut desk = self.desk.lock();
        if !stopped() {
            self.ordered.wait_for(&mut desk, timeout);
        }
    }

    /// Wakes whoever waits for an order.
    pub fn wake(&self) {
        let _desk = self.desk.lock();
        self.ordered.notify_all();
    }

    /// What people are told; none if there never was a run.
    pub fn status(&self) -> Option<ScrubStatus> {
        let desk = self.desk.lock();
        let Desk { run, progress, .. } = &*desk;
        (run.number > 0).then(|| ScrubStatus {
            state: run.state,
            started: run.started,
            finished: run.finished,
            bytes_done: run.done,
            bytes_total: run.total,
            percent: match run.state {
                ScrubState::Finished => 100,
                _ => progress.percent(),
            },
            rate_bytes_per_s: progress.rate(),
            eta_s: progress.eta().map(|eta| eta.as_secs()),
            errors_found: run.tally.found(),
            repaired: run.tally.repaired,
            unrepairable: run.tally.unrepairable,
            limit_bytes_per_s: run.rate,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Timestamp = Timestamp {
        seconds: 100,
        nanoseconds: 0,
    };
    const START: ScrubOrder = ScrubOrder::Start { rate: None };
    const RESUME: ScrubOrder = ScrubOrder::Resume { rate: None };

    fn scrub() -> Scrub {
        Scrub::new(super::super::progress::monotonic())
    }

    #[test]
    fn orders_follow_one_another_as_they_make_sense() {
        let scrub = scrub();
        assert_eq!(scrub.status(), None);
        for order in [ScrubOrder::Pause, RESUME, ScrubOrder::Cancel] {
            assert_eq!(scrub.order(order, NOW), Err(ScrubRefusal::Idle));
        }
        scrub.order(START, NOW).unwrap();
        assert_eq!(scrub.order(START, NOW), Err(ScrubRefusal::Running));
        scrub.order(RESUME, NOW).unwrap();
        scrub.order(ScrubOrder::Pause, NOW).unwrap();
        scrub.order(ScrubOrder::Pause, NOW).unwrap();
        assert_eq!(scrub.run().state, ScrubState::Paused);
        scrub.order(START, NOW).unwrap();
        assert_eq!(
            (scrub.run().state, scrub.run().number),
            (ScrubState::Running, 1)
        );
        scrub.order(ScrubOrder::Cancel, NOW).unwrap();
        assert_eq!(
            scrub.order(ScrubOrder::Cancel, NOW),
            Err(ScrubRefusal::Idle)
        );
        let status = scrub.status().unwrap();
        assert_eq!(
            (status.state, status.finished),
            (ScrubState::Cancelled, Some(100))
        );
        scrub.order(START, NOW).unwrap();
        assert_eq!(scrub.run().number, 2);
    }

    #[test]
    fn a_piece_of_work_that_ends_after_a_cancel_changes_nothing_but_the_tally() {
        let scrub = scrub();
        scrub.order(START, NOW).unwrap();
        scrub.order(ScrubOrder::Cancel, NOW).unwrap();
        let found = Tally {
            repaired: 2,
            unrepairable: 1,
        };
        scrub.advance(1, found, |run| run.state = ScrubState::Finished);
        let status = scrub.status().unwrap();
        assert_eq!(status.state, ScrubState::Cancelled);
        assert_eq!((status.errors_found, status.unrepairable), (3, 1));
        scrub.order(START, NOW).unwrap();
        scrub.advance(1, found, |run| run.done = 7);
        assert_eq!((scrub.run().done, scrub.run().tally), (0, Tally::default()));
    }

    #[test]
    fn orders_are_read_as_they_are_written() {
        let start = |rate| Some(ScrubOrder::Start { rate });
        assert_eq!(ScrubOrder::parse("start\n"), start(None));
        assert_eq!(
            ScrubOrder::parse(" start rate=2.5 "),
            start(Some(2_500_000))
        );
        let resume = ScrubOrder::Resume {
            rate: Some(1_000_000),
        };
        assert_eq!(ScrubOrder::parse("resume rate=1"), Some(resume));
        assert_eq!(ScrubOrder::parse("pause"), Some(ScrubOrder::Pause));
        assert_eq!(ScrubOrder::parse("cancel"), Some(ScrubOrder::Cancel));
        for nonsense in [
            "",
            "begin",
            "START",
            "start now",
            "start rate=",
            "start rate=0",
            "start rate=-1",
            "start rate=1e3",
            "start rate=inf",
            "start rate=1 2",
            "pause rate=1",
            "start\0",
        ] {
            assert_eq!(ScrubOrder::parse(nonsense), None, "{nonsense:?}");
        }
    }

    #[test]
    fn a_run_survives_its_way_through_json() {
        let run = ScrubRun {
            number: 3,
            state: ScrubState::Paused,
            stage: ScrubStage::Segment(7, 4096),
            rate: Some(1),
            ..ScrubRun::default()
        };
        let text = serde_json::to_vec(&run).unwrap();
        assert_eq!(serde_json::from_slice::<ScrubRun>(&text).unwrap(), run);
    }
}
