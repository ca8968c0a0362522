//! Locks on whole files: fcntl(2), advisory record locks.
//!
//! Two kinds, which exclude each other:
//!
//! - A [`ProcessLock`] belongs to a process. A fork does not inherit it, and the kernel tells who holds it.
//!   It has a trap: closing *any* descriptor of the file in the holding process drops it ("Record locks are
//!   automatically released [...] if [the process] closes any file descriptor referring to the file", fcntl(2)).
//!   So this module keeps a list of the files that this process holds, and whoever is about to open a file that
//!   may be among them asks [`held_here`] first. The type shares no descriptor and cannot be cloned.
//! - A *description lock* ([`lock_description`]) belongs to an open file description: it goes with the descriptor
//!   through a fork, and lasts until the last copy of that descriptor is closed. The kernel does not tell whose it is.

use std::fs::{File, Metadata};
use std::os::unix::fs::MetadataExt;
use std::sync::{Mutex, MutexGuard, PoisonError};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, fcntl};

/// Files that this process holds by a [`ProcessLock`].
static HELD: Mutex<Vec<FileId>> = Mutex::new(Vec::new());

/// A file of this machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct FileId {
    device: u64,
    inode: u64,
}

impl From<&Metadata> for FileId {
    fn from(metadata: &Metadata) -> Self {
        Self { device: metadata.dev(), inode: metadata.ino() }
    }
}

/// Who holds a lock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Holder {
    /// Process id; `None` for a description lock, and for a process of a pid namespace that we do not see.
    pub pid: Option<i32>,
}

/// Why a lock was not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum LockError {
    /// Somebody else holds it.
    #[error("locked by another")]
    Held(Holder),
    /// The call failed.
    #[error("fcntl")]
    Sys(#[source] Errno),
}

/// A write lock on a whole file that belongs to this process.
///
/// It is released by closing the file that it was taken with, which must therefore be dropped *before* this value:
/// declare the file first. Dropping the value alone only forgets that the file is held.
#[derive(Debug)]
pub struct ProcessLock {
    file: FileId,
}

impl ProcessLock {
    /// Takes the lock of `file`, which must be open for writing, without waiting.
    ///
    /// # Errors
    ///
    /// [`LockError::Held`] if somebody holds it, this process included (where the kernel would say yes).
    pub fn take(file: &File) -> Result<Self, LockError> {
        let metadata = file.metadata().map_err(|e| LockError::Sys(errno(&e)))?;
        let id = FileId::from(&metadata);
        let mut held = held();
        if held.contains(&id) {
            return Err(LockError::Held(Holder { pid: Some(own_pid()) }));
        }
        set(file, FcntlArg::F_SETLK(&whole_file(libc::F_WRLCK)))?;
        held.push(id);
        Ok(Self { file: id })
    }
}

impl Drop for ProcessLock {
    fn drop(&mut self) {
        held().retain(|id| *id != self.file);
    }
}

/// Whether this process holds a [`ProcessLock`] on the file that `metadata` is of.
///
/// If so, the file must not be opened: closing it again would drop the lock.
pub fn held_here(metadata: &Metadata) -> bool {
    held().contains(&FileId::from(metadata))
}

/// Locks `file`, which must be open for writing, for its open file description, without waiting.
///
/// # Errors
///
/// [`LockError::Held`] if another description, or any process, holds it.
pub fn lock_description(file: &File) -> Result<(), LockError> {
    set(file, FcntlArg::F_OFD_SETLK(&whole_file(libc::F_WRLCK)))
}

/// Says who holds a lock of either kind on `file`, by another description than `file`'s own.
///
/// # Errors
///
/// Those of fcntl(2).
pub fn holder(file: &File) -> nix::Result<Option<Holder>> {
    let mut lock = whole_file(libc::F_WRLCK);
    fcntl(file, FcntlArg::F_OFD_GETLK(&mut lock))?;
    if i32::from(lock.l_type) == libc::F_UNLCK {
        return Ok(None);
    }
    Ok(Some(Holder { pid: Some(lock.l_pid).filter(|pid| *pid > 0) }))
}

/// Id of this process, as the kernel names the holder of a lock.
pub fn own_pid() -> i32 {
    nix::unistd::getpid().as_raw()
}

fn held() -> MutexGuard<'static, Vec<FileId>> {
    HELD.lock().unwrap_or_else(PoisonError::into_inner)
}

fn set(file: &File, request: FcntlArg<'_>) -> Result<(), LockError> {
    match fcntl(file, request) {
        Ok(_) => Ok(()),
        // Who held it may be gone by the time of the question.
        Err(Errno::EAGAIN | Errno::EACCES) => {
            let holder = holder(file).map_err(LockError::Sys)?;
            Err(LockError::Held(holder.unwrap_or(Holder { pid: None })))
        }
        Err(errno) => Err(LockError::Sys(errno)),
    }
}

fn whole_file(kind: i32) -> libc::flock {
    libc::flock {
        l_type: kind as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: 0,
        l_len: 0,
        l_pid: 0,
    }
}

fn errno(error: &std::io::Error) -> Errno {
    error.raw_os_error().map_or(Errno::UnknownErrno, Errno::from_raw)
}

#[cfg(test)]
#[allow(unsafe_code)]
mod tests {
    use std::fs;
    use std::io::Read;
    use std::path::{Path, PathBuf};

    use nix::sys::wait::{WaitStatus, waitpid};
    use nix::unistd::{ForkResult, Pid, fork};

    use super::*;

    /// A file that goes with the test.
    struct TempFile(PathBuf);

