//! Reads a cgroup again and again, at the cost of a read(2) for each file.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::time::Duration;

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::sys::stat::fstat;

use super::files::{Extent, FILES, SIGNS, STAT, finish, kept, take_stat_over, without_parts};
use super::{Buffer, STILL};
use crate::cgroup::dir::Dir;
use crate::cgroup::task::leaf_name;
use crate::cgroup::{CgroupError, TaskCgroup};
use crate::proto::{IoDevice, Sample};
use crate::sys::clock;
use crate::task::ProcessName;

/// Age up to which the parts of the memory of a cgroup that is busy are taken over: of samples once a second every other one reads them
/// anew. The kernel adds them up every two seconds, and in between only once many pages have changed (`FLUSH_TIME` in
/// mm/memcontrol.c).
const BUSY: Duration = Duration::from_millis(1500);

/// Age up to which the last sample will do for what stands still. Who asks for one because that time has passed gets another.
const AGAIN: Duration = STILL.saturating_sub(Duration::from_secs(1));

/// Time in which whatever a cgroup did shows in all of its files: until then the kernel has written back what was dirty, unless
/// it was told to take longer (30 s, and a round of 5 s: `vm.dirty_expire_centisecs`, `vm.dirty_writeback_centisecs`).
const SETTLED: Duration = Duration::from_secs(40);

/// A cgroup by its name in the one above it, with the files of a sample kept open: at most [`Sampler::FILES`] descriptors.
///
/// A read of a file whose cgroup was removed says ENODEV. The name is then opened again, and the sample says whether it now
/// is another cgroup. Files that are not there when the cgroup is opened are not looked for again.
#[derive(Debug)]
pub struct Sampler {
    parent: Dir,
    name: String,
    open: Option<Open>,
    /// Identity of the cgroup that was sampled last.
    last: Option<u64>,
    /// Names of devices by their numbers, as far as they have one.
    names: BTreeMap<String, Option<String>>,
}

/// The cgroup that now has the name.
#[derive(Debug)]
struct Open {
    id: u64,
    /// Which of the files were looked for.
    extent: Extent,
    files: [Option<OwnedFd>; FILES.len()],
    /// Time, CPU and memory of the last sample for which all of them were read.
    whole: Option<Sample>,
    /// The last sample for a history for which more was read than tells that nothing has run.
    kept: Option<Kept>,
}

/// A sample for a history.
#[derive(Debug)]
struct Kept {
    sample: Sample,
    /// When it last was another one than before, by the clock of the boot in nanoseconds.
    changed: u64,
}

impl Kept {
    /// The next one.
    fn next(before: Option<&Self>, sample: Sample) -> Self {
        let as_before = before.filter(|before| is_same(&before.sample, &sample));
        Self { changed: as_before.map_or(sample.boot_nanos, |before| before.changed), sample }
    }

    /// Whether it will do for `now`, of which there is as much as tells whether anything has run: nothing has for so long that nothing can
    /// show of it any more, and all was read not long ago.
    fn will_do(&self, now: &Sample) -> bool {
        stands_still(&self.sample, now)
            && age(self.changed, now) >= SETTLED
            && age(self.sample.boot_nanos, now) < AGAIN
    }
}

/// Whether two samples say the same, but for their times and for the parts of memory, which age by themselves.
fn is_same(one: &Sample, other: &Sample) -> bool {
    let memory = |sample: &Sample| sample.memory.map(without_parts);
    one.cpu == other.cpu
        && one.io == other.io
        && one.pids == other.pids
        && one.pressure == other.pressure
        && memory(one) == memory(other)
}

impl Sampler {
    /// Most descriptors that a sampler keeps open, besides that of the directory above.
    pub const FILES: usize = FILES.len();

    /// Samples the cgroup of a task, with all that is and was in it.
    ///
    /// # Errors
    ///
    /// [`CgroupError::Sys`]: the directory above cannot be opened.
    pub fn of_task(task: &TaskCgroup) -> Result<Self, CgroupError> {
        let above = task.path().parent().unwrap_or(Path::new("/"));
        let name = task.path().file_name().and_then(OsStr::to_str).unwrap_or_default();
        Ok(Self::new(Dir::open(above)?, name.to_owned()))
    }

    /// Samples the leaf of run `run` of `process`, whether or not it is there yet.
    ///
    /// # Errors
    ///
    /// [`CgroupError::Sys`]: descriptors ran out.
    pub fn of_leaf(
        task: &TaskCgroup,
        process: &ProcessName,
        run: u32,
    ) -> Result<Self, CgroupError> {
        Ok(Self::new(task.dir().try_clone()?, leaf_name(process, run)))
    }

