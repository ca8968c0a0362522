//! What a tree takes, kept current: all of it is counted once, and later only those directories that have changed.
//!
//! The kernel says which have (inotify(7)). Each directory has a watch that ends with its first event (`IN_ONESHOT`): however much is written,
//! a directory costs one event between two rounds, and nobody wakes up for it, as it is read when the next round
//! begins. A watch is set before the directory is read, so that no change falls between the two. What has become of a tree
//! that is not read in order is the business of the [`Ledger`].
//!
//! - A directory is opened beneath the top by the names that led to it, through no link and into no other mount, and is believed to be
//!   the one that is meant only if it is: what was moved away meanwhile is due again, as is the directory that it was in.
//! - Watches are set and directories read with the rights that a walk has: whoever may not read a directory learns nothing of it.
//! - What makes no event is not seen: names and writers outside of the tree, what is mounted or unmounted, space that the file system itself takes or
//!   gives back later; and what is written by a mapping is seen as that ends. So whoever keeps it counts all of it anew now and then.
//! - Whatever this cannot cope with ([`Lost`]) is left to a walk.

use std::collections::HashMap;
use std::ffi::{CStr, CString};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify, WatchDescriptor};

use super::ledger::{Counted, Ledger, Sums};
use super::{DiskUsage, MAX_ENTRIES, Method, Missed};
use crate::sys::dir::{self, FileId, Stat};
use crate::sys::fs::open_on_one_mount;

/// Bytes of entries that are read at a time.
const BUFFER: usize = 16 << 10;

/// Why a tree cannot be kept current.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Lost {
    /// The top is another directory than before.
    #[error("the directory is another one")]
    Replaced,
    /// More directories changed than the kernel remembers.
    #[error("there were too many events")]
    Overflow,
    /// A file got a name more, and may have counted before.
    #[error("a file has got another name")]
    Linked,
    /// It has more directories, entries or names than are kept.
    #[error("there is too much of it")]
    TooMuch,
    /// A path in it is longer than any can be.
    #[error("it is too deep")]
    TooDeep,
    /// A call failed, as for want of a right.
    #[error("it is not readable")]
    Failed(#[source] Errno),
}

impl Lost {
    /// Whether it is worth a try as soon as the tree was walked.
    pub fn is_passing(self) -> bool {
        matches!(self, Self::Replaced | Self::Overflow | Self::Linked)
    }
}

/// A tree whose figures are kept current.
#[derive(Debug)]
pub struct Current {
    notify: Inotify,
    ids: HashMap<WatchDescriptor, FileId>,
    watches: HashMap<FileId, WatchDescriptor>,
    /// Directories, and names of files with several, that are kept at most.
    most: usize,
    top: Option<Stat>,
    ledger: Ledger,
    round: Round,
}

#[derive(Debug, Default)]
struct Round {
    /// Whether all of the tree is counted, and not just what has changed.
    is_whole: bool,
    entries: u64,
    reading: Option<Reading>,
    /// Directories that were not where they should have been.
    amiss: Vec<FileId>,
}

/// A directory that is being read.
#[derive(Debug)]
struct Reading {
    id: FileId,
    dir: OwnedFd,
    counted: Counted,
}

