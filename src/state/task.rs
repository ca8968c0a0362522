//! The state of a task, and the one function that advances it.

use std::collections::{BTreeMap, BTreeSet};

use super::event::{Event, KillStage, Outcome, ProcessId, RunEnd, RunStep, Stamp};
use super::process::{Process, Run, RunState, Settled, state_of};
use crate::proto::{Usage, Verdict, VerdictReason};
use crate::task::{Resources, TaskSpec};

/// Where a task is in its life (T41).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Phase {
    /// Regular processes run.
    Active,
    /// Regular runs are told to end.
    Cleaning,
    /// Finalizers run.
    Finalizing,
    /// Terminal: it did what was asked.
    Success,
    /// Terminal: too many processes failed, or none could go on.
    Failed,
    /// Terminal: somebody asked for its end.
    Killed,
    /// Terminal: somebody declared it lost.
    Lost,
}

impl Phase {
    /// Whether the task is over.
    pub fn is_terminal(self) -> bool {
        matches!(self, Self::Success | Self::Failed | Self::Killed | Self::Lost)
    }
}

/// A runner that held the lead.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Leader {
    /// The runner.
    pub runner: ProcessId,
    /// Boot that it ran in.
    pub boot_id: String,
    /// The task's cgroup, absolute; `None` where containment is none.
    pub cgroup: Option<String>,
    /// Bytes of a torn record that it cut off the stream.
    pub dropped_bytes: u64,
}

/// A request for the end of the task; several merge into one: a deadline only shrinks, lose overrides kill (T51).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Kill {
    /// CLOCK_BOOTTIME by which the task must be over, nanoseconds.
    pub deadline: u64,
    /// Whether it ends as LOST.
    pub lost: bool,
}

/// A pause that has not ended. While it lasts, no time passes for the task.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pause {
    /// When it began; its boot time is 0 once the machine was booted anew.
    pub since: Stamp,
    /// User id of who asked for it.
    pub by_uid: u32,
}

/// Why an event could not follow the ones before it.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum ApplyError {
    /// The stream and the task disagree about its processes.
    #[error("names process {process}, but the task has {count}")]
    UnknownProcess {
        /// Index in the record.
        process: u32,
        /// Number of processes.
        count: usize,
    },
    /// The event is about another run than the live one.
    #[error("is about run {run} of {process:?}, which has {runs} runs")]
    UnknownRun {
        /// Name of the process.
        process: String,
        /// Run in the record.
        run: u32,
        /// Number of its runs.
        runs: usize,
    },
    /// A run cannot take this step.
    #[error("lets run {run} of {process:?} take {step} while {state:?}")]
    IllegalStep {
        /// Name of the process.
        process: String,
        /// Run in the record.
        run: u32,
        /// The step.
        step: &'static str,
        /// State of the run.
        state: RunState,
    },
    /// A run was opened that may not start.
    #[error("opens run {run} of {process:?}, which may not start: {why}")]
    IllegalStart {
        /// Name of the process.
        process: String,
        /// Run in the record.
        run: u32,
        /// What forbids it.
        why: &'static str,
    },
    /// The task cannot enter this phase.
    #[error("enters {to:?} from {from:?}{}", if *.live > 0 { " while runs are live" } else { "" })]
    IllegalPhase {
        /// Phase so far; `None` before ACTIVE.
        from: Option<Phase>,
        /// Phase in the record.
        to: Phase,
        /// Live runs.
        live: usize,
    },
    /// A task is paused once, and resumed once.
    #[error("{}", if *.is_paused { "pauses a task that is paused" } else { "resumes a task that is not paused" })]
    IllegalPause {
        /// Whether the task is paused.
        is_paused: bool,
    },
    /// A paused task enters no phase.
    #[error("enters {0:?} while the task is paused")]
    PhaseWhilePaused(Phase),
    /// Nothing happens to a task that is over.
    #[error("follows the end of the task, {0:?}")]
    AfterEnd(Phase),
}

/// One of the two plans of a task (T17): who may start, and what they add up to.
#[derive(Debug, Clone, PartialEq, Default)]
pub(super) struct Plan {
    /// Processes whose first run may start, by index: declared order (T28).
    pub(super) ready: BTreeSet<u32>,
    /// Processes whose next run may start from a time on: (CLOCK_BOOTTIME in nanoseconds, index).
    pub(super) delayed: BTreeSet<(u64, u32)>,
    /// Live runs.
    pub(super) running: usize,
    /// Processes that are waited for and not settled. Ephemerals are not waited for (T25).
    unsettled: usize,
    /// Among these, the ones that run or may start, now or later.
    able: usize,
    /// Failed processes, ephemerals not counted.
    failed: u32,
}

