//! Log directories and log files, beneath a directory that is held open.
//!
//! The directories belong to the run's user, who may rename, remove and replace all that is in them
//! at any moment. So nothing found there is used before its descriptor has told what it is: a
//! regular file, of the run's user, with one name. Opening never blocks, and never follows a link.

use std::ffi::{CStr, CString};
use std::fmt;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{OFlag, renameat};
use nix::sys::stat::{FileStat, Mode, SFlag};
use nix::unistd::{UnlinkatFlags, geteuid, unlinkat};

use super::{
    FRESH_MODE, Owner, PARENT_MODE, PathError, Sandbox, kind, names, open_or_make, open_or_make_in,
    shown, stat,
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
    /// Opens the log directory of run `run` of `process`; what is missing of it is made, and
    /// belongs to `identity`.
    ///
    /// `log_dir` is absolute and without links; `None`: `.logs` in the sandbox. One within the
    /// sandbox is reached from there.
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
        let within = match log_dir {
            None => Some(Path::new(DEFAULT_DIR)),
            Some(dir) => dir.strip_prefix(sandbox.path()).ok(),
        };
        let top = log_dir.map_or_else(|| sandbox.path().join(DEFAULT_DIR), Path::to_owned);
        let (base, mut names) = match within {
            Some(relative) => (duplicate(sandbox.dir(), sandbox.path())?, names(relative, &top)?),
            None => (open_or_make(&top, PARENT_MODE)?, Vec::new()),
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

    /// Removes an empty file of ours, which a coordinator that was killed has not yet given to its
    /// owner. The owner of the directory could remove it as well. Says `ENOENT` then, so that the
    /// file is made anew.
    fn remove_unfinished(&self, name: &CStr, path: &Path) -> Result<(), PathError> {
        let stat = look_at(self.dir.as_fd(), name, path)?;
        if stat.st_uid != geteuid().as_raw() || stat.st_size != 0 {
            return Ok(());
        }
        unlinkat(&self.dir, name, UnlinkatFlags::NoRemoveDir)
            .map_err(|errno| PathError::of("unlinkat", path, errno))?;
        Err(PathError::of("openat2", path, Errno::ENOENT))
    }

    /// T60: moves the live log of `stream` to `.1`, `.1` to `.2` and so on; the one that would be
    /// beyond `backups` is dropped.
    ///
    /// # Errors
    ///
    /// [`PathError::Sys`] of the rename that failed. What is renamed is whatever has the name;
    /// nothing is followed.
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
/// `log_dir` is the absolute path without links of all logs of the task, `owner` the uid of its
/// runs.
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
        // One that is still ours alone may be left from a coordinator that was killed at this very
        // point.
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
/// It is looked at before it is opened, since to open a device may already do something, and again
/// through the descriptor, since it may have been swapped in between.
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
        return Err(PathError::HardLinks { path: path(), links: stat.st_nlink });
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

#[cfg(test)]
mod tests {
    use std::fs::{self, File};
    use std::io::{Read, Write};
    use std::os::unix::fs::{FileTypeExt, MetadataExt, symlink};
    use std::os::unix::net::UnixListener;
    use std::time::{Duration, Instant};

    use nix::fcntl::{AT_FDCWD, RenameFlags, renameat2};
    use nix::sys::stat::{makedev, mknod};
    use nix::unistd::mkfifo;

    use super::*;
    use crate::identity;
    use crate::testing::{ORDINARY, TempDir, is_root, ordinary, while_disturbed};

    fn process() -> ProcessName {
        ProcessName::new("web *?\"'%~").unwrap()
    }

    /// A sandbox of `identity`, and the log directory of run 0 in it.
    fn logs(identity: &Identity) -> (TempDir, Sandbox, LogDir) {
        let temp = TempDir::new();
        let sandbox = Sandbox::open(&temp.path().join("sandbox"), identity).unwrap();
        let dir = LogDir::open(&sandbox, None, &process(), 0, identity).unwrap();
        (temp, sandbox, dir)
    }

    fn own() -> Identity {
        identity::current().unwrap()
    }

    fn read_log(temp: &TempDir, log: LogName, owner: u32) -> Result<String, PathError> {
        let fd = open_for_reading(&temp.path().join("sandbox/.logs"), &process(), 0, log, owner)?;
        let mut text = String::new();
        File::from(fd).read_to_string(&mut text).unwrap();
        Ok(text)
    }

    #[test]
    fn logs_are_the_users_and_open_to_its_group() {
        if !is_root() {
            return;
        }
        let (temp, _, dir) = logs(&ordinary(&[]));
        dir.append(Stream::Stdout).unwrap();

        let stat = |path: &str| {
            let stat = fs::metadata(temp.path().join("sandbox").join(path)).unwrap();
            (stat.mode() & 0o7777, stat.uid(), stat.gid())
        };
        assert_eq!(
            dir.path(),
            temp.path().join("sandbox/.logs").join(process().as_str()).join("0")
        );
        assert_eq!(stat(".logs"), (0o750, ORDINARY, ORDINARY));
        assert_eq!(stat(".logs/web *?\"'%~/0"), (0o750, ORDINARY, ORDINARY));
        assert_eq!(stat(".logs/web *?\"'%~/0/stdout"), (0o640, ORDINARY, ORDINARY));
    }

    /// T59.
    #[test]
    fn a_log_that_exists_is_appended_to() {
        let (temp, _, dir) = logs(&own());

        for text in ["one\n", "two\n"] {
            File::from(dir.append(Stream::Stderr).unwrap()).write_all(text.as_bytes()).unwrap();
        }

        let log = LogName::live(Stream::Stderr);
        assert_eq!(read_log(&temp, log, own().uid).unwrap(), "one\ntwo\n");
    }

    #[test]
    fn a_log_directory_that_the_launch_names_is_used_wherever_it_is() {
        let temp = TempDir::new();
        let sandbox = Sandbox::open(&temp.path().join("sandbox"), &own()).unwrap();

        for top in ["sandbox", "sandbox/deep/logs", "elsewhere/logs"] {
            let top = temp.path().join(top);
            let dir = LogDir::open(&sandbox, Some(&top), &process(), 7, &own()).unwrap();
            dir.append(Stream::Stdout).unwrap();
            assert!(top.join(process().as_str()).join("7/stdout").is_file());
        }
    }

    /// Attack 15: each is refused by what it is, at once, and is as it was.
    #[test]
    fn what_is_not_a_plain_file_is_no_log() {
        let (temp, _, dir) = logs(&own());
        let path = dir.path().join("stdout");
        let victim = temp.path().join("victim");
        fs::write(&victim, "untouched").unwrap();

        type Make<'a> = Box<dyn FnMut() + 'a>;
        let mut kinds: Vec<(&str, Make<'_>)> = vec![
            ("is a named pipe", Box::new(|| mkfifo(&path, Mode::S_IRWXU).unwrap())),
            ("is a directory", Box::new(|| fs::create_dir(&path).unwrap())),
            ("is a socket", Box::new(|| drop(UnixListener::bind(&path).unwrap()))),
            ("is a symbolic link", Box::new(|| symlink(&victim, &path).unwrap())),
            ("has 2 hard links", Box::new(|| fs::hard_link(&victim, &path).unwrap())),
        ];
        if is_root() {
            let make = || mknod(&path, SFlag::S_IFCHR, Mode::S_IRWXU, makedev(1, 3)).unwrap();
            kinds.push(("is a device", Box::new(make)));
        }
        for (kind, make) in &mut kinds {
            make();
            let (write, read) = (
                dir.append(Stream::Stdout),
                read_log(&temp, LogName::live(Stream::Stdout), own().uid),
            );
            let expected = format!("{}: {kind}, where", path.display());
            assert!(write.unwrap_err().to_string().starts_with(&expected), "{kind}");
            assert!(read.unwrap_err().to_string().starts_with(&expected), "{kind}");
            assert!(*kind == "has 2 hard links" || !fs::symlink_metadata(&path).unwrap().is_file());
            fs::remove_file(&path).or_else(|_| fs::remove_dir(&path)).unwrap();
        }
        assert_eq!(fs::read_to_string(&victim).unwrap(), "untouched");
    }

    /// Attack 15: a file of root that the user has moved there is not opened for the user.
    #[test]
    fn a_log_of_somebody_else_is_refused() {
        if !is_root() {
            return;
        }
        let (temp, _, dir) = logs(&ordinary(&[]));
        let path = dir.path().join("stdout");
        fs::write(&path, "root's").unwrap();

        let error = dir.append(Stream::Stdout).unwrap_err();

        assert_eq!(error, PathError::Owner { path: path.clone(), uid: 0, expected: ORDINARY });
        assert!(read_log(&temp, LogName::live(Stream::Stdout), ORDINARY).is_err());
        assert_eq!(fs::read_to_string(&path).unwrap(), "root's");
    }

    /// A coordinator that is killed between the making of a file and giving it away leaves it so.
    #[test]
    fn an_empty_log_of_ours_is_made_anew() {
        if !is_root() {
            return;
        }
        let (_temp, _, dir) = logs(&ordinary(&[]));
        let path = dir.path().join("stdout");
        File::create(&path).unwrap();

        dir.append(Stream::Stdout).unwrap();

        assert_eq!(fs::metadata(&path).unwrap().uid(), ORDINARY);
    }

    #[test]
    fn a_log_directory_of_a_third_party_is_refused() {
        if !is_root() {
            return;
        }
        let (_temp, sandbox, dir) = logs(&ordinary(&[]));
        let path = dir.path().parent().unwrap().join("1");
        fs::create_dir(&path).unwrap();
        std::os::unix::fs::chown(&path, Some(12_345), None).unwrap();

        let error = LogDir::open(&sandbox, None, &process(), 1, &ordinary(&[])).unwrap_err();

        assert_eq!(error, PathError::Owner { path, uid: 12_345, expected: ORDINARY });
    }

    /// Attacks 13, 14: names are exchanged with links, all the time, while logs are opened, rotated
    /// and read.
    #[test]
    fn nothing_is_ever_made_or_shown_behind_a_link() {
        let temp = TempDir::new();
        // The victim has everything that a follower of links would look for.
        let victim = temp.path().join("victim");
        let within = [
            PathBuf::new(),
            PathBuf::from(".logs"),
            Path::new(".logs").join(process().as_str()),
            Path::new(".logs").join(process().as_str()).join("0"),
            Path::new(".logs").join(process().as_str()).join("0/stdout"),
        ];
        fs::create_dir_all(victim.join(&within[3])).unwrap();
        fs::write(victim.join(&within[4]), "secret").unwrap();
        let before = listing(&victim);

        for (index, place) in within.iter().enumerate() {
            let path = temp.path().join(format!("sandbox{index}"));
            let link = temp.path().join(format!("link{index}"));
            // Without the slash that an empty `within` leaves at the end, which would follow a link.
            let [place, target] =
                [&path, &victim].map(|base| base.join(place).components().collect::<PathBuf>());
            append_to_log(&path, false).unwrap();
            symlink(&target, &link).unwrap();
            let met = while_disturbed(
                || exchange(&place, &link, &target),
                || write_and_read(&path, Duration::from_millis(200)),
            );
            assert!(met, "no link was met at {}", place.display());
        }

        assert_eq!(listing(&victim), before);
        assert_eq!(fs::read_to_string(victim.join(&within[4])).unwrap(), "secret");
    }

    /// Exchanges what is at `place` and at `link`, one of which is a link to `target`.
    fn exchange(place: &Path, link: &Path, target: &Path) {
        if !place.is_symlink() && !link.is_symlink() {
            // Rotation has moved it on.
            let _gone = fs::remove_file(link);
            symlink(target, link).unwrap();
        }
        // There may be nothing to exchange just now.
        let _ = renameat2(AT_FDCWD, place, AT_FDCWD, link, RenameFlags::RENAME_EXCHANGE);
    }

    /// Goes on for `time`, or for long if need be, until it has met a link; whether it has.
    fn write_and_read(sandbox: &Path, time: Duration) -> bool {
        let start = Instant::now();
        let (mut met, mut rotate, mut shown) = (false, false, String::new());
        while start.elapsed() < time || (!met && start.elapsed() < 50 * time) {
            met |= append_to_log(sandbox, rotate).is_err();
            rotate = !rotate;
            let log = LogName::live(Stream::Stdout);
            let logs = sandbox.join(".logs");
            if let Ok(fd) = open_for_reading(&logs, &process(), 0, log, own().uid) {
                File::from(fd).read_to_string(&mut shown).unwrap();
            }
        }
        met && !shown.contains("secret")
    }

    fn append_to_log(sandbox: &Path, rotate: bool) -> Result<(), PathError> {
        let sandbox = Sandbox::open(sandbox, &own())?;
        let dir = LogDir::open(&sandbox, None, &process(), 0, &own())?;
        File::from(dir.append(Stream::Stdout)?).write_all(b"x\n").unwrap();
        if rotate { dir.rotate(Stream::Stdout, 2) } else { Ok(()) }
    }

    /// Attack 15: a name that is looked at, and is something else by the time it is opened.
    #[test]
    fn what_is_looked_at_is_what_is_opened() {
        let (temp, _, dir) = logs(&own());
        let (log, other) = (dir.path().join("stdout"), dir.path().join("other"));
        let victim = temp.path().join("victim");
        fs::write(&victim, "untouched").unwrap();
        fs::hard_link(&victim, &other).unwrap();
        dir.append(Stream::Stdout).unwrap();
        let swap = || {
            renameat2(AT_FDCWD, &log, AT_FDCWD, &other, RenameFlags::RENAME_EXCHANGE).unwrap();
        };

        while_disturbed(swap, || {
            let end = Instant::now() + Duration::from_millis(500);
            while Instant::now() < end {
                if let Ok(fd) = dir.append(Stream::Stdout) {
                    File::from(fd).write_all(b"x").unwrap();
                }
            }
        });

        assert_eq!(fs::read_to_string(&victim).unwrap(), "untouched");
    }

    fn listing(dir: &Path) -> Vec<(PathBuf, u64, u32, u32)> {
        let mut found = Vec::new();
        for entry in fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()) {
            let stat = fs::symlink_metadata(&entry).unwrap();
            assert!(!stat.file_type().is_char_device());
            found.push((entry.clone(), stat.size(), stat.uid(), stat.mode()));
            if stat.is_dir() {
                found.extend(listing(&entry));
            }
        }
        found.sort();
        found
    }

    /// T60.
    #[test]
    fn rotation_moves_each_log_up_by_one_and_drops_the_last() {
        let (temp, _, dir) = logs(&own());
        let texts = |dir: &LogDir| {
            let read = |name: &str| fs::read_to_string(dir.path().join(name)).unwrap_or_default();
            ["stdout", "stdout.1", "stdout.2", "stdout.3", "stderr"].map(read)
        };
        File::from(dir.append(Stream::Stderr).unwrap()).write_all(b"err").unwrap();

        for text in ["a", "b", "c", "d"] {
            File::from(dir.append(Stream::Stdout).unwrap()).write_all(text.as_bytes()).unwrap();
            dir.rotate(Stream::Stdout, 3).unwrap();
        }

        assert_eq!(texts(&dir), ["", "d", "c", "b", "err"]);
        let second = LogName { stream: Stream::Stdout, backup: 2 };
        assert_eq!(read_log(&temp, second, own().uid).unwrap(), "c");
    }

    #[test]
    fn any_number_of_backups_costs_no_more_than_the_files_that_are_there() {
        let (_temp, _, dir) = logs(&own());
        dir.append(Stream::Stdout).unwrap();

        dir.rotate(Stream::Stdout, u32::MAX).unwrap();

        assert!(dir.path().join("stdout.1").is_file());
    }
}
