//! Daemons, ephemerals, finalizers, the end: S11 to S20; attacks 23 and 24.

use std::fs;

use nix::sys::signal::Signal;

use crate::support::{Finished, Scene, is_alive, p, seconds_between, task, wait_until};

/// S11
#[test]
fn a_daemon_runs_again_after_success_until_it_is_killed() {
    let scene = Scene::new();
    let command = "[ $DEWAR_RUN -lt 3 ] || exec sleep 60; sleep 0.2";
    let mut running = scene.spawn(&task([p("a", command).daemon()]));
    running.wait_until_running("a", 3);

    scene.kill(&[]);

    running.finish().assert("KILLED", &[("a", "SSSK")]);
}

/// Runs a task whose cgroups somebody removes before its run is born in them, as systemd does with what is empty of a unit whose main
/// process has ended.
fn run_with_removed(scene: &Scene, remove: impl FnOnce()) -> Finished {
    let task = task([p("a", "echo ran >> ran")]);
    let (following, coordinator) = scene.spawn_stopped(&task, "coordinator::output");
    remove();
    coordinator.signal(Signal::SIGCONT);
    following.finish()
}

#[test]
fn a_run_whose_leaf_is_removed_before_it_is_born_is_born_in_another() {
    let scene = Scene::new();

    let ended = run_with_removed(&scene, || fs::remove_dir(scene.leaf("a.0")).unwrap());

    ended.assert("SUCCESS", &[("a", "S")]);
    assert_eq!(scene.read("ran"), "ran\n");
}

#[test]
fn a_run_whose_task_has_lost_its_cgroup_is_lost_and_the_next_has_one() {
    let scene = Scene::new();

    let ended = run_with_removed(&scene, || {
        fs::remove_dir(scene.leaf("a.0")).unwrap();
        fs::remove_dir(scene.cgroup().unwrap()).unwrap();
    });

    ended.assert("SUCCESS", &[("a", "LS")]);
    assert_eq!(scene.read("ran"), "ran\n");
}

/// Between two runs nothing lives in it.
#[test]
fn a_task_that_has_lost_its_cgroup_between_two_runs_gets_another() {
    let scene = Scene::new();
    let gate = scene.gate("gate");
    let again = format!(
        "[ $DEWAR_RUN = 1 ] || {{ {}; exit 1; }}; cat /proc/self/cgroup > cgroup",
        gate.hold()
    );
    let again = p("a", again).max_failures(2).with("min_duration", 5);
    let mut following = scene.spawn(&task([again]));
    let first = || scene.status()["processes"][0]["runs"][0]["state"].clone();
    following.wait_until_running("a", 0);
    gate.open();
    wait_until("the first run has not ended", || first() == "PROCESS_STATE_FAILED");

    fs::remove_dir(scene.cgroup().unwrap()).unwrap();

    following.finish().assert("SUCCESS", &[("a", "FS")]);
    assert!(scene.read("cgroup").contains(&format!("/tasks/{}/a.1\n", scene.id())));
}

/// S12
#[test]
fn an_ephemeral_does_not_hold_the_task() {
    let processes = [p("main", "sleep 0.3"), p("side", "sleep 60").ephemeral()];

    let ended = Scene::new().run(&task(processes));

    ended.assert("SUCCESS", &[("main", "S"), ("side", "K")]);
    let whole = seconds_between(ended.entered("ACTIVE"), ended.entered("SUCCESS"));
    assert!(whole < 2.0, "took {whole} s");
}

/// S13
#[test]
fn finalizers_run_on_success_failure_and_kill() {
    for (command, end, runs) in
        [("true", "SUCCESS", "S"), ("false", "FAILED", "F"), ("sleep 60", "KILLED", "K")]
    {
        let scene = Scene::new();
        let last = p("last", "echo was here > last").finalizer();
        let mut running = scene.spawn(&task([p("a", command), last]));

        if end == "KILLED" {
            running.wait_until_running("a", 0);
            scene.kill(&[]);
        }

        running.finish().assert(end, &[("a", runs), ("last", "S")]);
        assert_eq!(scene.read("last"), "was here\n");
    }
}

