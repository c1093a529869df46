//! What lies in a mirror directory, read and damaged without mendfs.

use std::collections::HashMap;
use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

use super::content::{BLOCK, FileSet, Rng, block};

/// Segment files of a mirror, relative to it, sorted.
pub(crate) fn segments(mirror: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for dir in fs::read_dir(mirror.join("segments")).expect("segments") {
        for file in fs::read_dir(dir.expect("an entry").path()).expect("a segment directory") {
            let path = file.expect("an entry").path();
            if path.extension().is_some_and(|extension| extension == "seg") {
                found.push(path.strip_prefix(mirror).expect("below").to_owned());
            }
        }
    }
    found.sort();
    assert!(!found.is_empty(), "no segments in {}", mirror.display());
    found
}

/// Changes every byte of one range of a file, as far as the file reaches.
pub(crate) fn damage(file: &Path, offset: u64, len: usize, rng: &mut Rng) {
    let handle = File::options().read(true).write(true).open(file);
    let handle = handle.unwrap_or_else(|error| panic!("{}: {error}", file.display()));
    let mut bytes = vec![0; len];
    let got = handle.read_at(&mut bytes, offset).expect("read");
    for byte in &mut bytes[..got] {
        *byte ^= 1 + rng.below(255) as u8;
    }
    handle.write_all_at(&bytes[..got], offset).expect("write");
}

/// Damages `count` random ranges of 1 to 8192 bytes, spread over the files by their length.
pub(crate) fn damage_random(files: &[PathBuf], count: usize, rng: &mut Rng) {
    let lengths: Vec<u64> = files
        .iter()
        .map(|file| fs::metadata(file).map_or(0, |data| data.len()))
        .collect();
    let total: u64 = lengths.iter().sum();
    for _ in 0..count {
        let mut at = rng.below(total);
        let mut number = 0;
        while at >= lengths[number] {
            at -= lengths[number];
            number += 1;
        }
        let len = 1 + rng.below(8192) as usize;
        damage(&files[number], at, len, rng);
    }
}

/// Segment files of a mirror, with their full paths.
pub(crate) fn segment_paths(mirror: &Path) -> Vec<PathBuf> {
    segments(mirror)
        .iter()
        .map(|segment| mirror.join(segment))
        .collect()
}

/// Where in a mirror one block of a file lies.
#[derive(Debug, Clone)]
pub(crate) struct Place {
    /// Segment file, relative to the mirror.
    pub(crate) segment: PathBuf,
    pub(crate) offset: u64,
    /// Bytes of the block that belong to the file.
    pub(crate) len: usize,
}

/// Places in a mirror of every block of the set, by (file, block). A block can have several, when
/// it was rewritten, or none, when it is kept elsewhere than in a segment.
pub(crate) type Places = HashMap<(usize, u64), Vec<Place>>;

/// Finds the blocks of a set in a mirror by their bytes alone.
pub(crate) fn locate(mirror: &Path, set: &FileSet) -> Places {
    let mut by_start: HashMap<u64, (usize, u64)> = HashMap::new();
    for (number, file) in set.files.iter().enumerate() {
        for index in 0..file.len.div_ceil(BLOCK) as u64 {
            by_start.insert(word(&block(file.seed, index)), (number, index));
        }
    }
    let mut places = Places::new();
    for segment in segments(mirror) {
        let bytes = fs::read(mirror.join(&segment)).expect("a segment");
        for at in (0..bytes.len().saturating_sub(7)).step_by(8) {
            let Some(&(number, index)) = by_start.get(&word(&bytes[at..])) else {
                continue;
            };
            let file = &set.files[number];
            let len = (file.len - index as usize * BLOCK).min(BLOCK);
            if bytes.get(at..at + len) == Some(&block(file.seed, index)[..len]) {
                places.entry((number, index)).or_default().push(Place {
                    segment: segment.clone(),
                    offset: at as u64,
                    len,
                });
            }
        }
    }
    places
}

fn word(bytes: &[u8]) -> u64 {
    u64::from_le_bytes(bytes[..8].try_into().expect("eight bytes"))
}

/// Expects every block of the set that `good` holds in its segments to lie at the same place in
/// `healed`, and every file of 64 KiB and more to be there completely.
pub(crate) fn expect_healed(good: &Path, healed: &Path, set: &FileSet) {
    let places = locate(good, set);
    let mut open: HashMap<PathBuf, File> = HashMap::new();
    let mut broken = Vec::new();
    for (number, file) in set.files.iter().enumerate() {
        for index in 0..file.len.div_ceil(BLOCK) as u64 {
            let Some(found) = places.get(&(number, index)) else {
                if file.len - (index as usize) * BLOCK < 8 {
                    continue; // Too short to be searched for.
                }
                assert!(
                    file.len < 65_536,
                    "{:?} block {index} is in no segment",
                    file.path
                );
                continue;
            };
            let want = block(file.seed, index);
            let whole = found.iter().any(|place| {
                let path = healed.join(&place.segment);
                if !open.contains_key(&path) {
                    let Ok(handle) = File::open(&path) else {
                        return false;
                    };
                    open.insert(path.clone(), handle);
                }
                let mut bytes = vec![0; place.len];
                open[&path].read_exact_at(&mut bytes, place.offset).is_ok()
                    && bytes == want[..place.len]
            });
            if !whole {
                broken.push(format!("{} block {index}: {found:?}", file.path.display()));
            }
        }
    }
    assert!(
        broken.is_empty(),
        "{} blocks are still broken in {}: {:#?}",
        broken.len(),
        healed.display(),
        &broken[..broken.len().min(5)]
    );
}

/// Bytes that a directory tree takes on the disk.
pub(crate) fn allocated(dir: &Path) -> u64 {
    let mut total = 0;
    for entry in fs::read_dir(dir).expect("a directory") {
        let entry = entry.expect("an entry");
        let Ok(data) = entry.path().symlink_metadata() else {
            continue;
        };
        total += data.blocks() * 512;
        if data.is_dir() {
            total += allocated(&entry.path());
        }
    }
    total
}

/// Everything about a tree that a command must not touch: names, kinds, modes, times, contents.
/// Taking the lock of a pool counts as no change.
pub(crate) fn snapshot(dir: &Path) -> Vec<String> {
    let mut lines = Vec::new();
    let data = dir.symlink_metadata().expect("metadata");
    let (path, mode, len) = (dir.display(), data.mode(), data.len());
    let mut line = format!("{path} {mode:o} {}:{} {len}", data.uid(), data.gid());
    if !dir.ends_with("lock") {
        line.push_str(&format!(" {}.{}", data.mtime(), data.mtime_nsec()));
    }
    if data.is_file() {
        let bytes = fs::read(dir).expect("the file");
        line.push_str(&format!(" {:016x}", fold(&bytes)));
    }
    lines.push(line);
    if data.is_dir() {
        let mut names: Vec<_> = fs::read_dir(dir)
            .expect("a directory")
            .map(|entry| entry.expect("an entry").path())
            .collect();
        names.sort();
        names.iter().for_each(|path| lines.extend(snapshot(path)));
    }
    lines
}

fn fold(bytes: &[u8]) -> u64 {
    bytes.chunks(8).fold(bytes.len() as u64, |sum, chunk| {
        let mut last = [0; 8];
        last[..chunk.len()].copy_from_slice(chunk);
        Rng::new(sum ^ u64::from_le_bytes(last)).next()
    })
}
