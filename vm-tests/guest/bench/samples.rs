//! What a sample costs where all of its files are there, beside what can be had on any host: so that a figure of a real machine, which
//! has four of them, becomes one of a real machine that has all.
//!
//! CPU time of a translated machine says nothing by itself. All rows are of one run, and each is told as a multiple of the sample of a
//! cgroup without controllers, taken again and again; those of a thousand tasks once a second are multiples of the row that is the same of a
//! thousand such cgroups, which is what `just bench thousand` takes on a machine that is real: there nothing is in a cache, in either.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use dewar::cgroup::{self, Extent, Options, Sampler, TaskCgroup};
use dewar::task::{ProcessName, TaskId};
use nix::time::{ClockId, clock_gettime};

/// Tasks that are sampled once a second, and seconds that it is done.
const TASKS: usize = 1000;
const SECONDS: u32 = 10;

/// Time after which of a task nothing shows any more.
const SETTLED: Duration = Duration::from_secs(41);

/// Of so many tasks one has a process that wakes some times a second.
const BUSY: usize = 20;

/// What it does: it wakes, and takes some memory.
const WAKES: &str = "while :; do read -t 0.2 <> /tmp/bench-fifo; x=$x....; done";

/// Every cgroup with all controllers has these; the last four are those without any.
const FILES: [&str; 18] = [
    "memory.current",
    "memory.peak",
    "memory.stat",
    "memory.max",
    "memory.high",
    "memory.swap.current",
    "memory.swap.peak",
    "memory.swap.max",
    "memory.events",
    "io.stat",
    "pids.current",
    "pids.peak",
    "pids.max",
    "pids.events",
    "cpu.stat",
    "cpu.pressure",
    "memory.pressure",
    "io.pressure",
];

/// CPU time of this thread, to the nanosecond: what getrusage(2) tells is counted in ticks here.
fn cpu_time() -> Duration {
    clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).unwrap().into()
}

/// CPU time that `act` takes: the median of so many times. What the machine around does to this one comes on top of some, and its
/// clock stands still in others.
fn cost(times: u32, mut act: impl FnMut()) -> Duration {
    let each = (0..times).map(|_| {
        let before = cpu_time();
        act();
        cpu_time() - before
    });
    let mut each: Vec<_> = each.collect();
    each.sort_unstable();
    each[each.len() / 2]
}

/// Cgroups of this bench, with what lives in them.
struct Tasks {
    path: PathBuf,
    children: Vec<Child>,
}

impl Tasks {
    /// A thousand tasks as dewar makes them; some have a process that does something.
    fn new() -> (Self, Vec<TaskCgroup>) {
        let path = PathBuf::from("/sys/fs/cgroup/dewar-bench");
        let base = cgroup::find(&Options { explicit: Some(path.clone()) }).unwrap();
        let process = ProcessName::new("p").unwrap();
        let mut tasks = Self { path, children: Vec::new() };
        let made = (0..TASKS).map(|number| {
            let task = base.task(&TaskId::new(format!("t{number}")).unwrap()).unwrap();
            let leaf = task.leaf(&process, 0).unwrap();
            if number % BUSY == 0 {
                tasks.inhabit(leaf.path(), "bash", &["-c", WAKES]);
            }
            task
        });
        let made = made.collect();
        (tasks, made)
    }

    fn inhabit(&mut self, leaf: &Path, program: &str, arguments: &[&str]) {
        let mut command = Command::new(program);
        let child = command.args(arguments).stdin(Stdio::null()).spawn().unwrap();
        fs::write(leaf.join("cgroup.procs"), child.id().to_string()).unwrap();
        self.children.push(child);
    }
}

impl Drop for Tasks {
    fn drop(&mut self) {
        for child in &mut self.children {
            let _ = child.kill();
            let _ = child.wait();
        }
        remove(&self.path);
    }
}

fn remove(cgroup: &Path) {
    let entries = fs::read_dir(cgroup).unwrap().flatten();
    for entry in entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())) {
        remove(&entry.path());
    }
    let _ = fs::remove_dir(cgroup);
}

/// As many tasks without controllers: what a hybrid host gives.
fn bare() -> (Tasks, Vec<TaskCgroup>) {
    let path = PathBuf::from("/sys/fs/cgroup/bare-bench");
    let opened = (0..TASKS).map(|number| {
        let id = TaskId::new(format!("t{number}")).unwrap();
        let task = path.join("tasks").join(id.as_str());
        fs::create_dir_all(task.join("p.0")).unwrap();
        TaskCgroup::open_existing(&task, &id).unwrap().unwrap()
    });
    let opened = opened.collect();
    (Tasks { path, children: Vec::new() }, opened)
}

