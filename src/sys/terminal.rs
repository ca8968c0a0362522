//! Pseudo-terminals: pty(7).
#![allow(unsafe_code)]

use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::pty::{Winsize, posix_openpt, unlockpt};

use super::check;

/// Size of a terminal, in characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Size {
    /// Lines.
    pub rows: u16,
    /// Characters in a line.
    pub columns: u16,
}

/// Both sides of a terminal, each closed on exec.
#[derive(Debug)]
pub struct Terminal {
    /// The side of whoever shows what is printed and types what is read.
    pub master: OwnedFd,
    /// The side of programs.
    pub slave: OwnedFd,
}

/// Makes a terminal of `size`. It controls nobody yet.
///
/// The second side is had from the first, not by its name, which may mean another terminal in another root.
///
/// # Errors
///
/// Those of opening `/dev/ptmx` (`ENOSPC`: there are as many terminals as there may be), of `TIOCSPTLCK`, `TIOCGPTPEER` (Linux
/// 4.13) and `TIOCSWINSZ`: ioctl_tty(2).
pub fn open(size: Size) -> Result<Terminal, Errno> {
    let master = posix_openpt(OFlag::O_RDWR | OFlag::O_NOCTTY | OFlag::O_CLOEXEC)?;
    unlockpt(&master)?;
    let flags = libc::O_RDWR | libc::O_NOCTTY | libc::O_CLOEXEC;
    // SAFETY: TIOCGPTPEER takes flags as of open(2), and returns a new descriptor that nobody else knows of.
    let slave = unsafe {
        let fd = check(libc::ioctl(master.as_raw_fd(), libc::TIOCGPTPEER, flags).into())?;
        OwnedFd::from_raw_fd(fd as i32)
    };
    resize(&master, size)?;
    Ok(Terminal { master: master.into(), slave })
}

/// Gives the terminal another size. Its foreground processes hear of it by SIGWINCH.
///
/// # Errors
///
/// Those of `TIOCSWINSZ`.
pub fn resize(terminal: impl AsFd, size: Size) -> Result<(), Errno> {
    let size = Winsize { ws_row: size.rows, ws_col: size.columns, ws_xpixel: 0, ws_ypixel: 0 };
    let fd = terminal.as_fd().as_raw_fd();
    // SAFETY: TIOCSWINSZ reads one `winsize`, which outlives the call.
    check(unsafe { libc::ioctl(fd, libc::TIOCSWINSZ, &raw const size) }.into()).map(drop)
}

/// Makes the terminal on standard input the controlling one of this session, whose leader this process is, and which has none.
///
/// # Errors
///
/// Those of `TIOCSCTTY`: `EPERM` if the session has one, or the terminal controls another.
pub fn control_by_stdin() -> Result<(), Errno> {
    let steal: libc::c_int = 0;
    // SAFETY: TIOCSCTTY takes an integer.
    check(unsafe { libc::ioctl(libc::STDIN_FILENO, libc::TIOCSCTTY, steal) }.into()).map(drop)
}
