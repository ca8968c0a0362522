//! One inotify(7) instance for any number of followers.
//!
//! A user may have 128 instances (`fs.inotify.max_user_instances`), but as many watches as memory allows. So whoever serves
//! many readers makes one [`Watches`], waits until its descriptor is readable, and lets [`Watches::dispatch`] wake the
//! [`Watcher`]s that something has changed for. Watchers of one file share its watch.
//!
//! A wake says that there may be something new. It may come without any, and one may stand for many changes; none is lost:
//! a change after [`Watcher::watch_dir`] or [`Watcher::watch_file`] has returned is told.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use nix::errno::Errno;
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify, WatchDescriptor};

/// Reads of the queue in one turn.
const READS: usize = 64;

/// Why changes are not told.
#[derive(Debug, thiserror::Error)]
pub enum WatchError {
    /// There is no instance: `EMFILE` if the user has too many.
    #[error("inotify_init1")]
    Init(#[source] Errno),
    /// Something is not watched: `ENOSPC` if the user has too many watches.
    #[error("inotify_add_watch {}", path.display())]
    Add {
        /// What was to be watched.
        path: PathBuf,
        /// Why it is not.
        #[source]
        errno: Errno,
    },
    /// The queue of changes cannot be read.
    #[error("read inotify events")]
    Read(#[source] Errno),
}

/// An inotify instance, and those that it wakes.
#[derive(Debug, Clone)]
pub struct Watches(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    inotify: Inotify,
    table: Mutex<Table>,
}

type Wake = Arc<dyn Fn() + Send + Sync>;

#[derive(Default)]
struct Table {
    next: u64,
    wakes: BTreeMap<u64, Wake>,
    watched: BTreeMap<WatchDescriptor, BTreeSet<u64>>,
}

impl fmt::Debug for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} watchers of {} files", self.wakes.len(), self.watched.len())
    }
}

impl Shared {
    /// A panic elsewhere leaves the table whole: each change of it is one insertion or removal.
    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn forget(&self, table: &mut Table, watch: WatchDescriptor, watcher: u64) {
        let Some(watchers) = table.watched.get_mut(&watch) else { return };
        if watchers.remove(&watcher) && watchers.is_empty() {
            table.watched.remove(&watch);
            // What was removed from the disk has no watch any more.
            let _gone = self.inotify.rm_watch(watch);
        }
    }
}

impl Watches {
    /// Makes the instance.
    ///
    /// # Errors
    ///
    /// [`WatchError::Init`].
    pub fn new() -> Result<Self, WatchError> {
        let inotify = Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK)
            .map_err(WatchError::Init)?;
        Ok(Self(Arc::new(Shared { inotify, table: Mutex::default() })))
    }

    /// A watcher of nothing yet. `wake` is called by [`Watches::dispatch`], on its thread; it must return at once.
    pub fn watcher(&self, wake: impl Fn() + Send + Sync + 'static) -> Watcher {
        let mut table = self.0.table();
        let id = table.next;
        table.next += 1;
        table.wakes.insert(id, Arc::new(wake));
        Watcher { shared: Arc::clone(&self.0), id }
    }

    /// Takes the changes that are there and wakes whom they concern. Says whether none is left: `false` if changes come faster
    /// than they are taken, so that the caller can see to others in between.
    ///
    /// # Errors
    ///
    /// [`WatchError::Read`].
    pub fn dispatch(&self) -> Result<bool, WatchError> {
        for _ in 0..READS {
            let events = match self.0.inotify.read_events() {
                Ok(events) => events,
                Err(Errno::EAGAIN) => return Ok(true),
                Err(Errno::EINTR) => continue,
                Err(errno) => return Err(WatchError::Read(errno)),
            };
            // Without the lock: what is called may watch and forget.
            let wakes = self.concerned(events.iter().map(|event| (event.wd, event.mask)));
            wakes.iter().for_each(|wake| wake());
        }
        Ok(false)
    }

    fn concerned(
        &self,
        events: impl Iterator<Item = (WatchDescriptor, AddWatchFlags)>,
    ) -> Vec<Wake> {
        let mut table = self.0.table();
        let mut watchers = BTreeSet::new();
        for (watch, mask) in events {
            if mask.contains(AddWatchFlags::IN_Q_OVERFLOW) {
                watchers.extend(table.wakes.keys().copied());
            } else if mask.contains(AddWatchFlags::IN_IGNORED) {
                watchers.extend(table.watched.remove(&watch).unwrap_or_default());
            } else if let Some(of) = table.watched.get(&watch) {
                watchers.extend(of);
            }
        }
        watchers.iter().filter_map(|id| table.wakes.get(id).cloned()).collect()
    }
}

