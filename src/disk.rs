//! What a directory tree takes of its file system: bytes and inodes.
//!
//! - Each inode counts once, however many names it has in the tree: 512 · `st_blocks` bytes, so that a sparse file counts what it
//!   has, and directories count, too. The top is one of them.
//! - Nothing that is mounted in the tree counts, and no link is followed.
//! - What could not be read is told with the figures, which then are less than what there is: [`DiskUsage::is_whole`].
//! - It is done some entries at a time ([`Measure::go_on`]), so that whoever measures can do something else in between, with two
//!   descriptors, and with memory that grows by some dozen bytes for each level and each file with several names, and not with files.
//!
//! Where an operator has given a directory a *project* of its own (xfs_quota(8), chattr(1) `-p` and `+P`), the kernel has the
//! figures ready, and nothing is walked. They are of all that belongs to the project: it is the operator's promise that no other
//! directory does. That a project begins at the directory, and is not that of the directory above, is seen here.
//!
//! Whoever measures a tree again and again can have it kept current in between ([`Current`]): then only directories that have changed are
//! counted again, and what cannot be kept current is walked.
#![allow(clippy::disallowed_methods, reason = "reads directories that a task controls")]

mod current;
mod ledger;

use std::collections::HashSet;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::OFlag;

use crate::proto::{Identity, Launch};
use crate::sys::dir::{self, FileId, Stat};
use crate::sys::fs::{open_dir_without_links, open_on_one_mount, open_parent};
use crate::sys::ids::as_file_user;
use crate::sys::quota;
use crate::tree::{Enter, Miss, Progress, Spot, Tree, Visitor};

pub use current::{Current, Lost};

/// Entries of a tree that are looked at, at most: a task could otherwise add to it faster than it is read.
const MAX_ENTRIES: u64 = 1 << 24;

/// Files with several names that are remembered, at most.
const MAX_LINKED: usize = 1 << 20;

/// Bytes of a unit of `st_blocks`.
const BLOCK: u64 = 512;

/// Where figures are from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Method {
    /// The tree was walked.
    Walk,
    /// It was counted before, and what has changed since was counted again.
    Inotify,
    /// The kernel accounts them to the project that the directory was given.
    Quota {
        /// Its number.
        project: u32,
    },
}

/// What a tree takes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DiskUsage {
    /// Bytes.
    pub bytes: u64,
    /// Inodes.
    pub inodes: u64,
    /// Where both are from.
    pub method: Method,
    /// Mounts in the tree, which do not count.
    pub mounts: u64,
    /// What should count and could not be looked at.
    pub missed: Missed,
}

impl DiskUsage {
    /// Whether the figures are of all that there is, and not just of what could be read.
    pub fn is_whole(&self) -> bool {
        self.missed == Missed::default()
    }
}

/// What could not be looked at.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Missed {
    /// Directories that could not be read, and entries of which nothing is known.
    pub unread: u64,
    /// The first of these, beneath the top, and why.
    pub first: Option<(PathBuf, Errno)>,
    /// Directories that were moved while they were read.
    pub moved: u64,
    /// Whether the tree has more entries, or more files with several names, than are looked at.
    pub is_cut: bool,
}

/// Why nothing was measured.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DiskError {
    /// It is not there, or not a plain directory, or not readable for the user of the task.
    #[error("{}", path.display())]
    Directory {
        /// The directory.
        path: PathBuf,
        /// Why it is not opened.
        #[source]
        errno: Errno,
    },
    /// The rights of the user of the task cannot be taken.
    #[error("read as uid {uid}")]
    User {
        /// The user.
        uid: u32,
        /// Why not.
        #[source]
        errno: Errno,
    },
}

/// A directory that is being measured.
#[derive(Debug)]
pub struct Measure {
    how: How,
    /// Whose rights it is read with; `None`: ours.
    user: Option<Identity>,
    lost: Option<Lost>,
}

#[derive(Debug)]
enum How {
    Known(DiskUsage),
    Walk(Box<Walk>),
    Current { current: Box<Current>, top: OwnedFd },
}

