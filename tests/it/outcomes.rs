//! Outcomes O1 to O42: what each task ends as, and which runs its processes have.

use std::fs;

use serde_json::json;

use crate::support::{Finished, Gate, Process, Scene, Task, p, seconds_between, task};

/// Runs a task in a scene of its own, and asserts how it ends.
#[track_caller]
fn ends(task: &Task, state: &str, runs: &[(&str, &str)]) -> Finished {
    let ended = Scene::new().run(task);
    ended.assert(state, runs);
    ended
}

/// A command that fails until its `n`th try.
fn passes_at(n: u32) -> String {
    format!("echo x >> tries; [ $(wc -l < tries) = {n} ]")
}

/// A process that ignores SIGTERM, and tells when it does.
fn deaf(name: &str, up: &Gate) -> Process {
    p(name, format!("trap '' TERM; {}; while :; do sleep 60; done", up.tell()))
}

/// Asserts that each process ended before the next began.
#[track_caller]
fn one_after_the_other(ended: &Finished, names: &[&str]) {
    for pair in names.windows(2) {
        let (end, start) = (&ended.run(pair[0], 0)["endTime"], &ended.run(pair[1], 0)["startTime"]);
        assert!(seconds_between(end, start) >= 0.0, "{pair:?}\n{ended}");
    }
}

#[test]
fn o01_predecessors_succeed_first() {
    let names = ["t1", "t2", "t3", "t4", "t5", "t6"];
    let mut graph = task(names.map(|name| p(name, "true")));
    for (before, after) in [(1, 3), (1, 4), (2, 3), (2, 4), (3, 5), (3, 6), (4, 5), (4, 6)] {
        graph = graph.order([format!("t{before}"), format!("t{after}")]);
    }

    let ended = ends(&graph, "SUCCESS", &names.map(|name| (name, "S")));

    for chain in [["t1", "t3", "t5"], ["t2", "t4", "t6"], ["t1", "t4", "t5"], ["t2", "t3", "t6"]] {
        one_after_the_other(&ended, &chain);
    }
}

#[test]
fn o02_a_process_is_retried_until_it_succeeds() {
    for (tries, runs) in [(1, "S"), (2, "FS"), (3, "FFS")] {
        let process = p("a", passes_at(tries)).max_failures(5);

        ends(&task([process]), "SUCCESS", &[("a", runs)]);
    }
}

#[test]
fn o03_who_waits_for_a_failed_process_never_runs() {
    let chain = task([p("a", "true"), p("b", "exit 1"), p("c", "true")]).order(["a", "b", "c"]);

    let ended =
        ends(&chain.with("max_failures", 2), "FAILED", &[("a", "S"), ("b", "F"), ("c", "")]);

    assert!(ended.task["detail"].as_str().unwrap().contains("deadlock"), "{}", ended.task);
}

#[test]
fn o04_without_a_limit_no_failure_fails_the_task() {
    let bad = (0..3).map(|n| p(&format!("bad{n}"), "exit 1").max_failures(2));
    let good = (0..3).map(|n| p(&format!("good{n}"), "true"));

    ends(
        &task(bad.chain(good)).with("max_failures", 0),
        "SUCCESS",
        &[("bad0", "FF"), ("bad1", "FF"), ("bad2", "FF"), ("good0", "S"), ("good2", "S")],
    );
}

#[test]
fn o05_a_failed_process_ends_the_others() {
    let scene = Scene::new();
    let up = scene.gate("up");
    let processes = [p("a", up.hold() + "; exit 1"), p("b", up.tell() + "; exec sleep 60")];

    let ended = scene.run(&task(processes));

    ended.assert("FAILED", &[("a", "F"), ("b", "K")]);
    assert_eq!(ended.run("b", 0)["signal"], "SIGTERM");
    assert_eq!(ended.run("b", 0)["verdict"]["stage"], "KILL_STAGE_TERMINATE");
}

#[test]
fn o06_an_ephemeral_ends_with_the_last_regular_process() {
    let processes = [p("main", "sleep 0.2"), p("side", "sleep 10").ephemeral()];

    ends(&task(processes), "SUCCESS", &[("main", "S"), ("side", "K")]);
}

#[test]
fn o07_max_concurrency_one_is_one_at_a_time() {
    let names = ["a", "b", "c"];
    let all = task(names.map(|name| p(name, "sleep 0.2"))).with("max_concurrency", 1);

    let ended = ends(&all, "SUCCESS", &names.map(|name| (name, "S")));

    one_after_the_other(&ended, &names);
    for pair in names.windows(2) {
        let start = |name| &ended.run(name, 0)["startTime"];
        let apart = seconds_between(start(pair[0]), start(pair[1]));
        assert!(apart > 0.2, "{pair:?} {apart} s apart");
    }
}

