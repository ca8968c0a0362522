//! attack 34: a quota that is used up while dewar writes. All that is started here is without CAP_SYS_RESOURCE, with which ext4 lets
//! root pass its limits.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};

use dewar::proto::{DiskMethod, ProcessState, TaskState, TaskView};
use serde_json::json;
use tonic::Code;
use tonic_types::StatusExt;

use crate::client::Client;
use crate::disk::{Amount, Disk, Project};
use crate::machine::start_without_rights_to_resources;
use crate::support::{DEADLINE, Gate, Scene, Task, p, task, wait_until};

/// MiB of a disk.
const SIZE: u64 = 32;

/// Bytes of a block of its file system.
const BLOCK: u64 = 4096;

/// Blocks, and inodes, with which a task is accepted in any case.
const MUCH: u64 = 12;

/// A daemon of a scene, until it is dropped.
struct Daemon {
    process: Child,
    client: Client,
    log: PathBuf,
}

impl Daemon {
    #[track_caller]
    fn of(scene: &Scene) -> Self {
        let (socket, log) = (scene.path("dewar.sock"), scene.path("daemon.log"));
        let mut command =
            scene.command(["serve", "--web", "127.0.0.1:0", "--disk-interval", "100ms"]);
        command.arg("--root").arg(scene.root()).arg("--address").arg(&socket);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(File::create(&log).unwrap());
        let daemon = Self { process: command.spawn().unwrap(), client: Client::of(&socket), log };
        wait_until("the daemon does not serve", || {
            daemon.log().contains(" web=") && UnixStream::connect(&socket).is_ok()
        });
        daemon
    }

    fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap()
    }

    /// Whether the metrics say of a task that it waits for the disk.
    #[track_caller]
    fn waits_for_disk(&self, id: &str) -> bool {
        let log = self.log();
        let address = log.rsplit_once(" web=").unwrap().1.split_whitespace().next().unwrap();
        let port = address.rsplit_once(':').unwrap().1.parse().unwrap();
        let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
        stream.set_read_timeout(Some(DEADLINE)).unwrap();
        write!(stream, "GET /metrics HTTP/1.0\r\nHost: localhost:{port}\r\n\r\n").unwrap();
        let mut metrics = String::new();
        stream.read_to_string(&mut metrics).unwrap();
        let of_task = format!(r#"task_id="{id}""#);
        let mut lines = metrics.lines().filter(|line| line.contains(&of_task));
        let line = lines.find(|line| line.starts_with("dewar_task_waits_for_disk{"));
        line.unwrap_or_else(|| panic!("nothing of {id}: {metrics}")).ends_with(" 1")
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Two processes, one after the other; each says that it has begun, also in the file `ran`, and waits for its gate.
struct Chain {
    ran: PathBuf,
    begun: Gate,
    gates: [Gate; 2],
}

impl Chain {
    fn of(scene: &Scene) -> Self {
        let gates = ["a", "b"].map(|name| scene.gate(name));
        Self { ran: scene.path("ran"), begun: scene.gate("begun"), gates }
    }

    fn task(&self) -> Task {
        let [a, b] = &self.gates;
        let process = |name: &str, gate: &Gate| {
            let ran = format!("echo {name} >> {}", self.ran.display());
            p(name, format!("{ran}; {}; {}", self.begun.tell(), gate.hold()))
        };
        task([process("a", a), process("b", b)]).order(["a", "b"])
    }

    /// `a` runs, and `limit` is reached: it ends, which is told, and `b` waits. Once there is no limit any more `b` runs, and
    /// whatever ran has run once.
    #[track_caller]
    fn waits_at(&self, limit: Amount, project: &Project<'_>, daemon: &Daemon, id: &str) {
        let [a, b] = &self.gates;
        project.limit(limit);
        assert!(!daemon.waits_for_disk(id));

        a.open();
        wait_until("it does not wait", || daemon.waits_for_disk(id));
        assert_eq!(runs(&daemon.client.get(id))[0], [ProcessState::Success]);
        assert!(daemon.log().contains("the task waits for its disk"), "{}", daemon.log());
        assert_eq!(fs::read_to_string(&self.ran).unwrap(), "a\n");

        project.limit(Amount::UNLIMITED);
        self.begun.wait();
        wait_until("it waits on", || !daemon.waits_for_disk(id));
        b.open();
        let ended = daemon.client.wait(id);
        assert_eq!(ended.state(), TaskState::Success, "{ended:?}");
        assert_eq!(runs(&ended), [[ProcessState::Success], [ProcessState::Success]]);
        assert_eq!(fs::read_to_string(&self.ran).unwrap(), "a\nb\n");
    }
}

/// States of the runs of each process.
fn runs(task: &TaskView) -> Vec<Vec<ProcessState>> {
    let of =
        |process: &dewar::proto::ProcessView| process.runs.iter().map(|run| run.state()).collect();
    task.processes.iter().map(of).collect()
}

/// A limit of what there is already, in bytes.
fn full(used: Amount) -> Amount {
    Amount { bytes: used.bytes, ..Amount::UNLIMITED }
}

/// The same in inodes.
fn full_of_inodes(used: Amount) -> Amount {
    Amount { inodes: used.inodes, ..Amount::UNLIMITED }
}

#[test]
fn nothing_is_launched_or_begun_beyond_a_quota_of_bytes_and_what_runs_goes_on() {
    a_root_is_full(full);
}

#[test]
fn nothing_is_launched_or_begun_beyond_a_quota_of_inodes_and_what_runs_goes_on() {
    a_root_is_full(full_of_inodes);
}

fn a_root_is_full(limit: impl Fn(Amount) -> Amount) {
    start_without_rights_to_resources();
    let scene = Scene::new();
    let disk = Disk::new(&scene.path("disk"), SIZE);
    let project = disk.mount_with_project(&scene.root());
    project.begin_at(&scene.root());
    let daemon = Daemon::of(&scene);
    let chain = Chain::of(&scene);
    daemon.client.launch(scene.id(), &chain.task(), false).unwrap();
    chain.begun.wait();
    let limit = limit(project.used());

    project.limit(limit);
    let before = tree(&scene.root());
    let refused = format!("{}.refused", scene.id());
    let error = daemon.client.launch(&refused, &task([p("a", "true")]), false).unwrap_err();
    let reason = error.get_error_details().error_info().unwrap().reason.clone();
    assert_eq!((error.code(), reason.as_str()), (Code::ResourceExhausted, "NO_SPACE"), "{error:?}");
    assert!(error.message().contains("Disk quota exceeded"), "{error:?}");
    assert_eq!(tree(&scene.root()), before, "something is left");
    assert_eq!(scene.dewar(&["status", &refused]).status, Some(1), "it is known");

    chain.waits_at(limit, &project, &daemon, scene.id());
    // What was refused was not begun, so that it can be asked for again.
    daemon.client.launch(&refused, &task([p("a", "true")]), false).unwrap();
    assert_eq!(daemon.client.wait(&refused).state(), TaskState::Success);
    scene.wait_until_led_by_nobody();
}

/// All that is in a directory.
fn tree(dir: &Path) -> BTreeSet<PathBuf> {
    let mut found = BTreeSet::new();
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(tree(&path));
        }
        found.insert(path);
    }
    found
}

/// The records of every end have their space since before the run began, whoever writes them.
#[test]
fn beyond_a_quota_a_task_is_led_on_and_killed() {
    start_without_rights_to_resources();
    let scene = Scene::new();
    let disk = Disk::new(&scene.path("disk"), SIZE);
    let project = disk.mount_with_project(&scene.root());
    project.begin_at(&scene.root());
    let names: Vec<String> = (0..8).map(|number| format!("p{number}")).collect();
    let mut running = scene.spawn(&task(names.iter().map(|name| p(name, "exec sleep 600"))));
    for name in &names {
        running.wait_until_running(name, 0);
    }

    project.limit(project.used());
    scene.kill_runner(running);
    scene.kill(&["--wait", "100ms"]);
    scene.wait_until_led_by_nobody();

    let ended = scene.status();
    assert_eq!(ended["state"], "TASK_STATE_KILLED", "{ended}");
    for process in ended["processes"].as_array().unwrap() {
        let states: Vec<_> =
            process["runs"].as_array().unwrap().iter().map(|run| &run["state"]).collect();
        assert_eq!(states, ["PROCESS_STATE_KILLED"], "{ended}");
    }
}

