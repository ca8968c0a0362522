//! Programs of dewar that die, checkpoints that are damaged: S21 to S27, S29 to S31.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use dewar::checkpoint::{Identity, Instant, Reader, Root, Writer};
use dewar::proto::record::Kind;
use dewar::proto::run_transition::State;
use dewar::sys::pidfd::ProcessId;
use dewar::task::{ProcessName, TaskId};
use nix::sys::signal::Signal::SIGCONT;
use nix::unistd::Pid as RawPid;
use serde_json::Value;

use crate::support::{Pid, Scene, is_alive, p, seconds, seconds_between, task, wait_until};

/// Whoever follows a task starts another runner where one was killed.
#[test]
fn a_task_that_is_followed_goes_on_with_another_runner() {
    let scene = Scene::new();
    let gate = scene.gate("gate");
    let mut running = scene.spawn(&task([p("a", gate.hold() + "; exit 5"), p("b", "true")]));
    let (pid, _) = running.wait_until_running("a", 0);
    let killed = scene.runner();

    killed.kill();

    scene.wait_until_led_by_another(&killed);
    gate.open();
    let ended = running.finish();
    ended.assert("FAILED", &[("a", "F"), ("b", "S")]);
    assert_eq!(ended.run("a", 0)["pid"], pid.number(), "{ended}");
    assert!(ended.stderr.contains("died by signal 9; another goes on"), "{ended}");
}

/// A runner that is killed again and again is not started for ever.
#[test]
fn the_third_death_of_a_runner_in_a_row_is_the_last() {
    let scene = Scene::new();
    let gate = scene.gate("gate");
    let mut running = scene.spawn(&task([p("a", gate.hold())]));
    running.wait_until_running("a", 0);

    for _ in 0..2 {
        let killed = scene.runner();
        killed.kill();
        scene.wait_until_led_by_another(&killed);
    }
    scene.runner().kill();
    let ended = running.finish();

    assert_eq!(ended.status, Some(5), "{ended}");
    let said = format!(
        "died by signal 9, the 3rd within 10 s; `dewar resume {}` goes on with the task",
        scene.id()
    );
    assert!(ended.stderr.contains(&said), "{ended}");
    gate.open();
    scene.resume().finish().assert("SUCCESS", &[("a", "S")]);
}

/// V9: what a takeover adds is its runner, and nothing that was there.
#[test]
fn the_header_comes_first_and_once_and_no_takeover_repeats_a_state() {
    let scene = Scene::new();
    let gate = scene.gate("gate");
    let mut running = scene.spawn(&task([p("a", gate.hold())]));
    running.wait_until_running("a", 0);
    let before = scene.records();
    scene.kill_runner(running);
    let resumed = scene.resume();
    let leads = |records: &[Value]| records.iter().filter(|of| of.get("leader").is_some()).count();
    wait_until("nobody else leads", || leads(&scene.records()) > 1);
    let after = scene.records();
    gate.open();
    resumed.finish().assert("SUCCESS", &[("a", "S")]);

    let all = scene.records();
    let numbers = |kind: &str| -> Vec<_> {
        (0..all.len()).filter(|&number| all[number].get(kind).is_some()).collect()
    };
    assert_eq!(after[..before.len()], before);
    let added: Vec<_> = after[before.len()..].iter().map(|of| of.get("leader").is_some()).collect();
    assert_eq!(added, [true], "{after:?}");
    assert_eq!(numbers("launch"), [0]);
    assert_eq!(numbers("leader"), [1, before.len()]);
    let state = |number: usize| all[number]["task"]["state"].as_str().unwrap();
    let states: Vec<_> = numbers("task").into_iter().map(state).collect();
    let expected = ["ACTIVE", "CLEANING", "FINALIZING", "SUCCESS"];
    assert_eq!(states, expected.map(|state| format!("TASK_STATE_{state}")));
}

/// S21
#[test]
fn a_run_that_ends_while_there_is_no_runner_keeps_its_exit_status() {
    let scene = Scene::new();
    let gate = scene.gate("gate");
    let mut running = scene.spawn(&task([p("a", gate.hold() + "; exit 5")]));
    let (_, coordinator) = running.wait_until_running("a", 0);
    scene.kill_runner(running);

    gate.open();
    coordinator.wait();
    let before_resume = now();
    let ended = scene.resume().finish();

    ended.assert("FAILED", &[("a", "F")]);
    let run = ended.run("a", 0);
    assert_eq!(run["exitCode"], 5);
    assert!(seconds(&run["endTime"]) < before_resume, "told in the past tense: {run}");
}

