//! From the clone to `execve`: [`STEPS`] is all that happens in the child, in order, on one screen.
//!
//! ```text
//! coordinator   prepare ─ clone3 ──────────────── read the pipe ─ end of file: it runs
//!                           │                           ▲    └ a report: it never ran
//! child, in its leaf        └ step, step, step … execve │ (close on exec)
//!                               └ first failure: report ┘ exit
//! ```
//!
//! All that can be made beforehand is: the child allocates nothing and only makes system calls. A
//! step that fails ends the child before the program has run one instruction, and is the verdict of
//! the run. Each change of rights is read back by a step of its own, since a call that says it
//! worked and did nothing (a seccomp filter can make it so) must not leave a run with more rights
//! than its user has.
//!
//! What a run finds is promised in `docs/run-environment.md`.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::ffi::CString;
use std::fmt;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::sys::signal::{Signal, kill};
use nix::sys::stat::{Mode, SFlag, fstat, umask};
use nix::sys::wait::{Id, WaitPidFlag, waitid};
use nix::unistd::{Pid, chdir, chroot, fchdir, pipe2, read, setsid, write};

use super::output::{Output, OutputError, Pump};
use crate::cgroup::{Leaf, Shortage};
use crate::identity;
use crate::proto::{Identity, Verdict, VerdictReason};
use crate::sandbox::{PathError, Sandbox};
use crate::sys::clone::clone_into;
use crate::sys::exec::{Image, exit_now};
use crate::sys::ids::Capabilities;
use crate::sys::{self, fs, ids, inherit, limit, signal, terminal};
use crate::task::{Logger, ProcessName, TaskId};

/// The shell of every run.
const SHELL: &std::ffi::CStr = c"/bin/bash";

/// File-mode creation mask of every run, and of its coordinator.
pub(super) const UMASK: Mode = Mode::from_bits_truncate(0o022);

/// Why nothing is run as another user where the kernel would let that user into our memory.
const DUMPABLE: &str = "fs.suid_dumpable is 1 here: another user could write to the memory of dewar while its run is started";

/// Exit status of a child that could not become the program. Nobody reads it: the report came
/// first.
const NOT_STARTED: i32 = 126;

/// All that defines one run.
#[derive(Debug, Clone, Copy)]
pub struct Run<'a> {
    /// Id of the task.
    pub task_id: &'a TaskId,
    /// Name of the process.
    pub process: &'a ProcessName,
    /// Run number.
    pub run: u32,
    /// Argument of `/bin/bash -c`.
    pub cmdline: &'a str,
    /// `PATH` of the run.
    pub path: &'a str,
    /// Who it is.
    pub identity: &'a Identity,
    /// Where it runs.
    pub sandbox: &'a Sandbox,
    /// Whether the sandbox is its root directory.
    pub chroot: bool,
    /// Log directory of the task, absolute and without links; `None`: `.logs` in the sandbox.
    pub log_dir: Option<&'a Path>,
    /// Where its output goes.
    pub logger: Logger,
}

/// Where in a task something is run, and as whom.
#[derive(Debug, Clone, Copy)]
pub struct Place<'a> {
    /// Id of the task.
    pub task_id: &'a TaskId,
    /// Name of the process and run number, told in the environment.
    pub run: Option<(&'a ProcessName, u32)>,
    /// `PATH`.
    pub path: &'a str,
    /// Who it is.
    pub identity: &'a Identity,
    /// Where it runs.
    pub sandbox: &'a Sandbox,
    /// Whether the sandbox is its root directory.
    pub chroot: bool,
}

/// A command that is run in a task.
#[derive(Debug, Clone, Copy)]
pub struct Command<'a> {
    /// Where, and as whom.
    pub place: Place<'a>,
    /// Program and arguments. A program without `/` is looked for in `PATH`.
    pub argv: &'a [String],
    /// Its environment beside that of a run; these come first.
    pub env: &'a BTreeMap<String, String>,
    /// Working directory, as the user finds it from the sandbox; `None`: the sandbox.
    pub cwd: Option<&'a str>,
    /// Whether standard input is a terminal that is to control it.
    pub terminal: bool,
}

/// A step of a launch: those of the coordinator, then those of the child, by number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Step {
    /// Make the leaf, with its limits.
    Cgroup,
    /// Without cgroups: become the parent of the run's orphans.
    Subreaper,
    /// Open the sandbox.
    Sandbox,
    /// Open logs and pipes.
    Output,
    /// Lay out arguments, environment and ids.
    Prepare,
    /// Make the pipe that reports come through.
    Pipe,
    /// Clone the child into its leaf.
    Clone,
    /// Begin a session.
    Setsid,
    /// Default action for every signal.
    Signals,
    /// Set the umask.
    Umask,
    /// Leave a better place with the scheduler.
    Scheduling,
    /// Leave a better place with the OOM killer.
    OomScoreAdj,
    /// Dump no core, unless asked.
    CoreLimit,
    /// Have as many descriptors as a run.
    DescriptorLimit,
    /// Leave the caller's keys.
    Keyring,
    /// Lay standard input, output and error.
    Stdio,
    /// Be controlled by the terminal.
    Terminal,
    /// Close every other descriptor on exec.
    CloseRange,
    /// Make the sandbox the root directory.
    Chroot,
    /// Make it the working directory.
    Chdir,
    /// Have it as the root directory.
    VerifyRoot,
    /// Be in it, and within the root directory.
    VerifyCwd,
    /// Close every other descriptor now.
    Close,
    /// Let a change of uid take the capabilities along.
    Securebits,
    /// Empty the ambient and inheritable sets.
    Inheritable,
    /// Take the supplementary groups.
    Setgroups,
    /// Have them, and no others.
    VerifyGroups,
    /// Take the gid.
    Setresgid,
    /// Have it, four times.
    VerifyGid,
    /// Take the uid.
    Setresuid,
    /// Have it, four times.
    VerifyUid,
    /// Leave no memory to be dumped that is the coordinator's.
    Dumpable,
    /// Give up every capability, unless root.
    Capset,
    /// Have none.
    VerifyCapabilities,
    /// Be refused uid 0 and gid 0.
    VerifyNotRoot,
    /// Go to the working directory that was asked for.
    WorkingDirectory,
    /// Block no signal.
    Sigmask,
    /// Become the shell.
    Execve,
    /// Become the command.
    ExecveCommand,
}

