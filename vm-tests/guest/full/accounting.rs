//! What dewar tells of the use of a task, against the files themselves and an independent reader.

use std::fs;
use std::path::Path;

use cgroups_rs::memory::MemController;
use cgroups_rs::pid::PidController;
use serde_json::{Value, json};

use crate::disk::Disk;
use crate::machine::{controller, keyed, read, theirs};
use crate::support::{Scene, p, task};

#[track_caller]
fn stats(scene: &Scene) -> Value {
    let told = scene.dewar(&["stats", scene.id(), "--by-process", "--output", "json"]);
    assert_eq!(told.status, Some(0), "{told:?}");
    serde_json::from_str(&told.stdout).unwrap()
}

/// A 64-bit integer, which JSON has as text.
#[track_caller]
fn number(value: &Value) -> u64 {
    value.as_str().unwrap_or_else(|| panic!("no number: {value}")).parse().unwrap()
}

#[track_caller]
fn seconds(value: &Value) -> f64 {
    let text = value.as_str().unwrap_or_else(|| panic!("no time: {value}"));
    text.strip_suffix('s').unwrap().parse().unwrap()
}

/// Nothing happens in the cgroup while it is read, so that all readers must see the same.
#[test]
fn a_sample_says_what_the_files_and_an_independent_reader_say() {
    let scene = Scene::new();
    let (told, hold) = (scene.gate("told"), scene.gate("hold"));
    let hoard = "x=$(head -c 8M /dev/zero | tr '\\0' x)";
    let cmdline = format!("{hoard}; {}; {}", told.tell(), hold.hold());
    let limits = json!({ "ram": "64MiB" });
    let running = scene.spawn(&task([p("a", cmdline).with("resources", limits)]));
    told.wait();
    let cgroup = scene.cgroup().unwrap();
    let leaf = cgroup.join("a.0");

    let stats = stats(&scene);

    for (cgroup, sample) in [(&cgroup, &stats["sample"]), (&leaf, &stats["processes"][0]["sample"])]
    {
        let memory = &sample["memory"];
        for (field, file) in [("currentBytes", "memory.current"), ("peakBytes", "memory.peak")] {
            assert_eq!(memory[field], read(cgroup, file).as_str(), "{field} of {sample}");
        }
        for (field, key) in [
            ("anonBytes", "anon"),
            ("fileBytes", "file"),
            ("kernelBytes", "kernel"),
            ("inactiveFileBytes", "inactive_file"),
        ] {
            assert_eq!(
                number(&memory[field]),
                keyed(cgroup, "memory.stat", key),
                "{field} of {sample}"
            );
        }
        for (field, key) in [("low", "low"), ("high", "high"), ("max", "max"), ("oom", "oom")] {
            let count = keyed(cgroup, "memory.events", key);
            assert_eq!(number(&memory["events"][field]), count, "{field} of {sample}");
        }
        let working_set = number(&memory["currentBytes"]) - number(&memory["inactiveFileBytes"]);
        assert_eq!(number(&memory["workingSetBytes"]), working_set);
        assert_eq!(sample["pids"]["current"], read(cgroup, "pids.current").as_str());
        let micros = keyed(cgroup, "cpu.stat", "usage_usec");
        assert_eq!((seconds(&sample["cpu"]["time"]) * 1e6).round() as u64, micros);
        for resource in ["cpu", "memory", "io"] {
            let pressure = read(cgroup, &format!("{resource}.pressure"));
            for (line, kind) in pressure.lines().zip(["some", "full"]) {
                let total: u64 = line.rsplit_once("total=").unwrap().1.parse().unwrap();
                let told = seconds(&sample["pressure"][resource][kind]["total"]);
                // What waits goes on waiting, also for the reader.
                assert!(
                    (total as f64 / 1e6 - told).abs() < 1.0,
                    "{resource} {kind}: {line}, {told}"
                );
            }
        }
        let theirs = theirs(cgroup);
        let their_memory: &MemController = controller(&theirs);
        assert_eq!(number(&memory["currentBytes"]), their_memory.memory_stat().usage_in_bytes);
        let their_pids: &PidController = controller(&theirs);
        assert_eq!(number(&sample["pids"]["current"]), their_pids.get_pid_current().unwrap());
    }
    let memory = &stats["processes"][0]["sample"]["memory"];
    assert_eq!(memory["maxBytes"], (64 << 20).to_string());
    assert_eq!(stats["sample"]["memory"]["maxBytes"], Value::Null, "no limit is absent");
    assert!(number(&memory["anonBytes"]) > 8 << 20, "{memory}");
    hold.open();
    running.finish().assert("SUCCESS", &[("a", "S")]);
}

/// A quota of a quarter of a CPU for somebody who wants a whole one.
#[test]
fn throttling_is_told_while_it_lasts_and_at_the_end() {
    let scene = Scene::new();
    let (told, hold) = (scene.gate("told"), scene.gate("hold"));
    let spin = "n=0; while [ $n -lt 4000 ]; do n=$((n+1)); done";
    let cmdline = format!("{}; {}; {spin}; {}", told.tell(), hold.hold(), told.tell());
    let mut running = scene.spawn(&task([p("a", cmdline + "; read -r _ < hold2")]));
    told.wait();
    nix::unistd::mkfifo(&scene.sandbox().join("hold2"), nix::sys::stat::Mode::S_IRWXU).unwrap();
    let leaf = scene.leaf("a.0");
    fs::write(leaf.join("cpu.max"), "5000 20000").unwrap();
    hold.open();
    told.wait();

    let live = stats(&scene);
    fs::write(scene.sandbox().join("hold2"), "\n").unwrap();
    running.wait_for_run("a", 0, "SUCCESS");
    let ended = running.finish();

    let cpu = &live["processes"][0]["sample"]["cpu"];
    assert!(number(&cpu["throttledPeriods"]) > 0 && seconds(&cpu["throttledTime"]) > 0.0, "{cpu}");
    assert!(number(&cpu["periods"]) >= number(&cpu["throttledPeriods"]), "{cpu}");
    let usage = &ended.run("a", 0)["usage"];
    assert!(number(&usage["cpuThrottledPeriods"]) >= number(&cpu["throttledPeriods"]), "{usage}");
    assert!(seconds(&usage["cpuThrottledTime"]) >= seconds(&cpu["throttledTime"]), "{usage}");
}

