//! What tests share: a process of their own, a directory of their own, a user of their own.
#![allow(clippy::disallowed_methods, reason = "tests on the real kernel")]

use std::any::type_name;
use std::env;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{Gid, Uid, geteuid, setgroups, setresgid, setresuid};

use crate::proto::Identity;
use crate::sys::clone::fork;
use crate::sys::exec::exit_now;

const TEST: &str = "DEWAR_TEST_ALONE";
const CASE: &str = "DEWAR_TEST_CASE";

/// Runs `body`, a closure of a test, in a process of its own, where it may do to itself what it
/// likes: the test binary, started for that test alone.
pub(crate) fn alone<F: Fn()>(body: F) {
    in_processes(test_of::<F>(), &[], &[""], |_| body());
}

/// As [`alone`], with more in its environment.
pub(crate) fn alone_with<F: Fn()>(environment: &[(&str, &str)], body: F) {
    in_processes(test_of::<F>(), environment, &[""], |_| body());
}

/// As [`alone`], in a process of its own for each case.
pub(crate) fn each_alone<F: Fn(&str)>(cases: &[&str], body: F) {
    in_processes(test_of::<F>(), &[], cases, body);
}

/// Name of the test that a closure stands in: it is `dewar::module::tests::name::{{closure}}`.
fn test_of<F>() -> &'static str {
    let closure = type_name::<F>();
    let test = closure.trim_end_matches("::{{closure}}");
    test.strip_prefix("dewar::").unwrap_or(test)
}

fn in_processes(test: &str, environment: &[(&str, &str)], cases: &[&str], body: impl Fn(&str)) {
    if env::var(TEST).is_ok_and(|running| running == test) {
        return in_single_thread(|| body(&env::var(CASE).unwrap()));
    }
    for case in cases {
        let output = Command::new(env::current_exe().unwrap())
            .args(["--exact", test, "--nocapture", "--test-threads=1"])
            .envs(environment.iter().copied())
            .envs([(TEST, test), (CASE, case), ("RUST_BACKTRACE", "0")])
            .output()
            .unwrap();
        let [out, err] = [&output.stdout, &output.stderr].map(|text| String::from_utf8_lossy(text));
        assert!(
            output.status.success() && out.contains("1 passed"),
            "case {case:?}: {}\n{out}{err}",
            output.status
        );
    }
}

/// Runs `body` in a child: the test harness has a thread of its own, and a coordinator has none.
fn in_single_thread(body: impl FnOnce()) {
    let child = || {
        let result = catch_unwind(AssertUnwindSafe(body));
        exit_now(i32::from(result.is_err()))
    };
    let (pid, _) = fork(child).unwrap();
    assert_eq!(waitpid(pid, None), Ok(WaitStatus::Exited(pid, 0)));
}

/// What `body` returns, while another thread does `disturb` again and again. Both end when `body` returns or panics.
pub(crate) fn while_disturbed<T>(disturb: impl Fn() + Sync, body: impl FnOnce() -> T) -> T {
    struct Stop<'a>(&'a AtomicBool);
    impl Drop for Stop<'_> {
        fn drop(&mut self) {
            self.0.store(true, Ordering::Relaxed);
        }
    }
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let _stop = Stop(&over);
        scope.spawn(|| {
            while !over.load(Ordering::Relaxed) {
                disturb();
            }
        });
        body()
    })
}

/// Whether this is root; a test that needs it says that it was left out.
pub(crate) fn is_root() -> bool {
    let root = geteuid().is_root();
    if !root {
        eprintln!("left out: needs root");
    }
    root
}

/// An id that no database has.
pub(crate) const ORDINARY: u32 = 54_321;

/// Makes this process one of an ordinary user, for good.
pub(crate) fn become_ordinary() {
    let (uid, gid) = (Uid::from_raw(ORDINARY), Gid::from_raw(ORDINARY));
    setgroups(&[gid]).unwrap();
    setresgid(gid, gid, gid).unwrap();
    setresuid(uid, uid, uid).unwrap();
}

/// The ordinary user, as an identity to be taken.
pub(crate) fn ordinary(groups: &[u32]) -> Identity {
    Identity {
        user: "ordinary".to_owned(),
        uid: ORDINARY,
        gid: ORDINARY,
        groups: groups.to_vec(),
        home: "/home/ordinary".to_owned(),
        switch: true,
    }
}

/// A directory for one test, removed at its end.
pub(crate) struct TempDir(PathBuf);

impl TempDir {
    /// Makes it, open to everybody.
    pub(crate) fn new() -> Self {
        Self::beneath(&env::temp_dir())
    }

    /// One for very many files, in memory where there is a disk of memory.
    pub(crate) fn of_many_files() -> Self {
        let memory = Path::new("/dev/shm");
        if memory.is_dir() { Self::beneath(memory) } else { Self::new() }
    }

    fn beneath(parent: &Path) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("dewar-test-{}-{number}", std::process::id());
        let path = parent.canonicalize().unwrap().join(name);
        std::fs::create_dir(&path).unwrap();
        Self(path)
    }

    /// Its path, without links.
    pub(crate) fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for TempDir {
    fn drop(&mut self) {
        let _gone = std::fs::remove_dir_all(&self.0);
    }
}
