//! The programs of dewar: which of them does what, and what a runner is, however it came to be.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Command;

use nix::unistd::Pid as RawPid;
use nix::unistd::getsid;

use crate::support::{Pid, Scene, p, task, wait_until};

/// What ps(1) and others see of a process, without what differs from one to the next of its kind.
fn seen(scene: &Scene, runner: &Pid) -> BTreeMap<String, String> {
    let at = |file: &str| format!("/proc/{}/{file}", runner.number());
    let read =
        |file: &str| fs::read(at(file)).map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
    let kept = [
        "Name",
        "Umask",
        "Uid",
        "Gid",
        "Groups",
        "Threads",
        "SigPnd",
        "ShdPnd",
        "SigBlk",
        "SigIgn",
        "SigCgt",
        "CapInh",
        "CapPrm",
        "CapEff",
        "CapBnd",
        "CapAmb",
        "NoNewPrivs",
        "Seccomp",
    ];
    let status = read("status").unwrap();
    let fields = status.lines().filter_map(|line| line.split_once(":\t"));
    let fields = fields.filter(|(name, _)| kept.contains(name));
    let mut seen: BTreeMap<_, _> =
        fields.map(|(name, value)| (name.into(), value.into())).collect();
    assert_eq!(seen.len(), kept.len());
    for file in ["cgroup", "limits", "oom_score_adj", "cmdline", "environ"] {
        seen.insert(file.into(), read(file).unwrap().replace(scene.id(), "ID"));
    }
    // Its directory, and links to files of its own.
    for fd in fs::read_dir(at("fd")).unwrap() {
        let fd = fd.unwrap();
        let to = fs::read_link(fd.path()).unwrap().to_string_lossy().replace(scene.id(), "ID");
        let kind = to.split(":[").next().unwrap().to_owned();
        seen.insert(format!("fd {}", fd.file_name().to_str().unwrap()), kind);
    }
    let pid = RawPid::from_raw(runner.number());
    assert_eq!(getsid(Some(pid)), Ok(pid), "it has a session of its own");
    seen
}

/// One is a fork of the `dewar run` that follows the task, the other a program.
#[test]
fn two_runners_differ_in_nothing_but_how_they_came_to_be() {
    let (forked, started) = (Scene::new(), Scene::new());
    let gates = [&forked, &started].map(|scene| scene.gate("gate"));
    let one = |number: usize| task([p("a", gates[number].hold())]);
    let running = forked.spawn(&one(0));
    let detached = started.output(started.run_command(&one(1), &["--detach"]));
    assert_eq!(detached.status, Some(0), "{detached:?}");
    for scene in [&forked, &started] {
        wait_until("it does not run", || {
            scene.status()["processes"][0]["runs"][0]["state"] == "PROCESS_STATE_RUNNING"
        });
    }

    let [mut of_fork, mut of_program] =
        [&forked, &started].map(|scene| seen(scene, &scene.runner()));

    // The one writes to whoever follows its task, the other to its log.
    let [to, also] = [&mut of_fork, &mut of_program].map(|seen| {
        ["fd 1", "fd 2"].map(|fd| seen.remove(fd).unwrap().rsplit('/').next().unwrap().to_owned())
    });
    assert!(to.iter().all(|name| name.starts_with("stderr")), "{to:?}");
    assert_eq!(also, ["null", "runner.log"]);
    assert_eq!(of_fork.remove("fd 3").as_deref(), Some("socket"), "somebody follows the task");
    // That nobody follows it the other one learns when it has something to tell.
    of_program.remove("fd 3");
    assert_eq!(of_fork, of_program);
    let program = |scene: &Scene| {
        let exe = fs::read_link(format!("/proc/{}/exe", scene.runner().number())).unwrap();
        exe.file_name().unwrap().to_str().unwrap().to_owned()
    };
    assert_eq!([&forked, &started].map(program), ["dewar", "dewar-runner"]);
    gates.iter().for_each(|gate| gate.open());
    running.finish().assert("SUCCESS", &[("a", "S")]);
    wait_until("it is not over", || started.status()["state"] == "TASK_STATE_SUCCESS");
    started.wait_until_led_by_nobody();
}

#[test]
fn a_task_is_run_by_a_program_that_cannot_do_anything_else() {
    let scene = Scene::new();
    let built = Path::new(crate::support::DEWAR).parent().unwrap();
    let bin = scene.path("bin");
    fs::create_dir(&bin).unwrap();
    // By another process: a child that another test begins meanwhile would have it open to write, and it could not be executed.
    let mut copy = Command::new("cp");
    copy.args(["dewar", "dewar-runner"].map(|program| built.join(program))).arg(&bin);
    assert_eq!(scene.output(copy).status, Some(0));
    let here = |command: Command| {
        let mut moved = Command::new(bin.join("dewar"));
        moved.args(command.get_args());
        scene.output(moved)
    };

    let run = here(scene.run_command(&task([p("a", "true")]), &[]));
    let status = here(scene.command(["status"]));

    assert_eq!(run.status, Some(0), "{run:?}");
    let full = bin.join("dewar-full");
    let said = format!(
        "dewar: start the program of all other commands: {}: No such file or directory (os error 2)\n",
        full.display()
    );
    assert_eq!((status.status, status.stderr), (Some(5), said));
    scene.wait_until_led_by_nobody();
}
