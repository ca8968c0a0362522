//! Log directories and log files, beneath a directory that is held open.
//!
//! The directories belong to the run's user, who may rename, remove and replace all that is in them at any moment. So nothing
//! found there is used before its descriptor has told what it is: a regular file, of the run's user, with one name. Opening
//! never blocks, and never follows a link.

use std::ffi::{CStr, CString};
use std::fmt;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{OFlag, renameat};
use nix::sys::stat::{FileStat, Mode, SFlag};
use nix::unistd::{UnlinkatFlags, geteuid, unlinkat};

use super::{
    FRESH_MODE, Owner, PathError, Sandbox, kind, names, open_or_make, open_or_make_in, shown, stat,
};
use crate::proto::Identity;
use crate::sys::fs::{make_blocking, open_beneath, open_dir_without_links};
use crate::task::ProcessName;

/// Log directory beneath a sandbox, where the launch names no other.
pub const DEFAULT_DIR: &str = ".logs";

/// Mode of a log directory: for the run's user, and for the eyes of its group.
const DIR_MODE: Mode = Mode::from_bits_truncate(0o750);

/// Mode of a log.
const FILE_MODE: Mode = Mode::from_bits_truncate(0o640);

/// How often a name may change under our hands before we give up.
const ATTEMPTS: usize = 8;

/// A stream of output.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Stream {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
}

impl Stream {
    /// Both.
    pub const BOTH: [Self; 2] = [Self::Stdout, Self::Stderr];

    /// Name of its file.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Stdout => "stdout",
            Self::Stderr => "stderr",
        }
    }
}

impl fmt::Display for Stream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A log of a run: the live file of a stream, or one of those that rotation has left.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LogName {
    /// Whose output.
    pub stream: Stream,
    /// 0: the live file; then from the newest to the oldest.
    pub backup: u32,
}

impl LogName {
    /// The live file of `stream`.
    pub fn live(stream: Stream) -> Self {
        Self { stream, backup: 0 }
    }

    fn file_name(self) -> CString {
        let name = match self.backup {
            0 => self.stream.to_string(),
            backup => format!("{}.{backup}", self.stream),
        };
        c_string(&name)
    }
}

/// Log directory of one run, `<log_dir>/<process>/<run>`, held open.
#[derive(Debug)]
pub struct LogDir {
    /// Where `names` begin: the sandbox, or the log directory that the launch named.
    base: OwnedFd,
    names: Vec<CString>,
    path: PathBuf,
    owner: Owner,
    dir: OwnedFd,
}

impl LogDir {
    /// Opens the log directory of run `run` of `process`; what is missing of it is made, and belongs to `identity`.
    ///
    /// `log_dir` is absolute and without links; `None`: `.logs` in the sandbox. One within the sandbox is reached from there.
    ///
    /// # Errors
    ///
    /// See [`PathError`].
    pub fn open(
        sandbox: &Sandbox,
        log_dir: Option<&Path>,
        process: &ProcessName,
        run: u32,
        identity: &Identity,
    ) -> Result<Self, PathError> {
        let in_sandbox =
            log_dir.map_or(Ok(Path::new(DEFAULT_DIR)), |dir| dir.strip_prefix(sandbox.path()));
        let (base, mut names, top) = match (in_sandbox, log_dir) {
            (Err(_), Some(dir)) => (open_or_make(dir, None)?, Vec::new(), dir.to_owned()),
            (within, _) => {
                let within = within.unwrap_or(Path::new(DEFAULT_DIR));
                let top = sandbox.path().join(within);
                let names = names(within, &top)?;
                (duplicate(sandbox.dir(), sandbox.path())?, names, top)
            }
        };
        names.extend([c_string(process.as_str()), c_string(&run.to_string())]);
        let path = top.join(process.as_str()).join(run.to_string());
        let owner = Owner::of(identity);
        let dir = enter(base.as_fd(), &names, owner, &path)?;
        Ok(Self { base, names, path, owner, dir })
    }

    /// Its path, for messages.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Makes it again, if the task has removed it.
    ///
    /// # Errors
    ///
    /// See [`PathError`].
    pub fn remake(&mut self) -> Result<(), PathError> {
        self.dir = enter(self.base.as_fd(), &self.names, self.owner, &self.path)?;
        Ok(())
    }

