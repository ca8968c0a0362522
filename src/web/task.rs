//! `/task/ID`: all about a task. `/rawtask/ID`: the task as it was accepted.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::{Path, State};
use axum::http::HeaderMap;
use axum::response::{Html, IntoResponse, Response};
use maud::{Markup, html};

use super::answer::Failure;
use super::caller::Caller;
use super::chart::{self, Limits};
use super::dag;
use super::layout::{self, Layout, ago, fact, facts, lasted, span, text, time};
use super::live::{self, Page, Rendered};
use super::logs::readable;
use super::{Web, json, url};
use crate::daemon::inside::News;
use crate::daemon::peer::Peer;
use crate::proto::observer_service_server::ObserverService;
use crate::proto::{
    DiskUsage, ExplainTaskRequest, GetTaskRequest, GetUsageHistoryRequest, GetUsageRequest, Launch,
    ProcessUsage, ProcessView, Resources as LimitsTold, RunView, Sample, TaskExplanation,
    TaskState, TaskUsage, TaskView, UsagePoint,
};
use crate::task::written::{TaskFile, assignments};
use crate::task::{Resources, TaskSpec};
use crate::words;

/// How often a page of something that lives tells what it uses, where nothing else happens.
const USAGE: Duration = Duration::from_secs(2);
/// Points of a chart: as many as can be told apart.
const POINTS: u32 = 300;

/// A task as it was accepted, and what that means.
pub(super) struct Accepted {
    pub(super) launch: Launch,
    pub(super) spec: TaskSpec,
}

/// All that is known of a task.
pub(super) struct Known {
    pub(super) view: TaskView,
    /// Absent of one that cannot be read.
    pub(super) accepted: Option<Arc<Accepted>>,
    /// Why each process runs, or does not; empty where it cannot be told now.
    explanation: TaskExplanation,
    /// Absent where it cannot be told now.
    pub(super) usage: Option<TaskUsage>,
}

/// What a page keeps of a task from one look to the next: what it was accepted as does not change, and what has become of it does so
/// only when something happens.
#[derive(Default)]
pub(super) struct Kept {
    accepted: Option<Arc<Accepted>>,
    view: Option<TaskView>,
    explanation: Option<TaskExplanation>,
}

impl Kept {
    /// Something may have happened to the task.
    pub(super) fn forget(&mut self) {
        (self.view, self.explanation) = (None, None);
    }

    /// Waits until there is something to tell of the task `id`: something has happened, or it is time to tell what it uses. `false`: it is
    /// not there any more, or the daemon stops.
    pub(super) async fn changed(&mut self, news: &mut News, peer: &Peer, id: &str) -> bool {
        tokio::select! {
            is_there = news.of(peer, id) => is_there,
            () = tokio::time::sleep(USAGE) => true,
        }
    }
}

impl Known {
    /// Asks for what is not kept.
    pub(super) async fn ask(
        web: &Web,
        peer: &Peer,
        id: &str,
        kept: &mut Kept,
    ) -> Result<Self, Failure> {
        let view = match kept.view.take() {
            Some(view) => view,
            None => {
                let asked = GetTaskRequest { task_id: id.to_owned() };
                let told = web.observe.get_task(Web::call(peer, asked)).await?;
                told.into_inner().task.unwrap_or_default()
            }
        };
        kept.view = Some(view.clone());
        if kept.accepted.is_none() {
            kept.accepted = accept(web, peer, id).await.ok().map(Arc::new);
        }
        let explanation = match kept.explanation.take().filter(is_of_any_time) {
            Some(explanation) => explanation,
            None => explain(web, peer, id).await,
        };
        kept.explanation = Some(explanation.clone());
        let asked = GetUsageRequest { task_id: id.to_owned(), time: None, by_process: true };
        let usage = web.observe.get_usage(Web::call(peer, asked)).await.ok();
        let usage = usage.and_then(|usage| usage.into_inner().usage);
        Ok(Self { view, accepted: kept.accepted.clone(), explanation, usage })
    }

