//! `RunnerService.Exec`: for each command one task of the runtime moves bytes between its streams and its caller.
//!
//! A command belongs to its call. Whatever ends the call (the caller leaves, the connection breaks, the daemon stops) kills the
//! command, all of it. A caller that does not read lets its own command wait, and nobody else.

use std::io;
use std::os::fd::OwnedFd;
use std::time::Duration;

use nix::errno::Errno;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, sleep_until, timeout};
use tokio_stream::wrappers::ReceiverStream;
use tokio_stream::{Stream, StreamExt};
use tonic::{Code, Status, Streaming};

use super::control::{block, is_over};
use super::counts::Whose;
use super::observe::Answers;
use super::peer::Peer;
use super::registry::is_terminal;
use super::{Node, status};
use crate::causes::chain;
use crate::checkpoint::Root;
use crate::exec::{Exec, ExecError, Killer, Place, Request, Size, Streams, Target};
use crate::observe::Observed;
use crate::proto::exec_ended::End;
use crate::proto::exec_request::Message as Asked;
use crate::proto::exec_response::Message as Told;
use crate::proto::{ExecEnded, ExecRequest, ExecResponse, ExecStart, ExecStarted, TerminalSize};
use crate::sys::pidfd::Exit;
use crate::sys::ready;
use crate::task::{TaskId, signal};
use crate::view::signal_name;

/// Commands of one user at one time.
const MAX_COMMANDS: usize = 64;
/// Messages that wait for a caller at most, beside what the connection holds.
const QUEUE: usize = 4;
/// Most bytes of output in a message.
const CHUNK: usize = 32 << 10;
/// Most bytes of input in a message.
const MAX_INPUT: usize = 64 << 10;
/// Bytes of input that a command has not taken yet, from which on its caller is not heard: a signal overtakes so much.
const MAX_PENDING: usize = 4 * MAX_INPUT;
/// How long a command may take to begin: a pause or a signal at the wrong moment can hold it up.
const START: Duration = Duration::from_secs(10);
/// Pause between two kills of one that does not begin.
const KILL_AGAIN: Duration = Duration::from_millis(50);
/// How long more output is waited for once all of a command is dead: somebody else may have its end of a pipe.
const DRAIN: Duration = Duration::from_secs(1);
/// What ends the input at a terminal: termios(3), VEOF.
const END_OF_INPUT: u8 = 4;

/// What a command says that was started in this process.
pub type ExecAnswers = ReceiverStream<Result<ExecResponse, Status>>;

/// Runs a command in a task, as the first message says.
pub(super) async fn exec(
    node: &Node,
    peer: &Peer,
    mut asked: Streaming<ExecRequest>,
) -> Result<Answers<ExecResponse>, Status> {
    let start = first(&mut asked).await?;
    let (id, state) = node.known(peer, &start.task_id)?;
    if is_terminal(state) {
        return Err(is_over(&id, state));
    }
    let request = request(start)?;
    request.check().map_err(|error| of_exec(&id, &error))?;
    let most = if peer.is_admin { usize::MAX } else { MAX_COMMANDS };
    let counted = node.commands.admit(Whose::of(peer), most).ok_or_else(|| {
        let text = format!("more than {MAX_COMMANDS} commands at one time");
        status::info(Code::ResourceExhausted, "TOO_MANY_COMMANDS", text, &[])
    })?;
    let (root, task) = (node.root.clone(), id.clone());
    let place = block(move || place(&root, &task)).await?;
    let exec = begin(&id, place, request).await?;
    tracing::info!(task = %id, uid = peer.user(), pid = exec.pid(), "exec");
    let (to_caller, answers) = mpsc::channel(QUEUE);
    let session = Session::new(exec).map_err(|error| status::unavailable(&error))?;
    let mut stopping = node.stopping.clone();
    tokio::spawn(async move {
        let _counted = counted;
        tokio::select! {
            () = session.run(asked, &to_caller) => {}
            _ = stopping.wait_for(|&stopping| stopping) => {
                let _ = to_caller.try_send(Err(status::stopping()));
            }
        }
    });
    Ok(Box::pin(ReceiverStream::new(answers)))
}

