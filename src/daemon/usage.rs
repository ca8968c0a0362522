//! `GetUsage` and `WatchUsage`.
//!
//! A task is metered by one meter, whoever asks. A reading that began after a call came in is as good as one of its own, so calls
//! that come together are served by one reading; and watchers of the same interval tick at the same instants, so that they come
//! together. So the work grows with the tasks that are looked at and the intervals, not with the clients.
//!
//! Nothing is read for nobody. Readings that were made are kept for a while: what was used at a time in the past can be told
//! as far as somebody looked then.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status};

use super::control::{block, duration};
use super::observe::Answers;
use super::peer::Peer;
use super::watch::{Stop, finish, until};
use super::{Node, status};
use crate::checkpoint::Root;
use crate::meter::{Detail, Meter, MeterError};
use crate::proto::{
    GetUsageRequest, Sample, TaskState, TaskUsage, Timestamp, WatchUsageRequest, WatchUsageResponse,
};
use crate::task::TaskId;

/// Shortest time between two readings for a watcher.
const SHORTEST: Duration = Duration::from_millis(100);
/// Longest time.
const LONGEST: Duration = Duration::from_secs(3600);
/// The time if none is asked for.
const INTERVAL: Duration = Duration::from_secs(1);
/// Readings of a task that are kept.
const KEPT: usize = 64;
/// Meters that are kept for nobody: each holds some open files.
const IDLE: usize = 64;
/// Answers that wait for a client at most, beside what the connection holds.
const QUEUE: usize = 1;

/// A task: its id, and when it was accepted, as an id can be used again once its task was removed.
type Key = (TaskId, Option<Timestamp>);

/// The meters of all tasks that are looked at, or were of late.
#[derive(Debug)]
pub(crate) struct Meters {
    root: Root,
    /// What the ticks of all watchers are counted from.
    epoch: Instant,
    meters: Mutex<HashMap<Key, Arc<Shared>>>,
}

/// A meter that several share.
#[derive(Debug)]
struct Shared {
    metered: Mutex<Metered>,
}

#[derive(Debug)]
struct Metered {
    meter: Meter,
    /// The last reading, and when it was begun.
    last: Option<(Instant, Detail, TaskUsage)>,
    /// Readings, of the task as a whole; the oldest comes first.
    kept: VecDeque<TaskUsage>,
    /// How many were made.
    count: u64,
}

impl Metered {
    /// A reading that was begun at `since` or later.
    fn read(&mut self, since: Instant, detail: Detail) -> Result<TaskUsage, MeterError> {
        if let Some((begun, of, told)) = &self.last
            && *begun >= since
            && (*of == detail || *of == Detail::Processes)
        {
            let mut told = told.clone();
            if detail == Detail::Task {
                told.processes.clear();
            }
            return Ok(told);
        }
        let begun = Instant::now();
        let told = self.meter.read(detail)?;
        self.count += 1;
        self.last = Some((begun, detail, told.clone()));
        if self.kept.len() == KEPT {
            self.kept.pop_front();
        }
        self.kept.push_back(TaskUsage { processes: Vec::new(), ..told.clone() });
        Ok(told)
    }

    /// The reading that was made nearest to `time`.
    fn nearest(&self, time: Timestamp) -> Option<TaskUsage> {
        let distance = |told: &&TaskUsage| {
            let at = told.time.unwrap_or_default().unix_nanos();
            at.abs_diff(time.unix_nanos())
        };
        self.kept.iter().min_by_key(distance).cloned()
    }
}

