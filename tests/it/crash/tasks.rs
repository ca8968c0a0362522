//! The tasks that are interrupted, and what becomes of them when they are not.

use std::time::Duration;

use dewar::state::Phase;
use serde_json::{Value, json};

use super::bench::{History, cgroup_mount};

/// Writes the name of the run's leaf, `<process>.<run>`, once for each time that the command begins.
pub(super) const MARK: &str = "sed -n 's|^0::.*/||p' /proc/self/cgroup >> marks; ";

/// A task, and how it ends.
pub(super) struct Case {
    /// Its name, and what the ids of its tasks begin with.
    pub(super) name: &'static str,
    /// The task file.
    pub(super) file: Value,
    /// Once process 0 runs and has made `ready` in the sandbox, its end is asked for, in this time.
    pub(super) kill: Option<Duration>,
    /// Once process 0 runs and has made `ready` in the sandbox, this is asked for, and then `asked` is made there.
    pub(super) asks: Option<Ask>,
    /// How it ends.
    pub(super) end: Phase,
    /// The runs of each process.
    pub(super) runs: Vec<Runs>,
}

/// What is asked for while a task runs.
#[derive(Clone, Copy)]
pub(super) enum Ask {
    /// A pause; and, once there is one, its end.
    Pause,
    /// Another limit of process 0.
    Limit,
}

