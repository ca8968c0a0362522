//! Traces of a Launch, as a collector gets them that is not ours: `tests/clients/python/collector.py`, made from OpenTelemetry's own protos.

use std::fs;
use std::net::TcpListener;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use dewar::proto::TaskState;
use dewar::proto::runner_service_client::RunnerServiceClient;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid as RawPid;
use serde_json::Value;

use super::client::{asking, launch};
use super::clients::{installed, need, repository};
use super::node::Node;
use super::tcp::{Authority, channel};
use super::web::metrics::value;
use crate::support::{Lines, Pid, Scene, Task, need_root, p, skip, task, wait_until};

const ENDPOINT: &str = "OTEL_EXPORTER_OTLP_ENDPOINT";
const TRACES_ENDPOINT: &str = "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT";
const PARENT: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
const LAUNCH: &str = "dewar.v1.RunnerService/Launch";
const SENT: &str = "dewar_trace_spans_sent_total";
const DROPPED: &str = "dewar_trace_spans_dropped_total";

/// A collector, and what it has got.
struct Collector {
    lines: Lines,
    endpoint: String,
    spans: Vec<Value>,
}

impl Collector {
    fn new() -> Self {
        Self::with("http", &[])
    }

    /// One that is reached by `scheme`, with `arguments`.
    fn with(scheme: &str, arguments: &[PathBuf]) -> Self {
        let scene = Scene::new();
        let mut command = Command::new(installed("python/bin/python"));
        command.arg(repository().join("tests/clients/python/collector.py")).args(arguments);
        command.env("PYTHONDONTWRITEBYTECODE", "1");
        let mut lines = scene.lines(command);
        let port = lines.next().unwrap_or_else(|| panic!("no collector: {}", lines.stderr()));
        Self { lines, endpoint: format!("{scheme}://127.0.0.1:{port}"), spans: Vec::new() }
    }

    /// A node whose daemon tells it.
    fn node(&self, more: &[(&str, &str)]) -> Node {
        let environment = [&[(ENDPOINT, &*self.endpoint)], more].concat();
        Node::of_environment(Scene::new(), &["--web", "127.0.0.1:0"], &environment)
    }

    /// Waits for `count` spans.
    #[track_caller]
    fn wait(&mut self, count: usize) {
        while self.spans.len() < count {
            let line = self.lines.next().expect("the collector goes on");
            eprintln!("{line}");
            self.spans.push(serde_json::from_str(&line).unwrap());
        }
    }

    #[track_caller]
    fn only(&self, name: &str) -> &Value {
        match &self.all(name)[..] {
            [one] => one,
            others => panic!("{} spans are called {name}: {:#?}", others.len(), self.spans),
        }
    }

    fn all(&self, name: &str) -> Vec<&Value> {
        self.spans.iter().filter(|span| span["name"] == name).collect()
    }

    /// One span is beneath another, and does not end before it begins.
    #[track_caller]
    fn is_beneath(&self, child: &Value, parent: &Value) {
        assert_eq!(child["parent"], parent["span"], "{child} is not beneath {parent}");
        assert_eq!(child["trace"], parent["trace"]);
        assert!(child["start"].as_u64() <= child["end"].as_u64(), "{child}");
    }

    /// All that was told, as text.
    fn text(&self) -> String {
        self.spans.iter().map(Value::to_string).collect()
    }
}

/// `dewar launch` of a task in the scene, with `environment`.
#[track_caller]
fn launch_with(
    node: &Node,
    task: &Task,
    environment: &[(&str, &str)],
    more: &[&str],
) -> crate::support::Output {
    let (file, sandbox) = (node.scene.file("task.json", task.text()), node.scene.sandbox());
    let (file, sandbox) = (file.to_str().unwrap(), sandbox.to_str().unwrap());
    let arguments = ["launch", file, "--task-id", node.scene.id(), "--sandbox", sandbox];
    let mut command = asking(node, &[&arguments, more].concat());
    command.envs(environment.iter().copied());
    node.scene.output(command)
}

fn count(node: &Node, series: &str) -> Option<u64> {
    value(&node.metrics(), series)?.parse().ok()
}

