//! Limits that change while the task runs.
//!
//! A change is tried out first, as the limits of a task are before it is accepted: on a cgroup that is made for that. What this
//! host cannot enforce is refused then, and nothing is recorded. After that the order is as ever: the new limits are
//! recorded and synced, then enforced on what lives; later runs, and later runners, have them from the record. Should the kernel
//! refuse then what it took at the trial, the files get back what they held, a record says that the limits are those of
//! before, and whoever asked is told why.
//!
//! A runner that takes over enforces again what was changed: the one before may have died between record and act. A run that was
//! being started while its limits changed gets them once it runs.
//!
//! The files are written by a child ([`Enforcer`]), one change after the other; what is asked for meanwhile is considered when all
//! that is recorded has been enforced. The end of the task does not wait for that.

use std::os::fd::AsFd;

use super::control::Reply;
use super::enforcer::Enforcer;
use super::perform::Act;
use super::sources::Wake;
use super::{OVER, Runner, RunnerError, doing};
use crate::causes::{chain, say};
use crate::cgroup::{self, Cgroup, CgroupError, Held, Rounded, Unenforceable, fields};
use crate::failpoint::{Failpoint, hit};
use crate::proto::UpdateLimits;
use crate::state::Event;
use crate::sys::clock;
use crate::sys::socket::Peer;
use crate::task::change::path;
use crate::task::{Graph, ProcessName, ProcessSpec, Resources, TaskSpec, Violation, spec};
use crate::view;

/// Time for the kernel to take memory back before whoever asked for that is told that it is still at it, nanoseconds.
const PATIENCE: u64 = 5_000_000_000;

/// A change of limits that is recorded.
pub(super) struct Change {
    /// Index of the process; `None`: the task as a whole.
    process: Option<u32>,
    then: Then,
}

/// What is to be done about it.
enum Then {
    /// The recorded limits are enforced; nobody waits for that.
    Enforce,
    /// They are enforced, and somebody asked for that.
    Answer(Box<Asked>),
    /// The files get back what they held: the limits of before are recorded again.
    PutBack { held: Held, why: String, reply: Option<Reply> },
}

/// Somebody who asked for other limits.
struct Asked {
    by: Peer,
    /// Until they are answered.
    reply: Option<Reply>,
    /// What the kernel rounds of what was asked for.
    rounded: Vec<String>,
    /// All limits of before, and what the kernel rounded of them.
    before: (Box<Resources>, Vec<String>),
}

/// A request that waits for the changes before it.
pub(super) struct Waiting {
    asked: Box<UpdateLimits>,
    by: Peer,
    reply: Reply,
}

/// A change that is being made.
pub(super) struct Making {
    enforcer: Enforcer,
    change: Change,
    /// What the files held before.
    held: Result<Option<Held>, String>,
    /// When whoever waits is told that it is not finished: CLOCK_BOOTTIME in nanoseconds.
    until: Option<u64>,
}

/// A change that may be made.
struct Wanted {
    process: Option<u32>,
    /// All limits after it.
    after: Box<Resources>,
    /// What the kernel rounds of what was asked for.
    rounded: Vec<String>,
    /// What it rounds of all.
    all_rounded: Vec<String>,
}

impl Runner {
    /// Somebody asks for other limits.
    pub(super) fn update(
        &mut self,
        asked: Box<UpdateLimits>,
        by: Peer,
        reply: Reply,
    ) -> Result<(), RunnerError> {
        if self.making.is_some() || !self.changes.is_empty() {
            self.updates.push_back(Waiting { asked, by, reply });
            return Ok(());
        }
        let Wanted { process, after, rounded, all_rounded } = match self.consider(&asked) {
            Ok(Some(wanted)) => wanted,
            Ok(None) => {
                self.answer_once_written(reply);
                return Ok(());
            }
            Err(why) => {
                reply.send(&why);
                return Ok(());
            }
        };
        let before = (Box::new(self.limits_of(process)), self.rounded_of(process));
        self.record_limits(process, after, all_rounded, by, false)?;
        let asked = Asked { by, reply: Some(reply), rounded, before };
        self.push_change(process, Then::Answer(Box::new(asked)));
        Ok(())
    }

    fn record_limits(
        &mut self,
        process: Option<u32>,
        resources: Box<Resources>,
        rounded: Vec<String>,
        by: Peer,
        put_back: bool,
    ) -> Result<(), RunnerError> {
        let (by_uid, by_pid) = (by.uid, by.pid);
        let event = Event::Limited { process, resources, rounded, by_uid, by_pid, put_back };
        self.record(event, clock::now())?;
        self.sync_due = true;
        Ok(())
    }

