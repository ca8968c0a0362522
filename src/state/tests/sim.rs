//! A runner, its coordinators and the machine below them, in virtual time.
//!
//! The runner does what the real one is to do: it reads the coordinators' streams, records, applies, plans, and
//! performs each effect after its record (SIGTERM before it). Every event goes through its record and back. A crash may
//! come between any record and its act. A power cut may take all records that are not synced: of the runner's stream
//! those after the last kill request, of a coordinator stream those after the last end. After each record the
//! invariants are checked.

use std::collections::BTreeMap;

use prost::Message;

use super::script::{Attempt, End, MS, OnTerm, Task};
use super::{explain, reference};
use crate::proto::{self, Record, Verdict, VerdictReason};
use crate::state::{
    Effect, Event, KillStage, Leader, Outcome, Phase, ProcessId, Run, RunEnd, RunState, RunStep,
    Settled, Stamp, TaskState, plan, wake,
};

/// A process by index, and a run number.
pub(super) type Id = (u32, u32);

/// What a coordinator does next, and when.
#[derive(Debug, Clone, Copy)]
enum Next {
    Fork,
    Start,
    End(End),
}

#[derive(Debug, Clone)]
struct Coordinator {
    attempt: Attempt,
    /// FORKED is recorded.
    forked: bool,
    running: bool,
    /// SIGKILL was sent, which a frozen run dies of too.
    killed: bool,
    next: Option<(u64, Next)>,
}

impl Coordinator {
    /// What it does next, if the freezer lets it: only the run is frozen, not the coordinator itself.
    fn next(&self, is_frozen: bool) -> Option<(u64, Next)> {
        self.next.filter(|(_, next)| !is_frozen || self.killed || matches!(next, Next::Fork))
    }
}

/// One record of a coordinator's stream.
#[derive(Debug, Clone)]
struct Entry {
    run: u32,
    step: RunStep,
    at: Stamp,
    boot: u32,
}

/// A task on a machine.
pub(super) struct Sim {
    pub(super) task: Task,
    pub(super) state: TaskState,
    pub(super) log: Vec<Record>,
    /// CLOCK_BOOTTIME.
    pub(super) now: u64,
    /// Wall clock minus `now`.
    pub(super) wall_offset: i64,
    /// Crash after so many more records and acts.
    pub(super) crash_in: Option<u32>,
    pub(super) runner_is_up: bool,
    /// Turns that the runner took, and effects that it performed.
    pub(super) turns: usize,
    pub(super) effects: usize,
    /// Whether each answer of the planner is held against the rules; that takes quadratic time.
    pub(super) checks_plans: bool,
    boot: u32,
    last_pid: i32,
    /// Records of the log that a power cut cannot take.
    synced: usize,
    coordinators: BTreeMap<Id, Coordinator>,
    streams: BTreeMap<u32, Vec<Entry>>,
    cursors: BTreeMap<u32, usize>,
    /// Runs that were forked, and in which boot.
    executed: BTreeMap<Id, u32>,
    /// In which boot the end of a run was recorded.
    pub(super) ended_in: BTreeMap<Id, u32>,
    last_deadline: Option<u64>,
    /// Since when the cgroup of the task is frozen.
    frozen_at: Option<u64>,
    /// When the task was paused in this boot: from and, once that is over, to.
    pauses: Vec<(u64, Option<u64>)>,
}

/// The runner died.
#[derive(Debug)]
struct Crashed;

impl Sim {
    /// A runner takes the lead of a task that was just accepted.
    pub(super) fn new(task: Task) -> Self {
        let state = TaskState::new(task.spec.clone(), task.loss_limit);
        let mut sim = Self {
            task,
            state,
            log: Vec::new(),
            now: 1_000 * MS,
            wall_offset: 1_700_000_000_000 * MS as i64,
            crash_in: None,
            runner_is_up: true,
            turns: 0,
            effects: 0,
            checks_plans: true,
            boot: 1,
            last_pid: 100,
            synced: 0,
            coordinators: BTreeMap::new(),
            streams: BTreeMap::new(),
            cursors: BTreeMap::new(),
            executed: BTreeMap::new(),
            ended_in: BTreeMap::new(),
            last_deadline: None,
            frozen_at: None,
            pauses: Vec::new(),
        };
        sim.lead();
        sim
    }

