//! `dewar update`, with limits of the one controller that cgroup v2 has on hybrid hosts too. The others: `vm-tests`.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use nix::sys::signal::Signal;
use serde_json::Value;

use crate::support::{Following, Output, Process, Scene, need_root, p, skip, task, wait_until};

/// A process that goes on until it is killed.
fn sleeps(name: &str) -> Process {
    p(name, "exec sleep 600")
}

/// Most huge pages of 2 MiB, as the kernel has them.
const FILE: &str = "hugetlb.2MB.max";

/// Leaves a test on a host whose cgroup v2 has no huge pages.
macro_rules! need_hugetlb {
    () => {
        need_root!();
        let controllers = ["/sys/fs/cgroup/unified", "/sys/fs/cgroup"];
        let read = |dir: &&str| fs::read_to_string(format!("{dir}/cgroup.controllers")).ok();
        if !controllers.iter().find_map(read).is_some_and(|list| list.contains("hugetlb")) {
            skip!("needs the hugetlb controller in cgroup v2");
        }
    };
}

impl Scene {
    fn update(&self, arguments: &[&str]) -> Output {
        self.dewar(&[&["update", self.id()], arguments].concat())
    }

    /// Changes limits, and gives what it said on stderr.
    #[track_caller]
    fn updated(&self, arguments: &[&str]) -> String {
        let told = self.update(arguments);
        assert_eq!(told.status, Some(0), "{told:?}");
        told.stderr
    }

    fn in_leaf(&self, run: &str) -> PathBuf {
        self.leaf(run).join(FILE)
    }

    fn in_task(&self) -> PathBuf {
        self.cgroup().expect("the cgroup of the task").join(FILE)
    }

    fn limit_records(&self) -> Vec<Value> {
        let records = self.records().into_iter();
        records.filter_map(|record| record.get("limits").cloned()).collect()
    }
}

#[track_caller]
fn held(file: PathBuf) -> String {
    fs::read_to_string(&file)
        .unwrap_or_else(|error| panic!("{}: {error}", file.display()))
        .trim()
        .to_owned()
}

fn running(scene: &Scene, process: Process) -> Following {
    let mut following = scene.spawn(&task([process]));
    following.wait_until_running("a", 0);
    following
}

#[test]
fn a_live_run_and_later_ones_have_the_new_limits_of_their_process() {
    need_hugetlb!();
    let scene = Scene::new();
    let mut following = scene.spawn(&task([sleeps("a")]));
    let (first, _) = following.wait_until_running("a", 0);

    let told = scene.updated(&["--process", "a", "hugetlb[2MB]=4194305"]);
    let rounded = "processes[0].resources.hugetlb[2MB]: 4194304 is in force, 4194305 was asked for";
    assert_eq!(told, format!("dewar: {rounded}\n"));
    assert_eq!(held(scene.in_leaf("a.0")), "4194304");
    let event = following.wait_for(|event| event.get("limits").is_some());
    assert_eq!(event["limits"]["process"], "a");

    let status = scene.status();
    assert_eq!(status["processes"][0]["resources"]["hugetlb"]["2MB"], "4194305", "{status}");
    assert_eq!(status["rounded"], serde_json::json!([rounded]));
    first.kill();
    following.wait_until_running("a", 1);
    assert_eq!(held(scene.in_leaf("a.1")), "4194304");
    scene.kill(&[]);
    following.finish().assert("KILLED", &[("a", "KK")]);
}

#[test]
fn a_runner_that_takes_over_enforces_what_was_changed() {
    need_hugetlb!();
    let scene = Scene::new();
    let following = running(&scene, sleeps("a"));
    scene.updated(&["hugetlb[2MB]=8MB"]);
    assert_eq!(held(scene.in_task()), "8388608");
    scene.kill_runner(following);
    fs::write(scene.in_task(), "max").unwrap();

    let following = scene.resume();
    wait_until("the limit is back", || held(scene.in_task()) == "8388608");

    assert_eq!(scene.update(&[]).stdout, format!("{}: hugetlb={{\"2MB\":8388608}}\n", scene.id()));
    scene.kill(&[]);
    following.finish();
}

/// attack 39, of a change of limits: the record is there, and the act is not.
#[test]
fn a_change_that_was_recorded_is_made_by_the_next_runner() {
    need_hugetlb!();
    let scene = Scene::new();
    let token = scene.file("token", "");
    let mut command = scene.run_command(&task([sleeps("a")]), &[]);
    command.env("DEWAR_FAILPOINT", format!("runner::limit=kill@{}", token.display()));
    let mut following = scene.follow(command);
    following.wait_until_running("a", 0);
    drop(following);

    let told = scene.update(&["hugetlb[2MB]=8MB"]);

    assert_eq!(told.status, Some(5), "{told:?}");
    assert!(told.stderr.contains("died before it answered"), "{told:?}");
    let following = scene.resume();
    wait_until("the limit is in force", || held(scene.in_task()) == "8388608");
    scene.kill(&[]);
    following.finish();
}

#[test]
fn what_changes_nothing_is_not_recorded() {
    need_hugetlb!();
    let scene = Scene::new();
    let following = running(&scene, sleeps("a"));

    scene.updated(&["hugetlb[2MB]=8MB"]);
    scene.updated(&["hugetlb={2MB: 8MB}"]);
    scene.updated(&[]);

    assert_eq!(scene.limit_records().len(), 1);
    scene.kill(&[]);
    following.finish();
}

