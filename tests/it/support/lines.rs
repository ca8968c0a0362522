//! A command in the background, its standard output line by line, as it comes.

use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread;

use super::DEADLINE;
use super::process::Pid;
use super::scene::{Place, diagnosis};

/// A command whose output is read as it comes. It is killed if it is dropped before its end.
pub(crate) struct Lines {
    place: Arc<Place>,
    child: Child,
    lines: Receiver<String>,
    text: String,
    stderr: PathBuf,
}

impl Lines {
    #[track_caller]
    pub(super) fn start(mut command: Command, place: Arc<Place>) -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        // A file, not a pipe: the runner keeps it open beyond the end of the command.
        let stderr = place.dir.join(format!("stderr.{count}"));
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(File::create(&stderr).unwrap());
        let mut child = command.spawn().unwrap_or_else(|error| panic!("{command:?}: {error}"));
        let stdout = BufReader::new(child.stdout.take().unwrap());
        let (sender, lines) = channel();
        thread::spawn(move || {
            // At the end of the test nobody listens any more.
            let _ = stdout.lines().map_while(Result::ok).try_for_each(|line| sender.send(line));
        });
        Self { place, child, lines, text: String::new(), stderr }
    }

    /// The process of the command itself.
    pub(crate) fn pid(&self) -> Pid {
        Pid::of(self.child.id().cast_signed())
    }

    /// What it has printed so far, as far as it was read here.
    pub(crate) fn stdout(&self) -> &str {
        &self.text
    }

    /// What it has said on standard error so far.
    pub(crate) fn stderr(&self) -> String {
        fs::read_to_string(&self.stderr).unwrap_or_default()
    }

    /// The next line; `None` at the end.
    #[track_caller]
    pub(crate) fn next(&mut self) -> Option<String> {
        match self.lines.recv_timeout(DEADLINE) {
            Ok(line) => {
                self.text.push_str(&line);
                self.text.push('\n');
                Some(line)
            }
            Err(RecvTimeoutError::Disconnected) => None,
            Err(RecvTimeoutError::Timeout) => panic!("it hangs\n{}", self.told()),
        }
    }

    /// Reads to the end, and gives the exit status; `None` if it died by a signal.
    #[track_caller]
    pub(crate) fn finish(&mut self) -> Option<i32> {
        while self.next().is_some() {}
        if !self.pid().ends_within(DEADLINE) {
            panic!("it has closed its output and does not end\n{}", self.told());
        }
        self.child.wait().unwrap().code()
    }

    /// All that is known when something is wrong with it.
    pub(super) fn told(&self) -> String {
        format!("{}\n{}\n{}", self.text, self.stderr(), diagnosis(&self.place))
    }
}

impl Drop for Lines {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
