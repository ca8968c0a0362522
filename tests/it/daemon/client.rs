//! `dewar` commands that ask a daemon.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};

use nix::sys::signal::Signal;
use nix::unistd::User;
use serde_json::Value;

use super::node::Node;
use crate::support::{DEADLINE, DEWAR, Output, Pid, Scene, Task, need_root, p, task, wait_until};
use crate::terminal::Terminal;

/// The list of tasks has all that is on the line of one that has ended: for a node of thousands that is one call, not thousands.
#[test]
fn a_task_that_has_ended_is_told_as_the_list_has_it_and_not_asked_for() {
    let mut node = Node::new();
    let daemon = p("c", "true").with("daemon", true);
    node.launch(&task([p("a", "true"), p("b", "exit 3"), daemon]).order(["a", "b"]));
    node.wait();
    node.scene.wait_until_led_by_nobody();
    let id = node.scene.id().to_owned();
    wait_until("it is listed so", || ask(&node, &["status"]).stdout.contains(" FAILED "));
    let row = |told: Output| {
        assert_eq!(told.status, Some(0), "{told:?}");
        let row = told.stdout.lines().nth(1).unwrap_or_default();
        let mut words: Vec<_> = row.split_whitespace().map(str::to_owned).collect();
        let since = words.remove(2);
        assert!(since.ends_with('s'), "{told:?}");
        words
    };
    let by_root = row(node.scene.dewar(&["status"]));
    assert_eq!(by_root, [&*id, "FAILED", "1/3", "-"]);
    let verbose = ask(&node, &["status", "-v"]);
    assert!(verbose.stdout.contains("\n  sandbox: "), "{verbose:?}");

    // Whoever is asked for it reads it.
    fs::write(node.scene.stream(), "nothing that is known").unwrap();

    assert_eq!(row(ask(&node, &["status"])), by_root);
    assert_eq!(row(ask(&node, &["status", "--only", "finished", &id])), by_root);
    for more in [&["-v"][..], &["--output", "json"]] {
        let told = ask(&node, &[&["status"], more].concat());
        assert!(told.stdout.contains("CORRUPT"), "{told:?}");
    }
}

/// `dewar COMMAND … --address SOCKET`, not started yet.
pub(super) fn asking(node: &Node, arguments: &[&str]) -> Command {
    let (command, rest) = arguments.split_first().unwrap();
    let mut asking = node.scene.command([command]);
    asking.arg("--address").arg(node.socket()).args(rest).env_remove("DEWAR_ADDRESS");
    asking
}

/// The same to its end.
#[track_caller]
pub(super) fn ask(node: &Node, arguments: &[&str]) -> Output {
    node.scene.output(asking(node, arguments))
}

/// `dewar launch` of a task in the scene.
#[track_caller]
pub(super) fn launch(node: &Node, task: &Task, more: &[&str]) -> Output {
    let (file, sandbox) = (node.scene.file("task.json", task.text()), node.scene.sandbox());
    let (file, sandbox) = (file.to_str().unwrap(), sandbox.to_str().unwrap());
    let arguments = ["launch", file, "--task-id", node.scene.id(), "--sandbox", sandbox];
    ask(node, &[&arguments, more].concat())
}

/// A node with a task that goes on until it is killed.
fn sleeping() -> Node {
    let node = Node::new();
    let told = launch(&node, &task([p("a", "touch up; exec sleep 600")]), &[]);
    assert_eq!(told.status, Some(0), "{told:?}");
    wait_until("it runs", || node.scene.sandbox().join("up").exists());
    node.scene.wait_until_known_to_run("a");
    node
}

#[track_caller]
fn end(node: &Node) {
    let told = ask(node, &["kill", node.scene.id(), "--wait", "0s"]);
    assert_eq!((told.status, told.stdout), (Some(0), format!("{}\n", node.scene.id())));
    let waited = ask(node, &["wait", node.scene.id()]);
    assert_eq!((waited.status, waited.stdout), (Some(3), format!("{} KILLED\n", node.scene.id())));
}

#[track_caller]
pub(super) fn json(told: &Output) -> Value {
    assert_eq!(told.status, Some(0), "{told:?}");
    serde_json::from_str(&told.stdout).unwrap_or_else(|error| panic!("{error}: {told:?}"))
}

