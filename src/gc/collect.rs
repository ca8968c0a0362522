//! What is known of the tasks that are over, and the removal of those that go.
//!
//! A collector remembers what it has read: a task that is over does not change. So one that lives on, in the daemon, reads each task
//! once, and a further round costs no more than a list of the directory.
//!
//! Tasks are removed in batches: what is synced is synced once for all of a batch, in the order that [`crate::remove`] gives. A crash at any
//! moment leaves tasks that are over and have less in their sandboxes, which go in the next round for the reason for which they went in
//! this one, and streams that belong to no task, which each round sweeps first.
//!
//! The age of a task is the time since its terminal record: by the clock of this boot where it ended in this boot, which nobody can set;
//! else by wall clock, and zero if that says that the end is still to come.
#![allow(clippy::disallowed_methods, reason = "reads and removes files of tasks")]

use std::collections::{HashMap, HashSet};
use std::ffi::CString;
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::statvfs::fstatvfs;

use super::policy::{self, Finished, Free, Limits, Size, Sizes, Space, Victim};
use crate::causes::chain;
use crate::checkpoint::paths::Place;
use crate::checkpoint::{IoError, OpenError, Root};
use crate::disk::{DiskUsage, Walk};
use crate::remove::{self, DIRECTORY, Erased, Go, Over, Parts, Removal, RemoveError, Used};
use crate::state::Stamp;
use crate::sys::clock;
use crate::sys::dir;
use crate::sys::fs::open_on_one_mount;
use crate::task::TaskId;

/// Tasks that are removed with the same syncs.
const BATCH: usize = 64;
/// Entries that are measured between two looks at whether to go on.
const SLICE: usize = 1000;
/// Time until a task is tried again that could not be removed.
const RETRY: Duration = Duration::from_secs(3600);
/// The same of one that somebody held: that passes.
const HELD: Duration = Duration::from_secs(10);
/// Age of a task whose runner may be about to leave, and is waited for.
const YOUNG: Duration = Duration::from_secs(10);

/// Why no garbage is collected.
#[derive(Debug, thiserror::Error)]
pub enum GcError {
    /// A file of the root cannot be used.
    #[error(transparent)]
    Io(#[from] IoError),
    /// What a crash left cannot be removed.
    #[error(transparent)]
    Remove(#[from] RemoveError),
    /// A call failed.
    #[error("{call}")]
    Sys {
        /// The call.
        call: &'static str,
        /// What it answered.
        #[source]
        error: io::Error,
    },
}

impl GcError {
    fn sys(call: &'static str) -> impl FnOnce(Errno) -> Self {
        move |errno| Self::Sys { call, error: errno.into() }
    }
}

/// What became of a task.
#[derive(Debug)]
pub enum Told<'a> {
    /// It was removed, as far as was asked.
    Erased {
        /// The task, and why.
        victim: &'a Victim,
        /// What of its sandbox was erased.
        erased: Erased,
    },
    /// It would be.
    Chosen {
        /// The task, and why.
        victim: &'a Victim,
        /// What it takes.
        sizes: Sizes,
    },
    /// It should go, and something of it is still there.
    Left {
        /// The task, and why.
        victim: &'a Victim,
        /// What hinders.
        error: &'a RemoveError,
    },
    /// Nothing is known of it, so it stays; told once.
    Unread {
        /// The task.
        id: &'a TaskId,
        /// Why.
        error: String,
    },
}

/// Who is told.
pub type Tell<'a> = &'a mut dyn FnMut(Told<'_>);

/// How a round went.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Round {
    /// Tasks that were removed.
    pub removed: u64,
    /// Tasks that should have been.
    pub left: u64,
    /// Bytes and files that were erased of sandboxes.
    pub erased: Erased,
    /// Time after which another round may find something to do, if nothing else happens.
    pub next: Option<Duration>,
}

/// Collects garbage.
#[derive(Debug)]
pub struct Collector {
    root: Root,
    limits: Limits,
    parts: Parts,
    boot_id: String,
    known: HashMap<TaskId, Known>,
    /// Tasks of which was told that they cannot be read.
    unread: HashSet<TaskId>,
}

/// What is known of a task that is over.
#[derive(Debug)]
struct Known {
    ended: Ended,
    is_corrupt: bool,
    /// Whether its sandbox is the one that the root has for it.
    is_at_home: bool,
    /// Its log directory, beneath the sandbox.
    logs: Option<CString>,
    sizes: Option<Sizes>,
    /// Until when it is not tried again, since it could not be removed: CLOCK_BOOTTIME, nanoseconds; 0 if it was not tried.
    stuck_until: u64,
    /// Whether nothing is there of what would be removed.
    is_done: bool,
}

/// When a task ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ended {
    /// In this boot.
    Now(Stamp),
    /// In an earlier one.
    Before(Stamp),
    /// Its stream does not tell; that it is over was known then, nanoseconds since 1970.
    Filed(i64),
}

