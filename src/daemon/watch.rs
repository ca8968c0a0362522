//! `WatchTasks`, and whatever else waits for something to happen.
//!
//! A watcher keeps the number of what it was told last. It sleeps until there is a later one, reads a few items, and sends them; while its
//! client does not read, it does neither.

use std::sync::Arc;
use std::time::Duration;

use regex_lite::{Regex, RegexBuilder};
use tokio::sync::mpsc;
use tokio::task::block_in_place;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status};

use super::control::block;
use super::observe::Answers;
use super::peer::Peer;
use super::registry::{Entry, Item, Lost, News, Registry, is_terminal};
use super::{Node, status};
use crate::checkpoint::Root;
use crate::checkpoint::paths::Place;
use crate::observe::{self, Observed};
use crate::proto::watch_tasks_response::Message;
use crate::proto::{
    Event, SnapshotEnd, TaskFilter, TaskState, TaskSummary, TaskView, WatchTasksRequest,
    WatchTasksResponse,
};
use crate::task::TaskId;
use crate::view::event_view;

/// Answers that wait for a client at most, beside what the connection holds.
const QUEUE: usize = 16;
/// Items that are read at once.
const BATCH: usize = 256;
/// Most bytes of a pattern.
const MAX_PATTERN: usize = 1024;
/// Most bytes that it may be compiled to: a few characters can ask for millions of states, each of which costs at each character of
/// each id.
const MAX_PROGRAM: usize = 128 << 10;

/// Most time that the registry may be behind the stream of a task.
const BEHIND: Duration = Duration::from_secs(5);

/// All that is told about a task, wherever it is kept.
///
/// # Errors
///
/// There is no such task, or it cannot be read now.
pub(super) fn view(root: &Root, id: &TaskId) -> Result<TaskView, Status> {
    let sight = observe::look(root, id, place(root, id)?);
    Ok(sight.map_err(|error| status::of_observe(&error))?.view)
}

/// Where a task is kept.
///
/// # Errors
///
/// There is no such task.
pub(super) fn place(root: &Root, id: &TaskId) -> Result<Place, Status> {
    // A task is moved once: the place where it ends is looked at last.
    let mut places = [Place::Active, Place::Finished].into_iter();
    let place = places.find(|&place| root.task(place, id).exists());
    place.ok_or_else(|| status::no_task(id.as_str()))
}

/// Which tasks are meant.
#[derive(Debug, Default)]
pub(super) struct Filter {
    states: Vec<i32>,
    labels: Vec<(String, String)>,
    pattern: Option<Regex>,
}

impl Filter {
    /// # Errors
    ///
    /// A pattern that is none, or a state that is not known.
    pub(super) fn new(filter: Option<TaskFilter>) -> Result<Self, Status> {
        let TaskFilter { states, labels, pattern } = filter.unwrap_or_default();
        let states = known_states("filter.states", states)?;
        let pattern = pattern.map(|pattern| {
            if pattern.len() > MAX_PATTERN {
                let found = format!("{} bytes", pattern.len());
                return Err(status::bad_field("filter.pattern", found, "at most 1024"));
            }
            RegexBuilder::new(&format!("^(?:{pattern})$"))
                .size_limit(MAX_PROGRAM)
                .build()
                .map_err(|error| status::bad_field("filter.pattern", error, "a regular expression"))
        });
        let labels = labels.into_iter().collect();
        Ok(Self { states, labels, pattern: pattern.transpose()? })
    }

    pub(super) fn matches(&self, id: &str, task: &TaskSummary) -> bool {
        (self.states.is_empty() || self.states.contains(&task.state))
            && self.labels.iter().all(|(name, value)| task.labels.get(name) == Some(value))
            && self.pattern.as_ref().is_none_or(|pattern| pattern.is_match(id))
    }

    /// Does `work`, which matches many tasks. Only a pattern may take so long that others must not wait for it: to step aside costs a
    /// thread, for each of a thousand watchers that are told of the same event.
    fn apart<T>(&self, work: impl FnOnce() -> T) -> T {
        if self.pattern.is_some() { block_in_place(work) } else { work() }
    }
}

