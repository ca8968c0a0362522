//! `dewar serve`: control and observation of every task of a root over gRPC.
//!
//! The daemon owns no task. It finds them on disk, follows their streams, starts runners for those that have none, and asks
//! runners for what clients want. Killed at any moment, it leaves nothing behind that the next one does not find.
//!
//! | file | question |
//! |---|---|
//! | `registry.rs` | which tasks are there, and what happened lately? |
//! | `gc.rs` | when is garbage collected? |
//! | `follow.rs` | how is it known? One thread, asleep until a runner nudges or a task appears |
//! | `listen.rs` | who may connect, and who is it? |
//! | `tcp.rs`, `subject.rs` | the same over TCP, by certificates |
//! | `peer.rs` | what may a caller see and do? |
//! | `control.rs`, `launch.rs`, `exec.rs` | `RunnerService` |
//! | `observe.rs`, `watch.rs`, `usage.rs`, `logs.rs`, `files.rs` | `ObserverService` |
//! | `sample.rs`, `history.rs`, `disk.rs` | what did tasks use of late, and what do their sandboxes take? |
//! | `inside.rs` | what does the page ask for beside these? |
//! | `metrics.rs` | what is told to Prometheus? |
//! | `trace.rs` | what is told to OpenTelemetry of a Launch? |
//! | `status.rs` | how is an error told? |
#![allow(clippy::disallowed_methods, reason = "a server")]

pub(crate) mod control;
pub(crate) mod counts;
mod disk;
mod exec;
mod files;
mod follow;
mod gc;
mod history;
pub(crate) mod inside;
mod launch;
mod listen;
mod logs;
mod metrics;
pub(crate) mod observe;
pub(crate) mod peer;
mod registry;
mod sample;
mod status;
mod subject;
mod tcp;
mod trace;
mod usage;
mod watch;

use std::io;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch as cell;
use tokio_stream::{Stream, StreamExt};
use tonic::transport::Server;

use crate::causes::chain;
use crate::cgroup::{self, Base, FindError};
use crate::checkpoint::paths::RootError;
use crate::checkpoint::{IoError, Root};
use crate::logs::{WatchError, Watches};
use crate::proto::Timestamp;
use crate::proto::observer_service_server::ObserverServiceServer;
use crate::proto::runner_service_server::RunnerServiceServer;
use crate::sys::{clock, init, limit, lock};
use crate::trace::Traces;
use crate::web;

pub use exec::{ExecAnswers, exec_here};
pub use listen::{ListenError, default_socket};
pub use peer::Admins;
pub use sample::Sampling;
pub use tcp::{TlsError, TlsOptions};

use counts::Counts;
use registry::Registry;

/// The protos, for reflection.
const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));

/// Most bytes of a request: a task file of 4 MiB, and what comes with it.
const MAX_REQUEST_BYTES: usize = 5 << 20;
/// Most calls at one time on a connection.
const MAX_STREAMS: u32 = 1024;
/// Most bytes of the headers of a call.
const MAX_HEADER_BYTES: u32 = 16 << 10;
/// How often a peer that says nothing is asked whether it is there.
const KEEPALIVE: Duration = Duration::from_secs(30);
/// How long calls get to end by themselves once the daemon is told to stop.
const GRACE: Duration = Duration::from_secs(5);

/// How to serve.
#[derive(Debug)]
pub struct Options {
    /// The tasks.
    pub root: Root,
    /// Path of the socket; `None`: one that the service manager hands over, else the default.
    pub socket: Option<PathBuf>,
    /// Permission bits of the socket.
    pub socket_mode: u32,
    /// Who may see and do everything.
    pub admins: Admins,
    /// The base cgroup; `None`: it is found.
    pub cgroup_base: Option<PathBuf>,
    /// TCP, beside the socket.
    pub tls: Option<TlsOptions>,
    /// The page.
    pub web: web::Listen,
    /// How often it is read what tasks use, and how long that is kept; `None`: never.
    pub sampling: Option<Sampling>,
    /// When tasks that are over are removed by themselves; without any limit, never.
    pub gc: crate::gc::Limits,
}

