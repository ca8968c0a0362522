//! A root and a base cgroup of a test's own, the runners in it, and what must hold of a task that is over.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::unix::fs::chown;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use dewar::checkpoint::paths::Place;
use dewar::checkpoint::{Identity, ReadError, Reader, Root};
use dewar::proto::record::Kind;
use dewar::proto::run_transition::State as Step;
use dewar::proto::{Containment, Launch, Record, RunTransition};
use dewar::state::{Event, Outcome, Phase, Run, RunState, Stamp, TaskState};
use dewar::task::file::Bindings;
use dewar::task::{ProcessName, TaskId, TaskSpec};
use dewar::{cgroup, identity, launch};
use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// How long a test waits for what must happen.
pub(super) const PATIENCE: Duration = Duration::from_secs(40);

/// Time between two looks at what is waited for.
const LOOK: Duration = Duration::from_millis(2);

/// A root, and a base cgroup; both are emptied and removed when this is dropped.
pub(super) struct Bench {
    dir: PathBuf,
    root: Root,
    base: PathBuf,
}

impl Bench {
    /// A root in memory where the host has one there: fsync costs nothing, and no test here cuts the power.
    pub(super) fn new() -> Self {
        let memory = PathBuf::from("/dev/shm");
        Self::beneath(&if memory.is_dir() { memory } else { std::env::temp_dir() })
    }

    /// A root at `root`, where there is none yet; all else of the bench is elsewhere.
    pub(super) fn with_root(root: &Path) -> Self {
        let mut bench = Self::new();
        bench.root = Root::new(root).unwrap();
        bench
    }