impl Shared {
    fn metered(&self) -> MutexGuard<'_, Metered> {
        // A reading that was broken off is made anew.
        self.metered.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Meters {
    pub(super) fn new(root: Root) -> Self {
        Self { root, epoch: Instant::now(), meters: Mutex::default() }
    }

    fn get(&self, key: &Key) -> Arc<Shared> {
        let mut meters = self.meters.lock().unwrap_or_else(PoisonError::into_inner);
        if !meters.contains_key(key) && meters.len() >= IDLE {
            // Whoever uses one holds it.
            meters.retain(|_, meter| Arc::strong_count(meter) > 1);
        }
        let new = || {
            let meter = Meter::new(self.root.clone(), key.0.clone());
            let metered = Metered { meter, last: None, kept: VecDeque::new(), count: 0 };
            Arc::new(Shared { metered: Mutex::new(metered) })
        };
        Arc::clone(meters.entry(key.clone()).or_insert_with(new))
    }

    /// A reading of `meter` that was begun at `since` or later.
    fn read(
        &self,
        key: &Key,
        meter: &Shared,
        since: Instant,
        detail: Detail,
    ) -> Result<TaskUsage, Status> {
        let mut metered = meter.metered();
        let told = metered.read(since, detail).map_err(|error| of_meter(&error));
        if told.is_err() || metered.meter.is_over() {
            // What comes after the end is the same again, and what was wrong may be so no more.
            self.meters.lock().unwrap_or_else(PoisonError::into_inner).remove(key);
        }
        told
    }

    /// The next of the instants at which watchers of `interval` tick.
    fn tick(&self, interval: Duration, now: Instant) -> Instant {
        let interval = interval.as_nanos();
        let next = ((now - self.epoch).as_nanos() / interval + 1) * interval;
        self.epoch + Duration::from_nanos(u64::try_from(next).unwrap_or(u64::MAX))
    }
}

fn key(node: &Node, peer: &Peer, id: &str) -> Result<Key, Status> {
    let (id, _) = node.known(peer, id)?;
    let entry = node.registry.get(peer, &id).ok_or_else(|| status::no_task(id.as_str()))?;
    Ok((id, entry.summary.accept_time))
}

fn detail(by_process: bool) -> Detail {
    if by_process { Detail::Processes } else { Detail::Task }
}

/// Tells what a task uses.
///
/// # Errors
///
/// A task that is not there or cannot be metered; a time in the past of which nothing is kept.
pub(super) async fn get(
    node: Arc<Node>,
    peer: Peer,
    request: GetUsageRequest,
) -> Result<TaskUsage, Status> {
    let since = Instant::now();
    let GetUsageRequest { task_id, time, by_process } = request;
    let key = key(&node, &peer, &task_id)?;
    if let Some(time) = time {
        if by_process {
            let found = "true with a time";
            return Err(status::bad_field(
                "by_process",
                found,
                "false: of the past the task is kept",
            ));
        }
        let meter = node.meters.get(&key);
        let nearest = meter.metered().nearest(time);
        return nearest.ok_or_else(|| {
            let text = "no history is kept of a task that nobody watches; leave `time` out";
            status::info(Code::OutOfRange, "NO_HISTORY", text, &[])
        });
    }
    let meter = node.meters.get(&key);
    block(move || node.meters.read(&key, &meter, since, detail(by_process))).await
}

/// Starts a watcher.
///
/// # Errors
///
/// A request that makes no sense, or a task that is not there.
pub(super) fn watch(
    node: Arc<Node>,
    peer: Peer,
    request: WatchUsageRequest,
) -> Result<Answers<WatchUsageResponse>, Status> {
    let WatchUsageRequest { task_id, interval, by_process } = request;
    let key = key(&node, &peer, &task_id)?;
    let interval = interval.map(|interval| duration("interval", interval)).transpose()?;
    let interval = interval.unwrap_or(INTERVAL);
    if !(SHORTEST..=LONGEST).contains(&interval) {
        return Err(status::bad_field("interval", format!("{interval:?}"), "100 ms to 1 h"));
    }
    let (to_client, answers) = mpsc::channel(QUEUE);
    tokio::spawn(async move {
        let told = tell(&node, &peer, &key, interval, detail(by_process), &to_client);
        finish(&node, &to_client, told).await;
    });
    Ok(Box::pin(ReceiverStream::new(answers)))
}

async fn tell(
    node: &Arc<Node>,
    peer: &Peer,
    key: &Key,
    interval: Duration,
    detail: Detail,
    to_client: &mpsc::Sender<Result<WatchUsageResponse, Status>>,
) -> Result<(), Stop> {
    let meter = node.meters.get(key);
    let mut seen = Seen::default();
    let mut tick = Instant::now();
    loop {
        let room = to_client.reserve().await.map_err(|_| Stop::Gone)?;
        let mut usage = {
            let (node, key, meter) = (node.clone(), key.clone(), meter.clone());
            block(move || node.meters.read(&key, &meter, tick, detail)).await?
        };
        seen.tell(&mut usage);
        let over = super::registry::is_terminal(usage.state());
        room.send(Ok(WatchUsageResponse { usage: Some(usage) }));
        if over {
            return Ok(());
        }
        let now = Instant::now();
        tick = node.meters.tick(interval, now);
        // The end is not waited for until the tick.
        let end = [TaskState::Success.into()];
        if until(node, peer, &key.0, &end, Some(tick - now)).await? {
            tick = Instant::now();
        }
    }
}

/// Which cgroups a watcher was told of last: whether one is new is for each watcher to be told.
#[derive(Debug, Default)]
struct Seen(BTreeMap<Option<String>, u64>);

impl Seen {
    fn tell(&mut self, usage: &mut TaskUsage) {
        self.sample(None, usage.sample.as_mut());
        for process in &mut usage.processes {
            self.sample(Some(process.name.clone()), process.sample.as_mut());
        }
    }