    /// Runs `task` to its end, undisturbed.
    pub(super) fn completed(task: Task) -> Self {
        let mut sim = Self::new(task);
        sim.run_to_end();
        sim
    }

    // ---- time ----

    pub(super) fn run_to_end(&mut self) {
        for _ in 0..100_000 {
            if !self.advance(u64::MAX) {
                assert!(self.is_over(), "the task hangs: {:#?}", self.state.processes());
                return;
            }
        }
        panic!("the task does not come to its end");
    }

    /// Lets `ms` pass.
    pub(super) fn run_for(&mut self, ms: u64) {
        let until = self.now + ms * MS;
        while self.advance(until) {}
        self.now = until;
        self.turn();
    }

    /// Takes a turn, then goes to the next thing that happens, if that is before or at `until`.
    pub(super) fn advance(&mut self, until: u64) -> bool {
        self.turn();
        let is_frozen = self.frozen_at.is_some();
        let world = self.coordinators.values().filter_map(|of| of.next(is_frozen));
        let world = world.map(|(time, _)| time);
        let timer = self.runner_is_up.then(|| wake(&self.state)).flatten();
        let Some(next) = world.chain(timer).min().filter(|&time| time <= until) else {
            return false;
        };
        self.now = self.now.max(next);
        self.play();
        true
    }

    pub(super) fn is_over(&self) -> bool {
        self.state.phase().is_some_and(Phase::is_terminal)
    }

    // ---- what people and accidents do ----

    /// Asks for the end, as `dewar kill` does; nobody answers while there is no runner.
    pub(super) fn kill(&mut self, wait_ms: u64, lost: bool) {
        if !self.runner_is_up || self.is_over() {
            return;
        }
        let deadline = self.now + if lost { 0 } else { wait_ms * MS };
        self.ask(Event::KillRequested { deadline, lost, by_uid: 1000, by_pid: 7, reason: None });
    }

    /// As `dewar pause` does; that a task is paused already is as good.
    pub(super) fn pause(&mut self) {
        if self.runner_is_up && !self.is_over() && self.state.pause().is_none() {
            self.ask(Event::Paused { by_uid: 1000, by_pid: 7 });
        }
    }

    /// As `dewar resume-paused` does; that a task is not paused is as good.
    pub(super) fn resume(&mut self) {
        if self.runner_is_up && self.state.pause().is_some() {
            self.ask(Event::Resumed { by_uid: 1000, by_pid: 7 });
        }
    }

    /// A request is synced, and then the freezer is set as it wants.
    fn ask(&mut self, event: Event) {
        let before = self.state.pause();
        self.append(event, self.stamp());
        self.synced = self.log.len();
        if self.state.pause() != before && self.crash_point().is_err() {
            self.runner_is_up = false;
            return;
        }
        self.set_freezer();
        self.turn();
    }

    fn set_freezer(&mut self) {
        match (self.state.pause(), self.frozen_at) {
            (Some(_), None) => self.frozen_at = Some(self.now),
            (None, Some(since)) => {
                self.frozen_at = None;
                for of in self.coordinators.values_mut() {
                    if let Some((time, next)) = of.next
                        && !of.killed
                        && !matches!(next, Next::Fork)
                    {
                        of.next = Some((time + (self.now - since), next));
                    }
                }
            }
            _ => {}
        }
    }

    /// A stranger sends a signal to the first process of the live run.
    pub(super) fn signal(&mut self, process: u32, signal: i32) {
        let is_kill = signal == libc::SIGKILL;
        // Any other waits until the run goes on.
        let now = self.frozen_at.filter(|_| !is_kill).unwrap_or(self.now);
        if let Some(of) = self.coordinator(process).filter(|of| of.running) {
            of.killed |= is_kill;
            of.next = Some((now, Next::End(End::Signal(signal as u8))));
            self.play();
        }
        self.turn();
    }

    /// The coordinator of the live run is killed.
    pub(super) fn kill_coordinator(&mut self, process: u32) {
        self.coordinators.retain(|&(of, _), _| of != process);
        self.turn();
    }

    pub(super) fn kill_runner(&mut self) {
        self.runner_is_up = false;
    }

