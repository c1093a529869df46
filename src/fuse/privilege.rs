//! Whether the process behind a request may keep set-user-ID and set-group-ID bits.
//!
//! With HANDLE_KILLPRIV_V2 the kernel leaves clearing those bits to us and marks the requests
//! that must clear them. fuser passes that mark on for writes but not for `setattr`, where it
//! stands for two rules: a change of owner clears them always, a change of size does so unless
//! the caller has CAP_FSETID. The first needs no mark; for the second the caller's capabilities
//! are read from procfs. That costs a few microseconds and is done only for a file that has such
//! a bit. A caller that cannot be read does not have the capability: clearing is the safe side.

use nix::fcntl::{OFlag, open};
use nix::sys::stat::Mode;
use nix::unistd::read;

use crate::format::FileKind;
use crate::vfs::Attr;

/// CAP_FSETID of capabilities(7).
const CAP_FSETID: u32 = 4;

/// Set-user-ID and set-group-ID.
const SET_ID: u16 = 0o6000;

/// Whether there is a bit to clear. On a directory set-group-ID means something else and stays.
pub(super) fn has_set_id(attr: &Attr) -> bool {
    attr.permissions & SET_ID != 0 && attr.kind != FileKind::Directory
}

/// Whether the thread `pid` has CAP_FSETID in its effective set.
pub(super) fn may_keep_set_id(pid: u32) -> bool {
    let path = format!("/proc/{pid}/status");
    let Ok(file) = open(
        path.as_str(),
        OFlag::O_RDONLY | OFlag::O_CLOEXEC,
        Mode::empty(),
    ) else {
        return false;
    };
    // The file is about 1.5 KiB long and comes in one read.
    let mut text = [0; 8192];
    let Ok(len) = read(&file, &mut text) else {
        return false;
    };
    text.get(..len)
        .and_then(effective)
        .is_some_and(|set| set & (1 << CAP_FSETID) != 0)
}

/// The effective capability set in the text of `/proc/PID/status`.
fn effective(status: &[u8]) -> Option<u64> {
    let line = status
        .split(|byte| *byte == b'\n')
        .find_map(|line| line.strip_prefix(b"CapEff:"))?;
    u64::from_str_radix(std::str::from_utf8(line).ok()?.trim(), 16).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_effective_set_is_found_among_the_others() {
        let text = b"Name:\tsh\nCapPrm:\tffff\nCapEff:\t0000000000000010\nCapBnd:\tffff\n";
        assert_eq!(effective(text), Some(0x10));
        assert_eq!(effective(b"Name:\tsh\n"), None);
        assert_eq!(effective(b"CapEff:\tnonsense\n"), None);
    }

    #[test]
    fn a_process_that_is_not_there_may_not_keep_them() {
        assert!(!may_keep_set_id(u32::MAX));
    }
}
