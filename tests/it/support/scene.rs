//! A scene: a root, a sandbox and a task id of its own, and the commands that are given in it.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use dewar::checkpoint::{Identity, Root, lock};
use dewar::task::TaskId;
use serde_json::Value;

use super::DEADLINE;
use super::follow::{Finished, Following};
use super::gate::Gate;
use super::leak;
use super::lines::Lines;
use super::process::{Pid, is_stopped};
use super::task::Task;
use super::time::wait_until;

/// The program under test; its runner is beside it. The tests in `vm-tests/guest` are of another package, to which cargo
/// does not tell where it is: in the guest it is installed.
pub(crate) const DEWAR: &str = match option_env!("CARGO_BIN_EXE_dewar") {
    Some(built) => built,
    None => "/usr/bin/dewar",
};

/// Where a scene is.
#[derive(Debug)]
pub(crate) struct Place {
    /// Holds the root, the sandbox and whatever else the test makes.
    pub(crate) dir: PathBuf,
    /// Id of its task.
    pub(crate) id: String,
}

impl Place {
    /// Whether a task id is of this scene: its own, or one with a suffix after a dot.
    pub(super) fn owns(&self, id: &str) -> bool {
        id.strip_prefix(&self.id).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
    }

    pub(super) fn root(&self) -> PathBuf {
        self.dir.join("root")
    }
}

/// A root of its own. When it is dropped, nothing may be left of what was started in it.
pub(crate) struct Scene {
    place: Arc<Place>,
}

/// What a command that was waited for has said.
#[derive(Debug)]
pub(crate) struct Output {
    /// Exit status; `None` if it died by a signal.
    pub(crate) status: Option<i32>,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Scene {
    pub(crate) fn new() -> Self {
        Self::beneath(&std::env::temp_dir())
    }

    /// A scene of very many files, on a disk of memory where there is one.
    pub(crate) fn of_many_files() -> Self {
        let memory = Path::new("/dev/shm");
        if memory.is_dir() { Self::beneath(memory) } else { Self::new() }
    }

    fn beneath(parent: &Path) -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let (process, count) = (std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let id = format!("it-{process}-{count}");
        // Canonical: dewar follows no link into a sandbox.
        let dir = fs::canonicalize(parent).unwrap().join(format!("dewar-{id}"));
        fs::create_dir(&dir).unwrap();
        fs::set_permissions(&dir, PermissionsExt::from_mode(0o755)).unwrap();
        Self { place: Arc::new(Place { dir, id }) }
    }

    /// Id of its task.
    pub(crate) fn id(&self) -> &str {
        &self.place.id
    }

    pub(crate) fn root(&self) -> PathBuf {
        self.place.root()
    }

    pub(crate) fn sandbox(&self) -> PathBuf {
        self.path("sandbox")
    }

    /// A path outside of root and sandbox.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.place.dir.join(name)
    }

    /// Makes a file outside of root and sandbox.
    pub(crate) fn file(&self, name: &str, content: impl AsRef<[u8]>) -> PathBuf {
        let path = self.path(name);
        fs::write(&path, content).unwrap();
        path
    }

    pub(crate) fn gate(&self, name: &str) -> Gate {
        Gate::new(self.path(name))
    }

    /// A file in the sandbox, as text.
    #[track_caller]
    pub(crate) fn read(&self, name: &str) -> String {
        let path = self.sandbox().join(name);
        fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
    }

    /// Directory of the logs of a run.
    pub(crate) fn logs(&self, process: &str, run: u32) -> PathBuf {
        self.sandbox().join(".logs").join(process).join(run.to_string())
    }

    /// What a run wrote to its standard output.
    #[track_caller]
    pub(crate) fn stdout(&self, process: &str, run: u32) -> String {
        let path = self.logs(process, run).join("stdout");
        fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
    }

    /// The stream of its runner.
    pub(crate) fn stream(&self) -> PathBuf {
        self.root().join("checkpoints").join(self.id()).join("runner")
    }

    /// Cgroup of the task, while it is there.
    pub(crate) fn cgroup(&self) -> Option<PathBuf> {
        let paths = leak::bases().iter().map(|base| base.join("tasks").join(self.id()));
        paths.into_iter().find(|path| path.exists())
    }

    /// Cgroup that its runs would have here, whether or not it is there now.
    #[track_caller]
    pub(crate) fn leaf(&self, run: &str) -> PathBuf {
        self.cgroup().expect("the cgroup of the task").join(run)
    }

    /// `dewar` with `arguments`, not started yet.
    pub(crate) fn command<A: AsRef<OsStr>>(
        &self,
        arguments: impl IntoIterator<Item = A>,
    ) -> Command {
        let mut command = Command::new(DEWAR);
        // Many daemons serve at one time; whose page it is that is on the default port, nobody knows.
        command.args(arguments).env("DEWAR_WEB", "off");
        command
    }

