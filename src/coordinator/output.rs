//! Where standard output and error of a run go, and the pump between pipes and files (T59 to T61).
//!
//! | logger | the run's descriptors |
//! |---|---|
//! | file, standard | the log files themselves: no copying, nothing of ours in the way |
//! | console | the runner's own standard output and error |
//! | none | `/dev/null` |
//! | file, rotate; both | pipes, which the [`Pump`] empties |
//!
//! The pump never stops emptying its pipes and never waits for a sink: a full disk or a terminal
//! that takes nothing costs output, never the run. What a sink does not take is counted; when it
//! takes again, a line in its output says how many bytes are missing there. Memory is one buffer,
//! whatever passes through it.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{MsgFlags, send};
use nix::sys::stat::{FileStat, Mode, SFlag, fstat};
use nix::unistd::{pipe2, read, write};

use super::start::Run;
use crate::sandbox::PathError;
use crate::sandbox::logs::{LogDir, Stream};
use crate::sys::fs::{bytes_waiting, duplicate_above_standard, make_nonblocking};
use crate::task::spec::{FileMode, Logger, Rotate};

/// Most bytes that are read at once, and most by which a rotated file is over its limit: the
/// capacity of a pipe.
const CHUNK: usize = 64 * 1024;

/// Milliseconds without progress after which a console counts as stalled, and is no longer waited
/// for.
const PATIENCE_MS: u16 = 250;

/// Bytes written at once to a console that cannot be opened anew: what one that polls writable
/// takes without blocking.
const CAUTIOUS: usize = 512;

/// Why the output of a run could not be opened.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum OutputError {
    /// A log or its directory.
    #[error(transparent)]
    Log(#[from] PathError),
    /// A pipe, `/dev/null` or the console.
    #[error("{call} for the output of the run")]
    Sys {
        /// The call.
        call: &'static str,
        /// Why it did not work.
        #[source]
        errno: Errno,
    },
}

impl OutputError {
    /// The error number that stands for it in a verdict.
    pub fn errno(&self) -> Option<Errno> {
        match self {
            Self::Log(error) => error.errno(),
            Self::Sys { errno, .. } => Some(*errno),
        }
    }

    fn sys(call: &'static str) -> impl FnOnce(Errno) -> Self {
        move |errno| Self::Sys { call, errno }
    }
}

/// Descriptors for a run, and what has to be done for them.
#[derive(Debug)]
pub struct Output {
    /// Its standard output.
    pub stdout: OwnedFd,
    /// Its standard error.
    pub stderr: OwnedFd,
    /// What copies, where something must be copied.
    pub pump: Option<Pump>,
}

impl Output {
    /// Opens the output of `run` as its logger says. Logs that exist are appended to.
    ///
    /// # Errors
    ///
    /// See [`OutputError`].
    pub fn open(run: &Run<'_>) -> Result<Self, OutputError> {
        let direct = |stdout, stderr| Ok(Self { stdout, stderr, pump: None });
        match run.logger {
            Logger { file: None, console: false } => direct(null()?, null()?),
            Logger { file: None, console: true } => {
                direct(own(Stream::Stdout)?, own(Stream::Stderr)?)
            }
            Logger { file: Some(FileMode::Standard), console: false } => {
                let dir = log_dir(run)?;
                direct(dir.append(Stream::Stdout)?, dir.append(Stream::Stderr)?)
            }
            Logger { file: Some(mode), console } => Self::pumped(run, mode, console),
        }
    }

    fn pumped(run: &Run<'_>, mode: FileMode, console: bool) -> Result<Self, OutputError> {
        let dir = log_dir(run)?;
        let rotate = match mode {
            FileMode::Standard => None,
            FileMode::Rotate(rotate) => Some(rotate),
        };
        let (stdout, out) = Channel::open(Stream::Stdout, &dir, rotate, console)?;
        let (stderr, err) = Channel::open(Stream::Stderr, &dir, rotate, console)?;
        let pump = Pump { channels: [out, err], dir, buffer: vec![0; CHUNK].into_boxed_slice() };
        Ok(Self { stdout, stderr, pump: Some(pump) })
    }
}

fn log_dir(run: &Run<'_>) -> Result<LogDir, PathError> {
    LogDir::open(run.sandbox, run.log_dir, run.process, run.run, run.identity)
}

fn null() -> Result<OwnedFd, OutputError> {
    open(c"/dev/null", OFlag::O_WRONLY | OFlag::O_CLOEXEC, Mode::empty())
        .map_err(OutputError::sys("open /dev/null"))
}

