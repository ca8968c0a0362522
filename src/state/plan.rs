//! What should happen next: a pure function of the state and the time.

use super::event::KillStage;
use super::process::RunState;
use super::task::{Phase, Plan, TaskState};

/// Something that should happen. Its record is appended, then it is done; after that [`plan`] no longer asks for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Effect {
    /// The task enters a phase.
    Enter(Phase),
    /// The next run of a process is opened, and its coordinator forked. Where the coordinator stream tells of that
    /// run already, a power cut took the record of its opening: nothing is forked then, and the stream is read.
    Open {
        /// Index of the process.
        process: u32,
        /// Number of the run.
        run: u32,
    },
    /// SIGTERM is sent to every process of a run. Recorded after the act: a crash between the two sends it again,
    /// where otherwise it would never be sent.
    Terminate {
        /// Index of the process.
        process: u32,
        /// Number of the run.
        run: u32,
    },
    /// Every process of a run is killed. A new leader is asked again: the one before it may have died before the act.
    Doom {
        /// Index of the process.
        process: u32,
        /// Number of the run.
        run: u32,
        /// Why.
        stage: KillStage,
    },
}

/// What should happen next, at `now` (CLOCK_BOOTTIME, nanoseconds).
///
/// The effects of one answer are independent of each other. A phase comes alone, and
/// first of all: whether the task is over is looked at before anything is launched (D3).
pub fn plan(state: &TaskState, now: u64) -> Vec<Effect> {
    match state.phase() {
        // A paused task does not move: not to its end either, be it that all its runs have ended.
        Some(_) if state.pause().is_some() => Vec::new(),
        None => vec![Effect::Enter(Phase::Active)],
        Some(Phase::Active) => active(state, now),
        Some(Phase::Cleaning) => cleaning(state, now),
        Some(Phase::Finalizing) => finalizing(state, now),
        Some(_) => Vec::new(),
    }
}

/// The next time, CLOCK_BOOTTIME in nanoseconds, at which [`plan`] answers otherwise without an event; to be asked
/// when it answers with nothing.
///
/// A deadline that has had its effect is no such time: runs that are being killed end with an event.
pub fn wake(state: &TaskState) -> Option<u64> {
    match state.phase()? {
        _ if state.pause().is_some() => None,
        Phase::Active => next_launch(state, &state.regular),
        Phase::Cleaning => pending_deadline(state),
        Phase::Finalizing => {
            let launch = next_launch(state, &state.finalizing).filter(|_| !any_dying(state));
            pending_deadline(state).into_iter().chain(launch).min()
        }
        _ => None,
    }
}

fn next_launch(state: &TaskState, plan: &Plan) -> Option<u64> {
    let &(time, _) = plan.delayed.first()?;
    (capacity(state, plan) > 0).then_some(time)
}

/// The deadline, as long as there is something that it would end.
fn pending_deadline(state: &TaskState) -> Option<u64> {
    let mut live = state.live_runs().peekable();
    let spent = live.peek().is_some() && live.all(|(_, _, run)| run.is_dying());
    state.deadline().filter(|_| !spent)
}

/// T42.
fn active(state: &TaskState, now: u64) -> Vec<Effect> {
    if is_regular_over(state) {
        return vec![Effect::Enter(Phase::Cleaning)];
    }
    launches(state, &state.regular, now)
}

/// Whether nothing of the regular plan is to be started any more, be it that runs of it are live.
pub(super) fn is_regular_over(state: &TaskState) -> bool {
    state.kill().is_some() || state.regular.is_complete() || !state.is_healthy()
}

/// T43, T44: a run that is still FORKED gets its SIGTERM once it runs (D16).
fn cleaning(state: &TaskState, now: u64) -> Vec<Effect> {
    let over = is_over(state, now);
    let mut effects: Vec<_> = terminations(state).collect();
    effects.extend(dooms(state, over.then_some(KillStage::Deadline)));
    if state.live_runs().next().is_some() {
        return effects;
    }
    vec![Effect::Enter(if over { state.verdict() } else { Phase::Finalizing })]
}

/// T45. Teardown comes before launches: nothing is started beside a run that is being killed.
fn finalizing(state: &TaskState, now: u64) -> Vec<Effect> {
    let end = finalizing_end(state, now);
    if end.is_some() && state.live_runs().next().is_none() {
        return vec![Effect::Enter(state.verdict())];
    }
    let effects = dooms(state, end).collect();
    if end.is_some() || any_dying(state) {
        return effects;
    }
    launches(state, &state.finalizing, now)
}

/// Why finalizers that run are killed and none is started any more; `None` while some may be.
pub(super) fn finalizing_end(state: &TaskState, now: u64) -> Option<KillStage> {
    let plan = &state.finalizing;
    let done = plan.is_complete() || plan.is_deadlocked();
    match is_over(state, now) {
        true => Some(KillStage::Deadline),
        false => done.then_some(KillStage::Teardown),
    }
}

fn terminations(state: &TaskState) -> impl Iterator<Item = Effect> {
    state
        .live_runs()
        .filter(|(_, _, run)| run.state == RunState::Running && run.doomed.is_none())
        .filter(|(_, _, run)| !run.terminated || run.terminate_again)
        .map(|(process, run, _)| Effect::Terminate { process, run })
}

/// Runs to be killed: the ones that an earlier runner recorded so but perhaps did not kill, the ones
/// that a request tore down, and, where the stage is at its `end`, all.
fn dooms(state: &TaskState, end: Option<KillStage>) -> impl Iterator<Item = Effect> {
    state.live_runs().filter(|(_, _, run)| !run.killing).filter_map(move |(process, run, of)| {
        let torn_down = of.torn_down.then_some(KillStage::Request);
        let stage = of.doomed.or(end).or(torn_down)?;
        Some(Effect::Doom { process, run, stage })
    })
}

pub(super) fn any_dying(state: &TaskState) -> bool {
    state.live_runs().any(|(_, _, run)| run.is_dying())
}

/// T28, dewar's rule: as many as `max_concurrency` leaves room for, first runs before later ones.
/// First runs come in declared order. Later ones come in the order in which they fell due, so
/// that a process that is run again and again leaves room for the others.
fn launches(state: &TaskState, plan: &Plan, now: u64) -> Vec<Effect> {
    let run = |process: u32| state.processes()[process as usize].runs.len() as u32;
    due(state, plan, now).map(|process| Effect::Open { process, run: run(process) }).collect()
}

/// The processes of `plan` that there is room to start, first those that come first.
pub(super) fn due(state: &TaskState, plan: &Plan, now: u64) -> impl Iterator<Item = u32> {
    let due = plan.delayed.range(..=(now, u32::MAX)).map(|&(_, process)| process);
    plan.ready.iter().copied().chain(due).take(capacity(state, plan))
}

fn capacity(state: &TaskState, plan: &Plan) -> usize {
    match state.spec().max_concurrency {
        0 => usize::MAX,
        limit => (limit as usize).saturating_sub(plan.running),
    }
}

fn is_over(state: &TaskState, now: u64) -> bool {
    state.deadline().is_some_and(|deadline| now >= deadline)
}
