//! The base: the one cgroup in which this dewar makes all its others, and how it is found.

use std::env;
use std::ffi::{CStr, OsStr, OsString};
use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};
use std::process::Command;

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::sys::stat::fstat;
use nix::unistd::{Pid, Uid};

use super::controllers::{self, Usable};
use super::dir::Dir;
use super::group::own_pids;
use super::host::{Mounts, Seat, Unseated};
use super::{CgroupError, TaskCgroup};
use crate::sys::xattr;
use crate::task::TaskId;

/// Attribute by which systemd (251) marks a cgroup that it delegated; its value is `1`.
pub(super) const DELEGATED: &CStr = c"user.delegate";

/// The same of older versions of systemd, which only root may read.
const DELEGATED_TRUSTED: &CStr = c"trusted.delegate";

/// Name of the cgroup of tasks in a base.
pub(super) const TASKS: &str = "tasks";

/// Name of the cgroup of our own processes in a base.
const SUPERVISOR: &str = "supervisor";

/// Name of the base of root on a bare host.
const BARE: &str = "dewar";

/// Environment variable that is set in a scope which we asked systemd for, so that we ask once.
pub const SCOPE_GUARD: &str = "DEWAR_SCOPE";

/// How to find the base.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// `--cgroup-base`: this cgroup and no other. It is made if only its last part is missing.
    pub explicit: Option<PathBuf>,
}

/// Why there is no base. Each says what was found and what to do.
#[derive(Debug, thiserror::Error)]
pub enum FindError {
    /// There is no cgroup v2.
    #[error(
        "no cgroup v2 hierarchy is mounted here (found: {0}); mount one with `mount -t cgroup2 none DIRECTORY`, or run with `--cgroup none`, which is weaker"
    )]
    NoCgroup2(String),
    /// There is, but we are not in what can be seen of it.
    #[error("our own cgroup {} is not in what is mounted at {}; mount cgroup2 anew inside this container, name a cgroup with `--cgroup-base`, or run with `--cgroup none`, which is weaker", own.display(), mount.display())]
    OutOfSight {
        /// Our own cgroup, as the kernel names it.
        own: PathBuf,
        /// Where the hierarchy is mounted.
        mount: PathBuf,
    },
    /// An ordinary user without a cgroup of its own.
    #[error("user {uid} was given no cgroup of its own: this process is in {}, {why}; start it with `systemd-run --user --scope -p Delegate=yes -- dewar …` or from a unit with `Delegate=yes`, have root give a cgroup away and name it with `--cgroup-base`, or run with `--cgroup none`, which is weaker", own.display())]
    NotDelegated {
        /// Our user id.
        uid: Uid,
        /// Our own cgroup.
        own: PathBuf,
        /// What is wrong with it.
        why: &'static str,
    },
    /// The hierarchy is mounted to be read.
    #[error("{} is on a read-only mount; mount cgroup2 writable (in a container: a private cgroup namespace with a writable /sys/fs/cgroup), or run with `--cgroup none`, which is weaker", .0.display())]
    ReadOnly(PathBuf),
    /// The kernel lets us not write there.
    #[error("{} cannot be written; name a cgroup that was given to this user with `--cgroup-base`, or run with `--cgroup none`, which is weaker", path.display())]
    NotWritable {
        /// What could not be written or made.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        errno: Errno,
    },
    /// `--cgroup-base` is relative.
    #[error("--cgroup-base {}: the path of a cgroup begins with `/`", .0.display())]
    Relative(PathBuf),
    /// `--cgroup-base` leads over a symbolic link.
    #[error("--cgroup-base {}: leads over a symbolic link; give the path that it leads to", .0.display())]
    Symlink(PathBuf),
    /// `--cgroup-base` is not in a cgroup v2 hierarchy.
    #[error("--cgroup-base {}: is not in a cgroup v2 hierarchy", .0.display())]
    NotCgroup2(PathBuf),
    /// We may make cgroups there, but not move to them.
    #[error("this process cannot move from its own cgroup to {}: an ordinary user moves only within what was given to it; start dewar from a process that is in {} already, or run with `--cgroup none`, which is weaker", .0.display(), .0.parent().unwrap_or(.0).display())]
    CannotEnter(PathBuf),
    /// No domain of processes can be made beneath it.
    #[error("{} is in a threaded part of the hierarchy ({kind}), where no task can be held; name another cgroup with `--cgroup-base`", path.display())]
    Threaded {
        /// The cgroup.
        path: PathBuf,
        /// What its `cgroup.type` says.
        kind: String,
    },
    /// There is no `cgroup.kill`.
    #[error("{} has no cgroup.kill: Linux 5.14 or newer is needed; or run with `--cgroup none`, which is weaker", .0.display())]
    TooOld(PathBuf),
    /// Something about ourselves could not be read.
    #[error("read {path}")]
    Proc {
        /// The file.
        path: &'static str,
        /// What the kernel said.
        #[source]
        error: io::Error,
    },
    /// Anything else.
    #[error(transparent)]
    Cgroup(#[from] CgroupError),
}

