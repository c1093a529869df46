//! A mirror in memory with every fault that a disk can have, from one seed.
//!
//! A [`SimWorld`] is one computer: it counts the operations of all its disks, cuts the power at a
//! chosen one and turns it on again. A [`SimDisk`] is one directory. What is not synced is at the
//! mercy of [`PowerLoss`]: each 512-byte sector, length, name and hole on its own. Other faults are
//! data, [`Faults`]. Beside damaged bytes the disk keeps what should be there, so that
//! [`SimDisk::damaged_ranges`] shows whether a repair really repaired.
//!
//! Invariants: what a sync made durable comes back from every crash; a sector is never torn; the
//! same seed and the same calls in the same order give the same history. Each disk draws from a
//! generator of its own, so that calls on different disks may interleave; but which operation is
//! the n-th, where the power fails, is only determined if one thread makes the calls.
//!
//! The parts: `node` is one file's content, `store` names and space, `faults` what may go wrong.

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use tracing_mutex::parkinglot::{Mutex, MutexGuard};

use super::{Backing, FileName, Space};
use crate::format::SegmentNo;

mod faults;
mod node;
mod ranges;
mod rng;
mod store;
mod world;

pub use faults::{Fault, FaultOnce, FaultRate, Faults, FileClass, Latency};
pub use rng::SimRng;
use store::Store;
use world::{Kind, PowerSwitch};
pub use world::{PowerLoss, PowerOff, SimWorld, caused_by_power_off, is_power_off};

/// Size of a disk that was given none.
const DEFAULT_CAPACITY: u64 = 1 << 40;

/// A simulated mirror directory. Clones are handles to the same one.
#[derive(Clone)]
pub struct SimDisk {
    shared: Arc<Shared>,
    /// The run of the computer that the handle belongs to, if it ends with it, and how often the
    /// disk had been pulled out then.
    run: Option<(u64, u64)>,
}

struct Shared {
    switch: Arc<PowerSwitch>,
    label: String,
    state: Mutex<State>,
}

struct State {
    store: Store,
    faults: Faults,
    rng: SimRng,
    attached: bool,
    /// How often it was pulled out.
    pulled: u64,
    power_loss: Option<PowerLoss>,
    operations: u64,
    reads: u64,
    injected: BTreeMap<Fault, u64>,
}

/// Everything that a disk held at one moment.
#[derive(Debug, Clone)]
pub struct SimSnapshot {
    store: Store,
}

impl fmt::Debug for SimDisk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SimDisk")
            .field("label", &self.shared.label)
            .finish_non_exhaustive()
    }
}

impl State {
    /// Whether the fault strikes; counts it.
    fn strikes(&mut self, fault: Fault, file: FileName) -> bool {
        let struck = self.faults.strikes(fault, file, &mut self.rng);
        if struck {
            *self.injected.entry(fault).or_default() += 1;
        }
        struck
    }

    fn node(&mut self, file: FileName) -> io::Result<(&mut node::Node, &mut SimRng)> {
        let node = self
            .store
            .node_mut(file)
            .ok_or_else(|| errno(libc::ENOENT))?;
        Ok((node, &mut self.rng))
    }

    fn sync(&mut self, file: FileName) -> io::Result<()> {
        self.node(file)?;
        let failed = self.strikes(Fault::SyncError, file);
        let (node, rng) = self.node(file)?;
        if failed {
            node.fail_sync(rng);
            return Err(errno(libc::EIO));
        }
        node.sync();
        Ok(())
    }

    fn read(&mut self, file: FileName, offset: u64, buf: &mut [u8]) -> io::Result<usize> {
        self.node(file)?;
        if self.strikes(Fault::ReadError, file) {
            return Err(errno(libc::EIO));
        }
        if self.strikes(Fault::BitRot, file) {
            let (node, rng) = self.node(file)?;
            node.rot(&(offset..offset + buf.len() as u64), rng);
        }
        let short = self.strikes(Fault::ShortRead, file);
        let (node, rng) = self.node(file)?;
        let len = node.read(offset, buf).ok_or_else(|| errno(libc::EIO))?;
        Ok(if short { rng.index(len) } else { len })
    }

