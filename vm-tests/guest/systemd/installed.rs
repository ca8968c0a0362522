//! The daemon, installed as `contrib/systemd` has it.
//!
//! Debian 12 has systemd 252: it would put a new daemon into the unit's own cgroup, where nothing can be put once controllers are
//! enabled in it. The units are made so that it need not.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;

use dewar::proto::{TaskState, TaskView};

use super::sleeper;
use super::systemctl;
use crate::client::Client;
use crate::machine::{CGROUP2, read};
use crate::support::{Scene, Task, is_alive, p, task, wait_until};

/// Where the units and the group are, and what is in them.
const FILES: [(&str, &str); 4] = [
    ("/etc/systemd/system/dewar.service", include_str!("../../../contrib/systemd/dewar.service")),
    (
        "/etc/systemd/system/dewar-tasks.service",
        include_str!("../../../contrib/systemd/dewar-tasks.service"),
    ),
    ("/etc/systemd/system/dewar.socket", include_str!("../../../contrib/systemd/dewar.socket")),
    ("/etc/sysusers.d/dewar.conf", include_str!("../../../contrib/systemd/dewar.conf")),
];

/// The programs that the units start.
const PROGRAMS: [&str; 3] = ["/usr/bin/dewar", "/usr/bin/dewar-full", "/usr/bin/dewar-runner"];

const SOCKET: &str = "/run/dewar/dewar.sock";

/// Where tasks are.
const ROOT: &str = "/var/lib/dewar";

/// What a command printed; it succeeded.
#[track_caller]
fn said(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim_end().to_owned();
    let (out, err) = (text(&output.stdout), text(&output.stderr));
    assert!(output.status.success(), "{program} {arguments:?}: {out}{err}");
    out
}

/// A property of a unit.
#[track_caller]
fn property(unit: &str, name: &str) -> String {
    said("systemctl", &["show", "--value", "--property", name, unit])
}

/// The installed units, until they are dropped: then none of them is active, as it was before. They stay installed, since systemd
/// takes two seconds to read its units anew.
struct Installed {
    scene: Scene,
    client: Client,
}

impl Installed {
    fn new() -> Self {
        let is_there = |(path, content): &(_, _)| {
            fs::read_to_string(path).is_ok_and(|there| there == *content)
        };
        if !FILES.iter().all(is_there) {
            fs::create_dir_all("/etc/sysusers.d").unwrap();
            for (path, content) in FILES {
                fs::write(path, content).unwrap();
            }
            said("systemd-sysusers", &["/etc/sysusers.d/dewar.conf"]);
            systemctl(&["daemon-reload"]);
        }
        Self { scene: Scene::new(), client: Client::of(SOCKET) }
    }

    /// With the daemon started, and no socket of systemd's.
    fn started() -> Self {
        let installed = Self::new();
        systemctl(&["start", "dewar.service"]);
        installed
    }

    /// The daemon; another process than `before`.
    #[track_caller]
    fn daemon_after(&self, before: i32) -> i32 {
        let mut now = before;
        wait_until("no other daemon", || {
            now = property("dewar.service", "MainPID").parse().unwrap();
            now != before && now != 0 && property("dewar.service", "ActiveState") == "active"
        });
        now
    }

    /// Launches a task under the scene's id and `suffix`, and waits until it runs.
    #[track_caller]
    fn launch(&self, suffix: &str, task: &Task, without_cgroup: bool) -> Running {
        let id = format!("{}{suffix}", self.scene.id());
        self.client.launch(&id, task, without_cgroup).unwrap();
        Running::of(self.client.running(&id))
    }

    #[track_caller]
    fn now(&self, before: &Running) -> Running {
        Running::of(self.client.get(&before.id))
    }
}

impl Drop for Installed {
    fn drop(&mut self) {
        let units = ["dewar.socket", "dewar.service", "dewar-tasks.service"];
        // A test that failed left tasks that may not end in their order.
        let _ = Command::new(PROGRAMS[0]).args(["kill", "--wait", "0s", ".*"]).output();
        for verb in ["stop", "reset-failed"] {
            let _ = Command::new("systemctl").arg(verb).args(units).status();
        }
        let _ = fs::remove_dir_all("/run/dewar");
        for entry in fs::read_dir(ROOT).into_iter().flatten().flatten() {
            let _ = fs::remove_dir_all(entry.path()).or_else(|_| fs::remove_file(entry.path()));
        }
    }
}

/// A task with one run, as it was found. What a restart must not change.
#[derive(Debug, PartialEq)]
struct Running {
    id: String,
    /// Runner, coordinator and first process of the run: pid, when it started, its cgroup.
    processes: [(i32, String, String); 3],
}

impl Running {
    #[track_caller]
    fn of(task: TaskView) -> Self {
        assert_eq!(task.state(), TaskState::Active);
        let run = &task.processes[0].runs[0];
        let pids = [task.runner_pid, run.coordinator_pid, run.pid];
        let processes = pids.map(|pid| {
            let pid = pid.unwrap();
            let read = |file: &str| fs::read_to_string(format!("/proc/{pid}/{file}")).unwrap();
            let stat = read("stat");
            let after_name = stat.rsplit_once(") ").unwrap().1;
            let started = after_name.split(' ').nth(19).unwrap().to_owned();
            (pid, started, read("cgroup").trim_end().to_owned())
        });
        Self { id: task.task_id, processes }
    }

