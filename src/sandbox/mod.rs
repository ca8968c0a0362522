//! The directory that a task runs in, and the log directories: made and opened so that a task
//! cannot lead us elsewhere.
//!
//! Root works here in directories that a user owns, so a path is trusted once, when the task is
//! accepted: [`canonical`] makes it one without links, and that is recorded. From then on it is
//! opened without following a link anywhere in it, and what lies beneath is opened from the
//! descriptor held, component by component ([`logs`]). A directory that is swapped for a link at
//! any moment is an error, never a way out.
//!
//! All of it needs `openat2` (Linux 5.6). Where that is missing nothing is opened: there is no
//! second, weaker way.
//!
//! The umask must leave the owner's bits alone, as a coordinator's does; every other bit is set here.
#![allow(clippy::disallowed_methods, reason = "opens what a task controls")]

pub mod logs;

use std::ffi::{CStr, CString};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag};
use nix::sys::stat::{FileStat, Mode, SFlag, fchmod, fstat, fstatat, mkdirat};
use nix::unistd::{Gid, Uid, fchown, geteuid};

use crate::proto::Identity;
use crate::sys::fs::{is_empty_dir, open_beneath, open_dir_without_links};

/// Mode of a sandbox that dewar makes: its user's alone, as its logs are in it.
const SANDBOX_MODE: Mode = Mode::S_IRWXU;

/// Mode of a directory that leads to a sandbox or to logs.
const PARENT_MODE: Mode = Mode::from_bits_truncate(0o755);

/// Mode that a directory has from `mkdir` until it is given to its owner.
const FRESH_MODE: Mode = Mode::S_IRWXU;

/// Read by every shell of a run that starts without a terminal, if a run before it wrote it.
const PROFILE: &CStr = c".thermos_profile";

/// Why a sandbox, log directory or log was not opened.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum PathError {
    /// Relative to what?
    #[error("{}: is not an absolute path", path.display())]
    Relative {
        /// As it was given.
        path: PathBuf,
    },
    /// `..` has no meaning where nothing is yet.
    #[error("{}: contains `..` beneath a directory that does not exist", path.display())]
    Dots {
        /// As it was given.
        path: PathBuf,
    },
    /// It was a plain directory when the task was accepted.
    #[error("{}: a symbolic link is in the path, and none is followed", path.display())]
    Link {
        /// Whole path.
        path: PathBuf,
    },
    /// It must be one.
    #[error("{}: is not a directory", path.display())]
    NotDirectory {
        /// Whole path.
        path: PathBuf,
    },
    /// A log is a regular file and nothing else.
    #[error("{}: is {kind}, where a regular file is expected", path.display())]
    Kind {
        /// Whole path.
        path: PathBuf,
        /// What it is.
        kind: &'static str,
    },
    /// It may be somebody's file under a second name.
    #[error("{}: has {links} hard links, where one is expected", path.display())]
    HardLinks {
        /// Whole path.
        path: PathBuf,
        /// How many names it has.
        links: libc::nlink_t,
    },
    /// Somebody else put it there.
    #[error("{}: belongs to uid {uid}, where {expected} is expected", path.display())]
    Owner {
        /// Whole path.
        path: PathBuf,
        /// Whose it is.
        uid: u32,
        /// Whose it should be.
        expected: u32,
    },
    /// Somebody replaces it all the time.
    #[error("{}: changes while it is opened", path.display())]
    Unstable {
        /// Whole path.
        path: PathBuf,
    },
    /// The kernel is older than 5.6, or a seccomp filter hides the call.
    #[error(
        "openat2 is missing here (Linux 5.6), and paths that a task controls are opened by nothing else"
    )]
    NoOpenat2,
    /// A system call failed.
    #[error("{call} {}", path.display())]
    Sys {
        /// The call.
        call: &'static str,
        /// What it was to act on.
        path: PathBuf,
        /// Why it could not.
        #[source]
        errno: Errno,
    },
}

impl PathError {
    /// What `errno` of `call` on `path` means.
    pub(crate) fn of(call: &'static str, path: &Path, errno: Errno) -> Self {
        let path = path.to_owned();
        match errno {
            Errno::ELOOP => Self::Link { path },
            Errno::ENOTDIR => Self::NotDirectory { path },
            Errno::ENOSYS => Self::NoOpenat2,
            errno => Self::Sys { call, path, errno },
        }
    }

