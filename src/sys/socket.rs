//! Unix sockets that carry descriptors and credentials (unix(7)).
#![allow(unsafe_code)]

use std::io::{self, IoSlice, IoSliceMut, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use nix::cmsg_space;
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::sys::socket::{
    AddressFamily, ControlMessage, ControlMessageOwned, MsgFlags, Shutdown, SockFlag, SockType,
    UnixAddr, UnixCredentials, bind, getsockname, getsockopt, recv, recvmsg, sendmsg, setsockopt,
    shutdown, socket, socketpair, sockopt,
};
use nix::sys::time::{TimeVal, TimeValLike};
use nix::unistd::{getgid, getpid};

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

/// Lets a datagram socket take no further datagram: sending one fails with EPIPE. Those that wait in it can still be received
/// (shutdown(2); the kernel looks at this and queues under one lock, so none comes in between).
///
/// # Errors
///
/// That of shutdown(2).
pub fn close_to_senders(socket: BorrowedFd<'_>) -> io::Result<()> {
    Ok(shutdown(socket.as_raw_fd(), Shutdown::Read)?)
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

/// Sends `bytes` and `fd` to the datagram socket at `path`, as user `by` or as ourselves; while its queue is full, waits for
/// `patience` at the most.
///
/// # Errors
///
/// That of sendmsg(2): ENOENT, ECONNREFUSED and EPIPE say that nobody listens there (any more), EAGAIN that its queue stays full, EPERM that we
/// may not send as `by` (unix(7), `SCM_CREDENTIALS`: with CAP_SETUID anybody's id will do).
pub fn send_to(
    path: &Path,
    bytes: &[u8],
    fd: BorrowedFd<'_>,
    by: Option<u32>,
    patience: Duration,
) -> io::Result<()> {
    let socket = socket(AddressFamily::Unix, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)?;
    let millis = i64::try_from(patience.as_millis()).unwrap_or(i64::MAX / 1000);
    setsockopt(&socket, sockopt::SendTimeout, &TimeVal::milliseconds(millis))?;
    let fds = [fd.as_raw_fd()];
    let sender = by.map(|uid| {
        UnixCredentials::from(libc::ucred { uid, gid: getgid().as_raw(), pid: getpid().as_raw() })
    });
    let rights = ControlMessage::ScmRights(&fds);
    let sender = sender.as_ref().map(ControlMessage::ScmCredentials);
    let control: Vec<_> = std::iter::once(rights).chain(sender).collect();
    let to = UnixAddr::new(path)?;
    sendmsg(socket.as_raw_fd(), &[IoSlice::new(bytes)], &control, MsgFlags::empty(), Some(&to))?;
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

/// The supplementary groups of who connected, as they were then (unix(7), `SO_PEERGROUPS`, Linux 4.13).
///
/// # Errors
///
/// That of getsockopt(2).
pub fn peer_groups(socket: BorrowedFd<'_>) -> io::Result<Vec<libc::gid_t>> {
    let mut groups: Vec<libc::gid_t> = vec![0; 64];
    loop {
        let size = std::mem::size_of_val(groups.as_slice());
        let mut length = libc::socklen_t::try_from(size).unwrap_or(libc::socklen_t::MAX);
        // SAFETY: `groups` is valid for writes of `length` bytes, and the kernel writes no more than that; both outlive the call.
        let result = unsafe {
            libc::getsockopt(
                socket.as_raw_fd(),
                libc::SOL_SOCKET,
                libc::SO_PEERGROUPS,
                groups.as_mut_ptr().cast(),
                &raw mut length,
            )
        };
        let count = length as usize / size_of::<libc::gid_t>();
        match Errno::result(result) {
            Ok(_) => {
                groups.truncate(count);
                return Ok(groups);
            }
            // The length that would have done is told.
            Err(Errno::ERANGE) if count > groups.len() => groups.resize(count, 0),
            Err(errno) => return Err(errno.into()),
        }
    }
}

/// Takes over the listening stream socket that a service manager handed over as descriptor `raw` (sd_listen_fds(3)).
///
/// # Errors
///
/// `InvalidInput` if `raw` is no listening stream socket of the unix family, or was taken before; that of fcntl(2).
pub fn handed(raw: RawFd) -> io::Result<OwnedFd> {
    static TAKEN: AtomicBool = AtomicBool::new(false);
    let wrong = |what| io::Error::new(io::ErrorKind::InvalidInput, what);
    if TAKEN.swap(true, Ordering::Relaxed) {
        return Err(wrong("the socket was taken before"));
    }
    // SAFETY: the service manager put `raw` into this process for us to own, nothing else in it knows the number, and it is
    // taken once only. Should it not be open, the calls below say so, and closing it is then without effect.
    let fd = unsafe { OwnedFd::from_raw_fd(raw) };
    if getsockopt(&fd, sockopt::SockType)? != SockType::Stream
        || !getsockopt(&fd, sockopt::AcceptConn)?
        || getsockname::<UnixAddr>(raw).is_err()
    {
        return Err(wrong("it is no listening unix stream socket"));
    }
    fcntl(&fd, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC))?;
    Ok(fd)
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
