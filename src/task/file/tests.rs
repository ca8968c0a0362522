use std::num::{NonZeroU32, NonZeroU64};

use proptest::prelude::*;

use super::*;
use crate::task::list::NumberList;
use crate::task::resources::{self, CpuLimit, Cpuset, Device, Io, IoMax, IoTarget, NO_LIMIT};
use crate::task::spec::{FileMode, Graph, Logger, ProcessSpec, Rotate};
use crate::task::{NAME_MAX, ProcessName, Resources, node};

fn bindings() -> Bindings {
    Bindings {
        task_id: Some(TaskId::new("id-1").unwrap()),
        id_suffix: "20260102-030405.000006".into(),
        user: "alice".into(),
        ports: [("http".to_owned(), 8080)].into(),
        variables: [("v", "value"), ("dotted.name", "a=b"), ("name", "never")]
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .into(),
    }
}

fn accepted(source: &str) -> Accepted {
    match parse(source.as_bytes(), "t.yaml", &bindings()) {
        Ok(accepted) => accepted,
        Err(report) => panic!("{report}"),
    }
}

fn spec(source: &str) -> TaskSpec {
    accepted(source).spec
}

fn refused(source: impl AsRef<[u8]>) -> Report {
    parse(source.as_ref(), "t.yaml", &bindings()).expect_err("a refused file")
}

/// `line:column field: message; expected …` for each error.
fn errors(source: impl AsRef<[u8]>) -> Vec<String> {
    let line = |diagnostic: &Diagnostic| {
        let Place { line, column } = diagnostic.place;
        let Diagnostic { field, message, expected, .. } = diagnostic;
        format!("{line}:{column} {field}: {message}; expected {expected}")
    };
    refused(source).diagnostics().iter().map(line).collect()
}

/// A task of one process with `fields` in its flow mapping.
fn process(fields: &str) -> String {
    format!("processes: [{{name: p, cmdline: 'true', {fields}}}]")
}

/// A task with one process and `fields`, a line each.
fn task(fields: &str) -> String {
    format!("processes: [{{name: p, cmdline: 'true'}}]\n{fields}")
}

/// T1, T2
#[test]
fn a_file_of_one_process_gets_every_default() {
    let accepted = accepted("processes:\n- name: p\n  cmdline: echo hi\n");

    let process = ProcessSpec::new(ProcessName::new("p").unwrap(), "echo hi");
    assert_eq!(
        accepted.spec,
        TaskSpec {
            name: "p".into(),
            processes: vec![process],
            graph: Graph { predecessors: vec![0], successors: vec![vec![]] },
            resources: None,
            max_failures: 1,
            max_concurrency: 0,
            finalization_wait: Duration::from_secs(30),
            user: None,
        }
    );
    assert_eq!(accepted.task_id.as_str(), "id-1");
    assert_eq!(accepted.task.processes[0].max_failures, Some(1));
    assert_eq!(accepted.task.finalization_wait.unwrap().seconds, 30);
}

const EVERYTHING: &str = "\
name: all
user: bob
max_failures: 2
max_concurrency: 3
finalization_wait: 1.5
resources: {cpu: 1.5, ram: 128MB, disk: 1GiB, gpu: 1}
processes:
  - name: a
    cmdline: |
      line 1
      line 2
    max_failures: 0
    daemon: false
    ephemeral: true
    min_duration: 500ms
    resources: {ram: 1024}
    logger: {destination: both, mode: rotate, rotate: {log_size: 1KB, backups: 2}}
  - {name: b, cmdline: '', ephemeral: true, daemon: true}
  - {name: f, cmdline: exit 1, final: true}
constraints:
  - order: [a, b]
  - order: [f]
";

/// T1, T2, T4, T5, T9
#[test]
fn every_field_is_read() {
    let accepted = accepted(EVERYTHING);

    let name = |name| ProcessName::new(name).unwrap();
    let rotate =
        Rotate { log_size: NonZeroU64::new(1024).unwrap(), backups: NonZeroU32::new(2).unwrap() };
    let expected = TaskSpec {
        name: "all".into(),
        processes: vec![
            ProcessSpec {
                max_failures: 0,
                ephemeral: true,
                min_duration: Duration::from_millis(500),
                resources: Some(Box::new(Resources { ram: Some(1024), ..Resources::default() })),
                logger: Some(Logger { file: Some(FileMode::Rotate(rotate)), console: true }),
                ..ProcessSpec::new(name("a"), "line 1\nline 2\n")
            },
            ProcessSpec { ephemeral: true, daemon: true, ..ProcessSpec::new(name("b"), "") },
            ProcessSpec { is_final: true, ..ProcessSpec::new(name("f"), "exit 1") },
        ],
        graph: Graph { predecessors: vec![0, 1, 0], successors: vec![vec![1], vec![], vec![]] },
        resources: Some(Resources {
            cpu: Some(1.5),
            ram: Some(128 << 20),
            disk: Some(1 << 30),
            gpu: Some(1),
            ..Resources::default()
        }),
        max_failures: 2,
        max_concurrency: 3,
        finalization_wait: Duration::from_millis(1500),
        user: Some("bob".into()),
    };
    assert_eq!(accepted.spec, expected);
    assert_eq!(TaskSpec::from_proto(&accepted.task), Ok(expected));
    assert_eq!(accepted.task.constraints.len(), 2);
}

