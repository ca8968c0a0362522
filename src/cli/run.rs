//! `dewar run` and `dewar resume`.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::unistd::geteuid;

use super::args::{self, Output, Resume, Run};
use super::failure::{Failure, status};
use super::file::{self, Asked};
use super::follow::{self, Outcome, Stop, Watch};
use super::out::Out;
use super::printer::{Printer, stdout_style};
use super::runner::{self, Deaths, Followed};
use super::signals::Signals;
use super::term::escape;
use super::{json, place, report};
use crate::causes::tell;
use crate::cgroup::{Applied, Base};
use crate::checkpoint::Root;
use crate::checkpoint::paths::Place;
use crate::launch::{self, Accepted, Console, LaunchError, Waiting};
use crate::observe::{self, Observed};
use crate::proto::{Containment, Launch};
use crate::request::{self, DEFAULT_PATH, RequestError};
use crate::state::{Phase, RunState, TaskState};
use crate::task::{TaskId, TaskSpec};

/// How long a first run may take to begin before a task is left to itself.
const BEGINS: Duration = Duration::from_secs(2);

/// What `--cgroup none` means.
const WEAKER: &str = "--cgroup none is weaker: a process of the task that outlives its coordinator and the runner is \
    lost sight of";

/// How a runner is had that waits for the word to go.
pub(super) type Prepare =
    fn(&Root, &TaskId, Option<&Base>, Console) -> Result<Waiting, LaunchError>;

/// Runs a task to its end, by a runner that `prepare` makes; or with `--detach` until it is accepted.
///
/// # Errors
///
/// [`Failure`].
pub(super) fn run(args: &Run, prepare: Prepare) -> Result<u8, Failure> {
    let asked = match &args.file {
        Some(path) => file::task_file(path, &args.bindings)?,
        None => file::simple_task(&args.command, &args.name, args.max_failures, &args.bindings)?,
    };
    if args.chroot && !geteuid().is_root() {
        return Err(Failure::Unavailable(
            "--chroot: only root may change the root directory".into(),
        ));
    }
    let root = place::root(&args.local.root)?;
    let base = match args.cgroup {
        args::Cgroup::V2 => Some(runner::find_base(args.cgroup_base.clone())?),
        args::Cgroup::None => {
            tell!("dewar: {WEAKER}");
            None
        }
    };
    let limits = limits(&asked.accepted.spec, base.as_ref(), args.allow_unenforced)?;
    let id = asked.accepted.task_id.clone();
    let spec = asked.accepted.spec.clone();
    let launch = launch_of(args, asked, &root, base.is_some(), limits)?;
    // From here on ^C is for the task.
    let signals = if args.detach { None } else { Some(catch()?) };
    let console = console(args.detach, args.output);
    // A runner makes itself ready while the task goes to the disk. The log of one that outlasts us is kept with the task, once there is one.
    let ahead = (!args.detach).then(|| prepare(&root, &id, base.as_ref(), console)).transpose()?;
    let started = launch::accept_and_begin(&root, &id, &launch, |accepted| {
        if accepted == Accepted::Active {
            refuse_if_held(&root, &id)?;
        }
        let start = || launch::prepare_runner(&root, &id, base.as_ref(), console);
        let waiting = ahead.map_or_else(start, Ok)?;
        match accepted {
            Accepted::New => waiting.go_afresh(),
            Accepted::Active => waiting.go(),
        }
    });
    let started = started.map_err(|error| not_launched(&root, &id, error))?;
    match signals {
        Some(signals) => to_the_end(&root, &id, &spec, started.into(), signals, args.output),
        None => {
            wait_until_begun(&root, &id, &started.nudges)?;
            detached(&root, &id, args.output)
        }
    }
}

