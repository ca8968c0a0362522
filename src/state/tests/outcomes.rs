//! Outcomes O1 to O36 and O41 as far as the core decides them, with dewar's answers.

use super::script::{End, OnTerm, dies, exits, fails_by, process, sleeps, task};
use super::sim::{Sim, killed};
use crate::proto::VerdictReason;
use crate::state::{KillStage, Phase, Settled};

/// O1: T18.
#[test]
fn pairs_run_after_pairs() {
    let names = ["t1", "t2", "t3", "t4", "t5", "t6"];
    let mut pairs = task(names.map(process));
    for from in ["t1", "t2"] {
        pairs = pairs.order([from, "t3", "t5"]).order([from, "t4", "t6"]);
    }
    let pairs = pairs.order(["t3", "t6"]).order(["t4", "t5"]);

    let sim = Sim::completed(pairs);

    assert_eq!(sim.phase(), Phase::Success);
    assert_eq!(sim.opened(), ["t1.0", "t2.0", "t3.0", "t4.0", "t5.0", "t6.0"]);
    assert!(sim.opened_at("t3", 0) >= sim.ended_at("t2", 0));
    assert!(sim.opened_at("t5", 0) >= sim.ended_at("t4", 0));
}

/// O2: T20.
#[test]
fn a_process_may_succeed_at_its_first_second_or_third_try() {
    let sim = Sim::completed(task([
        process("first").max_failures(5).runs([exits(0)]),
        process("second").max_failures(5).runs([exits(1), exits(0)]),
        process("third").max_failures(5).runs([exits(1), exits(1), exits(0)]),
    ]));

    assert_eq!([sim.runs("first"), sim.runs("second"), sim.runs("third")], ["S", "FS", "FFS"]);
    assert_eq!(sim.phase(), Phase::Success);
}

/// O3: T26, T48.
#[test]
fn a_failure_in_the_middle_of_a_chain_is_a_deadlock() {
    let chain = task([process("a"), process("b").runs([exits(1)]), process("c")])
        .order(["a", "b", "c"])
        .max_failures(2);

    let sim = Sim::completed(chain);

    assert_eq!([sim.runs("a"), sim.runs("b"), sim.runs("c")], ["S", "F", ""]);
    assert_eq!(sim.phase(), Phase::Failed);
    assert!(sim.state.is_deadlocked());
}

/// O4: T27.
#[test]
fn a_task_without_a_failure_limit_succeeds_whatever_fails() {
    let failing = ["f1", "f2", "f3"].map(|name| process(name).max_failures(2).runs([exits(1)]));
    let passing = ["s1", "s2", "s3"].map(process);

    let sim = Sim::completed(task(failing.into_iter().chain(passing)).max_failures(0));

    assert_eq!(sim.runs("f1") + &sim.runs("f2") + &sim.runs("f3"), "FFFFFF");
    assert_eq!(sim.runs("s1") + &sim.runs("s2") + &sim.runs("s3"), "SSS");
    assert_eq!(sim.phase(), Phase::Success);
}

/// O5: T27, T43.
#[test]
fn a_failed_process_ends_the_others_by_sigterm() {
    let sim = Sim::completed(task([process("a").runs([exits(1)]), process("b").runs([sleeps()])]));

    assert_eq!([sim.runs("a"), sim.runs("b")], ["F", "K"]);
    assert_eq!(*sim.verdict("b", 0), killed(KillStage::Terminate));
    assert_eq!(sim.phase(), Phase::Failed);
}

/// O6: T25.
#[test]
fn an_ephemeral_is_not_waited_for() {
    let sim = Sim::completed(task([
        process("main").runs([exits(0).after(1000)]),
        process("side").ephemeral().runs([exits(0).after(10_000)]),
    ]));

    assert_eq!([sim.runs("main"), sim.runs("side")], ["S", "K"]);
    assert_eq!((sim.phase(), sim.over_at()), (Phase::Success, 1000));
}

/// O7: T28.
#[test]
fn at_a_concurrency_of_one_runs_follow_each_other() {
    let names = ["a", "b", "c"];

    let sim = Sim::completed(
        task(names.map(|name| process(name).runs([exits(0).after(1000)]))).max_concurrency(1),
    );

    assert_eq!(names.map(|name| sim.opened_at(name, 0)), [0, 1000, 2000]);
    assert_eq!(sim.phase(), Phase::Success);
}

/// O8: T45.
#[test]
fn finalizers_run_in_their_order_after_the_rest() {
    let sim = Sim::completed(
        task([process("f1").finalizer(), process("f2").finalizer(), process("main")])
            .order(["f1", "f2"]),
    );

    assert_eq!(sim.opened(), ["main.0", "f1.0", "f2.0"]);
    assert_eq!(sim.phase(), Phase::Success);
}

