//! The sampler: reads what each live task uses, once in an interval, and keeps it for a while.
//!
//! One task of the runtime, which sleeps until a task is to be read or something happened. Readings are made where they may block, by the meters
//! that serve clients as well ([`super::usage`]): one that a client had made just before is not made again.
//!
//! **Spread.** The interval has [`SLOTS`] slots, and each task is read in one of them, chosen by its id. So a thousand tasks are not read at
//! one instant, and a node with one task wakes up for it once in an interval.
//!
//! **What is kept, and for how long.** A [`History`] for each live task, in memory: a daemon that is replaced begins anew. That of a task that has ended is kept for
//! as long as a reading is, so that the hour before its end can be looked at, but of [`ENDED`] such tasks at most; that of a task that was removed is
//! dropped at once. What a task used in all is in its checkpoint, for ever.

use std::collections::{BTreeSet, HashMap, HashSet, VecDeque};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::Node;
use super::control::block;
use super::history::History;
use super::registry::{Entry, Lost, News, is_terminal};
use super::usage::{Key, Shared};
use crate::meter::Detail;
use crate::proto::{DiskUsage, TaskState, TaskUsage};
use crate::task::TaskId;

/// Parts of the interval, in one of which each task is read.
const SLOTS: u32 = 16;
/// What happens within so long is taken in together.
const SETTLE: Duration = Duration::from_millis(250);
/// How often a task that has no cgroup yet is looked at again after [`SETTLE`], before it has to wait for its slot.
const TRIES: u32 = 20;
/// Tasks that have ended, and whose history is kept, at most.
const ENDED: usize = 1024;
/// Items of the registry's history that are taken in at once.
const BATCH: usize = 1024;

/// What is sampled, and how long it is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sampling {
    interval: Duration,
    span: Duration,
    disk: Option<Duration>,
}

impl Sampling {
    /// Most readings of a task that are kept (V13).
    pub const MOST: usize = 10_000;

    /// Each task is read once in `interval`, which is kept for `span`; `None` if that is less than one reading, or more than
    /// [`Self::MOST`].
    pub fn new(interval: Duration, span: Duration) -> Option<Self> {
        let sampling = Self { interval, span, disk: None };
        let count = span.as_nanos().checked_div(interval.as_nanos())?;
        (1..=Self::MOST as u128).contains(&count).then_some(sampling)
    }

    /// Has the sandbox of each task measured once in `interval`, too, or as often as that can be done (see `disk.rs`).
    pub fn with_disk(self, interval: Duration) -> Self {
        Self { disk: Some(interval), ..self }
    }

    /// Readings that are kept.
    fn capacity(self) -> usize {
        (self.span.as_nanos() / self.interval.as_nanos()) as usize
    }
}

/// What the tasks of this node used of late.
#[derive(Debug)]
pub(crate) struct Histories {
    sampling: Option<Sampling>,
    kept: Mutex<Kept>,
}

#[derive(Debug, Default)]
struct Kept {
    tasks: HashMap<Key, Arc<Mutex<History>>>,
    /// Tasks that have ended, in the order in which they did, each with when it did.
    ended: VecDeque<(Instant, Key)>,
}

impl Histories {
    pub(super) fn new(sampling: Option<Sampling>) -> Self {
        Self { sampling, kept: Mutex::default() }
    }

    /// How often a task is read; `None` where none is.
    pub(crate) fn interval(&self) -> Option<Duration> {
        self.sampling.map(|sampling| sampling.interval)
    }

    /// How often its sandbox is measured; `None` where none is.
    pub(super) fn disk_interval(&self) -> Option<Duration> {
        self.sampling?.disk
    }

    /// Has `look` look at the history of a task, for a moment and in memory; `None` where there is none.
    pub(crate) fn look<T>(&self, key: &Key, look: impl FnOnce(&History) -> T) -> Option<T> {
        let history = self.kept().tasks.get(key).cloned()?;
        let history = history.lock().unwrap_or_else(PoisonError::into_inner);
        Some(look(&history))
    }

