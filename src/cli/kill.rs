//! `dewar kill`.

use std::path::Path;
use std::time::Duration;

use super::args::Kill;
use super::failure::Failure;
use super::{each, runner, words};
use crate::causes::tell;
use crate::cgroup::TaskCgroup;
use crate::checkpoint::Root;
use crate::observe::Observed;
use crate::task::TaskId;

/// Asks for the end of every active task that matches, and prints the id of each of them.
///
/// # Errors
///
/// [`Failure`]; one task that cannot be asked keeps no other from being asked.
pub(super) fn run(args: &Kill) -> Result<u8, Failure> {
    let reason = args.reason.as_deref();
    each::active(&args.patterns, &args.node, |node, id| node.kill(id, args.wait, args.lost, reason))
}

/// Asks for the end of a task of `root`, in `wait`, or in the time that it gives itself.
///
/// # Errors
///
/// [`Failure`].
pub(super) fn on_root(
    root: &Root,
    id: &TaskId,
    wait: Option<Duration>,
    lost: bool,
    reason: Option<&str>,
) -> Result<(), Failure> {
    let mut observed = Observed::open(root, id)?;
    if let Err(error) = observed.advance(|_, _| {}) {
        if error.is_corruption() {
            kill_corrupt(id, &observed)?;
        }
        return Err(error.into());
    }
    let wait = match (lost, wait, observed.replay()) {
        (true, ..) => Duration::ZERO,
        (false, Some(wait), _) => wait,
        (false, None, Some(replay)) => replay.state().spec().finalization_wait,
        (false, None, None) => crate::task::spec::FINALIZATION_WAIT,
    };
    runner::kill(root, id, wait, lost, reason)
}

/// No runner drives a task whose checkpoint is corrupt, and nothing can be recorded; but what lives of it can be
/// killed where its cgroup is known.
fn kill_corrupt(id: &TaskId, observed: &Observed) -> Result<(), Failure> {
    let leader = observed.replay().and_then(|replay| replay.state().leader());
    let Some(path) = leader.and_then(|leader| leader.cgroup.as_deref()) else { return Ok(()) };
    let unavailable = |error| Failure::unavailable(&error);
    let cgroup = TaskCgroup::open_existing(Path::new(path), id).map_err(unavailable)?;
    if let Some(cgroup) = cgroup {
        cgroup.kill().map_err(unavailable)?;
        tell!("dewar: {}: every process in {path} was killed", words::name(id.as_str()));
    }
    Ok(())
}
