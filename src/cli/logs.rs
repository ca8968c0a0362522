//! `dewar logs`: prints the log of a run, and with `-f` what comes after it.
//!
//! How a log is read and followed is told by [`crate::logs`]. `-f` sleeps until the kernel says that the logs or the task's
//! stream have changed, or until the daemon sends more.

use std::io::{self, IsTerminal, Write};
use std::os::fd::AsFd;
use std::sync::Arc;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::args::Logs;
use super::failure::{Failure, status};
use super::node::Node;
use super::nodes::Nodes;
use super::out::Out;
use super::run::whereabouts;
use super::term::{Neutralizer, escape};
use super::{place, words};
use crate::causes::tell;
use crate::checkpoint::Root;
use crate::logs::{CHUNK, Chunk, Follow, Log, LogError, Next, Runs, Source, Start, Watches};
use crate::observe::Observed;
use crate::proto::{ProcessView, TaskView};
use crate::sandbox::logs::Stream;
use crate::task::TaskId;
use crate::view::Replay;

/// Prints the log that was asked for.
///
/// # Errors
///
/// [`Failure`].
pub(super) fn run(args: &Logs) -> Result<u8, Failure> {
    let id = place::task_id(&args.task)?;
    let mut sink = Sink::new(args.raw);
    let (node, _) = Nodes::find(&args.node)?.with(&id, Failure::NothingMatched)?;
    match node {
        Node::Root(root) => on_root(&root, &id, args, &mut sink)?,
        #[cfg(feature = "net")]
        Node::Daemon(client) => daemon::print(&client, &id, args, &mut sink)?,
    }
    sink.finish()?;
    Ok(status::SUCCESS)
}

/// Prints a log that is read here.
fn on_root(root: &Root, id: &TaskId, args: &Logs, sink: &mut Sink) -> Result<(), Failure> {
    whereabouts(root, id).map_err(|failure| Failure::NothingMatched(failure.to_string()))?;
    let mut observed = Observed::open(root, id)?;
    observed.advance(|_, _| {})?;
    let replay = observed
        .replay()
        .ok_or_else(|| Failure::NothingMatched(format!("task {id} has not begun")))?;
    let chosen = choose(args, &replay.view(None))?;
    let source = Arc::new(source(args, replay, chosen.process)?);
    chosen.tell(args, source.process().as_str());
    let start = args.tail.map_or(Start::Oldest, Start::LastLines);
    match chosen.run {
        Some(run) if !args.follow => {
            let mut log = Log::new(Arc::clone(&source), run, start);
            sink.drain(&mut log, &source)?;
            if log.is_missing() {
                let path = source.path(run);
                return Err(Failure::NothingMatched(format!("{}: no such log", path.display())));
            }
            Ok(())
        }
        None if !args.follow => Err(never_ran(source.process().as_str())),
        first => {
            let watches = Watches::new().map_err(LogError::from)?;
            let watcher = watches.watcher(|| {});
            watcher.watch_file(&root.runner(id)).map_err(LogError::from)?;
            let (first, only) = (first.unwrap_or(0), args.run.is_some());
            let mut follow =
                Follow::new(observed, Arc::clone(&source), first, only, start, watcher);
            print(&mut follow, &source, &watches, sink)
        }
    }
}

