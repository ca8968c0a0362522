//! `dewar health`: whether the daemon serves, for whoever restarts it.

use std::io;
use std::path::PathBuf;

use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tonic::transport::Endpoint;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;
use tower::service_fn;

use super::args::Health;
use super::failure::{Failure, status};
use crate::causes::chain;
use crate::daemon::default_socket;

/// Asks the health service of the daemon (`grpc.health.v1`). Whatever keeps it from saying that it serves is told, and is exit
/// status 1: that of an unhealthy container.
///
/// # Errors
///
/// [`Failure`] if there is no place to look for the daemon.
pub(super) fn run(args: &Health) -> Result<u8, Failure> {
    let path = args.address.clone().map_or_else(default_socket, Ok);
    let path = path.map_err(|error| Failure::unavailable(&error))?;
    let name = path.display().to_string();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| Failure::unavailable(&error))?;
    let asked = runtime.block_on(async { tokio::time::timeout(args.timeout, ask(path)).await });
    let why = match asked {
        Ok(Ok(ServingStatus::Serving)) => return Ok(status::SUCCESS),
        Ok(Ok(status)) => format!("says {}", status.as_str_name()),
        Ok(Err(why)) => why,
        Err(_) => format!("no answer within {:?}", args.timeout),
    };
    Err(Failure::NothingMatched(format!("{name}: {why}")))
}

/// What the daemon at `path` says of itself, or why it says nothing.
async fn ask(path: PathBuf) -> Result<ServingStatus, String> {
    let connect = service_fn(move |_| {
        let path = path.clone();
        async move { Ok::<_, io::Error>(TokioIo::new(UnixStream::connect(path).await?)) }
    });
    // The name is for the protocol; there is no host.
    let endpoint = Endpoint::from_static("http://localhost");
    let channel = endpoint.connect_with_connector(connect).await.map_err(|error| chain(&error))?;
    let all = HealthCheckRequest { service: String::new() };
    let answer = HealthClient::new(channel).check(all).await;
    answer.map(|told| told.into_inner().status()).map_err(|status| status.message().to_owned())
}
