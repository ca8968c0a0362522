//! Where a command finds its tasks, if they may be in several roots: what is told of a task says then in which one it is.

use std::fmt;

use super::args::NodeArg;
use super::failure::{Failure, status};
use super::node::{Node, Which};
use super::pattern::Patterns;
use super::term::escape;
use super::{place, words};
use crate::causes::tell;
use crate::task::TaskId;

/// A daemon, or one root or several.
#[derive(Debug)]
pub(super) struct Nodes(Vec<Node>);

impl Nodes {
    /// Finds them.
    ///
    /// # Errors
    ///
    /// [`Failure`]: a daemon that was named and does not answer, or no root.
    pub(super) fn find(arg: &NodeArg) -> Result<Self, Failure> {
        #[cfg(feature = "net")]
        if let Some(daemon) = Node::daemon(arg)? {
            return Ok(Self(vec![daemon]));
        }
        Ok(Self(place::roots(&arg.roots)?.into_iter().map(Node::Root).collect()))
    }

    /// Each of them.
    pub(super) fn iter(&self) -> impl Iterator<Item = &Node> {
        self.0.iter()
    }

    /// The one of this number.
    pub(super) fn node(&self, number: usize) -> &Node {
        &self.0[number]
    }

    /// The root of this number, where several were named.
    pub(super) fn root(&self, number: usize) -> Option<String> {
        match &self.0[..] {
            [_] => None,
            nodes => nodes[number].root().map(|root| root.path().display().to_string()),
        }
    }

    /// A task for people, with its root where several were named.
    pub(super) fn name(&self, number: usize, id: &TaskId) -> String {
        let root = self.root(number).map(|root| format!(" in {}", words::name(&root)));
        words::name(id.as_str()) + &root.unwrap_or_default()
    }

    /// What `of` tells of all of them, each with the number of its own. One of several that cannot be read is handed to `failed`, and
    /// hides no other.
    ///
    /// # Errors
    ///
    /// [`Failure`], where there is no other.
    pub(super) fn gather<T>(
        &self,
        of: impl Fn(&Node) -> Result<Vec<T>, Failure>,
        mut failed: impl FnMut(Failure),
    ) -> Result<Vec<(usize, T)>, Failure> {
        let mut all = Vec::new();
        for (number, node) in self.0.iter().enumerate() {
            match of(node) {
                Ok(told) => all.extend(told.into_iter().map(|told| (number, told))),
                Err(failure) if self.0.len() == 1 => return Err(failure),
                Err(failure) => failed(failure),
            }
        }
        Ok(all)
    }

    /// The one that has a task which was named, and its root where several were. Where there is only one, whoever asks it learns
    /// whether it has.
    ///
    /// # Errors
    ///
    /// [`Failure::Usage`] if several have it, and what `missing` makes of the text if none has.
    pub(super) fn with(
        mut self,
        id: &TaskId,
        missing: fn(String) -> Failure,
    ) -> Result<(Node, Option<String>), Failure> {
        let mut exit = status::SUCCESS;
        let having = match &self.0[..] {
            [_] => vec![(0, id.clone())],
            _ => {
                let of = |node: &Node| {
                    let ids = node.list(&Patterns::default(), Which::All)?;
                    Ok(ids.into_iter().filter(|of| of == id).collect())
                };
                self.gather(of, told(&mut exit))?
            }
        };
        match &having[..] {
            [(number, _)] => {
                let root = self.root(*number);
                Ok((self.0.swap_remove(*number), root))
            }
            [] if exit == status::SUCCESS => {
                Err(missing(escape(&format!("there is no task {id} {self}")).into_owned()))
            }
            [] => Err(Failure::Unavailable(format!("there is no task {id} where it can be read"))),
            several => {
                let places = several.iter().map(|(number, _)| self.0[*number].to_string());
                let places = places.collect::<Vec<_>>().join(" and ");
                let text = format!("task {id} is {places}: name one with --root");
                Err(Failure::Usage(escape(&text).into_owned()))
            }
        }
    }
}

/// Says what cannot be read, and makes the exit status of it.
pub(super) fn told(exit: &mut u8) -> impl FnMut(Failure) {
    |failure| {
        tell!("dewar: {failure}");
        *exit = failure.status();
    }
}

/// As in `no such task in …`.
impl fmt::Display for Nodes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let places: Vec<_> = self.0.iter().map(ToString::to_string).collect();
        f.write_str(&places.join(", "))
    }
}