/// Wherever the quota ends a launch, it is refused, and nothing is left of it; or it was accepted, and then it is done.
#[test]
fn a_launch_is_refused_or_done_however_little_is_left_of_a_quota() {
    start_without_rights_to_resources();
    let scene = Scene::new();
    let disk = Disk::new(&scene.path("disk"), SIZE);
    let project = disk.mount_with_project(&scene.root());
    project.begin_at(&scene.root());
    let daemon = Daemon::of(&scene);
    // What is made once for all tasks is there.
    let launch = |suffix: &str| {
        let ran = scene.path(suffix);
        let id = format!("{}.{suffix}", scene.id());
        let once = task([p("a", format!("echo >> {}", ran.display()))]);
        (daemon.client.launch(&id, &once, false), id, ran)
    };
    let done = |id: &str, ran: &Path| {
        let ended = daemon.client.wait(id);
        assert_eq!(ended.state(), TaskState::Success, "{ended:?}");
        assert_eq!(fs::read_to_string(ran).unwrap(), "\n", "{id}");
    };
    let (launched, id, ran) = launch("first");
    launched.unwrap();
    done(&id, &ran);

    for (name, limit) in [("bytes", full as fn(Amount) -> Amount), ("inodes", full_of_inodes)] {
        let mut refusals = 0;
        for left in 0..MUCH {
            let Amount { bytes, inodes } = project.used();
            project.limit(limit(Amount { bytes: bytes + left * BLOCK, inodes: inodes + left }));
            let before = tree(&scene.root());
            let (launched, id, ran) = launch(&format!("{name}.{left}"));
            if let Err(refused) = &launched {
                assert_eq!(refused.code(), Code::ResourceExhausted, "{refused:?}");
                assert_eq!(tree(&scene.root()), before, "left by {id}: {refused:?}");
                refusals += 1;
            }
            project.limit(Amount::UNLIMITED);
            match launched {
                Ok(()) => done(&id, &ran),
                Err(_) => assert!(!ran.exists(), "{id}"),
            }
        }
        assert!((3..MUCH - 3).contains(&refusals), "{refusals} were refused for want of {name}");
    }
    scene.wait_until_led_by_nobody();
}

/// A run whose sandbox has no room for its logs is no run yet.
#[test]
fn no_run_begins_beyond_a_quota_of_its_sandbox_and_what_runs_goes_on() {
    start_without_rights_to_resources();
    let scene = Scene::new();
    let disk = Disk::new(&scene.path("disk"), SIZE);
    let (project, sandbox) = sandbox_of_a_project(&scene, &disk);
    let daemon = Daemon::of(&scene);
    let chain = Chain::of(&scene);
    daemon.client.launch_in(scene.id(), &chain.task(), &sandbox).unwrap();
    chain.begun.wait();

    chain.waits_at(full(project.used()), &project, &daemon, scene.id());
    scene.wait_until_led_by_nobody();
}

/// A sandbox that the project begins at.
fn sandbox_of_a_project<'a>(scene: &Scene, disk: &'a Disk) -> (Project<'a>, PathBuf) {
    let mount = scene.path("mount");
    let project = disk.mount_with_project(&mount);
    let sandbox = mount.join("sandbox");
    fs::create_dir(&sandbox).unwrap();
    project.begin_at(&sandbox);
    (project, sandbox)
}