/// Why nothing is served.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The root cannot be used.
    #[error(transparent)]
    Root(#[from] RootError),
    /// A file cannot be used.
    #[error(transparent)]
    Io(#[from] IoError),
    /// Another daemon serves this root.
    #[error("another daemon serves {}", .0.display())]
    Served(PathBuf),
    /// Logs cannot be followed.
    #[error(transparent)]
    Watch(#[from] WatchError),
    /// There is no socket to listen on.
    #[error(transparent)]
    Listen(#[from] ListenError),
    /// TCP cannot be served as it is to be.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The page cannot be served as it is to be.
    #[error(transparent)]
    Web(#[from] web::ListenError),
    /// A call failed.
    #[error("{call}")]
    Sys {
        /// What was tried.
        call: &'static str,
        /// What the kernel said.
        #[source]
        error: io::Error,
    },
    /// The server gave up.
    #[error("serve")]
    Serve(#[from] tonic::transport::Error),
}

impl ServeError {
    fn sys(call: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |error| Self::Sys { call, error }
    }
}

/// What all calls share.
pub(crate) struct Node {
    pub(crate) root: Root,
    pub(crate) registry: Arc<Registry>,
    /// To the thread that follows the tasks.
    pub(crate) door: Arc<follow::Door>,
    /// The base cgroup, or why there is none: then only tasks without cgroup can be launched.
    pub(crate) base: Result<Base, FindError>,
    pub(crate) cgroup_base: Option<PathBuf>,
    pub(crate) started: Timestamp,
    /// Wakes whoever follows logs.
    pub(crate) watches: Watches,
    pub(crate) meters: usage::Meters,
    /// What the tasks used of late.
    pub(crate) histories: sample::Histories,
    /// Entries of sandboxes that were looked at to measure them.
    pub(crate) disk_entries: AtomicU64,
    /// Commands of Exec that run.
    pub(crate) commands: Counts,
    /// Where traces go, if they are asked for.
    pub(crate) traces: Option<Traces>,
    /// Becomes true once the daemon is to stop.
    pub(crate) stopping: cell::Receiver<bool>,
}

/// Serves until SIGTERM or SIGINT.
///
/// # Errors
///
/// [`ServeError`]. Tasks are not touched by any.
pub fn serve(options: Options) -> Result<(), ServeError> {
    let Options { root, socket, socket_mode, admins, cgroup_base, tls, web, sampling, gc } =
        options;
    limit::raise_open_files().map_err(ServeError::sys("raise RLIMIT_NOFILE"))?;
    root.create()?;
    let _only = only_one(&root)?;
    let base = cgroup::find(&cgroup::Options { explicit: cgroup_base.clone() });
    match &base {
        Ok(base) => tracing::info!(base = %base.path().display(), "cgroup v2"),
        Err(error) => tracing::warn!(%error, "only tasks without cgroup can be launched"),
    }
    // Only now: process 1 of a container has left its cgroup, in which no controller could be enabled else.
    init::step_aside().map_err(ServeError::sys("go on as a child of process 1"))?;
    let registry = Registry::new(root.clone());
    let follower = follow::start(&registry, cgroup_base.clone())
        .map_err(ServeError::sys("follow the tasks"))?;
    let keeper = gc::start(&root, gc).map_err(ServeError::sys("collect garbage"))?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .map_err(ServeError::sys("start threads"))?;
    let (stop, stopping) = cell::channel(false);
    let started = Timestamp::from_unix_nanos(clock::now().wall);
    let door = follower.door();
    let (watches, meters) = (Watches::new()?, usage::Meters::new(root.clone()));
    let commands = Counts::default();
    let traces = {
        let _within = runtime.enter();
        // Such variables are set for all programs of a machine, and this one is needed with or without traces.
        Traces::of_environment("dewar").unwrap_or_else(|error| {
            tracing::warn!(error = %chain(&error), "traces are off: the environment asks for what cannot be done");
            None
        })
    };
    let node = Node {
        root,
        registry,
        door,
        base,
        cgroup_base,
        started,
        watches,
        meters,
        histories: sample::Histories::new(sampling),
        disk_entries: AtomicU64::new(0),
        commands,
        traces: traces.clone(),
        stopping,
    };
    let node = Arc::new(node);
    let served = runtime.block_on(async {
        tokio::spawn(logs::dispatch(node.watches.clone()));
        tokio::spawn(sample::run(node.clone()));
        tokio::spawn(disk::run(node.clone()));
        let listener = listen::bind(socket, socket_mode, admins)?;
        let name = listener.name().to_owned();
        let counts = Counts::default();
        let incoming = listener.incoming(admins, counts.clone());
        let (incoming, tls): (Incoming, _) = match tls {
            None => (Box::pin(incoming), None),
            Some(options) => {
                let (tls, listener) = tcp::Tls::bind(options).await?;
                let certified = tls.clone().incoming(listener, counts);
                (Box::pin(incoming.merge(certified)), Some(tls))
            }
        };
        let address = tls.as_ref().map(|tls| tracing::field::display(tls.address()));
        let page = web::bind(web)?;
        let web = page.as_ref().map(|page| tracing::field::display(page.address()));
        tracing::info!(socket = name, tls = address, web, root = %node.root.path().display(), "serving");
        if let Some(page) = page {
            let observe = observe::Observe { node: node.clone() };
            tokio::spawn(page.serve(observe, admins, node.stopping.clone()));
        }
        read_again_when_asked(tls)?;
        run(node, incoming, stop).await
    });
    if let Some(traces) = traces {
        runtime.block_on(trace::finish(&traces));
    }
    runtime.shutdown_timeout(Duration::from_secs(1));
    drop(keeper);
    drop(follower);
    served
}

/// Connections, as they are made.
type Incoming = Pin<Box<dyn Stream<Item = io::Result<listen::Connection>> + Send>>;

/// Has SIGHUP read the certificates again. Without any it does nothing: a daemon does not end with a terminal.
fn read_again_when_asked(tls: Option<Arc<tcp::Tls>>) -> Result<(), ServeError> {
    let mut asked = signal(SignalKind::hangup()).map_err(ServeError::sys("sigaction"))?;
    tokio::spawn(async move {
        while asked.recv().await.is_some() {
            match tls.as_ref().map(|tls| tls.read_again()) {
                None => tracing::info!("there are no certificates to read again"),
                Some(Ok(())) => tracing::info!("read certificates again"),
                Some(Err(error)) => {
                    tracing::error!(error = chain(&error), "certificates stay as they are");
                }
            }
        }
    });
    Ok(())
}

/// The lock that tells that this root is served, and the file that it is taken with. It is the process's: a child that is about to become
/// a runner as the daemon is killed does not keep it.
fn only_one(root: &Root) -> Result<(std::fs::File, lock::ProcessLock), ServeError> {
    let path = root.path().join("daemon.lock");
    let failed = |call| {
        let path = path.clone();
        move |source| IoError { call, path, source }
    };
    let mut options = std::fs::OpenOptions::new();
    let file =
        options.create(true).truncate(false).write(true).open(&path).map_err(failed("open"))?;
    match lock::ProcessLock::take(&file) {
        Ok(lock) => Ok((file, lock)),
        Err(lock::LockError::Held(_)) => Err(ServeError::Served(root.path().to_owned())),
        Err(lock::LockError::Sys(errno)) => Err(failed("fcntl")(errno.into()).into()),
    }
}

async fn run(
    node: Arc<Node>,
    incoming: Incoming,
    stop: cell::Sender<bool>,
) -> Result<(), ServeError> {
    let reflection = tonic_reflection::server::Builder::configure;
    let described = |builder: tonic_reflection::server::Builder<'static>| {
        builder
            .register_encoded_file_descriptor_set(DESCRIPTORS)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
            // Clients that know the API by reflection alone can read the details of errors, too.
            .register_encoded_file_descriptor_set(tonic_types::pb::FILE_DESCRIPTOR_SET)
    };
    let wrong =
        |error| ServeError::Sys { call: "describe the API", error: io::Error::other(error) };
    let v1 = described(reflection()).build_v1().map_err(wrong)?;
    let v1alpha = described(reflection()).build_v1alpha().map_err(wrong)?;
    let (health, health_service) = tonic_health::server::health_reporter();
    type Runner = RunnerServiceServer<control::Control>;
    type Observer = ObserverServiceServer<observe::Observe>;
    health.set_serving::<Runner>().await;
    health.set_serving::<Observer>().await;

    let runner = RunnerServiceServer::new(control::Control { node: node.clone() })
        .max_decoding_message_size(MAX_REQUEST_BYTES);
    let observer = ObserverServiceServer::new(observe::Observe { node })
        .max_decoding_message_size(MAX_REQUEST_BYTES);
    let mut stopped = stop.subscribe();
    let server = Server::builder()
        .max_concurrent_streams(MAX_STREAMS)
        .http2_max_header_list_size(MAX_HEADER_BYTES)
        .http2_keepalive_interval(Some(KEEPALIVE))
        .trace_fn(peer::span)
        .add_service(health_service)
        .add_service(v1)
        .add_service(v1alpha)
        .add_service(runner)
        .add_service(observer)
        .serve_with_incoming_shutdown(incoming, async move {
            let _ = stopped.wait_for(|&stopped| stopped).await;
        });
    // Without a service manager there is nobody to tell.
    let _ = sd_notify::notify(&[sd_notify::NotifyState::Ready]);
    let mut terminate = signal(SignalKind::terminate()).map_err(ServeError::sys("sigaction"))?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(ServeError::sys("sigaction"))?;
    let asked = async {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    };
    tokio::pin!(server);
    tokio::select! {
        ended = &mut server => return Ok(ended?),
        () = asked => {}
    }
    tracing::info!("stopping; tasks go on");
    let _ = sd_notify::notify(&[sd_notify::NotifyState::Stopping]);
    let _ = stop.send(true);
    match tokio::time::timeout(GRACE, server).await {
        Ok(ended) => Ok(ended?),
        // What clients still wait for they may ask the next daemon.
        Err(_) => Ok(()),
    }
}
