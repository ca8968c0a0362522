//! The task files in `examples/`: each comes to the end, and leaves behind, what its comments promise.

use std::fs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::support::{Finished, Following, Scene, seconds_between, skip};

fn example(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("examples").join(name)
}

/// `dewar run` of a task file, with `more` arguments.
#[track_caller]
fn start(scene: &Scene, file: &Path, more: &[&str]) -> Following {
    let mut command = scene.command(scene.run_arguments());
    command.args(["--output", "json"]).args(more).arg(file);
    scene.follow(command)
}

/// Runs an example to its end.
#[track_caller]
fn run(scene: &Scene, name: &str, more: &[&str]) -> Finished {
    start(scene, &example(name), more).finish()
}

/// Ports that nobody listens on, bound to their names as `-P` wants it.
fn free_ports<const N: usize>(names: [&str; N]) -> [String; N] {
    // All are held until all are known, so that no two are the same.
    let held = names.map(|name| (name, TcpListener::bind(("127.0.0.1", 0)).unwrap()));
    held.map(|(name, listener)| format!("{name}:{}", listener.local_addr().unwrap().port()))
}

/// Asserts that the first run of each process was over before that of the next began.
#[track_caller]
fn one_after_the_other(ended: &Finished, names: &[&str]) {
    for pair in names.windows(2) {
        let (end, start) = (&ended.run(pair[0], 0)["endTime"], &ended.run(pair[1], 0)["startTime"]);
        assert!(seconds_between(end, start) >= 0.0, "{pair:?}\n{ended}");
    }
}

fn has_python() -> bool {
    Command::new("python3").arg("--version").output().is_ok_and(|told| told.status.success())
}

#[test]
fn hello_says_who_it_is() {
    let scene = Scene::new();

    let ended = run(&scene, "hello.yaml", &[]);

    ended.assert("SUCCESS", &[("hello", "S")]);
    assert_eq!(ended.task["name"], "hello", "the task has the name of its first process");
    let user = ended.task["user"].as_str().unwrap();
    let said = format!("hello from {}, run by {user}\n", scene.id());
    assert_eq!(scene.stdout("hello", 0), said);
    assert_eq!(scene.read(".logs/hello/0/stderr"), "");
}

#[test]
fn the_pipeline_runs_two_steps_side_by_side() {
    let scene = Scene::new();

    let ended = run(&scene, "pipeline.yaml", &[]);

    ended.assert("SUCCESS", &[("numbers", "S"), ("even", "S"), ("odd", "S"), ("report", "S")]);
    one_after_the_other(&ended, &["numbers", "even", "report"]);
    one_after_the_other(&ended, &["numbers", "odd", "report"]);
    assert_eq!(scene.stdout("report", 0), "even: 500\nodd:  500\n");
    // Both are begun before either is over.
    let place = |wanted: (&str, &str)| {
        let found = ended.run_events().position(|(process, _, state)| (process, state) == wanted);
        found.unwrap_or_else(|| panic!("no {wanted:?}\n{ended}"))
    };
    assert!(place(("odd", "WAITING")) < place(("even", "SUCCESS")), "{ended}");
    assert!(place(("even", "WAITING")) < place(("odd", "SUCCESS")), "{ended}");
}

/// "If a step fails, what comes after it never starts."
#[test]
fn the_pipeline_stops_at_a_step_that_fails() {
    let scene = Scene::new();
    // `even` cannot write its file.
    fs::create_dir_all(scene.sandbox().join("even.txt")).unwrap();

    let ended = run(&scene, "pipeline.yaml", &[]);

    ended.assert("FAILED", &[("numbers", "S"), ("even", "F"), ("report", "")]);
}

#[test]
fn the_web_server_serves_until_the_probe_has_seen_the_page() {
    if !has_python() {
        skip!("there is no python3, which this example runs");
    }
    let scene = Scene::new();
    let [port] = free_ports(["http"]);

    let ended = run(&scene, "web.yaml", &["-P", &port]);

    let runs = [("page", "S"), ("server", "K"), ("probe", "S"), ("save-log", "S")];
    ended.assert("SUCCESS", &runs);
    one_after_the_other(&ended, &["page", "probe", "save-log"]);
    one_after_the_other(&ended, &["page", "server", "save-log"]);
    assert_eq!(scene.read("www/index.html"), format!("served by {}\n", scene.id()));
    let seen = scene.stdout("probe", 0);
    assert!(seen.starts_with("the server answers: HTTP/1.0 200 "), "{seen}");
    // The task ends without the server, and tells it so.
    assert_eq!(ended.run("server", 0)["signal"], "SIGTERM");
    assert_eq!(ended.run("server", 0)["verdict"]["stage"], "KILL_STAGE_TERMINATE");
    let log = scene.read("access.log");
    assert!(log.contains("\"GET / HTTP/1.0\" 200"), "{log}");
}

