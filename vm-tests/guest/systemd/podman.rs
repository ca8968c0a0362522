//! The daemon as process 1 of a container, with the flags of docs/docker.md: what each of them gives, and what is refused
//! without. The container has the programs of this machine in place of an image's.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use tonic::{Code, Status};

use super::sleeper;
use crate::client::Client;
use crate::machine::CGROUP2;
use crate::support::{Scene, p, task, wait_until};

const DEWAR: &str = "/usr/bin/dewar";

/// What podman and the runtimes keep on this machine, whatever is asked for.
const KEPT: [&str; 6] = [
    "/dev/shm/libpod_lock",
    "/run/containers",
    "/run/crun",
    "/run/libpod",
    "/run/netns",
    "/run/lock/netavark.lock",
];

/// A container, until it is dropped.
struct Container {
    scene: Scene,
    podman: Child,
    client: Client,
}

impl Container {
    /// Runs the daemon with `flags` for podman, started by `shell` if that is something.
    fn run(flags: &[&str], shell: &str) -> Self {
        let scene = Scene::new();
        let root = scene.path("rootfs");
        for name in ["usr", "etc", "proc", "dev", "sys", "tmp", "run", "var"] {
            fs::create_dir_all(root.join(name)).unwrap();
        }
        for name in ["bin", "sbin", "lib", "lib64"] {
            symlink(format!("usr/{name}"), root.join(name)).unwrap();
        }
        let here = scene.path("").display().to_string();
        let mut run = podman(&scene);
        run.args(["run", "--name", scene.id(), "--network=none", "--log-driver=none"]).args(flags);
        for (path, option) in [("/usr", "ro"), ("/etc", "ro"), (here.trim_end_matches('/'), "rw")] {
            run.args(["--volume", &format!("{path}:{path}:{option}")]);
        }
        run.arg("--rootfs").arg(&root);
        if !shell.is_empty() {
            run.args(["/bin/sh", "-c", shell, "sh"]);
        }
        let socket = scene.path("dewar.sock");
        run.args([DEWAR, "serve", "--root"]).arg(scene.root()).arg("--address").arg(&socket);
        let log = fs::File::create(scene.path("log")).unwrap();
        run.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
        let mut podman = run.spawn().unwrap();
        let client = Client::of(&socket);
        wait_until("the container is not healthy", || {
            let ended = podman.try_wait().unwrap();
            let log = || fs::read_to_string(scene.path("log")).unwrap();
            assert!(ended.is_none(), "{ended:?}: {}", log());
            // It is not to be kept from starting by being asked all the time.
            if !socket.exists() {
                return false;
            }
            let mut health = Command::new(DEWAR);
            health.args(["health", "--address"]).arg(&socket).stderr(Stdio::null());
            health.status().unwrap().success()
        });
        Self { scene, podman, client }
    }

    /// Tries to launch a task with a limit.
    fn launch(&self) -> Result<(), Status> {
        self.client.launch(self.scene.id(), &sleeper(), false)
    }

    /// Runs a task with a limit, and gives where on this machine its leaf is.
    #[track_caller]
    fn assert_limited(&self) -> PathBuf {
        self.launch().unwrap();
        let run = self.client.running(self.scene.id());
        // The number is that of the container's own namespace; the sandbox is this machine's.
        let told = PathBuf::from(run.sandbox).join(".logs/a/0/stdout");
        let limit = (32 << 20).to_string();
        let mut text = String::new();
        wait_until("the run does not tell its limit", || {
            text = fs::read_to_string(&told).unwrap_or_default();
            text.lines().nth(1).is_some_and(|line| line == limit)
        });
        let leaf = find(CGROUP2.into(), &format!("tasks/{}/a.0", self.scene.id())).unwrap();
        self.client.kill(self.scene.id());
        leaf
    }

    /// The same where limits are refused: by name, with `why`; and a task without cgroup runs.
    #[track_caller]
    fn assert_refused(&self, reason: &str, why: &str) {
        let refused = self.launch().unwrap_err();
        assert_eq!(refused.code(), Code::FailedPrecondition, "{refused:?}");
        let details = tonic_types::StatusExt::get_error_details(&refused);
        assert_eq!(details.error_info().unwrap().reason, reason, "{refused:?}");
        assert!(refused.message().contains(why), "{refused:?}");
        self.client.launch(self.scene.id(), &task([p("a", "exec sleep 600")]), true).unwrap();
        self.client.kill(self.scene.id());
    }

