//! Processes of the operating system by descriptor: what is signalled and waited for is the process
//! that was meant, though its number may be reused at any time.
//!
//! A pid is a number; a pidfd (Linux 5.3, [pidfd_open(2)]) is the process itself. Across a restart
//! of ours only numbers survive, so what is recorded is a [`ProcessId`], and [`ProcessId::open`] is
//! the one way from there back to a process.
//!
//! [pidfd_open(2)]: https://man7.org/linux/man-pages/man2/pidfd_open.2.html
#![allow(unsafe_code)]

use std::fs;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use nix::errno::Errno;
use nix::unistd::Pid;

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// It exited with this status.
    Code(u8),
    /// It died by this signal, which may be a real-time one.
    Signal(i32),
}

/// A process identified beyond the reuse of its number, within one boot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ProcessId {
    /// Process id, in the pid namespace of whoever wrote it down.
    pub pid: i32,
    /// Start time: field 22 of `/proc/PID/stat`, clock ticks since boot.
    pub start_ticks: u64,
}

impl From<ProcessId> for crate::proto::ProcessId {
    fn from(id: ProcessId) -> Self {
        Self { pid: id.pid, start_ticks: id.start_ticks }
    }
}

impl From<crate::proto::ProcessId> for ProcessId {
    fn from(id: crate::proto::ProcessId) -> Self {
        Self { pid: id.pid, start_ticks: id.start_ticks }
    }
}

/// Why nothing certain can be said about a process.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// There is no such process (any more).
    #[error("process {0} does not exist")]
    Gone(i32),
    /// No descriptor could be had for it.
    #[error("pidfd_open {pid}")]
    Open {
        /// The process.
        pid: i32,
        /// What the kernel said.
        #[source]
        errno: Errno,
    },
    /// Its state could not be read.
    #[error("read /proc/{pid}/stat")]
    Read {
        /// The process.
        pid: i32,
        /// What the kernel said.
        #[source]
        error: io::Error,
    },
    /// Its state is not as proc_pid_stat(5) says.
    #[error("/proc/{0}/stat has no start time in its field 22")]
    Malformed(i32),
}

/// Opens the process that has the number `pid` now; the descriptor is close-on-exec.
///
/// # Errors
///
/// ESRCH: there is none; EINVAL or ENOENT: `pid` is a thread, not a process; EMFILE; the rest of
/// pidfd_open(2).
pub fn open(pid: Pid) -> Result<OwnedFd, Errno> {
    // SAFETY: pidfd_open(2) takes two integers and touches no memory of ours.
    let fd = Errno::result(unsafe { libc::syscall(libc::SYS_pidfd_open, pid.as_raw(), 0) })?;
    let fd = RawFd::try_from(fd).map_err(|_| Errno::EBADF)?;
    // SAFETY: the kernel has just made this descriptor for us, and nobody else knows of it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Sends `signal` to the process behind `pidfd`; 0 only asks whether that would be allowed.
///
/// # Errors
///
/// ESRCH: it has ended and was waited for; EPERM; EINVAL: no such signal.
pub fn send_signal(pidfd: BorrowedFd<'_>, signal: i32) -> Result<(), Errno> {
    let no_info: *const libc::siginfo_t = std::ptr::null();
    // SAFETY: pidfd_send_signal(2) allows a null `info`, then fills it in itself as kill(2) does,
    // and takes integers otherwise.
    let result = unsafe {
        libc::syscall(libc::SYS_pidfd_send_signal, pidfd.as_raw_fd(), signal, no_info, 0)
    };
    Errno::result(result).map(drop)
}

/// Waits for the end of our child behind `pidfd` and reaps it.
///
/// # Errors
///
/// ECHILD: it is not a child of ours, or was reaped already.
pub fn wait(pidfd: BorrowedFd<'_>) -> Result<Exit, Errno> {
    loop {
        match waitid(pidfd, 0) {
            Ok(Some(exit)) => return Ok(exit),
            Ok(None) | Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno),
        }
    }
}

/// Reaps our child behind `pidfd` if it has ended; `None`: it lives.
///
/// # Errors
///
/// As [`wait`].
pub fn try_wait(pidfd: BorrowedFd<'_>) -> Result<Option<Exit>, Errno> {
    waitid(pidfd, libc::WNOHANG)
}

