//! The tasks whose usage is told, again and again: `dewar stats` and `dewar top`.

use std::collections::{BTreeMap, BTreeSet};

use super::failure::{Failure, status};
use super::node::{Gauge, Node, Which};
use super::nodes::Nodes;
use super::pattern::Patterns;
use crate::meter::Detail;
use crate::proto::{TaskState, TaskUsage, Timestamp};
use crate::task::TaskId;

/// The tasks that are told of.
pub(super) struct Metered<'a> {
    nodes: &'a Nodes,
    patterns: Patterns,
    /// Whether tasks were named: ended ones are told of then.
    is_choosy: bool,
    detail: Detail,
    /// When; `None`: now.
    at: Option<Timestamp>,
    /// Those whose end was not told.
    live: BTreeMap<Key, Gauge<'a>>,
    /// Those whose end was told.
    over: BTreeSet<Key>,
    /// What could not be read the last time, and why.
    problems: Vec<(Option<Key>, String)>,
    /// How the command is to end.
    pub(super) exit: u8,
}

/// A task, and the number of its node.
type Key = (TaskId, usize);

/// What a task uses.
pub(super) struct Reading {
    pub(super) usage: TaskUsage,
    /// Its root, where several were named.
    pub(super) root: Option<String>,
}

impl<'a> Metered<'a> {
    /// The tasks of `nodes` that match, each with its processes if `by_process`, as they are or were at `at`.
    ///
    /// # Errors
    ///
    /// [`Failure`]: a pattern that is none, or a time in the past where nobody keeps any.
    pub(super) fn new(
        nodes: &'a Nodes,
        patterns: &[String],
        by_process: bool,
        at: Option<Timestamp>,
    ) -> Result<Self, Failure> {
        if at.is_some() {
            nodes.iter().try_for_each(Node::keeps_history)?;
        }
        Ok(Self {
            nodes,
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
    pub(super) fn read(&mut self) -> Result<Vec<Reading>, Failure> {
        self.problems.clear();
        self.look_for_more()?;
        let mut usages = Vec::with_capacity(self.live.len());
        for (key, gauge) in &mut self.live {
            match gauge() {
                Ok(usage) => {
                    if has_ended(&usage) {
                        self.over.insert(key.clone());
                    }
                    usages.push(Reading { usage, root: self.nodes.root(key.1) });
                }
                Err(failure) => {
                    self.problems.push((Some(key.clone()), failure.to_string()));
                    self.over.insert(key.clone());
                }
            }
        }
        if !self.problems.is_empty() {
            self.exit = status::UNAVAILABLE;
        }
        self.live.retain(|key, _| !self.over.contains(key));
        Ok(usages)
    }

    fn look_for_more(&mut self) -> Result<(), Failure> {
        let which = if self.is_choosy { Which::All } else { Which::Active };
        let nodes = self.nodes;
        let failed = |failure: Failure| self.problems.push((None, failure.to_string()));
        for (number, id) in nodes.gather(|node| node.list(&self.patterns, which), failed)? {
            let key = (id, number);
            if !self.over.contains(&key) && !self.live.contains_key(&key) {
                let gauge = nodes.node(number).gauge(&key.0, self.detail, self.at);
                self.live.insert(key, gauge);
            }
        }
        Ok(())
    }

    /// What could not be read the last time, and why, for people.
    pub(super) fn problems(&self) -> impl Iterator<Item = String> {
        self.problems.iter().map(|(of, why)| match of {
            Some((id, number)) => format!("{}: {why}", self.nodes.name(*number, id)),
            None => why.clone(),
        })
    }

    /// Has what could not be read the last time read again.
    pub(super) fn try_again(&mut self) {
        for key in self.problems.iter().filter_map(|(key, _)| key.as_ref()) {
            self.over.remove(key);
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
