//! `mendfs format`: make a pool of two or more directories.
//!
//! Nothing is written before every directory was found fit: it exists, is a directory, is given
//! once, does not lie in another one, and is empty. A missing directory is not made, as it is more
//! likely a disk that is not mounted.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use nix::errno::Errno;
use nix::unistd::{AccessFlags, access};
use serde::Serialize;

use super::args::{Checksum, FormatArgs};
use super::engine;
use super::outcome::{Failure, print_json, print_text};
use super::source;
use crate::format::{Algorithm, MAX_MIRRORS};

/// What was made.
#[derive(Debug, Serialize)]
struct Report {
    uuid: String,
    label: String,
    checksum: &'static str,
    mirrors: Vec<String>,
}

/// Makes the pool and says so.
pub(super) fn run(args: FormatArgs) -> Result<ExitCode, Failure> {
    let directories = check(&args)?;
    let algorithm = algorithm(args.checksum);
    let superblock = engine::format_pool(&directories, &args.label, algorithm, args.journal_size)?;
    let uuid = superblock.pool.to_string();
    let report = Report {
        uuid,
        label: args.label,
        checksum: algorithm.name(),
        mirrors: directories
            .iter()
            .map(|path| path.display().to_string())
            .collect(),
    };
    if args.json {
        print_json("format", &report)?;
    } else {
        print_text(&format!(
            "pool {} made with {} mirrors\nmount it with: mount -t mendfs {} MOUNTPOINT\n",
            report.uuid,
            report.mirrors.len(),
            source::join(&directories).display()
        ))?;
    }
    Ok(ExitCode::SUCCESS)
}

fn algorithm(checksum: Checksum) -> Algorithm {
    match checksum {
        Checksum::Crc32 => Algorithm::Crc32,
        Checksum::Xxh3 => Algorithm::Xxh3,
        Checksum::Blake3 => Algorithm::Blake3,
        Checksum::Sha256 => Algorithm::Sha256,
    }
}

/// Everything that can be told without knowing what a mirror looks like.
fn check(args: &FormatArgs) -> Result<Vec<PathBuf>, Failure> {
    let count = args.directories.len();
    if !(2..=MAX_MIRRORS).contains(&count) {
        return Err(Failure::Usage(format!(
            "a pool has 2 to {MAX_MIRRORS} mirrors; {count} given"
        )));
    }
    let directories = source::resolve(&args.directories)?;
    for directory in &directories {
        let around = directories
            .iter()
            .find(|other| *other != directory && directory.starts_with(other));
        if let Some(other) = around {
            return Err(Failure::Failed(format!(
                "{} lies in {}; mirrors must not lie in one another",
                directory.display(),
                other.display()
            )));
        }
    }
    for directory in &directories {
        let shown = directory.display();
        if !directory.is_dir() {
            return Err(Failure::Failed(format!(
                "{shown} does not exist; make it first, or mount its disk"
            )));
        }
        match access(directory, AccessFlags::W_OK) {
            Ok(()) => {}
            Err(Errno::EROFS) => {
                return Err(Failure::Failed(format!(
                    "{shown} is on a read-only filesystem; remount it read-write"
                )));
            }
            Err(errno) => {
                return Err(Failure::Denied(format!(
                    "{shown} cannot be written: {errno}"
                )));
            }
        }
        if !args.force && !is_empty(directory)? {
            return Err(Failure::Failed(format!(
                "{shown} is not empty; --force uses it anyway"
            )));
        }
    }
    Ok(directories)
}

/// Whether nothing lies there, but for the directory that ext4 puts in its root.
fn is_empty(directory: &Path) -> Result<bool, Failure> {
    let unreadable =
        |error| Failure::Failed(format!("{} cannot be read: {error}", directory.display()));
    for entry in directory.read_dir().map_err(unreadable)? {
        if entry.map_err(unreadable)?.file_name() != "lost+found" {
            return Ok(false);
        }
    }
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn checked(directories: &[PathBuf]) -> Result<Vec<PathBuf>, Failure> {
        check(&FormatArgs {
            label: String::new(),
            checksum: Checksum::Crc32,
            journal_size: None,
            force: false,
            json: false,
            directories: directories.to_vec(),
        })
    }

    #[test]
    fn unfit_directories_are_refused_before_anything_is_written() {
        let root = tempfile::tempdir().unwrap();
        let [a, b, inner, full] = ["a", "b", "a/inner", "full"].map(|name| root.path().join(name));
        for path in [&a, &b, &full] {
            std::fs::create_dir(path).unwrap();
        }
        assert_eq!(checked(&[a.clone(), b.clone()]).unwrap().len(), 2);
        std::fs::create_dir(b.join("lost+found")).unwrap();
        assert!(checked(&[a.clone(), b.clone()]).is_ok());
        std::fs::write(full.join("file"), b"x").unwrap();
        for unfit in [
            vec![a.clone()],
            vec![a.clone(), a.clone()],
            vec![a.clone(), full.clone()],
            vec![a.clone(), full.join("file")],
            vec![a.clone(), root.path().join("missing")],
        ] {
            assert!(checked(&unfit).is_err(), "{unfit:?}");
        }
        std::fs::create_dir(&inner).unwrap();
        let nested = checked(&[b, inner, a]).unwrap_err();
        assert!(nested.message().contains("lies in"), "{nested}");
    }
}
