//! The crash sweep: a fixed workload, cut at every single change of a disk, and what comes back.
//!
//! The n-th run cuts at the n-th change, until a run gets to its end. Each cut is made with all,
//! none and some of the unsynced bytes reaching the media, and mounted with both mirrors and with
//! one.

use mendfs::backing::sim::{PowerLoss, SimSnapshot};
use mendfs::format::Ino;

use super::acls;
use super::apply::Model;
use super::history::{History, Outcome};
use super::machine::{Config, Machine};
use super::model::ROOT;
use super::ops::{Change, Op};
use super::plan::{Kind, Plan, Step};

/// One line of a workload.
enum Line {
    Do(Op),
    Service(Step),
}

fn file(name: &str) -> Line {
    let (user, parent, name) = (0, ROOT, name.as_bytes().to_vec());
    Line::Do(Op::Mknod {
        user,
        parent,
        name,
        mode: 0o100_644,
        rdev: 0,
    })
}

fn write(ino: u64, offset: u64, len: usize) -> Line {
    Line::Do(Op::Write {
        ino,
        offset,
        len,
        fill: 5 + 8 * offset,
        kill: false,
    })
}

fn truncate(ino: u64, size: u64) -> Line {
    let size = Some(size);
    Line::Do(Op::SetAttr {
        user: 0,
        ino,
        change: Change {
            size,
            ..Change::default()
        },
    })
}

fn rename(from: &str, to: &str, flags: u32) -> Line {
    let place = |name: &str| (ROOT, name.as_bytes().to_vec());
    Line::Do(Op::Rename {
        user: 0,
        from: place(from),
        to: place(to),
        flags,
    })
}

fn unlink(name: &str) -> Line {
    let (parent, name) = (ROOT, name.as_bytes().to_vec());
    Line::Do(Op::Unlink { parent, name })
}

/// A list with a named group, on a file or directory.
fn acl(ino: u64, name: &[u8]) -> Line {
    let none = u32::MAX;
    let entries = vec![
        (1, 7, none),
        (4, 5, none),
        (8, 6, 1000),
        (16, 7, none),
        (32, 1, none),
    ];
    Line::Do(Op::SetAcl {
        ino,
        name: name.to_vec(),
        entries,
        kill: false,
    })
}

fn sync() -> Line {
    Line::Service(Step::Sync)
}

/// A little of everything. The first file is inode 2.
fn mixed() -> Vec<Line> {
    let (user, parent) = (0, ROOT);
    let punch = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
    vec![
        file("a"),
        write(2, 0, 9000),
        file("b"),
        write(3, 100, 70_000),
        sync(),
        Line::Do(Op::Mkdir {
            user,
            parent,
            name: b"d".to_vec(),
            mode: 0o755,
        }),
        rename("a", "c", 0),
        write(2, 5000, 20_000),
        Line::Do(Op::Copy {
            from: 3,
            from_offset: 4096,
            to: 2,
            to_offset: 0,
            len: 40_960,
        }),
        Line::Service(Step::Checkpoint),
        truncate(3, 5000),
        rename("b", "c", libc::RENAME_EXCHANGE),
        Line::Do(Op::Fallocate {
            ino: 2,
            offset: 3000,
            len: 9000,
            mode: punch,
        }),
        Line::Do(Op::SetXattr {
            user,
            ino: 2,
            name: b"user.a".to_vec(),
            len: 3000,
            fill: 3,
            flags: 0,
        }),
        acl(1, acls::DEFAULT),
        acl(2, acls::ACCESS),
        Line::Do(Op::SetAttr {
            user,
            ino: 2,
            change: Change {
                mode: Some(0o640),
                ..Change::default()
            },
        }),
        sync(),
        file("e"),
        write(5, 0, 300_000),
        rename("e", "b", 0),
        Line::Service(Step::Checkpoint),
        Line::Service(Step::Reclaim),
        unlink("c"),
        write(5, 4096, 4096),
        Line::Service(Step::Checkpoint),
        Line::Service(Step::Reclaim),
        Line::Service(Step::Remount),
        file("f"),
        write(6, 0, 100),
        sync(),
        write(6, 50, 8192),
    ]
}

/// What a sweep starts from: a filesystem at rest.
struct Start {
    disks: Vec<SimSnapshot>,
    model: Model,
}

impl Start {
    /// A filesystem in which this was done.
    fn after(work: &dyn Fn(&mut History) -> Outcome<()>) -> Start {
        let plan = Plan::scripted(Kind::Plain, 0);
        let mut history = History::new(0, Config::default(), plan, false).expect("a new pool");
        work(&mut history).expect("the preparation");
        history.machine.close().expect("unmounted");
        let tree = history.model.tree.visible();
        let model = Model {
            tree,
            ..history.model.clone()
        };
        Start {
            disks: history.machine.snapshots(),
            model,
        }
    }
}

