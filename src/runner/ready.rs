//! What a runner has at hand before it may begin.

use std::path::Path;

use super::sources::Sources;
use super::{RunnerError, doing};
use crate::cgroup::{self, Base, FindError};
use crate::sys::pidfd::ProcessId;
use crate::sys::{clock, fds, process};

/// All that does not depend on the task: it is made while the acceptance of that goes to the disk. Nothing of the task is touched.
pub struct Ready {
    /// Soft limit of descriptors that runs get: the one that the runner was started with.
    pub(super) descriptors: u64,
    pub(super) sources: Sources,
    pub(super) boot_id: String,
    pub(super) me: ProcessId,
    /// The base cgroup, if one was named. That it cannot be used matters to a task whose cgroup is still to be made.
    pub(super) base: Option<Result<Base, FindError>>,
}

impl Ready {
    /// Makes it, with the base cgroup that whoever started the runner has found; `None` where containment is none.
    ///
    /// # Errors
    ///
    /// [`RunnerError::Io`].
    pub fn new(cgroup_base: Option<&Path>) -> Result<Self, RunnerError> {
        let descriptors = fds::raise_limit().map_err(doing("raise the limit of descriptors"))?;
        process::forget_children().map_err(doing("ignore SIGCHLD"))?;
        let find = |base: &Path| cgroup::find(&cgroup::Options { explicit: Some(base.to_owned()) });
        Ok(Self {
            descriptors,
            sources: Sources::new().map_err(doing("make the epoll set"))?,
            boot_id: clock::boot_id().map_err(doing("read the boot id"))?,
            me: process::own_id().map_err(doing("read the runner's own start time"))?,
            base: cgroup_base.map(find),
        })
    }
}
