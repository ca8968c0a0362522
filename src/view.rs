//! What is told about a task. Pure.
//!
//! Every view of a task (command line, API, page) is made here, from the accepted [`Launch`] and from the
//! [`TaskState`] that [`Replay`] folds out of its stream: no two of them can disagree, and none can disagree with
//! the runner, which folds the same events by the same function.
//!
//! The JSON of these messages is the contract of the command line. What is not known or does not apply is absent;
//! zero, `false` and empty lists that are known are there.

use nix::sys::signal::Signal;
use pbjson_types::Duration;

use crate::proto::{
    self, Containment, KillView, Launch, LimitsView, PauseView, ProcessView, RunView,
    TaskStateEntry, TaskView, Timestamp, Usage,
};
use crate::state::{
    ApplyError, Event, Outcome, Phase, Process, RecordError, Run, RunEnd, RunState, RunStep,
    Settled, Stamp, TaskState,
};
use crate::task::{ProcessName, ProcessSpec, Resources, TaskSpec, Violation, change};
use crate::usage;

/// Why a record could not be taken in: the stream is corrupt, or from a newer dewar.
#[derive(Debug, thiserror::Error)]
pub enum ReplayError {
    /// The stream does not begin with the task.
    #[error("record 0 holds no task")]
    NoLaunch,
    /// The task of the header breaks a rule of the schema.
    #[error("the task in record 0 is not valid: {}", .0.first().map(ToString::to_string).unwrap_or_default())]
    Launch(Vec<Violation>),
    /// The record holds no event.
    #[error("record {seq} {error}")]
    Record {
        /// Number of the record.
        seq: u64,
        /// What is wrong with it.
        error: RecordError,
    },
    /// The event cannot follow the ones before it.
    #[error("record {seq} {error}")]
    Apply {
        /// Number of the record.
        seq: u64,
        /// What it breaks.
        error: ApplyError,
    },
}

/// An event that was applied.
#[derive(Debug, Clone, PartialEq)]
pub struct Applied {
    /// Number of its record.
    pub seq: u64,
    /// When it happened.
    pub at: Stamp,
    /// The event.
    pub event: Event,
}

/// A task as far as its stream was read.
#[derive(Debug, Clone, PartialEq)]
pub struct Replay {
    launch: Launch,
    state: TaskState,
    /// Why the end of the task was asked for, as was said last.
    reason: Option<String>,
}

impl Replay {
    /// Starts with the first record of a runner's stream.
    ///
    /// # Errors
    ///
    /// [`ReplayError`] if the record holds no valid task.
    pub fn new(header: proto::Record) -> Result<Self, ReplayError> {
        let Some(proto::record::Kind::Launch(launch)) = header.kind else {
            return Err(ReplayError::NoLaunch);
        };
        Self::accepted(launch)
    }

    /// Starts with a task that was accepted, before anything happened to it.
    ///
    /// # Errors
    ///
    /// [`ReplayError`] if it holds no valid task.
    pub fn accepted(launch: Launch) -> Result<Self, ReplayError> {
        let task = launch.task.as_ref().ok_or(ReplayError::NoLaunch)?;
        let spec = TaskSpec::from_proto(task).map_err(ReplayError::Launch)?;
        let state = TaskState::new(spec, launch.loss_limit);
        Ok(Self { launch, state, reason: None })
    }

    /// Takes in the next record; the reader of the stream has seen to it that none is missing.
    ///
    /// # Errors
    ///
    /// [`ReplayError`] says what is wrong with the record; the state is then the one before it.
    pub fn apply(&mut self, record: proto::Record) -> Result<Applied, ReplayError> {
        let seq = record.seq;
        let at = Stamp::of(&record);
        let event =
            Event::from_record(record).map_err(|error| ReplayError::Record { seq, error })?;
        self.state.apply(&event, at).map_err(|error| ReplayError::Apply { seq, error })?;
        if let Event::KillRequested { reason: Some(reason), .. } = &event {
            self.reason = Some(reason.clone());
        }
        Ok(Applied { seq, at, event })
    }

    /// The task as it was accepted.
    pub fn launch(&self) -> &Launch {
        &self.launch
    }

    /// The task as it is.
    pub fn state(&self) -> &TaskState {
        &self.state
    }

    /// All that is told about the task; `runner_pid`: its runner, if one lives.
    pub fn view(&self, runner_pid: Option<i32>) -> TaskView {
        let view = task_view(&self.launch, &self.state, runner_pid);
        let detail = match (view.detail, &self.reason) {
            (Some(detail), Some(reason)) => Some(format!("{detail}: {reason}")),
            (detail, _) => detail,
        };
        TaskView { detail, ..view }
    }

