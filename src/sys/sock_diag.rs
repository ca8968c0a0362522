//! Whose a TCP connection of this host is: the user of the socket at its other end, as the kernel knows it (sock_diag(7)).
//!
//! A connection over loopback has both of its ends here. The kernel finds the other one by its four addresses, exactly, and tells
//! which user made it. That is told for any process that asks, without privileges, and of this network namespace only.
//!
//! What is told is doubted: a socket that is left without a process, one that waits for its end, and a request for one are told with
//! user 0; and where there is no connection of these addresses, a listening socket is found in its place. None of these is anybody's
//! word, so that only a live end with exactly these addresses counts.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsRawFd, OwnedFd};

use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, recv, sendto,
    setsockopt, socket, sockopt,
};
use nix::sys::time::TimeVal;

/// `SOCK_DIAG_BY_FAMILY` of linux/sock_diag.h.
const SOCK_DIAG_BY_FAMILY: u16 = 20;
/// `NLM_F_REQUEST` of netlink(7).
const REQUEST: u16 = 1;
/// `NLMSG_ERROR` of netlink(7).
const ERROR: u16 = 2;
/// Bytes of `struct nlmsghdr`.
const HEADER: usize = 16;
/// Bytes of `struct inet_diag_req_v2` of linux/inet_diag.h.
const QUESTION: usize = 56;
/// Bytes of `struct inet_diag_msg`.
const ANSWER: usize = 72;
/// `INET_DIAG_NOCOOKIE`, twice: any socket with the addresses.
const NO_COOKIE: [u8; 8] = [0xff; 8];

/// `TCP_ESTABLISHED`, `TCP_FIN_WAIT1`, `TCP_FIN_WAIT2` of net/tcp_states.h: the last two of a process that has said all it has to say,
/// and still reads.
const LIVE: [u8; 3] = [1, 4, 5];
/// `TCP_LISTEN`.
const LISTEN: u8 = 10;

/// The kernel's answer is there as soon as the question is sent; this is for a kernel that does not give one.
const PATIENCE: TimeVal = TimeVal::new(5, 0);

/// What the kernel says of a socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Told {
    state: u8,
    local: SocketAddr,
    remote: SocketAddr,
    uid: u32,
    inode: u32,
}

/// The user whose socket is connected from `client` to `server`, both addresses of this host; `None` if there is no such socket, or
/// not any more, or it is not known whose it is.
///
/// # Errors
///
/// That of socket(2), sendto(2) or recv(2), or the one that the kernel answers with; `InvalidData` for an answer that is none.
pub fn user_of(client: SocketAddr, server: SocketAddr) -> io::Result<Option<u32>> {
    let told = ask(client, server)?;
    let is_its = |told: &Told| {
        LIVE.contains(&told.state)
            && told.inode != 0
            && same(told.local, client)
            && same(told.remote, server)
    };
    Ok(told.filter(is_its).map(|told| told.uid))
}

/// Whether the kernel tells whose a socket is, tried with one that listens on `address`.
///
/// # Errors
///
/// As [`user_of`].
pub fn is_answered(address: SocketAddr) -> io::Result<bool> {
    let anybody = SocketAddr::new(unspecified(address), 0);
    let told = ask(address, anybody)?;
    Ok(told.is_some_and(|told| told.state == LISTEN && same(told.local, address)))
}

fn unspecified(like: SocketAddr) -> IpAddr {
    match like {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    }
}

/// A socket of IPv6 may have IPv4 addresses.
fn same(one: SocketAddr, other: SocketAddr) -> bool {
    one.port() == other.port() && one.ip().to_canonical() == other.ip().to_canonical()
}

/// The socket with the local address `local` and the remote address `remote`.
fn ask(local: SocketAddr, remote: SocketAddr) -> io::Result<Option<Told>> {
    let netlink = open()?;
    let to_kernel = NetlinkAddr::new(0, 0);
    sendto(netlink.as_raw_fd(), &question(local, remote), &to_kernel, MsgFlags::empty())?;
    let mut answer = [0; 1024];
    let length = loop {
        match recv(netlink.as_raw_fd(), &mut answer, MsgFlags::empty()) {
            Err(nix::Error::EINTR) => {}
            received => break received?,
        }
    };
    parse(&answer[..length])
}

fn open() -> io::Result<OwnedFd> {
    let flags = SockFlag::SOCK_CLOEXEC;
    let protocol = SockProtocol::NetlinkSockDiag;
    let netlink = socket(AddressFamily::Netlink, SockType::Datagram, flags, protocol)?;
    setsockopt(&netlink, sockopt::ReceiveTimeout, &PATIENCE)?;
    Ok(netlink)
}

/// A question for exactly one socket. Ports and addresses are in network order, all else in ours.
fn question(local: SocketAddr, remote: SocketAddr) -> Vec<u8> {
    let length = HEADER + QUESTION;
    let mut bytes = Vec::with_capacity(length);
    bytes.extend(u32::try_from(length).unwrap_or(u32::MAX).to_ne_bytes());
    bytes.extend(SOCK_DIAG_BY_FAMILY.to_ne_bytes());
    bytes.extend(REQUEST.to_ne_bytes());
    // Sequence number and port of the sender: there is one question, and the kernel knows who asks.
    bytes.extend([0; 8]);
    let family = if local.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 };
    let protocol = libc::IPPROTO_TCP;
    // No extensions, padding; then any state.
    bytes.extend([family as u8, protocol as u8, 0, 0]);
    bytes.extend(u32::MAX.to_ne_bytes());
    bytes.extend(local.port().to_be_bytes());
    bytes.extend(remote.port().to_be_bytes());
    bytes.extend(octets(local.ip()));
    bytes.extend(octets(remote.ip()));
    // Any interface.
    bytes.extend([0; 4]);
    bytes.extend(NO_COOKIE);
    bytes
}

