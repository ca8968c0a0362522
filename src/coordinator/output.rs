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

    /// Bytes that did not get into the log of `stream`.
    pub fn lost(&self, stream: Stream) -> u64 {
        self.channels
            .iter()
            .filter(|channel| channel.file.stream == stream)
            .map(|channel| channel.file.gap.total)
            .sum()
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
        let console = if console { Some(Console::new(stream)?) } else { None };
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
    /// All that were ever lost.
    total: u64,
}

impl Gap {
    fn add(&mut self, bytes: usize, cause: Errno) {
        self.bytes += bytes as u64;
        self.total += bytes as u64;
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
    fn new(stream: Stream) -> Result<Self, OutputError> {
        let fd = own(stream)?;
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
