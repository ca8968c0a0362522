//! Opening beneath a directory without following links, and the descriptors, working directory and
//! root of a child.
#![allow(unsafe_code)]

use std::ffi::CStr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, OpenHow, ResolveFlag, fcntl, openat2};
use nix::sys::stat::{Mode, fstat, stat};

use super::check;

/// `CLOSE_RANGE_CLOEXEC` of `linux/close_range.h`; Linux 5.11.
const CLOSE_RANGE_CLOEXEC: libc::c_uint = 1 << 2;

/// Lowest descriptor that is not one of the standard three.
const FIRST_OTHER: i32 = 3;

/// Opens `name` in or beneath `dir`. No component may be a link of any kind, and none may lead out
/// of `dir`.
///
/// # Errors
///
/// Those of `openat2(2)`: `ELOOP` for a symbolic link, `EXDEV` for a way out, `ENOSYS` before Linux
/// 5.6.
pub fn open_beneath(
    dir: BorrowedFd<'_>,
    name: &CStr,
    flags: OFlag,
    mode: Mode,
) -> Result<OwnedFd, Errno> {
    openat2(dir, name, how(flags, mode).resolve(without_links() | ResolveFlag::RESOLVE_BENEATH))
}

/// As [`open_beneath`], of what exists; and no component may be on another mount than `dir`, which includes what is
/// mounted at the last one.
///
/// # Errors
///
/// Those of `openat2(2)`: `ELOOP` for a symbolic link, `EXDEV` for a way out or another mount, `ENOSYS` before Linux 5.6.
pub fn open_on_one_mount(dir: BorrowedFd<'_>, name: &CStr, flags: OFlag) -> Result<OwnedFd, Errno> {
    let resolve = without_links() | ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_XDEV;
    openat2(dir, name, how(flags, Mode::empty()).resolve(resolve))
}

/// Opens for reading the directory that `dir` is in, if both are on one mount. Whoever may move `dir` decides where that is.
///
/// # Errors
///
/// Those of `openat2(2)`: `EXDEV` if something is mounted at `dir`.
pub fn open_parent(dir: BorrowedFd<'_>) -> Result<OwnedFd, Errno> {
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY;
    let resolve = without_links() | ResolveFlag::RESOLVE_NO_XDEV;
    openat2(dir, c"..", how(flags, Mode::empty()).resolve(resolve))
}

/// Opens the directory at the absolute `path`, no component of which may be a link.
///
/// # Errors
///
/// As [`open_beneath`].
pub fn open_dir_without_links(path: &Path) -> Result<OwnedFd, Errno> {
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY;
    openat2(nix::fcntl::AT_FDCWD, path, how(flags, Mode::empty()).resolve(without_links()))
}

fn how(flags: OFlag, mode: Mode) -> OpenHow {
    OpenHow::new().flags(flags | OFlag::O_CLOEXEC).mode(mode)
}

fn without_links() -> ResolveFlag {
    ResolveFlag::RESOLVE_NO_SYMLINKS | ResolveFlag::RESOLVE_NO_MAGICLINKS
}

/// Whether the directory `dir`, opened for reading and not read yet, has no entry but `.` and `..`.
///
/// # Errors
///
/// Those of `getdents64(2)`.
pub fn is_empty_dir(dir: BorrowedFd<'_>) -> Result<bool, Errno> {
    // `.` and `..` take 24 bytes each; the longest name takes 280, so that the buffer holds a third
    // entry of any length.
    let mut entries = [0u64; 64];
    let mut read = || {
        // SAFETY: the kernel writes at most as many bytes as `entries` has, which is aligned as a
        // `linux_dirent64` must be.
        check(unsafe {
            libc::syscall(
                libc::SYS_getdents64,
                dir.as_raw_fd(),
                entries.as_mut_ptr(),
                size_of_val(&entries),
            )
        })
    };
    Ok(read()? <= 48 && read()? == 0)
}

/// Takes `O_NONBLOCK` off the open file.
///
/// # Errors
///
/// Those of `fcntl(2)`.
pub fn make_blocking(fd: impl AsFd) -> Result<(), Errno> {
    set_status(fd, |flags| flags - OFlag::O_NONBLOCK)
}

/// Puts `O_NONBLOCK` on the open file.
///
/// # Errors
///
/// Those of `fcntl(2)`.
pub fn make_nonblocking(fd: impl AsFd) -> Result<(), Errno> {
    set_status(fd, |flags| flags | OFlag::O_NONBLOCK)
}

fn set_status(fd: impl AsFd, change: impl FnOnce(OFlag) -> OFlag) -> Result<(), Errno> {
    let flags = OFlag::from_bits_retain(fcntl(fd.as_fd(), FcntlArg::F_GETFL)?);
    fcntl(fd.as_fd(), FcntlArg::F_SETFL(change(flags))).map(drop)
}

/// A duplicate of `fd`, closed on exec and above the standard three, so that it is in nobody's way
/// when these are laid.
///
/// # Errors
///
/// Those of `fcntl(2)`.
pub fn duplicate_above_standard(fd: impl AsFd) -> Result<OwnedFd, Errno> {
    let new = fcntl(fd.as_fd(), FcntlArg::F_DUPFD_CLOEXEC(FIRST_OTHER))?;
    // SAFETY: F_DUPFD_CLOEXEC returned a new descriptor that nobody else knows of.
    Ok(unsafe { OwnedFd::from_raw_fd(new) })
}

