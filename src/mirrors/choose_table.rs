//! Who speaks at mount, over every combination of what up to four mirrors can be.
//!
//! The pool was in epoch 5 with all of them. Then it went on to epoch 7 with those that are current
//! here; one that diverged went on alone to epoch 6. Whoever was left behind believes that all is
//! well, and says so.

use super::choose::{Candidate, OpenError, Standing, choose};
use crate::format::{
    Algorithm, CheckpointRef, Epoch, FormatError, JournalRef, Lsn, Member, MemberState, Superblock,
    Uuid,
};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Current,
    Stale,
    Resyncing,
    Offline,
    Foreign,
    Missing,
    Damaged,
    Diverged,
}

const KINDS: [Kind; 8] = [
    Kind::Current,
    Kind::Stale,
    Kind::Resyncing,
    Kind::Offline,
    Kind::Foreign,
    Kind::Missing,
    Kind::Damaged,
    Kind::Diverged,
];

fn uuid(number: usize) -> Uuid {
    Uuid::from_random([number as u8 + 1; 16])
}

fn list(count: usize, epoch: u64, state: impl Fn(usize) -> MemberState) -> Vec<Member> {
    let member = |number| {
        let state = state(number);
        let online = state == MemberState::Online;
        Member {
            uuid: uuid(number),
            state,
            epoch: Epoch(if online { epoch } else { 5 }),
            lsn: Lsn(0),
            replaces: None,
        }
    };
    (0..count).map(member).collect()
}

fn superblock(kinds: &[Kind], own: usize) -> Superblock {
    let (epoch, sequence, members) = match kinds[own] {
        Kind::Current | Kind::Resyncing => {
            let state = |number: usize| match kinds[number] {
                Kind::Current => MemberState::Online,
                Kind::Resyncing => MemberState::Resyncing,
                Kind::Offline => MemberState::Offline,
                _ => MemberState::Stale,
            };
            (7, 20, list(kinds.len(), 7, state))
        }
        Kind::Diverged => {
            let state = |number| match number == own {
                true => MemberState::Online,
                false => MemberState::Stale,
            };
            (6, 12, list(kinds.len(), 6, state))
        }
        _ => (5, 10, list(kinds.len(), 5, |_| MemberState::Online)),
    };
    let foreign = kinds[own] == Kind::Foreign;
    Superblock {
        pool: uuid(if foreign { 101 } else { 100 }),
        mirror: uuid(own),
        epoch: Epoch(epoch),
        sequence,
        members,
        compat: 0,
        ro_compat: 0,
        incompat: 0,
        algorithm: Algorithm::Crc32,
        checkpoint: CheckpointRef::default(),
        journal: JournalRef {
            size: 1 << 20,
            tail: 0,
            tail_lsn: Lsn(1),
            run: 1,
            tail_run: 1,
        },
        clean: true,
        hash_key: [0; 16],
        created: 0,
        label: String::new(),
        written: 0,
    }
}

fn candidates(kinds: &[Kind]) -> Vec<Candidate> {
    let candidate = |(own, kind): (usize, &Kind)| {
        let mirror = format!("mirror {own}");
        let superblock = match kind {
            Kind::Missing => Err(OpenError::NoPool {
                mirror: mirror.clone(),
            }),
            Kind::Damaged => Err(OpenError::Damaged {
                mirror: mirror.clone(),
                cause: Superblock::decode(&[]).err().unwrap_or_else(damaged),
            }),
            _ => Ok(superblock(kinds, own)),
        };
        Candidate {
            label: mirror,
            backing: None,
            superblock,
        }
    };
    kinds.iter().enumerate().map(candidate).collect()
}

fn damaged() -> FormatError {
    unreachable!("nothing is no superblock")
}

fn combinations(most: usize, visit: &mut dyn FnMut(&[Kind])) {
    for count in 1..=most {
        for number in 0..KINDS.len().pow(count as u32) {
            let kind = |at: usize| KINDS[number / KINDS.len().pow(at as u32) % KINDS.len()];
            visit(&(0..count).map(kind).collect::<Vec<_>>());
        }
    }
}

