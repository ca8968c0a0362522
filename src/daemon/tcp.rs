//! TCP, with TLS that shows both sides who the other is, and never without.
//!
//! Whoever connects needs a certificate of the CA that was named, one that is valid now and not revoked, with a name in it that was given a role.
//! Anybody else is turned away in the handshake, before a byte of gRPC is read. Sessions are not resumed: each connection is judged
//! by the certificates, the roles and the list of revocations of its own time, which [`Tls::read_again`] renews.

use std::fs::File;
use std::io::{self, Read};
use std::net::SocketAddr;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use nix::unistd::geteuid;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::client::danger::HandshakeSignatureValid;
use tokio_rustls::rustls::crypto::{CryptoProvider, ring};
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{
    CertificateDer, CertificateRevocationListDer, PrivateKeyDer, UnixTime,
};
use tokio_rustls::rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use tokio_rustls::rustls::server::{NoServerSessionStorage, VerifierBuilderError};
use tokio_rustls::rustls::server::{ServerConfig, WebPkiClientVerifier};
use tokio_rustls::rustls::{
    self, CertificateError, DigitallySignedStruct, DistinguishedName, RootCertStore,
    SignatureScheme,
};
use tokio_stream::wrappers::ReceiverStream;
use webpki::EndEntityCert;

use super::counts::{Counted, Counts, Whose};
use super::listen::{ACCEPT_AGAIN, Connection, MAX_CONNECTIONS};
use super::peer::{Certificate, Peer, Role};
use super::subject;
use crate::causes::chain;

/// How long a handshake may take.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// Most handshakes at one time, and of one address.
const MAX_HANDSHAKES: usize = 256;
const MAX_HANDSHAKES_OF_ADDRESS: usize = 32;
/// Most bytes of a file of certificates.
const MAX_FILE: u64 = 4 << 20;

/// How TCP is served.
#[derive(Debug, Clone)]
pub struct TlsOptions {
    /// Where to listen.
    pub address: SocketAddr,
    /// File with the certificate of the daemon, and the intermediate ones, as PEM.
    pub cert: PathBuf,
    /// File with its key, as PEM; closed to others.
    pub key: PathBuf,
    /// File with the certificates of those who certify clients, as PEM.
    pub client_ca: PathBuf,
    /// File with their lists of revocations, as PEM; one for each that certifies.
    pub client_crl: Option<PathBuf>,
    /// Names of certificates that may see and do everything: a DNS name, or a URI, among the subject alternative names.
    pub admins: Vec<String>,
    /// Names of those that may see everything.
    pub observers: Vec<String>,
}

/// Why TCP is not served. Each says what was found and what was expected.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file cannot be read.
    #[error("{call} {}", path.display())]
    Io {
        /// What was tried.
        call: &'static str,
        /// The file.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        error: io::Error,
    },
    /// Others could read or change a file.
    #[error("{}: {found}; expected {expected}", path.display())]
    Unsafe {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        found: String,
        /// How it should be.
        expected: &'static str,
    },
    /// A file holds something else.
    #[error("{}: {found}; expected {expected}", path.display())]
    Content {
        /// The file.
        path: PathBuf,
        /// What was found in it.
        found: String,
        /// What it should hold.
        expected: &'static str,
    },
    /// The certificate and the key do not go together, or are of no use.
    #[error("{} and {}", cert.display(), key.display())]
    Identity {
        /// The certificate.
        cert: PathBuf,
        /// The key.
        key: PathBuf,
        /// What is wrong.
        #[source]
        error: rustls::Error,
    },
    /// Nobody can be certified by these.
    #[error("{}", path.display())]
    Authority {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        #[source]
        error: VerifierBuilderError,
    },
    /// TLS as it is wanted is not there.
    #[error("TLS")]
    Tls(#[source] rustls::Error),
    /// The address cannot be listened on.
    #[error("listen on {address}")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// What the kernel said.
        #[source]
        error: io::Error,
    },
}

