//! The cgroups of a task: its own, and a leaf for each run.

use std::ffi::OsStr;
use std::ops::Deref;
use std::os::fd::AsFd;
use std::path::Path;

use nix::errno::Errno;

use super::base::{DELEGATED, TASKS};
use super::dir::Dir;
use super::{Applied, Cgroup, CgroupError, Controller, Usable, controllers, limits};
use crate::sys::xattr;
use crate::task::{ProcessName, Resources, TaskId};

/// The leaf of one run: everything that it ever forks.
pub type Leaf = Cgroup;

/// The cgroup of a task; it holds leaves and no process of its own.
#[derive(Debug)]
pub struct TaskCgroup(Cgroup);

impl TaskCgroup {
    /// Makes the cgroup `name` in `tasks`, or opens it, for a task that asks for `wanted`: what it will be given is not given a
    /// default before.
    pub(super) fn create(
        tasks: &Dir,
        name: &str,
        wanted: Option<&Resources>,
    ) -> Result<Self, CgroupError> {
        let dir = tasks.create(name)?;
        // What cannot be enabled is named where a limit needs it: the leaf has no file for it.
        controllers::enable(&[&dir], &Controller::ALWAYS);
        if !wanted.is_some_and(limits::bounds_pids) {
            limits::bound_pids(&dir)?;
        }
        limits::bound_depth(&dir)?;
        Ok(Self(Cgroup::new(dir)?))
    }

    /// Enforces `resources`, found at `path`, on the task as a whole: [`Cgroup::apply`], after the controllers that only some tasks
    /// need were enabled. Works on a live task too; fields that are absent stay as they are.
    ///
    /// # Errors
    ///
    /// As [`Cgroup::apply`].
    pub fn limit(&self, resources: &Resources, path: &str) -> Result<Applied, CgroupError> {
        let usable = self.enable_around(&limits::extra_controllers(resources));
        self.limit_in(resources, path, &usable)
    }

    /// [`TaskCgroup::limit`] where it is known why some controllers are missing.
    pub(super) fn limit_in(
        &self,
        resources: &Resources,
        path: &str,
        usable: &Usable,
    ) -> Result<Applied, CgroupError> {
        if limits::protects(resources) {
            // It is passed on as soon as it is asked for here, and only then can it be had.
            self.apply_in(resources, path, usable)?;
            self.pass_protection_on();
        }
        self.apply_in(resources, path, usable)
    }

    /// Enables for the leaves of this task what every task has, which somebody may have taken away, and what `resources` of a
    /// process need beyond. To be done before the leaf of a live run is given such limits: [`Base::task_for`] did it for those
    /// that the task began with.
    ///
    /// [`Base::task_for`]: super::Base::task_for
    pub fn enable_for_runs(&self, resources: &Resources) {
        self.enable_beneath(&limits::extra_controllers(resources));
        controllers::enable(&[self.dir()], &Controller::ALWAYS);
    }

    /// Enables `extra` for the leaves of this task. What cannot be enabled is named where a limit needs it.
    pub(super) fn enable_beneath(&self, extra: &[Controller]) {
        self.enable_around(extra);
        if !extra.is_empty() {
            controllers::enable(&[self.dir()], extra);
        }
    }

    fn enable_around(&self, extra: &[Controller]) -> Usable {
        if extra.is_empty() {
            return Usable::default();
        }
        let (root, ours) = self.around();
        controllers::enable(&root.iter().chain(&ours).collect::<Vec<_>>(), extra)
    }

    /// Takes back what is kept around this task, which was removed, for the sake of its `limits`.
    pub fn release_protection(&self, limits: Option<&Resources>) {
        if limits.is_some_and(limits::protects) {
            self.pass_protection_on();
        }
    }

    /// Makes what is around this task keep as much memory for its tasks as they ask for together.
    fn pass_protection_on(&self) {
        let (root, ours) = self.around();
        // A base that somebody else gave us has the limits that they gave it.
        let given = usize::from(root.is_none());
        limits::pass_on(&ours.iter().skip(given).collect::<Vec<_>>());
    }

    /// The root of the hierarchy, if it holds the base; the base, and the cgroup of tasks.
    fn around(&self) -> (Option<Dir>, Vec<Dir>) {
        let tasks = self.dir().parent();
        let base = tasks.as_ref().and_then(Dir::parent);
        let root = base.as_ref().and_then(Dir::parent).filter(|dir| !dir.has("cgroup.events"));
        (root, base.into_iter().chain(tasks).collect())
    }

