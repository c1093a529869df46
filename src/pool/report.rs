//! The pool's status, as people and programs see it.

use std::sync::atomic::Ordering;

use super::commit::Pool;
use super::status::{
    CheckpointStatus, JournalStatus, MirrorState, MirrorStatus, PoolState, PoolStatus,
    STATUS_SCHEMA, ServerStatus, SpaceStatus,
};
use crate::format::FORMAT_VERSION;
use crate::mirrors;

impl Pool {
    /// Everything about the pool at this moment.
    pub fn status(&self) -> PoolStatus {
        self.digest_soon();
        let damaged = self.damaged_files();
        let all = self.mirrors.all();
        let mirrors: Vec<_> = all.iter().map(|mirror| mirror_status(mirror)).collect();
        let lost_metadata = self.incidents.current.metadata();
        let unrepaired = self.incidents.current.failed_count();
        let state = if self.failure().is_some() {
            PoolState::Failed
        } else if !damaged.is_empty() || !lost_metadata.is_empty() {
            PoolState::Damaged
        } else if self.mirrors.degraded() || unrepaired > 0 {
            PoolState::Degraded
        } else {
            PoolState::Healthy
        };
        let space = self.space().unwrap_or_default();
        PoolStatus {
            schema: STATUS_SCHEMA,
            uuid: self.uuid.to_string(),
            label: self.label().to_owned(),
            state,
            read_only: self.read_only(),
            checksum: self.algorithm().name().to_owned(),
            format_version: FORMAT_VERSION,
            actions: self.actions(&mirrors, &lost_metadata, !damaged.is_empty(), unrepaired),
            server: Some(ServerStatus {
                pid: std::process::id(),
                version: env!("CARGO_PKG_VERSION").to_owned(),
                started: self.started.seconds,
            }),
            mirrors,
            space: SpaceStatus {
                total_bytes: space.total,
                used_bytes: space.used,
                available_bytes: space.available,
                inodes: space.inodes,
            },
            journal: JournalStatus {
                size_bytes: self.journal.size(),
                used_bytes: self.journal.used(),
                next_lsn: self.lsn().0,
                durable_lsn: self.journal.synced().0 + 1,
            },
            checkpoint: CheckpointStatus {
                lsn: self.checkpointing.done(),
                finished: self.checkpointing.finished(),
                dirty_rows: self.index.overlay_size().0 as u64,
            },
            recovery: Some(self.recovery.status(self.orphans.load(Ordering::Relaxed))),
            repairs_pending: self.mirrors.repairs_pending() as u64,
            inspecting: self.inspecting(),
            resync: self.resync.lock().clone(),
            scrub: self.scrub().status(),
            unrepaired_blocks: unrepaired,
            damaged_metadata: lost_metadata,
            damaged,
        }
    }

    fn actions(
        &self,
        mirrors: &[MirrorStatus],
        lost_metadata: &[String],
        damaged_files: bool,
        unrepaired: u64,
    ) -> Vec<String> {
        let mut actions = Vec::new();
        if let Some(reason) = self.failure() {
            actions.push(format!(
                "The pool has stopped ({reason}). Unmount it, mend the cause, and mount it again."
            ));
        }
        for mirror in mirrors {
            match mirror.state {
                MirrorState::Missing => actions.push(format!(
                    "Bring mirror {} back and mount the pool again with all its directories.",
                    if mirror.path.is_empty() {
                        &mirror.uuid
                    } else {
                        &mirror.path
                    }
                )),
                MirrorState::Failed => actions.push(format!(
                    "Mirror {} failed a write: check its disk.",
                    mirror.path
                )),
                MirrorState::Offline => actions.push(format!(
                    "Mirror {} missed changes while it was away and serves nothing; the others \
                     hold everything.",
                    mirror.path
                )),
                MirrorState::Online | MirrorState::Suspect | MirrorState::Resyncing => {}
            }
        }
        if damaged_files {
            actions.push(
                "Restore the damaged files from a backup over the old ones, or delete them; \
                 mendfs salvage FILE OUT saves what can be read."
                    .to_owned(),
            );
        }
        if unrepaired > 0 {
            actions.push(format!(
                "{unrepaired} bad copies could not be rewritten; the other mirror has good ones. \
                 Check the disk whose UNREPAIRABLE number grows."
            ));
        }
        for place in lost_metadata {
            actions.push(format!(
                "Metadata is damaged on every mirror: {place}. Copy out what can \
                                  be read, and make the pool anew."
            ));
        }
        actions
    }
}

fn mirror_status(mirror: &mirrors::Mirror) -> MirrorStatus {
    let counters = &mirror.counters;
    let space = mirror
        .backing()
        .and_then(|backing| backing.space().ok())
        .unwrap_or_default();
    MirrorStatus {
        path: mirror.label().to_owned(),
        uuid: mirror.uuid.to_string(),
        state: match mirror.state() {
            mirrors::MirrorState::Online => MirrorState::Online,
            mirrors::MirrorState::Suspect => MirrorState::Suspect,
            mirrors::MirrorState::Offline => MirrorState::Offline,
            mirrors::MirrorState::Resyncing => MirrorState::Resyncing,
            mirrors::MirrorState::Missing => MirrorState::Missing,
            mirrors::MirrorState::Failed => MirrorState::Failed,
        },
        cause: mirror.cause(),
        read_errors: counters.read_errors.load(Ordering::Relaxed),
        write_errors: counters.write_errors.load(Ordering::Relaxed),
        checksum_errors: counters.checksum_errors.load(Ordering::Relaxed),
        repaired: counters.repaired.load(Ordering::Relaxed),
        unrepairable: counters.unrepaired.load(Ordering::Relaxed),
        total_bytes: space.total,
        available_bytes: space.available,
    }
}
