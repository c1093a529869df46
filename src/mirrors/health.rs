//! How well a mirror answers: the error budget, suspicion, and which mirror a read goes to.
//!
//! A read error is answered from another mirror and costs the mirror a token of its budget, which
//! fills up again with time; a mirror whose budget is spent is taken out. The first error, and a
//! read that took too long, make it suspect: it is read from last until it has been quiet for a
//! while. Between healthy mirrors reads are spread, and the faster one gets more of them.

use std::sync::atomic::{AtomicU64, Ordering};

use tracing_mutex::parkinglot::Mutex;

use super::set::{Attached, Counters, Mirror, MirrorSet, MirrorState};
use crate::backing::FileName;

/// Read errors that a mirror may have before it is taken out.
pub const READ_ERROR_BUDGET: u32 = 64;
/// Seconds after which one read error is forgotten.
const FORGET_ONE: i64 = 10;
/// Seconds without an error after which a mirror is no longer suspect.
const QUIET: i64 = 60;
/// A mirror that takes this many times as long as the fastest gets no reads but those that no
/// other can answer.
const MUCH_SLOWER: u64 = 8;
/// Reads timed before speeds are compared.
const TIMED_ENOUGH: u64 = 64;

/// What is known of a mirror's answers.
#[derive(Debug, Default)]
pub(super) struct Health {
    errors: Mutex<Errors>,
    /// Moving average of nanoseconds for a read of a block that took longer than the page cache
    /// does.
    pace: AtomicU64,
    timed: AtomicU64,
}

#[derive(Debug, Default)]
struct Errors {
    /// Errors that count against the budget.
    spent: u32,
    /// When `spent` was last reckoned, in seconds.
    at: i64,
    /// When the last one came.
    last: i64,
}

impl Errors {
    fn forget(&mut self, now: i64) {
        let passed = now.saturating_sub(self.at) / FORGET_ONE;
        if passed > 0 {
            self.spent = self
                .spent
                .saturating_sub(u32::try_from(passed).unwrap_or(u32::MAX));
            self.at = now;
        }
    }
}

impl Health {
    /// One more error; whether the budget is spent.
    fn error(&self, now: i64) -> bool {
        let mut errors = self.errors.lock();
        errors.forget(now);
        if errors.spent == 0 {
            errors.at = now;
        }
        errors.spent += 1;
        errors.last = now;
        errors.spent > READ_ERROR_BUDGET
    }

    fn quiet(&self, now: i64) -> bool {
        let errors = self.errors.lock();
        now.saturating_sub(errors.last) >= QUIET
    }

    /// A fresh budget, for a mirror that has been brought up to date.
    pub(super) fn reset(&self) {
        *self.errors.lock() = Errors::default();
        self.pace.store(0, Ordering::Relaxed);
        self.timed.store(0, Ordering::Relaxed);
    }

    /// A read of `len` bytes took that long. Answers of the page cache say nothing of the disk, so
    /// only reads that took longer than it would are counted.
    pub(super) fn timed(&self, nanoseconds: u64, len: usize) {
        let blocks = (len as u64).div_ceil(4096).max(1);
        let each = nanoseconds / blocks;
        if nanoseconds < 20_000 + 2_000 * blocks {
            return;
        }
        let before = self.pace.load(Ordering::Relaxed);
        let after = if before == 0 {
            each
        } else {
            before - before / 16 + each / 16
        };
        self.pace.store(after.max(1), Ordering::Relaxed);
        self.timed.fetch_add(1, Ordering::Relaxed);
    }

    fn known_pace(&self) -> Option<u64> {
        (self.timed.load(Ordering::Relaxed) >= TIMED_ENOUGH)
            .then(|| self.pace.load(Ordering::Relaxed))
    }
}

/// The order in which mirrors are asked: `turn` spreads the reads. A pure function of what is known
/// of each: suspect or not, and its pace.
fn order(turn: u64, mirrors: &[(bool, Option<u64>)]) -> Vec<usize> {
    let count = mirrors.len();
    let mut indices: Vec<usize> = (0..count).collect();
    if count > 0 {
        indices.rotate_left((turn % count as u64) as usize);
    }
    let fastest = mirrors.iter().filter_map(|(_, pace)| *pace).min();
    let slow = |index: usize| match (mirrors[index].1, fastest) {
        (Some(pace), Some(fastest)) => pace >= fastest.saturating_mul(MUCH_SLOWER),
        _ => false,
    };
    indices.sort_by_key(|index| (mirrors[*index].0, slow(*index)));
    // Of two that are about as good the one that is twice as fast also gets two turns of three.
    if let [first, second, ..] = indices[..]
        && let (Some(one), Some(other)) = (mirrors[first].1, mirrors[second].1)
        && mirrors[first].0 == mirrors[second].0
        && one >= other.saturating_mul(2)
        && (turn / count as u64).is_multiple_of(2)
    {
        indices.swap(0, 1);
    }
    indices
}

