//! The command lines, as clap reads them. What an argument means is told in its command's file.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::{ArgAction, Args, Parser, Subcommand, ValueEnum};

/// A mirrored, checksummed, self-healing filesystem over ordinary directories.
#[derive(Debug, Parser)]
#[command(name = "mendfs", version, arg_required_else_help = true)]
pub(super) struct Cli {
    #[command(subcommand)]
    pub(super) command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Make a pool of two or more directories
    Format(FormatArgs),
    /// Mount a pool
    Mount(MountArgs),
    /// Tell how a pool is
    Status(StatusArgs),
    /// Show and change the mirrors of a mounted pool
    Mirror(MirrorArgs),
    /// Verify everything in a mounted pool, and heal it
    Scrub(ScrubArgs),
    /// Tell what happened to a mounted pool
    Events(EventsArgs),
    /// Save what can be read of a damaged file
    Salvage(SalvageArgs),
    /// Check a pool that is not mounted
    Check(CheckArgs),
    /// Print what a shell needs to complete command lines; for packagers
    #[command(hide = true)]
    Completions(CompletionsArgs),
}

/// Arguments of `mendfs format` and mkfs.mendfs.
#[derive(Debug, Parser)]
#[command(
    name = "mkfs.mendfs",
    version,
    about = "Make a pool of two or more directories"
)]
pub(super) struct FormatArgs {
    /// Name of the pool, shown by `mendfs status`
    #[arg(long, short = 'L', default_value = "")]
    pub(super) label: String,
    /// Checksum of data and metadata
    #[arg(long, value_enum, default_value_t = Checksum::Crc32)]
    pub(super) checksum: Checksum,
    /// Size of the journal, such as 64M; by default 64 MiB, less on a small disk
    #[arg(long, value_name = "SIZE", value_parser = journal_size)]
    pub(super) journal_size: Option<u64>,
    /// Make the pool even if a directory is not empty or is a mirror of another pool
    #[arg(long, short)]
    pub(super) force: bool,
    /// Print a report as JSON
    #[arg(long)]
    pub(super) json: bool,
    /// Directories to mirror to, best on different disks
    #[arg(required = true, num_args = 1.., value_name = "DIR")]
    pub(super) directories: Vec<PathBuf>,
}

fn journal_size(text: &str) -> Result<u64, String> {
    const RANGE: std::ops::RangeInclusive<u64> = 4 << 20..=16 << 30;
    match super::options::size(text) {
        Some(size) if RANGE.contains(&size) => Ok(size),
        Some(_) => Err("a journal has 4M to 16G".to_owned()),
        None => Err("not a size".to_owned()),
    }
}

/// Checksum algorithms by name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum Checksum {
    /// CRC-32: 4 bytes for each 4 KiB, practically free
    Crc32,
    /// XXH3: 8 bytes
    Xxh3,
    /// BLAKE3: 32 bytes, cryptographic
    Blake3,
    /// SHA-256: 32 bytes, cryptographic
    Sha256,
}

/// Arguments of `mendfs mount`.
#[derive(Debug, Args)]
pub(super) struct MountArgs {
    /// Stay in the foreground and log to standard error
    #[arg(short, long)]
    pub(super) foreground: bool,
    /// Mount options, separated by commas; see mount.mendfs(8)
    #[arg(short, value_name = "OPTIONS", action = ArgAction::Append)]
    pub(super) options: Vec<OsString>,
    /// The mirror directories, separated by colons
    #[arg(value_name = "DIR1:DIR2")]
    pub(super) source: OsString,
    /// The directory to mount on
    #[arg(value_name = "MOUNTPOINT")]
    pub(super) mount_point: PathBuf,
}

