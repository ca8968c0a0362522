//! Controllers: which of them tasks can have, and why not the others.
//!
//! `cgroup.subtree_control` takes all of a write or nothing of it, so what is not taken together is
//! enabled one at a time, and what counts then is what is read back. That also forgives whatever an
//! earlier run or another program left enabled.

use std::fmt;

use nix::errno::Errno;

use super::dir::Dir;

/// A controller that dewar has a use for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Controller {
    /// Shares of CPU time. (CPU time is accounted for without it.)
    Cpu,
    /// Memory limits, peak and OOM kills.
    Memory,
    /// Bytes read and written.
    Io,
    /// Number of processes and threads.
    Pids,
    /// CPUs and memory nodes that may be used at all.
    Cpuset,
    /// Huge pages.
    Hugetlb,
    /// Resources of RDMA devices.
    Rdma,
    /// Counted resources of drivers, such as encrypted memory.
    Misc,
    /// Memory of devices.
    Dmem,
}

impl Controller {
    /// Those that every task gets: they account for what it uses. The others cost each process that is started or moved, and are
    /// enabled where a limit asks for them.
    pub const ALWAYS: [Self; 4] = [Self::Cpu, Self::Memory, Self::Io, Self::Pids];

    /// All of them.
    pub const ALL: [Self; 9] = [
        Self::Cpu,
        Self::Memory,
        Self::Io,
        Self::Pids,
        Self::Cpuset,
        Self::Hugetlb,
        Self::Rdma,
        Self::Misc,
        Self::Dmem,
    ];

    /// The kernel's name of it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Cpu => "cpu",
            Self::Memory => "memory",
            Self::Io => "io",
            Self::Pids => "pids",
            Self::Cpuset => "cpuset",
            Self::Hugetlb => "hugetlb",
            Self::Rdma => "rdma",
            Self::Misc => "misc",
            Self::Dmem => "dmem",
        }
    }

    /// The controller that `file` belongs to.
    pub(super) fn of(file: &str) -> Option<Self> {
        let (name, _) = file.split_once('.')?;
        Self::ALL.into_iter().find(|controller| controller.name() == name)
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

/// Enables `controllers` along `chain`, from the top down, for what is beneath its last cgroup.
///
/// Nothing here fails: a controller that cannot be had matters only to a limit that needs it.
pub(super) fn enable(chain: &[&Dir], controllers: &[Controller]) -> Usable {
    let names: Vec<_> = controllers.iter().map(|controller| controller.name()).collect();
    enable_named(chain, &names)
}

/// [`enable`] for the controllers of these names.
fn enable_named(chain: &[&Dir], names: &[&'static str]) -> Usable {
    let mut wanted = names.to_vec();
    // What the last one passes on, those above it pass on too: that is how it has it.
    if let Some(last) = chain.last() {
        let passed_on = words(last, "cgroup.subtree_control");
        wanted.retain(|name| !lists(&passed_on, name));
    }
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
    let (there, missing): (Vec<_>, Vec<_>) =
        wanted.iter().copied().partition(|name| lists(&available, name));
    let mut refused: Vec<_> =
        missing.into_iter().map(|name| (name, absent(dir, &available))).collect();
    if there.is_empty() || write_all(dir, &there).is_ok() {
        return refused;
    }
    let tried = there.into_iter().map(|name| (name, write_all(dir, &[name]).err()));
    let tried: Vec<_> = tried.collect();
    let after = words(dir, "cgroup.subtree_control");
    let failed = tried.into_iter().filter(|(name, _)| !lists(&after, name));
    refused.extend(failed.map(|(name, errno)| (name, refusal(dir, errno))));
    refused
}

/// Enables all of `names`, or none of them; what is enabled already is well. A kernel that says that it did has done it.
fn write_all(dir: &Dir, names: &[&str]) -> Result<(), Errno> {
    let words: Vec<_> = names.iter().map(|name| format!("+{name}")).collect();
    dir.write("cgroup.subtree_control", &words.join(" "))
}

/// Whether `name` is one of `words`.
pub(super) fn lists(words: &str, name: &str) -> bool {
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
    use crate::cgroup::Applied;
    use crate::cgroup::scratch::Scratch;
    use crate::task::{Resources, TaskId, TaskSpec};

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

    /// A controller that only a task with such a limit gets: by the trial, and beneath the task for its runs.
    #[test]
    fn a_limit_of_huge_pages_enables_their_controller_and_is_rounded_to_pages() {
        let scratch = Hugetlb::new();
        let asked = |bytes| Resources {
            hugetlb: [("2MB".to_owned(), bytes)].into(),
            ..Resources::default()
        };
        let mut spec = bare();
        spec.resources = Some(asked(8 << 20));
        spec.processes[0].resources = Some(Box::new(asked((4 << 20) + 1)));

        let tried = scratch.base().try_out(&spec).unwrap();
        let id = TaskId::new("huge").unwrap();
        let (task, applied) = scratch.base().task_for(&id, &spec).unwrap();
        let leaf = task.leaf(&spec.processes[0].name, 0).unwrap();
        let of_run = leaf.apply(spec.processes[0].resources.as_ref().unwrap(), "run").unwrap();

        let text =
            "processes[0].resources.hugetlb[2MB]: 4194304 is in force, 4194305 was asked for";
        assert_eq!(tried.rounded.iter().map(ToString::to_string).collect::<Vec<_>>(), [text]);
        assert_eq!(applied, Applied::default());
        assert_eq!(of_run.rounded.len(), 1);
        let held = |dir: &Dir| dir.read_text("hugetlb.2MB.max").unwrap();
        assert_eq!([held(task.dir()), held(leaf.dir())], ["8388608", "4194304"]);
    }

    /// A task of one process.
    fn bare() -> TaskSpec {
        let process = crate::proto::Process { name: "p".to_owned(), ..Default::default() };
        let name = "t".to_owned();
        let task = crate::proto::Task { name, processes: vec![process], ..Default::default() };
        TaskSpec::from_proto(&task).unwrap()
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