#[test]
fn o08_finalizers_run_after_the_rest_in_their_order() {
    let processes = [p("f2", "true").finalizer(), p("f1", "true").finalizer(), p("main", "true")];

    let ended = ends(
        &task(processes).order(["f1", "f2"]),
        "SUCCESS",
        &[("main", "S"), ("f1", "S"), ("f2", "S")],
    );

    one_after_the_other(&ended, &["main", "f1", "f2"]);
}

#[test]
fn o09_a_failed_finalizer_does_not_fail_the_task() {
    let processes = [p("main", "true"), p("f1", "exit 1").finalizer(), p("f2", "true").finalizer()];

    ends(
        &task(processes).order(["f1", "f2"]),
        "SUCCESS",
        &[("main", "S"), ("f1", "F"), ("f2", "")],
    );
}

#[test]
fn o10_one_finalizer_fails_and_the_other_runs() {
    let processes = [
        p("main", "true"),
        p("f1", "exit 1").max_failures(2).finalizer(),
        p("f2", "true").finalizer(),
    ];

    ends(&task(processes), "SUCCESS", &[("f1", "FF"), ("f2", "S")]);
}

#[test]
fn o11_a_finalizer_does_not_heal_a_failed_task() {
    let processes = [p("main", "exit 1"), p("last", "true").finalizer()];

    ends(&task(processes), "FAILED", &[("main", "F"), ("last", "S")]);
}

/// Tries to end its first run by itself; the second succeeds.
fn once(up: &Gate) -> Process {
    p("a", format!("[ -e tried ] && exit 0; touch tried; {}; exec sleep 60", up.tell()))
}

#[test]
fn o12_a_killed_run_is_retried() {
    let scene = Scene::new();
    let up = scene.gate("up");
    let mut running = scene.spawn(&task([once(&up)]));
    up.wait();

    running.wait_until_running("a", 0).0.kill();

    let ended = running.finish();
    ended.assert("SUCCESS", &[("a", "KS")]);
    assert_eq!(ended.run("a", 0)["signal"], "SIGKILL");
}

#[test]
fn o13_the_run_of_a_killed_coordinator_is_lost_and_retried() {
    let scene = Scene::new();
    let up = scene.gate("up");
    let mut running = scene.spawn(&task([once(&up)]));
    up.wait();

    running.wait_until_running("a", 0).1.kill();

    running.finish().assert("SUCCESS", &[("a", "LS")]);
}

#[test]
fn o14_who_ignores_sigterm_is_killed_at_the_deadline() {
    let scene = Scene::new();
    let up = scene.gate("up");
    let mut running = scene.spawn(&task([deaf("a", &up)]));
    up.wait();

    scene.kill(&["--wait", "3s"]);

    let asked = running.wait_for(|event| event.get("kill").is_some());
    let ended = running.finish();
    ended.assert("KILLED", &[("a", "K")]);
    let after = seconds_between(&asked["time"], &ended.run("a", 0)["endTime"]);
    assert!((3.0..6.0).contains(&after), "killed after {after} s");
    assert_eq!(ended.run("a", 0)["verdict"]["reason"], "VERDICT_REASON_KILLED");
}

#[test]
fn o15_a_kill_finds_runner_coordinator_and_pid_dead() {
    let scene = Scene::new();
    let mut running = scene.spawn(&task([p("a", "exec sleep 60")]));
    let (pid, coordinator) = running.wait_until_running("a", 0);
    scene.kill_runner(running);
    coordinator.kill();
    pid.kill();

    scene.kill(&["--wait", "0s"]);

    scene.resume().finish().assert("KILLED", &[("a", "L")]);
}

#[test]
fn o16_one_run_is_lost_the_next_killed_the_third_lives() {
    let scene = Scene::new();
    let mut running = scene.spawn(&task([p("a", "exec sleep 60")]));
    running.wait_until_running("a", 0).1.kill();
    running.wait_until_running("a", 1).0.kill();

    running.wait_until_running("a", 2);

    assert_eq!(scene.status()["state"], "TASK_STATE_ACTIVE");
    scene.kill(&["--wait", "0s"]);
    running.finish().assert("KILLED", &[("a", "LKK")]);
}

