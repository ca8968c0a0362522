//! Asking a live runner: the requests of `proto/dewar/v1/control.proto`, for the command line and the daemon.
#![allow(clippy::disallowed_methods, reason = "waits for an answer")]

use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{MsgFlags, recv};
use nix::sys::stat::Mode;
use prost::Message;

use crate::checkpoint::{Identity, Root, lock};
pub use crate::proto::control_request::Request;
use crate::proto::{ControlReply, ControlRequest, Follow, KillTask};
use crate::sys::{process, socket};
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
    /// It is recorded, and something of it is still to come.
    #[error("task {task}: {what}")]
    Unfinished {
        /// The task.
        task: TaskId,
        /// What is so far.
        what: String,
    },
    /// The runner lives and did not answer; it may do what was asked later.
    #[error("the runner of task {task}{runner} has not answered for {} s; it may still do what was asked", PATIENCE.as_secs())]
    Silent {
        /// The task.
        task: TaskId,
        /// What is known of the runner.
        runner: String,
    },
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

/// How long an answer is waited for. A runner answers within milliseconds, or as long as its disk takes to sync; one that
/// waits for a task to stand still, within five seconds.
const PATIENCE: Duration = Duration::from_secs(10);

/// Asks for the end of a task, in `wait` at the latest; it is on disk when this returns.
///
/// # Errors
///
/// [`ControlError`].
pub fn kill(root: &Root, task: &TaskId, wait: Duration, lost: bool) -> Result<(), ControlError> {
    order(root, task, to_kill(wait, lost, None), None).map(drop)
}

/// Longest reason of a kill, bytes.
pub const REASON_MAX: usize = 1024;

/// The request of [`kill`], and why: at most [`REASON_MAX`] bytes, or it is refused.
pub fn to_kill(wait: Duration, lost: bool, reason: Option<String>) -> Request {
    let wait_nanos = u64::try_from(wait.as_nanos()).unwrap_or(u64::MAX);
    Request::Kill(KillTask { wait_nanos, lost, reason })
}

/// Asks the runner of a task to do something, on behalf of user `by` or for ourselves; that is on disk when this returns. Tells
/// which limits the kernel rounded.
///
/// # Errors
///
/// [`ControlError`].
pub fn order(
    root: &Root,
    task: &TaskId,
    request: Request,
    by: Option<u32>,
) -> Result<Vec<String>, ControlError> {
    answer(root, task, ask(root, task, request, by)?)
}

/// Waits for the answer to a request that was sent along with the other end of `ours`.
///
/// # Errors
///
/// [`ControlError`].
pub fn answer(root: &Root, task: &TaskId, ours: OwnedFd) -> Result<Vec<String>, ControlError> {
    let reply = match read_reply(UnixStream::from(ours), PATIENCE) {
        Ok(reply) => reply,
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
            return Err(silent(root, task));
        }
        Err(error) => return Err(ControlError::Io { task: task.clone(), error }),
    };
    let task = task.clone();
    match reply {
        None => Err(ControlError::Unanswered(task)),
        Some(ControlReply { error: why, .. }) if !why.is_empty() => {
            Err(ControlError::Refused { task, why })
        }
        Some(ControlReply { unfinished, .. }) if !unfinished.is_empty() => {
            Err(ControlError::Unfinished { task, what: unfinished })
        }
        Some(ControlReply { rounded, .. }) => Ok(rounded),
    }
}

