//! What was killed and does not die.
//!
//! SIGKILL ends a process as soon as it leaves the kernel, or sleeps in it interruptibly. In state D it does neither: it waits for a
//! disk, a server of a file system, a lock. Nobody can end it; it can be told what it waits for (proc(5): `wchan`, `stack`), as
//! far as we may look.

use std::fs;
use std::path::{Path, PathBuf};

use nix::unistd::Pid;

use super::{Cgroup, CgroupError};
use crate::proto::{StuckProcess, Timestamp, Unkillable};
use crate::sys::clock;

/// Processes that are told one by one, and functions of the stack of each: a record of them is to fit where space was set aside.
const PROCESSES_TOLD: usize = 3;
const FRAMES_TOLD: usize = 8;

/// Characters of a name of a function that are told.
const NAME_LENGTH: usize = 48;

impl Cgroup {
    /// What lives in this cgroup and beneath it, though it was killed; `None` if nothing does.
    ///
    /// # Errors
    ///
    /// [`CgroupError::Sys`].
    pub fn unkillable(&self) -> Result<Option<Unkillable>, CgroupError> {
        if !self.is_populated()? {
            return Ok(None);
        }
        Ok(Some(told(&self.pids()?)))
    }
}

/// What lives of the processes `pids`, though they were killed; `None` if none does. For where there is no cgroup.
pub fn unkillable(pids: &[i32]) -> Option<Unkillable> {
    let pids = pids.iter().map(|&pid| Pid::from_raw(pid));
    let alive: Vec<Pid> = pids.filter(|&pid| look(pid).is_some()).collect();
    (!alive.is_empty()).then(|| told(&alive))
}

fn told(pids: &[Pid]) -> Unkillable {
    // One that dies meanwhile is not there to be looked at.
    let stuck = pids.iter().filter_map(|&pid| look(pid)).take(PROCESSES_TOLD);
    Unkillable {
        count: u32::try_from(pids.len()).unwrap_or(u32::MAX),
        processes: stuck.collect(),
        time: Some(Timestamp::from_unix_nanos(clock::now().wall)),
    }
}

/// A process that lives, by the thread of it that is most stuck: its leader may be a zombie already.
fn look(pid: Pid) -> Option<StuckProcess> {
    let threads = fs::read_dir(format!("/proc/{pid}/task")).ok()?;
    let threads = threads.filter_map(|entry| Thread::read(entry.ok()?.path()));
    let thread = threads.filter(|thread| thread.stuckness() > 0);
    let thread = thread.max_by_key(Thread::stuckness)?;
    let stack = fs::read_to_string(thread.dir.join("stack")).unwrap_or_default();
    Some(StuckProcess {
        pid: pid.as_raw(),
        state: thread.state.to_string(),
        wchan: wchan(&thread.dir),
        stack: frames(&stack),
        name: thread.name,
    })
}

struct Thread {
    dir: PathBuf,
    name: String,
    state: char,
}

impl Thread {
    fn read(dir: PathBuf) -> Option<Self> {
        let (name, state) = name_and_state(&fs::read(dir.join("stat")).ok()?)?;
        Some(Self { dir, name, state })
    }

    fn stuckness(&self) -> u8 {
        match self.state {
            'Z' | 'X' => 0,
            'D' => 2,
            _ => 1,
        }
    }
}

/// Fields 2 and 3 of `/proc/PID/stat`. A name may hold anything, a `)` too: the last one ends it.
fn name_and_state(stat: &[u8]) -> Option<(String, char)> {
    let stat = String::from_utf8_lossy(stat);
    let (name, rest) = stat.split_once('(')?.1.rsplit_once(')')?;
    Some((name.to_owned(), rest.trim_start().chars().next()?))
}

/// `0` means that it does not wait, or that we may not know.
fn wchan(thread: &Path) -> Option<String> {
    let wchan = fs::read_to_string(thread.join("wchan")).ok()?;
    (!wchan.is_empty() && wchan != "0").then(|| cut(&wchan))
}

/// The functions in lines of `[<0>] function+0x1d/0x40`.
fn frames(stack: &str) -> Vec<String> {
    let frame = |line: &str| {
        let function = line.split_whitespace().nth(1)?.split('+').next()?;
        Some(cut(function))
    };
    stack.lines().filter_map(frame).take(FRAMES_TOLD).collect()
}

fn cut(name: &str) -> String {
    name.chars().take(NAME_LENGTH).collect()
}

#[cfg(test)]
mod tests {
    use prost::Message;

    use super::*;
    use crate::cgroup::scratch::Scratch;

    #[test]
    fn a_name_may_hold_what_divides_the_fields() {
        let name = |stat: &str| name_and_state(stat.as_bytes());

        assert_eq!(name("12 (a) D (b)) D 1 12"), Some(("a) D (b)".to_owned(), 'D')));
        assert_eq!(name("12 (dd) S 1 12"), Some(("dd".to_owned(), 'S')));
        for odd in ["", "12", "12 (dd", "12 (dd)", ")("] {
            assert_eq!(name(odd), None, "{odd:?}");
        }
    }

    #[test]
    fn a_stack_is_the_names_of_its_functions() {
        let stack = "[<0>] __x64_sys_fsync+0x1d/0x40\n[<0>] do_syscall_64+0x58/0xc0\nodd\n";

        assert_eq!(frames(stack), ["__x64_sys_fsync", "do_syscall_64"]);
        assert_eq!(frames(""), [""; 0]);
    }

    #[test]
    fn what_lives_is_told_with_its_state_and_an_empty_cgroup_is_not_stuck() {
        let scratch = Scratch::new();
        let leaf = scratch.leaf();
        assert_eq!(leaf.unkillable().unwrap(), None);
        let inhabitant = scratch.inhabit(leaf.path(), "kill -STOP $$");
        crate::cgroup::scratch::eventually("the stop", || {
            leaf.unkillable().unwrap().unwrap().processes[0].state == "T"
        });

        let told = leaf.unkillable().unwrap().unwrap();

        let process = &told.processes[0];
        assert_eq!((told.count, told.processes.len()), (1, 1));
        assert_eq!((process.pid, &*process.name), (inhabitant.pid().as_raw(), "sh"));
        let _ = nix::sys::signal::kill(inhabitant.pid(), nix::sys::signal::Signal::SIGCONT);
    }

    #[test]
    fn without_a_cgroup_what_lives_is_told_and_what_is_dead_is_not() {
        let mut child = std::process::Command::new("sleep").arg("600").spawn().unwrap();
        let pid = i32::try_from(child.id()).unwrap();

        let alive = unkillable(&[pid, i32::MAX]).unwrap();
        child.kill().unwrap();
        // It is a zombie until it is waited for.
        crate::cgroup::scratch::eventually("its death", || unkillable(&[pid]).is_none());
        child.wait().unwrap();

        assert_eq!((alive.count, alive.processes[0].pid), (1, pid));
    }

    /// Half of what a coordinator sets aside for its records.
    #[test]
    fn what_is_told_fits_where_space_was_set_aside() {
        let process = StuckProcess {
            pid: i32::MAX,
            name: "n".repeat(15),
            state: "D".to_owned(),
            wchan: Some(cut(&"w".repeat(500))),
            stack: frames(&format!("[<0>] {}+0x1/0x2\n", "f".repeat(500)).repeat(500)),
        };
        let most = Unkillable {
            count: u32::MAX,
            processes: vec![process; PROCESSES_TOLD],
            time: Some(Timestamp::from_unix_nanos(i64::MAX)),
        };

        assert!(most.encoded_len() < 2048, "{}", most.encoded_len());
    }
}
