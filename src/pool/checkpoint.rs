//! Checkpoints: what the overlay holds goes into the index, and the journal's tail moves on.
//!
//! See `index` for the steps. Each step can be tried again: on a full disk a checkpoint stops where
//! it is, operations that need space are refused, and it goes on when there is room again. Nothing
//! that was freed is given back before the checkpoint that freed it is done, since until then a
//! crash brings back rows that point there.

use std::time::{Duration, Instant};

use parking_lot::Condvar;
use tracing_mutex::parkinglot::Mutex;

use super::commit::{Intent, Pool};
use super::error::{PoolError, Result};
use crate::format::{CheckpointRef, Ino, Key, Lsn, Record, StateRow};

/// Overlay rows and bytes at which a checkpoint is due.
const ROWS_DUE: usize = 24 << 10;
const BYTES_DUE: usize = 12 << 20;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    Frozen,
    Prepared,
    Written,
    Done,
    Published,
}

/// A checkpoint under way.
#[derive(Debug)]
struct Running {
    step: Step,
    generation: u64,
    /// Journal position and LSN that the tail moves to.
    tail: (u64, Lsn),
    extra: std::collections::BTreeMap<Key, Option<Vec<u8>>>,
    reference: CheckpointRef,
}

#[derive(Debug)]
struct State {
    generation: u64,
    running: Option<Running>,
}

/// What checkpoints need to know of one another.
#[derive(Debug)]
pub(super) struct Checkpointing {
    state: Mutex<State>,
    signal: parking_lot::Mutex<Signal>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct Signal {
    /// Counts finished attempts.
    attempts: u64,
    /// The last attempt found a mirror full: its path.
    blocked: Option<String>,
    /// The reserve for the next checkpoint could not be had on a mirror.
    low: bool,
    /// Whether a thread makes checkpoints when they are wanted.
    served: bool,
    wanted: bool,
    finished: i64,
    /// LSN of the last one that is done.
    lsn: u64,
}

impl Checkpointing {
    pub(super) fn new(done: CheckpointRef) -> Checkpointing {
        Checkpointing {
            state: Mutex::new(State {
                generation: done.generation,
                running: None,
            }),
            signal: parking_lot::Mutex::new(Signal {
                lsn: done.lsn.0,
                ..Signal::default()
            }),
            changed: Condvar::new(),
        }
    }

    /// Keeps checkpoints from beginning, until what is returned is dropped; none if one has begun
    /// and waits for space.
    pub(super) fn between(&self) -> Option<impl Drop + use<'_>> {
        let state = self.state.lock();
        state.running.is_none().then_some(state)
    }

    /// Wakes whoever waits for a checkpoint.
    pub(super) fn wake(&self) {
        let _signal = self.signal.lock();
        self.changed.notify_all();
    }

    /// When the last one ended, in seconds since 1970; none if none has since the mount.
    pub(super) fn finished(&self) -> Option<i64> {
        let finished = self.signal.lock().finished;
        (finished != 0).then_some(finished)
    }

    /// LSN of the last one that is done. Unlike the superblock this can be asked for while a mirror
    /// is being written.
    pub(super) fn done(&self) -> u64 {
        self.signal.lock().lsn
    }

    /// Why space is refused although the mirrors may have some.
    pub(super) fn low(&self) -> bool {
        self.signal.lock().low
    }
}

impl Pool {
    /// Whether a checkpoint is due: by rows, bytes or journal.
    pub fn checkpoint_due(&self) -> bool {
        let (rows, bytes) = self.index.overlay_size();
        rows > self.rows_due() || bytes > BYTES_DUE || self.journal.used() > self.journal.size() / 4
    }

    /// Whether a checkpoint would do anything: end one that a full disk has stopped, put changed
    /// rows into the index, or try for the reserve that could not be had, without which space is
    /// refused.
    pub fn checkpoint_useful(&self) -> bool {
        self.checkpoint_needed() || self.checkpointing.low()
    }

    fn checkpoint_needed(&self) -> bool {
        self.index.overlay_size().0 > 0 || self.checkpointing.state.lock().running.is_some()
    }

    /// A checkpoint's own records must fit into the part of the journal kept for them: at 24 bytes
    /// a page, and each row dirtying a page of its own at worst.
    fn rows_due(&self) -> usize {
        ROWS_DUE.min((self.journal.size() / 512) as usize)
    }

    /// Whether operations must wait for a checkpoint.
    fn overfull(&self) -> bool {
        let (rows, bytes) = self.index.overlay_size();
        self.journal.used() > self.journal.size() / 2
            || rows > 2 * self.rows_due()
            || bytes > 2 * BYTES_DUE
    }

