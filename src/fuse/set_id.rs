//! Which requests have to clear set-user-ID and set-group-ID, as far as the kernel leaves that to
//! us; who may keep them is `privilege`'s to tell.

use fuser::Request;

use super::privilege;
use super::reply::Context;
use crate::format::Ino;
use crate::vfs::{self, Caller, SetAttr, Vfs, VfsError};

/// Why the bits might have to go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Cause {
    /// The owner or group is set, if only to what it was.
    Owner,
    /// Content or size changes.
    Content,
    /// Anything else.
    Other,
}

/// Looks at files for one request, while its caller waits and can be looked at.
pub(super) struct SetId<'a> {
    pub(super) vfs: &'a Vfs,
    pub(super) request: &'a Request,
    /// Whether it is left to us. If not, the kernel sends changes of mode of its own.
    pub(super) ours: bool,
}

impl SetId<'_> {
    /// Notes in `change` what it must clear.
    pub(super) fn must_clear(
        &self,
        ino: Ino,
        cause: Cause,
        change: &mut SetAttr,
    ) -> vfs::Result<()> {
        if cause == Cause::Other || !self.ours {
            return Ok(());
        }
        let attr = self.vfs.getattr(ino)?;
        if !privilege::has_set_id(&attr) {
            return Ok(());
        }
        change.kill_suid = cause == Cause::Owner || !privilege::may_keep_set_id(self.request.pid());
        change.kill_sgid = change.kill_suid
            && privilege::has_bare_set_gid(&attr)
            && !privilege::is_member(self.request, attr.gid);
        // Of chown(2) that names nobody the kernel has checked nothing, since it left this to us.
        let takes = privilege::has_program_id(&attr) || change.kill_sgid;
        if takes && change.is_empty_chown() && !privilege::is_owner(self.request, attr.uid) {
            return Err(VfsError::NotPermitted);
        }
        Ok(())
    }

    /// What `fallocate` and `copy_file_range` have to clear: the kernel drops its own attempt to do
    /// so under HANDLE_KILLPRIV_V2, but does not mark these two as it marks a write.
    pub(super) fn by_content(&self, ino: Ino) -> vfs::Result<Clearing> {
        let _guard = Context("setattr", ino).guard(self.vfs);
        let mut change = SetAttr::default();
        self.must_clear(ino, Cause::Content, &mut change)?;
        Ok(Clearing(change))
    }

    /// What a write that the kernel marked has to clear beyond that: it knows nothing of the group.
    pub(super) fn by_write(&self, ino: Ino, marked: bool) -> vfs::Result<Clearing> {
        if marked && privilege::has_bare_set_gid(&self.vfs.getattr(ino)?) {
            self.by_content(ino)
        } else {
            Ok(Clearing::default())
        }
    }

    /// Whether set-group-ID goes when this caller sets an ACL.
    pub(super) fn goes_with_acl(&self, ino: Ino) -> vfs::Result<bool> {
        // The kernel holds the inode's lock from its checks to our answer: no chown comes between.
        let attr = self.vfs.getattr(ino)?;
        Ok(privilege::has_set_gid(&attr) && !privilege::is_member(self.request, attr.gid))
    }
}

/// Bits that are to be cleared before content changes.
#[derive(Debug, Default)]
pub(super) struct Clearing(SetAttr);

impl Clearing {
    /// Clears them.
    pub(super) fn carry_out(&self, vfs: &Vfs, caller: &Caller, ino: Ino) -> vfs::Result<()> {
        if self.0.kill_suid {
            vfs.setattr(caller, ino, &self.0)?;
        }
        Ok(())
    }
}
