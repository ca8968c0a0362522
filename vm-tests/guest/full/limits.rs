//! Every limit is in the kernel's file that the reference says, is felt, and is told of where it cannot be had.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use cgroups_rs::MaxValue;
use cgroups_rs::cpu::CpuController;
use cgroups_rs::cpuset::CpuSetController;
use cgroups_rs::hugetlb::HugeTlbController;
use cgroups_rs::memory::{MemController, SetMemory};
use cgroups_rs::pid::PidController;
use dewar::cgroup::{Applied, TaskCgroup};
use dewar::proto;
use dewar::task::{ProcessName, Resources, TaskId};
use serde_json::{Value, json};

use crate::machine::{CGROUP2, controller, keyed, read, theirs};
use crate::support::{Finished, Following, Gate, Scene, p, seconds_between, task};

/// A task that waits at a gate, with limits of its own and of its one process `a`.
struct Held {
    scene: Scene,
    running: Following,
    hold: Gate,
}

impl Held {
    fn new(of_task: Value, of_run: Value) -> Self {
        Self::with(of_task, of_run, &[])
    }

    fn with(of_task: Value, of_run: Value, more: &[&str]) -> Self {
        let scene = Scene::new();
        let (told, hold) = (scene.gate("told"), scene.gate("hold"));
        let process = p("a", format!("{}; {}", told.tell(), hold.hold()));
        let task = task([process.with("resources", of_run)]).with("resources", of_task);
        let running = scene.spawn_with(&task, more);
        told.wait();
        Self { scene, running, hold }
    }

    /// The cgroups of the task and of its run.
    fn cgroups(&self) -> [std::path::PathBuf; 2] {
        let task = self.scene.cgroup().unwrap();
        let leaf = task.join("a.0");
        [task, leaf]
    }

    /// Lets it end; the scene is still to be looked at.
    fn end(self) -> (Scene, Finished) {
        self.hold.open();
        let ended = self.running.finish();
        ended.assert("SUCCESS", &[("a", "S")]);
        (self.scene, ended)
    }
}

/// Block devices are made of files; a test has one for itself.
pub(super) struct Disk {
    device: String,
    file: std::path::PathBuf,
}

impl Disk {
    pub(super) fn new(scene: &Scene) -> Self {
        let file = scene.file("disk", vec![0; 8 << 20]);
        let free = Command::new("losetup").arg("-f").output().unwrap();
        let device = String::from_utf8(free.stdout).unwrap().trim().to_owned();
        let made = Command::new("losetup").args([&device, file.to_str().unwrap()]).status();
        assert!(made.unwrap().success(), "losetup {device}");
        Self { device, file }
    }

    /// Its numbers.
    pub(super) fn numbers(&self) -> String {
        let name = self.device.rsplit('/').next().unwrap();
        fs::read_to_string(format!("/sys/block/{name}/dev")).unwrap().trim().to_owned()
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = Command::new("losetup").args(["-d", &self.device]).status();
        let _ = fs::remove_file(&self.file);
    }
}

#[test]
fn limits_of_cpu_time_read_back_as_they_were_asked_for() {
    let long =
        json!({ "cpu": 0.5, "cpu_limit": { "cpus": 0.5, "period": "50ms", "burst": "5ms" } });
    let held = Held::new(long, json!({ "cpu": 3, "cpu_limit": 1.5 }));
    let [task, leaf] = held.cgroups();

    assert_eq!(read(&task, "cpu.max"), "25000 50000");
    assert_eq!(read(&task, "cpu.max.burst"), "5000");
    assert_eq!(read(&leaf, "cpu.max"), "150000 100000");
    for (cgroup, weight, quota, period) in
        [(&task, 50, 25_000, 50_000), (&leaf, 300, 150_000, 100_000)]
    {
        let theirs = theirs(cgroup);
        let cpu: &CpuController = controller(&theirs);
        assert_eq!(cpu.shares().unwrap(), weight);
        assert_eq!((cpu.cfs_quota().unwrap(), cpu.cfs_period().unwrap()), (quota, period));
    }
    held.end();
}

