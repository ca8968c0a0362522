//! A task as a task file, filled in: every template replaced, every default spelled out.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Serialize, Serializer};

use crate::proto::Constraint;
use crate::task::resources::{Cpuset, Io, IoMax, IoTarget, NO_LIMIT};
use crate::task::spec::FileMode;
use crate::task::{Logger, ProcessSpec, Resources, TaskSpec};

/// A task, in the order and with the names of a task file.
#[derive(Debug, Serialize)]
pub struct TaskFile<'a> {
    name: &'a str,
    processes: Vec<Process<'a>>,
    constraints: Vec<Order<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    resources: Option<Limits<'a>>,
    max_failures: u32,
    max_concurrency: u32,
    finalization_wait: Seconds,
    #[serde(skip_serializing_if = "Option::is_none")]
    user: Option<&'a str>,
}

#[derive(Debug, Serialize)]
struct Process<'a> {
    name: &'a str,
    cmdline: &'a str,
    max_failures: u32,
    daemon: bool,
    ephemeral: bool,
    min_duration: Seconds,
    #[serde(rename = "final")]
    is_final: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    logger: Option<Log>,
    #[serde(skip_serializing_if = "Option::is_none")]
    resources: Option<Limits<'a>>,
}

#[derive(Debug, Serialize)]
struct Order<'a> {
    order: &'a [String],
}

#[derive(Debug, Serialize, Default)]
struct Limits<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    cpu: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    cpu_limit: Option<CpuCeiling>,
    #[serde(skip_serializing_if = "Option::is_none")]
    ram: Option<Amount>,
    #[serde(skip_serializing_if = "Option::is_none")]
    memory_high: Option<Amount>,
    #[serde(skip_serializing_if = "Option::is_none")]
    memory_low: Option<Amount>,
    #[serde(skip_serializing_if = "Option::is_none")]
    memory_min: Option<Amount>,
    #[serde(skip_serializing_if = "Option::is_none")]
    swap: Option<Amount>,
    #[serde(skip_serializing_if = "Option::is_none")]
    oom_group: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pids: Option<Amount>,
    #[serde(skip_serializing_if = "Option::is_none")]
    io: Option<DiskLimits<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    cpuset: Option<Set>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    hugetlb: BTreeMap<&'a str, Amount>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    cgroup: BTreeMap<&'a str, &'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    disk: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    gpu: Option<u32>,
}

#[derive(Debug, Serialize)]
struct CpuCeiling {
    cpus: Cpus,
    period: Seconds,
    burst: Seconds,
}

#[derive(Debug, Serialize)]
struct DiskLimits<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    weight: Option<u32>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    max: Vec<DiskCeiling<'a>>,
}

#[derive(Debug, Serialize)]
struct DiskCeiling<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    path: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    device: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    rbps: Option<Amount>,
    #[serde(skip_serializing_if = "Option::is_none")]
    wbps: Option<Amount>,
    #[serde(skip_serializing_if = "Option::is_none")]
    riops: Option<Amount>,
    #[serde(skip_serializing_if = "Option::is_none")]
    wiops: Option<Amount>,
}

#[derive(Debug, Serialize)]
struct Set {
    #[serde(skip_serializing_if = "Option::is_none")]
    cpus: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    mems: Option<String>,
}

/// A number, or `max`.
#[derive(Debug)]
struct Amount(u64);

impl Serialize for Amount {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.0 {
            NO_LIMIT => serializer.serialize_str("max"),
            amount => serializer.serialize_u64(amount),
        }
    }
}

/// A number of CPUs, or `max`.
#[derive(Debug)]
struct Cpus(Option<f64>);

impl Serialize for Cpus {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.0 {
            None => serializer.serialize_str("max"),
            Some(cpus) => serializer.serialize_f64(cpus),
        }
    }
}

#[derive(Debug, Serialize)]
struct Log {
    destination: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    mode: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    rotate: Option<Rotation>,
}

#[derive(Debug, Serialize)]
struct Rotation {
    log_size: u64,
    backups: u32,
}

/// A time as a task file has it: a number of seconds.
#[derive(Debug, Clone, Copy)]
struct Seconds(Duration);

impl Serialize for Seconds {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.0.subsec_nanos() {
            0 => serializer.serialize_u64(self.0.as_secs()),
            nanos => {
                let text = format!("{}.{nanos:09}", self.0.as_secs());
                serializer.serialize_str(&format!("{}s", text.trim_end_matches('0')))
            }
        }
    }
}

impl<'a> TaskFile<'a> {
    /// The file of a task; its order constraints as they were written.
    pub fn new(spec: &'a TaskSpec, constraints: &'a [Constraint]) -> Self {
        Self {
            name: &spec.name,
            processes: spec.processes.iter().map(process).collect(),
            constraints: constraints.iter().map(|of| Order { order: &of.order }).collect(),
            resources: spec.resources.as_ref().map(limits),
            max_failures: spec.max_failures,
            max_concurrency: spec.max_concurrency,
            finalization_wait: Seconds(spec.finalization_wait),
            user: spec.user.as_deref(),
        }
    }
}

fn process(spec: &ProcessSpec) -> Process<'_> {
    Process {
        name: spec.name.as_str(),
        cmdline: &spec.cmdline,
        max_failures: spec.max_failures,
        daemon: spec.daemon,
        ephemeral: spec.ephemeral,
        min_duration: Seconds(spec.min_duration),
        is_final: spec.is_final,
        logger: spec.logger.map(log),
        resources: spec.resources.as_deref().map(limits),
    }
}

