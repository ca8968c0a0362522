//! Descriptors that a runtime of tokio waits for.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::OwnedFd;

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Has the runtime watch `fd`, which does not block.
///
/// # Errors
///
/// That of epoll_ctl(2): EPERM if the descriptor is of a file that is always ready.
///
/// # Panics
///
/// Outside of a runtime.
pub fn watch(fd: OwnedFd, interest: Interest) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an OwnedFd is an open descriptor, always the same, until it is dropped; and the AsyncFd owns it, which we hand out by
    // value without a reference that could exchange it before.
    let watched = unsafe { AsyncFd::register_with_interest(fd, interest) };
    watched.map_err(|error| error.into_parts().1)
}
