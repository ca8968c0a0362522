//! `GetUsage`, `GetUsageHistory` and `WatchUsage`.
//!
//! A task is metered by one meter, whoever asks. A reading that began after a call came in is as good as one of its own, so calls
//! that come together are served by one reading; and watchers of the same interval tick at the same instants, so that they come
//! together. So the work grows with the tasks that are looked at and the intervals, not with the clients.
//!
//! The sampler ([`super::sample`]) reads by the same meters, and keeps what is told of the past.

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status};

use super::control::{block, duration};
use super::history::{History, Point, Rates};
use super::observe::Answers;
use super::peer::Peer;
use super::registry::{Entry, is_terminal};
use super::sample::Sampling;
use super::watch::{Stop, finish, until};
use super::{Node, status};
use crate::checkpoint::Root;
use crate::meter::{Detail, Meter, MeterError};
use crate::proto::{
    GetUsageHistoryRequest, GetUsageHistoryResponse, GetUsageRequest, Launch, Sample, TaskState,
    TaskUsage, Timestamp, WatchUsageRequest, WatchUsageResponse,
};
use crate::sys::limit;
use crate::task::TaskId;

/// Shortest time between two readings for a watcher.
const SHORTEST: Duration = Duration::from_millis(100);
/// Longest time.
const LONGEST: Duration = Duration::from_secs(3600);
/// The time if none is asked for.
const INTERVAL: Duration = Duration::from_secs(1);
/// Meters that are kept for nobody.
const IDLE: usize = 64;
/// Descriptors of cgroups that are kept open to spare a reading the opening: all together at most so many, and no more than a quarter of
/// those that there may be.
const FILES: usize = 8192;
/// Points of a history that are told if nothing is said.
const POINTS: usize = 1000;
/// Answers that wait for a client at most, beside what the connection holds.
const QUEUE: usize = 1;

/// A task: its id, and when it was accepted, as an id can be used again once its task was removed.
pub(super) type Key = (TaskId, Option<Timestamp>);

/// The meters of all tasks that are looked at or sampled, or were of late.
#[derive(Debug)]
pub(crate) struct Meters {
    root: Root,
    /// What the ticks of all watchers are counted from.
    epoch: Instant,
    meters: Mutex<HashMap<Key, Arc<Shared>>>,
    /// Descriptors that the meters keep open.
    files: Arc<AtomicUsize>,
    /// How many these may be.
    most_files: usize,
}

/// A meter that several share.
#[derive(Debug)]
pub(super) struct Shared {
    metered: Mutex<Metered>,
}

#[derive(Debug)]
struct Metered {
    meter: Meter,
    /// The last reading, and when it was begun.
    last: Option<(Instant, Detail, TaskUsage)>,
    /// How many were made.
    count: u64,
    /// Descriptors that all meters keep open, with those of this one.
    all_files: Arc<AtomicUsize>,
    /// Descriptors that this one keeps open, as they were counted last.
    files: usize,
}

impl Metered {
    /// A reading that was begun at `since` or later.
    fn read(&mut self, since: Instant, detail: Detail) -> Result<TaskUsage, MeterError> {
        if let Some((begun, of, told)) = &self.last
            && *begun >= since
            && of.covers(detail)
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
        Ok(told)
    }

    /// Closes what this meter has open, if all of them have more than `most`.
    fn spare_files(&mut self, most: usize) {
        self.count_files();
        if self.all_files.load(Ordering::Relaxed) > most {
            self.meter.close();
            self.count_files();
        }
    }

    fn count_files(&mut self) {
        let before = std::mem::replace(&mut self.files, self.meter.files());
        self.all_files.fetch_add(self.files, Ordering::Relaxed);
        self.all_files.fetch_sub(before, Ordering::Relaxed);
    }
}

impl Drop for Metered {
    fn drop(&mut self) {
        self.meter.close();
        self.count_files();
    }
}

impl Shared {
    fn metered(&self) -> MutexGuard<'_, Metered> {
        // A reading that was broken off is made anew.
        self.metered.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The task as it was launched, once it was read. May block.
    pub(super) fn launch(&self) -> Option<Launch> {
        self.metered().meter.launch().cloned()
    }
}

impl Meters {
    pub(super) fn new(root: Root) -> Self {
        let may_be = limit::open_files().unwrap_or_default() / 4;
        let most_files = usize::try_from(may_be).unwrap_or(FILES).min(FILES);
        let (epoch, files) = (Instant::now(), Arc::default());
        Self { root, epoch, meters: Mutex::default(), files, most_files }
    }

