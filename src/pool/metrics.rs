//! Figures of a pool for monitoring: what is counted beyond the status, and histograms of times.
//!
//! Counting costs a few relaxed additions: nothing here takes a lock while an operation runs.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use super::commit::Pool;

/// Upper bounds of the buckets in microseconds: 10 us to 30 s in thirds of a decade.
const BOUNDS_US: [u64; 14] = [
    10, 30, 100, 300, 1_000, 3_000, 10_000, 30_000, 100_000, 300_000, 1_000_000, 3_000_000,
    10_000_000, 30_000_000,
];

/// How long things took.
#[derive(Debug, Default)]
pub struct Histogram {
    /// The last one is for what took longer than all bounds.
    buckets: [AtomicU64; BOUNDS_US.len() + 1],
    nanoseconds: AtomicU64,
}

/// What a histogram held at one moment.
#[derive(Debug, Clone, PartialEq)]
pub struct Times {
    /// Upper bound in seconds, and how many took that long or shorter.
    pub buckets: Vec<(f64, u64)>,
    /// How many in all.
    pub count: u64,
    /// Seconds in all.
    pub sum: f64,
}

impl Histogram {
    /// Something took this long.
    pub fn record(&self, took: Duration) {
        let microseconds = took.as_micros() as u64;
        let bucket = BOUNDS_US.partition_point(|bound| *bound < microseconds);
        self.buckets[bucket].fetch_add(1, Ordering::Relaxed);
        self.nanoseconds
            .fetch_add(took.as_nanos() as u64, Ordering::Relaxed);
    }

    /// Does something and records how long it took.
    pub fn time<T>(&self, work: impl FnOnce() -> T) -> T {
        let start = Instant::now();
        let result = work();
        self.record(start.elapsed());
        result
    }

    /// What it holds now.
    pub fn times(&self) -> Times {
        let mut count = 0;
        let bounds = BOUNDS_US.iter().zip(&self.buckets);
        let buckets = bounds
            .map(|(bound, bucket)| {
                count += bucket.load(Ordering::Relaxed);
                (*bound as f64 / 1e6, count)
            })
            .collect();
        let longer = self.buckets[BOUNDS_US.len()].load(Ordering::Relaxed);
        Times {
            buckets,
            count: count + longer,
            sum: self.nanoseconds.load(Ordering::Relaxed) as f64 / 1e9,
        }
    }
}

/// What the pool times.
#[derive(Debug, Default)]
pub(super) struct Timed {
    pub(super) syncs: Histogram,
    pub(super) checkpoints: Histogram,
}

/// Damaged blocks of one kind on one mirror since the mount.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DamageCount {
    /// Directory of the mirror.
    pub mirror: String,
    /// What was damaged: see [`crate::ledger::Damaged::kind`].
    pub kind: &'static str,
    /// How: see [`crate::ledger::Damaged::cause`].
    pub cause: &'static str,
    /// What became of it: see [`crate::ledger::Damaged::outcome`].
    pub outcome: &'static str,
    /// How many.
    pub count: u64,
}

/// What monitoring wants to know beyond the status.
#[derive(Debug, Clone, PartialEq)]
pub struct Figures {
    /// Damage since the mount.
    pub damage: Vec<DamageCount>,
    /// Syncs of the journal: each makes all operations before it durable.
    pub syncs: Times,
    /// Checkpoints.
    pub checkpoints: Times,
    /// Rows and ranges of the index asked for.
    pub index_lookups: u64,
    /// Pages of the index read from a mirror, since the cache did not have them.
    pub index_page_reads: u64,
    /// Memory that the cache of the index may take, in bytes.
    pub index_cache: u64,
    /// Rows changed since the last checkpoint, and roughly the bytes that they take in memory.
    pub overlay: (u64, u64),
}

impl Pool {
    /// Figures for monitoring.
    pub fn figures(&self) -> Figures {
        let counts = self.incidents.counts().into_iter();
        let damage = counts.map(|((mirror, kind, cause, outcome), count)| DamageCount {
            mirror: self.name_of(mirror),
            kind,
            cause,
            outcome,
            count,
        });
        let (index_lookups, index_page_reads) = self.index.reads();
        let (rows, bytes) = self.index.overlay_size();
        Figures {
            damage: damage.collect(),
            syncs: self.timed.syncs.times(),
            checkpoints: self.timed.checkpoints.times(),
            index_lookups,
            index_page_reads,
            index_cache: self.options.cache as u64,
            overlay: (rows as u64, bytes as u64),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_counts_in_its_bucket_and_all_above() {
        let histogram = Histogram::default();
        for microseconds in [10, 11, 200, 60_000_000] {
            histogram.record(Duration::from_micros(microseconds));
        }
        let times = histogram.times();
        assert_eq!(times.count, 4);
        assert!((times.sum - 60.000_221).abs() < 1e-9, "{}", times.sum);
        let counts: Vec<u64> = times.buckets.iter().map(|(_, count)| *count).collect();
        assert_eq!(counts[..4], [1, 2, 2, 3]);
        assert_eq!(counts.last(), Some(&3), "the longest is beyond all bounds");
    }
}
