//! `/metrics`, as Prometheus and its own tools read it.

use std::fs;
use std::io::Write;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use dewar::proto::{KillRequest, TaskState};

use super::super::node::Node;
use super::attacks::as_nobody;
use super::web;
use crate::support::{need_root, p, skip, task, wait_until};

/// Leaves a test that needs a program of Debian's package `prometheus`.
macro_rules! need_prometheus {
    ($program:literal) => {
        if Command::new($program).arg("--version").output().is_err() {
            skip!("{} is not there: apt-get install prometheus", $program);
        }
    };
}

impl Node {
    /// The metrics.
    #[track_caller]
    pub(in crate::daemon) fn metrics(&self) -> String {
        let answer = self.found("/metrics");
        assert_eq!(answer.header("content-type"), Some("text/plain; version=0.0.4; charset=utf-8"));
        answer.text()
    }

    /// Launches a task that goes on, and waits until it was sampled.
    fn sampled(&mut self, name: &str) -> String {
        let task = task([p("a", "exec sleep 600")]).with("name", name);
        self.launch(&task);
        let id = self.scene.id().to_owned();
        let cpu = "dewar_task_cpu_seconds_total{";
        let begun = "dewar_runs_begun_total";
        wait_until("it was sampled", || {
            let metrics = self.metrics();
            // Its cgroup can be sampled before it is known to run.
            metrics.lines().any(|line| line.starts_with(cpu)) && value(&metrics, begun) == Some("1")
        });
        id
    }

    fn kill_task(&mut self, id: &str) {
        let request = KillRequest {
            task_id: id.to_owned(),
            grace: Some(std::time::Duration::ZERO.into()),
            ..KillRequest::default()
        };
        let mut runner = self.runner();
        self.runtime.block_on(runner.kill(request)).unwrap();
        assert_eq!(self.wait().state(), TaskState::Killed);
    }
}

/// The value of a series, as it is written.
pub(in crate::daemon) fn value<'a>(metrics: &'a str, series: &str) -> Option<&'a str> {
    metrics.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' '))
}

fn contrib(file: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("contrib").join(file)
}

#[test]
fn counters_are_there_at_0_and_count_what_happens() {
    let mut node = web(&[]);
    let counters = [
        r#"dewar_tasks{state="active"}"#,
        r#"dewar_tasks{state="killed"}"#,
        "dewar_tasks_accepted_total",
        r#"dewar_tasks_ended_total{state="killed"}"#,
        "dewar_runs_begun_total",
        r#"dewar_runs_ended_total{state="killed"}"#,
        "dewar_oom_kills_total",
        "dewar_runners_died_total",
    ];
    let values = |metrics: &str| {
        counters.map(|series| value(metrics, series).unwrap_or("absent").to_owned())
    };
    assert_eq!(values(&node.metrics()), ["0"; 8]);

    let id = node.sampled("sleeper");
    assert_eq!(values(&node.metrics()), ["1", "0", "1", "0", "1", "0", "0", "0"]);
    node.kill_task(&id);
    assert_eq!(values(&node.metrics()), ["0", "1", "1", "1", "1", "1", "0", "0"]);
}

