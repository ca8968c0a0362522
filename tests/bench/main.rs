//! Time and size, each beside a floor that is measured in the same run: `just bench`.
//!
//! Nothing is asserted: figures depend on the machine, ratios less so.
#![allow(clippy::disallowed_methods, reason = "measures the real thing")]
#![allow(clippy::unwrap_used)]

#[cfg(feature = "net")]
mod daemon;
mod gc;
mod usage;

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use dewar::checkpoint::{Identity, Instant as At, Reader, Root, Writer};
use dewar::proto::{self, Verdict, VerdictReason};
use dewar::state::{Event, Outcome, Phase, RunEnd, RunStep, Stamp, TaskState};
use dewar::sys::pidfd::ProcessId;
use dewar::task::{TaskId, TaskSpec};

const DEWAR: &str = env!("CARGO_BIN_EXE_dewar");

/// Measures a part, in a directory of its own files, and prints its rows.
type Measure = fn(&Path);

/// What is measured, by name.
const PARTS: &[(&str, Measure)] = &[
    ("one", |dir| {
        one_process(dir, "");
        end_of_task(dir);
        if let Some(memory) = Memory::new() {
            one_process(&memory.0, ", all in memory");
        }
    }),
    ("wide", wide),
    ("asleep", asleep),
    ("replay", replay),
    ("samples", usage::samples),
    ("thousand", |_| usage::thousand_tasks()),
    ("kill", usage::kill),
    ("gc", gc::gc),
    #[cfg(feature = "net")]
    ("calls", daemon::calls),
    #[cfg(feature = "net")]
    ("rate", daemon::rate),
    #[cfg(feature = "net")]
    ("node", daemon::node),
    #[cfg(feature = "net")]
    ("known", daemon::known),
    #[cfg(feature = "net")]
    ("page", daemon::page),
];

fn main() {
    let dir = std::env::temp_dir().join(format!("dewar-bench-{}", std::process::id()));
    fs::create_dir_all(&dir).unwrap();
    // Cargo says `--bench`; a name of ours measures that part alone.
    let only = std::env::args().skip(1).find(|argument| !argument.starts_with('-'));
    println!("| what | floor | measured | ratio |\n|---|---|---|---|");
    let parts =
        PARTS.iter().filter(|(name, _)| only.as_ref().is_none_or(|only| name.contains(only)));
    parts.for_each(|(_, measure)| measure(&dir));
    fs::remove_dir_all(&dir).unwrap();
}

fn row(what: &str, floor: &str, measured: &str, ratio: &str) {
    println!("| {what} | {floor} | {measured} | {ratio} |");
}

fn against(what: &str, floor: Duration, measured: Duration) {
    let ratio = measured.as_secs_f64() / floor.as_secs_f64();
    row(what, &format!("{floor:.2?}"), &format!("{measured:.2?}"), &format!("{ratio:.2} ×"));
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort_unstable();
    times[times.len() / 2]
}

fn time(work: impl FnOnce()) -> Duration {
    let start = Instant::now();
    work();
    start.elapsed()
}

fn dewar(root: &Path, task: &Path, id: &str) -> Command {
    let mut command = Command::new(DEWAR);
    command.args(["run", "--root"]).arg(root).args(["--task-id", id]).arg(task);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command
}

fn bash(cmdline: &str) -> Command {
    let mut command = Command::new("/bin/bash");
    command.args(["-c", cmdline]).stdin(Stdio::null());
    command
}

fn write(path: PathBuf, text: &str) -> PathBuf {
    fs::write(&path, text).unwrap();
    path
}

/// A directory of files that no disk holds: what a disk takes for its syncs is not ours.
struct Memory(PathBuf);

