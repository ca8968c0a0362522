//! `/browse/ID/PATH`: a directory of a sandbox. `/file/ID/PATH`: a file of it, as text. `/filedata/…`: the same for programs.
//! `/download/…`: its bytes.
//!
//! Paths are opened beneath the sandbox, in one step, by the daemon's own code ([`crate::files`]), which follows no link. Nothing that
//! is in a file is ever shown as what it says it is: as text it is in a page of ours, and as bytes it is kept and not opened.

use std::io;
use std::ops::Range;

use axum::body::{Body, Bytes};
use axum::extract::{Path, State};
use axum::http::header::{ACCEPT_RANGES, CONTENT_LENGTH, CONTENT_RANGE, IF_RANGE, RANGE};
use axum::http::{HeaderMap, Method, StatusCode};
use axum::response::{Html, IntoResponse, Response};
use maud::{Markup, html};
use tokio::sync::mpsc;

use super::answer::Failure;
use super::caller::Caller;
use super::layout::{self, Layout, text, time};
use super::logs::{Data, STRETCH, asked_for, attachment, body, readable};
use super::params::Params;
use super::{Web, json, url};
use crate::daemon::control::block;
use crate::daemon::peer::Peer;
use crate::files::SandboxFile;
use crate::proto::observer_service_server::ObserverService;
use crate::proto::{FileEntry, FileType, ListFilesRequest, ListFilesResponse};
use crate::words;

/// Entries on a page.
const PAGE: u32 = 200;
/// Bytes of a download that are read at once.
const CHUNK: usize = 64 << 10;
/// Pieces of a download that wait for a browser at most, beside what the connection holds.
const QUEUE: usize = 1;

/// `GET /browse/ID`.
pub(super) async fn browse_top(
    web: State<Web>,
    caller: Caller,
    Path(id): Path<String>,
    params: Params,
) -> Result<Response, Failure> {
    browse(web, caller, Path((id, String::new())), params).await
}

/// `GET /browse/ID/PATH`.
pub(super) async fn browse(
    State(web): State<Web>,
    Caller(peer): Caller,
    Path((id, path)): Path<(String, String)>,
    params: Params,
) -> Result<Response, Failure> {
    // A directory may be written with a `/` after it.
    let path = path.strip_suffix('/').unwrap_or(&path).to_owned();
    let request = ListFilesRequest {
        task_id: id.clone(),
        path: path.clone(),
        page_size: PAGE,
        page_token: params.get("page_token").unwrap_or_default().to_owned(),
    };
    let listed = web.observe.list_files(Web::call(&peer, request)).await?.into_inner();
    let page = Directory { id: &id, path: &path, is_first: params.get("page_token").is_none() };
    Ok(Html(page.page(&listed).into_string()).into_response())
}

/// A directory that is shown.
struct Directory<'a> {
    id: &'a str,
    path: &'a str,
    is_first: bool,
}

/// The pages above one of `path`: the task, its files, and each directory on the way.
fn above(id: &str, path: &str) -> Vec<(String, String)> {
    let files = ("Files".to_owned(), url::of("browse", &[id]));
    let mut above = vec![(id.to_owned(), url::of("task", &[id])), files];
    for (end, _) in path.match_indices('/') {
        let way = &path[..end];
        let name = way.rsplit('/').next().unwrap_or(way);
        above.push((name.to_owned(), url::of_path("browse", id, way)));
    }
    above
}

