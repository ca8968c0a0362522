//! `dewar stats`.

use std::io;
use std::thread;
use std::time::Instant;

use super::args::{At, Stats, StatusOutput};
use super::failure::Failure;
use super::metered::{Metered, Reading};
use super::nodes::Nodes;
use super::out::Out;
use super::printer::stdout_style;
use super::progress::Screen;
use super::rates::Rates;
use super::table::{self, Align};
use super::term::{self, Style, cut};
use super::{json, words};
use crate::causes::tell;
use crate::proto::{ProcessUsage, Sample, TaskUsage, Usage};
use crate::sys::fds;

/// Tells what the tasks that were asked for use, once or again and again.
///
/// # Errors
///
/// [`Failure`]; what cannot be read of one task is said, and hides no other.
pub(super) fn run(args: &Stats) -> Result<u8, Failure> {
    // A sampler keeps many descriptors; with fewer, tasks are told of that cannot be sampled.
    let _ = fds::raise_limit();
    let nodes = Nodes::find(&args.node)?;
    let at = args.at.map(At::time);
    let mut metered = Metered::new(&nodes, &args.patterns, args.by_process, at)?;
    let mut printer = Printer::new(args);
    let mut due = Instant::now();
    let mut told = Vec::new();
    loop {
        let usages = metered.read()?;
        let problems: Vec<_> = metered.problems().collect();
        // A root that stays as it is is none that has to be told of again.
        let new = problems.iter().filter(|problem| !told.contains(*problem));
        new.for_each(|problem| tell!("dewar: {problem}"));
        told = problems;
        if usages.is_empty() && metered.found_nothing() {
            return Err(Failure::NothingMatched(format!("no such task {nodes}")));
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
        /// What CPU percentages are counted from.
        last: Rates,
        /// Whether each task is told as it was at another time.
        is_past: bool,
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
                last: Rates::default(),
                is_past: args.at.is_some(),
                is_first: true,
            },
        };
        Self { out: Out::default(), form }
    }

    fn print(&mut self, usages: &[Reading]) -> Result<(), Failure> {
        let text = match &mut self.form {
            Form::Json => {
                let line = |of: &Reading| json::rooted(&of.usage, of.root.as_deref());
                usages.iter().map(line).collect::<Result<String, _>>()?
            }
            Form::Table { style, screen, last, is_past, is_first } => {
                let lines = lines(usages, last, *is_past, *style);
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

const COLUMNS: usize = 12;

/// `is_past`: each task says when it was read.
fn lines(usages: &[Reading], last: &mut Rates, is_past: bool, style: Style) -> Vec<String> {
    let heading = [
        "TASK", "STATE", "CPU", "CPU TIME", "MEMORY", "PEAK", "LIMIT", "DISK", "READ", "WRITTEN",
        "PIDS", "",
    ];
    let mut rows = vec![heading.map(str::to_owned)];
    let mut roots = Vec::new();
    let mut oldest = u64::MAX;
    for Reading { usage, root } in usages {
        let samples = usage.processes.iter().filter_map(|of| of.sample.as_ref());
        for sample in usage.sample.iter().chain(samples) {
            oldest = oldest.min(sample.boot_nanos);
        }
        let mut row = task_row(usage, last);
        if let Some(time) = usage.time.filter(|_| is_past) {
            let notes = &mut row[COLUMNS - 1];
            *notes = format!("at {}  {notes}", words::clock(time)).trim_end().to_owned();
        }
        rows.push(row);
        roots.push(root.as_deref());
        roots.resize(roots.len() + usage.processes.len(), None);
        rows.extend(usage.processes.iter().map(|of| process_row(&usage.task_id, of, last)));
    }
    last.forget(oldest);
    let right = Align::Right;
    let mut aligns = [right; COLUMNS];
    (aligns[0], aligns[1], aligns[COLUMNS - 1]) = (Align::Left, Align::Left, Align::Left);
    let lines = table::lines(
        &rows,
        aligns,
        |row, _, text| if row == 0 { style.dim(text) } else { text.into() },
    );
    table::rooted(lines, roots.into_iter(), style)
}

fn task_row(usage: &TaskUsage, last: &mut Rates) -> [String; COLUMNS] {
    let cpus = usage.sample.as_ref().and_then(|sample| last.since(&usage.task_id, "", sample).cpus);
    let name = words::name(&usage.task_id);
    let state = words::task_state(usage.state()).to_owned();
    let disk = usage.disk.as_ref().map_or_else(unknown, |disk| words::bytes(disk.bytes));
    row(name, state, cpus, disk, usage.sample.as_ref(), usage.recorded.as_ref())
}

/// A process: its live run if there is one, else what its runs used together.
fn process_row(task: &str, usage: &ProcessUsage, last: &mut Rates) -> [String; COLUMNS] {
    let cpus = usage.sample.as_ref().and_then(|sample| last.since(task, &usage.name, sample).cpus);
    let name = format!("  {}", words::name(&usage.name));
    let state = usage.run.map(|run| format!("run {run}")).unwrap_or_default();
    row(name, state, cpus, String::new(), usage.sample.as_ref(), usage.recorded.as_ref())
}

/// `sample` tells all; without one, `recorded` tells what is over.
fn row(
    name: String,
    state: String,
    cpus: Option<f64>,
    disk: String,
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
        disk,
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
    use super::*;
    use crate::cli::rates::tests::sample;
    use crate::proto::{DiskUsage, MemoryUsage, PidsUsage, TaskState};

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
        usage.disk = Some(DiskUsage { bytes: 5120, ..DiskUsage::default() });
        usage.processes = vec![
            process("server", Some(4), Some(live), None),
            process("fetch", None, None, Some(ended)),
        ];

        let table =
            lines(&[Reading { usage, root: None }], &mut Rates::default(), false, Style::Plain)
                .join("\n");

        assert_eq!(
            table,
            "\
TASK      STATE   CPU  CPU TIME   MEMORY     PEAK     LIMIT     DISK  READ  WRITTEN  PIDS
web-1     ACTIVE    -     1.50s  1.0 MiB  2.0 MiB  64.0 MiB  5.0 KiB     -        -  3/64  2 forks refused
  server  run 4     -     1.50s  1.0 MiB  2.0 MiB  64.0 MiB              -        -  3/64  2 forks refused
  fetch             -         -        -        -         -              -    512 B     -  1 OOM kill"
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
