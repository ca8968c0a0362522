//! From a bare kernel to a machine on which tests can run.

use std::error::Error;
use std::ffi::OsStr;
use std::fs;
use std::io;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use nix::mount::{MsFlags, mount, umount};
use vm_tests::place::{ENTER, HOST, MODULES, PORT};

/// Controllers that a hybrid machine keeps on cgroup v1, with what each is mounted together with.
const V1: [&str; 8] =
    ["cpu,cpuacct", "cpuset", "memory", "pids", "blkio", "freezer", "devices", "hugetlb"];

/// Where cgroups are mounted.
const CGROUPS: &str = "/sys/fs/cgroup";

/// Where [`ENTER`] mounts the other root.
const OTHER_ROOT: &str = "/mnt";

/// What is mounted on any machine: type, place, data.
const MOUNTS: [(&str, &str, &str); 8] = [
    ("proc", "/proc", ""),
    ("sysfs", "/sys", ""),
    ("devtmpfs", "/dev", ""),
    ("devpts", "/dev/pts", "ptmxmode=0666,mode=0620,gid=5"),
    ("tmpfs", "/dev/shm", "mode=1777"),
    ("tmpfs", "/run", "mode=0755"),
    ("tmpfs", "/tmp", "mode=1777"),
    ("securityfs", "/sys/kernel/security", ""),
];

/// Mounts everything, loads the modules of the image, lays out what is to be where the host has it, and sets `lo` up.
///
/// The kernel's command line says where cgroups are: `dewar.cgroups=v2`, or `dewar.cgroups=hybrid`.
pub(crate) fn set_up() -> Result<(), Box<dyn Error>> {
    for (kind, place, data) in MOUNTS {
        mount_on(kind, place, data)?;
    }
    if fs::read_to_string("/proc/cmdline")?.contains("dewar.cgroups=hybrid") {
        mount_hybrid()?;
    } else {
        mount_on("cgroup2", CGROUPS, "")?;
    }
    load_modules()?;
    run(Command::new("cp").args(["-r", "--no-dereference"]).args([&format!("{HOST}/."), "/"]))?;
    run(Command::new("ip").args(["link", "set", "lo", "up"]))
}

/// Whether process 1 is to be another, in another root.
pub(crate) fn has_another_root() -> bool {
    Path::new(ENTER).exists()
}

/// Becomes process 1 of the other root: returns only if that fails.
pub(crate) fn enter() -> Result<(), Box<dyn Error>> {
    // Those that it needs itself; the other mounts its own.
    let mounts = ["/proc", "/sys", "/dev"];
    for (kind, place, data) in MOUNTS.into_iter().filter(|(_, place, _)| mounts.contains(place)) {
        mount_on(kind, place, data)?;
    }
    load_modules()?;
    run(Command::new("bash").arg(ENTER))?;
    for place in mounts {
        umount(place).map_err(|errno| format!("unmount {place}: {errno}"))?;
    }
    Err(Command::new("switch_root").args([OTHER_ROOT, "/sbin/init"]).exec().into())
}

/// Waits until systemd has started all that it starts.
pub(crate) fn settle() -> io::Result<()> {
    // It fails where a unit has failed, which is for the tests to judge.
    Command::new("systemctl").args(["is-system-running", "--wait"]).status().map(drop)
}

fn load_modules() -> Result<(), Box<dyn Error>> {
    modules()?.iter().try_for_each(|module| run(Command::new("insmod").arg(module)))
}

fn mount_on(kind: &str, place: &str, data: &str) -> Result<(), Box<dyn Error>> {
    fs::create_dir_all(place).or_else(|error| match error.kind() {
        io::ErrorKind::AlreadyExists => Ok(()),
        _ => Err(error),
    })?;
    mount(Some(kind), place, Some(kind), MsFlags::empty(), Some(data))
        .map_err(|errno| format!("mount {kind} on {place}: {errno}").into())
}

/// As systemd does it on a hybrid host: a tmpfs, in it each v1 controller, and v2 beside them.
fn mount_hybrid() -> Result<(), Box<dyn Error>> {
    mount_on("tmpfs", CGROUPS, "mode=0755")?;
    for controllers in V1 {
        mount_on("cgroup", &format!("{CGROUPS}/{controllers}"), controllers)?;
    }
    mount_on("cgroup2", &format!("{CGROUPS}/unified"), "")
}

fn modules() -> io::Result<Vec<PathBuf>> {
    let mut found: Vec<_> = fs::read_dir(MODULES)?.flatten().map(|entry| entry.path()).collect();
    found.sort();
    Ok(found)
}

fn run(command: &mut Command) -> Result<(), Box<dyn Error>> {
    let status = command.stdin(Stdio::null()).status()?;
    if status.success() { Ok(()) } else { Err(format!("{command:?}: {status}").into()) }
}

/// The device of the port to the driver.
pub(crate) fn port() -> Result<PathBuf, Box<dyn Error>> {
    let ports = fs::read_dir("/sys/class/virtio-ports")?.flatten().map(|entry| entry.path());
    let is_ours = |path: &PathBuf| {
        fs::read_to_string(path.join("name")).is_ok_and(|name| name.trim_end() == PORT)
    };
    let ours = ports.into_iter().find(is_ours).ok_or("there is no port to the driver")?;
    Ok(Path::new("/dev").join(ours.file_name().unwrap_or(OsStr::new(PORT))))
}

/// Switches off at once.
pub(crate) fn power_off() -> Result<(), Box<dyn Error>> {
    run(Command::new("poweroff").args(["-n", "-f"]))
}
