//! Mount options: the `-o` list of mount(8), ours and the generic ones.
//!
//! Options are separated by commas; a value with a comma is put in double quotes, as mount(8) has
//! it, or the comma is escaped as `\,` (and a backslash as `\\`), as libfuse has it. A later option
//! overrides an earlier one. What mount(8) means for itself or for fstab is accepted and ignored;
//! anything else that is not known is refused by name, so that a mistyped option never goes
//! unnoticed.

use std::time::Duration;

use nix::mount::MsFlags;

use super::alert::{self, AlertSettings};
use super::outcome::Failure;
use crate::pool::parse_rate;
use crate::services::ScrubOptions;
use crate::vfs::AtimePolicy;

/// Time between syncs of what nobody asked to be synced.
const DEFAULT_COMMIT_INTERVAL: Duration = Duration::from_millis(500);
const SMALLEST_CACHE: u64 = 1 << 20;

/// When changes that no fsync asked for reach the disks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Commit {
    /// With each operation, before it is acknowledged.
    Always,
    /// At most this long after the operation.
    Interval(Duration),
    /// Only with fsync, checkpoints and unmount.
    None,
}

/// What the options ask for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Options {
    /// Generic mount flags, MS_RDONLY among them.
    pub(super) flags: MsFlags,
    /// Change the flags of a mount that is there.
    pub(super) remount: bool,
    /// When changes reach the disks.
    pub(super) commit: Commit,
    /// Memory for cached index pages in bytes; none: the pool's default.
    pub(super) cache_bytes: Option<u64>,
    /// Whether a pool may be mounted that lacks a mirror.
    pub(super) degraded: bool,
    /// Whether POSIX ACLs are enforced and can be set.
    pub(super) acl: bool,
    /// Mirror whose history is kept where mirrors went on apart.
    pub(super) prefer: Option<String>,
    /// Mirror to read from.
    pub(super) read: Option<String>,
    /// Bytes per second for bringing mirrors up to date; none: as fast as applications let it.
    pub(super) resync_rate: Option<u64>,
    /// When and how fast the pool is scrubbed.
    pub(super) scrub: ScrubOptions,
    /// Who is told what.
    pub(super) alerts: AlertSettings,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            flags: MsFlags::empty(),
            remount: false,
            commit: Commit::Interval(DEFAULT_COMMIT_INTERVAL),
            cache_bytes: None,
            degraded: true,
            acl: true,
            prefer: None,
            read: None,
            resync_rate: None,
            scrub: ScrubOptions::default(),
            alerts: AlertSettings::default(),
        }
    }
}

impl Options {
    /// Whether nothing may be changed.
    pub(super) const fn read_only(&self) -> bool {
        self.flags.contains(MsFlags::MS_RDONLY)
    }

    /// When reading is to change access times. The kernel leaves that to the filesystem here.
    pub(super) const fn atime(&self) -> AtimePolicy {
        if self.flags.contains(MsFlags::MS_NOATIME) {
            AtimePolicy::Never
        } else if self.flags.contains(MsFlags::MS_STRICTATIME) {
            AtimePolicy::Strict
        } else {
            AtimePolicy::Relative
        }
    }

