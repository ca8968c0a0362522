//! On machines that keep their controllers on cgroup v1, and have v2 beside it, at `/sys/fs/cgroup/unified`.

use std::fs;

use serde_json::json;

use crate::machine::run_where;
use crate::support::{Scene, p, task};

const UNIFIED: &str = "/sys/fs/cgroup/unified";

/// attack 56: v2 is where it is, and no controller of it is needed to hold a run together.
#[test]
fn a_run_is_in_a_leaf_of_v2_and_dies_with_it() {
    let scene = Scene::new();
    let told = scene.gate("told");
    let lingers = format!("setsid sleep 600 & cat /proc/self/cgroup; {}; wait", told.tell());

    let running = scene.spawn(&task([p("a", lingers)]));
    told.wait();
    let cgroup = scene.cgroup().unwrap();
    let inhabitants = fs::read_to_string(cgroup.join("a.0/cgroup.procs")).unwrap();
    scene.kill(&["--wait", "0s"]);

    running.finish().assert("KILLED", &[("a", "K")]);
    assert_eq!(cgroup, format!("{UNIFIED}/dewar/tasks/{}", scene.id()));
    assert_eq!(inhabitants.lines().count(), 2);
    let told = scene.stdout("a", 0);
    assert!(told.contains(&format!("\n0::/dewar/tasks/{}/a.0\n", scene.id())), "{told}");
    assert!(told.contains(":memory:/\n"), "v1 was touched: {told}");
    assert!(!cgroup.exists());
}

/// attacks 56 and 58: what is bound to v1 is refused by name, and said where it is.
#[test]
fn a_limit_whose_controller_is_on_v1_is_refused_by_name() {
    for (limit, controller) in [("ram", "memory"), ("cpu", "cpu")] {
        let scene = Scene::new();
        let limited = task([p("a", "true")]).with("resources", json!({ limit: 64_000_000 }));

        let refused = scene.run(&limited);
        let ended = scene.run_with(&limited, &["--allow-unenforced"]);

        assert_eq!(refused.status, Some(5), "{refused}");
        for said in
            [&format!("resources.{limit}"), &format!("the {controller} controller"), "cgroup v1"]
        {
            assert!(refused.stderr.contains(said), "{said}: {refused}");
        }
        ended.assert("SUCCESS", &[("a", "S")]);
        assert_eq!(ended.task["unenforced"], json!([format!("resources.{limit}")]));
    }
}

/// attack 56: mounted elsewhere, it is found elsewhere.
#[test]
fn v2_is_found_wherever_it_is_mounted() {
    let scene = Scene::new();
    let elsewhere = format!("umount {UNIFIED}; mount -t cgroup2 none /mnt");

    let ended = run_where(&scene, &elsewhere, &task([p("a", "cat /proc/self/cgroup")]), &[]);

    ended.assert("SUCCESS", &[("a", "S")]);
    assert!(scene.stdout("a", 0).contains(&format!("0::/dewar/tasks/{}/a.0", scene.id())));
}

/// attack 56: a host with v1 alone is told what is missing and what was found, and nothing is begun.
#[test]
fn without_v2_the_refusal_says_what_was_found_and_what_to_do() {
    let scene = Scene::new();

    let refused = run_where(&scene, &format!("umount {UNIFIED}"), &task([p("a", "true")]), &[]);

    assert_eq!(refused.status, Some(5), "{refused}");
    for said in
        ["no cgroup v2 hierarchy is mounted here", "memory", "mount -t cgroup2", "--cgroup none"]
    {
        assert!(refused.stderr.contains(said), "{said}: {refused}");
    }
    assert!(!scene.sandbox().exists(), "something was begun");
}

/// attack 57: without v2 a task runs when it is asked to, contained by being reaped, and says that this is weaker.
#[test]
fn without_v2_a_task_runs_if_it_is_told_to() {
    let scene = Scene::new();
    let hole = format!("umount {UNIFIED}; mount -t tmpfs none /sys/fs/cgroup");

    let ended = run_where(&scene, &hole, &task([p("a", "true")]), &["--cgroup", "none"]);

    ended.assert("SUCCESS", &[("a", "S")]);
    assert_eq!(ended.task["containment"], "none");
    assert!(ended.stderr.contains("weaker"), "{ended}");
}
