//! POSIX access control lists as values: decoding, checking, and how a list and the permission
//! bits of a mode follow each other. See acl(5); the rules are those of POSIX.1e draft 17 as Linux
//! has them in fs/posix_acl.c. Nothing here touches a row.
//!
//! The bytes are those of the attributes `system.posix_acl_access` and `system.posix_acl_default`
//! (include/uapi/linux/posix_acl_xattr.h), little-endian: a version, then for each entry tag,
//! permissions and id. They are stored as they are.

use crate::format::{FileKind, XATTR_VALUE_MAX};

/// Name of the attribute with the list that decides about access.
const ACCESS: &[u8] = b"system.posix_acl_access";
/// Name of the attribute with the list that new entries of a directory get.
const DEFAULT: &[u8] = b"system.posix_acl_default";

const VERSION: u32 = 2;
const HEADER: usize = 4;
const ENTRY: usize = 8;
/// The id of an entry that needs none, and no user's or group's.
const NO_ID: u32 = u32::MAX;
const RWX: u16 = 0o7;
/// The bits of a mode that a list can stand for.
const MODE: u16 = 0o777;

/// Which of the two lists of an inode.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AclKind {
    /// Decides about access.
    Access,
    /// What new entries of a directory begin with.
    Default,
}

impl AclKind {
    /// The list that an extended attribute of that name is.
    pub fn of(name: &[u8]) -> Option<AclKind> {
        match name {
            ACCESS => Some(AclKind::Access),
            DEFAULT => Some(AclKind::Default),
            _ => None,
        }
    }

    /// Name of the extended attribute.
    pub(super) const fn name(self) -> &'static [u8] {
        match self {
            AclKind::Access => ACCESS,
            AclKind::Default => DEFAULT,
        }
    }

    /// Whether an inode of that kind can have such a list. A symbolic link has neither.
    pub(super) fn fits(self, kind: FileKind) -> bool {
        match self {
            AclKind::Access => kind != FileKind::Symlink,
            AclKind::Default => kind == FileKind::Directory,
        }
    }
}

/// Whom an entry is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Tag {
    UserObj,
    User,
    GroupObj,
    Group,
    Mask,
    Other,
}

impl Tag {
    const ALL: [(u16, Tag); 6] = [
        (0x01, Tag::UserObj),
        (0x02, Tag::User),
        (0x04, Tag::GroupObj),
        (0x08, Tag::Group),
        (0x10, Tag::Mask),
        (0x20, Tag::Other),
    ];

    fn of(number: u16) -> Option<Tag> {
        let found = Tag::ALL.iter().find(|(known, _)| *known == number);
        found.map(|(_, tag)| *tag)
    }

    fn number(self) -> u16 {
        let found = Tag::ALL.iter().find(|(_, tag)| *tag == self);
        found.map_or(0, |(number, _)| *number)
    }

