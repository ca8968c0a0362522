//! Children with a pidfd: `clone3` straight into a cgroup for a program, `fork` for a coordinator, and both at once for a runner.
#![allow(unsafe_code)]

use std::convert::Infallible;
use std::ffi::c_void;
use std::mem::ManuallyDrop;
use std::num::NonZeroUsize;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::fs::MetadataExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::ptr::NonNull;

use nix::errno::Errno;
use nix::sys::mman::{MapFlags, ProtFlags, mmap_anonymous, mprotect, munmap};
use nix::sys::signal::{SigSet, SigmaskHow};
use nix::unistd::{ForkResult, Pid};

use super::check;
use super::exec::exit_now;

/// `CLONE_INTO_CGROUP` of `linux/sched.h`; Linux 5.7.
const INTO_CGROUP: u64 = 0x2_0000_0000;

/// Exit status of a child that came back from where it must not.
const STRAY: i32 = 125;

/// Makes a child that is born in `cgroup` (in the caller's own where there is none) and runs
/// `child`, which ends in `execve` or exit. Returns once it has, with its pid, and a pidfd that is valid whatever
/// happens to the pid.
///
/// As after `vfork`, the child has the caller's memory, not a copy: no page table is copied, and no page is
/// copied when either writes to it. The calling thread stands still meanwhile. The child has a stack of its own, and
/// libc does not know of it, so `child` makes system calls and nothing else. It begins with all signals blocked, since a
/// handler of the caller's would run in the caller's memory.
///
/// # Errors
///
/// Those of `clone3(2)`; `ENODEV`, `EOPNOTSUPP` and `EBUSY` are about the cgroup. Those of `mmap(2)`, for the stack. No
/// child exists then.
pub fn clone_into<F: FnOnce() -> Infallible>(
    cgroup: Option<BorrowedFd<'_>>,
    child: F,
) -> Result<(Pid, OwnedFd), Errno> {
    let stack = Stack::new()?;
    let mut child = ManuallyDrop::new(child);
    let mut pidfd: RawFd = -1;
    let shared = libc::CLONE_VM | libc::CLONE_VFORK | libc::CLONE_PIDFD;
    let args = libc::clone_args {
        flags: shared as u64 | if cgroup.is_some() { INTO_CGROUP } else { 0 },
        pidfd: (&raw mut pidfd).expose_provenance() as u64,
        child_tid: 0,
        parent_tid: 0,
        exit_signal: libc::SIGCHLD as u64,
        stack: stack.lowest() as u64,
        stack_size: Stack::SIZE as u64,
        tls: 0,
        set_tid: 0,
        set_tid_size: 0,
        cgroup: cgroup.map_or(0, |fd| fd.as_raw_fd() as u64),
    };
    // SAFETY: `args` is a whole `clone_args`; `pidfd` is a writable int that outlives the call, as does the stack, which nobody
    // else uses. `cgroup` is an open descriptor while it is borrowed. With CLONE_VFORK this thread goes on
    // only when the child has its own memory or is gone, so `child` is alive while `enter` takes it, and is used by
    // one side only: it is never dropped here once the child has it. No handler of ours runs in the child.
    let mut clone = || unsafe { clone3(&args, enter::<F>, (&raw mut child).cast()) };
    let pid = with_all_blocked(|| match clone() {
        error @ -4095..0 => Err(Errno::from_raw(-error as i32)),
        pid => Ok(pid),
    });
    if pid.is_err() {
        // SAFETY: there is no child, so nobody took it.
        unsafe { ManuallyDrop::drop(&mut child) };
    }
    let pid = pid?;
    // SAFETY: with CLONE_PIDFD the kernel has stored a new descriptor of this process in `pidfd`;
    // nobody else knows of it.
    let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
    Ok((Pid::from_raw(pid as libc::pid_t), pidfd))
}

/// Does `act` with all signals of this thread blocked.
fn with_all_blocked<T>(act: impl FnOnce() -> Result<T, Errno>) -> Result<T, Errno> {
    let before = SigSet::all().thread_swap_mask(SigmaskHow::SIG_BLOCK)?;
    let done = act();
    // It is a mask that the kernel gave.
    let _ = before.thread_set_mask();
    done
}