/// waitid(2) for an end. Not nix's: that one has no name for a real-time signal, and then loses
/// the status of a child which the call has already reaped.
fn waitid(pidfd: BorrowedFd<'_>, flags: i32) -> Result<Option<Exit>, Errno> {
    let id = libc::id_t::try_from(pidfd.as_raw_fd()).map_err(|_| Errno::EBADF)?;
    let mut info = MaybeUninit::<libc::siginfo_t>::zeroed();
    // SAFETY: waitid(2) writes at most one siginfo_t through the pointer, which `info` has room
    // for; the rest are integers.
    let result =
        unsafe { libc::waitid(libc::P_PIDFD, id, info.as_mut_ptr(), libc::WEXITED | flags) };
    Errno::result(result)?;
    // SAFETY: siginfo_t is made of integers and pointers, for which the zeroes that it began with
    // are valid, as is what the kernel wrote over them.
    let info = unsafe { info.assume_init() };
    // SAFETY: after a waitid(2) that succeeded the SIGCHLD members are the ones in use: set by the
    // kernel for an end, or zero as before where there was none.
    let (pid, status) = unsafe { (info.si_pid(), info.si_status()) };
    if pid == 0 {
        return Ok(None);
    }
    Ok(Some(match info.si_code {
        libc::CLD_EXITED => Exit::Code((status & 0xff) as u8),
        _ => Exit::Signal(status),
    }))
}

/// Whether the process behind `pidfd` has ended and was reaped.
fn ended(pidfd: BorrowedFd<'_>) -> bool {
    send_signal(pidfd, 0) == Err(Errno::ESRCH)
}

/// Start time of the process that has the number `pid` now, in clock ticks since boot.
///
/// # Errors
///
/// [`IdentityError`], never `Open`.
pub fn start_ticks(pid: Pid) -> Result<u64, IdentityError> {
    let pid = pid.as_raw();
    let stat =
        fs::read(format!("/proc/{pid}/stat")).map_err(|error| match error.raw_os_error() {
            Some(libc::ENOENT | libc::ESRCH) => IdentityError::Gone(pid),
            _ => IdentityError::Read { pid, error },
        })?;
    parse_start_ticks(&stat).ok_or(IdentityError::Malformed(pid))
}

/// Field 22 of a stat line. Field 2 is the name in parentheses, which may itself hold blanks and
/// parentheses, so counting starts behind the last `)`.
fn parse_start_ticks(stat: &[u8]) -> Option<u64> {
    let name_end = stat.iter().rposition(|&byte| byte == b')')?;
    let rest = std::str::from_utf8(&stat[name_end + 1..]).ok()?;
    rest.split_ascii_whitespace().nth(22 - 3)?.parse().ok()
}

impl ProcessId {
    /// Identifies the process that has the number `pid` now.
    ///
    /// # Errors
    ///
    /// [`IdentityError`], never `Open`.
    pub fn of(pid: Pid) -> Result<Self, IdentityError> {
        Ok(Self { pid: pid.as_raw(), start_ticks: start_ticks(pid)? })
    }

