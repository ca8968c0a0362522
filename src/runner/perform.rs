//! How each effect is done, after its record was written.

use std::error::Error;
use std::io;
use std::os::fd::AsFd;
use std::time::Duration;

use nix::errno::Errno;

use super::attach::{START_BACKSTOP, UNKNOWN_BACKSTOP};
use super::sources::Wake;
use super::{Coordinator, Live, RETRY, Runner, RunnerError, doing};
use crate::causes::{chain, say};
use crate::cgroup::{self, CgroupError};
use crate::checkpoint::{OpenError, Recovery, WriteError, Writer};
use crate::coordinator::{self, Job};
use crate::failpoint::{Failpoint, hit};
use crate::proto::record::Kind;
use crate::proto::{KillStage, Unkillable, Usage, Verdict, VerdictReason};
use crate::state::{Event, Outcome, Phase, RunEnd, RunState, RunStep};
use crate::sys::{self, clock, clone, pidfd, process};

/// Something that is to be done, and whose record is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Act {
    /// The coordinator of this process' live run is forked.
    Launch(u32),
    /// This process' live run is killed.
    Doom(u32),
    /// The next change of limits is made.
    Limit,
    /// The task's cgroup is frozen, or thawed, as the state says.
    Freezer,
}

/// What came of starting a coordinator.
enum Start {
    /// It was forked.
    Forked(Coordinator),
    /// Another one of this process lives: it is about to record FORKED, or to be gone.
    Held,
    /// One has begun this run before, and is dead: what it recorded decides.
    Begun,
}

/// What came of taking the stream of a process.
enum Stream {
    /// It is locked, and says nothing of the run that is to begin.
    Ours(Writer),
    /// A coordinator holds it.
    Held,
    /// The run was begun.
    Begun,
}

/// Starts in a row that fail before a run is given up as FAILED.
const START_TRIES: u32 = 8;

/// Pause before a start that found no space is tried again.
const SPACE_PAUSE: Duration = Duration::from_millis(500);

/// Bytes set aside in the runner's stream for what becomes of the task, and for what becomes of each live run.
const RESERVE: u64 = 4096;
const RUN_RESERVE: u64 = 1024;

/// Time that a doomed run gets to come from FORKED to RUNNING, where it can be killed as a whole.
pub(super) const DOOM_BACKSTOP: u64 = 5_000_000_000;

/// Pauses between two looks at a cgroup that is being emptied: the kernel's notification of a young cgroup may be
/// late (it is limited to one per 10 ms and file).
const RECHECK: std::ops::RangeInclusive<u64> = 2_000_000..=1_000_000_000;

/// First and longest pause between two looks at a run that was killed and does not die, nanoseconds.
const DEATH_PAUSE: std::ops::RangeInclusive<u64> = 1_000_000_000..=60_000_000_000;

impl Runner {
    pub(super) fn perform(&mut self, act: Act) -> Result<(), RunnerError> {
        match act {
            Act::Launch(process) => self.launch(process),
            Act::Doom(process) => self.doom(process),
            Act::Limit => self.make_change(),
            Act::Freezer => self.set_freezer(),
        }
    }

    /// Puts acts back whose time to be tried again has come.
    pub(super) fn due_retries(&mut self) {
        let now = clock::boot_nanos();
        let due = self.retries.extract_if(.., |&mut (at, _)| at <= now);
        self.acts.extend(due.map(|(_, act)| act));
    }

    fn launch(&mut self, process: u32) -> Result<(), RunnerError> {
        let Some((_, run)) = self.state.processes()[process as usize].live_run() else {
            return Ok(());
        };
        let is_known = self.live.get(&process).is_some_and(|live| live.coordinator.is_some());
        if run.state != RunState::Waiting || is_known {
            return Ok(());
        }
        // The end of the pause looks for it anew.
        if self.state.pause().is_some() {
            return Ok(());
        }
        if run.doomed.is_some() || self.state.phase() == Some(Phase::Cleaning) {
            return self.drop_run(process, run.doomed.unwrap_or(KillStage::Terminate));
        }
        if let Err(error) = self.contain_again() {
            return self.start_failed(process, "cgroup", io::Error::other(chain(&error)));
        }
        match self.fork_coordinator(process) {
            Ok(Start::Forked(coordinator)) => {
                self.sources
                    .add(&coordinator.pidfd, Wake::Coordinator(process))
                    .map_err(doing("watch a coordinator"))?;
                if let Some(live) = self.live.get_mut(&process) {
                    live.coordinator = Some(coordinator);
                    live.waits_for_disk = false;
                }
                self.expect(process, START_BACKSTOP);
                hit(Failpoint::LaunchForked).map_err(doing("pass a failpoint"))
            }
            Ok(Start::Held) => {
                self.expect(process, UNKNOWN_BACKSTOP);
                Ok(())
            }
            Ok(Start::Begun) => self.coordinator_died(process),
            Err((step, error)) => self.start_failed(process, step, error),
        }
    }