/// Where a child begins.
///
/// # Safety
///
/// `child` is a `ManuallyDrop<F>` that nobody else uses from now on.
unsafe extern "C" fn enter<F: FnOnce() -> Infallible>(child: *mut c_void) -> ! {
    // SAFETY: as above.
    become_child(unsafe { ManuallyDrop::take(&mut *child.cast::<ManuallyDrop<F>>()) })
}

/// `clone3(2)` with a stack of its own, on which the child calls `enter(data)`. Returns, to the parent, what the kernel
/// does: a pid, or the negative of an error number.
///
/// libc has no wrapper, and its `syscall` would return on the child's stack, where there is nothing to return to.
///
/// # Safety
///
/// As of `clone3(2)` for `args`; and `enter` may be called with `data`, while the parent stands still.
#[cfg(target_arch = "x86_64")]
unsafe fn clone3(
    args: &libc::clone_args,
    enter: unsafe extern "C" fn(*mut c_void) -> !,
    data: *mut c_void,
) -> libc::c_long {
    let result: libc::c_long;
    // SAFETY: the kernel keeps all registers but rax, rcx and r11 (syscall(2)), in parent and child. The parent jumps to
    // the end with its own stack untouched. In the child rsp is the top of the new stack, aligned to a page, so the call
    // aligns it as the ABI says, and does not return. What the child writes to memory is what `asm!` takes for
    // granted: it is not declared `nomem`.
    unsafe {
        std::arch::asm!(
            "syscall",
            "test rax, rax",
            "jnz 2f",
            "xor ebp, ebp",
            "mov rdi, r12",
            "call r13",
            "ud2",
            "2:",
            inlateout("rax") libc::SYS_clone3 => result,
            in("rdi") args,
            in("rsi") size_of_val(args),
            in("r12") data,
            in("r13") enter,
            lateout("rcx") _,
            lateout("r11") _,
        );
    }
    result
}

/// As above.
///
/// # Safety
///
/// As above.
#[cfg(target_arch = "aarch64")]
unsafe fn clone3(
    args: &libc::clone_args,
    enter: unsafe extern "C" fn(*mut c_void) -> !,
    data: *mut c_void,
) -> libc::c_long {
    let result: libc::c_long;
    // SAFETY: the kernel keeps all registers but x0 (syscall(2)), in parent and child. The parent branches to the end with its
    // own stack untouched. In the child sp is the top of the new stack, aligned to a page; the call does not return.
    unsafe {
        std::arch::asm!(
            "svc 0",
            "cbnz x0, 2f",
            "mov x29, xzr",
            "mov x0, x20",
            "blr x21",
            "brk 1",
            "2:",
            inlateout("x0") args => result,
            in("x1") size_of_val(args),
            in("x8") libc::SYS_clone3,
            in("x20") data,
            in("x21") enter,
            lateout("x30") _,
        );
    }
    result
}

/// Stack of a child, above a page that nobody may touch: one that grew into it ends the child, not the parent's memory.
struct Stack(NonNull<c_void>);

impl Stack {
    /// The steps of a launch take a few kB; a build without optimisation some more.
    const SIZE: usize = 128 * 1024;
    /// At least a page, of whatever size.
    const GUARD: usize = 64 * 1024;
    const WHOLE: NonZeroUsize = NonZeroUsize::new(Self::GUARD + Self::SIZE).unwrap();

    fn new() -> Result<Self, Errno> {
        let flags = MapFlags::MAP_PRIVATE | MapFlags::MAP_STACK | MapFlags::MAP_NORESERVE;
        // SAFETY: a new mapping, at a place of the kernel's choice, touches no memory that is in use.
        let stack = Self(unsafe {
            mmap_anonymous(None, Self::WHOLE, ProtFlags::PROT_READ | ProtFlags::PROT_WRITE, flags)?
        });
        // SAFETY: these are the lowest pages of the mapping, which nobody has used.
        unsafe { mprotect(stack.0, Self::GUARD, ProtFlags::PROT_NONE)? };
        Ok(stack)
    }

    /// The lowest byte that may be used.
    fn lowest(&self) -> usize {
        self.0.as_ptr().expose_provenance() + Self::GUARD
    }
}

