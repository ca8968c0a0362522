//! Commands that are run in a live task, beside its runs: in its cgroup, as its user, in its root directory.
//!
//! ```text
//! target ─ place ─ start ─────────── streams, signal, resize, wait ─ drop
//!            │       │                                               └ kills what is left, removes the leaf
//!            │       └ clone3 into the leaf, then the steps of a run (`coordinator::start`)
//!            └ a leaf of its own: `<base>/tasks/<task>/.exec-<n>`
//! ```
//!
//! # Invariants
//!
//! - A command is a part of its task: it counts for its limits and usage, stands still while it is paused, and is killed before the
//!   task is over. It keeps no task from being over, and nothing of it is recorded.
//! - It gets what a run gets, by the same steps, or it does not begin: user, groups, root directory, environment, and no
//!   descriptor but 0, 1 and 2.
//! - It ends with its first process: what that leaves in the leaf is killed. It is killed when its [`Exec`] is dropped.
//!
//! # Between the clone and execve
//!
//! The child has the memory of this program for a moment, and may already be its user. The user has no hold on it: with the
//! change of uid the kernel makes that memory non-dumpable, so that neither trace, nor `/proc/PID/mem`, nor `/proc/PID/exe` is
//! had by who is not root (ptrace(2), attack 11). `fs.suid_dumpable` = 1 would undo that, so a change of uid is refused under it.
//! All descriptors of this program are closed in the child before it is anybody else.
//!
//! The user may stop the child with a signal, and a task that is paused freezes it: [`start`] then waits, and needs a thread that
//! may do so. [`Killer`] ends that.
#![allow(clippy::disallowed_methods, reason = "starts commands and waits for them")]

use std::collections::BTreeMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::unistd::{Uid, fchown, geteuid, pipe2};

use crate::cgroup::{CgroupError, ExecLeaf, TaskCgroup};
use crate::coordinator::start::{Command, LaunchFailed, Place as Where, Start, Step};
use crate::proto::{Containment, Identity, Launch};
use crate::sandbox::Sandbox;
use crate::state::Phase;
use crate::sys::pidfd::{self, Exit};
use crate::sys::{fs, terminal};
use crate::task::{ProcessName, TaskId};
use crate::view::Replay;

pub use crate::sys::terminal::Size;

/// Arguments and variables of a command together, bytes: half of what the kernel takes at the least (execve(2)).
pub const STRINGS_MAX: usize = 1 << 20;

/// `TERM` of a command with a terminal that was given none.
const TERM: &str = "xterm";

/// First and longest pause between two kills of what is left of a command.
const KILL_AGAIN: std::ops::RangeInclusive<Duration> =
    Duration::from_millis(100)..=Duration::from_secs(60);

/// Why a command was not started. Nothing of it was executed.
#[derive(Debug, thiserror::Error)]
pub enum ExecError {
    /// The task is over, or its end is recorded just now.
    #[error("task {0} is over")]
    Over(TaskId),
    /// It was accepted, and no runner has begun it, or this machine was booted since.
    #[error("task {0} is not running")]
    NotRunning(TaskId),
    /// Nothing would run before it is resumed.
    #[error("task {0} is paused")]
    Paused(TaskId),
    /// There is no cgroup to be born in.
    #[error("task {0} has no cgroup in which a command could be held: it runs with --cgroup none")]
    NoCgroup(TaskId),
    /// What was asked for is no command.
    #[error("{field}: {why}")]
    Invalid {
        /// Which part of it: `argv`, `env`, `cwd`.
        field: &'static str,
        /// What is wrong with it.
        why: String,
    },
    /// Somebody took the wish back.
    #[error("the command was killed before it began")]
    Killed,
    /// The cgroup of the task cannot be used.
    #[error(transparent)]
    Cgroup(#[from] CgroupError),
    /// A step of the launch failed.
    #[error("start {program:?}: {failure}")]
    Start {
        /// The program.
        program: String,
        /// The step, and why.
        failure: LaunchFailed,
    },
}

/// A task in which a command can be run.
#[derive(Debug)]
pub struct Target {
    task: TaskId,
    launch: Launch,
    cgroup: TaskCgroup,
}

impl Target {
    /// The task that was read into `replay`.
    ///
    /// # Errors
    ///
    /// [`ExecError`], if it is not live, or paused, or has no cgroup.
    pub fn of(task: &TaskId, replay: &Replay) -> Result<Self, ExecError> {
        let (launch, state) = (replay.launch(), replay.state());
        match state.phase() {
            Some(Phase::Active | Phase::Cleaning | Phase::Finalizing) => {}
            None => return Err(ExecError::NotRunning(task.clone())),
            Some(_) => return Err(ExecError::Over(task.clone())),
        }
        if launch.containment() == Containment::None {
            return Err(ExecError::NoCgroup(task.clone()));
        }
        if state.pause().is_some() {
            return Err(ExecError::Paused(task.clone()));
        }
        let path = state.leader().and_then(|leader| leader.cgroup.as_deref());
        let path = path.ok_or_else(|| ExecError::NotRunning(task.clone()))?;
        let cgroup = TaskCgroup::open_existing(Path::new(path), task)?
            .ok_or_else(|| ExecError::NotRunning(task.clone()))?;
        Ok(Self { task: task.clone(), launch: launch.clone(), cgroup })
    }