/// The cgroup in which all others are made.
#[derive(Debug)]
pub struct Base {
    dir: Dir,
    supervisor: Dir,
    tasks: Dir,
}

/// Finds the base and makes it ready: `supervisor` and `tasks` are there, and can be used.
///
/// In this order: the one that `options` name; the cgroup that a service manager or a container gave
/// to us; as root `dewar` at the top of the hierarchy. Whether it can be used is found out by using
/// it. Any number of processes may do this at the same time.
///
/// A base holds no process itself (cgroup-v2.rst, "No Internal Process Constraint"): if we are in
/// it, we move to its `supervisor`.
///
/// # Errors
///
/// [`FindError`].
pub fn find(options: &Options) -> Result<Base, FindError> {
    if let Some(path) = &options.explicit {
        return explicit(path);
    }
    let seat = seat()?;
    let uid = Uid::effective();
    match delegated(&seat, uid)? {
        Ok(dir) => Base::settle(dir, uid),
        Err(_) if uid.is_root() => {
            let top = Dir::open(&seat.mount)?;
            Base::settle(top.create(BARE).map_err(by_doing)?, uid)
        }
        Err(why) => Err(FindError::NotDelegated { uid, own: seat.own, why }),
    }
}

/// Where we are.
fn seat() -> Result<Seat, FindError> {
    let read = |path| fs::read(path).map_err(|error| FindError::Proc { path, error });
    let mounts = Mounts::parse(&read("/proc/self/mountinfo")?);
    mounts.seat(&read("/proc/self/cgroup")?).map_err(|unseated| match unseated {
        Unseated::NoCgroup2(found) => FindError::NoCgroup2(found),
        Unseated::OutOfSight { own, mount } => FindError::OutOfSight { own, mount },
    })
}

/// Opens the cgroup that the user named, or makes it in its parent.
fn explicit(path: &Path) -> Result<Base, FindError> {
    if !path.is_absolute() {
        return Err(FindError::Relative(path.to_owned()));
    }
    let named = |error| match error {
        CgroupError::Sys { errno: Errno::ELOOP, .. } => FindError::Symlink(path.to_owned()),
        CgroupError::NotCgroup2(_) => FindError::NotCgroup2(path.to_owned()),
        error => by_doing(error),
    };
    let dir = match (Dir::open(path), path.parent(), path.file_name().and_then(OsStr::to_str)) {
        (Err(CgroupError::Sys { errno: Errno::ENOENT, .. }), Some(parent), Some(name)) => {
            Dir::open(parent).and_then(|parent| parent.create(name))
        }
        (dir, ..) => dir,
    };
    Base::settle(dir.map_err(named)?, Uid::effective())
}

