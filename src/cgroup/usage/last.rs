//! What is kept of a run, or of a task, once it has ended.

use std::os::fd::AsFd;

use nix::fcntl::OFlag;

use super::Buffer;
use super::files::take;
use super::parse::sum;
use crate::cgroup::Cgroup;
use crate::proto::{IoDevice, Sample, Usage};

/// The files that are kept: few, since every run waits for them. Of each controller the one that came first with it comes first: where
/// that is not there, nor are the others.
const KEPT: [&[&str]; 4] =
    [&["cpu.stat"], &["memory.events", "memory.peak"], &["io.stat"], &["pids.events", "pids.peak"]];

impl Cgroup {
    /// Reads what this cgroup and all beneath it, dead or alive, used up to now.
    pub fn usage(&self) -> Usage {
        let mut buffer = Buffer::new();
        let mut sample = Sample::default();
        for controller in KEPT {
            for name in controller {
                let Ok(file) = self.dir().open_file(name, OFlag::O_RDONLY) else { break };
                if let Ok(text) = buffer.read(file.as_fd()) {
                    take(&mut sample, name, text);
                }
            }
        }
        Usage::from(&sample)
    }
}

impl From<&Sample> for Usage {
    fn from(sample: &Sample) -> Self {
        let cpu = sample.cpu.unwrap_or_default();
        let memory = sample.memory.unwrap_or_default();
        let events = memory.events.unwrap_or_default();
        let pids = sample.pids.unwrap_or_default();
        let io = sample.io.as_ref();
        // Of a sample that was kept in a history there are no devices, only what they read and wrote together.
        let of_devices = |figure: fn(&IoDevice) -> Option<u64>| {
            let devices = &io?.devices;
            let is_kept = devices.is_empty() && io?.read_bytes.or(io?.write_bytes).is_some();
            if is_kept { None } else { sum(devices.iter().map(figure)) }
        };
        Self {
            cpu_time: cpu.time,
            cpu_user_time: cpu.user_time,
            cpu_system_time: cpu.system_time,
            cpu_throttled_time: cpu.throttled_time,
            cpu_throttled_periods: cpu.throttled_periods,
            memory_peak_bytes: memory.peak_bytes,
            memory_limit_hits: events.max,
            oom_kills: events.oom_kill,
            io_read_bytes: of_devices(|device| device.read_bytes)
                .or(io.and_then(|io| io.read_bytes)),
            io_write_bytes: of_devices(|device| device.write_bytes)
                .or(io.and_then(|io| io.write_bytes)),
            io_reads: of_devices(|device| device.reads),
            io_writes: of_devices(|device| device.writes),
            pids_peak: pids.peak,
            pids_limit_hits: pids.limit_hits,
        }
    }
}

#[cfg(test)]
mod tests {
    use pbjson_types::Duration;

    use super::*;
    use crate::proto::{CpuUsage, IoUsage, MemoryEvents, MemoryUsage};

    #[test]
    fn what_is_kept_has_what_is_known_and_no_more() {
        let device = |read, write| IoDevice {
            read_bytes: Some(read),
            write_bytes: write,
            ..IoDevice::default()
        };
        let sample = Sample {
            cpu: Some(CpuUsage {
                time: Some(Duration { seconds: 1, nanos: 500_000_000 }),
                ..CpuUsage::default()
            }),
            memory: Some(MemoryUsage {
                events: Some(MemoryEvents { oom_kill: Some(0), ..MemoryEvents::default() }),
                ..MemoryUsage::default()
            }),
            io: Some(IoUsage {
                devices: vec![device(100, Some(7)), device(11, None)],
                ..IoUsage::default()
            }),
            ..Sample::default()
        };

        let json = serde_json::to_value(Usage::from(&sample)).unwrap();

        assert_eq!(
            json,
            serde_json::json!({
                "cpuTime": "1.500s", "oomKills": "0", "ioReadBytes": "111"
            })
        );
        assert_eq!(serde_json::to_string(&Usage::from(&Sample::default())).unwrap(), "{}");
    }
}
