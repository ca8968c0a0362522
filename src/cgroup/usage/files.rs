//! The files of a sample, and what each of them fills in. Pure.

use super::parse::{all_keyed, io_devices, keyed, micros, number, pressure, sum};
use crate::proto::{
    CpuUsage, IoUsage, MemoryEvents, MemoryUsage, PidsUsage, PressureUsage, Sample,
};

/// A file, and how its content is taken into a sample.
pub(super) type File = (&'static str, fn(&mut Sample, &[u8]));

/// How much of a sample is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Extent {
    /// What a history keeps: what goes up and down, and what adds up. No limit, and nothing that only tells of one: peaks of swap and
    /// pids, and forks that were refused.
    Kept,
    /// All that there is.
    All,
}

impl Extent {
    /// The files that are read.
    pub(super) fn files(self) -> &'static [File] {
        match self {
            Self::Kept => &FILES[..KEPT],
            Self::All => &FILES,
        }
    }
}

/// The file that costs the most by far: the kernel adds up some fifty figures of all CPUs, and writes them down.
pub(super) const STAT: &str = "memory.stat";

/// What a history keeps of a sample ([`Extent::Kept`]).
pub(super) fn kept(sample: Sample) -> Sample {
    let memory = sample.memory.map(|memory| MemoryUsage {
        max_bytes: None,
        high_bytes: None,
        swap_peak_bytes: None,
        swap_max_bytes: None,
        ..memory
    });
    let pids =
        sample.pids.map(|PidsUsage { current, .. }| PidsUsage { current, ..PidsUsage::default() });
    Sample { memory, pids, ..sample }
}

/// What is told of memory but for what is from [`STAT`], or follows from it.
pub(super) fn without_parts(memory: MemoryUsage) -> MemoryUsage {
    MemoryUsage {
        anon_bytes: None,
        file_bytes: None,
        kernel_bytes: None,
        inactive_file_bytes: None,
        working_set_bytes: None,
        ..memory
    }
}

/// Takes what is from [`STAT`] over from another sample.
pub(super) fn take_stat_over(from: &Sample, to: &mut Sample) {
    let Some(from) = from.memory else { return };
    let to = memory(to);
    to.anon_bytes = from.anon_bytes;
    to.file_bytes = from.file_bytes;
    to.kernel_bytes = from.kernel_bytes;
    to.inactive_file_bytes = from.inactive_file_bytes;
}

/// How many of [`FILES`], from the first on, tell whether anything has happened: nothing does that uses no CPU time, but that memory is taken away.
pub(super) const SIGNS: usize = 2;

/// How many of [`FILES`], from the first on, make what a history keeps.
const KEPT: usize = 11;

/// All that a sample is made of.
pub(super) const FILES: [File; 18] = [
    ("cpu.stat", cpu_stat),
    ("memory.current", |to, text| memory(to).current_bytes = number(text)),
    ("memory.peak", |to, text| memory(to).peak_bytes = number(text)),
    (STAT, memory_stat),
    ("memory.swap.current", |to, text| memory(to).swap_bytes = number(text)),
    ("memory.events", |to, text| memory(to).events = Some(memory_events(text))),
    ("io.stat", |to, text| to.io = Some(io_usage(text))),
    ("pids.current", |to, text| pids(to).current = number(text)),
    ("cpu.pressure", |to, text| pressures(to).cpu = Some(pressure(text))),
    ("memory.pressure", |to, text| pressures(to).memory = Some(pressure(text))),
    ("io.pressure", |to, text| pressures(to).io = Some(pressure(text))),
    ("memory.max", |to, text| memory(to).max_bytes = number(text)),
    ("memory.high", |to, text| memory(to).high_bytes = number(text)),
    ("memory.swap.peak", |to, text| memory(to).swap_peak_bytes = number(text)),
    ("memory.swap.max", |to, text| memory(to).swap_max_bytes = number(text)),
    ("pids.peak", |to, text| pids(to).peak = number(text)),
    ("pids.max", |to, text| pids(to).max = number(text)),
    ("pids.events", |to, text| pids(to).limit_hits = keyed(text, "max")),
];

/// Takes the content of the file `name` into a sample.
pub(super) fn take(sample: &mut Sample, name: &str, text: &[u8]) {
    if let Some((_, take)) = FILES.iter().find(|(file, _)| *file == name) {
        take(sample, text);
    }
}