    fn is_named(self) -> bool {
        matches!(self, Tag::User | Tag::Group)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Entry {
    tag: Tag,
    permissions: u16,
    id: u32,
}

/// A list that has been checked: owner, named users, group, named groups, mask, others, in this
/// order, the mask being there if anybody is named.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Acl(Vec<Entry>);

/// The bytes are not an access control list.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct BadAcl;

impl Acl {
    /// The list that an attribute's value stands for; none if it has no entries.
    pub(super) fn decode(bytes: &[u8]) -> Result<Option<Acl>, BadAcl> {
        let (version, rest) = bytes.split_first_chunk::<HEADER>().ok_or(BadAcl)?;
        let (entries, left) = rest.as_chunks::<ENTRY>();
        let whole = left.is_empty() && bytes.len() <= XATTR_VALUE_MAX;
        if u32::from_le_bytes(*version) != VERSION || !whole {
            return Err(BadAcl);
        }
        if entries.is_empty() {
            return Ok(None);
        }
        let entries: Option<Vec<Entry>> = entries.iter().map(entry).collect();
        let acl = Acl(entries.ok_or(BadAcl)?);
        if acl.is_in_order() {
            Ok(Some(acl))
        } else {
            Err(BadAcl)
        }
    }

    /// The attribute's value.
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(HEADER + ENTRY * self.0.len());
        bytes.extend_from_slice(&VERSION.to_le_bytes());
        for entry in &self.0 {
            bytes.extend_from_slice(&entry.tag.number().to_le_bytes());
            bytes.extend_from_slice(&entry.permissions.to_le_bytes());
            bytes.extend_from_slice(&entry.id.to_le_bytes());
        }
        bytes
    }

    /// As posix_acl_valid() of Linux. One id may come twice there; libacl refuses that itself.
    fn is_in_order(&self) -> bool {
        use Tag::{Group, GroupObj, Mask, Other, User, UserObj};
        let named = self.0.iter().any(|entry| entry.tag.is_named());
        let mut before = None;
        for Entry { tag, .. } in &self.0 {
            let fits = match (before, tag) {
                (None, UserObj)
                | (Some(UserObj | User), User | GroupObj)
                | (Some(GroupObj | Group), Group | Mask)
                | (Some(Mask), Other) => true,
                (Some(GroupObj), Other) => !named,
                _ => false,
            };
            if !fits {
                return false;
            }
            before = Some(*tag);
        }
        before == Some(Other)
    }

    /// Whether it says no more than the permission bits of a mode can.
    pub(super) fn is_minimal(&self) -> bool {
        self.0.len() == 3
    }

    fn get(&self, tag: Tag) -> Option<u16> {
        let found = self.0.iter().find(|entry| entry.tag == tag);
        found.map(|entry| entry.permissions)
    }

    fn set(&mut self, tag: Tag, permissions: u16) {
        if let Some(entry) = self.0.iter_mut().find(|entry| entry.tag == tag) {
            entry.permissions = permissions & RWX;
        }
    }

    /// The entry that the group bits of the mode stand for: the mask if there is one.
    fn group_class(&self) -> Tag {
        match self.get(Tag::Mask) {
            Some(_) => Tag::Mask,
            None => Tag::GroupObj,
        }
    }

    /// The entries behind the three digits of a mode, and where these are.
    fn classes(&self) -> [(Tag, u32); 3] {
        [(Tag::UserObj, 6), (self.group_class(), 3), (Tag::Other, 0)]
    }

    /// `permissions` with the lower nine bits as the list has them.
    pub(super) fn mode(&self, permissions: u16) -> u16 {
        let classes = self.classes().into_iter();
        let digits = classes.map(|(tag, shift)| self.get(tag).unwrap_or(0) << shift);
        digits.fold(permissions & !MODE, |mode, digit| mode | digit)
    }

    /// chmod(2): the list follows the mode.
    pub(super) fn follow(&mut self, permissions: u16) {
        for (tag, shift) in self.classes() {
            self.set(tag, permissions >> shift);
        }
    }

    /// As a directory's default list: what a new entry gets that is made with these permissions,
    /// its list and its mode. Neither has more than the creator asked for.
    pub(super) fn for_new(&self, permissions: u16) -> (Acl, u16) {
        let mut acl = self.clone();
        for (tag, shift) in self.classes() {
            let allowed = self.get(tag).unwrap_or(0);
            acl.set(tag, allowed & (permissions >> shift));
        }
        let mode = acl.mode(permissions);
        (acl, mode)
    }
}

fn entry(bytes: &[u8; ENTRY]) -> Option<Entry> {
    let [t0, t1, p0, p1, id @ ..] = *bytes;
    let tag = Tag::of(u16::from_le_bytes([t0, t1]))?;
    let permissions = u16::from_le_bytes([p0, p1]);
    let id = u32::from_le_bytes(id);
    if permissions & !RWX != 0 || (tag.is_named() && id == NO_ID) {
        return None;
    }
    // The kernel ignores the id of the others; stored is what it would write.
    let id = if tag.is_named() { id } else { NO_ID };
    Some(Entry {
        tag,
        permissions,
        id,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const UO: u16 = 0x01;
    const U: u16 = 0x02;
    const GO: u16 = 0x04;
    const G: u16 = 0x08;
    const M: u16 = 0x10;
    const O: u16 = 0x20;

    fn bytes(entries: &[(u16, u16, u32)]) -> Vec<u8> {
        let mut bytes = vec![2, 0, 0, 0];
        for (tag, permissions, id) in entries {
            bytes.extend_from_slice(&tag.to_le_bytes());
            bytes.extend_from_slice(&permissions.to_le_bytes());
            bytes.extend_from_slice(&id.to_le_bytes());
        }
        bytes
    }

    fn acl(entries: &[(u16, u16, u32)]) -> Acl {
        Acl::decode(&bytes(entries)).unwrap().unwrap()
    }

    /// Tags only: whether they may follow each other like this.
    fn valid(tags: &[u16]) -> bool {
        let entries: Vec<_> = tags.iter().map(|tag| (*tag, 7, 5)).collect();
        matches!(Acl::decode(&bytes(&entries)), Ok(Some(_)))
    }

    #[test]
    fn a_list_has_its_entries_in_order_and_a_mask_if_anybody_is_named() {
        for tags in [
            &[UO, GO, O][..],
            &[UO, GO, M, O],
            &[UO, U, GO, M, O],
            &[UO, U, U, GO, M, O],
            &[UO, GO, G, G, M, O],
            &[UO, U, GO, G, M, O],
        ] {
            assert!(valid(tags), "{tags:?}");
        }
        for tags in [
            &[UO][..],
            &[UO, GO],
            &[GO, O],
            &[UO, O],
            &[UO, GO, O, O],
            &[UO, UO, GO, O],
            &[UO, GO, GO, O],
            &[UO, GO, M, M, O],
            &[UO, U, GO, O],
            &[UO, GO, G, O],
            &[UO, GO, U, M, O],
            &[UO, G, GO, M, O],
            &[UO, U, M, O],
            &[UO, GO, M],
            &[GO, UO, O],
            &[UO, GO, O, M],
            &[UO, 0x40, GO, M, O],
            &[UO, 0, GO, M, O],
        ] {
            assert!(!valid(tags), "{tags:?}");
        }
    }

    #[test]
    fn what_is_no_list_is_refused() {
        let good = bytes(&[(UO, 7, 0), (GO, 5, 0), (O, 1, 0)]);
        assert!(Acl::decode(&good).is_ok());
        for cut in 0..good.len() {
            // A cut after the header is the empty list.
            let want = if cut == HEADER { Ok(None) } else { Err(BadAcl) };
            assert_eq!(Acl::decode(&good[..cut]), want, "{cut}");
        }
        let mut version = good.clone();
        version[0] = 1;
        assert_eq!(Acl::decode(&version), Err(BadAcl));
        let permissions = bytes(&[(UO, 8, 0), (GO, 5, 0), (O, 1, 0)]);
        assert_eq!(Acl::decode(&permissions), Err(BadAcl));
        let nobody = bytes(&[(UO, 7, 0), (U, 7, NO_ID), (GO, 5, 0), (M, 7, 0), (O, 1, 0)]);
        assert_eq!(Acl::decode(&nobody), Err(BadAcl));
        let mut long = vec![(UO, 7, 0)];
        long.extend((0..9000).map(|id| (U, 7, id)));
        long.extend([(GO, 5, 0), (M, 7, 0), (O, 1, 0)]);
        assert_eq!(Acl::decode(&bytes(&long)), Err(BadAcl));
    }

    #[test]
    fn encoding_gives_the_same_bytes_with_ids_only_where_they_mean_something() {
        let given = [
            (UO, 6, 9),
            (U, 7, 1000),
            (GO, 4, 9),
            (G, 5, 100),
            (M, 6, 9),
            (O, 0, 9),
        ];
        let kept = given.map(|(tag, permissions, id)| match tag {
            U | G => (tag, permissions, id),
            _ => (tag, permissions, NO_ID),
        });
        assert_eq!(acl(&given).encode(), bytes(&kept));
    }

    #[test]
    fn the_mode_shows_the_mask_as_the_groups_bits() {
        let plain = acl(&[(UO, 6, 0), (GO, 4, 0), (O, 1, 0)]);
        assert!(plain.is_minimal());
        assert_eq!(plain.mode(0o7777), 0o7641);
        let masked = acl(&[(UO, 6, 0), (GO, 4, 0), (M, 2, 0), (O, 1, 0)]);
        assert!(!masked.is_minimal());
        assert_eq!(masked.mode(0), 0o621);
    }

    #[test]
    fn chmod_changes_owner_mask_and_others() {
        let mut list = acl(&[(UO, 7, 0), (U, 7, 8), (GO, 5, 0), (M, 7, 0), (O, 1, 0)]);
        list.follow(0o7640);
        let want = acl(&[(UO, 6, 0), (U, 7, 8), (GO, 5, 0), (M, 4, 0), (O, 0, 0)]);
        assert_eq!(list, want);
        let mut plain = acl(&[(UO, 7, 0), (GO, 5, 0), (O, 1, 0)]);
        plain.follow(0o436);
        assert_eq!(plain, acl(&[(UO, 4, 0), (GO, 3, 0), (O, 6, 0)]));
    }

    #[test]
    fn a_new_entry_gets_no_more_than_list_and_creator_give() {
        let list = acl(&[(UO, 7, 0), (U, 7, 8), (GO, 5, 0), (M, 6, 0), (O, 4, 0)]);
        let (new, mode) = list.for_new(0o4666);
        let want = acl(&[(UO, 6, 0), (U, 7, 8), (GO, 5, 0), (M, 6, 0), (O, 4, 0)]);
        assert_eq!((new, mode), (want, 0o4664));
        let (new, mode) = list.for_new(0o1750);
        let want = acl(&[(UO, 7, 0), (U, 7, 8), (GO, 5, 0), (M, 4, 0), (O, 0, 0)]);
        assert_eq!((new, mode), (want, 0o1740));
        // Without a mask the group's own entry is what the mode speaks about.
        let plain = acl(&[(UO, 7, 0), (GO, 5, 0), (O, 0, 0)]);
        let (new, mode) = plain.for_new(0o626);
        assert_eq!((new.is_minimal(), mode), (true, 0o600));
    }
}
