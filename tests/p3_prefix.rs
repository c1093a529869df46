//! Promise P3: after a crash the tree is a prefix of its history, not shorter than what was
//! acknowledged. The process is killed in the middle of a mixed load, again and again on one pool.
//!
//! MENDFS_KILLS says how often (10; 100 in the long run), SEED=n repeats a run's choices.

mod common;

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use common::content::{BLOCK, Rng, TestFile, block};
use common::{Pool, wait_for};

const WORKERS: u64 = 3;
/// Longest that a mount after a crash may take.
const MOUNT_LIMIT: Duration = Duration::from_secs(2);

/// One step of a worker, in its own directory. Names are only used once.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Step {
    Create(u64),
    Mkdir(u64),
    Rename(String, String),
    Exchange(String, String),
    Link(String, String),
    Symlink(u64),
    Unlink(String),
    Sync,
}

/// What a worker's directory holds: name to what the name stands for.
type Tree = BTreeMap<String, Object>;

#[derive(Debug, Clone, PartialEq, Eq)]
enum Object {
    File(u64),
    Dir,
    Symlink(u64),
}

fn apply(tree: &mut Tree, step: &Step) {
    match step {
        Step::Create(id) => drop(tree.insert(format!("f{id}"), Object::File(*id))),
        Step::Mkdir(id) => drop(tree.insert(format!("d{id}"), Object::Dir)),
        Step::Symlink(id) => drop(tree.insert(format!("s{id}"), Object::Symlink(*id))),
        Step::Rename(from, to) => {
            let moved = tree.remove(from).expect("planned on this tree");
            tree.insert(to.clone(), moved);
        }
        Step::Exchange(a, b) => {
            let (first, second) = (tree[a].clone(), tree[b].clone());
            tree.insert(a.clone(), second);
            tree.insert(b.clone(), first);
        }
        Step::Link(from, to) => {
            let same = tree[from].clone();
            tree.insert(to.clone(), same);
        }
        Step::Unlink(name) => drop(tree.remove(name)),
        Step::Sync => {}
    }
}

fn plan(tree: &Tree, rng: &mut Rng, fresh: &mut u64) -> Step {
    *fresh += 1;
    let id = *fresh;
    let files: Vec<&String> = tree
        .iter()
        .filter(|(_, object)| matches!(object, Object::File(_)))
        .map(|(name, _)| name)
        .collect();
    if files.len() < 4 {
        return Step::Create(id);
    }
    let mut pick = || files[rng.below(files.len() as u64) as usize].clone();
    let (one, other) = (pick(), pick());
    match rng.below(20) {
        0..=6 => Step::Create(id),
        7 => Step::Mkdir(id),
        8 => Step::Symlink(id),
        9..=10 => Step::Rename(one, format!("r{id}")),
        // Over an existing name: the old file goes in the same instant.
        11 if one != other && tree[&one] != tree[&other] => Step::Rename(one, other),
        12 if one != other => Step::Exchange(one, other),
        13 => Step::Link(one, format!("l{id}")),
        14..=16 => Step::Unlink(one),
        17..=18 => Step::Sync,
        _ => Step::Create(id),
    }
}

/// Length of a file follows from its number, so that every file can be checked by its content.
fn file_of(id: u64) -> TestFile {
    let len = Rng::new(id).below(40_000) as usize;
    TestFile {
        path: PathBuf::from(format!("f{id}")),
        seed: id.wrapping_mul(0x1234_5678_9abc_def1),
        len,
    }
}

fn exchange(a: &Path, b: &Path) -> io::Result<()> {
    use nix::fcntl::{AT_FDCWD, RenameFlags, renameat2};
    Ok(renameat2(
        AT_FDCWD,
        a,
        AT_FDCWD,
        b,
        RenameFlags::RENAME_EXCHANGE,
    )?)
}

fn perform(dir: &Path, step: &Step, sync_file: bool) -> io::Result<()> {
    let at = |name: &String| dir.join(name);
    match step {
        Step::Create(id) => {
            let file = file_of(*id).write(dir)?;
            if sync_file { file.sync_all() } else { Ok(()) }
        }
        Step::Mkdir(id) => fs::create_dir(dir.join(format!("d{id}"))),
        Step::Symlink(id) => {
            std::os::unix::fs::symlink(format!("to/{id}"), dir.join(format!("s{id}")))
        }
        Step::Rename(from, to) => fs::rename(at(from), at(to)),
        Step::Exchange(a, b) => exchange(&at(a), &at(b)),
        Step::Link(from, to) => fs::hard_link(at(from), at(to)),
        Step::Unlink(name) => fs::remove_file(at(name)),
        Step::Sync => File::open(dir)?.sync_all(),
    }
}