    /// What is told about an event that was just applied.
    pub fn event(&self, applied: &Applied) -> Option<proto::Event> {
        event_view(&self.launch, &self.state, applied)
    }
}

/// The runs of a process as far as the stream of its coordinators was read.
///
/// A coordinator writes down what it saw; what that means for the task is for the runner to say, in its own stream.
#[derive(Debug, Clone, PartialEq)]
pub struct CoordinatorReplay {
    view: ProcessView,
}

impl CoordinatorReplay {
    /// The stream of the coordinators of `process`, of which nothing was read yet.
    pub fn new(process: &ProcessName) -> Self {
        Self { view: ProcessView { name: process.to_string(), ..Default::default() } }
    }

    /// Takes in the next record.
    ///
    /// # Errors
    ///
    /// [`ReplayError`] if it is not about a run.
    pub fn apply(&mut self, record: proto::Record) -> Result<(), ReplayError> {
        let (seq, at) = (record.seq, Stamp::of(&record));
        if matches!(record.kind, Some(proto::record::Kind::Coordinator(_))) {
            return Ok(());
        }
        let event =
            Event::from_record(record).map_err(|error| ReplayError::Record { seq, error })?;
        let Event::Run { run, step, .. } = event else {
            return Err(ReplayError::Record { seq, error: RecordError::UnknownKind });
        };
        if self.view.runs.last().is_none_or(|last| last.run != run) {
            self.view.runs.push(RunView { run, ..Default::default() });
        }
        if let Some(view) = self.view.runs.last_mut() {
            take_step(view, step, at);
            self.view.state = Some(view.state);
        }
        Ok(())
    }

    /// What is told of the process: its runs.
    pub fn view(&self) -> &ProcessView {
        &self.view
    }
}

fn take_step(view: &mut RunView, step: RunStep, at: Stamp) {
    let state = match step {
        RunStep::Opened => RunState::Waiting,
        RunStep::Forked { coordinator } => {
            view.coordinator_pid = Some(coordinator.pid);
            RunState::Forked
        }
        RunStep::Running { pid } => {
            view.pid = Some(pid.pid);
            view.start_time = Some(time(at));
            RunState::Running
        }
        RunStep::Unkillable(unkillable) => {
            view.unkillable = Some(*unkillable);
            return;
        }
        RunStep::Ended(end) => {
            (view.exit_code, view.signal) = outcome(&end);
            view.end_time = Some(time(at));
            view.state = end.to_proto().state;
            view.verdict = Some(end.verdict);
            view.usage = end.usage;
            return;
        }
    };
    view.state = state.to_proto().into();
}

/// The limits in force that the kernel rounds, of the task as a whole (`None`) or of a process by index: as the last change left
/// them, else as the task was accepted.
pub fn rounded(launch: &Launch, state: &TaskState, process: Option<u32>) -> Vec<String> {
    let of = format!("{}.", change::path(process));
    let accepted = || launch.rounded.iter().filter(|line| line.starts_with(&of)).cloned();
    state.limited().get(&process).cloned().unwrap_or_else(|| accepted().collect())
}

fn all_rounded(launch: &Launch, state: &TaskState) -> Vec<String> {
    let processes = (0..state.processes().len() as u32).map(Some);
    // Most tasks have none.
    if launch.rounded.is_empty() && state.limited().is_empty() {
        return Vec::new();
    }
    std::iter::once(None).chain(processes).flat_map(|of| rounded(launch, state, of)).collect()
}

/// All that is told about a task; `runner_pid`: its runner, if one lives.
pub fn task_view(launch: &Launch, state: &TaskState, runner_pid: Option<i32>) -> TaskView {
    let processes = state.spec().processes.iter().zip(state.processes());
    TaskView {
        task_id: launch.task_id.clone(),
        name: state.spec().name.clone(),
        user: launch.identity.as_ref().map(|who| who.user.clone()).unwrap_or_default(),
        // An accepted task is ACTIVE in all but its first record.
        state: state.phase().unwrap_or(Phase::Active).to_proto().into(),
        sandbox: launch.sandbox.clone(),
        ports: launch.ports.clone(),
        // What still holds the lock of a task that is over has nothing left to run.
        runner_pid: runner_pid.filter(|_| !state.phase().is_some_and(Phase::is_terminal)),
        state_history: state.history().iter().map(history_entry).collect(),
        unenforced: launch.unenforced.clone(),
        processes: processes.map(|(spec, process)| process_view(spec, process)).collect(),
        log_dir: log_dir(launch),
        detail: task_detail(state),
        containment: containment(launch).to_owned(),
        dropped_bytes: Some(state.dropped_bytes()).filter(|&bytes| bytes > 0),
        usage: task_usage(state),
        paused_since: state.pause().map(|pause| time(pause.since)),
        rounded: all_rounded(launch, state),
        lost_limits: Vec::new(),
        resources: state.spec().resources.as_ref().map(Resources::to_proto),
        labels: launch.labels.clone(),
        waits_for_disk: None,
    }
}

