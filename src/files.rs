//! Files of a sandbox, listed and read for whoever may see the task.
//!
//! All that is in a sandbox is the task's: names, kinds and links change while we look. So paths are opened in one step, beneath
//! the sandbox, and no component may be a link, lead out, or enter another file system (openat2(2)). What is opened to be
//! read is a regular file, which is made sure of before, since to open a device may already do something, and after.
//!
//! It is done with the rights of the user that the task runs as, not with ours: a sandbox may be any directory, and nobody gets
//! to read by dewar what it could not read by a task of its own.
#![allow(clippy::disallowed_methods, reason = "opens what a task controls")]

use std::collections::BinaryHeap;
use std::ffi::{CStr, CString, OsStr, OsString};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use nix::dir::Dir;
use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, readlinkat};
use nix::sys::stat::{FileStat, SFlag, fstat, fstatat};

use crate::proto::{Identity, Launch};
use crate::sys::fs::{open_dir_without_links, open_on_one_mount};
use crate::sys::ids::as_file_user;

/// Bytes of a path at most: `PATH_MAX` of path_resolution(7).
pub const MAX_PATH: usize = 4096;

/// Entries of a page at most.
pub const MAX_PAGE: usize = 1000;

/// Bytes of names and links in a page, about: a longer page ends before it is full.
const MAX_PAGE_BYTES: usize = 1 << 20;

/// Entries that are looked at for a page. A task could otherwise add to a directory faster than it is read.
const MAX_ENTRIES: usize = 1 << 23;

/// What is wrong with the text of a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PathSyntaxError {
    /// It begins with `/`.
    #[error("is absolute, where a path beneath the sandbox is expected")]
    Absolute,
    /// Two `/` in a row, or one at the end.
    #[error("has an empty component")]
    EmptyComponent,
    /// `.` or `..`.
    #[error("has the component `.` or `..`, which are not taken")]
    Dots,
    /// No file name has that.
    #[error("contains a NUL byte")]
    Nul,
    /// It has more bytes than the kernel takes.
    #[error("has {len} bytes, where at most {MAX_PATH} are expected")]
    TooLong {
        /// How many it has.
        len: usize,
    },
}

/// A path beneath a sandbox: components of any bytes but NUL and `/`, parted by `/`, none of them empty, `.` or `..`. Without a
/// component it is the sandbox itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SandboxPath(CString);

impl SandboxPath {
    /// Takes `text` if it is one. Nothing in it is decoded: `%2e` and `\` are parts of names.
    ///
    /// # Errors
    ///
    /// [`PathSyntaxError`].
    pub fn new(text: impl AsRef<[u8]>) -> Result<Self, PathSyntaxError> {
        let text = text.as_ref();
        if text.len() > MAX_PATH {
            return Err(PathSyntaxError::TooLong { len: text.len() });
        }
        if text.starts_with(b"/") {
            return Err(PathSyntaxError::Absolute);
        }
        for component in text.split(|&byte| byte == b'/').filter(|_| !text.is_empty()) {
            match component {
                b"" => return Err(PathSyntaxError::EmptyComponent),
                b"." | b".." => return Err(PathSyntaxError::Dots),
                _ => {}
            }
        }
        CString::new(text).map(Self).map_err(|_| PathSyntaxError::Nul)
    }

    /// As it was given.
    pub fn as_path(&self) -> &Path {
        Path::new(OsStr::from_bytes(self.0.to_bytes()))
    }

    fn to_owned_path(&self) -> PathBuf {
        let path = self.as_path();
        if path.as_os_str().is_empty() { PathBuf::from(".") } else { path.to_owned() }
    }

    /// For the kernel.
    fn as_c_str(&self) -> &CStr {
        if self.0.is_empty() { c"." } else { &self.0 }
    }
}