    /// The error number that stands for it in a verdict; `None` for what dewar itself refused.
    pub fn errno(&self) -> Option<Errno> {
        match self {
            Self::Link { .. } => Some(Errno::ELOOP),
            Self::NotDirectory { .. } => Some(Errno::ENOTDIR),
            Self::NoOpenat2 => Some(Errno::ENOSYS),
            Self::Sys { errno, .. } => Some(*errno),
            _ => None,
        }
    }
}

/// Uid and gid that directories and logs of a run belong to.
#[derive(Debug, Clone, Copy)]
struct Owner {
    uid: u32,
    gid: u32,
}

impl Owner {
    fn of(identity: &Identity) -> Self {
        Self { uid: identity.uid, gid: identity.gid }
    }

    /// Gives `fd` to the owner, with `mode`.
    fn take(self, fd: BorrowedFd<'_>, mode: Mode, path: &Path) -> Result<(), PathError> {
        fchown(fd, Some(Uid::from_raw(self.uid)), Some(Gid::from_raw(self.gid)))
            .map_err(|errno| PathError::of("fchown", path, errno))?;
        fchmod(fd, mode).map_err(|errno| PathError::of("fchmod", path, errno))
    }

    /// Gives `fd` to the owner if it is a directory that dewar has just made, or had just made when
    /// it was killed. Anything else that was moved into its place is not given away: it would be no
    /// empty directory of ours with that mode.
    fn take_if_fresh(self, fd: BorrowedFd<'_>, mode: Mode, path: &Path) -> Result<(), PathError> {
        let stat = stat(fd, path)?;
        let fresh = stat.st_uid == geteuid().as_raw() && permissions(&stat) == FRESH_MODE;
        if fresh && is_empty_dir(fd).map_err(|errno| PathError::of("getdents64", path, errno))? {
            self.take(fd, mode, path)?;
        }
        Ok(())
    }
}

/// Directory that a task runs in, held open.
#[derive(Debug)]
pub struct Sandbox {
    path: PathBuf,
    dir: OwnedFd,
}

impl Sandbox {
    /// Opens the sandbox at `path`, which is absolute and without links: see [`canonical`]. If it is missing it is made, and
    /// belongs to `identity` with mode 0700; parents that are missing are made with mode 0755 and stay the caller's.
    ///
    /// Runs that start side by side make it together: each gives away what it finds newly made, before it puts anything
    /// there. So an empty directory with mode 0700 that is root's counts as newly made, whoever made it.
    ///
    /// # Errors
    ///
    /// See [`PathError`].
    pub fn open(path: &Path, identity: &Identity) -> Result<Self, PathError> {
        let owner = Owner::of(identity);
        let dir = open_or_make(path, FRESH_MODE)?;
        if owner.uid != geteuid().as_raw() {
            owner.take_if_fresh(dir.as_fd(), SANDBOX_MODE, path)?;
        }
        Ok(Self { path: path.to_owned(), dir })
    }

    /// Its absolute path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The directory.
    pub fn dir(&self) -> BorrowedFd<'_> {
        self.dir.as_fd()
    }

    /// T57: whether a run has left a `.thermos_profile`, whatever it is. The shells that read it do
    /// so with the rights of their user.
    ///
    /// # Errors
    ///
    /// [`PathError::Sys`] if that cannot be told.
    pub fn has_profile(&self) -> Result<bool, PathError> {
        match fstatat(self.dir(), PROFILE, AtFlags::AT_SYMLINK_NOFOLLOW) {
            Ok(_) => Ok(true),
            Err(Errno::ENOENT) => Ok(false),
            Err(errno) => Err(PathError::of("fstatat", &self.path.join(shown(PROFILE)), errno)),
        }
    }
}

/// The absolute path without links that `path` leads to at this moment. What does not exist yet is kept as
/// it is written.
///
/// # Errors
///
/// [`PathError::Dots`]; [`PathError::Sys`] if it cannot be told.
pub fn canonical(path: &Path) -> Result<PathBuf, PathError> {
    let sys = |path: &Path, error: std::io::Error| {
        let errno = error.raw_os_error().map_or(Errno::EINVAL, Errno::from_raw);
        PathError::of("realpath", path, errno)
    };
    let absolute = std::path::absolute(path).map_err(|error| sys(path, error))?;
    let mut existing = absolute.as_path();
    let mut missing = Vec::new();
    loop {
        match existing.canonicalize() {
            Ok(real) => return Ok(missing.iter().rev().fold(real, |path, name| path.join(name))),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => return Err(sys(existing, error)),
        }
        let dots = || PathError::Dots { path: path.to_owned() };
        missing.push(existing.file_name().ok_or_else(dots)?);
        existing = existing.parent().ok_or_else(dots)?;
    }
}

