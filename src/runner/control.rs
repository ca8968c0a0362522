//! Requests to a live runner: one datagram each, answered on the descriptor that came along.

use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use prost::Message;

use crate::proto::control_request::Request;
use crate::proto::{ControlReply, ControlRequest, KillTask};
use crate::sys::socket::{self, Peer};

/// The receiving end of a task's control socket.
pub(super) struct Control {
    socket: OwnedFd,
}

/// What somebody asked.
pub(super) enum Asked {
    /// The end of the task; answered once it is on disk.
    Kill { wait: Duration, lost: bool, by: Peer, reply: Reply },
    /// That the task stands still; answered once it does and that is on disk.
    Pause { by: Peer, reply: Reply },
    /// That the task goes on; answered once it does and that is on disk.
    Resume { by: Peer, reply: Reply },
    /// To be nudged through this descriptor.
    Follow(Follower),
}

impl Control {
    /// Listens at `path`, in place of what an earlier runner left there.
    pub(super) fn bind(path: &Path) -> io::Result<Self> {
        match std::fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        Ok(Self { socket: socket::bind_datagram(path)? })
    }

    /// The next request that makes sense; senseless ones are answered and dropped.
    pub(super) fn next(&self) -> io::Result<Option<Asked>> {
        while let Some(datagram) = socket::receive(self.socket.as_fd())? {
            let Some(fd) = datagram.fd else { continue };
            let request = ControlRequest::decode(&datagram.bytes[..]).ok();
            match request.and_then(|request| request.request) {
                Some(Request::Kill(KillTask { wait_nanos, lost })) => {
                    let wait = Duration::from_nanos(wait_nanos);
                    let reply = Reply(UnixStream::from(fd));
                    return Ok(Some(Asked::Kill { wait, lost, by: datagram.peer, reply }));
                }
                Some(Request::Pause(_)) => {
                    let reply = Reply(UnixStream::from(fd));
                    return Ok(Some(Asked::Pause { by: datagram.peer, reply }));
                }
                Some(Request::Resume(_)) => {
                    let reply = Reply(UnixStream::from(fd));
                    return Ok(Some(Asked::Resume { by: datagram.peer, reply }));
                }
                Some(Request::Follow(_)) => {
                    return Ok(Some(Asked::Follow(Follower::new(fd))));
                }
                None => Reply(UnixStream::from(fd)).send("the runner does not know this request"),
            }
        }
        Ok(None)
    }
}

impl AsFd for Control {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// Where an answer goes.
pub(super) struct Reply(UnixStream);

impl Reply {
    /// Answers; an empty `error` says that it was done. Who does not listen any more misses it.
    pub(super) fn send(self, error: &str) {
        self.answer(ControlReply { error: error.to_owned(), ..ControlReply::default() });
    }

    /// Answers that it is on disk, and what of it is still to come.
    pub(super) fn send_unfinished(self, what: &str) {
        self.answer(ControlReply { unfinished: what.to_owned(), ..ControlReply::default() });
    }

    fn answer(mut self, reply: ControlReply) {
        // A frame of its own length, so that an empty message is told from a closed socket.
        let _ = self.0.set_nonblocking(true);
        let _ = self.0.write_all(&reply.encode_length_delimited_to_vec());
    }
}

/// Somebody who is nudged after each turn that recorded something.
pub(super) struct Follower(UnixStream);

impl Follower {
    pub(super) fn new(fd: OwnedFd) -> Self {
        let stream = UnixStream::from(fd);
        let _ = stream.set_nonblocking(true);
        Self(stream)
    }

    /// Nudges; false once it is gone. A full buffer is nudge enough.
    pub(super) fn nudge(&mut self) -> bool {
        match self.0.write_all(&[0]) {
            Ok(()) => true,
            Err(error) => error.kind() == io::ErrorKind::WouldBlock,
        }
    }
}
