//! `/`: the tasks that the caller sees, by state, page by page.

use std::cmp::Reverse;
use std::collections::BTreeMap;

use axum::extract::State;
use axum::http::HeaderMap;
use axum::response::Response;
use maud::{Markup, html};

use super::answer::Failure;
use super::caller::Caller;
use super::layout::{self, ago, lasted, text};
use super::live::{self, Page, Rendered};
use super::params::Params;
use super::{Web, url};
use crate::daemon::inside::{Newest, News, Standing};
use crate::daemon::peer::Peer;
use crate::proto::{TaskFilter, TaskState, TaskSummary};
use crate::words;

/// Tasks on a page if nothing is said.
const PAGE: usize = 50;
/// Most tasks on a page.
const MAX_PAGE: usize = 500;

/// Which states go together, by the name that stands in addresses.
pub(super) const GROUPS: [(&str, &str, &[TaskState]); 7] = {
    use TaskState as S;
    [
        ("active", "Active", &[S::Active, S::Cleaning, S::Finalizing]),
        ("finished", "Finished", &[S::Success, S::Failed, S::Killed, S::Lost]),
        ("success", "Success", &[S::Success]),
        ("failed", "Failed", &[S::Failed]),
        ("killed", "Killed", &[S::Killed]),
        ("lost", "Lost", &[S::Lost]),
        ("corrupt", "Corrupt", &[S::Corrupt]),
    ]
};

/// Which tasks are looked at.
struct Tasks {
    /// A regular expression, found anywhere in the id.
    search: Option<String>,
    /// A label that they have, with this value.
    label: Option<(String, String)>,
    /// One of [`GROUPS`]; `None`: all, those that live and those that have ended apart.
    group: Option<usize>,
    after: Option<Standing>,
    size: usize,
}

/// `GET /`.
pub(super) async fn page(
    State(web): State<Web>,
    Caller(peer): Caller,
    headers: HeaderMap,
    params: Params,
) -> Result<Response, Failure> {
    live::answer(web, peer, &headers, Tasks::new(&params)?).await
}

/// The states that a name in an address stands for.
pub(super) fn group(name: &str) -> Option<usize> {
    GROUPS.iter().position(|(of, ..)| *of == name)
}

/// Where to go on, as it stands in addresses.
pub(super) fn token(standing: &Standing) -> String {
    format!("{}.{}", standing.when.0, standing.id)
}

/// The place that a token stands for.
///
/// # Errors
///
/// It is none.
pub(super) fn standing(token: &str) -> Result<Standing, Failure> {
    let parse = || {
        let (when, id) = token.split_once('.')?;
        Some(Standing { when: Reverse(when.parse().ok()?), id: id.to_owned() })
    };
    parse().ok_or_else(|| Failure::bad("page_token: expected one of a page before"))
}

impl Tasks {
    fn new(params: &Params) -> Result<Self, Failure> {
        let label = params.get("label").map(|label| {
            let (name, value) = label.split_once('=').unwrap_or((label, ""));
            (name.trim().to_owned(), value.trim().to_owned())
        });
        let group = |name: &str| {
            group(name).ok_or_else(|| {
                let names = GROUPS.map(|(name, ..)| name).join(", ");
                Failure::bad(format!("state: {name:.40?}; expected one of {names}"))
            })
        };
        let size = params.number("page_size")?.unwrap_or(PAGE);
        if !(1..=MAX_PAGE).contains(&size) {
            return Err(Failure::bad(format!("page_size: {size}; expected 1 to {MAX_PAGE}")));
        }
        Ok(Self {
            search: params.get("q").map(|search| search.trim().to_owned()),
            label,
            group: params.get("state").map(group).transpose()?,
            after: params.get("page_token").map(standing).transpose()?,
            size,
        })
    }

    async fn newest(
        &self,
        web: &Web,
        peer: &Peer,
        states: &[TaskState],
    ) -> Result<Newest, Failure> {
        let filter = TaskFilter {
            states: states.iter().map(|&state| state.into()).collect(),
            labels: self.label.iter().cloned().collect(),
            pattern: self.search.as_ref().map(|search| format!(".*(?:{search}).*")),
        };
        Ok(web.observe.newest(peer, filter, self.after.as_ref(), self.size).await?)
    }

    /// The address of these tasks with another group, or further on.
    fn url(&self, group: Option<usize>, after: Option<&Standing>) -> String {
        let token = after.map(token);
        let label = self.label.as_ref().map(|(name, value)| format!("{name}={value}"));
        let size = (self.size != PAGE).then(|| self.size.to_string());
        let params = [
            ("state", group.map(|group| GROUPS[group].0)),
            ("q", self.search.as_deref()),
            ("label", label.as_deref()),
            ("page_size", size.as_deref()),
            ("page_token", token.as_deref()),
        ];
        let params: Vec<_> =
            params.into_iter().filter_map(|(name, value)| Some((name, value?))).collect();
        url::with("/", &params)
    }

    fn form(&self) -> Markup {
        let label = self.label.as_ref().map(|(name, value)| format!("{name}={value}"));
        html! {
            form.search role="search" action="/" method="get" {
                @if let Some(group) = self.group {
                    input type="hidden" name="state" value=(GROUPS[group].0);
                }
                label { span { "Id" }
                    input type="search" name="q" value=[self.search.as_deref()] placeholder="part of it, or a pattern"
                        autocomplete="off" spellcheck="false";
                }
                label { span { "Label" }
                    input type="search" name="label" value=[label] placeholder="name=value" autocomplete="off" spellcheck="false";
                }
                button type="submit" { "Search" }
            }
        }
    }