/// Why a file is not shown. Paths are relative to the sandbox.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum FileError {
    /// The sandbox itself is not there, or not a plain directory any more.
    #[error("sandbox {}", path.display())]
    Sandbox {
        /// The sandbox.
        path: PathBuf,
        /// Why it is not opened.
        #[source]
        errno: Errno,
    },
    /// It is not there.
    #[error("{}: no such file", path.display())]
    NotFound {
        /// What was asked for.
        path: PathBuf,
    },
    /// The user of the task may not read it.
    #[error("{}: not readable by the user of the task", path.display())]
    Denied {
        /// What was asked for.
        path: PathBuf,
    },
    /// A component is a symbolic link.
    #[error("{}: a symbolic link is in the path, and none is followed", path.display())]
    Link {
        /// What was asked for.
        path: PathBuf,
    },
    /// It is on another mount, or was moved out of the sandbox while the path was walked.
    #[error("{}: leads out of the sandbox, or to another mount", path.display())]
    Outside {
        /// What was asked for.
        path: PathBuf,
    },
    /// Something that is listed, or that leads to what was asked for, is none.
    #[error("{}: is not a directory, or leads through something that is none", path.display())]
    NotDirectory {
        /// What was asked for.
        path: PathBuf,
    },
    /// It cannot be read like a file.
    #[error("{}: is {}, where a regular file is expected", path.display(), kind.as_str())]
    NotFile {
        /// What was asked for.
        path: PathBuf,
        /// What it is.
        kind: Kind,
    },
    /// It has too many entries.
    #[error("{}: has more than {MAX_ENTRIES} entries", path.display())]
    Huge {
        /// What was asked for.
        path: PathBuf,
    },
    /// The kernel is older than 5.6, or a seccomp filter hides the call.
    #[error("openat2 is missing here (Linux 5.6), and files of a task are opened by nothing else")]
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

impl FileError {
    fn of(call: &'static str, path: &SandboxPath, errno: Errno) -> Self {
        let path = path.to_owned_path();
        match errno {
            Errno::ENOENT | Errno::ENAMETOOLONG => Self::NotFound { path },
            Errno::EACCES | Errno::EPERM => Self::Denied { path },
            Errno::ELOOP => Self::Link { path },
            Errno::EXDEV => Self::Outside { path },
            Errno::ENOTDIR => Self::NotDirectory { path },
            Errno::ENOSYS => Self::NoOpenat2,
            errno => Self::Sys { call, path, errno },
        }
    }
}

/// What an entry of a directory is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A regular file.
    File,
    /// A directory.
    Directory,
    /// A symbolic link.
    Link,
    /// A named pipe.
    Fifo,
    /// A socket.
    Socket,
    /// A device of characters.
    CharDevice,
    /// A device of blocks.
    BlockDevice,
}

impl Kind {
    fn of(stat: &FileStat) -> Self {
        match SFlag::from_bits_truncate(stat.st_mode & SFlag::S_IFMT.bits()) {
            SFlag::S_IFREG => Self::File,
            SFlag::S_IFDIR => Self::Directory,
            SFlag::S_IFLNK => Self::Link,
            SFlag::S_IFIFO => Self::Fifo,
            SFlag::S_IFSOCK => Self::Socket,
            SFlag::S_IFBLK => Self::BlockDevice,
            _ => Self::CharDevice,
        }
    }

    fn as_str(self) -> &'static str {
        match self {
            Self::File => "a regular file",
            Self::Directory => "a directory",
            Self::Link => "a symbolic link",
            Self::Fifo => "a named pipe",
            Self::Socket => "a socket",
            Self::CharDevice | Self::BlockDevice => "a device",
        }
    }
}

/// What is told about a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Attributes {
    /// What it is.
    pub kind: Kind,
    /// Bytes.
    pub size: u64,
    /// Permission bits, with set-uid, set-gid and sticky: 0 to 0o7777.
    pub mode: u32,
    /// Whose it is.
    pub uid: u32,
    /// Whose group's it is.
    pub gid: u32,
    /// When its content was last changed, nanoseconds since 1970. A task may set it to anything; what is beyond an `i64` is
    /// told as its end.
    pub modified: i64,
}

impl Attributes {
    fn of(stat: &FileStat) -> Self {
        let seconds = stat.st_mtime.saturating_mul(1_000_000_000);
        Self {
            kind: Kind::of(stat),
            size: u64::try_from(stat.st_size).unwrap_or(0),
            mode: stat.st_mode & 0o7777,
            uid: stat.st_uid,
            gid: stat.st_gid,
            modified: seconds.saturating_add(stat.st_mtime_nsec),
        }
    }
}

/// An entry of a directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Its name: any bytes but NUL and `/`.
    pub name: OsString,
    /// What it is.
    pub attributes: Attributes,
    /// Where a symbolic link leads to, as it is written there. It was not followed.
    pub target: Option<OsString>,
}

/// Which entries of a directory are asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Page {
    /// The ones after this name; `None`: from the first one on.
    pub after: Option<OsString>,
    /// How many at most, 1 to [`MAX_PAGE`]; what is beyond is taken as the nearest of these.
    pub size: usize,
}

/// Entries of a directory, sorted by the bytes of their names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listing {
    /// The entries.
    pub entries: Vec<Entry>,
    /// The name to ask on from, [`Page::after`]; `None`: there is no more.
    pub next: Option<OsString>,
}