impl Plan {
    /// T25: nothing is left that is waited for.
    pub(super) fn is_complete(&self) -> bool {
        self.unsettled == 0
    }

    /// T26, D22: something is waited for, and nothing that is waited for can go on.
    pub(super) fn is_deadlocked(&self) -> bool {
        self.unsettled > 0 && self.able == 0
    }
}

/// All that is known of a task: a fold of its events.
#[derive(Debug, Clone, PartialEq)]
pub struct TaskState {
    spec: TaskSpec,
    loss_limit: u32,
    phase: Option<Phase>,
    history: Vec<(Phase, Stamp)>,
    leader: Option<Leader>,
    dropped_bytes: u64,
    kill: Option<Kill>,
    deadline: Option<u64>,
    usage: Option<Box<Usage>>,
    pause: Option<Pause>,
    limited: BTreeMap<Option<u32>, Vec<String>>,
    processes: Vec<Process>,
    live: BTreeSet<u32>,
    pub(super) regular: Plan,
    pub(super) finalizing: Plan,
}

impl TaskState {
    /// A task that was accepted and to which nothing has happened.
    ///
    /// `loss_limit`: losses in a row after which a process fails; 0: no limit (T22).
    pub fn new(spec: TaskSpec, loss_limit: u32) -> Self {
        let mut state = Self {
            loss_limit,
            phase: None,
            history: Vec::new(),
            leader: None,
            dropped_bytes: 0,
            kill: None,
            deadline: None,
            usage: None,
            pause: None,
            limited: BTreeMap::new(),
            processes: vec![Process::default(); spec.processes.len()],
            live: BTreeSet::new(),
            regular: Plan::default(),
            finalizing: Plan::default(),
            spec,
        };
        for index in 0..state.spec.processes.len() as u32 {
            let unmet = state.spec.graph.predecessors[index as usize];
            state.processes[index as usize].unmet = unmet;
            if !state.spec.processes[index as usize].ephemeral {
                state.plan_of_mut(index).unsettled += 1;
            }
            if unmet == 0 {
                state.make_able(index);
            }
        }
        state
    }

    /// The task as it is now: as it was accepted, with the limits that it was given since.
    pub fn spec(&self) -> &TaskSpec {
        &self.spec
    }

    /// Where the task is; `None` before it became ACTIVE.
    pub fn phase(&self) -> Option<Phase> {
        self.phase
    }

    /// Every phase it entered, oldest first.
    pub fn history(&self) -> &[(Phase, Stamp)] {
        &self.history
    }

    /// The last runner that took the lead.
    pub fn leader(&self) -> Option<&Leader> {
        self.leader.as_ref()
    }

    /// Bytes of torn records that runners cut off the stream, in all.
    pub fn dropped_bytes(&self) -> u64 {
        self.dropped_bytes
    }

    /// The merged request for its end.
    pub fn kill(&self) -> Option<Kill> {
        self.kill
    }

    /// CLOCK_BOOTTIME at which CLEANING and FINALIZING must be over, nanoseconds.
    pub fn deadline(&self) -> Option<u64> {
        self.deadline
    }

    /// What it used in all, as its cgroup accounted for it; `None` before its end, and where that was not read.
    pub fn usage(&self) -> Option<&Usage> {
        self.usage.as_deref()
    }

    /// The pause that it is in. Deadlines are then as they were when it began.
    pub fn pause(&self) -> Option<Pause> {
        self.pause
    }

    /// Whose limits were changed since the task was accepted, by index of the process (`None`: those of the task as a whole), and
    /// which of these the kernel rounds. The limits themselves are those of [`TaskState::spec`].
    pub fn limited(&self) -> &BTreeMap<Option<u32>, Vec<String>> {
        &self.limited
    }

    /// Its processes, in declared order.
    pub fn processes(&self) -> &[Process] {
        &self.processes
    }

    /// Runs that have not ended: (process, run number, run), in declared order.
    pub fn live_runs(&self) -> impl Iterator<Item = (u32, u32, &Run)> {
        self.live.iter().filter_map(|&process| {
            let (number, run) = self.processes[process as usize].live_run()?;
            Some((process, number, run))
        })
    }