/// One trace from the client to RUNNING; and the names, labels, commands and environments that a task brings are not in it.
#[test]
fn a_launch_is_one_trace_from_the_client_to_running() {
    need!("python/bin/python");
    let mut collector = Collector::new();
    let mut node =
        collector.node(&[("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment.name=it")]);
    let gate = node.scene.gate("gate");
    let secret = format!("SECRET=1; {}", gate.hold());
    let two = task([p("a", &secret), p("b", &secret), p("later", "true")]).order(["a", "later"]);
    let two = two.with("name", "SECRET-name");
    let of_client = [(TRACES_ENDPOINT, &*collector.endpoint), ("TRACEPARENT", PARENT)];

    let told = launch_with(&node, &two, &of_client, &["--label", "l=SECRET", "-E", "x=SECRET"]);
    assert_eq!((told.status, &*told.stderr), (Some(0), ""));
    // Client and server, four steps, the way with its lead, and three for each of two runs.
    collector.wait(14);
    let launches = collector.all(LAUNCH);
    let of_kind = |kind: &str| *launches.iter().find(|span| span["kind"] == kind).unwrap();
    let (client, server) = (of_kind("SPAN_KIND_CLIENT"), of_kind("SPAN_KIND_SERVER"));

    assert_eq!(client["trace"], PARENT[3..35]);
    assert_eq!(client["parent"], PARENT[36..52]);
    assert_eq!(client["resource"]["service.name"], "dewar-cli");
    collector.is_beneath(server, client);
    assert_eq!(server["resource"]["service.name"], "dewar");
    assert_eq!(server["resource"]["deployment.environment.name"], "it");
    let attributes = &server["attributes"];
    assert_eq!(attributes["rpc.system.name"], "grpc");
    assert_eq!(attributes["rpc.method"], LAUNCH);
    assert_eq!(attributes["rpc.response.status_code"], "OK");
    assert_eq!(attributes["dewar.task.id"], node.scene.id());
    assert_eq!(attributes["dewar.task.is_new"], true);
    let mut before = server["start"].as_u64();
    for step in ["check", "accept", "start runner", "await lead"] {
        let step = collector.only(step);
        collector.is_beneath(step, server);
        assert!(before <= step["start"].as_u64() && step["end"].as_u64() <= server["end"].as_u64());
        before = step["end"].as_u64();
    }
    let way = collector.only("task to RUNNING");
    collector.is_beneath(way, server);
    assert_eq!(way["attributes"]["dewar.task.id"], node.scene.id());
    let lead = collector.only("runner takes the lead");
    collector.is_beneath(lead, way);
    assert_eq!(lead["start"], way["start"]);
    let runs = collector.all("run to RUNNING");
    let names: Vec<_> = runs.iter().map(|run| &run["attributes"]["dewar.process.name"]).collect();
    assert_eq!(names, ["a", "b"], "what waits for another does not start at once");
    for run in runs {
        collector.is_beneath(run, way);
        assert!(lead["end"].as_u64() <= run["start"].as_u64(), "{run}");
        let step = |name: &str| {
            let mut steps = collector.all(name).into_iter();
            steps.find(|step| step["parent"] == run["span"]).unwrap()
        };
        let (fork, start) = (step("WAITING to FORKED"), step("FORKED to RUNNING"));
        assert_eq!(
            [&run["start"], &fork["end"], &run["end"]],
            [&fork["start"], &start["start"], &start["end"]]
        );
        collector.is_beneath(fork, run);
        assert!(run["end"].as_u64() <= way["end"].as_u64());
    }
    assert!(collector.spans.iter().all(|span| span["status"] == "STATUS_CODE_UNSET"));
    assert!(!collector.text().contains("SECRET"), "{}", collector.text());
    wait_until("it is counted", || count(&node, SENT) == Some(13));
    assert_eq!(count(&node, DROPPED), Some(0));
    gate.open();
    gate.open();
    node.wait();
}

/// The caller is an agent that is not ours; what it says is only a name for the trace.
#[test]
fn a_trace_goes_on_that_an_agent_began() {
    need!("python/bin/python");
    need!("bin/grpcurl");
    let mut collector = Collector::new();
    let mut node = collector.node(&[("OTEL_SERVICE_NAME", "node-7")]);
    let mut command = Command::new(installed("bin/grpcurl"));
    command.args(["-plaintext", "-unix", "-H"]).arg(format!("traceparent: {PARENT}"));
    command.args(["-H", "tracestate: vendor=1", "-d"]).arg(
        serde_json::json!({"taskId": node.scene.id(), "taskFile": task([p("a", "true")]).text()})
            .to_string(),
    );
    command.arg(node.socket()).arg(LAUNCH);

    let said = node.scene.output(command);
    assert_eq!(said.status, Some(0), "{said:?}");
    collector.wait(10);

    let server = collector.only(LAUNCH);
    assert_eq!(server["kind"], "SPAN_KIND_SERVER");
    assert_eq!(
        (&server["trace"], &server["parent"]),
        (&PARENT[3..35].into(), &PARENT[36..52].into())
    );
    assert_eq!(server["state"], "vendor=1");
    assert_eq!(server["resource"]["service.name"], "node-7");
    assert!(collector.spans.iter().all(|span| span["trace"] == server["trace"]));
    node.wait();
}

