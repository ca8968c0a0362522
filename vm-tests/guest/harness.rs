//! Tests that must not pass, but for one: the driver (`vm-tests/src/harness.rs`) sees whether they are found out.

use std::fs;
use std::process::{Command, abort};

use nix::mount::{MsFlags, mount};

#[test]
fn fails() {
    panic!("on purpose");
}

#[test]
fn aborts() {
    abort();
}

#[test]
fn passes() {}

/// One of each kind that the leak gate knows.
#[test]
#[allow(clippy::zombie_processes, reason = "that is what it is for")]
fn leaves_everything_behind() {
    // It never takes leave of its child, whose end it does not notice; both outlive this test.
    Command::new("bash").args(["-c", "sleep 0.01 & exec sleep 600"]).spawn().unwrap();
    fs::create_dir("/sys/fs/cgroup/left").unwrap();
    fs::write("/tmp/left", "").unwrap();
    fs::create_dir("/run/left").unwrap();
    mount(Some("left"), "/mnt", Some("tmpfs"), MsFlags::empty(), None::<&str>).unwrap();
}

#[test]
fn hangs() {
    Command::new("sleep").arg("601").status().unwrap();
}

#[test]
fn panics_the_kernel() {
    fs::write("/proc/sysrq-trigger", "c").unwrap();
}
