//! Extended attributes of an open file: xattr(7).
#![allow(unsafe_code)]

use std::ffi::CStr;
use std::os::fd::{AsRawFd, BorrowedFd};

use nix::errno::Errno;

/// Reads the attribute `name` of `fd` into `buffer` and returns what was read.
///
/// # Errors
///
/// ENODATA: there is no such attribute; ERANGE: it is longer than `buffer`; the rest of fgetxattr(2).
pub fn get<'b>(fd: BorrowedFd<'_>, name: &CStr, buffer: &'b mut [u8]) -> Result<&'b [u8], Errno> {
    // SAFETY: fgetxattr(2) reads `name` up to its NUL, which `CStr` has, and writes at most
    // `buffer.len()` bytes to the exclusively borrowed `buffer`.
    let length = unsafe {
        libc::fgetxattr(fd.as_raw_fd(), name.as_ptr(), buffer.as_mut_ptr().cast(), buffer.len())
    };
    let length = Errno::result(length)?;
    Ok(&buffer[..length.unsigned_abs().min(buffer.len())])
}

/// Sets the attribute `name` of `fd` to `value`, whether or not it exists.
///
/// # Errors
///
/// EOPNOTSUPP: the file system keeps none of that kind; EPERM; the rest of fsetxattr(2).
pub fn set(fd: BorrowedFd<'_>, name: &CStr, value: &[u8]) -> Result<(), Errno> {
    // SAFETY: fsetxattr(2) reads `name` up to its NUL, which `CStr` has, and `value.len()` bytes
    // of `value`; both outlive the call and are not written.
    let result = unsafe {
        libc::fsetxattr(fd.as_raw_fd(), name.as_ptr(), value.as_ptr().cast(), value.len(), 0)
    };
    Errno::result(result).map(drop)
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::fd::AsFd;

    use super::*;

    #[test]
    fn what_was_set_is_got_back_and_what_was_not_is_enodata() {
        let path = std::env::temp_dir().join(format!("dewar-xattr-{}", std::process::id()));
        let file = File::create(&path).unwrap();
        std::fs::remove_file(&path).unwrap();

        set(file.as_fd(), c"trusted.dewar", b"1").unwrap();

        let mut buffer = [0; 8];
        assert_eq!(get(file.as_fd(), c"trusted.dewar", &mut buffer), Ok(&b"1"[..]));
        assert_eq!(get(file.as_fd(), c"trusted.other", &mut buffer), Err(Errno::ENODATA));
        set(file.as_fd(), c"trusted.dewar", b"123456789").unwrap();
        assert_eq!(get(file.as_fd(), c"trusted.dewar", &mut buffer), Err(Errno::ERANGE));
    }
}
