//! Mirrors that come and go while the pool is open: the operator's commands, and what a service
//! needs to bring one up to date.

use std::io;
use std::sync::Arc;

use thiserror::Error;

use super::commit::Pool;
use super::create::lay_out_empty;
use super::error::{PoolError, Result};
use super::open::{BY_OPERATOR, DIVERGED};
use super::status::ResyncStatus;
use crate::backing::{Backing, FileName};
use crate::format::{ExtentRow, Key, Lsn, MemberState, ReverseRow, SegmentNo, Uuid};
use crate::ledger::What;
use crate::mirrors::choose::went_apart;
use crate::mirrors::{
    Copied, MembershipError, Mirror, MirrorId, MirrorState, Newcomer, OpenError, Target,
    read_superblock,
};

/// Why a mirror could not be added, removed, taken out or taken back.
#[derive(Debug, Error)]
pub enum MemberError {
    /// The pool's own reasons.
    #[error(transparent)]
    Membership(#[from] MembershipError),
    /// The pool itself.
    #[error(transparent)]
    Pool(#[from] PoolError),
    /// The directory is no usable mirror.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// The directory cannot be opened.
    #[error("cannot open {mirror}: {cause}")]
    Directory {
        /// The directory.
        mirror: String,
        /// The I/O error.
        cause: String,
    },
    /// None of the pool's mirrors is there.
    #[error("{0} is not a mirror of this pool; mendfs mirror list shows which are")]
    NotMember(String),
    /// Nothing to do.
    #[error("{mirror} is {state} already")]
    Already {
        /// The directory.
        mirror: String,
        /// The word for its state.
        state: &'static str,
    },
    /// Something is in the directory that is to become a mirror.
    #[error("{0} is not empty; a new mirror needs an empty directory")]
    NotEmpty(String),
    /// A mirror of the pool that was added before.
    #[error("{0} belongs to this pool already; mendfs mirror online takes it back")]
    Belongs(String),
    /// A mirror that was written to without the others.
    #[error(
        "{0} was written to without the others: unmount, and mount with -o prefer=DIR to choose \
         whose history to keep"
    )]
    Diverged(String),
    /// A checkpoint waits for space.
    #[error("a checkpoint waits for space; free some, and try again")]
    Busy,
    /// Nobody can open directories for this pool.
    #[error("mirrors cannot be opened here")]
    NoOpener,
}

type MemberResult<T> = std::result::Result<T, MemberError>;

/// What became of an owner row of a segment that was to be copied.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CopiedOwner {
    /// The target has its bytes.
    Copied {
        /// The figures.
        copied: Copied,
        /// When its extent was born.
        born: Lsn,
        /// Blocks that no mirror can supply.
        lost: usize,
    },
    /// It has changed since the row was read: look again.
    Gone,
}

impl Pool {
    /// The mirror that lies in the directory, or has that UUID.
    fn member(&self, name: &str) -> MemberResult<Arc<Mirror>> {
        let all = self.mirrors.all();
        let found = all
            .into_iter()
            .find(|mirror| mirror.label() == name || mirror.uuid.to_string() == name);
        found.ok_or_else(|| MemberError::NotMember(name.to_owned()))
    }

    fn open_directory(&self, path: &str, new: bool) -> MemberResult<Arc<dyn Backing>> {
        let outside = self.options.outside.as_ref().ok_or(MemberError::NoOpener)?;
        (outside.open)(path, new).map_err(|error| MemberError::Directory {
            mirror: path.to_owned(),
            cause: error.to_string(),
        })
    }

    /// Takes a mirror out by the operator's wish.
    ///
    /// # Errors
    /// [`MemberError`]; the mirror stays in then.
    pub fn mirror_offline(&self, name: &str) -> MemberResult<()> {
        self.may_change()?;
        let mirror = self.member(name)?;
        if self.is_offline_by_operator(&mirror) {
            return Err(MemberError::Already {
                mirror: mirror.name(),
                state: MirrorState::Offline.name(),
            });
        }
        Ok(self.mirrors.offline(mirror.uuid, BY_OPERATOR)?)
    }

    fn is_offline_by_operator(&self, mirror: &Mirror) -> bool {
        let superblock = self.mirrors.superblock();
        let member = superblock.member(mirror.uuid);
        member.is_some_and(|member| member.state == MemberState::Offline)
    }

