//! Removes all that is kept of a task that is over.
//!
//! The task is there, and can be removed again, until all but its stream is gone; a crash after that leaves a stream that belongs to no
//! task, which the next task of that id replaces.
#![allow(clippy::disallowed_methods, reason = "removes files")]

use std::fs;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};

use crate::checkpoint::paths::Place;
use crate::checkpoint::{IoError, Root, sync_dir};
use crate::task::TaskId;

/// Why something of a task is still there.
#[derive(Debug, thiserror::Error)]
pub enum RemoveError {
    /// It is not over.
    #[error("task {0} is not over")]
    NotOver(TaskId),
    /// Something else is mounted in its sandbox.
    #[error("{} is mounted in the sandbox; unmount it", .0.display())]
    Mounted(PathBuf),
    /// A call failed.
    #[error(transparent)]
    Io(#[from] IoError),
}

/// Removes the checkpoint of a task that is over, and with `sandbox` the directory that it has in the root. A sandbox somewhere
/// else is never removed. To remove what is not there changes nothing.
///
/// # Errors
///
/// [`RemoveError`]; it can be tried again.
pub fn remove(root: &Root, id: &TaskId, sandbox: bool) -> Result<(), RemoveError> {
    if root.task(Place::Active, id).exists() {
        return Err(RemoveError::NotOver(id.clone()));
    }
    if sandbox {
        let path = root.sandbox(id);
        if let Some(mount) = mount_within(&path)? {
            return Err(RemoveError::Mounted(mount));
        }
        // It follows no link, whoever changes the directory meanwhile.
        gone("remove", &path, fs::remove_dir_all(&path))?;
    }
    let runner = root.runner(id);
    let checkpoint = root.checkpoint(id);
    for path in entries(&checkpoint)? {
        if path != runner {
            gone("unlink", &path, fs::remove_file(&path))?;
        }
    }
    let finished = root.task(Place::Finished, id);
    gone("unlink", &finished, fs::remove_file(&finished))?;
    sync_dir(&root.tasks(Place::Finished))?;
    gone("unlink", &runner, fs::remove_file(&runner))?;
    gone("rmdir", &checkpoint, fs::remove_dir(&checkpoint))?;
    Ok(())
}

/// What is not there is removed.
fn gone(call: &'static str, path: &Path, result: io::Result<()>) -> Result<(), IoError> {
    match result {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            Err(IoError { call, path: path.to_owned(), source: error })
        }
        _ => Ok(()),
    }
}

fn entries(dir: &Path) -> Result<Vec<PathBuf>, IoError> {
    let failed = |source| IoError { call: "read", path: dir.to_owned(), source };
    match fs::read_dir(dir) {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(failed(error)),
        Ok(entries) => entries
            .map(|entry| entry.map(|entry| entry.path()))
            .collect::<Result<_, _>>()
            .map_err(failed),
    }
}

/// The first mount at or beneath `dir` (proc_pid_mountinfo(5)).
fn mount_within(dir: &Path) -> Result<Option<PathBuf>, IoError> {
    let path = Path::new("/proc/self/mountinfo");
    let mounts = fs::read_to_string(path).map_err(|source| IoError {
        call: "read",
        path: path.to_owned(),
        source,
    })?;
    let points = mounts.lines().filter_map(|line| line.split(' ').nth(4)).map(unescape);
    Ok(points.map(PathBuf::from).find(|point| point.starts_with(dir)))
}

/// Blanks and backslashes are written in octal.
fn unescape(point: &str) -> String {
    [("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")]
        .iter()
        .fold(point.to_owned(), |point, (octal, character)| point.replace(octal, character))
}
