//! Who belongs to the pool while it is open, and who holds everything.
//!
//! Every change of who is current raises the epoch and is durable on all survivors before the next
//! write is acknowledged. A mirror that comes back or is new is marked as resyncing, on its own
//! superblock first, before a byte of it changes: from then on it wins no mount, whatever it held.
//! It receives what is written from then on, and counts only after [`MirrorSet::promote`].

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use thiserror::Error;

use super::parts::read_around;
use super::room::GONE;
use super::set::{Attached, Counters, Mirror, MirrorId, MirrorSet, MirrorState};
use super::write::MirrorError;
use crate::backing::{Backing, FileName};
use crate::format::{
    Epoch, Lsn, MAX_MIRRORS, Member, MemberState, SUPER_SLOT_LEN, Superblock, Uuid,
};

/// Why the membership stays as it is.
#[derive(Debug, Clone, Error)]
pub enum MembershipError {
    /// Nothing would be left.
    #[error(
        "{mirror} is the last mirror that holds everything; bring another one up to date first"
    )]
    Last {
        /// Its directory.
        mirror: String,
    },
    /// No more room in the superblock's list.
    #[error("the pool has {MAX_MIRRORS} mirrors already, which is the most; remove one first")]
    TooMany,
    /// No such mirror.
    #[error("no mirror of this pool has the UUID {0}")]
    Unknown(Uuid),
    /// It is not being brought up to date.
    #[error("{mirror} is {state} and not being brought up to date")]
    NotResyncing {
        /// Its directory.
        mirror: String,
        /// The word for its state.
        state: &'static str,
    },
    /// The directory cannot be written.
    #[error("cannot write to {mirror}: {cause}")]
    Target {
        /// The directory.
        mirror: String,
        /// The I/O error.
        cause: String,
    },
    /// No mirror is left.
    #[error(transparent)]
    Mirrors(#[from] MirrorError),
}

/// A mirror that is to be brought up to date.
#[derive(Debug)]
pub struct Newcomer {
    /// Its UUID; a new member if the pool has none with it.
    pub uuid: Uuid,
    /// Path of its directory.
    pub label: String,
    /// Its directory.
    pub backing: Arc<dyn Backing>,
    /// It has all file data that was born up to this LSN.
    pub lsn: Lsn,
    /// For a new member, the one whose place it takes when it is in sync.
    pub replaces: Option<Uuid>,
}

/// The superblock that the mirrors of an open pool share, but for their own UUIDs.
#[derive(Debug)]
pub(super) struct Membership {
    pub(super) superblock: Superblock,
    /// Becomes current with the superblock that is being written.
    promoting: Option<Uuid>,
}

impl Membership {
    pub(super) const fn new(superblock: Superblock) -> Membership {
        Membership {
            superblock,
            promoting: None,
        }
    }
}

impl MirrorSet {
    /// The superblock as last written.
    pub fn superblock(&self) -> Superblock {
        self.membership.lock().superblock.clone()
    }

    /// Changes the superblock and writes it to all mirrors, durably. A mirror that fails is taken
    /// out, which raises the epoch for the others.
    ///
    /// # Errors
    /// [`MirrorError::AllFailed`] if no current mirror took it.
    pub fn update_superblock(
        &self,
        change: impl FnOnce(&mut Superblock),
    ) -> Result<(), MirrorError> {
        let mut membership = self.membership.lock();
        change(&mut membership.superblock);
        self.write_superblock(&mut membership)
    }

    /// Records who is current now, in a new epoch, durably on those who are.
    ///
    /// # Errors
    /// [`MirrorError::AllFailed`] if no mirror took it.
    pub fn raise_epoch(&self) -> Result<(), MirrorError> {
        let mut membership = self.membership.lock();
        self.enter_next_epoch(&mut membership);
        self.write_superblock(&mut membership)
    }

    /// Takes out mirrors that failed, and makes that durable on the others. The states change under
    /// the lock, so that whoever saw one of them can wait for [`MirrorSet::await_epoch`].
    ///
    /// # Errors
    /// [`MirrorError::AllFailed`] if none would be left, who then stay as they are, or if no mirror
    /// took the new epoch.
    pub(super) fn take_out(&self, failed: &[(&Mirror, String)]) -> Result<(), MirrorError> {
        let gone: Vec<_> = failed
            .iter()
            .map(|(mirror, cause)| (mirror.id, MirrorState::Failed, cause.as_str()))
            .collect();
        self.leave(&mut self.membership.lock(), &gone)
    }