impl Current {
    /// Nothing is counted yet. It takes a descriptor, and watches and some 300 bytes of memory for each directory, of which there
    /// are at most `most`; the kernel takes about 1 kB for each.
    ///
    /// # Errors
    ///
    /// Those of inotify_init1(2): `EMFILE` where this user has no more instances.
    pub fn new(most: usize) -> Result<Self, Errno> {
        Ok(Self {
            notify: Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK)?,
            ids: HashMap::new(),
            watches: HashMap::new(),
            most,
            top: None,
            ledger: Ledger::default(),
            round: Round::default(),
        })
    }

    /// Directories that are watched.
    pub fn watches(&self) -> usize {
        self.watches.len()
    }

    /// Entries that this round has looked at.
    pub(super) fn entries(&self) -> u64 {
        self.round.entries
    }

    /// Begins a round: `top` is the directory, open for reading.
    pub(super) fn begin(&mut self, top: BorrowedFd<'_>) -> Result<(), Lost> {
        let stat = dir::stat_open(top).map_err(Lost::Failed)?;
        self.take_events()?;
        let is_whole = self.top.is_none();
        match self.top {
            None => self.ledger = Ledger::new(stat.id),
            Some(top) if (top.id, top.mount) != (stat.id, stat.mount) => {
                return Err(Lost::Replaced);
            }
            Some(_) => {}
        }
        self.top = Some(stat);
        self.round = Round { is_whole, ..Round::default() };
        Ok(())
    }

    /// Goes on past about `entries` entries; `None`: it is not at the end.
    pub(super) fn go_on(
        &mut self,
        top: BorrowedFd<'_>,
        entries: usize,
    ) -> Result<Option<DiskUsage>, Lost> {
        let mut buffer = vec![0; BUFFER];
        let until = self.round.entries + entries as u64;
        while self.round.entries < until {
            if let Some(reading) = self.round.reading.take() {
                self.read(reading, &mut buffer)?;
            } else if let Some(id) = self.ledger.next() {
                self.open(top, id)?;
            } else {
                return self.end().map(Some);
            }
        }
        if self.round.entries >= MAX_ENTRIES || self.ledger.size() > self.most {
            return Err(Lost::TooMuch);
        }
        Ok(None)
    }

    fn end(&mut self) -> Result<DiskUsage, Lost> {
        let amiss = std::mem::take(&mut self.round.amiss);
        amiss.into_iter().for_each(|id| self.ledger.touch(id));
        // Of all that there is, a file that has other names has them elsewhere.
        if self.ledger.has_doubts() && !self.round.is_whole {
            return Err(Lost::Linked);
        }
        if self.ledger.size() > self.most {
            return Err(Lost::TooMuch);
        }
        let Sums { bytes, inodes, mounts } = self.ledger.total();
        let method = if self.round.is_whole { Method::Walk } else { Method::Inotify };
        Ok(DiskUsage { bytes, inodes, method, mounts, missed: Missed::default() })
    }

    /// Directories that have changed are due, and are not watched any more.
    fn take_events(&mut self) -> Result<(), Lost> {
        loop {
            let events = match self.notify.read_events() {
                Ok(events) => events,
                Err(Errno::EAGAIN) => return Ok(()),
                Err(Errno::EINTR) => continue,
                Err(errno) => return Err(Lost::Failed(errno)),
            };
            for event in events {
                if event.mask.contains(AddWatchFlags::IN_Q_OVERFLOW) {
                    return Err(Lost::Overflow);
                }
                if let Some(id) = self.ids.remove(&event.wd) {
                    self.watches.remove(&id);
                    self.ledger.touch(id);
                }
            }
        }
    }

    /// Opens a directory that is due, and watches it.
    fn open(&mut self, top: BorrowedFd<'_>, id: FileId) -> Result<(), Lost> {
        self.round.entries += 1;
        let Some(names) = self.ledger.names_up(id) else { return Ok(()) };
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW;
        let opened = open_on_one_mount(top, &path(&names)?, flags).and_then(|dir| {
            let stat = dir::stat_open(dir.as_fd())?;
            Ok((dir, stat))
        });
        match opened {
            Ok((dir, stat)) if stat.id == id => {
                self.watch(id, dir.as_fd()).map_err(Lost::Failed)?;
                let counted = Counted::of(&stat);
                self.round.reading = Some(Reading { id, dir, counted });
            }
            // It was moved or removed, or was exchanged for something else: whoever has it tells.
            Ok(_) | Err(Errno::ENOENT | Errno::ENOTDIR | Errno::ELOOP | Errno::EXDEV) => {
                if let Some(above) = self.ledger.above(id) {
                    self.ledger.touch(above);
                }
                self.round.amiss.push(id);
            }
            Err(errno) => return Err(Lost::Failed(errno)),
        }
        Ok(())
    }

    fn watch(&mut self, id: FileId, dir: BorrowedFd<'_>) -> Result<(), Errno> {
        let changes = AddWatchFlags::IN_CREATE
            | AddWatchFlags::IN_DELETE
            | AddWatchFlags::IN_MOVE
            | AddWatchFlags::IN_MODIFY
            | AddWatchFlags::IN_ATTRIB
            // The end of a mapping, too, by which nothing else tells of what was written.
            | AddWatchFlags::IN_CLOSE_WRITE;
        // What is written to a file that has no name any more counts for no directory.
        let named = AddWatchFlags::from_bits_retain(libc::IN_EXCL_UNLINK);
        let once = AddWatchFlags::IN_ONESHOT | named;
        // By its descriptor it is that very directory, and the kernel asks whether it may be read all the same.
        let path = format!("/proc/self/fd/{}", dir.as_raw_fd());
        let watch = self.notify.add_watch(path.as_str(), changes | once)?;
        self.ids.insert(watch, id);
        self.watches.insert(id, watch);
        Ok(())
    }

    /// Reads on in a directory.
    fn read(&mut self, mut reading: Reading, buffer: &mut [u8]) -> Result<(), Lost> {
        let entries = match dir::read(reading.dir.as_fd(), buffer) {
            Ok(entries) if !entries.is_end() => entries,
            // One that is removed has nothing to be read.
            Ok(_) | Err(Errno::ENOENT) => {
                self.ledger.counted(reading.id, reading.counted);
                self.drop_watches();
                return Ok(());
            }
            Err(errno) => return Err(Lost::Failed(errno)),
        };
        for entry in entries {
            self.round.entries += 1;
            match dir::stat(reading.dir.as_fd(), entry.name) {
                Ok(stat) => self.take_in(&mut reading.counted, entry.name, &stat),
                // It was removed since its name was read.
                Err(Errno::ENOENT) => {}
                Err(errno) => return Err(Lost::Failed(errno)),
            }
        }
        self.round.reading = Some(reading);
        Ok(())
    }

    fn take_in(&mut self, counted: &mut Counted, name: &CStr, stat: &Stat) {
        if self.top.is_some_and(|top| top.mount != stat.mount) {
            counted.mount();
        } else if stat.is_dir() {
            counted.dir(name.to_owned(), stat.id);
        } else {
            self.ledger.file(counted, stat);
        }
    }

    fn drop_watches(&mut self) {
        for id in self.ledger.gone() {
            let Some(watch) = self.watches.remove(&id) else { continue };
            self.ids.remove(&watch);
            // EINVAL: it has ended by itself.
            let _ = self.notify.rm_watch(watch);
        }
    }
}

