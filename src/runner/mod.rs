//! The runner: drives one task from ACTIVE to a terminal state. One thread; it sleeps in one epoll and never ticks.
//!
//! One `turn` is: plan, apply, append, flush, then act. No act goes ahead of its record: while
//! records cannot be written (a full disk), the runner waits and does nothing else. A crash between record and
//! act is made good by the next runner, which finds the record and acts: see `attach.rs`.
//!
//! | file | question |
//! |---|---|
//! | `program.rs` | how does it begin and end as a process? |
//! | `ready.rs` | what does it make ready before it may begin? |
//! | `sources.rs` | what does it sleep on? |
//! | `acceptance.rs` | is the task on disk? |
//! | `control.rs` | what may be asked of it? |
//! | `attach.rs` | how does it take over, and learn what coordinators recorded? |
//! | `perform.rs` | how is each effect done? |
//! | `limits.rs` | how do limits change while the task runs? |
//! | `enforcer.rs` | who waits while the kernel makes limits so? |
//! | `pause.rs` | how does the task stand still, and go on? |
#![allow(clippy::disallowed_methods, reason = "performs effects")]
#![deny(
    clippy::print_stderr,
    reason = "panics where the log is on a disk that is full: causes::say"
)]

mod acceptance;
mod attach;
mod control;
mod enforcer;
mod limits;
mod pause;
mod perform;
pub mod program;
mod ready;
mod signal;
mod sources;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::error::Error;
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::time::Duration;

use nix::sys::signal::Signal;

use crate::causes::say;
use crate::cgroup::{CgroupError, FindError, TaskCgroup};
use crate::checkpoint::{
    Identity, Instant, IoError, OpenError, Position, ReadError, Root, WriteError, Writer, tasks,
};
use crate::coordinator::WAITS;
use crate::failpoint::{Failpoint, hit};
use crate::launch::Word;
use crate::proto::{Launch, Usage, VerdictReason};
use crate::state::{Effect, Event, Phase, Stamp, TaskState, must_last, plan, wake};
use crate::sys::clock;
use crate::sys::socket::Peer;
use crate::task::{ProcessName, TaskId};
use acceptance::Acceptance;
use control::{Asked, Control, Follower, Reply};
use limits::{Change, Making, Waiting};
use pause::Pausing;
use perform::Act;
pub use ready::Ready;
pub use sources::block_signals;
use sources::{Sources, Wake};

/// Control socket, in the checkpoint directory, which is the runner's working directory.
const CONTROL: &str = "control";

/// Pipe on which coordinators nudge, beside it.
const NUDGES: &str = "nudges";

/// The answer to who asks too late.
const OVER: &str = "the task is over";

/// Time that a kill by signal leaves to the task (T51).
const SIGNAL_WAIT: Duration = Duration::from_secs(60);

/// First and longest pause between two tries of what failed for want of a resource.
const RETRY: std::ops::RangeInclusive<Duration> =
    Duration::from_millis(50)..=Duration::from_secs(2);

/// What a runner is started with.
#[derive(Debug)]
pub struct Options {
    /// The root that holds the task.
    pub root: PathBuf,
    /// The task.
    pub task: TaskId,
    /// Where each turn that recorded something is announced with one byte.
    pub follower: Option<OwnedFd>,
    /// What it was told. A request is heard before anything is decided.
    pub word: Word,
}

