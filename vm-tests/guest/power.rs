//! Before a power cut and after it: `vm-tests/src/power` says when each of these runs.

mod load;
mod verify;

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU64, Ordering};

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use serde_json::Value;
use vm_tests::told::{DISK, FILE_SYSTEM, ROOT, SECTOR, Told};

/// Where the disk of a test is mounted.
const MOUNTED: &str = "/mnt";

/// A disk, mounted while this lives.
struct Disk {
    device: PathBuf,
}

impl Disk {
    /// Mounts the disk with this serial number.
    fn mount(serial: &str) -> Self {
        let named = |block: &PathBuf| {
            fs::read_to_string(block.join("serial")).is_ok_and(|found| found.trim_end() == serial)
        };
        let blocks = fs::read_dir("/sys/block").unwrap().map(|entry| entry.unwrap().path());
        let block = blocks.into_iter().find(named).unwrap_or_else(|| panic!("no disk {serial}"));
        let device = Path::new("/dev").join(block.file_name().unwrap());
        mount(Some(&device), MOUNTED, Some("ext4"), MsFlags::empty(), None::<&str>).unwrap();
        Self { device }
    }

    fn root(&self) -> PathBuf {
        Path::new(MOUNTED).join(ROOT)
    }

    /// What was told before the power was cut, in order.
    fn told(&self) -> Vec<Told> {
        let device = File::open(&self.device).unwrap();
        let mut sector = [0; SECTOR];
        let mut told = Vec::new();
        for at in (FILE_SYSTEM..DISK).step_by(SECTOR) {
            device.read_exact_at(&mut sector, at).unwrap();
            match Told::from_sector(&sector).unwrap() {
                Some(more) => told.push(more),
                None => break,
            }
        }
        told
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        umount2(MOUNTED, MntFlags::MNT_DETACH).unwrap();
    }
}

/// Writes down what was told, past every cache of the guest.
struct Witness {
    device: File,
    next: AtomicU64,
}

impl Witness {
    fn of(disk: &Disk) -> Self {
        let device = OpenOptions::new().write(true).custom_flags(libc::O_DIRECT).open(&disk.device);
        Self { device: device.unwrap(), next: AtomicU64::new(FILE_SYSTEM) }
    }

    fn write_down(&self, told: &Told) {
        /// As `O_DIRECT` wants it: open(2).
        #[repr(align(4096))]
        struct Aligned([u8; SECTOR]);
        let sector = Aligned(told.to_sector());
        let at = self.next.fetch_add(SECTOR as u64, Ordering::Relaxed);
        self.device.write_all_at(&sector.0, at).unwrap();
    }
}

/// `dewar COMMAND --root ROOT`.
fn dewar(command: &str, root: &Path) -> Command {
    let mut dewar = Command::new("dewar");
    dewar.arg(command).arg("--root").arg(root);
    dewar
}

/// What `dewar status` tells of a task, or of all.
fn status(root: &Path, task: Option<&str>) -> Vec<Value> {
    let output = dewar("status", root).args(["--output", "json"]).args(task).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// Whether a state of a task or of a run is one that it never leaves.
fn is_over(state: &str) -> bool {
    let (_, state) = state.split_once("_STATE_").unwrap();
    ["SUCCESS", "FAILED", "KILLED", "LOST"].contains(&state)
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}