    impl TempFile {
        fn new(name: &str) -> Self {
            let name = format!("dewar-lock-{}-{name}", std::process::id());
            let path = std::env::temp_dir().join(name);
            fs::write(&path, "").unwrap();
            Self(path)
        }

        fn open(&self) -> File {
            File::options().read(true).write(true).open(&self.0).unwrap()
        }
    }

    impl Drop for TempFile {
        fn drop(&mut self) {
            let _ = fs::remove_file(&self.0);
        }
    }

    /// Forks a child that calls `body`, which must make system calls only, and ends with what it returns.
    fn forked(body: impl FnOnce() -> i32) -> Pid {
        // SAFETY: other threads may hold locks of the allocator at the fork, so the child must not allocate. Every
        // `body` below makes system calls on values that exist, and _exit(2) runs no destructor.
        match unsafe { fork() }.unwrap() {
            ForkResult::Parent { child } => child,
            // SAFETY: it takes a number.
            ForkResult::Child => unsafe { libc::_exit(body()) },
        }
    }

    fn status(child: Pid) -> i32 {
        match waitpid(child, None).unwrap() {
            WaitStatus::Exited(_, status) => status,
            other => panic!("{other:?}"),
        }
    }

    /// What a process that is not ours sees: 0 nobody, 1 us, 2 somebody without a pid.
    fn seen_by_another(path: &Path) -> i32 {
        let file = File::open(path).unwrap();
        let us = own_pid();
        status(forked(|| match holder(&file) {
            Ok(None) => 0,
            Ok(Some(Holder { pid: Some(pid) })) if pid == us => 1,
            Ok(Some(Holder { pid: None })) => 2,
            _ => 3,
        }))
    }

    /// Other tests fork too, and their children have copies of our descriptors until they exec or exit.
    fn wait_until_free(temp: &TempFile) {
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(30);
        while holder(&temp.open()) != Ok(None) {
            assert!(std::time::Instant::now() < deadline, "the lock is not released");
            std::thread::yield_now();
        }
    }

    #[test]
    fn a_process_lock_names_its_process_and_is_not_inherited() {
        let temp = TempFile::new("process");
        let file = temp.open();
        let lock = ProcessLock::take(&file).unwrap();

        let child = forked(|| match fcntl(&file, FcntlArg::F_SETLK(&whole_file(libc::F_WRLCK))) {
            Err(Errno::EAGAIN) => match holder(&file) {
                Ok(Some(Holder { pid: Some(pid) })) => {
                    i32::from(pid != nix::unistd::getppid().as_raw())
                }
                _ => 2,
            },
            _ => 3,
        });

        assert_eq!(status(child), 0);
        drop(file);
        drop(lock);
        assert_eq!(holder(&temp.open()), Ok(None));
    }

    #[test]
    fn a_process_meets_its_own_lock() {
        let temp = TempFile::new("own");
        let file = temp.open();
        let _lock = ProcessLock::take(&file).unwrap();

        let again = ProcessLock::take(&file).unwrap_err();

        assert_eq!(again, LockError::Held(Holder { pid: Some(own_pid()) }));
    }

    /// Not a wish but the kernel's rule, and why `held_here` is asked before a file is opened.
    #[test]
    fn closing_any_descriptor_of_the_file_drops_a_process_lock() {
        let temp = TempFile::new("trap");
        let file = temp.open();
        let lock = ProcessLock::take(&file).unwrap();
        let metadata = fs::metadata(&temp.0).unwrap();
        assert!(held_here(&metadata));

        let another = temp.open();
        let before = status(forked(|| i32::from(holder(&file) != Ok(None))));
        drop(another);

        assert_eq!((before, seen_by_another(&temp.0)), (1, 0));
        drop(file);
        drop(lock);
        assert!(!held_here(&metadata));
    }

    #[test]
    fn a_description_lock_goes_through_a_fork_and_outlives_its_parent() {
        let temp = TempFile::new("description");
        let file = temp.open();
        lock_description(&file).unwrap();
        let (reader, writer) = std::io::pipe().unwrap();
        let child = forked(|| {
            // Reads until the end of the pipe: that the parent closes it.
            nix::unistd::close(std::os::fd::AsRawFd::as_raw_fd(&writer))
                .map_or(1, |()| (&reader).read(&mut [0]).map_or(1, |_| 0))
        });

        drop(file);
        let while_it_lives = holder(&temp.open());
        drop(writer);
        let ended = status(child);

        assert_eq!(while_it_lives, Ok(Some(Holder { pid: None })));
        assert_eq!(ended, 0);
        wait_until_free(&temp);
    }

    #[test]
    fn the_two_kinds_exclude_each_other_and_themselves() {
        let temp = TempFile::new("kinds");
        let first = temp.open();
        lock_description(&first).unwrap();

        let held = LockError::Held(Holder { pid: None });
        assert_eq!(lock_description(&temp.open()).unwrap_err(), held);
        assert_eq!(ProcessLock::take(&temp.open()).unwrap_err(), held);

        let temp = TempFile::new("other-kind");
        let file = temp.open();
        let _lock = ProcessLock::take(&file).unwrap();
        let held = LockError::Held(Holder { pid: Some(own_pid()) });
        let another = File::options().write(true).open(&temp.0).unwrap();
        assert_eq!(lock_description(&another).unwrap_err(), held);
    }

    #[test]
    fn who_holds_a_lock_is_told_to_one_who_may_only_read() {
        let temp = TempFile::new("read");
        let file = temp.open();
        lock_description(&file).unwrap();

        let read_only = File::open(&temp.0).unwrap();

        assert_eq!(holder(&read_only), Ok(Some(Holder { pid: None })));
    }
}
