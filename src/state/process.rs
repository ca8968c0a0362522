//! A process and its runs.

use super::event::{KillStage, Outcome, ProcessId, RunEnd, Stamp};
use crate::proto;

/// State of a run; the last four end it (T30).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum RunState {
    /// Opened; its coordinator is about to be forked.
    Waiting,
    /// Its coordinator lives.
    Forked,
    /// Its command line runs.
    Running,
    /// Exited with 0.
    Success,
    /// Exited with another status, crashed, ran out of memory, or could not be started.
    Failed,
    /// Died by a signal: a loss, not a failure.
    Killed,
    /// Its coordinator died, or the machine was booted anew: a loss, not a failure.
    Lost,
}

impl RunState {
    /// Whether the run has not ended.
    pub fn is_live(self) -> bool {
        matches!(self, Self::Waiting | Self::Forked | Self::Running)
    }
}

/// One attempt of a process.
#[derive(Debug, Clone, PartialEq)]
pub struct Run {
    /// Its state.
    pub state: RunState,
    /// Its coordinator, as recorded.
    pub coordinator: Option<ProcessId>,
    /// Its first process, as recorded.
    pub pid: Option<ProcessId>,
    /// When its command line was executed.
    pub started: Option<Stamp>,
    /// When it ended.
    pub ended: Option<Stamp>,
    /// How it ended.
    pub end: Option<Box<RunEnd>>,
    /// What of it was killed and does not die, or did not.
    pub unkillable: Option<Box<proto::Unkillable>>,
    /// SIGTERM was sent to it.
    pub terminated: bool,
    /// It is to be killed, and why.
    pub doomed: Option<KillStage>,
    /// Another kill request came after its SIGTERM: it is to get one more (T49).
    pub(super) terminate_again: bool,
    /// The present leader recorded that it is to be killed. One before it may have died before the act.
    pub(super) killing: bool,
    /// A kill request came while this finalizer was live: it is torn down and run anew (T49).
    pub(super) torn_down: bool,
}

impl Run {
    /// Whether it is to be killed, or is being killed: only its end is awaited.
    pub(super) fn is_dying(&self) -> bool {
        self.torn_down || self.doomed.is_some()
    }

    pub(super) fn opened() -> Self {
        Self {
            state: RunState::Waiting,
            coordinator: None,
            pid: None,
            started: None,
            ended: None,
            end: None,
            unkillable: None,
            terminated: false,
            doomed: None,
            terminate_again: false,
            killing: false,
            torn_down: false,
        }
    }
}

/// How a process is done for good.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Settled {
    /// It counts as done: its successors may run.
    Finished,
    /// It failed: its successors never run.
    Failed,
}

/// A process: its runs, and what they add up to.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Process {
    /// Its runs; the index is the run number (T32).
    pub runs: Vec<Run>,
    /// Predecessors that are not finished.
    pub(super) unmet: u32,
    /// Failed runs over its whole life (T23).
    pub failures: u32,
    /// Runs in a row that were killed or lost (T22).
    pub losses_in_row: u32,
    /// Set once it is done for good.
    pub settled: Option<Settled>,
    /// When `min_duration` after the last run is over, CLOCK_BOOTTIME in nanoseconds: its key while delayed (T24).
    pub(super) not_before: u64,
}

impl Process {
    /// Its last run, if that has not ended.
    pub fn live_run(&self) -> Option<(u32, &Run)> {
        let run = self.runs.last().filter(|run| run.state.is_live())?;
        Some((self.runs.len() as u32 - 1, run))
    }
}

/// The state that an end puts a run in.
///
/// T21, dewar's rule: a run ended by an OOM kill or by the signal of a crash has failed; any other
/// signal is a loss.
pub(super) fn state_of(end: &RunEnd) -> RunState {
    let oom = end.verdict.reason() == proto::VerdictReason::Oom;
    match end.outcome {
        Outcome::Exited(0) if !oom => RunState::Success,
        Outcome::Exited(_) | Outcome::NotStarted => RunState::Failed,
        Outcome::Signalled(signal) if oom || is_crash(signal) => RunState::Failed,
        Outcome::Signalled(_) | Outcome::Dropped => RunState::Killed,
        Outcome::Lost => RunState::Lost,
    }
}

/// Whether the kernel sends `signal` to a program for its own fault (signal(7), action Core).
fn is_crash(signal: u8) -> bool {
    const CRASHES: [i32; 9] = [
        libc::SIGSEGV,
        libc::SIGBUS,
        libc::SIGILL,
        libc::SIGFPE,
        libc::SIGABRT,
        libc::SIGTRAP,
        libc::SIGSYS,
        libc::SIGXCPU,
        libc::SIGXFSZ,
    ];
    CRASHES.contains(&i32::from(signal))
}