    /// Takes out mirrors whose directory is gone, or full of somebody else's files.
    ///
    /// # Errors
    /// As [`MirrorSet::take_out`].
    pub(super) fn let_go(&self, gone: &[(MirrorId, MirrorState, &str)]) -> Result<(), MirrorError> {
        self.leave(&mut self.membership.lock(), gone)
    }

    fn leave(
        &self,
        membership: &mut Membership,
        gone: &[(MirrorId, MirrorState, &str)],
    ) -> Result<(), MirrorError> {
        let goes = |mirror: &Attached| gone.iter().any(|(id, ..)| *id == mirror.id);
        let current = self.current();
        if current.iter().all(goes) {
            return Err(MirrorError::AllFailed {
                operation: "go on with",
                file: FileName::Superblock,
                cause: gone.first().map_or("", |(.., cause)| cause).to_owned(),
            });
        }
        let mut lost_one = false;
        for (id, state, cause) in gone {
            // Another thread may have come first.
            if let Some(mirror) = self.mirror(*id)
                && mirror.state().is_written()
            {
                lost_one |= mirror.state().is_current();
                self.detach(&mirror, *state, cause);
            }
        }
        if lost_one {
            self.enter_next_epoch(membership);
            self.write_superblock(membership)?;
        }
        Ok(())
    }

    /// Marks a mirror as out, and lets go of its directory.
    fn detach(&self, mirror: &Mirror, state: MirrorState, cause: &str) {
        let present = mirror.backing().is_none_or(|backing| backing.is_present());
        let (state, cause) = match (state, present) {
            // Errors of a disk that was pulled out say less than that.
            (MirrorState::Failed, false) => (MirrorState::Missing, GONE),
            other => (other.0, cause),
        };
        if mirror.state().is_current() {
            log::error!(
                "mirror {} is {} ({cause}): the pool goes on DEGRADED without it",
                mirror.label(),
                state.name()
            );
        } else {
            log::error!(
                "mirror {} is {} ({cause}): bringing it up to date has stopped",
                mirror.label(),
                state.name()
            );
        }
        // Whoever still works with it sees the state; the rest of us forget its directory.
        mirror.set_state(state, cause);
        let without = Arc::new(mirror.without_directory(state, cause));
        self.witness.mirror_state(&without, cause);
        for slot in self.mirrors.write().iter_mut() {
            if slot.id == mirror.id {
                *slot = Arc::clone(&without);
            }
        }
    }

    /// Waits until a change of the membership that was seen is durable. What was written without a
    /// mirror must not be acknowledged before the others know that it lacks it.
    pub(super) fn await_epoch(&self) {
        if self.degraded() {
            drop(self.membership.lock());
        }
    }

    /// Takes a mirror out by the operator's wish: it stays out until the operator takes it back.
    ///
    /// # Errors
    /// [`MembershipError`]; then it stays in.
    pub fn offline(&self, uuid: Uuid, cause: &str) -> Result<(), MembershipError> {
        let mut membership = self.membership.lock();
        let mirror = self.removable(&mut membership, uuid)?;
        if mirror.state().is_written() {
            self.detach(&mirror, MirrorState::Offline, cause);
        } else {
            mirror.set_state(MirrorState::Offline, cause);
            self.witness.mirror_state(&mirror, cause);
        }
        if let Some(member) = membership.superblock.member_mut(uuid) {
            member.state = MemberState::Offline;
        }
        self.enter_next_epoch(&mut membership);
        Ok(self.write_superblock(&mut membership)?)
    }

    /// Takes a mirror off the pool's list for good; returns it as it was.
    ///
    /// # Errors
    /// [`MembershipError`]; then it stays a member.
    pub fn expel(&self, uuid: Uuid, cause: &str) -> Result<Arc<Mirror>, MembershipError> {
        let mut membership = self.membership.lock();
        let mirror = self.removable(&mut membership, uuid)?;
        if mirror.state().is_written() {
            self.detach(&mirror, MirrorState::Offline, cause);
        }
        strike_off(&mut membership.superblock, uuid);
        self.enter_next_epoch(&mut membership);
        self.write_superblock(&mut membership)?;
        self.mirrors.write().retain(|other| other.uuid != uuid);
        Ok(mirror)
    }

