//! Attacks 19, 39: `dewar gc` is killed, or a call of it fails, at each of its failpoints. What is then there is a task that is over, and
//! goes with the next one, or nothing that the next one does not sweep; and its id can be used again.

use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, Output};

use dewar::checkpoint::paths::Place;
use dewar::launch::{self, Accepted};
use dewar::task::TaskId;
use serde_json::json;

use super::bench::Bench;
use super::points;

fn remove_points() -> Vec<String> {
    let points = points::all().into_iter().filter(|name| name.starts_with("remove::"));
    let points: Vec<String> = points.collect();
    assert!(!points.is_empty());
    points
}

/// A task that is over, with files and logs in the sandbox that its root has for it.
fn over(bench: &Bench, id: &str) -> TaskId {
    let file = json!({
        "name": "t",
        "processes": [{"name": "a", "cmdline": "echo to the log; mkdir -p d/e; echo > d/e/f; ln -s / link"}],
    });
    let id = TaskId::new(id.replace("::", "-")).unwrap();
    let sandbox = bench.root().sandbox(&id).display().to_string();
    bench.accept_with(id.as_str(), &file, |launch| launch.sandbox = sandbox);
    run(bench, &id);
    assert!(bench.root().sandbox(&id).join(".logs/a/0/stdout").exists());
    id
}

/// Runs an accepted task to its end.
fn run(bench: &Bench, id: &TaskId) {
    let status = bench.start(id).wait();
    assert!(status.success() && can_be_told(bench, id), "{}", bench.describe(id, "not over"));
}

/// `dewar gc` of all that is over, armed with `armed` if that is given.
fn collect(bench: &Bench, armed: Option<String>) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_dewar"));
    command.args(["gc", "--max-tasks", "0", "--keep-at-least", "0s", "--root"]);
    command.arg(bench.root().path()).env_remove("DEWAR_FAILPOINT");
    command.envs(armed.map(|armed| ("DEWAR_FAILPOINT", armed)));
    command.output().unwrap()
}

fn is_gone(bench: &Bench, id: &TaskId) -> bool {
    let root = bench.root();
    let places = [Place::Active, Place::Finished].map(|place| root.task(place, id));
    let others = [root.checkpoint(id), root.sandbox(id)];
    places.iter().chain(&others).all(|path| fs::symlink_metadata(path).is_err())
}

/// Whether all is there that is needed to tell how a task ended.
fn can_be_told(bench: &Bench, id: &TaskId) -> bool {
    bench.root().task(Place::Finished, id).exists() && bench.root().runner(id).exists()
}

#[test]
fn a_collector_that_is_killed_anywhere_leaves_nothing_that_the_next_one_does_not_remove() {
    let bench = Bench::new();
    for (n, point) in remove_points().into_iter().enumerate() {
        let id = over(&bench, &format!("kill-{n}"));
        let launch = bench
            .launch(&id, &json!({"name": "t", "processes": [{"name": "a", "cmdline": "true"}]}));
        let token = bench.dir().join(format!("token-{n}"));
        fs::write(&token, "").unwrap();

        let killed = collect(&bench, Some(format!("{point}=kill@{}", token.display())));

        assert_eq!(killed.status.signal(), Some(libc::SIGKILL), "{point}: {killed:?}");
        let is_forgotten = ["remove::finished", "remove::stream"].contains(&point.as_str());
        assert_eq!(can_be_told(&bench, &id), !is_forgotten, "{point}");
        if is_forgotten && n % 2 == 0 {
            // What is left of a task that is forgotten is in nobody's way.
            let again = launch::accept(bench.root(), &id, &launch);
            assert_eq!(again.unwrap(), Accepted::New, "{point}");
            run(&bench, &id);
        }
        let next = collect(&bench, None);
        assert!(next.status.success(), "{point}: {next:?}");
        assert!(is_gone(&bench, &id), "{point}: {next:?}");
    }
}

#[test]
fn a_call_of_a_collector_that_fails_anywhere_is_told_and_tried_again() {
    let bench = Bench::new();
    for (n, point) in remove_points().into_iter().enumerate() {
        let id = over(&bench, &format!("fail-{n}"));
        let other = over(&bench, &format!("other-{n}"));
        let token = bench.dir().join(format!("token-{n}"));
        fs::write(&token, "").unwrap();

        let failed = collect(&bench, Some(format!("{point}=EIO@{}", token.display())));

        assert!(!token.exists(), "{point}: it did not happen");
        assert_eq!(failed.status.code(), Some(5), "{point}: {failed:?}");
        let told = String::from_utf8_lossy(&failed.stderr).into_owned();
        assert!(told.contains("pass a failpoint at"), "{told}");
        let left = [&id, &other].iter().filter(|id| !is_gone(&bench, id)).count();
        assert_eq!(left, 1, "{point}: one hinders no other");
        let next = collect(&bench, None);
        assert!(next.status.success(), "{point}: {next:?}");
        assert!(is_gone(&bench, &id) && is_gone(&bench, &other), "{point}");
    }
}
