//! `/metrics`, for Prometheus.

use axum::extract::State;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};

use super::Web;
use super::answer::Failure;
use super::caller::Caller;

/// The text format that every Prometheus reads.
const FORMAT: &str = "text/plain; version=0.0.4; charset=utf-8";

/// What the caller may know of.
pub(super) async fn page(
    State(web): State<Web>,
    Caller(peer): Caller,
) -> Result<Response, Failure> {
    let text = web.observe.metrics(&peer).await?;
    Ok(([(CONTENT_TYPE, FORMAT)], text).into_response())
}
