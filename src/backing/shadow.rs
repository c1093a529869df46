//! A mirror that is only looked at: writes stay in memory, over the mirror as it was found.
//!
//! A check can so run recovery and repairs as a mount would, and tell what they would do, without
//! touching a byte of the mirrors.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::io;
use std::sync::Arc;

use tracing_mutex::parkinglot::Mutex;

use super::{Backing, FileName, Space};
use crate::format::{BLOCK, BLOCK_U64, SegmentNo};

#[derive(Debug)]
struct Shade {
    len: u64,
    /// Bytes below this come from the mirror where `pages` has none.
    original: u64,
    pages: BTreeMap<u64, Box<[u8; BLOCK]>>,
}

/// A mirror seen through memory.
#[derive(Debug)]
pub struct Shadow {
    under: Arc<dyn Backing>,
    files: Mutex<BTreeMap<FileName, Option<Shade>>>,
}

impl Shadow {
    /// Shades a mirror, which is never written from here on.
    pub fn new(under: Arc<dyn Backing>) -> Shadow {
        Shadow {
            under,
            files: Mutex::default(),
        }
    }

    fn with<T>(
        &self,
        file: FileName,
        work: impl FnOnce(&mut Shade) -> io::Result<T>,
    ) -> io::Result<T> {
        let mut files = self.files.lock();
        let shade = match files.entry(file) {
            Entry::Occupied(shade) => shade.into_mut(),
            Entry::Vacant(place) => {
                let len = self.under.len(file)?;
                let (original, pages) = (len, BTreeMap::new());
                place.insert(Some(Shade {
                    len,
                    original,
                    pages,
                }))
            }
        };
        match shade {
            Some(shade) => work(shade),
            None => Err(io::Error::from(io::ErrorKind::NotFound)),
        }
    }

    fn page(&self, file: FileName, shade: &Shade, page: u64) -> io::Result<Box<[u8; BLOCK]>> {
        if let Some(bytes) = shade.pages.get(&page) {
            return Ok(bytes.clone());
        }
        let mut bytes = Box::new([0; BLOCK]);
        let at = page * BLOCK_U64;
        let there = shade.original.saturating_sub(at).min(BLOCK_U64) as usize;
        if there > 0 {
            self.under.read_at(file, at, &mut bytes[..there])?;
        }
        Ok(bytes)
    }

    fn read(&self, file: FileName, offset: u64, buf: &mut [u8], medium: bool) -> io::Result<usize> {
        self.with(file, |shade| {
            let len = shade.len.saturating_sub(offset).min(buf.len() as u64) as usize;
            let end = offset + len as u64;
            let touched = shade
                .pages
                .range(offset / BLOCK_U64..end.div_ceil(BLOCK_U64))
                .next();
            if touched.is_none() && end <= shade.original {
                return match medium {
                    true => self.under.read_medium(file, offset, &mut buf[..len]),
                    false => self.under.read_at(file, offset, &mut buf[..len]),
                };
            }
            let mut done = 0;
            while done < len {
                let at = offset + done as u64;
                let skip = (at % BLOCK_U64) as usize;
                let take = (len - done).min(BLOCK - skip);
                let page = self.page(file, shade, at / BLOCK_U64)?;
                buf[done..done + take].copy_from_slice(&page[skip..skip + take]);
                done += take;
            }
            Ok(len)
        })
    }
}

impl Backing for Shadow {
    fn label(&self) -> String {
        self.under.label()
    }

