//! The least that must work before anything else is worth a look.

use std::fs;

use cgroups_rs::cpu::CpuController;
use cgroups_rs::memory::MemController;
use serde_json::json;

use crate::machine::{CGROUP2, controller, keyed, read, theirs};
use crate::support::{Scene, p, task};

#[test]
fn the_controllers_that_dewar_uses_are_on_v2() {
    let controllers = fs::read_to_string(format!("{CGROUP2}/cgroup.controllers")).unwrap();

    for controller in ["cpu", "io", "memory", "pids", "cpuset", "hugetlb"] {
        assert!(controllers.split_whitespace().any(|name| name == controller), "{controllers}");
    }
}

#[test]
fn limits_of_a_task_and_of_a_process_read_back_as_they_were_asked_for() {
    let scene = Scene::new();
    let (told, hold) = (scene.gate("told"), scene.gate("hold"));
    let process = p("a", format!("{}; {}", told.tell(), hold.hold()));
    let process = process.with("resources", json!({ "ram": "16MiB", "cpu": 0.5 }));
    let task = task([process]).with("resources", json!({ "ram": "64MiB", "cpu": 2 }));

    let running = scene.spawn(&task);
    told.wait();
    let cgroup = scene.cgroup().unwrap();
    let leaf = cgroup.join("a.0");

    for (cgroup, bytes, weight) in [(&cgroup, 64 << 20, 200), (&leaf, 16 << 20, 50)] {
        assert_eq!(read(cgroup, "memory.max"), (bytes as u64).to_string());
        assert_eq!(read(cgroup, "cpu.weight"), weight.to_string());
        let theirs = theirs(cgroup);
        let memory: &MemController = controller(&theirs);
        assert_eq!(memory.memory_stat().limit_in_bytes, bytes);
        let cpu: &CpuController = controller(&theirs);
        assert_eq!(cpu.shares().unwrap(), weight);
    }
    assert_eq!(read(&leaf, "memory.oom.group"), "1");
    hold.open();
    running.finish().assert("SUCCESS", &[("a", "S")]);
}

#[test]
fn a_run_that_takes_more_memory_than_it_may_is_told_as_out_of_memory() {
    let scene = Scene::new();
    let hog = p("hog", "echo begun; x=$(tr '\\0' x < /dev/zero | head -c 24M); echo never");
    let hog = hog.with("resources", json!({ "ram": "16MiB" }));

    let ended = scene.run(&task([hog]));

    ended.assert("FAILED", &[("hog", "F")]);
    let run = ended.run("hog", 0);
    assert_eq!(run["verdict"]["reason"], "VERDICT_REASON_OOM", "{ended}");
    assert_ne!(run["usage"]["oomKills"], serde_json::Value::Null, "{ended}");
    let peak: u64 = run["usage"]["memoryPeakBytes"].as_str().unwrap().parse().unwrap();
    assert!((15 << 20..=16 << 20).contains(&peak), "{peak}");
    assert_eq!(scene.stdout("hog", 0), "begun\n", "it died whole");
}

#[test]
fn the_usage_of_a_task_is_that_of_all_its_runs() {
    let scene = Scene::new();
    let (told, hold) = (scene.gate("told"), scene.gate("hold"));
    let spin = "n=0; while [ $n -lt 20000 ]; do n=$((n+1)); done";
    let task = task([
        p("spins", format!("{spin}; {}; {}", told.tell(), hold.hold())),
        p("waits", hold.hold()),
    ]);

    let running = scene.spawn(&task);
    told.wait();
    let cgroup = scene.cgroup().unwrap();
    let usage = |cgroup| keyed(cgroup, "cpu.stat", "usage_usec");
    let (leaf, whole) = (usage(&cgroup.join("spins.0")), usage(&cgroup));

    assert!(leaf > 0 && whole >= leaf, "{leaf} of {whole}");
    hold.open();
    hold.open();
    running.finish().assert("SUCCESS", &[("spins", "S"), ("waits", "S")]);
}
