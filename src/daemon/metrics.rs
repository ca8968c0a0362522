//! Metrics for Prometheus, made when they are asked for, of what the daemon knows at that moment.
//!
//! **No reading.** A live task is told as it was sampled last ([`super::sample`]): a scrape opens no cgroup, however many tasks there are and
//! however many scrape.
//!
//! **Bounded.** Labels are the closed sets of states and resources, and of a task its id, name and user. The series of a task are those of a live one: they
//! vanish with its end, and what it used in all is in its checkpoint. Of more than [`MOST_TASKS`] live tasks the rest is left out, and counted.
//!
//! Counters of the node are there from the start, at 0. Whoever does not see all tasks is told of their own tasks, and of nothing else.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::Ordering;

use nix::sys::statvfs::statvfs;
use procfs::WithCurrentSystemInfo;
use procfs::process::Process;
use prometheus::TextEncoder;
use prometheus::proto::{Counter, Gauge, LabelPair, Metric, MetricFamily, MetricType};
use tonic::Status;

use super::Node;
use super::control::block;
use super::history::Point;
use super::observe::Observe;
use super::peer::Peer;
use super::registry::{Entry, Tally, is_terminal};
use super::status;
use crate::proto::{ProcessState, TaskState};
use crate::task::TaskId;

/// Live tasks that are told of, at most.
const MOST_TASKS: usize = 10_000;

/// The states that a run ends in.
const RUN_ENDS: [ProcessState; 4] =
    [ProcessState::Success, ProcessState::Failed, ProcessState::Killed, ProcessState::Lost];
/// The states that a task ends in.
const TASK_ENDS: [TaskState; 4] =
    [TaskState::Success, TaskState::Failed, TaskState::Killed, TaskState::Lost];
/// The states of a task.
const TASK_STATES: [TaskState; 8] = [
    TaskState::Active,
    TaskState::Cleaning,
    TaskState::Finalizing,
    TaskState::Success,
    TaskState::Failed,
    TaskState::Killed,
    TaskState::Lost,
    TaskState::Corrupt,
];

impl Observe {
    /// All metrics that the peer may know of, in the text format of Prometheus, version 0.0.4.
    ///
    /// # Errors
    ///
    /// They cannot be made.
    pub(crate) async fn metrics(&self, peer: &Peer) -> Result<String, Status> {
        let (node, peer) = (self.node.clone(), peer.clone());
        block(move || {
            let families = families(&node, &peer);
            TextEncoder::new()
                .encode_to_string(&families)
                .map_err(|error| status::unavailable(&error))
        })
        .await
    }
}

/// A metric of each live task.
struct OfTask {
    name: &'static str,
    help: &'static str,
    kind: MetricType,
    value: Value,
}

type Value = fn(&Point) -> Option<f64>;

const fn gauge(name: &'static str, help: &'static str, value: Value) -> OfTask {
    OfTask { name, help, kind: MetricType::GAUGE, value }
}

const fn counter(name: &'static str, help: &'static str, value: Value) -> OfTask {
    OfTask { kind: MetricType::COUNTER, ..gauge(name, help, value) }
}

fn seconds(usec: Option<u64>) -> Option<f64> {
    usec.map(|usec| usec as f64 / 1e6)
}

fn number(value: Option<u64>) -> Option<f64> {
    value.map(|value| value as f64)
}

