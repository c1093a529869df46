//! Filesystems for mirrors to lie on: tmpfs, and ext4, btrfs and XFS in images on loop devices.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

use nix::mount::{MsFlags, mount};

use super::{Mounted, Pool, scratch};

/// Puts a filesystem of that size on a directory.
pub(crate) type Medium = fn(&Path, u64);

/// A pool whose mirrors lie on filesystems of these sizes.
pub(crate) fn pool_on(sizes: &[u64], medium: Medium) -> Pool {
    let media: Vec<_> = sizes.iter().map(|size| (medium, *size)).collect();
    pool_on_each(&media)
}

/// As [`pool_on`], with a filesystem of its own kind for each mirror.
pub(crate) fn pool_on_each(media: &[(Medium, u64)]) -> Pool {
    let dir = scratch();
    let mut disks = Vec::new();
    let mut mirrors = Vec::new();
    for (number, (medium, size)) in media.iter().enumerate() {
        let at = dir.path().join(format!("disk{number}"));
        fs::create_dir(&at).expect("mkdir");
        medium(&at, *size);
        disks.push(Mounted(at.clone()));
        mirrors.push(at.join("mirror"));
    }
    let mut pool = Pool::create_at(dir, mirrors, &[]);
    pool.own_disks(disks);
    pool
}

pub(crate) fn tmpfs(at: &Path, size: u64) {
    let options = format!("size={size}");
    let flags = MsFlags::empty();
    let (kind, data) = (Some("tmpfs"), Some(options.as_str()));
    mount(Some("none"), at, kind, flags, data).expect("tmpfs");
}

pub(crate) fn ext4(at: &Path, size: u64) {
    image(at, size, "mkfs.ext4", &["-qF", "-m", "0"]);
}

/// ext4 with the blocks that a large one has, and so with room for as many attributes.
pub(crate) fn ext4_of_4k(at: &Path, size: u64) {
    image(at, size, "mkfs.ext4", &["-qF", "-b", "4096"]);
}

pub(crate) fn btrfs(at: &Path, size: u64) {
    image(at, size, "mkfs.btrfs", &["-qf"]);
}

pub(crate) fn xfs(at: &Path, size: u64) {
    image(at, size, "mkfs.xfs", &["-qf"]);
}

fn image(at: &Path, size: u64, program: &str, options: &[&str]) {
    let image = image_of(at);
    File::create(&image)
        .and_then(|file| file.set_len(size))
        .expect("an image");
    run(program, options, &[&image]);
    mount_image(at);
}

/// The image that is mounted on a directory.
fn image_of(at: &Path) -> PathBuf {
    at.with_extension("img")
}

/// Mounts the image of a directory, for the first time or again.
pub(crate) fn mount_image(at: &Path) {
    run("mount", &["-o", "loop"], &[&image_of(at), at]);
}

fn run(program: &str, options: &[&str], paths: &[&Path]) {
    let done = Command::new(program).args(options).args(paths).output();
    let done = done.expect("the program runs");
    assert!(done.status.success(), "{program}: {}", super::text(&done));
}
