//! A daemon, as whoever asks it sees it: where it is, a connection to it, and what is asked more than once.
//!
//! Nothing of it is paid for before [`Client::connect`]: no thread, no runtime.
#![allow(clippy::disallowed_methods, reason = "connects")]

mod address;
mod tls;
mod trace;

use std::error::Error;
use std::io::{self, ErrorKind};
use std::os::unix::net::UnixStream as StdStream;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tokio::runtime::Runtime;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status};
use tonic_health::pb::health_client::HealthClient;
use tonic_types::StatusExt;
use tower::service_fn;

use crate::control::Request as Order;
use crate::proto::observer_service_client::ObserverServiceClient;
use crate::proto::runner_service_client::RunnerServiceClient;
use crate::proto::{
    ExplainTaskRequest, GetTaskRequest, GetUsageRequest, KillRequest, ListTasksRequest,
    LoseRequest, PauseRequest, ResumeRequest, SignalRequest, SignalScope, TaskExplanation,
    TaskFilter, TaskSummary, TaskUsage, TaskView, Timestamp, UpdateRequest,
};

pub use address::{Address, AddressError};
pub use trace::Call;

/// Most bytes of an answer: a task of very many runs is told in one.
const MAX_ANSWER_BYTES: usize = 64 << 20;
/// Most bytes of the headers of an answer: what is wrong with a request is told in them.
const MAX_HEADER_BYTES: u32 = 1 << 20;
/// Tasks that are asked for in one answer.
const PAGE: u32 = 1000;
/// Tasks that are asked for at the same time.
const TOGETHER: usize = 64;

/// Why a daemon cannot be asked.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nobody listens there.
    #[error("no daemon listens on {0}")]
    Absent(Address),
    /// It cannot be connected to.
    #[error("connect to the daemon on {address}")]
    Connect {
        /// Where.
        address: Address,
        /// What was said.
        #[source]
        error: Box<dyn Error + Send + Sync>,
    },
    /// There is nothing to prove to the daemon who we are with, or to know it by.
    #[error("{0}")]
    Tls(String),
    /// No thread could be started.
    #[error("start a thread")]
    Thread(#[source] io::Error),
}

impl ClientError {
    fn connect(address: &Address, error: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        let (address, error) = (address.clone(), error.into());
        match kind(&*error) {
            Some(ErrorKind::NotFound | ErrorKind::ConnectionRefused) => Self::Absent(address),
            _ => Self::Connect { address, error },
        }
    }
}

