//! From directories on the command line to an open pool: what `format`, `mount`, `status` and
//! `check` share.

use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::sys::resource::{Resource, getrlimit, setrlimit};

use super::outcome::Failure;
use super::{mountinfo, source};
use crate::backing::{Backing, DirBacking, FileName, Shadow};
use crate::format::{Algorithm, FORMAT_VERSION, Superblock};
use crate::mirrors::{Candidate, OpenError, Standing, choose, read_superblock};
use crate::pool::status::{
    CheckpointStatus, JournalStatus, MirrorState, MirrorStatus, PoolState, PoolStatus,
    STATUS_SCHEMA,
};
use crate::pool::{CreateOptions, Named, OpenOptions, Outside, Pool, create, system_clock};
use crate::vfs::{Vfs, VfsOptions};

/// Default size of the journal in bytes.
const JOURNAL_SIZE: u64 = 64 << 20;
/// On a small disk the journal takes at most this part of it.
const JOURNAL_SHARE: u64 = 16;
const JOURNAL_MIN: u64 = 4 << 20;
/// How long a server may take to close its pool after the unmount, and how often it is looked at.
const CLOSING_TAKES: Duration = Duration::from_secs(30);
const LOOK_AGAIN_AFTER: Duration = Duration::from_millis(20);

/// Mirrors that come while a pool is open: opened and locked like those at the start.
pub(super) fn outside() -> Outside {
    let open = |path: &str, new: bool| -> io::Result<Arc<dyn Backing>> {
        let mirror = DirBacking::open(Path::new(path))?;
        // Nothing is left in a directory that holds no pool.
        let is_mirror = mirror.len(FileName::Superblock).is_ok();
        if (is_mirror || new) && !mirror.lock()? {
            return Err(io::Error::other("another process has it in use"));
        }
        Ok(Arc::new(mirror))
    };
    let random = || {
        let mut bytes = [0; 16];
        let filled = std::fs::File::open("/dev/urandom").and_then(|mut f| f.read_exact(&mut bytes));
        if let Err(error) = filled {
            log::error!("cannot read /dev/urandom: {error}");
        }
        bytes
    };
    Outside {
        open: Box::new(open),
        random: Box::new(random),
    }
}

/// Opens and locks the mirrors that are there. One that is not is left to the pool to judge.
pub(super) fn open_mirrors(directories: &[PathBuf]) -> Result<Vec<Named>, Failure> {
    raise_file_limit();
    directories
        .iter()
        .map(|path| {
            let label = path.display().to_string();
            match DirBacking::open(path) {
                Ok(mirror) => {
                    // Nothing is left in a directory that holds no pool.
                    if mirror.len(FileName::Superblock).is_ok() {
                        lock(&mirror)?;
                    }
                    Ok((label, Some(Arc::new(mirror) as Arc<dyn Backing>)))
                }
                Err(error) if error.kind() == io::ErrorKind::NotFound => Ok((label, None)),
                Err(error) if error.kind() == io::ErrorKind::NotADirectory => {
                    Err(Failure::Failed(format!("{label} is not a directory")))
                }
                Err(error) => Err(Failure::Failed(format!("cannot open {label}: {error}"))),
            }
        })
        .collect()
}

/// Takes the lock of a mirror. umount(8) returns before the server has closed its pool, so a lock
/// whose pool is no longer mounted is waited for.
fn lock(mirror: &DirBacking) -> Result<(), Failure> {
    let label = mirror.path().display();
    let deadline = Instant::now() + CLOSING_TAKES;
    let mut locked = mirror.lock();
    while matches!(locked, Ok(false)) && Instant::now() < deadline && !is_mounted(mirror.path()) {
        std::thread::sleep(LOOK_AGAIN_AFTER);
        locked = mirror.lock();
    }
    match locked {
        Ok(true) => Ok(()),
        Ok(false) => {
            let holder = mirror
                .lock_holder()
                .map_or_else(String::new, |pid| format!(" by process {pid}"));
            Err(Failure::Failed(format!(
                "{label} is in use{holder}: its pool is mounted or being checked; unmount it first"
            )))
        }
        Err(error) if error.kind() == io::ErrorKind::ReadOnlyFilesystem => {
            Err(Failure::Failed(format!(
                "{label} is on a read-only filesystem, where a mirror cannot be kept in sync; \
                 remount it read-write"
            )))
        }
        Err(error) => Err(Failure::Failed(format!("cannot lock {label}: {error}"))),
    }
}