/// S45, T6, T16: a task as Thermos stored it: flags as 0 and 1, numbers as text, all defaults.
#[test]
fn a_task_that_thermos_stored_is_as_if_written_by_hand() {
    let stored = r#"{"name": "t", "processes": [
      {"name": "a", "cmdline": "true", "max_failures": "2", "daemon": 0, "ephemeral": "1",
       "min_duration": "5", "final": false},
      {"name": "b", "cmdline": "true", "max_failures": 1, "daemon": "False", "ephemeral": 1,
       "min_duration": 5, "final": 0, "logger": {"destination": "file", "mode": "rotate",
       "rotate": {"log_size": 104857600, "backups": "5"}}}],
     "constraints": [{"order": ["a", "b"]}],
     "resources": {"cpu": "1.0", "ram": 134217728, "disk": "134217728", "gpu": 0},
     "max_failures": 1, "max_concurrency": 0, "finalization_wait": 30, "user": null}"#;
    let by_hand = "\
name: t
processes:
- {name: a, cmdline: 'true', max_failures: 2, ephemeral: true}
- {name: b, cmdline: 'true', ephemeral: true, logger: {mode: rotate}}
constraints: [{order: [a, b]}]
resources: {cpu: 1, ram: 128MB, disk: 128MiB}
";

    assert_eq!(accepted(stored), accepted(by_hand));
}

/// T1: `[]` with a name is valid; a missing list is an error, as is no name at all.
#[test]
fn processes_may_be_none_but_not_missing() {
    assert_eq!(spec("name: t\nprocesses: []").processes, []);
    assert_eq!(
        errors("name: t"),
        ["1:1 processes: a task without `processes`; expected a field `processes`"]
    );
    assert_eq!(
        errors("name: t\nprocesses:"),
        ["1:1 processes: a task without `processes`; expected a field `processes`"]
    );
    assert_eq!(
        errors("processes: []"),
        ["1:1 name: no name, and no process to take it from; expected a name"]
    );
}

/// T2, T3, T6: each coercion is named with its field.
#[test]
fn a_value_of_the_wrong_kind_is_named_with_its_field() {
    let found = |fields| errors(process(fields));
    let column = process("").find(", }").unwrap() + 3;

    assert_eq!(
        found("max_failures: -1"),
        [format!(
            "1:{} processes[0].max_failures: `-1` is negative; \
             expected a whole number from 0 to 4294967295",
            column + 14
        )]
    );
    assert_eq!(
        found("daemon: yes"),
        [format!(
            "1:{} processes[0].daemon: `yes` is not a flag; expected true or false",
            column + 8
        )]
    );
    for (fields, message) in [
        ("max_failures: 2.5", "`2.5` is not a whole number"),
        ("max_failures: 007", "`007` begins with a zero, which could mean octal: write that as"),
        ("max_failures: [1]", "a list; expected a whole number from 0 to 4294967295"),
        ("max_failures: {{v}}", "`{{v}}` without quotes; expected quotes around it"),
        ("min_duration: -1", "`-1` is negative; expected a number of seconds"),
        ("min_duration: 1 week", "`1 week` is not a duration"),
        ("final: '2'", "`2` is not a flag"),
        ("resources: {ram: 1PB}", "resources.ram: `1PB` is not a size; expected a number of bytes"),
        ("resources: {ram: -1}", "resources.ram: `-1` is negative"),
        ("resources: {cpu: .nan}", "resources.cpu: `.nan` is not a number"),
        ("resources: {cpu: 0}", "resources.cpu: 0 CPUs; expected at least 0.01"),
        ("resources: {disk: 0}", "resources.disk: 0 bytes; expected at least 1"),
        ("resources: 5", "resources: `5`; expected resources: a mapping with cpu, cpu_limit, ram"),
        ("logger: {mode: fast}", "logger.mode: `fast` is not known; expected standard or rotate"),
        (
            "logger: {destination: disk}",
            "`disk` is not known; expected file, console, both or none",
        ),
        (
            "logger: {mode: rotate, rotate: {log_size: 0}}",
            "logger.rotate.log_size: 0 bytes; expected at least 1",
        ),
        ("logger: {mode: rotate, rotate: {backups: 0}}", "logger.rotate.backups: 0; expected"),
    ] {
        let errors = found(fields);
        assert_eq!(errors.len(), 1, "{fields}: {errors:?}");
        assert!(errors[0].contains(message), "{fields}: {errors:?}");
    }
}

/// A task whose limits are `fields`, from column 13 of line 2 on.
fn limited(fields: &str) -> String {
    task(&format!("resources: {{{fields}}}"))
}

fn limits(fields: &str) -> Resources {
    spec(&limited(fields)).resources.unwrap()
}

#[test]
fn every_limit_is_read_in_its_units() {
    let list = |text| NumberList::parse(text, 63).ok();
    let found = limits(
        "cpu: 1, cpu_limit: {cpus: 2, period: 50ms, burst: 5ms}, ram: 2MB, memory_high: 1MB, \
         memory_low: 4KB, memory_min: 0, swap: 0, oom_group: true, pids: 0x10, \
         io: {weight: 50, max: [{path: /, rbps: 10MB, wiops: 7}, {device: '8:0', wbps: max}]}, \
         cpuset: {cpus: '0,2-3', mems: 0}, hugetlb: {2MB: 64MB, 1GB: max}, \
         cgroup: {memory.zswap.max: 0, cpu.idle: '1'}",
    );

    let expected = Resources {
        cpu: Some(1.0),
        cpu_limit: Some(CpuLimit {
            cpus: Some(2.0),
            period: Duration::from_millis(50),
            burst: Duration::from_millis(5),
        }),
        ram: Some(2 << 20),
        memory_high: Some(1 << 20),
        memory_low: Some(4096),
        memory_min: Some(0),
        swap: Some(0),
        oom_group: Some(true),
        pids: Some(16),
        io: Io {
            weight: Some(50),
            max: vec![
                IoMax {
                    target: IoTarget::Path("/".into()),
                    rbps: Some(10 << 20),
                    wbps: None,
                    riops: None,
                    wiops: Some(7),
                },
                IoMax {
                    target: IoTarget::Device(Device { major: 8, minor: 0 }),
                    rbps: None,
                    wbps: Some(NO_LIMIT),
                    riops: None,
                    wiops: None,
                },
            ],
        },
        cpuset: Cpuset { cpus: list("0,2-3"), mems: list("0") },
        hugetlb: [("2MB".into(), 64 << 20), ("1GB".into(), NO_LIMIT)].into(),
        cgroup: [("memory.zswap.max", "0"), ("cpu.idle", "1")]
            .map(|(file, value)| (file.into(), value.into()))
            .into(),
        disk: None,
        gpu: None,
    };
    assert_eq!(found, expected);
}

