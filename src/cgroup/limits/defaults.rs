//! What is limited without being asked for.

use std::fs;

use super::super::CgroupError;
use super::super::dir::Dir;
use super::write_if_there;
use crate::task::Resources;

/// Most cgroups that a run may make in its leaf. Each costs the kernel some ten to some hundred KiB.
const CGROUPS_MAX: u32 = 1000;

/// How deep they may be nested in a task. A dewar that a run starts needs three levels, a container runtime a few more.
const DEPTH_MAX: u32 = 64;

/// Share of all processes that there may be which one task gets: what systemd gives a unit (`DefaultTasksMax=15%`).
const PIDS_PERCENT: u64 = 15;

/// How far up a limit of processes is looked for. No hierarchy in use is as deep.
const LEVELS_MAX: usize = 64;

/// attack 22: bounds the processes of the task in `dir`, so that a fork bomb leaves room for others. A task may ask for more.
pub(in crate::cgroup) fn bound_pids(dir: &Dir) -> Result<(), CgroupError> {
    if !dir.has("pids.max") {
        return Ok(());
    }
    let room = room_for_pids(dir);
    room.map_or(Ok(()), |room| write_if_there(dir, "pids.max", &share_of(room).to_string()))
}

/// Whether a task that asks for `resources` bounds its processes itself, and no default is to be found out.
pub(in crate::cgroup) fn bounds_pids(resources: &Resources) -> bool {
    resources.pids.is_some() || resources.cgroup.contains_key("pids.max")
}

/// attack 26: bounds the cgroups that a run makes in its leaf `dir`.
pub(in crate::cgroup) fn bound_cgroups(dir: &Dir) -> Result<(), CgroupError> {
    write_if_there(dir, "cgroup.max.descendants", &CGROUPS_MAX.to_string())
}

/// attack 26: bounds the depth of what is in the task in `dir`.
pub(in crate::cgroup) fn bound_depth(dir: &Dir) -> Result<(), CgroupError> {
    write_if_there(dir, "cgroup.max.depth", &DEPTH_MAX.to_string())
}

/// How many processes there may be at all: by the kernel, and by what is around `dir`.
fn room_for_pids(dir: &Dir) -> Option<u64> {
    let number = |text: String| text.trim_end().parse::<u64>().ok();
    let kernel = ["/proc/sys/kernel/pid_max", "/proc/sys/kernel/threads-max"];
    let kernel = kernel.iter().filter_map(|path| fs::read_to_string(path).ok());
    // The root of the hierarchy has no such file, and what is above a mount is no cgroup.
    let around =
        (1..LEVELS_MAX).map_while(|up| dir.read_text(&("../".repeat(up) + "pids.max")).ok());
    kernel.chain(around).filter_map(number).min()
}

fn share_of(room: u64) -> u64 {
    (u128::from(room) * u128::from(PIDS_PERCENT) / 100).max(1) as u64
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cgroup::scratch::Scratch;
    use crate::task::ProcessName;

    #[test]
    fn a_task_gets_fifteen_percent_and_at_least_one() {
        let cases = [(32_768, 4915), (4_194_304, 629_145), (100, 15), (1, 1), (0, 1)];
        for (room, share) in cases {
            assert_eq!(share_of(room), share, "{room}");
        }
        assert_eq!(share_of(u64::MAX), u64::MAX / 20 * 3 + 2);
    }

    #[test]
    fn a_task_that_bounds_its_processes_itself_gets_no_default() {
        let raw = [("pids.max".to_owned(), "7".to_owned())].into();

        assert!(bounds_pids(&Resources { pids: Some(7), ..Resources::default() }));
        assert!(bounds_pids(&Resources { cgroup: raw, ..Resources::default() }));
        assert!(!bounds_pids(&Resources { ram: Some(7), ..Resources::default() }));
    }

    #[test]
    fn there_is_no_more_room_than_the_kernel_has_numbers() {
        let scratch = Scratch::new();
        let most: u64 =
            fs::read_to_string("/proc/sys/kernel/pid_max").unwrap().trim().parse().unwrap();

        let room = room_for_pids(scratch.dir()).unwrap();

        assert!((1..=most).contains(&room), "{room} of {most}");
    }

    /// attack 26: 10⁵ child groups, depth 10³.
    #[test]
    fn cgroups_in_a_leaf_are_bounded_in_number_and_depth() {
        let scratch = Scratch::new();
        let leaf = scratch.task("task").leaf(&ProcessName::new("p").unwrap(), 0).unwrap();
        let mut deep = leaf.dir().try_clone().unwrap();

        let depth =
            (1..DEPTH_MAX + 10).take_while(|_| deep.create("d").map(|inner| deep = inner).is_ok());
        let depth = depth.count() as u32;
        let wide = (0..CGROUPS_MAX).take_while(|n| leaf.dir().create(&format!("w{n}")).is_ok());
        let wide = wide.count() as u32;

        assert_eq!(depth, DEPTH_MAX - 1);
        assert_eq!(wide, CGROUPS_MAX - depth);
    }
}