impl Collector {
    /// Of the tasks of `root`, as `limits` say; `parts` is what is removed of those that go.
    ///
    /// # Errors
    ///
    /// [`GcError::Sys`] if it cannot be told which boot this is.
    pub fn new(root: Root, limits: Limits, parts: Parts) -> Result<Self, GcError> {
        let boot_id =
            clock::boot_id().map_err(|error| GcError::Sys { call: "read the boot id", error })?;
        let (known, unread) = (HashMap::new(), HashSet::new());
        Ok(Self { root, limits, parts, boot_id, known, unread })
    }

    /// Removes the tasks that go, of those that are `wanted`; `go` is asked between slices of the work.
    ///
    /// # Errors
    ///
    /// [`GcError`]; one task that cannot be removed keeps no other from it, and is told.
    pub fn collect(
        &mut self,
        wanted: &dyn Fn(&TaskId) -> bool,
        go: Go<'_>,
        tell: Tell<'_>,
    ) -> Result<Round, GcError> {
        remove::sweep(&self.root)?;
        self.read(wanted, tell)?;
        let mut round = Round::default();
        loop {
            let victims = self.choose(go)?;
            let before = round.removed;
            for batch in victims.chunks(BATCH) {
                self.remove(batch, go, tell, &mut round)?;
                if !go() {
                    return Ok(round);
                }
            }
            // What a task took is an estimate, and others use the file system, too.
            if round.removed == before || self.limits.lack(&self.free_at_last()?).is_none() {
                break;
            }
        }
        round.next = self.next();
        Ok(round)
    }

    /// Tells which tasks would be removed, and removes nothing.
    ///
    /// # Errors
    ///
    /// [`GcError`].
    pub fn rehearse(
        &mut self,
        wanted: &dyn Fn(&TaskId) -> bool,
        go: Go<'_>,
        tell: Tell<'_>,
    ) -> Result<Round, GcError> {
        self.read(wanted, tell)?;
        let mut round = Round::default();
        for victim in self.choose(go)? {
            let sizes = self.sizes(&victim.task.id, go);
            let Size { bytes, inodes } = sizes.of(self.parts);
            round.removed += 1;
            round.erased += Erased { bytes, inodes };
            tell(Told::Chosen { victim: &victim, sizes });
        }
        Ok(round)
    }

    /// Takes in the tasks that are over now.
    fn read(&mut self, wanted: &dyn Fn(&TaskId) -> bool, tell: Tell<'_>) -> Result<(), GcError> {
        let mut ids = self.root.list(Place::Finished)?;
        ids.retain(|id| wanted(id));
        let mut before = std::mem::take(&mut self.known);
        let told = std::mem::take(&mut self.unread);
        for id in ids {
            let known = before.remove(&id).map(Ok).unwrap_or_else(|| self.look(&id));
            match known {
                Ok(known) => drop(self.known.insert(id, known)),
                // It was removed since it was listed.
                Err(_) if !self.root.task(Place::Finished, &id).exists() => {}
                Err(error) => {
                    if !told.contains(&id) {
                        tell(Told::Unread { id: &id, error });
                    }
                    self.unread.insert(id);
                }
            }
        }
        Ok(())
    }

    fn look(&self, id: &TaskId) -> Result<Known, String> {
        let over = Over::read(&self.root, id).map_err(|error| chain(&error))?;
        let ended = match &over.ended {
            Some((at, Some(boot_id))) if *boot_id == self.boot_id => Ended::Now(*at),
            Some((at, _)) => Ended::Before(*at),
            None => {
                // Nobody can set the time at which it was renamed: inode(7).
                let entry = fs::symlink_metadata(self.root.task(Place::Finished, id));
                let seconds = entry.map_err(|error| error.to_string())?.ctime();
                Ended::Filed(seconds.saturating_mul(1_000_000_000))
            }
        };
        let mut known = Known {
            ended,
            is_corrupt: over.corrupt.is_some(),
            is_at_home: over.is_at_home(&self.root, id),
            logs: over.logs(),
            sizes: None,
            stuck_until: 0,
            is_done: false,
        };
        known.is_done = !self.parts.metadata && !self.has_files(id, &known);
        Ok(known)
    }