    /// Makes a leaf for one command.
    ///
    /// # Errors
    ///
    /// [`ExecError::Over`], [`ExecError::Cgroup`].
    pub fn place(self) -> Result<Place, ExecError> {
        let leaf = self.cgroup.exec_leaf().map_err(|error| match error.is_gone() {
            true => ExecError::Over(self.task.clone()),
            false => error.into(),
        })?;
        Ok(Place { target: self, leaf: Arc::new(Held { leaf, is_killed: AtomicBool::new(false) }) })
    }
}

/// A leaf in which one command can be started.
#[derive(Debug)]
pub struct Place {
    target: Target,
    leaf: Arc<Held>,
}

/// The leaf of a command, and whether it may still begin.
#[derive(Debug)]
struct Held {
    leaf: ExecLeaf,
    is_killed: AtomicBool,
}

/// Ends a command, from whatever thread.
#[derive(Debug, Clone)]
pub struct Killer(Arc<Held>);

impl Killer {
    /// Kills all of the command; one that has not begun yet will not.
    ///
    /// While [`Place::start`] has not returned this is to be repeated: a child may be born just after it.
    ///
    /// # Errors
    ///
    /// [`CgroupError`].
    pub fn kill(&self) -> Result<(), CgroupError> {
        self.0.is_killed.store(true, Ordering::SeqCst);
        self.0.leaf.kill()
    }
}

/// What is to be run.
#[derive(Debug, Clone, Default)]
pub struct Request {
    /// Program and arguments; no shell is between. A program without `/` is looked for in `PATH`.
    pub argv: Vec<String>,
    /// Environment beside that of the task's runs; what is here goes first.
    pub env: BTreeMap<String, String>,
    /// Working directory, absolute in the root directory of the task, or relative to its sandbox. `None`: the sandbox.
    pub cwd: Option<String>,
    /// A terminal of this size; `None`: pipes.
    pub terminal: Option<Size>,
    /// The process and run that it is told to belong to, in its environment.
    pub run: Option<(ProcessName, u32)>,
}

impl Request {
    /// Refuses what no program could be started with.
    ///
    /// # Errors
    ///
    /// [`ExecError::Invalid`].
    pub fn check(&self) -> Result<(), ExecError> {
        let invalid = |field, why: &str| Err(ExecError::Invalid { field, why: why.to_owned() });
        let has_nul = |text: &String| text.contains('\0');
        if self.argv.first().is_none_or(String::is_empty) {
            return invalid("argv", "names no program");
        }
        if self.argv.iter().any(has_nul) {
            return invalid("argv", "contains a NUL");
        }
        if self.env.keys().any(|name| name.is_empty() || name.contains(['=', '\0'])) {
            return invalid("env", "a name is empty, or contains `=` or a NUL");
        }
        if self.env.values().any(has_nul) {
            return invalid("env", "a value contains a NUL");
        }
        if self.cwd.as_ref().is_some_and(|cwd| cwd.is_empty() || has_nul(cwd)) {
            return invalid("cwd", "is empty, or contains a NUL");
        }
        let env = self.env.iter().flat_map(|(name, value)| [name, value]);
        let size: usize = self.argv.iter().chain(env).map(|text| text.len() + 1).sum();
        if size > STRINGS_MAX {
            let why = format!("arguments and environment take {size} bytes, of {STRINGS_MAX}");
            return Err(ExecError::Invalid { field: "argv", why });
        }
        Ok(())
    }
}

/// Our ends of what a command reads and writes. Each does not block, and is closed on exec.
#[derive(Debug)]
pub enum Streams {
    /// Pipes.
    Pipes {
        /// Its standard input; closed, it comes to its end.
        stdin: OwnedFd,
        /// Its standard output.
        stdout: OwnedFd,
        /// Its standard error.
        stderr: OwnedFd,
    },
    /// A terminal: read for what is shown, written for what is typed. Reading fails with EIO at its end.
    Terminal(OwnedFd),
}

/// A command that runs. Dropped, it is killed, all of it.
#[derive(Debug)]
pub struct Exec {
    pid: i32,
    /// `None` once it was handed to whoever reaps it.
    pidfd: Option<OwnedFd>,
    leaf: Option<Arc<Held>>,
    streams: Option<Streams>,
    terminal: Option<OwnedFd>,
    exit: Option<Exit>,
}

impl Place {
    /// Ends what is started here, also while that is being done.
    pub fn killer(&self) -> Killer {
        Killer(self.leaf.clone())
    }