impl Memory {
    fn new() -> Option<Self> {
        let dir = PathBuf::from(format!("/dev/shm/dewar-bench-{}", std::process::id()));
        fs::create_dir(&dir).ok().map(|()| Self(dir))
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Start to exit of one process `true`, taken in turns with the floor.
fn one_process(dir: &Path, how: &str) {
    let task = write(dir.join("true.yaml"), "processes: [{name: t, cmdline: 'true'}]\n");
    let root = dir.join("true");
    let (mut floor, mut ours) = (Vec::new(), Vec::new());
    for n in 0..105 {
        let (bare, run) = (
            time(|| assert!(bash("true").status().unwrap().success())),
            time(|| assert!(dewar(&root, &task, &format!("t{n}")).status().unwrap().success())),
        );
        // The first few make directories and fill caches.
        if n >= 5 {
            floor.push(bare);
            ours.push(run);
        }
    }
    let what = format!("`dewar run` of `true`, start to exit{how} (median of 100)");
    against(&what, median(floor), median(ours));
}

/// From the end of the last process, as its coordinator saw it, to the terminal record of the task.
fn end_of_task(dir: &Path) {
    let root = Root::new(dir.join("true")).unwrap();
    let gap = |n| {
        let (mut ended, mut over) = (0, 0);
        let id = Identity::runner(TaskId::new(format!("t{n}")).unwrap());
        let mut reader = Reader::open(&root, &id).unwrap();
        while let Some(record) = reader.next_record().unwrap() {
            let at = record.boot_nanos;
            match Event::from_record(record) {
                Ok(Event::Run { step: RunStep::Ended(_), .. }) => ended = at,
                Ok(Event::Entered(phase)) if phase.is_terminal() => over = at,
                _ => {}
            }
        }
        Duration::from_nanos(over - ended)
    };
    let gaps: Vec<_> = (5..105).map(gap).collect();
    let most = gaps.iter().max().unwrap();
    let text = format!("{:.0?} (most {most:.0?})", median(gaps.clone()));
    row("end of the last process to end of the task (median of 100)", "–", &text, "–");
}

/// 500 independent processes.
fn wide(dir: &Path) {
    let processes: String =
        (0..500).map(|n| format!("  - {{name: p{n}, cmdline: 'true'}}\n")).collect();
    let task = write(dir.join("wide.yaml"), &format!("name: wide\nprocesses:\n{processes}"));
    let root = dir.join("wide");
    let (mut serial, mut parallel, mut ours) = (Vec::new(), Vec::new(), Vec::new());
    for n in 0..5 {
        serial.push(time(|| {
            for _ in 0..500 {
                bash("true").status().unwrap();
            }
        }));
        parallel.push(time(|| {
            let children: Vec<Child> = (0..500).map(|_| bash("true").spawn().unwrap()).collect();
            for mut child in children {
                child.wait().unwrap();
            }
        }));
        ours.push(time(|| {
            assert!(dewar(&root, &task, &format!("w{n}")).status().unwrap().success())
        }));
    }
    let ours = median(ours);
    against("500 × `true`, floor: posix_spawn and wait, 500 times", median(serial), ours);
    against("500 × `true`, floor: posix_spawn 500 times, then wait", median(parallel), ours);
}

/// Memory and wake-ups of a runner and a coordinator whose run sleeps.
fn asleep(dir: &Path) {
    let task = write(dir.join("sleep.yaml"), "processes: [{name: s, cmdline: 'exec sleep 600'}]\n");
    let root = dir.join("sleep");
    let mut command = dewar(&root, &task, "s");
    let mut child = command.args(["--output", "json"]).stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let coordinator = loop {
        let event: serde_json::Value =
            serde_json::from_str(&lines.next().unwrap().unwrap()).unwrap();
        if event["run"]["state"] == "PROCESS_STATE_RUNNING" {
            break event["run"]["coordinatorPid"].as_u64().unwrap();
        }
    };
    let runner = parent(coordinator);
    let (small, shared) =
        (private(runner) + private(coordinator), proportional(runner) + proportional(coordinator));
    row("memory of runner and coordinator, run asleep: USS", "–", &format!("{small} kB"), "–");
    row("the same: PSS", "–", &format!("{shared} kB"), "–");
    // What woke them for RUNNING is over by then.
    std::thread::sleep(Duration::from_millis(500));
    let before = switches(runner) + switches(coordinator);
    std::thread::sleep(Duration::from_secs(10));
    let woken = switches(runner) + switches(coordinator) - before;
    row("wake-ups of both in 10 s", "–", &woken.to_string(), "–");
    let kill = Command::new(DEWAR)
        .args(["kill", "--root"])
        .arg(&root)
        .args(["--wait", "0s", "s"])
        .status();
    assert!(kill.unwrap().success());
    child.wait().unwrap();
}

fn proc(pid: u64, file: &str) -> String {
    fs::read_to_string(format!("/proc/{pid}/{file}")).unwrap()
}

fn sum(text: &str, keys: &[&str]) -> u64 {
    let fields = text.lines().filter(|line| keys.iter().any(|key| line.starts_with(key)));
    fields.map(|line| line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap()).sum()
}

fn parent(pid: u64) -> u64 {
    sum(&proc(pid, "status"), &["PPid:"])
}

fn private(pid: u64) -> u64 {
    sum(&proc(pid, "smaps_rollup"), &["Private_Clean:", "Private_Dirty:"])
}

fn proportional(pid: u64) -> u64 {
    sum(&proc(pid, "smaps_rollup"), &["Pss:"])
}

fn switches(pid: u64) -> u64 {
    sum(&proc(pid, "status"), &["voluntary_ctxt_switches:", "nonvoluntary_ctxt_switches:"])
}

/// A million records: read, checked, decoded and applied.
fn replay(dir: &Path) {
    const RECORDS: u64 = 1_000_000;
    let root = Root::new(dir.join("replay")).unwrap();
    root.create().unwrap();
    let task = TaskId::new("replay").unwrap();
    root.create_checkpoint(&task).unwrap();
    let spec = daemon();
    let identity = Identity::runner(task);
    let mut writer = Writer::create(&root, identity.clone()).unwrap();
    let mut count = 0;
    for event in std::iter::once(Event::Entered(Phase::Active)).chain((0..).flat_map(run)) {
        let at = At { boot_nanos: count * 1_000_000, unix_nanos: count as i64 * 1_000_000 };
        writer.append(event.to_kind(), at).unwrap();
        count += 1;
        if count.is_multiple_of(1000) {
            writer.flush().unwrap();
        }
        if count == RECORDS {
            break;
        }
    }
    drop(writer);

    let path = root.stream(&identity);
    let mut bytes = 0;
    let floor = median((0..5).map(|_| time(|| bytes = read_all(&path))).collect());
    let ours =
        median((0..5).map(|_| time(|| fold(&root, &identity, spec.clone(), RECORDS))).collect());
    let rate = RECORDS as f64 / ours.as_secs_f64() / 1e6;
    row(
        &format!("replay of 1,000,000 records ({bytes} bytes), floor: reading them"),
        &format!("{floor:.2?}"),
        &format!("{ours:.2?}, {rate:.2} M records/s"),
        &format!("{:.1} ×", ours.as_secs_f64() / floor.as_secs_f64()),
    );
}

fn daemon() -> TaskSpec {
    let task = proto::Task {
        name: "replay".to_owned(),
        processes: vec![proto::Process {
            name: "d".to_owned(),
            daemon: Some(true),
            min_duration: Some(pbjson_types::Duration { seconds: 0, nanos: 0 }),
            ..Default::default()
        }],
        ..Default::default()
    };
    TaskSpec::from_proto(&task).unwrap()
}

/// The four records of an undisturbed run.
fn run(number: u32) -> [Event; 4] {
    let id = ProcessId { pid: 4711, start_ticks: u64::from(number) }.into();
    let end = RunEnd {
        outcome: Outcome::Exited(0),
        verdict: Verdict { reason: VerdictReason::Exited.into(), ..Verdict::default() },
        usage: None,
    };
    [
        RunStep::Opened,
        RunStep::Forked { coordinator: id },
        RunStep::Running { pid: id },
        RunStep::Ended(Box::new(end)),
    ]
    .map(|step| Event::Run { process: 0, run: number, step })
}

fn read_all(path: &Path) -> usize {
    let mut file = fs::File::open(path).unwrap();
    let mut buffer = vec![0; 64 << 10];
    let mut total = 0;
    loop {
        match file.read(&mut buffer).unwrap() {
            0 => return total,
            count => total += count,
        }
    }
}

fn fold(root: &Root, identity: &Identity, spec: TaskSpec, expected: u64) {
    let mut state = TaskState::new(spec, 100);
    let mut reader = Reader::open(root, identity).unwrap();
    let mut count = 0;
    while let Some(record) = reader.next_record().unwrap() {
        let at = Stamp::of(&record);
        state.apply(&Event::from_record(record).unwrap(), at).unwrap();
        count += 1;
    }
    assert_eq!(count, expected);
}
