//! `dewar top` and `dewar stats --at`, by way of a daemon and on the root.

use nix::sys::signal::Signal;
use serde_json::Value;

use super::client::{ask, asking, launch};
use super::node::Node;
use crate::support::{Output, Task, p, task, wait_until};
use crate::terminal::Terminal;

const ENTER: &str = "\x1b[?1049h";
const LEAVE: &str = "\x1b[?1049l";

/// A task that spends CPU time until it is killed, beside a process that spends none.
fn busy() -> Task {
    task([p("idle", "touch idle; exec sleep 600"), p("busy", "touch busy; while :; do :; done")])
}

/// A daemon that samples often, with a task that runs.
fn node(task: &Task) -> Node {
    let node = Node::with(&["--sample-interval", "100ms", "--sample-history", "10m"]);
    let told = launch(&node, task, &[]);
    assert_eq!(told.status, Some(0), "{told:?}");
    let up = |name| node.scene.sandbox().join(name).exists();
    wait_until("it runs", || up("busy") && up("idle"));
    node
}

#[track_caller]
fn lines(told: &Output) -> Vec<Value> {
    assert_eq!(told.status, Some(0), "{told:?}");
    told.stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn kill(node: &mut Node) {
    let told = ask(node, &["kill", node.scene.id(), "--wait", "0s"]);
    assert_eq!(told.status, Some(0), "{told:?}");
    node.wait();
}

#[test]
fn top_tells_once_where_there_is_no_terminal_what_was_used_in_between() {
    let mut node = node(&busy());
    let root = node.scene.root();
    let arguments = ["top", "--interval", "300ms"];
    let by_process = |mut command: std::process::Command| {
        node.scene.output({
            command.args(["--by-process"]);
            command
        })
    };

    let of_daemon = ask(&node, &arguments);
    let runs = by_process(asking(&node, &arguments));
    let on_root = by_process({
        let mut command = node.scene.command(arguments);
        command.arg("--root").arg(root);
        command
    });
    let json = lines(&ask(&node, &["top", "--interval", "300ms", "--output", "json"]));

    assert_eq!((of_daemon.status, &*of_daemon.stderr), (Some(0), ""));
    let rows: Vec<_> = of_daemon.stdout.lines().collect();
    assert!(rows[0].starts_with("TASK "), "{rows:?}");
    assert!(rows[1].starts_with(node.scene.id()) && rows[1].contains("ACTIVE"), "{rows:?}");
    for told in [&runs, &on_root] {
        assert!(!told.stdout.contains('\x1b'), "{told:?}");
        let words: Vec<Vec<_>> =
            told.stdout.lines().map(|line| line.split_whitespace().collect()).collect();
        let cpus = |row: usize| words[row][4].trim_end_matches('%').parse::<f64>().unwrap();
        assert_eq!((words[1][1], words[2][1]), ("busy", "idle"), "{told:?}");
        assert!(cpus(1) > 5.0 && cpus(2) < 5.0, "{told:?}");
    }
    let cpus = json[0]["sample"]["cpu"]["rate"].as_f64().unwrap();
    assert!(cpus > 0.05, "{json:?}");
    let none = ask(&node, &["top", "nonesuch"]);
    assert_eq!(none.status, Some(1), "{none:?}");
    kill(&mut node);
}

/// However it ends, the terminal is as it was.
#[test]
fn top_gives_the_terminal_back() {
    let mut node = node(&busy());
    let signals = [Signal::SIGTERM, Signal::SIGHUP, Signal::SIGINT, Signal::SIGQUIT];
    let ends = signals.into_iter().map(Some).chain([None]);
    for end in ends {
        let mut terminal = Terminal::start(&asking(&node, &["top"]), &[]);
        terminal.wait_for(ENTER);
        terminal.wait_for(node.scene.id());
        let during = terminal.settings();
        match end {
            Some(signal) => terminal.foreground().signal(signal),
            None => terminal.press("q"),
        }
        terminal.wait_for(LEAVE);
        let after = terminal.settings();
        let (status, text) = terminal.finish();

        assert_eq!(status, Some(0), "{end:?}: {text:?}");
        assert_ne!(during, after, "keys are read as they come, without echo");
        let shown = text.split(LEAVE).nth(1).unwrap_or_default();
        assert!(!shown.contains('\x1b'), "{end:?}: nothing is drawn after the end: {text:?}");
    }
    kill(&mut node);
}

#[test]
fn keys_turn_top_to_processes_and_sort_it_and_a_daemon_may_be_replaced_meanwhile() {
    let mut node = node(&busy());
    let mut terminal = Terminal::start(&asking(&node, &["top", "--interval", "100ms"]), &[]);
    terminal.wait_for("by CPU");
    terminal.press("p");
    terminal.wait_for("TASK PROCESS");
    terminal.press("n");
    terminal.wait_for("by name");
    terminal.wait_for("busy");
    terminal.wait_for("idle");

    node.kill();
    terminal.wait_for("the connection to the daemon broke");
    node.serve_again();
    terminal.wait_for("by name");
    terminal.resize(20);
    terminal.wait_for("…");
    terminal.press("q");
    terminal.wait_for(LEAVE);

    assert_eq!(terminal.finish().0, Some(0));
    kill(&mut node);
}

#[test]
fn stats_tell_what_was_used_at_a_time_in_the_past() {
    let mut node = node(&busy());
    let id = node.scene.id().to_owned();
    let stats = |at: &str| lines(&ask(&node, &["stats", &id, "--at", at, "--output", "json"]));
    wait_until("a reading", || ask(&node, &["stats", &id, "--at", "-1s"]).status == Some(0));
    let oldest = stats("2020-01-01T00:00:00Z")[0]["time"].clone();
    wait_until("another reading", || stats("-0s")[0]["time"] != oldest);

    let table = ask(&node, &["stats", "--at", "-0s", "--by-process"]);
    let root = node.scene.root();
    let mut on_root = node.scene.command(["stats", "--at", "-1s", "--root"]);
    on_root.arg(root);
    let on_root = node.scene.output(on_root);

    assert_eq!(stats("2020-01-01T00:00:00Z")[0]["time"], oldest);
    let row = table.stdout.lines().find(|line| line.starts_with(&id)).unwrap();
    assert!(row.contains("at 20") && row.contains('%'), "{}", table.stdout);
    assert!(table.stdout.lines().any(|line| line.starts_with("  busy")), "{}", table.stdout);
    assert_eq!(on_root.status, Some(5), "{on_root:?}");
    assert!(on_root.stderr.contains("only a daemon knows"), "{on_root:?}");
    kill(&mut node);
}