    fn create(&self, file: FileName) -> io::Result<()> {
        match self.with(file, |_| Ok(())) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let shade = Shade {
                    len: 0,
                    original: 0,
                    pages: BTreeMap::new(),
                };
                self.files.lock().insert(file, Some(shade));
                Ok(())
            }
            other => other,
        }
    }

    fn len(&self, file: FileName) -> io::Result<u64> {
        self.with(file, |shade| Ok(shade.len))
    }

    fn allocated(&self, file: FileName) -> io::Result<u64> {
        self.under.allocated(file)
    }

    fn read_at(&self, file: FileName, offset: u64, buf: &mut [u8]) -> io::Result<usize> {
        self.read(file, offset, buf, false)
    }

    fn read_medium(&self, file: FileName, offset: u64, buf: &mut [u8]) -> io::Result<usize> {
        self.read(file, offset, buf, true)
    }

    fn forget_cached(&self, file: FileName) -> io::Result<()> {
        self.under.forget_cached(file)
    }

    fn write_at(&self, file: FileName, offset: u64, buffers: &[&[u8]]) -> io::Result<()> {
        self.with(file, |shade| {
            let mut at = offset;
            for buffer in buffers {
                let mut rest = *buffer;
                while !rest.is_empty() {
                    let skip = (at % BLOCK_U64) as usize;
                    let (head, tail) = rest.split_at(rest.len().min(BLOCK - skip));
                    let mut page = self.page(file, shade, at / BLOCK_U64)?;
                    page[skip..skip + head.len()].copy_from_slice(head);
                    shade.pages.insert(at / BLOCK_U64, page);
                    at += head.len() as u64;
                    rest = tail;
                }
            }
            shade.len = shade.len.max(at);
            Ok(())
        })
    }

    fn set_len(&self, file: FileName, len: u64) -> io::Result<()> {
        self.with(file, |shade| {
            if len < shade.len {
                let cut = len / BLOCK_U64;
                let mut edge = self.page(file, shade, cut)?;
                edge[(len % BLOCK_U64) as usize..].fill(0);
                shade.pages.split_off(&cut);
                shade.pages.insert(cut, edge);
                shade.original = shade.original.min(len);
            }
            shade.len = len;
            Ok(())
        })
    }

    fn reserve(&self, _file: FileName, _offset: u64, _len: u64) -> io::Result<()> {
        Ok(())
    }

    fn punch(&self, _file: FileName, _offset: u64, _len: u64) -> io::Result<()> {
        Ok(())
    }

    fn sync(&self, file: FileName) -> io::Result<()> {
        self.with(file, |_| Ok(()))
    }

    fn sync_name(&self, _file: FileName) -> io::Result<()> {
        Ok(())
    }

    fn remove(&self, file: FileName) -> io::Result<()> {
        self.files.lock().insert(file, None);
        Ok(())
    }

    fn set_aside(&self) -> io::Result<()> {
        Err(io::Error::other("nothing is changed"))
    }

    fn forget_aside(&self) -> io::Result<()> {
        Ok(())
    }

    fn segments(&self) -> io::Result<Vec<SegmentNo>> {
        let files = self.files.lock();
        let gone =
            |segment: &SegmentNo| matches!(files.get(&FileName::Segment(*segment)), Some(None));
        let mut segments: Vec<_> = self
            .under
            .segments()?
            .into_iter()
            .filter(|segment| !gone(segment))
            .collect();
        for (file, shade) in files.iter() {
            if let (FileName::Segment(segment), Some(_)) = (file, shade) {
                segments.push(*segment);
            }
        }
        segments.sort_unstable();
        segments.dedup();
        Ok(segments)
    }

    fn space(&self) -> io::Result<Space> {
        self.under.space()
    }
}

#[cfg(test)]
mod tests {
    use super::super::sim::SimDisk;
    use super::*;

    #[test]
    fn what_is_written_is_read_back_and_the_mirror_stays_as_it_was() {
        let (_world, disk) = SimDisk::single(1);
        disk.create(FileName::Index).unwrap();
        disk.write_at(FileName::Index, 0, &[&[7; 10_000]]).unwrap();
        let before = disk.content(FileName::Index);
        let shadow = Shadow::new(Arc::new(disk.clone()));
        shadow
            .write_at(FileName::Index, 4090, &[&[1; 10], &[2; 10]])
            .unwrap();
        shadow.set_len(FileName::Index, 9000).unwrap();
        shadow.set_len(FileName::Index, 9500).unwrap();
        let mut all = vec![9; 10_000];
        assert_eq!(shadow.read_at(FileName::Index, 0, &mut all).unwrap(), 9500);
        assert!(all[..4090].iter().all(|byte| *byte == 7));
        assert_eq!(all[4090..4110], [[1; 10], [2; 10]].concat());
        assert!(all[4110..9000].iter().all(|byte| *byte == 7));
        assert!(all[9000..9500].iter().all(|byte| *byte == 0));
        shadow.remove(FileName::Index).unwrap();
        assert!(shadow.len(FileName::Index).is_err());
        shadow.create(FileName::Index).unwrap();
        assert_eq!(shadow.len(FileName::Index).unwrap(), 0);
        assert_eq!(disk.content(FileName::Index), before);
    }
}
