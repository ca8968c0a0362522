//! Nothing of a run gets out of its leaf, or outlives it.

use std::fs;

use serde_json::json;

use crate::machine::{CGROUP2, keyed, read};
use crate::support::{Scene, p, task};

/// attack 23: a daemon of the old kind: two forks, a session of its own, deaf to SIGTERM, without any open file.
#[test]
fn a_daemon_that_has_left_its_session_dies_with_its_run() {
    let scene = Scene::new();
    let gone = scene.gate("gone");
    let daemon = "trap '' TERM; exec -a someone-else sleep 600 <&- >&- 2>&-";
    let cmdline = format!(
        "(setsid bash -c \"({daemon}) & echo \\$! > pid; {}\" &) ; {}",
        gone.tell().replace('"', "\\\""),
        scene.gate("hold").hold(),
    );
    let running = scene.spawn(&task([p("a", cmdline)]).with("finalization_wait", 0.2));
    gone.wait();
    let pid: i32 = scene.read("pid").trim().parse().unwrap();
    let cgroup = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
    assert_eq!(cgroup, format!("0::/dewar/tasks/{}/a.0\n", scene.id()));

    scene.kill(&["--wait", "0.2s"]);

    running.finish().assert("KILLED", &[("a", "K")]);
    assert!(!crate::support::is_alive(pid), "{pid} is alive");
    assert_eq!(scene.cgroup(), None);
}

/// attack 24: a storm of forks while it dies, and thousands of orphans; the exit status is that of the run's own process.
#[test]
fn a_storm_of_forks_is_killed_and_every_orphan_is_reaped() {
    let scene = Scene::new();
    let storm =
        "storm() { while :; do (setsid true &) ; (exit 9) & done; }; storm & storm & storm &";
    let started = scene.gate("started");
    let task = task([p("storm", format!("{storm} {}; wait; exit 3", started.tell()))]);

    let running = scene.spawn(&task);
    started.wait();
    scene.kill(&["--wait", "0s"]);

    let ended = running.finish();
    ended.assert("KILLED", &[("storm", "K")]);
    assert_eq!(ended.run("storm", 0)["exitCode"], json!(null), "{ended}");
    assert_eq!(scene.cgroup(), None);
}

/// attack 25: a run of another user finds no way out of its leaf: not up, not to the side, not by a mount of its own.
#[test]
fn a_run_of_an_ordinary_user_cannot_leave_its_leaf() {
    let scene = Scene::new();
    let beside = format!("{CGROUP2}/dewar/tasks/{}/beside.0", scene.id());
    let tries = format!(
        r#"read -r line < /proc/self/cgroup; own={CGROUP2}${{line#0::}}
           for cgroup in {CGROUP2} ${{own%/*}} {CGROUP2}/dewar/supervisor {beside}; do
               for file in cgroup.procs cgroup.threads; do
                   {{ echo $$ > $cgroup/$file; }} 2> /dev/null && echo "moved by $cgroup/$file"
               done
           done
           {{ mkdir $own/mine || echo 1 > $own/cgroup.kill; }} 2> /dev/null && echo "$own can be written"
           unshare -m mount -t cgroup2 none /mnt 2> /dev/null && echo mounted
           read -r after < /proc/self/cgroup; [ "$after" = "$line" ] && echo still there"#
    );
    let [told, go, hold] = ["told", "go", "hold"].map(|name| scene.gate(name));
    let beside = p("beside", format!("{}; {}", told.tell(), hold.hold()));
    let task = task([beside, p("a", format!("{}; {tries}", go.hold()))]).with("user", "tester");

    let mut running = scene.spawn(&task);
    told.wait();
    go.open();
    running.wait_for_run("a", 0, "SUCCESS");
    hold.open();

    running.finish().assert("SUCCESS", &[("a", "S"), ("beside", "S")]);
    assert_eq!(scene.stdout("a", 0), "still there\n");
}

/// attack 25: root may leave its leaf, as docs/hosts.md says, and is ended all the same: by its descriptor.
#[test]
fn a_run_of_root_that_has_left_its_leaf_is_ended_with_its_task() {
    let scene = Scene::new();
    let told = scene.gate("told");
    let leaves = format!("echo $$ > {CGROUP2}/cgroup.procs; {}; exec sleep 600", told.tell());

    let mut running = scene.spawn(&task([p("a", leaves)]));
    let (run, _) = running.wait_until_running("a", 0);
    told.wait();
    let outside = fs::read_to_string(format!("/proc/{}/cgroup", run.number())).unwrap();
    scene.kill(&["--wait", "0s"]);

    running.finish().assert("KILLED", &[("a", "K")]);
    assert_eq!(outside, "0::/\n");
    assert!(!crate::support::is_alive(run.number()));
}

/// attack 27: its first instruction is a fork, 200 times on each kernel, and no process of it is ever where our own are.
///
/// Four processes at a time, since the machine has more to do between two runs than in one.
#[test]
fn no_run_is_ever_outside_of_its_leaf() {
    const PROCESSES: u32 = 4;
    const RUNS: u32 = 50;
    let scene = Scene::new();
    // The shell forks at once; both tell where they find themselves, without another program.
    let says = "says() { read -r line < /proc/$BASHPID/cgroup; echo \"$line\"; }; says & says; wait; exit 1";
    let names: Vec<_> = (0..PROCESSES).map(|number| format!("p{number}")).collect();
    let processes = names.iter().map(|name| p(name, says).with("min_duration", 0));
    let task = task(processes.map(|process| process.max_failures(RUNS)));

    let mut running = scene.spawn(&task.with("max_failures", 0));
    let supervisor = format!("{CGROUP2}/dewar/supervisor");
    while let Some(event) = running.next() {
        if event["run"]["run"] == RUNS / 2 {
            for pid in read(supervisor.as_ref(), "cgroup.procs").lines() {
                let name = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
                assert!(name.is_empty() || name.starts_with("dewar"), "{name} in {supervisor}");
            }
        }
    }
    running.finish();

    for (name, run) in names.iter().flat_map(|name| (0..RUNS).map(move |run| (name, run))) {
        let leaf = format!("0::/dewar/tasks/{}/{name}.{run}\n", scene.id());
        assert_eq!(scene.stdout(name, run), leaf.repeat(2));
    }
}

/// attack 27: the memory that a run takes at its start is its own.
#[test]
fn the_first_page_is_billed_to_the_task() {
    let scene = Scene::new();
    let (told, hold) = (scene.gate("told"), scene.gate("hold"));
    let task = task([p("a", format!("{}; {}", told.tell(), hold.hold()))]);

    let running = scene.spawn(&task);
    told.wait();
    let cgroup = scene.cgroup().unwrap();
    let billed = keyed(&cgroup, "memory.stat", "anon");

    assert!(billed > 100 << 10, "{billed} bytes");
    hold.open();
    running.finish().assert("SUCCESS", &[("a", "S")]);
}
