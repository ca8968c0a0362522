//! Events as records, and records that are no events.

use proptest::prelude::*;
use prost::Message;

use super::script::{End, process, task};
use super::sim::natural_end;
use crate::proto::record::Kind;
use crate::proto::{
    self, ProcessState, Record, RunEnded, RunTransition, Unkillable, Usage, run_transition,
};
use crate::state::{
    Event, KillStage, Leader, Outcome, Phase, ProcessId, RecordError, RunEnd, RunStep, Stamp,
    TaskState,
};

use crate::task::Resources;

fn read(kind: Kind) -> Result<Event, RecordError> {
    Event::from_record(Record { kind: Some(kind), ..Record::default() })
}

fn ended(ended: RunEnded) -> Result<Event, RecordError> {
    let state = Some(run_transition::State::Ended(ended));
    read(Kind::Run(RunTransition { process: 0, run: 0, state }))
}

fn pid() -> ProcessId {
    ProcessId { pid: 4711, start_ticks: 99 }
}

/// T31: the runner's stream alone gives the whole state.
#[test]
fn every_event_comes_back_from_its_record() {
    let step = |step| Event::Run { process: 3, run: 2, step };
    let mut events = vec![
        Event::Led(Leader {
            runner: pid(),
            boot_id: "boot".into(),
            cgroup: Some("/cg".into()),
            dropped_bytes: 5,
        }),
        Event::KillRequested {
            deadline: 9,
            lost: true,
            by_uid: 8,
            by_pid: 7,
            reason: Some("full".to_owned()),
        },
        Event::Paused { by_uid: 8, by_pid: 7 },
        Event::Resumed { by_uid: 8, by_pid: 7 },
        Event::Limited {
            process: Some(3),
            resources: Box::new(Resources { ram: Some(1 << 30), ..Resources::default() }),
            rounded: vec!["resources.ram: 0 is in force, 1 was asked for".into()],
            by_uid: 8,
            by_pid: 7,
            put_back: true,
        },
        Event::Terminated { process: 3, run: 2 },
        Event::Doomed { process: 3, run: 2, stage: KillStage::Teardown },
        Event::Used(Box::new(Usage { oom_kills: Some(2), ..Usage::default() })),
        step(RunStep::Opened),
        step(RunStep::Forked { coordinator: pid() }),
        step(RunStep::Running { pid: pid() }),
        step(RunStep::Unkillable(Box::new(Unkillable { count: 2, ..Unkillable::default() }))),
    ];
    let phases = [
        Phase::Active,
        Phase::Cleaning,
        Phase::Finalizing,
        Phase::Success,
        Phase::Failed,
        Phase::Killed,
        Phase::Lost,
    ];
    events.extend(phases.map(Event::Entered));
    let ends = [
        End::Exit(0),
        End::Exit(255),
        End::Signal(9),
        End::Oom,
        End::NotStarted,
        End::CoordinatorDies,
    ];
    events.extend(ends.map(|end| step(RunStep::Ended(Box::new(natural_end(end))))));
    let dropped = RunEnd { outcome: Outcome::Dropped, ..natural_end(End::NotForked) };
    events.push(step(RunStep::Ended(Box::new(dropped))));

    for event in events {
        assert_eq!(read(event.to_kind()).as_ref(), Ok(&event));
    }
}

/// The state in the record is for readers that do not know the rules of T21.
#[test]
fn the_record_of_an_end_says_its_state() {
    for (end, state, code, signal) in [
        (End::Exit(0), ProcessState::Success, Some(0), None),
        (End::Exit(7), ProcessState::Failed, Some(7), None),
        (End::Signal(15), ProcessState::Killed, None, Some(15)),
        (End::Signal(11), ProcessState::Failed, None, Some(11)),
        (End::Oom, ProcessState::Failed, None, Some(9)),
        (End::NotStarted, ProcessState::Failed, None, None),
        (End::CoordinatorDies, ProcessState::Lost, None, None),
    ] {
        let record = natural_end(end).to_proto();

        assert_eq!((record.state(), record.exit_code, record.signal), (state, code, signal));
    }
}

#[test]
fn the_time_of_a_record_is_its_stamp() {
    let record = Record { boot_nanos: 1, unix_nanos: -2, ..Record::default() };

    assert_eq!(Stamp::of(&record), Stamp { boot: 1, wall: -2 });
}

#[test]
fn a_record_that_is_no_event_says_what_is_wrong() {
    let run = |state| read(Kind::Run(RunTransition { process: 0, run: 0, state }));
    let forked = proto::RunForked { coordinator: None, boot_id: String::new() };
    let cases = [
        (Event::from_record(Record::default()), RecordError::UnknownKind),
        (read(Kind::Launch(Default::default())), RecordError::Header),
        (read(Kind::Coordinator(Default::default())), RecordError::Header),
        (read(Kind::Leader(Default::default())), RecordError::Field("runner")),
        (read(Kind::Task(proto::TaskTransition { state: 8 })), RecordError::Field("state")),
        (read(Kind::Task(proto::TaskTransition { state: 99 })), RecordError::Field("state")),
        (run(None), RecordError::UnknownKind),
        (run(Some(run_transition::State::Forked(forked))), RecordError::Field("coordinator")),
        (
            run(Some(run_transition::State::Running(proto::RunRunning { pid: None }))),
            RecordError::Field("pid"),
        ),
        (
            ended(RunEnded { exit_code: Some(256), ..Default::default() }),
            RecordError::Field("exit_code"),
        ),
        (
            ended(RunEnded { signal: Some(1000), ..Default::default() }),
            RecordError::Field("signal"),
        ),
        (
            ended(RunEnded { state: ProcessState::Success.into(), ..Default::default() }),
            RecordError::Field("state"),
        ),
        (ended(RunEnded::default()), RecordError::Field("state")),
    ];

    for (result, error) in cases {
        assert_eq!(result, Err(error));
    }
}

proptest! {
    /// Whatever bytes are a record: it is an event or an error, and the task takes it or is left as it was.
    #[test]
    fn no_record_does_harm(records in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..40), 0..20)) {
        let two = task([process("a"), process("b").finalizer()]);
        let mut state = TaskState::new(two.spec, two.loss_limit);
        for bytes in records {
            let Ok(record) = Record::decode(bytes.as_slice()) else { continue };
            let at = Stamp::of(&record);
            let Ok(event) = Event::from_record(record) else { continue };
            let before = state.clone();
            if state.apply(&event, at).is_err() {
                prop_assert_eq!(&state, &before);
            }
        }
    }
}