#[test]
fn o17_a_background_child_dies_with_its_run() {
    let scene = Scene::new();
    let processes = [
        p("a", "sleep 60 & echo $! > pid"),
        p("b", "read -r pid < pid; stat=$(cat /proc/$pid/stat) || exit 0; [[ $stat == *') Z '* ]]"),
    ];

    let ended = scene.run(&task(processes).order(["a", "b"]));

    ended.assert("SUCCESS", &[("a", "S"), ("b", "S")]);
}

#[test]
fn o18_a_killed_task_runs_its_finalizers() {
    let polite = "trap 'kill $!; exit 0' TERM; sleep 60 & ";
    for (command, runs) in [("exec sleep 60", "K"), (polite, "S")] {
        let scene = Scene::new();
        let up = scene.gate("up");
        let command = match runs {
            "S" => format!("{command}{}; wait", up.tell()),
            _ => format!("{}; {command}", up.tell()),
        };
        let last = p("last", "true").finalizer();
        let running = scene.spawn(&task([p("main", command), last]));
        up.wait();

        scene.kill(&[]);

        let ended = running.finish();
        ended.assert("KILLED", &[("main", runs), ("last", "S")]);
        if runs == "K" {
            assert_eq!(ended.run("main", 0)["signal"], "SIGTERM");
        }
    }
}

#[test]
fn o19_no_time_means_no_finalizer() {
    for (how, state) in [(&["--wait", "0s"][..], "KILLED"), (&["--lost"][..], "LOST")] {
        let scene = Scene::new();
        let last = p("last", "true").finalizer();
        let mut running = scene.spawn(&task([p("main", "exec sleep 60"), last]));
        running.wait_until_running("main", 0);

        scene.kill(how);

        running.finish().assert(state, &[("main", "K"), ("last", "")]);
    }
}

#[test]
fn o20_a_daemon_runs_until_it_fails() {
    let command = "echo x >> tries; [ $(wc -l < tries) != 3 ]";

    ends(&task([p("a", command).daemon()]), "FAILED", &[("a", "SSF")]);
}

#[test]
fn o21_an_ephemeral_daemon_ends_with_the_task() {
    let scene = Scene::new();
    let again = scene.gate("again");
    let side = format!("[ $DEWAR_RUN = 0 ] || {}", again.tell());
    let processes = [p("main", again.hold()), p("side", side).daemon().ephemeral()];

    let ended = scene.run(&task(processes));

    ended.assert("SUCCESS", &[("main", "S")]);
    assert!(ended.runs("side").starts_with('S'), "{ended}");
}

#[test]
fn o22_without_regular_processes_a_task_is_a_success() {
    ends(&task([p("a", "true").ephemeral()]), "SUCCESS", &[("a", "")]);

    let ended = ends(&task([]).with("name", "none"), "SUCCESS", &[]);
    assert_eq!(ended.task["processes"], json!([]));
}

#[test]
fn o23_max_failures_zero_retries_for_ever() {
    ends(&task([p("a", passes_at(3)).max_failures(0)]), "SUCCESS", &[("a", "FFS")]);
}

#[test]
fn o24_the_successor_of_a_failed_ephemeral_runs() {
    let scene = Scene::new();
    let ran = scene.gate("ran");
    let processes = [
        p("main", ran.hold()),
        p("e1", "exit 1").ephemeral(),
        p("e2", ran.tell() + "; exec sleep 60").ephemeral(),
    ];

    let ended = scene.run(&task(processes).order(["e1", "e2"]));

    ended.assert("SUCCESS", &[("main", "S"), ("e1", "F"), ("e2", "K")]);
}

#[test]
fn o25_one_failure_of_two_allowed_is_a_success() {
    let processes = task([p("a", "exit 1"), p("b", "true")]).with("max_failures", 2);

    ends(&processes, "SUCCESS", &[("a", "F"), ("b", "S")]);
}

#[test]
fn o26_no_time_to_finalize_means_no_finalizer() {
    let processes = [p("main", "true"), p("last", "true").finalizer()];

    ends(&task(processes).with("finalization_wait", 0), "SUCCESS", &[("main", "S"), ("last", "")]);
}

#[test]
fn o27_a_finalizer_is_killed_at_the_deadline() {
    let processes = [p("main", "true"), p("last", "sleep 99").finalizer()];

    let ended = ends(
        &task(processes).with("finalization_wait", 3),
        "SUCCESS",
        &[("main", "S"), ("last", "K")],
    );

    let last = ended.run("last", 0);
    assert_eq!(last["verdict"]["stage"], "KILL_STAGE_DEADLINE");
    let after = seconds_between(ended.entered("CLEANING"), &last["endTime"]);
    assert!((3.0..6.0).contains(&after), "killed after {after} s");
}

