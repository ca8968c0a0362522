//! The accepted task: written once, whole and durably; moved once, when the task is over.
#![allow(clippy::disallowed_methods, reason = "files of a checkpoint")]

use std::fs::{self, File};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use super::file::{self, IoError, sync_entry};
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

/// Last byte of the file of a task whose acceptance is on disk, with all that it rests on. The JSON before it never ends so.
const SEAL: u8 = b'\n';

/// Writes the accepted task `content`, so that whoever looks finds it whole, or not at all. It is durable after
/// [`make_durable`], and nobody is told of it before.
///
/// A task of the same id is never written over, whoever tries at the same time. A crash can leave a hidden file, which
/// is no task, and which the next try for the same id uses up.
///
/// # Errors
///
/// [`AcceptError`].
pub fn accept(root: &Root, id: &TaskId, content: &[u8]) -> Result<(), AcceptError> {
    let hidden = Hidden::take(&root.tasks(Place::Active), id)?;
    let accepted = refuse_known(root, id).and_then(|()| {
        hidden.write(content)?;
        Ok(hidden.publish(&root.task(Place::Active, id))?)
    });
    // One that is left is no task, and is used up by the next try for the id.
    let _ = fs::remove_file(&hidden.path);
    accepted
}

/// Makes durable that a task is active, and all that this rests on: its stream, by `stream`, and the entries that lead to both.
/// Then seals it, and syncs that: a file system without a journal may have the entry and not yet the file.
///
/// A task that is not active any more was on disk before its end was recorded.
///
/// # Errors
///
/// [`IoError`]: a power cut may take the task. A sync that failed is final ([`IoError::is_of_sync`]).
pub fn make_durable(
    root: &Root,
    id: &TaskId,
    stream: impl FnOnce() -> Result<(), IoError>,
) -> Result<(), IoError> {
    let path = root.task(Place::Active, id);
    let durable = open_accepted(&path, true).and_then(|accepted| {
        stream()?;
        sync_entry(&root.runner(id))?;
        sync_entry(&root.checkpoint(id))?;
        sync_entry(&path)?;
        seal(&accepted, &path)
    });
    match durable {
        Err(_) if !path.exists() => Ok(()),
        durable => durable,
    }
}

/// Whether an active task is sealed: all that its acceptance rests on is on disk. One that is not has been told to nobody.
///
/// # Errors
///
/// [`IoError`], which [`IoError::is_missing`] if there is no such task.
pub fn is_sealed(root: &Root, id: &TaskId) -> Result<bool, IoError> {
    let path = root.task(Place::Active, id);
    let (_, sealed) = end_of(&open_accepted(&path, false)?, &path)?;
    Ok(sealed)
}

/// Takes back the acceptance of a task that is active and not sealed. The caller holds the lock of its stream, so that no runner
/// has it.
///
/// # Errors
///
/// [`IoError`]: the task may be active still, or be so after a power cut.
pub fn take_back(root: &Root, id: &TaskId) -> Result<(), IoError> {
    let path = root.task(Place::Active, id);
    fs::remove_file(&path).map_err(|source| IoError::new("unlink", &path, source))?;
    sync_entry(&path)
}

fn open_accepted(path: &Path, write: bool) -> Result<File, IoError> {
    let mut options = File::options();
    let options = options.read(true).write(write).custom_flags(libc::O_NOFOLLOW);
    options.open(path).map_err(|source| IoError::new("open", path, source))
}

/// Where the file of an accepted task ends, and whether that is sealed.
fn end_of(accepted: &File, path: &Path) -> Result<(u64, bool), IoError> {
    let length = accepted.metadata().map_err(|source| IoError::new("fstat", path, source))?.len();
    let mut last = [0];
    if length > 0 {
        accepted
            .read_exact_at(&mut last, length - 1)
            .map_err(|source| IoError::new("pread", path, source))?;
    }
    Ok((length, last == [SEAL]))
}

/// Two that seal at the same time write the same byte to the same place.
fn seal(accepted: &File, path: &Path) -> Result<(), IoError> {
    let (end, sealed) = end_of(accepted, path)?;
    if !sealed {
        accepted
            .write_all_at(&[SEAL], end)
            .map_err(|source| IoError::new("pwrite", path, source))?;
    }
    accepted.sync_all().map_err(|source| IoError::new("fsync", path, source))
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

    /// Gives it its name; unlike rename(2), link(2) does not replace.
    fn publish(&self, path: &Path) -> Result<(), IoError> {
        fs::hard_link(&self.path, path).map_err(|source| IoError::new("link", path, source))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checkpoint::testing::{root, task};

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

    #[test]
    fn a_task_is_sealed_once_all_is_synced() {
        let (_dir, root) = root();
        fs::write(root.runner(&task("t")), "").unwrap();
        accept(&root, &task("t"), b"{}").unwrap();
        let failed = || Err(IoError::new("fdatasync", Path::new("stream"), nix::errno::Errno::EIO));

        let error = make_durable(&root, &task("t"), failed).unwrap_err();

        assert!(error.is_of_sync());
        assert!(!is_sealed(&root, &task("t")).unwrap());
        for _again in [false, true] {
            make_durable(&root, &task("t"), || Ok(())).unwrap();

            assert!(is_sealed(&root, &task("t")).unwrap());
            assert_eq!(fs::read(root.task(Place::Active, &task("t"))).unwrap(), b"{}\n");
        }
    }

    /// A power cut can leave the name of a file without its content.
    #[test]
    fn a_task_without_content_is_not_sealed() {
        let (_dir, root) = root();
        fs::write(root.task(Place::Active, &task("t")), "").unwrap();

        assert!(!is_sealed(&root, &task("t")).unwrap());
        take_back(&root, &task("t")).unwrap();

        assert!(!is_known(&root, &task("t")));
        assert!(is_sealed(&root, &task("t")).unwrap_err().is_missing());
    }

    /// Its runner has made sure of it before it recorded the end.
    #[test]
    fn a_task_that_is_over_was_durable() {
        let (_dir, root) = root();
        accept(&root, &task("t"), b"{}").unwrap();
        let over = || {
            finish(&root, &task("t")).unwrap();
            Err(IoError::new("open", Path::new("stream"), nix::errno::Errno::ENOENT))
        };

        make_durable(&root, &task("t"), over).unwrap();
        make_durable(&root, &task("t"), || unreachable!("it is over")).unwrap();
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