    pub(super) fn is_over(&self) -> bool {
        use TaskState as S;
        matches!(self.view.state(), S::Success | S::Failed | S::Killed | S::Lost | S::Corrupt)
    }

    /// Why a process runs, or does not.
    pub(super) fn why(&self, process: &str) -> Option<&str> {
        let explained = self.explanation.processes.iter().find(|of| of.process == process);
        explained.map(|of| of.text.as_str())
    }

    /// What a process uses.
    pub(super) fn usage_of(&self, process: &str) -> Option<&ProcessUsage> {
        self.usage.as_ref()?.processes.iter().find(|of| of.name == process)
    }
}

async fn accept(web: &Web, peer: &Peer, id: &str) -> Result<Accepted, Failure> {
    let launch = web.observe.accepted(peer, id).await?;
    let spec = TaskSpec::from_proto(&launch.task.clone().unwrap_or_default())
        .map_err(|_| Failure::not_found("the task as it was accepted is not valid any more"))?;
    Ok(Accepted { launch, spec })
}

/// Whether the clock alone changes nothing of it.
fn is_of_any_time(explanation: &TaskExplanation) -> bool {
    explanation.processes.iter().all(|of| of.left.is_none())
}

async fn explain(web: &Web, peer: &Peer, id: &str) -> TaskExplanation {
    let asked = ExplainTaskRequest { task_id: id.to_owned() };
    let told = web.observe.explain_task(Web::call(peer, asked)).await;
    told.ok().and_then(|told| told.into_inner().explanation).unwrap_or_default()
}

/// What a task, or a process, used of late; nothing where nothing is kept.
pub(super) async fn history(
    web: &Web,
    peer: &Peer,
    id: &str,
    process: Option<&str>,
) -> Vec<UsagePoint> {
    let asked = GetUsageHistoryRequest {
        task_id: id.to_owned(),
        process: process.map(str::to_owned),
        max_points: POINTS,
        ..GetUsageHistoryRequest::default()
    };
    let history = web.observe.get_usage_history(Web::call(peer, asked)).await;
    history.map(|history| history.into_inner().points).unwrap_or_default()
}

/// What charts show as the most that there may be.
pub(super) fn limits(resources: Option<&LimitsTold>) -> Limits {
    let Some(of) = resources else { return Limits::default() };
    let cpus = of.cpu_limit.as_ref().and_then(|limit| limit.cpus);
    Limits { cpus, memory: of.ram_bytes.map(|bytes| bytes as f64) }
}

/// Limits as they are written.
pub(super) fn limits_told(resources: Option<&LimitsTold>) -> Markup {
    let told = resources.and_then(|of| Resources::from_proto(of, "resources").ok());
    let told = told.map(|of| assignments(&of)).unwrap_or_default();
    html! { @for limit in told { code { (text(&limit)) } " " } }
}

/// What is used now, in facts; `rate` are the CPUs.
fn sample(sample: &Sample, rate: Option<f64>) -> Markup {
    let cpu = sample.cpu.as_ref();
    let cpu_time = cpu.and_then(|cpu| Duration::try_from(cpu.time?).ok()).map(span);
    let memory = sample.memory.as_ref();
    let bytes = |count: Option<u64>| count.map(words::bytes).unwrap_or_default();
    let io = sample.io.as_ref();
    let pids = sample.pids.as_ref().and_then(|pids| pids.current).map(|count| count.to_string());
    let rate = rate.map(|rate| format!("{rate:.2} CPUs"));
    facts(&[
        ("CPU now", fact(rate.unwrap_or_default())),
        ("CPU time", fact(cpu_time.unwrap_or_default())),
        ("Memory", fact(bytes(memory.and_then(|memory| memory.current_bytes)))),
        ("Working set", fact(bytes(memory.and_then(|memory| memory.working_set_bytes)))),
        ("Peak", fact(bytes(memory.and_then(|memory| memory.peak_bytes)))),
        ("Read", fact(bytes(io.and_then(|io| io.read_bytes)))),
        ("Written", fact(bytes(io.and_then(|io| io.write_bytes)))),
        ("Processes and threads", fact(pids.unwrap_or_default())),
    ])
}