#[test]
fn a_cpu_limit_is_a_number_or_a_mapping_and_max_lifts_it() {
    let limit = |cpus, millis| {
        let period = Duration::from_millis(millis);
        Some(CpuLimit { cpus, period, burst: Duration::ZERO })
    };

    assert_eq!(limits("cpu_limit: 0.5").cpu_limit, limit(Some(0.5), 100));
    assert_eq!(limits("cpu_limit: max").cpu_limit, limit(None, 100));
    assert_eq!(limits("cpu_limit: {cpus: max, period: 10ms}").cpu_limit, limit(None, 10));
}

#[test]
fn max_is_no_limit_wherever_there_is_an_amount() {
    let found = limits("ram: max, memory_high: max, memory_low: max, swap: max, pids: max");

    let all = [found.ram, found.memory_high, found.memory_low, found.swap, found.pids];
    assert_eq!(all, [Some(NO_LIMIT); 5]);
}

#[test]
fn a_wrong_limit_is_shown_at_its_place() {
    for (fields, place, message) in [
        (
            "cpu_limit: x",
            13 + 11,
            "resources.cpu_limit: `x` is not a number; expected a number of CPUs",
        ),
        ("cpu_limit: 0", 13 + 11, "resources.cpu_limit.cpus: 0 CPUs; expected 0.01 to 1000000"),
        (
            "cpu_limit: {period: 1s}",
            13 + 11,
            "resources.cpu_limit.cpus: a CPU limit without `cpus`",
        ),
        (
            "cpu_limit: {cpus: 1, period: 2s}",
            13 + 29,
            "cpu_limit.period: 2000000 us; expected 1000 us to",
        ),
        (
            "cpu_limit: {cpus: 1, bust: 1ms}",
            13 + 21,
            "cpu_limit.bust: unknown field `bust`; expected `burst`",
        ),
        (
            "ram: 1MB, memory_high: 2MB",
            13 + 23,
            "memory_high: 2097152 bytes; expected at most `ram`",
        ),
        ("swap: -1", 13 + 6, "resources.swap: `-1` is negative; expected a number of bytes"),
        ("swap: MAX", 13 + 6, "resources.swap: `MAX` is not a size; expected a number of bytes"),
        ("pids: 0", 13 + 6, "resources.pids: 0; expected 1 to 4194304, or max"),
        (
            "pids: 1.5",
            13 + 6,
            "resources.pids: `1.5` is not a whole number; expected a whole number, or max",
        ),
        ("io: {weight: 0}", 13 + 13, "resources.io.weight: 0; expected 1 to 10000"),
        ("io: {max: 5}", 13 + 10, "resources.io.max: `5`; expected a list"),
        (
            "io: {max: [5]}",
            13 + 11,
            "resources.io.max[0]: `5`; expected a ceiling of a disk: a mapping",
        ),
        (
            "io: {max: [{path: /}]}",
            13 + 11,
            "resources.io.max[0]: limits nothing; expected at least one of",
        ),
        (
            "io: {max: [{rbps: 1}]}",
            13 + 11,
            "resources.io.max[0]: names no disk; expected one of path, device",
        ),
        (
            "io: {max: [{path: d, rbps: 1}]}",
            13 + 18,
            "max[0].path: `d` is not absolute; expected an absolute",
        ),
        (
            "io: {max: [{device: sda, rbps: 1}]}",
            13 + 20,
            "max[0].device: `sda` is no device; expected two",
        ),
        (
            "io: {max: [{path: /, device: '8:0', rbps: 1}]}",
            13 + 29,
            "resources.io.max[0].device: two names of a disk; expected one of path, device",
        ),
        (
            "io: {max: [{path: /, rbps: 0}]}",
            13 + 27,
            "max[0].rbps: 0 a second; expected at least 1",
        ),
        (
            "cpuset: {cpus: 3-1}",
            13 + 15,
            "cpuset.cpus: `3-1` has a range that ends before it begins",
        ),
        (
            "cpuset: {mems: 1024}",
            13 + 15,
            "cpuset.mems: `1024` has a number above 1023; expected a list",
        ),
        (
            "hugetlb: {2MB: 1MB, 3mb: 1}",
            13 + 25,
            "hugetlb[3mb]: `3mb` is no size of a page; expected a size",
        ),
        (
            "hugetlb: {2MB: x}",
            13 + 15,
            "resources.hugetlb[2MB]: `x` is not a size; expected a number of",
        ),
        ("hugetlb: [2MB]", 13 + 9, "resources.hugetlb: a list; expected a mapping"),
        (
            "cgroup: {cgroup.procs: 1}",
            13 + 23,
            "cgroup[cgroup.procs]: `cgroup.procs` is no file of a contr",
        ),
        (
            "cgroup: {pids.max: 1}",
            13 + 19,
            "cgroup[pids.max]: `pids.max` has a field of its own; expected `pids`",
        ),
        (
            "cgroup: {misc.max: ''}",
            13 + 19,
            "resources.cgroup[misc.max]: is empty; expected one line",
        ),
        ("cgroup: {misc.max: [1]}", 13 + 19, "resources.cgroup[misc.max]: a list; expected a text"),
        (
            "cgroup: {misc.max: '{{x}}'}",
            13 + 20,
            "resources.cgroup[misc.max]: `{{x}}` is bound to nothing",
        ),
    ] {
        let errors = errors(limited(fields));
        assert_eq!(errors.len(), 1, "{fields}: {errors:?}");
        assert!(errors[0].starts_with(&format!("2:{place} ")), "{fields}: {errors:?}");
        assert!(errors[0].contains(message), "{fields}: {errors:?}");
    }
}

