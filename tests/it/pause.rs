//! `dewar pause` and `dewar resume-paused`, on the freezer of the host.

use std::fs;
use std::time::Duration;

use nix::sys::signal::Signal;
use serde_json::Value;

use crate::support::{
    Following, Process, Scene, Task, is_alive, p, seconds_between, task, wait_until,
};

/// Counts up in the sandbox, a line a step.
const COUNTS: &str = "while :; do echo >> steps; sleep 0.01; done";

fn counter() -> Process {
    p("counts", COUNTS)
}

impl Scene {
    #[track_caller]
    fn pause(&self) {
        let told = self.dewar(&["pause", self.id()]);
        assert_eq!(
            (told.status, told.stdout),
            (Some(0), format!("{}\n", self.id())),
            "{}",
            told.stderr
        );
    }

    #[track_caller]
    fn resume_paused(&self) {
        let told = self.dewar(&["resume-paused", self.id()]);
        assert_eq!(
            (told.status, told.stdout),
            (Some(0), format!("{}\n", self.id())),
            "{}",
            told.stderr
        );
    }

    fn steps(&self) -> usize {
        fs::read(self.sandbox().join("steps")).map_or(0, |text| text.len())
    }

    /// Whether the cgroup of the task stands still, as the kernel says.
    fn is_frozen(&self) -> bool {
        let cgroup = self.cgroup().expect("the cgroup of the task");
        fs::read_to_string(cgroup.join("cgroup.events")).unwrap().contains("frozen 1")
    }

    /// Whether its runs write anything for a while.
    fn moves(&self) -> bool {
        let before = self.steps();
        std::thread::sleep(Duration::from_millis(150));
        self.steps() > before
    }

    /// Kinds of the records of its stream.
    fn count(&self, kind: &str) -> usize {
        self.records().iter().filter(|record| record.get(kind).is_some()).count()
    }
}

/// Runs `task` until its first process runs.
fn running(scene: &Scene, task: &Task) -> Following {
    let mut following = scene.spawn(task);
    following.wait_for(|event| event["run"]["state"] == "PROCESS_STATE_RUNNING");
    following
}

#[test]
fn a_paused_task_stands_still_until_it_is_resumed() {
    let scene = Scene::new();
    let following = running(&scene, &task([counter()]));
    wait_until("the task runs", || scene.steps() > 0);

    scene.pause();
    assert!(scene.is_frozen(), "pause returns when all stands still");
    assert!(!scene.moves());
    let status = scene.status();
    assert!(status["pausedSince"].is_string(), "{status}");
    let table = scene.dewar(&["status", scene.id()]).stdout;
    assert!(table.contains("ACTIVE paused"), "{table}");

    scene.resume_paused();
    assert!(!scene.is_frozen());
    wait_until("the task goes on", || scene.moves());
    assert!(scene.status().get("pausedSince").is_none());
    scene.kill(&[]);
    following.finish().assert("KILLED", &[("counts", "K")]);
}

#[test]
fn who_follows_a_task_hears_of_its_pauses() {
    let scene = Scene::new();
    let mut following = running(&scene, &task([counter()]));

    scene.pause();
    let paused = following.wait_for(|event| event.get("pause").is_some());
    scene.resume_paused();
    let resumed = following.wait_for(|event| event["pause"]["paused"] == Value::Bool(false));

    let uid = nix::unistd::getuid().as_raw();
    assert_eq!(paused["pause"], serde_json::json!({ "paused": true, "byUid": uid }));
    assert_eq!(resumed["pause"]["byUid"], uid);
    scene.kill(&[]);
    following.finish();
}

#[test]
fn what_was_asked_before_is_as_good_as_done() {
    let scene = Scene::new();
    let following = running(&scene, &task([counter()]));

    scene.resume_paused();
    scene.pause();
    scene.pause();
    assert!(scene.is_frozen());
    assert_eq!(scene.count("paused"), 1);
    scene.resume_paused();
    scene.resume_paused();

    assert_eq!(scene.count("resumed"), 1);
    scene.kill(&[]);
    following.finish();
}

/// attack 39, of a pause: whatever becomes of the runner.
#[test]
fn a_pause_outlives_its_runner() {
    let scene = Scene::new();
    let following = running(&scene, &task([counter()]));
    scene.pause();
    scene.kill_runner(following);
    assert!(scene.is_frozen());
    assert!(scene.status()["pausedSince"].is_string());

    let mut following = scene.resume();
    following.wait_for(|event| event.get("pause").is_some());
    let runner = scene.runner();
    assert!(scene.is_frozen() && !scene.moves());
    scene.resume_paused();
    assert_eq!(scene.runner().number(), runner.number());
    wait_until("the task goes on", || scene.moves());
    scene.kill(&[]);
    following.finish().assert("KILLED", &[("counts", "K")]);
}

