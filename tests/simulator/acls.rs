//! The model's access control lists: entries as (tag, permissions, id), kept as the value of the
//! attribute. Written from posix_acl(5) apart from what it is compared with.

use mendfs::format::{FileKind, Timestamp};
use nix::errno::Errno;

use super::apply::{Answer, Model};
use super::model::{Inode, Result};

pub(crate) const ACCESS: &[u8] = b"system.posix_acl_access";
pub(crate) const DEFAULT: &[u8] = b"system.posix_acl_default";
/// What the callers of all operations have.
pub(crate) const UMASK: u16 = 0o022;

const USER_OBJ: u16 = 1;
const USER: u16 = 2;
const GROUP_OBJ: u16 = 4;
const GROUP: u16 = 8;
const MASK: u16 = 16;
const OTHER: u16 = 32;

pub(crate) type Entry = (u16, u16, u32);

/// The attribute's value.
pub(crate) fn encode(entries: &[Entry]) -> Vec<u8> {
    let mut bytes = 2u32.to_le_bytes().to_vec();
    for (tag, permissions, id) in entries {
        bytes.extend(tag.to_le_bytes());
        bytes.extend(permissions.to_le_bytes());
        bytes.extend(id.to_le_bytes());
    }
    bytes
}

fn decode(bytes: &[u8]) -> Vec<Entry> {
    let short = |at: usize| u16::from_le_bytes([bytes[at], bytes[at + 1]]);
    let entries = (4..bytes.len()).step_by(8);
    let id = |at: usize| u32::from(short(at)) | u32::from(short(at + 2)) << 16;
    entries
        .map(|at| (short(at), short(at + 2), id(at + 4)))
        .collect()
}

fn is_valid(entries: &[Entry]) -> bool {
    let count = |tag| entries.iter().filter(|entry| entry.0 == tag).count();
    let named = count(USER) + count(GROUP) > 0;
    entries.windows(2).all(|pair| pair[0].0 <= pair[1].0)
        && [USER_OBJ, GROUP_OBJ, OTHER]
            .iter()
            .all(|tag| count(*tag) == 1)
        && (count(MASK) == 1 || !named && count(MASK) == 0)
}

/// Does `change` to the entry of each of the mode's digits: (its permissions, its place).
fn each_class(entries: &mut [Entry], mut change: impl FnMut(&mut u16, u32)) {
    let masked = entries.iter().any(|entry| entry.0 == MASK);
    for (tag, permissions, _) in entries {
        match *tag {
            USER_OBJ => change(permissions, 6),
            MASK => change(permissions, 3),
            GROUP_OBJ if !masked => change(permissions, 3),
            OTHER => change(permissions, 0),
            _ => {}
        }
    }
}

fn mode_of(entries: &mut [Entry]) -> u16 {
    let mut mode = 0;
    each_class(entries, |permissions, place| mode |= *permissions << place);
    mode
}

impl Inode {
    /// chmod: the list follows.
    pub(crate) fn acl_follows(&mut self) {
        let mode = self.permissions;
        if let Some(value) = self.attributes.get_mut(ACCESS) {
            let mut entries = decode(value);
            each_class(&mut entries, |permissions, place| {
                *permissions = mode >> place & 7
            });
            *value = encode(&entries);
        }
    }

    /// A new inode gets what its parent gives.
    pub(crate) fn inherit(&mut self, default: Option<&Vec<u8>>) {
        if self.kind == FileKind::Symlink {
            return;
        }
        let Some(default) = default else {
            self.permissions &= !UMASK;
            return;
        };
        let (mut entries, asked) = (decode(default), self.permissions);
        each_class(&mut entries, |permissions, place| {
            *permissions &= asked >> place & 7
        });
        self.permissions = asked & 0o7000 | mode_of(&mut entries);
        if entries.len() > 3 {
            self.attributes.insert(ACCESS.to_vec(), encode(&entries));
        }
        if self.is_dir() {
            self.attributes.insert(DEFAULT.to_vec(), default.clone());
        }
    }
}

impl Model {
    /// Whether the inode can have the list of that name.
    pub(crate) fn check_acl(&self, ino: u64, name: &[u8]) -> Result<()> {
        match self.tree.get(ino)?.kind {
            FileKind::Symlink => Err(Errno::EOPNOTSUPP),
            FileKind::Directory => Ok(()),
            _ if name == DEFAULT => Err(Errno::EACCES),
            _ => Ok(()),
        }
    }

    pub(crate) fn set_acl(
        &mut self,
        ino: u64,
        name: &[u8],
        entries: &[Entry],
        kill: bool,
        now: Timestamp,
    ) -> Result<Answer> {
        self.check_acl(ino, name)?;
        if !entries.is_empty() && !is_valid(entries) {
            return Err(Errno::EINVAL);
        }
        let inode = self.tree.edit(ino);
        inode.ctime = now;
        let mut entries = entries.to_vec();
        if name == ACCESS && !entries.is_empty() {
            inode.permissions = inode.permissions & 0o7000 | mode_of(&mut entries);
            if kill {
                inode.permissions &= !0o2000;
            }
        }
        if entries.is_empty() || name == ACCESS && entries.len() == 3 {
            inode.attributes.remove(name);
        } else {
            inode.attributes.insert(name.to_vec(), encode(&entries));
        }
        Ok(Answer::Done)
    }

    pub(crate) fn remove_acl(&mut self, ino: u64, name: &[u8], now: Timestamp) -> Result<Answer> {
        self.check_acl(ino, name)?;
        if self.tree.get(ino)?.attributes.contains_key(name) {
            let inode = self.tree.edit(ino);
            inode.attributes.remove(name);
            inode.ctime = now;
        }
        Ok(Answer::Done)
    }
}