    fn may_change(&self) -> Result<()> {
        self.usable()?;
        if self.read_only() {
            return Err(PoolError::ReadOnly);
        }
        self.activate()
    }

    /// Takes back a mirror that is out; a service then brings it up to date.
    ///
    /// # Errors
    /// [`MemberError`]; the mirror stays out then.
    pub fn mirror_online(&self, path: &str) -> MemberResult<()> {
        self.may_change()?;
        let named = self.member(path);
        if let Ok(mirror) = &named
            && mirror.state().is_written()
        {
            return Err(MemberError::Already {
                mirror: mirror.name(),
                state: mirror.state().name(),
            });
        }
        // A mirror that was stale at mount is open already; others are opened anew. Given its path,
        // a mirror is also recognised where it has never been seen.
        let backing = match &named {
            Ok(mirror) => match mirror.backing() {
                Some(backing) => Arc::clone(backing),
                None => self.open_directory(mirror.label(), false)?,
            },
            Err(_) => self.open_directory(path, false)?,
        };
        self.take_back(path, backing)?;
        Ok(())
    }

    fn take_back(&self, path: &str, backing: Arc<dyn Backing>) -> MemberResult<MirrorId> {
        let own = read_superblock(backing.as_ref())?;
        let ruling = self.mirrors.superblock();
        let known = ruling.member(own.mirror).copied();
        let Some(member) = known.filter(|_| own.pool == ruling.pool) else {
            return Err(MemberError::NotMember(path.to_owned()));
        };
        let all = self.mirrors.all();
        let mirror = all.iter().find(|mirror| mirror.uuid == own.mirror);
        let mirror = mirror.ok_or_else(|| MemberError::NotMember(path.to_owned()))?;
        if mirror.state().is_written() {
            let (mirror, state) = (mirror.name(), mirror.state().name());
            return Err(MemberError::Already { mirror, state });
        }
        let current = self.mirrors.current();
        let apart = current.iter().any(|current| {
            let ours = crate::format::Superblock {
                mirror: current.uuid,
                ..ruling.clone()
            };
            went_apart(&own, &ours)
        });
        let aside = mirror.cause() == DIVERGED;
        if apart && !aside {
            return Err(MemberError::Diverged(path.to_owned()));
        }
        // It may be an older copy of itself than the pool remembers.
        let claimed = own.member(own.mirror).map_or(Lsn(0), |own| own.lsn);
        let lsn = if aside {
            Lsn(0)
        } else {
            member.lsn.min(claimed)
        };
        let label = match mirror.label() {
            "" => path.to_owned(),
            label if mirror.backing().is_some() => label.to_owned(),
            _ => path.to_owned(),
        };
        let newcomer = Newcomer {
            uuid: own.mirror,
            label,
            backing,
            lsn,
            replaces: None,
        };
        self.take_in(newcomer, aside)
    }

    /// Adds a mirror in an empty directory, which takes the place of `replaces` when it is
    /// complete; a service then fills it.
    ///
    /// # Errors
    /// [`MemberError`]; nothing is added then.
    pub fn mirror_add(&self, path: &str, replaces: Option<&str>) -> MemberResult<()> {
        self.may_change()?;
        let replaces = match replaces {
            Some(name) => Some(self.member(name)?.uuid),
            None => None,
        };
        if let Ok(mirror) = self.member(path) {
            return Err(MemberError::Belongs(mirror.name()));
        }
        let backing = self.open_directory(path, true)?;
        match read_superblock(backing.as_ref()) {
            Ok(own) if self.mirrors.superblock().member(own.mirror).is_some() => {
                return Err(MemberError::Belongs(path.to_owned()));
            }
            Err(OpenError::NoPool { .. }) => {}
            Ok(_) | Err(_) => return Err(MemberError::NotEmpty(path.to_owned())),
        }
        let random = self.options.outside.as_ref().ok_or(MemberError::NoOpener)?;
        let newcomer = Newcomer {
            uuid: Uuid::from_random((random.random)()),
            label: path.to_owned(),
            backing,
            lsn: Lsn(0),
            replaces,
        };
        self.take_in(newcomer, false)?;
        Ok(())
    }

    /// Takes a mirror off the pool for good. Its directory is no mirror any more then; what else
    /// lies there may be deleted.
    ///
    /// # Errors
    /// [`MemberError`]; it stays a member then.
    pub fn mirror_remove(&self, name: &str) -> MemberResult<()> {
        self.may_change()?;
        let mirror = self.member(name)?;
        let removed = self
            .mirrors
            .expel(mirror.uuid, "was removed by the operator")?;
        self.discharge(&removed);
        Ok(())
    }