impl Step {
    /// Its name in a verdict.
    pub fn name(self) -> &'static str {
        match self {
            Self::Cgroup => "cgroup",
            Self::Subreaper => "subreaper",
            Self::Sandbox => "sandbox",
            Self::Output => "output",
            Self::Prepare => "prepare",
            Self::Pipe => "pipe",
            Self::Clone => "clone3",
            Self::Setsid => "setsid",
            Self::Signals => "signals",
            Self::Umask => "umask",
            Self::Scheduling => "scheduling",
            Self::OomScoreAdj => "oom_score_adj",
            Self::CoreLimit => "core limit",
            Self::DescriptorLimit => "descriptor limit",
            Self::Keyring => "keyring",
            Self::Stdio => "stdio",
            Self::Terminal => "terminal",
            Self::CloseRange => "close_range",
            Self::Chroot => "chroot",
            Self::Chdir => "chdir",
            Self::VerifyRoot => "verify root",
            Self::VerifyCwd => "verify cwd",
            Self::Close => "close",
            Self::Securebits => "securebits",
            Self::Inheritable => "inheritable capabilities",
            Self::Setgroups => "setgroups",
            Self::VerifyGroups => "verify groups",
            Self::Setresgid => "setresgid",
            Self::VerifyGid => "verify gid",
            Self::Setresuid => "setresuid",
            Self::VerifyUid => "verify uid",
            Self::Dumpable => "dumpable",
            Self::Capset => "capset",
            Self::VerifyCapabilities => "verify capabilities",
            Self::VerifyNotRoot => "verify not root",
            Self::WorkingDirectory => "working directory",
            Self::Sigmask => "sigmask",
            Self::Execve => "execve /bin/bash",
            Self::ExecveCommand => "execve",
        }
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Which runs a step is for.
#[derive(Debug, Clone, Copy)]
enum When {
    Always,
    /// The sandbox is the root directory.
    Chroot,
    /// The sandbox is not.
    NoChroot,
    /// The identity is taken; else the process has it already, and that is verified.
    Switch,
    /// The run is not root's.
    NotRoot,
    /// It is a run.
    Run,
    /// It is a command that is run in a task.
    Command,
    /// That has a terminal.
    Terminal,
    /// That has a working directory of its own.
    WorkingDirectory,
}

type Act = fn(&mut Plan) -> Result<(), Failure>;

/// What the child does, in this order. The working directory and root change while it may still go
/// anywhere; groups, gid and uid follow, in the only order in which each still has the right to;
/// nothing after the uid needs one.
const STEPS: [(When, Step, Act); 35] = [
    (When::Always, Step::Setsid, |_| done(setsid())),
    (When::Always, Step::Signals, |_| done(signal::default_all())),
    (When::Always, Step::Umask, |_| done(Ok(umask(UMASK)))),
    (When::Always, Step::Scheduling, |_| done(inherit::ordinary_scheduling())),
    (When::Always, Step::OomScoreAdj, |_| done(inherit::ordinary_oom_score())),
    (When::Always, Step::CoreLimit, |_| done(inherit::no_core_dumps())),
    (When::Command, Step::DescriptorLimit, |_| done(limit::restore_open_files())),
    (When::Always, Step::Keyring, Plan::leave_keyring),
    (When::Always, Step::Stdio, |plan| done(fs::lay_standard(&plan.standard))),
    (When::Terminal, Step::Terminal, |_| done(terminal::control_by_stdin())),
    (When::Always, Step::CloseRange, |_| done(fs::close_others_on_exec())),
    (When::Chroot, Step::Chroot, Plan::change_root),
    (When::Chroot, Step::Chdir, |_| done(chdir(c"/"))),
    (When::NoChroot, Step::Chdir, |plan| done(fchdir(&plan.sandbox))),
    (When::Chroot, Step::VerifyRoot, |plan| must(fs::is_dir(c"/", &plan.sandbox)?)),
    (When::Always, Step::VerifyCwd, |plan| must(fs::is_dir(c".", &plan.sandbox)?)),
    (When::Always, Step::VerifyCwd, |_| must(fs::cwd_is_reachable()?)),
    (When::Command, Step::Close, |plan| done(fs::close_others_but(plan.report))),
    (When::Switch, Step::Securebits, |_| check_securebits()),
    (When::Always, Step::Inheritable, |_| clear_inheritable()),
    (When::Switch, Step::Setgroups, |plan| done(ids::set_groups(&plan.groups))),
    (When::Switch, Step::VerifyGroups, Plan::verify_groups),
    (When::Switch, Step::Setresgid, |plan| done(ids::set_gid(plan.gid))),
    (When::Always, Step::VerifyGid, |plan| must(ids::gids()?.are(plan.gid))),
    (When::Switch, Step::Setresuid, |plan| done(ids::set_uid(plan.uid))),
    (When::Always, Step::VerifyUid, |plan| must(ids::uids()?.are(plan.uid))),
    (When::Switch, Step::Dumpable, |_| done(inherit::no_dump())),
    (When::NotRoot, Step::Capset, |_| done(ids::set_capabilities(Capabilities::default()))),
    (When::Always, Step::VerifyCapabilities, Plan::verify_capabilities),
    (When::NotRoot, Step::VerifyNotRoot, |plan| must(!ids::can_become_root(plan.gid))),
    (When::WorkingDirectory, Step::WorkingDirectory, Plan::enter_working_directory),
    (When::WorkingDirectory, Step::WorkingDirectory, |_| must(fs::cwd_is_reachable()?)),
    (When::Always, Step::Sigmask, |_| done(signal::unblock_all())),
    (When::Run, Step::Execve, |plan| Err(plan.image.execve().into())),
    (When::Command, Step::ExecveCommand, |plan| Err(plan.image.execve().into())),
];

/// A call that works, or says why not.
fn done<T>(result: Result<T, Errno>) -> Result<(), Failure> {
    result.map(drop).map_err(Failure::from)
}

/// A state that must be so.
fn must(so: bool) -> Result<(), Failure> {
    if so { Ok(()) } else { Err(Failure::REFUSED) }
}

/// A run that was not started: the first step that failed.
#[derive(Debug, PartialEq, Eq)]
pub struct LaunchFailed {
    /// The step.
    pub step: Step,
    /// The error of its system call; `None`: dewar itself refused.
    pub errno: Option<Errno>,
    /// More, for people.
    pub detail: Option<String>,
}

impl fmt::Display for LaunchFailed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.step.name())?;
        if let Some(detail) = &self.detail {
            write!(f, ": {detail}")?;
        }
        self.errno.map_or(Ok(()), |errno| write!(f, ": {errno}"))
    }
}

impl std::error::Error for LaunchFailed {}

impl LaunchFailed {
    fn new(step: Step, errno: Errno) -> Self {
        Self { step, errno: Some(errno), detail: None }
    }

    fn refused(step: Step, detail: String) -> Self {
        Self { step, errno: None, detail: Some(detail) }
    }

    /// A sandbox that could not be opened.
    pub fn sandbox(error: &PathError) -> Self {
        Self { step: Step::Sandbox, errno: error.errno(), detail: Some(error.to_string()) }
    }

    fn output(error: &OutputError) -> Self {
        Self { step: Step::Output, errno: error.errno(), detail: Some(error.to_string()) }
    }

    /// Whether a disk, quota or file size limit is reached.
    pub(super) fn is_no_space(&self) -> bool {
        self.errno.is_some_and(sys::is_no_space)
    }

    /// Whether the same call may well succeed soon: it failed for want of something, or was interrupted; or the leaf is gone, as systemd
    /// removes what is empty of a unit whose main process has ended.
    pub(super) fn is_passing(&self) -> bool {
        use Errno::{EAGAIN, EBUSY, EINTR, EIO, EMFILE, ENFILE, ENODEV, ENOENT, ENOMEM};
        match self.errno {
            Some(EAGAIN | EBUSY | EINTR | EIO | EMFILE | ENFILE | ENOMEM) => true,
            Some(ENODEV | ENOENT) => matches!(self.step, Step::Cgroup | Step::Clone),
            _ => false,
        }
    }

    /// attack 33: names the limit of `leaf` that left too little to start a run, if that is why. A limit of memory does so every
    /// time, and lets the kernel answer with an errno that means something else: it is left out.
    pub(crate) fn for_want_of(mut self, leaf: Option<&Leaf>) -> Self {
        let shortage = leaf.zip(self.errno).and_then(|(leaf, errno)| leaf.shortage(errno));
        match shortage {
            Some(Shortage::Memory(why)) => Self::refused(self.step, why),
            Some(Shortage::Pids(why)) => {
                self.detail = Some(why);
                self
            }
            None => self,
        }
    }