impl Directory<'_> {
    fn page(&self, listed: &ListFilesResponse) -> Markup {
        let name = self.path.rsplit('/').next().filter(|name| !name.is_empty());
        let mut above = above(self.id, self.path);
        if name.is_none() {
            above.pop();
        }
        let title = format!("Files of {}", self.id);
        let layout = Layout { title: &title, above: &above, here: Some(name.unwrap_or("Files")) };
        let url = url::of_path("browse", self.id, self.path);
        let head = ["Name", "Mode", "Size", "Changed", "Download"];
        let rows = html! { @for entry in &listed.entries { (self.row(entry)) } };
        let more = Some(&listed.next_page_token).filter(|token| !token.is_empty());
        layout.page(&html! {
            h1 { (text(name.unwrap_or("Files"))) }
            @if listed.entries.is_empty() { p.empty { "It is empty." } } @else { (layout::table("Files", &head, &rows)) }
            @if !self.is_first || more.is_some() {
                nav.pager aria-label="Pages of files" {
                    @if !self.is_first { a href=(url) { "First" } }
                    @if let Some(token) = more { a rel="next" href=(url::with(&url, &[("page_token", token)])) { "Next" } }
                }
            }
        })
    }

    fn row(&self, entry: &FileEntry) -> Markup {
        // A name that is no UTF-8 cannot be asked for.
        let is_named = !entry.name.contains(char::REPLACEMENT_CHARACTER);
        let path = match self.path {
            "" => entry.name.clone(),
            path => format!("{path}/{}", entry.name),
        };
        let link = |kind: &str| url::of_path(kind, self.id, &path);
        html! {
            tr {
                th scope="row" {
                    @match entry.r#type() {
                        FileType::Directory if is_named => a href=(link("browse")) { (text(&entry.name)) "/" },
                        FileType::Regular if is_named => a href=(link("file")) { (text(&entry.name)) },
                        _ => (text(&entry.name)),
                    }
                    @if let Some(target) = &entry.link_target { span.sub { "→ " (text(target)) } }
                }
                td { code { (mode(entry)) } }
                td.number { @if entry.r#type() == FileType::Regular { (words::bytes(entry.size_bytes)) } }
                td { @if let Some(at) = entry.modify_time { (time(at)) } }
                td {
                    @if is_named && entry.r#type() == FileType::Regular {
                        a href=(link("download")) aria-label={ "Download " (text(&entry.name)) } { "Download" }
                    }
                }
            }
        }
    }
}

/// Type and permissions, as `ls -l` writes them.
fn mode(entry: &FileEntry) -> String {
    let kind = match entry.r#type() {
        FileType::Regular => '-',
        FileType::Directory => 'd',
        FileType::Symlink => 'l',
        FileType::Unspecified => '?',
    };
    let bit = |at: u32, c: char| if entry.mode >> at & 1 == 1 { c } else { '-' };
    let mut text = String::from(kind);
    for (at, special, letter) in [(6, 11, 's'), (3, 10, 's'), (0, 9, 't')] {
        text.extend([bit(at + 2, 'r'), bit(at + 1, 'w')]);
        text.push(match (entry.mode >> special & 1, entry.mode >> at & 1) {
            (1, 1) => letter,
            (1, _) => letter.to_ascii_uppercase(),
            (_, 1) => 'x',
            _ => '-',
        });
    }
    text
}

/// Reads a stretch of a file.
async fn read(file: SandboxFile, offset: u64, length: u64) -> Result<Vec<u8>, Failure> {
    let read = move || {
        // No more is asked for than there was: a length is anybody's word.
        let there = file.attributes().size.saturating_sub(offset).min(length);
        let mut data = vec![0; usize::try_from(there).unwrap_or(0)];
        let mut end = 0;
        while end < data.len() {
            match file.read_at(offset + end as u64, &mut data[end..]) {
                Ok(0) => break,
                Ok(read) => end += read,
                Err(error) => return Err(tonic::Status::unavailable(format!("read: {error}"))),
            }
        }
        data.truncate(end);
        Ok(data)
    };
    Ok(block(read).await?)
}