/// The states of the runs of a process.
#[derive(Clone, Copy)]
pub(super) enum Runs {
    /// A lost run is one more.
    Extra(&'static str),
    /// A lost run may also stand in the place of another: its next one does something else, or there is no next.
    Instead(&'static str),
    /// There are none, but if a run of another process is lost there may be these: it left time for them.
    OnlyAfterLoss(&'static str),
}

impl Case {
    /// All of them.
    pub(super) fn all() -> Vec<Self> {
        vec![
            retries(),
            finalizers(),
            leftover(),
            kill_of_a_deaf_run(),
            kill_with_a_finalizer(),
            lost_coordinator(),
            paused(),
            limited(),
        ]
    }

    /// Whether it ends so without cgroups too: its runs do not look for leaves.
    pub(super) fn is_uncontained(&self) -> bool {
        matches!(self.name, "retries" | "deaf" | "graceful")
    }

    /// Whether `history` is how it ends when nothing interrupts it, but for `losses` runs that were LOST.
    pub(super) fn is_met(&self, history: &History, losses: usize) -> bool {
        let states = history.states();
        let lost = |states: &str| states.matches('L').count();
        let expected: usize = self.runs.iter().map(|runs| lost(runs.states())).sum();
        let total: usize = states.iter().map(|states| lost(states)).sum();
        let is_any_lost = losses > 0 && total > 0;
        history.phase() == Some(self.end)
            && total <= expected + losses
            && self.runs.iter().zip(&states).all(|(runs, seen)| runs.is_met(seen, is_any_lost))
    }
}

impl Runs {
    fn states(self) -> &'static str {
        match self {
            Self::Extra(states) | Self::Instead(states) => states,
            Self::OnlyAfterLoss(_) => "",
        }
    }

    fn is_met(self, seen: &str, is_any_lost: bool) -> bool {
        let expected = self.states();
        if seen == expected {
            return true;
        }
        if !is_any_lost {
            return false;
        }
        if let Self::OnlyAfterLoss(states) = self {
            return seen == states;
        }
        if !seen.contains('L') {
            return false;
        }
        let others: String = seen.chars().filter(|&state| state != 'L').collect();
        let wanted: String = expected.chars().filter(|&state| state != 'L').collect();
        let replaced = seen.len() == expected.len()
            && seen.chars().zip(expected.chars()).all(|(seen, state)| seen == state || seen == 'L');
        others == wanted || (matches!(self, Self::Instead(_)) && replaced)
    }
}

fn process(name: &str, command: &str) -> Value {
    json!({"name": name, "cmdline": format!("{MARK}{command}"), "min_duration": 0.05})
}

/// S5: a process that fails three times.
pub(super) fn retries() -> Case {
    let mut a = process("a", "exit 3");
    a["max_failures"] = 3.into();
    Case {
        name: "retries",
        file: json!({"name": "retries", "processes": [a]}),
        kill: None,
        asks: None,
        end: Phase::Failed,
        runs: vec![Runs::Extra("FFF")],
    }
}

/// S14: finalizers with an order and limits of their own. The first one fails in its run 0, whatever became of it.
fn finalizers() -> Case {
    let mut f1 = process("f1", "grep -q '^0::.*/f1.0$' /proc/self/cgroup && exit 1; exit 0");
    f1["max_failures"] = 2.into();
    f1["final"] = true.into();
    let mut f2 = process("f2", "exit 0");
    f2["final"] = true.into();
    Case {
        name: "finalizers",
        file: json!({
            "name": "finalizers",
            "processes": [process("a", "exit 0"), f1, f2],
            "constraints": [{"order": ["f1", "f2"]}],
        }),
        kill: None,
        asks: None,
        end: Phase::Success,
        runs: vec![Runs::Extra("S"), Runs::Instead("FS"), Runs::Extra("S")],
    }
}

/// S18: a run that leaves something behind, in its own session, deaf, with nothing open. The next step of the task
/// fails if a leaf of it is left.
fn leftover() -> Case {
    let leave = "(setsid nohup bash -c 'trap \"\" TERM HUP; sleep 600; :' </dev/null >/dev/null 2>&1 &); exit 0";
    let mount = cgroup_mount();
    let look = format!(
        "here=$(sed -n 's|^0::||p' /proc/self/cgroup); \
         for leaf in $(grep '^a' marks); do [ -e {}${{here%/*}}/$leaf ] && exit 9; done; exit 0",
        mount.display()
    );
    Case {
        name: "leftover",
        file: json!({
            "name": "leftover",
            "processes": [process("a", leave), process("b", &look)],
            "constraints": [{"order": ["a", "b"]}],
        }),
        kill: None,
        asks: None,
        end: Phase::Success,
        runs: vec![Runs::Extra("S"), Runs::Extra("S")],
    }
}

/// S15: a run that does not hear SIGTERM uses up the time that a kill leaves, and the finalizer does not run.
fn kill_of_a_deaf_run() -> Case {
    let mut f = process("f", "exit 0");
    f["final"] = true.into();
    Case {
        name: "deaf",
        file: json!({"name": "deaf", "processes": [deaf("a"), f]}),
        kill: Some(Duration::from_millis(300)),
        asks: None,
        end: Phase::Killed,
        runs: vec![Runs::Instead("K"), Runs::OnlyAfterLoss("S")],
    }
}

/// A process that runs until it is killed by a signal which nothing can ignore: once its mark is there.
pub(super) fn deaf(name: &str) -> Value {
    let command = format!("trap '' TERM; {MARK}touch ready; sleep 600; :");
    json!({"name": name, "cmdline": command, "min_duration": 0.05})
}

/// S13: a kill that leaves time for a finalizer.
fn kill_with_a_finalizer() -> Case {
    let mut f = process("f", "exit 0");
    f["final"] = true.into();
    Case {
        name: "graceful",
        file: json!({"name": "graceful", "processes": [process("a", "touch ready; exec sleep 600"), f]}),
        kill: Some(Duration::from_secs(30)),
        asks: None,
        end: Phase::Killed,
        runs: vec![Runs::Instead("K"), Runs::Extra("S")],
    }
}

/// S23: a run whose first try kills its own coordinator.
fn lost_coordinator() -> Case {
    let command = "[ -e once ] && exit 0; touch once; kill -9 $PPID; sleep 600; :";
    Case {
        name: "lost",
        file: json!({"name": "lost", "processes": [process("a", command)]}),
        kill: None,
        asks: None,
        end: Phase::Success,
        runs: vec![Runs::Instead("LS")],
    }
}

/// A run that waits until what is asked for was recorded.
fn waits() -> Value {
    process("a", "touch ready; while [ ! -e asked ]; do sleep 0.02; done; exit 0")
}

/// A run that is frozen and goes on to its end.
fn paused() -> Case {
    Case {
        name: "paused",
        file: json!({"name": "paused", "processes": [waits()]}),
        kill: None,
        asks: Some(Ask::Pause),
        end: Phase::Success,
        runs: vec![Runs::Extra("S")],
    }
}

/// A run whose limits change.
fn limited() -> Case {
    Case {
        name: "limited",
        file: json!({"name": "limited", "processes": [waits()]}),
        kill: None,
        asks: Some(Ask::Limit),
        end: Phase::Success,
        runs: vec![Runs::Extra("S")],
    }
}