/// The same in a root that no daemon has to serve, with the rights of this process. The command is killed when the answers are dropped.
///
/// # Errors
///
/// A status that says why; nothing was executed then.
pub async fn exec_here<S>(root: &Root, mut asked: S) -> Result<ExecAnswers, Status>
where
    S: Stream<Item = Result<ExecRequest, Status>> + Send + Unpin + 'static,
{
    let start = first(&mut asked).await?;
    let id = status::task_id(&start.task_id)?;
    let request = request(start)?;
    request.check().map_err(|error| of_exec(&id, &error))?;
    let (root, task) = (root.clone(), id.clone());
    let place = block(move || {
        let state = super::watch::view(&root, &task)?.state();
        if is_terminal(state) { Err(is_over(&task, state)) } else { place(&root, &task) }
    });
    let exec = begin(&id, place.await?, request).await?;
    let (to_caller, told) = mpsc::channel(QUEUE);
    let session = Session::new(exec).map_err(|error| status::unavailable(&error))?;
    tokio::spawn(async move { session.run(asked, &to_caller).await });
    Ok(ReceiverStream::new(told))
}

/// The first message, which says what is to be run.
async fn first(
    asked: &mut (impl Stream<Item = Result<ExecRequest, Status>> + Unpin),
) -> Result<ExecStart, Status> {
    match asked.next().await.transpose()?.and_then(|request| request.message) {
        Some(Asked::Start(start)) => Ok(start),
        _ => Err(status::bad_field("message", "something else", "start, first of all")),
    }
}

fn request(start: ExecStart) -> Result<Request, Status> {
    let ExecStart { task_id: _, argv, env, cwd, tty } = start;
    let terminal = tty.map(|tty| size("start.tty", tty)).transpose()?;
    Ok(Request { argv, env, cwd, terminal, run: None })
}

fn size(field: &str, TerminalSize { rows, columns }: TerminalSize) -> Result<Size, Status> {
    let side = |name: &str, found: u32| match u16::try_from(found) {
        Ok(0) | Err(_) => Err(status::bad_field(format!("{field}.{name}"), found, "1 to 65535")),
        Ok(side) => Ok(side),
    };
    Ok(Size { rows: side("rows", rows)?, columns: side("columns", columns)? })
}

fn place(root: &Root, id: &TaskId) -> Result<Place, Status> {
    let mut observed = Observed::open(root, id).map_err(|error| status::of_observe(&error))?;
    observed.advance(|_, _| {}).map_err(|error| status::of_observe(&error))?;
    let place = match observed.replay() {
        Some(replay) => Target::of(id, replay).and_then(Target::place),
        None => Err(ExecError::NotRunning(id.clone())),
    };
    place.map_err(|error| of_exec(id, &error))
}

fn of_exec(id: &TaskId, error: &ExecError) -> Status {
    let kind = match error {
        ExecError::Over(_) => "TASK_OVER",
        ExecError::NotRunning(_) => "TASK_NOT_RUNNING",
        ExecError::Paused(_) => "TASK_PAUSED",
        ExecError::NoCgroup(_) => "NO_CGROUP",
        ExecError::Start { .. } => "EXEC_FAILED",
        ExecError::Invalid { field, why } => {
            return status::bad_fields([(format!("start.{field}"), why.clone())]);
        }
        ExecError::Killed | ExecError::Cgroup(_) => return status::unavailable(error),
    };
    status::precondition(kind, id.as_str(), chain(error))
}

type Started = oneshot::Receiver<Result<Exec, ExecError>>;

/// A command that is being started, in a thread of its own. Dropped before it has begun, it is killed.
struct Starting(Option<(Killer, Started)>);

impl Drop for Starting {
    fn drop(&mut self) {
        let Some((killer, mut started)) = self.0.take() else { return };
        let _ = killer.kill();
        let Ok(runtime) = tokio::runtime::Handle::try_current() else { return };
        runtime.spawn(async move {
            // One that was born just after a kill is killed by the next.
            while timeout(KILL_AGAIN, &mut started).await.is_err() {
                let _ = killer.kill();
            }
        });
    }
}

async fn begin(id: &TaskId, place: Place, request: Request) -> Result<Exec, Status> {
    let (killer, (started, receiver)) = (place.killer(), oneshot::channel());
    std::thread::Builder::new()
        .name("exec-start".to_owned())
        // A command that nobody waits for any more is dropped, and so killed.
        .spawn(move || drop(started.send(place.start(&request))))
        .map_err(|error| status::unavailable(&error))?;
    let mut starting = Starting(Some((killer, receiver)));
    let Some((_, receiver)) = &mut starting.0 else { return Err(status::internal("no start")) };
    let Ok(begun) = timeout(START, receiver).await else {
        let text =
            format!("the command has not begun for {} s: something holds it up", START.as_secs());
        return Err(status::info(Code::DeadlineExceeded, "EXEC_HELD_UP", text, &[]));
    };
    starting.0 = None;
    match begun {
        Ok(begun) => begun.map_err(|error| of_exec(id, &error)),
        Err(_) => Err(status::internal("the thread that starts a command is gone")),
    }
}