    /// A step of the coordinator's own that failed, with the errno at the end of its causes.
    pub(crate) fn caused(step: Step, error: &(dyn std::error::Error + 'static)) -> Self {
        let causes = || std::iter::successors(Some(error), |cause| cause.source());
        let raw = |cause: &(dyn std::error::Error + 'static)| {
            let io = cause.downcast_ref::<std::io::Error>().and_then(|io| io.raw_os_error());
            cause.downcast_ref::<Errno>().copied().or(io.map(Errno::from_raw))
        };
        let texts: Vec<_> = causes().map(ToString::to_string).collect();
        Self { step, errno: causes().find_map(raw), detail: Some(texts.join(": ")) }
    }

    /// The verdict of the run.
    pub fn verdict(&self) -> Verdict {
        Verdict {
            reason: VerdictReason::LaunchFailed.into(),
            step: Some(self.step.name().to_owned()),
            errno: self.errno.map(|errno| format!("{errno:?}")),
            detail: self.detail.clone(),
            ..Verdict::default()
        }
    }
}

/// A run that is ready to be started.
pub struct Start {
    plan: Plan,
}

impl Start {
    /// Opens the output of `run` and lays out its program. The pump, if there is one, has the ends
    /// that the run will not have.
    ///
    /// # Errors
    ///
    /// [`LaunchFailed`] with one of the coordinator's steps.
    pub fn prepare(run: &Run<'_>) -> Result<(Self, Option<Pump>), LaunchFailed> {
        let place = Place {
            task_id: run.task_id,
            run: Some((run.process, run.run)),
            path: run.path,
            identity: run.identity,
            sandbox: run.sandbox,
            chroot: run.chroot,
        };
        let argv = vec![SHELL.to_owned(), c"-c".to_owned(), text("the command line", run.cmdline)?];
        let image = Image::new(SHELL.to_owned(), argv, place.environment()?);
        let null = open_null()?;
        let Output { stdout, stderr, pump } =
            Output::open(run).map_err(|error| LaunchFailed::output(&error))?;
        let plan = Plan::new(&place, Kind::Run, image, [null, stdout, stderr])?;
        Ok((Self { plan }, pump))
    }

    /// Lays out a command that is run in a task; `standard` is its standard input, output and error.
    ///
    /// # Errors
    ///
    /// [`LaunchFailed`] with one of the coordinator's steps.
    pub fn prepare_command(
        command: &Command<'_>,
        standard: [OwnedFd; 3],
    ) -> Result<Self, LaunchFailed> {
        let argument = |argument: &String| text("an argument", argument);
        let argv = command.argv.iter().map(argument).collect::<Result<Vec<_>, _>>()?;
        let image = Image::first_of(command.programs()?, argv, command.environment()?);
        let working_directory = command.cwd.map(|cwd| text("the working directory", cwd));
        let kind = Kind::Command {
            terminal: command.terminal,
            working_directory: working_directory.transpose()?,
        };
        Ok(Self { plan: Plan::new(&command.place, kind, image, standard)? })
    }

    /// Starts the run in `cgroup` and returns its first process, once that is `/bin/bash` or was
    /// killed before it could be. The process has one thread.
    ///
    /// # Errors
    ///
    /// [`LaunchFailed`]: nothing of the run was executed, and no process of it is left.
    pub fn launch(self, cgroup: Option<BorrowedFd<'_>>) -> Result<(Pid, OwnedFd), LaunchFailed> {
        let mut plan = self.plan;
        let (reports, report) =
            report_pipe().map_err(|errno| LaunchFailed::new(Step::Pipe, errno))?;
        let report = above(report)?;
        plan.report = report.as_raw_fd();
        let (pid, pidfd) = clone_into(cgroup, || plan.carry_out(report.as_fd()))
            .map_err(|errno| LaunchFailed::new(Step::Clone, errno))?;
        drop(report);
        match Report::receive(reports.as_fd()) {
            Ok(None) => Ok((pid, pidfd)),
            Ok(Some(report)) => {
                reap(&pidfd);
                Err(report.explain())
            }
            Err(errno) => {
                // It may or may not run: it must not. An unreaped child keeps its pid.
                let _gone = kill(pid, Signal::SIGKILL);
                reap(&pidfd);
                Err(LaunchFailed::new(Step::Pipe, errno))
            }
        }
    }
}

/// A pipe that takes a report without asking for memory: what the child writes is billed to its leaf, whose limit may leave no room
/// for it. A pipe keeps the page that was read empty for the next that is written (`tmp_page` in fs/pipe.c).
fn report_pipe() -> Result<(OwnedFd, OwnedFd), Errno> {
    let (reports, report) = pipe2(OFlag::O_CLOEXEC)?;
    write(&report, &[0])?;
    read(&reports, &mut [0])?;
    Ok((reports, report))
}

/// Waits for a child that is about to end.
fn reap(pidfd: &OwnedFd) {
    while waitid(Id::PIDFd(pidfd.as_fd()), WaitPidFlag::WEXITED) == Err(Errno::EINTR) {}
}

/// What a child becomes.
enum Kind {
    /// The first process of a run.
    Run,
    /// A command that is run in a task.
    Command {
        /// Whether standard input is a terminal that controls it.
        terminal: bool,
        /// Where it begins, if that is not the sandbox.
        working_directory: Option<CString>,
    },
}

/// What the child works on.
struct Plan {
    kind: Kind,
    image: Image,
    /// What becomes standard input, output and error.
    standard: [OwnedFd; 3],
    sandbox: OwnedFd,
    chroot: bool,
    /// Whether the identity is taken; else the process has it already, and that is verified.
    switch: bool,
    uid: u32,
    gid: u32,
    /// Ascending, the primary one among them.
    groups: Vec<u32>,
    /// Room for the groups that the kernel says we have: one more than there may be.
    found: Vec<u32>,
    /// Where it reports what failed.
    report: RawFd,
}

impl Plan {
    fn new(
        place: &Place<'_>,
        kind: Kind,
        image: Image,
        standard: [OwnedFd; 3],
    ) -> Result<Self, LaunchFailed> {
        let (uid, gid, groups) = numbers(place.identity)?;
        let switch = place.identity.switch || !identity::is_current(place.identity);
        if switch && inherit::is_dumpable_after_setuid() {
            return Err(LaunchFailed::refused(Step::Prepare, DUMPABLE.to_owned()));
        }
        let [input, output, error] = standard;
        Ok(Self {
            kind,
            image,
            standard: [above(input)?, above(output)?, above(error)?],
            sandbox: duplicate(place.sandbox.dir())?,
            chroot: place.chroot,
            switch,
            uid,
            gid,
            found: vec![0; groups.len() + 1],
            groups,
            report: -1,
        })
    }

    /// Goes through the steps; does not return, for the last one becomes the program.
    fn carry_out(&mut self, report: BorrowedFd<'_>) -> Infallible {
        for (number, (when, _, act)) in STEPS.iter().enumerate() {
            if !self.wants(*when) {
                continue;
            }
            if let Err(failure) = act(self) {
                Report { number: number as u32, failure }.send(report);
                break;
            }
        }
        exit_now(NOT_STARTED)
    }

    fn wants(&self, when: When) -> bool {
        match when {
            When::Always => true,
            When::Chroot => self.chroot,
            When::NoChroot => !self.chroot,
            When::Switch => self.switch,
            When::NotRoot => self.uid != 0,
            When::Run => matches!(self.kind, Kind::Run),
            When::Command => !matches!(self.kind, Kind::Run),
            When::Terminal => matches!(self.kind, Kind::Command { terminal: true, .. }),
            When::WorkingDirectory => {
                matches!(self.kind, Kind::Command { working_directory: Some(_), .. })
            }
        }
    }

    /// As the user, who may not go everywhere.
    fn enter_working_directory(&mut self) -> Result<(), Failure> {
        match &self.kind {
            Kind::Command { working_directory: Some(path), .. } => done(fs::enter(path)),
            _ => Ok(()),
        }
    }