    /// A directory that was a mirror must not be taken for one later.
    fn discharge(&self, mirror: &Mirror) {
        let directory = match mirror.backing() {
            Some(backing) => Ok(Arc::clone(backing)),
            None => self.open_directory(mirror.label(), false),
        };
        let removed = directory
            .map_err(|error| error.to_string())
            .and_then(|directory| {
                let own = read_superblock(directory.as_ref()).map_err(|error| error.to_string())?;
                if own.mirror != mirror.uuid {
                    return Ok(());
                }
                directory
                    .remove(FileName::Superblock)
                    .map_err(|error| error.to_string())
            });
        if let Err(cause) = removed {
            log::warn!(
                "{} is no member any more, but its superblock is still there: {cause}",
                mirror.name()
            );
        }
    }

    /// Lets a mirror receive what is written from now on. Between checkpoints: it gets each from its
    /// beginning or not at all.
    fn take_in(&self, newcomer: Newcomer, aside: bool) -> MemberResult<MirrorId> {
        let _between = self.checkpointing.between().ok_or(MemberError::Busy)?;
        let label = newcomer.label.clone();
        let failed = |error: io::Error| MemberError::Directory {
            mirror: label.clone(),
            cause: error.to_string(),
        };
        if aside {
            newcomer.backing.set_aside().map_err(failed)?;
        }
        let prepare = |backing: &dyn Backing| {
            lay_out_empty(backing)?;
            // Of a history that nobody knows any more.
            let next = self.segments.next_segment();
            let newer = backing.segments()?.into_iter().filter(|own| *own >= next);
            for segment in newer {
                backing.remove(FileName::Segment(segment))?;
            }
            Ok(())
        };
        let id = self.mirrors.attach(newcomer, &prepare)?;
        self.segments.close_open();
        self.index.forget_reserve();
        Ok(id)
    }

    /// Takes back the next mirror that is out without the operator's wish and can be reached: one
    /// that was behind at mount, or whose directory is there again with room. `may_try` says for
    /// each whether its directory is to be looked at now. Returns the one that was taken back.
    pub fn take_back_next(&self, may_try: &mut dyn FnMut(&Mirror) -> bool) -> Option<MirrorId> {
        if self.read_only() || self.failure().is_some() {
            return None;
        }
        for mirror in self.mirrors.all() {
            let out = !mirror.state().is_written() && !self.is_offline_by_operator(&mirror);
            if !out || mirror.label().is_empty() || !may_try(&mirror) {
                continue;
            }
            let taken = self.try_take_back(&mirror);
            match taken {
                Ok(id) => return Some(id),
                Err(error) => log::debug!("{} stays out: {error}", mirror.name()),
            }
        }
        None
    }

    fn try_take_back(&self, mirror: &Mirror) -> MemberResult<MirrorId> {
        let backing = match mirror.backing() {
            Some(backing) => Arc::clone(backing),
            None => self.open_directory(mirror.label(), false)?,
        };
        let space = backing.space().map_err(|error| MemberError::Directory {
            mirror: mirror.name(),
            cause: error.to_string(),
        })?;
        let kept = self.kept_of(space.total);
        if mirror.state() == MirrorState::Offline && space.available < 2 * kept {
            let mirror = mirror.name();
            return Err(PoolError::NoSpace { mirror }.into());
        }
        let own = read_superblock(backing.as_ref())?;
        if own.mirror != mirror.uuid {
            return Err(MemberError::NotMember(mirror.name()));
        }
        self.may_change()?;
        self.take_back(mirror.label(), backing)
    }

    /// Mirrors that are being brought up to date.
    pub fn resyncing(&self) -> Vec<MirrorId> {
        let written = self.mirrors.written().into_iter();
        written
            .filter(|mirror| mirror.state() == MirrorState::Resyncing)
            .map(|mirror| mirror.id)
            .collect()
    }

    /// The mirror that is being brought up to date, as long as it is.
    pub fn resync_target(&self, id: MirrorId) -> Option<Target> {
        self.mirrors.target(id)
    }

    /// Up to which LSN of birth the mirror has all file data.
    pub fn resync_from(&self, target: &Target) -> Lsn {
        let superblock = self.mirrors.superblock();
        let member = superblock.member(target.mirror().uuid);
        member.map_or(Lsn(0), |member| member.lsn)
    }

