//! Standard output.

use std::io::{self, Write};

/// A writer until it fails or its reader goes away: from then on what is written is dropped.
///
/// Whoever closes the other end of a pipe wants to see no more. That ends the printing, and nothing else: the Rust
/// runtime has SIGPIPE ignored, so the write fails with EPIPE.
#[derive(Debug)]
pub(super) struct Out<W = io::Stdout> {
    to: W,
    gone: bool,
}

impl Default for Out {
    fn default() -> Self {
        Self::new(io::stdout())
    }
}

impl<W: Write> Out<W> {
    /// Writes to `to`.
    pub(super) fn new(to: W) -> Self {
        Self { to, gone: false }
    }

    /// Writes `text`, all at once as far as the kernel goes along.
    ///
    /// # Errors
    ///
    /// Those of write(2) but EPIPE; each is told once.
    pub(super) fn write(&mut self, text: impl AsRef<[u8]>) -> io::Result<()> {
        if self.gone || text.as_ref().is_empty() {
            return Ok(());
        }
        let written = self.to.write_all(text.as_ref()).and_then(|()| self.to.flush());
        self.gone = written.is_err();
        match written {
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
            written => written,
        }
    }

    /// One that nobody reads.
    #[cfg(test)]
    pub(super) fn gone() -> Self
    where
        W: Default,
    {
        Self { to: W::default(), gone: true }
    }

    /// What was written to.
    #[cfg(test)]
    pub(super) fn into_inner(self) -> W {
        self.to
    }

    /// Whether nobody can read it any more.
    pub(super) fn is_gone(&self) -> bool {
        self.gone
    }
}

/// Comes once nobody reads standard output any more; where that cannot be known, of a file, never.
#[cfg(feature = "net")]
pub(super) async fn unread() {
    use std::os::fd::AsFd;
    let watch = |fd| crate::sys::ready::watch(fd, tokio::io::Interest::ERROR);
    match io::stdout().as_fd().try_clone_to_owned().and_then(watch) {
        Ok(fd) => drop(fd.ready(tokio::io::Interest::ERROR).await),
        Err(_) => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use super::*;

    /// S50.
    #[test]
    fn a_broken_pipe_ends_the_printing_and_is_no_error() {
        let (reader, writer) = io::pipe().unwrap();
        let mut out = Out::new(writer);
        out.write("seen").unwrap();
        assert!(!out.is_gone());

        drop(reader);

        out.write("not seen").unwrap();
        assert!(out.is_gone());
        out.write("dropped").unwrap();
    }

    #[test]
    fn a_full_disk_is_an_error_and_told_once() {
        let mut out = Out::new(File::options().write(true).open("/dev/full").unwrap());

        let error = out.write("text").unwrap_err();

        assert_eq!(error.raw_os_error(), Some(libc::ENOSPC));
        assert!(out.is_gone());
        out.write("dropped").unwrap();
    }
}
