//! `RunnerService`: each call is checked here, and done where blocking is allowed, whether or not its caller still waits.

use std::sync::Arc;
use std::time::Duration;

use tonic::{Request, Response, Status, Streaming};

use super::observe::Answers;
use super::peer::Peer;
use super::registry::is_terminal;
use super::{Node, exec, launch, status, trace, watch};
use crate::cgroup;
use crate::control::{self, ControlError, Request as Order};
use crate::proto::runner_service_server::RunnerService;
use crate::proto::{
    ExecRequest, ExecResponse, KillRequest, KillResponse, LaunchRequest, LaunchResponse,
    LoseRequest, LoseResponse, PauseRequest, PauseResponse, PauseTask, RemoveRequest,
    RemoveResponse, ResumeRequest, ResumeResponse, ResumeTask, SignalRequest, SignalResponse,
    SignalScope, SignalTask, TaskState, TaskView, UpdateLimits, UpdateRequest, UpdateResponse,
    WaitRequest, WaitResponse,
};
use crate::reach::{Reach, ReachError};
use crate::task::{self, TaskId, TaskSpec};

/// The service.
pub(super) struct Control {
    pub(super) node: Arc<Node>,
}

/// Does `work` where it may block. A caller that leaves does not stop it.
pub(crate) async fn block<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Status> + Send + 'static,
) -> Result<T, Status> {
    // What is logged there is of the same call.
    let call = tracing::Span::current();
    match tokio::task::spawn_blocking(move || call.in_scope(work)).await {
        Ok(done) => done,
        Err(error) => Err(status::internal(error.to_string())),
    }
}

impl Node {
    /// The id of a task that the peer may know of, and its state.
    pub(super) fn known(&self, peer: &Peer, id: &str) -> Result<(TaskId, TaskState), Status> {
        let task = status::task_id(id)?;
        let entry = self.registry.get(peer, &task).ok_or_else(|| status::no_task(id))?;
        Ok((task, entry.summary.state()))
    }

    /// All that is told about a task: also what its runner tells, which is in no stream.
    ///
    /// # Errors
    ///
    /// There is no such task, or it cannot be read now.
    pub(super) fn view(&self, id: &TaskId) -> Result<TaskView, Status> {
        let view = watch::view(&self.root, id)?;
        Ok(TaskView {
            waits_for_disk: self.waits_for_disk(id, view.state()).then_some(true),
            ..view
        })
    }

    /// Whether a task, which is in `state`, waits for space.
    pub(super) fn waits_for_disk(&self, id: &TaskId, state: TaskState) -> bool {
        !is_terminal(state) && self.registry.waits_for_disk(id)
    }

