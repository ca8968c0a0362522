//! Who holds a stream.
//!
//! The lock of the runner's stream is leadership over the task. It is a process lock: a coordinator that the runner
//! forks does not inherit it, so it ends with the runner, and the kernel tells the runner's pid. The lock of a
//! coordinator's stream is a description lock: the runner takes it before it forks the coordinator, the coordinator
//! inherits it, and it ends with the last of the two to close the stream.

use std::fs::File;
use std::path::Path;

use super::file::{self, IoError, Purpose, Refusal};
use super::identity::{Identity, Stream};
use super::paths::Root;
use super::writer::OpenError;
use crate::sys::lock::{self, LockError, ProcessLock};

pub use crate::sys::lock::Holder;

/// Says who holds the lock of a stream; nobody holds one that does not exist.
///
/// Takes no lock, and does not disturb one that this process holds. The answer may be out of date as it is given.
///
/// # Errors
///
/// [`IoError`].
pub fn holder(root: &Root, identity: &Identity) -> Result<Option<Holder>, IoError> {
    let path = root.stream(identity);
    match file::open_stream(&path, Purpose::Read) {
        Ok(file) => lock::holder(&file).map_err(|errno| IoError::new("fcntl", &path, errno)),
        Err(Refusal::HeldHere) => Ok(Some(Holder { pid: Some(lock::own_pid()) })),
        Err(Refusal::Io(error)) if error.is_missing() => Ok(None),
        Err(Refusal::Io(error)) => Err(error),
    }
}

/// A stream whose lock is ours until this is dropped.
#[derive(Debug)]
pub(super) struct Locked {
    /// Declared first: closed before the process forgets that it holds it.
    file: File,
    _leadership: Option<ProcessLock>,
}

impl Locked {
    /// Takes the lock of the stream in `file`, of the kind that the stream has.
    pub(super) fn take(file: File, path: &Path, stream: &Stream) -> Result<Self, OpenError> {
        let taken = match stream {
            Stream::Runner => ProcessLock::take(&file).map(Some),
            Stream::Coordinator(_) => lock::lock_description(&file).map(|()| None),
        };
        let leadership = taken.map_err(|error| match error {
            LockError::Held(holder) => OpenError::Held { path: path.to_owned(), pid: holder.pid },
            LockError::Sys(errno) => IoError::new("fcntl", path, errno).into(),
        })?;
        let locked = Self { file, _leadership: leadership };
        // Between open and lock the last holder may have removed the stream, and another made a new one.
        match file::is_at(&locked.file, path) {
            Ok(true) => Ok(locked),
            Ok(false) => Err(OpenError::Removed { path: path.to_owned() }),
            Err(source) => Err(IoError::new("stat", path, source).into()),
        }
    }

    pub(super) fn file(&self) -> &File {
        &self.file
    }

    /// Puts another file in the place of the stream, to see calls fail.
    #[cfg(test)]
    pub(super) fn swap(&mut self, file: &mut File) {
        std::mem::swap(&mut self.file, file);
    }
}