    /// Arguments of `dewar run` in this scene, before the file.
    pub(crate) fn run_arguments(&self) -> Vec<String> {
        let (root, sandbox) = (self.root(), self.sandbox());
        let arguments = ["run", "--root", root.to_str().unwrap(), "--task-id", self.id()];
        let sandbox = ["--sandbox", sandbox.to_str().unwrap()];
        arguments.into_iter().chain(sandbox).map(str::to_owned).collect()
    }

    /// `dewar run` of a task, with `more` arguments, and JSON as output; not started yet.
    pub(crate) fn run_command(&self, task: &Task, more: &[&str]) -> Command {
        let file = self.file("task.json", task.text());
        let mut command = self.command(self.run_arguments());
        command.args(["--output", "json"]).args(more).arg(file);
        command
    }

    /// Runs a task to its end.
    #[track_caller]
    pub(crate) fn run(&self, task: &Task) -> Finished {
        self.run_with(task, &[])
    }

    /// Runs a task to its end, with `more` arguments.
    #[track_caller]
    pub(crate) fn run_with(&self, task: &Task, more: &[&str]) -> Finished {
        self.spawn_with(task, more).finish()
    }

    /// Starts to run a task.
    #[track_caller]
    pub(crate) fn spawn(&self, task: &Task) -> Following {
        self.spawn_with(task, &[])
    }

    /// Starts to run a task, with `more` arguments.
    #[track_caller]
    pub(crate) fn spawn_with(&self, task: &Task, more: &[&str]) -> Following {
        self.follow(self.run_command(task, more))
    }

    /// Starts to run a task, until its first coordinator has stopped itself at the failpoint `point`; gives that one, too.
    #[track_caller]
    pub(crate) fn spawn_stopped(&self, task: &Task, point: &str) -> (Following, Pid) {
        let token = self.file("token", "");
        let mut command = self.run_command(task, &[]);
        command.env("DEWAR_FAILPOINT", format!("{point}=stop@{}", token.display()));
        let following = self.follow(command);
        wait_until("the coordinator does not stop", || !token.exists());
        (following, stopped_child(self.runner().number()))
    }

    /// `dewar resume` of the task.
    #[track_caller]
    pub(crate) fn resume(&self) -> Following {
        self.follow(self.resume_command())
    }

    /// The same, with a runner that has stopped itself at the failpoint `point`; gives that one, too.
    #[track_caller]
    pub(crate) fn resume_stopped(&self, point: &str) -> (Following, Pid) {
        let token = self.file("token", "");
        let mut command = self.resume_command();
        command.env("DEWAR_FAILPOINT", format!("{point}=stop@{}", token.display()));
        let following = self.follow(command);
        wait_until("the runner does not stop", || !token.exists());
        let runner = stopped_child(following.pid().number());
        (following, runner)
    }

    fn resume_command(&self) -> Command {
        let root = self.root();
        let root = root.to_str().unwrap();
        self.command(["resume", self.id(), "--root", root, "--output", "json"])
    }

    /// Starts a command that prints events.
    #[track_caller]
    pub(crate) fn follow(&self, command: Command) -> Following {
        Following::start(command, self.place.clone())
    }

    /// Starts a command whose output is read line by line.
    #[track_caller]
    pub(crate) fn lines(&self, command: Command) -> Lines {
        Lines::start(command, self.place.clone())
    }

    /// `dewar COMMAND … --root ROOT`, to its end.
    #[track_caller]
    pub(crate) fn dewar(&self, arguments: &[&str]) -> Output {
        let mut command = self.command(arguments);
        command.arg("--root").arg(self.root());
        self.output(command)
    }

    /// A command, to its end, with nothing on its standard input.
    #[track_caller]
    pub(crate) fn output(&self, mut command: Command) -> Output {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        // Files, not pipes: a runner that is left behind keeps them open, and nobody waits for it.
        let (out, err) = (format!("out.{count}"), format!("err.{count}"));
        let create = |name: &str| File::create(self.path(name)).unwrap();
        command.stdin(Stdio::null()).stdout(create(&out)).stderr(create(&err));
        let mut child = command.spawn().unwrap();
        if !Pid::of(child.id().cast_signed()).ends_within(DEADLINE) {
            let _ = child.kill();
            panic!("{command:?} does not end\n{}", self.diagnosis());
        }
        let status = child.wait().unwrap().code();
        let read = |name: &str| {
            let mut bytes = Vec::new();
            File::open(self.path(name)).unwrap().read_to_end(&mut bytes).unwrap();
            String::from_utf8_lossy(&bytes).into_owned()
        };
        Output { status, stdout: read(&out), stderr: read(&err) }
    }