/// T4: rotation without bounds takes the defaults.
#[test]
fn rotation_bounds_have_defaults_each() {
    let logger = |fields: &str| spec(&process(fields)).processes[0].logger;
    let rotated = |log_size, backups| {
        Some(Logger {
            file: Some(FileMode::Rotate(Rotate {
                log_size: NonZeroU64::new(log_size).unwrap(),
                backups: NonZeroU32::new(backups).unwrap(),
            })),
            console: false,
        })
    };

    assert_eq!(logger("logger: {mode: rotate, rotate: {backups: 7}}"), rotated(104_857_600, 7));
    assert_eq!(logger("logger: {mode: rotate, rotate: {log_size: 9}}"), rotated(9, 5));
    assert_eq!(logger("logger: {mode: rotate}"), rotated(104_857_600, 5));
    assert_eq!(
        logger("logger: {}"),
        Some(Logger { file: Some(FileMode::Standard), console: false })
    );
    assert_eq!(logger("logger: null"), None);
}

/// T6: null is absent.
#[test]
fn null_for_an_optional_field_is_as_if_it_were_left_out() {
    assert_eq!(
        spec(&task("name: ~\nmax_failures: null\nconstraints:\nresources: {cpu: }\nuser: NULL")),
        spec(&task("resources: {}"))
    );
    assert_eq!(
        errors("processes: [{name: ~, cmdline: null}]"),
        [
            "1:13 processes[0].name: a process without `name`; expected a field `name`",
            "1:13 processes[0].cmdline: a process without `cmdline`; expected a field `cmdline`",
        ]
    );
}

/// attack 52: what YAML 1.1 read as a flag or an octal number is the text that it looks like.
#[test]
fn texts_that_look_like_other_things_stay_texts() {
    let spec = spec("processes: [{name: no, cmdline: 012}, {name: 1.0, cmdline: 'null'}]");

    assert_eq!(spec.name, "no");
    assert_eq!(spec.processes[0].cmdline, "012");
    assert_eq!(spec.processes[1].name.as_str(), "1.0");
    assert_eq!(spec.processes[1].cmdline, "null");
}

/// S43
#[test]
fn every_error_comes_in_one_go_with_its_place() {
    let source = "\
name: t
max_failures: -1
processes:
  - name: a/b
    cmdline: echo
  - name: c
    cmdline: serve {{thermos.ports[admin]}}
    retries: 3
  - name: d
    cmdline: 'true'
constraints:
  - order: [c, d]
  - order: [d, c]
";

    let text = refused(source).to_string();

    let expected = "\
error: max_failures: `-1` is negative
 --> t.yaml:2:15
  |
2 | max_failures: -1
  |               ^^ expected a whole number from 0 to 4294967295

error: processes[0].name: `a/b` contains `/`
 --> t.yaml:4:11
  |
4 |   - name: a/b
  |           ^^^ expected 1 to 243 bytes with no `/`, no control character and no `.` in front

error: processes[1].cmdline: port `admin` is not bound
 --> t.yaml:7:20
  |
7 |     cmdline: serve {{thermos.ports[admin]}}
  |                    ^^^^^^^^^^^^^^^^^^^^^^^^ expected a binding `-P admin:PORT`

error: processes[1].retries: unknown field `retries`
 --> t.yaml:8:5
  |
8 |     retries: 3
  |     ^^^^^^^ expected one of name, cmdline, max_failures, daemon, ephemeral, min_duration, final, \
logger, resources

error: constraints[1].order[1]: `c` -> `d` -> `c` wait for each other
  --> t.yaml:13:16
   |
13 |   - order: [d, c]
   |                ^ expected an order without a cycle

5 errors in t.yaml";
    assert_eq!(text, expected);
}

/// T16: an unknown field is an error everywhere; a mistyped one stands for the one that was meant.
#[test]
fn an_unknown_field_suggests_the_known_one_and_is_one_error() {
    assert_eq!(
        errors("processes:\n- name: p\n  cmdlnie: x\nmax-failure: 1\nresources: {memory: 1}\n"),
        [
            "3:3 processes[0].cmdlnie: unknown field `cmdlnie`; expected `cmdline`",
            "4:1 max-failure: unknown field `max-failure`; expected `max_failures`",
            "5:13 resources.memory: unknown field `memory`; expected one of cpu, cpu_limit, ram, memory_high, memory_low, memory_min, swap, \
             oom_group, pids, io, cpuset, hugetlb, cgroup, disk, gpu",
        ]
    );
}

/// T9: when a process has no readable name, an order is not blamed for it.
#[test]
fn what_follows_from_an_error_is_not_reported_again() {
    assert_eq!(
        errors(
            "processes:\n- {cmdline: x}\n- {name: '{{nothing}}', cmdline: x}\n- 5\n\
             constraints: [{order: [a, b]}]\n"
        ),
        [
            "2:3 processes[0].name: a process without `name`; expected a field `name`",
            "3:11 processes[1].name: `{{nothing}}` is bound to nothing; expected a field of the \
             process or of the task, thermos.task_id, thermos.user, thermos.ports[NAME], or a \
             binding `-E nothing=VALUE`",
            "4:3 processes[2]: `5`; expected a process: a mapping with name, cmdline, \
             max_failures, daemon, ephemeral, min_duration, final, logger, resources",
        ]
    );
    assert_eq!(
        errors("processes: [{name: a/b, cmdline: x}]\nconstraints: [{order: [a/b]}]").len(),
        1
    );
}

