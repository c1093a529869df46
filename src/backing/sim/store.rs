//! The files of one simulated disk: names, contents and space, with what a crash makes of them.
//!
//! A name leads to a node, now and on the medium; the two differ until the name is synced. A node
//! lives as long as one of the two leads to it, and so does its space, so that whatever a crash
//! brings back still fits.

use std::collections::BTreeMap;
use std::ops::Range;

use super::super::FileName;
use super::PowerLoss;
use super::node::{Node, PAGE_U64};
use super::rng::SimRng;

/// All that is on a disk, or on its way there.
#[derive(Debug, Clone)]
pub(super) struct Store {
    nodes: BTreeMap<u64, Node>,
    live: BTreeMap<FileName, u64>,
    durable: BTreeMap<FileName, u64>,
    /// What was deleted by damage, until it is made again or removed.
    deleted: BTreeMap<FileName, Node>,
    next: u64,
    capacity: u64,
}

impl Store {
    pub(super) const fn new(capacity: u64) -> Store {
        Store {
            nodes: BTreeMap::new(),
            live: BTreeMap::new(),
            durable: BTreeMap::new(),
            deleted: BTreeMap::new(),
            next: 0,
            capacity,
        }
    }

    pub(super) const fn capacity(&self) -> u64 {
        self.capacity
    }

    pub(super) const fn set_capacity(&mut self, capacity: u64) {
        self.capacity = capacity;
    }

    pub(super) fn node(&self, file: FileName) -> Option<&Node> {
        self.nodes.get(self.live.get(&file)?)
    }

    pub(super) fn node_mut(&mut self, file: FileName) -> Option<&mut Node> {
        self.nodes.get_mut(self.live.get(&file)?)
    }

    pub(super) fn files(&self) -> impl Iterator<Item = FileName> {
        self.live.keys().copied()
    }

    pub(super) fn create(&mut self, file: FileName) {
        if self.live.contains_key(&file) {
            return;
        }
        let node = self
            .deleted
            .remove(&file)
            .map(Node::in_place_of)
            .unwrap_or_default();
        self.nodes.insert(self.next, node);
        self.live.insert(file, self.next);
        self.next += 1;
    }

    pub(super) fn remove(&mut self, file: FileName) {
        self.live.remove(&file);
        self.deleted.remove(&file);
        self.forget_nodes();
    }

    pub(super) fn sync_name(&mut self, file: FileName) {
        match self.live.get(&file) {
            Some(node) => self.durable.insert(file, *node),
            None => self.durable.remove(&file),
        };
        self.forget_nodes();
    }

    /// Deletes the file from the medium, as damage does.
    pub(super) fn delete(&mut self, file: FileName) {
        if let Some(node) = self
            .live
            .remove(&file)
            .and_then(|node| self.nodes.remove(&node))
        {
            self.deleted.insert(file, node);
        }
        self.durable.remove(&file);
        self.forget_nodes();
    }

    fn forget_nodes(&mut self) {
        let (live, durable) = (&self.live, &self.durable);
        self.nodes.retain(|node, _| {
            live.values()
                .chain(durable.values())
                .any(|reached| reached == node)
        });
    }

    /// Bytes in use, as statvfs(3) would have it.
    pub(super) fn used(&self) -> u64 {
        let live = self.live.values().filter_map(|node| self.nodes.get(node));
        live.map(|node| node.pages() * PAGE_U64).sum()
    }

    /// Pages that can be given out right now.
    fn free_pages(&self) -> u64 {
        let held: u64 = self.nodes.values().map(Node::held_pages).sum();
        (self.capacity / PAGE_U64).saturating_sub(held)
    }

    /// Allocates space for a range of bytes of a file and returns its end: a smaller one when the
    /// disk is full before.
    pub(super) fn allocate(&mut self, file: FileName, range: &Range<u64>) -> u64 {
        let pages = range.start / PAGE_U64..range.end.div_ceil(PAGE_U64);
        let missing = self.node(file).map_or(0, |node| node.missing(&pages));
        if missing > self.free_pages() {
            self.commit_frees();
        }
        let mut free = self.free_pages();
        let Some(node) = self.node_mut(file) else {
            return range.start;
        };
        if node.missing(&pages) <= free {
            node.allocate(pages);
            return range.end;
        }
        for page in pages {
            let missing = node.missing(&(page..page + 1));
            if missing > free {
                return (page * PAGE_U64).max(range.start);
            }
            free -= missing;
            node.allocate(page..page + 1);
        }
        range.end
    }

    /// Whether the range fits, without taking it.
    pub(super) fn fits(&mut self, file: FileName, range: &Range<u64>) -> bool {
        let pages = range.start / PAGE_U64..range.end.div_ceil(PAGE_U64);
        let missing = |store: &Store| store.node(file).map_or(0, |node| node.missing(&pages));
        if missing(self) > self.free_pages() {
            self.commit_frees();
        }
        missing(self) <= self.free_pages()
    }

    /// A filesystem that runs out of space commits what it has freed, and looks again.
    fn commit_frees(&mut self) {
        let live = &self.live;
        self.durable
            .retain(|file, node| live.get(file) == Some(node));
        self.forget_nodes();
        self.nodes.values_mut().for_each(Node::commit_frees);
    }

    /// Power is lost: every name and every node becomes what the medium has.
    pub(super) fn crash(&mut self, loss: PowerLoss, rng: &mut SimRng) {
        let names: Vec<FileName> = self
            .live
            .keys()
            .chain(self.durable.keys())
            .copied()
            .collect();
        for file in names {
            let (live, durable) = (
                self.live.get(&file).copied(),
                self.durable.get(&file).copied(),
            );
            if live == durable {
                continue;
            }
            let keep = match loss {
                PowerLoss::KeepAll => true,
                PowerLoss::LoseAll => false,
                PowerLoss::Random => rng.coin(),
            };
            let (names, value) = if keep {
                (&mut self.durable, live)
            } else {
                (&mut self.live, durable)
            };
            match value {
                Some(node) => names.insert(file, node),
                None => names.remove(&file),
            };
        }
        self.forget_nodes();
        self.nodes
            .values_mut()
            .for_each(|node| node.crash(loss, rng));
    }

    /// Where the medium holds what it should not, by file and range of bytes.
    pub(super) fn damaged(&self) -> Vec<(FileName, Range<u64>)> {
        let mut found = Vec::new();
        for (file, node) in &self.live {
            let ranges = self.nodes.get(node).map(Node::damaged).unwrap_or_default();
            found.extend(ranges.into_iter().map(|range| (*file, range)));
        }
        found.extend(
            self.deleted
                .iter()
                .map(|(file, node)| (*file, 0..node.len())),
        );
        found
    }

    pub(super) fn drop_caches(&mut self) {
        self.nodes.values_mut().for_each(Node::drop_caches);
    }

    /// Unsynced state of the whole disk becomes durable.
    pub(super) fn sync_all(&mut self) {
        self.durable.clone_from(&self.live);
        self.forget_nodes();
        self.nodes.values_mut().for_each(Node::sync);
    }
}
