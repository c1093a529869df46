//! Who belongs to the pool, and who may speak: superblocks, epochs, and the choice at mount.
//!
//! Each mirror's superblock lists all mirrors, each with the epoch in which it was last in sync. A
//! change of who is online raises the epoch and is written to all survivors before the next write
//! is acknowledged. At mount the highest epoch wins and its list decides who is current. Two
//! mirrors of which each was in an epoch that the other's list does not grant it went on alone,
//! apart: that is split-brain, and it is refused.

use std::io;
use std::sync::Arc;

use thiserror::Error;

use super::set::{Counters, Mirror, MirrorSet, MirrorState};
use super::write::MirrorError;
use crate::backing::{Backing, FileName};
use crate::format::{Epoch, FormatError, MemberState, SUPER_SLOT_LEN, Superblock, Uuid};

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
        "split-brain: {first} (epoch {first_epoch}) and {second} (epoch {second_epoch}) were \
             each written to without the other; mount only the one whose content you want to keep"
    )]
    SplitBrain {
        /// One directory.
        first: String,
        /// Its epoch.
        first_epoch: Epoch,
        /// The other.
        second: String,
        /// Its epoch.
        second_epoch: Epoch,
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
    let got = match backing.read_at(FileName::Superblock, 0, &mut slots) {
        Ok(got) => got,
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
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Standing {
    /// Has everything: the index of its candidate.
    Current(usize),
    /// Has an older state: the index of its candidate.
    Stale(usize),
    /// None of the candidates is this member.
    Absent,
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

/// Chooses from the superblocks alone.
///
/// # Errors
/// [`OpenError`] if the candidates are not one pool with at least one current mirror.
pub fn choose(candidates: &[Candidate]) -> Result<Choice, OpenError> {
    let known: Vec<(usize, &Candidate, &Superblock)> = candidates
        .iter()
        .enumerate()
        .filter_map(|(index, candidate)| {
            candidate
                .superblock
                .as_ref()
                .ok()
                .map(|superblock| (index, candidate, superblock))
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
    let Some((_, leader, ruling)) = known
        .iter()
        .max_by_key(|(_, _, superblock)| (superblock.epoch, superblock.sequence))
    else {
        let first = candidates
            .first()
            .and_then(|candidate| candidate.superblock.as_ref().err());
        return Err(first.cloned().unwrap_or(OpenError::Nothing));
    };
    refuse_mixed(&known)?;
    refuse_split(&known)?;
    let standings: Vec<_> = ruling
        .members
        .iter()
        .map(|member| {
            let found = known
                .iter()
                .find(|(_, _, superblock)| superblock.mirror == member.uuid);
            match (found, member.state) {
                (None, _) => Standing::Absent,
                (Some((index, ..)), MemberState::Online) => Standing::Current(*index),
                (Some((index, ..)), MemberState::Offline | MemberState::Resyncing) => {
                    Standing::Stale(*index)
                }
            }
        })
        .collect();
    if !standings
        .iter()
        .any(|standing| matches!(standing, Standing::Current(_)))
    {
        return Err(OpenError::OnlyStale {
            mirror: leader.label.clone(),
        });
    }
    let member = |index: &usize| {
        standings.iter().any(|standing| match standing {
            Standing::Current(at) | Standing::Stale(at) => at == index,
            Standing::Absent => false,
        })
    };
    let unusable = (0..candidates.len())
        .filter(|index| !member(index))
        .collect();
    Ok(Choice {
        superblock: (*ruling).clone(),
        standings,
        unusable,
    })
}

fn refuse_mixed(known: &[(usize, &Candidate, &Superblock)]) -> Result<(), OpenError> {
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

fn refuse_split(known: &[(usize, &Candidate, &Superblock)]) -> Result<(), OpenError> {
    // Whether `one` was in an epoch that `other`'s list does not know of.
    let unknown_to = |one: &Superblock, other: &Superblock| {
        let granted = other
            .members
            .iter()
            .find(|member| member.uuid == one.mirror);
        granted.is_none_or(|member| one.epoch > member.epoch)
    };
    for (at, (_, first, ours)) in known.iter().enumerate() {
        for (_, second, theirs) in &known[at + 1..] {
            if unknown_to(ours, theirs) && unknown_to(theirs, ours) {
                return Err(OpenError::SplitBrain {
                    first: first.label.clone(),
                    first_epoch: ours.epoch,
                    second: second.label.clone(),
                    second_epoch: theirs.epoch,
                });
            }
        }
    }
    Ok(())
}

/// The superblock that the mirrors of an open pool share, but for their own UUIDs.
#[derive(Debug)]
pub(super) struct Membership {
    superblock: Superblock,
}

impl Membership {
    pub(super) const fn new(superblock: Superblock) -> Membership {
        Membership { superblock }
    }
}

impl MirrorSet {
    /// The superblock as last written.
    pub fn superblock(&self) -> Superblock {
        self.membership.lock().superblock.clone()
    }

    /// Changes the superblock and writes it to all online mirrors, durably. A mirror that fails is
    /// taken out, which raises the epoch for the others.
    ///
    /// # Errors
    /// [`MirrorError::AllFailed`] if no mirror took it.
    pub fn update_superblock(
        &self,
        change: impl FnOnce(&mut Superblock),
    ) -> Result<(), MirrorError> {
        let mut membership = self.membership.lock();
        change(&mut membership.superblock);
        self.write_superblock(&mut membership)
    }

    /// Records who is online now, in a new epoch, durably on those who are.
    ///
    /// # Errors
    /// [`MirrorError::AllFailed`] if no mirror took it.
    pub fn raise_epoch(&self) -> Result<(), MirrorError> {
        let mut membership = self.membership.lock();
        self.enter_next_epoch(&mut membership);
        self.write_superblock(&mut membership)
    }

    /// Marks mirrors as failed and makes that durable on the others. The states change under the
    /// lock, so that whoever saw one of them can wait for [`MirrorSet::await_epoch`].
    ///
    /// # Errors
    /// [`MirrorError::AllFailed`] if none would be left, who then stay as they are, or if no mirror
    /// took the new epoch.
    pub(super) fn take_out(&self, failed: &[(&Mirror, String)]) -> Result<(), MirrorError> {
        let mut membership = self.membership.lock();
        let goes = |mirror: &Mirror| failed.iter().any(|(gone, _)| gone.id == mirror.id);
        if self.online().all(|(mirror, _)| goes(mirror)) {
            let (operation, file) = ("write", FileName::Superblock);
            let cause = failed
                .first()
                .map_or_else(String::new, |(_, cause)| cause.clone());
            return Err(MirrorError::AllFailed {
                operation,
                file,
                cause,
            });
        }
        let mut changed = false;
        for (mirror, cause) in failed {
            // Another thread may have come first.
            if mirror.state() == MirrorState::Online {
                mirror.set_state(MirrorState::Failed);
                changed = true;
                log::error!(
                    "mirror {} failed ({cause}): the pool goes on DEGRADED without it",
                    mirror.label()
                );
                self.witness.mirror_state(mirror, cause);
            }
        }
        if changed {
            self.enter_next_epoch(&mut membership);
            self.write_superblock(&mut membership)
        } else {
            Ok(())
        }
    }

    /// Waits until a change of the membership that was seen is durable. What was written without a
    /// mirror must not be acknowledged before the others know that it lacks it.
    pub(super) fn await_epoch(&self) {
        if self.degraded() {
            drop(self.membership.lock());
        }
    }

    fn enter_next_epoch(&self, membership: &mut Membership) {
        let superblock = &mut membership.superblock;
        superblock.epoch = Epoch(superblock.epoch.0 + 1);
        for member in &mut superblock.members {
            let online = self
                .all()
                .iter()
                .any(|mirror| mirror.uuid == member.uuid && mirror.state() == MirrorState::Online);
            if online {
                member.state = MemberState::Online;
                member.epoch = superblock.epoch;
                member.lsn = superblock.checkpoint.lsn;
            } else if member.state == MemberState::Online {
                member.state = MemberState::Offline;
            }
        }
    }

    fn write_superblock(&self, membership: &mut Membership) -> Result<(), MirrorError> {
        let mut cause = "no mirror is online".to_owned();
        loop {
            membership.superblock.sequence += 1;
            let (mut failed, mut written) = (false, 0);
            for (mirror, backing) in self.online() {
                let superblock = Superblock {
                    mirror: mirror.uuid,
                    ..membership.superblock.clone()
                };
                match write_slot(backing, &superblock) {
                    Ok(()) => written += 1,
                    Err(error) => {
                        Counters::count(&mirror.counters.write_errors);
                        cause = format!("{}: {error}", mirror.label());
                        mirror.set_state(MirrorState::Failed);
                        log::error!(
                            "mirror {} failed: cannot write its superblock: {error}",
                            mirror.label()
                        );
                        self.witness.mirror_state(mirror, &cause);
                        failed = true;
                    }
                }
            }
            if written == 0 {
                let (operation, file) = ("write", FileName::Superblock);
                return Err(MirrorError::AllFailed {
                    operation,
                    file,
                    cause,
                });
            }
            if !failed {
                return Ok(());
            }
            self.enter_next_epoch(membership);
        }
    }
}

/// Writes a superblock durably into the slot that does not hold the newest valid one. The sequence
/// does not tell which: after a crash a mirror may be one behind the others, or have a slot
/// damaged.
///
/// # Errors
/// As pwrite(2) and fdatasync(2).
pub fn write_slot(backing: &dyn Backing, superblock: &Superblock) -> io::Result<()> {
    let mut slots = vec![0; 2 * SUPER_SLOT_LEN];
    let got = backing.read_at(FileName::Superblock, 0, &mut slots);
    let newest = slots[..got.unwrap_or(0)]
        .chunks(SUPER_SLOT_LEN)
        .enumerate()
        .filter_map(|(slot, bytes)| Some((Superblock::decode(bytes).ok()?.sequence, slot as u64)))
        .max();
    let slot = newest.map_or(superblock.sequence % 2, |(_, slot)| 1 - slot) * SUPER_SLOT_LEN as u64;
    let write = || backing.write_at(FileName::Superblock, slot, &[&superblock.encode()]);
    match write() {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            log::warn!("{}: mendfs.super is gone; writing it anew", backing.label());
            backing.create(FileName::Superblock)?;
            write()?;
            backing.sync(FileName::Superblock)?;
            backing.sync_name(FileName::Superblock)
        }
        other => other.and_then(|()| backing.sync(FileName::Superblock)),
    }
}
