//! A base of a test's own on the real kernel, which leaves nothing behind.

use std::env;
use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{self, Child, ChildStdout, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use nix::unistd::Pid;

use super::dir::Dir;
use super::host::Mounts;
use super::{Base, Cgroup, Options, TaskCgroup, find};
use crate::task::{ProcessName, TaskId};

/// How long a test waits for what must happen.
pub(super) const PATIENCE: Duration = Duration::from_secs(20);

/// `<mount>/dewar-test-<pid>-<n>`; killed and removed when dropped.
pub(crate) struct Scratch {
    base: Base,
    dir: Dir,
}

impl Scratch {
    /// # Panics
    ///
    /// If this is not root on a host with a writable cgroup v2: then nothing here can be tested.
    pub(crate) fn new() -> Self {
        let path = fresh_path();
        let base = find(&Options { explicit: Some(path.clone()) }).unwrap_or_else(|error| {
            panic!("these tests need root and a writable cgroup v2: {error}: {error:?}")
        });
        Self { base, dir: Dir::open(&path).unwrap() }
    }

    pub(super) fn base(&self) -> &Base {
        &self.base
    }

    /// The base's own directory.
    pub(super) fn dir(&self) -> &Dir {
        &self.dir
    }

    pub(crate) fn task(&self, id: &str) -> TaskCgroup {
        self.base.task(&TaskId::new(id).unwrap()).unwrap()
    }

    /// A leaf of a task.
    pub(super) fn leaf(&self) -> Cgroup {
        self.task("task").leaf(&ProcessName::new("process").unwrap(), 0).unwrap()
    }

    /// Runs `script` in the cgroup at `path`, in which it is when this returns.
    pub(super) fn inhabit(&self, path: &Path, script: &str) -> Inhabitant {
        let mut child = Command::new("/bin/sh")
            .args(["-c", r#"echo 0 > "$0/cgroup.procs" && echo in && eval "$1""#])
            .args([path.as_os_str(), script.as_ref()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("no /bin/sh");
        let mut lines = BufReader::new(child.stdout.take().unwrap());
        assert_eq!(read_line(&mut lines), "in", "cannot enter {}", path.display());
        Inhabitant { child, lines }
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let outcome = remove(&self.dir);
        if !thread::panicking() {
            outcome.unwrap();
        }
    }
}

/// Kills by std, not by what is tested here: a defect in that must not leave a fork storm behind.
fn remove(dir: &Dir) -> Result<(), super::CgroupError> {
    fs::write(dir.path().join("cgroup.kill"), "1").unwrap();
    let events = dir.path().join("cgroup.events");
    eventually("the end of all processes", || {
        fs::read_to_string(&events).unwrap().contains("populated 0")
    });
    Cgroup::new(dir.try_clone()?)?.remove()
}

/// A shell in a cgroup. Its input ends when it is dropped, and it is waited for.
pub(super) struct Inhabitant {
    pub(super) child: Child,
    lines: BufReader<ChildStdout>,
}

impl Inhabitant {
    pub(super) fn pid(&self) -> Pid {
        Pid::from_raw(self.child.id().try_into().unwrap())
    }

    /// The next line that it says.
    pub(super) fn line(&mut self) -> String {
        read_line(&mut self.lines)
    }

    /// All that it has yet to say, to its end.
    pub(super) fn rest(mut self) -> String {
        drop(self.child.stdin.take());
        let mut rest = String::new();
        std::io::Read::read_to_string(&mut self.lines, &mut rest).unwrap();
        rest
    }
}

impl Drop for Inhabitant {
    fn drop(&mut self) {
        drop(self.child.stdin.take());
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn read_line(lines: &mut BufReader<ChildStdout>) -> String {
    let mut line = String::new();
    lines.read_line(&mut line).unwrap();
    line.trim_end().to_owned()
}

/// A path for a base that nobody else has.
pub(super) fn fresh_path() -> PathBuf {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let number = COUNT.fetch_add(1, Ordering::Relaxed);
    mount_point().join(format!("dewar-test-{}-{number}", process::id()))
}

/// Where cgroup v2 is mounted.
pub(super) fn mount_point() -> PathBuf {
    let mounts = Mounts::parse(&fs::read("/proc/self/mountinfo").unwrap());
    let seat = mounts.seat(&fs::read("/proc/self/cgroup").unwrap());
    seat.unwrap_or_else(|why| panic!("these tests need a mounted cgroup v2: {why:?}")).mount
}

/// Waits until `met` says so.
pub(super) fn eventually(what: &str, mut met: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !met() {
        assert!(Instant::now() < deadline, "{what} did not happen");
        thread::sleep(Duration::from_millis(1));
    }
}

/// Shell script that does `before`, then becomes `with` (such as `setpriv …`, or nothing) running
/// the test `name`, an ignored one, of this very binary in that process of its own.
///
/// The binary goes by descriptor: another user may not reach its directory.
pub(super) fn rerun(before: &str, with: &str, name: &str) -> String {
    let exe = env::current_exe().unwrap();
    let exe = exe.display();
    let test = format!("--exact {name} --ignored --nocapture -q");
    format!("exec 9<'{exe}'; {before}\nexec {with} /proc/self/fd/9 {test} 2>&1")
}