#[test]
fn a_task_is_launched_once_and_waited_for_with_its_end_as_exit_status() {
    let node = Node::new();
    let gate = node.scene.gate("gate");
    let command = format!("echo {{{{x}}}} {{{{thermos.ports[http]}}}}; {}; exit 3", gate.hold());
    let failing = task([p("a", command)]);
    let more = ["-P", "http:8080", "-E", "x=hello", "--label", "job=web"];

    let first = launch(&node, &failing, &more);
    let again = launch(&node, &failing, &more);
    gate.open();
    let waited = ask(&node, &["wait", node.scene.id()]);

    let id = format!("{}\n", node.scene.id());
    assert_eq!((first.status, first.stdout, &*first.stderr), (Some(0), id.clone(), ""));
    assert_eq!((again.status, again.stdout), (Some(0), id));
    assert!(again.stderr.contains("was launched before"), "{}", again.stderr);
    assert_eq!((waited.status, waited.stdout), (Some(1), format!("{} FAILED\n", node.scene.id())));
    assert_eq!(node.scene.stdout("a", 0), "hello 8080\n");
    let status = json(&ask(&node, &["status", node.scene.id(), "--output", "json"]));
    assert_eq!(status["labels"]["job"], "web");
    assert_eq!(status["ports"]["http"], 8080);
}

#[test]
fn a_launch_that_is_refused_says_where_the_file_is_wrong_and_exits_as_run_does() {
    let node = Node::new();
    let text = "name: web\nprocesses:\n  - {name: a/b, cmdline: x}\n  - {name: c, cmdline: y, max_failures: -1}\n";
    let file = node.scene.file("bad.yaml", text);
    let file = file.to_str().unwrap();

    let told = ask(&node, &["launch", file]);
    let other = launch(&node, &task([p("a", "true")]), &["--label", "a b=c"]);
    let missing = ask(&node, &["launch", "/no/such/file"]);

    assert_eq!((told.status, &*told.stdout), (Some(2), ""));
    for place in [format!("--> {file}:3:"), format!("--> {file}:4:"), "processes[0].name: ".into()]
    {
        assert!(told.stderr.contains(&place), "{place} in {}", told.stderr);
    }
    assert!(told.stderr.ends_with(&format!("2 errors in {file}\n")), "{}", told.stderr);
    assert_eq!(other.status, Some(2), "{other:?}");
    assert!(other.stderr.contains("error: labels: \"a b\"; expected"), "{}", other.stderr);
    assert_eq!(missing.status, Some(2), "{missing:?}");
    let lines: String = (0..1000).map(|n| format!("  - {{name: a/{n}, cmdline: x}}\n")).collect();
    let many = node.scene.file("many.yaml", format!("name: x\nprocesses:\n{lines}"));
    let many = ask(&node, &["launch", many.to_str().unwrap()]);
    assert_eq!(many.status, Some(2), "{many:?}");
    assert!(
        many.stderr.contains(":3:12") && many.stderr.contains("1000 errors in"),
        "{}",
        many.stderr
    );
    assert_eq!(ask(&node, &["status"]).stdout.lines().count(), 1, "nothing was started");
}

#[test]
fn where_no_daemon_is_a_command_that_needs_one_says_what_to_do() {
    let scene = Scene::new();
    let file = scene.file("task.json", task([p("a", "true")]).text());
    let (socket, file) = (scene.path("none.sock"), file.to_str().unwrap().to_owned());
    for arguments in [
        &["launch", &*file][..],
        &["watch"],
        &["exec", "x", "--", "true"],
        &["status"],
        &["kill", "x"],
        &["wait", "x"],
    ] {
        for by_option in [true, false] {
            let mut command = scene.command(&arguments[..1]);
            if by_option {
                command.arg("--address").arg(format!("unix://{}", socket.display()));
            } else {
                command.env("DEWAR_ADDRESS", &socket);
            }
            let told = scene.output({
                command.args(&arguments[1..]);
                command
            });

            assert_eq!(told.status, Some(5), "{told:?}");
            let absent = format!("dewar: no daemon listens on {}", socket.display());
            assert!(told.stderr.starts_with(&absent), "{arguments:?} {told:?}");
            let needs_one = matches!(arguments[0], "launch" | "watch");
            assert_eq!(told.stderr.contains("`dewar serve` starts one"), needs_one, "{told:?}");
        }
    }
    let mut odd = scene.command(["status", "--address", "tcp:1"]);
    odd.env_remove("DEWAR_ADDRESS");
    let odd = scene.output(odd);
    assert_eq!(odd.status, Some(2));
    assert!(odd.stderr.contains("unix:///run/dewar/dewar.sock"), "{}", odd.stderr);
}

