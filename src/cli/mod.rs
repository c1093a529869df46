//! The commands. One binary; the name it is called by decides what it is:
//!
//! | name | is |
//! |---|---|
//! | `mendfs` | the command with subcommands |
//! | `mount.mendfs`, `mount.fuse.mendfs` | the helper that mount(8) runs |
//! | `umount.mendfs`, `umount.fuse.mendfs` | the helper that umount(8) runs |
//! | `mkfs.mendfs` | `mendfs format` |
//! | `fsck.mendfs` | `mendfs check`, with the exit codes of fsck(8) |
//!
//! Each subcommand has its file. `args` holds the command line, `options` the `-o` list,
//! `outcome` exit codes and the JSON envelope; `daemon` and `logging` are what becoming a
//! server takes. Errors are one sentence on stderr.

mod alert;
mod args;
mod attribute;
mod check;
mod completions;
mod daemon;
mod engine;
mod events;
mod format;
mod logging;
mod mirror;
mod mount;
mod mountinfo;
mod notify;
mod options;
mod outcome;
mod progress;
mod salvage;
mod scrub;
mod source;
mod status;
mod umount;
mod when;

use std::ffi::OsString;
use std::path::Path;
use std::process::ExitCode;

use clap::Parser;
use clap::error::ErrorKind;

use self::args::{CheckArgs, Cli, Command, FormatArgs, HelperArgs, UmountArgs};
use self::outcome::{Convention, Failure};

/// Runs the command that the arguments, of which the first is the program's name, ask for.
pub fn run(arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    let mut arguments: Vec<OsString> = arguments.into_iter().collect();
    let program = arguments.first().map(program_name).unwrap_or_default();
    match program.as_str() {
        "mount.mendfs" | "mount.fuse.mendfs" => {
            execute::<HelperArgs>(&arguments, Convention::Mount, mount::run_helper)
        }
        "umount.mendfs" | "umount.fuse.mendfs" => {
            execute::<UmountArgs>(&arguments, Convention::Mount, umount::run)
        }
        "mkfs.mendfs" => execute::<FormatArgs>(&arguments, Convention::Command, format::run),
        "fsck.mendfs" => execute::<CheckArgs>(&arguments, Convention::Fsck, check::run_fsck),
        _ => {
            if let Some(name) = arguments.first_mut() {
                *name = OsString::from("mendfs");
            }
            execute::<Cli>(&arguments, Convention::Command, |cli| match cli.command {
                Command::Format(args) => format::run(args),
                Command::Mount(args) => mount::run(args),
                Command::Status(args) => status::run(args),
                Command::Mirror(args) => mirror::run(args),
                Command::Scrub(args) => scrub::run(args),
                Command::Events(args) => events::run(&args),
                Command::Salvage(args) => salvage::run(&args),
                Command::Check(args) => check::run(args),
                Command::Completions(args) => completions::run(&args),
            })
        }
    }
}

fn program_name(argument: &OsString) -> String {
    let name = Path::new(argument).file_name().unwrap_or_default();
    name.to_string_lossy().into_owned()
}

/// Parses, runs and says what went wrong, in the exit codes of `convention`.
fn execute<A: Parser>(
    arguments: &[OsString],
    convention: Convention,
    command: impl FnOnce(A) -> Result<ExitCode, Failure>,
) -> ExitCode {
    let args = match A::try_parse_from(arguments) {
        Ok(args) => args,
        Err(error) => {
            // To stderr, or to stdout where --help or --version was asked for. If that fails there
            // is no place left to say so.
            let _ = error.print();
            return match error.kind() {
                ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => ExitCode::SUCCESS,
                _ => convention.usage(),
            };
        }
    };
    match command(args) {
        Ok(code) => code,
        Err(failure) => {
            let name = arguments.first().map(program_name).unwrap_or_default();
            eprintln!("{name}: {failure}");
            convention.failure(&failure)
        }
    }
}
