//! `/logs/ID/PROCESS/RUN/STREAM`: output of a run: its end, or a stretch of it; live while it is written. `/logdata/…`: the same for
//! programs.
//!
//! Output is bytes that a task has chosen. On a page they are text, in which what acts on a terminal, and what hides, is
//! made visible; the script that puts what comes into the page puts it there as text.

use std::convert::Infallible;
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::extract::{Path, State};
use axum::http::header::{CONTENT_DISPOSITION, CONTENT_TYPE};
use axum::http::{HeaderMap, HeaderName};
use axum::response::sse::Event;
use axum::response::{Html, IntoResponse, Response};
use maud::{Markup, html};
use serde::Serialize;
use tokio::sync::mpsc;
use tokio_stream::StreamExt;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;

use super::answer::Failure;
use super::caller::Caller;
use super::layout::{self, Layout, text};
use super::params::Params;
use super::task::why;
use super::{Web, json, live, url};
use crate::daemon::observe::Answers;
use crate::daemon::peer::Peer;
use crate::escape::Neutralizer;
use crate::proto::observer_service_server::ObserverService;
use crate::proto::read_logs_request::Start;
use crate::proto::{GetTaskRequest, LogStream, ProcessView, ReadLogsRequest, ReadLogsResponse};

/// Bytes that a page shows of the end of a log, as Thermos' did.
const TAIL: u64 = 32 << 10;
/// Bytes that a page shows of any other place.
pub(super) const STRETCH: u64 = 64 << 10;
/// Bytes that a program gets if it does not say how many.
pub(super) const DATA: u64 = 1 << 20;
/// Most bytes that a program gets at once.
pub(super) const MAX_DATA: u64 = 16 << 20;
/// Pause after each piece that a browser is told: a log that grows faster than some MB a second is shown later, and floods nobody.
const PAUSE: Duration = Duration::from_millis(20);
/// Answers that wait for a browser at most, beside what the connection holds.
const QUEUE: usize = 1;

/// The log of a run.
#[derive(Debug, Clone)]
struct Of {
    id: String,
    process: String,
    run: u32,
    stream: LogStream,
}

/// The parts of an address.
type Parts = Path<(String, String, String, String)>;

impl Of {
    fn new(Path((id, process, run, stream)): Parts) -> Result<Self, Failure> {
        let stream = match stream.as_str() {
            "stdout" => LogStream::Stdout,
            "stderr" => LogStream::Stderr,
            _ => {
                return Err(Failure::not_found(format!(
                    "{stream:.40?} is neither stdout nor stderr"
                )));
            }
        };
        let run = run
            .parse()
            .map_err(|_| Failure::not_found(format!("{run:.40?} is no number of a run")))?;
        Ok(Self { id, process, run, stream })
    }

    fn stream_name(stream: LogStream) -> &'static str {
        if stream == LogStream::Stderr { "stderr" } else { "stdout" }
    }

    fn url(&self, run: u32, stream: LogStream) -> String {
        url::of("logs", &[&self.id, &self.process, &run.to_string(), Self::stream_name(stream)])
    }

    fn own_url(&self) -> String {
        self.url(self.run, self.stream)
    }

    async fn read(
        &self,
        web: &Web,
        peer: &Peer,
        start: Start,
        follow: bool,
    ) -> Result<Answers<ReadLogsResponse>, Failure> {
        let request = ReadLogsRequest {
            task_id: self.id.clone(),
            process: self.process.clone(),
            run: Some(self.run),
            stream: self.stream.into(),
            start: Some(start),
            follow,
        };
        Ok(web.observe.read_logs(Web::call(peer, request)).await?.into_inner())
    }

    /// As much as there is, at most `most` bytes.
    async fn stretch(
        &self,
        web: &Web,
        peer: &Peer,
        start: Start,
        most: u64,
    ) -> Result<Stretch, Failure> {
        let mut answers = self.read(web, peer, start, false).await?;
        let mut stretch = Stretch::default();
        while let Some(answer) = answers.next().await {
            let ReadLogsResponse { offset, data, is_after_gap, cursor, .. } = answer?;
            if stretch.data.is_empty() {
                stretch.offset = offset;
            }
            stretch.has_gap |= is_after_gap;
            let room = usize::try_from(most).unwrap_or(usize::MAX) - stretch.data.len();
            if data.len() > room {
                stretch.data.extend_from_slice(&data[..room]);
                stretch.has_more = true;
                break;
            }
            stretch.data.extend(data);
            stretch.cursor = Some(cursor);
        }
        Ok(stretch)
    }

    /// Bytes of the log so far.
    async fn size(&self, web: &Web, peer: &Peer) -> Result<u64, Failure> {
        let last = self.stretch(web, peer, Start::TailBytes(1), MAX_DATA).await?;
        Ok(last.end())
    }
}