/// The way ends with an error, which is told in a word: what is wrong with a task is for who may see it.
#[test]
fn a_launch_that_does_not_come_to_running_is_an_error() {
    need_root!();
    need!("python/bin/python");
    let mut collector = Collector::new();
    let mut node = collector.node(&[]);
    // There is no bash in the sandbox.
    let told = launch(&node, &task([p("a", "SECRET")]), &["--chroot"]);
    assert_eq!(told.status, Some(0), "{told:?}");
    collector.wait(10);

    let reason = "VERDICT_REASON_LAUNCH_FAILED";
    for name in ["task to RUNNING", "run to RUNNING", "FORKED to RUNNING"] {
        let span = collector.only(name);
        let said = (&span["status"], &span["message"], &span["attributes"]["error.type"]);
        assert_eq!(said, (&"STATUS_CODE_ERROR".into(), &reason.into(), &reason.into()), "{span}");
    }
    assert_eq!(collector.only("WAITING to FORKED")["status"], "STATUS_CODE_UNSET");
    assert_eq!(collector.only(LAUNCH)["status"], "STATUS_CODE_UNSET");
    node.wait();

    // A request that is refused.
    let file = node.scene.file("bad.json", r#"{"name": "x", "processes": [{"name": "SECRET/"}]}"#);
    let mut command = asking(&node, &["launch", file.to_str().unwrap()]);
    command.env(ENDPOINT, &collector.endpoint);
    assert_eq!(node.scene.output(command).status, Some(2));
    collector.wait(13);
    let refused = &collector.spans[10..];
    let status = |span: &Value| span["status"].as_str().unwrap().to_owned();
    for span in refused {
        // What a caller did wrong is no error of the server.
        let is_fine = span["kind"] == "SPAN_KIND_SERVER";
        assert_eq!(status(span) == "STATUS_CODE_UNSET", is_fine, "{span}");
        if span["name"] == LAUNCH {
            assert_eq!(span["attributes"]["rpc.response.status_code"], "INVALID_ARGUMENT");
        }
    }
    assert!(!collector.text().contains("SECRET"), "{}", collector.text());
}

/// What a caller says is taken as far as it is well formed, and does not fail its Launch.
#[test]
fn a_caller_may_say_not_to_record_and_what_makes_no_sense_is_not_heard() {
    need!("python/bin/python");
    need!("bin/grpcurl");
    let mut collector = Collector::new();
    let mut node = collector.node(&[]);
    let unsampled = PARENT.replace("-01", "-00");
    let mut launched = Vec::new();
    for (name, headers) in [
        ("unsampled", vec![unsampled]),
        ("bad", vec!["00-zz".to_owned()]),
        ("twice", vec![PARENT.to_owned(), PARENT.to_owned()]),
        ("huge", vec![format!("cc{}-{}", &PARENT[2..], "0".repeat(9000))]),
    ] {
        let id = format!("{}.{name}", node.scene.id());
        let mut command = Command::new(installed("bin/grpcurl"));
        command.args(["-plaintext", "-unix"]);
        for header in headers {
            command.arg("-H").arg(format!("traceparent: {header}"));
        }
        let text = task([p("a", "true")]).text();
        command.arg("-d").arg(serde_json::json!({"taskId": id, "taskFile": text}).to_string());
        command.arg(node.socket()).arg(LAUNCH);
        let said = node.scene.output(command);
        assert_eq!(said.status, Some(0), "{name}: {said:?}");
        launched.push(id);
    }
    collector.wait(30);

    let mut ids: Vec<_> = collector.all("task to RUNNING");
    ids.sort_by_key(|span| span["start"].as_u64());
    let ids: Vec<_> = ids.iter().map(|span| &span["attributes"]["dewar.task.id"]).collect();
    assert_eq!(ids, launched[1..].iter().collect::<Vec<_>>());
    for server in collector.all(LAUNCH) {
        assert_eq!(server["parent"], "");
        assert_ne!(server["trace"], PARENT[3..35]);
    }
    for task_id in launched {
        let wait = dewar::proto::WaitRequest { task_id, ..Default::default() };
        let mut runner = node.runner();
        node.runtime.block_on(runner.wait(wait)).unwrap();
    }
}

/// Who may only see, by certificate, causes nothing to be sent; the collector and the daemon know each other by theirs.
#[test]
fn an_observer_causes_no_span_and_a_collector_is_known_by_its_certificate() {
    need!("python/bin/python");
    let authority = Authority::new();
    authority.client("eyes", "", "DNS:eyes.example");
    let path = |name: &str| authority.path(name);
    let files = ["server.pem", "server.key", "ca.pem"].map(path);
    let mut collector = Collector::with("https", &files);
    let text = |name: &str| path(name).to_str().unwrap().to_owned();
    let (ca, certificate, key) = (text("ca.pem"), text("eyes.pem"), text("eyes.key"));
    let environment = [
        (ENDPOINT, &*collector.endpoint),
        ("OTEL_EXPORTER_OTLP_CERTIFICATE", &*ca),
        ("OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE", &*certificate),
        ("OTEL_EXPORTER_OTLP_CLIENT_KEY", &*key),
    ];
    let arguments = authority.arguments();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let arguments = [&arguments[..], &["--web", "127.0.0.1:0"]].concat();
    let mut node = Node::of_environment(Scene::new(), &arguments, &environment);
    let config = authority.client_config(Some(authority.identity("eyes")));
    let mut observer = RunnerServiceClient::new(channel(&node, config));
    let of_task = task([p("a", "true")]);
    let mut request = tonic::Request::new(node.request(&of_task));
    request.metadata_mut().insert("traceparent", PARENT.parse().unwrap());

    let denied = node.runtime.block_on(observer.launch(request)).unwrap_err();
    node.launch(&of_task);
    node.wait();
    collector.wait(10);

    assert_eq!(denied.code(), tonic::Code::PermissionDenied);
    assert_eq!(collector.only(LAUNCH)["parent"], "");
    wait_until("all are sent", || count(&node, SENT) == Some(10));
}

/// What a daemon that stops does not wait for is told as far as it has come.
#[test]
fn a_daemon_that_stops_tells_how_far_a_launch_has_come() {
    need!("python/bin/python");
    let mut collector = Collector::new();
    let scene = Scene::new();
    // The coordinator stops where it has recorded FORKED, which its runner is told of with RUNNING.
    let armed = format!("coordinator::forked=stop@{}", scene.file("token", "").display());
    let environment = [(ENDPOINT, &*collector.endpoint), ("DEWAR_FAILPOINT", &*armed)];
    let mut node = Node::of_environment(scene, &[], &environment);
    let runner = node.launch(&task([p("a", "true")])).runner_pid.unwrap();
    let children = format!("/proc/{runner}/task/{runner}/children");
    let coordinator = || fs::read_to_string(&children).unwrap().trim().parse::<i32>().ok();
    let stat = |pid: i32| fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let is_stopped = |pid: i32| stat(pid).rsplit_once(") ").unwrap().1.starts_with('T');
    wait_until("it has stopped", || coordinator().is_some_and(is_stopped));

    let pid = node.daemon.id().cast_signed();
    kill(RawPid::from_raw(pid), Signal::SIGTERM).unwrap();
    assert_eq!(node.daemon.wait().unwrap().code(), Some(0));
    collector.wait(9);

    for name in ["task to RUNNING", "run to RUNNING", "WAITING to FORKED"] {
        let span = collector.only(name);
        assert_eq!(span["attributes"]["error.type"], "UNFINISHED", "{span}");
    }
    kill(RawPid::from_raw(coordinator().unwrap()), Signal::SIGCONT).unwrap();
    node.kill();
    node.serve_again();
    assert_eq!(node.wait().state(), TaskState::Success);
}

/// Launches all the same, and the end is not held up.
#[track_caller]
fn goes_on_without_a_collector(endpoint: &str, timeout: &str) {
    let environment = [(ENDPOINT, endpoint), ("OTEL_EXPORTER_OTLP_TIMEOUT", timeout)];
    let mut node = Node::of_environment(Scene::new(), &["--web", "127.0.0.1:0"], &environment);

    let told = launch_with(&node, &task([p("a", "true")]), &environment, &[]);

    assert_eq!((told.status, &*told.stderr), (Some(0), ""));
    assert_eq!(told.stdout, format!("{}\n", node.scene.id()));
    node.wait();
    if timeout == "100" {
        wait_until("they are dropped", || count(&node, DROPPED) >= Some(10));
        let mut request = node.request(&task([p("a", "true")]));
        request.task_id = Some(format!("{}.again", node.scene.id()));
        request.sandbox = None;
        let mut runner = node.runner();
        node.runtime.block_on(runner.launch(request)).unwrap();
        wait_until("more are dropped", || count(&node, DROPPED) >= Some(20));
        let log = fs::read_to_string(node.scene.path("daemon.log")).unwrap();
        assert_eq!(log.matches("spans were dropped").count(), 1, "{log}");
    }
    assert_eq!(count(&node, SENT), Some(0));
    let pid = node.daemon.id().cast_signed();
    kill(RawPid::from_raw(pid), Signal::SIGTERM).unwrap();
    // Below what an export may take.
    assert!(Pid::of(pid).ends_within(Duration::from_secs(20)), "it waits for the collector");
    assert_eq!(node.daemon.wait().unwrap().code(), Some(0));
}

#[test]
fn a_collector_that_is_not_there_holds_up_nobody() {
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    goes_on_without_a_collector(&format!("http://127.0.0.1:{port}"), "100");
}

#[test]
fn a_collector_that_does_not_answer_holds_up_nobody() {
    // The kernel accepts connections, and nobody reads them.
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let endpoint = format!("http://{}", silent.local_addr().unwrap());
    goes_on_without_a_collector(&endpoint, "100");
    goes_on_without_a_collector(&endpoint, "600000");
}

/// No exporter, and no connection to where one would be by default.
#[test]
fn nothing_is_traced_unless_an_endpoint_is_named() {
    let default = TcpListener::bind("127.0.0.1:4317").ok();
    let others = [("OTEL_TRACES_EXPORTER", "otlp"), ("OTEL_TRACES_SAMPLER", "always_on")];
    let mut node = Node::of_environment(Scene::new(), &["--web", "127.0.0.1:0"], &others);

    let told = launch_with(&node, &task([p("a", "true")]), &others, &[]);

    assert_eq!((told.status, &*told.stderr), (Some(0), ""));
    node.wait();
    assert_eq!((count(&node, SENT), count(&node, DROPPED)), (None, None));
    if let Some(default) = default {
        default.set_nonblocking(true).unwrap();
        let connected = default.accept().map(|_| ()).map_err(|error| error.kind());
        assert_eq!(connected, Err(std::io::ErrorKind::WouldBlock));
    }
}

/// Such variables are set for all programs of a machine: for one that is meant for others neither a daemon stops nor a launch fails.
#[test]
fn variables_that_cannot_be_followed_turn_traces_off_and_nothing_else() {
    const OFF: &str = "traces are off: the environment asks for what cannot be done";
    let protocol = ("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf");
    let certificate = ("OTEL_EXPORTER_OTLP_CERTIFICATE", "/nowhere/ca.pem");
    for (wrong, text) in [
        (
            &[(ENDPOINT, "http://127.0.0.1:4318"), protocol][..],
            r#"OTEL_EXPORTER_OTLP_PROTOCOL="http/protobuf": expected grpc, the one that dewar speaks"#,
        ),
        (
            &[(ENDPOINT, "collector:4317")],
            r#"OTEL_EXPORTER_OTLP_ENDPOINT="collector:4317": expected http://HOST:PORT or https://HOST:PORT"#,
        ),
        (
            &[(ENDPOINT, "https://127.0.0.1:4317"), certificate],
            "read /nowhere/ca.pem: No such file or directory (os error 2)",
        ),
    ] {
        let mut node = Node::of_environment(Scene::new(), &["--web", "127.0.0.1:0"], wrong);

        let told = launch_with(&node, &task([p("a", "true")]), wrong, &[]);

        assert_eq!(told.status, Some(0), "{told:?}");
        assert_eq!(told.stderr, format!("dewar: launched without a trace: {text}\n"));
        assert_eq!(node.wait().state(), TaskState::Success);
        assert_eq!((count(&node, SENT), count(&node, DROPPED)), (None, None));
        let log = fs::read_to_string(node.scene.path("daemon.log")).unwrap();
        assert_eq!(log.matches(OFF).count(), 1, "{log}");
        assert!(log.contains(&format!("{OFF} error={text}\n")), "{log}");
    }
}
