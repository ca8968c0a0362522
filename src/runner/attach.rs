//! Taking over, and learning what coordinators recorded.
//!
//! A runner that starts replays its stream and holds the lock. Each run that is live in it is then one of these:
//!
//! | its stream says | its lock | so |
//! |---|---|---|
//! | ended | any | copied, like in any turn |
//! | FORKED or RUNNING | held | its coordinator goes on: it is waited for |
//! | FORKED or RUNNING | free | its coordinator died: the leaf is killed, the run is LOST |
//! | nothing | held | its coordinator is about to record FORKED: it is waited for |
//! | nothing | free | nothing was started: it is launched, with the same run number |
//!
//! The lock is asked for first, and the stream is read after that: what a free stream says is all that it will say.
//!
//! After a reboot no pid is looked at: what has not ended is LOST.

use std::collections::VecDeque;
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;

use super::acceptance::Acceptance;
use super::control::{Control, Follower};
use super::perform::Act;
use super::sources::Wake;
use super::{CONTROL, Coordinator, Live, NUDGES, Ready, Runner, RunnerError, doing};
use crate::cgroup::{self, Base, FindError, TaskCgroup, Unenforceable};
use crate::checkpoint::{Identity, ReadError, Reader, Recovery, Root, lock, tasks};
use crate::failpoint::{Failpoint, hit};
use crate::proto::record::Kind;
use crate::proto::run_transition::State as Step;
use crate::proto::{Containment, Launch, Record, VerdictReason};
use crate::state::{Event, Leader, Phase, RunState, RunStep, Stamp, TaskState};
use crate::sys::pidfd::ProcessId;
use crate::sys::{clock, fds, pidfd, process};
use crate::task::{TaskId, TaskSpec};

/// Time for a coordinator to record RUNNING after it was forked: a backstop (T40).
pub(super) const START_BACKSTOP: u64 = 60_000_000_000;

/// Time between two looks at a coordinator whose pid is not known yet.
pub(super) const UNKNOWN_BACKSTOP: u64 = 100_000_000;

impl Runner {
    /// Takes the lead of the task: locks and replays its stream. `is_fresh`: whoever has just written it lives.
    pub(super) fn lead(
        ready: Ready,
        root: Root,
        task: TaskId,
        follower: Option<OwnedFd>,
        is_fresh: bool,
    ) -> Result<Self, RunnerError> {
        let Ready { descriptors, sources, boot_id, me, base } = ready;
        let acceptance = Acceptance::new(follower.as_ref(), is_fresh);
        hit(Failpoint::RunnerStart).map_err(doing("pass a failpoint"))?;
        let open = if is_fresh { Recovery::open_fresh } else { Recovery::open };
        let mut recovery = open(&root, Identity::runner(task.clone()))?;
        if !tasks::is_known(&root, &task) {
            return Err(RunnerError::NotAccepted(task));
        }
        let (launch, state) = replay(&root, &task, &mut recovery)?;
        let recovered = recovery.finish()?;
        hit(Failpoint::RunnerReplayed).map_err(doing("pass a failpoint"))?;
        let same_boot = state.leader().is_none_or(|last| last.boot_id == boot_id);

        std::env::set_current_dir(root.checkpoint(&task))
            .map_err(doing("enter the checkpoint directory"))?;
        let control = Control::bind(CONTROL.as_ref()).map_err(doing("bind the control socket"))?;
        let nudges = fds::open_fifo(NUDGES.as_ref()).map_err(doing("open the nudge pipe"))?;
        hit(Failpoint::RunnerListening).map_err(doing("pass a failpoint"))?;
        sources.add(&control, Wake::Control).map_err(doing("watch the control socket"))?;
        sources.add(&nudges, Wake::Nudge).map_err(doing("watch the nudge pipe"))?;

        let cgroup = match launch.containment() {
            Containment::None => {
                process::become_subreaper().map_err(doing("become a subreaper"))?;
                None
            }
            _ if state.phase().is_some_and(Phase::is_terminal) => None,
            _ => Some(contain(&task, &launch, &state, base)?),
        };
        hit(Failpoint::RunnerContained).map_err(doing("pass a failpoint"))?;

        let mut runner = Self {
            root,
            task,
            launch,
            state,
            writer: recovered.writer,
            boot_id,
            same_boot,
            descriptors,
            cgroup,
            control,
            nudges,
            sources,
            followers: follower.map(Follower::new).into_iter().collect(),
            live: Default::default(),
            positions: Default::default(),
            starting: Default::default(),
            acts: Vec::new(),
            retries: Vec::new(),
            stalled: None,
            replies: Vec::new(),
            pausing: Vec::new(),
            changes: VecDeque::new(),
            making: None,
            updates: VecDeque::new(),
            resuming: false,
            sync_due: false,
            must_last: false,
            acceptance: Some(acceptance),
            news: false,
            recheck: None,
            recheck_pause: 0,
            used: None,
        };
        if !runner.state.phase().is_some_and(Phase::is_terminal) {
            runner.record_lead(me, recovered.dropped_bytes)?;
        }
        Ok(runner)
    }

