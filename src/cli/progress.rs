//! The live display: the state of a task in as many lines as fit a terminal. Pure.
//!
//! [`lines`] lays out one picture; [`Screen`] turns pictures into the bytes that draw each over the one before.

use std::fmt::Write as _;
use std::time::Duration;

use super::term::{Style, cut, escape, width};
use super::words;
use crate::proto::{Launch, ProcessState};
use crate::state::{Process, Run, RunState, Settled, Stamp, TaskState};
use crate::view;

/// Most columns that names may take.
const NAME_COLUMNS: usize = 40;

/// What a picture is made for.
#[derive(Debug, Clone, Copy)]
pub(super) struct Frame {
    /// Most lines.
    pub(super) rows: usize,
    /// Most columns of a line.
    pub(super) columns: usize,
    /// CLOCK_BOOTTIME, nanoseconds.
    pub(super) now: u64,
    /// Whether states are coloured.
    pub(super) style: Style,
}

/// The task in lines: itself, then its processes, as many as fit, those that run before all others.
///
/// `cpu`: CPU time so far of a live run, by process index and run number.
pub(super) fn lines(
    launch: &Launch,
    state: &TaskState,
    cpu: &dyn Fn(u32, u32) -> Option<Duration>,
    frame: Frame,
) -> Vec<String> {
    let count = state.processes().len();
    let room = frame.rows.saturating_sub(1);
    let shown = if count <= room { (0..count as u32).collect() } else { choose(state, room) };
    let names = shown.iter().map(|&process| width(&escape(name(state, process))));
    let names = names.max().unwrap_or(0).min(NAME_COLUMNS);

    let mut lines = Vec::with_capacity(shown.len() + 2);
    lines.push(headline(launch, state, frame));
    lines.extend(shown.iter().map(|&process| process_line(state, process, names, cpu, frame)));
    if shown.len() < count {
        let hidden = (0..count as u32).filter(|process| shown.binary_search(process).is_err());
        lines.push(rest_line(state, hidden, frame));
    }
    lines.truncate(frame.rows);
    lines
}

fn name(state: &TaskState, process: u32) -> &str {
    state.spec().processes[process as usize].name.as_str()
}

/// The processes that are worth one of `room` lines, the last of which tells of the others; ascending.
fn choose(state: &TaskState, room: usize) -> Vec<u32> {
    let rank = |process: u32| {
        let of = &state.processes()[process as usize];
        match (of.live_run(), of.settled) {
            (Some(_), _) => 0,
            (None, Some(Settled::Failed)) => 1,
            (None, None) if !of.runs.is_empty() => 2,
            (None, None) => 3,
            (None, Some(Settled::Finished)) => 4,
        }
    };
    let mut order: Vec<u32> = (0..state.processes().len() as u32).collect();
    order.sort_by_key(|&process| (rank(process), process));
    order.truncate(room.saturating_sub(1));
    order.sort_unstable();
    order
}

fn headline(launch: &Launch, state: &TaskState, frame: Frame) -> String {
    let phase = state.phase().unwrap_or(crate::state::Phase::Active).to_proto();
    let settled = state.processes().iter().filter(|process| process.settled.is_some()).count();
    let began = state.history().first().map(|&(_, at)| at);
    let mut line = Line::new(frame.columns);
    line.push(&words::name(&launch.task_id), |text| text.into());
    line.push("  ", |text| text.into());
    line.push(words::task_state(phase), |text| frame.style.task(phase, text));
    if state.pause().is_some() {
        line.push(" paused", |text| text.into());
    }
    let of = state.processes().len();
    line.push(&format!("  {settled} of {of} done"), |text| text.into());
    if let Some(time) = began.and_then(|began| since(began, frame.now)) {
        line.push(&format!("  {}", words::span(time)), |text| text.into());
    }
    line.text
}

