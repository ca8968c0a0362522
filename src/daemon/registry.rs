//! The tasks of this node, and what happened lately.
//!
//! All of it is read from disk ([`super::follow`]) and only kept here. What happened is one list, of bounded length, with a
//! number for each item: whoever watches keeps the number of the last one that was told, and nothing is kept for a watcher. So one
//! that does not read costs nothing, and learns that it has lost history once it does.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::watch as cell;

use super::peer::Peer;
use crate::checkpoint::Root;
use crate::proto::{
    Event, Launch, ProcessState, RunView, TaskState, TaskSummary, TaskView, Timestamp,
};
use crate::sys::clock;
use crate::task::TaskId;
use crate::view::done_count;

/// Items of history that are kept.
const HISTORY: usize = 1 << 16;
/// Tasks that are taken from the list at once.
const BATCH: usize = 256;

/// A task as a list tells it.
#[derive(Debug, Clone)]
pub(crate) struct Entry {
    /// What is told.
    pub(crate) summary: Arc<TaskSummary>,
    /// Whose it is; `None` if that cannot be read.
    pub(crate) owner: Option<u32>,
    /// Whether its runner waits until it can write, as for space.
    pub(crate) waits_for_disk: bool,
}

impl Entry {
    /// The entry of a task that was looked at.
    pub(super) fn of(view: &TaskView, launch: Option<&Launch>) -> Self {
        let accepted = launch.map(|launch| launch.accepted_unix_nanos);
        let ended = is_terminal(view.state()).then(|| view.state_history.last()?.time).flatten();
        // Of one that has not ended it would be told as it was when that last came into another state.
        let is_over = is_terminal(view.state());
        let of_processes = |count: usize| is_over.then(|| u32::try_from(count).unwrap_or(u32::MAX));
        let summary = TaskSummary {
            task_id: view.task_id.clone(),
            name: view.name.clone(),
            user: view.user.clone(),
            state: view.state,
            accept_time: accepted.map(Timestamp::from_unix_nanos),
            end_time: ended,
            labels: view.labels.clone(),
            detail: view.detail.clone(),
            is_paused: view.paused_since.is_some(),
            process_count: of_processes(view.processes.len()),
            done_count: of_processes(done_count(view)),
        };
        let owner = launch.and_then(|launch| launch.identity.as_ref()).map(|who| who.uid);
        Self { summary: Arc::new(summary), owner, waits_for_disk: false }
    }
}

/// Whether nothing of a task in this state is run any more.
pub(crate) fn is_terminal(state: TaskState) -> bool {
    use TaskState as S;
    matches!(state, S::Success | S::Failed | S::Killed | S::Lost)
}

/// Something that happened.
#[derive(Debug, Clone)]
pub(crate) enum News {
    /// A task was accepted.
    Accepted,
    /// A transition.
    Event(Arc<Event>),
    /// A task was removed.
    Removed,
    /// Its runner waits for space, or does so no more.
    Waits,
}

/// What has happened since this daemon began, counted.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Tally {
    /// Tasks that were accepted.
    pub(crate) accepted: u64,
    /// Tasks that ended, by their state.
    pub(crate) ended: BTreeMap<TaskState, u64>,
    /// Tasks that were removed.
    pub(crate) removed: u64,
    /// Runs that were begun.
    pub(crate) runs_begun: u64,
    /// Runs that ended, by their state.
    pub(crate) runs_ended: BTreeMap<ProcessState, u64>,
    /// Processes that runs lost to the OOM killer, of runs that ended.
    pub(crate) oom_kills: u64,
    /// Runners that died before their task was over.
    pub(crate) runners_died: u64,
}

impl Tally {
    fn count(&mut self, news: &News) {
        match news {
            News::Accepted => self.accepted += 1,
            News::Removed => self.removed += 1,
            News::Waits => {}
            News::Event(event) => {
                if event.task_state.is_some() && is_terminal(event.task_state()) {
                    *self.ended.entry(event.task_state()).or_default() += 1;
                }
                if let Some(run) = &event.run {
                    self.count_run(run);
                }
            }
        }
    }

    fn count_run(&mut self, run: &RunView) {
        match run.state() {
            ProcessState::Forked => self.runs_begun += 1,
            state if run.end_time.is_some() => {
                *self.runs_ended.entry(state).or_default() += 1;
                let kills = run.usage.as_ref().and_then(|usage| usage.oom_kills);
                self.oom_kills += kills.unwrap_or_default();
            }
            _ => {}
        }
    }
}