    /// Makes the task's cgroup anew if somebody has removed it while nothing lived in it, as systemd does with what is empty of a unit that
    /// ends.
    pub(super) fn contain_again(&mut self) -> Result<(), RunnerError> {
        let Some(cgroup) = self.cgroup.as_ref().filter(|cgroup| cgroup.is_removed()) else {
            return Ok(());
        };
        // `<base>/tasks/<id>`.
        let base = cgroup.path().ancestors().nth(2).map(Path::to_owned);
        let base = cgroup::find(&cgroup::Options { explicit: base })?;
        let (cgroup, applied) = base.task_for(&self.task, self.state.spec())?;
        refuse_missing(&self.launch, applied.unenforceable)?;
        self.cgroup = Some(cgroup);
        Ok(())
    }

    fn record_lead(&mut self, me: ProcessId, dropped_bytes: u64) -> Result<(), RunnerError> {
        let leader = Leader {
            runner: me.into(),
            boot_id: self.boot_id.clone(),
            cgroup: self.cgroup.as_ref().map(|cgroup| cgroup.path().display().to_string()),
            dropped_bytes,
        };
        self.record(Event::Led(leader), clock::now())?;
        // What lives already has its space from an earlier runner, if any runner could have it.
        let _ = self.reserve();
        Ok(())
    }

    /// Finds out what became of the runs that were live under an earlier runner.
    pub(super) fn attach(&mut self) -> Result<(), RunnerError> {
        hit(Failpoint::RunnerAttaching).map_err(doing("pass a failpoint"))?;
        let live: Vec<(u32, u32)> =
            self.state.live_runs().map(|(process, run, _)| (process, run)).collect();
        for (process, run) in live {
            self.live.insert(process, Live { run, ..Live::default() });
            self.attach_run(process)?;
        }
        self.attach_limits();
        self.attach_pause()
    }

    /// Finds out what becomes of a live run whose coordinator is not known.
    pub(super) fn attach_run(&mut self, process: u32) -> Result<(), RunnerError> {
        let is_alive = self.is_coordinator_alive(process)?;
        self.absorb(process)?;
        let run = &self.state.processes()[process as usize];
        let Some((_, run)) = run.live_run() else { return Ok(()) };
        let (state, doomed) = (run.state, run.doomed.is_some());
        if state != RunState::Waiting && self.is_of_earlier_boot(process) {
            return self.lose(process, VerdictReason::Reboot);
        }
        match (state, is_alive) {
            (RunState::Waiting, false) => {
                self.expect_nothing(process);
                self.acts.push(Act::Launch(process));
            }
            (RunState::Waiting, true) => self.expect(process, UNKNOWN_BACKSTOP),
            (_, false) => self.coordinator_died(process)?,
            (_, true) => match self.meet(process)? {
                Meeting::Gone => self.coordinator_died(process)?,
                Meeting::Failed => self.expect(process, UNKNOWN_BACKSTOP),
                Meeting::Known if state == RunState::Running => self.started(process),
                Meeting::Known => {
                    self.expect(process, START_BACKSTOP);
                    if doomed {
                        self.acts.push(Act::Doom(process));
                    }
                }
            },
        }
        Ok(())
    }

    /// The lock of its stream answers, not a pid: it is held from before the fork to the coordinator's end.
    fn is_coordinator_alive(&self, process: u32) -> Result<bool, RunnerError> {
        Ok(lock::holder(&self.root, &self.stream_of(process))?.is_some())
    }

    /// Waits for the next record of a coordinator, `nanos` at the most.
    pub(super) fn expect(&mut self, process: u32, nanos: u64) {
        self.starting.insert(process);
        if let Some(live) = self.live.get_mut(&process) {
            live.backstop = Some(clock::boot_nanos().saturating_add(nanos));
        }
    }

    /// Waits for no record of a coordinator but its end.
    fn expect_nothing(&mut self, process: u32) {
        self.starting.remove(&process);
        if let Some(live) = self.live.get_mut(&process) {
            live.backstop = None;
        }
    }

