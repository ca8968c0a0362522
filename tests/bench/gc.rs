//! Garbage collection and the size of trees, beside rm(1) and du(1).

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use dewar::checkpoint::{Identity, Instant as At, Root, Writer, tasks};
use dewar::disk::Measure;
use dewar::proto::record::Kind;
use dewar::proto::{Identity as User, Launch, Process, Task};
use dewar::remove;
use dewar::state::{Event, Phase};
use dewar::task::TaskId;

use super::{DEWAR, against, time};

/// Tasks that are over.
const TASKS: usize = 10_000;
/// Directories of a large sandbox, and files in each.
const FILES: (usize, usize) = (1000, 1000);

/// Ten thousand tasks that are over, and a sandbox of a million files.
pub(super) fn gc(dir: &Path) {
    let (roots, trees) = (dir.join("gc"), dir.join("gc-trees"));
    let [root, copy] = ["root", "copy"].map(|name| tasks_in(&roots.join(name)));
    let rehearsed = time(|| dewar_gc(&root, &["--max-space", "0", "--dry-run"]));
    let measured = time(|| run("du", &["-s"], root.path()));
    let what = format!("{TASKS} finished tasks: `dewar gc --max-space --dry-run`, floor: `du -s`");
    against(&what, measured, rehearsed);
    let removed = time(|| dewar_gc(&root, &["--max-tasks", "0"]));
    let floor = time(|| run("rm", &["-rf"], copy.path()));
    against(&format!("{TASKS} finished tasks: `dewar gc`, floor: `rm -rf`"), floor, removed);

    large(&trees);
}

fn large(trees: &Path) {
    let root = Root::new(trees.join("root")).unwrap();
    root.create().unwrap();
    let id = over(&root, "large", 0);
    let (ours, copy) = (root.sandbox(&id), trees.join("copy"));
    [&ours, &copy].into_iter().for_each(|tree| fill(tree));
    let millions = FILES.0 * FILES.1;
    let measured = time(|| {
        let top = File::open(&ours).unwrap().into();
        let mut measure = Measure::directory(top).unwrap();
        while measure.go_on(1000).unwrap().is_none() {}
    });
    let floor = time(|| run("du", &["-s"], &copy));
    against(&format!("a sandbox of {millions} files: its size, floor: `du -s`"), floor, measured);
    let removed = time(|| remove::remove(&root, &id, true).unwrap());
    let floor = time(|| run("rm", &["-rf"], &copy));
    against("the same: its removal, floor: `rm -rf`", floor, removed);
}

fn fill(tree: &Path) {
    for n in 0..FILES.0 {
        let dir = tree.join(n.to_string());
        fs::create_dir_all(&dir).unwrap();
        (0..FILES.1).for_each(|m| drop(File::create(dir.join(m.to_string())).unwrap()));
    }
}

fn run(program: &str, arguments: &[&str], path: &Path) {
    let mut command = Command::new(program);
    command.args(arguments).arg(path).stdout(Stdio::null());
    assert!(command.status().unwrap().success());
}

fn dewar_gc(root: &Root, arguments: &[&str]) {
    let mut command = Command::new(DEWAR);
    command.args(["gc", "--keep-at-least", "0s", "--root"]).arg(root.path()).args(arguments);
    command.stdout(Stdio::null()).stderr(Stdio::null());
    assert!(command.status().unwrap().success());
}

/// A root with tasks that are over.
fn tasks_in(path: &Path) -> Root {
    let root = Root::new(path).unwrap();
    root.create().unwrap();
    (0..TASKS).for_each(|n| drop(over(&root, &format!("t{n}"), 1)));
    root
}

/// A task that is over, with so many files in its sandbox, and the logs of one run.
fn over(root: &Root, id: &str, files: usize) -> TaskId {
    let id = TaskId::new(id).unwrap();
    let process =
        Process { name: "p".to_owned(), cmdline: "true".to_owned(), ..Process::default() };
    let task = Task { name: "t".to_owned(), processes: vec![process], ..Task::default() };
    let launch = Launch {
        task_id: id.to_string(),
        task: Some(task),
        sandbox: root.sandbox(&id).display().to_string(),
        identity: Some(User { user: "root".to_owned(), ..User::default() }),
        loss_limit: 100,
        ..Launch::default()
    };
    root.create_checkpoint(&id).unwrap();
    let mut writer = Writer::create(root, Identity::runner(id.clone())).unwrap();
    let phases = [Phase::Active, Phase::Cleaning, Phase::Finalizing, Phase::Success];
    let phases = phases.map(|phase| Event::Entered(phase).to_kind());
    for kind in [Kind::Launch(launch.clone())].into_iter().chain(phases) {
        writer.append(kind, At { boot_nanos: 1, unix_nanos: 1 }).unwrap();
    }
    writer.flush().unwrap();
    let content = serde_json::to_vec(&launch).unwrap();
    fs::write(root.task(dewar::checkpoint::paths::Place::Active, &id), content).unwrap();
    tasks::finish(root, &id).unwrap();
    let logs: PathBuf = root.sandbox(&id).join(".logs/p/0");
    fs::create_dir_all(&logs).unwrap();
    ["stdout", "stderr"].iter().for_each(|log| fs::write(logs.join(log), "a line\n").unwrap());
    (0..files).for_each(|n| fs::write(root.sandbox(&id).join(n.to_string()), "content").unwrap());
    id
}
