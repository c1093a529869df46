//! What an operation can fail with, and the errno that each failure is. The adapter logs, once,
//! what is worth it; the answers of everyday life (no such file) carry no context, so that they
//! cost nothing.

use nix::errno::Errno;
use thiserror::Error;

use crate::format::{FormatError, Ino};
use crate::pool::PoolError;

/// Result of a vfs operation.
pub type Result<T> = std::result::Result<T, VfsError>;

/// Why an operation failed.
#[derive(Debug, Clone, Error)]
#[non_exhaustive]
pub enum VfsError {
    /// No entry of that name.
    #[error("no such file or directory")]
    NotFound,
    /// No inode of that number.
    #[error("no inode has that number")]
    Stale,
    /// There is an entry of that name.
    #[error("the name exists")]
    Exists,
    /// A directory is needed.
    #[error("not a directory")]
    NotDirectory,
    /// Not possible on a directory.
    #[error("is a directory")]
    IsDirectory,
    /// The directory has entries.
    #[error("directory not empty")]
    NotEmpty,
    /// Not allowed for this caller or on this object, whatever the mode bits say.
    #[error("operation not permitted")]
    NotPermitted,
    /// Not something that an object of this kind can have.
    #[error("permission denied")]
    Access,
    /// An argument makes no sense.
    #[error("invalid argument")]
    Invalid,
    /// Name or symbolic link target too long.
    #[error("name too long")]
    NameTooLong,
    /// The link count is at its maximum.
    #[error("too many links")]
    TooManyLinks,
    /// The file would grow beyond the largest size.
    #[error("file too large")]
    TooBig,
    /// No such extended attribute.
    #[error("no such extended attribute")]
    NoData,
    /// The name of an extended attribute is too long.
    #[error("attribute name out of range")]
    OutOfRange,
    /// An extended attribute's value, or the list of names, is too large.
    #[error("extended attribute too large")]
    AttributeTooBig,
    /// Not something this filesystem does.
    #[error("not supported")]
    NotSupported,
    /// The offset is beyond the end, or no data follows it.
    #[error("no data or hole there")]
    NoSuchAddress,
    /// Needs a regular file.
    #[error("not a regular file")]
    NotRegular,
    /// No room for what was asked for.
    #[error("no space left")]
    NoSpace,
    /// What was asked for is under way already.
    #[error("already under way")]
    Busy,
    /// A row of the index cannot be understood, or contradicts another.
    #[error("the index rows of inode {ino} are not valid: {source}")]
    Row {
        /// The inode they belong to.
        ino: Ino,
        /// What is wrong.
        source: FormatError,
    },
    /// A directory entry leads to an inode that does not exist.
    #[error("an entry of directory {parent} leads to inode {ino}, which does not exist")]
    Dangling {
        /// The directory.
        parent: Ino,
        /// The missing inode.
        ino: Ino,
    },
    /// The pool failed below.
    #[error(transparent)]
    Pool(#[from] PoolError),
}

impl VfsError {
    /// Whether there is no room for what was asked for.
    pub(super) fn is_no_space(&self) -> bool {
        self.errno() == Errno::ENOSPC
    }

    /// The errno to answer with.
    pub fn errno(&self) -> Errno {
        match self {
            VfsError::NotFound => Errno::ENOENT,
            VfsError::Stale => Errno::ESTALE,
            VfsError::Exists => Errno::EEXIST,
            VfsError::NotDirectory => Errno::ENOTDIR,
            VfsError::IsDirectory => Errno::EISDIR,
            VfsError::NotEmpty => Errno::ENOTEMPTY,
            VfsError::NotPermitted => Errno::EPERM,
            VfsError::Access => Errno::EACCES,
            VfsError::Invalid => Errno::EINVAL,
            VfsError::NameTooLong => Errno::ENAMETOOLONG,
            VfsError::TooManyLinks => Errno::EMLINK,
            VfsError::TooBig => Errno::EFBIG,
            VfsError::NoData => Errno::ENODATA,
            VfsError::OutOfRange => Errno::ERANGE,
            VfsError::AttributeTooBig => Errno::E2BIG,
            VfsError::NotSupported => Errno::EOPNOTSUPP,
            VfsError::NoSuchAddress => Errno::ENXIO,
            VfsError::NotRegular => Errno::ENODEV,
            VfsError::NoSpace => Errno::ENOSPC,
            VfsError::Busy => Errno::EBUSY,
            VfsError::Row { .. } | VfsError::Dangling { .. } => Errno::EIO,
            VfsError::Pool(PoolError::NoSpace { .. }) => Errno::ENOSPC,
            VfsError::Pool(PoolError::ReadOnly) => Errno::EROFS,
            VfsError::Pool(
                PoolError::Damaged { .. }
                | PoolError::Target { .. }
                | PoolError::Index { .. }
                | PoolError::Failed { .. },
            ) => Errno::EIO,
        }
    }
}
