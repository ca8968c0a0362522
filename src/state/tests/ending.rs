//! Section 4, T41 to T48: the staged end of a task.

use super::script::{OnTerm, dies, exits, process, sleeps, task};
use super::sim::{Sim, killed};
use crate::state::{
    ApplyError, Effect, Event, KillStage, Outcome, Phase, RunEnd, RunStep, Settled, Stamp,
    TaskState, plan, wake,
};

const ALL: [Phase; 7] = [
    Phase::Active,
    Phase::Cleaning,
    Phase::Finalizing,
    Phase::Success,
    Phase::Failed,
    Phase::Killed,
    Phase::Lost,
];

/// T41: plain success and failure too.
#[test]
fn every_task_goes_through_all_phases() {
    for (code, end) in [(0, Phase::Success), (1, Phase::Failed)] {
        let sim = Sim::completed(task([process("main").runs([exits(code)])]));

        assert_eq!(sim.phases(), [Phase::Active, Phase::Cleaning, Phase::Finalizing, end]);
    }
}

/// T41: replay checks it. A phase follows only the ones before it, and ends only when no run is live.
#[test]
fn a_phase_out_of_its_order_is_refused() {
    let ways: [(&[Phase], &[Phase]); 5] = [
        (&[], &[Phase::Active]),
        (&ALL[..1], &[Phase::Cleaning]),
        (&ALL[..2], &ALL[2..]),
        (&ALL[..3], &ALL[3..]),
        (&[Phase::Active, Phase::Cleaning, Phase::Failed], &[]),
    ];
    for (path, legal) in ways {
        for to in ALL {
            let empty = task([]);
            let mut state = TaskState::new(empty.spec, empty.loss_limit);
            for &phase in path {
                state.apply(&Event::Entered(phase), Stamp::default()).unwrap();
            }
            let before = state.clone();

            let result = state.apply(&Event::Entered(to), Stamp::default());

            assert_eq!(result.is_ok(), legal.contains(&to), "{path:?} then {to:?}");
            assert!(result.is_ok() || state == before);
        }
    }
}

/// Invariant 3.
#[test]
fn no_phase_but_cleaning_is_entered_while_a_run_is_live() {
    let one = task([process("a")]);
    let mut state = TaskState::new(one.spec, one.loss_limit);
    let open = Event::Run { process: 0, run: 0, step: RunStep::Opened };
    for event in [Event::Entered(Phase::Active), open, Event::Entered(Phase::Cleaning)] {
        state.apply(&event, Stamp::default()).unwrap();
    }

    for to in &ALL[2..] {
        let error = state.apply(&Event::Entered(*to), Stamp::default()).unwrap_err();
        assert_eq!(
            error,
            ApplyError::IllegalPhase { from: Some(Phase::Cleaning), to: *to, live: 1 }
        );
    }
}

/// T41, invariant 2: nothing follows the end but a runner that files the task away.
#[test]
fn nothing_happens_to_a_task_that_is_over() {
    let mut sim = Sim::completed(task([process("a"), process("b").runs([exits(1)])]));
    let before = sim.state.clone();
    let lost = RunEnd { outcome: Outcome::Lost, verdict: Default::default(), usage: None };
    let run = |step| Event::Run { process: 0, run: 1, step };

    for event in [
        run(RunStep::Opened),
        run(RunStep::Ended(Box::new(lost))),
        Event::KillRequested { deadline: 0, lost: true, by_uid: 0, by_pid: 1, reason: None },
        Event::Terminated { process: 0, run: 0 },
        Event::Doomed { process: 0, run: 0, stage: KillStage::Teardown },
        Event::Entered(Phase::Failed),
    ] {
        let error = sim.state.apply(&event, Stamp::default()).unwrap_err();
        assert_eq!(error.to_string(), "follows the end of the task, Failed");
    }

    assert_eq!(sim.state, before);
    assert_eq!((plan(&sim.state, u64::MAX), wake(&sim.state)), (vec![], None));
}

/// T42, D3: whether the task is over is looked at before anything is launched.
#[test]
fn what_became_runnable_as_the_task_failed_is_not_launched() {
    let sim = Sim::completed(
        task([process("a"), process("b").runs([exits(1)]), process("c")]).order(["a", "c"]),
    );

    assert_eq!([sim.runs("a"), sim.runs("b"), sim.runs("c")], ["S", "F", ""]);
}

