//! Random operations on names against a plain model of a tree, errors included.

use std::collections::BTreeMap;

use nix::errno::Errno;

use crate::format::{FileKind, Ino};
use crate::vfs::testing::{
    ROOT, Random, TestVfs, check, durable_vfs_with, killed, names, power_cycled, seeds,
    test_vfs_with,
};
use crate::vfs::{Vfs, VfsOptions};

const DIR: FileKind = FileKind::Directory;

#[derive(Debug, Clone, PartialEq)]
struct Node {
    kind: FileKind,
    parent: Ino,
    links: u32,
    entries: BTreeMap<String, Ino>,
}

/// The tree, keyed by the inode numbers that the vfs gave out.
#[derive(Debug, Clone, PartialEq)]
struct Model(BTreeMap<Ino, Node>);

impl Model {
    fn new() -> Model {
        let root = Node {
            kind: DIR,
            parent: Ino::ROOT,
            links: 1,
            entries: BTreeMap::new(),
        };
        Model(BTreeMap::from([(Ino::ROOT, root)]))
    }

    fn get(&self, dir: Ino, name: &str) -> Result<Ino, Errno> {
        self.0[&dir].entries.get(name).copied().ok_or(Errno::ENOENT)
    }

    fn is_dir(&self, ino: Ino) -> bool {
        self.0[&ino].kind == DIR
    }

    fn node(&mut self, ino: Ino) -> &mut Node {
        self.0.get_mut(&ino).unwrap()
    }

    fn vacant(&self, dir: Ino, name: &str) -> Result<(), Errno> {
        if self.get(dir, name).is_ok() {
            Err(Errno::EEXIST)
        } else {
            Ok(())
        }
    }

    fn insert(&mut self, dir: Ino, name: &str, ino: Ino) {
        self.node(dir).entries.insert(name.to_owned(), ino);
        self.node(ino).parent = dir;
    }

    fn drop_link(&mut self, ino: Ino) {
        self.node(ino).links -= 1;
        if self.0[&ino].links == 0 {
            self.0.remove(&ino);
        }
    }

    fn unlink(&mut self, dir: Ino, name: &str, directory: bool) -> Result<(), Errno> {
        let ino = self.get(dir, name)?;
        match (directory, self.is_dir(ino)) {
            (false, true) => return Err(Errno::EISDIR),
            (true, false) => return Err(Errno::ENOTDIR),
            (true, true) if !self.0[&ino].entries.is_empty() => return Err(Errno::ENOTEMPTY),
            _ => {}
        }
        self.node(dir).entries.remove(name);
        self.drop_link(ino);
        Ok(())
    }

    fn is_below(&self, mut ino: Ino, ancestor: Ino) -> bool {
        loop {
            if ino == ancestor {
                return true;
            }
            if ino == Ino::ROOT {
                return false;
            }
            ino = self.0[&ino].parent;
        }
    }

    fn rename(&mut self, a: (Ino, &str), b: (Ino, &str), flags: u32) -> Result<(), Errno> {
        let old = self.get(a.0, a.1)?;
        let target = self.get(b.0, b.1).ok();
        let exchange = flags == libc::RENAME_EXCHANGE;
        match target {
            None if exchange => return Err(Errno::ENOENT),
            Some(_) if flags == libc::RENAME_NOREPLACE => return Err(Errno::EEXIST),
            Some(target) if target == old => return Ok(()),
            _ => {}
        }
        if self.is_dir(old) && self.is_below(b.0, old) {
            return Err(Errno::EINVAL);
        }
        if let Some(target) = target {
            if exchange {
                if self.is_dir(target) && self.is_below(a.0, target) {
                    return Err(Errno::EINVAL);
                }
                self.insert(a.0, a.1, target);
                self.insert(b.0, b.1, old);
                return Ok(());
            }
            match (self.is_dir(old), self.is_dir(target)) {
                (true, false) => return Err(Errno::ENOTDIR),
                (false, true) => return Err(Errno::EISDIR),
                (true, true) if !self.0[&target].entries.is_empty() => {
                    return Err(Errno::ENOTEMPTY);
                }
                _ => self.drop_link(target),
            }
        }
        self.node(a.0).entries.remove(a.1);
        self.insert(b.0, b.1, old);
        Ok(())
    }

