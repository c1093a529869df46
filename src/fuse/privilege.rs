//! Whether the process behind a request may keep set-user-ID and set-group-ID bits.
//!
//! With HANDLE_KILLPRIV_V2 the kernel leaves clearing those bits to us and marks the requests
//! that must clear them. fuser passes that mark on for writes but not for `setattr`, where it
//! stands for two rules: a change of owner clears them always, a change of size does so unless
//! the caller has CAP_FSETID. The first needs no mark; for the second the caller's capabilities
//! are read from procfs. Nor does it pass on the mark of an access ACL that takes set-group-ID
//! away: whoever is not in the file's group needs the same capability. Reading procfs costs a few
//! microseconds and is done only for a file that has such a bit. A caller that cannot be read does
//! not have the capability: clearing is the safe side.
//!
//! Capabilities count in a user namespace. Anybody has all of them in one of their own, so only
//! those of callers in ours mean something here.

use fuser::Request;
use nix::fcntl::{OFlag, open, readlink};
use nix::sys::stat::Mode;
use nix::unistd::read;

use crate::format::FileKind;
use crate::vfs::Attr;

/// CAP_FOWNER of capabilities(7): whoever has it is as good as the owner.
const CAP_FOWNER: u32 = 3;
/// CAP_FSETID: may set such bits, and keep them.
const CAP_FSETID: u32 = 4;

/// Set-user-ID and set-group-ID.
const SET_ID: u16 = 0o6000;
const SET_UID: u16 = 0o4000;
const SET_GID: u16 = 0o2000;
const GROUP_EXECUTES: u16 = 0o0010;

/// Largest text of `/proc/PID/status` that is looked at: room for some thousand groups.
const STATUS_MAX: usize = 64 << 10;

/// Whether there is a bit to clear. On a directory set-group-ID means something else and stays.
pub(super) fn has_set_id(attr: &Attr) -> bool {
    attr.permissions & SET_ID != 0 && attr.kind != FileKind::Directory
}

/// Whether there is a bit to clear that makes a program run as somebody else.
pub(super) fn has_program_id(attr: &Attr) -> bool {
    has_set_id(attr) && (attr.permissions & SET_UID != 0 || attr.permissions & GROUP_EXECUTES != 0)
}

/// Whether a file has set-group-ID that its group cannot make use of.
pub(super) fn has_bare_set_gid(attr: &Attr) -> bool {
    has_set_id(attr) && attr.permissions & (SET_GID | GROUP_EXECUTES) == SET_GID
}

/// Whether there is a set-group-ID bit, on whatever.
pub(super) fn has_set_gid(attr: &Attr) -> bool {
    attr.permissions & SET_GID != 0
}

/// Whether the thread `pid` has CAP_FSETID in its effective set.
pub(super) fn may_keep_set_id(pid: u32) -> bool {
    status(pid).is_some_and(|status| has(&status, CAP_FSETID)) && shares_user_namespace(pid)
}

/// Whether the caller is the owner, or as good as that.
pub(super) fn is_owner(request: &Request, owner: u32) -> bool {
    let pid = request.pid();
    request.uid() == owner
        || status(pid).is_some_and(|status| has(&status, CAP_FOWNER)) && shares_user_namespace(pid)
}

/// Whether the caller is in that group, or has CAP_FSETID.
pub(super) fn is_member(request: &Request, group: u32) -> bool {
    if request.gid() == group {
        return true;
    }
    let pid = request.pid();
    status(pid).is_some_and(|status| {
        in_groups(&status, group) || has(&status, CAP_FSETID) && shares_user_namespace(pid)
    })
}

/// The text of `/proc/PID/status`.
fn status(pid: u32) -> Option<Vec<u8>> {
    let path = format!("/proc/{pid}/status");
    let flags = OFlag::O_RDONLY | OFlag::O_CLOEXEC;
    let file = open(path.as_str(), flags, Mode::empty()).ok()?;
    // About 1.5 KiB, unless there are very many groups.
    let mut text = vec![0; 4096];
    let mut len = 0;
    while len < STATUS_MAX {
        match read(&file, text.get_mut(len..)?).ok()? {
            0 => break,
            more => len += more,
        }
        text.resize(text.len().max(len + 4096), 0);
    }
    text.truncate(len);
    Some(text)
}

/// Whether the capabilities of that thread are over the same users as ours.
fn shares_user_namespace(pid: u32) -> bool {
    let namespace = |path: String| readlink(path.as_str()).ok();
    let own = namespace("/proc/self/ns/user".to_owned());
    own.is_some() && own == namespace(format!("/proc/{pid}/ns/user"))
}

/// Whether a capability is in the effective set.
fn has(status: &[u8], capability: u32) -> bool {
    let set = field(status, b"CapEff:").and_then(|text| u64::from_str_radix(text, 16).ok());
    set.is_some_and(|set| set & (1 << capability) != 0)
}

/// Whether a group is among the supplementary ones.
fn in_groups(status: &[u8], group: u32) -> bool {
    let groups = field(status, b"Groups:").unwrap_or_default();
    groups.split(' ').any(|text| text.parse() == Ok(group))
}

/// The rest of the line that begins like that.
fn field<'a>(status: &'a [u8], name: &[u8]) -> Option<&'a str> {
    let mut lines = status.split(|byte| *byte == b'\n');
    let line = lines.find_map(|line| line.strip_prefix(name))?;
    std::str::from_utf8(line).ok().map(str::trim)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_effective_set_is_found_among_the_others() {
        let text = b"Name:\tsh\nCapPrm:\tffff\nCapEff:\t0000000000000010\nCapBnd:\tffff\n";
        assert!(has(text, CAP_FSETID));
        assert!(!has(
            b"Name:\tsh\nCapPrm:\tffff\nCapEff:\tffef\n",
            CAP_FSETID
        ));
        assert!(!has(b"Name:\tsh\n", CAP_FSETID));
        assert!(!has(b"CapEff:\tnonsense\n", CAP_FSETID));
    }

    #[test]
    fn supplementary_groups_are_whole_numbers_in_their_line() {
        let text = b"Gid:\t7\t7\t7\t7\nGroups:\t4 24 1000 \nNStgid:\t9\n";
        assert!(in_groups(text, 4) && in_groups(text, 24) && in_groups(text, 1000));
        assert!(!in_groups(text, 7) && !in_groups(text, 2) && !in_groups(text, 9));
        assert!(!in_groups(b"Groups:\t\n", 0) && !in_groups(b"", 0));
    }

    #[test]
    fn a_process_that_is_not_there_may_not_keep_them() {
        assert!(!may_keep_set_id(u32::MAX));
    }

    #[test]
    fn this_process_is_read() {
        let own = std::process::id();
        assert!(field(&status(own).unwrap(), b"Groups:").is_some());
        assert!(shares_user_namespace(own));
    }
}