/// What a sandbox takes.
fn disk(disk: &DiskUsage) -> Markup {
    let files = disk.inodes.map(|inodes| format!(", {inodes} files and directories"));
    let told = format!("{}{}", words::bytes(disk.bytes), files.unwrap_or_default());
    let incomplete = disk.incomplete.as_ref().map(|what| format!("at least: {what}"));
    facts(&[(
        "Disk",
        html! { (told) @if let Some(what) = incomplete { span.sub { (text(&what)) } } },
    )])
}

/// What is used, and was.
pub(super) fn usage(
    now: Option<&Sample>,
    on_disk: Option<&DiskUsage>,
    recorded: Option<String>,
    (points, limits): (&[UsagePoint], Limits),
) -> Markup {
    // That of the history is of a whole interval, and not of the moment since somebody looked.
    let rate = points.last().and_then(|last| last.rates.as_ref()?.cpus);
    let rate = rate.or_else(|| now?.cpu.as_ref()?.rate);
    html! {
        section.usage {
            h2 { "Usage" }
            @if let Some(now) = now { (sample(now, rate)) }
            @if let Some(on_disk) = on_disk { (disk(on_disk)) }
            @if let Some(recorded) = recorded.filter(|recorded| !recorded.is_empty()) {
                p { @if now.is_some() { "Runs that have ended used " } @else { "It used " } (recorded) "." }
            }
            (chart::charts(points, limits))
        }
    }
}

/// Links to the logs of a run.
pub(super) fn logs(id: &str, process: &str, run: u32) -> Markup {
    let run = run.to_string();
    html! {
        span.logs {
            @for stream in ["stdout", "stderr"] {
                a href=(url::of("logs", &[id, process, &run, stream])) aria-label={ (stream) " of " (text(process)) " run " (run) } { (stream) }
                " "
            }
        }
    }
}

/// Why a run ended, or what is wrong with it.
pub(super) fn why(run: &RunView) -> Option<String> {
    let stuck = run.unkillable.as_ref().filter(|_| run.end_time.is_none()).map(words::unkillable);
    stuck.or_else(|| words::ending(run))
}

struct Task {
    id: String,
    kept: Kept,
}

/// `GET /task/ID`.
pub(super) async fn page(
    State(web): State<Web>,
    Caller(peer): Caller,
    Path(id): Path<String>,
    headers: HeaderMap,
) -> Result<Response, Failure> {
    live::answer(web, peer, &headers, Task { id, kept: Kept::default() }).await
}

impl Page for Task {
    async fn render(&mut self, web: &Web, peer: &Peer) -> Result<Rendered, Failure> {
        let known = Known::ask(web, peer, &self.id, &mut self.kept).await?;
        let points = history(web, peer, &self.id, None).await;
        Ok(Rendered {
            title: self.id.clone(),
            above: Vec::new(),
            here: Some(self.id.clone()),
            fixed: head(&self.id),
            changing: changing(&known, &points),
            is_final: known.is_over(),
        })
    }

    fn forget(&mut self) {
        self.kept.forget();
    }

    async fn changed(&mut self, news: &mut News, peer: &Peer) -> bool {
        self.kept.changed(news, peer, &self.id).await
    }
}

fn head(id: &str) -> Markup {
    html! {
        h1 { (text(id)) }
        nav.actions aria-label="Of this task" {
            a href=(url::of("browse", &[id])) { "Files" }
            a href=(url::of("rawtask", &[id])) { "Task file" }
            a href=(url::of("j/task", &[id])) { "JSON" }
        }
    }
}

