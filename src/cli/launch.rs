//! `dewar launch`.

use std::path::{Path, PathBuf};

use tonic::{Code, Request, Status};
use tonic_types::StatusExt;

use super::args::{Cgroup, Launch, Output};
use super::failure::{Failure, status};
use super::file::{self, unique};
use super::out::Out;
use super::term::escape;
use super::{json, node, words};
use crate::causes::{chain, tell};
use crate::client::Call;
use crate::proto::launch_request::Source;
use crate::proto::{LaunchRequest, LaunchResponse};

/// What the daemon calls the task file in its errors.
const FIELD: &str = "task_file";

/// Has the daemon launch a task, and prints its id.
///
/// # Errors
///
/// [`Failure`].
pub(super) fn run(args: &Launch) -> Result<u8, Failure> {
    let (source, name) = file::source(&args.file)?;
    let request = request(args, source, &name)?;
    let client = node::daemon(&args.daemon)?;
    let mut request = Request::new(request);
    let mut call = Call::begin("dewar.v1.RunnerService/Launch").unwrap_or_else(|error| {
        tell!("dewar: launched without a trace: {}", escape(&chain(&error)));
        Call::untraced()
    });
    call.tell(&mut request);
    let launched = client.block_on(client.runner().launch(request));
    call.answered(&launched);
    // The span is sent as `call` is dropped: whoever waits for the id has it by then.
    told(args, launched.map_err(|status| refused(status, &name))?.into_inner())
}

/// Prints the id of the task, or all of it.
fn told(args: &Launch, launched: LaunchResponse) -> Result<u8, Failure> {
    let task = launched.task.unwrap_or_default();
    if !launched.is_new {
        let id = words::name(&task.task_id);
        tell!("dewar: task {id} was launched before; nothing was changed");
    }
    Out::default().write(match args.output {
        Output::Text => format!("{}\n", task.task_id),
        Output::Json => json::task(&task, None)?,
    })?;
    Ok(status::SUCCESS)
}

fn request(args: &Launch, source: Vec<u8>, name: &str) -> Result<LaunchRequest, Failure> {
    let text = String::from_utf8(source).map_err(|error| {
        let at = error.utf8_error().valid_up_to();
        Failure::Usage(format!("{}: byte {at} is not UTF-8", escape(name)))
    })?;
    let bindings = &args.bindings;
    let ports = bindings.ports.iter().map(|(name, port)| (name.clone(), port.get().into()));
    Ok(LaunchRequest {
        task_id: bindings.task_id.clone(),
        source: Some(Source::TaskFile(text)),
        ports: unique("-P", ports)?,
        bindings: unique("-E", bindings.bindings.iter().cloned())?,
        sandbox: directory("--sandbox", args.sandbox.as_deref())?,
        log_dir: directory("--log-dir", args.log_dir.as_deref())?,
        user: bindings.user.clone(),
        chroot: args.chroot,
        labels: unique("--label", args.labels.iter().cloned())?,
        allow_unenforced: args.allow_unenforced,
        without_cgroup: args.cgroup == Cgroup::None,
        path: None,
    })
}

/// A directory as the daemon, which works elsewhere, has to be told it.
fn directory(option: &str, path: Option<&Path>) -> Result<Option<String>, Failure> {
    let absolute = |path| {
        std::path::absolute(path).map_err(|error| Failure::Usage(format!("{option}: {error}")))
    };
    let text = |path: PathBuf| {
        let text = path.into_os_string().into_string();
        text.map_err(|path| Failure::Usage(format!("{option}: {path:?} is not UTF-8")))
    };
    path.map(absolute).transpose()?.map(text).transpose()
}

/// Errors in the task file, each with its place, as `dewar run` has them; any other refusal as it is.
fn refused(status: Status, name: &str) -> Failure {
    let details = status.get_error_details();
    let Some(bad) = details.bad_request().filter(|_| status.code() == Code::InvalidArgument) else {
        return status.into();
    };
    let (mut text, mut in_file) = (String::new(), 0);
    for wrong in &bad.field_violations {
        match of_file(&wrong.field, &wrong.description, name) {
            Some(told) => (text, in_file) = (text + &told, in_file + 1),
            None => {
                let told = format!("error: {}: {}", wrong.field, wrong.description);
                text = text + &escape(&told) + "\n";
            }
        }
    }
    let name = escape(name);
    Failure::Usage(match (in_file, more(status.message())) {
        (0, 0) => text.trim_end().to_owned(),
        (0, more) => format!("{text}and {more} more"),
        (1, 0) => format!("{text}1 error in {name}"),
        (many, 0) => format!("{text}{many} errors in {name}"),
        (first, more) => {
            format!("{text}{} errors in {name}, the first {first} shown", first + more)
        }
    })
}

/// How many errors there are beside those that are told: `…; and 7 more`.
fn more(message: &str) -> usize {
    let more = message.rsplit_once("; and ").and_then(|(_, more)| more.strip_suffix(" more"));
    more.and_then(|more| more.parse().ok()).unwrap_or(0)
}

/// An error in the task file called `name`: `line L, column C: what; expected what`.
fn of_file(field: &str, description: &str, name: &str) -> Option<String> {
    let field = field.strip_prefix(FIELD)?.trim_start_matches('.');
    let (line, rest) = description.strip_prefix("line ")?.split_once(", column ")?;
    let (column, what) = rest.split_once(": ")?;
    let (found, expected) = what.rsplit_once("; expected ").unwrap_or((what, ""));
    let field = if field.is_empty() { String::new() } else { format!("{field}: ") };
    let mut text = format!("error: {}{}\n", escape(&field), escape(found));
    text += &format!("  --> {}:{}:{}", escape(name), escape(line), escape(column));
    if !expected.is_empty() {
        text += &format!(": expected {}", escape(expected));
    }
    Some(text + "\n")
}

#[cfg(test)]
mod tests {
    use tonic_types::{ErrorDetails, FieldViolation};

    use super::*;

    #[test]
    fn an_error_in_the_file_has_its_place_and_any_other_its_field() {
        let violations = [
            ("task_file.processes[0].name", "line 3, column 11: a/b has a slash; expected a name"),
            ("task_file", "line 1, column 1: it is empty; expected a task"),
            ("labels", "65 labels; expected at most 64"),
        ];
        let violations = violations.map(|(field, what)| FieldViolation::new(field, what)).to_vec();
        let details = ErrorDetails::with_bad_request(violations);
        let told = |text| {
            let status = Status::with_error_details(Code::InvalidArgument, text, details.clone());
            refused(status, "t\x1b.yaml").to_string()
        };
        let text = "all of it; and 7 more";
        assert!(
            told(text).ends_with("\n9 errors in t\\x1b.yaml, the first 2 shown"),
            "{}",
            told(text)
        );
        let status =
            Status::with_error_details(Code::InvalidArgument, "all of it", details.clone());

        let failure = refused(status, "t\x1b.yaml");

        assert_eq!(failure.status(), 2);
        assert_eq!(
            failure.to_string(),
            "\
error: processes[0].name: a/b has a slash
  --> t\\x1b.yaml:3:11: expected a name
error: it is empty
  --> t\\x1b.yaml:1:1: expected a task
error: labels: 65 labels; expected at most 64
2 errors in t\\x1b.yaml"
        );
    }
}
