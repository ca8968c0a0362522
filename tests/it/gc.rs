//! `dewar gc`.

use std::fs;
use std::path::{Path, PathBuf};

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use serde_json::Value;

use crate::support::{Output, Scene, need_root, p, task, wait_until};

/// Runs tasks of the scene, one after the other, each with a file and a log in the sandbox that the root has for it. An id is that of the
/// scene and a suffix.
fn run(scene: &Scene, suffixes: &[&str]) {
    let file = scene
        .file("task.json", task([p("a", "echo told; head -c 100000 /dev/zero > data")]).text());
    for suffix in suffixes {
        let id = id(scene, suffix);
        let file = file.to_str().unwrap();
        let ran = scene.dewar(&["run", file, "--task-id", &id]);
        assert_eq!(ran.status, Some(0), "{ran:?}");
        let finished = scene.root().join("tasks/finished").join(&id);
        wait_until("it is filed away", || finished.exists());
    }
}

fn id(scene: &Scene, suffix: &str) -> String {
    format!("{}.{suffix}", scene.id())
}

fn collect(scene: &Scene, arguments: &[&str]) -> Output {
    scene.dewar(&[&["gc", "--keep-at-least", "0s"], arguments].concat())
}

/// Suffixes of the tasks that are there.
fn there(scene: &Scene) -> Vec<String> {
    let entries = fs::read_dir(scene.root().join("tasks/finished")).unwrap();
    let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<_> = names.map(|name| name.rsplit('.').next().unwrap().to_owned()).collect();
    names.sort();
    names
}

/// V58.
#[test]
fn the_oldest_tasks_go_and_are_told() {
    let scene = Scene::new();
    run(&scene, &["1", "2", "3"]);

    let dry = collect(&scene, &["--max-tasks", "1", "--dry-run"]);
    assert_eq!(there(&scene), ["1", "2", "3"]);
    let told = collect(&scene, &["--max-tasks", "1"]);

    assert_eq!((dry.status, told.status), (Some(0), Some(0)), "{dry:?} {told:?}");
    for output in [&dry, &told] {
        let lines: Vec<_> =
            output.stdout.lines().map(|line| line.split("  ").collect::<Vec<_>>()).collect();
        assert_eq!(lines.len(), 2, "{output:?}");
        for (line, suffix) in lines.iter().zip(["1", "2"]) {
            assert_eq!(line[0], id(&scene, suffix));
            assert!(line[1].starts_with("max-tasks ") && line[2].ends_with(" KiB"), "{line:?}");
        }
    }
    assert!(dry.stderr.contains("2 tasks would be removed, "), "{dry:?}");
    assert!(told.stderr.contains("2 tasks removed, "), "{told:?}");
    assert_eq!(there(&scene), ["3"]);
    for gone in ["checkpoints", "sandboxes"] {
        assert!(!scene.root().join(gone).join(id(&scene, "1")).exists(), "{gone}");
    }
    assert_eq!(
        collect(&scene, &["--max-age", "1h"]).status,
        Some(0),
        "nothing to be done is no failure"
    );
    assert_eq!(there(&scene), ["3"]);
}

#[test]
fn programs_are_told_in_json() {
    let scene = Scene::new();
    run(&scene, &["1", "2"]);

    let dry = collect(&scene, &["--max-tasks", "1", "--dry-run", "--output", "json"]);
    let told = collect(&scene, &["--max-tasks", "1", "--output", "json"]);

    let parse = |output: &Output| serde_json::from_str::<Value>(&output.stdout).unwrap();
    let (dry, told) = (parse(&dry), parse(&told));
    for value in [&dry, &told] {
        assert_eq!(value["taskId"], id(&scene, "1"));
        assert_eq!(value["reason"], "max-tasks");
        assert!(value["bytes"].as_u64().unwrap() >= 100_000, "{value}");
    }
    assert_eq!((&dry["dryRun"], &told["dryRun"]), (&true.into(), &false.into()));
    assert!(dry["dataBytes"].as_u64().unwrap() >= 100_000);
    assert!(dry["logBytes"].as_u64().unwrap() > 0 && dry["metadataBytes"].as_u64().unwrap() > 0);
    assert_eq!(there(&scene), ["2"]);
}

/// V58 ▲: patterns choose among which tasks the limits do, they do not replace them.
#[test]
fn patterns_narrow_and_what_ended_a_moment_ago_stays() {
    let scene = Scene::new();
    run(&scene, &["1", "2"]);

    let young = scene.dewar(&["gc", "--max-tasks", "0"]);
    assert_eq!((young.status, young.stdout.as_str()), (Some(0), ""), "{young:?}");
    assert_eq!(there(&scene), ["1", "2"]);
    let told = collect(&scene, &["--max-age", "0s", ".*[.]2"]);

    assert_eq!(told.status, Some(0), "{told:?}");
    assert_eq!(there(&scene), ["1"]);
}

