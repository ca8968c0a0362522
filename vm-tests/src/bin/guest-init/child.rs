//! One test in a process of its own.

use std::fs::{self, File};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use vm_tests::place::SUITES;
use vm_tests::wire::Outcome;

use crate::dump;

/// Where a test's output goes; not in a directory that tests use.
const OUTPUT: &str = "/output";

/// As much of an output is told, from its beginning and from its end, in bytes.
const TOLD: usize = 32 << 10;

/// Tells when children have died. There is one for the life of this process.
pub(crate) struct Deaths(SignalFd);

impl Deaths {
    /// From now on SIGCHLD is read, not delivered.
    pub(crate) fn watch() -> io::Result<Self> {
        let mask = SigSet::from_iter([Signal::SIGCHLD]);
        mask.thread_block()?;
        let flags = SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK;
        Ok(Self(SignalFd::with_flags(&mask, flags)?))
    }

    /// Waits for a death; not beyond `deadline`.
    fn wait(&self, deadline: Instant) -> io::Result<()> {
        let left = deadline.saturating_duration_since(Instant::now());
        let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
        poll(&mut [PollFd::new(self.0.as_fd(), PollFlags::POLLIN)], timeout)?;
        while self.0.read_signal()?.is_some() {}
        Ok(())
    }
}

/// How a test ended, and what it printed.
pub(crate) struct Ended {
    pub(crate) outcome: Outcome,
    pub(crate) took: Duration,
    pub(crate) output: String,
}

/// Runs a test to its end or to its deadline.
pub(crate) fn run(
    deaths: &Deaths,
    suite: &str,
    test: &str,
    deadline: Duration,
    slowly: Option<u32>,
) -> io::Result<Ended> {
    let start = Instant::now();
    let output = File::create(OUTPUT)?;
    let child = Command::new(Path::new(SUITES).join(suite))
        .args(["--exact", test, "--nocapture", "--test-threads=1"])
        .env_clear()
        .envs([("PATH", "/usr/local/bin:/usr/bin:/usr/sbin"), ("HOME", "/root"), ("USER", "root")])
        // No test leaves itself out: on this machine all of them can run.
        .envs([("CI", "true"), ("RUST_BACKTRACE", "1")])
        .envs(slowly.map(|most| ("DEWAR_FAILPOINT_DELAY", most.to_string())))
        .current_dir("/")
        .process_group(0)
        .stdin(Stdio::null())
        .stdout(output.try_clone()?)
        .stderr(output)
        .spawn()?;
    let pid = Pid::from_raw(child.id().cast_signed());
    let end = wait(deaths, pid, start + deadline)?;
    let took = start.elapsed();
    let output = shortened(&fs::read(OUTPUT)?);
    let outcome = match end {
        None => Outcome::Hung(dump::machine()),
        Some(WaitStatus::Exited(_, 0)) if output.contains("test result: ok. 1 passed") => {
            // What is measured is told.
            let output = if test.starts_with("bench::") { output } else { String::new() };
            return Ok(Ended { outcome: Outcome::Passed, took, output });
        }
        Some(WaitStatus::Exited(_, 0)) => Outcome::Failed("no such test was run".to_owned()),
        Some(WaitStatus::Exited(_, status)) => Outcome::Failed(format!("exit status {status}")),
        Some(end) => Outcome::Failed(format!("{end:?}")),
    };
    Ok(Ended { outcome, took, output })
}

/// `None` if it still runs at the deadline.
fn wait(deaths: &Deaths, pid: Pid, deadline: Instant) -> io::Result<Option<WaitStatus>> {
    loop {
        if let Some(end) = reap().into_iter().find(|end| end.pid() == Some(pid)) {
            return Ok(Some(end));
        }
        if Instant::now() >= deadline {
            return Ok(None);
        }
        deaths.wait(deadline)?;
    }
}

/// Takes leave of every child that has died: those of tests come to us when their parents die.
pub(crate) fn reap() -> Vec<WaitStatus> {
    std::iter::from_fn(|| match waitpid(Pid::from_raw(-1), Some(WaitPidFlag::WNOHANG)) {
        Ok(WaitStatus::StillAlive) | Err(_) => None,
        Ok(end) => Some(end),
    })
    .collect()
}

/// Beginning and end of a long output, as text.
fn shortened(output: &[u8]) -> String {
    let text = |bytes| String::from_utf8_lossy(bytes);
    match output.len().checked_sub(2 * TOLD) {
        None | Some(0) => text(output).into_owned(),
        Some(left_out) => {
            let (first, last) = (&output[..TOLD], &output[TOLD + left_out..]);
            format!("{}\n[{left_out} bytes]\n{}", text(first), text(last))
        }
    }
}
