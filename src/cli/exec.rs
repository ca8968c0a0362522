//! `dewar exec`: a command in a live task, with our own standard streams.
//!
//! ```text
//! standard input ─ thread ─┐                     ┌─ standard output
//! signals ─────────────────┼─ the call of Exec ──┼─ standard error
//! size of the terminal ────┘                     └─ exit status
//! ```
//!
//! The command lives as long as the call, which ends with us however we end. Where there is no daemon, what is called is the same
//! code in this process.

use std::future::poll_fn;
use std::io::{self, IsTerminal, Read};
use std::os::fd::AsFd;
use std::pin::Pin;
use std::task::{Context, Poll};

use nix::sys::termios::{SetArg, Termios, cfmakeraw, tcgetattr, tcsetattr};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tokio_stream::{Stream, StreamExt};
use tonic::Status;

use super::args::Exec;
use super::failure::Failure;
use super::file::unique;
use super::node::Node;
use super::nodes::Nodes;
use super::out::Out;
use super::{place, term};
use crate::causes::tell;
use crate::daemon::exec_here;
use crate::proto::exec_ended::End;
use crate::proto::exec_request::Message as Ask;
use crate::proto::exec_response::Message as Told;
use crate::proto::{ExecRequest, ExecResponse, ExecStart, ExecStdinEnd, TerminalSize};
use crate::task::signal as signals;

/// Messages that wait for the daemon at most, beside what the connection holds.
const QUEUE: usize = 8;
/// Most bytes of input in a message.
const CHUNK: usize = 32 << 10;
/// Size of a terminal that nobody sees.
const UNSEEN: TerminalSize = TerminalSize { rows: 24, columns: 80 };
/// Signals that are passed on.
const PASSED_ON: [i32; 6] =
    [libc::SIGINT, libc::SIGTERM, libc::SIGHUP, libc::SIGQUIT, libc::SIGUSR1, libc::SIGUSR2];
/// Of SIGINT and SIGTERM, how many end us: one that does not read its input may never hear of them.
const ENOUGH: u32 = 3;
/// Exit status of a command that a signal has killed, less its number, as shells have it.
const SIGNALLED: u8 = 128;

/// Runs a command in a task, and exits as it does.
///
/// # Errors
///
/// [`Failure`]: it was not started, or its end is not known.
pub(super) fn run(args: &Exec) -> Result<u8, Failure> {
    let start = start(args)?;
    let id = place::task_id(&args.task)?;
    let (node, _) = Nodes::find(&args.node)?.with(&id, Failure::NothingMatched)?;
    match node {
        Node::Daemon(client) => client.block_on(session(args, start, async |requests| {
            let call = client.runner().exec(ReceiverStream::new(requests)).await?;
            Ok(Box::pin(call.into_inner()) as Answers)
        })),
        Node::Root(root) => {
            let runtime = tokio::runtime::Builder::new_multi_thread()
                .worker_threads(1)
                .enable_all()
                .build()
                .map_err(|error| Failure::Unavailable(format!("start a thread: {error}")))?;
            runtime.block_on(session(args, start, async |requests| {
                let requests = ReceiverStream::new(requests).map(Ok);
                Ok(Box::pin(exec_here(&root, requests).await?) as Answers)
            }))
        }
    }
}

/// What the command says.
type Answers = Pin<Box<dyn Stream<Item = Result<ExecResponse, Status>> + Send>>;

fn start(args: &Exec) -> Result<ExecStart, Failure> {
    Ok(ExecStart {
        task_id: args.task.clone(),
        argv: args.command.clone(),
        env: unique("--setenv", args.setenv.iter().cloned())?,
        cwd: args.cwd.clone(),
        tty: args.tty.then(|| size().unwrap_or(UNSEEN)),
    })
}

/// Size of the terminal that we are on.
fn size() -> Option<TerminalSize> {
    let (rows, columns) = term::size(io::stdin()).or_else(|| term::size(io::stdout()))?;
    let (rows, columns) = (u32::try_from(rows).ok()?, u32::try_from(columns).ok()?);
    (rows > 0 && columns > 0).then_some(TerminalSize { rows, columns })
}

type ToDaemon = mpsc::Sender<ExecRequest>;

fn asked(message: Ask) -> ExecRequest {
    ExecRequest { message: Some(message) }
}

async fn session(
    args: &Exec,
    start: ExecStart,
    call: impl AsyncFnOnce(mpsc::Receiver<ExecRequest>) -> Result<Answers, Status>,
) -> Result<u8, Failure> {
    let mut caught = Caught::new()?;
    let (to_daemon, requests) = mpsc::channel(QUEUE);
    // There is room: it is the first.
    let _ = to_daemon.try_send(asked(Ask::Start(start)));
    let mut told = tokio::select! {
        told = call(requests) => told?,
        number = caught.signal() => return Ok(signalled(number)),
    };
    let (mut out, mut err) = (Out::default(), Out::new(io::stderr()));
    let mut raw = None;
    loop {
        tokio::select! {
            message = told.next() => match message.transpose()?.and_then(|told| told.message) {
                Some(Told::Started(_)) if args.interactive => {
                    raw = if args.tty { Raw::enter() } else { None };
                    feed(to_daemon.clone());
                }
                Some(Told::Started(_)) if args.tty => {}
                Some(Told::Started(_)) => pass(&to_daemon, Ask::StdinEnd(ExecStdinEnd {})),
                Some(Told::Stdout(bytes)) => out.write(bytes)?,
                Some(Told::Stderr(bytes)) => err.write(bytes)?,
                Some(Told::Ended(ended)) => {
                    drop(raw);
                    return status(ended.end);
                }
                None => return Err(unknown_end()),
            },
            event = caught.next() => match event {
                Event::Resized => if let Some(size) = size().filter(|_| args.tty) {
                    pass(&to_daemon, Ask::Resize(size));
                },
                Event::Signal(number) => pass(&to_daemon, Ask::Signal(number.to_string())),
                Event::Enough(number) => {
                    drop(raw);
                    tell!("dewar: the command is killed");
                    return Ok(signalled(number));
                }
            },
        }
        if out.is_gone() {
            drop(raw);
            return Ok(signalled(libc::SIGPIPE));
        }
    }
}

