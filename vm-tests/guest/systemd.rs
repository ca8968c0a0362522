//! On a machine whose process 1 is systemd: units, users' managers, containers.

/// The daemon as `contrib/systemd` installs it.
mod installed;
/// The daemon in a container of podman's, as docs/docker.md has it.
mod podman;

use std::ffi::OsStr;
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Value, json};

use crate::machine::{CGROUP2, read};
use crate::support::{Finished, Scene, Task, is_alive, p, task};

/// Tells where it is, and its limit of memory as its own cgroup has it.
const TELLS: &str = "read -r line < /proc/self/cgroup; echo \"$line\"; cat /sys/fs/cgroup${line#0::}/memory.max; id -un";

/// A task that sleeps until it is killed, in 32 MiB.
fn sleeper() -> Task {
    let sleeper = p("a", format!("{TELLS}; exec sleep 600"));
    task([sleeper.with("resources", json!({ "ram": "32MiB" }))])
}

fn limited() -> Task {
    task([p("a", TELLS).with("resources", json!({ "ram": "32MiB" }))])
}

#[track_caller]
fn systemctl(arguments: &[&str]) {
    let output = Command::new("systemctl").args(arguments).output().unwrap();
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
}

/// A command as a unit of systemd's with some properties, named as the task of the scene.
fn unit(scene: &Scene, properties: &[&str], command: &Command) -> Command {
    let mut unit = Command::new("systemd-run");
    unit.args(["--wait", "--pipe", "--quiet", "--collect", "--unit", scene.id()]);
    unit.args(properties.iter().flat_map(|property| ["--property", property]));
    unit.arg("--").arg(command.get_program()).args(command.get_args());
    unit
}

#[test]
fn a_unit_with_delegate_is_given_its_own_cgroup() {
    let scene = Scene::new();
    let run = scene.run_command(&limited(), &[]);

    let ended = scene.follow(unit(&scene, &["Delegate=yes"], &run)).finish();

    ended.assert("SUCCESS", &[("a", "S")]);
    let id = scene.id();
    let leaf = format!("0::/system.slice/{id}.service/tasks/{id}/a.0");
    assert_eq!(scene.stdout("a", 0), format!("{leaf}\n{}\nroot\n", 32 << 20));
}

/// attack 57: what systemd keeps for itself is left alone.
#[test]
fn a_unit_without_delegate_makes_its_cgroups_elsewhere() {
    let scene = Scene::new();
    let run = scene.run_command(&limited(), &[]);

    let ended = scene.follow(unit(&scene, &[], &run)).finish();

    ended.assert("SUCCESS", &[("a", "S")]);
    let leaf = format!("0::/dewar/tasks/{}/a.0", scene.id());
    assert_eq!(scene.stdout("a", 0), format!("{leaf}\n{}\nroot\n", 32 << 20));
}

/// attack 60: systemd reads its units anew, and becomes another process 1, while a task runs in what it delegated.
#[test]
fn a_task_does_not_notice_that_systemd_starts_anew() {
    let scene = Scene::new();
    let (told, hold) = (scene.gate("told"), scene.gate("hold"));
    let held = p("a", format!("{}; {}; {TELLS}", told.tell(), hold.hold()));
    let run = scene.run_command(&task([held.with("resources", json!({ "ram": "32MiB" }))]), &[]);

    let running = scene.follow(unit(&scene, &["Delegate=yes"], &run));
    told.wait();
    let cgroup = PathBuf::from(format!("{CGROUP2}/system.slice/{}.service", scene.id()));
    let before = read(&cgroup, "cgroup.subtree_control");
    systemctl(&["daemon-reload"]);
    systemctl(&["daemon-reexec"]);
    hold.open();

    running.finish().assert("SUCCESS", &[("a", "S")]);
    assert!(before.contains("memory"), "{before}");
    assert!(scene.stdout("a", 0).contains(&(32 << 20).to_string()));
}

