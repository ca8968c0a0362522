//! The log of a disk's writes and flushes, in the order in which they were done: the format of the kernel's dm-log-writes
//! (Documentation/admin-guide/device-mapper/log-writes.rst), as QEMU's `blklogwrites` writes it.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

/// What a log begins with.
const MAGIC: u64 = 0x006a_7366_7773_6872;
const VERSION: u64 = 1;

/// Bits of an entry's flags.
const FLUSH: u64 = 1;
const FUA: u64 = 2;
const DISCARD: u64 = 4;

/// What the disk was asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum What {
    /// Whatever was written before is on the disk from here on.
    Flush,
    /// Bytes written; `durable`: past the disk's cache.
    Write { durable: bool },
    /// Bytes given up.
    Discard,
}

/// One request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) what: What,
    /// Where on the disk, and how much, in bytes.
    pub(super) at: u64,
    pub(super) length: u64,
    /// Where in the log the bytes are.
    data: u64,
}

/// A log.
pub(super) struct Log {
    file: File,
    pub(super) entries: Vec<Entry>,
}

impl Log {
    /// Reads the log of a machine that was switched off.
    pub(super) fn read(path: &Path) -> io::Result<Self> {
        let file = File::open(path)?;
        let mut head = [0; 28];
        file.read_exact_at(&mut head, 0)?;
        let (magic, version, count) = (word(&head, 0), word(&head, 8), word(&head, 16));
        if (magic, version) != (MAGIC, VERSION) {
            return Err(io::Error::other(format!("{} is no log of writes", path.display())));
        }
        let sector = u64::from(u32::from_le_bytes([head[24], head[25], head[26], head[27]]));
        let mut place = sector;
        let mut entries = Vec::new();
        for _ in 0..count {
            let mut entry = [0; 32];
            file.read_exact_at(&mut entry, place)?;
            let flags = word(&entry, 16);
            let (at, length) = (word(&entry, 0) * sector, word(&entry, 8) * sector);
            let what = match flags {
                _ if flags & DISCARD != 0 => What::Discard,
                _ if length == 0 && flags & FLUSH != 0 => What::Flush,
                _ => What::Write { durable: flags & FUA != 0 },
            };
            entries.push(Entry { what, at, length, data: place + sector });
            place += sector + if what == What::Discard { 0 } else { length };
        }
        Ok(Self { file, entries })
    }

    /// Does to `disk` what was asked for.
    pub(super) fn apply(&self, entry: &Entry, disk: &File) -> io::Result<()> {
        match entry.what {
            What::Write { .. } => disk.write_all_at(&self.bytes(entry)?, entry.at),
            What::Flush | What::Discard => Ok(()),
        }
    }

    /// What was written.
    pub(super) fn bytes(&self, entry: &Entry) -> io::Result<Vec<u8>> {
        let mut bytes = vec![0; usize::try_from(entry.length).map_err(io::Error::other)?];
        self.file.read_exact_at(&mut bytes, entry.data)?;
        Ok(bytes)
    }
}

fn word(bytes: &[u8], at: usize) -> u64 {
    let mut word = [0; 8];
    word.copy_from_slice(&bytes[at..at + 8]);
    u64::from_le_bytes(word)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A log of three entries, written as the format says.
    fn log() -> Vec<u8> {
        let sector = |words: &[u64]| {
            let mut bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
            bytes.resize(512, 0);
            bytes
        };
        let mut bytes = sector(&[MAGIC, VERSION, 4, 512]);
        bytes.extend(sector(&[3, 1, 0, 0]));
        bytes.extend([7; 512]);
        bytes.extend(sector(&[0, 0, FLUSH, 0]));
        bytes.extend(sector(&[4, 1, FUA, 0]));
        bytes.extend([9; 512]);
        bytes.extend(sector(&[0, 8, DISCARD, 0]));
        bytes
    }

    #[test]
    fn a_log_has_its_requests_in_order_and_their_bytes() {
        let dir = std::env::temp_dir().join(format!("vm-tests-log-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        std::fs::write(dir.join("log"), log()).unwrap();

        let log = Log::read(&dir.join("log")).unwrap();
        let disk = File::create_new(dir.join("disk")).unwrap();
        for entry in &log.entries {
            log.apply(entry, &disk).unwrap();
        }
        let disk = std::fs::read(dir.join("disk")).unwrap();
        std::fs::remove_dir_all(&dir).unwrap();

        let whats: Vec<_> = log.entries.iter().map(|entry| entry.what).collect();
        let [plain, durable] = [false, true].map(|durable| What::Write { durable });
        assert_eq!(whats, [plain, What::Flush, durable, What::Discard]);
        assert_eq!(disk.len(), 5 * 512);
        assert_eq!((disk[3 * 512], disk[4 * 512]), (7, 9));
    }
}