fn now() -> f64 {
    std::time::UNIX_EPOCH.elapsed().unwrap().as_secs_f64()
}

/// S22
#[test]
fn what_still_runs_is_adopted() {
    let scene = Scene::new();
    let gate = scene.gate("gate");
    let mut running = scene.spawn(&task([p("a", gate.hold())]));
    let (pid, _) = running.wait_until_running("a", 0);
    scene.kill_runner(running);

    let mut resumed = scene.resume();
    let (adopted, _) = resumed.wait_until_running("a", 0);
    assert_eq!(adopted.number(), pid.number());
    assert_eq!(scene.status()["processes"][0]["runs"][0]["pid"], pid.number());
    gate.open();

    resumed.finish().assert("SUCCESS", &[("a", "S")]);
}

/// The command line is the caller's convenience: `kill -9` of `dewar run` loses nothing.
#[test]
fn a_task_goes_on_without_the_command_that_started_it() {
    let scene = Scene::new();
    let gate = scene.gate("gate");
    let mut running = scene.spawn(&task([p("a", gate.hold())]));
    running.wait_until_running("a", 0);
    running.pid().kill();

    gate.open();

    scene.resume().finish().assert("SUCCESS", &[("a", "S")]);
}

/// S23
#[test]
fn the_run_of_a_dead_coordinator_is_lost_and_retried() {
    let scene = Scene::new();
    let up = scene.gate("up");
    let command = format!(
        "[ -e tried ] && exit 0; touch tried; (setsid sleep 60 & echo $! > pid); {}; sleep 60",
        up.tell()
    );
    let mut running = scene.spawn(&task([p("a", command)]));
    up.wait();
    let (pid, coordinator) = running.wait_until_running("a", 0);
    let child: i32 = scene.read("pid").trim().parse().unwrap();
    let leaf = scene.leaf("a.0");

    coordinator.kill();

    running.wait_for_run("a", 0, "LOST");
    assert!(!is_alive(pid.number()) && !is_alive(child) && !leaf.exists());
    let ended = running.finish();
    ended.assert("SUCCESS", &[("a", "LS")]);
    assert_eq!(ended.run("a", 0)["verdict"]["reason"], "VERDICT_REASON_COORDINATOR_LOST");
    assert_eq!(ended.run("a", 0).get("exitCode"), None);
}

/// S24
#[test]
fn runner_and_coordinator_may_die_together() {
    let scene = Scene::new();
    let up = scene.gate("up");
    let command = format!("[ -e tried ] && exit 0; touch tried; {}; sleep 60", up.tell());
    let mut running = scene.spawn(&task([p("a", command)]));
    up.wait();
    let (pid, coordinator) = running.wait_until_running("a", 0);
    scene.kill_runner(running);
    coordinator.kill();
    assert!(is_alive(pid.number()), "nobody is there to kill the run");

    let mut resumed = scene.resume();

    resumed.wait_for_run("a", 0, "LOST");
    assert!(!is_alive(pid.number()));
    resumed.finish().assert("SUCCESS", &[("a", "LS")]);
}

/// S25
#[test]
fn a_kill_survives_the_runner_with_its_first_deadline() {
    let scene = Scene::new();
    let deaf = scene.gate("deaf");
    let command = format!("trap '' TERM; {}; while :; do sleep 60; done", deaf.tell());
    let mut running = scene.spawn(&task([p("a", command)]));
    deaf.wait();
    scene.kill(&["--wait", "3s"]);
    let asked = running.wait_for(|event| event.get("kill").is_some());
    running.wait_for_state("CLEANING");
    scene.kill_runner(running);

    // Until it has passed: one that began anew would be three seconds later.
    std::thread::sleep(Duration::from_secs(3));
    let ended = scene.resume().finish();

    ended.assert("KILLED", &[("a", "K")]);
    let after = seconds_between(&asked["time"], &ended.run("a", 0)["endTime"]);
    assert!((3.0..6.0).contains(&after), "killed after {after} s");
}

/// S26
#[test]
fn two_runners_have_one_leader() {
    let scene = Scene::new();
    let gate = scene.gate("gate");
    let task = task([p("a", gate.hold())]);
    let mut running = scene.spawn(&task);
    running.wait_until_running("a", 0);
    let leader = scene.runner().number();

    let refused = scene.run(&task);

    assert_eq!(refused.status, Some(5), "{refused}");
    assert!(refused.stderr.contains(&leader.to_string()), "{refused}");
    assert!(refused.events.is_empty(), "{refused}");
    gate.open();
    running.finish().assert("SUCCESS", &[("a", "S")]);
}

