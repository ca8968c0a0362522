//! `dewar update`.

use super::args::Update;
use super::failure::{Failure, status};
use super::out::Out;
use super::run::whereabouts;
use super::term::escape;
use super::{place, runner, words};
use crate::checkpoint::Root;
use crate::checkpoint::paths::Place;
use crate::control::Request;
use crate::observe::Observed;
use crate::proto::UpdateLimits;
use crate::task::change::{self, ChangeError};
use crate::task::written::assignments;
use crate::task::{Resources, TaskId, TaskSpec};

/// Changes limits of a task, if any are named, and tells those that are in force then.
///
/// # Errors
///
/// [`Failure`].
pub(super) fn run(args: &Update) -> Result<u8, Failure> {
    let change = (!args.changes.is_empty()).then(|| change::parse(&args.changes)).transpose()?;
    let root = place::root(&args.root)?;
    let id = place::task_id(&args.task)?;
    let place = whereabouts(&root, &id)?;
    if let Some(change) = change {
        if place == Place::Finished {
            return Err(Failure::Unavailable(format!("task {id} is over")));
        }
        let process = args.process.clone();
        let asked = UpdateLimits { process, change: Some(change), force: args.force };
        for rounded in runner::order(&root, &id, &Request::Update(asked))? {
            eprintln!("dewar: {}", escape(&rounded));
        }
    }
    Out::default().write(told(&root, &id, args.process.as_deref())?)?;
    Ok(status::SUCCESS)
}

/// The limits in force: a line for the task, if it has any, and for each process that has.
fn told(root: &Root, id: &TaskId, process: Option<&str>) -> Result<String, Failure> {
    let mut observed = Observed::open(root, id)?;
    observed.advance(|_, _| {})?;
    let Some(replay) = observed.replay() else { return Ok(String::new()) };
    let spec = replay.state().spec();
    if let Some(name) = process
        && !spec.processes.iter().any(|process| process.name.as_str() == name)
    {
        let message = format!("task {id} has no process {}", words::name(name));
        return Err(Failure::Usage(message));
    }
    Ok(lines(id, spec, process))
}

fn lines(id: &TaskId, spec: &TaskSpec, process: Option<&str>) -> String {
    let of_task = spec.resources.as_ref().filter(|_| process.is_none());
    let of_task = of_task.map(|limits| line(&words::name(id.as_str()), limits));
    let of_processes = spec.processes.iter().filter_map(|of| {
        let limits = of.resources.as_deref()?;
        let is_meant = process.is_none_or(|name| of.name.as_str() == name);
        is_meant.then(|| line(&format!("  {}", words::name(of.name.as_str())), limits))
    });
    of_task.into_iter().chain(of_processes).collect()
}

fn line(name: &str, limits: &Resources) -> String {
    let limits: Vec<_> = assignments(limits).iter().map(|of| escape(of).into_owned()).collect();
    format!("{name}: {}\n", limits.join(" "))
}

impl From<ChangeError> for Failure {
    fn from(error: ChangeError) -> Self {
        Self::Usage(error.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto;

    #[test]
    fn limits_are_told_of_the_task_and_of_each_process_that_has_some() {
        let limited = |ram_bytes| proto::Resources { ram_bytes, ..Default::default() };
        let process = |name: &str, ram_bytes: Option<u64>| proto::Process {
            name: name.to_owned(),
            cmdline: "true".to_owned(),
            resources: ram_bytes.map(|bytes| limited(Some(bytes))),
            ..Default::default()
        };
        let task = proto::Task {
            name: "t".to_owned(),
            processes: vec![process("a b", Some(5)), process("c", None)],
            resources: Some(proto::Resources { pids: Some(u64::MAX), ..limited(Some(7)) }),
            ..Default::default()
        };
        let (spec, id) = (TaskSpec::from_proto(&task).unwrap(), TaskId::new("t-1").unwrap());

        assert_eq!(lines(&id, &spec, None), "t-1: pids=max ram=7\n  \"a b\": ram=5\n");
        assert_eq!(lines(&id, &spec, Some("a b")), "  \"a b\": ram=5\n");
        assert_eq!(lines(&id, &spec, Some("c")), "");
    }
}