/// O9: T45, T48.
#[test]
fn a_failed_finalizer_does_not_fail_the_task() {
    let sim = Sim::completed(
        task([
            process("main"),
            process("f1").finalizer().runs([exits(1)]),
            process("f2").finalizer(),
        ])
        .order(["f1", "f2"]),
    );

    assert_eq!([sim.runs("main"), sim.runs("f1"), sim.runs("f2")], ["S", "F", ""]);
    assert_eq!(sim.phase(), Phase::Success);
}

/// O10.
#[test]
fn finalizers_are_retried_by_the_same_rules() {
    let sim = Sim::completed(task([
        process("main"),
        process("f1").finalizer().max_failures(2).runs([exits(1)]),
        process("f2").finalizer(),
    ]));

    assert_eq!([sim.runs("f1"), sim.runs("f2")], ["FF", "S"]);
    assert_eq!(sim.phase(), Phase::Success);
}

/// O11.
#[test]
fn finalizers_run_after_a_failure_too() {
    let sim =
        Sim::completed(task([process("main").runs([exits(1)]), process("finalizer").finalizer()]));

    assert_eq!([sim.runs("main"), sim.runs("finalizer")], ["F", "S"]);
    assert_eq!(sim.phase(), Phase::Failed);
}

/// O12: T21.
#[test]
fn a_run_killed_by_a_stranger_is_run_again() {
    let mut sim = Sim::new(task([process("main")]));
    sim.run_for(5);

    sim.signal(0, libc::SIGKILL);
    sim.run_to_end();

    assert_eq!(sim.runs("main"), "KS");
    assert_eq!(sim.verdict("main", 0).reason(), VerdictReason::Signalled);
    assert_eq!(sim.phase(), Phase::Success);
}

/// O13: T21, T40.
#[test]
fn a_run_whose_coordinator_dies_is_run_again() {
    let mut sim = Sim::new(task([process("main")]));
    sim.run_for(5);

    sim.kill_coordinator(0);
    sim.run_to_end();

    assert_eq!(sim.runs("main"), "LS");
    assert_eq!(sim.phase(), Phase::Success);
}

/// O14: T47.
#[test]
fn what_ignores_sigterm_is_killed_at_the_deadline() {
    let mut sim = Sim::new(task([process("main").runs([sleeps().on_term(OnTerm::Ignores)])]));
    sim.run_for(500);

    sim.kill(1000, false);
    sim.run_to_end();

    assert_eq!(sim.runs("main"), "K");
    assert_eq!(*sim.verdict("main", 0), killed(KillStage::Deadline));
    assert_eq!((sim.phase(), sim.over_at()), (Phase::Killed, 1500));
}

/// O15.
#[test]
fn a_run_that_died_with_its_runner_is_lost_and_a_kill_leaves_it_at_that() {
    let mut sim = Sim::new(task([process("main").runs([sleeps()]).min_duration(5000)]));
    sim.run_for(10);
    sim.kill_runner();
    sim.kill_coordinator(0);

    sim.start_runner();
    sim.kill(0, false);
    sim.run_to_end();

    assert_eq!(sim.runs("main"), "L");
    assert_eq!(sim.phase(), Phase::Killed);
}

/// O16.
#[test]
fn losses_of_both_kinds_are_retried() {
    let mut sim = Sim::new(task([process("main").runs([sleeps()])]));

    sim.run_for(5);
    sim.kill_coordinator(0);
    sim.run_for(5);
    sim.signal(0, libc::SIGKILL);
    sim.run_for(5);

    assert_eq!(sim.runs("main"), "LKr");
    assert_eq!(sim.phase(), Phase::Active);
}

/// O18.
#[test]
fn after_a_kill_finalizers_run_in_the_time_that_is_left() {
    for (on_term, main) in [(OnTerm::Dies, "K"), (OnTerm::Exits(0), "S")] {
        let mut sim = Sim::new(task([
            process("main").runs([sleeps().on_term(on_term)]),
            process("finalizer").finalizer(),
        ]));
        sim.run_for(5);

        sim.kill(60_000, false);
        sim.run_to_end();

        assert_eq!([sim.runs("main"), sim.runs("finalizer")], [main, "S"]);
        assert_eq!(sim.phase(), Phase::Killed);
    }
}