    fn write(&mut self, file: FileName, offset: u64, data: &[u8]) -> io::Result<()> {
        let range = offset..offset + data.len() as u64;
        self.node(file)?;
        if self.strikes(Fault::Writeback, file) {
            let (node, rng) = self.node(file)?;
            node.write_back(rng);
        }
        if data.is_empty() {
            return Ok(());
        }
        let failed = self.strikes(Fault::WriteError, file);
        let lost = self.strikes(Fault::LostWrite, file);
        let astray = self.strikes(Fault::MisdirectedWrite, file);
        let end = if failed {
            offset + self.rng.below(range.end - offset)
        } else {
            range.end
        };
        let end = self.store.allocate(file, &(offset..end));
        let (node, rng) = self.node(file)?;
        let data = &data[..(end - offset) as usize];
        if astray && !data.is_empty() {
            node.misdirect(offset, data, rng);
        } else if !data.is_empty() {
            node.write(offset, data, lost);
        }
        match end {
            _ if failed => Err(errno(libc::EIO)),
            end if end < range.end => Err(errno(libc::ENOSPC)),
            _ => Ok(()),
        }
    }
}

impl SimDisk {
    fn new(switch: Arc<PowerSwitch>, label: &str, rng: SimRng) -> SimDisk {
        let state = State {
            store: Store::new(DEFAULT_CAPACITY),
            faults: Faults::none(),
            rng,
            attached: true,
            pulled: 0,
            power_loss: None,
            operations: 0,
            reads: 0,
            injected: BTreeMap::new(),
        };
        let shared = Shared {
            switch,
            label: label.to_string(),
            state: Mutex::new(state),
        };
        SimDisk {
            shared: Arc::new(shared),
            run: None,
        }
    }

    /// A disk in a world of its own, for tests that need only one.
    pub fn single(seed: u64) -> (SimWorld, SimDisk) {
        let world = SimWorld::new(seed);
        let disk = world.disk("disk");
        (world, disk)
    }

    /// A handle that works until the next power cycle, or until the disk is pulled out, and fails
    /// ever after, as what a process had open does: give this one to the code under test, so that
    /// nothing of it reaches the disk from beyond the crash.
    #[must_use]
    pub fn plug(&self) -> SimDisk {
        SimDisk {
            shared: Arc::clone(&self.shared),
            run: Some((self.shared.switch.run(), self.state().pulled)),
        }
    }

    /// Sets the size of the disk in bytes.
    pub fn set_capacity(&self, capacity: u64) {
        self.state().store.set_capacity(capacity);
    }

    /// Sets what goes wrong from now on.
    pub fn set_faults(&self, faults: Faults) {
        self.state().faults = faults;
    }

    /// What may still go wrong: struck one-shot faults are gone.
    pub fn faults(&self) -> Faults {
        self.state().faults.clone()
    }

    /// How often each fault struck.
    pub fn injected(&self) -> BTreeMap<Fault, u64> {
        self.state().injected.clone()
    }

    /// Operations on this disk so far.
    pub fn operations(&self) -> u64 {
        self.state().operations
    }

    /// Reads of this disk so far.
    pub fn reads(&self) -> u64 {
        self.state().reads
    }

    /// What happens to this disk at power cycles, whatever happens to the others.
    pub fn set_power_loss(&self, loss: Option<PowerLoss>) {
        self.state().power_loss = loss;
    }

    /// Pulls the disk out: all operations fail with ENODEV, and of what was unsynced only some
    /// reached the medium.
    pub fn detach(&self) {
        {
            let mut state = self.state();
            state.attached = false;
            state.pulled += 1;
        }
        self.crash(PowerLoss::Random);
    }

    /// Puts the disk in again.
    pub fn attach(&self) {
        self.state().attached = true;
    }

    /// Whether the disk is in.
    pub fn is_attached(&self) -> bool {
        self.state().attached
    }

    /// An empty disk takes the place of this one.
    pub fn wipe(&self) {
        let mut state = self.state();
        state.store = Store::new(state.store.capacity());
    }

    /// Changes every byte of a range on the medium. Holes and unsynced sectors stay as they are.
    pub fn corrupt(&self, file: FileName, offset: u64, len: u64) {
        self.on_node(file, |node, rng| {
            node.corrupt(&(offset..offset + len), false, rng)
        });
    }

    /// As [`SimDisk::corrupt`], but the page cache has the good bytes until it is dropped: only
    /// [`Backing::read_medium`] sees the damage.
    pub fn corrupt_under_cache(&self, file: FileName, offset: u64, len: u64) {
        self.on_node(file, |node, rng| {
            node.corrupt(&(offset..offset + len), true, rng)
        });
    }

