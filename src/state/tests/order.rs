//! Section 2: who may start, how many, and when there is nothing left to start.

use super::script::{exits, process, sleeps, task};
use super::sim::Sim;
use crate::state::{Event, Phase, RunStep, Settled, Stamp, TaskState};

/// T17, T28: each plan has its own count.
#[test]
fn regular_processes_and_finalizers_are_two_plans() {
    let mut processes = vec![process("r1"), process("r2"), process("r3")];
    processes.extend(["f1", "f2", "f3"].map(|name| process(name).finalizer()));

    let sim = Sim::completed(task(processes).max_concurrency(2));

    assert_eq!(sim.opened(), ["r1.0", "r2.0", "r3.0", "f1.0", "f2.0", "f3.0"]);
    assert_eq!(sim.opened_at("f2", 0), sim.opened_at("f1", 0));
    assert_eq!(sim.opened_at("f3", 0), sim.ended_at("f1", 0));
}

/// T17.
#[test]
fn a_process_is_opened_in_its_own_phase_only() {
    let both = task([process("regular"), process("final").finalizer()]);
    let mut state = TaskState::new(both.spec, both.loss_limit);
    let open = |process| Event::Run { process, run: 0, step: RunStep::Opened };
    let refusal = |state: &mut TaskState, process| {
        let before = state.clone();
        let error = state.apply(&open(process), Stamp::default()).unwrap_err();
        assert_eq!(*state, before);
        error.to_string()
    };
    let mut refused = Vec::new();

    for (phase, processes) in [
        (None, vec![0, 1]),
        (Some(Phase::Active), vec![1]),
        (Some(Phase::Cleaning), vec![0, 1]),
        (Some(Phase::Finalizing), vec![0]),
    ] {
        if let Some(phase) = phase {
            state.apply(&Event::Entered(phase), Stamp::default()).unwrap();
        }
        refused.extend(processes.into_iter().map(|process| refusal(&mut state, process)));
    }
    state.apply(&open(1), Stamp::default()).unwrap();

    let text =
        |name| format!("opens run 0 of {name:?}, which may not start: its plan is not being run");
    let (regular, last) = (text("regular"), text("final"));
    assert_eq!(refused, [&regular, &last, &last, &regular, &last, &regular].map(String::as_str));
}

/// T18: failed predecessors do not do, ended ones that will be retried neither.
#[test]
fn a_process_waits_until_all_its_predecessors_are_finished() {
    let mut sim = Sim::new(
        task([
            process("quick"),
            process("retried").max_failures(2).min_duration(100).runs([exits(1), exits(0)]),
            process("after"),
        ])
        .order(["quick", "after"])
        .order(["retried", "after"]),
    );

    sim.run_for(60);
    assert_eq!([sim.runs("retried"), sim.runs("after")], ["F", ""]);
    sim.run_to_end();

    assert_eq!([sim.runs("retried"), sim.runs("after")], ["FS", "S"]);
    assert_eq!(sim.opened_at("after", 0), sim.ended_at("retried", 1));
}

