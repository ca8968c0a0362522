//! The least that must work before anything else is worth a look.

use std::fs;

#[test]
fn the_controllers_that_dewar_uses_are_on_v2() {
    let controllers = fs::read_to_string("/sys/fs/cgroup/cgroup.controllers").unwrap();

    for controller in ["cpu", "io", "memory", "pids", "cpuset", "hugetlb"] {
        assert!(controllers.split_whitespace().any(|name| name == controller), "{controllers}");
    }
}
