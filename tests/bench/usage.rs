//! What it costs to know what a task uses, and to end it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use dewar::cgroup::{self, Extent, Options, Sampler, TaskCgroup};
use dewar::checkpoint::{Identity, Reader, Root};
use dewar::state::{Event, Phase};
use dewar::sys::clock;
use dewar::task::{ProcessName, TaskId};
use nix::sys::resource::{UsageWho, getrusage};

use super::{DEWAR, dewar, median, row, time, write};

/// Forks so many processes that sleep, says so in a file, and waits.
fn sleepers(count: usize, ready: &Path) -> String {
    let ready = ready.display();
    format!("for n in $(seq {count}); do sleep 600 & done; echo > {ready}; wait")
}

/// A task of one process, which has so many children.
struct Live {
    root: PathBuf,
    id: String,
    child: std::process::Child,
}

impl Live {
    fn start(dir: &Path, id: &str, count: usize) -> Self {
        let root = dir.join("usage");
        let ready = dir.join(format!("{id}.ready"));
        let cmdline = serde_json::to_string(&sleepers(count, &ready)).unwrap();
        let text = format!(
            r#"{{"processes": [{{"name": "s", "cmdline": {cmdline}}}], "resources": {{"pids": "max"}}}}"#
        );
        let task = write(dir.join(format!("{id}.json")), &text);
        let mut command = dewar(&root, &task, id);
        command.arg("--allow-unenforced");
        let child = command.spawn().unwrap();
        wait_for(&ready);
        Self { root, id: id.to_owned(), child }
    }

    fn id(&self) -> TaskId {
        TaskId::new(self.id.as_str()).unwrap()
    }

    /// Its stream, from the beginning: what `of` makes of an event and its time, the last that is something.
    fn last<T>(&self, of: impl Fn(&Event, u64) -> Option<T>) -> T {
        let root = Root::new(&self.root).unwrap();
        let mut reader = Reader::open(&root, &Identity::runner(self.id())).unwrap();
        let mut last = None;
        while let Some(record) = reader.next_record().unwrap() {
            let at = record.boot_nanos;
            if let Ok(event) = Event::from_record(record) {
                last = of(&event, at).or(last);
            }
        }
        last.expect("it is recorded")
    }

    fn cgroup(&self) -> TaskCgroup {
        let path = self.last(|event, _| match event {
            Event::Led(leader) => leader.cgroup.clone(),
            _ => None,
        });
        TaskCgroup::open_existing(Path::new(&path), &self.id()).unwrap().unwrap()
    }

    fn kill(&self) {
        let mut kill = Command::new(DEWAR);
        kill.args(["kill", "--wait", "0s", "--root"]).arg(&self.root).arg(&self.id);
        assert!(kill.stdout(Stdio::null()).status().unwrap().success());
    }

    /// Waits for its end; tells when that was recorded, CLOCK_BOOTTIME in nanoseconds.
    fn end(mut self) -> u64 {
        self.child.wait().unwrap();
        self.last(|event, at| matches!(event, Event::Entered(Phase::Killed)).then_some(at))
    }
}

fn wait_for(path: &Path) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while !path.exists() {
        assert!(Instant::now() < deadline, "{} does not come", path.display());
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// One sample of a task against a scan of its process tree, for more and more processes.
pub(super) fn samples(dir: &Path) {
    let python = python_with_psutil();
    for count in [10, 100, 1000] {
        let live = Live::start(dir, &format!("s{count}"), count);
        let cgroup = live.cgroup();
        let mut sampler = Sampler::of_task(&cgroup).unwrap();
        sampler.sample(Extent::All).unwrap().unwrap();
        let ours = median(
            (0..1000)
                .map(|_| time(|| assert!(sampler.sample(Extent::All).unwrap().is_some())))
                .collect(),
        );
        let leaf = cgroup.open_leaf(&ProcessName::new("s").unwrap(), 0).unwrap().unwrap();
        let processes = leaf.pids().unwrap();
        let what = format!(
            "one sample of a task with {} processes, floor: psutil scan of their tree",
            processes.len()
        );
        let scan = python.clone().and_then(|python| {
            // The first process is the one that is everybody's parent.
            let top = processes.iter().min_by_key(|pid| pid.as_raw()).unwrap();
            scan(python, top.as_raw(), processes.len())
        });
        match scan {
            Ok(scan) => row(
                &what,
                &format!("{scan:.1?}"),
                &format!("{ours:.1?}"),
                &format!("1/{:.0}", scan.as_secs_f64() / ours.as_secs_f64()),
            ),
            Err(missing) => row(&what, &missing, &format!("{ours:.1?}"), "–"),
        }
        live.kill();
        live.end();
    }
}

/// Scans the tree of a process as a monitor in Python does: all children, and of each memory, CPU time, I/O and threads.
const SCAN: &str = r#"
import sys, time, psutil
top, expected, times = int(sys.argv[1]), int(sys.argv[2]), []
for _ in range(7):
    start = time.perf_counter()
    tree = [psutil.Process(top)]
    tree += tree[0].children(recursive=True)
    for process in tree:
        with process.oneshot():
            process.memory_info(), process.cpu_times(), process.io_counters(), process.num_threads()
    times.append(time.perf_counter() - start)
    assert len(tree) == expected, (len(tree), expected)
print(sorted(times)[3])
"#;

/// The median of seven scans; what went wrong, if it cannot be told.
fn scan(python: &str, top: i32, expected: usize) -> Result<Duration, String> {
    let arguments = [top.to_string(), expected.to_string()];
    let output = Command::new(python).args(["-c", SCAN]).args(arguments).output();
    let output = output.map_err(|error| format!("ERROR: {python}: {error}"))?;
    let text = String::from_utf8_lossy(&output.stdout);
    let seconds = text.trim().parse().map_err(|_| {
        format!("ERROR: psutil: {}", String::from_utf8_lossy(&output.stderr).trim())
    })?;
    Ok(Duration::from_secs_f64(seconds))
}

/// A Python that has psutil: Debian's package is installed where none has it.
fn python_with_psutil() -> Result<&'static str, String> {
    let has = |python: &&str| {
        let import =
            Command::new(python).args(["-c", "import psutil"]).stderr(Stdio::null()).status();
        import.is_ok_and(|status| status.success())
    };
    let find = || ["python3", "/usr/bin/python3"].into_iter().find(has);
    if let Some(python) = find() {
        return Ok(python);
    }
    let install = ["install", "-y", "-qq", "--no-install-recommends", "python3-psutil"];
    let mut command = Command::new("apt-get");
    let command = command.args(install).env("DEBIAN_FRONTEND", "noninteractive");
    let _ = command.stdout(Stdio::null()).stderr(Stdio::null()).status();
    find().ok_or_else(|| "ERROR: psutil is missing: apt-get install python3-psutil".to_owned())
}

