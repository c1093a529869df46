//! The threads that keep a mounted pool in order.
//!
//! One makes operations durable within the commit interval and checkpoints when they are due; the
//! next repairs, reclaims space and writes the ledger; a third looks after the mirrors and brings
//! those up to date that were away; a fourth scrubs. A thread that panics stops the pool, loudly.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

use super::inspect::Inspector;
use super::pace::Pace;
use super::reclaim::Reclaim;
use super::resync::Resync;
use super::scrub::{ScrubOptions, Scrubber};
use crate::pool::{CommitMode, Pool, PoolError, Result};

/// A checkpoint is made at least this long after a change, so that freed space comes back.
const CHECKPOINT_AGE: Duration = Duration::from_secs(5);
/// How often the chores are looked at when nobody calls.
const CHORES_EVERY: Duration = Duration::from_millis(100);
/// How often the list of current errors is gone through, when nobody looks at it.
const SWEEP_EVERY: Duration = Duration::from_secs(10);
/// Repairs done in one go: they share a sync for each file.
const REPAIRS: usize = 2048;
/// How often the scrub looks whether it is due.
const SCRUB_LOOKS_EVERY: Duration = Duration::from_secs(1);
/// Bytes scrubbed in one go: enough to be read as fast as they can be.
const SCRUB_STEP: u32 = 4 << 20;
/// As that for a scrub with a low rate, which would come in bursts.
const SCRUB_STEP_LEAST: u32 = 256 << 10;
/// Segments that space is given back from in one go.
const SEGMENTS: usize = 16;

#[derive(Debug, Default)]
struct Bell {
    stop: AtomicBool,
    lock: Mutex<()>,
    rung: Condvar,
}

impl Bell {
    fn stopped(&self) -> bool {
        self.stop.load(Ordering::Acquire)
    }

    fn wait(&self, timeout: Duration) {
        let mut guard = self.lock.lock();
        if !self.stopped() {
            self.rung.wait_for(&mut guard, timeout);
        }
    }
}

/// The running threads of one pool.
#[derive(Debug)]
pub struct Keeper {
    pool: Arc<Pool>,
    bell: Arc<Bell>,
    threads: Vec<JoinHandle<()>>,
}

impl Keeper {
    /// Starts the threads.
    ///
    /// # Errors
    /// As pthread_create(3).
    pub fn start(pool: &Arc<Pool>, scrub: ScrubOptions) -> std::io::Result<Keeper> {
        let bell = Arc::new(Bell::default());
        let mut keeper = Keeper {
            pool: Arc::clone(pool),
            bell: Arc::clone(&bell),
            threads: Vec::new(),
        };
        if !pool.read_only() {
            pool.serve_checkpoints(true);
            keeper.spawn("mendfs-commit", commit_loop)?;
            keeper.spawn("mendfs-resync", resync_loop)?;
        }
        keeper.spawn("mendfs-chores", chores_loop)?;
        let scrubber = Scrubber::new(Arc::clone(pool), scrub);
        keeper.spawn("mendfs-scrub", move |pool, bell| {
            scrub_loop(scrubber, pool, bell)
        })?;
        Ok(keeper)
    }

    fn spawn(
        &mut self,
        name: &str,
        work: impl FnOnce(&Arc<Pool>, &Bell) + Send + 'static,
    ) -> std::io::Result<()> {
        let (pool, bell) = (Arc::clone(&self.pool), Arc::clone(&self.bell));
        let thread_name = name.to_owned();
        let thread = thread::Builder::new()
            .name(thread_name.clone())
            .spawn(move || {
                if catch_unwind(AssertUnwindSafe(|| work(&pool, &bell))).is_err() {
                    pool.fail(&format!("the thread {thread_name} panicked"));
                }
            })?;
        self.threads.push(thread);
        Ok(())
    }

    /// Ends the threads and waits for them.
    pub fn stop(mut self) {
        self.end();
    }

    fn end(&mut self) {
        {
            let _guard = self.bell.lock.lock();
            self.bell.stop.store(true, Ordering::Release);
            self.bell.rung.notify_all();
        }
        self.pool.serve_checkpoints(false);
        self.pool.scrub().wake();
        for thread in self.threads.drain(..) {
            // A panic was reported where it happened.
            let _ = thread.join();
        }
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        self.end();
    }
}

