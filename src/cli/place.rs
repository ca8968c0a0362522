//! Which root the tasks of this node are in.

use std::env;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use nix::unistd::geteuid;

use super::args::{RootArg, RootsArg};
use super::failure::Failure;
use crate::checkpoint::Root;
use crate::task::TaskId;

/// Root of the system.
const SYSTEM_ROOT: &str = "/var/lib/dewar";
/// Root of a user, within the user's state directory.
const USER_ROOT: &str = "dewar";

/// The root that was named, or the default: `/var/lib/dewar` as root, else `dewar` in the state directory of the XDG
/// base directory specification.
///
/// # Errors
///
/// [`Failure::Usage`] if none was named and there is no home directory.
pub(super) fn root(arg: &RootArg) -> Result<Root, Failure> {
    named_or_default(arg.root.as_deref())
}

/// The roots that were named, each once, by whatever path; or the default.
///
/// # Errors
///
/// As [`root`].
pub(super) fn roots(arg: &RootsArg) -> Result<Vec<Root>, Failure> {
    let mut roots = Vec::<Root>::new();
    for path in &arg.roots {
        let root = named_or_default(Some(path))?;
        if !roots.iter().any(|known| is_same(known.path(), root.path())) {
            roots.push(root);
        }
    }
    if roots.is_empty() {
        roots.push(named_or_default(None)?);
    }
    Ok(roots)
}

/// Whether two paths lead to one directory. One that is not there is only where its path says.
fn is_same(a: &Path, b: &Path) -> bool {
    let inode = |path: &Path| path.metadata().map(|file| (file.dev(), file.ino())).ok();
    a == b || inode(a).is_some_and(|of| inode(b) == Some(of))
}

fn named_or_default(named: Option<&Path>) -> Result<Root, Failure> {
    let path = match named {
        Some(path) => path.to_owned(),
        None if geteuid().is_root() => SYSTEM_ROOT.into(),
        None => user_root(
            env::var_os("XDG_STATE_HOME").map(Into::into),
            env::var_os("HOME").map(Into::into),
        )
        .ok_or_else(|| {
            Failure::Usage("HOME is not set: name a directory with --root".to_owned())
        })?,
    };
    Ok(Root::new(path)?)
}

/// The specification has relative paths ignored.
fn user_root(state: Option<PathBuf>, home: Option<PathBuf>) -> Option<PathBuf> {
    let state = state.filter(|path| path.is_absolute());
    let home = || Some(home.filter(|path| path.is_absolute())?.join(".local/state"));
    Some(state.or_else(home)?.join(USER_ROOT))
}

/// `text` as a task id.
///
/// # Errors
///
/// [`Failure::Usage`] says why it can be none.
pub(super) fn task_id(text: &str) -> Result<TaskId, Failure> {
    TaskId::new(text).map_err(|error| Failure::Usage(format!("task id {text:?} {error}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_ordinary_user_has_a_root_in_the_state_directory() {
        let root = |state: Option<&str>, home: Option<&str>| {
            user_root(state.map(Into::into), home.map(Into::into))
        };
        let path = |text: &str| Some(PathBuf::from(text));

        assert_eq!(root(Some("/s"), Some("/h")), path("/s/dewar"));
        assert_eq!(root(None, Some("/h")), path("/h/.local/state/dewar"));
        assert_eq!(root(Some(""), Some("/h")), path("/h/.local/state/dewar"));
        assert_eq!(root(Some("relative"), None), None);
        assert_eq!(root(None, None), None);
    }
}