    /// Takes note that the coordinator of a live run has appended.
    pub(super) fn nudged(&mut self, process: u32) -> Result<(), RunnerError> {
        match self.live.get(&process) {
            Some(live) if live.coordinator.is_none() => self.attach_run(process),
            _ => self.absorb(process),
        }
    }

    /// Copies what the coordinator of a live run has recorded since the last look.
    ///
    /// Stops before the first record of a run that is not opened yet: a power cut may take the end of our stream and leave
    /// the coordinator's whole. What it tells of that run is copied once the run is opened.
    pub(super) fn absorb(&mut self, process: u32) -> Result<(), RunnerError> {
        let mut reader = match Reader::open(&self.root, &self.stream_of(process)) {
            Ok(reader) => reader,
            Err(ReadError::Missing { .. }) => return Ok(()),
            Err(error) => return Err(error.into()),
        };
        if let Some(&position) = self.positions.get(&process) {
            reader.seek(position);
        }
        loop {
            self.positions.insert(process, reader.position());
            match reader.next_record()? {
                Some(record) if !self.is_ahead(process, &record) => {
                    self.absorb_record(process, record)?;
                }
                _ => return Ok(()),
            }
        }
    }

    /// Whether a coordinator recorded it of a run that this stream does not know yet.
    fn is_ahead(&self, process: u32, record: &Record) -> bool {
        let known = self.state.processes()[process as usize].runs.len();
        matches!(&record.kind, Some(Kind::Run(run)) if run.run as usize >= known)
    }

    /// Records of runs that have ended are skipped, whenever they were written (T38).
    fn absorb_record(&mut self, process: u32, record: Record) -> Result<(), RunnerError> {
        let mut at = Stamp::of(&record);
        let Some(Kind::Run(transition)) = record.kind else { return Ok(()) };
        let Some(live) = self.live.get(&process).filter(|live| live.run == transition.run) else {
            return Ok(());
        };
        let run = live.run;
        hit(Failpoint::RunnerAbsorb).map_err(doing("pass a failpoint"))?;
        if let Some(Step::Forked(forked)) = &transition.state {
            self.note_boot(process, &forked.boot_id);
        }
        if self.is_of_earlier_boot(process) {
            at.boot = 0;
        }
        let Some(step) = transition.state.filter(|step| !self.is_known(process, step)) else {
            return Ok(());
        };
        let step = match RunStep::from_proto(step) {
            Ok(RunStep::Ended(end)) => {
                RunStep::Ended(Box::new(self.state.judge(process, run, *end)))
            }
            Ok(step) => step,
            Err(why) => return Err(self.replay_error(process, record.seq, why.to_string())),
        };
        let running = matches!(step, RunStep::Running { .. });
        let ended = matches!(step, RunStep::Ended(_));
        self.record(Event::Run { process, run, step }, at)?;
        if running {
            self.started(process);
        }
        if ended {
            self.ended(process);
        }
        Ok(())
    }

    /// Takes note of the boot that a coordinator recorded. The last leader does not tell it: a power cut may have taken that
    /// record.
    fn note_boot(&mut self, process: u32, boot_id: &str) {
        let is_earlier = boot_id != self.boot_id;
        if let Some(live) = self.live.get_mut(&process) {
            live.is_of_earlier_boot |= is_earlier;
        }
    }

    fn is_of_earlier_boot(&self, process: u32) -> bool {
        !self.same_boot || self.live.get(&process).is_some_and(|live| live.is_of_earlier_boot)
    }

    /// Whether an earlier runner has copied this step of the live run.
    fn is_known(&self, process: u32, step: &Step) -> bool {
        let live = self.state.processes()[process as usize].live_run();
        match (live.map(|(_, run)| run.state), step) {
            (Some(RunState::Waiting), _) | (Some(RunState::Forked), Step::Running(_)) => false,
            (Some(_), Step::Unkillable(unkillable)) => self.is_told(process, unkillable),
            (_, step) => !matches!(step, Step::Ended(_)),
        }
    }

    fn replay_error(&self, process: u32, seq: u64, why: String) -> RunnerError {
        let stream = self.root.stream(&self.stream_of(process));
        RunnerError::Replay { stream, seq, why }
    }

    /// Comes to know a coordinator that an earlier runner forked, and that held the lock of its stream just now.
    fn meet(&mut self, process: u32) -> Result<Meeting, RunnerError> {
        let run = self.state.processes()[process as usize].live_run();
        let Some(id) = run.and_then(|(_, run)| run.coordinator) else { return Ok(Meeting::Gone) };
        let pidfd = match pidfd::ProcessId::from(id).open() {
            Ok(Some(pidfd)) => pidfd,
            // What has its number now, if anything, is not it.
            Ok(None) => return Ok(Meeting::Gone),
            Err(_) => return Ok(Meeting::Failed),
        };
        self.sources
            .add(&pidfd, Wake::Coordinator(process))
            .map_err(doing("watch a coordinator"))?;
        if let Some(live) = self.live.get_mut(&process) {
            live.coordinator = Some(Coordinator { pid: id.pid, pidfd });
        }
        Ok(Meeting::Known)
    }

