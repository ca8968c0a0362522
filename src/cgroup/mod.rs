//! cgroup v2: where tasks live, how they are killed, how it is known that all of a task is gone.
//!
//! ```text
//! <base>/                    found by `find`, never guessed
//!   supervisor/              daemon, runners, coordinators
//!   tasks/<task_id>/         TaskCgroup: limits and totals; no process of its own
//!     <process>.<run>/       Leaf: everything that one run ever forks
//!     .exec-<n>/             ExecLeaf: a command that somebody runs in the task
//! ```
//!
//! # Invariants
//!
//! - A run is born in its leaf: `clone3` with `CLONE_INTO_CGROUP` and the leaf's descriptor. Nothing
//!   here moves a process but ourselves, and that only out of a base that was delegated to us.
//! - All are dead when `cgroup.events` says `populated 0`, and not before. Killing is `cgroup.kill`.
//!   No pid is searched for; a pid that the kernel lists is signalled only through a pidfd that was
//!   seen to belong to the cgroup ([`Cgroup::signal`]).
//! - A limit is in force and was read back, or it is named as [`Unenforceable`]. Never neither.
//! - Directories are opened once and used by descriptor; on the way to a base no symbolic link is
//!   followed. Beneath it there are none: cgroupfs has no links, and v2 has no rename.
//!
//! # Why these files are written by hand
//!
//! cgroups-rs says `Ok` where a limit could not be set and assumes a v2 root at `/sys/fs/cgroup`,
//! which is false on hybrid hosts. Facts are from the kernel's
//! [cgroup-v2.rst](https://docs.kernel.org/admin-guide/cgroup-v2.html) and cgroups(7).
//!
//! # Files
//!
//! `host` reads mounts and our own cgroup (pure); `base` finds and prepares `<base>`; `task` makes
//! tasks and leaves, `exec` those of commands; `group` kills, signals, watches and removes any of them, `freezer` makes it stand
//! still; `controllers` and `limits` enable and enforce, which `trial` tries out beforehand and `change`
//! takes back; `usage` reads what was used, `above` whose limit was hit, `stuck` what does not die; `dir`
//! is the only file access.
#![allow(clippy::disallowed_methods, reason = "cgroups are files of the kernel")]

mod above;
mod base;
mod change;
mod controllers;
mod dir;
mod exec;
mod freezer;
mod group;
mod host;
mod limits;
#[cfg(test)]
mod oracle;
#[cfg(test)]
pub(crate) mod scratch;
mod stuck;
mod task;
mod trial;
mod usage;

use std::path::PathBuf;

use nix::errno::Errno;

pub use above::Above;
pub use base::{Base, FindError, Options, SCOPE_GUARD, find, systemd_scope_command};
pub use change::{Held, fields};
pub use controllers::{Controller, Usable};
pub use exec::ExecLeaf;
pub use group::Cgroup;
pub use limits::{Applied, Rounded, Shortage, Unenforceable, all_unenforceable};
pub use stuck::unkillable;
pub use task::{Leaf, TaskCgroup};
pub(crate) use usage::STILL;
#[cfg(test)]
pub(crate) use usage::content;
pub use usage::{Extent, Sampler};

/// Why something could not be done to a cgroup.
#[derive(Debug, thiserror::Error)]
pub enum CgroupError {
    /// The kernel refused.
    #[error("{act} {}", path.display())]
    Sys {
        /// What was tried.
        act: &'static str,
        /// On what.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        errno: Errno,
    },
    /// A task or leaf would take the name of one of the kernel's own files.
    #[error("{name:?} cannot name a cgroup: in {} the kernel keeps that name for a file of its own", dir.display())]
    Reserved {
        /// The name.
        name: String,
        /// Directory that the cgroup would be in.
        dir: PathBuf,
    },
    /// A path that should be a cgroup is something else.
    #[error("{} is not a cgroup v2 directory", .0.display())]
    NotCgroup2(PathBuf),
    /// A recorded path cannot be the cgroup of the task that it was recorded for.
    #[error("{} is not the cgroup of task {task}: it does not end in tasks/{task}", path.display())]
    NotOfTask {
        /// The path.
        path: PathBuf,
        /// The task.
        task: String,
    },
    /// It cannot be removed while a process lives in it.
    #[error("{} still holds processes", .0.display())]
    Populated(PathBuf),
    /// Cgroups beneath it are nested deeper, or are made faster, than removal follows.
    #[error("{} keeps cgroups beneath it that cannot be removed", .0.display())]
    Stubborn(PathBuf),
    /// The kernel took a value and holds another.
    #[error("{} holds {found:?} after {asked:?} was written to it", path.display())]
    NotTaken {
        /// The file.
        path: PathBuf,
        /// What was written.
        asked: String,
        /// What was read back.
        found: String,
    },
}