/// The states that were asked for, each once: a request has room for millions.
///
/// # Errors
///
/// A state that is not known: it would never be reached, and nobody would be told.
pub(super) fn known_states(field: &str, mut states: Vec<i32>) -> Result<Vec<i32>, Status> {
    if let Some(state) = states.iter().find(|&&state| TaskState::try_from(state).is_err()) {
        return Err(status::bad_field(field, state, "a known state"));
    }
    states.sort_unstable();
    states.dedup();
    Ok(states)
}

/// Starts a watcher.
///
/// # Errors
///
/// A request that makes no sense, a task that is not there, or history that is not kept.
pub(super) fn tasks(
    node: Arc<Node>,
    peer: Peer,
    request: WatchTasksRequest,
) -> Result<Answers<WatchTasksResponse>, Status> {
    let (to_client, answers) = mpsc::channel(QUEUE);
    match request.task_id {
        Some(id) => {
            if request.filter.is_some() {
                return Err(status::bad_field("filter", "a filter", "none beside `task_id`"));
            }
            let (id, _) = node.known(&peer, &id)?;
            let after = request.cursor.map(|cursor| {
                let number = cursor.parse::<u64>();
                number.map_err(|_| bad_cursor(&cursor))
            });
            let after = after.transpose()?;
            tokio::spawn(async move {
                let told = one(&node, &peer, &id, after, &to_client);
                finish(&node, &to_client, told).await;
            });
        }
        None => {
            let filter = Filter::new(request.filter)?;
            let from = request.cursor.map(|cursor| resume(&node, &cursor)).transpose()?;
            tokio::spawn(async move {
                let told = all(&node, &peer, &filter, from, &to_client);
                finish(&node, &to_client, told).await;
            });
        }
    }
    Ok(Box::pin(ReceiverStream::new(answers)))
}

fn bad_cursor(cursor: &str) -> Status {
    status::bad_field("cursor", format!("{cursor:?}"), "one of an answer before")
}

type ToClient = mpsc::Sender<Result<WatchTasksResponse, Status>>;

/// Why a watcher stops.
pub(super) enum Stop {
    /// Its client is gone.
    Gone,
    /// That is all there is.
    End,
    /// It is told this.
    Status(Status),
}

impl From<Status> for Stop {
    fn from(status: Status) -> Self {
        Self::Status(status)
    }
}

/// Runs a watcher until it stops, its client leaves, or the daemon does.
pub(super) async fn finish<T>(
    node: &Node,
    to_client: &mpsc::Sender<Result<T, Status>>,
    told: impl Future<Output = Result<(), Stop>>,
) {
    let mut stopping = node.stopping.clone();
    let stop = tokio::select! {
        told = told => told.err().unwrap_or(Stop::End),
        () = to_client.closed() => Stop::Gone,
        _ = stopping.wait_for(|&stopping| stopping) => Stop::Status(status::stopping()),
    };
    if let Stop::Status(status) = stop {
        // A client that does not read does not hold up the end.
        let _ = to_client.send_timeout(Err(status), Duration::from_secs(1)).await;
    }
}

async fn tell(to_client: &ToClient, message: Message, cursor: String) -> Result<(), Stop> {
    let answer = WatchTasksResponse { message: Some(message), cursor };
    to_client.send(Ok(answer)).await.map_err(|_| Stop::Gone)
}

/// A cursor of all tasks: which life of the daemon, and what comes next.
fn cursor(node: &Node, next: u64) -> String {
    format!("{:x}-{next}", node.registry.life())
}

/// Where a client goes on that has seen everything before `cursor`.
fn resume(node: &Node, cursor: &str) -> Result<u64, Status> {
    let (life, next) = cursor.split_once('-').ok_or_else(|| bad_cursor(cursor))?;
    let life = u64::from_str_radix(life, 16).map_err(|_| bad_cursor(cursor))?;
    let next: u64 = next.parse().map_err(|_| bad_cursor(cursor))?;
    if life != node.registry.life() {
        return Err(lost(node, Code::OutOfRange, Lost(0)));
    }
    if next > *node.registry.next().borrow() {
        return Err(bad_cursor(cursor));
    }
    match node.registry.history(next, 1) {
        Ok(_) => Ok(next),
        Err(kept) => Err(lost(node, Code::OutOfRange, kept)),
    }
}

fn lost(node: &Node, code: Code, Lost(first): Lost) -> Status {
    status::history_lost(code, cursor(node, first))
}

