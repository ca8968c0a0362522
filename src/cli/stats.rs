//! `dewar stats`.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::thread;
use std::time::{Duration, Instant};

use super::args::{Stats, StatusOutput};
use super::failure::{Failure, status};
use super::node::{Gauge, Node, Which};
use super::out::Out;
use super::pattern::Patterns;
use super::printer::stdout_style;
use super::progress::Screen;
use super::table::{self, Align};
use super::term::{self, Style, cut};
use super::{json, words};
use crate::meter::Detail;
use crate::proto::{ProcessUsage, Sample, TaskState, TaskUsage, Usage};
use crate::sys::fds;
use crate::task::TaskId;

/// Tells what the tasks that were asked for use, once or again and again.
///
/// # Errors
///
/// [`Failure`]; what cannot be read of one task is said, and hides no other.
pub(super) fn run(args: &Stats) -> Result<u8, Failure> {
    // A sampler keeps many descriptors; with fewer, tasks are told of that cannot be sampled.
    let _ = fds::raise_limit();
    let node = Node::find(&args.node)?;
    let mut metered = Metered::new(args, &node)?;
    let mut printer = Printer::new(args);
    let mut due = Instant::now();
    loop {
        let usages = metered.read()?;
        if usages.is_empty() && metered.found_nothing() {
            return Err(Failure::NothingMatched(format!("no such task {}", metered.node)));
        }
        printer.print(&usages)?;
        let Some(interval) = args.watch else { break };
        if metered.is_over() || printer.out.is_gone() {
            break;
        }
        // What took too long is not made up for.
        due = (due + interval).max(Instant::now());
        thread::sleep(due.saturating_duration_since(Instant::now()));
    }
    Ok(metered.exit)
}

/// The tasks that are told of.
struct Metered<'a> {
    node: &'a Node,
    patterns: Patterns,
    /// Whether tasks were named: ended ones are told of then.
    is_choosy: bool,
    detail: Detail,
    /// Those whose end was not told.
    live: BTreeMap<TaskId, Gauge<'a>>,
    /// Those whose end was told.
    over: BTreeSet<TaskId>,
    exit: u8,
}

impl<'a> Metered<'a> {
    fn new(args: &Stats, node: &'a Node) -> Result<Self, Failure> {
        Ok(Self {
            node,
            patterns: Patterns::new(&args.patterns)?,
            is_choosy: !args.patterns.is_empty(),
            detail: if args.by_process { Detail::Processes } else { Detail::Task },
            live: BTreeMap::new(),
            over: BTreeSet::new(),
            exit: status::SUCCESS,
        })
    }

    /// Reads every task that is to be told of. A task that has ended is told of once.
    fn read(&mut self) -> Result<Vec<TaskUsage>, Failure> {
        self.look_for_more()?;
        let mut usages = Vec::with_capacity(self.live.len());
        let mut problems = Vec::new();
        for (id, gauge) in &mut self.live {
            match gauge() {
                Ok(usage) => {
                    if is_over(&usage) {
                        self.over.insert(id.clone());
                    }
                    usages.push(usage);
                }
                Err(failure) => {
                    problems.push(format!("{}: {failure}", words::name(id.as_str())));
                    self.over.insert(id.clone());
                }
            }
        }
        problems.iter().for_each(|problem| self.complain(problem));
        self.live.retain(|id, _| !self.over.contains(id));
        Ok(usages)
    }

    fn look_for_more(&mut self) -> Result<(), Failure> {
        let which = if self.is_choosy { Which::All } else { Which::Active };
        for id in self.node.list(&self.patterns, which)? {
            if !self.over.contains(&id) && !self.live.contains_key(&id) {
                let gauge = self.node.gauge(&id, self.detail);
                self.live.insert(id, gauge);
            }
        }
        Ok(())
    }

    fn complain(&mut self, problem: &str) {
        eprintln!("dewar: {problem}");
        self.exit = status::UNAVAILABLE;
    }

    /// Whether tasks were named and there is none of them.
    fn found_nothing(&self) -> bool {
        self.is_choosy && self.over.is_empty() && self.exit == status::SUCCESS
    }

    /// Whether there is nothing to be told any more.
    fn is_over(&self) -> bool {
        self.is_choosy && self.live.is_empty()
    }
}

/// Whether a task has ended.
fn is_over(usage: &TaskUsage) -> bool {
    use TaskState as S;
    matches!(usage.state(), S::Success | S::Failed | S::Killed | S::Lost)
}

struct Printer {
    out: Out,
    form: Form,
}

enum Form {
    Json,
    Table {
        style: Style,
        /// On a terminal one table is drawn over the other; elsewhere a blank line divides them.
        screen: Option<Screen>,
        /// The last sample of each task and of each of its live runs, which CPU percentages are counted from.
        last: Last,
        is_first: bool,
    },
}

