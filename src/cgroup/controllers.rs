//! Controllers: which of them tasks can have, and why not the others.
//!
//! `cgroup.subtree_control` takes all of a write or nothing of it, so controllers are enabled one
//! at a time, and what counts is what is read back. That also forgives whatever an earlier run or
//! another program left enabled.

use std::fmt;

use nix::errno::Errno;

use super::dir::Dir;

/// A controller that dewar has a use for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Controller {
    /// Shares of CPU time. (CPU time is accounted for without it.)
    Cpu,
    /// Memory limits, peak and OOM kills.
    Memory,
    /// Bytes read and written.
    Io,
    /// Number of processes and threads.
    Pids,
}

impl Controller {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Cpu, Self::Memory, Self::Io, Self::Pids];

    /// The kernel's name of it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Cpu => "cpu",
            Self::Memory => "memory",
            Self::Io => "io",
            Self::Pids => "pids",
        }
    }
}

impl fmt::Display for Controller {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Which controllers cgroups beneath some cgroup have, and why they lack the others.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Usable {
    pub(super) refused: Vec<(&'static str, String)>,
}

impl Usable {
    /// Why `controller` cannot be used; `None` if it can.
    pub fn why_not(&self, controller: Controller) -> Option<&str> {
        let refused = self.refused.iter().find(|(name, _)| *name == controller.name());
        refused.map(|(_, why)| why.as_str())
    }

