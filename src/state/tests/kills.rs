//! Section 4, T49 to T51: requests for the end of a task.

use super::script::{MS, OnTerm, exits, process, sleeps, task};
use super::sim::{Sim, killed};
use crate::state::{ApplyError, Event, KillStage, Phase, RunStep, Stamp};

/// A process that only a kill ends.
fn stubborn() -> Sim {
    let mut sim = Sim::new(task([process("main").runs([sleeps().on_term(OnTerm::Ignores)])]));
    sim.run_for(100);
    sim
}

/// T49.
#[test]
fn a_kill_takes_an_active_task_to_cleaning_at_once() {
    let mut sim = stubborn();

    sim.kill(5000, false);

    assert_eq!((sim.phase(), sim.terminations("main")), (Phase::Cleaning, 1));
    assert_eq!(sim.state.deadline(), Some(sim.now + 5000 * MS));
}

/// T47: after a kill its own time alone, be it longer than `finalization_wait` or shorter.
#[test]
fn a_kill_brings_its_own_deadline() {
    for wait in [10, 3_600_000] {
        let mut sim = stubborn();

        sim.kill(wait, false);
        sim.run_to_end();

        assert_eq!((sim.phase(), sim.over_at()), (Phase::Killed, 100 + wait));
    }
}

/// T49.
#[test]
fn a_kill_while_cleaning_sends_sigterm_again() {
    let mut sim = stubborn();

    sim.kill(5000, false);
    sim.run_for(100);
    sim.kill(5000, false);
    sim.run_for(100);

    assert_eq!((sim.phase(), sim.terminations("main")), (Phase::Cleaning, 2));
}

/// T49: what is already being killed gets no more signals.
#[test]
fn a_kill_after_the_deadline_adds_nothing() {
    let undead = sleeps().on_term(OnTerm::Ignores).dies_in(9000);
    let mut sim = Sim::new(task([process("main").runs([undead])]));
    sim.run_for(100);

    sim.kill(1000, false);
    sim.run_for(2000);
    sim.kill(0, false);
    sim.run_to_end();

    assert_eq!((sim.terminations("main"), sim.over_at()), (1, 100 + 1000 + 9000));
}

/// T49: live finalizers are torn down and run anew; those that are done stay done.
#[test]
fn a_kill_while_finalizing_runs_live_finalizers_anew() {
    let mut sim = Sim::new(
        task([
            process("main"),
            process("done").finalizer(),
            process("live").finalizer().min_duration(300).runs([sleeps(), exits(0)]),
        ])
        .finalization_wait(5000),
    );
    sim.run_for(100);
    assert_eq!([sim.runs("done"), sim.runs("live")], ["S", "r"]);

    sim.kill(5000, false);
    sim.run_to_end();

    assert_eq!([sim.runs("done"), sim.runs("live")], ["S", "KS"]);
    assert_eq!(*sim.verdict("live", 0), killed(KillStage::Request));
    assert_eq!((sim.terminations("live"), sim.opened_at("live", 1)), (0, 400));
    assert_eq!((sim.phase(), sim.over_at()), (Phase::Killed, 410));
}

/// T45, T49: the teardown comes first.
#[test]
fn no_finalizer_starts_beside_one_that_is_torn_down() {
    let f = |name| process(name).finalizer();
    let mut sim = Sim::new(
        task([
            f("a").runs([sleeps().dies_in(1000), exits(0)]),
            f("b").min_duration(200).runs([exits(1), exits(0)]).max_failures(2),
        ])
        .finalization_wait(5000),
    );
    sim.run_for(100);

    sim.kill(5000, false);
    sim.run_to_end();

    assert_eq!([sim.runs("a"), sim.runs("b")], ["KS", "FS"]);
    assert_eq!([sim.opened_at("a", 1), sim.opened_at("b", 1)], [1100, 1100]);
}

/// T49: no time is left to run them anew.
#[test]
fn a_kill_without_time_ends_live_finalizers() {
    let mut sim = Sim::new(task([process("main"), process("f").finalizer().runs([sleeps()])]));
    sim.run_for(100);

    sim.kill(0, false);
    sim.run_to_end();

    assert_eq!((sim.runs("f").as_str(), sim.over_at()), ("K", 100));
    assert_eq!(*sim.verdict("f", 0), killed(KillStage::Deadline));
}

