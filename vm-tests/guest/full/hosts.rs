//! Hosts on which something is missing or in the way, made from one that has everything.

use std::fs;

use serde_json::json;

use crate::machine::{CGROUP2, Scratch, read, run_where};
use crate::support::{Scene, p, task};

/// attack 57: it is found out by doing, and nothing is begun.
#[test]
fn a_hierarchy_that_can_only_be_read_is_refused() {
    let scene = Scene::new();
    let read_only = format!("mount -o remount,bind,ro {CGROUP2}");

    let refused = run_where(&scene, &read_only, &task([p("a", "true")]), &[]);
    let ended = run_where(&scene, &read_only, &task([p("a", "true")]), &["--cgroup", "none"]);

    assert_eq!(refused.status, Some(5), "{refused}");
    assert!(refused.stderr.contains("is on a read-only mount"), "{refused}");
    ended.assert("SUCCESS", &[("a", "S")]);
    assert_eq!(ended.task["containment"], "none");
    assert!(ended.stderr.contains("weaker"), "{ended}");
}

/// attack 57: a base that belongs to somebody else.
#[test]
fn an_ordinary_user_cannot_use_the_cgroup_of_root() {
    let scene = Scene::new();
    let theirs = Scratch::new(&format!("{CGROUP2}/roots"), &[]);
    let run = scene.run_command(&task([p("a", "true")]), &["--cgroup-base"]);
    let mut command = std::process::Command::new("setpriv");
    command.args(["--reuid", "tester", "--regid", "tester", "--init-groups"]);
    command.arg(run.get_program()).args(run.get_args().map(|argument| {
        if argument == "--cgroup-base" {
            "--cgroup-base=/sys/fs/cgroup/roots".as_ref()
        } else {
            argument
        }
    }));
    fs::set_permissions(scene.path(""), std::os::unix::fs::PermissionsExt::from_mode(0o777))
        .unwrap();

    let refused = scene.follow(command).finish();

    assert_eq!(refused.status, Some(5), "{refused}");
    assert!(
        refused
            .stderr
            .contains(&format!("{} cannot be written", theirs.path().join("supervisor").display())),
        "{refused}"
    );
}

/// attack 57: given to the user as docs/hosts.md says, it is used, and limits hold in it.
#[test]
fn an_ordinary_user_runs_in_the_cgroup_that_root_gave_away() {
    let scene = Scene::new();
    for controller in ["cpu", "memory"] {
        fs::write(format!("{CGROUP2}/cgroup.subtree_control"), format!("+{controller}")).unwrap();
    }
    let given = Scratch::new(&format!("{CGROUP2}/given"), &[]);
    fs::set_permissions(scene.path(""), std::os::unix::fs::PermissionsExt::from_mode(0o777))
        .unwrap();
    let limited = task([p("a", "cat /proc/self/cgroup; id -un")]);
    let run = scene.run_command(&limited.with("resources", json!({ "ram": "32MiB" })), &[]);
    let mut command = std::process::Command::new("bash");
    command.args(["-e", "-c"]);
    command.arg(
        "cd $0; chown tester . cgroup.procs cgroup.subtree_control cgroup.threads; echo $$ > cgroup.procs; cd /
         exec setpriv --reuid tester --regid tester --init-groups \"$@\"",
    );
    command.arg(given.path()).arg(run.get_program()).args(run.get_args());

    let ended = scene.follow(command).finish();

    ended.assert("SUCCESS", &[("a", "S")]);
    let said = scene.stdout("a", 0);
    assert_eq!(said, format!("0::/given/tasks/{}/a.0\ntester\n", scene.id()));
}

/// attack 58: disabled by the parent, not by the kernel.
#[test]
fn a_controller_that_the_parent_keeps_for_itself_is_named() {
    let scene = Scene::new();
    let parent = Scratch::new(&format!("{CGROUP2}/parent"), &[]);
    let base = parent.path().join("dewar");
    let limited = task([p("a", "true")]).with("resources", json!({ "ram": "32MiB" }));

    let refused = scene.run_with(&limited, &["--cgroup-base", base.to_str().unwrap()]);

    assert_eq!(refused.status, Some(5), "{refused}");
    let said = format!("it needs the memory controller; {} offers", base.display());
    assert!(refused.stderr.contains(&said), "{said}: {refused}");
}

