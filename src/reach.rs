//! Reaches the runner of a task: one that lives is followed or asked; where none does, one is started.
#![allow(clippy::disallowed_methods, reason = "starts runners, waits for one to listen")]

use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use crate::cgroup::{self, Base, FindError};
use crate::checkpoint::{IoError, ReadError, Root};
use crate::control::{self, ControlError, Request};
use crate::launch::{self, Console, LaunchError, Started, Waiting};
use crate::observe::{self, ObserveError, Observed};
use crate::proto::{Containment, ControlRequest, Launch};
use crate::state::Phase;
use crate::sys::socket;
use crate::task::TaskId;
use std::time::Duration;

/// Pause between two tries to reach a runner that holds its task and does not listen yet.
const PAUSE: Duration = Duration::from_millis(2);
/// Times that a runner is started to hear a request.
const STARTS: u32 = 3;
/// Tries, a few seconds in all.
const TRIES: u32 = 1500;

/// Why a runner was not reached.
#[derive(Debug, thiserror::Error)]
pub enum ReachError {
    /// It was asked, and did not do it.
    #[error(transparent)]
    Control(#[from] ControlError),
    /// It could not be started.
    #[error(transparent)]
    Launch(#[from] LaunchError),
    /// Its task cannot be read.
    #[error(transparent)]
    Observe(#[from] ObserveError),
    /// There is no cgroup to start it in.
    #[error(transparent)]
    Base(#[from] FindError),
    /// A call failed.
    #[error(transparent)]
    Io(#[from] IoError),
}

/// A runner that is followed.
#[derive(Debug)]
pub struct Followed {
    /// A byte for each turn that recorded something; at its end the runner is gone.
    pub nudges: OwnedFd,
    /// The runner, if it is ours.
    pub pidfd: Option<OwnedFd>,
}

impl From<Started> for Followed {
    fn from(started: Started) -> Self {
        Self { nudges: started.nudges, pidfd: Some(started.pidfd) }
    }
}

/// The tasks whose runners are to be reached.
#[derive(Clone, Copy)]
pub struct Reach<'a> {
    /// Their root.
    pub root: &'a Root,
    /// Finds the base for a task whose own one is gone.
    pub base: &'a dyn Fn() -> Result<Base, FindError>,
    /// The user on whose behalf something is asked, which the runner records: root may speak for others. `None`: for ourselves.
    pub by: Option<u32>,
}

impl Reach<'_> {
    /// Follows the runner of a task, and starts one where none lives.
    ///
    /// # Errors
    ///
    /// [`ReachError`].
    pub fn follow(&self, id: &TaskId, console: Console) -> Result<Followed, ReachError> {
        match self.attend(id) {
            Ok(nudges) => Ok(Followed { nudges, pidfd: None }),
            Err(ControlError::Absent(_)) => self.start(id, console),
            Err(error) => Err(error.into()),
        }
    }

    /// Follows the runner of a task, and starts none: a byte for each turn that recorded something, and the end of the runner.
    ///
    /// # Errors
    ///
    /// [`ControlError`].
    pub fn attend(&self, id: &TaskId) -> Result<OwnedFd, ControlError> {
        self.patiently(id, || control::follow(self.root, id))
    }

    /// Starts a runner. If another one has the lead, this one leaves.
    ///
    /// # Errors
    ///
    /// [`ReachError`].
    pub fn start(&self, id: &TaskId, console: Console) -> Result<Followed, ReachError> {
        Ok(self.prepare(id, console)?.go()?.into())
    }

    /// Asks the runner of a task to do something, or one that is started for it and hears it first of all. Tells which limits
    /// the kernel rounded.
    ///
    /// # Errors
    ///
    /// [`ReachError`].
    pub fn order(&self, id: &TaskId, request: &Request) -> Result<Vec<String>, ReachError> {
        let root = self.root;
        let mut answer = Err(ControlError::Absent(id.clone()));
        for _ in 0..STARTS {
            answer = self.patiently(id, || control::order(root, id, request.clone(), self.by));
            if !matches!(answer, Err(ControlError::Absent(_))) {
                break;
            }
            let (ours, theirs) =
                socket::pair().map_err(|error| ControlError::Io { task: id.clone(), error })?;
            let request = ControlRequest { request: Some(request.clone()) };
            self.prepare(id, Console::Log)?.go_with(&request, theirs.as_fd(), self.by)?;
            drop(theirs);
            answer = control::answer(root, id, ours);
            // Another runner was faster, say: that one is asked then.
            if !matches!(answer, Err(ControlError::Unanswered(_))) {
                break;
            }
        }
        Ok(answer?)
    }

    /// Asks for the end of a task; of one that is over, or ends meanwhile, nothing is asked.
    ///
    /// # Errors
    ///
    /// [`ReachError`].
    pub fn end(&self, id: &TaskId, kill: &Request) -> Result<(), ReachError> {
        match self.order(id, kill) {
            Ok(_) => Ok(()),
            Err(error) => match self.is_over(id) {
                Ok(true) => Ok(()),
                _ => Err(error),
            },
        }
    }

    /// Whether a task is over.
    ///
    /// # Errors
    ///
    /// [`ObserveError`].
    pub fn is_over(&self, id: &TaskId) -> Result<bool, ObserveError> {
        let mut observed = Observed::open(self.root, id)?;
        observed.advance(|_, _| {})?;
        let phase = observed.replay().and_then(|replay| replay.state().phase());
        Ok(phase.is_some_and(Phase::is_terminal))
    }

    /// Asks again while a runner holds the task and does not listen yet.
    fn patiently<T>(
        &self,
        id: &TaskId,
        ask: impl Fn() -> Result<T, ControlError>,
    ) -> Result<T, ControlError> {
        for _ in 0..TRIES {
            match ask() {
                Err(ControlError::Absent(_))
                    if matches!(observe::runner_pid(self.root, id), Ok(Some(_))) =>
                {
                    std::thread::sleep(PAUSE);
                }
                answer => return answer,
            }
        }
        ask()
    }

    /// Starts a runner, in the base that the task was run in before; it waits for the word to go.
    fn prepare(&self, id: &TaskId, console: Console) -> Result<Waiting, ReachError> {
        let observed = match Observed::open(self.root, id) {
            Err(ObserveError::Read(ReadError::Missing { .. })) => None,
            observed => {
                let mut observed = observed?;
                observed.advance(|_, _| {})?;
                Some(observed)
            }
        };
        let Some(replay) = observed.as_ref().and_then(Observed::replay) else {
            launch::take_back_hollow(self.root, id)?;
            return Err(LaunchError::Unknown(id.clone()).into());
        };
        let cgroup = replay.state().leader().and_then(|leader| leader.cgroup.as_deref());
        let base = self.base_of(replay.launch(), cgroup)?;
        Ok(launch::prepare_runner(self.root, id, base.as_ref(), console)?)
    }

    /// The base that a task was run in before, if it can still be had; else the one that is found here.
    fn base_of(&self, launch: &Launch, cgroup: Option<&str>) -> Result<Option<Base>, FindError> {
        if launch.containment() == Containment::None {
            return Ok(None);
        }
        // `<base>/tasks/<id>`.
        let before = cgroup.and_then(|path| Path::new(path).ancestors().nth(2));
        if let Some(before) = before
            && let Ok(base) = cgroup::find(&cgroup::Options { explicit: Some(before.to_owned()) })
        {
            return Ok(Some(base));
        }
        (self.base)().map(Some)
    }
}
