//! The child of a runner that writes limits.
//!
//! A write of `memory.max` or `memory.high` below what is in use takes as long as the kernel needs to take memory back, or to kill
//! (cgroup-v2.rst): with dirty pages as long as the disk does. The runner has kills and deadlines to heed meanwhile, so a child of it
//! waits. There is one at a time. It dies with its runner, and a signal ends such a write at once: whoever leads the task next enforces
//! what is recorded, and no late write of an earlier child gets in its way.

use std::convert::Infallible;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use nix::fcntl::OFlag;
use nix::sys::prctl;
use nix::sys::signal::{Signal, kill};
use nix::unistd::{getpid, getppid, pipe2};

use crate::sys::exec::exit_now;
use crate::sys::{clone, fds, pidfd, process};

/// What the child says first.
const DONE: u8 = b'+';
const FAILED: u8 = b'-';

/// A child that is at work, or has just finished.
pub(super) struct Enforcer {
    pidfd: OwnedFd,
    /// Readable once it has finished; at its end once it is dead.
    told: File,
}

impl Enforcer {
    /// Forks a child that does `act`, for which it keeps the descriptor `kept`.
    ///
    /// # Errors
    ///
    /// There is no child then.
    pub(super) fn fork(
        kept: BorrowedFd<'_>,
        act: impl FnOnce() -> Result<(), String>,
    ) -> io::Result<Self> {
        let (told, tells) = pipe2(OFlag::O_CLOEXEC)?;
        let runner = getpid();
        let child = || -> Infallible {
            let own = &mut [kept.as_raw_fd(), tells.as_raw_fd()];
            let is_apart = prctl::set_pdeathsig(Signal::SIGKILL).is_ok()
                && getppid() == runner
                && fds::close_all_but(own).is_ok();
            if !is_apart {
                exit_now(1);
            }
            let _ = prctl::set_name(c"dewar-limits");
            let said = match act() {
                Ok(()) => vec![DONE],
                Err(why) => [&[FAILED], why.as_bytes()].concat(),
            };
            // A runner that is gone is told nothing.
            let _ = File::from(tells).write_all(&said);
            exit_now(0)
        };
        let forked = process::while_minding_children(|| {
            let (pid, pidfd) = clone::fork(child)?;
            // What could not be ended later is ended now. Its number is still its own.
            pidfd.inspect_err(|_| _ = kill(pid, Signal::SIGKILL))
        })?;
        let mut told = File::from(told);
        match forked {
            Ok(pidfd) => Ok(Self { pidfd, told }),
            Err(errno) => {
                // Nobody writes once this is at its end.
                let _ = told.read_to_end(&mut Vec::new());
                Err(errno.into())
            }
        }
    }

    /// What came of it. Waits for it where it has not finished.
    pub(super) fn finish(mut self) -> Result<(), String> {
        let mut said = Vec::new();
        let read = self.told.read_to_end(&mut said);
        match (read, said.split_first()) {
            (Ok(_), Some((&DONE, []))) => Ok(()),
            (Ok(_), Some((&FAILED, why))) => Err(String::from_utf8_lossy(why).into_owned()),
            _ => Err("the process that was to write them died".to_owned()),
        }
    }

    /// Ends it where it has not finished.
    pub(super) fn kill(self) {
        // It may just have ended.
        let _ = pidfd::send_signal(self.pidfd.as_fd(), libc::SIGKILL);
        let _ = self.finish();
    }
}

impl AsFd for Enforcer {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.told.as_fd()
    }
}