    /// A new runner replays the stream, comes to know what the last one knew, takes the lead, and takes a turn.
    pub(super) fn start_runner(&mut self) {
        let replayed = self.replayed();
        assert_eq!(replayed, self.state, "replay differs");
        self.state = replayed;
        self.cursors.clear();
        self.runner_is_up = true;
        self.crash_in = None;
        if !self.is_over() {
            self.lead();
            self.set_freezer();
        }
        self.turn();
    }

    pub(super) fn restart_runner(&mut self) {
        self.kill_runner();
        self.start_runner();
    }

    /// A power cut takes all processes, and of the streams what is not synced, `lost` records of the log at most. The
    /// machine comes up again, with another boot-time clock.
    pub(super) fn reboot(&mut self, lost: usize, clock: u64) {
        self.runner_is_up = false;
        self.coordinators.clear();
        self.log.truncate(self.log.len().saturating_sub(lost).max(self.synced));
        if lost > 0 {
            for entries in self.streams.values_mut() {
                let ended = |entry: &Entry| matches!(entry.step, RunStep::Ended(_));
                entries.truncate(entries.iter().rposition(ended).map_or(0, |last| last + 1));
            }
        }
        self.boot += 1;
        self.now = clock;
        self.frozen_at = None;
        self.forget_what_left_no_trace();
        self.start_runner();
    }

    /// A run of which no record survived a power cut may be run again under its number: nobody can tell.
    fn forget_what_left_no_trace(&mut self) {
        let state = self.replayed();
        let streams = &self.streams;
        self.executed.retain(|&(process, run), _| {
            let known = state.processes()[process as usize].runs.get(run as usize);
            known.is_some_and(|known| known.state != RunState::Waiting)
                || streams.get(&process).is_some_and(|of| of.iter().any(|e| e.run == run))
        });
        self.last_deadline = state.deadline();
        self.pauses = state.pause().map(|_| (0, None)).into_iter().collect();
        self.state = state;
    }

    // ---- what is seen ----

    /// States of the runs of a process, a letter each: S F K L, and W w r while it lives.
    pub(super) fn runs(&self, name: &str) -> String {
        self.process_runs(name).iter().map(|run| letter(run.state)).collect()
    }

    pub(super) fn process_runs(&self, name: &str) -> &[Run] {
        &self.state.processes()[self.task.index(name) as usize].runs
    }

    pub(super) fn settled(&self, name: &str) -> Option<Settled> {
        self.state.processes()[self.task.index(name) as usize].settled
    }

    pub(super) fn phase(&self) -> Phase {
        self.state.phase().unwrap()
    }

    /// Every phase that it entered.
    pub(super) fn phases(&self) -> Vec<Phase> {
        self.state.history().iter().map(|&(phase, _)| phase).collect()
    }

    /// Names of the opened runs, in order: `a.0`.
    pub(super) fn opened(&self) -> Vec<String> {
        let opened = self.events().into_iter().filter_map(|(event, _)| match event {
            Event::Run { process, run, step: RunStep::Opened } => {
                Some(format!("{}.{run}", self.task.spec.processes[process as usize].name))
            }
            _ => None,
        });
        opened.collect()
    }

    /// When a run was opened, in milliseconds since the task was accepted.
    pub(super) fn opened_at(&self, name: &str, number: u32) -> u64 {
        let index = self.task.index(name);
        let mut events = self.events().into_iter();
        let at = events.find_map(|(event, at)| match event {
            Event::Run { process, run, step: RunStep::Opened } => {
                (process == index && run == number).then_some(at)
            }
            _ => None,
        });
        self.since_start(at.expect("the run was opened"))
    }

    /// When a run ended, in milliseconds since the task was accepted.
    pub(super) fn ended_at(&self, name: &str, run: usize) -> u64 {
        self.since_start(self.process_runs(name)[run].ended.unwrap())
    }

    /// When the task entered its last phase, in milliseconds since it was accepted.
    pub(super) fn over_at(&self) -> u64 {
        self.since_start(self.state.history().last().unwrap().1)
    }

    fn since_start(&self, at: Stamp) -> u64 {
        at.boot / MS - 1_000
    }

    pub(super) fn verdict(&self, name: &str, run: usize) -> &Verdict {
        &self.process_runs(name)[run].end.as_ref().unwrap().verdict
    }

    /// How often SIGTERM was sent to the runs of a process.
    pub(super) fn terminations(&self, name: &str) -> usize {
        let index = self.task.index(name);
        let sent =
            |event: &Event| matches!(event, &Event::Terminated { process, .. } if process == index);
        self.events().iter().filter(|(event, _)| sent(event)).count()
    }