/// Opens the directory at `path`. If it is missing it is made with `mode`, and so are its parents.
fn open_or_make(path: &Path, mode: Mode) -> Result<OwnedFd, PathError> {
    let names = names_from_root(path)?;
    match open_dir_without_links(path) {
        Err(Errno::ENOENT) => make_from_root(&names, mode),
        opened => opened.map_err(|errno| PathError::of("openat2", path, errno)),
    }
}

fn make_from_root(names: &[CString], mode: Mode) -> Result<OwnedFd, PathError> {
    let root = Path::new("/");
    let mut dir =
        open_dir_without_links(root).map_err(|errno| PathError::of("openat2", root, errno))?;
    let mut reached = root.to_owned();
    for (index, name) in names.iter().enumerate() {
        reached.push(shown(name));
        let last = index + 1 == names.len();
        let mode = if last { mode } else { PARENT_MODE };
        (dir, _) = open_or_make_in(dir.as_fd(), name, last, mode)
            .map_err(|(call, errno)| PathError::of(call, &reached, errno))?;
    }
    Ok(dir)
}

/// Opens directory `name` in `dir`, made with `mode` if it is missing; says whether it was. A
/// directory that is only passed through is opened by path alone: it may be one that its visitors
/// cannot read.
fn open_or_make_in(
    dir: BorrowedFd<'_>,
    name: &CStr,
    last: bool,
    mode: Mode,
) -> Result<(OwnedFd, bool), (&'static str, Errno)> {
    let flags = OFlag::O_DIRECTORY | if last { OFlag::O_RDONLY } else { OFlag::O_PATH };
    let open = || open_beneath(dir, name, flags, Mode::empty()).map_err(|errno| ("openat2", errno));
    match open() {
        Err((_, Errno::ENOENT)) => match mkdirat(dir, name, mode) {
            Ok(()) => open().map(|fd| (fd, true)),
            Err(Errno::EEXIST) => open().map(|fd| (fd, false)),
            Err(errno) => Err(("mkdirat", errno)),
        },
        opened => opened.map(|fd| (fd, false)),
    }
}

/// Names of the directories from the root to `path`.
fn names_from_root(path: &Path) -> Result<Vec<CString>, PathError> {
    if !path.is_absolute() {
        return Err(PathError::Relative { path: path.to_owned() });
    }
    names(path.strip_prefix("/").unwrap_or(path), path)
}

/// Names in the relative path `relative`, part of `whole`.
fn names(relative: &Path, whole: &Path) -> Result<Vec<CString>, PathError> {
    relative
        .components()
        .map(|component| match component {
            Component::Normal(name) => CString::new(name.as_bytes())
                .map_err(|_| PathError::of("openat2", whole, Errno::EINVAL)),
            _ => Err(PathError::Dots { path: whole.to_owned() }),
        })
        .collect()
}

fn stat(fd: BorrowedFd<'_>, path: &Path) -> Result<FileStat, PathError> {
    fstat(fd).map_err(|errno| PathError::of("fstat", path, errno))
}

fn permissions(stat: &FileStat) -> Mode {
    Mode::from_bits_truncate(stat.st_mode & 0o7777)
}

fn kind(stat: &FileStat) -> SFlag {
    SFlag::from_bits_truncate(stat.st_mode & SFlag::S_IFMT.bits())
}

