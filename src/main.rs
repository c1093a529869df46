//! The one binary. What it is called decides what it is; see `mendfs::cli`.

use std::process::ExitCode;

fn main() -> ExitCode {
    mendfs::cli::run(std::env::args_os())
}