/// The answer; `None` if its sender died first, WouldBlock if it has not come within `patience`.
fn read_reply(mut stream: UnixStream, patience: Duration) -> io::Result<Option<ControlReply>> {
    let until = Instant::now() + patience;
    let (mut answer, mut buffer) = (Vec::new(), [0; 4096]);
    loop {
        // A timeout of zero would be none (socket(7)).
        let left = until.saturating_duration_since(Instant::now()).max(Duration::from_millis(1));
        stream.set_read_timeout(Some(left))?;
        match stream.read(&mut buffer) {
            Ok(0) => return Ok(None),
            Ok(count) => answer.extend_from_slice(&buffer[..count]),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
        if let Ok(reply) = ControlReply::decode_length_delimited(&answer[..]) {
            return Ok(Some(reply));
        }
    }
}

/// What is known of a runner that does not answer.
fn silent(root: &Root, task: &TaskId) -> ControlError {
    let holder = lock::holder(root, &Identity::runner(task.clone())).ok().flatten();
    let state = holder.and_then(|holder| holder.pid).map(|pid| match process::is_stopped(pid) {
        true => format!(", pid {pid}, is stopped and"),
        false => format!(", pid {pid},"),
    });
    ControlError::Silent { task: task.clone(), runner: state.unwrap_or_default() }
}

/// How long a runner may take to hear that it is followed; one that is stopped is followed without.
const HEARING: Duration = Duration::from_secs(1);

/// Follows a live runner: one byte can be read for each turn that recorded something, the first at once; the end comes
/// with the end of the runner.
///
/// # Errors
///
/// [`ControlError`]; [`ControlError::Absent`] also of a runner that is dying: its socket may take a request that it never hears.
pub fn follow(root: &Root, task: &TaskId) -> Result<OwnedFd, ControlError> {
    let ours = ask(root, task, Request::Follow(Follow {}), None)?;
    let mut fds = [PollFd::new(ours.as_fd(), PollFlags::POLLIN)];
    // Cut short by a signal, it is followed without.
    let heard = poll(&mut fds, PollTimeout::try_from(HEARING).unwrap_or(PollTimeout::MAX));
    let look = MsgFlags::MSG_PEEK | MsgFlags::MSG_DONTWAIT;
    if heard == Ok(1) && recv(ours.as_raw_fd(), &mut [0], look) == Ok(0) {
        return Err(ControlError::Absent(task.clone()));
    }
    Ok(ours)
}

fn ask(
    root: &Root,
    task: &TaskId,
    request: Request,
    by: Option<u32>,
) -> Result<OwnedFd, ControlError> {
    let failed = |error| ControlError::Io { task: task.clone(), error };
    let bytes = ControlRequest { request: Some(request) }.encode_to_vec();
    let (ours, theirs) = socket::pair().map_err(failed)?;
    let (_dir, path) = short(&root.control(task)).map_err(|errno| match errno {
        Errno::ENOENT => ControlError::Absent(task.clone()),
        errno => failed(errno.into()),
    })?;
    let send = |by| socket::send_to(&path, &bytes, theirs.as_fd(), by, PATIENCE);
    let sent = match send(by) {
        // Only root may speak for others; the runner then records us.
        Err(error) if by.is_some() && error.raw_os_error() == Some(Errno::EPERM as i32) => {
            send(None)
        }
        sent => sent,
    };
    match sent {
        Ok(()) => Ok(ours),
        // Its queue is full: others have asked, and were not heard.
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Err(silent(root, task)),
        Err(error) => Err(match error.raw_os_error().map(Errno::from_raw) {
            Some(Errno::ENOENT | Errno::ECONNREFUSED | Errno::EPIPE) => {
                ControlError::Absent(task.clone())
            }
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

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;
    use crate::testing::TempDir;

    /// Listens as the runner of a task, and does with the first request what is asked for.
    fn followed(hears: impl FnOnce(socket::Datagram) + Send) -> Result<OwnedFd, ControlError> {
        let dir = TempDir::new();
        let root = Root::new(dir.path()).unwrap();
        let task = TaskId::new("task").unwrap();
        std::fs::create_dir_all(root.checkpoint(&task)).unwrap();
        let runner = socket::bind_datagram(&root.control(&task)).unwrap();
        thread::scope(|scope| {
            scope.spawn(|| {
                poll(&mut [PollFd::new(runner.as_fd(), PollFlags::POLLIN)], PollTimeout::NONE)
                    .unwrap();
                hears(socket::receive(runner.as_fd()).unwrap().unwrap());
            });
            follow(&root, &task)
        })
    }

    #[test]
    fn a_runner_that_dies_before_it_hears_of_its_follower_is_absent() {
        let followed = followed(drop);

        assert!(matches!(followed, Err(ControlError::Absent(_))), "{followed:?}");
    }

    #[test]
    fn the_first_nudge_is_left_to_the_follower() {
        let followed = followed(|datagram| {
            let mut nudges = UnixStream::from(datagram.fd.unwrap());
            std::io::Write::write_all(&mut nudges, &[0]).unwrap();
        });

        let mut nudges = Vec::new();
        UnixStream::from(followed.unwrap()).read_to_end(&mut nudges).unwrap();
        assert_eq!(nudges, [0]);
    }
}
