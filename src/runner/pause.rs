//! A task that stands still: its cgroup is frozen, and no time passes for it.
//!
//! What the state says is made so by one act, [`Act::Freezer`], after its record is on disk. A runner that takes over does it
//! again, so a crash between record and act is made good. Coordinators are in no cgroup of the task: they go on
//! and record what ends. While the task is paused
//!
//! - nothing is launched: what was about to be is looked for anew at the end of the pause;
//! - no coordinator is late: the run that it is starting may be frozen at birth;
//! - what is killed by others, or for want of memory, dies and is recorded.
//!
//! A request for the end of the task ends the pause first, so that SIGTERM is heard.

use super::attach::START_BACKSTOP;
use super::control::Reply;
use super::perform::{Act, DOOM_BACKSTOP};
use super::{Runner, RunnerError, doing};
use crate::failpoint::{Failpoint, hit};
use crate::state::Event;
use crate::sys::clock;
use crate::sys::socket::Peer;

/// Time for all processes of the task to stand still before whoever asked for it is told that they do not.
const PATIENCE: u64 = 5_000_000_000;

/// Somebody who waits for the task to stand still, or to go on.
pub(super) struct Pausing {
    reply: Reply,
    /// Once the act is done: until when it is waited for, CLOCK_BOOTTIME in nanoseconds.
    until: Option<u64>,
}

impl Runner {
    /// Somebody asks for the task to stand still. It may do so already.
    pub(super) fn pause(&mut self, by: Peer, reply: Reply) -> Result<(), RunnerError> {
        if self.cgroup.is_none() {
            reply.send("it has no cgroup that could be frozen: it runs with --cgroup none");
            return Ok(());
        }
        if self.state.pause().is_none() {
            self.record(Event::Paused { by_uid: by.uid, by_pid: by.pid }, clock::now())?;
            self.sync_due = true;
            self.retries.retain(|(_, act)| !matches!(act, Act::Launch(_)));
        }
        self.wait_for_freezer(reply);
        Ok(())
    }

    /// Somebody asks for the task to go on. It may do so already.
    pub(super) fn resume(&mut self, by: Peer, reply: Reply) -> Result<(), RunnerError> {
        if self.state.pause().is_some() {
            self.record(Event::Resumed { by_uid: by.uid, by_pid: by.pid }, clock::now())?;
            self.sync_due = true;
            self.go_on();
        }
        self.wait_for_freezer(reply);
        Ok(())
    }

    fn wait_for_freezer(&mut self, reply: Reply) {
        self.pausing.push(Pausing { reply, until: None });
        self.acts.push(Act::Freezer);
    }

    /// The end of the pause is recorded: what belongs to it is done once that is on disk.
    pub(super) fn go_on(&mut self) {
        self.resuming = true;
        self.acts.push(Act::Freezer);
    }

    /// An earlier runner may have died between the record of a pause, or of its end, and the act.
    pub(super) fn attach_pause(&mut self) -> Result<(), RunnerError> {
        let Some(cgroup) = &self.cgroup else { return Ok(()) };
        if self.state.pause().is_some() || cgroup.is_to_freeze()? {
            self.acts.push(Act::Freezer);
        }
        Ok(())
    }

    /// Makes the cgroup of the task as the state says.
    pub(super) fn set_freezer(&mut self) -> Result<(), RunnerError> {
        let passing = doing("pass a failpoint");
        match (&self.cgroup, self.state.pause()) {
            (Some(cgroup), Some(_)) => {
                hit(Failpoint::RunnerFreeze).map_err(&passing)?;
                cgroup.freeze()?;
                hit(Failpoint::RunnerFrozen).map_err(&passing)?;
            }
            (Some(cgroup), None) => {
                hit(Failpoint::RunnerThaw).map_err(&passing)?;
                cgroup.thaw()?;
                hit(Failpoint::RunnerThawed).map_err(&passing)?;
                self.look_for_runs()?;
            }
            (None, _) => {}
        }
        let until = clock::boot_nanos().saturating_add(PATIENCE);
        for pausing in &mut self.pausing {
            pausing.until.get_or_insert(until);
        }
        self.answer_pausing()
    }

    /// After a pause: runs that were about to be launched are, and coordinators get their whole time again.
    fn look_for_runs(&mut self) -> Result<(), RunnerError> {
        if !std::mem::take(&mut self.resuming) {
            return Ok(());
        }
        let live: Vec<u32> = self.live.keys().copied().collect();
        for process in live {
            match self.live.get(&process) {
                Some(live) if live.lost.is_some() => {}
                Some(live) if live.coordinator.is_none() => self.attach_run(process)?,
                Some(_) if self.starting.contains(&process) => {
                    let run = self.state.processes()[process as usize].live_run();
                    let is_doomed = run.is_some_and(|(_, run)| run.doomed.is_some());
                    self.expect(process, if is_doomed { DOOM_BACKSTOP } else { START_BACKSTOP });
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// Answers those whose wish is fulfilled, and those who have waited long enough.
    pub(super) fn answer_pausing(&mut self) -> Result<(), RunnerError> {
        if self.pausing.iter().all(|pausing| pausing.until.is_none()) {
            return Ok(());
        }
        let is_done = match &self.cgroup {
            Some(cgroup) if self.state.pause().is_some() => cgroup.is_frozen()?,
            _ => true,
        };
        let now = clock::boot_nanos();
        let is_answered =
            |pausing: &mut Pausing| pausing.until.is_some_and(|until| is_done || until <= now);
        for Pausing { reply, .. } in self.pausing.extract_if(.., is_answered) {
            match is_done {
                true => reply.send(""),
                // The kernel freezes what sleeps uninterruptibly once it wakes.
                false => reply.send_unfinished("it is paused, but not all of it stands still yet"),
            }
        }
        if !self.pausing.is_empty() {
            self.look_again();
        }
        Ok(())
    }
}