/// A root that is named is worked on, whatever daemon there is; without a daemon nothing is different.
#[test]
fn a_root_that_is_named_is_worked_on_without_the_daemon() {
    let node = sleeping();
    let nobody = Scene::new();
    for (scene, lines) in [(&node.scene, 2), (&nobody, 1)] {
        let mut command = scene.command(["status", "--root"]);
        command.arg(scene.root()).env("DEWAR_ADDRESS", scene.path("none.sock"));
        let told = scene.output(command);
        assert_eq!((told.status, told.stdout.lines().count()), (Some(0), lines), "{told:?}");
    }
    let mut both = asking(&node, &["status", "--root"]);
    both.arg(node.scene.root());
    assert_eq!(node.scene.output(both).status, Some(2));
    end(&node);
}

/// `dewar run` asks no daemon, and pays for none: it has one thread while it follows its task.
#[test]
fn run_needs_no_daemon_and_refuses_to_be_told_of_one() {
    let scene = Scene::new();
    let gate = scene.gate("gate");
    let sleeping = task([p("a", gate.hold())]);
    let mut command = scene.run_command(&sleeping, &[]);
    command.env("DEWAR_ADDRESS", scene.path("none.sock"));
    let mut running = scene.follow(command);
    running.wait_until_running("a", 0);

    let threads = fs::read_dir(format!("/proc/{}/task", running.pid().number())).unwrap().count();
    gate.open();
    running.finish().assert("SUCCESS", &[("a", "S")]);
    let refused = scene.output(scene.run_command(&sleeping, &["--address", "/x"]));

    assert_eq!(threads, 1);
    assert_eq!(refused.status, Some(2), "{refused:?}");
    assert!(refused.stderr.contains("needs no daemon and asks none"), "{}", refused.stderr);
}

#[test]
fn waiting_ends_with_a_state_or_with_the_time_and_outlasts_the_daemon() {
    let mut node = Node::new();
    let (gate, last) = (node.scene.gate("gate"), node.scene.gate("last"));
    let finalizer = p("last", last.hold()).finalizer();
    launch(&node, &task([p("a", gate.hold()), finalizer]), &[]);
    let id = node.scene.id().to_owned();
    let root = node.scene.root();
    let here = ["--root", root.to_str().unwrap()];

    let late = ask(&node, &["wait", &id, "--timeout", "50ms"]);
    let late_here = node
        .scene
        .output(node.scene.command([&["wait", &id, "--timeout", "50ms"], &here[..]].concat()));
    for told in [&late, &late_here] {
        assert_eq!((told.status, &*told.stdout), (Some(5), ""), "{told:?}");
        assert!(told.stderr.contains("not there after 0.05s"), "{told:?}");
    }
    let active = ask(&node, &["wait", &id, "--state", "active"]);
    assert_eq!((active.status, active.stdout), (Some(0), format!("{id} ACTIVE\n")));

    let finalizing = ["wait", &id, "--state", "finalizing"];
    let mut to_state = [
        node.scene.lines(asking(&node, &finalizing)),
        node.scene.lines(node.scene.command([&finalizing, &here[..]].concat())),
    ];
    let mut to_end = [
        node.scene.lines(asking(&node, &["wait", &id])),
        node.scene.lines(node.scene.command([&["wait", &id], &here[..]].concat())),
    ];
    wait_until("it waits", || to_end[0].pid().number() > 0 && connections(&node) >= 2);
    node.kill();
    wait_until("it is noticed", || to_end[0].stderr().contains("waiting for another one"));
    node.serve_again();
    gate.open();
    for waiting in &mut to_state {
        assert_eq!(waiting.next().as_deref(), Some(&*format!("{id} FINALIZING")));
        assert_eq!(waiting.finish(), Some(0));
    }
    last.open();
    for waiting in &mut to_end {
        assert_eq!(
            waiting.next().as_deref(),
            Some(&*format!("{id} SUCCESS")),
            "{}",
            waiting.stderr()
        );
        assert_eq!(waiting.finish(), Some(0));
    }
}

/// Connections to the daemon.
fn connections(node: &Node) -> usize {
    let table = fs::read_to_string("/proc/net/unix").unwrap();
    let socket = node.socket();
    // The listening socket has flag 00010000 (SO_ACCEPTCON).
    let of_it = table.lines().filter(|line| line.ends_with(socket.to_str().unwrap()));
    of_it.filter(|line| !line.contains(" 00010000 ")).count()
}

