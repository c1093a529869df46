//! The simulator: random histories of the whole stack above simulated disks, against a plain model.
//!
//! Each history comes from one seed: what kind of faults it has, the pool's configuration, every
//! operation, every crash. A failure prints its seed; `SEED=n cargo test --test simulator` runs
//! that history alone and prints its steps. MENDFS_HISTORIES says how many are run.
//!
//! `ops` draws operations, `model`, `apply` and `contents` are the plain filesystem, `execute`
//! carries the same out on the real one and looks at it, `machine` is the computer with its disks,
//! `plan` says what goes wrong when, `history` runs all this, `life` is that of mirrors, `whole`
//! checks that damage is found and healed.
#![allow(missing_docs)]

mod acls;
mod apply;
mod contents;
mod execute;
mod history;
mod life;
mod machine;
mod mirrors;
mod model;
mod ops;
mod plan;
mod promises;
mod scrubs;
mod sweep;
mod whole;

use std::collections::BTreeSet;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

use history::Failure;
use plan::{LONG, MEMBERS};

/// Histories in an ordinary run.
const HISTORIES: u64 = 10_000;
/// Of these about the life of mirrors.
const MIRROR_HISTORIES: u64 = 2_000;
/// Long ones, in a nightly run.
const LONG_HISTORIES: u64 = 50;
/// Runs spent on making a failing history small.
const SHRINKING: usize = 300;
/// Failures after which there is no point in going on.
const ENOUGH: usize = 3;

fn env_number(name: &str) -> Option<u64> {
    let value = std::env::var(name).ok()?;
    Some(value.parse().expect("a number"))
}

fn run(seed: u64, skip: &BTreeSet<u64>, steps: u64, trace: bool) -> Result<(), Failure> {
    catch_unwind(AssertUnwindSafe(|| history::run(seed, skip, steps, trace))).unwrap_or_else(
        |panic| {
            let text = panic
                .downcast_ref::<String>()
                .cloned()
                .or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()));
            Err(Failure {
                step: steps.min(1000),
                what: format!("panic: {}", text.unwrap_or_default()),
            })
        },
    )
}

/// Whether two failures are probably the same one.
fn same(a: &Failure, b: &Failure) -> bool {
    a.what.bytes().take(20).eq(b.what.bytes().take(20))
}

/// Leaves out what a failure does not need; returns the steps left out.
fn shrink(seed: u64, failure: &Failure) -> (BTreeSet<u64>, u64) {
    let steps = failure.step + 1;
    let mut skip = BTreeSet::new();
    let mut tries = 0;
    let mut chunk = (steps / 2).max(1);
    while tries < SHRINKING {
        let mut smaller = false;
        let mut from = 0;
        while from < steps && tries < SHRINKING {
            let mut without = skip.clone();
            without.extend(from..(from + chunk).min(steps));
            if without.len() > skip.len() {
                tries += 1;
                let again = run(seed, &without, steps, false);
                if again.is_err_and(|again| same(&again, failure)) {
                    skip = without;
                    smaller = true;
                }
            }
            from += chunk;
        }
        if chunk == 1 && !smaller {
            break;
        }
        chunk = (chunk / 2).max(1);
    }
    (skip, steps)
}

fn report(seed: u64, failure: &Failure) -> String {
    let (skip, steps) = shrink(seed, failure);
    eprintln!("--- seed {seed}, made small:");
    let small = run(seed, &skip, steps, true);
    let small = small.err().map_or_else(String::new, |small| small.what);
    format!(
        "SEED={seed} failed at step {}: {}\n (made small: {small})",
        failure.step, failure.what
    )
}

#[test]
fn random_histories_agree_with_the_model() {
    if let Some(seed) = env_number("SEED") {
        let steps = env_number("STEPS").unwrap_or(u64::MAX);
        if let Err(failure) = run(seed, &BTreeSet::new(), steps, true) {
            panic!("{}", report(seed, &failure));
        }
        return;
    }
    let histories = env_number("MENDFS_HISTORIES").unwrap_or(HISTORIES);
    run_all(env_number("MENDFS_FIRST").unwrap_or(0), histories);
}

#[test]
fn histories_of_mirrors_that_come_and_go_agree_with_the_model() {
    if env_number("SEED").is_none() {
        let histories = env_number("MENDFS_HISTORIES").map_or(MIRROR_HISTORIES, |all| all / 5);
        run_all(MEMBERS + env_number("MENDFS_FIRST").unwrap_or(0), histories);
    }
}

#[test]
#[ignore = "takes minutes"]
fn long_histories_of_mirrors_that_come_and_go_agree_with_the_model() {
    if env_number("SEED").is_none() {
        run_all(
            LONG + env_number("MENDFS_FIRST").unwrap_or(0),
            LONG_HISTORIES,
        );
    }
}

/// Runs the histories of so many seeds.
fn run_all(first: u64, histories: u64) {
    let next = AtomicU64::new(first);
    let failures: Mutex<Vec<(u64, Failure)>> = Mutex::default();
    let threads = thread::available_parallelism()
        .map_or(2, usize::from)
        .min(8);
    thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= first + histories || failures.lock().unwrap().len() >= ENOUGH {
                        return;
                    }
                    if let Err(failure) = run(seed, &BTreeSet::new(), u64::MAX, false) {
                        failures.lock().unwrap().push((seed, failure));
                    }
                }
            });
        }
    });
    let failures = failures.into_inner().unwrap();
    let reports: Vec<String> = failures
        .iter()
        .map(|(seed, failure)| report(*seed, failure))
        .collect();
    assert!(
        reports.is_empty(),
        "{} histories failed:\n{}",
        reports.len(),
        reports.join("\n")
    );
}