/// An address as `inet_diag_sockid` holds it: one of IPv4 is in the first four bytes.
fn octets(ip: IpAddr) -> [u8; 16] {
    let mut bytes = [0; 16];
    match ip {
        IpAddr::V4(ip) => bytes[..4].copy_from_slice(&ip.octets()),
        IpAddr::V6(ip) => bytes = ip.octets(),
    }
    bytes
}

/// What the kernel has answered; `None`: there is no such socket.
fn parse(bytes: &[u8]) -> io::Result<Option<Told>> {
    let wrong = || io::Error::new(io::ErrorKind::InvalidData, "the kernel's answer is none");
    let (header, body) = bytes.split_at_checked(HEADER).ok_or_else(wrong)?;
    let kind = u16::from_ne_bytes([header[4], header[5]]);
    if kind == ERROR {
        let errno = body.first_chunk().map(|bytes| i32::from_ne_bytes(*bytes)).ok_or_else(wrong)?;
        return match -errno {
            libc::ENOENT => Ok(None),
            errno => Err(io::Error::from_raw_os_error(errno)),
        };
    }
    if kind != SOCK_DIAG_BY_FAMILY || body.len() < ANSWER {
        return Err(wrong());
    }
    let word = |at: usize| u32::from_ne_bytes([body[at], body[at + 1], body[at + 2], body[at + 3]]);
    let port = |at: usize| u16::from_be_bytes([body[at], body[at + 1]]);
    let is_v4 = i32::from(body[0]) == libc::AF_INET;
    let ip = |at: usize| {
        let bytes: [u8; 16] = std::array::from_fn(|byte| body[at + byte]);
        match is_v4 {
            true => IpAddr::from([bytes[0], bytes[1], bytes[2], bytes[3]]),
            false => IpAddr::from(bytes),
        }
    };
    Ok(Some(Told {
        state: body[1],
        local: SocketAddr::new(ip(8), port(4)),
        remote: SocketAddr::new(ip(24), port(6)),
        uid: word(64),
        inode: word(68),
    }))
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::{Shutdown, TcpListener, TcpStream};
    use std::os::fd::AsFd;

    use nix::unistd::{Uid, fchown, geteuid};

    use super::*;

    fn listener(address: &str) -> (TcpListener, SocketAddr) {
        let listener = TcpListener::bind(address).unwrap();
        let address = listener.local_addr().unwrap();
        (listener, address)
    }

    /// Both ends, and the addresses of client and server as the server sees them.
    fn connect(to: SocketAddr, listener: &TcpListener) -> (TcpStream, TcpStream, SocketAddr) {
        let client = TcpStream::connect(to).unwrap();
        let (server, address) = listener.accept().unwrap();
        (client, server, address)
    }

    #[test]
    fn who_connects_over_loopback_is_known_over_both_protocols() {
        for address in ["127.0.0.1:0", "127.8.9.10:0", "[::1]:0"] {
            let (listener, address) = listener(address);
            let (_client, _server, client) = connect(address, &listener);

            assert!(is_answered(address).unwrap(), "{address}");
            assert_eq!(user_of(client, address).unwrap(), Some(geteuid().as_raw()), "{address}");
        }
    }

    /// The user is that of the socket, not ours: attack 54.
    #[test]
    fn another_user_is_told_as_another_user() {
        if !geteuid().is_root() {
            return;
        }
        let (listener, address) = listener("127.0.0.1:0");
        let (client, _server, from) = connect(address, &listener);
        fchown(client.as_fd(), Some(Uid::from_raw(4711)), None).unwrap();

        assert_eq!(user_of(from, address).unwrap(), Some(4711));
    }

    /// A client in Java has sockets of IPv6 alone.
    #[test]
    fn a_socket_of_ipv6_with_ipv4_addresses_is_known() {
        let (listener, address) = listener("127.0.0.1:0");
        let mapped: SocketAddr = format!("[::ffff:127.0.0.1]:{}", address.port()).parse().unwrap();
        let (_client, _server, from) = connect(mapped, &listener);

        assert_eq!(user_of(from, address).unwrap(), Some(geteuid().as_raw()));
    }

    #[test]
    fn a_client_that_only_listens_by_now_is_known_and_one_that_is_gone_is_not() {
        let (listener, address) = listener("127.0.0.1:0");
        let (mut client, mut server, from) = connect(address, &listener);

        client.shutdown(Shutdown::Write).unwrap();
        assert_eq!(server.read(&mut [0]).unwrap(), 0);
        assert_eq!(user_of(from, address).unwrap(), Some(geteuid().as_raw()));
        server.write_all(b"x").unwrap();
        assert_eq!(client.read(&mut [0]).unwrap(), 1);

        // The kernel tells user 0 of it: nobody is left who could be asked.
        drop(client);
        assert_eq!(user_of(from, address).unwrap(), None);
        drop(server);
        assert_eq!(user_of(from, address).unwrap(), None);
    }

    /// The kernel finds a listening socket where there is no connection.
    #[test]
    fn a_listening_socket_is_no_client() {
        let (_one, client) = listener("127.0.0.1:0");
        let (_other, server) = listener("127.0.0.1:0");

        assert!(ask(client, server).unwrap().is_some_and(|told| told.state == LISTEN));
        assert_eq!(user_of(client, server).unwrap(), None);
    }

    #[test]
    fn an_answer_that_is_none_is_an_error_however_short() {
        let mut whole = question("127.0.0.1:1".parse().unwrap(), "127.0.0.1:2".parse().unwrap());
        whole.resize(HEADER + ANSWER - 1, 0);
        for length in 0..whole.len() {
            assert!(parse(&whole[..length]).is_err(), "{length}");
        }
    }
}
