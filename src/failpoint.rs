//! Named points between two effects, at which a test stops or fails them.
//!
//! They exist in builds with debug assertions only; in a release build [`hit`] is nothing.
//!
//! - `dewar-runner --failpoints` lists them, one a line, so that a test can loop over all.
//! - `DEWAR_FAILPOINT=NAME=ACTION@TOKEN` arms one. ACTION is `kill` (SIGKILL to itself), `stop` (SIGSTOP), `panic`,
//!   or the name of an errno (`ENOSPC`). It acts once, in whichever process passes it after as many passes as the file TOKEN has
//!   bytes: each pass takes one byte, and the one that finds none removes the file and acts. `ACTION*` acts at every
//!   pass for as long as TOKEN is there.
//! - `DEWAR_FAILPOINT_DELAY=MILLISECONDS` holds whoever passes a point for a random time up to so many. A test that waits for
//!   events does not notice; one that hopes is found out (`just test-slowly`).
//! - `DEWAR_FAILPOINT_TRACE=FILE` appends the name of every point that is passed to FILE.
#![allow(clippy::disallowed_methods, reason = "armed by the environment of a test")]

use std::io;

macro_rules! failpoints {
    ($($(#[$doc:meta])* $variant:ident = $name:literal,)*) => {
        /// A point between two effects.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum Failpoint { $($(#[$doc])* $variant,)* }

        impl Failpoint {
            /// All points, by name.
            pub const ALL: &'static [&'static str] = &[$($name,)*];

            /// The point's name: `program::place`.
            pub fn name(self) -> &'static str {
                match self { $(Self::$variant => $name,)* }
            }
        }
    };
}

failpoints! {
    /// The stream of a task is about to be made.
    AcceptStream = "accept::stream",
    /// The stream is there and locked; the launch is about to be written to it.
    AcceptHeader = "accept::header",
    /// The launch is written; the task is not accepted.
    AcceptWritten = "accept::written",
    /// The task is active; no runner may begin, and nothing of it is known to be on disk.
    AcceptAccepted = "accept::accepted",
    /// Its runner may begin; all of it is about to be synced.
    AcceptBegun = "accept::begun",
    /// It is on disk; nobody was told.
    AcceptDurable = "accept::durable",
    /// The runner may go; it does not hold the lock.
    RunnerStart = "runner::start",
    /// The runner holds the lock and has replayed its stream.
    RunnerReplayed = "runner::replayed",
    /// The control socket and the nudge pipe are there.
    RunnerListening = "runner::listening",
    /// The task's cgroup is there.
    RunnerContained = "runner::contained",
    /// Live runs of an earlier runner are about to be attached.
    RunnerAttaching = "runner::attaching",
    /// Something that must last is about to be recorded, and nobody has said that the acceptance of the task is on disk: it is
    /// about to be synced.
    RunnerAcceptance = "runner::acceptance",
    /// Records are about to be written.
    RunnerFlush = "runner::flush",
    /// Records were written; nothing of what they announce is done.
    RunnerFlushed = "runner::flushed",
    /// Records are about to be synced.
    RunnerSync = "runner::sync",
    /// Records are on disk; nobody was told.
    RunnerSynced = "runner::synced",
    /// A coordinator's stream is about to be opened and locked.
    LaunchStream = "launch::stream",
    /// The stream is locked; the coordinator is about to be forked.
    LaunchLocked = "launch::locked",
    /// The coordinator was forked.
    LaunchForked = "launch::forked",
    /// SIGTERM is about to be sent to a run.
    RunnerTerminate = "runner::terminate",
    /// SIGTERM was sent, and not recorded.
    RunnerTerminated = "runner::terminated",
    /// A run that is doomed is about to be killed.
    RunnerDoom = "runner::doom",
    /// A run was killed.
    RunnerDoomed = "runner::doomed",
    /// The task is recorded as paused; its cgroup is about to be frozen.
    RunnerFreeze = "runner::freeze",
    /// The cgroup was told to freeze; nobody was told.
    RunnerFrozen = "runner::frozen",
    /// The task is recorded as going on; its cgroup is about to be thawed.
    RunnerThaw = "runner::thaw",
    /// The cgroup was thawed; nobody was told.
    RunnerThawed = "runner::thawed",
    /// New limits are recorded and about to be enforced.
    RunnerLimit = "runner::limit",
    /// New limits are enforced; nobody was told.
    RunnerLimited = "runner::limited",
    /// A coordinator has died; its leaf is about to be killed.
    RunnerLost = "runner::lost",
    /// The leaf of a lost run is empty; LOST is not recorded.
    RunnerLostEmpty = "runner::lost-empty",
    /// A coordinator's records were read and not copied.
    RunnerAbsorb = "runner::absorb",
    /// No run is live; the task's cgroup is about to be removed.
    RunnerEmpty = "runner::empty",
    /// The terminal state is on disk; the task is still in `active`.
    RunnerTerminal = "runner::terminal",
    /// The task is in `finished`; cleaning up is not done.
    RunnerFinished = "runner::finished",
    /// The coordinator runs, and has recorded nothing.
    CoordinatorStart = "coordinator::start",
    /// FORKED is about to be written.
    CoordinatorFlushForked = "coordinator::flush-forked",
    /// FORKED was written; nothing was started.
    CoordinatorForked = "coordinator::forked",
    /// The leaf is there.
    CoordinatorLeaf = "coordinator::leaf",
    /// Sandbox and logs are open.
    CoordinatorOutput = "coordinator::output",
    /// The run was started; RUNNING is not recorded.
    CoordinatorStarted = "coordinator::started",
    /// RUNNING is about to be written.
    CoordinatorFlushRunning = "coordinator::flush-running",
    /// RUNNING was written; the runner was not nudged.
    CoordinatorRunning = "coordinator::running",
    /// The first process has ended; what it left behind still lives.
    CoordinatorExited = "coordinator::exited",
    /// The leaf is empty; the end is not recorded.
    CoordinatorEmpty = "coordinator::empty",
    /// The end is about to be written.
    CoordinatorFlushEnded = "coordinator::flush-ended",
    /// The end was written; the coordinator still lives.
    CoordinatorEnded = "coordinator::ended",
    /// Something has happened to tasks that the daemon follows; it has not looked.
    DaemonFollow = "daemon::follow",
    /// A task that is over is locked, to be removed.
    RemoveLocked = "remove::locked",
    /// The files of its sandbox are erased; its logs are not.
    RemoveData = "remove::data",
    /// Its logs are erased; its sandbox is still there.
    RemoveLogs = "remove::logs",
    /// Its sandbox is removed; nothing of its checkpoint is.
    RemoveSandbox = "remove::sandbox",
    /// Its checkpoint is removed but for the runner's stream; it is still among the finished ones.
    RemoveStreams = "remove::streams",
    /// It is not among the finished ones any more; its stream is there.
    RemoveFinished = "remove::finished",
    /// Its stream is removed; the directory is there.
    RemoveStream = "remove::stream",
}

