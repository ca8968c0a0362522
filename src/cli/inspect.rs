//! `dewar inspect`.

use serde::{Serialize, Serializer};

use super::args::{Inspect, Output};
use super::failure::{Failure, status};
use super::file::{self, Asked};
use super::out::Out;
use super::run::try_out;
use super::term::escape;
use super::{json, words};
use crate::cgroup::{self, Applied, Unenforceable};
use crate::proto::Task;
use crate::task::written::TaskFile;
use crate::task::{ProcessSpec, TaskSpec};

/// A task file that was checked, for programs.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Inspection<'a> {
    task_id: &'a str,
    user: &'a str,
    task: &'a Task,
    plan: Plan<'a>,
    unenforceable: Vec<String>,
    rounded: Vec<String>,
}

/// The processes by the earliest turn in which each can run: each layer waits for the ones before.
#[derive(Debug, Serialize)]
struct Plan<'a> {
    regular: Vec<Layer<'a>>,
    finalizing: Vec<Layer<'a>>,
}

/// Processes that wait for none of each other; in JSON their names.
#[derive(Debug, Serialize)]
#[serde(transparent)]
struct Layer<'a>(#[serde(serialize_with = "names")] Vec<&'a ProcessSpec>);

fn names<S: Serializer>(processes: &[&ProcessSpec], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_seq(processes.iter().map(|process| process.name.as_str()))
}

/// Checks a task file, and shows the task, its plan, and what cannot be enforced here.
///
/// # Errors
///
/// [`Failure`].
pub(super) fn run(args: &Inspect) -> Result<u8, Failure> {
    let Asked { accepted, identity } = file::task_file(&args.file, &args.bindings)?;
    let spec = &accepted.spec;
    let (unenforceable, rounded) = limits(args, spec)?;
    let inspection = Inspection {
        task_id: accepted.task_id.as_str(),
        user: &identity.user,
        task: &accepted.task,
        plan: plan(spec),
        unenforceable,
        rounded,
    };
    Out::default().write(match args.output {
        Output::Json => json::line(&inspection)?,
        Output::Text => text(&inspection, spec)?,
    })?;
    Ok(status::SUCCESS)
}

/// What cannot be enforced here, and what is rounded. A host is looked at only for a task that has limits.
fn limits(args: &Inspect, spec: &TaskSpec) -> Result<(Vec<String>, Vec<String>), Failure> {
    let none = try_out(spec, None)?.unenforceable;
    if none.is_empty() {
        return Ok((Vec::new(), Vec::new()));
    }
    let options = cgroup::Options { explicit: args.cgroup_base.clone() };
    match cgroup::find(&options) {
        Ok(base) => {
            let Applied { unenforceable, rounded } = try_out(spec, Some(&base))?;
            let unenforceable = unenforceable.iter().map(ToString::to_string).collect();
            Ok((unenforceable, rounded.iter().map(ToString::to_string).collect()))
        }
        Err(error) => {
            let why = Failure::unavailable(&error);
            let told = |limit: &Unenforceable| format!("{} cannot be enforced: {why}", limit.field);
            Ok((none.iter().map(told).collect(), Vec::new()))
        }
    }
}

fn plan(spec: &TaskSpec) -> Plan<'_> {
    let layers = spec.graph.layers();
    let part = |is_final| {
        let processes = |layer: &Vec<u32>| {
            let of = layer.iter().map(|&index| &spec.processes[index as usize]);
            of.filter(|process| process.is_final == is_final).collect::<Vec<_>>()
        };
        let layers = layers.iter().map(processes);
        layers.filter(|layer| !layer.is_empty()).map(Layer).collect()
    };
    Plan { regular: part(false), finalizing: part(true) }
}