    pub(in crate::cgroup) fn new(parent: Dir, name: String) -> Self {
        Self { parent, name, open: None, last: None, names: BTreeMap::new() }
    }

    /// Descriptors that are open now, with that of the directory above.
    pub fn files(&self) -> usize {
        1 + self.open.as_ref().map_or(0, |open| open.files.iter().flatten().count())
    }

    /// Reads the cgroup; `None` if there is no cgroup of that name.
    ///
    /// # Errors
    ///
    /// [`CgroupError::Sys`]: it is there and cannot be opened, as for want of descriptors.
    pub fn sample(&mut self, extent: Extent) -> Result<Option<Sample>, CgroupError> {
        // The second try is for a cgroup that was removed meanwhile, and perhaps made again.
        for _ in 0..2 {
            let mut open = match self.open.take().filter(|open| open.extent >= extent) {
                Some(open) => open,
                None => match Open::new(&self.parent, &self.name, extent)? {
                    Some(open) => open,
                    None => return Ok(None),
                },
            };
            let Ok(mut sample) = open.read(extent) else { continue };
            sample.is_new_cgroup = self.last.is_some_and(|last| last != open.id);
            self.last = Some(open.id);
            self.open = Some(open);
            self.name_devices(&mut sample);
            return Ok(Some(sample));
        }
        Ok(None)
    }

    fn name_devices(&mut self, sample: &mut Sample) {
        for device in sample.io.iter_mut().flat_map(|io| &mut io.devices) {
            let IoDevice { device: number, name, .. } = device;
            if !self.names.contains_key(number) {
                self.names.insert(number.clone(), device_name(number));
            }
            name.clone_from(&self.names[number]);
        }
    }
}

/// What was opened is not there any more.
#[derive(Debug)]
struct Gone;

impl Open {
    /// Opens the cgroup `name` in `parent`; `None` if there is none.
    fn new(parent: &Dir, name: &str, extent: Extent) -> Result<Option<Self>, CgroupError> {
        let Some(dir) = parent.child(name)? else { return Ok(None) };
        let id = fstat(&dir).map_err(|errno| dir.error("stat", ".", errno))?.st_ino;
        let mut files = [const { None }; FILES.len()];
        for ((name, _), file) in extent.files().iter().zip(&mut files) {
            *file = match dir.open_file(name, OFlag::O_RDONLY) {
                Ok(opened) => Some(opened),
                Err(errno @ (Errno::EMFILE | Errno::ENFILE | Errno::ENOMEM)) => {
                    return Err(dir.error("open", name, errno));
                }
                // No such controller, a kernel without that file, or one that was told to do without.
                Err(_) => None,
            };
        }
        Ok(Some(Self { id, extent, files, whole: None, kept: None }))
    }

    /// Reads its files.
    ///
    /// For a history [`STAT`], which costs more than all others together, is read no more often than the kernel itself
    /// adds it up in any case ([`BUSY`]); and of a cgroup that stands still once a minute: only the kernel's own ageing of pages can have
    /// changed what is in it. Of one that has stood still for long all but what tells that ([`SIGNS`]) is read once a minute.
    fn read(&mut self, extent: Extent) -> Result<Sample, Gone> {
        let now = clock::now();
        let mut sample = Sample {
            time: Some(crate::proto::Timestamp::from_unix_nanos(now.wall)),
            boot_nanos: now.boot,
            cgroup_id: self.id,
            ..Sample::default()
        };
        let mut buffer = Buffer::new();
        let mut is_whole = true;
        for (number, ((name, take), file)) in extent.files().iter().zip(&self.files).enumerate() {
            if number == SIGNS
                && extent == Extent::Kept
                && let Some(kept) = self.kept.as_ref().filter(|kept| kept.will_do(&sample))
                && self.whole.as_ref().is_some_and(|whole| age(whole.boot_nanos, &sample) < AGAIN)
            {
                let Sample { time, boot_nanos, .. } = sample;
                return Ok(Sample { time, boot_nanos, ..kept.sample.clone() });
            }
            let Some(file) = file else { continue };
            if extent == Extent::Kept && *name == STAT {
                let before = self.whole.as_ref();
                if let Some(before) = before.filter(|before| is_known(before, &sample)) {
                    take_stat_over(before, &mut sample);
                    is_whole = false;
                    continue;
                }
            }
            match buffer.read(file.as_fd()) {
                Ok(text) => take(&mut sample, text),
                Err(Errno::ENODEV) => return Err(Gone),
                Err(_) => {}
            }
        }
        finish(&mut sample);
        if is_whole {
            let (boot_nanos, cpu, memory) = (sample.boot_nanos, sample.cpu, sample.memory);
            self.whole = Some(Sample { boot_nanos, cpu, memory, ..Sample::default() });
        }
        // Also of a sample for somebody else: what adds up never goes back.
        self.kept = Some(Kept::next(self.kept.as_ref(), kept(sample.clone())));
        Ok(sample)
    }
}

