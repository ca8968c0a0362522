//! Events as records of the stream, and back.

use super::event::{Event, Outcome, RunEnd, RunStep, Stamp};
use super::process::RunState;
use super::process::state_of;
use super::task::{Leader, Phase};
use crate::proto;
use crate::proto::record::Kind;
use crate::proto::run_transition::State as Step;
use crate::task::Resources;

/// Why a record is no event of a task.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RecordError {
    /// A kind that this version does not know, or none.
    #[error("is of a kind that this version of dewar does not know")]
    UnknownKind,
    /// A field is missing or out of range.
    #[error("has no valid {0}")]
    Field(&'static str),
    /// A header in the middle of the stream.
    #[error("is a second header")]
    Header,
}

/// Whether somebody who is told of a record of this kind must be able to rely on it: ends, and requests that were accepted.
/// It is on disk before it is told, and so is the acceptance of its task before it is recorded.
pub fn must_last(kind: &Kind) -> bool {
    use proto::TaskState as T;
    match kind {
        Kind::Task(task) => !matches!(task.state(), T::Active | T::Cleaning | T::Finalizing),
        Kind::Run(run) => matches!(run.state, Some(Step::Ended(_))),
        Kind::Kill(_) | Kind::Paused(_) | Kind::Resumed(_) | Kind::Limits(_) => true,
        _ => false,
    }
}

impl Stamp {
    /// The time of a record.
    pub fn of(record: &proto::Record) -> Self {
        Self { boot: record.boot_nanos, wall: record.unix_nanos }
    }
}

impl Event {
    /// The event that `record` holds.
    ///
    /// # Errors
    ///
    /// [`RecordError`] says what is wrong with the record.
    pub fn from_record(record: proto::Record) -> Result<Self, RecordError> {
        Ok(match record.kind.ok_or(RecordError::UnknownKind)? {
            Kind::Launch(_) | Kind::Coordinator(_) => return Err(RecordError::Header),
            Kind::Leader(leader) => Self::Led(Leader {
                runner: leader.runner.ok_or(RecordError::Field("runner"))?,
                boot_id: leader.boot_id,
                cgroup: leader.cgroup,
                dropped_bytes: leader.dropped_bytes,
            }),
            Kind::Task(task) => {
                Self::Entered(Phase::from_proto(task.state()).ok_or(RecordError::Field("state"))?)
            }
            Kind::Run(run) => {
                let step = run.state.ok_or(RecordError::UnknownKind)?;
                Self::Run { process: run.process, run: run.run, step: RunStep::from_proto(step)? }
            }
            Kind::Kill(kill) => Self::KillRequested {
                deadline: kill.deadline_boot_nanos,
                lost: kill.lost,
                by_uid: kill.by_uid,
                by_pid: kill.by_pid,
                reason: kill.reason,
            },
            Kind::Paused(paused) => Self::Paused { by_uid: paused.by_uid, by_pid: paused.by_pid },
            Kind::Resumed(resumed) => {
                Self::Resumed { by_uid: resumed.by_uid, by_pid: resumed.by_pid }
            }
            Kind::Limits(update) => Self::Limited {
                process: update.process,
                resources: Box::new(
                    Resources::from_proto(&update.resources.unwrap_or_default(), "resources")
                        .map_err(|_| RecordError::Field("resources"))?,
                ),
                rounded: update.rounded,
                by_uid: update.by_uid,
                by_pid: update.by_pid,
                put_back: update.put_back,
            },
            Kind::Terminated(sent) => Self::Terminated { process: sent.process, run: sent.run },
            Kind::Doomed(doomed) => {
                Self::Doomed { process: doomed.process, run: doomed.run, stage: doomed.stage() }
            }
            Kind::Used(used) => {
                Self::Used(Box::new(used.usage.ok_or(RecordError::Field("usage"))?))
            }
        })
    }

    /// The record of this event.
    pub fn to_kind(&self) -> Kind {
        match self {
            Self::Led(leader) => Kind::Leader(proto::Leader {
                runner: Some(leader.runner),
                boot_id: leader.boot_id.clone(),
                version: env!("CARGO_PKG_VERSION").to_owned(),
                cgroup: leader.cgroup.clone(),
                dropped_bytes: leader.dropped_bytes,
            }),
            Self::Entered(phase) => {
                Kind::Task(proto::TaskTransition { state: phase.to_proto().into() })
            }
            Self::Run { process, run, step } => Kind::Run(proto::RunTransition {
                process: *process,
                run: *run,
                state: Some(step_to(step)),
            }),
            &Self::KillRequested { deadline, lost, by_uid, by_pid, ref reason } => {
                Kind::Kill(proto::KillOrder {
                    deadline_boot_nanos: deadline,
                    lost,
                    by_uid,
                    by_pid,
                    reason: reason.clone(),
                })
            }
            &Self::Paused { by_uid, by_pid } => Kind::Paused(proto::Paused { by_uid, by_pid }),
            &Self::Resumed { by_uid, by_pid } => Kind::Resumed(proto::Resumed { by_uid, by_pid }),
            &Self::Limited { process, ref resources, ref rounded, by_uid, by_pid, put_back } => {
                Kind::Limits(proto::LimitsUpdate {
                    process,
                    resources: Some(resources.to_proto()),
                    rounded: rounded.clone(),
                    by_uid,
                    by_pid,
                    put_back,
                })
            }
            &Self::Terminated { process, run } => {
                Kind::Terminated(proto::Terminated { process, run })
            }
            &Self::Doomed { process, run, stage } => {
                Kind::Doomed(proto::Doomed { process, run, stage: stage.into() })
            }
            Self::Used(usage) => Kind::Used(proto::TaskUsed { usage: Some(**usage) }),
        }
    }
}