    fn kept(&self) -> MutexGuard<'_, Kept> {
        // No statement leaves it half changed.
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// From now on something is kept of a task.
    fn begin(&self, key: &Key) {
        let Some(sampling) = self.sampling else { return };
        let new = || Arc::new(Mutex::new(History::new(sampling.capacity())));
        self.kept().tasks.entry(key.clone()).or_insert_with(new);
    }

    /// Takes in a reading; says whether there was something to be kept.
    fn add(&self, key: &Key, usage: &TaskUsage) -> bool {
        self.change(key, |history| history.add(usage)).unwrap_or(false)
    }

    /// Takes in what the sandbox of a live task takes.
    pub(super) fn measured(&self, key: &Key, disk: DiskUsage) {
        self.change(key, |history| history.measured(disk));
    }

    /// Has `change` change the history of a task; `None` where none is kept, as of one that was removed meanwhile.
    fn change<T>(&self, key: &Key, change: impl FnOnce(&mut History) -> T) -> Option<T> {
        let history = self.kept().tasks.get(key).cloned()?;
        let mut history = history.lock().unwrap_or_else(PoisonError::into_inner);
        Some(change(&mut history))
    }

    /// The task has ended: what is kept of it is dropped in a while.
    fn ended(&self, key: &Key, now: Instant) {
        let mut kept = self.kept();
        if !kept.tasks.contains_key(key) {
            return;
        }
        kept.ended.push_back((now, key.clone()));
        if kept.ended.len() > ENDED
            && let Some((_, oldest)) = kept.ended.pop_front()
        {
            kept.tasks.remove(&oldest);
        }
    }

    /// Drops what is kept of tasks that are not among these.
    fn retain(&self, there: &HashSet<Key>) {
        let mut kept = self.kept();
        kept.tasks.retain(|key, _| there.contains(key));
        kept.ended.retain(|(_, key)| there.contains(key));
    }

    fn removed(&self, key: &Key) {
        let mut kept = self.kept();
        kept.tasks.remove(key);
        kept.ended.retain(|(_, of)| of != key);
    }

    /// Drops what was kept of ended tasks for long enough; tells when there is more to drop.
    fn expire(&self, now: Instant) -> Option<Instant> {
        let span = self.sampling?.span;
        let mut kept = self.kept();
        while let Some(&(ended, _)) = kept.ended.front() {
            if now < ended + span {
                return Some(ended + span);
            }
            if let Some((_, key)) = kept.ended.pop_front() {
                kept.tasks.remove(&key);
            }
        }
        None
    }
}

/// When which task is read. Pure.
#[derive(Debug)]
struct Schedule {
    epoch: Instant,
    interval: Duration,
    due: BTreeSet<(Instant, TaskId)>,
    tasks: HashMap<TaskId, Due>,
}

#[derive(Debug, Clone, Copy)]
struct Due {
    at: Instant,
    /// How often it was looked at before it had a cgroup.
    tries: u32,
}

impl Schedule {
    fn new(epoch: Instant, interval: Duration) -> Self {
        Self { epoch, interval, due: BTreeSet::new(), tasks: HashMap::new() }
    }

    /// Has a task that is not read yet read at once.
    fn add(&mut self, id: &TaskId, now: Instant) {
        if !self.tasks.contains_key(id) {
            self.set(id, Due { at: now, tries: 0 });
        }
    }

    fn remove(&mut self, id: &TaskId) {
        if let Some(due) = self.tasks.remove(id) {
            self.due.remove(&(due.at, id.clone()));
        }
    }

    fn set(&mut self, id: &TaskId, due: Due) {
        self.remove(id);
        self.due.insert((due.at, id.clone()));
        self.tasks.insert(id.clone(), due);
    }

    /// When the next task is due.
    fn next(&self) -> Option<Instant> {
        self.due.first().map(|&(at, _)| at)
    }

    /// The tasks that are due.
    fn due(&self, now: Instant) -> Vec<TaskId> {
        self.due.iter().take_while(|(at, _)| *at <= now).map(|(_, id)| id.clone()).collect()
    }