/// T9
#[test]
fn constraints_are_lists_of_orders_of_names() {
    assert_eq!(
        errors(task(
            "constraints:\n- order: [p, q]\n- [p]\n- {}\n- order: p\n- order: [[p], ~]\n- order: []\n"
        )),
        [
            "3:14 constraints[0].order[1]: no process is named `q`; \
             expected the name of a process of this task",
            "4:3 constraints[1]: a list; expected a constraint: a mapping with order",
            "5:3 constraints[2].order: a constraint without `order`; expected a field `order`",
            "6:10 constraints[3].order: `p`; expected a list",
            "7:11 constraints[4].order[0]: a list; expected the name of a process",
            "7:16 constraints[4].order[1]: nothing; expected the name of a process",
            "8:10 constraints[5].order: names no process; expected at least one name",
        ]
    );
}

fn filled(cmdline: &str) -> String {
    let source = format!(
        "name: the task\nfinalization_wait: 7\nresources: {{cpu: 2}}\nprocesses:\n\
         - name: p\n  cmdline: {cmdline}\n  min_duration: 1\n- name: q\n  cmdline: ''\n"
    );
    spec(&source).processes[0].cmdline.clone()
}

/// S46, T13: the scopes, nearest first.
#[test]
fn templates_are_filled_from_own_fields_then_the_tasks_then_bindings() {
    for (template, text) in [
        ("'{{name}}'", "p"),
        ("'{{self.name}}'", "p"),
        ("'{{min_duration}} {{max_failures}} {{daemon}}'", "1 1 false"),
        ("'{{finalization_wait}} {{max_concurrency}}'", "7 0"),
        ("'{{processes[1].name}}'", "q"),
        ("'{{resources.cpu}}'", "2"),
        ("'{{thermos.task_id}}'", "id-1"),
        ("'{{thermos.user}}'", "alice"),
        ("'{{thermos.ports[http]}}'", "8080"),
        ("'{{v}} {{dotted.name}}'", "value a=b"),
        ("'{{&x}}'", "{{x}}"),
        ("'{{processes[{{max_failures}}].name}}'", "q"),
        ("echo {{v}}", "echo value"),
    ] {
        assert_eq!(filled(template), text, "{template}");
    }
}

/// T13, T6: every text is a template: names, orders, numbers, flags.
#[test]
fn templates_stand_in_every_text() {
    let spec = spec(
        "processes:\n- name: '{{v}}-{{thermos.ports[http]}}'\n  cmdline: x\n  \
         max_failures: '{{thermos.ports[http]}}'\n  daemon: '{{ephemeral}}'\n  ephemeral: 1\n\
         constraints: [{order: ['{{processes[0].name}}']}]\n",
    );

    assert_eq!(spec.name, "value-8080");
    assert_eq!(spec.processes[0].max_failures, 8080);
    assert!(spec.processes[0].daemon);
}

/// T13: inside of a logger, its own fields come first, then those of its process, then the task's.
#[test]
fn an_inner_mapping_sees_the_outer_ones() {
    let spec = spec(&process(
        "max_failures: 9, logger: {mode: rotate, rotate: {log_size: '{{max_failures}}', \
         backups: '{{log_size}}'}}",
    ));

    let Some(Logger { file: Some(FileMode::Rotate(rotate)), .. }) = spec.processes[0].logger else {
        panic!("{spec:?}");
    };
    assert_eq!((rotate.log_size.get(), rotate.backups.get()), (9, 9));
}

/// T13: the user of the task is `thermos.user`, who launches it where there is none.
#[test]
fn thermos_user_is_the_user_of_the_task() {
    let source =
        |user| format!("user: {user}\nprocesses: [{{name: p, cmdline: '{{{{thermos.user}}}}'}}]");

    assert_eq!(spec(&source("bob")).processes[0].cmdline, "bob");
    assert_eq!(spec(&source("~")).processes[0].cmdline, "alice");
    assert_eq!(spec(&source("'{{thermos.user}}2'")).processes[0].cmdline, "alice2");
}

/// T13, T14: each error of a template points at its braces.
#[test]
fn a_template_error_points_at_the_braces() {
    let source = "processes:\n- name: p\n  cmdline: |\n    {{v}} {{x}}\n    {{thermos.ports.http}}\n    \
                  {{ v }} {{processes}} {{thermos.ports[x]}} {{mesos.instance}}\n";

    let found = errors(source);

    let prefixes = [
        "4:11 processes[0].cmdline: `{{x}}` is bound to nothing",
        "5:5 processes[0].cmdline: `{{thermos.ports.http}}` names no port; \
         expected the form `{{thermos.ports[NAME]}}`",
        "6:5 processes[0].cmdline: `{{ v }}` is not a reference",
        "6:13 processes[0].cmdline: `{{processes}}` is a list, which cannot stand in a text",
        "6:27 processes[0].cmdline: port `x` is not bound; expected a binding `-P x:PORT`",
        "6:48 processes[0].cmdline: `{{mesos.instance}}` is bound to nothing",
    ];
    assert_eq!(found.len(), prefixes.len(), "{found:#?}");
    for (found, prefix) in found.iter().zip(prefixes) {
        assert!(found.starts_with(prefix), "{found}");
    }
}

/// T13: more than 100 rounds.
#[test]
fn fields_that_refer_to_each_other_are_refused() {
    let found = errors("processes: [{name: '{{cmdline}}', cmdline: '{{name}}'}]");

    assert_eq!(
        found,
        [
            "1:20 processes[0].name: still has references after 100 rounds of filling in; \
             expected references that come to an end",
            "1:44 processes[0].cmdline: still has references after 100 rounds of filling in; \
             expected references that come to an end",
        ]
    );
}

fn without_id(source: &str) -> Result<Accepted, Vec<String>> {
    let bindings = Bindings { task_id: None, ..bindings() };
    parse(source.as_bytes(), "t.yaml", &bindings).map_err(|report| {
        let line = |d: &Diagnostic| format!("{} {}: {}", d.place.line, d.field, d.message);
        report.diagnostics().iter().map(line).collect()
    })
}

