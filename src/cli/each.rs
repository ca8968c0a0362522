//! What is done to every task that matches.

use super::args::NodeArg;
use super::failure::{Failure, status};
use super::node::{Node, Which};
use super::nodes::{Nodes, told};
use super::out::Out;
use super::pattern::Patterns;
use super::words;
use crate::causes::tell;
use crate::task::TaskId;

/// Does `act` to every active task whose id matches one of `patterns`, and prints the ids of those that it was done to.
///
/// # Errors
///
/// [`Failure`] if none matches; one task that it cannot be done to keeps no other from it, and makes the exit status.
pub(super) fn active(
    patterns: &[String],
    node: &NodeArg,
    act: impl Fn(&Node, &TaskId) -> Result<(), Failure>,
) -> Result<u8, Failure> {
    each(patterns, node, Which::Active, nothing, act)
}

/// The same to every task that has ended.
///
/// # Errors
///
/// As [`active`].
pub(super) fn finished(
    patterns: &[String],
    node: &NodeArg,
    act: impl Fn(&Node, &TaskId) -> Result<(), Failure>,
) -> Result<u8, Failure> {
    let none = |nodes: &Nodes, _: &Patterns| Ok(format!("no such task has ended {nodes}"));
    each(patterns, node, Which::Finished, none, act)
}

/// `none` says what is told if no task matches.
fn each(
    patterns: &[String],
    node: &NodeArg,
    which: Which,
    none: impl Fn(&Nodes, &Patterns) -> Result<String, Failure>,
    act: impl Fn(&Node, &TaskId) -> Result<(), Failure>,
) -> Result<u8, Failure> {
    let patterns = Patterns::new(patterns)?;
    let nodes = Nodes::find(node)?;
    let mut exit = status::SUCCESS;
    let matched = nodes.gather(|node| node.list(&patterns, which), told(&mut exit))?;
    if matched.is_empty() && exit == status::SUCCESS {
        return Err(Failure::NothingMatched(none(&nodes, &patterns)?));
    }
    let mut out = Out::default();
    for (number, id) in &matched {
        match act(nodes.node(*number), id) {
            Ok(()) => {
                let root = nodes.root(*number).map(|root| format!("  {}", words::name(&root)));
                out.write(format!("{id}{}\n", root.unwrap_or_default()))?;
            }
            Err(failure) => {
                tell!("dewar: {}: {failure}", nodes.name(*number, id));
                exit = failure.status();
            }
        }
    }
    Ok(exit)
}

fn nothing(nodes: &Nodes, patterns: &Patterns) -> Result<String, Failure> {
    let over = nodes.gather(|node| node.list(patterns, Which::Finished), drop)?;
    Ok(match over.len() {
        0 => format!("no such task {nodes}"),
        over => format!("no such task is active {nodes}; {over} of that name have ended"),
    })
}