impl Measure {
    /// The sandbox of a task that was accepted, read with the rights of the task's user: a sandbox may be any directory, and nobody
    /// gets to know by dewar what they could not find out by themselves. With `current`, which is of this sandbox or of nothing yet,
    /// no more is counted than what has changed.
    ///
    /// # Errors
    ///
    /// [`DiskError`].
    pub fn sandbox(launch: &Launch, current: Option<Box<Current>>) -> Result<Self, DiskError> {
        let path = Path::new(&launch.sandbox);
        let user = launch.identity.clone();
        let top = as_user(user.as_ref(), || open_dir_without_links(path))?;
        let failed = |errno| DiskError::Directory { path: path.to_owned(), errno };
        let mut measure = Self::open(top.map_err(failed)?, current).map_err(failed)?;
        measure.user = user;
        Ok(measure)
    }

    /// The directory `top`, which is open for reading, with our own rights.
    ///
    /// # Errors
    ///
    /// Those of openat2(2) and statx(2).
    pub fn directory(top: OwnedFd) -> Result<Self, Errno> {
        Self::open(top, None)
    }

    fn open(top: OwnedFd, current: Option<Box<Current>>) -> Result<Self, Errno> {
        let (how, lost) = match (accounted(top.as_fd()), current) {
            (Some(known), _) => (How::Known(known), None),
            (None, None) => (How::walk(top)?, None),
            (None, Some(mut current)) => match current.begin(top.as_fd()) {
                Ok(()) => (How::Current { current, top }, None),
                Err(lost) => (How::walk(top)?, Some(lost)),
            },
        };
        Ok(Self { how, user: None, lost })
    }

    /// Goes on past about `entries` entries; `None`: it is not at the end.
    ///
    /// # Errors
    ///
    /// [`DiskError`].
    pub fn go_on(&mut self, entries: usize) -> Result<Option<DiskUsage>, DiskError> {
        let user = self.user.as_ref();
        let (lost, walk) = match &mut self.how {
            How::Known(known) => return Ok(Some(known.clone())),
            How::Walk(walk) => return as_user(user, || walk.go_on(entries)),
            How::Current { current, top } => {
                match as_user(user, || current.go_on(top.as_fd(), entries))? {
                    Ok(done) => return Ok(done),
                    Err(lost) => (lost, open_again(top.as_fd()).and_then(How::walk)),
                }
            }
        };
        let failed = |errno| DiskError::Directory { path: ".".into(), errno };
        (self.how, self.lost) = (walk.map_err(failed)?, Some(lost));
        Ok(None)
    }

    /// Entries that were looked at, other than by what [was lost](Self::lost).
    pub fn entries(&self) -> u64 {
        match &self.how {
            How::Known(_) => 0,
            How::Walk(walk) => walk.count.entries,
            How::Current { current, .. } => current.entries(),
        }
    }

    /// Why what was given to be kept current could not be, and is walked.
    pub fn lost(&self) -> Option<Lost> {
        self.lost
    }

    /// What is kept current, once it was measured.
    pub fn into_current(self) -> Option<Box<Current>> {
        match self.how {
            How::Current { current, .. } => Some(current),
            How::Known(_) | How::Walk(_) => None,
        }
    }
}

impl How {
    fn walk(top: OwnedFd) -> Result<Self, Errno> {
        Ok(Self::Walk(Box::new(Walk::new(top, None)?)))
    }
}

fn open_again(dir: BorrowedFd<'_>) -> Result<OwnedFd, Errno> {
    open_on_one_mount(dir, c".", OFlag::O_RDONLY | OFlag::O_DIRECTORY)
}

fn as_user<T: Send>(
    user: Option<&Identity>,
    body: impl FnOnce() -> T + Send,
) -> Result<T, DiskError> {
    let Some(Identity { uid, gid, groups, .. }) = user else { return Ok(body()) };
    as_file_user(*uid, *gid, groups, body).map_err(|errno| DiskError::User { uid: *uid, errno })
}

/// What the kernel accounts to the project that begins at `top`; `None` if none does, or if it cannot be told.
fn accounted(top: BorrowedFd<'_>) -> Option<DiskUsage> {
    let project = quota::project_of(top).ok()??;
    let above = open_parent(top).ok()?;
    if quota::project_of(above.as_fd()).ok()? == Some(project) {
        return None;
    }
    let quota::Accounted { bytes, inodes } = quota::of_project(top, project).ok()?;
    let method = Method::Quota { project };
    Some(DiskUsage { bytes, inodes, method, mounts: 0, missed: Missed::default() })
}

/// A walk that counts.
#[derive(Debug)]
pub(crate) struct Walk {
    tree: Tree,
    count: Count,
}

