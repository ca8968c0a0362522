//! A client of the daemon.

use std::path::{Path, PathBuf};

use dewar::proto::launch_request::Source;
use dewar::proto::observer_service_client::ObserverServiceClient;
use dewar::proto::runner_service_client::RunnerServiceClient;
use dewar::proto::{
    DiskUsage, GetTaskRequest, GetUsageRequest, KillRequest, LaunchRequest, ProcessState,
    TaskState, TaskView, WaitRequest,
};
use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tonic::Status;
use tonic::transport::{Channel, Endpoint};
use tower::service_fn;

use crate::support::{DEADLINE, Task, wait_until};

/// Of the daemon at a socket.
///
/// Each call has a connection and a runtime of its own: a connection whose runtime stands still hears of no end, and a daemon that
/// stops waits five seconds for it.
pub(crate) struct Client(PathBuf);

impl Client {
    pub(crate) fn of(socket: impl Into<PathBuf>) -> Self {
        Self(socket.into())
    }

    /// Makes calls over a new connection.
    #[track_caller]
    pub(crate) fn call<T>(&self, calls: impl AsyncFnOnce(Channel) -> T) -> T {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let path = self.0.clone();
        let connect = service_fn(move |_| {
            let path = path.clone();
            async move { Ok::<_, std::io::Error>(TokioIo::new(UnixStream::connect(path).await?)) }
        });
        let endpoint = Endpoint::from_static("http://localhost").timeout(DEADLINE);
        runtime.block_on(async {
            calls(endpoint.connect_with_connector(connect).await.unwrap()).await
        })
    }

    /// Launches a task.
    #[track_caller]
    pub(crate) fn launch(&self, id: &str, task: &Task, without_cgroup: bool) -> Result<(), Status> {
        self.ask(id, task, LaunchRequest { without_cgroup, ..LaunchRequest::default() })
    }

    /// Launches a task in a sandbox of the caller's.
    #[track_caller]
    pub(crate) fn launch_in(&self, id: &str, task: &Task, sandbox: &Path) -> Result<(), Status> {
        let sandbox = Some(sandbox.to_str().unwrap().to_owned());
        self.ask(id, task, LaunchRequest { sandbox, ..LaunchRequest::default() })
    }

    #[track_caller]
    fn ask(&self, id: &str, task: &Task, how: LaunchRequest) -> Result<(), Status> {
        let request = LaunchRequest {
            task_id: Some(id.to_owned()),
            source: Some(Source::TaskFile(task.text())),
            ..how
        };
        self.call(async |channel| RunnerServiceClient::new(channel).launch(request).await.map(drop))
    }

    /// A task, as soon as its first process runs.
    #[track_caller]
    pub(crate) fn running(&self, id: &str) -> TaskView {
        let mut task = None;
        wait_until("it does not run", || {
            let now = task.insert(self.get(id));
            let first = now.processes.first().and_then(|process| process.runs.first());
            first.is_some_and(|run| run.state() == ProcessState::Running)
        });
        task.unwrap()
    }

    #[track_caller]
    pub(crate) fn get(&self, id: &str) -> TaskView {
        let request = GetTaskRequest { task_id: id.to_owned() };
        let get = async |channel| ObserverServiceClient::new(channel).get_task(request).await;
        let answer = self.call(get);
        answer.unwrap().into_inner().task.unwrap()
    }

    /// What the sandbox of a task takes, as it was measured last.
    #[track_caller]
    pub(crate) fn disk(&self, id: &str) -> Option<DiskUsage> {
        let request = GetUsageRequest { task_id: id.to_owned(), ..GetUsageRequest::default() };
        let get = async |channel| ObserverServiceClient::new(channel).get_usage(request).await;
        self.call(get).unwrap().into_inner().usage.unwrap().disk
    }

    /// Waits for the end of a task.
    #[track_caller]
    pub(crate) fn wait(&self, id: &str) -> TaskView {
        let request = WaitRequest { task_id: id.to_owned(), ..WaitRequest::default() };
        let wait = async |channel| RunnerServiceClient::new(channel).wait(request).await;
        self.call(wait).unwrap().into_inner().task.unwrap()
    }

    /// Asks for the end of a task, and waits for it.
    #[track_caller]
    pub(crate) fn kill(&self, id: &str) {
        let grace = Some(pbjson_types::Duration { seconds: 0, nanos: 0 });
        let kill = KillRequest { task_id: id.to_owned(), grace, reason: None };
        let kill = async |channel| RunnerServiceClient::new(channel).kill(kill).await;
        self.call(kill).unwrap();
        assert_eq!(self.wait(id).state(), TaskState::Killed);
    }
}
