//! dewar runs tasks, each a DAG of processes, in cgroup v2, and never loses track of one.
//!
//! Two programs stand on this library: `dewar`, for people, is [`cli`]; `dewar-runner`, one for each active task, is [`runner`],
//! which forks a [`coordinator`] for each run. docs/architecture.md says how they meet, and what happens when one dies.
//!
//! # The map, in the order in which to read it
//!
//! What is so, without clock or I/O:
//!
//! - [`proto`]: the messages that all others speak of, generated from `proto/dewar/v1`
//! - [`task`]: what was asked: from the bytes of a task file to a `TaskSpec`, which is always valid
//! - [`state`]: what has happened to a task, and what comes next: `apply` and `plan`, the heart of it
//!
//! What outlives us:
//!
//! - [`checkpoint`]: the streams of records on disk, their locks, and what is synced when
//! - [`cgroup`]: where runs live, how they are killed, how it is known that all of them are gone
//!
//! From a task to a process:
//!
//! - [`request`]: makes a launch of what a client asks for
//! - [`launch`]: accepts a task durably, and starts a runner for it
//! - [`runner`]: drives one task to its end: `turn` is the loop, `perform` forks coordinators, `attach` takes over
//! - [`coordinator`]: starts one run, waits for it, records its end; `start` has every step from clone to `execve`
//! - [`exec`]: a command in a live task, beside its runs
//! - [`identity`]: who a run is, resolved once
//! - [`sandbox`]: where it runs and logs, opened so that it cannot lead us elsewhere
//!
//! Looking at it, and asking:
//!
//! - [`view`]: what is told about a task, made from its records alone
//! - [`usage`]: what several runs used together
//! - [`remove`]: removes what is kept of a task that is over
//! - [`gc`]: which of them are removed by themselves, and when
//! - [`observe`]: reads and follows the streams for that
//! - [`explain`]: says why each process is running, or is not
//! - [`meter`]: samples what a task uses, and adds up what is recorded
//! - [`logs`]: reads and follows the logs of runs
//! - [`files`]: lists and reads the files of a sandbox
//! - [`disk`]: what a directory takes of its file system, once or kept current
//! - [`control`]: asks a live runner for the end of its task, or to be nudged
//! - [`reach`]: the same, where a runner may have to be started first
//! - [`daemon`]: serves all of it over gRPC
//! - [`web`]: the daemon's page, for browsers
//! - [`client`]: asks a daemon
//! - [`trace`]: tells OpenTelemetry of a Launch, if it is asked to
//! - [`cli`]: the commands
//!
//! Beneath it all:
//!
//! - [`sys`]: system calls, and the only unsafe code
//! - `tree`: walks a directory that changes meanwhile, some entries at a time
//! - [`causes`]: an error with its causes, on one line; and how it is said without harm
//! - `words`, `escape`: values in words, and text that is safe to show
//! - [`failpoint`]: named points between two effects, at which tests stop or fail us

pub mod causes;
pub mod cgroup;
pub mod checkpoint;
pub mod cli;
#[cfg(feature = "net")]
pub mod client;
pub mod control;
pub mod coordinator;
#[cfg(feature = "net")]
pub mod daemon;
pub mod disk;
mod escape;
pub mod exec;
pub mod explain;
pub mod failpoint;
pub mod files;
pub mod gc;
pub mod identity;
pub mod launch;
pub mod logs;
pub mod meter;
pub mod observe;
pub mod proto;
pub mod reach;
pub mod remove;
pub mod request;
pub mod runner;
pub mod sandbox;
pub mod state;
pub mod sys;
pub mod task;
#[cfg(test)]
mod testing;
#[cfg(feature = "net")]
pub mod trace;
mod tree;
pub mod usage;
pub mod view;
#[cfg(feature = "net")]
pub mod web;
mod words;