/// Our own descriptor of `stream`, duplicated.
fn own(stream: Stream) -> Result<OwnedFd, OutputError> {
    let duplicate = match stream {
        Stream::Stdout => duplicate_above_standard(std::io::stdout()),
        Stream::Stderr => duplicate_above_standard(std::io::stderr()),
    };
    duplicate.map_err(OutputError::sys("fcntl"))
}

/// Copies the output of a run from pipes to its logs and the console.
///
/// Put [`Pump::fds`] into the poll set and call [`Pump::on_readable`] when one is ready. When the
/// first process of the run is gone and its leaf is empty, call [`Pump::finish`].
#[derive(Debug)]
pub struct Pump {
    channels: [Channel; 2],
    dir: LogDir,
    buffer: Box<[u8]>,
}

impl Pump {
    /// The pipes that may still bring something. Empty once every writer has closed them.
    pub fn fds(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.channels.iter().filter_map(|channel| channel.pipe.as_ref().map(AsFd::as_fd))
    }

    /// Copies at most one chunk of each stream. Never waits for the run; waits for a console as the
    /// module says.
    pub fn on_readable(&mut self) {
        for channel in &mut self.channels {
            channel.copy(&mut self.dir, &mut self.buffer, CHUNK);
        }
    }

    /// Copies what is in the pipes now, and no more: a writer that has got away must not hold up
    /// the end of its run (D21).
    pub fn finish(&mut self) {
        for channel in &mut self.channels {
            channel.drain(&mut self.dir, &mut self.buffer);
        }
    }
}

/// A pipe and where it leads.
#[derive(Debug)]
struct Channel {
    /// `None` after the end of file.
    pipe: Option<OwnedFd>,
    file: FileSink,
    console: Option<Console>,
}

impl Channel {
    /// Returns the end for the run, and the channel.
    fn open(
        stream: Stream,
        dir: &LogDir,
        rotate: Option<Rotate>,
        console: bool,
    ) -> Result<(OwnedFd, Self), OutputError> {
        let (ours, theirs) = pipe2(OFlag::O_CLOEXEC).map_err(OutputError::sys("pipe2"))?;
        // Ours alone: each end is an open file of its own, and the run finds an ordinary pipe.
        make_nonblocking(&ours).map_err(OutputError::sys("fcntl"))?;
        let file = FileSink {
            file: Some(dir.append(stream)?),
            stream,
            rotate,
            gap: Gap::default(),
            in_line: false,
        };
        let console = if console { Some(Console::new(own(stream)?, stream)?) } else { None };
        Ok((theirs, Self { pipe: Some(ours), file, console }))
    }

    /// Copies up to `limit` bytes, once. Returns how many; 0 if there is nothing now, or nothing
    /// more.
    fn copy(&mut self, dir: &mut LogDir, buffer: &mut [u8], limit: usize) -> usize {
        let Some(pipe) = &self.pipe else { return 0 };
        let room = limit.min(buffer.len());
        match read(pipe, &mut buffer[..room]) {
            Ok(0) => {
                self.pipe = None;
                0
            }
            Ok(size) => {
                self.file.put(dir, &buffer[..size]);
                if let Some(console) = &mut self.console {
                    console.put(&buffer[..size]);
                }
                size
            }
            // EAGAIN and EINTR; no other error can come from a pipe that is open for reading.
            Err(_) => 0,
        }
    }

    fn drain(&mut self, dir: &mut LogDir, buffer: &mut [u8]) {
        let mut left = self.pipe.as_ref().map_or(0, |pipe| bytes_waiting(pipe).unwrap_or(0));
        while left > 0 {
            match self.copy(dir, buffer, left) {
                0 => break,
                size => left -= size,
            }
        }
        self.file.put(dir, b"");
        if let Some(console) = &mut self.console {
            console.put(b"");
        }
    }
}

/// Bytes that a sink has not taken since it last took some.
#[derive(Debug, Default)]
struct Gap {
    bytes: u64,
    cause: Option<Errno>,
}

impl Gap {
    fn add(&mut self, bytes: usize, cause: Errno) {
        self.bytes += bytes as u64;
        if bytes > 0 {
            self.cause = Some(cause);
        }
    }

    /// The line that stands where something is missing.
    fn marker(&self, stream: Stream, in_line: bool) -> Option<String> {
        let start = if in_line { "\n" } else { "" };
        let cause = self.cause.filter(|_| self.bytes > 0)?;
        Some(format!(
            "{start}[dewar: {} bytes of {stream} are missing here: {cause:?}]\n",
            self.bytes
        ))
    }
}

