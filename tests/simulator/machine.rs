//! The computer under test: simulated disks, the clock, and the mount on them.
//!
//! Everything is single-threaded and comes from the seed: the clock shows the number of the current
//! operation, syncs go to one mirror after the other, and no ledger is kept.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use mendfs::backing::Backing;
use mendfs::backing::sim::{PowerLoss, SimDisk, SimRng, SimSnapshot, SimWorld};
use mendfs::format::Algorithm;
use mendfs::pool::status::{MirrorState, MirrorStatus};
use mendfs::pool::{
    Clock, CommitMode, CreateOptions, Named, OpenOptions, Outside, Pool, ScrubOrder, ScrubRun,
    create,
};
use mendfs::services::{Inspector, Reclaim, Resync, ScrubOptions, Scrubber, Verifier};
use mendfs::vfs::{Vfs, VfsOptions};

use super::model::time_of;

/// How a pool is made and opened.
#[derive(Clone, Debug)]
pub(crate) struct Config {
    pub(crate) mirrors: usize,
    pub(crate) algorithm: Algorithm,
    pub(crate) journal: u64,
    pub(crate) segment: u32,
    pub(crate) reserve: u64,
    /// Space left free, in bytes.
    pub(crate) kept: u64,
    /// Of each disk.
    pub(crate) capacity: Option<u64>,
    pub(crate) hash_bits: u32,
    pub(crate) kernel_keeps_times: bool,
    pub(crate) cache: usize,
    /// Every operation is durable when it is answered.
    pub(crate) always: bool,
}

impl Default for Config {
    fn default() -> Config {
        Config {
            mirrors: 2,
            algorithm: Algorithm::Crc32,
            journal: 1 << 20,
            segment: 1 << 20,
            reserve: 2 << 20,
            kept: 256 << 10,
            capacity: None,
            hash_bits: 55,
            kernel_keeps_times: false,
            cache: 1 << 20,
            always: false,
        }
    }
}

impl Config {
    /// A configuration of chance.
    pub(crate) fn draw(rng: &mut SimRng) -> Config {
        let algorithms = [
            Algorithm::Crc32,
            Algorithm::Xxh3,
            Algorithm::Blake3,
            Algorithm::Sha256,
        ];
        let segments = [256 << 10, 1 << 20, 1 << 20, 4 << 20];
        Config {
            mirrors: if rng.below(10) == 0 { 3 } else { 2 },
            algorithm: algorithms[rng.index(4)],
            journal: if rng.below(4) == 0 {
                256 << 10
            } else {
                1 << 20
            },
            segment: segments[rng.index(4)],
            hash_bits: if rng.below(4) == 0 { 1 } else { 55 },
            kernel_keeps_times: rng.below(4) == 0,
            always: rng.below(10) == 0,
            cache: if rng.coin() { 64 << 10 } else { 1 << 20 },
            ..Config::default()
        }
    }
}

/// Puts something over a disk.
pub(crate) type Over<'a> = dyn FnMut(Arc<dyn Backing>) -> Arc<dyn Backing> + 'a;

/// A mounted filesystem.
pub(crate) struct Mounted {
    pub(crate) vfs: Vfs,
    pub(crate) reclaim: Reclaim,
    inspector: Inspector,
    resync: Resync,
    scrubber: Scrubber,
}

/// A computer with disks.
pub(crate) struct Machine {
    pub(crate) world: SimWorld,
    pub(crate) disks: Vec<SimDisk>,
    pub(crate) config: Config,
    /// The disks that the next mount gets.
    pub(crate) present: Vec<bool>,
    pub(crate) mounted: Option<Mounted>,
    /// Passed to the next mount.
    pub(crate) prefer: Option<String>,
    /// The scrub as the last mount remembered it, now and then.
    remembered: ScrubRun,
    /// Disks that are no mirrors, which no mount names.
    pub(crate) unnamed: Vec<bool>,
    clock: Arc<AtomicU64>,
}