impl Printer {
    fn new(args: &Stats) -> Self {
        let form = match args.output {
            StatusOutput::Json => Form::Json,
            StatusOutput::Table => Form::Table {
                style: stdout_style(),
                screen: (args.watch.is_some() && term::size(io::stdout()).is_some())
                    .then(Screen::default),
                last: Last::default(),
                is_first: true,
            },
        };
        Self { out: Out::default(), form }
    }

    fn print(&mut self, usages: &[TaskUsage]) -> Result<(), Failure> {
        let text = match &mut self.form {
            Form::Json => usages.iter().map(json::line).collect::<Result<String, _>>()?,
            Form::Table { style, screen, last, is_first } => {
                let lines = lines(usages, last, *style);
                match (screen, term::size(io::stdout())) {
                    (Some(screen), Some((rows, columns))) => draw(screen, &lines, rows, columns),
                    _ => {
                        let gap = if std::mem::take(is_first) { "" } else { "\n" };
                        format!("{gap}{}\n", lines.join("\n"))
                    }
                }
            }
        };
        Ok(self.out.write(text)?)
    }
}

/// Draws as many lines as fit, above the row of the cursor.
fn draw(screen: &mut Screen, lines: &[String], rows: usize, columns: usize) -> String {
    let fitting = lines.iter().take(rows.saturating_sub(1));
    let fitting: Vec<_> = fitting.map(|line| cut(line, columns).into_owned()).collect();
    screen.draw(&fitting, columns)
}

/// CPU time of each sample that was told last, by task, process (empty: the task itself) and cgroup, with its time.
#[derive(Default)]
struct Last(BTreeMap<(String, String, u64), (u64, Duration)>);

impl Last {
    /// CPUs used on average since the last sample of the same cgroup, and takes note of this one; `None` for the first.
    fn cpus(&mut self, task: &str, process: &str, sample: &Sample) -> Option<f64> {
        let time = sample.cpu?.time.and_then(|time| Duration::try_from(time).ok())?;
        let key = (task.to_owned(), process.to_owned(), sample.cgroup_id);
        let (at, before) = self.0.insert(key, (sample.boot_nanos, time))?;
        let passed = Duration::from_nanos(sample.boot_nanos.checked_sub(at)?);
        let used = time.checked_sub(before)?;
        (!passed.is_zero()).then(|| used.as_secs_f64() / passed.as_secs_f64())
    }

    /// Forgets the samples before `oldest`.
    fn forget(&mut self, oldest: u64) {
        self.0.retain(|_, (at, _)| *at >= oldest);
    }
}

const COLUMNS: usize = 11;

fn lines(usages: &[TaskUsage], last: &mut Last, style: Style) -> Vec<String> {
    let heading = [
        "TASK", "STATE", "CPU", "CPU TIME", "MEMORY", "PEAK", "LIMIT", "READ", "WRITTEN", "PIDS",
        "",
    ];
    let mut rows = vec![heading.map(str::to_owned)];
    let mut oldest = u64::MAX;
    for usage in usages {
        let samples = usage.processes.iter().filter_map(|of| of.sample.as_ref());
        for sample in usage.sample.iter().chain(samples) {
            oldest = oldest.min(sample.boot_nanos);
        }
        rows.push(task_row(usage, last));
        rows.extend(usage.processes.iter().map(|of| process_row(&usage.task_id, of, last)));
    }
    last.forget(oldest);
    let right = Align::Right;
    let mut aligns = [right; COLUMNS];
    (aligns[0], aligns[1], aligns[COLUMNS - 1]) = (Align::Left, Align::Left, Align::Left);
    table::lines(&rows, aligns, |row, _, text| if row == 0 { style.dim(text) } else { text.into() })
}

fn task_row(usage: &TaskUsage, last: &mut Last) -> [String; COLUMNS] {
    let cpus = usage.sample.as_ref().and_then(|sample| last.cpus(&usage.task_id, "", sample));
    let name = words::name(&usage.task_id);
    let state = words::task_state(usage.state()).to_owned();
    row(name, state, cpus, usage.sample.as_ref(), usage.recorded.as_ref())
}

/// A process: its live run if there is one, else what its runs used together.
fn process_row(task: &str, usage: &ProcessUsage, last: &mut Last) -> [String; COLUMNS] {
    let cpus = usage.sample.as_ref().and_then(|sample| last.cpus(task, &usage.name, sample));
    let name = format!("  {}", words::name(&usage.name));
    let state = usage.run.map(|run| format!("run {run}")).unwrap_or_default();
    row(name, state, cpus, usage.sample.as_ref(), usage.recorded.as_ref())
}

