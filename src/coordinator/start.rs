//! From the clone to `execve`: [`STEPS`] is all that happens in the child, in order, on one screen.
//!
//! ```text
//! coordinator   prepare ─ clone3 ────────────────── read the pipe ─ end of file: it runs ─▶ Ok
//!                           │                             ▲    └── a report: it never ran ─▶ LaunchFailed
//! child, in its leaf        └ step, step, step … execve   │ (close on exec)
//!                               └─ first failure: report ─┘ exit
//! ```
//!
//! All that can be made beforehand is: the child allocates nothing and only makes system calls. A
//! step that fails ends the child before the program has run one instruction, and is the verdict of
//! the run. Each change of rights is read back by a step of its own, since a call that says it
//! worked and did nothing (a seccomp filter can make it so) must not leave a run with more rights
//! than its user has.
//!
//! What a run finds is promised in `docs/run-environment.md`.

use std::convert::Infallible;
use std::ffi::CString;
use std::fmt;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::sys::signal::{Signal, kill};
use nix::sys::stat::{Mode, SFlag, fstat, umask};
use nix::sys::wait::{Id, WaitPidFlag, waitid};
use nix::unistd::{Pid, chdir, chroot, fchdir, pipe2, read, setsid, write};

use super::output::{Output, OutputError, Pump};
use crate::identity;
use crate::proto::{Identity, Verdict, VerdictReason};
use crate::sandbox::{PathError, Sandbox};
use crate::sys::clone::clone_into;
use crate::sys::exec::{Image, exit_now};
use crate::sys::ids::Capabilities;
use crate::sys::{fs, ids, inherit, signal};
use crate::task::{Logger, ProcessName, TaskId};

/// The shell of every run.
const SHELL: &std::ffi::CStr = c"/bin/bash";

/// File-mode creation mask of every run.
const UMASK: Mode = Mode::from_bits_truncate(0o022);

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
    /// Leave the caller's keys.
    Keyring,
    /// Lay standard input, output and error.
    Stdio,
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
    /// Give up every capability, unless root.
    Capset,
    /// Have none.
    VerifyCapabilities,
    /// Be refused uid 0 and gid 0.
    VerifyNotRoot,
    /// Block no signal.
    Sigmask,
    /// Become the shell.
    Execve,
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
            Self::Keyring => "keyring",
            Self::Stdio => "stdio",
            Self::CloseRange => "close_range",
            Self::Chroot => "chroot",
            Self::Chdir => "chdir",
            Self::VerifyRoot => "verify root",
            Self::VerifyCwd => "verify cwd",
            Self::Securebits => "securebits",
            Self::Inheritable => "inheritable capabilities",
            Self::Setgroups => "setgroups",
            Self::VerifyGroups => "verify groups",
            Self::Setresgid => "setresgid",
            Self::VerifyGid => "verify gid",
            Self::Setresuid => "setresuid",
            Self::VerifyUid => "verify uid",
            Self::Capset => "capset",
            Self::VerifyCapabilities => "verify capabilities",
            Self::VerifyNotRoot => "verify not root",
            Self::Sigmask => "sigmask",
            Self::Execve => "execve /bin/bash",
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
}

type Act = fn(&mut Plan) -> Result<(), Failure>;