/// attack 39, of a pause: the record is there, and the act is not.
#[test]
fn what_was_recorded_is_done_by_the_next_runner() {
    for (point, command, is_frozen) in
        [("runner::freeze", "pause", true), ("runner::thaw", "resume-paused", false)]
    {
        let scene = Scene::new();
        let token = scene.file("token", "");
        let mut run = scene.run_command(&task([counter()]), &[]);
        run.env("DEWAR_FAILPOINT", format!("{point}=kill@{}", token.display()));
        let mut following = scene.follow(run);
        following.wait_until_running("counts", 0);
        if !is_frozen {
            scene.pause();
        }
        // Nobody is there to start another runner.
        drop(following);

        let told = scene.dewar(&[command, scene.id()]);
        assert!(told.stderr.contains("died before it answered"), "{told:?}");
        assert_eq!(scene.is_frozen(), !is_frozen, "{point}: not done yet");
        let following = scene.resume();
        wait_until("it is made good", || scene.is_frozen() == is_frozen);

        scene.kill(&[]);
        following.finish().assert("KILLED", &[("counts", "K")]);
    }
}

/// A task without a runner is paused by one that is started for it.
#[test]
fn a_task_whose_runner_died_can_be_paused() {
    let scene = Scene::new();
    let following = running(&scene, &task([counter()]));
    scene.kill_runner(following);

    scene.pause();

    assert!(scene.is_frozen());
    scene.resume_paused();
    scene.kill(&[]);
    scene.resume().finish().assert("KILLED", &[("counts", "K")]);
}

/// What is killed from outside while it is frozen dies and is recorded, and its next run waits for the end of the pause.
#[test]
fn a_run_that_is_killed_in_a_pause_is_recorded_and_not_run_again_before_its_end() {
    let scene = Scene::new();
    let once = "[ -e once ] && exit 0; touch once; exec sleep 600";
    let mut following = scene.spawn(&task([p("a", once)]));
    let (pid, _) = following.wait_until_running("a", 0);
    wait_until("it sleeps", || scene.sandbox().join("once").exists());
    scene.pause();

    pid.kill();
    let run = following.wait_for_run("a", 0, "KILLED");
    assert_eq!(run["verdict"]["reason"], "VERDICT_REASON_SIGNALLED", "{run}");
    std::thread::sleep(Duration::from_millis(300));
    assert_eq!(scene.status()["processes"][0]["runs"].as_array().unwrap().len(), 1);

    scene.resume_paused();
    following.finish().assert("SUCCESS", &[("a", "KS")]);
}

#[test]
fn a_coordinator_may_die_in_a_pause() {
    let scene = Scene::new();
    let once = "[ -e once ] && exit 0; touch once; exec sleep 600";
    let mut following = scene.spawn(&task([p("a", once)]));
    let (pid, coordinator) = following.wait_until_running("a", 0);
    wait_until("it sleeps", || scene.sandbox().join("once").exists());
    scene.pause();

    coordinator.kill();
    following.wait_for_run("a", 0, "LOST");

    assert!(!is_alive(pid.number()));
    scene.resume_paused();
    following.finish().assert("SUCCESS", &[("a", "LS")]);
}

#[test]
fn a_kill_of_a_paused_task_lets_it_hear_sigterm() {
    let scene = Scene::new();
    let hears = "trap 'echo heard > heard; exit 7' TERM; touch ready; while :; do sleep 0.01; done";
    let following =
        running(&scene, &task([p("a", hears), p("f", "echo done > final").finalizer()]));
    wait_until("it is ready", || scene.sandbox().join("ready").exists());
    scene.pause();

    scene.kill(&[]);

    following.finish().assert("KILLED", &[("a", "F"), ("f", "S")]);
    assert_eq!((scene.read("heard").as_str(), scene.read("final").as_str()), ("heard\n", "done\n"));
}

#[test]
fn an_interrupt_of_run_ends_a_paused_task() {
    let scene = Scene::new();
    let following = running(&scene, &task([counter()]));
    scene.pause();

    following.pid().signal(Signal::SIGINT);

    following.finish().assert("KILLED", &[("counts", "K")]);
}

/// The time that a task was paused is not taken from what a kill leaves it.
#[test]
fn the_deadline_of_a_kill_waits_for_the_end_of_the_pause() {
    let scene = Scene::new();
    let deaf = "trap '' TERM; touch ready; while :; do sleep 0.01; done";
    let mut following = running(&scene, &task([p("a", deaf)]));
    wait_until("it is ready", || scene.sandbox().join("ready").exists());
    scene.kill(&["--wait", "1s"]);
    let killed = following.wait_for(|event| event.get("kill").is_some());

    scene.pause();
    let paused = following.wait_for(|event| event["pause"]["paused"] == Value::Bool(true));
    std::thread::sleep(Duration::from_millis(1500));
    assert_eq!(scene.status()["state"], "TASK_STATE_CLEANING");
    scene.resume_paused();
    let resumed = following.wait_for(|event| event["pause"]["paused"] == Value::Bool(false));

    let ended = following.finish();
    ended.assert("KILLED", &[("a", "K")]);
    let over = ended.task["stateHistory"].as_array().unwrap().last().unwrap();
    let pause = seconds_between(&paused["time"], &resumed["time"]);
    let whole = seconds_between(&killed["time"], &over["time"]);
    assert!(whole - pause >= 1.0, "{whole} s, {pause} s of them paused");
}

