//! What a task or a run may use: the rules of a `resources` mapping, but for what a host can do.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use super::list::NumberList;
use super::quoted;
use super::validate::{Violation, Violations, duration_to_proto};
use crate::proto;
use crate::proto::io_max::Target;

/// An amount that is no limit, said aloud: `max` in a task file and in the kernel's files.
pub const NO_LIMIT: u64 = u64::MAX;
/// Least CPUs: 1 ms of each 100 ms, below which the kernel refuses to go (cgroup v2, `cpu.max`).
pub const MIN_CPU: f64 = 0.01;
/// Most CPUs of a ceiling: far from what overflows in the kernel, in any period.
pub const MAX_CPU_LIMIT: f64 = 1_000_000.0;
/// Default period of a ceiling of CPU time: the kernel's own.
pub const CPU_PERIOD: Duration = Duration::from_millis(100);
/// Shortest and longest period (`min_cfs_quota_period` and `max_cfs_quota_period` of the kernel).
pub const CPU_PERIODS: [Duration; 2] = [Duration::from_millis(1), Duration::from_secs(1)];
/// Least CPU time in a period, microseconds (`min_cfs_quota_period`).
pub const MIN_CPU_QUOTA: u64 = 1000;
/// Most processes and threads that a 64-bit kernel can have (`PID_MAX_LIMIT`).
pub const MAX_PIDS: u64 = 4 << 20;
/// The kernel's bounds of a weight (cgroup-v2.rst, "Weights").
pub const WEIGHTS: [u32; 2] = [1, 10_000];
/// Highest CPU number (`NR_CPUS` is at most 8192).
pub const MAX_CPU_NUMBER: u32 = 8191;
/// Highest memory node (`MAX_NUMNODES` is at most 1024).
pub const MAX_NODE_NUMBER: u32 = 1023;
/// Most ceilings of disks, page sizes, and named files: each costs system calls for each run.
pub const MAX_ENTRIES: usize = 64;
/// Longest value of a file that is given by name: what one write takes (`PAGE_SIZE`).
pub const MAX_RAW_BYTES: usize = 4095;

/// What a task or a run may use; `None`: as it would be without dewar. Amounts of [`NO_LIMIT`] lift a limit.
///
/// What is in here keeps every rule of the schema. Whether a host can enforce it is another question.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Resources {
    /// CPUs, as a share of what is contended for.
    pub cpu: Option<f64>,
    /// A ceiling of CPU time.
    pub cpu_limit: Option<CpuLimit>,
    /// Most memory, bytes.
    pub ram: Option<u64>,
    /// Memory beyond which processes are slowed down, bytes.
    pub memory_high: Option<u64>,
    /// Memory that is taken back only if there is no other, bytes.
    pub memory_low: Option<u64>,
    /// Memory that is never taken back, bytes.
    pub memory_min: Option<u64>,
    /// Most swap space, bytes.
    pub swap: Option<u64>,
    /// Whether all die where one is killed for want of memory; `None`: a run does, a task does not.
    pub oom_group: Option<bool>,
    /// Most processes and threads.
    pub pids: Option<u64>,
    /// Block devices.
    pub io: Io,
    /// What may be used at all.
    pub cpuset: Cpuset,
    /// Most huge pages, bytes, by the size of a page as the kernel names it: `2MB`.
    pub hugetlb: BTreeMap<String, u64>,
    /// Values by file of the cgroup.
    pub cgroup: BTreeMap<String, String>,
    /// Bytes of disk.
    pub disk: Option<u64>,
    /// GPUs, at least 1.
    pub gpu: Option<u32>,
}

impl Resources {
    /// Takes `resources`, found at `field`, if they keep every rule: those of a task, or the part of them that is to be changed.
    ///
    /// # Errors
    ///
    /// Every rule that they break and where.
    pub fn from_proto(resources: &proto::Resources, field: &str) -> Result<Self, Vec<Violation>> {
        let mut violations = Violations::default();
        let checked = check(resources, format_args!("{field}"), &mut violations);
        if violations.list.is_empty() { Ok(checked) } else { Err(violations.list) }
    }

