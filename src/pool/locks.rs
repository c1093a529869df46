//! Locks of inodes: striped, since there may be any number of inodes.
//!
//! Two inodes may share a stripe, and a stripe is not reentrant: whoever needs several inodes asks
//! for all of them at once, and gets their stripes in ascending order, each once.

use parking_lot::{RwLock, RwLockReadGuard, RwLockWriteGuard};

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
}

/// Nobody else may read or change the inodes.
#[derive(Debug)]
pub struct ExclusiveGuard<'a> {
    _stripes: Vec<RwLockWriteGuard<'a, ()>>,
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
        SharedGuard {
            _stripe: self.stripes[stripe(ino)].read(),
        }
    }

    pub(super) fn exclusive(&self, inos: &[Ino]) -> ExclusiveGuard<'_> {
        let mut stripes: Vec<usize> = inos.iter().map(|ino| stripe(*ino)).collect();
        stripes.sort_unstable();
        stripes.dedup();
        let stripes = stripes
            .into_iter()
            .map(|stripe| self.stripes[stripe].write())
            .collect();
        ExclusiveGuard { _stripes: stripes }
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
        drop(locks.exclusive(&[twin, one, Ino(7), one]));
        let _first = locks.shared(one);
        let _second = locks.shared(twin);
    }
}