    /// Whether there is something in the sandbox of what would be erased.
    fn has_files(&self, id: &TaskId, known: &Known) -> bool {
        let Some(sandbox) = self.open_sandbox(id, known) else { return false };
        let logs = known.logs.as_deref().and_then(|name| {
            Some((name, open_on_one_mount(sandbox.as_fd(), name, DIRECTORY).ok()?))
        });
        // What leads to the logs is no data.
        let above =
            logs.as_ref().and_then(|(name, _)| name.to_bytes().split(|&b| b == b'/').next());
        let has_data = self.parts.data && has_entries(sandbox.as_fd(), above);
        has_data
            || (self.parts.logs && logs.is_some_and(|(_, logs)| has_entries(logs.as_fd(), None)))
    }

    /// The sandbox that the root has for a task, if the task had it.
    fn open_sandbox(&self, id: &TaskId, known: &Known) -> Option<OwnedFd> {
        if !known.is_at_home {
            return None;
        }
        let sandboxes = File::open(self.root.sandbox(id).parent()?).ok()?;
        let name = CString::new(id.as_str()).ok()?;
        open_on_one_mount(sandboxes.as_fd(), &name, DIRECTORY).ok()
    }

    /// The tasks that go now.
    fn choose(&mut self, go: Go<'_>) -> Result<Vec<Victim>, GcError> {
        let free = self.free()?;
        if self.limits.max_space.is_some() || self.limits.lack(&free).is_some() {
            let ids: Vec<_> = self.known.keys().cloned().collect();
            for id in ids {
                self.sizes(&id, go);
            }
        }
        Ok(policy::choose(self.finished(), &self.limits, free))
    }

    /// What a task takes, which is measured once.
    fn sizes(&mut self, id: &TaskId, go: Go<'_>) -> Sizes {
        let Some(known) = self.known.get(id) else { return Sizes::default() };
        if let Some(sizes) = known.sizes {
            return sizes;
        }
        let sizes = self.measure(id, known, go);
        if let Some(known) = self.known.get_mut(id) {
            known.sizes = Some(sizes);
        }
        sizes
    }

    fn measure(&self, id: &TaskId, known: &Known, go: Go<'_>) -> Sizes {
        let mut sizes = Sizes::default();
        if let Some(sandbox) = self.open_sandbox(id, known) {
            let logs = known.logs.as_deref();
            let logs =
                logs.and_then(|logs| open_on_one_mount(sandbox.as_fd(), logs, DIRECTORY).ok());
            let except = logs.as_ref().and_then(|logs| dir::stat_open(logs.as_fd()).ok());
            sizes.data = whole(Walk::new(sandbox, except.map(|stat| stat.id)), go);
            sizes.logs = logs.map_or_else(Size::default, |logs| whole(Walk::new(logs, None), go));
        }
        if let Ok(checkpoint) = File::open(self.root.checkpoint(id)) {
            sizes.metadata = whole(Walk::new(checkpoint.into(), None), go);
        }
        if let Ok(entry) = fs::symlink_metadata(self.root.task(Place::Finished, id)) {
            sizes.metadata = sizes.metadata + Size { bytes: entry.blocks() * 512, inodes: 1 };
        }
        sizes
    }

    /// All tasks of which something would be removed, as they are now.
    fn finished(&self) -> Vec<Finished> {
        let now = clock::now();
        let known = self.known.iter().filter(|(_, known)| !known.is_done);
        known
            .map(|(id, known)| Finished {
                id: id.clone(),
                age: known.age(now),
                size: known.sizes.map_or_else(Size::default, |sizes| sizes.of(self.parts)),
                is_corrupt: known.is_corrupt,
                is_stuck: known.stuck_for(now).is_some(),
            })
            .collect()
    }

    fn next(&self) -> Option<Duration> {
        let now = clock::now();
        let retry = self.known.values().filter_map(|known| known.stuck_for(now)).min();
        [policy::next_due(&self.finished(), &self.limits), retry].into_iter().flatten().min()
    }

    /// The file system that the sandboxes are on.
    fn free(&self) -> Result<Free, GcError> {
        if !self.limits.needs_free() {
            return Ok(Free::default());
        }
        let told = fstatvfs(self.open_sandboxes()?).map_err(GcError::sys("fstatvfs"))?;
        let bytes = |blocks: u64| blocks.saturating_mul(told.fragment_size());
        Ok(Free {
            bytes: Space { total: bytes(told.blocks()), free: bytes(told.blocks_available()) },
            inodes: Space { total: told.files(), free: told.files_available() },
        })
    }

    /// The same once it has given back what was erased, which some do only with the next transaction.
    fn free_at_last(&self) -> Result<Free, GcError> {
        if self.limits.needs_free() {
            nix::unistd::syncfs(self.open_sandboxes()?).map_err(GcError::sys("syncfs"))?;
        }
        self.free()
    }

