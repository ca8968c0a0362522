//! Groups, ids and capabilities of this thread: setting them by raw calls, and reading them back.
//!
//! Libc makes the setters act on every thread of the process that it knows of; in a child made by
//! `clone3` that is a list of threads which are not there. A child has one thread, so the raw call
//! is the whole of it.
#![allow(unsafe_code)]

use nix::errno::Errno;
use nix::unistd::{Gid, Uid, geteuid, setfsgid, setfsuid};

use super::check;

/// `_LINUX_CAPABILITY_VERSION_3` of `linux/capability.h`.
const CAPABILITY_VERSION: u32 = 0x2008_0522;

/// `PR_CAP_AMBIENT` and its operation `PR_CAP_AMBIENT_CLEAR_ALL`, of `linux/prctl.h`.
const AMBIENT: libc::c_int = 47;
const AMBIENT_CLEAR_ALL: libc::c_ulong = 4;

/// `PR_GET_SECUREBITS` of `linux/prctl.h`.
const GET_SECUREBITS: libc::c_int = 27;

/// `SECBIT_NO_SETUID_FIXUP`: a change of uid takes no capabilities. See `capabilities(7)`.
pub const NO_SETUID_FIXUP: u32 = 1 << 2;

/// `SECBIT_KEEP_CAPS`: leaving uid 0 keeps the permitted capabilities.
pub const KEEP_CAPS: u32 = 1 << 4;

/// Real, effective, saved and file-system id: all four are equal in a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FourIds {
    /// Whose process it is.
    pub real: u32,
    /// What it may do.
    pub effective: u32,
    /// What it could go back to.
    pub saved: u32,
    /// What it may open.
    pub file_system: u32,
}

impl FourIds {
    /// Whether all are `id`.
    pub fn are(self, id: u32) -> bool {
        self == Self { real: id, effective: id, saved: id, file_system: id }
    }
}

/// The user ids of this thread.
///
/// # Errors
///
/// Those of `getresuid(2)`.
pub fn uids() -> Result<FourIds, Errno> {
    let ids = nix::unistd::getresuid()?;
    // An impossible id changes nothing, and the call returns what there is: setfsuid(2).
    let file_system = setfsuid(Uid::from_raw(u32::MAX)).as_raw();
    Ok(FourIds {
        real: ids.real.as_raw(),
        effective: ids.effective.as_raw(),
        saved: ids.saved.as_raw(),
        file_system,
    })
}

/// The group ids of this thread.
///
/// # Errors
///
/// Those of `getresgid(2)`.
pub fn gids() -> Result<FourIds, Errno> {
    let ids = nix::unistd::getresgid()?;
    let file_system = setfsgid(Gid::from_raw(u32::MAX)).as_raw();
    Ok(FourIds {
        real: ids.real.as_raw(),
        effective: ids.effective.as_raw(),
        saved: ids.saved.as_raw(),
        file_system,
    })
}

/// Reads the supplementary groups into `buffer` and returns how many there are.
///
/// # Errors
///
/// `EINVAL` if there are more than fit, and those of `getgroups(2)`.
pub fn groups(buffer: &mut [u32]) -> Result<usize, Errno> {
    let size = libc::c_int::try_from(buffer.len()).map_err(|_| Errno::EINVAL)?;
    if size == 0 {
        // Zero would ask for the count alone.
        return Err(Errno::EINVAL);
    }
    // SAFETY: the kernel writes at most `size` ids, which is the length of `buffer`; a gid_t is a
    // u32.
    let count = unsafe { libc::getgroups(size, buffer.as_mut_ptr()) };
    check(count.into()).map(|count| count as usize)
}

/// Sets the supplementary groups.
///
/// # Errors
///
/// Those of `setgroups(2)`: `EPERM` without the right, or where a user namespace denies it.
pub fn set_groups(groups: &[u32]) -> Result<(), Errno> {
    // SAFETY: the kernel reads as many ids as `groups` has, from where it is; a gid_t is a u32.
    check(unsafe { libc::syscall(libc::SYS_setgroups, groups.len(), groups.as_ptr()) }).map(drop)
}

/// Sets real, effective, saved and file-system gid.
///
/// # Errors
///
/// Those of `setresgid(2)`: `EINVAL` where the user namespace has no such id.
pub fn set_gid(gid: u32) -> Result<(), Errno> {
    // SAFETY: setresgid(2) takes three integers.
    check(unsafe { libc::syscall(libc::SYS_setresgid, gid, gid, gid) }).map(drop)
}

/// Sets real, effective, saved and file-system uid. Leaving uid 0 takes all capabilities along:
/// `capabilities(7)`.
///
/// # Errors
///
/// Those of `setresuid(2)`: `EINVAL` where the user namespace has no such id.
pub fn set_uid(uid: u32) -> Result<(), Errno> {
    // SAFETY: setresuid(2) takes three integers.
    check(unsafe { libc::syscall(libc::SYS_setresuid, uid, uid, uid) }).map(drop)
}

