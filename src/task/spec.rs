//! A task that is valid: every rule of the schema holds, every default is spelled out.

use std::num::{NonZeroU32, NonZeroU64};
use std::time::Duration;

use super::{ProcessName, Resources};

/// Default of both `max_failures`: the first failure counts.
pub const MAX_FAILURES: u32 = 1;
/// Default of `max_concurrency`: no limit.
pub const MAX_CONCURRENCY: u32 = 0;
/// Default of `finalization_wait`.
pub const FINALIZATION_WAIT: Duration = Duration::from_secs(30);
/// Default of `min_duration`.
pub const MIN_DURATION: Duration = Duration::from_secs(5);
/// Default of `rotate.log_size`: 100 MiB.
pub const LOG_SIZE: NonZeroU64 = NonZeroU64::new(100 << 20).expect("100 MiB is not zero");
/// Default of `rotate.backups`.
pub const BACKUPS: NonZeroU32 = NonZeroU32::new(5).expect("5 is not zero");

/// A task: processes, their order, limits and policy.
#[derive(Debug, Clone, PartialEq)]
pub struct TaskSpec {
    /// Name; goes into the default task id.
    pub name: String,
    /// Processes in declared order; their index is their number in records.
    pub processes: Vec<ProcessSpec>,
    /// Who waits for whom.
    pub graph: Graph,
    /// What the task as a whole may use.
    pub resources: Option<Resources>,
    /// Failed processes that fail the task; 0: no limit.
    pub max_failures: u32,
    /// Most runs of one plan alive at once; 0: no limit.
    pub max_concurrency: u32,
    /// One budget for CLEANING and FINALIZING together.
    pub finalization_wait: Duration,
    /// User that the runs belong to; `None`: whoever runs the task.
    pub user: Option<String>,
}

/// One command line of a task.
#[derive(Debug, Clone, PartialEq)]
pub struct ProcessSpec {
    /// Unique name.
    pub name: ProcessName,
    /// Argument of `/bin/bash -c`.
    pub cmdline: String,
    /// Failed runs that fail the process; 0: retry for ever.
    pub max_failures: u32,
    /// Run again after success.
    pub daemon: bool,
    /// Not waited for; its failure never fails the task.
    pub ephemeral: bool,
    /// Least time from the end of a run to the start of the next.
    pub min_duration: Duration,
    /// Belongs to the finalizing plan.
    pub is_final: bool,
    /// Where its output goes; `None`: what the launch says.
    pub logger: Option<Logger>,
    /// What a run may use; in a box, since most have none.
    pub resources: Option<Box<Resources>>,
}

impl ProcessSpec {
    /// A process with every default.
    pub fn new(name: ProcessName, cmdline: impl Into<String>) -> Self {
        Self {
            name,
            cmdline: cmdline.into(),
            max_failures: MAX_FAILURES,
            daemon: false,
            ephemeral: false,
            min_duration: MIN_DURATION,
            is_final: false,
            logger: None,
            resources: None,
        }
    }
}

/// Where output goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Logger {
    /// Written to `<log_dir>/<process>/<run>/{stdout,stderr}`; `None`: no files.
    pub file: Option<FileMode>,
    /// Copied to the runner's own stdout and stderr.
    pub console: bool,
}

/// How log files grow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum FileMode {
    /// Without bound.
    #[default]
    Standard,
    /// Rotated by size.
    Rotate(Rotate),
}

/// Bounds of rotated files.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rotate {
    /// A file that has reached this many bytes is rotated.
    pub log_size: NonZeroU64,
    /// Rotated files kept beside the live one.
    pub backups: NonZeroU32,
}

impl Default for Rotate {
    fn default() -> Self {
        Self { log_size: LOG_SIZE, backups: BACKUPS }
    }
}

/// The order of processes as edges between their indexes: a DAG.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Graph {
    /// By process: how many others it waits for.
    pub predecessors: Vec<u32>,
    /// By process: who waits for it, each once, ascending.
    pub successors: Vec<Vec<u32>>,
}
