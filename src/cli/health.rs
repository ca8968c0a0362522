//! `dewar health`: whether the daemon serves, for whoever restarts it.

use tokio::time::timeout;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;

use super::args::Health;
use super::failure::{Failure, status};
use super::node;

/// Asks the health service of the daemon (`grpc.health.v1`). Whatever keeps it from saying that it serves is told, and is exit
/// status 1: that of an unhealthy container.
///
/// # Errors
///
/// [`Failure::NothingMatched`] if it does not serve; [`Failure::Usage`] if there is no place to look for it.
pub(super) fn run(args: &Health) -> Result<u8, Failure> {
    let client = node::daemon(&args.daemon).map_err(|failure| match failure {
        Failure::Unavailable(why) => Failure::NothingMatched(why),
        failure => failure,
    })?;
    let all = HealthCheckRequest { service: String::new() };
    let (mut health, time) = (client.health(), args.timeout);
    let asked = client.block_on(async { timeout(time, health.check(all)).await });
    let why = match asked.map(|told| told.map(|told| told.into_inner().status())) {
        Ok(Ok(ServingStatus::Serving)) => return Ok(status::SUCCESS),
        Ok(Ok(status)) => format!("says {}", status.as_str_name()),
        Ok(Err(status)) => Failure::from(status).to_string(),
        Err(_) => format!("no answer within {time:?}"),
    };
    Err(Failure::NothingMatched(format!("{}: {why}", client.address())))
}