    fn beneath(parent: &Path) -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = format!("dewar-crash-{}-{count}", std::process::id());
        let dir = parent.join(&name);
        let base = cgroup_mount().join(&name);
        let options = cgroup::Options { explicit: Some(base.clone()) };
        cgroup::find(&options).expect("these tests need root and a writable cgroup v2");
        fs::create_dir(&dir).unwrap();
        Self { root: Root::new(dir.join("root")).unwrap(), dir, base }
    }

    pub(super) fn root(&self) -> &Root {
        &self.root
    }

    /// The base cgroup.
    pub(super) fn base(&self) -> &Path {
        &self.base
    }

    /// A directory beside the root.
    pub(super) fn dir(&self) -> &Path {
        &self.dir
    }

    /// Sandbox of a task: outside the root.
    pub(super) fn sandbox(&self, task: &TaskId) -> PathBuf {
        self.dir.join("sandboxes").join(task.as_str())
    }

    /// The cgroup of a task.
    pub(super) fn task_cgroup(&self, task: &TaskId) -> PathBuf {
        self.base.join("tasks").join(task.as_str())
    }

    /// The cgroup of a run.
    pub(super) fn leaf(&self, task: &TaskId, process: &str, run: u32) -> PathBuf {
        self.task_cgroup(task).join(format!("{process}.{run}"))
    }

    /// What `dewar run` would have accepted for the task file `task`.
    pub(super) fn launch(&self, id: &TaskId, task: &serde_json::Value) -> Launch {
        let bindings = Bindings { task_id: Some(id.clone()), ..Bindings::default() };
        let source = task.to_string();
        let task = match dewar::task::file::parse(source.as_bytes(), "task.json", &bindings) {
            Ok(accepted) => accepted.task,
            Err(report) => panic!("{report}"),
        };
        Launch {
            task_id: id.to_string(),
            task: Some(task),
            sandbox: self.sandbox(id).display().to_string(),
            identity: Some(identity::current().unwrap()),
            containment: Containment::Cgroup.into(),
            path: "/usr/bin:/bin".to_owned(),
            loss_limit: 100,
            ..Launch::default()
        }
    }

    /// Accepts the task file `task` under `id`.
    pub(super) fn accept(&self, id: &str, task: &serde_json::Value) -> TaskId {
        self.accept_with(id, task, |_| {})
    }

    /// Accepts the task file `task` under `id`, with some change to what `dewar run` would accept.
    pub(super) fn accept_with(
        &self,
        id: &str,
        task: &serde_json::Value,
        change: impl FnOnce(&mut Launch),
    ) -> TaskId {
        let id = TaskId::new(id).unwrap();
        let mut launch = self.launch(&id, task);
        change(&mut launch);
        let accepted = launch::accept(&self.root, &id, &launch);
        assert_eq!(accepted.unwrap(), launch::Accepted::New);
        id
    }

    /// Starts a runner.
    pub(super) fn start(&self, task: &TaskId) -> Runner {
        self.start_with(task, &[])
    }

    /// Starts a runner with these variables in its environment, and no others.
    pub(super) fn start_with(&self, task: &TaskId, env: &[(&str, String)]) -> Runner {
        let mut command = Command::new(env!("CARGO_BIN_EXE_dewar-runner"));
        command.env_clear().envs(env.iter().map(|(name, value)| (name, value)));
        self.spawn(command, task)
    }

    /// Starts a runner that may have `limit` descriptors at the most.
    pub(super) fn start_limited(&self, task: &TaskId, limit: u32) -> Runner {
        let mut command = Command::new("/bin/bash");
        command.args(["-c", "ulimit -n $0; exec \"$@\""]).arg(limit.to_string());
        command.arg(env!("CARGO_BIN_EXE_dewar-runner")).env_clear();
        self.spawn(command, task)
    }

    /// Starts a runner that inherits a descriptor 3 of which nobody speaks to it.
    pub(super) fn start_with_a_descriptor(&self, task: &TaskId) -> Runner {
        let mut command = Command::new("/bin/bash");
        command.args(["-c", "exec \"$@\" 3</dev/null", "bash"]);
        command.arg(env!("CARGO_BIN_EXE_dewar-runner")).env_clear();
        self.spawn(command, task)
    }

    /// Starts a runner as the user and group `id`, to whom root and base are given.
    pub(super) fn start_as(&self, task: &TaskId, id: u32) -> Runner {
        give(&self.dir, id);
        for group in ["", "tasks", "supervisor"] {
            let group = self.base.join(group);
            for file in ["", "cgroup.procs", "cgroup.threads", "cgroup.subtree_control"] {
                chown(group.join(file), Some(id), Some(id)).unwrap();
            }
        }
        // Where this program lies need not be open to everybody.
        let program = self.dir.join("dewar-runner");
        fs::copy(env!("CARGO_BIN_EXE_dewar-runner"), &program).unwrap();
        let mut command = Command::new("/bin/bash");
        let enter =
            r#"echo $$ > "$1" && exec setpriv --reuid $2 --regid $2 --clear-groups "${@:3}""#;
        command.args(["-c", enter, "bash"]).arg(self.base.join("supervisor/cgroup.procs"));
        command.arg(id.to_string()).arg(program);
        self.spawn(command, task)
    }

    /// Starts `command`, a runner but for its arguments.
    fn spawn(&self, mut command: Command, task: &TaskId) -> Runner {
        let log = File::options().append(true).create(true).open(self.log(task)).unwrap();
        let child = command
            .args([self.root.path().as_os_str(), task.as_str().as_ref(), self.base.as_os_str()])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .process_group(0)
            .spawn()
            .unwrap();
        Runner { child }
    }

    /// Starts a runner as `dewar resume` does, which brings the task to its end.
    pub(super) fn resume(&self, task: &TaskId) {
        let status = self.start(task).wait();
        assert!(status.success(), "{}", self.describe(task, &format!("runner ended {status}")));
        self.assert_over(task);
    }

    /// What the runners of a task had to say.
    fn log(&self, task: &TaskId) -> PathBuf {
        self.dir.join(format!("{task}.log"))
    }

    pub(super) fn log_text(&self, task: &TaskId) -> String {
        fs::read_to_string(self.log(task)).unwrap_or_default()
    }

    /// All that the runner's stream says now.
    pub(super) fn history(&self, task: &TaskId) -> History {
        let mut reader = Reader::open(&self.root, &Identity::runner(task.clone())).unwrap();
        let header = reader.next_record().unwrap().and_then(|record| record.kind);
        let Some(Kind::Launch(launch)) = header else { panic!("no header") };
        let spec = TaskSpec::from_proto(&launch.task.unwrap()).unwrap();
        let mut state = TaskState::new(spec, launch.loss_limit);
        let mut records = Vec::new();
        while let Some(record) = reader.next_record().unwrap() {
            let event = Event::from_record(record.clone()).unwrap();
            state.apply(&event, Stamp::of(&record)).unwrap();
            records.push(record);
        }
        History { state, records }
    }

    /// Waits until the history of a task is as wanted.
    pub(super) fn wait_until(
        &self,
        task: &TaskId,
        what: &str,
        mut is: impl FnMut(&History) -> bool,
    ) -> History {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let history = self.history(task);
            if is(&history) {
                return history;
            }
            let is_over = history.phase().is_some_and(Phase::is_terminal);
            assert!(!is_over && Instant::now() < deadline, "{}", self.describe(task, what));
            std::thread::sleep(LOOK);
        }
    }

    /// Waits until a run of the process `index` runs and its command has written its mark.
    pub(super) fn wait_running(&self, task: &TaskId, index: usize, run: u32) -> History {
        let name = |history: &History| format!("{}.{run}", history.name(index));
        self.wait_until(task, &format!("process {index} does not come to run {run}"), |history| {
            let found = history.state.processes()[index].runs.get(run as usize);
            found.is_some_and(|run| run.state == RunState::Running)
                && self.marks(task).contains(&name(history))
        })
    }

    /// Names of the leaves in which a command began, in order.
    pub(super) fn marks(&self, task: &TaskId) -> Vec<String> {
        let text = fs::read_to_string(self.sandbox(task).join("marks")).unwrap_or_default();
        text.lines().map(str::to_owned).collect()
    }

    /// Makes the file `name` in the sandbox of a task: its runs wait for one.
    pub(super) fn touch(&self, task: &TaskId, name: &str) {
        fs::write(self.sandbox(task).join(name), "").unwrap();
    }

    /// Records of the coordinators of a process.
    pub(super) fn coordinator_steps(
        &self,
        task: &TaskId,
        process: &ProcessName,
    ) -> Vec<RunTransition> {
        let identity = Identity::coordinator(task.clone(), process.clone());
        let mut reader = match Reader::open(&self.root, &identity) {
            Ok(reader) => reader,
            Err(ReadError::Missing { .. }) => return Vec::new(),
            Err(error) => panic!("{error}"),
        };
        let mut steps = Vec::new();
        while let Some(record) = reader.next_record().unwrap() {
            if let Some(Kind::Run(step)) = record.kind {
                steps.push(step);
            }
        }
        steps
    }

    /// Waits for the end of a task that goes on by itself.
    pub(super) fn wait_over(&self, task: &TaskId) {
        wait_for("it does not end", || self.root.task(Place::Finished, task).exists());
        self.assert_over(task);
    }

    /// Invariants 1 to 3 of a task that should be over, and that nothing was left behind.
    pub(super) fn assert_over(&self, task: &TaskId) {
        let history = self.history(task);
        let fail = |what: &str| panic!("{}", self.describe(task, what));
        if !history.phase().is_some_and(Phase::is_terminal) {
            fail("the task is not over");
        }
        if history.terminal_records() != 1 {
            fail("not one terminal record");
        }
        if self.root.task(Place::Active, task).exists()
            || !self.root.task(Place::Finished, task).exists()
        {
            fail("the task is not filed as finished");
        }
        if self.task_cgroup(task).exists() {
            fail("the task's cgroup is left");
        }
        // A coordinator that has recorded its end may still be on its way out; whatever else lives stays.
        let deadline = Instant::now() + PATIENCE;
        loop {
            let left = self.processes_of(task);
            if left.is_empty() {
                break;
            }
            if Instant::now() >= deadline {
                fail(&format!("processes {left:?} are left"));
            }
            std::thread::sleep(LOOK);
        }
        self.assert_never_twice(task, &history);
    }

    /// Invariant 2, by what coordinators recorded and by what the commands themselves did.
    fn assert_never_twice(&self, task: &TaskId, history: &History) {
        let fail = |what: String| panic!("{}", self.describe(task, &what));
        let mut marks: BTreeMap<String, u32> = BTreeMap::new();
        for mark in self.marks(task) {
            *marks.entry(mark).or_default() += 1;
        }
        // Without leaves all marks are the same.
        let is_contained = history.is_contained();
        for (index, process) in history.state.processes().iter().enumerate() {
            let name = history.name(index);
            let mut steps: BTreeMap<(u32, &str), u32> = BTreeMap::new();
            for step in self.coordinator_steps(task, &name) {
                let kind = match step.state {
                    Some(Step::Forked(_)) => "FORKED",
                    Some(Step::Running(_)) => "RUNNING",
                    Some(Step::Ended(_)) => "ended",
                    _ => "odd",
                };
                *steps.entry((step.run, kind)).or_default() += 1;
            }
            if let Some((twice, _)) = steps.iter().find(|&(_, &count)| count > 1) {
                fail(format!("{name}: {twice:?} is recorded twice"));
            }
            for (run, of) in process.runs.iter().enumerate().filter(|_| is_contained) {
                let count = marks.remove(&format!("{name}.{run}")).unwrap_or(0);
                // A run that was killed may have been so before its first command.
                let outcome = of.end.as_ref().map(|end| end.outcome);
                let expected = match outcome {
                    Some(Outcome::Exited(_)) => count == 1,
                    Some(Outcome::NotStarted | Outcome::Dropped) => count == 0,
                    _ => count <= 1,
                };
                if !expected {
                    fail(format!("{name}.{run} is {:?} and began {count} times", of.state));
                }
            }
        }
        if is_contained && !marks.is_empty() {
            fail(format!("{marks:?} began and are not recorded"));
        }
    }

    /// Runner, coordinators and runs of a task that live: all of them have their working directory beneath its
    /// checkpoint or its sandbox.
    pub(super) fn processes_of(&self, task: &TaskId) -> Vec<i32> {
        let ours = [self.root.checkpoint(task), self.sandbox(task)];
        let entries = fs::read_dir("/proc").unwrap().flatten();
        let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
        pids.filter(|pid| {
            let cwd = fs::read_link(format!("/proc/{pid}/cwd"));
            cwd.is_ok_and(|cwd| ours.iter().any(|dir| cwd.starts_with(dir)))
        })
        .collect()
    }

    /// All that is known of a task, under a headline.
    pub(super) fn describe(&self, task: &TaskId, what: &str) -> String {
        let history = self.history(task);
        let records: String =
            history.records.iter().map(|record| format!("  {record:?}\n")).collect();
        let log = self.log_text(task);
        let marks = self.marks(task);
        let states = history.states();
        format!("{task}: {what}\n{states:?}, marks {marks:?}\n{records}log:\n{log}")
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        // Coordinators record the end of their runs and go.
        let _ = fs::write(self.base.join("cgroup.kill"), "1");
        let deadline = Instant::now() + Duration::from_secs(5);
        while fs::read_to_string(self.base.join("cgroup.events"))
            .is_ok_and(|events| events.contains("populated 1"))
            && Instant::now() < deadline
        {
            std::thread::sleep(LOOK);
        }
        remove_cgroups(&self.base);
        let _ = fs::remove_dir_all(&self.dir);
    }
}

