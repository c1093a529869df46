//! Many threads at once, with none of the locks that a kernel would hold over its calls.

use std::collections::BTreeSet;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use nix::errno::Errno;

use crate::format::{FileKind, Ino};
use crate::vfs::testing::{ROOT, Random, TestVfs, check, names, seeds, test_vfs};
use crate::vfs::{Result, Vfs, VfsError};

const THREADS: u64 = 8;
const STEPS: u64 = 4000;
/// Longest wait for all of them; it takes a second or two.
const STUCK: Duration = Duration::from_secs(120);

/// What is at a path of such names, as far as there is one.
fn walk(vfs: &Vfs, random: &mut Random) -> Ino {
    let mut at = Ino::ROOT;
    for _ in 0..random.below(4) {
        let Ok(found) = vfs.lookup(at, name(random).as_bytes()) else {
            break;
        };
        vfs.forget(found.ino, 1);
        if found.kind == FileKind::Directory {
            at = found.ino;
        }
    }
    at
}

/// Numbers of all that can be reached from a directory by its names.
fn reach(vfs: &Vfs, from: Ino, found: &mut BTreeSet<Ino>) {
    if !found.insert(from) || vfs.getattr(from).unwrap().kind != FileKind::Directory {
        return;
    }
    for name in names(vfs, from) {
        let below = vfs.lookup(from, name.as_bytes()).unwrap();
        vfs.forget(below.ino, 1);
        reach(vfs, below.ino, found);
    }
}

fn name(random: &mut Random) -> &'static str {
    ["a", "b", "c"][random.below(3) as usize]
}

fn step(vfs: &Vfs, random: &mut Random) -> Result<()> {
    let (one, other) = (walk(vfs, random), walk(vfs, random));
    let (from, to) = (name(random).as_bytes(), name(random).as_bytes());
    let made = match random.below(12) {
        0..=2 => vfs.mkdir(&ROOT, one, from, 0o755)?,
        3 => vfs.mknod(&ROOT, one, from, 0o644, 0)?,
        4 => return vfs.unlink(&ROOT, one, from),
        5 => return vfs.rmdir(&ROOT, one, from),
        6 => {
            let file = vfs.lookup(one, from)?;
            let linked = vfs.link(&ROOT, file.ino, other, to);
            vfs.forget(file.ino, 1);
            linked?
        }
        7 => {
            let file = vfs.lookup(one, from)?;
            let written = vfs.write(file.ino, random.below(9000), b"content", false);
            vfs.forget(file.ino, 1);
            return written.map(|_| ());
        }
        8 => return vfs.rename(&ROOT, one, from, other, to, libc::RENAME_EXCHANGE),
        _ => return vfs.rename(&ROOT, one, from, other, to, 0),
    };
    vfs.forget(made.ino, 1);
    Ok(())
}

/// What a race for the same names may answer; anything else is a failure.
fn expected(error: &VfsError) -> bool {
    matches!(
        error.errno(),
        Errno::ENOENT
            | Errno::EEXIST
            | Errno::ENOTEMPTY
            | Errno::ENOTDIR
            | Errno::EISDIR
            | Errno::EINVAL
            | Errno::EPERM
            | Errno::ESTALE
    )
}

fn race(vfs: &TestVfs, seed: u64) {
    thread::scope(|scope| {
        for number in 0..THREADS {
            scope.spawn(move || {
                let mut random = Random(seed * THREADS + number);
                for _ in 0..STEPS {
                    if let Err(error) = step(vfs, &mut random) {
                        assert!(expected(&error), "{error}");
                    }
                }
            });
        }
    });
}

#[test]
fn racing_changes_of_the_same_names_leave_rows_that_agree() {
    for seed in seeds(3) {
        let (done, ended) = mpsc::channel();
        let racing = thread::spawn(move || {
            let vfs = test_vfs();
            race(&vfs, seed);
            check(&vfs);
            let mut found = BTreeSet::new();
            reach(&vfs, Ino::ROOT, &mut found);
            let there = vfs.pool.space().unwrap().inodes;
            assert_eq!(
                found.len() as u64,
                there,
                "a loop, or a file without a name"
            );
            // Nobody waits any more if it took too long.
            let _ = done.send(());
        });
        let waited = ended.recv_timeout(STUCK);
        assert!(
            waited != Err(mpsc::RecvTimeoutError::Timeout),
            "somebody is stuck with SEED={seed}"
        );
        racing.join().expect("no error");
    }
}