#[test]
fn io_is_told_by_device_with_its_name() {
    let scene = Scene::new();
    let disk = Disk::new(&scene.path("disk"), 16);
    let device = disk.device().display().to_string();
    let write = format!("dd if=/dev/zero of={device} bs=64K count=16 oflag=direct 2>/dev/null");
    let read = format!("dd if={device} of=/dev/null bs=64K count=8 iflag=direct 2>/dev/null");

    let ended = scene.run(&task([p("a", format!("{write} && {read}"))]));

    let usage = &ended.assert("SUCCESS", &[("a", "S")]).run("a", 0)["usage"];
    assert_eq!(
        (number(&usage["ioWriteBytes"]), number(&usage["ioReadBytes"])),
        (1 << 20, 512 << 10)
    );
    assert_eq!((number(&usage["ioWrites"]), number(&usage["ioReads"])), (16, 8));
    assert_eq!(ended.task["usage"]["ioWriteBytes"], usage["ioWriteBytes"]);
}

#[test]
fn a_live_task_tells_of_each_device_that_it_uses() {
    let scene = Scene::new();
    let disk = Disk::new(&scene.path("disk"), 16);
    let (told, hold) = (scene.gate("told"), scene.gate("hold"));
    let device = disk.device().display().to_string();
    let write = format!("dd if=/dev/zero of={device} bs=64K count=16 oflag=direct 2>/dev/null");
    let cmdline = format!("{write}; {}; {}", told.tell(), hold.hold());
    let running = scene.spawn(&task([p("a", cmdline)]));
    told.wait();

    let stats = stats(&scene);

    let devices = stats["sample"]["io"]["devices"].as_array().unwrap();
    let name = disk.device().file_name().unwrap().to_str().unwrap();
    let found = devices.iter().find(|of| of["name"] == name);
    let found = found.unwrap_or_else(|| panic!("no {name}: {stats}"));
    assert_eq!((number(&found["writeBytes"]), number(&found["writes"])), (1 << 20, 16));
    assert_eq!(found["device"], read(Path::new("/sys/block").join(name).as_path(), "dev").as_str());
    hold.open();
    running.finish().assert("SUCCESS", &[("a", "S")]);
}

/// The peak of two runs at the same time is known to the cgroup of the task alone.
#[test]
fn the_peak_of_a_task_is_that_of_its_runs_together() {
    let scene = Scene::new();
    let (told, hold) = (scene.gate("told"), scene.gate("hold"));
    let hoard = "x=$(head -c 8M /dev/zero | tr '\\0' x)";
    let cmdline = format!("{hoard}; {}; {}", told.tell(), hold.hold());
    let running = scene.spawn(&task([p("a", cmdline.clone()), p("b", cmdline)]));
    told.wait();
    while keyed(&scene.cgroup().unwrap(), "memory.stat", "anon") < 16 << 20 {
        std::thread::yield_now();
    }

    hold.open();
    hold.open();
    let ended = running.finish();

    ended.assert("SUCCESS", &[("a", "S"), ("b", "S")]);
    let peak = |of: &Value| number(&of["usage"]["memoryPeakBytes"]);
    let (a, b) = (peak(ended.run("a", 0)), peak(ended.run("b", 0)));
    let whole = peak(&ended.task);
    assert!(whole >= 16 << 20 && whole > a.max(b), "{whole} of {a} and {b}");
    assert!(number(&ended.run("a", 0)["usage"]["pidsPeak"]) >= 2, "{ended}");
}

/// attack 22, the part of it that is told: forks that were refused are a note in the verdict, at the level of the limit.
#[test]
fn refused_forks_are_told_with_whose_limit_it_was() {
    for level in ["RUN", "TASK"] {
        let scene = Scene::new();
        let (told, hold) = (scene.gate("told"), scene.gate("hold"));
        // Bash would try for 15 s.
        let forks = "exec busybox sh -c 'for n in 1 2 3 4 5 6 7 8; do sleep 60 & done'";
        let cmdline = format!("{}; {}; {forks}", told.tell(), hold.hold());
        let running = scene.spawn(&task([p("a", cmdline)]));
        told.wait();
        let (cgroup, leaf) = (scene.cgroup().unwrap(), scene.leaf("a.0"));
        let limited = if level == "RUN" { &leaf } else { &cgroup };
        fs::write(limited.join("pids.max"), "4").unwrap();
        hold.open();

        let ended = running.finish();

        let verdict = &ended.run("a", 0)["verdict"];
        // The shell gives up when it cannot fork; that is an exit, and the limit is a note.
        assert_eq!(verdict["reason"], "VERDICT_REASON_EXITED", "{ended}");
        let note = &verdict["pidsLimit"];
        assert_eq!(note["level"], format!("LIMIT_LEVEL_{level}"), "{ended}");
        assert_eq!(note["cgroup"], limited.to_str().unwrap(), "{ended}");
        assert_eq!((number(&note["limit"]), number(&note["refused"]) > 0), (4, true), "{ended}");
    }
}
