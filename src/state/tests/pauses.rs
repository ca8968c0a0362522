//! Pauses: nothing of the task moves, and no time passes for it.

use super::script::{MS, OnTerm, exits, process, sleeps, task};
use super::sim::Sim;
use crate::state::{ApplyError, Event, Phase, Settled, Stamp, plan, wake};

#[test]
fn a_paused_task_does_nothing_and_waits_for_no_time() {
    let mut sim = Sim::new(task([process("a").runs([exits(1)]).max_failures(0).min_duration(10)]));
    sim.run_for(105);
    let opened = sim.opened().len();

    sim.pause();
    sim.run_for(10_000);

    assert_eq!(sim.opened().len(), opened);
    assert_eq!((plan(&sim.state, u64::MAX), wake(&sim.state)), (vec![], None));
}

#[test]
fn min_duration_stands_still_while_the_task_is_paused() {
    let mut sim =
        Sim::new(task([process("a").max_failures(2).runs([exits(1), exits(0)]).min_duration(300)]));
    sim.run_for(100);
    let ended = sim.ended_at("a", 0);

    sim.pause();
    sim.run_for(1000);
    sim.resume();
    sim.run_to_end();

    assert_eq!(sim.opened_at("a", 1), ended + 300 + 1000);
}

#[test]
fn min_duration_of_a_run_that_ended_in_a_pause_begins_after_it() {
    let mut sim = Sim::new(task([process("a").runs([sleeps(), exits(0)]).min_duration(300)]));
    sim.run_for(100);

    sim.pause();
    sim.run_for(1000);
    sim.signal(0, libc::SIGKILL);
    sim.run_for(1000);
    assert_eq!(sim.runs("a"), "K", "what is frozen can be killed");
    sim.resume();
    sim.run_to_end();

    assert_eq!((sim.opened_at("a", 1), sim.phase()), (100 + 2000 + 300, Phase::Success));
}

#[test]
fn a_run_goes_on_after_a_pause_where_it_was() {
    let mut sim = Sim::new(task([process("a").runs([exits(0).after(500)])]));
    sim.run_for(100);
    let running = sim.process_runs("a")[0].started.unwrap().boot / MS;

    sim.pause();
    sim.run_for(1000);
    assert_eq!(sim.runs("a"), "r");
    sim.resume();
    sim.run_to_end();

    assert_eq!(sim.ended_at("a", 0), running - 1000 + 500 + 1000);
}

/// Not even to its end: it is over once it goes on.
#[test]
fn a_task_that_has_nothing_left_to_do_stays_paused() {
    let mut sim = Sim::new(task([process("a").runs([sleeps()])]).loss_limit(1));
    sim.run_for(100);
    sim.pause();
    sim.signal(0, libc::SIGKILL);
    sim.run_for(1000);
    assert_eq!((sim.settled("a"), sim.phase()), (Some(Settled::Failed), Phase::Active));
    sim.resume();
    assert_eq!(sim.phase(), Phase::Failed);
}

#[test]
fn the_deadline_of_a_kill_stands_still() {
    let stubborn = process("main").runs([sleeps().on_term(OnTerm::Ignores)]);
    let mut sim = Sim::new(task([stubborn]));
    sim.run_for(100);

    sim.kill(500, false);
    sim.run_for(200);
    sim.pause();
    sim.run_for(10_000);
    assert_eq!((sim.phase(), sim.runs("main")), (Phase::Cleaning, "r".to_owned()));
    sim.resume();
    sim.run_to_end();

    assert_eq!((sim.phase(), sim.over_at()), (Phase::Killed, 100 + 500 + 10_000));
}

#[test]
fn the_budget_of_finalizers_stands_still() {
    let endless = process("f").finalizer().runs([sleeps()]);
    let mut sim = Sim::new(task([process("main"), endless]).finalization_wait(1000));
    sim.run_for(500);
    assert_eq!(sim.phase(), Phase::Finalizing);
    let deadline = sim.state.deadline().unwrap();

    sim.pause();
    sim.run_for(3000);
    sim.resume();

    assert_eq!(sim.state.deadline(), Some(deadline + 3000 * MS));
}

#[test]
fn a_kill_ends_the_pause_so_that_sigterm_is_heard() {
    let mut sim = Sim::new(task([process("a").runs([sleeps().on_term(OnTerm::Exits(7))])]));
    sim.run_for(100);
    sim.pause();
    sim.run_for(1000);

    sim.kill(500, false);
    sim.run_to_end();

    assert_eq!((sim.phase(), sim.runs("a").as_str(), sim.over_at()), (Phase::Killed, "F", 1100));
    assert_eq!(sim.state.pause(), None);
}

