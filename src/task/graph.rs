//! The order of processes as a graph: built from edges, proved free of cycles, cut into layers.
//!
//! Everything here is linear in processes and edges, and nothing recurses, so that a graph of any
//! shape costs what its size says.

use super::Graph;

/// Processes that wait for each other, in the order in which they would run; the first one waits
/// for the last.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cycle(pub Vec<u32>);

impl Graph {
    /// Builds the graph of `processes` processes from edges `(before, after)`; an edge may come twice.
    ///
    /// # Errors
    ///
    /// The cycles, no two of which share a process: once they are all broken, at least every one
    /// of their processes is free.
    ///
    /// # Panics
    ///
    /// If an edge names a process that is not there.
    pub fn new(
        processes: usize,
        edges: impl IntoIterator<Item = (u32, u32)>,
    ) -> Result<Self, Vec<Cycle>> {
        let mut successors = vec![Vec::new(); processes];
        for (before, after) in edges {
            successors[before as usize].push(after);
        }
        let mut predecessors = vec![0; processes];
        for list in &mut successors {
            list.sort_unstable();
            list.dedup();
            for &after in list.iter() {
                predecessors[after as usize] += 1;
            }
        }
        let graph = Self { predecessors, successors };
        let cycles = graph.cycles();
        if cycles.is_empty() { Ok(graph) } else { Err(cycles) }
    }

    /// The processes by the earliest turn in which each could run: first those that wait for
    /// nothing, then those that wait for the first layer only, and so on. Ascending in each layer.
    pub fn layers(&self) -> Vec<Vec<u32>> {
        let mut waits = self.predecessors.clone();
        let mut layer = free(&waits);
        let mut layers = Vec::new();
        while !layer.is_empty() {
            let mut next = self.release(&layer, &mut waits);
            next.sort_unstable();
            layers.push(std::mem::replace(&mut layer, next));
        }
        layers
    }

    /// Ends `ended`: those who now wait for nobody.
    fn release(&self, ended: &[u32], waits: &mut [u32]) -> Vec<u32> {
        let mut released = Vec::new();
        for &process in ended {
            for &after in &self.successors[process as usize] {
                waits[after as usize] -= 1;
                if waits[after as usize] == 0 {
                    released.push(after);
                }
            }
        }
        released
    }

    /// Disjoint cycles, so many that without their processes none is left.
    fn cycles(&self) -> Vec<Cycle> {
        let mut search = Search::new(self);
        search.remove(free(&self.predecessors));
        if search.left == 0 {
            return Vec::new();
        }
        search.walk()
    }
}

/// Who waits for nobody.
fn free(waits: &[u32]) -> Vec<u32> {
    (0u32..).zip(waits).filter(|(_, count)| **count == 0).map(|(process, _)| process).collect()
}

/// A search for cycles that removes what it has explained.
///
/// Whoever is left waits for somebody who is left. So a walk from waiter to waited-for never ends,
/// and must come back to where it was: a cycle. Its processes are removed, then all that waited
/// for them alone, and the walk goes on from what is left of its path.
struct Search<'g> {
    graph: &'g Graph,
    waits: Vec<u32>,
    removed: Vec<bool>,
    left: usize,
}

impl<'g> Search<'g> {
    fn new(graph: &'g Graph) -> Self {
        let processes = graph.predecessors.len();
        Self {
            graph,
            waits: graph.predecessors.clone(),
            removed: vec![false; processes],
            left: processes,
        }
    }

    /// Removes `gone` and, again and again, whoever then waits for nobody.
    fn remove(&mut self, mut gone: Vec<u32>) {
        while !gone.is_empty() {
            gone.retain(|&process| !std::mem::replace(&mut self.removed[process as usize], true));
            self.left -= gone.len();
            gone = self.graph.release(&gone, &mut self.waits);
        }
    }

