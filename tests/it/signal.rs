//! `dewar signal`, and the reason of a `dewar kill`.

use std::fs;

use crate::support::{Following, Output, Scene, Task, is_alive, p, task, wait_until};

/// Says which signals it gets, and so does its child; ends at TERM.
const TELLS: &str = "\
    for s in HUP USR1 USR2; do trap \"echo $s >> leader\" $s; done\n\
    (for s in HUP USR1 USR2; do trap \"echo $s >> child\" $s; done; touch ready.child; \
     while :; do sleep 0.02; done) &\n\
    touch ready; while :; do sleep 0.02; done";

impl Scene {
    fn signal(&self, how: &[&str]) -> Output {
        self.dewar(&[&["signal"], how, &[self.id()]].concat())
    }

    #[track_caller]
    fn signals(&self, how: &[&str]) {
        let told = self.signal(how);
        let expected = (Some(0), format!("{}\n", self.id()));
        assert_eq!((told.status, told.stdout), expected, "{}", told.stderr);
    }

    fn got(&self, who: &str) -> String {
        fs::read_to_string(self.sandbox().join(who)).unwrap_or_default()
    }
}

fn ready(scene: &Scene, task: &Task) -> Following {
    let following = scene.spawn(task);
    let is = |name: &str| scene.sandbox().join(name).exists();
    wait_until("the run is ready", || is("ready") && is("ready.child"));
    scene.wait_until_known_to_run("a");
    following
}

#[test]
fn the_first_process_of_a_run_gets_a_signal_and_what_it_forked_does_not() {
    let scene = Scene::new();
    let following = ready(&scene, &task([p("a", TELLS)]));

    scene.signals(&["SIGUSR1"]);

    wait_until("it came", || scene.got("leader") == "USR1\n");
    // What was sent to both after it has come, so the first one was not.
    scene.signals(&["--all", "hup"]);
    wait_until("it came to both", || scene.got("child") == "HUP\n");
    wait_until("it came to both", || scene.got("leader") == "USR1\nHUP\n");
    scene.kill(&["--wait", "0s"]);
    following.finish().assert("KILLED", &[("a", "K")]);
}

#[test]
fn one_process_can_be_named() {
    let scene = Scene::new();
    let other = "trap 'echo USR2 >> other' USR2; touch ready.child; while :; do sleep 0.02; done";
    let leader = "trap 'echo USR2 >> leader' USR2; touch ready; while :; do sleep 0.02; done";
    let following = ready(&scene, &task([p("a", leader), p("b", other)]));
    scene.wait_until_known_to_run("b");

    scene.signals(&["--process", "b", "12"]);
    wait_until("it came", || scene.got("other") == "USR2\n");
    scene.signals(&["USR2"]);
    wait_until("it came to both", || scene.got("other") == "USR2\nUSR2\n");
    wait_until("it came to both", || scene.got("leader") == "USR2\n");

    let told = scene.signal(&["--process", "c", "USR2"]);
    assert_eq!(told.status, Some(5), "{told:?}");
    assert!(told.stderr.contains("refused: it has no process \"c\""), "{told:?}");
    scene.kill(&["--wait", "0s"]);
    following.finish();
}

#[test]
fn sigkill_to_all_is_the_end_of_the_run_and_counts_as_its_own() {
    let scene = Scene::new();
    let script = "[ -e once ] && exit 0; touch once; trap '' TERM; setsid sleep 600 & \
                  echo $! > child; touch ready ready.child; wait";
    let following = ready(&scene, &task([p("a", script)]));
    let child: i32 = scene.read("child").trim().parse().unwrap();

    scene.signals(&["--all", "KILL"]);

    following.finish().assert("SUCCESS", &[("a", "KS")]);
    assert!(!is_alive(child));
}

#[test]
fn a_signal_to_a_paused_task_arrives_when_it_goes_on() {
    let scene = Scene::new();
    let following = ready(&scene, &task([p("a", TELLS)]));
    assert_eq!(scene.dewar(&["pause", scene.id()]).status, Some(0));

    scene.signals(&["HUP"]);
    assert_eq!(scene.got("leader"), "");
    assert_eq!(scene.dewar(&["resume-paused", scene.id()]).status, Some(0));

    wait_until("it came", || scene.got("leader") == "HUP\n");
    scene.kill(&["--wait", "0s"]);
    following.finish();
}

#[test]
fn a_task_of_which_nothing_runs_says_so() {
    let scene = Scene::new();
    let mut following =
        scene.spawn(&task([p("a", "exit 1").max_failures(2).with("min_duration", 600)]));
    following.wait_for_run("a", 0, "FAILED");

    let none = scene.signal(&["HUP"]);
    let named = scene.signal(&["HUP", "--process", "a"]);

    assert_eq!((none.status, named.status), (Some(5), Some(5)));
    assert!(none.stderr.contains("refused: none of its processes runs"), "{none:?}");
    assert!(named.stderr.contains("refused: its process \"a\" does not run"), "{named:?}");
    scene.kill(&[]);
    following.finish();
}