    /// Records how far a mirror has been brought up to date.
    ///
    /// # Errors
    /// [`PoolError::Failed`] if no mirror took it.
    pub fn note_resync(&self, target: &Target, lsn: Lsn) -> Result<()> {
        self.guard(self.mirrors.note_progress(target.mirror().uuid, lsn))
    }

    /// Extents that were written but have no row yet.
    pub fn unlinked_extents(&self) -> Vec<(SegmentNo, u32)> {
        self.segments.all_unlinked()
    }

    /// Gives the target what an owner row of a segment stands for. Takes the inode's lock, so that
    /// the bytes stay live meanwhile.
    ///
    /// # Errors
    /// As [`Pool::get`]; [`PoolError::Target`] if the target failed.
    pub fn copy_owner(&self, target: &Target, key: &Key, value: &[u8]) -> Result<CopiedOwner> {
        let (_, _, ino, _) = key.reverse_parts()?;
        let _inode = self.lock_shared(ino);
        let Some(row) = self.owned_row(key, value)? else {
            return Ok(CopiedOwner::Gone);
        };
        let (copied, lost) = self.segments.copy(&row, target)?;
        Ok(CopiedOwner::Copied {
            copied,
            born: row.born,
            lost: lost.len(),
        })
    }

    /// Whether the target has what an owner row stands for, if that is still what it was.
    ///
    /// # Errors
    /// As [`Pool::get`].
    pub fn is_held(&self, target: &Target, key: &Key, value: &[u8]) -> Result<bool> {
        let (_, _, ino, _) = key.reverse_parts()?;
        let _inode = self.lock_shared(ino);
        let row = self.owned_row(key, value)?;
        Ok(row.is_none_or(|row| self.segments.is_held(&row, target)))
    }

    /// The extent row that an owner row of a segment belongs to, if both are still there.
    pub(super) fn owned_row(&self, key: &Key, value: &[u8]) -> Result<Option<ExtentRow>> {
        let (segment, at, ino, offset) = key.reverse_parts()?;
        let reverse = ReverseRow::decode(value)?;
        let Some(row) = self.get(&Key::extent(ino, offset))? else {
            return Ok(None);
        };
        let row = ExtentRow::decode(&row, self.algorithm().width())?;
        let same = (row.segment, row.offset, row.stored, row.header)
            == (segment, at, reverse.stored, reverse.header);
        Ok(same.then_some(row))
    }

    /// When the extent of the first live row of a segment was born.
    ///
    /// # Errors
    /// As [`Pool::get`].
    pub fn first_born(&self, segment: SegmentNo) -> Result<Option<Lsn>> {
        let (from, to) = (Key::reverse_at(segment, 0), Key::reverse_end(segment));
        for (key, value) in self.scan(&from, &to, 16)? {
            if let Some(row) = self.owned_row(&key, &value)? {
                return Ok(Some(row.born));
            }
        }
        Ok(None)
    }

    /// Live bytes of each segment, ascending.
    pub fn live_bytes(&self) -> Vec<(SegmentNo, u64)> {
        self.segments.with_accounts(|accounts| {
            let rows = accounts.iter();
            rows.map(|(segment, row)| (segment, row.live)).collect()
        })
    }

    /// Makes what was copied to a segment of the target durable, and has it read from the medium
    /// next.
    ///
    /// # Errors
    /// [`PoolError::Target`] if the target failed.
    pub fn seal_copy(&self, target: &Target, file: FileName) -> Result<()> {
        Ok(self.mirrors.target_result(target, target.seal(file))?)
    }

    /// Takes the target out since its medium does not hold what was written to it.
    pub fn target_forgets(&self, target: &Target, file: FileName) -> PoolError {
        let forgets = io::Error::other(format!(
            "its medium does not hold what was written ({file})"
        ));
        match self.mirrors.target_result::<()>(target, Err(forgets)) {
            Err(error) => error.into(),
            Ok(()) => PoolError::Failed {
                reason: "an error turned into none".to_owned(),
            },
        }
    }

    /// Segments on the target that no other mirror has: of files that are long gone.
    pub fn superfluous_segments(&self, target: &Target) -> Vec<SegmentNo> {
        let known: std::collections::BTreeSet<_> = self
            .segment_files()
            .into_iter()
            .map(|(segment, _)| segment)
            .collect();
        let newest = self.segments.next_segment();
        let own = target.mirror().backing().segments().unwrap_or_default();
        own.into_iter()
            .filter(|segment| !known.contains(segment) && *segment < newest)
            .collect()
    }