/// `sample` tells all; without one, `recorded` tells what is over.
fn row(
    name: String,
    state: String,
    cpus: Option<f64>,
    sample: Option<&Sample>,
    recorded: Option<&Usage>,
) -> [String; COLUMNS] {
    let usage = sample.map(Usage::from).or(recorded.copied()).unwrap_or_default();
    let memory = sample.and_then(|sample| sample.memory).unwrap_or_default();
    let pids = sample.and_then(|sample| sample.pids).unwrap_or_default();
    let bytes = |count: Option<u64>| count.map_or_else(unknown, words::bytes);
    [
        name,
        state,
        cpus.map_or_else(unknown, |cpus| format!("{:.1}%", cpus * 100.0)),
        words::cpu(&usage).map_or_else(unknown, words::span),
        bytes(memory.current_bytes),
        bytes(usage.memory_peak_bytes),
        bytes(memory.max_bytes),
        bytes(usage.io_read_bytes),
        bytes(usage.io_write_bytes),
        match (pids.current, pids.max) {
            (Some(current), Some(max)) => format!("{current}/{max}"),
            (Some(current), None) => current.to_string(),
            (None, _) => unknown(),
        },
        words::limits_hit(&usage),
    ]
}

fn unknown() -> String {
    "-".to_owned()
}

#[cfg(test)]
mod tests {
    use pbjson_types::Duration as Span;

    use super::*;
    use crate::proto::{CpuUsage, MemoryUsage, PidsUsage};

    fn sample(boot_seconds: u64, cpu_millis: u64, cgroup_id: u64) -> Sample {
        let time = Span::from(Duration::from_millis(cpu_millis));
        Sample {
            boot_nanos: boot_seconds * 1_000_000_000,
            cgroup_id,
            cpu: Some(CpuUsage { time: Some(time), ..CpuUsage::default() }),
            ..Sample::default()
        }
    }

    fn task(sample: Option<Sample>, recorded: Option<Usage>) -> TaskUsage {
        TaskUsage {
            task_id: "web-1".to_owned(),
            state: TaskState::Active.into(),
            sample,
            recorded,
            ..TaskUsage::default()
        }
    }

    #[test]
    fn cpu_percent_needs_two_samples_of_the_same_cgroup() {
        let mut last = Last::default();

        assert_eq!(last.cpus("t", "", &sample(1, 100, 7)), None);
        assert_eq!(last.cpus("t", "", &sample(3, 1100, 7)), Some(0.5));
        assert_eq!(last.cpus("t", "p", &sample(3, 1100, 8)), None);
        assert_eq!(last.cpus("t", "", &sample(4, 0, 9)), None, "made again");
        assert_eq!(last.cpus("t", "", &sample(4, 10, 9)), None, "no time has passed");
        assert_eq!(last.cpus("t", "", &sample(5, 5, 9)), None, "the counter went back");
    }

    #[test]
    fn what_was_not_sampled_again_is_forgotten() {
        let mut last = Last::default();
        lines(&[task(Some(sample(1, 1, 7)), None)], &mut last, Style::Plain);
        lines(&[task(Some(sample(2, 2, 8)), None)], &mut last, Style::Plain);

        assert_eq!(last.0.len(), 1);
    }

    #[test]
    fn a_live_task_is_told_by_its_sample_and_an_ended_run_by_its_records() {
        let memory = MemoryUsage {
            current_bytes: Some(1 << 20),
            peak_bytes: Some(2 << 20),
            max_bytes: Some(64 << 20),
            ..MemoryUsage::default()
        };
        let pids = PidsUsage {
            current: Some(3),
            max: Some(64),
            limit_hits: Some(2),
            ..PidsUsage::default()
        };
        let live = Sample { memory: Some(memory), pids: Some(pids), ..sample(1, 1500, 7) };
        let ended = Usage { io_write_bytes: Some(512), oom_kills: Some(1), ..Usage::default() };
        let process = |name: &str, run, sample, recorded| ProcessUsage {
            name: name.to_owned(),
            run,
            sample,
            recorded,
        };
        let mut usage = task(Some(live.clone()), Some(ended));
        usage.processes = vec![
            process("server", Some(4), Some(live), None),
            process("fetch", None, None, Some(ended)),
        ];

        let table = lines(&[usage], &mut Last::default(), Style::Plain).join("\n");

        assert_eq!(
            table,
            "\
TASK      STATE   CPU  CPU TIME   MEMORY     PEAK     LIMIT  READ  WRITTEN  PIDS
web-1     ACTIVE    -     1.50s  1.0 MiB  2.0 MiB  64.0 MiB     -        -  3/64  2 forks refused
  server  run 4     -     1.50s  1.0 MiB  2.0 MiB  64.0 MiB     -        -  3/64  2 forks refused
  fetch             -         -        -        -         -     -    512 B     -  1 OOM kill"
        );
    }

    #[test]
    fn a_picture_is_not_larger_than_its_terminal() {
        let lines = ["0123456789".to_owned(), "b".to_owned(), "c".to_owned()];

        let drawn = draw(&mut Screen::default(), &lines, 3, 4);

        assert!(
            drawn.contains("b\x1b[K") && !drawn.contains('c') && !drawn.contains('5'),
            "{drawn:?}"
        );
    }
}