/// Fills in what follows from the files together, once all are taken.
pub(super) fn finish(sample: &mut Sample) {
    if let Some(memory) = &mut sample.memory {
        let parts = memory.current_bytes.zip(memory.inactive_file_bytes);
        memory.working_set_bytes = parts.map(|(all, inactive)| all.saturating_sub(inactive));
    }
}

fn cpu_stat(to: &mut Sample, text: &[u8]) {
    let [time, user, system, throttled] =
        all_keyed(text, ["usage_usec", "user_usec", "system_usec", "throttled_usec"])
            .map(|time| time.and_then(micros));
    let [periods, throttled_periods] = all_keyed(text, ["nr_periods", "nr_throttled"]);
    to.cpu = Some(CpuUsage {
        time,
        user_time: user,
        system_time: system,
        periods,
        throttled_periods,
        throttled_time: throttled,
        rate: None,
    });
}

fn memory_stat(to: &mut Sample, text: &[u8]) {
    let memory = memory(to);
    [memory.anon_bytes, memory.file_bytes, memory.kernel_bytes, memory.inactive_file_bytes] =
        all_keyed(text, ["anon", "file", "kernel", "inactive_file"]);
}

fn memory_events(text: &[u8]) -> MemoryEvents {
    let [low, high, max, oom, oom_kill, oom_group_kill] =
        all_keyed(text, ["low", "high", "max", "oom", "oom_kill", "oom_group_kill"]);
    MemoryEvents { low, high, max, oom, oom_kill, oom_group_kill }
}

fn io_usage(text: &[u8]) -> IoUsage {
    let devices = io_devices(text);
    let read_bytes = sum(devices.iter().map(|device| device.read_bytes));
    let write_bytes = sum(devices.iter().map(|device| device.write_bytes));
    IoUsage { devices, read_bytes, write_bytes }
}

fn memory(sample: &mut Sample) -> &mut MemoryUsage {
    sample.memory.get_or_insert_default()
}

fn pids(sample: &mut Sample) -> &mut PidsUsage {
    sample.pids.get_or_insert_default()
}

