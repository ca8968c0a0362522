//! Follows a task to its end: prints what happens, and passes on what a person at the terminal asks for.
//!
//! Sleeps in one poll(2): on the runner's nudges, a byte for each of its turns that recorded something; on signals;
//! and, only while a picture of live runs is shown, at most a second. The task does not depend on us: whatever
//! happens to the printing, the loop goes on to the end, for the exit status.

use std::io::Write;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::failure::{Failure, status};
use super::printer::Printer;
use super::signals::Signals;
use crate::causes::tell;
use crate::cgroup::TaskCgroup;
use crate::observe::Observed;
use crate::proto;
use crate::state::Phase;
use crate::sys::clock;
use crate::task::TaskId;
use crate::view::Replay;

/// Time that a runner gets to leave once its task has ended.
const LEAVE: Duration = Duration::from_secs(2);

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
pub(super) fn follow<W: Write>(
    observed: &mut Observed,
    watch: &mut Watch,
    printer: &mut Printer<W>,
    mut stop: impl FnMut(Stop) -> Result<(), Failure>,
) -> Result<Outcome, Failure> {
    let mut interrupts = 0;
    let mut gone = false;
    loop {
        take_in(observed, printer)?;
        let replay = observed.replay();
        if let Some(phase) = replay.and_then(ended) {
            end(observed, printer);
            wait_for_runner(watch);
            return Ok(Outcome::Ended(phase));
        }
        if gone {
            printed(printer.clear().map_err(Failure::from));
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
fn take_in<W: Write>(observed: &mut Observed, printer: &mut Printer<W>) -> Result<(), Failure> {
    observed.advance_durably(|replay, applied| printed(printer.event(replay, applied)))?;
    if let Some(replay) = observed.replay() {
        let task = if printer.is_live() { cgroup(replay) } else { None };
        let cpu = |process, run| live_cpu(task.as_ref()?, replay, process, run);
        printed(printer.turn(replay, clock::boot_nanos(), &cpu).map_err(Failure::from));
    }
    Ok(())
}

fn ended(replay: &Replay) -> Option<Phase> {
    replay.state().phase().filter(|phase| phase.is_terminal())
}

fn end<W: Write>(observed: &Observed, printer: &mut Printer<W>) {
    if let Some(replay) = observed.replay() {
        printed(printer.finish(&replay.view(None)));
    }
}

/// Waits until the runner has filed the task away and is gone, so that nothing of it is left when we end. One that cannot do
/// so is not waited for any longer: what it has to do whoever next leads the task does.
fn wait_for_runner(watch: &Watch) {
    let deadline = Instant::now() + LEAVE;
    let mut fds = [PollFd::new(watch.nudges.as_fd(), PollFlags::POLLIN)];
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let ready = poll(&mut fds, PollTimeout::try_from(left).unwrap_or(PollTimeout::ZERO));
        match ready {
            Ok(0) => return,
            Err(Errno::EINTR) => {}
            _ if matches!(nudges_end(&watch.nudges), Ok(false)) => {}
            _ => return,
        }
    }
}

fn interrupted<W: Write>(
    count: usize,
    printer: &mut Printer<W>,
    stop: &mut impl FnMut(Stop) -> Result<(), Failure>,
) {
    printed(printer.clear().map_err(Failure::from));
    let (what, how) = match count {
        1 => ("ending the task; once more kills it now", Stop::Gracefully),
        _ => ("killing the task", Stop::Now),
    };
    tell!("dewar: {what}");
    if let Err(failure) = stop(how) {
        tell!("dewar: {failure}");
    }
}

/// A task that cannot be shown goes on, and is followed: its exit status is still to be told.
fn printed(result: Result<(), Failure>) {
    if let Err(failure) = result {
        tell!("dewar: {failure}");
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
pub(super) fn nudges_end(nudges: &OwnedFd) -> Result<bool, Failure> {
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
    Duration::try_from(usage.cpu_time?).ok()
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

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io;

    use super::*;
    use crate::cli::args::Output;
    use crate::cli::printer::tests::{printed, printer};
    use crate::observe::tests::Node;

    const WHOLE: [Phase; 4] = [Phase::Active, Phase::Cleaning, Phase::Finalizing, Phase::Failed];

    /// A watch, and the other ends of its descriptors: nudges and interrupts.
    fn watch() -> (Watch, File, impl Write) {
        let (nudges, nudge) = io::pipe().unwrap();
        let (signals, interrupt) = Signals::by_hand();
        (Watch { nudges: nudges.into(), signals }, OwnedFd::from(nudge).into(), interrupt)
    }

    fn no_stop(_: Stop) -> Result<(), Failure> {
        panic!("nobody asked for the end");
    }

    #[test]
    fn a_task_is_followed_to_its_end_and_told_as_its_last_line() {
        let node = Node::new("followed");
        let task = node.task("a", &WHOLE);
        let mut observed = Observed::open(&node.root, &task).unwrap();
        let mut printer = printer(Output::Json, Vec::new());

        let outcome = follow(&mut observed, &mut watch().0, &mut printer, no_stop).unwrap();

        assert_eq!((outcome, outcome.status()), (Outcome::Ended(Phase::Failed), 1));
        let lines: Vec<serde_json::Value> =
            printed(printer).lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        let states: Vec<_> = lines.iter().map(|line| line["taskState"].as_str()).collect();
        let state = |name| Some(name);
        assert_eq!(
            states,
            [
                state("TASK_STATE_ACTIVE"),
                state("TASK_STATE_CLEANING"),
                state("TASK_STATE_FINALIZING"),
                state("TASK_STATE_FAILED"),
                None
            ]
        );
        assert_eq!(lines[4]["state"], "TASK_STATE_FAILED");
        assert_eq!(lines[4]["runnerPid"], serde_json::Value::Null);
    }

    /// What the runner wrote before it died is told, too.
    #[test]
    fn a_runner_that_is_gone_before_the_end_is_told_after_all_that_it_recorded() {
        let node = Node::new("gone");
        let task = node.task("a", &WHOLE[..2]);
        let mut observed = Observed::open(&node.root, &task).unwrap();
        let mut printer = printer(Output::Text, Vec::new());
        let (mut watch, nudge, _interrupt) = watch();
        drop(nudge);

        let outcome = follow(&mut observed, &mut watch, &mut printer, no_stop).unwrap();

        assert_eq!((outcome, outcome.status()), (Outcome::RunnerGone, 5));
        assert_eq!(printed(printer).lines().count(), 2);
    }

    #[test]
    fn the_first_interrupt_asks_for_the_end_and_the_second_for_it_now() {
        let node = Node::new("interrupted");
        let task = node.task("a", &WHOLE[..1]);
        let mut observed = Observed::open(&node.root, &task).unwrap();
        let (mut watch, nudge, mut interrupt) = watch();
        let mut nudge = Some(nudge);
        interrupt.write_all(b"X").unwrap();
        let mut asked = Vec::new();

        let stop = |stop| {
            asked.push(stop);
            match stop {
                Stop::Gracefully => interrupt.write_all(b"X").unwrap(),
                Stop::Now => nudge = None,
            }
            Ok(())
        };
        let mut printer = printer(Output::Text, Vec::new());
        follow(&mut observed, &mut watch, &mut printer, stop).unwrap();

        assert_eq!(asked, [Stop::Gracefully, Stop::Now]);
    }

    /// S50: SIGPIPE ends the printing, not the following.
    #[test]
    fn a_task_that_nobody_looks_at_is_followed_for_its_exit_status() {
        let node = Node::new("unseen");
        let task = node.task("a", &WHOLE);
        let mut observed = Observed::open(&node.root, &task).unwrap();
        for to in ["/dev/full", "pipe"] {
            let to: File = match to {
                "pipe" => OwnedFd::from(io::pipe().unwrap().1).into(),
                path => File::options().write(true).open(path).unwrap(),
            };
            let mut printer = printer(Output::Json, to);

            let outcome = follow(&mut observed, &mut watch().0, &mut printer, no_stop).unwrap();

            assert_eq!(outcome, Outcome::Ended(Phase::Failed));
        }
    }
}