/// What a task has used as far as it is recorded: what was read at its end, or else what its ended runs used together.
pub fn task_usage(state: &TaskState) -> Option<Usage> {
    let runs = || usage::together(state.processes().iter().flat_map(|of| &of.runs));
    state.usage().copied().or_else(runs)
}

/// How many processes have succeeded, but for those whose end nobody waits for.
pub fn done_count(view: &TaskView) -> usize {
    let is_done = |of: &&ProcessView| of.state() == proto::ProcessState::Success && !of.daemon;
    view.processes.iter().filter(is_done).count()
}

/// What is told about a task whose checkpoint cannot be read: `read` is as far as it could be.
pub fn corrupt_view(task_id: &str, read: Option<&Replay>, detail: String) -> TaskView {
    let view = read.map(|replay| replay.view(None)).unwrap_or_default();
    TaskView {
        task_id: task_id.to_owned(),
        state: proto::TaskState::Corrupt.into(),
        detail: Some(detail),
        ..view
    }
}

/// What is told about an event; `state` is the task after it. Some events concern the runner alone.
pub fn event_view(launch: &Launch, state: &TaskState, applied: &Applied) -> Option<proto::Event> {
    let mut view = proto::Event {
        task_id: launch.task_id.clone(),
        cursor: applied.seq,
        time: Some(time(applied.at)),
        ..Default::default()
    };
    match &applied.event {
        Event::Entered(phase) => view.task_state = Some(phase.to_proto().into()),
        &Event::Run { process, run, .. } => {
            view.process = Some(state.spec().processes[process as usize].name.to_string());
            view.run = Some(run_view(run, &state.processes()[process as usize].runs[run as usize]));
        }
        &Event::KillRequested { deadline, lost, by_uid, ref reason, .. } => {
            let wait = nanos(deadline.saturating_sub(applied.at.boot));
            let reason = reason.clone();
            view.kill = Some(KillView { lost, by_uid, wait: Some(wait), reason });
        }
        &Event::Paused { by_uid, .. } => view.pause = Some(PauseView { paused: true, by_uid }),
        &Event::Resumed { by_uid, .. } => view.pause = Some(PauseView { paused: false, by_uid }),
        Event::Limited { process, resources, by_uid, put_back, .. } => {
            let name = |index: u32| state.spec().processes[index as usize].name.to_string();
            view.limits = Some(LimitsView {
                process: process.map(name),
                resources: Some(resources.to_proto()),
                by_uid: *by_uid,
                put_back: *put_back,
            });
        }
        Event::Led(_) | Event::Terminated { .. } | Event::Doomed { .. } | Event::Used(_) => {
            return None;
        }
    }
    Some(view)
}

/// Directory of the task's logs (T59).
pub fn log_dir(launch: &Launch) -> String {
    launch.log_dir.clone().unwrap_or_else(|| format!("{}/.logs", launch.sandbox))
}

/// Name of a signal, such as `SIGKILL`; real-time signals count from `SIGRTMIN`.
pub fn signal_name(signal: u8) -> String {
    /// First real-time signal that the C libraries leave to programs.
    const RTMIN: u8 = 34;
    match Signal::try_from(i32::from(signal)) {
        Ok(signal) => signal.as_str().to_owned(),
        Err(_) if (RTMIN..=64).contains(&signal) => format!("SIGRTMIN+{}", signal - RTMIN),
        Err(_) => format!("signal {signal}"),
    }
}

fn containment(launch: &Launch) -> &'static str {
    match launch.containment() {
        Containment::Cgroup => "cgroup",
        Containment::None => "none",
        Containment::Unspecified => "",
    }
}

fn history_entry(&(phase, at): &(Phase, Stamp)) -> TaskStateEntry {
    TaskStateEntry { state: phase.to_proto().into(), time: Some(time(at)) }
}

