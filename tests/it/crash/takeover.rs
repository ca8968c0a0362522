//! S21 to S26, S31, attacks 36, 40, 42, 43: runners and coordinators that die at a moment of the test's choosing, and
//! what the next runner makes of what they left.

use std::fs;
use std::os::fd::AsFd;
use std::time::Duration;

use dewar::checkpoint::{Identity, Instant, Recovery};
use dewar::control::{self, ControlError};
use dewar::proto::record::Kind;
use dewar::proto::run_transition::State as Step;
use dewar::proto::{self, ControlRequest, ProcessId, VerdictReason};
use dewar::reach::Reach;
use dewar::state::{Outcome, Phase, RunState};
use dewar::sys::{clock, pidfd, socket};
use dewar::task::TaskId;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use prost::Message;
use serde_json::{Value, json};

use super::bench::{Bench, History, Runner, boot_nanos, kill_9, wait_for};
use super::tasks::{MARK, deaf};
use crate::support::{is_alive, is_stopped};

/// Runs until `go` is in the sandbox, then does `then`.
fn waiting(then: &str) -> Value {
    let command = format!("{MARK}until [ -e go ]; do sleep 0.02; done; {then}");
    json!({"name": "t", "processes": [{"name": "a", "cmdline": command, "min_duration": 0.05}]})
}

fn coordinator_pid(history: &History, run: usize) -> i32 {
    history.run(0, run).coordinator.expect("its coordinator is recorded").pid
}

fn run_pid(history: &History, run: usize) -> i32 {
    history.run(0, run).pid.expect("its first process is recorded").pid
}

#[test]
fn s21_an_exit_status_outlives_the_runner() {
    let bench = Bench::new();
    let task = bench.accept("t", &waiting("exit 5"));
    let runner = bench.start(&task);
    bench.wait_running(&task, 0, 0);

    runner.kill();
    bench.touch(&task, "go");
    wait_for("the coordinator goes on alone", || bench.processes_of(&task).is_empty());
    let resumed = boot_nanos();
    bench.resume(&task);

    let history = bench.history(&task);
    assert_eq!((history.phase(), history.states()), (Some(Phase::Failed), vec!["F".into()]));
    assert_eq!(history.run(0, 0).end.as_ref().unwrap().outcome, Outcome::Exited(5));
    assert!(history.run(0, 0).ended.unwrap().boot < resumed, "it ended before the resume");
}

#[test]
fn s22_what_runs_is_adopted() {
    let bench = Bench::new();
    let task = bench.accept("t", &waiting("exit 0"));
    let runner = bench.start(&task);
    let before = bench.wait_running(&task, 0, 0);

    runner.kill();
    let mut second = bench.start(&task);
    wait_until_led(&bench, &task, &second);
    // What waits for nothing but an end has no timer: one that was left over would kill the run.
    wait_for("the timer of the second runner is not disarmed", || has_no_timer(&second));
    bench.touch(&task, "go");
    assert!(second.wait().success());

    bench.assert_over(&task);
    let after = bench.history(&task);
    assert_eq!(after.states(), ["S"]);
    assert_eq!(after.run(0, 0).pid, before.run(0, 0).pid);
    assert_eq!(after.run(0, 0).coordinator, before.run(0, 0).coordinator);
}

/// Waits until `runner` has written that it leads.
fn wait_until_led(bench: &Bench, task: &TaskId, runner: &Runner) {
    bench.wait_until(task, "the next runner does not lead", |history| {
        history.state.leader().is_some_and(|leader| leader.runner.pid == runner.pid())
    });
}

/// Whether the timer of a runner that sleeps is not set (proc(5), fdinfo of a timerfd).
fn has_no_timer(runner: &Runner) -> bool {
    let entries = fs::read_dir(format!("/proc/{}/fdinfo", runner.pid())).unwrap().flatten();
    let mut infos = entries.filter_map(|entry| fs::read_to_string(entry.path()).ok());
    infos.any(|info| info.contains("clockid:") && info.contains("it_value: (0, 0)"))
}

