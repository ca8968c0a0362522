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
const LOOK_AGAIN_MAX: Duration = Duration::from_millis(64);

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
                for (pid, fd) in opened {
                    if members.binary_search(&pid).is_err() {
                        continue;
                    }
                    match pidfd::send_signal(fd.as_fd(), signal) {
                        Ok(()) => {}
                        Err(Errno::ESRCH) => continue,
                        Err(errno) => refused = Some(errno),
                    }
                    done.push(pid);
                }
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