/// Arguments that mount(8) gives its helpers.
#[derive(Debug, Parser)]
#[command(
    name = "mount.mendfs",
    version,
    about = "Mount a mendfs pool; run by mount(8)"
)]
pub(super) struct HelperArgs {
    /// The mirror directories, separated by colons
    #[arg(value_name = "DIR1:DIR2")]
    pub(super) source: OsString,
    /// The directory to mount on
    #[arg(value_name = "MOUNTPOINT")]
    pub(super) mount_point: PathBuf,
    /// Mount options, separated by commas
    #[arg(short, value_name = "OPTIONS", action = ArgAction::Append)]
    pub(super) options: Vec<OsString>,
    /// Check everything, but do not mount
    #[arg(short, long = "fake")]
    pub(super) fake: bool,
    /// Ignore mount options that are not known
    #[arg(short)]
    pub(super) sloppy: bool,
    /// Do not write to /etc/mtab, which mendfs never does
    #[arg(short)]
    pub(super) no_mtab: bool,
    /// Say what is done
    #[arg(short)]
    pub(super) verbose: bool,
    /// Mount read-only
    #[arg(short, long = "read-only")]
    pub(super) read_only: bool,
    /// Mount read-write, the default
    #[arg(short = 'w', long = "rw", overrides_with = "read_only")]
    pub(super) read_write: bool,
    /// Mount namespace; mount(8) has entered it
    #[arg(short = 'N', value_name = "NAMESPACE")]
    pub(super) namespace: Option<OsString>,
    /// Filesystem type
    #[arg(short = 't', value_name = "TYPE")]
    pub(super) kind: Option<OsString>,
}

/// Arguments that umount(8) gives its helpers.
#[derive(Debug, Parser)]
#[command(
    name = "umount.mendfs",
    version,
    about = "Unmount a mendfs pool and wait until it is closed; run by umount(8)"
)]
pub(super) struct UmountArgs {
    /// The mount point
    #[arg(value_name = "MOUNTPOINT")]
    pub(super) mount_point: PathBuf,
    /// End the connection even if requests are under way
    #[arg(short)]
    pub(super) force: bool,
    /// Detach now and close when it is no longer busy
    #[arg(short)]
    pub(super) lazy: bool,
    /// Do not write to /etc/mtab, which mendfs never does
    #[arg(short)]
    pub(super) no_mtab: bool,
    /// If it is busy, make the mount read-only instead
    #[arg(short)]
    pub(super) read_only: bool,
    /// Say what is done
    #[arg(short)]
    pub(super) verbose: bool,
    /// Mount namespace; umount(8) has entered it
    #[arg(short = 'N', value_name = "NAMESPACE")]
    pub(super) namespace: Option<OsString>,
    /// Filesystem type
    #[arg(short = 't', value_name = "TYPE")]
    pub(super) kind: Option<OsString>,
}

/// Arguments of `mendfs status`.
#[derive(Debug, Args)]
pub(super) struct StatusArgs {
    /// List every damaged file with its ranges, and the details of journal and recovery
    #[arg(long, short)]
    pub(super) verbose: bool,
    /// Show it again every so many seconds, 2 by default
    #[arg(
        long,
        value_name = "SECONDS",
        num_args = 0..=1,
        default_missing_value = "2",
        require_equals = true,
        conflicts_with = "json",
        value_parser = clap::value_parser!(u32).range(1..=86_400)
    )]
    pub(super) watch: Option<u32>,
    /// Print everything as JSON
    #[arg(long)]
    pub(super) json: bool,
    /// Where the pool is mounted, or its mirror directories if it is not
    #[arg(value_name = "MOUNTPOINT|DIR1:DIR2")]
    pub(super) target: OsString,
}

/// Arguments of `mendfs mirror`.
#[derive(Debug, Args)]
pub(super) struct MirrorArgs {
    /// Print a report as JSON
    #[arg(long, global = true)]
    pub(super) json: bool,
    /// Wait until the mirror is up to date, and show how far it is
    #[arg(long, global = true)]
    pub(super) wait: bool,
    #[command(subcommand)]
    pub(super) command: MirrorCommand,
}