#[test]
fn s23_a_run_without_its_coordinator_is_killed_lost_and_retried() {
    let bench = Bench::new();
    let leave = "(setsid sleep 600 &) ; until [ -e go ]; do sleep 0.02; done; exit 0";
    let file = json!({"name": "t", "processes": [
        {"name": "a", "cmdline": format!("{MARK}{leave}"), "min_duration": 0.05}]});
    let task = bench.accept("t", &file);
    let mut runner = bench.start(&task);
    let before = bench.wait_running(&task, 0, 0);

    kill_9(coordinator_pid(&before, 0));
    bench.wait_until(&task, "the run is not lost", |history| {
        history.run(0, 0).state == RunState::Lost
    });
    // LOST says that nothing of it is left.
    assert!(!bench.leaf(&task, "a", 0).exists());
    assert!(!is_alive(run_pid(&before, 0)));
    bench.touch(&task, "go");
    assert!(runner.wait().success());

    bench.assert_over(&task);
    let after = bench.history(&task);
    assert_eq!(after.states(), ["LS"]);
    let verdict = &after.run(0, 0).end.as_ref().unwrap().verdict;
    assert_eq!(verdict.reason(), VerdictReason::CoordinatorLost);
}

/// Else a runner that somebody starts by hand would end at once, and well.
#[test]
fn a_runner_takes_no_descriptor_of_its_caller_for_the_one_it_hears_by() {
    let bench = Bench::new();
    let task = bench.accept("t", &waiting("exit 0"));
    let mut runner = bench.start_with_a_descriptor(&task);
    bench.wait_running(&task, 0, 0);

    bench.touch(&task, "go");

    assert!(runner.wait().success());
    bench.assert_over(&task);
}

#[test]
fn s24_a_run_that_lost_runner_and_coordinator_is_found_and_killed() {
    let bench = Bench::new();
    let task = bench.accept("t", &waiting("exit 0"));
    let runner = bench.start(&task);
    let before = bench.wait_running(&task, 0, 0);

    runner.kill();
    kill_9(coordinator_pid(&before, 0));
    assert!(is_alive(run_pid(&before, 0)), "nobody was there to kill it");
    let mut second = bench.start(&task);
    bench.wait_running(&task, 0, 1);
    assert!(!is_alive(run_pid(&before, 0)), "it runs beside its next run");
    bench.touch(&task, "go");
    assert!(second.wait().success());

    bench.assert_over(&task);
    assert_eq!(bench.history(&task).states(), ["LS"]);
}

/// S25: and a later request gives no more time than the first.
#[test]
fn s25_a_kill_outlives_the_runner_with_its_first_deadline() {
    let bench = Bench::new();
    let file = json!({"name": "t", "processes": [deaf("a")]});
    let task = bench.accept("t", &file);
    let runner = bench.start(&task);
    bench.wait_running(&task, 0, 0);

    let wait = Duration::from_secs(3);
    let asked = boot_nanos();
    control::kill(bench.root(), &task, wait, false).unwrap();
    let answered = boot_nanos();
    runner.kill();
    let mut second = bench.start(&task);
    wait_until_led(&bench, &task, &second);
    wait_for("the second runner does not listen", || {
        control::kill(bench.root(), &task, Duration::from_secs(60), false).is_ok()
    });
    assert!(second.wait().success());

    bench.assert_over(&task);
    let history = bench.history(&task);
    let wait = wait.as_nanos() as u64;
    let deadline = history.state.kill().unwrap().deadline;
    assert!((asked + wait..=answered + wait).contains(&deadline), "not the first deadline");
    let ended = history.run(0, 0).ended.unwrap().boot;
    assert!(ended >= deadline, "it ended {} ns before its deadline", deadline - ended);
    assert_eq!((history.phase(), history.states()), (Some(Phase::Killed), vec!["K".into()]));
}

/// S26, attack 40: the loser has no effect.
#[test]
fn s26_of_two_runners_one_leads() {
    let bench = Bench::new();
    let task = bench.accept("t", &waiting("exit 0"));
    let mut first = bench.start(&task);
    let before = bench.wait_running(&task, 0, 0);

    let status = bench.start(&task).wait();

    assert_eq!(status.code(), Some(5));
    let holder = format!("is locked by process {}", first.pid());
    assert!(bench.log_text(&task).contains(&holder), "{}", bench.log_text(&task));
    assert_eq!(bench.history(&task).records, before.records);
    // The first one still hears.
    control::kill(bench.root(), &task, Duration::from_secs(30), false).unwrap();
    assert!(first.wait().success());
    bench.assert_over(&task);
    assert_eq!(bench.history(&task).states(), ["K"]);
}