/// Who has which role.
#[derive(Debug, Clone)]
struct Roles {
    admins: Vec<String>,
    observers: Vec<String>,
}

impl Roles {
    /// The role of whoever has `certificate`, and its subject; `None`: none of its names has one.
    fn of(&self, certificate: &CertificateDer<'_>) -> Option<Certificate> {
        let parsed = EndEntityCert::try_from(certificate).ok()?;
        let among = |names: &[String]| names.iter().find(|name| is_named(&parsed, name)).cloned();
        let (role, name) = match (among(&self.admins), among(&self.observers)) {
            (Some(name), _) => (Role::Admin, name),
            (None, Some(name)) => (Role::Observer, name),
            (None, None) => return None,
        };
        // Certificates of machines often have no subject.
        let subject = Some(subject::text(parsed.subject())).filter(|text| !text.is_empty());
        Some(Certificate { subject: subject.unwrap_or(name).into(), role })
    }
}

/// Whether `name` is among the subject alternative names: as a URI if it has a colon, else as a DNS name. No pattern matches,
/// and the subject itself counts for nothing: its parts are texts of many meanings (RFC 6125).
fn is_named(certificate: &EndEntityCert<'_>, name: &str) -> bool {
    if name.contains(':') {
        certificate.valid_uri_names().any(|uri| uri == name)
    } else {
        certificate.valid_dns_names().any(|dns| dns.eq_ignore_ascii_case(name))
    }
}

/// Verifies as webpki does, and lets in whoever has a role besides.
#[derive(Debug)]
struct Verifier {
    webpki: Arc<dyn ClientCertVerifier>,
    roles: Roles,
}

impl ClientCertVerifier for Verifier {
    fn offer_client_auth(&self) -> bool {
        true
    }

    fn client_auth_mandatory(&self) -> bool {
        true
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.webpki.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        let verified = self.webpki.verify_client_cert(end_entity, intermediates, now)?;
        match self.roles.of(end_entity) {
            Some(_) => Ok(verified),
            None => {
                tracing::warn!(subject = named(end_entity), "a certificate has no role");
                Err(CertificateError::ApplicationVerificationFailure.into())
            }
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.webpki.verify_tls12_signature(message, certificate, signed)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.webpki.verify_tls13_signature(message, certificate, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.webpki.supported_verify_schemes()
    }
}

/// The subject of a certificate, for the log.
fn named(certificate: &CertificateDer<'_>) -> String {
    let parsed = EndEntityCert::try_from(certificate);
    parsed.map(|parsed| subject::text(parsed.subject())).unwrap_or_default()
}

/// What the files said when they were read.
#[derive(Clone)]
struct Credentials {
    acceptor: TlsAcceptor,
    roles: Roles,
}

impl Credentials {
    fn read(options: &TlsOptions) -> Result<Self, TlsError> {
        let provider = Arc::new(ring::default_provider());
        let roles = Roles { admins: options.admins.clone(), observers: options.observers.clone() };
        let webpki = verifier(options, provider.clone())?;
        let verifier = Arc::new(Verifier { webpki, roles: roles.clone() });
        let certs = certificates(&options.cert)?;
        let key = key(&options.key)?;
        let mut config = ServerConfig::builder_with_provider(provider)
            // 1.2 and 1.3: there are no older ones.
            .with_safe_default_protocol_versions()
            .map_err(TlsError::Tls)?
            .with_client_cert_verifier(verifier)
            .with_single_cert(certs, key)
            .map_err(|error| TlsError::Identity {
                cert: options.cert.clone(),
                key: options.key.clone(),
                error,
            })?;
        config.alpn_protocols = vec![b"h2".to_vec()];
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
        Ok(Self { acceptor: TlsAcceptor::from(Arc::new(config)), roles })
    }
}

/// Verifies that a certificate is of the CA, valid now, and not revoked. Where there are lists of revocations, all certificates of a
/// chain must be in the keeping of one that is not out of date.
fn verifier(
    options: &TlsOptions,
    provider: Arc<CryptoProvider>,
) -> Result<Arc<dyn ClientCertVerifier>, TlsError> {
    let path = &options.client_ca;
    let mut roots = RootCertStore::empty();
    for certificate in certificates(path)? {
        roots.add(certificate).map_err(|error| TlsError::Content {
            path: path.clone(),
            found: error.to_string(),
            expected: "certificates of those who certify clients",
        })?;
    }
    let mut builder = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider);
    if let Some(path) = &options.client_crl {
        let lists = CertificateRevocationListDer::pem_slice_iter(&read(path, Keep::Unchanged)?)
            .collect::<Result<Vec<_>, _>>();
        builder = builder.with_crls(not_empty(path, lists, "lists of revocations as PEM")?);
        builder = builder.enforce_revocation_expiration();
    }
    builder.build().map_err(|error| TlsError::Authority { path: path.clone(), error })
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let bytes = read(path, Keep::Unchanged)?;
    let found = CertificateDer::pem_slice_iter(&bytes).collect::<Result<Vec<_>, _>>();
    not_empty(path, found, "certificates as PEM")
}

fn key(path: &Path) -> Result<PrivateKeyDer<'static>, TlsError> {
    let bytes = read(path, Keep::Secret)?;
    PrivateKeyDer::from_pem_slice(&bytes).map_err(|error| TlsError::Content {
        path: path.to_owned(),
        found: error.to_string(),
        expected: "a private key as PEM, not encrypted",
    })
}