/// A runner that comes second leaves; who started it goes on with the first.
#[test]
fn who_started_the_second_runner_follows_the_first() {
    let scene = Scene::new();
    let gate = scene.gate("gate");
    let mut running = scene.spawn(&task([p("a", gate.hold())]));
    running.wait_until_running("a", 0);
    scene.kill_runner(running);
    let (one, runner) = scene.resume_stopped("runner::start");
    // It has the task, and nobody can reach it.
    let (other, leader) = scene.resume_stopped("runner::replayed");

    runner.signal(SIGCONT);
    runner.wait();
    assert!(!one.pid().ends_within(Duration::from_millis(100)), "{}", scene.diagnosis());
    leader.signal(SIGCONT);
    gate.open();

    one.finish().assert("SUCCESS", &[("a", "S")]);
    other.finish().assert("SUCCESS", &[("a", "S")]);
}

/// S27
#[test]
fn a_task_id_means_one_task() {
    let scene = Scene::new();
    let gate = scene.gate("gate");
    let first = task([p("a", gate.hold())]);
    let other = task([p("a", "touch other")]);
    let mut running = scene.spawn(&first);
    running.wait_until_running("a", 0);

    let refused = scene.run(&other);

    assert_eq!(refused.status, Some(5), "{refused}");
    assert!(refused.stderr.contains("processes[0].cmdline"), "what differs\n{refused}");
    assert!(refused.stderr.contains("touch other"), "what differs\n{refused}");
    gate.open();
    running.finish().assert("SUCCESS", &[("a", "S")]);

    for task in [&first, &other] {
        let refused = scene.run(task);

        assert_eq!(refused.status, Some(5), "{refused}");
        assert!(refused.stderr.contains("is finished"), "{refused}");
    }
    assert!(!scene.sandbox().join("other").exists());
    assert_eq!(scene.status()["processes"][0]["runs"].as_array().unwrap().len(), 1);
}

/// A task that has ended can be asked for again and again.
#[test]
fn resume_of_an_ended_task_prints_it_at_once() {
    let scene = Scene::new();
    let first = scene.run(&task([p("a", "exit 3")]));

    let again = scene.resume().finish();

    again.assert("FAILED", &[("a", "F")]);
    assert_eq!(again.task, first.task);
    assert!(again.events.is_empty(), "{again}");
    assert_eq!(scene.status(), first.task);
}

/// S29, attack 37. A record is cut at each of its bytes, the first one too.
#[test]
fn a_torn_tail_is_cut_and_said_so() {
    const SCENES: usize = 4;
    // Most of the time is waiting for the disk.
    std::thread::scope(|threads| {
        for first in 0..SCENES {
            threads.spawn(move || cut_every(SCENES, first));
        }
    });
}

/// Cuts the stream of a task that has ended before byte `first`, and before every `step`th one after it.
fn cut_every(step: usize, first: usize) {
    let scene = Scene::of_many_files();
    scene.run(&task([p("a", "echo ran >> ran")])).assert("SUCCESS", &[]);
    scene.wait_until_led_by_nobody();
    let boundaries = offsets(&scene);
    let whole = fs::read(scene.stream()).unwrap();
    let checkpoint = Saved::take(scene.stream().parent().unwrap());

    for cut in (first..whole.len()).step_by(step) {
        checkpoint.restore();
        un_finish(&scene);
        fs::remove_file(scene.sandbox().join("ran")).ok();
        fs::write(scene.stream(), &whole[..cut]).unwrap();

        let ended = scene.resume().finish();
        scene.wait_until_led_by_nobody();

        if cut < boundaries[1] {
            // What the task is was never acknowledged: nothing can be run.
            assert!(matches!(ended.status, Some(1 | 2 | 5)), "cut at {cut}\n{ended}");
            assert!(!scene.sandbox().join("ran").exists(), "cut at {cut}\n{ended}");
            continue;
        }
        ended.assert("SUCCESS", &[("a", "S")]);
        // Invariant 2: run 0 is in the stream of its coordinator, so it is not run again.
        assert!(!scene.sandbox().join("ran").exists(), "cut at {cut}\n{ended}");
        let good = boundaries.iter().copied().filter(|&at| at <= cut).max().unwrap();
        let dropped = (cut > good).then(|| (cut - good).to_string());
        assert_eq!(
            ended.task.get("droppedBytes").and_then(|bytes| bytes.as_str()),
            dropped.as_deref(),
            "cut at {cut}\n{ended}"
        );
    }
}

