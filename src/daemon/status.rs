//! How errors are told: a code, a text for people, and details for programs (`google.rpc` error details).

use std::collections::HashMap;
use std::error::Error;
use std::io;

use nix::errno::Errno;
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, FieldViolation, PreconditionViolation, StatusExt};

use crate::causes::chain;
use crate::control::ControlError;
use crate::identity::IdentityError;
use crate::launch::LaunchError;
use crate::observe::ObserveError;
use crate::reach::ReachError;
use crate::request::RequestError;
use crate::sys;
use crate::task::{TaskId, Violation};

/// Domain of every `ErrorInfo`.
const DOMAIN: &str = "dewar";
/// Most bytes of a text that quotes what somebody else has written.
const MAX_TEXT: usize = 512;
/// Most bytes of all fields of a request that are told, with what is wrong with them. A status travels in headers, its text twice and
/// in base64: of those, clients take 8 KiB.
const MAX_FIELDS: usize = 1536;

/// As much of `text` as a status may hold.
fn cut(text: impl Into<String>) -> String {
    let mut text = text.into();
    if text.len() > MAX_TEXT {
        let end = (0..=MAX_TEXT).rev().find(|&end| text.is_char_boundary(end));
        text.truncate(end.unwrap_or(0));
        text.push('…');
    }
    text
}

/// A status with the `reason` that a program acts on.
pub(crate) fn info(
    code: Code,
    reason: &str,
    text: impl Into<String>,
    metadata: &[(&str, String)],
) -> Status {
    let metadata: HashMap<_, _> =
        metadata.iter().map(|(name, value)| ((*name).to_owned(), cut(value))).collect();
    let details = ErrorDetails::with_error_info(reason, DOMAIN, metadata);
    Status::with_error_details(code, cut(text), details)
}

/// There is no such task, as far as the caller may know.
pub(crate) fn no_task(id: &str) -> Status {
    let text = format!("there is no task {id:?}");
    info(Code::NotFound, "NO_TASK", text, &[("task_id", id.to_owned())])
}

/// A field of the request is wrong.
pub(crate) fn bad_field(
    field: impl Into<String>,
    found: impl std::fmt::Display,
    expected: impl std::fmt::Display,
) -> Status {
    bad_fields([(field.into(), format!("{found}; expected {expected}"))])
}

/// Fields of the request are wrong: each with what was found and expected. The first ones are told, and how many more there are.
pub(crate) fn bad_fields(fields: impl IntoIterator<Item = (String, String)>) -> Status {
    let told = Told::of(fields);
    let violations = told.fields.into_iter().map(|(field, what)| FieldViolation::new(field, what));
    let details = ErrorDetails::with_bad_request(violations.collect::<Vec<_>>());
    Status::with_error_details(Code::InvalidArgument, told.text, details)
}

/// As many fields as a status may hold, each with what is wrong with it; and all of it as text.
#[derive(Debug, Default, PartialEq)]
struct Told {
    fields: Vec<(String, String)>,
    text: String,
}

impl Told {
    fn of(fields: impl IntoIterator<Item = (String, String)>) -> Self {
        let (mut told, mut more) = (Self::default(), 0);
        for (field, what) in fields {
            let (field, what) = (cut(field), cut(what));
            let line = format!("{field}: {what}");
            if more > 0 || (!told.fields.is_empty() && told.text.len() + line.len() > MAX_FIELDS) {
                more += 1;
                continue;
            }
            let between = if told.fields.is_empty() { "" } else { "; " };
            told.text = told.text + between + &line;
            told.fields.push((field, what));
        }
        if more > 0 {
            told.text += &format!("; and {more} more");
        }
        told
    }
}

/// The same for a task that breaks rules.
pub(crate) fn bad_task(violations: Vec<Violation>) -> Status {
    bad_fields(violations.into_iter().map(|Violation { field, message, expected }| {
        (format!("task.{field}"), format!("{message}; expected {expected}"))
    }))
}

