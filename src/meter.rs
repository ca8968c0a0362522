//! What a task uses, read again and again: from its cgroup while it lives, and from its records.
//!
//! Asks no runner and takes no lock. One reading costs a read(2) for each file of a sample, whatever the number of processes,
//! and one of the task's stream.

use std::collections::BTreeMap;
use std::path::Path;

use crate::cgroup::{CgroupError, Sampler, TaskCgroup};
use crate::checkpoint::{IoError, ReadError, Root};
use crate::observe::{ObserveError, Observed};
use crate::proto::{ProcessUsage, Sample, TaskState, TaskUsage, Timestamp};
use crate::state::{Phase, Process};
use crate::sys::clock;
use crate::task::TaskId;
use crate::usage;
use crate::view::{Replay, task_usage};

/// Why it cannot be told what a task uses.
#[derive(Debug, thiserror::Error)]
pub enum MeterError {
    /// Its records cannot be read, or are not on disk.
    #[error(transparent)]
    Observe(#[from] ObserveError),
    /// Its cgroup is there and cannot be read.
    #[error(transparent)]
    Cgroup(#[from] CgroupError),
}

impl From<IoError> for MeterError {
    fn from(error: IoError) -> Self {
        Self::Observe(error.into())
    }
}

/// How much is told of a task.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Detail {
    /// The task as a whole.
    Task,
    /// Each of its processes, too.
    Processes,
}

/// The usage of one task.
#[derive(Debug)]
pub struct Meter {
    root: Root,
    id: TaskId,
    /// `None` while there is no stream: accepted, and not begun.
    observed: Option<Observed>,
    live: Option<Live>,
    /// Whether its end was read, and is on disk.
    over: bool,
}

/// The cgroups of a live task.
#[derive(Debug)]
struct Live {
    /// As its runner recorded it.
    path: String,
    cgroup: TaskCgroup,
    task: Sampler,
    /// Samplers of leaves, by process, with the number of the run.
    runs: BTreeMap<u32, (u32, Sampler)>,
}

impl Meter {
    /// Meters task `id` of `root`; nothing is read yet.
    pub fn new(root: Root, id: TaskId) -> Self {
        Self { root, id, observed: None, live: None, over: false }
    }

    /// Whether the end of the task was told.
    pub fn is_over(&self) -> bool {
        self.over
    }

    /// What the task uses now, and has used.
    ///
    /// # Errors
    ///
    /// [`MeterError`]; a cgroup that is gone is none.
    pub fn read(&mut self, detail: Detail) -> Result<TaskUsage, MeterError> {
        let mut told = TaskUsage {
            task_id: self.id.to_string(),
            state: TaskState::Active.into(),
            time: Some(Timestamp::from_unix_nanos(clock::now().wall)),
            ..TaskUsage::default()
        };
        self.advance()?;
        let Some(observed) = &self.observed else { return Ok(told) };
        let Some(replay) = observed.replay() else { return Ok(told) };
        let phase = replay.state().phase();
        if let Some(phase) = phase {
            told.state = phase.to_proto().into();
        }
        if phase.is_some_and(Phase::is_terminal) {
            observed.sync()?;
            self.over = true;
            self.live = None;
        } else {
            told.sample = Live::sample(&mut self.live, &self.id, replay)?;
        }
        told.recorded = task_usage(replay.state());
        if detail == Detail::Processes {
            told.processes = processes(self.live.as_mut(), replay)?;
        }
        Ok(told)
    }

