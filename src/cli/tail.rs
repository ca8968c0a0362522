//! `dewar tail`: prints the log of a run, and with `-f` what comes after it.
//!
//! How a log is read and followed is told by [`crate::logs`]. `-f` sleeps until the kernel says that the logs or the task's
//! stream have changed.

use std::io::{self, IsTerminal, Write};
use std::os::fd::AsFd;
use std::sync::Arc;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::args::Tail;
use super::failure::{Failure, status};
use super::out::Out;
use super::run::whereabouts;
use super::term::Neutralizer;
use super::{place, words};
use crate::logs::{CHUNK, Chunk, Follow, Log, LogError, Next, Runs, Source, Start, Watches};
use crate::observe::Observed;
use crate::sandbox::logs::Stream;
use crate::state::{Process, TaskState};
use crate::task::ProcessName;
use crate::view::Replay;

/// Prints the log that was asked for.
///
/// # Errors
///
/// [`Failure`].
pub(super) fn run(args: &Tail) -> Result<u8, Failure> {
    let root = place::root(&args.root)?;
    let id = place::task_id(&args.task)?;
    whereabouts(&root, &id).map_err(|failure| Failure::NothingMatched(failure.to_string()))?;
    let mut observed = Observed::open(&root, &id)?;
    observed.advance(|_, _| {})?;
    let replay = observed
        .replay()
        .ok_or_else(|| Failure::NothingMatched(format!("task {id} has not begun")))?;
    let chosen = choose(args, replay.state())?;
    let source = Arc::new(source(args, replay, chosen.process)?);
    if chosen.guessed {
        eprintln!(
            "dewar: {} of process {}",
            source.stream(),
            words::name(source.process().as_str())
        );
    }
    let start = args.tail.map_or(Start::Oldest, Start::LastLines);
    let mut sink = Sink::new(args.raw);
    match chosen.run {
        Some(run) if !args.follow => {
            let mut log = Log::new(Arc::clone(&source), run, start);
            sink.drain(&mut log, &source)?;
            if log.is_missing() {
                let path = source.path(run);
                return Err(Failure::NothingMatched(format!("{}: no such log", path.display())));
            }
        }
        None if !args.follow => return Err(Failure::NothingMatched(never_ran(source.process()))),
        first => {
            let watches = Watches::new().map_err(LogError::from)?;
            let watcher = watches.watcher(|| {});
            watcher.watch_file(&root.runner(&id)).map_err(LogError::from)?;
            let (first, only) = (first.unwrap_or(0), args.run.is_some());
            let mut follow =
                Follow::new(observed, Arc::clone(&source), first, only, start, watcher);
            print(&mut follow, &source, &watches, &mut sink)?;
        }
    }
    sink.finish()?;
    Ok(status::SUCCESS)
}

fn never_ran(process: &ProcessName) -> String {
    format!("process {} has not run", words::name(process.as_str()))
}

/// What is to be printed.
#[derive(Debug, PartialEq, Eq)]
struct Chosen {
    /// Index of the process.
    process: usize,
    /// The first run; `None`: there is none yet.
    run: Option<u32>,
    /// Nobody named the process, and there are others.
    guessed: bool,
}

fn choose(args: &Tail, state: &TaskState) -> Result<Chosen, Failure> {
    let specs = &state.spec().processes;
    let process = match &args.process {
        Some(name) => {
            specs.iter().position(|spec| spec.name.as_str() == name).ok_or_else(|| {
                Failure::NothingMatched(format!("the task has no process {}", words::name(name)))
            })?
        }
        None => most_interesting(state.processes())
            .ok_or_else(|| Failure::NothingMatched("the task has no process".to_owned()))?,
    };
    let guessed = args.process.is_none() && specs.len() > 1;
    let runs = state.processes()[process].runs.len() as u32;
    let run = match args.run {
        Some(run) if run < runs || args.follow => Some(run),
        Some(run) => {
            let name = words::name(specs[process].name.as_str());
            let text = format!("process {name} has no run {run}: it has {runs}");
            return Err(Failure::NothingMatched(text));
        }
        None => runs.checked_sub(1),
    };
    Ok(Chosen { process, run, guessed })
}

/// The first process that runs; else the one that ran last; else the first.
fn most_interesting(processes: &[Process]) -> Option<usize> {
    let live = processes.iter().position(|process| process.live_run().is_some());
    let last_end = |process: &Process| process.runs.last()?.ended.map(|at| at.wall);
    let last = || (0..processes.len()).rev().max_by_key(|&index| last_end(&processes[index]));
    live.or_else(last)
}

/// The logs that were asked for.
fn source(args: &Tail, replay: &Replay, index: usize) -> Result<Source, Failure> {
    let stream = if args.stderr { Stream::Stderr } else { Stream::Stdout };
    Source::new(replay, index, stream).map_err(|why| {
        let name = words::name(replay.state().spec().processes[index].name.as_str());
        Failure::NothingMatched(format!("process {name} has no log: {why}"))
    })
}

/// Where logs are printed: as they are, or made safe for a terminal.
#[derive(Debug)]
struct Sink<W = io::Stdout> {
    out: Out<W>,
    neutralizer: Option<Neutralizer>,
    buffer: Box<[u8]>,
}

impl Sink {
    fn new(raw: bool) -> Self {
        let neutral = !raw && io::stdout().is_terminal();
        Self::to(Out::default(), neutral.then(Neutralizer::default))
    }
}

impl<W: Write> Sink<W> {
    fn to(out: Out<W>, neutralizer: Option<Neutralizer>) -> Self {
        Self { out, neutralizer, buffer: vec![0; CHUNK].into() }
    }

