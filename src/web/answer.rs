//! How an error is told: a status, and a page that says why.

use axum::Extension;
use axum::body::Body;
use axum::http::header::CONTENT_TYPE;
use axum::http::{HeaderValue, StatusCode};
use axum::response::{Html, IntoResponse, Response};
use maud::html;
use serde::Serialize;
use tonic::{Code, Status};

use super::layout::{self, Layout};

/// What is not answered, and why.
#[derive(Debug)]
pub(super) struct Failure {
    pub(super) status: StatusCode,
    pub(super) text: String,
}

impl Failure {
    pub(super) fn new(status: StatusCode, text: impl Into<String>) -> Self {
        Self { status, text: text.into() }
    }

    /// There is no such thing.
    pub(super) fn not_found(text: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, text)
    }

    /// The address makes no sense.
    pub(super) fn bad(text: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, text)
    }
}

impl From<Status> for Failure {
    fn from(status: Status) -> Self {
        let code = match status.code() {
            Code::NotFound => StatusCode::NOT_FOUND,
            Code::InvalidArgument | Code::OutOfRange => StatusCode::BAD_REQUEST,
            Code::PermissionDenied | Code::Unauthenticated => StatusCode::FORBIDDEN,
            Code::FailedPrecondition => StatusCode::CONFLICT,
            Code::ResourceExhausted => StatusCode::TOO_MANY_REQUESTS,
            Code::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
            _ => StatusCode::INTERNAL_SERVER_ERROR,
        };
        Self::new(code, status.message())
    }
}

/// The text of a failure, which goes with its answer for [`for_program`].
#[derive(Debug, Clone)]
struct Told(String);

/// Makes of the page that tells of a failure what a program reads: `{"error": TEXT}`. Any other answer stays as it is.
pub(super) fn for_program(response: Response) -> Response {
    #[derive(Serialize)]
    struct Json<'a> {
        error: &'a str,
    }
    let told = response.extensions().get().map(|Told(error)| serde_json::to_vec(&Json { error }));
    let Some(Ok(json)) = told else { return response };
    let (mut head, _) = response.into_parts();
    head.headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    Response::from_parts(head, Body::from(json))
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        let Self { status, text } = self;
        let title = status.canonical_reason().unwrap_or("Error");
        let page = Layout { title, ..Layout::default() };
        let page = page.page(&html! {
            h1 { (title) }
            p.failure { (layout::text(&text)) }
            p { a href="/" { "All tasks" } }
        });
        (status, Extension(Told(text)), Html(page.into_string())).into_response()
    }
}
