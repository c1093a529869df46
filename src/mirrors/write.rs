//! Writing to all mirrors, and what happens when one of them fails.
//!
//! A mirror whose write, sync or truncation fails is taken out of the set, and the others know it
//! durably, before the call returns: nothing it missed can ever be read from it. Lack of space is
//! not a failure of the mirror but of the request, as long as the request can be made again: a sync
//! that fails, for want of space too, has lost what was written, and the journal writes each batch
//! once. If no mirror is left the call fails and the membership stays as it was, since there is
//! nobody left to record a change.

use std::io;
use std::thread;

use thiserror::Error;

use super::read::Place;
use super::set::{Attached, Counters, Mirror, MirrorId, MirrorSet, MirrorState};
use crate::backing::FileName;

/// Why a request could not be carried out on the mirrors.
#[derive(Debug, Clone, Error)]
pub enum MirrorError {
    /// A mirror has no room.
    #[error("no space left on mirror {mirror}")]
    NoSpace {
        /// Path of the mirror.
        mirror: String,
    },
    /// No mirror could do it.
    #[error("no mirror could {operation} {file}: {cause}")]
    AllFailed {
        /// What was tried.
        operation: &'static str,
        /// On which file.
        file: FileName,
        /// The last mirror's error.
        cause: String,
    },
    /// The mirror that was being brought up to date failed, and is out again.
    #[error("{mirror} cannot be brought up to date: {cause}")]
    Target {
        /// Path of the mirror.
        mirror: String,
        /// Its error.
        cause: String,
    },
}

/// Whether the error says that there is no room: of the request, not of the mirror.
pub(super) fn is_no_space(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded
    )
}

impl MirrorSet {
    /// Does `work`; if somebody deleted the file under us, makes it anew and does `work` again.
    /// What it held is damage, which the witness has looked for: the other mirrors supply it.
    fn revive(
        &self,
        mirror: &Attached,
        file: FileName,
        work: impl Fn() -> io::Result<()>,
    ) -> io::Result<()> {
        let backing = mirror.backing();
        match work() {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            // One that is being brought up to date has not been given every file yet.
            Err(_) if mirror.state() == MirrorState::Resyncing => {
                backing.create(file)?;
                work()?;
                backing.sync_name(file)
            }
            Err(_) => {
                log::error!("{}: {file} is gone; making it anew", mirror.label());
                backing.create(file)?;
                work()?;
                backing.sync_name(file)?;
                self.witness.file_gone(mirror, file);
                Ok(())
            }
            Ok(()) => Ok(()),
        }
    }

    /// Writes the buffers one after another at `offset` of `file` on every online mirror.
    ///
    /// # Errors
    /// [`MirrorError::NoSpace`] if a mirror is full; some may then hold the bytes.
    /// [`MirrorError::AllFailed`] if no mirror took them.
    pub fn write(&self, file: FileName, offset: u64, buffers: &[&[u8]]) -> Result<(), MirrorError> {
        self.on_all("write", file, |mirror| {
            self.revive(mirror, file, || {
                mirror.backing().write_at(file, offset, buffers)
            })
        })
    }

    /// Makes the file on every online mirror, if it is not there.
    ///
    /// # Errors
    /// As [`MirrorSet::write`].
    pub fn create(&self, file: FileName) -> Result<(), MirrorError> {
        self.on_all("create", file, |mirror| mirror.backing().create(file))
    }

    /// Sets the length of the file on every online mirror.
    ///
    /// # Errors
    /// As [`MirrorSet::write`].
    pub fn set_len(&self, file: FileName, len: u64) -> Result<(), MirrorError> {
        self.on_all("set the length of", file, |mirror| {
            self.revive(mirror, file, || mirror.backing().set_len(file, len))
        })
    }

    /// Reserves space in the file on every online mirror.
    ///
    /// # Errors
    /// As [`MirrorSet::write`].
    pub fn reserve(&self, file: FileName, offset: u64, len: u64) -> Result<(), MirrorError> {
        self.on_all("reserve space in", file, |mirror| {
            self.revive(mirror, file, || mirror.backing().reserve(file, offset, len))
        })
    }

