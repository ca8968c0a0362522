//! What the page ([`crate::web`]) asks for beside the calls of `ObserverService`. It has no other way to the tasks, and each of
//! these looks at the peer first, as the calls do.

use std::cmp::{Ordering, Reverse};
use std::collections::{BTreeMap, BinaryHeap};
use std::sync::Arc;

use tokio::sync::watch as cell;
use tonic::{Request, Status};

use super::control::block;
use super::files;
use super::observe::Observe;
use super::peer::Peer;
use super::registry::Entry;
use super::watch::{Filter, happened};
use super::{Node, status};
use crate::files::SandboxFile;
use crate::launch;
use crate::proto::{Launch, TaskFilter, TaskState, TaskSummary};

/// Where a task stands among all: the newest one first, those of one instant by id.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Standing {
    /// When it ended or, as long as it has not, when it was accepted: nanoseconds since 1970.
    pub(crate) when: Reverse<i64>,
    /// Its id.
    pub(crate) id: String,
}

impl Standing {
    fn key(&self) -> (Reverse<i64>, &str) {
        (self.when, &self.id)
    }
}

/// Some of the tasks that a peer sees, the newest first.
#[derive(Debug, Default)]
pub(crate) struct Newest {
    /// The tasks.
    pub(crate) tasks: Vec<Arc<TaskSummary>>,
    /// Of the last one, if there are more after it.
    pub(crate) next: Option<Standing>,
    /// How many tasks there are of each state, of those that `filter` chooses beside its states.
    pub(crate) counts: BTreeMap<TaskState, u64>,
}

impl Newest {
    fn of<'a>(
        tasks: impl Iterator<Item = &'a Entry>,
        states: &[i32],
        after: Option<&Standing>,
        size: usize,
    ) -> Self {
        let mut counts = BTreeMap::new();
        let mut first = BinaryHeap::with_capacity(size + 2);
        for entry in tasks {
            *counts.entry(entry.summary.state()).or_insert(0) += 1;
            if states.is_empty() || states.contains(&entry.summary.state) {
                take(&mut first, entry, after, size + 1);
            }
        }
        let mut first = first.into_sorted_vec();
        let more = first.len() > size;
        first.truncate(size);
        let next = first.last().filter(|_| more).map(Ranked::standing);
        Self { tasks: first.into_iter().map(|ranked| ranked.task).collect(), next, counts }
    }
}

/// Something that happens to tasks, for whoever waits for it.
#[derive(Debug)]
pub(crate) struct News {
    node: Arc<Node>,
    next: cell::Receiver<u64>,
    stopping: cell::Receiver<bool>,
    from: u64,
}

impl std::fmt::Debug for Node {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Node").field("root", &self.root).finish_non_exhaustive()
    }
}

impl News {
    /// What happens from here on is new; says whether anything has happened since it was called last. To be called before a look, so that
    /// what happens meanwhile is not missed.
    pub(crate) fn look(&mut self) -> bool {
        let before = self.from;
        self.from = *self.next.borrow_and_update();
        self.from != before
    }

    /// Waits until something has happened to any task; `false`: the daemon stops.
    pub(crate) async fn any(&mut self) -> bool {
        tokio::select! {
            changed = self.next.changed() => changed.is_ok(),
            _ = self.stopping.wait_for(|&stopping| stopping) => false,
        }
    }

    /// Waits until something may have happened to the task `id`; `false`: it is not there any more, or the daemon stops.
    pub(crate) async fn of(&mut self, peer: &Peer, id: &str) -> bool {
        let Ok(id) = status::task_id(id) else { return false };
        tokio::select! {
            is_there = happened(&self.node.registry, peer, &id, self.from, &mut self.next) => is_there,
            _ = self.stopping.wait_for(|&stopping| stopping) => false,
        }
    }
}

impl Observe {
    /// `message` as a call of `peer`.
    pub(crate) fn call<T>(peer: &Peer, message: T) -> Request<T> {
        let mut request = Request::new(message);
        request.extensions_mut().insert(peer.clone());
        request
    }

