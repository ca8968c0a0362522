//! `dewar top`: what live tasks use, those first that use the most.

use std::cmp::Ordering;
use std::io;
use std::thread;
use std::time::Instant;

use super::args::{Sort, StatusOutput, Top};
use super::failure::Failure;
use super::fullscreen::{Event, FullScreen, picture};
use super::metered::{Metered, Reading, has_ended};
use super::nodes::Nodes;
use super::out::Out;
use super::printer::stdout_style;
use super::rates::{Rate, Rates};
use super::table::{self, Align};
use super::term::{self, Style, cut, escape};
use super::{json, words};
use crate::causes::tell;
use crate::proto::{Pressure, Sample, TaskUsage, Usage};
use crate::sys::fds;

/// Lines above the first task: what all use, what the keys are, and the heading.
const HEAD: usize = 3;
/// A share of time that is worth a word.
const STALLED: f64 = 1.0;

/// Shows what live tasks use: again and again on a terminal, else once.
///
/// # Errors
///
/// [`Failure`]; what cannot be read of one task is said, and hides no other.
pub(super) fn run(args: &Top) -> Result<u8, Failure> {
    // A sampler keeps many descriptors; with fewer, tasks are told of that cannot be sampled.
    let _ = fds::raise_limit();
    let nodes = Nodes::find(&args.node)?;
    let metered = Metered::new(&nodes, &args.patterns, args.by_process, None)?;
    let watched = Watched { metered, rates: Rates::default(), read: Vec::new() };
    let view = View { sort: args.sort, by_process: args.by_process, first: 0 };
    // A dumb terminal has no place to draw at.
    let can_draw = std::env::var_os("TERM").is_some_and(|term| term != "dumb");
    let is_terminal = can_draw && term::size(io::stdout()).is_some();
    if args.once || args.output == StatusOutput::Json || !is_terminal {
        once(args, view, watched)
    } else {
        live(args, view, watched)
    }
}

/// The live tasks, as they were read last.
struct Watched<'a> {
    metered: Metered<'a>,
    rates: Rates,
    read: Vec<Task>,
}

/// A task, and the rows that tell of it.
struct Task {
    usage: TaskUsage,
    row: Row,
    /// Of each live run.
    runs: Vec<Row>,
}

impl Watched<'_> {
    /// # Errors
    ///
    /// [`Failure`]: the tasks cannot be listed. What was read before is still there.
    fn read(&mut self) -> Result<(), Failure> {
        let usages = self.metered.read()?;
        let live = usages.into_iter().filter(|of| !has_ended(&of.usage));
        self.read = live.map(|of| Task::new(of, &mut self.rates)).collect();
        let rows = self.read.iter().flat_map(|task| task.runs.iter().chain([&task.row]));
        let samples = rows.filter_map(|row| row.sample.as_ref());
        self.rates.forget(samples.map(|sample| sample.boot_nanos).min().unwrap_or(u64::MAX));
        Ok(())
    }

    /// The rows, those that are to come first before the others.
    fn rows(&self, view: &View) -> Vec<&Row> {
        let rows = self.read.iter().flat_map(|task| task.rows(view.by_process));
        let mut rows: Vec<_> = rows.collect();
        rows.sort_by(|a, b| a.order(b, view.sort));
        rows
    }
}

impl Task {
    fn rows(&self, by_process: bool) -> &[Row] {
        if by_process { &self.runs } else { std::slice::from_ref(&self.row) }
    }

    /// Takes note of the samples of a reading, and tells in them the rate since those before.
    fn new(Reading { mut usage, root }: Reading, rates: &mut Rates) -> Self {
        let TaskUsage { task_id, sample, processes, .. } = &mut usage;
        let mut row = |name, process: &str, state, sample: Option<&mut Sample>| {
            let rate = sample.as_ref().map(|sample| rates.since(task_id, process, sample));
            let rate = rate.unwrap_or_default();
            let sample = sample.map(|sample| {
                if let Some(cpu) = &mut sample.cpu {
                    cpu.rate = rate.cpus;
                }
                sample.clone()
            });
            Row { name, root: root.clone(), state, rate, sample }
        };
        let name = words::name(task_id);
        let runs = processes.iter_mut().filter_map(|process| {
            let (run, sample) = (process.run?, process.sample.as_mut());
            let name = format!("{name} {}", words::name(&process.name));
            Some(row(name, &process.name, format!("run {run}"), sample))
        });
        let runs = runs.collect();
        let row = row(name, "", String::new(), sample.as_mut());
        let state = words::task_state(usage.state()).to_owned();
        Self { row: Row { state, ..row }, runs, usage }
    }
}

