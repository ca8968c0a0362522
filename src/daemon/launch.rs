//! `Launch`: from a request to a task that is accepted, on disk, and has a runner.

use std::collections::BTreeMap;
use std::path::PathBuf;

use tonic::Status;

use super::peer::Peer;
use super::trace::Call;
use super::{Node, status};
use crate::causes::chain;
use crate::identity;
use crate::launch::{self, Accepted, Console};
use crate::proto::launch_request::Source;
use crate::proto::{self, Containment, LaunchRequest};
use crate::request;
use crate::task::file::{self, Bindings};
use crate::task::written::TaskFile;
use crate::task::{TaskId, TaskSpec};

/// What the errors of a task file call it.
const FILE: &str = "task_file";
/// Most labels of a task.
const MAX_LABELS: usize = 64;
/// Most bytes of the name of a label.
const MAX_LABEL_NAME: usize = 63;
/// Most bytes of its value.
const MAX_LABEL_VALUE: usize = 255;

/// Launches what `peer` asks for. Blocks until the runner has recorded that it leads; says whether the task is new.
///
/// # Errors
///
/// A status that says why; nothing was started then.
pub(super) fn launch(
    node: &Node,
    peer: &Peer,
    request: LaunchRequest,
    call: &mut Call,
) -> Result<(TaskId, bool), Status> {
    call.step("check");
    if !peer.is_admin && (request.chroot || request.sandbox.is_some() || request.log_dir.is_some())
    {
        let text = "chroot, sandbox and log_dir: only root and the daemon's group may choose them";
        return Err(status::denied(text));
    }
    let caller = user_of(peer)?;
    let accepted = accepted(&request, &caller)?;
    let id = accepted.task_id.clone();
    call.task(&id);
    // An id that is somebody else's is as good as any other that is taken; whose it is, is not told.
    if !peer.is_admin && node.registry.knows(&id) && node.registry.get(peer, &id).is_none() {
        let about = [("task_id", id.to_string())];
        let text = format!("task id {id} is taken");
        return Err(status::info(tonic::Code::AlreadyExists, "TASK_DIFFERS", text, &about));
    }
    let user = request.user.as_deref().or(accepted.spec.user.as_deref()).unwrap_or(&caller);
    let identity = identity::named(user).map_err(|error| status::of_identity(&error))?;
    if !peer.is_admin && identity.uid != peer.uid {
        return Err(status::denied(format!("user {user:?}: you may run tasks as {caller:?} only")));
    }
    let base = match (&node.base, request.without_cgroup) {
        (_, true) => None,
        (Ok(base), false) => Some(base),
        (Err(error), false) => {
            return Err(status::precondition("NO_CGROUP", "cgroup", chain(error)));
        }
    };
    let applied = request::try_out(&accepted.spec, base)
        .map_err(|error| status::of_request(&error.into()))?;
    if !applied.unenforceable.is_empty() && !request.allow_unenforced {
        let error = request::RequestError::Unenforceable(applied.unenforceable);
        return Err(status::of_request(&error));
    }
    let containment = if base.is_some() { Containment::Cgroup } else { Containment::None };
    let launch =
        request::launch(&node.root, accepted, identity, options(request)?, containment, applied)
            .map_err(|error| status::of_request(&error))?;
    start(node, &id, &launch, call)
}

/// Accepts the task, and sees that it has a runner.
fn start(
    node: &Node,
    id: &TaskId,
    launch: &proto::Launch,
    call: &mut Call,
) -> Result<(TaskId, bool), Status> {
    call.step("accept");
    let accepted =
        launch::accept(&node.root, id, launch).map_err(|error| status::of_launch(&error))?;
    if accepted == Accepted::Active {
        // It has a runner, or the thread that follows it sees to it.
        return Ok((id.clone(), false));
    }
    call.step("start runner");
    let contained = launch.containment() == Containment::Cgroup;
    let base = node.base.as_ref().ok().filter(|_| contained);
    let started = launch::prepare_runner(&node.root, id, base, Console::Log)
        .and_then(launch::Waiting::go)
        // It is accepted, and on disk: another one is started.
        .inspect_err(|error| tracing::error!(task = %id, error = chain(error), "start"))
        .ok();
    if let Some(started) = &started {
        started.confirm();
        call.step("await lead");
        launch::wait_for_lead(&started.nudges);
    }
    node.door.adopt(id.clone(), started.map(Into::into));
    Ok((id.clone(), true))
}

