//! Checking the superblocks: both slots on every mirror, while nobody writes them.
//!
//! A slot proves itself by its checksum, and must be of this pool and this mirror. A bad one is
//! rewritten with what the pool's superblock says now, whichever of the two it was: the other slot
//! stays as it is, and both are then good to mount from.

use std::io::ErrorKind;

use super::decide::Damage;
use super::read::Place;
use super::repair::{RepairJob, Resolution, rewrite};
use super::set::{Attached, MirrorSet};
use crate::backing::FileName;
use crate::format::{SUPER_SLOT_LEN, Superblock};

/// What is wrong with the slots of a mirror: by number.
type BadSlots = Vec<(usize, Damage)>;

impl MirrorSet {
    /// Checks the superblocks on the media of all current mirrors and repairs bad slots; returns
    /// how many were bad.
    pub fn verify_superblocks(&self) -> usize {
        // A first look without the lock, which others must not wait for while a disk is read.
        let current = self.superblock();
        let sound = |mirror: &Attached| bad_slots(mirror, &current).is_empty();
        if self.current().iter().all(sound) {
            return 0;
        }
        let membership = self.membership.lock();
        let mut bad = 0;
        for mirror in self.current() {
            let data = of_mirror(&mirror, &membership.superblock).encode().to_vec();
            for (slot, damage) in bad_slots(&mirror, &membership.superblock) {
                let place = Place {
                    file: FileName::Superblock,
                    offset: (slot * SUPER_SLOT_LEN) as u64,
                };
                let job = RepairJob {
                    mirror: mirror.id,
                    place,
                    damage,
                    data: data.clone(),
                };
                bad += 1;
                self.mend_slot(&mirror, job);
            }
        }
        bad
    }

    /// As any repair, but not through [`MirrorSet::read_copy`]: that may want to take out a mirror
    /// that fails to read, and so the lock that is held here.
    fn mend_slot(&self, mirror: &Attached, job: RepairJob) {
        self.count_damage(&job);
        let jobs = [job];
        let [job] = &jobs;
        let mut back = vec![0; job.data.len()];
        let backing = mirror.backing();
        let rewritten = rewrite(backing, job.place.file, &jobs)
            .and_then(|()| backing.read_medium(job.place.file, job.place.offset, &mut back));
        let resolution = match rewritten {
            Ok(_) if back == job.data => Resolution::Repaired,
            Ok(_) => Resolution::Failed("the medium does not hold what was written".to_owned()),
            Err(error) => Resolution::Failed(error.to_string()),
        };
        self.report(mirror.id, &jobs, &resolution);
    }
}

/// The pool's superblock as that mirror has it.
fn of_mirror(mirror: &Attached, current: &Superblock) -> Superblock {
    Superblock {
        mirror: mirror.uuid,
        ..current.clone()
    }
}

fn bad_slots(mirror: &Attached, current: &Superblock) -> BadSlots {
    let expected = of_mirror(mirror, current);
    let mut slots = vec![0; 2 * SUPER_SLOT_LEN];
    let got = mirror
        .backing()
        .read_medium(FileName::Superblock, 0, &mut slots);
    let slots = slots.chunks(SUPER_SLOT_LEN).enumerate();
    slots
        .filter_map(|(slot, bytes)| match &got {
            Err(error) if error.kind() == ErrorKind::NotFound => Some((slot, Damage::Missing)),
            Err(_) => Some((slot, Damage::Unreadable)),
            Ok(got) if *got < (slot + 1) * SUPER_SLOT_LEN => Some((slot, Damage::Short)),
            Ok(_) if is_sound(bytes, &expected) => None,
            Ok(_) => Some((slot, Damage::Checksum)),
        })
        .collect()
}

fn is_sound(slot: &[u8], expected: &Superblock) -> bool {
    // The second slot of a new pool has not been written yet.
    let unwritten = expected.sequence <= 1 && slot.iter().all(|byte| *byte == 0);
    unwritten
        || Superblock::decode(slot).is_ok_and(|found| {
            (found.pool, found.mirror) == (expected.pool, expected.mirror)
                && found.sequence <= expected.sequence
        })
}
