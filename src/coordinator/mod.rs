//! The coordinator: the tiny parent of one run. It is forked from the runner, survives it, and does three things:
//! start the run inside its leaf, wait for it, and record how it ended.
//!
//! Its steps, each recorded before the next begins (the numbers are those of the crash table in docs/architecture.md):
//!
//! 1. FORKED, with its own identity. Before that record it has started nothing.
//! 2. The leaf, the sandbox, the log files; then the run, born in the leaf: [`start`].
//! 3. RUNNING, with the identity of the run's first process.
//! 4. The first process ends. What it left in the leaf is killed; the usage is read once more; the leaf is removed.
//! 5. The end, with exit status or signal, verdict and usage.
//!
//! It holds the lock of its stream from before it was forked to its end.
#![allow(clippy::disallowed_methods, reason = "starts runs and waits for them")]

pub mod output;
pub mod start;
mod verdict;

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::signal::SigSet;
use nix::sys::stat::umask;
use nix::sys::time::TimeVal;
use nix::unistd::Pid;

use crate::cgroup::{self, Above, CgroupError, Leaf, TaskCgroup};
use crate::checkpoint::{Instant, WriteError, Writer};
use crate::failpoint::{Failpoint, hit};
use crate::proto::record::Kind;
use crate::proto::run_transition::State;
use crate::proto::{self, Launch, RunForked, RunRunning, RunTransition, Usage};
use crate::sandbox::Sandbox;
use crate::state::RunEnd;
use crate::sys::exec::exit_now;
use crate::sys::{clock, fds, pidfd, process};
use crate::task::spec::FileMode;
use crate::task::{Logger, ProcessSpec, TaskId};
use output::Pump;
use start::{LaunchFailed, Run, Start, Step, UMASK};
use verdict::{Limits, ended, not_started};

/// Bytes set aside for the records of a run, so that a disk that fills up meanwhile cannot take its end.
pub const RESERVE: u64 = 4096;

/// In a nudge, beside the index of the process: its records cannot be written yet, or there is no space for its run to begin.
pub const WAITS: u32 = 1 << 31;

/// Tries to start a run before it is given up, if what failed may not fail the next time.
const START_TRIES: u32 = 8;

/// Where output goes if the task file does not say (T4).
const DEFAULT_LOGGER: Logger = Logger { file: Some(FileMode::Standard), console: false };

/// First and longest pause between two tries to write a record.
const RETRY: std::ops::RangeInclusive<Duration> =
    Duration::from_millis(20)..=Duration::from_secs(1);

/// Time that what was killed gets to be gone before it is told that it does not die.
pub const DEATH: Duration = Duration::from_secs(2);

/// First and longest pause between two kills of what does not die.
const KILL_AGAIN: std::ops::RangeInclusive<Duration> =
    Duration::from_secs(1)..=Duration::from_secs(60);

/// What a coordinator is forked for.
pub struct Job<'a> {
    /// Id of the task.
    pub task: &'a TaskId,
    /// The task.
    pub launch: &'a Launch,
    /// The process.
    pub spec: &'a ProcessSpec,
    /// Its index in the task.
    pub process: u32,
    /// Number of the run.
    pub run: u32,
    /// Identity of this boot.
    pub boot_id: &'a str,
    /// The stream of the process, locked.
    pub stream: Writer,
    /// Pipe on which the runner is told that something was recorded.
    pub nudges: BorrowedFd<'a>,
    /// The task's cgroup; `None` where containment is none.
    pub cgroup: Option<&'a TaskCgroup>,
    /// Soft limit of descriptors that the run gets.
    pub descriptors: u64,
}

fn no_cgroup(error: CgroupError) -> LaunchFailed {
    LaunchFailed::caused(Step::Cgroup, &error)
}

/// Passes a failpoint between two steps of a launch.
fn pass(point: Failpoint) -> Result<(), LaunchFailed> {
    hit(point).map_err(|error| LaunchFailed::caused(Step::Prepare, &error))
}

/// Is the coordinator of one run: starts it, waits for it, records how it ended.
///
/// Runs in a child forked from the runner, which has one thread; it never returns there.
pub fn main(job: Job<'_>) -> ! {
    // A run that this coordinator cannot even announce was never started: the runner tries again.
    let status = match Coordinator::announce(job) {
        Ok(mut coordinator) => {
            coordinator.coordinate();
            0
        }
        Err(_) => 1,
    };
    exit_now(status)
}