    /// Every event of the log.
    pub(super) fn events(&self) -> Vec<(Event, Stamp)> {
        let event =
            |record: &Record| (Event::from_record(record.clone()).unwrap(), Stamp::of(record));
        self.log.iter().map(event).collect()
    }

    /// The state that a new runner would come to.
    pub(super) fn replayed(&self) -> TaskState {
        let mut state = TaskState::new(self.task.spec.clone(), self.task.loss_limit);
        for (event, at) in self.events() {
            state.apply(&event, at).unwrap();
        }
        state
    }

    pub(super) fn boot(&self) -> u32 {
        self.boot
    }

    /// How long the task was paused since `from`, in this boot.
    pub(super) fn paused_since(&self, from: u64) -> u64 {
        let length = |&(begin, end): &(u64, Option<u64>)| {
            end.unwrap_or(self.now).saturating_sub(from.max(begin))
        };
        self.pauses.iter().map(length).sum()
    }

    // ---- the runner ----

    /// Reads, records, plans and acts until nothing is to do.
    pub(super) fn turn(&mut self) {
        if self.runner_is_up && self.try_turn().is_err() {
            self.runner_is_up = false;
        }
    }

    fn try_turn(&mut self) -> Result<(), Crashed> {
        self.turns += 1;
        // ACTIVE, CLEANING, FINALIZING, the end, and one answer that is empty.
        let mut left = 5;
        while left > 0 {
            let recorded = self.log.len();
            self.read_streams()?;
            left = if self.log.len() > recorded { 4 } else { left - 1 };
            let effects = plan(&self.state, self.now);
            if self.checks_plans {
                reference::check(self, &effects);
                explain::check(&self.state, self.now, &effects);
            }
            if effects.is_empty() {
                self.check_wake();
                return Ok(());
            }
            for effect in effects {
                self.take(effect)?;
            }
        }
        panic!("plan does not come to rest: {:?}", plan(&self.state, self.now));
    }

    fn take(&mut self, effect: Effect) -> Result<(), Crashed> {
        self.effects += 1;
        match effect {
            Effect::Enter(phase) => {
                self.append(Event::Entered(phase), self.stamp());
                if phase.is_terminal() {
                    self.synced = self.log.len();
                }
                self.crash_point()
            }
            Effect::Open { process, run } => {
                self.append(Event::Run { process, run, step: RunStep::Opened }, self.stamp());
                self.crash_point()?;
                self.fork(process, run);
                self.crash_point()
            }
            Effect::Terminate { process, run } => {
                self.send_term((process, run));
                self.crash_point()?;
                self.append(Event::Terminated { process, run }, self.stamp());
                self.crash_point()
            }
            Effect::Doom { process, run, stage } => {
                self.append(Event::Doomed { process, run, stage }, self.stamp());
                self.crash_point()?;
                self.send_kill((process, run));
                self.crash_point()
            }
        }
    }

    fn crash_point(&mut self) -> Result<(), Crashed> {
        let Some(left) = &mut self.crash_in else { return Ok(()) };
        if *left == 0 {
            return Err(Crashed);
        }
        *left -= 1;
        Ok(())
    }

    fn lead(&mut self) {
        let leader = Leader {
            runner: self.pid(),
            boot_id: format!("boot-{}", self.boot),
            cgroup: Some("/sys/fs/cgroup/dewar/tasks/task".into()),
            dropped_bytes: 0,
        };
        self.append(Event::Led(leader), self.stamp());
    }

    /// Takes over what coordinators recorded; a live run without a coordinator is lost.
    fn read_streams(&mut self) -> Result<(), Crashed> {
        if self.is_over() {
            return Ok(());
        }
        for process in 0..self.task.spec.processes.len() as u32 {
            while let Some(entry) = self.unread(process) {
                if self.is_news(process, &entry) {
                    self.copy(process, entry);
                    self.crash_point()?;
                }
                *self.cursors.entry(process).or_default() += 1;
            }
        }
        let live: Vec<_> =
            self.state.live_runs().map(|(process, run, of)| (process, run, of.clone())).collect();
        for (process, run, of) in live {
            if self.coordinators.contains_key(&(process, run)) {
                continue;
            }
            if of.state == RunState::Waiting && self.state.pause().is_some() {
                continue;
            }
            if self.may_begin(process, run, &of) {
                self.fork(process, run);
            } else {
                self.give_up(process, run, &of);
            }
            self.crash_point()?;
        }
        Ok(())
    }