    /// Reads the lists in order. `sloppy` ignores what is not known, as mount(8) -s asks.
    pub(super) fn parse<'a>(
        lists: impl IntoIterator<Item = &'a str>,
        sloppy: bool,
    ) -> Result<Options, Failure> {
        let given: Vec<String> = lists.into_iter().flat_map(split).collect();
        let remount = given.iter().any(|option| option == "remount");
        let mut options = Options::default();
        for option in &given {
            let shown = remount && SHOWN_BY_KERNEL.contains(&name_of(option));
            if !options.apply(option)? && !shown && !sloppy {
                return Err(unknown(option));
            }
        }
        Ok(options)
    }

    /// Applies one option; false if it is not known.
    fn apply(&mut self, option: &str) -> Result<bool, Failure> {
        let (name, value) = match option.split_once('=') {
            Some((name, value)) => (name, Some(value)),
            None => (option, None),
        };
        if let Some((_, effect)) = GENERIC.iter().find(|(known, _)| *known == name) {
            return match (effect, value) {
                (Effect::IgnoreWithValue, _) => Ok(true),
                (_, Some(_)) => Err(Failure::Usage(format!("option \"{name}\" takes no value"))),
                (effect, None) => {
                    self.apply_generic(*effect);
                    Ok(true)
                }
            };
        }
        match (name, value) {
            ("commit", Some(value)) => self.commit = commit(value)?,
            ("cache", Some(value)) => self.cache_bytes = Some(cache(value)?),
            ("prefer", Some(value)) => self.prefer = Some(value.to_owned()),
            ("read", Some(value)) => self.read = Some(value.to_owned()),
            ("resync_rate", Some(value)) => self.resync_rate = Some(rate(name, value)?),
            ("scrub_interval", Some(value)) => self.scrub.interval = scrub_interval(value)?,
            ("scrub_rate", Some(value)) => self.scrub.rate = scrub_rate(value)?,
            (name, None) if VALUED.contains(&name) => {
                return Err(Failure::Usage(format!("option \"{name}\" needs a value")));
            }
            ("degraded", None) => self.degraded = true,
            ("nodegraded", None) => self.degraded = false,
            ("acl", None) => self.acl = true,
            ("noacl", None) => self.acl = false,
            ("degraded" | "nodegraded" | "acl" | "noacl", Some(_)) => {
                return Err(Failure::Usage(format!("option \"{name}\" takes no value")));
            }
            (name, value) if alert::NAMES.contains(&name) => self.alerts.set(name, value)?,
            ("remount", None) => self.remount = true,
            // Notes of other programs in fstab.
            (name, _) if name.starts_with("x-") || name.starts_with("X-") => {}
            _ => return Ok(false),
        }
        Ok(true)
    }

    fn apply_generic(&mut self, effect: Effect) {
        match effect {
            Effect::Set(flags) => self.flags |= flags,
            Effect::Clear(flags) => self.flags &= !flags,
            Effect::Ignore | Effect::IgnoreWithValue => {}
        }
    }
}

/// What a generic option does.
#[derive(Debug, Clone, Copy)]
enum Effect {
    Set(MsFlags),
    Clear(MsFlags),
    Ignore,
    IgnoreWithValue,
}

/// What a mount by an ordinary user implies, unless a later option says otherwise.
const OWNER: MsFlags = MsFlags::MS_NOSUID.union(MsFlags::MS_NODEV);
const USER: MsFlags = OWNER.union(MsFlags::MS_NOEXEC);

/// The options of mount(8) that are not about one filesystem.
const GENERIC: &[(&str, Effect)] = &[
    ("ro", Effect::Set(MsFlags::MS_RDONLY)),
    ("rw", Effect::Clear(MsFlags::MS_RDONLY)),
    ("exec", Effect::Clear(MsFlags::MS_NOEXEC)),
    ("noexec", Effect::Set(MsFlags::MS_NOEXEC)),
    ("suid", Effect::Clear(MsFlags::MS_NOSUID)),
    ("nosuid", Effect::Set(MsFlags::MS_NOSUID)),
    ("dev", Effect::Clear(MsFlags::MS_NODEV)),
    ("nodev", Effect::Set(MsFlags::MS_NODEV)),
    ("atime", Effect::Clear(MsFlags::MS_NOATIME)),
    ("noatime", Effect::Set(MsFlags::MS_NOATIME)),
    ("diratime", Effect::Clear(MsFlags::MS_NODIRATIME)),
    ("nodiratime", Effect::Set(MsFlags::MS_NODIRATIME)),
    ("relatime", Effect::Set(MsFlags::MS_RELATIME)),
    ("norelatime", Effect::Clear(MsFlags::MS_RELATIME)),
    ("strictatime", Effect::Set(MsFlags::MS_STRICTATIME)),
    ("nostrictatime", Effect::Clear(MsFlags::MS_STRICTATIME)),
    ("sync", Effect::Set(MsFlags::MS_SYNCHRONOUS)),
    ("async", Effect::Clear(MsFlags::MS_SYNCHRONOUS)),
    ("dirsync", Effect::Set(MsFlags::MS_DIRSYNC)),
    ("user", Effect::IgnoreWithValue),
    ("defaults", Effect::Ignore),
    ("auto", Effect::Ignore),
    ("noauto", Effect::Ignore),
    ("nouser", Effect::Ignore),
    ("users", Effect::Set(USER)),
    ("owner", Effect::Set(OWNER)),
    ("group", Effect::Set(OWNER)),
    ("_netdev", Effect::Ignore),
    ("nofail", Effect::Ignore),
    ("silent", Effect::Ignore),
    ("loud", Effect::Ignore),
    ("lazytime", Effect::Ignore),
    ("nolazytime", Effect::Ignore),
    ("comment", Effect::IgnoreWithValue),
    ("uhelper", Effect::IgnoreWithValue),
    ("helper", Effect::IgnoreWithValue),
    // These two always hold; FUSE users are used to asking for them.
    ("allow_other", Effect::Ignore),
    ("default_permissions", Effect::Ignore),
];

