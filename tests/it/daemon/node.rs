//! A daemon of a scene, and clients of it.

use std::fs::File;
use std::os::unix::net::UnixDatagram;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use dewar::proto::launch_request::Source;
use dewar::proto::observer_service_client::ObserverServiceClient;
use dewar::proto::runner_service_client::RunnerServiceClient;
use dewar::proto::{GetTaskRequest, LaunchRequest, TaskView, WaitRequest};
use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tokio::runtime::Runtime;
use tonic::transport::{Channel, Endpoint};
use tower::service_fn;

use crate::support::{DEADLINE, Scene, Task};

/// A scene with a daemon.
pub(super) struct Node {
    pub(super) runtime: Runtime,
    pub(super) daemon: Child,
    channel: Option<Channel>,
    arguments: Vec<String>,
    /// Of the daemon, beside ours.
    environment: Vec<(String, String)>,
    pub(super) scene: Scene,
}

impl Node {
    pub(super) fn new() -> Self {
        Self::with(&[])
    }

    /// For very many tasks.
    pub(super) fn of_many_files() -> Self {
        Self::of(Scene::of_many_files(), &[])
    }

    /// With `arguments` for the daemon.
    pub(super) fn with(arguments: &[&str]) -> Self {
        Self::of(Scene::new(), arguments)
    }

    pub(super) fn of(scene: Scene, arguments: &[&str]) -> Self {
        Self::of_environment(scene, arguments, &[])
    }

    /// With `environment` for the daemon.
    pub(super) fn of_environment(
        scene: Scene,
        arguments: &[&str],
        environment: &[(&str, &str)],
    ) -> Self {
        let arguments: Vec<_> = arguments.iter().map(|&argument| argument.to_owned()).collect();
        let own = |&(name, value): &(&str, &str)| (name.to_owned(), value.to_owned());
        let environment: Vec<_> = environment.iter().map(own).collect();
        let daemon = serve(&scene, &arguments, &environment);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        Self { runtime, daemon, channel: None, arguments, environment, scene }
    }

    /// Path of the socket.
    pub(super) fn socket(&self) -> PathBuf {
        self.scene.path("dewar.sock")
    }

    /// A new connection.
    pub(super) fn channel(&self) -> Channel {
        let path = self.socket();
        let connect = service_fn(move |_| {
            let path = path.clone();
            async move { Ok::<_, std::io::Error>(TokioIo::new(UnixStream::connect(path).await?)) }
        });
        let endpoint = Endpoint::from_static("http://localhost").timeout(DEADLINE);
        self.runtime.block_on(endpoint.connect_with_connector(connect)).unwrap()
    }

    /// A connection that was made already, by somebody else perhaps.
    pub(super) fn channel_over(&self, stream: std::os::unix::net::UnixStream) -> Channel {
        let mut stream = Some(stream);
        let connect = service_fn(move |_| {
            let stream = stream.take().expect("a connection that was handed over is lost once");
            async move {
                stream.set_nonblocking(true)?;
                Ok::<_, std::io::Error>(TokioIo::new(UnixStream::from_std(stream)?))
            }
        });
        let endpoint = Endpoint::from_static("http://localhost").timeout(DEADLINE);
        self.runtime.block_on(endpoint.connect_with_connector(connect)).unwrap()
    }

    /// Memory of the daemon, kB.
    pub(super) fn memory(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.daemon.id())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        line.trim().strip_suffix(" kB").unwrap().parse().unwrap()
    }

    fn shared(&mut self) -> Channel {
        if self.channel.is_none() {
            self.channel = Some(self.channel());
        }
        self.channel.clone().unwrap()
    }

    pub(super) fn runner(&mut self) -> RunnerServiceClient<Channel> {
        RunnerServiceClient::new(self.shared())
    }

    pub(super) fn observer(&mut self) -> ObserverServiceClient<Channel> {
        ObserverServiceClient::new(self.shared())
    }

    /// The request to launch `task` in the scene.
    pub(super) fn request(&self, task: &Task) -> LaunchRequest {
        LaunchRequest {
            task_id: Some(self.scene.id().to_owned()),
            source: Some(Source::TaskFile(task.text())),
            sandbox: Some(self.scene.sandbox().to_str().unwrap().to_owned()),
            ..LaunchRequest::default()
        }
    }

    #[track_caller]
    pub(super) fn launch(&mut self, task: &Task) -> TaskView {
        let request = self.request(task);
        let mut runner = self.runner();
        let launched = self.runtime.block_on(runner.launch(request)).unwrap();
        launched.into_inner().task.unwrap()
    }

    #[track_caller]
    pub(super) fn get(&mut self) -> TaskView {
        let request = GetTaskRequest { task_id: self.scene.id().to_owned() };
        let mut observer = self.observer();
        self.runtime.block_on(observer.get_task(request)).unwrap().into_inner().task.unwrap()
    }

    /// Waits for the end of the task.
    #[track_caller]
    pub(super) fn wait(&mut self) -> TaskView {
        let task_id = self.scene.id().to_owned();
        let request = WaitRequest { task_id, ..WaitRequest::default() };
        let mut runner = self.runner();
        let waited = self.runtime.block_on(runner.wait(request)).unwrap().into_inner();
        assert!(waited.is_reached);
        waited.task.unwrap()
    }

    /// kill -9.
    pub(super) fn kill(&mut self) {
        self.channel = None;
        self.daemon.kill().unwrap();
        self.daemon.wait().unwrap();
    }

    /// Starts the daemon again.
    pub(super) fn serve_again(&mut self) {
        self.daemon = serve(&self.scene, &self.arguments, &self.environment);
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        let _ = self.daemon.kill();
        let _ = self.daemon.wait();
        if !std::thread::panicking() {
            let log = std::fs::read_to_string(self.scene.path("daemon.log")).unwrap_or_default();
            assert!(!log.contains("panicked at"), "{log}");
        }
    }
}

/// Starts a daemon, and waits until it tells that it is ready (sd_notify(3)).
fn serve(scene: &Scene, arguments: &[String], environment: &[(String, String)]) -> Child {
    let notify = scene.path("notify");
    let _ = std::fs::remove_file(&notify);
    let ready = UnixDatagram::bind(&notify).unwrap();
    ready.set_read_timeout(Some(DEADLINE)).unwrap();
    let log = File::options().create(true).append(true).open(scene.path("daemon.log")).unwrap();
    let mut command: Command = scene.command(["serve", "--root"]);
    command.arg(scene.root()).arg("--address").arg(scene.path("dewar.sock")).args(arguments);
    command.envs(environment.iter().map(|(name, value)| (name, value)));
    command.env("NOTIFY_SOCKET", &notify).stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
    let mut daemon = command.spawn().unwrap();
    let mut said = [0; 64];
    let read = loop {
        // A signal to the process of all tests cuts short what has a timeout (signal(7)).
        match ready.recv(&mut said) {
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            read => break read,
        }
    };
    let log = || std::fs::read_to_string(scene.path("daemon.log")).unwrap_or_default();
    match read {
        Ok(length) => assert_eq!(&said[..length], b"READY=1\n"),
        Err(error) => {
            let _ = daemon.kill();
            let _ = daemon.wait();
            panic!("no daemon: {error}: {}", log());
        }
    }
    daemon
}
