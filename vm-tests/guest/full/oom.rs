//! Out of memory: whose limit, which runs, and nobody else.

use std::fs;
use std::path::Path;

use serde_json::{Value, json};

use crate::machine::{CGROUP2, remove_base};
use crate::support::{Finished, Scene, p, task};

/// Takes more memory than any limit here allows, as a child of the shell.
const HOG: &str = "dd if=/dev/zero of=/dev/null bs=64M count=1 2>/dev/null";

/// A run that is nothing but that.
fn hog() -> String {
    format!("{HOG}; echo never")
}

#[track_caller]
fn number(value: &Value) -> u64 {
    value.as_str().unwrap_or_else(|| panic!("no number: {value}")).parse().unwrap()
}

/// Asserts that a run is a victim of the limit of `cgroup`.
#[track_caller]
fn assert_oom(ended: &Finished, process: &str, level: &str, cgroup: &Path, limit: u64) {
    let verdict = &ended.run(process, 0)["verdict"];
    assert_eq!(verdict["reason"], "VERDICT_REASON_OOM", "{ended}");
    let oom = &verdict["oom"];
    assert_eq!(oom["level"], format!("LIMIT_LEVEL_{level}"), "{ended}");
    assert_eq!(oom["cgroup"], cgroup.to_str().unwrap(), "{ended}");
    assert_eq!(number(&oom["limitBytes"]), limit, "{ended}");
    let peak = number(&oom["peakBytes"]);
    assert!(peak > limit / 2 && peak <= limit, "{ended}");
    assert!(number(&oom["limitHits"]) > 0 && number(&oom["killed"]) > 0, "{ended}");
}

#[test]
fn the_limit_of_a_run_is_named() {
    let scene = Scene::new();
    let limits = json!({ "ram": "16MiB" });

    let ended = scene.run(&task([p("hog", hog()).with("resources", limits)]));

    let tasks = Path::new(CGROUP2).join("dewar/tasks").join(scene.id());
    ended.assert("FAILED", &[("hog", "F")]);
    assert_oom(&ended, "hog", "RUN", &tasks.join("hog.0"), 16 << 20);
    assert_eq!(ended.run("hog", 0)["verdict"]["oom"]["whole"], true, "{ended}");
}

/// The task's limit is hit by one of its runs; the one beside it has no part in it.
#[test]
fn the_limit_of_a_task_is_named_and_the_innocent_run_is_not_a_victim() {
    let scene = Scene::new();
    let (told, hold) = (scene.gate("told"), scene.gate("hold"));
    let innocent = format!("{}; {}; exit 137", told.tell(), hold.hold());
    let processes = [p("innocent", innocent), p("hog", format!("{}; {}", told.hold(), hog()))];
    let task = task(processes).with("resources", json!({ "ram": "24MiB" })).with("max_failures", 2);
    let mut running = scene.spawn(&task);
    running.wait_for_run("hog", 0, "FAILED");

    hold.open();
    let ended = running.finish();

    let cgroup = Path::new(CGROUP2).join("dewar/tasks").join(scene.id());
    assert_oom(&ended, "hog", "TASK", &cgroup, 24 << 20);
    let verdict = &ended.run("innocent", 0)["verdict"];
    assert_eq!(verdict["reason"], "VERDICT_REASON_EXITED", "{ended}");
    assert_eq!(verdict["oom"], Value::Null, "{ended}");
}

/// attack 30: the task may have a GiB, a cgroup above it 32 MiB; of two tasks one takes too much.
#[test]
fn the_limit_of_an_ancestor_is_named_by_its_path_and_the_innocent_task_is_not_a_victim() {
    let slice = Slice::new("slice-oom", 32 << 20);
    let base = slice.path.join("base");
    let option = ["--cgroup-base", base.to_str().unwrap()];
    let (guilty, innocent) = (Scene::new(), Scene::new());
    let hold = innocent.gate("hold");
    let mut beside =
        innocent.spawn_with(&task([p("a", format!("{}; exit 1", hold.hold()))]), &option);
    beside.wait_until_running("a", 0);

    let task = task([p("hog", hog())]).with("resources", json!({ "ram": "1GiB" }));
    let ended = guilty.run_with(&task, &option);
    hold.open();
    let beside = beside.finish();

    assert_oom(&ended, "hog", "ANCESTOR", &slice.path, 32 << 20);
    let verdict = &beside.run("a", 0)["verdict"];
    assert_eq!(verdict["reason"], "VERDICT_REASON_EXITED", "{beside}");
    assert_eq!(verdict["oom"], Value::Null, "{beside}");
}