/// Waits until something of a task runs, or has run; until nothing will; or for [`BEGINS`].
///
/// In a unit of systemd this process is the main one. When that ends systemd removes whatever cgroup of the unit is empty, and a
/// task whose first run is not born yet has no process in any of its own.
fn wait_until_begun(root: &Root, id: &TaskId, nudges: &OwnedFd) -> Result<(), Failure> {
    let deadline = Instant::now() + BEGINS;
    let mut observed = Observed::open(root, id)?;
    loop {
        observed.advance(|_, _| {})?;
        if observed.replay().is_some_and(|replay| has_begun(replay.state())) {
            return Ok(());
        }
        let left = PollTimeout::try_from(deadline.saturating_duration_since(Instant::now()));
        let mut fds = [PollFd::new(nudges.as_fd(), PollFlags::POLLIN)];
        match poll(&mut fds, left.unwrap_or(PollTimeout::ZERO)) {
            Err(Errno::EINTR) => {}
            Ok(1..) if nix::unistd::read(nudges, &mut [0; 64]).is_ok_and(|read| read > 0) => {}
            // It takes long, or the runner is gone: that is told by whoever looks.
            _ => return Ok(()),
        }
    }
}

/// Whether a run of a task runs or has run, or none will.
fn has_begun(task: &TaskState) -> bool {
    let waits = |state| matches!(state, RunState::Waiting | RunState::Forked);
    task.phase().is_some_and(|phase| phase != Phase::Active)
        || task.processes().iter().any(|of| of.runs.last().is_some_and(|run| !waits(run.state)))
}

/// Goes on with a task to its end, or with `--detach` until a runner lives.
///
/// # Errors
///
/// [`Failure`].
pub(super) fn resume(args: &Resume) -> Result<u8, Failure> {
    let root = place::root(&args.local.root)?;
    let id = place::task_id(&args.task)?;
    let place = whereabouts(&root, &id)?;
    let sight = observe::look(&root, &id, place)?;
    if sight.view.state() == crate::proto::TaskState::Corrupt {
        return Err(Failure::Unavailable(sight.view.detail.unwrap_or_default()));
    }
    if place == Place::Finished {
        Out::default().write(match args.output {
            Output::Json => json::task(&sight.view, None)?,
            Output::Text => report::summary(&sight.view, stdout_style()),
        })?;
        return Ok(follow::status_of(sight.view.state()));
    }
    let signals = if args.detach { None } else { Some(catch()?) };
    let followed = runner::follow(&root, &id, console(args.detach, args.output))?;
    match signals {
        Some(signals) => {
            let task = launch::header(&root, &id)?.task.unwrap_or_default();
            let spec = TaskSpec::from_proto(&task)
                .map_err(|_| Failure::Defect(format!("the accepted task {id} is not valid")))?;
            to_the_end(&root, &id, &spec, followed, signals, args.output)
        }
        None => detached(&root, &id, args.output),
    }
}

/// Where a task is kept that was named.
pub(super) fn whereabouts(root: &Root, id: &TaskId) -> Result<Place, Failure> {
    let is_at = |place: &Place| root.task(*place, id).exists();
    [Place::Active, Place::Finished].into_iter().find(is_at).ok_or_else(|| {
        let dir = root.path().display();
        Failure::Usage(escape(&format!("there is no task {id} in {dir}")).into_owned())
    })
}

fn catch() -> Result<Signals, Failure> {
    Signals::catch().map_err(|error| Failure::Unavailable(format!("catch signals: {error}")))
}

fn console(detach: bool, output: Output) -> Console {
    match output {
        _ if detach => Console::Log,
        Output::Json => Console::Stderr,
        Output::Text => Console::Inherit,
    }
}

/// S26: two runners, one leader.
fn refuse_if_held(root: &Root, id: &TaskId) -> Result<(), LaunchError> {
    match observe::runner_pid(root, id)? {
        None => Ok(()),
        Some(pid) => Err(LaunchError::Held {
            task: id.clone(),
            holder: format!("the runner with pid {pid}; `dewar resume {id}` follows it"),
        }),
    }
}

/// Of a task that was not launched nothing is left to run: one that has begun, and that nobody can rely on, is killed.
fn not_launched(root: &Root, id: &TaskId, error: LaunchError) -> Failure {
    if matches!(error, LaunchError::Uncertain { .. })
        && let Err(failure) = runner::kill(root, id, Duration::ZERO, false, None)
    {
        tell!("dewar: {failure}");
    }
    error.into()
}

