//! Attacks 34, 39, 49: whoever accepts a task is killed, fails, or is overtaken at each of its failpoints. A task is then
//! accepted as a whole or not at all, and one that was is never replaced.
//!
//! A process of its own accepts: this test program, which runs [`child`] alone.

use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use dewar::checkpoint::Root;
use dewar::checkpoint::paths::Place;
use dewar::launch::{self, Accepted, LaunchError};
use dewar::proto::Launch;
use dewar::state::Phase;
use dewar::task::TaskId;
use serde_json::{Value, json};

use super::bench::{Bench, wait_for};
use super::points;
use super::tasks::MARK;

/// Names a directory with the file `launch`; the file `answer` is written to it.
const REQUEST: &str = "DEWAR_CRASH_REQUEST";

/// Not a test: what [`Acceptance`] runs in a process of its own.
#[test]
#[ignore = "other tests run it"]
fn child() {
    let Some(dir) = std::env::var_os(REQUEST).map(PathBuf::from) else { return };
    let launch: Launch = serde_json::from_slice(&fs::read(dir.join("launch")).unwrap()).unwrap();
    let root = Root::new(fs::read_to_string(dir.join("root")).unwrap()).unwrap();
    let id = TaskId::new(launch.task_id.clone()).unwrap();
    let answer = match launch::accept(&root, &id, &launch) {
        Ok(accepted) => format!("{accepted:?}"),
        Err(error) => format!("{error}"),
    };
    fs::write(dir.join("answer"), answer).unwrap();
}

/// A process that accepts a task.
struct Acceptance {
    child: Child,
    dir: PathBuf,
    token: PathBuf,
}

impl Acceptance {
    /// Starts it, armed with `action` at `point`.
    fn start(bench: &Bench, id: &TaskId, file: &Value, point: &str, action: &str) -> Self {
        let dir = bench.dir().join(format!("request-{id}"));
        fs::create_dir(&dir).unwrap();
        let launch = serde_json::to_vec(&bench.launch(id, file)).unwrap();
        fs::write(dir.join("launch"), launch).unwrap();
        fs::write(dir.join("root"), bench.root().path().as_os_str().as_encoded_bytes()).unwrap();
        let token = dir.join("token");
        fs::write(&token, "").unwrap();
        let child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "--ignored", "crash::accept::child"])
            .env(REQUEST, &dir)
            .env("DEWAR_FAILPOINT", format!("{point}={action}@{}", token.display()))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        Self { child, dir, token }
    }

    /// Waits for its end and says what it answered, if anything.
    fn answer(mut self) -> Option<String> {
        let status = self.child.wait().unwrap();
        assert!(!self.token.exists(), "its failpoint was not passed");
        match status.signal() {
            Some(libc::SIGKILL) => None,
            _ => Some(answer_in(&self.dir)),
        }
    }

    /// Waits until it has stopped.
    fn wait_stopped(&self) {
        let stat = format!("/proc/{}/task", self.child.id());
        wait_for("it does not stop", || {
            let tasks = fs::read_dir(&stat).unwrap().flatten();
            let stats = tasks.filter_map(|task| fs::read_to_string(task.path().join("stat")).ok());
            stats.into_iter().all(|stat| stat.contains(") T "))
        });
    }

    fn go_on(&self) {
        let pid = nix::unistd::Pid::from_raw(self.child.id() as i32);
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGCONT).unwrap();
    }
}

fn answer_in(dir: &Path) -> String {
    fs::read_to_string(dir.join("answer")).unwrap()
}

fn accept_points() -> Vec<String> {
    let points = points::all().into_iter().filter(|name| name.starts_with("accept::"));
    let points: Vec<String> = points.collect();
    assert!(!points.is_empty());
    points
}

fn task_id(text: &str) -> TaskId {
    TaskId::new(text.replace("::", "-")).unwrap()
}

fn task_that(does: &str) -> Value {
    json!({"name": "t", "processes": [{"name": "a", "cmdline": format!("{MARK}{does}")}]})
}

fn is_active(bench: &Bench, id: &TaskId) -> bool {
    bench.root().task(Place::Active, id).exists()
}

/// Whether there is a stream of the task, be it accepted or not.
fn has_stream(bench: &Bench, id: &TaskId) -> bool {
    bench.root().runner(id).exists()
}

