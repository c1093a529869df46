//! `mendfs salvage`: copies what can be read of a damaged file and fills the rest with zeros.
//!
//! Nothing is guessed: a byte of the copy is either the file's, verified, or a zero inside a range
//! that the report names. Exits with 1 if there is such a range.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;
use std::process::ExitCode;

use nix::errno::Errno;
use nix::unistd::{Whence, lseek};
use serde::Serialize;

use super::args::SalvageArgs;
use super::outcome::{Failure, print_json, print_text};

/// What is damaged is damaged in blocks of this size.
const BLOCK: u64 = 4096;
const READ: usize = 1 << 20;

/// A range that could not be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
struct Gap {
    offset: u64,
    length: u64,
}

/// What became of it.
#[derive(Debug, Default, PartialEq, Eq, Serialize)]
struct Report {
    file: String,
    out: String,
    size: u64,
    /// Bytes that are zeros in the copy because no mirror had them.
    lost_bytes: u64,
    lost: Vec<Gap>,
}

/// What is copied from.
trait Source {
    /// As pread(2).
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize>;
    /// Start of the data at or after that offset; none if there is only a hole.
    fn data(&self, offset: u64) -> Option<u64>;
    /// Start of the hole at or after that offset.
    fn hole(&self, offset: u64, size: u64) -> u64;
}

impl Source for File {
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        FileExt::read_at(self, buf, offset)
    }

    fn data(&self, offset: u64) -> Option<u64> {
        match lseek(self, i64::try_from(offset).ok()?, Whence::SeekData) {
            Ok(found) => u64::try_from(found).ok(),
            Err(Errno::ENXIO) => None,
            // Holes are then copied as zeros.
            Err(_) => Some(offset),
        }
    }

    fn hole(&self, offset: u64, size: u64) -> u64 {
        let found = i64::try_from(offset)
            .ok()
            .and_then(|offset| lseek(self, offset, Whence::SeekHole).ok());
        found
            .and_then(|found| u64::try_from(found).ok())
            .unwrap_or(size)
    }
}

