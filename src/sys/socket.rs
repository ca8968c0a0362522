//! Unix sockets that carry descriptors and credentials (unix(7)).
#![allow(unsafe_code)]

use std::io::{self, IoSlice, IoSliceMut, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use nix::cmsg_space;
use nix::sys::socket::{
    AddressFamily, ControlMessage, ControlMessageOwned, MsgFlags, SockFlag, SockType, UnixAddr,
    UnixCredentials, bind, getsockopt, recv, recvmsg, sendmsg, setsockopt, socket, socketpair,
    sockopt,
};
use nix::sys::time::{TimeVal, TimeValLike};

/// Longest datagram that is taken, bytes: more than the kernel lets anybody send by default.
const DATAGRAM_MAX: usize = 1 << 20;

/// A datagram, who sent it, and the descriptor that came with it.
#[derive(Debug)]
pub struct Datagram {
    /// Its bytes; longer ones were cut off to a MiB.
    pub bytes: Vec<u8>,
    /// Sender, as the kernel vouches for it.
    pub peer: Peer,
    /// The first descriptor that came along.
    pub fd: Option<OwnedFd>,
}

/// A sender, as the kernel vouches for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Peer {
    /// User id.
    pub uid: u32,
    /// Process id; a hint, as it may be used again.
    pub pid: i32,
}

/// A datagram socket bound at `path`, non-blocking, which passes credentials.
///
/// `path` must be short: at most 107 bytes (unix(7)).
///
/// # Errors
///
/// That of socket(2), setsockopt(2) or bind(2).
pub fn bind_datagram(path: &Path) -> io::Result<OwnedFd> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let fd = socket(AddressFamily::Unix, SockType::Datagram, flags, None)?;
    setsockopt(&fd, sockopt::PassCred, &true)?;
    bind(fd.as_raw_fd(), &UnixAddr::new(path)?)?;
    Ok(fd)
}

/// Two connected stream sockets.
///
/// # Errors
///
/// That of socketpair(2).
pub fn pair() -> io::Result<(OwnedFd, OwnedFd)> {
    let flags = SockFlag::SOCK_CLOEXEC;
    Ok(socketpair(AddressFamily::Unix, SockType::Stream, None, flags)?)
}

/// Sends `bytes` and `fd` to the datagram socket at `path`; while its queue is full, waits for `patience` at the most.
///
/// # Errors
///
/// That of sendmsg(2): ENOENT and ECONNREFUSED say that nobody listens there, EAGAIN that its queue stays full.
pub fn send_to(
    path: &Path,
    bytes: &[u8],
    fd: BorrowedFd<'_>,
    patience: Duration,
) -> io::Result<()> {
    let socket = socket(AddressFamily::Unix, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)?;
    let millis = i64::try_from(patience.as_millis()).unwrap_or(i64::MAX / 1000);
    setsockopt(&socket, sockopt::SendTimeout, &TimeVal::milliseconds(millis))?;
    let fds = [fd.as_raw_fd()];
    let rights = [ControlMessage::ScmRights(&fds)];
    let to = UnixAddr::new(path)?;
    sendmsg(socket.as_raw_fd(), &[IoSlice::new(bytes)], &rights, MsgFlags::empty(), Some(&to))?;
    Ok(())
}

/// The next datagram, whole; `None` where none waits.
///
/// # Errors
///
/// That of recvmsg(2).
pub fn receive(socket: BorrowedFd<'_>) -> io::Result<Option<Datagram>> {
    // With MSG_TRUNC the answer is the length of what waits, however much of it fits (recv(2)).
    let look = MsgFlags::MSG_PEEK | MsgFlags::MSG_TRUNC | MsgFlags::MSG_DONTWAIT;
    let length = match recv(socket.as_raw_fd(), &mut [], look) {
        Ok(length) => length,
        Err(nix::Error::EAGAIN) => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    let mut bytes = vec![0; length.min(DATAGRAM_MAX)];
    match receive_into(socket, &mut bytes, MsgFlags::MSG_DONTWAIT) {
        Ok((length, peer, fd)) => {
            bytes.truncate(length);
            let peer = peer.unwrap_or(Peer { uid: u32::MAX, pid: 0 });
            Ok(Some(Datagram { bytes, peer, fd }))
        }
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
        Err(error) => Err(error),
    }
}

/// Sends `bytes` and `fd` on a stream socket.
///
/// # Errors
///
/// That of sendmsg(2) or write(2).
pub fn send(socket: &UnixStream, bytes: &[u8], fd: BorrowedFd<'_>) -> io::Result<()> {
    let fds = [fd.as_raw_fd()];
    let rights = [ControlMessage::ScmRights(&fds)];
    let slices = [IoSlice::new(bytes)];
    let sent = sendmsg::<()>(socket.as_raw_fd(), &slices, &rights, MsgFlags::MSG_NOSIGNAL, None)?;
    (&mut &*socket).write_all(&bytes[sent..])
}

/// Waits for bytes on a stream socket: how many came into `buffer`, and the descriptor that came along.
///
/// # Errors
///
/// That of recvmsg(2).
pub fn receive_some(
    socket: &UnixStream,
    buffer: &mut [u8],
) -> io::Result<(usize, Option<OwnedFd>)> {
    let (length, _, fd) = receive_into(socket.as_fd(), buffer, MsgFlags::empty())?;
    Ok((length, fd))
}

/// Who made the pair that a socket is one of (unix(7), SO_PEERCRED).
///
/// # Errors
///
/// That of getsockopt(2).
pub fn maker(socket: &UnixStream) -> io::Result<Peer> {
    let maker = getsockopt(socket, sockopt::PeerCredentials)?;
    Ok(Peer { uid: maker.uid(), pid: maker.pid() })
}

fn receive_into(
    socket: BorrowedFd<'_>,
    buffer: &mut [u8],
    flags: MsgFlags,
) -> io::Result<(usize, Option<Peer>, Option<OwnedFd>)> {
    let mut space = cmsg_space!([RawFd; 4], UnixCredentials);
    let flags = flags | MsgFlags::MSG_CMSG_CLOEXEC;
    let mut slices = [IoSliceMut::new(buffer)];
    let message = recvmsg::<()>(socket.as_raw_fd(), &mut slices, Some(&mut space), flags)?;
    let mut peer = None;
    let mut fds = Vec::new();
    for control in message.cmsgs()? {
        match control {
            ControlMessageOwned::ScmRights(raw) => fds.extend(raw.into_iter().map(own)),
            ControlMessageOwned::ScmCredentials(sender) => {
                peer = Some(Peer { uid: sender.uid(), pid: sender.pid() });
            }
            _ => {}
        }
    }
    Ok((message.bytes, peer, fds.into_iter().next()))
}

fn own(raw: RawFd) -> OwnedFd {
    // SAFETY: recvmsg(2) has just installed `raw` in this process for SCM_RIGHTS, and the message
    // that names it is consumed here, once: nobody else closes it.
    unsafe { OwnedFd::from_raw_fd(raw) }
}