#[test]
fn a_watcher_of_a_task_is_told_each_transition_once_whatever_becomes_of_the_daemon() {
    let mut node = Node::new();
    let gate = node.scene.gate("gate");
    launch(&node, &task([p("a", gate.hold())]), &[]);
    let id = node.scene.id().to_owned();
    let arguments = ["watch", &id, "--output", "json"];
    let mut watching = node.scene.lines(asking(&node, &arguments));
    while !watching.next().unwrap().contains("PROCESS_STATE_RUNNING") {}

    node.kill();
    node.serve_again();
    gate.open();

    assert_eq!(watching.finish(), Some(0), "{}", watching.stderr());
    let whole = ask(&node, &arguments);
    assert_eq!(watching.stdout(), whole.stdout);
    assert!(whole.stdout.lines().count() > 6, "{whole:?}");
    let first: Value = serde_json::from_str(whole.stdout.lines().next().unwrap()).unwrap();
    let cursor = first["cursor"].as_str().unwrap();
    let rest = ask(&node, &[&arguments, &["--cursor", cursor][..]].concat());
    assert_eq!(rest.stdout, whole.stdout.split_once('\n').unwrap().1);
    let text = ask(&node, &["watch", node.scene.id()]);
    let states: Vec<_> =
        text.stdout.lines().filter(|line| line.contains(node.scene.id())).collect();
    assert!(states.last().unwrap().ends_with(&format!("{} SUCCESS", node.scene.id())), "{text:?}");
    assert!(text.stdout.contains(&format!(" {} a run 0 RUNNING, pid ", node.scene.id())));
}

#[test]
fn a_watcher_of_all_is_told_of_every_task_and_that_it_cannot_go_on() {
    let mut node = sleeping();
    let id = node.scene.id().to_owned();
    let mut watching = node.scene.lines(asking(&node, &["watch"]));
    let first = watching.next().unwrap();
    assert!(first.ends_with(&format!(" {id} ACTIVE")), "{first}");

    ask(&node, &["pause", &id]);
    let mut paused = watching.next().unwrap();
    // The daemon may be behind with what it tells of the run.
    while paused.contains(&format!(" {id} a run 0 ")) {
        paused = watching.next().unwrap();
    }
    assert!(paused.contains(&format!(" {id} paused by uid ")), "{paused}");
    node.kill();
    node.serve_again();

    assert_eq!(watching.finish(), Some(5));
    assert!(watching.stderr().contains("history lost before"), "{}", watching.stderr());
    end(&node);
}

/// Nobody who reads: nothing is done for nobody.
#[test]
fn a_watcher_ends_once_nobody_reads_it() {
    let node = sleeping();
    let mut command = asking(&node, &["watch"]);
    let mut watching = command.stdout(Stdio::piped()).spawn().unwrap();
    let mut stdout = BufReader::new(watching.stdout.take().unwrap());
    stdout.read_line(&mut String::new()).unwrap();

    drop(stdout);

    assert!(Pid::of(watching.id().cast_signed()).ends_within(DEADLINE));
    assert_eq!(watching.wait().unwrap().code(), Some(0));
    end(&node);
}

#[test]
fn a_log_is_followed_from_one_daemon_to_the_next() {
    let mut node = Node::new();
    let (up, go) = (node.scene.gate("up"), node.scene.gate("go"));
    let command = format!(
        "seq 1 20000; [ $DEWAR_RUN = 1 ] && exit; {}; {}; seq 20001 40000; exit 1",
        up.tell(),
        go.hold()
    );
    launch(&node, &task([p("a", command).max_failures(2), p("b", "echo other >&2")]), &[]);
    let id = node.scene.id().to_owned();
    up.wait();
    let mut following = node.scene.lines(asking(&node, &["logs", "-f", &id, "a"]));
    while following.next().unwrap() != "20000" {}

    node.kill();
    wait_until("it is noticed", || following.stderr().contains("waiting for another one"));
    node.serve_again();
    go.open();

    assert_eq!(following.finish(), Some(0), "{}", following.stderr());
    let lines = |range: std::ops::RangeInclusive<u32>| range.map(|n| format!("{n}\n"));
    let all: String = lines(1..=40000).chain(lines(1..=20000)).collect();
    assert!(following.stdout() == all, "{} bytes", following.stdout().len());

    for (more, status) in [
        (&["a"][..], 0),
        (&["a", "--run", "0", "--tail", "3"], 0),
        (&["a", "--run", "1", "-f"], 0),
        (&["b", "--stderr"], 0),
        (&["a", "--run", "2"], 1),
        (&["c"], 1),
    ] {
        let remote = ask(&node, &[&["logs", &id], more].concat());
        let here = node.scene.dewar(&[&["logs", &id], more].concat());
        assert_eq!(remote.status, Some(status), "{more:?} {}", remote.stderr);
        assert_eq!((remote.status, remote.stderr), (here.status, here.stderr), "{more:?}");
        assert!(remote.stdout == here.stdout, "{more:?}");
    }
}