const OF_TASK: [OfTask; 14] = [
    counter("dewar_task_cpu_seconds_total", "CPU time of the task.", |of| seconds(of.cpu_usec)),
    counter("dewar_task_cpu_user_seconds_total", "CPU time of the task in user mode.", |of| {
        seconds(of.user_usec)
    }),
    counter("dewar_task_cpu_system_seconds_total", "CPU time of the task in kernel mode.", |of| {
        seconds(of.system_usec)
    }),
    counter(
        "dewar_task_cpu_throttled_seconds_total",
        "Time that the task waited because of its cpu_limit, all CPUs together.",
        |of| seconds(of.throttled_usec),
    ),
    gauge("dewar_task_memory_bytes", "Memory charged to the task, page cache too.", |of| {
        number(of.memory_bytes)
    }),
    gauge(
        "dewar_task_memory_working_set_bytes",
        "Memory of the task without page cache that was not used of late.",
        |of| number(of.working_set_bytes),
    ),
    gauge("dewar_task_memory_anon_bytes", "Private memory of the task's processes.", |of| {
        number(of.anon_bytes)
    }),
    gauge("dewar_task_memory_peak_bytes", "Most memory charged to the task at one time.", |of| {
        number(of.memory_peak_bytes)
    }),
    gauge("dewar_task_swap_bytes", "Swap space that the task uses.", |of| number(of.swap_bytes)),
    counter("dewar_task_io_read_bytes_total", "Bytes the task read from block devices.", |of| {
        number(of.read_bytes)
    }),
    counter("dewar_task_io_written_bytes_total", "Bytes the task wrote to block devices.", |of| {
        number(of.write_bytes)
    }),
    gauge("dewar_task_pids", "Processes and threads of the task.", |of| number(of.pids)),
    counter(
        "dewar_task_oom_kills_total",
        "Processes of the task that the OOM killer killed.",
        |of| number(of.oom_kills),
    ),
    gauge("dewar_task_disk_bytes", "Space that the sandbox of the task takes.", |of| {
        number(of.disk_bytes)
    }),
];

/// What the kernel tells of lost time, in the order of [`Point::stalls`].
const STALLS: [(&str, &str); 6] = [
    ("cpu", "some"),
    ("cpu", "full"),
    ("memory", "some"),
    ("memory", "full"),
    ("io", "some"),
    ("io", "full"),
];

/// A live task.
struct Live {
    labels: Vec<LabelPair>,
    entry: Entry,
    point: Option<Point>,
}

fn families(node: &Node, peer: &Peer) -> Vec<MetricFamily> {
    let mut states: BTreeMap<TaskState, u64> = BTreeMap::new();
    let (mut live, mut left_out) = (Vec::new(), 0_u64);
    node.registry.each(|(id, entry)| {
        if peer.sees(entry.owner) {
            let state = entry.summary.state();
            *states.entry(state).or_default() += 1;
            let lives = !is_terminal(state) && state != TaskState::Corrupt;
            match lives && live.len() < MOST_TASKS {
                true => live.push((id.clone(), entry.clone())),
                false => left_out += u64::from(lives),
            }
        }
    });
    let live: Vec<_> = live.into_iter().map(|(id, entry)| Live::new(node, id, entry)).collect();
    let mut families = Vec::new();
    let by_state = TASK_STATES.map(|state| {
        let count = states.get(&state).copied().unwrap_or_default();
        value(MetricType::GAUGE, count as f64, vec![label("state", short(state.as_str_name()))])
    });
    push(&mut families, "dewar_tasks", "Tasks by state.", MetricType::GAUGE, by_state.into());
    one(
        &mut families,
        "dewar_tasks_left_out",
        "Live tasks of which nothing is told here, as there are too many.",
        MetricType::GAUGE,
        left_out as f64,
    );
    of_tasks(&mut families, &live);
    if peer.sees(None) {
        of_node(&mut families, node);
        // Without /proc there would be no daemon; what it does not tell is left out.
        let _ = of_process(&mut families, node);
    }
    families.sort_by(|a, b| a.name().cmp(b.name()));
    families
}

impl Live {
    fn new(node: &Node, id: TaskId, entry: Entry) -> Self {
        let summary = &entry.summary;
        let labels = vec![
            label("name", &summary.name),
            label("task_id", id.as_str()),
            label("user", &summary.user),
        ];
        let key = (id, summary.accept_time);
        let point = node.histories.look(&key, super::history::History::last).flatten();
        Self { labels, entry, point }
    }

    fn value(&self, kind: MetricType, number: f64) -> Metric {
        value(kind, number, self.labels.clone())
    }
}