    /// Opens the live log of `stream` to append to it; made if it is missing.
    ///
    /// # Errors
    ///
    /// See [`PathError`]: what is not a regular file of the run's user with one name is refused.
    pub fn append(&self, stream: Stream) -> Result<OwnedFd, PathError> {
        let name = LogName::live(stream).file_name();
        let path = self.path.join(shown(&name));
        for _ in 0..ATTEMPTS {
            match self.create(&name) {
                Err(Errno::EEXIST) => {}
                created => {
                    let file = created.map_err(|errno| PathError::of("openat2", &path, errno))?;
                    self.owner.take(file.as_fd(), FILE_MODE, &path)?;
                    return Ok(file);
                }
            }
            match self.open_existing(&name, &path) {
                Err(PathError::Sys { errno: Errno::ENOENT, .. }) => {}
                opened => return opened,
            }
        }
        Err(PathError::Unstable { path })
    }

    fn create(&self, name: &CStr) -> Result<OwnedFd, Errno> {
        let flags =
            OFlag::O_WRONLY | OFlag::O_APPEND | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW;
        open_beneath(self.dir.as_fd(), name, flags | OFlag::O_NOCTTY, Mode::S_IRUSR | Mode::S_IWUSR)
    }

    fn open_existing(&self, name: &CStr, path: &Path) -> Result<OwnedFd, PathError> {
        let opened = open_log(
            self.dir.as_fd(),
            name,
            OFlag::O_WRONLY | OFlag::O_APPEND,
            self.owner.uid,
            path,
        );
        if let Err(PathError::Owner { .. }) = opened {
            self.remove_unfinished(name, path)?;
        }
        opened
    }

    /// Removes an empty file of ours, which a coordinator that was killed has not yet given to its owner. The owner of the
    /// directory could remove it as well. Says `ENOENT` then, so that the file is made anew.
    fn remove_unfinished(&self, name: &CStr, path: &Path) -> Result<(), PathError> {
        let stat = look_at(self.dir.as_fd(), name, path)?;
        if stat.st_uid != geteuid().as_raw() || stat.st_size != 0 {
            return Ok(());
        }
        unlinkat(&self.dir, name, UnlinkatFlags::NoRemoveDir)
            .map_err(|errno| PathError::of("unlinkat", path, errno))?;
        Err(PathError::of("openat2", path, Errno::ENOENT))
    }

    /// T60: moves the live log of `stream` to `.1`, `.1` to `.2` and so on; the one that would be beyond `backups` is dropped.
    ///
    /// # Errors
    ///
    /// [`PathError::Sys`] of the rename that failed. What is renamed is whatever has the name; nothing is followed.
    pub fn rotate(&self, stream: Stream, backups: u32) -> Result<(), PathError> {
        let name = |backup| LogName { stream, backup }.file_name();
        // Only as far as files are: `backups` may be any number.
        let last = (1..backups).find(|&backup| !self.exists(&name(backup))).unwrap_or(backups);
        for backup in (0..last).rev() {
            let (from, to) = (name(backup), name(backup + 1));
            match renameat(&self.dir, from.as_c_str(), &self.dir, to.as_c_str()) {
                Ok(()) | Err(Errno::ENOENT) => {}
                Err(errno) => {
                    return Err(PathError::of("renameat", &self.path.join(shown(&from)), errno));
                }
            }
        }
        Ok(())
    }

    fn exists(&self, name: &CStr) -> bool {
        nix::sys::stat::fstatat(&self.dir, name, nix::fcntl::AtFlags::AT_SYMLINK_NOFOLLOW).is_ok()
    }
}

