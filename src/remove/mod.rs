//! Removes what is kept of a task that is over: what it wrote, then its checkpoint.
//!
//! | step | | a crash after it leaves |
//! |---|---|---|
//! | 1 | the lock of its stream is taken: nobody leads the task, accepts another of its id, or removes it as well | a task that is over |
//! | 2 | [`Removal::erase`]: the files of the sandbox, then the logs in it, then the sandbox | the same, with less in its sandbox |
//! | 3 | the directory of sandboxes is synced | the same |
//! | 4 | [`Removal::forget`]: the other files of the checkpoint, then its entry among the finished ones | a stream that belongs to no task |
//! | 5 | the directory of finished tasks is synced | the same |
//! | 6 | [`Removal::end`]: the stream, and its directory | nothing |
//!
//! Up to step 4 the task is there, and can be removed again; what steps 4 to 6 left, which is marked by the mode of the stream, [`sweep`]
//! removes, or the next task of that id replaces.
//!
//! The only sandbox that is erased is the one that the root has for the task, `<root>/sandboxes/<task>`: one that was named is
//! somebody's directory. It is opened beneath the root, and walked by [`crate::tree`]: through no link, into no mount. What cannot be
//! erased is told, and the rest is erased all the same.
#![allow(clippy::disallowed_methods, reason = "removes files")]

mod erase;

use std::collections::HashSet;
use std::ffi::{CString, OsStr};
use std::fs::{self, File};
use std::io::{self, ErrorKind};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::sys::stat::Mode;

use erase::{erase_beneath, open_up, unlink_dir};

use crate::cgroup::{CgroupError, TaskCgroup};
use crate::checkpoint::lock::Custody;
use crate::checkpoint::paths::Place;
use crate::checkpoint::{Identity, IoError, OpenError, ReadError, Root, sync_dir, tasks};
use crate::failpoint::{Failpoint, hit};
use crate::launch::{self, Turn};
use crate::observe::{self, ObserveError, Observed};
use crate::proto::Launch;
use crate::state::Stamp;
use crate::sys::dir::{self, FileId};
use crate::sys::fs::{open_beneath, open_on_one_mount};
use crate::task::TaskId;

/// Time that the runner of a task that has just ended gets to leave.
const PATIENCE: Duration = Duration::from_secs(1);
/// Time between two looks at whether it has.
const LOOK: Duration = Duration::from_millis(5);

/// How directories of tasks are opened, by what follows no link.
pub(crate) const DIRECTORY: OFlag = OFlag::O_RDONLY.union(OFlag::O_DIRECTORY);

/// Why something of a task is still there.
#[derive(Debug, thiserror::Error)]
pub enum RemoveError {
    /// It is not over.
    #[error("task {0} is not over")]
    NotOver(TaskId),
    /// Its stream cannot be locked: somebody leads the task, or removes it.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// Its stream cannot be read.
    #[error(transparent)]
    Observe(#[from] ObserveError),
    /// Something lives in its cgroup, although it is over.
    #[error("{} is not empty", .0.display())]
    Populated(PathBuf),
    /// Whether something does cannot be told.
    #[error(transparent)]
    Cgroup(#[from] CgroupError),
    /// A task that is not over works in its sandbox.
    #[error("task {by} works in {}", path.display())]
    Used {
        /// The task.
        by: TaskId,
        /// Where.
        path: PathBuf,
    },
    /// Something else is mounted at or in its sandbox.
    #[error("something is mounted at {}; unmount it{}", path.display(), others(*count))]
    Mounted {
        /// The first such place.
        path: PathBuf,
        /// How many things could not be erased.
        count: u64,
    },
    /// Something cannot be erased because it, or the directory that it is in, is marked so.
    #[error("{} is immutable or append-only (chattr -ia){}", path.display(), others(*count))]
    Immutable {
        /// The first such file.
        path: PathBuf,
        /// How many things could not be erased.
        count: u64,
    },
    /// Something cannot be erased.
    #[error("{}{}", path.display(), others(*count))]
    Left {
        /// The first such file.
        path: PathBuf,
        /// How many things could not be erased.
        count: u64,
        /// Why not.
        #[source]
        errno: Errno,
    },
    /// Somebody keeps adding to its sandbox.
    #[error("{} grows while it is erased", .0.display())]
    Growing(PathBuf),
    /// Whoever asked for it wants no more of it.
    #[error("stopped")]
    Stopped,
    /// A call failed.
    #[error(transparent)]
    Io(#[from] IoError),
}

fn others(count: u64) -> String {
    match count.saturating_sub(1) {
        0 => String::new(),
        others => format!(" (and {others} more are left)"),
    }
}

/// What is removed of a task. The three go in this order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Parts {
    /// The files of its sandbox, but for its logs.
    pub data: bool,
    /// Its logs, if they are in its sandbox.
    pub logs: bool,
    /// Its checkpoint: the task is forgotten.
    pub metadata: bool,
}

impl Parts {
    /// All of it.
    pub const ALL: Self = Self { data: true, logs: true, metadata: true };
    /// Its checkpoint alone.
    pub const METADATA: Self = Self { data: false, logs: false, metadata: true };
}

/// What was erased.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Erased {
    /// Bytes, of what has no other name; those of a file that is still open are given back when it is closed.
    pub bytes: u64,
    /// Files, and directories, that have no other name.
    pub inodes: u64,
}

impl std::ops::AddAssign for Erased {
    fn add_assign(&mut self, other: Self) {
        self.bytes += other.bytes;
        self.inodes += other.inodes;
    }
}

/// Asked between two slices of work: whether to go on.
pub type Go<'a> = &'a mut dyn FnMut() -> bool;

/// Removes the checkpoint of a task that is over, and with `sandbox` the directory that it has in the root. A sandbox somewhere
/// else is never removed. To remove what is not there changes nothing.
///
/// # Errors
///
/// [`RemoveError`]; it can be tried again.
pub fn remove(root: &Root, id: &TaskId, sandbox: bool) -> Result<(), RemoveError> {
    let parts = if sandbox { Parts::ALL } else { Parts::METADATA };
    let used = if sandbox { Used::read(root)? } else { Used::default() };
    let Some(removal) = begin_patiently(root, id)? else { return Ok(()) };
    if sandbox {
        removal.erase(parts, &used, &mut || true)?;
        sync_sandboxes(root)?;
    }
    removal.forget()?;
    sync_finished(root)?;
    removal.end()
}

/// As [`Removal::begin`]; the runner of a task that has just ended gets time to leave.
pub(crate) fn begin_patiently(root: &Root, id: &TaskId) -> Result<Option<Removal>, RemoveError> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match Removal::begin(root, id) {
            Err(RemoveError::Open(OpenError::Held { .. })) if Instant::now() < deadline => {
                std::thread::sleep(LOOK);
            }
            begun => return begun,
        }
    }
}

