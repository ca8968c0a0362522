//! Why each process of a task is running, or is not, in words.
//!
//! The reasons are those of the planner ([`crate::state::explain`]): here they get names, numbers and the circumstances that the
//! records do not tell, as whether a runner lives that acts on them.
#![allow(clippy::disallowed_methods, reason = "reads streams")]

use crate::causes::chain;
use crate::checkpoint::Root;
use crate::checkpoint::paths::Place;
use crate::observe::{Found, ObserveError, find, runner_pid};
use crate::proto::{self, Launch, ProcessExplanation, ProcessReason, TaskExplanation};
use crate::state::{KillStage, Phase, RunState, TaskState, Why, explain as reasons};
use crate::sys::clock;
use crate::task::TaskId;
use crate::view::{Replay, corrupt_view, enumerate, outcome, process_detail, task_view};

/// Most names that are listed of the processes that one waits for.
const NAMES: usize = 100;

/// What is said of a task that waits for space, by whoever is told so by its runner.
pub const WAITS_FOR_DISK: &str =
    "waits for space on its disk: what happens cannot be recorded, or a run has no space to begin";

/// What is so around a task.
#[derive(Debug, Clone, Copy)]
struct Circumstances {
    /// CLOCK_BOOTTIME, nanoseconds.
    now: u64,
    /// Whether a runner lives.
    has_runner: bool,
    /// Whether its last runner lived before the machine was booted anew.
    rebooted: bool,
}

/// Says why each process of a task is running, or is not.
///
/// # Errors
///
/// [`ObserveError`], but never for a damaged stream: what is said is then why it cannot be read.
pub fn explain(root: &Root, id: &TaskId, place: Place) -> Result<TaskExplanation, ObserveError> {
    let replay = match find(root, id, place)? {
        Found::Begun(observed) => observed.replay().cloned(),
        Found::Unbegun(launch) => launch.and_then(|launch| Replay::accepted(*launch).ok()),
        Found::Damaged(read, error) => {
            let view = corrupt_view(id.as_str(), read.as_deref(), chain(&error));
            return Ok(TaskExplanation {
                task_id: view.task_id,
                state: view.state,
                notes: vec![format!("nothing of it is run: {}", chain(&error))],
                processes: Vec::new(),
            });
        }
    };
    let Some(replay) = replay else {
        let notes = vec!["accepted, and not begun".to_owned()];
        let state = proto::TaskState::Active.into();
        return Ok(TaskExplanation {
            task_id: id.to_string(),
            state,
            notes,
            processes: Vec::new(),
        });
    };
    let last_boot = replay.state().leader().map(|leader| leader.boot_id.as_str());
    let around = Circumstances {
        now: clock::boot_nanos(),
        has_runner: runner_pid(root, id)?.is_some(),
        rebooted: last_boot.is_some_and(|last| clock::boot_id().is_ok_and(|boot| boot != last)),
    };
    Ok(explanation(replay.launch(), replay.state(), around))
}

fn explanation(launch: &Launch, state: &TaskState, around: Circumstances) -> TaskExplanation {
    let view = task_view(launch, state, None);
    let is_over = state.phase().is_some_and(Phase::is_terminal);
    let mut notes: Vec<_> = view.detail.into_iter().collect();
    if let Some(pause) = state.pause() {
        notes.push(format!("paused by user {}; `dewar resume-paused` lets it go on", pause.by_uid));
    }
    if around.rebooted && !is_over {
        notes.push("the machine was booted anew: whatever ran then is lost".to_owned());
    }
    if !around.has_runner && !is_over {
        let text =
            "no runner: what is due is not started until `dewar resume` or a daemon starts one";
        notes.push(text.to_owned());
    }
    let whys = reasons(state, around.now);
    TaskExplanation {
        task_id: view.task_id,
        state: view.state,
        notes,
        processes: (0..)
            .zip(whys)
            .map(|(index, why)| process(state, index, &why, around))
            .collect(),
    }
}

fn process(state: &TaskState, index: u32, why: &Why, around: Circumstances) -> ProcessExplanation {
    let name = |of: u32| state.spec().processes[of as usize].name.to_string();
    let others: &[u32] = match why {
        Why::WaitsFor(others) => &others[..others.len().min(NAMES)],
        Why::Blocked(failed) => std::slice::from_ref(failed),
        _ => &[],
    };
    let until = match *why {
        Why::MinDuration { until } => Some(until),
        Why::Terminating { until } => until,
        _ => None,
    };
    let stands_still = state.pause().is_some() || around.rebooted;
    let left = until.filter(|_| !stands_still).map(|until| until.saturating_sub(around.now));
    ProcessExplanation {
        process: name(index),
        reason: reason(why).into(),
        text: text(state, index, why, around),
        waits_for: others.iter().map(|&of| name(of)).collect(),
        left: left.map(|nanos| std::time::Duration::from_nanos(nanos).into()),
    }
}

