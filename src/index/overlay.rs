//! Rows that changed since the last checkpoint.
//!
//! Two ordered maps: `active` takes changes; `frozen` is what a running checkpoint writes to the
//! database. A row without a value hides one that the layers below still have.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::format::{Change, Key};

/// Changed rows by key; none for a deleted one.
pub(super) type Rows = BTreeMap<Key, Option<Vec<u8>>>;

/// Rough cost of one row in memory beyond its bytes: the tree's node, two allocations.
const ROW_OVERHEAD: usize = 96;

#[derive(Debug, Default)]
pub(super) struct Overlay {
    pub(super) active: Rows,
    pub(super) frozen: Option<Arc<Rows>>,
    bytes: usize,
}

fn cost(key: &Key, value: Option<&Vec<u8>>) -> usize {
    ROW_OVERHEAD + key.as_bytes().len() + value.map_or(0, Vec::len)
}

impl Overlay {
    pub(super) fn apply(&mut self, changes: Vec<Change>) {
        for Change { key, value } in changes {
            self.bytes += cost(&key, value.as_ref());
            let key_len = key.as_bytes().len();
            if let Some(old) = self.active.insert(key, value) {
                let old = ROW_OVERHEAD + key_len + old.map_or(0, |value| value.len());
                self.bytes = self.bytes.saturating_sub(old);
            }
        }
    }

    /// The row if it changed since the last checkpoint: some none if it was deleted.
    pub(super) fn get(&self, key: &Key) -> Option<Option<&Vec<u8>>> {
        let frozen = || self.frozen.as_ref().and_then(|frozen| frozen.get(key));
        self.active.get(key).or_else(frozen).map(Option::as_ref)
    }

    /// Active rows and roughly the bytes they take.
    pub(super) fn size(&self) -> (usize, usize) {
        (self.active.len(), self.bytes)
    }

    pub(super) fn freeze(&mut self) -> Arc<Rows> {
        assert!(self.frozen.is_none(), "a checkpoint is running already");
        let frozen = Arc::new(std::mem::take(&mut self.active));
        self.bytes = 0;
        self.frozen = Some(Arc::clone(&frozen));
        frozen
    }

    pub(super) fn thaw(&mut self) {
        self.frozen = None;
    }
}
