use std::time::Duration;

use super::*;
use crate::cgroup::scratch::Scratch;
use crate::task::TaskSpec;
use crate::task::resources::{Cpuset, Io};

/// Every field, where the kernel has something for it.
fn everything() -> Resources {
    let list = |text| NumberList::parse(text, 63).ok();
    let device = Device { major: 8, minor: 0 };
    Resources {
        cpu: Some(1.5),
        cpu_limit: Some(CpuLimit {
            cpus: Some(0.5),
            period: Duration::from_millis(50),
            burst: Duration::from_millis(5),
        }),
        ram: Some(1 << 20),
        memory_high: Some(NO_LIMIT),
        memory_low: Some(0),
        memory_min: Some(4096),
        swap: Some(0),
        oom_group: Some(true),
        pids: Some(NO_LIMIT),
        io: Io {
            weight: Some(50),
            max: vec![IoMax {
                target: IoTarget::Device(device),
                rbps: Some(1),
                wbps: Some(NO_LIMIT),
                riops: None,
                wiops: Some(7),
            }],
        },
        cpuset: Cpuset { cpus: list("0-1"), mems: list("0") },
        hugetlb: [("2MB".to_owned(), 4 << 20)].into(),
        cgroup: [("memory.zswap.max".to_owned(), "0".to_owned())].into(),
        disk: Some(1),
        gpu: Some(1),
    }
}

fn fields(found: &[Unenforceable]) -> Vec<&str> {
    found.iter().map(|limit| limit.field.as_str()).collect()
}

fn limited(resources: Resources) -> TaskSpec {
    let process = crate::proto::Process { name: "p".to_owned(), ..Default::default() };
    let name = "t".to_owned();
    let task = crate::proto::Task { name, processes: vec![process], ..Default::default() };
    let spec = TaskSpec::from_proto(&task).unwrap();
    TaskSpec { resources: Some(resources), ..spec }
}

#[test]
fn every_field_asks_for_something_and_nothing_for_nothing() {
    let named: Vec<_> = demands(&everything()).into_iter().map(|demand| demand.field).collect();

    assert_eq!(
        named,
        [
            "cpu",
            "cpu_limit",
            "cpu_limit.burst",
            "memory_min",
            "memory_low",
            "memory_high",
            "ram",
            "swap",
            "oom_group",
            "pids",
            "io.weight",
            "io.max[0]",
            "cpuset.cpus",
            "cpuset.mems",
            "hugetlb[2MB]",
            "cgroup[memory.zswap.max]",
            "disk",
            "gpu",
        ]
    );
    assert_eq!(demands(&Resources::default()).len(), 0);
}

#[test]
fn no_gpus_are_no_limit() {
    let none = Resources { gpu: Some(0), ..Resources::default() };

    assert_eq!(demands(&none).len(), 0);
}

#[test]
fn controllers_beyond_those_of_every_task_are_asked_for_by_field_and_file() {
    let files = ["misc.max", "memory.zswap.max", "rdma.max", "hugetlb.2MB.rsvd.max"];
    let named = files.map(|file| (file.to_owned(), "1".to_owned())).into();
    let named = Resources { cgroup: named, ..Resources::default() };

    let of = |all: &[&Resources]| extra_controllers_of(all.iter().copied());

    assert_eq!(of(&[&everything(), &everything()]), [Controller::Cpuset, Controller::Hugetlb]);
    assert_eq!(of(&[&named]), [Controller::Hugetlb, Controller::Rdma, Controller::Misc]);
    assert_eq!(of(&[&Resources::default()]), []);
}

#[test]
fn one_cpu_weighs_what_the_kernel_gives_by_default() {
    let cases = [(1.0, 100), (0.5, 50), (1.5, 150), (0.001, 1), (0.0, 1), (100.0, 10_000)];
    for (cpus, expected) in cases {
        assert_eq!(weight(cpus).0, expected, "{cpus}");
    }
}

#[test]
fn no_number_of_cpus_leaves_the_range() {
    let odd = [-1.0, f64::NAN, f64::INFINITY, f64::NEG_INFINITY, f64::MAX, f64::MIN_POSITIVE];
    for cpus in odd {
        assert!((1..=10_000).contains(&weight(cpus).0), "{cpus}");
    }
}

#[test]
fn weights_of_bfq_share_both_ends_and_the_middle() {
    let cases = [(1, 1), (99, 99), (100, 100), (200, 109), (5000, 545), (10_000, 1000)];
    for (weight, expected) in cases {
        assert_eq!(bfq_weight(weight), expected, "{weight}");
    }
}

/// Writes `value` to a file that every cgroup has, as some limit would be.
fn write(scratch: &Scratch, file: &str, value: &str, form: Form) -> Result<Outcome, CgroupError> {
    let usable = Usable::default();
    let limiter =
        Limiter { dir: scratch.dir(), usable: &usable, disks: Vec::new(), mode: Mode::Enforce };
    limiter.hold(file, value, form)
}