    /// The next record of a run that was opened.
    fn unread(&self, process: u32) -> Option<Entry> {
        let next = self.cursors.get(&process).copied().unwrap_or(0);
        let entry = self.streams.get(&process)?.get(next)?;
        let opened = self.state.processes()[process as usize].runs.len() as u32;
        (entry.run < opened).then(|| entry.clone())
    }

    /// T38: what a coordinator writes of a run that was given up is skipped; so is what was copied before.
    fn is_news(&self, process: u32, entry: &Entry) -> bool {
        let state = self.state.processes()[process as usize].runs[entry.run as usize].state;
        match entry.step {
            RunStep::Opened => false,
            RunStep::Forked { .. } => state == RunState::Waiting,
            RunStep::Running { .. } => state == RunState::Forked,
            RunStep::Unkillable(_) => matches!(state, RunState::Forked | RunState::Running),
            RunStep::Ended(_) => state.is_live(),
        }
    }

    fn copy(&mut self, process: u32, entry: Entry) {
        let Entry { run, step, at, boot } = entry;
        let boot_time = if boot == self.boot { at.boot } else { 0 };
        let step = match step {
            RunStep::Ended(end) => RunStep::Ended(Box::new(self.state.judge(process, run, *end))),
            step => step,
        };
        self.append(Event::Run { process, run, step }, Stamp { boot: boot_time, ..at });
    }

    /// T68: a run of which nobody recorded that it was forked is begun, under its number.
    fn may_begin(&self, process: u32, run: u32, of: &Run) -> bool {
        of.state == RunState::Waiting
            && of.doomed.is_none()
            && self.phase() != Phase::Cleaning
            && self.attempt(process, run).end != End::NotForked
    }

    fn give_up(&mut self, process: u32, run: u32, of: &Run) {
        let failed_to_fork = self.attempt(process, run).end == End::NotForked;
        let rebooted = self.executed.get(&(process, run)).is_some_and(|&boot| boot != self.boot);
        let is_cleaning = self.phase() == Phase::Cleaning;
        let dropped = of.doomed.or(is_cleaning.then_some(KillStage::Terminate));
        let stage = if of.state == RunState::Waiting { dropped } else { of.doomed };
        let (outcome, reason) = match (of.state, stage) {
            (RunState::Waiting, None) if failed_to_fork => {
                (Outcome::NotStarted, VerdictReason::LaunchFailed)
            }
            (RunState::Waiting | RunState::Forked, Some(_)) => {
                (Outcome::Dropped, VerdictReason::Killed)
            }
            _ if rebooted => (Outcome::Lost, VerdictReason::Reboot),
            _ => (Outcome::Lost, VerdictReason::CoordinatorLost),
        };
        let stage = stage.map(i32::from);
        let verdict = Verdict { reason: reason.into(), stage, ..Default::default() };
        let end = self.state.judge(process, run, RunEnd { outcome, verdict, usage: None });
        let step = RunStep::Ended(Box::new(end));
        self.append(Event::Run { process, run, step }, self.stamp());
    }

    /// Records and applies, and checks what must hold from then on.
    pub(super) fn append(&mut self, event: Event, at: Stamp) {
        let record = Record {
            seq: self.log.len() as u64 + 1,
            boot_nanos: at.boot,
            unix_nanos: at.wall,
            kind: Some(event.to_kind()),
        };
        let record = Record::decode(record.encode_to_vec().as_slice()).unwrap();
        let read = Event::from_record(record.clone()).unwrap();
        assert_eq!(read, event, "a record does not come back as it was");
        self.check_before(&read, at);
        let pause = self.state.pause();
        self.state.apply(&read, Stamp::of(&record)).unwrap_or_else(|error| {
            panic!("the log {error}: {read:?}");
        });
        self.log.push(record);
        if let Event::Run { process, run, step: RunStep::Ended(_) } = read {
            self.ended_in.insert((process, run), self.boot);
        }
        match (pause, self.state.pause()) {
            (None, Some(_)) => self.pauses.push((at.boot, None)),
            (Some(pause), None) => {
                let length = at.boot - pause.since.boot;
                self.pauses.last_mut().unwrap().1 = Some(at.boot);
                self.last_deadline = self.last_deadline.map(|last| last + length);
            }
            _ => {}
        }
        self.check_after();
    }

