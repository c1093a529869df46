//! Making a pool in empty directories.

use std::io;
use std::sync::Arc;

use thiserror::Error;

use crate::backing::{Backing, FileName};
use crate::format::{
    Algorithm, BLOCK_U64, CheckpointRef, Epoch, JournalRef, Lsn, Member, MemberState,
    SUPER_SLOT_LEN, Superblock, Uuid,
};
use crate::mirrors::membership::write_slot;

/// Bytes of zeros written at a time.
const ZEROS: usize = 1 << 20;

const README: &str = "\
This directory is one mirror of a mendfs pool: a filesystem that keeps every file in two or more\n\
such directories, with checksums. Do not change, move or delete anything in it by hand. To see\n\
the files, mount the pool:\n\
\n\
    mount -t mendfs DIR1:DIR2 /mnt\n\
\n\
Any one mirror holds everything. See mendfs(8).\n";

/// How to make a pool.
#[derive(Debug, Clone)]
pub struct CreateOptions {
    /// Name for the pool, up to [`Superblock::LABEL_MAX`] bytes.
    pub label: String,
    /// Checksums of data and metadata.
    pub algorithm: Algorithm,
    /// Size of the journal in bytes; rounded up to whole blocks.
    pub journal_size: u64,
    /// Seconds since 1970-01-01 UTC.
    pub created: i64,
    /// 16 random bytes for the pool, for its hash key, and for each mirror.
    pub random: Vec<[u8; 16]>,
}

/// Why a pool could not be made.
#[derive(Debug, Error)]
#[error("cannot make the pool in {mirror}: {cause}")]
pub struct CreateError {
    /// The directory.
    pub mirror: String,
    /// Why.
    pub cause: io::Error,
}

/// Makes a pool of the mirrors, which hold nothing. The superblocks come last: until then none of
/// the directories is a mirror.
///
/// # Errors
/// [`CreateError`]; what was made so far is left for the caller to remove.
pub fn create(
    mirrors: &[Arc<dyn Backing>],
    options: &CreateOptions,
) -> Result<Superblock, CreateError> {
    assert!(
        options.random.len() >= mirrors.len() + 2,
        "random bytes for every mirror"
    );
    let uuid = |number: usize| Uuid::from_random(options.random[number]);
    let members = (0..mirrors.len())
        .map(|number| Member {
            uuid: uuid(number + 2),
            state: MemberState::Online,
            epoch: Epoch(1),
            lsn: Lsn(0),
            replaces: None,
        })
        .collect();
    let superblock = Superblock {
        compat: 0,
        ro_compat: 0,
        incompat: 0,
        pool: uuid(0),
        mirror: uuid(2),
        algorithm: options.algorithm,
        sequence: 1,
        epoch: Epoch(1),
        members,
        checkpoint: CheckpointRef::default(),
        journal: JournalRef {
            size: options.journal_size.next_multiple_of(BLOCK_U64),
            tail: 0,
            tail_lsn: Lsn(1),
            run: 0,
            tail_run: 0,
        },
        clean: true,
        hash_key: options.random[1],
        created: options.created,
        label: options.label.clone(),
        written: options.created,
    };
    let on_each = |work: &dyn Fn(usize, &dyn Backing) -> io::Result<()>| {
        mirrors.iter().enumerate().try_for_each(|(number, mirror)| {
            work(number, mirror.as_ref()).map_err(|cause| CreateError {
                mirror: mirror.label(),
                cause,
            })
        })
    };
    on_each(&|_, mirror| lay_out(mirror, superblock.journal.size))?;
    on_each(&|number, mirror| {
        let superblock = Superblock {
            mirror: uuid(number + 2),
            ..superblock.clone()
        };
        mirror.create(FileName::Superblock)?;
        mirror.write_at(FileName::Superblock, 0, &[&[0; 2 * SUPER_SLOT_LEN]])?;
        write_slot(mirror, &superblock)?;
        mirror.sync_name(FileName::Superblock)
    })?;
    Ok(superblock)
}

const LAYOUT: [FileName; 4] = [
    FileName::Readme,
    FileName::Journal,
    FileName::Index,
    FileName::Sums,
];

/// Makes the files of a mirror that are not there, and the text for people.
pub(super) fn lay_out_empty(mirror: &dyn Backing) -> io::Result<()> {
    LAYOUT
        .into_iter()
        .try_for_each(|file| mirror.create(file))?;
    mirror.write_at(FileName::Readme, 0, &[README.as_bytes()])?;
    mirror.sync(FileName::Readme)?;
    LAYOUT
        .into_iter()
        .try_for_each(|file| mirror.sync_name(file))
}

fn lay_out(mirror: &dyn Backing, journal_size: u64) -> io::Result<()> {
    lay_out_empty(mirror)?;
    // Written and not only reserved, so that a sync of the journal has no metadata to commit below.
    let zeros = vec![0; ZEROS];
    let mut at = 0;
    while at < journal_size {
        let len = (journal_size - at).min(ZEROS as u64);
        mirror.write_at(FileName::Journal, at, &[&zeros[..len as usize]])?;
        at += len;
    }
    LAYOUT.into_iter().try_for_each(|file| mirror.sync(file))
}