/// What /proc/mounts shows of a FUSE mount and mount(8) therefore repeats at a remount.
const SHOWN_BY_KERNEL: &[&str] = &[
    "fd", "rootmode", "user_id", "group_id", "max_read", "blksize", "subtype",
];

/// Options of ours, for the list of close matches.
const OWN: &[&str] = &[
    "acl",
    "noacl",
    "commit",
    "cache",
    "degraded",
    "nodegraded",
    "prefer",
    "read",
    "remount",
    "resync_rate",
    "scrub_interval",
    "scrub_rate",
];

/// Those of them that need a value.
const VALUED: &[&str] = &[
    "commit",
    "cache",
    "prefer",
    "read",
    "resync_rate",
    "scrub_interval",
    "scrub_rate",
];

/// Splits at commas that are neither quoted nor escaped. Empty options, as in "ro,,noexec", are
/// left out.
fn split(list: &str) -> Vec<String> {
    let mut options = vec![String::new()];
    let mut characters = list.chars();
    let mut quoted = false;
    while let Some(character) = characters.next() {
        let kept = match character {
            '"' => {
                quoted = !quoted;
                continue;
            }
            ',' if !quoted => {
                options.push(String::new());
                continue;
            }
            '\\' => match characters.next() {
                Some(escaped @ (',' | '\\')) => escaped.to_string(),
                Some(other) => format!("\\{other}"),
                None => "\\".to_owned(),
            },
            other => other.to_string(),
        };
        if let Some(last) = options.last_mut() {
            last.push_str(&kept);
        }
    }
    options.retain(|option| !option.is_empty());
    options
}

fn commit(value: &str) -> Result<Commit, Failure> {
    match value {
        "always" => Ok(Commit::Always),
        "interval" => Ok(Commit::Interval(DEFAULT_COMMIT_INTERVAL)),
        "none" => Ok(Commit::None),
        value => match duration(value) {
            Some(interval) if !interval.is_zero() => Ok(Commit::Interval(interval)),
            _ => Err(Failure::Usage(format!(
                "option \"commit\" is always, none or a time such as 500ms or 5s, not \"{value}\""
            ))),
        },
    }
}

/// A time in whole milliseconds ("500ms") or seconds ("5s", or "5" as other filesystems have it).
pub(super) fn duration(text: &str) -> Option<Duration> {
    if let Some(number) = text.strip_suffix("ms") {
        return number.parse().ok().map(Duration::from_millis);
    }
    text.strip_suffix('s')
        .unwrap_or(text)
        .parse()
        .ok()
        .map(Duration::from_secs)
}

fn cache(value: &str) -> Result<u64, Failure> {
    match size(value) {
        Some(bytes) if bytes >= SMALLEST_CACHE => Ok(bytes),
        _ => Err(Failure::Usage(format!(
            "option \"cache\" is a size of 1M or more such as 128M or 1G, not \"{value}\""
        ))),
    }
}

/// Bytes per second.
fn rate(name: &str, value: &str) -> Result<u64, Failure> {
    parse_rate(value).ok_or_else(|| {
        Failure::Usage(format!(
            "option \"{name}\" is a number of MB/s such as 50 or 0.5, or bytes per second with a \
             unit such as 50M, not \"{value}\""
        ))
    })
}