fn process_view(spec: &ProcessSpec, process: &Process) -> ProcessView {
    let runs = (0..).zip(&process.runs);
    ProcessView {
        name: spec.name.to_string(),
        state: process_state(process).map(|state| state.to_proto().into()),
        daemon: spec.daemon,
        ephemeral: spec.ephemeral,
        r#final: spec.is_final,
        runs: runs.map(|(number, run)| run_view(number, run)).collect(),
        detail: process_detail(process),
        resources: spec.resources.as_deref().map(Resources::to_proto).map(Box::new),
    }
}

/// The state of a process: FAILED once it has failed for good, whatever its last run was; else that of its last
/// run, which of a process that is finished is SUCCESS (of an ephemeral that failed: FAILED, T23). Absent before
/// the first.
pub fn process_state(process: &Process) -> Option<RunState> {
    match process.settled {
        Some(Settled::Failed) => Some(RunState::Failed),
        Some(Settled::Finished) | None => process.runs.last().map(|run| run.state),
    }
}

fn run_view(number: u32, run: &Run) -> RunView {
    let end = run.end.as_deref();
    let (exit_code, signal) = end.map_or((None, None), outcome);
    RunView {
        run: number,
        state: run.state.to_proto().into(),
        coordinator_pid: run.coordinator.map(|id| id.pid),
        pid: run.pid.map(|id| id.pid),
        start_time: run.started.map(time),
        end_time: run.ended.map(time),
        exit_code,
        signal,
        verdict: end.map(|end| end.verdict.clone()),
        usage: end.and_then(|end| end.usage),
        unkillable: run.unkillable.as_deref().cloned(),
    }
}

/// Exit status or name of the signal.
pub(crate) fn outcome(end: &RunEnd) -> (Option<u32>, Option<String>) {
    match end.outcome {
        Outcome::Exited(code) => (Some(code.into()), None),
        Outcome::Signalled(signal) => (None, Some(signal_name(signal))),
        Outcome::NotStarted | Outcome::Dropped | Outcome::Lost => (None, None),
    }
}

/// Why a process is settled as it is.
pub(crate) fn process_detail(process: &Process) -> Option<String> {
    let last = process.runs.last()?;
    process.settled?;
    match last.state {
        RunState::Failed => {
            let runs = process.runs.len();
            Some(format!("failed {} of {runs} run{}", process.failures, plural(runs)))
        }
        RunState::Killed | RunState::Lost => {
            Some(format!("{} losses in a row", process.losses_in_row))
        }
        _ => None,
    }
}

/// Why the task ended, or is ending, as it does.
fn task_detail(state: &TaskState) -> Option<String> {
    if let Some(kill) = state.kill() {
        let what = if kill.lost { "declared lost on request" } else { "killed on request" };
        return Some(what.to_owned());
    }
    if state.is_healthy() {
        return failed_finalizers(state);
    }
    if state.is_deadlocked() {
        return deadlock(state);
    }
    let counts = |spec: &ProcessSpec| !spec.is_final && !spec.ephemeral;
    let regular = state.spec().processes.iter().filter(|spec| counts(spec));
    let failed = failed(state, counts);
    let (count, all) = (failed.len(), regular.count());
    Some(format!("{count} of {all} process{} failed: {}", plural_es(all), enumerate(&failed)))
}

fn failed_finalizers(state: &TaskState) -> Option<String> {
    let failed = failed(state, |spec| spec.is_final && !spec.ephemeral);
    let count = failed.len();
    (count > 0).then(|| format!("finalizer{} failed: {}", plural(count), enumerate(&failed)))
}

/// Names of the processes that failed for good, in declared order.
fn failed(state: &TaskState, among: impl Fn(&ProcessSpec) -> bool) -> Vec<&str> {
    let processes = state.spec().processes.iter().zip(state.processes());
    processes
        .filter(|(spec, process)| among(spec) && process.settled == Some(Settled::Failed))
        .map(|(spec, _)| spec.name.as_str())
        .collect()
}

/// T26: somebody waits for a process that failed. Nobody is waited for through an ephemeral (T12).
fn deadlock(state: &TaskState) -> Option<String> {
    let spec = state.spec();
    let waits = |&process: &u32| !spec.processes[process as usize].ephemeral;
    let name = |process: u32| &spec.processes[process as usize].name;
    let failed = (0..).zip(state.processes()).filter(|&(index, process)| {
        process.settled == Some(Settled::Failed) && !spec.processes[index as usize].is_final
    });
    failed
        .filter_map(|(index, _)| {
            let waiting = spec.graph.successors[index as usize].iter().copied().find(waits)?;
            Some(format!("deadlock: {} waits for {}, which failed", name(waiting), name(index)))
        })
        .next()
}