    fn tree(&self) -> Tree {
        let (mut tree, mut directories) = (Tree::new(), vec![(Ino::ROOT, String::new())]);
        while let Some((dir, path)) = directories.pop() {
            for (name, ino) in &self.0[&dir].entries {
                let (kind, path) = (self.0[ino].kind, format!("{path}/{name}"));
                if kind == DIR {
                    directories.push((*ino, path.clone()));
                }
                tree.insert(path, kind);
            }
        }
        tree
    }

    fn compare(&self, vfs: &TestVfs) {
        for (ino, node) in &self.0 {
            let attr = vfs.getattr(*ino).unwrap();
            assert_eq!(attr.kind, node.kind);
            if node.kind == DIR {
                assert!(
                    names(vfs, *ino).iter().eq(node.entries.keys()),
                    "entries of {ino}"
                );
                for (name, child) in &node.entries {
                    assert_eq!(vfs.lookup(*ino, name.as_bytes()).unwrap().ino, *child);
                    vfs.forget(*child, 1);
                }
                assert_eq!(vfs.parent(*ino).unwrap(), node.parent);
            } else {
                assert_eq!(attr.nlink, node.links);
            }
        }
        check(vfs);
    }
}

struct Run {
    vfs: TestVfs,
    model: Model,
    random: Random,
}

impl Run {
    fn directory(&mut self) -> Ino {
        let dirs: Vec<Ino> = self
            .model
            .0
            .keys()
            .copied()
            .filter(|i| self.model.is_dir(*i))
            .collect();
        dirs[self.random.below(dirs.len() as u64) as usize]
    }

    fn name(&mut self) -> String {
        format!("n{}", self.random.below(8))
    }

    /// Checks that an operation ended as in the model, unless the power went off in it.
    fn agree(&self, result: crate::vfs::Result<()>, expected: Result<(), Errno>, what: &str) {
        if self.vfs.world.is_powered() {
            assert_eq!(result.map_err(|error| error.errno()), expected, "{what}");
        }
    }

    fn make(&mut self, kind: FileKind) {
        let (dir, name) = (self.directory(), self.name());
        let made = match kind {
            DIR => self.vfs.mkdir(&ROOT, dir, name.as_bytes(), 0o755),
            FileKind::Symlink => self.vfs.symlink(&ROOT, dir, name.as_bytes(), b"target"),
            _ => self.vfs.mknod(&ROOT, dir, name.as_bytes(), 0o644, 0),
        };
        // If the power went off, the inode has a number that nobody was told.
        let ino = made.as_ref().map_or(Ino(1 << 60), |attr| attr.ino);
        let expected = self.model.vacant(dir, &name);
        self.agree(made.map(|_| ()), expected, "make");
        if expected.is_ok() {
            let entries = BTreeMap::new();
            self.model.0.insert(
                ino,
                Node {
                    kind,
                    parent: dir,
                    links: 1,
                    entries,
                },
            );
            self.model.insert(dir, &name, ino);
            self.maybe_forget(ino);
        }
    }

    fn maybe_forget(&mut self, ino: Ino) {
        if self.random.below(2) == 0 {
            self.vfs.forget(ino, 1);
        }
    }

    fn link(&mut self) {
        let files: Vec<Ino> = self
            .model
            .0
            .keys()
            .copied()
            .filter(|ino| !self.model.is_dir(*ino))
            .collect();
        if files.is_empty() {
            return;
        }
        let ino = files[self.random.below(files.len() as u64) as usize];
        let (dir, name) = (self.directory(), self.name());
        let expected = self.model.vacant(dir, &name);
        let linked = self.vfs.link(&ROOT, ino, dir, name.as_bytes()).map(|_| ());
        self.agree(linked, expected, "link");
        if expected.is_ok() {
            self.model.node(ino).links += 1;
            self.model.insert(dir, &name, ino);
            self.maybe_forget(ino);
        }
    }

