//! `/j/…`: what the pages show, for programs. Messages are those of `proto/dewar/v1`, as the command line prints them.

use std::collections::{BTreeMap, BTreeSet};

use axum::Router;
use axum::extract::{Path, State};
use axum::http::header::{ACCEPT, CONTENT_TYPE};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use serde::Serialize;
use tonic::Code;

use super::Web;
use super::answer::Failure;
use super::caller::Caller;
use super::params::Params;
use super::tasks::{GROUPS, group, standing, token};
use crate::daemon::peer::Peer;
use crate::proto::observer_service_server::ObserverService;
use crate::proto::{
    ExplainTaskRequest, GetNodeRequest, GetNodeResponse, GetTaskRequest, GetUsageHistoryRequest,
    GetUsageHistoryResponse, GetUsageRequest, ProcessView, RunView, TaskExplanation, TaskFilter,
    TaskUsage, TaskView,
};

/// Most tasks that are told of in one answer.
const MAX_TASKS: usize = 100;
/// Ids in an answer if nothing is said.
const PAGE: usize = 100;
/// Most ids in an answer.
const MAX_PAGE: usize = 1000;

/// The addresses beneath `/j`.
pub(super) fn router() -> Router<Web> {
    Router::new()
        .route("/task_ids", get(all_ids))
        .route("/task_ids/{which}", get(some_ids))
        .route("/task_id_count", get(count))
        .route("/task", get(tasks))
        .route("/task/{id}", get(task))
        .route("/process/{id}", get(task_processes))
        .route("/process/{id}/{name}", get(process))
        .route("/process/{id}/{name}/{run}", get(run))
        .route("/processes", get(processes))
        .route("/explain/{id}", get(explain))
        .route("/usage/{id}", get(usage))
        .route("/usage_history/{id}", get(task_history))
        .route("/usage_history/{id}/{name}", get(process_history))
        .route("/node", get(node))
}

/// Whether a program asks, that wants JSON.
pub(super) fn is_asked_for(headers: &HeaderMap) -> bool {
    let accept = headers.get(ACCEPT).and_then(|accept| accept.to_str().ok());
    accept.is_some_and(|accept| accept.starts_with("application/json"))
}

/// `value` as an answer.
pub(super) fn answer(value: &impl Serialize) -> Response {
    match serde_json::to_string(value) {
        Ok(mut text) => {
            text.push('\n');
            ([(CONTENT_TYPE, "application/json")], text).into_response()
        }
        Err(error) => {
            let status = StatusCode::INTERNAL_SERVER_ERROR;
            Failure::new(status, error.to_string()).into_response()
        }
    }
}

/// What `value` comes to, or why it comes to nothing.
pub(super) async fn of<T: Serialize>(value: impl Future<Output = Result<T, Failure>>) -> Response {
    value.await.map_or_else(Failure::into_response, |value| answer(&value))
}

/// Ids of tasks, the newest first.
#[derive(Serialize)]
struct Ids {
    r#type: String,
    task_ids: Vec<String>,
    /// How many there are in all.
    task_count: u64,
    /// Where to go on; absent: there are no more.
    #[serde(skip_serializing_if = "Option::is_none")]
    next_page_token: Option<String>,
}

async fn all_ids(web: State<Web>, caller: Caller, params: Params) -> Response {
    some_ids(web, caller, Path("all".to_owned()), params).await
}

async fn some_ids(
    State(web): State<Web>,
    Caller(peer): Caller,
    Path(which): Path<String>,
    params: Params,
) -> Response {
    of(async {
        let states = match which.as_str() {
            "all" => &[],
            name => {
                let found = group(name).map(|group| GROUPS[group].2);
                found
                    .ok_or_else(|| Failure::not_found(format!("{name:.40?} is no kind of tasks")))?
            }
        };
        let size = params.number("page_size")?.unwrap_or(PAGE);
        if !(1..=MAX_PAGE).contains(&size) {
            return Err(Failure::bad(format!("page_size: {size}; expected 1 to {MAX_PAGE}")));
        }
        let after = params.get("page_token").map(standing).transpose()?;
        let states_told: Vec<i32> = states.iter().map(|&state| state.into()).collect();
        let filter = TaskFilter { states: states_told, ..TaskFilter::default() };
        let newest = web.observe.newest(&peer, filter, after.as_ref(), size).await?;
        let counted =
            newest.counts.iter().filter(|(state, _)| states.is_empty() || states.contains(state));
        Ok(Ids {
            r#type: which,
            task_count: counted.map(|(_, count)| count).sum(),
            task_ids: newest.tasks.iter().map(|task| task.task_id.clone()).collect(),
            next_page_token: newest.next.as_ref().map(token),
        })
    })
    .await
}

async fn count(State(web): State<Web>, Caller(peer): Caller) -> Response {
    of(async {
        let newest = web.observe.newest(&peer, TaskFilter::default(), None, 1).await?;
        let count = |group: usize| -> u64 {
            GROUPS[group].2.iter().filter_map(|state| newest.counts.get(state)).sum()
        };
        let all = newest.counts.values().sum();
        Ok(BTreeMap::from([("active", count(0)), ("finished", count(1)), ("all", all)]))
    })
    .await
}