    /// Forks the coordinator of the live run of `process`.
    fn fork_coordinator(&mut self, process: u32) -> Result<Start, (&'static str, io::Error)> {
        hit(Failpoint::LaunchStream).map_err(|error| ("open stream", error))?;
        self.reserve().map_err(|error| ("reserve space", io_error(error)))?;
        let (run, tries) =
            self.live.get(&process).map_or((0, 0), |live| (live.run, live.failed_starts));
        let mut stream = match self.take_stream(process, run) {
            Ok(Stream::Ours(stream)) => stream,
            Ok(Stream::Held) => return Ok(Start::Held),
            Ok(Stream::Begun) => return Ok(Start::Begun),
            Err(error) => return Err(("open stream", error)),
        };
        if tries > 0 {
            // A coordinator that finds no space just ends: here it is told why.
            let reserved = stream.reserve(coordinator::RESERVE);
            reserved.map_err(|error| ("reserve space", io_error(error)))?;
        }
        hit(Failpoint::LaunchLocked).map_err(|error| ("fork", error))?;
        let job = Job {
            task: &self.task,
            launch: &self.launch,
            spec: &self.state.spec().processes[process as usize],
            process,
            run,
            boot_id: &self.boot_id,
            stream,
            nudges: self.nudges.as_fd(),
            cgroup: self.cgroup.as_ref(),
            descriptors: self.descriptors,
        };
        let (pid, pidfd) =
            process::while_minding_children(|| clone::fork(|| coordinator::main(job)))
                .and_then(|forked| Ok(forked?))
                .map_err(|error| ("fork", error))?;
        match pidfd {
            Ok(pidfd) => Ok(Start::Forked(Coordinator { pid: pid.as_raw(), pidfd })),
            // It is known by what it records, like one that an earlier runner forked.
            Err(_) => Ok(Start::Held),
        }
    }

    /// Makes sure that what is about to begin, and what has begun, can be recorded to the end, whatever fills the disk
    /// meanwhile; and that a kill can be.
    pub(super) fn reserve(&mut self) -> Result<(), WriteError> {
        self.writer.reserve(RESERVE + RUN_RESERVE * self.live.len() as u64)
    }

    /// The stream of a process, locked for the coordinator of `run`.
    ///
    /// Invariant 2: whether this run was begun is asked under the lock, where no coordinator can begin it meanwhile.
    fn take_stream(&self, process: u32, run: u32) -> io::Result<Stream> {
        let mut recovery = match Recovery::open_or_create(&self.root, self.stream_of(process)) {
            Ok(recovery) => recovery,
            Err(OpenError::Held { .. }) => return Ok(Stream::Held),
            Err(error) => return Err(io_error(error)),
        };
        if let Some(&position) = self.positions.get(&process) {
            recovery.seek(position);
        }
        while let Some(record) = recovery.next_record().map_err(io_error)? {
            if matches!(record.kind, Some(Kind::Run(step)) if step.run >= run) {
                return Ok(Stream::Begun);
            }
        }
        Ok(Stream::Ours(recovery.finish().map_err(io_error)?.writer))
    }

    /// A start failed before anything ran: it is tried again, with pauses that grow, and given up in the end; but not
    /// for want of space. That is waited for, like everything that is to be written.
    pub(super) fn start_failed(
        &mut self,
        process: u32,
        step: &'static str,
        error: io::Error,
    ) -> Result<(), RunnerError> {
        let Some(live) = self.live.get_mut(&process) else { return Ok(()) };
        if error.raw_os_error().map(Errno::from_raw).is_some_and(sys::is_no_space) {
            if !std::mem::replace(&mut live.waits_for_disk, true) {
                say(format!(
                    "dewar-runner: {}: no space to start a run, waiting: {error}",
                    self.task
                ));
            }
            self.retry(SPACE_PAUSE, Act::Launch(process));
            return Ok(());
        }
        live.failed_starts += 1;
        if live.failed_starts < START_TRIES {
            let pause = (*RETRY.start() * 2u32.pow(live.failed_starts - 1)).min(*RETRY.end());
            self.retry(pause, Act::Launch(process));
            return Ok(());
        }
        let verdict = Verdict {
            reason: VerdictReason::LaunchFailed.into(),
            step: Some(step.to_owned()),
            errno: error.raw_os_error().map(|errno| format!("{:?}", Errno::from_raw(errno))),
            detail: Some(error.to_string()),
            ..Verdict::default()
        };
        self.end(process, Outcome::NotStarted, verdict)
    }