impl Drop for Stack {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours, and its only user, a child, has its own memory by now, or never was.
        let _ = unsafe { munmap(self.0, Self::WHOLE.get()) };
    }
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

/// Forks a child that is born in `cgroup` (in the caller's own where there is none), goes on as a whole program, a runner, and runs
/// `child`. Returns its pid, and a pidfd. It begins with all signals blocked: a handler of the caller's would act in the caller's name.
///
/// libc has no fork into a cgroup, and a process that is moved there later waits for a grace period of RCU. So this is `clone3`, which has
/// the kernel do for libc what `fork` asks it for: to write the child's thread id where libc remembers that of its thread. Nothing
/// else that `fork` renews is there in a process of one thread that is ours: no stack or arena of another one, no robust mutex, no
/// timer, no handler of pthread_atfork(3).
///
/// # Errors
///
/// Those of `clone3(2)`; `ENODEV`, `EOPNOTSUPP` and `EBUSY` are about the cgroup. `ENOSYS`: this cannot be done here, since nobody knows
/// where libc remembers it (prctl(2), PR_GET_TID_ADDRESS: a kernel without CONFIG_CHECKPOINT_RESTORE, a libc other than glibc), or since there is
/// another thread, as of a library that was preloaded, which could hold a lock that the child waits for. No child exists then.
pub fn fork_into(
    cgroup: Option<BorrowedFd<'_>>,
    child: impl FnOnce() -> Infallible,
) -> Result<(Pid, OwnedFd), Errno> {
    // A directory for each thread, beside its own two names.
    if !std::fs::metadata("/proc/self/task").is_ok_and(|threads| threads.nlink() == 3) {
        return Err(Errno::ENOSYS);
    }
    let thread_id = remembered_thread_id().ok_or(Errno::ENOSYS)?;
    let mut pidfd: RawFd = -1;
    let renewed = libc::CLONE_CHILD_SETTID | libc::CLONE_CHILD_CLEARTID | libc::CLONE_PIDFD;
    let args = libc::clone_args {
        flags: renewed as u64 | if cgroup.is_some() { INTO_CGROUP } else { 0 },
        pidfd: (&raw mut pidfd).expose_provenance() as u64,
        child_tid: thread_id,
        parent_tid: 0,
        exit_signal: libc::SIGCHLD as u64,
        stack: 0,
        stack_size: 0,
        tls: 0,
        set_tid: 0,
        set_tid_size: 0,
        cgroup: cgroup.map_or(0, |fd| fd.as_raw_fd() as u64),
    };
    // SAFETY: `args` is a whole `clone_args`. Memory is copied, so the child goes on like the parent, on the same stack of its own, with
    // what `libc::syscall` returns: 0. The kernel writes to `pidfd` in the parent, and in the child to where libc itself would have
    // it write. The caller has one thread, so no lock is held by another.
    let clone = || unsafe {
        let pid = check(libc::syscall(libc::SYS_clone3, &args, size_of_val(&args)))?;
        if pid == 0 {
            become_child(child);
        }
        Ok(pid)
    };
    let pid = with_all_blocked(clone)?;
    // SAFETY: with CLONE_PIDFD the kernel has stored a new descriptor of this process in `pidfd`;
    // nobody else knows of it.
    let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
    Ok((Pid::from_raw(pid as libc::pid_t), pidfd))
}