/// S14
#[test]
fn finalizers_have_their_own_order_and_limits() {
    let f1 = p("f1", "[ -e tried ] || { touch tried; exit 1; }").max_failures(2).finalizer();
    let f2 = p("f2", "[ -e tried ]").finalizer();

    let ended = Scene::new().run(&task([f2, f1, p("main", "true")]).order(["f1", "f2"]));

    ended.assert("SUCCESS", &[("main", "S"), ("f1", "FS"), ("f2", "S")]);
    let between = seconds_between(&ended.run("f1", 1)["endTime"], &ended.run("f2", 0)["startTime"]);
    assert!(between >= 0.0, "{ended}");
}

/// S15
#[test]
fn the_deadline_is_one_budget_for_cleaning_and_finalizing() {
    let scene = Scene::new();
    let deaf = scene.gate("deaf");
    let a = p("a", deaf.hold() + "; exit 1");
    let b = p("b", format!("trap '' TERM; {}; while :; do sleep 60; done", deaf.tell()));
    let last = p("last", "touch last").finalizer();

    let ended = scene.run(&task([a, b, last]).with("finalization_wait", 3));

    ended.assert("FAILED", &[("a", "F"), ("b", "K"), ("last", "")]);
    let b = ended.run("b", 0);
    assert_eq!(b["verdict"]["stage"], "KILL_STAGE_DEADLINE");
    assert_eq!(b["signal"], "SIGKILL");
    let after = seconds_between(ended.entered("CLEANING"), &b["endTime"]);
    assert!((3.0..6.0).contains(&after), "killed after {after} s");
    assert_eq!(scene.cgroup(), None);
}

/// S16
#[test]
fn a_second_kill_can_only_shorten() {
    let scene = Scene::new();
    let deaf = scene.gate("deaf");
    let command = format!("trap '' TERM; {}; while :; do sleep 60; done", deaf.tell());
    let mut running = scene.spawn(&task([p("a", command)]));
    deaf.wait();

    scene.kill(&["--wait", "30s"]);
    let cleaning = running.wait_for_state("CLEANING");
    scene.kill(&["--wait", "0s"]);
    // Too late to lengthen anything.
    let _ = scene.dewar(&["kill", scene.id(), "--wait", "30s"]);

    let ended = running.finish();
    ended.assert("KILLED", &[("a", "K")]);
    let after = seconds_between(&cleaning["time"], ended.entered("KILLED"));
    assert!(after < 5.0, "took {after} s");
    let states: Vec<_> = scene.records().iter().filter_map(terminal_state).collect();
    assert_eq!(states, ["TASK_STATE_KILLED"]);
}

fn terminal_state(record: &serde_json::Value) -> Option<String> {
    let state = record["task"]["state"].as_str()?;
    let passing = ["TASK_STATE_ACTIVE", "TASK_STATE_CLEANING", "TASK_STATE_FINALIZING"];
    (!passing.contains(&state)).then(|| state.to_owned())
}

/// S17
#[test]
fn lose_overrides_kill() {
    let scene = Scene::new();
    let deaf = scene.gate("deaf");
    let command = format!("trap '' TERM; {}; while :; do sleep 60; done", deaf.tell());
    let last = p("last", "touch last").finalizer();
    let mut running = scene.spawn(&task([p("a", command), last]));
    deaf.wait();

    scene.kill(&["--wait", "30s"]);
    running.wait_for_state("CLEANING");
    scene.kill(&["--lost"]);

    running.finish().assert("LOST", &[("a", "K"), ("last", "")]);
}

/// T51: what asks for the end without the command line: whoever stops the machine, say.
#[test]
fn a_signal_to_the_runner_is_a_request() {
    for (signal, end, finalizer) in [
        (Signal::SIGUSR1, "KILLED", "S"),
        (Signal::SIGINT, "KILLED", "S"),
        (Signal::SIGTERM, "KILLED", "S"),
        (Signal::SIGHUP, "KILLED", "S"),
        (Signal::SIGUSR2, "LOST", ""),
    ] {
        let scene = Scene::new();
        let last = p("last", "true").finalizer();
        let mut running = scene.spawn(&task([p("a", "exec sleep 60"), last]));
        running.wait_until_running("a", 0);

        scene.runner().signal(signal);

        running.finish().assert(end, &[("a", "K"), ("last", finalizer)]);
    }
}

