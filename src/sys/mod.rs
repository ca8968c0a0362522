//! System calls that the standard library and nix lack, and the only unsafe code of dewar. Nothing here knows of tasks.
//!
//! What runs between `clone3` and `execve` is here too: it makes system calls on values prepared before the clone, allocates
//! nothing, takes no lock, and never relies on what libc remembers of its own process.
//!
//! - [`clock`]: clocks and the identity of a boot
//! - [`clone`]: a child in its cgroup, with a pidfd
//! - [`dir`]: entries of directories, and what they are
//! - [`exec`]: becoming another program
//! - [`fds`]: the descriptors of this process
//! - [`fs`]: opening beneath a directory; descriptors, working directory and root of a child
//! - [`ids`]: groups, ids, capabilities, and reading them back
//! - [`inherit`]: what a child inherits and a run must not
//! - `init`: process 1 of a container
//! - [`lock`]: who may write a file
//! - [`pidfd`]: processes by descriptor, recognised beyond the reuse of their number
//! - [`process`]: this process, and its children
//! - [`quota`]: what the kernel accounts to a project
//! - `ready`: descriptors that the daemon waits for
//! - [`signal`]: dispositions and mask
//! - `sock_diag`: whose a TCP connection of this host is
//! - [`socket`]: descriptors and credentials over unix sockets
//! - [`start`]: how a program begins and ends
//! - [`terminal`]: both sides of a terminal
//! - [`title`]: what others see that this process is
//! - [`xattr`]: extended attributes
#![allow(clippy::disallowed_methods, reason = "system calls")]

#[cfg(not(target_pointer_width = "64"))]
compile_error!("the raw calls that set ids take 16-bit ids on 32-bit machines");

pub mod clock;
pub mod clone;
pub mod dir;
pub mod exec;
#[cfg(test)]
pub(crate) mod fault;
pub mod fds;
pub mod fs;
pub mod ids;
pub mod inherit;
#[cfg(feature = "net")]
pub mod init;
pub mod limit;
pub mod lock;
pub mod pidfd;
pub mod process;
pub mod quota;
#[cfg(feature = "net")]
pub mod ready;
pub mod signal;
#[cfg(feature = "net")]
pub mod sock_diag;
pub mod socket;
pub mod start;
pub mod terminal;
pub mod title;
pub mod xattr;

use nix::errno::Errno;

/// Whether a call failed for want of space: of a file system, of a quota on it, or below the limit of the size of files.
pub fn is_no_space(errno: Errno) -> bool {
    matches!(errno, Errno::ENOSPC | Errno::EDQUOT | Errno::EFBIG)
}

/// The result of a raw system call: `-1` means errno.
fn check(result: libc::c_long) -> Result<libc::c_long, Errno> {
    if result == -1 { Err(Errno::last()) } else { Ok(result) }
}
