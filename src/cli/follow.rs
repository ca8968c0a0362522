//! Follows a task to its end: prints what happens, and passes on what a person at the terminal asks for.
//!
//! Sleeps in one poll(2): on the runner's nudges, a byte for each of its turns that recorded something; on signals;
//! and, only while a picture of live runs is shown, at most a second. The task does not depend on us: whatever
//! happens to the printing, the loop goes on to the end, for the exit status.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::time::Duration;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::failure::{Failure, status};
use super::printer::Printer;
use super::signals::Signals;
use crate::cgroup::TaskCgroup;
use crate::observe::Observed;
use crate::proto;
use crate::state::Phase;
use crate::sys::clock;
use crate::task::TaskId;
use crate::view::Replay;

/// How following a task ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Outcome {
    /// The task has ended.
    Ended(Phase),
    /// Its runner died, and it has not ended: it waits for another one.
    RunnerGone,
}

impl Outcome {
    /// The exit status that says so.
    pub(super) fn status(self) -> u8 {
        match self {
            Self::Ended(Phase::Success) => status::SUCCESS,
            Self::Ended(Phase::Failed) => status::FAILED,
            Self::Ended(Phase::Killed) => status::KILLED,
            Self::Ended(Phase::Lost) => status::LOST,
            Self::Ended(_) | Self::RunnerGone => status::UNAVAILABLE,
        }
    }
}

/// What a person asks for with ^C.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stop {
    /// The first time: end, with all the time that the task gives itself.
    Gracefully,
    /// Again: end now.
    Now,
}

/// What drives the loop beside the task itself.
#[derive(Debug)]
pub(super) struct Watch {
    /// A byte for each turn of the runner that recorded something; at its end the runner is gone.
    pub(super) nudges: OwnedFd,
    /// Signals, caught before the task was started.
    pub(super) signals: Signals,
}

/// Follows `observed` to its end and prints it. `stop` is called for each ^C and SIGTERM.
///
/// # Errors
///
/// [`Failure`] if the stream can be read no further; the task is left as it is.
pub(super) fn follow(
    observed: &mut Observed,
    watch: &mut Watch,
    printer: &mut Printer,
    mut stop: impl FnMut(Stop) -> Result<(), Failure>,
) -> Result<Outcome, Failure> {
    let mut interrupts = 0;
    let mut gone = false;
    loop {
        take_in(observed, printer)?;
        let replay = observed.replay();
        if let Some(phase) = replay.and_then(ended) {
            return end(observed, printer, phase);
        }
        if gone {
            printed(printer.clear());
            return Ok(Outcome::RunnerGone);
        }
        let timeout = replay.and_then(|replay| printer.stale_after(replay.state()));
        let ready = wait(watch, timeout)?;
        if ready.resize && watch.signals.resized() {
            printer.resized();
        }
        if ready.interrupt {
            for _ in 0..watch.signals.interrupts() {
                interrupts += 1;
                interrupted(interrupts, printer, &mut stop);
            }
        }
        if ready.nudge {
            gone = nudges_end(&watch.nudges)?;
        }
    }
}

/// Reads on, and prints what there is to print. A task is followed whether or not it can be printed.
fn take_in(observed: &mut Observed, printer: &mut Printer) -> Result<(), Failure> {
    let mut unprintable = Ok(());
    observed.advance(|replay, applied| {
        let printed = printer.event(replay, applied);
        if unprintable.is_ok() {
            unprintable = printed;
        }
    })?;
    unprintable?;
    if let Some(replay) = observed.replay() {
        let task = if printer.is_live() { cgroup(replay) } else { None };
        let cpu = |process, run| live_cpu(task.as_ref()?, replay, process, run);
        printed(printer.turn(replay, clock::boot_nanos(), &cpu));
    }
    Ok(())
}

fn ended(replay: &Replay) -> Option<Phase> {
    replay.state().phase().filter(|phase| phase.is_terminal())
}

/// The end is told once it is on disk.
fn end(observed: &mut Observed, printer: &mut Printer, phase: Phase) -> Result<Outcome, Failure> {
    observed.sync()?;
    if let Some(replay) = observed.replay() {
        printer.finish(&replay.view(None))?;
    }
    Ok(Outcome::Ended(phase))
}

fn interrupted(
    count: usize,
    printer: &mut Printer,
    stop: &mut impl FnMut(Stop) -> Result<(), Failure>,
) {
    printed(printer.clear());
    let (what, how) = match count {
        1 => ("ending the task; once more kills it now", Stop::Gracefully),
        _ => ("killing the task", Stop::Now),
    };
    eprintln!("dewar: {what}");
    if let Err(failure) = stop(how) {
        eprintln!("dewar: {failure}");
    }
}

/// A task that cannot be shown goes on, and is followed: its exit status is still to be told.
fn printed(result: io::Result<()>) {
    if let Err(error) = result {
        eprintln!("dewar: standard output: {error}");
    }
}

#[derive(Debug, Clone, Copy)]
struct Ready {
    nudge: bool,
    interrupt: bool,
    resize: bool,
}

fn wait(watch: &Watch, timeout: Option<Duration>) -> Result<Ready, Failure> {
    let Watch { nudges, signals } = watch;
    let mut fds = [
        PollFd::new(nudges.as_fd(), PollFlags::POLLIN),
        PollFd::new(signals.interrupt_fd(), PollFlags::POLLIN),
        PollFd::new(signals.resize_fd(), PollFlags::POLLIN),
    ];
    let timeout = match timeout {
        Some(timeout) => PollTimeout::try_from(timeout).unwrap_or(PollTimeout::MAX),
        None => PollTimeout::NONE,
    };
    match poll(&mut fds, timeout) {
        Ok(_) | Err(Errno::EINTR) => {}
        Err(errno) => return Err(Failure::Unavailable(format!("poll: {errno}"))),
    }
    // Whatever is said of a descriptor, an error too, its read will tell.
    let [nudge, interrupt, resize] = fds.map(|fd| fd.any().unwrap_or(true));
    Ok(Ready { nudge, interrupt, resize })
}

/// Takes the nudges that are there; says whether there will be none any more.
fn nudges_end(nudges: &OwnedFd) -> Result<bool, Failure> {
    match nix::unistd::read(nudges, &mut [0; 4096]) {
        Ok(read) => Ok(read == 0),
        Err(Errno::ECONNRESET) => Ok(true),
        Err(Errno::EINTR) => Ok(false),
        Err(errno) => Err(Failure::Unavailable(format!("the runner's nudges: {errno}"))),
    }
}

/// CPU time that a live run has used so far, as its leaf accounts for it.
fn live_cpu(task: &TaskCgroup, replay: &Replay, process: u32, run: u32) -> Option<Duration> {
    let name = &replay.state().spec().processes[process as usize].name;
    let usage = task.open_leaf(name, run).ok()??.usage();
    usage.cpu_usec.map(Duration::from_micros)
}

/// The cgroup of a task, as its runner recorded it.
fn cgroup(replay: &Replay) -> Option<TaskCgroup> {
    let path = replay.state().leader()?.cgroup.as_deref()?;
    let id = TaskId::new(replay.launch().task_id.as_str()).ok()?;
    TaskCgroup::open_existing(Path::new(path), &id).ok()?
}

/// What the state of a task is as an exit status, for one that is not followed.
pub(super) fn status_of(state: proto::TaskState) -> u8 {
    use proto::TaskState as S;
    match state {
        S::Success => status::SUCCESS,
        S::Failed => status::FAILED,
        S::Killed => status::KILLED,
        S::Lost => status::LOST,
        _ => status::UNAVAILABLE,
    }
}