#[test]
fn limits_of_memory_read_back_as_they_were_asked_for() {
    let of = |mib: u64| {
        json!({
            "ram": mib << 20, "memory_high": (mib - 1) << 20, "memory_low": 2 << 20,
            "memory_min": 1 << 20, "swap": 0,
        })
    };
    let held = Held::new(of(64), of(32));

    for (cgroup, mib) in held.cgroups().iter().zip([64i64, 32]) {
        let theirs = theirs(cgroup);
        let memory: &MemController = controller(&theirs);
        let value = |bytes| Some(MaxValue::Value(bytes));
        let expected = SetMemory {
            low: value(2 << 20),
            high: value((mib - 1) << 20),
            min: value(1 << 20),
            max: value(mib << 20),
        };
        assert_eq!(memory.get_mem().unwrap(), expected, "{}", cgroup.display());
        assert_eq!(memory.memswap_v2().limit_in_bytes, 0);
        assert_eq!(read(cgroup, "memory.swap.max"), "0");
    }
    held.end();
}

#[test]
fn a_run_dies_whole_and_a_task_does_not_unless_they_ask_otherwise() {
    let plain = Held::new(json!({}), json!({}));
    let other = Held::new(json!({ "oom_group": true }), json!({ "oom_group": false }));

    let groups = |held: &Held| held.cgroups().map(|cgroup| read(&cgroup, "memory.oom.group"));
    assert_eq!(groups(&plain), ["0", "1"]);
    assert_eq!(groups(&other), ["1", "0"]);
    plain.end();
    other.end();
}

#[test]
fn cpusets_and_huge_pages_read_back_and_bind_the_run() {
    let of_task = json!({ "cpuset": { "cpus": "0-1", "mems": "0" }, "hugetlb": { "2MB": "8MB" } });
    let of_run = json!({ "cpuset": { "cpus": "1" }, "hugetlb": { "2MB": 0 } });
    let held = Held::new(of_task, of_run);
    let [task, leaf] = held.cgroups();

    for (cgroup, cpus, bytes) in [(&task, vec![(0, 1)], 8 << 20), (&leaf, vec![(1, 1)], 0)] {
        let theirs = theirs(cgroup);
        let cpuset: &CpuSetController = controller(&theirs);
        assert_eq!(cpuset.cpuset().cpus, cpus);
        let huge: &HugeTlbController = controller(&theirs);
        assert_eq!(huge.limit_in_bytes("2MB").unwrap(), bytes);
    }
    assert_eq!(read(&task, "cpuset.mems"), "0");
    let pid = read(&leaf, "cgroup.procs");
    let status = fs::read_to_string(format!("/proc/{}/status", pid.lines().next().unwrap()));
    assert!(status.unwrap().contains("Cpus_allowed_list:\t1\n"));
    held.end();
}

/// What those around may not use is told; nothing that can be used is an error.
#[test]
fn a_cpuset_that_is_narrowed_or_empty_is_told() {
    let narrowed = json!({ "cpuset": { "cpus": "0" } });
    let held = Held::new(narrowed, json!({ "cpuset": { "cpus": "0-1" } }));
    let [_, leaf] = held.cgroups();
    assert_eq!(read(&leaf, "cpuset.cpus.effective"), "0");
    let (scene, ended) = held.end();
    let text = "processes[0].resources.cpuset.cpus: 0 is in force, 0-1 was asked for";
    assert_eq!(ended.task["rounded"], json!([text]));
    assert!(ended.stderr.contains(text), "{ended}");
    assert_eq!(scene.status()["rounded"], json!([text]));

    let elsewhere = p("a", "true").with("resources", json!({ "cpuset": { "cpus": "1" } }));
    let scene = Scene::new();
    let refused =
        scene.run(&task([elsewhere]).with("resources", json!({ "cpuset": { "cpus": "0" } })));
    assert_eq!(refused.status, Some(5), "{refused}");
    let why = "processes[0].resources.cpuset.cpus cannot be enforced: it needs one of 1; ";
    assert!(refused.stderr.contains(why), "{refused}");

    let beyond = json!({ "cpuset": { "cpus": "0-4000" } });
    let refused = Scene::new().run(&task([p("a", "true")]).with("resources", beyond));
    assert_eq!(refused.status, Some(5), "{refused}");
    assert!(refused.stderr.contains("cpuset.cpus to take \"0-4000\""), "{refused}");
}

#[test]
fn only_a_task_that_asks_enables_controllers_that_cost_every_process() {
    let plain = Held::new(json!({}), json!({}));

    let [task, _] = plain.cgroups();
    assert_eq!(read(&task, "cgroup.subtree_control"), "cpu io memory pids");
    plain.end();
}

