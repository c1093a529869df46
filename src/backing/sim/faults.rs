//! What can go wrong with a simulated disk, as data: rates, one-shot faults and latencies.
//!
//! Decides whether a fault strikes; what it then does to the bytes is told in `node` and `disk`.

use std::time::Duration;

use super::super::FileName;
use super::rng::SimRng;

/// The kinds of files that faults can be limited to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum FileClass {
    /// The text for people.
    Readme,
    /// The superblock.
    Superblock,
    /// The journal.
    Journal,
    /// The index.
    Index,
    /// The page sums.
    Sums,
    /// All segments.
    Segment,
}

impl From<FileName> for FileClass {
    fn from(file: FileName) -> FileClass {
        match file {
            FileName::Readme => FileClass::Readme,
            FileName::Superblock => FileClass::Superblock,
            FileName::Journal => FileClass::Journal,
            FileName::Index => FileClass::Index,
            FileName::Sums => FileClass::Sums,
            FileName::Segment(_) => FileClass::Segment,
        }
    }
}

/// Something that goes wrong in one operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Fault {
    /// A read fails with EIO.
    ReadError,
    /// A write fails with EIO after a part of it.
    WriteError,
    /// A sync fails with EIO; each unsynced sector reached the medium or is lost.
    SyncError,
    /// A read returns fewer bytes than there are.
    ShortRead,
    /// A write is acknowledged and never reaches the medium; reads return the old bytes.
    LostWrite,
    /// A write goes to another place of the same file, whole sectors away.
    MisdirectedWrite,
    /// One bit of the durable bytes about to be read flips, for good.
    BitRot,
    /// A read with a deadline takes longer than that. One without a deadline is not struck.
    SlowRead,
    /// Not an error: some unsynced sectors of the file reach the medium early.
    Writeback,
}

/// A fault that strikes at random.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FaultRate {
    /// What goes wrong.
    pub fault: Fault,
    /// Where; everywhere if none.
    pub class: Option<FileClass>,
    /// In how many of a million operations.
    pub per_million: u32,
}

/// A fault that strikes once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FaultOnce {
    /// What goes wrong.
    pub fault: Fault,
    /// Where; everywhere if none.
    pub class: Option<FileClass>,
    /// How many operations that it could strike go by first.
    pub skip: u64,
}

/// Simulated time that operations take. No test sleeps for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Latency {
    /// Of each read.
    pub read: Duration,
    /// Of each write and every other change.
    pub write: Duration,
    /// Of each sync.
    pub sync: Duration,
}

/// The faults of one disk.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Faults {
    /// Those that strike at random.
    pub rates: Vec<FaultRate>,
    /// Those that strike once; struck ones are taken out.
    pub once: Vec<FaultOnce>,
    /// How slow the disk is.
    pub latency: Latency,
}

impl Faults {
    /// A disk without fault.
    pub fn none() -> Faults {
        Faults::default()
    }

    /// Adds a fault that strikes in `per_million` of a million operations.
    #[must_use]
    pub fn rate(
        mut self,
        fault: Fault,
        class: impl Into<Option<FileClass>>,
        per_million: u32,
    ) -> Self {
        self.rates.push(FaultRate {
            fault,
            class: class.into(),
            per_million,
        });
        self
    }

    /// Adds a fault that strikes once, after `skip` operations that it could have struck.
    #[must_use]
    pub fn once(mut self, fault: Fault, class: impl Into<Option<FileClass>>, skip: u64) -> Self {
        self.once.push(FaultOnce {
            fault,
            class: class.into(),
            skip,
        });
        self
    }

    /// Sets how slow the disk is.
    #[must_use]
    pub const fn latency(mut self, latency: Latency) -> Self {
        self.latency = latency;
        self
    }

    /// Whether the fault strikes this operation, which it could.
    pub(super) fn strikes(&mut self, fault: Fault, file: FileName, rng: &mut SimRng) -> bool {
        let here = FileClass::from(file);
        let fits = |what: Fault, class: Option<FileClass>| {
            what == fault && class.is_none_or(|class| class == here)
        };
        let mut struck = false;
        self.once.retain_mut(|once| {
            if !fits(once.fault, once.class) {
                return true;
            }
            let now = once.skip == 0;
            once.skip = once.skip.saturating_sub(1);
            struck |= now;
            !now
        });
        for rate in self
            .rates
            .iter()
            .filter(|rate| fits(rate.fault, rate.class))
        {
            struck |= rng.chance(rate.per_million);
        }
        struck
    }
}
