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
    TaskId::new(text.replace("::", "-").replace(' ', "-")).unwrap()
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
    let killed = Acceptance::start(&bench, &id, &task_that("exit 0"), "accept::written", "kill");
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
    let errnos = ["ENOSPC", "EIO", "EMFILE", "ENOMEM"].iter().cycle();
    for (point, errno) in accept_points().iter().zip(errnos) {
        let (id, file) = (task_id(point), task_that("exit 0"));

        let answer = Acceptance::start(&bench, &id, &file, point, errno).answer().unwrap();

        if is_active(&bench, &id) {
            assert_eq!(answer, "New", "{point}");
        } else {
            let call = if point == "accept::begun" { "fsync " } else { "pass a failpoint at " };
            assert!(answer.starts_with(call), "{point}: {answer}");
            assert!(!has_stream(&bench, &id), "{point} leaves a stream");
            bench.accept(id.as_str(), &file);
        }
        bench.resume(&id);
    }
}

/// What a power cut can leave of a task that is active and that nobody was told of: its stream and its content are there or not.
fn cut(bench: &Bench, id: &TaskId, stream: &str, content: &str) {
    let killed = Acceptance::start(bench, id, &task_that("exit 0"), "accept::begun", "kill");
    assert_eq!(killed.answer(), None);
    let (path, accepted) = (bench.root().runner(id), bench.root().task(Place::Active, id));
    let shorten = |path: &Path, by: u64| {
        let file = fs::File::options().write(true).open(path).unwrap();
        let length = file.metadata().unwrap().len();
        file.set_len(length.saturating_sub(by)).unwrap();
    };
    match stream {
        "no directory" => fs::remove_dir_all(bench.root().checkpoint(id)).unwrap(),
        "no stream" => fs::remove_file(&path).unwrap(),
        "empty" => shorten(&path, u64::MAX),
        "torn" => shorten(&path, 1),
        whole => assert_eq!(whole, "whole"),
    }
    match content {
        "empty" => shorten(&accepted, u64::MAX),
        "torn" => shorten(&accepted, 1),
        "sealed" => fs::write(&accepted, "{}\n").unwrap(),
        whole => assert_eq!(whole, "whole"),
    }
}

/// What `dewar resume` says when it fails.
fn resume(bench: &Bench, id: &TaskId) -> String {
    let mut command = Command::new(env!("CARGO_BIN_EXE_dewar"));
    command.arg("resume").arg(id.as_str()).arg("--root").arg(bench.root().path());
    let output = command.stdin(Stdio::null()).output().unwrap();
    assert_eq!(output.status.code(), Some(5), "{output:?}");
    String::from_utf8(output.stderr).unwrap()
}

/// Attack 44: its stream and its entry go to the disk while it begins, in any order.
#[test]
fn what_a_power_cut_left_of_a_task_that_nobody_was_told_of_is_none() {
    let bench = Bench::new();
    for stream in ["no directory", "no stream", "empty", "torn"] {
        for content in ["whole", "torn", "empty"] {
            let id = task_id(&format!("{stream}-{content}"));
            cut(&bench, &id, stream, content);

            let said = resume(&bench, &id);

            assert_eq!(said, format!("dewar: there is no task {id}\n"));
            assert!(!is_active(&bench, &id) && !has_stream(&bench, &id), "{id}");

            let again = task_id(&format!("again-{id}"));
            cut(&bench, &again, stream, content);
            let another = bench.launch(&again, &task_that("exit 1"));
            assert_eq!(launch::accept(bench.root(), &again, &another).unwrap(), Accepted::New);
            bench.resume(&again);
            assert_eq!(bench.history(&again).states(), ["F"]);
        }
    }
}

/// Its stream says all.
#[test]
fn a_task_whose_stream_outlasted_a_power_cut_goes_on() {
    let bench = Bench::new();
    for content in ["whole", "torn", "empty"] {
        let id = task_id(content);
        cut(&bench, &id, "whole", content);

        bench.resume(&id);

        assert_eq!(bench.history(&id).states(), ["S"]);
    }
}

/// What somebody was told of is never taken back, whatever happens to its files.
#[test]
fn a_task_that_is_sealed_is_not_taken_back() {
    let bench = Bench::new();
    for stream in ["no stream", "empty", "torn"] {
        let id = task_id(stream);
        cut(&bench, &id, stream, "sealed");

        assert_eq!(resume(&bench, &id), format!("dewar: there is no task {id}\n"));
        let again = launch::accept(bench.root(), &id, &bench.launch(&id, &task_that("exit 0")));
        assert!(again.is_err(), "{again:?}");
        assert!(is_active(&bench, &id));
    }
}

/// `dewar run` of a task file in a bench.
fn dewar_run(bench: &Bench, id: &TaskId, file: &Value, env: &[(&str, String)]) -> Command {
    let path = bench.dir().join(format!("{id}.json"));
    fs::write(&path, file.to_string()).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_dewar"));
    command.arg("run").arg(path).args(["--task-id", id.as_str(), "--output", "json"]);
    command.arg("--root").arg(bench.root().path()).arg("--cgroup-base").arg(bench.base());
    command.arg("--sandbox").arg(bench.sandbox(id));
    command.envs(env.iter().map(|(name, value)| (name, value))).stdin(Stdio::null());
    command
}