    /// Without keys in the kernel, or where a seccomp filter forbids `keyctl` (to the run as well),
    /// there is nothing to leave. A user who has all the keys that it may have keeps the ones of
    /// its own session.
    fn leave_keyring(&mut self) -> Result<(), Failure> {
        match inherit::new_session_keyring() {
            Ok(()) | Err(Errno::ENOSYS | Errno::EPERM) => Ok(()),
            Err(Errno::EDQUOT) if !self.switch => Ok(()),
            Err(errno) => Err(errno.into()),
        }
    }

    /// By the descriptor that is held: a path could by now lead elsewhere.
    fn change_root(&mut self) -> Result<(), Failure> {
        fchdir(&self.sandbox)?;
        done(chroot(c"."))
    }

    fn verify_groups(&mut self) -> Result<(), Failure> {
        let count = ids::groups(&mut self.found)?;
        let found = self.found.get_mut(..count).ok_or(Failure::REFUSED)?;
        found.sort_unstable();
        must(found == self.groups)
    }

    /// The ambient set is within the inheritable and the permitted one: `capabilities(7)`.
    fn verify_capabilities(&mut self) -> Result<(), Failure> {
        let sets = ids::capabilities()?;
        let own = if self.uid == 0 { 0 } else { sets.effective | sets.permitted };
        match own | sets.inheritable {
            0 => Ok(()),
            left => Err(Failure { value: left, ..Failure::REFUSED }),
        }
    }
}

/// Refuses to change the uid under bits that would keep capabilities across it.
fn check_securebits() -> Result<(), Failure> {
    let bits = ids::securebits_without_keepcaps()?;
    match bits & (ids::NO_SETUID_FIXUP | ids::KEEP_CAPS) {
        0 => Ok(()),
        kept => Err(Failure { value: kept.into(), ..Failure::REFUSED }),
    }
}

fn clear_inheritable() -> Result<(), Failure> {
    ids::clear_ambient()?;
    let sets = ids::capabilities()?;
    done(ids::set_capabilities(Capabilities { inheritable: 0, ..sets }))
}

/// Why a step failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Failure {
    /// Raw error number.
    errno: i32,
    /// More, by the step: capabilities, secure bits.
    value: u64,
}

impl Failure {
    /// A state that was read back and is not what it must be.
    const REFUSED: Self = Self { errno: libc::EPERM, value: 0 };
}

impl From<Errno> for Failure {
    fn from(errno: Errno) -> Self {
        Self { errno: errno as i32, value: 0 }
    }
}

/// What the child sends when a step fails; less than `PIPE_BUF`, so it arrives whole or not at all.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Report {
    /// Index in [`STEPS`].
    number: u32,
    failure: Failure,
}

impl Report {
    const SIZE: usize = 16;

    /// Nobody could be told if it did not work; the coordinator would take the run for started, and
    /// then for ended by [`NOT_STARTED`].
    fn send(self, to: BorrowedFd<'_>) {
        let mut bytes = [0; Self::SIZE];
        bytes[..4].copy_from_slice(&self.number.to_ne_bytes());
        bytes[4..8].copy_from_slice(&self.failure.errno.to_ne_bytes());
        bytes[8..].copy_from_slice(&self.failure.value.to_ne_bytes());
        while write(to, &bytes) == Err(Errno::EINTR) {}
    }

    /// Waits for a report; `None` at the end of file, where the child has become the program, or
    /// has died.
    fn receive(from: BorrowedFd<'_>) -> Result<Option<Self>, Errno> {
        let mut bytes = [0; Self::SIZE];
        let size = loop {
            match read(from, &mut bytes) {
                Err(Errno::EINTR) => {}
                other => break other?,
            }
        };
        let [a, b, c, d, e, f, g, h, value @ ..] = bytes;
        let failure =
            Failure { errno: i32::from_ne_bytes([e, f, g, h]), value: u64::from_ne_bytes(value) };
        Ok((size == Self::SIZE)
            .then_some(Self { number: u32::from_ne_bytes([a, b, c, d]), failure }))
    }

    fn explain(self) -> LaunchFailed {
        let step = STEPS.get(self.number as usize).map_or(Step::Pipe, |(_, step, _)| *step);
        let detail = match (step, self.failure.value) {
            (_, 0) => None,
            (Step::Securebits, bits) => Some(format!("the caller's {bits:#x} keep capabilities")),
            (_, left) => Some(format!("still has {}", capability_names(left))),
        };
        LaunchFailed { step, errno: Some(Errno::from_raw(self.failure.errno)), detail }
    }
}

/// `CAP_…` names of a set, in the order of their numbers.
fn capability_names(set: u64) -> String {
    let mut known: Vec<_> =
        caps::all().into_iter().filter(|capability| set & capability.bitmask() != 0).collect();
    known.sort_by_key(caps::Capability::index);
    known.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ")
}

impl Place<'_> {
    /// T56, T57: the whole environment of a run.
    fn environment(&self) -> Result<Vec<CString>, LaunchFailed> {
        let sandbox = self.sandbox.path().as_os_str().as_bytes();
        let home = if self.chroot { self.identity.home.as_bytes() } else { sandbox };
        let mut environment = vec![
            variable("HOME", home)?,
            variable("LOGNAME", self.identity.user.as_bytes())?,
            variable("USER", self.identity.user.as_bytes())?,
            variable("PATH", self.path.as_bytes())?,
            variable("DEWAR_TASK_ID", self.task_id.as_str().as_bytes())?,
        ];
        if let Some((process, run)) = self.run {
            environment.push(variable("DEWAR_PROCESS", process.as_str().as_bytes())?);
            environment.push(variable("DEWAR_RUN", run.to_string().as_bytes())?);
        }
        if self.sandbox.has_profile().map_err(|error| LaunchFailed::sandbox(&error))? {
            let seen_at = if self.chroot { Path::new("/") } else { self.sandbox.path() };
            let profile = seen_at.join(".thermos_profile");
            environment.push(variable("BASH_ENV", &unexpanded(profile.as_os_str().as_bytes()))?);
        }
        Ok(environment)
    }
}

impl Command<'_> {
    /// That of a run, and what was asked for.
    fn environment(&self) -> Result<Vec<CString>, LaunchFailed> {
        let mut environment = self.place.environment()?;
        for (name, value) in self.env {
            let is_it = |variable: &CString| {
                let rest = variable.as_bytes().strip_prefix(name.as_bytes());
                rest.is_some_and(|rest| rest.starts_with(b"="))
            };
            environment.retain(|variable| !is_it(variable));
            environment.push(variable(name, value.as_bytes())?);
        }
        Ok(environment)
    }

    /// Where its program may be: execvp(3), but no shell is tried.
    fn programs(&self) -> Result<Vec<CString>, LaunchFailed> {
        let name = self.argv.first().map_or("", String::as_str);
        if name.is_empty() || name.contains('/') {
            return Ok(vec![text("the program", name)?]);
        }
        let path = self.env.get("PATH").map_or(self.place.path, String::as_str);
        let join = |dir: &str| match dir {
            "" => text("the program", name),
            dir => text("the program", &format!("{dir}/{name}")),
        };
        path.split(':').map(join).collect()
    }
}

/// `path` as bash must find it in `BASH_ENV`, which it expands like a word in double quotes:
/// `bash(1)`, INVOCATION.
fn unexpanded(path: &[u8]) -> Vec<u8> {
    let escape =
        |&byte: &u8| matches!(byte, b'$' | b'`' | b'\\').then_some(b'\\').into_iter().chain([byte]);
    path.iter().flat_map(escape).collect()
}

fn variable(name: &str, value: &[u8]) -> Result<CString, LaunchFailed> {
    let nul = |_| LaunchFailed::refused(Step::Prepare, format!("{name} contains a NUL"));
    CString::new([name.as_bytes(), b"=", value].concat()).map_err(nul)
}