    /// Removes a segment that only the target has.
    ///
    /// # Errors
    /// [`PoolError::Target`] if the target failed.
    pub fn remove_superfluous(&self, target: &Target, segment: SegmentNo) -> Result<()> {
        let removed = target.mirror().backing().remove(FileName::Segment(segment));
        Ok(self.mirrors.target_result(target, removed)?)
    }

    /// Makes what lies between live data in a segment, and its length, the same on the target as on
    /// the others. For segments that are not being written.
    ///
    /// # Errors
    /// As [`Pool::get`]; [`PoolError::Target`] if the target failed.
    pub fn copy_gaps(&self, target: &Target, segment: SegmentNo) -> Result<Copied> {
        let file = FileName::Segment(segment);
        let mut total = Copied::default();
        let end = self.segment_end(segment)?;
        self.for_gaps(segment, end, &mut |offset, len| {
            let copied = self.mirrors.match_gap(target, file, offset, len);
            total.add(self.mirrors.target_result(target, copied)?);
            Ok(())
        })?;
        let len = self.mirrors.match_len(target, file);
        self.mirrors.target_result(target, len)?;
        Ok(total)
    }

    /// Makes index pages `from..to` of the target what they are on the others.
    ///
    /// # Errors
    /// [`PoolError::Target`] if the target failed.
    pub fn copy_pages(&self, target: &Target, from: u32, to: u32) -> Result<Copied> {
        Ok(self.index.copy_pages(from, to, target)?)
    }

    /// Makes the page-sum table of the target what it is on the others.
    ///
    /// # Errors
    /// [`PoolError::Target`] if the target failed.
    pub fn copy_sums(&self, target: &Target) -> Result<Copied> {
        Ok(self.index.copy_sums(target)?)
    }

    /// Makes a part of the journal of the target what it is on the others.
    ///
    /// # Errors
    /// [`PoolError::Target`] if the target failed.
    pub fn copy_journal(&self, target: &Target, offset: u64, len: usize) -> Result<Copied> {
        Ok(self.journal.copy(offset, len, target)?)
    }

    /// Bytes per second for bringing mirrors up to date, if that was asked for.
    pub const fn resync_rate(&self) -> Option<u64> {
        self.options.resync_rate
    }

    /// Size of the journal in bytes.
    pub const fn journal_size(&self) -> u64 {
        self.journal.size()
    }

    /// Makes a mirror that has everything current. Everything that was copied must be durable.
    ///
    /// # Errors
    /// [`MemberError`]; it then stays as it is, or is out.
    pub fn promote(&self, id: MirrorId) -> MemberResult<()> {
        // What was freed while it was copied may still be wanted by a crash before this.
        self.sync()?;
        if self.checkpoint_useful() {
            self.checkpoint()?;
        }
        let replaced = self.mirrors.promote(id)?;
        if let Some(mirror) = self
            .mirrors
            .mirror(id)
            .as_ref()
            .and_then(|m| m.backing().cloned())
            && let Err(error) = mirror.forget_aside()
        {
            log::warn!("{}: what was set aside stays: {error}", mirror.label());
        }
        if let Some(replaced) = replaced {
            self.discharge(&replaced);
        }
        Ok(())
    }

    /// How bringing a mirror up to date goes on; none when none is.
    pub fn set_resync_status(&self, status: Option<ResyncStatus>) {
        *self.resync.lock() = status;
    }

    /// Records an event of bringing a mirror up to date.
    pub fn note_resync_event(&self, mirror: String, outcome: &str, copied: Copied, lost: u64) {
        self.incidents.note(What::Resync {
            mirror,
            outcome: outcome.to_owned(),
            compared_bytes: copied.compared,
            moved_bytes: copied.moved,
            lost_blocks: lost,
        });
    }

    /// Looks after the mirrors: directories that are gone, and suspicion that has ended.
    ///
    /// # Errors
    /// [`PoolError::Failed`] if no mirror could be written.
    pub fn look_after_mirrors(&self) -> Result<()> {
        self.mirrors.trust_again();
        if self.read_only() || !self.is_active() {
            return Ok(());
        }
        self.guard(self.mirrors.miss_directories())
    }
}