    pub(super) fn stamp(&self) -> Stamp {
        Stamp { boot: self.now, wall: self.now as i64 + self.wall_offset }
    }

    // ---- invariants ----

    fn check_before(&self, event: &Event, at: Stamp) {
        assert!(!self.is_over() || matches!(event, Event::Led(_)), "{event:?} after the end");
        match *event {
            Event::Run { process, run, step: RunStep::Opened } => self.check_open(process, run, at),
            Event::Entered(phase) if phase.is_terminal() => {
                assert_eq!(self.state.live_runs().count(), 0, "terminal with live runs");
                assert!(self.coordinators.is_empty(), "terminal with live coordinators");
            }
            _ => {}
        }
    }

    fn check_open(&self, process: u32, run: u32, at: Stamp) {
        let spec = &self.task.spec.processes[process as usize];
        let runs = &self.state.processes()[process as usize].runs;
        assert_eq!(self.state.pause(), None, "opened while the task is paused");
        assert_eq!(runs.len(), run as usize, "a run number is not the next one");
        let wanted = if spec.is_final { Phase::Finalizing } else { Phase::Active };
        assert_eq!(self.phase(), wanted, "opened in the wrong phase");
        let graph = self.checks_plans.then_some(&self.task.spec.graph.successors);
        for (from, successors) in graph.into_iter().flatten().enumerate() {
            if successors.contains(&process) {
                let settled = reference::settled(&self.task, self.state.processes(), from);
                assert_eq!(settled, Some(Settled::Finished), "opened before its predecessor");
            }
        }
        let Some(last) = runs.last() else { return };
        let ended = last.ended.unwrap().boot;
        if self.ended_in[&(process, run - 1)] == self.boot && ended > 0 {
            let wait = spec.min_duration.as_nanos() as u64;
            let paused = self.paused_since(ended);
            assert!(at.boot >= ended + wait + paused, "min_duration is not over");
        }
    }

    fn check_after(&mut self) {
        let limit = self.task.spec.max_concurrency as usize;
        for is_final in [false, true] {
            let of_plan =
                |process: u32| self.task.spec.processes[process as usize].is_final == is_final;
            let live = self.state.live_runs().filter(|&(process, ..)| of_plan(process)).count();
            assert!(limit == 0 || live <= limit, "{live} runs beside each other");
        }
        let deadline = self.state.deadline();
        if let Some(last) = self.last_deadline {
            assert!(deadline.is_some_and(|deadline| deadline <= last), "the deadline moved");
        }
        self.last_deadline = deadline;
    }

    /// Between now and `wake` nothing is to do; then something is, unless the time is only of a reboot.
    fn check_wake(&self) {
        let Some(time) = wake(&self.state) else {
            assert_eq!(plan(&self.state, u64::MAX), [], "would have slept through");
            return;
        };
        assert!(time > self.now, "wakes at {time}, which is not after {}", self.now);
        assert_ne!(plan(&self.state, time), [], "wakes for nothing");
        for early in [time - 1, self.now + (time - self.now) / 2] {
            assert_eq!(plan(&self.state, early), [], "wakes too late");
        }
    }

    // ---- the machine ----

    fn attempt(&self, process: u32, run: u32) -> Attempt {
        let attempts = &self.task.attempts[process as usize];
        attempts[(run as usize).min(attempts.len() - 1)]
    }

    fn coordinator(&mut self, process: u32) -> Option<&mut Coordinator> {
        self.coordinators.iter_mut().find(|((of, _), _)| *of == process).map(|(_, of)| of)
    }

    /// Forks a coordinator, unless its stream tells that the run was, and that a power cut took the record of it.
    fn fork(&mut self, process: u32, run: u32) {
        let attempt = self.attempt(process, run);
        let known = |entries: &Vec<Entry>| entries.iter().any(|entry| entry.run == run);
        if attempt.end == End::NotForked || self.streams.get(&process).is_some_and(known) {
            return;
        }
        let next = Some((self.now + attempt.starts_in[0], Next::Fork));
        let coordinator =
            Coordinator { attempt, forked: false, running: false, killed: false, next };
        self.coordinators.insert((process, run), coordinator);
    }

