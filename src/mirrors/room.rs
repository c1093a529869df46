//! Mirrors that run out of space while others have some, and mirrors whose directory goes away.
//!
//! A pool holds what its smallest mirror can hold: when the pool itself has used that up, the
//! caller gets ENOSPC, and no mirror is at fault. It is another matter when files that are not the
//! pool's fill up the filesystem under one mirror: then the pool goes on without that one, loudly,
//! and takes it back when there is room again. The two are told apart by what the mirrors have
//! lost of their free space since they were attached: the pool takes about the same on each.

use super::set::{Attached, Mirror, MirrorId, MirrorSet, MirrorState};
use super::write::MirrorError;

/// What a mirror may have lost more than the others before that is somebody else's doing: this
/// part of what was free, and at least so many bytes.
const SQUEEZED_PART: u64 = 8;
const SQUEEZED_MIN: u64 = 8 << 20;

/// The cause told of a mirror that was filled up.
pub const FULL: &str = "files that are not the pool's fill up its filesystem";
/// The cause told of a mirror whose directory is not where it was.
pub(super) const GONE: &str = "its directory is no longer there: unmounted, moved or deleted";

impl MirrorSet {
    /// Takes out those of these full mirrors that somebody else has filled, if all of them are such
    /// and others have room; returns whether it did.
    pub(super) fn let_go_squeezed(&self, full: &[Attached]) -> Result<bool, MirrorError> {
        let is_full = |mirror: &Mirror| full.iter().any(|other| other.id == mirror.id);
        let current = self.current();
        let others = current.iter().filter(|mirror| !is_full(mirror));
        let Some(own) = others.filter_map(|mirror| mirror.consumed()).min() else {
            return Ok(false);
        };
        let squeezed = |mirror: &Attached| {
            let most = (mirror.room() / SQUEEZED_PART).max(SQUEEZED_MIN);
            mirror
                .consumed()
                .is_some_and(|consumed| consumed.saturating_sub(own) > most)
        };
        if !full.iter().all(squeezed) {
            return Ok(false);
        }
        let gone: Vec<_> = full
            .iter()
            .map(|mirror| (mirror.id, MirrorState::Offline, FULL))
            .collect();
        self.let_go(&gone)?;
        Ok(true)
    }

    /// Looks whether a mirror has too little space for `bytes` more and what is to be `kept` of a
    /// filesystem of the given size; takes out those that somebody else has filled while others
    /// have room. Returns what is free, or the mirror that has too little.
    ///
    /// # Errors
    /// [`MirrorError::NoSpace`]; [`MirrorError::AllFailed`] if no mirror can tell.
    pub fn find_room(&self, bytes: u64, kept: impl Fn(u64) -> u64) -> Result<u64, MirrorError> {
        let mut least: Option<u64> = None;
        let mut full = Vec::new();
        for mirror in self.current() {
            let Ok(space) = mirror.backing().space() else {
                continue;
            };
            match space.available.checked_sub(kept(space.total) + bytes) {
                Some(free) => least = Some(least.map_or(free, |least| least.min(free))),
                None => full.push(mirror),
            }
        }
        match (full.first(), least) {
            (None, Some(least)) => Ok(least),
            (Some(_), Some(least)) if self.let_go_squeezed(&full)? => Ok(least),
            (Some(fullest), _) => Err(MirrorError::NoSpace {
                mirror: fullest.label().to_owned(),
            }),
            (None, None) => Err(MirrorError::AllFailed {
                operation: "find room on",
                file: crate::backing::FileName::Superblock,
                cause: "no mirror is online".to_owned(),
            }),
        }
    }

    /// Takes out mirrors whose directory is no longer where it was. The last one stays: its
    /// descriptors still work, or its errors say what is wrong.
    ///
    /// # Errors
    /// [`MirrorError::AllFailed`] if no mirror took the new epoch.
    pub fn miss_directories(&self) -> Result<(), MirrorError> {
        let absent = |mirror: &Attached| !mirror.backing().is_present();
        let gone: Vec<MirrorId> = self
            .written()
            .iter()
            .filter(|mirror| absent(mirror))
            .map(|mirror| mirror.id)
            .collect();
        for id in gone {
            let stays = |mirror: &Attached| mirror.id == id;
            if !self.current().iter().all(stays) {
                self.let_go(&[(id, MirrorState::Missing, GONE)])?;
            }
        }
        Ok(())
    }
}