    /// Whether less of the file system is free than should be.
    ///
    /// # Errors
    ///
    /// [`GcError`].
    pub fn is_lacking(&self) -> Result<bool, GcError> {
        Ok(self.limits.lack(&self.free()?).is_some())
    }

    fn open_sandboxes(&self) -> Result<File, IoError> {
        let path = self.root.path().join("sandboxes");
        File::open(&path).map_err(|source| IoError { call: "open", path, source })
    }

    /// Removes what goes of a batch.
    fn remove(
        &mut self,
        batch: &[Victim],
        go: Go<'_>,
        tell: Tell<'_>,
        round: &mut Round,
    ) -> Result<(), GcError> {
        let used = Used::read(&self.root)?;
        let mut begun = Vec::new();
        for victim in batch {
            // What others gave back counts, too.
            if victim.why.is_lack() && self.limits.lack(&self.free()?).is_none() {
                continue;
            }
            match self.erase(victim, &used, go) {
                Ok(None) => drop(self.known.remove(&victim.task.id)),
                Ok(Some((removal, erased))) => begun.push((victim, removal, erased)),
                Err(RemoveError::Stopped) => break,
                Err(error) => self.left(victim, &error, tell, round),
            }
        }
        if self.parts.data || self.parts.logs {
            remove::sync_sandboxes(&self.root)?;
        }
        self.forget(begun, tell, round)
    }

    /// Forgets tasks whose files are erased.
    fn forget(
        &mut self,
        begun: Vec<(&Victim, Removal, Erased)>,
        tell: Tell<'_>,
        round: &mut Round,
    ) -> Result<(), GcError> {
        let mut forgotten = Vec::new();
        for (victim, removal, erased) in begun {
            match if self.parts.metadata { removal.forget() } else { Ok(()) } {
                Ok(()) => forgotten.push((victim, removal, erased)),
                Err(error) => self.left(victim, &error, tell, round),
            }
        }
        if self.parts.metadata && !forgotten.is_empty() {
            remove::sync_finished(&self.root)?;
        }
        for (victim, removal, erased) in forgotten {
            let ended = if self.parts.metadata { removal.end() } else { Ok(()) };
            if let Err(error) = ended {
                self.left(victim, &error, tell, round);
                continue;
            }
            round.removed += 1;
            round.erased += erased;
            tell(Told::Erased { victim, erased });
            if self.parts.metadata {
                self.known.remove(&victim.task.id);
            } else if let Some(known) = self.known.get_mut(&victim.task.id) {
                (known.is_done, known.sizes) = (true, None);
            }
        }
        Ok(())
    }

    /// Takes a task and erases its files; `None` if by now it is gone, or another task of the same id.
    fn erase(
        &self,
        victim: &Victim,
        used: &Used,
        go: Go<'_>,
    ) -> Result<Option<(Removal, Erased)>, RemoveError> {
        let id = &victim.task.id;
        let begun = match victim.task.age < YOUNG {
            true => remove::begin_patiently(&self.root, id)?,
            false => Removal::begin(&self.root, id)?,
        };
        let Some(removal) = begun else { return Ok(None) };
        let known = self.known.get(id);
        let is_the_same = known.is_some_and(|known| known.is_of(removal.over()));
        if !is_the_same {
            return Ok(None);
        }
        let erased = removal.erase(self.parts, used, go)?;
        Ok(Some((removal, erased)))
    }

    fn left(&mut self, victim: &Victim, error: &RemoveError, tell: Tell<'_>, round: &mut Round) {
        let is_held = matches!(error, RemoveError::Open(OpenError::Held { .. }));
        let pause = if is_held { HELD } else { RETRY };
        if let Some(known) = self.known.get_mut(&victim.task.id) {
            known.stuck_until = clock::now().boot + pause.as_nanos() as u64;
            // What is left of it is to be measured anew.
            known.sizes = None;
        }
        round.left += 1;
        tell(Told::Left { victim, error });
    }
}

/// Whether a directory that was just opened has an entry but `except`.
fn has_entries(dir: BorrowedFd<'_>, except: Option<&[u8]>) -> bool {
    // Two entries at least.
    let mut buffer = [0; 1024];
    dir::read(dir, &mut buffer)
        .is_ok_and(|mut entries| entries.any(|entry| Some(entry.name.to_bytes()) != except))
}

/// What a walk counts; nothing where there is nothing to walk, or `go` says so.
fn whole(walk: Result<Walk, Errno>, go: Go<'_>) -> Size {
    let Ok(mut walk) = walk else { return Size::default() };
    loop {
        if let Some(DiskUsage { bytes, inodes, .. }) = walk.go_on(SLICE) {
            return Size { bytes, inodes };
        }
        if !go() {
            return Size::default();
        }
    }
}

