//! Section 2, T19 to T24: what the end of a run means for its process.

use super::script::{End, dies, exits, fails_by, process, sleeps, task};
use super::sim::{Sim, natural_end};
use crate::proto::VerdictReason;
use crate::state::{Phase, RunEnd, Settled};

/// T19.
#[test]
fn success_finishes_a_process_and_idles_a_daemon() {
    let mut sim = Sim::new(task([
        process("once").runs([exits(0)]),
        process("daemon").daemon().min_duration(100),
    ]));

    sim.run_for(50);

    assert_eq!([sim.runs("once"), sim.runs("daemon")], ["S", "S"]);
    assert_eq!([sim.settled("once"), sim.settled("daemon")], [Some(Settled::Finished), None]);
    assert_eq!(sim.phase(), Phase::Active);
}

/// T20.
#[test]
fn a_process_fails_with_its_last_allowed_failure() {
    for limit in 1..4 {
        let main = process("main").max_failures(limit).runs([exits(1)]);

        let sim = Sim::completed(task([main]));

        assert_eq!(sim.runs("main"), "F".repeat(limit as usize));
        assert_eq!(sim.settled("main"), Some(Settled::Failed));
    }
}

/// T20: a daemon, too, may be without a limit.
#[test]
fn without_a_limit_no_number_of_failures_settles_a_process() {
    let daemon = process("d").daemon().max_failures(0).min_duration(1).runs([exits(1).after(0)]);
    let mut sim = Sim::new(task([daemon]));

    sim.run_for(300);

    assert!(sim.runs("d").starts_with(&"F".repeat(300)), "{}", sim.runs("d"));
    assert_eq!(sim.settled("d"), None);
}

/// T21: crash and OOM kill use up `max_failures`, a kill from outside does not.
#[test]
fn crashes_and_oom_kills_count_and_kills_do_not() {
    let sim = Sim::completed(
        task([
            process("crash").max_failures(2).runs([dies(libc::SIGSEGV)]),
            process("oom").max_failures(2).runs([fails_by(End::Oom)]),
            process("killed").runs([dies(libc::SIGKILL), exits(0)]),
            process("lost").runs([fails_by(End::CoordinatorDies), exits(0)]),
        ])
        .max_failures(0),
    );

    let runs = ["crash", "oom", "killed", "lost"].map(|name| sim.runs(name));
    assert_eq!(runs, ["FF", "FF", "KS", "LS"]);
}

/// D2, D11: a run that could not be started is a failed run like any other.
#[test]
fn a_failed_start_is_a_failure() {
    for end in [End::NotForked, End::NotStarted] {
        let main = process("main").max_failures(3).runs([fails_by(end), fails_by(end), exits(0)]);

        let sim = Sim::completed(task([main]));

        assert_eq!(sim.runs("main"), "FFS");
        assert_eq!(sim.verdict("main", 0).reason(), VerdictReason::LaunchFailed);
        assert_eq!(sim.phase(), Phase::Success);
    }
}

/// T22: neither successes nor failures use up the loss limit.
#[test]
fn a_daemon_may_succeed_and_a_process_fail_beyond_the_loss_limit() {
    let mut failing = vec![exits(1).after(0); 120];
    failing.push(exits(0));
    let mut main = process("main").max_failures(0).min_duration(1);
    main.attempts = failing;
    let daemon = process("d").daemon().min_duration(1).runs([exits(0).after(0)]);

    let mut sim = Sim::new(task([main, daemon]).loss_limit(3));
    sim.run_for(200);

    assert_eq!(sim.runs("main"), "F".repeat(120) + "S");
    assert!(sim.runs("d").starts_with(&"S".repeat(200)));
}

/// T22: the verdict of the last loss says that it is one, beside what is said of it anyway.
#[test]
fn the_last_loss_says_that_it_is_one_too_many() {
    let mut sim = Sim::new(task([process("main").runs([sleeps()])]).loss_limit(1));
    sim.run_for(1);
    let mut end = natural_end(End::CoordinatorDies);
    let judged = |end: &RunEnd| sim.state.judge(0, 0, end.clone()).verdict.detail.unwrap();

    assert_eq!(judged(&end), "1 losses in a row: the process has failed");
    end.verdict.detail = Some("its stream is corrupt".into());

    assert_eq!(judged(&end), "its stream is corrupt; 1 losses in a row: the process has failed");
}

/// T22: the limit holds for ephemerals too, and their successors never run.
#[test]
fn losses_in_a_row_fail_even_an_ephemeral() {
    let sim = Sim::completed(
        task([
            process("e1").ephemeral().runs([fails_by(End::CoordinatorDies)]),
            process("e2").ephemeral(),
            process("main").runs([exits(0).after(1000)]),
        ])
        .order(["e1", "e2"])
        .loss_limit(3),
    );

    assert_eq!([sim.runs("e1"), sim.runs("e2")], ["LLL", ""]);
    assert_eq!(sim.settled("e1"), Some(Settled::Failed));
    assert_eq!(sim.phase(), Phase::Success, "its failure does not fail the task");
}

/// T22.
#[test]
fn a_loss_limit_of_zero_is_no_limit() {
    let main = process("main").min_duration(1).runs([dies(libc::SIGKILL).after(0)]);
    let mut sim = Sim::new(task([main]).loss_limit(0));

    sim.run_for(300);

    assert!(sim.runs("main").starts_with(&"K".repeat(300)));
    assert_eq!(sim.phase(), Phase::Active);
}

/// T23.
#[test]
fn success_does_not_forgive_failures() {
    let daemon = process("d").daemon().max_failures(3).runs([
        exits(1),
        exits(0),
        exits(1),
        exits(0),
        exits(0),
        exits(1),
    ]);

    let sim = Sim::completed(task([daemon]));

    assert_eq!(sim.runs("d"), "FSFSSF");
}

/// T24: after any result, and never before the first run.
#[test]
fn min_duration_runs_from_the_end_of_a_run_to_the_next_start() {
    let daemon = process("d").daemon().max_failures(0).min_duration(500).runs([
        exits(0).after(700),
        exits(1).after(20),
        dies(libc::SIGKILL).after(30),
        fails_by(End::NotStarted),
        fails_by(End::NotForked),
        sleeps(),
    ]);
    let mut sim = Sim::new(task([daemon]));
    sim.run_for(10_000);

    assert_eq!(sim.runs("d"), "SFKFFr");
    assert_eq!(sim.opened_at("d", 0), 0);
    for run in 0..5 {
        assert_eq!(sim.opened_at("d", run as u32 + 1), sim.ended_at("d", run) + 500);
    }
}

/// T24: it is over at exactly that time, and the planner says when that is.
#[test]
fn a_process_is_runnable_at_exactly_min_duration() {
    let daemon = process("d").daemon().min_duration(100);
    let mut sim = Sim::new(task([daemon]));

    sim.run_for(109);
    assert_eq!(sim.runs("d"), "S");
    sim.run_for(1);

    assert_eq!(sim.opened_at("d", 1), 110);
}

/// T24: the wait is counted on the boot-time clock.
#[test]
fn a_step_of_the_wall_clock_changes_nothing() {
    let daemon = process("d").daemon().min_duration(100).runs([exits(0), sleeps()]);
    let mut sim = Sim::new(task([daemon]));

    sim.run_for(20);
    sim.wall_offset -= 3_600_000_000_000;
    sim.run_for(80);
    sim.wall_offset += 2 * 3_600_000_000_000;
    sim.run_for(20);

    assert_eq!(sim.opened_at("d", 1), 110);
}
