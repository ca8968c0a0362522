//! A disk of memory: a loop device over a file on a tmpfs.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;

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
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = Command::new("losetup").arg("-d").arg(&self.device).status();
    }
}

/// A mounted file system. It is thawed and unmounted when this is dropped.
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
        let _ = Command::new("umount").arg(&self.place).status();
    }
}

/// What a program printed, which must succeed.
#[track_caller]
fn said(command: &mut Command) -> String {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    assert!(output.status.success(), "{command:?}: {output:?}");
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}
