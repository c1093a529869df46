//! Checking the superblocks: both slots on every mirror, while nobody writes them.
//!
//! A slot proves itself by its checksum, and must be of this pool and this mirror. A bad one is
//! rewritten with what the pool's superblock says now, whichever of the two it was: the other slot
//! stays as it is, and both are then good to mount from.

use super::decide::Damage;
use super::read::Place;
use super::repair::{RepairJob, Resolution, rewrite};
use super::set::{Attached, MirrorSet};
use crate::backing::FileName;
use crate::format::{SUPER_SLOT_LEN, Superblock};

impl MirrorSet {
    /// Checks the superblocks on the media of all online mirrors and repairs bad slots; returns how
    /// many were bad.
    pub fn verify_superblocks(&self) -> usize {
        let membership = self.membership.lock();
        let current = &membership.superblock;
        let mut bad = 0;
        for mirror in self.current() {
            let mut slots = vec![0; 2 * SUPER_SLOT_LEN];
            let got = mirror
                .backing()
                .read_medium(FileName::Superblock, 0, &mut slots);
            let expected = Superblock {
                mirror: mirror.uuid,
                ..current.clone()
            };
            for (slot, bytes) in slots.chunks(SUPER_SLOT_LEN).enumerate() {
                let damage = match &got {
                    Err(error) if error.kind() == std::io::ErrorKind::NotFound => Damage::Missing,
                    Err(_) => Damage::Unreadable,
                    Ok(got) if *got < (slot + 1) * SUPER_SLOT_LEN => Damage::Short,
                    Ok(_) if is_sound(bytes, &expected) => continue,
                    Ok(_) => Damage::Checksum,
                };
                let place = Place {
                    file: FileName::Superblock,
                    offset: (slot * SUPER_SLOT_LEN) as u64,
                };
                bad += 1;
                let data = expected.encode().to_vec();
                self.mend_slot(
                    &mirror,
                    RepairJob {
                        mirror: mirror.id,
                        place,
                        damage,
                        data,
                    },
                );
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

fn is_sound(slot: &[u8], expected: &Superblock) -> bool {
    // The second slot of a new pool has not been written yet.
    let unwritten = expected.sequence <= 1 && slot.iter().all(|byte| *byte == 0);
    unwritten
        || Superblock::decode(slot).is_ok_and(|found| {
            (found.pool, found.mirror) == (expected.pool, expected.mirror)
                && found.sequence <= expected.sequence
        })
}