    /// Makes the sectors of a range unreadable until they are written.
    pub fn fail_sectors(&self, file: FileName, offset: u64, len: u64) {
        self.on_node(file, |node, _| node.fail_sectors(&(offset..offset + len)));
    }

    /// Flips `bits` random bits somewhere in the durable bytes of the files.
    pub fn rot(&self, bits: usize) {
        let mut state = self.state();
        let files: Vec<FileName> = state.store.files().collect();
        // Holes cannot rot, so a few tries may be in vain.
        let (mut flipped, mut tries) = (0, 0);
        while flipped < bits && tries < 100 * (bits + 1) && !files.is_empty() {
            tries += 1;
            let file = files[state.rng.index(files.len())];
            if let Ok((node, rng)) = state.node(file) {
                flipped += usize::from(node.rot(&(0..node.len()), rng));
            }
        }
    }

    /// Cuts a file behind the back of whoever uses it.
    pub fn truncate(&self, file: FileName, len: u64) {
        self.on_node(file, |node, _| node.lose_tail(len));
    }

    /// Deletes a file behind the back of whoever uses it.
    pub fn delete(&self, file: FileName) {
        self.state().store.delete(file);
    }

    /// Which ranges of bytes of which files are not what was last made durable there. Deleted and
    /// cut files count with what is missing of them.
    pub fn damaged_ranges(&self) -> Vec<(FileName, Range<u64>)> {
        self.state().store.damaged()
    }

    /// The page cache forgets all that is durable anyway.
    pub fn drop_caches(&self) {
        self.state().store.drop_caches();
    }

    /// Makes everything durable, as time does when nothing goes wrong.
    pub fn settle(&self) {
        self.state().store.sync_all();
    }

    /// All that the disk holds. Faults, counters and chance are not part of it.
    pub fn snapshot(&self) -> SimSnapshot {
        SimSnapshot {
            store: self.state().store.clone(),
        }
    }

    /// Brings back what the disk held.
    pub fn restore(&self, snapshot: &SimSnapshot) {
        self.state().store = snapshot.store.clone();
    }

    /// What a file holds now, as its user sees it; none if it is not there. Unreadable sectors end
    /// it.
    pub fn content(&self, file: FileName) -> Option<Vec<u8>> {
        let state = self.state();
        let node = state.store.node(file)?;
        let mut bytes = vec![0; usize::try_from(node.len()).ok()?];
        node.read(0, &mut bytes)?;
        Some(bytes)
    }

    /// The files there are, in order.
    pub fn files(&self) -> Vec<FileName> {
        self.state().store.files().collect()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.shared.state.lock()
    }

    fn on_node(&self, file: FileName, change: impl FnOnce(&mut node::Node, &mut SimRng)) {
        if let Ok((node, rng)) = self.state().node(file) {
            change(node, rng);
        }
    }

    /// The power of this disk is lost.
    fn crash(&self, loss: PowerLoss) {
        let mut state = self.state();
        let loss = state.power_loss.unwrap_or(loss);
        let State { store, rng, .. } = &mut *state;
        store.crash(loss, rng);
    }

    /// Whether what this handle was opened on is still there.
    fn reaches(&self, state: &State) -> bool {
        state.attached && self.run.is_none_or(|(_, pulled)| pulled == state.pulled)
    }

    /// The start of every operation: counts it, and fails if the power is off or the disk out.
    fn begin(&self, kind: Kind) -> io::Result<MutexGuard<'_, State>> {
        let latency = self.state().faults.latency;
        let duration = match kind {
            Kind::Look => Duration::ZERO,
            Kind::Read => latency.read,
            Kind::Change => latency.write,
            Kind::Sync => latency.sync,
        };
        self.begin_for(kind, duration)
    }

    /// As [`SimDisk::begin`], for an operation that takes that long.
    fn begin_for(&self, kind: Kind, duration: Duration) -> io::Result<MutexGuard<'_, State>> {
        let run = self.run.map(|(run, _)| run);
        self.shared.switch.count(kind, duration, run)?;
        let mut state = self.state();
        state.operations += 1;
        state.reads += u64::from(kind == Kind::Read);
        if self.reaches(&state) {
            Ok(state)
        } else {
            Err(errno(libc::ENODEV))
        }
    }
}

impl Backing for SimDisk {
    fn label(&self) -> String {
        self.shared.label.clone()
    }

    fn create(&self, file: FileName) -> io::Result<()> {
        self.begin(Kind::Change)?.store.create(file);
        Ok(())
    }

