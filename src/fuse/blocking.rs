//! Threads for requests that wait for a disk, so that the event loops never do.
//!
//! Threads are started when work finds none idle, up to a limit, and end after a while without
//! work. Work beyond the limit queues: concurrent syncs share one sync below anyway. Dropping the
//! pool runs what is queued to its end and joins every thread, so that no request outlives the
//! session it came from.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::thread::{Builder, JoinHandle};
use std::time::Duration;

use parking_lot::{Condvar, Mutex};

/// How long a thread without work stays.
const IDLE: Duration = Duration::from_secs(30);

type Job = Box<dyn FnOnce() + Send>;

/// A bounded pool of threads, grown on demand.
pub(super) struct Blocking {
    shared: Arc<Shared>,
    limit: usize,
}

struct Shared {
    state: Mutex<State>,
    wake: Condvar,
}

#[derive(Default)]
struct State {
    queue: VecDeque<Job>,
    threads: Vec<JoinHandle<()>>,
    running: usize,
    idle: usize,
    closed: bool,
}

impl Blocking {
    /// A pool of at most `limit` threads; none is started yet.
    pub(super) fn new(limit: usize) -> Blocking {
        let shared = Shared {
            state: Mutex::default(),
            wake: Condvar::new(),
        };
        Blocking {
            shared: Arc::new(shared),
            limit,
        }
    }

    /// Runs `job` on a thread of the pool, or here if no thread can be had.
    pub(super) fn run(&self, job: impl FnOnce() + Send + 'static) {
        let mut state = self.shared.state.lock();
        state.queue.push_back(Box::new(job));
        if state.idle >= state.queue.len() {
            self.shared.wake.notify_one();
            return;
        }
        if state.running < self.limit && self.start_thread(&mut state) {
            return;
        }
        // Every thread is busy and will come to it; only without any thread is it ours to do.
        if state.running == 0
            && let Some(job) = state.queue.pop_front()
        {
            drop(state);
            job();
        }
    }

    fn start_thread(&self, state: &mut State) -> bool {
        let shared = Arc::clone(&self.shared);
        let thread = Builder::new()
            .name("mendfs-sync".to_owned())
            .spawn(move || shared.work());
        match thread {
            Ok(thread) => {
                state.threads.retain(|thread| !thread.is_finished());
                state.threads.push(thread);
                state.running += 1;
                true
            }
            Err(error) => {
                log::warn!("no thread for a sync could be started: {error}");
                false
            }
        }
    }
}

impl Drop for Blocking {
    fn drop(&mut self) {
        let threads = {
            let mut state = self.shared.state.lock();
            state.closed = true;
            std::mem::take(&mut state.threads)
        };
        self.shared.wake.notify_all();
        for thread in threads {
            // A job's panic was logged where it happened and does not end its thread.
            let _ = thread.join();
        }
    }
}

impl Shared {
    fn work(&self) {
        let mut state = self.state.lock();
        loop {
            if let Some(job) = state.queue.pop_front() {
                drop(state);
                // The thread must outlive a panic, or the count of threads would be wrong for ever.
                let _ = catch_unwind(AssertUnwindSafe(job));
                state = self.state.lock();
            } else if state.closed {
                break;
            } else {
                state.idle += 1;
                let waited = self.wake.wait_for(&mut state, IDLE);
                state.idle -= 1;
                if waited.timed_out() && state.queue.is_empty() {
                    break;
                }
            }
        }
        state.running -= 1;
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Barrier;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    #[test]
    fn jobs_run_at_the_same_time_up_to_the_limit() {
        let pool = Blocking::new(4);
        let barrier = Arc::new(Barrier::new(5));
        for _ in 0..4 {
            let barrier = Arc::clone(&barrier);
            pool.run(move || {
                barrier.wait();
            });
        }
        barrier.wait();
    }

    #[test]
    fn no_more_threads_than_the_limit_are_started() {
        let pool = Blocking::new(2);
        let running = Arc::new(AtomicUsize::new(0));
        let most = Arc::new(AtomicUsize::new(0));
        for _ in 0..50 {
            let (running, most) = (Arc::clone(&running), Arc::clone(&most));
            pool.run(move || {
                most.fetch_max(running.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                std::thread::yield_now();
                running.fetch_sub(1, Ordering::SeqCst);
            });
        }
        drop(pool);
        assert!(most.load(Ordering::SeqCst) <= 2);
    }

    #[test]
    fn dropping_the_pool_finishes_what_is_queued() {
        let done = Arc::new(AtomicUsize::new(0));
        let pool = Blocking::new(1);
        for _ in 0..100 {
            let done = Arc::clone(&done);
            pool.run(move || {
                done.fetch_add(1, Ordering::SeqCst);
            });
        }
        drop(pool);
        assert_eq!(done.load(Ordering::SeqCst), 100);
    }

    #[test]
    fn a_panic_in_a_job_costs_no_thread() {
        let pool = Blocking::new(1);
        pool.run(|| panic!("on purpose"));
        let done = Arc::new(Barrier::new(2));
        let other = Arc::clone(&done);
        pool.run(move || {
            other.wait();
        });
        done.wait();
    }
}