/// Whether what `before` says of the parts of its memory will do for `now`: it is from just now; or it is not long ago, and nothing has run
/// and no memory was charged or given back since. `now` has as much of the sample as tells that.
fn is_known(before: &Sample, now: &Sample) -> bool {
    let stands_still = charged(now).is_some() && stands_still(before, now);
    age(before.boot_nanos, now) < if stands_still { STILL } else { BUSY }
}

/// Whether nothing has run between two samples, and no memory was charged or given back, where that is accounted for.
fn stands_still(before: &Sample, now: &Sample) -> bool {
    let cpu = |sample: &Sample| sample.cpu.and_then(|cpu| cpu.time);
    cpu(now).is_some() && cpu(before) == cpu(now) && charged(before) == charged(now)
}

fn charged(sample: &Sample) -> Option<u64> {
    sample.memory.and_then(|memory| memory.current_bytes)
}

/// How long ago `boot_nanos` was when the sample `now` was taken.
fn age(boot_nanos: u64, now: &Sample) -> Duration {
    Duration::from_nanos(now.boot_nanos.saturating_sub(boot_nanos))
}

/// Name of the block device `number`, such as `254:0`, as sysfs(5) has it.
fn device_name(number: &str) -> Option<String> {
    let target = fs::read_link(Path::new("/sys/dev/block").join(number)).ok()?;
    Some(target.file_name()?.to_str()?.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cgroup::scratch::Scratch;

    fn process() -> ProcessName {
        ProcessName::new("process").unwrap()
    }

    fn micros(sample: &Sample) -> i64 {
        let time = sample.cpu.unwrap().time.unwrap();
        time.seconds * 1_000_000 + i64::from(time.nanos) / 1000
    }

    const SPIN: &str = "n=0; while [ $n -lt 30000 ]; do n=$((n+1)); done; echo spun; read line";

    #[test]
    fn samples_of_a_leaf_grow_with_what_it_does() {
        let scratch = Scratch::new();
        let task = scratch.task("task");
        let leaf = task.leaf(&process(), 0).unwrap();
        let mut of_leaf = Sampler::of_leaf(&task, &process(), 0).unwrap();
        let mut of_task = Sampler::of_task(&task).unwrap();
        let before = of_leaf.sample(Extent::All).unwrap().unwrap();
        let mut inhabitant = scratch.inhabit(leaf.path(), SPIN);
        assert_eq!(inhabitant.line(), "spun");

        let after = of_leaf.sample(Extent::All).unwrap().unwrap();
        let task = of_task.sample(Extent::All).unwrap().unwrap();

        assert_eq!(micros(&before), 0);
        assert!(micros(&after) > 10_000, "{after:?}");
        assert!(micros(&task) >= micros(&after));
        assert_eq!((before.cgroup_id, after.is_new_cgroup), (after.cgroup_id, false));
        assert!(after.boot_nanos > before.boot_nanos);
        let stall = after.pressure.unwrap().cpu.unwrap().some.unwrap();
        assert!(stall.avg10.is_some() && stall.total.is_some());
    }

    #[test]
    fn a_leaf_is_sampled_once_it_is_there_and_until_it_is_gone() {
        let scratch = Scratch::new();
        let task = scratch.task("task");
        let mut sampler = Sampler::of_leaf(&task, &process(), 0).unwrap();
        assert_eq!(sampler.sample(Extent::All).unwrap(), None);

        let leaf = task.leaf(&process(), 0).unwrap();
        assert!(sampler.sample(Extent::All).unwrap().is_some());

        leaf.remove().unwrap();
        assert_eq!(sampler.sample(Extent::All).unwrap(), None);
        assert_eq!(sampler.sample(Extent::All).unwrap(), None);
    }

    #[test]
    fn a_leaf_that_was_made_again_under_its_name_is_a_new_one() {
        let scratch = Scratch::new();
        let task = scratch.task("task");
        let leaf = task.leaf(&process(), 0).unwrap();
        let mut sampler = Sampler::of_leaf(&task, &process(), 0).unwrap();
        let mut inhabitant = scratch.inhabit(leaf.path(), SPIN);
        assert_eq!(inhabitant.line(), "spun");
        let old = sampler.sample(Extent::All).unwrap().unwrap();
        drop(inhabitant);
        leaf.remove().unwrap();
        task.leaf(&process(), 0).unwrap();

        let new = sampler.sample(Extent::All).unwrap().unwrap();
        let next = sampler.sample(Extent::All).unwrap().unwrap();

        assert!(new.is_new_cgroup && new.cgroup_id != old.cgroup_id);
        assert_eq!(micros(&new), 0);
        assert_eq!((next.is_new_cgroup, next.cgroup_id), (false, new.cgroup_id));
    }

    #[test]
    fn memory_is_looked_into_every_other_second_and_of_what_stands_still_once_a_minute() {
        let sample = |seconds: u64, cpu: Option<u64>, charged: Option<u64>| {
            let time = cpu.map(|millis| Duration::from_millis(millis).into());
            let cpu = Some(crate::proto::CpuUsage { time, ..Default::default() });
            let memory = crate::proto::MemoryUsage { current_bytes: charged, ..Default::default() };
            let boot_nanos = seconds * 1_000_000_000;
            Sample { boot_nanos, cpu, memory: Some(memory), ..Sample::default() }
        };
        let before = sample(100, Some(5), Some(4096));
        let known = |seconds, cpu, charged| is_known(&before, &sample(seconds, cpu, charged));

        assert!(known(102, Some(5), Some(4096)) && known(159, Some(5), Some(4096)));
        assert!(!known(160, Some(5), Some(4096)), "a minute");
        assert!(!known(102, Some(6), Some(4096)), "something ran");
        assert!(!known(102, Some(5), Some(8192)), "something was charged");
        assert!(!known(102, None, Some(4096)) && !known(102, Some(5), None), "not known");
        assert!(known(101, Some(6), Some(8192)) && known(101, None, None), "just now");
    }

    #[test]
    fn what_has_long_stood_still_is_as_it_was_until_something_runs_or_a_minute_has_passed() {
        let sample = |seconds: u64, cpu: u64, charged: Option<u64>, waited: u64| {
            let (cpu, waited) = (Duration::from_millis(cpu), Duration::from_millis(waited));
            let memory = charged.map(|_| crate::proto::MemoryUsage {
                current_bytes: charged,
                // They age.
                anon_bytes: Some(seconds),
                working_set_bytes: Some(seconds),
                ..Default::default()
            });
            let some =
                Some(crate::proto::Stall { total: Some(waited.into()), ..Default::default() });
            let io = Some(crate::proto::Pressure { some, full: None });
            Sample {
                boot_nanos: seconds * 1_000_000_000,
                cpu: Some(crate::proto::CpuUsage { time: Some(cpu.into()), ..Default::default() }),
                memory,
                pressure: Some(crate::proto::PressureUsage { io, ..Default::default() }),
                ..Sample::default()
            }
        };
        let charged = Some(4096);
        let first = Kept::next(None, sample(100, 5, charged, 7));
        let waits = Kept::next(Some(&first), sample(130, 5, charged, 8));
        let still = Kept::next(Some(&waits), sample(139, 5, charged, 8));
        let now = |seconds, cpu, charged| sample(seconds, cpu, charged, 8);

        assert!(first.will_do(&now(140, 5, charged)) && !first.will_do(&now(139, 5, charged)));
        assert!(!still.will_do(&now(169, 5, charged)), "something waited at 130");
        assert!(still.will_do(&now(170, 5, charged)) && still.will_do(&now(197, 5, charged)));
        assert!(!still.will_do(&now(198, 5, charged)), "a minute");
        assert!(!still.will_do(&now(170, 6, charged)), "something ran");
        assert!(!still.will_do(&now(170, 5, Some(0))), "memory was taken away");
        let alone = Kept::next(None, sample(100, 5, None, 8));
        assert!(alone.will_do(&now(140, 5, None)), "no memory is accounted for");
    }

    #[test]
    fn of_what_has_long_stood_still_nothing_is_read_but_whether_it_does() {
        let scratch = Scratch::new();
        let task = scratch.task("task");
        let leaf = task.leaf(&process(), 0).unwrap();
        let mut inhabitant = scratch.inhabit(leaf.path(), SPIN);
        assert_eq!(inhabitant.line(), "spun");
        let mut sampler = Sampler::of_leaf(&task, &process(), 0).unwrap();
        let before = sampler.sample(Extent::Kept).unwrap().unwrap();
        let open = sampler.open.as_mut().unwrap();
        let kept = open.kept.as_mut().unwrap();
        kept.changed = kept.sample.boot_nanos - SETTLED.as_nanos() as u64;
        // Nobody can read them any more.
        open.files[SIGNS..].fill_with(|| None);

        let settled = sampler.sample(Extent::Kept).unwrap().unwrap();
        sampler.open.as_mut().unwrap().kept.as_mut().unwrap().changed = before.boot_nanos;
        let unsettled = sampler.sample(Extent::Kept).unwrap().unwrap();

        assert!(before.pressure.is_some() && settled.boot_nanos > before.boot_nanos);
        let times = Sample { time: before.time, boot_nanos: before.boot_nanos, ..settled };
        assert_eq!(times, before);
        assert_eq!(unsettled.pressure, None, "they would have been read");
    }

    /// What was removed and made again between two samples is also noticed if it was gone in one.
    #[test]
    fn a_leaf_that_was_gone_and_came_back_is_a_new_one() {
        let scratch = Scratch::new();
        let task = scratch.task("task");
        let leaf = task.leaf(&process(), 0).unwrap();
        let mut sampler = Sampler::of_leaf(&task, &process(), 0).unwrap();
        sampler.sample(Extent::All).unwrap().unwrap();
        leaf.remove().unwrap();
        assert_eq!(sampler.sample(Extent::All).unwrap(), None);
        task.leaf(&process(), 0).unwrap();

        assert!(sampler.sample(Extent::All).unwrap().unwrap().is_new_cgroup);
    }

    #[test]
    fn a_sampler_opens_nothing_once_it_is_open() {
        let scratch = Scratch::new();
        let task = scratch.task("task");
        task.leaf(&process(), 0).unwrap();
        let mut sampler = Sampler::of_leaf(&task, &process(), 0).unwrap();
        sampler.sample(Extent::All).unwrap().unwrap();
        let kept: Vec<_> = sampler.open.as_ref().unwrap().files.iter().flatten().map(raw).collect();

        sampler.sample(Extent::All).unwrap().unwrap();

        let again: Vec<_> =
            sampler.open.as_ref().unwrap().files.iter().flatten().map(raw).collect();
        assert_eq!(kept, again);
        assert_eq!(sampler.files(), kept.len() + 1);
        assert!(!kept.is_empty() && kept.len() <= Sampler::FILES);
    }

    /// Nobody pays for files that are not wanted.
    #[test]
    fn what_a_history_keeps_is_read_from_fewer_files() {
        let scratch = Scratch::new();
        let task = scratch.task("task");
        task.leaf(&process(), 0).unwrap();
        let mut sampler = Sampler::of_leaf(&task, &process(), 0).unwrap();
        let open = |sampler: &Sampler| {
            let files = &sampler.open.as_ref().unwrap().files;
            (0..FILES.len()).filter(|&of| files[of].is_some()).collect::<Vec<_>>()
        };

        let kept = sampler.sample(Extent::Kept).unwrap().unwrap();
        let few = open(&sampler);
        let all = sampler.sample(Extent::All).unwrap().unwrap();
        let more = open(&sampler);
        sampler.sample(Extent::Kept).unwrap().unwrap();

        assert!(!few.is_empty() && few.iter().all(|&of| of < Extent::Kept.files().len()));
        assert!(few.iter().all(|of| more.contains(of)));
        assert_eq!(open(&sampler), more, "nothing is closed that may be wanted again");
        assert_eq!((all.cgroup_id, all.is_new_cgroup), (kept.cgroup_id, false));
        assert!(kept.memory.unwrap_or_default().max_bytes.is_none());
    }

    fn raw(file: &OwnedFd) -> i32 {
        std::os::fd::AsRawFd::as_raw_fd(file)
    }

    #[test]
    fn a_device_has_the_name_that_sysfs_gives_it() {
        let entry = fs::read_dir("/sys/block").unwrap().next().unwrap().unwrap();
        let number = fs::read_to_string(entry.path().join("dev")).unwrap();

        let name = device_name(number.trim_end());

        assert_eq!(name.as_deref(), entry.file_name().to_str());
        assert_eq!(device_name("4095:1048575"), None);
    }
}
