//! A FIFO between a test and the processes of its task: either can wait for the other, and neither has to poll.

use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::PathBuf;

use nix::libc::O_NONBLOCK;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::stat::Mode;

use super::DEADLINE;

/// A FIFO that is held open by the test.
pub(crate) struct Gate {
    path: PathBuf,
    fifo: File,
}

impl Gate {
    pub(super) fn new(path: PathBuf) -> Self {
        nix::unistd::mkfifo(&path, Mode::S_IRWXU).unwrap();
        // Whatever the umask is: the task may run as somebody else.
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o666)).unwrap();
        // Reader and writer at once (fifo(7)): nobody who opens it has to wait, and nobody sees its end.
        let fifo = OpenOptions::new().read(true).write(true).custom_flags(O_NONBLOCK).open(&path);
        Self { fifo: fifo.unwrap(), path }
    }

    /// Shell: lets the test go on.
    pub(crate) fn tell(&self) -> String {
        format!("echo > {}", self.path.display())
    }

    /// Shell: waits for the test.
    pub(crate) fn hold(&self) -> String {
        format!("read -r _ < {}", self.path.display())
    }

    /// Waits until a process has told, and gives what it wrote.
    #[track_caller]
    pub(crate) fn wait(&self) -> String {
        let mut fds = [PollFd::new(self.fifo.as_fd(), PollFlags::POLLIN)];
        let ready = poll(&mut fds, PollTimeout::try_from(DEADLINE).unwrap()).unwrap();
        assert!(ready > 0, "nobody wrote to {}", self.path.display());
        let mut bytes = [0; 4096];
        let read = (&self.fifo).read(&mut bytes).unwrap();
        String::from_utf8_lossy(&bytes[..read]).trim().to_owned()
    }

    /// Lets a process go on that waits, or will.
    pub(crate) fn open(&self) {
        (&self.fifo).write_all(b"\n").unwrap();
    }
}