/// "To keep the server up until somebody ends the task (`dewar kill`), leave out `probe` and the server's line
/// `ephemeral: true`."
#[test]
fn the_web_server_without_its_probe_serves_until_the_task_is_killed() {
    if !has_python() {
        skip!("there is no python3, which this example runs");
    }
    let scene = Scene::new();
    let [port] = free_ports(["http"]);
    let text = fs::read_to_string(example("web.yaml")).unwrap();
    let file = scene.file("web.yaml", without_probe(&text));
    let mut running = start(&scene, &file, &["-P", &port]);
    running.wait_until_running("server", 0);

    scene.kill(&[]);

    let ended = running.finish();
    ended.assert("KILLED", &[("page", "S"), ("server", "K"), ("save-log", "S")]);
    assert!(scene.sandbox().join("access.log").exists(), "save-log has run");
}

/// The file as somebody would edit it who follows that comment.
fn without_probe(text: &str) -> String {
    let (before, probe) = text.split_once("  - name: probe\n").unwrap();
    let (_, after) = probe.split_once("\n\n").unwrap();
    let edited = format!("{before}{after}");
    edited.replace("    ephemeral: true\n", "").replace("  - order: [page, probe]\n", "")
}

#[test]
fn retries_bear_two_failures_a_kill_and_a_hopeless_process() {
    let scene = Scene::new();

    let ended = run(&scene, "retries.yaml", &[]);

    ended.assert("SUCCESS", &[("flaky", "FFS"), ("hopeless", "F"), ("victim", "KS")]);
    for run in 0..3 {
        assert_eq!(scene.stdout("flaky", run), format!("attempt {}\n", run + 1));
    }
    assert_eq!(ended.run("victim", 0)["signal"], "SIGTERM");
    assert_eq!(scene.stdout("victim", 1), "still here\n");
    for (process, last) in [("flaky", 0), ("flaky", 1), ("victim", 0)] {
        let (end, start) = (&ended.run(process, last)["endTime"], &ended.run(process, last + 1));
        let pause = seconds_between(end, &start["startTime"]);
        assert!(pause >= 0.2, "{process} was run again after {pause} s\n{ended}");
    }
}

#[test]
fn ports_are_those_of_the_launch() {
    if !has_python() {
        skip!("there is no python3, which this example runs");
    }
    let scene = Scene::new();
    let ports = free_ports(["greet", "health"]);

    let ended = run(&scene, "ports.yaml", &["-P", &ports[0], "-P", &ports[1]]);

    ended.assert("SUCCESS", &[("server", "S"), ("greet", "S"), ("health", "S")]);
    one_after_the_other(&ended, &["greet", "health"]);
    for (binding, process, answer) in [(&ports[0], "greet", "hello"), (&ports[1], "health", "ok")] {
        let (name, port) = binding.split_once(':').unwrap();
        assert_eq!(scene.stdout(process, 0), format!("{name} on port {port}: {answer}\n"));
    }
}

/// "A file that names a port which is not bound is refused, and nothing is started."
#[test]
fn a_port_of_an_example_that_is_not_bound_is_named() {
    let scene = Scene::new();

    let refused = run(&scene, "ports.yaml", &["-P", "greet:31001"]);

    assert_eq!(refused.status, Some(2), "{refused}");
    assert!(refused.stderr.contains("port `health` is not bound"), "{refused}");
    assert!(!refused.stderr.contains("port `greet`"), "{refused}");
    assert!(!scene.root().exists() && !scene.sandbox().exists(), "{refused}");
}

/// An example that no test runs may be wrong.
#[test]
fn every_example_is_run() {
    let source = include_str!("examples.rs");
    for entry in fs::read_dir(example("")).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        assert!(source.contains(&format!("\"{name}\"")), "{name} is run by no test");
    }
}
