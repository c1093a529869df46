//! The computer that simulated disks are in: one count of operations, one power switch, one clock.

use std::error::Error;
use std::fmt;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use tracing_mutex::parkinglot::Mutex;

use super::{SimDisk, SimRng};

/// What becomes of unsynced sectors, lengths, names and holes when the power fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PowerLoss {
    /// All of it had reached the medium.
    KeepAll,
    /// None of it had.
    LoseAll,
    /// Some had: by the file all, nothing, single pages or single sectors.
    Random,
}

/// The inner error of every operation while the power is off.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PowerOff;

impl fmt::Display for PowerOff {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the simulated power is off")
    }
}

impl Error for PowerOff {}

/// Whether an operation failed because the power is off.
pub fn is_power_off(error: &io::Error) -> bool {
    error.get_ref().is_some_and(|inner| inner.is::<PowerOff>())
}

/// Whether that is what is at the bottom of an error of a higher layer.
pub fn caused_by_power_off(error: &(dyn Error + 'static)) -> bool {
    let mut next = Some(error);
    while let Some(error) = next {
        let io = error.downcast_ref::<io::Error>();
        if error.is::<PowerOff>() || io.is_some_and(is_power_off) {
            return true;
        }
        next = error.source();
    }
    false
}

/// What an operation does, as far as the world cares.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Look,
    Read,
    Change,
    Sync,
}

/// A computer with simulated disks. Clones are handles to the same one.
#[derive(Clone)]
pub struct SimWorld {
    switch: Arc<PowerSwitch>,
    disks: Arc<Mutex<Vec<SimDisk>>>,
    seed: u64,
}

/// What the disks of a world share: the count, the switch and the clock. Knows no disk, so that
/// nothing leaks in circles.
pub(super) struct PowerSwitch {
    state: Mutex<State>,
}

struct State {
    powered: bool,
    run: u64,
    operations: u64,
    changes: u64,
    crash_at: Option<u64>,
    crash_at_change: Option<u64>,
    now: Duration,
}

impl PowerSwitch {
    /// How often the power was turned on again.
    pub(super) fn run(&self) -> u64 {
        self.state.lock().run
    }

    /// Counts an operation, or fails it. Those that fail for want of power are not counted.
    pub(super) fn count(&self, kind: Kind, took: Duration, run: Option<u64>) -> io::Result<()> {
        let mut state = self.state.lock();
        if run.is_some_and(|run| run != state.run) {
            return Err(io::Error::other(PowerOff));
        }
        let changes = matches!(kind, Kind::Change | Kind::Sync);
        let due = |at: Option<u64>, done: u64| at.is_some_and(|at| done + 1 >= at);
        if due(state.crash_at, state.operations)
            || changes && due(state.crash_at_change, state.changes)
        {
            state.powered = false;
        }
        if !state.powered {
            return Err(io::Error::other(PowerOff));
        }
        state.operations += 1;
        state.changes += u64::from(changes);
        state.now += took;
        Ok(())
    }
}

impl fmt::Debug for SimWorld {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SimWorld")
            .field("seed", &self.seed)
            .finish_non_exhaustive()
    }
}

impl SimWorld {
    /// A computer without disks, its power on. All chance in it comes from the seed.
    pub fn new(seed: u64) -> SimWorld {
        let state = State {
            powered: true,
            run: 0,
            operations: 0,
            changes: 0,
            crash_at: None,
            crash_at_change: None,
            now: Duration::ZERO,
        };
        let switch = Arc::new(PowerSwitch {
            state: Mutex::new(state),
        });
        SimWorld {
            switch,
            disks: Arc::default(),
            seed,
        }
    }

    /// The seed it was made with.
    pub const fn seed(&self) -> u64 {
        self.seed
    }

    /// Adds an empty disk.
    pub fn disk(&self, label: &str) -> SimDisk {
        let mut disks = self.disks.lock();
        let rng = SimRng::new(self.seed).fork(disks.len() as u64);
        let disk = SimDisk::new(Arc::clone(&self.switch), label, rng);
        disks.push(disk.clone());
        disk
    }

    /// The disks, in the order in which they were added.
    pub fn disks(&self) -> Vec<SimDisk> {
        self.disks.lock().clone()
    }

    /// Operations on all disks so far.
    pub fn operations(&self) -> u64 {
        self.switch.state.lock().operations
    }

    /// Those of them that can change what a disk holds: all but reads, lengths and lists. A sweep
    /// over crashes at each of these misses nothing.
    pub fn changes(&self) -> u64 {
        self.switch.state.lock().changes
    }

    /// Cuts the power at the `n`-th operation, counted as [`SimWorld::operations`] does: it and all
    /// after it fail.
    pub fn crash_at(&self, n: u64) {
        self.switch.state.lock().crash_at = Some(n);
    }

    /// Cuts the power at the `n`-th change, counted as [`SimWorld::changes`] does.
    pub fn crash_at_change(&self, n: u64) {
        self.switch.state.lock().crash_at_change = Some(n);
    }

    /// Cuts the power now.
    pub fn cut_power(&self) {
        self.switch.state.lock().powered = false;
    }

    /// Whether the power is on.
    pub fn is_powered(&self) -> bool {
        self.switch.state.lock().powered
    }

    /// Takes the power away, if it is on, and turns it on again: what was unsynced is decided, and
    /// no crash is planned any more. Handles made by [`SimDisk::plug`] before are dead.
    pub fn power_cycle(&self, loss: PowerLoss) {
        self.cut_power();
        self.disks().iter().for_each(|disk| disk.crash(loss));
        let mut state = self.switch.state.lock();
        state.powered = true;
        state.run += 1;
        state.crash_at = None;
        state.crash_at_change = None;
    }

    /// Simulated time that the operations took, one after the other.
    pub fn now(&self) -> Duration {
        self.switch.state.lock().now
    }
}