    /// Whether `controller` can be used.
    pub fn contains(&self, controller: Controller) -> bool {
        self.why_not(controller).is_none()
    }
}

/// Enables every [`Controller`] along `chain`, from the top down, for what is beneath its last
/// cgroup.
///
/// Nothing here fails: a controller that cannot be had matters only to a limit that needs it.
pub(super) fn enable(chain: &[&Dir]) -> Usable {
    enable_named(chain, &Controller::ALL.map(Controller::name))
}

/// [`enable`] for the controllers of these names.
fn enable_named(chain: &[&Dir], names: &[&'static str]) -> Usable {
    let mut wanted = names.to_vec();
    let mut usable = Usable::default();
    for dir in chain {
        if wanted.is_empty() {
            break;
        }
        let refused = enable_in(dir, &wanted);
        wanted.retain(|name| refused.iter().all(|(refused, _)| refused != name));
        usable.refused.extend(refused);
    }
    usable
}

/// Enables what it can of `wanted` for the children of `dir`; returns what it cannot.
fn enable_in(dir: &Dir, wanted: &[&'static str]) -> Vec<(&'static str, String)> {
    let available = words(dir, "cgroup.controllers");
    let before = words(dir, "cgroup.subtree_control");
    let mut refused = Vec::new();
    let mut tried = Vec::new();
    for &name in wanted.iter().filter(|name| !lists(&before, name)) {
        if lists(&available, name) {
            tried.push((name, dir.write("cgroup.subtree_control", &format!("+{name}"))));
        } else {
            refused.push((name, absent(dir, &available)));
        }
    }
    if !tried.is_empty() {
        let after = words(dir, "cgroup.subtree_control");
        tried.retain(|(name, _)| !lists(&after, name));
        refused.extend(tried.into_iter().map(|(name, result)| (name, refusal(dir, result.err()))));
    }
    refused
}

/// Whether `name` is one of `words`.
fn lists(words: &str, name: &str) -> bool {
    words.split(' ').any(|word| word == name)
}

/// A file with names between blanks; one that cannot be read names nothing.
fn words(dir: &Dir, file: &str) -> String {
    dir.read_text(file).unwrap_or_default()
}

/// Why a controller is not there to be enabled.
fn absent(dir: &Dir, available: &str) -> String {
    let available = if available.is_empty() { "no controllers" } else { available };
    format!(
        "{} offers only: {available}; a hybrid host keeps the others on cgroup v1",
        dir.path().display()
    )
}

/// Why a controller that is there could not be enabled.
fn refusal(dir: &Dir, errno: Option<Errno>) -> String {
    let dir = dir.path().display();
    match errno {
        // cgroup-v2.rst, "No Internal Process Constraint".
        Some(Errno::EBUSY) => {
            format!("{dir} has processes of its own, beneath which nothing can be enabled")
        }
        Some(errno) => format!("{dir}/cgroup.subtree_control: {}", errno.desc()),
        None => format!("{dir}/cgroup.subtree_control took it and does not show it"),
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::ops::Deref;
    use std::os::fd::OwnedFd;

    use nix::fcntl::{Flock, FlockArg};

    use super::*;
    use crate::cgroup::scratch::Scratch;

    /// A scratch base that has the one v2 controller which hybrid hosts keep. It is enabled at the
    /// root of the host while it lives, by one test at a time, and not left so.
    struct Hugetlb {
        scratch: Option<Scratch>,
        root: Dir,
        was_enabled: bool,
        _alone: Flock<OwnedFd>,
    }

    impl Hugetlb {
        fn new() -> Self {
            let scratch = Scratch::new();
            let root = scratch.dir().parent().expect("the scratch base is beneath the root");
            let again = OwnedFd::from(File::open(root.path()).unwrap());
            let lock = Flock::lock(again, FlockArg::LockExclusive).unwrap();
            let was_enabled = lists(&words(&root, "cgroup.subtree_control"), "hugetlb");
            let usable = enable_named(&[&root], &["hugetlb"]);
            assert_eq!(usable, Usable::default(), "this test needs the v2 hugetlb controller");
            Self { scratch: Some(scratch), root, was_enabled, _alone: lock }
        }
    }

    impl Deref for Hugetlb {
        type Target = Scratch;

        fn deref(&self) -> &Scratch {
            self.scratch.as_ref().expect("it is there until the drop")
        }
    }

    impl Drop for Hugetlb {
        fn drop(&mut self) {
            // What is in use beneath cannot be disabled above, so the base goes first.
            drop(self.scratch.take());
            if !self.was_enabled {
                let _ = self.root.write("cgroup.subtree_control", "-hugetlb");
            }
        }
    }

    #[test]
    fn a_controller_is_enabled_all_the_way_down_though_others_are_missing() {
        let scratch = Hugetlb::new();
        let child = scratch.dir().create("child").unwrap();

        let usable = enable_named(&[scratch.dir(), &child], &["nonesuch", "hugetlb", "neither"]);

        let names: Vec<_> = usable.refused.iter().map(|(name, _)| *name).collect();
        assert_eq!(names, ["nonesuch", "neither"]);
        assert_eq!(child.read_text("cgroup.subtree_control").unwrap(), "hugetlb");
        let leaf = child.create("leaf").unwrap();
        assert_eq!(leaf.read_text("cgroup.controllers").unwrap(), "hugetlb");
    }

    /// attack 58: enabled by an earlier run.
    #[test]
    fn what_is_enabled_already_is_well() {
        let scratch = Hugetlb::new();
        assert_eq!(enable_named(&[scratch.dir()], &["hugetlb"]), Usable::default());

        assert_eq!(enable_named(&[scratch.dir()], &["hugetlb"]), Usable::default());
    }

    #[test]
    fn a_cgroup_with_processes_of_its_own_is_named() {
        let scratch = Hugetlb::new();
        let child = scratch.dir().create("child").unwrap();
        let _inhabitant = scratch.inhabit(child.path(), "read line");

        let usable = enable_named(&[scratch.dir(), &child], &["hugetlb"]);

        let path = child.path().display();
        let why = format!("{path} has processes of its own, beneath which nothing can be enabled");
        assert_eq!(usable.refused, [("hugetlb", why)]);
    }

    #[test]
    fn what_is_missing_is_explained_by_what_there_is() {
        let scratch = Scratch::new();
        let child = scratch.dir().create("child").unwrap();

        let usable = enable_named(&[&child], &["nonesuch"]);

        let path = child.path().display();
        let why = format!(
            "{path} offers only: no controllers; a hybrid host keeps the others on cgroup v1"
        );
        assert_eq!(usable.refused, [("nonesuch", why)]);
    }
}