/// By way of the daemon, and without one.
#[test]
fn a_command_in_a_task_has_our_input_and_output_and_exit_status() {
    let node = sleeping();
    let id = node.scene.id();
    let root = node.scene.root();
    let run_in = |place: &[&str], more: &[&str], input: &str| {
        let mut command = node.scene.command([&["exec", id], place, more].concat());
        let command = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let (mut stdin, input) = (child.stdin.take().unwrap(), input.to_owned());
        // One that does not read it has ended.
        std::thread::spawn(move || drop(stdin.write_all(input.as_bytes())));
        let output = child.wait_with_output().unwrap();
        let text = |bytes| String::from_utf8(bytes).unwrap();
        (output.status.code(), text(output.stdout), text(output.stderr))
    };
    let places =
        [["--address", node.socket().to_str().unwrap()], ["--root", root.to_str().unwrap()]]
            .map(|place| place.map(str::to_owned));
    let run = |more: &[&str], input: &str| {
        let said = places.each_ref().map(|[option, path]| run_in(&[option, path], more, input));
        let [remote, here] = said;
        assert!(remote == here, "{more:?}: {remote:?} {here:?}");
        here
    };
    let said = |status, out: &str, err: &str| (Some(status), out.to_owned(), err.to_owned());

    let sorting = ["-i", "--setenv", "X=7", "--", "sh", "-c", "sort; echo oops >&2; exit $X"];
    assert_eq!(run(&sorting, "b\na\n"), said(7, "a\nb\n", "oops\n"));
    assert_eq!(run(&["--", "cat"], "not passed on"), said(0, "", ""));
    assert_eq!(run(&["--cwd", "/tmp", "--", "pwd"], ""), said(0, "/tmp\n", ""));
    assert_eq!(run(&["--", "sh", "-c", "kill -9 $$"], ""), said(137, "", ""));
    let much = "x".repeat(3 << 20);
    assert_eq!(run(&["-i", "--", "cat"], &much), said(0, &much, ""));
    let (status, _, why) = run(&["--", "no-such-program"], "");
    assert_eq!(status, Some(5), "{why}");
    assert!(why.contains("no-such-program") && why.contains("ENOENT"), "{why}");
    end(&node);
    let (status, _, why) = run(&["--", "true"], "");
    assert_eq!(status, Some(5), "{why}");
    assert!(why.contains("is over"), "{why}");
}

#[test]
fn signals_are_passed_on_to_a_command_and_the_third_interrupt_ends_it() {
    let node = sleeping();
    let script = "trap 'echo term' TERM; trap 'echo int' INT; trap 'echo usr1' USR1; echo $$; \
                  while :; do sleep 0.02; done";
    let mut running =
        node.scene.lines(asking(&node, &["exec", node.scene.id(), "--", "sh", "-c", script]));
    let inner = Pid::of(running.next().unwrap().parse().unwrap());

    for (signal, heard) in
        [(Signal::SIGUSR1, "usr1"), (Signal::SIGTERM, "term"), (Signal::SIGINT, "int")]
    {
        running.pid().signal(signal);
        assert_eq!(running.next().as_deref(), Some(heard));
    }
    running.pid().signal(Signal::SIGINT);

    assert_eq!(running.finish(), Some(130), "{}", running.stderr());
    inner.wait();
    end(&node);
}

