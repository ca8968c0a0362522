//! The guest as tests see it, and an independent reader of its cgroups.

use std::fs;
use std::path::Path;

use cgroups_rs::hierarchies::V2;
use cgroups_rs::{Cgroup, Controller};

/// Where cgroup v2 is mounted on the boots that have all of it.
pub(crate) const CGROUP2: &str = "/sys/fs/cgroup";

/// A file of a cgroup, without the end of its line.
#[track_caller]
pub(crate) fn read(cgroup: &Path, file: &str) -> String {
    let path = cgroup.join(file);
    let text = fs::read_to_string(&path);
    let text = text.unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    text.trim_end().to_owned()
}

/// The number behind a key of a flat keyed file, such as `memory.events`.
#[track_caller]
pub(crate) fn keyed(cgroup: &Path, file: &str, key: &str) -> u64 {
    let text = read(cgroup, file);
    let value = text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(' '));
    value.unwrap_or_else(|| panic!("no {key} in {file}: {text}")).parse().unwrap()
}

/// A cgroup as cgroups-rs reads it, which shares no code with dewar.
#[track_caller]
pub(crate) fn theirs(cgroup: &Path) -> Cgroup {
    let path = cgroup.strip_prefix(CGROUP2).unwrap();
    Cgroup::load(Box::new(V2::new()), path)
}

/// Its controller of one kind, such as [`cgroups_rs::memory::MemController`].
#[track_caller]
pub(crate) fn controller<'a, C>(cgroup: &'a Cgroup) -> &'a C
where
    &'a C: From<&'a cgroups_rs::Subsystem>,
    C: Controller + cgroups_rs::ControllIdentifier,
{
    cgroup.controller_of().expect("a cgroup of v2 has this controller")
}