fn process_line(
    state: &TaskState,
    process: u32,
    names: usize,
    cpu: &dyn Fn(u32, u32) -> Option<Duration>,
    frame: Frame,
) -> String {
    let of = &state.processes()[process as usize];
    let shown = cut(&escape(name(state, process)), names).into_owned();
    let mut line = Line::new(frame.columns);
    line.push(&format!("  {shown}{:1$}  ", "", names - width(&shown)), |text| text.into());
    let Some(last) = of.runs.last() else {
        line.push("not yet", |text| frame.style.dim(text));
        return line.text;
    };
    let process_state = shown_state(of);
    let is_stuck = last.unkillable.is_some() && last.state.is_live();
    let word = if is_stuck { "UNKILLABLE" } else { words::process_state(process_state) };
    let word = format!("{word:<7}");
    line.push(&word, |text| frame.style.process(process_state, text));
    let number = of.runs.len() as u32 - 1;
    let time = run_time(last, frame.now).map(words::span).unwrap_or_default();
    line.push(&format!("  run {number:<4} {time:>7}"), |text| text.into());
    let used = match &last.end {
        Some(end) => end.usage.as_ref().and_then(words::cpu),
        None => cpu(process, number),
    };
    if let Some(used) = used {
        line.push(&format!("  {:>7} CPU", words::span(used)), |text| text.into());
    }
    line.text
}

fn rest_line(state: &TaskState, hidden: impl Iterator<Item = u32>, frame: Frame) -> String {
    let (mut count, mut done, mut unstarted) = (0, 0, 0);
    for process in hidden {
        let of = &state.processes()[process as usize];
        count += 1;
        done += usize::from(of.settled == Some(Settled::Finished));
        unstarted += usize::from(of.runs.is_empty());
    }
    let text = format!("  … {count} more: {done} done, {unstarted} not yet run");
    let mut line = Line::new(frame.columns);
    line.push(&text, |text| frame.style.dim(text));
    line.text
}

fn shown_state(process: &Process) -> ProcessState {
    view::process_state(process).map_or(ProcessState::Unspecified, RunState::to_proto)
}

/// How long a run has lived by the boot clock; unknown if that was another boot's.
fn run_time(run: &Run, now: u64) -> Option<Duration> {
    let started = run.started?;
    match run.ended {
        None => since(started, now),
        Some(ended) if ended.boot >= started.boot && started.boot > 0 => {
            Some(Duration::from_nanos(ended.boot - started.boot))
        }
        Some(_) => None,
    }
}

fn since(at: Stamp, now: u64) -> Option<Duration> {
    (at.boot > 0 && at.boot <= now).then(|| Duration::from_nanos(now - at.boot))
}

/// A line that is never longer than its terminal is wide, whatever is pushed.
struct Line {
    text: String,
    left: usize,
}

impl Line {
    fn new(columns: usize) -> Self {
        Self { text: String::new(), left: columns }
    }

    fn push<'a>(&mut self, text: &'a str, paint: impl Fn(&str) -> std::borrow::Cow<'_, str>) {
        let fitting: std::borrow::Cow<'a, str> = cut(text, self.left);
        self.left -= width(&fitting);
        if !fitting.is_empty() {
            self.text.push_str(&paint(&fitting));
        }
    }
}

/// The lines of a terminal that the live display has drawn on: the last ones, the cursor below them.
#[derive(Debug, Default)]
pub(super) struct Screen {
    /// Columns that each drawn line takes.
    drawn: Vec<usize>,
}

impl Screen {
    /// The bytes that draw `lines` over the ones drawn before. `columns` is the width of the terminal now.
    pub(super) fn draw(&mut self, lines: &[String], columns: usize) -> String {
        let mut bytes = self.home(columns);
        for line in lines {
            // Erase to the end of the line after it is written: what was there is never blank in between.
            write!(bytes, "{line}\x1b[K\r\n").expect("a string takes any text");
        }
        bytes.push_str("\x1b[J");
        self.drawn = lines.iter().map(|line| width(&unpainted(line))).collect();
        bytes
    }

    /// The bytes that take away what is drawn.
    pub(super) fn clear(&mut self, columns: usize) -> String {
        if self.drawn.is_empty() {
            return String::new();
        }
        let bytes = self.home(columns) + "\x1b[J";
        self.drawn.clear();
        bytes
    }

    /// Moves the cursor to the first drawn line. A terminal that has become narrower has wrapped them.
    fn home(&self, columns: usize) -> String {
        let rows: usize = self.drawn.iter().map(|&line| line.div_ceil(columns.max(1)).max(1)).sum();
        if rows == 0 { String::new() } else { format!("\r\x1b[{rows}A") }
    }
}

