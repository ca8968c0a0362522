//! The thinnest true path: replaced as the launch widens.
use crate::proto::Identity;
use crate::sandbox::Sandbox;
use crate::task::{Logger, ProcessName};
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
/// See the module.
pub struct Output {
    out: OwnedFd,
    err: OwnedFd,
}
impl Output {
    /// See the module.
    pub fn open(
        s: &Sandbox,
        log_dir: Option<&Path>,
        p: &ProcessName,
        run: u32,
        _i: &Identity,
        _l: Logger,
    ) -> io::Result<Self> {
        let dir = log_dir
            .map_or(s.path().join(".logs"), |d| d.to_owned())
            .join(p.as_str())
            .join(run.to_string());
        fs::create_dir_all(&dir)?;
        let f = |n| -> io::Result<OwnedFd> {
            Ok(File::options().append(true).create(true).open(dir.join(n))?.into())
        };
        Ok(Self { out: f("stdout")?, err: f("stderr")? })
    }
    /// See the module.
    pub fn stdio(&self) -> [BorrowedFd<'_>; 2] {
        [self.out.as_fd(), self.err.as_fd()]
    }
    /// See the module.
    pub fn fds(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        std::iter::empty()
    }
    /// See the module.
    pub fn pump(&mut self) {}
    /// See the module.
    pub fn finish(&mut self) {}
}