/// Copies and prints the report.
pub(super) fn run(args: &SalvageArgs) -> Result<ExitCode, Failure> {
    let failed =
        |path: &Path, error: io::Error| Failure::Failed(format!("{}: {error}", path.display()));
    let file = File::open(&args.file).map_err(|error| failed(&args.file, error))?;
    let metadata = file.metadata().map_err(|error| failed(&args.file, error))?;
    if !metadata.is_file() {
        let shown = args.file.display();
        return Err(Failure::Failed(format!("{shown} is not a regular file")));
    }
    let out = create(args, &metadata)?;
    let size = metadata.len();
    let lost = copy(&file, &out, size)
        .map_err(|(reading, error)| failed(if reading { &args.file } else { &args.out }, error))?;
    let permissions = std::fs::Permissions::from_mode(metadata.mode() & 0o777);
    out.set_len(size)
        .and_then(|()| out.set_permissions(permissions))
        .and_then(|()| out.sync_all())
        .map_err(|error| failed(&args.out, error))?;
    let report = Report {
        file: args.file.display().to_string(),
        out: args.out.display().to_string(),
        size,
        lost_bytes: lost.iter().map(|gap| gap.length).sum(),
        lost,
    };
    if args.json {
        print_json("salvage", &report)?;
    } else {
        print_text(&render(&report))?;
    }
    Ok(if report.lost.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

fn create(args: &SalvageArgs, source: &std::fs::Metadata) -> Result<File, Failure> {
    let shown = args.out.display();
    if let Ok(there) = std::fs::metadata(&args.out)
        && (there.dev(), there.ino()) == (source.dev(), source.ino())
    {
        return Err(Failure::Usage(format!(
            "{shown} is the damaged file itself"
        )));
    }
    let mut options = OpenOptions::new();
    // Nobody else reads it before it has the permissions of the original.
    options.write(true).mode(0o600);
    let options = match args.force {
        true => options.create(true).truncate(true),
        false => options.create_new(true),
    };
    options.open(&args.out).map_err(|error| match error.kind() {
        io::ErrorKind::AlreadyExists => Failure::Failed(format!(
            "{shown} is there already; name another, or give --force"
        )),
        _ => Failure::Failed(format!("cannot make {shown}: {error}")),
    })
}

/// Copies; an error says whether it came from reading.
fn copy(from: &impl Source, to: &File, size: u64) -> Result<Vec<Gap>, (bool, io::Error)> {
    let mut buffer = vec![0; READ];
    let mut lost: Vec<Gap> = Vec::new();
    let mut at = 0;
    while at < size {
        let Some(data) = from.data(at) else { break };
        at = at.max(data);
        let end = from.hole(at, size).clamp(at, size);
        while at < end {
            let want = buffer.len().min((end - at) as usize);
            match read_piece(from, &mut buffer[..want], at) {
                Ok(0) => return Ok(lost),
                Ok(got) => {
                    to.write_all_at(&buffer[..got], at)
                        .map_err(|error| (false, error))?;
                    at += got as u64;
                }
                Err(error) if error.raw_os_error() == Some(Errno::EIO as i32) => {
                    let next = ((at / BLOCK + 1) * BLOCK).min(end);
                    match lost.last_mut() {
                        Some(gap) if gap.offset + gap.length == at => gap.length += next - at,
                        _ => lost.push(Gap {
                            offset: at,
                            length: next - at,
                        }),
                    }
                    at = next;
                }
                Err(error) => return Err((true, error)),
            }
        }
    }
    Ok(lost)
}

/// Reads as much as there is before a bad block; fails only if the first block is bad.
fn read_piece(from: &impl Source, buffer: &mut [u8], at: u64) -> io::Result<usize> {
    match from.read_at(buffer, at) {
        Err(error) if error.raw_os_error() == Some(Errno::EIO as i32) => {
            let block = ((BLOCK - at % BLOCK) as usize).min(buffer.len());
            from.read_at(&mut buffer[..block], at)
        }
        result => result,
    }
}

fn render(report: &Report) -> String {
    let mut text = String::new();
    for gap in &report.lost {
        text.push_str(&format!("lost: {} bytes at {}\n", gap.length, gap.offset));
    }
    let saved = report.size - report.lost_bytes;
    text.push_str(&format!(
        "{}: {saved} of {} bytes saved{}\n",
        report.out,
        report.size,
        match report.lost_bytes {
            0 => String::new(),
            lost => format!(", {lost} filled with zeros"),
        }
    ));
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A file with bad blocks and a hole.
    struct Bad {
        content: Vec<u8>,
        bad: Vec<u64>,
        hole: std::ops::Range<u64>,
        /// Whether a long read fails as a whole if it meets a bad block.
        strict: bool,
    }

    impl Source for Bad {
        fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
            let end = self.content.len().min(offset as usize + buf.len());
            let mut got = end - offset as usize;
            for block in &self.bad {
                let (start, stop) = (block * BLOCK, (block + 1) * BLOCK);
                if (offset as usize + got) as u64 > start && offset < stop {
                    if self.strict || offset >= start {
                        return Err(io::Error::from_raw_os_error(Errno::EIO as i32));
                    }
                    got = got.min((start - offset) as usize);
                }
            }
            buf[..got].copy_from_slice(&self.content[offset as usize..offset as usize + got]);
            Ok(got)
        }

        fn data(&self, offset: u64) -> Option<u64> {
            Some(if self.hole.contains(&offset) {
                self.hole.end
            } else {
                offset
            })
        }

        fn hole(&self, offset: u64, size: u64) -> u64 {
            if offset < self.hole.start {
                self.hole.start
            } else {
                size
            }
        }
    }

    #[test]
    fn everything_but_the_bad_blocks_is_saved() {
        let len = 600 * BLOCK as usize + 100;
        let mut content: Vec<u8> = (0..len).map(|n| (n / 7) as u8 | 1).collect();
        let hole = 100 * BLOCK..200 * BLOCK;
        content[100 * BLOCK as usize..200 * BLOCK as usize].fill(0);
        for strict in [false, true] {
            let source = Bad {
                content: content.clone(),
                bad: vec![0, 5, 6, 90, 300, 600],
                hole: hole.clone(),
                strict,
            };
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("out");
            let out = File::create(&path).unwrap();
            let lost = copy(&source, &out, len as u64).unwrap();
            out.set_len(len as u64).unwrap();
            let ranges: Vec<_> = lost.iter().map(|gap| (gap.offset, gap.length)).collect();
            let wanted = [
                (0, BLOCK),
                (5 * BLOCK, 2 * BLOCK),
                (90 * BLOCK, BLOCK),
                (300 * BLOCK, BLOCK),
                (600 * BLOCK, 100),
            ];
            assert_eq!(ranges, wanted, "strict: {strict}");
            let mut expected = content.clone();
            for (offset, length) in ranges {
                expected[offset as usize..(offset + length) as usize].fill(0);
            }
            assert!(
                std::fs::read(&path).unwrap() == expected,
                "strict: {strict}"
            );
        }
    }

    #[test]
    fn the_report_names_what_is_lost() {
        let report = Report {
            out: "/o".to_owned(),
            size: 10_000,
            lost_bytes: 4096,
            lost: vec![Gap {
                offset: 4096,
                length: 4096,
            }],
            ..Report::default()
        };
        let expected = "lost: 4096 bytes at 4096\n\
                        /o: 5904 of 10000 bytes saved, 4096 filled with zeros\n";
        assert_eq!(render(&report), expected);
    }
}