/// The log file of a stream, rotated or not.
#[derive(Debug)]
struct FileSink {
    stream: Stream,
    /// `None` after a rotation whose new file could not be opened.
    file: Option<OwnedFd>,
    rotate: Option<Rotate>,
    gap: Gap,
    /// Whether the last byte written was not a newline.
    in_line: bool,
}

impl FileSink {
    /// Writes `bytes`; what does not get in becomes part of the gap.
    fn put(&mut self, dir: &mut LogDir, bytes: &[u8]) {
        let mut rest = bytes;
        if let Err(errno) = self.mark(dir).and_then(|()| self.put_all(dir, &mut rest)) {
            self.gap.add(rest.len(), errno);
        }
    }

    /// Says in the log what is missing, if something is.
    fn mark(&mut self, dir: &mut LogDir) -> Result<(), Errno> {
        if let Some(marker) = self.gap.marker(self.stream, self.in_line) {
            self.put_all(dir, &mut marker.as_bytes())?;
            self.gap.bytes = 0;
        }
        Ok(())
    }

    /// Writes `rest`, and takes from it what is written.
    fn put_all(&mut self, dir: &mut LogDir, rest: &mut &[u8]) -> Result<(), Errno> {
        while !rest.is_empty() {
            let stream = self.stream;
            let file = match &mut self.file {
                Some(file) => file,
                none => none.insert(reopen(dir, stream)?),
            };
            let piece = match self.rotate {
                Some(rotate) => {
                    &rest[..piece(rest, fstat(&*file)?.st_size as u64, rotate.log_size.get())]
                }
                None => rest,
            };
            let size = match write(&*file, piece) {
                Err(Errno::EINTR) => continue,
                Ok(0) => return Err(Errno::EIO),
                size => size?,
            };
            self.in_line = piece[size - 1] != b'\n';
            *rest = &rest[size..];
            let stat = fstat(&*file)?;
            self.look_after(dir, &stat);
        }
        Ok(())
    }

    /// Lets go of a file that the task has removed, and rotates one that is full. A rotation that
    /// does not work (the task may have put a directory there) is tried again after the next piece;
    /// meanwhile the file grows.
    fn look_after(&mut self, dir: &LogDir, stat: &FileStat) {
        let full =
            |rotate: &Rotate| is_full(stat.st_size as u64, rotate.log_size.get(), self.in_line);
        let rotated = match self.rotate.filter(full) {
            Some(rotate) => dir.rotate(self.stream, rotate.backups.get()).is_ok(),
            None => false,
        };
        if rotated || stat.st_nlink == 0 {
            // The next file is there at once, so that a rotated log is never without its live file.
            self.file = dir.append(self.stream).ok();
        }
    }
}

/// Opens the live log anew; if its directory was removed, makes that again.
fn reopen(dir: &mut LogDir, stream: Stream) -> Result<OwnedFd, Errno> {
    let opened = dir.append(stream).or_else(|_| {
        dir.remake()?;
        dir.append(stream)
    });
    opened.map_err(|error| error.errno().unwrap_or(Errno::EPERM))
}

/// How much of `chunk` belongs into a file of `size` bytes that is rotated at `limit`: up to the
/// end of the line in which it becomes full, so that no line is torn in two; but never more than
/// [`CHUNK`] over.
fn piece(chunk: &[u8], size: u64, limit: u64) -> usize {
    let room = |limit: u64| usize::try_from(limit.saturating_sub(size)).unwrap_or(usize::MAX);
    let (soft, hard) = (room(limit), room(limit.saturating_add(CHUNK as u64)));
    let from = soft.saturating_sub(1).min(chunk.len());
    let end_of_line = chunk[from..].iter().position(|&byte| byte == b'\n').map(|at| from + at + 1);
    end_of_line.unwrap_or(chunk.len()).min(hard.max(1))
}

/// T60: whether a file of `size` bytes is rotated now.
fn is_full(size: u64, limit: u64, in_line: bool) -> bool {
    size >= limit && (!in_line || size >= limit.saturating_add(CHUNK as u64))
}

/// Our own standard output or error, as a sink that may be slow, stalled or gone.
#[derive(Debug)]
struct Console {
    stream: Stream,
    fd: OwnedFd,
    way: Way,
    gap: Gap,
    in_line: bool,
    /// Whether it took nothing for [`PATIENCE_MS`].
    stalled: bool,
}

/// How to write without blocking.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    /// Regular files do not block, and a terminal or pipe that was opened anew has our own
    /// `O_NONBLOCK`.
    Plain,
    /// Sockets take a flag with each call.
    Socket,
    /// Shared with others, who want it to block: written to in small pieces, and only when it polls
    /// writable.
    Shared,
}

