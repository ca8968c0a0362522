//! dewar beside systemd-run, runc and crun: the same command from start to exit, in turns, in one guest.
//!
//! Times of a translated machine are several times those of a real one; their ratios are less so.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::support::Scene;

/// Rounds that are counted, and rounds before them.
const ROUNDS: usize = 30;
const WARM_UP: usize = 3;

/// What is timed.
struct Contender {
    name: &'static str,
    command: Box<dyn Fn(usize) -> Command>,
    times: Vec<Duration>,
}

impl Contender {
    fn new(name: &'static str, command: impl Fn(usize) -> Command + 'static) -> Self {
        Self { name, command: Box::new(command), times: Vec::new() }
    }

    fn run(&mut self, round: usize) {
        let mut command = (self.command)(round);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let start = Instant::now();
        let status = command.status().unwrap();
        let took = start.elapsed();
        assert!(status.success(), "{}: {status}", self.name);
        if round >= WARM_UP {
            self.times.push(took);
        }
    }

    fn median(&mut self) -> Duration {
        self.times.sort_unstable();
        self.times[self.times.len() / 2]
    }
}

#[test]
fn side_by_side() {
    let scene = Scene::new();
    let root = scene.root().to_owned();
    let mut contenders = [
        Contender::new("bash -c true", |_| command("bash", &["-c", "true"])),
        Contender::new("dewar run -- true", move |round| {
            let mut dewar = command("dewar", &["run", "--task-id", &format!("bench-{round}")]);
            dewar.arg("--root").arg(&root).args(["--", "true"]);
            dewar
        }),
        Contender::new("systemd-run --wait bash -c true", |_| {
            command("systemd-run", &["--wait", "--quiet", "--collect", "bash", "-c", "true"])
        }),
        container(&scene, "crun"),
        container(&scene, "runc"),
    ];
    for round in 0..WARM_UP + ROUNDS {
        contenders.iter_mut().for_each(|contender| contender.run(round));
    }
    let medians: Vec<_> = contenders.iter_mut().map(Contender::median).collect();
    println!("\n| start to exit, median of {ROUNDS} | time | of dewar's |\n|---|---|---|");
    for (contender, median) in contenders.iter().zip(&medians) {
        let ratio = median.as_secs_f64() / medians[1].as_secs_f64();
        println!("| `{}` | {:.1} ms | {ratio:.2} × |", contender.name, median.as_secs_f64() * 1e3);
    }
}

fn command(program: &str, arguments: &[&str]) -> Command {
    let mut command = Command::new(program);
    command.args(arguments);
    command
}

/// A container in its own namespaces, its root that of this machine.
fn container(scene: &Scene, runtime: &'static str) -> Contender {
    let bundle = scene.path(&format!("bundle-{runtime}"));
    fs::create_dir_all(&bundle).unwrap();
    fs::write(bundle.join("config.json"), config().to_string()).unwrap();
    let (state, id): (PathBuf, _) = (scene.path(runtime), scene.id().to_owned());
    Contender::new(runtime, move |round| {
        let mut command = command(runtime, &[]);
        command.arg("--root").arg(&state).args(["run", "--bundle"]).arg(&bundle);
        command.arg(format!("{id}-{runtime}-{round}"));
        command
    })
}

/// As small as the OCI's runtime-spec allows: the namespaces that a container has, `/proc`, and its cgroup.
fn config() -> Value {
    let namespaces = ["pid", "mount", "ipc", "uts", "cgroup"].map(|kind| json!({ "type": kind }));
    json!({
        "ociVersion": "1.0.2",
        "process": {
            "terminal": false,
            "user": { "uid": 0, "gid": 0 },
            "args": ["bash", "-c", "true"],
            "env": ["PATH=/usr/bin"],
            "cwd": "/",
        },
        "root": { "path": Path::new("/") },
        "mounts": [{ "destination": "/proc", "type": "proc", "source": "proc" }],
        "linux": { "namespaces": namespaces },
    })
}
