//! The daemon, by its clients.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::os::unix::net::{UnixDatagram, UnixStream as StdUnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use dewar::proto::launch_request::Source;
use dewar::proto::observer_service_client::ObserverServiceClient;
use dewar::proto::runner_service_client::RunnerServiceClient;
use dewar::proto::watch_tasks_response::Message;
use dewar::proto::{
    Event, GetNodeRequest, GetTaskRequest, KillRequest, LaunchRequest, ProcessState, TaskState,
    TaskView, WaitRequest, WatchTasksRequest, WatchTasksResponse,
};
use hyper_util::rt::TokioIo;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::net::UnixStream;
use tokio::runtime::Runtime;
use tokio::task::JoinSet;
use tonic::Streaming;
use tonic::transport::{Channel, Endpoint};
use tower::service_fn;

use super::{DEWAR, against, bash, dewar, median, proc, proportional, row, switches, time, write};

const TRUE: &str = "processes: [{name: t, cmdline: 'true'}]\n";
const SLEEP: &str = "processes: [{name: t, cmdline: 'exec sleep 600'}]\n";

const DAEMON: &str =
    "processes: [{name: t, cmdline: 'exec sleep 600', daemon: true, min_duration: 0.001}]\n";

/// Times that a process of [`DAEMON`] is killed: after a hundred in a row it has failed.
const DEATHS: usize = 50;

/// A daemon on a root of its own, and one connection to it.
struct Node {
    runtime: Runtime,
    dir: PathBuf,
    daemon: Child,
    channel: Channel,
}

impl Node {
    fn new(dir: &Path) -> Self {
        let dir = dir.join("daemon");
        fs::create_dir_all(&dir).unwrap();
        let daemon = serve(&dir);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let channel = runtime.block_on(connect(&dir));
        Self { runtime, dir, daemon, channel }
    }

    fn runner(&self) -> RunnerServiceClient<Channel> {
        RunnerServiceClient::new(self.channel.clone())
    }

    fn observer(&self) -> ObserverServiceClient<Channel> {
        ObserverServiceClient::new(self.channel.clone())
    }

    fn pid(&self) -> u64 {
        self.daemon.id().into()
    }

    fn kill(&mut self) {
        self.daemon.kill().unwrap();
        self.daemon.wait().unwrap();
    }

