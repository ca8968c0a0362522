//! From what a client asks for to a task that can be launched here: for the command line and the daemon.
#![allow(clippy::disallowed_methods, reason = "resolves paths as of now")]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use nix::unistd::gethostname;

use crate::cgroup::{self, Applied, Base, CgroupError, Unenforceable};
use crate::checkpoint::Root;
use crate::proto::{Containment, Identity, Launch};
use crate::sandbox::{self, PathError};
use crate::sys::clock::{self, LocalTime};
use crate::task::file::Accepted;
use crate::task::{Resources, TaskSpec};

/// T22, dewar's rule: losses in a row after which a process has failed.
const LOSS_LIMIT: u32 = 100;

/// PATH of runs where the caller has none: that of login(1).
pub const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Why a task cannot be launched here as it was asked for.
#[derive(Debug, thiserror::Error)]
pub enum RequestError {
    /// Limits cannot be enforced.
    #[error("{}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))]
    Unenforceable(Vec<Unenforceable>),
    /// They could not be tried out.
    #[error(transparent)]
    Cgroup(#[from] CgroupError),
    /// A directory cannot be told.
    #[error(transparent)]
    Path(#[from] PathError),
    /// A directory has a name that no message can hold.
    #[error("{what}: {path:?} is not UTF-8")]
    NotUtf8 {
        /// What it is for.
        what: &'static str,
        /// The directory.
        path: PathBuf,
    },
}

/// How and where a task is to run.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// Directory that it runs in; `None`: its own in the root.
    pub sandbox: Option<PathBuf>,
    /// Directory of its logs; `None`: `.logs` in the sandbox.
    pub log_dir: Option<PathBuf>,
    /// Host ports by name.
    pub ports: BTreeMap<String, u16>,
    /// Whether the sandbox is the root directory of every run.
    pub chroot: bool,
    /// What it is found by.
    pub labels: BTreeMap<String, String>,
    /// PATH of its runs.
    pub path: String,
}

/// The launch of an accepted task, with the limits that `applied` says are in force.
///
/// # Errors
///
/// [`RequestError::Path`], [`RequestError::NotUtf8`].
pub fn launch(
    root: &Root,
    accepted: Accepted,
    identity: Identity,
    options: Options,
    containment: Containment,
    applied: Applied,
) -> Result<Launch, RequestError> {
    let sandbox = options.sandbox.unwrap_or_else(|| root.sandbox(&accepted.task_id));
    let log_dir = options.log_dir.as_deref();
    Ok(Launch {
        task_id: accepted.task_id.to_string(),
        task: Some(accepted.task),
        sandbox: directory("sandbox", &sandbox)?,
        log_dir: log_dir.map(|path| directory("log directory", path)).transpose()?,
        ports: options.ports.into_iter().map(|(name, port)| (name, port.into())).collect(),
        identity: Some(identity),
        chroot: options.chroot,
        containment: containment.into(),
        unenforced: applied.unenforceable.into_iter().map(|limit| limit.field).collect(),
        path: options.path,
        loss_limit: LOSS_LIMIT,
        accepted_unix_nanos: clock::now().wall,
        hostname: hostname(),
        rounded: applied.rounded.iter().map(ToString::to_string).collect(),
        labels: options.labels,
    })
}

/// Name of this host.
pub fn hostname() -> String {
    gethostname().unwrap_or_default().to_string_lossy().into_owned()
}

/// The path that a directory is recorded by: absolute, and without links as of now.
fn directory(what: &'static str, path: &Path) -> Result<String, RequestError> {
    let path = sandbox::canonical(path)?.into_os_string();
    path.into_string().map_err(|path| RequestError::NotUtf8 { what, path: path.into() })
}

/// What becomes of the limits of a task: tried out in `base`, or `None`: without cgroups, where none is enforced.
///
/// # Errors
///
/// [`CgroupError`].
pub fn try_out(spec: &TaskSpec, base: Option<&Base>) -> Result<Applied, CgroupError> {
    if let Some(base) = base {
        return base.try_out(spec);
    }
    let without = |path: &str, limits: &Resources| {
        cgroup::all_unenforceable(limits, path, "a cgroup", "a task without cgroup was asked for")
    };
    let of_task = spec.resources.iter().flat_map(|limits| without("resources", limits));
    let each = spec.processes.iter().enumerate();
    let of_runs = each.filter_map(|(index, process)| {
        let path = format!("processes[{index}].resources");
        Some(without(&path, process.resources.as_deref()?))
    });
    let unenforceable = of_task.chain(of_runs.flatten()).collect();
    Ok(Applied { unenforceable, rounded: Vec::new() })
}

/// T15: the time of a launch as the end of a task id.
pub fn id_suffix() -> String {
    let wall = clock::now().wall;
    suffix(clock::local(wall.div_euclid(1_000_000_000)), wall)
}

/// `at` is the local time of it.
fn suffix(at: Option<LocalTime>, unix_nanos: i64) -> String {
    let micros = unix_nanos.rem_euclid(1_000_000_000) / 1000;
    match at {
        Some(LocalTime { year, month, day, hour, minute, second }) => {
            format!("{year:04}{month:02}{day:02}-{hour:02}{minute:02}{second:02}.{micros:06}")
        }
        None => format!("{}.{micros:06}", unix_nanos.div_euclid(1_000_000_000)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// T15.
    #[test]
    fn a_task_id_ends_in_the_time_of_the_launch() {
        let at = LocalTime { year: 2026, month: 8, day: 1, hour: 9, minute: 30, second: 0 };
        assert_eq!(suffix(Some(at), 1_785_576_600_123_456_789), "20260801-093000.123456");
        assert_eq!(suffix(None, -1_000), "-1.999999");
    }
}