/// Attack 40: a stream that was not accepted is no task.
#[test]
fn a_task_that_was_not_accepted_is_not_run() {
    let bench = Bench::new();
    let task = bench.accept("t", &waiting("exit 0"));
    fs::remove_file(bench.root().task(dewar::checkpoint::paths::Place::Active, &task)).unwrap();

    let status = bench.start(&task).wait();

    assert_eq!(status.code(), Some(5));
    assert_eq!(bench.log_text(&task), "dewar-runner: t: task t was not accepted\n");
    assert_eq!(bench.history(&task).records, []);
}

/// A coordinator that holds its lock and has recorded nothing is one that is about to begin.
#[test]
fn a_coordinator_that_has_recorded_nothing_is_waited_for() {
    let bench = Bench::new();
    let task = bench.accept("t", &waiting("exit 0"));
    let_go(&bench, &task);
    let (runner, stopped) = start_stopping(&bench, &task, "coordinator::start");

    runner.kill();
    let mut second = bench.start(&task);
    wait_until_led(&bench, &task, &second);
    continue_process(stopped);
    assert!(second.wait().success());

    bench.assert_over(&task);
    let history = bench.history(&task);
    assert_eq!(history.states(), ["S"]);
    assert_eq!(coordinator_pid(&history, 0), stopped, "the first coordinator ran it");
}

/// It may be that its runner dies, and it too, before anything of it was started: then the run begins anew.
#[test]
fn a_coordinator_that_dies_before_it_records_anything_took_nothing() {
    let bench = Bench::new();
    let task = bench.accept("t", &waiting("exit 0"));
    let_go(&bench, &task);
    let (runner, stopped) = start_stopping(&bench, &task, "coordinator::start");

    runner.kill();
    let mut second = bench.start(&task);
    wait_until_led(&bench, &task, &second);
    kill_9(stopped);
    assert!(second.wait().success());

    bench.assert_over(&task);
    assert_eq!(bench.history(&task).states(), ["S"]);
}

/// The run ends, and with it its coordinator, between two looks of a runner that does not know that coordinator: the
/// stream is read after the lock was found free, so the run is not begun anew.
#[test]
fn a_coordinator_that_comes_and_goes_unseen_has_run_its_run() {
    let bench = Bench::new();
    let task = bench.accept("t", &waiting("exit 0"));
    let_go(&bench, &task);
    let (runner, coordinator) = start_stopping(&bench, &task, "coordinator::start");
    runner.kill();

    let (mut second, _) = start_stopping(&bench, &task, "runner::attaching");
    // The coordinator has been stopped all along.
    wait_for("the second runner does not stop", || is_stopped(second.pid()));
    continue_process(coordinator);
    wait_for("the coordinator goes on alone", || !is_alive(coordinator));
    continue_process(second.pid());
    assert!(second.wait().success());

    bench.assert_over(&task);
    let history = bench.history(&task);
    assert_eq!(history.states(), ["S"]);
    assert_eq!(coordinator_pid(&history, 0), coordinator);
}

/// D24: what a signal asks for is not forgotten, however early it comes.
#[test]
fn a_signal_to_a_runner_that_does_not_lead_yet_is_a_kill() {
    let bench = Bench::new();
    let task = bench.accept("t", &waiting("exit 0"));
    let (mut runner, _) = start_stopping(&bench, &task, "runner::replayed");

    kill(Pid::from_raw(runner.pid()), Signal::SIGUSR1).unwrap();
    continue_process(runner.pid());

    assert!(runner.wait().success());
    bench.assert_over(&task);
    assert_eq!(bench.history(&task).phase(), Some(Phase::Killed));
}