/// Something that happened to a task, with the task after it.
#[derive(Debug, Clone)]
pub(crate) struct Item {
    /// Its number.
    pub(crate) number: u64,
    /// What.
    pub(crate) news: News,
    /// The task.
    pub(crate) entry: Entry,
}

/// History before this number is not kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Lost(pub(crate) u64);

/// The tasks of this node, and what happened lately.
#[derive(Debug)]
pub(crate) struct Registry {
    root: Root,
    /// Tells this life of the daemon from any other: the clock of this boot when it began.
    life: u64,
    shared: Mutex<Shared>,
    /// The number of the next item.
    next: cell::Sender<u64>,
}

#[derive(Debug, Default)]
struct Shared {
    tasks: BTreeMap<TaskId, Entry>,
    history: VecDeque<Item>,
    next: u64,
    tally: Tally,
}

impl Registry {
    pub(super) fn new(root: Root) -> Arc<Self> {
        let (next, _) = cell::channel(0);
        Arc::new(Self { root, life: clock::now().boot, shared: Mutex::default(), next })
    }

    pub(crate) fn root(&self) -> &Root {
        &self.root
    }

    /// Tells this life of the daemon from any other.
    pub(crate) fn life(&self) -> u64 {
        self.life
    }

    fn shared(&self) -> MutexGuard<'_, Shared> {
        // No statement leaves it half changed.
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A task that the peer may know of.
    pub(crate) fn get(&self, peer: &Peer, id: &TaskId) -> Option<Entry> {
        self.shared().tasks.get(id).filter(|entry| peer.sees(entry.owner)).cloned()
    }

    /// Whether the runner of a task waits until it can write.
    pub(super) fn waits_for_disk(&self, id: &TaskId) -> bool {
        self.shared().tasks.get(id).is_some_and(|entry| entry.waits_for_disk)
    }

    pub(super) fn knows(&self, id: &TaskId) -> bool {
        self.shared().tasks.contains_key(id)
    }

    /// Tasks in the order of their ids. All others wait meanwhile: what `each` does is to be short, whatever clients ask for.
    pub(crate) fn each(&self, each: impl FnMut((&TaskId, &Entry))) {
        self.shared().tasks.iter().for_each(each);
    }

    /// The first `most` tasks in the order of their ids, those after `after`, that are `wanted`, and whether there are more.
    ///
    /// Nobody waits meanwhile, however long it takes to say what is wanted. So each task is told as it is when its turn comes, and one that
    /// is there all the time is told once.
    pub(crate) fn page(
        &self,
        after: Option<&TaskId>,
        most: usize,
        wanted: impl Fn(&Entry) -> bool,
    ) -> (Vec<Entry>, bool) {
        let (mut page, mut after) = (Vec::new(), after.cloned());
        loop {
            let (batch, last) = self.batch(after.as_ref());
            if last.is_none() {
                return (page, false);
            }
            after = last;
            for entry in batch.into_iter().filter(&wanted) {
                if page.len() == most {
                    return (page, true);
                }
                page.push(entry);
            }
        }
    }

    /// A few tasks after `after`, and the id of the last of them.
    fn batch(&self, after: Option<&TaskId>) -> (Vec<Entry>, Option<TaskId>) {
        use std::ops::Bound::{Excluded, Unbounded};
        let from = after.map_or(Unbounded, Excluded);
        let shared = self.shared();
        let tasks = || shared.tasks.range::<TaskId, _>((from, Unbounded)).take(BATCH);
        let last = tasks().last().map(|(id, _)| id.clone());
        (tasks().map(|(_, entry)| entry.clone()).collect(), last)
    }

    /// All tasks at one moment, and the number of the first item that is not in them.
    pub(crate) fn snapshot(&self) -> (Vec<Entry>, u64) {
        let shared = self.shared();
        (shared.tasks.values().cloned().collect(), shared.next)
    }

