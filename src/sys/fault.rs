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