/// A cgroup above a base, with a limit.
struct Slice {
    path: std::path::PathBuf,
}

impl Slice {
    fn new(name: &str, limit: u64) -> Self {
        let path = Path::new(CGROUP2).join(name);
        fs::create_dir(&path).unwrap();
        for (above, controller) in [path.parent().unwrap(), &path]
            .into_iter()
            .flat_map(|above| ["memory", "pids"].map(|controller| (above, controller)))
        {
            fs::write(above.join("cgroup.subtree_control"), format!("+{controller}")).unwrap();
        }
        fs::write(path.join("memory.max"), limit.to_string()).unwrap();
        Self { path }
    }
}

impl Drop for Slice {
    fn drop(&mut self) {
        remove_base(&self.path);
    }
}

/// attack 29: without the group kill, a child is killed and the shell goes on. Its run fails for that, or succeeds without it.
#[test]
fn a_child_that_is_killed_alone_is_counted_whatever_becomes_of_its_run() {
    for (then, reason, state) in [
        ("exit 5", "OOM", "FAILED"),
        ("exit 0", "EXITED", "SUCCESS"),
        // A loss is tried again: that is ended from here.
        ("kill -TERM $$", "SIGNALLED", "KILLED"),
    ] {
        let scene = Scene::new();
        let limits = json!({ "ram": "16MiB", "oom_group": false });
        let a = p("a", format!("{HOG}; echo went on; {then}")).with("resources", limits);
        let mut running = scene.spawn(&task([a]));
        let end = running.wait_for(|event| !event["run"]["endTime"].is_null());
        if state == "KILLED" {
            scene.kill(&["--wait", "0s"]);
        }

        let ended = running.finish();

        let verdict = &end["run"]["verdict"];
        assert_eq!(verdict["reason"], format!("VERDICT_REASON_{reason}"), "{then}: {ended}");
        let oom = &verdict["oom"];
        assert_eq!(
            (number(&oom["killed"]), &oom["whole"]),
            (1, &Value::Bool(false)),
            "{then}: {ended}"
        );
        assert_eq!(oom["level"], "LIMIT_LEVEL_RUN", "{then}: {ended}");
        assert_eq!(scene.stdout("a", 0), "went on\n", "{then}");
        assert_eq!(ended.state(), state, "{then}: {ended}");
    }
}

/// attack 29, group kill on: 100 times on each kernel, four at a time, a run takes too much beside a child that takes nothing. Both die.
#[test]
fn of_hundreds_of_runs_that_die_whole_each_is_out_of_memory_and_leaves_nothing() {
    let takes = |pipe: &Path| {
        let waits = format!("(read <> {}) &", pipe.display());
        format!("{waits} exec dd if=/dev/zero of=/dev/null bs=16M count=1")
    };
    hundreds_of_runs(takes, true, "");
}

/// attack 29, group kill off: 100 times on each kernel, four at a time, a child takes too much, and dies alone.
#[test]
fn of_hundreds_of_runs_that_lose_a_child_each_is_out_of_memory_and_goes_on() {
    let takes = |_: &Path| {
        "(exec dd if=/dev/zero of=/dev/null bs=16M count=1 2> dd); echo went on; exit 5".to_owned()
    };
    hundreds_of_runs(takes, false, "went on\n");
}

/// Runs of each process, and processes that take too much. One more only looks like it.
const RUNS: usize = 25;
const PROCESSES: usize = 4;

