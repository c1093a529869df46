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
use super::set::{Counters, Mirror, MirrorId, MirrorSet};
use crate::backing::{Backing, FileName};

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
}

fn is_no_space(error: &io::Error) -> bool {
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
        mirror: &Mirror,
        backing: &dyn Backing,
        file: FileName,
        work: impl Fn() -> io::Result<()>,
    ) -> io::Result<()> {
        match work() {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                log::error!("{}: {file} is gone; making it anew", mirror.label());
                backing.create(file)?;
                work()?;
                backing.sync_name(file)?;
                self.witness.file_gone(mirror, file);
                Ok(())
            }
            other => other,
        }
    }

    /// Writes the buffers one after another at `offset` of `file` on every online mirror.
    ///
    /// # Errors
    /// [`MirrorError::NoSpace`] if a mirror is full; some may then hold the bytes.
    /// [`MirrorError::AllFailed`] if no mirror took them.
    pub fn write(&self, file: FileName, offset: u64, buffers: &[&[u8]]) -> Result<(), MirrorError> {
        self.on_all("write", file, |mirror, backing| {
            self.revive(mirror, backing, file, || {
                backing.write_at(file, offset, buffers)
            })
        })
    }

    /// Makes the file on every online mirror, if it is not there.
    ///
    /// # Errors
    /// As [`MirrorSet::write`].
    pub fn create(&self, file: FileName) -> Result<(), MirrorError> {
        self.on_all("create", file, |_, backing| backing.create(file))
    }

    /// Sets the length of the file on every online mirror.
    ///
    /// # Errors
    /// As [`MirrorSet::write`].
    pub fn set_len(&self, file: FileName, len: u64) -> Result<(), MirrorError> {
        self.on_all("set the length of", file, |mirror, backing| {
            self.revive(mirror, backing, file, || backing.set_len(file, len))
        })
    }

    /// Reserves space in the file on every online mirror.
    ///
    /// # Errors
    /// As [`MirrorSet::write`].
    pub fn reserve(&self, file: FileName, offset: u64, len: u64) -> Result<(), MirrorError> {
        self.on_all("reserve space in", file, |mirror, backing| {
            self.revive(mirror, backing, file, || backing.reserve(file, offset, len))
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
        let work = |mirror: &Mirror, backing: &dyn Backing| {
            files
                .iter()
                .try_for_each(|file| self.revive(mirror, backing, *file, || backing.sync(*file)))?;
            fresh.iter().try_for_each(|file| backing.sync_name(*file))
        };
        let online: Vec<_> = self.online().collect();
        let results: Vec<(&Mirror, io::Result<()>)> = if self.parallel && online.len() > 1 {
            thread::scope(|scope| {
                let (own, others) = online.split_at(1);
                let others: Vec<_> = others
                    .iter()
                    .map(|(mirror, backing)| (*mirror, scope.spawn(move || work(mirror, *backing))))
                    .collect();
                let mut results: Vec<_> = own
                    .iter()
                    .map(|(mirror, backing)| (*mirror, work(mirror, *backing)))
                    .collect();
                results.extend(others.into_iter().map(|(mirror, thread)| {
                    let panicked = || Err(io::Error::other("the sync thread panicked"));
                    (mirror, thread.join().unwrap_or_else(|_| panicked()))
                }));
                results
            })
        } else {
            online
                .iter()
                .map(|(mirror, backing)| (*mirror, work(mirror, *backing)))
                .collect()
        };
        let outcome = self.settle("sync", *first, results, false);
        self.await_epoch();
        outcome
    }

    /// Writes bytes to one mirror that lacks them after a crash, without a sync.
    ///
    /// # Errors
    /// As [`MirrorSet::write`].
    pub fn give(&self, id: MirrorId, place: Place, bytes: &[u8]) -> Result<(), MirrorError> {
        let mirror = self.mirror(id);
        let Some(backing) = mirror.online() else {
            return Ok(());
        };
        let file = place.file;
        let result = self.revive(mirror, backing, file, || {
            backing.write_at(file, place.offset, &[bytes])
        });
        if let Err(error) = result {
            Counters::count(&mirror.counters.write_errors);
            self.take_out(&[(mirror, format!("cannot write {file}: {error}"))])?;
        }
        Ok(())
    }

    /// Gives a range back to the filesystem on every online mirror. A failure is only logged: the
    /// space is then given back later, when the segment goes.
    pub fn punch(&self, file: FileName, offset: u64, len: u64) {
        for (mirror, backing) in self.online() {
            if let Err(error) = backing.punch(file, offset, len)
                && error.kind() != io::ErrorKind::NotFound
            {
                log::warn!("{}: cannot return space of {file}: {error}", mirror.label());
            }
        }
    }

    /// Removes a file on every online mirror. A failure is only logged: what is left is removed at
    /// the next mount.
    pub fn remove(&self, file: FileName) {
        for (mirror, backing) in self.online() {
            if let Err(error) = backing.remove(file) {
                log::warn!("{}: cannot remove {file}: {error}", mirror.label());
            }
        }
    }

    fn on_all(
        &self,
        operation: &'static str,
        file: FileName,
        work: impl Fn(&Mirror, &dyn Backing) -> io::Result<()>,
    ) -> Result<(), MirrorError> {
        let results = self
            .online()
            .map(|(mirror, backing)| (mirror, work(mirror, backing)))
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
        results: Vec<(&Mirror, io::Result<()>)>,
        again: bool,
    ) -> Result<(), MirrorError> {
        let good = results.iter().filter(|(_, result)| result.is_ok()).count();
        let mut failed = Vec::new();
        let mut full = None;
        let mut cause = "no mirror is online".to_owned();
        for (mirror, result) in results {
            let Err(error) = result else { continue };
            if again && is_no_space(&error) {
                full = Some(MirrorError::NoSpace {
                    mirror: mirror.label().to_owned(),
                });
            } else {
                Counters::count(&mirror.counters.write_errors);
                cause = format!("{}: {error}", mirror.label());
                failed.push((mirror, format!("cannot {operation} {file}: {error}")));
            }
        }
        // With a full mirror beside a failed one the failed one still goes: it missed the write.
        if !failed.is_empty() && good + usize::from(full.is_some()) > 0 {
            self.take_out(&failed)?;
        } else if good == 0 && full.is_none() {
            return Err(MirrorError::AllFailed {
                operation,
                file,
                cause,
            });
        }
        full.map_or(Ok(()), Err)
    }
}