/// A run that fills its sandbox, and goes on writing to a log that dewar has no space for.
#[test]
fn a_run_that_uses_up_the_quota_of_its_sandbox_loses_output_and_nothing_else() {
    start_without_rights_to_resources();
    let scene = Scene::new();
    let disk = Disk::new(&scene.path("disk"), SIZE);
    let (project, sandbox) = sandbox_of_a_project(&scene, &disk);
    let daemon = Daemon::of(&scene);
    let (full, go) = (scene.gate("full"), scene.gate("go"));
    let error = scene.path("error");
    // Twice and more what a pipe holds.
    let lines = 40_000;
    let steps = [
        format!("head -c 2M /dev/zero > big 2> {}", error.display()),
        format!("yes line | head -n {lines}"),
        full.tell(),
        go.hold(),
        "rm big; echo again; exit 3".to_owned(),
    ];
    let logger = json!({ "mode": "rotate" });
    project.limit(Amount { bytes: 1 << 20, ..Amount::UNLIMITED });
    let fills = task([p("a", steps.join("; ")).with("logger", logger)]);
    daemon.client.launch_in(scene.id(), &fills, &sandbox).unwrap();

    full.wait();
    let own = fs::read_to_string(&error).unwrap();
    assert!(own.contains("Disk quota exceeded"), "{own}");
    assert_eq!(project.used().bytes, 1 << 20);
    go.open();
    let ended = daemon.client.wait(scene.id());

    assert_eq!(
        (ended.state(), runs(&ended)),
        (TaskState::Failed, vec![vec![ProcessState::Failed]])
    );
    assert_eq!(ended.processes[0].runs[0].exit_code, Some(3), "{ended:?}");
    let log = fs::read_to_string(sandbox.join(".logs/a/0/stdout")).unwrap();
    let head = &log[..log.len().min(200)];
    let (said, rest) = log.split_once(" bytes of stdout are missing here: EDQUOT]\n").expect(head);
    let missing: usize = said.strip_prefix("[dewar: ").expect(head).parse().unwrap();
    let kept = rest.strip_suffix("again\n").expect(head).len();
    assert_eq!(missing + kept, lines * "line\n".len(), "{head}");
    assert!(kept <= 64 << 10, "only what was in the pipe as space came: {kept}");
    scene.wait_until_led_by_nobody();
}

/// Ask 30: what is told of a sandbox with a project of its own is the kernel's account, and is what a walk finds.
#[test]
fn the_account_of_a_project_is_what_its_sandbox_takes() {
    let scene = Scene::new();
    let disk = Disk::new(&scene.path("disk"), SIZE);
    let (_project, sandbox) = sandbox_of_a_project(&scene, &disk);
    let daemon = Daemon::of(&scene);
    let (told, hold) = (scene.gate("told"), scene.gate("hold"));
    let fill = "mkdir -p d/e; head -c 300000 /dev/zero > d/e/f; ln d/e/f d/g; ln -s f d/e/l; sync";
    let fills = task([p("a", [fill, &told.tell(), &hold.hold()].join("; "))]);
    daemon.client.launch_in(scene.id(), &fills, &sandbox).unwrap();
    told.wait();
    let (bytes, inodes) = walked(&sandbox);

    let mut usage = None;
    wait_until("the account is not told", || {
        usage = daemon.client.disk(scene.id());
        usage.as_ref().is_some_and(|usage| usage.inodes == Some(inodes))
    });

    let usage = usage.unwrap();
    assert_eq!((usage.method(), usage.bytes, usage.incomplete), (DiskMethod::Quota, bytes, None));
    assert!(bytes >= 300_000, "{bytes}");
    hold.open();
    assert_eq!(daemon.client.wait(scene.id()).state(), TaskState::Success);
    scene.wait_until_led_by_nobody();
}

/// Bytes and inodes of all that is in a directory, and of itself.
fn walked(dir: &Path) -> (u64, u64) {
    let mut paths = tree(dir);
    paths.insert(dir.to_owned());
    let stats = paths.iter().map(|path| fs::symlink_metadata(path).unwrap());
    // A file counts once, however many names it has.
    let files: BTreeSet<_> = stats.map(|stat| (stat.ino(), stat.blocks())).collect();
    (files.iter().map(|(_, blocks)| blocks * 512).sum(), files.len() as u64)
}
