//! Reads that are given up on at a deadline, though the system call goes on.
//!
//! A pread(2) on a disk or server that does not answer cannot be left by the thread that is in it.
//! So the caller itself does only what cannot wait, a read of the page cache (preadv2(2) with
//! RWF_NOWAIT, straight into its buffer), and a thread of this file does the rest, while the
//! caller waits for that thread or for the deadline:
//! - on a filesystem whose page cache can be asked, the thread brings the range into it, by
//!   sendfile(2) to /dev/null, which waits for the pages and copies nothing; then the caller reads
//!   the cache again;
//! - elsewhere, and if memory is so short that the cache has lost it again, the thread reads into
//!   a buffer of its own, which the caller copies;
//! - opening a file that is not open, and asking whether it was deleted, belong to it;
//! - so does asking how much room the filesystem has, which is answered with what is known if the
//!   thread takes long.
//!
//! Invariants: no thread ever holds the caller's buffer, so nothing can write to it after the call;
//! no thread waits while it holds a lock; a read that was given up on is counted ([`Readers::
//! stalled`]) until its system call has returned, and its thread takes no other meanwhile.
//!
//! Why so. Each way was measured against plain pread(2), in microseconds a read, on ext4 and btrfs
//! on loop devices with direct I/O, median of 13 rounds:
//!
//! | way | 4 KiB cached | 4 KiB cold, random | 1 MiB cold, sequential |
//! |---|---|---|---|
//! | plain pread | 0.32, 0.32 | 27, 35 | 304, 505 |
//! | NOWAIT, then io_uring | 0.38, 0.35 | 30, 36 | 309, 451 |
//! | NOWAIT, then io_uring with IOSQE_ASYNC | 0.38, 0.35 | 35, 40 | 330, 383 |
//! | NOWAIT, then a thread that reads and hands a buffer over | 0.40, 0.37 | 36, 42 | 328, 370 |
//! | NOWAIT, then a thread that fills the cache (this) | 0.37, 0.37 | 36, 42 | 300, 323 |
//!
//! io_uring submits from the caller's thread and may wait there for metadata or for room in the
//! device's queue, just when the device is dead. With IOSQE_ASYNC it does not, and then costs what
//! a thread costs, while threads work wherever mendfs does and can also open files.

use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::statvfs::fstatvfs;
use parking_lot::Condvar;
use tracing_mutex::parkinglot::Mutex;

use super::super::{FileName, Space};
use super::handle::{Handle, Waits};
use super::tree::Tree;

/// Most threads that one mirror may have in reads.
const MAX_THREADS: usize = 32;
/// Longest deadline that is told from none.
const LONGEST: Duration = Duration::from_secs(1 << 31);
/// A thread that was not needed for so long ends.
const IDLE: Duration = Duration::from_secs(20);
/// Most bytes that a thread reads into a buffer of its own at once.
const MAX_BUFFER: usize = 1 << 20;
/// How long to wait for the filesystem to say how much room it has, when it has said so before.
const ROOM_PATIENCE: Duration = Duration::from_millis(20);
/// Buffers kept for the next reads.
const MAX_SPARE: usize = 4;

/// The reads of one mirror that have a deadline.
#[derive(Debug)]
pub(super) struct Readers {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    tree: Arc<Tree>,
    queue: parking_lot::Mutex<Queue>,
    /// A job was queued, or the queue was closed.
    work: Condvar,
    /// Reads that were given up on and are still under way.
    overdue: AtomicUsize,
    spare: Mutex<Vec<Vec<u8>>>,
    /// Room of the filesystem as it said last.
    room: Mutex<Option<Space>>,
    /// /dev/null, where it can be opened.
    sink: Option<File>,
}

#[derive(Debug, Default)]
struct Queue {
    jobs: VecDeque<Arc<Job>>,
    threads: usize,
    idle: usize,
    closed: bool,
}

/// What a thread is to do.
#[derive(Debug, Clone, Copy)]
enum Task {
    /// Open the file, and bring the range into the page cache if it can be asked.
    Fill(Range),
    /// Read the range.
    Read(Range),
    /// Ask the filesystem how much room it has.
    Room,
}

/// A part of a file.
#[derive(Debug, Clone, Copy)]
struct Range {
    file: FileName,
    offset: u64,
    len: usize,
}

/// What a thread did.
#[derive(Debug)]
enum Done {
    /// The file is open and the page cache has had the range.
    Filled(Arc<Handle>),
    /// The bytes that there are, at the front of a buffer that may be longer.
    Bytes(Vec<u8>, usize),
    /// What room there is.
    Room(Space),
}