    fn push_change(&mut self, process: Option<u32>, then: Then) {
        self.changes.push_back(Change { process, then });
        self.acts.push(Act::Limit);
    }

    /// Nothing is to be done; but what makes it so may not be on disk yet.
    fn answer_once_written(&mut self, reply: Reply) {
        if self.writer.is_pending() {
            self.replies.push(reply);
        } else {
            reply.send("");
        }
    }

    /// The change that is asked for; `None` if it changes nothing. An error says why it cannot be made.
    fn consider(&self, asked: &UpdateLimits) -> Result<Option<Wanted>, String> {
        let Some(task) = &self.cgroup else {
            let why = "it has no cgroup, so no limit is enforced: it runs with --cgroup none";
            return Err(why.to_owned());
        };
        let process = asked.process.as_deref().map(|name| self.index_of(name)).transpose()?;
        let change = asked.change.clone().unwrap_or_default();
        let change = Resources::from_proto(&change, "resources").map_err(told)?;
        let before = self.limits_of(process);
        let after = Box::new(before.changed(&change).map_err(told)?);
        if *after == before && !self.has_lost(process, &before) {
            return Ok(None);
        }
        let rounded = try_out(task, process, &change)?;
        if !asked.force {
            self.refuse_less_than_in_use(process, &change)?;
        }
        let mut all_rounded = self.rounded_of(process);
        let changed = fields(&change, &path(process));
        all_rounded.retain(|line| !changed.iter().any(|field| is_about(line, field)));
        all_rounded.extend(rounded.iter().cloned());
        Ok(Some(Wanted { process, after, rounded, all_rounded }))
    }

    /// A limit of memory below what is in use is one by which the kernel may kill at once.
    fn refuse_less_than_in_use(
        &self,
        process: Option<u32>,
        change: &Resources,
    ) -> Result<(), String> {
        let Some(ram) = change.ram else { return Ok(()) };
        let target = self.target(process).map_err(|error| chain(&error))?;
        match target.as_ref().and_then(Cgroup::memory_in_use) {
            Some(in_use) if ram < in_use => Err(format!(
                "{}.ram: {ram} bytes are less than the {in_use} that are in use; with --force the kernel takes back what it \
                 can, and kills where that is not enough",
                path(process)
            )),
            _ => Ok(()),
        }
    }

    /// Whether limits that were enforced are not in force any more, so that to ask for the same is to ask for something.
    fn has_lost(&self, process: Option<u32>, limits: &Resources) -> bool {
        let target = self.target(process).ok().flatten();
        let lost = target.and_then(|of| of.lost(limits, &path(process)).ok()).unwrap_or_default();
        lost.iter().any(|limit| !self.launch.unenforced.contains(&limit.field))
    }

    pub(super) fn index_of(&self, name: &str) -> Result<u32, String> {
        let processes = &self.state.spec().processes;
        let found = processes.iter().position(|process| process.name.as_str() == name);
        found.map(|index| index as u32).ok_or_else(|| format!("it has no process {name:?}"))
    }

    fn limits_of(&self, process: Option<u32>) -> Resources {
        let spec = self.state.spec();
        let limits = match process {
            None => spec.resources.as_ref(),
            Some(index) => spec.processes[index as usize].resources.as_deref(),
        };
        limits.cloned().unwrap_or_default()
    }

    fn rounded_of(&self, process: Option<u32>) -> Vec<String> {
        view::rounded(&self.launch, &self.state, process)
    }

    /// The cgroup that limits are enforced on: `None` for a process of which no run lives.
    fn target(&self, process: Option<u32>) -> Result<Option<Cgroup>, CgroupError> {
        let Some(task) = &self.cgroup else { return Ok(None) };
        let Some(process) = process else { return task.reopen().map(Some) };
        match self.state.processes()[process as usize].live_run() {
            Some((run, _)) => task.open_leaf(self.name(process), run),
            None => Ok(None),
        }
    }

    /// An earlier runner may have died between the record of a change and the change.
    pub(super) fn attach_limits(&mut self) {
        let limited: Vec<_> = self.state.limited().keys().copied().collect();
        for process in limited {
            self.push_change(process, Then::Enforce);
        }
    }

    /// A run runs: its limits may have changed after its coordinator was forked.
    pub(super) fn limit_started(&mut self, process: u32) {
        if self.state.limited().contains_key(&Some(process)) {
            self.push_change(Some(process), Then::Enforce);
        }
    }

