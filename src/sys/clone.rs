//! Children with a pidfd: `clone3` straight into a cgroup for a run, `fork` for a coordinator.
#![allow(unsafe_code)]

use std::convert::Infallible;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use nix::errno::Errno;
use nix::unistd::{ForkResult, Pid};

use super::check;
use super::exec::exit_now;

/// `CLONE_INTO_CGROUP` of `linux/sched.h`; Linux 5.7.
const INTO_CGROUP: u64 = 0x2_0000_0000;

/// Exit status of a child that came back from where it must not.
const STRAY: i32 = 125;

/// Makes a child that is born in `cgroup` (in the caller's own where there is none) and runs
/// `child`, which ends in `execve` or exit. Returns its pid, and a pidfd that is valid whatever
/// happens to the pid.
///
/// Without `CLONE_VM` the child has a copy of memory, as after `fork`; but libc does not know of
/// it, and its idea of who it is (cached thread id, fork handlers) is the parent's. So `child`
/// makes system calls and nothing else. In a process of several threads that is all it could do
/// anyway: a lock held by a thread that the child does not have is never released.
///
/// # Errors
///
/// Those of `clone3(2)`; `ENODEV`, `EOPNOTSUPP` and `EBUSY` are about the cgroup. No child exists
/// then.
pub fn clone_into(
    cgroup: Option<BorrowedFd<'_>>,
    child: impl FnOnce() -> Infallible,
) -> Result<(Pid, OwnedFd), Errno> {
    let mut pidfd: RawFd = -1;
    let args = libc::clone_args {
        flags: libc::CLONE_PIDFD as u64 | if cgroup.is_some() { INTO_CGROUP } else { 0 },
        pidfd: (&raw mut pidfd).expose_provenance() as u64,
        child_tid: 0,
        parent_tid: 0,
        exit_signal: libc::SIGCHLD as u64,
        stack: 0,
        stack_size: 0,
        tls: 0,
        set_tid: 0,
        set_tid_size: 0,
        cgroup: cgroup.map_or(0, |fd| fd.as_raw_fd() as u64),
    };
    // SAFETY: `args` is a whole `clone_args` of the size given, and `pidfd` is a writable int that
    // outlives the call. With stack 0 and neither CLONE_VM nor CLONE_VFORK the child goes on with a
    // copy of this stack and of all memory, so nothing that either side does is seen by the other.
    // `cgroup` is an open descriptor while it is borrowed.
    let pid =
        check(unsafe { libc::syscall(libc::SYS_clone3, &raw const args, size_of_val(&args)) })?;
    if pid == 0 {
        become_child(child);
    }
    // SAFETY: with CLONE_PIDFD the kernel has stored a new descriptor of this process in `pidfd`;
    // nobody else knows of it.
    let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
    Ok((Pid::from_raw(pid as libc::pid_t), pidfd))
}

/// Forks a child that goes on as a whole program, a coordinator, and runs `child`. Returns its pid, and a pidfd if one could
/// be had: the child is there in any case, and may have done anything by now.
///
/// This is libc's `fork` and not `clone3`, because the child lives on in libc: only `fork` renews
/// what libc remembers of the process (with musl, `abort` after a raw clone would signal the
/// parent). Call it from a process of one thread, and not from one that forgets its children: see
/// [`while_minding_children`](super::process::while_minding_children).
///
/// # Errors
///
/// Those of `fork(2)`: no child exists then. Within: those of `pidfd_open(2)`.
pub fn fork(child: impl FnOnce() -> Infallible) -> Result<(Pid, Result<OwnedFd, Errno>), Errno> {
    // SAFETY: memory is copied, so the only danger is a lock held by another thread at this instant: the child could wait for
    // it for ever. The caller has one thread.
    match unsafe { nix::unistd::fork() }? {
        ForkResult::Child => become_child(child),
        ForkResult::Parent { child } => Ok((child, pidfd_of_child(child))),
    }
}

/// A pidfd of an unreaped child.
fn pidfd_of_child(child: Pid) -> Result<OwnedFd, Errno> {
    // SAFETY: pidfd_open(2) takes two integers; what it returns is a new descriptor that nobody
    // else knows of.
    unsafe {
        let fd = check(libc::syscall(libc::SYS_pidfd_open, child.as_raw(), 0))?;
        Ok(OwnedFd::from_raw_fd(fd as RawFd))
    }
}

/// Runs `child`. A panic in it must not unwind into the frames below, which are the parent's
/// business.
fn become_child(child: impl FnOnce() -> Infallible) -> ! {
    struct ExitOnUnwind;
    impl Drop for ExitOnUnwind {
        fn drop(&mut self) {
            exit_now(STRAY);
        }
    }
    let _guard = ExitOnUnwind;
    match child() {}
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
    use nix::sys::signal::{Signal, kill};
    use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid};

    use super::*;

    fn status(pid: Pid, pidfd: &OwnedFd) -> WaitStatus {
        let mut fds = [PollFd::new(pidfd.as_fd(), PollFlags::POLLIN)];
        assert_eq!(
            poll(&mut fds, PollTimeout::from(10_000u16)),
            Ok(1),
            "the pidfd tells of the end of {pid}"
        );
        waitid(Id::PIDFd(pidfd.as_fd()), WaitPidFlag::WEXITED).unwrap()
    }

    #[test]
    fn a_clone_is_a_child_with_a_pidfd_of_its_own() {
        let (pid, pidfd) = clone_into(None, || exit_now(7)).unwrap();

        assert_eq!(status(pid, &pidfd), WaitStatus::Exited(pid, 7));
    }

    #[test]
    fn a_panic_in_a_child_never_reaches_the_frames_of_its_parent() {
        let (pid, pidfd) = clone_into(None, || std::panic::resume_unwind(Box::new(()))).unwrap();

        assert_eq!(status(pid, &pidfd), WaitStatus::Exited(pid, STRAY));
    }

    #[test]
    fn a_cgroup_that_is_none_is_refused_and_leaves_no_child() {
        let null = std::fs::File::open("/dev/null").unwrap();

        let error = clone_into(Some(null.as_fd()), || exit_now(0)).unwrap_err();

        assert_eq!(error, Errno::EBADF);
    }

    /// Attack 27: there is no instant at which the child is elsewhere.
    #[test]
    fn a_clone_is_born_in_the_cgroup_that_was_named() {
        let Some(base) = crate::sys::fault::writable_cgroup2() else { return };
        let path = base.join(format!("dewar-clone-test-{}", std::process::id()));
        std::fs::create_dir(&path).unwrap();
        let dir = std::fs::File::open(&path).unwrap();

        let (pid, pidfd) = clone_into(Some(dir.as_fd()), || {
            loop {
                nix::unistd::pause();
            }
        })
        .unwrap();
        let procs = std::fs::read_to_string(path.join("cgroup.procs")).unwrap();
        kill(pid, Signal::SIGKILL).unwrap();
        status(pid, &pidfd);
        std::fs::remove_dir(&path).unwrap();

        assert_eq!(procs, format!("{pid}\n"));
    }
}