/// Tells of all tasks: a snapshot, unless the client goes on, and then what happens. A pattern may take long at each id: while it is
/// looked for another thread serves everybody else.
async fn all(
    node: &Node,
    peer: &Peer,
    filter: &Filter,
    from: Option<u64>,
    to_client: &ToClient,
) -> Result<(), Stop> {
    let matches = |entry: &Entry| {
        peer.sees(entry.owner) && filter.matches(&entry.summary.task_id, &entry.summary)
    };
    let mut news = node.registry.next();
    let mut next = match from {
        Some(next) => next,
        None => {
            let (tasks, next) = node.registry.snapshot();
            // Until it is whole it cannot be gone on with: whoever tries gets a new one.
            let tasks: Vec<_> =
                filter.apart(|| tasks.into_iter().filter(|entry| matches(entry)).collect());
            for entry in tasks {
                tell(to_client, Message::Task((*entry.summary).clone()), String::new()).await?;
            }
            tell(to_client, Message::SnapshotEnd(SnapshotEnd {}), cursor(node, next)).await?;
            next
        }
    };
    loop {
        let items = match node.registry.history(next, BATCH) {
            Ok(items) => items,
            Err(kept) => return Err(lost(node, Code::ResourceExhausted, kept).into()),
        };
        let Some(last) = items.last() else {
            if news.changed().await.is_err() {
                return Ok(());
            }
            continue;
        };
        next = last.number + 1;
        let items: Vec<_> =
            filter.apart(|| items.into_iter().filter(|item| matches(&item.entry)).collect());
        for Item { number, news, entry } in items {
            let message = match news {
                News::Accepted => Message::Task((*entry.summary).clone()),
                News::Event(event) => Message::Event((*event).clone()),
                News::Removed => Message::RemovedTaskId(entry.summary.task_id.clone()),
                // It is no transition.
                News::Waits => continue,
            };
            tell(to_client, message, cursor(node, number + 1)).await?;
        }
    }
}

/// Tells all that happens to one task, from its stream: whatever became of the daemon meanwhile, each transition is told once.
async fn one(
    node: &Arc<Node>,
    peer: &Peer,
    id: &TaskId,
    after: Option<u64>,
    to_client: &ToClient,
) -> Result<(), Stop> {
    let mut news = node.registry.next();
    let mut observed = {
        let (node, id) = (node.clone(), id.clone());
        let open =
            move || Observed::open(&node.root, &id).map_err(|error| status::of_observe(&error));
        block(open).await?
    };
    loop {
        let from = *news.borrow_and_update();
        let read = move || {
            let mut events: Vec<Event> = Vec::new();
            let read = observed.advance_durably(|replay, applied| {
                if after.is_none_or(|after| applied.seq > after) {
                    events.extend(event_view(replay.launch(), replay.state(), applied));
                }
            });
            read.map_err(|error| status::of_observe(&error))?;
            let replay = observed.replay();
            let over = replay.is_some_and(|replay| {
                replay.state().phase().is_some_and(|phase| phase.is_terminal())
            });
            Ok((observed, events, over))
        };
        let (again, events, over) = block(read).await?;
        observed = again;
        let last = events.len().saturating_sub(1);
        for (number, event) in events.into_iter().enumerate() {
            if over && number == last {
                // It was removed, or the daemon stops, or does not follow: then it is told all the same.
                let _ = known_over(node, peer, id).await;
            }
            let cursor = event.cursor.to_string();
            tell(to_client, Message::Event(event), cursor).await?;
        }
        if over {
            return Ok(());
        }
        if !happened(&node.registry, peer, id, from, &mut news).await {
            return Err(status::no_task(id.as_str()).into());
        }
    }
}

/// Waits until something may have happened to a task since item `from`, which `news` told of before the caller looked at the
/// task: what happens while it looks must not be taken for seen. `false`: the task is not there any more.
pub(super) async fn happened(
    registry: &Registry,
    peer: &Peer,
    id: &TaskId,
    mut from: u64,
    news: &mut tokio::sync::watch::Receiver<u64>,
) -> bool {
    loop {
        if news.changed().await.is_err() {
            return false;
        }
        let next = *news.borrow_and_update();
        // What is of other tasks only is none of ours.
        match registry.history(from, usize::MAX) {
            Ok(items) if items.iter().all(|item| item.entry.summary.task_id != id.as_str()) => {}
            _ => return registry.get(peer, id).is_some(),
        }
        from = next;
    }
}