/// Why a runner could not go on. The task is not lost by it: another runner goes on from the checkpoint.
#[derive(Debug, thiserror::Error)]
pub enum RunnerError {
    /// Another runner holds the lock, or the stream cannot be recovered.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// A stream cannot be read.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// A record cannot be written, ever.
    #[error(transparent)]
    Write(#[from] WriteError),
    /// A file of the checkpoint cannot be used.
    #[error(transparent)]
    File(#[from] IoError),
    /// A stream holds a record that cannot follow the ones before it.
    #[error("{}: record {seq} {why}", stream.display())]
    Replay {
        /// The stream.
        stream: PathBuf,
        /// Position of the record.
        seq: u64,
        /// What is wrong with it.
        why: String,
    },
    /// There is a stream, but nobody was told that the task is accepted: whoever was accepting it was stopped, or is at it.
    #[error("task {0} was not accepted")]
    NotAccepted(TaskId),
    /// That the task was accepted cannot be made durable: nobody was told of it, and what lived of it was killed.
    #[error("the task was killed: a power cut may take it, since its acceptance cannot be synced")]
    Uncertain(#[source] IoError),
    /// The runner itself was about to record nonsense.
    #[error("defect: an event {0}")]
    Defect(#[from] crate::state::ApplyError),
    /// The cgroup where the task's is to be made was not named.
    #[error("the task needs a base cgroup, and none was named")]
    NoBase,
    /// The base cgroup cannot be used.
    #[error(transparent)]
    Base(#[from] FindError),
    /// A cgroup cannot be used.
    #[error(transparent)]
    Cgroup(#[from] CgroupError),
    /// A limit that was accepted cannot be enforced any more.
    #[error("{field}: {needs} is gone: {why}")]
    Limit {
        /// Path of the field.
        field: String,
        /// What it needs.
        needs: String,
        /// Why that is not there.
        why: String,
    },
    /// A system call failed that the runner cannot do without.
    #[error("{what}")]
    Io {
        /// What was being done.
        what: &'static str,
        /// What the kernel said.
        #[source]
        error: io::Error,
    },
}

impl RunnerError {
    /// Whether the task can just not be run here and now, by this runner.
    pub fn is_elsewhere(&self) -> bool {
        matches!(
            self,
            Self::Open(OpenError::Held { .. })
                | Self::NotAccepted(_)
                | Self::NoBase
                | Self::Base(_)
                | Self::Cgroup(_)
                | Self::Limit { .. }
        )
    }
}

/// Names what was being done when a call failed.
fn doing(what: &'static str) -> impl Fn(io::Error) -> RunnerError {
    move |error| RunnerError::Io { what, error }
}

/// A live run, as far as this runner is concerned.
#[derive(Debug, Default)]
struct Live {
    /// Number of the run.
    run: u32,
    /// Its coordinator.
    coordinator: Option<Coordinator>,
    /// What its coordinator may take at the most to record its next step: CLOCK_BOOTTIME in nanoseconds.
    backstop: Option<u64>,
    /// It was killed: when it is looked at whether it died, and the pause after that.
    death: Option<(u64, u64)>,
    /// The coordinator is gone, and why the run is LOST; its leaf is being emptied.
    lost: Option<VerdictReason>,
    /// Its coordinator recorded another boot than this one.
    is_of_earlier_boot: bool,
    /// Tries to fork its coordinator that failed in a row.
    failed_starts: u32,
    /// Its start found no space, and that was said; or its coordinator has none.
    waits_for_disk: bool,
}

/// A coordinator that lives, or has just died.
#[derive(Debug)]
struct Coordinator {
    /// Its pid.
    pid: i32,
    /// Readable once it is dead.
    pidfd: OwnedFd,
}

/// The runner of one task.
pub struct Runner {
    root: Root,
    task: TaskId,
    launch: Launch,
    state: TaskState,
    writer: Writer,
    boot_id: String,
    /// Whether the last runner lived in this boot.
    same_boot: bool,
    /// Soft limit of descriptors that runs get: the one that the runner was started with.
    descriptors: u64,
    cgroup: Option<TaskCgroup>,
    control: Control,
    nudges: File,
    sources: Sources,
    followers: Vec<Follower>,
    live: BTreeMap<u32, Live>,
    /// Read positions in the streams of coordinators, by process.
    positions: BTreeMap<u32, Position>,
    /// Runs whose coordinator is to record FORKED or RUNNING.
    starting: BTreeSet<u32>,
    /// Acts whose records are written, in order.
    acts: Vec<Act>,
    /// Acts that failed for want of a resource: (CLOCK_BOOTTIME in nanoseconds, act).
    retries: Vec<(u64, Act)>,
    /// Set while records cannot be written: when to try again, and the pause after that.
    stalled: Option<(u64, Duration)>,
    /// Answers to requests that are recorded and not yet on disk.
    replies: Vec<Reply>,
    /// Answers to those who wait for the task to stand still, or to go on.
    pausing: Vec<Pausing>,
    /// Changes of limits that are recorded, in the order in which they are to be made.
    changes: VecDeque<Change>,
    /// The one that is being made.
    making: Option<Making>,
    /// Requests for other limits that wait for those changes.
    updates: VecDeque<Waiting>,
    /// A pause has ended, and what waited for that is still to be done.
    resuming: bool,
    /// Whether what was flushed must be synced before anyone is told.
    sync_due: bool,
    /// Whether something was recorded that must last.
    must_last: bool,
    /// Until it is known that the acceptance of the task is on disk.
    acceptance: Option<Acceptance>,
    /// Whether followers are to be told.
    news: bool,
    /// When a cgroup is to be looked at again that is not empty yet.
    recheck: Option<u64>,
    /// The pause before that look, nanoseconds.
    recheck_pause: u64,
    /// What the task used, once nothing of it lives; until that is recorded.
    used: Option<Usage>,
}

impl Runner {
    /// Runs the task to its end.
    ///
    /// # Errors
    ///
    /// [`RunnerError`]: the task goes on without a runner, and another one may take over.
    pub fn run(ready: Ready, options: Options) -> Result<Phase, RunnerError> {
        let Options { root, task, follower, word } = options;
        let is_fresh = matches!(word, Word::GoAfresh);
        let first = match word {
            Word::GoWith(first) => control::understand(first),
            Word::Go | Word::GoAfresh => None,
        };
        let mut runner = Self::lead(ready, Root::new(root)?, task, follower, is_fresh)?;
        runner.attach()?;
        if let Some(asked) = first {
            runner.take(asked)?;
        }
        loop {
            runner.turn()?;
            let end = runner.finished()?;
            // Who is told of the end finds the task filed away, and need not sync it once more.
            runner.tell();
            if let Some(end) = end {
                return Ok(end);
            }
            runner.sleep()?;
        }
    }

    /// Decides, records, then acts, until nothing is left to do.
    fn turn(&mut self) -> Result<(), RunnerError> {
        loop {
            // What is known only here is nothing to decide on: it may be lost yet.
            if self.stalled.is_some() && !self.flush()? {
                return Ok(());
            }
            self.collect_empty()?;
            self.answer_pausing()?;
            self.due_retries();
            let effects = plan(&self.state, clock::boot_nanos());
            let mut decided = false;
            for effect in effects {
                decided |= self.decide(effect)?;
            }
            if !self.flush()? {
                return Ok(());
            }
            let acts = std::mem::take(&mut self.acts);
            if !decided && acts.is_empty() {
                return Ok(());
            }
            for act in acts {
                self.perform(act)?;
            }
        }
    }

    /// Records an effect and notes the act; false where it has to wait.
    fn decide(&mut self, effect: Effect) -> Result<bool, RunnerError> {
        match effect {
            Effect::Enter(phase) => {
                if phase.is_terminal() && !self.is_empty()? {
                    return Ok(false);
                }
                if let Some(usage) = self.used.take() {
                    self.record(Event::Used(Box::new(usage)), clock::now())?;
                }
                self.sync_due |= phase.is_terminal();
                self.record(Event::Entered(phase), clock::now())?;
            }
            Effect::Open { process, run } => {
                let step = crate::state::RunStep::Opened;
                self.record(Event::Run { process, run, step }, clock::now())?;
                self.live.insert(process, Live { run, ..Live::default() });
                self.acts.push(Act::Launch(process));
            }
            Effect::Terminate { process, run } => {
                self.terminate(process, run)?;
                self.record(Event::Terminated { process, run }, clock::now())?;
            }
            Effect::Doom { process, run, stage } => {
                self.record(Event::Doomed { process, run, stage }, clock::now())?;
                self.acts.push(Act::Doom(process));
            }
        }
        Ok(true)
    }

    /// Applies an event and appends its record; it is written by the next flush.
    fn record(&mut self, event: Event, at: Stamp) -> Result<(), RunnerError> {
        self.state.apply(&event, at)?;
        let kind = event.to_kind();
        self.must_last |= must_last(&kind);
        self.writer.append(kind, instant(at))?;
        Ok(())
    }

    /// Writes what was appended; false while that cannot be done: nothing may be acted on then.
    fn flush(&mut self) -> Result<bool, RunnerError> {
        if !self.writer.is_pending() {
            return Ok(true);
        }
        let now = clock::boot_nanos();
        if self.stalled.is_some_and(|(until, _)| now < until) {
            return Ok(false);
        }
        if let Err(error) = self.try_flush() {
            // Trying again would not make it right: another runner reads what is on the disk.
            if matches!(
                error,
                RunnerError::Write(WriteError::Poisoned { .. }) | RunnerError::Uncertain(_)
            ) {
                return Err(error);
            }
            let pause = self.stalled.map_or(*RETRY.start(), |(_, pause)| pause);
            if self.stalled.is_none() {
                let cause = error.source().map(|cause| format!(": {cause}")).unwrap_or_default();
                say(format!("dewar-runner: {}: cannot write, waiting: {error}{cause}", self.task));
            }
            self.stalled = Some((now + pause.as_nanos() as u64, (pause * 2).min(*RETRY.end())));
            return Ok(false);
        }
        self.stalled = None;
        self.news = true;
        hit(Failpoint::RunnerFlushed).map_err(doing("pass a failpoint"))?;
        if self.sync_due {
            hit(Failpoint::RunnerSync).map_err(doing("sync the runner's stream"))?;
            self.writer.sync()?;
            self.sync_due = false;
            hit(Failpoint::RunnerSynced).map_err(doing("pass a failpoint"))?;
        }
        for reply in self.replies.drain(..) {
            reply.send("");
        }
        Ok(true)
    }

    fn try_flush(&mut self) -> Result<(), RunnerError> {
        self.rely_on_acceptance()?;
        hit(Failpoint::RunnerFlush).map_err(doing("write the runner's stream"))?;
        Ok(self.writer.flush()?)
    }

    /// Nudges followers once for all that a turn recorded.
    fn tell(&mut self) {
        let (news, waits) = (std::mem::take(&mut self.news), self.waits_for_disk());
        self.followers.retain_mut(|follower| follower.nudge(news, waits));
    }

    /// Whether there is something that it cannot write, or no space for a run to begin.
    fn waits_for_disk(&self) -> bool {
        self.stalled.is_some() || self.live.values().any(|live| live.waits_for_disk)
    }

    /// Sleeps, and takes in what woke it.
    fn sleep(&mut self) -> Result<(), RunnerError> {
        let stalled = self.stalled.map(|(until, _)| until);
        let planned = wake(&self.state).filter(|_| stalled.is_none());
        let retries = self.retries.iter().map(|&(at, _)| at);
        let is_paused = self.state.pause().is_some();
        let starting = self.starting.iter().filter(|_| !is_paused);
        let backstops = starting.filter_map(|process| self.live.get(process)?.backstop);
        let deaths = self.live.values().filter_map(|live| Some(live.death?.0));
        let until = stalled
            .into_iter()
            .chain(planned)
            .chain(self.recheck)
            .chain(retries)
            .chain(backstops)
            .chain(deaths)
            .chain(self.change_due())
            .min();
        for wake in self.sources.wait(until).map_err(doing("sleep"))? {
            match wake {
                Wake::Timer => {}
                Wake::Signal => self.take_signals()?,
                Wake::Control => self.take_requests()?,
                Wake::Nudge => self.take_nudges()?,
                Wake::Limits => self.change_made()?,
                Wake::Coordinator(process) => self.coordinator_died(process)?,
            }
        }
        self.answer_slow_change();
        self.check_backstops()?;
        self.check_deaths()
    }

    fn take_requests(&mut self) -> Result<(), RunnerError> {
        while let Some(asked) = self.control.next().map_err(doing("read the control socket"))? {
            self.take(asked)?;
        }
        Ok(())
    }

    fn take(&mut self, asked: Asked) -> Result<(), RunnerError> {
        match asked {
            Asked::Kill { reply, .. }
            | Asked::Pause { reply, .. }
            | Asked::Resume { reply, .. }
            | Asked::Update { reply, .. }
            | Asked::Signal { reply, .. }
                if self.is_over() =>
            {
                reply.send(OVER);
            }
            Asked::Kill { wait, lost, reason, by, reply } => {
                self.request_kill(wait, lost, reason, by)?;
                self.replies.push(reply);
            }
            Asked::Pause { by, reply } => self.pause(by, reply)?,
            Asked::Resume { by, reply } => self.resume(by, reply)?,
            Asked::Update { asked, by, reply } => self.update(asked, by, reply)?,
            Asked::Signal { asked, reply } => self.signal(&asked, reply)?,
            Asked::Follow(mut follower) => {
                // What happened before it came is news to it.
                if follower.nudge(true, self.waits_for_disk()) {
                    self.followers.push(follower);
                }
            }
        }
        Ok(())
    }

    /// T51: SIGUSR1, SIGINT kill, SIGUSR2 declares lost; SIGTERM and SIGHUP mean that the machine or the session ends.
    fn take_signals(&mut self) -> Result<(), RunnerError> {
        while let Some(signal) = self.sources.signal().map_err(doing("read a signal"))? {
            let lost = signal == Signal::SIGUSR2;
            let by = Peer { uid: self.launch_uid(), pid: 0 };
            self.request_kill(SIGNAL_WAIT, lost, None, by)?;
        }
        Ok(())
    }

    fn is_over(&self) -> bool {
        self.state.phase().is_some_and(Phase::is_terminal)
    }

    fn launch_uid(&self) -> u32 {
        self.launch.identity.as_ref().map_or(0, |identity| identity.uid)
    }

    fn request_kill(
        &mut self,
        wait: Duration,
        lost: bool,
        reason: Option<String>,
        by: Peer,
    ) -> Result<(), RunnerError> {
        if self.is_over() {
            return Ok(());
        }
        let at = clock::now();
        let wait = if lost { 0 } else { u64::try_from(wait.as_nanos()).unwrap_or(u64::MAX) };
        let deadline = at.boot.saturating_add(wait);
        let event = Event::KillRequested { deadline, lost, by_uid: by.uid, by_pid: by.pid, reason };
        let was_paused = self.state.pause().is_some();
        self.record(event, at)?;
        self.sync_due = true;
        if was_paused {
            self.go_on();
        }
        Ok(())
    }

    /// Coordinators that appended say so with the index of their process, and those that have no space, with [`WAITS`].
    fn take_nudges(&mut self) -> Result<(), RunnerError> {
        let mut buffer = [0; 4096];
        loop {
            let count = match self.nudges.read(&mut buffer) {
                Ok(count) => count,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(doing("read the nudge pipe")(error)),
            };
            // Writes of 4 bytes to a pipe are atomic, so nudges come whole (pipe(7)).
            for nudge in buffer[..count].as_chunks::<4>().0 {
                let nudge = u32::from_ne_bytes(*nudge);
                let (process, waits) = (nudge & !WAITS, nudge & WAITS != 0);
                let Some(live) = self.live.get_mut(&process) else { continue };
                live.waits_for_disk = waits;
                if !waits {
                    self.nudged(process)?;
                }
            }
            if count < buffer.len() {
                return Ok(());
            }
        }
    }

    /// Once the task is terminal and on disk: files it away.
    fn finished(&mut self) -> Result<Option<Phase>, RunnerError> {
        let Some(end) = self.state.phase().filter(|phase| phase.is_terminal()) else {
            return Ok(None);
        };
        if self.writer.is_pending() {
            return Ok(None);
        }
        // An earlier runner may have died between the record and its sync.
        self.writer.sync()?;
        hit(Failpoint::RunnerTerminal).map_err(doing("pass a failpoint"))?;
        tasks::finish(&self.root, &self.task)?;
        hit(Failpoint::RunnerFinished).map_err(doing("pass a failpoint"))?;
        // Nobody looks for them any more; a later runner of this task would make them anew.
        let _ = fs::remove_file(NUDGES);
        self.control.close(CONTROL.as_ref()).map_err(doing("close the control socket"))?;
        // Who asked before hears that it is over; a request without answer is one whose runner died.
        self.take_requests()?;
        Ok(Some(end))
    }

    fn name(&self, process: u32) -> &ProcessName {
        &self.state.spec().processes[process as usize].name
    }

    fn stream_of(&self, process: u32) -> Identity {
        Identity::coordinator(self.task.clone(), self.name(process).clone())
    }
}

fn instant(at: Stamp) -> Instant {
    Instant { boot_nanos: at.boot, unix_nanos: at.wall }
}
