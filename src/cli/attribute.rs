//! Extended attributes of a mount's root: the way in which commands talk to the server.

use std::ffi::CString;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use nix::errno::Errno;

use super::outcome::Failure;

fn names(path: &Path, name: &str) -> Result<(CString, CString), Failure> {
    let invalid = |_| Failure::Usage(format!("{} holds a zero byte", path.display()));
    let path = CString::new(path.as_os_str().as_bytes()).map_err(invalid)?;
    let name = CString::new(name).map_err(invalid)?;
    Ok((path, name))
}

fn failure(path: &Path, errno: Errno) -> Failure {
    let shown = path.display();
    match errno {
        Errno::EPERM | Errno::EACCES => {
            Failure::Denied(format!("only root and the owner of {shown} may do that"))
        }
        Errno::ENODATA | Errno::EOPNOTSUPP => Failure::Failed(format!(
            "{shown} is no mounted mendfs, or its server is of another version"
        )),
        Errno::ENOTCONN => Failure::Failed(format!("the server of {shown} is gone")),
        errno => Failure::Failed(format!("{shown}: {errno}")),
    }
}

/// Sets an attribute.
pub(super) fn set(path: &Path, name: &str, value: &[u8]) -> Result<(), Failure> {
    let (file, name) = names(path, name)?;
    // SAFETY: both strings end with a zero byte, and the value has the length that is given.
    let result = unsafe {
        libc::setxattr(
            file.as_ptr(),
            name.as_ptr(),
            value.as_ptr().cast(),
            value.len(),
            0,
        )
    };
    Errno::result(result)
        .map(drop)
        .map_err(|errno| failure(path, errno))
}

/// Reads an attribute.
pub(super) fn get(path: &Path, name: &str) -> Result<Vec<u8>, Failure> {
    let (file, name) = names(path, name)?;
    let mut value = vec![0_u8; 1 << 16];
    // SAFETY: both strings end with a zero byte, and no more is written than the buffer holds.
    let result = unsafe {
        libc::getxattr(
            file.as_ptr(),
            name.as_ptr(),
            value.as_mut_ptr().cast(),
            value.len(),
        )
    };
    let len = Errno::result(result).map_err(|errno| failure(path, errno))?;
    value.truncate(usize::try_from(len).unwrap_or(0));
    Ok(value)
}
