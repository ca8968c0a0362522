//! Limits are tried out before a task is accepted: on a cgroup that is made for that, holds nothing, and is removed again.
//!
//! So whoever launches a task hears from the kernel itself what cannot be enforced and what it rounds, while nothing is started yet.

use std::os::fd::OwnedFd;
use std::process;

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};

use super::dir::{Dir, sys};
use super::{Applied, Base, Cgroup, CgroupError, Controller, TaskCgroup, controllers, limits};
use crate::task::{Resources, TaskSpec};

/// How names of trials begin. No task has such a name.
const PREFIX: &str = ".trial-";

/// Name of the leaf that limits of runs are tried on.
const RUN: &str = "run";

/// A cgroup beside those of tasks, removed when dropped. It is locked while its process lives, so that one that a process left
/// when it was killed is known for what it is.
struct Trial<'s> {
    task: TaskCgroup,
    limits: Option<&'s Resources>,
    _alive: Flock<OwnedFd>,
}

impl<'s> Trial<'s> {
    fn new(base: &Base, limits: Option<&'s Resources>) -> Result<Self, CgroupError> {
        sweep(base.tasks())?;
        // Processes of several pid namespaces may have one number, and what is not locked yet may be swept.
        let mut number = 0;
        loop {
            let name = format!("{PREFIX}{}-{number}", process::id());
            let alive = match base.tasks().create(&name) {
                Err(CgroupError::Sys { errno: Errno::ENOENT, .. }) => None,
                dir => lock(&dir?)?,
            };
            if let Some(alive) = alive {
                let task = TaskCgroup::create(base.tasks(), &name, limits)?;
                return Ok(Self { task, limits, _alive: alive });
            }
            number += 1;
        }
    }

    /// A leaf in it, which has no limits yet.
    fn run(&self) -> Result<Cgroup, CgroupError> {
        Cgroup::new(self.task.dir().create(RUN)?)
    }
}

/// Removes the trials whose processes are gone.
fn sweep(tasks: &Dir) -> Result<(), CgroupError> {
    for name in tasks.children()?.iter().filter(|name| name.starts_with(PREFIX)) {
        let Some(dir) = tasks.child(name)? else { continue };
        if let Some(_dead) = lock(&dir)?
            && let Some(left) = Cgroup::found(dir)?
        {
            left.remove()?;
        }
    }
    Ok(())
}

/// Locks a cgroup that ends with its process; `None` while somebody else has it, or if it was removed. Only who has the lock removes
/// it.
pub(super) fn lock(dir: &Dir) -> Result<Option<Flock<OwnedFd>>, CgroupError> {
    let again = match dir.reopen() {
        Err(CgroupError::Sys { errno: Errno::ENOENT, .. }) => return Ok(None),
        again => again?,
    };
    match Flock::lock(again, FlockArg::LockExclusiveNonblock) {
        Ok(lock) => Ok(dir.has("cgroup.procs").then_some(lock)),
        Err((_, Errno::EWOULDBLOCK)) => Ok(None),
        Err((_, errno)) => Err(sys("lock", dir.path(), errno)),
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cgroup::scratch::Scratch;

    #[test]
    fn a_trial_that_a_dead_process_left_is_swept_and_a_live_one_is_not() {
        let scratch = Scratch::new();
        let tasks = scratch.base().tasks();
        TaskCgroup::create(tasks, ".trial-7-0", None).unwrap().dir().create(RUN).unwrap();
        let live = Trial::new(scratch.base(), None).unwrap();
        scratch.task("task");

        let second = Trial::new(scratch.base(), None).unwrap();

        let mut names = tasks.children().unwrap();
        names.sort_unstable();
        let ours = process::id();
        assert_eq!(names, [format!(".trial-{ours}-0"), format!(".trial-{ours}-1"), "task".into()]);
        drop((live, second));
        assert_eq!(tasks.children().unwrap(), ["task"]);
    }

    /// Launches at one time do not take each other's trials.
    #[test]
    fn many_may_try_at_one_time() {
        let scratch = Scratch::new();

        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    for _ in 0..20 {
                        drop(Trial::new(scratch.base(), None).unwrap());
                    }
                });
            }
        });

        assert_eq!(scratch.base().tasks().children().unwrap(), [""; 0]);
    }
}
