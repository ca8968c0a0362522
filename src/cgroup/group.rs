//! One cgroup, kept open: killed, signalled, watched, emptied, removed.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::uio::pread;
use nix::unistd::Pid;

use super::dir::{Dir, sys};
use super::{CgroupError, usage};
use crate::sys::pidfd;

/// How many processes are held by descriptor at one time to be signalled: well under a soft limit
/// of 1024 descriptors.
const SIGNAL_BATCH: usize = 64;

/// How often the list of processes is read anew for ones that were forked meanwhile. A fork storm
/// outruns any number: what must die is killed by `cgroup.kill`.
const SIGNAL_PASSES: usize = 8;

/// How often a tree that is not populated is taken down while somebody builds on it.
const REMOVE_PASSES: usize = 8;

/// First and longest pause between two looks at a cgroup that is dying: see [`Cgroup::wait_empty`].
const LOOK_AGAIN: Duration = Duration::from_millis(1);
const LOOK_AGAIN_MAX: Duration = Duration::from_millis(1024);

/// A cgroup: a task's, or the leaf of a run.
///
/// A cgroup that was removed is empty, for ever: it is not populated, has no processes, and to kill
/// or remove it succeeds.
#[derive(Debug)]
pub struct Cgroup {
    dir: Dir,
    events: OwnedFd,
}

impl Cgroup {
    /// Holds `dir`, which is not the root of the hierarchy.
    pub(super) fn new(dir: Dir) -> Result<Self, CgroupError> {
        let events = dir
            .open_file("cgroup.events", OFlag::O_RDONLY)
            .map_err(|errno| dir.error("open", "cgroup.events", errno))?;
        Ok(Self { dir, events })
    }

    /// Holds `dir`, which was there when it was opened; `None` if somebody has removed it since.
    pub(super) fn found(dir: Dir) -> Result<Option<Self>, CgroupError> {
        match Self::new(dir) {
            Err(error) if error.is_gone() => Ok(None),
            cgroup => cgroup.map(Some),
        }
    }

    /// The same cgroup with descriptors of its own. A process that was forked must take them before
    /// it watches: [`Cgroup::events_fd`].
    ///
    /// # Errors
    ///
    /// [`CgroupError::Sys`]: it was removed, or descriptors ran out.
    pub fn reopen(&self) -> Result<Self, CgroupError> {
        Self::new(self.dir.try_clone()?)
    }

    /// Absolute path.
    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    pub(super) fn dir(&self) -> &Dir {
        &self.dir
    }