/// Under that load the runner dies again and again between what a coordinator recorded of a run and what the runner makes of it. Each
/// run is told once, with the same verdict as all others; and none that took little is out of memory.
#[track_caller]
fn hundreds_of_runs(takes: impl Fn(&Path) -> String, whole: bool, said: &str) {
    let _quiet = Quiet::new();
    let scene = Scene::new();
    let pipe = scene.path("pipe");
    nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRWXU).unwrap();
    let limits = json!({ "ram": "6MiB", "oom_group": whole });
    let names: Vec<_> = (0..PROCESSES).map(|number| format!("takes{number}")).collect();
    let taking = names.iter().map(|name| p(name, takes(&pipe)));
    let processes = taking.chain([p("innocent", "exit 137")]).map(|process| {
        let limited = process.with("resources", limits.clone()).with("min_duration", 0);
        limited.max_failures(RUNS as u32)
    });
    // It dies once for each byte.
    let token = scene.file("token", [0; 8]);
    let failpoint = format!("runner::absorb=kill@{}", token.display());
    let mut command = scene.run_command(&task(processes).with("max_failures", 0), &[]);
    let mut told = Vec::new();

    let (ended, deaths) = loop {
        command.env("DEWAR_FAILPOINT", &failpoint);
        let mut ended = scene.follow(command).finish();
        told.append(&mut ended.events);
        if !ended.task.is_null() {
            break (ended, 8 - fs::metadata(&token).map_or(0, |token| token.len()));
        }
        command = scene.command(["resume", scene.id(), "--output", "json", "--root"]);
        command.arg(scene.root());
    };

    assert_eq!(deaths, 8);
    for (name, run) in names.iter().flat_map(|name| (0..RUNS).map(move |run| (name, run))) {
        let verdict = &ended.run(name, run)["verdict"];
        let oom = &verdict["oom"];
        assert_eq!(verdict["reason"], "VERDICT_REASON_OOM", "{name}.{run}: {verdict}");
        assert_eq!(oom["level"], "LIMIT_LEVEL_RUN", "{name}.{run}: {verdict}");
        assert_eq!(oom["whole"], whole, "{name}.{run}: {verdict}");
        // With the group kill, the kernel counts the process that it chose twice where that does not die at once.
        let killed = if whole { 2..=3 } else { 1..=1 };
        assert!(killed.contains(&number(&oom["killed"])), "{name}.{run}: {verdict}");
        assert!(number(&oom["limitHits"]) > 0, "{name}.{run}: {verdict}");
        let peak = number(&oom["peakBytes"]);
        assert!((3 << 20..=6 << 20).contains(&peak), "{name}.{run}: {verdict}");
        assert_eq!(scene.stdout(name, run as u32), said, "{name}.{run}");
        let ends = told.iter().filter(|event| {
            let of = &event["run"];
            event["process"] == name.as_str() && of["run"] == run && of["endTime"].is_string()
        });
        let verdicts: Vec<_> = ends.map(|event| &event["run"]["verdict"]).collect();
        assert!(
            !verdicts.is_empty() && verdicts.iter().all(|told| *told == verdict),
            "{name}.{run}"
        );
    }
    for run in 0..RUNS {
        let verdict = &ended.run("innocent", run)["verdict"];
        assert_eq!(verdict["reason"], "VERDICT_REASON_EXITED", "{run}: {verdict}");
        assert_eq!(verdict["oom"], Value::Null, "{run}: {verdict}");
    }
    assert_eq!(scene.cgroup(), None, "nothing survives");
}

/// The kernel tells the console of each victim, which takes longer than all else. Not while this lives.
struct Quiet(String);

impl Quiet {
    const LEVEL: &str = "/proc/sys/kernel/printk";

    fn new() -> Self {
        let before = fs::read_to_string(Self::LEVEL).unwrap();
        fs::write(Self::LEVEL, "1").unwrap();
        Self(before)
    }
}

impl Drop for Quiet {
    fn drop(&mut self) {
        let _ = fs::write(Self::LEVEL, &self.0);
    }
}

/// attack 29: the runner is killed between the OOM kill and its report; the verdict is the coordinator's, and the same.
#[test]
fn an_oom_kill_is_the_same_verdict_without_a_runner() {
    let scene = Scene::new();
    let (told, hold) = (scene.gate("told"), scene.gate("hold"));
    let cmdline = format!("{}; {}; {}", told.tell(), hold.hold(), hog());
    let mut running =
        scene.spawn(&task([p("hog", cmdline).with("resources", json!({ "ram": "16MiB" }))]));
    let (_, coordinator) = running.wait_until_running("hog", 0);
    told.wait();
    scene.kill_runner(running);
    hold.open();
    coordinator.wait();

    let ended = scene.resume().finish();

    let leaf = Path::new(CGROUP2).join("dewar/tasks").join(scene.id()).join("hog.0");
    assert_oom(&ended, "hog", "RUN", &leaf, 16 << 20);
    ended.assert("FAILED", &[("hog", "F")]);
}

/// attack 31: what looks like an OOM kill and is none.
#[test]
fn a_kill_that_the_kernel_did_not_count_is_no_oom_kill() {
    let exits = p("exits", "exit 137");
    let killed = p("killed", "kill -KILL $$");
    let large = p("large", format!("{HOG}; exit 1")).with("resources", json!({ "ram": "256MiB" }));
    let scene = Scene::new();
    let task = task([exits, killed.max_failures(1), large]).with("max_failures", 0);
    let mut running = scene.spawn(&task);
    let end = |event: &Value| event["process"] == "killed" && !event["run"]["endTime"].is_null();
    let killed = running.wait_for(end);
    let exits = running.wait_for_run("exits", 0, "FAILED");
    let large = running.wait_for_run("large", 0, "FAILED");
    scene.dewar(&["kill", scene.id(), "--wait", "0s"]);
    running.finish();

    for (run, reason) in [
        (&exits, "VERDICT_REASON_EXITED"),
        (&killed["run"], "VERDICT_REASON_SIGNALLED"),
        (&large, "VERDICT_REASON_EXITED"),
    ] {
        assert_eq!(run["verdict"]["reason"], reason, "{run}");
        assert_eq!(run["verdict"]["oom"], Value::Null, "{run}");
    }
}

