//! Directories: their entries, some at a time, and what an entry is.
#![allow(unsafe_code)]

use std::ffi::CStr;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, BorrowedFd};

use nix::errno::Errno;
use nix::unistd::{Whence, lseek};

use super::check;

/// Bytes of a `linux_dirent64` before its name: inode, offset, length, type (getdents(2)).
const HEADER: usize = 19;

/// A file of this machine, for as long as it has a name or is open.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FileId {
    /// Device of its file system, as `makedev(3)` has it.
    pub device: u64,
    /// Inode number.
    pub inode: u64,
}

/// What is told about a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stat {
    /// Which file.
    pub id: FileId,
    /// The mount that it was reached by; before Linux 5.8, which has none, its device.
    pub mount: u64,
    /// Type and permission bits.
    pub mode: u32,
    /// Whose it is.
    pub uid: u32,
    /// How many names it has.
    pub links: u32,
    /// Units of 512 bytes that it takes.
    pub blocks: u64,
    /// Whether it is immutable or append-only (`chattr(1)`, `i` and `a`), where the file system tells.
    pub is_kept: bool,
}

impl Stat {
    /// Whether it is a directory.
    pub fn is_dir(&self) -> bool {
        self.mode & libc::S_IFMT == libc::S_IFDIR
    }
}

/// What `name` in `dir` is. No link is followed, and nothing is mounted for it.
///
/// # Errors
///
/// Those of `statx(2)`.
pub fn stat(dir: BorrowedFd<'_>, name: &CStr) -> Result<Stat, Errno> {
    statx(dir, name, libc::AT_SYMLINK_NOFOLLOW | libc::AT_NO_AUTOMOUNT)
}

/// What `file` is.
///
/// # Errors
///
/// Those of `statx(2)`.
pub fn stat_open(file: BorrowedFd<'_>) -> Result<Stat, Errno> {
    statx(file, c"", libc::AT_EMPTY_PATH)
}

fn statx(dir: BorrowedFd<'_>, name: &CStr, flags: libc::c_int) -> Result<Stat, Errno> {
    let mask = libc::STATX_BASIC_STATS | libc::STATX_MNT_ID;
    let mut told = MaybeUninit::<libc::statx>::zeroed();
    // SAFETY: statx(2) reads `name` up to its NUL, which `CStr` has, and writes one `struct statx`.
    check(unsafe {
        libc::statx(dir.as_raw_fd(), name.as_ptr(), flags, mask, told.as_mut_ptr()).into()
    })?;
    // SAFETY: every field is an integer, for which the zeros that it began with are a value, too.
    let told = unsafe { told.assume_init() };
    let device = libc::makedev(told.stx_dev_major, told.stx_dev_minor);
    let has_mount = told.stx_mask & libc::STATX_MNT_ID != 0;
    let kept = (libc::STATX_ATTR_IMMUTABLE | libc::STATX_ATTR_APPEND) as u64;
    Ok(Stat {
        id: FileId { device, inode: told.stx_ino },
        mount: if has_mount { told.stx_mnt_id } else { device },
        mode: told.stx_mode.into(),
        uid: told.stx_uid,
        links: told.stx_nlink,
        blocks: told.stx_blocks,
        is_kept: told.stx_attributes & kept != 0,
    })
}

/// Goes to a place in the directory `dir`: that of an entry, [`Entry::next`], read by this or another descriptor of it.
///
/// # Errors
///
/// Those of `lseek(2)`.
pub fn go_to(dir: BorrowedFd<'_>, place: i64) -> Result<(), Errno> {
    lseek(dir, place, Whence::SeekSet).map(drop)
}

/// Reads the next entries of the directory `dir`: as many as `buffer` holds, none at its end.
///
/// # Errors
///
/// Those of `getdents64(2)`: `ENOENT` if the directory was removed.
pub fn read<'b>(dir: BorrowedFd<'_>, buffer: &'b mut [u8]) -> Result<Entries<'b>, Errno> {
    // SAFETY: the kernel writes at most as many bytes as `buffer` has, which is borrowed exclusively.
    let length = check(unsafe {
        libc::syscall(libc::SYS_getdents64, dir.as_raw_fd(), buffer.as_mut_ptr(), buffer.len())
    })?;
    let length = usize::try_from(length).unwrap_or(0).min(buffer.len());
    Ok(Entries { records: &buffer[..length] })
}

