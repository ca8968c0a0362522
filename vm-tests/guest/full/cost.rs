//! What accounting costs where there is all of it to account for: ratios within this machine, since it is a slow one.

use std::path::Path;
use std::time::{Duration, Instant};

use dewar::cgroup::{Extent, Sampler, TaskCgroup};
use dewar::task::TaskId;

use crate::support::{Scene, p, task};

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort_unstable();
    times[times.len() / 2]
}

/// What a sample of a task with so many processes costs.
fn cost(processes: u32) -> Duration {
    let scene = Scene::new();
    let (told, hold) = (scene.gate("told"), scene.gate("hold"));
    let forks = format!("for n in $(seq {processes}); do sleep 600 & done");
    let cmdline = format!("{forks}; {}; {}", told.tell(), hold.hold());
    let running = scene.spawn(&task([p("a", cmdline)]));
    told.wait();
    let id = TaskId::new(scene.id()).unwrap();
    let path = scene.cgroup().unwrap();
    let cgroup = TaskCgroup::open_existing(Path::new(&path), &id).unwrap().unwrap();
    let mut sampler = Sampler::of_task(&cgroup).unwrap();
    sampler.sample(Extent::All).unwrap().unwrap();

    let times = (0..100).map(|_| {
        let start = Instant::now();
        sampler.sample(Extent::All).unwrap().unwrap();
        start.elapsed()
    });

    let median = median(times.collect());
    hold.open();
    running.finish().assert("SUCCESS", &[("a", "S")]);
    median
}

#[test]
fn a_sample_costs_the_same_for_few_processes_and_for_many() {
    let (few, many) = (cost(5), cost(150));

    println!("5 processes: {few:?}, 150: {many:?}");
    assert!(many < few * 3, "{few:?} for 5 processes, {many:?} for 150");
}
