//! TCP: who we are to the daemon, and whom we take for it. All of that is in files that the environment names.

use std::env;
use std::path::PathBuf;
use std::time::Duration;

use tonic::transport::{Certificate, ClientTlsConfig, Endpoint, Identity};

use super::{ClientError, MAX_HEADER_BYTES};

/// PEM file with the certificates of those who certify daemons.
const CA: &str = "DEWAR_TLS_CA";
/// PEM file with our certificate.
const CERT: &str = "DEWAR_TLS_CERT";
/// PEM file with its key.
const KEY: &str = "DEWAR_TLS_KEY";
/// How long it may take to connect.
const CONNECT: Duration = Duration::from_secs(10);
/// How often a daemon that says nothing is asked whether it is there.
const KEEPALIVE: Duration = Duration::from_secs(30);

/// The daemon at `uri`, which is `https://HOST:PORT`.
///
/// # Errors
///
/// [`ClientError::Tls`]: what is not set, or cannot be read or used.
pub(super) fn endpoint(uri: &str) -> Result<Endpoint, ClientError> {
    let config = ClientTlsConfig::new()
        .ca_certificate(Certificate::from_pem(file(CA)?))
        .identity(Identity::from_pem(file(CERT)?, file(KEY)?));
    let wrong = |error: tonic::transport::Error| ClientError::Tls(crate::causes::chain(&error));
    let endpoint = Endpoint::from_shared(uri.to_owned()).map_err(wrong)?;
    let endpoint = endpoint.tls_config(config).map_err(wrong)?;
    let endpoint = endpoint.connect_timeout(CONNECT).http2_keep_alive_interval(KEEPALIVE);
    Ok(endpoint.http2_max_header_list_size(MAX_HEADER_BYTES))
}

fn file(variable: &str) -> Result<Vec<u8>, ClientError> {
    let path = env::var_os(variable).filter(|path| !path.is_empty()).map(PathBuf::from);
    let path = path.ok_or_else(|| {
        let text =
            format!("{variable} is not set: {CA}, {CERT} and {KEY} name PEM files for https");
        ClientError::Tls(text)
    })?;
    std::fs::read(&path)
        .map_err(|error| ClientError::Tls(format!("{variable}: {}: {error}", path.display())))
}
