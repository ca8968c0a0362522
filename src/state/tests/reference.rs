//! The planner once more, the slow way: from the ends of all runs, anew each time.

use super::script::Task;
use super::sim::Sim;
use crate::state::{Effect, Event, Phase, Process, RunState, Settled};

/// T19 to T23: what the runs of a process add up to.
pub(super) fn settled(task: &Task, processes: &[Process], index: usize) -> Option<Settled> {
    let spec = &task.spec.processes[index];
    let (mut failures, mut losses) = (0, 0);
    for run in &processes[index].runs {
        match run.state {
            RunState::Success if !spec.daemon => return Some(Settled::Finished),
            RunState::Success => losses = 0,
            RunState::Failed => {
                failures += 1;
                losses = 0;
            }
            RunState::Killed | RunState::Lost => losses += 1,
            RunState::Waiting | RunState::Forked | RunState::Running => {}
        }
        if spec.max_failures > 0 && failures == spec.max_failures {
            return Some(if spec.ephemeral { Settled::Finished } else { Settled::Failed });
        }
        if task.loss_limit > 0 && losses == task.loss_limit {
            return Some(Settled::Failed);
        }
    }
    None
}

/// One of the two plans, as the rules of section 2 see it.
struct View<'a> {
    sim: &'a Sim,
    is_final: bool,
}

impl View<'_> {
    fn settled(&self, index: usize) -> Option<Settled> {
        settled(&self.sim.task, self.sim.state.processes(), index)
    }

    /// Indexes of its processes.
    fn members(&self) -> impl Iterator<Item = usize> {
        let specs = self.sim.task.spec.processes.iter().enumerate();
        specs.filter(|(_, spec)| spec.is_final == self.is_final).map(|(index, _)| index)
    }

    fn awaited(&self) -> impl Iterator<Item = usize> {
        self.members().filter(|&index| !self.sim.task.spec.processes[index].ephemeral)
    }

    /// T25.
    fn is_complete(&self) -> bool {
        self.awaited().all(|index| self.settled(index).is_some())
    }

    /// T18.
    fn is_unblocked(&self, index: usize) -> bool {
        let graph = self.sim.task.spec.graph.successors.iter().enumerate();
        graph
            .filter(|(_, successors)| successors.contains(&(index as u32)))
            .all(|(from, _)| self.settled(from) == Some(Settled::Finished))
    }

    /// T26, D22.
    fn is_deadlocked(&self) -> bool {
        let able = |index| self.settled(index).is_none() && self.is_unblocked(index);
        !self.is_complete() && !self.awaited().any(able)
    }

    fn failed(&self) -> usize {
        self.awaited().filter(|&index| self.settled(index) == Some(Settled::Failed)).count()
    }

    /// T27.
    fn is_healthy(&self) -> bool {
        let limit = self.sim.task.spec.max_failures as usize;
        !self.is_deadlocked() && (limit == 0 || self.failed() < limit)
    }

    fn is_idle(&self, index: usize) -> bool {
        self.sim.state.processes()[index].live_run().is_none()
            && self.settled(index).is_none()
            && self.is_unblocked(index)
    }

    /// T24, T28: what is launched now, in order.
    fn launches(&self) -> Vec<Effect> {
        let processes = self.sim.state.processes();
        let mut due: Vec<_> = self
            .members()
            .filter(|&index| self.is_idle(index))
            .map(|index| (self.due(index), index))
            .filter(|&(due, _)| due.is_none_or(|time| time <= self.sim.now))
            .collect();
        due.sort_unstable();
        let live = self.members().filter(|&index| processes[index].live_run().is_some()).count();
        let room = match self.sim.task.spec.max_concurrency as usize {
            0 => usize::MAX,
            limit => limit - live,
        };
        let open = |(_, index): (_, usize)| Effect::Open {
            process: index as u32,
            run: processes[index].runs.len() as u32,
        };
        due.into_iter().take(room).map(open).collect()
    }

    /// From when on the next run may start; `None` for a first run, and where a boot ended the waiting.
    fn due(&self, index: usize) -> Option<u64> {
        let runs = &self.sim.state.processes()[index].runs;
        let ended = runs.last()?.ended.expect("it is idle").boot;
        let id = (index as u32, runs.len() as u32 - 1);
        if self.sim.ended_in[&id] != self.sim.boot() {
            return None;
        }
        let wait = self.sim.task.spec.processes[index].min_duration.as_nanos() as u64;
        Some(if ended == 0 { 0 } else { ended + wait + self.sim.paused_since(ended) })
    }
}

/// Whether run `run` of a process may be opened: now, or once its time has come.
pub(super) fn may_open(sim: &Sim, process: u32, run: u32) -> bool {
    let (state, index) = (&sim.state, process as usize);
    let Some(of) = state.processes().get(index) else { return false };
    let is_final = sim.task.spec.processes[index].is_final;
    let in_phase = match state.phase() {
        Some(Phase::Active) => !is_final && state.kill().is_none(),
        Some(Phase::Finalizing) => is_final,
        _ => false,
    };
    in_phase
        && state.pause().is_none()
        && of.runs.len() == run as usize
        && View { sim, is_final }.is_idle(index)
}