/// Gives a directory, with all that is in it, to a user.
fn give(path: &Path, id: u32) {
    chown(path, Some(id), Some(id)).unwrap();
    for entry in fs::read_dir(path).into_iter().flatten().flatten() {
        if entry.file_type().unwrap().is_dir() {
            give(&entry.path(), id);
        } else {
            chown(entry.path(), Some(id), Some(id)).unwrap();
        }
    }
}

fn remove_cgroups(dir: &Path) {
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove_cgroups(&entry.path());
        }
    }
    let _ = fs::remove_dir(dir);
}

/// Where the cgroup v2 hierarchy is mounted.
pub(super) fn cgroup_mount() -> PathBuf {
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
    let mut mounts = mounts.lines().map(|line| line.split(' '));
    mounts
        .find_map(|mut fields| {
            let path = fields.nth(1)?;
            (fields.next()? == "cgroup2").then(|| PathBuf::from(path))
        })
        .expect("these tests need a cgroup v2 hierarchy")
}

/// What the runner's stream of a task says.
pub(super) struct History {
    pub(super) state: TaskState,
    pub(super) records: Vec<Record>,
}

impl History {
    pub(super) fn phase(&self) -> Option<Phase> {
        self.state.phase()
    }

    pub(super) fn name(&self, index: usize) -> ProcessName {
        self.state.spec().processes[index].name.clone()
    }