fn commit_loop(pool: &Arc<Pool>, bell: &Bell) {
    let interval = match pool.commit_mode() {
        CommitMode::Interval(interval) => interval,
        CommitMode::Always | CommitMode::None => CHECKPOINT_AGE,
    };
    let tick = interval.min(CHECKPOINT_AGE);
    let mut last_checkpoint = Instant::now();
    while !bell.stopped() {
        let wanted = pool.wait_for_checkpoint(tick);
        if bell.stopped() || pool.failure().is_some() {
            return;
        }
        let aged = last_checkpoint.elapsed() >= CHECKPOINT_AGE;
        if wanted || pool.checkpoint_due() || (aged && pool.checkpoint_useful()) {
            report("checkpoint", pool.checkpoint());
            last_checkpoint = Instant::now();
        }
        if matches!(pool.commit_mode(), CommitMode::Interval(_)) && pool.unsynced() {
            report("commit", pool.sync());
        }
    }
}

/// A pool that has stopped has said so itself; a full disk is said once in the status.
fn report(what: &str, outcome: Result<()>) {
    match outcome {
        Ok(()) | Err(PoolError::Failed { .. }) => {}
        Err(error @ PoolError::NoSpace { .. }) => log::warn!("{what} waits: {error}"),
        Err(error) => log::error!("{what}: {error}"),
    }
}

fn chores_loop(pool: &Arc<Pool>, bell: &Bell) {
    let mut reclaim = Reclaim::new(Arc::clone(pool));
    let mut inspector = Inspector::new(Arc::clone(pool));
    let mut last_sweep = Instant::now();
    while !bell.stopped() {
        let mut more = pool.repair_step(REPAIRS) == REPAIRS;
        if !pool.read_only() && pool.failure().is_none() {
            match reclaim.step(SEGMENTS) {
                Ok(left) => more |= left,
                Err(error) => report("reclaiming space", Err(error)),
            }
        }
        match inspector.step() {
            Ok(left) => more |= left,
            Err(error) => report("checking what is suspect", Err(error)),
        }
        pool.set_inspecting(!inspector.is_idle());
        pool.record_incidents();
        if last_sweep.elapsed() >= SWEEP_EVERY {
            pool.sweep_errors();
            last_sweep = Instant::now();
        }
        if !more {
            bell.wait(CHORES_EVERY);
        }
    }
}

/// A pool that lacks a copy is in danger: without a rate asked for, applications get the other half
/// of the time while they want it.
fn resync_loop(pool: &Arc<Pool>, bell: &Bell) {
    let mut resync = Resync::new(Arc::clone(pool));
    let mut pace = Pace::new(pool, pool.resync_rate());
    let (rated, mut idle) = (pool.resync_rate().is_some(), true);
    while !bell.stopped() && pool.failure().is_none() {
        pool.carry_out_orders();
        let begun = Instant::now();
        let wait = match resync.step() {
            Ok(Some(_)) if idle => {
                idle = false;
                pace.resume();
                Duration::ZERO
            }
            Ok(Some(bytes)) if rated => pace.account(bytes),
            Ok(Some(bytes)) => pace.account(bytes).min(begun.elapsed()),
            Ok(None) => {
                idle = true;
                CHORES_EVERY
            }
            Err(error) => {
                report("bringing a mirror up to date", Err(error));
                CHECKPOINT_AGE
            }
        };
        if !wait.is_zero() {
            bell.wait(wait);
        }
    }
}

fn scrub_loop(mut scrubber: Scrubber, pool: &Arc<Pool>, bell: &Bell) {
    let mut pace = Pace::new(pool, None);
    let wait = |time: Duration| pool.scrub().wait(time, &|| bell.stopped());
    while !bell.stopped() {
        let rate = scrubber.rate();
        pace.set_rate(rate);
        let quarter = rate.map_or(u64::MAX, |rate| rate / 4);
        let budget = u32::try_from(quarter).unwrap_or(u32::MAX);
        match scrubber.step(budget.clamp(SCRUB_STEP_LEAST, SCRUB_STEP)) {
            Ok(Some(read)) => {
                let pause = pace.account(read);
                if !pause.is_zero() {
                    wait(pause);
                }
            }
            Ok(None) => {
                wait(SCRUB_LOOKS_EVERY);
                pace.resume();
            }
            // The pool has stopped, and has said so.
            Err(_) => return,
        }
    }
    scrubber.save();
}
