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

use super::control::Reply;
use super::perform::Act;
use super::{Runner, RunnerError, doing};
use crate::causes::chain;
use crate::cgroup::{self, Cgroup, CgroupError, Held, Rounded, Unenforceable, fields};
use crate::failpoint::{Failpoint, hit};
use crate::proto::UpdateLimits;
use crate::state::Event;
use crate::sys::clock;
use crate::sys::socket::Peer;
use crate::task::change::path;
use crate::task::{Graph, ProcessName, ProcessSpec, Resources, TaskSpec, Violation, spec};
use crate::view;

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
    /// They are enforced, and somebody waits for that.
    Answer(Asked),
    /// The files get back what they held: the limits of before are recorded again.
    PutBack { held: Held, why: String, reply: Reply },
}

/// Somebody who waits for other limits.
struct Asked {
    by: Peer,
    reply: Reply,
    /// What the kernel rounds of what was asked for.
    rounded: Vec<String>,
    /// All limits of before, and what the kernel rounded of them.
    before: (Box<Resources>, Vec<String>),
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
        asked: &UpdateLimits,
        by: Peer,
        reply: Reply,
    ) -> Result<(), RunnerError> {
        let Wanted { process, after, rounded, all_rounded } = match self.consider(asked) {
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
        self.push_change(process, Then::Answer(Asked { by, reply, rounded, before }));
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
        if *after == before {
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

    /// Makes the next change.
    pub(super) fn make_change(&mut self) -> Result<(), RunnerError> {
        let Some(Change { process, then }) = self.changes.pop_front() else { return Ok(()) };
        hit(Failpoint::RunnerLimit).map_err(doing("pass a failpoint"))?;
        if let Then::PutBack { held, why, reply } = then {
            reply.send(&match held.put_back() {
                Ok(()) => format!("{why}; the limits are as they were before"),
                Err(error) => format!("{why}; not all is as it was before: {}", chain(&error)),
            });
            return Ok(());
        }
        let limits = self.limits_of(process);
        let held = self.hold(process, &limits);
        let enforced = self.enforce(process, &limits);
        hit(Failpoint::RunnerLimited).map_err(doing("pass a failpoint"))?;
        match (then, enforced) {
            (Then::Answer(asked), Ok(())) => asked.reply.send_rounded(asked.rounded),
            (Then::Answer(asked), Err(why)) => self.take_back(process, asked, held, why)?,
            // The run that they were for may just have ended. Else there is nobody to be told but who reads the log.
            (_, Err(why)) if matches!(self.target(process), Ok(Some(_))) => {
                eprintln!("dewar-runner: {}: limits that were accepted: {why}", self.task);
            }
            _ => {}
        }
        Ok(())
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
            Ok(None) => reply.send(&why),
            Err(more) => reply.send(&format!("{why}; not all is as it was before: {more}")),
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
                match self.target(process).map_err(|error| chain(&error))? {
                    Some(leaf) => leaf.apply(limits, &path(process)),
                    None => return Ok(()),
                }
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
