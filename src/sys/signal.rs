//! Signal dispositions and mask of a child, by raw calls: libc hides the two real-time signals that
//! it uses itself.
#![allow(unsafe_code)]

use std::ptr;

use nix::errno::Errno;

use super::check;

/// Highest signal number: `_NSIG` of the kernel.
const LAST: i32 = 64;

/// Size of the kernel's signal set, bytes: one bit for each signal.
const SET_BYTES: usize = 8;

/// A kernel `struct sigaction` that is all zero: default action, no flags, nothing masked. 32 bytes
/// on every 64-bit machine.
static DEFAULT: [u64; 4] = [0; 4];

/// The same with SIG_IGN as its handler, which is its first field.
static IGNORE: [u64; 4] = [libc::SIG_IGN as u64, 0, 0, 0];

/// Forgets signals that are pending, blocked or not: to ignore one is to discard it (POSIX, sigaction). Ignores all from then on.
///
/// # Errors
///
/// Those of `rt_sigaction(2)`.
pub fn discard_pending() -> Result<(), Errno> {
    set_all(&IGNORE)
}

/// Gives every signal its default action. `execve(2)` does so for handled signals, but keeps
/// ignored ones ignored.
///
/// # Errors
///
/// Those of `rt_sigaction(2)`.
pub fn default_all() -> Result<(), Errno> {
    set_all(&DEFAULT)
}

fn set_all(action: &[u64; 4]) -> Result<(), Errno> {
    for signal in (1..=LAST).filter(|&n| n != libc::SIGKILL && n != libc::SIGSTOP) {
        // SAFETY: the kernel reads one `struct sigaction` at the pointer, which is that long, and
        // writes nothing to null. No handler of ours is named.
        let result = unsafe {
            libc::syscall(
                libc::SYS_rt_sigaction,
                signal,
                action.as_ptr(),
                ptr::null_mut::<u64>(),
                SET_BYTES,
            )
        };
        check(result)?;
    }
    Ok(())
}

/// Blocks no signal. One that is pending arrives at once.
///
/// # Errors
///
/// Those of `rt_sigprocmask(2)`.
pub fn unblock_all() -> Result<(), Errno> {
    let none = 0u64;
    // SAFETY: the kernel reads a set of `SET_BYTES` at the pointer, which is that long, and writes
    // nothing to null.
    let result = unsafe {
        libc::syscall(
            libc::SYS_rt_sigprocmask,
            libc::SIG_SETMASK,
            &raw const none,
            ptr::null_mut::<u64>(),
            SET_BYTES,
        )
    };
    check(result).map(drop)
}