impl Machine {
    /// A computer with a new pool, not yet mounted.
    pub(crate) fn new(seed: u64, config: Config) -> Machine {
        let world = SimWorld::new(seed);
        let names = ["a", "b", "c", "d"];
        let disks: Vec<SimDisk> = names[..config.mirrors]
            .iter()
            .map(|name| world.disk(name))
            .collect();
        let backings: Vec<Arc<dyn Backing>> = disks
            .iter()
            .map(|disk| {
                if let Some(capacity) = config.capacity {
                    disk.set_capacity(capacity);
                }
                Arc::new(disk.plug()) as Arc<dyn Backing>
            })
            .collect();
        let options = CreateOptions {
            label: "simulated".to_owned(),
            algorithm: config.algorithm,
            journal_size: config.journal,
            created: 0,
            random: (0..6).map(|number| [number + 1; 16]).collect(),
        };
        create(&backings, &options).expect("a new pool");
        Machine {
            world,
            present: vec![true; disks.len()],
            unnamed: vec![false; disks.len()],
            disks,
            config,
            mounted: None,
            prefer: None,
            remembered: ScrubRun::default(),
            clock: Arc::default(),
        }
    }

    /// What the disks hold.
    pub(crate) fn snapshots(&self) -> Vec<SimSnapshot> {
        self.disks.iter().map(SimDisk::snapshot).collect()
    }

    /// Puts back what disks held.
    pub(crate) fn restore(&self, snapshots: &[SimSnapshot]) {
        for (disk, snapshot) in self.disks.iter().zip(snapshots) {
            disk.restore(snapshot);
        }
    }

    /// Sets the clock, which then stands still.
    pub(crate) fn set_time(&self, number: u64) {
        self.clock.store(number, Ordering::Relaxed);
    }

    fn options(&self) -> OpenOptions {
        let clock = Arc::clone(&self.clock);
        let clock: Clock = Arc::new(move || time_of(clock.load(Ordering::Relaxed)));
        OpenOptions {
            commit: if self.config.always {
                CommitMode::Always
            } else {
                CommitMode::None
            },
            clock,
            parallel: false,
            ledger: false,
            cache: self.config.cache,
            segment_size: self.config.segment,
            index_reserve: self.config.reserve,
            space_kept: Some(self.config.kept),
            prefer: self.prefer.clone(),
            outside: Some(Arc::new(self.outside())),
            ..OpenOptions::default()
        }
    }

    fn named(&self, over: &mut Over<'_>) -> Vec<Named> {
        let mut plug = |disk: &SimDisk| over(Arc::new(disk.plug()));
        self.disks
            .iter()
            .zip(self.present.iter().zip(&self.unnamed))
            .filter(|(_, (_, unnamed))| !*unnamed)
            .map(|(disk, (present, _))| {
                let there = *present && disk.is_attached();
                (disk.label(), there.then(|| plug(disk)))
            })
            .collect()
    }

    /// Mounts; the error says what refused.
    pub(crate) fn mount(&mut self) -> Result<(), String> {
        self.mount_over(&mut |disk| disk)
    }

    /// Mounts with something between the pool and each disk.
    pub(crate) fn mount_over(&mut self, over: &mut Over<'_>) -> Result<(), String> {
        let pool =
            Pool::open(self.named(over), self.options()).map_err(|error| error.to_string())?;
        let pool = Arc::new(pool);
        let options = VfsOptions {
            kernel_keeps_times: self.config.kernel_keeps_times,
            sync_names: false,
            name_hash_bits: self.config.hash_bits,
            ..VfsOptions::default()
        };
        let reclaim = Reclaim::new(Arc::clone(&pool));
        let inspector = Inspector::new(Arc::clone(&pool));
        let resync = Resync::new(Arc::clone(&pool));
        // Only when it is told to.
        let scrub = ScrubOptions {
            interval: None,
            rate: None,
        };
        let scrubber = Scrubber::new(Arc::clone(&pool), scrub);
        pool.scrub().take_up(self.remembered.clone());
        let vfs = Vfs::new(pool, options).map_err(|error| error.to_string())?;
        self.mounted = Some(Mounted {
            vfs,
            reclaim,
            inspector,
            resync,
            scrubber,
        });
        Ok(())
    }

    /// Unmounts in order.
    pub(crate) fn close(&mut self) -> Result<(), String> {
        let mounted = self.mounted.take().expect("mounted");
        mounted.vfs.close().map_err(|error| error.to_string())
    }

    /// The process ends at once.
    pub(crate) fn kill(&mut self) {
        self.mounted = None;
    }

    /// The process ends and the power fails.
    pub(crate) fn crash(&mut self, loss: PowerLoss) {
        self.world.cut_power();
        self.mounted = None;
        self.world.power_cycle(loss);
    }

    pub(crate) fn vfs(&self) -> &Vfs {
        &self.mounted.as_ref().expect("mounted").vfs
    }

    pub(crate) fn pool(&self) -> &Arc<Pool> {
        self.vfs().pool()
    }

