//! Random tasks under random accidents. The simulator checks the invariants at each record, and each answer of
//! the planner.

use proptest::prelude::*;

use super::reference;
use super::script::{Attempt, End, MS, OnTerm, Scripted, Task, process, task};
use super::sim::{Sim, natural_end};
use crate::proto::Usage;
use crate::state::{
    Event, KillStage, Leader, Outcome, Phase, ProcessId, RunEnd, RunState, RunStep, Stamp,
    TaskState,
};

/// Something that happens to a task from outside.
#[derive(Debug, Clone)]
enum Accident {
    Kill {
        wait_ms: u64,
        lost: bool,
    },
    Pause,
    Resume,
    Signal {
        process: prop::sample::Index,
        signal: i32,
    },
    CoordinatorDies(prop::sample::Index),
    /// The runner dies after so many more records and acts.
    RunnerDies(u32),
    RunnerStarts,
    RunnerRestarts,
    /// A power cut that takes so many records, if they are not synced, and another clock.
    Reboot {
        lost: usize,
        clock: u64,
    },
    WallClockSteps(i64),
}

fn ends() -> impl Strategy<Value = End> {
    prop_oneof![
        5 => Just(End::Exit(0)),
        3 => (1..=255u8).prop_map(End::Exit),
        2 => (1..=31u8).prop_map(End::Signal),
        1 => Just(End::Oom),
        1 => Just(End::NotForked),
        1 => Just(End::NotStarted),
        1 => Just(End::CoordinatorDies),
    ]
}

fn attempts() -> impl Strategy<Value = Attempt> {
    let lasts = prop_oneof![15 => (1..60u64).prop_map(|ms| Some(ms * MS)), 1 => Just(None)];
    let on_term = prop_oneof![
        3 => Just(OnTerm::Dies),
        2 => (0..3u8).prop_map(OnTerm::Exits),
        1 => Just(OnTerm::Ignores),
    ];
    (ends(), lasts, prop::array::uniform2(0..5 * MS), on_term, 0..30 * MS).prop_map(
        |(end, lasts, starts_in, on_term, dies_in)| Attempt {
            end,
            lasts,
            starts_in,
            on_term,
            dies_in,
        },
    )
}

fn processes() -> impl Strategy<Value = Scripted> {
    let flags = [0.15, 0.25, 0.3].map(prop::bool::weighted);
    (flags, 0..4u32, 0..40u64, prop::collection::vec(attempts(), 1..5)).prop_map(
        |([daemon, ephemeral, is_final], max_failures, min_duration, attempts)| {
            let mut of = process("p").max_failures(max_failures).min_duration(min_duration);
            of.spec.daemon = daemon;
            of.spec.ephemeral = ephemeral;
            of.spec.is_final = is_final;
            of.attempts = attempts;
            comes_to_an_end(of)
        },
    )
}

/// No process goes on for ever that its task waits for, and none without time passing.
fn comes_to_an_end(mut of: Scripted) -> Scripted {
    let last = of.attempts.last_mut().expect("there is one");
    if of.spec.daemon {
        of.spec.max_failures = of.spec.max_failures.max(1);
        last.end = End::Exit(1);
    } else if of.spec.max_failures == 0 {
        last.end = End::Exit(0);
    }
    let endless = of.spec.daemon || of.spec.max_failures == 0;
    if endless && of.spec.min_duration.is_zero() { of.min_duration(1) } else { of }
}

/// A task that the schema allows: T9 to T12.
fn tasks() -> impl Strategy<Value = Task> {
    let members = prop::collection::vec((processes(), any::<u8>()), 0..9);
    let edges = prop::collection::vec(prop::bool::weighted(0.3), 36);
    (members, edges, 0..4u32, 0..4u32, 0..150u64, 1..5u32).prop_map(
        |(members, edges, max_failures, max_concurrency, wait, loss_limit)| {
            let ranks: Vec<_> = members.iter().map(|&(_, rank)| rank).collect();
            let named = members.into_iter().enumerate().map(|(n, (mut of, _))| {
                of.spec.name = crate::task::ProcessName::new(format!("p{n}")).unwrap();
                of
            });
            let mut task = task(named)
                .max_failures(max_failures)
                .max_concurrency(max_concurrency)
                .finalization_wait(wait)
                .loss_limit(loss_limit);
            let pairs = (0..ranks.len()).flat_map(|b| (0..b).map(move |a| (a, b)));
            for ((a, b), _) in pairs.zip(edges).filter(|&(_, wanted)| wanted) {
                let (from, to) = if ranks[a] <= ranks[b] { (a, b) } else { (b, a) };
                let (one, other) = (&task.spec.processes[from], &task.spec.processes[to]);
                let same_plan = one.is_final == other.is_final;
                if same_plan && !one.daemon && (!one.ephemeral || other.ephemeral) {
                    task = task.edge(from as u32, to as u32);
                }
            }
            task
        },
    )
}