/// T18.
#[test]
fn a_process_cannot_be_opened_before_its_predecessor_is_finished() {
    let chain = task([process("a"), process("b")]).order(["a", "b"]);
    let mut state = TaskState::new(chain.spec, chain.loss_limit);
    state.apply(&Event::Entered(Phase::Active), Stamp::default()).unwrap();
    let open = Event::Run { process: 1, run: 0, step: RunStep::Opened };

    let error = state.apply(&open, Stamp::default()).unwrap_err();

    let why = "it is running, settled, or waits for another process";
    assert_eq!(error.to_string(), format!(r#"opens run 0 of "b", which may not start: {why}"#));
}

/// T25: what failed is done, too.
#[test]
fn a_task_is_complete_when_all_that_it_waits_for_are_settled() {
    let mut sim = Sim::new(
        task([
            process("s"),
            process("f").runs([exits(1)]),
            process("last").runs([exits(0).after(50)]),
            process("e").ephemeral().runs([sleeps()]),
        ])
        .max_failures(0),
    );

    sim.run_for(49);
    assert_eq!(sim.phase(), Phase::Active);
    sim.run_for(1);

    assert_eq!(sim.phase(), Phase::Success);
}

/// T26: as long as anything runs, or waits for its time, there is no deadlock.
#[test]
fn a_retry_that_is_due_later_is_no_deadlock() {
    let sim = Sim::completed(
        task([
            process("a").max_failures(2).min_duration(5000).runs([exits(1), exits(0)]),
            process("b"),
        ])
        .order(["a", "b"])
        .max_failures(0),
    );

    assert_eq!([sim.runs("a"), sim.runs("b")], ["FS", "S"]);
    assert_eq!(sim.phase(), Phase::Success);
}

/// T26, T42: the others come to their end first, though nothing comes of it.
#[test]
fn a_deadlock_is_one_only_when_nothing_else_goes_on() {
    let sim = Sim::completed(
        task([
            process("a").runs([exits(1)]),
            process("b"),
            process("c").runs([exits(0).after(3000)]),
        ])
        .order(["a", "b"])
        .max_failures(0),
    );

    assert_eq!([sim.runs("a"), sim.runs("b"), sim.runs("c")], ["F", "", "S"]);
    assert_eq!((sim.phase(), sim.over_at()), (Phase::Failed, 3000));
}

/// T27: processes are counted, not runs, and no ephemerals.
#[test]
fn the_failure_limit_of_a_task_counts_failed_processes() {
    for (limit, phase) in [(1, Phase::Failed), (2, Phase::Failed), (3, Phase::Success)] {
        let sim = Sim::completed(
            task([
                process("f1").max_failures(4).runs([exits(1)]),
                process("f2").runs([exits(1).after(500)]),
                process("e").ephemeral().runs([exits(1)]),
                process("s").runs([exits(0).after(1000)]),
            ])
            .max_failures(limit),
        );

        assert_eq!(sim.phase(), phase, "limit {limit}");
        assert_eq!(sim.state.failed_processes(), limit.min(2));
    }
}

/// T28.
#[test]
fn first_runs_are_launched_in_declared_order() {
    let names = ["e", "d", "c", "b", "a"];

    let sim = Sim::completed(task(names.map(process)).max_concurrency(2));

    assert_eq!(sim.opened(), names.map(|name| format!("{name}.0")));
}

/// T28: all slots are used, and never more.
#[test]
fn as_many_run_as_may() {
    let names: Vec<_> = (0..50).map(|n| format!("p{n:02}")).collect();
    let of = |(n, name): (usize, &String)| process(name).runs([exits(0).after(10 + n as u64 % 7)]);
    let mut sim = Sim::new(task(names.iter().enumerate().map(of)).max_concurrency(3));

    while sim.advance(u64::MAX) {
        sim.turn();
        let settled = names.iter().filter(|name| sim.settled(name).is_some()).count();
        assert_eq!(sim.state.live_runs().count(), 3.min(50 - settled));
    }

    assert_eq!(sim.phase(), Phase::Success);
}

/// T28: a process that is always due takes turns with the others.
#[test]
fn a_process_that_is_run_again_and_again_does_not_starve_the_others() {
    let sim = Sim::completed(
        task([
            process("e").ephemeral().daemon(),
            process("f").ephemeral().max_failures(0).runs([exits(1)]),
            process("g").max_failures(3).runs([exits(1), exits(1), exits(0)]),
            process("main"),
        ])
        .max_concurrency(1),
    );

    assert_eq!(sim.phase(), Phase::Success);
    let order = ["e.0", "f.0", "g.0", "main.0", "e.1", "f.1", "g.1", "e.2", "f.2", "g.2"];
    assert_eq!(sim.opened(), order);
}

/// T20: the successors of an ephemeral that failed for good run, those of another process never.
#[test]
fn only_an_ephemeral_is_finished_by_failing() {
    let sim = Sim::completed(
        task([
            process("e").ephemeral().max_failures(2).runs([exits(1)]),
            process("f").max_failures(2).runs([exits(1)]),
            process("main").runs([exits(0).after(500)]),
        ])
        .max_failures(0),
    );

    assert_eq!(sim.settled("e"), Some(Settled::Finished));
    assert_eq!(sim.settled("f"), Some(Settled::Failed));
}
