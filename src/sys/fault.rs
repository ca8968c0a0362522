//! Faults and places that tests need of the kernel.
#![allow(unsafe_code)]

use std::path::PathBuf;

use super::check;

/// Makes system call `number` of this process, and of its children, do nothing: it fails with
/// `errno`, or with 0 says that it worked. Needs root. It cannot be taken back.
pub(crate) fn take_away(number: libc::c_long, errno: i32) {
    const LOAD_NUMBER: libc::sock_filter = libc::sock_filter { code: 0x20, jt: 0, jf: 0, k: 0 };
    let equal = libc::sock_filter { code: 0x15, jt: 0, jf: 1, k: number as u32 };
    let answer = |k| libc::sock_filter { code: 0x06, jt: 0, jf: 0, k };
    let filter = [
        LOAD_NUMBER,
        equal,
        answer(libc::SECCOMP_RET_ERRNO | errno as u32),
        answer(libc::SECCOMP_RET_ALLOW),
    ];
    let program = libc::sock_fprog { len: filter.len() as u16, filter: filter.as_ptr().cast_mut() };
    // SAFETY: the kernel reads `program` and the filter that it points to, which has as many
    // entries as it says.
    let result =
        unsafe { libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const program) };
    check(result.into()).expect("root may install a filter");
}

/// Sets the secure bits of this process.
pub(crate) fn set_securebits(bits: u32) {
    let (bits, zero): (libc::c_ulong, libc::c_ulong) = (bits.into(), 0);
    // SAFETY: PR_SET_SECUREBITS takes integers.
    check(unsafe { libc::prctl(libc::PR_SET_SECUREBITS, bits, zero, zero, zero) }.into()).unwrap();
}

/// Ignores each of `signals`, whatever libc thinks of it.
pub(crate) fn ignore(signals: &[i32]) {
    for signal in signals {
        let action = [libc::SIG_IGN as u64, 0, 0, 0];
        // SAFETY: the kernel reads one `struct sigaction`, which is that long, and writes nothing
        // to null.
        let result = unsafe {
            libc::syscall(
                libc::SYS_rt_sigaction,
                *signal,
                action.as_ptr(),
                std::ptr::null_mut::<u64>(),
                8,
            )
        };
        check(result).unwrap();
    }
}

/// Blocks every signal that can be.
pub(crate) fn block_all() {
    let all = u64::MAX;
    // SAFETY: the kernel reads a set of 8 bytes, which is that long, and writes nothing to null.
    let result = unsafe {
        libc::syscall(
            libc::SYS_rt_sigprocmask,
            libc::SIG_SETMASK,
            &raw const all,
            std::ptr::null_mut::<u64>(),
            8,
        )
    };
    check(result).unwrap();
}

/// Takes real-time scheduling, real-time I/O and nice -5. Needs root.
pub(crate) fn privilege_scheduling() {
    let priority: libc::c_int = 1;
    // SAFETY: the calls take integers, but for sched_setscheduler(2), which reads one int.
    unsafe {
        check(libc::syscall(libc::SYS_setpriority, libc::PRIO_PROCESS, 0, -5)).unwrap();
        check(libc::syscall(libc::SYS_sched_setscheduler, 0, libc::SCHED_RR, &raw const priority))
            .unwrap();
        check(libc::syscall(libc::SYS_ioprio_set, 1, 0, 1 << 13)).unwrap();
    }
}

/// Puts a key of the type `user` into the session keyring.
pub(crate) fn add_session_key(description: &std::ffi::CStr) {
    const SESSION_KEYRING: libc::c_long = -3;
    // SAFETY: add_key(2) reads two strings up to their NULs, and as many bytes of payload as it is
    // told: one.
    let result = unsafe {
        libc::syscall(
            libc::SYS_add_key,
            c"user".as_ptr(),
            description.as_ptr(),
            b"x".as_ptr(),
            1usize,
            SESSION_KEYRING,
        )
    };
    check(result).unwrap();
}

/// Raises a capability into the inheritable and then the ambient set.
pub(crate) fn make_ambient(capability: u8) {
    use super::ids::{capabilities, set_capabilities};
    let mut sets = capabilities().unwrap();
    sets.inheritable |= 1 << capability;
    set_capabilities(sets).unwrap();
    let (raise, capability, zero): (libc::c_ulong, libc::c_ulong, libc::c_ulong) =
        (2, capability.into(), 0);
    // SAFETY: PR_CAP_AMBIENT takes integers.
    check(unsafe { libc::prctl(47, raise, capability, zero, zero) }.into()).unwrap();
}

/// A cgroup v2 directory in which this process may make others.
pub(crate) fn writable_cgroup2() -> Option<PathBuf> {
    let mounts = std::fs::read_to_string("/proc/self/mounts").ok()?;
    let mount = mounts
        .lines()
        .map(|line| line.split(' ').collect::<Vec<_>>())
        .find(|mount| mount.get(2) == Some(&"cgroup2"))?;
    let base = PathBuf::from(mount[1]);
    nix::unistd::access(&base, nix::unistd::AccessFlags::W_OK).ok().map(|()| base)
}