#[test]
fn a_task_that_is_over_gets_no_signal() {
    let scene = Scene::new();
    scene.run(&task([p("a", "exit 0")]));

    let told = scene.signal(&["HUP"]);

    assert_eq!(told.status, Some(1), "{told:?}");
    assert!(told.stderr.contains("1 of that name have ended"), "{told:?}");
}

#[test]
fn what_is_no_signal_is_refused_before_anything_is_asked() {
    let scene = Scene::new();

    for signal in ["0", "65", "FOO"] {
        let told = scene.signal(&[signal]);
        assert_eq!(told.status, Some(2), "{told:?}");
        let why = format!("\"{signal}\" is no signal: expected a name such as HUP or SIGUSR1");
        assert!(told.stderr.contains(&why), "{told:?}");
    }
}

/// Without cgroups only the first process is known.
#[test]
fn without_a_cgroup_only_first_processes_get_a_signal() {
    let scene = Scene::new();
    let following = scene.spawn_with(&task([p("a", TELLS)]), &["--cgroup", "none"]);
    let is = |name: &str| scene.sandbox().join(name).exists();
    wait_until("the run is ready", || is("ready") && is("ready.child"));
    scene.wait_until_known_to_run("a");

    let told = scene.signal(&["--all", "HUP"]);
    assert_eq!(told.status, Some(5), "{told:?}");
    assert!(told.stderr.contains("it runs with --cgroup none"), "{told:?}");
    scene.signals(&["HUP"]);

    wait_until("it came", || scene.got("leader") == "HUP\n");
    scene.kill(&["--wait", "0s"]);
    following.finish();
}

/// Invariant 4: a first process that left its leaf, as root can, is not known to be ours any more.
#[test]
fn a_first_process_that_left_its_leaf_gets_no_signal() {
    let scene = Scene::new();
    let mut following = scene.spawn(&task([p("a", TELLS)]));
    let (pid, _) = following.wait_until_running("a", 0);
    wait_until("the run is ready", || scene.sandbox().join("ready").exists());
    let elsewhere = scene.cgroup().unwrap().join("a.0/elsewhere");
    let outside = scene.cgroup().unwrap().parent().unwrap().join(format!("{}.out", scene.id()));
    fs::create_dir(&elsewhere).unwrap();
    fs::create_dir(&outside).unwrap();
    let enter = |dir: &std::path::Path| {
        fs::write(dir.join("cgroup.procs"), pid.number().to_string()).unwrap();
    };

    enter(&outside);
    let told = scene.signal(&["USR1"]);
    enter(&elsewhere);
    scene.signals(&["USR2"]);

    assert!(told.stderr.contains("refused: none of its processes runs"), "{told:?}");
    wait_until("beneath its leaf it does", || scene.got("leader") == "USR2\n");
    fs::remove_dir(&outside).unwrap();
    scene.kill(&["--wait", "0s"]);
    following.finish();
}

#[test]
fn a_kill_says_why() {
    let scene = Scene::new();
    let mut following = ready(&scene, &task([p("a", TELLS)]));
    let long = "x".repeat(1025);

    let told = scene.dewar(&["kill", scene.id(), "--reason", &long]);
    assert_eq!(told.status, Some(2), "{told:?}");
    assert!(told.stderr.contains("has 1025 bytes; at most 1024 are kept"), "{told:?}");
    scene.kill(&["--wait", "0s", "--reason", "disk\nfull"]);

    let event = following.wait_for(|event| event.get("kill").is_some());
    assert_eq!(event["kill"]["reason"], "disk\nfull");
    following.finish();
    let records = scene.records();
    let kill = records.iter().find_map(|record| record.get("kill")).unwrap();
    assert_eq!(kill["reason"], "disk\nfull");
}

/// Whoever asks, the runner keeps no more.
#[test]
fn a_runner_refuses_a_reason_that_is_too_long() {
    let scene = Scene::new();
    let following = ready(&scene, &task([p("a", TELLS)]));
    let root = dewar::checkpoint::Root::new(scene.root()).unwrap();
    let id = dewar::task::TaskId::new(scene.id()).unwrap();
    let kill = |length: usize| {
        let reason = Some("x".repeat(length));
        dewar::control::order(
            &root,
            &id,
            dewar::control::to_kill(Default::default(), false, reason),
            None,
        )
    };

    let why = kill(1025).unwrap_err().to_string();
    assert!(why.ends_with("refused: the reason has 1025 bytes; at most 1024 are kept"), "{why}");
    kill(1024).unwrap();

    following.finish();
}

/// Root, such as the daemon, asks for others, and the runner records whom for.
#[test]
fn root_asks_on_behalf_of_another_user() {
    if !nix::unistd::geteuid().is_root() {
        return;
    }
    let scene = Scene::new();
    let following = ready(&scene, &task([p("a", TELLS)]));
    let root = dewar::checkpoint::Root::new(scene.root()).unwrap();
    let id = dewar::task::TaskId::new(scene.id()).unwrap();

    let kill = dewar::control::to_kill(Default::default(), false, None);
    dewar::control::order(&root, &id, kill, Some(4711)).unwrap();

    following.finish().assert("KILLED", &[("a", "K")]);
    let records = scene.records();
    let kill = records.iter().find_map(|record| record.get("kill")).unwrap();
    assert_eq!(kill["byUid"], 4711);
}
