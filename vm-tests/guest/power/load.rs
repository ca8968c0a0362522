//! The load: several callers at a time, who write down what they are told.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::Stdio;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;
use vm_tests::told::Told;

use super::{Disk, Witness, dewar, is_over, status, text};

/// Callers at a time.
const CALLERS: usize = 3;

/// New tasks are begun for so long.
const LASTS: Duration = Duration::from_secs(5);

/// A retry, an order, a finalizer.
const FILE: &str = "
processes:
  - {name: first, cmdline: 'true'}
  - {name: second, cmdline: 'echo $$ >> tries; [ $(wc -l < tries) -eq 2 ]', max_failures: 3, min_duration: 0}
  - {name: last, cmdline: 'true', final: true}
constraints: [{order: [first, second]}]
";

/// Where the task file is.
const PATH: &str = "/tmp/power.yaml";

#[test]
fn tasks_are_accepted_run_and_killed() {
    let disk = Disk::mount("load");
    let witness = Witness::of(&disk);
    std::fs::write(PATH, FILE).unwrap();
    let until = Instant::now() + LASTS;
    thread::scope(|scope| {
        for caller in 0..CALLERS {
            let (root, witness) = (disk.root(), &witness);
            scope.spawn(move || {
                for number in (0..).take_while(|_| Instant::now() < until) {
                    let task = format!("caller-{caller}-task-{number}");
                    match number % 3 {
                        0 => follow(&root, &task, &[PATH], witness),
                        1 => kill(&root, &task, witness),
                        _ => follow(&root, &task, &["--", "exit 7"], witness),
                    }
                }
            });
        }
    });
    std::fs::remove_file(PATH).unwrap();
}

/// Runs a task to its end.
fn follow(root: &Path, task: &str, what: &[&str], witness: &Witness) {
    let mut running = dewar("run", root)
        .args(["--task-id", task, "--output", "json"])
        .args(what)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    witness_all(task, BufReader::new(running.stdout.take().unwrap()), witness);
    running.wait().unwrap();
}

fn witness_all(task: &str, lines: impl BufRead, witness: &Witness) {
    let mut is_accepted = false;
    for line in lines.lines() {
        let event: Value = serde_json::from_str(&line.unwrap()).unwrap();
        if !is_accepted {
            witness.write_down(&Told::Accepted { task: task.to_owned() });
            is_accepted = true;
        }
        if let Some(process) = event["process"].as_str() {
            ran(task, process, &event["run"], witness);
        }
        if let Some(state) = event["taskState"].as_str().filter(|state| is_over(state)) {
            witness.write_down(&Told::Ended { task: task.to_owned(), state: state.to_owned() });
        }
    }
}

fn ran(task: &str, process: &str, run: &Value, witness: &Witness) {
    let state = text(&run["state"]);
    if is_over(&state) {
        let (task, process) = (task.to_owned(), process.to_owned());
        let run = run["run"].as_u64().unwrap_or_default();
        witness.write_down(&Told::Ran { task, process, run, state });
    }
}

/// Has a task accepted, asks for its end, and looks whether it has come.
fn kill(root: &Path, task: &str, witness: &Witness) {
    let task = task.to_owned();
    let run = dewar("run", root)
        .args(["--detach", "--task-id", &task, "--", "sleep 2"])
        .output()
        .unwrap();
    assert!(run.status.success(), "{}", String::from_utf8_lossy(&run.stderr));
    witness.write_down(&Told::Accepted { task: task.clone() });
    let kill = dewar("kill", root).args(["--wait", "1s", &task]).output().unwrap();
    if kill.status.success() {
        witness.write_down(&Told::Killed { task: task.clone() });
    }
    for view in status(root, Some(&task)) {
        for process in view["processes"].as_array().into_iter().flatten() {
            for run in process["runs"].as_array().into_iter().flatten() {
                ran(&task, &text(&process["name"]), run, witness);
            }
        }
        let state = text(&view["state"]);
        if is_over(&state) {
            witness.write_down(&Told::Ended { task: task.clone(), state });
        }
    }
}
