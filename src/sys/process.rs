//! This process, and its children.
#![allow(unsafe_code)]

use std::fs;
use std::io;

use nix::errno::Errno;
use nix::sys::prctl;
use nix::sys::signal::{SigHandler, Signal, kill, signal};
use nix::unistd::{Pid, getpid};

use super::pidfd::ProcessId;

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

/// Sends SIGKILL to every child of this process but `spared`; returns how many others there are.
///
/// A child that was not waited for keeps its number, so no stranger is hit.
pub fn kill_children_except(spared: &[i32]) -> usize {
    let path = format!("/proc/self/task/{}/children", getpid());
    let children = fs::read_to_string(path).unwrap_or_default();
    let others = children.split_ascii_whitespace().filter_map(|pid| pid.parse().ok());
    let others: Vec<i32> = others.filter(|pid| !spared.contains(pid)).collect();
    for &pid in &others {
        match kill(Pid::from_raw(pid), Signal::SIGKILL) {
            Ok(()) | Err(Errno::ESRCH) => {}
            // A child that changed its identity, as an ordinary user's cannot.
            Err(_) => {}
        }
    }
    others.len()
}