/// What is asked for cannot be done with the task as it is.
pub(crate) fn precondition(kind: &str, subject: &str, text: impl Into<String>) -> Status {
    let text = cut(text);
    let violation = PreconditionViolation::new(kind, cut(subject), text.clone());
    let mut details = ErrorDetails::with_precondition_failure(vec![violation]);
    details.set_error_info(kind, DOMAIN, HashMap::new());
    Status::with_error_details(Code::FailedPrecondition, text, details)
}

/// The caller may not do that.
pub(crate) fn denied(text: impl Into<String>) -> Status {
    info(Code::PermissionDenied, "NOT_PERMITTED", text, &[])
}

/// The daemon stops; the next one can be asked.
pub(crate) fn stopping() -> Status {
    info(Code::Unavailable, "STOPPING", "the daemon is stopping; tasks go on", &[])
}

/// History that was asked for is not kept any more.
pub(crate) fn history_lost(code: Code, before: impl Into<String>) -> Status {
    let before = before.into();
    let text = format!("history lost before {before}; begin with a new snapshot");
    info(code, "HISTORY_LOST", text, &[("first_cursor", before)])
}

/// A call without a peer that the kernel vouches for.
pub(crate) fn no_peer() -> Status {
    info(Code::Unauthenticated, "NO_PEER", "it is not known who calls", &[])
}

/// A call that could not be done now; it may be tried again.
pub(crate) fn unavailable(error: &dyn Error) -> Status {
    info(Code::Unavailable, "UNAVAILABLE", chain(error), &[])
}

/// A defect of dewar.
pub(crate) fn internal(text: impl Into<String>) -> Status {
    info(Code::Internal, "DEFECT", text, &[])
}

/// A task that was not launched.
pub(crate) fn of_launch(error: &LaunchError) -> Status {
    let text = chain(error);
    match error {
        LaunchError::Finished(task) => {
            let task = ("task_id", task.to_string());
            info(Code::AlreadyExists, "TASK_FINISHED", text, &[task])
        }
        LaunchError::Differs { task, field, .. } => {
            let about = [("task_id", task.to_string()), ("field", field.clone())];
            info(Code::AlreadyExists, "TASK_DIFFERS", text, &about)
        }
        LaunchError::Unknown(task) => no_task(task.as_str()),
        LaunchError::Held { task, .. } => {
            info(Code::Aborted, "TASK_HELD", text, &[("task_id", task.to_string())])
        }
        // It may have begun.
        LaunchError::Uncertain { .. } => unavailable(error),
        error if wants_space(error) => info(Code::ResourceExhausted, "NO_SPACE", text, &[]),
        _ => unavailable(error),
    }
}