/// Raw: every key is the command's, and the size of the terminal is that of ours; afterwards it is as it was.
#[test]
fn a_command_with_a_terminal_has_our_keys_and_our_size() {
    let node = sleeping();
    let inner = "trap 'echo caught' INT; trap 'stty size' WINCH; stty size; stty -echo; echo ready; \
                 while ! read -t 0.05 -r line; do :; done; echo got $line; exit 9";
    let exec = asking(&node, &["exec", "-it", node.scene.id(), "--", "bash", "-c", inner]);
    let words: Vec<_> = std::iter::once(exec.get_program()).chain(exec.get_args()).collect();
    let quoted: Vec<_> = words
        .iter()
        .map(|word| format!("'{}'", word.to_str().unwrap().replace('\'', r"'\''")))
        .collect();
    let mut shell = Command::new("bash");
    let before_and_after = format!(
        "stty -g > {0}/1; {1}; s=$?; stty -g > {0}/2; exit $s",
        node.scene.path("").display(),
        quoted.join(" ")
    );
    shell.args(["-c", &before_and_after]);
    let mut terminal = Terminal::start(&shell, &[]);
    terminal.wait_for("24 80");
    terminal.wait_for("ready");

    terminal.resize(91);
    terminal.wait_for("24 91");
    terminal.press("\x03");
    terminal.wait_for("caught");
    terminal.press("abc\r");

    let (status, text) = terminal.finish();
    assert_eq!(status, Some(9), "{text:?}");
    assert_eq!(text, "caught\r\ngot abc\r\n", "our terminal echoes nothing");
    let settings = |n: &str| fs::read_to_string(node.scene.path(n)).unwrap();
    assert_eq!(settings("1"), settings("2"));
    end(&node);
}

/// The same words either way.
#[test]
fn commands_tell_the_same_by_way_of_the_daemon_as_on_its_root() {
    let node = sleeping();
    let id = node.scene.id().to_owned();
    let unknown = format!("{id}.unknown");
    // The times of a table go on: JSON has points in time.
    let cases = [
        &["status", &*id, "--output", "json"][..],
        &["status", "--only", "active", "--output", "json"],
        &["status", "--only", "finished"],
        &["update", &id],
        &["pause", &id],
        &["pause", &id],
        &["status", &id, "--output", "json"],
        &["resume-paused", ".*"],
        &["signal", "WINCH", &id],
        &["signal", "WINCH", &id, "--process", "nope"],
        &["kill", &unknown],
        &["update", &unknown],
        &["update", &id, "--process", "nope"],
        &["stats", &unknown],
        &["logs", &unknown],
    ];
    for arguments in cases {
        let remote = ask(&node, arguments);
        let here = node.scene.dewar(arguments);

        assert_eq!((remote.status, &remote.stdout), (here.status, &here.stdout), "{arguments:?}");
        assert_eq!(remote.stderr.is_empty(), here.stderr.is_empty(), "{remote:?} {here:?}");
    }
    let usage = |told: Output| json(&told)["sample"]["cgroupId"].clone();
    let stats = ["stats", &id, "--output", "json"];
    assert_eq!(usage(ask(&node, &stats)), usage(node.scene.dewar(&stats)));
    let killed = ask(&node, &["kill", &id, "--lost", "--reason", "a test"]);
    assert_eq!((killed.status, killed.stdout), (Some(0), format!("{id}\n")));
    assert_eq!(ask(&node, &["wait", &id]).status, Some(4));
    let story = ask(&node, &["watch", &id]).stdout;
    assert!(story.contains("declared lost by uid") && story.contains(": a test"), "{story}");
    for arguments in [&["kill", &*id][..], &["update", &id, "ram=1GB"], &["status", &id, "-vvv"]] {
        let (remote, here) = (ask(&node, arguments), node.scene.dewar(arguments));
        assert_eq!(remote.status, here.status, "{remote:?} {here:?}");
    }
    let watched = ask(&node, &["stats", &id, "--watch=20ms", "--output", "json"]);
    assert_eq!(json(&watched)["state"], "TASK_STATE_LOST");
}

/// Of the task, and of one that has a sandbox in the root.
#[test]
fn a_task_that_has_ended_is_removed_by_the_daemon_and_by_the_root() {
    let node = sleeping();
    let file = node.scene.file("other.json", task([p("a", "true")]).text());
    let others = ["1", "2"].map(|name| format!("{}.{name}", node.scene.id()));
    for id in &others {
        ask(&node, &["launch", file.to_str().unwrap(), "--task-id", id]);
        assert_eq!(ask(&node, &["wait", id]).status, Some(0));
    }
    let finished = |id: &String| node.scene.root().join("tasks/finished").join(id).exists();
    wait_until("they are filed away", || others.iter().all(finished));

    assert_eq!(ask(&node, &["remove", node.scene.id()]).status, Some(1), "it lives");
    let removed = ask(&node, &["remove", "--sandbox", &others[0]]);
    let here = node.scene.dewar(&["remove", ".*"]);

    assert_eq!((removed.status, removed.stdout), (Some(0), format!("{}\n", others[0])));
    assert_eq!((here.status, here.stdout), (Some(0), format!("{}\n", others[1])));
    let sandbox = |id: &str| node.scene.root().join("sandboxes").join(id).exists();
    assert_eq!((sandbox(&others[0]), sandbox(&others[1])), (false, true));
    wait_until("the daemon has noticed", || ask(&node, &["status"]).stdout.lines().count() == 2);
    end(&node);
}

