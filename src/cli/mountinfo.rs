//! What is mounted where, from /proc/self/mountinfo: read without touching any filesystem, so it
//! answers also about a mount whose server hangs or is this very process.

use std::ffi::OsString;
use std::io;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

/// One line of mountinfo, as far as it matters here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Mount {
    /// Device number as "major:minor", as sysfs names it.
    pub(super) device: String,
    /// Where it is mounted.
    pub(super) mount_point: PathBuf,
    /// Filesystem type with subtype.
    pub(super) kind: String,
    /// Source.
    pub(super) source: OsString,
}

/// Every mount, in the order in which they were made.
pub(super) fn all() -> io::Result<Vec<Mount>> {
    let text = std::fs::read("/proc/self/mountinfo")?;
    Ok(text
        .split(|byte| *byte == b'\n')
        .filter_map(parse)
        .collect())
}

/// The topmost mount at exactly this path, which must be free of links.
pub(super) fn at(path: &Path) -> io::Result<Option<Mount>> {
    Ok(all()?
        .into_iter()
        .rev()
        .find(|mount| mount.mount_point == path))
}

/// "36 35 98:0 /root /mnt rw,noatime master:1 - ext3 /dev/root rw": the optional fields end at "-".
fn parse(line: &[u8]) -> Option<Mount> {
    let mut fields = line.split(|byte| *byte == b' ');
    let device = String::from_utf8(fields.nth(2)?.to_vec()).ok()?;
    let mount_point = PathBuf::from(unescape(fields.nth(1)?));
    let mut rest = fields.skip_while(|field| *field != b"-").skip(1);
    let kind = String::from_utf8_lossy(rest.next()?).into_owned();
    let source = unescape(rest.next()?);
    Some(Mount {
        device,
        mount_point,
        kind,
        source,
    })
}

/// Undoes the kernel's octal escapes of space, tab, newline, backslash and '#'.
fn unescape(field: &[u8]) -> OsString {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((first, after)) = rest.split_first() {
        match (first, octal(after)) {
            (b'\\', Some(byte)) => {
                bytes.push(byte);
                rest = after.get(3..).unwrap_or_default();
            }
            _ => {
                bytes.push(*first);
                rest = after;
            }
        }
    }
    OsString::from_vec(bytes)
}

fn octal(digits: &[u8]) -> Option<u8> {
    let digits = std::str::from_utf8(digits.get(..3)?).ok()?;
    u8::from_str_radix(digits, 8).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_with_optional_fields_and_escapes_is_read() {
        let line = concat!(
            r"61 29 0:55 / /mnt/with\040space rw,relatime shared:7 master:1 ",
            r"- fuse.mendfs /a\134:b:/c rw,user_id=0"
        )
        .as_bytes();
        let mount = parse(line).unwrap();
        assert_eq!(mount.device, "0:55");
        assert_eq!(mount.mount_point, Path::new("/mnt/with space"));
        assert_eq!(mount.kind, "fuse.mendfs");
        assert_eq!(mount.source, r"/a\:b:/c");
    }

    #[test]
    fn a_line_without_optional_fields_is_read() {
        let mount = parse(b"1 0 8:1 / / rw - ext4 /dev/sda1 rw").unwrap();
        assert_eq!(
            (mount.kind.as_str(), mount.device.as_str()),
            ("ext4", "8:1")
        );
        assert_eq!(parse(b""), None);
    }

    #[test]
    fn the_root_of_this_machine_is_found() {
        assert!(at(Path::new("/")).unwrap().is_some());
        assert_eq!(at(Path::new("/no/such/mount")).unwrap(), None);
    }
}