/// Whether something could not be written for want of space.
fn wants_space(error: &(dyn Error + 'static)) -> bool {
    std::iter::successors(Some(error), |&error| error.source()).any(|error| {
        let number = error.downcast_ref::<io::Error>().and_then(io::Error::raw_os_error);
        let errno = number.map(Errno::from_raw).or(error.downcast_ref::<Errno>().copied());
        errno.is_some_and(sys::is_no_space)
    })
}

/// A request that a runner did not do.
pub(crate) fn of_reach(error: &ReachError) -> Status {
    match error {
        ReachError::Control(ControlError::Refused { task, why }) => {
            precondition("REFUSED", task.as_str(), why.clone())
        }
        ReachError::Control(error @ ControlError::Silent { task, .. }) => info(
            Code::DeadlineExceeded,
            "RUNNER_SILENT",
            chain(error),
            &[("task_id", task.to_string())],
        ),
        ReachError::Launch(error) => of_launch(error),
        ReachError::Observe(error) => of_observe(error),
        error => unavailable(error),
    }
}

/// A task that cannot be read.
pub(crate) fn of_observe(error: &ObserveError) -> Status {
    if error.is_corruption() {
        return info(Code::DataLoss, "CORRUPT", chain(error), &[]);
    }
    unavailable(error)
}

/// A task that cannot be launched here as it was asked for.
pub(crate) fn of_request(error: &RequestError) -> Status {
    match error {
        RequestError::Unenforceable(limits) => {
            let limits = limits.iter().map(|limit| (limit.field.clone(), limit.to_string()));
            let told = Told::of(limits);
            let each = told.fields.iter();
            let violations =
                each.map(|(field, why)| PreconditionViolation::new("UNENFORCEABLE", field, why));
            let mut details =
                ErrorDetails::with_precondition_failure(violations.collect::<Vec<_>>());
            details.set_error_info("UNENFORCEABLE", DOMAIN, HashMap::new());
            let text = told.fields.iter().map(|(_, why)| why.as_str()).collect::<Vec<_>>();
            Status::with_error_details(Code::FailedPrecondition, text.join("; "), details)
        }
        RequestError::NotUtf8 { what, .. } => bad_field(*what, chain(error), "UTF-8"),
        RequestError::Path(_) => bad_field("sandbox", chain(error), "a directory that can be told"),
        RequestError::Cgroup(_) => unavailable(error),
    }
}

/// A user that a task cannot run as.
pub(crate) fn of_identity(error: &IdentityError) -> Status {
    match error {
        IdentityError::Unknown { .. } => bad_field("user", chain(error), "a user of this host"),
        IdentityError::NotPermitted { .. } => denied(chain(error)),
        error => unavailable(error),
    }
}

/// The id of a task.
pub(crate) fn task_id(text: &str) -> Result<TaskId, Status> {
    TaskId::new(text)
        .map_err(|error| bad_field("task_id", format!("{text:?} {error}"), "a task id"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checkpoint::IoError;

    /// What clients take of headers (gRPC over HTTP/2: 8 KiB).
    const HEADERS: usize = 8 << 10;

    /// Base64 and the escapes of a message are larger than what they stand for.
    fn size(status: &Status) -> usize {
        status.details().len().div_ceil(3) * 4 + status.message().len() * 3 / 2
    }

    /// Attack 34: whether the disk is full or a quota is used up.
    #[test]
    fn want_of_space_is_told_from_what_may_pass_by_itself() {
        let io_error =
            |errno: Errno| IoError { call: "write", path: "/root".into(), source: errno.into() };
        let failed = |errno| LaunchError::Io(io_error(errno));
        let told = [Errno::ENOSPC, Errno::EDQUOT, Errno::EIO].map(|errno| {
            let status = of_launch(&failed(errno));
            (status.code(), status.get_error_details().error_info().unwrap().reason.clone())
        });

        let full = (Code::ResourceExhausted, "NO_SPACE".to_owned());
        assert_eq!(told, [full.clone(), full, (Code::Unavailable, "UNAVAILABLE".to_owned())]);
        let task = TaskId::new("t").unwrap();
        let begun = of_launch(&LaunchError::Uncertain { task, error: io_error(Errno::ENOSPC) });
        assert_eq!(begun.code(), Code::Unavailable);
    }

    #[test]
    fn a_status_fits_into_headers_however_much_is_wrong() {
        let fields = (0..1000).map(|n| (format!("processes[{n}].name"), "é".repeat(1 + n)));
        let many = bad_fields(fields);
        let long = no_task(&"x".repeat(1 << 20));

        let violations = many.get_error_details().bad_request().unwrap().field_violations.len();
        assert!(violations > 20, "{violations}");
        assert!(many.message().ends_with(&format!("; and {} more", 1000 - violations)));
        for status in [&many, &long] {
            assert!(size(status) < HEADERS, "{}", size(status));
        }
        let one = bad_fields([("a".to_owned(), "é".repeat(MAX_TEXT))]);
        assert_eq!(one.message().chars().count(), "a: ".len() + MAX_TEXT / 2 + 1);
    }
}