impl Console {
    /// `O_NONBLOCK` belongs to the open file, which we share with the runner and whoever started
    /// it. So a terminal or pipe is opened anew, through `/proc`.
    fn new(fd: OwnedFd, stream: Stream) -> Result<Self, OutputError> {
        let stat = fstat(&fd).map_err(OutputError::sys("fstat"))?;
        let (fd, way) = match SFlag::from_bits_truncate(stat.st_mode & SFlag::S_IFMT.bits()) {
            SFlag::S_IFSOCK => (fd, Way::Socket),
            SFlag::S_IFCHR | SFlag::S_IFIFO => match open_anew(&fd) {
                Ok(anew) => (anew, Way::Plain),
                Err(_) => (fd, Way::Shared),
            },
            _ => (fd, Way::Plain),
        };
        Ok(Self { stream, fd, way, gap: Gap::default(), in_line: false, stalled: false })
    }

    fn put(&mut self, bytes: &[u8]) {
        let mut rest = bytes;
        if let Err(errno) = self.mark().and_then(|()| self.put_all(&mut rest)) {
            self.gap.add(rest.len(), errno);
        }
    }

    fn mark(&mut self) -> Result<(), Errno> {
        if let Some(marker) = self.gap.marker(self.stream, self.in_line) {
            self.put_all(&mut marker.as_bytes())?;
            self.gap.bytes = 0;
        }
        Ok(())
    }

    fn put_all(&mut self, rest: &mut &[u8]) -> Result<(), Errno> {
        while !rest.is_empty() {
            match self.write(rest) {
                Ok(0) => return Err(Errno::EIO),
                Ok(size) => {
                    self.stalled = false;
                    self.in_line = rest[size - 1] != b'\n';
                    *rest = &rest[size..];
                }
                Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) if !self.stalled => {
                    self.stalled = !self.becomes_writable(PATIENCE_MS)
                }
                Err(errno) => return Err(errno),
            }
        }
        Ok(())
    }

    fn write(&self, bytes: &[u8]) -> Result<usize, Errno> {
        match self.way {
            Way::Plain => write(&self.fd, bytes),
            Way::Socket => {
                send(self.fd.as_raw_fd(), bytes, MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL)
            }
            Way::Shared if self.becomes_writable(0) => {
                write(&self.fd, &bytes[..bytes.len().min(CAUTIOUS)])
            }
            Way::Shared => Err(Errno::EAGAIN),
        }
    }

    fn becomes_writable(&self, milliseconds: u16) -> bool {
        let mut fds = [PollFd::new(self.fd.as_fd(), PollFlags::POLLOUT)];
        poll(&mut fds, PollTimeout::from(milliseconds)).is_ok_and(|ready| ready > 0)
    }
}

/// What `fd` is open on, opened once more to be written without blocking.
fn open_anew(fd: &OwnedFd) -> Result<OwnedFd, Errno> {
    let path = format!("/proc/self/fd/{}", fd.as_raw_fd());
    open(
        path.as_str(),
        OFlag::O_WRONLY | OFlag::O_NONBLOCK | OFlag::O_NOCTTY | OFlag::O_CLOEXEC,
        Mode::empty(),
    )
}

#[cfg(test)]
mod tests {
    use std::fs::{self, File};
    use std::io::{Read, Write};
    use std::num::{NonZeroU32, NonZeroU64};
    use std::os::unix::net::UnixStream;
    use std::path::PathBuf;
    use std::time::{Duration, Instant};

    use nix::fcntl::{FcntlArg, fcntl};
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    use nix::sys::wait::{Id, WaitPidFlag, waitid};
    use proptest::prelude::*;

    use super::super::start::Start;
    use super::*;
    use crate::identity;
    use crate::proto::Identity;
    use crate::sandbox::Sandbox;
    use crate::sys::fault;
    use crate::task::{ProcessName, TaskId};
    use crate::testing::{TempDir, alone};

    fn rotate(log_size: u64, backups: u32) -> Rotate {
        Rotate {
            log_size: NonZeroU64::new(log_size).unwrap(),
            backups: NonZeroU32::new(backups).unwrap(),
        }
    }

    /// A task whose runs write.
    struct Stage {
        temp: TempDir,
        identity: Identity,
    }

    impl Stage {
        fn new() -> Self {
            Self { temp: TempDir::new(), identity: identity::current().unwrap() }
        }

