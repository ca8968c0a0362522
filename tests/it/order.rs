//! Order, limits, retries: S1 to S10.

use serde_json::Value;

use crate::support::{Scene, p, seconds, seconds_between, task};

/// The contract: an event for each transition, as it happens, and as the last line the task.
#[test]
fn every_transition_is_an_event_and_the_task_is_the_last_line() {
    let scene = Scene::new();

    let ended = scene.run(&task([p("a", "exit 3"), p("f", "true").finalizer()]));

    ended.assert("FAILED", &[("a", "F"), ("f", "S")]);
    let told: Vec<String> = ended
        .events
        .iter()
        .map(|event| match event["taskState"].as_str() {
            Some(state) => state.strip_prefix("TASK_STATE_").unwrap().to_owned(),
            None => {
                let state = event["run"]["state"].as_str().unwrap();
                let state = state.strip_prefix("PROCESS_STATE_").unwrap();
                format!("{}.{} {state}", event["process"].as_str().unwrap(), event["run"]["run"])
            }
        })
        .collect();
    let run = |name: &str, end: &str| {
        ["WAITING", "FORKED", "RUNNING", end].map(|state| format!("{name}.0 {state}"))
    };
    let task = |state: &str| vec![state.to_owned()];
    let all = [
        task("ACTIVE"),
        run("a", "FAILED").to_vec(),
        task("CLEANING"),
        task("FINALIZING"),
        run("f", "SUCCESS").to_vec(),
        task("FAILED"),
    ];
    assert_eq!(told, all.concat());
    let cursors: Vec<u64> = ended
        .events
        .iter()
        .map(|event| event["cursor"].as_str().unwrap().parse().unwrap())
        .collect();
    assert!(
        cursors.is_sorted() && cursors.windows(2).all(|pair| pair[0] != pair[1]),
        "{cursors:?}"
    );
    assert_eq!(scene.status(), ended.task);

    let run = ended.run("a", 0);
    for present in ["coordinatorPid", "pid", "startTime", "endTime", "verdict", "usage"] {
        assert!(run.get(present).is_some(), "{present}: {run}");
    }
    assert_eq!(run.get("signal"), None, "what does not apply is absent");
    assert_eq!(ended.run("f", 0)["exitCode"], 0, "a zero that is known is there");
    assert_eq!(ended.task.get("runnerPid"), None, "no runner lives");
    assert!(run["usage"]["cpuTime"].as_str().unwrap().ends_with('s'), "{run}");
}

/// S1: each process runs once, after all that it waits for.
#[test]
fn a_task_is_its_dag() {
    let scene = Scene::new();
    let names: Vec<String> = ('a'..='z').map(String::from).collect();
    let write = |name: &String| p(name, format!("printf {name} >> order"));
    // Three chains that overlap: a to j, h to r, q to z.
    let task = task(names.iter().rev().map(write))
        .order(names[..10].to_vec())
        .order(names[7..18].to_vec())
        .order(names[16..].to_vec());

    let ended = scene.run(&task);

    let once: Vec<(&str, &str)> = names.iter().map(|name| (name.as_str(), "S")).collect();
    ended.assert("SUCCESS", &once);
    assert_eq!(scene.read("order"), "abcdefghijklmnopqrstuvwxyz");
}

/// S2
#[test]
fn independent_processes_run_side_by_side() {
    let names: Vec<String> = (0..10).map(|n| format!("p{n}")).collect();
    // Each waits for all.
    let command = "echo >> here; while [ $(wc -l < here) -lt 10 ]; do sleep 0.02; done";

    let ended = Scene::new().run(&task(names.iter().map(|name| p(name, command))));

    let all: Vec<(&str, &str)> = names.iter().map(|name| (name.as_str(), "S")).collect();
    ended.assert("SUCCESS", &all);
    let times = |field: &str| -> Vec<f64> {
        names.iter().map(|name| seconds(&ended.run(name, 0)[field])).collect()
    };
    let last_start = times("startTime").into_iter().fold(f64::MIN, f64::max);
    let first_end = times("endTime").into_iter().fold(f64::MAX, f64::min);
    assert!(last_start < first_end, "{ended}");
}

/// S3: never more than three from FORKED to the end, and three whenever three could run.
#[test]
fn max_concurrency_holds_at_every_instant() {
    const ALL: usize = 50;
    let processes = (0..ALL).map(|n| p(&format!("p{n}"), "sleep 0.1"));

    let ended = Scene::new().run(&task(processes).with("max_concurrency", 3));

    ended.assert("SUCCESS", &[]);
    let (mut opened, mut live) = (0, 0);
    let mut last_end = f64::INFINITY;
    let mut events = ended.run_events().peekable();
    while let Some((_, event, state)) = events.next() {
        let time = seconds(&event["time"]);
        match state {
            "WAITING" => {
                (opened, live) = (opened + 1, live + 1);
                assert!(live <= 3, "{live} at once\n{ended}");
                assert!(time - last_end < 1.0, "{} s for nothing\n{ended}", time - last_end);
                // A turn that begins a run begins as many as may run.
                let is_last = events.peek().is_some_and(|(.., next)| *next != "WAITING");
                assert!(!is_last || live == 3 || opened == ALL, "{live} at once\n{ended}");
            }
            "SUCCESS" => (live, last_end) = (live - 1, time),
            _ => {}
        }
    }
    assert_eq!((live, opened), (0, ALL), "{ended}");
}