    fn retry(&mut self, pause: Duration, act: Act) {
        let at = clock::boot_nanos() + pause.as_nanos() as u64;
        self.retries.push((at, act));
    }

    fn drop_run(&mut self, process: u32, stage: KillStage) -> Result<(), RunnerError> {
        let verdict = Verdict {
            reason: VerdictReason::Killed.into(),
            stage: Some(stage.into()),
            ..Verdict::default()
        };
        self.end(process, Outcome::Dropped, verdict)
    }

    /// Records the end of a run that no coordinator can record.
    fn end(&mut self, process: u32, outcome: Outcome, verdict: Verdict) -> Result<(), RunnerError> {
        let Some(live) = self.live.remove(&process) else { return Ok(()) };
        self.starting.remove(&process);
        let end = RunEnd { outcome, verdict, usage: None };
        let end = self.state.judge(process, live.run, end);
        let step = RunStep::Ended(Box::new(end));
        self.record(Event::Run { process, run: live.run, step }, clock::now())
    }

    /// Sends SIGTERM to every process of a run.
    pub(super) fn terminate(&mut self, process: u32, run: u32) -> Result<(), RunnerError> {
        hit(Failpoint::RunnerTerminate).map_err(doing("pass a failpoint"))?;
        match &self.cgroup {
            Some(cgroup) => {
                if let Some(leaf) = cgroup.open_leaf(self.name(process), run)? {
                    match leaf.signal(libc::SIGTERM) {
                        // A process that became another user's; it is killed with its leaf when the time is up.
                        Err(CgroupError::Sys { errno: Errno::EPERM, .. }) => {}
                        sent => {
                            sent?;
                        }
                    }
                }
            }
            None => self.signal_first(process, libc::SIGTERM),
        }
        hit(Failpoint::RunnerTerminated).map_err(doing("pass a failpoint"))
    }

    /// Signals the first process of the live run, wherever it is, if the number is still its own.
    pub(super) fn signal_first(&self, process: u32, signal: i32) {
        let Some((_, run)) = self.state.processes()[process as usize].live_run() else { return };
        if let Some(Ok(Some(pidfd))) = run.pid.map(|pid| pidfd::ProcessId::from(pid).open()) {
            // It may have ended between the two: nothing to signal then.
            let _ = pidfd::send_signal(pidfd.as_fd(), signal);
        }
    }

    /// Kills every process of a run; its coordinator records the end.
    fn doom(&mut self, process: u32) -> Result<(), RunnerError> {
        let Some((number, run)) = self.state.processes()[process as usize].live_run() else {
            return Ok(());
        };
        hit(Failpoint::RunnerDoom).map_err(doing("pass a failpoint"))?;
        match run.state {
            RunState::Waiting if self.live[&process].coordinator.is_none() => {
                // It waits to be launched, and is dropped then.
                self.retries.retain(|&(_, act)| act != Act::Launch(process));
                self.acts.push(Act::Launch(process));
                return Ok(());
            }
            // It cannot be killed as a whole before it runs: done then.
            RunState::Waiting | RunState::Forked => self.expect(process, DOOM_BACKSTOP),
            _ => {}
        }
        self.kill_run(process, number)?;
        hit(Failpoint::RunnerDoomed).map_err(doing("pass a failpoint"))
    }

    fn kill_run(&mut self, process: u32, run: u32) -> Result<(), RunnerError> {
        if let Some(live) = self.live.get_mut(&process)
            && live.death.is_none()
        {
            let due = clock::boot_nanos() + coordinator::DEATH.as_nanos() as u64;
            live.death = Some((due, *DEATH_PAUSE.start()));
        }
        let Some(cgroup) = &self.cgroup else {
            self.signal_first(process, libc::SIGKILL);
            return Ok(());
        };
        if let Some(leaf) = cgroup.open_leaf(self.name(process), run)? {
            leaf.kill()?;
        }
        // A run of root may have left its leaf. Its number is of nobody else while its coordinator, which reaps it, lives.
        if self.live.get(&process).is_some_and(|live| live.coordinator.is_some()) {
            self.signal_first(process, libc::SIGKILL);
        }
        Ok(())
    }