    /// The states of the runs of each process, a letter each: `FFS`.
    pub(super) fn states(&self) -> Vec<String> {
        let processes = self.state.processes().iter();
        processes
            .map(|process| process.runs.iter().map(|run| letter(run.state)).collect())
            .collect()
    }

    /// A run of a process.
    pub(super) fn run(&self, process: usize, run: usize) -> &Run {
        &self.state.processes()[process].runs[run]
    }

    /// Whether its runs have leaves.
    pub(super) fn is_contained(&self) -> bool {
        self.state.leader().is_some_and(|leader| leader.cgroup.is_some())
    }

    pub(super) fn has_kill(&self) -> bool {
        self.state.kill().is_some()
    }

    fn terminal_records(&self) -> usize {
        let phases = self.records.iter().filter_map(|record| match record.kind {
            Some(Kind::Task(_)) => Event::from_record(record.clone()).ok(),
            _ => None,
        });
        phases.filter(|event| matches!(event, Event::Entered(phase) if phase.is_terminal())).count()
    }
}

fn letter(state: RunState) -> char {
    match state {
        RunState::Waiting => 'w',
        RunState::Forked => 'f',
        RunState::Running => 'r',
        RunState::Success => 'S',
        RunState::Failed => 'F',
        RunState::Killed => 'K',
        RunState::Lost => 'L',
    }
}