/// Runs `body` with the rights on files that user `uid` has with these groups, and without capabilities. Only root can, for
/// another than itself.
///
/// Ids and capabilities belong to a thread, so that `body` gets one of its own, and they end with it.
///
/// # Errors
///
/// `EPERM` for another user than this one, if this is not root; `EAGAIN` if there is no thread to be had; those of
/// `setgroups(2)` and `capset(2)`.
pub fn as_file_user<T: Send>(
    uid: u32,
    gid: u32,
    groups: &[u32],
    body: impl FnOnce() -> T + Send,
) -> Result<T, Errno> {
    let own = geteuid().as_raw();
    if uid == own {
        return Ok(body());
    }
    if own != 0 {
        return Err(Errno::EPERM);
    }
    std::thread::scope(|scope| {
        let spawned = std::thread::Builder::new().spawn_scoped(scope, || {
            set_groups(groups)?;
            setfsgid(Gid::from_raw(gid));
            setfsuid(Uid::from_raw(uid));
            set_capabilities(Capabilities::default())?;
            // The two calls tell nothing of an id that does not exist here: setfsuid(2).
            if uids()?.file_system == uid && gids()?.file_system == gid {
                Ok(body())
            } else {
                Err(Errno::EINVAL)
            }
        });
        let thread = spawned.map_err(|_| Errno::EAGAIN)?;
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// Whether this thread, which is not root's and has gid `gid`, gets uid 0 by `setuid(0)`, or gid 0
/// by `setgid(0)`. If it does, it has it now.
pub fn can_become_root(gid: u32) -> bool {
    // SAFETY: setuid(2) and setgid(2) take an integer.
    let [user, group] =
        unsafe { [libc::syscall(libc::SYS_setuid, 0), libc::syscall(libc::SYS_setgid, 0)] };
    user != -1 || (gid != 0 && group != -1)
}

/// The capability sets of a thread, a bit for each capability.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Capabilities {
    /// What it can do.
    pub effective: u64,
    /// What it can make effective.
    pub permitted: u64,
    /// What a program may inherit; the ambient set is within it and within permitted.
    pub inheritable: u64,
}

/// One half of the sets, as the kernel lays them out.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct CapabilityData {
    effective: u32,
    permitted: u32,
    inheritable: u32,
}

/// Whose sets are meant: pid 0, this thread.
#[repr(C)]
struct CapabilityHeader {
    version: u32,
    pid: libc::c_int,
}

/// The capability sets of this thread.
///
/// # Errors
///
/// Those of `capget(2)`.
pub fn capabilities() -> Result<Capabilities, Errno> {
    let mut header = CapabilityHeader { version: CAPABILITY_VERSION, pid: 0 };
    let mut data = [CapabilityData::default(); 2];
    // SAFETY: with version 3 the kernel reads and may write the header, and writes two
    // `CapabilityData`.
    check(unsafe { libc::syscall(libc::SYS_capget, &raw mut header, data.as_mut_ptr()) })?;
    let [low, high] = data;
    let join = |low: u32, high: u32| u64::from(low) | u64::from(high) << 32;
    Ok(Capabilities {
        effective: join(low.effective, high.effective),
        permitted: join(low.permitted, high.permitted),
        inheritable: join(low.inheritable, high.inheritable),
    })
}

/// Sets the capability sets of this thread.
///
/// # Errors
///
/// `EPERM` if that would add one, and those of `capset(2)`.
pub fn set_capabilities(sets: Capabilities) -> Result<(), Errno> {
    let mut header = CapabilityHeader { version: CAPABILITY_VERSION, pid: 0 };
    let half = |shift: u32| CapabilityData {
        effective: (sets.effective >> shift) as u32,
        permitted: (sets.permitted >> shift) as u32,
        inheritable: (sets.inheritable >> shift) as u32,
    };
    let data = [half(0), half(32)];
    // SAFETY: with version 3 the kernel reads and may write the header, and reads two
    // `CapabilityData`.
    check(unsafe { libc::syscall(libc::SYS_capset, &raw mut header, data.as_ptr()) }).map(drop)
}

/// Empties the ambient set, which would survive `execve(2)`.
///
/// # Errors
///
/// Those of `prctl(2)`.
pub fn clear_ambient() -> Result<(), Errno> {
    let zero: libc::c_ulong = 0;
    // SAFETY: PR_CAP_AMBIENT takes integers.
    check(unsafe { libc::prctl(AMBIENT, AMBIENT_CLEAR_ALL, zero, zero, zero) }.into()).map(drop)
}

/// The secure bits of this thread, with `KEEP_CAPS` taken off before, where it is not locked.
///
/// # Errors
///
/// Those of `prctl(2)`: `EPERM` if `KEEP_CAPS` is locked.
pub fn securebits_without_keepcaps() -> Result<u32, Errno> {
    nix::sys::prctl::set_keepcaps(false)?;
    let zero: libc::c_ulong = 0;
    // SAFETY: PR_GET_SECUREBITS takes integers.
    check(unsafe { libc::prctl(GET_SECUREBITS, zero, zero, zero, zero) }.into())
        .map(|bits| bits as u32)
}