/// What the kernel said, if it is among the causes of `error`.
fn kind(error: &(dyn Error + 'static)) -> Option<ErrorKind> {
    match error.downcast_ref::<io::Error>() {
        Some(error) if error.raw_os_error().is_some() => Some(error.kind()),
        _ => kind(error.source()?),
    }
}

/// A connection to a daemon.
#[derive(Debug)]
pub struct Client {
    address: Address,
    runtime: Runtime,
    channel: Channel,
}

impl Client {
    /// Connects to the daemon on `address`. A connection that is lost is made anew by the next call.
    ///
    /// One thread of the runtime serves the connection, whatever the caller does meanwhile: it may well be held up by whoever
    /// reads what it prints, and a client that does not answer is taken for dead.
    ///
    /// # Errors
    ///
    /// [`ClientError`].
    pub fn connect(address: Address) -> Result<Self, ClientError> {
        let runtime = || {
            let mut builder = tokio::runtime::Builder::new_multi_thread();
            builder.worker_threads(1).enable_all().build().map_err(ClientError::Thread)
        };
        let (runtime, channel) = match &address {
            Address::Unix(path) => {
                let first = StdStream::connect(path)
                    .and_then(|stream| stream.set_nonblocking(true).map(|()| stream))
                    .map_err(|error| ClientError::connect(&address, error))?;
                let runtime = runtime()?;
                let channel = runtime.block_on(async { channel(path, first) });
                (runtime, channel)
            }
            Address::Tls(uri) => {
                let (endpoint, runtime) = (tls::endpoint(uri)?, runtime()?);
                let channel = runtime.block_on(endpoint.connect());
                let channel = channel.map_err(|error| ClientError::connect(&address, error))?;
                (runtime, channel)
            }
        };
        Ok(Self { address, runtime, channel })
    }

    /// Where it listens.
    pub fn address(&self) -> &Address {
        &self.address
    }

    /// Waits for `asked`, here.
    pub fn block_on<T>(&self, asked: impl Future<Output = T>) -> T {
        self.runtime.block_on(asked)
    }

    /// Its `RunnerService`.
    pub fn runner(&self) -> RunnerServiceClient<Channel> {
        RunnerServiceClient::new(self.channel.clone()).max_decoding_message_size(MAX_ANSWER_BYTES)
    }

    /// Its `ObserverService`.
    pub fn observer(&self) -> ObserverServiceClient<Channel> {
        ObserverServiceClient::new(self.channel.clone()).max_decoding_message_size(MAX_ANSWER_BYTES)
    }

    /// Its health service.
    pub fn health(&self) -> HealthClient<Channel> {
        HealthClient::new(self.channel.clone())
    }

    /// Tasks in the order of their ids, on however many pages.
    ///
    /// # Errors
    ///
    /// What the daemon said.
    pub fn list(&self, filter: TaskFilter) -> Result<Vec<TaskSummary>, Status> {
        let (mut observer, mut tasks) = (self.observer(), Vec::new());
        let mut request =
            ListTasksRequest { filter: Some(filter), page_size: PAGE, page_token: String::new() };
        loop {
            let page = self.block_on(observer.list_tasks(request.clone()))?.into_inner();
            tasks.extend(page.tasks);
            request.page_token = page.next_page_token;
            if request.page_token.is_empty() {
                return Ok(tasks);
            }
        }
    }

    /// All that is told about each of these tasks, in their order.
    pub fn views(&self, ids: &[String]) -> Vec<Result<TaskView, Status>> {
        let ask = |id: &String| {
            let (mut observer, task_id) = (self.observer(), id.clone());
            self.runtime.spawn(async move {
                let answer = observer.get_task(GetTaskRequest { task_id }).await?.into_inner();
                answer.task.ok_or_else(|| Status::internal("the daemon tells nothing of a task"))
            })
        };
        let mut views = Vec::with_capacity(ids.len());
        for some in ids.chunks(TOGETHER) {
            let asked: Vec<_> = some.iter().map(ask).collect();
            let answer = |asked| match self.block_on(asked) {
                Ok(view) => view,
                Err(error) => Err(Status::internal(format!("a call did not end: {error}"))),
            };
            views.extend(asked.into_iter().map(answer));
        }
        views
    }

    /// All that is told about a task.
    ///
    /// # Errors
    ///
    /// What the daemon said.
    pub fn view(&self, id: &str) -> Result<TaskView, Status> {
        self.views(&[id.to_owned()]).remove(0)
    }

    /// Why each process of a task is running, or is not.
    ///
    /// # Errors
    ///
    /// What the daemon said.
    pub fn explain(&self, id: &str) -> Result<TaskExplanation, Status> {
        let request = ExplainTaskRequest { task_id: id.to_owned() };
        let answer = self.block_on(self.observer().explain_task(request))?.into_inner();
        answer.explanation.ok_or_else(|| Status::internal("the daemon explains nothing"))
    }

    /// What a task uses now, and has used, or at a time in the past; and each of its processes if `by_process`.
    ///
    /// # Errors
    ///
    /// What the daemon said.
    pub fn usage(
        &self,
        id: &str,
        by_process: bool,
        time: Option<Timestamp>,
    ) -> Result<TaskUsage, Status> {
        let request = GetUsageRequest { task_id: id.to_owned(), time, by_process };
        let answer = self.block_on(self.observer().get_usage(request))?.into_inner();
        answer.usage.ok_or_else(|| Status::internal("the daemon tells nothing of a usage"))
    }

    /// Has the runner of a task asked to do something, as [`crate::reach::Reach::order`] does. Tells which limits the kernel
    /// rounded; and, of a pause, does not take it for done before all stands still.
    ///
    /// # Errors
    ///
    /// What the daemon said.
    pub fn order(&self, id: &str, order: Order) -> Result<Vec<String>, Status> {
        let (mut runner, task_id) = (self.runner(), id.to_owned());
        self.block_on(async move {
            match order {
                Order::Kill(kill) if kill.lost => {
                    runner.lose(LoseRequest { task_id, reason: kill.reason }).await?;
                }
                Order::Kill(kill) => {
                    let grace = Some(Duration::from_nanos(kill.wait_nanos).into());
                    runner.kill(KillRequest { task_id, grace, reason: kill.reason }).await?;
                }
                Order::Pause(_) => {
                    let paused = runner.pause(PauseRequest { task_id }).await?.into_inner();
                    if let Some(unfinished) = paused.unfinished {
                        return Err(Status::deadline_exceeded(format!("task {id}: {unfinished}")));
                    }
                }
                Order::Resume(_) => drop(runner.resume(ResumeRequest { task_id }).await?),
                Order::Signal(signal) => {
                    let scope =
                        if signal.all { SignalScope::All } else { SignalScope::Leaders }.into();
                    let (signal, process) = (signal.signal.to_string(), signal.process);
                    runner.signal(SignalRequest { task_id, signal, scope, process }).await?;
                }
                Order::Update(update) => {
                    let (process, change, force) = (update.process, update.change, update.force);
                    let request = UpdateRequest { task_id, process, change, force };
                    return Ok(runner.update(request).await?.into_inner().rounded);
                }
                Order::Follow(_) => {
                    return Err(Status::unimplemented("a runner is followed on its root"));
                }
            }
            Ok(Vec::new())
        })
    }

    /// Asks for the end of a task, in the time that it gives itself.
    ///
    /// # Errors
    ///
    /// What the daemon said.
    pub fn kill(&self, id: &str, reason: Option<String>) -> Result<(), Status> {
        let request = KillRequest { task_id: id.to_owned(), grace: None, reason };
        self.block_on(self.runner().kill(request)).map(drop)
    }
}

/// A channel whose first connection is `first`, and each later one a new one to `path`.
fn channel(path: &Path, first: StdStream) -> Channel {
    let (path, first): (PathBuf, _) = (path.to_owned(), Mutex::new(Some(first)));
    let connect = service_fn(move |_| {
        let first = first.lock().unwrap_or_else(PoisonError::into_inner).take();
        let path = path.clone();
        async move {
            let stream = match first {
                Some(first) => UnixStream::from_std(first)?,
                None => UnixStream::connect(path).await?,
            };
            Ok::<_, io::Error>(TokioIo::new(stream))
        }
    });
    // The name is only for the header `:authority`: a socket has none.
    let endpoint = Endpoint::from_static("http://localhost");
    endpoint.http2_max_header_list_size(MAX_HEADER_BYTES).connect_with_connector_lazy(connect)
}

/// The reason that the daemon gives programs; `None` where it was not the daemon that said this, or there is none.
pub fn reason(status: &Status) -> Option<String> {
    status.get_error_details().error_info().map(|info| info.reason.clone())
}

/// Whether the daemon is gone, or about to go, so that the next one may answer.
pub fn is_gone(status: &Status) -> bool {
    match status.code() {
        Code::Unavailable => reason(status).is_none_or(|reason| reason == "STOPPING"),
        // What our own end says of a connection that broke: nothing that a daemon says comes without details.
        Code::Unknown | Code::Internal | Code::Cancelled => status.details().is_empty(),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_listens_where_nothing_is_and_where_a_daemon_has_died() {
        let path = std::env::temp_dir().join(format!("dewar-client-{}.sock", std::process::id()));
        let address = Address::Unix(path.clone());
        let text = format!("no daemon listens on {}", path.display());

        let missing = Client::connect(address.clone()).unwrap_err();
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        let dead = Client::connect(address).unwrap_err();
        std::fs::remove_file(&path).unwrap();

        assert_eq!((missing.to_string(), dead.to_string()), (text.clone(), text));
    }

    #[test]
    fn a_daemon_that_stops_or_a_connection_that_breaks_is_gone_and_one_that_refuses_is_not() {
        let told = |code, reason: &str| {
            let details = tonic_types::ErrorDetails::with_error_info(reason, "dewar", []);
            Status::with_error_details(code, "", details)
        };
        assert!(is_gone(&Status::unknown("broken pipe")));
        assert!(is_gone(&Status::unavailable("connect")));
        assert!(is_gone(&told(Code::Unavailable, "STOPPING")));

        assert!(!is_gone(&told(Code::Unavailable, "UNAVAILABLE")));
        assert!(!is_gone(&told(Code::Internal, "DEFECT")));
        assert!(!is_gone(&Status::not_found("")));
    }
}