/// The path that names make, the last of them first.
fn path(names: &[&CString]) -> Result<CString, Lost> {
    let names: Vec<&[u8]> = names.iter().rev().map(|name| name.to_bytes()).collect();
    let path = if names.is_empty() { b".".to_vec() } else { names.join(&b'/') };
    if path.len() >= libc::PATH_MAX as usize {
        return Err(Lost::TooDeep);
    }
    CString::new(path).map_err(|_| Lost::TooDeep)
}

#[cfg(test)]
mod tests {
    use std::fs::{self, File, OpenOptions};
    use std::io::Write;
    use std::os::unix::fs::symlink;
    use std::path::{Path, PathBuf};

    use proptest::collection::vec;
    use proptest::prelude::{Strategy, any, prop_oneof};

    use super::*;
    use crate::disk::{Measure, Walk};
    use crate::sys::fs::fill_by_mapping;
    use crate::testing::{TempDir, while_disturbed};

    /// Entries between two looks of a test at what it measures.
    const SLICE: usize = 100;
    const MOST: usize = 100_000;

    fn open(path: &Path) -> OwnedFd {
        File::open(path).unwrap().into()
    }

    fn walked(path: &Path) -> DiskUsage {
        let mut walk = Walk::new(open(path), None).unwrap();
        std::iter::repeat_with(|| walk.go_on(SLICE)).flatten().next().unwrap()
    }

    fn round(current: &mut Current, path: &Path) -> Result<DiskUsage, Lost> {
        let top = open(path);
        current.begin(top.as_fd())?;
        loop {
            if let Some(usage) = current.go_on(top.as_fd(), SLICE)? {
                return Ok(usage);
            }
        }
    }

    /// A tree that was counted once.
    fn counted(path: &Path) -> Current {
        let mut current = Current::new(MOST).unwrap();
        assert_eq!(round(&mut current, path).unwrap(), walked(path));
        current
    }

    /// The next round, which tells what a walk does.
    #[track_caller]
    fn followed(current: &mut Current, path: &Path) -> DiskUsage {
        let usage = round(current, path).unwrap();
        assert_eq!(usage, DiskUsage { method: Method::Inotify, ..walked(path) });
        usage
    }

    fn append(path: &Path, bytes: usize) {
        let mut file = OpenOptions::new().append(true).create(true).open(path).unwrap();
        file.write_all(&vec![1; bytes]).unwrap();
    }

    fn deep(temp: &TempDir) -> PathBuf {
        let deep = temp.path().join("a/b/c");
        fs::create_dir_all(&deep).unwrap();
        for n in 0..1000 {
            File::create(temp.path().join(format!("a/{n}"))).unwrap();
        }
        deep
    }

    #[test]
    fn a_tree_in_which_nothing_changes_is_not_read_again() {
        let temp = TempDir::of_many_files();
        deep(&temp);
        let mut current = counted(temp.path());
        assert!(current.entries() > 1000);

        followed(&mut current, temp.path());

        assert_eq!(current.entries(), 0);
    }