/// Time between scrubs; none for `off`.
fn scrub_interval(value: &str) -> Result<Option<Duration>, Failure> {
    if value == "off" {
        return Ok(None);
    }
    let unit = value.char_indices().next_back().and_then(|(at, unit)| {
        let seconds = match unit {
            's' => 1,
            'm' => 60,
            'h' => 3600,
            'd' => 86_400,
            'w' => 7 * 86_400,
            _ => return None,
        };
        value[..at].parse::<u64>().ok()?.checked_mul(seconds)
    });
    match unit {
        Some(seconds) if seconds > 0 => Ok(Some(Duration::from_secs(seconds))),
        _ => Err(Failure::Usage(format!(
            "option \"scrub_interval\" is off or a time such as 30d, 12h or 90m, not \"{value}\""
        ))),
    }
}

/// Limit for scrubs in bytes per second; none for `auto`.
fn scrub_rate(value: &str) -> Result<Option<u64>, Failure> {
    if value == "auto" {
        return Ok(None);
    }
    rate("scrub_rate", value).map(Some)
}

/// A size in bytes, or with K, M, G or T in powers of 1024.
pub(super) fn size(text: &str) -> Option<u64> {
    let (number, shift) = match text.char_indices().next_back()? {
        (at, 'k' | 'K') => (&text[..at], 10),
        (at, 'm' | 'M') => (&text[..at], 20),
        (at, 'g' | 'G') => (&text[..at], 30),
        (at, 't' | 'T') => (&text[..at], 40),
        _ => (text, 0),
    };
    number.parse::<u64>().ok()?.checked_mul(1 << shift)
}

fn name_of(option: &str) -> &str {
    option.split_once('=').map_or(option, |(name, _)| name)
}

fn unknown(option: &str) -> Failure {
    let name = name_of(option);
    let mut close: Vec<(usize, &str)> = OWN
        .iter()
        .copied()
        .chain(alert::NAMES)
        .chain(GENERIC.iter().map(|(known, _)| *known))
        .map(|known| (distance(name, known), known))
        .filter(|(distance, known)| *distance <= 2.min(known.len() / 2))
        .collect();
    close.sort_unstable();
    let close: Vec<&str> = close.into_iter().take(3).map(|(_, known)| known).collect();
    Failure::Usage(if close.is_empty() {
        format!("unknown mount option \"{name}\"")
    } else {
        format!(
            "unknown mount option \"{name}\"; close to it: {}",
            close.join(", ")
        )
    })
}

