//! What several runs used together. Pure.

use pbjson_types::Duration;

use crate::proto::Usage;
use crate::state::Run;

/// What `runs` used together, as far as it is recorded; `None` if it is of none of them.
///
/// Times, bytes and counts are added up. Of peaks the largest is told: the peak of all together is at least that. A run that
/// was LOST has no usage, and is not in it; what is known of no run is absent.
pub fn together<'a>(runs: impl IntoIterator<Item = &'a Run>) -> Option<Usage> {
    let usages = runs.into_iter().filter_map(|run| run.end.as_ref()?.usage);
    usages.reduce(|sum, usage| add(&sum, &usage))
}

fn add(a: &Usage, b: &Usage) -> Usage {
    Usage {
        cpu_time: both(a.cpu_time, b.cpu_time, time),
        cpu_user_time: both(a.cpu_user_time, b.cpu_user_time, time),
        cpu_system_time: both(a.cpu_system_time, b.cpu_system_time, time),
        cpu_throttled_time: both(a.cpu_throttled_time, b.cpu_throttled_time, time),
        cpu_throttled_periods: both(a.cpu_throttled_periods, b.cpu_throttled_periods, count),
        memory_peak_bytes: both(a.memory_peak_bytes, b.memory_peak_bytes, u64::max),
        memory_limit_hits: both(a.memory_limit_hits, b.memory_limit_hits, count),
        oom_kills: both(a.oom_kills, b.oom_kills, count),
        io_read_bytes: both(a.io_read_bytes, b.io_read_bytes, count),
        io_write_bytes: both(a.io_write_bytes, b.io_write_bytes, count),
        io_reads: both(a.io_reads, b.io_reads, count),
        io_writes: both(a.io_writes, b.io_writes, count),
        pids_peak: both(a.pids_peak, b.pids_peak, u64::max),
        pids_limit_hits: both(a.pids_limit_hits, b.pids_limit_hits, count),
    }
}

fn both<T>(a: Option<T>, b: Option<T>, join: impl Fn(T, T) -> T) -> Option<T> {
    match (a, b) {
        (Some(a), Some(b)) => Some(join(a, b)),
        (a, b) => a.or(b),
    }
}

fn count(a: u64, b: u64) -> u64 {
    a.saturating_add(b)
}

fn time(a: Duration, b: Duration) -> Duration {
    const NANOS: i32 = 1_000_000_000;
    // Both come from a stream, where anything may stand.
    let nanos = a.nanos.rem_euclid(NANOS) + b.nanos.rem_euclid(NANOS);
    let seconds = a.seconds.saturating_add(b.seconds).saturating_add((nanos / NANOS).into());
    Duration { seconds, nanos: nanos % NANOS }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seconds(seconds: i64, nanos: i32) -> Option<Duration> {
        Some(Duration { seconds, nanos })
    }

    #[test]
    fn times_and_counts_are_added_and_of_peaks_the_largest_is_told() {
        let first = Usage {
            cpu_time: seconds(1, 600_000_000),
            memory_peak_bytes: Some(10),
            io_read_bytes: Some(5),
            pids_peak: Some(3),
            ..Usage::default()
        };
        let second = Usage {
            cpu_time: seconds(2, 500_000_000),
            memory_peak_bytes: Some(7),
            io_read_bytes: Some(u64::MAX),
            oom_kills: Some(1),
            ..Usage::default()
        };

        let sum = add(&first, &second);

        let expected = Usage {
            cpu_time: seconds(4, 100_000_000),
            memory_peak_bytes: Some(10),
            io_read_bytes: Some(u64::MAX),
            pids_peak: Some(3),
            oom_kills: Some(1),
            ..Usage::default()
        };
        assert_eq!(sum, expected);
    }

    #[test]
    fn of_runs_without_usage_nothing_is_told() {
        assert_eq!(together([]), None);
    }
}
