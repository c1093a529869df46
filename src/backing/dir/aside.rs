//! What a mirror held before it was filled anew, kept until that is done.
//!
//! `diverged` in the mirror directory gets the files of a mirror that went on alone, with a copy of
//! its superblock: it is a mirror directory itself, and can be mounted on its own to look at what
//! it has. Everything is done relative to the mirror's descriptor.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::path::PathBuf;

use nix::errno::Errno;
use nix::fcntl::renameat;
use nix::sys::stat::{Mode, mkdirat};

use super::super::FileName;

const ASIDE: &str = "diverged";

/// Path of something below the mirror's descriptor, whatever its own path leads to by now.
fn below(root: &File, name: &str) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}/{name}", root.as_raw_fd()))
}

pub(super) fn set_aside(root: &File) -> io::Result<()> {
    match mkdirat(root, ASIDE, Mode::S_IRWXU) {
        Ok(()) | Err(Errno::EEXIST) => {}
        Err(errno) => return Err(errno.into()),
    }
    let superblock = FileName::Superblock.path();
    let copy = below(root, ASIDE).join(&superblock);
    std::fs::copy(below(root, &superblock.to_string_lossy()), &copy)?;
    File::open(&copy)?.sync_all()?;
    let files = [FileName::Journal, FileName::Index, FileName::Sums];
    let names = files.map(|file| file.path().to_string_lossy().into_owned());
    for name in names.iter().map(String::as_str).chain(["segments"]) {
        match renameat(root, name, root, format!("{ASIDE}/{name}").as_str()) {
            Ok(()) | Err(Errno::ENOENT) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
    File::open(below(root, ASIDE))?.sync_all()?;
    root.sync_all()
}

pub(super) fn forget(root: &File) -> io::Result<()> {
    match std::fs::remove_dir_all(below(root, ASIDE)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}
