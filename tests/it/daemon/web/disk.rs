//! What sandboxes take of their disks, from round to round; metrics tell how much is read for that.

use dewar::proto::{DiskMethod, DiskUsage, GetUsageRequest};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::super::node::Node;
use super::metrics::value;
use super::web;
use crate::support::{p, task, wait_until};

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