    /// Starts a command. Returns once it runs, which may take as long as its task is paused, or its user keeps it from running.
    ///
    /// # Errors
    ///
    /// [`ExecError`]; nothing is left of it.
    pub fn start(self, request: &Request) -> Result<Exec, ExecError> {
        request.check()?;
        let failed = |failure| ExecError::Start {
            program: request.argv.first().cloned().unwrap_or_default(),
            failure,
        };
        let Self { target: Target { task, launch, cgroup: _ }, leaf } = self;
        let identity = launch.identity.clone().unwrap_or_default();
        let sandbox = Sandbox::open(Path::new(&launch.sandbox), &identity)
            .map_err(|error| failed(LaunchFailed::sandbox(&error)))?;
        let (streams, standard) =
            open_streams(request.terminal, &identity).map_err(|errno| failed(output(errno)))?;
        let terminal = match &streams {
            Streams::Terminal(master) => Some(master.try_clone()),
            Streams::Pipes { .. } => None,
        };
        let terminal = terminal
            .transpose()
            .map_err(|error| failed(LaunchFailed::caused(Step::Output, &error)))?;
        let env = request.environment();
        let command = Command {
            place: Where {
                task_id: &task,
                run: request.run.as_ref().map(|(process, run)| (process, *run)),
                path: &launch.path,
                identity: &identity,
                sandbox: &sandbox,
                chroot: launch.chroot,
            },
            argv: &request.argv,
            env: &env,
            cwd: request.cwd.as_deref(),
            terminal: request.terminal.is_some(),
        };
        let start = Start::prepare_command(&command, standard).map_err(failed)?;
        if leaf.is_killed.load(Ordering::SeqCst) {
            return Err(ExecError::Killed);
        }
        let (pid, pidfd) = start.launch(Some(leaf.leaf.as_fd())).map_err(|failure| {
            // The leaf was removed, with its task.
            let is_gone = matches!(failure.errno, Some(Errno::ENOENT | Errno::ENODEV));
            if failure.step == Step::Clone && is_gone {
                return ExecError::Over(task.clone());
            }
            failed(failure.for_want_of(Some(&leaf.leaf)))
        })?;
        let exec = Exec {
            pid: pid.as_raw(),
            pidfd: Some(pidfd),
            leaf: Some(leaf),
            streams: Some(streams),
            terminal,
            exit: None,
        };
        match exec.is_killed() {
            true => Err(ExecError::Killed),
            false => Ok(exec),
        }
    }
}

impl Request {
    /// What is set beside the environment of a run.
    fn environment(&self) -> BTreeMap<String, String> {
        let mut env = self.env.clone();
        if self.terminal.is_some() {
            env.entry("TERM".to_owned()).or_insert_with(|| TERM.to_owned());
        }
        env
    }
}

fn output(errno: Errno) -> LaunchFailed {
    LaunchFailed { step: Step::Output, errno: Some(errno), detail: None }
}

/// Our ends, and those of the command.
fn open_streams(
    terminal: Option<Size>,
    identity: &Identity,
) -> Result<(Streams, [OwnedFd; 3]), Errno> {
    let pair = || pipe2(OFlag::O_CLOEXEC);
    let copy = |fd: &OwnedFd| fs::duplicate_above_standard(fd);
    let (streams, standard) = match terminal {
        Some(size) => {
            let terminal::Terminal { master, slave } = terminal::open(size)?;
            let user = Uid::from_raw(identity.uid);
            if user != geteuid() {
                // As login(1) does, so that the user may open it by its name.
                fchown(&slave, Some(user), None)?;
            }
            fs::make_nonblocking(&master)?;
            (Streams::Terminal(master), [copy(&slave)?, copy(&slave)?, slave])
        }
        None => {
            let ((input, stdin), (stdout, output), (stderr, error)) = (pair()?, pair()?, pair()?);
            for fd in [&stdin, &stdout, &stderr] {
                fs::make_nonblocking(fd)?;
            }
            (Streams::Pipes { stdin, stdout, stderr }, [input, output, error])
        }
    };
    Ok((streams, standard))
}

impl Exec {
    /// Process id of its first process.
    pub fn pid(&self) -> i32 {
        self.pid
    }

