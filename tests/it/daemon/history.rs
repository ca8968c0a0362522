//! What tasks used of late, as the daemon sampled it: `GetUsage` at a time, `GetUsageHistory`, `dewar stats --at`.

use dewar::proto::{
    DiskMethod, GetUsageHistoryRequest, GetUsageHistoryResponse, GetUsageRequest, RemoveRequest,
    Sample, TaskState, TaskUsage, Timestamp, WaitRequest,
};
use tonic::{Code, Status};
use tonic_types::StatusExt;

use super::node::Node;
use crate::support::{Gate, p, task, wait_until};

/// Bash that spends some CPU time.
const SPIN: &str = "n=0; while [ $n -lt 30000 ]; do n=$((n+1)); done";
/// A sampler that does not let a test wait.
const OFTEN: [&str; 6] =
    ["--sample-interval", "100ms", "--sample-history", "10m", "--disk-interval", "100ms"];

fn reason(status: &Status) -> String {
    status.get_error_details().error_info().map(|info| info.reason.clone()).unwrap_or_default()
}

/// What is kept of the scene's task, or of a process.
fn history(node: &mut Node, process: Option<&str>) -> Result<GetUsageHistoryResponse, Status> {
    let request = GetUsageHistoryRequest {
        task_id: node.scene.id().to_owned(),
        process: process.map(str::to_owned),
        ..GetUsageHistoryRequest::default()
    };
    ask(node, request)
}

fn ask(
    node: &mut Node,
    request: GetUsageHistoryRequest,
) -> Result<GetUsageHistoryResponse, Status> {
    let mut observer = node.observer();
    let told = node.runtime.block_on(observer.get_usage_history(request));
    told.map(tonic::Response::into_inner)
}

fn at(node: &mut Node, time: Option<Timestamp>, by_process: bool) -> Result<TaskUsage, Status> {
    let task_id = node.scene.id().to_owned();
    let mut observer = node.observer();
    let told = observer.get_usage(GetUsageRequest { task_id, time, by_process });
    let told = node.runtime.block_on(told)?;
    Ok(told.into_inner().usage.unwrap())
}