/// What a worker did until the crash: its steps, and how many of them were acknowledged by a sync.
/// The last step may have got an error although it was done.
#[derive(Debug)]
struct History {
    base: Tree,
    steps: Vec<Step>,
    acknowledged: usize,
    synced_files: Vec<u64>,
}

fn work(dir: &Path, base: Tree, rng: &mut Rng, fresh: &mut u64, done: &AtomicU64) -> History {
    let mut tree = base.clone();
    let durable = base.values().filter_map(|object| match object {
        Object::File(id) => Some(*id),
        _ => None,
    });
    let mut history = History {
        synced_files: durable.collect(),
        base,
        steps: Vec::new(),
        acknowledged: 0,
    };
    loop {
        let step = plan(&tree, rng, fresh);
        let sync_file = rng.below(3) == 0;
        history.steps.push(step.clone());
        if perform(dir, &step, sync_file).is_err() {
            return history;
        }
        apply(&mut tree, &step);
        match step {
            Step::Create(id) if sync_file => {
                history.acknowledged = history.steps.len();
                history.synced_files.push(id);
            }
            Step::Sync => history.acknowledged = history.steps.len(),
            _ => {}
        }
        done.fetch_add(1, Ordering::Relaxed);
    }
}

/// What lies in a worker's directory.
fn names(dir: &Path) -> BTreeMap<String, fs::Metadata> {
    fs::read_dir(dir)
        .expect("the worker's directory")
        .map(|entry| {
            let entry = entry.expect("an entry");
            let name = entry.file_name().into_string().expect("ascii");
            (name, entry.path().symlink_metadata().expect("metadata"))
        })
        .collect()
}

/// Whether these bytes are what a crash may leave of the file: its own bytes, or zeros where a
/// block was not written yet. Never other bytes.
fn is_own(bytes: &[u8], file: &TestFile) -> bool {
    bytes.len() <= file.len
        && bytes.chunks(BLOCK).enumerate().all(|(index, piece)| {
            let want = block(file.seed, index as u64);
            // Writes end at any byte, so a block may be there in part.
            let same = piece.iter().zip(&want).take_while(|(a, b)| a == b).count();
            piece[same..].iter().all(|&byte| byte == 0)
        })
}

/// Expects the directory to be the tree after k steps for one k from the last acknowledged on, and
/// returns that tree.
fn expect_prefix(dir: &Path, history: &History) -> Tree {
    let found = names(dir);
    let mut tree = history.base.clone();
    for step in &history.steps[..history.acknowledged] {
        apply(&mut tree, step);
    }
    let mut tries = vec![tree.clone()];
    for step in &history.steps[history.acknowledged..] {
        apply(&mut tree, step);
        tries.push(tree.clone());
    }
    // From the end: a file that was created empty and then renamed shows the later name.
    let matching = tries.iter().rev().find(|tree| {
        tree.len() == found.len()
            && tree.iter().all(|(name, object)| {
                found.get(name).is_some_and(|data| same_kind(object, data))
                    && is_object(&dir.join(name), object)
            })
    });
    let Some(tree) = matching else {
        let wanted: Vec<_> = tries
            .iter()
            .map(|tree| tree.keys().collect::<Vec<_>>())
            .collect();
        panic!(
            "{} is no prefix; acknowledged {} of {} steps; found {:?}; tail {:?}; first try {:?}",
            dir.display(),
            history.acknowledged,
            history.steps.len(),
            found.keys(),
            &history.steps[history.acknowledged.saturating_sub(2)..],
            wanted[0],
        );
    };
    for id in &history.synced_files {
        for (name, object) in tree {
            if *object == Object::File(*id) {
                let mut file = file_of(*id);
                file.path = PathBuf::from(name);
                assert_eq!(file.verify(dir), Ok(()), "fsync of it was acknowledged");
            }
        }
    }
    tree.clone()
}

fn same_kind(object: &Object, data: &fs::Metadata) -> bool {
    match object {
        Object::File(_) => data.is_file(),
        Object::Dir => data.is_dir(),
        Object::Symlink(_) => data.is_symlink(),
    }
}

fn is_object(path: &Path, object: &Object) -> bool {
    match object {
        Object::Dir => true,
        Object::Symlink(id) => {
            fs::read_link(path).is_ok_and(|to| to == Path::new(&format!("to/{id}")))
        }
        Object::File(id) => {
            let bytes = fs::read(path).unwrap_or_else(|error| panic!("{path:?}: {error}"));
            is_own(&bytes, &file_of(*id))
        }
    }
}