    /// Sends the daemon SIGTERM, and gives the exit status of the container.
    #[track_caller]
    fn stop(&mut self) -> i32 {
        let stopped = podman(&self.scene).args(["stop", self.scene.id()]).output().unwrap();
        assert!(stopped.status.success(), "{stopped:?}");
        self.podman.wait().unwrap().code().unwrap()
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        let remove = ["rm", "--force", "--ignore", "--time=0", self.scene.id()];
        let _ = podman(&self.scene).args(remove).output();
        let _ = self.podman.kill();
        let _ = self.podman.wait();
        let _ = Command::new("systemctl").args(["stop", "machine.slice"]).output();
        for kept in KEPT {
            let _ = fs::remove_dir_all(kept).or_else(|_| fs::remove_file(kept));
        }
    }
}

/// podman, with its own files in the scene.
fn podman(scene: &Scene) -> Command {
    let mut podman = Command::new("podman");
    podman.args(["--runtime=crun", "--storage-driver=vfs", "--events-backend=none"]);
    podman.arg("--root").arg(scene.path("storage")).arg("--runroot").arg(scene.path("runroot"));
    podman
}

/// A directory beneath `dir` whose path ends so.
fn find(dir: PathBuf, end: &str) -> Option<PathBuf> {
    if dir.ends_with(end) {
        return Some(dir);
    }
    let entries = fs::read_dir(dir).ok()?.flatten().map(|entry| entry.path());
    entries.filter(|path| path.is_dir()).find_map(|path| find(path, end))
}

/// attack 57: podman mounts the container's cgroups so that they cannot be written, unless it is told otherwise.
#[test]
fn without_flags_a_limit_is_refused_by_name() {
    let mut container = Container::run(&[], "");

    container.assert_refused("NO_CGROUP", "/sys/fs/cgroup/supervisor is on a read-only mount");

    assert_eq!(container.stop(), 0);
}

/// attack 59: within the container's own limits.
#[track_caller]
fn assert_held_within_the_container(flags: &[&str]) {
    let container = Container::run(flags, "");

    let leaf = container.assert_limited();

    let machine = format!("{CGROUP2}/machine.slice/libpod-");
    assert!(leaf.to_str().unwrap().starts_with(&machine), "{}", leaf.display());
}

#[test]
fn with_its_cgroups_unmasked_limits_are_held() {
    assert_held_within_the_container(&["--security-opt=unmask=/sys/fs/cgroup"]);
}

#[test]
fn as_if_it_were_systemd_limits_are_held() {
    assert_held_within_the_container(&["--systemd=always"]);
}

#[test]
fn privileged_limits_are_held() {
    assert_held_within_the_container(&["--privileged", "--cgroupns=private"]);
}

/// Outside of the container's limits, on the host: as docs/docker.md warns.
#[test]
fn with_the_cgroups_of_the_host_limits_are_held_outside_of_the_container() {
    let flags = ["--cgroupns=host", "--volume=/sys/fs/cgroup:/sys/fs/cgroup:rw"];
    let container = Container::run(&flags, "");

    let leaf = container.assert_limited();

    assert!(leaf.starts_with("/sys/fs/cgroup/dewar/tasks"), "{}", leaf.display());
}

/// A shell, or an init of podman's, stays where no process may be: cgroup-v2.rst, "No Internal Process Constraint".
#[test]
fn behind_another_process_1_a_limit_is_refused_by_name() {
    let flags = ["--security-opt=unmask=/sys/fs/cgroup"];
    let container = Container::run(&flags, r#""$@"; exit $?"#);

    container.assert_refused("UNENFORCEABLE", "/sys/fs/cgroup has processes of its own");
}

/// What a task leaves behind becomes process 1's, and nobody else would wait for it.
#[test]
fn orphans_are_waited_for_and_the_end_of_the_daemon_is_that_of_the_container() {
    let mut container = Container::run(&["--security-opt=unmask=/sys/fs/cgroup"], "");
    let (id, gate) = (container.scene.id().to_owned(), container.scene.gate("gate"));
    let orphans = "for i in 1 2 3 4 5; do (sleep 0 &); done";
    let looks = "grep -q '^State:.Z' /proc/[0-9]*/status";
    let waits =
        format!("for i in $(seq 50); do {looks} || {{ echo none; break; }}; sleep 0.1; done");
    let held = task([p("a", format!("{orphans}; {waits}; echo done; {}", gate.hold()))]);

    container.client.launch(&id, &held, false).unwrap();

    let sandbox = PathBuf::from(container.client.running(&id).sandbox);
    let told = || fs::read_to_string(sandbox.join(".logs/a/0/stdout")).unwrap_or_default();
    wait_until("it is not done", || told().ends_with("done\n"));
    assert_eq!(told(), "none\ndone\n", "zombies stay");
    gate.open();
    assert_eq!(container.stop(), 0);
}
