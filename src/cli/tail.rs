//! `dewar tail`: prints the log of a run, and with `-f` what comes after it.
//!
//! A log may be rotated at any moment: `stdout` becomes `stdout.1`, and so on. So a log is followed by its files, not
//! by their names: the file that is read is held open, and once it is not the live one any more, the one after it is
//! the one whose name has the number before. Every line is printed once, as long as it is not dropped before it could
//! be read.
//!
//! `-f` sleeps until the kernel says that the logs or the task's stream have changed (inotify(7)).

use std::fs::{File, Metadata};
use std::io::{self, IsTerminal, Read, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use nix::sys::stat::Mode;

use super::args::Tail;
use super::failure::{Failure, status};
use super::out::Out;
use super::run::whereabouts;
use super::term::Neutralizer;
use super::{place, words};
use crate::observe::Observed;
use crate::sandbox::PathError;
use crate::sandbox::logs::{self, LogName, Stream};
use crate::state::{Process, TaskState};
use crate::sys::fs::{open_beneath, open_dir_without_links};
use crate::task::{ProcessName, ProcessSpec};
use crate::view::{Replay, log_dir};

/// Bytes that are read at once.
const CHUNK: usize = 64 << 10;
/// Tries to see a log that is being rotated in a state that makes sense.
const ATTEMPTS: usize = 100;

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
    let source = Source::new(args, replay, chosen.process)?;
    if chosen.guessed {
        eprintln!("dewar: {} of process {}", source.stream, words::name(source.process.as_str()));
    }
    let mut sink = Sink::new(args.raw);
    match chosen.run {
        Some(run) if !args.follow => {
            let mut log = source.run(run);
            log.drain(&mut sink)?;
            sink.finish()?;
            if log.is_missing() {
                let path = source.dir(run).join(source.stream.as_str());
                return Err(Failure::NothingMatched(format!("{}: no such log", path.display())));
            }
        }
        None if !args.follow => return Err(Failure::NothingMatched(never_ran(&source.process))),
        first => {
            let mut changes = Changes::watch(&root.runner(&id))?;
            follow(&mut observed, &source, first, args.run.is_some(), &mut changes, &mut sink)?;
        }
    }
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

/// The logs of a process.
#[derive(Debug)]
struct Source {
    process: ProcessName,
    index: usize,
    stream: Stream,
    dir: PathBuf,
    owner: u32,
}

impl Source {
    fn new(args: &Tail, replay: &Replay, index: usize) -> Result<Self, Failure> {
        let spec: &ProcessSpec = &replay.state().spec().processes[index];
        let logger = spec.logger.unwrap_or_default();
        if spec.logger.is_some() && logger.file.is_none() {
            let name = words::name(spec.name.as_str());
            let to = if logger.console { "the console" } else { "nowhere" };
            let text = format!("process {name} has no log: its output goes to {to}");
            return Err(Failure::NothingMatched(text));
        }
        let launch = replay.launch();
        Ok(Self {
            process: spec.name.clone(),
            index,
            stream: if args.stderr { Stream::Stderr } else { Stream::Stdout },
            dir: log_dir(launch).into(),
            owner: launch.identity.as_ref().map_or(0, |who| who.uid),
        })
    }

    fn dir(&self, run: u32) -> PathBuf {
        self.dir.join(self.process.as_str()).join(run.to_string())
    }

    fn run(&self, run: u32) -> Log<'_> {
        Log { source: self, run, current: None }
    }
}

/// The log of one run: at each moment one of its files.
#[derive(Debug)]
struct Log<'s> {
    source: &'s Source,
    run: u32,
    current: Option<File>,
}

/// What is the matter with the file that is read.
#[derive(Debug)]
enum Next {
    /// It is the live one: more may come.
    Live,
    /// It was rotated, and this one came after it.
    File(File),
    /// The files are being renamed.
    Moving,
}

