//! Which root the tasks of this node are in.

use std::env;
use std::path::PathBuf;

use nix::unistd::geteuid;

use super::args::RootArg;
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
    let path = match &arg.root {
        Some(path) => path.clone(),
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
