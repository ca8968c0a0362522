//! The page of the daemon: what it observes, for a browser, and as JSON. docs/web.md has every address.
//!
//! It changes nothing and knows nothing by itself: it is a client of `ObserverService` in the same process, which asks on behalf of
//! the user who made the connection. So nobody is told more here than on the socket.
//!
//! | file | question |
//! |---|---|
//! | `listen.rs` | where is it served, and how much of it at one time? |
//! | `caller.rs` | who asks? |
//! | `guard.rs` | is it a request that a browser sends on its user's behalf, and what may a page of ours do? |
//! | `answer.rs` | how is an error told? |
//! | `params.rs`, `url.rs` | what do addresses say? |
//! | `layout.rs` | what do all pages look like? |
//! | `live.rs` | how does a page change while it is looked at? |
//! | `tasks.rs`, `task.rs`, `process.rs`, `logs.rs`, `files.rs` | the pages |
//! | `dag.rs`, `chart.rs` | the drawings |
//! | `json.rs` | the same for programs |
//! | `metrics.rs` | what Prometheus asks for |
//!
//! What others have chosen (names, ids, output, names of files) reaches a page by [`maud`] alone, which escapes it, and with
//! what acts or hides made visible ([`crate::escape`]). No script and no style stands in a page, and none would be run.
#![allow(clippy::disallowed_methods, reason = "a server")]

mod answer;
mod caller;
mod chart;
mod dag;
mod files;
mod guard;
mod json;
mod layout;
mod listen;
mod live;
mod logs;
mod metrics;
mod params;
mod process;
mod task;
mod tasks;
mod url;

use axum::Router;
use axum::http::header::CONTENT_TYPE;
use axum::middleware;
use axum::response::{IntoResponse, Redirect, Response};
use axum::routing::get;
use tonic::{Request, Status};

use crate::daemon::observe::Observe;
use crate::daemon::peer::Peer;
use answer::Failure;

pub(crate) use listen::bind;
pub use listen::{Listen, ListenError, Loopback};

/// What all pages share.
#[derive(Debug, Clone)]
struct Web {
    observe: Observe,
}

impl Web {
    /// `message` as a call of `peer`.
    fn call<T>(peer: &Peer, message: T) -> Request<T> {
        Observe::call(peer, message)
    }
}

/// All addresses, with what is seen to for each of them.
fn router(web: Web) -> Router {
    Router::new()
        .route("/", get(tasks::page))
        .route("/task/{id}", get(task::page))
        .route("/rawtask/{id}", get(task::raw))
        .route("/process/{id}/{process}", get(process::page))
        .route("/logs/{id}/{process}/{run}/{stream}", get(logs::page))
        .route("/logdata/{id}/{process}/{run}/{stream}", get(logs::data))
        .route("/browse/{id}", get(files::browse_top))
        .route("/browse/{id}/", get(files::browse_top))
        .route("/browse/{id}/{*path}", get(files::browse))
        .route("/file/{id}/{*path}", get(files::view))
        .route("/filedata/{id}/{*path}", get(files::data))
        .route("/download/{id}/{*path}", get(files::download))
        .nest("/j", json::router())
        .route("/metrics", get(metrics::page))
        .route("/health", get(|| async { "ok\n" }))
        .route("/assets/dewar.css", get(|| asset("text/css; charset=utf-8", STYLE)))
        .route("/assets/dewar.js", get(|| asset("text/javascript; charset=utf-8", SCRIPT)))
        .route("/assets/icon.svg", get(|| asset("image/svg+xml", ICON)))
        .route("/favicon.ico", get(|| async { Redirect::permanent("/assets/icon.svg") }))
        .fallback(nothing)
        .layer(middleware::from_fn(guard::guard))
        .with_state(web)
}

const STYLE: &str = include_str!("assets/dewar.css");
const SCRIPT: &str = include_str!("assets/dewar.js");
const ICON: &str = include_str!("assets/icon.svg");

async fn asset(kind: &'static str, content: &'static str) -> Response {
    ([(CONTENT_TYPE, kind)], content).into_response()
}

async fn nothing() -> Failure {
    Status::not_found("there is no such page").into()
}
