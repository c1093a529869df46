//! Which copy wins: a pure decision over what each mirror answered for one block.
//!
//! The checksum held by the block's parent has already judged every copy; nothing is ever decided
//! by majority among copies that fail it, so nothing is repaired from a worse or an older one. What
//! has no parent, the records of the journal, is decided by [`agree`].

use std::cmp::Reverse;

/// Why a copy is not good.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Damage {
    /// The mirror answered with an I/O error.
    Unreadable,
    /// The file is not there.
    Missing,
    /// The file ends before the block does.
    Short,
    /// The bytes do not match the checksum: flipped, torn, misplaced or of an older time.
    Checksum,
}

impl Damage {
    /// The word for reports.
    pub const fn name(self) -> &'static str {
        match self {
            Damage::Unreadable => "unreadable",
            Damage::Missing => "missing",
            Damage::Short => "short",
            Damage::Checksum => "checksum",
        }
    }
}

/// What one mirror had for the block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// Its copy matches the parent's checksum.
    Good,
    /// It does not.
    Damaged(Damage),
    /// It did not answer in time, which says nothing of its copy.
    Late,
    /// It was not asked, since an earlier one was good.
    NotAsked,
}

/// What to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// Answer with the copy of mirror `from`, and rewrite those of `heal`.
    Serve {
        /// Index of the first good copy.
        from: usize,
        /// Indices of the damaged copies.
        heal: Vec<usize>,
    },
    /// Ask the mirror with this index too.
    Ask(usize),
    /// Only the mirrors with these indices may still have a good copy, and all of them were late:
    /// wait for one of them.
    Wait(Vec<usize>),
    /// No mirror has a good copy: the block is lost.
    Fail,
}

/// Which of several intact copies counts where no parent's checksum can tell, as of a record of the
/// journal: given by the run that wrote it and its content. The highest run, since a mirror that a
/// crash left behind may still have what an earlier recovery gave up; of these the content that
/// most mirrors have; of these the first.
pub fn agree<T: PartialEq>(copies: &[Option<(u32, T)>]) -> Option<usize> {
    let there = |index: usize| copies.get(index)?.as_ref();
    let votes = |content: &(u32, T)| {
        let same = |copy: &&Option<(u32, T)>| copy.as_ref() == Some(content);
        copies.iter().filter(same).count()
    };
    (0..copies.len())
        .filter_map(|index| there(index).map(|copy| (copy.0, votes(copy), Reverse(index))))
        .max()
        .map(|(.., Reverse(index))| index)
}

/// Decides over the answers, in order of mirrors.
pub fn decide(outcomes: &[Outcome]) -> Verdict {
    let good = outcomes
        .iter()
        .position(|outcome| *outcome == Outcome::Good);
    let damaged = |(index, outcome): (usize, &Outcome)| {
        matches!(outcome, Outcome::Damaged(_)).then_some(index)
    };
    if let Some(from) = good {
        return Verdict::Serve {
            from,
            heal: outcomes.iter().enumerate().filter_map(damaged).collect(),
        };
    }
    let unasked = outcomes
        .iter()
        .position(|outcome| *outcome == Outcome::NotAsked);
    if let Some(next) = unasked {
        return Verdict::Ask(next);
    }
    let late: Vec<_> = (0..outcomes.len())
        .filter(|index| outcomes[*index] == Outcome::Late)
        .collect();
    if late.is_empty() {
        Verdict::Fail
    } else {
        Verdict::Wait(late)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every combination of nothing, two runs and two contents on up to four mirrors.
    #[test]
    fn the_newest_run_counts_then_the_majority_then_the_first() {
        let kinds = [
            None,
            Some((1, 'a')),
            Some((1, 'b')),
            Some((2, 'a')),
            Some((2, 'b')),
        ];
        for mirrors in 0..=4 {
            for number in 0..5_usize.pow(mirrors) {
                let copies: Vec<_> = (0..mirrors)
                    .map(|mirror| kinds[number / 5_usize.pow(mirror) % 5])
                    .collect();
                let Some(chosen) = agree(&copies) else {
                    assert!(copies.iter().all(Option::is_none), "{copies:?}");
                    continue;
                };
                let won = copies[chosen].expect("a copy that is there");
                let count = |copy| copies.iter().filter(|other| **other == Some(copy)).count();
                for (index, copy) in copies.iter().enumerate() {
                    let Some(copy) = *copy else { continue };
                    assert!(copy.0 <= won.0, "an older run won in {copies:?}");
                    if copy.0 == won.0 {
                        assert!(count(copy) <= count(won), "a minority won in {copies:?}");
                        let first = count(copy) < count(won) || index >= chosen;
                        assert!(first || copy != won, "{copies:?}: not the first");
                    }
                }
            }
        }
    }

    const ALL: [Outcome; 7] = [
        Outcome::Good,
        Outcome::NotAsked,
        Outcome::Late,
        Outcome::Damaged(Damage::Unreadable),
        Outcome::Damaged(Damage::Missing),
        Outcome::Damaged(Damage::Short),
        Outcome::Damaged(Damage::Checksum),
    ];

    fn combinations(mirrors: usize) -> Vec<Vec<Outcome>> {
        (0..ALL.len().pow(mirrors as u32))
            .map(|mut n| {
                (0..mirrors)
                    .map(|_| {
                        let outcome = ALL[n % ALL.len()];
                        n /= ALL.len();
                        outcome
                    })
                    .collect()
            })
            .collect()
    }

    #[test]
    fn every_combination_for_up_to_four_mirrors() {
        for outcomes in (1..=4).flat_map(combinations) {
            match decide(&outcomes) {
                Verdict::Serve { from, heal } => {
                    assert_eq!(outcomes[from], Outcome::Good, "{outcomes:?}");
                    for (index, outcome) in outcomes.iter().enumerate() {
                        let bad = matches!(outcome, Outcome::Damaged(_));
                        assert_eq!(heal.contains(&index), bad, "{outcomes:?}");
                    }
                }
                Verdict::Ask(next) => {
                    assert_eq!(outcomes[next], Outcome::NotAsked, "{outcomes:?}");
                    assert!(!outcomes.contains(&Outcome::Good), "{outcomes:?}");
                }
                Verdict::Wait(late) => {
                    assert!(!late.is_empty(), "{outcomes:?}");
                    for (index, outcome) in outcomes.iter().enumerate() {
                        let late = late.contains(&index);
                        assert_eq!(*outcome == Outcome::Late, late, "{outcomes:?}");
                        let bad = matches!(outcome, Outcome::Damaged(_));
                        assert!(late || bad, "{outcomes:?}");
                    }
                }
                Verdict::Fail => {
                    let lost = |outcome: &Outcome| matches!(outcome, Outcome::Damaged(_));
                    assert!(outcomes.iter().all(lost), "{outcomes:?}");
                }
            }
        }
    }
}