/// Arms a failpoint in `dewar run`, and traces all that are passed.
fn armed(bench: &Bench, point: &str, action: &str) -> [(&'static str, String); 2] {
    let token = bench.dir().join("armed");
    fs::write(&token, "").unwrap();
    [
        ("DEWAR_FAILPOINT", format!("{point}={action}@{}", token.display())),
        ("DEWAR_FAILPOINT_TRACE", bench.dir().join("trace").display().to_string()),
    ]
}

/// The points that were passed, in order.
fn trace(bench: &Bench) -> Vec<String> {
    let text = fs::read_to_string(bench.dir().join("trace")).unwrap();
    text.lines().map(str::to_owned).collect()
}

/// Where `point` was passed first.
fn first(trace: &[String], point: &str) -> Option<usize> {
    trace.iter().position(|passed| passed == point)
}

/// Invariant 1: the task runs while its acceptance goes to the disk, but what it comes to is not recorded before that is there.
#[test]
fn a_runner_whose_launch_died_makes_the_acceptance_durable_before_any_end() {
    let bench = Bench::new();
    let (id, file) = (task_id("t"), task_that("exit 0"));
    let env = armed(&bench, "accept::begun", "kill");

    let status = dewar_run(&bench, &id, &file, &env).stdout(Stdio::null()).status().unwrap();

    assert_eq!(status.signal(), Some(libc::SIGKILL));
    bench.wait_over(&id);
    let trace = trace(&bench);
    let synced = first(&trace, "runner::acceptance").expect("it is synced");
    // The end is the last thing that was read of the coordinator.
    let read = trace.iter().rposition(|point| point == "runner::absorb").unwrap();
    let recorded = trace.iter().skip(read).position(|point| point == "runner::flush");
    assert!(synced < read + recorded.unwrap(), "{trace:?}");
    assert_eq!(bench.history(&id).states(), ["S"]);
}

/// One sync is enough where whoever accepts the task lives.
#[test]
fn a_runner_that_was_told_that_its_task_lasts_takes_that_for_granted() {
    let bench = Bench::new();
    let (id, file) = (task_id("t"), task_that("sleep 0.3"));
    let env = armed(&bench, "none", "kill");

    let output = dewar_run(&bench, &id, &file, &env).output().unwrap();

    assert!(output.status.success(), "{output:?}");
    let trace = trace(&bench);
    assert!(first(&trace, "accept::durable").is_some(), "{trace:?}");
    assert_eq!(first(&trace, "runner::acceptance"), None, "{trace:?}");
}

/// Invariant 1: nobody is told of a task before it is on disk, though it has begun.
#[test]
fn nothing_is_told_of_a_task_that_is_not_on_disk() {
    let bench = Bench::new();
    let (id, file) = (task_id("t"), task_that("exit 0"));
    let env = armed(&bench, "accept::begun", "stop");
    let told = bench.dir().join("told");

    let mut child = dewar_run(&bench, &id, &file, &env)
        .stdout(fs::File::create(&told).unwrap())
        .spawn()
        .unwrap();
    bench.wait_over(&id);

    assert_eq!(fs::read_to_string(&told).unwrap(), "");
    let pid = nix::unistd::Pid::from_raw(child.id() as i32);
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGCONT).unwrap();
    assert!(child.wait().unwrap().success());
    assert!(fs::read_to_string(&told).unwrap().contains("TASK_STATE_SUCCESS"));
}

/// Attack 35: what cannot be made to last is not left to run behind the back of whoever was refused.
#[test]
fn a_task_whose_last_sync_fails_is_refused_and_killed() {
    let bench = Bench::new();
    let (id, file) = (task_id("t"), task_that("sleep 600"));
    let env = armed(&bench, "accept::begun", "EIO");

    let output = dewar_run(&bench, &id, &file, &env).output().unwrap();

    assert_eq!((output.status.code(), output.stdout.as_slice()), (Some(5), &b""[..]));
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(said.contains("task t is active, and may not outlast a power cut: fsync "), "{said}");
    bench.wait_over(&id);
    assert_eq!(bench.history(&id).phase(), Some(Phase::Killed));
}

/// Attack 35: the runner cannot make its task last either.
#[test]
fn a_runner_that_cannot_make_its_task_last_kills_it_and_gives_up() {
    let bench = Bench::new();
    let file = json!({"name": "t", "max_concurrency": 0, "processes": [
        {"name": "a", "cmdline": "sleep 0.2"}, {"name": "b", "cmdline": "exec sleep 600"}]});
    let id = bench.accept("t", &file);
    let env = armed(&bench, "runner::acceptance", "EIO");

    let status = bench.start_with(&id, &env).wait();

    assert_eq!(status.code(), Some(70));
    let log = bench.log_text(&id);
    assert!(log.contains("its acceptance cannot be synced: fsync "), "{log}");
    wait_for("something of it lives", || bench.processes_of(&id).is_empty());
    assert_eq!(bench.history(&id).states(), ["r", "r"], "no end is recorded");
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