/// Entries of a directory as the kernel wrote them, without `.` and `..`.
#[derive(Debug, Clone)]
pub struct Entries<'b> {
    records: &'b [u8],
}

/// An entry of a directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Entry<'b> {
    /// Its name.
    pub name: &'b CStr,
    /// The place after it.
    pub next: i64,
}

impl Entries<'_> {
    /// Whether the directory was read to its end.
    pub fn is_end(&self) -> bool {
        self.records.is_empty()
    }
}

impl<'b> Iterator for Entries<'b> {
    type Item = Entry<'b>;

    fn next(&mut self) -> Option<Entry<'b>> {
        loop {
            let (entry, rest) = split(self.records)?;
            self.records = rest;
            if !matches!(entry.name.to_bytes(), b"." | b"..") {
                return Some(entry);
            }
        }
    }
}

/// The first of some records, and the others.
fn split(records: &[u8]) -> Option<(Entry<'_>, &[u8])> {
    let next = i64::from_ne_bytes(*records.get(8..)?.first_chunk()?);
    let length = u16::from_ne_bytes(*records.get(16..)?.first_chunk()?);
    let (record, rest) = records.split_at_checked(length.into())?;
    let name = CStr::from_bytes_until_nul(record.get(HEADER..)?).ok()?;
    Some((Entry { name, next }, rest))
}

#[cfg(test)]
mod tests {
    use std::fs::{self, File};
    use std::os::fd::AsFd;

    use super::*;
    use crate::testing::TempDir;

    fn names(dir: &File, buffer: &mut [u8]) -> Vec<String> {
        let mut names = Vec::new();
        loop {
            let entries = read(dir.as_fd(), buffer).unwrap();
            if entries.is_end() {
                names.sort();
                return names;
            }
            names.extend(entries.map(|entry| entry.name.to_str().unwrap().to_owned()));
        }
    }

    #[test]
    fn a_directory_read_in_parts_is_all_of_it_and_neither_of_the_dots() {
        let temp = TempDir::new();
        let mut all: Vec<_> = (0..300).map(|n| format!("{n:0>3}-{}", "x".repeat(n % 90))).collect();
        all.iter().for_each(|name| fs::write(temp.path().join(name), "").unwrap());
        all.sort();

        for size in [300, 4096, 1 << 16] {
            let dir = File::open(temp.path()).unwrap();
            assert_eq!(names(&dir, &mut vec![0; size]), all);
        }
    }

    /// What another descriptor has read is not read again.
    #[test]
    fn a_place_holds_for_another_descriptor_of_the_directory() {
        let temp = TempDir::new();
        for n in 0..100 {
            fs::write(temp.path().join(n.to_string()), "").unwrap();
        }
        let (first, second) = (File::open(temp.path()).unwrap(), File::open(temp.path()).unwrap());
        let mut buffer = [0; 512];
        let entries: Vec<_> = read(first.as_fd(), &mut buffer).unwrap().collect();
        let (read_before, place) = (entries.len(), entries.last().unwrap().next);

        go_to(second.as_fd(), place).unwrap();

        assert_eq!(names(&second, &mut [0; 4096]).len(), 100 - read_before);
    }

    #[test]
    fn what_is_no_whole_record_is_none() {
        for records in [&[][..], &[0; 18], &[0xff; 19], &[0xff; 64]] {
            assert_eq!(Entries { records }.next(), None);
        }
    }

    #[test]
    fn a_file_is_told_of_by_name_and_by_descriptor_alike() {
        let temp = TempDir::new();
        fs::write(temp.path().join("f"), vec![1; 100_000]).unwrap();
        fs::hard_link(temp.path().join("f"), temp.path().join("g")).unwrap();
        std::os::unix::fs::symlink("f", temp.path().join("l")).unwrap();
        let dir = File::open(temp.path()).unwrap();
        let file = File::open(temp.path().join("f")).unwrap();

        let (by_name, other) = (stat(dir.as_fd(), c"f").unwrap(), stat(dir.as_fd(), c"g").unwrap());

        assert_eq!(by_name, stat_open(file.as_fd()).unwrap());
        assert_eq!((by_name, by_name.links, by_name.is_dir()), (other, 2, false));
        assert!(by_name.blocks > 0);
        assert_ne!(stat(dir.as_fd(), c"l").unwrap().id, by_name.id);
        let top = stat_open(dir.as_fd()).unwrap();
        assert_eq!((top.is_dir(), top.mount), (true, by_name.mount));
    }
}