    /// Our ends of what it reads and writes; `None` if they were taken before.
    pub fn take_streams(&mut self) -> Option<Streams> {
        self.streams.take()
    }

    /// Gives its terminal another size; without one nothing happens.
    ///
    /// # Errors
    ///
    /// Those of ioctl(2).
    pub fn resize(&self, size: Size) -> Result<(), Errno> {
        self.terminal.as_ref().map_or(Ok(()), |master| terminal::resize(master, size))
    }

    /// Sends `signal` to its first process; that it has ended is as good.
    ///
    /// # Errors
    ///
    /// EPERM, EINVAL: those of pidfd_send_signal(2).
    pub fn signal(&self, signal: i32) -> Result<(), Errno> {
        let Some(pidfd) = &self.pidfd else { return Ok(()) };
        match pidfd::send_signal(pidfd.as_fd(), signal) {
            Ok(()) | Err(Errno::ESRCH) => Ok(()),
            Err(errno) => Err(errno),
        }
    }

    /// Ends it, from whatever thread.
    pub fn killer(&self) -> Option<Killer> {
        self.leaf.clone().map(Killer)
    }

    fn is_killed(&self) -> bool {
        self.leaf.as_ref().is_some_and(|leaf| leaf.is_killed.load(Ordering::SeqCst))
    }

    /// Descriptor that is readable once its first process has ended: [`Exec::try_wait`]. `None` after that.
    pub fn pidfd(&self) -> Option<BorrowedFd<'_>> {
        self.pidfd.as_ref().map(AsFd::as_fd)
    }

    /// How its first process has ended; `None` while it lives. What that left behind is killed, so that the streams come to their
    /// end.
    ///
    /// # Errors
    ///
    /// That of waitid(2): ECHILD if somebody else has reaped it.
    pub fn try_wait(&mut self) -> Result<Option<Exit>, Errno> {
        self.wait_by(pidfd::try_wait)
    }

    /// Waits until its first process has ended, as [`Exec::try_wait`].
    ///
    /// # Errors
    ///
    /// As [`Exec::try_wait`].
    pub fn wait(&mut self) -> Result<Exit, Errno> {
        self.wait_by(|pidfd| pidfd::wait(pidfd).map(Some))?.ok_or(Errno::ECHILD)
    }

    fn wait_by(
        &mut self,
        wait: impl FnOnce(BorrowedFd<'_>) -> Result<Option<Exit>, Errno>,
    ) -> Result<Option<Exit>, Errno> {
        if let (None, Some(pidfd)) = (self.exit, &self.pidfd) {
            self.exit = wait(pidfd.as_fd())?;
            if self.exit.is_some() {
                self.pidfd = None;
                self.terminal = None;
                // A kill that fails is done again when this is dropped.
                let _ = self.leaf.as_ref().map(|leaf| leaf.leaf.kill());
            }
        }
        Ok(self.exit)
    }
}

impl Drop for Exec {
    fn drop(&mut self) {
        let Some(leaf) = self.leaf.take() else { return };
        // It is killed again until it is empty.
        let _ = leaf.leaf.kill();
        let pidfd = self.pidfd.take();
        if pidfd.is_none() && !leaf.leaf.is_populated().unwrap_or(true) {
            return;
        }
        // Whoever drops it may be a thread that must not wait. Where no thread is to be had, the task's end does the rest.
        let _ = std::thread::Builder::new()
            .name("dewar-exec-end".to_owned())
            .spawn(move || collect(&leaf.leaf, pidfd));
    }
}

/// Waits for what was killed. What does not die, in state D say, is killed again with growing pauses.
fn collect(leaf: &ExecLeaf, pidfd: Option<OwnedFd>) {
    let mut pause = *KILL_AGAIN.start();
    while !leaf.wait_empty(Instant::now() + pause).unwrap_or(false) {
        if leaf.kill().is_err() {
            std::thread::sleep(pause);
        }
        pause = (pause * 2).min(*KILL_AGAIN.end());
    }
    if let Some(pidfd) = pidfd {
        let _ = pidfd::wait(pidfd.as_fd());
    }
}
