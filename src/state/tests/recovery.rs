//! Replay, takeover and reboot.

use super::script::{MS, OnTerm, exits, process, sleeps, task};
use super::sim::{Sim, killed};
use crate::proto::VerdictReason;
use crate::state::{Event, KillStage, Leader, Phase, ProcessId, plan};

/// T68: a live run is followed, not repeated.
#[test]
fn a_new_runner_adopts_what_still_runs() {
    let mut sim = Sim::new(task([process("main").runs([exits(0).after(100)])]));
    sim.run_for(50);

    sim.restart_runner();
    sim.run_to_end();

    assert_eq!((sim.runs("main").as_str(), sim.ended_at("main", 0)), ("S", 100));
}

/// T68: of a run that nobody recorded as forked, nothing was started.
#[test]
fn a_run_that_was_opened_and_never_forked_is_begun_under_its_number() {
    let mut sim = Sim::new(task([process("main")]));
    // ACTIVE, then the record of the run; its coordinator is not forked.
    sim.crash_in = Some(1);
    sim.turn();
    assert_eq!((sim.runner_is_up, sim.runs("main").as_str()), (false, "W"));

    sim.start_runner();
    sim.run_to_end();

    assert_eq!(sim.runs("main"), "S");
}

/// T68: dead without an end, for the runner and for its successor.
#[test]
fn runner_and_coordinator_may_die_together() {
    let mut sim = Sim::new(task([process("main")]));
    sim.run_for(5);

    sim.kill_runner();
    sim.kill_coordinator(0);
    sim.start_runner();
    sim.run_to_end();

    assert_eq!(sim.runs("main"), "LS");
}

/// T69, dewar's rule: a takeover neither sends SIGTERM again nor moves the deadline.
#[test]
fn a_takeover_while_cleaning_repeats_nothing() {
    let b = process("b").runs([sleeps().on_term(OnTerm::Ignores)]);
    let mut sim = Sim::new(task([process("a").runs([exits(1)]), b]).finalization_wait(1000));

    sim.run_for(500);
    sim.restart_runner();
    sim.run_to_end();

    assert_eq!((sim.terminations("b"), sim.over_at()), (1, 1010));
    assert_eq!(sim.phases(), [Phase::Active, Phase::Cleaning, Phase::Failed]);
}

/// T69, D8, dewar's rule: finalizers go on, and what ended meanwhile is read.
#[test]
fn a_takeover_while_finalizing_repeats_no_finalizer() {
    let mut sim = Sim::new(task([
        process("main"),
        process("short").finalizer().runs([exits(3).after(100)]),
        process("long").finalizer().runs([exits(0).after(900)]),
    ]));
    sim.run_for(50);

    sim.kill_runner();
    sim.run_for(200);
    sim.start_runner();
    sim.run_to_end();

    assert_eq!([sim.runs("short"), sim.runs("long")], ["F", "S"]);
    assert_eq!(sim.ended_at("short", 0), 110);
}

/// D7: replay is a fold, and asks for nothing that was asked for before.
#[test]
fn a_replayed_task_asks_for_what_the_first_runner_would_have() {
    let mut sim = Sim::new(task([
        process("a").max_failures(3).min_duration(50).runs([exits(1)]),
        process("b").runs([sleeps()]),
        process("f").finalizer(),
    ]));
    let mut seen = Vec::new();
    while sim.advance(u64::MAX) {
        assert_eq!(sim.replayed(), sim.state);
        seen.push(plan(&sim.replayed(), sim.now));
    }

    assert!(seen.iter().any(|effects| effects.is_empty()));
    assert_eq!(sim.replayed(), sim.state);
}

/// A kill is recorded before it is done: a runner that died between the two left it to the next.
#[test]
fn a_kill_that_was_recorded_and_not_done_is_done_by_the_next_runner() {
    let b = process("b").runs([sleeps().on_term(OnTerm::Ignores)]);
    let mut sim = Sim::new(task([process("a").runs([exits(1)]), b]).finalization_wait(1000));
    sim.run_for(500);
    sim.crash_in = Some(0);
    sim.run_for(1000);
    let run = &sim.process_runs("b")[0];
    assert_eq!((sim.runner_is_up, run.doomed), (false, Some(KillStage::Deadline)));

    sim.start_runner();
    sim.run_to_end();

    assert_eq!(sim.runs("b"), "K");
    assert_eq!(*sim.verdict("b", 0), killed(KillStage::Deadline));
    assert_eq!(sim.phase(), Phase::Failed);
}

/// The same, where the reason was a request: it stays the reason, be there time left or not.
#[test]
fn a_teardown_that_was_recorded_and_not_done_keeps_its_reason() {
    for ms_later in [0, 60_000] {
        let f = process("f").finalizer().runs([sleeps(), exits(0)]);
        let mut sim = Sim::new(task([process("main"), f]));
        sim.run_for(100);
        sim.crash_in = Some(0);
        sim.kill(5000, false);
        assert!(!sim.runner_is_up);
        sim.run_for(ms_later);

        sim.start_runner();
        sim.run_to_end();

        assert_eq!(sim.runs("f"), if ms_later == 0 { "KS" } else { "K" });
        assert_eq!(*sim.verdict("f", 0), killed(KillStage::Request));
    }
}

