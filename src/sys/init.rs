//! Process 1 of a container, which nobody waits behind.
#![allow(unsafe_code)]

use std::io;

use nix::sys::signal::{SigSet, SigmaskHow, Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{ForkResult, Pid, fork, getpid};

use super::exec::exit_now;

/// What process 1 passes on. Others that nobody asked for do nothing to it (pid_namespaces(7)).
const PASSED_ON: [Signal; 4] = [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP, Signal::SIGQUIT];

/// As process 1, goes on in a child, and is then what a container needs there: whatever is orphaned in it is waited for, signals
/// go to the child, and its end is the end of the container. Returns in the child, and at once where this is not process 1.
///
/// To be called while there is one thread, and in the cgroup in which process 1 is to stay.
///
/// # Errors
///
/// `InvalidInput` if there are other threads; that of sigprocmask(2) or fork(2).
pub fn step_aside() -> io::Result<()> {
    if getpid().as_raw() != 1 {
        return Ok(());
    }
    if std::fs::read_dir("/proc/self/task")?.count() != 1 {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "there are other threads"));
    }
    // Blocked, they are not lost: process 1 ignores what it has no handler for, but not what waits (tini does it so, too).
    let mut mask = SigSet::from_iter(PASSED_ON);
    mask.add(Signal::SIGCHLD);
    let before = mask.thread_swap_mask(SigmaskHow::SIG_BLOCK)?;
    // SAFETY: there is one thread, so no other can hold a lock that the child would wait for.
    match unsafe { fork() }? {
        ForkResult::Child => Ok(before.thread_set_mask()?),
        ForkResult::Parent { child } => wait_behind(child, &mask),
    }
}

/// Waits for all that die and passes signals on, until `child` is dead.
fn wait_behind(child: Pid, mask: &SigSet) -> ! {
    loop {
        match mask.wait() {
            Ok(Signal::SIGCHLD) => {}
            Ok(signal) => {
                // It has not been waited for, so the number is its own.
                let _ = kill(child, signal);
            }
            Err(_) => {}
        }
        reap_all_but(child);
    }
}

/// Waits for all that are dead; once `child` is, ends as it did.
fn reap_all_but(child: Pid) {
    loop {
        match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
            Ok(WaitStatus::StillAlive) => return,
            Ok(WaitStatus::Exited(pid, status)) if pid == child => exit_now(status),
            // As a shell says it.
            Ok(WaitStatus::Signaled(pid, signal, _)) if pid == child => {
                exit_now(128 + signal as i32)
            }
            // Of a death by a real-time signal nix says no more than that.
            Err(_) if kill(child, None).is_err() => exit_now(1),
            Ok(_) | Err(_) => {}
        }
    }
}