/// Invariant 5.
#[test]
fn what_this_host_cannot_enforce_is_refused_by_name() {
    let scene = Scene::new();
    let following = running(&scene, sleeps("a"));

    let told = scene.update(&["gpu=2"]);
    assert_eq!(told.status, Some(5), "{told:?}");
    assert!(
        told.stderr.contains("resources.gpu cannot be enforced: it needs device plugins"),
        "{told:?}"
    );
    let told = scene.update(&["--process", "a", "disk=1GB"]);
    assert!(told.stderr.contains("processes[0].resources.disk cannot be enforced"), "{told:?}");

    assert_eq!(scene.limit_records(), [Value::Null; 0]);
    assert!(scene.status().get("resources").is_none());
    scene.kill(&[]);
    following.finish();
}

#[test]
fn a_wrong_field_value_or_process_is_told() {
    let scene = Scene::new();
    let following = running(&scene, sleeps("a"));

    for (arguments, status, expected) in [
        (&["rma=1GB"][..], 2, "unknown field `rma`"),
        (&["ram=12 apples"], 2, "resources.ram"),
        (&["ram"], 2, "expected FIELD=VALUE, such as ram=256MB"),
        (&["--process", "b", "ram=1GB"], 5, "it has no process \"b\""),
        (&["--process", "b"], 2, "has no process b"),
    ] {
        let told = scene.update(arguments);
        assert_eq!(told.status, Some(status), "{told:?}");
        assert!(told.stderr.contains(expected), "{told:?}");
    }
    scene.kill(&[]);
    following.finish();
    let told = scene.update(&["ram=1GB"]);
    assert!(told.status == Some(5) && told.stderr.contains("is over"), "{told:?}");
}

#[test]
fn without_a_cgroup_no_limit_can_be_changed() {
    let scene = Scene::new();
    let mut following = scene.spawn_with(&task([sleeps("a")]), &["--cgroup", "none"]);
    following.wait_until_running("a", 0);

    let told = scene.update(&["hugetlb[2MB]=8MB"]);

    assert_eq!(told.status, Some(5), "{told:?}");
    assert!(told.stderr.contains("it runs with --cgroup none"), "{told:?}");
    scene.kill(&[]);
    following.finish();
}

#[test]
fn limits_of_a_paused_task_can_be_changed() {
    need_hugetlb!();
    let scene = Scene::new();
    let following = running(&scene, sleeps("a"));
    assert_eq!(scene.dewar(&["pause", scene.id()]).status, Some(0));

    scene.updated(&["--process", "a", "hugetlb[2MB]=4MB"]);

    assert_eq!(held(scene.in_leaf("a.0")), "4194304");
    assert!(scene.status()["pausedSince"].is_string());
    scene.kill(&[]);
    following.finish();
}

/// Its coordinator was forked before, and knows the limits of before only.
#[test]
fn a_run_that_is_being_started_gets_limits_that_change_meanwhile() {
    need_hugetlb!();
    let scene = Scene::new();
    let task = task([sleeps("a")]);
    let (mut following, coordinator) = scene.spawn_stopped(&task, "coordinator::forked");

    scene.updated(&["--process", "a", "hugetlb[2MB]=4MB"]);
    coordinator.signal(Signal::SIGCONT);
    following.wait_until_running("a", 0);

    wait_until("it has the limit", || held(scene.in_leaf("a.0")) == "4194304");
    scene.kill(&[]);
    following.finish();
}

/// A file of the task's cgroup is made to refuse what the trial took: the change is taken back, and recorded to be.
#[test]
fn a_change_that_fails_half_way_is_taken_back() {
    need_hugetlb!();
    let scene = Scene::new();
    let (go, done) = (scene.gate("go"), scene.gate("done"));
    let mounts = format!(
        "{}; mount --bind /proc/version \"$(cat target)\" && {}; exec sleep 600",
        go.hold(),
        done.tell()
    );
    // The mount is seen in a namespace of its own, which the runner is in as well.
    let inner = scene.run_command(&task([p("a", mounts)]), &[]);
    let mut command = Command::new("unshare");
    command.args(["-m", "--"]).arg(inner.get_program()).args(inner.get_args());
    let mut following = scene.follow(command);
    following.wait_until_running("a", 0);
    scene.updated(&["hugetlb[1GB]=2GB"]);
    fs::write(scene.sandbox().join("target"), scene.in_task().display().to_string()).unwrap();
    go.open();
    done.wait();

    // In the order of their names: the first is enforced, the second refused.
    let told = scene.update(&["hugetlb[1GB]=4GB", "hugetlb[2MB]=4MB"]);

    assert_eq!(told.status, Some(5), "{told:?}");
    assert!(told.stderr.contains("hugetlb.2MB.max"), "{told:?}");
    let first = scene.cgroup().unwrap().join("hugetlb.1GB.max");
    assert_eq!(held(first), (2u64 << 30).to_string(), "it holds what it held before");
    let records = scene.limit_records();
    let last = records.last().unwrap();
    assert_eq!((records.len(), &last["putBack"]), (3, &Value::Bool(true)));
    assert_eq!(
        last["resources"]["hugetlb"],
        serde_json::json!({ "1GB": (2u64 << 30).to_string() })
    );
    scene.kill(&[]);
    following.finish();
}
