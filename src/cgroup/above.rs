//! Whose limit was hit: counters above a run, as they were when it began and as they are when it has ended.
//!
//! The kernel counts an OOM kill in two places (cgroup-v2.rst, `memory.events`): `oom_kill` where the victim was, before it
//! sends the signal; and `oom` where the limit was hit, in the file `memory.events.local`, which unlike `memory.events` does
//! not add up what happened beneath. So:
//!
//! - A run has lost processes if its leaf counts `oom_kill`. A leaf is new with its run, so that count began at 0, and no other
//!   run is ever taken for a victim, whatever happens beside it.
//! - The limit is the leaf's own, or one that the run made beneath, if the leaf counts `oom`. Else it is that of the lowest cgroup
//!   above whose local count has risen since before the run began. If none has, it is none that can be seen from here.
//!
//! Two limits that are hit at the same time, while a run lives, are not told apart: the lower one is named.
//!
//! Forks that were refused are counted in `pids.events` of the leaf, whichever limit refused them, on Linux 6.1; on 6.12, which has
//! `pids.events.local`, where the limit is. What such a limit did to the task is told of each run that lived meanwhile.

use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use nix::fcntl::OFlag;

use super::dir::Dir;
use super::usage::{Buffer, keyed, number};
use super::{Leaf, TaskCgroup};
use crate::proto::{LimitLevel, OomKill, PidsLimit};

/// Most cgroups above a run that are watched.
const LEVELS_MAX: usize = 64;

/// What the cgroups above a run had counted when it began. Without the memory and pids controllers it is nothing, and costs next
/// to nothing.
#[derive(Debug)]
pub struct Above {
    /// From the task's upwards.
    oom: Vec<Counter>,
    /// That of the task, where the kernel counts at the limit.
    pids: Option<Counter>,
}

/// A count of one cgroup, and what it was.
#[derive(Debug)]
struct Counter {
    key: &'static str,
    file: OwnedFd,
    before: u64,
}

impl Counter {
    fn open(dir: &Dir, file: &str, key: &'static str) -> Option<Self> {
        let file = dir.open_file(file, OFlag::O_RDONLY).ok()?;
        let mut counter = Self { key, file, before: 0 };
        counter.before = counter.now()?;
        Some(counter)
    }

    fn now(&self) -> Option<u64> {
        keyed(Buffer::new().read(self.file.as_fd()).ok()?, self.key)
    }

    /// How often it was counted since it was opened.
    fn since(&self) -> u64 {
        self.now().map_or(0, |now| now.saturating_sub(self.before))
    }
}

impl Above {
    /// Reads what counts above a run of `task`, which is about to begin.
    pub fn of(task: &TaskCgroup) -> Self {
        let mut oom = Vec::new();
        while oom.len() < LEVELS_MAX {
            let file = up(oom.len(), "memory.events.local");
            // The root of the hierarchy has none, nor has what is outside of the mount.
            let Some(counter) = Counter::open(task.dir(), &file, "oom") else { break };
            oom.push(counter);
        }
        Self { oom, pids: Counter::open(task.dir(), "pids.events.local", "max") }
    }

    /// What the kernel did to the run of `leaf` for want of memory, where `killed` of its processes were victims; `None` if
    /// there is no victim.
    pub fn oom_kill(&self, task: &TaskCgroup, leaf: &Leaf, killed: Option<u64>) -> Option<OomKill> {
        let killed = killed.filter(|&killed| killed > 0)?;
        let own = leaf.dir().read("memory.events").unwrap_or_default();
        let risen: Vec<u64> = self.oom.iter().map(Counter::since).collect();
        let hit = Hit::find(keyed(&own, "oom").unwrap_or(0), &risen);
        let is_set = |dir: &Dir| figure(dir, "memory.oom.group") == Some(1);
        let at = hit.place(task, leaf);
        let figure = |file: &str| figure(at.as_ref()?.dir, &at.as_ref()?.file(file));
        Some(OomKill {
            level: hit.level().into(),
            cgroup: at.as_ref().map(|at| at.path.display().to_string()),
            limit_bytes: figure("memory.max"),
            peak_bytes: figure("memory.peak"),
            limit_hits: hit.times(),
            killed,
            whole: is_set(leaf.dir()) || keyed(&own, "oom_group_kill") > Some(0),
        })
    }

    /// Whose limit refused forks of the run of `leaf`, which counted `refused`; `None` if none were refused.
    pub fn pids_limit(
        &self,
        task: &TaskCgroup,
        leaf: &Leaf,
        refused: Option<u64>,
    ) -> Option<PidsLimit> {
        let refused = refused.unwrap_or(0);
        let by_task = self.pids.as_ref().map_or(0, Counter::since);
        let (hit, refused) = match (refused, by_task, &self.pids) {
            (0, 0, _) => return None,
            (0, by_task, _) => (Hit::Above { levels: 0, times: by_task }, by_task),
            (refused, _, Some(_)) => (Hit::Run { times: refused }, refused),
            (refused, _, None) => (full(task, leaf, self.oom.len(), refused), refused),
        };
        let at = hit.place(task, leaf);
        Some(PidsLimit {
            level: hit.level().into(),
            cgroup: at.as_ref().map(|at| at.path.display().to_string()),
            limit: at.as_ref().and_then(|at| figure(at.dir, &at.file("pids.max"))),
            refused,
        })
    }
}

