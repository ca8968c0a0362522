//! The leak gate: a test leaves the machine as it found it.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};

use crate::child;
use crate::processes;

/// A runner that has told the end of its task has this long to go.
const GRACE: Duration = Duration::from_secs(5);

/// Time between two looks.
const LOOK: Duration = Duration::from_millis(5);

/// Directories in which tests and dewar make files.
const DIRECTORIES: [&str; 5] = ["/tmp", "/run", "/dev/shm", "/var/lib/dewar", "/root"];

/// What is in them belongs to systemd, which makes and keeps files there as it likes.
const SYSTEMD: &str = "/run/systemd";

/// What dewar makes on a bare host and keeps.
const KEPT: [&str; 3] = ["dewar", "dewar/supervisor", "dewar/tasks"];

/// All that could be left behind, a line each.
pub(crate) struct Snapshot(BTreeSet<String>);

/// Looks at the machine.
pub(crate) fn snapshot() -> Snapshot {
    let mounts = mounts();
    let mut seen = BTreeSet::new();
    seen.extend(processes());
    seen.extend(descriptors());
    seen.extend(mounts.iter().map(|mount| format!("mount {}", mount.line)));
    for mount in mounts.iter().filter(|mount| mount.is_cgroup) {
        let kept = KEPT.map(|name| mount.place.join(name));
        let cgroups = beneath(&mount.place).into_iter();
        let cgroups = cgroups.filter(|path| path.is_dir() && !kept.contains(path));
        seen.extend(cgroups.map(|path| format!("cgroup {}", path.display())));
    }
    let files = DIRECTORIES.iter().flat_map(|directory| beneath(Path::new(directory)));
    let files = files.filter(|path| !path.starts_with(SYSTEMD));
    seen.extend(files.map(|path| format!("file {}", path.display())));
    Snapshot(seen)
}

impl Snapshot {
    /// Waits until the machine is as it was; gives what has come for good, and mounts that have gone.
    pub(crate) fn differences(&self) -> Vec<String> {
        let deadline = Instant::now() + GRACE;
        loop {
            child::reap();
            let now = snapshot();
            let come = now.0.difference(&self.0).cloned();
            let gone = self.0.difference(&now.0).filter(|line| line.starts_with("mount "));
            let gone = gone.map(|line| format!("no longer: {line}"));
            let differences: Vec<_> = come.chain(gone).collect();
            if differences.is_empty() || Instant::now() > deadline {
                return differences;
            }
            thread::sleep(LOOK);
        }
    }
}

/// Ends and removes what can be, so that the next test does not suffer for this one.
pub(crate) fn clean(before: &Snapshot) {
    let deadline = Instant::now() + GRACE;
    while Instant::now() < deadline {
        let mut left = processes::all();
        left.retain(|process| {
            !process.is_kernel
                && process.pid != 1
                && process.state != 'Z'
                && !before.0.contains(&line(process))
        });
        for process in &left {
            // It may end by itself meanwhile.
            let _ = kill(process.id(), Signal::SIGKILL);
        }
        child::reap();
        if left.is_empty() {
            break;
        }
        thread::sleep(LOOK);
    }
    // From the deepest up; what cannot be removed is the baseline of the next test.
    for left in snapshot().0.iter().rev().filter(|line| !before.0.contains(*line)) {
        if let Some(cgroup) = left.strip_prefix("cgroup ") {
            let _ = fs::remove_dir(cgroup);
        } else if let Some(file) = left.strip_prefix("file ") {
            let _ = fs::remove_file(file).or_else(|_| fs::remove_dir(file));
        }
    }
}

fn processes() -> impl Iterator<Item = String> {
    let all = processes::all().into_iter();
    // Process 1 is there, whatever it calls itself.
    all.filter(|process| !process.is_kernel && process.pid != 1).map(|process| line(&process))
}

fn line(process: &processes::Process) -> String {
    let kind = if process.state == 'Z' { "zombie" } else { "process" };
    format!("{kind} {} of {}: {}", process.pid, process.parent, process.what)
}

/// Descriptors of this process.
fn descriptors() -> impl Iterator<Item = String> {
    let entries = fs::read_dir("/proc/self/fd").into_iter().flatten().flatten();
    entries.filter_map(|entry| {
        let target = fs::read_link(entry.path()).ok()?;
        // The one by which this is read.
        let is_ours = target.ends_with("fd");
        (!is_ours).then(|| {
            format!("descriptor {} of process 1: {}", entry.file_name().display(), target.display())
        })
    })
}

struct Mount {
    place: PathBuf,
    is_cgroup: bool,
    /// Without numbers that differ each time.
    line: String,
}

fn mounts() -> Vec<Mount> {
    let text = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    let parse = |line: &str| {
        let fields: Vec<&str> = line.split(' ').collect();
        let [source, place, kind, ..] = fields[..] else { return None };
        Some(Mount {
            place: PathBuf::from(place),
            is_cgroup: kind.starts_with("cgroup"),
            line: format!("{kind} {source} on {place}"),
        })
    };
    text.lines().filter_map(parse).collect()
}

/// Everything beneath a directory; no link is followed, and no other file system entered but cgroups' own.
fn beneath(directory: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            found.extend(beneath(&entry.path()));
        }
        found.push(entry.path());
    }
    found
}