/// What lives has series, and they vanish with it.
#[test]
fn series_of_a_task_vanish_with_it() {
    let mut node = web(&[]);
    let id = node.sampled("sleeper");
    let labels = format!(r#"{{name="sleeper",task_id="{id}",user="root"}}"#);
    let metrics = node.metrics();
    let cpu = value(&metrics, &format!("dewar_task_cpu_seconds_total{labels}"));
    assert!(cpu.unwrap_or_else(|| panic!("{metrics}")).parse::<f64>().unwrap() >= 0.0);
    assert_eq!(value(&metrics, &format!("dewar_task_paused{labels}")), Some("0"));

    node.kill_task(&id);
    let metrics = node.metrics();
    assert!(!metrics.contains("dewar_task_"), "{metrics}");
}

/// Attack 47: what a task calls itself is quoted, and forges no line; Prometheus' own lint finds nothing.
#[test]
fn a_hostile_name_is_quoted_and_the_lint_finds_nothing() {
    need_prometheus!("promtool");
    let mut node = web(&[]);
    let id = node.sampled(r#"a"} 1 \n# TYPE x \"#);
    let metrics = node.metrics();
    assert!(metrics.contains(r#"name="a\"} 1 \\n# TYPE x \\","#), "{metrics}");

    let mut lint = Command::new("promtool");
    lint.args(["check", "metrics"]).stdin(Stdio::piped()).stderr(Stdio::piped());
    let mut lint = lint.stdout(Stdio::piped()).spawn().unwrap();
    lint.stdin.take().unwrap().write_all(metrics.as_bytes()).unwrap();
    let told = lint.wait_with_output().unwrap();
    assert!(told.status.success() && told.stderr.is_empty(), "{told:?}");
    node.kill_task(&id);
}

#[test]
fn a_user_is_told_of_their_own_tasks_alone() {
    need_root!();
    let mut node = web(&[]);
    let id = node.sampled("sleeper");
    let port = node.port();
    let told = as_nobody(port, "/metrics").text();
    assert!(!told.contains(&id) && !told.contains("process_"), "{told}");
    assert_eq!(value(&told, r#"dewar_tasks{state="active"}"#), Some("0"));
    node.kill_task(&id);
}

/// Killed with the test.
struct Prometheus(Child);

impl Drop for Prometheus {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// With the configuration and the rules that operators are given.
#[test]
fn a_real_prometheus_scrapes_and_its_rules_hold() {
    need_prometheus!("prometheus");
    need_root!();
    let mut node = web(&[]);
    let id = node.sampled("sleeper");
    let rules = ["test", "rules", "prometheus/dewar-alerts-test.yml"];
    let told = Command::new("promtool").args(rules).current_dir(contrib("")).output().unwrap();
    assert!(told.status.success(), "{told:?}");

    let given = fs::read_to_string(contrib("prometheus/dewar.yml")).unwrap();
    let (target, interval) = ("127.0.0.1:1338", "scrape_interval: 15s");
    assert!(given.contains(target) && given.contains(interval), "{given}");
    let here = given.replace(target, &format!("127.0.0.1:{}", node.port()));
    let config =
        node.scene.file("prometheus.yml", here.replace(interval, "scrape_interval: 200ms"));
    fs::copy(contrib("prometheus/dewar-alerts.yml"), node.scene.path("dewar-alerts.yml")).unwrap();
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let mut command = Command::new("prometheus");
    command.arg(format!("--config.file={}", config.display()));
    command.arg(format!("--storage.tsdb.path={}", node.scene.path("tsdb").display()));
    command.arg(format!("--web.listen-address=127.0.0.1:{port}"));
    let log = fs::File::create(node.scene.path("prometheus.log")).unwrap();
    let log = command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
    let prometheus = Prometheus(log.spawn().unwrap());

    let query = format!(
        "/api/v1/query?query=dewar_task_pids%20or%20dewar_task_paused%7Btask_id%3D%22{id}%22%7D"
    );
    wait_until("the task is told of", || {
        std::net::TcpStream::connect(("127.0.0.1", port)).is_ok()
            && super::http::get(port, &query).text().contains(&id)
    });
    drop(prometheus);
    node.kill_task(&id);
}

/// The dashboard asks for nothing that is not told.
#[test]
fn the_dashboard_and_the_alerts_ask_for_metrics_that_are_there() {
    let documented =
        fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/metrics.md")).unwrap();
    for file in ["grafana/dewar.json", "prometheus/dewar-alerts.yml"] {
        let text = fs::read_to_string(contrib(file)).unwrap();
        let mut asked = 0;
        for name in text.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_')) {
            if name.starts_with("dewar_") || name.starts_with("process_") {
                asked += 1;
                assert!(documented.contains(&format!("`{name}`")), "{file} asks for {name}");
            }
        }
        assert!(asked > 5, "{file}");
    }
}

/// What is documented is told, but for what this host does not account for; and nothing else is.
#[test]
fn what_is_told_is_documented() {
    let mut node = web(&[]);
    let id = node.sampled("sleeper");
    let documented = include_str!("../../../../docs/metrics.md");
    for line in node.metrics().lines().filter_map(|line| line.strip_prefix("# TYPE ")) {
        let name = line.split(' ').next().unwrap();
        assert!(documented.contains(&format!("`{name}`")), "{name} is not documented");
    }
    node.kill_task(&id);
}
