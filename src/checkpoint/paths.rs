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
#![allow(clippy::disallowed_methods, reason = "files of a checkpoint")]

use std::fs::{self, DirBuilder, File, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use super::file::{IoError, open_dir, sync_entry};
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

    /// Makes the directory of a task's streams. Its entry is durable after [`make_durable`](super::tasks::make_durable).
    ///
    /// # Errors
    ///
    /// As [`Root::create`].
    pub fn create_checkpoint(&self, task: &TaskId) -> Result<(), RootError> {
        let path = self.checkpoint(task);
        make_entry(&path, PRIVATE)?;
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
    let Some(dir) = make_entry(path, mode)? else { return Ok(()) };
    dir.sync_all().map_err(|source| IoError::new("fsync", path, source))?;
    sync_entry(path)
}

/// Makes a directory with its mode, not durably; `None` if it was there.
fn make_entry(path: &Path, mode: u32) -> Result<Option<File>, IoError> {
    match DirBuilder::new().mode(mode).create(path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => return Ok(None),
        made => made.map_err(|source| IoError::new("mkdir", path, source))?,
    }
    let dir = open_dir(path)?;
    dir.set_permissions(Permissions::from_mode(mode))
        .map_err(|source| IoError::new("fchmod", path, source))?;
    Ok(Some(dir))
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checkpoint::testing::{TempDir, given_directory, other_half, root, task};

    fn mode(path: impl AsRef<Path>) -> u32 {
        fs::metadata(path).unwrap().mode() & 0o7777
    }

    #[test]
    fn every_path_is_where_it_was_promised() {
        let root = Root::new("/r").unwrap();
        let (id, process) = (task("t"), ProcessName::new("a b").unwrap());
        let identity = Identity::coordinator(id.clone(), process.clone());

        let paths = [
            root.task(Place::Active, &id),
            root.task(Place::Finished, &id),
            root.runner(&id),
            root.coordinator(&id, &process),
            root.stream(&identity),
            root.control(&id),
            root.sandbox(&id),
        ];

        let expected = [
            "/r/tasks/active/t",
            "/r/tasks/finished/t",
            "/r/checkpoints/t/runner",
            "/r/checkpoints/t/coordinator.a b",
            "/r/checkpoints/t/coordinator.a b",
            "/r/checkpoints/t/control",
            "/r/sandboxes/t",
        ];
        assert_eq!(paths, expected.map(PathBuf::from));
    }

    #[test]
    fn a_relative_root_is_taken_from_the_working_directory() {
        let expected = std::env::current_dir().unwrap().join("state");

        assert_eq!(Root::new("state").unwrap().path(), expected);
        assert!(Root::new("").is_err());
    }

    /// Runs in a process of its own, for the umask is the process's.
    #[test]
    #[ignore = "run by modes_do_not_depend_on_the_umask"]
    fn make_with_an_odd_umask() {
        let Some(dir) = given_directory() else { return };
        nix::sys::stat::umask(nix::sys::stat::Mode::from_bits_truncate(0o277));
        let root = Root::new(dir.join("state")).unwrap();

        root.create().unwrap();
        root.create_checkpoint(&task("t")).unwrap();
    }

    #[test]
    fn modes_do_not_depend_on_the_umask() {
        let dir = TempDir::new();
        let name = "checkpoint::paths::tests::make_with_an_odd_umask";
        let made = other_half(name, dir.path()).output().unwrap();
        assert!(made.status.success(), "{made:?}");

        let modes = [
            "",
            "tasks",
            "tasks/active",
            "tasks/finished",
            "checkpoints",
            "checkpoints/t",
            "sandboxes",
        ]
        .map(|path| mode(dir.path().join("state").join(path)));

        assert_eq!(modes, [0o755, 0o700, 0o700, 0o700, 0o700, 0o700, 0o711]);
    }

    #[test]
    fn a_root_is_made_with_what_is_missing_above_it_and_kept_as_it_is() {
        let dir = TempDir::new();
        let root = Root::new(dir.path().join("a/b/c")).unwrap();
        root.create().unwrap();
        fs::set_permissions(root.path().join("sandboxes"), Permissions::from_mode(0o755)).unwrap();

        root.create().unwrap();

        assert_eq!(mode(root.path().join("sandboxes")), 0o755);
    }

    /// Attack 53: modes are verified at the start.
    #[test]
    fn a_directory_that_others_can_write_is_refused() {
        let (_dir, root) = root();
        let path = root.path().join("checkpoints");
        fs::set_permissions(&path, Permissions::from_mode(0o770)).unwrap();

        let error = root.create().unwrap_err();

        let uid = nix::unistd::geteuid();
        let expected = format!(
            "{} belongs to uid {uid} and has mode 770: it must be ours or root's, and writable by its owner alone",
            path.display()
        );
        assert_eq!(error.to_string(), expected);
    }

    #[test]
    fn a_link_in_the_place_of_a_directory_is_refused() {
        let (dir, root) = root();
        let path = root.checkpoint(&task("u"));
        std::os::unix::fs::symlink(dir.path(), &path).unwrap();

        let error = root.create_checkpoint(&task("u")).unwrap_err();

        assert!(matches!(error, RootError::Io(_)), "{error}");
    }

    #[test]
    fn the_tasks_of_a_root_are_listed_in_order() {
        let (_dir, root) = root();
        for name in ["b", "a", ".c", "two words"] {
            fs::write(root.tasks(Place::Active).join(name), "").unwrap();
        }

        assert_eq!(root.list(Place::Active).unwrap(), [task("a"), task("b")]);
        assert_eq!(root.list(Place::Finished).unwrap(), []);
        assert_eq!(Root::new("/nowhere").unwrap().list(Place::Active).unwrap(), []);
    }
}