    /// Reaches runners on behalf of the peer.
    fn reach<T>(
        &self,
        peer: &Peer,
        work: impl FnOnce(Reach<'_>) -> Result<T, ReachError>,
    ) -> Result<T, ReachError> {
        let find = || cgroup::find(&cgroup::Options { explicit: self.cgroup_base.clone() });
        work(Reach { root: &self.root, base: &find, by: peer.user() })
    }

    /// Asks the runner of a live task to do something, and tells which limits the kernel rounded.
    fn order_live(
        &self,
        peer: &Peer,
        id: &TaskId,
        state: TaskState,
        order: &Order,
    ) -> Result<Vec<String>, Status> {
        if is_terminal(state) {
            return Err(is_over(id, state));
        }
        self.reach(peer, |reach| reach.order(id, order)).map_err(|error| status::of_reach(&error))
    }

    /// Asks for the end of a task; of one that is over it changes nothing.
    fn end(&self, peer: &Peer, id: &TaskId, state: TaskState, kill: &Order) -> Result<(), Status> {
        if is_terminal(state) {
            return Ok(());
        }
        self.reach(peer, |reach| reach.end(id, kill)).map_err(|error| status::of_reach(&error))
    }

    fn finalization_wait(&self, id: &TaskId) -> Result<Duration, Status> {
        let launch =
            crate::launch::header(&self.root, id).map_err(|error| status::of_launch(&error))?;
        let spec = TaskSpec::from_proto(&launch.task.unwrap_or_default())
            .map_err(|_| status::internal("the accepted task is not valid"))?;
        Ok(spec.finalization_wait)
    }
}

pub(super) fn is_over(id: &TaskId, state: TaskState) -> Status {
    let text = format!("task {id} is over: {}", state.as_str_name());
    status::precondition("TASK_OVER", id.as_str(), text)
}

/// Why the end of a task is asked for, if it is not too long.
fn reason(reason: Option<String>) -> Result<Option<String>, Status> {
    match reason {
        Some(text) if text.len() > control::REASON_MAX => {
            let expected = format!("at most {}", control::REASON_MAX);
            Err(status::bad_field("reason", format!("{} bytes", text.len()), expected))
        }
        reason => Ok(reason),
    }
}

/// A time that is not negative.
pub(super) fn duration(field: &str, of: pbjson_types::Duration) -> Result<Duration, Status> {
    Duration::try_from(of).map_err(|_| {
        status::bad_field(field, format!("{} s {} ns", of.seconds, of.nanos), "a time from 0 on")
    })
}

#[tonic::async_trait]
impl RunnerService for Control {
    async fn launch(
        &self,
        request: Request<LaunchRequest>,
    ) -> Result<Response<LaunchResponse>, Status> {
        let peer = Peer::that_controls(&request)?;
        let node = self.node.clone();
        let mut call = trace::Call::begin(node.traces.as_ref(), &peer, request.metadata());
        let request = request.into_inner();
        let answer = block(move || {
            let launched =
                launch::launch(&node, &peer, request, &mut call).and_then(|(id, is_new)| {
                    tracing::info!(task = %id, uid = peer.user(), is_new, "launched");
                    let task = node.view(&id)?;
                    Ok((id, LaunchResponse { task: Some(task), is_new }))
                });
            call.answered(&node, &peer, &launched);
            launched.map(|(_, answer)| answer)
        });
        answer.await.map(Response::new)
    }

    type ExecStream = Answers<ExecResponse>;

    async fn exec(
        &self,
        request: Request<Streaming<ExecRequest>>,
    ) -> Result<Response<Self::ExecStream>, Status> {
        let peer = Peer::that_controls(&request)?;
        exec::exec(&self.node, &peer, request.into_inner()).await.map(Response::new)
    }

    async fn signal(
        &self,
        request: Request<SignalRequest>,
    ) -> Result<Response<SignalResponse>, Status> {
        let peer = Peer::that_controls(&request)?;
        let node = self.node.clone();
        let request = request.into_inner();
        let all = match SignalScope::try_from(request.scope) {
            Ok(SignalScope::Unspecified | SignalScope::Leaders) => false,
            Ok(SignalScope::All) => true,
            Err(_) => return Err(status::bad_field("scope", request.scope, "a known scope")),
        };
        let SignalRequest { task_id, signal, process, .. } = request;
        let (id, state) = node.known(&peer, &task_id)?;
        let signal = task::signal::parse(&signal)
            .map_err(|error| status::bad_fields([("signal".to_owned(), error.to_string())]))?;
        let answer = block(move || {
            node.order_live(
                &peer,
                &id,
                state,
                &Order::Signal(SignalTask { process, signal, all }),
            )?;
            tracing::info!(task = %id, uid = peer.user(), signal, all, "signalled");
            Ok(SignalResponse {})
        });
        answer.await.map(Response::new)
    }

    async fn kill(&self, request: Request<KillRequest>) -> Result<Response<KillResponse>, Status> {
        let peer = Peer::that_controls(&request)?;
        let node = self.node.clone();
        let request = request.into_inner();
        let (id, state) = node.known(&peer, &request.task_id)?;
        let grace = request.grace.map(|grace| duration("grace", grace)).transpose()?;
        let reason = reason(request.reason)?;
        let answer = block(move || {
            let grace = grace.map_or_else(|| node.finalization_wait(&id), Ok)?;
            node.end(&peer, &id, state, &control::to_kill(grace, false, reason))?;
            tracing::info!(task = %id, uid = peer.user(), "killed");
            Ok(KillResponse { state: watch::view(&node.root, &id)?.state })
        });
        answer.await.map(Response::new)
    }