/// S29, invariant 2: whatever the stream of the runner has lost, what coordinators recorded was run, and is not run again.
#[test]
fn a_run_that_its_coordinator_recorded_is_not_run_again() {
    let scene = Scene::new();
    let process = p("a", "echo ran >> ran; exit 3").max_failures(3).with("min_duration", 0);
    scene.run(&task([process])).assert("FAILED", &[("a", "FFF")]);
    scene.wait_until_led_by_nobody();
    let whole = fs::read(scene.stream()).unwrap();
    let checkpoint = Saved::take(scene.stream().parent().unwrap());

    for cut in &offsets(&scene)[1..] {
        checkpoint.restore();
        un_finish(&scene);
        fs::write(scene.stream(), &whole[..*cut]).unwrap();

        let ended = scene.resume().finish();
        scene.wait_until_led_by_nobody();

        ended.assert("FAILED", &[("a", "FFF")]);
        assert_eq!(scene.read("ran").lines().count(), 3, "cut at {cut}\n{ended}");
    }
}

/// Where each record of the runner's stream begins.
#[track_caller]
fn offsets(scene: &Scene) -> Vec<usize> {
    let records = scene.records();
    records.iter().map(|record| record["offset"].as_str().unwrap().parse().unwrap()).collect()
}

/// Files of a directory, to be put back.
struct Saved(Vec<(std::path::PathBuf, Vec<u8>)>);

impl Saved {
    fn take(dir: &Path) -> Self {
        let files = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
        Self(files.map(|path| (path.clone(), fs::read(path).unwrap())).collect())
    }

    fn restore(&self) {
        self.0.iter().for_each(|(path, bytes)| fs::write(path, bytes).unwrap());
    }
}

/// Makes a finished task an active one again.
fn un_finish(scene: &Scene) {
    let at = |place: &str| scene.root().join("tasks").join(place).join(scene.id());
    if at("finished").exists() {
        fs::rename(at("finished"), at("active")).unwrap();
    }
}

/// Flips a bit in a record of the runner's stream that others follow; gives the offset of that record.
fn damage(scene: &Scene) -> usize {
    let offset = offsets(scene)[3];
    let mut bytes = fs::read(scene.stream()).unwrap();
    bytes[offset + 20] ^= 1;
    fs::write(scene.stream(), bytes).unwrap();
    offset
}

/// S30, attack 38
#[test]
fn a_corrupt_task_is_quarantined_alone() {
    let scene = Scene::new();
    scene.run(&task([p("a", "echo ran >> ran")])).assert("SUCCESS", &[]);
    scene.wait_until_led_by_nobody();
    let other = format!("{}.other", scene.id());
    let root = scene.root();
    let run = ["run", "--root", root.to_str().unwrap(), "--task-id", &other, "--", "true"];
    let sound = scene.output(scene.command(run));
    assert_eq!(sound.status, Some(0), "{sound:?}");
    let offset = damage(&scene);
    un_finish(&scene);

    let status = scene.status();
    let refused = scene.resume().finish();
    let all = scene.dewar(&["status", "--output", "json"]);

    assert_eq!(status["state"], "TASK_STATE_CORRUPT");
    let why = status["detail"].as_str().unwrap();
    assert!(why.contains(scene.stream().to_str().unwrap()), "{why}");
    assert!(why.contains(&offset.to_string()), "{why}");
    assert_eq!(refused.status, Some(5), "{refused}");
    assert!(refused.stderr.contains(&offset.to_string()), "{refused}");
    assert_eq!(scene.read("ran"), "ran\n", "nothing runs");
    assert!(all.stdout.contains(&other), "{all:?}");
    assert_eq!(all.stdout.lines().count(), 2, "{all:?}");
}

/// T72: nobody leads a corrupt task, but what lives of it can be killed.
#[test]
fn a_corrupt_task_can_be_killed_through_its_cgroup() {
    let scene = Scene::new();
    let mut running = scene.spawn(&task([p("a", "exec sleep 60")]));
    let (pid, coordinator) = running.wait_until_running("a", 0);
    let cgroup = scene.cgroup().unwrap();
    scene.kill_runner(running);
    damage(&scene);

    let told = scene.dewar(&["kill", scene.id()]);

    assert_eq!(told.status, Some(5), "{told:?}");
    assert!(told.stderr.contains(cgroup.to_str().unwrap()), "{told:?}");
    pid.wait();
    coordinator.wait();
    // Nothing is written for a corrupt task, so nobody but the operator removes the empty cgroup.
    fs::remove_dir(cgroup).unwrap();
}