async fn view(web: &Web, peer: &Peer, id: &str) -> Result<TaskView, Failure> {
    let asked = GetTaskRequest { task_id: id.to_owned() };
    let view = web.observe.get_task(Web::call(peer, asked)).await?;
    Ok(view.into_inner().task.unwrap_or_default())
}

/// The tasks of `task_id=a,b` that there are, as far as the caller may know.
async fn views(
    web: &Web,
    peer: &Peer,
    params: &Params,
) -> Result<BTreeMap<String, TaskView>, Failure> {
    let ids: BTreeSet<&str> =
        params.get("task_id").unwrap_or_default().split(',').filter(|id| !id.is_empty()).collect();
    if ids.is_empty() || ids.len() > MAX_TASKS {
        return Err(Failure::bad(format!("task_id: {} ids; expected 1 to {MAX_TASKS}", ids.len())));
    }
    let mut views = BTreeMap::new();
    for id in ids {
        let asked = GetTaskRequest { task_id: id.to_owned() };
        match web.observe.get_task(Web::call(peer, asked)).await {
            Ok(told) => {
                views.insert(id.to_owned(), told.into_inner().task.unwrap_or_default());
            }
            Err(status) if matches!(status.code(), Code::NotFound | Code::InvalidArgument) => {}
            Err(status) => return Err(status.into()),
        }
    }
    Ok(views)
}

async fn tasks(State(web): State<Web>, Caller(peer): Caller, params: Params) -> Response {
    of(views(&web, &peer, &params)).await
}

async fn task(State(web): State<Web>, Caller(peer): Caller, Path(id): Path<String>) -> Response {
    of(view(&web, &peer, &id)).await
}

fn by_name(view: TaskView) -> BTreeMap<String, ProcessView> {
    view.processes.into_iter().map(|process| (process.name.clone(), process)).collect()
}

async fn task_processes(
    State(web): State<Web>,
    Caller(peer): Caller,
    Path(id): Path<String>,
) -> Response {
    of(async { Ok(by_name(view(&web, &peer, &id).await?)) }).await
}

async fn processes(State(web): State<Web>, Caller(peer): Caller, params: Params) -> Response {
    of(async {
        let views = views(&web, &peer, &params).await?;
        Ok(views.into_iter().map(|(id, view)| (id, by_name(view))).collect::<BTreeMap<_, _>>())
    })
    .await
}

async fn one_process(web: &Web, peer: &Peer, id: &str, name: &str) -> Result<ProcessView, Failure> {
    let found = by_name(view(web, peer, id).await?).remove(name);
    found.ok_or_else(|| Failure::not_found(format!("task {id} has no process {name:?}")))
}

async fn process(
    State(web): State<Web>,
    Caller(peer): Caller,
    Path((id, name)): Path<(String, String)>,
) -> Response {
    of(one_process(&web, &peer, &id, &name)).await
}

async fn run(
    State(web): State<Web>,
    Caller(peer): Caller,
    Path((id, name, run)): Path<(String, String, String)>,
) -> Response {
    of(async {
        let process = one_process(&web, &peer, &id, &name).await?;
        let found: Option<RunView> = process.runs.into_iter().find(|of| run.parse() == Ok(of.run));
        found.ok_or_else(|| Failure::not_found(format!("process {name:?} has no run {run:.40}")))
    })
    .await
}

async fn explain(State(web): State<Web>, Caller(peer): Caller, Path(id): Path<String>) -> Response {
    of::<TaskExplanation>(async {
        let asked = ExplainTaskRequest { task_id: id };
        let told = web.observe.explain_task(Web::call(&peer, asked)).await?.into_inner();
        Ok(told.explanation.unwrap_or_default())
    })
    .await
}

async fn usage(State(web): State<Web>, Caller(peer): Caller, Path(id): Path<String>) -> Response {
    of::<TaskUsage>(async {
        let asked = GetUsageRequest { task_id: id, time: None, by_process: true };
        let told = web.observe.get_usage(Web::call(&peer, asked)).await?.into_inner();
        Ok(told.usage.unwrap_or_default())
    })
    .await
}

async fn history(
    web: &Web,
    peer: &Peer,
    task_id: String,
    process: Option<String>,
    params: &Params,
) -> Result<GetUsageHistoryResponse, Failure> {
    let max_points = params.number("max_points")?.unwrap_or_default();
    let asked = GetUsageHistoryRequest {
        task_id,
        process,
        max_points,
        ..GetUsageHistoryRequest::default()
    };
    Ok(web.observe.get_usage_history(Web::call(peer, asked)).await?.into_inner())
}

async fn task_history(
    State(web): State<Web>,
    Caller(peer): Caller,
    Path(id): Path<String>,
    params: Params,
) -> Response {
    of(history(&web, &peer, id, None, &params)).await
}

async fn process_history(
    State(web): State<Web>,
    Caller(peer): Caller,
    Path((id, name)): Path<(String, String)>,
    params: Params,
) -> Response {
    of(history(&web, &peer, id, Some(name), &params)).await
}

async fn node(State(web): State<Web>, Caller(peer): Caller) -> Response {
    of::<GetNodeResponse>(async {
        Ok(web.observe.get_node(Web::call(&peer, GetNodeRequest {})).await?.into_inner())
    })
    .await
}
