//! Files whose every byte follows from a seed, so that what comes back can be checked without a
//! second copy. Each 4 KiB block is random and occurs once: a block can be found in a mirror by
//! its bytes.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

/// Bytes of a block.
pub(crate) const BLOCK: usize = 4096;

/// SplitMix64: small, fast, and the same on every machine.
#[derive(Debug, Clone)]
pub(crate) struct Rng(u64);

impl Rng {
    pub(crate) fn new(seed: u64) -> Rng {
        Rng(seed)
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `end`.
    pub(crate) fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }

    pub(crate) fn fill(&mut self, out: &mut [u8]) {
        for chunk in out.chunks_mut(8) {
            let word = self.next().to_le_bytes();
            chunk.copy_from_slice(&word[..chunk.len()]);
        }
    }
}

/// The bytes of block `number` of the file with this seed.
pub(crate) fn block(seed: u64, number: u64) -> [u8; BLOCK] {
    let mut out = [0; BLOCK];
    let mut mix = Rng::new(seed ^ number.wrapping_mul(0xd6e8_feb8_6659_fd93));
    Rng::new(mix.next()).fill(&mut out);
    out
}

/// The whole content of a file.
pub(crate) fn content(seed: u64, len: usize) -> Vec<u8> {
    let mut out = Vec::with_capacity(len + BLOCK);
    for number in 0..len.div_ceil(BLOCK) {
        out.extend_from_slice(&block(seed, number as u64));
    }
    out.truncate(len);
    out
}

/// One file of a set.
#[derive(Debug, Clone)]
pub(crate) struct TestFile {
    /// Path below the root of the set.
    pub(crate) path: PathBuf,
    pub(crate) seed: u64,
    pub(crate) len: usize,
}

impl TestFile {
    /// Writes the file in pieces of odd sizes.
    pub(crate) fn write(&self, root: &Path) -> io::Result<File> {
        let path = root.join(&self.path);
        fs::create_dir_all(path.parent().expect("a parent"))?;
        let mut file = File::options()
            .create(true)
            .truncate(true)
            .read(true)
            .write(true)
            .open(path)?;
        for piece in content(self.seed, self.len).chunks(300_007) {
            file.write_all(piece)?;
        }
        Ok(file)
    }

    /// Reads the file back. The error says what is wrong with it.
    pub(crate) fn verify(&self, root: &Path) -> Result<(), String> {
        let name = self.path.display();
        let file = File::open(root.join(&self.path)).map_err(|e| format!("{name}: open: {e}"))?;
        let mut piece = vec![0; 1 << 20];
        let mut at = 0;
        loop {
            let got = file
                .read_at(&mut piece, at as u64)
                .map_err(|e| format!("{name}: read at {at}: {e}"))?;
            if got == 0 {
                break;
            }
            if at + got > self.len {
                return Err(format!("{name}: longer than {} bytes", self.len));
            }
            self.compare(at, &piece[..got])?;
            at += got;
        }
        if at == self.len {
            Ok(())
        } else {
            Err(format!("{name}: {at} bytes of {}", self.len))
        }
    }

    /// Compares a piece of the file that was read at `at`.
    pub(crate) fn compare(&self, at: usize, piece: &[u8]) -> Result<(), String> {
        let first = at / BLOCK;
        let mut want = Vec::with_capacity(piece.len() + 2 * BLOCK);
        for number in first..(at + piece.len()).div_ceil(BLOCK) {
            want.extend_from_slice(&block(self.seed, number as u64));
        }
        let want = &want[at - first * BLOCK..][..piece.len()];
        match want.iter().zip(piece).position(|(a, b)| a != b) {
            None => Ok(()),
            Some(wrong) => Err(format!(
                "{}: other bytes from offset {}",
                self.path.display(),
                at + wrong
            )),
        }
    }
}

/// A tree of files of mixed sizes.
#[derive(Debug, Clone)]
pub(crate) struct FileSet {
    pub(crate) files: Vec<TestFile>,
}

impl FileSet {
    /// Plans files of `total` bytes together: a few large, many small, some of no whole block.
    pub(crate) fn plan(seed: u64, total: usize) -> FileSet {
        let mut rng = Rng::new(seed);
        let mut files = Vec::new();
        let mut left = total;
        while left > 0 {
            let len = match rng.below(20) {
                0 => 8 << 20,
                1..=4 => rng.below(1 << 20) as usize,
                5..=12 => rng.below(65_536) as usize,
                13..=15 => BLOCK * (1 + rng.below(4) as usize),
                _ => rng.below(3 * BLOCK as u64) as usize,
            };
            let len = len.min(left);
            let number = files.len();
            files.push(TestFile {
                path: PathBuf::from(format!("d{:02}/e{}/f{number:05}", number % 17, number % 3)),
                seed: rng.next(),
                len,
            });
            left -= len;
        }
        FileSet { files }
    }

    /// Writes all files and syncs the filesystem.
    pub(crate) fn write(&self, root: &Path) {
        for file in &self.files {
            file.write(root).expect("the file is written");
        }
        sync_fs(root);
    }

    /// Reads all files and returns every complaint.
    pub(crate) fn problems(&self, root: &Path) -> Vec<String> {
        self.files
            .iter()
            .filter_map(|file| file.verify(root).err())
            .collect()
    }

    /// Reads all files and expects each as it was written.
    pub(crate) fn expect_whole(&self, root: &Path) {
        let problems = self.problems(root);
        assert!(
            problems.is_empty(),
            "{} of {} files: {:#?}",
            problems.len(),
            self.files.len(),
            &problems[..problems.len().min(10)]
        );
    }
}

/// Makes everything on the filesystem of `dir` durable. The kernel writes its dirty pages for
/// syncfs(2), but does not pass that call on to a FUSE filesystem: the fsync(2) reaches it.
pub(crate) fn sync_fs(dir: &Path) {
    let dir = File::open(dir).expect("the directory opens");
    nix::unistd::syncfs(&dir).expect("syncfs");
    dir.sync_all().expect("fsync");
}
