//! The trace of a Launch: the call and its steps as they are done, and then, from the records of the task, its way to RUNNING.
//!
//! Runner and coordinators know nothing of it. Their records have all that is told, and both clocks: what happened after the first
//! is placed by the clock of the boot, so that a wall clock that is set meanwhile does not turn spans around.
//!
//! What is in a span is bounded: names of a closed set, at most [`MOST_RUNS`] runs, and of names that others choose the id of the task and those of its processes,
//! which have at most 243 bytes. Texts of errors, command lines, environments and labels are never in one.

use std::sync::Arc;
use std::time::Duration;

use opentelemetry::KeyValue;
use opentelemetry::trace::{SpanContext, SpanKind};
use tokio::sync::{Semaphore, SemaphorePermit};
use tonic::metadata::MetadataMap;
use tonic::{Code, Status};

use super::Node;
use super::control::block;
use super::peer::Peer;
use super::{status, watch};
use crate::observe::Observed;
use crate::proto::LaunchResponse;
use crate::state::{Event, Phase, RunStep, Stamp};
use crate::sys::clock;
use crate::task::TaskId;
use crate::trace::{Begun, FLUSH, Past, Traces, caller, code, of_call};

/// The call.
const METHOD: &str = "dewar.v1.RunnerService/Launch";
/// Tasks whose way is followed at one time.
const MOST_TASKS: usize = 256;
/// Runs of a task that are told of.
const MOST_RUNS: usize = 32;
/// How long a task is followed: one that is paused, or whose runner cannot be started, may take any time.
const LONGEST: Duration = Duration::from_secs(600);

static FOLLOWED: Semaphore = Semaphore::const_new(MOST_TASKS);

/// A Launch that is traced, or is not: then nothing of this does anything.
pub(super) struct Call(Option<Inner>);

struct Inner {
    traces: Traces,
    call: Begun,
    step: Option<Begun>,
}

impl Call {
    /// Begins the span of a call of somebody who may launch, beneath what the caller says.
    pub(super) fn begin(traces: Option<&Traces>, peer: &Peer, metadata: &MetadataMap) -> Self {
        Self(traces.map(|traces| {
            let (traces, parent) = (traces.of_user(peer.uid), caller(metadata));
            let call = traces.begin(METHOD, SpanKind::Server, &parent, of_call(METHOD));
            Inner { traces, call, step: None }
        }))
    }

    /// Begins the next step; the one before has ended.
    pub(super) fn step(&mut self, name: &'static str) {
        if let Some(inner) = &mut self.0 {
            inner.step = None;
            let parent = inner.call.context();
            inner.step = Some(inner.traces.begin(name, SpanKind::Internal, parent, Vec::new()));
        }
    }

    /// Notes whose Launch this is.
    pub(super) fn task(&mut self, id: &TaskId) {
        if let Some(inner) = &mut self.0 {
            inner.call.add(of_task(id));
        }
    }

    /// Ends the span of the call, and has the way of a new task followed.
    pub(super) fn answered(
        self,
        node: &Arc<Node>,
        peer: &Peer,
        answer: &Result<(TaskId, LaunchResponse), Status>,
    ) {
        let Some(Inner { traces, mut call, mut step }) = self.0 else { return };
        let said = answer.as_ref().map_or_else(Status::code, |_| Code::Ok);
        call.add(KeyValue::new("rpc.response.status_code", code(said)));
        match answer {
            Ok((id, answer)) => {
                call.add(KeyValue::new("dewar.task.is_new", answer.is_new));
                if answer.is_new && call.context().is_sampled() {
                    follow(node.clone(), peer.clone(), traces, id.clone(), call.context().clone());
                }
            }
            Err(_) => {
                if let Some(step) = &mut step {
                    step.fail(code(said));
                }
                // What a caller did wrong is no error of the server: semantic conventions for gRPC.
                if is_ours(said) {
                    call.fail(code(said));
                }
            }
        }
    }
}

fn is_ours(code: Code) -> bool {
    use Code as C;
    matches!(
        code,
        C::Unknown
            | C::DeadlineExceeded
            | C::Unimplemented
            | C::Internal
            | C::Unavailable
            | C::DataLoss
    )
}

fn of_task(id: &TaskId) -> KeyValue {
    KeyValue::new("dewar.task.id", id.to_string())
}