    fn walk(&mut self) -> Vec<Cycle> {
        let mut waited_for = self.waited_for();
        let mut place = vec![None; waited_for.len()];
        let mut path: Vec<u32> = Vec::new();
        let mut cycles = Vec::new();
        for start in (0u32..).take(waited_for.len()) {
            path.push(start);
            while let Some(&process) = path.last() {
                if self.removed[process as usize] {
                    path.pop();
                    continue;
                }
                place[process as usize].get_or_insert(path.len() - 1);
                let Some(&before) = waited_for[process as usize].last() else {
                    path.pop();
                    continue;
                };
                if self.removed[before as usize] {
                    waited_for[process as usize].pop();
                } else if let Some(from) = place[before as usize] {
                    let mut cycle = path.split_off(from);
                    cycle[1..].reverse();
                    self.remove(cycle.clone());
                    cycles.push(Cycle(cycle));
                } else {
                    path.push(before);
                }
            }
        }
        cycles
    }

    /// By process: for whom it waits among those who are left, the first one last.
    fn waited_for(&self) -> Vec<Vec<u32>> {
        let mut waited_for = vec![Vec::new(); self.removed.len()];
        for (before, list) in (0u32..).zip(&self.graph.successors) {
            if !self.removed[before as usize] {
                for &after in list {
                    waited_for[after as usize].push(before);
                }
            }
        }
        waited_for.iter_mut().for_each(|list: &mut Vec<u32>| list.reverse());
        waited_for
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn cycles(processes: usize, edges: &[(u32, u32)]) -> Vec<Vec<u32>> {
        Graph::new(processes, edges.iter().copied())
            .expect_err("a graph with cycles")
            .into_iter()
            .map(|Cycle(cycle)| cycle)
            .collect()
    }

    #[test]
    fn edges_are_deduplicated_and_ascending() {
        let graph = Graph::new(3, [(0, 2), (0, 1), (0, 2)]).unwrap();

        assert_eq!(graph.successors, [vec![1, 2], vec![], vec![]]);
        assert_eq!(graph.predecessors, [0, 1, 1]);
    }

    #[test]
    fn layers_hold_each_process_after_all_that_it_waits_for() {
        let graph = Graph::new(6, [(0, 2), (1, 2), (2, 5), (0, 5), (3, 4)]).unwrap();

        assert_eq!(graph.layers(), [vec![0, 1, 3], vec![2, 4], vec![5]]);
        assert_eq!(Graph::default().layers(), Vec::<Vec<u32>>::new());
    }

    /// T10: also `[a, a]`.
    #[test]
    fn a_process_that_waits_for_itself_is_a_cycle() {
        assert_eq!(cycles(2, &[(1, 1)]), [[1]]);
    }

    /// T10
    #[test]
    fn a_cycle_is_named_in_running_order_without_its_neighbours() {
        assert_eq!(cycles(5, &[(0, 1), (1, 2), (2, 3), (3, 1), (3, 4)]), [[1, 2, 3]]);
    }

    /// T10
    #[test]
    fn a_cycle_behind_a_cycle_is_found_too() {
        let edges = [(0, 1), (1, 0), (1, 2), (2, 3), (3, 2), (4, 5), (5, 4)];

        assert_eq!(cycles(6, &edges), [vec![0, 1], vec![2, 3], vec![4, 5]]);
    }

    /// attack 52: long cycles and chains of ten thousands do not overflow the stack.
    #[test]
    fn a_cycle_of_a_hundred_thousand_is_found_without_recursion() {
        let count = 100_000;
        let ring = (0..count).map(|process| (process, (process + 1) % count));

        let error = Graph::new(count as usize, ring).unwrap_err();

        assert_eq!(error, [Cycle((0..count).collect())]);
    }

    proptest! {
        /// T10: a graph is accepted exactly if an order exists, and what is named is a cycle.
        #[test]
        fn cycles_are_real_and_none_is_missed(
            edges in prop::collection::vec((0u32..12, 0u32..12), 0..30),
        ) {
            match Graph::new(12, edges.iter().copied()) {
                Ok(graph) => {
                    let layers = graph.layers();
                    prop_assert_eq!(layers.iter().map(Vec::len).sum::<usize>(), 12);
                    let layer = |process| layers.iter().position(|l| l.contains(&process));
                    for (before, after) in edges {
                        prop_assert!(layer(before) < layer(after));
                    }
                }
                Err(cycles) => {
                    prop_assert!(!cycles.is_empty());
                    for Cycle(cycle) in cycles {
                        for (place, &process) in cycle.iter().enumerate() {
                            let next = cycle[(place + 1) % cycle.len()];
                            prop_assert!(edges.contains(&(process, next)));
                        }
                    }
                }
            }
        }
    }
}