/// S18, attack 23: own session, TERM ignored, standard files closed, parent gone, name changed.
#[test]
fn nothing_survives_its_run() {
    let scene = Scene::new();
    let told = scene.gate("told");
    let hide = format!(
        "(setsid nohup bash -c 'trap \"\" TERM; echo $$ > pid; {}; exec <&- >&- 2>&-; \
         exec -a innocent sleep 600' &) ; {}",
        told.tell(),
        told.hold(),
    );
    // The leaf is in the environment of nobody: the test says where it would be, before b may look.
    let (ready, looked) = (scene.gate("ready"), scene.gate("looked"));
    let look = format!(
        "{}; {}; read -r pid < pid; stat=$(cat /proc/$pid/stat 2> /dev/null); \
         case \"$stat\" in ''|*') Z '*) ;; *) echo \"$stat\"; exit 1;; esac; \
         read -r leaf < leaf; [ ! -e $leaf ] && [ -e ${{leaf%/*}} ]",
        ready.tell(),
        looked.hold(),
    );
    let running = scene.spawn(&task([p("a", hide), p("b", look)]).order(["a", "b"]));
    ready.wait();

    fs::write(scene.sandbox().join("leaf"), format!("{}\n", scene.leaf("a.0").display())).unwrap();
    looked.open();

    let ended = running.finish();
    ended.assert("SUCCESS", &[("a", "S"), ("b", "S")]);
    let pid = scene.read("pid").trim().parse().unwrap();
    assert!(!is_alive(pid), "{pid} survived");
}

/// S19: 500 descendants in sessions of their own.
#[test]
fn terminal_means_empty() {
    let scene = Scene::new();
    let up = scene.gate("up");
    let storm = format!(
        "for i in $(seq 500); do setsid sleep 600 & done; jobs -p > pids; {}; wait",
        up.tell()
    );
    let mut running = scene.spawn(&task([p("a", storm)]));
    up.wait();
    let pids: Vec<i32> = scene.read("pids").lines().map(|pid| pid.parse().unwrap()).collect();
    assert_eq!(pids.len(), 500);
    assert!(pids.iter().all(|&pid| is_alive(pid)));

    scene.kill(&["--wait", "0s"]);

    running.wait_for_state("KILLED");
    assert_eq!(scene.cgroup(), None, "the cgroup is there after the terminal record");
    assert_eq!(pids.iter().filter(|&&pid| is_alive(pid)).count(), 0);
    running.finish().assert("KILLED", &[("a", "K")]);
}

/// Attack 24: descendants that fork as fast as they die.
#[test]
fn a_fork_storm_is_killed_while_it_forks() {
    let scene = Scene::new();
    let up = scene.gate("up");
    let storm = format!(
        "trap '' TERM; f() {{ while :; do (:) & (setsid true &); done; }}; \
                         for i in 1 2 3 4; do f & done; {}; wait",
        up.tell()
    );
    let running = scene.spawn(&task([p("a", storm)]).with("finalization_wait", 0));
    up.wait();

    scene.kill(&["--wait", "0s"]);

    let ended = running.finish();
    ended.assert("KILLED", &[("a", "K")]);
    // The status is that of the first process, whoever else was reaped.
    assert_eq!(ended.run("a", 0)["signal"], "SIGKILL");
}

/// S20
#[test]
fn only_ephemerals_or_no_processes_is_success_at_once() {
    let ephemeral = task([p("a", "sleep 60").ephemeral()]);
    let empty = task([]).with("name", "nothing");
    for task in [ephemeral, empty] {
        let ended = Scene::new().run(&task);

        ended.assert("SUCCESS", &[]);
        for process in ended.task["processes"].as_array().unwrap() {
            assert_eq!(process["runs"], serde_json::json!([]));
        }
    }
}
