//! The cgroups of a task: its own, and a leaf for each run.

use std::ffi::OsStr;
use std::ops::Deref;
use std::path::Path;

use nix::errno::Errno;

use super::base::{DELEGATED, TASKS};
use super::dir::Dir;
use super::{Cgroup, CgroupError, controllers};
use crate::sys::xattr;
use crate::task::{ProcessName, TaskId};
use std::os::fd::AsFd;

/// The leaf of one run: everything that it ever forks.
pub type Leaf = Cgroup;

/// The cgroup of a task; it holds leaves and no process of its own.
#[derive(Debug)]
pub struct TaskCgroup(Cgroup);

impl TaskCgroup {
    /// Makes the cgroup of task `id` in `tasks`, or opens it.
    pub(super) fn create(tasks: &Dir, id: &TaskId) -> Result<Self, CgroupError> {
        let dir = tasks.create(id.as_str())?;
        // What cannot be enabled is named where a limit needs it: the leaf has no file for it.
        controllers::enable(&[&dir]);
        Ok(Self(Cgroup::new(dir)?))
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
            Ok(dir) => Ok(Some(Self(Cgroup::new(dir)?))),
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
        let leaf = Cgroup::new(self.dir().create(&leaf_name(process, run))?)?;
        leaf.die_whole()?;
        // A dewar that the run itself starts, as root, then builds its cgroups in here and not
        // beside us: it must end with this run. An ordinary user owns the leaf, which says the same,
        // and a kernel that keeps no such attribute (before 5.7) cannot be told.
        let _ = xattr::set(leaf.as_fd(), DELEGATED, b"1");
        Ok(leaf)
    }

    /// Opens the leaf of run `run` of `process`; `None` if there is none.
    ///
    /// # Errors
    ///
    /// [`CgroupError`].
    pub fn open_leaf(&self, process: &ProcessName, run: u32) -> Result<Option<Leaf>, CgroupError> {
        self.dir().child(&leaf_name(process, run))?.map(Cgroup::new).transpose()
    }
}

impl Deref for TaskCgroup {
    type Target = Cgroup;

    fn deref(&self) -> &Cgroup {
        &self.0
    }
}

/// Name of a leaf. It ends in a number, which no file of the kernel's does, and the last dot divides
/// it, so that no two runs share one.
fn leaf_name(process: &ProcessName, run: u32) -> String {
    format!("{process}.{run}")
}