/// Waits until a task is in one of `states`, or past it, or is over; `false` if `timeout` came first.
///
/// # Errors
///
/// The task was removed, or the daemon stops.
pub(super) async fn until(
    node: &Arc<Node>,
    peer: &Peer,
    id: &TaskId,
    states: &[i32],
    timeout: Option<Duration>,
) -> Result<bool, Status> {
    let mut news = node.registry.next();
    let mut stopping = node.stopping.clone();
    let reached = async {
        loop {
            let from = *news.borrow_and_update();
            let entry = node.registry.get(peer, id).ok_or_else(|| status::no_task(id.as_str()))?;
            if is_reached(entry.summary.state(), states) {
                return Ok(true);
            }
            happened(&node.registry, peer, id, from, &mut news).await;
        }
    };
    let too_late = async {
        match timeout {
            Some(timeout) => tokio::time::sleep(timeout).await,
            None => std::future::pending().await,
        }
    };
    tokio::select! {
        reached = reached => reached,
        () = too_late => Ok(false),
        _ = stopping.wait_for(|&stopping| stopping) => Err(status::stopping()),
    }
}

/// Whether a task is over by its stream, which may know it a moment before the registry does.
///
/// # Errors
///
/// It cannot be read now.
pub(super) async fn has_ended(node: &Arc<Node>, peer: &Peer, id: &TaskId) -> Result<bool, Status> {
    let (root, task) = (node.root.clone(), id.clone());
    let ended = match block(move || view(&root, &task)).await {
        Ok(view) => is_terminal(view.state()),
        // And removed already.
        Err(status) if status.code() == Code::NotFound => true,
        Err(status) => return Err(status),
    };
    if ended && known_over(node, peer, id).await.is_ok_and(|known| !known) {
        let text = format!("the end of task {id} is not known here yet");
        return Err(status::info(Code::Unavailable, "UNAVAILABLE", text, &[]));
    }
    Ok(ended)
}

/// Waits until the registry knows that a task is over: whoever was told so finds it so, and its end is told before its removal. `false`:
/// it takes very long.
///
/// # Errors
///
/// The task was removed, or the daemon stops.
async fn known_over(node: &Arc<Node>, peer: &Peer, id: &TaskId) -> Result<bool, Status> {
    until(node, peer, id, &[], Some(BEHIND)).await
}

/// Whether a task in `state` has been in one of `states`, or never will be.
fn is_reached(state: TaskState, states: &[i32]) -> bool {
    use TaskState as S;
    let stage = |state: S| match state {
        S::Active => 1,
        S::Cleaning => 2,
        S::Finalizing => 3,
        _ => 4,
    };
    let wanted = states.iter().filter_map(|&state| S::try_from(state).ok());
    is_terminal(state)
        || state == S::Corrupt
        || wanted.into_iter().any(|wanted| stage(state) >= stage(wanted))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checkpoint::Root;

    /// What it costs to match a task is bounded by how many states there are, not by how long a request is.
    #[test]
    fn a_state_that_is_asked_for_again_and_again_is_matched_once() {
        let states = [TaskState::Success, TaskState::Active].map(i32::from).repeat(1000);
        let filter = TaskFilter { states, ..TaskFilter::default() };

        let filter = Filter::new(Some(filter)).unwrap();

        assert_eq!(filter.states.len(), 2);
        let is = |state: TaskState| {
            filter.matches("a", &TaskSummary { state: state.into(), ..TaskSummary::default() })
        };
        assert!(is(TaskState::Active) && is(TaskState::Success) && !is(TaskState::Failed));
    }

    /// One in some thousand waits for a task once lasted for ever.
    #[test]
    fn what_happens_while_a_task_is_looked_at_is_not_missed() {
        let registry = Registry::new(Root::new("/nowhere").unwrap());
        let id = TaskId::new("a").unwrap();
        let entry = Entry::of(&TaskView { task_id: id.to_string(), ..Default::default() }, None);
        let admin =
            Peer { uid: 0, pid: None, is_admin: true, is_observer: false, certificate: None };
        let mut news = registry.next();
        let from = *news.borrow_and_update();

        registry.happened(&id, &entry, [News::Accepted]);

        let waits = happened(&registry, &admin, &id, from, &mut news);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let waited =
            runtime.block_on(async { tokio::time::timeout(Duration::from_secs(10), waits).await });
        assert_eq!(waited, Ok(true));
    }
}