#[test]
fn of_a_task_whose_data_went_status_and_logs_are_there() {
    let scene = Scene::new();
    run(&scene, &["1"]);
    let id = id(&scene, "1");

    let told = collect(&scene, &["--max-age", "0s", "--delete", "data"]);

    assert_eq!(told.status, Some(0), "{told:?}");
    assert!(!scene.root().join("sandboxes").join(&id).join("data").exists());
    let logs = scene.dewar(&["logs", &id]);
    assert_eq!((logs.status, logs.stdout.as_str()), (Some(0), "told\n"), "{logs:?}");
    let again = collect(&scene, &["--max-age", "0s", "--delete", "data"]);
    assert_eq!((again.status, again.stdout.as_str()), (Some(0), ""), "{again:?}");
    let files = collect(&scene, &["--max-age", "0s", "--delete", "data,logs"]);
    assert_eq!(files.status, Some(0), "{files:?}");
    assert!(!scene.root().join("sandboxes").join(&id).exists());
    let status = scene.dewar(&["status", &id, "--output", "json"]);
    let status: Value = serde_json::from_str(&status.stdout).unwrap();
    assert_eq!(status["state"], "TASK_STATE_SUCCESS");
}

#[test]
fn bad_use_is_told_and_nothing_is_removed() {
    let scene = Scene::new();
    run(&scene, &["1"]);

    for (arguments, why) in [
        (&["gc"][..], "--max-age"),
        (&["gc", "--max-space", "20X"], "unknown unit"),
        (&["gc", "--min-free", "120%"], "expected 0% to 100%"),
        (&["gc", "--max-age", "0s", "--delete", "metadata"], "see `dewar remove`"),
        (&["gc", "--max-age", "0s", "a("], "pattern"),
    ] {
        let told = scene.dewar(arguments);
        assert_eq!(told.status, Some(2), "{told:?}");
        assert!(told.stderr.contains(why), "{told:?}");
    }
    assert_eq!(there(&scene), ["1"]);
}

/// A bind mount, which goes with the test.
struct Bind(PathBuf);

impl Bind {
    fn new(from: &Path, to: PathBuf) -> Self {
        fs::create_dir_all(&to).unwrap();
        let none: Option<&str> = None;
        mount(Some(from), &to, none, MsFlags::MS_BIND, none).unwrap();
        Self(to)
    }
}

impl Drop for Bind {
    fn drop(&mut self) {
        umount2(&self.0, MntFlags::MNT_DETACH).unwrap();
    }
}

/// Attack 19: a live bind mount, of the same file system.
#[test]
fn what_is_mounted_in_a_sandbox_is_not_entered() {
    need_root!();
    let scene = Scene::new();
    run(&scene, &["1"]);
    let theirs = scene.path("theirs");
    fs::create_dir(&theirs).unwrap();
    fs::write(theirs.join("file"), "kept").unwrap();
    let sandbox = scene.root().join("sandboxes").join(id(&scene, "1"));
    let bind = Bind::new(&theirs, sandbox.join("a/b"));

    let told = collect(&scene, &["--max-age", "0s"]);

    assert_eq!(told.status, Some(5), "{told:?}");
    let said = format!("something is mounted at {}", bind.0.display());
    assert!(told.stderr.contains(&said), "{told:?}");
    assert!(theirs.join("file").exists() && !sandbox.join("data").exists());
    assert_eq!(there(&scene), ["1"]);
    drop(bind);
    assert_eq!(collect(&scene, &["--max-age", "0s"]).status, Some(0));
    assert!(there(&scene).is_empty() && theirs.join("file").exists());
}

/// What cannot be removed makes the exit status, and hinders nothing else.
#[test]
fn what_cannot_be_removed_is_told_and_the_rest_goes() {
    let scene = Scene::new();
    run(&scene, &["1", "2"]);
    let sandbox = scene.root().join("sandboxes").join(id(&scene, "1"));
    fs::remove_dir_all(&sandbox).unwrap();
    std::os::unix::fs::symlink("/etc", &sandbox).unwrap();

    let told = collect(&scene, &["--max-tasks", "0"]);

    assert_eq!(told.status, Some(5), "{told:?}");
    assert!(told.stderr.contains(&*sandbox.to_string_lossy()), "{told:?}");
    assert_eq!(there(&scene), ["1"]);
    assert!(fs::metadata("/etc/passwd").is_ok());
}