/// Login name of the caller.
fn user_of(peer: &Peer) -> Result<String, Status> {
    let user = nix::unistd::User::from_uid(nix::unistd::Uid::from_raw(peer.uid));
    match user {
        Ok(Some(user)) => Ok(user.name),
        Ok(None) => Err(status::denied(format!("uid {} is no user of this host", peer.uid))),
        Err(errno) => Err(status::internal(format!("user database: {errno}"))),
    }
}

fn accepted(request: &LaunchRequest, caller: &str) -> Result<file::Accepted, Status> {
    let bindings = Bindings {
        task_id: request.task_id.as_deref().map(status::task_id).transpose()?,
        id_suffix: request::id_suffix(),
        user: request.user.clone().unwrap_or_else(|| caller.to_owned()),
        ports: ports(&request.ports)?,
        variables: request.bindings.clone(),
    };
    match &request.source {
        None => Err(status::bad_field("source", "nothing", "`task` or `task_file`")),
        Some(Source::TaskFile(text)) => parse(text.as_bytes(), &bindings),
        Some(Source::Task(task)) => {
            // What is wrong with it is told in its own terms; then it is a task file like any other, templates and all.
            let spec = TaskSpec::from_proto(task).map_err(status::bad_task)?;
            let written = TaskFile::new(&spec, &task.constraints);
            let text = serde_json::to_vec(&written)
                .map_err(|error| status::internal(format!("write the task down: {error}")))?;
            parse(&text, &bindings)
        }
    }
}

fn parse(source: &[u8], bindings: &Bindings) -> Result<file::Accepted, Status> {
    file::parse(source, FILE, bindings).map_err(|report| {
        status::bad_fields(report.diagnostics().iter().map(|wrong| {
            let at = format!("line {}, column {}", wrong.place.line, wrong.place.column);
            let field = match wrong.field.as_str() {
                "" => FILE.to_owned(),
                field => format!("{FILE}.{field}"),
            };
            (field, format!("{at}: {}; expected {}", wrong.message, wrong.expected))
        }))
    })
}

fn ports(asked: &BTreeMap<String, u32>) -> Result<BTreeMap<String, u16>, Status> {
    let port = |(name, &port): (&String, &u32)| match u16::try_from(port) {
        Ok(port) if port > 0 => Ok((name.clone(), port)),
        _ => Err(status::bad_field(format!("ports[{name}]"), port, "1 to 65535")),
    };
    asked.iter().map(port).collect()
}

fn options(request: LaunchRequest) -> Result<request::Options, Status> {
    let directory = |field: &str, path: Option<String>| match path.map(PathBuf::from) {
        Some(path) if !path.is_absolute() => {
            Err(status::bad_field(field, format!("{path:?}"), "an absolute path"))
        }
        path => Ok(path),
    };
    Ok(request::Options {
        sandbox: directory("sandbox", request.sandbox)?,
        log_dir: directory("log_dir", request.log_dir)?,
        ports: ports(&request.ports)?,
        chroot: request.chroot,
        labels: labels(request.labels)?,
        path: request.path.unwrap_or_else(|| request::DEFAULT_PATH.to_owned()),
    })
}

/// The labels, if they keep the rules.
fn labels(labels: BTreeMap<String, String>) -> Result<BTreeMap<String, String>, Status> {
    if labels.len() > MAX_LABELS {
        let expected = format!("at most {MAX_LABELS}");
        return Err(status::bad_field("labels", format!("{} labels", labels.len()), expected));
    }
    for (name, value) in &labels {
        let plain = |c: char| c.is_ascii_alphanumeric() || "_-./".contains(c);
        if name.is_empty() || name.len() > MAX_LABEL_NAME || !name.chars().all(plain) {
            let expected = format!("1 to {MAX_LABEL_NAME} of letters, digits, `_`, `-`, `.`, `/`");
            return Err(status::bad_field("labels", format!("{name:?}"), expected));
        }
        if value.len() > MAX_LABEL_VALUE || value.chars().any(char::is_control) {
            let expected = format!("at most {MAX_LABEL_VALUE} bytes without control characters");
            return Err(status::bad_field(
                format!("labels[{name}]"),
                format!("{value:?}"),
                expected,
            ));
        }
    }
    Ok(labels)
}
