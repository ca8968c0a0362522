//! Walks a directory tree that somebody else may change meanwhile, some entries at a time.
//!
//! Two directories are open at any time, the top and the one that the walk is in, however deep that is; no stack grows with the
//! depth, and of each directory above there is kept no more than its identity, the place up to which it was read, and the names of
//! directories that one read brought. The walk goes down by `openat2(2)` from the directory that it is in, through no link and
//! into no other mount, and up by `..`, which it believes only if it is the directory that it came from. If it is not, the walk was
//! moved: it goes down again from the top by names, as far as they lead to the directories that it knows, and goes on there.
//!
//! What is added behind it is not seen; what is removed before it reaches it is passed over.
#![allow(clippy::disallowed_methods, reason = "reads directories that a task controls")]

use std::ffi::{CStr, CString, OsStr};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use nix::errno::Errno;
use nix::fcntl::OFlag;

use crate::sys::dir::{self, FileId, Stat};
use crate::sys::fs::{open_on_one_mount, open_parent};

/// Bytes of entries that are read at a time: several hundred entries.
const BUFFER: usize = 16 << 10;

/// Bytes of a path that is told, at most.
const MAX_PATH: usize = libc::PATH_MAX as usize;

/// What is done on the way.
pub(crate) trait Visitor {
    /// Comes to `spot`, on the mount of the top, which is `stat`, and whose directory is `dir`. Says whether the walk enters it, if it is
    /// a directory.
    fn entry(&mut self, dir: BorrowedFd<'_>, spot: Spot<'_>, stat: &Stat) -> Enter;

    /// Has left the directory `spot`, which was read to its end, and is back in `dir`. It may have been exchanged meanwhile.
    fn left(&mut self, dir: BorrowedFd<'_>, spot: Spot<'_>);

    /// Could not read `spot`.
    fn missed(&mut self, spot: Spot<'_>, why: Miss);
}

/// Whether a directory is entered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Enter {
    /// It is.
    Yes,
    /// It is passed over.
    No,
}

/// Why something was not read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Miss {
    /// A call failed.
    Failed(Errno),
    /// Something is mounted there.
    Mount,
    /// It was moved while the walk was in it; what it has was read in part.
    Moved,
}

/// A place in the tree.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Spot<'a> {
    /// The directories that lead there, the top first.
    levels: &'a [Level],
    /// Its name in the last of them; empty for the top.
    pub(crate) name: &'a CStr,
}

impl Spot<'_> {
    /// Its path beneath the top, of which the last names are left out if it is longer than any path can be.
    pub(crate) fn path(&self) -> PathBuf {
        let above = self.levels.iter().skip(1).map(|level| level.name.as_c_str());
        let mut path = PathBuf::new();
        for name in above.chain([self.name]) {
            let name = OsStr::from_bytes(name.to_bytes());
            if name.is_empty() || path.as_os_str().len() + name.len() >= MAX_PATH {
                break;
            }
            path.push(name);
        }
        path
    }
}

/// A directory on the way from the top to where the walk is.
#[derive(Debug)]
struct Level {
    id: FileId,
    /// In the directory above.
    name: CString,
    /// Up to where it was read.
    place: i64,
    /// Directories that are to be entered before it is read on.
    waiting: Vec<CString>,
    is_read: bool,
}

/// A walk through a tree.
#[derive(Debug)]
pub(crate) struct Tree {
    top: OwnedFd,
    mount: u64,
    /// The directory of the last level.
    here: OwnedFd,
    /// Whether `here` was opened anew since its level was last read.
    is_reopened: bool,
    levels: Vec<Level>,
    buffer: Vec<u8>,
}

impl Tree {
    /// A walk through all that is beneath the directory `top`, which is open for reading.
    ///
    /// # Errors
    ///
    /// Those of openat2(2) and statx(2).
    pub(crate) fn new(top: OwnedFd) -> Result<Self, Errno> {
        let stat = dir::stat_open(top.as_fd())?;
        let here = open_dir(top.as_fd(), c".")?;
        let levels = vec![Level::new(stat.id, CString::default())];
        let buffer = vec![0; BUFFER];
        Ok(Self { top, mount: stat.mount, here, is_reopened: false, levels, buffer })
    }

    /// Goes on past about `entries` entries, and says whether there may be more.
    pub(crate) fn go_on(&mut self, entries: usize, visitor: &mut impl Visitor) -> Progress {
        let mut done = 0;
        while let Some(level) = self.levels.last_mut() {
            if done >= entries {
                return Progress::More;
            }
            done += if let Some(name) = level.waiting.pop() {
                self.enter(name, visitor)
            } else if level.is_read {
                self.leave(visitor)
            } else {
                self.read(visitor)
            };
        }
        Progress::Over
    }

    /// Reads on in the directory that the walk is in. Returns how many entries that were.
    fn read(&mut self, visitor: &mut impl Visitor) -> usize {
        let mut buffer = std::mem::take(&mut self.buffer);
        let seen = match self.entries(&mut buffer) {
            Ok(entries) => self.take_in(entries, visitor),
            Err(errno) => {
                // One that is removed has nothing to be read.
                if errno != Errno::ENOENT {
                    self.missed_here(visitor, Miss::Failed(errno));
                }
                self.at_end();
                1
            }
        };
        self.buffer = buffer;
        seen
    }