    /// A task was read at `now`; `found`: there was something to be read.
    fn read(&mut self, id: &TaskId, found: bool, now: Instant) {
        let Some(&Due { tries, .. }) = self.tasks.get(id) else { return };
        let slot = self.slot(id, now);
        let due = if found || tries == TRIES {
            Due { at: slot, tries: TRIES }
        } else {
            Due { at: slot.min(now + SETTLE), tries: tries + 1 }
        };
        self.set(id, due);
    }

    /// When the slot of a task comes next after `now`.
    fn slot(&self, id: &TaskId, now: Instant) -> Instant {
        let mut hasher = DefaultHasher::new();
        id.hash(&mut hasher);
        let phase = self.interval / SLOTS * (hasher.finish() % u64::from(SLOTS)) as u32;
        let first = self.epoch + phase;
        let Some(since) = now.checked_duration_since(first) else { return first };
        let rest = since.as_nanos() % self.interval.as_nanos();
        now + self.interval - Duration::from_nanos(u64::try_from(rest).unwrap_or_default())
    }
}

/// The tasks that are sampled.
struct Sampler {
    node: Arc<Node>,
    interval: Duration,
    schedule: Schedule,
    tasks: HashMap<TaskId, (Key, Arc<Shared>)>,
}

/// Samples all tasks until the daemon stops. Where none is to be sampled, it returns at once.
pub(super) async fn run(node: Arc<Node>) {
    let Some(interval) = node.histories.interval() else { return };
    let schedule = Schedule::new(Instant::now(), interval);
    let mut sampler = Sampler { node: node.clone(), interval, schedule, tasks: HashMap::new() };
    let mut news = node.registry.next();
    let mut stopping = node.stopping.clone();
    let mut next = sampler.begin();
    loop {
        next = sampler.catch_up(next);
        let now = Instant::now();
        let due = [sampler.schedule.next(), node.histories.expire(now)].into_iter().flatten().min();
        let due = async {
            match due {
                Some(due) => tokio::time::sleep_until(due.into()).await,
                None => std::future::pending().await,
            }
        };
        let happened = async {
            // It is told by the registry, which lives as long as we do.
            let _ = news.changed().await;
            tokio::time::sleep(SETTLE).await;
        };
        tokio::select! {
            () = due => {}
            () = happened => {}
            _ = stopping.wait_for(|&stopping| stopping) => return,
        }
        sampler.read_due().await;
    }
}

impl Sampler {
    /// Takes in all tasks as they are now; tells the number of the first item that is not in it.
    fn begin(&mut self) -> u64 {
        let (entries, next) = self.node.registry.snapshot();
        let there: HashSet<_> = entries.iter().filter_map(key).collect();
        let known: Vec<_> = self.tasks.values().map(|(key, _)| key.clone()).collect();
        known.iter().filter(|key| !there.contains(key)).for_each(|key| self.forget(&key.0));
        self.node.histories.retain(&there);
        entries.iter().for_each(|entry| self.take(entry));
        next
    }

    /// Takes in what happened from item `from` on; tells where to go on.
    fn catch_up(&mut self, mut from: u64) -> u64 {
        loop {
            let items = match self.node.registry.history(from, BATCH) {
                Ok(items) => items,
                Err(Lost(_)) => return self.begin(),
            };
            let Some(last) = items.last() else { return from };
            from = last.number + 1;
            for item in items {
                match item.news {
                    News::Removed => {
                        if let Some(key) = key(&item.entry) {
                            self.forget(&key.0);
                            self.node.histories.removed(&key);
                        }
                    }
                    News::Accepted | News::Event(_) | News::Waits => self.take(&item.entry),
                }
            }
        }
    }

    /// Takes in a task as it is.
    fn take(&mut self, entry: &Entry) {
        let Some(key) = key(entry) else { return };
        let state = entry.summary.state();
        if is_terminal(state) || state == TaskState::Corrupt {
            if self.tasks.contains_key(&key.0) {
                self.node.histories.ended(&key, Instant::now());
                self.forget(&key.0);
            }
        } else if self.tasks.get(&key.0).is_none_or(|(known, _)| *known != key) {
            self.forget(&key.0);
            self.schedule.add(&key.0, Instant::now());
            self.node.histories.begin(&key);
            let meter = self.node.meters.get(&key);
            self.tasks.insert(key.0.clone(), (key, meter));
        }
    }