    /// At most `most` items from number `from` on.
    ///
    /// # Errors
    ///
    /// [`Lost`] if the first of them is not kept any more.
    pub(crate) fn history(&self, from: u64, most: usize) -> Result<Vec<Item>, Lost> {
        let shared = self.shared();
        let first = shared.history.front().map_or(shared.next, |item| item.number);
        let Some(skip) = from.checked_sub(first) else { return Err(Lost(first)) };
        let skip = usize::try_from(skip).unwrap_or(usize::MAX);
        Ok(shared.history.iter().skip(skip).take(most).cloned().collect())
    }

    /// The number of the next item, as it grows.
    pub(crate) fn next(&self) -> cell::Receiver<u64> {
        self.next.subscribe()
    }

    /// What has happened since this daemon began.
    pub(crate) fn tally(&self) -> Tally {
        self.shared().tally.clone()
    }

    /// Counts a runner that died before its task was over.
    pub(super) fn runner_died(&self) {
        self.shared().tally.runners_died += 1;
    }

    /// Takes in a task as it was found, and tells nobody.
    pub(super) fn found(&self, id: &TaskId, entry: Entry) {
        self.shared().tasks.insert(id.clone(), entry);
    }

    /// Takes in what happened to a task.
    pub(super) fn happened(
        &self,
        id: &TaskId,
        entry: &Entry,
        news: impl IntoIterator<Item = News>,
    ) {
        let next = {
            let mut shared = self.shared();
            shared.tasks.insert(id.clone(), entry.clone());
            for news in news {
                shared.push(news, entry.clone());
            }
            shared.next
        };
        self.next.send_replace(next);
    }

    /// Forgets a task.
    pub(super) fn removed(&self, id: &TaskId) {
        let next = {
            let mut shared = self.shared();
            let Some(entry) = shared.tasks.remove(id) else { return };
            shared.push(News::Removed, entry);
            shared.next
        };
        self.next.send_replace(next);
    }
}

impl Shared {
    fn push(&mut self, news: News, entry: Entry) {
        self.tally.count(&news);
        if self.history.len() == HISTORY {
            self.history.pop_front();
        }
        self.history.push_back(Item { number: self.next, news, entry });
        self.next += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(id: &str) -> Entry {
        let view = TaskView { task_id: id.to_owned(), ..TaskView::default() };
        Entry::of(&view, None)
    }

    #[test]
    fn history_is_bounded_and_says_what_it_has_lost() {
        let registry = Registry::new(Root::new("/nowhere").unwrap());
        let id = TaskId::new("a").unwrap();
        let mut next = registry.next();
        for _ in 0..HISTORY + 3 {
            registry.happened(&id, &entry("a"), [News::Accepted]);
        }

        assert_eq!(registry.history(2, 1).unwrap_err(), Lost(3));
        let kept = registry.history(3, usize::MAX).unwrap();
        assert_eq!((kept.len(), kept[0].number), (HISTORY, 3));
        assert_eq!(*next.borrow_and_update(), HISTORY as u64 + 3);
        assert_eq!(registry.history(HISTORY as u64 + 3, 9).unwrap().len(), 0);
    }

    /// What a client wants to know of each of very many tasks, such as whether its id is of a pattern, may take long.
    #[test]
    fn a_page_is_put_together_while_others_are_at_the_tasks() {
        let registry = Registry::new(Root::new("/nowhere").unwrap());
        let ids: Vec<_> = (0..3 * BATCH + 7).map(|number| format!("t{number:04}")).collect();
        let id = |id: &str| TaskId::new(id).unwrap();
        ids.iter().for_each(|name| registry.found(&id(name), entry(name)));
        let is_even = |name: &str| name.as_bytes()[4].is_multiple_of(2);
        let wanted = |entry: &Entry| {
            assert!(registry.shared.try_lock().is_ok(), "all others wait");
            is_even(&entry.summary.task_id)
        };

        let (mut told, mut after) = (Vec::new(), None);
        loop {
            let (page, more) = registry.page(after.as_ref(), 100, wanted);
            told.extend(page.iter().map(|entry| entry.summary.task_id.clone()));
            if !more {
                break;
            }
            assert_eq!(page.len(), 100);
            after = told.last().map(|last| id(last));
        }

        assert_eq!(told, ids.into_iter().filter(|id| is_even(id)).collect::<Vec<_>>());
        assert!(!registry.page(None, told.len(), wanted).1, "there is no other");
        assert!(registry.page(None, told.len() - 1, wanted).1);
    }
}
