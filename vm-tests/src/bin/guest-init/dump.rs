//! What a machine that hangs looks like.

use std::fmt::Write;
use std::fs;

use crate::processes::{self, Process};

/// Every process, and every thread of the kernel that waits uninterruptibly: state, where in the kernel it is, its cgroup.
pub(crate) fn machine() -> String {
    let mut text = String::new();
    for process in processes::all() {
        if !process.is_kernel || process.state == 'D' {
            describe(&mut text, &process);
        }
    }
    text
}

fn describe(text: &mut String, process: &Process) {
    let Process { pid, parent, state, what, .. } = process;
    let read = |file: &str| fs::read_to_string(format!("/proc/{pid}/{file}")).unwrap_or_default();
    let cgroup = read("cgroup");
    let cgroup = cgroup.lines().find_map(|line| line.strip_prefix("0::")).unwrap_or("?");
    // Writing to a String cannot fail.
    let _ = writeln!(
        text,
        "{pid} of {parent}, {state}, in {cgroup}, waits in {}: {what}",
        read("wchan")
    );
    for thread in fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten() {
        let stack = fs::read_to_string(thread.path().join("stack")).unwrap_or_default();
        let _ = writeln!(text, "  thread {}", thread.file_name().display());
        for frame in stack.lines() {
            let _ = writeln!(text, "    {frame}");
        }
    }
}