/// A runner that this test started; killed if it is dropped alive.
pub(super) struct Runner {
    child: Child,
}

impl Runner {
    pub(super) fn pid(&self) -> i32 {
        self.child.id() as i32
    }

    pub(super) fn ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().unwrap()
    }

    pub(super) fn wait(&mut self) -> ExitStatus {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.ended() {
                return status;
            }
            assert!(Instant::now() < deadline, "runner {} does not end", self.pid());
            std::thread::sleep(LOOK);
        }
    }

    /// Kills it, and returns when it is gone.
    pub(super) fn kill(mut self) {
        self.child.kill().unwrap();
        let status = self.child.wait().unwrap();
        assert_eq!(status.signal(), Some(libc::SIGKILL), "it had ended before: {status}");
    }
}

impl Drop for Runner {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Waits until `is` says so.
pub(super) fn wait_for(what: &str, mut is: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !is() {
        assert!(Instant::now() < deadline, "{what}");
        std::thread::sleep(LOOK);
    }
}

/// Sends SIGKILL to a process, which may have ended.
pub(super) fn kill_9(pid: i32) {
    match kill(Pid::from_raw(pid), Signal::SIGKILL) {
        Ok(()) | Err(Errno::ESRCH) => {}
        Err(errno) => panic!("kill {pid}: {errno}"),
    }
}

/// Now, CLOCK_BOOTTIME in nanoseconds.
pub(super) fn boot_nanos() -> u64 {
    dewar::sys::clock::boot_nanos()
}