impl Log<'_> {
    /// Whether there is no file to read.
    fn is_missing(&self) -> bool {
        self.current.is_none()
    }

    /// Prints what is there and was not printed yet.
    fn drain<W: Write>(&mut self, sink: &mut Sink<W>) -> Result<(), Failure> {
        if self.current.is_none() {
            self.current = self.oldest()?;
        }
        let mut moving = 0;
        while let Some(current) = &self.current
            && !sink.is_gone()
        {
            sink.copy(current, &self.path())?;
            match self.next(current)? {
                Next::Live => break,
                Next::Moving if moving == ATTEMPTS => break,
                Next::Moving => {
                    moving += 1;
                    std::thread::yield_now();
                }
                Next::File(next) => {
                    // What was written to it between the last read and its rotation.
                    sink.copy(current, &self.path())?;
                    self.current = Some(next);
                    moving = 0;
                }
            }
        }
        Ok(())
    }

    fn path(&self) -> PathBuf {
        self.source.dir(self.run).join(self.source.stream.as_str())
    }

    fn open(&self, backup: u32) -> Result<Option<File>, Failure> {
        let log = LogName { stream: self.source.stream, backup };
        let Source { dir, process, owner, .. } = self.source;
        match logs::open_for_reading(dir, process, self.run, log, *owner) {
            Ok(file) => Ok(Some(file.into())),
            Err(PathError::Sys { errno: Errno::ENOENT, .. }) => Ok(None),
            Err(error) => Err(Failure::unavailable(&error)),
        }
    }

    /// The file that the log begins with. One that two looks agree on: a look may meet files on the move.
    fn oldest(&self) -> Result<Option<File>, Failure> {
        let mut oldest = self.last_file()?;
        for _ in 0..ATTEMPTS {
            let again = self.last_file()?;
            let same = match (&oldest, &again) {
                (Some(a), Some(b)) => self.is_same(a, b)?,
                (None, None) => true,
                _ => false,
            };
            oldest = again;
            if same {
                break;
            }
        }
        Ok(oldest)
    }

    /// The file with the highest number. A rotation renames from there down, so one number at a time is missing.
    fn last_file(&self) -> Result<Option<File>, Failure> {
        let mut last = None;
        let mut missing = 0;
        for backup in 0.. {
            match self.open(backup)? {
                Some(file) => (last, missing) = (Some(file), 0),
                None if missing == 1 => break,
                None => missing += 1,
            }
        }
        Ok(last)
    }

    /// The file that was written after `current`.
    fn next(&self, current: &File) -> Result<Next, Failure> {
        if self.metadata(current)?.nlink() == 0 {
            let path = self.path();
            eprintln!(
                "dewar: {}: lines may be missing: a rotated file was dropped",
                path.display()
            );
            return Ok(self.oldest()?.map_or(Next::Moving, Next::File));
        }
        let mut newer = None;
        for backup in 0.. {
            match self.open(backup)? {
                Some(file) if self.is_same(&file, current)? => {
                    return Ok(match newer {
                        None if backup == 0 => Next::Live,
                        // Files keep their order and only go up: had they moved since `newer` was seen one number
                        // below, it would be here and not `current`.
                        Some(newer) => Next::File(newer),
                        None => Next::Moving,
                    });
                }
                Some(file) => newer = Some(file),
                None if backup == 0 => {}
                None => break,
            }
        }
        Ok(Next::Moving)
    }

    fn is_same(&self, a: &File, b: &File) -> Result<bool, Failure> {
        let (a, b) = (self.metadata(a)?, self.metadata(b)?);
        Ok((a.dev(), a.ino()) == (b.dev(), b.ino()))
    }

    fn metadata(&self, file: &File) -> Result<Metadata, Failure> {
        file.metadata().map_err(|error| self.failed(&error))
    }

    fn failed(&self, error: &io::Error) -> Failure {
        Failure::Unavailable(format!("{}: {error}", self.path().display()))
    }
}

/// Where logs are printed: as they are, or made safe for a terminal.
#[derive(Debug)]
struct Sink<W = io::Stdout> {
    out: Out<W>,
    neutralizer: Option<Neutralizer>,
    chunk: Vec<u8>,
}

impl Sink {
    fn new(raw: bool) -> Self {
        let neutral = !raw && io::stdout().is_terminal();
        Self::to(Out::default(), neutral.then(Neutralizer::default))
    }
}

impl<W: Write> Sink<W> {
    fn to(out: Out<W>, neutralizer: Option<Neutralizer>) -> Self {
        Self { out, neutralizer, chunk: vec![0; CHUNK] }
    }