    /// Waits until the journal and the overlay have room for an operation.
    pub(super) fn make_room(&self, intent: Intent) -> Result<()> {
        while self.overfull() {
            let mut signal = self.checkpointing.signal.lock();
            if !signal.served {
                drop(signal);
                match self.checkpoint() {
                    Err(PoolError::NoSpace { mirror }) => return self.on_full_disk(intent, mirror),
                    other => other?,
                }
                continue;
            }
            if let Some(mirror) = signal.blocked.clone() {
                return self.on_full_disk(intent, mirror);
            }
            let before = signal.attempts;
            signal.wanted = true;
            self.checkpointing.changed.notify_all();
            // Under the lock of the signal, which whoever stops the pool or the thread takes too.
            while signal.attempts == before && signal.served {
                self.usable()?;
                self.checkpointing.changed.wait(&mut signal);
            }
        }
        if self.checkpoint_due() {
            let mut signal = self.checkpointing.signal.lock();
            if signal.served {
                if !signal.wanted {
                    signal.wanted = true;
                    self.checkpointing.changed.notify_all();
                }
            } else {
                drop(signal);
                self.checkpoint_if_room()?;
            }
        }
        Ok(())
    }

    /// No checkpoint can be made: what gives space back may use more of the journal.
    fn on_full_disk(&self, intent: Intent, mirror: String) -> Result<()> {
        match intent {
            Intent::Shrink if self.journal.used() < self.journal.size() / 4 * 3 => Ok(()),
            Intent::Shrink | Intent::Store | Intent::Grow => Err(PoolError::NoSpace { mirror }),
        }
    }

    /// As [`Pool::checkpoint`], but a full disk is no error: it shows where space is needed.
    fn checkpoint_if_room(&self) -> Result<()> {
        match self.checkpoint() {
            Err(PoolError::NoSpace { .. }) => Ok(()),
            other => other,
        }
    }

    /// Tells the pool that a thread waits in [`Pool::wait_for_checkpoint`] from now on, or no more.
    pub fn serve_checkpoints(&self, served: bool) {
        self.checkpointing.signal.lock().served = served;
        self.checkpointing.wake();
    }

    /// Waits until a checkpoint is wanted, at most for `timeout`; returns whether one is.
    pub fn wait_for_checkpoint(&self, timeout: Duration) -> bool {
        let mut signal = self.checkpointing.signal.lock();
        if !signal.wanted {
            self.checkpointing.changed.wait_for(&mut signal, timeout);
        }
        std::mem::take(&mut signal.wanted)
    }