struct Coordinator<'a> {
    job: Job<'a>,
    /// Pause before a record that could not be written is tried again; `None` while none waits.
    stalled: Option<Duration>,
}

/// A run that was started.
struct Running {
    pid: Pid,
    pidfd: OwnedFd,
    leaf: Option<Leaf>,
    /// What counted above it when it began.
    above: Option<Above>,
    pump: Option<Pump>,
}

impl<'a> Coordinator<'a> {
    /// Step 1.
    fn announce(job: Job<'a>) -> io::Result<Self> {
        leave_runner(&job)?;
        hit(Failpoint::CoordinatorStart)?;
        let mut coordinator = Self { job, stalled: None };
        let me = process::own_id()?;
        coordinator.job.stream.reserve(RESERVE).map_err(io::Error::other)?;
        coordinator.append(State::Forked(RunForked {
            coordinator: Some(me.into()),
            boot_id: coordinator.job.boot_id.to_owned(),
        }));
        hit(Failpoint::CoordinatorFlushForked)?;
        coordinator.job.stream.flush().map_err(io::Error::other)?;
        Ok(coordinator)
    }

    /// Steps 2 to 5.
    fn coordinate(&mut self) {
        let end = match self.start() {
            Ok(running) => self.follow(running),
            Err(failure) => not_started(&failure),
        };
        self.append(State::Ended(end.to_proto()));
        while !self.flush(Failpoint::CoordinatorFlushEnded) {
            std::thread::sleep(self.stalled.unwrap_or(*RETRY.start()));
        }
        let _ = hit(Failpoint::CoordinatorEnded);
    }

    /// Step 2, which either gives a run or leaves nothing behind.
    ///
    /// A call that failed for want of something is tried again: it says nothing about the run. Space is waited for, and the
    /// runner told so, for as long as the runner waits for RUNNING.
    fn start(&mut self) -> Result<Running, LaunchFailed> {
        let mut pause = *RETRY.start();
        let mut tries = 1;
        loop {
            match self.try_start() {
                Err(failure) if failure.is_no_space() => self.say(self.job.process | WAITS),
                Err(failure) if failure.is_passing() && tries < START_TRIES => tries += 1,
                done => return done,
            }
            std::thread::sleep(pause);
            pause = (pause * 2).min(*RETRY.end());
        }
    }

    fn try_start(&mut self) -> Result<Running, LaunchFailed> {
        pass(Failpoint::CoordinatorForked)?;
        let leaf = self.make_leaf()?;
        let above = self.job.cgroup.map(Above::of);
        match self.start_in(leaf.as_ref()) {
            Ok((pid, pidfd, pump)) => Ok(Running { pid, pidfd, leaf, above, pump }),
            Err(failure) => {
                let failure = failure.for_want_of(leaf.as_ref());
                self.clear(leaf.as_ref());
                remove(leaf.as_ref());
                Err(failure)
            }
        }
    }

    fn make_leaf(&self) -> Result<Option<Leaf>, LaunchFailed> {
        let Job { cgroup, spec, run, .. } = &self.job;
        let Some(cgroup) = cgroup else {
            process::become_subreaper()
                .map_err(|error| LaunchFailed::caused(Step::Subreaper, &error))?;
            return Ok(None);
        };
        let leaf = cgroup.leaf(&spec.name, *run).map_err(|error| {
            // Somebody has removed the task's, while nothing lived in it. The runner makes it anew for the next run; this one is lost.
            if error.is_gone() {
                exit_now(1)
            }
            no_cgroup(error)
        })?;
        let limited = self.limit(&leaf).inspect_err(|_| remove(Some(&leaf)));
        limited.map(|()| Some(leaf))
    }

    fn limit(&self, leaf: &Leaf) -> Result<(), LaunchFailed> {
        let Job { spec, launch, process, .. } = &self.job;
        if let Some(resources) = &spec.resources {
            let path = format!("processes[{process}].resources");
            let missing = leaf.apply(resources, &path).map_err(no_cgroup)?.unenforceable;
            if let Some(limit) = missing.iter().find(|l| !launch.unenforced.contains(&l.field)) {
                let why = format!("{}: {} is gone: {}", limit.field, limit.needs, limit.why);
                return Err(LaunchFailed::caused(Step::Cgroup, &io::Error::other(why)));
            }
        }
        pass(Failpoint::CoordinatorLeaf)
    }

