//! Runners, as commands need them: see [`crate::reach`].

use std::ffi::OsString;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::time::Duration;

use super::failure::{Failure, status};
use super::words;
use crate::cgroup::{self, Base, FindError};
use crate::checkpoint::Root;
use crate::control::{self, Request};
use crate::launch::{Console, LaunchError};
pub(super) use crate::reach::Followed;
use crate::reach::{Reach, ReachError};
use crate::sys::pidfd::{self, Exit};
use crate::task::TaskId;

/// Follows the runner of a task, and starts one where none lives.
///
/// # Errors
///
/// [`Failure::Unavailable`].
pub(super) fn follow(root: &Root, id: &TaskId, console: Console) -> Result<Followed, Failure> {
    Ok(reach(root).follow(id, console)?)
}

/// Asks for the end of a task: its runner, or one that is started to hear it.
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
    order(root, id, &control::to_kill(wait, lost, reason.map(str::to_owned))).map(drop)
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
    Reach { root, base: &|| find(None) }
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

/// What to say, and to exit with, when the runner of a task that is not over is gone.
pub(super) fn gone(id: &TaskId, pidfd: Option<&OwnedFd>) -> u8 {
    let how = pidfd.map(|pidfd| pidfd::wait(pidfd.as_fd()));
    let (how, exit) = match how {
        Some(Ok(Exit::Code(code))) => {
            let exit = if code == status::DEFECT { code } else { status::UNAVAILABLE };
            (format!("exited with status {code}"), exit)
        }
        Some(Ok(Exit::Signal(signal))) => (format!("died by signal {signal}"), status::UNAVAILABLE),
        Some(Err(_)) | None => ("is gone".to_owned(), status::UNAVAILABLE),
    };
    let id = words::name(id.as_str());
    eprintln!("dewar: the runner of task {id} {how}; `dewar resume {id}` goes on with the task");
    exit
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
