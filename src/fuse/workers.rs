//! Where a request is worked on: on the event loop that took it, or on a thread beside them.
//!
//! Nothing that waits for a sync runs on an event loop, and at least one loop is never in a change:
//! what only reads is answered whatever the changes wait for.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::blocking::Blocking;
use super::reply::Context;
use crate::vfs::Vfs;

/// Threads that may wait for a sync at the same time.
const SYNC_THREADS: usize = 32;
/// Threads that may wait for the ledger at the same time.
const REPORT_THREADS: usize = 2;

/// The event loops' account of themselves, and the threads beside them. Once it is dropped nothing
/// is under way on these.
pub(super) struct Workers {
    vfs: Arc<Vfs>,
    /// Runs what waits for a sync.
    syncs: Blocking,
    /// Runs the changes for which no event loop can be spared.
    changes: Blocking,
    /// Makes reports that wait for a disk.
    reports: Blocking,
    /// Changes that event loops are in, and how many of these may be.
    changing: AtomicUsize,
    inline_changes: usize,
}

impl Workers {
    /// For so many event loops, and so many changes at a time beside them.
    pub(super) fn new(vfs: Arc<Vfs>, event_loops: usize, change_threads: usize) -> Workers {
        Workers {
            vfs,
            syncs: Blocking::new(SYNC_THREADS),
            changes: Blocking::new(change_threads),
            reports: Blocking::new(REPORT_THREADS),
            changing: AtomicUsize::new(0),
            inline_changes: event_loops.saturating_sub(1),
        }
    }

    /// Runs a change here if an event loop can be spared: a change may wait for every mirror, for
    /// room in the journal, or for its own durability, however long that takes.
    pub(super) fn change(
        &self,
        context: Context,
        names: bool,
        work: impl FnOnce(&Vfs) + Send + 'static,
    ) {
        if let Some(_place) = self.place_for_change(names) {
            let _guard = context.guard(&self.vfs);
            work(&self.vfs);
        } else {
            self.change_elsewhere(context, work);
        }
    }

    /// A change's place on this event loop, if it can be spared.
    pub(super) fn place_for_change(&self, names: bool) -> Option<Place<'_>> {
        let before = self.changing.fetch_add(1, Ordering::AcqRel);
        let place = Place(&self.changing);
        (before < self.inline_changes && !self.vfs.waits_for_syncs(names)).then_some(place)
    }

    /// Runs a change beside the event loops.
    pub(super) fn change_elsewhere(
        &self,
        context: Context,
        work: impl FnOnce(&Vfs) + Send + 'static,
    ) {
        self.run(&self.changes, context, work);
    }

    /// Runs what waits for a sync, or takes long.
    pub(super) fn wait(&self, context: Context, work: impl FnOnce(&Vfs) + Send + 'static) {
        self.run(&self.syncs, context, work);
    }

    /// Runs what waits for the disk of a report.
    pub(super) fn report(&self, context: Context, work: impl FnOnce(&Vfs) + Send + 'static) {
        self.run(&self.reports, context, work);
    }

    fn run(&self, on: &Blocking, context: Context, work: impl FnOnce(&Vfs) + Send + 'static) {
        let vfs = Arc::clone(&self.vfs);
        on.run(move || {
            let _guard = context.guard(&vfs);
            work(&vfs);
        });
    }
}

/// Counts an event loop that is in a change.
pub(super) struct Place<'a>(&'a AtomicUsize);

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}
