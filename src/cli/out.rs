//! Standard output.

use std::io::{self, Write};

/// Standard output until its reader goes away: from then on what is written is dropped.
///
/// Whoever closes the other end of a pipe wants to see no more. That ends the printing, and nothing else: the Rust
/// runtime has SIGPIPE ignored, so the write fails with EPIPE.
#[derive(Debug, Default)]
pub(super) struct Out {
    gone: bool,
}

impl Out {
    /// Writes `text`, all at once as far as the kernel goes along.
    ///
    /// # Errors
    ///
    /// Those of write(2) but EPIPE.
    pub(super) fn write(&mut self, text: impl AsRef<[u8]>) -> io::Result<()> {
        if self.gone || text.as_ref().is_empty() {
            return Ok(());
        }
        let mut out = io::stdout().lock();
        match out.write_all(text.as_ref()).and_then(|()| out.flush()) {
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {
                self.gone = true;
                Ok(())
            }
            written => written,
        }
    }

    /// Whether nobody reads it any more.
    pub(super) fn is_gone(&self) -> bool {
        self.gone
    }
}