impl RunStep {
    /// The step that is recorded.
    ///
    /// # Errors
    ///
    /// [`RecordError`] says what is wrong with it.
    pub fn from_proto(step: Step) -> Result<Self, RecordError> {
        Ok(match step {
            Step::Waiting(_) => RunStep::Opened,
            Step::Forked(forked) => RunStep::Forked {
                coordinator: forked.coordinator.ok_or(RecordError::Field("coordinator"))?,
            },
            Step::Running(running) => {
                RunStep::Running { pid: running.pid.ok_or(RecordError::Field("pid"))? }
            }
            Step::Unkillable(unkillable) => RunStep::Unkillable(Box::new(unkillable)),
            Step::Ended(ended) => RunStep::Ended(Box::new(RunEnd {
                outcome: outcome_from(&ended)?,
                verdict: ended.verdict.unwrap_or_default(),
                usage: ended.usage,
            })),
        })
    }
}

fn step_to(step: &RunStep) -> Step {
    match step {
        RunStep::Opened => Step::Waiting(proto::RunWaiting {}),
        RunStep::Forked { coordinator } => {
            Step::Forked(proto::RunForked { coordinator: Some(*coordinator), ..Default::default() })
        }
        RunStep::Running { pid } => Step::Running(proto::RunRunning { pid: Some(*pid) }),
        RunStep::Unkillable(unkillable) => Step::Unkillable((**unkillable).clone()),
        RunStep::Ended(end) => Step::Ended(end.to_proto()),
    }
}

impl RunEnd {
    /// The end as it is recorded.
    pub fn to_proto(&self) -> proto::RunEnded {
        let (exit_code, signal) = match self.outcome {
            Outcome::Exited(code) => (Some(code.into()), None),
            Outcome::Signalled(signal) => (None, Some(signal.into())),
            Outcome::NotStarted | Outcome::Dropped | Outcome::Lost => (None, None),
        };
        proto::RunEnded {
            state: state_of(self).to_proto().into(),
            exit_code,
            signal,
            verdict: Some(self.verdict.clone()),
            usage: self.usage,
        }
    }
}

fn outcome_from(ended: &proto::RunEnded) -> Result<Outcome, RecordError> {
    let small = |value: u32, field| u8::try_from(value).map_err(|_| RecordError::Field(field));
    if let Some(code) = ended.exit_code {
        return Ok(Outcome::Exited(small(code, "exit_code")?));
    }
    if let Some(signal) = ended.signal {
        return Ok(Outcome::Signalled(small(signal, "signal")?));
    }
    match ended.state() {
        proto::ProcessState::Failed => Ok(Outcome::NotStarted),
        proto::ProcessState::Killed => Ok(Outcome::Dropped),
        proto::ProcessState::Lost => Ok(Outcome::Lost),
        _ => Err(RecordError::Field("state")),
    }
}

impl Phase {
    /// The phase as it is recorded and told.
    pub fn to_proto(self) -> proto::TaskState {
        match self {
            Self::Active => proto::TaskState::Active,
            Self::Cleaning => proto::TaskState::Cleaning,
            Self::Finalizing => proto::TaskState::Finalizing,
            Self::Success => proto::TaskState::Success,
            Self::Failed => proto::TaskState::Failed,
            Self::Killed => proto::TaskState::Killed,
            Self::Lost => proto::TaskState::Lost,
        }
    }

    fn from_proto(state: proto::TaskState) -> Option<Self> {
        Some(match state {
            proto::TaskState::Active => Self::Active,
            proto::TaskState::Cleaning => Self::Cleaning,
            proto::TaskState::Finalizing => Self::Finalizing,
            proto::TaskState::Success => Self::Success,
            proto::TaskState::Failed => Self::Failed,
            proto::TaskState::Killed => Self::Killed,
            proto::TaskState::Lost => Self::Lost,
            proto::TaskState::Unspecified | proto::TaskState::Corrupt => return None,
        })
    }
}

impl RunState {
    /// The state as it is recorded and told.
    pub fn to_proto(self) -> proto::ProcessState {
        match self {
            Self::Waiting => proto::ProcessState::Waiting,
            Self::Forked => proto::ProcessState::Forked,
            Self::Running => proto::ProcessState::Running,
            Self::Success => proto::ProcessState::Success,
            Self::Failed => proto::ProcessState::Failed,
            Self::Killed => proto::ProcessState::Killed,
            Self::Lost => proto::ProcessState::Lost,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::{KillOrder, RunEnded, RunRunning, RunTransition, TaskState, TaskTransition};

    /// Invariant 1: what somebody relies on once it was told is on disk before; what a power cut may take is not waited for.
    #[test]
    fn ends_and_requests_for_them_must_last() {
        let entered = |state: TaskState| Kind::Task(TaskTransition { state: state.into() });
        let run = |state| Kind::Run(RunTransition { state: Some(state), ..Default::default() });

        for end in [TaskState::Success, TaskState::Failed, TaskState::Killed, TaskState::Lost] {
            assert!(must_last(&entered(end)), "{end:?}");
        }
        assert!(must_last(&run(Step::Ended(RunEnded::default()))));
        assert!(must_last(&Kind::Kill(KillOrder::default())));
        assert!(must_last(&Kind::Paused(Default::default())));
        assert!(must_last(&Kind::Resumed(Default::default())));
        assert!(must_last(&Kind::Limits(Default::default())));

        for phase in [TaskState::Active, TaskState::Cleaning, TaskState::Finalizing] {
            assert!(!must_last(&entered(phase)), "{phase:?}");
        }
        assert!(!must_last(&run(Step::Running(RunRunning::default()))));
    }
}
