//! `ReadLogs`.
//!
//! A reader has room in its client's queue before it reads, so that one that does not read costs a queue and nothing else. It sleeps
//! until the kernel says that the log, or the stream of the task, has changed; all readers share one inotify instance.

use std::os::fd::AsFd;
use std::sync::Arc;

use tokio::io::Interest;
use tokio::sync::{Notify, mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status};

use super::control::block;
use super::observe::Answers;
use super::peer::Peer;
use super::watch::{Stop, finish};
use super::{Node, status};
use crate::causes::chain;
use crate::logs::{CHUNK, Follow, Log, LogError, Next, Position, Source, Start, Watches};
use crate::observe::Observed;
use crate::proto::read_logs_request::Start as From;
use crate::proto::{LogStream, ReadLogsRequest, ReadLogsResponse};
use crate::sandbox::PathError;
use crate::sandbox::logs::Stream;
use crate::sys::ready;
use crate::task::TaskId;
use crate::view::Replay;

/// Answers that wait for a client at most, beside what the connection holds.
const QUEUE: usize = 1;

/// Wakes the readers, for as long as it is polled.
pub(super) async fn dispatch(watches: Watches) {
    let watch = |fd| ready::watch(fd, Interest::READABLE);
    let changes = match watches.as_fd().try_clone_to_owned().and_then(watch) {
        Ok(changes) => changes,
        Err(error) => {
            tracing::error!(%error, "epoll_ctl: logs are not followed");
            return;
        }
    };
    loop {
        let dispatched = match changes.readable().await {
            Ok(mut guard) => {
                let dispatched = watches.dispatch();
                if let Ok(true) = dispatched {
                    guard.clear_ready();
                }
                dispatched
            }
            Err(error) => {
                tracing::error!(%error, "epoll_wait: logs are not followed any more");
                return;
            }
        };
        if let Err(error) = dispatched {
            tracing::error!(error = chain(&error), "logs are not followed any more");
            return;
        }
        tokio::task::yield_now().await;
    }
}

/// What is asked for, as far as it makes sense without a look at the task.
struct Asked {
    process: String,
    run: Option<u32>,
    stream: Stream,
    start: Start,
    follow: bool,
}

impl Asked {
    fn new(request: ReadLogsRequest) -> Result<Self, Status> {
        let ReadLogsRequest { task_id: _, process, run, stream, start, follow } = request;
        let stream = match LogStream::try_from(stream) {
            Ok(LogStream::Unspecified | LogStream::Stdout) => Stream::Stdout,
            Ok(LogStream::Stderr) => Stream::Stderr,
            Err(_) => return Err(status::bad_field("stream", stream, "standard output or error")),
        };
        let start = match start {
            None => Start::Oldest,
            Some(From::Offset(offset)) => Start::Offset(offset),
            Some(From::TailLines(count)) => Start::LastLines(count),
            Some(From::TailBytes(count)) => Start::LastBytes(count),
            Some(From::Cursor(cursor)) => Start::At(position(&cursor, run)?),
        };
        Ok(Self { process, run, stream, start, follow })
    }

    /// The run that is asked for by number.
    fn first_run(&self) -> Option<u32> {
        match self.start {
            Start::At(position) => Some(position.run()),
            _ => self.run,
        }
    }
}

fn position(cursor: &str, run: Option<u32>) -> Result<Position, Status> {
    let position: Position = cursor.parse().map_err(|_| {
        status::bad_field("cursor", format!("{cursor:?}"), "one of an answer before")
    })?;
    match run {
        Some(run) if run != position.run() => {
            let expected = format!("{}, the run of the cursor, or none", position.run());
            Err(status::bad_field("run", run, expected))
        }
        _ => Ok(position),
    }
}

/// What reads.
enum Reader {
    /// What there is.
    Once(Log),
    /// That, and what comes.
    Follow(Box<Follow<Observed>>),
}

impl Reader {
    fn next(&mut self, buffer: &mut [u8]) -> Result<Next, LogError> {
        match self {
            Self::Once(log) => Ok(log.read(buffer)?.map_or(Next::Over, Next::Chunk)),
            Self::Follow(follow) => follow.next(buffer),
        }
    }

