//! Section 3: the states of a run, and what is said of its end.

use super::script::{End, process, sleeps, task};
use super::sim::{Sim, killed, natural_end};
use crate::proto::{OomKill, Verdict, VerdictReason};
use crate::state::{
    ApplyError, Event, KillStage, Outcome, ProcessId, RunEnd, RunState, RunStep, Stamp, TaskState,
};

const SOME_PID: ProcessId = ProcessId { pid: 4711, start_ticks: 99 };

fn opened() -> RunStep {
    RunStep::Opened
}

fn forked() -> RunStep {
    RunStep::Forked { coordinator: SOME_PID }
}

fn running() -> RunStep {
    RunStep::Running { pid: SOME_PID }
}

fn ended(outcome: Outcome) -> RunStep {
    RunStep::Ended(Box::new(RunEnd { outcome, verdict: Verdict::default(), usage: None }))
}

fn step(step: RunStep) -> Event {
    Event::Run { process: 0, run: 0, step }
}

/// A task of one process, active, after these steps of run 0.
fn after(steps: &[RunStep]) -> TaskState {
    let one = task([process("a").max_failures(2)]);
    let mut state = TaskState::new(one.spec, one.loss_limit);
    let entered = Event::Entered(crate::state::Phase::Active);
    for event in std::iter::once(entered).chain(steps.iter().cloned().map(step)) {
        state.apply(&event, Stamp { boot: 5, wall: 6 }).unwrap();
    }
    state
}

fn outcome_of(signal: i32) -> Outcome {
    Outcome::Signalled(signal as u8)
}

/// T30: every state with every step; what the table does not list is refused and changes nothing.
#[test]
fn a_run_takes_the_steps_of_the_table_and_no_other() {
    use RunState::{Failed, Forked, Killed, Lost, Running, Success, Waiting};
    let states: [(&[RunStep], RunState); 7] = [
        (&[opened()], Waiting),
        (&[opened(), forked()], Forked),
        (&[opened(), forked(), running()], Running),
        (&[opened(), forked(), running(), ended(Outcome::Exited(0))], Success),
        (&[opened(), forked(), running(), ended(Outcome::Exited(1))], Failed),
        (&[opened(), forked(), running(), ended(outcome_of(libc::SIGTERM))], Killed),
        (&[opened(), ended(Outcome::Lost)], Lost),
    ];
    let steps = [
        opened(),
        forked(),
        running(),
        ended(Outcome::Exited(0)),
        ended(Outcome::Exited(1)),
        ended(outcome_of(libc::SIGTERM)),
        ended(Outcome::NotStarted),
        ended(Outcome::Dropped),
        ended(Outcome::Lost),
    ];
    // Columns: the steps above.
    let table: [[Option<RunState>; 9]; 7] = [
        [None, Some(Forked), None, None, None, None, Some(Failed), Some(Killed), Some(Lost)],
        [
            None,
            None,
            Some(Running),
            None,
            None,
            Some(Killed),
            Some(Failed),
            Some(Killed),
            Some(Lost),
        ],
        [None, None, None, Some(Success), Some(Failed), Some(Killed), None, None, Some(Lost)],
        [None; 9],
        [None; 9],
        [None; 9],
        [None; 9],
    ];

    for ((before, from), row) in states.iter().zip(table) {
        for (taken, to) in steps.iter().zip(row) {
            let mut state = after(before);
            let unchanged = state.clone();
            assert_eq!(state.processes()[0].runs[0].state, *from);

            let result = state.apply(&step(taken.clone()), Stamp { boot: 7, wall: 8 });

            match to {
                Some(to) => assert_eq!(state.processes()[0].runs[0].state, to, "{taken:?}"),
                None => {
                    assert!(result.is_err(), "{from:?} takes {taken:?}");
                    assert_eq!(state, unchanged);
                }
            }
        }
    }
}