    /// Prints what `log` has now.
    fn drain(&mut self, log: &mut Log, source: &Source) -> Result<(), Failure> {
        while !self.is_gone()
            && let Some(chunk) = log.read(&mut self.buffer)?
        {
            self.print(chunk, source)?;
        }
        Ok(())
    }

    /// Prints what was read into the buffer.
    fn print(&mut self, chunk: Chunk, source: &Source) -> Result<(), Failure> {
        if chunk.gap {
            let path = source.path(chunk.run);
            let why = "a file was dropped or cut short before it was read";
            eprintln!("dewar: {}: lines may be missing: {why}", path.display());
        }
        let bytes = &self.buffer[..chunk.len];
        match &mut self.neutralizer {
            None => self.out.write(bytes)?,
            Some(neutralizer) => {
                let mut safe = Vec::new();
                neutralizer.push(bytes, &mut safe);
                self.out.write(safe)?;
            }
        }
        Ok(())
    }

    fn finish(&mut self) -> Result<(), Failure> {
        if let Some(neutralizer) = &mut self.neutralizer {
            let mut rest = Vec::new();
            neutralizer.finish(&mut rest);
            self.out.write(rest)?;
        }
        Ok(())
    }

    fn is_gone(&self) -> bool {
        self.out.is_gone()
    }
}

/// Prints what is followed, until no more can come or nobody reads it.
fn print<R: Runs, W: Write>(
    follow: &mut Follow<R>,
    source: &Source,
    watches: &Watches,
    sink: &mut Sink<W>,
) -> Result<(), Failure> {
    while !sink.is_gone() {
        match follow.next(&mut sink.buffer)? {
            Next::Chunk(chunk) => sink.print(chunk, source)?,
            Next::Waiting if wait(watches)? => {}
            Next::Waiting | Next::Over => break,
        }
    }
    Ok(())
}

/// Sleeps until something has changed; false once nobody reads what is printed.
fn wait(watches: &Watches) -> Result<bool, Failure> {
    let stdout = io::stdout();
    // Of standard output only its end is waited for, which is always told.
    let mut fds = [
        PollFd::new(watches.as_fd(), PollFlags::POLLIN),
        PollFd::new(stdout.as_fd(), PollFlags::empty()),
    ];
    match poll(&mut fds, PollTimeout::NONE) {
        Ok(_) | Err(Errno::EINTR) => {}
        Err(errno) => return Err(Failure::Unavailable(format!("poll: {errno}"))),
    }
    let gone = fds[1].any().unwrap_or(true);
    watches.dispatch().map_err(LogError::from)?;
    Ok(!gone)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto;
    use crate::state::Phase;
    use crate::view::tests::{Script, exited, launch, process, task};

    /// Attack 47: a terminal gets no escape sequence, and everybody else what was written.
    #[test]
    fn what_is_printed_on_a_terminal_is_made_safe_and_is_else_as_it_was_written() {
        let scene = crate::logs::testing::Scene::new();
        scene.append().write_all(b"\x1b]0;title\x07 text\n").unwrap();
        for (neutralizer, printed) in [
            (None, &b"\x1b]0;title\x07 text\n"[..]),
            (Some(Neutralizer::default()), br"\x1b]0;title\x07 text".as_slice()),
        ] {
            let mut sink = Sink::to(Out::new(Vec::new()), neutralizer);

            sink.drain(&mut scene.log(Start::Oldest), &scene.source).unwrap();
            sink.finish().unwrap();

            assert!(sink.out.into_inner().starts_with(printed));
        }
    }

    fn args(process: Option<&str>, run: Option<u32>) -> Tail {
        Tail {
            task: "web-1".to_owned(),
            process: process.map(str::to_owned),
            root: super::super::args::RootArg { root: None },
            run,
            stderr: false,
            follow: false,
            tail: None,
            raw: false,
        }
    }

    #[test]
    fn the_process_that_runs_is_more_interesting_than_the_one_that_ran() {
        let mut script =
            Script::new(launch(task(vec![process("a"), process("b"), process("c")], &[])));
        let chosen = |script: &Script, args: &Tail| choose(args, script.replay.state());
        script.enter(Phase::Active);
        assert_eq!(chosen(&script, &args(Some("b"), None)).unwrap().run, None);

        script.run(2, 0, exited(0)).run(0, 0, exited(0));
        let last = chosen(&script, &args(None, None)).unwrap();
        assert_eq!(last, Chosen { process: 0, run: Some(0), guessed: true });

        script.start(1, 0);
        let running = chosen(&script, &args(None, None)).unwrap();
        assert_eq!(running, Chosen { process: 1, run: Some(0), guessed: true });
        let named = chosen(&script, &args(Some("c"), Some(0))).unwrap();
        assert_eq!(named, Chosen { process: 2, run: Some(0), guessed: false });
    }

    #[test]
    fn what_is_named_and_not_there_matches_nothing() {
        let mut script = Script::new(launch(task(vec![process("a")], &[])));
        script.enter(Phase::Active).run(0, 0, exited(0));
        for (args, why) in [
            (args(Some("x"), None), "the task has no process x"),
            (args(Some("a"), Some(1)), "process a has no run 1: it has 1"),
        ] {
            let failure = choose(&args, script.replay.state()).unwrap_err();
            assert_eq!((failure.status(), failure.to_string().as_str()), (1, why));
        }
    }

    #[test]
    fn a_process_without_a_log_says_where_its_output_goes() {
        let logger = proto::Logger {
            destination: proto::LoggerDestination::Console.into(),
            ..Default::default()
        };
        let console = proto::Process { logger: Some(logger), ..process("a") };
        let script = Script::new(launch(task(vec![console], &[])));

        let failure = source(&args(None, None), &script.replay, 0).unwrap_err();

        assert_eq!(failure.to_string(), "process a has no log: its output goes to the console");
    }
}
