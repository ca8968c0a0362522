//! Limits: written, read back, and named where they cannot be had.
//!
//! | resource | file | value |
//! |---|---|---|
//! | `ram` | `memory.max` | bytes, which the kernel rounds down to whole pages |
//! | `cpu` | `cpu.weight` | 100 for each CPU, at least 1, at most 10000: a share of what is contended for, not a ceiling |
//! | `disk` | none | refused: no controller of cgroup v2 bounds disk space |
//! | `gpu` | none | refused: no controller of cgroup v2 hands out devices |

use nix::errno::Errno;

use super::controllers::{Controller, Usable};
use super::dir::Dir;
use super::{Cgroup, CgroupError};
use crate::task::Resources;

/// The kernel's bounds of `cpu.weight` (cgroup-v2.rst, "CPU Interface Files").
const WEIGHT_MIN: f64 = 1.0;
const WEIGHT_MAX: f64 = 10_000.0;

/// Weight of one CPU: the kernel's default weight of a cgroup.
const WEIGHT_OF_ONE_CPU: f64 = 100.0;

/// Most bytes between a limit and the kernel's rounding of it: pages are of at most 64 KiB.
const PAGE_MAX: u64 = 64 * 1024;

/// A limit that was asked for and that this host cannot enforce.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{field} cannot be enforced: it needs {needs}; {why}")]
pub struct Unenforceable {
    /// Path of the field, such as `resources.ram`.
    pub field: String,
    /// What would have to be there, such as `the memory controller`.
    pub needs: String,
    /// Why it is not.
    pub why: String,
}

/// Names each limit of `resources`, found at `path` in the task, that `usable` cannot enforce.
pub fn check(resources: &Resources, path: &str, usable: &Usable) -> Vec<Unenforceable> {
    let lacks = |controller| usable.why_not(controller).map(str::to_owned);
    unenforceable(resources, path, lacks(Controller::Memory), lacks(Controller::Cpu))
}

/// Names what is asked for and cannot be had: `memory` and `cpu` say why they cannot.
fn unenforceable(
    resources: &Resources,
    path: &str,
    memory: Option<String>,
    cpu: Option<String>,
) -> Vec<Unenforceable> {
    let by = |controller| format!("the {controller} controller");
    let no_controller = Some("cgroup v2 has no controller for it".to_owned());
    let rows = [
        ("cpu", resources.cpu.is_some(), by(Controller::Cpu), cpu),
        ("ram", resources.ram.is_some(), by(Controller::Memory), memory),
        ("disk", resources.disk.is_some(), "disk quotas".to_owned(), no_controller.clone()),
        (
            "gpu",
            resources.gpu.is_some_and(|gpus| gpus > 0),
            "device plugins".to_owned(),
            no_controller,
        ),
    ];
    rows.into_iter()
        .filter(|(_, asked, ..)| *asked)
        .filter_map(|(name, _, needs, why)| {
            Some(Unenforceable { field: format!("{path}.{name}"), needs, why: why? })
        })
        .collect()
}

impl Cgroup {
    /// Enforces `resources`, found at `path` in the task, on all that is in this cgroup; returns what
    /// it could not enforce, as [`check`] would have said.
    ///
    /// # Errors
    ///
    /// [`CgroupError::NotTaken`] if the kernel holds another value than it was given;
    /// [`CgroupError::Sys`].
    pub fn apply(
        &self,
        resources: &Resources,
        path: &str,
    ) -> Result<Vec<Unenforceable>, CgroupError> {
        let absent = |file: &str| (!self.dir().has(file)).then(|| gone(self.dir(), file));
        let memory = absent("memory.max");
        let cpu = absent("cpu.weight");
        if let (Some(ram), None) = (resources.ram, &memory) {
            put(self.dir(), "memory.max", &ram.to_string(), |found| holds_bytes(found, ram))?;
        }
        if let (Some(cpus), None) = (resources.cpu, &cpu) {
            let weight = weight(cpus).to_string();
            put(self.dir(), "cpu.weight", &weight, |found| found == weight)?;
        }
        Ok(unenforceable(resources, path, memory, cpu))
    }

    /// Makes the kernel kill all of this cgroup where it kills one process for want of memory: half
    /// of a run that goes on is worse than its end. Without the memory controller there is nothing
    /// to do.
    pub(super) fn die_whole(&self) -> Result<(), CgroupError> {
        if !self.dir().has("memory.oom.group") {
            return Ok(());
        }
        put(self.dir(), "memory.oom.group", "1", |found| found == "1")
    }
}

/// Writes `value` and makes sure that the file holds it.
fn put(
    dir: &Dir,
    file: &str,
    value: &str,
    holds: impl Fn(&str) -> bool,
) -> Result<(), CgroupError> {
    dir.write(file, value).map_err(|errno| dir.error("write", file, errno))?;
    let found = dir.read_text(file).map_err(|errno| dir.error("read", file, errno))?;
    if holds(&found) {
        return Ok(());
    }
    Err(CgroupError::NotTaken { path: dir.path().join(file), asked: value.to_owned(), found })
}