/// attack 22's other half: without being asked for, and no more than what is around leaves.
#[test]
fn a_task_has_fifteen_percent_of_the_processes_that_there_may_be() {
    let number = |path: &str| fs::read_to_string(path).unwrap().trim().parse::<u64>().unwrap();
    let kernel = ["/proc/sys/kernel/pid_max", "/proc/sys/kernel/threads-max"].map(number);
    let held = Held::new(json!({}), json!({}));
    let around = Path::new(CGROUP2).join("dewar");

    let [task, leaf] = held.cgroups();
    let default = kernel[0].min(kernel[1]) * 15 / 100;
    assert_eq!(read(&task, "pids.max"), default.to_string());
    assert_eq!(read(&leaf, "pids.max"), "max");
    held.end();

    fs::write(around.join("pids.max"), "1000").unwrap();
    let held = Held::new(json!({}), json!({}));
    let within = read(&held.cgroups()[0], "pids.max");
    fs::write(around.join("pids.max"), "max").unwrap();
    assert_eq!(within, "150");
    held.end();
}

#[test]
fn limits_of_processes_read_back_as_they_were_asked_for() {
    let held = Held::new(json!({ "pids": "max" }), json!({ "pids": 50 }));

    let expected = [MaxValue::Max, MaxValue::Value(50)];
    for (cgroup, expected) in held.cgroups().iter().zip(expected) {
        let theirs = theirs(cgroup);
        let pids: &PidController = controller(&theirs);
        assert_eq!(pids.get_pid_max().unwrap(), expected);
    }
    held.end();
}

/// attack 22: the bomb is refused its forks and dies in its deadline, and another task notices nothing.
#[test]
fn a_fork_bomb_stays_within_its_limit_and_another_task_goes_on() {
    let scene = Scene::new();
    let other = Scene::new();
    let begun = scene.gate("begun");
    let bomb = format!("bomb() {{ bomb | bomb & }}; {}; bomb; sleep 600", begun.tell());
    let limited = task([p("bomb", bomb).with("resources", json!({ "pids": 64 }))]);

    let running = scene.spawn(&limited.with("finalization_wait", 1));
    begun.wait();
    let leaf = scene.cgroup().unwrap().join("bomb.0");
    wait_until("a refused fork", || keyed(&leaf, "pids.events", "max") > 0);
    let most: u64 = read(&leaf, "pids.current").parse().unwrap();
    assert!(most <= 64, "{most}");
    other.run(&task([p("a", "true | true")])).assert("SUCCESS", &[("a", "S")]);
    scene.kill(&["--wait", "0.5s"]);

    running.finish().assert("KILLED", &[("bomb", "K")]);
    assert!(scene.read(".logs/bomb/0/stderr").contains("Resource temporarily unavailable"));
}

