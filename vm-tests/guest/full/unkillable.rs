//! attack 28: what cannot be killed, and everything that can.

use std::fs;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::disk::Disk;
use crate::support::{Pid, Scene, p, task};

/// Writes to a file system that is frozen, which no signal ends.
fn writes(to: &std::path::Path) -> String {
    format!("echo x > {}/file", to.display())
}

fn is_unkillable(event: &Value) -> bool {
    event["run"]["unkillable"].is_object()
}

/// Waits until a thread of a process is where no signal, or only SIGKILL, reaches it.
#[track_caller]
fn wait_for_state_d(pid: &Pid) {
    let threads = format!("/proc/{}/task", pid.number());
    let is_stuck = || {
        let mut threads = fs::read_dir(&threads).unwrap().map(|thread| thread.unwrap().path());
        // A thread may end while it is looked at.
        threads.any(|thread| {
            fs::read_to_string(thread.join("stat")).is_ok_and(|stat| stat.contains(") D "))
        })
    };
    let deadline = Instant::now() + Duration::from_secs(20);
    while !is_stuck() {
        assert!(Instant::now() < deadline, "{} does not get stuck", pid.number());
        thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn a_run_in_state_d_is_unkillable_at_the_deadline_and_is_resolved_when_it_goes() {
    a_run_in_state_d_is_killed(&[]);
}

#[test]
fn without_a_cgroup_a_run_in_state_d_is_unkillable_too() {
    a_run_in_state_d_is_killed(&["--cgroup", "none"]);
}

fn a_run_in_state_d_is_killed(containment: &[&str]) {
    let scene = Scene::new();
    let disk = Disk::new(&scene.path("disk"), 8);
    let mount = disk.mount(&scene.path("mount"));
    mount.freeze();
    let stuck = p("stuck", writes(&scene.path("mount")));
    let task = task([stuck, p("other", "sleep 60")]);
    let mut running = scene.spawn_with(&task, containment);
    let (pid, _) = running.wait_until_running("stuck", 0);
    running.wait_until_running("other", 0);
    wait_for_state_d(&pid);

    scene.kill(&["--wait", "0s"]);
    let told = running.wait_for(is_unkillable);

    assert_eq!(told["process"], "stuck", "{told}");
    assert_eq!(told["run"]["state"], "PROCESS_STATE_RUNNING", "it has not ended: {told}");
    let unkillable = &told["run"]["unkillable"];
    let process = &unkillable["processes"][0];
    assert_eq!((&unkillable["count"], &process["state"]), (&1.into(), &"D".into()), "{told}");
    assert_eq!(process["pid"], pid.number(), "{told}");
    assert!(process["wchan"].as_str().is_some_and(|wchan| !wchan.is_empty()), "{told}");
    assert!(process["stack"].as_array().is_some_and(|stack| stack.len() > 2), "{told}");
    // All else went on: the other run has ended, and a person is told.
    running.wait_for_run("other", 0, "KILLED");
    let status = scene.dewar(&["status", scene.id(), "-v"]);
    assert!(status.stdout.contains("UNKILLABLE"), "{}", status.stdout);

    mount.thaw();
    let ended = running.finish();

    ended.assert("KILLED", &[("stuck", "K"), ("other", "K")]);
    let run = ended.run("stuck", 0);
    assert_eq!(run["verdict"]["reason"], "VERDICT_REASON_KILLED", "{ended}");
    assert!(run["unkillable"].is_object() && run["endTime"].is_string(), "{ended}");
    assert_eq!(scene.cgroup(), None);
}

/// The first process ends, and what it left behind does not: the coordinator tells, not the runner.
#[test]
fn what_a_run_leaves_behind_in_state_d_is_told_too() {
    let scene = Scene::new();
    let disk = Disk::new(&scene.path("disk"), 8);
    let mount = disk.mount(&scene.path("mount"));
    mount.freeze();
    let left = scene.gate("left");
    let child = format!("({}; {}) &", left.tell(), writes(&scene.path("mount")));
    let wait = format!(
        "{child} child=$!; {}; while read -r stat < /proc/$child/stat; do case $stat in *\\ D\\ *) exit 4;; esac; done",
        left.hold()
    );
    // The child tells the parent: both use the gate, and the test does not.
    let mut running = scene.spawn(&task([p("a", wait)]));

    let told = running.wait_for(is_unkillable);
    let live = scene.status();
    mount.thaw();
    let ended = running.finish();

    assert_eq!(told["run"]["unkillable"]["processes"][0]["state"], "D", "{told}");
    assert_eq!(live["state"], "TASK_STATE_ACTIVE", "{live}");
    ended.assert("FAILED", &[("a", "F")]);
    assert_eq!(ended.run("a", 0)["exitCode"], 4, "{ended}");
    assert!(ended.run("a", 0)["usage"].is_object(), "{ended}");
}

/// Without cgroups the coordinator, and not the runner, knows of what a run left behind.
#[test]
fn what_a_run_leaves_behind_in_state_d_is_told_without_a_cgroup_too() {
    let scene = Scene::new();
    let disk = Disk::new(&scene.path("disk"), 8);
    let mount = disk.mount(&scene.path("mount"));
    mount.freeze();
    let (up, go) = (scene.gate("up"), scene.gate("go"));
    let writes = writes(&scene.path("mount"));
    let cmdline = format!("({writes}) & echo $! > pid; {}; {}; exit 4", up.tell(), go.hold());
    let a = p("a", cmdline);
    let mut running = scene.spawn_with(&task([a]), &["--cgroup", "none"]);
    up.wait();
    let child = Pid::of(scene.read("pid").trim().parse().unwrap());
    wait_for_state_d(&child);

    go.open();
    let told = running.wait_for(is_unkillable);
    mount.thaw();
    let ended = running.finish();

    let unkillable = &told["run"]["unkillable"];
    assert_eq!(unkillable["count"], 1, "{told}");
    assert_eq!(unkillable["processes"][0]["pid"], child.number(), "{told}");
    assert_eq!(unkillable["processes"][0]["state"], "D", "{told}");
    ended.assert("FAILED", &[("a", "F")]);
    assert_eq!(ended.run("a", 0)["exitCode"], 4, "{ended}");
}

/// A run that nobody can kill, and whose coordinator and runner died: the next runner finds and tells it.
#[test]
fn a_run_in_state_d_that_lost_its_coordinator_is_told_and_lost_when_it_goes() {
    a_run_in_state_d_is_lost(&[]);
}

#[test]
fn without_a_cgroup_a_run_in_state_d_that_lost_its_coordinator_is_told_too() {
    a_run_in_state_d_is_lost(&["--cgroup", "none"]);
}

fn a_run_in_state_d_is_lost(containment: &[&str]) {
    let scene = Scene::new();
    let disk = Disk::new(&scene.path("disk"), 8);
    let mount = disk.mount(&scene.path("mount"));
    mount.freeze();
    let a = p("a", writes(&scene.path("mount"))).max_failures(1);
    let mut running = scene.spawn_with(&task([a]), containment);
    let (pid, coordinator) = running.wait_until_running("a", 0);
    wait_for_state_d(&pid);

    coordinator.kill();
    let told = running.wait_for(is_unkillable);
    scene.kill(&["--wait", "0s"]);
    mount.thaw();
    let ended = running.finish();

    assert_eq!(told["run"]["unkillable"]["processes"][0]["state"], "D", "{told}");
    ended.assert("KILLED", &[("a", "L")]);
    assert_eq!(
        ended.run("a", 0)["verdict"]["reason"],
        "VERDICT_REASON_COORDINATOR_LOST",
        "{ended}"
    );
}

/// Waits for a child that has not executed yet: it opens a pipe that nobody writes to. Run by the test below, as a run.
#[test]
#[ignore = "run by another test"]
fn waits_in_vfork() {
    spawn::blocked(&std::env::var("DEWAR_TEST_PIPE").unwrap());
}

#[allow(unsafe_code, reason = "no safe call lets a child open a file between vfork and exec")]
mod spawn {
    use std::ffi::CString;
    use std::mem::MaybeUninit;
    use std::ptr::null;

    /// posix_spawn(3), whose child first opens `pipe`.
    pub(super) fn blocked(pipe: &str) {
        let (pipe, program) = (CString::new(pipe).unwrap(), c"/usr/bin/true");
        let mut actions = MaybeUninit::uninit();
        let (mut pid, arguments) = (0, [program.as_ptr().cast_mut(), std::ptr::null_mut()]);
        // SAFETY: `actions` is initialised by the first call; strings and array outlive the calls, and end as they must.
        unsafe {
            libc::posix_spawn_file_actions_init(actions.as_mut_ptr());
            let actions = actions.as_mut_ptr();
            libc::posix_spawn_file_actions_addopen(actions, 0, pipe.as_ptr(), libc::O_RDONLY, 0);
            libc::posix_spawn(
                &raw mut pid,
                program.as_ptr(),
                actions,
                null(),
                arguments.as_ptr(),
                null(),
            );
        }
    }
}

/// Stopped, traced, frozen, or waiting for a child that has not executed yet: all of these die at once.
#[test]
fn whatever_else_does_not_run_dies_at_once() {
    let scene = Scene::new();
    let up = scene.gate("up");
    let pipe = scene.path("pipe");
    nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRWXU).unwrap();
    let this = std::env::current_exe().unwrap();
    let vfork = format!(
        "DEWAR_TEST_PIPE={} exec {} --ignored --exact full::unkillable::waits_in_vfork",
        pipe.display(),
        this.display()
    );
    let processes = [
        p("stopped", format!("{}; kill -STOP $$", up.tell())),
        p("frozen", format!("{}; sleep 600", up.tell())),
        p("traced", "exec sleep 600"),
        p("forking", vfork),
    ];
    let mut running = scene.spawn(&task(processes).with("finalization_wait", 0.1));
    running.wait_until_running("stopped", 0);
    running.wait_until_running("frozen", 0);
    let (forking, _) = running.wait_until_running("forking", 0);
    let (traced, _) = running.wait_until_running("traced", 0);
    let traced = nix::unistd::Pid::from_raw(traced.number());
    nix::sys::ptrace::seize(traced, nix::sys::ptrace::Options::empty()).unwrap();
    nix::sys::ptrace::interrupt(traced).unwrap();
    nix::sys::wait::waitpid(traced, None).unwrap();
    wait_for_state_d(&forking);
    fs::write(scene.leaf("frozen.0").join("cgroup.freeze"), "1").unwrap();

    scene.kill(&["--wait", "0.1s"]);
    // Who traces is told of the death first. It may be told of SIGTERM before.
    while !matches!(
        nix::sys::wait::waitpid(traced, None).unwrap(),
        nix::sys::wait::WaitStatus::Signaled(..)
    ) {}
    let ended = running.finish();

    ended.assert("KILLED", &[("stopped", "K"), ("frozen", "K"), ("traced", "K"), ("forking", "K")]);
    for process in ["stopped", "frozen", "traced", "forking"] {
        assert_eq!(ended.run(process, 0)["unkillable"], Value::Null, "{ended}");
    }
}
