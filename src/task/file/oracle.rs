//! Another YAML parser reads what we read: the examples, and texts that it wrote itself.

use std::collections::HashMap;

use proptest::prelude::*;
use serde_yaml::Value;

use super::*;
use crate::task::ProcessName;
use crate::task::spec::{Graph, ProcessSpec};

const EXAMPLES: [(&str, &str); 5] = [
    ("hello", include_str!("../../../examples/hello.yaml")),
    ("pipeline", include_str!("../../../examples/pipeline.yaml")),
    ("web", include_str!("../../../examples/web.yaml")),
    ("retries", include_str!("../../../examples/retries.yaml")),
    ("ports", include_str!("../../../examples/ports.yaml")),
];

fn bindings() -> Bindings {
    Bindings {
        task_id: Some(TaskId::new("the-id").unwrap()),
        user: "alice".into(),
        ports: [("http".to_owned(), 8080), ("greet".to_owned(), 1), ("health".to_owned(), 2)]
            .into(),
        ..Bindings::default()
    }
}

/// The templates that the examples use.
fn fill(text: &str, name: &str) -> String {
    text.replace("{{name}}", name)
        .replace("{{thermos.task_id}}", "the-id")
        .replace("{{thermos.user}}", "alice")
        .replace("{{thermos.ports[http]}}", "8080")
        .replace("{{thermos.ports[greet]}}", "1")
        .replace("{{thermos.ports[health]}}", "2")
}

fn seconds(value: &Value) -> Duration {
    match value {
        Value::String(text) if text.ends_with("ms") => {
            Duration::from_millis(text.trim_end_matches("ms").parse().unwrap())
        }
        Value::String(text) => {
            Duration::from_secs(text.strip_suffix('s').unwrap_or(text).parse().unwrap())
        }
        number => Duration::from_secs_f64(number.as_f64().unwrap()),
    }
}

fn process(value: &Value) -> ProcessSpec {
    let name = value["name"].as_str().unwrap();
    let flag = |field: &str| value.get(field).is_some_and(|flag| flag.as_bool().unwrap());
    let default = ProcessSpec::new(
        ProcessName::new(name).unwrap(),
        fill(value["cmdline"].as_str().unwrap(), name),
    );
    let count = |field: &str, default: u32| {
        value.get(field).map_or(default, |count| count.as_u64().unwrap().try_into().unwrap())
    };
    ProcessSpec {
        max_failures: count("max_failures", default.max_failures),
        daemon: flag("daemon"),
        ephemeral: flag("ephemeral"),
        is_final: flag("final"),
        min_duration: value.get("min_duration").map_or(default.min_duration, seconds),
        ..default
    }
}

/// Reads a task by what the fields mean, and by no code that the product uses.
fn read(source: &str) -> TaskSpec {
    let value: Value = serde_yaml::from_str(source).unwrap();
    let processes: Vec<_> = value["processes"].as_sequence().unwrap().iter().map(process).collect();
    let index: HashMap<&str, u32> =
        (0..).zip(&processes).map(|(index, p)| (p.name.as_str(), index)).collect();
    let mut edges = Vec::new();
    for constraint in value.get("constraints").and_then(Value::as_sequence).into_iter().flatten() {
        let order = constraint["order"].as_sequence().unwrap();
        let order: Vec<_> = order.iter().map(|name| index[name.as_str().unwrap()]).collect();
        edges.extend(order.windows(2).map(|pair| (pair[0], pair[1])));
    }
    let count = |field: &str, default: u64| {
        value.get(field).map_or(default, |count| count.as_u64().unwrap()).try_into().unwrap()
    };
    let name = value.get("name").map_or(processes[0].name.as_str(), |name| name.as_str().unwrap());
    TaskSpec {
        name: name.to_owned(),
        graph: Graph::new(processes.len(), edges).unwrap(),
        resources: None,
        max_failures: count("max_failures", 1),
        max_concurrency: count("max_concurrency", 0),
        finalization_wait: value.get("finalization_wait").map_or(Duration::from_secs(30), seconds),
        user: None,
        processes: processes.clone(),
    }
}

#[test]
fn the_oracle_reads_every_example_to_the_same_task() {
    for (name, source) in EXAMPLES {
        let accepted =
            parse(source.as_bytes(), name, &bindings()).unwrap_or_else(|report| panic!("{report}"));

        assert_eq!(accepted.spec, read(source), "{name}");
    }
}

/// A task as the oracle writes it: it chooses quotes, blocks and indentation.
fn written(name: &str, cmdline: &str) -> String {
    let text = |text: &str| Value::String(text.to_owned());
    let process: serde_yaml::Mapping = [("name", name), ("cmdline", cmdline)]
        .map(|(key, value)| (text(key), text(value)))
        .into_iter()
        .collect();
    let task: serde_yaml::Mapping =
        [(text("processes"), Value::Sequence(vec![Value::Mapping(process)]))].into_iter().collect();
    serde_yaml::to_string(&Value::Mapping(task)).unwrap()
}

proptest! {
    /// Whatever a text holds, and however it is written, it is read as it was meant.
    #[test]
    fn what_the_oracle_writes_is_read_as_meant(
        name in "[a-zA-Z0-9~%é ,:#&*!|>'\"@`_-]{1,12}",
        cmdline in "([ -~]|\n|\t|é|\u{1F600}|\u{85}|\r){0,40}|no|~|null|0x1f|012|1e3|true|---|",
    ) {
        prop_assume!(!cmdline.contains("{{"));
        let source = written(&name, &cmdline);

        let accepted = parse(source.as_bytes(), "t.yaml", &bindings())
            .map_err(|report| TestCaseError::fail(format!("{source}\n{report}")))?;

        prop_assert_eq!(accepted.spec.processes[0].name.as_str(), name);
        prop_assert_eq!(&accepted.spec.processes[0].cmdline, &cmdline);
    }
}