    fn runner(&self) -> i32 {
        self.processes[0].0
    }

    fn is_alive(&self) -> bool {
        self.processes.iter().all(|(pid, ..)| is_alive(*pid))
    }
}

/// Where a run of a task should be.
fn leaf(id: &str) -> String {
    format!("/system.slice/dewar-tasks.service/tasks/{id}/a.0")
}

/// Does `change` to the daemon while a limited task runs, and sees that the task is the same to its last process, in the same
/// cgroup with the same limit, and that the daemon of afterwards knows it, launches others, and ends it.
#[track_caller]
fn assert_untouched(installed: &Installed, change: impl FnOnce(i32)) {
    let before = installed.launch("", &sleeper(), false);
    let daemon: i32 = property("dewar.service", "MainPID").parse().unwrap();

    change(daemon);

    installed.daemon_after(daemon);
    assert_eq!(installed.now(&before), before);
    assert_eq!(before.processes[2].2, format!("0::{}", leaf(&before.id)));
    let limits = PathBuf::from(format!("{CGROUP2}{}", leaf(&before.id)));
    assert_eq!(read(&limits, "memory.max"), (32 << 20).to_string());
    let another = installed.launch(".2", &sleeper(), false);
    assert_eq!(another.processes[2].2, format!("0::{}", leaf(&another.id)));
    installed.client.kill(&before.id);
    installed.client.kill(&another.id);
    assert!(!before.is_alive() && !another.is_alive());
}

#[test]
fn systemd_finds_nothing_wrong_with_the_units() {
    let _installed = Installed::new();
    let units = ["dewar.service", "dewar-tasks.service", "dewar.socket"];
    let units = units.map(|unit| format!("/etc/systemd/system/{unit}"));

    let verified = Command::new("systemd-analyze").arg("verify").args(&units).output().unwrap();

    let told = String::from_utf8_lossy(&verified.stderr).into_owned();
    assert!(verified.status.success() && told.is_empty(), "{told}");
}

/// attack 60: a restart of dewar's unit, on a systemd that cannot put the new daemon into a cgroup with controllers.
#[test]
fn a_restart_of_the_daemon_touches_no_task() {
    let installed = Installed::started();

    assert_untouched(&installed, |_| systemctl(&["restart", "dewar.service"]));
}

/// attack 39
#[test]
fn a_daemon_that_is_killed_is_started_again_and_no_task_touched() {
    let installed = Installed::started();

    assert_untouched(&installed, |daemon| {
        said("kill", &["-9", &daemon.to_string()]);
    });
}

#[test]
fn a_task_goes_on_while_the_daemon_is_stopped() {
    let installed = Installed::started();

    assert_untouched(&installed, |daemon| {
        systemctl(&["stop", "dewar.service"]);
        assert!(!is_alive(daemon));
        assert_eq!(property("dewar-tasks.service", "ActiveState"), "active");
        systemctl(&["start", "dewar.service"]);
    });
}

/// attack 60: systemd reads its units anew, and becomes another process 1.
#[test]
fn a_systemd_that_starts_anew_touches_neither_tasks_nor_their_controllers() {
    let installed = Installed::started();

    assert_untouched(&installed, |_| {
        systemctl(&["daemon-reload"]);
        systemctl(&["daemon-reexec"]);
        systemctl(&["restart", "dewar.service"]);
    });
}

/// Other files in the place of the programs, while those of before run, until this is dropped.
struct Upgrade;

impl Upgrade {
    fn new() -> Self {
        for program in PROGRAMS {
            let old = format!("{program}.old");
            fs::rename(program, &old).unwrap();
            fs::copy(&old, program).unwrap();
        }
        Self
    }
}

impl Drop for Upgrade {
    fn drop(&mut self) {
        for program in PROGRAMS {
            let _ = fs::rename(format!("{program}.old"), program);
        }
    }
}

/// The file that a process executes.
fn executes(pid: i32) -> u64 {
    fs::metadata(format!("/proc/{pid}/exe")).unwrap().ino()
}

/// attack 41: the runner of before is driven by the daemon of after; one that is started anew is of the new program.
#[test]
fn an_upgrade_in_place_touches_no_task_and_later_runners_are_new() {
    let installed = Installed::started();
    let before = installed.launch("", &sleeper(), false);
    let daemon: i32 = property("dewar.service", "MainPID").parse().unwrap();
    let of = |program: &str| fs::metadata(program).unwrap().ino();

    let _upgrade = Upgrade::new();
    systemctl(&["restart", "dewar.service"]);

    let now = installed.daemon_after(daemon);
    assert_eq!(executes(now), of("/usr/bin/dewar-full"));
    assert_eq!(installed.now(&before), before);
    assert_ne!(executes(before.runner()), of("/usr/bin/dewar-runner"));
    said("kill", &["-9", &before.runner().to_string()]);
    let mut runner = None;
    wait_until("no other runner", || {
        runner = installed.client.get(&before.id).runner_pid.filter(|pid| *pid != before.runner());
        runner.is_some()
    });
    assert_eq!(executes(runner.unwrap()), of("/usr/bin/dewar-runner"));
    let [_, coordinator, run] = &before.processes;
    assert!(is_alive(coordinator.0) && is_alive(run.0));
    installed.client.kill(&before.id);
}