    /// Descriptor that polls as POLLPRI when `populated` or `frozen` has changed since it was last
    /// read, which [`Cgroup::is_populated`] does.
    ///
    /// What was seen is remembered by the open file, so two processes that share it across a fork
    /// steal each other's changes: see [`Cgroup::reopen`]. The kernel lets at most one change
    /// through in 10 ms, later ones late: look at `is_populated` before polling.
    pub fn events_fd(&self) -> BorrowedFd<'_> {
        self.events.as_fd()
    }

    /// Whether somebody has removed it: another one may have its name by now.
    pub fn is_removed(&self) -> bool {
        pread(&self.events, &mut [0], 0) == Err(Errno::ENODEV)
    }

    /// Whether a process lives in this cgroup or beneath it. Zombies do not count.
    ///
    /// # Errors
    ///
    /// [`CgroupError::Sys`]: the file could not be read, or says neither.
    pub fn is_populated(&self) -> Result<bool, CgroupError> {
        let failed = |errno| self.dir.error("read", "cgroup.events", errno);
        let mut buffer = [0; 256];
        let length = match pread(&self.events, &mut buffer, 0) {
            Ok(length) => length,
            Err(Errno::ENODEV) => return Ok(false),
            Err(errno) => return Err(failed(errno)),
        };
        match usage::keyed(&buffer[..length], "populated") {
            Some(value) => Ok(value != 0),
            None => Err(failed(Errno::EBADMSG)),
        }
    }

    /// Waits until the cgroup is empty, or until `deadline`; returns whether it is empty.
    ///
    /// For whoever has just killed it. The processes of a small cgroup are gone within 0.2 ms, but
    /// the kernel may tell so 10 ms later, and later still for a cgroup that is itself younger than
    /// that: its birth was the last change let through. So this looks again by itself, after 1 ms,
    /// then half as often each time; the notification is what wakes it from the longer pauses.
    ///
    /// # Errors
    ///
    /// [`CgroupError::Sys`].
    pub fn wait_empty(&self, deadline: Instant) -> Result<bool, CgroupError> {
        let mut pause = LOOK_AGAIN;
        while self.is_populated()? {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(false);
            }
            // A poll of 0 ms would spin away what is left of the last millisecond.
            let timeout = PollTimeout::try_from(pause.min(left).max(LOOK_AGAIN))
                .unwrap_or(PollTimeout::from(1u8));
            match poll(&mut [PollFd::new(self.events_fd(), PollFlags::POLLPRI)], timeout) {
                Ok(_) | Err(Errno::EINTR) => {}
                Err(errno) => return Err(self.dir.error("poll", "cgroup.events", errno)),
            }
            pause = (pause * 2).min(LOOK_AGAIN_MAX);
        }
        Ok(true)
    }

    /// Kills every process in this cgroup and beneath it, whatever it blocks, ignores or forks, and
    /// also if it is frozen. Returns before they are gone: [`Cgroup::wait_empty`].
    ///
    /// # Errors
    ///
    /// [`CgroupError::Sys`]: EOPNOTSUPP if somebody made it a threaded cgroup.
    pub fn kill(&self) -> Result<(), CgroupError> {
        match self.dir.write("cgroup.kill", "1") {
            Ok(()) | Err(Errno::ENODEV | Errno::ENOENT) => Ok(()),
            Err(errno) => Err(self.dir.error("write", "cgroup.kill", errno)),
        }
    }

    /// The processes in this cgroup and beneath it, ascending, as far as our pid namespace sees them.
    ///
    /// # Errors
    ///
    /// [`CgroupError::Sys`].
    pub fn pids(&self) -> Result<Vec<Pid>, CgroupError> {
        let mut pids = self.own_pids()?;
        self.dir.walk(|_, _, child| read_pids(child, &mut pids))?;
        pids.sort_unstable();
        pids.dedup();
        Ok(pids)
    }

    /// The processes in this cgroup itself.
    fn own_pids(&self) -> Result<Vec<Pid>, CgroupError> {
        own_pids(&self.dir)
    }

    /// Sends `signal` to every process in this cgroup and beneath it; returns how many got it.
    ///
    /// No stranger is signalled, though pids are reused: each process is first opened as a pidfd, and
    /// gets the signal only if its pid is still listed afterwards. A pid that is listed belongs to a
    /// process in the cgroup; if that is another one than was opened, then the one that was opened
    /// is dead, and the signal goes nowhere.
    ///
    /// A process forked meanwhile is found by reading the list again, as long as there is something
    /// new, a bounded number of times.
    ///
    /// # Errors
    ///
    /// [`CgroupError::Sys`]: EPERM if a process belongs to somebody else, after all others have been
    /// signalled; EINVAL if there is no such signal; EMFILE.
    pub fn signal(&self, signal: i32) -> Result<usize, CgroupError> {
        let failed = |errno| sys("signal the processes of", self.path(), errno);
        let mut done: Vec<Pid> = Vec::new();
        let mut refused = None;
        for _ in 0..SIGNAL_PASSES {
            let mut new = self.pids()?;
            new.retain(|pid| done.binary_search(pid).is_err());
            if new.is_empty() {
                break;
            }
            for batch in new.chunks(SIGNAL_BATCH) {
                let opened = open_all(batch).map_err(failed)?;
                let members = self.pids()?;
                let sent = send_to_members(&opened, &members, signal, &mut done);
                refused = refused.or(sent.err());
            }
            done.sort_unstable();
        }
        refused.map_or(Ok(done.len()), |errno| Err(failed(errno)))
    }

    /// Removes this cgroup and those beneath it, which must hold no process.
    ///
    /// # Errors
    ///
    /// [`CgroupError::Populated`]; [`CgroupError::Stubborn`]; [`CgroupError::Sys`].
    pub fn remove(&self) -> Result<(), CgroupError> {
        for _ in 0..REMOVE_PASSES {
            match self.dir.rmdir() {
                Ok(()) => return Ok(()),
                Err(Errno::EBUSY) if self.is_populated()? => {
                    return Err(CgroupError::Populated(self.path().to_owned()));
                }
                // Not populated, so there are cgroups beneath it.
                Err(Errno::EBUSY) => self.dir.remove_beneath()?,
                Err(errno) => return Err(sys("remove", self.path(), errno)),
            }
        }
        Err(CgroupError::Stubborn(self.path().to_owned()))
    }
}