fn text(inspection: &Inspection<'_>, spec: &TaskSpec) -> Result<String, Failure> {
    let count = spec.processes.len();
    let mut text = format!(
        "{}: {count} process{}, run by {}\n",
        words::name(inspection.task_id),
        if count == 1 { "" } else { "es" },
        words::name(inspection.user),
    );
    let Plan { regular, finalizing } = &inspection.plan;
    text += &layers("plan: each layer waits for the ones above it", regular);
    text += &layers("finalizers, however the task ends", finalizing);
    for (heading, limits) in [
        ("not enforceable on this host", &inspection.unenforceable),
        ("rounded by the kernel", &inspection.rounded),
    ] {
        if !limits.is_empty() {
            text = text + "\n" + heading + "\n";
        }
        for limit in limits {
            text = text + "  " + &escape(limit) + "\n";
        }
    }
    let file = TaskFile::new(spec, &inspection.task.constraints);
    let task = serde_json::to_string_pretty(&file).map_err(|error| Failure::unavailable(&error))?;
    Ok(text + "\nthe task, filled in\n" + &escape_lines(&task) + "\n")
}

fn layers(heading: &str, layers: &[Layer<'_>]) -> String {
    if layers.is_empty() {
        return String::new();
    }
    let mut text = format!("\n{heading}\n");
    for (number, Layer(processes)) in (1..).zip(layers) {
        let told = processes.iter().map(|of| words::name(of.name.as_str()) + &traits(of));
        text += &format!("  {number:>3}  {}\n", told.collect::<Vec<_>>().join(", "));
    }
    text
}

/// What sets a process apart.
fn traits(process: &ProcessSpec) -> String {
    let traits = [("daemon", process.daemon), ("ephemeral", process.ephemeral)];
    let names: Vec<_> = traits.iter().filter(|(_, has)| *has).map(|(name, _)| *name).collect();
    if names.is_empty() { String::new() } else { format!(" ({})", names.join(", ")) }
}

/// JSON leaves control characters beyond ASCII, and those that reorder text, as they are.
fn escape_lines(text: &str) -> String {
    text.lines().map(escape).collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    const SOURCE: &str = r#"
name: web
processes:
  - {name: fetch, cmdline: "get {{x}}"}
  - {name: build, cmdline: make}
  - {name: log, cmdline: tail, ephemeral: true}
  - {name: save, cmdline: cp, final: true}
constraints: [{order: [fetch, build]}]
"#;

    fn told(f: impl Fn(&Inspection<'_>, &TaskSpec)) {
        let bindings = crate::task::file::Bindings {
            id_suffix: "1".to_owned(),
            variables: [("x".to_owned(), "\u{202e}y".to_owned())].into(),
            ..Default::default()
        };
        let accepted = crate::task::file::parse(SOURCE.as_bytes(), "f", &bindings).unwrap();
        let inspection = Inspection {
            task_id: accepted.task_id.as_str(),
            user: "nobody",
            task: &accepted.task,
            plan: plan(&accepted.spec),
            unenforceable: vec!["resources.ram cannot be enforced".to_owned()],
            rounded: vec!["resources.swap: 0 is in force, 1 was asked for".to_owned()],
        };
        f(&inspection, &accepted.spec);
    }

    /// S47.
    #[test]
    fn the_plan_is_shown_in_layers_with_what_cannot_be_enforced() {
        told(|inspection, spec| {
            let text = text(inspection, spec).unwrap();
            let (plan, task) = text.split_once("\nthe task, filled in\n").unwrap();

            assert_eq!(
                plan,
                "\
web-1: 4 processes, run by nobody

plan: each layer waits for the ones above it
    1  fetch, log (ephemeral)
    2  build

finalizers, however the task ends
    1  save

not enforceable on this host
  resources.ram cannot be enforced

rounded by the kernel
  resources.swap: 0 is in force, 1 was asked for
"
            );
            assert!(task.contains(r#""cmdline": "get \u{202e}y""#), "attack 47: {task}");
            assert!(task.contains(r#""min_duration": 5,"#), "every default is spelled out: {task}");
        });
    }

    #[test]
    fn the_json_has_the_layers_by_name() {
        told(|inspection, _| {
            let value: serde_json::Value =
                serde_json::from_str(&json::line(inspection).unwrap()).unwrap();

            assert_eq!(
                value["plan"],
                serde_json::json!({"regular": [["fetch", "log"], ["build"]], "finalizing": [["save"]]})
            );
            assert_eq!(value["taskId"], "web-1");
            assert_eq!(value["task"]["processes"][0]["cmdline"], "get \u{202e}y");
        });
    }
}