/// A request without answer is one whose runner died: who asks while the end is recorded hears that, and a kill is then done.
#[test]
fn a_request_that_comes_when_all_is_over_is_answered() {
    let bench = Bench::new();
    let task = bench.accept("t", &waiting("exit 0"));
    let_go(&bench, &task);
    let (mut runner, _) = start_stopping(&bench, &task, "runner::terminal");

    let kill = control::to_kill(Duration::ZERO, false, None);
    let request = ControlRequest { request: Some(kill.clone()) }.encode_to_vec();
    let (ours, theirs) = socket::pair().unwrap();
    let control = bench.root().control(&task);
    socket::send_to(&control, &request, theirs.as_fd(), None, Duration::from_secs(1)).unwrap();
    drop(theirs);
    continue_process(runner.pid());

    let answer = control::answer(bench.root(), &task, ours);
    assert!(
        matches!(&answer, Err(ControlError::Refused { why, .. }) if why.contains("over")),
        "{answer:?}"
    );
    assert!(runner.wait().success());
    let no_base = || unreachable!("the task tells its base");
    Reach { root: bench.root(), base: &no_base, by: None }.end(&task, &kill).unwrap();
    assert_eq!(bench.history(&task).phase(), Some(Phase::Success));
}

/// D24: a coordinator has none of its runner's handlers, and ends with its run.
#[test]
fn a_signal_to_a_coordinator_changes_nothing() {
    let bench = Bench::new();
    let task = bench.accept("t", &waiting("exit 0"));
    let mut runner = bench.start(&task);
    let history = bench.wait_running(&task, 0, 0);
    let coordinator = Pid::from_raw(coordinator_pid(&history, 0));

    for signal in [Signal::SIGUSR1, Signal::SIGUSR2, Signal::SIGTERM, Signal::SIGINT] {
        kill(coordinator, signal).unwrap();
    }
    let_go(&bench, &task);

    assert!(runner.wait().success());
    bench.assert_over(&task);
    let history = bench.history(&task);
    assert_eq!((history.phase(), history.states()), (Some(Phase::Success), vec!["S".to_owned()]));
}

/// Invariant 2, where it is kept: whatever made a runner want to begin a run, its stream has the last word.
#[test]
fn a_run_that_its_stream_says_was_begun_is_not_begun_again() {
    let bench = Bench::new();
    let task = bench.accept("t", &waiting("exit 0"));
    let_go(&bench, &task);
    let (mut runner, _) = start_stopping(&bench, &task, "launch::stream");
    let coordinator = Some(ProcessId { pid: i32::MAX, start_ticks: 1 });
    let forked = Step::Forked(proto::RunForked { coordinator, boot_id: String::new() });
    let name = bench.history(&task).name(0);
    forge(&bench, Identity::coordinator(task.clone(), name), vec![(run_step(forked), now())]);

    continue_process(runner.pid());
    assert!(runner.wait().success());

    bench.assert_over(&task);
    assert_eq!(bench.history(&task).states(), ["LS"]);
    assert_eq!(bench.marks(&task), ["a.1"]);
}

/// Runs of the sandbox need not wait.
fn let_go(bench: &Bench, task: &TaskId) {
    fs::create_dir_all(bench.sandbox(task)).unwrap();
    bench.touch(task, "go");
}

/// Starts a runner, and waits until it or a coordinator of it has stopped at `point`; says which process has.
fn start_stopping(bench: &Bench, task: &TaskId, point: &str) -> (Runner, i32) {
    let token = bench.dir().join("stop");
    fs::write(&token, "").unwrap();
    let armed = format!("{point}=stop@{}", token.display());
    let runner = bench.start_with(task, &[("DEWAR_FAILPOINT", armed)]);
    let mut stopped = None;
    wait_for("nothing stops", || {
        let pids = bench.processes_of(task).into_iter().chain([runner.pid()]);
        stopped = pids.into_iter().find(|&pid| is_stopped(pid));
        stopped.is_some()
    });
    (runner, stopped.unwrap())
}

fn continue_process(pid: i32) {
    kill(Pid::from_raw(pid), Signal::SIGCONT).unwrap();
}

/// A process of this test that has nothing to do with a task.
struct Stranger(std::process::Child);

impl Stranger {
    fn new() -> Self {
        Self(std::process::Command::new("sleep").arg("600").spawn().unwrap())
    }

    fn id(&self) -> ProcessId {
        let pid = self.0.id() as i32;
        let start_ticks = pidfd::start_ticks(Pid::from_raw(pid)).unwrap();
        ProcessId { pid, start_ticks }
    }