fn never_ran(process: &str) -> Failure {
    Failure::NothingMatched(format!("process {} has not run", words::name(process)))
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

impl Chosen {
    /// Says what is printed, if nobody has.
    fn tell(&self, args: &Logs, process: &str) {
        if self.guessed {
            tell!("dewar: {} of process {}", stream(args), words::name(process));
        }
    }
}

fn choose(args: &Logs, view: &TaskView) -> Result<Chosen, Failure> {
    let processes = &view.processes;
    let process = match &args.process {
        Some(name) => {
            processes.iter().position(|process| process.name == *name).ok_or_else(|| {
                Failure::NothingMatched(format!("the task has no process {}", words::name(name)))
            })?
        }
        None => most_interesting(processes)
            .ok_or_else(|| Failure::NothingMatched("the task has no process".to_owned()))?,
    };
    let guessed = args.process.is_none() && processes.len() > 1;
    let runs = processes[process].runs.len() as u32;
    let run = match args.run {
        Some(run) if run < runs || args.follow => Some(run),
        Some(run) => {
            let name = words::name(&processes[process].name);
            let text = format!("process {name} has no run {run}: it has {runs}");
            return Err(Failure::NothingMatched(text));
        }
        None => runs.checked_sub(1),
    };
    Ok(Chosen { process, run, guessed })
}

/// The first process that runs; else the one that ran last; else the first.
fn most_interesting(processes: &[ProcessView]) -> Option<usize> {
    let lives =
        |process: &ProcessView| process.runs.last().is_some_and(|run| run.end_time.is_none());
    let last_end =
        |process: &ProcessView| process.runs.last()?.end_time.map(|time| time.unix_nanos());
    let last = || (0..processes.len()).rev().max_by_key(|&index| last_end(&processes[index]));
    processes.iter().position(lives).or_else(last)
}

fn stream(args: &Logs) -> Stream {
    if args.stderr { Stream::Stderr } else { Stream::Stdout }
}

/// The logs that were asked for.
fn source(args: &Logs, replay: &Replay, index: usize) -> Result<Source, Failure> {
    Source::new(replay, index, stream(args)).map_err(|why| {
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
            say_gap(&source.path(chunk.run).display().to_string());
        }
        let bytes = &self.buffer[..chunk.len];
        Self::write(&mut self.out, &mut self.neutralizer, bytes)
    }

    /// Prints what somebody else has read.
    #[cfg(feature = "net")]
    fn print_bytes(&mut self, bytes: &[u8]) -> Result<(), Failure> {
        Self::write(&mut self.out, &mut self.neutralizer, bytes)
    }

    fn write(
        out: &mut Out<W>,
        neutralizer: &mut Option<Neutralizer>,
        bytes: &[u8],
    ) -> Result<(), Failure> {
        match neutralizer {
            None => out.write(bytes)?,
            Some(neutralizer) => {
                let mut safe = Vec::new();
                neutralizer.push(bytes, &mut safe);
                out.write(safe)?;
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

/// Bytes of a log may be missing before what comes next.
fn say_gap(log: &str) {
    let why = "a file was dropped or cut short before it was read";
    tell!("dewar: {}: lines may be missing: {why}", escape(log));
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

/// A log that a daemon reads, and goes on reading where the one before it was.
#[cfg(feature = "net")]
mod daemon {
    use tonic::Status;

    use super::{Chosen, Failure, Logs, Sink, Stream, TaskId, choose, never_ran, say_gap, stream};
    use crate::cli::out;
    use crate::cli::patience::Patience;
    use crate::client::Client;
    use crate::proto::read_logs_request::Start;
    use crate::proto::{LogStream, ReadLogsRequest};

    pub(super) fn print(
        client: &Client,
        id: &TaskId,
        args: &Logs,
        sink: &mut Sink,
    ) -> Result<(), Failure> {
        let view = client.view(id.as_str())?;
        let chosen = choose(args, &view)?;
        let process = &view.processes[chosen.process].name;
        chosen.tell(args, process);
        if chosen.run.is_none() && !args.follow {
            return Err(never_ran(process));
        }
        let mut request = request(id, args, &chosen, process);
        client.block_on(async {
            tokio::select! {
                over = read(client, &mut request, sink) => over,
                () = out::unread() => Ok(()),
            }
        })
    }

    fn request(id: &TaskId, args: &Logs, chosen: &Chosen, process: &str) -> ReadLogsRequest {
        let stream = match stream(args) {
            Stream::Stdout => LogStream::Stdout,
            Stream::Stderr => LogStream::Stderr,
        };
        ReadLogsRequest {
            task_id: id.to_string(),
            process: process.to_owned(),
            run: if args.follow { args.run } else { chosen.run },
            stream: stream.into(),
            start: args.tail.map(Start::TailLines),
            follow: args.follow,
        }
    }

    async fn read(
        client: &Client,
        request: &mut ReadLogsRequest,
        sink: &mut Sink,
    ) -> Result<(), Failure> {
        let mut patience = Patience::default();
        loop {
            let Err(status) = read_on(client, request, sink, &mut patience).await? else {
                return Ok(());
            };
            // The end of a log is another one by now.
            if let Some(Start::TailLines(_)) = request.start {
                return Err(status.into());
            }
            patience.wait(status).await?;
        }
    }

    /// Prints what comes until it ends: well, or with a status. What is asked for next is what comes after it.
    async fn read_on(
        client: &Client,
        request: &mut ReadLogsRequest,
        sink: &mut Sink,
        patience: &mut Patience,
    ) -> Result<Result<(), Status>, Failure> {
        let mut pieces = match client.observer().read_logs(request.clone()).await {
            Ok(pieces) => pieces.into_inner(),
            Err(status) => return Ok(Err(status)),
        };
        loop {
            let piece = match pieces.message().await {
                Ok(Some(piece)) => piece,
                Ok(None) => return Ok(Ok(())),
                Err(status) => return Ok(Err(status)),
            };
            patience.renew();
            if piece.is_after_gap {
                say_gap(&format!("{} of {} run {}", request.process, request.task_id, piece.run));
            }
            sink.print_bytes(&piece.data)?;
            if sink.is_gone() {
                return Ok(Ok(()));
            }
            request.start = Some(Start::Cursor(piece.cursor));
        }
    }
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

    fn args(process: Option<&str>, run: Option<u32>) -> Logs {
        Logs {
            task: "web-1".to_owned(),
            process: process.map(str::to_owned),
            node: Default::default(),
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
        let chosen = |script: &Script, args: &Logs| choose(args, &script.replay.view(None));
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
            let failure = choose(&args, &script.replay.view(None)).unwrap_err();
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
