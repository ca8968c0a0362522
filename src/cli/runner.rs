//! Runners, as commands need them: one that lives is followed or asked; where none does, one is started.

use std::ffi::OsString;
use std::ops::ControlFlow;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::failure::{Failure, status};
use super::words;
use crate::cgroup::{self, Base, FindError};
use crate::checkpoint::Root;
use crate::control::{self, ControlError, Request};
use crate::launch::{self, Console, LaunchError, Started, Waiting};
use crate::observe::{self, Observed};
use crate::proto::{Containment, ControlRequest, Launch};
use crate::sys::pidfd::{self, Exit};
use crate::sys::socket;
use crate::task::TaskId;

/// Pause between two tries to reach a runner that holds its task and does not listen yet.
const PAUSE: Duration = Duration::from_millis(2);
/// Times that a runner is started to hear a request.
const STARTS: u32 = 3;
/// Tries, a few seconds in all.
const TRIES: u32 = 1500;

/// Deaths of runners within [`DEATHS_WITHIN`] after which no other one is started.
const DEATHS: usize = 3;
/// Time within which deaths count together.
const DEATHS_WITHIN: Duration = Duration::from_secs(10);

/// A runner that is followed.
#[derive(Debug)]
pub(super) struct Followed {
    /// A byte for each turn that recorded something.
    pub(super) nudges: OwnedFd,
    /// The runner, if it is ours.
    pub(super) pidfd: Option<OwnedFd>,
}

impl From<Started> for Followed {
    fn from(started: Started) -> Self {
        Self { nudges: started.nudges, pidfd: Some(started.pidfd) }
    }
}

/// Follows the runner of a task, and starts one where none lives.
///
/// # Errors
///
/// [`Failure::Unavailable`].
pub(super) fn follow(root: &Root, id: &TaskId, console: Console) -> Result<Followed, Failure> {
    match reach(root, id, || control::follow(root, id)) {
        Ok(nudges) => Ok(Followed { nudges, pidfd: None }),
        Err(ControlError::Absent(_)) => start(root, id, console),
        Err(error) => Err(Failure::unavailable(&error)),
    }
}

/// Asks for the end of a task: its runner, or one that is started to hear it.
///
/// # Errors
///
/// [`Failure::Unavailable`].
pub(super) fn kill(root: &Root, id: &TaskId, wait: Duration, lost: bool) -> Result<(), Failure> {
    order(root, id, &control::to_kill(wait, lost)).map(drop)
}

/// Asks the runner of a task to do something, or one that is started for it and hears it first of all. Tells which limits the
/// kernel rounded.
///
/// # Errors
///
/// [`Failure::Unavailable`].
pub(super) fn order(root: &Root, id: &TaskId, request: &Request) -> Result<Vec<String>, Failure> {
    let mut answer = Err(ControlError::Absent(id.clone()));
    for _ in 0..STARTS {
        answer = reach(root, id, || control::order(root, id, request.clone()));
        if !matches!(answer, Err(ControlError::Absent(_))) {
            break;
        }
        let (ours, theirs) = socket::pair().map_err(|error| Failure::unavailable(&error))?;
        let request = ControlRequest { request: Some(request.clone()) };
        prepare(root, id, Console::Log)?.go_with(&request, theirs.as_fd())?;
        drop(theirs);
        answer = control::answer(root, id, ours);
        // Another runner was faster, say: that one is asked then.
        if !matches!(answer, Err(ControlError::Unanswered(_))) {
            break;
        }
    }
    answer.map_err(|error| Failure::unavailable(&error))
}

/// Asks again while a runner holds the task and does not listen yet.
fn reach<T>(
    root: &Root,
    id: &TaskId,
    ask: impl Fn() -> Result<T, ControlError>,
) -> Result<T, ControlError> {
    for _ in 0..TRIES {
        match ask() {
            Err(ControlError::Absent(_))
                if matches!(observe::runner_pid(root, id), Ok(Some(_))) =>
            {
                std::thread::sleep(PAUSE);
            }
            answer => return answer,
        }
    }
    ask()
}

fn start(root: &Root, id: &TaskId, console: Console) -> Result<Followed, Failure> {
    Ok(prepare(root, id, console)?.go()?.into())
}

/// Starts a runner, in the base that the task was run in before; it waits for the word to go.
fn prepare(root: &Root, id: &TaskId, console: Console) -> Result<Waiting, Failure> {
    let mut observed = Observed::open(root, id)?;
    observed.advance(|_, _| {})?;
    let Some(replay) = observed.replay() else {
        return Err(Failure::from(LaunchError::Unknown(id.clone())));
    };
    let cgroup = replay.state().leader().and_then(|leader| leader.cgroup.as_deref());
    let base = base_of(replay.launch(), cgroup)?;
    Ok(launch::prepare_runner(root, id, base.as_ref(), console)?)
}

/// The base that a task was run in before, if it can still be had; else the one that is found here.
fn base_of(launch: &Launch, cgroup: Option<&str>) -> Result<Option<Base>, Failure> {
    if launch.containment() == Containment::None {
        return Ok(None);
    }
    // `<base>/tasks/<id>`.
    let before = cgroup.and_then(|path| Path::new(path).ancestors().nth(2));
    if let Some(before) = before
        && let Ok(base) = cgroup::find(&cgroup::Options { explicit: Some(before.to_owned()) })
    {
        return Ok(Some(base));
    }
    find_base(None).map(Some)
}

/// Finds the base cgroup. An ordinary user who was given none gets one from its own systemd, where that runs: this
/// program is then replaced by one that runs in a scope of its own.
///
/// # Errors
///
/// [`Failure::Unavailable`] says what was found and what to do.
pub(super) fn find_base(explicit: Option<PathBuf>) -> Result<Base, Failure> {
    cgroup::find(&cgroup::Options { explicit }).map_err(|error| {
        if matches!(error, FindError::NotDelegated { .. }) {
            let args: Vec<OsString> = std::env::args_os().skip(1).collect();
            if let Some(mut command) = cgroup::systemd_scope_command(&args) {
                // Returns only if it could not be done; what to do instead is in `error`.
                let _ = command.exec();
            }
        }
        Failure::unavailable(&error)
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
            eprintln!("dewar: the runner of task {task} died by signal {signal}; another goes on");
            return Ok(ControlFlow::Continue(follow(root, id, console)?));
        }
        Some(Ok(Exit::Signal(signal))) => {
            let within = DEATHS_WITHIN.as_secs();
            let how = format!("died by signal {signal}, the {DEATHS}rd within {within} s");
            (how, status::UNAVAILABLE)
        }
        Some(Ok(Exit::Code(status::DEFECT))) => {
            (format!("exited with status {}", status::DEFECT), status::DEFECT)
        }
        Some(Ok(Exit::Code(code))) => (format!("exited with status {code}"), status::UNAVAILABLE),
        Some(Err(_)) | None => ("is gone".to_owned(), status::UNAVAILABLE),
    };
    eprintln!(
        "dewar: the runner of task {task} {how}; `dewar resume {task}` goes on with the task"
    );
    Ok(ControlFlow::Break(exit))
}

impl From<LaunchError> for Failure {
    fn from(error: LaunchError) -> Self {
        Self::unavailable(&error)
    }
}