/// When the power fails, and what is there afterwards.
#[derive(Clone, Debug)]
struct Cut {
    at: u64,
    loss: PowerLoss,
    gone: Option<usize>,
    /// Changes of the recoveries after which it fails again.
    again: Vec<u64>,
}

/// One run of the workload with a cut. True if it came to its end before that.
fn run(lines: &[Line], start: &Start, cut: &Cut) -> Outcome<bool> {
    let kind = if cut.gone.is_some() {
        Kind::MirrorLost
    } else {
        Kind::Crash
    };
    let plan = Plan::scripted(kind, cut.gone.unwrap_or(0));
    let machine = Machine::new(cut.at, Config::default());
    machine.restore(&start.disks);
    let mut history = History::over(machine, start.model.clone(), plan, false)?;
    let crash = Step::Crash {
        after: cut.at,
        loss: cut.loss,
        again: cut.again.clone(),
    };
    history.script(crash, None)?;
    for line in lines {
        match line {
            Line::Do(op) => history.script(Step::Op, Some(op))?,
            Line::Service(step) => history.script(step.clone(), None)?,
        }
        if history.crashes > 0 {
            // What came back can be worked with.
            history.script(Step::Op, Some(&later()))?;
            history.script(Step::Remount, None)?;
            history.script(Step::Look, None)?;
            return Ok(false);
        }
    }
    Ok(true)
}

fn later() -> Op {
    let (user, parent, name) = (0, ROOT, b"later".to_vec());
    Op::Mknod {
        user,
        parent,
        name,
        mode: 0o100_600,
        rdev: 0,
    }
}

/// Cuts at the first change, the second, and so on.
fn sweep(lines: &[Line], start: &Start, loss: PowerLoss, least: u64) {
    for gone in [None, Some(0), Some(1)] {
        let mut cut = Cut {
            at: 1,
            loss,
            gone,
            again: Vec::new(),
        };
        loop {
            match run(lines, start, &cut) {
                Ok(false) => cut.at += 1,
                Ok(true) => break,
                Err(error) => panic!("{cut:?}: {error}"),
            }
        }
        assert!(cut.at > least, "the sweep was too short: {}", cut.at);
    }
}

fn sweep_mixed(loss: PowerLoss) {
    sweep(&mixed(), &Start::after(&|_| Ok(())), loss, 120);
}

#[test]
fn p3_a_cut_at_any_change_leaves_a_prefix_if_all_is_kept() {
    sweep_mixed(PowerLoss::KeepAll);
}

#[test]
fn p3_a_cut_at_any_change_leaves_a_prefix_if_all_unsynced_is_lost() {
    sweep_mixed(PowerLoss::LoseAll);
}

#[test]
fn p3_a_cut_at_any_change_leaves_a_prefix_if_some_is_lost() {
    sweep_mixed(PowerLoss::Random);
}

/// A file of so many extents that it does not go in one transaction: inode 2, "long".
fn long_file(history: &mut History) -> Outcome<()> {
    if let Line::Do(op) = file("long") {
        history.script(Step::Op, Some(&op))?;
    }
    for extent in 0..600 {
        let data = [extent as u8 | 1; 16];
        history
            .machine
            .vfs()
            .write(Ino(2), extent * 8192, &data, false)
            .map_err(|error| error.to_string())?;
    }
    history
        .machine
        .vfs()
        .fsync(Ino(2), false)
        .map_err(|error| error.to_string())?;
    history.model.tree = super::execute::look(history.machine.vfs())?;
    history.restart_states();
    Ok(())
}

#[test]
fn p3_a_long_truncation_is_done_or_not_wherever_it_is_cut() {
    let lines = [truncate(2, 20_000), sync(), truncate(2, 60_000), sync()];
    let start = Start::after(&long_file);
    for loss in [PowerLoss::KeepAll, PowerLoss::LoseAll, PowerLoss::Random] {
        sweep(&lines, &start, loss, 5);
    }
}

#[test]
fn p3_a_long_deletion_is_done_or_not_wherever_it_is_cut() {
    let lines = [unlink("long"), sync(), Line::Service(Step::Checkpoint)];
    let start = Start::after(&long_file);
    for loss in [PowerLoss::KeepAll, PowerLoss::LoseAll, PowerLoss::Random] {
        sweep(&lines, &start, loss, 5);
    }
}

#[test]
fn p3_a_recovery_may_itself_be_cut_anywhere() {
    // In the middle of a transaction, of a sync and of each step of a checkpoint.
    let start = Start::after(&|_| Ok(()));
    for at in [9, 20, 30, 34, 38, 40, 42, 44, 60, 90] {
        for loss in [PowerLoss::KeepAll, PowerLoss::Random] {
            for after in 1..30 {
                let cut = Cut {
                    at,
                    loss,
                    gone: None,
                    again: vec![after + 3, after],
                };
                match run(&mixed(), &start, &cut) {
                    Ok(done) => assert!(!done, "there are more than {at} changes"),
                    Err(error) => panic!("{cut:?}: {error}"),
                }
            }
        }
    }
}
