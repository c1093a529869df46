//! Opening a pool: who speaks, then recovery.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use thiserror::Error;

use super::commit::Pool;
use super::incidents::Incidents;
use super::recover;
use crate::backing::Backing;
use crate::format::{Lsn, Timestamp};
use crate::index::IndexError;
use crate::journal::JournalDamaged;
use crate::ledger::Ledger;
use crate::mirrors::{
    Candidate, Choice, Mirror, MirrorError, MirrorId, MirrorSet, MirrorState, OpenError, Standing,
    choose, read_superblock,
};

/// Causes told of mirrors that are out from the beginning.
pub(super) const BEHIND: &str = "missed changes while it was away";
pub(super) const BY_OPERATOR: &str = "was taken offline by the operator";
pub(super) const DIVERGED: &str = "went on alone, and another mirror is preferred";

/// Features that a build must know to write; this one knows none.
const KNOWN_RO_FEATURES: u64 = 0;

/// Tells the time.
pub type Clock = Arc<dyn Fn() -> Timestamp + Send + Sync>;

/// Opens the directory of a mirror; the flag says that it is to become one.
pub type OpenDirectory = dyn Fn(&str, bool) -> std::io::Result<Arc<dyn Backing>> + Send + Sync;

/// What a pool needs from outside for mirrors that come while it is open.
pub struct Outside {
    /// Opens the directory of a mirror, for this pool alone.
    pub open: Box<OpenDirectory>,
    /// Random bytes for a new UUID.
    pub random: Box<dyn Fn() -> [u8; 16] + Send + Sync>,
}

/// The system's clock.
pub fn system_clock() -> Clock {
    Arc::new(|| {
        let since = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or(Duration::ZERO);
        let seconds = i64::try_from(since.as_secs()).unwrap_or(i64::MAX);
        Timestamp {
            seconds,
            nanoseconds: since.subsec_nanos(),
        }
    })
}

/// When operations become durable that nobody asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CommitMode {
    /// Each before it is acknowledged.
    Always,
    /// Within this time.
    Interval(Duration),
    /// When a checkpoint comes.
    None,
}

/// How to open a pool.
#[derive(Clone)]
pub struct OpenOptions {
    /// Refuse changes.
    pub read_only: bool,
    /// Open although mirrors are missing or stale.
    pub degraded: bool,
    /// Cache for the index, in bytes.
    pub cache: usize,
    /// When operations become durable.
    pub commit: CommitMode,
    /// The clock.
    pub clock: Clock,
    /// Sync mirrors side by side.
    pub parallel: bool,
    /// Keep a ledger.
    pub ledger: bool,
    /// Length at which segments are closed, in bytes.
    pub segment_size: u32,
    /// Space kept reserved for the index, in bytes.
    pub index_reserve: u64,
    /// Free space that data must leave on each mirror, in bytes; none for the default.
    pub space_kept: Option<u64>,
    /// Path of the mirror whose history is kept where mirrors went on apart.
    pub prefer: Option<String>,
    /// Path of the mirror that reads go to as long as it can answer.
    pub read_from: Option<String>,
    /// Bytes per second for bringing mirrors up to date; none: as fast as applications let it.
    pub resync_rate: Option<u64>,
    /// For mirrors that come back or are new; without it none can.
    pub outside: Option<Arc<Outside>>,
}

impl fmt::Debug for OpenOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OpenOptions")
            .field("read_only", &self.read_only)
            .field("degraded", &self.degraded)
            .field("cache", &self.cache)
            .field("commit", &self.commit)
            .finish_non_exhaustive()
    }
}

impl Default for OpenOptions {
    fn default() -> OpenOptions {
        OpenOptions {
            read_only: false,
            degraded: true,
            cache: 64 << 20,
            commit: CommitMode::Interval(Duration::from_millis(500)),
            clock: system_clock(),
            parallel: true,
            ledger: true,
            segment_size: crate::segments::SEGMENT_SIZE,
            index_reserve: 16 << 20,
            space_kept: None,
            prefer: None,
            read_from: None,
            resync_rate: None,
            outside: None,
        }
    }
}

