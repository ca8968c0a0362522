//! Attack 39 at random: for some seconds the runner and the coordinators of a task with ten processes are killed, again
//! and again, at moments that nobody chose.

use std::fs;
use std::time::{Duration, Instant};

use dewar::control;
use dewar::state::Phase;
use dewar::task::TaskId;
use serde_json::{Value, json};

use super::bench::{Bench, PATIENCE, Runner, kill_9};
use super::tasks::MARK;

/// How long it lasts.
const STORM: Duration = Duration::from_secs(10);

/// Random numbers that can be had again (xorshift).
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % sides
    }
}

/// Five daemons, five processes one after the other, and a finalizer.
fn file() -> Value {
    let process = |name: String, seconds: &str| json!({"name": name, "cmdline": format!("{MARK}sleep {seconds}"), "min_duration": 0.02});
    let mut processes = Vec::new();
    for number in 0..5 {
        let mut daemon = process(format!("d{number}"), "0.05");
        daemon["daemon"] = true.into();
        processes.push(daemon);
    }
    let ordered: Vec<String> = (0..5).map(|number| format!("o{number}")).collect();
    processes.extend(ordered.iter().map(|name| process(name.clone(), "0.2")));
    let mut last = process("f".to_owned(), "0");
    last["final"] = true.into();
    processes.push(last);
    json!({"name": "storm", "processes": processes, "constraints": [{"order": ordered}]})
}

#[test]
fn a_storm_of_kills_loses_nothing() {
    let bench = Bench::new();
    let seed = u64::from(std::process::id()) << 20 | 0x5eed;
    println!("seed {seed}");
    let mut dice = Dice(seed);
    let task = bench.accept("storm", &file());
    let mut runner = bench.start(&task);
    let (mut runners, mut coordinators) = (0, 0);

    let end = Instant::now() + STORM;
    while Instant::now() < end {
        std::thread::sleep(Duration::from_millis(dice.roll(60)));
        if dice.roll(3) == 0 {
            runner.kill();
            runners += 1;
            std::thread::sleep(Duration::from_millis(dice.roll(30)));
            runner = bench.start(&task);
        } else if let Some(pid) = some_coordinator(&bench, &task, &mut dice) {
            kill_9(pid);
            coordinators += 1;
        }
    }
    assert!(runners > 20 && coordinators > 20, "{runners} runners, {coordinators} coordinators");
    end_it(&bench, &task, runner);

    bench.assert_over(&task);
    let history = bench.history(&task);
    let states = history.states();
    assert_eq!(history.phase(), Some(Phase::Killed), "{}", bench.describe(&task, "not killed"));
    assert!(states[10].ends_with('S'), "{}", bench.describe(&task, "no finalizer"));
    // Each of the ordered ones began after the one before had succeeded, and was not begun again after that.
    for (index, pair) in (5..).zip(states[5..10].windows(2)) {
        if !pair[1].is_empty() {
            assert!(pair[0].ends_with('S'), "{states:?}");
            let before = history.run(index, pair[0].len() - 1).ended.unwrap().boot;
            let began =
                history.state.processes()[index + 1].runs.iter().find_map(|run| run.started);
            assert!(began.is_none_or(|began| began.boot >= before), "{states:?}");
        }
    }
}

/// Some live coordinator of the task. It is one of ours: its name, and its working directory, say so; that its number is
/// another's by the time it is killed is as likely as that all numbers are used in a millisecond.
fn some_coordinator(bench: &Bench, task: &TaskId, dice: &mut Dice) -> Option<i32> {
    let is_coordinator = |pid: &i32| {
        fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|name| name == "dewar-coord\n")
    };
    let pids: Vec<i32> = bench.processes_of(task).into_iter().filter(is_coordinator).collect();
    let index = dice.roll(pids.len().max(1) as u64) as usize;
    pids.get(index).copied()
}

/// Asks for the end until a runner has heard it, and lets it come.
fn end_it(bench: &Bench, task: &TaskId, mut runner: Runner) {
    let deadline = Instant::now() + PATIENCE;
    while control::kill(bench.root(), task, Duration::from_secs(30), false).is_err() {
        assert!(Instant::now() < deadline, "{}", bench.describe(task, "nobody hears"));
        std::thread::sleep(Duration::from_millis(5));
    }
    assert!(runner.wait().success());
}
