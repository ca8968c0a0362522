//! A small file system that can be filled.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};

use nix::mount::{MntFlags, MsFlags, mount, umount2};

/// A file system of 1 MiB in memory. It is gone when this is dropped.
pub(crate) struct Disk {
    path: PathBuf,
}

impl Disk {
    /// Mounts it at `path`, which is made.
    pub(crate) fn new(path: PathBuf) -> Self {
        fs::create_dir(&path).unwrap();
        let options = Some("size=1m,mode=755");
        mount(Some("tmpfs"), &path, Some("tmpfs"), MsFlags::empty(), options).unwrap();
        Self { path }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    fn filler(&self) -> PathBuf {
        self.path.join("filler")
    }

    /// Fills it to the last block.
    pub(crate) fn fill(&self) {
        let mut file = File::create(self.filler()).unwrap();
        for block in [4096, 1] {
            while file.write_all(&vec![0; block]).is_ok() {}
        }
    }

    pub(crate) fn make_space(&self) {
        fs::remove_file(self.filler()).unwrap();
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = umount2(&self.path, MntFlags::MNT_DETACH);
        let _ = fs::remove_dir(&self.path);
    }
}
