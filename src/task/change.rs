//! A change of limits: what somebody asks for, and what comes of it. Pure.
//!
//! A change is resources of which some fields are there: those that change. `FIELD=VALUE` becomes the text of a task file with
//! nothing but these fields ([`source`]), so that it has the same rules, and the same errors.

use std::collections::BTreeMap;

use super::Resources;
use super::file::{Report, parse_resources};
use super::validate::Violation;
use crate::proto;

/// What the text that is made of a command line is called.
const NAME: &str = "limits";

/// Why a command line is no change of limits.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ChangeError {
    /// An argument assigns nothing.
    #[error("{0:?}: expected FIELD=VALUE, such as ram=256MB")]
    NotAssigned(String),
    /// An argument has no value.
    #[error("{0}= has no value; a field is changed, not taken back: max is no limit")]
    NoValue(String),
    /// What is assigned to is no name.
    #[error("{0:?} is no field: expected a name such as ram, io.weight or hugetlb[2MB]")]
    NoField(String),
    /// A value has more than one line.
    #[error("the value of {0} has a line break; expected YAML on one line")]
    LineBreak(String),
    /// A field, or its value, is wrong.
    #[error(transparent)]
    Field(#[from] Report),
}

/// Path of the limits of a task, or of one of its processes by index.
pub fn path(process: Option<u32>) -> String {
    match process {
        None => "resources".to_owned(),
        Some(index) => format!("processes[{index}].resources"),
    }
}

/// The change that `assignments` ask for: each is `FIELD=VALUE`, and the value is YAML as in a task file.
///
/// # Errors
///
/// [`ChangeError`].
pub fn parse(assignments: &[String]) -> Result<proto::Resources, ChangeError> {
    Ok(parse_resources(&source(assignments)?, NAME)?)
}

/// The text of a task file that has these fields of `resources`, a line for each argument.
fn source(assignments: &[String]) -> Result<String, ChangeError> {
    let mut mappings: BTreeMap<&str, String> = BTreeMap::new();
    let mut text = String::from("resources:\n");
    for assignment in assignments {
        let not_assigned = || ChangeError::NotAssigned(assignment.clone());
        let (field, value) = assignment.split_once('=').ok_or_else(not_assigned)?;
        if value.contains(['\n', '\r', '\u{85}', '\u{2028}', '\u{2029}']) {
            return Err(ChangeError::LineBreak(field.to_owned()));
        }
        if value.trim().is_empty() {
            return Err(ChangeError::NoValue(field.to_owned()));
        }
        match steps(field).ok_or_else(|| ChangeError::NoField(field.to_owned()))? {
            (name, None) => text += &format!("  {name}: {value}\n"),
            (name, Some(key)) => {
                *mappings.entry(name).or_default() += &format!("    {key}: {value}\n");
            }
        }
    }
    for (name, entries) in mappings {
        text += &format!("  {name}:\n{entries}");
    }
    Ok(text)
}

/// `ram` is a field; `io.weight` and `hugetlb[2MB]` are entries of one. `None` if it is none of them.
fn steps(field: &str) -> Option<(&str, Option<&str>)> {
    let is_word = |text: &str, more: &[char]| {
        let known = |c: char| c.is_ascii_alphanumeric() || c == '_' || more.contains(&c);
        !text.is_empty() && text.chars().all(known)
    };
    let (name, key) = match field.split_once(['.', '[']) {
        None => (field, None),
        Some((name, key)) => match field[name.len()..].starts_with('[') {
            true => (name, Some(key.strip_suffix(']')?)),
            false => (name, Some(key)),
        },
    };
    let known = is_word(name, &[]) && key.is_none_or(|key| is_word(key, &['.', '-']));
    known.then_some((name, key))
}

impl Resources {
    /// These resources after `change`: what is absent there stays. Ceilings of disks, page sizes and named files are changed one
    /// by one.
    ///
    /// # Errors
    ///
    /// The rules that the two break together.
    pub fn changed(&self, change: &Self) -> Result<Self, Vec<Violation>> {
        let mut io = self.io.clone();
        io.weight = change.io.weight.or(io.weight);
        for max in &change.io.max {
            match io.max.iter_mut().find(|known| known.target == max.target) {
                Some(known) => known.clone_from(max),
                None => io.max.push(max.clone()),
            }
        }
        let mut cpuset = self.cpuset.clone();
        cpuset.cpus = change.cpuset.cpus.clone().or(cpuset.cpus);
        cpuset.mems = change.cpuset.mems.clone().or(cpuset.mems);
        let changed = Self {
            cpu: change.cpu.or(self.cpu),
            cpu_limit: change.cpu_limit.or(self.cpu_limit),
            ram: change.ram.or(self.ram),
            memory_high: change.memory_high.or(self.memory_high),
            memory_low: change.memory_low.or(self.memory_low),
            memory_min: change.memory_min.or(self.memory_min),
            swap: change.swap.or(self.swap),
            oom_group: change.oom_group.or(self.oom_group),
            pids: change.pids.or(self.pids),
            io,
            cpuset,
            hugetlb: merged(&self.hugetlb, &change.hugetlb),
            cgroup: merged(&self.cgroup, &change.cgroup),
            disk: change.disk.or(self.disk),
            gpu: change.gpu.or(self.gpu),
        };
        Self::from_proto(&changed.to_proto(), "resources")
    }
}