fn of_tasks(families: &mut Vec<MetricFamily>, live: &[Live]) {
    for OfTask { name, help, kind, value } in &OF_TASK {
        let metrics = live.iter().filter_map(|task| {
            let number = task.point.as_ref().and_then(value)?;
            Some(task.value(*kind, number))
        });
        push(families, name, help, *kind, metrics.collect());
    }
    let stalls = live.iter().flat_map(|task| {
        let stalls = task.point.as_ref().map(|point| point.stalls).unwrap_or_default();
        STALLS.iter().zip(stalls).filter_map(|((resource, lost), hundredths)| {
            let labels = [label("lost", *lost), label("resource", *resource)];
            let labels = [&task.labels[..], &labels].concat();
            Some(value(MetricType::GAUGE, hundredths? as f64 / 1e4, labels))
        })
    });
    push(
        families,
        "dewar_task_pressure_ratio",
        "Share of the last 10 s in which some, or all (full), of the task waited for a resource.",
        MetricType::GAUGE,
        stalls.collect(),
    );
    let told = |tell: fn(&Entry) -> Option<f64>| {
        live.iter()
            .filter_map(move |task| Some(task.value(MetricType::GAUGE, tell(&task.entry)?)))
            .collect()
    };
    push(
        families,
        "dewar_task_accept_time_seconds",
        "When the task was accepted, since 1970.",
        MetricType::GAUGE,
        told(|entry| Some(entry.summary.accept_time?.unix_nanos() as f64 / 1e9)),
    );
    push(
        families,
        "dewar_task_paused",
        "Whether the task is paused.",
        MetricType::GAUGE,
        told(|entry| Some(f64::from(u8::from(entry.summary.is_paused)))),
    );
    push(
        families,
        "dewar_task_waits_for_disk",
        "Whether the task waits until it can be recorded what happens, as for space.",
        MetricType::GAUGE,
        told(|entry| Some(f64::from(u8::from(entry.waits_for_disk)))),
    );
}

fn of_node(families: &mut Vec<MetricFamily>, node: &Node) {
    let Tally { accepted, ended, removed, runs_begun, runs_ended, oom_kills, runners_died } =
        node.registry.tally();
    let counters = [
        ("dewar_tasks_accepted_total", "Tasks accepted since the daemon began.", accepted),
        ("dewar_tasks_removed_total", "Tasks removed since the daemon began.", removed),
        ("dewar_runs_begun_total", "Runs begun since the daemon began.", runs_begun),
        ("dewar_oom_kills_total", "Processes of ended runs that the OOM killer killed.", oom_kills),
        ("dewar_runners_died_total", "Runners that died before their task was over.", runners_died),
    ];
    for (name, help, count) in counters {
        one(families, name, help, MetricType::COUNTER, count as f64);
    }
    let by_state = |name: &str, count: Option<&u64>| {
        let count = count.copied().unwrap_or_default();
        value(MetricType::COUNTER, count as f64, vec![label("state", short(name))])
    };
    let ends = TASK_ENDS.map(|state| by_state(state.as_str_name(), ended.get(&state)));
    let help = "Tasks that ended since the daemon began, by state.";
    push(families, "dewar_tasks_ended_total", help, MetricType::COUNTER, ends.into());
    let ends = RUN_ENDS.map(|state| by_state(state.as_str_name(), runs_ended.get(&state)));
    let help = "Runs that ended since the daemon began, by state.";
    push(families, "dewar_runs_ended_total", help, MetricType::COUNTER, ends.into());
    if let Some(traces) = &node.traces {
        let (sent, dropped) = traces.counts();
        let help = "Spans that a collector has taken.";
        one(families, "dewar_trace_spans_sent_total", help, MetricType::COUNTER, sent as f64);
        let help = "Spans that were dropped, as they could not be sent in time.";
        one(families, "dewar_trace_spans_dropped_total", help, MetricType::COUNTER, dropped as f64);
    }
    let interval = node.histories.interval().unwrap_or_default().as_secs_f64();
    let help = "Time between two samples of a task; 0: none is taken.";
    one(families, "dewar_sample_interval_seconds", help, MetricType::GAUGE, interval);
    of_root(families, node.root.path());
    let entries = node.disk_entries.load(Ordering::Relaxed) as f64;
    let help = "Entries of sandboxes that were looked at to measure them.";
    one(families, "dewar_disk_entries_total", help, MetricType::COUNTER, entries);
    let version = vec![label("version", env!("CARGO_PKG_VERSION"))];
    let info = vec![value(MetricType::GAUGE, 1.0, version)];
    push(families, "dewar_build_info", "The daemon's version.", MetricType::GAUGE, info);
}

