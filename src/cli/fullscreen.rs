//! A terminal that is ours alone for a while: `dewar top`.
//!
//! What was on it comes back however we end: when [`FullScreen`] is dropped, and by [`restore`] where nothing is dropped, in a panic. Signals end
//! nothing by themselves; they are events. Stopped by ^Z it is given back, and taken again afterwards.

use std::io::{self, IsTerminal, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use nix::errno::Errno;
use nix::libc::{SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGTSTP, SIGWINCH};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{Signal, raise};
use nix::sys::termios::{LocalFlags, SetArg, Termios, tcgetattr, tcsetattr};
use nix::unistd::read;
use signal_hook::low_level::pipe;

/// Takes the alternate screen, and hides the cursor.
const ENTER: &str = "\x1b[?1049h\x1b[?25l";
/// Gives both back.
const LEAVE: &str = "\x1b[?25h\x1b[?1049l";

/// How the terminal was before, while it is ours.
static BEFORE: Mutex<Option<Before>> = Mutex::new(None);

#[derive(Debug)]
struct Before {
    /// Of standard input, if it is a terminal.
    input: Option<Termios>,
}

/// The terminal, as long as this lives.
#[derive(Debug)]
pub(super) struct FullScreen {
    /// A byte for each signal that is to end us.
    ends: UnixStream,
    /// A byte for each that is to stop us.
    stops: UnixStream,
    /// A byte for each new size.
    resizes: UnixStream,
    /// Whether there are keys to be read.
    has_keys: bool,
}

/// What one waits for.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Event {
    /// It is time.
    Due,
    /// Keys were pressed: their bytes.
    Keys(Vec<u8>),
    /// What is on the screen is to be drawn again.
    Redraw,
    /// A signal wants us to end.
    End,
}

impl FullScreen {
    /// Takes the terminal of standard output, and the keys of standard input, if that is one, too.
    ///
    /// # Errors
    ///
    /// Those of socketpair(2), sigaction(2), tcsetattr(3) and of writing.
    pub(super) fn enter() -> io::Result<Self> {
        let caught = |signals: &[i32]| -> io::Result<UnixStream> {
            let (stream, signalled) = UnixStream::pair()?;
            stream.set_nonblocking(true)?;
            for &signal in signals {
                pipe::register(signal, signalled.try_clone()?)?;
            }
            Ok(stream)
        };
        let screen = Self {
            ends: caught(&[SIGINT, SIGTERM, SIGHUP, SIGQUIT])?,
            stops: caught(&[SIGTSTP])?,
            resizes: caught(&[SIGWINCH])?,
            has_keys: io::stdin().is_terminal(),
        };
        take()?;
        Ok(screen)
    }

    /// Waits for whatever comes first, `due` at the latest.
    ///
    /// # Errors
    ///
    /// Those of poll(2).
    pub(super) fn wait(&mut self, due: Instant) -> io::Result<Event> {
        let stdin = io::stdin();
        let mut fds = vec![
            PollFd::new(self.ends.as_fd(), PollFlags::POLLIN),
            PollFd::new(self.stops.as_fd(), PollFlags::POLLIN),
            PollFd::new(self.resizes.as_fd(), PollFlags::POLLIN),
        ];
        if self.has_keys {
            fds.push(PollFd::new(stdin.as_fd(), PollFlags::POLLIN));
        }
        let left = due.saturating_duration_since(Instant::now());
        // Rounded up: who wakes up too early sleeps again.
        let millis = left.as_millis().saturating_add(1).min(i32::MAX as u128) as i32;
        let timeout = PollTimeout::try_from(millis).unwrap_or(PollTimeout::MAX);
        match poll(&mut fds, timeout) {
            Ok(0) => return Ok(Event::Due),
            Ok(_) => {}
            Err(Errno::EINTR) => return Ok(Event::Redraw),
            Err(errno) => return Err(errno.into()),
        }
        let ready: Vec<bool> = fds.iter().map(|fd| fd.any().unwrap_or(false)).collect();
        drop(fds);
        if ready[0] {
            return Ok(Event::End);
        }
        if ready[1] {
            drain(&self.stops);
            restore();
            // Until somebody has us go on.
            raise(Signal::SIGSTOP)?;
            take()?;
            return Ok(Event::Redraw);
        }
        if ready[2] {
            drain(&self.resizes);
            return Ok(Event::Redraw);
        }
        let mut bytes = [0; 64];
        match read(stdin.as_fd(), &mut bytes) {
            Ok(count @ 1..) => Ok(Event::Keys(bytes[..count].to_vec())),
            Err(Errno::EINTR | Errno::EAGAIN) => Ok(Event::Redraw),
            // The terminal has hung up.
            Ok(0) | Err(_) => {
                self.has_keys = false;
                Ok(Event::End)
            }
        }
    }
}

impl Drop for FullScreen {
    fn drop(&mut self) {
        restore();
    }
}

/// The bytes that draw `lines` over whatever is on the screen; each has to fit its width.
pub(super) fn picture(lines: &[String]) -> String {
    // Erased to the end of the line after it is written: what was there is never blank in between.
    let lines: Vec<_> = lines.iter().map(|line| format!("{line}\x1b[K")).collect();
    format!("\x1b[H{}\x1b[J", lines.join("\r\n"))
}

fn take() -> io::Result<()> {
    let stdin = io::stdin();
    let input = if stdin.is_terminal() { tcgetattr(stdin.as_fd()).ok() } else { None };
    let quiet = input.clone();
    *BEFORE.lock().unwrap_or_else(PoisonError::into_inner) = Some(Before { input });
    if let Some(mut quiet) = quiet {
        // ^C and ^Z stay signals.
        quiet.local_flags.remove(LocalFlags::ICANON | LocalFlags::ECHO);
        tcsetattr(stdin.as_fd(), SetArg::TCSANOW, &quiet)?;
    }
    write(ENTER)
}

/// Gives the terminal back, if it is ours. May be called at any time, once or more often.
pub(super) fn restore() {
    // Whoever panics while it holds the lock has changed nothing yet.
    let before = match BEFORE.try_lock() {
        Ok(mut before) => before.take(),
        Err(_) => None,
    };
    let Some(before) = before else { return };
    // A terminal that is gone needs nothing. The settings come first: they never wait.
    if let Some(input) = before.input {
        let _ = tcsetattr(io::stdin().as_fd(), SetArg::TCSANOW, &input);
    }
    let _ = write(LEAVE);
}

fn write(text: &str) -> io::Result<()> {
    let mut stdout = io::stdout();
    stdout.write_all(text.as_bytes())?;
    stdout.flush()
}

fn drain(mut stream: &UnixStream) {
    let mut bytes = [0; 64];
    while let Ok(1..) = stream.read(&mut bytes) {}
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_picture_covers_all_that_was_there() {
        let lines = ["one".to_owned(), "two".to_owned()];

        assert_eq!(picture(&lines), "\x1b[Hone\x1b[K\r\ntwo\x1b[K\x1b[J");
    }
}