/// The word for what is expected: the epoch that rules, or why it is refused.
fn expected(kinds: &[Kind], prefer: Option<usize>) -> &'static str {
    let count = |kind| kinds.iter().filter(|own| **own == kind).count();
    let readable = kinds.len() - count(Kind::Missing) - count(Kind::Damaged);
    let foreign = count(Kind::Foreign);
    let (current, diverged) = (count(Kind::Current), count(Kind::Diverged));
    let behind = count(Kind::Stale) + count(Kind::Offline);
    if readable == 0 {
        return match kinds[0] {
            Kind::Missing => "no pool",
            _ => "damaged",
        };
    }
    if foreign > 0 && foreign < readable {
        return "two pools";
    }
    match prefer.map(|preferred| kinds[preferred]) {
        None => {}
        Some(Kind::Missing) => return "no pool",
        Some(Kind::Damaged) => return "damaged",
        Some(Kind::Resyncing) => return "prefer",
        Some(Kind::Diverged) => return "epoch 6",
        Some(Kind::Current) => return "epoch 7",
        // It follows those that it did not go apart from.
        Some(_) if current > 0 => return "epoch 7",
        Some(_) if diverged > 0 => return "epoch 6",
        Some(_) => return "epoch 5",
    }
    match (current, diverged) {
        (1.., 0) => "epoch 7",
        (0, 0) if behind == 0 && foreign == 0 => "only stale",
        // Who is being brought up to date knows that the others are behind.
        (0, 0) if count(Kind::Resyncing) > 0 => "only stale",
        (0, 0) => "epoch 5",
        (0, 1) if count(Kind::Resyncing) > 0 => "only stale",
        (0, 1) => "epoch 6",
        _ => "split-brain",
    }
}

fn told(error: &OpenError) -> &'static str {
    match error {
        OpenError::NoPool { .. } => "no pool",
        OpenError::Damaged { .. } => "damaged",
        OpenError::TwoPools { .. } => "two pools",
        OpenError::SplitBrain { .. } => "split-brain",
        OpenError::Prefer { .. } => "prefer",
        OpenError::OnlyStale { .. } => "only stale",
        _ => "something else",
    }
}

#[test]
fn every_combination_for_up_to_four_mirrors_is_decided_by_the_rules() {
    combinations(4, &mut |kinds| {
        let candidates = candidates(kinds);
        match choose(&candidates, None) {
            Err(error) => assert_eq!(told(&error), expected(kinds, None), "{kinds:?}: {error}"),
            Ok(choice) => {
                let epoch = format!("epoch {}", choice.superblock.epoch.0);
                assert_eq!(epoch, expected(kinds, None), "{kinds:?}");
                for (standing, kind) in choice.standings.iter().zip(kinds) {
                    let right = match (standing, kind) {
                        (Standing::Current(_), Kind::Current | Kind::Foreign) => true,
                        // Alone it cannot know that others went on.
                        (Standing::Current(_), Kind::Stale | Kind::Offline) => epoch == "epoch 5",
                        (Standing::Current(_), Kind::Diverged) => epoch == "epoch 6",
                        (Standing::Stale(_), Kind::Stale | Kind::Resyncing) => true,
                        (Standing::Stale(_), Kind::Offline) => epoch == "epoch 6",
                        (Standing::Offline(_), Kind::Offline) => true,
                        (Standing::Absent, Kind::Missing | Kind::Damaged) => true,
                        _ => false,
                    };
                    assert!(right, "{kinds:?}: {:?}", choice.standings);
                }
            }
        }
    });
}

#[test]
fn whoever_is_preferred_there_is_one_history_and_the_others_are_told_apart() {
    combinations(3, &mut |kinds| {
        for preferred in 0..kinds.len() {
            let candidates = candidates(kinds);
            match choose(&candidates, Some(preferred)) {
                Err(error) => {
                    let expected = expected(kinds, Some(preferred));
                    assert_eq!(told(&error), expected, "{kinds:?} {preferred}: {error}");
                }
                Ok(choice) => {
                    let rules = choice.superblock.epoch;
                    for (standing, kind) in choice.standings.iter().zip(kinds) {
                        if let (Standing::Current(_), Kind::Current | Kind::Diverged) =
                            (standing, kind)
                        {
                            let own = if *kind == Kind::Current { 7 } else { 6 };
                            assert_eq!(rules, Epoch(own), "{kinds:?} {preferred}");
                        }
                        let resyncing = *kind == Kind::Resyncing;
                        let current = matches!(standing, Standing::Current(_));
                        assert!(!(resyncing && current), "{kinds:?} {preferred}");
                    }
                    if matches!(kinds[preferred], Kind::Current | Kind::Diverged) {
                        let epoch = format!("epoch {}", rules.0);
                        assert_eq!(epoch, expected(kinds, Some(preferred)), "{kinds:?}");
                    }
                }
            }
        }
    });
}