/// attack 60: SIGTERM to dewar alone is a request, and the task ends in its order.
#[test]
fn a_task_ends_in_its_order_when_its_unit_is_stopped() {
    let scene = Scene::new();
    let told = scene.gate("told");
    let held = p("a", format!("{}; exec sleep 600", told.tell()));
    let run = scene.run_command(&task([held, p("last", "true").finalizer()]), &[]);
    let running = scene.follow(unit(&scene, &["Delegate=yes", "KillMode=process"], &run));
    told.wait();

    systemctl(&["stop", &format!("{}.service", scene.id())]);

    running.finish().assert("KILLED", &[("a", "K"), ("last", "S")]);
}

/// attack 60: as docs/hosts.md promises for `--detach` with `KillMode=process`.
#[test]
fn a_detached_task_goes_on_when_its_unit_is_stopped_and_ends_when_it_is_killed() {
    let scene = Scene::new();
    let told = scene.gate("told");
    let held = task([p("a", format!("echo $$ > pid; {}; exec sleep 600", told.tell()))]);
    let run = scene.run_command(&held, &["--detach"]);
    let mut unit = Command::new("systemd-run");
    unit.args(["--quiet", "--collect", "--remain-after-exit", "--unit", scene.id()]);
    unit.args(
        ["Type=oneshot", "Delegate=yes", "KillMode=process"].iter().flat_map(|it| ["-p", it]),
    );
    unit.arg("--").arg(run.get_program()).args(run.get_args());
    let started = scene.output(unit);
    assert_eq!(started.status, Some(0), "{started:?}");
    told.wait();
    let pid: i32 = scene.read("pid").trim().parse().unwrap();

    systemctl(&["stop", &format!("{}.service", scene.id())]);

    assert!(is_alive(pid), "the task did not go on");
    assert_eq!(scene.status()["state"], "TASK_STATE_ACTIVE");
    scene.kill(&["--wait", "0s"]);
    scene.wait_until_led_by_nobody();
    assert!(!is_alive(pid));
    assert_eq!(scene.status()["state"], "TASK_STATE_KILLED");
}

/// An ordinary user's systemd, until it is dropped.
struct UserManager;

impl UserManager {
    fn start() -> Self {
        systemctl(&["start", "user@1000.service"]);
        Self
    }
}

impl Drop for UserManager {
    fn drop(&mut self) {
        systemctl(&[
            "stop",
            "user@1000.service",
            "user-runtime-dir@1000.service",
            "user-1000.slice",
        ]);
    }
}

/// An ordinary user has a scope of its own from its own systemd, without being asked to do anything for it.
#[test]
fn an_ordinary_user_is_given_a_scope_by_its_own_systemd() {
    let scene = Scene::new();
    let _manager = UserManager::start();
    fs::set_permissions(scene.path(""), PermissionsExt::from_mode(0o777)).unwrap();
    let run = scene.run_command(&limited(), &[]);
    let mut command = Command::new("setpriv");
    command.args(["--reuid", "tester", "--regid", "tester", "--init-groups", "env"]);
    command.args(["XDG_RUNTIME_DIR=/run/user/1000", "HOME=/home/tester", "USER=tester"]);
    command.arg(run.get_program()).args(run.get_args());

    let ended = scene.follow(command).finish();

    ended.assert("SUCCESS", &[("a", "S")]);
    let told = scene.stdout("a", 0);
    let [leaf, limit, user] = told.lines().collect::<Vec<_>>()[..] else { panic!("{told}") };
    assert!(leaf.starts_with("0::/user.slice/user-1000.slice/user@1000.service/"), "{leaf}");
    assert!(leaf.ends_with(&format!(".scope/tasks/{}/a.0", scene.id())), "{leaf}");
    assert_eq!((limit, user), ((32 << 20).to_string().as_str(), "tester"));
}