/// What to do with the mirrors.
#[derive(Debug, Subcommand)]
pub(super) enum MirrorCommand {
    /// Show the mirrors and how they stand
    List {
        /// Where the pool is mounted, or its mirror directories if it is not
        #[arg(value_name = "MOUNTPOINT|DIR1:DIR2")]
        target: OsString,
    },
    /// Make an empty directory a mirror and fill it
    Add {
        /// The directory
        #[arg(value_name = "DIR")]
        mirror: PathBuf,
        /// Where the pool is mounted
        #[arg(value_name = "MOUNTPOINT")]
        mount_point: PathBuf,
    },
    /// Take a mirror off the pool for good
    Remove {
        /// Its directory or UUID
        #[arg(value_name = "DIR|UUID")]
        mirror: PathBuf,
        /// Where the pool is mounted
        #[arg(value_name = "MOUNTPOINT")]
        mount_point: PathBuf,
    },
    /// Take a mirror out until it is taken back
    Offline {
        /// Its directory or UUID
        #[arg(value_name = "DIR|UUID")]
        mirror: PathBuf,
        /// Where the pool is mounted
        #[arg(value_name = "MOUNTPOINT")]
        mount_point: PathBuf,
    },
    /// Take a mirror back and bring it up to date
    Online {
        /// Its directory
        #[arg(value_name = "DIR")]
        mirror: PathBuf,
        /// Where the pool is mounted
        #[arg(value_name = "MOUNTPOINT")]
        mount_point: PathBuf,
    },
    /// Fill an empty directory, which then takes the place of a mirror
    Replace {
        /// Directory or UUID of the mirror to replace, which serves until the new one is complete
        #[arg(value_name = "OLD")]
        old: PathBuf,
        /// The directory to replace it with
        #[arg(value_name = "NEW")]
        new: PathBuf,
        /// Where the pool is mounted
        #[arg(value_name = "MOUNTPOINT")]
        mount_point: PathBuf,
    },
}

/// Arguments of `mendfs scrub`.
#[derive(Debug, Args)]
pub(super) struct ScrubArgs {
    #[command(subcommand)]
    pub(super) command: ScrubCommand,
}

/// What to do with the scrub.
#[derive(Debug, Subcommand)]
pub(super) enum ScrubCommand {
    /// Begin a scrub, or go on with a paused one
    Start(ScrubStartArgs),
    /// Have the scrub stop where it is, until it is resumed
    Pause(ScrubTarget),
    /// Go on with a paused scrub
    Resume(ScrubTarget),
    /// End the scrub
    Cancel(ScrubTarget),
    /// Tell how far the scrub is, or how the last one ended
    Status(ScrubTarget),
}

/// Arguments of `mendfs scrub start`.
#[derive(Debug, Args)]
pub(super) struct ScrubStartArgs {
    /// Wait until it is done, and show how far it is
    #[arg(long)]
    pub(super) wait: bool,
    /// Read at most this many MB/s from each mirror; by default it gives way to applications
    #[arg(long, value_name = "MB/s", value_parser = scrub_rate)]
    pub(super) rate: Option<String>,
    /// Print the status as JSON
    #[arg(long)]
    pub(super) json: bool,
    /// Where the pool is mounted
    #[arg(value_name = "MOUNTPOINT")]
    pub(super) mount_point: PathBuf,
}

fn scrub_rate(text: &str) -> Result<String, String> {
    match crate::pool::parse_rate(text) {
        Some(_) => Ok(text.to_owned()),
        None => {
            Err("a rate is a number of MB/s such as 50 or 0.5, or of bytes/s as 50M".to_owned())
        }
    }
}

/// Arguments of the other subcommands of `mendfs scrub`.
#[derive(Debug, Args)]
pub(super) struct ScrubTarget {
    /// Print the status as JSON
    #[arg(long)]
    pub(super) json: bool,
    /// Where the pool is mounted
    #[arg(value_name = "MOUNTPOINT")]
    pub(super) mount_point: PathBuf,
}

