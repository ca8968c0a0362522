//! S28, attacks 35, 36, 39: a crash at every pass of every failpoint that the runner's binary lists, and a failed call at
//! each; then another runner, until the task is over. What is seen must be what is seen without.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::process::Command;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use dewar::control::{self, ControlError, Request};
use dewar::proto::record::Kind;
use dewar::proto::{Containment, PauseTask, Resources, ResumeTask, UpdateLimits};
use dewar::task::TaskId;

use super::bench::{Bench, History, PATIENCE, Runner};
use super::tasks::{Ask, Case};

/// Tasks that are driven at one time.
const THREADS: usize = 4;

/// Errors that a call may return at any time, and that say nothing about what it was called for.
const ERRNOS: [&str; 4] = ["ENOSPC", "EIO", "EMFILE", "ENOMEM"];

/// Something that happens to a task.
#[derive(Debug, Clone)]
struct Accident {
    point: String,
    action: String,
    /// Passes of the point before it happens, for each runner that is armed in turn.
    passes: Vec<usize>,
    /// Whether it must happen: it does at the first pass of what the undisturbed task passed.
    certain: bool,
    /// How the task is contained.
    containment: Containment,
}

impl Accident {
    fn new(point: &str, action: &str, passes: &[usize]) -> Self {
        let (point, action, passes) = (point.to_owned(), action.to_owned(), passes.to_vec());
        let certain = passes[0] == 0;
        Self { point, action, passes, certain, containment: Containment::Cgroup }
    }

    /// Runs that it may take: a coordinator that dies takes its own, and a task that may not last is not left to run.
    fn losses(&self) -> usize {
        let deadly = matches!(self.action.as_str(), "kill" | "panic");
        let is_coordinator = self.point.starts_with("coordinator::");
        let is_uncertain = self.point == "runner::acceptance" && !deadly;
        if deadly && is_coordinator || is_uncertain { self.passes.len() } else { 0 }
    }
}

/// All failpoints, as the binary lists them.
pub(super) fn all() -> Vec<String> {
    let output =
        Command::new(env!("CARGO_BIN_EXE_dewar-runner")).arg("--failpoints").output().unwrap();
    let names = String::from_utf8(output.stdout).unwrap();
    names.lines().map(str::to_owned).collect()
}

/// Points of runner and coordinator; those of whoever accepts a task are in `accept.rs`, of whoever removes it in `remove.rs`, of the daemon
/// in `daemon/`.
fn points() -> Vec<String> {
    let others = ["accept::", "remove::", "daemon::"];
    all().into_iter().filter(|name| !others.iter().any(|other| name.starts_with(other))).collect()
}

/// How often the undisturbed task passes each point.
fn passes(bench: &Bench, case: &Case) -> BTreeMap<String, usize> {
    let id = bench.accept(&format!("{}-undisturbed", case.name), &case.file);
    let trace = bench.dir().join(format!("{}.trace", case.name));
    let env = [("DEWAR_FAILPOINT_TRACE", trace.display().to_string())];
    let history = drive(bench, case, &id, |_| bench.start_with(&id, &env));
    assert!(case.is_met(&history, 0), "{}", bench.describe(&id, "not as the case says"));
    let mut passes = BTreeMap::new();
    for point in fs::read_to_string(trace).unwrap().lines() {
        *passes.entry(point.to_owned()).or_default() += 1;
    }
    passes
}

/// Brings an accepted task to its end, with as many runners as that takes; asks for its end where the case says so.
fn drive(
    bench: &Bench,
    case: &Case,
    id: &TaskId,
    mut start: impl FnMut(usize) -> Runner,
) -> History {
    let deadline = Instant::now() + PATIENCE;
    let mut started = 1;
    let mut runner = start(0);
    loop {
        if let Some(status) = runner.ended() {
            if status.success() {
                bench.assert_over(id);
                return bench.history(id);
            }
            runner = start(started);
            started += 1;
        }
        if let Some(wait) = case.kill {
            ask_for_end(bench, id, wait);
        }
        if let Some(ask) = case.asks {
            ask_for(bench, id, ask);
        }
        if Instant::now() > deadline {
            panic!("{}", bench.describe(id, "the task does not end"));
        }
        std::thread::sleep(Duration::from_millis(3));
    }
}

