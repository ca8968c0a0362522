//! The processes of this machine, without the kernel's own threads.

use std::fs;

use nix::unistd::Pid;

/// Flag of a kernel thread in `/proc/PID/stat` (`PF_KTHREAD` of linux/sched.h).
const KERNEL_THREAD: u64 = 0x0020_0000;

/// One process.
#[derive(Debug, Clone)]
pub(crate) struct Process {
    pub(crate) pid: i32,
    pub(crate) parent: i32,
    /// A letter of proc_pid_stat(5), such as `Z` for a zombie.
    pub(crate) state: char,
    pub(crate) is_kernel: bool,
    /// Its arguments, or the name in brackets where it has none.
    pub(crate) what: String,
}

/// All processes, kernel threads too, by number.
pub(crate) fn all() -> Vec<Process> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let mut found: Vec<_> =
        entries.filter_map(|entry| read(entry.file_name().to_str()?.parse().ok()?)).collect();
    found.sort_by_key(|process| process.pid);
    found
}

/// `None` if it has gone meanwhile.
fn read(pid: i32) -> Option<Process> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name is in parentheses, and may have any character in it, parentheses too.
    let (before, after) = stat.rsplit_once(") ")?;
    let name = before.split_once('(')?.1;
    let fields: Vec<&str> = after.split(' ').collect();
    let arguments = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let arguments = String::from_utf8_lossy(&arguments).trim_end_matches('\0').replace('\0', " ");
    Some(Process {
        pid,
        parent: fields.get(1)?.parse().ok()?,
        state: fields.first()?.chars().next()?,
        is_kernel: fields.get(6)?.parse::<u64>().ok()? & KERNEL_THREAD != 0,
        what: if arguments.is_empty() { format!("[{name}]") } else { arguments },
    })
}

impl Process {
    pub(crate) fn id(&self) -> Pid {
        Pid::from_raw(self.pid)
    }
}
