//! Asking a live runner: the requests of `proto/dewar/v1/control.proto`, for the command line and the daemon.

use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::sys::stat::Mode;
use prost::Message;

use crate::checkpoint::Root;
use crate::proto::control_request::Request;
use crate::proto::{ControlReply, ControlRequest, Follow, KillTask};
use crate::sys::socket;
use crate::task::TaskId;

/// Why a runner could not be asked, or refused.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// No runner listens: there is none, or it has not come that far, or is about to leave.
    #[error("no runner listens for task {0}")]
    Absent(TaskId),
    /// The runner said no.
    #[error("the runner of task {task} refused: {why}")]
    Refused {
        /// The task.
        task: TaskId,
        /// What it said.
        why: String,
    },
    /// The runner died before it answered; whether it recorded the request is not known.
    #[error("the runner of task {0} died before it answered")]
    Unanswered(TaskId),
    /// A call failed.
    #[error("ask the runner of task {task}")]
    Io {
        /// The task.
        task: TaskId,
        /// What the kernel said.
        #[source]
        error: io::Error,
    },
}

/// Asks for the end of a task, in `wait` at the latest; it is on disk when this returns.
///
/// # Errors
///
/// [`ControlError`].
pub fn kill(root: &Root, task: &TaskId, wait: Duration, lost: bool) -> Result<(), ControlError> {
    let wait_nanos = u64::try_from(wait.as_nanos()).unwrap_or(u64::MAX);
    let ours = ask(root, task, Request::Kill(KillTask { wait_nanos, lost }))?;
    let mut answer = Vec::new();
    let failed = |error| ControlError::Io { task: task.clone(), error };
    UnixStream::from(ours).read_to_end(&mut answer).map_err(failed)?;
    match ControlReply::decode_length_delimited(&answer[..]) {
        Err(_) => Err(ControlError::Unanswered(task.clone())),
        Ok(ControlReply { error }) if error.is_empty() => Ok(()),
        Ok(ControlReply { error }) => Err(ControlError::Refused { task: task.clone(), why: error }),
    }
}

/// Follows a live runner: one byte can be read for each turn that recorded something, the first at once; the end comes
/// with the end of the runner.
///
/// # Errors
///
/// [`ControlError`].
pub fn follow(root: &Root, task: &TaskId) -> Result<OwnedFd, ControlError> {
    ask(root, task, Request::Follow(Follow {}))
}

fn ask(root: &Root, task: &TaskId, request: Request) -> Result<OwnedFd, ControlError> {
    let failed = |error| ControlError::Io { task: task.clone(), error };
    let bytes = ControlRequest { request: Some(request) }.encode_to_vec();
    let (ours, theirs) = socket::pair().map_err(failed)?;
    let (_dir, path) = short(&root.control(task)).map_err(|errno| failed(errno.into()))?;
    match socket::send_to(&path, &bytes, theirs.as_fd()) {
        Ok(()) => Ok(ours),
        Err(error) => Err(match error.raw_os_error().map(Errno::from_raw) {
            Some(Errno::ENOENT | Errno::ECONNREFUSED) => ControlError::Absent(task.clone()),
            _ => failed(error),
        }),
    }
}

/// A path to `socket` that is short enough for an address, and the directory that keeps it alive.
fn short(socket: &Path) -> Result<(OwnedFd, PathBuf), Errno> {
    let parent = socket.parent().unwrap_or(Path::new("/"));
    let dir = open(parent, OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty())?;
    let name = socket.file_name().unwrap_or_default();
    let path = PathBuf::from(format!("/proc/self/fd/{}", dir.as_raw_fd())).join(name);
    Ok((dir, path))
}
