//! Who may speak at mount: reading superblocks, and the choice between them.
//!
//! Each mirror's superblock lists all mirrors, each with the epoch in which it was last in sync.
//! Of those that call themselves online the one with the highest epoch rules, and its list decides
//! who is current. Two mirrors of which each was in an epoch that the other's list does not grant
//! it went on alone, apart: that is split-brain, and refused unless the operator says which to
//! prefer. [`choose`] is a pure function of the superblocks.

use std::fmt;
use std::io;
use std::sync::Arc;

use thiserror::Error;

use super::parts::read_around;
use crate::backing::{Backing, FileName};
use crate::format::{
    Epoch, FormatError, Lsn, Member, MemberState, SUPER_SLOT_LEN, Superblock, Uuid,
};

/// Writes of the superblock that a mirror may have missed by crashes alone, one in a row each.
const FAR_BEHIND: u64 = 64;

/// Features of each kind that this build knows: none yet.
const KNOWN_FEATURES: u64 = 0;

/// Why a directory is no usable mirror, or a set of them no usable pool.
#[derive(Debug, Clone, Error)]
pub enum OpenError {
    /// No superblock file.
    #[error(
        "{mirror} holds no mendfs pool (no mendfs.super in it); is its disk mounted? To make a \
             new pool, use mkfs.mendfs"
    )]
    NoPool {
        /// The directory.
        mirror: String,
    },
    /// The superblock file is not one of ours.
    #[error("{mirror}/mendfs.super is not a mendfs superblock; is this the right directory?")]
    Foreign {
        /// The directory.
        mirror: String,
    },
    /// Both slots of the superblock are damaged.
    #[error(
        "both copies of the superblock on {mirror} are damaged ({cause}); mount the pool \
             with its other mirrors"
    )]
    Damaged {
        /// The directory.
        mirror: String,
        /// What is wrong with the newer one.
        cause: FormatError,
    },
    /// The superblock cannot be read.
    #[error("cannot read {mirror}/mendfs.super: {cause}")]
    Unreadable {
        /// The directory.
        mirror: String,
        /// The I/O error.
        cause: String,
    },
    /// A newer build made it.
    #[error(
        "{mirror} has mendfs format version {found}, but this build reads only up to {known}; \
             use a newer mendfs"
    )]
    Newer {
        /// The directory.
        mirror: String,
        /// Its version.
        found: u32,
        /// The newest version that can be read.
        known: u32,
    },
    /// It needs a feature that this build does not have.
    #[error(
        "{mirror} uses features that this build does not know (incompat bits {bits:#x}); use \
             a newer mendfs"
    )]
    Feature {
        /// The directory.
        mirror: String,
        /// The unknown bits.
        bits: u64,
    },
    /// Directories of different pools.
    #[error("{first} and {second} are mirrors of different pools ({first_pool} and {second_pool})")]
    TwoPools {
        /// One directory.
        first: String,
        /// Its pool.
        first_pool: Uuid,
        /// Another directory.
        second: String,
        /// The other pool.
        second_pool: Uuid,
    },
    /// The same mirror twice.
    #[error(
        "{first} and {second} are the same mirror, or one is a copy of the other; name each \
             mirror once"
    )]
    SameMirror {
        /// One directory.
        first: String,
        /// The other.
        second: String,
    },
    /// Mirrors that each went on alone.
    #[error(
        "split-brain: {first} and {second} were each written to without the other, since LSN \
             {}. {first} has {}; {second} has {}. Mount with -o prefer=DIR to keep what DIR has: \
             what the other has is set aside in its directory and replaced. To look first, mount \
             each alone with -o ro",
        since(first, second),
        HistoryText(first, second),
        HistoryText(second, first)
    )]
    SplitBrain {
        /// One of them.
        first: Box<History>,
        /// The other.
        second: Box<History>,
    },
    /// The mirror to prefer cannot be preferred.
    #[error("prefer={mirror}: {why}")]
    Prefer {
        /// The directory.
        mirror: String,
        /// Why not.
        why: &'static str,
    },
    /// No mirror was named.
    #[error("no mirror directory was given")]
    Nothing,
    /// None of the directories holds the current state.
    #[error(
        "{mirror} was left behind when the pool went on without it, and no mirror that is up \
             to date was given; name the others too"
    )]
    OnlyStale {
        /// The directory with the newest state of those given.
        mirror: String,
    },
}

