//! How many references to each inode number the kernel holds, and which of those inodes have lost
//! their last name.
//!
//! Invariant: for an unlinked inode exactly one party deletes it. Unlink asks
//! [`Refs::note_unlinked`] while it holds the inode's stripe: either nobody refers to the inode and
//! unlink deletes it in its own transaction, or the mark stays here and the forget that takes the
//! last reference learns that it has to. A reference is taken only under the namespace lock, so
//! none appears between the question and the commit. A mark without a commit (the pool failed) does
//! no harm: whoever follows it looks at the inode's link count first.

use std::collections::HashMap;

use tracing_mutex::parkinglot::Mutex;

use crate::format::Ino;

const SHARDS: u64 = 64;

#[derive(Debug, Default)]
struct Entry {
    count: u64,
    unlinked: bool,
}

/// The reference counts, spread over shards so that lookups do not wait for one another.
#[derive(Debug)]
pub(super) struct Refs {
    shards: Vec<Mutex<HashMap<Ino, Entry>>>,
}

impl Refs {
    pub(super) fn new() -> Refs {
        Refs {
            shards: (0..SHARDS).map(|_| Mutex::default()).collect(),
        }
    }

    fn shard(&self, ino: Ino) -> &Mutex<HashMap<Ino, Entry>> {
        // The remainder is below the number of shards.
        &self.shards[(ino.0 % SHARDS) as usize]
    }

    /// Counts one reference up.
    pub(super) fn acquire(&self, ino: Ino) {
        self.shard(ino).lock().entry(ino).or_default().count += 1;
    }

    /// Counts references down. True if that was the last one to an inode without a name.
    #[must_use]
    pub(super) fn release(&self, ino: Ino, count: u64) -> bool {
        let mut shard = self.shard(ino).lock();
        let Some(entry) = shard.get_mut(&ino) else {
            return false;
        };
        entry.count = entry.count.saturating_sub(count);
        if entry.count > 0 {
            return false;
        }
        let unlinked = entry.unlinked;
        shard.remove(&ino);
        unlinked
    }

    /// Marks the inode as one without a name, if anybody refers to it, and says whether.
    pub(super) fn note_unlinked(&self, ino: Ino) -> bool {
        match self.shard(ino).lock().get_mut(&ino) {
            Some(entry) => {
                entry.unlinked = true;
                true
            }
            None => false,
        }
    }

    /// Forgets everything.
    pub(super) fn clear(&self) {
        self.shards.iter().for_each(|shard| shard.lock().clear());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_last_reference_of_an_unlinked_inode_asks_for_deletion() {
        let refs = Refs::new();
        refs.acquire(Ino(7));
        refs.acquire(Ino(7));
        assert!(refs.note_unlinked(Ino(7)));
        assert!(!refs.release(Ino(7), 1));
        assert!(refs.release(Ino(7), 1));
        assert!(!refs.release(Ino(7), 1), "a forget too many is ignored");
        assert!(!refs.note_unlinked(Ino(7)));
        refs.acquire(Ino(8));
        assert!(!refs.release(Ino(8), 5));
    }
}
