//! Processes that a test looks at, ends and waits for.

use std::fs;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use dewar::sys::pidfd;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::Signal;

use super::DEADLINE;

/// A process, held so that its number cannot come to mean another.
pub(crate) struct Pid {
    pid: i32,
    fd: OwnedFd,
}

impl Pid {
    /// The process that has the number `pid` now.
    #[track_caller]
    pub(crate) fn of(pid: i32) -> Self {
        Self::find(pid).unwrap_or_else(|| panic!("there is no process {pid}"))
    }

    pub(crate) fn find(pid: i32) -> Option<Self> {
        let fd = pidfd::open(nix::unistd::Pid::from_raw(pid)).ok()?;
        Some(Self { pid, fd })
    }

    pub(crate) fn number(&self) -> i32 {
        self.pid
    }

    /// Sends a signal; it may have ended.
    pub(crate) fn signal(&self, signal: Signal) {
        match pidfd::send_signal(self.fd.as_fd(), signal as i32) {
            Ok(()) | Err(Errno::ESRCH) => {}
            Err(errno) => panic!("signal {}: {errno}", self.pid),
        }
    }

    /// SIGKILL, and waits until it is dead.
    #[track_caller]
    pub(crate) fn kill(&self) {
        self.signal(Signal::SIGKILL);
        self.wait();
    }

    /// Waits until it is dead, if not reaped.
    #[track_caller]
    pub(crate) fn wait(&self) {
        assert!(self.ends_within(DEADLINE), "process {} does not end", self.pid);
    }

    pub(crate) fn ends_within(&self, time: Duration) -> bool {
        let mut fds = [PollFd::new(self.fd.as_fd(), PollFlags::POLLIN)];
        poll(&mut fds, PollTimeout::try_from(time).unwrap()).unwrap() > 0
    }
}

/// Whether a process has this number and is more than a zombie.
pub(crate) fn is_alive(pid: i32) -> bool {
    state(pid).is_some_and(|state| !matches!(state, 'Z' | 'X'))
}

/// Whether a process has this number and has been stopped.
pub(crate) fn is_stopped(pid: i32) -> bool {
    state(pid) == Some('T')
}

fn state(pid: i32) -> Option<char> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit_once(") ").and_then(|(_, rest)| rest.chars().next())
}