/// Makes durable that sandboxes are erased, which comes before their tasks are forgotten.
///
/// # Errors
///
/// [`IoError`].
pub fn sync_sandboxes(root: &Root) -> Result<(), IoError> {
    sync_dir(&root.path().join("sandboxes"))
}

/// Makes durable that tasks are not among the finished ones, which comes before their streams are removed.
///
/// # Errors
///
/// [`IoError`].
pub fn sync_finished(root: &Root) -> Result<(), IoError> {
    sync_dir(&root.tasks(Place::Finished))
}

/// What is known of a task that is among the finished ones.
#[derive(Debug, Clone)]
pub struct Over {
    /// When it ended, and in which boot; `None` if its stream does not tell.
    pub ended: Option<(Stamp, Option<String>)>,
    /// As it was accepted, if that can be read.
    pub launch: Option<Launch>,
    /// Its cgroup, if it had one.
    pub cgroup: Option<PathBuf>,
    /// Why its stream is of no use, if it is not.
    pub corrupt: Option<String>,
}

impl Over {
    /// Reads a task that is among the finished ones.
    ///
    /// # Errors
    ///
    /// [`ObserveError`], but never for a damaged or missing stream.
    pub fn read(root: &Root, id: &TaskId) -> Result<Self, ObserveError> {
        let mut observed = match Observed::open(root, id) {
            Ok(observed) => observed,
            Err(error) => return Self::unread(None, error),
        };
        if let Err(error) = observed.advance(|_, _| {}) {
            return Self::unread(Some(&observed), error);
        }
        let over = Self::as_far_as(Some(&observed));
        let corrupt = over.ended.is_none().then(|| "its stream does not tell its end".to_owned());
        Ok(Self { corrupt, ..over })
    }

    fn unread(observed: Option<&Observed>, error: ObserveError) -> Result<Self, ObserveError> {
        let is_missing = matches!(error, ObserveError::Read(ReadError::Missing { .. }));
        if !is_missing && !error.is_corruption() {
            return Err(error);
        }
        let corrupt = Some(crate::causes::chain(&error));
        Ok(Self { ended: None, corrupt, ..Self::as_far_as(observed) })
    }

    fn as_far_as(observed: Option<&Observed>) -> Self {
        let replay = observed.and_then(Observed::replay);
        let leader = replay.and_then(|replay| replay.state().leader());
        let last = replay.and_then(|replay| replay.state().history().last());
        let ended = last.filter(|(phase, _)| phase.is_terminal());
        Self {
            ended: ended.map(|(_, at)| (*at, leader.map(|leader| leader.boot_id.clone()))),
            launch: replay.map(|replay| replay.launch().clone()),
            cgroup: leader.and_then(|leader| leader.cgroup.as_deref()).map(PathBuf::from),
            corrupt: None,
        }
    }

    /// Whether the sandbox of the task is the one that the root has for it. If it cannot be told which it had, it is.
    pub fn is_at_home(&self, root: &Root, id: &TaskId) -> bool {
        let Some(launch) = &self.launch else { return true };
        let home = root.sandbox(id);
        let home = home.parent().and_then(|dir| dir.canonicalize().ok());
        home.is_some_and(|home| Path::new(&launch.sandbox) == home.join(id.as_str()))
    }

    /// The log directory beneath the sandbox; `None` if it is elsewhere, or the sandbox itself.
    pub fn logs(&self) -> Option<CString> {
        let beneath = match self.launch.as_ref().and_then(|launch| {
            Some((Path::new(&launch.sandbox), Path::new(launch.log_dir.as_deref()?)))
        }) {
            None => Path::new(".logs"),
            Some((sandbox, logs)) => logs.strip_prefix(sandbox).ok()?,
        };
        let name = CString::new(beneath.as_os_str().as_bytes()).ok()?;
        (!name.is_empty()).then_some(name)
    }
}

/// Directories that tasks work in which are not over.
#[derive(Debug, Default)]
pub struct Used(Vec<(TaskId, PathBuf)>);

