//! Leaves of commands that are run in a task beside its runs: `<base>/tasks/<task>/.exec-<n>`, the name of no process.
//!
//! They belong to the task: they count for its limits and usage, stand still with it, and are killed and removed with it. Whoever
//! makes one holds its lock, so that one which a killed program left is known for what it is.

use std::ops::Deref;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicU32, Ordering};

use nix::errno::Errno;
use nix::fcntl::Flock;

use super::task::furnish;
use super::trial::lock;
use super::{Cgroup, CgroupError, Leaf, TaskCgroup};

/// How their names begin. No process has such a name.
const PREFIX: &str = ".exec-";

/// The leaf of a command, ours while this lives.
#[derive(Debug)]
pub struct ExecLeaf {
    leaf: Leaf,
    _alive: Flock<OwnedFd>,
}

impl TaskCgroup {
    /// Makes a leaf for a command; kills and removes those of programs that are gone.
    ///
    /// # Errors
    ///
    /// [`CgroupError::Sys`]: ENOENT or ENODEV if the cgroup of the task was removed, which it is before the task is over.
    pub fn exec_leaf(&self) -> Result<ExecLeaf, CgroupError> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        self.sweep_exec()?;
        loop {
            let name = format!("{PREFIX}{}", NEXT.fetch_add(1, Ordering::Relaxed));
            let Some(dir) = self.dir().create_new(&name)? else { continue };
            // What is not locked yet may be swept.
            if let Some(alive) = lock(&dir)? {
                return Ok(ExecLeaf { leaf: furnish(dir)?, _alive: alive });
            }
        }
    }

    /// Kills what programs that are gone left in leaves of commands, and removes those that are empty.
    ///
    /// # Errors
    ///
    /// [`CgroupError`].
    pub fn sweep_exec(&self) -> Result<(), CgroupError> {
        for name in self.dir().children()?.iter().filter(|name| name.starts_with(PREFIX)) {
            let Some(dir) = self.dir().child(name)? else { continue };
            let Some(_dead) = lock(&dir)? else { continue };
            let Some(left) = Cgroup::found(dir)? else { continue };
            left.kill()?;
            match left.remove() {
                // It is removed the next time, or with the task.
                Ok(()) | Err(CgroupError::Populated(_)) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

impl Deref for ExecLeaf {
    type Target = Leaf;

    fn deref(&self) -> &Leaf {
        &self.leaf
    }
}

impl Drop for ExecLeaf {
    fn drop(&mut self) {
        // What lives in it is somebody's to wait for; the leaf is then removed with the task.
        let _ = self.leaf.remove();
    }
}

impl CgroupError {
    /// Whether the cgroup in which something was to be done was removed.
    pub fn is_gone(&self) -> bool {
        matches!(self, Self::Sys { errno: Errno::ENOENT | Errno::ENODEV, .. })
    }
}