    /// What the pool says of a mirror.
    pub(crate) fn status_of(&self, mirror: usize) -> MirrorStatus {
        self.pool().status().mirrors[mirror].clone()
    }

    pub(crate) fn is_online(&self, mirror: usize) -> bool {
        self.status_of(mirror).state == MirrorState::Online
    }

    /// Gives freed space back, all of it.
    pub(crate) fn reclaim(&mut self) -> Result<(), String> {
        let mounted = self.mounted.as_mut().expect("mounted");
        while mounted.reclaim.step(8).map_err(|error| error.to_string())? {}
        Ok(())
    }

    /// Checks what is suspect because of damage beside it.
    pub(crate) fn inspect(&mut self) -> Result<(), String> {
        let mounted = self.mounted.as_mut().expect("mounted");
        while mounted
            .inspector
            .step()
            .map_err(|error| error.to_string())?
        {
            mounted.vfs.pool().repair_step(64);
        }
        Ok(())
    }

    /// Does a piece of bringing a mirror up to date; whether there is more.
    pub(crate) fn resync_step(&mut self) -> Result<bool, String> {
        let mounted = self.mounted.as_mut().expect("mounted");
        let more = mounted.resync.step().map_err(|error| error.to_string())?;
        Ok(more.is_some())
    }

    /// Brings mirrors up to date until nothing is left to do.
    pub(crate) fn resync(&mut self) -> Result<(), String> {
        while self.resync_step()? {}
        Ok(())
    }

    /// Adds a disk to the computer, empty; returns its number.
    pub(crate) fn add_disk(&mut self, name: &str) -> usize {
        let disk = self.world.disk(name);
        if let Some(capacity) = self.config.capacity {
            disk.set_capacity(capacity);
        }
        self.disks.push(disk);
        self.present.push(true);
        self.unnamed.push(false);
        self.disks.len() - 1
    }

    /// Unmounts and mounts again, which lets the pool see disks that were added.
    pub(crate) fn reopen(&mut self) {
        self.close().expect("unmount");
        self.mount().expect("mount");
    }

    /// What a pool needs to take in disks while it is open.
    fn outside(&self) -> Outside {
        let world = self.world.clone();
        let drawn = AtomicU64::new(self.clock.load(Ordering::Relaxed));
        Outside {
            open: Box::new(move |label, _| {
                let disks = world.disks().into_iter();
                let mut found = disks.filter(|disk| disk.label() == label && disk.is_attached());
                let disk = found.next().ok_or(std::io::ErrorKind::NotFound)?;
                Ok(Arc::new(disk.plug()) as Arc<dyn Backing>)
            }),
            random: Box::new(move || {
                let mut bytes = [0xa5; 16];
                let number = drawn.fetch_add(1, Ordering::Relaxed) << 8;
                bytes[..8].copy_from_slice(&number.to_le_bytes());
                bytes
            }),
        }
    }

    /// Tells the scrub something, if it makes sense, and has it do up to `pieces` of its work;
    /// returns whether it has more to do.
    pub(crate) fn scrub(
        &mut self,
        order: Option<ScrubOrder>,
        pieces: u64,
        budget: u32,
    ) -> Result<bool, String> {
        let mounted = self.mounted.as_mut().expect("mounted");
        let pool = Arc::clone(mounted.vfs.pool());
        if let Some(order) = order {
            let _refused = pool.scrub().order(order, pool.now());
        }
        if pieces.is_multiple_of(3) {
            self.remembered = pool.scrub().run();
        }
        for _ in 0..pieces {
            let worked = mounted.scrubber.step(budget);
            if worked.map_err(|error| error.to_string())?.is_none() {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Does the repairs that wait.
    pub(crate) fn repair(&self) {
        while self.pool().repair_step(64) > 0 {}
    }

    /// Copies that a verification finds bad.
    pub(crate) fn bad_copies(&self) -> Result<u64, String> {
        let mut verifier = Verifier::new(Arc::clone(self.pool()));
        while verifier.step().map_err(|error| error.to_string())? {}
        Ok(verifier.report().bad_copies)
    }

    /// Checks everything stored on all mirrors; the findings.
    pub(crate) fn verify(&self) -> Result<Vec<String>, String> {
        let mut verifier = Verifier::new(Arc::clone(self.pool()));
        while verifier.step().map_err(|error| error.to_string())? {}
        self.repair();
        let findings = &verifier.report().findings;
        Ok(findings.iter().map(|found| found.what.clone()).collect())
    }
}