fn text(what: &str, value: &str) -> Result<CString, LaunchFailed> {
    CString::new(value)
        .map_err(|_| LaunchFailed::refused(Step::Prepare, format!("{what} contains a NUL")))
}

/// Uid, gid and groups of a recorded identity. The setters take `u32::MAX` for "as it is".
fn numbers(identity: &Identity) -> Result<(u32, u32, Vec<u32>), LaunchFailed> {
    let mut groups = identity.groups.clone();
    groups.push(identity.gid);
    groups.sort_unstable();
    groups.dedup();
    if identity.uid == u32::MAX || groups.contains(&u32::MAX) {
        return Err(LaunchFailed::refused(Step::Prepare, format!("{} is no id", u32::MAX)));
    }
    Ok((identity.uid, identity.gid, groups))
}

/// The host's `/dev/null`, opened before the root changes.
fn open_null() -> Result<OwnedFd, LaunchFailed> {
    let failed = |errno| LaunchFailed::new(Step::Output, errno);
    let null =
        open(c"/dev/null", OFlag::O_RDWR | OFlag::O_CLOEXEC, Mode::empty()).map_err(failed)?;
    let stat = fstat(&null).map_err(failed)?;
    let is_null = stat.st_mode & SFlag::S_IFMT.bits() == SFlag::S_IFCHR.bits()
        && stat.st_rdev == libc::makedev(1, 3);
    is_null.then_some(null).ok_or_else(|| {
        LaunchFailed::refused(Step::Output, "/dev/null is not the null device".to_owned())
    })
}

/// `fd`, or a duplicate of it that is none of the standard three.
fn above(fd: OwnedFd) -> Result<OwnedFd, LaunchFailed> {
    if fd.as_raw_fd() > 2 {
        return Ok(fd);
    }
    duplicate(fd.as_fd())
}