    #[test]
    fn of_a_tree_in_which_little_changes_little_is_read() {
        let temp = TempDir::of_many_files();
        let deep = deep(&temp);
        append(&deep.join("log"), 1);
        let mut log = OpenOptions::new().append(true).open(deep.join("log")).unwrap();
        let mut current = counted(temp.path());

        for _ in 0..3 {
            // Far more than the kernel remembers, each beside another, of which none is left out as the same.
            for _ in 0..20_000 {
                log.write_all(&[0; 8]).unwrap();
                append(&deep.join("other"), 8);
            }
            followed(&mut current, temp.path());
            assert!(current.entries() < 10, "{}", current.entries());
        }
    }

    #[test]
    fn what_is_written_by_a_mapping_is_seen_as_that_ends() {
        let temp = TempDir::new();
        let path = temp.path().join("f");
        let file = OpenOptions::new().read(true).write(true).create_new(true).open(path).unwrap();
        file.set_len(1 << 20).unwrap();
        let mut current = counted(temp.path());

        fill_by_mapping(&file);
        drop(file);
        let usage = followed(&mut current, temp.path());

        assert!(usage.bytes >= 1 << 20, "{usage:?}");
    }

    /// The inode goes with it, and so would its watch.
    #[test]
    fn what_was_moved_out_of_the_tree_does_not_count_and_costs_nothing_there() {
        let (temp, other) = (TempDir::new(), TempDir::new());
        let deep = deep(&temp);
        let mut current = counted(temp.path());

        fs::rename(temp.path().join("a/b"), other.path().join("b")).unwrap();
        followed(&mut current, temp.path());
        assert_eq!(current.watches(), 2);
        append(&other.path().join("b/c/f"), 1 << 20);
        followed(&mut current, temp.path());
        assert_eq!(current.entries(), 0);

        fs::create_dir(temp.path().join("new")).unwrap();
        fs::rename(other.path().join("b"), temp.path().join("new/b")).unwrap();
        assert!(followed(&mut current, temp.path()).bytes >= 1 << 20);
        assert!(!deep.exists());
    }

    #[test]
    fn what_it_cannot_cope_with_is_told() {
        let temp = TempDir::of_many_files();
        let at = |name: &str| temp.path().join(name);
        for name in ["a", "b"] {
            fs::create_dir(at(name)).unwrap();
            File::create(at(name).join("f")).unwrap();
        }

        let mut current = counted(temp.path());
        fs::hard_link(at("a/f"), at("b/g")).unwrap();
        assert_eq!(round(&mut current, temp.path()), Err(Lost::Linked));

        let mut current = counted(temp.path());
        fs::rename(temp.path(), temp.path().with_extension("old")).unwrap();
        fs::create_dir(temp.path()).unwrap();
        assert_eq!(round(&mut current, temp.path()), Err(Lost::Replaced));
        fs::remove_dir_all(temp.path().with_extension("old")).unwrap();

        let mut current = Current::new(1000).unwrap();
        round(&mut current, temp.path()).unwrap();
        for n in 0..1000 {
            fs::create_dir(at(&n.to_string())).unwrap();
        }
        assert_eq!(round(&mut current, temp.path()), Err(Lost::TooMuch));

        let deepest = (0..30).fold(temp.path().to_owned(), |path, _| path.join("x".repeat(120)));
        fs::create_dir_all(&deepest).unwrap();
        let mut current = counted(temp.path());
        crate::gc::testing::deepen(&deepest, 300);
        assert_eq!(round(&mut current, temp.path()), Err(Lost::TooDeep));
    }

    /// Two events are kept of each directory: its change, and that its watch has ended.
    #[test]
    fn after_more_changes_than_the_kernel_remembers_all_is_walked() {
        let most = fs::read_to_string("/proc/sys/fs/inotify/max_queued_events").unwrap();
        let most: usize = most.trim().parse().unwrap();
        if most > 20_000 {
            return eprintln!("left out: the kernel remembers {most} events");
        }
        let temp = TempDir::of_many_files();
        let at = |n: usize| temp.path().join(n.to_string());
        (0..=most / 2).for_each(|n| fs::create_dir(at(n)).unwrap());
        let current = counted(temp.path());

        (0..=most / 2).for_each(|n| drop(File::create(at(n).join("f")).unwrap()));
        let mut measure = Measure::open(open(temp.path()), Some(Box::new(current))).unwrap();
        let usage = std::iter::repeat_with(|| measure.go_on(SLICE).unwrap()).flatten().next();

        assert_eq!(usage, Some(walked(temp.path())));
        assert_eq!(measure.lost(), Some(Lost::Overflow));
    }