/// V14, V15: what was used is told of any time, of the task and of each process, now and after its end; and not once it is removed.
#[test]
fn what_a_task_used_is_told_of_any_time_until_it_is_removed() {
    let mut node = Node::with(&OFTEN);
    let gate = node.scene.gate("gate");
    // Something is to be told all the time.
    let busy = "head -c 100000 /dev/zero > blob; (while :; do sleep 0.02; done) &";
    node.launch(&task([p("a", format!("{busy} {}", gate.hold())), p("b", SPIN)]));
    wait_until("six readings", || history(&mut node, Some("a")).unwrap().points.len() >= 6);

    let disk = |node: &mut Node| at(node, None, false).unwrap().disk;
    wait_until("the sandbox is measured", || {
        disk(&mut node).is_some_and(|disk| disk.bytes >= 100_000)
    });
    let measured = disk(&mut node).unwrap();
    assert_ne!(measured.method(), DiskMethod::Unspecified);
    assert!(measured.inodes.unwrap() >= 2 && measured.incomplete.is_none(), "{measured:?}");
    let is_kept = |node: &mut Node| {
        let told = history(node, None).unwrap();
        told.peak.unwrap().disk_bytes.is_some_and(|bytes| bytes >= 100_000)
    };
    wait_until("that is kept", || is_kept(&mut node));

    let told = history(&mut node, None).unwrap();
    let of_a = history(&mut node, Some("a")).unwrap();
    let third = told.points[2].clone();
    let then = at(&mut node, third.time, true).unwrap();
    let first = at(&mut node, Some(Timestamp::default()), false).unwrap();
    let now = at(&mut node, None, true).unwrap();

    assert_eq!(told.interval.unwrap().nanos, 100_000_000);
    let used: Vec<_> = told.points[1..].iter().map(|of| of.rates.unwrap().cpus.unwrap()).collect();
    assert!(
        used.iter().any(|&cpus| cpus > 0.0) && used.iter().all(|&cpus| cpus >= 0.0),
        "{used:?}"
    );
    assert_eq!(told.points[0].rates, None, "nothing is known of the time before");
    let peak = told.peak.unwrap().rates.unwrap().cpus.unwrap();
    assert_eq!(peak, used.iter().copied().fold(0.0, f64::max));
    assert!(of_a.points.iter().all(|of| of.run == Some(0)), "{of_a:?}");
    assert!(told.points.iter().all(|of| of.run.is_none()), "{told:?}");

    assert_eq!((then.state(), then.time), (TaskState::Active, third.time));
    let (sample, of_third) = (then.sample.clone().unwrap(), third.sample.unwrap());
    assert_eq!((sample.boot_nanos, sample.cgroup_id), (of_third.boot_nanos, of_third.cgroup_id));
    assert_eq!(sample.cpu.unwrap().rate, third.rates.unwrap().cpus);
    let names: Vec<_> = then.processes.iter().map(|of| of.name.as_str()).collect();
    assert_eq!(names, ["a", "b"]);
    assert_eq!(first.time, told.points[0].time);
    assert_eq!(first.processes, []);
    // What this host accounts for is kept, and nothing else.
    let has = |sample: &Sample| {
        let memory = sample.memory.as_ref();
        let pids = sample.pids.as_ref();
        [
            memory.is_some_and(|of| of.current_bytes.is_some()),
            memory.is_some_and(|of| of.working_set_bytes.is_some()),
            memory.is_some_and(|of| of.peak_bytes.is_some()),
            sample.io.as_ref().is_some_and(|of| of.write_bytes.is_some()),
            pids.is_some_and(|of| of.current.is_some()),
            sample.pressure.as_ref().is_some_and(|of| of.memory.is_some()),
        ]
    };
    assert_eq!(has(&sample), has(now.sample.as_ref().unwrap()));
    assert_eq!(
        has(&sample)[0],
        told.peak.unwrap().memory.is_some_and(|of| of.current_bytes > Some(0))
    );
    // What is told of now says what was used since the last reading.
    assert!(now.sample.unwrap().cpu.unwrap().rate.unwrap() >= 0.0);
    assert!(now.processes[0].sample.as_ref().unwrap().cpu.unwrap().rate.unwrap() >= 0.0);

    gate.open();
    let ended = node.wait();
    let kept = history(&mut node, None).unwrap();
    let over = at(&mut node, Some(Timestamp { seconds: i64::MAX / 2, nanos: 0 }), false).unwrap();
    let before = at(&mut node, third.time, false).unwrap();
    assert!(kept.points.len() >= told.points.len(), "{} points", kept.points.len());
    assert_eq!((over.state(), over.recorded), (TaskState::Success, ended.usage));
    assert_eq!((before.state(), before.time), (TaskState::Active, third.time));
    assert!(before.sample.is_some());

    let remove = RemoveRequest { task_id: node.scene.id().to_owned(), sandbox: false };
    let mut runner = node.runner();
    node.runtime.block_on(runner.remove(remove)).unwrap();
    wait_until("the task is gone", || history(&mut node, None).is_err());
    assert_eq!(history(&mut node, None).unwrap_err().code(), Code::NotFound);
    assert_eq!(at(&mut node, third.time, false).unwrap_err().code(), Code::NotFound);
}

/// V13, V42.
#[test]
fn a_daemon_that_measures_no_sandboxes_tells_of_none() {
    let mut never = OFTEN;
    never[5] = "off";
    let mut node = Node::with(&never);
    let gate = node.scene.gate("gate");
    node.launch(&task([p("a", gate.hold())]));
    // One that measures begins with that, and measures what has been read once.
    wait_until("six readings", || history(&mut node, None).unwrap().points.len() >= 6);

    let told = at(&mut node, None, false).unwrap();

    assert_eq!(told.disk, None);
    assert_eq!(history(&mut node, None).unwrap().peak.unwrap().disk_bytes, None);
    gate.open();
    node.wait();
}

/// W11: the first of each round.
#[test]
fn a_sandbox_that_cannot_be_measured_keeps_no_other_from_it() {
    let mut node = Node::with(&OFTEN);
    let gates = ["first", "second"].map(|name| node.scene.gate(name));
    node.launch(&task([p("a", gates[0].hold())]));
    let (first, second) = (node.scene.id().to_owned(), format!("{}.second", node.scene.id()));
    let mut request = node.request(&task([p("a", gates[1].hold())]));
    request.task_id = Some(second.clone());
    request.sandbox = Some(node.scene.path("second.sandbox").to_str().unwrap().to_owned());
    let mut runner = node.runner();
    node.runtime.block_on(runner.launch(request)).unwrap();
    let (sandbox, away) = (node.scene.sandbox(), node.scene.path("away"));
    let measured = |node: &mut Node, id: &str| {
        let mut observer = node.observer();
        let request = GetUsageRequest { task_id: id.to_owned(), ..GetUsageRequest::default() };
        let told = node.runtime.block_on(observer.get_usage(request)).unwrap();
        let time = told.into_inner().usage.unwrap().disk.and_then(|disk| disk.time);
        time.map(Timestamp::unix_nanos)
    };
    wait_until("both are measured", || {
        measured(&mut node, &first).is_some() && measured(&mut node, &second).is_some()
    });

    std::fs::rename(&sandbox, &away).unwrap();

    // A round may be under way; those after it meet what is away.
    let mut last = measured(&mut node, &second);
    for round in ["one", "two", "three"] {
        wait_until(round, || measured(&mut node, &second) > last);
        last = measured(&mut node, &second);
    }
    assert!(measured(&mut node, &first) < last);
    std::fs::rename(&away, &sandbox).unwrap();
    wait_until("it is measured again", || measured(&mut node, &first) > last);
    gates.iter().for_each(Gate::open);
    node.wait();
    let waited = WaitRequest { task_id: second, ..WaitRequest::default() };
    node.runtime.block_on(runner.wait(waited)).unwrap();
}

