//! A cgroup that stands still: `cgroup.freeze` (cgroup-v2.rst, "Core Interface Files").
//!
//! What is frozen is killed all the same, by `cgroup.kill` or SIGKILL from anywhere; every other signal waits until it
//! is thawed. A process that is born into a frozen cgroup is frozen before its first instruction in user mode, and a
//! cgroup that is made in a frozen one is frozen with it.

use nix::errno::Errno;

use super::{Cgroup, CgroupError, usage};

impl Cgroup {
    /// Freezes every process in this cgroup and beneath it. Returns before they all stand still: [`Cgroup::is_frozen`].
    ///
    /// # Errors
    ///
    /// [`CgroupError::Sys`].
    pub fn freeze(&self) -> Result<(), CgroupError> {
        self.set_freeze("1")
    }

    /// Lets go on what [`Cgroup::freeze`] froze.
    ///
    /// # Errors
    ///
    /// [`CgroupError::Sys`].
    pub fn thaw(&self) -> Result<(), CgroupError> {
        self.set_freeze("0")
    }

    fn set_freeze(&self, value: &str) -> Result<(), CgroupError> {
        match self.dir().write("cgroup.freeze", value) {
            Ok(()) | Err(Errno::ENODEV | Errno::ENOENT) => Ok(()),
            Err(errno) => Err(self.dir().error("write", "cgroup.freeze", errno)),
        }
    }

    /// Whether it was asked to freeze, and not to thaw since; what froze a cgroup above it does not count.
    ///
    /// # Errors
    ///
    /// [`CgroupError::Sys`].
    pub fn is_to_freeze(&self) -> Result<bool, CgroupError> {
        match self.dir().read_text("cgroup.freeze") {
            Ok(text) => Ok(text == "1"),
            Err(Errno::ENODEV | Errno::ENOENT) => Ok(false),
            Err(errno) => Err(self.dir().error("read", "cgroup.freeze", errno)),
        }
    }

    /// Whether every process in this cgroup and beneath it stands still. One that the kernel holds in an
    /// uninterruptible sleep keeps it from being so until it wakes.
    ///
    /// # Errors
    ///
    /// [`CgroupError::Sys`]: the file could not be read, or says neither.
    pub fn is_frozen(&self) -> Result<bool, CgroupError> {
        let failed = |errno| self.dir().error("read", "cgroup.events", errno);
        let text = match self.dir().read("cgroup.events") {
            Ok(text) => text,
            Err(Errno::ENODEV | Errno::ENOENT) => return Ok(true),
            Err(errno) => return Err(failed(errno)),
        };
        match usage::keyed(&text, "frozen") {
            Some(value) => Ok(value != 0),
            None => Err(failed(Errno::EBADMSG)),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use crate::cgroup::scratch::{PATIENCE, Scratch, eventually};

    #[test]
    fn what_is_frozen_stands_still_and_goes_on_when_it_is_thawed() {
        let scratch = Scratch::new();
        let task = scratch.task("task");
        let leaf = scratch.leaf();
        let mut inhabitant = scratch.inhabit(leaf.path(), "read line; echo went on");

        task.freeze().unwrap();
        assert!(task.is_to_freeze().unwrap());
        eventually("frozen", || task.is_frozen().unwrap());
        assert!(leaf.is_frozen().unwrap(), "and so is what is beneath it");
        assert!(!leaf.is_to_freeze().unwrap());

        task.thaw().unwrap();
        assert!(!task.is_frozen().unwrap() && !task.is_to_freeze().unwrap());
        drop(inhabitant.child.stdin.take());
        assert_eq!(inhabitant.line(), "went on");
    }

    #[test]
    fn a_cgroup_that_is_made_in_a_frozen_one_is_frozen() {
        let scratch = Scratch::new();
        scratch.task("task").freeze().unwrap();

        let leaf = scratch.leaf();

        assert!(leaf.is_frozen().unwrap());
        scratch.task("task").thaw().unwrap();
        assert!(!leaf.is_frozen().unwrap());
    }

    #[test]
    fn what_is_frozen_can_be_killed() {
        let scratch = Scratch::new();
        let leaf = scratch.leaf();
        let _inhabitant = scratch.inhabit(leaf.path(), "read line");
        leaf.freeze().unwrap();
        eventually("frozen", || leaf.is_frozen().unwrap());

        leaf.kill().unwrap();

        assert!(leaf.wait_empty(Instant::now() + PATIENCE).unwrap());
    }

    #[test]
    fn a_cgroup_that_was_removed_has_nothing_that_moves() {
        let scratch = Scratch::new();
        let leaf = scratch.leaf();
        leaf.remove().unwrap();

        leaf.freeze().unwrap();
        assert!(leaf.is_frozen().unwrap() && !leaf.is_to_freeze().unwrap());
        leaf.thaw().unwrap();
    }
}