    /// T27: the regular plan can still succeed.
    pub fn is_healthy(&self) -> bool {
        let limit = self.spec.max_failures;
        !self.regular.is_deadlocked() && (limit == 0 || self.regular.failed < limit)
    }

    /// Failed regular processes that count against the task's `max_failures`.
    pub fn failed_processes(&self) -> u32 {
        self.regular.failed
    }

    /// Whether the task failed because no process that it waits for could go on (T26).
    pub fn is_deadlocked(&self) -> bool {
        self.regular.is_deadlocked()
    }

    /// T48: the terminal phase that the task would enter now.
    pub(super) fn verdict(&self) -> Phase {
        match self.kill {
            Some(Kill { lost: true, .. }) => Phase::Lost,
            Some(Kill { lost: false, .. }) => Phase::Killed,
            None if self.is_healthy() => Phase::Success,
            None => Phase::Failed,
        }
    }

    /// The end that is to be recorded for a run whose coordinator recorded `end`: an end that dewar
    /// itself brought about says so (T39).
    pub fn judge(&self, process: u32, run: u32, mut end: RunEnd) -> RunEnd {
        let Some(of) = self.processes.get(process as usize) else { return end };
        let Some(run) = of.runs.get(run as usize) else { return end };
        if outlived_oom_kill(run, &end) {
            let natural = match end.outcome {
                Outcome::Signalled(_) => VerdictReason::Signalled,
                _ => VerdictReason::Exited,
            };
            end.verdict.reason = natural.into();
        }
        if end.verdict.reason() == VerdictReason::Signalled {
            let stage = match end.outcome {
                Outcome::Signalled(signal) if i32::from(signal) == libc::SIGKILL => run.doomed,
                Outcome::Signalled(signal) if i32::from(signal) == libc::SIGTERM => {
                    run.terminated.then_some(KillStage::Terminate)
                }
                _ => None,
            };
            if let Some(stage) = stage {
                end.verdict = Verdict {
                    reason: VerdictReason::Killed.into(),
                    stage: Some(stage.into()),
                    ..end.verdict
                };
            }
        }
        let loss = matches!(state_of(&end), RunState::Killed | RunState::Lost);
        if loss && self.is_beyond(of.losses_in_row + 1) {
            let why = format!("{} losses in a row: the process has failed", self.loss_limit);
            end.verdict.detail = Some(match end.verdict.detail {
                Some(detail) => format!("{detail}; {why}"),
                None => why,
            });
        }
        end
    }

    /// T22, dewar's rule.
    fn is_beyond(&self, losses_in_row: u32) -> bool {
        self.loss_limit != 0 && losses_in_row >= self.loss_limit
    }

    /// Advances the task past `event`, which happened at `at`.
    ///
    /// Reads no clock and does no I/O, so recovery and live running are one path. On error `self` is unchanged.
    ///
    /// # Errors
    ///
    /// [`ApplyError`] if the event cannot follow the ones before it.
    pub fn apply(&mut self, event: &Event, at: Stamp) -> Result<(), ApplyError> {
        if let Some(end) = self.phase.filter(|phase| phase.is_terminal()) {
            return match event {
                // A runner that finds the task over leads just long enough to file it away.
                Event::Led(leader) => {
                    self.follow(leader);
                    Ok(())
                }
                _ => Err(ApplyError::AfterEnd(end)),
            };
        }
        match event {
            Event::Led(leader) => self.lead(leader),
            &Event::Entered(phase) => self.enter(phase, at)?,
            Event::Run { process, run, step } => self.step(*process, *run, step, at)?,
            // T50: no time is left to a task that is declared lost.
            &Event::KillRequested { deadline, lost, .. } => {
                // It is to end, so it has to move: SIGTERM is to be heard, and finalizers are to run.
                self.go_on(at);
                self.request_kill(if lost { deadline.min(at.boot) } else { deadline }, lost);
            }
            &Event::Paused { by_uid, .. } => match self.pause {
                None => self.pause = Some(Pause { since: at, by_uid }),
                Some(_) => return Err(ApplyError::IllegalPause { is_paused: true }),
            },
            Event::Resumed { .. } => match self.pause {
                Some(_) => self.go_on(at),
                None => return Err(ApplyError::IllegalPause { is_paused: false }),
            },
            Event::Limited { process, resources, rounded, .. } => {
                self.limit(*process, resources, rounded)?;
            }
            &Event::Terminated { process, run } => {
                let run = self.live_run_mut(process, run, "Terminated")?;
                run.terminated = true;
                run.terminate_again = false;
            }
            &Event::Doomed { process, run, stage } => {
                let run = self.live_run_mut(process, run, "Doomed")?;
                run.doomed = Some(stage);
                run.killing = true;
            }
            Event::Used(usage) => self.usage = Some(usage.clone()),
        }
        Ok(())
    }