    fn total(&self) -> u64 {
        let mut observer = self.observer();
        let node = self.runtime.block_on(observer.get_node(GetNodeRequest {})).unwrap();
        node.into_inner().task_counts.values().sum()
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Starts a daemon, and waits until it tells that it is ready (sd_notify(3)).
fn serve(dir: &Path) -> Child {
    serve_with(dir, &["--web", "off"])
}

/// With `arguments`, and the page nowhere unless they say so.
fn serve_with(dir: &Path, arguments: &[&str]) -> Child {
    let notify = dir.join("notify");
    let _ = fs::remove_file(&notify);
    let ready = UnixDatagram::bind(&notify).unwrap();
    let mut command = Command::new(DEWAR);
    command.args(["serve", "--root"]).arg(dir.join("root")).arg("--address").arg(socket(dir));
    command.args(arguments);
    let log = fs::File::create(dir.join("log")).unwrap();
    command.env("NOTIFY_SOCKET", &notify).stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
    let daemon = command.spawn().unwrap();
    let mut said = [0; 64];
    ready.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    let length = ready.recv(&mut said).unwrap();
    assert_eq!(&said[..length], b"READY=1\n");
    daemon
}

fn socket(dir: &Path) -> PathBuf {
    dir.join("dewar.sock")
}

async fn connect(dir: &Path) -> Channel {
    let path = socket(dir);
    let connect = service_fn(move |_| {
        let path = path.clone();
        async move { Ok::<_, std::io::Error>(TokioIo::new(UnixStream::connect(path).await?)) }
    });
    Endpoint::from_static("http://localhost").connect_with_connector(connect).await.unwrap()
}

async fn launch(mut runner: RunnerServiceClient<Channel>, id: String, text: &str) -> TaskView {
    let request = LaunchRequest {
        task_id: Some(id),
        source: Some(Source::TaskFile(text.to_owned())),
        allow_unenforced: true,
        ..LaunchRequest::default()
    };
    runner.launch(request).await.unwrap().into_inner().task.unwrap()
}

async fn wait(mut runner: RunnerServiceClient<Channel>, task_id: String) -> TaskState {
    let request = WaitRequest { task_id, ..WaitRequest::default() };
    runner.wait(request).await.unwrap().into_inner().task.unwrap().state()
}

/// Watches all tasks; answers when the snapshot is whole.
async fn watch(mut observer: ObserverServiceClient<Channel>) -> Streaming<WatchTasksResponse> {
    let mut events = observer.watch_tasks(WatchTasksRequest::default()).await.unwrap().into_inner();
    loop {
        let told = events.message().await.unwrap().unwrap();
        if let Some(Message::SnapshotEnd(_)) = told.message {
            return events;
        }
    }
}

/// The next event that `is` holds for.
async fn until(events: &mut Streaming<WatchTasksResponse>, is: impl Fn(&Event) -> bool) -> Event {
    loop {
        let told = events.message().await.unwrap().unwrap();
        match told.message {
            Some(Message::Event(event)) if is(&event) => return event,
            _ => {}
        }
    }
}

fn is_running(event: &Event) -> bool {
    event.run.as_ref().is_some_and(|run| run.state() == ProcessState::Running)
}

/// Whether a run of the task `id` runs. One of the task before may still be told of.
fn runs(event: &Event, id: &str) -> bool {
    event.task_id == id && is_running(event)
}

fn has_ended(event: &Event) -> bool {
    event.run.as_ref().is_some_and(|run| run.end_time.is_some())
}

fn percentile(times: &[Duration], percent: usize) -> Duration {
    let mut times = times.to_vec();
    times.sort_unstable();
    times[(times.len() - 1) * percent / 100]
}

/// The middle, and what one in a hundred exceeds.
fn spread(times: &[Duration]) -> String {
    format!("p50 {:.2?}, p99 {:.2?}", percentile(times, 50), percentile(times, 99))
}

fn beside(what: &str, floor: &[Duration], measured: &[Duration]) {
    let ratio = percentile(measured, 50).as_secs_f64() / percentile(floor, 50).as_secs_f64();
    row(what, &spread(floor), &spread(measured), &format!("{ratio:.2} ×"));
}

/// A call, a launch, an end, as a client sees them.
pub(super) fn calls(dir: &Path) {
    let node = Node::new(dir);
    round_trip(&node);
    launches(&node);
    ends(&node);
    fan_out(&node);
}

/// One call at a time on one connection; the floor is a byte to another process and back.
fn round_trip(node: &Node) {
    let id = "asked".to_owned();
    node.runtime.block_on(launch(node.runner(), id.clone(), TRUE));
    node.runtime.block_on(wait(node.runner(), id.clone()));
    let mut observer = node.observer();
    let mut call = || {
        let request = GetTaskRequest { task_id: id.clone() };
        time(|| drop(node.runtime.block_on(observer.get_task(request)).unwrap()))
    };
    let _warm: Vec<_> = (0..100).map(|_| call()).collect();
    let calls: Vec<_> = (0..2000).map(|_| call()).collect();

    let (mut ours, theirs) = StdUnixStream::pair().unwrap();
    let mut cat =
        Command::new("cat").stdin(as_stdio(&theirs)).stdout(as_stdio(&theirs)).spawn().unwrap();
    let mut ping = || {
        time(|| {
            ours.write_all(b"x").unwrap();
            ours.read_exact(&mut [0]).unwrap();
        })
    };
    let _warm: Vec<_> = (0..100).map(|_| ping()).collect();
    let floor: Vec<_> = (0..2000).map(|_| ping()).collect();
    cat.kill().unwrap();
    cat.wait().unwrap();
    beside("GetTask, floor: a byte to `cat` and back over a socket", &floor, &calls);
}

fn as_stdio(stream: &StdUnixStream) -> Stdio {
    std::os::fd::OwnedFd::from(stream.try_clone().unwrap()).into()
}

/// From the call of Launch to what a watcher sees, in turns with the floors.
fn launches(node: &Node) {
    let task = write(node.dir.join("true.yaml"), TRUE);
    let root = node.dir.join("alone");
    let [mut spawned, mut status, mut run, mut running, mut over, mut run_over] =
        [const { Vec::new() }; 6];
    let mut events = node.runtime.block_on(watch(node.observer()));
    for n in 0..205 {
        let start = Instant::now();
        let mut child = bash("true").spawn().unwrap();
        let bare = start.elapsed();
        child.wait().unwrap();
        let bare_over = start.elapsed();

        let start = Instant::now();
        let mut command = dewar(&root, &task, &format!("r{n}"));
        let mut child = command.args(["--output", "json"]).stdout(Stdio::piped()).spawn().unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        assert!(lines.any(|line| line.unwrap().contains("PROCESS_STATE_RUNNING")));
        let seen = start.elapsed();
        lines.for_each(drop);
        assert!(child.wait().unwrap().success());
        let seen_over = start.elapsed();

        let start = Instant::now();
        let (told, told_over) = node.runtime.block_on(async {
            let launched = tokio::spawn(launch(node.runner(), format!("l{n}"), TRUE));
            until(&mut events, is_running).await;
            let told = start.elapsed();
            until(&mut events, |event| event.task_state() == TaskState::Success).await;
            let over = start.elapsed();
            launched.await.unwrap();
            (told, over)
        });
        // The first few make directories and fill caches.
        if n >= 5 {
            spawned.push(bare);
            status.push(bare_over);
            run.push(seen);
            run_over.push(seen_over);
            running.push(told);
            over.push(told_over);
        }
    }
    beside("Launch to RUNNING at a watcher, floor: `dewar run` to RUNNING", &run, &running);
    beside("the same, floor: posix_spawn of bash", &spawned, &running);
    beside("Launch to SUCCESS of `true`, floor: `dewar run` to its exit", &run_over, &over);
    beside("the same, floor: posix_spawn of bash and wait", &status, &over);
}

/// From kill(2) of a process to its end at a watcher; the floor is kill(2) of a child to waitid(2).
fn ends(node: &Node) {
    let (mut floor, mut measured) = (Vec::new(), Vec::new());
    let mut events = node.runtime.block_on(watch(node.observer()));
    for n in 0..200 {
        let id = format!("ends{}", n / DEATHS);
        if n % DEATHS == 0 {
            node.runtime.block_on(launch(node.runner(), id.clone(), DAEMON));
        }
        let mut child = Command::new("sleep").arg("600").spawn().unwrap();
        floor.push(time(|| {
            child.kill().unwrap();
            child.wait().unwrap();
        }));
        measured.push(node.runtime.block_on(async {
            let pid = until(&mut events, |event| runs(event, &id)).await.run.unwrap().pid.unwrap();
            let start = Instant::now();
            kill(Pid::from_raw(pid), Signal::SIGKILL).unwrap();
            until(&mut events, has_ended).await;
            start.elapsed()
        }));
        if n % DEATHS == DEATHS - 1 {
            end(node, &id);
        }
    }
    beside(
        "kill(2) of a process to its end at a watcher, floor: of a child to waitid(2)",
        &floor,
        &measured,
    );
}

fn end(node: &Node, id: &str) {
    let request = KillRequest {
        task_id: id.to_owned(),
        grace: Some(pbjson_types::Duration::default()),
        reason: None,
    };
    let mut runner = node.runner();
    node.runtime.block_on(async {
        runner.kill(request).await.unwrap();
        assert_eq!(wait(runner, id.to_owned()).await, TaskState::Killed);
    });
}

/// As [`ends`], until the last of 100 watchers knows.
fn fan_out(node: &Node) {
    let (mut one, mut hundred) = (Vec::new(), Vec::new());
    for (count, times) in [(1, &mut one), (100, &mut hundred)] {
        let id = format!("fan{count}");
        let (mut events, others) = node.runtime.block_on(async {
            let mut others = Vec::new();
            for _ in 1..count {
                others.push(watch(ObserverServiceClient::new(connect(&node.dir).await)).await);
            }
            (watch(node.observer()).await, others)
        });
        let mut others = Some(others);
        node.runtime.block_on(launch(node.runner(), id.clone(), DAEMON));
        for _ in 0..DEATHS {
            node.runtime.block_on(async {
                let running = until(&mut events, |event| runs(event, &id)).await;
                let pid = running.run.unwrap().pid.unwrap();
                let mut all = JoinSet::new();
                for mut other in others.take().unwrap() {
                    all.spawn(async move {
                        until(&mut other, has_ended).await;
                        other
                    });
                }
                let start = Instant::now();
                kill(Pid::from_raw(pid), Signal::SIGKILL).unwrap();
                until(&mut events, has_ended).await;
                others = Some(all.join_all().await);
                times.push(start.elapsed());
            });
        }
        end(node, &id);
    }
    beside(
        "kill(2) of a process to its end at the last of 100 watchers, each on its own connection; floor: at one",
        &one,
        &hundred,
    );
}

/// Launches as fast as they go, so many at one time, each to its end: how many a second, against posix_spawn.
pub(super) fn rate(dir: &Path) {
    const TASKS: usize = 500;
    let node = Node::new(dir);
    let floor = time(|| {
        for _ in 0..TASKS {
            bash("true").status().unwrap();
        }
    });
    let taken = time(|| flood(&node, "f", TASKS, TRUE, true));
    let [floor, rate] = [floor, taken].map(|time| TASKS as f64 / time.as_secs_f64());
    row(
        &format!(
            "{TASKS} × Launch of `true` to its end, 16 at a time; floor: posix_spawn of bash and wait, one by one"
        ),
        &format!("{floor:.0}/s"),
        &format!("{rate:.0}/s"),
        &format!("{:.2} ×", floor / rate),
    );
}

/// Launches `count` tasks, 16 at a time; waits for the end of each if `to_end`.
fn flood(node: &Node, prefix: &str, count: usize, text: &'static str, to_end: bool) {
    node.runtime.block_on(async {
        let mut under_way = JoinSet::new();
        for n in 0..count {
            if under_way.len() == 16 {
                under_way.join_next().await.unwrap().unwrap();
            }
            let (id, runner) = (format!("{prefix}{n}"), node.runner());
            under_way.spawn(async move {
                launch(runner.clone(), id.clone(), text).await;
                if to_end {
                    wait(runner, id).await;
                }
            });
        }
        under_way.join_all().await;
    });
}

/// A thousand tasks asleep: what they and the daemon cost, and how soon another daemon answers for all of them.
pub(super) fn node(dir: &Path) {
    const TASKS: usize = 1000;
    let mut node = Node::new(dir);
    let before = proportional(node.pid());
    flood(&node, "s", TASKS, SLEEP, false);
    row(
        "memory of the daemon with 1,000 live tasks: PSS",
        &format!("{before} kB with none"),
        &format!("{} kB", proportional(node.pid())),
        "–",
    );
    for (more, what) in [
        (&["--sample-interval", "off"][..], "none sampled"),
        (&["--disk-interval", "off"], "each sampled every 10 s"),
        (&[], "and each sandbox measured every 60 s"),
    ] {
        restart_with(&mut node, &[&["--web", "off"], more].concat());
        asleep(&node, what);
    }
    restart(&mut node, TASKS as u64, "live");
    for n in 0..TASKS {
        end(&node, &format!("s{n}"));
    }
}

/// What a minute of a node costs on which a thousand tasks are asleep.
fn asleep(node: &Node, what: &str) {
    const MINUTE: Duration = Duration::from_secs(60);
    // What the launches, and the start of the daemon, left to do is over by then.
    std::thread::sleep(Duration::from_secs(12));
    let ours = ours(node);
    let count = || {
        ours.iter()
            .map(|&pid| (ticks(pid), switches(pid)))
            .fold((0, 0), |a, b| (a.0 + b.0, a.1 + b.1))
    };
    let (ticks, woken) = count();
    std::thread::sleep(MINUTE);
    let (ticks_after, woken_after) = count();
    let (cpu, woken) = ((ticks_after - ticks) * 10, woken_after - woken);
    let processes = ours.len();
    row(
        &format!(
            "{processes} processes of ours, 1,000 tasks asleep, {what}, 60 s: CPU time, wake-ups of main threads; PSS of the daemon"
        ),
        "0",
        &format!("{cpu} ms, {woken}; {} kB", proportional(node.pid())),
        "–",
    );
}

/// The daemon and all runners and coordinators.
fn ours(node: &Node) -> Vec<u64> {
    let mut pids = vec![node.pid()];
    let root = node.dir.join("root").display().to_string();
    for entry in fs::read_dir("/proc").unwrap().flatten() {
        let Ok(pid) = entry.file_name().to_string_lossy().parse() else { continue };
        let is_ours = fs::read_to_string(format!("/proc/{pid}/cmdline"))
            .is_ok_and(|line| line.starts_with("dewar-") && line.contains(&root));
        if is_ours {
            pids.push(pid);
        }
    }
    pids
}

/// CPU time of a process, in hundredths of a second.
fn ticks(pid: u64) -> u64 {
    let stat = proc(pid, "stat");
    let fields: Vec<_> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
    // utime and stime, proc_pid_stat(5).
    fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()
}

fn restart_with(node: &mut Node, arguments: &[&str]) {
    node.kill();
    node.daemon = serve_with(&node.dir, arguments);
    node.channel = node.runtime.block_on(connect(&node.dir));
}

/// kill -9 of the daemon, and from the start of another one to its first answer, which knows all `tasks`.
fn restart(node: &mut Node, tasks: u64, which: &str) {
    let mut times = Vec::new();
    for _ in 0..5 {
        node.kill();
        times.push(time(|| {
            node.daemon = serve(&node.dir);
            node.channel = node.runtime.block_on(connect(&node.dir));
            assert_eq!(node.total(), tasks);
        }));
    }
    let time = median(times);
    row(
        &format!("start of a daemon to its first answer, {tasks} {which} tasks"),
        "–",
        &format!("{time:.2?}"),
        "–",
    );
}

/// Ten thousand tasks that are over: memory, and the start of another daemon.
pub(super) fn known(dir: &Path) {
    const TASKS: usize = 10_000;
    let mut node = Node::new(dir);
    for tasks in [1000, TASKS] {
        let known = node.total() as usize;
        flood(&node, &format!("k{tasks}-"), tasks - known, TRUE, true);
        node.kill();
        node.daemon = serve(&node.dir);
        node.channel = node.runtime.block_on(connect(&node.dir));
        assert_eq!(node.total(), tasks as u64);
        row(
            &format!("memory of a daemon that knows {tasks} tasks, all over: PSS"),
            "–",
            &format!("{} kB", proportional(node.pid())),
            "–",
        );
        restart(&mut node, tasks as u64, "finished");
    }
}

/// The page and the metrics of a node with many tasks.
pub(super) fn page(dir: &Path) {
    const ENDED: usize = 10_000;
    const LIVE: usize = 1000;
    let mut node = Node::new(dir);
    flood(&node, "k", ENDED, TRUE, true);
    flood(&node, "s", LIVE, SLEEP, false);
    restart_with(&mut node, &["--web", "127.0.0.1:0", "--sample-interval", "1s"]);
    let before = proportional(node.pid());
    let log = fs::read_to_string(node.dir.join("log")).unwrap();
    let web = log.rsplit_once(" web=").unwrap().1.split_whitespace().next().unwrap();
    // A sample of each task at least.
    std::thread::sleep(Duration::from_secs(3));
    let floor = median((0..20).map(|_| time(|| drop(get(web, "/health")))).collect());
    for (what, target) in [
        ("first page", "/"),
        ("page of ended tasks", "/?state=success"),
        ("page of a live task", "/task/s0"),
        ("metrics", "/metrics"),
    ] {
        let mut bytes = 0;
        let each = (0..20).map(|_| time(|| bytes = get(web, target).len())).collect();
        let what =
            format!("{what}, {bytes} bytes; 10,000 ended and 1,000 live tasks (median of 20)");
        against(&what, floor, median(each));
    }
    let memory = format!("{} kB", proportional(node.pid()));
    let what = "memory of a daemon with 11,000 tasks, the page looked at, 1,000 sampled: PSS";
    row(what, &format!("{before} kB just begun"), &memory, "–");
    for n in 0..LIVE {
        end(&node, &format!("s{n}"));
    }
}

/// The answer to GET, which is no error.
fn get(web: &str, target: &str) -> Vec<u8> {
    let mut stream = TcpStream::connect(web).unwrap();
    let request = format!("GET {target} HTTP/1.0\r\nHost: {web}\r\n\r\n");
    stream.write_all(request.as_bytes()).unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).unwrap();
    let head = String::from_utf8_lossy(&answer[..32]).into_owned();
    assert!(head.contains(" 200 "), "{target}: {head}");
    answer
}
