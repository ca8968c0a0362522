//! The socket: where it is, who may connect, and who it is that does; and what is a connection, also over TCP (`tcp.rs`).

use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::UnixListener as StdListener;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use nix::unistd::{Gid, geteuid};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{UnixListener, UnixStream};
use tokio_stream::Stream;
use tonic::transport::server::Connected;

use super::counts::{Counted, Counts, Whose};
use super::peer::{Admins, Peer};
use crate::sys::socket;

/// Most connections of one user that is no admin, and of one certificate; admins on the socket have no limit but that of
/// descriptors.
pub(super) const MAX_CONNECTIONS: usize = 256;
/// Pause after a connection could not be taken, such as for want of descriptors.
pub(super) const ACCEPT_AGAIN: Duration = Duration::from_millis(100);

/// Looks at a socket that is listened on, and the pause after each: a second in all. A child of a daemon that was killed has its socket
/// until it has become a runner (execve(2)).
const HELD_LOOKS: u32 = 50;
const HELD_PAUSE: std::time::Duration = std::time::Duration::from_millis(20);

/// Why there is no socket to listen on. Each says what was found and what to do.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    /// An ordinary user without a directory for sockets.
    #[error("XDG_RUNTIME_DIR is not set: name a socket with --address")]
    NoRuntimeDir,
    /// Somebody else could put another socket in its place.
    #[error("{}: {why}; others could put a socket of theirs in its place", path.display())]
    Unsafe {
        /// The directory.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// There is something at the path that is no socket.
    #[error("{} is there and is no socket", .0.display())]
    NoSocket(PathBuf),
    /// A daemon answers there.
    #[error("another daemon listens on {}", .0.display())]
    InUse(PathBuf),
    /// The service manager handed over something else.
    #[error("LISTEN_FDS: {0}")]
    Handed(String),
    /// A call failed.
    #[error("{call} {}", path.display())]
    Sys {
        /// What was tried.
        call: &'static str,
        /// With what.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        error: io::Error,
    },
}

/// A socket that is listened on.
#[derive(Debug)]
pub(super) struct Listener {
    listener: UnixListener,
    name: String,
    /// Removed with the listener, if it was made by us.
    made: Option<PathBuf>,
}

impl Drop for Listener {
    fn drop(&mut self) {
        if let Some(path) = &self.made {
            let _ = std::fs::remove_file(path);
        }
    }
}

/// Where the daemon listens, and where clients look for it: `/run/dewar/dewar.sock` as root, else `dewar/dewar.sock` in
/// `$XDG_RUNTIME_DIR`.
///
/// # Errors
///
/// [`ListenError::NoRuntimeDir`].
pub fn default_socket() -> Result<PathBuf, ListenError> {
    if geteuid().is_root() {
        return Ok("/run/dewar/dewar.sock".into());
    }
    let dir = std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from);
    let dir = dir.filter(|dir| dir.is_absolute()).ok_or(ListenError::NoRuntimeDir)?;
    Ok(dir.join("dewar/dewar.sock"))
}

/// Listens on `path`; on none, on the socket that the service manager hands over (sd_listen_fds(3)), or else on the default one.
///
/// # Errors
///
/// [`ListenError`].
pub(super) fn bind(
    path: Option<PathBuf>,
    mode: u32,
    admins: Admins,
) -> Result<Listener, ListenError> {
    if path.is_none()
        && let Some(listener) = handed()?
    {
        return Ok(listener);
    }
    let path = path.map_or_else(default_socket, Ok)?;
    let failed = |call| {
        let path = path.clone();
        move |error: io::Error| ListenError::Sys { call, path, error }
    };
    if let Some(dir) = path.parent() {
        check_directory(dir)?;
    }
    clear(&path)?;
    // Nobody can connect before the mode is set: only we can while it is 0600.
    let before = nix::sys::stat::umask(nix::sys::stat::Mode::from_bits_truncate(0o177));
    let bound = StdListener::bind(&path);
    nix::sys::stat::umask(before);
    let listener = bound.map_err(failed("bind"))?;
    if let Some(gid) = admins.gid {
        nix::unistd::chown(&path, None, Some(Gid::from_raw(gid)))
            .map_err(|errno| failed("chown")(errno.into()))?;
    }
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode))
        .map_err(failed("chmod"))?;
    listener.set_nonblocking(true).map_err(failed("listen on"))?;
    let listener = UnixListener::from_std(listener).map_err(failed("listen on"))?;
    Ok(Listener { listener, name: path.display().to_string(), made: Some(path) })
}

/// The socket that the service manager hands over, if it does.
fn handed() -> Result<Option<Listener>, ListenError> {
    let wrong = |error: io::Error| ListenError::Handed(error.to_string());
    let mut fds = sd_notify::listen_fds().map_err(wrong)?;
    let Some(fd) = fds.next() else { return Ok(None) };
    if fds.next().is_some() {
        return Err(ListenError::Handed("more than one socket".to_owned()));
    }
    // It is kept for the life of the process: its number is ours, and nobody else's.
    let fd = socket::handed(fd).map_err(wrong)?;
    let listener = StdListener::from(fd);
    let name = listener.local_addr().map_err(wrong)?;
    let name = name.as_pathname().map_or_else(
        || "a socket of the service manager".to_owned(),
        |path| path.display().to_string(),
    );
    listener.set_nonblocking(true).map_err(wrong)?;
    let listener = UnixListener::from_std(listener).map_err(wrong)?;
    Ok(Some(Listener { listener, name, made: None }))
}