    async fn lose(&self, request: Request<LoseRequest>) -> Result<Response<LoseResponse>, Status> {
        let peer = Peer::that_controls(&request)?;
        let node = self.node.clone();
        let LoseRequest { task_id, reason: why } = request.into_inner();
        let (id, state) = node.known(&peer, &task_id)?;
        let reason = reason(why)?;
        let answer = block(move || {
            node.end(&peer, &id, state, &control::to_kill(Duration::ZERO, true, reason))?;
            tracing::info!(task = %id, uid = peer.user(), "lost");
            Ok(LoseResponse { state: watch::view(&node.root, &id)?.state })
        });
        answer.await.map(Response::new)
    }

    async fn pause(
        &self,
        request: Request<PauseRequest>,
    ) -> Result<Response<PauseResponse>, Status> {
        let peer = Peer::that_controls(&request)?;
        let node = self.node.clone();
        let (id, state) = node.known(&peer, &request.get_ref().task_id)?;
        let answer = block(move || {
            if is_terminal(state) {
                return Err(is_over(&id, state));
            }
            match node.reach(&peer, |reach| reach.order(&id, &Order::Pause(PauseTask {}))) {
                Ok(_) => Ok(PauseResponse { unfinished: None }),
                Err(ReachError::Control(ControlError::Unfinished { what, .. })) => {
                    Ok(PauseResponse { unfinished: Some(what) })
                }
                Err(error) => Err(status::of_reach(&error)),
            }
        });
        answer.await.map(Response::new)
    }

    async fn resume(
        &self,
        request: Request<ResumeRequest>,
    ) -> Result<Response<ResumeResponse>, Status> {
        let peer = Peer::that_controls(&request)?;
        let node = self.node.clone();
        let (id, state) = node.known(&peer, &request.get_ref().task_id)?;
        let answer = block(move || {
            node.order_live(&peer, &id, state, &Order::Resume(ResumeTask {}))?;
            Ok(ResumeResponse {})
        });
        answer.await.map(Response::new)
    }

    async fn update(
        &self,
        request: Request<UpdateRequest>,
    ) -> Result<Response<UpdateResponse>, Status> {
        let peer = Peer::that_controls(&request)?;
        let node = self.node.clone();
        let UpdateRequest { task_id, process, change, force } = request.into_inner();
        let (id, state) = node.known(&peer, &task_id)?;
        let change = change.ok_or_else(|| status::bad_field("change", "nothing", "limits"))?;
        let answer = block(move || {
            let update = UpdateLimits { process, change: Some(change), force };
            let rounded = node.order_live(&peer, &id, state, &Order::Update(update))?;
            Ok(UpdateResponse { rounded })
        });
        answer.await.map(Response::new)
    }

    async fn wait(&self, request: Request<WaitRequest>) -> Result<Response<WaitResponse>, Status> {
        let peer = Peer::of(&request)?;
        let request = request.into_inner();
        let (id, _) = self.node.known(&peer, &request.task_id)?;
        let states = watch::known_states("states", request.states)?;
        let timeout = request.timeout.map(|timeout| duration("timeout", timeout)).transpose()?;
        let is_reached = watch::until(&self.node, &peer, &id, &states, timeout).await?;
        let node = self.node.clone();
        let task = block(move || node.view(&id)).await?;
        Ok(Response::new(WaitResponse { task: Some(task), is_reached }))
    }

    async fn remove(
        &self,
        request: Request<RemoveRequest>,
    ) -> Result<Response<RemoveResponse>, Status> {
        let peer = Peer::that_controls(&request)?;
        let node = self.node.clone();
        let RemoveRequest { task_id, sandbox } = request.into_inner();
        let id = status::task_id(&task_id)?;
        let Some(entry) = node.registry.get(&peer, &id) else {
            return Ok(Response::new(RemoveResponse {}));
        };
        let known = entry.summary.state();
        if !is_terminal(known) && !watch::has_ended(&node, &peer, &id).await? {
            let text = format!("task {id} is not over: {}", known.as_str_name());
            return Err(status::precondition("TASK_LIVE", id.as_str(), text));
        }
        let answer = block(move || {
            crate::remove::remove(&node.root, &id, sandbox)
                .map_err(|error| status::unavailable(&error))?;
            node.registry.removed(&id);
            tracing::info!(task = %id, uid = peer.user(), sandbox, "removed");
            Ok(RemoveResponse {})
        });
        answer.await.map(Response::new)
    }
}