    /// Opens the cgroup at `path`, which a checkpoint recorded for task `id`; `None` if it is gone.
    ///
    /// # Errors
    ///
    /// [`CgroupError::NotOfTask`] or [`CgroupError::NotCgroup2`] if `path` is something else;
    /// [`CgroupError::Sys`]: among others ELOOP, if it leads over a symbolic link.
    pub fn open_existing(path: &Path, id: &TaskId) -> Result<Option<Self>, CgroupError> {
        let mut names = path.components().rev().map(|part| part.as_os_str());
        let ours = [OsStr::new(id.as_str()), OsStr::new(TASKS)].map(Some);
        if !path.is_absolute() || [names.next(), names.next()] != ours {
            return Err(CgroupError::NotOfTask {
                path: path.to_owned(),
                task: id.as_str().to_owned(),
            });
        }
        match Dir::open(path) {
            Ok(dir) => Ok(Cgroup::found(dir)?.map(Self)),
            Err(CgroupError::Sys { errno: Errno::ENOENT, .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Makes the leaf of run `run` of `process`, or opens it.
    ///
    /// # Errors
    ///
    /// [`CgroupError`].
    pub fn leaf(&self, process: &ProcessName, run: u32) -> Result<Leaf, CgroupError> {
        furnish(self.dir().create(&leaf_name(process, run))?)
    }

    /// Opens the leaf of run `run` of `process`; `None` if there is none.
    ///
    /// # Errors
    ///
    /// [`CgroupError`].
    pub fn open_leaf(&self, process: &ProcessName, run: u32) -> Result<Option<Leaf>, CgroupError> {
        let dir = self.dir().child(&leaf_name(process, run))?;
        dir.map_or(Ok(None), Cgroup::found)
    }
}

impl Deref for TaskCgroup {
    type Target = Cgroup;

    fn deref(&self) -> &Cgroup {
        &self.0
    }
}

/// Makes a leaf of the cgroup in `dir`, which is beneath a task's.
pub(super) fn furnish(dir: Dir) -> Result<Leaf, CgroupError> {
    let leaf = Cgroup::new(dir)?;
    leaf.die_whole()?;
    limits::bound_cgroups(leaf.dir())?;
    // A dewar that is started in it, as root, then builds its cgroups in here and not
    // beside us: it must end with this leaf. An ordinary user owns the leaf, which says the same,
    // and a kernel that keeps no such attribute (before 5.7) cannot be told.
    let _ = xattr::set(leaf.as_fd(), DELEGATED, b"1");
    Ok(leaf)
}

/// Name of a leaf. It ends in a number, which no file of the kernel's does, and the last dot divides
/// it, so that no two runs share one.
pub(super) fn leaf_name(process: &ProcessName, run: u32) -> String {
    format!("{process}.{run}")
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsRawFd;

    use nix::sys::resource::{Resource, getrlimit, setrlimit};

    use super::*;
    use crate::cgroup::scratch::{Scratch, rerun};

    fn id(id: &str) -> TaskId {
        TaskId::new(id).unwrap()
    }

    fn process(name: &str) -> ProcessName {
        ProcessName::new(name).unwrap()
    }

    #[test]
    fn a_leaf_is_where_the_design_says() {
        let scratch = Scratch::new();

        let leaf = scratch.task("t-1").leaf(&process("a web server.1"), 12).unwrap();

        let expected = scratch.dir().path().join("tasks/t-1/a web server.1.12");
        assert_eq!(leaf.path(), expected);
        assert!(expected.join("cgroup.procs").exists());
    }

    /// A coordinator removes the leaf that a runner is about to look at.
    #[test]
    fn a_cgroup_that_is_removed_while_it_is_opened_is_none() {
        let scratch = Scratch::new();
        let task = scratch.task("task");
        let leaf = task.leaf(&process("p"), 0).unwrap();
        let opened = || task.dir().child("p.0").unwrap().unwrap();
        let [before, after] = [opened(), opened()];

        assert!(Cgroup::found(before).unwrap().is_some());
        leaf.remove().unwrap();

        assert!(Cgroup::found(after).unwrap().is_none());
        assert!(task.open_leaf(&process("p"), 0).unwrap().is_none());
    }

    #[test]
    fn making_is_opening_where_it_is_there() {
        let scratch = Scratch::new();
        let first = scratch.task("task");
        let _inhabitant =
            scratch.inhabit(first.leaf(&process("p"), 0).unwrap().path(), "read line");

        let again = scratch.task("task").leaf(&process("p"), 0).unwrap();

        assert!(again.is_populated().unwrap());
    }

    #[test]
    fn a_leaf_that_was_not_made_is_not_there() {
        let scratch = Scratch::new();
        let task = scratch.task("task");
        task.leaf(&process("p"), 1).unwrap();

        assert!(task.open_leaf(&process("p"), 0).unwrap().is_none());
        assert!(task.open_leaf(&process("p"), 1).unwrap().is_some());
    }

    #[test]
    fn a_task_cannot_take_the_name_of_a_file_of_the_kernel() {
        let scratch = Scratch::new();
        let tasks = scratch.dir().path().join("tasks");

        for name in ["cgroup.procs", "cpu.stat", "cgroup.kill"] {
            let error = scratch.base().task(&id(name)).unwrap_err();

            let text = format!(
                "{name:?} cannot name a cgroup: in {} the kernel keeps that name for a file of its own",
                tasks.display()
            );
            assert_eq!(error.to_string(), text);
        }
        assert!(scratch.base().task(&id("cpu.0")).is_ok());
    }

    #[test]
    fn the_longest_names_fit() {
        let scratch = Scratch::new();
        let longest = "n".repeat(crate::task::NAME_MAX);

        scratch.task(&longest).leaf(&process(&longest), u32::MAX).unwrap();
    }

    #[test]
    fn a_recorded_cgroup_is_found_again_with_what_lives_in_it() {
        let scratch = Scratch::new();
        let task = scratch.task("task");
        let leaf = task.leaf(&process("p"), 3).unwrap();
        let inhabitant = scratch.inhabit(leaf.path(), "read line");

        let adopted = TaskCgroup::open_existing(task.path(), &id("task")).unwrap().unwrap();

        let leaf = adopted.open_leaf(&process("p"), 3).unwrap().unwrap();
        assert_eq!(leaf.pids().unwrap(), [inhabitant.pid()]);
    }

    #[test]
    fn a_recorded_cgroup_that_is_gone_is_none() {
        let scratch = Scratch::new();
        let task = scratch.task("task");
        task.remove().unwrap();

        assert!(TaskCgroup::open_existing(task.path(), &id("task")).unwrap().is_none());
    }

    #[test]
    fn a_recorded_path_that_is_not_the_tasks_own_is_refused() {
        let scratch = Scratch::new();
        let tasks = scratch.dir().path().join("tasks");
        scratch.task("task");
        scratch.task("other");

        let paths = [tasks.join("other"), tasks.join("other/../task/.."), tasks.clone()];
        for path in paths.iter().map(|path| path.as_path()).chain([Path::new("tasks/task")]) {
            let error = TaskCgroup::open_existing(path, &id("task")).unwrap_err();

            let text = format!(
                "{} is not the cgroup of task task: it does not end in tasks/task",
                path.display()
            );
            assert_eq!(error.to_string(), text);
        }
    }

    #[test]
    fn a_recorded_path_outside_of_cgroup_v2_or_behind_a_link_is_refused() {
        let scratch = Scratch::new();
        scratch.task("task");
        let outside = std::env::temp_dir().join(scratch.dir().path().file_name().unwrap());
        std::fs::create_dir_all(outside.join("tasks/task")).unwrap();
        std::os::unix::fs::symlink(scratch.dir().path(), outside.join("link")).unwrap();

        let plain = TaskCgroup::open_existing(&outside.join("tasks/task"), &id("task"));
        let linked = TaskCgroup::open_existing(&outside.join("link/tasks/task"), &id("task"));

        std::fs::remove_dir_all(&outside).unwrap();
        assert!(matches!(plain, Err(CgroupError::NotCgroup2(_))), "{plain:?}");
        assert!(matches!(linked, Err(CgroupError::Sys { errno: Errno::ELOOP, .. })), "{linked:?}");
    }

    /// attack 36, in a process of its own: the limit is the process's.
    #[test]
    #[ignore = "run by another test"]
    fn probe_without_descriptors() {
        let scratch = Scratch::new();
        let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
        let lowest_free = scratch.dir().try_clone().unwrap().as_fd().as_raw_fd();

        setrlimit(Resource::RLIMIT_NOFILE, lowest_free.try_into().unwrap(), hard).unwrap();
        let error = scratch.dir().create("half").unwrap_err();
        setrlimit(Resource::RLIMIT_NOFILE, hard, hard).unwrap();

        assert!(matches!(error, CgroupError::Sys { errno: Errno::EMFILE, .. }), "{error:?}");
        assert!(!scratch.dir().path().join("half").exists());
        println!("\nprobe: done");
    }

    #[test]
    fn a_cgroup_that_cannot_be_opened_is_not_left_behind() {
        let scratch = Scratch::new();
        let name = "cgroup::task::tests::probe_without_descriptors";

        let output = scratch.inhabit(scratch.dir().path(), &rerun("", "", name)).rest();

        assert!(output.contains("\nprobe: done\n"), "{output}");
    }
}