    /// A run runs: nothing more is expected of its coordinator before its end.
    fn started(&mut self, process: u32) {
        if self.live.get(&process).is_none_or(|live| live.coordinator.is_some()) {
            self.expect_nothing(process);
        }
        let run = self.state.processes()[process as usize].live_run();
        if run.is_some_and(|(_, run)| run.doomed.is_some()) {
            self.acts.push(Act::Doom(process));
        }
        self.limit_started(process);
    }

    /// A run has ended: nothing of it is left here.
    fn ended(&mut self, process: u32) {
        self.starting.remove(&process);
        if let Some(Live { coordinator: Some(coordinator), .. }) = self.live.remove(&process) {
            self.sources.remove(&coordinator.pidfd);
        }
    }

    /// A coordinator has died: what it recorded decides.
    pub(super) fn coordinator_died(&mut self, process: u32) -> Result<(), RunnerError> {
        if let Some(live) = self.live.get_mut(&process)
            && let Some(coordinator) = live.coordinator.take()
        {
            self.sources.remove(&coordinator.pidfd);
        }
        self.absorb(process)?;
        let Some((_, run)) = self.state.processes()[process as usize].live_run() else {
            return Ok(());
        };
        if run.state == RunState::Waiting {
            // It recorded nothing, so it started nothing.
            self.starting.remove(&process);
            let error = io::Error::other("the coordinator died before it started anything");
            return self.start_failed(process, "coordinator", error);
        }
        self.lose(
            process,
            match self.is_of_earlier_boot(process) {
                true => VerdictReason::Reboot,
                false => VerdictReason::CoordinatorLost,
            },
        )
    }
}

/// What came of looking for a coordinator by its recorded identity.
enum Meeting {
    /// It lives, and its end will wake the runner.
    Known,
    /// It is dead.
    Gone,
    /// Nothing is known: descriptors ran out, say. It has to be looked for again.
    Failed,
}

/// Folds the stream of the runner.
fn replay(
    root: &Root,
    task: &TaskId,
    recovery: &mut Recovery,
) -> Result<(Launch, TaskState), RunnerError> {
    let bad = |seq, why: String| RunnerError::Replay { stream: root.runner(task), seq, why };
    let header = recovery.next_record()?.and_then(|record| record.kind);
    let Some(Kind::Launch(launch)) = header else {
        return Err(bad(0, "is no header".to_owned()));
    };
    let spec = TaskSpec::from_proto(&launch.task.clone().unwrap_or_default())
        .map_err(|violations| bad(0, format!("holds an invalid task: {}", violations[0])))?;
    let mut state = TaskState::new(spec, launch.loss_limit);
    while let Some(record) = recovery.next_record()? {
        let (seq, at) = (record.seq, Stamp::of(&record));
        let event = Event::from_record(record).map_err(|error| bad(seq, error.to_string()))?;
        state.apply(&event, at).map_err(|error| bad(seq, error.to_string()))?;
    }
    Ok((launch, state))
}

/// The task's cgroup, with its limits: where an earlier runner left it, else a new one beneath the base.
fn contain(
    task: &TaskId,
    launch: &Launch,
    state: &TaskState,
    base: Option<Result<Base, FindError>>,
) -> Result<TaskCgroup, RunnerError> {
    let recorded = state.leader().and_then(|leader| leader.cgroup.as_deref());
    if let Some(path) = recorded
        && let Some(cgroup) = TaskCgroup::open_existing(path.as_ref(), task)?
    {
        return Ok(cgroup);
    }
    let base = base.ok_or(RunnerError::NoBase)??;
    let (cgroup, applied) = base.task_for(task, state.spec())?;
    refuse_missing(launch, applied.unenforceable)?;
    Ok(cgroup)
}

/// Invariant 5: a limit that was accepted as enforced is enforced, or the task does not run.
fn refuse_missing(launch: &Launch, missing: Vec<Unenforceable>) -> Result<(), RunnerError> {
    match missing.into_iter().find(|limit| !launch.unenforced.contains(&limit.field)) {
        None => Ok(()),
        Some(Unenforceable { field, needs, why }) => Err(RunnerError::Limit { field, needs, why }),
    }
}