/// V11 and attack 50: each run has a leaf of its own, whose counters begin at 0: no rate is negative, and none is made of two runs.
#[test]
fn the_history_of_a_process_goes_on_across_its_runs() {
    let mut node = Node::with(&OFTEN);
    let gate = node.scene.gate("gate");
    // Little to do, also for a slow machine, but more than the next run has done when it is read for the first time.
    let spin = format!(
        "n=0; while [ $n -lt 3000 ]; do n=$((n+1)); done; sleep 0.4; [ -e {} ]",
        node.scene.path("enough").display()
    );
    let flaky = p("a", spin).max_failures(0).with("min_duration", 0.1);
    let steady = p("b", gate.hold());
    node.launch(&task([flaky, steady]));

    let runs = |told: &GetUsageHistoryResponse| {
        let mut runs: Vec<_> = told.points.iter().filter_map(|point| point.run).collect();
        runs.dedup();
        runs
    };
    wait_until("three runs", || runs(&history(&mut node, Some("a")).unwrap()).len() >= 3);
    let told = history(&mut node, Some("a")).unwrap();

    let seen = runs(&told);
    assert!(seen.is_sorted(), "{seen:?}");
    for two in told.points.windows(2) {
        let cpus = two[1].rates.and_then(|rates| rates.cpus);
        assert!(cpus.is_none_or(|cpus| cpus >= 0.0), "{two:?}");
        if two[0].run != two[1].run {
            assert_eq!(two[1].rates, None, "{two:?}");
        }
    }
    let few = GetUsageHistoryRequest {
        task_id: node.scene.id().to_owned(),
        process: Some("a".to_owned()),
        start_time: told.points[1].time,
        end_time: told.points.last().unwrap().time,
        max_points: 2,
    };
    let few = ask(&mut node, few).unwrap();
    assert_eq!(few.points.len(), 2);
    assert_eq!(few.points[1].time, told.points.last().unwrap().time);
    std::fs::write(node.scene.path("enough"), "").unwrap();
    gate.open();
    node.wait();
}

#[test]
fn what_makes_no_sense_of_a_history_is_refused() {
    let mut node = Node::with(&OFTEN);
    let gate = node.scene.gate("gate");
    node.launch(&task([p("a", gate.hold())]));
    wait_until("a reading", || !history(&mut node, Some("a")).unwrap().points.is_empty());
    let request = GetUsageHistoryRequest {
        task_id: node.scene.id().to_owned(),
        ..GetUsageHistoryRequest::default()
    };
    let time = |seconds| Some(Timestamp { seconds, nanos: 0 });
    let backwards =
        GetUsageHistoryRequest { start_time: time(2), end_time: time(1), ..request.clone() };
    let long_ago = GetUsageHistoryRequest { end_time: time(1), ..request.clone() };
    let many = GetUsageHistoryRequest { max_points: 10_001, ..request };

    let other = history(&mut node, Some("b")).unwrap_err();
    let [backwards, many] = [backwards, many].map(|request| ask(&mut node, request).unwrap_err());
    let long_ago = ask(&mut node, long_ago).unwrap();

    assert_eq!((other.code(), &*reason(&other)), (Code::NotFound, "NO_PROCESS"));
    assert_eq!([backwards.code(), many.code()], [Code::InvalidArgument; 2]);
    assert_eq!((long_ago.points, long_ago.peak), (vec![], None));
    gate.open();
    node.wait();
}

#[test]
fn a_daemon_that_does_not_sample_says_so() {
    let mut node = Node::with(&["--sample-interval", "off"]);
    let gate = node.scene.gate("gate");
    node.launch(&task([p("a", gate.hold())]));
    let now = at(&mut node, None, true).unwrap();

    let then = at(&mut node, now.time, false).unwrap_err();
    let series = history(&mut node, None).unwrap_err();

    for lost in [then, series] {
        assert_eq!((lost.code(), &*reason(&lost)), (Code::OutOfRange, "NO_HISTORY"));
        assert!(lost.message().contains("--sample-interval off"), "{lost}");
    }
    gate.open();
    node.wait();
}
