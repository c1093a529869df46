//! Writing to the one mirror that is being brought up to date.
//!
//! What it holds is compared first, so that only what differs is written; what was written is read
//! back from the medium later, by whoever drives this. None of it counts as damage: the mirror is
//! known to be behind.

use std::io;

use super::set::{Attached, MirrorId, MirrorSet, MirrorState};
use super::write::{MirrorError, is_no_space};
use crate::backing::FileName;

/// Bytes compared at a time.
const STEP: u64 = 1 << 20;
/// Unit of what is copied: the part of a step that differs.
const UNIT: usize = 4096;

/// What a piece of copying came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Copied {
    /// Bytes compared.
    pub compared: u64,
    /// Bytes written, since they differed.
    pub moved: u64,
}

impl Copied {
    /// Adds the figures of another piece.
    pub fn add(&mut self, other: Copied) {
        self.compared += other.compared;
        self.moved += other.moved;
    }
}

/// The mirror that is being brought up to date, as long as it is.
#[derive(Debug, Clone)]
pub struct Target {
    mirror: Attached,
}

impl Target {
    /// The mirror.
    pub const fn mirror(&self) -> &Attached {
        &self.mirror
    }

    /// What it holds there; what it cannot supply is missing at the end.
    pub fn held(&self, file: FileName, offset: u64, len: usize) -> Vec<u8> {
        let mut held = vec![0; len];
        let got = self.mirror.backing().read_at(file, offset, &mut held);
        held.truncate(got.unwrap_or(0));
        held
    }

    /// Writes bytes there; makes the file if it is not there.
    ///
    /// # Errors
    /// As pwrite(2) and open(2).
    pub fn put(&self, file: FileName, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let backing = self.mirror.backing();
        match backing.write_at(file, offset, &[bytes]) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                backing.create(file)?;
                backing.write_at(file, offset, &[bytes])
            }
            other => other,
        }
    }

    /// Makes what was written to a file durable, with its name, and has it read from the medium
    /// next.
    ///
    /// # Errors
    /// As fdatasync(2) and fsync(2).
    pub fn seal(&self, file: FileName) -> io::Result<()> {
        let backing = self.mirror.backing();
        match backing.sync(file) {
            // Removed meanwhile, since nothing in it is live any more.
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            other => other?,
        }
        backing.sync_name(file)?;
        match backing.forget_cached(file) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            other => other,
        }
    }

    /// Makes a range what `source` says, writing only what differs.
    ///
    /// # Errors
    /// As [`Target::put`].
    pub fn match_bytes(&self, file: FileName, offset: u64, source: &[u8]) -> io::Result<Copied> {
        let held = self.held(file, offset, source.len());
        let mut copied = Copied {
            compared: source.len() as u64,
            moved: 0,
        };
        // What lies behind the end has no room yet, and is written also where it is zeros.
        let same = |range: std::ops::Range<usize>| match held.get(range.clone()) {
            Some(held) => *held == source[range],
            None => false,
        };
        let mut at = 0;
        while at < source.len() {
            let mut end = (at + UNIT).min(source.len());
            if same(at..end) {
                at = end;
                continue;
            }
            while end < source.len() && !same(end..(end + UNIT).min(source.len())) {
                end = (end + UNIT).min(source.len());
            }
            self.put(file, offset + at as u64, &source[at..end])?;
            copied.moved += (end - at) as u64;
            at = end;
        }
        Ok(copied)
    }
}

impl MirrorSet {
    /// The mirror with that number, if it is being brought up to date.
    pub fn target(&self, id: MirrorId) -> Option<Target> {
        let mirror = self.written_one(id)?;
        (mirror.state() == MirrorState::Resyncing).then_some(Target { mirror })
    }

    /// Passes on the result of writing to the target; one that failed is out.
    ///
    /// # Errors
    /// [`MirrorError::Target`] with the cause, so that whoever drives this stops.
    pub fn target_result<T>(
        &self,
        target: &Target,
        result: io::Result<T>,
    ) -> Result<T, MirrorError> {
        result.map_err(|error| {
            let cause = format!("cannot bring it up to date: {error}");
            let state = if is_no_space(&error) {
                MirrorState::Offline
            } else {
                MirrorState::Failed
            };
            if let Err(error) = self.let_go(&[(target.mirror.id, state, &cause)]) {
                log::error!("{error}");
            }
            MirrorError::Target {
                mirror: target.mirror.label().to_owned(),
                cause: error.to_string(),
            }
        })
    }

    /// Reads bytes that nobody can verify from the first current mirror that can read them; zeros
    /// where it has none.
    pub fn read_raw(&self, file: FileName, offset: u64, out: &mut [u8]) {
        for mirror in self.current() {
            let backing = mirror.backing();
            let Ok(len) = backing.len(file) else {
                continue;
            };
            let there = len.saturating_sub(offset).min(out.len() as u64) as usize;
            if backing
                .read_at(file, offset, out)
                .is_ok_and(|got| got >= there)
            {
                out[there..].fill(0);
                return;
            }
        }
        out.fill(0);
    }

    /// Length of a file on the current mirror that has most of it.
    pub fn longest(&self, file: FileName) -> u64 {
        let current = self.current();
        let lengths = current
            .iter()
            .filter_map(|mirror| mirror.backing().len(file).ok());
        lengths.max().unwrap_or(0)
    }

    /// Gives a file on the target the length that it has on a current mirror, if that one has it.
    ///
    /// # Errors
    /// As open(2) and ftruncate(2) on the target.
    pub fn match_len(&self, target: &Target, file: FileName) -> io::Result<()> {
        let Some(source) = self.current().into_iter().next() else {
            return Ok(());
        };
        let backing = target.mirror.backing();
        let Ok(wanted) = source.backing().len(file) else {
            return Ok(());
        };
        match backing.len(file) {
            Ok(len) if len == wanted => Ok(()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                backing.create(file)?;
                backing.set_len(file, wanted)
            }
            Ok(_) => backing.set_len(file, wanted),
            Err(_) => Ok(()),
        }
    }

    /// Makes a range that means nothing the same on the target as on a current mirror: holes where
    /// that one has zeros.
    ///
    /// # Errors
    /// As pwrite(2) and fallocate(2) on the target.
    pub fn match_gap(
        &self,
        target: &Target,
        file: FileName,
        offset: u64,
        len: u64,
    ) -> io::Result<Copied> {
        let mut total = Copied::default();
        let backing = target.mirror.backing();
        let mut at = offset;
        while at < offset + len {
            let step = (offset + len - at).min(STEP) as usize;
            let mut bytes = vec![0; step];
            self.read_raw(file, at, &mut bytes);
            let mut held = target.held(file, at, step);
            // A hole and the room behind the end are zeros to whoever compares.
            held.resize(step, 0);
            if held != bytes {
                total.moved += step as u64;
                if bytes.iter().all(|byte| *byte == 0) {
                    // What is not zeros was read from the file, so it is there.
                    backing.punch(file, at, step as u64)?;
                    // A filesystem that cannot make holes, or only whole ones, still has the bytes.
                    held = target.held(file, at, step);
                    held.resize(step, 0);
                }
                if held != bytes {
                    target.put(file, at, &bytes)?;
                }
            }
            total.compared += step as u64;
            at += step as u64;
        }
        Ok(total)
    }
}
