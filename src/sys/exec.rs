//! Becoming another program, or ending at once.
#![allow(unsafe_code)]

use std::ffi::{CStr, CString};
use std::ptr;

use nix::errno::Errno;

/// A program with its arguments and environment, laid out as `execve(2)` reads them, so that a
/// child need only name it.
pub struct Image {
    /// Where it may be, in this order.
    paths: Vec<CString>,
    argv: Strings,
    envp: Strings,
}

impl Image {
    /// Lays out the program at `path`.
    pub fn new(path: CString, argv: Vec<CString>, envp: Vec<CString>) -> Self {
        Self::first_of(vec![path], argv, envp)
    }

    /// Lays out the first program that there will be at one of `paths`, as a search in `PATH` finds it.
    pub fn first_of(paths: Vec<CString>, argv: Vec<CString>, envp: Vec<CString>) -> Self {
        Self { paths, argv: Strings::new(argv), envp: Strings::new(envp) }
    }

    /// Becomes the program. Returns only if that cannot be, with the reason: of several paths the one at which there was
    /// something, as execvp(3) tells it.
    pub fn execve(&self) -> Errno {
        let mut why = Errno::ENOENT;
        for path in &self.paths {
            match self.execve_at(path) {
                Errno::ENOENT | Errno::ENOTDIR if why == Errno::EACCES => {}
                errno @ (Errno::ENOENT | Errno::ENOTDIR | Errno::EACCES) => why = errno,
                errno => return errno,
            }
        }
        why
    }

    fn execve_at(&self, path: &CStr) -> Errno {
        // SAFETY: execve(2) reads `path` up to its NUL, and both arrays up to their null pointer.
        // `Strings` supplies the null and owns what the pointers before it point to; all of it is
        // borrowed for the call.
        unsafe {
            libc::execve(path.as_ptr(), self.argv.pointers.as_ptr(), self.envp.pointers.as_ptr())
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