    /// The same as a message; [`Resources::from_proto`] gives `self` back.
    pub fn to_proto(&self) -> proto::Resources {
        proto::Resources {
            cpu: self.cpu,
            ram_bytes: self.ram,
            disk_bytes: self.disk,
            gpu: self.gpu,
            cpu_limit: self.cpu_limit.map(|limit| proto::CpuLimit {
                cpus: limit.cpus,
                period: Some(duration_to_proto(limit.period)),
                burst: Some(duration_to_proto(limit.burst)),
            }),
            memory_high_bytes: self.memory_high,
            memory_low_bytes: self.memory_low,
            memory_min_bytes: self.memory_min,
            swap_bytes: self.swap,
            oom_group: self.oom_group,
            pids: self.pids,
            io: (self.io != Io::default()).then(|| proto::Io {
                weight: self.io.weight,
                max: self.io.max.iter().map(io_max_to_proto).collect(),
            }),
            cpuset: (self.cpuset != Cpuset::default()).then(|| proto::Cpuset {
                cpus: self.cpuset.cpus.as_ref().map(ToString::to_string),
                mems: self.cpuset.mems.as_ref().map(ToString::to_string),
            }),
            hugetlb: self.hugetlb.clone(),
            cgroup: self.cgroup.clone(),
        }
    }
}

/// A ceiling of CPU time.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct CpuLimit {
    /// CPUs; `None`: no ceiling.
    pub cpus: Option<f64>,
    /// Over which time it is counted, whole microseconds within [`CPU_PERIODS`].
    pub period: Duration,
    /// CPU time that may be saved up, whole microseconds: at most [`CpuLimit::quota`].
    pub burst: Duration,
}

impl CpuLimit {
    /// CPU time in each period, microseconds, rounded; `None`: any.
    pub fn quota(&self) -> Option<u64> {
        // In range: at most MAX_CPU_LIMIT times a second.
        self.cpus.map(|cpus| (cpus * self.period.as_micros() as f64).round() as u64)
    }
}

/// Limits of the use of block devices.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Io {
    /// Share of what is contended for, within [`WEIGHTS`].
    pub weight: Option<u32>,
    /// Ceilings, by disk.
    pub max: Vec<IoMax>,
}

/// A ceiling of the use of one disk; at least one of the four is there, and none is 0.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IoMax {
    /// The disk.
    pub target: IoTarget,
    /// Bytes read in a second.
    pub rbps: Option<u64>,
    /// Bytes written in a second.
    pub wbps: Option<u64>,
    /// Reads in a second.
    pub riops: Option<u64>,
    /// Writes in a second.
    pub wiops: Option<u64>,
}

/// What a ceiling names its disk by.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum IoTarget {
    /// An absolute path: the disk that its file system is on, or the block device that it names.
    Path(String),
    /// Numbers of a disk or of one of its partitions.
    Device(Device),
}

impl fmt::Display for IoTarget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Path(path) => f.write_str(path),
            Self::Device(device) => device.fmt(f),
        }
    }
}

/// The numbers of a block device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Device {
    /// Of its driver.
    pub major: u32,
    /// Of itself.
    pub minor: u32,
}

impl Device {
    /// Reads `8:0`.
    pub fn parse(text: &str) -> Option<Self> {
        let number = |text: &str| {
            let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
            digits.then(|| text.parse().ok()).flatten()
        };
        let (major, minor) = text.split_once(':')?;
        Some(Self { major: number(major)?, minor: number(minor)? })
    }
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.major, self.minor)
    }
}

/// CPUs and memory nodes that may be used at all; `None`: all that those around may use.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Cpuset {
    /// CPUs.
    pub cpus: Option<NumberList>,
    /// Memory nodes.
    pub mems: Option<NumberList>,
}

/// Bytes of a huge page by its name in the kernel's files, such as `2MB`; `None` if it is no such name.
pub fn huge_page_bytes(name: &str) -> Option<u64> {
    let units = [("KB", 1u64 << 10), ("MB", 1 << 20), ("GB", 1 << 30)];
    let (digits, unit) =
        units.iter().find_map(|&(suffix, unit)| Some((name.strip_suffix(suffix)?, unit)))?;
    let plain = digits.bytes().all(|byte| byte.is_ascii_digit()) && !digits.starts_with('0');
    plain.then(|| digits.parse::<u64>().ok()?.checked_mul(unit)).flatten()
}

/// Files that have a field of their own, and that field. The last row stands for every size of page.
const NAMED: [(&str, &str); 19] = [
    ("cpu.weight", "cpu"),
    ("cpu.weight.nice", "cpu"),
    ("cpu.max", "cpu_limit"),
    ("cpu.max.burst", "cpu_limit.burst"),
    ("memory.max", "ram"),
    ("memory.high", "memory_high"),
    ("memory.low", "memory_low"),
    ("memory.min", "memory_min"),
    ("memory.swap.max", "swap"),
    ("memory.oom.group", "oom_group"),
    ("pids.max", "pids"),
    ("io.weight", "io.weight"),
    ("io.bfq.weight", "io.weight"),
    ("io.max", "io.max"),
    ("cpuset.cpus", "cpuset.cpus"),
    ("cpuset.mems", "cpuset.mems"),
    ("cpuset.cpus.effective", "cpuset.cpus"),
    ("cpuset.mems.effective", "cpuset.mems"),
    ("hugetlb.*.max", "hugetlb"),
];