/// `line` without the colours of [`Style`].
fn unpainted(line: &str) -> String {
    let mut parts = line.split('\x1b');
    let mut text = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        text.push_str(part.split_once('m').map_or("", |(_, rest)| rest));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto;
    use crate::state::Phase;
    use crate::view::tests::{Script, exited, launch, process, task};

    const FRAME: Frame = Frame { rows: 24, columns: 80, now: 2_000_000_000, style: Style::Plain };

    fn picture(script: &Script, frame: Frame) -> Vec<String> {
        let cpu = |_, _| Some(Duration::from_millis(310));
        lines(script.replay.launch(), script.replay.state(), &cpu, frame)
    }

    fn three() -> Script {
        let retried = proto::Process { max_failures: Some(2), ..process("flaky") };
        let processes = vec![process("build"), retried, process("publish")];
        let mut script = Script::new(launch(task(processes, &[&["build", "publish"]])));
        script.enter(Phase::Active).run(1, 0, exited(1)).start(0, 0);
        script
    }

    #[test]
    fn each_process_has_a_line_with_state_run_time_and_cpu() {
        assert_eq!(
            picture(&three(), FRAME),
            [
                "web-1  ACTIVE  0 of 3 done  1.99s",
                "  build    RUNNING  run 0      1.99s    0.31s CPU",
                "  flaky    FAILED   run 0      0.00s",
                "  publish  not yet",
            ]
        );
    }

    #[test]
    fn a_small_terminal_shows_what_runs_and_counts_the_rest() {
        assert_eq!(
            picture(&three(), Frame { rows: 3, ..FRAME }),
            [
                "web-1  ACTIVE  0 of 3 done  1.99s",
                "  build  RUNNING  run 0      1.99s    0.31s CPU",
                "  … 2 more: 0 done, 1 not yet run",
            ]
        );
    }

    #[test]
    fn no_line_is_longer_than_the_terminal_is_wide_nor_are_there_more_than_rows() {
        let names = [
            "\u{202e}evil",
            "名前名前名前",
            "x",
            "long-long-long-long-long-long-long-long-long-name",
        ];
        let mut script =
            Script::new(launch(task(names.iter().map(|name| process(name)).collect(), &[])));
        script.enter(Phase::Active).start(0, 0).start(1, 0);
        for style in [Style::Plain, Style::Coloured] {
            for columns in 0..90 {
                for rows in 0..6 {
                    let lines = picture(&script, Frame { rows, columns, style, ..FRAME });
                    assert!(lines.len() <= rows, "{rows} rows: {lines:?}");
                    for line in lines {
                        let plain = unpainted(&line);
                        assert!(width(&plain) <= columns, "{columns} columns: {plain:?}");
                        assert!(!plain.contains('\u{202e}'), "attack 47: {plain:?}");
                    }
                }
            }
        }
    }

    /// Runs of an earlier boot have no time by this boot's clock.
    #[test]
    fn a_run_of_another_boot_has_no_time() {
        let mut run = three().replay.state().processes()[0].runs[0].clone();
        assert_eq!(run_time(&run, 2_000_000_000), Some(Duration::from_millis(1_992)));
        run.started = Some(Stamp { boot: 0, wall: 5 });
        assert_eq!(run_time(&run, 2_000_000_000), None);
    }

    #[test]
    fn a_picture_is_drawn_over_the_one_before() {
        let mut screen = Screen::default();
        let lines = |texts: &[&str]| texts.iter().map(ToString::to_string).collect::<Vec<_>>();

        assert_eq!(screen.draw(&lines(&["one", "two"]), 80), "one\x1b[K\r\ntwo\x1b[K\r\n\x1b[J");
        assert_eq!(screen.draw(&lines(&["three"]), 80), "\r\x1b[2Athree\x1b[K\r\n\x1b[J");
        assert_eq!(screen.clear(80), "\r\x1b[1A\x1b[J");
        assert_eq!(screen.clear(80), "");
    }

    /// SIGWINCH: what was drawn on 80 columns takes more rows on 20.
    #[test]
    fn lines_that_a_narrower_terminal_has_wrapped_are_drawn_over() {
        let mut screen = Screen::default();
        screen.draw(&["\x1b[32mgreen\x1b[0m".to_owned(), "x".repeat(50)], 80);

        assert!(screen.draw(&["x".to_owned()], 20).starts_with("\r\x1b[4A"));
    }
}