#[test]
fn a_value_is_read_back_and_another_is_reported() {
    let scratch = Scratch::new();
    let file = "cgroup.max.depth";
    let path = scratch.dir().path().join(file);

    assert_eq!(write(&scratch, file, "7", Form::Word).unwrap(), Outcome::Held);
    // The kernel shows no sign in front.
    let error = write(&scratch, file, "+8", Form::Word).unwrap_err();
    let told = write(&scratch, file, "+8", Form::Lines).unwrap();

    let text = format!("{} holds \"8\" after \"+8\" was written to it", path.display());
    assert_eq!(error.to_string(), text);
    assert_eq!(told, Outcome::Rounded { asked: "+8".to_owned(), found: "8".to_owned() });
}

#[test]
fn a_value_that_the_kernel_refuses_is_named_and_no_error_of_ours() {
    let scratch = Scratch::new();

    let found = write(&scratch, "cgroup.max.depth", "abc", Form::Word).unwrap();

    let path = scratch.dir().path().join("cgroup.max.depth");
    let needs = format!("{} to take \"abc\"", path.display());
    assert_eq!(found, Outcome::Lacking { needs, why: "Invalid argument".to_owned() });
}

#[test]
fn a_file_that_can_only_be_written_is_told() {
    let scratch = Scratch::new();

    let found = write(&scratch, "cgroup.kill", "1", Form::Lines).unwrap();

    let found_back = "nothing that can be read back".to_owned();
    assert_eq!(found, Outcome::Rounded { asked: "1".to_owned(), found: found_back });
}

/// attack 58, S42: refused by name of the controller or of the file.
#[test]
fn a_missing_file_is_explained_by_its_controller_or_by_the_kernel() {
    let scratch = Scratch::new();
    let dir = scratch.dir().path().display();
    let usable = Usable { refused: vec![("memory", "it is elsewhere".to_owned())] };
    let limiter =
        Limiter { dir: scratch.dir(), usable: &usable, disks: Vec::new(), mode: Mode::Enforce };
    let lacks = |file| match limiter.lacks(file) {
        Outcome::Lacking { needs, why } => format!("{needs}; {why}"),
        other => panic!("{other:?}"),
    };

    assert_eq!(lacks("memory.high"), "the memory controller; it is elsewhere");
    assert_eq!(lacks("dmem.max"), format!("the dmem controller; {dir} does not have it"));
    assert_eq!(lacks("nonesuch"), format!("nonesuch; {dir} has none"));
}

#[test]
fn two_ceilings_of_one_disk_are_refused() {
    let scratch = Scratch::new();
    let usable = Usable::default();
    let mut limiter =
        Limiter { dir: scratch.dir(), usable: &usable, disks: Vec::new(), mode: Mode::Enforce };
    let disk = disk::any().expect("this test needs a block device");
    let max = IoMax {
        target: IoTarget::Device(disk),
        rbps: Some(1),
        wbps: None,
        riops: None,
        wiops: None,
    };

    limiter.disk("io.max[0]", &max).unwrap();
    let second = limiter.disk("io.max[1]", &max).unwrap();

    let why = format!("io.max[0] is about {disk} too");
    assert_eq!(second, Outcome::Lacking { needs: "a disk of its own".to_owned(), why });
}

/// S42: what is refused in advance is not dropped later either, and the trial leaves nothing behind.
#[test]
fn the_trial_and_the_real_cgroup_agree_on_the_real_host() {
    let scratch = Scratch::new();
    let mut spec = limited(everything());
    spec.processes[0].resources = Some(Box::new(everything()));

    let tried = scratch.base().try_out(&spec).unwrap();
    let id = crate::task::TaskId::new("limited").unwrap();
    let (task, of_task) = scratch.base().task_for(&id, &spec).unwrap();
    let leaf = task.leaf(&spec.processes[0].name, 0).unwrap();
    let of_run = leaf.apply(&everything(), "processes[0].resources").unwrap();

    let real = [of_task, of_run].into_iter().fold(Applied::default(), |mut all, of| {
        all.extend(of);
        all
    });
    assert_eq!(fields(&tried.unenforceable), fields(&real.unenforceable));
    assert_eq!(tried.rounded, real.rounded);
    assert_eq!(scratch.base().tasks().children().unwrap(), ["limited"]);
    let v2 = scratch.base().available_controllers().unwrap();
    let has = |name: &str| v2.iter().any(|controller| controller == name);
    let lacks = |field: &str| fields(&tried.unenforceable).contains(&field);
    assert_eq!(lacks("resources.ram"), !has("memory"));
    assert_eq!(lacks("resources.cpu"), !has("cpu"));
    assert_eq!(lacks("resources.hugetlb[2MB]"), !has("hugetlb"));
    assert!(lacks("resources.disk") && lacks("resources.gpu"));
}

/// Fields that are absent stay as they are: a live task is changed by some of its limits.
#[test]
fn nothing_is_written_for_what_is_absent() {
    let scratch = Scratch::new();
    let task = scratch.task("task");

    assert_eq!(task.limit(&Resources::default(), "resources").unwrap(), Applied::default());
}
