//! Limits are tried out before a task is accepted: on a cgroup that is made for that, holds nothing, and is removed again.
//!
//! So whoever launches a task hears from the kernel itself what cannot be enforced and what it rounds, while nothing is started yet.

use std::process;

use super::{Applied, Base, Cgroup, CgroupError, Controller, TaskCgroup, controllers, limits};
use crate::task::{Resources, TaskSpec};

/// Name of the leaf that limits of runs are tried on.
const RUN: &str = "run";

/// A cgroup beside those of tasks; no task has such a name. Removed when dropped.
struct Trial<'s> {
    task: TaskCgroup,
    limits: Option<&'s Resources>,
}

impl<'s> Trial<'s> {
    fn new(base: &Base, limits: Option<&'s Resources>) -> Result<Self, CgroupError> {
        let name = format!(".trial-{}", process::id());
        Ok(Self { task: TaskCgroup::create_named(base.tasks(), &name)?, limits })
    }

    /// A leaf in it, which has no limits yet.
    fn run(&self) -> Result<Cgroup, CgroupError> {
        Cgroup::new(self.task.dir().create(RUN)?)
    }
}

impl Drop for Trial<'_> {
    fn drop(&mut self) {
        // It is empty and ours; and where that cannot be removed, it is empty.
        let _ = self.task.remove();
        self.task.release_protection(self.limits);
    }
}

impl Base {
    /// Tries out the limits of `spec`: what of them cannot be enforced here, and what the kernel rounds.
    ///
    /// # Errors
    ///
    /// [`CgroupError`]: they could not be tried.
    pub fn try_out(&self, spec: &TaskSpec) -> Result<Applied, CgroupError> {
        let of_task = spec.resources.as_ref();
        let each = spec.processes.iter().enumerate();
        let of_runs: Vec<_> =
            each.filter_map(|(index, of)| Some((index, of.resources.as_deref()?))).collect();
        if of_task.is_none() && of_runs.is_empty() {
            return Ok(Applied::default());
        }
        let run_limits = of_runs.iter().map(|&(_, limits)| limits);
        let extra = limits::extra_controllers_of(of_task.into_iter().chain(run_limits));
        let usable = self.enable(&[&Controller::ALWAYS[..], &extra].concat());
        let trial = Trial::new(self, of_task)?;
        let mut applied = Applied::default();
        if let Some(limits) = of_task {
            applied.extend(trial.task.limit_in(limits, "resources", &usable)?);
        }
        if !of_runs.is_empty() {
            controllers::enable(&[trial.task.dir()], &extra);
        }
        for (index, limits) in of_runs {
            let leaf = trial.run()?;
            let path = format!("processes[{index}].resources");
            applied.extend(leaf.apply_in(limits, &path, &usable)?);
            leaf.remove()?;
        }
        Ok(applied)
    }
}