/// T15
#[test]
fn the_default_id_is_the_name_and_the_time() {
    let source = "name: t\nprocesses: [{name: p, cmdline: '{{thermos.task_id}}'}]";
    let accepted = without_id(source).unwrap();
    assert_eq!(accepted.task_id.as_str(), "t-20260102-030405.000006");
    assert_eq!(accepted.spec.processes[0].cmdline, "t-20260102-030405.000006");

    let unnamed = without_id("processes: [{name: p, cmdline: x}]").unwrap();
    assert_eq!(unnamed.task_id.as_str(), "p-20260102-030405.000006");
}

/// T15: names that pass as names but make no id; T7: task ids have no blanks.
#[test]
fn a_name_that_makes_no_id_is_refused_where_the_id_is_made_from_it() {
    let named = |name: &str| format!("name: {name}\nprocesses: [{{name: p q, cmdline: x}}]");
    assert!(parse(named("a b").as_bytes(), "t", &bindings()).is_ok());

    assert_eq!(
        without_id(&named("a b")).unwrap_err(),
        ["1 name: makes the task id `a b-20260102-030405.000006`, which contains a blank"]
    );
    assert_eq!(
        without_id("processes:\n- {name: p q, cmdline: '{{thermos.task_id}}'}").unwrap_err(),
        ["2 name: makes the task id `p q-20260102-030405.000006`, which contains a blank"]
    );
    assert_eq!(without_id(&named(&"n".repeat(NAME_MAX))).unwrap_err().len(), 1);
    assert_eq!(without_id(&named("a/b")).unwrap_err(), ["1 name: `a/b` contains `/`"]);
}

/// T13, T15: the id is made from the name, so the name cannot hold the id.
#[test]
fn a_name_made_of_the_id_that_is_made_of_it_is_refused() {
    let circular = "`{{thermos.task_id}}` is not known yet: it is made from the name of the task";

    assert_eq!(
        without_id("name: '{{thermos.task_id}}'\nprocesses: []").unwrap_err(),
        [format!("1 name: {circular}")]
    );
    assert_eq!(
        without_id("processes: [{name: '{{thermos.task_id}}', cmdline: x}]").unwrap_err(),
        [format!("1 processes[0].name: {circular}")]
    );
    assert_eq!(spec("processes: [{name: '{{thermos.task_id}}', cmdline: x}]").name, "id-1");

    let named = without_id("name: t\nprocesses: [{name: '{{thermos.task_id}}', cmdline: x}]");
    let name = &named.unwrap().spec.processes[0].name;
    assert_eq!(name.as_str(), "t-20260102-030405.000006");
}

/// attack 52: duplicate keys.
#[test]
fn a_key_that_comes_twice_is_an_error_with_both_places() {
    let report = refused("name: a\nprocesses: []\nname: b\nname: c\n");

    let places: Vec<_> = report
        .diagnostics()
        .iter()
        .map(|diagnostic| {
            let first = diagnostic.first.expect("the first place");
            (diagnostic.place.line, first.line, diagnostic.message.as_str())
        })
        .collect();
    assert_eq!(places, [(3, 1, "`name` is given twice"), (4, 1, "`name` is given twice")]);
}

#[test]
fn anchors_aliases_and_merge_keys_work() {
    let source = "\
processes:
  - &base {name: a, cmdline: &line echo, max_failures: 3, min_duration: 1}
  - <<: *base
    name: b
  - <<: [{max_failures: 4}, *base]
    name: c
    cmdline: *line
  - <<: {<<: *base, min_duration: 2}
    name: d
constraints:
  - order: &order [a, b]
  - order: *order
";

    let spec = spec(source);

    let seen: Vec<_> = (spec.processes.iter())
        .map(|p| (p.name.as_str(), p.cmdline.as_str(), p.max_failures, p.min_duration.as_secs()))
        .collect();
    assert_eq!(
        seen,
        [("a", "echo", 3, 1), ("b", "echo", 3, 1), ("c", "echo", 4, 1), ("d", "echo", 3, 2)]
    );
}

#[test]
fn what_yaml_allows_and_a_task_does_not_is_named() {
    for (source, message) in [
        ("", "1:1 : the file is empty; expected a mapping with `processes`"),
        ("# only a comment\n", "1:1 : the file is empty"),
        ("a: 1\n---\nb: 2\n", "2:1 : a second document; expected one document in the file"),
        ("[1]", "1:1 : a list; expected a task: a mapping with name, processes,"),
        ("just text", "1:1 : `just text`; expected a task: a mapping"),
        ("a: *b", "1:4 : alias `*b` names nothing"),
        ("a: &a [*a]", "1:8 : the alias stands inside of what it names"),
        ("? [a]\n: 1", "1:3 : a key that is no text"),
        ("<<: 5", "1:5 : `<<` cannot merge this; expected mappings to merge"),
        ("name: !secret x", "1:7 : tag `!secret`; expected no tag here"),
        ("name: !!binary x", "1:7 : tag `!!binary`; expected no tag here"),
        ("name: !!map x", "1:7 : tag `!!map`; expected no tag here"),
        ("a:\n\t- b", "2:2 : tabs disallowed"),
        ("a: [1, 2", "1:4 : unclosed bracket"),
    ] {
        let found = errors(source);
        assert!(found.iter().any(|error| error.starts_with(message)), "{source}: {found:#?}");
    }
}

/// Tags of the core schema say what is known; `!!str` makes a text of what looks like null.
#[test]
fn core_tags_pass() {
    let spec = spec(
        "!!map\nprocesses: !!seq\n- {name: !!str null, cmdline: !!str 5, max_failures: !!int 2}",
    );

    assert_eq!(spec.name, "null");
    assert_eq!(spec.processes[0].max_failures, 2);
}

