//! `dewar wait`.
//!
//! In a root the runner is listened to, which tells of each of its turns; the daemon does the same for whoever asks it.

use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::args::{Output, Stage, Wait};
use super::failure::{Failure, status};
use super::follow::{nudges_end, status_of};
use super::node::Node;
use super::nodes::Nodes;
use super::out::Out;
use super::run::whereabouts;
use super::{json, place, runner, words};
use crate::checkpoint::Root;
use crate::control::ControlError;
use crate::observe::{self, Observed};
use crate::proto::{TaskState, TaskView};
use crate::state::Phase;
use crate::task::TaskId;

/// Waits for the end of a task, or for a state, and tells it.
///
/// # Errors
///
/// [`Failure`], also if the time is over.
pub(super) fn run(args: &Wait) -> Result<u8, Failure> {
    let id = place::task_id(&args.task)?;
    let deadline = args.timeout.and_then(|timeout| Instant::now().checked_add(timeout));
    let (node, root) = Nodes::find(&args.node)?.with(&id, Failure::Usage)?;
    let view = match node {
        Node::Root(root) => on_root(&root, &id, &args.states, deadline)?,
        #[cfg(feature = "net")]
        Node::Daemon(client) => daemon::wait(&client, &id, &args.states, deadline)?,
    };
    let Some(view) = view else {
        let timeout = words::span(args.timeout.unwrap_or_default());
        return Err(Failure::Unavailable(format!("task {id} is not there after {timeout}")));
    };
    if view.state() == TaskState::Corrupt {
        return Err(Failure::Unavailable(view.detail.unwrap_or_default()));
    }
    Out::default().write(match args.output {
        Output::Json => json::task(&view, root.as_deref())?,
        Output::Text => {
            format!("{} {}\n", words::name(&view.task_id), words::task_state(view.state()))
        }
    })?;
    Ok(match view.state() {
        TaskState::Active | TaskState::Cleaning | TaskState::Finalizing => status::SUCCESS,
        state => status_of(state),
    })
}

/// Whether a task in `phase` has been in one of `stages`, or is over.
fn is_reached(phase: Phase, stages: &[Stage]) -> bool {
    let has_come_to = |stage: &Stage| match stage {
        Stage::Active => true,
        Stage::Cleaning => phase != Phase::Active,
        Stage::Finalizing => !matches!(phase, Phase::Active | Phase::Cleaning),
    };
    phase.is_terminal() || stages.iter().any(has_come_to)
}

/// Waits for a task of `root`; `None`: the time is over.
fn on_root(
    root: &Root,
    id: &TaskId,
    stages: &[Stage],
    deadline: Option<Instant>,
) -> Result<Option<TaskView>, Failure> {
    let sight = |place| observe::look(root, id, place);
    let first = sight(whereabouts(root, id)?)?.view;
    if first.state() == TaskState::Corrupt {
        return Ok(Some(first));
    }
    let mut observed = Observed::open(root, id)?;
    loop {
        // Before the look: whatever happens after it is told.
        let nudges = runner::attend(root, id);
        loop {
            observed.advance_durably(|_, _| {})?;
            let phase = observed.replay().and_then(|replay| replay.state().phase());
            if phase.is_some_and(|phase| is_reached(phase, stages)) {
                return Ok(Some(sight(whereabouts(root, id)?)?.view));
            }
            let Ok(nudges) = &nudges else { break };
            let mut fds = [PollFd::new(nudges.as_fd(), PollFlags::POLLIN)];
            match poll(&mut fds, left(deadline)) {
                Ok(0) if is_over(deadline) => return Ok(None),
                Ok(0) | Err(Errno::EINTR) => {}
                Err(errno) => return Err(Failure::Unavailable(format!("poll: {errno}"))),
                Ok(_) if nudges_end(nudges)? => break,
                Ok(_) => {}
            }
        }
        match nudges {
            Ok(_) => {}
            Err(ControlError::Absent(_)) => {
                let text = format!("task {id} has no runner; `dewar resume {id}` goes on with it");
                return Err(Failure::Unavailable(text));
            }
            Err(error) => return Err(Failure::unavailable(&error)),
        }
    }
}

fn left(deadline: Option<Instant>) -> PollTimeout {
    let Some(deadline) = deadline else { return PollTimeout::NONE };
    // Not a moment too early: poll(2) counts milliseconds.
    let left = deadline.saturating_duration_since(Instant::now()) + Duration::from_millis(1);
    PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX)
}

fn is_over(deadline: Option<Instant>) -> bool {
    deadline.is_some_and(|deadline| deadline <= Instant::now())
}

/// By way of a daemon, and of the one after it.
#[cfg(feature = "net")]
mod daemon {
    use super::{Failure, Instant, Stage, TaskId, TaskState, TaskView};
    use crate::cli::patience::Patience;
    use crate::client::Client;
    use crate::proto::WaitRequest;

    pub(super) fn wait(
        client: &Client,
        id: &TaskId,
        stages: &[Stage],
        deadline: Option<Instant>,
    ) -> Result<Option<TaskView>, Failure> {
        client.block_on(async {
            let (mut runner, mut patience) = (client.runner(), Patience::default());
            loop {
                let left = deadline.map(|at| at.saturating_duration_since(Instant::now()).into());
                let states = stages.iter().map(|&stage| state(stage).into()).collect();
                let request = WaitRequest { task_id: id.to_string(), states, timeout: left };
                match runner.wait(request).await {
                    Ok(answer) => {
                        let answer = answer.into_inner();
                        return Ok(answer.task.filter(|_| answer.is_reached));
                    }
                    // It is the state that is waited for: whoever tells it, nothing is missed.
                    Err(status) => patience.wait(status).await?,
                }
            }
        })
    }

    fn state(stage: Stage) -> TaskState {
        match stage {
            Stage::Active => TaskState::Active,
            Stage::Cleaning => TaskState::Cleaning,
            Stage::Finalizing => TaskState::Finalizing,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::observe::tests::Node as Scene;

    #[test]
    fn a_state_is_reached_by_whatever_comes_after_it_and_the_end_by_nothing_else() {
        use Phase as P;
        for (phase, reached) in [
            (P::Active, [true, false, false]),
            (P::Cleaning, [true, true, false]),
            (P::Finalizing, [true, true, true]),
            (P::Failed, [true, true, true]),
        ] {
            let stages = [Stage::Active, Stage::Cleaning, Stage::Finalizing];
            assert_eq!(stages.map(|stage| is_reached(phase, &[stage])), reached, "{phase:?}");
            assert_eq!(is_reached(phase, &[]), phase == P::Failed);
        }
    }

    #[test]
    fn a_task_that_nobody_drives_is_not_waited_for() {
        let scene = Scene::new("wait");
        let id = scene.task("a", &[Phase::Active]);

        let failure = on_root(&scene.root, &id, &[], None).unwrap_err();

        let text = "task a has no runner; `dewar resume a` goes on with it";
        assert_eq!((failure.status(), failure.to_string().as_str()), (5, text));
        let reached = on_root(&scene.root, &id, &[Stage::Active], None).unwrap().unwrap();
        assert_eq!(reached.state(), TaskState::Active);
    }
}