/// Levenshtein distance: single-character insertions, deletions and replacements between two words.
fn distance(from: &str, to: &str) -> usize {
    let to: Vec<char> = to.chars().collect();
    let mut row: Vec<usize> = (0..=to.len()).collect();
    for (line, have) in from.chars().enumerate() {
        let mut diagonal = line;
        let mut left = line + 1;
        for (cell, want) in row.iter_mut().skip(1).zip(&to) {
            let replaced = diagonal + usize::from(have != *want);
            diagonal = *cell;
            left = replaced.min(*cell + 1).min(left + 1);
            *cell = left;
        }
        if let Some(first) = row.first_mut() {
            *first = line + 1;
        }
    }
    row.last().copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(list: &str) -> Options {
        Options::parse([list], false).unwrap()
    }

    fn refused(list: &str) -> String {
        Options::parse([list], false)
            .unwrap_err()
            .message()
            .to_owned()
    }

    #[test]
    fn the_default_is_read_write_with_nothing_forbidden() {
        for list in [
            "",
            "defaults",
            "rw",
            ",,",
            "rw,user,noauto,_netdev,nofail,x-systemd.after=a",
        ] {
            assert_eq!(parse(list), Options::default(), "{list}");
        }
    }

    #[test]
    fn a_later_option_overrides_an_earlier_one() {
        assert!(parse("rw,ro").read_only());
        assert!(!parse("ro,rw").read_only());
        assert!(Options::parse(["rw", "ro"], false).unwrap().read_only());
        assert_eq!(
            parse("users,exec").flags,
            MsFlags::MS_NOSUID | MsFlags::MS_NODEV
        );
        assert_eq!(parse("cache=1G,cache=64M").cache_bytes, Some(64 << 20));
    }

    #[test]
    fn generic_flags_reach_the_kernel() {
        let flags = parse("nosuid,nodev,noexec,noatime,dirsync,sync").flags;
        let wanted = USER | MsFlags::MS_NOATIME | MsFlags::MS_DIRSYNC | MsFlags::MS_SYNCHRONOUS;
        assert_eq!(flags, wanted);
    }

    #[test]
    fn values_are_typed() {
        assert_eq!(parse("commit=always").commit, Commit::Always);
        assert_eq!(parse("commit=none").commit, Commit::None);
        assert_eq!(
            parse("commit=5").commit,
            Commit::Interval(Duration::from_secs(5))
        );
        assert_eq!(
            parse("commit=5s").commit,
            Commit::Interval(Duration::from_secs(5))
        );
        assert_eq!(
            parse("commit=250ms").commit,
            Commit::Interval(Duration::from_millis(250))
        );
        assert_eq!(parse("cache=1048576").cache_bytes, Some(1 << 20));
        let day = Duration::from_secs(86_400);
        assert_eq!(parse("").scrub.interval, Some(30 * day));
        assert_eq!(parse("scrub_interval=2d").scrub.interval, Some(2 * day));
        assert_eq!(parse("scrub_interval=off").scrub.interval, None);
        assert_eq!(parse("scrub_rate=1.5").scrub.rate, Some(1_500_000));
        assert_eq!(parse("scrub_rate=1,scrub_rate=auto").scrub.rate, None);
        assert_eq!(parse("scrub_rate=1.5K").scrub.rate, Some(1536));
        assert_eq!(parse("resync_rate=50").resync_rate, Some(50_000_000));
        assert_eq!(parse("resync_rate=50M").resync_rate, Some(50 << 20));
        assert!(!parse("nodegraded").degraded);
        assert!(parse("").acl && parse("noacl,acl").acl && !parse("acl,noacl").acl);
        assert!(parse("remount,ro").remount);
    }

    #[test]
    fn wrong_values_are_refused_by_name() {
        for list in [
            "commit",
            "commit=",
            "commit=0",
            "commit=soon",
            "cache=1",
            "cache=1X",
            "cache=-1",
            "cache=99999999999G",
            "cache",
            "ro=1",
            "degraded=yes",
            "acl=no",
            "scrub_interval=0d",
            "scrub_interval=30",
            "scrub_interval=",
            "scrub_interval",
            "scrub_rate=fast",
            "scrub_rate=0",
            "scrub_rate=-1",
            "scrub_rate=inf",
            "scrub_rate=M",
            "resync_rate=0K",
        ] {
            let name = list.split('=').next().unwrap();
            assert!(
                refused(list).contains(&format!("\"{name}\"")),
                "{list}: {}",
                refused(list)
            );
        }
    }

    #[test]
    fn an_unknown_option_is_refused_with_close_matches() {
        assert_eq!(
            refused("nodeb"),
            "unknown mount option \"nodeb\"; close to it: nodev"
        );
        assert!(refused("comit=5").ends_with("close to it: commit"));
        assert_eq!(
            refused("compression=zstd"),
            "unknown mount option \"compression\""
        );
        assert_eq!(
            refused("auto_unmount"),
            "unknown mount option \"auto_unmount\""
        );
        assert!(Options::parse(["nonsense"], true).is_ok());
    }

    #[test]
    fn a_remount_may_repeat_what_the_kernel_shows() {
        let shown = "rw,relatime,user_id=0,group_id=0,default_permissions,allow_other,remount,ro";
        assert!(parse(shown).read_only());
        assert!(refused("user_id=0").contains("\"user_id\""));
    }

    #[test]
    fn escaped_and_quoted_commas_do_not_separate() {
        assert_eq!(split("a=\"b,c\",d"), ["a=b,c", "d"]);
        assert_eq!(split(r"a\,b,c\\,d\e,"), ["a,b", r"c\", r"d\e"]);
        assert_eq!(parse(r"comment=a\,b,ro"), parse("ro"));
    }

    #[test]
    fn distance_counts_single_edits() {
        for (from, to, edits) in [
            ("", "", 0),
            ("a", "", 1),
            ("", "ab", 2),
            ("nodeb", "nodev", 1),
            ("kitten", "sitting", 3),
        ] {
            assert_eq!(distance(from, to), edits, "{from} {to}");
        }
    }
}