/// Whether some mount has this directory among its mirrors.
fn is_mounted(directory: &Path) -> bool {
    mountinfo::all().unwrap_or_default().iter().any(|mount| {
        mount.kind.ends_with(".mendfs")
            && source::parse(&mount.source)
                .is_ok_and(|mirrors| mirrors.iter().any(|mirror| mirror == directory))
    })
}

/// Many segments may be open at once: take what the hard limit allows.
fn raise_file_limit() {
    let raised = getrlimit(Resource::RLIMIT_NOFILE)
        .and_then(|(_, hard)| setrlimit(Resource::RLIMIT_NOFILE, hard, hard));
    if let Err(errno) = raised {
        log::debug!("the limit of open files stays as it is: {errno}");
    }
}

/// Makes a pool of directories that were found fit.
pub(super) fn format_pool(
    directories: &[PathBuf],
    label: &str,
    algorithm: Algorithm,
    journal_size: Option<u64>,
) -> Result<Superblock, Failure> {
    if label.len() > Superblock::LABEL_MAX {
        return Err(Failure::Usage(format!(
            "the label has {} bytes; at most {} fit",
            label.len(),
            Superblock::LABEL_MAX
        )));
    }
    let mut backings: Vec<Arc<dyn Backing>> = Vec::new();
    for path in directories {
        let failed = |error| Failure::Failed(format!("cannot use {}: {error}", path.display()));
        let mirror = DirBacking::open(path).map_err(failed)?;
        lock(&mirror)?;
        clear(&mirror).map_err(failed)?;
        backings.push(Arc::new(mirror));
    }
    let smallest = backings
        .iter()
        .filter_map(|b| Some(b.space().ok()?.total))
        .min();
    let fitting = (smallest.unwrap_or(u64::MAX) / JOURNAL_SHARE).max(JOURNAL_MIN);
    let options = CreateOptions {
        label: label.to_owned(),
        algorithm,
        journal_size: journal_size.unwrap_or(JOURNAL_SIZE.min(fitting)),
        created: system_clock()().seconds,
        random: random(directories.len() + 2)?,
    };
    let superblock =
        create(&backings, &options).map_err(|error| Failure::Failed(error.to_string()))?;
    let named = directories
        .iter()
        .zip(backings)
        .map(|(path, backing)| (path.display().to_string(), Some(backing)))
        .collect();
    make_root(named).map_err(|error| Failure::Failed(format!("cannot make the pool: {error}")))?;
    Ok(superblock)
}

/// Removes what an earlier pool left, its superblock first: from then on it is none.
fn clear(mirror: &DirBacking) -> io::Result<()> {
    for file in [
        FileName::Superblock,
        FileName::Journal,
        FileName::Index,
        FileName::Sums,
    ] {
        mirror.remove(file)?;
    }
    for segment in mirror.segments()? {
        mirror.remove(FileName::Segment(segment))?;
    }
    Ok(())
}

/// The first mount of a pool makes its root directory: done here, so that a read-only one works.
fn make_root(named: Vec<Named>) -> Result<(), String> {
    let options = OpenOptions {
        ledger: false,
        ..OpenOptions::default()
    };
    let pool = Pool::open(named, options).map_err(|error| error.to_string())?;
    let vfs = Vfs::new(Arc::new(pool), VfsOptions::default()).map_err(|error| error.to_string())?;
    vfs.close().map_err(|error| error.to_string())
}

