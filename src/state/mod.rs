//! What has happened to a task, and what comes next. Pure: no clock, no I/O.
//!
//! - [`TaskState::apply`] advances the state by one event; every legal move is there.
//! - [`plan`] says what should happen next; it stops saying so once the record of it is applied.
//! - [`explain`] says of each process why it is running, or is not, by the same rules.
//! - Time comes in as a value. Recovery is replay followed by an ordinary turn.
//!
//! ```text
//! task     ACTIVE ──> CLEANING ──> FINALIZING ──> SUCCESS | FAILED | KILLED | LOST
//!                        └────── budget used up ─────^
//!
//! run      WAITING ──> FORKED ──> RUNNING ──> SUCCESS | FAILED | KILLED | LOST
//!             └───────────┴─── not started ──────^
//! ```
//!
//! Two plans share these rules (T17): the regular one runs while the task is ACTIVE, the finalizing
//! one, of processes that are `final`, while it is FINALIZING.

mod event;
mod explain;
mod plan;
mod process;
mod record;
mod task;
#[cfg(test)]
mod tests;

pub use event::{Event, KillStage, Outcome, ProcessId, RunEnd, RunStep, Stamp};
pub use explain::{Why, explain};
pub use plan::{Effect, plan, wake};
pub use process::{Process, Run, RunState, Settled};
pub use record::{RecordError, must_last};
pub use task::{ApplyError, Kill, Leader, Pause, Phase, TaskState};