    fn start_in(&self, leaf: Option<&Leaf>) -> Result<(Pid, OwnedFd, Option<Pump>), LaunchFailed> {
        let Job { launch, spec, .. } = &self.job;
        let identity = launch.identity.clone().unwrap_or_default();
        let sandbox = Sandbox::open(Path::new(&launch.sandbox), &identity)
            .map_err(|error| LaunchFailed::sandbox(&error))?;
        let (start, pump) = Start::prepare(&Run {
            task_id: self.job.task,
            process: &spec.name,
            run: self.job.run,
            cmdline: &spec.cmdline,
            path: &launch.path,
            identity: &identity,
            sandbox: &sandbox,
            chroot: launch.chroot,
            log_dir: launch.log_dir.as_deref().map(Path::new),
            logger: spec.logger.unwrap_or(DEFAULT_LOGGER),
        })?;
        pass(Failpoint::CoordinatorOutput)?;
        let (pid, pidfd) = start.launch(leaf.map(AsFd::as_fd))?;
        Ok((pid, pidfd, pump))
    }

    /// Steps 3 and 4.
    fn follow(&mut self, mut running: Running) -> RunEnd {
        let _ = hit(Failpoint::CoordinatorStarted);
        let start_ticks = pidfd::start_ticks(running.pid).unwrap_or_default();
        let pid = proto::ProcessId { pid: running.pid.as_raw(), start_ticks };
        self.append(State::Running(RunRunning { pid: Some(pid) }));
        if self.flush(Failpoint::CoordinatorFlushRunning) {
            let _ = hit(Failpoint::CoordinatorRunning);
        }
        self.nudge();
        self.wait_for_exit(&mut running);
        let exit = pidfd::wait(running.pidfd.as_fd());
        let _ = hit(Failpoint::CoordinatorExited);
        self.clear(running.leaf.as_ref());
        if let Some(pump) = &mut running.pump {
            pump.finish();
        }
        // The kernel counts a victim before it sends the signal, so what is read after the exit has it.
        let usage = usage(running.leaf.as_ref());
        let limits = self.limits(&running, usage.as_ref());
        remove(running.leaf.as_ref());
        let _ = hit(Failpoint::CoordinatorEmpty);
        ended(exit, usage, limits)
    }

    /// What limits, its own and those above, did to a run that is over.
    fn limits(&self, running: &Running, usage: Option<&Usage>) -> Limits {
        let Running { leaf: Some(leaf), above: Some(above), .. } = running else {
            return Limits::default();
        };
        let (Some(task), Some(usage)) = (self.job.cgroup, usage) else { return Limits::default() };
        Limits {
            oom: above.oom_kill(task, leaf, usage.oom_kills),
            pids: above.pids_limit(task, leaf, usage.pids_limit_hits),
        }
    }

    /// Kills what a run left behind, and waits until nothing of it lives. What does not die is told, and killed again.
    fn clear(&mut self, leaf: Option<&Leaf>) {
        let start = std::time::Instant::now();
        let mut pause = *KILL_AGAIN.start();
        let mut told = Vec::new();
        while !kill_rest(leaf, pause) {
            if start.elapsed() >= DEATH {
                self.tell_unkillable(leaf, &mut told);
                pause = (pause * 2).min(*KILL_AGAIN.end());
            }
        }
    }

    /// Records what does not die, unless that was `told` already.
    fn tell_unkillable(&mut self, leaf: Option<&Leaf>, told: &mut Vec<i32>) {
        let unkillable = match leaf {
            Some(leaf) => leaf.unkillable().ok().flatten(),
            None => cgroup::unkillable(&process::children_except(&[])),
        };
        let Some(unkillable) = unkillable else { return };
        let pids: Vec<i32> = unkillable.processes.iter().map(|process| process.pid).collect();
        if pids.is_empty() || pids == *told {
            return;
        }
        *told = pids;
        self.append(State::Unkillable(unkillable));
        if self.flush(Failpoint::CoordinatorFlushRunning) {
            self.nudge();
        }
    }

    /// Waits until the first process has ended, and meanwhile pumps its output and retries what could not be written.
    fn wait_for_exit(&mut self, running: &mut Running) {
        loop {
            let ready = {
                let mut fds = vec![PollFd::new(running.pidfd.as_fd(), PollFlags::POLLIN)];
                let pipes = running.pump.iter().flat_map(Pump::fds);
                fds.extend(pipes.map(|fd| PollFd::new(fd, PollFlags::POLLIN)));
                let timeout = match self.stalled {
                    Some(pause) => PollTimeout::try_from(pause).unwrap_or(PollTimeout::MAX),
                    None => PollTimeout::NONE,
                };
                let _ = poll(&mut fds, timeout);
                fds[0].any().unwrap_or(false)
            };
            if let Some(pump) = &mut running.pump {
                pump.on_readable();
            }
            if self.stalled.is_some() && self.flush(Failpoint::CoordinatorFlushRunning) {
                self.nudge();
            }
            if ready {
                return;
            }
        }
    }