/// The cgroup that was given to us, or why ours was not.
fn delegated(seat: &Seat, uid: Uid) -> Result<Result<Dir, &'static str>, FindError> {
    let own = Dir::open(&seat.own)?;
    let dir = match own.parent() {
        Some(parent) if own.path().ends_with(SUPERVISOR) && parent.has(TASKS) => parent,
        _ => own,
    };
    if !dir.has("cgroup.events") {
        return Ok(Err("the root of the hierarchy"));
    }
    // The top of what is mounted, and not of the hierarchy: a container's own part of it, by a
    // cgroup namespace or by a bind mount.
    if dir.path() == seat.mount || is_marked(&dir) {
        return Ok(usable_by(&dir, uid).map(|()| dir));
    }
    if uid.is_root() {
        return Ok(Err("which was not delegated"));
    }
    Ok(usable_by(&dir, uid).and_then(|()| owned_by(&dir, uid)).map(|()| dir))
}

/// Whether a service manager marked `dir` as delegated.
fn is_marked(dir: &Dir) -> bool {
    [DELEGATED, DELEGATED_TRUSTED]
        .iter()
        .any(|name| xattr::get(dir.as_fd(), name, &mut [0; 8]) == Ok(b"1".as_slice()))
}

/// Whether an ordinary user may use `dir` as its own. For root, settling tells.
fn usable_by(dir: &Dir, uid: Uid) -> Result<(), &'static str> {
    let writable = dir.open_file("cgroup.procs", OFlag::O_WRONLY);
    match writable {
        Err(Errno::EACCES | Errno::EPERM) if !uid.is_root() => Err("which belongs to another user"),
        _ => Ok(()),
    }
}

/// Whether `dir` is the user's own, and not of the user's service manager, which made all cgroups in
/// `user@UID.service` and wants to be asked for one.
fn owned_by(dir: &Dir, uid: Uid) -> Result<(), &'static str> {
    if fstat(dir.as_fd()).map(|stat| stat.st_uid) != Ok(uid.as_raw()) {
        return Err("which belongs to another user");
    }
    let managers = format!("user@{uid}.service");
    let managed = dir.path().iter().any(|name| name == OsStr::new(&managers));
    if managed && env::var_os(SCOPE_GUARD).is_none() {
        return Err("which the user's systemd did not delegate");
    }
    Ok(())
}

/// Sorts out what a refusal means for where the base could be.
fn by_doing(error: CgroupError) -> FindError {
    match error {
        CgroupError::Sys { errno: Errno::EROFS, path, .. } => FindError::ReadOnly(path),
        CgroupError::Sys { errno: errno @ (Errno::EACCES | Errno::EPERM), path, .. } => {
            FindError::NotWritable { path, errno }
        }
        error => FindError::Cgroup(error),
    }
}

impl Base {
    /// Makes `dir` a base.
    fn settle(dir: Dir, uid: Uid) -> Result<Self, FindError> {
        let supervisor = dir.create(SUPERVISOR).map_err(by_doing)?;
        let tasks = dir.create(TASKS).map_err(by_doing)?;
        let base = Self { dir, supervisor, tasks };
        base.probe()?;
        base.enter(uid)?;
        Ok(base)
    }

    /// Makes sure that runs can be born and killed here. What was made by somebody else, or by us on
    /// a mount that has since become read-only, is there and may still be of no use.
    fn probe(&self) -> Result<(), FindError> {
        // For a birth the kernel asks for the right to write the common ancestor's cgroup.procs,
        // which is the base's (cgroup-v2.rst, "Delegation Containment").
        self.dir
            .open_file("cgroup.procs", OFlag::O_WRONLY)
            .map_err(|errno| by_doing(self.dir.error("open", "cgroup.procs", errno)))?;
        if !self.tasks.has("cgroup.kill") {
            return Err(FindError::TooOld(self.tasks.path().to_owned()));
        }
        let kind = self
            .tasks
            .read_text("cgroup.type")
            .map_err(|errno| self.tasks.error("read", "cgroup.type", errno))?;
        if kind != "domain" {
            return Err(FindError::Threaded { path: self.tasks.path().to_owned(), kind });
        }
        Ok(())
    }