/// A task, or a run of a process.
#[derive(Debug, Clone, PartialEq)]
struct Row {
    name: String,
    /// Of its task, where several were named.
    root: Option<String>,
    state: String,
    rate: Rate,
    sample: Option<Sample>,
}

impl Row {
    fn memory(&self) -> Option<u64> {
        self.sample.as_ref()?.memory?.current_bytes
    }

    /// Bytes read and written per second.
    fn io(&self) -> Option<f64> {
        let Rate { read, written, .. } = self.rate;
        read.zip(written).map(|(read, written)| read + written).or(read).or(written)
    }

    /// Which comes first. What is not known comes last.
    fn order(&self, other: &Self, sort: Sort) -> Ordering {
        let of = match sort {
            Sort::Cpu => descending(self.rate.cpus, other.rate.cpus),
            Sort::Mem => other.memory().cmp(&self.memory()),
            Sort::Io => descending(self.io(), other.io()),
            Sort::Name => Ordering::Equal,
        };
        of.then_with(|| (&self.name, &self.root).cmp(&(&other.name, &other.root)))
    }

    fn cells(&self) -> [String; COLUMNS] {
        let sample = self.sample.as_ref();
        let usage = sample.map(Usage::from).unwrap_or_default();
        let limit = sample.and_then(|sample| sample.memory).and_then(|memory| memory.max_bytes);
        let pids = sample.and_then(|sample| sample.pids).and_then(|pids| pids.current);
        let per_second =
            |rate: Option<f64>| rate.map_or_else(unknown, |rate| words::bytes(rate as u64));
        [
            self.name.clone(),
            self.state.clone(),
            self.rate.cpus.map_or_else(unknown, |cpus| format!("{:.1}%", cpus * 100.0)),
            words::cpu(&usage).map_or_else(unknown, words::span),
            self.memory().map_or_else(unknown, words::bytes),
            limit.map_or_else(unknown, words::bytes),
            per_second(self.rate.read),
            per_second(self.rate.written),
            pids.map_or_else(unknown, |count| count.to_string()),
            sample.map(stalls).unwrap_or_default(),
        ]
    }
}

fn descending(mine: Option<f64>, other: Option<f64>) -> Ordering {
    other.partial_cmp(&mine).unwrap_or(Ordering::Equal)
}

fn unknown() -> String {
    "-".to_owned()
}

/// What it waited for in the last ten seconds, where that is worth a word: `waits for memory 12%, io 3%`.
fn stalls(sample: &Sample) -> String {
    let pressure = sample.pressure.unwrap_or_default();
    let share = |of: Option<Pressure>| of?.some?.avg10.filter(|&share| share >= STALLED);
    let of = [("cpu", pressure.cpu), ("memory", pressure.memory), ("io", pressure.io)];
    let told = of.into_iter().filter_map(|(name, of)| Some(format!("{name} {:.0}%", share(of)?)));
    let told: Vec<_> = told.collect();
    if told.is_empty() { String::new() } else { format!("waits for {}", told.join(", ")) }
}

const COLUMNS: usize = 10;

/// What is shown of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct View {
    sort: Sort,
    by_process: bool,
    /// Rows that are above the screen.
    first: usize,
}

impl View {
    /// The heading, and a line for each row.
    fn table(self, rows: &[&Row]) -> Vec<String> {
        let name = if self.by_process { "TASK PROCESS" } else { "TASK" };
        let state = if self.by_process { "RUN" } else { "STATE" };
        let heading =
            [name, state, "CPU", "CPU TIME", "MEMORY", "LIMIT", "READ/s", "WRITE/s", "PIDS", ""];
        let mut cells = vec![heading.map(str::to_owned)];
        cells.extend(rows.iter().map(|row| row.cells()));
        let mut aligns = [Align::Right; COLUMNS];
        (aligns[0], aligns[1], aligns[COLUMNS - 1]) = (Align::Left, Align::Left, Align::Left);
        let lines = table::lines(&cells, aligns, |_, _, text| text.into());
        table::rooted(lines, rows.iter().map(|row| row.root.as_deref()), Style::Plain)
    }

