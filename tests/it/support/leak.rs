//! The leak gate: what is left of a scene when its test ends.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::time::Duration;

use nix::sys::signal::Signal;

use super::process::Pid;
use super::scene::Place;

/// A runner that has told the end of its task has this long to go.
const GRACE: Duration = Duration::from_secs(5);

/// Ends whatever is left of a scene, and says what that was.
pub(super) fn clear(place: &Place) -> Vec<String> {
    let mut left = Vec::new();
    for (pid, what) in processes(place) {
        if is_own(&what) && pid.ends_within(GRACE) {
            continue;
        }
        left.push(format!("process {} ({what})", pid.number()));
        pid.signal(Signal::SIGKILL);
    }
    for cgroup in cgroups(place) {
        left.push(format!("cgroup {}", cgroup.display()));
        remove(&cgroup);
    }
    left
}

/// Whether it is a program of dewar that may be on its way out.
fn is_own(what: &str) -> bool {
    what.starts_with("dewar-runner ")
}

/// Processes that were started for this scene: its paths are in their arguments or in their environment.
fn processes(place: &Place) -> Vec<(Pid, String)> {
    let needle = format!("{}/", place.dir.display());
    let has = |bytes: &[u8]| bytes.windows(needle.len()).any(|part| part == needle.as_bytes());
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").unwrap().flatten() {
        let Some(number) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else {
            continue;
        };
        // The descriptor first: what is read after it is of the process that it names, or of none.
        let Some(pid) = Pid::find(number) else { continue };
        let read = |file: &str| fs::read(entry.path().join(file)).unwrap_or_default();
        let arguments = read("cmdline");
        if has(&arguments) || has(&read("environ")) {
            let what = String::from_utf8_lossy(&arguments).replace('\0', " ");
            found.push((pid, what));
        }
    }
    found
}

/// Cgroups of the tasks of this scene.
fn cgroups(place: &Place) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for base in bases() {
        let Ok(entries) = fs::read_dir(base.join("tasks")) else { continue };
        found.extend(entries.flatten().map(|entry| entry.path()).filter(|path| {
            path.file_name().and_then(|name| name.to_str()).is_some_and(|name| place.owns(name))
        }));
    }
    found
}

/// Where dewar may have its cgroups on this host: it finds the base by itself, and so do we.
pub(super) fn bases() -> &'static [PathBuf] {
    static BASES: OnceLock<Vec<PathBuf>> = OnceLock::new();
    BASES.get_or_init(|| {
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
        let mount = mounts.lines().find_map(|line| {
            let (before, after) = line.split_once(" - ")?;
            after.starts_with("cgroup2 ").then(|| before.split(' ').nth(4))?
        });
        let Some(mount) = mount.map(Path::new) else { return Vec::new() };
        let own = fs::read_to_string("/proc/self/cgroup").unwrap();
        let own = own.lines().find_map(|line| line.strip_prefix("0::/")).unwrap_or_default();
        let own = mount.join(own);
        let mut bases = vec![mount.join("dewar"), mount.to_owned()];
        bases.extend(own.parent().map(Path::to_owned));
        bases.push(own);
        bases.sort();
        bases.dedup();
        bases
    })
}

fn remove(cgroup: &Path) {
    let _ = fs::write(cgroup.join("cgroup.kill"), "1");
    for entry in fs::read_dir(cgroup).into_iter().flatten().flatten() {
        if entry.path().is_dir() {
            remove(&entry.path());
        }
    }
    // A killed process takes its time to leave; the next run of the tests does not depend on this one.
    for _ in 0..100 {
        if fs::remove_dir(cgroup).is_ok() || !cgroup.exists() {
            return;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}