#[test]
fn a_launch_that_is_killed_anywhere_is_made_or_can_be_made_again() {
    let bench = Bench::new();
    for point in accept_points() {
        let (id, file) = (task_id(&point), task_that("exit 0"));

        let answer = Acceptance::start(&bench, &id, &file, &point, "kill").answer();

        assert_eq!(answer, None);
        let expected = if is_active(&bench, &id) { Accepted::Active } else { Accepted::New };
        let again = launch::accept(bench.root(), &id, &bench.launch(&id, &file));
        assert_eq!(again.unwrap(), expected, "{point}");
        bench.resume(&id);
        assert_eq!(bench.history(&id).states(), ["S"]);
    }
}

/// What was not acknowledged binds nobody.
#[test]
fn what_a_killed_launch_left_is_replaced_by_another_task() {
    let bench = Bench::new();
    let id = task_id("t");
    let killed = Acceptance::start(&bench, &id, &task_that("exit 0"), "accept::synced", "kill");
    assert_eq!(killed.answer(), None);
    assert!(has_stream(&bench, &id) && !is_active(&bench, &id));

    let another = launch::accept(bench.root(), &id, &bench.launch(&id, &task_that("exit 1")));

    assert_eq!(another.unwrap(), Accepted::New);
    bench.resume(&id);
    assert_eq!(bench.history(&id).states(), ["F"]);
}

/// Attacks 34 to 36: refused, and nothing is left that would look like a task.
#[test]
fn a_launch_that_fails_anywhere_leaves_nothing() {
    let bench = Bench::new();
    for (point, errno) in accept_points().iter().zip(["ENOSPC", "EIO", "EMFILE", "ENOMEM"]) {
        let (id, file) = (task_id(point), task_that("exit 0"));

        let answer = Acceptance::start(&bench, &id, &file, point, errno).answer().unwrap();

        if is_active(&bench, &id) {
            assert_eq!(answer, "New", "{point}");
        } else {
            assert!(answer.starts_with("pass a failpoint at "), "{point}: {answer}");
            assert!(!has_stream(&bench, &id), "{point} leaves a stream");
            bench.accept(id.as_str(), &file);
        }
        bench.resume(&id);
    }
}

/// A launch that was about to make the stream finds one: of a task that was accepted, and may be over, by now. It must
/// not take it for one that a crash left.
#[test]
fn a_launch_that_was_overtaken_replaces_nothing() {
    let bench = Bench::new();
    for (name, is_run) in [("accepted", false), ("over", true)] {
        let id = task_id(name);
        let slow = task_that("exit 1");
        let slow = Acceptance::start(&bench, &id, &slow, "accept::stream", "stop");
        slow.wait_stopped();
        bench.accept(name, &task_that("exit 0"));
        if is_run {
            bench.resume(&id);
        }
        let before = fs::read(bench.root().runner(&id)).unwrap();

        slow.go_on();
        let answer = slow.answer().unwrap();

        let expected =
            if is_run { "is finished" } else { "is active with another task.processes[0].cmdline" };
        assert!(answer.contains(expected), "{answer}");
        assert_eq!(fs::read(bench.root().runner(&id)).unwrap(), before);
        if !is_run {
            bench.resume(&id);
        }
        assert_eq!(bench.history(&id).phase(), Some(Phase::Success));
    }
}

/// Attack 49: one winner for an id, and nobody is told otherwise.
#[test]
fn of_many_launches_of_one_id_one_is_new() {
    let bench = Bench::new();
    let (id, file) = (task_id("t"), task_that("exit 0"));
    let answers: Vec<Result<Accepted, LaunchError>> = std::thread::scope(|scope| {
        let launch = || launch::accept(bench.root(), &id, &bench.launch(&id, &file));
        let threads: Vec<_> = (0..16).map(|_| scope.spawn(launch)).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });

    let count = |is: fn(&Result<Accepted, LaunchError>) -> bool| {
        answers.iter().filter(|answer| is(answer)).count()
    };
    let new = count(|answer| matches!(answer, Ok(Accepted::New)));
    let active = count(|answer| matches!(answer, Ok(Accepted::Active)));
    assert_eq!((new, active), (1, 15), "{answers:?}");
    bench.resume(&id);
    assert_eq!(bench.history(&id).states(), ["S"]);
}
