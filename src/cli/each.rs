//! What is done to every task that matches.

use super::args::NodeArg;
use super::failure::{Failure, status};
use super::node::{Node, Which};
use super::out::Out;
use super::pattern::Patterns;
use super::words;
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
    let none = |node: &Node, _: &Patterns| Ok(format!("no such task has ended {node}"));
    each(patterns, node, Which::Finished, none, act)
}

/// `none` says what is told if no task matches.
fn each(
    patterns: &[String],
    node: &NodeArg,
    which: Which,
    none: impl Fn(&Node, &Patterns) -> Result<String, Failure>,
    act: impl Fn(&Node, &TaskId) -> Result<(), Failure>,
) -> Result<u8, Failure> {
    let patterns = Patterns::new(patterns)?;
    let node = Node::find(node)?;
    let matched = node.list(&patterns, which)?;
    if matched.is_empty() {
        return Err(Failure::NothingMatched(none(&node, &patterns)?));
    }
    let mut out = Out::default();
    let mut exit = status::SUCCESS;
    for id in &matched {
        match act(&node, id) {
            Ok(()) => out.write(format!("{id}\n"))?,
            Err(failure) => {
                eprintln!("dewar: {}: {failure}", words::name(id.as_str()));
                exit = failure.status();
            }
        }
    }
    Ok(exit)
}

fn nothing(node: &Node, patterns: &Patterns) -> Result<String, Failure> {
    let over = node.list(patterns, Which::Finished)?.len();
    Ok(match over {
        0 => format!("no such task {node}"),
        over => format!("no such task is active {node}; {over} of that name have ended"),
    })
}