    /// Makes files durable on every online mirror, and the names of those in `fresh`; the mirrors
    /// work side by side.
    ///
    /// # Errors
    /// As [`MirrorSet::write`]. An error is never retried.
    pub fn sync(&self, files: &[FileName], fresh: &[FileName]) -> Result<(), MirrorError> {
        let Some(first) = files.first().or(fresh.first()) else {
            return Ok(());
        };
        let work = |mirror: &Attached| {
            let backing = mirror.backing();
            files
                .iter()
                .try_for_each(|file| self.revive(mirror, *file, || backing.sync(*file)))?;
            fresh.iter().try_for_each(|file| backing.sync_name(*file))
        };
        let written = self.written();
        let results: Vec<io::Result<()>> = match written.split_first() {
            Some((own, others)) if self.parallel && !others.is_empty() => thread::scope(|scope| {
                let others: Vec<_> = others
                    .iter()
                    .map(|mirror| scope.spawn(move || work(mirror)))
                    .collect();
                let mut results = vec![work(own)];
                results.extend(others.into_iter().map(|thread| {
                    let panicked = || Err(io::Error::other("the sync thread panicked"));
                    thread.join().unwrap_or_else(|_| panicked())
                }));
                results
            }),
            _ => written.iter().map(work).collect(),
        };
        let results = written.into_iter().zip(results).collect();
        let outcome = self.settle("sync", *first, results, false);
        self.await_epoch();
        outcome
    }

    /// Writes bytes to one mirror that lacks them after a crash, without a sync.
    ///
    /// # Errors
    /// As [`MirrorSet::write`].
    pub fn give(&self, id: MirrorId, place: Place, bytes: &[u8]) -> Result<(), MirrorError> {
        let Some(mirror) = self.written_one(id) else {
            return Ok(());
        };
        let file = place.file;
        let result = self.revive(&mirror, file, || {
            mirror.backing().write_at(file, place.offset, &[bytes])
        });
        match result {
            Ok(()) => Ok(()),
            Err(error) => self.fail_one(&mirror, &format!("cannot write {file}: {error}")),
        }
    }

    /// Gives a range back to the filesystem on every online mirror. A failure is only logged: the
    /// space is then given back later, when the segment goes.
    pub fn punch(&self, file: FileName, offset: u64, len: u64) {
        for mirror in self.written() {
            if let Err(error) = mirror.backing().punch(file, offset, len)
                && error.kind() != io::ErrorKind::NotFound
            {
                log::warn!("{}: cannot return space of {file}: {error}", mirror.label());
            }
        }
    }

    /// Removes a file on every online mirror. A failure is only logged: what is left is removed at
    /// the next mount.
    pub fn remove(&self, file: FileName) {
        for mirror in self.written() {
            if let Err(error) = mirror.backing().remove(file) {
                log::warn!("{}: cannot remove {file}: {error}", mirror.label());
            }
        }
    }

    fn on_all(
        &self,
        operation: &'static str,
        file: FileName,
        work: impl Fn(&Attached) -> io::Result<()>,
    ) -> Result<(), MirrorError> {
        let results = self
            .written()
            .into_iter()
            .map(|mirror| {
                let result = work(&mirror);
                (mirror, result)
            })
            .collect();
        // The journal is preallocated, but a filesystem that copies on write may still be full.
        let again = file != FileName::Journal;
        self.settle(operation, file, results, again)
    }

    /// `again`: whether the request can be made again when there is space.
    fn settle(
        &self,
        operation: &'static str,
        file: FileName,
        results: Vec<(Attached, io::Result<()>)>,
        again: bool,
    ) -> Result<(), MirrorError> {
        let mut good = 0;
        let (mut failed, mut full) = (Vec::new(), Vec::new());
        let mut cause = "no mirror is online".to_owned();
        for (mirror, result) in results {
            let current = mirror.state().is_current();
            match result {
                Ok(()) => good += usize::from(current),
                Err(error) if again && current && is_no_space(&error) => full.push(mirror),
                Err(error) => {
                    Counters::count(&mirror.counters.write_errors);
                    if current {
                        cause = format!("{}: {error}", mirror.label());
                    }
                    failed.push((mirror, format!("cannot {operation} {file}: {error}")));
                }
            }
        }
        // With a full mirror beside a failed one the failed one still goes: it missed the write.
        if good + full.len() == 0 {
            return Err(MirrorError::AllFailed {
                operation,
                file,
                cause,
            });
        }
        if !failed.is_empty() {
            let failed: Vec<_> = failed
                .iter()
                .map(|(mirror, cause)| (&**mirror, cause.clone()))
                .collect();
            self.take_out(&failed)?;
        }
        match full.first() {
            Some(fullest) if good == 0 || !self.let_go_squeezed(&full)? => {
                let mirror = fullest.label().to_owned();
                Err(MirrorError::NoSpace { mirror })
            }
            _ => Ok(()),
        }
    }

    /// Takes out one mirror whose copy of something could not be written.
    ///
    /// # Errors
    /// [`MirrorError::AllFailed`] if it is the last one.
    pub fn fail_one(&self, mirror: &Mirror, cause: &str) -> Result<(), MirrorError> {
        Counters::count(&mirror.counters.write_errors);
        self.take_out(&[(mirror, cause.to_owned())])
    }
}