type Descriptor = AsyncFd<OwnedFd>;

type ToCaller = mpsc::Sender<Result<ExecResponse, Status>>;

/// A command that runs, and what is under way to it.
struct Session {
    exec: Exec,
    pidfd: Descriptor,
    stdin: Option<Descriptor>,
    stdout: Option<Descriptor>,
    stderr: Option<Descriptor>,
    is_terminal: bool,
    /// Input that it has not taken yet.
    pending: Vec<u8>,
    /// Whether its input ends after that.
    ends_input: bool,
    /// How it ended, and until when more output is waited for.
    ended: Option<(Exit, Instant)>,
}

impl Session {
    fn new(mut exec: Exec) -> io::Result<Self> {
        let pidfd = exec.pidfd().ok_or(Errno::ESRCH)?.try_clone_to_owned()?;
        let write = |fd| ready::watch(fd, Interest::WRITABLE);
        let read = |fd| ready::watch(fd, Interest::READABLE);
        let pidfd = read(pidfd)?;
        let (stdin, stdout, stderr, is_terminal) = match exec.take_streams().ok_or(Errno::EBADF)? {
            Streams::Pipes { stdin, stdout, stderr } => {
                (write(stdin)?, read(stdout)?, Some(read(stderr)?), false)
            }
            Streams::Terminal(master) => (write(master.try_clone()?)?, read(master)?, None, true),
        };
        let (stdin, stdout) = (Some(stdin), Some(stdout));
        let pending = Vec::new();
        let ends_input = false;
        Ok(Self {
            exec,
            pidfd,
            stdin,
            stdout,
            stderr,
            is_terminal,
            pending,
            ends_input,
            ended: None,
        })
    }

    async fn run(
        mut self,
        mut asked: impl Stream<Item = Result<ExecRequest, Status>> + Unpin,
        to_caller: &ToCaller,
    ) {
        let begun = Told::Started(ExecStarted { pid: self.exec.pid() });
        let last = match tell(to_caller, begun).await {
            Ok(()) => self.pump(&mut asked, to_caller).await,
            Err(gone) => Err(gone),
        };
        match last {
            Ok(ended) => drop(tell(to_caller, Told::Ended(ended)).await),
            Err(Over::Status(status)) => drop(to_caller.send(Err(status)).await),
            Err(Over::Gone) => {}
        }
    }

    /// Moves bytes until the command has ended and all its output was sent.
    async fn pump(
        &mut self,
        asked: &mut (impl Stream<Item = Result<ExecRequest, Status>> + Unpin),
        to_caller: &ToCaller,
    ) -> Result<ExecEnded, Over> {
        let mut is_asking = true;
        loop {
            if self.ends_input && self.pending.is_empty() {
                self.end_input();
            }
            let takes = is_asking && self.pending.len() < MAX_PENDING;
            let until = self.ended.map_or_else(Instant::now, |(_, until)| until);
            tokio::select! {
                () = to_caller.closed() => return Err(Over::Gone),
                message = asked.next(), if takes => match message.transpose().map_err(|_| Over::Gone)? {
                    Some(ExecRequest { message: Some(message) }) => self.take(message)?,
                    Some(ExecRequest { message: None }) => {
                        let why = status::bad_field("message", "nothing", "a message");
                        return Err(Over::Status(why));
                    }
                    None => {
                        is_asking = false;
                        self.ends_input = true;
                    }
                },
                written = write(self.stdin.as_ref(), &self.pending), if !self.pending.is_empty() => {
                    match written {
                        Ok(count) => drop(self.pending.drain(..count)),
                        // It reads no more.
                        Err(_) => {
                            self.stdin = None;
                            self.pending.clear();
                        }
                    }
                }
                bytes = read(self.stdout.as_ref()), if self.stdout.is_some() => match bytes {
                    Some(bytes) => {
                        tell(to_caller, Told::Stdout(bytes)).await?;
                        self.wait_for_more();
                    }
                    None => self.stdout = None,
                },
                bytes = read(self.stderr.as_ref()), if self.stderr.is_some() => match bytes {
                    Some(bytes) => {
                        tell(to_caller, Told::Stderr(bytes)).await?;
                        self.wait_for_more();
                    }
                    None => self.stderr = None,
                },
                ready = self.pidfd.readable(), if self.ended.is_none() => {
                    drop(ready);
                    let exit = self.exec.try_wait().map_err(|error| {
                        Over::Status(status::internal(format!("wait for a command: {error}")))
                    })?;
                    self.ended = exit.map(|exit| (exit, Instant::now() + DRAIN));
                }
                () = sleep_until(until), if self.ended.is_some() => {
                    (self.stdout, self.stderr) = (None, None);
                }
            }
            if let (Some((exit, _)), None, None) = (self.ended, &self.stdout, &self.stderr) {
                return Ok(told(exit));
            }
        }
    }