fn merged<T: Clone>(old: &BTreeMap<String, T>, new: &BTreeMap<String, T>) -> BTreeMap<String, T> {
    old.iter().chain(new).map(|(key, value)| (key.clone(), value.clone())).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::task::resources::tests::arbitrary;

    fn change(assignments: &[&str]) -> Result<Resources, ChangeError> {
        let assignments: Vec<_> = assignments.iter().map(ToString::to_string).collect();
        Ok(Resources::from_proto(&parse(&assignments)?, "resources").unwrap())
    }

    #[test]
    fn values_are_those_of_a_task_file() {
        let changed = change(&[
            "ram=256MB",
            "cpu_limit={cpus: 1.5, period: 50ms}",
            "pids=max",
            "io.weight=200",
            "io.max=[{path: /, rbps: 1MB}]",
            "hugetlb[2MB]=4MiB",
            "cgroup[memory.zswap.max]=0",
        ])
        .unwrap();

        assert_eq!((changed.ram, changed.pids), (Some(256 << 20), Some(u64::MAX)));
        assert_eq!(changed.cpu_limit.unwrap().quota(), Some(75_000));
        assert_eq!((changed.io.weight, changed.io.max.len()), (Some(200), 1));
        assert_eq!(changed.hugetlb["2MB"], 4 << 20);
        assert_eq!(changed.cgroup["memory.zswap.max"], "0");
        assert_eq!(changed.memory_high, None);
    }

    #[test]
    fn a_wrong_value_is_told_as_of_a_task_file() {
        let error = change(&["ram=12 apples"]).unwrap_err().to_string();
        assert!(error.contains("resources.ram") && error.contains("`12 apples`"), "{error}");

        let error = change(&["rma=1GB"]).unwrap_err().to_string();
        assert!(error.contains("unknown field `rma`") && error.contains("`ram`"), "{error}");

        let error = change(&["ram=1MB", "memory_high=2MB"]).unwrap_err().to_string();
        assert!(error.contains("resources.memory_high"), "{error}");

        let error = change(&["ram=1MB", "ram=2MB"]).unwrap_err().to_string();
        assert!(error.contains("ram"), "{error}");
    }

    #[test]
    fn what_assigns_nothing_says_what_was_expected() {
        for (argument, message) in [
            ("ram", "\"ram\": expected FIELD=VALUE, such as ram=256MB"),
            ("ram=", "ram= has no value; a field is changed, not taken back: max is no limit"),
            ("=1", "\"\" is no field: expected a name such as ram, io.weight or hugetlb[2MB]"),
            (
                "a: b=1",
                "\"a: b\" is no field: expected a name such as ram, io.weight or hugetlb[2MB]",
            ),
            (
                "hugetlb[2MB=1",
                "\"hugetlb[2MB\" is no field: expected a name such as ram, io.weight or hugetlb[2MB]",
            ),
            ("ram=1\n  cpu: 3", "the value of ram has a line break; expected YAML on one line"),
        ] {
            assert_eq!(change(&[argument]).unwrap_err().to_string(), message);
        }
    }

    #[test]
    fn rules_hold_of_old_and_new_together() {
        let old = change(&["ram=100MB", "memory_high=80MB", "hugetlb[2MB]=2MiB"]).unwrap();

        let broken = old.changed(&change(&["ram=50MB"]).unwrap()).unwrap_err();
        let changed = old.changed(&change(&["ram=max", "hugetlb[1GB]=1GiB"]).unwrap()).unwrap();

        assert_eq!(broken[0].field, "resources.memory_high_bytes");
        assert_eq!((changed.ram, changed.memory_high), (Some(u64::MAX), Some(80 << 20)));
        assert_eq!(changed.hugetlb.len(), 2);
    }

    proptest! {
        /// A change that is made twice is made once; one of nothing changes nothing.
        #[test]
        fn a_change_is_made_once(old in arbitrary(), change in arbitrary()) {
            prop_assert_eq!(old.changed(&Resources::default()), Ok(old.clone()));
            if let Ok(changed) = old.changed(&change) {
                prop_assert_eq!(changed.changed(&change), Ok(changed.clone()));
            }
        }
    }
}
