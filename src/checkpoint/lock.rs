//! Who holds a stream.
//!
//! The lock of the runner's stream is leadership over the task. It is a process lock: a coordinator that the runner
//! forks does not inherit it, so it ends with the runner, and the kernel tells the runner's pid. The lock of a
//! coordinator's stream is a description lock: the runner takes it before it forks the coordinator, the coordinator
//! inherits it, and it ends with the last of the two to close the stream.
#![allow(clippy::disallowed_methods, reason = "files of a checkpoint")]

use std::fs::{File, Permissions};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use super::file::{self, IoError, Purpose, Refusal};
use super::identity::{Identity, Stream};
use super::paths::Root;
use super::reader::refuse;
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

/// Mode of a stream whose task is being forgotten: the sticky bit, which means nothing on a file (inode(7)).
const FORGOTTEN: u32 = 0o1600;

/// The lock of a stream, held by one who writes nothing: until this is dropped nobody leads the task, or accepts one of its id.
///
/// It is a description lock, whatever the stream: others in this process may open and close the stream meanwhile.
#[derive(Debug)]
pub struct Custody {
    file: File,
    path: PathBuf,
}

impl Custody {
    /// Takes the lock of a stream without waiting. No other thread of this process may be about to take the lock of the same stream for
    /// itself, which this one would drop by closing the stream again.
    ///
    /// # Errors
    ///
    /// [`OpenError::Held`] if somebody has it; [`OpenError::Removed`]; `ReadError::Missing` if there is no such stream.
    pub fn take(root: &Root, identity: &Identity) -> Result<Self, OpenError> {
        Self::open(root, identity)?.locked()
    }

    /// The same of a stream that was marked as forgotten, `None` if it is not: the stream of a task that is being accepted is not even
    /// touched.
    ///
    /// # Errors
    ///
    /// As [`Custody::take`].
    pub fn take_forgotten(root: &Root, identity: &Identity) -> Result<Option<Self>, OpenError> {
        let custody = Self::open(root, identity)?;
        let metadata = custody.file.metadata();
        let metadata = metadata.map_err(|source| IoError::new("fstat", &custody.path, source))?;
        if metadata.mode() & 0o7777 != FORGOTTEN {
            return Ok(None);
        }
        custody.locked().map(Some)
    }

    /// Marks the stream as that of a task which is being forgotten. Whoever accepts a task makes a stream anew.
    ///
    /// # Errors
    ///
    /// [`IoError`].
    pub fn mark_forgotten(&self) -> Result<(), IoError> {
        let marked = self.file.set_permissions(Permissions::from_mode(FORGOTTEN));
        marked.map_err(|source| IoError::new("fchmod", &self.path, source))
    }

    fn open(root: &Root, identity: &Identity) -> Result<Self, OpenError> {
        let path = root.stream(identity);
        match file::open_stream(&path, Purpose::Write) {
            Ok(file) => Ok(Self { file, path }),
            Err(Refusal::HeldHere) => Err(OpenError::Held { path, pid: Some(lock::own_pid()) }),
            Err(refusal) => Err(refuse(path, refusal).into()),
        }
    }

    fn locked(self) -> Result<Self, OpenError> {
        lock::lock_description(&self.file).map_err(|error| unlocked(&self.path, error))?;
        refuse_removed(&self.file, &self.path)?;
        Ok(self)
    }
}

fn unlocked(path: &Path, error: LockError) -> OpenError {
    match error {
        LockError::Held(holder) => OpenError::Held { path: path.to_owned(), pid: holder.pid },
        LockError::Sys(errno) => IoError::new("fcntl", path, errno).into(),
    }
}

/// Between open and lock the last holder may have removed the stream, and another made a new one.
fn refuse_removed(file: &File, path: &Path) -> Result<(), OpenError> {
    match file::is_at(file, path) {
        Ok(true) => Ok(()),
        Ok(false) => Err(OpenError::Removed { path: path.to_owned() }),
        Err(source) => Err(IoError::new("stat", path, source).into()),
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
        let leadership = taken.map_err(|error| unlocked(path, error))?;
        let locked = Self { file, _leadership: leadership };
        refuse_removed(&locked.file, path)?;
        Ok(locked)
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