/// What a sample of all of them costs once a second: the median second, for one of them.
fn once_a_second(samplers: &mut [Sampler], extent: Extent) -> Duration {
    let start = Instant::now();
    let mut second = 0;
    let round = cost(SECONDS, || {
        second += 1;
        std::thread::sleep((Duration::from_secs(1) * second).saturating_sub(start.elapsed()));
        samplers.iter_mut().for_each(|of| assert!(of.sample(extent).unwrap().is_some()));
    });
    round / TASKS as u32
}

/// What a monitor without cgroups reads of each process.
fn scan(pids: &[u32]) {
    for pid in pids {
        for file in ["stat", "statm", "status", "io"] {
            fs::read(format!("/proc/{pid}/{file}")).unwrap();
        }
    }
}

fn row(what: &str, cost: Duration, floor: Duration) {
    let ratio = cost.as_secs_f64() / floor.as_secs_f64();
    println!("| {what} | {:.1} µs | {ratio:.2} × |", cost.as_secs_f64() * 1e6);
}

#[test]
fn samples() {
    dewar::sys::fds::raise_limit().unwrap();
    let _ = Command::new("mkfifo").arg("/tmp/bench-fifo").status().unwrap();
    let (mut held, tasks) = Tasks::new();
    let (_bare, without) = bare();
    let [mut without, mut samplers] = [&without, &tasks].map(|tasks| {
        let mut of: Vec<_> = tasks.iter().map(|task| Sampler::of_task(task).unwrap()).collect();
        of.iter_mut().for_each(|of| assert!(of.sample(Extent::All).unwrap().is_some()));
        of
    });

    let floor = cost(2000, || assert!(without[0].sample(Extent::All).unwrap().is_some()));
    println!("\n| CPU time | in this guest | of a sample of 4 files |\n|---|---|---|");
    row("a sample of 4 files (`cpu.stat`, pressure)", floor, floor);
    for (what, number) in [("idle", 1), ("busy", 0)] {
        let task = tasks[number].path();
        for name in FILES {
            // A kernel may not have it.
            let Ok(file) = File::open(task.join(name)) else { continue };
            let mut buffer = [0; 8192];
            let cost = cost(500, || assert!(file.read_at(&mut buffer, 0).is_ok()));
            row(&format!("pread(2) of `{name}`, {what}"), cost, floor);
        }
        for (extent, which) in [(Extent::All, "all files"), (Extent::Kept, "what a history keeps")]
        {
            let one = cost(500, || assert!(samplers[number].sample(extent).unwrap().is_some()));
            row(&format!("a sample of {which}, {what}, again and again"), one, floor);
        }
    }
    for count in [10_u32, 100] {
        let leaf = tasks[2].path().join("p.0");
        while fs::read_to_string(leaf.join("cgroup.procs")).unwrap().lines().count()
            < count as usize
        {
            held.inhabit(&leaf, "sleep", &["600"]);
        }
        let pids = fs::read_to_string(leaf.join("cgroup.procs")).unwrap();
        let pids: Vec<u32> = pids.lines().map(|pid| pid.parse().unwrap()).collect();
        row(&format!("four files of /proc of {count} processes"), cost(20, || scan(&pids)), floor);
        let one = cost(200, || assert!(samplers[2].sample(Extent::All).unwrap().is_some()));
        row("a sample of their task, all files", one, floor);
    }
    let floor = once_a_second(&mut without, Extent::All);
    row(&format!("a sample of one of {TASKS} tasks, 4 files, once a second"), floor, floor);
    for (extent, which) in [(Extent::All, "all files"), (Extent::Kept, "what a history keeps")] {
        // What has long stood still is known to have.
        samplers.iter_mut().for_each(|of| assert!(of.sample(extent).unwrap().is_some()));
        std::thread::sleep(SETTLED);
        let what = format!("a sample of one of {TASKS} tasks, {which}, once a second");
        row(&what, once_a_second(&mut samplers, extent), floor);
    }
    // Were all of them awake. Not each second costs the same.
    let mut awake: Vec<_> = samplers.iter_mut().step_by(BUSY).collect();
    let start = Instant::now();
    let rounds = (1..=SECONDS).map(|second| {
        std::thread::sleep((Duration::from_secs(1) * second).saturating_sub(start.elapsed()));
        let before = cpu_time();
        awake.iter_mut().for_each(|of| assert!(of.sample(Extent::Kept).unwrap().is_some()));
        cpu_time() - before
    });
    let each = rounds.sum::<Duration>() / SECONDS / awake.len() as u32;
    row("a sample of one that is awake, what a history keeps, once a second, mean", each, floor);
    drop(samplers);
    // Who opens the FIFO makes it.
    drop(held);
    let _ = fs::remove_file("/tmp/bench-fifo");
}
