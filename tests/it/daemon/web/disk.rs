//! Disks: what sandboxes take of them, from round to round, where metrics tell how much is read for that; and one that is full.

use std::fs::File;
use std::io::Write;
use std::os::unix::fs::symlink;

use dewar::proto::{DiskMethod, DiskUsage, GetTaskRequest, GetUsageRequest, TaskState};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tonic::Code;
use tonic_types::StatusExt;

use super::super::client::ask;
use super::super::node::Node;
use super::metrics::value;
use super::web;
use crate::support::{Disk, Gate, Scene, need_root, p, task, wait_until};

/// Rounds that do not let a test wait.
const OFTEN: [&str; 2] = ["--disk-interval", "100ms"];

impl Node {
    /// What the sandbox of the scene's task takes, as it was measured last.
    fn disk(&mut self) -> Option<DiskUsage> {
        let task_id = self.scene.id().to_owned();
        let mut observer = self.observer();
        let told = observer.get_usage(GetUsageRequest { task_id, ..GetUsageRequest::default() });
        self.runtime.block_on(told).unwrap().into_inner().usage.unwrap().disk
    }

    fn wait_for_disk(&mut self, what: &str, is_it: impl Fn(&DiskUsage) -> bool) -> DiskUsage {
        let mut found = None;
        wait_until(what, || {
            found = self.disk().filter(&is_it);
            found.is_some()
        });
        found.unwrap()
    }

    /// Entries that were looked at by now.
    fn entries(&self) -> u64 {
        value(&self.metrics(), "dewar_disk_entries_total").unwrap().parse().unwrap()
    }

    /// Waits until a round reads nothing, and tells the figures.
    fn wait_until_quiet(&mut self) -> DiskUsage {
        loop {
            let (entries, before) = (self.entries(), self.disk().unwrap());
            // The round that goes on may have begun before.
            let next = self.wait_for_disk("a round", |disk| disk.time > before.time);
            let after = self.wait_for_disk("another round", |disk| disk.time > next.time);
            if self.entries() == entries {
                return after;
            }
        }
    }
}

/// V12: and what changes in it is seen in the next round, wherever it is.
#[test]
fn a_large_sandbox_in_which_nothing_changes_is_not_walked_again() {
    let mut node = web(&OFTEN);
    let gate = node.scene.gate("gate");
    let fill = "mkdir -p a/b/c; for n in {1..2000}; do : > a/$n; done";
    let write = "head -c 100000 /dev/zero > a/b/c/new";
    node.launch(&task([p("a", [fill, &gate.hold(), write, &gate.hold()].join("; "))]));
    node.wait_for_disk("it is kept current", |disk| {
        disk.inodes > Some(2000) && disk.method() == DiskMethod::Inotify
    });

    let before = node.wait_until_quiet();
    assert_eq!((before.method(), before.incomplete.clone()), (DiskMethod::Inotify, None));
    let entries = node.entries();
    gate.open();
    let after =
        node.wait_for_disk("what was written is seen", |disk| disk.bytes >= before.bytes + 100_000);

    assert_eq!(
        (after.method(), after.inodes.unwrap()),
        (DiskMethod::Inotify, before.inodes.unwrap() + 1)
    );
    let looked_at = node.entries() - entries;
    assert!((1..100).contains(&looked_at), "{looked_at}");
    gate.open();
    node.wait();
}

/// A file gets a name more, while the daemon stands still: whether the other one counted before is found by looking everywhere.
#[test]
fn what_cannot_be_kept_current_is_walked_and_tried_again() {
    let mut node = web(&OFTEN);
    let [go, told, end] = ["go", "told", "end"].map(|name| node.scene.gate(name));
    let fill = "mkdir a b; for n in {1..2000}; do : > a/$n; done".to_owned();
    let change = "ln a/7 b/7; : > new".to_owned();
    let steps = [fill, go.hold(), change, told.tell(), end.hold()].join("; ");
    node.launch(&task([p("a", steps)]));
    node.wait_for_disk("it is kept current", |disk| {
        disk.inodes > Some(2000) && disk.method() == DiskMethod::Inotify
    });
    let before = node.wait_until_quiet().inodes.unwrap();
    let daemon = Pid::from_raw(node.daemon.id() as i32);

    kill(daemon, Signal::SIGSTOP).unwrap();
    go.open();
    told.wait();
    kill(daemon, Signal::SIGCONT).unwrap();
    let walked = node.wait_for_disk("it is measured", |disk| disk.inodes != Some(before));

    assert_eq!((walked.method(), walked.inodes), (DiskMethod::Walk, Some(before + 1)));
    node.wait_for_disk("it is kept current again", |disk| disk.method() == DiskMethod::Inotify);
    end.open();
    node.wait();
}