impl Known {
    fn age(&self, now: Stamp) -> Duration {
        let since = |wall: i64| u64::try_from(now.wall.saturating_sub(wall)).unwrap_or(0);
        Duration::from_nanos(match self.ended {
            Ended::Now(at) => now.boot.saturating_sub(at.boot),
            Ended::Before(at) => since(at.wall),
            Ended::Filed(at) => since(at),
        })
    }

    /// Whether it is this task that was read.
    fn is_of(&self, over: &Over) -> bool {
        match (self.ended, &over.ended) {
            (Ended::Now(at) | Ended::Before(at), Some((of, _))) => at == *of,
            (Ended::Filed(_), None) => true,
            _ => false,
        }
    }

    /// How long it is not tried again.
    fn stuck_for(&self, now: Stamp) -> Option<Duration> {
        let left = self.stuck_until.saturating_sub(now.boot);
        (left > 0).then(|| Duration::from_nanos(left))
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use nix::mount::{MsFlags, mount, umount};
    use nix::sched::{CloneFlags, unshare};

    use super::*;
    use crate::gc::policy::Amount;
    use crate::gc::testing::{Scene, id_of, led, round, words};
    use crate::testing::{alone, is_root};

    const HOUR: Duration = Duration::from_secs(3600);

    fn none() -> Limits {
        Limits { keep_at_least: Duration::ZERO, ..Limits::default() }
    }

    /// Tasks `a`, `b`, `c`, which ended 3, 2 and 1 hours ago, each with so many bytes in its sandbox.
    fn three(scene: &Scene, bytes: usize) {
        for (id, age) in [("a", 3), ("b", 2), ("c", 1)] {
            scene.over(id, HOUR * age);
            scene.file(id, "file", bytes);
        }
    }

    #[test]
    fn what_is_too_old_goes_whole_and_the_rest_stays() {
        let scene = Scene::new();
        three(&scene, 10);
        scene.active("d", HOUR * 9, |_| {}, []);
        let live = scene.file("d", "file", 1);

        let told = scene.collect(Limits { max_age: Some(HOUR * 3 / 2), ..none() });

        assert_eq!(told, ["a max-age", "b max-age"]);
        assert!(scene.is_gone("a") && scene.is_gone("b") && live.exists());
        assert_eq!(scene.ids(), ["c"]);
        assert!(scene.sandbox("c").join("file").exists());
    }

    #[test]
    fn by_space_and_by_number_the_oldest_go() {
        let scene = Scene::new();
        three(&scene, 1 << 20);

        let space = Limits { max_space: Some(5 << 19), ..none() };
        assert_eq!(scene.collect(space.clone()), ["a max-space"]);
        assert_eq!(scene.collect(space), [""; 0]);
        assert_eq!(scene.collect(Limits { max_tasks: Some(1), ..none() }), ["b max-tasks"]);
        assert_eq!(scene.ids(), ["c"]);
    }

    /// V23: what counts is what is removed. W12: logs in the sandbox count once.
    #[test]
    fn space_is_counted_of_what_would_be_removed() {
        let scene = Scene::new();
        three(&scene, 0);
        for id in ["a", "b", "c"] {
            scene.file(id, ".logs/p/0/stdout", 1 << 20);
        }
        let of = |delete, space| {
            let limits = Limits { max_space: Some(space), ..none() };
            let mut collector = Collector::new(scene.root.clone(), limits, delete).unwrap();
            let mut told = Vec::new();
            let tell = &mut |each: Told<'_>| told.push(words(&each));
            collector.rehearse(&|_| true, &mut || true, tell).unwrap();
            told.len()
        };
        let data = Parts { data: true, logs: false, metadata: false };
        let logs = Parts { data: false, logs: true, metadata: false };

        assert_eq!(of(data, 1 << 20), 0);
        assert_eq!(of(logs, 5 << 19), 1);
        assert_eq!(of(Parts::ALL, 5 << 19), 1, "not twice");
    }

    /// Attack 34, the disk of a node: a file system of 16 MiB, of which half is to be free.
    #[test]
    fn of_a_file_system_that_is_full_as_many_go_as_it_takes() {
        if !is_root() {
            return;
        }
        alone(|| {
            unshare(CloneFlags::CLONE_NEWNS).unwrap();
            let none_at: Option<&str> = None;
            mount(none_at, "/", none_at, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none_at).unwrap();
            let scene = Scene::new();
            let sandboxes = scene.path("root/sandboxes");
            let options = Some("size=16m,nr_inodes=200");
            mount(Some("none"), &sandboxes, Some("tmpfs"), MsFlags::empty(), options).unwrap();
            for (id, age) in [("a", 4), ("b", 3), ("c", 2), ("d", 1)] {
                scene.over(id, HOUR * age);
                scene.file(id, "file", 3 << 20);
                (0..30).for_each(|n| drop(scene.file(id, &n.to_string(), 0)));
            }

            let space = Limits { min_free: Some(Amount::Share(5_000)), ..none() };
            assert_eq!(scene.collect(space.clone()), ["a min-free", "b min-free"]);
            assert_eq!(scene.collect(space), [""; 0]);
            let inodes = Limits { min_free_inodes: Some(Amount::Number(150)), ..none() };
            assert_eq!(scene.collect(inodes), ["c min-free-inodes"]);
            assert_eq!(scene.ids(), ["d"]);
            umount(&sandboxes).unwrap();
        });
    }

    #[test]
    fn a_rehearsal_tells_what_would_go_and_removes_nothing() {
        let scene = Scene::new();
        three(&scene, 1 << 16);
        let limits = Limits { max_tasks: Some(1), ..none() };
        let mut collector = Collector::new(scene.root.clone(), limits, Parts::ALL).unwrap();
        let mut told = Vec::new();
        let tell = &mut |each: Told<'_>| {
            let Told::Chosen { sizes, .. } = each else { panic!("{each:?}") };
            assert!(sizes.data.bytes >= 1 << 16 && sizes.metadata.bytes > 0, "{sizes:?}");
            assert_eq!(sizes.logs, Size::default());
            told.push(words(&each));
        };

        let round = collector.rehearse(&|_| true, &mut || true, tell).unwrap();

        assert_eq!(told, ["a would max-tasks", "b would max-tasks"]);
        assert_eq!((round.removed, scene.ids().len()), (2, 3));
        assert!(round.erased.bytes >= 2 << 16);
    }