/// Sends a message, without waiting for those that the command holds up.
fn pass(to_daemon: &ToDaemon, message: Ask) {
    let to_daemon = to_daemon.clone();
    tokio::spawn(async move {
        // Where it cannot be sent any more, the command has ended.
        let _ = to_daemon.send(asked(message)).await;
    });
}

/// Sends standard input, for as long as there is some. The thread may be held up in read(2) for ever: nobody waits for it.
fn feed(to_daemon: ToDaemon) {
    std::thread::spawn(move || {
        let mut stdin = io::stdin().lock();
        let mut bytes = vec![0; CHUNK];
        loop {
            let message = match stdin.read(&mut bytes) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                // What cannot be read has ended.
                Ok(0) | Err(_) => Ask::StdinEnd(ExecStdinEnd {}),
                Ok(count) => Ask::Stdin(bytes[..count].to_vec()),
            };
            let is_last = matches!(message, Ask::StdinEnd(_));
            if to_daemon.blocking_send(asked(message)).is_err() || is_last {
                return;
            }
        }
    });
}

fn status(end: Option<End>) -> Result<u8, Failure> {
    match end {
        // wait(2): eight bits.
        Some(End::ExitCode(code)) => Ok(code.to_le_bytes()[0]),
        Some(End::Signal(name)) => Ok(signals::parse(&name).map_or(u8::MAX, signalled)),
        None => Err(unknown_end()),
    }
}

fn signalled(number: i32) -> u8 {
    u8::try_from(number).map_or(u8::MAX, |number| SIGNALLED.saturating_add(number))
}

fn unknown_end() -> Failure {
    Failure::Unavailable("the daemon does not tell how the command ended".to_owned())
}

/// Signals that we get.
struct Caught {
    passed_on: Vec<(i32, Signal)>,
    resized: Signal,
    /// How many SIGINT and SIGTERM have come.
    count: u32,
}

enum Event {
    /// The terminal has another size.
    Resized,
    /// To be passed on.
    Signal(i32),
    /// One that ends us.
    Enough(i32),
}

impl Caught {
    fn new() -> Result<Self, Failure> {
        let catch = |number| {
            let caught = signal(SignalKind::from_raw(number));
            caught.map_err(|error| Failure::Unavailable(format!("catch signals: {error}")))
        };
        let passed_on = PASSED_ON.into_iter().map(|number| Ok((number, catch(number)?)));
        let passed_on = passed_on.collect::<Result<_, Failure>>()?;
        Ok(Self { passed_on, resized: catch(libc::SIGWINCH)?, count: 0 })
    }

    async fn next(&mut self) -> Event {
        let number = poll_fn(|context| match self.resized.poll_recv(context) {
            Poll::Ready(_) => Poll::Ready(None),
            Poll::Pending => self.poll_signal(context).map(Some),
        });
        let Some(number) = number.await else { return Event::Resized };
        if matches!(number, libc::SIGINT | libc::SIGTERM) {
            self.count += 1;
        }
        if self.count >= ENOUGH { Event::Enough(number) } else { Event::Signal(number) }
    }

    /// The next one that would be passed on.
    async fn signal(&mut self) -> i32 {
        poll_fn(|context| self.poll_signal(context)).await
    }

    fn poll_signal(&mut self, context: &mut Context<'_>) -> Poll<i32> {
        for (number, caught) in &mut self.passed_on {
            if caught.poll_recv(context).is_ready() {
                return Poll::Ready(*number);
            }
        }
        Poll::Pending
    }
}

/// Standard input, if it is a terminal, without line editing, echo and signals of its own: all of that is up to the command's
/// terminal. Until it is dropped.
struct Raw(Termios);

impl Raw {
    fn enter() -> Option<Self> {
        let stdin = io::stdin();
        if !stdin.is_terminal() {
            return None;
        }
        let before = tcgetattr(stdin.as_fd()).ok()?;
        let mut raw = before.clone();
        cfmakeraw(&mut raw);
        tcsetattr(stdin.as_fd(), SetArg::TCSADRAIN, &raw).ok()?;
        Some(Self(before))
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        let _ = tcsetattr(io::stdin().as_fd(), SetArg::TCSADRAIN, &self.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_a_command_is_ours() {
        assert_eq!(status(Some(End::ExitCode(7))).unwrap(), 7);
        assert_eq!(status(Some(End::Signal("SIGKILL".to_owned()))).unwrap(), 137);
        assert_eq!(status(Some(End::Signal("SIGRTMIN+1".to_owned()))).unwrap(), 163);
        assert_eq!(status(None).unwrap_err().status(), 5);
    }
}
