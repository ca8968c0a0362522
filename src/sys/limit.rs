//! How many descriptors a process may have open.

use std::io;
use std::sync::OnceLock;

use nix::errno::Errno;
use nix::sys::resource::{Resource, getrlimit, rlim_t, setrlimit};

/// The soft limit that we were started with.
static BEFORE: OnceLock<rlim_t> = OnceLock::new();

/// Raises the soft limit of open descriptors to the hard one, for a program that holds several for each task. What it starts
/// has it back by [`restore_open_files`].
///
/// # Errors
///
/// Those of getrlimit(2) and setrlimit(2).
pub fn raise_open_files() -> io::Result<()> {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    BEFORE.get_or_init(|| soft);
    Ok(setrlimit(Resource::RLIMIT_NOFILE, hard, hard)?)
}

/// How many descriptors may be open.
///
/// # Errors
///
/// Those of getrlimit(2).
pub fn open_files() -> io::Result<u64> {
    Ok(getrlimit(Resource::RLIMIT_NOFILE)?.0)
}

/// In a child: gives it the limit that we were started with. A system call at most, and no memory is asked for.
///
/// # Errors
///
/// Those of getrlimit(2) and setrlimit(2).
pub fn restore_open_files() -> Result<(), Errno> {
    let Some(&soft) = BEFORE.get() else { return Ok(()) };
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    setrlimit(Resource::RLIMIT_NOFILE, soft, hard)
}
