//! `dewar update`.

use super::args::Update;
use super::failure::{Failure, status};
use super::nodes::Nodes;
use super::out::Out;
use super::term::escape;
use super::{place, words};
use crate::causes::tell;
use crate::control::Request;
use crate::proto::{Resources, TaskState, TaskView, UpdateLimits};
use crate::task;
use crate::task::change::{self, ChangeError};
use crate::task::written::assignments;

/// Changes limits of a task, if any are named, and tells those that are in force then.
///
/// # Errors
///
/// [`Failure`].
pub(super) fn run(args: &Update) -> Result<u8, Failure> {
    let change = (!args.changes.is_empty()).then(|| change::parse(&args.changes)).transpose()?;
    let id = place::task_id(&args.task)?;
    let (node, _) = Nodes::find(&args.node)?.with(&id, Failure::Usage)?;
    let mut view = node.view(&id)?;
    if let Some(change) = change {
        use TaskState as S;
        if matches!(view.state(), S::Success | S::Failed | S::Killed | S::Lost) {
            return Err(Failure::Unavailable(format!("task {id} is over")));
        }
        let process = args.process.clone();
        let asked = UpdateLimits { process, change: Some(change), force: args.force };
        for rounded in node.order(&id, &Request::Update(asked))? {
            tell!("dewar: {}", escape(&rounded));
        }
        view = node.view(&id)?;
    }
    Out::default().write(told(&view, args.process.as_deref())?)?;
    Ok(status::SUCCESS)
}

/// The limits in force: a line for the task, if it has any, and for each process that has.
fn told(view: &TaskView, process: Option<&str>) -> Result<String, Failure> {
    if view.state() == TaskState::Corrupt {
        return Err(Failure::Unavailable(view.detail.clone().unwrap_or_default()));
    }
    if let Some(name) = process
        && !view.processes.iter().any(|process| process.name == name)
    {
        let message = format!("task {} has no process {}", view.task_id, words::name(name));
        return Err(Failure::Usage(message));
    }
    Ok(lines(view, process))
}

fn lines(view: &TaskView, process: Option<&str>) -> String {
    let of_task = view.resources.as_ref().filter(|_| process.is_none());
    let of_task = of_task.and_then(|limits| line(&words::name(&view.task_id), limits));
    let of_processes = view.processes.iter().filter_map(|of| {
        let limits = of.resources.as_deref()?;
        let is_meant = process.is_none_or(|name| of.name == name);
        let name = format!("  {}", words::name(&of.name));
        is_meant.then(|| line(&name, limits)).flatten()
    });
    of_task.into_iter().chain(of_processes).collect()
}

fn line(name: &str, limits: &Resources) -> Option<String> {
    let limits = task::Resources::from_proto(limits, "resources").ok()?;
    let limits: Vec<_> = assignments(&limits).iter().map(|of| escape(of).into_owned()).collect();
    Some(format!("{name}: {}\n", limits.join(" ")))
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
    use crate::view::Replay;

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
        let launch = proto::Launch {
            task_id: "t-1".to_owned(),
            task: Some(task),
            ..proto::Launch::default()
        };
        let view = Replay::accepted(launch).unwrap().view(None);

        assert_eq!(lines(&view, None), "t-1: pids=max ram=7\n  \"a b\": ram=5\n");
        assert_eq!(lines(&view, Some("a b")), "  \"a b\": ram=5\n");
        assert_eq!(lines(&view, Some("c")), "");
        let unknown = told(&view, Some("d")).unwrap_err();
        assert_eq!(
            (unknown.status(), unknown.to_string().as_str()),
            (2, "task t-1 has no process d")
        );
    }
}