/// attack 32: no limit was hit, and the kernel killed all the same: the machine has no memory left, or somebody asked it to think so.
#[test]
fn a_run_that_the_machine_has_no_memory_for_is_told_so_without_a_limit() {
    let scene = Scene::new();
    let told = scene.gate("told");
    // It has all of its memory when it writes the first of it.
    let holds = "dd if=/dev/zero bs=128M count=1 2>/dev/null | { head -c 1 > /dev/null";
    let large = format!("{holds}; {}; sleep 600; }}", told.tell());
    let mut running = scene.spawn(&task([p("large", large), p("small", "sleep 600")]));
    running.wait_until_running("small", 0);
    told.wait();

    fs::write("/proc/sysrq-trigger", "f").unwrap();

    let run = running.wait_for_run("large", 0, "FAILED");
    assert_eq!(run["verdict"]["reason"], "VERDICT_REASON_OOM", "{run}");
    assert_eq!(run["verdict"]["oom"]["level"], "LIMIT_LEVEL_HOST", "{run}");
    assert_eq!(run["verdict"]["oom"]["limitBytes"], Value::Null, "{run}");
    running.finish().assert("FAILED", &[("large", "F"), ("small", "K")]);
}

/// attack 31: above `memory.high` a run is slowed down, and not killed; and what dewar itself kills it says so.
#[test]
fn a_throttled_run_that_dewar_kills_was_killed_by_dewar() {
    let scene = Scene::new();
    let (told, hold) = (scene.gate("told"), scene.gate("hold"));
    let cmdline = format!(
        "trap '' TERM; {}; {}; while :; do x=$x$(head -c 256K /dev/zero | tr '\\0' x); {}; done",
        told.tell(),
        hold.hold(),
        told.tell()
    );
    let running = scene.spawn(&task([p("a", cmdline)]).with("finalization_wait", 0.2));
    told.wait();
    fs::write(scene.leaf("a.0").join("memory.high"), (6 << 20).to_string()).unwrap();
    hold.open();
    told.wait();

    scene.kill(&["--wait", "0.2s"]);

    let ended = running.finish();
    let verdict = &ended.run("a", 0)["verdict"];
    assert_eq!(verdict["reason"], "VERDICT_REASON_KILLED", "{ended}");
    assert_eq!(verdict["stage"], "KILL_STAGE_DEADLINE", "{ended}");
    assert_eq!(verdict["oom"], Value::Null, "{ended}");
}

/// attack 32: our own part of the base runs out of memory; the task goes on, and its end is told truly or as unknown.
#[test]
fn an_oom_kill_of_the_runner_loses_nothing_of_the_task() {
    let scene = Scene::new();
    let (told, hold) = (scene.gate("told"), scene.gate("hold"));
    let first = format!("{}; {}", told.tell(), hold.hold());
    let a = p("a", format!("[ $DEWAR_RUN -gt 0 ] || {{ {first}; }}; exit 7"));
    let mut running = scene.spawn(&task([a]));
    running.wait_until_running("a", 0);
    told.wait();
    let runner = scene.runner();
    let adjusted = fs::read_to_string(format!("/proc/{}/oom_score_adj", runner.number())).unwrap();
    let supervisor = Path::new(CGROUP2).join("dewar/supervisor");

    // Less than it has: the kernel finds nothing to take back, and kills.
    fs::write(supervisor.join("memory.max"), "0").unwrap();
    runner.wait();
    fs::write(supervisor.join("memory.max"), "max").unwrap();
    hold.open();
    running.finish();
    let ended = scene.resume().finish();

    assert_eq!(adjusted.trim(), "0");
    let runs = ended.runs("a");
    match ended.run("a", 0)["verdict"]["reason"].as_str().unwrap() {
        "VERDICT_REASON_EXITED" => assert_eq!(ended.run("a", 0)["exitCode"], 7, "{ended}"),
        "VERDICT_REASON_COORDINATOR_LOST" => assert!(runs.starts_with('L'), "{ended}"),
        other => panic!("{other}: {ended}"),
    }
}