    fn send_term(&mut self, id: Id) {
        let now = self.frozen_at.unwrap_or(self.now);
        let Some(of) = self.coordinators.get_mut(&id) else { return };
        let end = match of.attempt.on_term {
            OnTerm::Dies => End::Signal(libc::SIGTERM as u8),
            OnTerm::Exits(code) => End::Exit(code),
            OnTerm::Ignores => return,
        };
        of.next = Some((now + of.attempt.dies_in, Next::End(end)));
    }

    fn send_kill(&mut self, id: Id) {
        let now = self.now;
        let Some(of) = self.coordinators.get_mut(&id) else { return };
        if !of.forked {
            self.coordinators.remove(&id);
            return;
        }
        let end = End::Signal(libc::SIGKILL as u8);
        of.killed = true;
        of.next = Some((now + of.attempt.dies_in, Next::End(end)));
    }

    /// Lets the coordinators do what is due.
    fn play(&mut self) {
        let is_frozen = self.frozen_at.is_some();
        let due = |of: &Coordinator, now| of.next(is_frozen).filter(|&(time, _)| time <= now);
        while let Some((id, (time, next))) = self
            .coordinators
            .iter()
            .filter_map(|(&id, of)| Some((id, due(of, self.now)?)))
            .min_by_key(|&(id, (time, _))| (time, id))
        {
            self.step(id, time, next);
        }
    }

    fn step(&mut self, id: Id, time: u64, next: Next) {
        let at = Stamp { boot: time, wall: time as i64 + self.wall_offset };
        let pid = self.pid();
        let of = self.coordinators.get_mut(&id).unwrap();
        let attempt = of.attempt;
        let step = match next {
            Next::Fork => {
                of.forked = true;
                let before = self.executed.insert(id, self.boot);
                assert_eq!(before, None, "run {id:?} is run twice");
                let born = self.frozen_at.unwrap_or(time);
                of.next = Some((born + attempt.starts_in[1], Next::Start));
                RunStep::Forked { coordinator: pid }
            }
            Next::Start if attempt.end == End::NotStarted => {
                self.coordinators.remove(&id);
                RunStep::Ended(Box::new(natural_end(End::NotStarted)))
            }
            Next::Start => {
                of.running = true;
                of.next = attempt.lasts.map(|lasts| (time + lasts, Next::End(attempt.end)));
                RunStep::Running { pid }
            }
            Next::End(end) => {
                self.coordinators.remove(&id);
                if end == End::CoordinatorDies {
                    return;
                }
                RunStep::Ended(Box::new(natural_end(end)))
            }
        };
        let entry = Entry { run: id.1, step, at, boot: self.boot };
        self.streams.entry(id.0).or_default().push(entry);
    }

    fn pid(&mut self) -> ProcessId {
        self.last_pid += 1;
        ProcessId { pid: self.last_pid, start_ticks: self.now / (10 * MS) }
    }
}

fn letter(state: RunState) -> char {
    match state {
        RunState::Waiting => 'W',
        RunState::Forked => 'w',
        RunState::Running => 'r',
        RunState::Success => 'S',
        RunState::Failed => 'F',
        RunState::Killed => 'K',
        RunState::Lost => 'L',
    }
}

/// The end as a coordinator sees it.
pub(super) fn natural_end(end: End) -> RunEnd {
    let (outcome, reason) = match end {
        End::Exit(code) => (Outcome::Exited(code), VerdictReason::Exited),
        End::Signal(signal) => (Outcome::Signalled(signal), VerdictReason::Signalled),
        End::Oom => (Outcome::Signalled(libc::SIGKILL as u8), VerdictReason::Oom),
        End::NotForked | End::NotStarted => (Outcome::NotStarted, VerdictReason::LaunchFailed),
        End::CoordinatorDies => (Outcome::Lost, VerdictReason::CoordinatorLost),
    };
    let verdict = Verdict { reason: reason.into(), ..Default::default() };
    let usage = proto::Usage { memory_peak_bytes: Some(4096), ..Default::default() };
    RunEnd { outcome, verdict, usage: Some(usage) }
}

/// The verdict of a run that dewar killed.
pub(super) fn killed(stage: KillStage) -> Verdict {
    Verdict {
        reason: VerdictReason::Killed.into(),
        stage: Some(stage.into()),
        ..Default::default()
    }
}
