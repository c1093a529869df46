//! The mirrors as mount(8) knows them: directories joined by colons in one word.
//!
//! A colon or backslash that belongs to a path is escaped with a backslash. [`parse`] and [`join`]
//! are each other's inverse, so that what /proc/mounts shows can be mounted again.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use super::outcome::Failure;
use crate::format::MAX_MIRRORS;

/// The directories in `source`, as written.
pub(super) fn parse(source: &OsStr) -> Result<Vec<PathBuf>, Failure> {
    let mut directories = vec![Vec::new()];
    let mut bytes = source.as_bytes().iter();
    while let Some(byte) = bytes.next() {
        match byte {
            b':' => directories.push(Vec::new()),
            b'\\' => match bytes.next() {
                Some(escaped @ (b':' | b'\\')) => push(&mut directories, *escaped),
                Some(other) => {
                    push(&mut directories, b'\\');
                    push(&mut directories, *other);
                }
                None => push(&mut directories, b'\\'),
            },
            other => push(&mut directories, *other),
        }
    }
    check(source, &directories)?;
    Ok(directories
        .into_iter()
        .map(|path| PathBuf::from(OsString::from_vec(path)))
        .collect())
}

fn push(directories: &mut [Vec<u8>], byte: u8) {
    if let Some(last) = directories.last_mut() {
        last.push(byte);
    }
}

fn check(source: &OsStr, directories: &[Vec<u8>]) -> Result<(), Failure> {
    let source = source.to_string_lossy();
    if directories.iter().any(Vec::is_empty) {
        return Err(Failure::Usage(format!(
            "\"{source}\" names an empty directory; mirrors are given as DIR1:DIR2"
        )));
    }
    if directories.len() > MAX_MIRRORS {
        return Err(Failure::Usage(format!(
            "\"{source}\" names {} directories; a pool has at most {MAX_MIRRORS} mirrors",
            directories.len()
        )));
    }
    Ok(())
}

/// The directories as one word.
pub(super) fn join(directories: &[PathBuf]) -> OsString {
    let mut source = Vec::new();
    for directory in directories {
        if !source.is_empty() {
            source.push(b':');
        }
        for byte in directory.as_os_str().as_bytes() {
            if matches!(byte, b':' | b'\\') {
                source.push(b'\\');
            }
            source.push(*byte);
        }
    }
    OsString::from_vec(source)
}

/// The one of the directories that an option means, as they are written after [`resolve`].
pub(super) fn named_by(option: &str, directories: &[PathBuf]) -> Result<String, Failure> {
    let given = Path::new(option);
    let path = given.canonicalize().unwrap_or_else(|_| given.to_path_buf());
    match directories.iter().find(|directory| **directory == path) {
        Some(directory) => Ok(directory.display().to_string()),
        None => Err(Failure::Usage(format!(
            "{option} is not among the mirrors {}",
            join(directories).display()
        ))),
    }
}

/// Makes every directory that exists absolute and free of links; one that does not stays as it
/// is, made absolute, because a pool may be opened without a mirror.
pub(super) fn resolve(directories: &[PathBuf]) -> Result<Vec<PathBuf>, Failure> {
    let mut resolved: Vec<PathBuf> = Vec::with_capacity(directories.len());
    for directory in directories {
        let path = match directory.canonicalize() {
            Ok(path) if path.is_dir() => path,
            Ok(_) => {
                return Err(Failure::Failed(format!(
                    "{} is not a directory",
                    directory.display()
                )));
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                std::path::absolute(directory).map_err(|error| cannot_resolve(directory, &error))?
            }
            Err(error) => return Err(cannot_resolve(directory, &error)),
        };
        if resolved.contains(&path) {
            return Err(Failure::Usage(format!("{} is given twice", path.display())));
        }
        resolved.push(path);
    }
    Ok(resolved)
}

fn cannot_resolve(path: &Path, error: &std::io::Error) -> Failure {
    Failure::Failed(format!("{}: {error}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(source: &str) -> Vec<String> {
        let directories = parse(OsStr::new(source)).unwrap();
        directories
            .iter()
            .map(|path| path.to_str().unwrap().to_owned())
            .collect()
    }

    #[test]
    fn colons_separate_and_escaped_colons_do_not() {
        assert_eq!(parsed("/a:/b"), ["/a", "/b"]);
        assert_eq!(parsed("/a"), ["/a"]);
        assert_eq!(parsed(r"/a\:b:/c"), ["/a:b", "/c"]);
        assert_eq!(parsed(r"/a\\:/c"), [r"/a\", "/c"]);
        assert_eq!(parsed(r"/a\b:/c\"), [r"/a\b", r"/c\"]);
        assert_eq!(parsed("/with space,comma:b"), ["/with space,comma", "b"]);
    }

    #[test]
    fn joining_is_the_inverse_of_parsing() {
        for path in ["/a", "/a:b", r"/a\b", r"/a\:b\", "/\u{e4} \u{f6},x"] {
            let directories = vec![PathBuf::from(path), PathBuf::from("/other")];
            assert_eq!(parse(&join(&directories)).unwrap(), directories);
        }
    }

    #[test]
    fn empty_directories_and_too_many_are_refused() {
        for source in ["", ":", "/a:", ":/a", "/a::/b", "1:2:3:4:5:6:7:8:9"] {
            assert!(
                matches!(parse(OsStr::new(source)), Err(Failure::Usage(_))),
                "{source}"
            );
        }
        assert_eq!(parsed("1:2:3:4:5:6:7:8").len(), 8);
    }

    #[test]
    fn the_same_directory_under_two_names_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let dotted = dir.path().join(".");
        let error = resolve(&[dir.path().to_owned(), dotted]).unwrap_err();
        assert!(error.message().ends_with("is given twice"), "{error}");
    }

    #[test]
    fn a_missing_directory_stays_but_a_file_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let missing = dir.path().canonicalize().unwrap().join("missing");
        assert_eq!(resolve(std::slice::from_ref(&missing)).unwrap(), [missing]);
        let file = dir.path().join("file");
        std::fs::write(&file, b"").unwrap();
        assert!(matches!(resolve(&[file]), Err(Failure::Failed(_))));
    }
}