/// S31, attacks 42 and 44: after a boot a recorded pid means nothing, whoever has it.
#[test]
fn after_a_boot_no_recorded_pid_is_touched() {
    let scene = Scene::new();
    let up = scene.gate("up");
    let command = format!("[ -e tried ] && exit 0; touch tried; {}; sleep 60", up.tell());
    let mut running = scene.spawn(&task([p("a", command)]));
    up.wait();
    // The run may be ahead of the runner's record of it.
    running.wait_until_running("a", 0);
    drop(running);
    stop_the_machine(&scene);
    let mut stranger = Command::new("sleep").arg("60").spawn().unwrap();
    let stranger_pid = RawPid::from_raw(stranger.id().cast_signed());
    boot_again(&scene, ProcessId::of(stranger_pid).unwrap());

    let ended = scene.resume().finish();

    let survived = is_alive(stranger_pid.as_raw());
    stranger.kill().unwrap();
    stranger.wait().unwrap();
    ended.assert("SUCCESS", &[("a", "LS")]);
    assert_eq!(ended.run("a", 0)["verdict"]["reason"], "VERDICT_REASON_REBOOT");
    assert!(survived, "the stranger was killed");
}

/// Attack 44: a coordinator's stream is not synced, and a power cut can leave its name without its bytes.
#[test]
fn a_process_whose_stream_a_power_cut_emptied_is_run_again() {
    let scene = Scene::new();
    let mut running = scene.spawn(&task([p("a", "[ -e ran ] || { touch ran; exec sleep 60; }")]));
    running.wait_until_running("a", 0);
    drop(running);
    stop_the_machine(&scene);
    boot_again(&scene, ProcessId::of(RawPid::this()).unwrap());
    let (root, task) = (Root::new(scene.root()).unwrap(), TaskId::new(scene.id()).unwrap());
    let stream = Identity::coordinator(task, ProcessName::new("a").unwrap());
    fs::write(root.stream(&stream), "").unwrap();

    let ended = scene.resume().finish();

    ended.assert("SUCCESS", &[("a", "LS")]);
}

/// Ends all at once, as a power cut does.
fn stop_the_machine(scene: &Scene) {
    let cgroup = scene.cgroup().unwrap();
    let runs = scene.status()["processes"][0]["runs"].clone();
    let coordinator = runs[0]["coordinatorPid"].as_i64().unwrap().try_into().unwrap();
    let (runner, coordinator) = (scene.runner(), Pid::of(coordinator));
    runner.kill();
    coordinator.kill();
    let pid = Pid::of(runs[0]["pid"].as_i64().unwrap().try_into().unwrap());
    fs::write(cgroup.join("cgroup.kill"), "1").unwrap();
    pid.wait();
    fs::remove_dir(cgroup.join("a.0")).unwrap();
    fs::remove_dir(cgroup).unwrap();
}

/// Writes both streams anew, as if they were of an earlier boot; every pid in them is `stranger`'s.
fn boot_again(scene: &Scene, stranger: ProcessId) {
    let root = Root::new(scene.root()).unwrap();
    let task = TaskId::new(scene.id()).unwrap();
    let process = ProcessName::new("a").unwrap();
    let id = dewar::proto::ProcessId { pid: stranger.pid, start_ticks: stranger.start_ticks };
    let earlier = "11111111-2222-3333-4444-555555555555";
    for identity in [Identity::runner(task.clone()), Identity::coordinator(task.clone(), process)] {
        let mut reader = Reader::open(&root, &identity).unwrap();
        let mut records = Vec::new();
        reader.replay(|record| records.push(record)).unwrap();
        fs::remove_file(root.stream(&identity)).unwrap();
        let mut writer = Writer::create(&root, identity).unwrap();
        for record in records {
            let mut kind = record.kind.unwrap();
            match &mut kind {
                Kind::Leader(leader) => {
                    earlier.clone_into(&mut leader.boot_id);
                    leader.runner = Some(id);
                }
                Kind::Run(run) => match run.state.as_mut().unwrap() {
                    State::Forked(forked) => {
                        earlier.clone_into(&mut forked.boot_id);
                        forked.coordinator = Some(id);
                    }
                    State::Running(running) => running.pid = Some(id),
                    _ => {}
                },
                _ => {}
            }
            let (boot_nanos, unix_nanos) = (record.boot_nanos, record.unix_nanos);
            writer.append(kind, Instant { boot_nanos, unix_nanos }).unwrap();
        }
        writer.sync().unwrap();
    }
}
