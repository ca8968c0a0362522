//! Erases what is in a directory that somebody may change meanwhile.
//!
//! Names are unlinked in the directory that the walk holds open ([`crate::tree`]), so that nothing is erased that is not beneath the top. It
//! is done in passes: what one has missed, since it was added or moved behind it, the next one finds. The last one is that which erases nothing.

use std::ffi::CStr;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, OFlag};
use nix::sys::stat::{FchmodatFlags, Mode, fchmodat};
use nix::unistd::{UnlinkatFlags, geteuid, unlinkat};

use super::{Erased, Go, RemoveError};
use crate::sys::dir::{self, FileId, Stat};
use crate::sys::fs::open_on_one_mount;
use crate::tree::{Enter, Miss, Progress, Spot, Tree, Visitor};

/// Entries between two looks at whether to go on.
const SLICE: usize = 1000;
/// Times that a sandbox is gone through, while others add to it.
const PASSES: usize = 8;
/// Entries that are erased of one task at most: its user could otherwise add files faster than they are erased.
const MAX_ENTRIES: u64 = 1 << 26;

/// Erases all that is beneath the directory `top`, whose path is `path`, but for `except`, again and again until there is nothing, or no more
/// can be erased. Adds to `erased` what was.
///
/// # Errors
///
/// [`RemoveError`]: something is left.
pub(super) fn erase_beneath(
    top: BorrowedFd<'_>,
    path: &Path,
    except: Option<FileId>,
    go: Go<'_>,
    erased: &mut Erased,
) -> Result<(), RemoveError> {
    let mut seen = 0;
    for _ in 0..PASSES {
        let mut pass = Pass::new(except);
        let went = pass.go_through(top, MAX_ENTRIES - seen, go);
        seen += pass.entries;
        *erased += pass.erased;
        match went {
            Ok(true) => {}
            Ok(false) => return Err(RemoveError::Stopped),
            Err(errno) => {
                return Err(RemoveError::Left { path: path.to_owned(), count: 1, errno });
            }
        }
        // What was not empty may be so by now, if anything was erased.
        if pass.crowded > 0 && pass.erased != Erased::default() && seen < MAX_ENTRIES {
            continue;
        }
        return match pass.obstacle {
            Some(obstacle) => Err(obstacle.error(path, pass.left)),
            // What leads to the exception is not empty.
            None if pass.crowded > 0 && except.is_none() => break,
            None => Ok(()),
        };
    }
    Err(RemoveError::Growing(path.to_owned()))
}

/// One way through a tree that is erased.
#[derive(Debug)]
struct Pass {
    except: Option<FileId>,
    erased: Erased,
    entries: u64,
    /// Things that cannot be erased, and the first of them.
    left: u64,
    obstacle: Option<Obstacle>,
    /// Directories that were not empty when they were left.
    crowded: u64,
}

/// Something that cannot be erased.
#[derive(Debug)]
struct Obstacle {
    /// Beneath the top.
    path: PathBuf,
    why: Why,
}

#[derive(Debug, Clone, Copy)]
enum Why {
    Mount,
    Immutable,
    Errno(Errno),
}

impl Obstacle {
    fn error(self, top: &Path, count: u64) -> RemoveError {
        let path = top.join(self.path);
        match self.why {
            Why::Mount => RemoveError::Mounted { path, count },
            Why::Immutable => RemoveError::Immutable { path, count },
            Why::Errno(errno) => RemoveError::Left { path, count, errno },
        }
    }
}

impl Pass {
    fn new(except: Option<FileId>) -> Self {
        let erased = Erased::default();
        Self { except, erased, entries: 0, left: 0, obstacle: None, crowded: 0 }
    }

