//! `dewar explain`.

use std::time::Duration;

use super::args::{Explain, StatusOutput};
use super::failure::{Failure, status};
use super::nodes::Nodes;
use super::out::Out;
use super::printer::stdout_style;
use super::table::{self, Align};
use super::term::{Style, escape};
use super::{json, place, words};
use crate::proto::{ProcessExplanation, TaskExplanation, TaskState};

/// Tells why each process of a task, or each that was named, is running, or is not.
///
/// # Errors
///
/// [`Failure`].
pub(super) fn run(args: &Explain) -> Result<u8, Failure> {
    let id = place::task_id(&args.task)?;
    let (node, root) = Nodes::find(&args.node)?.with(&id, Failure::Usage)?;
    let mut told = node.explain(&id)?;
    if told.state() == TaskState::Corrupt {
        return Err(Failure::Unavailable(told.notes.join("; ")));
    }
    only(&mut told, &args.processes)?;
    Out::default().write(match args.output {
        StatusOutput::Json => json::rooted(&told, root.as_deref())?,
        StatusOutput::Table => text(&told, stdout_style()),
    })?;
    Ok(status::SUCCESS)
}

/// Leaves the processes that were named, if any were.
fn only(told: &mut TaskExplanation, names: &[String]) -> Result<(), Failure> {
    let is_there = |name: &&String| told.processes.iter().any(|of| of.process == **name);
    if let Some(unknown) = names.iter().find(|name| !is_there(name)) {
        let (task, unknown) = (words::name(&told.task_id), words::name(unknown));
        return Err(Failure::Usage(format!("task {task} has no process {unknown}")));
    }
    told.processes.retain(|of| names.is_empty() || names.contains(&of.process));
    Ok(())
}

/// The task and what is so of it as a whole, then a line for each process.
fn text(told: &TaskExplanation, style: Style) -> String {
    let state = told.state();
    let head =
        format!("{} {}", words::name(&told.task_id), style.task(state, words::task_state(state)));
    let notes = told.notes.iter().map(|note| format!("  {}", escape(note)));
    let rows: Vec<_> = told.processes.iter().map(row).collect();
    let lines = table::lines(&rows, [Align::Left, Align::Left], |_, _, text| text.into());
    let lines = lines.into_iter().map(|line| format!("  {line}"));
    std::iter::once(head).chain(notes).chain(lines).map(|line| line + "\n").collect()
}

fn row(of: &ProcessExplanation) -> [String; 2] {
    let left = of.left.and_then(|left| Duration::try_from(left).ok());
    let left = left.map(|left| format!(" ({} left)", words::span(left))).unwrap_or_default();
    [words::name(&of.process), format!("{}{left}", escape(&of.text))]
}
