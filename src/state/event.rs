//! The events of a task's life, as values.

use crate::proto;

pub use crate::proto::{KillStage, ProcessId};

use super::task::{Leader, Phase};
use crate::task::Resources;

/// When something happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Stamp {
    /// CLOCK_BOOTTIME, nanoseconds; 0 for what happened in an earlier boot. All logic uses this clock.
    pub boot: u64,
    /// Wall clock, nanoseconds since 1970; for display only.
    pub wall: i64,
}

/// Something that happened to a task.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// A runner took the lead.
    Led(Leader),
    /// The task entered a phase.
    Entered(Phase),
    /// A run took a step.
    Run {
        /// Index of the process.
        process: u32,
        /// Run number.
        run: u32,
        /// The step.
        step: RunStep,
    },
    /// Somebody asked for the end of the task.
    KillRequested {
        /// CLOCK_BOOTTIME by which the task must be over, nanoseconds.
        deadline: u64,
        /// Whether it is to end as LOST.
        lost: bool,
        /// User id of who asked.
        by_uid: u32,
        /// Process id of who asked, for display.
        by_pid: i32,
        /// Why, for people.
        reason: Option<String>,
    },
    /// The task stands still from here on.
    Paused {
        /// User id of who asked.
        by_uid: u32,
        /// Process id of who asked, for display.
        by_pid: i32,
    },
    /// A paused task goes on.
    Resumed {
        /// User id of who asked.
        by_uid: u32,
        /// Process id of who asked, for display.
        by_pid: i32,
    },
    /// Limits were changed.
    Limited {
        /// Index of the process; `None`: the task as a whole.
        process: Option<u32>,
        /// All limits of it from here on.
        resources: Box<Resources>,
        /// Those of them that the kernel rounds, for people.
        rounded: Vec<String>,
        /// User id of who asked.
        by_uid: u32,
        /// Process id of who asked, for display.
        by_pid: i32,
        /// Whether these are the limits of before, put back.
        put_back: bool,
    },
    /// SIGTERM was sent to a run.
    Terminated {
        /// Index of the process.
        process: u32,
        /// Run number.
        run: u32,
    },
    /// A run is to be killed.
    Doomed {
        /// Index of the process.
        process: u32,
        /// Run number.
        run: u32,
        /// Why.
        stage: KillStage,
    },
    /// What the task used in all was read, when nothing of it lived any more.
    Used(Box<proto::Usage>),
}

/// A step in the life of a run.
#[derive(Debug, Clone, PartialEq)]
pub enum RunStep {
    /// The run is opened: a coordinator is about to be forked.
    Opened,
    /// Its coordinator lives.
    Forked {
        /// The coordinator.
        coordinator: ProcessId,
    },
    /// Its command line runs.
    Running {
        /// The first process of the run.
        pid: ProcessId,
    },
    /// It was killed and does not die.
    Unkillable(Box<proto::Unkillable>),
    /// It has ended.
    Ended(Box<RunEnd>),
}

/// The end of a run.
#[derive(Debug, Clone, PartialEq)]
pub struct RunEnd {
    /// How it ended.
    pub outcome: Outcome,
    /// Why it ended.
    pub verdict: proto::Verdict,
    /// What it used, as far as it is known.
    pub usage: Option<proto::Usage>,
}

/// How a run ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// Its first process exited with this status.
    Exited(u8),
    /// Its first process died by this signal.
    Signalled(u8),
    /// It could not be started.
    NotStarted,
    /// It was given up before it had a process.
    Dropped,
    /// Its end is not known.
    Lost,
}