    /// All that is on a screen of so many rows and columns. `problem`: what went wrong of late.
    fn screen(
        &mut self,
        watched: &Watched<'_>,
        problem: Option<&str>,
        (height, width): (usize, usize),
        style: Style,
    ) -> Vec<String> {
        let rows = watched.rows(self);
        let room = height.saturating_sub(HEAD).max(1);
        self.first = self.first.min(rows.len().saturating_sub(room));
        // All of them are laid out, so that columns stay where they are while one scrolls.
        let mut lines = self.table(&rows).into_iter();
        let heading = lines.next().unwrap_or_default();
        let keys = problem.map_or_else(|| self.keys(), |problem| escape(problem).into_owned());
        let fit = |line: &str| cut(line, width).into_owned();
        let mut screen = vec![
            fit(&watched.summary()),
            style.dim(&fit(&keys)).into_owned(),
            style.dim(&fit(&heading)).into_owned(),
        ];
        screen.extend(lines.skip(self.first).take(room).map(|line| fit(&line)));
        screen.truncate(height);
        screen
    }

    fn keys(self) -> String {
        let sort = match self.sort {
            Sort::Cpu => "CPU",
            Sort::Mem => "memory",
            Sort::Io => "I/O",
            Sort::Name => "name",
        };
        let other = if self.by_process { "tasks" } else { "processes" };
        format!("by {sort}: c CPU, m memory, i I/O, n name; p {other}; q quit")
    }

    /// Does what a key says; says whether that is to end.
    fn press(&mut self, key: Key, page: usize) -> bool {
        match key {
            Key::Sort(sort) => self.sort = sort,
            Key::Processes => {
                self.by_process = !self.by_process;
                self.first = 0;
            }
            Key::Up => self.first = self.first.saturating_sub(1),
            Key::Down => self.first += 1,
            Key::PageUp => self.first = self.first.saturating_sub(page),
            Key::PageDown => self.first += page,
            Key::Quit => return true,
        }
        false
    }
}

impl Watched<'_> {
    /// What all use together, as far as it is known.
    fn summary(&self) -> String {
        let tasks = self.read.len();
        let cpus: f64 = self.read.iter().filter_map(|task| task.row.rate.cpus).sum();
        let memory = self
            .read
            .iter()
            .filter_map(|task| task.row.memory())
            .reduce(|a, b| a.saturating_add(b));
        let memory = memory.map(|memory| format!(", {}", words::bytes(memory))).unwrap_or_default();
        let plural = if tasks == 1 { "" } else { "s" };
        format!("{tasks} task{plural}, {cpus:.2} CPUs{memory}")
    }
}

/// What a key says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Key {
    Sort(Sort),
    Processes,
    Up,
    Down,
    PageUp,
    PageDown,
    Quit,
}

/// The keys among what was read; others are nothing.
fn keys(mut bytes: &[u8]) -> Vec<Key> {
    const KEYS: [(&[u8], Key); 14] = [
        (b"\x1b[A", Key::Up),
        (b"\x1bOA", Key::Up),
        (b"\x1b[B", Key::Down),
        (b"\x1bOB", Key::Down),
        (b"\x1b[5~", Key::PageUp),
        (b"\x1b[6~", Key::PageDown),
        (b"k", Key::Up),
        (b"j", Key::Down),
        (b"c", Key::Sort(Sort::Cpu)),
        (b"m", Key::Sort(Sort::Mem)),
        (b"i", Key::Sort(Sort::Io)),
        (b"n", Key::Sort(Sort::Name)),
        (b"p", Key::Processes),
        (b"q", Key::Quit),
    ];
    let mut keys = Vec::new();
    while let Some((_, after)) = bytes.split_first() {
        let key = KEYS.iter().find(|(text, _)| bytes.starts_with(text));
        keys.extend(key.map(|&(_, key)| key));
        bytes = key.map_or(after, |(text, _)| &bytes[text.len()..]);
    }
    keys
}