/// Attack 34: the root's file system is full. What runs goes on, its end is kept until it can be recorded, nothing new is accepted or begun,
/// and who looks at metrics or log is told.
#[test]
fn a_full_disk_refuses_launches_and_is_told() {
    need_root!();
    let scene = Scene::new();
    let disk = Disk::new(scene.root());
    // Whose log cannot be written does not die of that; that of the runner is there, too.
    symlink(disk.path().join("daemon.log"), scene.path("daemon.log")).unwrap();
    let mut node = Node::of(scene, &["--web", "127.0.0.1:0"]);
    // It goes before the scene does.
    let disk = disk;
    let [begun, first, second] = ["begun", "first", "second"].map(|name| node.scene.gate(name));
    let process = |gate: &Gate| format!("{}; {}", begun.tell(), gate.hold());
    let processes = [p("a", process(&first)), p("b", process(&second))];
    let view = node.launch(&task(processes).order(["a", "b"]));
    begun.wait();
    let id = node.scene.id().to_owned();
    let labels = format!(r#"{{name="{}",task_id="{id}",user="root"}}"#, view.name);
    let waits = |node: &Node| {
        let metrics = node.metrics();
        value(&metrics, &format!("dewar_task_waits_for_disk{labels}")).map(str::to_owned)
    };
    let free = |node: &Node| value(&node.metrics(), "dewar_root_free_bytes").unwrap().to_owned();
    assert_eq!(waits(&node).as_deref(), Some("0"));
    assert_ne!(free(&node), "0");

    // Not even what is left of a block.
    let log = node.scene.path("daemon.log");
    let mut end = File::options().append(true).open(&log).unwrap();
    let rest = 4096 - end.metadata().unwrap().len() % 4096;
    end.write_all(&vec![b'\n'; rest as usize]).unwrap();
    disk.fill();
    assert_eq!(free(&node), "0");
    let mut request = node.request(&task([p("a", "true")]));
    let refused = format!("{id}.refused");
    request.task_id = Some(refused.clone());
    let mut runner = node.runner();
    let error = node.runtime.block_on(runner.launch(request)).unwrap_err();
    let info = error.get_error_details().error_info().unwrap().reason.clone();
    assert_eq!((error.code(), info.as_str()), (Code::ResourceExhausted, "NO_SPACE"));
    assert!(error.message().contains("No space left on device"), "{error:?}");
    let mut observer = node.observer();
    let asked = observer.get_task(GetTaskRequest { task_id: refused });
    assert_eq!(node.runtime.block_on(asked).unwrap_err().code(), Code::NotFound);

    let words = "waits for space on its disk";
    let mut page = node.events(&format!("/task/{id}"));
    let says = |node: &Node, asked: &[&str]| ask(node, asked).stdout.contains(words);
    assert!(!page.next("page").contains(words) && !says(&node, &["explain", &id]));
    first.open();
    wait_until("it waits", || waits(&node).as_deref() == Some("1"));
    assert!(says(&node, &["status", "-v", &id]) && says(&node, &["explain", &id]));
    page.until("page", |page| page.contains(words));
    let told = node.get();
    assert_eq!(told.waits_for_disk, Some(true));
    let ended = told.processes[0].runs[0].end_time;
    assert!(told.state() == TaskState::Active && ended.is_some(), "{told:?}");
    disk.make_space();

    begun.wait();
    wait_until("it waits no more", || waits(&node).as_deref() == Some("0"));
    page.until("page", |page| !page.contains(words));
    assert_eq!(node.get().waits_for_disk, None);
    assert!(!says(&node, &["status", "-v", &id]));
    let log = std::fs::read_to_string(&log).unwrap();
    assert!(log.contains("the task waits for its disk no more"), "{log}");
    second.open();
    assert_eq!(node.wait().state(), TaskState::Success);
    node.kill();
}

/// Nothing is recorded as it begins to wait.
#[test]
fn who_looks_at_a_task_is_told_that_it_waits_for_its_disk() {
    let scene = Scene::new();
    let full = scene.file("full", "");
    let failpoint = format!("coordinator::flush-ended=ENOSPC*@{}", full.display());
    let environment = [("DEWAR_FAILPOINT", failpoint.as_str())];
    let mut node = Node::of_environment(scene, &["--web", "127.0.0.1:0"], &environment);
    let [begun, hold] = ["begun", "hold"].map(|name| node.scene.gate(name));
    node.launch(&task([p("a", format!("{}; {}", begun.tell(), hold.hold()))]));
    let mut page = node.events(&format!("/task/{}", node.scene.id()));
    begun.wait();
    page.until("page", |page| page.contains("RUNNING"));

    hold.open();
    let told = page.until("page", |page| page.contains("waits for space on its disk"));

    assert!(told.contains("RUNNING"), "{told}");
    std::fs::remove_file(full).unwrap();
    assert_eq!(node.wait().state(), TaskState::Success);
}