        fn dir(&self) -> LogDir {
            let process = ProcessName::new("writer").unwrap();
            let sandbox = Sandbox::open(&self.temp.path().join("sandbox"), &self.identity).unwrap();
            LogDir::open(&sandbox, None, &process, 0, &self.identity).unwrap()
        }

        fn path(&self, name: &str) -> PathBuf {
            self.temp.path().join("sandbox/.logs/writer/0").join(name)
        }

        fn log(&self, name: &str) -> String {
            String::from_utf8_lossy(&fs::read(self.path(name)).unwrap_or_default()).into_owned()
        }

        /// The logs of standard output that are there, from the oldest.
        fn logs(&self) -> Vec<String> {
            let names = (1..20).rev().map(|k| format!("stdout.{k}")).chain(["stdout".to_owned()]);
            names.filter(|name| self.path(name).exists()).map(|name| self.log(&name)).collect()
        }

        fn sink(&self, rotate: Option<Rotate>) -> (FileSink, LogDir) {
            let dir = self.dir();
            let file = Some(dir.append(Stream::Stdout).unwrap());
            (
                FileSink {
                    stream: Stream::Stdout,
                    file,
                    rotate,
                    gap: Gap::default(),
                    in_line: false,
                },
                dir,
            )
        }

        /// Runs `cmdline` to its end as a coordinator does, and pumps.
        fn run(&self, cmdline: &str, logger: Logger) -> Option<Pump> {
            let (task_id, process) =
                (TaskId::new("task").unwrap(), ProcessName::new("writer").unwrap());
            let sandbox = Sandbox::open(&self.temp.path().join("sandbox"), &self.identity).unwrap();
            let run = Run {
                task_id: &task_id,
                process: &process,
                run: 0,
                cmdline,
                path: "/usr/bin:/bin",
                identity: &self.identity,
                sandbox: &sandbox,
                chroot: false,
                log_dir: None,
                logger,
            };
            let (start, mut pump) = Start::prepare(&run).unwrap();
            let (_, pidfd) = start.launch(None).unwrap();
            loop {
                let mut fds = vec![PollFd::new(pidfd.as_fd(), PollFlags::POLLIN)];
                fds.extend(
                    pump.iter().flat_map(Pump::fds).map(|fd| PollFd::new(fd, PollFlags::POLLIN)),
                );
                poll(&mut fds, PollTimeout::NONE).unwrap();
                if fds[0].any() == Some(true) {
                    break;
                }
                if let Some(pump) = &mut pump {
                    pump.on_readable();
                }
            }
            waitid(Id::PIDFd(pidfd.as_fd()), WaitPidFlag::WEXITED).unwrap();
            if let Some(pump) = &mut pump {
                pump.finish();
            }
            pump
        }
    }

    const STANDARD: Logger = Logger { file: Some(FileMode::Standard), console: false };

    fn rotated(log_size: u64, backups: u32) -> Logger {
        Logger { file: Some(FileMode::Rotate(rotate(log_size, backups))), console: false }
    }

    /// O37, T60: exactly, byte by byte and in any other portions.
    #[test]
    fn thirty_one_lines_of_seven_bytes_make_files_of_ten() {
        let text: String = (0..31).map(|line| format!("l{line:05}\n")).collect();
        for portion in [1, 2, 7, 64, 70, 71, 1000] {
            let stage = Stage::new();
            let (mut sink, mut dir) = stage.sink(Some(rotate(70, 2)));

            for bytes in text.as_bytes().chunks(portion) {
                sink.put(&mut dir, bytes);
            }

            assert_eq!(stage.logs(), [&text[70..140], &text[140..210], &text[210..]], "{portion}");
        }
    }

    /// S36: the newest lines in the newest file, none lost or torn within what is kept.
    #[test]
    fn a_run_that_writes_much_keeps_its_newest_lines_whole() {
        alone(|| {
            let stage = Stage::new();

            stage.run("for i in {1..5000}; do echo line $i; done", rotated(4096, 3));

            let logs = stage.logs();
            assert_eq!(logs.len(), 4);
            assert!(
                logs.iter()
                    .all(|log| log.len() < 4096 + 10 && (log.is_empty() || log.ends_with('\n')))
            );
            let kept = logs.concat();
            let lines: Vec<&str> = kept.lines().collect();
            let expected: Vec<String> =
                (5001 - lines.len()..=5000).map(|i| format!("line {i}")).collect();
            assert_eq!(lines, expected);
            assert!(kept.len() > 3 * 4096);
        });
    }

