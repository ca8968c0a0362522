//! What was asked: a task, its processes and their order. Pure.
//!
//! A task comes in as a task file ([`mod@file`]) or as a [`crate::proto::Task`]; both become a
//! [`TaskSpec`], which is always valid, so that nothing downstream checks it again.
//!
//! ```text
//! bytes ─▶ node (YAML tree) ─▶ file (fields, types, templates) ─▶ proto::Task ─▶ validate ─▶ TaskSpec
//! ```
//!
//! The rules of the schema live in [`validate`] alone; [`mod@file`] adds what only a text can get
//! wrong, and gives every error its place. Only [`source`] touches the file system.

pub mod change;
pub mod diagnostic;
pub mod file;
pub mod graph;
pub mod list;
mod node;
mod number;
pub mod resources;
mod schema;
pub mod signal;
pub mod source;
pub mod spec;
pub mod template;
pub mod validate;
pub mod written;

use std::fmt;

pub use resources::Resources;
pub use spec::{Graph, Logger, ProcessSpec, Rotate, TaskSpec};
pub use validate::Violation;

/// Longest process name in bytes: `coordinator.` is prefixed to make a file name of at most 255.
pub const NAME_MAX: usize = 243;

/// Why a text cannot be a name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// It has no character.
    #[error("is empty")]
    Empty,
    /// It would be hidden, or `.` or `..`.
    #[error("begins with `.`")]
    LeadingDot,
    /// It would name another directory.
    #[error("contains `/`")]
    Slash,
    /// It would break a line or a terminal.
    #[error("contains the control character U+{0:04X}")]
    Control(u32),
    /// A task id is one word.
    #[error("contains a blank")]
    Blank,
    /// It does not fit a file name.
    #[error("has {0} bytes; at most {NAME_MAX} fit a file name")]
    TooLong(usize),
}

/// The rule that process names and task ids share.
fn check(name: &str) -> Result<(), NameError> {
    if name.is_empty() {
        return Err(NameError::Empty);
    }
    if name.starts_with('.') {
        return Err(NameError::LeadingDot);
    }
    if name.contains('/') {
        return Err(NameError::Slash);
    }
    if let Some(c) = name.chars().find(|c| c.is_control()) {
        return Err(NameError::Control(c as u32));
    }
    if name.len() > NAME_MAX {
        return Err(NameError::TooLong(name.len()));
    }
    Ok(())
}

/// Most characters of somebody's text that a message repeats.
const QUOTED_MAX: usize = 60;

/// `text` in backquotes for a message: on one line, harmless to a terminal, and not too long.
fn quoted(text: &str) -> String {
    let mut quoted = String::from("`");
    quoted.extend(text.chars().take(QUOTED_MAX).flat_map(diagnostic::visible));
    if text.chars().nth(QUOTED_MAX).is_some() {
        quoted.push('…');
    }
    quoted.push('`');
    quoted
}

/// Id of a task on this node: a file name of one word.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TaskId(String);

impl TaskId {
    /// Takes `id` if it can be a task id.
    ///
    /// # Errors
    ///
    /// [`NameError`] says which rule it breaks.
    pub fn new(id: impl Into<String>) -> Result<Self, NameError> {
        let id = id.into();
        check(&id)?;
        if id.chars().any(char::is_whitespace) {
            return Err(NameError::Blank);
        }
        Ok(Self(id))
    }

    /// The id as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for TaskId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Name of a process, unique in its task.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ProcessName(String);

impl ProcessName {
    /// Takes `name` if it can name a process.
    ///
    /// # Errors
    ///
    /// [`NameError`] says which rule it breaks.
    pub fn new(name: impl Into<String>) -> Result<Self, NameError> {
        let name = name.into();
        check(&name)?;
        Ok(Self(name))
    }

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for ProcessName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}