fn shown(name: &CStr) -> &Path {
    Path::new(std::ffi::OsStr::from_bytes(name.to_bytes()))
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};

    use super::*;
    use crate::sys::fault::take_away;
    use crate::testing::{ORDINARY, TempDir, alone, is_root, ordinary};

    fn mode_and_owner(path: &Path) -> (u32, u32, u32) {
        let stat = fs::symlink_metadata(path).unwrap();
        (stat.mode() & 0o7777, stat.uid(), stat.gid())
    }

    #[test]
    fn a_missing_sandbox_is_made_for_its_user_and_its_parents_are_not() {
        if !is_root() {
            return;
        }
        let temp = TempDir::new();
        let path = temp.path().join("a/b/sandbox");

        let sandbox = Sandbox::open(&path, &ordinary(&[])).unwrap();

        assert_eq!(mode_and_owner(&path), (0o700, ORDINARY, ORDINARY));
        assert_eq!(mode_and_owner(&temp.path().join("a/b")), (0o755, 0, 0));
        assert!(
            crate::sys::fs::is_dir(
                &CString::new(path.as_os_str().as_bytes()).unwrap(),
                sandbox.dir()
            )
            .unwrap()
        );
    }

    #[test]
    fn a_sandbox_that_exists_keeps_its_owner_and_mode() {
        let temp = TempDir::new();
        for (name, mode, full) in [("public", 0o755, false), ("full", 0o700, true)] {
            let path = temp.path().join(name);
            fs::create_dir(&path).unwrap();
            if full {
                fs::write(path.join("file"), "").unwrap();
            }
            fs::set_permissions(&path, PermissionsExt::from_mode(mode)).unwrap();
            let before = mode_and_owner(&path);

            Sandbox::open(&path, &ordinary(&[])).unwrap();

            assert_eq!(mode_and_owner(&path), before);
        }
    }

    /// Runs that start side by side: the first has made it, the second is here, the first has not given it away yet.
    #[test]
    fn a_sandbox_that_another_run_has_just_made_is_given_away_before_anything_is_put_there() {
        if !is_root() {
            return;
        }
        let temp = TempDir::new();
        let path = temp.path().join("sandbox");
        fs::create_dir(&path).unwrap();
        fs::set_permissions(&path, PermissionsExt::from_mode(0o700)).unwrap();
        let (user, process) = (ordinary(&[]), crate::task::ProcessName::new("second").unwrap());

        let sandbox = Sandbox::open(&path, &user).unwrap();
        logs::LogDir::open(&sandbox, None, &process, 0, &user).unwrap();

        assert_eq!(mode_and_owner(&path), (0o700, ORDINARY, ORDINARY));
    }

    /// Attacks 9, 14: whatever it was swapped for, and wherever in the path.
    #[test]
    fn a_sandbox_behind_a_link_is_refused_and_nothing_is_made_there() {
        let temp = TempDir::new();
        let victim = temp.path().join("victim");
        fs::create_dir(&victim).unwrap();
        symlink(&victim, temp.path().join("link")).unwrap();
        symlink("/proc/self/fd", temp.path().join("fds")).unwrap();

        for path in ["link", "link/sandbox", "link/a/b", "fds/0/.."] {
            let path = temp.path().join(path);
            let error = Sandbox::open(&path, &ordinary(&[])).unwrap_err();
            assert!(
                matches!(error, PathError::Link { .. } | PathError::Dots { .. }),
                "{path:?}: {error}"
            );
        }

        assert_eq!(fs::read_dir(victim).unwrap().count(), 0);
    }

    #[test]
    fn a_sandbox_is_absolute() {
        let error = Sandbox::open(Path::new("sandbox"), &ordinary(&[])).unwrap_err();

        assert_eq!(error.to_string(), "sandbox: is not an absolute path");
    }

    /// Attack 14: a directory that the user has moved into the place of the new one is not given
    /// away.
    #[test]
    fn only_an_empty_directory_that_is_ours_alone_changes_hands() {
        if !is_root() {
            return;
        }
        let temp = TempDir::new();
        let open = |name: &str, mode: u32, file: bool| {
            let path = temp.path().join(name);
            fs::create_dir(&path).unwrap();
            fs::set_permissions(&path, PermissionsExt::from_mode(mode)).unwrap();
            if file {
                fs::write(path.join("x".repeat(255)), "").unwrap();
            }
            let dir = fs::File::open(&path).unwrap();
            Owner { uid: ORDINARY, gid: ORDINARY }
                .take_if_fresh(dir.as_fd(), SANDBOX_MODE, &path)
                .unwrap();
            mode_and_owner(&path).1
        };

        assert_eq!(open("fresh", 0o700, false), ORDINARY);
        assert_eq!(open("other-mode", 0o755, false), 0);
        assert_eq!(open("full", 0o700, true), 0);
    }

    #[test]
    fn a_path_is_made_canonical_as_far_as_it_exists() {
        let temp = TempDir::new();
        fs::create_dir(temp.path().join("real")).unwrap();
        symlink("real", temp.path().join("link")).unwrap();

        assert_eq!(
            canonical(&temp.path().join("link/./new/dir")),
            Ok(temp.path().join("real/new/dir"))
        );
        assert_eq!(canonical(Path::new("/")), Ok(PathBuf::from("/")));
        let dots = temp.path().join("new/../dir");
        assert_eq!(canonical(&dots), Err(PathError::Dots { path: dots }));
    }

    /// No second, weaker way.
    #[test]
    fn without_openat2_nothing_is_opened() {
        alone(|| {
            if !is_root() {
                return;
            }
            let temp = TempDir::new();
            take_away(libc::SYS_openat2, libc::ENOSYS);

            assert_eq!(
                Sandbox::open(temp.path(), &ordinary(&[])).unwrap_err(),
                PathError::NoOpenat2
            );
        });
    }
}