    /// Opens this process; `None` if it is no more, whoever has its number now.
    ///
    /// The order is what makes it safe: the descriptor first, the start time after it. If the start
    /// time is ours then the number was never given away in between, so the descriptor is ours too.
    /// The caller has checked that the machine was not booted since.
    ///
    /// # Errors
    ///
    /// Anything but "it is gone": then nothing is known, and nothing may be signalled.
    pub fn open(self) -> Result<Option<OwnedFd>, IdentityError> {
        let pid = Pid::from_raw(self.pid);
        let fd = match open(pid) {
            Ok(fd) => fd,
            // EINVAL, ENOENT: the number now belongs to a mere thread, or never was one.
            Err(Errno::ESRCH | Errno::EINVAL | Errno::ENOENT) => return Ok(None),
            Err(errno) => return Err(IdentityError::Open { pid: self.pid, errno }),
        };
        match start_ticks(pid) {
            Ok(ticks) if ticks == self.start_ticks => Ok(Some(fd)),
            Ok(_) => Ok(None),
            Err(IdentityError::Gone(_)) if ended(fd.as_fd()) => Ok(None),
            // Alive without an entry: /proc is not mounted, or hides it from us.
            Err(IdentityError::Gone(pid)) => {
                Err(IdentityError::Read { pid, error: Errno::ENOENT.into() })
            }
            Err(error) => Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::process::{Child, Command, Stdio};

    use super::*;

    /// A shell that runs `script`; the tests reap it through its pidfd.
    fn shell(script: &str) -> (Child, OwnedFd) {
        let child = Command::new("/bin/sh")
            .args(["-c", script])
            .stdin(Stdio::piped())
            .spawn()
            .expect("no /bin/sh");
        let fd = open(pid_of(&child)).unwrap();
        (child, fd)
    }

    fn pid_of(child: &Child) -> Pid {
        Pid::from_raw(child.id().try_into().unwrap())
    }

    #[test]
    fn an_exit_status_is_exact() {
        for code in [0, 1, 127, 255] {
            let (_child, fd) = shell(&format!("exit {code}"));

            assert_eq!(wait(fd.as_fd()), Ok(Exit::Code(code)));
        }
    }

    #[test]
    fn a_signal_is_exact_even_a_real_time_one() {
        for signal in [libc::SIGTERM, libc::SIGKILL, libc::SIGRTMIN() + 3, libc::SIGRTMAX()] {
            let (_child, fd) = shell("read line");

            send_signal(fd.as_fd(), signal).unwrap();

            assert_eq!(wait(fd.as_fd()), Ok(Exit::Signal(signal)));
        }
    }

    #[test]
    fn try_wait_tells_alive_from_ended_from_reaped() {
        let (mut child, fd) = shell("read line; exit 7");
        assert_eq!(try_wait(fd.as_fd()), Ok(None));

        drop(child.stdin.take());

        assert_eq!(wait(fd.as_fd()), Ok(Exit::Code(7)));
        assert_eq!(try_wait(fd.as_fd()), Err(Errno::ECHILD));
    }

    #[test]
    fn a_descriptor_of_a_reaped_process_signals_nobody() {
        let (_child, fd) = shell("exit 0");
        wait(fd.as_fd()).unwrap();

        assert_eq!(send_signal(fd.as_fd(), libc::SIGKILL), Err(Errno::ESRCH));
    }

    #[test]
    fn a_signal_that_does_not_exist_is_refused() {
        let (mut child, fd) = shell("read line");

        assert_eq!(send_signal(fd.as_fd(), 4096), Err(Errno::EINVAL));

        drop(child.stdin.take());
        assert_eq!(wait(fd.as_fd()), Ok(Exit::Code(1)));
    }

    #[test]
    fn a_process_is_known_again_by_pid_and_start_time() {
        let (mut child, fd) = shell("read line");
        let id = ProcessId::of(pid_of(&child)).unwrap();

        let again = id.open().unwrap().expect("it lives");
        send_signal(again.as_fd(), 0).unwrap();

        drop(child.stdin.take());
        wait(fd.as_fd()).unwrap();
        assert!(id.open().unwrap().is_none());
        assert!(matches!(ProcessId::of(pid_of(&child)), Err(IdentityError::Gone(_))));
    }

    /// attack 42: the number is right and the start time is not.
    #[test]
    fn a_stranger_with_the_recorded_pid_is_not_opened() {
        let (mut child, fd) = shell("read line");
        let id = ProcessId::of(pid_of(&child)).unwrap();

        let stranger = ProcessId { start_ticks: id.start_ticks - 1, ..id };

        assert!(stranger.open().unwrap().is_none());
        drop(child.stdin.take());
        wait(fd.as_fd()).unwrap();
    }

    #[test]
    fn numbers_that_no_process_can_have_are_not_opened() {
        for pid in [0, -1, i32::MIN, i32::MAX] {
            assert!(ProcessId { pid, start_ticks: 1 }.open().unwrap().is_none(), "{pid}");
        }
    }

    #[test]
    fn the_start_time_is_found_behind_any_name() {
        let tail = "S 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 4711 20 21";

        for name in ["sh", "a b", ") S 1 2", "((", "\u{e9})"] {
            let line = format!("42 ({name}) {tail}\n");
            assert_eq!(parse_start_ticks(line.as_bytes()), Some(4711), "{name}");
        }
        assert_eq!(parse_start_ticks(&[b"42 (\xff\xfe) ", tail.as_bytes()].concat()), Some(4711));
    }

    #[test]
    fn a_stat_line_that_is_cut_short_has_no_start_time() {
        for line in ["", "42", "42 (sh", "42 (sh)", "42 (sh) S 1 2 3", "42 (sh) S 1 2 3 4 5 6 x"] {
            assert_eq!(parse_start_ticks(line.as_bytes()), None, "{line:?}");
        }
    }

    #[test]
    fn the_start_time_is_the_one_that_procfs_reads() {
        let (mut child, fd) = shell("read line");

        let ours = start_ticks(pid_of(&child)).unwrap();
        let theirs = procfs::process::Process::new(pid_of(&child).as_raw())
            .and_then(|process| process.stat())
            .unwrap()
            .starttime;

        assert_eq!(ours, theirs);
        drop(child.stdin.take());
        wait(fd.as_fd()).unwrap();
    }
}