/// Readable when there is something to [`Watches::dispatch`].
impl AsFd for Watches {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.inotify.as_fd()
    }
}

impl AsRawFd for Watches {
    fn as_raw_fd(&self) -> RawFd {
        self.as_fd().as_raw_fd()
    }
}

/// Something that is watched.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Watched(WatchDescriptor);

/// One that is woken when something has changed. What it watches is forgotten with it.
#[derive(Debug)]
pub struct Watcher {
    shared: Arc<Shared>,
    id: u64,
}

impl Watcher {
    /// Tells of what is written to the file at `path`, which must be one of ours: links are followed.
    ///
    /// # Errors
    ///
    /// [`WatchError::Add`].
    pub fn watch_file(&self, path: &Path) -> Result<Watched, WatchError> {
        self.add(path, AddWatchFlags::IN_MODIFY, path)
    }

    /// Tells of what is written to the files in `dir`, and of new names; `path` is for messages.
    ///
    /// # Errors
    ///
    /// [`WatchError::Add`].
    pub fn watch_dir(&self, dir: BorrowedFd<'_>, path: &Path) -> Result<Watched, WatchError> {
        let flags =
            AddWatchFlags::IN_MODIFY | AddWatchFlags::IN_CREATE | AddWatchFlags::IN_MOVED_TO;
        // The path of a descriptor: no link that a task puts in the way is followed.
        self.add(&PathBuf::from(format!("/proc/self/fd/{}", dir.as_raw_fd())), flags, path)
    }

    /// A file is watched by everybody in one way, so that adding a watch again changes nothing.
    fn add(&self, at: &Path, flags: AddWatchFlags, path: &Path) -> Result<Watched, WatchError> {
        // With the lock: else it could be removed between the two by one who was the last to watch it.
        let mut table = self.shared.table();
        let watch = self
            .shared
            .inotify
            .add_watch(at, flags)
            .map_err(|errno| WatchError::Add { path: path.to_owned(), errno })?;
        table.watched.entry(watch).or_default().insert(self.id);
        Ok(Watched(watch))
    }