fn reason(why: &Why) -> ProcessReason {
    match why {
        Why::Starting => ProcessReason::Starting,
        Why::Running => ProcessReason::Running,
        Why::Terminating { .. } => ProcessReason::Terminating,
        Why::Dying { .. } => ProcessReason::Dying,
        Why::Finished => ProcessReason::Finished,
        Why::Failed => ProcessReason::Failed,
        Why::Lost => ProcessReason::Lost,
        Why::WaitsFor(_) => ProcessReason::WaitsFor,
        Why::Blocked(_) => ProcessReason::Blocked,
        Why::Finalizer => ProcessReason::Finalizer,
        Why::MinDuration { .. } => ProcessReason::MinDuration,
        Why::Concurrency => ProcessReason::MaxConcurrency,
        Why::Paused => ProcessReason::Paused,
        Why::Teardown => ProcessReason::Teardown,
        Why::Over => ProcessReason::Over,
        Why::Due => ProcessReason::Due,
    }
}

fn text(state: &TaskState, index: u32, why: &Why, around: Circumstances) -> String {
    let name = |of: u32| state.spec().processes[of as usize].name.as_str();
    let of = &state.processes()[index as usize];
    let runs = of.runs.len();
    let run = runs.saturating_sub(1);
    let is_live = of.live_run().is_some();
    if around.rebooted && is_live {
        return format!("run {run} was lost when the machine went down");
    }
    let text = match why {
        Why::Starting => format!("run {run} is being started"),
        Why::Running if state.pause().is_some() => {
            format!("run {run} is frozen: the task is paused")
        }
        Why::Running => format!("run {run} runs"),
        Why::Terminating { .. } => {
            format!("run {run} was sent SIGTERM, and is killed at the deadline")
        }
        Why::Dying { stage } => {
            let cannot = of.runs.last().is_some_and(|run| run.unkillable.is_some());
            let how = if cannot { "was killed and does not die" } else { "is being killed" };
            format!("run {run} {how}: {}", stage_text(*stage))
        }
        Why::Finished => match of.runs.last().map(|run| run.state) {
            Some(RunState::Success) | None => format!("run {run} succeeded"),
            Some(_) => "failed, and is ephemeral: that counts as done".to_owned(),
        },
        Why::Failed | Why::Lost => process_detail(of).unwrap_or_default(),
        Why::WaitsFor(others) => {
            let names: Vec<_> = others.iter().map(|&of| name(of)).collect();
            format!("waits for {}", enumerate(&names))
        }
        Why::Blocked(failed) => format!("never runs: waits for {}, which failed", name(*failed)),
        Why::Finalizer => "a finalizer: runs once the others have ended".to_owned(),
        Why::MinDuration { .. } => format!("min_duration after run {run} is not over"),
        Why::Concurrency => {
            format!("{} run already, as max_concurrency allows", state.spec().max_concurrency)
        }
        Why::Paused => "the task is paused".to_owned(),
        Why::Teardown => "a finalizer before it is being killed first".to_owned(),
        Why::Over if runs == 0 => "never ran: nothing is started as the task ends".to_owned(),
        Why::Over => "is not run again: nothing is started as the task ends".to_owned(),
        Why::Due if around.has_runner => "due: the runner is about to start it".to_owned(),
        Why::Due => "due, but the task has no runner".to_owned(),
    };
    match last_end(state, index, why) {
        Some(end) => format!("{text}; {end}"),
        None => text,
    }
}

/// How the last run ended, where that is not the reason itself, and how often it may still fail.
fn last_end(state: &TaskState, index: u32, why: &Why) -> Option<String> {
    if matches!(why, Why::Finished) {
        return None;
    }
    let of = &state.processes()[index as usize];
    let (number, run) = of.runs.iter().enumerate().rfind(|(_, run)| run.end.is_some())?;
    let (exit_code, signal) = outcome(run.end.as_deref()?);
    let how = match (exit_code, signal) {
        (Some(code), _) => format!("exit status {code}"),
        (None, Some(signal)) => signal,
        (None, None) if run.state == RunState::Lost => "lost".to_owned(),
        (None, None) => "not started".to_owned(),
    };
    let limit = state.spec().processes[index as usize].max_failures;
    let failures = match (of.failures, limit) {
        (0, _) => String::new(),
        (failures, 0) => format!(", {failures} failed so far"),
        (failures, limit) => format!(", {failures} of {limit} failures"),
    };
    Some(format!("run {number}: {how}{failures}"))
}

