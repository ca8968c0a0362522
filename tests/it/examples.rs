//! The examples do what they say.

use std::net::TcpListener;
use std::path::Path;
use std::process::{Command, Stdio};

use crate::support::{Finished, Scene, skip};

/// Runs an example to its end.
#[track_caller]
fn run(scene: &Scene, name: &str, more: &[&str]) -> Finished {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples").join(name);
    let mut command = scene.command(scene.run_arguments());
    command.args(["--output", "json"]).args(more).arg(file);
    scene.follow(command).finish()
}

/// Ports that nobody uses now.
fn free_ports<const N: usize>() -> [u16; N] {
    let listeners = [(); N].map(|()| TcpListener::bind("127.0.0.1:0").unwrap());
    listeners.map(|listener| listener.local_addr().unwrap().port())
}

fn has_python() -> bool {
    let mut command = Command::new("python3");
    command.arg("--version").stdout(Stdio::null()).stderr(Stdio::null());
    command.status().is_ok_and(|status| status.success())
}

#[test]
fn hello_greets() {
    let scene = Scene::new();

    let ended = run(&scene, "hello.yaml", &[]);

    ended.assert("SUCCESS", &[("hello", "S")]);
    let user = ended.task["user"].as_str().unwrap();
    let greeting = format!("hello from {}, run by {user}\n", scene.id());
    assert_eq!(scene.stdout("hello", 0), greeting);
}

#[test]
fn pipeline_reports_at_its_end() {
    let scene = Scene::new();

    let ended = run(&scene, "pipeline.yaml", &[]);

    ended.assert("SUCCESS", &[("numbers", "S"), ("even", "S"), ("odd", "S"), ("report", "S")]);
    assert_eq!(scene.stdout("report", 0), "even: 500\nodd:  500\n");
}

#[test]
fn retries_bears_one_failed_process() {
    let scene = Scene::new();

    let ended = run(&scene, "retries.yaml", &[]);

    ended.assert("SUCCESS", &[("flaky", "FFS"), ("hopeless", "F"), ("victim", "KS")]);
    assert_eq!(scene.stdout("flaky", 2), "attempt 3\n");
}

#[test]
fn ports_answers_on_both() {
    if !has_python() {
        skip!("there is no python3, which this example runs");
    }
    let scene = Scene::new();
    let [greet, health] = free_ports();
    let (bind_greet, bind_health) = (format!("greet:{greet}"), format!("health:{health}"));

    let ended = run(&scene, "ports.yaml", &["-P", &bind_greet, "-P", &bind_health]);

    ended.assert("SUCCESS", &[("server", "S"), ("greet", "S"), ("health", "S")]);
    assert_eq!(scene.stdout("greet", 0), format!("greet on port {greet}: hello\n"));
    assert_eq!(scene.stdout("health", 0), format!("health on port {health}: ok\n"));
}

#[test]
fn a_port_that_is_not_bound_is_refused() {
    let scene = Scene::new();

    let refused = run(&scene, "ports.yaml", &["-P", "greet:31001"]);

    assert_eq!(refused.status, Some(2), "{refused}");
    assert!(refused.stderr.contains("health"), "{refused}");
    assert!(!scene.root().exists());
}

#[test]
fn web_serves_a_page_and_keeps_its_log() {
    if !has_python() {
        skip!("there is no python3, which this example runs");
    }
    let scene = Scene::new();
    let [port] = free_ports();

    let ended = run(&scene, "web.yaml", &["-P", &format!("http:{port}")]);

    ended.assert("SUCCESS", &[("page", "S"), ("server", "K"), ("probe", "S"), ("save-log", "S")]);
    assert!(scene.read("access.log").contains("GET / HTTP/1.0"), "{}", scene.read("access.log"));
    assert!(scene.stdout("probe", 0).contains(" 200 "));
}
