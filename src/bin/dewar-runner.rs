//! The runner of one task. Started by `dewar`, not by people: `dewar-runner ROOT TASK [CGROUP_BASE]`.
//!
//! From descriptor 3 it reads a byte before it begins: the task is accepted; perhaps a first request comes with it. Then it writes one there for each turn that
//! recorded something, and as it begins or ceases to wait for its disk: 1 while it does, else 0.
//!
//! Exit status: 0 the task is over; 2 bad use; 5 another runner holds the task, or it cannot be run here; 70 a defect.
#![cfg_attr(target_env = "gnu", no_main)]
#![deny(
    clippy::print_stderr,
    reason = "panics where the log is on a disk that is full: causes::say"
)]

use std::ffi::OsString;

use dewar::causes::{chain, say};
use dewar::failpoint::Failpoint;
use dewar::launch::{FOLLOWER, Word, hear};
use dewar::runner::{Options, Ready, Runner, RunnerError, block_signals};
use dewar::sys::fds::inherited;
use dewar::task::TaskId;

dewar::program!(run);

fn run() -> u8 {
    let args: Vec<OsString> = std::env::args_os().skip(1).collect();
    if args.first().is_some_and(|arg| arg == "--failpoints") {
        Failpoint::ALL.iter().for_each(|name| println!("{name}"));
        return 0;
    }
    let (root, task, base) = match args.as_slice() {
        [root, task] => (root, task, None),
        [root, task, base] => (root, task, Some(base.into())),
        _ => return usage("expected ROOT TASK [CGROUP_BASE]"),
    };
    let task = match task.to_str().map(TaskId::new) {
        Some(Ok(task)) => task,
        _ => return usage("TASK is no task id"),
    };
    if let Err(error) = block_signals() {
        say(format!("dewar-runner: {task}: block signals: {error}"));
        return 70;
    }
    // Before anything of ours can have its number.
    let follower = inherited(FOLLOWER);
    let ready = Ready::new(base);
    let (follower, word) = match follower.map(hear) {
        // Started without descriptor 3, it may go.
        None => (None, Word::Go),
        Some(Ok((follower, Some(word)))) => (Some(follower), word),
        Some(Ok((_, None)) | Err(_)) => return 0,
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

fn usage(why: &str) -> u8 {
    say(format!("dewar-runner: {why}; it is started by `dewar run`"));
    2
}

fn status(error: &RunnerError) -> u8 {
    if error.is_elsewhere() { 5 } else { 70 }
}