/// attack 52
#[test]
fn bytes_that_are_not_utf8_are_named_with_their_place() {
    assert_eq!(
        errors(b"name: t\nuser: \xff\n"),
        ["2:7 : byte 14 of the file, 0xff, is not UTF-8; expected text in UTF-8"]
    );
    assert_eq!(
        errors([0xff, 0xfe, b'a', 0])[0].split(';').next(),
        Some("1:1 : byte 0 of the file, 0xff, is not UTF-8")
    );
    assert_eq!(spec("\u{feff}name: t\nprocesses: []").name, "t");
}

/// S44, attack 52: each bomb is refused in one error with a reason.
#[test]
fn bombs_are_refused_with_a_reason() {
    let mut laughs = String::from("a: &a [x,x,x,x,x,x,x,x,x,x]\n");
    for (name, of) in ["a", "b", "c", "d", "e", "f"].into_iter().zip(["b", "c", "d", "e", "f", "g"])
    {
        laughs.push_str(&format!("{of}: &{of} [{}]\n", vec![format!("*{name}"); 10].join(",")));
    }
    let expansion = "the file is too large, each alias counted as what it stands for";
    let processes = "- {name: p, cmdline: x}\n".repeat(MAX_PROCESSES + 1);
    let merges = format!("a: &a {{{}}}\nb: {{<<: [{}]}}", keys(2000), vec!["*a"; 2000].join(","));
    let text = format!("a: &a {}\nb: [{}]", "x".repeat(1 << 20), ["*a"; 9].join(","));
    let orders = format!(
        "{}constraints:\n- &o {{order: [{}]}}\n{}",
        task(""),
        vec!["p"; 100_000].join(","),
        "- *o\n".repeat(2)
    );
    for (source, message) in [
        (laughs, expansion),
        (merges, expansion),
        (text, expansion),
        (format!("processes: [{}]", "x,".repeat(700_000)), expansion),
        ("[".repeat(100_000), "lists and mappings are nested too deeply"),
        ("{".repeat(100_000), "lists and mappings are nested too deeply"),
        ("- ".repeat(100_000), "lists and mappings are nested too deeply"),
        (format!("processes:\n{processes}"), "10001 processes"),
        (orders, "more names"),
        ("x".repeat(MAX_FILE_BYTES + 1), "the file has 4194305 bytes"),
    ] {
        let report = refused(&source);
        let messages: Vec<_> = report.diagnostics().iter().map(|d| d.message.as_str()).collect();
        assert_eq!(messages, [message], "{}", &source[..40.min(source.len())]);
    }
}

fn keys(count: usize) -> String {
    (0..count).map(|key| format!("k{key}: 1, ")).collect()
}

/// attack 52: a template bomb is said once, however many texts hold it.
#[test]
fn a_template_bomb_is_refused_once() {
    let bomb = "- {name: p, cmdline: '{{x}}{{x}}', user: 1}\n";
    let source = format!("user: u\nprocesses:\n{}", bomb.replace(", user: 1", "").repeat(3));
    let bindings =
        Bindings { variables: [("x".to_owned(), "{{x}}{{x}}".to_owned())].into(), ..bindings() };

    let report = parse(source.as_bytes(), "t.yaml", &bindings).unwrap_err();

    let messages: Vec<_> = report.diagnostics().iter().map(|d| d.message.as_str()).collect();
    assert_eq!(messages, ["fills in to more than 8388608 bytes, all texts of the file together"]);
}

/// attack 52: a thousand errors are shown, and all are counted.
#[test]
fn errors_beyond_a_thousand_are_counted() {
    let source = format!("processes: []\nname: t\n{}", keys(1500).replace(", ", "\n"));

    let report = refused(source);

    assert_eq!((report.diagnostics().len(), report.more()), (1000, 500));
}

/// attack 52: errors of the YAML itself end the reading, so that they cost nothing.
#[test]
fn a_thousand_errors_of_the_tree_are_enough() {
    let report = refused("- *a\n".repeat(100_000));

    assert_eq!((report.diagnostics().len(), report.more()), (1000, 1));
}

const REFERENCE: &str = include_str!("../../../docs/task-file.md");

/// A piece of the reference as a whole task.
fn whole_task(piece: &str) -> String {
    let indented = piece.replace('\n', "\n  ");
    match piece.split(':').next() {
        Some("constraints") => {
            let processes: String = ["fetch", "build", "test", "lint"]
                .map(|name| format!("- {{name: {name}, cmdline: x}}\n"))
                .concat();
            format!("processes:\n{processes}{piece}")
        }
        Some("resources") => task(piece),
        Some("logger") => format!("processes:\n- name: p\n  cmdline: x\n  {indented}"),
        _ => piece.to_owned(),
    }
}

#[test]
fn every_example_of_the_reference_is_accepted() {
    let pieces: Vec<_> = REFERENCE.split("```yaml\n").skip(1).collect();
    assert_eq!(pieces.len(), 6);
    for piece in pieces {
        let piece = piece.split("```").next().unwrap_or_default();
        spec(&whole_task(piece));
    }
}

