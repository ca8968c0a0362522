//! What tasks use: `dewar stats`, and what `dewar run` tells at the end.

use serde_json::Value;

use crate::support::{Scene, p, task};

/// Bash that spends some CPU time.
const SPIN: &str = "n=0; while [ $n -lt 30000 ]; do n=$((n+1)); done";

fn seconds(time: &Value) -> f64 {
    let text = time.as_str().unwrap_or_else(|| panic!("no time: {time}"));
    text.strip_suffix('s').unwrap().parse().unwrap()
}

#[track_caller]
fn stats(scene: &Scene, more: &[&str]) -> Value {
    let told = scene.dewar(&[&["stats", scene.id(), "--output", "json"], more].concat());
    assert_eq!(told.status, Some(0), "{told:?}");
    serde_json::from_str(&told.stdout).unwrap()
}

#[test]
fn stats_tell_of_a_live_task_what_its_cgroups_hold_and_of_an_ended_one_what_is_recorded() {
    let scene = Scene::new();
    let (spun, end) = (scene.gate("spun"), scene.gate("end"));
    let a = p("a", format!("{SPIN}; {}; {}", spun.tell(), end.hold()));
    let mut running = scene.spawn(&task([a, p("b", SPIN)]));
    running.wait_for_run("b", 0, "SUCCESS");
    spun.wait();

    let live = stats(&scene, &["--by-process"]);
    end.open();
    let ended = running.finish();
    let over = stats(&scene, &["--by-process"]);

    assert_eq!(live["state"], "TASK_STATE_ACTIVE");
    let [a, b] = [0, 1].map(|index| &live["processes"][index]);
    assert_eq!((&a["name"], &a["run"], &a["recorded"]), (&"a".into(), &0.into(), &Value::Null));
    assert_eq!((&b["run"], &b["sample"]), (&Value::Null, &Value::Null));
    let of_a = seconds(&a["sample"]["cpu"]["time"]);
    let of_b = seconds(&b["recorded"]["cpuTime"]);
    assert!(of_a > 0.01 && of_b > 0.01, "{live}");
    // The cgroup of the task has the time of the run that is over, whose leaf is gone.
    // To the microsecond, in which they are told: sums of fractions are not exact.
    let both = of_a + of_b - 1e-7;
    assert!(seconds(&live["sample"]["cpu"]["time"]) >= both, "{live}");

    assert_eq!((&over["state"], &over["sample"]), (&"TASK_STATE_SUCCESS".into(), &Value::Null));
    assert!(seconds(&over["recorded"]["cpuTime"]) >= both, "{over}");
    assert_eq!(over["recorded"], ended.task["usage"]);
    assert_eq!(over["processes"][0]["recorded"], ended.run("a", 0)["usage"]);
}

/// V11, W10: a process whose parents have gone is in the leaf, and so is the time that it spends.
#[test]
fn what_forks_twice_is_in_the_leaf_and_its_time_counts() {
    let scene = Scene::new();
    let (spun, end) = (scene.gate("spun"), scene.gate("end"));
    // In ticks of 10 ms, of this process alone.
    let spin = "until read -ra s < /proc/self/stat && (( s[13] + s[14] >= 20 )); do :; done";
    let orphan = format!("{spin}; {}; exec sleep 600", spun.tell());
    let line = format!("setsid bash -c '({orphan}) & exit'; {}", end.hold());
    let running = scene.spawn(&task([p("a", line)]));
    spun.wait();

    let live = stats(&scene, &["--by-process"]);
    end.open();
    let ended = running.finish();

    let of_a = &live["processes"][0]["sample"];
    assert!(seconds(&of_a["cpu"]["time"]) >= 0.2, "{live}");
    assert!(seconds(&ended.run("a", 0)["usage"]["cpuTime"]) >= 0.2, "{ended}");
    if let Some(count) = of_a["pids"]["current"].as_str() {
        assert_eq!(count, "2", "bash and the orphan: {live}");
    }
}

#[test]
fn stats_that_watch_a_task_tell_its_end_and_end() {
    let scene = Scene::new();
    let end = scene.gate("end");
    let mut running = scene.spawn(&task([p("a", end.hold())]));
    running.wait_until_running("a", 0);
    let root = scene.root();
    let arguments = ["stats", scene.id(), "--watch=20ms", "--output", "json", "--root"];
    let mut watching = scene.follow({
        let mut command = scene.command(arguments);
        command.arg(root);
        command
    });
    let first = watching.wait_for(|line| line["sample"].is_object());
    let id = first["sample"]["cgroupId"].clone();
    let later = |line: &Value| line["sample"]["bootNanos"] != first["sample"]["bootNanos"];
    let second = watching.wait_for(later);

    end.open();

    assert_eq!(second["sample"]["cgroupId"], id);
    let watched = watching.finish();
    assert_eq!(watched.status, Some(0), "{watched}");
    assert_eq!(watched.task["state"], "TASK_STATE_SUCCESS");
    running.finish().assert("SUCCESS", &[("a", "S")]);
}

#[test]
fn stats_of_a_task_that_is_not_there_match_nothing() {
    let scene = Scene::new();
    scene.run(&task([p("a", "true")])).assert("SUCCESS", &[("a", "S")]);

    let named = scene.dewar(&["stats", "nonesuch"]);
    let live = scene.dewar(&["stats"]);

    assert_eq!(named.status, Some(1), "{named:?}");
    assert!(named.stderr.contains("no such task"), "{named:?}");
    // Without a name, tasks that have ended are not told of.
    assert_eq!((live.status, live.stdout.lines().count()), (Some(0), 1), "{live:?}");
}

#[test]
fn the_end_of_a_run_tells_people_what_the_task_used() {
    let scene = Scene::new();
    let file = scene.file("task.json", task([p("a", SPIN)]).text());
    let mut command = scene.command(scene.run_arguments());
    command.arg(file);

    let told = scene.output(command);

    assert_eq!(told.status, Some(0), "{told:?}");
    let used = format!("dewar: {} used: ", scene.id());
    let line = told.stderr.lines().find_map(|line| line.strip_prefix(&used));
    let line = line.unwrap_or_else(|| panic!("{told:?}"));
    assert!(line.contains("s elapsed, ") && line.contains("s CPU"), "{line}");
}
