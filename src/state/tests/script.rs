//! Tasks with a script: what each run of each process will do.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::task::{Graph, ProcessName, ProcessSpec, TaskSpec};

/// A millisecond in nanoseconds.
pub(super) const MS: u64 = 1_000_000;

/// How an attempt ends when it is left alone.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum End {
    Exit(u8),
    Signal(u8),
    Oom,
    /// No coordinator could be forked.
    NotForked,
    /// The coordinator could not start the command line.
    NotStarted,
    /// The coordinator dies and records nothing.
    CoordinatorDies,
}

/// What an attempt does about SIGTERM.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum OnTerm {
    Dies,
    Exits(u8),
    Ignores,
}

/// What one run will do. Times are nanoseconds.
#[derive(Debug, Clone, Copy)]
pub(super) struct Attempt {
    pub(super) end: End,
    /// From RUNNING to the end; `None`: it runs until it is ended.
    pub(super) lasts: Option<u64>,
    /// From the fork to FORKED, and from there to RUNNING.
    pub(super) starts_in: [u64; 2],
    pub(super) on_term: OnTerm,
    /// From a signal to the death by it.
    pub(super) dies_in: u64,
}

impl Attempt {
    fn ending(end: End) -> Self {
        Self { end, lasts: Some(10 * MS), starts_in: [0, 0], on_term: OnTerm::Dies, dies_in: 0 }
    }

    pub(super) fn after(self, ms: u64) -> Self {
        Self { lasts: Some(ms * MS), ..self }
    }

    pub(super) fn on_term(self, on_term: OnTerm) -> Self {
        Self { on_term, ..self }
    }

    pub(super) fn dies_in(self, ms: u64) -> Self {
        Self { dies_in: ms * MS, ..self }
    }

    pub(super) fn starts_in(self, fork_ms: u64, exec_ms: u64) -> Self {
        Self { starts_in: [fork_ms * MS, exec_ms * MS], ..self }
    }
}

pub(super) fn exits(code: u8) -> Attempt {
    Attempt::ending(End::Exit(code))
}

pub(super) fn dies(signal: i32) -> Attempt {
    Attempt::ending(End::Signal(signal as u8))
}

pub(super) fn fails_by(end: End) -> Attempt {
    Attempt::ending(end)
}

pub(super) fn sleeps() -> Attempt {
    Attempt { lasts: None, ..exits(0) }
}

/// A process and its script; the last attempt is repeated.
#[derive(Debug, Clone)]
pub(super) struct Scripted {
    pub(super) spec: ProcessSpec,
    pub(super) attempts: Vec<Attempt>,
}

/// A process that exits with 0 after 10 ms, and may be run again at once.
pub(super) fn process(name: &str) -> Scripted {
    let spec = ProcessSpec {
        name: ProcessName::new(name).unwrap(),
        cmdline: "true".into(),
        max_failures: 1,
        daemon: false,
        ephemeral: false,
        min_duration: Duration::ZERO,
        is_final: false,
        logger: None,
        resources: None,
    };
    Scripted { spec, attempts: vec![exits(0)] }
}

impl Scripted {
    pub(super) fn runs<const N: usize>(mut self, attempts: [Attempt; N]) -> Self {
        self.attempts = attempts.to_vec();
        self
    }

    pub(super) fn max_failures(mut self, limit: u32) -> Self {
        self.spec.max_failures = limit;
        self
    }

    pub(super) fn min_duration(mut self, ms: u64) -> Self {
        self.spec.min_duration = Duration::from_millis(ms);
        self
    }

    pub(super) fn daemon(mut self) -> Self {
        self.spec.daemon = true;
        self
    }

    pub(super) fn ephemeral(mut self) -> Self {
        self.spec.ephemeral = true;
        self
    }

    pub(super) fn finalizer(mut self) -> Self {
        self.spec.is_final = true;
        self
    }
}

/// A task, what its runs will do, and the loss limit that it is launched with.
#[derive(Debug, Clone)]
pub(super) struct Task {
    pub(super) spec: TaskSpec,
    pub(super) attempts: Vec<Vec<Attempt>>,
    pub(super) loss_limit: u32,
}

/// A task with Thermos' defaults (T1) and a loss limit of 100.
pub(super) fn task(processes: impl IntoIterator<Item = Scripted>) -> Task {
    let (specs, attempts): (Vec<_>, Vec<_>) =
        processes.into_iter().map(|process| (process.spec, process.attempts)).unzip();
    let graph =
        Graph { predecessors: vec![0; specs.len()], successors: vec![Vec::new(); specs.len()] };
    let spec = TaskSpec {
        name: "task".into(),
        processes: specs,
        graph,
        resources: None,
        max_failures: 1,
        max_concurrency: 0,
        finalization_wait: Duration::from_secs(30),
        user: None,
    };
    Task { spec, attempts, loss_limit: 100 }
}

impl Task {
    /// Each name runs after the one before it.
    pub(super) fn order<const N: usize>(self, names: [&str; N]) -> Self {
        let indexes: BTreeMap<_, _> = self.indexes();
        names.windows(2).fold(self, |task, pair| task.edge(indexes[pair[0]], indexes[pair[1]]))
    }

    pub(super) fn edge(mut self, from: u32, to: u32) -> Self {
        let successors = &mut self.spec.graph.successors[from as usize];
        if let Err(place) = successors.binary_search(&to) {
            successors.insert(place, to);
            self.spec.graph.predecessors[to as usize] += 1;
        }
        self
    }

    pub(super) fn max_failures(mut self, limit: u32) -> Self {
        self.spec.max_failures = limit;
        self
    }

    pub(super) fn max_concurrency(mut self, limit: u32) -> Self {
        self.spec.max_concurrency = limit;
        self
    }

    pub(super) fn finalization_wait(mut self, ms: u64) -> Self {
        self.spec.finalization_wait = Duration::from_millis(ms);
        self
    }

    pub(super) fn loss_limit(mut self, limit: u32) -> Self {
        self.loss_limit = limit;
        self
    }

    fn indexes(&self) -> BTreeMap<String, u32> {
        let names = self.spec.processes.iter().map(|process| process.name.to_string());
        names.zip(0..).collect()
    }

    pub(super) fn index(&self, name: &str) -> u32 {
        self.indexes()[name]
    }
}