/// Limits as `dewar update` takes them: `FIELD=VALUE`, one for each field.
pub fn assignments(of: &Resources) -> Vec<String> {
    let Ok(serde_json::Value::Object(fields)) = serde_json::to_value(limits(of)) else {
        return Vec::new();
    };
    let assignment = |(field, value): (String, serde_json::Value)| match value {
        serde_json::Value::String(text) => format!("{field}={text}"),
        value => format!("{field}={value}"),
    };
    fields.into_iter().map(assignment).collect()
}

fn limits(of: &Resources) -> Limits<'_> {
    Limits {
        cpu: of.cpu,
        cpu_limit: of.cpu_limit.map(|limit| CpuCeiling {
            cpus: Cpus(limit.cpus),
            period: Seconds(limit.period),
            burst: Seconds(limit.burst),
        }),
        ram: of.ram.map(Amount),
        memory_high: of.memory_high.map(Amount),
        memory_low: of.memory_low.map(Amount),
        memory_min: of.memory_min.map(Amount),
        swap: of.swap.map(Amount),
        oom_group: of.oom_group,
        pids: of.pids.map(Amount),
        io: (of.io != Io::default()).then(|| DiskLimits {
            weight: of.io.weight,
            max: of.io.max.iter().map(disk_ceiling).collect(),
        }),
        cpuset: (of.cpuset != Cpuset::default()).then(|| Set {
            cpus: of.cpuset.cpus.as_ref().map(ToString::to_string),
            mems: of.cpuset.mems.as_ref().map(ToString::to_string),
        }),
        hugetlb: of.hugetlb.iter().map(|(size, &most)| (size.as_str(), Amount(most))).collect(),
        cgroup: of.cgroup.iter().map(|(file, value)| (file.as_str(), value.as_str())).collect(),
        disk: of.disk,
        gpu: of.gpu,
    }
}

fn disk_ceiling(of: &IoMax) -> DiskCeiling<'_> {
    let (path, device) = match &of.target {
        IoTarget::Path(path) => (Some(path.as_str()), None),
        IoTarget::Device(device) => (None, Some(device.to_string())),
    };
    DiskCeiling {
        path,
        device,
        rbps: of.rbps.map(Amount),
        wbps: of.wbps.map(Amount),
        riops: of.riops.map(Amount),
        wiops: of.wiops.map(Amount),
    }
}

fn log(logger: Logger) -> Log {
    let destination = match (logger.file.is_some(), logger.console) {
        (true, true) => "both",
        (true, false) => "file",
        (false, true) => "console",
        (false, false) => "none",
    };
    let (mode, rotate) = match logger.file {
        None => (None, None),
        Some(FileMode::Standard) => (Some("standard"), None),
        Some(FileMode::Rotate(rotate)) => {
            let (log_size, backups) = (rotate.log_size.get(), rotate.backups.get());
            (Some("rotate"), Some(Rotation { log_size, backups }))
        }
    };
    Log { destination, mode, rotate }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::task::file::{Bindings, parse};

    #[test]
    fn what_is_shown_is_a_task_file_of_the_same_task() {
        let source = r#"
name: web
user: nobody
max_failures: 0
max_concurrency: 7
finalization_wait: 1.25
resources: {cpu: 1.5, ram: 128MB, disk: 1GB}
processes:
  - {name: a, cmdline: "x \"y\"\n", min_duration: 100ms, max_failures: 3}
  - {name: b, cmdline: "", logger: {destination: both, mode: rotate, rotate: {log_size: 4096, backups: 3}}}
  - {name: c, cmdline: c, logger: {destination: none}, resources: {ram: 1GB, cpu_limit: max}}
  - name: limited
    cmdline: x
    resources:
      cpu_limit: {cpus: 0.5, period: 12.345ms, burst: 0.001ms}
      ram: max
      memory_high: max
      memory_low: 3MB
      memory_min: 2MB
      swap: 0
      oom_group: false
      pids: max
      io: {weight: 7, max: [{path: /, rbps: 1MB}, {device: "8:16", wbps: max, riops: 1, wiops: 2}]}
      cpuset: {cpus: "0,1,2", mems: "0"}
      hugetlb: {2MB: 64MB, 1GB: max}
      cgroup: {memory.zswap.max: 0, "misc.max": "res_a 1"}
  - {name: d, cmdline: d, daemon: true, logger: {destination: console}}
  - {name: e, cmdline: e, ephemeral: true, logger: {destination: file}}
  - {name: f, cmdline: f, final: true}
constraints: [{order: [a, b, c]}, {order: [a, d]}]
"#;
        let bindings = Bindings { id_suffix: "1".to_owned(), ..Default::default() };
        let accepted = parse(source.as_bytes(), "f", &bindings).unwrap();

        let file = TaskFile::new(&accepted.spec, &accepted.task.constraints);
        let text = serde_json::to_string_pretty(&file).unwrap();

        assert_eq!(parse(text.as_bytes(), "g", &bindings).unwrap(), accepted, "{text}");
    }

    #[test]
    fn limits_are_told_as_they_are_changed() {
        let given =
            ["ram=max", "cpu_limit={cpus: 0.5, period: 12.345ms}", "io.weight=7", "oom_group=true"];
        let change = |assignments: &[String]| {
            Resources::from_proto(&crate::task::change::parse(assignments).unwrap(), "resources")
                .unwrap()
        };
        let limits = change(&given.map(str::to_owned));

        let told = assignments(&limits);

        assert!(told.contains(&"ram=max".to_owned()), "{told:?}");
        assert_eq!(change(&told), limits);
    }
}