fn pressures(sample: &mut Sample) -> &mut PressureUsage {
    sample.pressure.get_or_insert_default()
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    fn sample(files: &[(&str, &str)]) -> Sample {
        let mut sample = Sample::default();
        for (name, text) in files {
            assert!(FILES.iter().any(|(file, _)| file == name), "{name}");
            take(&mut sample, name, text.as_bytes());
        }
        finish(&mut sample);
        sample
    }

    /// The sample of a cgroup that has all files.
    pub(crate) fn whole(extent: Extent) -> Sample {
        without(extent, "")
    }

    /// The same for each of the files, when it is not there.
    pub(crate) fn each_without(extent: Extent) -> Vec<(&'static str, Sample)> {
        extent.files().iter().map(|&(name, _)| (name, without(extent, name))).collect()
    }

    fn without(extent: Extent, missing: &str) -> Sample {
        let is_read = |name: &str| extent.files().iter().any(|(file, _)| *file == name);
        let files = CONTENT.iter().filter(|(name, _)| is_read(name) && *name != missing);
        sample(&files.copied().collect::<Vec<_>>())
    }

    const CONTENT: [(&str, &str); FILES.len()] = [
        (
            "cpu.stat",
            "usage_usec 1500000\nuser_usec 1000000\nsystem_usec 500000\nnr_periods 9\nnr_throttled 3\nthrottled_usec 250000\n",
        ),
        ("memory.current", "1000\n"),
        ("memory.peak", "2000\n"),
        (
            "memory.stat",
            "anon 400\nfile 300\nkernel 200\nkernel_stack 50\ninactive_file 100\nactive_file 200\n",
        ),
        ("memory.max", "4096\n"),
        ("memory.high", "3072\n"),
        ("memory.swap.current", "5\n"),
        ("memory.swap.peak", "6\n"),
        ("memory.swap.max", "7\n"),
        ("memory.events", "low 1\nhigh 2\nmax 3\noom 4\noom_kill 5\noom_group_kill 6\n"),
        ("io.stat", "254:0 rbytes=1 wbytes=2 rios=3 wios=4 dbytes=5 dios=6\n"),
        ("pids.current", "2\n"),
        ("pids.peak", "3\n"),
        ("pids.max", "64\n"),
        ("pids.events", "max 8\n"),
        (
            "cpu.pressure",
            "some avg10=1.00 avg60=0.00 avg300=0.00 total=1\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=0\n",
        ),
        ("memory.pressure", "some avg10=2.00 avg60=0.00 avg300=0.00 total=2\n"),
        ("io.pressure", "some avg10=3.00 avg60=0.00 avg300=0.00 total=3\n"),
    ];

    #[test]
    fn what_a_history_keeps_of_all_is_what_is_read_for_it() {
        assert_eq!(kept(whole(Extent::All)), whole(Extent::Kept));
        assert_eq!(kept(whole(Extent::Kept)), whole(Extent::Kept));
    }

    fn json(sample: &Sample) -> serde_json::Value {
        serde_json::to_value(sample).unwrap()
    }

    #[test]
    fn every_file_fills_in_its_own_fields() {
        let sample = sample(&CONTENT);

        assert_eq!(
            json(&sample),
            serde_json::json!({
                "bootNanos": "0", "cgroupId": "0", "isNewCgroup": false,
                "cpu": {
                    "time": "1.500s", "userTime": "1s", "systemTime": "0.500s",
                    "periods": "9", "throttledPeriods": "3", "throttledTime": "0.250s"
                },
                "memory": {
                    "currentBytes": "1000", "peakBytes": "2000", "anonBytes": "400", "fileBytes": "300",
                    "kernelBytes": "200", "inactiveFileBytes": "100", "workingSetBytes": "900",
                    "maxBytes": "4096", "highBytes": "3072",
                    "swapBytes": "5", "swapPeakBytes": "6", "swapMaxBytes": "7",
                    "events": {"low": "1", "high": "2", "max": "3", "oom": "4", "oomKill": "5", "oomGroupKill": "6"}
                },
                "io": {"devices": [{
                    "device": "254:0", "readBytes": "1", "writeBytes": "2", "reads": "3", "writes": "4",
                    "discardBytes": "5", "discards": "6"
                }], "readBytes": "1", "writeBytes": "2"},
                "pids": {"current": "2", "peak": "3", "max": "64", "limitHits": "8"},
                "pressure": {
                    "cpu": {"some": {"avg10": 1.0, "total": "0.000001s"}, "full": {"avg10": 0.0, "total": "0s"}},
                    "memory": {"some": {"avg10": 2.0, "total": "0.000002s"}},
                    "io": {"some": {"avg10": 3.0, "total": "0.000003s"}}
                }
            })
        );
    }

    #[test]
    fn what_is_taken_over_is_all_that_the_file_has() {
        let texts: Vec<_> = CONTENT.into_iter().filter(|(name, _)| *name != STAT).collect();
        let mut without = sample(&texts);

        take_stat_over(&whole(Extent::All), &mut without);
        finish(&mut without);

        assert_eq!(without, whole(Extent::All));
    }

    #[test]
    fn what_is_not_told_is_absent_and_never_zero() {
        let sample = sample(&[
            ("cpu.stat", "usage_usec 7\n"),
            ("memory.current", "10\n"),
            ("memory.max", "max\n"),
            ("memory.stat", "anon 4\n"),
        ]);

        assert_eq!(
            json(&sample),
            serde_json::json!({
                "bootNanos": "0", "cgroupId": "0", "isNewCgroup": false,
                "cpu": {"time": "0.000007s"},
                "memory": {"currentBytes": "10", "anonBytes": "4"}
            })
        );
    }

    /// `memory.stat` is counted in batches and can run ahead of `memory.current`.
    #[test]
    fn a_working_set_is_never_less_than_nothing() {
        let sample = sample(&[("memory.current", "10\n"), ("memory.stat", "inactive_file 11\n")]);

        assert_eq!(sample.memory.unwrap().working_set_bytes, Some(0));
    }

    #[test]
    fn no_device_at_all_is_not_the_same_as_no_controller() {
        let nothing = IoUsage { devices: Vec::new(), read_bytes: Some(0), write_bytes: Some(0) };
        assert_eq!(sample(&[("io.stat", "")]).io, Some(nothing));
        assert_eq!(sample(&[]).io, None);
    }
}