    /// Moves ourselves to `supervisor` if we must be there: when we are in the base itself, and as
    /// an ordinary user always, since only from there may a run be born in `tasks`.
    ///
    /// Not for tidiness: a move costs some milliseconds where the machine is idle.
    fn enter(&self, uid: Uid) -> Result<(), FindError> {
        let us = Pid::this();
        let is_in = |dir: &Dir| own_pids(dir).map(|pids| pids.contains(&us));
        if !is_in(&self.dir)? && (uid.is_root() || is_in(&self.supervisor)?) {
            return Ok(());
        }
        match self.supervisor.write("cgroup.procs", "0") {
            Ok(()) => Ok(()),
            // ENOENT: the two cgroups have no ancestor that our namespace sees.
            Err(Errno::EACCES | Errno::EPERM | Errno::ENOENT) => {
                Err(FindError::CannotEnter(self.supervisor.path().to_owned()))
            }
            Err(errno) => Err(self.supervisor.error("write", "cgroup.procs", errno).into()),
        }
    }

    /// Absolute path; as `--cgroup-base` it finds this base again.
    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    /// Where daemon, runners and coordinators belong, for `clone3` with `CLONE_INTO_CGROUP`.
    pub fn supervisor(&self) -> BorrowedFd<'_> {
        self.supervisor.as_fd()
    }

    /// The names of all controllers that the host offers here.
    ///
    /// # Errors
    ///
    /// [`CgroupError::Sys`].
    pub fn available_controllers(&self) -> Result<Vec<String>, CgroupError> {
        let file = "cgroup.controllers";
        let text = self.dir.read_text(file).map_err(|errno| self.dir.error("read", file, errno))?;
        Ok(text.split_ascii_whitespace().map(str::to_owned).collect())
    }

    /// Enables for tasks whatever controllers dewar has a use for and the host gives, and says why
    /// not the others. Cheap to ask again: another manager may have changed something.
    pub fn enable_controllers(&self) -> Usable {
        // The root of the hierarchy belongs to no other manager; what is between is not ours.
        let root = self.dir.parent().filter(|parent| !parent.has("cgroup.events"));
        let mut chain: Vec<&Dir> = root.iter().collect();
        chain.extend([&self.dir, &self.tasks]);
        controllers::enable(&chain)
    }

    /// Makes the cgroup of task `id`, with all controllers that it can have, or opens it.
    ///
    /// # Errors
    ///
    /// [`CgroupError::Reserved`]; [`CgroupError::Sys`].
    pub fn task(&self, id: &TaskId) -> Result<TaskCgroup, CgroupError> {
        self.enable_controllers();
        TaskCgroup::create(&self.tasks, id)
    }
}

/// The command that starts us anew with `args` in a scope of the user's own systemd, delegated to
/// us; `None` if there is no such systemd, or if this is what it started.
pub fn systemd_scope_command(args: &[OsString]) -> Option<Command> {
    let runtime = env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from)?;
    let exe = env::current_exe().ok()?;
    scope_command(&runtime, env::var_os(SCOPE_GUARD).is_some(), &exe, args)
}

/// [`systemd_scope_command`] without the environment.
fn scope_command(
    runtime: &Path,
    is_in_scope: bool,
    exe: &Path,
    args: &[OsString],
) -> Option<Command> {
    if is_in_scope || !runtime.join("systemd/private").exists() {
        return None;
    }
    let mut command = Command::new("systemd-run");
    command.args(["--user", "--scope", "--quiet", "-p", "Delegate=yes", "--"]);
    command.arg(exe).args(args).env(SCOPE_GUARD, "1");
    Some(command)
}