    /// The mirror with that UUID, if another one holds everything, and can still be written.
    fn removable(
        &self,
        membership: &mut Membership,
        uuid: Uuid,
    ) -> Result<Arc<Mirror>, MembershipError> {
        // One whose disk is gone may not have been noticed yet: this takes it out.
        self.write_superblock(membership)?;
        let all = self.all();
        let mirror = all.iter().find(|mirror| mirror.uuid == uuid);
        let mirror = mirror.ok_or(MembershipError::Unknown(uuid))?;
        if self.current().iter().any(|other| other.uuid != uuid) {
            Ok(Arc::clone(mirror))
        } else {
            let mirror = mirror.name();
            Err(MembershipError::Last { mirror })
        }
    }

    /// Lets a mirror receive what is written from now on, marked as resyncing. `prepare` is called
    /// in between: when nobody can take the directory for what it was before any more, and nobody
    /// writes to it yet.
    ///
    /// # Errors
    /// [`MembershipError`]; then it receives nothing.
    pub fn attach(
        &self,
        newcomer: Newcomer,
        prepare: &dyn Fn(&dyn Backing) -> io::Result<()>,
    ) -> Result<MirrorId, MembershipError> {
        let mut membership = self.membership.lock();
        let before = membership.superblock.clone();
        let superblock = &mut membership.superblock;
        let full = superblock.members.len() == MAX_MIRRORS;
        match superblock.member_mut(newcomer.uuid) {
            Some(member) => {
                member.state = MemberState::Resyncing;
                member.lsn = newcomer.lsn;
            }
            None if full => return Err(MembershipError::TooMany),
            None => superblock.members.push(Member {
                uuid: newcomer.uuid,
                state: MemberState::Resyncing,
                epoch: Epoch(0),
                lsn: newcomer.lsn,
                replaces: newcomer.replaces,
            }),
        }
        superblock.sequence += 1;
        let own = Superblock {
            mirror: newcomer.uuid,
            ..superblock.clone()
        };
        let backing = newcomer.backing.as_ref();
        // Both slots: an old one must not come back when the new one is damaged.
        let marked = write_slot(backing, &own)
            .and_then(|()| write_slot(backing, &own))
            .and_then(|()| prepare(backing));
        if let Err(error) = marked {
            membership.superblock = before;
            return Err(MembershipError::Target {
                mirror: newcomer.label,
                cause: error.to_string(),
            });
        }
        let id = self.enter(newcomer);
        self.write_superblock(&mut membership)?;
        Ok(id)
    }

    fn enter(&self, newcomer: Newcomer) -> MirrorId {
        let mut mirrors = self.mirrors.write();
        let (label, backing) = (newcomer.label, newcomer.backing);
        let known = mirrors
            .iter_mut()
            .find(|mirror| mirror.uuid == newcomer.uuid);
        let mirror = match known {
            Some(slot) => {
                *slot = Arc::new(slot.attached_anew(label, backing));
                Arc::clone(slot)
            }
            None => {
                let id = MirrorId(self.next_id.fetch_add(1, Ordering::Relaxed));
                let state = (MirrorState::Resyncing, "");
                let mirror = Mirror::new(id, newcomer.uuid, label, Some(backing), state);
                mirrors.push(Arc::new(mirror));
                Arc::clone(&mirrors[mirrors.len() - 1])
            }
        };
        drop(mirrors);
        log::info!("{} is being brought up to date", mirror.label());
        self.witness
            .mirror_state(&mirror, "to be brought up to date");
        mirror.id
    }

    /// Records how far a mirror has been brought up to date: it has all file data born up to `lsn`.
    ///
    /// # Errors
    /// [`MirrorError::AllFailed`] if no current mirror took it.
    pub fn note_progress(&self, uuid: Uuid, lsn: Lsn) -> Result<(), MirrorError> {
        self.update_superblock(|superblock| {
            if let Some(member) = superblock.member_mut(uuid)
                && member.state == MemberState::Resyncing
            {
                member.lsn = member.lsn.max(lsn);
            }
        })
    }

