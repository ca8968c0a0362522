//! What a cgroup and all beneath it use.
//!
//! - `parse`: the formats of the kernel's files. Pure.
//! - `files`: which files there are, and what each fills in. Pure.
//! - `sampler`: reads them all again and again, by descriptors that stay open.
//! - `last`: reads the few that are kept for good, once, at the end of a run.
//!
//! What a host does not account for, a kernel does not have, or a value that does not fit, is absent:
//! it is never zero, and never spoils the rest. See docs/accounting.md.

mod files;
mod last;
mod parse;
mod sampler;

pub use files::Extent;
#[cfg(test)]
pub(crate) use files::tests as content;
pub use sampler::Sampler;

pub(super) use parse::{keyed, number};

use std::os::fd::BorrowedFd;
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::uio::pread;

/// Time after which what stands still is looked into again for a history.
pub(crate) const STILL: Duration = Duration::from_secs(60);

/// Bytes that hold any of the files on most machines.
const FILE_BYTES: usize = 8 << 10;

/// Bytes that a file may have at the most: `io.stat` of ten thousand devices.
const FILE_BYTES_MAX: usize = 2 << 20;

/// Where files are read into, one after the other.
pub(super) struct Buffer(Vec<u8>);

impl Buffer {
    pub(super) fn new() -> Self {
        Self(vec![0; FILE_BYTES])
    }

    /// Reads the whole of `file` from its beginning.
    ///
    /// The kernel writes down the whole of such a file in one go, so a read that leaves room has got all of it, and one that
    /// does not is done again with more room: pieces of two goes would not fit together.
    pub(super) fn read(&mut self, file: BorrowedFd<'_>) -> Result<&[u8], Errno> {
        loop {
            let length = pread(file, &mut self.0, 0)?;
            if length < self.0.len() || length == FILE_BYTES_MAX {
                return Ok(&self.0[..length]);
            }
            self.0.resize(length * 2, 0);
        }
    }
}
