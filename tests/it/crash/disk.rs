//! S32, attack 34: a disk that fills up while a task runs. What runs goes on, what would begin waits, and nothing is told
//! that is not recorded.

use std::fs;
use std::io::{BufReader, Read};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use dewar::control;
use dewar::launch;
use dewar::proto::{KillStage, VerdictReason};
use dewar::state::{Outcome, Phase};
use dewar::task::TaskId;
use serde_json::{Value, json};

use super::bench::{Bench, wait_for};
use super::tasks::{MARK, deaf};
use crate::support::{DEADLINE, Disk, Scene, p, task};

fn disk(name: &str) -> Disk {
    let name = format!("dewar-disk-{}-{name}", std::process::id());
    Disk::new(std::env::temp_dir().join(name))
}

/// A chain of processes, the first of which waits for `go`.
fn chain() -> Value {
    let process = |name: &str, does: &str| json!({"name": name, "cmdline": format!("{MARK}{does}"), "min_duration": 0.05});
    json!({
        "name": "chain",
        "processes": [
            process("a", "until [ -e go ]; do sleep 0.02; done; exit 0"),
            process("b", "exit 0"),
            process("c", "exit 0"),
        ],
        "constraints": [{"order": ["a", "b", "c"]}],
    })
}

#[test]
fn s32_a_full_disk_loses_nothing_and_begins_nothing() {
    let disk = disk("chain");
    let bench = Bench::with_root(&disk.path().join("root"));
    let task = bench.accept("t", &chain());
    let trace = bench.dir().join("trace");
    let env = [("DEWAR_FAILPOINT_TRACE", trace.display().to_string())];
    let mut runner = bench.start_with(&task, &env);
    bench.wait_running(&task, 0, 0);

    disk.fill();
    bench.touch(&task, "go");
    // Longer than a start that fails for another reason is tried.
    let tries = || fs::read_to_string(&trace).unwrap().matches("launch::stream\n").count();
    wait_for("a start is not tried again", || tries() >= 12);
    let full = bench.history(&task);
    assert_eq!(
        (full.phase(), full.states()),
        (Some(Phase::Active), vec!["S".into(), "w".into(), "".into()])
    );
    refuse_a_launch(&bench);
    disk.make_space();
    assert!(runner.wait().success());

    bench.assert_over(&task);
    let history = bench.history(&task);
    assert_eq!((history.phase(), history.states()), (Some(Phase::Success), vec!["S".into(); 3]));
    let log = bench.log_text(&task);
    assert_eq!(log.matches("no space to start a run, waiting").count(), 1, "{log}");
}

/// Attack 34: refused before any process exists, and as if it had never been asked for.
fn refuse_a_launch(bench: &Bench) {
    let id = TaskId::new("refused").unwrap();

    let error = launch::accept(bench.root(), &id, &bench.launch(&id, &chain())).unwrap_err();

    assert!(chain_of(&error).contains("No space left on device"), "{error:?}");
    assert!(bench.processes_of(&id).is_empty() && !bench.root().checkpoint(&id).exists());
    assert_eq!(bench.root().list(dewar::checkpoint::paths::Place::Active).unwrap().len(), 1);
}

/// The same, wherever in it there can be no further file.
#[test]
fn s32_a_launch_that_runs_out_of_inodes_leaves_nothing() {
    let disk = disk("inodes");
    let bench = Bench::with_root(&disk.path().join("root"));
    bench.accept("t", &chain());

    disk.use_up_inodes();
    for left in 0.. {
        let id = TaskId::new(format!("t{left}")).unwrap();
        match launch::accept(bench.root(), &id, &bench.launch(&id, &chain())) {
            Err(error) => assert!(!bench.root().checkpoint(&id).exists(), "{left}: {error:?}"),
            Ok(_) => return assert!(left > 1, "it needs a directory, and files"),
        }
        fs::remove_file(disk.path().join(format!("files/{left}"))).unwrap();
    }
}

fn chain_of(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(error.source(), |cause| cause.source());
    causes.fold(error.to_string(), |text, cause| format!("{text}: {cause}"))
}

/// What runs can be ended: the records of that have their space since before it began.
#[test]
fn s32_a_task_can_be_killed_while_the_disk_is_full() {
    let disk = disk("kill");
    let bench = Bench::with_root(&disk.path().join("root"));
    // Their ends take more than what is left of a block by chance.
    let processes: Vec<Value> = (0..30).map(|number| deaf(&format!("p{number}"))).collect();
    let task = bench.accept("t", &json!({"name": "t", "processes": processes}));
    let mut runner = bench.start(&task);
    (0..30).for_each(|index| {
        bench.wait_running(&task, index, 0);
    });

    disk.fill();
    control::kill(bench.root(), &task, Duration::from_millis(300), false).unwrap();
    assert!(runner.wait().success());

    bench.assert_over(&task);
    let history = bench.history(&task);
    assert_eq!((history.phase(), history.states()), (Some(Phase::Killed), vec!["K".into(); 30]));
}

