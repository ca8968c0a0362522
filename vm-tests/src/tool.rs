//! Programs of the host that are run for what they print.

use std::io;
use std::process::{Command, ExitStatus, Stdio};

/// Why a program was of no use.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ToolError {
    #[error("start {program}; tests/needs installs what is needed")]
    Start {
        program: String,
        #[source]
        error: io::Error,
    },
    #[error("{command}: {status}{said}", said = said(stderr))]
    Failed { command: String, status: ExitStatus, stderr: String },
}

fn said(stderr: &str) -> String {
    if stderr.trim().is_empty() { String::new() } else { format!(": {}", stderr.trim()) }
}

/// Runs it to its end; gives its standard output.
pub(crate) fn output(command: &mut Command) -> Result<Vec<u8>, ToolError> {
    let output = command.stdin(Stdio::null()).output().map_err(|error| ToolError::Start {
        program: command.get_program().display().to_string(),
        error,
    })?;
    if output.status.success() {
        return Ok(output.stdout);
    }
    Err(ToolError::Failed {
        command: format!("{command:?}"),
        status: output.status,
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    })
}

/// The same, as text.
pub(crate) fn text(command: &mut Command) -> Result<String, ToolError> {
    output(command).map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
}
