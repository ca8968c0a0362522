//! The root: where everything is, who may see it, and how it is made.
//!
//! ```text
//! <root>                                     0755  reachable: the sandboxes are beneath it
//! <root>/tasks/{active,finished}/<task>      0700  command lines may hold secrets
//! <root>/checkpoints/<task>/runner           0700
//! <root>/checkpoints/<task>/coordinator.<process>
//! <root>/checkpoints/<task>/control
//! <root>/sandboxes/<task>                    0711  reachable by the task's user, not listed
//! ```

use std::fs::{self, DirBuilder, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use super::file::{IoError, open_dir, sync_dir, sync_entry};
use super::identity::{Identity, Stream};
use crate::task::{ProcessName, TaskId};

/// Directory that others may enter and list.
const PUBLIC: u32 = 0o755;
/// Directory that others may enter, if they know what is in it.
const REACHABLE: u32 = 0o711;
/// Directory of its owner alone.
const PRIVATE: u32 = 0o700;
/// Write permission of group and others.
const FOREIGN_WRITE: u32 = 0o022;

/// Why a root cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum RootError {
    /// A directory of it could be changed by somebody else.
    #[error("{} belongs to uid {uid} and has mode {mode:03o}: {}", path.display(), ADVICE)]
    Unsafe {
        /// The directory.
        path: PathBuf,
        /// Its owner.
        uid: u32,
        /// Its permission bits.
        mode: u32,
    },
    /// A call failed.
    #[error(transparent)]
    Io(#[from] IoError),
}

const ADVICE: &str = "it must be ours or root's, and writable by its owner alone";

/// Which of the two directories of tasks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// Tasks that are accepted and not over.
    Active,
    /// Tasks that are over.
    Finished,
}

/// The directory that holds everything that dewar knows about its tasks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Root {
    path: PathBuf,
}

impl Root {
    /// Names a root; nothing is made or looked at. A relative path is taken from the working directory.
    ///
    /// # Errors
    ///
    /// [`IoError`] if `path` is empty or there is no working directory.
    pub fn new(path: impl AsRef<Path>) -> Result<Self, IoError> {
        let path = path.as_ref();
        let path =
            std::path::absolute(path).map_err(|source| IoError::new("getcwd", path, source))?;
        Ok(Self { path })
    }

    /// Makes what is missing of the directories, durably, and checks those that are there.
    ///
    /// What is made has its mode whatever the umask is. What was there keeps its own.
    ///
    /// # Errors
    ///
    /// [`RootError::Unsafe`] if a directory below the root could be changed by somebody else. The root itself is the
    /// caller's choice.
    pub fn create(&self) -> Result<(), RootError> {
        if let Some(parent) = self.path.parent() {
            make_parents(parent)?;
        }
        make(&self.path, PUBLIC)?;
        let own = [
            ("tasks", PRIVATE),
            ("tasks/active", PRIVATE),
            ("tasks/finished", PRIVATE),
            ("checkpoints", PRIVATE),
            ("sandboxes", REACHABLE),
        ];
        for (name, mode) in own {
            let path = self.path.join(name);
            make(&path, mode)?;
            check(&path)?;
        }
        Ok(())
    }

    /// Makes the directory of a task's streams, durably.
    ///
    /// # Errors
    ///
    /// As [`Root::create`].
    pub fn create_checkpoint(&self, task: &TaskId) -> Result<(), RootError> {
        let path = self.checkpoint(task);
        make(&path, PRIVATE)?;
        check(&path)
    }

    /// The root itself, absolute.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// A directory of tasks.
    pub fn tasks(&self, place: Place) -> PathBuf {
        self.path.join(match place {
            Place::Active => "tasks/active",
            Place::Finished => "tasks/finished",
        })
    }

    /// The task as it was accepted.
    pub fn task(&self, place: Place, task: &TaskId) -> PathBuf {
        self.tasks(place).join(task.as_str())
    }

    /// Directory of a task's streams.
    pub fn checkpoint(&self, task: &TaskId) -> PathBuf {
        self.path.join("checkpoints").join(task.as_str())
    }

    /// A stream.
    pub fn stream(&self, identity: &Identity) -> PathBuf {
        self.checkpoint(&identity.task).join(identity.stream.to_string())
    }

    /// The runner's stream of a task.
    pub fn runner(&self, task: &TaskId) -> PathBuf {
        self.checkpoint(task).join(Stream::Runner.to_string())
    }

    /// The stream of the coordinators of a process.
    pub fn coordinator(&self, task: &TaskId, process: &ProcessName) -> PathBuf {
        self.checkpoint(task).join(Stream::Coordinator(process.clone()).to_string())
    }

    /// Control socket of a task's live runner. The path may be longer than a socket address takes.
    pub fn control(&self, task: &TaskId) -> PathBuf {
        self.checkpoint(task).join("control")
    }

    /// The sandbox of a task for which no other was named.
    pub fn sandbox(&self, task: &TaskId) -> PathBuf {
        self.path.join("sandboxes").join(task.as_str())
    }

    /// Ids of the tasks in a directory, ascending. A directory that is missing has none.
    ///
    /// # Errors
    ///
    /// [`IoError`].
    pub fn list(&self, place: Place) -> Result<Vec<TaskId>, IoError> {
        let path = self.tasks(place);
        let failed = |source| IoError::new("readdir", &path, source);
        let entries = match fs::read_dir(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries.map_err(failed)?,
        };
        let mut ids = Vec::new();
        for entry in entries {
            let name = entry.map_err(failed)?.file_name();
            // No task has a name that is no id: a hidden one is being accepted.
            ids.extend(name.to_str().and_then(|name| TaskId::new(name).ok()));
        }
        ids.sort_unstable();
        Ok(ids)
    }
}

/// Makes what is missing of a directory that is not ours, durably, as the umask says.
fn make_parents(path: &Path) -> Result<(), IoError> {
    if path.is_dir() {
        return Ok(());
    }
    if let Some(parent) = path.parent() {
        make_parents(parent)?;
    }
    match fs::create_dir(path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
        made => made.map_err(|source| IoError::new("mkdir", path, source))?,
    }
    sync_entry(path)
}

/// Makes a directory with exactly this mode, durably; one that is there is left as it is.
fn make(path: &Path, mode: u32) -> Result<(), IoError> {
    match DirBuilder::new().mode(mode).create(path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => return Ok(()),
        made => made.map_err(|source| IoError::new("mkdir", path, source))?,
    }
    let dir = open_dir(path)?;
    let failed = |call| move |source| IoError::new(call, path, source);
    dir.set_permissions(Permissions::from_mode(mode)).map_err(failed("fchmod"))?;
    dir.sync_all().map_err(failed("fsync"))?;
    sync_entry(path)
}

/// Refuses a directory that somebody else could change.
fn check(path: &Path) -> Result<(), RootError> {
    let metadata =
        open_dir(path)?.metadata().map_err(|source| IoError::new("fstat", path, source))?;
    let (uid, mode) = (metadata.uid(), metadata.mode() & 0o777);
    let ours = uid == 0 || uid == nix::unistd::geteuid().as_raw();
    if ours && mode & FOREIGN_WRITE == 0 {
        return Ok(());
    }
    Err(RootError::Unsafe { path: path.to_owned(), uid, mode })
}

/// Makes the entries of both directories of tasks durable.
pub(super) fn sync_tasks(root: &Root) -> Result<(), IoError> {
    sync_dir(&root.tasks(Place::Finished))?;
    sync_dir(&root.tasks(Place::Active))
}
