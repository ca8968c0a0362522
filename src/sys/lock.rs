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
