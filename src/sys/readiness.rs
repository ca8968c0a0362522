//! Descriptors that an event loop waits for.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::OwnedFd;

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Has the runtime that this is called in wait for `fd` to become readable.
///
/// # Errors
///
/// Those of `epoll_ctl(2)`: `EPERM` for a descriptor that cannot be waited for.
pub fn readable(fd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an `OwnedFd` is open until it is dropped, always tells the same number, and is moved into what is returned,
    // which takes it off the epoll set before it drops it.
    Ok(unsafe { AsyncFd::register_with_interest(fd, Interest::READABLE) }?)
}
