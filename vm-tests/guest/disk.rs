//! A disk of memory: a loop device over a file on a tmpfs.

use std::ffi::CString;
use std::fs::File;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use nix::mount::{MntFlags, umount2};

/// It is gone when this is dropped.
pub(crate) struct Disk {
    device: PathBuf,
}

impl Disk {
    /// A disk of so many MiB, over a new file at `path`.
    #[track_caller]
    pub(crate) fn new(path: &Path, mebibytes: u64) -> Self {
        File::create(path).unwrap().set_len(mebibytes << 20).unwrap();
        let device = said(Command::new("losetup").arg("-f"));
        said(Command::new("losetup").arg(&device).arg(path));
        Self { device: device.into() }
    }

    pub(crate) fn device(&self) -> &Path {
        &self.device
    }

    /// Makes a file system on it, and mounts it at `place`, a new directory.
    #[track_caller]
    pub(crate) fn mount(&self, place: &Path) -> Mount {
        said(Command::new("mke2fs").arg(&self.device));
        std::fs::create_dir(place).unwrap();
        said(Command::new("mount").args(["-t", "ext4"]).arg(&self.device).arg(place));
        Mount { place: place.to_owned() }
    }

    /// Makes an ext4 on it on which limits of projects hold, and mounts it at `place`, a new directory. The project is one
    /// that nothing belongs to yet.
    #[track_caller]
    pub(crate) fn mount_with_project(&self, place: &Path) -> Project<'_> {
        // Busybox makes ext2.
        let mut make = Command::new("/usr/sbin/mke2fs");
        make.args(["-q", "-t", "ext4", "-b", "4096", "-I", "256", "-O", "quota,project"]);
        said(make.arg(&self.device));
        std::fs::create_dir(place).unwrap();
        let mut mount = Command::new("mount");
        said(mount.args(["-t", "ext4", "-o", "prjquota"]).arg(&self.device).arg(place));
        std::fs::remove_dir(place.join("lost+found")).unwrap();
        Project { disk: self, _mount: Mount { place: place.to_owned() } }
    }
}

/// Number of the project; any will do.
const PROJECT: libc::c_int = 7;

/// `PRJQUOTA` of linux/quota.h.
const PROJECTS: libc::c_int = 2;

/// Unit of a limit of bytes, `QIF_DQBLKSIZE` of linux/quota.h.
const QUOTA_BLOCK: u64 = 1024;

/// A project of a file system, which is unmounted when this is dropped.
pub(crate) struct Project<'a> {
    disk: &'a Disk,
    _mount: Mount,
}

/// What a project has, and what it may have; as a limit 0 is none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Amount {
    pub(crate) bytes: u64,
    pub(crate) inodes: u64,
}

impl Amount {
    pub(crate) const UNLIMITED: Self = Self { bytes: 0, inodes: 0 };
}

impl Project<'_> {
    /// Has a directory, and what will be made in it, belong to the project.
    #[track_caller]
    pub(crate) fn begin_at(&self, dir: &Path) {
        said(Command::new("/usr/bin/chattr").arg("-p").arg(PROJECT.to_string()).arg("+P").arg(dir));
    }

    /// What is accounted to it.
    #[track_caller]
    pub(crate) fn used(&self) -> Amount {
        let told = self.ask(libc::Q_GETQUOTA, no_quota());
        Amount { bytes: told.dqb_curspace, inodes: told.dqb_curinodes }
    }

    /// From now on it may have so much, and no more.
    #[track_caller]
    pub(crate) fn limit(&self, most: Amount) {
        let mut limits = no_quota();
        limits.dqb_bhardlimit = most.bytes / QUOTA_BLOCK;
        limits.dqb_ihardlimit = most.inodes;
        limits.dqb_valid = libc::QIF_BLIMITS | libc::QIF_ILIMITS;
        self.ask(libc::Q_SETQUOTA, limits);
    }

    #[track_caller]
    #[allow(unsafe_code, reason = "nix has no call for quotas of projects")]
    fn ask(&self, what: libc::c_int, mut quota: libc::dqblk) -> libc::dqblk {
        let device = CString::new(self.disk.device.as_os_str().as_bytes()).unwrap();
        let command = what << 8 | PROJECTS;
        let data = (&raw mut quota).cast();
        // SAFETY: both operations are of one `struct if_dqblk` of linux/quota.h, which `libc::dqblk` is laid out as.
        let done = unsafe { libc::quotactl(command, device.as_ptr(), PROJECT, data) };
        assert_eq!(done, 0, "{}", io::Error::last_os_error());
        quota
    }
}

fn no_quota() -> libc::dqblk {
    libc::dqblk {
        dqb_bhardlimit: 0,
        dqb_bsoftlimit: 0,
        dqb_curspace: 0,
        dqb_ihardlimit: 0,
        dqb_isoftlimit: 0,
        dqb_curinodes: 0,
        dqb_btime: 0,
        dqb_itime: 0,
        dqb_valid: 0,
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = Command::new("losetup").arg("-d").arg(&self.device).status();
    }
}

/// A mounted file system. When this is dropped it is thawed, and unmounted once nobody uses it any more: the runner of a task
/// that is over may still be about to go.
pub(crate) struct Mount {
    place: PathBuf,
}

impl Mount {
    /// Stops everyone who writes, in the kernel, where no signal reaches them, until it is thawed.
    #[track_caller]
    pub(crate) fn freeze(&self) {
        said(Command::new("fsfreeze").arg("--freeze").arg(&self.place));
    }

    #[track_caller]
    pub(crate) fn thaw(&self) {
        said(Command::new("fsfreeze").arg("--unfreeze").arg(&self.place));
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        let _ = Command::new("fsfreeze").arg("--unfreeze").arg(&self.place).output();
        let _ = umount2(&self.place, MntFlags::MNT_DETACH);
    }
}

/// What a program printed, which must succeed.
#[track_caller]
fn said(command: &mut Command) -> String {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    assert!(output.status.success(), "{command:?}: {output:?}");
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}
