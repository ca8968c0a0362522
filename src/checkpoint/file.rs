//! Files of the root: how they are opened and synced.
#![allow(clippy::disallowed_methods, reason = "files of a checkpoint")]

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use crate::sys::lock;

/// Mode of every file: records and tasks hold command lines, which may hold secrets.
const PRIVATE: u32 = 0o600;

/// A call that failed, and the file that it was to act on.
#[derive(Debug, thiserror::Error)]
#[error("{call} {}", path.display())]
pub struct IoError {
    /// The system call.
    pub call: &'static str,
    /// The file.
    pub path: PathBuf,
    /// What it answered.
    #[source]
    pub source: io::Error,
}

impl IoError {
    pub(super) fn new(call: &'static str, path: &Path, source: impl Into<io::Error>) -> Self {
        Self { call, path: path.to_owned(), source: source.into() }
    }

    /// Whether the file is not there.
    pub fn is_missing(&self) -> bool {
        self.source.kind() == io::ErrorKind::NotFound
    }

    /// Whether it is a sync that failed. The kernel drops what it could not write, and reports success from then on.
    pub fn is_of_sync(&self) -> bool {
        matches!(self.call, "fsync" | "fdatasync")
    }
}

/// Why a stream was not opened.
#[derive(Debug)]
pub(super) enum Refusal {
    /// This process holds its lock, and would drop it by closing the file again.
    HeldHere,
    /// The call failed.
    Io(IoError),
}

/// What a stream is opened for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Purpose {
    /// To read it.
    Read,
    /// To write on; it must exist.
    Write,
    /// To write on; it is made where it is missing.
    WriteOrCreate,
    /// To write; it must not exist.
    Create,
}

/// Opens a stream, unless this process holds its lock.
///
/// Links are not followed, and a pipe does not block.
pub(super) fn open_stream(path: &Path, purpose: Purpose) -> Result<File, Refusal> {
    if fs::symlink_metadata(path).is_ok_and(|metadata| lock::held_here(&metadata)) {
        return Err(Refusal::HeldHere);
    }
    let mut options = OpenOptions::new();
    options.read(true).mode(PRIVATE).custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK);
    match purpose {
        Purpose::Read => &mut options,
        Purpose::Write => options.write(true),
        Purpose::WriteOrCreate => options.write(true).create(true),
        Purpose::Create => options.write(true).create_new(true),
    };
    let open = |source| Refusal::Io(IoError::new("open", path, source));
    let file = options.open(path).map_err(open)?;
    if !file.metadata().map_err(open)?.is_file() {
        return Err(open(io::Error::other("not a regular file")));
    }
    Ok(file)
}

/// Opens the hidden file `path` for writing, making it where it is missing.
pub(super) fn open_hidden(path: &Path) -> Result<File, IoError> {
    OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .mode(PRIVATE)
        .custom_flags(libc::O_NOFOLLOW)
        .open(path)
        .map_err(|source| IoError::new("open", path, source))
}

/// Opens a directory; a link in its place is refused.
pub(super) fn open_dir(path: &Path) -> Result<File, IoError> {
    OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_DIRECTORY | libc::O_NOFOLLOW)
        .open(path)
        .map_err(|source| IoError::new("open", path, source))
}

/// Makes the entries of a directory durable.
///
/// # Errors
///
/// [`IoError`]; the entries may then be lost by a power cut.
pub fn sync_dir(path: &Path) -> Result<(), IoError> {
    open_dir(path)?.sync_all().map_err(|source| IoError::new("fsync", path, source))
}

/// Makes the entry of `path` in its directory durable.
pub(super) fn sync_entry(path: &Path) -> Result<(), IoError> {
    match path.parent() {
        Some(dir) => sync_dir(dir),
        None => Ok(()),
    }
}

/// Whether `path` names `file` still.
pub(super) fn is_at(file: &File, path: &Path) -> io::Result<bool> {
    let ours = file.metadata()?;
    match fs::symlink_metadata(path) {
        Ok(named) => Ok((named.dev(), named.ino()) == (ours.dev(), ours.ino())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}
