//! The whole of a runner, from its start to its exit status: of the program `dewar-runner`, and of a fork of `dewar run`.

use std::path::Path;

use nix::libc::ENOTSOCK;

use super::{Options, Ready, Runner, RunnerError, block_signals};
use crate::causes::{chain, say};
use crate::launch::{FOLLOWER, Word, hear};
use crate::sys::fds::inherited;
use crate::task::TaskId;

/// Runs `task` once descriptor 3, if there is one, says so; returns the exit status. To be called first of all that opens descriptors.
pub fn run(root: &Path, task: &TaskId, base: Option<&Path>) -> u8 {
    if let Err(error) = block_signals() {
        say(format!("dewar-runner: {task}: block signals: {error}"));
        return 70;
    }
    // Before anything of ours can have its number.
    let follower = inherited(FOLLOWER);
    let ready = Ready::new(base);
    let (follower, word) = match follower.map(hear) {
        // Started without descriptor 3, it may go; nor is it ours if it is no socket.
        None => (None, Word::Go),
        Some(Err(error)) if error.raw_os_error() == Some(ENOTSOCK) => (None, Word::Go),
        Some(Ok((follower, Some(word)))) => (Some(follower), word),
        Some(Ok((_, None))) => return 0,
        Some(Err(error)) => {
            say(format!("dewar-runner: {task}: hear from who started it: {error}"));
            return 70;
        }
    };
    let options = Options { root: root.into(), task: task.clone(), follower, word };
    match ready.and_then(|ready| Runner::run(ready, options)) {
        Ok(_) => 0,
        Err(error) => {
            say(format!("dewar-runner: {task}: {}", chain(&error)));
            status(&error)
        }
    }
}

fn status(error: &RunnerError) -> u8 {
    if error.is_elsewhere() { 5 } else { 70 }
}