    /// Takes note of a new leader; tells whether the machine was booted anew since the last.
    fn follow(&mut self, leader: &Leader) -> bool {
        let rebooted = self.leader.as_ref().is_some_and(|last| last.boot_id != leader.boot_id);
        self.dropped_bytes = self.dropped_bytes.saturating_add(leader.dropped_bytes);
        self.leader = Some(leader.clone());
        rebooted
    }

    /// The leader before this one may have died between the record of a kill and the kill, so it is asked for
    /// again. A boot ends every deadline of the one before: what was left of it is over.
    fn lead(&mut self, leader: &Leader) {
        let rebooted = self.follow(leader);
        for process in &self.live {
            if let Some(run) = self.processes[*process as usize].runs.last_mut() {
                run.killing = false;
            }
        }
        if !rebooted {
            return;
        }
        self.deadline = self.deadline.map(|_| 0);
        if let Some(pause) = &mut self.pause {
            pause.since.boot = 0;
        }
        if let Some(kill) = &mut self.kill {
            kill.deadline = 0;
        }
        for plan in [&mut self.regular, &mut self.finalizing] {
            let delayed = std::mem::take(&mut plan.delayed);
            plan.ready.extend(delayed.into_iter().map(|(_, process)| process));
        }
    }

    /// Later runs have the new limits, as live ones are to have; what had none before may have some now.
    fn limit(
        &mut self,
        process: Option<u32>,
        resources: &Resources,
        rounded: &[String],
    ) -> Result<(), ApplyError> {
        let new = (*resources != Resources::default()).then(|| resources.clone());
        match process {
            None => self.spec.resources = new,
            Some(process) => match self.spec.processes.get_mut(process as usize) {
                Some(of) => of.resources = new.map(Box::new),
                None => return Err(self.unknown_process(process)),
            },
        }
        self.limited.insert(process, rounded.to_vec());
        Ok(())
    }

    /// Ends the pause, if there is one: whatever has a time is later by the length of it.
    fn go_on(&mut self, at: Stamp) {
        let Some(pause) = self.pause.take() else { return };
        let length = at.boot.saturating_sub(pause.since.boot);
        let later = |time: u64| time.saturating_add(length);
        self.deadline = self.deadline.map(later);
        if let Some(kill) = &mut self.kill {
            kill.deadline = later(kill.deadline);
        }
        for plan in [&mut self.regular, &mut self.finalizing] {
            let delayed = std::mem::take(&mut plan.delayed);
            plan.delayed = delayed.into_iter().map(|(time, of)| (later(time), of)).collect();
            for &(time, process) in &plan.delayed {
                self.processes[process as usize].not_before = time;
            }
        }
    }

    /// The boot time of `at` as the task lives through it: it stands still while the task is paused.
    fn lived(&self, at: Stamp) -> u64 {
        self.pause.map_or(at.boot, |pause| at.boot.min(pause.since.boot))
    }

    fn enter(&mut self, to: Phase, at: Stamp) -> Result<(), ApplyError> {
        // What nobody can have asked to pause becomes ACTIVE first of all.
        if self.pause.is_some() && to != Phase::Active {
            return Err(ApplyError::PhaseWhilePaused(to));
        }
        let live = self.live.len();
        let legal = match (self.phase, to) {
            (None, Phase::Active) | (Some(Phase::Active), Phase::Cleaning) => true,
            (Some(Phase::Cleaning), Phase::Finalizing) => live == 0,
            (Some(Phase::Cleaning | Phase::Finalizing), to) if to.is_terminal() => live == 0,
            _ => false,
        };
        if !legal {
            return Err(ApplyError::IllegalPhase { from: self.phase, to, live });
        }
        if to == Phase::Cleaning {
            // T47: after a kill its own deadline alone, else the budget from here.
            self.deadline = Some(match self.kill {
                Some(kill) => kill.deadline,
                None => at.boot.saturating_add(nanos(self.spec.finalization_wait)),
            });
        }
        self.phase = Some(to);
        self.history.push((to, at));
        Ok(())
    }