/// O19: T47, T50.
#[test]
fn a_kill_without_time_and_a_loss_run_no_finalizers() {
    for (lost, end) in [(false, Phase::Killed), (true, Phase::Lost)] {
        let mut sim =
            Sim::new(task([process("main").runs([sleeps()]), process("finalizer").finalizer()]));
        sim.run_for(5);

        sim.kill(0, lost);
        sim.run_to_end();

        assert_eq!([sim.runs("main"), sim.runs("finalizer")], ["K", ""]);
        assert_eq!((sim.phase(), sim.over_at()), (end, 5));
    }
}

/// O20: T19.
#[test]
fn a_daemon_is_run_again_until_it_fails() {
    let sim = Sim::completed(task([process("d").daemon().runs([exits(0), exits(0), exits(1)])]));

    assert_eq!(sim.runs("d"), "SSF");
    assert_eq!(sim.phase(), Phase::Failed);
}

/// O21.
#[test]
fn an_ephemeral_daemon_is_run_again_as_long_as_the_task_is_there() {
    let sim = Sim::completed(task([
        process("main").runs([exits(0).after(7000)]),
        process("d").daemon().ephemeral().min_duration(5000),
    ]));

    assert_eq!([sim.runs("main"), sim.runs("d")], ["S", "SS"]);
    assert_eq!(sim.phase(), Phase::Success);
}

/// O22, D3, T25.
#[test]
fn a_task_of_nothing_to_wait_for_succeeds_at_once() {
    for processes in [vec![], vec![process("e1").ephemeral(), process("e2").ephemeral().daemon()]] {
        let sim = Sim::completed(task(processes));

        assert!(sim.opened().is_empty());
        assert_eq!((sim.phase(), sim.over_at()), (Phase::Success, 0));
    }
}

/// O23: T20.
#[test]
fn a_process_without_a_failure_limit_is_retried_until_it_succeeds() {
    let main = process("main").max_failures(0).runs([exits(1), exits(1), exits(0)]);

    let sim = Sim::completed(task([main]));

    assert_eq!(sim.runs("main"), "FFS");
    assert_eq!(sim.phase(), Phase::Success);
}

/// O24: T20.
#[test]
fn the_successor_of_a_failed_ephemeral_runs() {
    let sim = Sim::completed(
        task([
            process("e1").ephemeral().runs([exits(1)]),
            process("e2").ephemeral(),
            process("main").runs([exits(0).after(1000)]),
        ])
        .order(["e1", "e2"]),
    );

    assert_eq!([sim.runs("e1"), sim.runs("e2"), sim.runs("main")], ["F", "S", "S"]);
    assert_eq!(sim.settled("e1"), Some(Settled::Finished));
    assert_eq!(sim.phase(), Phase::Success);
}

/// O25: T27.
#[test]
fn a_task_that_may_lose_one_process_succeeds_without_it() {
    let sim = Sim::completed(
        task([process("a").runs([exits(1)]), process("b").runs([exits(0).after(50)])])
            .max_failures(2),
    );

    assert_eq!([sim.runs("a"), sim.runs("b")], ["F", "S"]);
    assert_eq!(sim.phase(), Phase::Success);
}

/// O26: T47.
#[test]
fn no_finalization_wait_means_no_finalizers() {
    let sim = Sim::completed(
        task([process("main"), process("finalizer").finalizer()]).finalization_wait(0),
    );

    assert_eq!([sim.runs("main"), sim.runs("finalizer")], ["S", ""]);
    assert_eq!(sim.phases(), [Phase::Active, Phase::Cleaning, Phase::Success]);
}

/// O27: T45, T48.
#[test]
fn a_finalizer_that_uses_up_the_budget_is_killed_and_the_task_keeps_its_success() {
    let sim = Sim::completed(
        task([process("main"), process("finalizer").finalizer().runs([sleeps()])])
            .finalization_wait(2000),
    );

    assert_eq!([sim.runs("main"), sim.runs("finalizer")], ["S", "K"]);
    assert_eq!(*sim.verdict("finalizer", 0), killed(KillStage::Deadline));
    assert_eq!((sim.phase(), sim.over_at()), (Phase::Success, 10 + 2000));
}

/// O28: T44.
#[test]
fn what_ignores_sigterm_uses_up_the_budget_of_the_finalizers() {
    let sim = Sim::completed(
        task([
            process("a").runs([exits(1)]),
            process("b").runs([sleeps().on_term(OnTerm::Ignores)]),
            process("finalizer").finalizer(),
        ])
        .finalization_wait(2000),
    );

    assert_eq!([sim.runs("a"), sim.runs("b"), sim.runs("finalizer")], ["F", "K", ""]);
    assert_eq!(*sim.verdict("b", 0), killed(KillStage::Deadline));
    assert_eq!((sim.phase(), sim.over_at()), (Phase::Failed, 10 + 2000));
}

