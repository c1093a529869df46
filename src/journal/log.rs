//! Appending to the journal.
//!
//! `append` only encodes into a buffer, so it can be called under a lock. `write_out` writes what
//! is buffered, `sync` makes it durable; one of either runs at a time. The bytes between tail and
//! head are what replay needs; the pool sees to it that they never exceed the size.

use std::sync::Arc;

use tracing_mutex::parkinglot::Mutex;

use crate::backing::FileName;
use crate::format::{Framing, JournalRef, Lsn, Record};
use crate::mirrors::{Copied, MirrorError, MirrorSet, Target};

/// Where a record went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Appended {
    /// Its LSN.
    pub lsn: Lsn,
    /// Position just after it.
    pub end: u64,
}

#[derive(Debug)]
struct State {
    /// Records not yet written out.
    buffer: Vec<u8>,
    /// Position of the first byte in `buffer`.
    buffer_at: u64,
    next: Lsn,
    tail: u64,
    /// LSN up to which everything is durable.
    synced: Lsn,
    /// LSN that the last `Durable` record named.
    marked: Lsn,
}

impl State {
    const fn head(&self) -> u64 {
        self.buffer_at + self.buffer.len() as u64
    }
}

/// The journal of an open pool.
#[derive(Debug)]
pub struct Journal {
    mirrors: Arc<MirrorSet>,
    size: u64,
    framing: Framing,
    state: Mutex<State>,
    /// Held while bytes go to the mirrors, so that batches arrive in order. A batch that no mirror
    /// took is a gap that nothing may follow: the error stays here.
    writing: Mutex<Result<(), MirrorError>>,
}

/// Where a journal goes on.
#[derive(Debug, Clone, Copy)]
pub struct JournalConfig {
    /// What is needed from it at the next mount.
    pub tail: JournalRef,
    /// What its records have in common.
    pub framing: Framing,
    /// Position for the next record.
    pub head: u64,
    /// LSN of the next record.
    pub next: Lsn,
}

impl Journal {
    /// A journal that goes on as given.
    pub fn new(mirrors: Arc<MirrorSet>, config: JournalConfig) -> Journal {
        let before = Lsn(config.next.0 - 1);
        Journal {
            mirrors,
            size: config.tail.size,
            framing: config.framing,
            state: Mutex::new(State {
                buffer: Vec::new(),
                buffer_at: config.head,
                next: config.next,
                tail: config.tail.tail,
                synced: before,
                marked: before,
            }),
            writing: Mutex::new(Ok(())),
        }
    }

    /// Encodes a record into the buffer. No I/O.
    pub fn append(&self, record: &Record) -> Appended {
        let mut state = self.state.lock();
        let lsn = state.next;
        record.append(self.framing, lsn, &mut state.buffer);
        state.next = lsn.next();
        Appended {
            lsn,
            end: state.head(),
        }
    }

    /// LSN of the last record appended.
    pub fn last(&self) -> Lsn {
        Lsn(self.state.lock().next.0 - 1)
    }

    /// Position and LSN of the next record.
    pub fn head(&self) -> (u64, Lsn) {
        let state = self.state.lock();
        (state.head(), state.next)
    }

    /// LSN up to which everything is durable on all online mirrors.
    pub fn synced(&self) -> Lsn {
        self.state.lock().synced
    }

    /// Size in bytes.
    pub const fn size(&self) -> u64 {
        self.size
    }

    /// Run number of the records that are appended.
    pub const fn run(&self) -> u32 {
        self.framing.run
    }

    /// Bytes between tail and head.
    pub fn used(&self) -> u64 {
        let state = self.state.lock();
        state.head() - state.tail
    }

    /// Bytes appended but not yet written out.
    pub fn buffered(&self) -> usize {
        self.state.lock().buffer.len()
    }

    /// Lets go of everything before position `tail`.
    pub fn set_tail(&self, tail: u64) {
        let mut state = self.state.lock();
        assert!(
            tail >= state.tail && tail <= state.head(),
            "the journal's tail only moves on"
        );
        state.tail = tail;
    }

    /// Writes the buffered records to all mirrors, without a sync, unless somebody is at it.
    ///
    /// # Errors
    /// [`MirrorError`]; what was buffered is then lost to the journal, and the pool must stop.
    pub fn write_out(&self) -> Result<(), MirrorError> {
        // Whoever is at it takes what is buffered by then along with the next batch; waiting here
        // would have operations wait for a sync that nobody asked them to make.
        let Some(mut writing) = self.writing.try_lock() else {
            return Ok(());
        };
        writing.clone()?;
        *writing = self.write_buffer();
        writing.clone()
    }

    /// Writes the buffered records and makes them durable, and with them all records before.
    ///
    /// That alone does not make the operations durable: their data may still be on its way to the
    /// segments. The pool says so with [`Journal::set_synced`].
    ///
    /// # Errors
    /// As [`Journal::write_out`].
    pub fn sync(&self) -> Result<(), MirrorError> {
        let mut writing = self.writing.lock();
        writing.clone()?;
        *writing = self
            .write_buffer()
            .and_then(|()| self.mirrors.sync(&[FileName::Journal], &[]));
        writing.clone()
    }

    /// Makes a part of the journal of the target what it is on the others. Batches wait meanwhile.
    ///
    /// # Errors
    /// [`MirrorError::Target`] if the target failed.
    pub fn copy(&self, offset: u64, len: usize, target: &Target) -> Result<Copied, MirrorError> {
        let _writing = self.writing.lock();
        let mut bytes = vec![0; len];
        self.mirrors.read_raw(FileName::Journal, offset, &mut bytes);
        let copied = target.match_bytes(FileName::Journal, offset, &bytes);
        self.mirrors.target_result(target, copied)
    }

    /// Everything up to `lsn` is durable on all online mirrors, data included.
    pub fn set_synced(&self, lsn: Lsn) {
        let mut state = self.state.lock();
        state.synced = state.synced.max(lsn);
    }

    fn write_buffer(&self) -> Result<(), MirrorError> {
        let (buffer, at) = {
            let mut state = self.state.lock();
            let (head, used) = (state.head(), state.head() - state.tail);
            if used > self.size {
                let (operation, file) = ("find room in", FileName::Journal);
                let cause = format!("{used} of {} bytes are needed", self.size);
                return Err(MirrorError::AllFailed {
                    operation,
                    file,
                    cause,
                });
            }
            let buffer = std::mem::take(&mut state.buffer);
            let at = std::mem::replace(&mut state.buffer_at, head);
            (buffer, at)
        };
        if !buffer.is_empty() {
            let offset = at % self.size;
            let first = buffer.len().min((self.size - offset) as usize);
            let (end, wrapped) = buffer.split_at(first);
            self.mirrors.write(FileName::Journal, offset, &[end])?;
            if !wrapped.is_empty() {
                self.mirrors.write(FileName::Journal, 0, &[wrapped])?;
            }
        }
        let mut state = self.state.lock();
        if state.buffer.is_empty() {
            // Keep the allocation for the next batch.
            state.buffer = buffer;
            state.buffer.clear();
            state.buffer.shrink_to(1 << 20);
        }
        Ok(())
    }

    /// Appends a `Durable` record if more became durable since the last one. It goes out with the
    /// next batch: its absence only means that replay verifies more.
    pub fn mark_durable(&self) {
        let synced = {
            let mut state = self.state.lock();
            if state.marked >= state.synced {
                return;
            }
            state.marked = state.synced;
            state.synced
        };
        self.append(&Record::Durable(synced));
    }
}
