//! Where a daemon listens, as people write it.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

/// Where a daemon listens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Address {
    /// A unix socket, by its absolute path.
    Unix(PathBuf),
    /// A port of TCP, with TLS: `https://HOST:PORT`.
    Tls(String),
}

/// A text that is no address.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} is no address: expected the absolute path of a socket, unix://PATH, such as unix:///run/dewar/dewar.sock, or https://HOST:PORT"
)]
pub struct AddressError(pub String);

impl FromStr for Address {
    type Err = AddressError;

    /// An absolute path, or one after `unix:` or `unix://`, as gRPC has it; or `https://HOST:PORT`.
    fn from_str(text: &str) -> Result<Self, AddressError> {
        let address = match (text.strip_prefix("https://"), text.strip_prefix("unix:")) {
            (Some(at), _) => tls(at),
            // There is no host in it, though there is room for one: `//`.
            (_, Some(path)) => unix(path.strip_prefix("//").unwrap_or(path)),
            (None, None) => unix(text),
        };
        address.ok_or_else(|| AddressError(text.to_owned()))
    }
}

fn unix(path: &str) -> Option<Address> {
    (path.starts_with('/') && !path.contains('\0')).then(|| Address::Unix(path.into()))
}

/// A name or an address, the one of IPv6 in brackets, and a port.
fn tls(text: &str) -> Option<Address> {
    let (host, port) = text.rsplit_once(':')?;
    let is_host = |host: &str| {
        !host.is_empty() && host.chars().all(|c| c.is_ascii_alphanumeric() || "-.".contains(c))
    };
    let is_ipv6 = || {
        let inner = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
        inner.is_some_and(|host| host.parse::<std::net::Ipv6Addr>().is_ok())
    };
    let port: u16 = port.parse().ok().filter(|&port| port > 0)?;
    (is_host(host) || is_ipv6()).then(|| Address::Tls(format!("https://{host}:{port}")))
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(path) => path.display().fmt(f),
            Self::Tls(uri) => uri.fmt(f),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_a_path_or_a_host_with_its_port() {
        let socket = Address::Unix("/run/d.sock".into());
        for text in ["/run/d.sock", "unix:/run/d.sock", "unix:///run/d.sock"] {
            assert_eq!(text.parse(), Ok(socket.clone()), "{text}");
        }
        assert_eq!(socket.to_string(), "/run/d.sock");
        for text in ["https://node-1.example:7443", "https://10.0.0.5:1", "https://[::1]:7443"] {
            let address: Address = text.parse().unwrap();
            assert_eq!((&address, address.to_string()), (&Address::Tls(text.into()), text.into()));
        }
    }

    #[test]
    fn what_is_no_address_says_what_is_expected() {
        for text in [
            "",
            "d.sock",
            "unix://d.sock",
            "unix:d.sock",
            "/a\0b",
            "http://host:1",
            "https://host",
            "https://host:0",
            "https://:1",
            "https://host:1/path",
            "https://user@host:1",
            "https://[::x]:1",
        ] {
            let error = text.parse::<Address>().unwrap_err();
            assert_eq!(error, AddressError(text.to_owned()));
            assert!(error.to_string().contains("unix:///run/dewar/dewar.sock"));
        }
    }
}