fn wait_until(what: &str, met: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(30);
    while !met() {
        assert!(Instant::now() < deadline, "{what} did not come");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// attack 26: not even its own leaf's files.
#[test]
fn a_run_of_an_ordinary_user_can_write_no_limit_and_make_no_cgroup() {
    let scene = Scene::new();
    let look = "cd /sys/fs/cgroup$(sed -n s/^0:://p /proc/self/cgroup) || exit 9
        for file in memory.max memory.high pids.max cpu.max io.max cgroup.freeze cgroup.kill \
            cgroup.procs cgroup.subtree_control cgroup.max.descendants ../pids.max ../cgroup.kill
        do [ -e $file ] || exit 8; (echo max > $file) 2>/dev/null && echo wrote $file; done
        mkdir inner 2>/dev/null && echo made inner
        mkdir ../beside 2>/dev/null && echo made beside
        id -un";
    let limits = json!({ "ram": "64MB", "pids": 100 });
    let limited = task([p("a", look)]).with("resources", limits).with("user", "tester");

    let ended = scene.run(&limited);

    ended.assert("SUCCESS", &[("a", "S")]);
    assert_eq!(scene.stdout("a", 0), "tester\n");
}

/// attack 26: as many child groups as it likes, and depth 10³: more than the bounds, at any rate, and what it made goes with it.
#[test]
fn a_run_of_root_makes_a_bounded_number_of_cgroups_which_go_with_it() {
    let scene = Scene::new();
    let make = "cd /sys/fs/cgroup$(sed -n s/^0:://p /proc/self/cgroup)
        deep=.; n=0; while [ $n -lt 1000 ] && mkdir $deep/d 2>/dev/null; do deep=$deep/d; n=$((n+1)); done
        echo depth $n
        mkdir $(seq -f w%g 1100) 2>/dev/null
        echo all $(sed -n 's/^nr_descendants //p' cgroup.stat)";

    let ended = scene.run(&task([p("a", make)]));

    ended.assert("SUCCESS", &[("a", "S")]);
    assert_eq!(scene.stdout("a", 0), "depth 63\nall 1000\n");
    assert_eq!(scene.cgroup(), None);
}

/// attack 33: the kernel's answer is that the arguments are too long; the verdict says what is true.
#[test]
fn a_limit_of_memory_in_which_no_run_starts_is_named_in_the_verdict() {
    let scene = Scene::new();
    let of_run = p("a", "true").with("resources", json!({ "ram": "16KB" }));
    let run = scene.run(&task([of_run]));
    let other = Scene::new();
    let of_task = other.run(&task([p("a", "true")]).with("resources", json!({ "ram": "16KB" })));

    let leaf = format!("{CGROUP2}/dewar/tasks/{}/a.0", scene.id());
    let task = format!("{CGROUP2}/dewar/tasks/{}", other.id());
    for (ended, cgroup) in [(run, leaf), (of_task, task)] {
        ended.assert("FAILED", &[("a", "F")]);
        let verdict = json!({
            "reason": "VERDICT_REASON_LAUNCH_FAILED",
            "step": "execve /bin/bash",
            "detail": format!("memory.max 16384 of {cgroup} is too small to start a run"),
        });
        assert_eq!(ended.run("a", 0)["verdict"], verdict, "{ended}");
    }
}

/// attack 33: 1 MiB at start: it runs, or it is told that it had no memory; whoever started it lives in any case.
#[test]
fn no_limit_of_memory_kills_a_coordinator() {
    for kib in [64, 256, 1024] {
        let scene = Scene::new();
        let small = p("a", "echo hi").with("resources", json!({ "ram": format!("{kib}KB") }));

        let ended = scene.run(&task([small]));

        let run = ended.run("a", 0);
        let reason = run["verdict"]["reason"].as_str().unwrap();
        let detail = run["verdict"]["detail"].as_str().unwrap_or_default();
        match reason {
            "VERDICT_REASON_EXITED" => assert_eq!(scene.stdout("a", 0), "hi\n", "{kib} KiB"),
            "VERDICT_REASON_OOM" => {
                let bytes = kib << 10;
                let text = format!("{bytes} bytes of memory are too small to start a shell in");
                assert_eq!(detail, if bytes < 1 << 20 { text.as_str() } else { "" }, "{ended}");
            }
            "VERDICT_REASON_LAUNCH_FAILED" => {
                assert!(detail.ends_with("is too small to start a run"), "{kib} KiB: {ended}");
            }
            _ => panic!("{kib} KiB: {ended}"),
        }
    }
}

/// Of two runs that cannot both be there, one is, and the other is told why it is not.
#[test]
fn a_run_for_which_the_task_has_no_process_left_is_told_why() {
    let scene = Scene::new();
    let hold = scene.gate("hold");
    let limited = task(["a", "b"].map(|name| p(name, hold.hold())));
    let limited = limited.with("resources", json!({ "pids": 1 })).with("max_failures", 0);

    let mut running = scene.spawn(&limited);
    let failed = running.wait_for(|event| event["run"]["state"] == "PROCESS_STATE_FAILED");
    let cgroup = scene.cgroup().unwrap();
    hold.open();
    running.finish();

    let verdict = json!({
        "reason": "VERDICT_REASON_LAUNCH_FAILED",
        "step": "clone3",
        "errno": "EAGAIN",
        "detail": format!("pids.max 1 of {} is reached", cgroup.display()),
    });
    assert_eq!(failed["run"]["verdict"], verdict, "{failed}");
}

/// Memory of the task, not of one run: the run of the victim dies whole, and the policy of the task goes on.
#[test]
fn a_task_that_is_out_of_memory_loses_one_run_whole() {
    let scene = Scene::new();
    let hold = scene.gate("hold");
    let hog = format!("sleep 600 & x=$(tr '\\0' x < /dev/zero | head -c 16M); {}", "echo never");
    let task = task([p("hog", hog), p("meek", format!("{}; echo lived", hold.hold()))]);

    let mut running = scene.spawn(
        &task.with("resources", json!({ "ram": "12MB", "swap": 0 })).with("max_failures", 0),
    );
    running.wait_for_run("hog", 0, "FAILED");
    hold.open();

    let ended = running.finish();
    ended.assert("SUCCESS", &[("hog", "F"), ("meek", "S")]);
    assert_eq!(ended.run("hog", 0)["verdict"]["reason"], "VERDICT_REASON_OOM", "{ended}");
    assert_eq!(scene.stdout("meek", 0), "lived\n");
}

#[test]
fn a_ceiling_of_cpu_time_is_felt() {
    let scene = Scene::new();
    let spin = "n=0; while [ $n -lt 2000 ]; do n=$((n+1)); done
        cat /sys/fs/cgroup$(sed -n s/^0:://p /proc/self/cgroup)/cpu.stat";
    let limited = p("a", spin).with("resources", json!({ "cpu_limit": 0.2 }));

    let ended = scene.run(&task([limited]));

    ended.assert("SUCCESS", &[("a", "S")]);
    let stat = scene.stdout("a", 0);
    let value = |key: &str| -> u64 {
        let line = stat.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(' '));
        line.unwrap_or_else(|| panic!("{key}: {stat}")).parse().unwrap()
    };
    assert!(value("nr_throttled") > 0, "{stat}");
    let run = ended.run("a", 0);
    let took = seconds_between(&run["startTime"], &run["endTime"]);
    let share = value("usage_usec") as f64 / 1e6 / took;
    assert!(share < 0.3, "{share} CPUs in {took} s: {stat}");
}

/// The disk is found by a path, and by its numbers; what is not on one is refused by name.
#[test]
fn a_ceiling_of_a_disk_is_felt() {
    let scene = Scene::new();
    let disk = Disk::new(&scene);
    let write = format!("dd if=/dev/zero of={} bs=64k count=48 oflag=direct 2>&1", disk.device);
    let (told, hold) = (scene.gate("told"), scene.gate("hold"));
    let write = format!("{write}; {}; {}", told.tell(), hold.hold());
    let max = json!([{ "path": disk.device, "wbps": "1MB", "riops": 100 }]);
    let limited = p("a", write).with("resources", json!({ "io": { "weight": 50, "max": max } }));

    let start = Instant::now();
    let running = scene.spawn(&task([limited]));
    told.wait();
    let took = start.elapsed();

    let leaf = scene.cgroup().unwrap().join("a.0");
    let numbers = disk.numbers();
    assert_eq!(
        read(&leaf, "io.max"),
        format!("{numbers} rbps=max wbps=1048576 riops=100 wiops=max")
    );
    assert_eq!(read(&leaf, "io.weight"), "default 50");
    let stat = read(&leaf, "io.stat");
    let line = stat.lines().find(|line| line.starts_with(&numbers)).unwrap();
    assert!(line.contains(&format!("wbytes={}", 3 << 20)), "{stat}");
    assert!(took > Duration::from_secs(2), "3 MiB in {took:?}");
    hold.open();
    running.finish().assert("SUCCESS", &[("a", "S")]);
}

#[test]
fn a_path_without_a_disk_is_refused_by_what_it_is_on() {
    for (target, why) in [
        (json!({ "path": "/tmp", "rbps": 1 }), "a disk; /tmp is on tmpfs (device 0:"),
        (json!({ "path": "/nonesuch", "rbps": 1 }), "a disk; /nonesuch: No such file"),
        (json!({ "device": "250:7", "rbps": 1 }), "a disk; /sys/dev/block/250:7 is not there"),
    ] {
        let limits = json!({ "io": { "max": [target] } });

        let refused = Scene::new().run(&task([p("a", "true")]).with("resources", limits));

        assert_eq!(refused.status, Some(5), "{refused}");
        let text = format!("resources.io.max[0] cannot be enforced: it needs {why}");
        assert!(refused.stderr.contains(&text), "{refused}");
    }
}

/// S42: file by file, not only controller by controller. These kernels have no zswap.
#[test]
fn a_file_that_this_kernel_does_not_have_is_refused_by_name() {
    let missing = json!({ "cgroup": { "memory.zswap.max": "0" } });
    let limited = task([p("a", "true")]).with("resources", missing.clone());

    let refused = Scene::new().run(&limited);
    assert_eq!(refused.status, Some(5), "{refused}");
    let why = "resources.cgroup[memory.zswap.max] cannot be enforced: it needs memory.zswap.max; ";
    assert!(refused.stderr.contains(why), "{refused}");

    let held = Held::with(missing, json!({}), &["--allow-unenforced"]);
    let (_, ended) = held.end();
    assert_eq!(ended.task["unenforced"], json!(["resources.cgroup[memory.zswap.max]"]));
}

#[test]
fn what_the_kernel_rounds_is_told_at_once_and_kept() {
    let of_task =
        json!({ "ram": 10_000_000, "cpu": 200, "cgroup": { "memory.swap.high": "5000" } });
    let held = Held::new(of_task, json!({}));

    let [task, _] = held.cgroups();
    assert_eq!(read(&task, "memory.max"), "9998336");
    assert_eq!(read(&task, "memory.swap.high"), "4096");
    let (scene, ended) = held.end();
    let told = json!([
        "resources.cpu: weight 10000 is in force, weight 20000 was asked for",
        "resources.ram: 9998336 is in force, 10000000 was asked for",
        "resources.cgroup[memory.swap.high]: 4096 is in force, 5000 was asked for",
    ]);
    assert_eq!(ended.task["rounded"], told);
    assert_eq!(scene.status()["rounded"], told);
    for text in told.as_array().unwrap() {
        assert!(ended.stderr.contains(text.as_str().unwrap()), "{ended}");
    }
}

/// What `dewar update` stands on: a part of the limits, on a task that lives, in whichever order the kernel wants them.
#[test]
fn some_limits_of_a_live_task_are_changed_and_the_others_stay() {
    let burst = json!({ "cpus": 1, "burst": "80ms" });
    let held = Held::new(json!({ "ram": "64MB", "cpu_limit": burst }), json!({}));
    let [task, leaf] = held.cgroups();
    let id = TaskId::new(held.scene.id()).unwrap();
    let live = TaskCgroup::open_existing(&task, &id).unwrap().unwrap();
    let some = proto::Resources {
        cpu_limit: Some(proto::CpuLimit { cpus: Some(0.5), ..Default::default() }),
        cpuset: Some(proto::Cpuset { cpus: Some("1".to_owned()), mems: None }),
        ..Default::default()
    };
    let some = Resources::from_proto(&some, "update").unwrap();

    let applied = live.limit(&some, "update").unwrap();
    live.enable_for_runs(&some);
    let run = live.open_leaf(&ProcessName::new("a").unwrap(), 0).unwrap().unwrap();
    let of_run = run.apply(&some, "update").unwrap();

    assert_eq!((applied, of_run), (Applied::default(), Applied::default()));
    assert_eq!(read(&task, "cpu.max"), "50000 100000");
    assert_eq!(read(&task, "cpu.max.burst"), "0");
    assert_eq!(read(&task, "memory.max"), (64 << 20).to_string());
    assert_eq!(read(&leaf, "cpuset.cpus.effective"), "1");
    held.end();
}

#[test]
fn a_value_that_the_kernel_refuses_is_refused_before_anything_is_started() {
    let wrong = json!({ "cgroup": { "memory.swap.high": "much" } });
    let scene = Scene::new();

    let refused = scene.run(&task([p("a", "true")]).with("resources", wrong));

    assert_eq!(refused.status, Some(5), "{refused}");
    assert!(refused.stderr.contains("memory.swap.high to take \"much\"; Invalid"), "{refused}");
    assert_eq!(scene.cgroup(), None);
}

/// Memory is kept as far as all around keep it: what is dewar's own does, while a task asks for it.
#[test]
fn protection_is_passed_on_while_a_task_asks_for_it() {
    let around = ["dewar", "dewar/tasks"].map(|name| Path::new(CGROUP2).join(name));
    let kept = || around.each_ref().map(|cgroup| read(cgroup, "memory.min"));
    let mib = |count: u64| (count << 20).to_string();

    let first = Held::new(json!({ "memory_min": "3MB" }), json!({ "memory_min": "1MB" }));
    assert_eq!(kept(), [mib(3), mib(3)]);
    let second = Held::new(json!({ "memory_min": "2MB" }), json!({}));
    assert_eq!(kept(), [mib(5), mib(5)]);

    first.end();
    wait_until("the end of the first", || kept() == [mib(2), mib(2)]);
    second.end();
    wait_until("the end of the second", || kept() == [mib(0), mib(0)]);
}

#[test]
fn protection_of_a_run_that_its_task_does_not_have_is_refused() {
    let process = p("a", "true").with("resources", json!({ "memory_min": "1MB" }));

    let refused = Scene::new().run(&task([process]));

    assert_eq!(refused.status, Some(5), "{refused}");
    let why = "processes[0].resources.memory_min cannot be enforced: it needs as much of it in ";
    assert!(refused.stderr.contains(why), "{refused}");
}