fn random(count: usize) -> Result<Vec<[u8; 16]>, Failure> {
    let failed = |error| Failure::System(format!("cannot read /dev/urandom: {error}"));
    let mut source = std::fs::File::open("/dev/urandom").map_err(failed)?;
    let mut read = || {
        let mut bytes = [0; 16];
        source.read_exact(&mut bytes).map(|()| bytes)
    };
    (0..count).map(|_| read().map_err(failed)).collect()
}

/// Opens a pool for checking: with `change` as it is, else over shadows that keep every write,
/// recovery's too, in memory.
pub(super) fn open_for_check(directories: &[PathBuf], change: bool) -> Result<Pool, Failure> {
    let mut named = open_mirrors(directories)?;
    if !change {
        for (_, backing) in &mut named {
            *backing = backing
                .take()
                .map(|mirror| Arc::new(Shadow::new(mirror)) as Arc<dyn Backing>);
        }
    }
    let options = OpenOptions {
        ledger: change,
        outside: change.then(|| Arc::new(outside())),
        ..OpenOptions::default()
    };
    Pool::open(named, options).map_err(|error| Failure::Failed(error.to_string()))
}

/// Whether the directory holds a superblock, of whatever kind.
pub(super) fn is_mirror(path: &Path) -> bool {
    path.join(FileName::Superblock.path()).exists()
}

/// Status of a pool from its superblocks alone.
pub(super) fn inspect(directories: &[PathBuf]) -> Result<PoolStatus, Failure> {
    let candidates: Vec<Candidate> = directories
        .iter()
        .map(|path| {
            let mirror = path.display().to_string();
            let backing = DirBacking::open(path)
                .ok()
                .map(|b| Arc::new(b) as Arc<dyn Backing>);
            let superblock = match &backing {
                Some(backing) => read_superblock(backing.as_ref()),
                None => Err(OpenError::NoPool {
                    mirror: mirror.clone(),
                }),
            };
            Candidate {
                label: mirror,
                backing,
                superblock,
            }
        })
        .collect();
    let choice = choose(&candidates, None).map_err(|error| Failure::Failed(error.to_string()))?;
    let superblock = &choice.superblock;
    let mirrors: Vec<_> = superblock
        .members
        .iter()
        .zip(&choice.standings)
        .map(|(member, standing)| mirror_status(member.uuid.to_string(), standing, &candidates))
        .collect();
    let complete = mirrors
        .iter()
        .all(|mirror| mirror.state == MirrorState::Online);
    let mut actions = Vec::new();
    if !complete {
        actions.push("Name all mirrors of the pool, and see why one is missing.".to_owned());
    }
    if !superblock.clean {
        actions.push(
            "The pool is mounted, or was not closed in order; the next mount recovers it."
                .to_owned(),
        );
    }
    Ok(PoolStatus {
        schema: STATUS_SCHEMA,
        uuid: superblock.pool.to_string(),
        label: superblock.label.clone(),
        state: if complete {
            PoolState::Healthy
        } else {
            PoolState::Degraded
        },
        checksum: superblock.algorithm.name().to_owned(),
        format_version: FORMAT_VERSION,
        actions,
        mirrors,
        journal: JournalStatus {
            size_bytes: superblock.journal.size,
            ..JournalStatus::default()
        },
        checkpoint: CheckpointStatus {
            lsn: superblock.checkpoint.lsn.0,
            ..CheckpointStatus::default()
        },
        ..PoolStatus::default()
    })
}

fn mirror_status(uuid: String, standing: &Standing, candidates: &[Candidate]) -> MirrorStatus {
    let state = match standing {
        Standing::Current(_) => MirrorState::Online,
        Standing::Stale(_) | Standing::Offline(_) | Standing::Diverged(_) => MirrorState::Offline,
        Standing::Absent => MirrorState::Missing,
    };
    let candidate = standing.candidate().and_then(|index| candidates.get(index));
    let space = candidate
        .and_then(|c| c.backing.as_ref()?.space().ok())
        .unwrap_or_default();
    MirrorStatus {
        path: candidate.map_or_else(String::new, |candidate| candidate.label.clone()),
        uuid,
        state,
        total_bytes: space.total,
        available_bytes: space.available,
        ..MirrorStatus::default()
    }
}
