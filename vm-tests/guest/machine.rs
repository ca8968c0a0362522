//! The guest as tests see it, and an independent reader of its cgroups.

use std::fs::{self, File};
use std::io::{Read, Seek};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::Command;

use cgroups_rs::hierarchies::V2;
use cgroups_rs::{Cgroup, Controller};
use nix::poll::{PollFd, PollFlags, poll};

use crate::support::{Finished, Scene, Task};

/// Where cgroup v2 is mounted on the boots that have all of it.
pub(crate) const CGROUP2: &str = "/sys/fs/cgroup";

/// Milliseconds that who is on its way out of a cgroup may take.
const GRACE: u16 = 5000;

/// A file of a cgroup, without the end of its line.
#[track_caller]
pub(crate) fn read(cgroup: &Path, file: &str) -> String {
    let path = cgroup.join(file);
    let text = fs::read_to_string(&path);
    let text = text.unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    text.trim_end().to_owned()
}

/// The number behind a key of a flat keyed file, such as `memory.events`.
#[track_caller]
pub(crate) fn keyed(cgroup: &Path, file: &str, key: &str) -> u64 {
    let text = read(cgroup, file);
    let value = text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(' '));
    value.unwrap_or_else(|| panic!("no {key} in {file}: {text}")).parse().unwrap()
}

/// Runs a task to its end in a mount namespace of its own, in which `script` has been run before.
#[track_caller]
pub(crate) fn run_where(scene: &Scene, script: &str, task: &Task, more: &[&str]) -> Finished {
    let run = scene.run_command(task, more);
    let mut command = Command::new("unshare");
    command.args(["-m", "bash", "-e", "-c"]).arg(format!("{script}\nexec \"$@\"")).arg("bash");
    command.arg(run.get_program()).args(run.get_args());
    scene.follow(command).finish()
}

/// Takes CAP_SYS_RESOURCE from whatever this thread starts, as root in a container has none. Whoever has it passes limits of
/// ext4's quotas.
#[allow(unsafe_code, reason = "nix has no call for the bounding set")]
pub(crate) fn start_without_rights_to_resources() {
    // `CAP_SYS_RESOURCE` of linux/capability.h.
    const SYS_RESOURCE: libc::c_ulong = 24;
    // SAFETY: PR_CAPBSET_DROP takes an integer.
    let dropped = unsafe { libc::prctl(libc::PR_CAPBSET_DROP, SYS_RESOURCE, 0, 0, 0) };
    assert_eq!(dropped, 0, "{}", std::io::Error::last_os_error());
}

/// A cgroup that a test made, gone again when it is dropped.
pub(crate) struct Scratch(PathBuf);

impl Scratch {
    /// Makes it, with the controllers that are named handed on to what is made in it.
    #[track_caller]
    pub(crate) fn new(path: &str, controllers: &[&str]) -> Self {
        fs::create_dir(path).unwrap();
        let scratch = Self(PathBuf::from(path));
        for controller in controllers {
            scratch.write("cgroup.subtree_control", &format!("+{controller}"));
        }
        scratch
    }

    pub(crate) fn path(&self) -> &Path {
        &self.0
    }

    #[track_caller]
    pub(crate) fn write(&self, file: &str, text: &str) {
        let path = self.0.join(file);
        fs::write(&path, text).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        remove_base(&self.0);
    }
}

/// Removes a cgroup and the bases that dewar made in it, once nobody is there any more: the runner of a task that is over may
/// still be about to go. What stays, the leak gate tells.
pub(crate) fn remove_base(cgroup: &Path) {
    wait_until_empty(cgroup);
    for base in ["dewar", "base", ""].map(|base| cgroup.join(base)) {
        for made in ["supervisor", "tasks", ""] {
            let _ = fs::remove_dir(base.join(made));
        }
    }
}

/// Waits until no process is left in a cgroup and beneath it, for as long as the leak gate would.
fn wait_until_empty(cgroup: &Path) {
    let Ok(mut events) = File::open(cgroup.join("cgroup.events")) else { return };
    loop {
        let mut told = String::new();
        let read = events.rewind().and_then(|()| events.read_to_string(&mut told));
        if read.is_err() || told.contains("populated 0") {
            return;
        }
        let mut polled = [PollFd::new(events.as_fd(), PollFlags::POLLPRI)];
        if poll(&mut polled, GRACE) == Ok(0) {
            return;
        }
    }
}

/// A cgroup as cgroups-rs reads it, which shares no code with dewar.
#[track_caller]
pub(crate) fn theirs(cgroup: &Path) -> Cgroup {
    let path = cgroup.strip_prefix(CGROUP2).unwrap();
    Cgroup::load(Box::new(V2::new()), path)
}

/// Its controller of one kind, such as [`cgroups_rs::memory::MemController`].
#[track_caller]
pub(crate) fn controller<'a, C>(cgroup: &'a Cgroup) -> &'a C
where
    &'a C: From<&'a cgroups_rs::Subsystem>,
    C: Controller + cgroups_rs::ControllIdentifier,
{
    cgroup.controller_of().expect("a cgroup of v2 has this controller")
}