    /// Looks at runs that were killed some time ago: what has not died is told, and killed again.
    pub(super) fn check_deaths(&mut self) -> Result<(), RunnerError> {
        let now = clock::boot_nanos();
        let is_due = |live: &Live| live.death.is_some_and(|(due, _)| due <= now);
        let due: Vec<(u32, u32)> = self
            .live
            .iter()
            .filter(|(_, live)| is_due(live))
            .map(|(&process, live)| (process, live.run))
            .collect();
        for (process, run) in due {
            self.kill_run(process, run)?;
            if let Some(live) = self.live.get_mut(&process) {
                live.death = live.death.map(|(_, pause)| {
                    (now.saturating_add(pause), (pause * 2).min(*DEATH_PAUSE.end()))
                });
            }
            self.tell_unkillable(process, run)?;
        }
        Ok(())
    }

    /// Records what of a run does not die, unless that is recorded.
    fn tell_unkillable(&mut self, process: u32, run: u32) -> Result<(), RunnerError> {
        let unkillable = match &self.cgroup {
            Some(cgroup) => match cgroup.open_leaf(self.name(process), run)? {
                Some(leaf) => leaf.unkillable()?,
                None => None,
            },
            None => cgroup::unkillable(&self.known_of(process)),
        };
        let Some(unkillable) = unkillable else { return Ok(()) };
        let state = self.state.processes()[process as usize].live_run().map(|(_, run)| run.state);
        let may = matches!(state, Some(RunState::Forked | RunState::Running));
        if !may || unkillable.processes.is_empty() || self.is_told(process, &unkillable) {
            return Ok(());
        }
        let step = RunStep::Unkillable(Box::new(unkillable));
        self.record(Event::Run { process, run, step }, clock::now())
    }

    /// Without cgroups: the processes that are known to be of the live run. Its first one; and if its coordinator is gone, all
    /// that became the runner's children, since the run does not end before they do.
    fn known_of(&self, process: u32) -> Vec<i32> {
        if self.live.get(&process).is_some_and(|live| live.lost.is_some()) {
            return process::children_except(&self.coordinators());
        }
        let run = self.state.processes()[process as usize].live_run();
        let first = run.and_then(|(_, run)| run.pid).map(pidfd::ProcessId::from);
        let is_there = |id: &pidfd::ProcessId| matches!(id.open(), Ok(Some(_)));
        first.filter(is_there).map(|id| id.pid).into_iter().collect()
    }

    /// Pids of the coordinators that are known.
    fn coordinators(&self) -> Vec<i32> {
        self.live.values().filter_map(|live| Some(live.coordinator.as_ref()?.pid)).collect()
    }

    /// Whether the same processes of the live run are recorded as not dying.
    pub(super) fn is_told(&self, process: u32, unkillable: &Unkillable) -> bool {
        let pids = |of: &Unkillable| of.processes.iter().map(|stuck| stuck.pid).collect::<Vec<_>>();
        let run = self.state.processes()[process as usize].live_run();
        let told = run.and_then(|(_, run)| run.unkillable.as_deref());
        told.is_some_and(|told| pids(told) == pids(unkillable))
    }

    /// Its coordinator is gone: the run is killed, and LOST once nothing of it lives.
    pub(super) fn lose(&mut self, process: u32, why: VerdictReason) -> Result<(), RunnerError> {
        self.starting.remove(&process);
        let Some(live) = self.live.get_mut(&process) else { return Ok(()) };
        live.lost = Some(why);
        let run = live.run;
        hit(Failpoint::RunnerLost).map_err(doing("pass a failpoint"))?;
        if why != VerdictReason::Reboot {
            self.kill_run(process, run)?;
        }
        self.collect_empty()
    }

    /// Records LOST for each run that lost its coordinator and of which nothing lives any more.
    pub(super) fn collect_empty(&mut self) -> Result<(), RunnerError> {
        self.recheck = None;
        let lost: Vec<(u32, u32, VerdictReason)> = self
            .live
            .iter()
            .filter_map(|(&process, live)| Some((process, live.run, live.lost?)))
            .collect();
        for (process, run, reason) in lost {
            if !self.is_run_empty(process, run)? {
                self.look_again();
                continue;
            }
            hit(Failpoint::RunnerLostEmpty).map_err(doing("pass a failpoint"))?;
            self.recheck_pause = 0;
            let verdict = Verdict { reason: reason.into(), ..Verdict::default() };
            self.end(process, Outcome::Lost, verdict)?;
        }
        Ok(())
    }