    /// Begins to make the next change, if none is being made.
    pub(super) fn make_change(&mut self) -> Result<(), RunnerError> {
        if self.making.is_some() {
            return Ok(());
        }
        let Some(change) = self.changes.pop_front() else { return Ok(()) };
        let Some(task) = &self.cgroup else { return Ok(()) };
        hit(Failpoint::RunnerLimit).map_err(doing("pass a failpoint"))?;
        let limits = self.limits_of(change.process);
        let held = match change.then {
            Then::PutBack { .. } => Ok(None),
            _ => self.hold(change.process, &limits),
        };
        let act = || match &change.then {
            Then::PutBack { held, .. } => held.put_back().map_err(|error| chain(&error)),
            _ => self.enforce(change.process, &limits),
        };
        let of = match &change.then {
            Then::PutBack { held, .. } => held.as_fd(),
            _ => task.as_fd(),
        };
        match Enforcer::fork(of, act) {
            Ok(enforcer) => {
                self.sources
                    .add(&enforcer, Wake::Limits)
                    .map_err(doing("watch a change of limits"))?;
                let until = Some(clock::boot_nanos().saturating_add(PATIENCE));
                self.making = Some(Making { enforcer, change, held, until });
                Ok(())
            }
            Err(error) => self.made(change, held, Err(format!("fork: {error}"))),
        }
    }

    /// The change that was being made is made, or could not be.
    pub(super) fn change_made(&mut self) -> Result<(), RunnerError> {
        let Some(Making { enforcer, change, held, .. }) = self.making.take() else {
            return Ok(());
        };
        self.sources.remove(&enforcer);
        let enforced = enforcer.finish();
        hit(Failpoint::RunnerLimited).map_err(doing("pass a failpoint"))?;
        self.made(change, held, enforced)
    }

    fn made(
        &mut self,
        Change { process, then }: Change,
        held: Result<Option<Held>, String>,
        enforced: Result<(), String>,
    ) -> Result<(), RunnerError> {
        match (then, enforced) {
            (Then::PutBack { why, reply, .. }, put_back) => self.answer(
                reply,
                &match put_back {
                    Ok(()) => format!("{why}; the limits are as they were before"),
                    Err(error) => format!("{why}; not all is as it was before: {error}"),
                },
            ),
            (Then::Answer(asked), Ok(())) => {
                if let Some(reply) = asked.reply {
                    reply.send_rounded(asked.rounded);
                }
            }
            (Then::Answer(asked), Err(why)) => self.take_back(process, *asked, held, why)?,
            // The run that they were for may just have ended. Else there is nobody to be told but who reads the log.
            (Then::Enforce, Err(why)) if matches!(self.target(process), Ok(Some(_))) => {
                say(format!("dewar-runner: {}: limits that were accepted: {why}", self.task));
            }
            (Then::Enforce, _) => {}
        }
        if !self.changes.is_empty() {
            self.acts.push(Act::Limit);
        }
        while self.making.is_none()
            && self.changes.is_empty()
            && let Some(Waiting { asked, by, reply }) = self.updates.pop_front()
        {
            self.update(asked, by, reply)?;
        }
        Ok(())
    }

    /// Tells whoever asked what became of it; the log, if they have heard already that it takes long.
    fn answer(&self, reply: Option<Reply>, why: &str) {
        match reply {
            Some(reply) => reply.send(why),
            None => say(format!("dewar-runner: {}: limits that were accepted: {why}", self.task)),
        }
    }

    /// When a change that is being made has taken long: CLOCK_BOOTTIME in nanoseconds.
    pub(super) fn change_due(&self) -> Option<u64> {
        self.making.as_ref()?.until
    }

    /// Tells whoever has waited long enough that the kernel is still at it.
    pub(super) fn answer_slow_change(&mut self) {
        let Some(making) = &mut self.making else { return };
        if making.until.is_none_or(|until| until > clock::boot_nanos()) {
            return;
        }
        making.until = None;
        if let Then::Answer(asked) = &mut making.change.then
            && let Some(reply) = asked.reply.take()
        {
            reply.send_unfinished(
                "the limits are recorded, but the kernel is still taking memory back",
            );
        }
    }

    /// Nothing of the task lives, so nothing is to be limited any more.
    pub(super) fn abandon_changes(&mut self) {
        let making = self.making.take().map(|Making { enforcer, change, .. }| {
            self.sources.remove(&enforcer);
            enforcer.kill();
            change
        });
        for change in making.into_iter().chain(self.changes.drain(..)) {
            let reply = match change.then {
                Then::Answer(asked) => asked.reply,
                Then::PutBack { reply, .. } => reply,
                Then::Enforce => None,
            };
            if let Some(reply) = reply {
                reply.send(OVER);
            }
        }
        for waiting in self.updates.drain(..) {
            waiting.reply.send(OVER);
        }
    }