    fn entries<'b>(&mut self, buffer: &'b mut [u8]) -> Result<dir::Entries<'b>, Errno> {
        if std::mem::take(&mut self.is_reopened) {
            let place = self.levels.last().map_or(0, |level| level.place);
            dir::go_to(self.here.as_fd(), place)?;
        }
        dir::read(self.here.as_fd(), buffer)
    }

    fn take_in(&mut self, entries: dir::Entries<'_>, visitor: &mut impl Visitor) -> usize {
        if entries.is_end() {
            self.at_end();
            return 1;
        }
        let (mut waiting, mut place, mut seen) = (Vec::new(), None, 1);
        for entry in entries {
            seen += 1;
            place = Some(entry.next);
            if self.look(entry.name, visitor) == Enter::Yes {
                waiting.push(entry.name.to_owned());
            }
        }
        if let Some(level) = self.levels.last_mut() {
            level.waiting = waiting;
            level.place = place.unwrap_or(level.place);
        }
        seen
    }

    /// Looks at `name` in the directory that the walk is in, and says whether it is a directory to be entered.
    fn look(&self, name: &CStr, visitor: &mut impl Visitor) -> Enter {
        let spot = Spot { levels: &self.levels, name };
        match dir::stat(self.here.as_fd(), name) {
            Ok(stat) if stat.mount != self.mount => visitor.missed(spot, Miss::Mount),
            Ok(stat) => {
                let enter = visitor.entry(self.here.as_fd(), spot, &stat);
                return if stat.is_dir() { enter } else { Enter::No };
            }
            // It was removed since its name was read.
            Err(Errno::ENOENT) => {}
            Err(errno) => visitor.missed(spot, Miss::Failed(errno)),
        }
        Enter::No
    }

    /// Goes down into directory `name`.
    fn enter(&mut self, name: CString, visitor: &mut impl Visitor) -> usize {
        let spot = Spot { levels: &self.levels, name: &name };
        match open_known(self.here.as_fd(), &name) {
            Ok((here, id)) => {
                (self.here, self.is_reopened) = (here, false);
                self.levels.push(Level::new(id, name));
            }
            // By now it is gone, or something else.
            Err(Errno::ENOENT | Errno::ENOTDIR | Errno::ELOOP) => {}
            Err(Errno::EXDEV) if self.is_mount(&name) => visitor.missed(spot, Miss::Mount),
            // It was moved out of here while it was opened: the kernel looks at that once more at the end (openat2(2), RESOLVE_BENEATH).
            Err(Errno::EXDEV) => {}
            Err(errno) => visitor.missed(spot, Miss::Failed(errno)),
        }
        1
    }

    fn is_mount(&self, name: &CStr) -> bool {
        dir::stat(self.here.as_fd(), name).is_ok_and(|stat| stat.mount != self.mount)
    }

    /// Goes up from the directory that the walk is in. Returns how many directories it took.
    fn leave(&mut self, visitor: &mut impl Visitor) -> usize {
        let Some(child) = self.levels.pop() else { return 0 };
        let Some(level) = self.levels.last() else { return 1 };
        let up = open_parent(self.here.as_fd())
            .ok()
            .filter(|up| dir::stat_open(up.as_fd()).is_ok_and(|stat| stat.id == level.id));
        let depth = self.levels.len();
        let cost = match up {
            Some(up) => {
                self.here = up;
                1
            }
            None => self.find_again(visitor),
        };
        self.is_reopened = true;
        if self.levels.len() == depth {
            let spot = Spot { levels: &self.levels, name: &child.name };
            visitor.left(self.here.as_fd(), spot);
        }
        cost
    }

    /// Goes down from the top to the last level, or as far as the names lead to the directories that are known.
    fn find_again(&mut self, visitor: &mut impl Visitor) -> usize {
        let depth = self.levels.len();
        let mut reached = 1;
        match open_dir(self.top.as_fd(), c".") {
            Ok(top) => self.here = top,
            Err(errno) => {
                visitor.missed(Spot { levels: &[], name: c"" }, Miss::Failed(errno));
                self.levels.clear();
                return 1;
            }
        }
        for level in &self.levels[1..] {
            match open_known(self.here.as_fd(), &level.name) {
                Ok((here, id)) if id == level.id => self.here = here,
                _ => {
                    let spot = Spot { levels: &self.levels[..reached], name: &level.name };
                    visitor.missed(spot, Miss::Moved);
                    break;
                }
            }
            reached += 1;
        }
        self.levels.truncate(reached);
        depth
    }

    fn missed_here(&self, visitor: &mut impl Visitor, why: Miss) {
        if let Some((level, above)) = self.levels.split_last() {
            visitor.missed(Spot { levels: above, name: &level.name }, why);
        }
    }

    fn at_end(&mut self) {
        if let Some(level) = self.levels.last_mut() {
            level.is_read = true;
        }
    }
}

impl Level {
    fn new(id: FileId, name: CString) -> Self {
        Self { id, name, place: 0, waiting: Vec::new(), is_read: false }
    }
}

/// Whether a walk has come to its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Progress {
    /// There may be more.
    More,
    /// There is no more.
    Over,
}

fn open_dir(dir: BorrowedFd<'_>, name: &CStr) -> Result<OwnedFd, Errno> {
    open_on_one_mount(dir, name, OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW)
}

fn open_known(dir: BorrowedFd<'_>, name: &CStr) -> Result<(OwnedFd, FileId), Errno> {
    let opened = open_dir(dir, name)?;
    let id = dir::stat_open(opened.as_fd())?.id;
    Ok((opened, id))
}
