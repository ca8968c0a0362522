//! How a page changes while it is looked at.
//!
//! A page has a part that changes. Asked for as `text/event-stream`, the same address tells that part, as the server would render it
//! now, whenever something has happened that changes it; a script puts it in the place of what is there. So there is one way in
//! which a page is made, and the script knows nothing of tasks. Without it, the page is whole, and as old as it is.
//!
//! Nothing is asked for again and again: what is told comes from the registry, which wakes whoever waits.

use std::convert::Infallible;
use std::time::Duration;

use axum::http::HeaderMap;
use axum::http::header::ACCEPT;
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{Html, IntoResponse, Response};
use maud::{Markup, html};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use super::Web;
use super::answer::Failure;
use super::layout::Layout;
use crate::daemon::inside::News;
use crate::daemon::peer::Peer;

/// A page is told anew at most so often, however much happens.
const PAUSE: Duration = Duration::from_millis(500);
/// How often a line is sent that says nothing, so that a connection which nobody reads any more is found out.
const KEEP_ALIVE: Duration = Duration::from_secs(20);
/// Answers that wait for a browser at most, beside what the connection holds.
const QUEUE: usize = 1;

/// A page as it is now.
#[derive(Debug)]
pub(super) struct Rendered {
    /// What it is of.
    pub(super) title: String,
    /// The pages above it.
    pub(super) above: Vec<(String, String)>,
    /// What it is called there.
    pub(super) here: Option<String>,
    /// What stays.
    pub(super) fixed: Markup,
    /// What changes.
    pub(super) changing: Markup,
    /// Whether it will change no more.
    pub(super) is_final: bool,
}

/// Something that is looked at, and changes.
pub(super) trait Page: Send + 'static {
    /// The page as it is now.
    ///
    /// # Errors
    ///
    /// [`Failure`], in whose place it is shown.
    fn render(
        &mut self,
        web: &Web,
        peer: &Peer,
    ) -> impl Future<Output = Result<Rendered, Failure>> + Send;

    /// Something has happened since it was rendered: what it keeps may not be so any more.
    fn forget(&mut self) {}

    /// Waits until it may have changed since `news` was last looked at; `false`: what it shows is gone, or the daemon stops.
    fn changed(&mut self, news: &mut News, peer: &Peer) -> impl Future<Output = bool> + Send;
}

/// Answers with a page, or with what changes of it.
///
/// # Errors
///
/// [`Failure`].
pub(super) async fn answer(
    web: Web,
    peer: Peer,
    headers: &HeaderMap,
    mut page: impl Page,
) -> Result<Response, Failure> {
    if wants_events(headers) {
        let (to_browser, events) = mpsc::channel(QUEUE);
        tokio::spawn(async move {
            let told = tell(&web, &peer, page, &to_browser);
            tokio::select! {
                () = told => {}
                () = to_browser.closed() => {}
            }
        });
        return Ok(events_of(events));
    }
    let rendered = page.render(&web, &peer).await?;
    let here = rendered.here.as_deref();
    let layout = Layout { title: &rendered.title, above: &rendered.above, here };
    let whole = layout.page(&html! {
        (rendered.fixed)
        div #changing data-live[!rendered.is_final] { (rendered.changing) }
    });
    Ok(Html(whole.into_string()).into_response())
}

/// Whether a browser asks for what happens (`EventSource`).
pub(super) fn wants_events(headers: &HeaderMap) -> bool {
    let accept = headers.get(ACCEPT).and_then(|accept| accept.to_str().ok());
    accept.is_some_and(|accept| accept.starts_with("text/event-stream"))
}

/// An answer of events, as they come.
pub(super) fn events_of(events: mpsc::Receiver<Result<Event, Infallible>>) -> Response {
    let alive = KeepAlive::new().interval(KEEP_ALIVE);
    Sse::new(ReceiverStream::new(events)).keep_alive(alive).into_response()
}

/// The event after which no other comes: the browser is not to connect again.
pub(super) fn end() -> Event {
    Event::default().event("end").data("")
}

async fn tell(
    web: &Web,
    peer: &Peer,
    mut page: impl Page,
    to_browser: &mpsc::Sender<Result<Event, Infallible>>,
) {
    let mut news = web.observe.news();
    let mut told = String::new();
    let mut is_there = true;
    loop {
        let Ok(room) = to_browser.reserve().await else { return };
        if news.look() {
            page.forget();
        }
        let (changing, is_final) = match page.render(web, peer).await {
            Ok(rendered) => (rendered.changing.into_string(), rendered.is_final),
            Err(Failure { text, .. }) => (html! { p.failure { (text) } }.into_string(), true),
        };
        if changing != told {
            room.send(Ok(Event::default().event("page").data(&changing)));
            told = changing;
        }
        if is_final {
            let _ = to_browser.send(Ok(end())).await;
            return;
        }
        if !is_there {
            // The daemon stops: the browser asks the next one.
            return;
        }
        tokio::time::sleep(PAUSE).await;
        is_there = page.changed(&mut news, peer).await;
    }
}
