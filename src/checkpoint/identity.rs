//! Which stream of which task: what a stream's header says, and where the file is.

use std::fmt;

use crate::task::{NameError, ProcessName, TaskId};

/// Name of the runner's stream.
const RUNNER: &str = "runner";
/// What the name of a coordinator's stream begins with.
const COORDINATOR: &str = "coordinator.";

/// Which stream of a task.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Stream {
    /// The runner's: all that is known of the task. Its lock is leadership.
    Runner,
    /// That of the coordinators of a process, over all its runs. Its lock says that one lives.
    Coordinator(ProcessName),
}

impl Stream {
    /// Reads the name of a stream, which is also its file name.
    ///
    /// # Errors
    ///
    /// `None` in the error: no kind of stream has such a name; else what is wrong with its process name.
    pub fn parse(name: &str) -> Result<Self, Option<NameError>> {
        if name == RUNNER {
            return Ok(Self::Runner);
        }
        let process = name.strip_prefix(COORDINATOR).ok_or(None)?;
        ProcessName::new(process).map(Self::Coordinator).map_err(Some)
    }
}

impl fmt::Display for Stream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Runner => f.write_str(RUNNER),
            Self::Coordinator(process) => write!(f, "{COORDINATOR}{process}"),
        }
    }
}

/// A stream and the task that it belongs to.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Identity {
    /// The task.
    pub task: TaskId,
    /// The stream.
    pub stream: Stream,
}

impl Identity {
    /// The runner's stream of `task`.
    pub fn runner(task: TaskId) -> Self {
        Self { task, stream: Stream::Runner }
    }

    /// The stream of the coordinators of `process`.
    pub fn coordinator(task: TaskId, process: ProcessName) -> Self {
        Self { task, stream: Stream::Coordinator(process) }
    }
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "stream {:?} of task {:?}", self.stream.to_string(), self.task.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stream_is_named_as_its_file() {
        let web = Stream::Coordinator(ProcessName::new("web.1").unwrap());

        assert_eq!(Stream::Runner.to_string(), "runner");
        assert_eq!(web.to_string(), "coordinator.web.1");
        assert_eq!(Stream::parse("runner"), Ok(Stream::Runner));
        assert_eq!(Stream::parse("coordinator.web.1"), Ok(web));
    }

    #[test]
    fn no_other_name_is_a_stream() {
        assert_eq!(Stream::parse("control"), Err(None));
        assert_eq!(Stream::parse("coordinator"), Err(None));
        assert_eq!(Stream::parse("coordinator."), Err(Some(NameError::Empty)));
        assert_eq!(Stream::parse("coordinator.../x"), Err(Some(NameError::LeadingDot)));
    }
}