/// Controllers that a file may belong to.
const CONTROLLERS: [&str; 9] =
    ["cpu", "memory", "io", "pids", "cpuset", "hugetlb", "rdma", "misc", "dmem"];

/// The field that is there for `file`.
fn field_of(file: &str) -> Option<&'static str> {
    let huge = file.strip_prefix("hugetlb.").and_then(|rest| rest.strip_suffix(".max"));
    let file = if huge.is_some_and(|size| !size.contains('.')) { "hugetlb.*.max" } else { file };
    NAMED.iter().find(|(named, _)| *named == file).map(|&(_, field)| field)
}

const AMOUNT: &str = "at least 1, or no such field for no limit";

/// Reads a message; what it cannot use becomes a violation of `field`.
pub(super) fn check(
    resources: &proto::Resources,
    field: fmt::Arguments<'_>,
    violations: &mut Violations,
) -> Resources {
    let field = field.to_string();
    let mut checker = Checker { field: &field, violations };
    checker.amounts(resources);
    checker.protections(resources);
    Resources {
        cpu: resources.cpu,
        cpu_limit: resources.cpu_limit.as_ref().map(|limit| checker.cpu_limit(limit)),
        ram: resources.ram_bytes,
        memory_high: resources.memory_high_bytes,
        memory_low: resources.memory_low_bytes,
        memory_min: resources.memory_min_bytes,
        swap: resources.swap_bytes,
        oom_group: resources.oom_group,
        pids: resources.pids,
        io: resources.io.as_ref().map(|io| checker.io(io)).unwrap_or_default(),
        cpuset: resources.cpuset.as_ref().map(|set| checker.cpuset(set)).unwrap_or_default(),
        hugetlb: checker.hugetlb(&resources.hugetlb),
        cgroup: checker.raw(&resources.cgroup),
        disk: resources.disk_bytes,
        gpu: resources.gpu.filter(|&count| count > 0),
    }
}

struct Checker<'c> {
    field: &'c str,
    violations: &'c mut Violations,
}