/// The file system that the root is on; what it does not tell is left out.
fn of_root(families: &mut Vec<MetricFamily>, root: &Path) {
    let Ok(told) = statvfs(root) else { return };
    let bytes = |blocks: u64| blocks as f64 * told.fragment_size() as f64;
    let mut gauges = vec![
        ("dewar_root_bytes", "Size of the root's file system.", bytes(told.blocks())),
        (
            "dewar_root_free_bytes",
            "Space of the root's file system that is free for everybody.",
            bytes(told.blocks_available()),
        ),
    ];
    // A file system that makes inodes as it needs them has none.
    if told.files() > 0 {
        let (all, free) = (told.files() as f64, told.files_available() as f64);
        gauges.push(("dewar_root_inodes", "Inodes of the root's file system.", all));
        gauges.push(("dewar_root_free_inodes", "Inodes of it that are free for everybody.", free));
    }
    for (name, help, number) in gauges {
        one(families, name, help, MetricType::GAUGE, number);
    }
}

/// The daemon as a process, by the names that all exporters use.
fn of_process(families: &mut Vec<MetricFamily>, node: &Node) -> procfs::ProcResult<()> {
    let me = Process::myself()?;
    let stat = me.stat()?;
    let ticks = procfs::ticks_per_second() as f64;
    let started = node.started.unix_nanos() as f64 / 1e9;
    let cpu = (stat.utime + stat.stime) as f64 / ticks;
    let resident = stat.rss_bytes().get();
    let gauges = [
        ("process_start_time_seconds", "When the daemon began, since 1970.", started),
        ("process_resident_memory_bytes", "Memory of the daemon that is in RAM.", resident as f64),
        ("process_virtual_memory_bytes", "Address space of the daemon.", stat.vsize as f64),
        ("process_threads", "Threads of the daemon.", stat.num_threads as f64),
        ("process_open_fds", "Open descriptors of the daemon.", me.fd_count()? as f64),
    ];
    one(families, "process_cpu_seconds_total", "CPU time of the daemon.", MetricType::COUNTER, cpu);
    for (name, help, number) in gauges {
        one(families, name, help, MetricType::GAUGE, number);
    }
    Ok(())
}

/// A state without what all of its kind begin with, in small letters: `TASK_STATE_ACTIVE` is `active`.
fn short(state: &str) -> String {
    state.splitn(3, '_').last().unwrap_or(state).to_ascii_lowercase()
}

fn label(name: &str, value: impl Into<String>) -> LabelPair {
    let mut label = LabelPair::default();
    label.set_name(name.to_owned());
    label.set_value(value.into());
    label
}

fn value(kind: MetricType, number: f64, labels: Vec<LabelPair>) -> Metric {
    let mut metric = Metric::from_label(labels);
    if kind == MetricType::COUNTER {
        let mut counter = Counter::default();
        counter.set_value(number);
        metric.set_counter(counter);
    } else {
        let mut gauge = Gauge::default();
        gauge.set_value(number);
        metric.set_gauge(gauge);
    }
    metric
}

/// Adds a metric of one value.
fn one(families: &mut Vec<MetricFamily>, name: &str, help: &str, kind: MetricType, number: f64) {
    push(families, name, help, kind, vec![value(kind, number, Vec::new())]);
}

/// Adds a metric, if there is a value of it.
fn push(
    families: &mut Vec<MetricFamily>,
    name: &str,
    help: &str,
    kind: MetricType,
    metrics: Vec<Metric>,
) {
    if metrics.is_empty() {
        return;
    }
    let mut family = MetricFamily::default();
    family.set_name(name.to_owned());
    family.set_help(help.to_owned());
    family.set_field_type(kind);
    family.set_metric(metrics);
    families.push(family);
}