/// Reads the newest valid superblock of a mirror.
///
/// # Errors
/// [`OpenError`] naming the mirror.
pub fn read_superblock(backing: &dyn Backing) -> Result<Superblock, OpenError> {
    let mirror = backing.label();
    let mut slots = vec![0; 2 * SUPER_SLOT_LEN];
    let (got, unreadable) = match read_around(backing, FileName::Superblock, 0, &mut slots) {
        Ok(there) => there,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Err(OpenError::NoPool { mirror });
        }
        Err(error) => {
            return Err(OpenError::Unreadable {
                mirror,
                cause: error.to_string(),
            });
        }
    };
    let decoded: Vec<_> = slots[..got]
        .chunks(SUPER_SLOT_LEN)
        .map(Superblock::decode)
        .collect();
    let newest = decoded
        .iter()
        .filter_map(|slot| slot.as_ref().ok())
        .max_by_key(|s| s.sequence);
    if newest.is_none() && unreadable {
        return Err(OpenError::Unreadable {
            mirror,
            cause: "one of its two copies cannot be read, and the other one is none".to_owned(),
        });
    }
    let newer = decoded.iter().find_map(|slot| match slot {
        Err(FormatError::Version { found, known, .. }) => Some((*found, *known)),
        _ => None,
    });
    match (newest, newer) {
        (_, Some((found, known))) => Err(OpenError::Newer {
            mirror,
            found,
            known,
        }),
        (Some(superblock), None) if superblock.incompat & !KNOWN_FEATURES != 0 => {
            Err(OpenError::Feature {
                mirror,
                bits: superblock.incompat & !KNOWN_FEATURES,
            })
        }
        (Some(superblock), None) => {
            if decoded
                .iter()
                .any(|slot| matches!(slot, Err(FormatError::Checksum { .. })))
            {
                log::warn!(
                    "one of the two copies of the superblock on {mirror} is damaged, by a crash or \
                     by its disk; the other one is good, and the next write mends it"
                );
            }
            Ok(superblock.clone())
        }
        (None, None) => {
            let cause = decoded.into_iter().find_map(|slot| match slot {
                Err(FormatError::Magic { .. }) | Ok(_) => None,
                Err(cause) => Some(cause),
            });
            match cause {
                Some(cause) => Err(OpenError::Damaged { mirror, cause }),
                None => Err(OpenError::Foreign { mirror }),
            }
        }
    }
}

/// What a mirror that went on alone has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct History {
    /// The directory.
    pub mirror: String,
    /// The epoch it is in.
    pub epoch: Epoch,
    /// Its last record; at least that of its last checkpoint.
    pub lsn: Lsn,
    /// LSN up to which the other one has the same, as this one knows it.
    pub shared: Lsn,
    /// When its superblock was written last, seconds since 1970-01-01 UTC.
    pub written: i64,
}

impl fmt::Display for History {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.mirror)
    }
}

fn since(first: &History, second: &History) -> Lsn {
    first.shared.min(second.shared)
}

/// What one history has that the other lacks.
struct HistoryText<'a>(&'a History, &'a History);

impl fmt::Display for HistoryText<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let HistoryText(own, other) = self;
        let records = own.lsn.0.saturating_sub(since(own, other).0);
        let written = jiff::Timestamp::from_second(own.written).unwrap_or_default();
        write!(
            f,
            "{records} records that {other} lacks (epoch {}, LSN {}, last written {written})",
            own.epoch, own.lsn
        )
    }
}

/// A directory that was named at mount, and what its superblock says.
#[derive(Debug)]
pub struct Candidate {
    /// Path of the directory.
    pub label: String,
    /// The directory, if it is there.
    pub backing: Option<Arc<dyn Backing>>,
    /// Its superblock.
    pub superblock: Result<Superblock, OpenError>,
}

/// What a member of the pool is at mount.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// Has everything: the index of its candidate.
    Current(usize),
    /// Has an older state, and wants to be brought up to date: the index of its candidate.
    Stale(usize),
    /// Was taken out by the operator: the index of its candidate.
    Offline(usize),
    /// Went on alone, but another is preferred: the index of its candidate.
    Diverged(usize),
    /// None of the candidates is this member.
    Absent,
}

