//! How long a read waits for a mirror that does not answer.
//!
//! While another mirror could answer, a mirror has [`READ_DEADLINE`] to do so; then the next one is
//! asked. Nothing is repaired for being late, and nothing counts as lost for it: if all that are
//! left are late, they are asked in turn, with growing patience, until one answers. The only mirror
//! there is has all the time it wants.
//!
//! A mirror that has not come back yet from a read that was given up on is asked last. That ends
//! by itself when it does, so no probing is needed.
//!
//! Writes, syncs and whatever works on one mirror (repair, inspection) wait for ever: they have to
//! be done on that mirror. So a mirror that hangs stops changes, though not reads.

use std::io;
use std::time::{Duration, Instant};

use super::decide::{Damage, Outcome};
use super::read::Place;
use super::set::{Attached, MirrorSet};

/// What a mirror has to answer a read in while another one could.
pub const READ_DEADLINE: Duration = Duration::from_secs(5);
/// The longest that one of several late mirrors is waited for before it is another's turn, in
/// deadlines.
const MOST_PATIENCE: u32 = 8;
/// Turns after which the next answer is waited for without a deadline: a filesystem that answers
/// at once that it is late must not have mendfs ask for ever.
const TURNS: u32 = 100;

/// Asks `count` mirrors one after another, each with a deadline if there are several, until one
/// gives an answer.
fn in_turn<T>(count: usize, mut ask: impl FnMut(usize, Option<Duration>) -> Option<T>) -> T {
    let mut patience = READ_DEADLINE;
    let mut turn = 0;
    loop {
        turn += 1;
        let limit = (count > 1 && turn <= TURNS).then_some(patience);
        if let Some(answer) = (0..count).find_map(|index| ask(index, limit)) {
            return answer;
        }
        patience = (patience * 2).min(READ_DEADLINE * MOST_PATIENCE);
    }
}

impl MirrorSet {
    /// How many bytes of `buf` the mirror supplied, or why none. With a deadline it may be late.
    pub(super) fn read_within(
        &self,
        mirror: &Attached,
        place: Place,
        buf: &mut [u8],
        deadline: Option<Duration>,
    ) -> Result<usize, Outcome> {
        let (file, offset) = (place.file, place.offset);
        let begun = Instant::now();
        let result = match deadline {
            Some(deadline) => mirror.backing().read_at_within(file, offset, buf, deadline),
            None => mirror.backing().read_at(file, offset, buf),
        };
        let error = match result {
            Ok(got) => {
                let took = u64::try_from(begun.elapsed().as_nanos()).unwrap_or(u64::MAX);
                mirror.health.timed(took, got);
                return Ok(got);
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(Outcome::Damaged(Damage::Missing));
            }
            Err(error) => error,
        };
        let cause = format!("cannot read {file} at {offset}: {error}");
        log::warn!("{}: {cause}", mirror.label());
        self.note_read_error(mirror, &cause);
        // A filesystem that gives up by itself may say the same, but then that is its answer.
        if deadline.is_some() && error.kind() == io::ErrorKind::TimedOut {
            Err(Outcome::Late)
        } else {
            Err(Outcome::Damaged(Damage::Unreadable))
        }
    }

    /// The first of the mirrors that answers in time, as its index, and what it answered: bytes of
    /// `out`, or why it has none.
    pub(super) fn first_answer(
        &self,
        order: &[Attached],
        place: Place,
        out: &mut [u8],
    ) -> (usize, Result<usize, Outcome>) {
        in_turn(order.len(), |index, deadline| {
            match self.read_within(&order[index], place, out, deadline) {
                Err(Outcome::Late) => None,
                answer => Some((index, answer)),
            }
        })
    }

    /// Puts mirrors last that have not come back from an earlier read.
    pub(super) fn stalled_last(order: &mut [Attached]) {
        order.sort_by_key(|mirror| mirror.backing().stalled());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_only_mirror_has_no_deadline_and_of_several_each_has_one() {
        assert_eq!(in_turn(1, |_, deadline| Some(deadline)), None);
        let mut asked = Vec::new();
        let answer = in_turn(2, |index, deadline| {
            asked.push((index, deadline.map(|deadline| deadline.as_secs())));
            (asked.len() == 5).then_some(index)
        });
        assert_eq!(answer, 0);
        let expected = [(0, 5), (1, 5), (0, 10), (1, 10), (0, 20)];
        assert_eq!(
            asked,
            expected.map(|(index, deadline)| (index, Some(deadline)))
        );
    }

    #[test]
    fn who_says_at_once_that_it_is_late_is_not_asked_for_ever() {
        let mut asked = 0;
        let answer = in_turn(3, |index, deadline| {
            asked += 1;
            assert!(deadline.is_none_or(|deadline| deadline <= READ_DEADLINE * MOST_PATIENCE));
            deadline.is_none().then_some(index)
        });
        assert_eq!((answer, asked), (0, 3 * TURNS + 1));
    }
}