    /// What `dewar status` says of the task.
    #[track_caller]
    pub(crate) fn status(&self) -> Value {
        let told = self.dewar(&["status", self.id(), "--output", "json"]);
        assert_eq!(told.status, Some(0), "{told:?}");
        serde_json::from_str(&told.stdout).unwrap()
    }

    /// Asks for the end of the task.
    #[track_caller]
    pub(crate) fn kill(&self, how: &[&str]) {
        let told = self.dewar(&[&["kill", self.id()], how].concat());
        assert_eq!(told.status, Some(0), "{told:?}");
    }

    /// The runner that holds the task.
    #[track_caller]
    pub(crate) fn runner(&self) -> Pid {
        let status = self.status();
        let pid = status["runnerPid"].as_i64().unwrap_or_else(|| panic!("no runner: {status}"));
        Pid::of(i32::try_from(pid).unwrap())
    }

    /// Kills the runner, and first whoever follows the task: that would start another one.
    #[track_caller]
    pub(crate) fn kill_runner(&self, following: Following) {
        let runner = self.runner();
        drop(following);
        runner.kill();
    }

    /// Waits until another runner than `before` holds the task.
    #[track_caller]
    pub(crate) fn wait_until_led_by_another(&self, before: &Pid) {
        let root = Root::new(self.root()).unwrap();
        let stream = Identity::runner(TaskId::new(self.id()).unwrap());
        wait_until("no other runner comes", || {
            let leader = lock::holder(&root, &stream).unwrap().and_then(|holder| holder.pid);
            leader.is_some_and(|leader| leader != before.number())
        });
    }

    /// Waits until it is known that the last run of a process runs, which its command may be ahead of.
    #[track_caller]
    pub(crate) fn wait_until_known_to_run(&self, process: &str) {
        wait_until("it is not known to run", || {
            let status = self.status();
            let is_it = |of: &&Value| of["name"] == process;
            let of = status["processes"].as_array().unwrap().iter().find(is_it);
            of.is_some_and(|of| of["state"] == "PROCESS_STATE_RUNNING")
        });
    }

    /// Waits until no runner holds the task: one that has told its end may still file it away.
    #[track_caller]
    pub(crate) fn wait_until_led_by_nobody(&self) {
        let root = Root::new(self.root()).unwrap();
        let stream = Identity::runner(TaskId::new(self.id()).unwrap());
        while let Some(holder) = lock::holder(&root, &stream).unwrap() {
            if let Some(runner) = holder.pid.and_then(Pid::find) {
                runner.wait();
            }
        }
    }

    /// The records of the runner's stream.
    #[track_caller]
    pub(crate) fn records(&self) -> Vec<Value> {
        let mut command = self.command(["read", "--records"]);
        command.arg(self.stream());
        let told = self.output(command);
        assert_eq!(told.status, Some(0), "{told:?}");
        told.stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    /// What there is to see of a scene that hangs.
    pub(crate) fn diagnosis(&self) -> String {
        diagnosis(&self.place)
    }
}

/// What there is to see of a scene that hangs: the processes of the machine, and the task as its stream tells it.
pub(super) fn diagnosis(place: &Place) -> String {
    let said = |command: &mut Command| {
        let output = command.stdin(Stdio::null()).output();
        output.map(|output| {
            let text = [output.stdout, output.stderr].concat();
            String::from_utf8_lossy(&text).into_owned()
        })
    };
    let stream = place.root().join("checkpoints").join(&place.id).join("runner");
    let tree = said(Command::new("ps").args(["-e", "--forest", "-o", "pid,ppid,stat,wchan,args"]));
    let task = said(Command::new(DEWAR).arg("read").arg("--records").arg(stream));
    let (tree, task) = (tree.unwrap_or_default(), task.unwrap_or_default());
    let worth = |line: &&str| !line.contains("<defunct>") && !line.contains(" [");
    let tree: Vec<&str> = tree.lines().filter(worth).collect();
    let records: Vec<&str> = task.lines().collect();
    let last = &records[records.len().saturating_sub(40)..];
    format!("{}\n{}", tree.join("\n"), last.join("\n"))
}

impl Drop for Scene {
    fn drop(&mut self) {
        let left = leak::clear(&self.place);
        remove(&self.place.dir);
        if !std::thread::panicking() {
            assert!(left.is_empty(), "left behind by {}: {}", self.id(), left.join(", "));
        }
    }
}

#[track_caller]
fn stopped_child(pid: i32) -> Pid {
    let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap();
    let child = Pid::of(children.trim().parse().unwrap());
    wait_until("it does not stop", || is_stopped(child.number()));
    child
}

fn remove(dir: &Path) {
    if let Err(error) = fs::remove_dir_all(dir) {
        eprintln!("remove {}: {error}", dir.display());
    }
}