/// O29: T22.
#[test]
fn a_hundred_losses_in_a_row_fail_a_process() {
    let sim = Sim::completed(task([process("main").runs([dies(libc::SIGKILL)])]));

    assert_eq!(sim.runs("main"), "K".repeat(100));
    assert_eq!(
        sim.verdict("main", 99).detail.as_deref(),
        Some("100 losses in a row: the process has failed")
    );
    assert_eq!(sim.verdict("main", 98).detail, None);
    assert_eq!(sim.phase(), Phase::Failed);
}

/// O30: T68.
#[test]
fn a_run_that_ended_without_a_runner_is_not_repeated() {
    let mut sim = Sim::new(task([process("main")]));
    sim.run_for(5);

    sim.kill_runner();
    sim.run_for(5000);
    sim.start_runner();
    sim.run_to_end();

    assert_eq!(sim.runs("main"), "S");
    assert_eq!(sim.ended_at("main", 0), 10);
    assert_eq!(sim.phase(), Phase::Success);
}

/// O31, D6.
#[test]
fn a_kill_survives_the_runner() {
    let main = process("main").runs([sleeps().on_term(OnTerm::Ignores)]);
    let mut sim = Sim::new(task([main]));
    sim.run_for(5);

    sim.kill(1000, false);
    sim.restart_runner();
    sim.run_to_end();

    assert_eq!(sim.runs("main"), "K");
    assert_eq!((sim.phase(), sim.over_at()), (Phase::Killed, 1005));
}

/// O32, D3: T28.
#[test]
fn nothing_is_launched_in_the_turn_in_which_the_task_fails() {
    let sim =
        Sim::completed(task([process("a").runs([exits(1)]), process("b")]).max_concurrency(1));

    assert_eq!([sim.runs("a"), sim.runs("b")], ["F", ""]);
    assert_eq!(sim.phase(), Phase::Failed);
}

/// O33, D22: T26.
#[test]
fn an_ephemeral_daemon_does_not_hide_a_deadlock() {
    let sim = Sim::completed(
        task([
            process("a").runs([exits(1)]),
            process("b"),
            process("e").daemon().ephemeral().runs([sleeps()]),
        ])
        .order(["a", "b"])
        .max_failures(0),
    );

    assert_eq!([sim.runs("a"), sim.runs("b"), sim.runs("e")], ["F", "", "K"]);
    assert_eq!(sim.phase(), Phase::Failed);
}

/// O34: T21, T23.
#[test]
fn a_loss_between_two_failures_counts_for_nothing() {
    let main =
        process("main").max_failures(2).runs([exits(1), fails_by(End::CoordinatorDies), exits(1)]);

    let sim = Sim::completed(task([main]));

    assert_eq!(sim.runs("main"), "FLF");
    assert_eq!(sim.settled("main"), Some(Settled::Failed));
}

/// O35: T22.
#[test]
fn only_losses_in_a_row_count_against_the_loss_limit() {
    let lost = fails_by(End::CoordinatorDies);
    let main = process("main").max_failures(100).runs([exits(1), lost, exits(1), lost, exits(0)]);
    let daemon = process("d").daemon().max_failures(2).runs([
        exits(1),
        exits(0),
        lost,
        lost,
        exits(0),
        lost,
        exits(1),
    ]);

    let sim = Sim::completed(task([main, daemon]).max_failures(0).loss_limit(3));

    assert_eq!([sim.runs("main"), sim.runs("d")], ["FLFLS", "FSLLSLF"]);
}

/// O36: T23, T24.
#[test]
fn a_daemon_waits_out_min_duration_and_keeps_its_failures() {
    let daemon = process("d").daemon().max_failures(2).min_duration(10).runs([
        exits(0).after(5),
        exits(1).after(0),
        exits(0).after(0),
        exits(1).after(0),
    ]);

    let sim = Sim::completed(task([daemon]));

    assert_eq!(sim.runs("d"), "SFSF");
    assert_eq!([0, 1, 2, 3].map(|run| sim.opened_at("d", run)), [0, 15, 25, 35]);
}

/// O41.
#[test]
fn finalizers_run_though_a_process_failed_that_the_task_may_lose() {
    let sim = Sim::completed(
        task([
            process("a"),
            process("b").max_failures(2).runs([exits(1)]),
            process("c").finalizer(),
        ])
        .order(["a", "b"])
        .max_failures(2),
    );

    assert_eq!([sim.runs("a"), sim.runs("b"), sim.runs("c")], ["S", "FF", "S"]);
    assert_eq!(sim.phase(), Phase::Success);
}
