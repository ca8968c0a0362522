//! What accounting costs where there is all of it to account for: ratios within this machine, since it is a slow one.

use std::path::Path;
use std::time::{Duration, Instant};

use dewar::cgroup::{Extent, Sampler, TaskCgroup};
use dewar::task::TaskId;

use crate::support::{Scene, p, task, wait_until};

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

/// For a history a file is passed over while a task stands still, and for a moment while it does not: what is kept is soon what there is.
#[test]
fn what_a_history_keeps_of_memory_is_what_there_is() {
    let scene = Scene::new();
    let (small, grow) = (scene.gate("small"), scene.gate("grow"));
    let (large, hold) = (scene.gate("large"), scene.gate("hold"));
    let takes = "x=$(head -c 8000000 /dev/zero | tr '\\0' x)";
    let cmdline =
        format!("{}; {}; {takes}; {}; {}", small.tell(), grow.hold(), large.tell(), hold.hold());
    let running = scene.spawn(&task([p("a", cmdline)]));
    let id = TaskId::new(scene.id()).unwrap();
    small.wait();
    let path = scene.cgroup().unwrap();
    let cgroup = TaskCgroup::open_existing(Path::new(&path), &id).unwrap().unwrap();
    let [mut kept, mut all] = [(); 2].map(|()| Sampler::of_task(&cgroup).unwrap());
    let parts = |sampler: &mut Sampler, extent| {
        let memory = sampler.sample(extent).unwrap().unwrap().memory.unwrap();
        [memory.anon_bytes, memory.file_bytes, memory.working_set_bytes].map(Option::unwrap)
    };

    let before = [(); 3].map(|()| parts(&mut kept, Extent::Kept));
    grow.open();
    large.wait();
    let mut after = before[2];
    wait_until("what it has taken is not seen", || {
        after = parts(&mut kept, Extent::Kept);
        after[0] > before[2][0] + (7 << 20)
    });
    let whole = parts(&mut all, Extent::All);

    // The kernel counts in batches.
    let is_near = |(a, b): (&u64, &u64)| a.abs_diff(*b) < 1 << 20;
    assert!(after.iter().zip(&whole).all(is_near), "{after:?} {whole:?}");
    hold.open();
    running.finish().assert("SUCCESS", &[("a", "S")]);
}