/// attack 58: what an earlier run, or somebody, left enabled is no obstacle.
#[test]
fn a_dirty_subtree_control_is_no_obstacle() {
    let scene = Scene::new();
    let base = Scratch::new(&format!("{CGROUP2}/dirty"), &[]);
    let tasks = Scratch::new(&format!("{CGROUP2}/dirty/tasks"), &[]);
    for controller in ["pids", "memory", "cpuset"] {
        fs::write(format!("{CGROUP2}/cgroup.subtree_control"), format!("+{controller}")).unwrap();
        base.write("cgroup.subtree_control", &format!("+{controller}"));
    }
    tasks.write("cgroup.subtree_control", "+cpuset");
    let limited = task([p("a", "true")]).with("resources", json!({ "ram": "32MiB", "cpu": 1 }));

    let ended = scene.run_with(&limited, &["--cgroup-base", base.path().to_str().unwrap()]);

    ended.assert("SUCCESS", &[("a", "S")]);
    assert_eq!(ended.task["unenforced"], json!([]));
}

/// attack 58: threads of one process may be anywhere in such a part, so no run can be held there.
#[test]
fn a_threaded_part_of_the_hierarchy_is_refused() {
    let scene = Scene::new();
    let threaded = Scratch::new(&format!("{CGROUP2}/threaded"), &[]);
    threaded.write("cgroup.type", "threaded");

    let base = threaded.path().to_str().unwrap();
    let refused = scene.run_with(&task([p("a", "true")]), &["--cgroup-base", base]);

    assert_eq!(refused.status, Some(5), "{refused}");
    assert!(refused.stderr.contains("threaded part of the hierarchy"), "{refused}");
    let _ = fs::write(format!("{CGROUP2}/cgroup.subtree_control"), "");
}

/// attack 58: another manager takes a controller away while a task runs: the task goes on, and says which limit it lost; the next one
/// has its limit, and the first gets it back on demand.
#[test]
fn a_controller_that_is_taken_away_is_taken_back_for_the_next_task() {
    let scene = Scene::new();
    let base = Scratch::new(&format!("{CGROUP2}/shared"), &[]);
    fs::write(format!("{CGROUP2}/cgroup.subtree_control"), "+memory").unwrap();
    let at = ["--cgroup-base", base.path().to_str().unwrap()];
    let (told, hold) = (scene.gate("told"), scene.gate("hold"));
    let holding = task([p("a", format!("{}; {}", told.tell(), hold.hold()))]);
    let limits = json!({ "ram": "32MiB" });
    let running = scene.spawn_with(&holding.with("resources", limits.clone()), &at);
    told.wait();
    let lost = || scene.status()["lostLimits"].clone();
    assert_eq!(lost(), json!([]));

    // A cgroup gives away nothing that one beneath it has given away.
    let tasks = base.path().join("tasks");
    for cgroup in [tasks.join(scene.id()), tasks.clone(), base.path().to_owned()] {
        fs::write(cgroup.join("cgroup.subtree_control"), "-memory").unwrap();
    }
    let cgroup = tasks.join(scene.id());
    let named = "resources.ram cannot be enforced: it needs the memory controller";
    assert_eq!(lost(), json!([format!("{named}; {} does not have it", cgroup.display())]));
    let next = Scene::new();
    let other = next.run_with(&task([p("b", "true")]).with("resources", limits), &at);
    // The controller is there again, and the kernel has forgotten what it held.
    let file = cgroup.join("memory.max");
    let named = format!("it needs {} in {}; max is there", 32 << 20, file.display());
    assert!(lost()[0].as_str().unwrap().contains(&named), "{}", lost());
    let again = scene.dewar(&["update", scene.id(), "ram=32MiB"]);
    assert_eq!(again.status, Some(0), "{again:?}");
    assert_eq!((lost(), read(&cgroup, "memory.max")), (json!([]), (32 << 20).to_string()));
    hold.open();

    other.assert("SUCCESS", &[("b", "S")]);
    assert_eq!(other.task["unenforced"], json!([]));
    assert!(read(base.path(), "cgroup.subtree_control").contains("memory"));
    running.finish().assert("SUCCESS", &[("a", "S")]);
}
