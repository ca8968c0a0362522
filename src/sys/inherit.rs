//! What a child inherits of its caller's standing, and a run must not: a better place with
//! scheduler, memory and disk than an ordinary process, its core limit, its keys. A worse place is
//! kept: it is what the caller wanted, and cannot be undone by an ordinary user anyway.
#![allow(unsafe_code)]

use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::sys::stat::Mode;
use nix::unistd::{read, write};

use super::check;

/// `IOPRIO_WHO_PROCESS`, and where in a value its class begins, of `linux/ioprio.h`.
const IOPRIO_WHO_PROCESS: libc::c_int = 1;
const IOPRIO_CLASS_SHIFT: u32 = 13;
const IOPRIO_CLASS_RT: libc::c_long = 1;

/// `KEYCTL_JOIN_SESSION_KEYRING` of `linux/keyctl.h`.
const JOIN_SESSION_KEYRING: libc::c_ulong = 1;

/// Leaves real-time and deadline scheduling, a negative nice value and real-time I/O: each for the
/// ordinary one.
///
/// # Errors
///
/// Those of `sched_setscheduler(2)`, `setpriority(2)` and `ioprio_set(2)`; nothing of it needs a
/// right.
pub fn ordinary_scheduling() -> Result<(), Errno> {
    let own: libc::c_long = 0;
    // SAFETY: the calls take integers, but for sched_setscheduler(2), which reads one int:
    // `priority`.
    unsafe {
        let policy = check(libc::syscall(libc::SYS_sched_getscheduler, own))? as libc::c_int
            & !libc::SCHED_RESET_ON_FORK;
        if matches!(policy, libc::SCHED_FIFO | libc::SCHED_RR | libc::SCHED_DEADLINE) {
            let priority: libc::c_int = 0;
            check(libc::syscall(
                libc::SYS_sched_setscheduler,
                own,
                libc::SCHED_OTHER,
                &raw const priority,
            ))?;
        }
        // The raw call returns 20 - nice, to tell a value from an error.
        if check(libc::syscall(libc::SYS_getpriority, libc::PRIO_PROCESS, own))? > 20 {
            check(libc::syscall(libc::SYS_setpriority, libc::PRIO_PROCESS, own, own))?;
        }
        let io = check(libc::syscall(libc::SYS_ioprio_get, IOPRIO_WHO_PROCESS, own))?;
        if io >> IOPRIO_CLASS_SHIFT == IOPRIO_CLASS_RT {
            check(libc::syscall(libc::SYS_ioprio_set, IOPRIO_WHO_PROCESS, own, own))?;
        }
    }
    Ok(())
}

/// Keeps others than root from the memory of this process, and a core dump from being made of it: prctl(2),
/// `PR_SET_DUMPABLE`. `execve(2)` ends that.
///
/// A change of uid has done the first already, but under `fs.suid_dumpable` = 2 a signal would still dump core; and until
/// Linux 5.16 that killed whoever shares the memory.
///
/// # Errors
///
/// Those of `prctl(2)`.
pub fn no_dump() -> Result<(), Errno> {
    nix::sys::prctl::set_dumpable(false)
}

/// Whether the kernel leaves the memory of a process open to its user when it changes its uid: `fs.suid_dumpable` = 1,
/// proc_sys_fs(5).
pub fn is_dumpable_after_setuid() -> bool {
    std::fs::read_to_string("/proc/sys/fs/suid_dumpable").is_ok_and(|text| text.trim_end() == "1")
}

/// Raises a negative `oom_score_adj` to 0: with -1000 a run could not be killed for want of memory.
///
/// # Errors
///
/// Those of opening, reading and writing `/proc/self/oom_score_adj`.
pub fn ordinary_oom_score() -> Result<(), Errno> {
    const FILE: &std::ffi::CStr = c"/proc/self/oom_score_adj";
    let mut first = [0];
    let file = open(FILE, OFlag::O_RDONLY | OFlag::O_CLOEXEC, Mode::empty())?;
    if read(&file, &mut first)? == 1 && first == *b"-" {
        let file = open(FILE, OFlag::O_WRONLY | OFlag::O_CLOEXEC, Mode::empty())?;
        write(&file, b"0")?;
    }
    Ok(())
}

/// Sets the soft limit of core dumps to 0. The hard one stays, so that a run may ask for its cores.
///
/// # Errors
///
/// Those of `prlimit64(2)`.
pub fn no_core_dumps() -> Result<(), Errno> {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    let (_, hard) = getrlimit(Resource::RLIMIT_CORE)?;
    setrlimit(Resource::RLIMIT_CORE, 0, hard)
}

/// Joins a new, anonymous session keyring, and so leaves the caller's with the keys in it.
///
/// # Errors
///
/// Those of `keyctl(2)`: `ENOSYS` where the kernel has no keys, `EDQUOT` if the user has too many.
pub fn new_session_keyring() -> Result<(), Errno> {
    let anonymous: libc::c_ulong = 0;
    // SAFETY: a null name asks for an anonymous keyring; nothing is read through it.
    check(unsafe { libc::syscall(libc::SYS_keyctl, JOIN_SESSION_KEYRING, anonymous) }).map(drop)
}