    /// The groups, with how many tasks are in each.
    fn tabs(&self, counts: &BTreeMap<TaskState, u64>) -> Markup {
        let count = |states: &[TaskState]| -> u64 {
            states.iter().filter_map(|state| counts.get(state)).sum()
        };
        let tab = |group: Option<usize>, name: &str, count: u64| {
            let is_here = (self.group == group).then_some("page");
            html! {
                li { a href=(self.url(group, None)) aria-current=[is_here] { (name) " " span.count { (count) } } }
            }
        };
        html! {
            nav.tabs aria-label="States" {
                ul {
                    (tab(None, "All", counts.values().sum()))
                    @for (at, (_, name, states)) in GROUPS.iter().enumerate() {
                        @let count = count(states);
                        @if at < 2 || count > 0 || self.group == Some(at) { (tab(Some(at), name, count)) }
                    }
                }
            }
        }
    }

    fn table(&self, name: &str, newest: &Newest, group: Option<usize>) -> Markup {
        let head = ["Task", "State", "User", "Began", "Lasted", "Labels"];
        let rows = html! { @for task in &newest.tasks { (self.row(task)) } };
        html! {
            @if newest.tasks.is_empty() {
                p.empty { "None." }
            } @else {
                (layout::table(name, &head, &rows))
            }
            @if self.after.is_some() || newest.next.is_some() {
                nav.pager aria-label={ "Pages of " (name) } {
                    @if self.after.is_some() { a href=(self.url(group, None)) { "Newest" } }
                    @if let Some(next) = &newest.next {
                        a rel="next" href=(self.url(group, Some(next))) { "Older" }
                    }
                }
            }
        }
    }

    fn row(&self, task: &TaskSummary) -> Markup {
        let lasted = task.end_time.and_then(|end| lasted(task.accept_time, Some(end)));
        html! {
            tr id={ "task-" (task.task_id) } {
                th scope="row" {
                    (layout::task_link(&task.task_id))
                    @if task.name != task.task_id { span.sub { (text(&task.name)) } }
                }
                td {
                    (layout::task_state(task.state()))
                    @if task.is_paused { " " span.badge.paused { "‖ PAUSED" } }
                    @if let Some(detail) = &task.detail { span.sub.why { (text(detail)) } }
                }
                td { (text(&task.user)) }
                td { @if let Some(time) = task.accept_time { (ago(time)) } }
                td { @if let Some(lasted) = lasted { (lasted) } @else { span.quiet { "–" } } }
                td.labels { @for (name, value) in &task.labels { (self.label(name, value)) } }
            }
        }
    }

    fn label(&self, name: &str, value: &str) -> Markup {
        let url = url::with("/", &[("label", &format!("{name}={value}"))]);
        html! { a.label href=(url) { (text(name)) @if !value.is_empty() { "=" (text(value)) } } " " }
    }
}

/// What there is, in a sentence that is read out when it changes.
fn summary(counts: &BTreeMap<TaskState, u64>) -> String {
    let told = counts.iter().map(|(&state, count)| format!("{count} {}", words::task_state(state)));
    match told.collect::<Vec<_>>() {
        told if told.is_empty() => "No tasks.".to_owned(),
        told => told.join(", "),
    }
}

impl Page for Tasks {
    async fn render(&mut self, web: &Web, peer: &Peer) -> Result<Rendered, Failure> {
        let changing = match self.group {
            Some(group) => {
                let (_, name, states) = GROUPS[group];
                let newest = self.newest(web, peer, states).await?;
                html! {
                    (self.tabs(&newest.counts))
                    p.hidden role="status" { (summary(&newest.counts)) }
                    h2.hidden { (name) }
                    (self.table(name, &newest, Some(group)))
                }
            }
            None => {
                let [active, finished] = [0, 1].map(|group: usize| GROUPS[group]);
                // What cannot be read is nobody's end, and to be seen at once.
                let live = [active.2, &[TaskState::Corrupt]].concat();
                let live = self.newest(web, peer, &live).await?;
                let ended = self.newest(web, peer, finished.2).await?;
                html! {
                    (self.tabs(&live.counts))
                    p.hidden role="status" { (summary(&live.counts)) }
                    section { h2 { (active.1) } (self.table(active.1, &live, Some(0))) }
                    section { h2 { (finished.1) } (self.table(finished.1, &ended, Some(1))) }
                }
            }
        };
        Ok(Rendered {
            title: "Tasks".to_owned(),
            above: Vec::new(),
            here: None,
            fixed: html! { h1 { "Tasks" } (self.form()) },
            changing,
            is_final: false,
        })
    }

    async fn changed(&mut self, news: &mut News, _: &Peer) -> bool {
        news.any().await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_says_where_to_go_on_whatever_the_id_is() {
        for (when, id) in [(0, "a"), (-5, "a.b-c"), (i64::MAX, "é~%.x")] {
            let at = Standing { when: Reverse(when), id: id.to_owned() };
            assert_eq!(standing(&token(&at)).unwrap(), at);
        }
        for wrong in ["", "5", "x.a", "99999999999999999999.a"] {
            assert_eq!(standing(wrong).unwrap_err().status, 400, "{wrong}");
        }
    }
}