/// S4
#[test]
fn equals_start_in_declared_order() {
    let names = ["e", "a", "d", "b", "c"];

    let ended = Scene::new().run(&task(names.map(|n| p(n, "true"))).with("max_concurrency", 1));

    ended.assert("SUCCESS", &[]);
    assert_eq!(ended.started(), names);
}

/// S5
#[test]
fn a_retry_is_a_new_run_with_its_own_number_logs_and_state() {
    let scene = Scene::new();
    let command = "echo x >> tries; wc -l < tries; echo bad >&2; exit 3";

    let ended = scene.run(&task([p("a", command).max_failures(3)]));

    ended.assert("FAILED", &[("a", "FFF")]);
    for run in 0..3 {
        let view = ended.run("a", run);
        assert_eq!(view["run"], run);
        assert_eq!(view["exitCode"], 3);
        assert_eq!(view["verdict"]["reason"], "VERDICT_REASON_EXITED");
        let run = u32::try_from(run).unwrap();
        assert_eq!(scene.stdout("a", run), format!("{}\n", run + 1));
        assert_eq!(std::fs::read(scene.logs("a", run).join("stderr")).unwrap(), b"bad\n");
    }
    assert_eq!(ended.process_state("a"), "FAILED");
}

/// S6
#[test]
fn min_duration_counts_from_the_end_of_the_last_run() {
    let command = "echo x >> tries; [ $(wc -l < tries) = 3 ]";
    let process = p("a", command).max_failures(3).with("min_duration", 2);

    let ended = Scene::new().run(&task([process]));

    ended.assert("SUCCESS", &[("a", "FFS")]);
    for run in 1..3 {
        let ran = ended.run("a", run - 1);
        let pause = seconds_between(&ran["endTime"], &ended.run("a", run)["startTime"]);
        assert!((2.0..4.0).contains(&pause), "pause of {pause} s before run {run}");
    }
}

/// S7: 0 is no limit, and the limit of losses in a row is none of failures.
#[test]
fn zero_means_without_limit() {
    let command = "echo x >> tries; [ $(wc -l < tries) = 120 ]";
    let process = p("a", command).max_failures(0).with("min_duration", 0);

    let ended = Scene::new().run(&task([process]));

    ended.assert("SUCCESS", &[("a", &("F".repeat(119) + "S"))]);
}

/// S8
#[test]
fn losses_in_a_row_are_bounded() {
    let ended = Scene::new().run(&task([p("a", "kill -KILL $$").with("min_duration", 0)]));

    ended.assert("FAILED", &[("a", &"K".repeat(100))]);
    assert_eq!(ended.process_state("a"), "FAILED");
    let why = ended.run("a", 99)["verdict"]["detail"].as_str().unwrap_or_default();
    assert!(why.contains("100 losses in a row"), "{why:?}\n{}", ended.task);
}

/// S9: T21
#[test]
fn a_crash_counts_as_a_failure() {
    let ended = Scene::new().run(&task([p("a", "kill -SEGV $$").max_failures(2)]));

    ended.assert("FAILED", &[("a", "FF")]);
    for run in 0..2 {
        assert_eq!(ended.run("a", run)["signal"], "SIGSEGV");
        assert_eq!(ended.run("a", run).get("exitCode"), None);
    }
}

/// S9: T21
#[test]
fn a_kill_from_outside_does_not_count_as_a_failure() {
    let scene = Scene::new();
    let ran = scene.gate("ran");
    let command = format!("[ -e ran ] && exit 0; touch ran; {}; exec sleep 60", ran.tell());
    let mut running = scene.spawn(&task([p("a", command).max_failures(1)]));
    ran.wait();

    running.wait_until_running("a", 0).0.kill();

    let ended = running.finish();
    ended.assert("SUCCESS", &[("a", "KS")]);
    assert_eq!(ended.run("a", 0)["signal"], "SIGKILL");
    assert_eq!(ended.run("a", 0)["verdict"]["reason"], "VERDICT_REASON_SIGNALLED");
}

/// S10: 40 layers of 50 processes, each process after all of the layer before: 97,500 edges.
#[test]
fn a_huge_dag_is_ordinary() {
    const LAYERS: usize = 40;
    const WIDTH: usize = 50;
    let name = |layer: usize, n: usize| format!("p{layer}-{n}");
    let all = (0..LAYERS).flat_map(|layer| (0..WIDTH).map(move |n| name(layer, n)));
    let mut task = task(all.map(|name| p(&name, ":")));
    // Chains of every slope through every start: each pair of neighbours is in one of them.
    for start in 0..WIDTH {
        for slope in 0..WIDTH {
            task =
                task.order((0..LAYERS).map(|layer| name(layer, (start + layer * slope) % WIDTH)));
        }
    }

    let ended = Scene::of_many_files().run(&task);

    ended.assert("SUCCESS", &[]);
    let runs = ended.task["processes"].as_array().unwrap().iter().map(|process| {
        let runs = process["runs"].as_array().unwrap();
        assert_eq!(runs.len(), 1, "{process}");
        &runs[0]
    });
    let runs: Vec<&Value> = runs.collect();
    assert_eq!(runs.len(), LAYERS * WIDTH);
    for layer in 1..LAYERS {
        let (before, after) = (&runs[(layer - 1) * WIDTH..layer * WIDTH], &runs[layer * WIDTH..]);
        let ended = before.iter().map(|run| seconds(&run["endTime"])).fold(f64::MIN, f64::max);
        let begun =
            after[..WIDTH].iter().map(|run| seconds(&run["startTime"])).fold(f64::MAX, f64::min);
        assert!(ended <= begun, "layer {layer} began before the one before it had ended");
    }
}