/// A piece of a log.
#[derive(Debug, Default)]
struct Stretch {
    /// Place of its first byte in the log, from the oldest that is kept.
    offset: u64,
    data: Vec<u8>,
    /// Where it ends, if all of the last piece that was read is in it.
    cursor: Option<String>,
    has_gap: bool,
    has_more: bool,
}

impl Stretch {
    fn end(&self) -> u64 {
        self.offset + self.data.len() as u64
    }

    /// Without the line that it begins in the middle of.
    fn whole_lines(mut self) -> Self {
        if self.offset > 0
            && let Some(end) = self.data.iter().position(|&byte| byte == b'\n')
            && end + 1 < self.data.len()
        {
            self.data.drain(..=end);
            self.offset += end as u64 + 1;
        }
        self
    }
}

/// Bytes as text that is safe to show, with its lines.
pub(super) fn readable(bytes: &[u8]) -> String {
    let mut neutralizer = Neutralizer::default();
    let mut safe = Vec::new();
    neutralizer.push(bytes, &mut safe);
    neutralizer.finish(&mut safe);
    String::from_utf8(safe).unwrap_or_default()
}

/// `GET /logs/ID/PROCESS/RUN/STREAM`: a page; what is written from now on (`text/event-stream`); or the whole log as a file
/// (`?download`).
///
/// # Errors
///
/// [`Failure`].
pub(super) async fn page(
    State(web): State<Web>,
    Caller(peer): Caller,
    parts: Parts,
    headers: HeaderMap,
    params: Params,
) -> Result<Response, Failure> {
    let of = Of::new(parts)?;
    if live::wants_events(&headers) {
        return follow(&web, &peer, of, &headers, &params).await;
    }
    if params.has("download") {
        return download(&web, &peer, &of).await;
    }
    let offset = params.number("offset")?;
    let stretch = match offset {
        None => of.stretch(&web, &peer, Start::TailBytes(TAIL), MAX_DATA).await?.whole_lines(),
        Some(offset) => of.stretch(&web, &peer, Start::Offset(offset), STRETCH).await?,
    };
    let asked = GetTaskRequest { task_id: of.id.clone() };
    let view = web.observe.get_task(Web::call(&peer, asked)).await?.into_inner().task;
    let view = view.unwrap_or_default();
    let process = view.processes.into_iter().find(|process| process.name == of.process);
    let shown =
        Shown { of: &of, stretch, is_end: offset.is_none(), process: process.unwrap_or_default() };
    Ok(Html(shown.page().into_string()).into_response())
}

/// A log, as a page shows it.
struct Shown<'a> {
    of: &'a Of,
    stretch: Stretch,
    /// Whether it is the end of the log, and what comes is to be shown.
    is_end: bool,
    process: ProcessView,
}

impl Shown<'_> {
    fn page(&self) -> Markup {
        let Of { id, process, run, stream } = self.of;
        let stream_name = Of::stream_name(*stream);
        let title = format!("{stream_name} of {process} run {run}");
        let above = [
            (id.clone(), url::of("task", &[id])),
            (process.clone(), url::of("process", &[id, process])),
        ];
        let here = format!("run {run} {stream_name}");
        let layout = Layout { title: &title, above: &above, here: Some(&here) };
        let run_view = self.process.runs.iter().find(|of| of.run == *run);
        let is_live = run_view.is_some_and(|run| run.end_time.is_none());
        let cursor = self.stretch.cursor.as_deref().unwrap_or_default();
        let follows = (self.is_end && is_live).then_some(cursor);
        let shown = readable(&self.stretch.data);
        layout.page(&html! {
            h1 { (text(process)) " run " (run) }
            div.state-line {
                @if let Some(run) = run_view {
                    (layout::process_state(Some(run.state())))
                    @if let Some(why) = why(run) { span.why { (text(&why)) } }
                }
                (self.others())
            }
            (self.pager())
            @if self.stretch.has_gap { p.quiet { "Something was rotated away before this." } }
            pre #log.log tabindex="0" aria-label=(text(&title)) data-follow=[follows] { (shown) }
            @if self.stretch.data.is_empty() { p.empty #nothing { "Nothing was written." } }
        })
    }

    /// The other stream, and the runs beside this one.
    fn others(&self) -> Markup {
        let Of { run, stream, .. } = *self.of;
        html! {
            nav.actions aria-label="Other logs" {
                @for of in [LogStream::Stdout, LogStream::Stderr] {
                    a href=(self.of.url(run, of)) aria-current=[(of == stream).then_some("page")] { (Of::stream_name(of)) }
                }
                @if run > 0 { a href=(self.of.url(run - 1, stream)) { "Run " (run - 1) } }
                @if self.process.runs.iter().any(|of| of.run == run + 1) { a href=(self.of.url(run + 1, stream)) { "Run " (run + 1) } }
                a href={ (self.of.own_url()) "?download" } { "Download" }
            }
        }
    }

    fn pager(&self) -> Markup {
        let url = self.of.own_url();
        let at = |offset: u64| url::with(&url, &[("offset", &offset.to_string())]);
        let (begin, end) = (self.stretch.offset, self.stretch.end());
        html! {
            nav.pager aria-label="Places in the log" {
                @if begin > 0 {
                    a href=(at(0)) { "Beginning" }
                    a rel="prev" href=(at(begin.saturating_sub(STRETCH))) { "Earlier" }
                }
                @if self.stretch.has_more { a rel="next" href=(at(end)) { "Later" } }
                @if !self.is_end { a href=(url) { "End" } }
                span.quiet { "from byte " (begin) @if !self.is_end { " to " (end) } }
            }
        }
    }
}