/// T42.
#[test]
fn an_active_task_has_no_deadline() {
    let mut sim = Sim::new(task([process("main").runs([sleeps()])]).finalization_wait(10));

    sim.run_for(1_000_000);

    assert_eq!((sim.phase(), sim.state.deadline(), wake(&sim.state)), (Phase::Active, None, None));
}

/// T43.
#[test]
fn every_run_that_is_left_gets_one_sigterm() {
    let stubborn = |name| process(name).ephemeral().runs([sleeps().on_term(OnTerm::Ignores)]);

    let sim = Sim::completed(
        task([process("main"), stubborn("a"), stubborn("b")]).finalization_wait(1000),
    );

    assert_eq!(["main", "a", "b"].map(|name| sim.terminations(name)), [0, 1, 1]);
    assert_eq!([sim.runs("a"), sim.runs("b")], ["K", "K"]);
}

/// T43, D16: a run on its way to its command line gets its SIGTERM when it is there.
#[test]
fn a_run_that_is_only_forked_is_terminated_once_it_runs() {
    let late = process("late").ephemeral().runs([sleeps().starts_in(5, 500)]);

    let sim = Sim::completed(task([process("main"), late]));

    assert_eq!(sim.runs("late"), "K");
    assert_eq!((sim.terminations("late"), sim.ended_at("late", 0)), (1, 505));
    assert_eq!(*sim.verdict("late", 0), killed(KillStage::Terminate));
}

/// T44: as long as there is time, the task waits for what was told to end.
#[test]
fn finalizers_start_when_the_last_regular_run_has_ended() {
    let slow = process("slow").ephemeral().runs([sleeps().on_term(OnTerm::Exits(0)).dies_in(700)]);

    let sim = Sim::completed(
        task([process("main"), slow, process("f").finalizer()]).finalization_wait(1000),
    );

    assert_eq!([sim.runs("slow"), sim.runs("f")], ["S", "S"]);
    assert_eq!(sim.opened_at("f", 0), 710);
}

/// T44, invariant 3: the end is recorded when the last run is gone, however long it takes to die.
#[test]
fn a_run_that_takes_long_to_die_is_waited_for() {
    let undead = process("undead").runs([sleeps().on_term(OnTerm::Ignores).dies_in(5000)]);

    let sim = Sim::completed(task([process("a").runs([exits(1)]), undead]).finalization_wait(1000));

    assert_eq!((sim.runs("undead").as_str(), sim.over_at()), ("K", 10 + 1000 + 5000));
    assert_eq!(sim.phases(), [Phase::Active, Phase::Cleaning, Phase::Failed]);
}

/// T44: nothing is polled while runs are dying.
#[test]
fn a_deadline_that_has_passed_wakes_nobody() {
    let undead = process("undead").runs([sleeps().on_term(OnTerm::Ignores).dies_in(5000)]);
    let mut sim = Sim::new(task([process("a").runs([exits(1)]), undead]).finalization_wait(1000));

    sim.run_for(2000);

    assert_eq!((sim.phase(), wake(&sim.state)), (Phase::Cleaning, None));
    assert_eq!(plan(&sim.state, sim.now), []);
}

/// T45: `max_concurrency`, retries and `min_duration` hold for finalizers.
#[test]
fn the_finalizing_plan_follows_the_same_rules() {
    let sim = Sim::completed(
        task([
            process("main"),
            process("f1").finalizer().max_failures(2).min_duration(100).runs([exits(1), exits(0)]),
            process("f2").finalizer(),
            process("f3").finalizer(),
        ])
        .order(["f1", "f3"])
        .max_concurrency(1),
    );

    assert_eq!(sim.opened(), ["main.0", "f1.0", "f2.0", "f1.1", "f3.0"]);
    assert_eq!(sim.opened_at("f1", 1), sim.ended_at("f1", 0) + 100);
}

/// T45: a finalizer that is not waited for is torn down, without a SIGTERM.
#[test]
fn an_ephemeral_finalizer_is_killed_when_the_others_are_done() {
    let side = process("side").finalizer().ephemeral().runs([sleeps()]);

    let sim = Sim::completed(task([process("main"), process("f").finalizer(), side]));

    assert_eq!(
        [sim.runs("f"), sim.runs("side"), sim.terminations("side").to_string()],
        ["S", "K", "0"]
    );
    assert_eq!(*sim.verdict("side", 0), killed(KillStage::Teardown));
}