impl Used {
    /// Finds them.
    ///
    /// # Errors
    ///
    /// [`IoError`] if the tasks cannot be listed. One that cannot be read is taken to work in the sandbox that the root has for it.
    pub fn read(root: &Root) -> Result<Self, IoError> {
        #[derive(serde::Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct Paths {
            sandbox: PathBuf,
            log_dir: Option<PathBuf>,
        }
        let mut used = Vec::new();
        for id in root.list(Place::Active)? {
            let Ok(accepted) = fs::read(root.task(Place::Active, &id)) else { continue };
            let paths = serde_json::from_slice(&accepted).ok().or_else(|| {
                // A power cut can leave it without content, and its stream whole.
                let Launch { sandbox, log_dir, .. } = launch::header(root, &id).ok()?;
                Some(Paths { sandbox: sandbox.into(), log_dir: log_dir.map(Into::into) })
            });
            if let Some(Paths { sandbox, log_dir }) = paths {
                used.extend(
                    [Some(sandbox), log_dir].into_iter().flatten().map(|path| (id.clone(), path)),
                );
            }
        }
        Ok(Self(used))
    }

    /// Refuses to erase `dir`, of the task `id`, if another task works there. That one itself does not any more, even if it did when the
    /// tasks were read: it is over, and held.
    fn refuse(&self, id: &TaskId, dir: &Path) -> Result<(), RemoveError> {
        match self.0.iter().find(|(by, path)| by != id && path.starts_with(dir)) {
            Some((by, path)) => Err(RemoveError::Used { by: by.clone(), path: path.clone() }),
            None => Ok(()),
        }
    }
}

/// A log directory in a sandbox.
struct Logs {
    path: PathBuf,
    id: FileId,
    dir: OwnedFd,
}

/// A task that is being removed. Dropped, it lets go of the task.
#[derive(Debug)]
pub struct Removal {
    root: Root,
    id: TaskId,
    /// `None` where there is no stream to be locked, so that nobody could lead the task.
    custody: Option<Custody>,
    over: Over,
}

