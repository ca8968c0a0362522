//! A limit that left too little to start a run.

use nix::errno::Errno;

use super::super::Cgroup;
use super::super::dir::Dir;
use super::super::usage;

/// Why the kernel could not start a run in a leaf.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Shortage {
    /// The limit of memory is too small for any run. Whoever starts one cannot be killed for it, so the kernel refuses
    /// (`in_vfork` in mm/oom_kill.c), with an errno that says something else.
    Memory(String),
    /// As many processes as there may be are there already; some may end.
    Pids(String),
}

impl Cgroup {
    /// What a limit of this leaf, or of its task, left too little of, where a run could not be started in it for `errno`.
    pub fn shortage(&self, errno: Errno) -> Option<Shortage> {
        let around = ["", "../"];
        match errno {
            Errno::ENOMEM | Errno::E2BIG | Errno::EFAULT => {
                let up = around.into_iter().find(|up| is_out_of_memory(self.dir(), up))?;
                Some(Shortage::Memory(format!(
                    "{} is too small to start a run",
                    limit(self.dir(), up, "memory.max")
                )))
            }
            Errno::EAGAIN => {
                let up = around.into_iter().find(|up| has_all_its_pids(self.dir(), up))?;
                Some(Shortage::Pids(format!("{} is reached", limit(self.dir(), up, "pids.max"))))
            }
            _ => None,
        }
    }
}

/// Whether the kernel looked for a victim because of the limit of the cgroup at `up`.
fn is_out_of_memory(dir: &Dir, up: &str) -> bool {
    let events = dir.read(&format!("{up}memory.events"));
    events.is_ok_and(|events| usage::keyed(&events, "oom").is_some_and(|count| count > 0))
}

fn has_all_its_pids(dir: &Dir, up: &str) -> bool {
    let number = |file| dir.read_text(&format!("{up}{file}")).ok()?.parse::<u64>().ok();
    number("pids.max").zip(number("pids.current")).is_some_and(|(most, there)| there >= most)
}

/// A limit and its value, for people.
fn limit(dir: &Dir, up: &str, file: &str) -> String {
    let place = if up.is_empty() { Some(dir.path()) } else { dir.path().parent() };
    let value = dir.read_text(&format!("{up}{file}")).unwrap_or_default();
    format!("{file} {value} of {}", place.unwrap_or(dir.path()).display())
}
