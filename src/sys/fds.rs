//! Descriptors of this process.
#![allow(unsafe_code)]

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::stat::Mode;
use nix::unistd::mkfifo;

/// Raises the soft limit of open descriptors to the hard one; returns what it was.
///
/// # Errors
///
/// That of getrlimit(2) or setrlimit(2).
pub fn raise_limit() -> io::Result<u64> {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard)?;
    Ok(soft)
}

/// Sets the soft limit of open descriptors.
///
/// # Errors
///
/// That of getrlimit(2) or setrlimit(2).
pub fn set_limit(soft: u64) -> Result<(), Errno> {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    setrlimit(Resource::RLIMIT_NOFILE, soft.min(hard), hard)
}

/// Opens the FIFO at `path` for reading and writing, without blocking; made if it is missing.
///
/// Opened both ways it never comes to its end, and opening it does not wait for the other side (fifo(7)).
///
/// # Errors
///
/// That of mkfifo(3) or open(2); EINVAL if something else is there.
pub fn open_fifo(path: &Path) -> io::Result<File> {
    match mkfifo(path, Mode::S_IRUSR | Mode::S_IWUSR) {
        Ok(()) | Err(Errno::EEXIST) => {}
        Err(errno) => return Err(errno.into()),
    }
    let flags = libc::O_NONBLOCK | libc::O_NOFOLLOW;
    let file = OpenOptions::new().read(true).write(true).custom_flags(flags).open(path)?;
    if !file.metadata()?.file_type().is_fifo() {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    Ok(file)
}

/// Closes every descriptor above the standard three but `kept`, whoever owns it.
///
/// For a forked child that goes on with what it keeps and never runs the destructors of the rest.
///
/// # Errors
///
/// That of close_range(2).
pub fn close_all_but(kept: &mut [RawFd]) -> io::Result<()> {
    kept.sort_unstable();
    let mut first = 3;
    for &fd in kept.iter().filter(|&&fd| fd >= 3) {
        if fd > first {
            close_range(first, fd - 1)?;
        }
        first = fd + 1;
    }
    close_range(first, RawFd::MAX)
}

fn close_range(first: RawFd, last: RawFd) -> io::Result<()> {
    // SAFETY: close_range(2) takes integers. The owners of what it closes are never used or dropped again: see
    // `close_all_but`.
    let result = unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) };
    Errno::result(result)?;
    Ok(())
}

/// Lays `fd` as descriptor `target`, open across exec; what was there is closed. For a child before exec.
///
/// # Errors
///
/// Those of dup3(2) or fcntl(2).
pub fn lay(fd: BorrowedFd<'_>, target: RawFd) -> Result<(), Errno> {
    if fd.as_raw_fd() == target {
        return fcntl(fd, FcntlArg::F_SETFD(FdFlag::empty())).map(drop);
    }
    // SAFETY: dup3(2) takes integers. What it closes nobody uses again: this is a child before exec.
    Errno::result(unsafe { libc::dup3(fd.as_raw_fd(), target, 0) }).map(drop)
}

/// Marks every descriptor from `first` on to be closed on exec.
///
/// # Errors
///
/// Those of close_range(2): EINVAL before Linux 5.11.
pub fn close_on_exec_from(first: RawFd) -> Result<(), Errno> {
    // SAFETY: close_range(2) takes integers; with CLOSE_RANGE_CLOEXEC it closes nothing now.
    let result = unsafe {
        libc::syscall(libc::SYS_close_range, first, RawFd::MAX, libc::CLOSE_RANGE_CLOEXEC)
    };
    Errno::result(result).map(drop)
}

/// The descriptor `number` that this process was started with, if it is open.
///
/// To be called once, before anything else opens descriptors.
pub fn inherited(number: RawFd) -> Option<OwnedFd> {
    // SAFETY: F_GETFD takes integers and says whether the descriptor is open.
    Errno::result(unsafe { libc::fcntl(number, libc::F_GETFD) }).ok()?;
    // SAFETY: it is open, and as the caller calls this once, at its start, nobody else owns it.
    let fd = unsafe { OwnedFd::from_raw_fd(number) };
    fcntl(&fd, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC)).ok()?;
    Some(fd)
}