    fn len(&self, file: FileName) -> io::Result<u64> {
        Ok(self.begin(Kind::Look)?.node(file)?.0.len())
    }

    fn allocated(&self, file: FileName) -> io::Result<u64> {
        Ok(self.begin(Kind::Look)?.node(file)?.0.pages() * node::PAGE_U64)
    }

    fn read_at(&self, file: FileName, offset: u64, buf: &mut [u8]) -> io::Result<usize> {
        self.begin(Kind::Read)?.read(file, offset, buf)
    }

    fn read_at_within(
        &self,
        file: FileName,
        offset: u64,
        buf: &mut [u8],
        deadline: Duration,
    ) -> io::Result<usize> {
        let slow = {
            let mut state = self.state();
            state.faults.latency.read > deadline || state.strikes(Fault::SlowRead, file)
        };
        if slow {
            drop(self.begin_for(Kind::Read, deadline)?);
            return Err(io::ErrorKind::TimedOut.into());
        }
        self.read_at(file, offset, buf)
    }

    fn read_medium(&self, file: FileName, offset: u64, buf: &mut [u8]) -> io::Result<usize> {
        let mut state = self.begin(Kind::Sync)?;
        state.sync(file)?;
        state.node(file)?.0.drop_caches();
        state.read(file, offset, buf)
    }

    fn forget_cached(&self, file: FileName) -> io::Result<()> {
        let mut state = self.begin(Kind::Sync)?;
        state.sync(file)?;
        state.node(file)?.0.drop_caches();
        Ok(())
    }

    fn write_at(&self, file: FileName, offset: u64, buffers: &[&[u8]]) -> io::Result<()> {
        let mut state = self.begin(Kind::Change)?;
        match buffers {
            [data] => state.write(file, offset, data),
            _ => state.write(file, offset, &buffers.concat()),
        }
    }

    fn set_len(&self, file: FileName, len: u64) -> io::Result<()> {
        self.begin(Kind::Change)?.node(file)?.0.set_len(len);
        Ok(())
    }

    fn reserve(&self, file: FileName, offset: u64, len: u64) -> io::Result<()> {
        let mut state = self.begin(Kind::Change)?;
        state.node(file)?;
        let range = offset..offset + len;
        if len > 0 {
            if !state.store.fits(file, &range) {
                return Err(errno(libc::ENOSPC));
            }
            state.store.allocate(file, &range);
        }
        Ok(())
    }

    fn punch(&self, file: FileName, offset: u64, len: u64) -> io::Result<()> {
        self.begin(Kind::Change)?
            .node(file)?
            .0
            .punch(&(offset..offset.saturating_add(len)));
        Ok(())
    }

    fn sync(&self, file: FileName) -> io::Result<()> {
        self.begin(Kind::Sync)?.sync(file)
    }

    fn sync_name(&self, file: FileName) -> io::Result<()> {
        let mut state = self.begin(Kind::Sync)?;
        if state.strikes(Fault::SyncError, file) {
            return Err(errno(libc::EIO));
        }
        state.store.sync_name(file);
        Ok(())
    }

    fn remove(&self, file: FileName) -> io::Result<()> {
        self.begin(Kind::Change)?.store.remove(file);
        Ok(())
    }

    /// Simulated disks have no other directories: what is set aside is gone.
    fn set_aside(&self) -> io::Result<()> {
        for segment in self.segments()? {
            self.remove(FileName::Segment(segment))?;
        }
        [FileName::Journal, FileName::Index, FileName::Sums]
            .into_iter()
            .try_for_each(|file| self.remove(file))
    }

    fn forget_aside(&self) -> io::Result<()> {
        Ok(())
    }

    fn segments(&self) -> io::Result<Vec<SegmentNo>> {
        let state = self.begin(Kind::Look)?;
        let numbers = state.store.files().filter_map(|file| match file {
            FileName::Segment(number) => Some(number),
            _ => None,
        });
        Ok(numbers.collect())
    }

    fn is_present(&self) -> bool {
        self.reaches(&self.state())
    }

    fn space(&self) -> io::Result<Space> {
        let store = &self.begin(Kind::Look)?.store;
        let total = store.capacity();
        Ok(Space {
            total,
            available: total.saturating_sub(store.used()),
        })
    }
}

fn errno(code: i32) -> io::Error {
    io::Error::from_raw_os_error(code)
}

#[cfg(test)]
mod tests;
