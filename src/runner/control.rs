//! Requests to a live runner: one datagram each, answered on the descriptor that came along.

use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use prost::Message;

use crate::control::REASON_MAX;
use crate::proto::control_request::Request;
use crate::proto::{ControlReply, ControlRequest, KillTask, SignalTask, UpdateLimits};
use crate::sys::socket::{self, Datagram, Peer};

/// The receiving end of a task's control socket.
pub(super) struct Control {
    socket: OwnedFd,
}

/// What somebody asked.
pub(super) enum Asked {
    /// The end of the task; answered once it is on disk.
    Kill { wait: Duration, lost: bool, reason: Option<String>, by: Peer, reply: Reply },
    /// That the task stands still; answered once it does and that is on disk.
    Pause { by: Peer, reply: Reply },
    /// That the task goes on; answered once it does and that is on disk.
    Resume { by: Peer, reply: Reply },
    /// Other limits; answered once they are in force and on disk.
    Update { asked: Box<UpdateLimits>, by: Peer, reply: Reply },
    /// A signal to processes of the task; answered once it was sent.
    Signal { asked: SignalTask, reply: Reply },
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
            if let Some(asked) = understand(datagram) {
                return Ok(Some(asked));
            }
        }
        Ok(None)
    }

    /// Takes no further request: who asks from now on finds that nobody listens. What was sent before can still be had.
    pub(super) fn close(&self, path: &Path) -> io::Result<()> {
        let _ = std::fs::remove_file(path);
        socket::close_to_senders(self.socket.as_fd())
    }
}

/// What a datagram asks. One that makes no sense is answered; one that nobody waits for is none.
pub(super) fn understand(datagram: Datagram) -> Option<Asked> {
    let Datagram { bytes, peer: by, fd } = datagram;
    let fd = fd?;
    let request = ControlRequest::decode(&bytes[..]).ok().and_then(|request| request.request);
    if matches!(request, Some(Request::Follow(_))) {
        return Some(Asked::Follow(Follower::new(fd)));
    }
    let reply = Reply(UnixStream::from(fd));
    match request {
        Some(Request::Kill(KillTask { wait_nanos, lost, reason })) => {
            if let Some(bytes) = reason.as_ref().map(String::len).filter(|&len| len > REASON_MAX) {
                reply.send(&format!("the reason has {bytes} bytes; at most {REASON_MAX} are kept"));
                return None;
            }
            Some(Asked::Kill { wait: Duration::from_nanos(wait_nanos), lost, reason, by, reply })
        }
        Some(Request::Pause(_)) => Some(Asked::Pause { by, reply }),
        Some(Request::Update(asked)) => Some(Asked::Update { asked: Box::new(asked), by, reply }),
        Some(Request::Signal(asked)) => Some(Asked::Signal { asked, reply }),
        Some(Request::Resume(_)) => Some(Asked::Resume { by, reply }),
        Some(Request::Follow(_)) | None => {
            reply.send("the runner does not know this request");
            None
        }
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

    /// Answers that it was done, and which limits the kernel rounded.
    pub(super) fn send_rounded(self, rounded: Vec<String>) {
        self.answer(ControlReply { rounded, ..ControlReply::default() });
    }

    fn answer(mut self, reply: ControlReply) {
        // A frame of its own length, so that an empty message is told from a closed socket.
        let _ = self.0.set_nonblocking(true);
        let _ = self.0.write_all(&reply.encode_length_delimited_to_vec());
    }
}

/// Somebody who is nudged after each turn that recorded something, and told whether the runner waits for the disk.
pub(super) struct Follower {
    stream: UnixStream,
    told: u8,
}

impl Follower {
    pub(super) fn new(fd: OwnedFd) -> Self {
        let stream = UnixStream::from(fd);
        let _ = stream.set_nonblocking(true);
        Self { stream, told: 0 }
    }

    /// Nudges if there are `news`, or what `waits` says was not told yet; false once it is gone. A full buffer is nudge enough for
    /// news.
    pub(super) fn nudge(&mut self, news: bool, waits: bool) -> bool {
        let byte = u8::from(waits);
        if !news && byte == self.told {
            return true;
        }
        match self.stream.write_all(&[byte]) {
            Ok(()) => {
                self.told = byte;
                true
            }
            Err(error) => error.kind() == io::ErrorKind::WouldBlock,
        }
    }
}