impl Checker<'_> {
    fn wrong(&mut self, name: fmt::Arguments<'_>, found: String, expected: impl Into<String>) {
        self.violations.add(format_args!("{}.{name}", self.field), found, expected);
    }

    /// Single numbers.
    fn amounts(&mut self, resources: &proto::Resources) {
        if let Some(cpu) = resources.cpu
            && !(cpu.is_finite() && cpu >= MIN_CPU)
        {
            let expected = format!("at least {MIN_CPU}, or no such field for no limit");
            self.wrong(format_args!("cpu"), format!("{cpu} CPUs"), expected);
        }
        for (name, bytes) in [
            ("ram_bytes", resources.ram_bytes),
            ("memory_high_bytes", resources.memory_high_bytes),
            ("disk_bytes", resources.disk_bytes),
        ] {
            if bytes == Some(0) {
                self.wrong(format_args!("{name}"), "0 bytes".into(), AMOUNT);
            }
        }
        if let Some(pids) = resources.pids
            && !(1..=MAX_PIDS).contains(&pids)
            && pids != NO_LIMIT
        {
            let expected = format!("1 to {MAX_PIDS}, or max");
            self.wrong(format_args!("pids"), pids.to_string(), expected);
        }
    }

    /// What lies beyond the ceiling is never reached.
    fn protections(&mut self, resources: &proto::Resources) {
        let Some(ram) = resources.ram_bytes else { return };
        for (name, bytes) in [
            ("memory_high_bytes", resources.memory_high_bytes),
            ("memory_low_bytes", resources.memory_low_bytes),
            ("memory_min_bytes", resources.memory_min_bytes),
        ] {
            if let Some(bytes) = bytes.filter(|&bytes| bytes > ram && bytes != NO_LIMIT) {
                let expected = format!("at most `ram`, which is {ram}");
                self.wrong(format_args!("{name}"), format!("{bytes} bytes"), expected);
            }
        }
    }

    fn cpu_limit(&mut self, limit: &proto::CpuLimit) -> CpuLimit {
        let period = self.micros("cpu_limit.period", limit.period.as_ref(), CPU_PERIOD);
        let burst = self.micros("cpu_limit.burst", limit.burst.as_ref(), Duration::ZERO);
        let found = CpuLimit { cpus: limit.cpus, period, burst };
        let [least, most] = CPU_PERIODS;
        if !(least..=most).contains(&period) {
            let expected = format!("{} to {}", micros(least), micros(most));
            self.wrong(format_args!("cpu_limit.period"), micros(period), expected);
            return found;
        }
        let Some(cpus) = limit.cpus else { return found };
        if !(cpus.is_finite() && (MIN_CPU..=MAX_CPU_LIMIT).contains(&cpus)) {
            let expected = format!("{MIN_CPU} to {MAX_CPU_LIMIT}");
            self.wrong(format_args!("cpu_limit.cpus"), format!("{cpus} CPUs"), expected);
            return found;
        }
        let quota = found.quota().unwrap_or_default();
        if quota < MIN_CPU_QUOTA {
            let message = format!("{cpus} CPUs are {quota} us of each {}", micros(period));
            let expected = format!("at least {MIN_CPU_QUOTA} us of a period");
            self.wrong(format_args!("cpu_limit.cpus"), message, expected);
        } else if burst.as_micros() > u128::from(quota) {
            let expected = format!("at most `cpus` times `period`, which is {quota} us");
            self.wrong(format_args!("cpu_limit.burst"), micros(burst), expected);
        }
        found
    }

    /// A duration of at most a second or so, in whole microseconds.
    fn micros(
        &mut self,
        name: &str,
        duration: Option<&pbjson_types::Duration>,
        default: Duration,
    ) -> Duration {
        let Some(&pbjson_types::Duration { seconds, nanos }) = duration else { return default };
        let parts = u64::try_from(seconds).ok().zip(u32::try_from(nanos).ok());
        match parts.filter(|&(_, nanos)| nanos < 1_000_000_000 && nanos.is_multiple_of(1000)) {
            Some((seconds, nanos)) => Duration::new(seconds, nanos),
            None => {
                let message = format!("{seconds} s and {nanos} ns");
                let expected = "whole microseconds, and no negative part";
                self.wrong(format_args!("{name}"), message, expected);
                default
            }
        }
    }

    fn io(&mut self, io: &proto::Io) -> Io {
        let [least, most] = WEIGHTS;
        if let Some(weight) = io.weight.filter(|weight| !(least..=most).contains(weight)) {
            let expected = format!("{least} to {most}");
            self.wrong(format_args!("io.weight"), weight.to_string(), expected);
        }
        if self.too_many("io.max", io.max.len()) {
            return Io { weight: io.weight, max: Vec::new() };
        }
        let max: Vec<IoMax> =
            io.max.iter().enumerate().filter_map(|(index, max)| self.io_max(index, max)).collect();
        let mut targets: Vec<_> = max.iter().map(|max| &max.target).collect();
        targets.sort();
        if let Some(twice) = targets.windows(2).find(|pair| pair[0] == pair[1]) {
            let message = format!("{} has two entries", quoted(&twice[0].to_string()));
            self.wrong(format_args!("io.max"), message, "one for each disk");
        }
        Io { weight: io.weight, max }
    }

    fn io_max(&mut self, index: usize, max: &proto::IoMax) -> Option<IoMax> {
        let rates =
            [("rbps", max.rbps), ("wbps", max.wbps), ("riops", max.riops), ("wiops", max.wiops)];
        for (name, rate) in rates {
            if rate == Some(0) {
                self.wrong(format_args!("io.max[{index}].{name}"), "0 a second".into(), AMOUNT);
            }
        }
        if rates.iter().all(|(_, rate)| rate.is_none()) {
            let expected = "at least one of rbps, wbps, riops, wiops";
            self.wrong(format_args!("io.max[{index}]"), "limits nothing".into(), expected);
        }
        let target = self.target(index, max.target.as_ref())?;
        let &proto::IoMax { rbps, wbps, riops, wiops, .. } = max;
        Some(IoMax { target, rbps, wbps, riops, wiops })
    }

    fn target(&mut self, index: usize, target: Option<&Target>) -> Option<IoTarget> {
        match target {
            None => {
                let expected = "one of path, device";
                self.wrong(format_args!("io.max[{index}]"), "names no disk".into(), expected);
                None
            }
            Some(Target::Path(path)) => {
                if !path.starts_with('/') || path.contains('\0') {
                    let field = format_args!("io.max[{index}].path");
                    let message = format!("{} is not absolute", quoted(path));
                    self.wrong(field, message, "an absolute path");
                }
                Some(IoTarget::Path(path.clone()))
            }
            Some(Target::Device(text)) => {
                let device = Device::parse(text);
                if device.is_none() {
                    let field = format_args!("io.max[{index}].device");
                    let message = format!("{} is no device", quoted(text));
                    self.wrong(field, message, "two numbers such as 8:0");
                }
                device.map(IoTarget::Device)
            }
        }
    }

    fn cpuset(&mut self, set: &proto::Cpuset) -> Cpuset {
        Cpuset {
            cpus: self.list("cpuset.cpus", set.cpus.as_deref(), MAX_CPU_NUMBER),
            mems: self.list("cpuset.mems", set.mems.as_deref(), MAX_NODE_NUMBER),
        }
    }

    fn list(&mut self, name: &str, text: Option<&str>, max: u32) -> Option<NumberList> {
        let text = text?;
        NumberList::parse(text, max)
            .map_err(|error| {
                let message = format!("{} {error}", quoted(text));
                self.wrong(format_args!("{name}"), message, "a list such as 0-3,8");
            })
            .ok()
    }

    fn hugetlb(&mut self, sizes: &BTreeMap<String, u64>) -> BTreeMap<String, u64> {
        if self.too_many("hugetlb", sizes.len()) {
            return BTreeMap::new();
        }
        for size in sizes.keys().filter(|size| huge_page_bytes(size).is_none()) {
            let message = format!("{} is no size of a page", quoted(size));
            let expected = "a size as the kernel names it, such as 2MB or 1GB";
            self.wrong(format_args!("hugetlb[{}]", shown(size)), message, expected);
        }
        sizes.clone()
    }

    fn raw(&mut self, files: &BTreeMap<String, String>) -> BTreeMap<String, String> {
        if self.too_many("cgroup", files.len()) {
            return BTreeMap::new();
        }
        for (file, value) in files {
            self.file(file);
            let field = format_args!("cgroup[{}]", shown(file));
            if value.is_empty() {
                self.wrong(field, "is empty".into(), "one line of text");
            } else if value.contains(char::is_control) {
                let message = format!("{} has a control character", quoted(value));
                self.wrong(field, message, "one line of text");
            } else if value.len() > MAX_RAW_BYTES {
                let message = format!("has {} bytes", value.len());
                let expected = format!("at most {MAX_RAW_BYTES}");
                self.wrong(format_args!("cgroup[{}]", shown(file)), message, expected);
            }
        }
        files.clone()
    }

    /// A file is one name, of a controller, that no field is there for.
    fn file(&mut self, file: &str) {
        let known = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-');
        let controller = file.split_once('.').map(|(controller, _)| controller);
        let is_one = file.bytes().all(known) && file.len() <= 255;
        if !is_one || !controller.is_some_and(|name| CONTROLLERS.contains(&name)) {
            let message = format!("{} is no file of a controller", quoted(file));
            let expected =
                format!("a name such as `memory.zswap.max`, of {}", CONTROLLERS.join(", "));
            self.wrong(format_args!("cgroup[{}]", shown(file)), message, expected);
        } else if let Some(field) = field_of(file) {
            let message = format!("{} has a field of its own", quoted(file));
            self.wrong(format_args!("cgroup[{}]", shown(file)), message, format!("`{field}`"));
        }
    }

    fn too_many(&mut self, name: &str, count: usize) -> bool {
        if count > MAX_ENTRIES {
            let expected = format!("at most {MAX_ENTRIES}");
            self.wrong(format_args!("{name}"), format!("{count} entries"), expected);
        }
        count > MAX_ENTRIES
    }
}