/// Opens a log of run `run` of `process` for reading.
///
/// `log_dir` is the absolute path without links of all logs of the task, `owner` the uid of its runs.
///
/// # Errors
///
/// See [`PathError`]; [`PathError::Sys`] with `ENOENT` if there is no such log.
pub fn open_for_reading(
    log_dir: &Path,
    process: &ProcessName,
    run: u32,
    log: LogName,
    owner: u32,
) -> Result<OwnedFd, PathError> {
    let dir = open_dir_without_links(log_dir)
        .map_err(|errno| PathError::of("openat2", log_dir, errno))?;
    let mut relative = PathBuf::from(process.as_str());
    relative.push(run.to_string());
    relative.push(shown(&log.file_name()));
    let path = log_dir.join(&relative);
    open_log(dir.as_fd(), &c_string(&relative.to_string_lossy()), OFlag::O_RDONLY, owner, &path)
}

/// Opens the directory that `names` lead to from `base`, making what is missing of it for `owner`.
fn enter(
    base: BorrowedFd<'_>,
    names: &[CString],
    owner: Owner,
    path: &Path,
) -> Result<OwnedFd, PathError> {
    let mut dir = duplicate(base, path)?;
    for name in names {
        let (next, made) = open_or_make_in(dir.as_fd(), name, true, FRESH_MODE)
            .map_err(|(call, errno)| PathError::of(call, path, errno))?;
        // One that is still ours alone may be left from a coordinator that was killed at this very point.
        if made || owner.uid != geteuid().as_raw() {
            owner.take_if_fresh(next.as_fd(), DIR_MODE, path)?;
        }
        let uid = stat(next.as_fd(), path)?.st_uid;
        if uid != owner.uid && uid != geteuid().as_raw() {
            return Err(PathError::Owner { path: path.to_owned(), uid, expected: owner.uid });
        }
        dir = next;
    }
    Ok(dir)
}

/// Opens the log at `name` beneath `dir`, if it is one.
///
/// It is looked at before it is opened, since to open a device may already do something, and again through the descriptor,
/// since it may have been swapped in between.
fn open_log(
    dir: BorrowedFd<'_>,
    name: &CStr,
    flags: OFlag,
    owner: u32,
    path: &Path,
) -> Result<OwnedFd, PathError> {
    check(&look_at(dir, name, path)?, owner, path)?;
    let flags = flags | OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_NOCTTY;
    let file = open_beneath(dir, name, flags, Mode::empty())
        .map_err(|errno| PathError::of("openat2", path, errno))?;
    check(&stat(file.as_fd(), path)?, owner, path)?;
    make_blocking(&file).map_err(|errno| PathError::of("fcntl", path, errno))?;
    Ok(file)
}

/// What is at `name` beneath `dir`, without opening it.
fn look_at(dir: BorrowedFd<'_>, name: &CStr, path: &Path) -> Result<FileStat, PathError> {
    let found = open_beneath(dir, name, OFlag::O_PATH | OFlag::O_NOFOLLOW, Mode::empty())
        .map_err(|errno| PathError::of("openat2", path, errno))?;
    stat(found.as_fd(), path)
}

/// Attack 15: a log is a regular file with one name, and its user's.
fn check(stat: &FileStat, owner: u32, path: &Path) -> Result<(), PathError> {
    let path = || path.to_owned();
    let kind = match kind(stat) {
        SFlag::S_IFREG => None,
        SFlag::S_IFLNK => Some("a symbolic link"),
        SFlag::S_IFDIR => Some("a directory"),
        SFlag::S_IFIFO => Some("a named pipe"),
        SFlag::S_IFSOCK => Some("a socket"),
        _ => Some("a device"),
    };
    if let Some(kind) = kind {
        return Err(PathError::Kind { path: path(), kind });
    }
    if stat.st_nlink != 1 {
        return Err(PathError::HardLinks { path: path(), links: stat.st_nlink as u64 });
    }
    if stat.st_uid != owner {
        return Err(PathError::Owner { path: path(), uid: stat.st_uid, expected: owner });
    }
    Ok(())
}

fn duplicate(fd: BorrowedFd<'_>, path: &Path) -> Result<OwnedFd, PathError> {
    fd.try_clone_to_owned().map_err(|error| {
        PathError::of("fcntl", path, Errno::from_raw(error.raw_os_error().unwrap_or(0)))
    })
}

/// A name of dewar's own making, or one that [`ProcessName`] has checked: it has no NUL.
fn c_string(name: &str) -> CString {
    CString::new(name).expect("names have no control characters")
}