    #[test]
    fn only_what_is_wanted_goes_and_counts() {
        let scene = Scene::new();
        three(&scene, 1);
        let limits = Limits { max_tasks: Some(1), ..none() };
        let mut collector = Collector::new(scene.root.clone(), limits, Parts::ALL).unwrap();

        collector.collect(&|id| id.as_str() != "a", &mut || true, &mut |_| {}).unwrap();

        assert_eq!(scene.ids(), ["a", "c"]);
    }

    /// Attack 19: unacknowledged.
    #[test]
    fn what_ended_a_moment_ago_stays() {
        let scene = Scene::new();
        three(&scene, 1);
        let limits = Limits {
            max_age: Some(Duration::ZERO),
            max_tasks: Some(0),
            keep_at_least: HOUR * 3 / 2,
            ..none()
        };

        assert_eq!(scene.collect(limits), ["a max-age", "b max-age"]);
        assert_eq!(scene.ids(), ["c"]);
    }

    /// Attack 43: in the boot in which it ended, the wall clock says nothing about the age of a task.
    #[test]
    fn a_clock_that_was_set_makes_no_task_of_this_boot_older_or_younger() {
        let scene = Scene::new();
        let boot = clock::boot_id().unwrap();
        scene.over_with("new", Duration::ZERO, |_| {}, [led(&boot, None)]);
        scene.over_with("older", Duration::from_secs(60), |_| {}, [led("another boot", None)]);
        let mut collector = Collector::new(scene.root.clone(), none(), Parts::ALL).unwrap();
        collector.read(&|_| true, &mut |_| {}).unwrap();
        let now = clock::now();
        let far = Stamp { wall: now.wall + 1_000_000_000_000_000_000, ..now };
        let age = |id: &str, now| collector.known[&id_of(id)].age(now);

        assert!(age("new", far) < HOUR && age("older", far) > HOUR);
        let back = Stamp { wall: 0, ..now };
        assert!(age("new", back) < HOUR);
        assert_eq!(age("older", back), Duration::ZERO);
    }

    #[test]
    fn what_is_damaged_goes_only_if_that_is_asked_for() {
        let scene = Scene::new();
        three(&scene, 1);
        let runner = scene.root.runner(&id_of("b"));
        let mut bytes = fs::read(&runner).unwrap();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 0xff;
        fs::write(&runner, bytes).unwrap();
        fs::remove_file(scene.root.runner(&id_of("c"))).unwrap();
        let limits = Limits { max_age: Some(Duration::ZERO), ..none() };

        assert_eq!(scene.collect(limits.clone()), ["a max-age"]);
        assert_eq!(scene.ids(), ["b", "c"]);
        let mut told = scene.collect(Limits { corrupt: true, ..limits });
        told.sort();
        assert_eq!(told, ["b max-age", "c max-age"]);
        assert!(scene.is_gone("b") && scene.is_gone("c"));
    }

