//! Why the pool could not do what was asked.

use thiserror::Error;

use crate::format::Ino;
use crate::index::IndexError;
use crate::mirrors::MirrorError;

/// Why the pool could not do what was asked.
#[derive(Debug, Clone, Error)]
pub enum PoolError {
    /// No room for it on a mirror.
    #[error("no space left on mirror {mirror}")]
    NoSpace {
        /// Path of the mirror.
        mirror: String,
    },
    /// The pool is mounted read-only.
    #[error("the pool is read-only")]
    ReadOnly,
    /// No mirror has a good copy of these bytes of a file.
    #[error("{len} bytes at {offset} of inode {ino} are damaged on every mirror")]
    Damaged {
        /// The file.
        ino: Ino,
        /// Offset of the first damaged byte in the file.
        offset: u64,
        /// Damaged bytes from there on.
        len: u64,
    },
    /// The mirror that was being brought up to date failed, and is out again.
    #[error("{mirror} cannot be brought up to date: {cause}")]
    Target {
        /// Path of the mirror.
        mirror: String,
        /// Its error.
        cause: String,
    },
    /// The index could not be read.
    #[error("{detail}")]
    Index {
        /// What went wrong.
        detail: String,
    },
    /// The pool has stopped.
    #[error("the pool has stopped: {reason}")]
    Failed {
        /// Why.
        reason: String,
    },
}

/// A result of the pool.
pub type Result<T> = std::result::Result<T, PoolError>;

impl From<MirrorError> for PoolError {
    fn from(error: MirrorError) -> PoolError {
        match error {
            MirrorError::NoSpace { mirror } => PoolError::NoSpace { mirror },
            MirrorError::Target { mirror, cause } => PoolError::Target { mirror, cause },
            MirrorError::AllFailed { .. } => PoolError::Failed {
                reason: error.to_string(),
            },
        }
    }
}

impl From<IndexError> for PoolError {
    fn from(error: IndexError) -> PoolError {
        match error {
            IndexError::Mirrors(error) => error.into(),
            IndexError::Database(_) | IndexError::Row(_) | IndexError::Sums(_) => {
                PoolError::Index {
                    detail: error.to_string(),
                }
            }
        }
    }
}

impl From<crate::format::FormatError> for PoolError {
    fn from(error: crate::format::FormatError) -> PoolError {
        IndexError::from(error).into()
    }
}