fn not_empty<T>(
    path: &Path,
    found: Result<Vec<T>, impl std::fmt::Display>,
    expected: &'static str,
) -> Result<Vec<T>, TlsError> {
    let wrong = |found: String| TlsError::Content { path: path.to_owned(), found, expected };
    match found {
        Ok(found) if found.is_empty() => Err(wrong("there is none".to_owned())),
        Ok(found) => Ok(found),
        Err(error) => Err(wrong(error.to_string())),
    }
}

/// What others must not do with a file.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Keep {
    /// Change it.
    Unchanged,
    /// Change it or read it.
    Secret,
}

/// The content of a file that is as closed as it must be.
fn read(path: &Path, keep: Keep) -> Result<Vec<u8>, TlsError> {
    let failed = |call| move |error| TlsError::Io { call, path: path.to_owned(), error };
    let file = File::open(path).map_err(failed("open"))?;
    let meta = file.metadata().map_err(failed("stat"))?;
    let wrong =
        |found: String, expected| TlsError::Unsafe { path: path.to_owned(), found, expected };
    if !meta.is_file() {
        return Err(wrong("it is no file".to_owned(), "a regular file"));
    }
    let us = geteuid().as_raw();
    if meta.uid() != us && meta.uid() != 0 {
        let found = format!("it belongs to uid {}", meta.uid());
        return Err(wrong(found, "a file of root or of the daemon's user"));
    }
    let (forbidden, expected) = match keep {
        Keep::Unchanged => (0o022, "that only its owner may write it, such as mode 0644"),
        // As a group of keys has it: root's, for that group to read (/etc/ssl/private on Debian).
        Keep::Secret if meta.uid() == 0 => {
            (0o037, "that only root may write it and others not read it, such as mode 0600 or 0640")
        }
        Keep::Secret => (0o077, "that only its owner may read it, such as mode 0600"),
    };
    if meta.mode() & forbidden != 0 {
        return Err(wrong(format!("its mode is {:04o}", meta.mode() & 0o7777), expected));
    }
    let mut bytes = Vec::new();
    file.take(MAX_FILE).read_to_end(&mut bytes).map_err(failed("read"))?;
    Ok(bytes)
}

/// What new connections are judged by.
pub(super) struct Tls {
    options: TlsOptions,
    credentials: Mutex<Credentials>,
    /// With the port that the kernel chose, if it was to.
    address: SocketAddr,
}

