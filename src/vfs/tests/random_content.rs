//! Random operations on file content against plain byte vectors.

use crate::format::Ino;
use crate::vfs::Whence;
use crate::vfs::testing::{
    ROOT, Random, TestVfs, check, content, file, killed, seeds, test_vfs, truncate,
};

const FILES: usize = 3;
const SIZE: u64 = 150_000;
const KEEP: i32 = libc::FALLOC_FL_KEEP_SIZE;
const PUNCH: i32 = libc::FALLOC_FL_PUNCH_HOLE | KEEP;
const ZERO: i32 = libc::FALLOC_FL_ZERO_RANGE;

struct Run {
    vfs: TestVfs,
    inos: Vec<Ino>,
    models: Vec<Vec<u8>>,
    random: Random,
}

impl Run {
    /// An offset or length: anywhere, or at or beside the boundary of a block.
    fn number(&mut self, limit: u64) -> u64 {
        let any = self.random.below(limit);
        match self.random.below(4) {
            0 => any,
            1 => any / 4096 * 4096,
            2 => any / 4096 * 4096 + 1,
            _ => (any / 4096 * 4096).saturating_sub(1),
        }
    }

    fn step(&mut self) {
        let file = self.random.below(FILES as u64) as usize;
        let (ino, offset) = (self.inos[file], self.number(SIZE));
        let len = match self.random.below(3) {
            0 => self.number(SIZE),
            _ => self.number(9000),
        };
        match self.random.below(12) {
            0..4 => self.write(file, offset, len),
            4 => {
                truncate(&self.vfs, ino, offset);
                self.models[file].resize(offset as usize, 0);
            }
            5 => self.zero(file, offset, len.max(1), PUNCH),
            6 => self.zero(file, offset, len.max(1), ZERO),
            7 => self.zero(file, offset, len.max(1), ZERO | KEEP),
            8 => {
                self.vfs.fallocate(ino, offset, len.max(1), 0).unwrap();
                let size = self.models[file].len().max((offset + len.max(1)) as usize);
                self.models[file].resize(size, 0);
            }
            9 => self.copy(file, offset, len),
            10 => self.read(file, offset, len),
            _ => self.seek(file, offset),
        }
    }

    fn write(&mut self, file: usize, offset: u64, len: u64) {
        let byte = self.random.below(255) as u8 + 1;
        let data = vec![byte; len as usize];
        let written = self
            .vfs
            .write(self.inos[file], offset, &data, false)
            .unwrap();
        assert_eq!(written, data.len());
        if written > 0 {
            splice(&mut self.models[file], offset, &data);
        }
    }

    fn zero(&mut self, file: usize, offset: u64, len: u64, mode: i32) {
        self.vfs
            .fallocate(self.inos[file], offset, len, mode)
            .unwrap();
        let model = &mut self.models[file];
        let (start, mut end) = (offset as usize, (offset + len) as usize);
        if mode == ZERO {
            model.resize(model.len().max(end), 0);
        }
        end = end.min(model.len());
        if start < end {
            model[start..end].fill(0);
        }
    }

    fn copy(&mut self, file: usize, offset: u64, len: u64) {
        let other = self.random.below(FILES as u64) as usize;
        let mut to = self.number(SIZE);
        if self.random.below(2) == 0 {
            to = to / 4096 * 4096 + offset % 4096;
        }
        let source = &self.models[file];
        let count = len.min((source.len() as u64).saturating_sub(offset));
        let result = self
            .vfs
            .copy_range(self.inos[file], offset, self.inos[other], to, len);
        if file == other && count > 0 && offset < to + count && to < offset + count {
            result.expect_err("overlapping");
            return;
        }
        assert_eq!(result.unwrap(), count);
        if count > 0 {
            let data = source[offset as usize..(offset + count) as usize].to_vec();
            splice(&mut self.models[other], to, &data);
        }
    }

    fn read(&mut self, file: usize, offset: u64, len: u64) {
        let mut out = vec![0x55; self.random.below(10_000) as usize];
        self.vfs
            .read(self.inos[file], offset, len as usize, &mut out)
            .unwrap();
        let model = &self.models[file];
        let start = (offset as usize).min(model.len());
        let end = (start + len as usize).min(model.len());
        assert_eq!(out, model[start..end]);
    }

    fn seek(&mut self, file: usize, offset: u64) {
        let (ino, model) = (self.inos[file], &self.models[file]);
        let size = model.len() as u64;
        let hole = self.vfs.lseek(ino, offset, Whence::Hole);
        let data = self.vfs.lseek(ino, offset, Whence::Data);
        if offset >= size {
            assert!(hole.is_err() && data.is_err());
            return;
        }
        let data = data.unwrap_or(size);
        assert!(data >= offset && data <= size);
        assert!(
            model[offset as usize..data as usize]
                .iter()
                .all(|byte| *byte == 0)
        );
        let hole = hole.unwrap();
        assert!(hole == size || model[hole as usize] == 0);
        assert!(hole >= offset && hole <= size && (hole == offset) == (data > offset));
    }

    fn compare(&self) {
        for (ino, model) in self.inos.iter().zip(&self.models) {
            assert!(
                content(&self.vfs, *ino) == *model,
                "content of inode {ino} differs"
            );
        }
        check(&self.vfs);
    }
}

fn splice(model: &mut Vec<u8>, offset: u64, data: &[u8]) {
    let (start, end) = (offset as usize, offset as usize + data.len());
    model.resize(model.len().max(end), 0);
    model[start..end].copy_from_slice(data);
}

#[test]
fn random_changes_of_content_match_the_model() {
    for seed in seeds(20) {
        println!("SEED={seed}");
        let vfs = test_vfs();
        let inos = (0..FILES)
            .map(|n| file(&vfs, Ino::ROOT, &format!("f{n}")))
            .collect();
        let models = vec![Vec::new(); FILES];
        let mut run = Run {
            vfs,
            inos,
            models,
            random: Random(seed),
        };
        for step in 0..400 {
            run.step();
            if step % 10 == 0 {
                run.compare();
            }
            if step % 100 == 99 {
                run.vfs = killed(&run.vfs);
            }
        }
        run.compare();
        for n in 0..FILES {
            run.vfs
                .unlink(&ROOT, Ino::ROOT, format!("f{n}").as_bytes())
                .unwrap();
        }
        run.vfs.close().unwrap();
        check(&run.vfs);
        assert_eq!(run.vfs.getattr(Ino::ROOT).unwrap().size, 0);
    }
}