/// What the child does, in this order. The working directory and root change while it may still go
/// anywhere; groups, gid and uid follow, in the only order in which each still has the right to;
/// nothing after the uid needs one.
const STEPS: [(When, Step, Act); 28] = [
    (When::Always, Step::Setsid, |_| done(setsid())),
    (When::Always, Step::Signals, |_| done(signal::default_all())),
    (When::Always, Step::Umask, |_| done(Ok(umask(UMASK)))),
    (When::Always, Step::Scheduling, |_| done(inherit::ordinary_scheduling())),
    (When::Always, Step::OomScoreAdj, |_| done(inherit::ordinary_oom_score())),
    (When::Always, Step::CoreLimit, |_| done(inherit::no_core_dumps())),
    (When::Always, Step::Keyring, Plan::leave_keyring),
    (When::Always, Step::Stdio, |plan| done(fs::lay_standard(&plan.standard))),
    (When::Always, Step::CloseRange, |_| done(fs::close_others_on_exec())),
    (When::Chroot, Step::Chroot, Plan::change_root),
    (When::Chroot, Step::Chdir, |_| done(chdir(c"/"))),
    (When::NoChroot, Step::Chdir, |plan| done(fchdir(&plan.sandbox))),
    (When::Chroot, Step::VerifyRoot, |plan| must(fs::is_dir(c"/", &plan.sandbox)?)),
    (When::Always, Step::VerifyCwd, |plan| must(fs::is_dir(c".", &plan.sandbox)?)),
    (When::Always, Step::VerifyCwd, |_| must(fs::cwd_is_reachable()?)),
    (When::Switch, Step::Securebits, |_| check_securebits()),
    (When::Always, Step::Inheritable, |_| clear_inheritable()),
    (When::Switch, Step::Setgroups, |plan| done(ids::set_groups(&plan.groups))),
    (When::Switch, Step::VerifyGroups, Plan::verify_groups),
    (When::Switch, Step::Setresgid, |plan| done(ids::set_gid(plan.gid))),
    (When::Always, Step::VerifyGid, |plan| must(ids::gids()?.are(plan.gid))),
    (When::Switch, Step::Setresuid, |plan| done(ids::set_uid(plan.uid))),
    (When::Always, Step::VerifyUid, |plan| must(ids::uids()?.are(plan.uid))),
    (When::NotRoot, Step::Capset, |_| done(ids::set_capabilities(Capabilities::default()))),
    (When::Always, Step::VerifyCapabilities, Plan::verify_capabilities),
    (When::NotRoot, Step::VerifyNotRoot, |plan| must(!ids::can_become_root(plan.gid))),
    (When::Always, Step::Sigmask, |_| done(signal::unblock_all())),
    (When::Always, Step::Execve, |plan| Err(plan.image.execve().into())),
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
        matches!(self.errno, Some(Errno::ENOSPC | Errno::EDQUOT | Errno::EFBIG))
    }

    /// Whether the same call may well succeed soon: it failed for want of something, or was interrupted.
    pub(super) fn is_passing(&self) -> bool {
        use Errno::{EAGAIN, EBUSY, EINTR, EIO, EMFILE, ENFILE, ENOMEM};
        matches!(self.errno, Some(EAGAIN | EBUSY | EINTR | EIO | EMFILE | ENFILE | ENOMEM))
    }

    /// A step of the coordinator's own that failed, with the errno at the end of its causes.
    pub(super) fn caused(step: Step, error: &(dyn std::error::Error + 'static)) -> Self {
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
        let environment = environment(run)?;
        let argv = vec![SHELL.to_owned(), c"-c".to_owned(), text("the command line", run.cmdline)?];
        let (uid, gid, groups) = numbers(run.identity)?;
        let null = open_null()?;
        let Output { stdout, stderr, pump } =
            Output::open(run).map_err(|error| LaunchFailed::output(&error))?;
        let plan = Plan {
            image: Image::new(SHELL.to_owned(), argv, environment),
            standard: [above(null)?, above(stdout)?, above(stderr)?],
            sandbox: duplicate(run.sandbox.dir())?,
            chroot: run.chroot,
            switch: run.identity.switch || !identity::is_current(run.identity),
            uid,
            gid,
            found: vec![0; groups.len() + 1],
            groups,
        };
        Ok((Self { plan }, pump))
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
            pipe2(OFlag::O_CLOEXEC).map_err(|errno| LaunchFailed::new(Step::Pipe, errno))?;
        let report = above(report)?;
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

/// Waits for a child that is about to end.
fn reap(pidfd: &OwnedFd) {
    while waitid(Id::PIDFd(pidfd.as_fd()), WaitPidFlag::WEXITED) == Err(Errno::EINTR) {}
}

/// What the child works on.
struct Plan {
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
}

impl Plan {
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
        let detail = match step {
            Step::VerifyCapabilities => {
                Some(format!("still has {}", capability_names(self.failure.value)))
            }
            Step::Securebits => Some(format!(
                "the caller's secure bits {:#x} keep capabilities",
                self.failure.value
            )),
            _ => None,
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

/// T56, T57: the whole environment of a run.
fn environment(run: &Run<'_>) -> Result<Vec<CString>, LaunchFailed> {
    let sandbox = run.sandbox.path().as_os_str().as_bytes();
    let home = if run.chroot { run.identity.home.as_bytes() } else { sandbox };
    let number = run.run.to_string();
    let mut environment = vec![
        variable("HOME", home)?,
        variable("LOGNAME", run.identity.user.as_bytes())?,
        variable("USER", run.identity.user.as_bytes())?,
        variable("PATH", run.path.as_bytes())?,
        variable("DEWAR_TASK_ID", run.task_id.as_str().as_bytes())?,
        variable("DEWAR_PROCESS", run.process.as_str().as_bytes())?,
        variable("DEWAR_RUN", number.as_bytes())?,
    ];
    if run.sandbox.has_profile().map_err(|error| LaunchFailed::sandbox(&error))? {
        let seen_at = if run.chroot { Path::new("/") } else { run.sandbox.path() };
        let profile = seen_at.join(".thermos_profile");
        environment.push(variable("BASH_ENV", &unexpanded(profile.as_os_str().as_bytes()))?);
    }
    Ok(environment)
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
