//! This process, and its children.
#![allow(unsafe_code)]

use std::fs;
use std::io;
use std::os::fd::AsFd;
use std::time::Duration;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::prctl;
use nix::sys::signal::{SigHandler, SigSet, Signal, kill, signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{Pid, getpid};

use super::pidfd::ProcessId;

/// Release of the running kernel, such as `6.12.6` (proc_sys_kernel(5)); empty if it is not told.
pub fn kernel_release() -> String {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    release.trim_end().to_owned()
}

/// Lets this thread have CPU and disk that nobody else wants: nice 19 (setpriority(2): of a thread on Linux), and the idle class of
/// ioprio_set(2) where the scheduler of the disk knows it.
///
/// # Errors
///
/// Those of setpriority(2) and ioprio_set(2).
pub fn yield_to_others() -> io::Result<()> {
    /// IOPRIO_WHO_PROCESS of linux/ioprio.h.
    const THREAD: libc::c_int = 1;
    /// IOPRIO_CLASS_IDLE there, shifted by IOPRIO_CLASS_SHIFT.
    const IDLE: libc::c_int = 3 << 13;
    // SAFETY: both calls take integers; 0 is the calling thread.
    unsafe {
        super::check(libc::setpriority(libc::PRIO_PROCESS, 0, 19).into())?;
        super::check(libc::syscall(libc::SYS_ioprio_set, THREAD, 0, IDLE))?;
    }
    Ok(())
}

/// Orphans of this process' descendants become its children from now on (prctl(2), PR_SET_CHILD_SUBREAPER).
///
/// # Errors
///
/// That of prctl(2).
pub fn become_subreaper() -> io::Result<()> {
    Ok(prctl::set_child_subreaper(true)?)
}

/// Children of this process vanish when they die, and need not be waited for (sigaction(2), SA_NOCLDWAIT).
///
/// # Errors
///
/// That of sigaction(2).
pub fn forget_children() -> io::Result<()> {
    // SAFETY: no handler of ours is installed, so none can run in a bad moment.
    unsafe { signal(Signal::SIGCHLD, SigHandler::SigIgn) }?;
    Ok(())
}

/// Children of this process are to be waited for again.
///
/// # Errors
///
/// That of sigaction(2).
pub fn mind_children() -> io::Result<()> {
    // SAFETY: as in `forget_children`.
    unsafe { signal(Signal::SIGCHLD, SigHandler::SigDfl) }?;
    Ok(())
}

/// Does `act` while children that die keep their numbers, and lets go of those that did afterwards.
///
/// For a process that forgets its children ([`forget_children`]) and forks one: without this the child could be gone, and
/// its number a stranger's, before the parent holds a pidfd of it. Children that died meanwhile are reaped, so whoever
/// wants their status asks within `act`.
///
/// # Errors
///
/// That of sigaction(2); a failure of the second one leaves dead children to be waited for.
pub fn while_minding_children<T>(act: impl FnOnce() -> T) -> io::Result<T> {
    mind_children()?;
    let done = act();
    forget_children()?;
    // The kernel forgets none that was dead before it was told to (sigaction(2)).
    let reap = || waitpid(None, Some(WaitPidFlag::WNOHANG));
    while !matches!(reap(), Ok(WaitStatus::StillAlive) | Err(Errno::ECHILD)) {}
    Ok(done)
}

/// This process, as others can recognise it.
///
/// # Errors
///
/// The error of reading /proc/self/stat.
pub fn own_id() -> io::Result<ProcessId> {
    let pid = getpid().as_raw();
    let start_ticks = super::pidfd::start_ticks(Pid::from_raw(pid)).map_err(io::Error::other)?;
    Ok(ProcessId { pid, start_ticks })
}

/// Whether process `pid` is stopped by a signal or a debugger; false also if there is none.
pub fn is_stopped(pid: i32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // Field 3, after the name in parentheses, which may hold anything (proc_pid_stat(5)).
    stat.rsplit_once(") ").is_some_and(|(_, rest)| rest.starts_with(['T', 't']))
}

/// The children of this process but `spared`, dead ones that were not waited for among them.
pub fn children_except(spared: &[i32]) -> Vec<i32> {
    let path = format!("/proc/self/task/{}/children", getpid());
    let children = fs::read_to_string(path).unwrap_or_default();
    let children = children.split_ascii_whitespace().filter_map(|pid| pid.parse().ok());
    children.filter(|pid| !spared.contains(pid)).collect()
}

/// Sends SIGKILL to every child of this process but `spared`; returns how many others there are.
///
/// A child that was not waited for keeps its number, so no stranger is hit.
pub fn kill_children_except(spared: &[i32]) -> usize {
    let others = children_except(spared);
    for &pid in &others {
        match kill(Pid::from_raw(pid), Signal::SIGKILL) {
            Ok(()) | Err(Errno::ESRCH) => {}
            // A child that changed its identity, as an ordinary user's cannot.
            Err(_) => {}
        }
    }
    others.len()
}

/// Waits until a child dies, `patience` at the most, and reaps all that are dead.
///
/// For a process that has SIGCHLD blocked: what died since the last call is not missed, since that signal waits.
pub fn reap_within(patience: Duration) {
    if wait_for_death(patience).is_err() {
        // Without a descriptor there is nothing to wait on.
        std::thread::sleep(patience.min(Duration::from_millis(20)));
    }
    let reap = || waitpid(None, Some(WaitPidFlag::WNOHANG));
    while !matches!(reap(), Ok(WaitStatus::StillAlive) | Err(_)) {}
}

/// One signal may stand for many children, so it is taken before they are looked for.
fn wait_for_death(patience: Duration) -> nix::Result<()> {
    let mask = SigSet::from(Signal::SIGCHLD);
    let died = SignalFd::with_flags(&mask, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)?;
    let timeout = PollTimeout::try_from(patience).unwrap_or(PollTimeout::MAX);
    poll(&mut [PollFd::new(died.as_fd(), PollFlags::POLLIN)], timeout)?;
    died.read_signal().map(drop)
}

#[cfg(test)]
mod tests {

    use nix::sys::wait::{Id, waitid};
    use nix::unistd::{ForkResult, fork};

    use super::*;
    use crate::sys::exec::exit_now;
    use crate::sys::{clone, pidfd};

    /// In a process of its own: what a process does with its children is one for all its threads.
    fn in_a_child(act: impl FnOnce() -> bool) -> WaitStatus {
        // SAFETY: the child makes system calls and ends; it takes no lock that another thread may hold but the allocator's,
        // which glibc renews in the child.
        match unsafe { fork() }.unwrap() {
            ForkResult::Child => exit_now(i32::from(!act())),
            ForkResult::Parent { child } => waitpid(child, None).unwrap(),
        }
    }

    /// Waits until the child behind `id` is dead, and leaves it to be waited for.
    fn see_dead(id: Id<'_>) -> nix::Result<WaitStatus> {
        waitid(id, WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT)
    }

    #[test]
    fn a_child_that_dies_at_once_is_still_ours_and_does_not_stay() {
        let ended = in_a_child(|| {
            forget_children().unwrap();
            let kept = while_minding_children(|| {
                let (pid, pidfd) = clone::fork(|| exit_now(0)).unwrap();
                see_dead(Id::PIDFd(pidfd.unwrap().as_fd())).is_ok() && pidfd::open(pid).is_ok()
            });
            kept.unwrap() && waitpid(None, Some(WaitPidFlag::WNOHANG)) == Err(Errno::ECHILD)
        });

        assert!(matches!(ended, WaitStatus::Exited(_, 0)), "{ended:?}");
    }

    #[test]
    fn the_dead_are_reaped_and_the_living_are_waited_for_no_longer_than_asked() {
        let ended = in_a_child(|| {
            SigSet::from(Signal::SIGCHLD).thread_block().unwrap();
            let sleeps = || loop {
                std::thread::sleep(Duration::from_secs(600));
            };
            let (stays, _) = clone::fork(sleeps).unwrap();
            let (_, goes) = clone::fork(|| exit_now(0)).unwrap();
            see_dead(Id::PIDFd(goes.unwrap().as_fd())).unwrap();

            reap_within(Duration::from_secs(600));
            reap_within(Duration::from_millis(1));
            let left = children_except(&[]);
            kill_children_except(&[]);
            reap_within(Duration::from_secs(600));

            left == [stays.as_raw()] && children_except(&[]).is_empty()
        });

        assert!(matches!(ended, WaitStatus::Exited(_, 0)), "{ended:?}");
    }

    #[test]
    fn a_child_that_is_forgotten_leaves_nothing_behind() {
        let ended = in_a_child(|| {
            forget_children().unwrap();
            let child = while_minding_children(|| clone::fork(|| exit_now(0)).unwrap());
            let (pid, _pidfd) = child.unwrap();
            see_dead(Id::Pid(pid)) == Err(Errno::ECHILD)
        });

        assert!(matches!(ended, WaitStatus::Exited(_, 0)), "{ended:?}");
    }
}
