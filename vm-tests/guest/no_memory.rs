//! On a machine that was booted with `cgroup_disable=memory`.

use serde_json::json;

use crate::machine::{keyed, read};
use crate::support::{Scene, p, task};

/// attack 58: the limit that cannot be had is named; those that can be are not in the way.
#[test]
fn a_memory_limit_is_refused_by_name_and_no_other() {
    let scene = Scene::new();
    let limits = json!({ "cpu": 2, "ram": "64MiB" });
    let limited = task([p("a", "true")]).with("resources", limits);

    let refused = scene.run(&limited);

    assert_eq!(refused.status, Some(5), "{refused}");
    assert!(
        refused.stderr.contains("resources.ram cannot be enforced: it needs the memory controller"),
        "{refused}"
    );
    assert!(!refused.stderr.contains("resources.cpu"), "{refused}");
}

/// attack 58: `+memory` in one write with others would enable none of them.
#[test]
fn the_other_controllers_are_enabled_without_it() {
    let scene = Scene::new();
    let (told, hold) = (scene.gate("told"), scene.gate("hold"));
    let a = p("a", format!("{}; {}", told.tell(), hold.hold()));
    let limited = task([a]).with("resources", json!({ "cpu": 2, "ram": "64MiB" }));

    let running = scene.spawn_with(&limited, &["--allow-unenforced"]);
    told.wait();
    let cgroup = scene.cgroup().unwrap();

    assert_eq!(read(&cgroup, "cpu.weight"), "200");
    assert!(!cgroup.join("memory.max").exists());
    assert!(keyed(&cgroup.join("a.0"), "cpu.stat", "usage_usec") > 0);
    hold.open();
    let ended = running.finish();
    ended.assert("SUCCESS", &[("a", "S")]);
    assert_eq!(ended.task["unenforced"], json!(["resources.ram"]));
}

/// attack 50: what is not accounted for is absent, not zero.
#[test]
fn usage_has_no_memory_in_it() {
    let scene = Scene::new();

    let ended = scene.run(&task([p("a", "true")]));

    ended.assert("SUCCESS", &[("a", "S")]);
    let usage = &ended.run("a", 0)["usage"];
    assert!(usage["cpuTime"].is_string(), "{ended}");
    assert!(usage["memoryPeakBytes"].is_null() && usage["oomKills"].is_null(), "{ended}");
}