/// T45: and where no finalizer can go on.
#[test]
fn a_deadlock_of_finalizers_ends_the_task() {
    let sim = Sim::completed(
        task([
            process("main"),
            process("f1").finalizer().runs([exits(1)]),
            process("f2").finalizer(),
            process("side").finalizer().ephemeral().daemon().runs([sleeps()]),
        ])
        .order(["f1", "f2"]),
    );

    assert_eq!([sim.runs("f1"), sim.runs("f2"), sim.runs("side")], ["F", "", "K"]);
    assert_eq!((sim.phase(), sim.over_at()), (Phase::Success, 20));
}

/// T45: a finalizer that waits for its next run does not outlive the budget.
#[test]
fn the_deadline_ends_the_wait_for_a_retry() {
    let f = process("f").finalizer().max_failures(2).min_duration(5000).runs([exits(1)]);

    let sim = Sim::completed(task([process("main"), f]).finalization_wait(1000));

    assert_eq!((sim.runs("f").as_str(), sim.over_at()), ("F", 10 + 1000));
    assert_eq!(sim.phase(), Phase::Success);
}

/// T47: one budget for both phases.
#[test]
fn cleaning_uses_up_the_time_of_the_finalizers() {
    let slow = process("slow").ephemeral().runs([sleeps().dies_in(600)]);

    let sim = Sim::completed(
        task([process("main"), slow, process("f").finalizer().runs([sleeps()])])
            .finalization_wait(1000),
    );

    assert_eq!(sim.opened_at("f", 0), 610);
    assert_eq!((sim.runs("f").as_str(), sim.over_at()), ("K", 1010));
}

/// T47: the deadline itself is already too late.
#[test]
fn at_the_deadline_no_finalizer_is_started() {
    let slow = process("slow").ephemeral().runs([sleeps().dies_in(1000)]);

    let sim = Sim::completed(
        task([process("main"), slow, process("f").finalizer()]).finalization_wait(1000),
    );

    assert_eq!((sim.runs("f").as_str(), sim.over_at()), ("", 1010));
}

/// T47.
#[test]
fn without_time_sigterm_and_kill_come_in_one_breath() {
    let mut sim = Sim::new(task([process("main").runs([sleeps()])]));
    sim.run_for(5);
    let kill =
        Event::KillRequested { deadline: sim.now, lost: false, by_uid: 0, by_pid: 1, reason: None };
    sim.append(kill, sim.stamp());
    sim.append(Event::Entered(Phase::Cleaning), sim.stamp());

    let effects = plan(&sim.state, sim.now);

    let (process, run) = (0, 0);
    let doom = Effect::Doom { process, run, stage: KillStage::Deadline };
    assert_eq!(effects, [Effect::Terminate { process, run }, doom]);
}

/// T48: what happens to ephemerals at the end, or to finalizers, does not change the verdict.
#[test]
fn a_task_that_did_its_work_succeeds_whatever_its_end_was_like() {
    let sim = Sim::completed(
        task([
            process("main"),
            process("e").ephemeral().runs([sleeps().on_term(OnTerm::Exits(143))]),
            process("f").finalizer().runs([dies(libc::SIGSEGV)]),
        ])
        .loss_limit(1),
    );

    assert_eq!([sim.runs("main"), sim.runs("e"), sim.runs("f")], ["S", "F", "F"]);
    assert_eq!(sim.phase(), Phase::Success);
}

/// T48: a process that succeeds on SIGTERM does not heal a failed task.
#[test]
fn a_failed_task_stays_failed() {
    let sim = Sim::completed(task([
        process("a").runs([exits(1)]),
        process("b").runs([sleeps().on_term(OnTerm::Exits(0))]),
    ]));

    assert_eq!([sim.runs("a"), sim.runs("b")], ["F", "S"]);
    assert_eq!(sim.settled("b"), Some(Settled::Finished));
    assert_eq!(sim.phase(), Phase::Failed);
}

/// T52, T46: a run that never had a process is given up, and then the task may end.
#[test]
fn a_run_that_was_only_opened_is_dropped_at_the_deadline() {
    let stuck = process("stuck").ephemeral().runs([sleeps().starts_in(60_000, 0)]);

    let sim = Sim::completed(task([process("main"), stuck]).finalization_wait(1000));

    assert_eq!((sim.runs("stuck").as_str(), sim.over_at()), ("K", 1010));
    assert_eq!(sim.process_runs("stuck")[0].end.as_ref().unwrap().outcome, Outcome::Dropped);
}
