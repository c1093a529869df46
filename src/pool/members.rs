//! Mirrors that come and go while the pool is open: the operator's commands, and mirrors that come
//! back by themselves.

use std::io;
use std::sync::Arc;

use thiserror::Error;

use super::commit::Pool;
use super::create::lay_out_empty;
use super::error::{PoolError, Result};
use super::open::{BY_OPERATOR, DIVERGED};
use crate::backing::{Backing, FileName, Space};
use crate::format::{Lsn, MemberState, Uuid};
use crate::mirrors::choose::went_apart;
use crate::mirrors::membership::write_slot;
use crate::mirrors::room::FULL;
use crate::mirrors::{
    MembershipError, Mirror, MirrorId, MirrorState, Newcomer, OpenError, read_superblock,
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

    /// The directory of a mirror: as it was opened, or opened anew if that one is gone, as when its
    /// disk was unmounted and mounted again.
    fn directory_of(&self, mirror: &Mirror) -> MemberResult<Arc<dyn Backing>> {
        match mirror.backing() {
            Some(backing) if backing.is_present() => Ok(Arc::clone(backing)),
            _ => self.open_directory(mirror.label(), false),
        }
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
            Ok(mirror) => self.directory_of(mirror)?,
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
        // A disk that does not take a write, or hangs in one, shows that here, where nobody else
        // waits for it.
        write_slot(backing.as_ref(), &own).map_err(|error| MembershipError::Target {
            mirror: label.clone(),
            cause: error.to_string(),
        })?;
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
        // An empty directory may take the place of the mirror that lay there and is gone.
        if let Ok(mirror) = self.member(path)
            && (mirror.state().is_written() || replaces != Some(mirror.uuid))
        {
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
        // Its successor may lie where it lay.
        let all = self.mirrors.all();
        if all.iter().any(|other| other.label() == mirror.label()) {
            return;
        }
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
                    .and_then(|()| directory.sync_name(FileName::Superblock))
                    .map_err(|error| error.to_string())
            });
        if let Err(cause) = removed {
            log::warn!(
                "{} is no member any more, but its superblock is still there: {cause}",
                mirror.name()
            );
        }
    }

    /// Lets a mirror receive what is written from now on. Between checkpoints: it gets each from
    /// its beginning or not at all.
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
        // Not while it is attached: whoever makes a segment may have to take a mirror out.
        let next = self.segments.next_segment();
        let prepare = |backing: &dyn Backing| {
            lay_out_empty(backing)?;
            // Of a history that nobody knows any more.
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
        let backing = self.directory_of(mirror)?;
        let space = backing.space().map_err(|error| MemberError::Directory {
            mirror: mirror.name(),
            cause: error.to_string(),
        })?;
        // With no room while the others have some it would be the one that fills up the pool.
        let short = |space: Space| space.available < 2 * self.kept_of(space.total);
        let others = self.mirrors.space();
        let available = others.map_or(0, |space| space.available);
        let still_filled = mirror.cause() == FULL && space.available < available / 8;
        let only_short = mirror.state() == MirrorState::Offline || !others.is_none_or(short);
        if still_filled || short(space) && only_short {
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