    /// At most `size` tasks after `after`. Nothing is sorted but what is told: all tasks are looked at once, and nobody waits meanwhile,
    /// whatever the pattern takes.
    ///
    /// # Errors
    ///
    /// A filter that makes no sense.
    pub(crate) async fn newest(
        &self,
        peer: &Peer,
        filter: TaskFilter,
        after: Option<&Standing>,
        size: usize,
    ) -> Result<Newest, Status> {
        let states = filter.states.clone();
        let filter = Filter::new(Some(TaskFilter { states: Vec::new(), ..filter }))?;
        let (node, peer, after) = (self.node.clone(), peer.clone(), after.cloned());
        block(move || {
            let (tasks, _) = node.registry.snapshot();
            let seen = tasks.iter().filter(|entry| {
                peer.sees(entry.owner) && filter.matches(&entry.summary.task_id, &entry.summary)
            });
            Ok(Newest::of(seen, &states, after.as_ref(), size))
        })
        .await
    }

    /// A task as it was accepted.
    ///
    /// # Errors
    ///
    /// It is not there, or cannot be read.
    pub(crate) async fn accepted(&self, peer: &Peer, id: &str) -> Result<Launch, Status> {
        let (id, _) = self.node.known(peer, id)?;
        let node = self.node.clone();
        let read =
            move || launch::header(&node.root, &id).map_err(|error| status::of_launch(&error));
        block(read).await
    }

    /// Opens the regular file at `path` in the sandbox of a task.
    ///
    /// # Errors
    ///
    /// The task or the file is not there, or it is not to be read.
    pub(crate) async fn file(
        &self,
        peer: &Peer,
        id: &str,
        path: &str,
    ) -> Result<SandboxFile, Status> {
        files::open(self.node.clone(), peer, id, path).await
    }

    /// What happens from here on.
    pub(crate) fn news(&self) -> News {
        let next = self.node.registry.next();
        let from = *next.borrow();
        News { node: self.node.clone(), next, stopping: self.node.stopping.clone(), from }
    }
}

/// A task that orders by its standing.
struct Ranked {
    when: Reverse<i64>,
    task: Arc<TaskSummary>,
}

impl Ranked {
    fn of(entry: &Entry) -> Self {
        let task = entry.summary.clone();
        let when = task.end_time.or(task.accept_time).unwrap_or_default();
        Self { when: Reverse(when.unix_nanos()), task }
    }

    fn key(&self) -> (Reverse<i64>, &str) {
        (self.when, &self.task.task_id)
    }

    fn standing(&self) -> Standing {
        Standing { when: self.when, id: self.task.task_id.clone() }
    }
}

impl PartialEq for Ranked {
    fn eq(&self, other: &Self) -> bool {
        self.key() == other.key()
    }
}

impl Eq for Ranked {}

impl PartialOrd for Ranked {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Ranked {
    fn cmp(&self, other: &Self) -> Ordering {
        self.key().cmp(&other.key())
    }
}

/// Takes in a task, if it is one of the first `size` after `after`.
fn take(first: &mut BinaryHeap<Ranked>, entry: &Entry, after: Option<&Standing>, size: usize) {
    let ranked = Ranked::of(entry);
    if after.is_some_and(|after| ranked.key() <= after.key()) {
        return;
    }
    if first.len() == size {
        // The last of them is on top.
        if first.peek().is_some_and(|last| *last < ranked) {
            return;
        }
        first.pop();
    }
    first.push(ranked);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::{TaskView, Timestamp};

    fn entry(id: &str, ended: i64) -> Entry {
        let entry = Entry::of(&TaskView { task_id: id.to_owned(), ..TaskView::default() }, None);
        let end_time = Some(Timestamp::from_unix_nanos(ended));
        let summary = TaskSummary { end_time, ..(*entry.summary).clone() };
        Entry { summary: Arc::new(summary), ..entry }
    }

    /// Attack 55: page by page each task comes once, the newest first, and no page holds more than it shows.
    #[test]
    fn pages_have_all_tasks_once_and_the_newest_first() {
        let times = [5, 3, 5, 9, -1, 3, 3, 0, 5, 7];
        let entries: Vec<_> =
            times.iter().enumerate().map(|(at, &time)| entry(&format!("t{at}"), time)).collect();
        for size in 1..=entries.len() {
            let mut told = Vec::new();
            let mut after: Option<Standing> = None;
            loop {
                let page = Newest::of(entries.iter(), &[], after.as_ref(), size);
                assert!(page.tasks.len() <= size);
                assert_eq!(page.counts[&TaskState::Unspecified], 10);
                told.extend(page.tasks.iter().map(|task| task.task_id.clone()));
                after = page.next;
                if after.is_none() {
                    break;
                }
            }
            let order = ["t3", "t9", "t0", "t2", "t8", "t1", "t5", "t6", "t7", "t4"];
            assert_eq!(told, order, "pages of {size}");
        }
    }
}