fn accidents() -> impl Strategy<Value = Accident> {
    use prop::sample::Index;
    prop_oneof![
        2 => (0..100u64, prop::bool::weighted(0.2))
            .prop_map(|(wait_ms, lost)| Accident::Kill { wait_ms, lost }),
        3 => Just(Accident::Pause),
        3 => Just(Accident::Resume),
        2 => (any::<Index>(), 1..32i32)
            .prop_map(|(process, signal)| Accident::Signal { process, signal }),
        2 => any::<Index>().prop_map(Accident::CoordinatorDies),
        5 => (0..8u32).prop_map(Accident::RunnerDies),
        5 => Just(Accident::RunnerStarts),
        1 => Just(Accident::RunnerRestarts),
        1 => (0..10usize, 0..2000 * MS).prop_map(|(lost, clock)| Accident::Reboot { lost, clock }),
        1 => (-(1i64 << 60)..1 << 60).prop_map(Accident::WallClockSteps),
    ]
}

/// Events that may or may not be able to happen.
fn events() -> impl Strategy<Value = Event> {
    let phases = prop::sample::select(vec![
        Phase::Active,
        Phase::Cleaning,
        Phase::Finalizing,
        Phase::Success,
        Phase::Failed,
        Phase::Killed,
        Phase::Lost,
    ]);
    let outcomes = prop_oneof![
        any::<u8>().prop_map(Outcome::Exited),
        (1..32u8).prop_map(Outcome::Signalled),
        Just(Outcome::NotStarted),
        Just(Outcome::Dropped),
        Just(Outcome::Lost),
    ];
    let pid = ProcessId { pid: 5, start_ticks: 5 };
    let steps = prop_oneof![
        4 => Just(RunStep::Opened),
        1 => Just(RunStep::Forked { coordinator: pid }),
        1 => Just(RunStep::Running { pid }),
        1 => Just(RunStep::Unkillable(Box::default())),
        3 => outcomes.prop_map(|outcome| {
            RunStep::Ended(Box::new(RunEnd { outcome, ..natural_end(End::Exit(0)) }))
        }),
    ];
    let leader =
        Leader { runner: pid, boot_id: "boot-1".into(), cgroup: None, dropped_bytes: u64::MAX };
    let id = (0..10u32, 0..4u32);
    prop_oneof![
        1 => Just(Event::Led(leader)),
        3 => phases.prop_map(Event::Entered),
        9 => (id.clone(), steps)
            .prop_map(|((process, run), step)| Event::Run { process, run, step }),
        1 => (any::<u64>(), any::<bool>())
            .prop_map(|(deadline, lost)| Event::KillRequested { deadline, lost, by_uid: 0, by_pid: 0, reason: None }),
        1 => prop::option::of(0..10u32).prop_map(|process| Event::Limited {
            process,
            resources: Box::default(),
            rounded: Vec::new(),
            by_uid: 0,
            by_pid: 0,
            put_back: false,
        }),
        1 => Just(Event::Paused { by_uid: 0, by_pid: 0 }),
        1 => Just(Event::Resumed { by_uid: 0, by_pid: 0 }),
        1 => id.clone().prop_map(|(process, run)| Event::Terminated { process, run }),
        1 => id.prop_map(|(process, run)| Event::Doomed { process, run, stage: KillStage::Request }),
        1 => any::<u64>()
            .prop_map(|bytes| Event::Used(Box::new(Usage { memory_peak_bytes: Some(bytes), ..Usage::default() }))),
    ]
}