    /// Goes through all beneath `top`, past `most` entries at most, unless `go` stops it, which the answer says.
    fn go_through(&mut self, top: BorrowedFd<'_>, most: u64, go: Go<'_>) -> Result<bool, Errno> {
        let mut tree = Tree::new(open_on_one_mount(top, c".", OFlag::O_RDONLY)?)?;
        while tree.go_on(SLICE, self) == Progress::More && self.entries < most {
            if !go() {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn unlink(&mut self, dir: BorrowedFd<'_>, spot: Spot<'_>, stat: &Stat, flag: UnlinkatFlags) {
        match unlinkat(dir, spot.name, flag) {
            Ok(()) => {
                if stat.links <= 1 || stat.is_dir() {
                    self.erased += Erased { bytes: stat.blocks * 512, inodes: 1 };
                }
            }
            Err(Errno::ENOENT) => {}
            // What is in it was told of, or is new.
            Err(Errno::ENOTEMPTY | Errno::EEXIST) => self.crowded += 1,
            // It was exchanged for something else, and is left for the next pass.
            Err(Errno::ENOTDIR | Errno::EISDIR) => self.crowded += 1,
            Err(Errno::EBUSY) => self.leave(spot, Why::Mount),
            Err(Errno::EPERM) if is_kept(dir, stat) => self.leave(spot, Why::Immutable),
            Err(errno) => self.leave(spot, Why::Errno(errno)),
        }
    }

    fn leave(&mut self, spot: Spot<'_>, why: Why) {
        self.left += 1;
        self.obstacle.get_or_insert_with(|| Obstacle { path: spot.path(), why });
    }
}

/// Lets us into a directory of ours that was closed to us, as a task that ran as the same user may have left it. Root needs no leave; what
/// cannot be opened up is told when it is entered.
pub(super) fn open_up(dir: BorrowedFd<'_>, name: &CStr, stat: &Stat) {
    let us = geteuid();
    if us.is_root() || stat.uid != us.as_raw() || stat.mode & libc::S_IRWXU == libc::S_IRWXU {
        return;
    }
    // fchmod(2) takes no descriptor that was opened by path alone, which is all that there is of a directory without permissions.
    if let Ok(closed) = open_on_one_mount(dir, name, OFlag::O_PATH | OFlag::O_DIRECTORY) {
        let path = format!("/proc/self/fd/{}", closed.as_raw_fd());
        let _ = fchmodat(AT_FDCWD, path.as_str(), Mode::S_IRWXU, FchmodatFlags::FollowSymlink);
    }
}

/// Whether a file, or the directory that it is in, is marked as immutable or append-only.
fn is_kept(dir: BorrowedFd<'_>, stat: &Stat) -> bool {
    stat.is_kept || dir::stat_open(dir).is_ok_and(|dir| dir.is_kept)
}

impl Visitor for Pass {
    fn entry(&mut self, dir: BorrowedFd<'_>, spot: Spot<'_>, stat: &Stat) -> Enter {
        self.entries += 1;
        if self.except == Some(stat.id) {
            return Enter::No;
        }
        if stat.is_dir() {
            open_up(dir, spot.name, stat);
        } else {
            self.unlink(dir, spot, stat, UnlinkatFlags::NoRemoveDir);
        }
        Enter::Yes
    }

    fn left(&mut self, dir: BorrowedFd<'_>, spot: Spot<'_>) {
        match dir::stat(dir, spot.name) {
            Ok(stat) => self.unlink(dir, spot, &stat, UnlinkatFlags::RemoveDir),
            Err(Errno::ENOENT) => {}
            Err(errno) => self.leave(spot, Why::Errno(errno)),
        }
    }

    fn missed(&mut self, spot: Spot<'_>, why: Miss) {
        match why {
            Miss::Mount => self.leave(spot, Why::Mount),
            Miss::Failed(errno) => self.leave(spot, Why::Errno(errno)),
            // The next pass finds what is left of it.
            Miss::Moved => self.crowded += 1,
        }
    }
}

/// Removes a directory that is empty.
pub(super) fn unlink_dir(
    dir: BorrowedFd<'_>,
    name: &CStr,
    path: &Path,
    erased: &mut Erased,
) -> Result<(), RemoveError> {
    let stat = dir::stat(dir, name);
    match unlinkat(dir, name, UnlinkatFlags::RemoveDir) {
        Ok(()) => {
            *erased += Erased { bytes: stat.map_or(0, |stat| stat.blocks * 512), inodes: 1 };
            Ok(())
        }
        Err(Errno::ENOENT) => Ok(()),
        Err(Errno::ENOTEMPTY | Errno::EEXIST) => Err(RemoveError::Growing(path.to_owned())),
        Err(Errno::EBUSY) => Err(RemoveError::Mounted { path: path.to_owned(), count: 1 }),
        Err(Errno::EPERM) if stat.is_ok_and(|stat| is_kept(dir, &stat)) => {
            Err(RemoveError::Immutable { path: path.to_owned(), count: 1 })
        }
        Err(errno) => Err(RemoveError::Left { path: path.to_owned(), count: 1, errno }),
    }
}