/// Arguments of `mendfs events`.
#[derive(Debug, Args)]
pub(super) struct EventsArgs {
    /// Go on and print what happens from now on
    #[arg(long, short)]
    pub(super) follow: bool,
    /// Only what happened since then: 90s, 15m, 1h, 2d, a date, or a time as in RFC 3339
    #[arg(long, value_name = "TIME", value_parser = super::when::since)]
    pub(super) since: Option<i64>,
    /// Only the newest so many
    #[arg(long, short = 'n', value_name = "NUMBER")]
    pub(super) limit: Option<usize>,
    /// Print each event as one line of JSON
    #[arg(long)]
    pub(super) json: bool,
    /// Where the pool is mounted
    #[arg(value_name = "MOUNTPOINT")]
    pub(super) mount_point: PathBuf,
}

/// Arguments of `mendfs salvage`.
#[derive(Debug, Args)]
pub(super) struct SalvageArgs {
    /// Overwrite OUT if it is there
    #[arg(long, short)]
    pub(super) force: bool,
    /// Print a report as JSON
    #[arg(long)]
    pub(super) json: bool,
    /// The damaged file
    #[arg(value_name = "FILE")]
    pub(super) file: PathBuf,
    /// Where to put what can be read of it
    #[arg(value_name = "OUT")]
    pub(super) out: PathBuf,
}

/// Arguments of `mendfs check` and fsck.mendfs.
#[derive(Debug, Parser)]
#[command(
    name = "fsck.mendfs",
    version,
    about = "Check a pool that is not mounted"
)]
pub(super) struct CheckArgs {
    /// Recover the pool and rewrite bad copies; without it nothing is changed
    #[arg(long, short = 'p', visible_short_alias = 'a')]
    pub(super) repair: bool,
    /// Change nothing, whatever else is given
    #[arg(long, short = 'n')]
    pub(super) dry_run: bool,
    /// Print a report as JSON
    #[arg(long)]
    pub(super) json: bool,
    /// The mirror directories, separated by colons
    #[arg(value_name = "DIR1:DIR2")]
    pub(super) source: OsString,
}

/// Arguments of `mendfs completions`.
#[derive(Debug, Args)]
pub(super) struct CompletionsArgs {
    /// The shell
    #[arg(value_name = "SHELL")]
    pub(super) shell: clap_complete::Shell,
    /// The program
    #[arg(value_enum, value_name = "PROGRAM", default_value_t = Program::Mendfs)]
    pub(super) program: Program,
}

/// Programs that people type.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum Program {
    /// mendfs
    #[value(name = "mendfs")]
    Mendfs,
    /// mkfs.mendfs
    #[value(name = "mkfs.mendfs")]
    Mkfs,
    /// fsck.mendfs
    #[value(name = "fsck.mendfs")]
    Fsck,
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_lines_are_consistent() {
        Cli::command().debug_assert();
        FormatArgs::command().debug_assert();
        HelperArgs::command().debug_assert();
        UmountArgs::command().debug_assert();
        CheckArgs::command().debug_assert();
    }

    #[test]
    fn the_helper_takes_what_mount_gives_it() {
        let args = HelperArgs::try_parse_from([
            "mount.mendfs",
            "/a:/b",
            "/mnt",
            "-sfnv",
            "-N",
            "/proc/1/ns/mnt",
            "-o",
            "rw,noatime",
            "-t",
            "fuse.mendfs",
        ])
        .unwrap();
        assert!(args.sloppy && args.fake && args.no_mtab && args.verbose);
        assert_eq!(args.options, ["rw,noatime"]);
    }

    #[test]
    fn options_may_be_given_more_than_once() {
        let args =
            HelperArgs::try_parse_from(["mount.mendfs", "-o", "ro", "/a", "/m", "-o", "dev"]);
        assert_eq!(args.unwrap().options, ["ro", "dev"]);
    }
}