/// Lays `fds` as standard input, output and error, open across exec. Each must be above the
/// standard three.
///
/// # Errors
///
/// `EBADF` if one is not, and those of `dup3(2)`.
pub fn lay_standard(fds: &[OwnedFd; 3]) -> Result<(), Errno> {
    if fds.iter().any(|fd| fd.as_raw_fd() < FIRST_OTHER) {
        return Err(Errno::EBADF);
    }
    for (target, fd) in (0..).zip(fds) {
        // SAFETY: dup3(2) takes integers. What it closes is a standard descriptor, which this
        // process is about to give up: it is a child before exec, and nothing in it owns one.
        check(unsafe { libc::dup3(fd.as_raw_fd(), target, 0) }.into())?;
    }
    Ok(())
}

/// Marks every descriptor but the standard three to be closed on exec.
///
/// # Errors
///
/// Those of `close_range(2)`: `EINVAL` before Linux 5.11.
pub fn close_others_on_exec() -> Result<(), Errno> {
    let first = FIRST_OTHER as libc::c_uint;
    // SAFETY: close_range(2) takes integers; with CLOSE_RANGE_CLOEXEC it closes nothing now.
    check(unsafe {
        libc::syscall(libc::SYS_close_range, first, libc::c_uint::MAX, CLOSE_RANGE_CLOEXEC)
    })
    .map(drop)
}

/// Closes every descriptor but the standard three and `kept`: for a child before exec, whose parent owns what it closes.
///
/// # Errors
///
/// Those of `close_range(2)`.
pub fn close_others_but(kept: RawFd) -> Result<(), Errno> {
    let close = |first: RawFd, last: libc::c_uint| {
        // SAFETY: close_range(2) takes integers. It acts on the descriptors of this process, a child before exec, in which
        // nothing owns one: their owners are the parent's, with descriptors of its own.
        check(unsafe { libc::syscall(libc::SYS_close_range, first as libc::c_uint, last, 0) })
            .map(drop)
    };
    if kept > FIRST_OTHER {
        close(FIRST_OTHER, (kept - 1) as libc::c_uint)?;
    }
    close(FIRST_OTHER.max(kept + 1), libc::c_uint::MAX)
}

/// Makes the directory at `path` the working directory. Links are followed as the kernel does for whoever this is, but for
/// those of `/proc` that lead to an open file.
///
/// # Errors
///
/// Those of `openat2(2)` and `fchdir(2)`: `ELOOP` for such a link.
pub fn enter(path: &CStr) -> Result<(), Errno> {
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY;
    let how = how(flags, Mode::empty()).resolve(ResolveFlag::RESOLVE_NO_MAGICLINKS);
    nix::unistd::fchdir(openat2(nix::fcntl::AT_FDCWD, path, how)?)
}

/// Whether `path` is the directory `dir`.
///
/// # Errors
///
/// Those of `stat(2)`.
pub fn is_dir(path: &CStr, dir: impl AsFd) -> Result<bool, Errno> {
    let (one, other) = (stat(path)?, fstat(dir)?);
    Ok((one.st_dev, one.st_ino) == (other.st_dev, other.st_ino))
}

/// Whether the working directory can be reached from the root directory of this process. If not,
/// `getcwd(2)` tells it as `(unreachable)…`.
///
/// # Errors
///
/// Those of `getcwd(2)`: `ENOENT` if the directory was removed.
pub fn cwd_is_reachable() -> Result<bool, Errno> {
    let mut path = [0u8; libc::PATH_MAX as usize];
    // SAFETY: the kernel writes at most as many bytes as `path` has.
    check(unsafe { libc::syscall(libc::SYS_getcwd, path.as_mut_ptr(), path.len()) })?;
    Ok(path[0] == b'/')
}

/// Bytes that wait in the pipe `fd`.
///
/// # Errors
///
/// Those of `ioctl(2)`.
pub fn bytes_waiting(fd: impl AsFd) -> Result<usize, Errno> {
    let mut count: libc::c_int = 0;
    // SAFETY: FIONREAD writes one int.
    check(unsafe { libc::ioctl(fd.as_fd().as_raw_fd(), libc::FIONREAD, &raw mut count) }.into())?;
    Ok(usize::try_from(count).unwrap_or(0))
}

/// Fills `file` up to its length by a mapping, and by no call that writes.
#[cfg(test)]
pub(crate) fn fill_by_mapping(file: &std::fs::File) {
    use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};
    let length = file.metadata().unwrap().len().try_into().unwrap();
    let length = std::num::NonZeroUsize::new(length).unwrap();
    let rights = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
    // SAFETY: where the mapping goes is left to the kernel, so it is over nothing; `length` bytes are written, which is all that it has,
    // and nobody makes the file of a test shorter. Nothing points to it once it is unmapped.
    unsafe {
        let start = mmap(None, length, rights, MapFlags::MAP_SHARED, file, 0).unwrap();
        start.cast::<u8>().write_bytes(1, length.get());
        munmap(start, length.get()).unwrap();
    }
}