/// `GET /file/ID/PATH?offset=`.
pub(super) async fn view(
    State(web): State<Web>,
    Caller(peer): Caller,
    Path((id, path)): Path<(String, String)>,
    params: Params,
) -> Result<Response, Failure> {
    let file = web.observe.file(&peer, &id, &path).await?;
    let size = file.attributes().size;
    let offset = params.number("offset")?.unwrap_or(0);
    let data = read(file, offset, STRETCH).await?;
    let name = path.rsplit('/').next().unwrap_or(&path);
    let (above, title) = (above(&id, &path), format!("{name} of {id}"));
    let layout = Layout { title: &title, above: &above, here: Some(name) };
    let (url, end) = (url::of_path("file", &id, &path), offset + data.len() as u64);
    let at = |offset: u64| url::with(&url, &[("offset", &offset.to_string())]);
    let page = layout.page(&html! {
        h1 { (text(name)) }
        nav.pager aria-label="Places in the file" {
            @if offset > 0 {
                a href=(url) { "Beginning" }
                a rel="prev" href=(at(offset.saturating_sub(STRETCH))) { "Earlier" }
            }
            @if end < size {
                a rel="next" href=(at(end)) { "Later" }
                a href=(at(size.saturating_sub(STRETCH))) { "End" }
            }
            a href=(url::of_path("download", &id, &path)) { "Download" }
            span.quiet { "bytes " (offset) " to " (end) " of " (size) }
        }
        pre.log tabindex="0" aria-label=(text(name)) { (readable(&data)) }
        @if data.is_empty() { p.empty { "Nothing is there." } }
    });
    Ok(Html(page.into_string()).into_response())
}

/// `GET /filedata/ID/PATH?offset=&length=`.
pub(super) async fn data(
    State(web): State<Web>,
    Caller(peer): Caller,
    Path((id, path)): Path<(String, String)>,
    params: Params,
) -> Response {
    json::of(async {
        let asked = asked_for(&params)?;
        let file = web.observe.file(&peer, &id, &path).await?;
        match asked {
            None => Ok(Data::of(file.attributes().size, &[])),
            Some((offset, length)) => Ok(Data::of(offset, &read(file, offset, length).await?)),
        }
    })
    .await
}

/// `GET /download/ID/PATH`: the file, or the range of it that is asked for.
///
/// # Errors
///
/// [`Failure`].
pub(super) async fn download(
    State(web): State<Web>,
    Caller(peer): Caller,
    Path((id, path)): Path<(String, String)>,
    method: Method,
    headers: HeaderMap,
) -> Result<Response, Failure> {
    let file = open(&web, &peer, &id, &path).await?;
    let size = file.attributes().size;
    let name = path.rsplit('/').next().unwrap_or(&path);
    let asked = headers.get(RANGE).filter(|_| !headers.contains_key(IF_RANGE));
    let asked = asked.and_then(|range| range.to_str().ok());
    let (status, range) = match asked.map_or(Asked::Whole, |range| Asked::of(range, size)) {
        Asked::Whole => (StatusCode::OK, 0..size),
        Asked::Part(range) => (StatusCode::PARTIAL_CONTENT, range),
        Asked::Beyond => {
            let range = [(CONTENT_RANGE, format!("bytes */{size}"))];
            let failure =
                Failure::new(StatusCode::RANGE_NOT_SATISFIABLE, format!("it has {size} bytes"));
            return Ok((range, failure).into_response());
        }
    };
    let length = [(CONTENT_LENGTH, (range.end - range.start).to_string())];
    let part = (status == StatusCode::PARTIAL_CONTENT)
        .then(|| [(CONTENT_RANGE, format!("bytes {}-{}/{size}", range.start, range.end - 1))]);
    let bytes = if method == Method::HEAD { Body::empty() } else { send(file, range) };
    let mut response =
        (status, attachment(name), [(ACCEPT_RANGES, "bytes")], length, bytes).into_response();
    for (name, value) in part.into_iter().flatten() {
        if let Ok(value) = value.parse() {
            response.headers_mut().insert(name, value);
        }
    }
    Ok(response)
}

async fn open(web: &Web, peer: &Peer, id: &str, path: &str) -> Result<SandboxFile, Failure> {
    Ok(web.observe.file(peer, id, path).await?)
}