/// A command of `nobody`, whose files are those of the scene.
fn of_nobody(scene: &Scene, arguments: &[&str]) -> Command {
    let nobody = User::from_name("nobody").unwrap().unwrap();
    let mut command = scene.command(arguments);
    command.env_remove("DEWAR_ADDRESS").env("XDG_RUNTIME_DIR", scene.path("runtime"));
    command.env("XDG_STATE_HOME", scene.path("state"));
    command.uid(nobody.uid.as_raw()).gid(nobody.gid.as_raw());
    command
}

/// attack 54, of commands: who may not read the root is told of their own tasks, and may end them.
#[test]
fn a_user_who_may_not_read_the_root_is_told_by_the_daemon() {
    need_root!();
    let node = Node::with(&["--socket-mode", "666"]);
    let roots = format!("{}.root", node.scene.id());
    let file = node.scene.file("task.json", task([p("a", "sleep 600")]).text());
    let file = file.to_str().unwrap();
    let socket = node.socket();
    let socket = socket.to_str().unwrap();
    let nobody = |arguments: &[&str]| {
        let arguments = [&arguments[..1], &["--address", socket], &arguments[1..]].concat();
        node.scene.output(of_nobody(&node.scene, &arguments))
    };
    json(&ask(&node, &["launch", file, "--task-id", &roots, "--output", "json"]));

    let launched = nobody(&["launch", file, "--task-id", node.scene.id()]);
    let told = nobody(&["status"]);
    let killed = nobody(&["kill", ".*", "--wait", "0s"]);
    let waited = nobody(&["wait", node.scene.id()]);

    assert_eq!(launched.status, Some(0), "{launched:?}");
    assert_eq!((told.status, told.stdout.lines().count()), (Some(0), 2), "{told:?}");
    assert_eq!((killed.status, killed.stdout), (Some(0), format!("{}\n", node.scene.id())));
    assert_eq!(waited.status, Some(3), "{waited:?}");
    let refused = nobody(&["launch", file, "--user", "root"]);
    assert_eq!(refused.status, Some(5), "{refused:?}");
    assert_eq!(nobody(&["kill", &roots]).status, Some(1));
    ask(&node, &["kill", &roots, "--wait", "0s"]);
    assert_eq!(ask(&node, &["wait", &roots]).status, Some(3));
}

