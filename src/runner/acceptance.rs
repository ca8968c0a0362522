//! That the task is on disk, before anything is recorded that somebody may rely on.
//!
//! A runner begins while its acceptance is still being synced: whoever accepts the task tells nobody before that is done, but
//! what the runner records is seen by all. So the runner holds back ends and accepted requests until it was told
//! that the acceptance is durable, or has made it so: a record that must last (`state::must_last`) is never in the
//! stream of a task that a power cut may take.

use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use super::{Runner, RunnerError};
use crate::checkpoint::paths::Place;
use crate::checkpoint::{IoError, tasks};
use crate::failpoint::{Failpoint, hit};
use crate::launch;
use crate::sys::pidfd;

/// How long whoever has just accepted the task is left to its syncs: to do them as well would take longer. It may have been stopped.
const SYNCING: Duration = Duration::from_millis(100);

/// What the acceptance of the task is known by.
pub(super) struct Acceptance {
    /// Where whoever started the runner says that it is on disk. `None`: nobody will.
    word: Option<OwnedFd>,
    /// How long that is waited for.
    wait: Duration,
}

impl Acceptance {
    /// `follower` is the descriptor that the runner was started with; `is_fresh`: whoever started it is about to say so.
    pub(super) fn new(follower: Option<&OwnedFd>, is_fresh: bool) -> Self {
        // Without a descriptor of its own it is synced here.
        let word = follower.and_then(|follower| follower.try_clone().ok());
        Self { word, wait: if is_fresh { SYNCING } else { Duration::ZERO } }
    }

    fn is_durable(&self) -> bool {
        self.word.as_ref().is_some_and(|word| launch::is_confirmed(word.as_fd(), self.wait))
    }
}

impl Runner {
    /// Makes sure, before the first record that must last is written, that the acceptance of the task is on disk.
    ///
    /// A sync that failed is final, as for the stream. Nobody was told of the task, and nobody can be: nothing of it is left to
    /// run.
    ///
    /// # Errors
    ///
    /// [`RunnerError::Uncertain`] is final; another is tried again.
    pub(super) fn rely_on_acceptance(&mut self) -> Result<(), RunnerError> {
        let Some(acceptance) = self.acceptance.as_ref().filter(|_| self.must_last) else {
            return Ok(());
        };
        if !acceptance.is_durable() {
            let Self { root, task, writer, .. } = self;
            let path = root.tasks(Place::Active);
            let durable = hit(Failpoint::RunnerAcceptance)
                .map_err(|source| IoError { call: "fsync", path, source })
                .and_then(|()| tasks::make_durable(root, task, || writer.sync_written()));
            match durable {
                Err(error) if error.is_of_sync() => {
                    self.abandon();
                    return Err(RunnerError::Uncertain(error));
                }
                durable => durable?,
            }
        }
        self.acceptance = None;
        Ok(())
    }

    /// Kills whatever lives of the task. Coordinators go first, so that they start nothing behind it; the next runner finds
    /// their runs LOST.
    fn abandon(&self) {
        for (&process, live) in &self.live {
            if let Some(coordinator) = &live.coordinator {
                let _ = pidfd::send_signal(coordinator.pidfd.as_fd(), libc::SIGKILL);
            }
            self.signal_first(process, libc::SIGKILL);
        }
        if let Some(cgroup) = &self.cgroup {
            let _ = cgroup.kill();
        }
    }
}
