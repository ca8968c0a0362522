//! The accepted task: written once, whole and durably; moved once, when the task is over.
#![allow(clippy::disallowed_methods, reason = "files of a checkpoint")]

use std::fs::{self, File};
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::file::{self, IoError, sync_dir};
use super::paths::{Place, Root};
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

/// Writes the accepted task `content`, so that it is there whole, or not at all. It is durable after [`sync_active`], and
/// nobody is told of it before.
///
/// `first`, and then `second`, make durable what must be so before the task is accepted. Where the disk takes its time over the first, the
/// second goes on beside the sync of the content. An error of any of them is the answer, and the task is not accepted.
///
/// A task of the same id is never written over, whoever tries at the same time. A crash can leave a hidden file, which
/// is no task, and which the next try for the same id uses up.
///
/// # Errors
///
/// Those of `first` and `second`; [`AcceptError`].
pub fn accept<E: From<AcceptError> + Send>(
    root: &Root,
    id: &TaskId,
    content: &[u8],
    first: impl FnOnce() -> Result<(), E>,
    second: impl FnOnce() -> Result<(), E> + Send,
) -> Result<(), E> {
    let dir = root.tasks(Place::Active);
    let hidden = Hidden::take(&dir, id)?;
    let accepted = refuse_known(root, id).map_err(E::from).and_then(|()| {
        hidden.write(content).map_err(AcceptError::from)?;
        let begun = Instant::now();
        first()?;
        let sync = || hidden.sync().map_err(|error| AcceptError::from(error).into());
        match begun.elapsed() < WORTH_A_THREAD {
            true => second().and_then(|()| sync())?,
            false => together(second, sync)?,
        }
        Ok(hidden.publish(&root.task(Place::Active, id)).map_err(AcceptError::from)?)
    });
    // One that is left is no task, and is used up by the next try for the id.
    let _ = fs::remove_file(&hidden.path);
    accepted
}

/// What a sync takes on a disk where it is worth a thread to have two at the same time: several times what it takes to start one.
const WORTH_A_THREAD: Duration = Duration::from_millis(1);

/// Makes durable that the tasks are active that are so.
///
/// # Errors
///
/// [`IoError`]: a power cut may take tasks that are active now.
pub fn sync_active(root: &Root) -> Result<(), IoError> {
    sync_dir(&root.tasks(Place::Active))
}

/// The directory of the active tasks, to be synced.
///
/// # Errors
///
/// [`IoError`].
pub fn open_active(root: &Root) -> Result<File, IoError> {
    file::open_dir(&root.tasks(Place::Active))
}

/// Does both at the same time, where another thread can be had, and else one after the other. Where both fail, the error is
/// that of `here`.
fn together<E: Send>(
    there: impl FnOnce() -> Result<(), E> + Send,
    here: impl FnOnce() -> Result<(), E>,
) -> Result<(), E> {
    let there = Mutex::new(Some(there));
    let take = || there.lock().unwrap_or_else(PoisonError::into_inner).take();
    std::thread::scope(|scope| {
        let started =
            std::thread::Builder::new().spawn_scoped(scope, || take().map(|there| there()));
        let ours = here();
        let theirs = match started {
            Ok(thread) => thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)),
            Err(_) => take().map(|there| there()),
        };
        ours?;
        theirs.unwrap_or(Ok(()))
    })
}

/// Moves a task that is over to the finished ones. Doing it again changes nothing.
///
/// This is not made durable: the terminal state in the task's stream is, and whoever next leads a task that is over moves it
/// again.
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
    Ok(())
}

