//! What is printed while a task is followed: JSON lines, plain lines, or a live picture.

use std::io::{self, Write};
use std::os::fd::AsFd;
use std::time::Duration;

use super::args::Output;
use super::failure::Failure;
use super::out::Out;
use super::progress::{self, Frame, Screen};
use super::term::{self, Style};
use super::{json, report};
use crate::causes::tell;
use crate::proto::TaskView;
use crate::state::TaskState;
use crate::task::TaskSpec;
use crate::view::{Applied, Replay};

/// Time between two pictures when nothing happens.
const TICK: Duration = Duration::from_secs(1);

/// Bytes of lines after which they are printed though the turn has not ended.
const BATCH: usize = 64 << 10;

/// Prints one task.
#[derive(Debug)]
pub(super) struct Printer<W = io::Stdout> {
    out: Out<W>,
    /// Lines that are printed at the end of the turn.
    lines: String,
    form: Form,
}

#[derive(Debug)]
enum Form {
    Json,
    Plain(Style),
    Live(Live),
}

#[derive(Debug)]
struct Live {
    screen: Screen,
    rows: usize,
    columns: usize,
    style: Style,
}

impl Printer {
    /// Prints to standard output: a live picture on a terminal whose size is known, unless the task itself writes there; plain lines elsewhere.
    pub(super) fn new(output: Output, spec: &TaskSpec) -> Self {
        let form = match output {
            Output::Json => Form::Json,
            Output::Text => Live::new(spec).map_or_else(|| Form::Plain(stdout_style()), Form::Live),
        };
        Self { out: Out::default(), lines: String::new(), form }
    }
}

impl<W: Write> Printer<W> {
    /// Takes note of an event; `replay` is the task after it.
    ///
    /// # Errors
    ///
    /// [`Failure::Unavailable`] if it has no JSON or cannot be written.
    pub(super) fn event(&mut self, replay: &Replay, applied: &Applied) -> Result<(), Failure> {
        if self.out.is_gone() || matches!(self.form, Form::Live(_)) {
            return Ok(());
        }
        let Some(event) = replay.event(applied) else { return Ok(()) };
        match self.form {
            Form::Json => self.lines += &json::line(&event)?,
            Form::Plain(style) => self.lines += &report::event(&event, style).unwrap_or_default(),
            Form::Live(_) => {}
        }
        if self.lines.len() > BATCH {
            self.out.write(std::mem::take(&mut self.lines))?;
        }
        Ok(())
    }

    /// Prints what is to be seen of the events since the last time. `now`: CLOCK_BOOTTIME, nanoseconds; `cpu`: CPU
    /// time so far of a live run, by process index and run number.
    ///
    /// # Errors
    ///
    /// Those of write(2), but not that nobody reads.
    pub(super) fn turn(
        &mut self,
        replay: &Replay,
        now: u64,
        cpu: &dyn Fn(u32, u32) -> Option<Duration>,
    ) -> io::Result<()> {
        if let Form::Live(live) = &mut self.form
            && !self.out.is_gone()
        {
            self.lines = live.draw(replay, now, cpu);
        }
        self.out.write(std::mem::take(&mut self.lines))
    }

    /// Whether a picture is shown, to somebody.
    pub(super) fn is_live(&self) -> bool {
        matches!(self.form, Form::Live(_)) && !self.out.is_gone()
    }

    /// Time after which the picture of a task is out of date though nothing happened; `None`: never. Only a live
    /// run changes by itself, and only where somebody looks.
    pub(super) fn stale_after(&self, state: &TaskState) -> Option<Duration> {
        (self.is_live() && state.live_runs().next().is_some()).then_some(TICK)
    }

    /// The terminal has another size.
    pub(super) fn resized(&mut self) {
        if let Form::Live(live) = &mut self.form
            && let Some((rows, columns)) = term::size(io::stdout().as_fd())
        {
            (live.rows, live.columns) = (rows, columns);
        }
    }

    /// Takes the picture away, so that something else can be written. The next turn draws it again.
    ///
    /// # Errors
    ///
    /// As [`Printer::turn`].
    pub(super) fn clear(&mut self) -> io::Result<()> {
        match &mut self.form {
            Form::Live(live) => self.out.write(live.screen.clear(live.columns)),
            Form::Json | Form::Plain(_) => Ok(()),
        }
    }

