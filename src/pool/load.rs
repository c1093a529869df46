//! How busy applications keep the pool: what background work gives way to.
//!
//! Two counters that every request adds to when it ends, with no lock: cheap enough for each read.
//! What they mean is left to `services::pace`.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Requests of applications since the pool was opened.
#[derive(Debug, Default)]
pub struct Load {
    requests: AtomicU64,
    busy_ns: AtomicU64,
}

/// A request that is being served; counted when it is dropped.
#[derive(Debug)]
pub struct Serving<'a> {
    load: &'a Load,
    since: Instant,
}

impl Load {
    /// A request begins.
    pub fn serve(&self) -> Serving<'_> {
        Serving {
            load: self,
            since: Instant::now(),
        }
    }

    /// Requests served.
    pub fn requests(&self) -> u64 {
        self.requests.load(Ordering::Relaxed)
    }

    /// Time spent serving them, all together: requests that were served side by side add up.
    pub fn busy(&self) -> Duration {
        Duration::from_nanos(self.busy_ns.load(Ordering::Relaxed))
    }
}

impl Drop for Serving<'_> {
    fn drop(&mut self) {
        let took = u64::try_from(self.since.elapsed().as_nanos()).unwrap_or(u64::MAX);
        self.load.requests.fetch_add(1, Ordering::Relaxed);
        self.load.busy_ns.fetch_add(took, Ordering::Relaxed);
    }
}
