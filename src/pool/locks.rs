//! Locks of inodes: striped, since there may be any number of inodes.
//!
//! Two inodes may share a stripe, and a stripe is not reentrant: whoever needs several inodes asks
//! for all of them at once, and gets their stripes in ascending order, each once. Builds with debug
//! assertions keep a list of what each thread holds, and check this and what hangs on it.

use std::cell::RefCell;

use tracing_mutex::parkinglot::{RwLock, RwLockReadGuard, RwLockWriteGuard};

use crate::format::Ino;

const STRIPES: usize = 1024;

/// All stripes.
#[derive(Debug)]
pub(super) struct InodeLocks {
    stripes: Vec<RwLock<()>>,
}

/// Others may read the inode, nobody may change it.
#[derive(Debug)]
pub struct SharedGuard<'a> {
    _stripe: RwLockReadGuard<'a, ()>,
    _held: Held,
}

/// Nobody else may read or change the inodes.
#[derive(Debug)]
pub struct ExclusiveGuard<'a> {
    _stripes: Vec<RwLockWriteGuard<'a, ()>>,
    _held: Held,
}

thread_local! {
    /// Stripes that this thread holds or is about to take, if anybody looks at that.
    static HELD: RefCell<Vec<usize>> = const { RefCell::new(Vec::new()) };
}

/// An entry of a thread in its list, for as long as it holds stripes.
#[derive(Debug)]
struct Held;

impl Held {
    fn new(stripes: &[usize]) -> Held {
        if cfg!(debug_assertions) {
            HELD.with_borrow_mut(|held| {
                assert!(held.is_empty(), "stripes are taken one after another");
                held.extend_from_slice(stripes);
            });
        }
        Held
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        if cfg!(debug_assertions) {
            HELD.with_borrow_mut(Vec::clear);
        }
    }
}

/// Whether this thread holds the stripe of an inode; only builds with debug assertions know.
pub(super) fn holds(ino: Ino) -> bool {
    HELD.with_borrow(|held| held.contains(&stripe(ino)))
}

/// Whether this thread holds any; only builds with debug assertions know.
pub(super) fn holds_any() -> bool {
    HELD.with_borrow(|held| !held.is_empty())
}

const fn stripe(ino: Ino) -> usize {
    // Fibonacci hashing: neighbours go to different stripes.
    (ino.0.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 54) as usize % STRIPES
}

impl Default for InodeLocks {
    fn default() -> InodeLocks {
        InodeLocks {
            stripes: (0..STRIPES).map(|_| RwLock::default()).collect(),
        }
    }
}

impl InodeLocks {
    pub(super) fn shared(&self, ino: Ino) -> SharedGuard<'_> {
        let _held = Held::new(&[stripe(ino)]);
        SharedGuard {
            _stripe: self.stripes[stripe(ino)].read(),
            _held,
        }
    }

    pub(super) fn exclusive(&self, inos: &[Ino]) -> ExclusiveGuard<'_> {
        let mut stripes: Vec<usize> = inos.iter().map(|ino| stripe(*ino)).collect();
        stripes.sort_unstable();
        stripes.dedup();
        let _held = Held::new(&stripes);
        let _stripes = stripes
            .into_iter()
            .map(|stripe| self.stripes[stripe].write())
            .collect();
        ExclusiveGuard { _stripes, _held }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_inodes_on_one_stripe_can_be_locked_together() {
        let locks = InodeLocks::default();
        let one = Ino(1);
        let twin = (2..)
            .map(Ino)
            .find(|ino| stripe(*ino) == stripe(one))
            .unwrap();
        let both = locks.exclusive(&[twin, one, Ino(7), one]);
        assert!(holds(one) && holds(twin) && holds(Ino(7)) && holds_any());
        drop(both);
        assert!(!holds(one) && !holds_any());
        let _one = locks.shared(one);
        assert!(holds(one) && !holds(Ino(7)));
    }

    #[test]
    #[should_panic = "one after another"]
    fn stripes_are_not_taken_one_after_another() {
        let locks = InodeLocks::default();
        let _one = locks.exclusive(&[Ino(1)]);
        let _other = locks.exclusive(&[Ino(2)]);
    }
}