    /// T49 to T51.
    fn request_kill(&mut self, deadline: u64, lost: bool) {
        let kill = self.kill.get_or_insert(Kill { deadline, lost });
        kill.deadline = kill.deadline.min(deadline);
        kill.lost |= lost;
        if let Some(budget) = &mut self.deadline {
            *budget = (*budget).min(deadline);
        }
        for process in &self.live {
            let Some(run) = self.processes[*process as usize].runs.last_mut() else { continue };
            match self.phase {
                Some(Phase::Cleaning) => run.terminate_again = true,
                Some(Phase::Finalizing) => run.torn_down = true,
                _ => {}
            }
        }
    }

    fn step(
        &mut self,
        process: u32,
        run: u32,
        step: &RunStep,
        at: Stamp,
    ) -> Result<(), ApplyError> {
        if matches!(step, RunStep::Opened) {
            return self.open(process, run);
        }
        let live = self.live_run_mut(process, run, step.name())?;
        match (live.state, step) {
            (RunState::Waiting, RunStep::Forked { coordinator }) => {
                live.state = RunState::Forked;
                live.coordinator = Some(*coordinator);
            }
            (RunState::Forked, RunStep::Running { pid }) => {
                live.state = RunState::Running;
                live.pid = Some(*pid);
                live.started = Some(at);
            }
            (RunState::Forked | RunState::Running, RunStep::Unkillable(unkillable)) => {
                live.unkillable = Some(unkillable.clone());
            }
            (state, RunStep::Ended(end)) if may_end(state, end.outcome) => {
                live.state = state_of(end);
                live.ended = Some(at);
                live.end = Some(end.clone());
                self.end(process, at);
            }
            (state, _) => {
                return Err(ApplyError::IllegalStep {
                    process: self.name(process),
                    run,
                    step: step.name(),
                    state,
                });
            }
        }
        Ok(())
    }

    fn open(&mut self, process: u32, run: u32) -> Result<(), ApplyError> {
        let Some(of) = self.processes.get(process as usize) else {
            return Err(self.unknown_process(process));
        };
        if of.runs.len() != run as usize {
            return Err(self.unknown_run(process, run));
        }
        let is_final = self.spec.processes[process as usize].is_final;
        let may = match self.phase {
            Some(Phase::Active) => !is_final && self.kill.is_none(),
            Some(Phase::Finalizing) => is_final,
            _ => false,
        };
        let (not_before, paused) = (of.not_before, self.pause.is_some());
        let plan = if is_final { &mut self.finalizing } else { &mut self.regular };
        if !may {
            return Err(self.illegal_start(process, run, "its plan is not being run"));
        }
        if paused {
            return Err(self.illegal_start(process, run, "the task is paused"));
        }
        if !plan.ready.remove(&process) && !plan.delayed.remove(&(not_before, process)) {
            let why = "it is running, settled, or waits for another process";
            return Err(self.illegal_start(process, run, why));
        }
        plan.running += 1;
        self.processes[process as usize].runs.push(Run::opened());
        self.live.insert(process);
        Ok(())
    }

    /// What the end of its last run means for a process: T18 to T24.
    fn end(&mut self, process: u32, at: Stamp) {
        self.live.remove(&process);
        self.plan_of_mut(process).running -= 1;
        let spec = &self.spec.processes[process as usize];
        let (daemon, ephemeral, limit) = (spec.daemon, spec.ephemeral, spec.max_failures);
        let (wait, lived) = (nanos(spec.min_duration), self.lived(at));
        let of = &mut self.processes[process as usize];
        let state = of.runs.last().expect("a run has just ended").state;
        let not_before = if at.boot == 0 { 0 } else { lived.saturating_add(wait) };
        of.not_before = not_before;
        let settled = match state {
            RunState::Success => {
                of.losses_in_row = 0;
                (!daemon).then_some(Settled::Finished)
            }
            RunState::Failed => {
                of.losses_in_row = 0;
                of.failures = of.failures.saturating_add(1);
                let failed = limit != 0 && of.failures >= limit;
                failed.then_some(if ephemeral { Settled::Finished } else { Settled::Failed })
            }
            _ => {
                of.losses_in_row += 1;
                let losses = of.losses_in_row;
                self.is_beyond(losses).then_some(Settled::Failed)
            }
        };
        match settled {
            Some(settled) => self.settle(process, settled),
            None => {
                self.plan_of_mut(process).delayed.insert((not_before, process));
            }
        }
    }

