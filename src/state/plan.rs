//! What should happen next: a pure function of the state and the time.

use super::event::KillStage;
use super::process::RunState;
use super::task::{Phase, Plan, TaskState};

/// Something that should happen. Its record is appended, then it is done; after that [`plan`] no longer asks for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Effect {
    /// The task enters a phase.
    Enter(Phase),
    /// The next run of a process is opened, and its coordinator forked.
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
    /// Every process of a run is killed.
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
        None => vec![Effect::Enter(Phase::Active)],
        Some(Phase::Active) => active(state, now),
        Some(Phase::Cleaning) => cleaning(state, now),
        Some(Phase::Finalizing) => finalizing(state, now),
        Some(_) => Vec::new(),
    }
}

/// The next time, CLOCK_BOOTTIME in nanoseconds, at which [`plan`] may answer otherwise without an event.
pub fn wake(state: &TaskState) -> Option<u64> {
    let of = |plan: &Plan| {
        let free = capacity(state, plan) > 0;
        plan.delayed.first().map(|&(time, _)| time).filter(|_| free)
    };
    let over = state.deadline();
    match state.phase()? {
        Phase::Active => of(&state.regular),
        Phase::Cleaning => over,
        Phase::Finalizing => [over, of(&state.finalizing)].into_iter().flatten().min(),
        _ => None,
    }
}

/// T42.
fn active(state: &TaskState, now: u64) -> Vec<Effect> {
    let ended = state.kill().is_some() || state.regular.is_complete() || !state.is_healthy();
    if ended {
        return vec![Effect::Enter(Phase::Cleaning)];
    }
    launches(state, &state.regular, now)
}

/// T43, T44: a run that is still FORKED gets its SIGTERM once it runs (D16).
fn cleaning(state: &TaskState, now: u64) -> Vec<Effect> {
    let mut effects: Vec<_> = state
        .live_runs()
        .filter(|(_, _, run)| run.state == RunState::Running && !run.terminated)
        .map(|(process, run, _)| Effect::Terminate { process, run })
        .collect();
    if is_over(state, now) {
        effects.extend(dooms(state, KillStage::Deadline));
        return ending(state, effects);
    }
    if state.live_runs().next().is_none() {
        return vec![Effect::Enter(Phase::Finalizing)];
    }
    effects
}

/// T45.
fn finalizing(state: &TaskState, now: u64) -> Vec<Effect> {
    let plan = &state.finalizing;
    if is_over(state, now) {
        return ending(state, dooms(state, KillStage::Deadline).collect());
    }
    if plan.is_complete() || plan.is_deadlocked() {
        return ending(state, dooms(state, KillStage::Teardown).collect());
    }
    let torn = state.live_runs().filter(|(_, _, run)| run.torn_down && run.doomed.is_none());
    let mut effects: Vec<_> = torn
        .map(|(process, run, _)| Effect::Doom { process, run, stage: KillStage::Request })
        .collect();
    effects.extend(launches(state, plan, now));
    effects
}

/// The task is terminal once no run is live (invariant 3).
fn ending(state: &TaskState, effects: Vec<Effect>) -> Vec<Effect> {
    if state.live_runs().next().is_none() {
        return vec![Effect::Enter(state.verdict())];
    }
    effects
}

fn dooms(state: &TaskState, stage: KillStage) -> impl Iterator<Item = Effect> {
    state
        .live_runs()
        .filter(|(_, _, run)| run.doomed.is_none())
        .map(move |(process, run, _)| Effect::Doom { process, run, stage })
}

/// T28, dewar's rule: in declared order, as many as `max_concurrency` leaves room for.
fn launches(state: &TaskState, plan: &Plan, now: u64) -> Vec<Effect> {
    let mut due: Vec<u32> =
        plan.delayed.range(..=(now, u32::MAX)).map(|&(_, process)| process).collect();
    let room = capacity(state, plan);
    let ready: Vec<u32> = if due.is_empty() {
        plan.ready.iter().copied().take(room).collect()
    } else {
        due.extend(plan.ready.iter().take(room));
        due.sort_unstable();
        due.truncate(room);
        due
    };
    let run = |process: u32| state.processes()[process as usize].runs.len() as u32;
    ready.into_iter().map(|process| Effect::Open { process, run: run(process) }).collect()
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
