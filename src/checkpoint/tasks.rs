//! The accepted task: written once, whole and durably; moved once, when the task is over.

use std::fs::{self, File};
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};

use super::file::{self, IoError, sync_dir};
use super::paths::{Place, Root, sync_tasks};
use crate::sys::lock::{self, LockError};
use crate::task::TaskId;

/// Why a task was not accepted.
#[derive(Debug, thiserror::Error)]
pub enum AcceptError {
    /// A task of this id is there and not over.
    #[error("task {:?} is active", .0.as_str())]
    Active(TaskId),
    /// A task of this id is over.
    #[error("task {:?} is finished", .0.as_str())]
    Finished(TaskId),
    /// Somebody else accepts a task of this id right now.
    #[error("task {:?} is being accepted", .0.as_str())]
    Busy(TaskId),
    /// A call failed; the task is not accepted.
    #[error(transparent)]
    Io(#[from] IoError),
}

/// Writes the accepted task `content`, so that it is there whole and durably, or not at all.
///
/// A task of the same id is never written over, whoever tries at the same time. A crash can leave a hidden file, which
/// is no task, and which the next try for the same id uses up.
///
/// # Errors
///
/// [`AcceptError`].
pub fn accept(root: &Root, id: &TaskId, content: &[u8]) -> Result<(), AcceptError> {
    let dir = root.tasks(Place::Active);
    let hidden = Hidden::take(&dir, id)?;
    let accepted = refuse_known(root, id).and_then(|()| {
        hidden.write(content)?;
        hidden.publish(&root.task(Place::Active, id)).map_err(AcceptError::from)
    });
    let removed = hidden.remove();
    accepted?;
    removed?;
    Ok(sync_dir(&dir)?)
}

/// Moves a task that is over to the finished ones, durably. Doing it again changes nothing.
///
/// # Errors
///
/// [`IoError`], which [`IoError::is_missing`] if there is no such task.
pub fn finish(root: &Root, id: &TaskId) -> Result<(), IoError> {
    let (from, to) = (root.task(Place::Active, id), root.task(Place::Finished, id));
    match fs::rename(&from, &to) {
        // Somebody did it before, and may have been stopped before the sync.
        Err(error) if error.kind() == ErrorKind::NotFound && to.exists() => {}
        moved => moved.map_err(|source| IoError::new("rename", &from, source))?,
    }
    sync_tasks(root)
}

/// Refuses an id that is taken.
///
/// Whoever holds the hidden file is the only one who can make a task active, so one that is not active here is
/// not going to be; and one that was, and is not any more, is found among the finished ones.
fn refuse_known(root: &Root, id: &TaskId) -> Result<(), AcceptError> {
    if root.task(Place::Active, id).exists() {
        return Err(AcceptError::Active(id.clone()));
    }
    if root.task(Place::Finished, id).exists() {
        return Err(AcceptError::Finished(id.clone()));
    }
    Ok(())
}

/// The file that a task is written to before it has its name. Its lock tells one that is being written from one that
/// a crash left, and is dropped with the file.
struct Hidden {
    path: PathBuf,
    file: File,
}

impl Hidden {
    fn take(dir: &Path, id: &TaskId) -> Result<Self, AcceptError> {
        // No task id begins with a dot.
        let path = dir.join(format!(".{id}"));
        let file = file::open_hidden(&path)?;
        match lock::lock_description(&file) {
            Ok(()) => {}
            Err(LockError::Held(_)) => return Err(AcceptError::Busy(id.clone())),
            Err(LockError::Sys(errno)) => return Err(IoError::new("fcntl", &path, errno).into()),
        }
        // Between open and lock the last holder may have been done with it.
        match file::is_at(&file, &path) {
            Ok(true) => Ok(Self { path, file }),
            Ok(false) => Err(AcceptError::Busy(id.clone())),
            Err(source) => Err(IoError::new("stat", &path, source).into()),
        }
    }

    fn write(&self, content: &[u8]) -> Result<(), IoError> {
        let failed = |call| move |source| IoError::new(call, &self.path, source);
        self.file.set_len(0).map_err(failed("ftruncate"))?;
        (&self.file).write_all(content).map_err(failed("write"))?;
        self.file.sync_all().map_err(failed("fsync"))
    }

    /// Gives it its name; unlike rename(2), link(2) does not replace.
    fn publish(&self, path: &Path) -> Result<(), IoError> {
        fs::hard_link(&self.path, path).map_err(|source| IoError::new("link", path, source))
    }

    fn remove(&self) -> Result<(), IoError> {
        fs::remove_file(&self.path).map_err(|source| IoError::new("unlink", &self.path, source))
    }
}