/// Waits until all that is followed has been told, and then until that is sent: now that the daemon stops nobody is waited for any more.
pub(super) async fn finish(traces: &Traces) {
    // Whoever is followed by a call that is still being done is not told of.
    let _ = tokio::time::timeout(FLUSH, FOLLOWED.acquire_many(MOST_TASKS as u32)).await;
    traces.flush().await;
}

/// Follows a task until its way is whole, and tells of it.
fn follow(node: Arc<Node>, peer: Peer, traces: Traces, id: TaskId, call: SpanContext) {
    let Ok(one) = FOLLOWED.try_acquire() else {
        traces.leave_out("too many tasks are on their way");
        return;
    };
    tokio::spawn(async move {
        let _one: SemaphorePermit<'static> = one;
        let mut way = Way::default();
        // Whatever happens, what was read is told.
        let _ = read(&node, &peer, &id, &mut way).await;
        let given_up = (!way.is_whole()).then(|| clock::now().wall);
        way.tell(&traces, &id, &call, given_up);
    });
}

/// Reads what is recorded, until the way is whole, or nobody waits for it any more.
///
/// # Errors
///
/// It cannot be read, or was removed.
async fn read(node: &Arc<Node>, peer: &Peer, id: &TaskId, way: &mut Way) -> Result<(), Status> {
    let mut news = node.registry.next();
    let mut stopping = node.stopping.clone();
    let limit = tokio::time::sleep(LONGEST);
    tokio::pin!(limit);
    let open = {
        let (node, id) = (node.clone(), id.clone());
        move || Observed::open(&node.root, &id).map_err(|error| status::of_observe(&error))
    };
    let mut observed = block(open).await?;
    let mut is_last = false;
    loop {
        let from = *news.borrow_and_update();
        let mut now = std::mem::take(way);
        let read = move || {
            let read = observed.advance_durably(|replay, applied| {
                now.accepted = replay.launch().accepted_unix_nanos;
                let spec = replay.state().spec();
                let name = |process: u32| spec.processes[process as usize].name.to_string();
                now.take(applied.at, &applied.event, name);
            });
            Ok((read, observed, now))
        };
        let done;
        (done, observed, *way) = block(read).await?;
        done.map_err(|error| status::of_observe(&error))?;
        if way.is_whole() || is_last {
            return Ok(());
        }
        tokio::select! {
            there = watch::happened(&node.registry, peer, id, from, &mut news) => {
                if !there {
                    return Err(status::no_task(id.as_str()));
                }
            }
            () = &mut limit => is_last = true,
            _ = stopping.wait_for(|&stopping| stopping) => is_last = true,
        }
    }
}

/// The way of a task from its acceptance until all that starts at once is RUNNING, or it is over before.
#[derive(Debug, Default)]
struct Way {
    /// When it was accepted, nanoseconds since 1970.
    accepted: i64,
    /// The first record. The task was accepted by this daemon: all is of one boot.
    anchor: Option<Stamp>,
    /// When a runner had the lead, the first and each later one.
    led: Vec<i64>,
    runs: Vec<Run>,
    /// Runs beyond [`MOST_RUNS`].
    left_out: i64,
    /// Something has begun: what is opened from here on did not start at once.
    is_begun: bool,
    /// When the last of it came, or the task was over.
    end: i64,
    over: Option<Phase>,
}

/// A run that starts at once.
#[derive(Debug)]
struct Run {
    process: u32,
    number: u32,
    name: String,
    opened: i64,
    forked: Option<i64>,
    /// When it was RUNNING, or had ended before, and how.
    settled: Option<(i64, Option<&'static str>)>,
}

impl Way {
    fn take(&mut self, at: Stamp, event: &Event, name: impl FnOnce(u32) -> String) {
        if self.is_whole() {
            return;
        }
        let when = self.place(at);
        match event {
            Event::Led(_) => self.led.push(when),
            Event::Entered(phase) if phase.is_terminal() => {
                self.over = Some(*phase);
                self.end = when;
            }
            Event::Run { process, run, step } => {
                self.step((*process, *run), when, step, name);
            }
            _ => {}
        }
    }

    /// The wall clock of a record, as the clock of the boot has it.
    fn place(&mut self, at: Stamp) -> i64 {
        let anchor = *self.anchor.get_or_insert(at);
        // What a coordinator recorded before its runner did may be earlier.
        anchor.wall.wrapping_add(at.boot.wrapping_sub(anchor.boot).cast_signed())
    }