/// Why a file of a controller is not there.
fn gone(dir: &Dir, file: &str) -> String {
    format!("{} has no {file}: {}", dir.path().display(), Errno::ENOENT.desc())
}

/// Weight of `cpus` CPUs. Whatever is not a positive number weighs least.
fn weight(cpus: f64) -> u32 {
    // In range by the clamp, and NaN becomes 0, which `max` lifts.
    ((cpus * WEIGHT_OF_ONE_CPU).round().clamp(WEIGHT_MIN, WEIGHT_MAX) as u32).max(1)
}

/// Whether a memory file holds `asked` bytes, rounded down to pages. More than the kernel counts to
/// (`PAGE_COUNTER_MAX`, LONG_MAX bytes) becomes `max`.
fn holds_bytes(found: &str, asked: u64) -> bool {
    if found == "max" {
        return asked >= i64::MAX as u64 - PAGE_MAX;
    }
    found.parse::<u64>().is_ok_and(|found| found <= asked && asked - found < PAGE_MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cgroup::scratch::Scratch;

    fn all() -> Resources {
        Resources {
            cpu: Some(1.5),
            ram: Some(1 << 20),
            disk: Some(1 << 30),
            gpu: Some(1),
            ..Resources::default()
        }
    }

    fn without(refused: &[Controller]) -> Usable {
        Usable {
            refused: refused.iter().map(|c| (c.name(), "it is elsewhere".to_owned())).collect(),
        }
    }

    fn fields(found: &[Unenforceable]) -> Vec<&str> {
        found.iter().map(|limit| limit.field.as_str()).collect()
    }

    /// attack 58, S42: refused by name.
    #[test]
    fn a_limit_without_its_controller_is_named_with_the_controller() {
        let ram = Resources { ram: Some(1 << 20), ..Resources::default() };

        let found = check(&ram, "resources", &without(&[Controller::Memory]));

        let text =
            "resources.ram cannot be enforced: it needs the memory controller; it is elsewhere";
        assert_eq!(found.iter().map(ToString::to_string).collect::<Vec<_>>(), [text]);
    }

    #[test]
    fn disk_and_gpu_are_never_enforced_and_always_named() {
        let found = check(&all(), "processes[2].resources", &without(&[]));

        assert_eq!(fields(&found), ["processes[2].resources.disk", "processes[2].resources.gpu"]);
    }

    #[test]
    fn a_missing_controller_that_no_limit_needs_is_no_matter() {
        let found = check(&Resources::default(), "resources", &without(&Controller::ALL));

        assert_eq!(found, []);
    }

    #[test]
    fn no_gpus_are_no_limit() {
        let none = Resources { gpu: Some(0), ..Resources::default() };

        assert_eq!(check(&none, "resources", &without(&[])), []);
    }

    #[test]
    fn one_cpu_weighs_what_the_kernel_gives_by_default() {
        let cases = [(1.0, 100), (0.5, 50), (1.5, 150), (0.001, 1), (0.0, 1), (100.0, 10_000)];
        for (cpus, expected) in cases {
            assert_eq!(weight(cpus), expected, "{cpus}");
        }
    }

    #[test]
    fn no_number_of_cpus_leaves_the_range() {
        let odd = [-1.0, f64::NAN, f64::INFINITY, f64::NEG_INFINITY, f64::MAX, f64::MIN_POSITIVE];
        for cpus in odd {
            assert!((1..=10_000).contains(&weight(cpus)), "{cpus}");
        }
    }

    #[test]
    fn rounding_down_to_pages_is_accepted_and_nothing_else() {
        assert!(holds_bytes("4096", 4096));
        assert!(holds_bytes("4096", 5000));
        assert!(holds_bytes("max", u64::MAX));
        assert!(!holds_bytes("8192", 5000));
        assert!(!holds_bytes("0", 1 << 20));
        assert!(!holds_bytes("max", 1 << 40));
        assert!(!holds_bytes("", 4096));
    }

    #[test]
    fn a_value_is_read_back_and_another_is_reported() {
        let scratch = Scratch::new();
        let file = scratch.dir().path().join("cgroup.max.depth");

        put(scratch.dir(), "cgroup.max.depth", "7", |found| found == "7").unwrap();
        let error = put(scratch.dir(), "cgroup.max.depth", "8", |found| found == "9").unwrap_err();

        assert_eq!(
            error.to_string(),
            format!("{} holds \"8\" after \"8\" was written to it", file.display())
        );
    }

    /// S42: what `check` refuses in advance, `apply` does not drop either.
    #[test]
    fn check_and_apply_agree_on_the_real_host() {
        let scratch = Scratch::new();
        let task = scratch.task("limited");

        let in_advance = check(&all(), "resources", &scratch.base().enable_controllers());
        let applied = task.apply(&all(), "resources").unwrap();

        assert_eq!(fields(&in_advance), fields(&applied));
        let v2 = scratch.base().available_controllers().unwrap();
        let has = |name: &str| v2.iter().any(|controller| controller == name);
        assert_eq!(fields(&applied).contains(&"resources.ram"), !has("memory"));
        assert_eq!(fields(&applied).contains(&"resources.cpu"), !has("cpu"));
    }
}