impl AsFd for Cgroup {
    /// For `clone3` with `CLONE_INTO_CGROUP`.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.dir.as_fd()
    }
}

/// Opens those of `pids` that still exist.
fn open_all(pids: &[Pid]) -> Result<Vec<(Pid, OwnedFd)>, Errno> {
    let mut opened = Vec::with_capacity(pids.len());
    for &pid in pids {
        match pidfd::open(pid) {
            Ok(fd) => opened.push((pid, fd)),
            Err(Errno::ESRCH | Errno::EINVAL | Errno::ENOENT) => {}
            Err(errno) => return Err(errno),
        }
    }
    Ok(opened)
}

/// Sends `signal` to those of `opened` whose pid is among `members`, which were listed after they
/// were opened; notes in `done` who was reached, or refused it. Returns the last refusal.
fn send_to_members(
    opened: &[(Pid, OwnedFd)],
    members: &[Pid],
    signal: i32,
    done: &mut Vec<Pid>,
) -> Result<(), Errno> {
    let mut outcome = Ok(());
    for (pid, fd) in opened {
        if members.binary_search(pid).is_err() {
            continue;
        }
        match pidfd::send_signal(fd.as_fd(), signal) {
            Ok(()) => {}
            Err(Errno::ESRCH) => continue,
            Err(errno) => outcome = Err(errno),
        }
        done.push(*pid);
    }
    outcome
}

/// The processes in the cgroup `dir` itself, in no order.
pub(super) fn own_pids(dir: &Dir) -> Result<Vec<Pid>, CgroupError> {
    let mut pids = Vec::new();
    read_pids(dir.as_fd(), &mut pids).map_err(|errno| dir.error("read", "cgroup.procs", errno))?;
    Ok(pids)
}