    fn step(
        &mut self,
        of: (u32, u32),
        when: i64,
        step: &RunStep,
        name: impl FnOnce(u32) -> String,
    ) {
        let (process, number) = of;
        if matches!(step, RunStep::Opened) {
            if self.is_begun {
                return;
            }
            if self.runs.len() == MOST_RUNS {
                self.left_out += 1;
                return;
            }
            let (name, opened) = (name(process), when);
            self.runs.push(Run { process, number, name, opened, forked: None, settled: None });
            return;
        }
        let mut runs = self.runs.iter_mut();
        let run = runs.find(|run| (run.process, run.number) == of && run.settled.is_none());
        let how = match step {
            RunStep::Opened | RunStep::Unkillable(_) => return,
            RunStep::Forked { .. } => {
                if let Some(run) = run {
                    run.forked = Some(when);
                }
                return;
            }
            RunStep::Running { .. } => None,
            RunStep::Ended(end) => Some(end.verdict.reason().as_str_name()),
        };
        self.is_begun = true;
        if let Some(run) = run {
            run.settled = Some((when, how));
            self.end = when;
        }
    }

    fn is_whole(&self) -> bool {
        let is_settled = |run: &Run| run.settled.is_some();
        self.over.is_some() || self.is_begun && self.runs.iter().all(is_settled)
    }

    /// What went wrong, if something did.
    fn error(&self, given_up: bool) -> Option<&'static str> {
        let failed = self.runs.iter().find_map(|run| run.settled?.1);
        let over = || match self.over? {
            Phase::Success => None,
            over => Some(over.to_proto().as_str_name()),
        };
        failed.or_else(over).or(given_up.then_some("UNFINISHED"))
    }

    /// Tells of it beneath the call. `given_up`: when nobody waited for the rest any more.
    fn tell(&self, traces: &Traces, id: &TaskId, call: &SpanContext, given_up: Option<i64>) {
        if self.accepted == 0 {
            traces.leave_out("the task could not be read");
            return;
        }
        let end = given_up.unwrap_or(self.end);
        let mut attributes = vec![of_task(id)];
        if self.left_out > 0 {
            attributes.push(KeyValue::new("dewar.runs.left_out", self.left_out));
        }
        let (time, error) = ((self.accepted, end), self.error(given_up.is_some()));
        let way = Past { name: "task to RUNNING", time, attributes, error };
        let way = traces.tell(way, call);
        for (begun, led) in std::iter::once(&self.accepted).chain(&self.led).zip(&self.led) {
            let (name, time) = ("runner takes the lead", (*begun, *led));
            traces.tell(Past { name, time, attributes: Vec::new(), error: None }, &way);
        }
        for run in &self.runs {
            run.tell(traces, &way, end);
        }
    }
}