/// T30.
#[test]
fn a_refusal_names_the_process_the_run_the_step_and_the_state() {
    let mut state = after(&[opened()]);

    let error = state.apply(&step(running()), Stamp::default()).unwrap_err();

    assert_eq!(error.to_string(), r#"lets run 0 of "a" take Running while Waiting"#);
}

/// T32, T34.
#[test]
fn a_run_is_opened_with_the_next_number_and_only_after_the_last_has_ended() {
    let open = |run| Event::Run { process: 0, run, step: RunStep::Opened };
    let mut state = after(&[opened(), ended(Outcome::Lost)]);

    for run in [0, 2] {
        let error = state.apply(&open(run), Stamp::default()).unwrap_err();
        assert_eq!(error, ApplyError::UnknownRun { process: "a".into(), run, runs: 1 });
    }
    state.apply(&open(1), Stamp::default()).unwrap();
    let error = state.apply(&open(2), Stamp::default()).unwrap_err();

    let why = "it is running, settled, or waits for another process";
    assert_eq!(error, ApplyError::IllegalStart { process: "a".into(), run: 2, why }, "{error}");
}

/// T34.
#[test]
fn a_process_that_the_task_does_not_have_is_refused() {
    let mut state = after(&[]);

    for event in [
        Event::Run { process: 1, run: 0, step: RunStep::Opened },
        Event::Run { process: 1, run: 0, step: forked() },
        Event::Terminated { process: 1, run: 0 },
        Event::Doomed { process: 1, run: 0, stage: KillStage::Deadline },
    ] {
        let error = state.apply(&event, Stamp::default()).unwrap_err();
        assert_eq!(error.to_string(), "names process 1, but the task has 1");
    }
}

/// T38: records name their run, so the ones of a run that was given up are told from those of the next.
#[test]
fn what_comes_of_a_run_that_was_given_up_is_refused() {
    let mut state = after(&[opened(), forked(), ended(Outcome::Lost)]);
    state.apply(&Event::Run { process: 0, run: 1, step: opened() }, Stamp::default()).unwrap();
    let before = state.clone();

    let late = state.apply(&step(running()), Stamp::default()).unwrap_err();

    let state_of_run = RunState::Lost;
    let refusal = ApplyError::IllegalStep {
        process: "a".into(),
        run: 0,
        step: "Running",
        state: state_of_run,
    };
    assert_eq!((late, &state), (refusal, &before));
}

/// T38: the runner skips such records without harm.
#[test]
fn a_coordinator_that_was_given_up_does_not_disturb_the_next_run() {
    let mut sim = Sim::new(task([process("a").runs([sleeps()])]));
    sim.run_for(1);
    let lost = RunEnd { outcome: Outcome::Lost, ..natural_end(End::CoordinatorDies) };
    let step = RunStep::Ended(Box::new(lost));
    sim.append(Event::Run { process: 0, run: 0, step }, sim.stamp());

    sim.run_for(1);
    sim.signal(0, libc::SIGKILL);
    sim.run_for(1);

    assert_eq!(sim.runs("a"), "Lr");
}

/// T30, D9: what is known of a run stays known.
#[test]
fn a_run_keeps_its_pids_times_and_end() {
    let end = natural_end(End::Exit(3));
    let mut state = after(&[opened(), forked(), running()]);

    state.apply(&step(RunStep::Ended(Box::new(end.clone()))), Stamp { boot: 7, wall: 8 }).unwrap();

    let run = &state.processes()[0].runs[0];
    assert_eq!((run.coordinator, run.pid), (Some(SOME_PID), Some(SOME_PID)));
    assert_eq!(run.started, Some(Stamp { boot: 5, wall: 6 }));
    assert_eq!(run.ended, Some(Stamp { boot: 7, wall: 8 }));
    assert_eq!(run.end.as_deref(), Some(&end));
}

/// T21: signals of a crash are failures, all others are losses.
#[test]
fn a_crash_is_a_failure_and_any_other_signal_a_loss() {
    let crashes = [
        libc::SIGSEGV,
        libc::SIGBUS,
        libc::SIGILL,
        libc::SIGFPE,
        libc::SIGABRT,
        libc::SIGTRAP,
        libc::SIGSYS,
        libc::SIGXCPU,
        libc::SIGXFSZ,
    ];
    for signal in 1..=libc::SIGRTMAX() {
        let state = after(&[opened(), forked(), running(), ended(outcome_of(signal))]);

        let process = &state.processes()[0];
        let wanted = if crashes.contains(&signal) {
            (RunState::Failed, 1, 0)
        } else {
            (RunState::Killed, 0, 1)
        };
        let seen = (process.runs[0].state, process.failures, process.losses_in_row);
        assert_eq!(seen, wanted, "signal {signal}");
    }
}

/// T21: an OOM kill is a failure, whatever the first process made of it.
#[test]
fn an_oom_kill_is_a_failure() {
    for outcome in [outcome_of(libc::SIGKILL), Outcome::Exited(0), Outcome::Exited(137)] {
        let end = RunEnd { outcome, ..natural_end(End::Oom) };
        let state = after(&[opened(), forked(), running(), RunStep::Ended(Box::new(end))]);

        assert_eq!(state.processes()[0].runs[0].state, RunState::Failed);
        assert_eq!(state.processes()[0].failures, 1);
    }
}

/// T35.
#[test]
fn a_shell_that_outlives_its_killed_child_has_failed() {
    let state = after(&[opened(), forked(), running(), ended(Outcome::Exited(128 + 15))]);

    assert_eq!(state.processes()[0].runs[0].state, RunState::Failed);
}

/// T37.
#[test]
fn an_opened_run_takes_its_slot_before_it_runs() {
    let slow = |name| process(name).runs([sleeps().starts_in(100, 100)]);
    let mut sim = Sim::new(task([slow("a"), slow("b")]).max_concurrency(1));

    for (ms, runs) in [(50, "W"), (100, "w"), (100, "r")] {
        sim.run_for(ms);
        assert_eq!([sim.runs("a").as_str(), &sim.runs("b")], [runs, ""]);
    }
}

/// T39.
#[test]
fn a_run_that_dies_by_our_signal_says_who_and_why() {
    let mut state = after(&[opened(), forked(), running()]);
    let by = |signal| natural_end(End::Signal(signal as u8));
    let judged = |state: &TaskState, signal| state.judge(0, 0, by(signal)).verdict;
    assert_eq!(judged(&state, libc::SIGTERM), by(libc::SIGTERM).verdict);
    assert_eq!(judged(&state, libc::SIGKILL), by(libc::SIGKILL).verdict);

    state.apply(&Event::Terminated { process: 0, run: 0 }, Stamp::default()).unwrap();
    assert_eq!(judged(&state, libc::SIGTERM), killed(KillStage::Terminate));
    assert_eq!(judged(&state, libc::SIGKILL).reason(), VerdictReason::Signalled);

    let doomed = Event::Doomed { process: 0, run: 0, stage: KillStage::Deadline };
    state.apply(&doomed, Stamp::default()).unwrap();
    assert_eq!(judged(&state, libc::SIGKILL), killed(KillStage::Deadline));
    assert_eq!(judged(&state, libc::SIGSEGV).reason(), VerdictReason::Signalled);
}

/// T39: a kill request comes between the SIGTERM and the death by it.
#[test]
fn a_second_kill_does_not_disown_the_first_sigterm() {
    let mut state = after(&[opened(), forked(), running()]);
    for event in [
        Event::KillRequested { deadline: 90, lost: false, by_uid: 0, by_pid: 1, reason: None },
        Event::Entered(crate::state::Phase::Cleaning),
        Event::Terminated { process: 0, run: 0 },
        Event::KillRequested { deadline: 80, lost: false, by_uid: 0, by_pid: 1, reason: None },
    ] {
        state.apply(&event, Stamp { boot: 10, wall: 0 }).unwrap();
    }

    let end = state.judge(0, 0, natural_end(End::Signal(libc::SIGTERM as u8)));

    assert_eq!(end.verdict, killed(KillStage::Terminate));
}

/// T39, attack 31: of a run that lost a process for want of memory, and went on until dewar ended it, dewar's is the reason. One that
/// is killed as a whole does not go on.
#[test]
fn a_run_that_outlived_an_oom_kill_and_was_told_to_end_was_ended_by_dewar() {
    let mut asked = after(&[opened(), forked(), running()]);
    asked.apply(&Event::Terminated { process: 0, run: 0 }, Stamp::default()).unwrap();
    let mut doomed = asked.clone();
    let doom = Event::Doomed { process: 0, run: 0, stage: KillStage::Deadline };
    doomed.apply(&doom, Stamp::default()).unwrap();
    let left = after(&[opened(), forked(), running()]);
    let judged = |state: &TaskState, outcome, whole| {
        let oom = OomKill { killed: 1, whole, ..OomKill::default() };
        let verdict =
            Verdict { reason: VerdictReason::Oom.into(), oom: Some(oom), ..Verdict::default() };
        let verdict = state.judge(0, 0, RunEnd { outcome, verdict, usage: None }).verdict;
        assert!(verdict.oom.is_some(), "it is told in any case");
        (verdict.reason(), verdict.stage.map(|_| verdict.stage()))
    };
    let (kill, exit) = (Outcome::Signalled(9), Outcome::Exited(1));
    let by_dewar = (VerdictReason::Killed, Some(KillStage::Deadline));
    let oom = (VerdictReason::Oom, None);

    assert_eq!(judged(&doomed, kill, false), by_dewar);
    assert_eq!(judged(&asked, exit, false), (VerdictReason::Exited, None));
    assert_eq!(judged(&asked, kill, false), oom, "dewar sent SIGTERM, not SIGKILL");
    for outcome in [kill, exit] {
        assert_eq!(judged(&left, outcome, false), oom);
        assert_eq!(judged(&doomed, outcome, true), oom);
    }
}

/// T39: an end that dewar did not bring about is recorded as it came.
#[test]
fn an_exit_an_oom_kill_and_a_loss_are_not_claimed() {
    let mut state = after(&[opened(), forked(), running()]);
    let doomed = Event::Doomed { process: 0, run: 0, stage: KillStage::Teardown };
    state.apply(&doomed, Stamp::default()).unwrap();

    for end in [End::Exit(0), End::Exit(137), End::Oom, End::CoordinatorDies] {
        assert_eq!(state.judge(0, 0, natural_end(end)), natural_end(end));
    }
    for (process, run) in [(0, 1), (1, 0)] {
        assert_eq!(state.judge(process, run, natural_end(End::Exit(0))), natural_end(End::Exit(0)));
    }
}
