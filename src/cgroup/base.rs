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

use super::controllers::{self, Controller, Usable};
use super::dir::Dir;
use super::group::own_pids;
use super::host::{Mounts, Seat, Unseated};
use super::{Applied, CgroupError, TaskCgroup, limits};
use crate::sys::xattr;
use crate::task::{Resources, TaskId, TaskSpec};

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
        CgroupError::NotCgroup2(_) | CgroupError::Sys { errno: Errno::ENOTDIR, .. } => {
            FindError::NotCgroup2(path.to_owned())
        }
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
        // We moved here before, or systemd (254) put us here: `DelegateSubgroup=supervisor`.
        Some(parent)
            if own.path().ends_with(SUPERVISOR) && (parent.has(TASKS) || is_marked(&parent)) =>
        {
            parent
        }
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

    /// Enables for tasks those controllers that every task gets, and says why not where the host does not give one. Cheap to ask
    /// again: another manager may have changed something.
    pub fn enable_controllers(&self) -> Usable {
        self.enable(&Controller::ALWAYS)
    }

    /// Enables `controllers` for tasks.
    pub(super) fn enable(&self, controllers: &[Controller]) -> Usable {
        // The root of the hierarchy belongs to no other manager; what is between is not ours.
        let root = self.dir.parent().filter(|parent| !parent.has("cgroup.events"));
        let mut chain: Vec<&Dir> = root.iter().collect();
        chain.extend([&self.dir, &self.tasks]);
        controllers::enable(&chain, controllers)
    }

    /// Makes the cgroup of task `id`, with the controllers that every task gets, or opens it.
    ///
    /// # Errors
    ///
    /// [`CgroupError::Reserved`]; [`CgroupError::Sys`].
    pub fn task(&self, id: &TaskId) -> Result<TaskCgroup, CgroupError> {
        self.task_that_asks_for(id, None)
    }

    fn task_that_asks_for(
        &self,
        id: &TaskId,
        wanted: Option<&Resources>,
    ) -> Result<TaskCgroup, CgroupError> {
        self.enable_controllers();
        TaskCgroup::create(&self.tasks, id.as_str(), wanted)
    }

    /// Makes the cgroup of task `id`, or opens it, with the limits of `spec` on the task and the controllers that its runs need.
    ///
    /// # Errors
    ///
    /// As [`Base::task`] and [`Cgroup::apply`].
    pub fn task_for(
        &self,
        id: &TaskId,
        spec: &TaskSpec,
    ) -> Result<(TaskCgroup, Applied), CgroupError> {
        let limits = spec.resources.as_ref();
        let task = self.task_that_asks_for(id, limits)?;
        let applied = limits.map(|limits| task.limit(limits, "resources")).transpose()?;
        let of_runs = spec.processes.iter().filter_map(|process| process.resources.as_deref());
        task.enable_beneath(&limits::extra_controllers_of(of_runs));
        Ok((task, applied.unwrap_or_default()))
    }

    /// The cgroup of all tasks.
    pub(super) fn tasks(&self) -> &Dir {
        &self.tasks
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

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, symlink};
    use std::sync::Barrier;

    use nix::unistd::chown;

    use super::*;
    use crate::cgroup::scratch::{Scratch, fresh_path, mount_point, rerun};

    const PROBE: &str = "cgroup::base::tests::probe";
    const NOBODY: u32 = 65534;
    const AS_NOBODY: &str = "setpriv --reuid 65534 --regid 65534 --clear-groups";
    const WEAKER: &str = "or run with `--cgroup none`, which is weaker";

    /// Finds a base in a process of its own, and says which or why not.
    #[test]
    #[ignore = "run by other tests, somewhere else or as somebody else"]
    fn probe() {
        let options = Options { explicit: env::var_os("PROBE_BASE").map(PathBuf::from) };
        match find(&options) {
            Ok(base) => {
                let is_supervisor = own_pids(&base.supervisor).unwrap().contains(&Pid::this());
                let place = if is_supervisor { "inside" } else { "outside" };
                println!("\nprobe: {}, {place}", base.path().display());
            }
            Err(error) => println!("\nprobe: {error}"),
        }
    }

    /// Runs [`probe`] by a shell in the cgroup at `home`, and returns what it says.
    fn probe_in(scratch: &Scratch, home: &Path, before: &str, with: &str) -> String {
        let mut found = probes_in(scratch, home, before, with);
        assert_eq!(found.len(), 1);
        found.remove(0)
    }

    /// The same where `with` runs it more than once.
    fn probes_in(scratch: &Scratch, home: &Path, before: &str, with: &str) -> Vec<String> {
        let output = scratch.inhabit(home, &rerun(before, with, PROBE)).rest();
        let found = output.lines().filter_map(|line| line.strip_prefix("probe: "));
        let found: Vec<_> = found.map(str::to_owned).collect();
        assert!(!found.is_empty(), "the probe did not run: {output}");
        found
    }

    fn explicit_options(path: &Path) -> Options {
        Options { explicit: Some(path.to_owned()) }
    }

    fn refusal(path: impl AsRef<Path>) -> String {
        find(&explicit_options(path.as_ref())).unwrap_err().to_string()
    }

    fn mark(dir: &Dir) {
        xattr::set(dir.as_fd(), DELEGATED, b"1").unwrap();
    }

    /// Gives a cgroup to an ordinary user, as cgroup-v2.rst says ("Model of Delegation").
    fn give_away(dir: &Dir) {
        let user = Some(Uid::from_raw(NOBODY));
        for file in ["", "cgroup.procs", "cgroup.subtree_control", "cgroup.threads"] {
            chown(&dir.path().join(file), user, None).unwrap();
        }
    }

    /// A directory outside of any cgroup; removed when dropped.
    struct Outside(PathBuf);

    impl Outside {
        fn new() -> Self {
            let name = fresh_path().file_name().unwrap().to_owned();
            let path = env::temp_dir().join(name);
            fs::create_dir(&path).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
            Self(path)
        }
    }

    impl Drop for Outside {
        fn drop(&mut self) {
            fs::remove_dir_all(&self.0).unwrap();
        }
    }

    #[test]
    fn a_named_base_is_made_and_then_found_again() {
        let scratch = Scratch::new();
        let path = scratch.dir().path().join("mine");

        for _ in 0..2 {
            let base = find(&explicit_options(&path)).unwrap();

            assert_eq!(base.path(), path);
            assert!(path.join("supervisor/cgroup.procs").exists());
            assert!(path.join("tasks/cgroup.procs").exists());
        }
    }

    /// Many processes of dewar start at the same time.
    #[test]
    fn whoever_races_to_make_a_base_has_the_same_one() {
        let scratch = Scratch::new();
        for round in 0..25 {
            let path = scratch.dir().path().join(format!("race{round}"));
            let barrier = Barrier::new(8);

            std::thread::scope(|scope| {
                for _ in 0..8 {
                    scope.spawn(|| {
                        barrier.wait();
                        let base = find(&explicit_options(&path)).unwrap();
                        base.task(&TaskId::new("same").unwrap()).unwrap();
                    });
                }
            });
        }
    }

    #[test]
    fn a_relative_base_is_refused() {
        let text = "--cgroup-base dewar: the path of a cgroup begins with `/`";
        assert_eq!(refusal("dewar"), text);
    }

    /// A link that somebody planted leads nowhere, as the last or as an earlier part of the path.
    #[test]
    fn a_base_behind_a_symbolic_link_is_refused_and_nothing_is_made() {
        let scratch = Scratch::new();
        let target = scratch.dir().create("target").unwrap();
        let outside = Outside::new();
        let link = outside.0.join("link");
        symlink(target.path(), &link).unwrap();

        for path in [link.clone(), link.join("beneath")] {
            let text = format!(
                "--cgroup-base {}: leads over a symbolic link; give the path that it leads to",
                path.display()
            );
            assert_eq!(refusal(&path), text);
        }
        assert!(!target.path().join(SUPERVISOR).exists());
        assert!(!target.path().join("beneath").exists());
    }

    /// attack 56: a directory, and a v1 hierarchy where the host has one.
    #[test]
    fn a_base_outside_of_cgroup_v2_is_refused_and_nothing_is_made() {
        let outside = Outside::new();
        let new = outside.0.join("new");

        let text = |path: &Path| {
            format!("--cgroup-base {}: is not in a cgroup v2 hierarchy", path.display())
        };
        assert_eq!(refusal(&outside.0), text(&outside.0));
        assert_eq!(refusal(&new), text(&new));
        assert_eq!(refusal("/proc/version"), text(Path::new("/proc/version")));
        assert!(!new.exists());
        assert!(!outside.0.join(SUPERVISOR).exists());
    }

    #[test]
    fn a_base_whose_parent_is_missing_is_refused() {
        let path = fresh_path();
        let text = format!("open {}", path.display());
        assert_eq!(refusal(path.join("deeper")), text);
        assert!(!path.exists());
    }

    /// attack 58: no domain can be made beneath a threaded cgroup.
    #[test]
    fn a_threaded_base_is_refused() {
        let scratch = Scratch::new();
        let threads = scratch.dir().create("domain").unwrap().create("threads").unwrap();
        threads.write("cgroup.type", "threaded").unwrap();

        let text = format!(
            "{}/tasks is in a threaded part of the hierarchy (domain invalid), where no task can \
             be held; name another cgroup with `--cgroup-base`",
            threads.path().display()
        );
        assert_eq!(refusal(threads.path()), text);
    }

    #[test]
    fn who_is_in_the_named_base_moves_to_its_supervisor() {
        let scratch = Scratch::new();
        let home = scratch.dir().create("home").unwrap();
        let path = home.path().display();

        let found = probe_in(&scratch, home.path(), &format!("export PROBE_BASE='{path}'"), "");

        assert_eq!(found, format!("{path}, inside"));
    }

    #[test]
    fn root_outside_of_the_named_base_stays_where_it_is() {
        let scratch = Scratch::new();
        let home = scratch.dir().create("home").unwrap();
        let base = scratch.dir().path().join("named");
        let before = format!("export PROBE_BASE='{}'", base.display());

        let found = probe_in(&scratch, home.path(), &before, "");

        assert_eq!(found, format!("{}, outside", base.display()));
    }

    #[test]
    fn root_on_a_bare_host_has_dewar_at_the_top() {
        let scratch = Scratch::new();
        let home = scratch.dir().create("home").unwrap();

        let found = probe_in(&scratch, home.path(), "", "");

        assert_eq!(found, format!("{}/dewar, outside", mount_point().display()));
    }

    #[test]
    fn a_cgroup_that_a_service_manager_marked_is_the_base_and_is_found_again() {
        let scratch = Scratch::new();
        let unit = scratch.dir().create("dewar.service").unwrap();
        mark(&unit);
        let expected = format!("{}, inside", unit.path().display());

        assert_eq!(probe_in(&scratch, unit.path(), "", ""), expected);

        let supervisor = unit.path().join(SUPERVISOR);
        assert_eq!(probe_in(&scratch, &supervisor, "", ""), expected);
    }

    /// attack 60: started anew by systemd while tasks run, which fills the unit's own cgroup never.
    #[test]
    fn who_is_started_in_the_supervisor_of_a_marked_cgroup_has_that_one() {
        let scratch = Scratch::new();
        let unit = scratch.dir().create("dewar.service").unwrap();
        mark(&unit);
        let supervisor = unit.create(SUPERVISOR).unwrap();

        let found = probe_in(&scratch, supervisor.path(), "", "");

        assert_eq!(found, format!("{}, inside", unit.path().display()));
    }

    /// attack 59: what a run starts ends with the run, be it dewar.
    #[test]
    fn dewar_in_a_leaf_of_dewar_builds_inside_of_the_leaf() {
        let scratch = Scratch::new();
        let leaf = scratch.leaf();

        let found = probe_in(&scratch, leaf.path(), "", "");

        assert_eq!(found, format!("{}, inside", leaf.path().display()));
        leaf.remove().unwrap();
    }

    /// A container with a cgroup namespace of its own.
    #[test]
    fn a_private_namespace_gives_its_root() {
        let scratch = Scratch::new();
        let home = scratch.dir().create("container").unwrap();
        let outside = Outside::new();
        let mount = outside.0.display();
        // From the root itself, from there once more, and from where a process was moved before.
        let with = format!(
            "unshare --cgroup --mount sh -c 'mount -t cgroup2 none {mount} && \"$0\" \"$@\" && \
             \"$0\" \"$@\" && echo 0 >{mount}/supervisor/cgroup.procs && exec \"$0\" \"$@\"'"
        );

        let found = probes_in(&scratch, home.path(), "", &with);

        assert_eq!(found, [(); 3].map(|()| format!("{mount}, inside")));
        assert!(home.path().join("supervisor").exists());
    }

    /// attack 59: a namespace in which nothing was mounted anew.
    #[test]
    fn a_hierarchy_of_another_namespace_is_out_of_sight() {
        let scratch = Scratch::new();
        let home = scratch.dir().create("container").unwrap();

        let found = probe_in(&scratch, home.path(), "", "unshare --cgroup");

        let text = format!(
            "our own cgroup / is not in what is mounted at {}; mount cgroup2 anew inside this \
             container, name a cgroup with `--cgroup-base`, {WEAKER}",
            mount_point().display()
        );
        assert_eq!(found, text);
    }

    /// attack 57: found out by doing, also where all directories are there from before.
    #[test]
    fn a_read_only_mount_is_refused() {
        let scratch = Scratch::new();
        let mount = mount_point();
        let home = scratch.dir().create("home").unwrap();
        let with = format!(
            "unshare --mount sh -c 'mount -o remount,bind,ro {} && exec \"$0\" \"$@\"'",
            mount.display()
        );
        let advice = format!(
            "is on a read-only mount; mount cgroup2 writable (in a container: a private cgroup \
             namespace with a writable /sys/fs/cgroup), {WEAKER}"
        );
        let name = |base: &Path| format!("export PROBE_BASE='{}'", base.display());

        let new = scratch.dir().path().join("new");
        let found = probe_in(&scratch, home.path(), &name(&new), &with);
        assert_eq!(found, format!("{} {advice}", new.display()));

        let old = scratch.dir().path();
        let found = probe_in(&scratch, home.path(), &name(old), &with);
        assert_eq!(found, format!("{}/cgroup.procs {advice}", old.display()));
    }

    /// attack 56: the same host without its v2 mount.
    #[test]
    fn a_host_without_v2_is_refused_with_what_it_has() {
        let scratch = Scratch::new();
        let home = scratch.dir().create("home").unwrap();
        let mount = mount_point();
        let with =
            format!("unshare --mount sh -c 'umount {} && exec \"$0\" \"$@\"'", mount.display());

        let found = probe_in(&scratch, home.path(), "", &with);

        let head = "no cgroup v2 hierarchy is mounted here (found: ";
        let tail = format!("); mount one with `mount -t cgroup2 none DIRECTORY`, {WEAKER}");
        let what = found.strip_prefix(head).and_then(|rest| rest.strip_suffix(tail.as_str()));
        let what = what.unwrap_or_else(|| panic!("{found}"));
        assert!(what.starts_with("only cgroup v1: /") || what == "no cgroup file system at all");
    }

    fn not_delegated(own: &Path, why: &str) -> String {
        format!(
            "user 65534 was given no cgroup of its own: this process is in {}, {why}; start it \
             with `systemd-run --user --scope -p Delegate=yes -- dewar …` or from a unit with \
             `Delegate=yes`, have root give a cgroup away and name it with `--cgroup-base`, {WEAKER}",
            own.display()
        )
    }

    /// S41.
    #[test]
    fn an_ordinary_user_in_a_cgroup_of_root_is_told_what_to_do() {
        let scratch = Scratch::new();
        let home = scratch.dir().create("session.scope").unwrap();

        let found = probe_in(&scratch, home.path(), "", AS_NOBODY);

        assert_eq!(found, not_delegated(home.path(), "which belongs to another user"));
        assert!(!home.path().join(SUPERVISOR).exists());
    }

    #[test]
    fn an_ordinary_user_at_the_top_of_the_hierarchy_is_told_what_to_do() {
        let scratch = Scratch::new();

        let found = probe_in(&scratch, &mount_point(), "", AS_NOBODY);

        assert_eq!(found, not_delegated(&mount_point(), "the root of the hierarchy"));
    }

    /// S41: delegated already.
    #[test]
    fn an_ordinary_user_in_a_cgroup_of_its_own_uses_it_and_finds_it_again() {
        let scratch = Scratch::new();
        let home = scratch.dir().create("given").unwrap();
        give_away(&home);
        let expected = format!("{}, inside", home.path().display());

        assert_eq!(probe_in(&scratch, home.path(), "", AS_NOBODY), expected);

        let supervisor = home.path().join(SUPERVISOR);
        assert_eq!(probe_in(&scratch, &supervisor, "", AS_NOBODY), expected);
    }

    /// All beneath `user@UID.service` belongs to the user, and still was not given to dewar.
    #[test]
    fn a_cgroup_of_the_users_systemd_is_taken_only_if_it_was_asked_for() {
        let scratch = Scratch::new();
        let manager = scratch.dir().create("user@65534.service").unwrap();
        let home = manager.create("terminal.scope").unwrap();
        give_away(&home);
        let expected = format!("{}, inside", home.path().display());

        let found = probe_in(&scratch, home.path(), "", AS_NOBODY);
        let why = "which the user's systemd did not delegate";
        assert_eq!(found, not_delegated(home.path(), why));

        let guard = format!("export {SCOPE_GUARD}=1");
        assert_eq!(probe_in(&scratch, home.path(), &guard, AS_NOBODY), expected);

        mark(&home);
        assert_eq!(probe_in(&scratch, home.path(), "", AS_NOBODY), expected);
    }

    /// attack 57: a foreign owner.
    #[test]
    fn an_ordinary_user_cannot_name_a_base_of_root() {
        let scratch = Scratch::new();
        let base = scratch.dir().create("roots").unwrap();
        let path = base.path().display();
        let before = format!("export PROBE_BASE='{path}'");

        let found = probe_in(&scratch, base.path(), &before, AS_NOBODY);

        let text = format!(
            "{path}/supervisor cannot be written; name a cgroup that was given to this user with \
             `--cgroup-base`, {WEAKER}"
        );
        assert_eq!(found, text);
    }

    /// cgroup-v2.rst, "Delegation Containment".
    #[test]
    fn an_ordinary_user_cannot_enter_its_own_base_from_outside() {
        let scratch = Scratch::new();
        let base = scratch.dir().create("given").unwrap();
        give_away(&base);
        let path = base.path().display();
        let before = format!("export PROBE_BASE='{path}'");

        let found = probe_in(&scratch, &mount_point(), &before, AS_NOBODY);

        let text = format!(
            "this process cannot move from its own cgroup to {path}/supervisor: an ordinary user \
             moves only within what was given to it; start dewar from a process that is in {path} \
             already, {WEAKER}"
        );
        assert_eq!(found, text);
        let inside = probe_in(&scratch, base.path(), &before, AS_NOBODY);
        assert_eq!(inside, format!("{path}, inside"));
    }

    #[test]
    fn a_scope_is_asked_for_once_and_where_there_is_a_systemd() {
        let outside = Outside::new();
        let exe = Path::new("/usr/bin/dewar");
        let args = ["run".into(), "a file.yaml".into()];
        assert!(scope_command(&outside.0, false, exe, &args).is_none());
        fs::create_dir(outside.0.join("systemd")).unwrap();
        fs::write(outside.0.join("systemd/private"), "").unwrap();

        let command = scope_command(&outside.0, false, exe, &args).unwrap();

        let line: Vec<_> =
            std::iter::once(command.get_program()).chain(command.get_args()).collect();
        let head = ["systemd-run", "--user", "--scope", "--quiet", "-p", "Delegate=yes", "--"];
        assert_eq!(line[..head.len()], head);
        assert_eq!(line[head.len()..], ["/usr/bin/dewar", "run", "a file.yaml"]);
        let guard = (OsStr::new(SCOPE_GUARD), Some(OsStr::new("1")));
        assert_eq!(command.get_envs().collect::<Vec<_>>(), [guard]);
        assert!(scope_command(&outside.0, true, exe, &args).is_none());
    }
}
