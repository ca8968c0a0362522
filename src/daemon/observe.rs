//! `ObserverService`: what is told about tasks and this node.

use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::Arc;

use tokio_stream::Stream;
use tonic::{Request, Response, Status};

use super::control::block;
use super::peer::Peer;
use super::registry::Entry;
use super::watch::{self, Filter};
use super::{Node, files, logs, status, usage};
use crate::causes::chain;
use crate::explain::{WAITS_FOR_DISK, explain};
use crate::proto::observer_service_server::ObserverService;
use crate::proto::{
    ExplainTaskRequest, ExplainTaskResponse, GetNodeRequest, GetNodeResponse, GetTaskRequest,
    GetTaskResponse, GetUsageHistoryRequest, GetUsageHistoryResponse, GetUsageRequest,
    GetUsageResponse, ListFilesRequest, ListFilesResponse, ListTasksRequest, ListTasksResponse,
    ReadFileRequest, ReadFileResponse, ReadLogsRequest, ReadLogsResponse, WatchTasksRequest,
    WatchTasksResponse, WatchUsageRequest, WatchUsageResponse,
};
use crate::request;
use crate::task::TaskId;

/// The service.
#[derive(Debug, Clone)]
pub(crate) struct Observe {
    pub(super) node: Arc<Node>,
}

/// A stream of answers.
pub(crate) type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// Most entries of a page.
const MAX_PAGE: usize = 1000;
/// Entries of a page if nothing is said.
const PAGE: usize = 100;

/// How many entries a page is to have.
///
/// # Errors
///
/// More than 1000.
pub(super) fn page_size(asked: u32) -> Result<usize, Status> {
    match asked as usize {
        0 => Ok(PAGE),
        size if size <= MAX_PAGE => Ok(size),
        _ => Err(status::bad_field("page_size", asked, format!("at most {MAX_PAGE}"))),
    }
}

#[tonic::async_trait]
impl ObserverService for Observe {
    type WatchTasksStream = Answers<WatchTasksResponse>;

    async fn list_tasks(
        &self,
        request: Request<ListTasksRequest>,
    ) -> Result<Response<ListTasksResponse>, Status> {
        let peer = Peer::of(&request)?;
        let ListTasksRequest { filter, page_size: size, page_token } = request.into_inner();
        let filter = Filter::new(filter)?;
        let size = page_size(size)?;
        let after = match page_token.as_str() {
            "" => None,
            token => Some(TaskId::new(token).map_err(|_| {
                status::bad_field("page_token", format!("{token:?}"), "one of an answer before")
            })?),
        };
        let node = self.node.clone();
        // A pattern may take long at each id.
        let (tasks, more) = block(move || {
            let wanted = |entry: &Entry| {
                peer.sees(entry.owner) && filter.matches(&entry.summary.task_id, &entry.summary)
            };
            Ok(node.registry.page(after.as_ref(), size, wanted))
        })
        .await?;
        let tasks: Vec<_> = tasks.iter().map(|entry| (*entry.summary).clone()).collect();
        let last = tasks.last().filter(|_| more);
        let next_page_token = last.map(|task| task.task_id.clone()).unwrap_or_default();
        Ok(Response::new(ListTasksResponse { tasks, next_page_token }))
    }

    async fn get_task(
        &self,
        request: Request<GetTaskRequest>,
    ) -> Result<Response<GetTaskResponse>, Status> {
        let peer = Peer::of(&request)?;
        let (id, _) = self.node.known(&peer, &request.get_ref().task_id)?;
        let node = self.node.clone();
        let task = block(move || node.view(&id)).await?;
        Ok(Response::new(GetTaskResponse { task: Some(task) }))
    }

    async fn explain_task(
        &self,
        request: Request<ExplainTaskRequest>,
    ) -> Result<Response<ExplainTaskResponse>, Status> {
        let peer = Peer::of(&request)?;
        let (id, _) = self.node.known(&peer, &request.get_ref().task_id)?;
        let node = self.node.clone();
        let explained = block(move || {
            let place = watch::place(&node.root, &id)?;
            let explained = explain(&node.root, &id, place);
            let mut explained = explained.map_err(|error| status::of_observe(&error))?;
            if node.waits_for_disk(&id, explained.state()) {
                explained.notes.push(WAITS_FOR_DISK.to_owned());
            }
            Ok(explained)
        });
        Ok(Response::new(ExplainTaskResponse { explanation: Some(explained.await?) }))
    }