/// Why a pool did not open. The mirrors are as they were found.
#[derive(Debug, Clone, Error)]
pub enum MountError {
    /// The directories are not a pool that can be opened.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// Mirrors are missing and `nodegraded` was asked for.
    #[error(
        "{missing} is missing or behind, and nodegraded was given; bring it back, or mount \
             without nodegraded"
    )]
    Degraded {
        /// The mirror.
        missing: String,
    },
    /// The pool must only be read by this build.
    #[error(
        "{mirror} has features that this build may only read (ro-compat bits {bits:#x}); \
             mount it with -o ro, or use a newer mendfs"
    )]
    ReadOnlyFeature {
        /// The mirror.
        mirror: String,
        /// The unknown bits.
        bits: u64,
    },
    /// The journal is damaged on every mirror.
    #[error(transparent)]
    Journal(#[from] JournalDamaged),
    /// The index is damaged on every mirror.
    #[error("the index cannot be opened: {0}; nothing was changed")]
    Index(#[from] IndexError),
    /// The mirrors could not be written.
    #[error("recovery could not write: {0}")]
    Mirrors(#[from] MirrorError),
    /// Recovery went wrong in another way.
    #[error("recovery failed: {0}")]
    Recovery(String),
}

/// A directory named for a mount: its path, and the directory if it could be opened.
pub type Named = (String, Option<Arc<dyn Backing>>);

impl Pool {
    /// Opens the pool that the directories hold, replaying the journal if it was not closed in
    /// order.
    ///
    /// # Errors
    /// [`MountError`], with one sentence that names the thing and the way out.
    pub fn open(named: Vec<Named>, options: OpenOptions) -> Result<Pool, MountError> {
        let candidates: Vec<Candidate> = named
            .into_iter()
            .map(|(label, backing)| {
                let superblock = match &backing {
                    Some(backing) => read_superblock(backing.as_ref()),
                    None => Err(OpenError::NoPool {
                        mirror: label.clone(),
                    }),
                };
                Candidate {
                    label,
                    backing,
                    superblock,
                }
            })
            .collect();
        let prefer = match &options.prefer {
            None => None,
            Some(path) => Some(
                candidates
                    .iter()
                    .position(|candidate| candidate.label == *path)
                    .ok_or_else(|| OpenError::Prefer {
                        mirror: path.clone(),
                        why: "it is not among the mirrors that are mounted",
                    })?,
            ),
        };
        let choice =
            choose(&candidates, prefer).map_err(|error| tell_histories(&candidates, error))?;
        let mirrors = build_mirrors(&candidates, &choice);
        check_degraded(&mirrors, &candidates, &choice, &options)?;
        let bits = choice.superblock.ro_compat & !KNOWN_RO_FEATURES;
        if bits != 0 && !options.read_only {
            let mirror = mirrors.first().map_or("", Mirror::label).to_owned();
            return Err(MountError::ReadOnlyFeature { mirror, bits });
        }
        let ledgers = mirrors
            .iter()
            .filter(|mirror| mirror.state().is_current())
            .filter_map(|mirror| mirror.backing()?.ledger_dir());
        let ledger = match options.ledger {
            true => Ledger::new(ledgers.collect()),
            false => Ledger::default(),
        };
        let incidents = Arc::new(Incidents::new(Arc::clone(&options.clock), ledger));
        let witness = Arc::clone(&incidents);
        let pinned = match &options.read_from {
            None => None,
            Some(path) => mirrors
                .iter()
                .find(|mirror| mirror.label() == path.as_str()),
        };
        let pinned = pinned.map(|mirror| mirror.uuid);
        let set = MirrorSet::new(mirrors, choice.superblock, witness, options.parallel);
        set.read_from(pinned);
        let parts = recover::recover(Arc::new(set), incidents, options)?;
        let pool = Pool::assemble(parts);
        pool.load_promises()
            .map_err(|error| MountError::Recovery(error.to_string()))?;
        pool.record_incidents();
        if pool.is_active() {
            // What was replayed goes into the index, so that the next mount need not do it again.
            pool.checkpoint().or_else(|error| match error {
                super::error::PoolError::NoSpace { .. } => Ok(()),
                error => Err(MountError::Recovery(error.to_string())),
            })?;
        }
        Ok(pool)
    }

    /// LSN up to which everything is durable.
    pub fn durable(&self) -> Lsn {
        self.journal.synced()
    }
}

fn build_mirrors(candidates: &[Candidate], choice: &Choice) -> Vec<Mirror> {
    let mut nameless = choice
        .unusable
        .iter()
        .filter(|index| candidates[**index].superblock.is_err());
    let members = choice
        .superblock
        .members
        .iter()
        .zip(&choice.standings)
        .enumerate();
    members
        .map(|(number, (member, standing))| {
            let state = match standing {
                Standing::Current(_) => (MirrorState::Online, ""),
                Standing::Stale(_) => (MirrorState::Offline, BEHIND),
                Standing::Offline(_) => (MirrorState::Offline, BY_OPERATOR),
                Standing::Diverged(_) => (MirrorState::Offline, DIVERGED),
                Standing::Absent => (MirrorState::Missing, ""),
            };
            // A directory that was named but holds no mirror is where a missing one belongs.
            let candidate = standing.candidate().or_else(|| nameless.next().copied());
            let candidate = candidate.and_then(|index| candidates.get(index));
            let backing = match standing {
                Standing::Absent => None,
                _ => candidate.and_then(|candidate| candidate.backing.clone()),
            };
            let label = candidate.map_or_else(String::new, |candidate| candidate.label.clone());
            Mirror::new(MirrorId(number as u8), member.uuid, label, backing, state)
        })
        .collect()
}

fn check_degraded(
    mirrors: &[Mirror],
    candidates: &[Candidate],
    choice: &Choice,
    options: &OpenOptions,
) -> Result<(), MountError> {
    for index in &choice.unusable {
        match &candidates[*index].superblock {
            Err(error) => log::error!("{error}"),
            Ok(_) => log::error!(
                "{} was removed from this pool and is left alone; name it no more, or empty it and \
                 add it anew with mendfs mirror add",
                candidates[*index].label
            ),
        }
    }
    for mirror in mirrors {
        let missing = mirror.name();
        match mirror.state() {
            state if state.is_current() => continue,
            MirrorState::Missing => log::error!("{missing} is missing: the pool is DEGRADED"),
            _ => log::error!("{missing} {}: the pool is DEGRADED", mirror.cause()),
        }
        if !options.degraded {
            return Err(MountError::Degraded { missing });
        }
    }
    Ok(())
}

/// Reads the journals of mirrors that went on apart to their ends, so that whoever has to choose
/// sees how much each has.
fn tell_histories(candidates: &[Candidate], error: OpenError) -> OpenError {
    let OpenError::SplitBrain {
        mut first,
        mut second,
    } = error
    else {
        return error;
    };
    for history in [&mut first, &mut second] {
        let own = candidates.iter().find(|own| own.label == history.mirror);
        if let Some(Candidate {
            label,
            backing: Some(backing),
            superblock: Ok(superblock),
        }) = own
        {
            let alone = Mirror::new(
                MirrorId(0),
                superblock.mirror,
                label.clone(),
                Some(Arc::clone(backing)),
                (MirrorState::Online, ""),
            );
            let nobody = Arc::new(Incidents::new(system_clock(), Ledger::default()));
            let alone = MirrorSet::new(vec![alone], superblock.clone(), nobody, false);
            let tag = superblock.pool.tag();
            let end = crate::journal::scan(&alone, superblock.journal, tag, &mut |_, _, _| {});
            history.lsn = history.lsn.max(Lsn(end.next.0.saturating_sub(1)));
        }
    }
    OpenError::SplitBrain { first, second }
}