#[test]
fn o28_a_deaf_process_eats_the_time_of_the_finalizers() {
    let scene = Scene::new();
    let up = scene.gate("up");
    let processes = [p("a", up.hold() + "; exit 1"), deaf("b", &up), p("last", "true").finalizer()];

    let ended = scene.run(&task(processes).with("finalization_wait", 0.5));

    ended.assert("FAILED", &[("a", "F"), ("b", "K"), ("last", "")]);
}

#[test]
fn o29_a_hundred_losses_in_a_row_are_a_failure() {
    let process = p("a", "kill -9 $$").with("min_duration", 0);

    ends(&task([process]), "FAILED", &[("a", &"K".repeat(100))]);
}

#[test]
fn o30_a_run_that_succeeds_without_a_runner_has_succeeded() {
    let scene = Scene::new();
    let gate = scene.gate("gate");
    let mut running = scene.spawn(&task([p("a", gate.hold())]));
    let (_, coordinator) = running.wait_until_running("a", 0);
    scene.kill_runner(running);
    gate.open();
    coordinator.wait();

    let ended = scene.resume().finish();

    ended.assert("SUCCESS", &[("a", "S")]);
}

#[test]
fn o31_a_kill_is_not_forgotten_with_the_runner() {
    let scene = Scene::new();
    let up = scene.gate("up");
    let mut running = scene.spawn(&task([deaf("a", &up)]));
    up.wait();
    scene.kill(&["--wait", "1s"]);
    running.wait_for_state("CLEANING");
    scene.kill_runner(running);

    scene.resume().finish().assert("KILLED", &[("a", "K")]);
}

#[test]
fn o32_what_did_not_begin_before_the_end_never_does() {
    let processes = task([p("a", "exit 1"), p("b", "true")]).with("max_concurrency", 1);

    ends(&processes, "FAILED", &[("a", "F"), ("b", "")]);
}

#[test]
fn o33_an_ephemeral_daemon_does_not_hide_a_deadlock() {
    let scene = Scene::new();
    let up = scene.gate("up");
    let processes = [
        p("a", up.hold() + "; exit 1"),
        p("b", "true"),
        p("e", up.tell() + "; exec sleep 60").daemon().ephemeral(),
    ];

    let ended = scene.run(&task(processes).order(["a", "b"]).with("max_failures", 0));

    ended.assert("FAILED", &[("a", "F"), ("b", ""), ("e", "K")]);
}

#[test]
fn o34_a_loss_between_two_failures_is_none() {
    let scene = Scene::new();
    let up = scene.gate("up");
    let command = format!(
        "echo x >> tries; [ $(wc -l < tries) = 2 ] || exit 1; {}; exec sleep 60",
        up.tell()
    );
    let mut running = scene.spawn(&task([p("a", command).max_failures(2)]));
    up.wait();

    running.wait_until_running("a", 1).1.kill();

    running.finish().assert("FAILED", &[("a", "FLF")]);
}

/// As a command line can show it: a failure, 99 losses, a failure, 99 losses, a success.
#[test]
fn o35_losses_are_counted_in_a_row() {
    let command = "echo x >> tries; case $(wc -l < tries) in 1|101) exit 1;; 201) exit 0;; \
                   *) kill -9 $$;; esac";
    let process = p("a", command).max_failures(100).with("min_duration", 0);

    let losses = "K".repeat(99);
    ends(&task([process]), "SUCCESS", &[("a", &format!("F{losses}F{losses}S"))]);
}

#[test]
fn o36_a_daemon_waits_min_duration_and_fails_by_its_limit() {
    let command = "echo x >> tries; [ $(wc -l < tries) = 1 ]";
    let process = p("a", command).daemon().max_failures(2).with("min_duration", 0.4);

    let ended = ends(&task([process]), "FAILED", &[("a", "SFF")]);

    for run in 1..3 {
        let end = &ended.run("a", run - 1)["endTime"];
        let pause = seconds_between(end, &ended.run("a", run)["startTime"]);
        assert!(pause >= 0.4, "pause of {pause} s before run {run}");
    }
}

