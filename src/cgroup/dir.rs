//! A cgroup directory held open: the only place that touches cgroupfs.

use std::ffi::{CStr, CString};
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use nix::dir::{Dir as Listing, Type};
use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, OFlag, OpenHow, ResolveFlag, openat, openat2};
use nix::sys::stat::{Mode, mkdirat};
use nix::sys::statfs::{CGROUP2_SUPER_MAGIC, fstatfs};
use nix::unistd::{UnlinkatFlags, unlinkat};

use super::CgroupError;

/// How a cgroup directory is opened: readable, so that it can be listed and cloned into.
const DIRECTORY: OFlag =
    OFlag::O_RDONLY.union(OFlag::O_DIRECTORY).union(OFlag::O_NOFOLLOW).union(OFlag::O_CLOEXEC);

/// Deepest nesting beneath a cgroup that a walk follows.
const DEPTH_MAX: usize = 4096;

/// A cgroup directory, open. `path` is for messages and records; access goes by descriptor.
#[derive(Debug)]
pub(super) struct Dir {
    fd: OwnedFd,
    path: PathBuf,
}

impl Dir {
    /// Opens the cgroup at the absolute path `path`, no component of which may be a symbolic link.
    pub(super) fn open(path: &Path) -> Result<Self, CgroupError> {
        // With O_NOFOLLOW a link at the end would be ENOTDIR, like a file; so it is ELOOP.
        let flags = DIRECTORY.difference(OFlag::O_NOFOLLOW);
        let how = OpenHow::new().flags(flags).resolve(ResolveFlag::RESOLVE_NO_SYMLINKS);
        let fd = openat2(AT_FDCWD, path, how).map_err(|errno| sys("open", path, errno))?;
        let kind = fstatfs(&fd).map_err(|errno| sys("statfs", path, errno))?.filesystem_type();
        if kind != CGROUP2_SUPER_MAGIC {
            return Err(CgroupError::NotCgroup2(path.to_owned()));
        }
        Ok(Self { fd, path: path.to_owned() })
    }

    /// Opens the child `name`; `None` if there is none.
    pub(super) fn child(&self, name: &str) -> Result<Option<Self>, CgroupError> {
        match openat(&self.fd, name, DIRECTORY, Mode::empty()) {
            Ok(fd) => Ok(Some(Self { fd, path: self.path.join(name) })),
            Err(Errno::ENOENT) => Ok(None),
            Err(Errno::ENOTDIR) => {
                Err(CgroupError::Reserved { name: name.to_owned(), dir: self.path.clone() })
            }
            Err(errno) => Err(sys("open", &self.path.join(name), errno)),
        }
    }

    /// Makes the child `name`, or opens it if it is there: whoever is first makes it.
    pub(super) fn create(&self, name: &str) -> Result<Self, CgroupError> {
        let made = self.make(name)?;
        // Where somebody has removed it, one of that name that is there by now is another's.
        self.open_or_unmake(name, made)?
            .ok_or_else(|| sys("open", &self.path.join(name), Errno::ENOENT))
    }

    /// Makes the child `name`; `None` if there is one of that name, or if somebody has removed it just then.
    pub(super) fn create_new(&self, name: &str) -> Result<Option<Self>, CgroupError> {
        if !self.make(name)? {
            return Ok(None);
        }
        self.open_or_unmake(name, true)
    }

    /// Whether the child `name` was made, and not there already.
    fn make(&self, name: &str) -> Result<bool, CgroupError> {
        match mkdirat(&self.fd, name, Mode::from_bits_truncate(0o755)) {
            Ok(()) => Ok(true),
            Err(Errno::EEXIST) => Ok(false),
            Err(errno) => Err(sys("make cgroup", &self.path.join(name), errno)),
        }
    }

    /// Opens the child `name`; one that was `made` and cannot be opened is not left behind.
    fn open_or_unmake(&self, name: &str, made: bool) -> Result<Option<Self>, CgroupError> {
        self.child(name).inspect_err(|_| {
            if made {
                // Out of descriptors, say.
                let _ = unlinkat(&self.fd, name, UnlinkatFlags::RemoveDir);
            }
        })
    }

    /// Opens the parent; `None` if this is the top of what is mounted.
    pub(super) fn parent(&self) -> Option<Self> {
        Self::open(self.path.parent()?).ok()
    }

    /// Opens `file`.
    pub(super) fn open_file(&self, file: &str, flags: OFlag) -> Result<OwnedFd, Errno> {
        open_at(self.as_fd(), file, flags)
    }

    /// Reads the whole of `file`.
    pub(super) fn read(&self, file: &str) -> Result<Vec<u8>, Errno> {
        read_at(self.as_fd(), file)
    }

    /// Reads the whole of `file` as text, without the line end.
    pub(super) fn read_text(&self, file: &str) -> Result<String, Errno> {
        let content = String::from_utf8_lossy(&self.read(file)?).into_owned();
        Ok(content.trim_end().to_owned())
    }

    /// Writes `text` to `file` in one write(2), as cgroupfs wants it.
    pub(super) fn write(&self, file: &str, text: &str) -> Result<(), Errno> {
        File::from(self.open_file(file, OFlag::O_WRONLY)?)
            .write_all(text.as_bytes())
            .map_err(errno_of)
    }

    /// Whether `file` is there.
    pub(super) fn has(&self, file: &str) -> bool {
        self.open_file(file, OFlag::O_PATH).is_ok()
    }

    /// Whether `file` has `name` among its words; one that cannot be read has none.
    pub(super) fn lists(&self, file: &str, name: &str) -> bool {
        self.read_text(file).is_ok_and(|words| words.split(' ').any(|word| word == name))
    }

