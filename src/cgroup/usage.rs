//! What a cgroup and all beneath it used.
//!
//! The files are flat or nested lists of keys (cgroup-v2.rst, "Format"). Kernels add keys: what is
//! not known is passed over. A value that does not fit, or a file that is not there, is unknown; it
//! is never zero, and never spoils the rest.

use super::Cgroup;
use crate::proto;

/// Usage as the kernel accounts for it; `None`: this host does not.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct RawUsage {
    /// CPU time, microseconds.
    pub cpu_usec: Option<u64>,
    /// CPU time in user mode, microseconds.
    pub cpu_user_usec: Option<u64>,
    /// CPU time in kernel mode, microseconds.
    pub cpu_system_usec: Option<u64>,
    /// Most memory held at one time, bytes (Linux 5.19).
    pub memory_peak: Option<u64>,
    /// Bytes read from block devices.
    pub io_read: Option<u64>,
    /// Bytes written to block devices.
    pub io_written: Option<u64>,
    /// Processes that the kernel killed for want of memory, each victim counted.
    pub oom_kills: Option<u64>,
}

impl Cgroup {
    /// Reads what this cgroup and all beneath it, dead or alive, used up to now.
    pub fn usage(&self) -> RawUsage {
        let read = |file| self.dir().read(file).ok();
        let cpu = read("cpu.stat");
        let cpu = |key| cpu.as_deref().and_then(|text| keyed(text, key));
        let io = read("io.stat");
        let io = |key| io.as_deref().and_then(|text| nested_sum(text, key));
        RawUsage {
            cpu_usec: cpu("usage_usec"),
            cpu_user_usec: cpu("user_usec"),
            cpu_system_usec: cpu("system_usec"),
            memory_peak: read("memory.peak").as_deref().and_then(number),
            io_read: io("rbytes"),
            io_written: io("wbytes"),
            oom_kills: read("memory.events").as_deref().and_then(|text| keyed(text, "oom_kill")),
        }
    }
}

impl From<RawUsage> for proto::Usage {
    fn from(usage: RawUsage) -> Self {
        Self {
            cpu_time: usage.cpu_usec.and_then(duration),
            cpu_user_time: usage.cpu_user_usec.and_then(duration),
            cpu_system_time: usage.cpu_system_usec.and_then(duration),
            memory_peak_bytes: usage.memory_peak,
            io_read_bytes: usage.io_read,
            io_write_bytes: usage.io_written,
            oom_kills: usage.oom_kills,
        }
    }
}

/// Microseconds as a message; `None` beyond the 10,000 years that it allows.
fn duration(usec: u64) -> Option<pbjson_types::Duration> {
    const SECONDS_MAX: i64 = 315_576_000_000;
    let seconds = i64::try_from(usec / 1_000_000).ok().filter(|&s| s < SECONDS_MAX)?;
    let nanos = i32::try_from(usec % 1_000_000 * 1000).ok()?;
    Some(pbjson_types::Duration { seconds, nanos })
}

/// The value of `key` in lines of `key value`.
pub(super) fn keyed(text: &[u8], key: &str) -> Option<u64> {
    text.split(|&byte| byte == b'\n').find_map(|line| {
        let value = line.strip_prefix(key.as_bytes())?.strip_prefix(b" ")?;
        number(value)
    })
}

/// The sum of `key` over lines of `device key=value key=value`; no lines are a sum of 0.
fn nested_sum(text: &[u8], key: &str) -> Option<u64> {
    text.split(|&byte| byte == b'\n')
        .flat_map(|line| line.split(|&byte| byte == b' ').skip(1))
        .filter_map(|pair| pair.strip_prefix(key.as_bytes())?.strip_prefix(b"="))
        .try_fold(0u64, |sum, value| sum.checked_add(number(value)?))
}

/// A decimal number that fits.
fn number(text: &[u8]) -> Option<u64> {
    std::str::from_utf8(text).ok()?.trim_ascii_end().parse().ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn keys_are_found_whole_among_unknown_ones() {
        let text = b"usage_usec 42\nuser_usec 40\nsystem_usec 2\nnice_usec 0\ncore_sched.force 7\n";

        assert_eq!(keyed(text, "usage_usec"), Some(42));
        assert_eq!(keyed(text, "system_usec"), Some(2));
        assert_eq!(keyed(text, "usage"), None);
        assert_eq!(keyed(text, "usec"), None);
    }

    #[test]
    fn an_oom_kill_is_not_mistaken_for_a_group_kill() {
        let text = b"low 0\nhigh 0\nmax 3\noom 1\noom_group_kill 1\noom_kill 5\n";

        assert_eq!(keyed(text, "oom_kill"), Some(5));
    }

    #[test]
    fn io_is_the_sum_over_devices() {
        let text = b"254:0 rbytes=100 wbytes=7 rios=1 wios=1 dbytes=0 dios=0\n\
            8:16 cost.usage=3 rbytes=11 wbytes=1\n7:0 \n";

        assert_eq!(nested_sum(text, "rbytes"), Some(111));
        assert_eq!(nested_sum(text, "wbytes"), Some(8));
        assert_eq!(nested_sum(b"", "rbytes"), Some(0));
    }

    /// attack 50: odd values lose one field, not the sample.
    #[test]
    fn a_value_that_does_not_fit_is_unknown() {
        for value in ["18446744073709551616", "max", "-1", "", "1.5", "0x10"] {
            assert_eq!(keyed(format!("usage_usec {value}\n").as_bytes(), "usage_usec"), None);
        }
        assert_eq!(keyed(b"usage_usec 18446744073709551615\n", "usage_usec"), Some(u64::MAX));
        let two = b"1:0 rbytes=18446744073709551615\n1:1 rbytes=1\n";
        assert_eq!(nested_sum(two, "rbytes"), None);
    }

    #[test]
    fn a_record_has_what_is_known_and_no_more() {
        let usage =
            RawUsage { cpu_usec: Some(1_500_000), oom_kills: Some(0), ..RawUsage::default() };

        let json = serde_json::to_string(&proto::Usage::from(usage)).unwrap();

        assert_eq!(json, r#"{"cpuTime":"1.500s","oomKills":"0"}"#);
        assert_eq!(duration(u64::MAX), None);
    }

    proptest! {
        #[test]
        fn no_bytes_make_a_parser_panic(text: Vec<u8>) {
            keyed(&text, "usage_usec");
            nested_sum(&text, "rbytes");
            number(&text);
        }

        #[test]
        fn a_number_is_read_as_it_was_written(value: u64) {
            prop_assert_eq!(keyed(format!("x 1\noom_kill {value}\n").as_bytes(), "oom_kill"), Some(value));
        }
    }
}