/// A bundle of the OCI's runtime-spec whose process 1 is `run`, with the programs of this machine in it.
pub(crate) fn bundle(scene: &Scene, run: &Command) -> PathBuf {
    let bundle = scene.path("bundle");
    let root = bundle.join("rootfs");
    for name in ["usr", "etc", "proc", "dev", "sys", "tmp"] {
        fs::create_dir_all(root.join(name)).unwrap();
    }
    for name in ["bin", "sbin", "lib", "lib64"] {
        symlink(Path::new("usr").join(name), root.join(name)).unwrap();
    }
    fs::write(bundle.join("config.json"), config(scene, run).to_string()).unwrap();
    bundle
}

/// A container of its own cgroup namespace, with dewar as its process 1.
fn container(runtime: &str) -> (Scene, Finished) {
    let scene = Scene::new();
    let run = scene.run_command(&limited(), &[]);
    let bundle = bundle(&scene, &run);
    let mut command = Command::new(runtime);
    command.arg("--root").arg(scene.path("runtime"));
    command.args(["run", "--bundle"]).arg(&bundle).arg(scene.id());

    let ended = scene.follow(command).finish();
    (scene, ended)
}

/// The container of `run`, as the OCI's runtime-spec has it; its limit of memory is 128 MiB.
fn config(scene: &Scene, run: &Command) -> Value {
    let arguments: Vec<_> =
        std::iter::once(run.get_program()).chain(run.get_args()).map(OsStr::to_str).collect();
    let bind = |path: &Path, option: &str| json!({ "destination": path, "source": path, "type": "bind", "options": ["rbind", option] });
    let namespaces = ["pid", "mount", "ipc", "uts", "cgroup"].map(|kind| json!({ "type": kind }));
    let programs = fs::canonicalize("/usr/bin/dewar").unwrap();
    let rights = json!([
        "CAP_CHOWN",
        "CAP_DAC_OVERRIDE",
        "CAP_FOWNER",
        "CAP_KILL",
        "CAP_SETGID",
        "CAP_SETUID",
        "CAP_SYS_CHROOT"
    ]);
    json!({
        "ociVersion": "1.0.2",
        "process": {
            "terminal": false,
            "user": { "uid": 0, "gid": 0 },
            "args": arguments,
            "env": ["PATH=/usr/bin", "HOME=/root"],
            "cwd": "/",
            "capabilities": { "bounding": rights, "effective": rights, "permitted": rights },
        },
        "root": { "path": "rootfs" },
        "mounts": [
            { "destination": "/proc", "type": "proc", "source": "proc" },
            { "destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["mode=755"] },
            { "destination": "/sys", "type": "sysfs", "source": "sysfs", "options": ["ro", "nosuid", "noexec", "nodev"] },
            { "destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup", "options": ["rw", "nosuid", "noexec", "nodev"] },
            bind(Path::new("/usr"), "ro"),
            bind(Path::new("/etc"), "ro"),
            bind(programs.parent().unwrap(), "ro"),
            bind(&scene.path(""), "rw"),
        ],
        "linux": {
            "cgroupsPath": format!("/{}", scene.id()),
            "namespaces": namespaces,
            "resources": { "memory": { "limit": 128 << 20 } },
        },
    })
}

/// attack 59: in a container by runc.
#[test]
fn the_cgroup_namespace_of_a_container_by_runc_is_its_base() {
    assert_contained("runc");
}

/// attack 59: in a container by crun.
#[test]
fn the_cgroup_namespace_of_a_container_by_crun_is_its_base() {
    assert_contained("crun");
}

#[track_caller]
fn assert_contained(runtime: &str) {
    let (scene, ended) = container(runtime);

    ended.assert("SUCCESS", &[("a", "S")]);
    let leaf = format!("0::/tasks/{}/a.0", scene.id());
    assert_eq!(scene.stdout("a", 0), format!("{leaf}\n{}\nroot\n", 32 << 20), "{ended}");
}