impl Walk {
    /// Of the directory `top`, which is open for reading, without the directory `except` in it.
    ///
    /// # Errors
    ///
    /// Those of openat2(2) and statx(2).
    pub(crate) fn new(top: OwnedFd, except: Option<FileId>) -> Result<Self, Errno> {
        let stat = dir::stat_open(top.as_fd())?;
        let mut count = Count::new(except);
        count.add(&stat);
        Ok(Self { tree: Tree::new(top)?, count })
    }

    /// Goes on past about `entries` entries; `None`: it is not at the end.
    pub(crate) fn go_on(&mut self, entries: usize) -> Option<DiskUsage> {
        let progress = self.tree.go_on(entries, &mut self.count);
        (progress == Progress::Over || self.count.is_full()).then(|| self.count.usage())
    }
}

/// What was counted.
#[derive(Debug)]
struct Count {
    bytes: u64,
    inodes: u64,
    entries: u64,
    mounts: u64,
    missed: Missed,
    except: Option<FileId>,
    /// Files with several names that were met.
    linked: HashSet<FileId>,
}

impl Count {
    fn new(except: Option<FileId>) -> Self {
        let missed = Missed::default();
        let linked = HashSet::new();
        Self { bytes: 0, inodes: 0, entries: 0, mounts: 0, missed, except, linked }
    }

    fn is_full(&self) -> bool {
        self.entries >= MAX_ENTRIES
    }

    fn usage(&self) -> DiskUsage {
        let mut missed = self.missed.clone();
        missed.is_cut |= self.is_full();
        let Self { bytes, inodes, mounts, .. } = *self;
        DiskUsage { bytes, inodes, method: Method::Walk, mounts, missed }
    }

    fn add(&mut self, stat: &Stat) {
        if stat.links > 1 && !stat.is_dir() && !self.is_new(stat.id) {
            return;
        }
        self.inodes += 1;
        self.bytes = self.bytes.saturating_add(stat.blocks.saturating_mul(BLOCK));
    }

    /// Whether a file with several names was not met before. One that cannot be remembered was, as far as is known.
    fn is_new(&mut self, id: FileId) -> bool {
        if self.linked.len() < MAX_LINKED {
            return self.linked.insert(id);
        }
        self.missed.is_cut |= !self.linked.contains(&id);
        false
    }
}

impl Visitor for Count {
    fn entry(&mut self, _dir: BorrowedFd<'_>, _spot: Spot<'_>, stat: &Stat) -> Enter {
        self.entries += 1;
        if self.except == Some(stat.id) {
            return Enter::No;
        }
        self.add(stat);
        Enter::Yes
    }

    fn left(&mut self, _dir: BorrowedFd<'_>, _spot: Spot<'_>) {}

