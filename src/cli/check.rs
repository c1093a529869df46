//! `mendfs check`: verify a pool that is not mounted.
//!
//! Without --repair nothing on the mirrors changes: recovery and repairs are made in memory, and
//! what they would do is told. With it they are made for good.

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use serde::Serialize;

use super::args::CheckArgs;
use super::engine;
use super::outcome::{Failure, print_json, print_text};
use super::progress::Progress;
use super::source;
use crate::pool::Pool;
use crate::pool::status::MirrorState;
use crate::services::{Resync, Verifier};
use crate::vfs::{Vfs, VfsOptions};

/// Exit codes of fsck(8): errors were corrected, errors were left.
const FSCK_CORRECTED: u8 = 1;
const FSCK_UNCORRECTED: u8 = 4;

/// Repairs done in one go.
const REPAIRS: usize = 256;

/// What was found.
#[derive(Debug, Serialize)]
struct Report {
    mirrors: Vec<String>,
    /// Whether bad copies were rewritten.
    repair: bool,
    /// Operations that recovery replayed from the journal, or would.
    replayed: u64,
    data_bytes: u64,
    index_pages: u64,
    inodes: u64,
    /// Bad copies of which another mirror has a good one.
    bad_copies: u64,
    /// One sentence for each thing that cannot be mended.
    findings: Vec<String>,
}

/// Checks; 1 if something was found that is still so.
pub(super) fn run(args: CheckArgs) -> Result<ExitCode, Failure> {
    check(&args).map(|report| match report.unmended() {
        true => ExitCode::FAILURE,
        false => ExitCode::SUCCESS,
    })
}

/// Checks under the name of fsck.
pub(super) fn run_fsck(args: CheckArgs) -> Result<ExitCode, Failure> {
    check(&args).map(|report| match (report.unmended(), report.bad_copies > 0) {
        (true, _) => ExitCode::from(FSCK_UNCORRECTED),
        (false, true) => ExitCode::from(FSCK_CORRECTED),
        (false, false) => ExitCode::SUCCESS,
    })
}

impl Report {
    fn unmended(&self) -> bool {
        !self.findings.is_empty() || (self.bad_copies > 0 && !self.repair)
    }
}

fn check(args: &CheckArgs) -> Result<Report, Failure> {
    let directories: Vec<PathBuf> = source::resolve(&source::parse(&args.source)?)?;
    let repair = args.repair && !args.dry_run;
    let report = verify(&directories, repair, !args.json)?;
    if args.json {
        print_json("check", &report)?;
    } else {
        print_text(&render(&report))?;
    }
    Ok(report)
}

fn verify(directories: &[PathBuf], repair: bool, talk: bool) -> Result<Report, Failure> {
    let failed = |error: String| Failure::Failed(error);
    let pool = Arc::new(engine::open_for_check(directories, repair)?);
    let replayed = pool.recovery().replayed;
    let behind = if repair {
        bring_up_to_date(&pool, talk)?
    } else {
        behind(&pool)
    };
    let total = pool.space().map_or(0, |space| space.used);
    let progress = Progress::new("check", total, talk);
    let mut verifier = Verifier::new(Arc::clone(&pool));
    while verifier.step().map_err(|error| failed(error.to_string()))? {
        progress.set(verifier.report().data_bytes);
    }
    progress.finish();
    let found = verifier.report().clone();
    // Over shadows this is done in memory, so that a copy that cannot be rewritten shows too.
    while pool.repair_step(REPAIRS) > 0 {}
    if repair {
        // Also finishes the deletions that a crash interrupted.
        let vfs =
            Vfs::new(pool, VfsOptions::default()).map_err(|error| failed(error.to_string()))?;
        vfs.close().map_err(|error| failed(error.to_string()))?;
    }
    Ok(Report {
        mirrors: directories
            .iter()
            .map(|path| path.display().to_string())
            .collect(),
        repair,
        replayed,
        data_bytes: found.data_bytes,
        index_pages: found.pages,
        inodes: found.inodes,
        bad_copies: found.bad_copies,
        findings: behind
            .into_iter()
            .chain(found.findings.into_iter().map(|finding| finding.what))
            .collect(),
    })
}

/// One sentence for each mirror that does not hold everything.
fn behind(pool: &Pool) -> Vec<String> {
    let status = pool.status();
    let lacking = status
        .mirrors
        .iter()
        .filter(|mirror| !matches!(mirror.state, MirrorState::Online | MirrorState::Suspect));
    lacking
        .map(|mirror| {
            let name = if mirror.path.is_empty() {
                &mirror.uuid
            } else {
                &mirror.path
            };
            match (mirror.state, mirror.cause.as_str()) {
                (MirrorState::Missing, _) => format!("mirror {name} is missing"),
                (_, cause) => format!("mirror {name} {cause}; --repair takes it back if it can"),
            }
        })
        .collect()
}

/// Gives mirrors that were behind what they lack; returns what is left to say.
fn bring_up_to_date(pool: &Arc<Pool>, talk: bool) -> Result<Vec<String>, Failure> {
    let mut resync = Resync::new(Arc::clone(pool));
    let mut progress = None;
    while resync
        .step()
        .map_err(|error| Failure::Failed(error.to_string()))?
        .is_some()
    {
        if let Some(at) = pool.status().resync {
            progress
                .get_or_insert_with(|| Progress::new("resync", at.total_bytes, talk))
                .set(at.done_bytes);
        }
    }
    if let Some(progress) = progress {
        progress.finish();
    }
    Ok(behind(pool))
}

fn render(report: &Report) -> String {
    let mut text: String = report
        .findings
        .iter()
        .map(|line| format!("{line}\n"))
        .collect();
    match (report.bad_copies, report.repair) {
        (0, _) => {}
        (count, true) => text.push_str(&format!("{count} bad copies rewritten\n")),
        (count, false) => text.push_str(&format!(
            "{count} bad copies have a good one on another mirror; --repair rewrites them\n"
        )),
    }
    if report.replayed > 0 && !report.repair {
        text.push_str("the pool was not closed in order; the next mount recovers it\n");
    }
    text.push_str(&match report.findings.len() {
        0 => format!("nothing is lost: {} inodes checked\n", report.inodes),
        count => format!("{count} found that cannot be mended\n"),
    });
    text
}
