//! `/process/ID/NAME`: a process, with its runs.

use axum::extract::{Path, State};
use axum::http::HeaderMap;
use axum::response::Response;
use maud::{Markup, html};

use super::answer::Failure;
use super::caller::Caller;
use super::layout::{self, fact, facts, lasted, span, text, time};
use super::live::{self, Page, Rendered};
use super::logs::readable;
use super::params::Params;
use super::task::{Kept, Known, history, limits, limits_told, logs, traits, usage, why};
use super::{Web, url};
use crate::daemon::inside::News;
use crate::daemon::peer::Peer;
use crate::proto::{ProcessView, RunView, UsagePoint};
use crate::task::ProcessSpec;
use crate::words;

/// Runs on a page.
const PAGE: usize = 50;

struct Process {
    id: String,
    name: String,
    /// Runs before this one; `None`: the last ones.
    before: Option<u32>,
    kept: Kept,
}

/// `GET /process/ID/NAME`.
pub(super) async fn page(
    State(web): State<Web>,
    Caller(peer): Caller,
    Path((id, name)): Path<(String, String)>,
    headers: HeaderMap,
    params: Params,
) -> Result<Response, Failure> {
    let before = params.number("before")?;
    live::answer(web, peer, &headers, Process { id, name, before, kept: Kept::default() }).await
}

impl Page for Process {
    async fn render(&mut self, web: &Web, peer: &Peer) -> Result<Rendered, Failure> {
        let known = Known::ask(web, peer, &self.id, &mut self.kept).await?;
        let process = known.view.processes.iter().find(|of| of.name == self.name);
        let process = process.ok_or_else(|| {
            Failure::not_found(format!("task {} has no process {:?}", self.id, self.name))
        })?;
        let points = history(web, peer, &self.id, Some(&self.name)).await;
        Ok(Rendered {
            title: format!("{} of {}", self.name, self.id),
            above: vec![(self.id.clone(), url::of("task", &[&self.id]))],
            here: Some(self.name.clone()),
            fixed: html! { h1 { (text(&self.name)) } },
            changing: self.changing(&known, process, &points),
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

impl Process {
    fn changing(&self, known: &Known, process: &ProcessView, points: &[UsagePoint]) -> Markup {
        let specs = known.accepted.as_ref().map(|accepted| accepted.spec.processes.as_slice());
        let spec = specs.and_then(|specs| specs.iter().find(|of| of.name.as_str() == self.name));
        let used = known.usage_of(&self.name);
        let now = used.and_then(|used| used.sample.as_ref());
        let recorded = used.and_then(|used| used.recorded.as_ref()).map(words::usage);
        let resources = process.resources.as_deref();
        html! {
            div.state-line role="status" {
                (layout::process_state(process.state.map(|_| process.state())))
                (traits(process))
                @if let Some(why) = known.why(&self.name).or(process.detail.as_deref()) { span.why { (text(why)) } }
            }
            @if let Some(spec) = spec { (about(spec, process)) }
            section { h2 { "Runs" } (self.runs(process)) }
            (usage(now, None, recorded, (points, limits(resources))))
        }
    }

    fn runs(&self, process: &ProcessView) -> Markup {
        let end = self.before.map_or(process.runs.len(), |before| before as usize);
        let end = end.min(process.runs.len());
        let begin = end.saturating_sub(PAGE);
        let head = ["Run", "State", "Began", "Lasted", "Used", "Logs"];
        let rows = html! { @for run in process.runs[begin..end].iter().rev() { (self.row(run)) } };
        let url = url::of("process", &[&self.id, &self.name]);
        html! {
            @if process.runs.is_empty() { p.empty { "It has not been run." } } @else { (layout::table("Runs", &head, &rows)) }
            @if begin > 0 || self.before.is_some() {
                nav.pager aria-label="Pages of runs" {
                    @if self.before.is_some() { a href=(url) { "Newest" } }
                    @if begin > 0 { a rel="next" href=(url::with(&url, &[("before", &begin.to_string())])) { "Older" } }
                }
            }
        }
    }

    fn row(&self, run: &RunView) -> Markup {
        let used = run.usage.as_ref().map(words::usage);
        html! {
            tr {
                th scope="row" { (run.run) @if let Some(pid) = run.pid { span.sub { "pid " (pid) } } }
                td {
                    (layout::process_state(Some(run.state())))
                    @if let Some(why) = why(run) { span.sub.why { (text(&why)) } }
                }
                td { @if let Some(at) = run.start_time { (time(at)) } }
                td { (lasted(run.start_time, run.end_time).unwrap_or_default()) }
                td { (used.unwrap_or_default()) }
                td { (logs(&self.id, &self.name, run.run)) }
            }
        }
    }
}

fn about(spec: &ProcessSpec, process: &ProcessView) -> Markup {
    let failures = match spec.max_failures {
        0 => "any number".to_owned(),
        most => most.to_string(),
    };
    html! {
        section {
            h2 { "Command line" }
            pre.code tabindex="0" { (readable(spec.cmdline.as_bytes())) }
        }
        (facts(&[
            ("Failures until it has failed", fact(failures)),
            ("Least time between runs", fact(span(spec.min_duration))),
            ("Limits of a run", limits_told(process.resources.as_deref())),
        ]))
    }
}
