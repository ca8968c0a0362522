//! Attack 49: very many launches at one time.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use dewar::proto::launch_request::Source;
use dewar::proto::runner_service_client::RunnerServiceClient;
use dewar::proto::{
    GetTaskRequest, KillRequest, LaunchRequest, ListTasksRequest, ProcessState, TaskFilter,
    TaskState, TaskView,
};
use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tokio::task::{JoinSet, LocalSet};
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status};
use tower::service_fn;

use super::super::node::Node;
use super::reason;
use crate::support::{DEADLINE, Task, p, task};

/// Launches that are under way at one time.
const AT_ONCE: usize = 16;
/// One of so many tasks is killed as soon as it is launched.
const KILLED: usize = 10;

/// How many tasks the storm has: a thousand, or `DEWAR_STORM_TASKS`.
fn storm_tasks() -> usize {
    let asked = std::env::var("DEWAR_STORM_TASKS").ok();
    asked.map_or(1000, |count| count.parse().expect("DEWAR_STORM_TASKS is a number"))
}

/// Five processes, each of which leaves a mark for each time that it is run.
fn five() -> Task {
    let mark = |name: &str| p(name, "echo $DEWAR_PROCESS.$DEWAR_RUN >> marks; sleep 0.3");
    task(["a", "b", "c", "d", "e"].map(mark)).order(["a", "b", "c"]).order(["a", "d"])
}

/// Launches all tasks, however often the daemon goes away.
struct Launcher {
    socket: PathBuf,
    id: String,
    next: AtomicUsize,
    count: usize,
}

impl Launcher {
    fn start(self) -> JoinHandle<()> {
        std::thread::spawn(move || {
            let launcher = Rc::new(self);
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            LocalSet::new().block_on(&runtime.unwrap(), async {
                let mut hands = JoinSet::new();
                (0..AT_ONCE).for_each(|_| drop(hands.spawn_local(launcher.clone().launch_on())));
                hands.join_all().await;
            });
        })
    }

    /// A connection that is made again whenever it is lost.
    fn client(&self) -> RunnerServiceClient<Channel> {
        let socket = self.socket.clone();
        let connect = service_fn(move |_| {
            let socket = socket.clone();
            async move { Ok::<_, std::io::Error>(TokioIo::new(UnixStream::connect(socket).await?)) }
        });
        let endpoint = Endpoint::from_static("http://localhost").timeout(DEADLINE);
        RunnerServiceClient::new(endpoint.connect_with_connector_lazy(connect))
    }

    async fn launch_on(self: Rc<Self>) {
        let client = self.client();
        loop {
            let number = self.next.fetch_add(1, Ordering::Relaxed);
            if number >= self.count {
                return;
            }
            let task_id = format!("{}.{number}", self.id);
            let source = Some(Source::TaskFile(five().text()));
            let request = LaunchRequest {
                task_id: Some(task_id.clone()),
                source,
                ..LaunchRequest::default()
            };
            let launched = patiently(async || client.clone().launch(request.clone()).await).await;
            match launched {
                Ok(_) => {}
                // The answer to an earlier try was lost, and it has ended since.
                Err(status) if reason(&status) == "TASK_FINISHED" => {}
                Err(status) => panic!("launch {number}: {status}"),
            }
            if number.is_multiple_of(KILLED) {
                let request = KillRequest {
                    task_id,
                    grace: Some(pbjson_types::Duration::default()),
                    reason: None,
                };
                let killed = patiently(async || client.clone().kill(request.clone()).await).await;
                killed.unwrap();
            }
        }
    }
}