    proptest! {
        /// T60, in numbers: a file is rotated at the end of the line in which it becomes full, and
        /// is never more than a chunk over.
        #[test]
        fn pieces_are_whole_lines_and_never_far_over(
            lengths in proptest::collection::vec(0usize..300, 1..60),
            limit in 1u64..500,
            portion in 1usize..700,
        ) {
            let line = |&length: &usize| [vec![b'x'; length], vec![b'\n']].concat();
            let text: Vec<u8> = lengths.iter().flat_map(line).collect();
            let (mut size, mut files) = (0u64, vec![Vec::new()]);
            for chunk in text.chunks(portion) {
                let mut rest = chunk;
                while !rest.is_empty() {
                    let n = piece(rest, size, limit);
                    prop_assert!(n >= 1 && n <= rest.len());
                    size += n as u64;
                    files.last_mut().unwrap().extend_from_slice(&rest[..n]);
                    if is_full(size, limit, rest[n - 1] != b'\n') {
                        size = 0;
                        files.push(Vec::new());
                    }
                    rest = &rest[n..];
                }
            }
            prop_assert_eq!(files.concat(), text);
            let last = files.pop().unwrap();
            prop_assert!((last.len() as u64) < limit);
            for file in files {
                prop_assert!(file.len() as u64 >= limit && file.ends_with(b"\n"));
                // All but its last line was below the limit.
                let lines = &file[..file.len() - 1];
                let start = lines.iter().rposition(|&byte| byte == b'\n').map_or(0, |at| at + 1);
                prop_assert!((start as u64) < limit);
            }
        }
    }

    /// T60: up to 64 KiB over, and then in the middle of a line.
    #[test]
    fn a_line_without_end_is_rotated_all_the_same() {
        let stage = Stage::new();
        let (mut sink, mut dir) = stage.sink(Some(rotate(100, 2)));

        for _ in 0..5 {
            sink.put(&mut dir, &[b'x'; CHUNK]);
        }

        // Four files were full, of which the two newest are kept.
        let sizes: Vec<usize> = stage.logs().iter().map(String::len).collect();
        assert_eq!(sizes, [CHUNK + 100, CHUNK + 100, CHUNK - 400]);
    }

    /// T59: a log that is there is appended to, and rotated in its turn.
    #[test]
    fn what_an_earlier_coordinator_wrote_counts() {
        let stage = Stage::new();
        File::from(stage.dir().append(Stream::Stdout).unwrap()).write_all(b"123456789").unwrap();
        let (mut sink, mut dir) = stage.sink(Some(rotate(10, 2)));

        sink.put(&mut dir, b"\nnew\n");

        assert_eq!(stage.logs(), ["123456789\n", "new\n"]);
    }

    /// S35: through files and through pipes, byte for byte.
    #[test]
    fn output_is_exact_whatever_it_is() {
        alone(|| {
            for logger in [STANDARD, rotated(1 << 30, 1)] {
                let stage = Stage::new();
                let command = "printf '\\0\\377\\376 \\r\\x1b[0m no end'; \
                               head -c 1000000 /dev/zero >&2; printf 'e' >&2";

                stage.run(command, logger);

                assert_eq!(fs::read(stage.path("stdout")).unwrap(), b"\0\xff\xfe \r\x1b[0m no end");
                assert_eq!(
                    fs::read(stage.path("stderr")).unwrap(),
                    [vec![0; 1_000_000], vec![b'e']].concat()
                );
            }
        });
    }

    /// T59, O39, S37.
    #[test]
    fn each_destination_is_where_it_says() {
        alone(|| {
            let console = TempDir::new();
            let [out, err] =
                ["out", "err"].map(|name| File::create(console.path().join(name)).unwrap());
            nix::unistd::dup2_stdout(&out).unwrap();
            nix::unistd::dup2_stderr(&err).unwrap();
            let command = "echo out; echo err >&2";
            let seen = || {
                ["out", "err"].map(|name| fs::read_to_string(console.path().join(name)).unwrap())
            };

            let stage = Stage::new();
            stage.run(command, Logger { file: None, console: false });
            let none = (seen(), stage.path("stdout").exists());
            stage.run(command, Logger { file: None, console: true });
            let console_only = (seen(), stage.path("stdout").exists());
            stage.run(command, Logger { file: Some(FileMode::Standard), console: true });
            let both = (seen(), [stage.log("stdout"), stage.log("stderr")]);

            assert_eq!(none, (["", ""].map(str::to_owned), false));
            assert_eq!(console_only, (["out\n", "err\n"].map(str::to_owned), false));
            assert_eq!(
                both,
                (
                    ["out\nout\n", "err\nerr\n"].map(str::to_owned),
                    ["out\n", "err\n"].map(str::to_owned)
                )
            );
        });
    }