    /// Names of the cgroups in this one, in no order; those that are not UTF-8 are none of ours.
    pub(super) fn children(&self) -> Result<Vec<String>, CgroupError> {
        let names = children(&self.fd).map_err(|errno| sys("list", &self.path, errno))?;
        Ok(names.into_iter().filter_map(|name| name.into_string().ok()).collect())
    }

    /// An error of this directory's `file`.
    pub(super) fn error(&self, act: &'static str, file: &str, errno: Errno) -> CgroupError {
        sys(act, &self.path.join(file), errno)
    }

    /// Absolute path.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// The same directory by another descriptor.
    pub(super) fn try_clone(&self) -> Result<Self, CgroupError> {
        let fd = self.fd.try_clone().map_err(|error| sys("open", &self.path, errno_of(error)))?;
        Ok(Self { fd, path: self.path.clone() })
    }

    /// The same directory, opened anew: with locks of its own.
    pub(super) fn reopen(&self) -> Result<OwnedFd, CgroupError> {
        openat(&self.fd, ".", DIRECTORY, Mode::empty())
            .map_err(|errno| sys("open", &self.path, errno))
    }

    /// Removes this cgroup itself, which must be empty; that it is gone already is as good.
    pub(super) fn rmdir(&self) -> Result<(), Errno> {
        let Some(name) = self.path.file_name() else { return Err(Errno::EBUSY) };
        let parent = up(&self.fd)?;
        match unlinkat(&parent, name, UnlinkatFlags::RemoveDir) {
            Err(Errno::ENOENT) => Ok(()),
            result => result,
        }
    }

    /// Removes every cgroup beneath this one, not this one.
    pub(super) fn remove_beneath(&self) -> Result<(), CgroupError> {
        self.walk(|parent, name, _| match unlinkat(parent, name, UnlinkatFlags::RemoveDir) {
            // EBUSY: it is populated, or has a new child. The caller tells which.
            Err(Errno::ENOENT | Errno::EBUSY) => Ok(()),
            result => result,
        })
    }

    /// Calls `visit(parent, name, child)` for every cgroup beneath this one, children before their
    /// parents. One descriptor at a time is open, however deep the tree: a task that may make
    /// cgroups must not exhaust ours. What vanishes during the walk is passed over.
    pub(super) fn walk(
        &self,
        mut visit: impl FnMut(BorrowedFd<'_>, &CStr, BorrowedFd<'_>) -> Result<(), Errno>,
    ) -> Result<(), CgroupError> {
        let failed = |errno| sys("walk", &self.path, errno);
        let mut here = self.fd.try_clone().map_err(|error| failed(errno_of(error)))?;
        let mut pending = vec![children(&here).map_err(failed)?];
        let mut names: Vec<CString> = Vec::new();
        while let Some(level) = pending.last_mut() {
            if let Some(name) = level.pop() {
                let child = match openat(&here, name.as_c_str(), DIRECTORY, Mode::empty()) {
                    Ok(child) => child,
                    Err(Errno::ENOENT) => continue,
                    Err(errno) => return Err(failed(errno)),
                };
                if names.len() == DEPTH_MAX {
                    return Err(CgroupError::Stubborn(self.path.clone()));
                }
                here = child;
                names.push(name);
                pending.push(children(&here).map_err(failed)?);
            } else {
                pending.pop();
                let Some(name) = names.pop() else { break };
                let parent = up(&here).map_err(failed)?;
                visit(parent.as_fd(), &name, here.as_fd()).map_err(failed)?;
                here = parent;
            }
        }
        Ok(())
    }
}

impl AsFd for Dir {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// Opens `file` in `dir`.
fn open_at(dir: BorrowedFd<'_>, file: &str, flags: OFlag) -> Result<OwnedFd, Errno> {
    openat(dir, file, flags | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC, Mode::empty())
}

/// Reads the whole of `file` in `dir`.
pub(super) fn read_at(dir: BorrowedFd<'_>, file: &str) -> Result<Vec<u8>, Errno> {
    let mut content = Vec::new();
    File::from(open_at(dir, file, OFlag::O_RDONLY)?).read_to_end(&mut content).map_err(errno_of)?;
    Ok(content)
}

/// Names of the cgroups in `dir`. One that was removed has none.
fn children(dir: &OwnedFd) -> Result<Vec<CString>, Errno> {
    let mut listing = match Listing::openat(dir, ".", DIRECTORY, Mode::empty()) {
        Err(Errno::ENOENT) => return Ok(Vec::new()),
        listing => listing?,
    };
    let mut names = Vec::new();
    for entry in listing.iter() {
        let entry = match entry {
            Err(Errno::ENOENT) => break,
            entry => entry?,
        };
        let name = entry.file_name();
        if entry.file_type() == Some(Type::Directory) && name != c"." && name != c".." {
            names.push(name.to_owned());
        }
    }
    Ok(names)
}

/// The directory above `dir`.
fn up(dir: &OwnedFd) -> Result<OwnedFd, Errno> {
    openat(dir, "..", DIRECTORY, Mode::empty())
}

/// An error of the kernel's.
pub(super) fn sys(act: &'static str, path: &Path, errno: Errno) -> CgroupError {
    CgroupError::Sys { act, path: path.to_owned(), errno }
}

/// The errno behind an error of std's. File reads and writes have one, but for a short write of
/// nothing, which no cgroup file does.
fn errno_of(error: std::io::Error) -> Errno {
    error.raw_os_error().map_or(Errno::EIO, Errno::from_raw)
}
