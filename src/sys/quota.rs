//! What the kernel accounts to a project: project quotas of ext4 and XFS.
#![allow(unsafe_code)]

use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, BorrowedFd};

use nix::errno::Errno;

use super::check;

/// `PRJQUOTA` of linux/quota.h.
const PROJECTS: libc::c_uint = 2;
/// `FS_XFLAG_PROJINHERIT` of linux/fs.h: what is made in the directory belongs to its project, and nothing is moved in from
/// another one.
const INHERITED: u32 = 0x200;

/// `struct fsxattr` of linux/fs.h.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Attributes {
    flags: u32,
    extent_size: u32,
    extents: u32,
    project: u32,
    copy_extent_size: u32,
    padding: [u8; 8],
}

mod ioctl {
    // FS_IOC_FSGETXATTR: ioctl_xfs_fsgetxattr(2), ioctl_fs(4).
    nix::ioctl_read!(get_attributes, b'X', 31, super::Attributes);
}

/// What is accounted to a project.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Accounted {
    /// Bytes.
    pub bytes: u64,
    /// Inodes.
    pub inodes: u64,
}

/// The project that whatever is made in the directory `dir` belongs to; `None` if there is none.
///
/// # Errors
///
/// `ENOTTY`, `EOPNOTSUPP`: the file system has no projects.
pub fn project_of(dir: BorrowedFd<'_>) -> Result<Option<u32>, Errno> {
    let mut told = Attributes::default();
    // SAFETY: FS_IOC_FSGETXATTR writes one `struct fsxattr`, which `Attributes` is laid out as.
    unsafe { ioctl::get_attributes(dir.as_raw_fd(), &raw mut told) }?;
    Ok((told.flags & INHERITED != 0 && told.project != 0).then_some(told.project))
}

/// What is accounted to `project` on the file system that `file` is of.
///
/// # Errors
///
/// `ESRCH`: there is no accounting; `EPERM`; `ENOSYS` before Linux 5.14; the rest of quotactl(2).
pub fn of_project(file: BorrowedFd<'_>, project: u32) -> Result<Accounted, Errno> {
    let command = (libc::Q_GETQUOTA as libc::c_uint) << 8 | PROJECTS;
    let mut told = MaybeUninit::<libc::dqblk>::zeroed();
    // SAFETY: Q_GETQUOTA writes one `struct if_dqblk` of linux/quota.h, which `libc::dqblk` is laid out as.
    check(unsafe {
        libc::syscall(libc::SYS_quotactl_fd, file.as_raw_fd(), command, project, told.as_mut_ptr())
    })?;
    // SAFETY: every field is an integer, for which the zeros that it began with are a value, too.
    let told = unsafe { told.assume_init() };
    let needed = libc::QIF_SPACE | libc::QIF_INODES;
    if told.dqb_valid & needed != needed {
        return Err(Errno::ESRCH);
    }
    Ok(Accounted { bytes: told.dqb_curspace, inodes: told.dqb_curinodes })
}