fn changing(known: &Known, points: &[UsagePoint]) -> Markup {
    let view = &known.view;
    let usage_now = known.usage.as_ref();
    let recorded = view.usage.as_ref().map(words::usage);
    html! {
        div.state-line role="status" {
            (layout::task_state(view.state()))
            @if view.paused_since.is_some() { span.badge.paused { "‖ PAUSED" } }
            @if known.explanation.notes.is_empty() {
                @if let Some(detail) = &view.detail { span.why { (text(detail)) } }
            }
            @for note in &known.explanation.notes { span.why { (text(note)) } }
        }
        (warnings(view))
        (about(view))
        @if let Some(accepted) = &known.accepted {
            section {
                h2 { "Order" }
                (drawing(&accepted.spec, view))
            }
        }
        section {
            h2 { "Processes" }
            (processes(known))
        }
        (usage(usage_now.and_then(|usage| usage.sample.as_ref()), usage_now.and_then(|usage| usage.disk.as_ref()), recorded, (points, limits(view.resources.as_ref()))))
        section {
            h2 { "History" }
            ol.timeline {
                @for entry in &view.state_history {
                    li { (layout::task_state(entry.state())) " " @if let Some(at) = entry.time { (time(at)) } }
                }
            }
        }
    }
}

/// What somebody should look at.
fn warnings(view: &TaskView) -> Markup {
    html! {
        @if !(view.lost_limits.is_empty() && view.unenforced.is_empty()) {
            ul.warnings {
                @for limit in &view.lost_limits { li { "Not in force any more: " (text(limit)) } }
                @for limit in &view.unenforced { li { "Not enforced here: " code { (text(limit)) } } }
            }
        }
    }
}

fn about(view: &TaskView) -> Markup {
    let began = view.state_history.first().and_then(|entry| entry.time);
    let last = view.state_history.last().filter(|entry| is_terminal(entry.state()));
    let ended = last.and_then(|entry| entry.time);
    let runner = view.runner_pid.map(|pid| format!("pid {pid}")).unwrap_or_default();
    let dropped =
        view.dropped_bytes.map(|bytes| format!("{bytes} bytes of torn records were cut off"));
    facts(&[
        ("Name", fact(&view.name)),
        ("User", fact(&view.user)),
        ("Began", html! { @if let Some(at) = began { (time(at)) " (" (ago(at)) ")" } }),
        ("Ended", html! { @if let Some(at) = ended { (time(at)) } }),
        ("Lasted", fact(lasted(began, ended).unwrap_or_default())),
        ("Runner", fact(runner)),
        ("Containment", fact(&view.containment)),
        (
            "Ports",
            html! { @for (name, port) in &view.ports { code { (text(name)) "=" (port) } " " } },
        ),
        ("Limits", limits_told(view.resources.as_ref())),
        ("Rounded", html! { @for line in &view.rounded { span.sub { (text(line)) } } }),
        (
            "Labels",
            html! {
                @for (name, value) in &view.labels {
                    a.label href=(url::with("/", &[("label", &format!("{name}={value}"))])) {
                        (text(name)) @if !value.is_empty() { "=" (text(value)) }
                    } " "
                }
            },
        ),
        ("Sandbox", html! { @if !view.sandbox.is_empty() { code { (text(&view.sandbox)) } } }),
        ("Logs", html! { @if !view.log_dir.is_empty() { code { (text(&view.log_dir)) } } }),
        ("Checkpoint", fact(dropped.unwrap_or_default())),
    ])
}

fn is_terminal(state: TaskState) -> bool {
    use TaskState as S;
    matches!(state, S::Success | S::Failed | S::Killed | S::Lost)
}