/// Calls again for as long as the daemon is away, or goes away.
async fn patiently<T>(call: impl AsyncFn() -> Result<T, Status>) -> Result<T, Status> {
    let until = Instant::now() + Duration::from_secs(60);
    loop {
        match call().await {
            Err(status) if is_gone(&status) && Instant::now() < until => {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            answer => return answer,
        }
    }
}

/// Whether it is the connection that failed: what the daemon itself says has a reason, or names a field.
fn is_gone(status: &Status) -> bool {
    let gone = [Code::Unavailable, Code::Unknown, Code::Internal, Code::Cancelled];
    gone.contains(&status.code()) && status.details().is_empty()
}

impl Node {
    /// Whether any task is not over yet.
    fn has_live_tasks(&mut self) -> bool {
        let states = [TaskState::Active, TaskState::Cleaning, TaskState::Finalizing];
        let states = states.map(i32::from).into();
        let filter = Some(TaskFilter { states, ..TaskFilter::default() });
        let request = ListTasksRequest { filter, page_size: 1, ..ListTasksRequest::default() };
        let mut observer = self.observer();
        let listed = self.runtime.block_on(observer.list_tasks(request)).unwrap();
        !listed.into_inner().tasks.is_empty()
    }

    fn view(&mut self, task_id: String) -> TaskView {
        let mut observer = self.observer();
        let told = self.runtime.block_on(observer.get_task(GetTaskRequest { task_id }));
        told.unwrap().into_inner().task.unwrap()
    }
}

/// What has left its mark in the sandbox of a task, each as often as it was run.
fn marks(view: &TaskView) -> Vec<String> {
    let marks = std::fs::read_to_string(format!("{}/marks", view.sandbox)).unwrap_or_default();
    marks.lines().map(str::to_owned).collect()
}

fn is_unique(marks: &[String]) -> bool {
    marks.iter().collect::<BTreeSet<_>>().len() == marks.len()
}

/// attack 49, invariants 1 to 3: while a thousand tasks of five processes are launched, run, and are killed, the daemon is killed every
/// second; nothing is lost, and nothing is run twice. 40 seconds.
#[test]
fn a_daemon_that_is_killed_every_second_loses_nothing_and_runs_nothing_twice() {
    let mut node = Node::of_many_files();
    let (count, start) = (storm_tasks(), Instant::now());
    let launcher = Launcher {
        socket: node.socket(),
        id: node.scene.id().to_owned(),
        next: AtomicUsize::new(0),
        count,
    };
    let launcher = launcher.start();

    let (mut kills, mut launched) = (0, None);
    loop {
        std::thread::sleep(Duration::from_secs(1));
        node.kill();
        kills += 1;
        node.serve_again();
        if launcher.is_finished() {
            launched.get_or_insert_with(|| start.elapsed());
            if !node.has_live_tasks() {
                break;
            }
        }
        assert!(start.elapsed() < Duration::from_secs(60 + count as u64), "it does not end");
    }
    launcher.join().unwrap();
    println!(
        "{count} tasks, {kills} kills; launched in {launched:?}, over in {:?}",
        start.elapsed()
    );

    assert!(kills >= 3, "{kills} kills");
    for number in 0..count {
        let view = node.view(format!("{}.{number}", node.scene.id()));
        let marks = marks(&view);
        assert!(is_unique(&marks), "{marks:?}\n{view:?}");
        if number.is_multiple_of(KILLED) {
            // It may have been over before it was to be killed.
            let state = view.state();
            assert!(matches!(state, TaskState::Killed | TaskState::Success), "{view:?}");
            continue;
        }
        assert_eq!(view.state(), TaskState::Success, "{view:?}");
        assert_eq!(marks.len(), 5, "{marks:?}");
        for process in &view.processes {
            let states: Vec<_> = process.runs.iter().map(|run| run.state()).collect();
            assert_eq!(states, [ProcessState::Success], "{view:?}");
        }
    }
}

/// What a hundred callers are told, each by a connection of its own, who launch under one id at one time.
fn race(node: &Node, request: impl Fn(usize) -> LaunchRequest) -> Vec<Result<bool, Status>> {
    let channels: Vec<_> = (0..100).map(|_| node.channel()).collect();
    node.runtime.block_on(async {
        let mut callers = JoinSet::new();
        for (number, channel) in channels.into_iter().enumerate() {
            let request = request(number);
            callers.spawn(async move {
                let launched = RunnerServiceClient::new(channel).launch(request).await;
                launched.map(|launched| launched.into_inner().is_new)
            });
        }
        callers.join_all().await
    })
}

/// attack 49: the same task under one id is one task, and all are told of it.
#[test]
fn of_a_hundred_callers_with_one_task_one_launches_it() {
    let mut node = Node::new();
    let gate = node.scene.gate("gate");
    let request = node.request(&task([p("a", format!("echo >> marks; {}", gate.hold()))]));

    let told = race(&node, |_| request.clone());

    let new: Vec<bool> = told.into_iter().map(|told| told.unwrap()).collect();
    assert_eq!(new.iter().filter(|&&is_new| is_new).count(), 1);
    assert_eq!(new.len(), 100);
    gate.open();
    let ended = node.wait();
    assert_eq!(ended.state(), TaskState::Success);
    assert_eq!(node.scene.read("marks"), "\n");
}

/// attack 49: of different tasks under one id one is run; all others are told that they differ.
#[test]
fn of_a_hundred_callers_with_tasks_of_their_own_one_wins() {
    let mut node = Node::new();
    let gate = node.scene.gate("gate");
    let of =
        |number| node.request(&task([p("a", format!("echo {number} >> marks; {}", gate.hold()))]));

    let told = race(&node, of);

    let won = told.iter().filter(|told| matches!(told, Ok(true))).count();
    let lost = told.iter().filter_map(|told| told.as_ref().err());
    let lost: Vec<_> = lost.map(|status| (status.code(), reason(status))).collect();
    assert_eq!(won, 1);
    assert_eq!(lost, vec![(Code::AlreadyExists, "TASK_DIFFERS".to_owned()); 99]);
    gate.open();
    assert_eq!(node.wait().state(), TaskState::Success);
    assert_eq!(node.scene.read("marks").lines().count(), 1);
}