/// Tells what is written, from where the page ends, or where the browser was.
async fn follow(
    web: &Web,
    peer: &Peer,
    of: Of,
    headers: &HeaderMap,
    params: &Params,
) -> Result<Response, Failure> {
    let last = headers.get("last-event-id").and_then(|id| id.to_str().ok());
    let cursor = last.filter(|id| !id.is_empty()).or(params.get("cursor"));
    let start = match cursor {
        Some(cursor) => Start::Cursor(cursor.to_owned()),
        // Of a log of which the page had nothing.
        None => Start::Offset(0),
    };
    let mut answers = of.read(web, peer, start, true).await?;
    let (to_browser, events) = mpsc::channel::<Result<Event, Infallible>>(QUEUE);
    tokio::spawn(async move {
        let mut neutralizer = Neutralizer::default();
        loop {
            let answer = tokio::select! {
                answer = answers.next() => answer,
                () = to_browser.closed() => return,
            };
            let event = match answer {
                Some(Ok(answer)) => event(&mut neutralizer, &answer),
                // The daemon stops, or cannot read it now: the browser asks again.
                Some(Err(_)) => return,
                None => live::end(),
            };
            if to_browser.send(Ok(event)).await.is_err() {
                return;
            }
            tokio::time::sleep(PAUSE).await;
        }
    });
    Ok(live::events_of(events))
}

fn event(neutralizer: &mut Neutralizer, answer: &ReadLogsResponse) -> Event {
    let mut safe = Vec::with_capacity(answer.data.len());
    if answer.is_after_gap {
        safe.extend_from_slice("… something was rotated away here …\n".as_bytes());
    }
    neutralizer.push(&answer.data, &mut safe);
    let safe = String::from_utf8(safe).unwrap_or_default();
    Event::default().event("log").id(&answer.cursor).data(safe)
}

async fn download(web: &Web, peer: &Peer, of: &Of) -> Result<Response, Failure> {
    let answers = of.read(web, peer, Start::Offset(0), false).await?;
    let pieces = answers
        .map(|answer: Result<ReadLogsResponse, Status>| answer.map(|of| Bytes::from(of.data)));
    let name = format!("{}-{}-{}-{}.log", of.id, of.process, of.run, Of::stream_name(of.stream));
    Ok((attachment(&name), Body::from_stream(pieces)).into_response())
}

/// What makes of an answer a file that is kept and never shown.
pub(super) fn attachment(name: &str) -> [(HeaderName, String); 2] {
    let is_plain = |c: &char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_' | ' ');
    let plain: String = name.chars().map(|c| if is_plain(&c) { c } else { '_' }).collect();
    // RFC 6266: the second is the name, for whoever understands it.
    let disposition =
        format!("attachment; filename=\"{plain}\"; filename*=UTF-8''{}", url::part(name));
    [(CONTENT_TYPE, "application/octet-stream".to_owned()), (CONTENT_DISPOSITION, disposition)]
}

/// A piece of a log or file, for programs.
#[derive(Debug, Serialize, PartialEq, Eq)]
pub(super) struct Data {
    /// Place of the first byte.
    pub(super) offset: u64,
    /// How many bytes there are.
    pub(super) length: u64,
    /// The bytes as text; what is no UTF-8 is replaced.
    pub(super) data: String,
    /// Where to go on.
    pub(super) next: u64,
}

