//! The tasks whose usage is told, again and again: `dewar stats` and `dewar top`.

use std::collections::{BTreeMap, BTreeSet};

use super::failure::{Failure, status};
use super::node::{Gauge, Node, Which};
use super::pattern::Patterns;
use super::words;
use crate::meter::Detail;
use crate::proto::{TaskState, TaskUsage, Timestamp};
use crate::task::TaskId;

/// The tasks that are told of.
pub(super) struct Metered<'a> {
    node: &'a Node,
    patterns: Patterns,
    /// Whether tasks were named: ended ones are told of then.
    is_choosy: bool,
    detail: Detail,
    /// When; `None`: now.
    at: Option<Timestamp>,
    /// Those whose end was not told.
    live: BTreeMap<TaskId, Gauge<'a>>,
    /// Those whose end was told.
    over: BTreeSet<TaskId>,
    /// What could not be read the last time, and why.
    problems: Vec<(TaskId, String)>,
    /// How the command is to end.
    pub(super) exit: u8,
}

impl<'a> Metered<'a> {
    /// The tasks of `node` that match, each with its processes if `by_process`, as they are or were at `at`.
    ///
    /// # Errors
    ///
    /// [`Failure`]: a pattern that is none, or a time in the past where nobody keeps any.
    pub(super) fn new(
        node: &'a Node,
        patterns: &[String],
        by_process: bool,
        at: Option<Timestamp>,
    ) -> Result<Self, Failure> {
        if at.is_some() {
            node.keeps_history()?;
        }
        Ok(Self {
            node,
            is_choosy: !patterns.is_empty(),
            patterns: Patterns::new(patterns)?,
            detail: if by_process { Detail::Processes } else { Detail::Task },
            at,
            live: BTreeMap::new(),
            over: BTreeSet::new(),
            problems: Vec::new(),
            exit: status::SUCCESS,
        })
    }

    /// Tells of processes from now on, or does not.
    pub(super) fn by_process(&mut self, by_process: bool) {
        self.detail = if by_process { Detail::Processes } else { Detail::Task };
        self.live.clear();
    }

    /// Reads every task that is to be told of. A task that has ended is told of once.
    ///
    /// # Errors
    ///
    /// [`Failure`]: the tasks cannot be listed. What cannot be read of one of them is among the problems, and hides no other.
    pub(super) fn read(&mut self) -> Result<Vec<TaskUsage>, Failure> {
        self.look_for_more()?;
        let mut usages = Vec::with_capacity(self.live.len());
        self.problems.clear();
        for (id, gauge) in &mut self.live {
            match gauge() {
                Ok(usage) => {
                    if has_ended(&usage) {
                        self.over.insert(id.clone());
                    }
                    usages.push(usage);
                }
                Err(failure) => {
                    self.problems.push((id.clone(), failure.to_string()));
                    self.over.insert(id.clone());
                }
            }
        }
        if !self.problems.is_empty() {
            self.exit = status::UNAVAILABLE;
        }
        self.live.retain(|id, _| !self.over.contains(id));
        Ok(usages)
    }

    fn look_for_more(&mut self) -> Result<(), Failure> {
        let which = if self.is_choosy { Which::All } else { Which::Active };
        for id in self.node.list(&self.patterns, which)? {
            if !self.over.contains(&id) && !self.live.contains_key(&id) {
                let gauge = self.node.gauge(&id, self.detail, self.at);
                self.live.insert(id, gauge);
            }
        }
        Ok(())
    }

    /// What could not be read the last time, and why, for people.
    pub(super) fn problems(&self) -> impl Iterator<Item = String> {
        self.problems.iter().map(|(id, why)| format!("{}: {why}", words::name(id.as_str())))
    }

    /// Has what could not be read the last time read again.
    pub(super) fn try_again(&mut self) {
        for (id, _) in &self.problems {
            self.over.remove(id);
        }
    }

    /// Whether tasks were named and there is none of them.
    pub(super) fn found_nothing(&self) -> bool {
        self.is_choosy && self.over.is_empty() && self.exit == status::SUCCESS
    }

    /// Whether there is nothing to be told any more.
    pub(super) fn is_over(&self) -> bool {
        self.is_choosy && self.live.is_empty()
    }
}

/// Whether a task has ended.
pub(super) fn has_ended(usage: &TaskUsage) -> bool {
    use TaskState as S;
    matches!(usage.state(), S::Success | S::Failed | S::Killed | S::Lost)
}
