//! dewar beside systemd-run, runc and crun: the same command from start to exit, in turns, in one guest.
//!
//! And what a sample costs: `samples`.
//!
//! Times of a translated machine are several times those of a real one; their ratios are less so.

mod samples;

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::support::Scene;
use crate::systemd::bundle;

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
        command.stdin(Stdio::null()).stdout(Stdio::null());
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
    let bundle = bundle(&scene, &command("bash", &["-c", "true"]));
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
        container(&scene, &bundle, "crun"),
        container(&scene, &bundle, "runc"),
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

/// A container in namespaces of its own.
fn container(scene: &Scene, bundle: &Path, runtime: &'static str) -> Contender {
    let (state, bundle, id) = (scene.path(runtime), bundle.to_owned(), scene.id().to_owned());
    Contender::new(runtime, move |round| {
        let mut command = command(runtime, &[]);
        command.arg("--root").arg(&state).args(["run", "--bundle"]).arg(&bundle);
        command.arg(format!("{id}-{runtime}-{round}"));
        command
    })
}