#[test]
fn min_duration_waits_for_the_end_of_the_pause() {
    let scene = Scene::new();
    let again = p("a", "exit 1").max_failures(2).with("min_duration", 0.5);
    let mut following = scene.spawn(&task([again]));
    let first = following.wait_for_run("a", 0, "FAILED");
    scene.pause();
    std::thread::sleep(Duration::from_millis(700));
    scene.resume_paused();

    let ended = following.finish();

    ended.assert("FAILED", &[("a", "FF")]);
    let second = &ended.task["processes"][0]["runs"][1]["startTime"];
    assert!(seconds_between(&first["endTime"], second) >= 1.2);
}

/// A leaf that is made in a frozen cgroup is frozen: what is being started as the pause comes goes on after it, and its
/// coordinator is not taken for late.
#[test]
fn a_run_that_starts_as_the_pause_comes_is_frozen_at_its_birth() {
    let scene = Scene::new();
    let task = task([p("a", "echo ran >> ran")]);
    let (following, coordinator) = scene.spawn_stopped(&task, "coordinator::forked");

    scene.pause();
    coordinator.signal(Signal::SIGCONT);
    let born = || fs::read_to_string(scene.leaf("a.0").join("cgroup.procs")).unwrap_or_default();
    wait_until("the run is born", || !born().is_empty());
    wait_until("it is frozen", || scene.is_frozen());
    assert!(!scene.sandbox().join("ran").exists());
    let run = &scene.status()["processes"][0]["runs"][0];
    assert!(run.get("pid").is_none(), "it does not run: {run}");

    scene.resume_paused();
    following.finish().assert("SUCCESS", &[("a", "S")]);
    assert_eq!(scene.read("ran"), "ran\n");
}

#[test]
fn without_a_cgroup_a_task_cannot_be_paused() {
    let scene = Scene::new();
    let mut following = scene.spawn_with(&task([counter()]), &["--cgroup", "none"]);
    following.wait_until_running("counts", 0);

    let told = scene.dewar(&["pause", scene.id()]);

    assert_eq!(told.status, Some(5), "{told:?}");
    assert!(told.stderr.contains("it runs with --cgroup none"), "{told:?}");
    assert!(scene.status().get("pausedSince").is_none());
    scene.kill(&[]);
    following.finish();
}

#[test]
fn a_task_that_is_over_cannot_be_paused() {
    let scene = Scene::new();
    scene.run(&task([p("a", "exit 0")]));

    for command in ["pause", "resume-paused"] {
        let told = scene.dewar(&[command, scene.id()]);
        assert_eq!(told.status, Some(1), "{told:?}");
        assert!(told.stderr.contains("1 of that name have ended"), "{told:?}");
    }
}

/// A request to a task without a runner is heard before a retry that has become due meanwhile is begun.
#[test]
fn a_runner_that_is_started_to_hear_a_request_begins_nothing_before_it() {
    for command in ["kill", "pause"] {
        let scene = Scene::new();
        let gate = scene.gate("gate");
        let fails = format!("echo >> runs; {}; exit 1", gate.hold());
        let again = p("a", fails).max_failures(0).with("min_duration", 1);
        let mut following = scene.spawn(&task([again]));
        following.wait_until_running("a", 0);
        let runner = scene.runner();
        gate.open();
        following.wait_for_run("a", 0, "FAILED");
        drop(following);
        runner.kill();
        // Until the retry is due, and nothing else: there is nobody who would tell.
        std::thread::sleep(Duration::from_millis(1100));

        let told = scene.dewar(&[command, scene.id()]);

        assert_eq!(told.status, Some(0), "{told:?}");
        if command == "pause" {
            scene.kill(&[]);
        }
        scene.resume().finish().assert("KILLED", &[("a", "F")]);
        assert_eq!(scene.read("runs"), "\n");
    }
}

/// A runner that does not move keeps nobody waiting for ever, and what is known of it is said.
#[test]
fn a_runner_that_is_stopped_is_told_of_after_a_while() {
    let scene = Scene::new();
    let following = running(&scene, &task([counter()]));
    let runner = scene.runner();
    runner.signal(Signal::SIGSTOP);

    let told = scene.dewar(&["kill", scene.id()]);

    let expected = format!(
        "dewar: {id}: the runner of task {id}, pid {pid}, is stopped and has not answered for 10 s; it may still do \
         what was asked\n",
        id = scene.id(),
        pid = runner.number()
    );
    assert_eq!((told.status, told.stderr), (Some(5), expected));
    runner.signal(Signal::SIGCONT);
    following.finish().assert("KILLED", &[("counts", "K")]);
}