/// A sample of each of a thousand tasks, as the daemon takes it for their histories, once a second.
pub(super) fn thousand_tasks() {
    const TASKS: usize = 1000;
    const ROUNDS: u32 = 20;
    /// Then a sampler knows that nothing of a task shows any more.
    const SETTLED: Duration = Duration::from_secs(41);
    dewar::sys::fds::raise_limit().unwrap();
    let scratch = Scratch::new();
    let process = ProcessName::new("p").unwrap();
    let mut samplers: Vec<Sampler> = (0..TASKS)
        .map(|number| {
            let task = scratch.base.task(&TaskId::new(format!("t{number}")).unwrap()).unwrap();
            task.leaf(&process, 0).unwrap();
            Sampler::of_task(&task).unwrap()
        })
        .collect();
    let read = |of: &mut Sampler| assert!(of.sample(Extent::Kept).unwrap().is_some());
    let mut round = || samplers.iter_mut().for_each(read);
    round();
    let mut rounds = |what: &str| {
        let before = cpu_time();
        (0..ROUNDS).for_each(|_| round());
        let each = (cpu_time() - before) / ROUNDS;
        let share = format!("{:.2} % of a core", each.as_secs_f64() * 100.0);
        let what = format!("1,000 tasks sampled once a second, {what}");
        row(&what, "3 % of a core", &format!("{each:.2?}, {share}"), "–");
    };
    rounds("all files of each");
    std::thread::sleep(SETTLED);
    rounds("which have long stood still");
}

fn cpu_time() -> Duration {
    let usage = getrusage(UsageWho::RUSAGE_SELF).unwrap();
    let micros = [usage.user_time(), usage.system_time()]
        .map(|time| time.tv_sec() as u64 * 1_000_000 + time.tv_usec() as u64);
    Duration::from_micros(micros.iter().sum())
}

/// A base of our own.
struct Scratch {
    base: cgroup::Base,
    path: PathBuf,
}

impl Scratch {
    fn new() -> Self {
        let found = cgroup::find(&Options { explicit: None }).unwrap();
        let path =
            found.path().parent().unwrap().join(format!("dewar-bench-{}", std::process::id()));
        let base = cgroup::find(&Options { explicit: Some(path.clone()) }).unwrap();
        Self { base, path }
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
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

/// From the request to the terminal record of a task with 1,000 processes, against `cgroup.kill` alone.
pub(super) fn kill(dir: &Path) {
    const PROCESSES: usize = 1000;
    let (mut floor, mut ours) = (Vec::new(), Vec::new());
    for n in 0..5 {
        floor.push(bare_kill(dir, n, PROCESSES));
        let live = Live::start(dir, &format!("k{n}"), PROCESSES);
        let start = clock::boot_nanos();
        live.kill();
        ours.push(Duration::from_nanos(live.end() - start));
    }
    super::against(
        "`dewar kill` of a task with 1,000 processes, start of the command to terminal record; floor: cgroup.kill to empty",
        median(floor),
        median(ours),
    );
}

/// From a write to `cgroup.kill` until the cgroup, with as many processes, is empty.
fn bare_kill(dir: &Path, number: usize, count: usize) -> Duration {
    let scratch = Scratch::new();
    let task = scratch.base.task(&TaskId::new("bare").unwrap()).unwrap();
    let leaf = task.leaf(&ProcessName::new("p").unwrap(), 0).unwrap().path().to_owned();
    let ready = dir.join(format!("bare{number}.ready"));
    let enter = format!("echo 0 > {}/cgroup.procs", leaf.display());
    let mut child = super::bash(&format!("{enter}; {}", sleepers(count, &ready)))
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    wait_for(&ready);
    let taken = time(|| {
        fs::write(leaf.join("cgroup.kill"), "1").unwrap();
        while !fs::read_to_string(leaf.join("cgroup.events")).unwrap().contains("populated 0") {
            std::thread::yield_now();
        }
    });
    child.wait().unwrap();
    taken
}