#[derive(Debug)]
enum State {
    Waiting,
    Done(io::Result<Done>),
    /// Nobody waits for it any more.
    GivenUp,
}

/// One request to a thread.
#[derive(Debug)]
struct Job {
    task: Task,
    state: parking_lot::Mutex<State>,
    changed: Condvar,
}

impl Readers {
    pub(super) fn new(tree: Arc<Tree>) -> Readers {
        let shared = Shared {
            tree,
            queue: parking_lot::Mutex::default(),
            work: Condvar::new(),
            overdue: AtomicUsize::new(0),
            spare: Mutex::default(),
            room: Mutex::default(),
            sink: File::options().write(true).open("/dev/null").ok(),
        };
        Readers {
            shared: Arc::new(shared),
        }
    }

    /// Whether some read was given up on and is still under way.
    pub(super) fn stalled(&self) -> bool {
        self.shared.overdue.load(Ordering::Acquire) > 0
    }

    /// As pread(2) up to the end of the buffer or file, but fails with
    /// [`io::ErrorKind::TimedOut`] after `deadline`.
    pub(super) fn read(
        &self,
        file: FileName,
        offset: u64,
        buf: &mut [u8],
        deadline: Duration,
    ) -> io::Result<usize> {
        let mut done = 0;
        if let Some(handle) = self.shared.tree.opened_nearby(file)
            && read_at_once(&handle, offset, buf, &mut done)?
        {
            return Ok(done);
        }
        let until = Instant::now() + deadline.min(LONGEST);
        let mut fill = true;
        loop {
            let rest = &mut buf[done..];
            let range = Range {
                file,
                offset: offset + done as u64,
                len: rest.len(),
            };
            let task = if fill { Task::Fill } else { Task::Read };
            match self.ask(task(range), until)? {
                Done::Filled(handle) => {
                    if read_at_once(&handle, offset, buf, &mut done)? {
                        return Ok(done);
                    }
                    // The cache has lost it again: that must not go on for ever.
                    fill = false;
                }
                Done::Bytes(bytes, got) => {
                    let asked = rest.len().min(MAX_BUFFER);
                    rest[..got].copy_from_slice(&bytes[..got]);
                    done += got;
                    self.shared.keep(bytes);
                    if got < asked || done == buf.len() {
                        return Ok(done);
                    }
                }
                Done::Room(_) => return Err(io::Error::other("room is not what was asked for")),
            }
        }
    }

    /// Room of the filesystem, as fstatvfs(3) has it; if that takes long, as it had it last.
    pub(super) fn room(&self) -> io::Result<Space> {
        let known = *self.shared.room.lock();
        match known {
            None => self.shared.ask_room(),
            Some(known) if self.stalled() => Ok(known),
            Some(known) => match self.ask(Task::Room, Instant::now() + ROOM_PATIENCE) {
                Ok(Done::Room(space)) => Ok(space),
                Ok(_) => Ok(known),
                Err(error) if error.kind() == io::ErrorKind::TimedOut => Ok(known),
                Err(error) => Err(error),
            },
        }
    }

    /// Has a thread do it, and waits for that.
    fn ask(&self, task: Task, until: Instant) -> io::Result<Done> {
        let job = Arc::new(Job {
            task,
            state: parking_lot::Mutex::new(State::Waiting),
            changed: Condvar::new(),
        });
        if !Shared::submit(&self.shared, &job) {
            return self.shared.perform(&job);
        }
        let mut state = job.state.lock();
        while matches!(*state, State::Waiting) {
            if job.changed.wait_until(&mut state, until).timed_out() {
                break;
            }
        }
        match std::mem::replace(&mut *state, State::GivenUp) {
            State::Done(result) => result,
            State::Waiting | State::GivenUp => {
                // Counted before the thread can see that nobody waits, and uncount it.
                self.shared.overdue.fetch_add(1, Ordering::AcqRel);
                drop(state);
                self.shared.withdraw(&job);
                Err(io::ErrorKind::TimedOut.into())
            }
        }
    }
}

impl Drop for Readers {
    /// Threads that wait for work end now, those in a read when that is over: nobody waits.
    fn drop(&mut self) {
        self.shared.queue.lock().closed = true;
        self.shared.work.notify_all();
    }
}