    /// Reads a chunk into memory of its size.
    fn read(mut self) -> Result<(Self, Next, Vec<u8>), Status> {
        let mut data = vec![0; CHUNK];
        let next = self.next(&mut data).map_err(|error| of_log(&error))?;
        data.truncate(if let Next::Chunk(chunk) = next { chunk.len } else { 0 });
        data.shrink_to_fit();
        Ok((self, next, data))
    }
}

/// Starts a reader.
///
/// # Errors
///
/// A request that makes no sense, or a log that is not there.
pub(super) async fn read(
    node: Arc<Node>,
    peer: Peer,
    request: ReadLogsRequest,
) -> Result<Answers<ReadLogsResponse>, Status> {
    let (id, _) = node.known(&peer, &request.task_id)?;
    let asked = Asked::new(request)?;
    let wake = Arc::new(Notify::new());
    let reader = {
        let (node, wake) = (node.clone(), wake.clone());
        block(move || open(&node, &id, &asked, wake)).await?
    };
    let (to_client, answers) = mpsc::channel(QUEUE);
    tokio::spawn(async move {
        let told = tell(reader, &wake, &to_client);
        finish(&node, &to_client, told).await;
    });
    Ok(Box::pin(ReceiverStream::new(answers)))
}

fn open(node: &Node, id: &TaskId, asked: &Asked, wake: Arc<Notify>) -> Result<Reader, Status> {
    let unreadable = |error| status::of_observe(&error);
    let mut observed = Observed::open(&node.root, id).map_err(unreadable)?;
    observed.advance(|_, _| {}).map_err(unreadable)?;
    let replay = observed.replay().ok_or_else(|| status::no_task(id.as_str()))?;
    let source = Arc::new(source(id, replay, asked)?);
    let runs = replay.state().processes()[source.index()].runs.len() as u32;
    let run = asked.first_run().or(runs.checked_sub(1));
    if asked.follow {
        let only = asked.run.is_some();
        // A permit is kept for who does not wait yet: no wake is lost.
        let watcher = node.watches.watcher(move || wake.notify_one());
        let watched = watcher.watch_file(&node.root.runner(id));
        watched.map_err(|error| status::unavailable(&error))?;
        let run = run.unwrap_or(0);
        let follow = Follow::new(observed, source, run, only, asked.start, watcher);
        return Ok(Reader::Follow(Box::new(follow)));
    }
    match run {
        Some(run) if run < runs => Ok(Reader::Once(Log::new(source, run, asked.start))),
        _ => {
            let run = run.map_or("none".to_owned(), |run| run.to_string());
            let text = format!("process {:?} has {runs} runs, and not run {run}", asked.process);
            Err(status::info(Code::NotFound, "NO_RUN", text, &[("runs", runs.to_string())]))
        }
    }
}

fn source(id: &TaskId, replay: &Replay, asked: &Asked) -> Result<Source, Status> {
    let specs = &replay.state().spec().processes;
    let index = specs.iter().position(|spec| spec.name.as_str() == asked.process);
    let index = index.ok_or_else(|| {
        let text = format!("task {id} has no process {:?}", asked.process);
        status::info(Code::NotFound, "NO_PROCESS", text, &[("process", asked.process.clone())])
    })?;
    Source::new(replay, index, asked.stream).map_err(|why| {
        let text = format!("process {:?} has no log: {why}", asked.process);
        status::precondition("NOT_LOGGED", &asked.process, text)
    })
}

async fn tell(
    mut reader: Reader,
    wake: &Notify,
    to_client: &mpsc::Sender<Result<ReadLogsResponse, Status>>,
) -> Result<(), Stop> {
    loop {
        let room = to_client.reserve().await.map_err(|_| Stop::Gone)?;
        let (again, next, data) = block(move || reader.read()).await?;
        reader = again;
        match next {
            Next::Chunk(chunk) => room.send(Ok(ReadLogsResponse {
                run: chunk.run,
                offset: chunk.offset,
                data,
                is_after_gap: chunk.gap,
                cursor: chunk.end.to_string(),
            })),
            Next::Waiting => wake.notified().await,
            Next::Over => return Ok(()),
        }
    }
}

/// A log that is not read, or no further.
fn of_log(error: &LogError) -> Status {
    match error {
        LogError::Runs(error) => status::of_observe(error),
        LogError::Path(error) if !matches!(error, PathError::NoOpenat2 | PathError::Sys { .. }) => {
            status::precondition("LOG_REFUSED", "log", chain(error))
        }
        error => status::unavailable(error),
    }
}