/// Prints what is used in one interval.
fn once(args: &Top, view: View, mut watched: Watched<'_>) -> Result<u8, Failure> {
    let begun = Instant::now();
    watched.read()?;
    if watched.read.is_empty() && watched.metered.found_nothing() {
        return Err(Failure::NothingMatched("no such task".to_owned()));
    }
    if !watched.read.is_empty() {
        thread::sleep(args.interval.saturating_sub(begun.elapsed()));
        watched.read()?;
    }
    watched.metered.problems().for_each(|problem| tell!("dewar: {problem}"));
    let text = match args.output {
        StatusOutput::Json => {
            watched.read.sort_by(|a, b| a.row.order(&b.row, view.sort));
            watched
                .read
                .iter()
                .map(|task| json::rooted(&task.usage, task.row.root.as_deref()))
                .collect::<Result<String, _>>()?
        }
        StatusOutput::Table => {
            let mut lines = view.table(&watched.rows(&view));
            lines[0] = stdout_style().dim(&lines[0]).into_owned();
            lines.join("\n") + "\n"
        }
    };
    Out::default().write(text)?;
    Ok(watched.metered.exit)
}

/// Shows them until somebody has seen enough.
fn live(args: &Top, mut view: View, mut watched: Watched<'_>) -> Result<u8, Failure> {
    let style = stdout_style();
    watched.read()?;
    if watched.read.is_empty() && watched.metered.found_nothing() {
        return Err(Failure::NothingMatched("no such task".to_owned()));
    }
    let mut out = Out::default();
    let mut screen = FullScreen::enter()?;
    let mut due = Instant::now() + args.interval;
    let mut problem = watched.metered.problems().next();
    while let Some(size) = term::size(io::stdout()) {
        let lines = view.screen(&watched, problem.as_deref(), size, style);
        out.write(picture(&lines))?;
        if out.is_gone() {
            break;
        }
        match screen.wait(due)? {
            Event::Redraw => continue,
            Event::End => break,
            Event::Due => {}
            Event::Keys(bytes) => {
                let before = view.by_process;
                let page = size.0.saturating_sub(HEAD);
                if keys(&bytes).into_iter().any(|key| view.press(key, page)) {
                    break;
                }
                if view.by_process == before {
                    continue;
                }
                watched.metered.by_process(view.by_process);
            }
        }
        // A daemon that is replaced is asked again.
        watched.metered.try_again();
        problem = match watched.read() {
            Ok(()) => watched.metered.problems().next(),
            Err(failure) => Some(failure.to_string()),
        };
        due = Instant::now() + args.interval;
    }
    drop(screen);
    Ok(super::failure::status::SUCCESS)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::rates::tests::sample;
    use crate::proto::{IoUsage, MemoryUsage, ProcessUsage, Stall, TaskState};

    fn of(seconds: u64, cpu_millis: u64, memory: Option<u64>, written: Option<u64>) -> Sample {
        let memory = memory
            .map(|current| MemoryUsage { current_bytes: Some(current), ..MemoryUsage::default() });
        let io =
            written.map(|written| IoUsage { write_bytes: Some(written), ..IoUsage::default() });
        Sample { memory, io, ..sample(seconds, cpu_millis, 7) }
    }

    fn usage(id: &str, sample: Option<Sample>) -> TaskUsage {
        let process = |name: &str, run| ProcessUsage {
            name: name.to_owned(),
            run,
            sample: sample.clone().filter(|_| run.is_some()),
            recorded: None,
        };
        TaskUsage {
            task_id: id.to_owned(),
            state: TaskState::Active.into(),
            processes: vec![process("p", Some(3)), process("done", None)],
            sample,
            ..TaskUsage::default()
        }
    }

    /// Three tasks after their second reading.
    fn tasks() -> Vec<Task> {
        let mut rates = Rates::default();
        let reading = |usage| Reading { usage, root: None };
        let mut twice = |id, first, second| {
            Task::new(reading(usage(id, first)), &mut rates);
            Task::new(reading(usage(id, second)), &mut rates)
        };
        let (mib, kib) = (1 << 20, 1 << 10);
        vec![
            twice("b", Some(of(1, 0, Some(3 * mib), None)), Some(of(3, 100, Some(3 * mib), None))),
            twice(
                "a\x1b[2J",
                Some(of(1, 0, Some(mib), Some(0))),
                Some(of(3, 1000, Some(mib), Some(4 * kib))),
            ),
            twice("c", None, None),
        ]
    }

    fn names(tasks: &[Task], sort: Sort) -> Vec<String> {
        let mut rows: Vec<_> = tasks.iter().map(|task| &task.row).collect();
        rows.sort_by(|a, b| a.order(b, sort));
        rows.iter().map(|row| row.name.clone()).collect()
    }

    #[test]
    fn those_that_use_the_most_come_first_and_what_is_not_known_last() {
        let tasks = tasks();
        let a = "a\\x1b[2J";

        assert_eq!(names(&tasks, Sort::Cpu), [a, "b", "c"]);
        assert_eq!(names(&tasks, Sort::Mem), ["b", a, "c"]);
        assert_eq!(names(&tasks, Sort::Io), [a, "b", "c"]);
        assert_eq!(names(&tasks, Sort::Name), [a, "b", "c"]);
        assert_eq!(tasks[0].usage.sample.as_ref().unwrap().cpu.unwrap().rate, Some(0.05));
    }

    /// Attack 47: what a task is called acts on no terminal.
    #[test]
    fn a_table_tells_what_each_task_uses_per_second() {
        let tasks = tasks();
        let rows: Vec<_> = tasks.iter().map(|task| &task.row).collect();
        let view = View { sort: Sort::Cpu, by_process: false, first: 0 };

        assert_eq!(
            view.table(&rows).join("\n"),
            "\
TASK      STATE     CPU  CPU TIME   MEMORY  LIMIT  READ/s  WRITE/s  PIDS
b         ACTIVE   5.0%     0.10s  3.0 MiB      -       -        -     -
a\\x1b[2J  ACTIVE  50.0%     1.00s  1.0 MiB      -       -  2.0 KiB     -
c         ACTIVE      -         -        -      -       -        -     -"
        );
        let runs: Vec<_> = tasks.iter().flat_map(|task| &task.runs).collect();
        let by_process = View { by_process: true, ..view };
        let table = by_process.table(&runs);
        assert!(table[0].starts_with("TASK PROCESS  RUN"), "{table:?}");
        assert!(table[1].starts_with("b p           run 3   5.0%"), "{table:?}");
        assert_eq!(table.len(), 4, "processes without a live run are not there");
    }

    #[test]
    fn what_a_task_waits_for_is_told_if_it_is_worth_a_word() {
        let stall = |share| {
            let some = Some(Stall { avg10: Some(share), total: None });
            Some(Pressure { some, full: None })
        };
        let mut sample = sample(1, 1, 7);
        assert_eq!(stalls(&sample), "");
        let pressure = sample.pressure.get_or_insert_default();
        (pressure.cpu, pressure.memory, pressure.io) = (stall(0.9), stall(12.4), stall(3.0));

        assert_eq!(stalls(&sample), "waits for memory 12%, io 3%");
    }

    #[test]
    fn keys_are_found_among_whatever_is_typed() {
        let wanted = [Key::Up, Key::Sort(Sort::Mem), Key::PageDown, Key::Down, Key::Quit];

        assert_eq!(keys(b"\x1b[Ax\x1b[1;5Pm\x1b[6~\xff\x1bOBq"), wanted);
        assert_eq!(keys(b""), []);
    }

    #[test]
    fn a_view_scrolls_sorts_and_turns_to_processes() {
        let mut view = View { sort: Sort::Cpu, by_process: false, first: 0 };
        for key in [Key::Up, Key::Down, Key::PageDown, Key::Up, Key::Sort(Sort::Io)] {
            assert!(!view.press(key, 10));
        }
        assert_eq!(view, View { sort: Sort::Io, by_process: false, first: 10 });
        assert!(!view.press(Key::Processes, 10) && view.press(Key::Quit, 10));
        assert_eq!(view, View { sort: Sort::Io, by_process: true, first: 0 });
    }
}