/// T52: a run that waits for space to begin never had a process. A kill gives it up, and does not wait for it.
#[test]
fn a_run_that_never_had_a_process_is_given_up_by_a_kill() {
    let bench = Bench::new();
    let task = bench.accept("t", &chain());
    let token = bench.dir().join("full");
    fs::write(&token, "").unwrap();
    let full = format!("launch::stream=ENOSPC*@{}", token.display());
    let mut runner = bench.start_with(&task, &[("DEWAR_FAILPOINT", full)]);
    bench.wait_until(&task, "no run is opened", |history| history.states()[0] == "w");

    control::kill(bench.root(), &task, Duration::from_secs(30), false).unwrap();
    assert!(runner.wait().success());

    bench.assert_over(&task);
    let history = bench.history(&task);
    let end = history.run(0, 0).end.as_ref().unwrap();
    assert_eq!((history.phase(), history.states()[0].as_str()), (Some(Phase::Killed), "K"));
    assert_eq!((&end.outcome, end.verdict.reason()), (&Outcome::Dropped, VerdictReason::Killed));
    assert_eq!(end.verdict.stage(), KillStage::Terminate, "not at the deadline");
    assert!(bench.marks(&task).is_empty());
}

/// A runner that dies while the disk is full leaves a task that the next one goes on with.
#[test]
fn s32_a_runner_may_die_while_the_disk_is_full() {
    let disk = disk("runner");
    let bench = Bench::with_root(&disk.path().join("root"));
    let task = bench.accept("t", &chain());
    let runner = bench.start(&task);
    bench.wait_running(&task, 0, 0);

    disk.fill();
    runner.kill();
    bench.touch(&task, "go");
    wait_for("the coordinator goes on alone", || bench.processes_of(&task).is_empty());
    let mut second = bench.start(&task);
    wait_for("it does not wait for space", || bench.log_text(&task).contains("waiting"));
    disk.make_space();
    assert!(second.wait().success());

    bench.assert_over(&task);
    assert_eq!(bench.history(&task).states(), ["S", "S", "S"]);
}

/// Nobody leads a task that runs, and no file can be made: the runner that a kill starts has no log then.
#[test]
fn s32_a_task_without_a_runner_can_be_killed_while_no_file_can_be_made() {
    let scene = Scene::new();
    let disk = Disk::new(scene.root());
    let mut running = scene.spawn(&task([p("a", "exec sleep 600")]));
    running.wait_until_running("a", 0);

    disk.use_up_inodes();
    scene.kill_runner(running);
    scene.kill(&["--wait", "100ms"]);
    scene.wait_until_led_by_nobody();

    assert_eq!(scene.status()["state"], "TASK_STATE_KILLED");
}

/// A file system that reserves nothing: the coordinator holds the end of its run until it can be written.
#[test]
fn an_end_that_cannot_be_written_is_kept() {
    let bench = Bench::new();
    let task = bench.accept("t", &chain());
    let (token, trace) = (bench.dir().join("full"), bench.dir().join("trace"));
    let runner = bench.start_with(
        &task,
        &[
            ("DEWAR_FAILPOINT", format!("coordinator::flush-ended=ENOSPC*@{}", token.display())),
            ("DEWAR_FAILPOINT_TRACE", trace.display().to_string()),
        ],
    );
    bench.wait_running(&task, 0, 0);
    let tries =
        || fs::read_to_string(&trace).unwrap().matches("coordinator::flush-ended\n").count();

    fs::write(&token, "").unwrap();
    bench.touch(&task, "go");
    wait_for("the end is not tried again", || tries() >= 3);
    // The runner tells that: it has heard of it.
    assert!(waits(&bench, &task).any(|waits| waits));
    assert_eq!(bench.history(&task).states(), ["r", "", ""]);
    runner.kill();
    fs::remove_file(&token).unwrap();
    bench.resume(&task);

    assert_eq!(bench.history(&task).states(), ["S", "S", "S"]);
}

/// Space that a coordinator needs for the start of its run, as where the sandbox is full.
#[test]
fn a_run_whose_coordinator_has_no_space_waits_to_begin() {
    let bench = Bench::new();
    let task = bench.accept("t", &chain());
    let token = bench.dir().join("full");
    fs::write(&token, "").unwrap();
    let full = format!("coordinator::forked=ENOSPC*@{}", token.display());
    let mut runner = bench.start_with(&task, &[("DEWAR_FAILPOINT", full)]);
    bench.wait_until(&task, "no run is opened", |history| history.states()[0] == "w");

    let mut told = waits(&bench, &task);
    assert!(told.any(|waits| waits));
    fs::remove_file(&token).unwrap();
    assert!(told.any(|waits| !waits));
    bench.wait_running(&task, 0, 0);
    bench.touch(&task, "go");
    assert!(runner.wait().success());

    bench.assert_over(&task);
    assert_eq!(bench.history(&task).states(), ["S", "S", "S"]);
}

/// What a follower is told: whether the runner waits for the disk.
fn waits(bench: &Bench, task: &TaskId) -> impl Iterator<Item = bool> {
    let nudges = UnixStream::from(control::follow(bench.root(), task).unwrap());
    nudges.set_read_timeout(Some(DEADLINE)).unwrap();
    BufReader::new(nudges).bytes().map(|nudge| nudge.unwrap() != 0)
}
