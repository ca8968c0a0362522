//! Task files, written by a program.

use serde_json::{Value, json};

/// A process of a task; its `min_duration` is a tenth of a second.
#[derive(Clone)]
pub(crate) struct Process(Value);

/// A process that runs `cmdline`.
pub(crate) fn p(name: &str, cmdline: impl AsRef<str>) -> Process {
    Process(json!({ "name": name, "cmdline": cmdline.as_ref(), "min_duration": 0.1 }))
}

impl Process {
    pub(crate) fn with(mut self, field: &str, value: impl Into<Value>) -> Self {
        self.0[field] = value.into();
        self
    }

    pub(crate) fn max_failures(self, failures: u32) -> Self {
        self.with("max_failures", failures)
    }

    pub(crate) fn daemon(self) -> Self {
        self.with("daemon", true)
    }

    pub(crate) fn ephemeral(self) -> Self {
        self.with("ephemeral", true)
    }

    pub(crate) fn finalizer(self) -> Self {
        self.with("final", true)
    }
}

/// A task.
#[derive(Clone)]
pub(crate) struct Task(Value);

/// A task of `processes`, in that order; its name is that of the first.
pub(crate) fn task(processes: impl IntoIterator<Item = Process>) -> Task {
    let processes: Vec<Value> = processes.into_iter().map(|process| process.0).collect();
    Task(json!({ "processes": processes, "constraints": [] }))
}

impl Task {
    pub(crate) fn with(mut self, field: &str, value: impl Into<Value>) -> Self {
        self.0[field] = value.into();
        self
    }

    /// Each name after the one before it.
    pub(crate) fn order<N: Into<String>>(mut self, names: impl IntoIterator<Item = N>) -> Self {
        let names: Vec<String> = names.into_iter().map(Into::into).collect();
        self.0["constraints"].as_array_mut().unwrap().push(json!({ "order": names }));
        self
    }

    /// The text of the task file.
    pub(crate) fn text(&self) -> String {
        self.0.to_string()
    }
}
