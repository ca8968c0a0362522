//! Becoming another program, or ending at once.
#![allow(unsafe_code)]

use std::ffi::{CStr, CString};
use std::ptr;

use nix::errno::Errno;

/// A program with its arguments and environment, laid out as `execve(2)` reads them, so that a
/// child need only name it.
pub struct Image {
    path: CString,
    argv: Strings,
    envp: Strings,
}

impl Image {
    /// Lays out the program at `path`.
    pub fn new(path: CString, argv: Vec<CString>, envp: Vec<CString>) -> Self {
        Self { path, argv: Strings::new(argv), envp: Strings::new(envp) }
    }

    /// Path of the program.
    pub fn path(&self) -> &CStr {
        &self.path
    }

    /// Becomes the program. Returns only if that cannot be, with the reason.
    pub fn execve(&self) -> Errno {
        // SAFETY: execve(2) reads `path` up to its NUL, and both arrays up to their null pointer.
        // `Strings` supplies the null and owns what the pointers before it point to; all of it is
        // borrowed for the call.
        unsafe {
            libc::execve(
                self.path.as_ptr(),
                self.argv.pointers.as_ptr(),
                self.envp.pointers.as_ptr(),
            )
        };
        Errno::last()
    }
}

/// Strings, and an array of pointers to them that a null pointer ends.
struct Strings {
    pointers: Vec<*const libc::c_char>,
    _owner: Vec<CString>,
}

impl Strings {
    fn new(strings: Vec<CString>) -> Self {
        let pointers = strings.iter().map(|s| s.as_ptr()).chain([ptr::null()]).collect();
        Self { pointers, _owner: strings }
    }
}

/// Ends this process without running what was registered for its end: for a child that shares its
/// parent's.
pub fn exit_now(status: i32) -> ! {
    // SAFETY: _exit(2) takes an integer and does not return.
    unsafe { libc::_exit(status) }
}