/// A file that was opened for reading.
#[derive(Debug)]
pub struct SandboxFile {
    file: File,
    attributes: Attributes,
}

impl SandboxFile {
    /// As it was when it was opened.
    pub fn attributes(&self) -> Attributes {
        self.attributes
    }

    /// Reads from byte `offset` on into `buffer`; 0 at the end, and beyond it. The file may have grown, or shrunk, since it was
    /// opened.
    ///
    /// # Errors
    ///
    /// Those of `pread(2)`.
    pub fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<usize> {
        if i64::try_from(offset).is_err() {
            // No file is that long, and the kernel does not take it.
            return Ok(0);
        }
        loop {
            match self.file.read_at(buffer, offset) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                read => return read,
            }
        }
    }
}

/// The sandbox of a task, seen as the user of the task sees it.
#[derive(Debug, Clone)]
pub struct Files {
    path: PathBuf,
    /// `None`: as we are.
    user: Option<Identity>,
}

impl Files {
    /// The sandbox of a task that was accepted.
    pub fn of(launch: &Launch) -> Self {
        Self { path: PathBuf::from(&launch.sandbox), user: launch.identity.clone() }
    }

    /// A page of the directory at `path`. Each page reads the whole directory, and holds no more of it than itself.
    ///
    /// # Errors
    ///
    /// [`FileError`].
    pub fn list(&self, path: &SandboxPath, page: &Page) -> Result<Listing, FileError> {
        self.as_user(path, || {
            let dir = self.open_at(path, OFlag::O_RDONLY | OFlag::O_DIRECTORY)?;
            list(dir, path, page)
        })
    }

    /// Opens the regular file at `path` for reading. It does not wait for anybody, whatever is there.
    ///
    /// # Errors
    ///
    /// [`FileError`].
    pub fn open(&self, path: &SandboxPath) -> Result<SandboxFile, FileError> {
        self.as_user(path, || {
            let seen = self.open_at(path, OFlag::O_PATH | OFlag::O_NOFOLLOW)?;
            must_be_file(&attributes(seen.as_fd(), path)?, path)?;
            let flags = OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_NOCTTY;
            let file = self.open_at(path, flags)?;
            let attributes = attributes(file.as_fd(), path)?;
            must_be_file(&attributes, path)?;
            Ok(SandboxFile { file: file.into(), attributes })
        })
    }

    fn as_user<T: Send>(
        &self,
        path: &SandboxPath,
        body: impl FnOnce() -> Result<T, FileError> + Send,
    ) -> Result<T, FileError> {
        let Some(Identity { uid, gid, groups, .. }) = &self.user else { return body() };
        as_file_user(*uid, *gid, groups, body).unwrap_or_else(|errno| {
            Err(FileError::Sys { call: "setfsuid", path: path.to_owned_path(), errno })
        })
    }

    fn open_at(&self, path: &SandboxPath, flags: OFlag) -> Result<OwnedFd, FileError> {
        let sandbox = open_dir_without_links(&self.path).map_err(|errno| match errno {
            Errno::ENOSYS => FileError::NoOpenat2,
            errno => FileError::Sandbox { path: self.path.clone(), errno },
        })?;
        open_on_one_mount(sandbox.as_fd(), path.as_c_str(), flags)
            .map_err(|errno| FileError::of("openat2", path, errno))
    }
}

fn attributes(file: BorrowedFd<'_>, path: &SandboxPath) -> Result<Attributes, FileError> {
    let stat = fstat(file).map_err(|errno| FileError::of("fstat", path, errno))?;
    Ok(Attributes::of(&stat))
}

fn must_be_file(attributes: &Attributes, path: &SandboxPath) -> Result<(), FileError> {
    match attributes.kind {
        Kind::File => Ok(()),
        Kind::Link => Err(FileError::Link { path: path.to_owned_path() }),
        kind => Err(FileError::NotFile { path: path.to_owned_path(), kind }),
    }
}

fn list(dir: OwnedFd, path: &SandboxPath, page: &Page) -> Result<Listing, FileError> {
    let sys = |errno| FileError::of("getdents64", path, errno);
    let mut dir = Dir::from_fd(dir).map_err(sys)?;
    let (names, mut more) = names(&mut dir, path, page)?;
    let mut entries = Vec::with_capacity(names.len());
    let mut bytes = 0;
    let mut last = None;
    for name in names {
        if bytes >= MAX_PAGE_BYTES {
            more = true;
            break;
        }
        let described = describe(dir.as_fd(), &name);
        last = Some(name);
        // Else it was removed since its name was read.
        if let Some(entry) = described.map_err(|errno| FileError::of("fstatat", path, errno))? {
            bytes += entry.name.len() + entry.target.as_ref().map_or(0, |target| target.len());
            entries.push(entry);
        }
    }
    let next = last.filter(|_| more).map(|name| OsString::from_vec(name.into_bytes()));
    Ok(Listing { entries, next })
}