    fn forget(&mut self, id: &TaskId) {
        self.schedule.remove(id);
        self.tasks.remove(id);
    }

    /// Reads the tasks that are due.
    async fn read_due(&mut self) {
        let due = self.schedule.due(Instant::now());
        if due.is_empty() {
            return;
        }
        let work: Vec<_> = due.iter().filter_map(|id| self.tasks.get(id).cloned()).collect();
        let (node, fresh) = (self.node.clone(), self.interval / 4);
        let read = block(move || {
            let found = work.iter().filter(|(key, meter)| read(&node, key, meter, fresh));
            Ok(found.map(|((id, _), _)| id.clone()).collect::<BTreeSet<_>>())
        });
        let found = read.await.unwrap_or_else(|status| {
            tracing::error!(error = status.message(), "tasks were not sampled");
            BTreeSet::new()
        });
        let now = Instant::now();
        for id in &due {
            let is_found = found.contains(id);
            self.schedule.read(id, is_found, now);
            if let Some((key, meter)) = self.tasks.get_mut(id).filter(|_| !is_found) {
                // One that failed is nobody's any more: clients have another by now.
                *meter = self.node.meters.get(key);
            }
        }
    }
}

/// Reads a task, unless a client had that done within `fresh`; says whether there was something to be read.
fn read(node: &Node, key: &Key, meter: &Shared, fresh: Duration) -> bool {
    let now = Instant::now();
    let since = now.checked_sub(fresh).unwrap_or(now);
    match node.meters.read(key, meter, since, Detail::Kept) {
        Ok(usage) => node.histories.add(key, &usage),
        Err(status) => {
            tracing::debug!(task = %key.0, error = status.message(), "not sampled");
            false
        }
    }
}

