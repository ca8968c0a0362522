//! Disks: made, copied, and cut off from power at a moment of their log.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;

use vm_tests::told::{DISK, FILE_SYSTEM};

use super::log::{Log, What};
use super::random::Random;
use crate::tool::{self, ToolError};

/// Makes an empty disk: a file system, and room behind it for what will be told.
pub(super) fn make(path: &Path) -> Result<(), ToolError> {
    let started = |error| ToolError::Start { program: path.display().to_string(), error };
    let file = File::create(path).map_err(started)?;
    file.set_len(DISK).map_err(started)?;
    // Nothing is left to be initialised later: it would be written by nobody's order.
    tool::text(
        Command::new("mkfs.ext4")
            .args(["-q", "-F", "-b", "4096", "-E", "lazy_itable_init=0,lazy_journal_init=0"])
            .arg(path)
            .arg(format!("{}k", FILE_SYSTEM >> 10)),
    )?;
    Ok(())
}

/// Copies a disk, holes as holes.
pub(super) fn copy(from: &Path, to: &Path) -> Result<(), ToolError> {
    tool::text(Command::new("cp").args(["--sparse=always", "--reflink=auto"]).args([from, to]))?;
    Ok(())
}

/// Has the file system checked, as a machine does before it mounts it after a power cut.
///
/// # Errors
///
/// What could not be mended.
pub(super) fn check(path: &Path) -> Result<(), ToolError> {
    // 1: mended, as a disk that lost power may need it.
    let mut check = Command::new("sh");
    check.args(["-c", r#"e2fsck -fy "$1" || [ $? -eq 1 ]"#, "e2fsck"]).arg(path);
    tool::text(&mut check).map(drop)
}

/// Copies directory `name` of the file system on a disk, with all that is in it, into `to`. No root is needed for that.
pub(super) fn read_out(disk: &Path, name: &str, to: &Path) -> Result<(), ToolError> {
    let request = format!("rdump /{name} {}", to.display());
    tool::text(Command::new("debugfs").args(["-R", &request]).arg(disk)).map(drop)
}

/// The disk as it is at one moment of its log after another, each later than the one before.
pub(super) struct Replay<'a> {
    log: &'a Log,
    /// What is on it for certain: all that was written before a flush.
    durable: PathBuf,
    /// Entries of the log that are in `durable`.
    done: usize,
}

impl<'a> Replay<'a> {
    /// From the disk as it was at the beginning.
    pub(super) fn new(log: &'a Log, blank: &Path, durable: PathBuf) -> Result<Self, ToolError> {
        copy(blank, &durable)?;
        Ok(Self { log, durable, done: 0 })
    }

    /// Makes `path` the disk of a machine whose power was cut after `entries` of the log. What was written since the last flush
    /// is there or not, as `random` will have it.
    pub(super) fn cut(
        &mut self,
        entries: usize,
        random: &mut Random,
        path: &Path,
    ) -> Result<Cut, Box<dyn std::error::Error>> {
        let before = &self.log.entries[..entries];
        let flushed = before.iter().rposition(|entry| entry.what == What::Flush).unwrap_or(0);
        self.settle(flushed)?;
        copy(&self.durable, path)?;
        let disk = writable(path)?;
        let mut cut = Cut { entries, kept: 0, lost: 0 };
        for entry in &before[flushed..] {
            let is_told = entry.at >= FILE_SYSTEM;
            let stays = match entry.what {
                // What was told is not a matter of luck.
                What::Write { durable } => durable || is_told || random.coin(),
                What::Flush | What::Discard => continue,
            };
            if stays {
                self.log.apply(entry, &disk)?;
            }
            if !is_told {
                *if stays { &mut cut.kept } else { &mut cut.lost } += 1;
            }
        }
        Ok(cut)
    }

    /// Makes `path` the disk of a machine whose power was cut as entry `flush` of the log was done, and nothing after it.
    pub(super) fn flushed(
        &mut self,
        flush: usize,
        path: &Path,
    ) -> Result<(), Box<dyn std::error::Error>> {
        self.settle(flush)?;
        Ok(copy(&self.durable, path)?)
    }

    fn settle(&mut self, until: usize) -> io::Result<()> {
        let disk = writable(&self.durable)?;
        for entry in &self.log.entries[self.done..until.max(self.done)] {
            self.log.apply(entry, &disk)?;
        }
        self.done = until.max(self.done);
        Ok(())
    }
}

impl Drop for Replay<'_> {
    fn drop(&mut self) {
        // It is made anew by the next one.
        let _ = fs::remove_file(&self.durable);
    }
}

fn writable(path: &Path) -> io::Result<File> {
    OpenOptions::new().write(true).open(path)
}

/// A power cut.
#[derive(Debug, Clone, Copy)]
pub(super) struct Cut {
    /// After how many entries of the log.
    pub(super) entries: usize,
    /// Writes since the last flush that reached the disk, and that did not.
    pub(super) kept: usize,
    pub(super) lost: usize,
}
