//! What is said of each process, and that it is what the planner does.

use super::script::{MS, OnTerm, dies, exits, process, sleeps, task};
use super::sim::Sim;
use crate::state::{Effect, KillStage, Phase, Settled, TaskState, Why, explain};

/// Holds what is said of each process against what the planner answered.
pub(super) fn check(state: &TaskState, now: u64, effects: &[Effect]) {
    let whys = explain(state, now);
    assert_eq!(whys.len(), state.processes().len());
    for (index, why) in (0..).zip(&whys) {
        let process = &state.processes()[index as usize];
        let opens = effects
            .iter()
            .any(|effect| matches!(effect, Effect::Open { process, .. } if *process == index));
        // It becomes ACTIVE before anything is opened.
        if state.phase().is_some() {
            assert_eq!(*why == Why::Due, opens, "{index} is {why:?}: {effects:?}");
        }
        let is_live = matches!(
            why,
            Why::Starting | Why::Running | Why::Terminating { .. } | Why::Dying { .. }
        );
        assert_eq!(is_live, process.live_run().is_some(), "{index} is {why:?}");
        let settled = match why {
            Why::Finished => Some(Settled::Finished),
            Why::Failed | Why::Lost => Some(Settled::Failed),
            _ => None,
        };
        assert_eq!(settled, process.settled, "{index} is {why:?}");
        match why {
            &Why::MinDuration { until } => {
                assert!(until > now, "{index} waits for the past");
                let then = &explain(state, until)[index as usize];
                // What the deadline ends meanwhile is not started then either.
                assert!(
                    matches!(then, Why::Due | Why::Concurrency | Why::Over),
                    "{index}: {then:?}"
                );
            }
            Why::WaitsFor(others) => {
                assert!(!others.is_empty());
                let finished =
                    |&of: &u32| state.processes()[of as usize].settled == Some(Settled::Finished);
                assert!(!others.iter().any(finished), "{index} waits for what is finished");
            }
            &Why::Blocked(by) => {
                assert_eq!(state.processes()[by as usize].settled, Some(Settled::Failed));
            }
            _ => {}
        }
    }
}

fn whys(sim: &Sim) -> Vec<Why> {
    explain(&sim.state, sim.now)
}

/// T18, T24, T28, T44.
#[test]
fn each_process_that_waits_says_what_for() {
    let retried = process("retried").runs([exits(1), exits(0)]).max_failures(0).min_duration(300);
    let last = process("last");
    let mut of = task([
        process("one").runs([sleeps()]),
        process("two").runs([sleeps()]),
        last,
        retried,
        process("report").finalizer(),
    ]);
    of = of.max_concurrency(3).edge(0, 2).edge(1, 2);
    let mut sim = Sim::new(of);
    sim.run_for(100);

    let until = (sim.ended_at("retried", 0) + 300) * MS + 1_000 * MS;
    let expected = [
        Why::Running,
        Why::Running,
        Why::WaitsFor(vec![0, 1]),
        Why::MinDuration { until },
        Why::Finalizer,
    ];
    assert_eq!(whys(&sim), expected);
}

/// T28.
#[test]
fn what_is_due_and_has_no_room_says_so() {
    let of = task(["a", "b", "c"].map(|name| process(name).runs([sleeps()])));
    let mut sim = Sim::new(of.max_concurrency(2));
    sim.run_for(100);
    assert_eq!(whys(&sim), [Why::Running, Why::Running, Why::Concurrency]);
}

/// T22, T23, T26.
#[test]
fn what_never_runs_says_who_failed() {
    let of = task([
        process("bad").runs([exits(1)]),
        process("next"),
        process("after"),
        process("lost").runs([dies(libc::SIGKILL)]),
        process("good"),
        process("other").runs([sleeps()]),
    ]);
    let mut sim = Sim::new(of.max_failures(0).loss_limit(1).edge(0, 1).edge(1, 2));
    sim.run_for(100);
    let expected =
        [Why::Failed, Why::Blocked(0), Why::Blocked(0), Why::Lost, Why::Finished, Why::Running];
    assert_eq!(whys(&sim), expected);
}

#[test]
fn a_paused_task_says_so_for_what_would_start() {
    let mut sim = Sim::new(
        task([
            process("runs").runs([sleeps()]),
            process("again").runs([exits(1)]).max_failures(0).min_duration(10_000),
            process("after"),
        ])
        .edge(0, 2),
    );
    sim.run_for(100);
    sim.pause();
    assert_eq!(whys(&sim), [Why::Running, Why::Paused, Why::WaitsFor(vec![0])]);
}

/// T43 to T45.
#[test]
fn a_task_that_ends_says_how_far_its_runs_are() {
    let mut sim = Sim::new(
        task([
            process("stays").runs([sleeps().on_term(OnTerm::Ignores).dies_in(50)]),
            process("never").runs([sleeps()]),
            process("report").finalizer().runs([sleeps().dies_in(50)]),
        ])
        .max_concurrency(1)
        .finalization_wait(1_000),
    );
    sim.run_for(100);
    sim.kill(500, false);
    let until = sim.state.deadline();
    assert!(until.is_some());
    assert_eq!(whys(&sim), [Why::Terminating { until }, Why::Over, Why::Finalizer]);

    sim.run_for(510);
    let dying = Why::Dying { stage: KillStage::Deadline };
    assert_eq!(whys(&sim), [dying, Why::Over, Why::Finalizer]);

    sim.run_to_end();
    assert_eq!(sim.phase(), Phase::Killed);
    assert_eq!(whys(&sim)[1..], [Why::Over, Why::Over]);
}

/// T45.
#[test]
fn a_finalizer_that_is_due_waits_for_one_that_is_being_killed() {
    let mut sim = Sim::new(task([
        process("slow").finalizer().runs([sleeps().dies_in(100)]),
        process("again").finalizer().runs([exits(1), exits(0)]).max_failures(2).min_duration(20),
    ]));
    sim.run_for(15);
    sim.kill(10_000, false);
    sim.run_for(50);
    let dying = Why::Dying { stage: KillStage::Request };
    assert_eq!(whys(&sim), [dying, Why::Teardown]);
}