    fn settle(&mut self, process: u32, settled: Settled) {
        self.processes[process as usize].settled = Some(settled);
        if !self.spec.processes[process as usize].ephemeral {
            let plan = self.plan_of_mut(process);
            plan.unsettled -= 1;
            plan.able -= 1;
            plan.failed += u32::from(settled == Settled::Failed);
        }
        if settled == Settled::Failed {
            return;
        }
        for i in 0..self.spec.graph.successors[process as usize].len() {
            let successor = self.spec.graph.successors[process as usize][i];
            let unmet = &mut self.processes[successor as usize].unmet;
            *unmet -= 1;
            if *unmet == 0 {
                self.make_able(successor);
            }
        }
    }

    /// Its predecessors are all finished: it may start (T18).
    fn make_able(&mut self, process: u32) {
        let ephemeral = self.spec.processes[process as usize].ephemeral;
        let plan = self.plan_of_mut(process);
        plan.ready.insert(process);
        plan.able += usize::from(!ephemeral);
    }

    fn plan_of_mut(&mut self, process: u32) -> &mut Plan {
        if self.spec.processes[process as usize].is_final {
            &mut self.finalizing
        } else {
            &mut self.regular
        }
    }

    fn live_run_mut(
        &mut self,
        process: u32,
        run: u32,
        step: &'static str,
    ) -> Result<&mut Run, ApplyError> {
        let Some(of) = self.processes.get(process as usize) else {
            return Err(self.unknown_process(process));
        };
        let Some(found) = of.runs.get(run as usize) else {
            return Err(self.unknown_run(process, run));
        };
        if !found.state.is_live() {
            let (process, state) = (self.name(process), found.state);
            return Err(ApplyError::IllegalStep { process, run, step, state });
        }
        Ok(&mut self.processes[process as usize].runs[run as usize])
    }

    fn name(&self, process: u32) -> String {
        self.spec.processes[process as usize].name.to_string()
    }

    fn unknown_process(&self, process: u32) -> ApplyError {
        ApplyError::UnknownProcess { process, count: self.processes.len() }
    }

    fn illegal_start(&self, process: u32, run: u32, why: &'static str) -> ApplyError {
        ApplyError::IllegalStart { process: self.name(process), run, why }
    }

    fn unknown_run(&self, process: u32, run: u32) -> ApplyError {
        let runs = self.processes[process as usize].runs.len();
        ApplyError::UnknownRun { process: self.name(process), run, runs }
    }
}

impl RunStep {
    /// The name of the step, for messages.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Opened => "Opened",
            Self::Forked { .. } => "Forked",
            Self::Running { .. } => "Running",
            Self::Unkillable(_) => "Unkillable",
            Self::Ended(_) => "Ended",
        }
    }
}

/// Whether a run lost processes for want of memory, went on without them, and ended because dewar asked for it.
///
/// One that is killed as a whole does not go on. Of the others the counters do not tell which process was a victim, and when:
/// a run that was told to end, or was killed, is taken to have ended so.
fn outlived_oom_kill(run: &Run, end: &RunEnd) -> bool {
    let is_partial = end.verdict.oom.as_ref().is_some_and(|oom| !oom.whole);
    if end.verdict.reason() != VerdictReason::Oom || !is_partial {
        return false;
    }
    match end.outcome {
        Outcome::Signalled(_) => run.doomed.is_some(),
        Outcome::Exited(_) => run.terminated || run.doomed.is_some(),
        _ => false,
    }
}

/// T30. A run without a process cannot have exited, and one with a process was started. A run that is
/// FORKED may die by a signal on its way to the command line.
fn may_end(state: RunState, outcome: Outcome) -> bool {
    match outcome {
        Outcome::Exited(_) => state == RunState::Running,
        Outcome::Signalled(_) => matches!(state, RunState::Forked | RunState::Running),
        Outcome::NotStarted | Outcome::Dropped => {
            matches!(state, RunState::Waiting | RunState::Forked)
        }
        Outcome::Lost => state.is_live(),
    }
}

fn nanos(duration: std::time::Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}