    fn append(&mut self, state: State) {
        let at = clock::now();
        let at = Instant { boot_nanos: at.boot, unix_nanos: at.wall };
        let (process, run) = (self.job.process, self.job.run);
        let transition = RunTransition { process, run, state: Some(state) };
        // It is short, and a stream that was given up has ended the coordinator: no error is left.
        let _ = self.job.stream.append(Kind::Run(transition), at);
    }

    /// Writes what is pending; false if it has to be tried again, after `stalled`.
    ///
    /// If the stream is given up, so is the run: what is not recorded did not happen, and the runner finds it LOST.
    fn flush(&mut self, point: Failpoint) -> bool {
        let written = match hit(point).is_ok().then(|| self.job.stream.flush()) {
            Some(Err(WriteError::Poisoned { .. })) => exit_now(1),
            written => matches!(written, Some(Ok(()))),
        };
        self.stalled = match written {
            true => None,
            false => {
                // Again each time: a full pipe may have no room for it.
                self.say(self.job.process | WAITS);
                Some(self.stalled.map_or(*RETRY.start(), |pause| (pause * 2).min(*RETRY.end())))
            }
        };
        written
    }

    /// Tells the runner, whichever it is by now. A full pipe has woken it already.
    fn nudge(&self) {
        self.say(self.job.process);
    }

    fn say(&self, nudge: u32) {
        let _ = nix::unistd::write(self.job.nudges, &nudge.to_ne_bytes());
    }
}

/// Goes on as a program of its own: own session, umask and signals, no descriptor of the runner but those of the job.
fn leave_runner(job: &Job<'_>) -> io::Result<()> {
    nix::unistd::setsid()?;
    process::mind_children()?;
    // The caller's mask must not take the owner's bits off the directories that are made for a run.
    umask(UMASK);
    // What is meant for the runner must not end a coordinator: it ends with its run.
    SigSet::all().thread_block()?;
    fds::close_all_but(&mut [
        job.stream.as_fd().as_raw_fd(),
        job.nudges.as_raw_fd(),
        job.cgroup.map_or(2, |cgroup| cgroup.as_fd().as_raw_fd()),
    ])?;
    nix::sys::prctl::set_name(c"dewar-coord")?;
    Ok(fds::set_limit(job.descriptors)?)
}

/// Kills what is left of a run and waits for its death, `pause` at the most; whether nothing of it was there.
fn kill_rest(leaf: Option<&Leaf>, pause: Duration) -> bool {
    let Some(leaf) = leaf else {
        // Orphans of the run became ours; children of those that die do so too.
        if process::kill_children_except(&[]) == 0 {
            return true;
        }
        process::reap_within(pause);
        return false;
    };
    if !leaf.is_populated().unwrap_or(true) {
        return true;
    }
    // A kill that fails, for want of memory, is tried again.
    let _ = leaf.kill();
    let _ = leaf.wait_empty(std::time::Instant::now() + pause);
    false
}

/// Removes the leaf of a run that is over.
fn remove(leaf: Option<&Leaf>) {
    if let Some(leaf) = leaf {
        // What is left of it the runner removes with the task's.
        let _ = leaf.remove();
    }
}

/// What the run used: by its leaf, or by what the kernel adds up for children that were waited for.
fn usage(leaf: Option<&Leaf>) -> Option<Usage> {
    if let Some(leaf) = leaf {
        return Some(leaf.usage());
    }
    let children = getrusage(UsageWho::RUSAGE_CHILDREN).ok()?;
    let time = |time: TimeVal| {
        Duration::new(time.tv_sec().unsigned_abs(), time.tv_usec().unsigned_abs() as u32 * 1000)
    };
    let (user, system) = (time(children.user_time()), time(children.system_time()));
    Some(Usage {
        cpu_time: Some(duration(user + system)),
        cpu_user_time: Some(duration(user)),
        cpu_system_time: Some(duration(system)),
        ..Usage::default()
    })
}

fn duration(of: Duration) -> pbjson_types::Duration {
    pbjson_types::Duration { seconds: of.as_secs() as i64, nanos: of.subsec_nanos() as i32 }
}