/// Whose limit was hit, and how often.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Hit {
    /// The run's, or one beneath it.
    Run { times: u64 },
    /// That of the cgroup so many levels above the task's; 0 is the task's own.
    Above { levels: usize, times: u64 },
    /// None that can be seen.
    Host,
}

/// A cgroup beneath which a file is.
struct Place<'a> {
    dir: &'a Dir,
    levels: usize,
    path: PathBuf,
}

impl Place<'_> {
    fn file(&self, name: &str) -> String {
        up(self.levels, name)
    }
}

impl Hit {
    /// The lowest limit that was hit: `own`, then those of `above`, from the task's upwards.
    fn find(own: u64, above: &[u64]) -> Self {
        if own > 0 {
            return Self::Run { times: own };
        }
        match above.iter().position(|&times| times > 0) {
            Some(levels) => Self::Above { levels, times: above[levels] },
            None => Self::Host,
        }
    }

    fn level(self) -> LimitLevel {
        match self {
            Self::Run { .. } => LimitLevel::Run,
            Self::Above { levels: 0, .. } => LimitLevel::Task,
            Self::Above { .. } => LimitLevel::Ancestor,
            Self::Host => LimitLevel::Host,
        }
    }

    fn times(self) -> Option<u64> {
        match self {
            Self::Run { times } | Self::Above { times, .. } => Some(times),
            Self::Host => None,
        }
    }

    fn place<'a>(self, task: &'a TaskCgroup, leaf: &'a Leaf) -> Option<Place<'a>> {
        match self {
            Self::Run { .. } => {
                Some(Place { dir: leaf.dir(), levels: 0, path: leaf.path().to_owned() })
            }
            Self::Above { levels, .. } => {
                let path = task.path().ancestors().nth(levels).unwrap_or(Path::new("/"));
                Some(Place { dir: task.dir(), levels, path: path.to_owned() })
            }
            Self::Host => None,
        }
    }
}

/// The lowest cgroup, from the leaf upwards, that has been as full of processes as it may be.
fn full(task: &TaskCgroup, leaf: &Leaf, levels: usize, times: u64) -> Hit {
    let above = (0..=levels).map(|levels| Hit::Above { levels, times });
    let is_full = |hit: &Hit| {
        let at = hit.place(task, leaf)?;
        let figure = |file: &str| figure(at.dir, &at.file(file));
        Some(figure("pids.peak")? >= figure("pids.max")?)
    };
    std::iter::once(Hit::Run { times })
        .chain(above)
        .find(|hit| is_full(hit) == Some(true))
        .unwrap_or(Hit::Host)
}

/// A file that holds one number.
fn figure(dir: &Dir, file: &str) -> Option<u64> {
    number(&dir.read(file).ok()?)
}

/// `file` of the cgroup that is so many levels above.
fn up(levels: usize, file: &str) -> String {
    "../".repeat(levels) + file
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cgroup::scratch::Scratch;

    #[test]
    fn the_lowest_limit_that_was_hit_is_named() {
        let cases: [(u64, &[u64], Hit, LimitLevel); 5] = [
            (2, &[1, 1], Hit::Run { times: 2 }, LimitLevel::Run),
            (0, &[3, 1], Hit::Above { levels: 0, times: 3 }, LimitLevel::Task),
            (0, &[0, 0, 4], Hit::Above { levels: 2, times: 4 }, LimitLevel::Ancestor),
            (0, &[0, 0], Hit::Host, LimitLevel::Host),
            (0, &[], Hit::Host, LimitLevel::Host),
        ];
        for (own, above, hit, level) in cases {
            assert_eq!(Hit::find(own, above), hit, "{own} {above:?}");
            assert_eq!(hit.level(), level);
        }
    }

    #[test]
    fn a_level_above_the_task_has_its_own_path_and_files() {
        let scratch = Scratch::new();
        let task = scratch.task("task");
        let leaf = scratch.leaf();

        let at = Hit::Above { levels: 2, times: 1 }.place(&task, &leaf).unwrap();

        assert_eq!(at.path, scratch.dir().path());
        assert_eq!(at.file("cgroup.type"), "../../cgroup.type");
        assert_eq!(at.dir.read_text(&at.file("cgroup.type")).unwrap(), "domain");
    }

    /// Attack 31.
    #[test]
    fn without_a_victim_there_is_no_oom_kill() {
        let scratch = Scratch::new();
        let task = scratch.task("task");
        let leaf = scratch.leaf();
        let above = Above::of(&task);

        assert_eq!(above.oom_kill(&task, &leaf, Some(0)), None);
        assert_eq!(above.oom_kill(&task, &leaf, None), None);
        assert_eq!(above.pids_limit(&task, &leaf, Some(0)), None);
        assert_eq!(above.pids_limit(&task, &leaf, None), None);
    }

    #[test]
    fn a_counter_tells_what_was_added_since_it_was_opened() {
        let scratch = Scratch::new();
        let leaf = scratch.leaf();
        let before = Counter::open(leaf.dir(), "cgroup.events", "populated").unwrap();
        let _inhabitant = scratch.inhabit(leaf.path(), "read line");
        let after = Counter::open(leaf.dir(), "cgroup.events", "populated").unwrap();

        assert_eq!((before.since(), after.since()), (1, 0));
        assert!(Counter::open(leaf.dir(), "cgroup.events", "nonesuch").is_none());
        assert!(Counter::open(leaf.dir(), "nonesuch", "populated").is_none());
    }
}