/// Passes `point`: `Ok` unless a test armed it with an errno.
///
/// # Errors
///
/// The errno that the test chose.
#[cfg(not(debug_assertions))]
#[inline(always)]
pub fn hit(_point: Failpoint) -> io::Result<()> {
    Ok(())
}

/// Passes `point`: `Ok` unless a test armed it with an errno.
///
/// # Errors
///
/// The errno that the test chose.
#[cfg(debug_assertions)]
pub fn hit(point: Failpoint) -> io::Result<()> {
    armed::hit(point)
}

#[cfg(debug_assertions)]
mod armed {
    use std::fs::{OpenOptions, remove_file};
    use std::hash::{BuildHasher, RandomState};
    use std::io::{self, Write};
    use std::path::{Path, PathBuf};
    use std::sync::OnceLock;
    use std::time::Duration;

    use nix::errno::Errno;
    use nix::sys::signal::{Signal, raise};

    use super::Failpoint;

    struct Setup {
        delay: Option<Duration>,
        trace: Option<PathBuf>,
        armed: Option<Armed>,
    }

    struct Armed {
        name: String,
        action: String,
        token: PathBuf,
    }

    static SETUP: OnceLock<Setup> = OnceLock::new();

    fn setup() -> Setup {
        let armed = std::env::var("DEWAR_FAILPOINT").ok().and_then(|text| {
            let (point, token) = text.split_once('@')?;
            let (name, action) = point.split_once('=')?;
            Some(Armed { name: name.into(), action: action.into(), token: token.into() })
        });
        let delay = std::env::var("DEWAR_FAILPOINT_DELAY").ok().and_then(|text| text.parse().ok());
        Setup {
            delay: delay.map(Duration::from_millis),
            trace: std::env::var_os("DEWAR_FAILPOINT_TRACE").map(PathBuf::from),
            armed,
        }
    }

    pub(super) fn hit(point: Failpoint) -> io::Result<()> {
        let setup = SETUP.get_or_init(setup);
        if let Some(most) = setup.delay {
            // Its seed differs from one to the next.
            let random = RandomState::new().hash_one(());
            std::thread::sleep(most.mul_f64(random as f64 / u64::MAX as f64));
        }
        if let Some(trace) = &setup.trace {
            let line = format!("{}\n", point.name());
            let file = OpenOptions::new().append(true).create(true).open(trace);
            file.and_then(|mut file| file.write_all(line.as_bytes()))?;
        }
        match &setup.armed {
            Some(armed) if armed.name == point.name() => armed.pass(),
            _ => Ok(()),
        }
    }

    impl Armed {
        fn pass(&self) -> io::Result<()> {
            match self.action.strip_suffix('*') {
                Some(action) if self.token.exists() => act(action),
                None if is_due(&self.token)? => act(&self.action),
                _ => Ok(()),
            }
        }
    }

    /// Takes a byte of the token, or the token itself. Under a lock: coordinators pass points side by side.
    fn is_due(token: &Path) -> io::Result<bool> {
        let file = match OpenOptions::new().write(true).open(token) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
            opened => opened?,
        };
        file.lock()?;
        match file.metadata()?.len() {
            0 => Ok(remove_file(token).is_ok()),
            passes => file.set_len(passes - 1).map(|()| false),
        }
    }

    fn act(action: &str) -> io::Result<()> {
        match action {
            "kill" => Ok(raise(Signal::SIGKILL)?),
            "stop" => Ok(raise(Signal::SIGSTOP)?),
            "panic" => panic!("a failpoint was armed with a panic"),
            errno => Err(io::Error::from_raw_os_error(named(errno) as i32)),
        }
    }

    fn named(name: &str) -> Errno {
        match name {
            "ENOSPC" => Errno::ENOSPC,
            "EMFILE" => Errno::EMFILE,
            "ENOMEM" => Errno::ENOMEM,
            _ => Errno::EIO,
        }
    }
}