    /// Waits until a checkpoint has ended that has frozen what is committed by now. False if there
    /// is no thread that makes them, or after `patience`.
    pub(super) fn wait_for_next_checkpoint(&self, patience: Duration) -> Result<bool> {
        let deadline = Instant::now() + patience;
        let mut signal = self.checkpointing.signal.lock();
        // One that is under way may have frozen less.
        let ended = signal.attempts + 2;
        while signal.attempts < ended {
            self.usable()?;
            if !signal.served || signal.blocked.is_some() {
                return Ok(false);
            }
            signal.wanted = true;
            self.checkpointing.changed.notify_all();
            let changed = &self.checkpointing.changed;
            if changed.wait_until(&mut signal, deadline).timed_out() {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Makes a checkpoint, or goes on with one that found the disk full. Operations go on
    /// meanwhile.
    ///
    /// # Errors
    /// [`PoolError::NoSpace`] if a mirror is full: it goes on there when called again.
    /// [`PoolError::Failed`] if no mirror is left or the index could not be written.
    pub fn checkpoint(&self) -> Result<()> {
        let mut state = self.checkpointing.state.lock();
        let outcome = self.usable().and_then(|()| {
            let timed = &self.timed.checkpoints;
            timed.time(|| self.drive(&mut state))
        });
        let mut signal = self.checkpointing.signal.lock();
        signal.attempts += 1;
        signal.blocked = match &outcome {
            Err(PoolError::NoSpace { mirror }) => Some(mirror.clone()),
            Ok(_) | Err(_) => None,
        };
        if let Ok(reserved) = outcome {
            signal.low = !reserved;
            signal.finished = self.now().seconds;
        }
        self.checkpointing.changed.notify_all();
        outcome.map(|_| ())
    }

    /// Drives a checkpoint to its end; returns whether the space for the next one is reserved.
    fn drive(&self, state: &mut State) -> Result<bool> {
        if state.running.is_none() {
            if self.index.overlay_size().0 == 0 {
                return self.guard(self.index.extend_reserve());
            }
            state.running = Some(self.freeze(state.generation + 1));
        }
        let Some(running) = &mut state.running else {
            return Ok(true);
        };
        while running.step != Step::Published {
            self.guard_index(self.advance(running))?;
        }
        state.generation = running.generation;
        let reference = running.reference;
        let (tail, tail_lsn) = running.tail;
        self.guard(self.mirrors.update_superblock(|superblock| {
            superblock.checkpoint = reference;
            superblock.journal.tail = tail;
            superblock.journal.tail_lsn = tail_lsn;
            superblock.journal.tail_run = self.journal.run();
        }))?;
        self.journal.set_tail(tail);
        state.running = None;
        self.checkpointing.signal.lock().lsn = reference.lsn.0;
        let freed = std::mem::take(&mut self.committed.lock().freezing);
        self.incidents
            .freed(freed.into_values().flatten().collect());
        self.guard(self.index.extend_reserve())
    }

    /// An index that failed half-way through a checkpoint cannot go on.
    fn guard_index<T>(&self, result: Result<T>) -> Result<T> {
        if let Err(PoolError::Index { detail }) = &result {
            self.fail(detail);
        }
        self.guard(result)
    }

    fn freeze(&self, generation: u64) -> Running {
        let mut committed = self.committed.lock();
        let tail = self.journal.head();
        self.index.freeze();
        let state = StateRow {
            next_ino: Ino(self.next_ino.load(std::sync::atomic::Ordering::Relaxed)),
            next_segment: self.segments.next_segment(),
            inodes: committed.inodes,
        };
        let mut extra = std::collections::BTreeMap::new();
        extra.insert(Key::state(), Some(state.encode()));
        let changed = self
            .segments
            .with_accounts(crate::segments::Accounts::take_changed);
        for (segment, row) in changed {
            extra.insert(
                Key::segment(segment),
                row.map(crate::format::SegmentRow::encode),
            );
        }
        committed.freezing = std::mem::take(&mut committed.freed);
        Running {
            step: Step::Frozen,
            generation,
            tail,
            extra,
            reference: CheckpointRef::default(),
        }
    }

    fn advance(&self, running: &mut Running) -> Result<()> {
        match running.step {
            Step::Frozen => {
                // The rows about to be committed point to data that only the journal may hold.
                self.segments.sync(&|| self.lsn())?;
                let extra = std::mem::take(&mut running.extra);
                let begin = self.index.prepare(running.generation, extra)?;
                self.journal.append(&Record::CheckpointBegin(begin));
                self.journal.sync()?;
                running.step = Step::Prepared;
            }
            Step::Prepared => {
                self.index.write_pages()?;
                running.step = Step::Written;
            }
            Step::Written => {
                let (tail, next) = running.tail;
                let lsn = Lsn(next.0 - 1);
                let done = self.index.done_record(running.generation, lsn, tail);
                running.reference = CheckpointRef {
                    generation: done.generation,
                    lsn,
                    index_len: done.index_len,
                    sums_root: done.sums_root,
                };
                self.journal.append(&Record::CheckpointDone(done));
                self.journal.sync()?;
                running.step = Step::Done;
            }
            Step::Done => {
                self.index.publish(running.generation)?;
                running.step = Step::Published;
            }
            Step::Published => {}
        }
        Ok(())
    }

    /// Closes the pool in order: everything durable, in the index, and marked clean.
    ///
    /// # Errors
    /// [`PoolError`] if that could not be done; the journal then brings the rest at the next mount.
    pub fn close(&self) -> Result<()> {
        if self.is_active() {
            self.sync()?;
            match self.checkpoint_all() {
                Ok(()) => self.mark_clean()?,
                // Everything is durable: a full disk must not keep anybody from unmounting.
                Err(PoolError::NoSpace { mirror }) => log::warn!(
                    "{mirror} is full: the journal keeps what the index has no room for, and the \
                     next mount replays it"
                ),
                Err(error) => return Err(error),
            }
        }
        while self.mirrors.repair_step(usize::MAX) > 0 {}
        self.flush_ledger();
        Ok(())
    }

    fn checkpoint_all(&self) -> Result<()> {
        // The first may only be the end of one that a full disk had stopped: what was committed
        // since it was frozen needs another, or moving the tail would drop it.
        while self.checkpoint_needed() {
            self.checkpoint()?;
        }
        Ok(())
    }

    fn mark_clean(&self) -> Result<()> {
        // What the checkpoint itself logged is behind it.
        let (tail, tail_lsn) = self.journal.head();
        self.guard(self.mirrors.update_superblock(|superblock| {
            superblock.journal.tail = tail;
            superblock.journal.tail_lsn = tail_lsn;
            superblock.journal.tail_run = self.journal.run();
            superblock.clean = true;
        }))
    }
}