    /// Tells no more of `watched`.
    pub fn forget(&self, watched: Watched) {
        self.shared.forget(&mut self.shared.table(), watched.0, self.id);
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        let mut table = self.shared.table();
        table.wakes.remove(&self.id);
        let watched: Vec<_> = table.watched.keys().copied().collect();
        for watch in watched {
            self.shared.forget(&mut table, watch, self.id);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

    use super::*;
    use crate::testing::TempDir;

    /// A watcher that counts how often it is woken.
    fn counted(watches: &Watches) -> (Watcher, Arc<AtomicUsize>) {
        let count = Arc::new(AtomicUsize::new(0));
        let counter = Arc::clone(&count);
        let watcher = watches.watcher(move || {
            counter.fetch_add(1, Ordering::Relaxed);
        });
        (watcher, count)
    }

    fn is_readable(watches: &Watches) -> bool {
        let mut fds = [PollFd::new(watches.as_fd(), PollFlags::POLLIN)];
        poll(&mut fds, PollTimeout::ZERO).unwrap() == 1
    }

    fn dir(temp: &TempDir, name: &str) -> (PathBuf, fs::File) {
        let path = temp.path().join(name);
        fs::create_dir(&path).unwrap();
        let dir = fs::File::open(&path).unwrap();
        (path, dir)
    }

    #[test]
    fn those_that_watch_what_has_changed_are_woken_and_no_other() {
        let temp = TempDir::new();
        let (watches, (a, _a), (b, _b)) =
            (Watches::new().unwrap(), dir(&temp, "a"), dir(&temp, "b"));
        let watchers: Vec<_> = (0..3).map(|_| counted(&watches)).collect();
        for (index, (watcher, _)) in watchers.iter().enumerate() {
            let (path, dir) = if index < 2 { (&a, &_a) } else { (&b, &_b) };
            watcher.watch_dir(dir.as_fd(), path).unwrap();
        }
        assert!(!is_readable(&watches));

        fs::write(a.join("log"), "text").unwrap();

        assert!(is_readable(&watches) && watches.dispatch().unwrap());
        let counts: Vec<_> =
            watchers.iter().map(|(_, count)| count.load(Ordering::Relaxed)).collect();
        assert_eq!(counts, [1, 1, 0]);
    }

    /// The limit on instances of a user is 128.
    #[test]
    fn a_thousand_watchers_share_one_instance_and_each_is_woken() {
        let temp = TempDir::new();
        let (watches, (path, dir)) = (Watches::new().unwrap(), dir(&temp, "a"));
        let watchers: Vec<_> = (0..1000).map(|_| counted(&watches)).collect();
        for (watcher, _) in &watchers {
            watcher.watch_dir(dir.as_fd(), &path).unwrap();
        }

        fs::write(path.join("log"), "text").unwrap();
        watches.dispatch().unwrap();

        assert!(watchers.iter().all(|(_, count)| count.load(Ordering::Relaxed) == 1));
        assert_eq!(watches.0.table().watched.len(), 1);
    }

    #[test]
    fn a_watch_lasts_as_long_as_one_watcher_has_it() {
        let temp = TempDir::new();
        let (watches, (path, dir)) = (Watches::new().unwrap(), dir(&temp, "a"));
        let ((first, _), (second, count), (third, _)) =
            (counted(&watches), counted(&watches), counted(&watches));
        let watched = first.watch_dir(dir.as_fd(), &path).unwrap();
        assert_eq!(second.watch_dir(dir.as_fd(), &path).unwrap(), watched);
        third.watch_dir(dir.as_fd(), &path).unwrap();

        first.forget(watched);
        drop(third);
        fs::write(path.join("log"), "text").unwrap();
        watches.dispatch().unwrap();
        assert_eq!(count.load(Ordering::Relaxed), 1);

        drop(second);
        watches.dispatch().unwrap();
        fs::write(path.join("log"), "text").unwrap();
        assert!(!is_readable(&watches), "it is still watched");
    }

    #[test]
    fn those_that_watch_what_is_removed_are_woken_for_it() {
        let temp = TempDir::new();
        let (watches, (path, dir)) = (Watches::new().unwrap(), dir(&temp, "a"));
        let (watcher, count) = counted(&watches);
        let before = watcher.watch_dir(dir.as_fd(), &path).unwrap();

        drop(dir);
        fs::remove_dir(&path).unwrap();
        watches.dispatch().unwrap();

        assert_eq!(count.load(Ordering::Relaxed), 1);
        assert!(watches.0.table().watched.is_empty());
        fs::create_dir(&path).unwrap();
        let dir = fs::File::open(&path).unwrap();
        assert_ne!(watcher.watch_dir(dir.as_fd(), &path).unwrap(), before);
    }

    #[test]
    fn a_queue_that_overflows_wakes_everybody() {
        let watches = Watches::new().unwrap();
        let (_watcher, count) = counted(&watches);
        // What the kernel queues then: no watch at all.
        let temp = TempDir::new();
        let (path, dir) = dir(&temp, "a");
        let (other, _) = counted(&watches);
        let Watched(watch) = other.watch_dir(dir.as_fd(), &path).unwrap();

        let wakes = watches.concerned([(watch, AddWatchFlags::IN_Q_OVERFLOW)].into_iter());

        wakes.iter().for_each(|wake| wake());
        assert_eq!((wakes.len(), count.load(Ordering::Relaxed)), (2, 1));
    }

    #[test]
    fn what_is_woken_may_watch_and_forget() {
        let temp = TempDir::new();
        let (watches, (path, dir)) = (Watches::new().unwrap(), dir(&temp, "a"));
        let inner = watches.clone();
        let watcher = watches.watcher(move || drop(inner.watcher(|| {})));
        watcher.watch_dir(dir.as_fd(), &path).unwrap();

        fs::write(path.join("log"), "text").unwrap();

        assert!(watches.dispatch().unwrap());
    }
}