/// A SIGTERM is recorded after it was sent: it may be sent twice, never not at all.
#[test]
fn a_sigterm_that_was_not_recorded_is_sent_again() {
    let mut sim = Sim::new(task([
        process("a").runs([exits(1)]),
        process("b").runs([sleeps().on_term(OnTerm::Ignores)]),
    ]));
    sim.run_for(5);
    // The end of `a`, CLEANING, and the signal.
    sim.crash_in = Some(2);
    sim.run_for(100);
    assert_eq!((sim.runner_is_up, sim.phase(), sim.terminations("b")), (false, Phase::Cleaning, 0));

    sim.start_runner();

    assert_eq!(sim.terminations("b"), 1);
}

/// A reboot ends every run; what may be retried is.
#[test]
fn a_reboot_loses_every_live_run() {
    let mut sim = Sim::new(task([
        process("a").min_duration(5000).runs([sleeps(), exits(0)]),
        process("b"),
        process("c").runs([exits(0).after(100)]),
    ]));
    sim.run_for(50);

    sim.reboot(0, 7);
    sim.run_to_end();

    assert_eq!([sim.runs("a"), sim.runs("b"), sim.runs("c")], ["LS", "S", "LS"]);
    assert_eq!(sim.verdict("a", 0).reason(), VerdictReason::Reboot);
    assert_eq!(sim.phase(), Phase::Success);
}

/// T24, section 7: times of an earlier boot mean nothing in this one, whose clock starts anew.
#[test]
fn a_reboot_ends_the_wait_for_a_retry() {
    let mut sim = Sim::new(task([process("a")
        .max_failures(2)
        .min_duration(3_600_000)
        .runs([exits(1), exits(0)])]));
    sim.run_for(50);

    sim.reboot(0, 7);
    sim.run_for(0);

    assert_eq!(sim.runs("a"), "Fr");
    sim.run_to_end();
    assert_eq!((sim.runs("a").as_str(), sim.phase()), ("FS", Phase::Success));
}

/// T24: nor does the end of a run that only its coordinator recorded, before the reboot, make anything wait.
#[test]
fn an_end_of_an_earlier_boot_makes_nothing_wait() {
    let a = process("a").max_failures(2).min_duration(3_600_000).runs([exits(1), exits(0)]);
    let mut sim = Sim::new(task([a]));
    sim.run_for(5);
    sim.kill_runner();
    sim.run_for(50);

    sim.reboot(0, 7);
    sim.run_for(0);

    assert_eq!(sim.runs("a"), "Fr");
    assert_eq!(sim.process_runs("a")[0].ended.unwrap().boot, 0);
}

/// What was left of a deadline is over.
#[test]
fn a_reboot_ends_a_task_that_was_about_to_end() {
    let main = process("main").runs([sleeps().on_term(OnTerm::Ignores)]);
    let mut sim = Sim::new(task([main, process("f").finalizer()]));
    sim.run_for(50);
    sim.kill(3_600_000, false);

    sim.reboot(0, 7);
    sim.run_to_end();

    assert_eq!([sim.runs("main"), sim.runs("f")], ["L", ""]);
    assert_eq!((sim.phase(), sim.state.deadline()), (Phase::Killed, Some(0)));
}

/// A kill that was accepted just before a power cut is carried out after it.
#[test]
fn a_kill_survives_a_power_cut() {
    let mut sim = Sim::new(task([process("main").runs([sleeps()]), process("f").finalizer()]));
    sim.run_for(50);
    let deadline = sim.now + 60_000 * MS;
    let kill = Event::KillRequested { deadline, lost: false, by_uid: 0, by_pid: 1, reason: None };
    sim.append(kill, sim.stamp());

    sim.reboot(0, 7);
    sim.run_to_end();

    assert_eq!([sim.runs("main"), sim.runs("f")], ["L", ""], "what was left of its time is over");
    assert_eq!(sim.phase(), Phase::Killed);
}

/// Invariant 2: the record of the opening may be lost in a power cut while that of the end, in another file, is not.
#[test]
fn a_run_whose_opening_a_power_cut_took_is_not_run_again() {
    let mut sim = Sim::new(task([process("main")]));
    sim.run_for(5);
    sim.kill_runner();
    sim.run_for(100);

    sim.reboot(usize::MAX, 7);
    sim.run_to_end();

    assert_eq!((sim.runs("main").as_str(), sim.phase()), ("S", Phase::Success));
}

/// What runners cut off the stream adds up, also when the last record is the end of the task.
#[test]
fn dropped_bytes_are_counted_over_all_runners() {
    let mut sim = Sim::new(task([process("main")]));
    let leader = |dropped_bytes| {
        let runner = ProcessId { pid: 9, start_ticks: 9 };
        Event::Led(Leader { runner, boot_id: "boot-1".into(), cgroup: None, dropped_bytes })
    };
    sim.append(leader(3), sim.stamp());
    sim.run_to_end();
    sim.append(leader(4), sim.stamp());
    assert_eq!(sim.state.dropped_bytes(), 7);

    sim.append(leader(u64::MAX), sim.stamp());

    assert_eq!(sim.state.dropped_bytes(), u64::MAX);
    assert_eq!(sim.state.leader().unwrap().runner.pid, 9);
}
