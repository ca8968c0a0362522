//! Signals as descriptors: what a person at a terminal sends.

use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;

use nix::libc::{SIGINT, SIGTERM, SIGWINCH};
use signal_hook::low_level::pipe;

/// Signals that arrived, a byte each.
#[derive(Debug)]
pub(super) struct Signals {
    interrupts: UnixStream,
    resizes: UnixStream,
}

impl Signals {
    /// Catches SIGINT and SIGTERM as interrupts and SIGWINCH as resizes, from now on.
    ///
    /// # Errors
    ///
    /// Those of socketpair(2) and sigaction(2).
    pub(super) fn catch() -> io::Result<Self> {
        let (interrupts, interrupted) = UnixStream::pair()?;
        let (resizes, resized) = UnixStream::pair()?;
        interrupts.set_nonblocking(true)?;
        resizes.set_nonblocking(true)?;
        pipe::register(SIGTERM, interrupted.try_clone()?)?;
        pipe::register(SIGINT, interrupted)?;
        pipe::register(SIGWINCH, resized)?;
        Ok(Self { interrupts, resizes })
    }

    /// Signals that are sent by hand: each byte is an interrupt.
    #[cfg(test)]
    pub(super) fn by_hand() -> (Self, UnixStream) {
        let (interrupts, interrupted) = UnixStream::pair().unwrap();
        let (resizes, _) = UnixStream::pair().unwrap();
        interrupts.set_nonblocking(true).unwrap();
        resizes.set_nonblocking(true).unwrap();
        (Self { interrupts, resizes }, interrupted)
    }

    /// Readable once an interrupt has come.
    pub(super) fn interrupt_fd(&self) -> BorrowedFd<'_> {
        self.interrupts.as_fd()
    }

    /// Readable once the terminal has another size.
    pub(super) fn resize_fd(&self) -> BorrowedFd<'_> {
        self.resizes.as_fd()
    }

    /// How many interrupts have come since the last time.
    pub(super) fn interrupts(&self) -> usize {
        drain(&self.interrupts)
    }

    /// Whether the terminal has another size than the last time.
    pub(super) fn resized(&self) -> bool {
        drain(&self.resizes) > 0
    }
}

fn drain(mut stream: &UnixStream) -> usize {
    let mut bytes = [0; 64];
    let mut count = 0;
    while let Ok(read @ 1..) = stream.read(&mut bytes) {
        count += read;
    }
    count
}