/// Asks once the task is ready, and again only if no runner has recorded that it was asked.
fn ask_for_end(bench: &Bench, id: &TaskId, wait: Duration) {
    let history = bench.history(id);
    if history.has_kill() || !is_ready(bench, id, &history) {
        return;
    }
    match control::kill(bench.root(), id, wait, false) {
        Ok(()) | Err(ControlError::Absent(_) | ControlError::Unanswered(_)) => {}
        Err(error) => panic!("{}", bench.describe(id, &format!("{error:?}"))),
    }
}

/// Asks once the task is ready, and again only if no runner has recorded that it was asked.
fn ask_for(bench: &Bench, id: &TaskId, ask: Ask) {
    let history = bench.history(id);
    let has = |wanted: fn(&Kind) -> bool| {
        history.records.iter().filter_map(|record| record.kind.as_ref()).any(wanted)
    };
    let is_paused = has(|kind| matches!(kind, Kind::Paused(_)));
    if has(|kind| matches!(kind, Kind::Resumed(_) | Kind::Limits(_))) {
        return bench.touch(id, "asked");
    }
    let request = match ask {
        Ask::Pause if is_paused => Request::Resume(ResumeTask {}),
        _ if !is_ready(bench, id, &history) => return,
        Ask::Pause => Request::Pause(PauseTask {}),
        Ask::Limit => Request::Update(UpdateLimits {
            process: Some("a".to_owned()),
            // Of the one controller that cgroup v2 has on hybrid hosts too.
            change: Some(Resources {
                hugetlb: [("2MB".to_owned(), 4 << 20)].into(),
                ..Resources::default()
            }),
            force: false,
        }),
    };
    match control::order(bench.root(), id, request, None) {
        Ok(_) | Err(ControlError::Absent(_) | ControlError::Unanswered(_)) => {}
        Err(error) => panic!("{}", bench.describe(id, &format!("{error:?}"))),
    }
}

/// Whether the live run of process 0 has come so far that it will hear, or not hear, a SIGTERM as it means to.
fn is_ready(bench: &Bench, id: &TaskId, history: &History) -> bool {
    let Some((run, _)) = history.state.processes()[0].live_run() else { return false };
    // Without leaves marks do not tell one run from another; but there is only one there.
    let is_marked = !history.is_contained() || bench.marks(id).contains(&format!("a.{run}"));
    is_marked && bench.sandbox(id).join("ready").exists()
}

/// Lets `accident` happen to a task, and compares its end with the undisturbed one.
fn suffer(bench: &Bench, case: &Case, number: u32, accident: &Accident) {
    let id = format!("{}-{number}", case.name);
    let id = bench.accept_with(&id, &case.file, |launch| {
        launch.set_containment(accident.containment);
    });
    let token = |of: usize| bench.dir().join(format!("{id}.token.{of}"));
    for (of, &passes) in accident.passes.iter().enumerate() {
        fs::write(token(of), vec![0; passes]).unwrap();
    }

    let history = drive(bench, case, &id, |started| {
        if started >= accident.passes.len() {
            return bench.start(&id);
        }
        let Accident { point, action, .. } = accident;
        let armed = format!("{point}={action}@{}", token(started).display());
        bench.start_with(&id, &[("DEWAR_FAILPOINT", armed)])
    });

    let losses = accident.losses();
    assert!(!accident.certain || !token(0).exists(), "{accident:?} did not happen to {id}");
    let ended = format!("after {accident:?}: not as the undisturbed one");
    assert!(case.is_met(&history, losses), "{}", bench.describe(&id, &ended));
}