/// The unit's `KillMode=process` is for these: they are in the daemon's own cgroup.
#[test]
fn a_task_without_a_cgroup_survives_a_restart_too() {
    let installed = Installed::started();
    let before = installed.launch("", &task([p("a", "exec sleep 600")]), true);
    assert_eq!(before.processes[2].2, "0::/system.slice/dewar.service");
    let daemon: i32 = property("dewar.service", "MainPID").parse().unwrap();

    systemctl(&["restart", "dewar.service"]);

    installed.daemon_after(daemon);
    assert_eq!(installed.now(&before), before);
    installed.client.kill(&before.id);
}

/// Stopping the tasks is ending each in its order; the daemon goes first and starts nothing anew.
#[test]
fn stopping_the_unit_of_the_tasks_ends_them_in_their_order() {
    let installed = Installed::started();
    // The finalizer is running when systemd sends its own signal.
    let last = p("last", "sleep 3; echo last").finalizer();
    let held = installed.launch("", &task([p("a", "exec sleep 600"), last]), false);

    systemctl(&["stop", "dewar-tasks.service"]);

    assert_eq!(property("dewar.service", "ActiveState"), "inactive");
    assert!(!held.is_alive());
    let told = said(PROGRAMS[0], &["status", &held.id, "--output", "json"]);
    let told: serde_json::Value = serde_json::from_str(&told).unwrap();
    assert_eq!(told["state"], "TASK_STATE_KILLED", "{told}");
    let last = told["processes"].as_array().unwrap().iter().find(|it| it["name"] == "last");
    assert_eq!(last.unwrap()["state"], "PROCESS_STATE_SUCCESS", "{told}");
    assert!(!Path::new(CGROUP2).join("system.slice/dewar-tasks.service").exists());
}

/// Attack 53: modes of the socket. The daemon is started by the first call, and whoever calls during a restart waits.
#[test]
fn the_socket_of_systemd_starts_the_daemon_and_outlives_it() {
    let installed = Installed::new();
    systemctl(&["start", "dewar.socket"]);
    assert_eq!(property("dewar.service", "ActiveState"), "inactive");
    let socket = fs::metadata(SOCKET).unwrap();
    let group = said("getent", &["group", "dewar"]);
    assert_eq!(group.split(':').nth(2).unwrap(), socket.gid().to_string());
    assert_eq!((socket.uid(), socket.permissions().mode() & 0o777), (0, 0o660));

    assert_untouched(&installed, |daemon| {
        systemctl(&["stop", "dewar.service"]);
        assert!(!is_alive(daemon));
        // The next call starts it again.
        installed.client.call(async |_| ());
    });
    assert_eq!(fs::metadata(SOCKET).unwrap().ino(), socket.ino());
}

#[test]
fn a_reload_leaves_the_daemon_where_it_is() {
    let installed = Installed::started();
    let daemon = property("dewar.service", "MainPID");

    systemctl(&["reload", "dewar.service"]);

    let running = installed.launch("", &sleeper(), false);
    assert_eq!(property("dewar.service", "MainPID"), daemon);
    installed.client.kill(&running.id);
}

/// What the unit's comments say is inherited, and what a run has in spite of the unit.
#[test]
fn a_run_has_of_the_units_hardening_what_the_unit_says() {
    let installed = Installed::started();
    let running = installed.launch("", &task([p("a", "exec sleep 600")]), false);
    let run = running.processes[2].0;
    let status = fs::read_to_string(format!("/proc/{run}/status")).unwrap();
    let field = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name));
        line.unwrap().trim_start_matches(':').trim().to_owned()
    };
    let bounding = u64::from_str_radix(&field("CapBnd"), 16).unwrap();

    // CAP_SYS_MODULE is 16, CAP_SETUID 7: capabilities(7), linux/capability.h.
    assert_eq!((bounding >> 16 & 1, bounding >> 7 & 1), (0, 1));
    assert_eq!(field("NoNewPrivs"), "0");
    assert_eq!(fs::read_to_string(format!("/proc/{run}/oom_score_adj")).unwrap(), "0\n");
    let limits = fs::read_to_string(format!("/proc/{run}/limits")).unwrap();
    let files = limits.lines().find(|line| line.starts_with("Max open files")).unwrap();
    assert_eq!(files.split_whitespace().nth(3), Some("1024"));
    let mounts = |of: &str| fs::read_link(format!("/proc/{of}/ns/mnt")).unwrap();
    assert_eq!(mounts(&run.to_string()), mounts("1"));
    installed.client.kill(&running.id);
}
