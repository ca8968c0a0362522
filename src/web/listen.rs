//! Where the page is served, and how much of it at one time.

use std::io;
use std::net::SocketAddr;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::http::Request;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::{Semaphore, watch as cell};
use tower::ServiceExt;

use super::caller::{self, Identified};
use super::{Web, router};
use crate::daemon::Admins;
use crate::daemon::counts::{Counts, Whose};
use crate::daemon::observe::Observe;
use crate::sys::sock_diag;

/// The port of Thermos' observer.
const PORT: u16 = 1338;
/// Most connections at one time.
const MAX_CONNECTIONS: usize = 512;
/// Most of one user, whoever that is.
const MAX_OF_USER: usize = 128;
/// Most of which it is found out at one time whose they are: where the host's users are kept elsewhere, that may take long, and what else
/// blocks is not to wait for it.
const MAX_IDENTIFIED: usize = 8;
/// Connections that wait to be taken, beyond which the kernel lets clients try again.
const QUEUE: u32 = 1024;
/// Most bytes of the head of a request.
const MAX_HEAD: usize = 16 << 10;
/// Most headers of a request.
const MAX_HEADERS: usize = 64;
/// How long the head of a request may take, and how long nothing may be asked for.
const HEAD_TIME: Duration = Duration::from_secs(10);
/// Pause after a connection could not be taken, such as for want of descriptors.
const ACCEPT_AGAIN: Duration = Duration::from_millis(100);

/// An address that only this host reaches.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Loopback(SocketAddr);

impl Loopback {
    /// Takes `address` if it is one.
    pub fn new(address: SocketAddr) -> Option<Self> {
        address.ip().is_loopback().then_some(Self(address))
    }
}

/// Whether and where the page is served.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Listen {
    /// On `127.0.0.1:1338` if that is free.
    #[default]
    Default,
    /// There, or the daemon does not start.
    At(Loopback),
    /// Nowhere.
    Off,
}

/// What is no place for the page.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ParseListenError {
    /// It is no address.
    #[error("expected an address and a port, such as 127.0.0.1:1338 or [::1]:1338, or `off`")]
    Syntax,
    /// Others could reach it.
    #[error(
        "{0} is no loopback address: who asks is known of connections within this host alone. From elsewhere use `ssh -L \
         1338:127.0.0.1:1338 HOST`, or gRPC with certificates, --tls-listen"
    )]
    Wide(SocketAddr),
}

impl FromStr for Listen {
    type Err = ParseListenError;

    fn from_str(text: &str) -> Result<Self, ParseListenError> {
        if text == "off" {
            return Ok(Self::Off);
        }
        let address: SocketAddr = text.parse().map_err(|_| ParseListenError::Syntax)?;
        Loopback::new(address).map(Self::At).ok_or(ParseListenError::Wide(address))
    }
}

/// Why the page is not served.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    /// The address cannot be used.
    #[error("--web {address}: listen")]
    Bind {
        /// The address.
        address: SocketAddr,
        /// What the kernel said.
        #[source]
        error: io::Error,
    },
    /// The kernel does not tell who asks.
    #[error(
        "--web {address}: this kernel does not tell whose a connection is (CONFIG_INET_DIAG, module tcp_diag): load it, or use --web \
         off"
    )]
    NoDiag {
        /// The address.
        address: SocketAddr,
        /// What it said instead.
        #[source]
        error: Option<io::Error>,
    },
}

/// The page, as it is about to be served.
#[derive(Debug)]
pub(crate) struct Page {
    listener: TcpListener,
    address: SocketAddr,
}

/// Listens; `None` if the page is off, or the default address cannot be used.
///
/// # Errors
///
/// [`ListenError`], of an address that was named.
pub(crate) fn bind(listen: Listen) -> Result<Option<Page>, ListenError> {
    match listen {
        Listen::Off => Ok(None),
        Listen::At(Loopback(address)) => bind_at(address).map(Some),
        Listen::Default => Ok(bind_at(SocketAddr::from(([127, 0, 0, 1], PORT)))
            .inspect_err(|error| {
                let error = crate::causes::chain(error);
                tracing::warn!(error, "the page for browsers is not served; --web says where");
            })
            .ok()),
    }
}

fn bind_at(address: SocketAddr) -> Result<Page, ListenError> {
    let failed = |error| ListenError::Bind { address, error };
    let listener = listen(address).map_err(failed)?;
    let address = listener.local_addr().map_err(failed)?;
    match sock_diag::is_answered(address) {
        Ok(true) => {}
        Ok(false) => return Err(ListenError::NoDiag { address, error: None }),
        Err(error) => return Err(ListenError::NoDiag { address, error: Some(error) }),
    }
    Ok(Page { listener, address })
}

fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    // As after a daemon that was here a moment ago (ip(7)).
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(QUEUE)
}

/// What all connections share.
struct Serving {
    router: Router,
    address: SocketAddr,
    admins: Admins,
    counts: Counts,
    identifying: Semaphore,
    stopping: cell::Receiver<bool>,
}

impl Page {
    /// Where it is served.
    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Serves it until the daemon stops.
    pub(crate) async fn serve(
        self,
        observe: Observe,
        admins: Admins,
        mut stopping: cell::Receiver<bool>,
    ) {
        let Self { listener, address } = self;
        let room = Arc::new(Semaphore::new(MAX_CONNECTIONS));
        let router = router(Web { observe });
        let counts = Counts::default();
        let identifying = Semaphore::new(MAX_IDENTIFIED);
        let stopped = stopping.clone();
        let serving = Serving { router, address, admins, counts, identifying, stopping: stopped };
        let serving = Arc::new(serving);
        let accept = async {
            loop {
                // Beyond the most, connections wait in the queue of the kernel.
                let Ok(place) = room.clone().acquire_owned().await else { return };
                match listener.accept().await {
                    Ok((stream, client)) => {
                        let serving = serving.clone();
                        tokio::spawn(async move {
                            serving.connection(stream, client).await;
                            drop(place);
                        });
                    }
                    Err(error) => {
                        tracing::error!(%error, "accept");
                        tokio::time::sleep(ACCEPT_AGAIN).await;
                    }
                }
            }
        };
        tokio::select! {
            () = accept => {}
            _ = stopping.wait_for(|&stopping| stopping) => {}
        }
    }
}

impl Serving {
    async fn connection(&self, stream: TcpStream, client: SocketAddr) {
        let (address, admins) = (self.address, self.admins);
        // The user's groups may have to be asked for elsewhere.
        let identify = move || caller::identify(client, address, admins);
        let Ok(turn) = self.identifying.acquire().await else { return };
        let Ok(caller) = tokio::task::spawn_blocking(identify).await else { return };
        drop(turn);
        let whose = match &caller {
            Identified::User(peer) => Whose::User(peer.uid),
            Identified::Nobody(why) => {
                tracing::warn!(%client, %why, "it is not known who looks at the page");
                Whose::Uncertified
            }
        };
        let Some(_counted) = self.counts.admit(whose.clone(), MAX_OF_USER) else {
            tracing::warn!(
                ?whose,
                "more than {MAX_OF_USER} connections to the page; one was turned away"
            );
            return;
        };
        let _ = stream.set_nodelay(true);
        let service = service_fn(move |mut request: Request<Incoming>| {
            request.extensions_mut().insert(caller.clone());
            request.extensions_mut().insert(ServedAt(address));
            self.router.clone().oneshot(request.map(Body::new))
        });
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEAD_TIME)
            .max_headers(MAX_HEADERS)
            .max_buf_size(MAX_HEAD)
            .serve_connection(TokioIo::new(stream), service);
        tokio::pin!(connection);
        let mut stopping = self.stopping.clone();
        tokio::select! {
            ended = &mut connection => {
                if let Err(error) = ended {
                    tracing::debug!(%client, %error, "a connection to the page broke");
                }
                return;
            }
            _ = stopping.wait_for(|&stopping| stopping) => {}
        }
        connection.as_mut().graceful_shutdown();
        let _ = connection.await;
    }
}

/// Where the page that is asked for is served.
#[derive(Debug, Clone, Copy)]
pub(super) struct ServedAt(pub(super) SocketAddr);

#[cfg(test)]
mod tests {
    use super::*;

    /// Attack 53.
    #[test]
    fn the_page_is_served_on_loopback_alone_and_says_why() {
        for loopback in ["127.0.0.1:1338", "127.1.2.3:0", "[::1]:80"] {
            assert!(matches!(loopback.parse(), Ok(Listen::At(_))), "{loopback}");
        }
        for wide in ["0.0.0.0:1338", "[::]:1338", "10.0.0.1:80", "[::ffff:127.0.0.1]:1338"] {
            let error = Listen::from_str(wide).unwrap_err().to_string();
            assert!(error.contains("ssh -L") && error.contains("--tls-listen"), "{error}");
        }
        for wrong in ["", "1338", "localhost:1338", "127.0.0.1", "on"] {
            assert_eq!(Listen::from_str(wrong), Err(ParseListenError::Syntax), "{wrong}");
        }
        assert_eq!("off".parse(), Ok(Listen::Off));
    }
}
