//! Signals that somebody sends to the runs of a live task.
//!
//! Nothing of it is recorded: what a signal does to a run is in the record of its end, and one that was sent twice was asked for
//! twice. A signal to a paused task arrives at its end, but for SIGKILL.

use std::os::fd::{AsFd, OwnedFd};

use nix::errno::Errno;
use nix::unistd::Pid;

use super::control::Reply;
use super::{Runner, RunnerError};
use crate::cgroup::{CgroupError, Leaf};
use crate::proto::SignalTask;
use crate::state::RunState;
use crate::sys::pidfd;

/// Why a signal was not sent.
enum Unsent {
    /// What is asked makes no sense, or there is nobody to get it.
    Refused(String),
    /// The runner cannot go on.
    Failed(RunnerError),
}

impl From<RunnerError> for Unsent {
    fn from(error: RunnerError) -> Self {
        Self::Failed(error)
    }
}

impl From<CgroupError> for Unsent {
    fn from(error: CgroupError) -> Self {
        match error {
            CgroupError::Sys { errno: Errno::EPERM, .. } => Self::Refused(
                "a process belongs to another user; all others got the signal".to_owned(),
            ),
            error => Self::Failed(error.into()),
        }
    }
}

impl Runner {
    /// Sends a signal to the live runs that are meant, and answers.
    pub(super) fn signal(&mut self, asked: &SignalTask, reply: Reply) -> Result<(), RunnerError> {
        match self.try_signal(asked) {
            Ok(()) => reply.send(""),
            Err(Unsent::Refused(why)) => reply.send(&why),
            Err(Unsent::Failed(error)) => return Err(error),
        }
        Ok(())
    }

    fn try_signal(&self, asked: &SignalTask) -> Result<(), Unsent> {
        let refused = |why: String| Err(Unsent::Refused(why));
        let SignalTask { process, signal, all } = asked;
        if !(1..=64).contains(signal) {
            return refused(format!("{signal} is no signal: expected 1 to 64"));
        }
        if *all && self.cgroup.is_none() {
            let why = "only the first process of a run is known: it runs with --cgroup none";
            return refused(why.to_owned());
        }
        let of = process.as_ref().map(|name| self.index_of(name)).transpose();
        let of = of.map_err(Unsent::Refused)?;
        let running: Vec<(u32, u32)> = self
            .state
            .live_runs()
            .filter(|&(index, _, run)| {
                run.state == RunState::Running
                    && of.is_none_or(|of| of == index)
                    // What lost its coordinator is killed, and after a boot its number is of somebody else.
                    && self.live.get(&index).is_some_and(|live| live.lost.is_none())
            })
            .map(|(index, number, _)| (index, number))
            .collect();
        let mut sent = false;
        for (index, number) in running {
            sent |= match all {
                true => self.signal_all(index, number, *signal)?,
                false => self.signal_leader(index, number, *signal)?,
            };
        }
        match (sent, process) {
            (true, _) => Ok(()),
            (false, None) => refused("none of its processes runs".to_owned()),
            (false, Some(name)) => refused(format!("its process {name:?} does not run")),
        }
    }

    /// Signals every process of a run; false if there is none.
    fn signal_all(&self, process: u32, run: u32, signal: i32) -> Result<bool, Unsent> {
        let Some(leaf) = self.leaf_of(process, run)? else { return Ok(false) };
        if signal == libc::SIGKILL {
            let is_populated = leaf.is_populated()?;
            leaf.kill()?;
            return Ok(is_populated);
        }
        Ok(leaf.signal(signal)? > 0)
    }

    /// Signals the first process of a run; false if it has ended. It is known by its start time, and gets nothing if it is in
    /// another cgroup than its own: whoever could move it there could have made it anybody's.
    fn signal_leader(&self, process: u32, run: u32, signal: i32) -> Result<bool, Unsent> {
        let Some((pid, pidfd)) = self.leader(process) else { return Ok(false) };
        if self.cgroup.is_some() {
            let leaf = self.leaf_of(process, run)?;
            let is_in =
                leaf.map(|leaf| leaf.pids()).transpose()?.is_some_and(|of| of.contains(&pid));
            if !is_in {
                return Ok(false);
            }
        }
        match pidfd::send_signal(pidfd.as_fd(), signal) {
            Ok(()) => Ok(true),
            Err(Errno::ESRCH) => Ok(false),
            Err(errno) => {
                let name = self.name(process);
                Err(Unsent::Refused(format!("its process {name:?} cannot be signalled: {errno}")))
            }
        }
    }

    /// The first process of a live run, if it is no other that has its number.
    fn leader(&self, process: u32) -> Option<(Pid, OwnedFd)> {
        let (_, run) = self.state.processes()[process as usize].live_run()?;
        let id = pidfd::ProcessId::from(run.pid?);
        let pidfd = id.open().ok().flatten()?;
        Some((Pid::from_raw(id.pid), pidfd))
    }

    fn leaf_of(&self, process: u32, run: u32) -> Result<Option<Leaf>, RunnerError> {
        let leaf = self.cgroup.as_ref().map(|cgroup| cgroup.open_leaf(self.name(process), run));
        Ok(leaf.transpose()?.flatten())
    }
}
