//! What was written to segments and not yet synced.
//!
//! Small extents are kept as images, so that a small fsync costs one journal sync: their bytes go
//! into the journal, and the segments are synced by the next checkpoint. Beyond a limit the images
//! are dropped, and a sync goes to the segments themselves.

use std::collections::{BTreeMap, BTreeSet};

use crate::format::{DataImage, Lsn, SegmentNo};

/// Bytes of images kept for one sync at most.
const IMAGES_MAX: usize = 256 << 10;

/// How the data written since the last sync becomes durable.
#[derive(Debug)]
pub enum Images {
    /// By putting these into the journal.
    Journal(Vec<DataImage>),
    /// By syncing the segments.
    Segments,
}

#[derive(Debug, Default)]
pub(super) struct Unsynced {
    images: Vec<DataImage>,
    image_bytes: usize,
    /// More was written than images are kept for.
    overflow: bool,
    dirty: BTreeSet<SegmentNo>,
    /// Of these, the files whose names are not durable yet.
    fresh: BTreeSet<SegmentNo>,
    /// Extents written to which no row points yet: (segment, offset of the header) to length and
    /// birth.
    unlinked: BTreeMap<(SegmentNo, u32), (u32, Lsn)>,
}

impl Unsynced {
    pub(super) fn wrote(&mut self, segment: SegmentNo, offset: u32, parts: &[&[u8]]) {
        self.dirty.insert(segment);
        let len: usize = parts.iter().map(|part| part.len()).sum();
        if self.overflow || self.image_bytes + len > IMAGES_MAX {
            self.overflow = true;
            self.images = Vec::new();
            self.image_bytes = 0;
        } else {
            self.image_bytes += len;
            self.images.push(DataImage {
                segment,
                offset,
                bytes: parts.concat(),
            });
        }
    }

    pub(super) fn created(&mut self, segment: SegmentNo) {
        self.fresh.insert(segment);
    }

    pub(super) fn reserved(&mut self, segment: SegmentNo, offset: u32, len: u32, born: Lsn) {
        self.unlinked.insert((segment, offset), (len, born));
    }

    pub(super) fn settled(&mut self, segment: SegmentNo, offset: u32) {
        self.unlinked.remove(&(segment, offset));
    }

    pub(super) fn unlinked(&self, segment: SegmentNo) -> Vec<(u32, u32)> {
        let range = (segment, 0)..=(segment, u32::MAX);
        self.unlinked
            .range(range)
            .map(|((_, offset), (len, _))| (*offset, *len))
            .collect()
    }

    pub(super) fn all_unlinked(&self) -> Vec<(SegmentNo, u32)> {
        self.unlinked.keys().copied().collect()
    }

    /// When the oldest of those was born.
    pub(super) fn oldest(&self) -> Option<Lsn> {
        self.unlinked.values().map(|(_, born)| *born).min()
    }

    pub(super) fn take_images(&mut self) -> Images {
        self.image_bytes = 0;
        if self.overflow {
            Images::Segments
        } else {
            Images::Journal(std::mem::take(&mut self.images))
        }
    }

    /// What a sync of the segments has to see to: (written, of these fresh).
    pub(super) fn take_dirty(&mut self) -> (Vec<SegmentNo>, Vec<SegmentNo>) {
        self.images = Vec::new();
        self.image_bytes = 0;
        self.overflow = false;
        let dirty = std::mem::take(&mut self.dirty).into_iter().collect();
        (dirty, std::mem::take(&mut self.fresh).into_iter().collect())
    }

    pub(super) fn is_dirty(&self) -> bool {
        !self.dirty.is_empty()
    }

    pub(super) fn forget(&mut self, segment: SegmentNo) {
        self.dirty.remove(&segment);
        self.fresh.remove(&segment);
    }
}