impl Data {
    /// `bytes` from `offset` on, without a character at the end that is cut in two, unless that is all there is.
    pub(super) fn of(offset: u64, bytes: &[u8]) -> Self {
        let whole = whole_characters(bytes);
        let length = whole.len() as u64;
        let data = String::from_utf8_lossy(whole).into_owned();
        Self { offset, length, data, next: offset + length }
    }
}

fn whole_characters(bytes: &[u8]) -> &[u8] {
    let chunk = bytes.utf8_chunks().last();
    let cut = chunk.map(|chunk| chunk.invalid()).unwrap_or_default();
    let is_cut = std::str::from_utf8(cut).is_err_and(|error| error.error_len().is_none());
    if is_cut && cut.len() < bytes.len() { &bytes[..bytes.len() - cut.len()] } else { bytes }
}

/// What a program asks for: where, and how many bytes. `None`: how much there is.
///
/// # Errors
///
/// What is no such thing, and other negative numbers than -1.
pub(super) fn asked_for(params: &Params) -> Result<Option<(u64, u64)>, Failure> {
    let number = |name: &str| -> Result<Option<u64>, Failure> {
        match params.number::<i64>(name)? {
            None | Some(-1) => Ok(None),
            Some(number) => match u64::try_from(number) {
                Ok(number) => Ok(Some(number)),
                Err(_) => Err(Failure::bad(format!("{name}: {number}; expected -1 or more"))),
            },
        }
    };
    let length = number("length")?.unwrap_or(DATA).min(MAX_DATA);
    Ok(number("offset")?.map(|offset| (offset, length)))
}

/// `GET /logdata/ID/PROCESS/RUN/STREAM?offset=&length=`.
pub(super) async fn data(
    State(web): State<Web>,
    Caller(peer): Caller,
    parts: Parts,
    params: Params,
) -> Response {
    json::of(async {
        let of = Of::new(parts)?;
        match asked_for(&params)? {
            None => Ok(Data::of(of.size(&web, &peer).await?, &[])),
            Some((offset, length)) => {
                let stretch = of.stretch(&web, &peer, Start::Offset(offset), length).await?;
                // Beyond the end nothing is read, and the place is the one that was asked for.
                let at = if stretch.data.is_empty() { offset } else { stretch.offset };
                Ok(Data::of(at, &stretch.data))
            }
        }
    })
    .await
}

/// A body that is made elsewhere, piece by piece.
pub(super) fn body(pieces: mpsc::Receiver<std::io::Result<Bytes>>) -> Body {
    Body::from_stream(ReceiverStream::new(pieces))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// W3: no character is cut in two, and whoever reads on gets each byte once.
    #[test]
    fn pieces_of_text_join_to_the_whole_wherever_they_are_cut() {
        let text = "aä名\u{1f980}\n".repeat(9);
        let bytes = text.as_bytes();
        for length in 1..bytes.len() {
            let (mut joined, mut offset) = (String::new(), 0);
            while offset < bytes.len() {
                let end = (offset + length.max(4)).min(bytes.len());
                let piece = Data::of(offset as u64, &bytes[offset..end]);
                assert!(piece.length > 0, "it goes on");
                joined.push_str(&piece.data);
                offset = usize::try_from(piece.next).unwrap();
            }
            assert_eq!(joined, text, "pieces of {length}");
        }
    }

    #[test]
    fn what_is_no_text_is_told_all_the_same() {
        let told = Data::of(7, b"a\xff\xfe");
        assert_eq!((told.length, told.next, told.data.as_str()), (3, 10, "a\u{fffd}\u{fffd}"));
        assert_eq!(Data::of(0, b"\xe5").length, 1, "what is cut and alone would never be told");
    }

    #[test]
    fn the_end_of_a_log_begins_with_a_line() {
        let lines = |offset, text: &str| {
            let stretch = Stretch { offset, data: text.into(), ..Stretch::default() };
            let stretch = stretch.whole_lines();
            (stretch.offset, String::from_utf8(stretch.data).unwrap())
        };
        assert_eq!(lines(5, "st\nlast\n"), (8, "last\n".to_owned()));
        assert_eq!(lines(0, "st\nlast\n"), (0, "st\nlast\n".to_owned()));
        assert_eq!(lines(5, "all of one line\n"), (5, "all of one line\n".to_owned()));
        assert_eq!(lines(5, "no end"), (5, "no end".to_owned()));
    }

    /// Attack 47.
    #[test]
    fn a_name_of_a_file_adds_no_header_and_no_second_name() {
        let [_, (_, disposition)] = attachment("a\"; filename=b\r\nx: y/é");
        assert!(
            disposition.starts_with("attachment; filename=\"a__ filename_b__x_ y__\"; "),
            "{disposition}"
        );
        assert!(disposition.is_ascii() && !disposition.contains(['\r', '\n']));
    }
}