#[test]
fn a_second_kill_ends_the_pause_of_a_task_that_is_being_killed() {
    let stubborn = process("main").runs([sleeps().on_term(OnTerm::Ignores)]);
    let mut sim = Sim::new(task([stubborn]));
    sim.run_for(100);
    sim.kill(500, false);
    sim.pause();
    sim.run_for(1000);

    sim.kill(200, false);
    sim.run_to_end();

    assert_eq!((sim.over_at(), sim.terminations("main")), (100 + 1000 + 200, 2));
}

#[test]
fn a_runner_that_takes_over_finds_the_task_paused() {
    for crash_in in [0, 1] {
        let mut sim = Sim::new(task([process("a").runs([exits(0).after(500)])]));
        sim.run_for(100);
        sim.crash_in = Some(crash_in);

        sim.pause();
        sim.kill_runner();
        sim.run_for(100);
        sim.start_runner();
        sim.run_for(1000);
        assert_eq!(sim.runs("a"), "r", "crash after {crash_in} steps");
        sim.resume();
        sim.run_to_end();

        assert_eq!((sim.phase(), sim.state.pause()), (Phase::Success, None));
    }
}

/// The run was opened, and the runner died before it forked the coordinator.
#[test]
fn a_run_that_was_only_opened_is_begun_after_the_pause() {
    let mut sim = Sim::new(task([process("a"), process("b")]).order(["a", "b"]));
    sim.run_for(1);
    // Two records of its predecessor's end, then its own.
    sim.crash_in = Some(1);
    sim.run_for(100);
    assert_eq!((sim.runs("b").as_str(), sim.runner_is_up), ("W", false));

    // Its stream is read by hand, so that the pause comes before anything is forked.
    sim.runner_is_up = true;
    sim.crash_in = Some(0);
    sim.pause();
    sim.kill_runner();
    sim.start_runner();
    sim.run_for(1000);
    assert_eq!(sim.runs("b"), "W");
    sim.resume();
    sim.run_to_end();

    assert_eq!((sim.runs("b").as_str(), sim.phase()), ("S", Phase::Success));
}

#[test]
fn a_pause_outlasts_a_boot_and_what_lived_is_lost() {
    let mut sim = Sim::new(task([process("a").runs([sleeps(), exits(0)]).min_duration(300)]));
    sim.run_for(100);
    sim.pause();

    sim.reboot(0, 77 * MS);
    sim.run_for(1000);
    assert_eq!((sim.runs("a").as_str(), sim.phase()), ("L", Phase::Active));
    assert_eq!(sim.state.pause().unwrap().since.boot, 0);
    sim.resume();
    sim.run_to_end();

    assert_eq!((sim.runs("a").as_str(), sim.phase()), ("LS", Phase::Success));
}

/// As without a pause: a boot ends every deadline.
#[test]
fn after_a_boot_no_time_is_left_to_a_paused_task_that_was_being_killed() {
    let stubborn = process("main").runs([sleeps().on_term(OnTerm::Ignores)]);
    let mut sim = Sim::new(task([stubborn, process("f").finalizer()]));
    sim.run_for(100);
    sim.kill(3_600_000, false);
    sim.pause();

    sim.reboot(0, 5 * MS);
    sim.run_for(100);
    assert_eq!(sim.phase(), Phase::Cleaning);
    sim.resume();

    assert_eq!((sim.phase(), sim.runs("f").as_str()), (Phase::Killed, ""));
}

#[test]
fn a_task_is_paused_once_and_resumed_once() {
    let mut sim = Sim::new(task([process("a").runs([sleeps()])]));
    sim.run_for(100);
    let at = Stamp { boot: sim.now, wall: 0 };
    let [paused, resumed] =
        [Event::Paused { by_uid: 0, by_pid: 0 }, Event::Resumed { by_uid: 0, by_pid: 0 }];

    let resumes = sim.state.apply(&resumed, at).unwrap_err();
    sim.pause();
    let pauses = sim.state.apply(&paused, at).unwrap_err();
    let moves = sim.state.apply(&Event::Entered(Phase::Cleaning), at).unwrap_err();

    assert_eq!(resumes.to_string(), "resumes a task that is not paused");
    assert_eq!(pauses.to_string(), "pauses a task that is paused");
    assert_eq!(moves, ApplyError::PhaseWhilePaused(Phase::Cleaning));
    assert_eq!(moves.to_string(), "enters Cleaning while the task is paused");
}