fn stage_text(stage: KillStage) -> &'static str {
    match stage {
        KillStage::Unspecified | KillStage::Terminate => "the task ends",
        KillStage::Deadline => "the time of the task to end is over",
        KillStage::Teardown => "the task has come to its end",
        KillStage::Request => "a kill came while it ran",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::observe::tests::Node;
    use crate::proto::VerdictReason;
    use crate::state::{Event, Outcome, RunStep};
    use crate::view::tests::{Script, ended, exited, launch, process, task};

    const HERE: Circumstances = Circumstances { now: 0, has_runner: true, rebooted: false };

    fn told(script: &Script, around: Circumstances) -> Vec<(String, String)> {
        let told = explanation(script.replay.launch(), script.replay.state(), around);
        told.processes.into_iter().map(|of| (of.process, of.text)).collect()
    }

    fn texts(script: &Script, around: Circumstances) -> Vec<String> {
        told(script, around).into_iter().map(|(_, text)| text).collect()
    }

    fn scene() -> Script {
        let retried = proto::Process { max_failures: Some(3), ..process("retried") };
        let names = ["a", "b", "c", "d", "e", "f", "g"];
        let processes = [vec![retried], names.map(process).into(), vec![process("last")]].concat();
        let orders = names.map(|name| [name, "last"]);
        let orders: Vec<&[&str]> = orders.iter().map(|order| &order[..]).collect();
        let mut script = Script::new(launch(task(processes, &orders)));
        script.enter(Phase::Active);
        script
    }

    #[test]
    fn a_retry_says_how_the_last_run_ended_and_how_often_it_may_still_fail() {
        let mut script = scene();
        script.run(0, 0, exited(3)).run(
            0,
            1,
            ended(Outcome::Signalled(9), VerdictReason::Signalled),
        );
        let told = explanation(script.replay.launch(), script.replay.state(), HERE);
        let retried = &told.processes[0];
        assert_eq!(retried.reason(), ProcessReason::MinDuration);
        assert_eq!(
            retried.text,
            "min_duration after run 1 is not over; run 1: SIGKILL, 1 of 3 failures"
        );
        // The default is 5 s after its end.
        let ended = script.replay.state().processes()[0].runs[1].ended.unwrap().boot;
        let left = std::time::Duration::from_nanos(ended + 5_000_000_000);
        assert_eq!(retried.left, Some(left.into()));
    }

    #[test]
    fn the_first_few_that_are_waited_for_are_said_and_all_are_listed() {
        let script = scene();
        let told = explanation(script.replay.launch(), script.replay.state(), HERE);
        let last = told.processes.last().unwrap();
        assert_eq!(last.text, "waits for a, b, c, d, e and 2 more");
        assert_eq!(last.waits_for, ["a", "b", "c", "d", "e", "f", "g"]);
    }

    /// Whether somebody acts on it is not in the records.
    #[test]
    fn without_a_runner_nothing_is_promised() {
        let script = scene();
        assert_eq!(texts(&script, HERE)[1], "due: the runner is about to start it");
        let alone = Circumstances { has_runner: false, ..HERE };
        assert_eq!(texts(&script, alone)[1], "due, but the task has no runner");
        let notes = explanation(script.replay.launch(), script.replay.state(), alone).notes;
        assert!(notes.iter().any(|note| note.starts_with("no runner: ")), "{notes:?}");
    }

    #[test]
    fn after_a_reboot_no_run_is_said_to_run_and_no_time_to_be_left() {
        let mut script = scene();
        script.start(1, 0).run(0, 0, exited(1));
        let after = Circumstances { rebooted: true, has_runner: false, now: 5 };
        let told = explanation(script.replay.launch(), script.replay.state(), after);
        assert_eq!(told.processes[1].text, "run 0 was lost when the machine went down");
        assert_eq!(told.processes[0].left, None);
    }

    #[test]
    fn what_stands_still_has_no_time_left() {
        let mut script = scene();
        script.run(0, 0, exited(1)).start(1, 0);
        script.push(&Event::Paused { by_uid: 7, by_pid: 1 });
        let told = explanation(script.replay.launch(), script.replay.state(), HERE);
        assert_eq!(told.notes, ["paused by user 7; `dewar resume-paused` lets it go on"]);
        assert_eq!(
            told.processes[0].text,
            "the task is paused; run 0: exit status 1, 1 of 3 failures"
        );
        assert_eq!(told.processes[0].left, None);
        assert_eq!(told.processes[1].text, "run 0 is frozen: the task is paused");
    }

    #[test]
    fn an_end_says_what_became_of_each_process() {
        let mut script = scene();
        script.run(1, 0, exited(1)).run(2, 0, exited(0));
        script.enter(Phase::Cleaning).enter(Phase::Finalizing).enter(Phase::Failed);
        let texts = texts(&script, HERE);
        assert_eq!(texts[0], "never ran: nothing is started as the task ends");
        assert_eq!(texts[1], "failed 1 of 1 run; run 0: exit status 1, 1 of 1 failures");
        assert_eq!(texts[2], "run 0 succeeded");
        assert_eq!(texts[8], "never runs: waits for a, which failed");
    }

    /// A run that could not be forked has no process that could have exited.
    #[test]
    fn a_run_that_was_not_started_says_so() {
        let mut script = scene();
        script.step(0, 0, RunStep::Opened);
        script.step(0, 0, ended(Outcome::NotStarted, VerdictReason::LaunchFailed));
        assert!(texts(&script, HERE)[0].ends_with("run 0: not started, 1 of 3 failures"));
    }

    #[test]
    fn a_damaged_stream_is_said_to_be_one() {
        let node = Node::new("explain-damaged");
        let id = node.task("a", &[Phase::Active, Phase::Active]);
        let told = explain(&node.root, &id, Place::Active).unwrap();
        assert_eq!(told.state(), proto::TaskState::Corrupt);
        assert!(told.notes[0].starts_with("nothing of it is run: "), "{:?}", told.notes);
    }
}
