//! What is done to every active task that matches.

use super::args::RootArg;
use super::failure::{Failure, status};
use super::out::Out;
use super::pattern::Patterns;
use super::{place, words};
use crate::checkpoint::Root;
use crate::checkpoint::paths::Place;
use crate::task::TaskId;

/// Does `act` to every active task whose id matches one of `patterns`, and prints the ids of those that it was done to.
///
/// # Errors
///
/// [`Failure`] if none matches; one task that it cannot be done to keeps no other from it, and makes the exit status.
pub(super) fn active(
    patterns: &[String],
    root: &RootArg,
    act: impl Fn(&Root, &TaskId) -> Result<(), Failure>,
) -> Result<u8, Failure> {
    let patterns = Patterns::new(patterns)?;
    let root = place::root(root)?;
    let mut matched = root.list(Place::Active)?;
    matched.retain(|id| patterns.matches(id));
    if matched.is_empty() {
        return Err(Failure::NothingMatched(nothing(&root, &patterns)?));
    }
    let mut out = Out::default();
    let mut exit = status::SUCCESS;
    for id in matched {
        match act(&root, &id) {
            Ok(()) => out.write(format!("{id}\n"))?,
            Err(failure) => {
                eprintln!("dewar: {}: {failure}", words::name(id.as_str()));
                exit = failure.status();
            }
        }
    }
    Ok(exit)
}

fn nothing(root: &Root, patterns: &Patterns) -> Result<String, Failure> {
    let over = root.list(Place::Finished)?.iter().filter(|id| patterns.matches(id)).count();
    let dir = root.path().display();
    Ok(match over {
        0 => format!("no such task in {dir}"),
        over => format!("no such task is active in {dir}; {over} of that name have ended"),
    })
}