    fn advance(&mut self) -> Result<(), ObserveError> {
        if self.observed.is_none() {
            self.observed = match Observed::open(&self.root, &self.id) {
                Err(ObserveError::Read(ReadError::Missing { .. })) => None,
                opened => Some(opened?),
            };
        }
        match &mut self.observed {
            Some(observed) => observed.advance(|_, _| {}),
            None => Ok(()),
        }
    }
}

impl Live {
    /// Samples the cgroup of a live task, which is opened where `live` does not hold it; `None` if there is none.
    fn sample(
        live: &mut Option<Self>,
        id: &TaskId,
        replay: &Replay,
    ) -> Result<Option<Sample>, CgroupError> {
        let path = replay.state().leader().and_then(|leader| leader.cgroup.as_deref());
        if live.as_ref().map(|live| live.path.as_str()) != path {
            *live = path.map(|path| Self::open(path, id)).transpose()?.flatten();
        }
        let Some(held) = live else { return Ok(None) };
        let sample = held.task.sample()?;
        if sample.as_ref().is_some_and(|sample| sample.is_new_cgroup)
            && let Some(cgroup) = TaskCgroup::open_existing(Path::new(&held.path), id)?
        {
            // Leaves were looked for in the directory that is gone.
            held.cgroup = cgroup;
            held.runs.clear();
        }
        Ok(sample)
    }

    fn open(path: &str, id: &TaskId) -> Result<Option<Self>, CgroupError> {
        let Some(cgroup) = TaskCgroup::open_existing(Path::new(path), id)? else { return Ok(None) };
        let task = Sampler::of_task(&cgroup)?;
        Ok(Some(Self { path: path.to_owned(), cgroup, task, runs: BTreeMap::new() }))
    }

    /// Samples the leaf of the live run `run` of process `index`; `None` if it is gone.
    fn sample_run(
        &mut self,
        index: u32,
        run: u32,
        replay: &Replay,
    ) -> Result<Option<Sample>, CgroupError> {
        if self.runs.get(&index).is_none_or(|(held, _)| *held != run) {
            let name = &replay.state().spec().processes[index as usize].name;
            let sampler = Sampler::of_leaf(&self.cgroup, name, run)?;
            self.runs.insert(index, (run, sampler));
        }
        self.runs.get_mut(&index).map_or(Ok(None), |(_, sampler)| sampler.sample())
    }
}

fn processes(
    mut live: Option<&mut Live>,
    replay: &Replay,
) -> Result<Vec<ProcessUsage>, CgroupError> {
    let spec = replay.state().spec();
    let mut told = Vec::with_capacity(spec.processes.len());
    for (index, (spec, process)) in (0..).zip(spec.processes.iter().zip(replay.state().processes()))
    {
        let run = process.live_run().map(|(run, _)| run);
        let sample = match (&mut live, run) {
            (Some(live), Some(run)) => live.sample_run(index, run, replay)?,
            (Some(live), None) => {
                live.runs.remove(&index);
                None
            }
            (None, _) => None,
        };
        let Process { runs, .. } = process;
        let name = spec.name.to_string();
        told.push(ProcessUsage { name, run, sample, recorded: usage::together(runs) });
    }
    Ok(told)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::observe::tests::Node;

    #[test]
    fn a_task_that_is_over_is_told_by_its_records_alone() {
        let node = Node::new("meter-over");
        let id = node.task("a", &[Phase::Active, Phase::Cleaning, Phase::Failed]);
        let mut meter = Meter::new(node.root.clone(), id);

        let told = meter.read(Detail::Processes).unwrap();

        assert!(meter.is_over());
        assert_eq!((told.state(), told.sample), (TaskState::Failed, None));
        let names: Vec<_> = told.processes.iter().map(|of| (&*of.name, of.run)).collect();
        assert_eq!(names, [("a", None)]);
    }

    #[test]
    fn a_task_without_a_cgroup_is_told_without_a_sample() {
        let node = Node::new("meter-live");
        let id = node.task("a", &[Phase::Active]);
        let mut meter = Meter::new(node.root.clone(), id);

        let told = meter.read(Detail::Task).unwrap();

        assert!(!meter.is_over());
        assert_eq!((told.state(), told.sample, told.recorded), (TaskState::Active, None, None));
        assert_eq!(told.processes, []);
    }

    #[test]
    fn a_task_that_is_not_begun_is_active_and_uses_nothing() {
        let node = Node::new("meter-unbegun");
        let mut meter = Meter::new(node.root.clone(), TaskId::new("b").unwrap());

        let told = meter.read(Detail::Processes).unwrap();

        assert_eq!((told.state(), told.sample, told.processes), (TaskState::Active, None, vec![]));
    }
}