impl MirrorSet {
    /// The mirrors in the order in which to try a read of that place: segments are spread over the
    /// mirrors by their number, the rest by stretches of 1 MiB, so that a sequential stream stays
    /// on one disk.
    pub(super) fn read_order(&self, file: FileName, offset: u64) -> Vec<Attached> {
        let turn = match file {
            FileName::Segment(segment) => segment.0,
            FileName::Readme
            | FileName::Superblock
            | FileName::Journal
            | FileName::Index
            | FileName::Sums => offset >> 20,
        };
        let mirrors = self.current();
        if mirrors.len() < 2 {
            return mirrors;
        }
        let known: Vec<_> = mirrors
            .iter()
            .map(|mirror| {
                (
                    mirror.state() == MirrorState::Suspect,
                    mirror.health.known_pace(),
                )
            })
            .collect();
        let order = order(turn, &known);
        let mut ordered: Vec<Attached> = order.into_iter().map(|at| mirrors[at].clone()).collect();
        if let Some(pinned) = *self.read_from.lock() {
            ordered.sort_by_key(|mirror| mirror.uuid != pinned);
        }
        ordered
    }

    /// A mirror failed a read, or took too long for it.
    pub(super) fn note_read_error(&self, mirror: &Mirror, cause: &str) {
        Counters::count(&mirror.counters.read_errors);
        let spent = mirror.health.error(self.witness.time());
        match mirror.state() {
            MirrorState::Online => self.suspect(mirror, cause),
            MirrorState::Suspect if spent => {
                let cause = format!("more than {READ_ERROR_BUDGET} read errors, the last: {cause}");
                // The last current mirror stays: it may still have what is asked next.
                if self.current().len() > 1
                    && let Err(error) = self.take_out(&[(mirror, cause)])
                {
                    log::error!("{error}");
                }
            }
            _ => {}
        }
    }

    /// Without the lock of the membership, which is held while superblocks are written: a mirror
    /// that hangs must not have reads wait for it.
    fn suspect(&self, mirror: &Mirror, cause: &str) {
        if mirror.change_state(MirrorState::Online, MirrorState::Suspect, cause) {
            log::warn!("{} is suspect and read from last: {cause}", mirror.label());
            self.witness.mirror_state(mirror, cause);
        }
    }

    /// Ends the suspicion against mirrors that have been quiet for a while.
    pub fn trust_again(&self) {
        let now = self.witness.time();
        for mirror in self.current() {
            if mirror.health.quiet(now)
                && mirror.change_state(MirrorState::Suspect, MirrorState::Online, "")
            {
                log::info!("{} is no longer suspect", mirror.label());
                self.witness.mirror_state(&mirror, "no errors for a while");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_are_spread_and_streams_stay() {
        let alike = [(false, None); 3];
        assert_eq!(order(0, &alike), [0, 1, 2]);
        assert_eq!(order(1, &alike), [1, 2, 0]);
        assert_eq!(order(5, &alike), [2, 0, 1]);
        assert_eq!(order(5, &[]), Vec::<usize>::new());
    }

    #[test]
    fn a_suspect_is_asked_last_and_a_much_slower_one_before_it() {
        for turn in 0..12 {
            let mirrors = [
                (true, None),
                (false, Some(80_000)),
                (false, Some(1_000_000)),
            ];
            assert_eq!(order(turn, &mirrors), [1, 2, 0]);
        }
    }

    #[test]
    fn the_faster_mirror_gets_more_reads() {
        let mirrors = [(false, Some(100_000)), (false, Some(300_000))];
        let fast = (0..400)
            .filter(|turn| order(*turn, &mirrors)[0] == 0)
            .count();
        assert_eq!(fast, 300);
    }

    #[test]
    fn a_budget_is_spent_by_a_burst_and_not_by_an_error_now_and_then() {
        let burst = Health::default();
        let spent = (0..=READ_ERROR_BUDGET).map(|_| burst.error(1000)).last();
        assert_eq!(spent, Some(true));
        let seldom = Health::default();
        assert!((0..1000).all(|n| !seldom.error(1000 + n * FORGET_ONE)));
        assert!(!seldom.quiet(1000 + 999 * FORGET_ONE + QUIET - 1));
        assert!(seldom.quiet(1000 + 999 * FORGET_ONE + QUIET));
    }

    #[test]
    fn answers_of_the_page_cache_say_nothing_of_a_disk() {
        let health = Health::default();
        (0..1000).for_each(|_| health.timed(3_000, 4096));
        assert_eq!(health.known_pace(), None);
        (0..TIMED_ENOUGH).for_each(|_| health.timed(400_000, 4096));
        assert_eq!(health.known_pace(), Some(400_000));
    }
}