    /// The meter of a task. It is kept for as long as somebody holds it.
    pub(super) fn get(&self, key: &Key) -> Arc<Shared> {
        let mut meters = self.meters.lock().unwrap_or_else(PoisonError::into_inner);
        if !meters.contains_key(key) && meters.len() >= IDLE {
            // Whoever uses one holds it.
            meters.retain(|_, meter| Arc::strong_count(meter) > 1);
        }
        let new = || {
            let meter = Meter::new(self.root.clone(), key.0.clone());
            let all_files = self.files.clone();
            let metered = Metered { meter, last: None, count: 0, all_files, files: 0 };
            Arc::new(Shared { metered: Mutex::new(metered) })
        };
        Arc::clone(meters.entry(key.clone()).or_insert_with(new))
    }

    /// A reading of `meter` that was begun at `since` or later. May block.
    pub(super) fn read(
        &self,
        key: &Key,
        meter: &Shared,
        since: Instant,
        detail: Detail,
    ) -> Result<TaskUsage, Status> {
        let mut metered = meter.metered();
        let told = metered.read(since, detail).map_err(|error| of_meter(&error));
        metered.spare_files(self.most_files);
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

fn known(node: &Node, peer: &Peer, id: &str) -> Result<(Key, Entry), Status> {
    let (id, _) = node.known(peer, id)?;
    let entry = node.registry.get(peer, &id).ok_or_else(|| status::no_task(id.as_str()))?;
    Ok(((id, entry.summary.accept_time), entry))
}

fn detail(by_process: bool) -> Detail {
    if by_process { Detail::Processes } else { Detail::Task }
}

/// Tells what a task uses, or used at a time.
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
    let (key, entry) = known(&node, &peer, &task_id)?;
    // What was recorded at the end is what is so from then on.
    let is_past = |time: Timestamp| {
        !is_terminal(entry.summary.state()) || entry.summary.end_time.is_none_or(|end| time < end)
    };
    if let Some(time) = time.filter(|&time| is_past(time)) {
        let kept = node.histories.look(&key, |history| history.get(time, by_process)).flatten();
        let kept = kept.ok_or_else(|| no_history(node.histories.interval()))?;
        return Ok(TaskUsage { task_id, ..kept });
    }
    let meter = node.meters.get(&key);
    block(move || {
        let mut told = node.meters.read(&key, &meter, since, detail(by_process))?;
        node.histories.look(&key, |history| {
            history.rate(&mut told);
            told.disk = history.disk();
        });
        Ok(told)
    })
    .await
}

fn no_history(interval: Option<Duration>) -> Status {
    let text = match interval {
        None => "no history is kept: the daemon was started with --sample-interval off",
        Some(_) => {
            "nothing is kept of this task: it was not sampled since the daemon started, or has no cgroup, or ended too long ago"
        }
    };
    status::info(Code::OutOfRange, "NO_HISTORY", text, &[])
}

/// Tells what a task, or one of its processes, used of late.
///
/// # Errors
///
/// A request that makes no sense; a task or a process that is not there; a daemon that keeps no history.
pub(super) async fn history(
    node: Arc<Node>,
    peer: Peer,
    request: GetUsageHistoryRequest,
) -> Result<GetUsageHistoryResponse, Status> {
    let GetUsageHistoryRequest { task_id, process, start_time, end_time, max_points } = request;
    let (key, _) = known(&node, &peer, &task_id)?;
    let interval = node.histories.interval().ok_or_else(|| no_history(None))?;
    let most = match max_points as usize {
        0 => POINTS,
        most if most <= Sampling::MOST => most,
        most => {
            let expected = format!("at most {}", Sampling::MOST);
            return Err(status::bad_field("max_points", most, expected));
        }
    };
    let start = start_time.map_or(i64::MIN, Timestamp::unix_nanos);
    let end = end_time.map_or(i64::MAX, Timestamp::unix_nanos);
    if start > end {
        let found = end_time.unwrap_or_default().to_string();
        return Err(status::bad_field("end_time", found, "no time before `start_time`"));
    }
    // Thousands of points take their time.
    block(move || {
        let of_process = process.is_some();
        let series = node.histories.look(&key, |history| match &process {
            Some(process) if !history.may_have(process) => Err(no_process(&task_id, process)),
            process => Ok(history.series(process.as_deref(), &(start..=end), most)),
        });
        let series = series.transpose()?.unwrap_or_default();
        let peak = series.peak_to_proto();
        let points = series.points.into_iter().map(|point| point.to_proto(of_process)).collect();
        Ok(GetUsageHistoryResponse { points, peak, interval: Some(interval.into()) })
    })
    .await
}

fn no_process(task: &str, process: &str) -> Status {
    let text = format!("task {task} has no process {process:?}");
    status::info(Code::NotFound, "NO_PROCESS", text, &[("process", process.to_owned())])
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
    let (key, _) = known(&node, &peer, &task_id)?;
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
        usage.disk = node.histories.look(key, History::disk).flatten();
        let over = is_terminal(usage.state());
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

/// What a watcher was told last: whether a cgroup is new to it, and what was used since, is for each watcher to be told.
#[derive(Debug, Default)]
struct Seen(BTreeMap<Option<String>, Point>);

impl Seen {
    fn tell(&mut self, usage: &mut TaskUsage) {
        self.sample(None, usage.sample.as_mut());
        for process in &mut usage.processes {
            self.sample(Some(process.name.clone()), process.sample.as_mut());
        }
    }

    fn sample(&mut self, of: Option<String>, sample: Option<&mut Sample>) {
        let Some(sample) = sample else { return };
        let now = Point::of(sample, 0);
        let before = self.0.insert(of, now);
        sample.is_new_cgroup = before.is_some_and(|before| before.cgroup_id != now.cgroup_id);
        if let (Some(before), Some(cpu)) = (before, &mut sample.cpu) {
            cpu.rate = Rates::between(&before, &now).cpus;
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
    use crate::cgroup::scratch::Scratch;
    use crate::observe::tests::Node;
    use crate::proto::CpuUsage;
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

    /// What is over the budget is closed after a reading, and nothing is counted that is not open.
    #[test]
    fn no_more_descriptors_are_kept_open_than_may_be() {
        let (node, scratch) = (Node::new("daemon-usage-files"), Scratch::new());
        let (mut meters, key) = meters(&node, &[Phase::Active]);
        let meter = meters.get(&key);
        let all = meters.files.clone();
        let open = || all.load(Ordering::Relaxed);
        let hold = || {
            meter.metered().meter.hold(scratch.task("task"));
            meter.metered().meter.files()
        };

        let files = hold();
        assert!(files > 1, "{files}");
        meter.metered().spare_files(files);
        assert_eq!((open(), meter.metered().meter.files()), (files, files));
        meter.metered().spare_files(files - 1);
        assert_eq!((open(), meter.metered().meter.files()), (0, 0));

        hold();
        meter.metered().spare_files(files);
        meters.most_files = 0;
        meters.read(&key, &meter, Instant::now(), Detail::Task).unwrap();
        assert_eq!(open(), 0);

        hold();
        meter.metered().spare_files(files);
        drop((meter, meters));
        assert_eq!(all.load(Ordering::Relaxed), 0);
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

    /// Attack 50: a rate is of one cgroup, and never negative.
    #[test]
    fn each_watcher_is_told_once_that_a_cgroup_is_new_and_what_was_used_since() {
        let usage = |seconds: u64, cgroup_id, cpu_seconds| TaskUsage {
            sample: Some(Sample {
                boot_nanos: seconds * 1_000_000_000,
                cgroup_id,
                is_new_cgroup: true,
                cpu: Some(CpuUsage {
                    time: Some(Duration::from_secs(cpu_seconds).into()),
                    ..CpuUsage::default()
                }),
                ..Sample::default()
            }),
            ..TaskUsage::default()
        };
        let mut seen = Seen::default();
        let readings = [(1, 7, 5), (3, 7, 6), (4, 8, 9), (5, 8, 10), (6, 8, 3)];
        let told = readings.map(|(seconds, cgroup, cpu)| {
            let mut usage = usage(seconds, cgroup, cpu);
            seen.tell(&mut usage);
            let sample = usage.sample.unwrap();
            (sample.is_new_cgroup, sample.cpu.unwrap().rate)
        });
        let same = |rate| (false, rate);
        assert_eq!(told, [same(None), same(Some(0.5)), (true, None), same(Some(1.0)), same(None)]);
    }
}
