//! A small file system that can be filled.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};

use nix::mount::{MntFlags, MsFlags, mount, umount2};

/// A file system of 1 MiB, and of 500 files, in memory. It is gone when this is dropped.
pub(crate) struct Disk {
    path: PathBuf,
}

impl Disk {
    /// Mounts it at `path`, which is made.
    pub(crate) fn new(path: PathBuf) -> Self {
        fs::create_dir(&path).unwrap();
        let options = Some("size=1m,nr_inodes=500,mode=755");
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

    /// Makes files until there can be no more.
    pub(crate) fn use_up_inodes(&self) {
        let dir = self.path.join("files");
        fs::create_dir(&dir).unwrap();
        let made = (0..).map(|number: u32| File::create(dir.join(number.to_string())));
        assert!(made.take_while(Result::is_ok).count() > 0);
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
