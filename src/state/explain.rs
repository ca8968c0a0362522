//! Why each process is running, or is not: the reasons of [`plan`](super::plan()), said about a process.
//!
//! The planner answers what is to be done now; this answers, for each process that it does nothing about, why not. Both ask the
//! same questions in the same order, and a test holds one against the other on random tasks.

use super::event::KillStage;
use super::plan::{any_dying, due, finalizing_end, is_regular_over};
use super::process::{RunState, Settled};
use super::task::{Phase, Plan, TaskState};

/// Why a process is running, or is not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Why {
    /// Its run is being started.
    Starting,
    /// Its run runs.
    Running,
    /// Its run was sent SIGTERM, and has until the deadline of the task, if there is one, CLOCK_BOOTTIME in nanoseconds.
    Terminating {
        /// The deadline.
        until: Option<u64>,
    },
    /// Its run is being killed.
    Dying {
        /// Why.
        stage: KillStage,
    },
    /// It counts as done (T18, T23).
    Finished,
    /// It failed for good: its runs failed too often (T23).
    Failed,
    /// It failed for good: too many of its runs were lost in a row (T22).
    Lost,
    /// It waits for others, by index, in declared order (T18).
    WaitsFor(Vec<u32>),
    /// It never runs: this one, which it waits for, be it by way of others, has failed (T26).
    Blocked(u32),
    /// It belongs to the other plan, whose turn comes once the regular runs have ended (T17, T44).
    Finalizer,
    /// `min_duration` after its last run is not over (T24).
    MinDuration {
        /// When it is, CLOCK_BOOTTIME in nanoseconds.
        until: u64,
    },
    /// As many run as may run at one time (T28).
    Concurrency,
    /// The task is paused.
    Paused,
    /// Another finalizer is being killed, beside which nothing is started (T45).
    Teardown,
    /// Nothing of its plan is started any more: the task is ending, or is over.
    Over,
    /// It is started in the next turn of the runner.
    Due,
}

/// Why each process is running, or is not, at `now` (CLOCK_BOOTTIME, nanoseconds), in declared order.
///
/// Takes time linear in processes and edges.
pub fn explain(state: &TaskState, now: u64) -> Vec<Why> {
    let all = Situation::new(state, now);
    (0..state.processes().len() as u32).map(|process| all.why(process)).collect()
}

/// What is so for many processes at one time.
struct Situation<'a> {
    state: &'a TaskState,
    now: u64,
    /// Whether nothing is started from the plan of the phase, and why.
    hold: Option<Why>,
    /// By index: whether the next turn of the runner starts it.
    is_due: Vec<bool>,
    /// By index: the ones that it waits for.
    unfinished: Vec<Vec<u32>>,
    /// By index: the one that failed and that it waits for, be it by way of others.
    blocked: Vec<Option<u32>>,
}

impl<'a> Situation<'a> {
    fn new(state: &'a TaskState, now: u64) -> Self {
        let count = state.processes().len();
        let hold = hold(state, now);
        let mut is_due = vec![false; count];
        if hold.is_none() {
            due(state, plan_of_phase(state), now).for_each(|of| is_due[of as usize] = true);
        }
        let successors = &state.spec().graph.successors;
        let mut unfinished = vec![Vec::new(); count];
        let mut blocked = vec![None; count];
        for (index, process) in (0..).zip(state.processes()) {
            if process.settled == Some(Settled::Finished) {
                continue;
            }
            for &after in &successors[index as usize] {
                unfinished[after as usize].push(index);
            }
            if process.settled == Some(Settled::Failed) {
                block(successors, index, &mut blocked);
            }
        }
        Self { state, now, hold, is_due, unfinished, blocked }
    }

    fn why(&self, process: u32) -> Why {
        let (state, at) = (self.state, process as usize);
        let of = &state.processes()[at];
        if let Some((_, run)) = of.live_run() {
            return match run.doomed {
                Some(stage) => Why::Dying { stage },
                None if run.terminated => Why::Terminating { until: state.deadline() },
                None if run.state == RunState::Running => Why::Running,
                None => Why::Starting,
            };
        }
        match of.settled {
            Some(Settled::Finished) => return Why::Finished,
            Some(Settled::Failed) => {
                let failed = of.runs.last().is_some_and(|run| run.state == RunState::Failed);
                return if failed { Why::Failed } else { Why::Lost };
            }
            None => {}
        }
        if let Some(failed) = self.blocked[at] {
            return Why::Blocked(failed);
        }
        let is_final = state.spec().processes[at].is_final;
        match (state.phase(), is_final) {
            (None | Some(Phase::Active | Phase::Cleaning), true) => return Why::Finalizer,
            (None | Some(Phase::Active), false) | (Some(Phase::Finalizing), true) => {}
            _ => return Why::Over,
        }
        if !self.unfinished[at].is_empty() {
            return Why::WaitsFor(self.unfinished[at].clone());
        }
        if let Some(hold) = &self.hold {
            return hold.clone();
        }
        let until = of.not_before;
        if until > self.now && plan_of_phase(state).delayed.contains(&(until, process)) {
            return Why::MinDuration { until };
        }
        if self.is_due[at] { Why::Due } else { Why::Concurrency }
    }
}

/// The plan whose turn it is; only asked for where there is one.
fn plan_of_phase(state: &TaskState) -> &Plan {
    match state.phase() {
        Some(Phase::Finalizing) => &state.finalizing,
        _ => &state.regular,
    }
}

/// Why nothing is started, be it due or not.
fn hold(state: &TaskState, now: u64) -> Option<Why> {
    match state.phase() {
        _ if state.pause().is_some() => Some(Why::Paused),
        // It becomes ACTIVE first of all.
        None => None,
        Some(Phase::Active) => is_regular_over(state).then_some(Why::Over),
        Some(Phase::Finalizing) if finalizing_end(state, now).is_some() => Some(Why::Over),
        Some(Phase::Finalizing) => any_dying(state).then_some(Why::Teardown),
        Some(_) => Some(Why::Over),
    }
}

/// Notes that whoever waits for `failed`, be it by way of others, never runs.
fn block(successors: &[Vec<u32>], failed: u32, blocked: &mut [Option<u32>]) {
    let mut stack = vec![failed];
    while let Some(process) = stack.pop() {
        for &after in &successors[process as usize] {
            if blocked[after as usize].is_none() {
                blocked[after as usize] = Some(failed);
                stack.push(after);
            }
        }
    }
}
