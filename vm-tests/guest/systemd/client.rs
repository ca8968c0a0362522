//! A client of the daemon.

use std::path::PathBuf;

use dewar::proto::launch_request::Source;
use dewar::proto::observer_service_client::ObserverServiceClient;
use dewar::proto::runner_service_client::RunnerServiceClient;
use dewar::proto::{
    GetTaskRequest, KillRequest, LaunchRequest, ProcessState, TaskState, TaskView, WaitRequest,
};
use hyper_util::rt::TokioIo;
use serde_json::json;
use tokio::net::UnixStream;
use tokio::runtime::Runtime;
use tonic::Status;
use tonic::transport::{Channel, Endpoint};
use tower::service_fn;

use super::TELLS;
use crate::support::{DEADLINE, Task, p, task, wait_until};

/// Of the daemon at a socket; each call has a connection of its own.
pub(super) struct Client {
    runtime: Runtime,
    socket: PathBuf,
}

impl Client {
    pub(super) fn of(socket: impl Into<PathBuf>) -> Self {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        Self { runtime, socket: socket.into() }
    }

    /// A new connection.
    #[track_caller]
    pub(super) fn connect(&self) -> Channel {
        let path = self.socket.clone();
        let connect = service_fn(move |_| {
            let path = path.clone();
            async move { Ok::<_, std::io::Error>(TokioIo::new(UnixStream::connect(path).await?)) }
        });
        let endpoint = Endpoint::from_static("http://localhost").timeout(DEADLINE);
        self.runtime.block_on(endpoint.connect_with_connector(connect)).unwrap()
    }

    /// Launches a task.
    #[track_caller]
    pub(super) fn launch(&self, id: &str, task: &Task, without_cgroup: bool) -> Result<(), Status> {
        let request = LaunchRequest {
            task_id: Some(id.to_owned()),
            source: Some(Source::TaskFile(task.text())),
            without_cgroup,
            ..LaunchRequest::default()
        };
        let mut runner = RunnerServiceClient::new(self.connect());
        self.runtime.block_on(runner.launch(request)).map(drop)
    }

    /// A task, as soon as its first process runs.
    #[track_caller]
    pub(super) fn running(&self, id: &str) -> TaskView {
        let mut task = None;
        wait_until("it does not run", || {
            let now = task.insert(self.get(id));
            let first = now.processes.first().and_then(|process| process.runs.first());
            first.is_some_and(|run| run.state() == ProcessState::Running)
        });
        task.unwrap()
    }

    #[track_caller]
    pub(super) fn get(&self, id: &str) -> TaskView {
        let request = GetTaskRequest { task_id: id.to_owned() };
        let mut observer = ObserverServiceClient::new(self.connect());
        let answer = self.runtime.block_on(observer.get_task(request));
        answer.unwrap().into_inner().task.unwrap()
    }

    /// Asks for the end of a task, and waits for it.
    #[track_caller]
    pub(super) fn kill(&self, id: &str) {
        let grace = Some(pbjson_types::Duration { seconds: 0, nanos: 0 });
        let kill = KillRequest { task_id: id.to_owned(), grace, reason: None };
        let wait = WaitRequest { task_id: id.to_owned(), ..WaitRequest::default() };
        let mut runner = RunnerServiceClient::new(self.connect());
        let ended = self.runtime.block_on(async {
            runner.kill(kill).await.unwrap();
            runner.wait(wait).await.unwrap().into_inner().task.unwrap()
        });
        assert_eq!(ended.state(), TaskState::Killed);
    }
}

/// A task that sleeps until it is killed, in 32 MiB.
pub(super) fn sleeper() -> Task {
    let sleeper = p("a", format!("{TELLS}; exec sleep 600"));
    task([sleeper.with("resources", json!({ "ram": "32MiB" }))])
}
