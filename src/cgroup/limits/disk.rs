//! Which disk a path is on, as the io controller counts: whole disks, not partitions.
//!
//! stat(2) gives the device of the file system; sysfs(5) says of which disk that is a part. A file system that has no disk, or more
//! than one, has a device number that belongs to no disk (`major 0`).

use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

use nix::sys::stat::{major, minor};
use nix::sys::statfs::statfs;

use crate::task::resources::Device;

/// Where the kernel lists block devices by their numbers.
const BLOCK_DEVICES: &str = "/sys/dev/block";

/// The disk that the file system of `path` is on, or that `path` itself names as a device; else why there is none.
pub(super) fn of_path(path: &Path) -> Result<Device, String> {
    let failed = |error: std::io::Error| format!("{}: {error}", path.display());
    let metadata = fs::metadata(path).map_err(failed)?;
    let is_device = metadata.file_type().is_block_device();
    let number = if is_device { metadata.rdev() } else { metadata.dev() };
    let device = device(number)?;
    if device.major == 0 {
        let kind = file_system(path);
        return Err(format!(
            "{} is on {kind} (device {device}), which no disk belongs to",
            path.display()
        ));
    }
    whole(device)
}

/// The disk that `device` is, or is a part of.
pub(super) fn whole(device: Device) -> Result<Device, String> {
    whole_in(Path::new(BLOCK_DEVICES), device)
}

/// [`whole`] with the list of devices in `list`.
fn whole_in(list: &Path, device: Device) -> Result<Device, String> {
    let entry = list.join(device.to_string());
    if !entry.exists() {
        return Err(format!("{} is not there: no such block device", entry.display()));
    }
    if !entry.join("partition").exists() {
        return Ok(device);
    }
    // The entry is a link to the partition's directory, which is in that of its disk.
    let disk = entry.join("../dev");
    let text = fs::read_to_string(&disk).map_err(|error| format!("{}: {error}", disk.display()))?;
    Device::parse(text.trim_end())
        .ok_or_else(|| format!("{} has no device numbers", disk.display()))
}

fn device(number: u64) -> Result<Device, String> {
    let narrow = |part: u64| u32::try_from(part).map_err(|_| format!("device {number:#x}"));
    Ok(Device { major: narrow(major(number))?, minor: narrow(minor(number))? })
}

/// The type of the file system of `path`, for people; see statfs(2).
fn file_system(path: &Path) -> String {
    let Ok(stat) = statfs(path) else { return "an unknown file system".to_owned() };
    let magic = stat.filesystem_type().0;
    let known = [
        (0x0102_1994, "tmpfs"),
        (0x794c_7630, "overlay"),
        (0x9123_683e, "btrfs"),
        (0x6969, "nfs"),
        (0x0102_1997, "9p"),
        (0x9fa0, "proc"),
        (0x6265_6572, "sysfs"),
        (0x8584_58f6, "ramfs"),
        (0x6573_5546, "fuse"),
        (0x2fc1_2fc1, "zfs"),
        (0x6367_7270, "cgroup2"),
    ];
    // The type of the number differs between the C libraries.
    let name = known.iter().find(|&&(number, _)| i128::from(magic) == number);
    name.map_or_else(|| format!("a file system of type {magic:#x}"), |(_, name)| (*name).to_owned())
}

/// Some disk of this host.
#[cfg(test)]
pub(super) fn any() -> Option<Device> {
    let entries = fs::read_dir(BLOCK_DEVICES).ok()?;
    let devices = entries.filter_map(|entry| Device::parse(entry.ok()?.file_name().to_str()?));
    devices.filter_map(|device| whole(device).ok()).next()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;
    use crate::testing::TempDir;

    /// A list of devices as sysfs has it: `8:0` is a disk, `8:1` a partition of it.
    fn sysfs() -> TempDir {
        let dir = TempDir::new();
        let disk = dir.path().join("devices/sda");
        fs::create_dir_all(disk.join("sda1")).unwrap();
        fs::create_dir(dir.path().join("block")).unwrap();
        fs::write(disk.join("dev"), "8:0\n").unwrap();
        fs::write(disk.join("sda1/dev"), "8:1\n").unwrap();
        fs::write(disk.join("sda1/partition"), "1\n").unwrap();
        symlink("../devices/sda", dir.path().join("block/8:0")).unwrap();
        symlink("../devices/sda/sda1", dir.path().join("block/8:1")).unwrap();
        dir
    }

    fn numbers(major: u32, minor: u32) -> Device {
        Device { major, minor }
    }

    #[test]
    fn a_partition_stands_for_its_disk_and_a_disk_for_itself() {
        let sysfs = sysfs();
        let list = sysfs.path().join("block");

        assert_eq!(whole_in(&list, numbers(8, 1)), Ok(numbers(8, 0)));
        assert_eq!(whole_in(&list, numbers(8, 0)), Ok(numbers(8, 0)));
        let why = format!("{} is not there: no such block device", list.join("9:9").display());
        assert_eq!(whole_in(&list, numbers(9, 9)), Err(why));
    }

    #[test]
    fn a_file_system_without_a_disk_is_named() {
        let why = of_path(Path::new("/proc/self")).unwrap_err();

        assert!(why.starts_with("/proc/self is on proc (device 0:"), "{why}");
        assert!(why.ends_with("), which no disk belongs to"), "{why}");
    }

    #[test]
    fn a_path_that_is_not_there_is_named() {
        let why = of_path(Path::new("/nonesuch")).unwrap_err();

        assert_eq!(why, "/nonesuch: No such file or directory (os error 2)");
    }
}