    /// Remembers what the files of `limits` hold; an error says why it cannot.
    fn hold(&self, process: Option<u32>, limits: &Resources) -> Result<Option<Held>, String> {
        let target = self.target(process).map_err(|error| chain(&error))?;
        target.map(|of| of.hold(limits)).transpose().map_err(|error| chain(&error))
    }

    /// The kernel refused what it took at the trial.
    fn take_back(
        &mut self,
        process: Option<u32>,
        asked: Asked,
        held: Result<Option<Held>, String>,
        why: String,
    ) -> Result<(), RunnerError> {
        let Asked { by, reply, before: (before, rounded), .. } = asked;
        self.record_limits(process, before, rounded, by, true)?;
        match held {
            Ok(Some(held)) => self.push_change(process, Then::PutBack { held, why, reply }),
            Ok(None) => self.answer(reply, &why),
            Err(more) => {
                self.answer(reply, &format!("{why}; not all is as it was before: {more}"));
            }
        }
        Ok(())
    }

    /// Enforces limits on what lives; an error says what could not be.
    fn enforce(&self, process: Option<u32>, limits: &Resources) -> Result<(), String> {
        let Some(task) = &self.cgroup else { return Ok(()) };
        let applied = match process {
            None => task.limit(limits, &path(None)),
            Some(_) => {
                task.enable_for_runs(limits);
                let Some(leaf) = self.target(process).map_err(|error| chain(&error))? else {
                    return Ok(());
                };
                let applied = leaf.apply(limits, &path(process));
                // The run may end meanwhile, and its leaf be removed: later runs have the limits from the record.
                if matches!(self.target(process), Ok(None)) {
                    return Ok(());
                }
                applied
            }
        };
        let mut missing = applied.map_err(|error| chain(&error))?.unenforceable;
        missing.retain(|limit| !self.launch.unenforced.contains(&limit.field));
        refuse(&missing)
    }
}

/// Whether `line` tells how `field` was rounded.
fn is_about(line: &str, field: &str) -> bool {
    line.strip_prefix(field).is_some_and(|rest| rest.starts_with(':'))
}

/// Tries a change out on a cgroup that is made for that, beneath the base of the `task`: what the kernel rounds. An error says
/// what this host cannot enforce.
fn try_out(task: &Cgroup, process: Option<u32>, change: &Resources) -> Result<Vec<String>, String> {
    let explicit = task.path().ancestors().nth(2).map(ToOwned::to_owned);
    let base = cgroup::find(&cgroup::Options { explicit }).map_err(|error| chain(&error))?;
    let mut applied = base.try_out(&trial(process, change)).map_err(|error| chain(&error))?;
    // The trial knows one process.
    let rename = |field: &mut String| {
        if let Some(rest) = field.strip_prefix(&path(Some(0))) {
            *field = path(process) + rest;
        }
    };
    applied.unenforceable.iter_mut().for_each(|limit| rename(&mut limit.field));
    applied.rounded.iter_mut().for_each(|limit| rename(&mut limit.field));
    refuse(&applied.unenforceable)?;
    Ok(applied.rounded.iter().map(Rounded::to_string).collect())
}

/// A task with nothing but these limits: of itself, or of its only process.
fn trial(process: Option<u32>, change: &Resources) -> TaskSpec {
    let limited = |_| {
        let name = ProcessName::new("trial").expect("it is a word");
        let of = ProcessSpec::new(name, "true");
        ProcessSpec { resources: Some(Box::new(change.clone())), ..of }
    };
    TaskSpec {
        name: "trial".to_owned(),
        processes: process.map(limited).into_iter().collect(),
        graph: Graph::default(),
        resources: process.is_none().then(|| change.clone()),
        max_failures: spec::MAX_FAILURES,
        max_concurrency: spec::MAX_CONCURRENCY,
        finalization_wait: spec::FINALIZATION_WAIT,
        user: None,
    }
}

/// Names what is missing, if anything is.
fn refuse(missing: &[Unenforceable]) -> Result<(), String> {
    match missing {
        [] => Ok(()),
        missing => Err(missing.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")),
    }
}

/// The rules that are broken, named as in a task file.
fn told(violations: Vec<Violation>) -> String {
    let told = violations.into_iter().map(|Violation { field, message, expected }| {
        let field = field.trim_end_matches("_bytes");
        format!("{field}: {message}; expected {expected}")
    });
    told.collect::<Vec<_>>().join("; ")
}
