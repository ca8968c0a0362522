//! Limits of live tasks change, and are felt; a task that is paused is one that has limits.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use cgroups_rs::MaxValue;
use cgroups_rs::memory::MemController;
use cgroups_rs::pid::PidController;
use serde_json::{Value, json};

use super::limits::Disk;
use crate::disk::{Disk as SlowDisk, Mount};
use crate::machine::{controller, keyed, read, theirs};
use crate::support::{Following, Gate, Output, Pid, Scene, p, task};

/// Shell: a program in the background that holds `mib` MiB of memory, and cannot get on.
fn holds(mib: u32) -> String {
    let dd = format!("dd if=/dev/zero of=sink bs={mib}M count=1 2> /dev/null");
    format!("mkfifo sink; exec 9<> sink; {dd} & holder=$!")
}

/// Waits until so much memory is in use.
#[track_caller]
fn wait_for_use(cgroup: &Path, mib: u32) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while read(cgroup, "memory.current").parse::<u64>().unwrap() < u64::from(mib) << 20 {
        assert!(Instant::now() < deadline, "less than {mib} MiB are in use");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// A task of one process `a` that holds some memory and waits.
struct Holding {
    scene: Scene,
    running: Following,
    hold: Gate,
}

impl Holding {
    fn new(mib: u32, limits: Value) -> Self {
        let scene = Scene::new();
        let (told, hold) = (scene.gate("told"), scene.gate("hold"));
        let cmdline =
            format!("{}; {}; {}; kill $holder; exit 0", holds(mib), told.tell(), hold.hold());
        let running = scene.spawn(&task([p("a", cmdline)]).with("resources", limits));
        told.wait();
        wait_for_use(&scene.leaf("a.0"), mib);
        Self { scene, running, hold }
    }

    fn end(self) {
        self.hold.open();
        self.running.finish().assert("SUCCESS", &[("a", "S")]);
    }
}

fn update(scene: &Scene, arguments: &[&str]) -> Output {
    scene.dewar(&[&["update", scene.id()], arguments].concat())
}

#[track_caller]
fn updated(scene: &Scene, arguments: &[&str]) -> String {
    let told = update(scene, arguments);
    assert_eq!(told.status, Some(0), "{told:?}");
    told.stderr
}

fn limit_records(scene: &Scene) -> usize {
    scene.records().iter().filter(|record| record.get("limits").is_some()).count()
}

#[track_caller]
fn memory_limit(cgroup: &Path) -> i64 {
    controller::<MemController>(&theirs(cgroup)).memory_stat().limit_in_bytes
}

#[test]
fn limits_of_a_live_task_go_up_and_down() {
    let held = Holding::new(1, json!({}));
    let scene = &held.scene;
    let cgroup = scene.cgroup().unwrap();

    for mib in [256, 64, 128] {
        updated(scene, &[&format!("ram={mib}MB")]);
        assert_eq!(memory_limit(&cgroup), mib << 20);
    }
    updated(
        scene,
        &["cpu=2", "cpu_limit={cpus: 1.5, burst: 20ms}", "memory_high=100MB", "pids=50"],
    );
    assert_eq!(read(&cgroup, "cpu.weight"), "200");
    assert_eq!(read(&cgroup, "cpu.max"), "150000 100000");
    assert_eq!(read(&cgroup, "cpu.max.burst"), "20000");
    assert_eq!(read(&cgroup, "memory.high"), (100 << 20).to_string());
    let theirs = theirs(&cgroup);
    let pids = controller::<PidController>(&theirs).get_pid_max().unwrap();
    assert_eq!(pids, MaxValue::Value(50));

    let status = scene.status();
    assert_eq!(status["resources"]["ramBytes"], (128u64 << 20).to_string(), "{status}");
    updated(scene, &["ram=max", "memory_high=max", "cpu_limit=max", "pids=max"]);
    for file in ["memory.max", "memory.high", "pids.max"] {
        assert_eq!(read(&cgroup, file), "max", "{file}");
    }
    assert_eq!(read(&cgroup, "cpu.max"), "max 100000");
    held.end();
}

#[test]
fn what_the_kernel_rounded_is_told() {
    let held = Holding::new(1, json!({}));

    let told = updated(&held.scene, &["ram=100000001"]);

    let rounded = "resources.ram: 99999744 is in force, 100000001 was asked for";
    assert_eq!(told, format!("dewar: {rounded}\n"));
    assert_eq!(held.scene.status()["rounded"], json!([rounded]));
    updated(&held.scene, &["ram=128MB"]);
    assert_eq!(held.scene.status()["rounded"], json!([]));
    held.end();
}

#[test]
fn later_runs_have_the_limits_that_their_process_was_given() {
    let scene = Scene::new();
    let mut running = scene.spawn(&task([p("a", "exec sleep 600")]));
    let (first, _) = running.wait_until_running("a", 0);

    updated(&scene, &["--process", "a", "ram=64MB", "pids=20"]);
    assert_eq!(memory_limit(&scene.leaf("a.0")), 64 << 20);
    first.kill();
    running.wait_until_running("a", 1);

    assert_eq!(memory_limit(&scene.leaf("a.1")), 64 << 20);
    assert_eq!(read(&scene.leaf("a.1"), "pids.max"), "20");
    scene.kill(&[]);
    running.finish();
}

/// attack 33: refused, with what is in use; and nothing has changed.
#[test]
fn less_memory_than_is_in_use_is_refused_with_what_is() {
    let held = Holding::new(30, json!({ "swap": 0 }));
    let scene = &held.scene;
    let cgroup = scene.cgroup().unwrap();

    for (process, cgroup) in [(&[][..], cgroup.clone()), (&["--process", "a"], cgroup.join("a.0"))]
    {
        let told = update(scene, &[process, &["ram=16MB"]].concat());

        assert_eq!(told.status, Some(5), "{told:?}");
        let needle = "16777216 bytes are less than the ";
        let (_, rest) = told.stderr.split_once(needle).unwrap_or_else(|| panic!("{told:?}"));
        let in_use: u64 = rest.split(' ').next().unwrap().parse().unwrap();
        assert!((30 << 20..60 << 20).contains(&in_use), "{told:?}");
        assert!(rest.contains("--force"), "{told:?}");
        assert_eq!(read(&cgroup, "memory.max"), "max");
    }
    assert_eq!(limit_records(scene), 0);
    held.end();
}

/// attack 33: forced, the kernel does as it does, and that is the verdict.
#[test]
fn less_memory_than_is_in_use_can_be_forced() {
    let held = Holding::new(30, json!({ "swap": 0 }));
    let cgroup = held.scene.cgroup().unwrap();

    let told = update(&held.scene, &["--force", "ram=16MB"]);

    // The kernel may be done with the task before the runner hears that it has taken the limit.
    let is_over = told.status == Some(5) && told.stderr.contains("the task is over");
    assert!(told.status == Some(0) || is_over, "{told:?}");
    let ended = held.running.finish();
    ended.assert("FAILED", &[("a", "F")]);
    assert_eq!(ended.run("a", 0)["verdict"]["reason"], "VERDICT_REASON_OOM", "{ended}");
    assert!(!cgroup.exists());
}

/// What all tasks write to a disk is one MiB a second, until this is dropped.
struct Slow {
    device: String,
}

impl Slow {
    const IO_MAX: &str = "/sys/fs/cgroup/dewar/tasks/io.max";

    fn new(disk: &SlowDisk) -> Self {
        let number = fs::metadata(disk.device()).unwrap().rdev();
        let (major, minor) = (nix::sys::stat::major(number), nix::sys::stat::minor(number));
        let slow = Self { device: format!("{major}:{minor}") };
        fs::write(Self::IO_MAX, format!("{} wbps={}", slow.device, 1 << 20)).unwrap();
        slow
    }
}

impl Drop for Slow {
    fn drop(&mut self) {
        let _ = fs::write(Self::IO_MAX, format!("{} wbps=max", self.device));
    }
}

/// A task with 8 MiB of pages that are dirty, on a disk that takes one MiB a second: so slowly memory can be taken back from it. The
/// disk is slow for all tasks, and not by the task's own limit, which would outlive it: nothing is slow once this is dropped.
struct Dirty {
    _slow: Slow,
    _mount: Mount,
    _disk: SlowDisk,
    scene: Scene,
    running: Following,
}

impl Dirty {
    fn new() -> Self {
        let scene = Scene::new();
        let [up, slow, told] = ["up", "slow", "told"].map(|name| scene.gate(name));
        let disk = SlowDisk::new(&scene.path("disk"), 16);
        let mount = disk.mount(&scene.path("mount"));
        let file = scene.path("mount").join("file");
        let dirty = format!("dd if=/dev/zero of={} bs=1M count=8 2> /dev/null", file.display());
        let waits = format!("{}; {}", up.tell(), slow.hold());
        let cmdline = format!("{waits}; {dirty}; {}; exec sleep 600", told.tell());
        // A limit far away, for which dewar has the kernel account for what is written.
        let max = json!([{ "path": scene.path("mount"), "wbps": "1GB" }]);
        let task = task([p("a", cmdline)]).with("resources", json!({ "io": { "max": max } }));
        let running = scene.spawn(&task);
        up.wait();
        let all = Slow::new(&disk);
        slow.open();
        told.wait();
        Self { _slow: all, _mount: mount, _disk: disk, scene, running }
    }

    /// Takes most of it away in the background. When this returns the kernel is at it.
    fn shrink(&self) -> Child {
        let mut command = self.scene.command(["update", "--force"]);
        command.arg("--root").arg(self.scene.root()).arg(self.scene.id()).arg("ram=2MB");
        let child = command.stderr(Stdio::piped()).spawn().unwrap();
        let cgroup = self.scene.cgroup().unwrap();
        let deadline = Instant::now() + Duration::from_secs(20);
        // The kernel sets the limit first, and then sees to it.
        while read(&cgroup, "memory.max") != (2 << 20).to_string() {
            assert!(Instant::now() < deadline, "the limit is not set");
            std::thread::sleep(Duration::from_millis(2));
        }
        child
    }
}

#[track_caller]
fn ended(child: Child) -> (Option<i32>, String) {
    let output = child.wait_with_output().unwrap();
    (output.status.code(), String::from_utf8(output.stderr).unwrap())
}

/// The process that waits while the kernel takes memory back.
fn enforcer() -> Option<Pid> {
    let all = std::fs::read_dir("/proc").unwrap().flatten();
    let pids = all.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    let is_one = |pid: &i32| {
        std::fs::read_to_string(format!("/proc/{pid}/comm"))
            .is_ok_and(|name| name == "dewar-limits\n")
    };
    pids.filter(is_one).find_map(Pid::find)
}

/// attack 33: the kernel takes its time; the runner hears what else is asked of it, and a task that ends is not kept by that.
#[test]
fn a_runner_hears_of_a_kill_while_the_kernel_takes_memory_back() {
    let is_heard = || {
        let dirty = Dirty::new();
        let update = dirty.shrink();

        assert!(enforcer().is_some(), "it is done already");
        let killed = dirty.scene.dewar(&["kill", dirty.scene.id(), "--wait", "0s"]);
        let end = dirty.running.finish();
        if end.process("a")["runs"][0]["verdict"]["reason"] == "VERDICT_REASON_OOM" {
            // The kernel was out of patience before: that may be, and shows nothing.
            ended(update);
            return false;
        }
        assert_eq!(killed.status, Some(0), "{killed:?}");
        end.assert("KILLED", &[("a", "K")]);

        let (status, told) = ended(update);
        if status == Some(0) {
            // The kernel was done before the task was over: the same.
            return false;
        }
        assert_eq!(status, Some(5), "{told}");
        assert!(told.contains("the task is over"), "{told}");
        assert_eq!(enforcer().map(|pid| pid.number()), None);
        true
    };
    assert!((0..10).any(|_| is_heard()), "the kill always came too late");
}

/// What a runner that died has begun does not go on without it; the next one begins anew.
#[test]
fn a_change_of_limits_that_takes_long_dies_with_its_runner() {
    let dirty = Dirty::new();
    let update = dirty.shrink();

    let first = enforcer().expect("it is not done yet");
    dirty.scene.kill_runner(dirty.running);
    first.wait();
    let (status, told) = ended(update);
    let resumed = dirty.scene.resume();
    dirty.scene.kill(&["--wait", "0s"]);

    let ended = resumed.finish();
    // The next runner shrinks it, too: the kernel may find out before the kill that it cannot take enough back in time. The task
    // has then failed.
    let reason = ended.process("a")["runs"][0]["verdict"]["reason"].as_str().unwrap();
    match ended.state() {
        "KILLED" => {
            assert!(matches!(reason, "VERDICT_REASON_KILLED" | "VERDICT_REASON_OOM"), "{ended}")
        }
        "FAILED" => assert_eq!(reason, "VERDICT_REASON_OOM", "{ended}"),
        _ => panic!("{ended}"),
    }
    assert_eq!(status, Some(5), "{told}");
    assert!(told.contains("died before it answered"), "{told}");
}

/// attack 33: in a loop, while memory is taken and given back. What is refused has changed nothing; a run that is killed all the
/// same, because it took more between the look and the change, is OOM; nobody else dies.
#[test]
fn limits_change_in_a_loop_while_memory_is_taken() {
    let scene = Scene::new();
    let took = scene.gate("took");
    let takes = "dd if=/dev/zero of=/dev/null bs=20M count=3 2> /dev/null";
    let cmdline = format!("{takes}; {}; while :; do {takes}; done", took.tell());
    let process = p("a", cmdline).max_failures(0).with("min_duration", 0);
    let limits = json!({ "ram": "96MB", "swap": 0 });
    let running = scene.spawn(&task([process]).with("resources", limits));
    took.wait();
    let runner = scene.runner().number();
    let cgroup = scene.cgroup().unwrap();

    let mut limit = 96;
    let mut refused = 0;
    for mib in [24, 96, 12, 40, 16, 96, 10, 22].into_iter().cycle().take(16) {
        let told = update(&scene, &[&format!("ram={mib}MB")]);
        match told.status {
            Some(0) => limit = mib,
            _ => {
                assert!(told.stderr.contains("that are in use"), "{told:?}");
                refused += 1;
            }
        }
        assert_eq!(memory_limit(&cgroup), limit << 20);
    }

    assert_eq!(scene.runner().number(), runner);
    scene.kill(&["--wait", "0s"]);
    let ended = running.finish();
    let runs = ended.task["processes"][0]["runs"].as_array().unwrap();
    for run in &runs[..runs.len() - 1] {
        assert_eq!(run["verdict"]["reason"], "VERDICT_REASON_OOM", "{run}");
    }
    assert!(refused > 0, "20 MiB are in use most of the time");
    assert_eq!(ended.state(), "KILLED", "{ended}");
}

/// Fewer processes than there are kill none: no further one is forked.
#[test]
fn a_limit_of_processes_below_what_lives_stops_forks_only() {
    let scene = Scene::new();
    let (told, hold) = (scene.gate("told"), scene.gate("hold"));
    // bash tries for 15 seconds to fork; busybox, once.
    let forks = "exec busybox ash -c '(exit 0); exit 0'";
    let cmdline =
        format!("sleep 600 & sleep 600 & sleep 600 & {}; {}; {forks}", told.tell(), hold.hold());
    let running = scene.spawn(&task([p("a", cmdline).max_failures(1)]));
    told.wait();
    let leaf = scene.leaf("a.0");

    updated(&scene, &["--process", "a", "pids=2"]);

    assert_eq!(
        (read(&leaf, "pids.max").as_str(), read(&leaf, "pids.current").as_str()),
        ("2", "4")
    );
    hold.open();
    running.finish();
    let stderr = std::fs::read_to_string(scene.logs("a", 0).join("stderr")).unwrap();
    assert!(stderr.contains("Resource temporarily unavailable"), "{stderr}");
}

#[test]
fn a_ceiling_of_a_disk_is_set_and_lifted() {
    let held = Holding::new(1, json!({}));
    let disk = Disk::new(&held.scene);
    let cgroup = held.scene.cgroup().unwrap();
    let device = disk.numbers();
    let max = |rates: &str| format!("io.max=[{{device: \"{device}\", {rates}}}]");

    updated(&held.scene, &[&max("wbps: 1MB, riops: 100")]);
    assert_eq!(
        read(&cgroup, "io.max"),
        format!("{device} rbps=max wbps=1048576 riops=100 wiops=max")
    );
    updated(&held.scene, &[&max("wbps: max, riops: max")]);

    assert_eq!(read(&cgroup, "io.max"), "");
    held.end();
}

/// What stands still can run out of memory all the same: it dies, that is recorded, and it is not run again before the pause ends.
#[test]
fn a_paused_task_whose_memory_shrinks_is_out_of_memory() {
    let scene = Scene::new();
    let (told, hold) = (scene.gate("told"), scene.gate("hold"));
    let cmdline = format!(
        "[ -e once ] && exit 0; touch once; {}; {}; {}",
        holds(30),
        told.tell(),
        hold.hold()
    );
    let process = p("a", cmdline).max_failures(2);
    let mut running = scene.spawn(&task([process]).with("resources", json!({ "swap": 0 })));
    told.wait();
    wait_for_use(&scene.leaf("a.0"), 30);
    assert_eq!(scene.dewar(&["pause", scene.id()]).status, Some(0));
    let cgroup = scene.cgroup().unwrap();
    assert_eq!(keyed(&cgroup, "cgroup.events", "frozen"), 1);

    updated(&scene, &["--force", "ram=16MB"]);
    let run = running.wait_for_run("a", 0, "FAILED");

    assert_eq!(run["verdict"]["reason"], "VERDICT_REASON_OOM", "{run}");
    std::thread::sleep(Duration::from_millis(300));
    assert_eq!(scene.status()["processes"][0]["runs"].as_array().unwrap().len(), 1);
    assert_eq!(scene.dewar(&["resume-paused", scene.id()]).status, Some(0));
    running.finish().assert("SUCCESS", &[("a", "FS")]);
}

/// Its limits are those that it has when it goes on.
#[test]
fn a_task_with_limits_is_paused_and_goes_on() {
    let held = Holding::new(30, json!({ "ram": "64MB", "swap": 0, "pids": 20, "cpu_limit": 0.5 }));
    let cgroup = held.scene.cgroup().unwrap();

    assert_eq!(held.scene.dewar(&["pause", held.scene.id()]).status, Some(0));
    let before = keyed(&cgroup, "cpu.stat", "usage_usec");
    assert_eq!(keyed(&cgroup, "cgroup.events", "frozen"), 1);
    std::thread::sleep(Duration::from_millis(300));
    assert_eq!(keyed(&cgroup, "cpu.stat", "usage_usec"), before);
    assert_eq!(memory_limit(&cgroup), 64 << 20);
    assert_eq!(held.scene.dewar(&["resume-paused", held.scene.id()]).status, Some(0));

    held.end();
}

/// attack 58: of a process, too.
#[test]
fn a_limit_of_a_run_that_somebody_changed_is_told_and_enforced_again_on_demand() {
    let scene = Scene::new();
    let (told, hold) = (scene.gate("told"), scene.gate("hold"));
    let process = p("a", format!("{}; {}", told.tell(), hold.hold()));
    let running = scene.spawn(&task([process.with("resources", json!({ "pids": 20, "cpu": 2 }))]));
    told.wait();
    let leaf = scene.leaf("a.0");
    fs::write(leaf.join("pids.max"), "10").unwrap();

    let lost = scene.status()["lostLimits"].clone();
    let again = updated(&scene, &["--process", "a", "pids=20"]);

    let file = leaf.join("pids.max");
    let told = format!(
        "processes[0].resources.pids cannot be enforced: it needs 20 in {}; 10 is there",
        file.display()
    );
    assert_eq!(lost, json!([told]));
    assert_eq!(read(&leaf, "pids.max"), "20", "{again}");
    assert_eq!(scene.status()["lostLimits"], json!([]));
    hold.open();
    running.finish().assert("SUCCESS", &[("a", "S")]);
}