    /// Prints the task as its last line, or as a summary; then what it used is said to whoever reads standard error.
    ///
    /// # Errors
    ///
    /// [`Failure::Unavailable`] if it has no JSON or cannot be written.
    pub(super) fn finish(&mut self, view: &TaskView) -> Result<(), Failure> {
        self.clear()?;
        let text = match &self.form {
            Form::Json => json::task(view, None)?,
            Form::Plain(style) => report::summary(view, *style),
            Form::Live(live) => report::summary(view, live.style),
        };
        self.out.write(text)?;
        if !matches!(self.form, Form::Json)
            && let Some(used) = report::used(view)
        {
            tell!("dewar: {used}");
        }
        Ok(())
    }
}

impl Live {
    fn new(spec: &TaskSpec) -> Option<Self> {
        let stdout = io::stdout();
        let (rows, columns) = term::size(stdout.as_fd())?;
        let console = |of: &crate::task::ProcessSpec| of.logger.is_some_and(|to| to.console);
        let dumb = std::env::var_os("TERM").is_none_or(|term| term == "dumb");
        if rows == 0 || columns == 0 || dumb || spec.processes.iter().any(console) {
            return None;
        }
        Some(Self { screen: Screen::default(), rows, columns, style: stdout_style() })
    }

    fn draw(
        &mut self,
        replay: &Replay,
        now: u64,
        cpu: &dyn Fn(u32, u32) -> Option<Duration>,
    ) -> String {
        // The last row is the cursor's.
        let rows = self.rows.saturating_sub(1);
        let frame = Frame { rows, columns: self.columns, now, style: self.style };
        let lines = progress::lines(replay.launch(), replay.state(), cpu, frame);
        self.screen.draw(&lines, self.columns)
    }
}

/// Style of standard output.
pub(super) fn stdout_style() -> Style {
    Style::detect(io::IsTerminal::is_terminal(&io::stdout()))
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::proto;
    use crate::state::Phase;
    use crate::view::tests::{Script, launch, process, task};

    /// A printer of JSON lines, or of plain ones.
    pub(in crate::cli) fn printer<W: Write>(output: Output, to: W) -> Printer<W> {
        let form = match output {
            Output::Json => Form::Json,
            Output::Text => Form::Plain(Style::Plain),
        };
        Printer { out: Out::new(to), lines: String::new(), form }
    }

    /// What was printed.
    pub(in crate::cli) fn printed(printer: Printer<Vec<u8>>) -> String {
        String::from_utf8(printer.out.into_inner()).unwrap()
    }

    fn live(to: Vec<u8>) -> Printer<Vec<u8>> {
        let live = Live { screen: Screen::default(), rows: 24, columns: 80, style: Style::Plain };
        Printer { out: Out::new(to), lines: String::new(), form: Form::Live(live) }
    }

    fn none(_: u32, _: u32) -> Option<Duration> {
        None
    }

    /// S50: nothing but JSON is printed for programs, nothing but text without a terminal.
    #[test]
    fn only_a_live_picture_has_escape_sequences() {
        let mut script = Script::new(launch(task(vec![process("a")], &[])));
        for (mut printer, escapes) in [
            (printer(Output::Json, Vec::new()), false),
            (printer(Output::Text, Vec::new()), false),
            (live(Vec::new()), true),
        ] {
            let entered = proto::TaskState::Active;
            if script.replay.state().phase().is_none() {
                script.enter(Phase::Active);
            }
            assert_eq!(script.replay.view(None).state(), entered);
            printer.turn(&script.replay, 0, &none).unwrap();
            printer.finish(&script.replay.view(None)).unwrap();

            assert_eq!(printed(printer).contains('\x1b'), escapes);
        }
    }

    /// S50: it costs nothing to show a task to nobody, and nothing to show one that only waits.
    #[test]
    fn a_picture_is_redrawn_by_itself_only_while_a_run_lives_and_somebody_looks() {
        let mut script = Script::new(launch(task(vec![process("a")], &[])));
        script.enter(Phase::Active);
        assert_eq!(live(Vec::new()).stale_after(script.replay.state()), None);
        script.start(0, 0);
        assert_eq!(live(Vec::new()).stale_after(script.replay.state()), Some(TICK));

        let plain = printer(Output::Text, Vec::new());
        assert_eq!(plain.stale_after(script.replay.state()), None);
        let mut gone = live(Vec::new());
        gone.out = Out::gone();
        assert_eq!(gone.stale_after(script.replay.state()), None);
    }
}