fn drawing(spec: &TaskSpec, view: &TaskView) -> Markup {
    fn node(of: &ProcessView) -> dag::Node<'_> {
        dag::Node { name: &of.name, state: of.state.map(|_| of.state()), runs: of.runs.len() }
    }
    let nodes: Vec<_> = view.processes.iter().map(node).collect();
    dag::drawing(spec, &nodes, |name| url::of("process", &[&view.task_id, name]))
}

fn processes(known: &Known) -> Markup {
    let head = ["Process", "State", "Runs", "Last run", "CPU", "Memory", "Logs"];
    let rows = html! { @for process in &known.view.processes { (row(known, process)) } };
    layout::table("Processes", &head, &rows)
}

/// What a process is, in words.
pub(super) fn traits(process: &ProcessView) -> Markup {
    let traits = [
        (process.daemon, "daemon"),
        (process.ephemeral, "ephemeral"),
        (process.r#final, "finalizer"),
    ];
    html! { @for (_, name) in traits.iter().filter(|(is, _)| *is) { span.tag { (name) } " " } }
}

fn row(known: &Known, process: &ProcessView) -> Markup {
    let id = &known.view.task_id;
    let last = process.runs.last();
    let used = known.usage_of(&process.name);
    let now = used.and_then(|used| used.sample.as_ref());
    let rate = now.and_then(|now| now.cpu.as_ref()?.rate).map(|rate| format!("{rate:.2}"));
    let time = now.and_then(|now| Duration::try_from(now.cpu.as_ref()?.time?).ok());
    let recorded = used.and_then(|used| used.recorded.as_ref());
    let time = time.or_else(|| words::cpu(recorded?)).map(span);
    let memory = now.and_then(|now| now.memory.as_ref()?.current_bytes).map(words::bytes);
    let peak = recorded.and_then(|recorded| recorded.memory_peak_bytes).map(words::bytes);
    html! {
        tr {
            th scope="row" {
                a href=(url::of("process", &[id, &process.name])) { (text(&process.name)) }
                span.sub { (traits(process)) }
            }
            td {
                (layout::process_state(process.state.map(|_| process.state())))
                @if let Some(why) = known.why(&process.name).or(process.detail.as_deref()) { span.sub.why { (text(why)) } }
            }
            td.number { (process.runs.len()) }
            td.when {
                @if let Some(at) = last.and_then(|run| run.start_time) { (ago(at)) }
                @if let Some(lasted) = last.and_then(|run| lasted(run.start_time, run.end_time)) { span.sub { "for " (lasted) } }
            }
            td.number { (time.unwrap_or_default()) @if let Some(rate) = rate { span.sub { (rate) " CPUs" } } }
            td.number {
                @if let Some(memory) = memory { (memory) }
                @else if let Some(peak) = peak { span.sub { "peak " (peak) } }
            }
            td { @if let Some(run) = last { (logs(id, &process.name, run.run)) } }
        }
    }
}

/// `GET /rawtask/ID`: the task file with everything filled in, and, for programs that ask for it, as JSON.
///
/// # Errors
///
/// [`Failure`].
pub(super) async fn raw(
    State(web): State<Web>,
    Caller(peer): Caller,
    Path(id): Path<String>,
    headers: HeaderMap,
) -> Result<Response, Failure> {
    let Accepted { launch, spec } = accept(&web, &peer, &id).await?;
    let task = launch.task.unwrap_or_default();
    let file = TaskFile::new(&spec, &task.constraints);
    if json::is_asked_for(&headers) {
        return Ok(json::answer(&file));
    }
    let written = serde_json::to_string_pretty(&file).unwrap_or_default();
    let above = [(id.clone(), url::of("task", &[&id]))];
    let title = format!("Task file of {id}");
    let layout = Layout { title: &title, above: &above, here: Some("Task file") };
    let page = layout.page(&html! {
        h1 { "Task file" }
        p { "The task as it was accepted, with every template and default filled in." }
        pre.code tabindex="0" { (readable(written.as_bytes())) }
    });
    Ok(Html(page.into_string()).into_response())
}