impl Removal {
    /// Takes a task that is over, so that nobody else does anything with it; `None` if nothing of it is there.
    ///
    /// # Errors
    ///
    /// [`RemoveError`]; nothing is removed.
    pub fn begin(root: &Root, id: &TaskId) -> Result<Option<Self>, RemoveError> {
        // Only for the moment in which the lock is taken: who accepts a task in this process has another kind of lock.
        let turn = Turn::wait(root.runner(id));
        let custody = match Custody::take(root, &Identity::runner(id.clone())) {
            Ok(custody) => Some(custody),
            Err(OpenError::Read(ReadError::Missing { .. })) => None,
            // Somebody else has removed it just now.
            Err(OpenError::Removed { .. }) if !tasks::is_known(root, id) => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        drop(turn);
        if root.task(Place::Active, id).exists() {
            return Err(RemoveError::NotOver(id.clone()));
        }
        if custody.is_none() && !root.task(Place::Finished, id).exists() {
            return Ok(None);
        }
        let over = Over::read(root, id)?;
        if let Some(path) = &over.cgroup
            && TaskCgroup::open_existing(path, id)?.map_or(Ok(false), |it| it.is_populated())?
        {
            return Err(RemoveError::Populated(path.clone()));
        }
        let removal = Self { root: root.clone(), id: id.clone(), custody, over };
        removal.pass(Failpoint::RemoveLocked)?;
        Ok(Some(removal))
    }

    /// What is known of the task.
    pub fn over(&self) -> &Over {
        &self.over
    }

    /// Erases data and logs, if the sandbox of the task is the one that the root has for it; `go` is asked between slices.
    ///
    /// # Errors
    ///
    /// [`RemoveError`]: something is left, and all else is erased.
    pub fn erase(&self, parts: Parts, used: &Used, go: Go<'_>) -> Result<Erased, RemoveError> {
        let mut erased = Erased::default();
        let home = self.root.sandbox(&self.id);
        if !(parts.data || parts.logs) || !self.over.is_at_home(&self.root, &self.id) {
            return Ok(erased);
        }
        let Some((sandboxes, name, sandbox)) = self.open_home(&home)? else { return Ok(erased) };
        used.refuse(&self.id, &home.canonicalize().unwrap_or_else(|_| home.clone()))?;
        let sandbox = sandbox.as_fd();
        let logs = self.open_logs(sandbox, &home, parts)?;
        let mut result = Ok(());
        if parts.data {
            let except = logs.as_ref().map(|logs| logs.id);
            result = erase_beneath(sandbox, &home, except, go, &mut erased);
            self.pass(Failpoint::RemoveData)?;
        }
        if let (true, Some(Logs { path, dir, .. })) = (parts.logs, logs) {
            result = result.and(erase_beneath(dir.as_fd(), &path, None, go, &mut erased));
            self.pass(Failpoint::RemoveLogs)?;
        }
        result?;
        if parts.data && parts.logs {
            // What led to the logs.
            erase_beneath(sandbox, &home, None, go, &mut erased)?;
            unlink_dir(sandboxes.as_fd(), &name, &home, &mut erased)?;
            self.pass(Failpoint::RemoveSandbox)?;
        }
        Ok(erased)
    }

    /// Opens the sandbox that the root has for the task: the directory of sandboxes, its name there, and itself.
    fn open_home(&self, home: &Path) -> Result<Option<(OwnedFd, CString, OwnedFd)>, RemoveError> {
        let name = CString::new(self.id.as_str()).unwrap_or_default();
        let root = File::open(self.root.path())
            .map_err(|source| io_error("open", self.root.path(), source))?;
        let opened =
            open_beneath(root.as_fd(), c"sandboxes", DIRECTORY, Mode::empty()).and_then(|dir| {
                open_up(dir.as_fd(), &name, &dir::stat(dir.as_fd(), &name)?);
                Ok((open_on_one_mount(dir.as_fd(), &name, DIRECTORY)?, dir))
            });
        match opened {
            Ok((sandbox, sandboxes)) => Ok(Some((sandboxes, name, sandbox))),
            Err(Errno::ENOENT) => Ok(None),
            Err(Errno::EXDEV) => Err(RemoveError::Mounted { path: home.to_owned(), count: 1 }),
            Err(errno) => Err(RemoveError::Left { path: home.to_owned(), count: 1, errno }),
        }
    }

    /// Opens the log directory in the sandbox; whatever else is there, or leads there, is data.
    fn open_logs(
        &self,
        sandbox: BorrowedFd<'_>,
        home: &Path,
        parts: Parts,
    ) -> Result<Option<Logs>, RemoveError> {
        let Some(name) = self.over.logs() else { return Ok(None) };
        let path = home.join(OsStr::from_bytes(name.to_bytes()));
        let opened = open_on_one_mount(sandbox, &name, DIRECTORY)
            .and_then(|dir| Ok((dir::stat_open(dir.as_fd())?.id, dir)));
        match opened {
            Ok((id, dir)) => Ok(Some(Logs { path, id, dir })),
            Err(Errno::ENOENT | Errno::ENOTDIR | Errno::ELOOP | Errno::EXDEV) => Ok(None),
            // They need not be told from the rest.
            Err(_) if parts.data && parts.logs => Ok(None),
            Err(errno) => Err(RemoveError::Left { path, count: 1, errno }),
        }
    }

    /// Removes the task from the finished ones: it is forgotten, but for its stream.
    ///
    /// # Errors
    ///
    /// [`RemoveError::Io`].
    pub fn forget(&self) -> Result<(), RemoveError> {
        if let Some(custody) = &self.custody {
            custody.mark_forgotten()?;
        }
        let runner = self.root.runner(&self.id);
        for path in entries(&self.root.checkpoint(&self.id))? {
            if path != runner {
                gone("unlink", &path, fs::remove_file(&path))?;
            }
        }
        self.pass(Failpoint::RemoveStreams)?;
        let finished = self.root.task(Place::Finished, &self.id);
        gone("unlink", &finished, fs::remove_file(&finished))?;
        self.pass(Failpoint::RemoveFinished)
    }

    /// Removes the stream of a task that is forgotten, and lets go of it.
    ///
    /// # Errors
    ///
    /// [`RemoveError::Io`].
    pub fn end(self) -> Result<(), RemoveError> {
        let runner = self.root.runner(&self.id);
        if self.custody.is_some() {
            gone("unlink", &runner, fs::remove_file(&runner))?;
            self.pass(Failpoint::RemoveStream)?;
        }
        let checkpoint = self.root.checkpoint(&self.id);
        match fs::remove_dir(&checkpoint) {
            // The next task of this id is being accepted.
            Err(error) if error.kind() == ErrorKind::DirectoryNotEmpty => Ok(()),
            removed => Ok(gone("rmdir", &checkpoint, removed)?),
        }
    }

    fn pass(&self, point: Failpoint) -> Result<(), RemoveError> {
        let path = self.root.runner(&self.id);
        Ok(hit(point).map_err(|source| io_error("pass a failpoint at", &path, source))?)
    }
}

/// Removes the streams that a crash left of tasks which were being forgotten. Returns how many.
///
/// # Errors
///
/// [`RemoveError::Io`].
pub fn sweep(root: &Root) -> Result<usize, RemoveError> {
    let checkpoints = entries(&root.path().join("checkpoints"))?;
    // Later: a task that is accepted meanwhile is known, and one that is removed is not there.
    let known: HashSet<_> = observe::list(root)?.into_iter().map(|(id, _)| id).collect();
    let mut swept = 0;
    for checkpoint in checkpoints {
        let name = checkpoint.file_name().and_then(|name| name.to_str());
        let Some(id) = name.and_then(|name| TaskId::new(name).ok()) else { continue };
        if !known.contains(&id) && sweep_one(root, &id, &checkpoint)? {
            swept += 1;
        }
    }
    Ok(swept)
}

fn sweep_one(root: &Root, id: &TaskId, checkpoint: &Path) -> Result<bool, RemoveError> {
    let turn = Turn::wait(root.runner(id));
    let custody = Custody::take_forgotten(root, &Identity::runner(id.clone()));
    drop(turn);
    match custody {
        Ok(Some(custody)) if !tasks::is_known(root, id) => {
            let runner = root.runner(id);
            gone("unlink", &runner, fs::remove_file(&runner))?;
            drop(custody);
        }
        Err(OpenError::Read(ReadError::Missing { .. })) => {}
        // It is somebody's.
        Ok(_) | Err(_) => return Ok(false),
    }
    // If it is empty: whoever is about to make a stream there makes the directory again.
    Ok(fs::remove_dir(checkpoint).is_ok())
}

/// What is not there is removed.
fn gone(call: &'static str, path: &Path, result: io::Result<()>) -> Result<(), IoError> {
    match result {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(io_error(call, path, error)),
        _ => Ok(()),
    }
}

fn io_error(call: &'static str, path: &Path, source: io::Error) -> IoError {
    IoError { call, path: path.to_owned(), source }
}

fn entries(dir: &Path) -> Result<Vec<PathBuf>, IoError> {
    match fs::read_dir(dir) {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(io_error("read", dir, error)),
        Ok(entries) => entries
            .map(|entry| entry.map(|entry| entry.path()))
            .collect::<Result<_, _>>()
            .map_err(|error| io_error("read", dir, error)),
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::os::unix::fs::{PermissionsExt, symlink};
    use std::process::{Child, Command};
    use std::sync::atomic::{AtomicU64, Ordering};

    use nix::fcntl::{AT_FDCWD, RenameFlags, renameat2};
    use nix::mount::{MsFlags, mount, umount};
    use nix::sched::{CloneFlags, unshare};

    use super::*;
    use crate::checkpoint::Writer;
    use crate::gc::testing::{Scene, deepen, id_of, led};
    use crate::launch::{self, Accepted};
    use crate::sys::fault::writable_cgroup2;
    use crate::testing::{TempDir, alone, become_ordinary, is_root, while_disturbed};

    const OLD: Duration = Duration::from_secs(3600);

    fn remove_all(scene: &Scene, id: &str) -> Result<(), RemoveError> {
        remove(&scene.root, &id_of(id), true)
    }

    /// Puts this process into a mount namespace of its own.
    fn unshare_mounts() {
        unshare(CloneFlags::CLONE_NEWNS).unwrap();
        let none: Option<&str> = None;
        mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).unwrap();
    }

    /// `chattr`, if the file system knows it.
    fn chattr(flags: &str, path: &Path) -> bool {
        let done = Command::new("chattr").arg(flags).arg(path).output();
        done.is_ok_and(|output| output.status.success())
    }

    #[test]
    fn of_a_task_that_is_removed_nothing_is_left() {
        let scene = Scene::new();
        let id = scene.over("t", OLD);
        scene.file("t", "a/b/c", 10);
        scene.file("t", ".logs/p/0/stdout", 10);
        fs::write(scene.root.checkpoint(&id).join("coordinator.p"), "").unwrap();

        remove(&scene.root, &id, true).unwrap();

        assert!(scene.is_gone("t"));
        remove(&scene.root, &id, true).unwrap();
    }

    /// Its runner filed it away in between.
    #[test]
    fn a_task_that_was_not_over_when_the_tasks_were_read_does_not_work_in_its_own_sandbox() {
        let scene = Scene::new();
        let id = scene.active("t", OLD, |_| {}, []);
        scene.file("t", "file", 10);
        let used = Used::read(&scene.root).unwrap();
        assert!(
            used.0.iter().any(|(by, path)| *by == id && path.starts_with(scene.root.sandbox(&id)))
        );
        tasks::finish(&scene.root, &id).unwrap();

        let removal = Removal::begin(&scene.root, &id).unwrap().unwrap();
        removal.erase(Parts::ALL, &used, &mut || true).unwrap();

        assert!(!scene.root.sandbox(&id).exists());
    }

    #[test]
    fn a_sandbox_stays_unless_it_is_asked_for() {
        let scene = Scene::new();
        let id = scene.over("t", OLD);
        let file = scene.file("t", "file", 10);

        remove(&scene.root, &id, false).unwrap();

        assert!(file.exists());
        assert!(!scene.root.checkpoint(&id).exists() && scene.ids().is_empty());
    }

    #[test]
    fn a_task_that_is_not_over_is_not_touched() {
        let scene = Scene::new();
        scene.active("t", OLD, |_| {}, []);
        let file = scene.file("t", "file", 10);

        let error = remove_all(&scene, "t").unwrap_err();

        assert_eq!(error.to_string(), "task t is not over");
        assert!(file.exists());
    }

    /// Who holds the lock of the stream is its runner, another one who removes it, or one who accepts a task of this id.
    #[test]
    fn a_task_that_somebody_holds_is_not_touched() {
        let scene = Scene::new();
        let id = scene.over("t", OLD);
        let file = scene.file("t", "file", 10);
        let custody = Custody::take(&scene.root, &Identity::runner(id.clone())).unwrap();

        assert!(matches!(scene.erase("t"), Err(RemoveError::Open(OpenError::Held { .. }))));
        assert!(matches!(remove_all(&scene, "t"), Err(RemoveError::Open(OpenError::Held { .. }))));

        assert!(file.exists() && scene.ids() == ["t"]);
        drop(custody);
        remove_all(&scene, "t").unwrap();
        assert!(scene.is_gone("t"));
    }

    /// Attack 49: a task of the same id that is launched meanwhile is refused, or comes after.
    #[test]
    fn an_id_is_free_again_once_its_task_is_removed_and_not_before() {
        let scene = Scene::new();
        let id = scene.over("t", OLD);
        let mut removal = Removal::begin(&scene.root, &id).unwrap().unwrap();
        let next = removal.over.launch.take().unwrap();

        assert!(launch::accept(&scene.root, &id, &next).is_err());
        removal.forget().unwrap();
        let meanwhile = launch::accept(&scene.root, &id, &next).unwrap_err();
        assert!(matches!(meanwhile, launch::LaunchError::Held { .. }), "{meanwhile}");
        removal.end().unwrap();

        assert_eq!(launch::accept(&scene.root, &id, &next).unwrap(), Accepted::New);
        assert!(scene.root.task(Place::Active, &id).exists());
    }

    /// Whoever reads the stream in this process, and closes it, does not let go of the task.
    #[test]
    fn a_reader_in_the_same_process_does_not_take_the_lock_away() {
        let scene = Scene::new();
        let id = scene.over("t", OLD);
        let removal = Removal::begin(&scene.root, &id).unwrap().unwrap();

        drop(Observed::open(&scene.root, &id).unwrap());

        assert!(matches!(scene.erase("t"), Err(RemoveError::Open(OpenError::Held { .. }))));
        drop(removal);
        scene.erase("t").unwrap();
    }

    /// W12: a sandbox that is a link was emptied where it led to.
    #[test]
    fn a_sandbox_that_is_a_link_is_not_followed() {
        let scene = Scene::new();
        let victim = scene.path("victim");
        fs::create_dir(&victim).unwrap();
        fs::write(victim.join("file"), "").unwrap();
        scene.over("t", OLD);
        symlink(&victim, scene.sandbox("t")).unwrap();

        let error = remove_all(&scene, "t").unwrap_err();

        assert!(matches!(error, RemoveError::Left { errno: Errno::ELOOP, .. }), "{error:?}");
        assert!(victim.join("file").exists());
        assert_eq!(scene.ids(), ["t"]);
    }

    /// Attack 19: a link to `/`.
    #[test]
    fn links_in_a_sandbox_are_removed_and_not_followed() {
        let scene = Scene::new();
        let victim = scene.path("victim");
        fs::create_dir(&victim).unwrap();
        fs::write(victim.join("file"), "").unwrap();
        scene.over("t", OLD);
        scene.file("t", "file", 10);
        for (n, target) in ["/", "..", "../../..", victim.to_str().unwrap()].iter().enumerate() {
            symlink(target, scene.sandbox("t").join(format!("link-{n}"))).unwrap();
        }

        remove_all(&scene, "t").unwrap();

        assert!(scene.is_gone("t") && victim.join("file").exists());
    }

    #[test]
    fn a_file_that_has_a_name_elsewhere_stays_there_and_is_not_counted() {
        let scene = Scene::new();
        scene.over("t", OLD);
        let file = scene.file("t", "big", 1 << 20);
        fs::hard_link(&file, scene.path("elsewhere")).unwrap();
        let sparse = File::create(scene.sandbox("t").join("sparse")).unwrap();
        sparse.set_len(1 << 40).unwrap();

        let erased = scene.erase("t").unwrap();

        assert_eq!(fs::metadata(scene.path("elsewhere")).unwrap().len(), 1 << 20);
        assert_eq!(erased.inodes, 2, "the sparse file and the sandbox");
        assert!(erased.bytes < 1 << 20, "{erased:?}");
    }

    /// A sandbox that somebody named is theirs.
    #[test]
    fn a_sandbox_that_is_not_in_the_root_stays() {
        let scene = Scene::new();
        let theirs = scene.path("theirs");
        fs::create_dir(&theirs).unwrap();
        fs::write(theirs.join("file"), "").unwrap();
        let named = theirs.display().to_string();
        scene.over_with("t", OLD, |launch| launch.sandbox = named, []);
        // Nor is one that somebody has put where the root would have one.
        let here = scene.file("t", "file", 1);

        remove_all(&scene, "t").unwrap();

        assert!(theirs.join("file").exists() && here.exists());
        assert_eq!(scene.ids(), [""; 0]);
    }

    #[test]
    fn a_sandbox_that_another_task_works_in_is_not_touched() {
        let scene = Scene::new();
        scene.over("t", OLD);
        let file = scene.file("t", "shared/file", 1);
        let sandbox = scene.sandbox("t").join("shared").display().to_string();
        scene.active("u", OLD, |launch| launch.sandbox = sandbox, []);

        let error = remove_all(&scene, "t").unwrap_err();

        let path = file.parent().unwrap().display().to_string();
        assert_eq!(error.to_string(), format!("task u works in {path}"));
        assert!(file.exists());
    }

    /// A populated cgroup of a task.
    struct Populated {
        dir: PathBuf,
        child: Child,
    }

    impl Populated {
        fn new(id: &str) -> Self {
            let mount = writable_cgroup2().expect("a cgroup v2 that may be written");
            let base = mount.join(format!("dewar-test-gc-{}", std::process::id()));
            let dir = base.join("tasks").join(id);
            fs::create_dir_all(&dir).unwrap();
            let child = Command::new("sleep").arg("600").spawn().unwrap();
            fs::write(dir.join("cgroup.procs"), child.id().to_string()).unwrap();
            Self { dir, child }
        }

        fn empty(&mut self) {
            self.child.kill().unwrap();
            self.child.wait().unwrap();
        }
    }

    impl Drop for Populated {
        fn drop(&mut self) {
            self.empty();
            self.dir.ancestors().take(3).for_each(|dir| drop(fs::remove_dir(dir)));
        }
    }

    #[test]
    fn a_task_in_whose_cgroup_something_lives_is_not_touched() {
        if !is_root() {
            return;
        }
        let scene = Scene::new();
        let mut cgroup = Populated::new("t");
        scene.over_with("t", OLD, |_| {}, [led("boot", Some(&cgroup.dir))]);
        let file = scene.file("t", "file", 1);

        let error = remove_all(&scene, "t").unwrap_err();

        assert_eq!(error.to_string(), format!("{} is not empty", cgroup.dir.display()));
        assert!(file.exists());
        cgroup.empty();
        remove_all(&scene, "t").unwrap();
        assert!(scene.is_gone("t"));
    }

    /// Attack 19: depth 10⁴, with few descriptors and no stack for each level.
    #[test]
    fn a_sandbox_ten_thousand_deep_is_erased() {
        alone(|| {
            let scene = Scene::of_many_files();
            scene.over("t", OLD);
            fs::create_dir(scene.sandbox("t")).unwrap();
            deepen(&scene.sandbox("t"), 10_000);
            let few = nix::sys::resource::Resource::RLIMIT_NOFILE;
            nix::sys::resource::setrlimit(few, 24, 24).unwrap();

            let erased = scene.erase("t").unwrap();

            assert_eq!(erased.inodes, 20_001);
            assert!(!scene.sandbox("t").exists());
        });
    }

    /// Attack 19: very many files, in slices: whoever asked for it can stop it in between, and go on later.
    #[test]
    fn a_hundred_thousand_files_are_erased_in_slices_and_it_can_be_gone_on_with() {
        let scene = Scene::of_many_files();
        let id = scene.over("t", OLD);
        for n in 0..100 {
            fs::create_dir_all(scene.sandbox("t").join(n.to_string())).unwrap();
            for m in 0..1000 {
                File::create(scene.sandbox("t").join(format!("{n}/{m}"))).unwrap();
            }
        }
        let removal = Removal::begin(&scene.root, &id).unwrap().unwrap();
        let used = Used::default();
        let mut slices = 0;

        let stopped = removal.erase(Parts::ALL, &used, &mut || {
            slices += 1;
            slices < 50
        });

        assert!(matches!(stopped, Err(RemoveError::Stopped)), "{stopped:?}");
        assert!(scene.sandbox("t").exists());
        let mut more = 0;
        let erased = removal.erase(Parts::ALL, &used, &mut || {
            more += 1;
            true
        });
        assert!(erased.unwrap().inodes > 10_000 && more > 20, "{more} slices");
        assert!(!scene.sandbox("t").exists());
    }

    /// Attack 19: a live bind mount, of a directory, of a file, and at the sandbox itself.
    #[test]
    fn what_is_mounted_in_a_sandbox_is_told_and_stays() {
        if !is_root() {
            return;
        }
        alone(|| {
            unshare_mounts();
            let scene = Scene::new();
            let victim = scene.path("victim");
            fs::create_dir(&victim).unwrap();
            fs::write(victim.join("file"), "kept").unwrap();
            scene.over("t", OLD);
            let (dir, file) = (scene.sandbox("t").join("dir"), scene.file("t", "file", 0));
            let other = scene.file("t", "deep/other", 1);
            fs::create_dir(&dir).unwrap();
            let none: Option<&str> = None;
            let bind = |from: &Path, to: &Path| {
                mount(Some(from), to, none, MsFlags::MS_BIND, none).unwrap();
            };
            bind(&victim, &dir);
            bind(&victim.join("file"), &file);

            let error = remove_all(&scene, "t").unwrap_err();

            assert!(matches!(error, RemoveError::Mounted { count: 2, .. }), "{error:?}");
            assert_eq!(fs::read(victim.join("file")).unwrap(), b"kept");
            assert!(!other.parent().unwrap().exists(), "the rest is erased");
            assert_eq!(scene.ids(), ["t"]);
            umount(&dir).unwrap();
            umount(&file).unwrap();
            bind(&victim, &scene.sandbox("t"));
            let error = remove_all(&scene, "t").unwrap_err();
            let text =
                format!("something is mounted at {}; unmount it", scene.sandbox("t").display());
            assert_eq!(error.to_string(), text);
            umount(&scene.sandbox("t")).unwrap();
            remove_all(&scene, "t").unwrap();
            assert!(scene.is_gone("t") && victim.join("file").exists());
        });
    }

    /// Attack 19: an immutable file, and one in a directory that is append-only.
    #[test]
    fn what_is_immutable_is_told_and_the_rest_is_erased() {
        if !is_root() {
            return;
        }
        let scene = Scene::new();
        scene.over("t", OLD);
        let other = scene.file("t", "a/other", 1);
        let file = scene.file("t", "b/immutable", 1);
        let dir = scene.file("t", "c/in", 1).parent().unwrap().to_owned();
        if !chattr("+i", &file) {
            return eprintln!("left out: {} knows no attributes", file.display());
        }
        assert!(chattr("+a", &dir));

        let error = remove_all(&scene, "t");

        assert!(chattr("-i", &file) && chattr("-a", &dir));
        let error = error.unwrap_err();
        assert!(matches!(error, RemoveError::Immutable { count: 2.., .. }), "{error:?}");
        assert!(file.exists() && dir.join("in").exists());
        assert!(!other.parent().unwrap().exists());
        assert_eq!(scene.ids(), ["t"], "it can be removed again");
        remove_all(&scene, "t").unwrap();
        assert!(scene.is_gone("t"));
    }

    /// As a task may leave them that ran as the user who dewar is: modules of Go are read-only.
    #[test]
    fn directories_of_an_ordinary_user_that_were_closed_are_opened_up() {
        if !is_root() {
            return;
        }
        alone(|| {
            let temp = TempDir::new();
            fs::set_permissions(temp.path(), PermissionsExt::from_mode(0o777)).unwrap();
            become_ordinary();
            let scene = Scene::in_dir(temp);
            scene.over("t", OLD);
            for dir in ["a/b", "c"] {
                scene.file("t", &format!("{dir}/file"), 1);
            }
            for (dir, mode) in [("a/b", 0o555), ("a", 0o500), ("c", 0), ("", 0)] {
                let dir = scene.sandbox("t").join(dir);
                fs::set_permissions(dir, PermissionsExt::from_mode(mode)).unwrap();
            }

            remove_all(&scene, "t").unwrap();

            assert!(scene.is_gone("t"));
        });
    }

    /// Attack 19: files that are still open.
    #[test]
    fn a_file_that_is_still_open_is_removed_and_can_be_read_on() {
        let scene = Scene::new();
        scene.over("t", OLD);
        let path = scene.file("t", "log", 0);
        let mut file = File::options().read(true).append(true).open(&path).unwrap();

        remove_all(&scene, "t").unwrap();

        file.write_all(b"more").unwrap();
        let mut read = String::new();
        std::io::Seek::rewind(&mut file).unwrap();
        file.read_to_string(&mut read).unwrap();
        assert_eq!(read, "more");
        assert!(scene.is_gone("t"));
    }

    /// Attack 14: directories are exchanged with a link to somebody's all the time.
    #[test]
    fn what_a_directory_is_swapped_for_is_not_touched() {
        let scene = Scene::of_many_files();
        let victim = scene.path("victim");
        fs::create_dir(&victim).unwrap();
        (0..50).for_each(|n| fs::write(victim.join(format!("f{n}")), "").unwrap());
        for n in 0..40 {
            let id = format!("t{n}");
            scene.over(&id, OLD);
            let dir = scene.sandbox(&id).join("dir");
            (0..50).for_each(|n| drop(scene.file(&id, &format!("dir/{n}/f"), 1)));
            let link = scene.path(&format!("link{n}"));
            symlink(&victim, &link).unwrap();
            let swap = || {
                let _ = renameat2(AT_FDCWD, &dir, AT_FDCWD, &link, RenameFlags::RENAME_EXCHANGE);
            };

            while_disturbed(swap, || {
                let _ = remove_all(&scene, &id);
            });

            assert_eq!(fs::read_dir(&victim).unwrap().count(), 50);
        }
    }

    /// It ends, whatever is added meanwhile, and what was added is removed by a later try.
    #[test]
    fn a_sandbox_that_grows_while_it_is_erased_ends_the_try_and_not_the_task() {
        let scene = Scene::new();
        scene.over("t", OLD);
        let dir = scene.file("t", "dir/first", 1).parent().unwrap().to_owned();
        let number = AtomicU64::new(0);
        let grow = || {
            let n = number.fetch_add(1, Ordering::Relaxed);
            let _ = fs::create_dir(&dir);
            let _ = fs::write(dir.join(n.to_string()), "");
        };

        while_disturbed(grow, || {
            if let Err(error) = remove_all(&scene, "t") {
                let is_growth = matches!(error, RemoveError::Growing(_) | RemoveError::Left { .. });
                assert!(is_growth, "{error:?}");
                assert_eq!(scene.ids(), ["t"]);
            }
        });

        remove_all(&scene, "t").unwrap();
        assert!(scene.ids().is_empty());
    }

    /// What a crash leaves between the last entry of a task and its stream.
    #[test]
    fn the_stream_of_a_forgotten_task_is_swept_and_no_other() {
        let scene = Scene::new();
        let id = scene.over("t", OLD);
        Removal::begin(&scene.root, &id).unwrap().unwrap().forget().unwrap();
        // This one was not being forgotten.
        let odd = scene.over("o", OLD);
        fs::remove_file(scene.root.task(Place::Finished, &odd)).unwrap();
        scene.over("u", OLD);
        scene.active("v", OLD, |_| {}, []);
        // Somebody is about to accept it.
        let held = id_of("w");
        scene.root.create_checkpoint(&held).unwrap();
        let writer = Writer::create(&scene.root, Identity::runner(held.clone())).unwrap();
        scene.root.create_checkpoint(&id_of("x")).unwrap();

        assert_eq!(sweep(&scene.root).unwrap(), 2);

        assert!(scene.is_gone("t") && scene.is_gone("x"));
        assert!(["o", "u", "v", "w"].iter().all(|id| scene.root.runner(&id_of(id)).exists()));
        drop(writer);
    }

    /// A directory that is empty may be somebody's who is about to put a stream there.
    #[test]
    fn a_launch_does_not_notice_that_empty_directories_are_swept() {
        let scene = Scene::of_many_files();
        let id = scene.over("t", OLD);
        let launched = Over::read(&scene.root, &id).unwrap().launch.unwrap();
        let (current, swept) = (AtomicU64::new(0), AtomicU64::new(u64::MAX));
        let nth = |n: u64| id_of(&format!("n{n}"));
        // As another process does it, once for each: a launch of this one would be waited for.
        let sweep = || {
            let n = current.load(Ordering::Relaxed);
            let path = scene.root.checkpoint(&nth(n));
            if swept.load(Ordering::Relaxed) != n && fs::remove_dir(path).is_ok() {
                swept.store(n, Ordering::Relaxed);
            }
        };

        while_disturbed(sweep, || {
            for n in 0..200 {
                current.store(n, Ordering::Relaxed);
                let id = nth(n);
                let next = Launch { task_id: id.to_string(), ..launched.clone() };
                assert_eq!(launch::accept(&scene.root, &id, &next).unwrap(), Accepted::New);
                assert!(scene.root.runner(&id).exists());
            }
        });
    }
}