/// Follows a task through as many runners as it takes.
fn to_the_end(
    root: &Root,
    id: &TaskId,
    spec: &TaskSpec,
    followed: Followed,
    signals: Signals,
    output: Output,
) -> Result<u8, Failure> {
    let mut observed = Observed::open(root, id)?;
    let mut printer = Printer::new(output, spec);
    let stop = |stop| {
        let wait = match stop {
            Stop::Gracefully => spec.finalization_wait,
            Stop::Now => Duration::ZERO,
        };
        runner::kill(root, id, wait, false, None)
    };
    let mut watch = Watch { nudges: followed.nudges, signals };
    let mut pidfd = followed.pidfd;
    let mut deaths = Deaths::default();
    loop {
        match follow::follow(&mut observed, &mut watch, &mut printer, stop)? {
            outcome @ Outcome::Ended(_) => return Ok(outcome.status()),
            Outcome::RunnerGone => {
                match runner::go_on(root, id, console(false, output), pidfd, &mut deaths)? {
                    ControlFlow::Continue(followed) => {
                        (watch.nudges, pidfd) = (followed.nudges, followed.pidfd);
                    }
                    ControlFlow::Break(status) => return Ok(status),
                }
            }
        }
    }
}

fn detached(root: &Root, id: &TaskId, output: Output) -> Result<u8, Failure> {
    Out::default().write(match output {
        Output::Text => format!("{id}\n"),
        Output::Json => json::task(&observe::look(root, id, Place::Active)?.view, None)?,
    })?;
    Ok(status::SUCCESS)
}

/// What this host cannot enforce: refused by name, or told and kept if that was allowed (S42). What the kernel rounds is told.
fn limits(spec: &TaskSpec, base: Option<&Base>, allowed: bool) -> Result<Applied, Failure> {
    let applied = try_out(spec, base)?;
    let told = |what: Vec<String>| what.join("; ");
    if !applied.unenforceable.is_empty() {
        let missing = told(applied.unenforceable.iter().map(ToString::to_string).collect());
        if !allowed {
            let what = "--allow-unenforced runs the task without";
            return Err(Failure::Unavailable(format!("{missing}; {what}")));
        }
        tell!("dewar: {}", escape(&missing));
    }
    if !applied.rounded.is_empty() {
        let rounded = told(applied.rounded.iter().map(ToString::to_string).collect());
        tell!("dewar: {}", escape(&rounded));
    }
    Ok(applied)
}

/// What becomes of the limits of a task in `base`; `None`: without cgroups.
pub(super) fn try_out(spec: &TaskSpec, base: Option<&Base>) -> Result<Applied, Failure> {
    request::try_out(spec, base).map_err(|error| Failure::unavailable(&error))
}

fn launch_of(
    args: &Run,
    asked: Asked,
    root: &Root,
    contained: bool,
    limits: Applied,
) -> Result<Launch, Failure> {
    let Asked { accepted, identity } = asked;
    let containment = if contained { Containment::Cgroup } else { Containment::None };
    let ports = &args.bindings.ports;
    let options = request::Options {
        sandbox: args.sandbox.clone(),
        log_dir: args.log_dir.clone(),
        ports: ports.iter().map(|(name, port)| (name.clone(), port.get())).collect(),
        chroot: args.chroot,
        labels: BTreeMap::new(),
        path: path()?,
    };
    let launch = request::launch(root, accepted, identity, options, containment, limits);
    launch.map_err(|error| match error {
        RequestError::NotUtf8 { .. } => Failure::Usage(error.to_string()),
        error => Failure::unavailable(&error),
    })
}

fn path() -> Result<String, Failure> {
    match std::env::var_os("PATH") {
        None => Ok(DEFAULT_PATH.to_owned()),
        Some(path) => {
            path.into_string().map_err(|path| Failure::Usage(format!("PATH {path:?} is not UTF-8")))
        }
    }
}