    /// Whether nothing of a run lives; its leaf is removed then.
    fn is_run_empty(&mut self, process: u32, run: u32) -> Result<bool, RunnerError> {
        let Some(cgroup) = &self.cgroup else {
            return Ok(self.kill_orphans());
        };
        let Some(leaf) = cgroup.open_leaf(self.name(process), run)? else { return Ok(true) };
        if leaf.is_populated()? {
            return Ok(false);
        }
        leaf.remove()?;
        Ok(true)
    }

    /// Without cgroups: kills what became the runner's child when its coordinator died; true once there is none. While a
    /// coordinator is not known yet, it cannot be told from these.
    fn kill_orphans(&self) -> bool {
        let is_known =
            |process| self.live.get(process).is_none_or(|live| live.coordinator.is_some());
        if !self.starting.iter().all(is_known) {
            return false;
        }
        process::kill_children_except(&self.coordinators()) == 0
    }

    /// Looks again soon at what is being emptied.
    pub(super) fn look_again(&mut self) {
        self.recheck_pause = (self.recheck_pause * 2).clamp(*RECHECK.start(), *RECHECK.end());
        self.recheck = Some(clock::boot_nanos() + self.recheck_pause);
    }

    /// Invariant 3: whether nothing of the task lives. What does is killed; the empty cgroup is removed.
    pub(super) fn is_empty(&mut self) -> Result<bool, RunnerError> {
        hit(Failpoint::RunnerEmpty).map_err(doing("pass a failpoint"))?;
        let empty = match &self.cgroup {
            None => self.kill_orphans(),
            Some(cgroup) if cgroup.is_populated()? => {
                cgroup.kill()?;
                false
            }
            Some(_) => {
                // A removal would wait for whoever writes to a file of it.
                self.abandon_changes();
                self.remove_cgroup()?
            }
        };
        if !empty {
            self.look_again();
        }
        Ok(empty)
    }

    /// Removes the empty cgroup of the task, after a last look at what was used; false if somebody moved in meanwhile.
    fn remove_cgroup(&mut self) -> Result<bool, RunnerError> {
        let Some(cgroup) = &self.cgroup else { return Ok(true) };
        let used = Some(cgroup.usage()).filter(|used| *used != Usage::default());
        match cgroup.remove() {
            Ok(()) => {
                cgroup.release_protection(self.state.spec().resources.as_ref());
                self.used = used;
                Ok(true)
            }
            Err(CgroupError::Populated(_)) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    /// A coordinator that has not recorded its next step in time is killed; one that is not known is looked for.
    ///
    /// Nobody is late in a paused task: a run that was about to start is frozen where it was born.
    pub(super) fn check_backstops(&mut self) -> Result<(), RunnerError> {
        if self.state.pause().is_some() {
            return Ok(());
        }
        let now = clock::boot_nanos();
        let late: Vec<u32> = self
            .starting
            .iter()
            .copied()
            .filter(|process| self.live.get(process).is_some_and(|live| live.backstop <= Some(now)))
            .collect();
        for process in late {
            match self.live.get(&process).and_then(|live| live.coordinator.as_ref()) {
                Some(_) => {
                    // It may have recorded its step, and its nudge been lost in a full pipe.
                    self.absorb(process)?;
                    self.kill_late(process);
                }
                None => self.attach_run(process)?,
            }
        }
        Ok(())
    }

    /// Kills the coordinator of a run that has still not come to its next step. Its death wakes the runner.
    fn kill_late(&mut self, process: u32) {
        if !self.starting.contains(&process) {
            return;
        }
        let live = self.live.get(&process);
        if let Some(coordinator) = live.and_then(|live| live.coordinator.as_ref()) {
            let _ = pidfd::send_signal(coordinator.pidfd.as_fd(), libc::SIGKILL);
            self.expect(process, START_BACKSTOP);
        }
    }
}

/// The system's own error where there is one, so that its errno is told.
fn io_error(error: impl Error + Send + Sync + 'static) -> io::Error {
    let mut cause: Option<&(dyn Error + 'static)> = Some(&error);
    while let Some(here) = cause {
        if let Some(errno) = here.downcast_ref::<io::Error>().and_then(io::Error::raw_os_error) {
            return io::Error::from_raw_os_error(errno);
        }
        cause = here.source();
    }
    io::Error::other(error)
}