/// A list of names for people: the first few.
pub(crate) fn enumerate(names: &[&str]) -> String {
    const SHOWN: usize = 5;
    let shown = names[..names.len().min(SHOWN)].join(", ");
    match names.len().saturating_sub(SHOWN) {
        0 => shown,
        more => format!("{shown} and {more} more"),
    }
}

fn plural(count: usize) -> &'static str {
    if count == 1 { "" } else { "s" }
}

fn plural_es(count: usize) -> &'static str {
    if count == 1 { "" } else { "es" }
}

fn time(at: Stamp) -> Timestamp {
    Timestamp::from_unix_nanos(at.wall)
}

fn nanos(nanos: u64) -> Duration {
    std::time::Duration::from_nanos(nanos).into()
}

#[cfg(test)]
pub(crate) mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::proto::record::Kind;
    use crate::state::{Leader, ProcessId};

    /// Second 0 of the tests: the wall clock in nanoseconds.
    const EPOCH: i64 = 1_785_576_600_000_000_000;

    /// A task whose stream is written by hand, one record a millisecond of both clocks.
    pub(crate) struct Script {
        pub(crate) replay: Replay,
        seq: u64,
    }

    pub(crate) fn process(name: &str) -> proto::Process {
        proto::Process { name: name.to_owned(), cmdline: "true".to_owned(), ..Default::default() }
    }

    pub(crate) fn task(processes: Vec<proto::Process>, orders: &[&[&str]]) -> proto::Task {
        let order = |names: &&[&str]| proto::Constraint {
            order: names.iter().map(ToString::to_string).collect(),
        };
        proto::Task {
            name: "web".to_owned(),
            processes,
            constraints: orders.iter().map(order).collect(),
            ..Default::default()
        }
    }

    pub(crate) fn launch(task: proto::Task) -> Launch {
        Launch {
            task_id: "web-1".to_owned(),
            task: Some(task),
            sandbox: "/sandbox".to_owned(),
            identity: Some(proto::Identity { user: "nobody".to_owned(), ..Default::default() }),
            containment: Containment::Cgroup.into(),
            loss_limit: 100,
            ..Default::default()
        }
    }

    pub(crate) fn ended(outcome: Outcome, reason: proto::VerdictReason) -> RunStep {
        let verdict = proto::Verdict { reason: reason.into(), ..Default::default() };
        RunStep::Ended(Box::new(RunEnd { outcome, verdict, usage: None }))
    }

    pub(crate) fn exited(code: u8) -> RunStep {
        ended(Outcome::Exited(code), proto::VerdictReason::Exited)
    }

    impl Script {
        pub(crate) fn new(launch: Launch) -> Self {
            let header = proto::Record { kind: Some(Kind::Launch(launch)), ..Default::default() };
            Self { replay: Replay::new(header).unwrap(), seq: 0 }
        }

        pub(crate) fn push(&mut self, event: &Event) -> Applied {
            self.seq += 1;
            let record = proto::Record {
                seq: self.seq,
                boot_nanos: self.seq * 1_000_000,
                unix_nanos: EPOCH + self.seq as i64 * 1_000_000,
                kind: Some(event.to_kind()),
            };
            self.replay.apply(record).unwrap()
        }

        pub(crate) fn enter(&mut self, phase: Phase) -> &mut Self {
            self.push(&Event::Entered(phase));
            self
        }

        pub(crate) fn step(&mut self, process: u32, run: u32, step: RunStep) -> &mut Self {
            self.push(&Event::Run { process, run, step });
            self
        }

        /// Opens a run, forks it and lets it run.
        pub(crate) fn start(&mut self, process: u32, run: u32) -> &mut Self {
            let id = |pid| ProcessId { pid, start_ticks: 7 };
            self.step(process, run, RunStep::Opened);
            self.step(process, run, RunStep::Forked { coordinator: id(4712) });
            self.step(process, run, RunStep::Running { pid: id(4713) })
        }

        pub(crate) fn run(&mut self, process: u32, run: u32, end: RunStep) -> &mut Self {
            self.start(process, run).step(process, run, end)
        }
    }

    fn json(value: &impl serde::Serialize) -> Value {
        serde_json::to_value(value).unwrap()
    }

    /// The JSON of the contract, to the letter: what is known is there (`exitCode` 0, `false`, `[]`), what is not
    /// is absent.
    #[test]
    fn the_json_of_a_task_is_the_contract() {
        let usage = proto::Usage {
            cpu_time: Some(Duration { seconds: 1, nanos: 500_000_000 }),
            memory_peak_bytes: Some(1 << 20),
            ..Default::default()
        };
        let mut success = exited(0);
        if let RunStep::Ended(end) = &mut success {
            end.usage = Some(usage);
        }
        let retried = proto::Process { max_failures: Some(3), ..process("server") };
        let launch = Launch {
            ports: [("http".to_owned(), 8080)].into(),
            ..launch(task(vec![retried, process("idle")], &[]))
        };
        let mut script = Script::new(launch);
        script.enter(Phase::Active).run(0, 0, exited(1));
        script.run(0, 1, ended(Outcome::Signalled(9), proto::VerdictReason::Signalled));
        script.run(0, 2, success);

        assert_eq!(
            json(&script.replay.view(Some(4711))),
            json!({
                "taskId": "web-1",
                "name": "web",
                "user": "nobody",
                "state": "TASK_STATE_ACTIVE",
                "sandbox": "/sandbox",
                "ports": {"http": 8080},
                "runnerPid": 4711,
                "stateHistory": [
                    {"state": "TASK_STATE_ACTIVE", "time": "2026-08-01T09:30:00.001000000Z"}
                ],
                "unenforced": [],
                "rounded": [],
                "lostLimits": [],
                "labels": {},
                "logDir": "/sandbox/.logs",
                "containment": "cgroup",
                "processes": [
                    {
                        "name": "server",
                        "state": "PROCESS_STATE_SUCCESS",
                        "daemon": false,
                        "ephemeral": false,
                        "final": false,
                        "runs": [
                            {
                                "run": 0,
                                "state": "PROCESS_STATE_FAILED",
                                "coordinatorPid": 4712,
                                "pid": 4713,
                                "startTime": "2026-08-01T09:30:00.004000000Z",
                                "endTime": "2026-08-01T09:30:00.005000000Z",
                                "exitCode": 1,
                                "verdict": {"reason": "VERDICT_REASON_EXITED"}
                            },
                            {
                                "run": 1,
                                "state": "PROCESS_STATE_KILLED",
                                "coordinatorPid": 4712,
                                "pid": 4713,
                                "startTime": "2026-08-01T09:30:00.008000000Z",
                                "endTime": "2026-08-01T09:30:00.009000000Z",
                                "signal": "SIGKILL",
                                "verdict": {"reason": "VERDICT_REASON_SIGNALLED"}
                            },
                            {
                                "run": 2,
                                "state": "PROCESS_STATE_SUCCESS",
                                "coordinatorPid": 4712,
                                "pid": 4713,
                                "startTime": "2026-08-01T09:30:00.012000000Z",
                                "endTime": "2026-08-01T09:30:00.013000000Z",
                                "exitCode": 0,
                                "verdict": {"reason": "VERDICT_REASON_EXITED"},
                                "usage": {"cpuTime": "1.500s", "memoryPeakBytes": "1048576"}
                            }
                        ]
                    },
                    {
                        "name": "idle",
                        "daemon": false,
                        "ephemeral": false,
                        "final": false,
                        "runs": []
                    }
                ],
                "usage": {"cpuTime": "1.500s", "memoryPeakBytes": "1048576"}
            })
        );
    }

    #[test]
    fn the_json_of_a_task_is_read_back_as_the_same_task() {
        let mut script = Script::new(launch(task(vec![process("a")], &[])));
        script.enter(Phase::Active).run(0, 0, exited(0));
        let view = script.replay.view(None);

        let text = serde_json::to_string(&view).unwrap();

        assert_eq!(serde_json::from_str::<TaskView>(&text).unwrap(), view);
        assert!(!text.contains('\n'), "one object is one line");
    }

    #[test]
    fn an_event_tells_the_run_as_it_is_now() {
        let mut script = Script::new(launch(task(vec![process("a")], &[])));
        let entered = script.push(&Event::Entered(Phase::Active));
        script.start(0, 0);
        let end = script.push(&Event::Run { process: 0, run: 0, step: exited(3) });

        assert_eq!(
            json(&script.replay.event(&entered)),
            json!({
                "taskId": "web-1",
                "cursor": "1",
                "time": "2026-08-01T09:30:00.001000000Z",
                "taskState": "TASK_STATE_ACTIVE"
            })
        );
        assert_eq!(
            json(&script.replay.event(&end)),
            json!({
                "taskId": "web-1",
                "cursor": "5",
                "time": "2026-08-01T09:30:00.005000000Z",
                "process": "a",
                "run": {
                    "run": 0,
                    "state": "PROCESS_STATE_FAILED",
                    "coordinatorPid": 4712,
                    "pid": 4713,
                    "startTime": "2026-08-01T09:30:00.004000000Z",
                    "endTime": "2026-08-01T09:30:00.005000000Z",
                    "exitCode": 3,
                    "verdict": {"reason": "VERDICT_REASON_EXITED"}
                }
            })
        );
    }

    #[test]
    fn a_kill_tells_the_time_that_is_left_and_what_only_the_runner_needs_is_not_told() {
        let mut script = Script::new(launch(task(vec![process("a")], &[])));
        script.enter(Phase::Active);
        let deadline = 2_000_000 + 1_500_000_000;
        let kill = script.push(&Event::KillRequested {
            deadline,
            lost: false,
            by_uid: 0,
            by_pid: 99,
            reason: Some("disk full".to_owned()),
        });
        let led = script.push(&Event::Led(Leader {
            runner: ProcessId { pid: 1, start_ticks: 1 },
            boot_id: "b".to_owned(),
            cgroup: None,
            dropped_bytes: 12,
        }));

        let told = json(&script.replay.event(&kill));
        assert_eq!(
            told["kill"],
            json!({"lost": false, "byUid": 0, "wait": "1.500s", "reason": "disk full"})
        );
        assert_eq!(script.replay.event(&led), None);
        let view = script.replay.view(None);
        assert_eq!(view.dropped_bytes, Some(12));
        assert_eq!(view.detail.as_deref(), Some("killed on request: disk full"));
    }

    #[test]
    fn what_was_read_of_a_task_at_its_end_is_told_rather_than_the_sum_of_its_runs() {
        let mut script = Script::new(launch(task(vec![process("a")], &[])));
        let of_run = Usage { memory_peak_bytes: Some(3 << 20), ..Usage::default() };
        let mut end = exited(0);
        if let RunStep::Ended(end) = &mut end {
            end.usage = Some(of_run);
        }
        script.enter(Phase::Active).run(0, 0, end);
        assert_eq!(script.replay.view(None).usage, Some(of_run));
        script.enter(Phase::Cleaning).enter(Phase::Finalizing);
        let used = Usage { memory_peak_bytes: Some(5 << 20), ..Usage::default() };

        let applied = script.push(&Event::Used(Box::new(used)));
        script.enter(Phase::Success);

        assert_eq!(script.replay.event(&applied), None);
        assert_eq!(script.replay.view(None).usage, Some(used));
    }

    fn details(script: &Script) -> (Option<String>, Vec<Option<String>>) {
        let view = script.replay.view(None);
        (view.detail, view.processes.into_iter().map(|process| process.detail).collect())
    }

    fn said(text: &str) -> Option<String> {
        Some(text.to_owned())
    }

    #[test]
    fn a_failed_task_names_the_processes_that_failed() {
        let mut script = Script::new(launch(task(vec![process("a"), process("b")], &[])));
        script.enter(Phase::Active).run(0, 0, exited(0)).run(1, 0, exited(1));

        assert_eq!(
            details(&script),
            (said("1 of 2 processes failed: b"), vec![None, said("failed 1 of 1 run")])
        );
    }

    /// T26.
    #[test]
    fn a_deadlocked_task_says_who_waits_for_whom() {
        let mut task = task(vec![process("a"), process("b"), process("c")], &[&["a", "b", "c"]]);
        task.max_failures = Some(0);
        let mut script = Script::new(launch(task));
        script.enter(Phase::Active).run(0, 0, exited(1));

        assert_eq!(details(&script).0, said("deadlock: b waits for a, which failed"));
    }

    /// T22.
    #[test]
    fn a_process_that_was_lost_too_often_has_failed_and_says_so() {
        let launch = Launch { loss_limit: 2, ..launch(task(vec![process("a")], &[])) };
        let mut script = Script::new(launch);
        let lost = || ended(Outcome::Lost, proto::VerdictReason::CoordinatorLost);
        script.enter(Phase::Active).run(0, 0, lost()).run(0, 1, lost());

        let view = script.replay.view(None);
        assert_eq!(view.processes[0].state(), proto::ProcessState::Failed);
        assert_eq!(view.processes[0].runs[1].state(), proto::ProcessState::Lost);
        assert_eq!(view.processes[0].detail, said("2 losses in a row"));
    }

    /// T23: it never fails its task, and still it is told that it failed.
    #[test]
    fn an_ephemeral_that_failed_is_told_as_failed() {
        let ephemeral = proto::Process { ephemeral: Some(true), ..process("log") };
        let mut script = Script::new(launch(task(vec![process("a"), ephemeral], &[])));
        script.enter(Phase::Active).run(1, 0, exited(1));

        let view = script.replay.view(None);
        assert_eq!(view.processes[1].state(), proto::ProcessState::Failed);
        assert_eq!(details(&script), (None, vec![None, said("failed 1 of 1 run")]));
    }

    #[test]
    fn a_finalizer_that_failed_is_named_though_the_task_succeeds() {
        let save = proto::Process { r#final: Some(true), ..process("save") };
        let mut script = Script::new(launch(task(vec![process("a"), save], &[])));
        script.enter(Phase::Active).run(0, 0, exited(0));
        script.enter(Phase::Cleaning).enter(Phase::Finalizing).run(1, 0, exited(1));
        script.enter(Phase::Success);

        assert_eq!(details(&script).0, said("finalizer failed: save"));
    }

    #[test]
    fn a_task_that_was_accepted_and_not_begun_is_active() {
        let script = Script::new(launch(task(vec![process("a")], &[])));
        let view = script.replay.view(None);
        assert_eq!(view.state(), proto::TaskState::Active);
        assert_eq!(view.state_history, []);
    }

    #[test]
    fn a_corrupt_task_tells_what_could_be_read() {
        let mut script = Script::new(launch(task(vec![process("a")], &[])));
        script.enter(Phase::Active);

        let view = corrupt_view("web-1", Some(&script.replay), "bad frame".to_owned());

        assert_eq!(view.state(), proto::TaskState::Corrupt);
        assert_eq!((view.name.as_str(), view.state_history.len()), ("web", 1));
        assert_eq!(view.detail, said("bad frame"));
    }

    #[test]
    fn an_illegal_record_changes_nothing_and_is_named() {
        let mut script = Script::new(launch(task(vec![process("a")], &[])));
        script.enter(Phase::Active);
        let before = script.replay.clone();

        let event = Event::Run { process: 0, run: 4, step: RunStep::Opened };
        let record = proto::Record { seq: 2, kind: Some(event.to_kind()), ..Default::default() };
        let error = script.replay.apply(record).unwrap_err();

        assert_eq!(error.to_string(), "record 2 is about run 4 of \"a\", which has 0 runs");
        assert_eq!(script.replay, before);
    }

    #[test]
    fn a_coordinators_stream_tells_its_runs() {
        let record = |seq, kind| proto::Record { seq, kind: Some(kind), ..Default::default() };
        let header = proto::CoordinatorHeader { task_id: "t".into(), process: "a".into() };
        let id = |pid| ProcessId { pid, start_ticks: 1 };
        let steps = [
            (0, RunStep::Forked { coordinator: id(5) }),
            (0, RunStep::Running { pid: id(6) }),
            (0, exited(3)),
            (1, RunStep::Forked { coordinator: id(7) }),
        ];

        let mut replay = CoordinatorReplay::new(&ProcessName::new("a").unwrap());
        replay.apply(record(0, Kind::Coordinator(header))).unwrap();
        for (seq, (run, step)) in (1..).zip(steps) {
            replay.apply(record(seq, Event::Run { process: 0, run, step }.to_kind())).unwrap();
        }

        let runs = &replay.view().runs;
        assert_eq!((runs[0].state(), runs[0].exit_code), (proto::ProcessState::Failed, Some(3)));
        assert_eq!((runs[0].coordinator_pid, runs[0].pid), (Some(5), Some(6)));
        assert_eq!(
            (runs[1].state(), runs[1].coordinator_pid),
            (proto::ProcessState::Forked, Some(7))
        );
        let entered = Event::Entered(Phase::Active).to_kind();
        assert!(replay.apply(record(5, entered)).is_err());
    }

    #[test]
    fn signals_have_their_names() {
        for (number, name) in [
            (9, "SIGKILL"),
            (11, "SIGSEGV"),
            (34, "SIGRTMIN+0"),
            (64, "SIGRTMIN+30"),
            (33, "signal 33"),
        ] {
            assert_eq!(signal_name(number), name);
        }
    }
}
