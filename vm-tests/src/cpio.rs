//! Archives that the kernel unpacks as its first root: cpio in the format "newc" (Documentation/driver-api/early-userspace/buffer-format.rst).

/// What one entry of an archive is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Entry {
    Directory { mode: u32 },
    File { mode: u32, content: Vec<u8> },
    Link { to: String },
    Character { mode: u32, major: u32, minor: u32 },
}

/// Name of the entry that ends an archive.
const TRAILER: &str = "TRAILER!!!";

/// Writes an archive. A name has no `/` before it; a directory stands before what is in it.
pub(crate) fn archive<'a>(entries: impl IntoIterator<Item = (&'a str, &'a Entry)>) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (number, (name, entry)) in (1..).zip(entries) {
        append(&mut bytes, number, name, entry);
    }
    append(&mut bytes, 0, TRAILER, &Entry::File { mode: 0, content: Vec::new() });
    bytes
}

fn append(bytes: &mut Vec<u8>, inode: u32, name: &str, entry: &Entry) {
    // Kinds of file in a mode: stat(2).
    let [directory, character, regular, link] = [0o040_000, 0o020_000, 0o100_000, 0o120_000];
    let (mode, content, device): (u32, &[u8], _) = match entry {
        Entry::Directory { mode } => (directory | mode, &[], (0, 0)),
        Entry::File { mode, content } => (regular | mode, content, (0, 0)),
        Entry::Link { to } => (link | 0o777, to.as_bytes(), (0, 0)),
        Entry::Character { mode, major, minor } => (character | mode, &[], (*major, *minor)),
    };
    let size = content.len() as u32;
    // inode, mode, uid, gid, links, mtime, size, device (2), special device (2), length of the name, checksum.
    let fields =
        [inode, mode, 0, 0, 1, 0, size, 0, 0, device.0, device.1, name.len() as u32 + 1, 0];
    bytes.extend_from_slice(b"070701");
    for field in fields {
        bytes.extend_from_slice(format!("{field:08x}").as_bytes());
    }
    bytes.extend_from_slice(name.as_bytes());
    bytes.push(0);
    pad(bytes);
    bytes.extend_from_slice(content);
    pad(bytes);
}

/// Names and contents begin at multiples of four.
fn pad(bytes: &mut Vec<u8>) {
    bytes.resize(bytes.len().next_multiple_of(4), 0);
}