impl Shared {
    /// Queues a job and sees that there is a thread for it. False if none can be had at all, and
    /// the caller has to do without a deadline.
    fn submit(shared: &Arc<Shared>, job: &Arc<Job>) -> bool {
        let mut queue = shared.queue.lock();
        queue.jobs.push_back(Arc::clone(job));
        if queue.jobs.len() <= queue.idle {
            drop(queue);
            shared.work.notify_one();
            return true;
        }
        if queue.threads == MAX_THREADS {
            return true;
        }
        queue.threads += 1;
        drop(queue);
        let own = Arc::clone(shared);
        let thread = thread::Builder::new().name("mendfs-read".into());
        let Err(error) = thread.spawn(move || own.serve()) else {
            return true;
        };
        log::debug!("no thread for a read: {error}");
        let mut queue = shared.queue.lock();
        queue.threads -= 1;
        if queue.threads > 0 {
            return true;
        }
        queue.jobs.retain(|queued| !Arc::ptr_eq(queued, job));
        false
    }

    /// Takes a job that was given up on out of the queue, if no thread has it yet.
    fn withdraw(&self, job: &Arc<Job>) {
        let mut queue = self.queue.lock();
        let before = queue.jobs.len();
        queue.jobs.retain(|queued| !Arc::ptr_eq(queued, job));
        if queue.jobs.len() < before {
            self.overdue.fetch_sub(1, Ordering::AcqRel);
        }
    }

    /// What each thread does.
    fn serve(&self) {
        while let Some(job) = self.next() {
            let result = self.perform(&job);
            let mut state = job.state.lock();
            if matches!(*state, State::GivenUp) {
                self.overdue.fetch_sub(1, Ordering::AcqRel);
            } else {
                *state = State::Done(result);
                job.changed.notify_one();
            }
        }
    }

    /// The next job; none if the thread is not needed any more.
    fn next(&self) -> Option<Arc<Job>> {
        let mut queue = self.queue.lock();
        loop {
            if let Some(job) = queue.jobs.pop_front() {
                return Some(job);
            }
            if queue.closed {
                break;
            }
            queue.idle += 1;
            let waited = self.work.wait_for(&mut queue, IDLE);
            queue.idle -= 1;
            if waited.timed_out() && queue.jobs.is_empty() {
                break;
            }
        }
        queue.threads -= 1;
        None
    }

    fn perform(&self, job: &Job) -> io::Result<Done> {
        let (range, fill) = match job.task {
            Task::Fill(range) => (range, true),
            Task::Read(range) => (range, false),
            Task::Room => return self.ask_room().map(Done::Room),
        };
        let handle = self.tree.handle(range.file)?;
        if fill {
            let filled = match (handle.waits, &self.sink) {
                (Waits::Nothing, _) => true,
                (Waits::Medium, Some(sink)) => handle.fill_cache(sink, range.offset, range.len)?,
                (Waits::Medium, None) | (Waits::Anything, _) => false,
            };
            if filled {
                return Ok(Done::Filled(handle));
            }
        }
        let mut bytes = self.spare.lock().pop().unwrap_or_default();
        let len = range.len.min(MAX_BUFFER);
        if bytes.len() < len {
            bytes.resize(len, 0);
        }
        let got = handle.read_at(range.offset, &mut bytes[..len])?;
        Ok(Done::Bytes(bytes, got))
    }

    fn ask_room(&self) -> io::Result<Space> {
        let stat = fstatvfs(&self.tree.root)?;
        let unit = stat.fragment_size();
        let space = Space {
            total: stat.blocks().saturating_mul(unit),
            available: stat.blocks_available().saturating_mul(unit),
        };
        *self.room.lock() = Some(space);
        Ok(space)
    }

    fn keep(&self, bytes: Vec<u8>) {
        let mut spare = self.spare.lock();
        if spare.len() < MAX_SPARE {
            spare.push(bytes);
        }
    }
}

/// Reads on from `buf[*done..]` as far as nothing has to be waited for, and says whether that was
/// all.
fn read_at_once(
    handle: &Handle,
    offset: u64,
    buf: &mut [u8],
    done: &mut usize,
) -> io::Result<bool> {
    let (at, rest) = (offset + *done as u64, &mut buf[*done..]);
    match handle.waits {
        Waits::Medium => {
            let Some(cached) = handle.read_cached(at, rest)? else {
                return Ok(false);
            };
            *done += cached.len;
            Ok(cached.complete)
        }
        Waits::Nothing => {
            if handle.is_gone()? {
                return Ok(false);
            }
            *done += handle.read_at(at, rest)?;
            Ok(true)
        }
        Waits::Anything => Ok(false),
    }
}
