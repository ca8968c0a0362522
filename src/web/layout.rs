//! What all pages look like: their frame, and the small things that come again and again.

use std::borrow::Cow;
use std::time::Duration;

use maud::{DOCTYPE, Markup, html};

use super::url;
use crate::escape::escape;
use crate::proto::{ProcessState, TaskState, Timestamp};
use crate::request::hostname;
use crate::sys::clock;
use crate::words;

/// The frame of a page.
#[derive(Debug, Default)]
pub(super) struct Layout<'a> {
    /// What it is of.
    pub(super) title: &'a str,
    /// The pages above it: what each is called, and its address.
    pub(super) above: &'a [(String, String)],
    /// What it is called there; absent of the first page.
    pub(super) here: Option<&'a str>,
}

impl Layout<'_> {
    /// The whole page, around what is in it.
    pub(super) fn page(&self, content: &Markup) -> Markup {
        let host = hostname();
        html! {
            (DOCTYPE)
            html lang="en" {
                head {
                    meta charset="utf-8";
                    meta name="viewport" content="width=device-width, initial-scale=1";
                    meta name="color-scheme" content="light dark";
                    title { (text(self.title)) " · dewar on " (text(&host)) }
                    link rel="icon" href="/assets/icon.svg" type="image/svg+xml";
                    link rel="stylesheet" href="/assets/dewar.css";
                    script src="/assets/dewar.js" defer {}
                }
                body {
                    a.skip href="#main" { "Skip to content" }
                    header.top {
                        a.brand href="/" {
                            span.mark aria-hidden="true" {}
                            "dewar"
                        }
                        span.host { (text(&host)) }
                        span #connection.connection role="status" {}
                    }
                    @if let Some(here) = self.here {
                        nav.crumbs aria-label="Breadcrumb" {
                            ol {
                                li { a href="/" { "Tasks" } }
                                @for (name, url) in self.above {
                                    li { a href=(url) { (text(name)) } }
                                }
                                li aria-current="page" { (text(here)) }
                            }
                        }
                    }
                    main #main { (content) }
                    footer {
                        "dewar " (env!("CARGO_PKG_VERSION")) " · nothing can be changed here: use "
                        code { "dewar" } " or gRPC"
                    }
                }
            }
        }
    }
}

/// Text that others have chosen: what acts or hides is made visible. Markup in it is escaped where it is put in.
pub(super) fn text(text: &str) -> Cow<'_, str> {
    escape(text)
}

/// How a state is shown: a class of the style sheet, and a sign, since colours are not for everybody.
fn look_of_task(state: TaskState) -> (&'static str, &'static str) {
    use TaskState as S;
    match state {
        S::Active => ("live", "▶"),
        S::Cleaning | S::Finalizing => ("ending", "◐"),
        S::Success => ("good", "✓"),
        S::Failed | S::Corrupt => ("bad", "✕"),
        S::Killed => ("stopped", "■"),
        S::Lost => ("stopped", "?"),
        S::Unspecified => ("none", "·"),
    }
}

/// The same of a process; `None`: it has not begun.
pub(super) fn look_of_process(state: Option<ProcessState>) -> (&'static str, &'static str) {
    use ProcessState as S;
    match state {
        Some(S::Running) => ("live", "▶"),
        Some(S::Waiting | S::Forked) => ("ending", "◐"),
        Some(S::Success) => ("good", "✓"),
        Some(S::Failed) => ("bad", "✕"),
        Some(S::Killed) => ("stopped", "■"),
        Some(S::Lost) => ("stopped", "?"),
        Some(S::Unspecified) | None => ("none", "·"),
    }
}

fn badge((class, sign): (&str, &str), name: &str) -> Markup {
    html! {
        span class={ "badge " (class) } {
            span aria-hidden="true" { (sign) } " " (name)
        }
    }
}

/// The state of a task.
pub(super) fn task_state(state: TaskState) -> Markup {
    badge(look_of_task(state), words::task_state(state))
}

/// The state of a process, or of a run; `None`: it has not begun.
pub(super) fn process_state(state: Option<ProcessState>) -> Markup {
    badge(look_of_process(state), process_word(state))
}

/// The same as a word.
pub(super) fn process_word(state: Option<ProcessState>) -> &'static str {
    state.map_or("NOT BEGUN", words::process_state)
}

/// An instant, to the second.
pub(super) fn time(at: Timestamp) -> Markup {
    let exact = at.to_string();
    html! { time datetime=(exact) title=(exact) { (seconds(&exact)) } }
}

/// `2026-08-01 09:30:00` of an instant that RFC 3339 writes.
fn seconds(exact: &str) -> String {
    exact.get(..19).unwrap_or(exact).replace('T', " ")
}

/// How long ago an instant was; a script keeps it true.
pub(super) fn ago(at: Timestamp) -> Markup {
    let exact = at.to_string();
    let now = Timestamp::from_unix_nanos(clock::now().wall);
    html! { time.ago datetime=(exact) title={ (seconds(&exact)) " UTC" } { (coarse(words::between(at, now))) " ago" } }
}

/// A span of time in whole seconds at the finest.
fn coarse(time: Duration) -> String {
    let seconds = time.as_secs();
    if seconds < 60 { format!("{seconds}s") } else { span(time) }
}

/// A span of time.
pub(super) fn span(time: Duration) -> String {
    words::span(time)
}

/// From one instant to another, or to now.
pub(super) fn lasted(from: Option<Timestamp>, to: Option<Timestamp>) -> Option<String> {
    let to = to.unwrap_or_else(|| Timestamp::from_unix_nanos(clock::now().wall));
    Some(span(words::between(from?, to)))
}

/// A link to a task.
pub(super) fn task_link(id: &str) -> Markup {
    html! { a href=(url::of("task", &[id])) { (text(id)) } }
}

/// A table in a box of its own, which is what moves where it is wider than the page.
pub(super) fn table(label: &str, head: &[&str], rows: &Markup) -> Markup {
    html! {
        div.scroll role="region" aria-label=(label) tabindex="0" {
            table {
                thead { tr { @for name in head { th scope="col" { (name) } } } }
                tbody { (rows) }
            }
        }
    }
}

/// What is known of something: each fact with its name; what is empty is left out.
pub(super) fn facts(facts: &[(&str, Markup)]) -> Markup {
    html! {
        dl.facts {
            @for (name, value) in facts.iter().filter(|(_, value)| !value.0.is_empty()) {
                // Paths and lists of limits need room.
                div.wide[value.0.contains("<code>")] { dt { (name) } dd { (value) } }
            }
        }
    }
}

/// Text as a fact; empty if there is none.
pub(super) fn fact(value: impl AsRef<str>) -> Markup {
    let value = value.as_ref();
    html! { (text(value)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Attack 47: whatever is put into a page is text there, and what hides is seen.
    #[test]
    fn markup_and_what_hides_is_text() {
        let hostile = "<script>alert(1)</script>\u{202e}\x1b[2J\"'&";
        let page = Layout {
            title: hostile,
            above: &[(hostile.to_owned(), url::of("task", &[hostile]))],
            here: Some(hostile),
        };
        let page = page.page(&html! { (task_link(hostile)) }).into_string();

        assert!(!page.contains("<script>") && !page.contains('\u{202e}') && !page.contains('\x1b'));
        assert_eq!(page.matches("<script ").count(), 1);
        assert!(page.contains(r"&lt;script&gt;alert(1)&lt;/script&gt;\u{202e}\x1b[2J"), "{page}");
        assert!(!page.contains(" style="));
    }
}