/// Makes the directory of the socket if it is missing, and sees that nobody else can change what is in it.
fn check_directory(dir: &Path) -> Result<(), ListenError> {
    use std::os::unix::fs::DirBuilderExt;
    let failed = |call| move |error| ListenError::Sys { call, path: dir.to_owned(), error };
    match std::fs::DirBuilder::new().mode(0o755).create(dir) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
        Err(error) => return Err(failed("mkdir")(error)),
    }
    let meta = std::fs::symlink_metadata(dir).map_err(failed("stat"))?;
    let wrong = |why: String| ListenError::Unsafe { path: dir.to_owned(), why };
    if !meta.is_dir() {
        return Err(wrong("it is not a directory".to_owned()));
    }
    let us = geteuid().as_raw();
    if meta.uid() != us && meta.uid() != 0 {
        return Err(wrong(format!("it belongs to uid {}, not to {us} or root", meta.uid())));
    }
    if meta.mode() & 0o022 != 0 && meta.mode() & 0o1000 == 0 {
        return Err(wrong(format!("its mode is {:04o}", meta.mode() & 0o7777)));
    }
    Ok(())
}

/// Removes a socket that nobody listens on any more.
fn clear(path: &Path) -> Result<(), ListenError> {
    use std::os::unix::fs::FileTypeExt;
    let failed = |call| move |error| ListenError::Sys { call, path: path.to_owned(), error };
    match std::fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(failed("stat")(error)),
        Ok(meta) if !meta.file_type().is_socket() => {
            return Err(ListenError::NoSocket(path.to_owned()));
        }
        Ok(_) => {}
    }
    for _ in 0..HELD_LOOKS {
        if std::os::unix::net::UnixStream::connect(path).is_err() {
            return std::fs::remove_file(path).map_err(failed("unlink"));
        }
        std::thread::sleep(HELD_PAUSE);
    }
    Err(ListenError::InUse(path.to_owned()))
}

impl Listener {
    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// The connections that are made to it.
    pub(super) fn incoming(self, admins: Admins, counts: Counts) -> Incoming {
        Incoming { listener: self, admins, counts, pause: None }
    }
}

/// Connections, as they are made.
pub(super) struct Incoming {
    listener: Listener,
    admins: Admins,
    counts: Counts,
    /// While there are no descriptors left.
    pause: Option<Pin<Box<tokio::time::Sleep>>>,
}

impl Stream for Incoming {
    type Item = io::Result<Connection>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        loop {
            if let Some(pause) = &mut self.pause {
                std::task::ready!(pause.as_mut().poll(context));
                self.pause = None;
            }
            match std::task::ready!(self.listener.listener.poll_accept(context)) {
                Ok((stream, _)) => {
                    if let Some(connection) = self.admit(stream) {
                        return Poll::Ready(Some(Ok(connection)));
                    }
                }
                Err(error) => {
                    tracing::error!(%error, "accept");
                    self.pause = Some(Box::pin(tokio::time::sleep(ACCEPT_AGAIN)));
                }
            }
        }
    }
}

impl Incoming {
    /// Finds out who it is; too many of one user are turned away.
    fn admit(&self, stream: UnixStream) -> Option<Connection> {
        let identified = stream.peer_cred().and_then(|cred| {
            let groups = socket::peer_groups(stream.as_fd())?;
            Ok((cred, groups))
        });
        let (cred, mut groups) = match identified {
            Ok(identified) => identified,
            Err(error) => {
                tracing::warn!(%error, "a peer that the kernel does not name was turned away");
                return None;
            }
        };
        groups.push(cred.gid());
        let peer = Peer::new(cred.uid(), &groups, cred.pid(), self.admins);
        let most = if peer.is_admin { usize::MAX } else { MAX_CONNECTIONS };
        let Some(counted) = self.counts.admit(Whose::User(peer.uid), most) else {
            tracing::warn!(uid = peer.uid, "more than {most} connections; one was turned away");
            return None;
        };
        Some(Connection::new(stream, peer, counted))
    }
}

/// What a connection is read from and written to.
trait Io: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Io for T {}

/// A connection, and who made it.
pub(super) struct Connection {
    stream: Box<dyn Io>,
    peer: Peer,
    _counted: Counted,
}

impl Connection {
    pub(super) fn new(
        stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
        peer: Peer,
        counted: Counted,
    ) -> Self {
        Self { stream: Box::new(stream), peer, _counted: counted }
    }
}

impl Connected for Connection {
    type ConnectInfo = Peer;

    fn connect_info(&self) -> Peer {
        self.peer.clone()
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(context, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