#[test]
fn a_killed_process_leaves_a_prefix_of_history() {
    let kills = common::env_number("MENDFS_KILLS", if common::long() { 100 } else { 10 });
    let mut rng = Rng::new(common::seed());
    let mut pool = Pool::create(2);
    pool.mount();
    let mut trees: Vec<Tree> = vec![Tree::new(); WORKERS as usize];
    for worker in 0..WORKERS {
        fs::create_dir(pool.mnt().join(format!("w{worker}"))).expect("mkdir");
    }
    common::content::sync_fs(pool.mnt());
    let mut fresh: Vec<u64> = (0..WORKERS).map(|worker| worker << 48).collect();
    for kill in 0..kills {
        let target = 20 + rng.below(1500);
        let done = AtomicU64::new(0);
        let mnt = pool.mnt().to_owned();
        let histories: Vec<History> = std::thread::scope(|scope| {
            let (done, mnt) = (&done, &mnt);
            let running: Vec<_> = trees
                .iter()
                .zip(&mut fresh)
                .enumerate()
                .map(|(worker, (tree, fresh))| {
                    let mut rng = Rng::new(rng.next());
                    let dir = mnt.join(format!("w{worker}"));
                    scope.spawn(move || work(&dir, tree.clone(), &mut rng, fresh, done))
                })
                .collect();
            wait_for("the load", Duration::from_secs(120), || {
                done.load(Ordering::Relaxed) >= target || running.iter().any(|t| t.is_finished())
            });
            pool.kill_only();
            let joined = running.into_iter().map(|thread| thread.join());
            joined.map(|history| history.expect("a worker")).collect()
        });
        pool.detach();
        let took = pool.mount();
        assert!(took < MOUNT_LIMIT, "mount {kill} took {took:?}");
        for (worker, history) in histories.iter().enumerate() {
            let dir = mnt.join(format!("w{worker}"));
            trees[worker] = expect_prefix(&dir, history);
        }
        pool.umount();
        pool.check_clean();
        pool.mount();
        for (worker, tree) in trees.iter_mut().enumerate() {
            let found = names(&mnt.join(format!("w{worker}")));
            assert!(found.keys().eq(tree.keys()), "changed by a clean remount");
            // What a crash left of an unsynced file is not that file any more: take it away.
            tree.retain(|name, object| {
                let Object::File(id) = object else {
                    return true;
                };
                let mut file = file_of(*id);
                file.path = PathBuf::from(name);
                let dir = mnt.join(format!("w{worker}"));
                let whole = file.verify(&dir).is_ok();
                if !whole {
                    fs::remove_file(dir.join(name)).expect("unlink");
                }
                whole
            });
        }
        eprintln!(
            "kill {kill}: after {} steps, mount took {took:?}",
            done.into_inner()
        );
    }
}

#[test]
fn a_file_replaced_by_rename_is_the_old_or_the_new_one() {
    // The way editors and databases save: temporary file, fsync, rename. Every reader, at any
    // crash, finds one complete version, and none older than the last acknowledged.
    let rounds = common::env_number("MENDFS_KILLS", if common::long() { 100 } else { 10 }) / 2 + 1;
    let mut rng = Rng::new(common::seed());
    let mut pool = Pool::create(2);
    let len = 100_000;
    let mut last = 0u64;
    for _ in 0..rounds {
        pool.mount();
        let target = rng.below(60);
        let path = pool.mnt().join("state");
        if last > 0 {
            let bytes = fs::read(&path).expect("the state");
            let version = u64::from_le_bytes(bytes[..8].try_into().expect("eight"));
            assert!(version >= last, "version {version} after {last}");
            let file = TestFile {
                path: PathBuf::new(),
                seed: version,
                len,
            };
            assert!(bytes.len() == len && is_own(&bytes[BLOCK..], &shifted(&file)));
            last = version;
        }
        let done = AtomicU64::new(0);
        let start = last;
        last = std::thread::scope(|scope| {
            let (done, path) = (&done, &path);
            let writer = scope.spawn(move || {
                let mut version = start;
                while save(path, version + 1, len).is_ok() {
                    version += 1;
                    done.fetch_add(1, Ordering::Relaxed);
                }
                version
            });
            wait_for("the load", Duration::from_secs(60), || {
                done.load(Ordering::Relaxed) > target || writer.is_finished()
            });
            pool.kill_only();
            writer.join().expect("the writer")
        });
        pool.detach();
    }
}

/// The file from its second block on, as a file of its own.
fn shifted(file: &TestFile) -> TestFile {
    TestFile {
        path: file.path.clone(),
        seed: file.seed.wrapping_mul(77),
        len: file.len - BLOCK,
    }
}

fn save(path: &Path, version: u64, len: usize) -> io::Result<()> {
    let temporary = path.with_extension("new");
    let file = File::create(&temporary)?;
    let mut head = [0; BLOCK];
    head[..8].copy_from_slice(&version.to_le_bytes());
    file.write_all_at(&head, 0)?;
    let body = common::content::content(version.wrapping_mul(77), len - BLOCK);
    file.write_all_at(&body, BLOCK as u64)?;
    file.sync_all()?;
    fs::rename(&temporary, path)?;
    File::open(path.parent().expect("a parent"))?.sync_all()
}
