//! What we say of a cgroup against what cgroups-rs reads of it, which shares no code with us.
//!
//! Its own search finds no v2 on a hybrid host: it looks at `/sys/fs/cgroup` alone. So it is told
//! where the hierarchy is, and then reads the files by itself.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use cgroups_rs::cpu::CpuController;
use cgroups_rs::freezer::FreezerController;
use cgroups_rs::{Cgroup as Theirs, Hierarchy, Subsystem};

use super::scratch::{PATIENCE, Scratch, mount_point};
use super::{Cgroup, usage};

/// The v2 hierarchy, wherever it is mounted.
#[derive(Debug, Clone)]
struct Mounted(PathBuf);

impl Hierarchy for Mounted {
    fn subsystems(&self) -> Vec<Subsystem> {
        vec![
            Subsystem::Cpu(CpuController::new(self.root(), true)),
            Subsystem::Freezer(FreezerController::new(self.root(), true)),
        ]
    }

    fn root(&self) -> PathBuf {
        self.0.clone()
    }

    fn root_control_group(&self) -> Theirs {
        Theirs::load(Box::new(self.clone()), "")
    }

    fn parent_control_group(&self, path: &str) -> Theirs {
        Theirs::load(Box::new(self.clone()), PathBuf::from(path).parent().unwrap())
    }

    fn v2(&self) -> bool {
        true
    }
}

fn theirs(cgroup: &Cgroup) -> Theirs {
    let mount = mount_point();
    let path = cgroup.path().strip_prefix(&mount).unwrap().to_owned();
    Theirs::load(Box::new(Mounted(mount)), path)
}

#[test]
fn both_see_the_same_processes() {
    let scratch = Scratch::new();
    let leaf = scratch.leaf();
    let mut inhabitant =
        scratch.inhabit(leaf.path(), "for n in 1 2 3; do sleep 600 & done; echo ready; wait");
    assert_eq!(inhabitant.line(), "ready");

    let ours: Vec<u64> =
        leaf.pids().unwrap().iter().map(|pid| pid.as_raw().try_into().unwrap()).collect();

    let theirs: Vec<u64> = theirs(&leaf).procs().iter().map(|pid| pid.pid).collect();
    assert_eq!(ours, theirs);
    assert_eq!(ours.len(), 4);
}

#[test]
fn both_read_the_same_cpu_time() {
    let scratch = Scratch::new();
    let leaf = scratch.leaf();
    let spin = "n=0; while [ $n -lt 20000 ]; do n=$((n+1)); done; exit";
    scratch.inhabit(leaf.path(), spin).child.wait().unwrap();

    let ours = Duration::try_from(leaf.usage().cpu_time.unwrap()).unwrap();

    let theirs = theirs(&leaf);
    let cpu: &CpuController = theirs.controller_of().unwrap();
    let theirs = usage::keyed(cpu.cpu().stat.as_bytes(), "usage_usec").unwrap();
    assert_eq!(ours, Duration::from_micros(theirs));
    assert!(!ours.is_zero());
}

#[test]
fn what_they_kill_we_see_empty() {
    let scratch = Scratch::new();
    let leaf = scratch.leaf();
    let _inhabitant = scratch.inhabit(leaf.path(), "read line");

    theirs(&leaf).kill().unwrap();

    assert!(leaf.wait_empty(Instant::now() + PATIENCE).unwrap());
    assert_eq!(theirs(&leaf).procs(), []);
}