    #[derive(Debug, Clone)]
    enum Change {
        File(PathBuf, usize),
        Truncate(PathBuf),
        Dir(PathBuf),
        Move(PathBuf, PathBuf),
        Exchange(PathBuf, PathBuf),
        Link(PathBuf, PathBuf),
        Symlink(PathBuf),
        Remove(PathBuf),
    }

    /// A path of few, within the tree or beside it.
    fn path() -> impl Strategy<Value = PathBuf> {
        let names = vec("[abc]", 1..4);
        ("(in|in|in|in|out)", names)
            .prop_map(|(top, names)| [vec![top], names].concat().iter().collect())
    }

    fn change() -> impl Strategy<Value = Change> {
        use Change::*;
        prop_oneof![
            3 => (path(), any::<u16>()).prop_map(|(path, bytes)| File(path, bytes.into())),
            1 => path().prop_map(Truncate),
            4 => path().prop_map(Dir),
            3 => (path(), path()).prop_map(|(from, to)| Move(from, to)),
            1 => (path(), path()).prop_map(|(from, to)| Exchange(from, to)),
            2 => (path(), path()).prop_map(|(from, to)| Link(from, to)),
            1 => path().prop_map(Symlink),
            2 => path().prop_map(Remove),
        ]
    }

    impl Change {
        /// Makes it, if it can be made.
        fn make(&self, top: &Path) {
            use nix::fcntl::{AT_FDCWD, RenameFlags, renameat2};
            let at = |path: &Path| top.join(path);
            let exchange = RenameFlags::RENAME_EXCHANGE;
            let _ = match self {
                Self::File(path, bytes) => fs::write(at(path), vec![1; *bytes]),
                Self::Truncate(path) => {
                    OpenOptions::new().write(true).open(at(path)).and_then(|file| file.set_len(0))
                }
                Self::Dir(path) => fs::create_dir_all(at(path)),
                Self::Move(from, to) => fs::rename(at(from), at(to)),
                Self::Exchange(from, to) => {
                    renameat2(AT_FDCWD, &at(from), AT_FDCWD, &at(to), exchange).map_err(Into::into)
                }
                Self::Link(from, to) => fs::hard_link(at(from), at(to)),
                Self::Symlink(path) => symlink("/etc", at(path)),
                Self::Remove(path) => {
                    fs::remove_file(at(path)).or_else(|_| fs::remove_dir_all(at(path)))
                }
            };
        }
    }

    /// While directories are exchanged, removed and made, each round ends; once that is over, the next tells what a walk does.
    #[test]
    fn a_tree_that_changes_all_the_time_is_followed() {
        let temp = TempDir::new();
        let at = |name: &str| temp.path().join(name);
        for name in ["a/x", "b/y"] {
            fs::create_dir_all(at(name)).unwrap();
            (0..300).for_each(|n| drop(File::create(at(name).join(n.to_string())).unwrap()));
        }
        let mut current = counted(temp.path());
        let disturb = || {
            Change::Exchange("a".into(), "b/y".into()).make(temp.path());
            Change::Remove("a/x/c".into()).make(temp.path());
            Change::Dir("a/x/c/d".into()).make(temp.path());
        };

        while_disturbed(disturb, || {
            for _ in 0..200 {
                round(&mut current, temp.path()).unwrap();
            }
        });

        // What was amiss at its end is looked at once more.
        round(&mut current, temp.path()).unwrap();
        followed(&mut current, temp.path());
    }

    proptest::proptest! {
        #![proptest_config(proptest::prelude::ProptestConfig::with_cases(64))]

        /// Whatever is done to a tree between two rounds, the next tells what a walk does, or that it cannot.
        #[test]
        fn the_next_round_tells_what_a_walk_does(rounds in vec(vec(change(), 0..12), 1..8)) {
            let temp = TempDir::new();
            let top = temp.path().join("in");
            fs::create_dir(&top).unwrap();
            fs::create_dir(temp.path().join("out")).unwrap();
            let mut current = counted(&top);
            for changes in &rounds {
                changes.iter().for_each(|change| change.make(temp.path()));
                match round(&mut current, &top) {
                    Ok(usage) => {
                        let walked = DiskUsage { method: Method::Inotify, ..walked(&top) };
                        assert_eq!(usage, walked);
                    }
                    Err(Lost::Linked) => current = counted(&top),
                    Err(lost) => panic!("{lost}"),
                }
            }
        }
    }
}