/// Appends the processes of the cgroup `dir`, those that our pid namespace sees: the others are
/// listed as 0. A threaded cgroup has none, its domain lists them; a removed one has none at all.
fn read_pids(dir: BorrowedFd<'_>, pids: &mut Vec<Pid>) -> Result<(), Errno> {
    let text = match super::dir::read_at(dir, "cgroup.procs") {
        Err(Errno::EOPNOTSUPP | Errno::ENODEV | Errno::ENOENT) => return Ok(()),
        text => text?,
    };
    let lines = text.split(|&byte| byte == b'\n');
    let numbers = lines.filter_map(|line| std::str::from_utf8(line).ok()?.parse::<i32>().ok());
    pids.extend(numbers.filter(|&pid| pid > 0).map(Pid::from_raw));
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt;

    use super::*;
    use crate::cgroup::scratch::{PATIENCE, Scratch, eventually};

    /// Ignores SIGTERM, leaves its session and its parent, closes what it has, and stays.
    const DAEMONISED: &str = r#"
        setsid sh -c 'trap "" TERM HUP INT; (exec >/dev/null 2>&1 </dev/null; exec sleep 600) & echo gone' &
        wait
    "#;

    /// Twenty processes, each of which forks the next and exits, so that a pid that was read is
    /// stale; and orphans beside them. It all ends by itself, lest a defect here outlives the test.
    const HOPPING: &str = r#"
        export HOPS=3000 HOP='[ $HOPS -gt 0 ] || exit; HOPS=$((HOPS-1)); sh -c "$HOP" & exit'
        for n in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20; do sh -c "$HOP"; done
        echo hopping; for n in $(seq 3000); do (setsid sh -c : &); done; sleep 600
    "#;

    fn soon() -> Instant {
        Instant::now() + PATIENCE
    }

    fn micros(time: Option<pbjson_types::Duration>) -> Option<i64> {
        time.map(|time| time.seconds * 1_000_000 + i64::from(time.nanos) / 1000)
    }

    /// Blocks until the kernel says that something about `cgroup` has changed.
    fn is_notified(cgroup: &Cgroup) -> bool {
        let mut fds = [PollFd::new(cgroup.events_fd(), PollFlags::POLLPRI)];
        poll(&mut fds, 20_000u16) == Ok(1)
    }

    #[test]
    fn a_cgroup_is_populated_while_somebody_lives_in_it() {
        let scratch = Scratch::new();
        let leaf = scratch.leaf();
        assert!(!leaf.is_populated().unwrap());

        let mut inhabitant = scratch.inhabit(leaf.path(), "read line");
        assert!(leaf.is_populated().unwrap());
        assert_eq!(leaf.pids().unwrap(), [inhabitant.pid()]);
        assert!(scratch.task("task").is_populated().unwrap());

        drop(inhabitant.child.stdin.take());
        assert!(leaf.wait_empty(soon()).unwrap());
        assert_eq!(leaf.pids().unwrap(), []);
    }

    #[test]
    fn the_events_descriptor_tells_of_the_end() {
        let scratch = Scratch::new();
        let leaf = scratch.leaf();
        let mut inhabitant = scratch.inhabit(leaf.path(), "read line");
        assert!(leaf.is_populated().unwrap());

        drop(inhabitant.child.stdin.take());
        // The first change may be the late report of the birth.
        while leaf.is_populated().unwrap() {
            assert!(is_notified(&leaf));
        }
    }

    #[test]
    fn a_reopened_cgroup_sees_changes_that_the_first_has_seen() {
        let scratch = Scratch::new();
        let first = scratch.leaf();
        let _inhabitant = scratch.inhabit(first.path(), "read line");
        let second = first.reopen().unwrap();
        assert!(first.is_populated().unwrap() && second.is_populated().unwrap());

        first.kill().unwrap();
        assert!(first.wait_empty(soon()).unwrap());

        assert!(is_notified(&second));
        assert!(!second.is_populated().unwrap());
    }

    /// attack 23, S18.
    #[test]
    fn a_grandchild_that_left_session_and_parent_and_ignores_sigterm_is_killed() {
        let scratch = Scratch::new();
        let leaf = scratch.leaf();
        let mut inhabitant = scratch.inhabit(leaf.path(), DAEMONISED);
        assert_eq!(inhabitant.line(), "gone");
        assert!(inhabitant.child.wait().unwrap().success());
        assert_eq!(leaf.pids().unwrap().len(), 1);

        assert_eq!(leaf.signal(libc::SIGTERM).unwrap(), 1);
        assert!(leaf.is_populated().unwrap());
        leaf.kill().unwrap();

        assert!(leaf.wait_empty(soon()).unwrap());
        assert_eq!(leaf.pids().unwrap(), []);
        leaf.remove().unwrap();
    }

    /// attack 24: the main process dies by our signal, whatever became of the others.
    #[test]
    fn a_fork_storm_dies_whole() {
        let scratch = Scratch::new();
        let leaf = scratch.leaf();
        let mut inhabitant = scratch.inhabit(leaf.path(), HOPPING);
        assert_eq!(inhabitant.line(), "hopping");

        leaf.kill().unwrap();

        assert!(leaf.wait_empty(soon()).unwrap());
        assert_eq!(leaf.pids().unwrap(), []);
        assert_eq!(inhabitant.child.wait().unwrap().signal(), Some(libc::SIGKILL));
        leaf.remove().unwrap();
    }

    #[test]
    fn a_signal_in_a_fork_storm_comes_back() {
        let scratch = Scratch::new();
        let leaf = scratch.leaf();
        let mut inhabitant = scratch.inhabit(leaf.path(), HOPPING);
        assert_eq!(inhabitant.line(), "hopping");

        assert!(leaf.signal(libc::SIGCONT).unwrap() > 0);
    }

    #[test]
    fn a_task_is_killed_with_all_its_leaves() {
        let scratch = Scratch::new();
        let leaf = scratch.leaf();
        let _inhabitant = scratch.inhabit(leaf.path(), "trap '' TERM; sleep 600");

        let task = scratch.task("task");
        task.kill().unwrap();

        assert!(task.wait_empty(soon()).unwrap());
        assert!(!leaf.is_populated().unwrap());
    }

    /// attack 28, of those that are not in the kernel's own hands.
    #[test]
    fn the_stopped_and_the_frozen_die_too() {
        let scratch = Scratch::new();
        let leaf = scratch.leaf();
        let _stopped = scratch.inhabit(leaf.path(), "kill -STOP $$");
        let _frozen = scratch.inhabit(leaf.path(), "read line");
        leaf.dir().write("cgroup.freeze", "1").unwrap();

        leaf.kill().unwrap();

        assert!(leaf.wait_empty(soon()).unwrap());
    }

    #[test]
    fn a_wait_for_what_does_not_end_is_over_at_its_deadline() {
        let scratch = Scratch::new();
        let leaf = scratch.leaf();
        let _inhabitant = scratch.inhabit(leaf.path(), "read line");
        let start = Instant::now();

        assert!(!leaf.wait_empty(start + Duration::from_millis(30)).unwrap());
        assert!(start.elapsed() >= Duration::from_millis(30));
        assert!(!leaf.wait_empty(start).unwrap());
    }

    #[test]
    fn a_signal_reaches_children_in_cgroups_beneath_and_nobody_else() {
        let scratch = Scratch::new();
        let leaf = scratch.leaf();
        let inner = leaf.dir().create("inner").unwrap();
        let trap = "trap 'echo caught; exit' USR1; echo ready; while :; do read line; done";
        let mut outside = scratch.inhabit(scratch.task("other").path(), trap);
        let mut above = scratch.inhabit(leaf.path(), trap);
        let mut beneath = scratch.inhabit(inner.path(), trap);
        for shell in [&mut outside, &mut above, &mut beneath] {
            assert_eq!(shell.line(), "ready");
        }

        assert_eq!(leaf.signal(libc::SIGUSR1).unwrap(), 2);

        assert_eq!(above.line(), "caught");
        assert_eq!(beneath.line(), "caught");
        assert!(outside.child.try_wait().unwrap().is_none());
        // What is outside has not heard of it: it dies with another signal.
        outside.child.kill().unwrap();
        assert_eq!(outside.rest(), "");
    }

    #[test]
    fn more_processes_are_signalled_than_are_held_at_one_time() {
        let scratch = Scratch::new();
        let leaf = scratch.leaf();
        let count = SIGNAL_BATCH * 2 + 3;
        let script = format!(
            "for n in $(seq {count}); do sleep 600 & done; echo ready; wait; echo all of them"
        );
        let mut inhabitant = scratch.inhabit(leaf.path(), &format!("trap : TERM; {script}"));
        assert_eq!(inhabitant.line(), "ready");
        // The children are there, whether or not they have become `sleep` yet.
        assert_eq!(leaf.pids().unwrap().len(), count + 1);

        assert_eq!(leaf.signal(libc::SIGKILL).unwrap(), count + 1);

        assert!(leaf.wait_empty(soon()).unwrap());
    }

    /// attack 42: between the list and the signal a stranger was given the pid of one that died.
    #[test]
    fn a_stranger_that_was_opened_by_a_stale_pid_is_not_signalled() {
        let scratch = Scratch::new();
        let leaf = scratch.leaf();
        let mut inside = scratch.inhabit(leaf.path(), "read line");
        let mut stranger = scratch.inhabit(scratch.dir().path(), "read line");
        let opened = open_all(&[inside.pid(), stranger.pid()]).unwrap();
        let mut done = Vec::new();

        send_to_members(&opened, &leaf.pids().unwrap(), libc::SIGKILL, &mut done).unwrap();

        assert_eq!(done, [inside.pid()]);
        assert_eq!(inside.child.wait().unwrap().signal(), Some(libc::SIGKILL));
        drop(stranger.child.stdin.take());
        assert_eq!(stranger.child.wait().unwrap().code(), Some(1));
    }

    #[test]
    fn a_signal_that_does_not_exist_is_an_error() {
        let scratch = Scratch::new();
        let leaf = scratch.leaf();
        let mut inhabitant = scratch.inhabit(leaf.path(), "read line");

        let error = leaf.signal(4096).unwrap_err();

        let text = format!("signal the processes of {}", leaf.path().display());
        assert_eq!(error.to_string(), text);
        assert!(matches!(error, CgroupError::Sys { errno: Errno::EINVAL, .. }));
        assert!(inhabitant.child.try_wait().unwrap().is_none());
    }

    #[test]
    fn usage_has_the_time_that_was_spent() {
        let scratch = Scratch::new();
        let leaf = scratch.leaf();
        assert_eq!(micros(leaf.usage().cpu_time), Some(0));
        let spin = "n=0; while [ $n -lt 20000 ]; do n=$((n+1)); done; exit";

        let mut inhabitant = scratch.inhabit(leaf.path(), spin);
        inhabitant.child.wait().unwrap();

        let usage = leaf.usage();
        let all = micros(usage.cpu_time).unwrap();
        assert!(all > 1000, "{usage:?}");
        let [user, system] = [usage.cpu_user_time, usage.cpu_system_time].map(micros);
        assert!((user.unwrap() + system.unwrap()).abs_diff(all) <= 1, "{usage:?}");
        assert_eq!(usage.memory_peak_bytes.is_some(), leaf.dir().has("memory.peak"));
        assert!(micros(scratch.task("task").usage().cpu_time) >= Some(all));
    }

    #[test]
    fn what_is_populated_is_not_removed() {
        let scratch = Scratch::new();
        let leaf = scratch.leaf();
        let _inhabitant = scratch.inhabit(leaf.path(), "read line");

        for cgroup in [&leaf, &*scratch.task("task")] {
            let error = cgroup.remove().unwrap_err();

            let text = format!("{} still holds processes", cgroup.path().display());
            assert_eq!(error.to_string(), text);
        }
        assert!(leaf.is_populated().unwrap());
    }

    #[test]
    fn a_cgroup_is_removed_before_its_dead_are_reaped() {
        let scratch = Scratch::new();
        let leaf = scratch.leaf();
        let _zombie = scratch.inhabit(leaf.path(), "read line");

        leaf.kill().unwrap();
        assert!(leaf.wait_empty(soon()).unwrap());

        leaf.remove().unwrap();
    }

    /// attack 26: what a run built in its leaf goes with it.
    #[test]
    fn a_wide_and_deep_tree_is_removed() {
        let scratch = Scratch::new();
        let leaf = scratch.leaf();
        // A run of root's can lift what bounds it.
        scratch.task("task").dir().write("cgroup.max.depth", "max").unwrap();
        let mut deep = leaf.dir().try_clone().unwrap();
        for _ in 0..300 {
            deep = deep.create("d").unwrap();
        }
        for n in 0..300 {
            leaf.dir().create(&format!("w{n}")).unwrap();
        }

        scratch.task("task").remove().unwrap();

        assert!(!leaf.path().exists());
    }

    #[test]
    fn a_removed_cgroup_is_empty_for_ever() {
        let scratch = Scratch::new();
        let leaf = scratch.leaf();

        leaf.remove().unwrap();

        leaf.remove().unwrap();
        leaf.kill().unwrap();
        assert!(!leaf.is_populated().unwrap());
        assert!(leaf.wait_empty(Instant::now()).unwrap());
        assert_eq!(leaf.pids().unwrap(), []);
        assert_eq!(leaf.signal(libc::SIGKILL).unwrap(), 0);
        assert_eq!(leaf.usage(), crate::proto::Usage::default());
    }

    #[test]
    fn two_that_remove_the_same_tree_are_both_right() {
        let scratch = Scratch::new();
        for round in 0..20 {
            let task = scratch.task(&format!("task{round}"));
            for n in 0..20 {
                task.dir().create(&format!("child{n}")).unwrap().create("grandchild").unwrap();
            }
            let other = task.reopen().unwrap();

            std::thread::scope(|scope| {
                let there = scope.spawn(|| other.remove());
                task.remove().unwrap();
                there.join().unwrap().unwrap();
            });
        }
    }

    /// Beside somebody who waits for what the kernel tells, on the same machine at the same time.
    #[test]
    fn a_young_cgroup_is_known_to_be_empty_before_the_kernel_tells() {
        let scratch = Scratch::new();
        let time = |name: &str, run: u32, wait: &dyn Fn(&Cgroup)| {
            let task = scratch.task(&format!("{name}{run}"));
            let _inhabitant = scratch.inhabit(task.path(), "read line");
            let start = Instant::now();
            task.kill().unwrap();
            wait(&task);
            start.elapsed()
        };
        let known = |task: &Cgroup| assert!(task.wait_empty(soon()).unwrap());
        let told = |task: &Cgroup| {
            while task.is_populated().unwrap() {
                let mut events = [PollFd::new(task.events_fd(), PollFlags::POLLPRI)];
                poll(&mut events, PollTimeout::from(10_000u16)).unwrap();
            }
        };

        let both = (0..9).map(|run| (time("known", run, &known), time("told", run, &told)));
        let (mut known, mut told): (Vec<_>, Vec<_>) = both.unzip();

        known.sort_unstable();
        told.sort_unstable();
        assert!(known[4] * 3 < told[4] * 2, "{known:?} {told:?}");
    }

    #[test]
    fn pids_lists_a_process_that_has_just_been_forked() {
        let scratch = Scratch::new();
        let leaf = scratch.leaf();
        let inhabitant = scratch.inhabit(leaf.path(), "sleep 600 & wait");

        eventually("the fork", || leaf.pids().unwrap().len() == 2);

        assert!(leaf.pids().unwrap().contains(&inhabitant.pid()));
        assert!(leaf.pids().unwrap().is_sorted());
    }
}