    /// D21, attack 45: somebody still has the pipe, and even writes to it.
    #[test]
    fn the_end_of_a_run_does_not_wait_for_the_end_of_its_pipes() {
        let stage = Stage::new();
        let dir = stage.dir();
        let (out, channel) = Channel::open(Stream::Stdout, &dir, None, false).unwrap();
        let (_err, other) = Channel::open(Stream::Stderr, &dir, None, false).unwrap();
        let mut pump = Pump { channels: [channel, other], dir, buffer: vec![0; CHUNK].into() };
        let mut writer = File::from(out.try_clone().unwrap());
        writer.write_all(b"before the end\n").unwrap();
        pump.finish();
        assert_eq!(stage.log("stdout"), "before the end\n");

        let flood = std::thread::spawn(move || while writer.write_all(&[b'x'; 4096]).is_ok() {});
        pump.finish();
        drop(pump);

        // Not more than the pipe held; and with its reading end gone, the flood ends.
        flood.join().unwrap();
        assert!(stage.log("stdout").len() <= "before the end\n".len() + CHUNK);
    }

    /// A stream that the run closes is not polled again: it would be ready for ever.
    #[test]
    fn a_stream_that_is_closed_leaves_the_poll_set() {
        let stage = Stage::new();
        let dir = stage.dir();
        let (out, channel) = Channel::open(Stream::Stdout, &dir, None, false).unwrap();
        let (_err, other) = Channel::open(Stream::Stderr, &dir, None, false).unwrap();
        let mut pump = Pump { channels: [channel, other], dir, buffer: vec![0; CHUNK].into() };

        drop(out);
        pump.on_readable();

        assert_eq!(pump.fds().count(), 1);
    }

    /// S35, attack 45.
    #[test]
    fn memory_does_not_grow_with_output() {
        alone(|| {
            let stage = Stage::new();
            let peak = || {
                let status = fs::read_to_string("/proc/self/status").unwrap();
                let line =
                    status.lines().find(|line| line.starts_with("VmHWM")).unwrap().to_owned();
                line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap()
            };
            stage.run("echo warm; echo up >&2", rotated(1 << 20, 1));
            let before = peak();

            stage.run("head -c 50M /dev/zero; head -c 10M /dev/zero >&2", rotated(1 << 20, 1));

            // The kernel counts pages per CPU and adds them up now and then.
            assert!(peak() - before < 2048, "{} kB", peak() - before);
            assert_eq!(stage.logs().len(), 2);
        });
    }

    /// Attack 46: a sink that is full, then not.
    #[test]
    fn what_a_full_sink_did_not_take_is_counted_and_told() {
        alone(|| {
            fault::ignore(&[libc::SIGXFSZ]);
            let stage = Stage::new();
            let (mut sink, mut dir) = stage.sink(None);
            let (_, hard) = getrlimit(Resource::RLIMIT_FSIZE).unwrap();

            sink.put(&mut dir, b"one\n");
            setrlimit(Resource::RLIMIT_FSIZE, 6, hard).unwrap();
            sink.put(&mut dir, b"two\n");
            sink.put(&mut dir, b"three\n");
            setrlimit(Resource::RLIMIT_FSIZE, hard, hard).unwrap();
            sink.put(&mut dir, b"four\n");

            let told = "[dewar: 8 bytes of stdout are missing here: EFBIG]";
            assert_eq!(stage.log("stdout"), format!("one\ntw\n{told}\nfour\n"));
            assert_eq!(sink.gap.bytes, 0);
        });
    }

    /// Attack 46: the directory goes away, and comes back.
    #[test]
    fn logs_that_the_task_removes_are_made_again() {
        let stage = Stage::new();
        let (mut sink, mut dir) = stage.sink(Some(rotate(4, 2)));
        sink.put(&mut dir, b"one\n");

        fs::remove_dir_all(stage.temp.path().join("sandbox/.logs")).unwrap();
        sink.put(&mut dir, b"two\n");
        sink.put(&mut dir, b"six\n");

        assert_eq!(stage.logs(), ["six\n", ""]);
    }

    #[test]
    fn a_log_that_the_task_removes_is_made_again_without_rotation_too() {
        let stage = Stage::new();
        let (mut sink, mut dir) = stage.sink(None);

        fs::remove_file(stage.path("stdout")).unwrap();
        sink.put(&mut dir, b"into a file without a name\n");
        sink.put(&mut dir, b"kept\n");

        assert_eq!(stage.logs(), ["kept\n"]);
    }