    fn missed(&mut self, spot: Spot<'_>, why: Miss) {
        match why {
            Miss::Mount => self.mounts += 1,
            Miss::Moved => self.missed.moved += 1,
            Miss::Failed(errno) => {
                self.missed.unread += 1;
                self.missed.first.get_or_insert_with(|| (spot.path(), errno));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::ffi::OsStr;
    use std::fs::{self, File};
    use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
    use std::process::Command;
    use std::time::Duration;

    use nix::fcntl::{AT_FDCWD, RenameFlags, renameat2};
    use nix::mount::{MsFlags, mount};
    use nix::sched::{CloneFlags, unshare};

    use super::*;
    use crate::gc::testing::{Scene, deepen};
    use crate::testing::{ORDINARY, TempDir, alone, is_root, ordinary, while_disturbed};

    /// Entries between two looks of a test at what it measures.
    const SLICE: usize = 100;

    fn open(path: &Path) -> OwnedFd {
        File::open(path).unwrap().into()
    }

    fn measured(path: &Path) -> DiskUsage {
        let mut measure = Measure::directory(open(path)).unwrap();
        finish(|| measure.go_on(SLICE).unwrap())
    }

    fn finish(mut go_on: impl FnMut() -> Option<DiskUsage>) -> DiskUsage {
        std::iter::from_fn(|| Some(go_on())).flatten().next().unwrap()
    }

    fn blocks(path: &Path) -> u64 {
        fs::symlink_metadata(path).unwrap().blocks() * BLOCK
    }

    #[test]
    fn each_file_counts_the_blocks_it_has_and_each_directory_too() {
        let temp = TempDir::new();
        let at = |name: &str| temp.path().join(name);
        fs::create_dir_all(at("a/b")).unwrap();
        fs::write(at("a/b/f"), vec![1; 100_000]).unwrap();
        fs::write(at("a/g"), "x").unwrap();
        symlink("/etc", at("a/link")).unwrap();

        let usage = measured(temp.path());

        let all = ["", "a", "a/b", "a/b/f", "a/g", "a/link"].map(|name| blocks(&at(name)));
        assert_eq!((usage.bytes, usage.inodes), (all.iter().sum(), 6));
        assert_eq!((usage.method, usage.mounts, usage.is_whole()), (Method::Walk, 0, true));
    }

    /// V12: what was counted for each name.
    #[test]
    fn a_file_with_several_names_counts_once() {
        let temp = TempDir::new();
        fs::create_dir(temp.path().join("sub")).unwrap();
        fs::write(temp.path().join("f"), vec![1; 1 << 20]).unwrap();
        let once = measured(temp.path());
        for name in ["g", "h", "sub/i"] {
            fs::hard_link(temp.path().join("f"), temp.path().join(name)).unwrap();
        }

        assert_eq!(measured(temp.path()), once);
    }

    #[test]
    fn a_sparse_file_counts_what_it_has() {
        let temp = TempDir::new();
        let before = measured(temp.path()).bytes;
        File::create(temp.path().join("sparse")).unwrap().set_len(1 << 40).unwrap();

        assert!(measured(temp.path()).bytes - before < 1 << 20);
    }

    /// A link as the top of a walk is refused by whoever opens it; in the tree it counts, and what it leads to does not.
    #[test]
    fn no_link_is_followed() {
        let (temp, other) = (TempDir::new(), TempDir::new());
        fs::write(other.path().join("big"), vec![1; 1 << 20]).unwrap();
        let before = measured(temp.path()).bytes;
        symlink(other.path(), temp.path().join("link")).unwrap();
        symlink("..", temp.path().join("up")).unwrap();

        let usage = measured(temp.path());

        assert!(usage.bytes - before < 1 << 16, "{usage:?}");
        assert_eq!(usage.inodes, 3);
        let launch =
            Launch { sandbox: temp.path().join("link").display().to_string(), ..Launch::default() };
        let error = Measure::sandbox(&launch, None).unwrap_err();
        let path = temp.path().join("link");
        assert_eq!(error, DiskError::Directory { path, errno: Errno::ELOOP });
    }

    /// Attack 19: depth 10⁴. No stack and no descriptor for each level.
    #[test]
    fn a_tree_ten_thousand_deep_is_measured_with_few_descriptors() {
        alone(|| {
            let scene = Scene::of_many_files();
            scene.over("t", Duration::ZERO);
            let top = scene.sandbox("t");
            fs::create_dir(&top).unwrap();
            deepen(&top, 10_000);
            let few = nix::sys::resource::Resource::RLIMIT_NOFILE;
            nix::sys::resource::setrlimit(few, 24, 24).unwrap();

            let usage = measured(&top);

            assert_eq!((usage.inodes, usage.is_whole()), (20_001, true));
            scene.erase("t").unwrap();
        });
    }

    /// Attack 19: many files. A slice looks at about as many entries as it was told to.
    #[test]
    fn many_files_are_measured_in_slices() {
        let temp = TempDir::of_many_files();
        for n in 0..20 {
            fs::create_dir(temp.path().join(n.to_string())).unwrap();
            for m in 0..500 {
                File::create(temp.path().join(format!("{n}/{m}"))).unwrap();
            }
        }
        let mut walk = Walk::new(open(temp.path()), None).unwrap();

        let mut seen = vec![0];
        let usage = finish(|| {
            let usage = walk.go_on(SLICE);
            seen.push(walk.count.entries);
            usage
        });

        assert_eq!((usage.inodes, usage.is_whole()), (10_021, true));
        let most = seen.windows(2).map(|pair| pair[1] - pair[0]).max().unwrap();
        assert!((100..1000).contains(&most), "{most}");
    }

    #[test]
    fn one_directory_can_be_left_out() {
        let temp = TempDir::new();
        fs::create_dir(temp.path().join("logs")).unwrap();
        let without = measured(temp.path());
        fs::write(temp.path().join("logs/log"), vec![1; 1 << 16]).unwrap();
        let logs = dir::stat(open(temp.path()).as_fd(), c"logs").unwrap();

        let mut walk = Walk::new(open(temp.path()), Some(logs.id)).unwrap();
        let usage = finish(|| walk.go_on(SLICE));

        assert_eq!(usage.bytes, without.bytes - logs.blocks * BLOCK);
        assert_eq!(usage.inodes, 1);
    }

    #[test]
    fn what_the_user_of_the_task_cannot_read_is_told() {
        if !is_root() {
            return;
        }
        let temp = TempDir::new();
        fs::set_permissions(temp.path(), PermissionsExt::from_mode(0o755)).unwrap();
        for name in ["a", "b"] {
            fs::create_dir(temp.path().join(name)).unwrap();
            fs::write(temp.path().join(name).join("f"), vec![1; 1 << 16]).unwrap();
        }
        fs::set_permissions(temp.path().join("b"), PermissionsExt::from_mode(0o700)).unwrap();
        let launch = Launch {
            sandbox: temp.path().display().to_string(),
            identity: Some(ordinary(&[])),
            ..Launch::default()
        };

        let mut measure = Measure::sandbox(&launch, None).unwrap();
        let usage = finish(|| measure.go_on(SLICE).unwrap());

        assert_eq!(usage.inodes, 4);
        let first = Some(("b".into(), Errno::EACCES));
        let missed = Missed { unread: 1, first, ..Missed::default() };
        assert_eq!((usage.is_whole(), usage.missed), (false, missed));
        fs::set_permissions(temp.path(), PermissionsExt::from_mode(0o700)).unwrap();
        let error = Measure::sandbox(&launch, None).unwrap_err();
        let path = temp.path().to_owned();
        assert_eq!(error, DiskError::Directory { path, errno: Errno::EACCES }, "uid {ORDINARY}");
    }

    /// A watch goes on to tell of a directory that its user may not enter any more; what is in it is not.
    #[test]
    fn what_the_user_cannot_read_any_more_is_walked_and_told() {
        if !is_root() {
            return;
        }
        let temp = TempDir::new();
        let at = |name: &str| temp.path().join(name);
        fs::create_dir_all(at("a/b")).unwrap();
        for name in ["", "a", "a/b"] {
            fs::set_permissions(at(name), PermissionsExt::from_mode(0o755)).unwrap();
        }
        let launch = Launch {
            sandbox: temp.path().display().to_string(),
            identity: Some(ordinary(&[])),
            ..Launch::default()
        };
        let round = |current| {
            let mut measure = Measure::sandbox(&launch, current).unwrap();
            let usage = finish(|| measure.go_on(SLICE).unwrap());
            (usage, measure.lost(), measure.into_current())
        };
        let (_, _, current) = round(Current::new(SLICE).ok().map(Box::new));
        fs::write(at("a/b/f"), "").unwrap();
        let (seen, _, current) = round(current);
        assert_eq!((seen.inodes, seen.method), (4, Method::Inotify));

        fs::set_permissions(at("a"), PermissionsExt::from_mode(0o700)).unwrap();
        fs::write(at("a/b/g"), "").unwrap();
        let (usage, lost, current) = round(current);

        assert_eq!(lost, Some(Lost::Failed(Errno::EACCES)));
        assert_eq!((usage.inodes, usage.method, usage.missed.unread), (2, Method::Walk, 1));
        assert!(current.is_none());
    }

    /// Attack 19: a live bind mount, of a directory of the same file system and of a file.
    #[test]
    fn what_is_mounted_in_the_tree_does_not_count() {
        if !is_root() {
            return;
        }
        alone(|| {
            unshare(CloneFlags::CLONE_NEWNS).unwrap();
            let none: Option<&str> = None;
            mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).unwrap();
            let (temp, other) = (TempDir::new(), TempDir::new());
            fs::write(other.path().join("big"), vec![1; 1 << 20]).unwrap();
            fs::create_dir(temp.path().join("dir")).unwrap();
            fs::write(temp.path().join("file"), "").unwrap();
            let bytes = measured(temp.path()).bytes;
            let bind = |from: &Path, to: &str| {
                mount(Some(from), &temp.path().join(to), none, MsFlags::MS_BIND, none).unwrap();
            };
            bind(other.path(), "dir");
            bind(&other.path().join("big"), "file");

            let usage = measured(temp.path());

            assert_eq!((usage.mounts, usage.inodes, usage.is_whole()), (2, 1, true));
            assert!(usage.bytes < bytes, "{usage:?}");
            for name in ["dir", "file"] {
                nix::mount::umount(&temp.path().join(name)).unwrap();
            }
        });
    }

    /// Runs a program, and says whether it worked.
    fn does(program: &str, arguments: &[&OsStr]) -> bool {
        let output = Command::new(program).args(arguments).output();
        output.is_ok_and(|output| output.status.success())
    }

    /// Ask 30: exact, and cheap.
    #[test]
    fn a_project_that_begins_at_the_directory_is_asked_of_the_kernel() {
        if !is_root() {
            return;
        }
        alone(|| {
            unshare(CloneFlags::CLONE_NEWNS).unwrap();
            let none: Option<&str> = None;
            mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).unwrap();
            let temp = TempDir::new();
            let (image, top) = (temp.path().join("image"), temp.path().join("mount"));
            File::create(&image).unwrap().set_len(32 << 20).unwrap();
            fs::create_dir(&top).unwrap();
            let made =
                does("mkfs.ext4", &["-qO".as_ref(), "quota,project".as_ref(), image.as_ref()]);
            let options: [&OsStr; 4] =
                ["-o".as_ref(), "loop,prjquota".as_ref(), image.as_ref(), top.as_ref()];
            if !made || !does("mount", &options) {
                return eprintln!("left out: no file system with project quotas can be made");
            }
            let sandbox = top.join("sandbox");
            fs::create_dir(&sandbox).unwrap();
            let give: [&OsStr; 4] = ["-p".as_ref(), "7".as_ref(), "+P".as_ref(), sandbox.as_ref()];
            assert!(does("chattr", &give));
            fs::create_dir(sandbox.join("sub")).unwrap();
            for name in ["f", "sub/g"] {
                fs::write(sandbox.join(name), vec![1; 1 << 20]).unwrap();
            }
            nix::unistd::syncfs(open(&top)).unwrap();

            let (accounted, beneath) = (measured(&sandbox), measured(&sandbox.join("sub")));
            let mut walk = Walk::new(open(&sandbox), None).unwrap();
            let walked = finish(|| walk.go_on(SLICE));

            nix::mount::umount(&top).unwrap();
            assert_eq!(accounted.method, Method::Quota { project: 7 });
            assert_eq!((accounted.bytes, accounted.inodes), (walked.bytes, walked.inodes));
            assert_eq!((walked.inodes, walked.bytes >= 2 << 20), (4, true));
            assert_eq!(beneath.method, Method::Walk, "the project does not begin there");
        });
    }

    /// A directory that is moved, and moved out, while the walk is in it: what is outside does not count, whatever `..` says.
    #[test]
    fn a_walk_that_is_moved_out_of_the_tree_counts_nothing_there() {
        let (temp, other) = (TempDir::new(), TempDir::new());
        let inner = temp.path().join("a/b/c");
        fs::create_dir_all(&inner).unwrap();
        for n in 0..2000 {
            File::create(inner.join(n.to_string())).unwrap();
        }
        fs::write(other.path().join("big"), vec![1; 1 << 20]).unwrap();
        let mut walk = Walk::new(open(temp.path()), None).unwrap();
        while walk.count.entries < 10 {
            assert_eq!(walk.go_on(1), None);
        }

        fs::rename(&inner, other.path().join("c")).unwrap();
        fs::rename(temp.path().join("a/b"), other.path().join("b")).unwrap();
        let usage = finish(|| walk.go_on(SLICE));

        assert_eq!(usage.missed, Missed { moved: 1, ..Missed::default() });
        assert!(usage.bytes < 1 << 20, "{usage:?}");
        assert_eq!(usage.inodes, 2004);
    }

    /// While others add to it, and exchange its directories, a walk ends and tells a figure between what was always there and all.
    #[test]
    fn a_tree_that_changes_all_the_time_is_measured() {
        let temp = TempDir::new();
        let at = |name: &str| temp.path().join(name);
        for name in ["a/x", "b/y"] {
            fs::create_dir_all(at(name)).unwrap();
            for n in 0..300 {
                File::create(at(name).join(n.to_string())).unwrap();
            }
        }
        let number = std::sync::atomic::AtomicU64::new(0);
        let disturb = || {
            let (one, other) = (at("a"), at("b/y"));
            renameat2(AT_FDCWD, &one, AT_FDCWD, &other, RenameFlags::RENAME_EXCHANGE).unwrap();
            let n = number.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            File::create(at(&format!("new-{n}"))).unwrap();
        };

        while_disturbed(disturb, || {
            for _ in 0..50 {
                let usage = measured(temp.path());
                assert_eq!((usage.missed.unread, usage.mounts), (0, 0), "{usage:?}");
                let most = 2 * 605 + number.load(std::sync::atomic::Ordering::Relaxed) + 1;
                assert!((3..=most).contains(&usage.inodes), "{usage:?}");
            }
        });
    }
}