/// Whether `event` may follow, by sections 3 and 4.
fn may_follow(sim: &Sim, event: &Event) -> bool {
    let state = &sim.state;
    if sim.is_over() {
        return matches!(event, Event::Led(_));
    }
    let live = |process: u32, run: u32| {
        let of = state.processes().get(process as usize)?.live_run()?;
        (of.0 == run).then_some(of.1.state)
    };
    match *event {
        Event::Led(_) | Event::KillRequested { .. } | Event::Used(_) => true,
        Event::Limited { process, .. } => {
            process.is_none_or(|process| (process as usize) < state.processes().len())
        }
        Event::Paused { .. } => state.pause().is_none(),
        Event::Resumed { .. } => state.pause().is_some(),
        Event::Entered(to) => match state.phase() {
            None => to == Phase::Active,
            Some(_) if state.pause().is_some() => false,
            Some(Phase::Active) => to == Phase::Cleaning,
            Some(from) => {
                let on = from == Phase::Cleaning && to == Phase::Finalizing;
                (on || to.is_terminal()) && state.live_runs().next().is_none()
            }
        },
        Event::Terminated { process, run } | Event::Doomed { process, run, .. } => {
            live(process, run).is_some()
        }
        Event::Run { process, run, step: RunStep::Opened } => {
            reference::may_open(sim, process, run)
        }
        Event::Run { process, run, ref step } => {
            let Some(from) = live(process, run) else { return false };
            match step {
                RunStep::Forked { .. } => from == RunState::Waiting,
                RunStep::Running { .. } => from == RunState::Forked,
                RunStep::Unkillable(_) => matches!(from, RunState::Forked | RunState::Running),
                RunStep::Ended(end) => match end.outcome {
                    Outcome::Exited(_) => from == RunState::Running,
                    Outcome::Signalled(_) => from != RunState::Waiting,
                    Outcome::NotStarted | Outcome::Dropped => from != RunState::Running,
                    Outcome::Lost => true,
                },
                RunStep::Opened => false,
            }
        }
    }
}

/// A record that may not follow is refused, and changes nothing.
fn check_event(sim: &Sim, event: &Event) {
    let mut state: TaskState = sim.state.clone();
    let result = state.apply(event, Stamp { boot: sim.now, wall: 0 });
    assert_eq!(result.is_ok(), may_follow(sim, event), "{event:?}: {result:?}");
    assert!(result.is_ok() || state == sim.state, "{event:?} was refused and changed the task");
}

fn happen(sim: &mut Sim, accident: Accident) {
    let count = sim.task.spec.processes.len();
    match accident {
        Accident::Kill { wait_ms, lost } => sim.kill(wait_ms, lost),
        Accident::Pause => sim.pause(),
        Accident::Resume => sim.resume(),
        Accident::Signal { process, signal } if count > 0 => {
            sim.signal(process.index(count) as u32, signal);
        }
        Accident::CoordinatorDies(process) if count > 0 => {
            sim.kill_coordinator(process.index(count) as u32);
        }
        Accident::Signal { .. } | Accident::CoordinatorDies(_) => {}
        Accident::RunnerDies(after) => sim.crash_in = Some(after),
        Accident::RunnerStarts if !sim.runner_is_up => sim.start_runner(),
        Accident::RunnerStarts => {}
        Accident::RunnerRestarts => sim.restart_runner(),
        Accident::Reboot { lost, clock } => sim.reboot(lost, clock),
        Accident::WallClockSteps(by) => sim.wall_offset = sim.wall_offset.wrapping_add(by),
    }
}

fn config() -> ProptestConfig {
    ProptestConfig { failure_persistence: None, ..ProptestConfig::default() }
}

proptest! {
    #![proptest_config(config())]

    /// Invariants 1 to 3, T17 to T30, T41 to T51: whatever happens, the task comes to its end, and to the right one.
    #[test]
    fn every_task_comes_to_its_end_whatever_happens(
        task in tasks(),
        accidents in prop::collection::vec((0..40u64, accidents()), 0..16),
        events in prop::collection::vec(events(), 1..40),
    ) {
        let endless = task.attempts.iter().flatten().any(|attempt| attempt.lasts.is_none());
        let mut sim = Sim::new(task);
        let mut events = events.iter().cycle();

        for (ms, accident) in accidents {
            let until = sim.now + ms * MS;
            while sim.advance(until) {
                events.by_ref().take(5).for_each(|event| check_event(&sim, event));
            }
            sim.now = until;
            happen(&mut sim, accident);
        }
        if !sim.runner_is_up {
            sim.start_runner();
        }
        sim.crash_in = None;
        sim.turn();
        sim.resume();
        if endless {
            sim.kill(50, false);
        }
        sim.run_to_end();

        prop_assert_eq!(&sim.replayed(), &sim.state);
        let asked = match sim.state.kill() {
            Some(kill) => if kill.lost { Phase::Lost } else { Phase::Killed },
            None => if sim.state.is_healthy() { Phase::Success } else { Phase::Failed },
        };
        prop_assert_eq!(sim.phase(), asked);
    }

    /// Left alone, the same task goes the same way.
    #[test]
    fn a_task_that_is_not_disturbed_is_deterministic(task in tasks()) {
        let run = |task: Task| {
            let mut sim = Sim::new(task);
            sim.run_for(1000);
            sim.kill(50, false);
            sim.run_to_end();
            sim.log
        };

        prop_assert_eq!(run(task.clone()), run(task));
    }
}
