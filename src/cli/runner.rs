//! Runners, as commands need them: see [`crate::reach`].

use std::ffi::OsString;
use std::ops::ControlFlow;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use super::failure::{Failure, status};
use super::words;
use crate::causes::tell;
use crate::cgroup::{self, Base, FindError};
use crate::checkpoint::Root;
use crate::control::{self, ControlError, Request};
use crate::launch::{Console, LaunchError};
use crate::observe;
pub(super) use crate::reach::Followed;
use crate::reach::{Reach, ReachError};
use crate::sys::pidfd::{self, Exit};
use crate::task::TaskId;

/// Deaths of runners within [`DEATHS_WITHIN`] after which no other one is started.
const DEATHS: usize = 3;
/// Time within which deaths count together.
const DEATHS_WITHIN: Duration = Duration::from_secs(10);

/// Follows the runner of a task, and starts one where none lives.
///
/// # Errors
///
/// [`Failure::Unavailable`].
pub(super) fn follow(root: &Root, id: &TaskId, console: Console) -> Result<Followed, Failure> {
    Ok(reach(root).follow(id, console)?)
}

/// Follows the runner of a task, and starts none.
///
/// # Errors
///
/// [`ControlError`].
pub(super) fn attend(root: &Root, id: &TaskId) -> Result<OwnedFd, ControlError> {
    reach(root).attend(id)
}

/// Asks for the end of a task: its runner, or one that is started to hear it. It may have ended meanwhile.
///
/// # Errors
///
/// [`Failure::Unavailable`].
pub(super) fn kill(
    root: &Root,
    id: &TaskId,
    wait: Duration,
    lost: bool,
    reason: Option<&str>,
) -> Result<(), Failure> {
    Ok(reach(root).end(id, &control::to_kill(wait, lost, reason.map(str::to_owned)))?)
}

/// Asks the runner of a task to do something, or one that is started for it and hears it first of all. Tells which limits the
/// kernel rounded.
///
/// # Errors
///
/// [`Failure::Unavailable`].
pub(super) fn order(root: &Root, id: &TaskId, request: &Request) -> Result<Vec<String>, Failure> {
    Ok(reach(root).order(id, request)?)
}

fn reach(root: &Root) -> Reach<'_> {
    Reach { root, base: &|| find(None), by: None }
}

/// Finds the base cgroup. An ordinary user who was given none gets one from its own systemd, where that runs: this
/// program is then replaced by one that runs in a scope of its own.
///
/// # Errors
///
/// [`Failure::Unavailable`] says what was found and what to do.
pub(super) fn find_base(explicit: Option<PathBuf>) -> Result<Base, Failure> {
    find(explicit).map_err(|error| Failure::unavailable(&error))
}

fn find(explicit: Option<PathBuf>) -> Result<Base, FindError> {
    cgroup::find(&cgroup::Options { explicit }).inspect_err(|error| {
        if matches!(error, FindError::NotDelegated { .. }) {
            let args: Vec<OsString> = std::env::args_os().skip(1).collect();
            if let Some(mut command) = cgroup::systemd_scope_command(&args) {
                // Returns only if it could not be done; what to do instead is in `error`.
                let _ = command.exec();
            }
        }
    })
}

/// Deaths of the runners of a task that was followed through them.
#[derive(Debug, Default)]
pub(super) struct Deaths(Vec<Instant>);

impl Deaths {
    /// Notes one, and says whether another runner is worth a try, or would die as the last few did.
    fn is_worth_another(&mut self) -> bool {
        let now = Instant::now();
        self.0.retain(|&death| now.duration_since(death) < DEATHS_WITHIN);
        self.0.push(now);
        self.0.len() < DEATHS
    }
}

/// Goes on with a task that is not over and whose runner is gone: with one that somebody else has started, or, where ours was
/// killed, with another of ours. Where it breaks off it has said why, and how to exit.
///
/// # Errors
///
/// [`Failure::Unavailable`]: another runner cannot be started.
pub(super) fn go_on(
    root: &Root,
    id: &TaskId,
    console: Console,
    pidfd: Option<OwnedFd>,
    deaths: &mut Deaths,
) -> Result<ControlFlow<u8, Followed>, Failure> {
    if let Ok(nudges) = control::follow(root, id) {
        return Ok(ControlFlow::Continue(Followed { nudges, pidfd: None }));
    }
    let task = words::name(id.as_str());
    let (how, exit) = match pidfd.map(|pidfd| pidfd::wait(pidfd.as_fd())) {
        Some(Ok(Exit::Signal(signal))) if deaths.is_worth_another() => {
            tell!("dewar: the runner of task {task} died by signal {signal}; another goes on");
            return Ok(ControlFlow::Continue(follow(root, id, console)?));
        }
        Some(Ok(Exit::Signal(signal))) => {
            let within = DEATHS_WITHIN.as_secs();
            let how = format!("died by signal {signal}, the {DEATHS}rd within {within} s");
            (how, status::UNAVAILABLE)
        }
        // It came second: another one leads the task, or has led it to its end.
        Some(Ok(Exit::Code(status::UNAVAILABLE)))
            if has_another(root, id) && deaths.is_worth_another() =>
        {
            return Ok(ControlFlow::Continue(follow(root, id, console)?));
        }
        Some(Ok(Exit::Code(status::DEFECT))) => {
            (format!("exited with status {}", status::DEFECT), status::DEFECT)
        }
        Some(Ok(Exit::Code(code))) => (format!("exited with status {code}"), status::UNAVAILABLE),
        Some(Err(_)) | None => ("is gone".to_owned(), status::UNAVAILABLE),
    };
    tell!("dewar: the runner of task {task} {how}; `dewar resume {task}` goes on with the task");
    Ok(ControlFlow::Break(exit))
}

/// Whether a task is in other hands than those of a runner of ours that is gone, or in none any more.
fn has_another(root: &Root, id: &TaskId) -> bool {
    matches!(observe::runner_pid(root, id), Ok(Some(_))) || reach(root).is_over(id).unwrap_or(false)
}

impl From<LaunchError> for Failure {
    fn from(error: LaunchError) -> Self {
        Self::unavailable(&error)
    }
}

impl From<ReachError> for Failure {
    fn from(error: ReachError) -> Self {
        Self::unavailable(&error)
    }
}