/// The first names of the page, sorted, and whether there are more.
fn names(
    dir: &mut Dir,
    path: &SandboxPath,
    page: &Page,
) -> Result<(Vec<CString>, bool), FileError> {
    let size = page.size.clamp(1, MAX_PAGE);
    // The least names, with the greatest of them on top.
    let mut least = BinaryHeap::with_capacity(size + 1);
    let mut more = false;
    for (count, entry) in dir.iter().enumerate() {
        if count > MAX_ENTRIES {
            return Err(FileError::Huge { path: path.to_owned_path() });
        }
        let entry = entry.map_err(|errno| FileError::of("getdents64", path, errno))?;
        let name = entry.file_name();
        let is_after = page.after.as_ref().is_none_or(|after| name.to_bytes() > after.as_bytes());
        if matches!(name.to_bytes(), b"." | b"..") || !is_after {
            continue;
        }
        if least.len() == size && least.peek().is_some_and(|greatest: &CString| name > greatest) {
            more = true;
            continue;
        }
        least.push(name.to_owned());
        if least.len() > size {
            least.pop();
            more = true;
        }
    }
    Ok((least.into_sorted_vec(), more))
}

/// What `name` in `dir` is; `None` if it is gone. No link is followed.
fn describe(dir: BorrowedFd<'_>, name: &CStr) -> Result<Option<Entry>, Errno> {
    let stat = match fstatat(dir, name, AtFlags::AT_SYMLINK_NOFOLLOW) {
        Err(Errno::ENOENT) => return Ok(None),
        stat => stat?,
    };
    let attributes = Attributes::of(&stat);
    let target = match attributes.kind {
        // By now it may be something else.
        Kind::Link => match readlinkat(dir, name) {
            Err(Errno::ENOENT | Errno::EINVAL) => return Ok(None),
            target => Some(target?),
        },
        _ => None,
    };
    let name = OsString::from_vec(name.to_bytes().to_vec());
    Ok(Some(Entry { name, attributes, target }))
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
    use std::os::unix::net::UnixListener;
    use std::time::{Duration, Instant};

    use nix::fcntl::{AT_FDCWD, RenameFlags, renameat2};
    use nix::mount::{MsFlags, mount};
    use nix::sched::{CloneFlags, unshare};
    use nix::sys::stat::{Mode, makedev, mknod};
    use nix::unistd::{chown, mkfifo};

    use super::*;
    use crate::sys::fault::take_away;
    use crate::testing::{ORDINARY, TempDir, alone, is_root, ordinary, while_disturbed};

    fn path(text: impl AsRef<[u8]>) -> SandboxPath {
        SandboxPath::new(text).unwrap()
    }

    fn files(temp: &TempDir) -> Files {
        Files { path: temp.path().to_owned(), user: None }
    }

    fn first(size: usize) -> Page {
        Page { after: None, size }
    }

    fn content(file: &SandboxFile) -> String {
        let mut buffer = vec![0; 4096];
        let read = file.read_at(0, &mut buffer).unwrap();
        String::from_utf8_lossy(&buffer[..read]).into_owned()
    }

    /// Names of all pages.
    fn names(files: &Files, of: &SandboxPath, size: usize) -> Vec<OsString> {
        let (mut names, mut page) = (Vec::new(), first(size));
        loop {
            let Listing { entries, next } = files.list(of, &page).unwrap();
            assert!(entries.len() <= size);
            names.extend(entries.into_iter().map(|entry| entry.name));
            page.after = next;
            if page.after.is_none() {
                return names;
            }
        }
    }

    /// Attack 16.
    #[test]
    fn what_is_no_path_beneath_the_sandbox_is_refused_by_its_syntax() {
        use PathSyntaxError as E;
        let long = "a/".repeat(MAX_PATH / 2) + "a";
        for (text, error) in [
            ("/", E::Absolute),
            ("/etc/passwd", E::Absolute),
            ("//etc", E::Absolute),
            ("..", E::Dots),
            ("../x", E::Dots),
            ("a/../../b", E::Dots),
            ("a/..", E::Dots),
            (".", E::Dots),
            ("a/./b", E::Dots),
            ("a//b", E::EmptyComponent),
            ("a/", E::EmptyComponent),
            ("a\0b", E::Nul),
            (long.as_str(), E::TooLong { len: MAX_PATH + 1 }),
        ] {
            assert_eq!(SandboxPath::new(text), Err(error), "{text:.20}");
        }
        for name in ["", "a", ".a", "..a", "...", "%2e%2e", "..\\..", "a\nb", " ", "*"] {
            assert_eq!(SandboxPath::new(name).unwrap().as_path(), Path::new(name));
        }
    }

    /// Attack 16: they are names like any other, and none is there.
    #[test]
    fn what_looks_like_an_encoded_path_is_a_name() {
        let temp = TempDir::new();
        let long = "a".repeat(300);
        for name in ["%2e%2e", "%252e%252e/etc", "..\\etc", long.as_str()] {
            let error = files(&temp).open(&path(name)).unwrap_err();
            assert!(matches!(error, FileError::NotFound { .. }), "{name:.20}: {error}");
        }
        fs::write(temp.path().join("%2e%2e"), "named so").unwrap();
        assert_eq!(content(&files(&temp).open(&path("%2e%2e")).unwrap()), "named so");
    }

    #[test]
    fn a_directory_is_listed_by_name_with_what_each_entry_is() {
        let temp = TempDir::new();
        let at = |name: &[u8]| temp.path().join(OsStr::from_bytes(name));
        fs::write(at(b"file"), "12345").unwrap();
        fs::set_permissions(at(b"file"), PermissionsExt::from_mode(0o640)).unwrap();
        fs::create_dir(at(b"Dir")).unwrap();
        symlink("/etc/\x1bpasswd", at(b"link")).unwrap();
        mkfifo(&at(b"fifo"), Mode::S_IRWXU).unwrap();
        let _socket = UnixListener::bind(at(b"socket")).unwrap();
        fs::write(at(b"\xff\n"), "").unwrap();

        let listing = files(&temp).list(&path(""), &first(100)).unwrap();

        assert_eq!(listing.next, None);
        let told: Vec<_> = listing
            .entries
            .iter()
            .map(|entry| (entry.name.as_bytes(), entry.attributes.kind))
            .collect();
        assert_eq!(
            told,
            [
                (&b"Dir"[..], Kind::Directory),
                (b"fifo", Kind::Fifo),
                (b"file", Kind::File),
                (b"link", Kind::Link),
                (b"socket", Kind::Socket),
                (b"\xff\n", Kind::File),
            ]
        );
        let metadata = fs::metadata(at(b"file")).unwrap();
        let modified = metadata.mtime() * 1_000_000_000 + metadata.mtime_nsec();
        let Attributes { size, mode, uid, modified: told, .. } = listing.entries[2].attributes;
        assert_eq!((size, mode, uid, told), (5, 0o640, metadata.uid(), modified));
        let link = listing.entries[3].target.as_deref();
        assert_eq!(link, Some(OsStr::new("/etc/\x1bpasswd")));
        assert!(listing.entries.iter().filter(|entry| entry.target.is_some()).count() == 1);
        assert_eq!(content(&files(&temp).open(&path(b"\xff\n")).unwrap()), "");
    }

    #[test]
    fn pages_together_are_the_directory() {
        let temp = TempDir::new();
        let dir = temp.path().join("sub");
        fs::create_dir(&dir).unwrap();
        let mut all: Vec<OsString> = (0..57).map(|n| format!("f{n}").into()).collect();
        all.iter().for_each(|name| fs::write(dir.join(name), "").unwrap());
        all.sort();

        for size in [1, 2, 19, 56, 57, 58] {
            assert_eq!(names(&files(&temp), &path("sub"), size), all, "{size}");
        }
        assert_eq!(files(&temp).list(&path("sub"), &first(0)).unwrap().entries.len(), 1);
        // What was the last one of a page may be gone by the next.
        let gone = Page { after: Some("f20x".into()), size: 1 };
        assert_eq!(files(&temp).list(&path("sub"), &gone).unwrap().entries[0].name, "f21");
    }

    /// A page of long links is no longer than a message may be.
    #[test]
    fn a_page_ends_before_its_bytes_are_too_many() {
        let temp = TempDir::new();
        let target = "t".repeat(4000);
        let all: Vec<OsString> = (100..500).map(|n| format!("{n}").into()).collect();
        all.iter().for_each(|name| symlink(&target, temp.path().join(name)).unwrap());

        let page = files(&temp).list(&path(""), &first(MAX_PAGE)).unwrap();

        assert!(
            (MAX_PAGE_BYTES / 4003..300).contains(&page.entries.len()),
            "{}",
            page.entries.len()
        );
        assert_eq!(page.next.as_ref(), page.entries.last().map(|entry| &entry.name));
        assert_eq!(names(&files(&temp), &path(""), MAX_PAGE), all);
    }

    /// Attack 18: a page of a huge directory costs the memory of a page.
    #[test]
    fn a_directory_of_100_000_entries_is_listed_in_bounded_memory() {
        const ENTRIES: u32 = 100_000;
        let temp = TempDir::new();
        let dir = temp.path().to_owned();
        if std::env::var_os("DEWAR_TEST_DIR").is_none() {
            for number in 0..ENTRIES {
                fs::File::create(dir.join(format!("{number:0200}"))).unwrap();
            }
        }
        crate::testing::alone_with(&[("DEWAR_TEST_DIR", dir.to_str().unwrap())], || {
            let path = PathBuf::from(std::env::var("DEWAR_TEST_DIR").unwrap());
            let files = Files { path, user: None };
            let last = Page { after: Some(format!("{:0200}", ENTRIES - 11).into()), size: 100 };
            let before = peak_kilobytes();

            let listing = files.list(&super::tests::path(""), &first(MAX_PAGE)).unwrap();
            let end = files.list(&super::tests::path(""), &last).unwrap();

            let grown = peak_kilobytes() - before;
            assert!(grown < 8192, "{grown} kB, where the names alone are 20 MB");
            assert_eq!(listing.entries.len(), MAX_PAGE);
            assert_eq!(listing.entries[999].name, OsString::from(format!("{:0200}", 999)));
            assert!(listing.next.is_some() && end.next.is_none());
            assert_eq!(end.entries.len(), 10);
        });
    }

    fn peak_kilobytes() -> u64 {
        let status = fs::read_to_string("/proc/self/status").unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
        line.trim().strip_suffix(" kB").unwrap().parse().unwrap()
    }

    /// Attack 17.
    #[test]
    fn no_link_is_followed_wherever_it_is_in_the_path() {
        let temp = TempDir::new();
        fs::create_dir(temp.path().join("dir")).unwrap();
        fs::write(temp.path().join("dir/file"), "in the sandbox").unwrap();
        for (name, target) in [
            ("passwd", "/etc/passwd"),
            ("root", "/proc/self/root"),
            ("up", ".."),
            ("inside", "dir"),
            ("dir/near", "file"),
            ("loop", "loop"),
        ] {
            symlink(target, temp.path().join(name)).unwrap();
        }
        let link = |error| matches!(error, FileError::Link { .. });
        for name in ["passwd", "root/etc/passwd", "up/x", "inside/file", "dir/near", "loop"] {
            assert!(link(files(&temp).open(&path(name)).unwrap_err()), "{name}");
        }
        for name in ["root", "root/etc", "up", "inside"] {
            assert!(link(files(&temp).list(&path(name), &first(9)).unwrap_err()), "{name}");
        }
        let moved = Files { path: temp.path().join("inside"), user: None };
        let error = moved.open(&path("file")).unwrap_err();
        assert!(matches!(error, FileError::Sandbox { errno: Errno::ELOOP, .. }), "{error}");
    }

    /// Attack 17: a link of the kernel, which needs no text to lead anywhere.
    #[test]
    fn no_magic_link_is_followed() {
        let files = Files { path: "/proc/self".into(), user: None };
        // Of a process that is no link itself.
        let files = Files { path: fs::canonicalize(files.path).unwrap(), user: None };
        for name in ["root/etc/passwd", "cwd/Cargo.toml", "exe", "fd/0"] {
            let error = files.open(&path(name)).unwrap_err();
            assert!(matches!(error, FileError::Link { .. }), "{name}: {error}");
        }
    }

    /// Attack 17: directories of the host that are mounted in the sandbox, and `/proc`.
    #[test]
    fn what_is_mounted_in_a_sandbox_is_not_entered() {
        if !is_root() {
            return;
        }
        alone(|| {
            let temp = TempDir::new();
            let none: Option<&str> = None;
            unshare(CloneFlags::CLONE_NEWNS).unwrap();
            mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).unwrap();
            for name in ["etc", "proc"] {
                let place = temp.path().join(name);
                fs::create_dir(&place).unwrap();
                let from = Path::new("/").join(name);
                mount(Some(&from), &place, none, MsFlags::MS_BIND | MsFlags::MS_REC, none).unwrap();
            }
            let entered = |error| matches!(error, FileError::Outside { .. });
            for name in ["etc/passwd", "proc/self/root/etc/passwd", "proc/version"] {
                assert!(entered(files(&temp).open(&path(name)).unwrap_err()), "{name}");
            }
            for name in ["etc", "proc", "proc/1"] {
                assert!(entered(files(&temp).list(&path(name), &first(9)).unwrap_err()), "{name}");
            }
            let listing = files(&temp).list(&path(""), &first(9)).unwrap();
            assert_eq!(listing.entries.len(), 2);
            unshare(CloneFlags::CLONE_FS).unwrap();
            for name in ["etc", "proc"] {
                let flags = nix::mount::MntFlags::MNT_DETACH;
                nix::mount::umount2(&temp.path().join(name), flags).unwrap();
            }
        });
    }

    fn swap(one: &Path, other: &Path) {
        renameat2(AT_FDCWD, one, AT_FDCWD, other, RenameFlags::RENAME_EXCHANGE).unwrap();
    }

    /// Attacks 14, 17: names are exchanged with links all the time.
    #[test]
    fn what_is_swapped_for_a_link_while_it_is_opened_is_never_shown() {
        let temp = TempDir::new();
        let (sandbox, victim) = (temp.path().join("sandbox"), temp.path().join("victim"));
        for dir in [&sandbox, &victim] {
            fs::create_dir_all(dir.join("dir")).unwrap();
        }
        fs::write(sandbox.join("dir/file"), "public").unwrap();
        fs::write(victim.join("dir/file"), "secret").unwrap();
        fs::write(victim.join("dir/hidden"), "secret").unwrap();
        let files = Files { path: sandbox.clone(), user: None };
        for (place, target) in [
            (sandbox.join("dir/file"), victim.join("dir/file")),
            (sandbox.join("dir"), victim.join("dir")),
            (sandbox.clone(), victim.clone()),
        ] {
            let link = temp.path().join("link");
            symlink(&target, &link).unwrap();
            let (mut opened, mut refused) = (0, 0);
            let exchange = || swap(&place, &link);
            while_disturbed(exchange, || {
                let start = Instant::now();
                let goes_on = |met| {
                    start.elapsed()
                        < if met { Duration::from_millis(200) } else { Duration::from_secs(20) }
                };
                while goes_on(opened > 0 && refused > 0) {
                    match files.open(&path("dir/file")) {
                        Ok(file) => {
                            assert_eq!(content(&file), "public");
                            opened += 1;
                        }
                        Err(FileError::Link { .. }) => refused += 1,
                        Err(FileError::Sandbox { errno: Errno::ELOOP, .. }) => refused += 1,
                        // It was moved out of the sandbox while the kernel walked through it.
                        Err(FileError::Outside { .. }) => {}
                        Err(error) => panic!("{error}"),
                    }
                    if let Ok(listing) = files.list(&path("dir"), &first(9)) {
                        assert!(listing.entries.iter().all(|entry| entry.name != "hidden"));
                    }
                }
            });
            assert!(opened > 0 && refused > 0, "{}: {opened}, {refused}", place.display());
            if place.is_symlink() {
                fs::remove_file(&place).unwrap();
                fs::rename(&link, &place).unwrap();
            } else {
                fs::remove_file(&link).unwrap();
            }
        }
    }

    /// Attack 18: none of them is opened, so that nobody waits for a writer and no device acts.
    #[test]
    fn what_is_no_regular_file_is_not_opened() {
        let temp = TempDir::new();
        let at = |name: &str| temp.path().join(name);
        mkfifo(&at("fifo"), Mode::S_IRWXU).unwrap();
        fs::create_dir(at("dir")).unwrap();
        let _socket = UnixListener::bind(at("socket")).unwrap();
        let mut cases =
            vec![("fifo", Kind::Fifo), ("dir", Kind::Directory), ("socket", Kind::Socket)];
        if is_root() {
            mknod(&at("zero"), SFlag::S_IFCHR, Mode::S_IRWXU, makedev(1, 5)).unwrap();
            cases.push(("zero", Kind::CharDevice));
        }
        for (name, kind) in cases {
            let error = files(&temp).open(&path(name)).unwrap_err();
            assert_eq!(error, FileError::NotFile { path: name.into(), kind });
        }
        for name in ["fifo", "socket"] {
            let error = files(&temp).list(&path(name), &first(9)).unwrap_err();
            assert_eq!(error, FileError::NotDirectory { path: name.into() });
        }
    }

    /// Attack 18: a name that is a file when it is looked at and a pipe when it is opened does not block.
    #[test]
    fn a_file_that_is_swapped_for_a_pipe_blocks_nobody() {
        let temp = TempDir::new();
        let (file, fifo) = (temp.path().join("file"), temp.path().join("fifo"));
        fs::write(&file, "text").unwrap();
        mkfifo(&fifo, Mode::S_IRWXU).unwrap();
        while_disturbed(
            || swap(&file, &fifo),
            || {
                let end = Instant::now() + Duration::from_millis(300);
                while Instant::now() < end {
                    match files(&temp).open(&path("file")) {
                        Ok(file) => assert_eq!(content(&file), "text"),
                        Err(error) => {
                            assert!(matches!(error, FileError::NotFile { .. }), "{error}")
                        }
                    }
                }
            },
        );
    }

    /// Attack 18.
    #[test]
    fn ranges_of_a_file_that_is_huge_grows_or_shrinks_do_not_overflow() {
        let temp = TempDir::new();
        let at = temp.path().join("file");
        let huge = fs::File::create(&at).unwrap();
        huge.set_len(1 << 43).unwrap();
        let file = files(&temp).open(&path("file")).unwrap();
        let mut buffer = [1; 16];

        assert_eq!(file.attributes().size, 1 << 43);
        assert_eq!(file.read_at((1 << 43) - 4, &mut buffer).unwrap(), 4);
        for beyond in [1 << 43, i64::MAX as u64 - 1, i64::MAX as u64, 1 << 63, u64::MAX] {
            assert_eq!(file.read_at(beyond, &mut buffer).unwrap_or(0), 0, "{beyond}");
        }
        huge.set_len(3).unwrap();
        assert_eq!(file.read_at(0, &mut buffer).unwrap(), 3);
        assert_eq!(file.read_at(3, &mut buffer).unwrap(), 0);
        huge.write_all_at(b"more", 3).unwrap();
        assert_eq!(file.read_at(3, &mut buffer).unwrap(), 4);
    }

    /// Invariant 6: a user that names any directory as a sandbox sees there what it could see before.
    #[test]
    fn nobody_reads_by_us_what_its_task_could_not_read() {
        if !is_root() {
            return;
        }
        let temp = TempDir::new();
        let at = |name: &str| temp.path().join(name);
        for (name, mode, gid) in [
            ("secret", 0o600, 0),
            ("group", 0o640, 777),
            ("other-group", 0o640, 778),
            ("open", 0o644, 0),
        ] {
            fs::write(at(name), name).unwrap();
            fs::set_permissions(at(name), PermissionsExt::from_mode(mode)).unwrap();
            chown(&at(name), None, Some(nix::unistd::Gid::from_raw(gid))).unwrap();
        }
        fs::create_dir(at("closed")).unwrap();
        fs::write(at("closed/file"), "").unwrap();
        fs::set_permissions(at("closed"), PermissionsExt::from_mode(0o700)).unwrap();
        fs::write(at("own"), "own").unwrap();
        chown(&at("own"), Some(nix::unistd::Uid::from_raw(ORDINARY)), None).unwrap();
        fs::set_permissions(at("own"), PermissionsExt::from_mode(0o600)).unwrap();
        let files = Files { path: temp.path().to_owned(), user: Some(ordinary(&[777])) };

        for name in ["group", "open", "own"] {
            assert_eq!(content(&files.open(&path(name)).unwrap()), name);
        }
        for name in ["secret", "other-group", "closed/file"] {
            let error = files.open(&path(name)).unwrap_err();
            assert_eq!(error, FileError::Denied { path: name.into() });
        }
        let error = files.list(&path("closed"), &first(9)).unwrap_err();
        assert_eq!(error, FileError::Denied { path: "closed".into() });
        // We are who we were.
        assert_eq!(fs::read(at("secret")).unwrap(), b"secret");
        assert!(crate::sys::ids::uids().unwrap().are(0));
    }

    /// Attack 17: there is no weaker way.
    #[test]
    fn without_openat2_nothing_is_opened() {
        if !is_root() {
            return;
        }
        alone(|| {
            let temp = TempDir::new();
            fs::write(temp.path().join("file"), "").unwrap();
            take_away(libc::SYS_openat2, libc::ENOSYS);

            assert_eq!(files(&temp).open(&path("file")).unwrap_err(), FileError::NoOpenat2);
            let listed = files(&temp).list(&path(""), &first(9));
            assert_eq!(listed.unwrap_err(), FileError::NoOpenat2);
        });
    }
}