/// T49: to the verdict it makes no difference when the request came.
#[test]
fn a_kill_while_finalizing_makes_a_success_killed() {
    let mut sim =
        Sim::new(task([process("main"), process("f").finalizer().runs([exits(0).after(900)])]));
    sim.run_for(100);
    assert_eq!(sim.phase(), Phase::Finalizing);

    sim.kill(60_000, false);
    sim.run_to_end();

    assert_eq!(sim.phase(), Phase::Killed);
}

/// T49.
#[test]
fn a_kill_of_a_task_that_is_over_is_an_error() {
    let mut sim = Sim::completed(task([process("main")]));
    let kill =
        Event::KillRequested { deadline: 0, lost: false, by_uid: 0, by_pid: 1, reason: None };

    let error = sim.state.apply(&kill, Stamp::default()).unwrap_err();

    assert_eq!(error.to_string(), "follows the end of the task, Success");
}

/// T42, T49: nothing is started for a task that was killed before it began.
#[test]
fn a_kill_before_the_first_turn_starts_nothing() {
    let mut sim = Sim::new(task([process("main"), process("f").finalizer()]));

    sim.kill(5000, false);
    sim.run_to_end();

    assert_eq!([sim.runs("main"), sim.runs("f")], ["", "S"]);
    assert_eq!(sim.phase(), Phase::Killed);
}

/// T51, dewar's rule.
#[test]
fn a_deadline_only_shrinks() {
    for (first, second) in [(30_000, 2000), (2000, 30_000)] {
        let mut sim = stubborn();

        sim.kill(first, false);
        sim.kill(second, false);
        sim.run_to_end();

        assert_eq!((sim.phase(), sim.over_at()), (Phase::Killed, 2100));
    }
}

/// T51, dewar's rule: several requests may be read in one turn.
#[test]
fn of_two_kills_at_once_the_shorter_holds() {
    for deadlines in [[9, 5], [5, 9]] {
        let mut sim = stubborn();

        for deadline in deadlines.map(|s| sim.now + s * 1000 * MS) {
            let kill =
                Event::KillRequested { deadline, lost: false, by_uid: 0, by_pid: 1, reason: None };
            sim.append(kill, sim.stamp());
        }
        sim.run_to_end();

        assert_eq!((sim.phase(), sim.over_at()), (Phase::Killed, 5100));
    }
}

/// T49.
#[test]
fn a_task_that_is_to_be_killed_opens_no_run() {
    let mut sim = Sim::new(task([process("a"), process("b")]).max_concurrency(1));
    sim.run_for(5);
    let kill =
        Event::KillRequested { deadline: 0, lost: false, by_uid: 0, by_pid: 1, reason: None };
    sim.append(kill, sim.stamp());
    let open = Event::Run { process: 1, run: 0, step: RunStep::Opened };

    let error = sim.state.apply(&open, sim.stamp()).unwrap_err();

    let why = "its plan is not being run";
    assert_eq!(error, ApplyError::IllegalStart { process: "b".into(), run: 0, why });
}

/// T51, dewar's rule: nor does a kill give back what `finalization_wait` has used up.
#[test]
fn a_kill_does_not_lengthen_a_running_budget() {
    let mut sim = Sim::new(
        task([
            process("a").runs([exits(1)]),
            process("b").runs([sleeps().on_term(OnTerm::Ignores)]),
        ])
        .finalization_wait(1000),
    );
    sim.run_for(500);

    sim.kill(60_000, false);
    sim.run_to_end();

    assert_eq!((sim.phase(), sim.over_at()), (Phase::Killed, 1010));
}

/// T50: whatever deadline the record names.
#[test]
fn a_lost_task_is_over_at_once() {
    let mut sim = stubborn();

    let deadline = sim.now + 60_000 * MS;
    sim.append(
        Event::KillRequested { deadline, lost: true, by_uid: 0, by_pid: 1, reason: None },
        sim.stamp(),
    );
    sim.run_to_end();

    assert_eq!((sim.phase(), sim.over_at()), (Phase::Lost, 100));
}

/// T51, dewar's rule: in either order.
#[test]
fn lose_overrides_kill() {
    for order in [[false, true], [true, false]] {
        let mut sim =
            Sim::new(task([process("main").runs([sleeps().on_term(OnTerm::Ignores).dies_in(50)])]));
        sim.run_for(100);

        for lost in order {
            sim.kill(30_000, lost);
        }
        sim.run_to_end();

        assert_eq!((sim.phase(), sim.over_at()), (Phase::Lost, 150));
    }
}