impl Standing {
    /// The candidate that is this member.
    pub const fn candidate(self) -> Option<usize> {
        match self {
            Standing::Current(index)
            | Standing::Stale(index)
            | Standing::Offline(index)
            | Standing::Diverged(index) => Some(index),
            Standing::Absent => None,
        }
    }
}

/// Who speaks.
#[derive(Debug)]
pub struct Choice {
    /// The superblock that rules.
    pub superblock: Superblock,
    /// Standing of each member, in the order of the superblock's list.
    pub standings: Vec<Standing>,
    /// Candidates that turned out to be no member, by index.
    pub unusable: Vec<usize>,
}

/// A candidate whose superblock could be read.
type Known<'a> = (usize, &'a Candidate, &'a Superblock);

/// Chooses from the superblocks alone; `prefer` is the candidate whose history is kept where
/// mirrors went on apart.
///
/// # Errors
/// [`OpenError`] if the candidates are not one pool with at least one current mirror.
pub fn choose(candidates: &[Candidate], prefer: Option<usize>) -> Result<Choice, OpenError> {
    let known: Vec<Known<'_>> = candidates
        .iter()
        .enumerate()
        .filter_map(|(index, candidate)| {
            let superblock = candidate.superblock.as_ref().ok()?;
            Some((index, candidate, superblock))
        })
        .collect();
    // A newer format or an unknown feature on any mirror means that we understand none of them.
    for candidate in candidates {
        if let Err(error @ (OpenError::Newer { .. } | OpenError::Feature { .. })) =
            &candidate.superblock
        {
            return Err(error.clone());
        }
    }
    if known.is_empty() {
        let first = candidates
            .first()
            .and_then(|candidate| candidate.superblock.as_ref().err());
        return Err(first.cloned().unwrap_or(OpenError::Nothing));
    }
    refuse_mixed(&known)?;
    let (ruling, diverged) = rule(candidates, &known, prefer)?;
    let standings: Vec<_> = ruling
        .members
        .iter()
        .map(|member| {
            let found = known
                .iter()
                .find(|(_, _, superblock)| superblock.mirror == member.uuid);
            let Some((index, _, superblock)) = found else {
                return Standing::Absent;
            };
            if diverged.contains(index) {
                return Standing::Diverged(*index);
            }
            match member.state {
                // The list is older than the mirror, which is being brought up to date since.
                MemberState::Online if !is_online(superblock) => Standing::Stale(*index),
                // Superblocks are written to all mirrors in turn, so each crash on the way leaves
                // one behind by one; one that is far behind was put back from somewhere.
                MemberState::Online if superblock.sequence + FAR_BEHIND < ruling.sequence => {
                    Standing::Stale(*index)
                }
                MemberState::Online => Standing::Current(*index),
                MemberState::Stale | MemberState::Resyncing => Standing::Stale(*index),
                MemberState::Offline => Standing::Offline(*index),
            }
        })
        .collect();
    let member = |index: &usize| {
        let mut members = standings.iter();
        members.any(|standing| standing.candidate() == Some(*index))
    };
    let unusable = (0..candidates.len())
        .filter(|index| !member(index))
        .collect();
    Ok(Choice {
        superblock: ruling.clone(),
        standings,
        unusable,
    })
}

