//! Reads the logs of runs: what is there, and what comes after it.
//!
//! - [`Log`] reads the log of one run, across the files that rotation leaves of it.
//! - [`Follow`] reads the logs of a process, run after run, until no more can come.
//! - [`Watches`] tells followers that there may be more, by one inotify instance for all of them.
//!
//! Nothing here sleeps or has a thread: a reader says that there is nothing to read just now, and whoever called it waits for
//! the [`Watches`] in its own way, by poll(2) or in an event loop. A reader holds two open files and no buffer: the bytes go
//! where the caller says. They are what the run wrote, unchanged; who prints them on a terminal makes them safe.
//!
//! Logs lie in directories that a task controls. They are opened by [`crate::sandbox::logs`] alone, which follows no link and
//! takes nothing but a regular file of the run's user with one name.
#![allow(clippy::disallowed_methods, reason = "reads logs")]

mod follow;
mod log;
mod watch;

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::sys::stat::Mode;

pub use follow::{Follow, Next, Progress, Runs};
pub use log::{Chunk, Log, Position, PositionError, Start};
pub use watch::{WatchError, Watched, Watcher, Watches};

use crate::observe::ObserveError;
use crate::sandbox::PathError;
use crate::sandbox::logs::{LogName, Stream, open_for_reading};
use crate::sys::fs::{open_beneath, open_dir_without_links};
use crate::task::{ProcessName, ProcessSpec};
use crate::view::{Replay, log_dir};

/// Bytes that are worth reading at once.
pub const CHUNK: usize = 64 << 10;

/// Why a log is not read, or no further.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// Something of it was not opened.
    #[error(transparent)]
    Path(#[from] PathError),
    /// It was opened and cannot be read.
    #[error("read {}", path.display())]
    Read {
        /// The live file of the log.
        path: PathBuf,
        /// Why not.
        #[source]
        error: io::Error,
    },
    /// Its changes are not told.
    #[error(transparent)]
    Watch(#[from] WatchError),
    /// It cannot be told which runs there are.
    #[error(transparent)]
    Runs(#[from] ObserveError),
}

/// A process whose output is not logged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("its output goes to {}", if *.console { "the console" } else { "nowhere" })]
pub struct NotLogged {
    /// Whether its output goes to the console of the task; else it is thrown away.
    pub console: bool,
}

/// The logs of one stream of a process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Source {
    process: ProcessName,
    index: usize,
    stream: Stream,
    dir: PathBuf,
    owner: u32,
}

impl Source {
    /// The logs of `stream` of the process with number `index` in the task, which must have as many.
    ///
    /// # Errors
    ///
    /// [`NotLogged`] if they are never written.
    pub fn new(replay: &Replay, index: usize, stream: Stream) -> Result<Self, NotLogged> {
        let spec: &ProcessSpec = &replay.state().spec().processes[index];
        if let Some(logger) = spec.logger
            && logger.file.is_none()
        {
            return Err(NotLogged { console: logger.console });
        }
        let launch = replay.launch();
        let owner = launch.identity.as_ref().map_or(0, |who| who.uid);
        let (process, dir) = (spec.name.clone(), log_dir(launch).into());
        Ok(Self { process, index, stream, dir, owner })
    }

    /// Whose logs they are.
    pub fn process(&self) -> &ProcessName {
        &self.process
    }

    /// Its number in the task.
    pub fn index(&self) -> usize {
        self.index
    }

    /// Which output.
    pub fn stream(&self) -> Stream {
        self.stream
    }

    /// Path of the live file of run `run`, for messages.
    pub fn path(&self, run: u32) -> PathBuf {
        self.dir.join(self.within(run)).join(self.stream.as_str())
    }

    fn within(&self, run: u32) -> PathBuf {
        Path::new(self.process.as_str()).join(run.to_string())
    }

    /// Opens a file of the log of run `run`; `None` if there is none.
    fn open(&self, run: u32, backup: u32) -> Result<Option<OwnedFd>, LogError> {
        let name = LogName { stream: self.stream, backup };
        match open_for_reading(&self.dir, &self.process, run, name, self.owner) {
            Err(PathError::Sys { errno: Errno::ENOENT, .. }) => Ok(None),
            opened => Ok(Some(opened?)),
        }
    }

    /// Opens the directory of the logs of run `run`; `None` if it is not there.
    fn open_dir(&self, run: u32) -> Result<Option<OwnedFd>, LogError> {
        let open = || {
            let logs = open_dir_without_links(&self.dir)?;
            let name =
                std::ffi::CString::new(self.within(run).into_os_string().into_encoded_bytes())
                    .map_err(|_| Errno::EINVAL)?;
            let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW;
            open_beneath(logs.as_fd(), &name, flags, Mode::empty())
        };
        match open() {
            Ok(dir) => Ok(Some(dir)),
            Err(Errno::ENOENT) => Ok(None),
            Err(errno) => {
                Err(PathError::of("openat2", &self.dir.join(self.within(run)), errno).into())
            }
        }
    }
}

#[cfg(test)]
pub(crate) mod testing;
