//! What was used between two samples of the same cgroup, per second.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::proto::{Sample, Usage};

/// The sample of each task, and of each of its processes, that was told last.
#[derive(Debug, Default)]
pub(super) struct Rates(BTreeMap<Key, Counters>);

/// Task, process (empty: the task itself) and cgroup.
type Key = (String, String, u64);

/// What only grows.
#[derive(Debug, Clone, Copy)]
struct Counters {
    boot_nanos: u64,
    cpu: Option<Duration>,
    read: Option<u64>,
    written: Option<u64>,
}

/// What was used per second since the sample before; absent where there was none, or a counter has gone back.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub(super) struct Rate {
    /// CPUs.
    pub(super) cpus: Option<f64>,
    /// Bytes read from block devices.
    pub(super) read: Option<f64>,
    /// Bytes written to them.
    pub(super) written: Option<f64>,
}

impl Rates {
    /// What was used since the last sample of the same cgroup. Takes note of this one.
    ///
    /// Where there was none, a rate that the daemon tells is as good.
    pub(super) fn since(&mut self, task: &str, process: &str, sample: &Sample) -> Rate {
        let now = Counters::of(sample);
        let key = (task.to_owned(), process.to_owned(), sample.cgroup_id);
        let rate = self.0.insert(key, now).map(|before| before.rate(&now)).unwrap_or_default();
        let told = sample.cpu.and_then(|cpu| cpu.rate);
        Rate { cpus: rate.cpus.or(told), ..rate }
    }

    /// Forgets the samples before `oldest`, in nanoseconds of CLOCK_BOOTTIME.
    pub(super) fn forget(&mut self, oldest: u64) {
        self.0.retain(|_, of| of.boot_nanos >= oldest);
    }
}

impl Counters {
    fn of(sample: &Sample) -> Self {
        let Usage { io_read_bytes: read, io_write_bytes: written, cpu_time, .. } =
            Usage::from(sample);
        let cpu = cpu_time.and_then(|time| Duration::try_from(time).ok());
        Self { boot_nanos: sample.boot_nanos, cpu, read, written }
    }

    fn rate(&self, now: &Self) -> Rate {
        let passed = now.boot_nanos.checked_sub(self.boot_nanos).filter(|&nanos| nanos > 0);
        let per_second = |grown: f64| Some(grown / Duration::from_nanos(passed?).as_secs_f64());
        let bytes =
            |before: Option<u64>, now: Option<u64>| per_second(now?.checked_sub(before?)? as f64);
        let cpu = self.cpu.zip(now.cpu).and_then(|(before, now)| now.checked_sub(before));
        Rate {
            cpus: cpu.and_then(|used| per_second(used.as_secs_f64())),
            read: bytes(self.read, now.read),
            written: bytes(self.written, now.written),
        }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use pbjson_types::Duration as Span;

    use super::*;
    use crate::proto::{CpuUsage, IoUsage};

    pub(crate) fn sample(boot_seconds: u64, cpu_millis: u64, cgroup_id: u64) -> Sample {
        let time = Span::from(Duration::from_millis(cpu_millis));
        Sample {
            boot_nanos: boot_seconds * 1_000_000_000,
            cgroup_id,
            cpu: Some(CpuUsage { time: Some(time), ..CpuUsage::default() }),
            ..Sample::default()
        }
    }

    #[test]
    fn a_rate_needs_two_samples_of_the_same_cgroup() {
        let mut rates = Rates::default();
        let mut cpus = |task, process, sample: &Sample| rates.since(task, process, sample).cpus;

        assert_eq!(cpus("t", "", &sample(1, 100, 7)), None);
        assert_eq!(cpus("t", "", &sample(3, 1100, 7)), Some(0.5));
        assert_eq!(cpus("t", "p", &sample(3, 1100, 8)), None);
        assert_eq!(cpus("t", "", &sample(4, 0, 9)), None, "made again");
        assert_eq!(cpus("t", "", &sample(4, 10, 9)), None, "no time has passed");
        assert_eq!(cpus("t", "", &sample(5, 5, 9)), None, "the counter went back");
    }

    #[test]
    fn bytes_have_a_rate_of_their_own_and_what_the_daemon_tells_counts_at_first() {
        let mut rates = Rates::default();
        let io = |seconds, bytes| Sample {
            io: Some(IoUsage { read_bytes: Some(bytes), ..IoUsage::default() }),
            ..sample(seconds, seconds * 1000, 7)
        };
        let mut first = io(1, 1000);
        first.cpu.as_mut().unwrap().rate = Some(0.25);

        assert_eq!(rates.since("t", "", &first), Rate { cpus: Some(0.25), ..Rate::default() });
        let second = Rate { cpus: Some(1.0), read: Some(250.0), written: None };
        assert_eq!(rates.since("t", "", &io(3, 1500)), second);
    }

    #[test]
    fn what_was_not_sampled_again_is_forgotten() {
        let mut rates = Rates::default();
        rates.since("t", "", &sample(1, 1, 7));
        rates.since("t", "", &sample(2, 2, 8));

        rates.forget(2_000_000_000);

        assert_eq!(rates.0.len(), 1);
    }
}