    /// A directory in the way of rotation stops the rotation, not the output.
    #[test]
    fn a_rotation_that_is_obstructed_loses_nothing() {
        let stage = Stage::new();
        let (mut sink, mut dir) = stage.sink(Some(rotate(4, 1)));
        fs::create_dir(stage.path("stdout.1")).unwrap();

        sink.put(&mut dir, b"one\ntwo\n");
        let obstructed = stage.log("stdout");
        fs::remove_dir(stage.path("stdout.1")).unwrap();
        sink.put(&mut dir, b"six\n");

        assert_eq!(obstructed, "one\ntwo\n");
        assert_eq!(stage.logs(), ["one\ntwo\nsix\n", ""]);
    }

    /// Attack 13: a link in place of the live log is moved out of the way, not followed.
    #[test]
    fn a_live_log_that_became_a_link_is_not_followed() {
        let stage = Stage::new();
        let victim = stage.temp.path().join("victim");
        fs::write(&victim, "untouched").unwrap();
        let (mut sink, mut dir) = stage.sink(Some(rotate(4, 2)));
        fs::remove_file(stage.path("stdout")).unwrap();
        std::os::unix::fs::symlink(&victim, stage.path("stdout")).unwrap();

        for text in ["one\n", "two\n", "six\n"] {
            sink.put(&mut dir, text.as_bytes());
        }

        assert_eq!(fs::read_to_string(victim).unwrap(), "untouched");
        assert_eq!(stage.log("stdout.1"), "six\n");
    }

    /// Attack 46, 48: nobody reads the console. It is waited for once, then passed over until it
    /// takes again.
    #[test]
    fn a_console_that_stalls_costs_its_output_and_little_time() {
        for pair in [pipe_pair as fn() -> (OwnedFd, File), socket_pair] {
            let (fd, mut reader) = pair();
            let flags = || fcntl(&fd, FcntlArg::F_GETFL).unwrap();
            let before = flags();
            let mut console = Console::new(fd.try_clone().unwrap(), Stream::Stdout).unwrap();
            let full = vec![b'x'; 4 * 1024 * 1024];

            console.put(&full);
            let lost = console.gap.bytes;
            let start = Instant::now();
            console.put(b"while it stalls\n");
            let passed_over = start.elapsed();
            let mut taken = vec![0; full.len() - lost as usize];
            reader.read_exact(&mut taken).unwrap();
            console.put(b"again\n");

            assert!(lost > 0 && passed_over < Duration::from_millis(u64::from(PATIENCE_MS)));
            let expected = format!(
                "\n[dewar: {} bytes of stdout are missing here: EAGAIN]\nagain\n",
                lost + 16
            );
            let mut told = vec![0; expected.len()];
            reader.read_exact(&mut told).unwrap();
            assert_eq!(String::from_utf8_lossy(&told), expected);
            assert_eq!(flags(), before, "the open file that we share is as it was");
        }
    }

    /// A console that cannot be opened anew is shared with those who want it to block.
    #[test]
    fn a_shared_console_is_never_waited_for_either() {
        let (fd, mut reader) = pipe_pair();
        let mut console = Console { way: Way::Shared, ..Console::new(fd, Stream::Stderr).unwrap() };
        fcntl(&console.fd, FcntlArg::F_SETFL(OFlag::empty())).unwrap();

        console.put(&vec![b'x'; 4 * CHUNK]);

        let mut taken = vec![0; 4 * CHUNK - console.gap.bytes as usize];
        reader.read_exact(&mut taken).unwrap();
        // A pipe polls writable while a page of it is free.
        assert!(console.stalled && taken.len() >= CHUNK - 4096 + CAUTIOUS);
    }

    #[test]
    fn a_console_that_is_gone_costs_only_its_output() {
        alone(|| {
            fault::ignore(&[libc::SIGPIPE]);
            for pair in [pipe_pair as fn() -> (OwnedFd, File), socket_pair] {
                let (fd, reader) = pair();
                let mut console = Console::new(fd, Stream::Stdout).unwrap();
                drop(reader);

                console.put(b"nobody\n");

                assert_eq!((console.gap.bytes, console.gap.cause), (7, Some(Errno::EPIPE)));
            }
        });
    }

    fn pipe_pair() -> (OwnedFd, File) {
        let (reader, writer) = pipe2(OFlag::O_CLOEXEC).unwrap();
        (writer, File::from(reader))
    }

    fn socket_pair() -> (OwnedFd, File) {
        let (one, other) = UnixStream::pair().unwrap();
        (one.into(), File::from(OwnedFd::from(other)))
    }
}