#[test]
fn the_reference_states_every_limit_and_field() {
    let mib = |bytes: usize| bytes >> 20;
    for row in [
        format!("| size of the file | {} MiB |", mib(MAX_FILE_BYTES)),
        format!("| {}, {} MiB |", node::MAX_VALUES, mib(node::MAX_TEXT as usize)),
        format!("by indentation | {} |", node::MAX_DEPTH),
        format!("| processes | {MAX_PROCESSES} |"),
        format!("| names in all orders | {MAX_ORDER_NAMES} |"),
        format!("filling in templates | {} MiB |", mib(template::MAX_BYTES)),
        format!("| length of a reference | {} bytes |", template::MAX_REFERENCE),
        format!("at most {} bytes, no NUL", validate::MAX_CMDLINE_BYTES),
        format!("at most {} s", validate::MAX_DURATION.as_secs()),
        format!("of `cgroup`, each | {} |", resources::MAX_ENTRIES),
        format!("in `cgroup` | {} bytes |", resources::MAX_RAW_BYTES),
        format!("| `1` to `{}` | processes and threads", resources::MAX_PIDS),
        format!(
            "| `{}` to `{}` | CPUs, as a ceiling",
            resources::MIN_CPU,
            resources::MAX_CPU_LIMIT
        ),
        format!("| `{}` to `{}` | share of", resources::WEIGHTS[0], resources::WEIGHTS[1]),
        format!("up to {} | the only CPUs", resources::MAX_CPU_NUMBER),
        format!("up to {} | the only memory nodes", resources::MAX_NODE_NUMBER),
    ] {
        assert!(REFERENCE.contains(&row), "{row}");
    }
    for (schema, prefix) in [
        (&schema::TASK, ""),
        (&schema::PROCESS, ""),
        (&schema::RESOURCES, ""),
        (&schema::CPU_LIMIT, "cpu_limit."),
        (&schema::IO, "io."),
        (&schema::IO_MAX, "io.max[]."),
        (&schema::CPUSET, "cpuset."),
        (&schema::LOGGER, ""),
    ] {
        for field in schema.fields {
            let name = format!("`{prefix}{}", field.name);
            assert!(REFERENCE.contains(&name), "{name}");
        }
    }
}

/// Fragments that YAML and this schema give a meaning to.
fn fragment() -> impl Strategy<Value = String> {
    prop_oneof![
        prop::sample::select(vec![
            "processes:",
            "name:",
            "cmdline:",
            "constraints:",
            "order:",
            "resources:",
            "ram:",
            "logger:",
            "rotate:",
            "user:",
            "<<:",
            "&a",
            "*a",
            "!!str",
            "- ",
            "[",
            "]",
            "{",
            "}",
            ",",
            ": ",
            "'",
            "\"",
            "\n",
            "\n  ",
            "\n- ",
            "|",
            ">",
            "#",
            "---",
            "...",
            "%YAML",
            "~",
            "{{",
            "}}",
            "{{name}}",
            "{{self.cmdline}}",
            "{{thermos.ports[http]}}",
            "-1",
            "1.5",
            "\t",
            "\r",
            "? ",
            "\u{85}",
            "\u{feff}",
        ])
        .prop_map(str::to_owned),
        "[a-z0-9 ]{0,4}",
        any::<char>().prop_map(String::from),
    ]
}

proptest! {
    /// attack 52: any bytes give a task or errors that can be shown.
    #[test]
    fn any_bytes_give_an_answer(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        if let Err(report) = parse(&bytes, "t.yaml", &bindings()) {
            prop_assert!(!report.diagnostics().is_empty());
            prop_assert!(report.to_string().contains("t.yaml:"));
        }
    }

    /// The same, nearer to YAML.
    #[test]
    fn any_yaml_gives_an_answer(fragments in prop::collection::vec(fragment(), 0..60)) {
        let source = fragments.concat();
        if let Err(report) = parse(source.as_bytes(), "t.yaml", &bindings()) {
            prop_assert!(!report.diagnostics().is_empty());
            let lines = source.lines().count() + source.matches('\r').count() + 1;
            for diagnostic in report.diagnostics() {
                prop_assert!((1..=lines).contains(&diagnostic.place.line));
                prop_assert!(diagnostic.place.column >= 1);
            }
            let _ = report.to_string();
        }
    }

    /// Independent errors are all reported, in the order of the file, whichever they are.
    #[test]
    fn independent_errors_are_all_reported_in_order(wrong in any::<[bool; 6]>()) {
        let pick = |index: usize, bad: &'static str, good: &'static str| {
            if wrong[index] { bad } else { good }
        };
        let source = format!(
            "name: {}\nmax_failures: {}\nprocesses:\n- name: {}\n  cmdline: {}\n  {}: 1\n\
             - {{name: b, cmdline: x}}\nconstraints:\n- order: [b, {}]\n",
            pick(0, ".t", "t"),
            pick(1, "-1", "1"),
            pick(2, "a/b", "a"),
            pick(3, "'{{nothing}}'", "x"),
            pick(4, "nonsense", "max_failures"),
            pick(5, "b", "b, b").replace("b, b", if wrong[2] { "a/b" } else { "a" }),
        );
        let lines: Vec<usize> =
            [1, 2, 4, 5, 6, 9].into_iter().zip(wrong).filter(|&(_, w)| w).map(|(l, _)| l).collect();

        let found = match parse(source.as_bytes(), "t.yaml", &bindings()) {
            Ok(_) => Vec::new(),
            Err(report) => report.diagnostics().iter().map(|d| d.place.line).collect(),
        };

        prop_assert_eq!(found, lines);
    }

    /// What was accepted, written as JSON of the file's fields, is the same task again.
    #[test]
    fn numbers_mean_the_same_with_and_without_quotes(
        failures in any::<u32>(), seconds in 0u32..1_000_000, bytes in 1u64..u64::MAX,
    ) {
        let source = |q: &str| process(&format!(
            "max_failures: {q}{failures}{q}, min_duration: {q}{seconds}{q}, \
             resources: {{ram: {q}{bytes}{q}}}"
        ));
        let plain = spec(&source(""));
        prop_assert_eq!(&plain, &spec(&source("'")));
        prop_assert_eq!(plain.processes[0].max_failures, failures);
        prop_assert_eq!(plain.processes[0].min_duration.as_secs(), u64::from(seconds));
        prop_assert_eq!(plain.processes[0].resources.as_ref().unwrap().ram, Some(bytes));
    }
}