/// Where libc remembers the id of this thread, as an address; `None` if nobody can tell.
///
/// glibc has the kernel clear it at the end of the thread (set_tid_address(2)), and so the kernel knows. musl has it clear a lock.
fn remembered_thread_id() -> Option<u64> {
    let mut address = 0u64;
    // SAFETY: the kernel writes an address of 8 bytes there.
    let known = unsafe { libc::prctl(libc::PR_GET_TID_ADDRESS, &raw mut address) } == 0;
    let pointer = std::ptr::with_exposed_provenance::<libc::pid_t>(usize::try_from(address).ok()?);
    if !known || !pointer.is_aligned() || pointer.is_null() {
        return None;
    }
    // SAFETY: it is in libc's memory of this thread, which is there as long as the thread is.
    (unsafe { pointer.read() } == nix::unistd::gettid().as_raw()).then_some(address)
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

/// Runs `child`. A panic in it must not unwind into the frames below, which are the parent's business; caught, it is
/// also not counted as one of the parent's, whose memory this may be.
fn become_child(child: impl FnOnce() -> Infallible) -> ! {
    let Ok(never) = catch_unwind(AssertUnwindSafe(child)) else { exit_now(STRAY) };
    match never {}
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
    use nix::sys::signal::{Signal, kill};
    use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid, waitpid};

    use super::*;
    use crate::sys::exec::Image;
    use crate::sys::signal;
    use crate::testing::alone;

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

    /// libc signals by the thread id that it remembers, locks by it, and gives it to the next fork.
    #[test]
    fn a_fork_into_a_cgroup_is_a_process_of_its_own_that_libc_knows() {
        alone(|| {
            let mut mine = 1;
            let (pid, pidfd) = fork_into(None, || {
                mine += 1;
                let knows = remembered_thread_id().is_some();
                let thread = std::thread::spawn(|| 2).join().is_ok_and(|two| two == mine);
                let (again, _) = fork(|| exit_now(3)).unwrap();
                let forks = waitpid(again, None) == Ok(WaitStatus::Exited(again, 3));
                let all_blocked = SigSet::thread_get_mask().unwrap().contains(Signal::SIGUSR1);
                if !(knows && thread && forks && all_blocked) {
                    exit_now(1)
                }
                SigSet::all().thread_unblock().unwrap();
                nix::sys::signal::raise(Signal::SIGUSR1).unwrap();
                exit_now(2)
            })
            .unwrap();

            assert_eq!(status(pid, &pidfd), WaitStatus::Signaled(pid, Signal::SIGUSR1, false));
            assert_eq!(mine, 1);
            assert!(!SigSet::thread_get_mask().unwrap().contains(Signal::SIGUSR1));
        });
    }

    /// As ^C, which the terminal sends to all that it finds in the session.
    #[test]
    fn a_signal_that_came_before_a_fork_has_left_its_session_is_not_for_it() {
        alone(|| {
            let (pid, pidfd) = fork_into(None, || {
                kill(nix::unistd::getpid(), Signal::SIGINT).unwrap();
                signal::discard_pending().unwrap();
                signal::default_all().unwrap();
                signal::unblock_all().unwrap();
                exit_now(4)
            })
            .unwrap();

            assert_eq!(status(pid, &pidfd), WaitStatus::Exited(pid, 4));
        });
    }

    #[test]
    fn a_process_of_several_threads_is_not_forked_into_a_cgroup() {
        // The harness has one, and so does this test.
        assert_eq!(fork_into(None, || exit_now(0)).unwrap_err(), Errno::ENOSYS);
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
        let sleep = Image::new(c"/bin/sleep".into(), vec![c"sleep".into(), c"inf".into()], vec![]);
        is_born_there("clone", |cgroup| {
            clone_into(Some(cgroup), || {
                sleep.execve();
                exit_now(STRAY)
            })
        });
    }

    #[test]
    fn a_fork_is_born_in_the_cgroup_that_was_named() {
        alone(|| {
            is_born_there("fork", |cgroup| {
                fork_into(Some(cgroup), || {
                    nix::unistd::pause();
                    exit_now(STRAY)
                })
            });
        });
    }

    fn is_born_there(
        how: &str,
        birth: impl FnOnce(BorrowedFd<'_>) -> Result<(Pid, OwnedFd), Errno>,
    ) {
        let Some(base) = crate::sys::fault::writable_cgroup2() else { return };
        let path = base.join(format!("dewar-{how}-test-{}", std::process::id()));
        std::fs::create_dir(&path).unwrap();
        let dir = std::fs::File::open(&path).unwrap();

        let (pid, pidfd) = birth(dir.as_fd()).unwrap();
        let procs = std::fs::read_to_string(path.join("cgroup.procs")).unwrap();
        kill(pid, Signal::SIGKILL).unwrap();
        status(pid, &pidfd);
        std::fs::remove_dir(&path).unwrap();

        assert_eq!(procs, format!("{pid}\n"));
    }
}