    async fn watch_tasks(
        &self,
        request: Request<WatchTasksRequest>,
    ) -> Result<Response<Self::WatchTasksStream>, Status> {
        let peer = Peer::of(&request)?;
        watch::tasks(self.node.clone(), peer, request.into_inner()).map(Response::new)
    }

    async fn get_usage(
        &self,
        request: Request<GetUsageRequest>,
    ) -> Result<Response<GetUsageResponse>, Status> {
        let peer = Peer::of(&request)?;
        let usage = usage::get(self.node.clone(), peer, request.into_inner()).await?;
        Ok(Response::new(GetUsageResponse { usage: Some(usage) }))
    }

    async fn get_usage_history(
        &self,
        request: Request<GetUsageHistoryRequest>,
    ) -> Result<Response<GetUsageHistoryResponse>, Status> {
        let peer = Peer::of(&request)?;
        let told = usage::history(self.node.clone(), peer, request.into_inner());
        told.await.map(Response::new)
    }

    type WatchUsageStream = Answers<WatchUsageResponse>;

    async fn watch_usage(
        &self,
        request: Request<WatchUsageRequest>,
    ) -> Result<Response<Self::WatchUsageStream>, Status> {
        let peer = Peer::of(&request)?;
        usage::watch(self.node.clone(), peer, request.into_inner()).map(Response::new)
    }

    type ReadLogsStream = Answers<ReadLogsResponse>;

    async fn read_logs(
        &self,
        request: Request<ReadLogsRequest>,
    ) -> Result<Response<Self::ReadLogsStream>, Status> {
        let peer = Peer::of(&request)?;
        logs::read(self.node.clone(), peer, request.into_inner()).await.map(Response::new)
    }

    async fn list_files(
        &self,
        request: Request<ListFilesRequest>,
    ) -> Result<Response<ListFilesResponse>, Status> {
        let peer = Peer::of(&request)?;
        files::list(self.node.clone(), peer, request.into_inner()).await.map(Response::new)
    }

    type ReadFileStream = Answers<ReadFileResponse>;

    async fn read_file(
        &self,
        request: Request<ReadFileRequest>,
    ) -> Result<Response<Self::ReadFileStream>, Status> {
        let peer = Peer::of(&request)?;
        files::read(self.node.clone(), peer, request.into_inner()).await.map(Response::new)
    }

    async fn get_node(
        &self,
        request: Request<GetNodeRequest>,
    ) -> Result<Response<GetNodeResponse>, Status> {
        let peer = Peer::of(&request)?;
        let node = &self.node;
        let mut task_counts = BTreeMap::new();
        node.registry.each(|(_, entry)| {
            if peer.sees(entry.owner) {
                let state = entry.summary.state().as_str_name();
                *task_counts.entry(state.to_owned()).or_insert(0) += 1;
            }
        });
        let (cgroup_base, controllers, unenforceable) = match &node.base {
            Ok(base) => {
                let here =
                    base.available_controllers().map_err(|error| status::unavailable(&error))?;
                let missing = MISSABLE.iter().filter(|name| !here.iter().any(|have| have == *name));
                let missing = missing
                    .map(|name| format!("{name}: no such controller in {}", base.path().display()));
                (Some(base.path().display().to_string()), here.clone(), missing.collect())
            }
            Err(error) => (None, Vec::new(), vec![format!("any limit: {}", chain(error))]),
        };
        Ok(Response::new(GetNodeResponse {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            hostname: request::hostname(),
            kernel: crate::sys::process::kernel_release(),
            root: node.root.path().display().to_string(),
            cgroup_base,
            controllers,
            unenforceable,
            task_counts,
            start_time: Some(node.started),
            pid: std::process::id() as i32,
        }))
    }
}

/// Controllers that limits need.
const MISSABLE: [&str; 6] = ["cpu", "memory", "io", "pids", "cpuset", "hugetlb"];