    fn sample(&mut self, of: Option<String>, sample: Option<&mut Sample>) {
        if let Some(sample) = sample {
            let before = self.0.insert(of, sample.cgroup_id);
            sample.is_new_cgroup = before.is_some_and(|before| before != sample.cgroup_id);
        }
    }
}

fn of_meter(error: &MeterError) -> Status {
    match error {
        MeterError::Observe(error) => status::of_observe(error),
        MeterError::Cgroup(error) => status::unavailable(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::observe::tests::Node;
    use crate::state::Phase;

    fn meters(node: &Node, phases: &[Phase]) -> (Meters, Key) {
        let key = (node.task("a", phases), None);
        (Meters::new(node.root.clone()), key)
    }

    /// Attack 50: one collection per interval, whatever the number of clients.
    #[test]
    fn clients_that_come_together_are_served_by_one_reading() {
        let node = Node::new("daemon-usage-shared");
        let (meters, key) = meters(&node, &[Phase::Active]);
        let meter = meters.get(&key);
        for _ in 0..3 {
            let tick = Instant::now();
            std::thread::scope(|scope| {
                for _ in 0..20 {
                    scope.spawn(|| {
                        let meter = meters.get(&key);
                        meters.read(&key, &meter, tick, Detail::Task).unwrap()
                    });
                }
            });
        }
        assert_eq!(meter.metered().count, 3);

        meters.read(&key, &meter, Instant::now(), Detail::Task).unwrap();
        assert_eq!(meter.metered().count, 4, "what was read before the call is not now");
    }

    #[test]
    fn a_reading_of_all_processes_serves_who_asks_for_the_task() {
        let node = Node::new("daemon-usage-detail");
        let (meters, key) = meters(&node, &[Phase::Active]);
        let (meter, tick) = (meters.get(&key), Instant::now());
        let read = |detail| meters.read(&key, &meter, tick, detail).unwrap().processes.len();

        assert_eq!([Detail::Processes, Detail::Task].map(read), [1, 0]);
        assert_eq!(meter.metered().count, 1);
        assert_eq!(read(Detail::Processes), 1);
    }

    #[test]
    fn watchers_of_one_interval_tick_together() {
        let node = Node::new("daemon-usage-tick");
        let (meters, _) = meters(&node, &[Phase::Active]);
        let at = |millis| meters.epoch + Duration::from_millis(millis);
        let tick = |interval, now| meters.tick(Duration::from_millis(interval), at(now));

        assert_eq!([0, 1, 999].map(|now| tick(1000, now)), [at(1000); 3]);
        assert_eq!(tick(1000, 1000), at(2000));
        assert_eq!(tick(250, 1001), at(1250));
        assert_eq!(meters.tick(LONGEST, at(3_599_999)), at(3_600_000));
    }

    #[test]
    fn the_reading_nearest_to_a_time_is_told_and_no_more_are_kept_than_a_few() {
        let node = Node::new("daemon-usage-kept");
        let (meters, key) = meters(&node, &[Phase::Active]);
        let meter = meters.get(&key);
        assert_eq!(meter.metered().nearest(Timestamp::default()), None);
        let mut told = Vec::new();
        for _ in 0..KEPT + 3 {
            told.push(meters.read(&key, &meter, Instant::now(), Detail::Processes).unwrap());
        }

        let nearest = |time| meter.metered().nearest(time).unwrap().time;
        assert_eq!(nearest(Timestamp::default()), told[3].time, "the oldest are dropped");
        assert_eq!(nearest(Timestamp::from_unix_nanos(i64::MAX)), told.last().unwrap().time);
        assert_eq!(nearest(told[9].time.unwrap()), told[9].time);
        assert!(meter.metered().kept.iter().all(|told| told.processes.is_empty()));
    }

    #[test]
    fn no_meter_is_kept_for_a_task_that_is_over_and_few_for_nobody() {
        let node = Node::new("daemon-usage-over");
        let (meters, key) = meters(&node, &[Phase::Active, Phase::Cleaning, Phase::Failed]);
        let meter = meters.get(&key);
        let told = meters.read(&key, &meter, Instant::now(), Detail::Task).unwrap();
        assert_eq!(told.state(), TaskState::Failed);
        assert_eq!(meters.meters.lock().unwrap().len(), 0);

        let used = meters.get(&(TaskId::new("used").unwrap(), None));
        for number in 0..10 * IDLE {
            meters.get(&(TaskId::new(format!("t{number}")).unwrap(), None));
        }
        let kept = meters.meters.lock().unwrap();
        assert!(kept.len() <= IDLE, "{}", kept.len());
        assert!(kept.values().any(|meter| Arc::ptr_eq(meter, &used)));
    }

    #[test]
    fn each_watcher_is_told_once_that_a_cgroup_is_new() {
        let usage = |cgroup_id| TaskUsage {
            sample: Some(Sample { cgroup_id, is_new_cgroup: true, ..Sample::default() }),
            ..TaskUsage::default()
        };
        let mut seen = Seen::default();
        let told: Vec<_> = [7, 7, 8, 8]
            .into_iter()
            .map(|cgroup| {
                let mut usage = usage(cgroup);
                seen.tell(&mut usage);
                usage.sample.unwrap().is_new_cgroup
            })
            .collect();
        assert_eq!(told, [false, false, true, false]);
    }
}