    /// One that cannot be removed hinders no other, is told once, and does not keep the collector awake.
    #[test]
    fn a_task_that_cannot_be_removed_hinders_no_other_and_is_tried_later() {
        let scene = Scene::new();
        three(&scene, 1);
        let victim = scene.path("victim");
        fs::create_dir(&victim).unwrap();
        fs::remove_dir_all(scene.sandbox("a")).unwrap();
        symlink(&victim, scene.sandbox("a")).unwrap();
        let limits = Limits { max_tasks: Some(1), ..none() };
        let mut collector = Collector::new(scene.root.clone(), limits, Parts::ALL).unwrap();

        let first = round(&mut collector);
        let second = round(&mut collector);

        assert_eq!(first[0], format!("a left: {}", scene.sandbox("a").display()));
        assert_eq!(first[1..], ["b max-tasks"]);
        assert_eq!((second, scene.ids()), (Vec::new(), vec!["a".to_owned(), "c".to_owned()]));
        let (mut go, mut tell) = (|| true, |_: Told<'_>| {});
        let next = collector.collect(&|_| true, &mut go, &mut tell).unwrap().next.unwrap();
        assert!(next > HOUR / 2 && next <= HOUR, "{next:?}");
    }

    #[test]
    fn data_can_go_alone_and_once() {
        let scene = Scene::new();
        three(&scene, 1 << 16);
        let log = scene.file("a", ".logs/p/0/stdout", 10);
        let data = Parts { data: true, logs: false, metadata: false };
        let limits = Limits { max_age: Some(HOUR * 5 / 2), ..none() };

        assert_eq!(scene.collect_parts(limits.clone(), data), ["a max-age"]);
        assert!(log.exists() && !scene.sandbox("a").join("file").exists());
        assert_eq!(scene.ids(), ["a", "b", "c"]);
        assert_eq!(scene.collect_parts(limits.clone(), data), [""; 0]);
        let logs = Parts { data: false, logs: true, metadata: false };
        assert_eq!(scene.collect_parts(limits.clone(), logs), ["a max-age"]);
        assert!(!log.exists() && scene.sandbox("a").exists());
        assert_eq!(scene.collect_parts(limits.clone(), logs), [""; 0]);
        scene.file("a", "new", 1);
        let files = Parts { data: true, logs: true, metadata: false };
        assert_eq!(scene.collect_parts(limits.clone(), files), ["a max-age"]);
        assert!(!scene.sandbox("a").exists());
        assert_eq!(scene.collect_parts(limits.clone(), files), [""; 0]);
        assert_eq!(scene.collect(limits), ["a max-age"]);
        assert!(scene.is_gone("a"));
    }

    /// Logs may be deeper in the sandbox, and what leads to them is no data; elsewhere they are somebody's.
    #[test]
    fn logs_are_erased_where_they_are_in_the_sandbox_and_nowhere_else() {
        let scene = Scene::new();
        let elsewhere = scene.path("logs");
        fs::create_dir(&elsewhere).unwrap();
        fs::write(elsewhere.join("log"), "").unwrap();
        let deep = scene.sandbox("deep").join("var/log").display().to_string();
        scene.over_with("deep", HOUR, |launch| launch.log_dir = Some(deep), []);
        let log = scene.file("deep", "var/log/p/0/stdout", 10);
        scene.file("deep", "file", 10);
        let away = elsewhere.display().to_string();
        scene.over_with("away", HOUR, |launch| launch.log_dir = Some(away), []);
        scene.file("away", "file", 10);
        let limits = Limits { max_age: Some(Duration::ZERO), ..none() };
        let data = Parts { data: true, logs: false, metadata: false };

        let mut told = scene.collect_parts(limits.clone(), data);
        told.sort();

        assert_eq!(told, ["away max-age", "deep max-age"]);
        assert!(log.exists() && !scene.sandbox("deep").join("file").exists());
        assert_eq!(scene.collect_parts(limits.clone(), data), [""; 0]);
        let told = scene.collect(limits);
        assert!(elsewhere.join("log").exists());
        assert!(scene.is_gone("deep") && scene.is_gone("away"), "{told:?}");
    }

    /// Two collectors and a launch at one time: each task is removed once, and by one of them.
    #[test]
    fn two_collectors_remove_each_task_once() {
        let scene = Scene::new();
        (0..40).for_each(|n| {
            scene.over(&format!("t{n}"), HOUR);
            scene.file(&format!("t{n}"), "a/b", 1);
        });
        let limits = Limits { max_age: Some(HOUR / 2), ..none() };

        let collect = || scene.collect(limits.clone());
        let told = std::thread::scope(|scope| {
            let threads = [scope.spawn(collect), scope.spawn(collect)];
            threads.map(|thread| thread.join().unwrap()).concat()
        });

        let removed = told.iter().filter(|told| told.ends_with(" max-age")).count();
        // One that the other holds is told as that.
        assert!(
            told.iter().all(|told| told.contains("max-age") || told.contains("locked")),
            "{told:?}"
        );
        assert_eq!(removed, 40, "{told:?}");
        assert!(scene.ids().is_empty());
    }

    /// A runner that has just filed its task away, and goes.
    #[test]
    fn who_holds_a_task_that_has_just_ended_is_waited_for_and_else_tried_soon() {
        let scene = Scene::new();
        let hold = |id: &str| {
            let stream = crate::checkpoint::Identity::runner(id_of(id));
            crate::checkpoint::lock::Custody::take(&scene.root, &stream).unwrap()
        };
        scene.over("old", HOUR);
        scene.over("new", Duration::ZERO);
        let (old, new) = (hold("old"), hold("new"));
        let limits = Limits { max_tasks: Some(0), ..none() };
        let mut collector = Collector::new(scene.root.clone(), limits, Parts::ALL).unwrap();

        let told = std::thread::scope(|scope| {
            let leaves = move || {
                std::thread::sleep(Duration::from_millis(50));
                drop(new);
            };
            scope.spawn(leaves);
            round(&mut collector)
        });

        assert!(told[0].starts_with("old left: ") && told[0].contains("is locked by"), "{told:?}");
        assert_eq!(told[1..], ["new max-tasks"]);
        let next = collector.next().unwrap();
        assert!(next <= HELD, "{next:?}");
        drop(old);
    }

    /// What a collector has read once it does not read again.
    #[test]
    fn a_task_is_read_and_measured_once() {
        let scene = Scene::new();
        three(&scene, 1 << 20);
        let limits = Limits { max_space: Some(10 << 20), ..none() };
        let mut collector = Collector::new(scene.root.clone(), limits, Parts::ALL).unwrap();
        round(&mut collector);
        let before = collector.known[&id_of("a")].sizes;
        fs::write(scene.root.runner(&id_of("a")), "no stream").unwrap();
        scene.file("a", "more", 1 << 20);

        assert_eq!(round(&mut collector), [""; 0]);

        let known = &collector.known[&id_of("a")];
        assert!(!known.is_corrupt && known.sizes == before && before.is_some());
    }

    #[test]
    fn an_id_that_is_used_again_is_another_task() {
        let scene = Scene::new();
        three(&scene, 1);
        let limits = Limits { max_age: Some(HOUR * 5 / 2), ..none() };
        let mut collector = Collector::new(scene.root.clone(), limits, Parts::ALL).unwrap();
        collector.read(&|_| true, &mut |_| {}).unwrap();
        remove::remove(&scene.root, &id_of("a"), true).unwrap();
        scene.over("a", Duration::ZERO);

        assert_eq!(round(&mut collector), [""; 0]);

        assert_eq!(scene.ids(), ["a", "b", "c"]);
        assert_eq!(round(&mut collector), [""; 0]);
    }

    /// Whoever stops it finds a part of the work done, and nothing half done that is not gone on with.
    #[test]
    fn a_collector_that_is_stopped_goes_on_where_it_was() {
        let scene = Scene::new();
        three(&scene, 1);
        (0..5000).for_each(|n| drop(scene.file("b", &n.to_string(), 0)));
        let limits = Limits { max_age: Some(Duration::ZERO), ..none() };
        let mut collector = Collector::new(scene.root.clone(), limits.clone(), Parts::ALL).unwrap();
        let mut left = 2;
        let mut go = || {
            left -= 1;
            left > 0
        };

        collector.collect(&|_| true, &mut go, &mut |_| {}).unwrap();

        assert!(scene.ids().contains(&"b".to_owned()), "{:?}", scene.ids());
        scene.collect(limits);
        assert!(["a", "b", "c"].iter().all(|id| scene.is_gone(id)));
    }

    #[test]
    fn a_root_that_is_not_there_has_no_garbage() {
        let root = Root::new("/nowhere").unwrap();
        let limits = Limits { max_age: Some(Duration::ZERO), ..none() };
        let mut collector = Collector::new(root, limits, Parts::ALL).unwrap();

        assert_eq!(round(&mut collector), [""; 0]);
    }
}