/// The old one was read bytewise; a chunk that is written at once is kept together here, so each line is one.
#[test]
fn o37_rotation_keeps_so_many_backups() {
    let scene = Scene::new();
    let rotate = json!({"mode": "rotate", "rotate": {"log_size": 70, "backups": 2}});
    // Each line is a chunk of its own once the one before it was taken.
    let command = "seq -f =%g= 1001 1031";

    let ended = scene.run(&task([p("a", command).with("logger", rotate)]));

    ended.assert("SUCCESS", &[("a", "S")]);
    let lines = |name: &str| {
        let text = fs::read_to_string(scene.logs("a", 0).join(name)).unwrap();
        text.lines().map(str::to_owned).collect::<Vec<_>>()
    };
    let expect = |numbers: std::ops::RangeInclusive<u32>| {
        numbers.map(|n| format!("={n}=")).collect::<Vec<_>>()
    };
    assert_eq!(lines("stdout"), expect(1031..=1031));
    assert_eq!(lines("stdout.1"), expect(1021..=1030));
    assert_eq!(lines("stdout.2"), expect(1011..=1020));
    assert!(!scene.logs("a", 0).join("stdout.3").exists());
}

#[test]
fn o38_a_flood_leaves_the_live_log_and_five_backups() {
    let scene = Scene::new();
    let process = p("a", "head -c 700M /dev/zero").with("logger", json!({"mode": "rotate"}));

    let ended = scene.run(&task([process]));

    ended.assert("SUCCESS", &[("a", "S")]);
    let mut files: Vec<(String, u64)> = fs::read_dir(scene.logs("a", 0))
        .unwrap()
        .map(|entry| entry.unwrap())
        .map(|entry| (entry.file_name().into_string().unwrap(), entry.metadata().unwrap().len()))
        .collect();
    files.sort();
    let names: Vec<&str> = files.iter().map(|(name, _)| name.as_str()).collect();
    let backups = ["stdout.1", "stdout.2", "stdout.3", "stdout.4", "stdout.5"];
    assert_eq!(names, [&["stderr", "stdout"][..], &backups].concat());
    assert_eq!(files[0].1, 0);
    for (name, size) in &files[2..] {
        let expected = 100 << 20..=(100 << 20) + (64 << 10);
        assert!(expected.contains(size), "{name} has {size} bytes");
    }
}

#[test]
fn o39_none_and_console_leave_no_files() {
    for destination in ["none", "console"] {
        let scene = Scene::new();
        let process = p("a", "echo x").with("logger", json!({"destination": destination}));

        scene.run(&task([process])).assert("SUCCESS", &[("a", "S")]);

        for stream in ["stdout", "stderr"] {
            assert!(!scene.logs("a", 0).join(stream).exists(), "{destination}: {stream}");
        }
    }
}

#[test]
fn o40_a_later_process_sees_the_profile_of_an_earlier_one() {
    let scene = Scene::new();
    let processes =
        [p("a", "echo export GREETING=hello > .thermos_profile"), p("b", "echo $GREETING")];

    scene.run(&task(processes).order(["a", "b"])).assert("SUCCESS", &[]);

    assert_eq!(scene.stdout("b", 0), "hello\n");
}

#[test]
fn o41_a_failed_end_of_a_chain_within_the_limit_is_a_success() {
    let processes = [p("a", "true"), p("b", "exit 1").max_failures(2), p("c", "true").finalizer()];

    ends(
        &task(processes).order(["a", "b"]).with("max_failures", 2),
        "SUCCESS",
        &[("a", "S"), ("b", "FF"), ("c", "S")],
    );
}

#[test]
fn o42_impossible_orders_are_refused() {
    let [a, b] = [p("a", "touch a"), p("b", "touch b")];
    for (what, processes) in [
        ("after a daemon", [a.clone().daemon(), b.clone()]),
        ("plain after ephemeral", [a.clone().ephemeral(), b.clone()]),
        ("regular with final", [a.clone(), b.clone().finalizer()]),
    ] {
        refused(what, &task(processes).order(["a", "b"]));
    }
    let both = task([a, b]);
    refused("cycle", &both.clone().order(["a", "b"]).order(["b", "a"]));
    refused("self edge", &both.order(["a", "a"]));
}

#[track_caller]
fn refused(what: &str, task: &Task) {
    let scene = Scene::new();

    let refused = scene.run(task);

    assert_eq!(refused.status, Some(2), "{what}: {refused}");
    assert!(refused.stderr.contains("constraints["), "{what}: {refused}");
    assert!(!scene.root().exists() && !scene.sandbox().exists(), "{what}: something was made");
}