fn duplicate(fd: BorrowedFd<'_>) -> Result<OwnedFd, LaunchFailed> {
    fs::duplicate_above_standard(fd).map_err(|errno| LaunchFailed::new(Step::Prepare, errno))
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::MetadataExt;
    use std::path::PathBuf;
    use std::process::Command;

    use nix::mount::{MsFlags, mount};
    use nix::sched::{CloneFlags, unshare};
    use nix::sys::resource::{Resource, setrlimit};
    use nix::sys::signal::raise;
    use nix::sys::wait::{WaitStatus, waitpid};
    use nix::unistd::{Gid, Uid, setgroups, setresuid};

    use super::*;
    use crate::sys::clone::fork;
    use crate::sys::fault;
    use crate::task::spec::FileMode;
    use crate::testing::{
        ORDINARY, TempDir, alone, alone_with, become_ordinary, each_alone, is_root, ordinary,
    };

    /// A task to run things in.
    struct Stage {
        temp: TempDir,
        identity: Identity,
        chroot: bool,
        sandbox: &'static str,
    }

    /// How a run ended.
    struct Ended {
        status: WaitStatus,
        stdout: String,
        stderr: String,
    }

    impl Ended {
        /// What it printed, if it exited with 0 and said nothing on standard error.
        fn printed(self) -> String {
            assert!(
                matches!(self.status, WaitStatus::Exited(_, 0)),
                "{:?} {}",
                self.status,
                self.stderr
            );
            assert_eq!(self.stderr, "");
            self.stdout
        }

        /// The value of `field` in a `/proc/PID/status` that it printed.
        fn field(&self, field: &str) -> String {
            let line =
                self.stdout.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'));
            line.unwrap_or_else(|| panic!("no {field} in {}", self.stdout))
                .split_whitespace()
                .collect::<Vec<_>>()
                .join(" ")
        }
    }

    impl Stage {
        fn new(identity: Identity) -> Self {
            Self { temp: TempDir::new(), identity, chroot: false, sandbox: "sandbox" }
        }

        fn own() -> Self {
            Self::new(identity::current().unwrap())
        }

        fn path(&self) -> PathBuf {
            self.temp.path().join(self.sandbox)
        }

        fn log(&self, name: &str) -> String {
            let path = self.temp.path().join("logs/probe/3").join(name);
            String::from_utf8_lossy(&fs::read(path).unwrap_or_default()).into_owned()
        }

        fn run(&self, cmdline: &str) -> Result<Ended, LaunchFailed> {
            let sandbox = Sandbox::open(&self.path(), &self.identity).unwrap();
            let (task_id, process) =
                (TaskId::new("task-1").unwrap(), ProcessName::new("probe").unwrap());
            let log_dir = self.temp.path().join("logs");
            let run = Run {
                task_id: &task_id,
                process: &process,
                run: 3,
                cmdline,
                path: "/usr/local/bin:/usr/bin:/bin",
                identity: &self.identity,
                sandbox: &sandbox,
                chroot: self.chroot,
                log_dir: Some(&log_dir),
                logger: Logger { file: Some(FileMode::Standard), console: false },
            };
            let (start, pump) = Start::prepare(&run)?;
            assert!(pump.is_none());
            let (_, pidfd) = start.launch(None)?;
            let status = waitid(Id::PIDFd(pidfd.as_fd()), WaitPidFlag::WEXITED).unwrap();
            Ok(Ended { status, stdout: self.log("stdout"), stderr: self.log("stderr") })
        }

        /// The step at which a run fails, and its errno; sees to it that it left nothing.
        fn fails(&self) -> LaunchFailed {
            let trace = self.temp.path().join("it-ran");
            let error = match self.run(&format!("echo ran; : > '{}'", trace.display())) {
                Ok(ended) => panic!("it ran: {:?}", ended.status),
                Err(error) => error,
            };
            assert!(!trace.exists(), "{error}: and yet it ran");
            assert_eq!(self.log("stdout"), "");
            assert_eq!(
                waitid(Id::All, WaitPidFlag::WEXITED),
                Err(Errno::ECHILD),
                "a child is left"
            );
            error
        }
    }

    /// S33, attack 8: a caller of the worst sort.
    #[test]
    fn a_run_finds_what_is_documented_whatever_its_caller_had() {
        let environment = [
            ("LD_PRELOAD", "/nonexistent/evil.so"),
            ("NOTIFY_SOCKET", "/run/systemd/notify"),
            ("LISTEN_FDS", "3"),
            ("BASH_ENV", "/nonexistent"),
            ("HOME", "/nonexistent"),
        ];
        alone_with(&environment, || {
            let stage = Stage::own();
            umask(Mode::from_bits_truncate(0o057));
            fault::ignore(&[libc::SIGINT, libc::SIGPIPE, libc::SIGXFSZ, 32, 33, 34, 64]);
            fault::block_all();
            let decoys = [c"/", c"/etc/passwd", c"/dev/null"]
                .map(|path| open(path, OFlag::O_RDONLY, Mode::empty()).unwrap());
            setrlimit(Resource::RLIMIT_NOFILE, 64, 64).unwrap();
            if is_root() {
                // These two need CAP_SYS_RESOURCE, which root in a container may not have.
                let _asked = setrlimit(Resource::RLIMIT_CORE, u64::MAX, u64::MAX);
                let _asked = fs::write("/proc/self/oom_score_adj", "-1000");
                fault::privilege_scheduling();
            }
            // The sandbox is where it is, wherever we are.
            chdir(c"/proc/self/fd").unwrap();

            let ended = stage
                .run(
                    "cat /proc/self/status; umask; ulimit -Sc; \
                     echo $$ $(cut -d' ' -f5,6,7,18,19,41 /proc/self/stat); \
                     cat /proc/self/oom_score_adj; ionice; pwd; readlink /proc/$$/fd/0; \
                     ls /proc/$$/fd; tr '\\0' '\\n' < /proc/$$/environ; exit 0",
                )
                .unwrap();

            drop(decoys);
            for field in ["SigBlk", "SigIgn", "SigPnd"] {
                assert_eq!(ended.field(field), "0000000000000000", "{field}");
            }
            let lines: Vec<_> = ended.stdout.lines().skip_while(|line| *line != "0022").collect();
            let WaitStatus::Exited(pid, 0) = ended.status else { panic!("{:?}", ended.status) };
            let (sandbox, user) = (stage.path().display().to_string(), &stage.identity.user);
            let expected = [
                "0022",
                "0",
                // Own group and session, no terminal; priority 20, nice 0, SCHED_OTHER.
                &format!("{pid} {pid} {pid} 0 20 0 0"),
                "0",
                "none: prio 0",
                &sandbox,
                "/dev/null",
                "0",
                "1",
                "2",
                &format!("HOME={sandbox}"),
                &format!("LOGNAME={user}"),
                &format!("USER={user}"),
                "PATH=/usr/local/bin:/usr/bin:/bin",
                "DEWAR_TASK_ID=task-1",
                "DEWAR_PROCESS=probe",
                "DEWAR_RUN=3",
            ];
            assert_eq!(ended.stderr, "");
            assert_eq!(lines, expected);
        });
    }

    /// Attack 8: not every root may lower the real one, so here it is a file like any other.
    #[test]
    fn a_run_that_could_not_be_killed_for_want_of_memory_can_be() {
        alone(|| {
            if !is_root() {
                return;
            }
            unshare(CloneFlags::CLONE_NEWNS).unwrap();
            let none = None::<&str>;
            mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).unwrap();
            mount(Some("proc"), "/proc", Some("tmpfs"), MsFlags::empty(), none).unwrap();
            fs::create_dir("/proc/self").unwrap();
            let score = Path::new("/proc/self/oom_score_adj");

            for (inherited, left) in [("-1000\n", "01000\n"), ("0\n", "0\n"), ("300\n", "300\n")] {
                fs::write(score, inherited).unwrap();
                Stage::own().run("true").unwrap();
                assert_eq!(fs::read_to_string(score).unwrap(), left, "0 was written over the sign");
            }
            fs::remove_file(score).unwrap();
            assert_eq!(Stage::own().fails(), LaunchFailed::new(Step::OomScoreAdj, Errno::ENOENT));
        });
    }

    #[test]
    fn a_worse_place_is_kept() {
        alone(|| {
            fs::write("/proc/self/oom_score_adj", "300").unwrap();
            let mut renice = Command::new("renice");
            assert!(
                renice
                    .args(["-n", "7", &std::process::id().to_string()])
                    .output()
                    .unwrap()
                    .status
                    .success()
            );

            let ended = Stage::own().run("cat /proc/self/oom_score_adj; nice").unwrap();

            assert_eq!(ended.printed(), "300\n7\n");
        });
    }

    /// S38, attacks 1, 3: the ids, four times, exactly the groups, no capability, no key of the
    /// caller.
    #[test]
    fn a_run_of_another_user_has_nothing_of_its_caller() {
        alone(|| {
            if !is_root() {
                return;
            }
            setgroups(&[4, 27, 4242].map(Gid::from_raw)).unwrap();
            fault::make_ambient(caps::Capability::CAP_NET_ADMIN.index());
            let _keys = inherit::new_session_keyring();
            fault::add_session_key(c"dewar-test-secret");
            let stage = Stage::new(ordinary(&[7, 100, ORDINARY]));

            let ended = stage
                .run("cat /proc/self/status /proc/keys; : > mine; head -c1 /etc/shadow")
                .unwrap();

            let id = ORDINARY.to_string();
            assert_eq!(ended.field("Uid"), [id.as_str(); 4].join(" "));
            assert_eq!(ended.field("Gid"), [id.as_str(); 4].join(" "));
            assert_eq!(ended.field("Groups"), format!("7 100 {id}"));
            for set in ["CapInh", "CapPrm", "CapEff", "CapAmb"] {
                assert_eq!(ended.field(set), "0000000000000000", "{set}");
            }
            assert!(
                ended.stdout.contains("_ses") && !ended.stdout.contains("dewar-test-secret"),
                "{}",
                ended.stdout
            );
            assert!(ended.stderr.contains("Permission denied"), "{}", ended.stderr);
            assert_eq!(fs::metadata(stage.path().join("mine")).unwrap().uid(), ORDINARY);
        });
    }

    /// The keys that the test above looks for are there to be found.
    #[test]
    fn a_run_that_kept_the_callers_keyring_would_show_its_keys() {
        alone(|| {
            if !is_root() {
                return;
            }
            let _keys = inherit::new_session_keyring();
            fault::add_session_key(c"dewar-test-secret");
            fault::take_away(libc::SYS_keyctl, libc::EPERM);

            let ended = Stage::new(ordinary(&[])).run("cat /proc/keys").unwrap();

            assert!(ended.printed().contains("dewar-test-secret"));
        });
    }

    /// Attack 3: root that names itself gets the groups of the database, not those of the daemon.
    #[test]
    fn a_run_of_root_itself_has_exactly_its_groups() {
        alone(|| {
            if !is_root() {
                return;
            }
            setgroups(&[4, 27, 4242].map(Gid::from_raw)).unwrap();
            fault::make_ambient(caps::Capability::CAP_NET_ADMIN.index());

            let ended =
                Stage::new(identity::named("root").unwrap()).run("cat /proc/self/status").unwrap();

            assert_eq!(
                (ended.field("Groups").as_str(), ended.field("CapInh").as_str()),
                ("0", "0000000000000000")
            );
            assert_eq!(ended.field("CapAmb"), "0000000000000000");
        });
    }

    #[test]
    fn an_ordinary_user_gives_up_the_capabilities_that_its_caller_had_lent_it() {
        alone(|| {
            if !is_root() {
                return;
            }
            nix::sys::prctl::set_keepcaps(true).unwrap();
            let uid = Uid::from_raw(ORDINARY);
            setresuid(uid, uid, uid).unwrap();
            fault::make_ambient(caps::Capability::CAP_NET_BIND_SERVICE.index());

            let ended = Stage::own().run("cat /proc/self/status").unwrap();

            for set in ["CapInh", "CapPrm", "CapEff", "CapAmb"] {
                assert_eq!(ended.field(set), "0000000000000000", "{set}");
            }
        });
    }

    /// Attack 2: each call fails in turn, and that is the verdict.
    #[test]
    fn a_step_that_fails_is_the_verdict_and_nothing_runs() {
        let calls: BTreeMap<&str, (libc::c_long, Step)> = [
            ("setsid", (libc::SYS_setsid, Step::Setsid)),
            ("rt_sigaction", (libc::SYS_rt_sigaction, Step::Signals)),
            ("getpriority", (libc::SYS_getpriority, Step::Scheduling)),
            ("prlimit64", (libc::SYS_prlimit64, Step::CoreLimit)),
            ("keyctl", (libc::SYS_keyctl, Step::Keyring)),
            ("dup3", (libc::SYS_dup3, Step::Stdio)),
            ("close_range", (libc::SYS_close_range, Step::CloseRange)),
            ("chroot", (libc::SYS_chroot, Step::Chroot)),
            ("chdir", (libc::SYS_chdir, Step::Chdir)),
            ("getcwd", (libc::SYS_getcwd, Step::VerifyCwd)),
            ("prctl", (libc::SYS_prctl, Step::Securebits)),
            ("capset", (libc::SYS_capset, Step::Inheritable)),
            ("setgroups", (libc::SYS_setgroups, Step::Setgroups)),
            ("getgroups", (libc::SYS_getgroups, Step::VerifyGroups)),
            ("setresgid", (libc::SYS_setresgid, Step::Setresgid)),
            ("getresgid", (libc::SYS_getresgid, Step::VerifyGid)),
            ("setresuid", (libc::SYS_setresuid, Step::Setresuid)),
            ("getresuid", (libc::SYS_getresuid, Step::VerifyUid)),
            ("rt_sigprocmask", (libc::SYS_rt_sigprocmask, Step::Sigmask)),
            ("execve", (libc::SYS_execve, Step::Execve)),
            ("clone3", (libc::SYS_clone3, Step::Clone)),
        ]
        .into();
        let names: Vec<&str> = calls.keys().copied().collect();
        each_alone(&names, |name| {
            if !is_root() {
                return;
            }
            let (number, step) = calls[name];
            let stage = Stage { chroot: true, ..Stage::new(ordinary(&[7])) };
            fault::take_away(number, libc::EXDEV);

            let error = stage.fails();

            assert_eq!(error, LaunchFailed { step, errno: Some(Errno::EXDEV), detail: None });
            let verdict = error.verdict();
            assert_eq!(
                (verdict.step.as_deref(), verdict.errno.as_deref()),
                (Some(step.name()), Some("EXDEV"))
            );
        });
    }

    /// Attack 2: each call says that it worked, and did nothing.
    #[test]
    fn a_step_that_lies_is_found_out_and_nothing_runs() {
        let calls: BTreeMap<&str, (libc::c_long, Step)> = [
            ("chroot", (libc::SYS_chroot, Step::VerifyRoot)),
            ("fchdir", (libc::SYS_fchdir, Step::VerifyCwd)),
            ("setgroups", (libc::SYS_setgroups, Step::VerifyGroups)),
            ("setresgid", (libc::SYS_setresgid, Step::VerifyGid)),
            ("setresuid", (libc::SYS_setresuid, Step::VerifyUid)),
            ("setuid", (libc::SYS_setuid, Step::VerifyNotRoot)),
            ("setgid", (libc::SYS_setgid, Step::VerifyNotRoot)),
        ]
        .into();
        let names: Vec<&str> = calls.keys().copied().collect();
        each_alone(&names, |name| {
            if !is_root() {
                return;
            }
            let (number, step) = calls[name];
            let stage = Stage { chroot: name == "chroot", ..Stage::new(ordinary(&[7])) };
            fault::take_away(number, 0);

            assert_eq!(stage.fails().step, step);
        });
    }

    /// The capabilities that are left are named.
    #[test]
    fn a_capset_that_lies_is_found_out() {
        alone(|| {
            if !is_root() {
                return;
            }
            fault::take_away(libc::SYS_capset, 0);
            nix::sys::prctl::set_keepcaps(true).unwrap();
            let uid = Uid::from_raw(ORDINARY);
            setresuid(uid, uid, uid).unwrap();

            let error = Stage::own().fails();

            assert_eq!((error.step, error.errno), (Step::VerifyCapabilities, Some(Errno::EPERM)));
            assert!(error.detail.unwrap().starts_with("still has CAP_CHOWN CAP_DAC_OVERRIDE "));
        });
    }

    /// Attack 8: bits that would keep capabilities across the change of uid.
    #[test]
    fn secure_bits_that_keep_capabilities_are_refused_and_keepcaps_is_taken_off() {
        each_alone(&["fixup", "locked", "keepcaps"], |case| {
            if !is_root() {
                return;
            }
            let stage = Stage::new(ordinary(&[]));
            match case {
                "fixup" => fault::set_securebits(ids::NO_SETUID_FIXUP),
                "locked" => fault::set_securebits(ids::KEEP_CAPS | ids::KEEP_CAPS << 1),
                _ => nix::sys::prctl::set_keepcaps(true).unwrap(),
            }
            if case == "keepcaps" {
                assert_eq!(
                    stage.run("cat /proc/self/status").unwrap().field("CapPrm"),
                    "0000000000000000"
                );
            } else {
                let error = stage.fails();
                assert_eq!((error.step, error.errno), (Step::Securebits, Some(Errno::EPERM)));
            }
        });
    }

    /// Attack 5: ids that this user namespace does not have.
    #[test]
    fn an_identity_that_is_not_mapped_is_refused() {
        alone(|| {
            if !is_root() {
                return;
            }
            let mut stage = Stage::new(ordinary(&[]));
            let refused = [
                (vec![ORDINARY], 0, Step::Setgroups),
                (vec![], ORDINARY, Step::Setgroups),
                (vec![], 0, Step::Setresuid),
            ];

            let inside = || {
                unshare(CloneFlags::CLONE_NEWUSER).unwrap();
                raise(Signal::SIGSTOP).unwrap();
                for (groups, gid, step) in refused {
                    stage.identity.groups = groups;
                    stage.identity.gid = gid;
                    let error = prepared_without_logs(&stage).0.launch(None).unwrap_err();
                    assert_eq!(error, LaunchFailed::new(step, Errno::EINVAL));
                }
                exit_now(0)
            };
            let (pid, _) = fork(inside).unwrap();
            waitpid(pid, Some(WaitPidFlag::WUNTRACED)).unwrap();
            for map in ["uid_map", "gid_map"] {
                fs::write(format!("/proc/{pid}/{map}"), "0 0 1").unwrap();
            }
            kill(pid, Signal::SIGCONT).unwrap();

            assert_eq!(waitpid(pid, None), Ok(WaitStatus::Exited(pid, 0)));
        });
    }

    fn prepared_without_logs(stage: &Stage) -> (Start, Option<Pump>) {
        let _exists = fs::create_dir(stage.path());
        let sandbox = Sandbox::open(&stage.path(), &stage.identity).unwrap();
        let (task_id, process) =
            (TaskId::new("task-1").unwrap(), ProcessName::new("probe").unwrap());
        let run = Run {
            task_id: &task_id,
            process: &process,
            run: 0,
            cmdline: "true",
            path: "/bin",
            identity: &stage.identity,
            sandbox: &sandbox,
            chroot: false,
            log_dir: None,
            logger: Logger { file: None, console: false },
        };
        Start::prepare(&run).unwrap()
    }

    /// D19: whoever the runner is, the run is who was recorded.
    #[test]
    fn a_recorded_identity_is_taken_or_refused_but_never_left_out() {
        each_alone(&["root", "ordinary"], |case| {
            if !is_root() {
                return;
            }
            if case == "root" {
                let kept = Identity { switch: false, ..ordinary(&[ORDINARY]) };
                assert_eq!(Stage::new(kept).run("id -u").unwrap().printed(), "54321\n");
            } else {
                let kept = Identity { switch: false, ..identity::current().unwrap() };
                become_ordinary();
                let error = prepared_without_logs(&Stage::new(kept)).0.launch(None).unwrap_err();
                assert_eq!(error, LaunchFailed::new(Step::Setgroups, Errno::EPERM));
            }
        });
    }

    /// Attack 5.
    #[test]
    fn an_id_that_means_unchanged_is_refused_in_a_record_too() {
        let identity = Identity { uid: u32::MAX, ..ordinary(&[]) };

        let error = numbers(&identity).unwrap_err();

        assert_eq!(error.to_string(), "prepare: 4294967295 is no id");
    }

    /// S40, T56, T57.
    #[test]
    fn under_chroot_the_sandbox_is_all_there_is() {
        alone(|| {
            if !is_root() {
                return;
            }
            let stage = Stage { chroot: true, ..Stage::new(ordinary(&[])) };
            Sandbox::open(&stage.path(), &stage.identity).unwrap();
            install_bash(&stage.path());
            fs::write(stage.path().join(".thermos_profile"), "echo profile").unwrap();

            let ended = stage.run("pwd; echo $HOME; echo *; echo $BASH_ENV; cd ..; pwd").unwrap();

            assert_eq!(
                ended.printed(),
                "profile\n/\n/home/ordinary\nbin lib lib64\n/.thermos_profile\n/\n"
            );
        });
    }

    /// What the user of process `pid` gets to see of it, if anything.
    fn reach(pid: i32) -> Vec<&'static str> {
        let path = |name: &str| format!("/proc/{pid}/{name}");
        let reads = |name| fs::read(path(name)).is_ok_and(|content| !content.is_empty());
        let opens = |name| fs::File::open(path(name)).is_ok();
        [
            ("exe", fs::metadata(path("exe")).is_ok()),
            ("maps", reads("maps")),
            ("environ", reads("environ")),
            ("mem", opens("mem")),
            ("fd", fs::read_dir(path("fd")).is_ok()),
        ]
        .into_iter()
        .filter_map(|(name, is)| is.then_some(name))
        .collect()
    }

    /// attacks 11, 12: a child that is its user already, and not yet the program, has the memory of its parent.
    #[test]
    fn the_user_of_a_child_that_is_not_yet_the_program_has_no_hold_on_it() {
        alone(|| {
            if !is_root() {
                return;
            }
            let stage = Stage::new(ordinary(&[]));
            let sandbox = Sandbox::open(&stage.path(), &stage.identity).unwrap();
            let task_id = TaskId::new("task-1").unwrap();
            let place = Place {
                task_id: &task_id,
                run: None,
                path: "/bin",
                identity: &stage.identity,
                sandbox: &sandbox,
                chroot: false,
            };
            let image = Image::new(SHELL.to_owned(), vec![], vec![]);
            let null = || open_null().unwrap();
            let mut plan = Plan::new(&place, Kind::Run, image, [null(), null(), null()]).unwrap();
            let (pids, pid) = pipe2(OFlag::O_CLOEXEC).unwrap();
            let (hold, go) = pipe2(OFlag::O_CLOEXEC).unwrap();
            let spy = || {
                become_ordinary();
                let mut pid = [0; 4];
                read(&pids, &mut pid).unwrap();
                let reached = reach(i32::from_ne_bytes(pid));
                write(&go, &[0]).unwrap();
                assert_eq!(reached, [""; 0]);
                exit_now(0)
            };
            let (spy, _) = fork(spy).unwrap();

            let (_, pidfd) = clone_into(None, || {
                for (when, _, act) in STEPS.iter().filter(|(_, step, _)| *step != Step::Execve) {
                    if plan.wants(*when) && act(&mut plan).is_err() {
                        exit_now(1);
                    }
                }
                let _ = write(&pid, &Pid::this().as_raw().to_ne_bytes());
                let _ = read(&hold, &mut [0]);
                exit_now(0)
            })
            .unwrap();

            assert!(matches!(
                waitid(Id::PIDFd(pidfd.as_fd()), WaitPidFlag::WEXITED),
                Ok(WaitStatus::Exited(_, 0))
            ));
            assert_eq!(waitpid(spy, None), Ok(WaitStatus::Exited(spy, 0)));
        });
    }

    /// `fs.suid_dumpable` = 1 would let that user in, until the next step.
    #[test]
    fn nothing_is_run_as_another_user_who_would_be_let_into_our_memory() {
        alone(|| {
            if !is_root() {
                return;
            }
            let stage = Stage::new(ordinary(&[]));
            let one = stage.temp.path().join("one");
            fs::write(&one, "1\n").unwrap();
            unshare(CloneFlags::CLONE_NEWNS).unwrap();
            let none = None::<&str>;
            mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).unwrap();
            mount(Some(&one), "/proc/sys/fs/suid_dumpable", none, MsFlags::MS_BIND, none).unwrap();

            let error = stage.fails();

            assert_eq!(error, LaunchFailed::refused(Step::Prepare, DUMPABLE.to_owned()));
            Stage::own().run("true").unwrap();
        });
    }

    /// Copies bash and the libraries that it names into `root`.
    fn install_bash(root: &Path) {
        let ldd = Command::new("ldd").arg("/bin/bash").output().unwrap();
        let text = String::from_utf8(ldd.stdout).unwrap();
        let libraries = text.split_whitespace().filter(|word| word.starts_with('/'));
        for file in libraries.chain(["/bin/bash"]) {
            let to = root.join(file.trim_start_matches('/'));
            fs::create_dir_all(to.parent().unwrap()).unwrap();
            fs::copy(file, to).unwrap();
        }
    }

    /// S40: the verdict names step and errno.
    #[test]
    fn a_sandbox_without_a_shell_says_so() {
        alone(|| {
            if !is_root() {
                return;
            }
            let stage = Stage { chroot: true, ..Stage::new(ordinary(&[])) };

            let verdict = stage.fails().verdict();

            assert_eq!(verdict.reason(), VerdictReason::LaunchFailed);
            assert_eq!(
                (verdict.step.as_deref(), verdict.errno.as_deref()),
                (Some("execve /bin/bash"), Some("ENOENT"))
            );
        });
    }

    #[test]
    fn an_ordinary_user_cannot_have_a_chroot_and_is_told() {
        alone(|| {
            if !is_root() {
                return;
            }
            become_ordinary();
            let stage = Stage { chroot: true, ..Stage::own() };

            assert_eq!(stage.fails(), LaunchFailed::new(Step::Chroot, Errno::EPERM));
        });
    }

    /// S34, O40, T57; and a path that bash would expand is only a path.
    #[test]
    fn a_profile_reaches_the_next_run_whatever_the_sandbox_is_called() {
        alone(|| {
            let mut stage = Stage::own();
            stage.sandbox = "a $(touch pwned) `touch pwned` ${HOME} \\ \" ' * ~";

            stage
                .run("echo export GREETING=hello > .thermos_profile; echo \"[$BASH_ENV]\"")
                .unwrap();
            let ended = stage.run("echo $GREETING; ls").unwrap();

            assert_eq!(ended.printed(), "[]\nhello\n");
        });
    }

    #[test]
    fn the_command_line_is_one_argument_and_its_exit_status_is_its_own() {
        alone(|| {
            let ended = Stage::own().run("printf '%s\\n' \"$0\" 'a  b' $#; exit 200").unwrap();

            assert_eq!(ended.stdout, "/bin/bash\na  b\n0\n");
            assert!(matches!(ended.status, WaitStatus::Exited(_, 200)));
        });
    }

    #[test]
    fn a_command_line_that_is_too_long_is_a_verdict() {
        alone(|| {
            let error = Stage::own().run(&"x".repeat(200_000)).err().unwrap();

            assert_eq!(error, LaunchFailed::new(Step::Execve, Errno::E2BIG));
        });
    }

    #[test]
    fn the_documentation_lists_the_steps_in_their_order() {
        let text = include_str!("../../docs/run-environment.md");
        let rows = text.lines().filter(|line| line.starts_with("| ") && line.contains(" | `"));
        let steps: Vec<&str> = rows
            .filter(|row| row[2..].starts_with(|first: char| first.is_ascii_digit()))
            .map(|row| row.split('`').nth(1).unwrap())
            .collect();

        let mut names: Vec<&str> = STEPS.iter().map(|(_, step, _)| step.name()).collect();
        names.dedup();
        assert_eq!(steps, names);
    }

    #[test]
    fn every_step_of_the_child_has_its_own_name() {
        let names: BTreeMap<&str, Step> =
            STEPS.iter().map(|(_, step, _)| (step.name(), *step)).collect();
        let steps: Vec<Step> = STEPS.iter().map(|(_, step, _)| *step).collect();

        assert!(steps.iter().all(|step| names[step.name()] == *step));
        assert!(
            steps.is_sorted_by_key(|step| *step as u8),
            "the enum is in the order of the table"
        );
    }
}