/// Holds an answer of the planner against the rules.
pub(super) fn check(sim: &Sim, effects: &[Effect]) {
    let state = &sim.state;
    let regular = View { sim, is_final: false };
    let finalizing = View { sim, is_final: true };
    for index in 0..state.processes().len() {
        assert_eq!(state.processes()[index].settled, regular.settled(index), "process {index}");
    }
    assert_eq!(state.is_healthy(), regular.is_healthy(), "T27");
    if state.pause().is_some() && state.phase().is_some() {
        return assert_eq!(effects, [], "a paused task does not move");
    }
    assert_eq!(state.deadline(), deadline(sim), "T47, T49, without the time that it was paused");
    let over = state.deadline().is_some_and(|deadline| sim.now >= deadline);
    let verdict = match state.kill() {
        Some(kill) if kill.lost => Phase::Lost,
        Some(_) => Phase::Killed,
        None if regular.is_healthy() => Phase::Success,
        None => Phase::Failed,
    };
    let idle = state.live_runs().next().is_none();
    match state.phase() {
        None => assert_eq!(effects, [Effect::Enter(Phase::Active)]),
        Some(Phase::Active) => {
            let ends = state.kill().is_some() || regular.is_complete() || !regular.is_healthy();
            let wanted =
                if ends { vec![Effect::Enter(Phase::Cleaning)] } else { regular.launches() };
            assert_eq!(effects, wanted);
        }
        Some(Phase::Cleaning) if idle => {
            let next = if over { verdict } else { Phase::Finalizing };
            assert_eq!(effects, [Effect::Enter(next)]);
        }
        Some(Phase::Cleaning) => check_cleaning(sim, effects, over),
        Some(Phase::Finalizing) => {
            let ends = over || finalizing.is_complete() || finalizing.is_deadlocked();
            if ends && idle {
                assert_eq!(effects, [Effect::Enter(verdict)]);
            } else if ends {
                assert_all_doomed(sim, effects);
            } else if !is_dooming(sim, effects) {
                assert_eq!(effects, finalizing.launches());
            }
        }
        Some(_) => assert_eq!(effects, [], "after the end"),
    }
}

/// T43, T44.
fn check_cleaning(sim: &Sim, effects: &[Effect], over: bool) {
    if over {
        assert_all_doomed(sim, effects);
    } else {
        assert!(!is_dooming(sim, effects), "killed before the deadline: {effects:?}");
    }
    for (process, run, of) in sim.state.live_runs() {
        let sent = of.terminated || effects.contains(&Effect::Terminate { process, run });
        let wanted = of.state == RunState::Running && of.doomed.is_none();
        assert!(sent || !wanted, "no SIGTERM for run {run} of {process}");
    }
}

fn is_dooming(sim: &Sim, effects: &[Effect]) -> bool {
    sim.state.live_runs().any(|(_, _, run)| run.doomed.is_some())
        || effects.iter().any(|effect| matches!(effect, Effect::Doom { .. }))
}

fn assert_all_doomed(sim: &Sim, effects: &[Effect]) {
    for (process, run, of) in sim.state.live_runs() {
        let now = |effect: &Effect| match *effect {
            Effect::Doom { process: p, run: r, .. } => (p, r) == (process, run),
            _ => false,
        };
        assert!(of.doomed.is_some() || effects.iter().any(now), "run {run} of {process} lives on");
    }
    let extra = |effect: &Effect| matches!(effect, Effect::Open { .. } | Effect::Enter(_));
    assert!(!effects.iter().any(extra), "goes on at the end: {effects:?}");
}

/// T47, T49: by when the task must be over. The time that it was paused is left out of what it was given.
fn deadline(sim: &Sim) -> Option<u64> {
    let (mut boot, mut paused, mut paused_at) = (None, 0, None);
    let (mut killed, mut budget): (Option<u64>, Option<u64>) = (None, None);
    for (event, at) in sim.events() {
        let ends_pause = matches!(event, Event::Resumed { .. } | Event::KillRequested { .. });
        if let Some(since) = paused_at.take_if(|_| ends_pause) {
            paused += at.boot - since;
        }
        match event {
            Event::Led(leader) => {
                let last = boot.replace(leader.boot_id.clone());
                if last.is_some_and(|last| last != leader.boot_id) {
                    (killed, budget) = (killed.map(|_| 0), budget.map(|_| 0));
                    (paused, paused_at) = (0, paused_at.map(|_| 0));
                }
            }
            Event::Paused { .. } => paused_at = Some(at.boot),
            Event::KillRequested { deadline, lost, .. } => {
                let given = if lost { deadline.min(at.boot) } else { deadline } - paused;
                killed = Some(killed.map_or(given, |before| before.min(given)));
                budget = budget.map(|before| before.min(given));
            }
            Event::Entered(Phase::Cleaning) => {
                let wait = sim.task.spec.finalization_wait.as_nanos() as u64;
                budget = Some(killed.unwrap_or(at.boot - paused + wait));
            }
            _ => {}
        }
    }
    budget.map(|budget| budget + paused)
}
