//! The runner of one task. Started by `dewar`, not by people: `dewar-runner ROOT TASK [CGROUP_BASE]`.
//!
//! From descriptor 3 it reads a byte before it begins: the task is accepted; perhaps a first request comes with it. Then it writes one there for each turn that
//! recorded something, and as it begins or ceases to wait for its disk: 1 while it does, else 0.
//! Without a descriptor 3, or with one that is no socket, it begins at once.
//!
//! Exit status: 0 the task is over; 2 bad use; 5 another runner holds the task, or it cannot be run here; 70 a defect.
#![cfg_attr(target_env = "gnu", no_main)]
#![deny(
    clippy::print_stderr,
    reason = "panics where the log is on a disk that is full: causes::say"
)]

use std::ffi::OsString;
use std::path::Path;

use dewar::causes::say;
use dewar::failpoint::Failpoint;
use dewar::runner::program;
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
        [root, task, base] => (root, task, Some(Path::new(base))),
        _ => return usage("expected ROOT TASK [CGROUP_BASE]"),
    };
    match task.to_str().map(TaskId::new) {
        Some(Ok(task)) => program::run(Path::new(root), &task, base),
        _ => usage("TASK is no task id"),
    }
}

fn usage(why: &str) -> u8 {
    say(format!("dewar-runner: {why}; it is started by `dewar run`"));
    2
}