    fn is_untouched(&mut self) -> bool {
        self.0.try_wait().unwrap().is_none()
    }
}

impl Drop for Stranger {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Appends records to a stream, as its writer would have.
fn forge(bench: &Bench, identity: Identity, kinds: Vec<(Kind, Instant)>) {
    let recovery = Recovery::open_or_create(bench.root(), identity).unwrap();
    let mut writer = recovery.finish().unwrap().writer;
    for (kind, at) in kinds {
        writer.append(kind, at).unwrap();
    }
    writer.flush().unwrap();
}

fn now() -> Instant {
    let now = clock::now();
    Instant { boot_nanos: now.boot, unix_nanos: now.wall }
}

fn leader(boot_id: &str) -> Kind {
    let runner = Some(ProcessId { pid: 1, start_ticks: 1 });
    let boot_id = boot_id.to_owned();
    Kind::Leader(proto::Leader { runner, boot_id, ..proto::Leader::default() })
}

fn task_state(state: proto::TaskState) -> Kind {
    Kind::Task(proto::TaskTransition { state: state.into() })
}

fn run_step(step: Step) -> Kind {
    Kind::Run(proto::RunTransition { process: 0, run: 0, state: Some(step) })
}

/// The records of a runner, in boot `boot_id`, of a run whose coordinator and first process were `id`.
fn forge_running(bench: &Bench, task: &TaskId, boot_id: &str, id: ProcessId) {
    let forked =
        Step::Forked(proto::RunForked { coordinator: Some(id), boot_id: boot_id.to_owned() });
    let running = Step::Running(proto::RunRunning { pid: Some(id) });
    let steps = [leader(boot_id), task_state(proto::TaskState::Active)].into_iter().chain(
        [Step::Waiting(proto::RunWaiting {}), forked.clone(), running.clone()].map(run_step),
    );
    forge(bench, Identity::runner(task.clone()), steps.map(|kind| (kind, now())).collect());
    let name = bench.history(task).name(0);
    let steps = [forked, running].map(|step| (run_step(step), now()));
    forge(bench, Identity::coordinator(task.clone(), name), steps.into());
}

/// S31, attacks 42, 44: after a boot no recorded number is looked at.
#[test]
fn s31_a_new_boot_loses_the_run_and_spares_who_has_its_number() {
    let bench = Bench::new();
    let task = bench.accept("t", &waiting("exit 0"));
    let_go(&bench, &task);
    let mut stranger = Stranger::new();
    forge_running(&bench, &task, "00000000-0000-4000-8000-000000000000", stranger.id());

    bench.resume(&task);

    let history = bench.history(&task);
    assert_eq!(history.states(), ["LS"]);
    let verdict = &history.run(0, 0).end.as_ref().unwrap().verdict;
    assert_eq!(verdict.reason(), VerdictReason::Reboot);
    assert!(stranger.is_untouched());
}

/// Attack 42: in the same boot, with the same number, and even with the same start time.
#[test]
fn a_stranger_with_the_number_of_a_coordinator_is_spared() {
    let bench = Bench::new();
    let boot_id = clock::boot_id().unwrap();
    let mut stranger = Stranger::new();
    let later = ProcessId { start_ticks: stranger.id().start_ticks - 1, ..stranger.id() };
    for (name, id) in [("number", later), ("number-and-start", stranger.id())] {
        let task = bench.accept(name, &waiting("exit 0"));
        let_go(&bench, &task);
        forge_running(&bench, &task, &boot_id, id);

        bench.resume(&task);

        assert_eq!(bench.history(&task).states(), ["LS"]);
        assert!(stranger.is_untouched());
    }
}

/// Attack 44: what was left of a deadline is over; no time is measured across a boot.
#[test]
fn a_new_boot_ends_the_deadline_of_a_kill() {
    let bench = Bench::new();
    let file = json!({"name": "t", "processes": [
        {"name": "a", "cmdline": "true"}, {"name": "f", "cmdline": "true", "final": true}]});
    let task = bench.accept("t", &file);
    let request = Kind::Kill(proto::KillOrder {
        deadline_boot_nanos: u64::MAX,
        lost: false,
        by_uid: 0,
        by_pid: 1,
        reason: None,
    });
    let kinds = [
        leader("00000000-0000-4000-8000-000000000000"),
        task_state(proto::TaskState::Active),
        request,
    ];
    forge(&bench, Identity::runner(task.clone()), kinds.map(|kind| (kind, now())).into());

    bench.resume(&task);

    let history = bench.history(&task);
    assert_eq!(
        (history.phase(), history.states()),
        (Some(Phase::Killed), vec!["".into(), "".into()])
    );
}

/// Attack 43: the wall clock decides nothing, wherever it was set to.
#[test]
fn the_wall_clock_decides_nothing() {
    let bench = Bench::new();
    let ten_years = 10 * 365 * 86_400 * 1_000_000_000;
    for (name, step) in [("forward", ten_years), ("back", -ten_years), ("far", i64::MAX / 2)] {
        let mut file = waiting("exit 0");
        file["processes"][0]["min_duration"] = 0.5.into();
        file["processes"][0]["max_failures"] = 2.into();
        let task = bench.accept(name, &file);
        let_go(&bench, &task);
        let id = ProcessId { pid: 1, start_ticks: 1 };
        let boot_id = clock::boot_id().unwrap();
        let ended = Step::Ended(proto::RunEnded {
            state: proto::ProcessState::Failed.into(),
            exit_code: Some(1),
            ..proto::RunEnded::default()
        });
        let forked =
            Step::Forked(proto::RunForked { coordinator: Some(id), boot_id: boot_id.clone() });
        let running = Step::Running(proto::RunRunning { pid: Some(id) });
        let steps = [Step::Waiting(proto::RunWaiting {}), forked, running, ended].map(run_step);
        let kinds =
            [leader(&boot_id), task_state(proto::TaskState::Active)].into_iter().chain(steps);
        let at = now();
        let at = Instant { unix_nanos: at.unix_nanos.saturating_add(step), ..at };
        forge(&bench, Identity::runner(task.clone()), kinds.map(|kind| (kind, at)).collect());
        // The command of the forged run did not write its mark.
        fs::write(bench.sandbox(&task).join("marks"), "a.0\n").unwrap();

        bench.resume(&task);

        let history = bench.history(&task);
        assert_eq!(history.states(), ["FS"]);
        let pause = history.run(0, 1).started.unwrap().boot - at.boot_nanos;
        assert!((500_000_000..3_000_000_000).contains(&pause), "{name}: after {pause} ns");
    }
}

/// Invariant 1: what cannot be recorded is not done, and who asked for it is not told that it was.
#[test]
fn nothing_is_done_that_is_not_recorded() {
    let bench = Bench::new();
    let task = bench.accept("t", &waiting("exit 0"));
    let (token, trace) = (bench.dir().join("full"), bench.dir().join("trace"));
    let runner = bench.start_with(
        &task,
        &[
            ("DEWAR_FAILPOINT", format!("runner::flush=ENOSPC*@{}", token.display())),
            ("DEWAR_FAILPOINT_TRACE", trace.display().to_string()),
        ],
    );
    let before = bench.wait_running(&task, 0, 0);
    let flushes = || fs::read_to_string(&trace).unwrap().matches("runner::flush\n").count();

    fs::write(&token, "").unwrap();
    let seen = flushes();
    let answer = std::thread::scope(|scope| {
        let asking =
            scope.spawn(|| control::kill(bench.root(), &task, Duration::from_secs(30), false));
        wait_for("the runner does not try again", || flushes() >= seen + 4);
        runner.kill();
        asking.join().unwrap()
    });

    assert!(matches!(answer, Err(ControlError::Unanswered(_))), "{answer:?}");
    assert!(bench.log_text(&task).contains("cannot write, waiting"));
    assert!(is_alive(run_pid(&before, 0)), "it was killed, and no record says so");
    fs::remove_file(token).unwrap();
    bench.touch(&task, "go");
    bench.resume(&task);
    assert_eq!(bench.history(&task).states(), ["S"]);
}

/// Attack 35: a stream that cannot be written for a while ends nothing.
#[test]
fn a_runner_that_cannot_write_waits() {
    let bench = Bench::new();
    let task = bench.accept("t", &waiting("exit 0"));
    let (token, trace) = (bench.dir().join("full"), bench.dir().join("trace"));
    let mut runner = bench.start_with(
        &task,
        &[
            ("DEWAR_FAILPOINT", format!("runner::flush=EIO*@{}", token.display())),
            ("DEWAR_FAILPOINT_TRACE", trace.display().to_string()),
        ],
    );
    bench.wait_running(&task, 0, 0);
    let flushes = || fs::read_to_string(&trace).unwrap().matches("runner::flush\n").count();

    fs::write(&token, "").unwrap();
    let seen = flushes();
    bench.touch(&task, "go");
    wait_for("the runner does not try again", || flushes() >= seen + 4);
    assert_eq!(bench.history(&task).states(), ["r"]);
    fs::remove_file(token).unwrap();
    assert!(runner.wait().success());

    bench.assert_over(&task);
    assert_eq!(bench.history(&task).states(), ["S"]);
}

/// A process that an ordinary user's runner may not signal, a setuid program say, is killed with its leaf; and the rest
/// of the run has had its SIGTERM.
#[test]
fn a_process_that_may_not_be_signalled_does_not_stop_a_kill() {
    const NOBODY: u32 = 65534;
    let bench = Bench::new();
    let task = bench.accept_with("t", &waiting("exit 0"), |launch| {
        launch.identity = Some(proto::Identity {
            user: "nobody".to_owned(),
            uid: NOBODY,
            gid: NOBODY,
            groups: vec![NOBODY],
            home: "/".to_owned(),
            switch: false,
        });
    });
    let mut runner = bench.start_as(&task, NOBODY);
    bench.wait_running(&task, 0, 0);
    let mut foreign = Stranger::new();
    let procs = bench.leaf(&task, "a", 0).join("cgroup.procs");
    fs::write(procs, foreign.id().pid.to_string()).unwrap();

    control::kill(bench.root(), &task, Duration::from_secs(30), false).unwrap();
    assert!(runner.wait().success(), "{}", bench.log_text(&task));

    bench.assert_over(&task);
    let history = bench.history(&task);
    assert_eq!((history.phase(), history.states()), (Some(Phase::Killed), vec!["K".into()]));
    let signal = history.run(0, 0).end.as_ref().unwrap().outcome;
    assert_eq!(signal, Outcome::Signalled(libc::SIGTERM as u8));
    assert!(!foreign.is_untouched(), "it outlived its run");
}

/// Attack 36: whichever call is the first that gets no descriptor, nothing is leaked and no run is lost. What the runner
/// cannot do now it does later, or the next one does; what a coordinator can never do is said.
#[test]
fn no_limit_of_descriptors_loses_a_run() {
    let bench = Bench::new();
    let limits: Vec<u32> = (4..34).collect();
    std::thread::scope(|scope| {
        for limits in limits.chunks(limits.len().div_ceil(4)) {
            scope.spawn(|| limits.iter().for_each(|&limit| end_within(&bench, limit)));
        }
    });
}

/// Runs eight processes side by side, each of which costs the runner a descriptor.
fn end_within(bench: &Bench, limit: u32) {
    let process = |name: String| json!({"name": name, "cmdline": format!("{MARK}sleep 0.1")});
    let processes: Vec<Value> = (0..8).map(|number| process(format!("p{number}"))).collect();
    let task =
        bench.accept(&format!("limit-{limit}"), &json!({"name": "t", "processes": processes}));
    let mut status = bench.start_limited(&task, limit).wait();
    while !status.success() {
        let log = bench.log_text(&task);
        assert!(matches!(status.code(), Some(5 | 70)), "{limit}: {status}: {log}");
        status = bench.start(&task).wait();
    }
    bench.assert_over(&task);
    for (index, states) in bench.history(&task).states().into_iter().enumerate() {
        let lacks = || {
            let history = bench.history(&task);
            let verdict = history.run(index, 0).end.as_ref().unwrap().verdict.clone();
            states == "F" && verdict.errno.as_deref() == Some("EMFILE")
        };
        // Enough for any coordinator, and too little for the runner of eight.
        let is_enough = limit >= 22;
        assert!(states == "S" || !is_enough && lacks(), "{}", bench.describe(&task, "lost"));
    }
}