/// Whether a task of this id was accepted, be it over or not. A task is moved once, so the place where it ends is looked
/// at last.
pub fn is_known(root: &Root, id: &TaskId) -> bool {
    [Place::Active, Place::Finished].iter().any(|&place| root.task(place, id).exists())
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
        (&self.file).write_all(content).map_err(failed("write"))
    }

    fn sync(&self) -> Result<(), IoError> {
        self.file.sync_all().map_err(|source| IoError::new("fsync", &self.path, source))
    }

    /// Gives it its name; unlike rename(2), link(2) does not replace.
    fn publish(&self, path: &Path) -> Result<(), IoError> {
        fs::hard_link(&self.path, path).map_err(|source| IoError::new("link", path, source))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checkpoint::testing::{accept, root, task};

    fn names(dir: &Path) -> Vec<String> {
        let name = |entry: fs::DirEntry| entry.file_name().into_string().unwrap();
        fs::read_dir(dir).unwrap().map(|entry| name(entry.unwrap())).collect()
    }

    #[test]
    fn an_accepted_task_is_there_whole_and_alone() {
        let (_dir, root) = root();

        accept(&root, &task("t"), b"{}").unwrap();

        let path = root.task(Place::Active, &task("t"));
        assert_eq!(fs::read(&path).unwrap(), b"{}");
        assert_eq!(
            std::os::unix::fs::MetadataExt::mode(&fs::metadata(path).unwrap()) & 0o777,
            0o600
        );
        assert_eq!(names(&root.tasks(Place::Active)), ["t"]);
    }

    /// Of whatever cannot be synced, on a quick disk and on a slow one; what may go on side by side does on a slow one.
    #[test]
    fn what_cannot_be_synced_is_not_accepted() {
        for slow in [false, true] {
            let (_dir, root) = root();
            let first = || {
                if slow {
                    std::thread::sleep(2 * WORTH_A_THREAD);
                }
                Ok(())
            };
            let here = std::thread::current().id();
            let second = || {
                // One that is quick may be kept waiting, and be taken for a slow one.
                assert!(!slow || std::thread::current().id() != here);
                Err(AcceptError::Busy(task("second")))
            };

            let error = super::accept(&root, &task("t"), b"{}", first, second).unwrap_err();

            assert!(matches!(error, AcceptError::Busy(of) if of == task("second")));
            assert_eq!(names(&root.tasks(Place::Active)), [""; 0]);
        }
    }

    /// T63: a takeover with another task is refused.
    #[test]
    fn an_active_task_is_not_replaced() {
        let (_dir, root) = root();
        accept(&root, &task("t"), b"first").unwrap();

        let error = accept(&root, &task("t"), b"second").unwrap_err();

        assert_eq!(error.to_string(), r#"task "t" is active"#);
        assert_eq!(fs::read(root.task(Place::Active, &task("t"))).unwrap(), b"first");
        assert_eq!(names(&root.tasks(Place::Active)), ["t"]);
    }

    /// T63: a finished task bars a start.
    #[test]
    fn a_finished_task_bars_its_id() {
        let (_dir, root) = root();
        accept(&root, &task("t"), b"first").unwrap();
        finish(&root, &task("t")).unwrap();

        let error = accept(&root, &task("t"), b"second").unwrap_err();

        assert_eq!(error.to_string(), r#"task "t" is finished"#);
        assert!(names(&root.tasks(Place::Active)).is_empty());
    }

    #[test]
    fn to_finish_again_changes_nothing() {
        let (_dir, root) = root();
        accept(&root, &task("t"), b"{}").unwrap();

        finish(&root, &task("t")).unwrap();
        finish(&root, &task("t")).unwrap();

        assert_eq!(names(&root.tasks(Place::Finished)), ["t"]);
        assert!(names(&root.tasks(Place::Active)).is_empty());
        assert!(finish(&root, &task("u")).unwrap_err().is_missing());
    }

    #[test]
    fn what_a_crash_left_half_written_is_used_up() {
        let (_dir, root) = root();
        let hidden = root.tasks(Place::Active).join(".t");
        fs::write(&hidden, "half of something longer").unwrap();
        assert_eq!(root.list(Place::Active).unwrap(), []);

        accept(&root, &task("t"), b"{}").unwrap();

        assert_eq!(fs::read(root.task(Place::Active, &task("t"))).unwrap(), b"{}");
        assert!(!hidden.exists());
    }

    /// Attack 49: one winner.
    #[test]
    fn of_many_who_accept_one_id_one_wins() {
        let (_dir, root) = root();

        let results = std::thread::scope(|scope| {
            let accept = |n: usize| {
                let root = &root;
                scope.spawn(move || accept(root, &task("t"), n.to_string().as_bytes()))
            };
            let threads: Vec<_> = (0..8).map(accept).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect::<Vec<_>>()
        });

        let winners: Vec<_> = (0..8).filter(|n| results[*n].is_ok()).collect();
        assert_eq!(winners.len(), 1, "{results:?}");
        let content = fs::read_to_string(root.task(Place::Active, &task("t"))).unwrap();
        assert_eq!(content, winners[0].to_string());
        assert_eq!(names(&root.tasks(Place::Active)), ["t"]);
        for result in results {
            assert!(matches!(result, Ok(()) | Err(AcceptError::Active(_) | AcceptError::Busy(_))));
        }
    }
}
