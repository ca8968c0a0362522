//! Attacks on the daemon: peers that lie, flood, or never read, and a `kill -9` every second.

/// 49: very many launches at one time, and of one id.
mod launches;
/// 51: what is no gRPC, or hardly.
mod malformed;
/// 53, 54: who may do what is what the kernel says of the peer.
mod peers;
/// 41: a runner of another version.
mod skew;
/// 48: watchers that never read.
mod watchers;

use tonic::Status;
use tonic_types::StatusExt;

/// The reason of an error, for programs.
fn reason(status: &Status) -> String {
    let details = status.get_error_details();
    details.error_info().map(|info| info.reason.clone()).unwrap_or_default()
}