impl Tls {
    /// Reads the files, and listens.
    ///
    /// # Errors
    ///
    /// [`TlsError`].
    pub(super) async fn bind(options: TlsOptions) -> Result<(Arc<Self>, TcpListener), TlsError> {
        let credentials = Credentials::read(&options)?;
        let address = options.address;
        let listener = TcpListener::bind(address).await;
        let failed = |error| TlsError::Listen { address, error };
        let listener = listener.map_err(failed)?;
        let address = listener.local_addr().map_err(failed)?;
        let credentials = Mutex::new(credentials);
        Ok((Arc::new(Self { options, credentials, address }), listener))
    }

    /// Where it is listened.
    pub(super) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Reads the files again, for connections that are yet to come. What cannot be used leaves all as it is.
    ///
    /// # Errors
    ///
    /// [`TlsError`].
    pub(super) fn read_again(&self) -> Result<(), TlsError> {
        let credentials = Credentials::read(&self.options)?;
        *self.credentials.lock().unwrap_or_else(PoisonError::into_inner) = credentials;
        Ok(())
    }

    fn credentials(&self) -> Credentials {
        self.credentials.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The connections that are made to `listener`, of those who have a role.
    pub(super) fn incoming(
        self: Arc<Self>,
        listener: TcpListener,
        counts: Counts,
    ) -> ReceiverStream<io::Result<Connection>> {
        let (to_server, connections) = mpsc::channel(1);
        tokio::spawn(async move {
            loop {
                let accepted = tokio::select! {
                    () = to_server.closed() => return,
                    accepted = listener.accept() => accepted,
                };
                match accepted {
                    Ok((stream, from)) => self.clone().greet(stream, from, &counts, &to_server),
                    Err(error) => {
                        tracing::error!(%error, "accept");
                        sleep(ACCEPT_AGAIN).await;
                    }
                }
            }
        });
        ReceiverStream::new(connections)
    }

    /// Begins a handshake, unless there are too many.
    fn greet(
        self: Arc<Self>,
        stream: TcpStream,
        from: SocketAddr,
        counts: &Counts,
        to_server: &mpsc::Sender<io::Result<Connection>>,
    ) {
        let waiting = counts
            .admit(Whose::Address(from.ip()), MAX_HANDSHAKES_OF_ADDRESS)
            .and_then(|one| Some((one, counts.admit(Whose::Uncertified, MAX_HANDSHAKES)?)));
        let Some(waiting) = waiting else {
            tracing::warn!(%from, "too many handshakes; one was turned away");
            return;
        };
        let (counts, to_server) = (counts.clone(), to_server.clone());
        tokio::spawn(async move {
            let shaken = timeout(HANDSHAKE, self.shake(stream, &counts)).await;
            drop(waiting);
            let why = match shaken {
                Ok(Ok(connection)) => {
                    // Without a server there is nobody to tell.
                    let _ = to_server.send(Ok(connection)).await;
                    return;
                }
                Ok(Err(error)) => chain(&error),
                Err(_) => format!("no handshake within {} s", HANDSHAKE.as_secs()),
            };
            tracing::warn!(%from, error = why, "turned away");
        });
    }

    /// Finds out who it is.
    async fn shake(&self, stream: TcpStream, counts: &Counts) -> io::Result<Connection> {
        stream.set_nodelay(true)?;
        let Credentials { acceptor, roles } = self.credentials();
        let stream = acceptor.accept(stream).await?;
        let shown = stream.get_ref().1.peer_certificates().and_then(<[_]>::first);
        let certificate = shown.and_then(|shown| roles.of(shown));
        let certificate = certificate.ok_or(io::ErrorKind::PermissionDenied)?;
        let counted = counted(counts, &certificate)?;
        Ok(Connection::new(stream, Peer::certified(certificate), counted))
    }
}

fn counted(counts: &Counts, certificate: &Certificate) -> io::Result<Counted> {
    let whose = Whose::Subject(certificate.subject.clone());
    counts.admit(whose, MAX_CONNECTIONS).ok_or_else(|| {
        io::Error::other(format!("{}: {MAX_CONNECTIONS} connections", certificate.subject))
    })
}