/// The superblock that rules, and the candidates that went on apart from it.
fn rule<'a>(
    candidates: &[Candidate],
    known: &[Known<'a>],
    prefer: Option<usize>,
) -> Result<(&'a Superblock, Vec<usize>), OpenError> {
    // One that is being brought up to date carries the others' superblock, but not what it tells
    // of.
    let speakers: Vec<Known<'a>> = known
        .iter()
        .filter(|(_, _, superblock)| is_online(superblock))
        .copied()
        .collect();
    let newest = |(_, _, superblock): &&Known<'_>| {
        let same = |other: &&Known<'_>| {
            (other.2.epoch, other.2.sequence) == (superblock.epoch, superblock.sequence)
        };
        let votes = speakers.iter().filter(same).count();
        (superblock.epoch, superblock.sequence, votes)
    };
    let Some(preferred) = prefer else {
        refuse_split(&speakers)?;
        let leader = speakers.iter().max_by_key(newest).ok_or_else(|| {
            let newest = known.iter().max_by_key(|(_, _, s)| (s.epoch, s.sequence));
            let mirror = newest.map_or_else(String::new, |(_, known, _)| known.label.clone());
            OpenError::OnlyStale { mirror }
        })?;
        // One that is being brought up to date may know that all who speak are behind.
        let knows = |(_, _, witness): &Known<'_>| {
            let behind = |(_, _, speaker): &Known<'_>| {
                let member = witness.member(speaker.mirror);
                member.is_some_and(|member| member.state != MemberState::Online)
                    && witness.epoch > speaker.epoch
            };
            speakers.iter().all(behind)
        };
        if known.iter().any(knows) {
            let mirror = leader.1.label.clone();
            return Err(OpenError::OnlyStale { mirror });
        }
        return Ok((leader.2, Vec::new()));
    };
    let refused = |why| OpenError::Prefer {
        mirror: candidates[preferred].label.clone(),
        why,
    };
    let Some(wanted) = speakers.iter().find(|(index, ..)| *index == preferred) else {
        return Err(match &candidates[preferred].superblock {
            Err(error) => error.clone(),
            Ok(_) => refused(
                "it was left behind and holds an older state; prefer a mirror that was online",
            ),
        });
    };
    let diverged: Vec<usize> = speakers
        .iter()
        .filter(|(_, _, superblock)| went_apart(superblock, wanted.2))
        .map(|(index, ..)| *index)
        .collect();
    let leader = speakers
        .iter()
        .filter(|(index, ..)| !diverged.contains(index))
        .max_by_key(newest);
    Ok((leader.map_or(wanted.2, |leader| leader.2), diverged))
}

/// Whether a mirror held everything by its own account.
fn is_online(superblock: &Superblock) -> bool {
    let own = superblock.member(superblock.mirror);
    own.is_some_and(|member| member.state == MemberState::Online)
}

fn refuse_mixed(known: &[Known<'_>]) -> Result<(), OpenError> {
    for (at, (_, first, ours)) in known.iter().enumerate() {
        for (_, second, theirs) in &known[at + 1..] {
            let (first, second) = (first.label.clone(), second.label.clone());
            if ours.pool != theirs.pool {
                return Err(OpenError::TwoPools {
                    first,
                    first_pool: ours.pool,
                    second,
                    second_pool: theirs.pool,
                });
            }
            if ours.mirror == theirs.mirror {
                return Err(OpenError::SameMirror { first, second });
            }
        }
    }
    Ok(())
}

/// Whether each of the two was in an epoch that the other's list does not know of.
pub fn went_apart(ours: &Superblock, theirs: &Superblock) -> bool {
    // One that calls the other online has written nothing without it. Of one that was never in
    // sync, or is not on the list, that is not known: then it counts whether it went on without
    // anybody, unless the other had it on its list, and so was removed from this one.
    let alone = |one: &Superblock, other: &Superblock| {
        let left_behind = |member: &Member| {
            member.uuid != one.mirror
                && member.epoch > Epoch(0)
                && member.state != MemberState::Online
        };
        match one.member(other.mirror) {
            Some(member) if member.epoch > Epoch(0) => member.state != MemberState::Online,
            None if other.member(one.mirror).is_some() => true,
            Some(_) | None => one.members.iter().any(left_behind),
        }
    };
    let unknown_to = |one: &Superblock, other: &Superblock| {
        other
            .member(one.mirror)
            .is_none_or(|member| one.epoch > member.epoch)
    };
    // One that was being brought up to date carries the others' epoch, and has no history.
    ours.mirror != theirs.mirror
        && is_online(ours)
        && is_online(theirs)
        && unknown_to(ours, theirs)
        && unknown_to(theirs, ours)
        && alone(ours, theirs)
        && alone(theirs, ours)
}

fn refuse_split(known: &[Known<'_>]) -> Result<(), OpenError> {
    for (at, (_, first, ours)) in known.iter().enumerate() {
        for (_, second, theirs) in &known[at + 1..] {
            if went_apart(ours, theirs) {
                return Err(OpenError::SplitBrain {
                    first: Box::new(history(first, ours, theirs)),
                    second: Box::new(history(second, theirs, ours)),
                });
            }
        }
    }
    Ok(())
}

fn history(candidate: &Candidate, own: &Superblock, other: &Superblock) -> History {
    History {
        mirror: candidate.label.clone(),
        epoch: own.epoch,
        lsn: own.checkpoint.lsn,
        shared: own.member(other.mirror).map_or(Lsn(0), |member| member.lsn),
        written: own.written,
    }
}