/// With neither a root nor a daemon named: the daemon on the default socket while there is one, else the default root.
#[test]
fn the_daemon_on_the_default_socket_is_asked_while_there_is_one() {
    need_root!();
    let scene = Scene::new();
    let nobody = User::from_name("nobody").unwrap().unwrap();
    for dir in ["runtime", "runtime/dewar", "state", "served"] {
        fs::create_dir(scene.path(dir)).unwrap();
        nix::unistd::chown(&scene.path(dir), Some(nobody.uid), Some(nobody.gid)).unwrap();
    }
    let file = scene.file("task.json", task([p("a", "true")]).text());
    let run = ["run", "--cgroup", "none", "--task-id", scene.id(), file.to_str().unwrap()];
    let ran = scene.output(of_nobody(&scene, &run));
    assert_eq!(ran.status, Some(0), "{ran:?}");
    let ids = || {
        let told = scene.output(of_nobody(&scene, &["status"]));
        assert_eq!(told.status, Some(0), "{told:?}");
        told.stdout.lines().skip(1).count()
    };
    assert_eq!(ids(), 1, "of the default root");

    let served = scene.path("served");
    let mut serve = of_nobody(&scene, &["serve", "--root", served.to_str().unwrap()]);
    let mut daemon = serve.stdin(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let socket = scene.path("runtime/dewar/dewar.sock");
    wait_until("it listens", || std::os::unix::net::UnixStream::connect(&socket).is_ok());
    assert_eq!(ids(), 0, "of the daemon, which serves another root");
    daemon.kill().unwrap();
    daemon.wait().unwrap();

    assert_eq!(ids(), 1, "its socket is there still, and nobody listens");
}

/// In a bash of its own, on a terminal.
#[test]
fn a_shell_completes_commands_and_options_and_ids_of_tasks_that_the_command_takes() {
    let node = sleeping();
    let id = node.scene.id().to_owned();
    let over = format!("{id}.over");
    let file = node.scene.file("over.json", task([p("a", "true")]).text());
    ask(&node, &["launch", file.to_str().unwrap(), "--task-id", &over]);
    ask(&node, &["wait", &over]);
    let bin = node.scene.path("bin");
    fs::create_dir(&bin).unwrap();
    std::os::unix::fs::symlink(DEWAR, bin.join("dewar")).unwrap();
    let rc = format!("PS1='$ '; PATH={}:$PATH; source <(dewar completion bash)\n", bin.display());
    let rc = node.scene.file("bashrc", rc);
    let mut bash = Command::new("bash");
    bash.args(["--noprofile", "--rcfile", rc.to_str().unwrap(), "-i"]);
    let environment = [("DEWAR_ADDRESS", node.socket()), ("HOME", node.scene.path(""))];
    let environment = environment.map(|(name, path)| (name, path.to_str().unwrap().to_owned()));
    let environment: Vec<_> = environment.iter().map(|(name, path)| (*name, &**path)).collect();
    let mut terminal = Terminal::start(&bash, &environment);
    let prefix = &id[..id.len() - 1];
    terminal.wait_for("$ ");
    let mut complete = |typed: &str, completed: &str| {
        terminal.press(&format!("dewar {typed}\t"));
        terminal.wait_for(&format!("dewar {completed}"));
        // ^U takes what was typed away.
        terminal.press("\x15");
    };

    complete("ki", "kill ");
    complete(&format!("kill {prefix}"), &format!("kill {id} "));
    complete("kill --los", "kill --lost ");
    complete(&format!("wait {over}"), &format!("wait {over} "));
    let candidates = |words: &[&str]| {
        let mut asked = node.scene.command(["--", "dewar"]);
        asked.args(words).env("_DEWAR_COMPLETE", "bash").env("_CLAP_IFS", "\n");
        asked.env("_CLAP_COMPLETE_INDEX", words.len().to_string());
        asked.env("DEWAR_ADDRESS", node.socket());
        let told = node.scene.output(asked);
        let ids = told.stdout.lines().filter(|line| line.starts_with(&*id));
        ids.map(str::to_owned).collect::<Vec<_>>()
    };
    assert_eq!(candidates(&["kill", prefix]), [&*id]);
    assert_eq!(candidates(&["exec", prefix]), [&*id]);
    assert_eq!(candidates(&["status", prefix]), [id.clone(), over.clone()]);
    assert_eq!(candidates(&["logs", prefix]), [id.clone(), over]);
    let none = node.scene.path("none");
    assert_eq!(candidates(&["kill", "--root", none.to_str().unwrap(), prefix]), [""; 0]);
    terminal.press("exit\r");
    assert_eq!(terminal.finish().0, Some(0));
    end(&node);
}

/// Either way: by the daemon, and on the root.
#[test]
fn why_a_process_does_not_run_is_told() {
    let node = Node::new();
    let waits = task([p("a", "touch up; exec sleep 600"), p("b", "true"), p("c", "true")]);
    let waits = waits.order(["a", "b"]);
    assert_eq!(launch(&node, &waits, &[]).status, Some(0));
    wait_until("it runs", || node.scene.sandbox().join("up").exists());

    wait_until("c has ended", || {
        node.scene.status()["processes"][2]["state"] == "PROCESS_STATE_SUCCESS"
    });
    let explained = ask(&node, &["explain", node.scene.id()]);
    let of_b = ask(&node, &["explain", node.scene.id(), "b", "--output", "json"]);
    let unknown = ask(&node, &["explain", node.scene.id(), "x"]);
    let here = node.scene.dewar(&["explain", node.scene.id()]);

    let text = format!(
        "{} ACTIVE\n  a  run 0 runs\n  b  waits for a\n  c  run 0 succeeded\n",
        node.scene.id()
    );
    assert_eq!((explained.status, explained.stdout), (Some(0), text.clone()));
    let value = json(&of_b);
    assert_eq!(value["processes"].as_array().unwrap().len(), 1);
    assert_eq!(value["processes"][0]["reason"], "PROCESS_REASON_WAITS_FOR");
    assert_eq!(value["processes"][0]["waitsFor"][0], "a");
    assert_eq!(unknown.status, Some(2), "{unknown:?}");
    assert_eq!((here.status, here.stdout), (Some(0), text));
    end(&node);
}