/// Sends a file as it is read, and reads it as it is sent. One that has become shorter meanwhile breaks off: the browser sees that
/// something is missing.
fn send(file: SandboxFile, range: Range<u64>) -> Body {
    let (to_browser, pieces) = mpsc::channel::<io::Result<Bytes>>(QUEUE);
    tokio::spawn(async move {
        let Range { start: mut offset, end } = range;
        let mut file = file;
        while offset < end {
            let Ok(room) = to_browser.reserve().await else { return };
            let most = usize::try_from(end - offset).unwrap_or(CHUNK).min(CHUNK);
            let read = block(move || {
                let mut data = vec![0; most];
                let read = file.read_at(offset, &mut data);
                Ok((file, read.map(|read| (data, read))))
            });
            let Ok((again, read)) = read.await else { return };
            file = again;
            match read {
                Ok((_, 0)) => {
                    room.send(Err(io::ErrorKind::UnexpectedEof.into()));
                    return;
                }
                Ok((mut data, read)) => {
                    data.truncate(read);
                    offset += read as u64;
                    room.send(Ok(data.into()));
                }
                Err(error) => {
                    room.send(Err(error));
                    return;
                }
            }
        }
    });
    body(pieces)
}

/// What of a file is asked for (RFC 9110, 14.2).
#[derive(Debug, PartialEq, Eq)]
enum Asked {
    Whole,
    Part(Range<u64>),
    /// Nothing of it is there.
    Beyond,
}

impl Asked {
    /// One range; several, and what is none, are as if they were not there.
    fn of(text: &str, size: u64) -> Self {
        let parse = || {
            let (first, last) = text.strip_prefix("bytes=")?.trim().split_once('-')?;
            Some(match (first, last) {
                ("", last) => {
                    let length: u64 = last.parse().ok()?;
                    if length == 0 { size..size } else { size.saturating_sub(length)..size }
                }
                (first, "") => first.parse().ok()?..size,
                (first, last) => {
                    let (first, last): (u64, u64) = (first.parse().ok()?, last.parse().ok()?);
                    if last < first {
                        return None;
                    }
                    first..last.saturating_add(1).min(size)
                }
            })
        };
        match parse() {
            None => Self::Whole,
            Some(range) if range.start >= size => Self::Beyond,
            Some(range) => Self::Part(range),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Attack 18: ranges without overflow.
    #[test]
    fn a_range_is_within_the_file_whatever_is_asked_for() {
        use Asked::{Beyond, Part, Whole};
        for (text, asked) in [
            ("bytes=0-0", Part(0..1)),
            ("bytes=2-5", Part(2..6)),
            ("bytes=2-", Part(2..10)),
            ("bytes=-3", Part(7..10)),
            ("bytes=-30", Part(0..10)),
            ("bytes=9-18446744073709551615", Part(9..10)),
            ("bytes=-18446744073709551615", Part(0..10)),
            ("bytes=10-", Beyond),
            ("bytes=18446744073709551615-18446744073709551615", Beyond),
            ("bytes=-0", Beyond),
            ("bytes=5-2", Whole),
            ("bytes=0-1,3-4", Whole),
            ("bytes=18446744073709551616-", Whole),
            ("bytes=a-b", Whole),
            ("bytes=-", Whole),
            ("lines=1-2", Whole),
            ("", Whole),
        ] {
            assert_eq!(Asked::of(text, 10), asked, "{text}");
        }
        assert_eq!(Asked::of("bytes=0-", 0), Beyond);
    }

    #[test]
    fn a_mode_is_written_as_ls_writes_it() {
        let mode = |kind: FileType, mode| {
            super::mode(&FileEntry { r#type: kind.into(), mode, ..FileEntry::default() })
        };
        assert_eq!(mode(FileType::Regular, 0o644), "-rw-r--r--");
        assert_eq!(mode(FileType::Directory, 0o1777), "drwxrwxrwt");
        assert_eq!(mode(FileType::Regular, 0o4754), "-rwsr-xr--");
        assert_eq!(mode(FileType::Symlink, 0o2666), "lrw-rwSrw-");
    }

    #[test]
    fn the_way_to_a_file_leads_through_its_directories() {
        let names: Vec<_> = above("t", "a b/c/d");
        let urls: Vec<_> = names.iter().map(|(name, url)| (name.as_str(), url.as_str())).collect();
        assert_eq!(
            urls,
            [
                ("t", "/task/t"),
                ("Files", "/browse/t"),
                ("a b", "/browse/t/a%20b"),
                ("c", "/browse/t/a%20b/c")
            ]
        );
    }
}