/// A key as part of a path: as it is, but for one that no sensible file has.
pub(super) fn shown(key: &str) -> String {
    quoted(key).trim_matches('`').to_owned()
}

fn micros(duration: Duration) -> String {
    format!("{} us", duration.as_micros())
}

fn io_max_to_proto(max: &IoMax) -> proto::IoMax {
    let &IoMax { ref target, rbps, wbps, riops, wiops } = max;
    let target = Some(match target {
        IoTarget::Path(path) => Target::Path(path.clone()),
        IoTarget::Device(device) => Target::Device(device.to_string()),
    });
    proto::IoMax { target, rbps, wbps, riops, wiops }
}

#[cfg(test)]
pub(super) mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Any resources that keep the rules.
    pub(in crate::task) fn arbitrary() -> impl Strategy<Value = Resources> {
        (
            (prop::option::of(0.01f64..1e6), prop::option::of(arbitrary_cpu_limit())),
            prop::collection::btree_set(1..NO_LIMIT, 4),
            any::<[bool; 8]>(),
            (prop::option::of(any::<u64>()), prop::option::of(1..=MAX_PIDS)),
            (arbitrary_io(), arbitrary_cpuset(), arbitrary_maps()),
            prop::option::of(1u32..9),
        )
            .prop_map(|(cpu, memory, has, (swap, pids), (io, cpuset, maps), gpu)| {
                let mut memory = memory.into_iter();
                let mut amount = |index: usize| memory.next().filter(|_| has[index]);
                Resources {
                    cpu: cpu.0,
                    cpu_limit: cpu.1,
                    memory_min: amount(0),
                    memory_low: amount(1),
                    memory_high: amount(2),
                    ram: amount(3),
                    swap,
                    oom_group: has[4].then_some(has[5]),
                    pids: if has[6] { Some(NO_LIMIT) } else { pids },
                    io,
                    cpuset,
                    hugetlb: maps.0,
                    cgroup: maps.1,
                    disk: has[7].then_some(1 << 30),
                    gpu,
                }
            })
    }

    fn arbitrary_cpu_limit() -> impl Strategy<Value = CpuLimit> {
        (1000u64..=1_000_000, prop::option::of(1.0f64..1e6), 0u64..1000).prop_map(
            |(period, cpus, burst)| CpuLimit {
                cpus,
                period: Duration::from_micros(period),
                burst: Duration::from_micros(burst),
            },
        )
    }

    fn arbitrary_io() -> impl Strategy<Value = Io> {
        let target = |index: u32, path: bool| match path {
            true => IoTarget::Path(format!("/{index}")),
            false => IoTarget::Device(Device { major: 8, minor: index }),
        };
        let max = (any::<bool>(), 1u64..=NO_LIMIT, prop::option::of(1u64..9));
        (prop::option::of(1u32..=10_000), prop::collection::vec(max, 0..3)).prop_map(
            move |(weight, max)| Io {
                weight,
                max: (0..)
                    .zip(max)
                    .map(|(index, (path, rbps, riops))| IoMax {
                        target: target(index, path),
                        rbps: Some(rbps),
                        wbps: None,
                        riops,
                        wiops: riops,
                    })
                    .collect(),
            },
        )
    }

    fn arbitrary_cpuset() -> impl Strategy<Value = Cpuset> {
        let list = |max| {
            prop::option::of((0..max, 0..max)).prop_map(move |ends: Option<(u32, u32)>| {
                let (first, last) = ends?;
                NumberList::parse(&format!("{first},{}-{max}", last.min(max)), max).ok()
            })
        };
        (list(MAX_CPU_NUMBER), list(MAX_NODE_NUMBER)).prop_map(|(cpus, mems)| Cpuset { cpus, mems })
    }

    fn arbitrary_maps() -> impl Strategy<Value = (BTreeMap<String, u64>, BTreeMap<String, String>)>
    {
        (
            prop::collection::btree_map("[1-9][0-9]?(KB|MB|GB)", any::<u64>(), 0..3),
            prop::collection::btree_map("(misc|memory)\\.[a-z]{12}", "[ -~]{1,9}", 0..3),
        )
    }

    /// What is wrong with `resources`, without the field that they are in.
    fn wrong(resources: &proto::Resources) -> Vec<String> {
        let mut violations = Violations::default();
        check(resources, format_args!("r"), &mut violations);
        violations.list.iter().map(ToString::to_string).collect()
    }

    fn micros_of(micros: i32) -> Option<pbjson_types::Duration> {
        Some(pbjson_types::Duration { seconds: 0, nanos: micros * 1000 })
    }

    fn cpu_limit(cpus: f64, period: i32, burst: i32) -> Vec<String> {
        let (period, burst) = (micros_of(period), micros_of(burst));
        let limit = proto::CpuLimit { cpus: Some(cpus), period, burst };
        wrong(&proto::Resources { cpu_limit: Some(limit), ..Default::default() })
    }

    #[test]
    fn a_ceiling_of_cpu_time_is_what_the_kernel_takes() {
        assert_eq!(cpu_limit(0.01, 100_000, 1000), [""; 0]);
        assert_eq!(cpu_limit(1e6, 999_999, 0), [""; 0]);
        for (cpus, period, burst, expected) in [
            (0.001, 100_000, 0, "r.cpu_limit.cpus: 0.001 CPUs; expected 0.01 to 1000000"),
            (1e7, 100_000, 0, "r.cpu_limit.cpus: 10000000 CPUs; expected 0.01 to 1000000"),
            (f64::NAN, 100_000, 0, "r.cpu_limit.cpus: NaN CPUs; expected 0.01 to 1000000"),
            (f64::INFINITY, 100_000, 0, "r.cpu_limit.cpus: inf CPUs; expected 0.01 to 1000000"),
            (1.0, 999, 0, "r.cpu_limit.period: 999 us; expected 1000 us to 1000000 us"),
            (
                0.5,
                1000,
                0,
                "r.cpu_limit.cpus: 0.5 CPUs are 500 us of each 1000 us; \
                 expected at least 1000 us of a period",
            ),
            (
                0.02,
                100_000,
                2001,
                "r.cpu_limit.burst: 2001 us; expected at most `cpus` times `period`, which is 2000 us",
            ),
        ] {
            assert_eq!(cpu_limit(cpus, period, burst), [expected]);
        }
    }

    #[test]
    fn a_period_is_whole_microseconds_of_at_most_a_second() {
        let period = |seconds, nanos| {
            let period = Some(pbjson_types::Duration { seconds, nanos });
            let limit = proto::CpuLimit { period, ..Default::default() };
            wrong(&proto::Resources { cpu_limit: Some(limit), ..Default::default() })
        };

        assert_eq!(period(1, 0), [""; 0]);
        assert_eq!(
            period(i64::MAX, 0),
            ["r.cpu_limit.period: 9223372036854775807000000 us; expected 1000 us to 1000000 us"]
        );
        for (seconds, nanos) in [(0, 1_000_001), (-1, 0), (0, -1000), (0, 1_000_000_000)] {
            let text = format!(
                "r.cpu_limit.period: {seconds} s and {nanos} ns; \
                 expected whole microseconds, and no negative part"
            );
            assert_eq!(period(seconds, nanos), [text]);
        }
    }

    #[test]
    fn what_lies_beyond_the_ceiling_of_memory_is_refused() {
        let beyond = proto::Resources {
            ram_bytes: Some(100),
            memory_high_bytes: Some(101),
            memory_low_bytes: Some(100),
            memory_min_bytes: Some(102),
            ..Default::default()
        };

        assert_eq!(
            wrong(&beyond),
            [
                "r.memory_high_bytes: 101 bytes; expected at most `ram`, which is 100",
                "r.memory_min_bytes: 102 bytes; expected at most `ram`, which is 100",
            ]
        );
        let max = proto::Resources { memory_high_bytes: Some(NO_LIMIT), ..beyond };
        assert_eq!(wrong(&max).len(), 1);
    }

    #[test]
    fn amounts_have_their_bounds() {
        let zero = Some(0);
        let none = proto::Resources {
            memory_high_bytes: zero,
            memory_low_bytes: zero,
            memory_min_bytes: zero,
            swap_bytes: zero,
            pids: zero,
            ..Default::default()
        };
        let many = |pids| wrong(&proto::Resources { pids: Some(pids), ..Default::default() });

        assert_eq!(
            wrong(&none),
            [
                "r.memory_high_bytes: 0 bytes; expected at least 1, or no such field for no limit",
                "r.pids: 0; expected 1 to 4194304, or max",
            ]
        );
        assert_eq!(many(4_194_304), [""; 0]);
        assert_eq!(many(NO_LIMIT), [""; 0]);
        assert_eq!(many(4_194_305), ["r.pids: 4194305; expected 1 to 4194304, or max"]);
    }

    #[test]
    fn a_ceiling_of_a_disk_names_one_disk_and_limits_something() {
        let max =
            |target: Option<Target>, rbps| proto::IoMax { target, rbps, ..Default::default() };
        let device = |text: &str| Some(Target::Device(text.to_owned()));
        let path = |text: &str| Some(Target::Path(text.to_owned()));
        let io = proto::Io {
            weight: Some(10_001),
            max: vec![
                max(None, Some(1)),
                max(device("8:0"), None),
                max(device("8:-1"), Some(1)),
                max(path("data"), Some(0)),
                max(path("/data"), Some(1)),
                max(path("/data"), Some(2)),
            ],
        };

        assert_eq!(
            wrong(&proto::Resources { io: Some(io), ..Default::default() }),
            [
                "r.io.weight: 10001; expected 1 to 10000",
                "r.io.max[0]: names no disk; expected one of path, device",
                "r.io.max[1]: limits nothing; expected at least one of rbps, wbps, riops, wiops",
                "r.io.max[2].device: `8:-1` is no device; expected two numbers such as 8:0",
                "r.io.max[3].rbps: 0 a second; expected at least 1, or no such field for no limit",
                "r.io.max[3].path: `data` is not absolute; expected an absolute path",
                "r.io.max: `/data` has two entries; expected one for each disk",
            ]
        );
    }

    #[test]
    fn devices_are_two_numbers() {
        assert_eq!(Device::parse("259:12"), Some(Device { major: 259, minor: 12 }));
        for text in ["", ":", "8", "8:", ":0", "8:0:0", "+8:0", "8: 0", "a:0", "4294967296:0"] {
            assert_eq!(Device::parse(text), None, "{text}");
        }
    }

    #[test]
    fn sizes_of_pages_are_named_as_the_kernel_names_them() {
        assert_eq!(huge_page_bytes("64KB"), Some(64 << 10));
        assert_eq!(huge_page_bytes("2MB"), Some(2 << 20));
        assert_eq!(huge_page_bytes("16GB"), Some(16 << 30));
        for name in
            ["", "MB", "02MB", "2mb", "2MiB", "2", "-2MB", "2.5MB", "99999999999999999999MB"]
        {
            assert_eq!(huge_page_bytes(name), None, "{name}");
        }
    }

    fn raw(file: &str, value: &str) -> Vec<String> {
        let cgroup = [(file.to_owned(), value.to_owned())].into();
        wrong(&proto::Resources { cgroup, ..Default::default() })
    }

    #[test]
    fn a_file_by_name_is_one_of_a_controller_without_a_field_of_its_own() {
        for file in
            ["memory.zswap.max", "cpu.idle", "hugetlb.2MB.rsvd.max", "misc.max", "io.latency"]
        {
            assert_eq!(raw(file, "1"), [""; 0], "{file}");
        }
        for file in [
            "cgroup.procs",
            "cgroup.kill",
            "",
            "memory",
            "../memory.max",
            "memory./x",
            "a.b",
            "memory.x y",
        ] {
            let of = "cpu, memory, io, pids, cpuset, hugetlb, rdma, misc, dmem";
            let text = format!(
                "r.cgroup[{file}]: `{file}` is no file of a controller; \
                 expected a name such as `memory.zswap.max`, of {of}"
            );
            assert_eq!(raw(file, "1"), [text]);
        }
    }

    #[test]
    fn a_file_with_a_field_of_its_own_names_the_field() {
        for (file, field) in NAMED.iter().copied().filter(|(file, _)| !file.contains('*')) {
            let text =
                format!("r.cgroup[{file}]: `{file}` has a field of its own; expected `{field}`");
            assert_eq!(raw(file, "1"), [text]);
        }
        let text = "r.cgroup[hugetlb.2MB.max]: `hugetlb.2MB.max` has a field of its own; expected `hugetlb`";
        assert_eq!(raw("hugetlb.2MB.max", "1"), [text]);
    }

    #[test]
    fn a_value_by_name_is_one_line() {
        let longest = "1".repeat(MAX_RAW_BYTES);
        assert_eq!(raw("misc.max", &longest), [""; 0]);

        assert_eq!(
            raw("misc.max", ""),
            ["r.cgroup[misc.max]: is empty; expected one line of text"]
        );
        for value in ["a\n", "a\0b", "\u{1b}"] {
            assert_eq!(raw("misc.max", value).len(), 1, "{value:?}");
        }
        let text = "r.cgroup[misc.max]: has 4096 bytes; expected at most 4095";
        assert_eq!(raw("misc.max", &(longest + "1")), [text]);
    }

    /// attack 52: what costs system calls for each run is bounded.
    #[test]
    fn maps_and_lists_are_bounded() {
        let cgroup = (0..65).map(|n| (format!("misc.{n}"), "1".to_owned())).collect();
        let hugetlb = (0..65).map(|n| (format!("{n}MB"), 1)).collect();
        let io = Some(proto::Io { max: vec![proto::IoMax::default(); 65], ..Default::default() });

        assert_eq!(
            wrong(&proto::Resources { cgroup, hugetlb, io, ..Default::default() }),
            [
                "r.io.max: 65 entries; expected at most 64",
                "r.hugetlb: 65 entries; expected at most 64",
                "r.cgroup: 65 entries; expected at most 64",
            ]
        );
    }

    #[test]
    fn a_quota_is_rounded_to_microseconds() {
        let quota = |cpus, period| {
            CpuLimit { cpus, period: Duration::from_micros(period), burst: Duration::ZERO }.quota()
        };

        assert_eq!(quota(Some(1.5), 100_000), Some(150_000));
        assert_eq!(quota(Some(0.333_333), 1_000_000), Some(333_333));
        assert_eq!(quota(None, 100_000), None);
        assert_eq!(quota(Some(MAX_CPU_LIMIT), 1_000_000), Some(1_000_000_000_000));
    }
}
