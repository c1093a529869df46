//! `mendfs completions`: what a shell needs to complete the command lines, made from the parsers.
//!
//! Not shown to users: scripts/install and the package call it when they are made, so that what is
//! installed fits the program and nothing generated lies in the sources.

use std::process::ExitCode;

use clap::CommandFactory;

use super::args::{CheckArgs, Cli, CompletionsArgs, FormatArgs, Program};
use super::outcome::{Failure, print_text};

/// Prints the script for one shell and one program.
pub(super) fn run(args: &CompletionsArgs) -> Result<ExitCode, Failure> {
    let (mut command, name) = match args.program {
        Program::Mendfs => (Cli::command(), "mendfs"),
        Program::Mkfs => (FormatArgs::command(), "mkfs.mendfs"),
        Program::Fsck => (CheckArgs::command(), "fsck.mendfs"),
    };
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut command, name, &mut script);
    print_text(&String::from_utf8_lossy(&script))?;
    Ok(ExitCode::SUCCESS)
}