    fn step(&mut self) {
        match self.random.below(12) {
            0 | 1 => self.make(DIR),
            2 | 3 => self.make(FileKind::Regular),
            4 => self.make(FileKind::Symlink),
            5 => self.link(),
            6 | 7 => {
                let (dir, name) = (self.directory(), self.name());
                let directory = self.random.below(2) == 0;
                let result = match directory {
                    true => self.vfs.rmdir(&ROOT, dir, name.as_bytes()),
                    false => self.vfs.unlink(&ROOT, dir, name.as_bytes()),
                };
                let expected = self.model.unlink(dir, &name, directory);
                self.agree(result, expected, "remove");
            }
            _ => {
                let (a, b) = (self.directory(), self.directory());
                let (x, y) = (self.name(), self.name());
                let flags = [0, 0, libc::RENAME_NOREPLACE, libc::RENAME_EXCHANGE];
                let flags = flags[self.random.below(4) as usize];
                let result = self
                    .vfs
                    .rename(&ROOT, a, x.as_bytes(), b, y.as_bytes(), flags);
                let expected = self.model.rename((a, &x), (b, &y), flags);
                self.agree(result, expected, &format!("rename {a}/{x} {b}/{y} {flags}"));
            }
        }
    }
}

#[test]
fn random_changes_of_names_match_the_model() {
    for seed in seeds(40) {
        println!("SEED={seed}");
        let name_hash_bits = if seed % 2 == 0 { 2 } else { 55 };
        let vfs = test_vfs_with(VfsOptions {
            name_hash_bits,
            ..VfsOptions::default()
        });
        let mut run = Run {
            vfs,
            model: Model::new(),
            random: Random(seed),
        };
        for step in 0..600 {
            run.step();
            if step % 20 == 0 {
                run.model.compare(&run.vfs);
            }
            if step % 150 == 149 {
                run.vfs = killed(&run.vfs);
            }
        }
        run.model.compare(&run.vfs);
    }
}

#[test]
fn a_crash_leaves_the_tree_as_before_or_after_the_operation() {
    for seed in seeds(40) {
        println!("SEED={seed}");
        let vfs = durable_vfs_with(VfsOptions {
            name_hash_bits: 2,
            ..VfsOptions::default()
        });
        let mut run = Run {
            vfs,
            model: Model::new(),
            random: Random(seed),
        };
        let crash_at = run.vfs.world.changes() + 20 + run.random.below(400);
        run.vfs.world.crash_at_change(crash_at);
        let mut before = run.model.clone();
        while run.vfs.world.is_powered() {
            before = run.model.clone();
            run.step();
        }
        let vfs = power_cycled(run.vfs);
        check(&vfs);
        let tree = tree(&vfs);
        let found = [before.tree(), run.model.tree()]
            .into_iter()
            .position(|model| model == tree);
        assert!(
            found.is_some(),
            "{tree:?}\n{:?}\n{:?}",
            before.tree(),
            run.model.tree()
        );
    }
}

/// Every path, and what is there.
type Tree = BTreeMap<String, FileKind>;

fn tree(vfs: &Vfs) -> Tree {
    let (mut tree, mut directories) = (Tree::new(), vec![(Ino::ROOT, String::new())]);
    while let Some((dir, path)) = directories.pop() {
        for name in names(vfs, dir) {
            let attr = vfs.lookup(dir, name.as_bytes()).unwrap();
            let path = format!("{path}/{name}");
            if attr.kind == DIR {
                directories.push((attr.ino, path.clone()));
            }
            tree.insert(path, attr.kind);
        }
    }
    tree
}