    /// Makes a mirror that has everything current, and takes off the list the one whose place it
    /// takes, which is returned.
    ///
    /// # Errors
    /// [`MembershipError`]; then it is as it was, or out if it failed.
    pub fn promote(&self, id: MirrorId) -> Result<Option<Arc<Mirror>>, MembershipError> {
        let mut membership = self.membership.lock();
        let mirror = self.written_one(id);
        let Some(mirror) = mirror.filter(|mirror| mirror.state() == MirrorState::Resyncing) else {
            let mirror = self.mirror(id);
            return Err(MembershipError::NotResyncing {
                state: mirror
                    .as_ref()
                    .map_or("removed", |mirror| mirror.state().name()),
                mirror: mirror.map_or_else(String::new, |mirror| mirror.name()),
            });
        };
        let superblock = &mut membership.superblock;
        let member = superblock.member_mut(mirror.uuid);
        let replaced = member.and_then(|member| member.replaces.take());
        let old = replaced.and_then(|uuid| {
            let all = self.all();
            all.into_iter().find(|other| other.uuid == uuid)
        });
        if let Some(uuid) = replaced {
            strike_off(superblock, uuid);
        }
        membership.promoting = Some(mirror.uuid);
        self.enter_next_epoch(&mut membership);
        let written = self.write_superblock(&mut membership);
        membership.promoting = None;
        written?;
        if !mirror.change_state(MirrorState::Resyncing, MirrorState::Online, "") {
            return Err(MembershipError::NotResyncing {
                mirror: mirror.name(),
                state: mirror.state().name(),
            });
        }
        mirror.health.reset();
        log::info!("{} is up to date and online", mirror.label());
        self.witness.mirror_state(&mirror, "up to date");
        if let Some(old) = &old {
            let cause = format!("{} took its place", mirror.name());
            if old.state().is_written() {
                self.detach(old, MirrorState::Offline, &cause);
            }
            self.mirrors.write().retain(|other| other.id != old.id);
        }
        Ok(old)
    }

    fn enter_next_epoch(&self, membership: &mut Membership) {
        let current: Vec<Uuid> = self.current().iter().map(|mirror| mirror.uuid).collect();
        let promoting = membership.promoting;
        let superblock = &mut membership.superblock;
        superblock.epoch = Epoch(superblock.epoch.0 + 1);
        for member in &mut superblock.members {
            if current.contains(&member.uuid) || promoting == Some(member.uuid) {
                member.state = MemberState::Online;
                member.epoch = superblock.epoch;
                member.lsn = Lsn(self.covered.load(Ordering::Acquire));
            } else if member.state == MemberState::Online {
                member.state = MemberState::Stale;
            }
        }
    }

    fn write_superblock(&self, membership: &mut Membership) -> Result<(), MirrorError> {
        let mut cause = "no mirror is online".to_owned();
        loop {
            let covered = Lsn(self.covered.load(Ordering::Acquire));
            let superblock = &mut membership.superblock;
            superblock.sequence += 1;
            superblock.written = self.witness.time();
            for member in &mut superblock.members {
                if member.state == MemberState::Online {
                    member.lsn = member.lsn.max(covered);
                }
            }
            let (mut failed, mut written) = (Vec::new(), 0);
            for mirror in self.written() {
                let superblock = Superblock {
                    mirror: mirror.uuid,
                    ..membership.superblock.clone()
                };
                match write_slot(mirror.backing(), &superblock) {
                    Ok(()) => written += usize::from(mirror.state().is_current()),
                    Err(error) => {
                        Counters::count(&mirror.counters.write_errors);
                        cause = format!("{}: {error}", mirror.label());
                        failed.push((mirror, format!("cannot write its superblock: {error}")));
                    }
                }
            }
            if written == 0 {
                return Err(MirrorError::AllFailed {
                    operation: "write",
                    file: FileName::Superblock,
                    cause,
                });
            }
            if failed.is_empty() {
                return Ok(());
            }
            for (mirror, cause) in failed {
                if membership.promoting == Some(mirror.uuid) {
                    membership.promoting = None;
                }
                self.detach(&mirror, MirrorState::Failed, &cause);
            }
            self.enter_next_epoch(membership);
        }
    }
}

/// Takes a member off the list, also where it was to be replaced.
fn strike_off(superblock: &mut Superblock, uuid: Uuid) {
    superblock.members.retain(|member| member.uuid != uuid);
    for member in &mut superblock.members {
        if member.replaces == Some(uuid) {
            member.replaces = None;
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
    let got = read_around(backing, FileName::Superblock, 0, &mut slots);
    let newest = slots[..got.map_or(0, |(got, _)| got)]
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