    fn copy(&mut self, mut file: &File, path: &Path) -> Result<(), Failure> {
        while !self.out.is_gone() {
            let read = match file.read(&mut self.chunk) {
                Ok(0) => return Ok(()),
                Ok(read) => read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => {
                    return Err(Failure::Unavailable(format!("{}: {error}", path.display())));
                }
            };
            let bytes = &self.chunk[..read];
            match &mut self.neutralizer {
                None => self.out.write(bytes)?,
                Some(neutralizer) => {
                    let mut safe = Vec::new();
                    neutralizer.push(bytes, &mut safe);
                    self.out.write(safe)?;
                }
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

/// Prints run `first` and, unless `only` that, the ones after it, until no more can come.
fn follow(
    observed: &mut Observed,
    source: &Source,
    first: Option<u32>,
    only: bool,
    changes: &mut Changes,
    sink: &mut Sink,
) -> Result<(), Failure> {
    let mut log = source.run(first.unwrap_or(0));
    while !sink.is_gone() {
        observed.advance(|_, _| {})?;
        // The state before the log: what ended before has written all that it ever will.
        let (runs, ended, over) = progress(observed, source.index, log.run);
        if log.run < runs {
            changes.watch_run(source, log.run)?;
            log.drain(sink)?;
        }
        if ended {
            changes.forget_run();
            if only {
                break;
            }
            log = source.run(log.run + 1);
            continue;
        }
        if over {
            break;
        }
        if !changes.wait()? {
            return Ok(());
        }
    }
    sink.finish()
}

/// Number of runs of a process, whether run `run` has ended, and whether the task has.
fn progress(observed: &Observed, process: usize, run: u32) -> (u32, bool, bool) {
    let Some(state) = observed.replay().map(Replay::state) else { return (0, false, false) };
    let runs = &state.processes()[process].runs;
    let ended = runs.get(run as usize).is_some_and(|run| !run.state.is_live());
    let over = state.phase().is_some_and(|phase| phase.is_terminal());
    (runs.len() as u32, ended, over)
}

/// Changes of a task's stream and of the logs of one run.
#[derive(Debug)]
struct Changes {
    inotify: Inotify,
    /// The run whose directory is watched.
    run: Option<(u32, nix::sys::inotify::WatchDescriptor)>,
}

impl Changes {
    fn watch(stream: &Path) -> Result<Self, Failure> {
        let inotify = Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK)
            .map_err(|errno| Failure::Unavailable(format!("inotify_init1: {errno}")))?;
        let changes = Self { inotify, run: None };
        changes.add(stream, AddWatchFlags::IN_MODIFY)?;
        Ok(changes)
    }

    fn add(
        &self,
        path: &Path,
        flags: AddWatchFlags,
    ) -> Result<nix::sys::inotify::WatchDescriptor, Failure> {
        self.inotify.add_watch(path, flags).map_err(|errno| {
            Failure::Unavailable(format!("inotify_add_watch {}: {errno}", path.display()))
        })
    }

    /// Watches the log directory of a run, once it is there.
    fn watch_run(&mut self, source: &Source, run: u32) -> Result<(), Failure> {
        if self.run.is_some_and(|(watched, _)| watched == run) {
            return Ok(());
        }
        let Some(dir) = open_run_dir(source, run)? else { return Ok(()) };
        // The path of a descriptor: no link that the task puts in the way is followed.
        let path = PathBuf::from(format!("/proc/self/fd/{}", dir.as_raw_fd()));
        let flags =
            AddWatchFlags::IN_MODIFY | AddWatchFlags::IN_CREATE | AddWatchFlags::IN_MOVED_TO;
        self.run = Some((run, self.add(&path, flags)?));
        Ok(())
    }

    fn forget_run(&mut self) {
        if let Some((_, watch)) = self.run.take() {
            // A directory that was removed has no watch any more.
            let _ = self.inotify.rm_watch(watch);
        }
    }

    /// Sleeps until something has changed; false once nobody reads what is printed.
    fn wait(&mut self) -> Result<bool, Failure> {
        let stdout = io::stdout();
        // Of standard output only its end is waited for, which is always told.
        let mut fds = [
            PollFd::new(self.inotify.as_fd(), PollFlags::POLLIN),
            PollFd::new(stdout.as_fd(), PollFlags::empty()),
        ];
        match poll(&mut fds, PollTimeout::NONE) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(errno) => return Err(Failure::Unavailable(format!("poll: {errno}"))),
        }
        let gone = fds[1].any().unwrap_or(true);
        match self.inotify.read_events() {
            Ok(_) | Err(Errno::EAGAIN | Errno::EINTR) => Ok(!gone),
            Err(errno) => Err(Failure::Unavailable(format!("inotify: {errno}"))),
        }
    }
}

fn open_run_dir(source: &Source, run: u32) -> Result<Option<OwnedFd>, Failure> {
    let failed =
        |errno: Errno| Failure::Unavailable(format!("{}: {errno}", source.dir(run).display()));
    let open = || {
        let logs = open_dir_without_links(&source.dir)?;
        let name = std::ffi::CString::new(format!("{}/{run}", source.process))
            .map_err(|_| Errno::EINVAL)?;
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW;
        open_beneath(logs.as_fd(), &name, flags, Mode::empty())
    };
    match open() {
        Ok(dir) => Ok(Some(dir)),
        Err(Errno::ENOENT) => Ok(None),
        Err(errno) => Err(failed(errno)),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::*;
    use crate::identity;
    use crate::proto;
    use crate::sandbox::Sandbox;
    use crate::sandbox::logs::LogDir;
    use crate::state::Phase;
    use crate::view::tests::{Script, exited, launch, process, task};

    struct Dir(PathBuf);

    impl Dir {
        fn new(name: &str) -> Self {
            let path =
                std::env::temp_dir().join(format!("dewar-tail-{}-{name}", std::process::id()));
            fs::create_dir(&path).unwrap();
            Self(path.canonicalize().unwrap())
        }

        /// The source of the logs of process `w`, and the directory of its run 0.
        fn logs(&self) -> (Source, LogDir) {
            let process = ProcessName::new("w").unwrap();
            let identity = identity::current().unwrap();
            let sandbox = Sandbox::open(&self.0, &identity).unwrap();
            let dir = LogDir::open(&sandbox, None, &process, 0, &identity).unwrap();
            let (index, stream) = (0, Stream::Stdout);
            let logs = self.0.join(logs::DEFAULT_DIR);
            (Source { process, index, stream, dir: logs, owner: identity.uid }, dir)
        }
    }

    impl Drop for Dir {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    fn write_lines(dir: &LogDir, lines: std::ops::Range<u32>) {
        let mut file = File::from(dir.append(Stream::Stdout).unwrap());
        lines.for_each(|line| writeln!(file, "line {line}").unwrap());
    }

    fn lines(range: std::ops::Range<u32>) -> String {
        range.map(|line| format!("line {line}\n")).collect()
    }

    fn printed(sink: Sink<Vec<u8>>) -> String {
        String::from_utf8(sink.out.into_inner()).unwrap()
    }

    fn memory() -> Sink<Vec<u8>> {
        Sink::to(Out::new(Vec::new()), None)
    }

    #[test]
    fn a_log_is_printed_from_its_oldest_file_to_the_live_one() {
        let dir = Dir::new("whole");
        let (source, logs) = dir.logs();
        for number in 0..12 {
            write_lines(&logs, number * 10..number * 10 + 10);
            logs.rotate(Stream::Stdout, 20).unwrap();
        }
        write_lines(&logs, 120..125);

        let mut sink = memory();
        source.run(0).drain(&mut sink).unwrap();

        assert_eq!(printed(sink), lines(0..125));
    }

    /// S49.
    #[test]
    fn every_line_is_printed_once_while_the_log_is_rotated() {
        let dir = Dir::new("rotated");
        let (source, logs) = dir.logs();
        let done = AtomicBool::new(false);
        let mut sink = memory();
        let mut log = source.run(0);

        std::thread::scope(|scope| {
            scope.spawn(|| {
                for number in 0..150 {
                    write_lines(&logs, number * 7..number * 7 + 7);
                    logs.rotate(Stream::Stdout, 1000).unwrap();
                }
                done.store(true, Ordering::Release);
            });
            while !done.load(Ordering::Acquire) {
                log.drain(&mut sink).unwrap();
            }
        });
        write_lines(&logs, 1050..1051);
        log.drain(&mut sink).unwrap();

        let printed = printed(sink);
        assert!(printed == lines(0..1051), "{} lines: {:.40?}…", printed.lines().count(), printed);
    }

    #[test]
    fn after_a_file_was_dropped_unread_the_oldest_that_is_left_comes_next() {
        let dir = Dir::new("dropped");
        let (source, logs) = dir.logs();
        let (mut sink, mut log) = (memory(), source.run(0));
        write_lines(&logs, 0..3);
        log.drain(&mut sink).unwrap();
        for number in 1..4 {
            logs.rotate(Stream::Stdout, 1).unwrap();
            write_lines(&logs, number * 3..number * 3 + 3);
        }

        log.drain(&mut sink).unwrap();

        assert_eq!(printed(sink), lines(0..3) + &lines(6..12));
    }

    /// Attack 15: the task has put a link in the place of its log.
    #[test]
    fn a_log_that_is_a_link_is_not_followed() {
        let dir = Dir::new("link");
        let (source, logs) = dir.logs();
        std::os::unix::fs::symlink("/etc/passwd", logs.path().join("stdout")).unwrap();

        let mut sink = memory();
        let failure = source.run(0).drain(&mut sink).unwrap_err();

        assert_eq!(failure.status(), 5);
        assert_eq!(printed(sink), "");
    }

    fn args(process: Option<&str>, run: Option<u32>) -> Tail {
        Tail {
            task: "web-1".to_owned(),
            process: process.map(str::to_owned),
            root: super::super::args::RootArg { root: None },
            run,
            stderr: false,
            follow: false,
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

        let failure = Source::new(&args(None, None), &script.replay, 0).unwrap_err();

        assert_eq!(failure.to_string(), "process a has no log: its output goes to the console");
    }
}