/// Does all of it, some at one time, and says all that went wrong.
fn suffer_all(accidents: &[(&Case, Accident)]) {
    let bench = Bench::new();
    let (next, failures) = (AtomicU32::new(0), Mutex::new(Vec::new()));
    std::thread::scope(|scope| {
        for _ in 0..THREADS {
            scope.spawn(|| {
                loop {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    let Some((case, accident)) = accidents.get(number as usize) else { return };
                    let outcome =
                        std::panic::catch_unwind(|| suffer(&bench, case, number, accident));
                    if outcome.is_err() {
                        failures.lock().unwrap().push(format!("{}: {accident:?}", case.name));
                    }
                }
            });
        }
    });
    let failures = failures.into_inner().unwrap();
    let (failed, all) = (failures.len(), accidents.len());
    assert!(failures.is_empty(), "{failed} of {all} went wrong:\n{}", failures.join("\n"));
}

/// What was measured once is asked by several tests.
fn undisturbed() -> Vec<(Case, BTreeMap<String, usize>)> {
    let bench = Bench::new();
    let cases = Case::all();
    let measured: Vec<_> = std::thread::scope(|scope| {
        let handles: Vec<_> =
            cases.iter().map(|case| scope.spawn(|| passes(&bench, case))).collect();
        handles.into_iter().map(|handle| handle.join().unwrap()).collect()
    });
    cases.into_iter().zip(measured).collect()
}

/// A failpoint that no task passes is never tested.
#[test]
fn s28_every_failpoint_is_passed_by_some_task() {
    let passed: BTreeSet<String> =
        undisturbed().into_iter().flat_map(|(_, passes)| passes.into_keys()).collect();

    let never: Vec<String> = points().into_iter().filter(|point| !passed.contains(point)).collect();

    assert_eq!(never, Vec::<String>::new(), "no task passes these");
}

/// Attack 39.
#[test]
fn s28_a_kill_at_any_pass_of_any_failpoint_changes_nothing() {
    let undisturbed = undisturbed();
    let mut accidents = Vec::new();
    for (case, passes) in &undisturbed {
        for (point, &count) in passes {
            accidents.extend((0..count).map(|pass| (case, Accident::new(point, "kill", &[pass]))));
        }
    }

    suffer_all(&accidents);
}

/// Attack 39: "also twice in a row".
#[test]
fn s28_a_second_kill_at_the_same_failpoint_changes_nothing() {
    let undisturbed = undisturbed();
    let mut accidents = Vec::new();
    for (case, passes) in &undisturbed {
        let runner = passes.keys().filter(|point| !point.starts_with("coordinator::"));
        accidents.extend(runner.map(|point| (case, Accident::new(point, "kill", &[0, 0]))));
    }

    suffer_all(&accidents);
}

/// Coordinators are told from what they left behind without a cgroup too. A run that lost its coordinator and its runner
/// is not found there, so coordinators are spared.
#[test]
fn s28_without_cgroups_a_kill_of_the_runner_changes_nothing() {
    let undisturbed = undisturbed();
    let mut accidents = Vec::new();
    for (case, passes) in undisturbed.iter().filter(|(case, _)| case.is_uncontained()) {
        let runner = passes.keys().filter(|point| !point.starts_with("coordinator::"));
        accidents.extend(runner.map(|point| {
            let accident = Accident::new(point, "kill", &[0]);
            (case, Accident { certain: false, containment: Containment::None, ..accident })
        }));
    }

    suffer_all(&accidents);
}

#[test]
fn a_panic_is_no_worse_than_a_kill() {
    let undisturbed = undisturbed();
    let points = ["runner::flushed", "runner::absorb", "launch::locked", "coordinator::start"];
    let more = ["coordinator::forked", "coordinator::started", "coordinator::exited"];
    let (case, _) = &undisturbed[0];
    let accidents: Vec<_> = points
        .iter()
        .chain(&more)
        .map(|point| (case, Accident::new(point, "panic", &[0])))
        .collect();

    suffer_all(&accidents);
}

/// Attacks 34 to 36: nothing is lost by one call that fails, and not even a run.
#[test]
fn a_failed_call_at_any_failpoint_changes_nothing() {
    let undisturbed = undisturbed();
    let mut accidents = Vec::new();
    for (turn, (case, passes)) in undisturbed.iter().enumerate() {
        for (index, point) in passes.keys().enumerate() {
            let errno = ERRNOS[(index + turn) % ERRNOS.len()];
            accidents.push((case, Accident::new(point, errno, &[0])));
        }
    }

    suffer_all(&accidents);
}
