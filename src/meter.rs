//! What a task uses, read again and again: from its cgroup while it lives, and from its records.
//!
//! Asks no runner and takes no lock. One reading costs a read(2) for each file of a sample, whatever the number of processes,
//! and one of the task's stream.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use crate::cgroup::{CgroupError, Extent, STILL, Sampler, TaskCgroup};
use crate::checkpoint::{IoError, ReadError, Root};
use crate::observe::{ObserveError, Observed};
use crate::proto::{Launch, ProcessUsage, Sample, TaskState, TaskUsage, Timestamp};
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
    /// Of the task what a history keeps ([`Extent::Kept`]); and of each of its processes, if the task has used CPU time since they
    /// were read last, or that was a minute ago, else of none. What uses no CPU time does nothing that a reading could tell.
    Kept,
    /// All of the task, and of each of its processes.
    Processes,
}

impl Detail {
    /// Whether a reading with this much is one for whoever asks for `asked`.
    pub fn covers(self, asked: Self) -> bool {
        self == asked || self == Self::Processes
    }

    fn extent(self) -> Extent {
        match self {
            Self::Kept => Extent::Kept,
            Self::Task | Self::Processes => Extent::All,
        }
    }
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
    /// The sample of the task when its processes were read last.
    processes_read: Option<Sample>,
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
        Self { root, id, observed: None, live: None, over: false, processes_read: None }
    }

    /// The task as it was launched, once its records were read.
    pub fn launch(&self) -> Option<&Launch> {
        Some(self.observed.as_ref()?.replay()?.launch())
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
        let extent = detail.extent();
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
            told.sample = Live::sample(&mut self.live, &self.id, replay, extent)?;
        }
        told.recorded = task_usage(replay.state());
        let is_due = match detail {
            Detail::Task => false,
            Detail::Kept => has_moved(self.processes_read.as_ref(), told.sample.as_ref()),
            Detail::Processes => true,
        };
        if is_due {
            told.processes = processes(self.live.as_mut(), replay, extent)?;
            self.processes_read.clone_from(&told.sample);
        }
        Ok(told)
    }

    /// Descriptors of cgroup files that are open, to spare a reading the opening.
    pub fn files(&self) -> usize {
        let of = |live: &Live| {
            let runs = live.runs.values().map(|(_, run)| run.files());
            live.task.files() + runs.sum::<usize>()
        };
        self.live.as_ref().map_or(0, of)
    }

    /// Closes them; the next reading opens what it needs.
    pub fn close(&mut self) {
        self.live = None;
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

/// Whether a task with these two samples may have done something in between.
fn has_moved(before: Option<&Sample>, now: Option<&Sample>) -> bool {
    let (Some(before), Some(now)) = (before, now) else { return now.is_some() };
    let cpu = |sample: &Sample| sample.cpu.and_then(|cpu| cpu.time);
    let passed = Duration::from_nanos(now.boot_nanos.saturating_sub(before.boot_nanos));
    before.cgroup_id != now.cgroup_id
        || cpu(before) != cpu(now)
        || cpu(now).is_none()
        || passed >= STILL
}

impl Live {
    /// Samples the cgroup of a live task, which is opened where `live` does not hold it; `None` if there is none.
    fn sample(
        live: &mut Option<Self>,
        id: &TaskId,
        replay: &Replay,
        extent: Extent,
    ) -> Result<Option<Sample>, CgroupError> {
        let path = replay.state().leader().and_then(|leader| leader.cgroup.as_deref());
        if live.as_ref().map(|live| live.path.as_str()) != path {
            *live = path.map(|path| Self::open(path, id)).transpose()?.flatten();
        }
        let Some(held) = live else { return Ok(None) };
        let sample = held.task.sample(extent)?;
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
        extent: Extent,
    ) -> Result<Option<Sample>, CgroupError> {
        if self.runs.get(&index).is_none_or(|(held, _)| *held != run) {
            let name = &replay.state().spec().processes[index as usize].name;
            let sampler = Sampler::of_leaf(&self.cgroup, name, run)?;
            self.runs.insert(index, (run, sampler));
        }
        self.runs.get_mut(&index).map_or(Ok(None), |(_, sampler)| sampler.sample(extent))
    }
}

fn processes(
    mut live: Option<&mut Live>,
    replay: &Replay,
    extent: Extent,
) -> Result<Vec<ProcessUsage>, CgroupError> {
    let spec = replay.state().spec();
    let mut told = Vec::with_capacity(spec.processes.len());
    for (index, (spec, process)) in (0..).zip(spec.processes.iter().zip(replay.state().processes()))
    {
        let run = process.live_run().map(|(run, _)| run);
        let sample = match (&mut live, run) {
            (Some(live), Some(run)) => live.sample_run(index, run, replay, extent)?,
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
impl Meter {
    /// As after a reading of a task in `cgroup`.
    pub(crate) fn hold(&mut self, cgroup: TaskCgroup) {
        let path = cgroup.path().display().to_string();
        let mut task = Sampler::of_task(&cgroup).unwrap();
        task.sample(Extent::All).unwrap().unwrap();
        self.live = Some(Live { path, cgroup, task, runs: BTreeMap::new() });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::observe::tests::Node;
    use crate::proto::CpuUsage;

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

    /// A reading for a history has no limits: it is none for a client. One for a client that wants it all is one for everybody.
    #[test]
    fn a_reading_serves_who_wants_no_more_than_it_has() {
        let all = [Detail::Task, Detail::Kept, Detail::Processes];
        for (detail, covered) in all.into_iter().zip([&all[..1], &all[1..2], &all]) {
            assert_eq!(all.map(|asked| detail.covers(asked)), all.map(|of| covered.contains(&of)));
        }
    }

    #[test]
    fn processes_are_due_when_the_task_has_used_cpu_time_and_else_once_a_minute() {
        let sample = |seconds: u64, cpu: Option<u64>, cgroup_id| Sample {
            boot_nanos: seconds * 1_000_000_000,
            cgroup_id,
            cpu: Some(CpuUsage {
                time: cpu.map(|millis| Duration::from_millis(millis).into()),
                ..CpuUsage::default()
            }),
            ..Sample::default()
        };
        let first = sample(10, Some(5), 1);
        let moved = |now: &Sample| has_moved(Some(&first), Some(now));

        assert!(has_moved(None, Some(&first)));
        assert!(!has_moved(Some(&first), None) && !has_moved(None, None));
        assert!(!moved(&sample(69, Some(5), 1)));
        assert!(moved(&sample(70, Some(5), 1)));
        assert!(moved(&sample(11, Some(6), 1)));
        assert!(moved(&sample(11, Some(5), 2)), "another cgroup");
        assert!(has_moved(Some(&sample(10, None, 1)), Some(&sample(11, None, 1))), "not known");
    }

    #[test]
    fn a_task_that_is_not_begun_is_active_and_uses_nothing() {
        let node = Node::new("meter-unbegun");
        let mut meter = Meter::new(node.root.clone(), TaskId::new("b").unwrap());

        let told = meter.read(Detail::Processes).unwrap();

        assert_eq!((told.state(), told.sample, told.processes), (TaskState::Active, None, vec![]));
    }
}