    fn take(&mut self, message: Asked) -> Result<(), Over> {
        match message {
            Asked::Start(_) => {
                let why = status::bad_field("message", "a second start", "one");
                return Err(Over::Status(why));
            }
            Asked::Stdin(bytes) if bytes.len() > MAX_INPUT => {
                let found = format!("{} bytes", bytes.len());
                let why = status::bad_field("stdin", found, format!("at most {MAX_INPUT}"));
                return Err(Over::Status(why));
            }
            Asked::Stdin(bytes) if self.stdin.is_some() && !self.ends_input => {
                self.pending.extend(bytes);
            }
            // It reads no more, or was told that no more will come.
            Asked::Stdin(_) => {}
            Asked::StdinEnd(_) => self.ends_input = true,
            Asked::Resize(to) => {
                let _ = self.exec.resize(size("resize", to).map_err(Over::Status)?);
            }
            Asked::Signal(name) => {
                let signal = signal::parse(&name).map_err(|error| {
                    Over::Status(status::bad_fields([("signal".to_owned(), error.to_string())]))
                })?;
                // A program that became another user's may not be ours to signal.
                let _ = self.exec.signal(signal);
            }
        }
        Ok(())
    }

    /// A pipe ends when it is closed; a terminal goes on, and what reads from it is told.
    fn end_input(&mut self) {
        self.ends_input = false;
        match self.is_terminal {
            true if self.stdin.is_some() => self.pending = vec![END_OF_INPUT],
            true => {}
            false => self.stdin = None,
        }
    }

    fn wait_for_more(&mut self) {
        if let Some((_, until)) = &mut self.ended {
            *until = Instant::now() + DRAIN;
        }
    }
}

/// Why no end of a command is told.
enum Over {
    /// The caller has left.
    Gone,
    /// It is told this.
    Status(Status),
}

async fn tell(to_caller: &ToCaller, message: Told) -> Result<(), Over> {
    let message = ExecResponse { message: Some(message) };
    to_caller.send(Ok(message)).await.map_err(|_| Over::Gone)
}

fn told(exit: Exit) -> ExecEnded {
    let end = match exit {
        Exit::Code(code) => End::ExitCode(code.into()),
        Exit::Signal(signal) => End::Signal(signal_name(u8::try_from(signal).unwrap_or(0))),
    };
    ExecEnded { end: Some(end) }
}

/// What can be read; `None` at the end, which a terminal tells as EIO.
async fn read(fd: Option<&Descriptor>) -> Option<Vec<u8>> {
    loop {
        let mut ready = fd?.readable().await.ok()?;
        let mut bytes = vec![0; CHUNK];
        match ready.try_io(|fd| Ok(nix::unistd::read(fd, &mut bytes)?)) {
            Ok(Ok(0)) => return None,
            Ok(Ok(count)) => {
                bytes.truncate(count);
                return Some(bytes);
            }
            Ok(Err(error)) if error.kind() == io::ErrorKind::Interrupted => {}
            Ok(Err(_)) => return None,
            Err(_would_block) => {}
        }
    }
}

/// Writes what is taken at once; tells how many bytes that is.
async fn write(fd: Option<&Descriptor>, bytes: &[u8]) -> io::Result<usize> {
    let fd = fd.ok_or(Errno::EPIPE)?;
    fd.async_io(Interest::WRITABLE, |fd| Ok(nix::unistd::write(fd, bytes)?)).await
}