fn key(entry: &Entry) -> Option<Key> {
    let id = TaskId::new(&*entry.summary.task_id).ok()?;
    Some((id, entry.summary.accept_time))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::{Sample, Timestamp};

    const INTERVAL: Duration = Duration::from_secs(16);

    fn id(number: usize) -> TaskId {
        TaskId::new(format!("t{number}")).unwrap()
    }

    fn schedule() -> (Schedule, Instant) {
        let epoch = Instant::now();
        (Schedule::new(epoch, INTERVAL), epoch)
    }

    /// V13's ring: the numbers that Thermos accepts.
    #[test]
    fn a_history_has_one_to_ten_thousand_readings() {
        let seconds = Duration::from_secs;
        let capacity = |interval, span| Some(Sampling::new(interval, span)?.capacity());

        assert_eq!(capacity(seconds(20), seconds(3600)), Some(180));
        assert_eq!(capacity(seconds(7), seconds(20)), Some(2));
        assert_eq!(capacity(seconds(1), seconds(10_000)), Some(10_000));
        assert_eq!(capacity(seconds(1), seconds(10_001)), None);
        assert_eq!(capacity(seconds(20), seconds(19)), None);
        assert_eq!(capacity(Duration::ZERO, seconds(19)), None);
    }

    /// In virtual time: an hour of a thousand tasks.
    #[test]
    fn each_task_is_read_once_in_an_interval_and_they_are_spread_over_it() {
        let (mut schedule, mut now) = schedule();
        (0..1000).for_each(|number| schedule.add(&id(number), now));
        assert_eq!(schedule.due(now).len(), 1000, "each is read at once");
        let mut reads: HashMap<TaskId, Vec<Instant>> = HashMap::new();
        let mut largest = 0;
        let start = now;
        while now < start + Duration::from_secs(3600) {
            let due = schedule.due(now);
            if now > start {
                largest = largest.max(due.len());
            }
            for id in due {
                schedule.read(&id, true, now);
                reads.entry(id).or_default().push(now);
            }
            now = schedule.next().unwrap();
        }
        assert_eq!(reads.len(), 1000);
        for reads in reads.values() {
            // One of them may be the first slot.
            assert!(
                (225..=226).contains(&reads.len()),
                "one at once, and one in each of 225 intervals"
            );
            assert!(reads[1..].windows(2).all(|two| two[1] - two[0] == INTERVAL));
        }
        assert!(largest < 1000 / SLOTS as usize * 2, "{largest} at one instant");
    }

    #[test]
    fn what_took_too_long_is_not_made_up_for() {
        let (mut schedule, now) = schedule();
        schedule.add(&id(1), now);
        schedule.read(&id(1), true, now);
        let slot = schedule.next().unwrap();

        let late = slot + INTERVAL * 3 + Duration::from_secs(1);
        assert_eq!(schedule.due(late).len(), 1);
        schedule.read(&id(1), true, late);

        assert_eq!(schedule.next(), Some(slot + INTERVAL * 4));
    }

    #[test]
    fn a_task_without_a_cgroup_is_looked_at_again_soon_and_for_a_while() {
        let (mut schedule, start) = schedule();
        let mut now = start;
        schedule.add(&id(1), now);
        for _ in 0..TRIES {
            schedule.read(&id(1), false, now);
            let next = schedule.next().unwrap();
            assert!(next - now <= SETTLE, "{:?}", next - now);
            now = next;
        }
        schedule.read(&id(1), false, now);
        now = schedule.next().unwrap();
        schedule.read(&id(1), false, now);
        assert_eq!(schedule.next().unwrap() - now, INTERVAL);

        schedule.remove(&id(1));
        assert_eq!((schedule.next(), schedule.tasks.len()), (None, 0));
        schedule.read(&id(1), true, now);
        assert_eq!(schedule.next(), None, "it was removed while it was read");
    }

    fn histories() -> Histories {
        Histories::new(Sampling::new(Duration::from_secs(10), Duration::from_secs(3600)))
    }

    fn keep(histories: &Histories, number: usize) -> Key {
        let key = (id(number), Some(Timestamp::from_unix_nanos(7)));
        let usage = TaskUsage { sample: Some(Sample::default()), ..TaskUsage::default() };
        histories.begin(&key);
        assert!(histories.add(&key, &usage));
        key
    }

    fn is_kept(histories: &Histories, key: &Key) -> bool {
        histories.look(key, |_| ()).is_some()
    }

    /// Attack 50: series disappear with the task.
    #[test]
    fn the_history_of_a_task_outlives_it_by_its_span_and_goes_when_the_task_is_removed() {
        let (histories, end) = (histories(), Instant::now());
        let [live, ended, removed] = [1, 2, 3].map(|number| keep(&histories, number));
        let hour = Duration::from_secs(3600);
        histories.ended(&ended, end);
        histories.ended(&removed, end);

        histories.removed(&removed);

        histories.measured(&removed, DiskUsage::default());
        assert!(!is_kept(&histories, &removed), "not even by what was still being measured");
        assert_eq!(histories.expire(end + hour - Duration::from_nanos(1)), Some(end + hour));
        assert!(is_kept(&histories, &ended));
        assert_eq!(histories.expire(end + hour), None);
        assert!(!is_kept(&histories, &ended) && is_kept(&histories, &live));
        let again = (live.0.clone(), Some(Timestamp::from_unix_nanos(8)));
        assert!(!is_kept(&histories, &again), "another task of the same id");
    }

    #[test]
    fn of_ended_tasks_only_the_last_ones_are_kept() {
        let (histories, now) = (histories(), Instant::now());
        let keys: Vec<_> = (0..ENDED + 2).map(|number| keep(&histories, number)).collect();
        keys.iter().for_each(|key| histories.ended(key, now));

        assert_eq!(histories.kept().tasks.len(), ENDED);
        assert!(!is_kept(&histories, &keys[1]) && is_kept(&histories, &keys[2]));
    }

    #[test]
    fn nothing_is_kept_where_nothing_is_sampled() {
        let histories = Histories::new(None);
        let usage = TaskUsage { sample: Some(Sample::default()), ..TaskUsage::default() };

        let key = (id(1), None);
        histories.begin(&key);

        assert!(!histories.add(&key, &usage) && !is_kept(&histories, &key));
    }
}