impl Run {
    fn tell(&self, traces: &Traces, way: &SpanContext, given_up: i64) {
        let (end, error) = self.settled.unwrap_or((given_up, Some("UNFINISHED")));
        let attributes = vec![
            KeyValue::new("dewar.process.name", self.name.clone()),
            KeyValue::new("dewar.process.index", i64::from(self.process)),
            KeyValue::new("dewar.run", i64::from(self.number)),
        ];
        let run = Past { name: "run to RUNNING", time: (self.opened, end), attributes, error };
        let run = traces.tell(run, way);
        let forked = self.forked.unwrap_or(end);
        let of_fork = error.filter(|_| self.forked.is_none());
        let (name, time) = ("WAITING to FORKED", (self.opened, forked));
        traces.tell(Past { name, time, attributes: Vec::new(), error: of_fork }, &run);
        if self.forked.is_some() {
            let (name, time) = ("FORKED to RUNNING", (forked, end));
            traces.tell(Past { name, time, attributes: Vec::new(), error }, &run);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::{ProcessId, Verdict, VerdictReason};
    use crate::state::{Leader, Outcome, RunEnd};

    const SECOND: i64 = 1_000_000_000;
    const ACCEPTED: i64 = 1_000 * SECOND;

    /// A way to which things happen, one each second of the boot, while the wall clock goes back by an hour after the first.
    struct Told {
        way: Way,
        second: u64,
    }

    impl Told {
        fn new() -> Self {
            let way = Way { accepted: ACCEPTED, ..Way::default() };
            let mut told = Self { way, second: 0 };
            told.lead();
            told
        }

        fn event(&mut self, event: Event) {
            self.second += 1;
            let back = if self.second == 1 { 0 } else { 3600 * SECOND };
            let seconds = self.second.cast_signed() * SECOND;
            let at = Stamp { boot: 7 + seconds.cast_unsigned(), wall: ACCEPTED + seconds - back };
            self.way.take(at, &event, |process| format!("p{process}"));
        }

        fn lead(&mut self) {
            let runner = ProcessId::default();
            let boot_id = String::new();
            self.event(Event::Led(Leader { runner, boot_id, cgroup: None, dropped_bytes: 0 }));
        }

        fn step(&mut self, process: u32, run: u32, step: RunStep) {
            self.event(Event::Run { process, run, step });
        }

        fn open(&mut self, process: u32) {
            self.step(process, 0, RunStep::Opened);
        }

        fn fork(&mut self, process: u32) {
            self.step(process, 0, RunStep::Forked { coordinator: ProcessId::default() });
        }

        fn run(&mut self, process: u32) {
            self.step(process, 0, RunStep::Running { pid: ProcessId::default() });
        }

        fn end(&mut self, process: u32, reason: VerdictReason) {
            let verdict = Verdict { reason: reason.into(), ..Verdict::default() };
            let end = RunEnd { outcome: Outcome::NotStarted, verdict, usage: None };
            self.step(process, 0, RunStep::Ended(Box::new(end)));
        }

        fn times(&self, run: usize) -> [Option<i64>; 3] {
            let run = &self.way.runs[run];
            let seconds = |at: i64| (at - ACCEPTED) / SECOND;
            [Some(run.opened), run.forked, run.settled.map(|(at, _)| at)].map(|at| at.map(seconds))
        }
    }

    #[test]
    fn a_way_is_whole_once_all_that_starts_at_once_is_running() {
        let mut told = Told::new();
        told.open(0);
        told.open(1);
        told.fork(1);
        told.fork(0);
        told.run(1);
        assert!(!told.way.is_whole());
        // Its turn came later.
        told.open(2);
        told.run(0);
        assert!(told.way.is_whole());
        told.end(0, VerdictReason::Exited);

        assert_eq!(told.way.runs.len(), 2);
        assert_eq!(told.times(0), [Some(2), Some(5), Some(8)]);
        assert_eq!(told.times(1), [Some(3), Some(4), Some(6)]);
        assert_eq!(told.way.error(false), None);
        assert_eq!((told.way.end - ACCEPTED) / SECOND, 8);
    }

    #[test]
    fn a_run_that_ends_before_it_is_running_is_an_error_and_so_is_what_nobody_waits_for() {
        let mut told = Told::new();
        told.open(0);
        told.fork(0);
        assert_eq!(told.way.error(true), Some("UNFINISHED"));
        // Another runner takes over, and the run is tried again.
        told.lead();
        told.end(0, VerdictReason::LaunchFailed);
        assert!(told.way.is_whole());
        told.step(0, 1, RunStep::Opened);

        assert_eq!((told.way.led.len(), told.way.runs.len()), (2, 1));
        assert_eq!(told.way.error(false), Some("VERDICT_REASON_LAUNCH_FAILED"));
    }

    #[test]
    fn a_task_that_is_over_before_anything_ran_ends_its_way() {
        for (phase, error) in [(Phase::Success, None), (Phase::Killed, Some("TASK_STATE_KILLED"))] {
            let mut told = Told::new();
            told.event(Event::Entered(Phase::Active));
            assert!(!told.way.is_whole());
            told.event(Event::Entered(phase));
            assert!(told.way.is_whole());
            assert_eq!(told.way.error(false), error);
        }
    }

    #[test]
    fn of_very_many_runs_some_are_told_and_all_are_counted() {
        let mut told = Told::new();
        let many = MOST_RUNS as u32 + 5;
        (0..many).for_each(|process| told.open(process));
        // One that is left out.
        told.run(many - 1);
        assert!(!told.way.is_whole());
        (0..many).for_each(|process| told.run(process));

        assert!(told.way.is_whole());
        assert_eq!((told.way.runs.len(), told.way.left_out), (MOST_RUNS, 5));
    }
}
