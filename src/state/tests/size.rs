//! What planning costs.

use super::script::{exits, process, sleeps, task};
use super::sim::Sim;
use crate::state::{Phase, plan};

/// S10: 40 layers of 50, each layer after the last.
#[test]
fn a_dag_of_two_thousand_processes_takes_a_turn_for_each_event_and_no_more() {
    let (layers, width) = (40, 50);
    let count = layers * width;
    let processes = (0..count).map(|n| process(&format!("p{n}")).runs([exits(0).after(n % 7)]));
    let mut layered = task(processes);
    for from in 0..(layers - 1) * width {
        for to in 0..width {
            let next = (from / width + 1) * width + to;
            layered = layered.edge(from as u32, next as u32);
        }
    }

    let mut sim = Sim::new(layered);
    sim.checks_plans = false;
    sim.run_to_end();

    assert_eq!(sim.phase(), Phase::Success);
    // An opening for each process, and the four phases.
    assert_eq!(sim.effects, count as usize + 4);
    // FORKED, RUNNING and the end of each process, at most one turn each; and one at the start.
    assert!(sim.turns <= 3 * count as usize + 1, "{} turns", sim.turns);
    // Three more records for each process, and that of the leader.
    assert_eq!(sim.log.len(), sim.effects + 3 * count as usize + 1);
}

/// An answer names what is to be done now, not all that might be.
#[test]
fn a_full_task_is_asked_for_nothing() {
    let mut processes = vec![process("busy").runs([sleeps()])];
    processes.extend((0..10_000).map(|n| process(&format!("p{n}"))));
    let mut sim = Sim::new(task(processes).max_concurrency(1));
    sim.checks_plans = false;

    sim.run_for(0);

    assert_eq!((sim.effects, plan(&sim.state, u64::MAX)), (2, vec![]));
}
